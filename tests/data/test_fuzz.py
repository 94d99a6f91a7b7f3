"""Readers against damaged files: each is refused by a clear `ValueError` or read correctly; nothing else, no hang.

Seeded mutations of one sound file of each kind: flipped, lost, inserted and repeated bytes, truncations, swapped and
hostile tokens; archives are damaged both outside (the packed bytes) and inside (the content, packed again with a right
checksum). What "read correctly" means is an independent road to the same content:

- IDX: encoding the array again gives the file byte for byte; a packed file that is accepted holds the original.
- npz: NumPy's own reader gives the same arrays; a packed file that is accepted holds the original.
- extended XYZ: the structures are sound, ASE reads the same atoms where it reads any, and writing and reading them
  again changes nothing; a file that differs in white space only holds the original.
"""

import gzip
import io
import re
import signal
import struct
import tracemalloc
import zipfile

import ase.io
import numpy as np
import pytest

from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.extxyz import read_extxyz, write_extxyz
from equivariant_jax.data.images import read_idx
from equivariant_jax.data.structures import AtomicStructure

FILES_PER_READER = 400
SECONDS_PER_FILE = 20
HOSTILE = (
    b"nan inf -1 0 1e400 1_0 999999999999 -999999999999 0x1f 1e 1.5.2 H Xx T F _JSON "
    b"\xff\xfe \x00 \" ' { [ ] } = : , [[[["
).split()


def flip(data, generator):
    at = int(generator.integers(len(data)))
    return data[:at] + bytes([data[at] ^ (1 << int(generator.integers(8)))]) + data[at + 1 :]


def truncate(data, generator):
    return data[: int(generator.integers(len(data)))]


def delete(data, generator):
    at, size = int(generator.integers(len(data))), int(generator.integers(1, 20))
    return data[:at] + data[at + size :]


def insert(data, generator):
    at, size = int(generator.integers(len(data) + 1)), int(generator.integers(1, 9))
    return data[:at] + generator.bytes(size) + data[at:]


def repeat(data, generator):
    at, size = int(generator.integers(len(data))), int(generator.integers(1, 60))
    return data[: at + size] + data[at:]


def overwrite(data, generator):
    # The sizes in binary headers: all ones announce as much as the field can say.
    at, size = int(generator.integers(len(data))), int(generator.choice([1, 2, 4, 8]))
    return data[:at] + bytes([int(generator.choice([0, 255]))]) * size + data[at + size :]


def swap_tokens(data, generator):
    tokens = re.split(rb"([\s=:\"]+)", data)
    words = range(0, len(tokens), 2)
    one, other = (int(i) for i in generator.choice(words, 2))
    tokens[one], tokens[other] = tokens[other], tokens[one]
    return b"".join(tokens)


def hostile_token(data, generator):
    tokens = re.split(rb"([\s=:\"]+)", data)
    tokens[int(generator.choice(range(0, len(tokens), 2)))] = HOSTILE[int(generator.integers(len(HOSTILE)))]
    return b"".join(tokens)


def swap_lines(data, generator):
    lines = data.split(b"\n")
    one, other = generator.integers(len(lines), size=2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def change_digit(data, generator):
    at = int(generator.choice([i for i, byte in enumerate(data) if 48 <= byte < 58] or [0]))
    return data[:at] + bytes([48 + int(generator.integers(10))]) + data[at + 1 :]


BYTES = (flip, truncate, delete, insert, repeat, overwrite)
TOKENS = (swap_tokens, hostile_token, swap_lines, change_digit)


def mutants(data, mutations, seed, count):
    """`count` files that differ from `data`, mostly one mutation each and three at most."""
    generator = np.random.default_rng(seed)
    while count:
        mutant = data
        for _ in range(int(generator.choice([1, 1, 2, 3]))):
            if mutant:
                mutant = mutations[int(generator.integers(len(mutations)))](mutant, generator)
        if mutant != data:
            count -= 1
            yield mutant


def read_or_refuse(reader, path):
    """What the reader returns, or None if it refuses the file clearly; everything else fails."""

    def hang(*_):
        raise AssertionError(f"{reader.__name__} did not come back within {SECONDS_PER_FILE} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS_PER_FILE)
    try:
        return reader(path)
    except ValueError as error:
        refusal = error
    finally:
        signal.alarm(0)
    # A clear error is ours: it starts with the file and says more. Subclasses such as UnicodeDecodeError are not.
    assert type(refusal) is ValueError
    assert str(refusal).startswith(str(path))
    assert len(str(refusal)) > len(str(path)) + 10
    return None


def fuzz(path, reader, data, mutations, seed, verify, pack=lambda content: content, count=FILES_PER_READER):
    """Returns how many mutants were refused and how many were read correctly."""
    refused = 0
    for mutant in mutants(data, mutations, seed, count):
        path.write_bytes(pack(mutant))
        result = read_or_refuse(reader, path)
        if result is None:
            refused += 1
        else:
            verify(result, mutant)
    return refused, count - refused


# --- IDX


def idx(array):
    codes = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
    head = bytes([0, 0, codes[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


IMAGE = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)


def test_idx(tmp_path):
    def verify(array, mutant):
        assert idx(array) == mutant

    refused, read = fuzz(tmp_path / "plain-idx", read_idx, idx(IMAGE), BYTES, 1, verify)
    assert min(refused, read) > FILES_PER_READER // 10


def test_gzipped_idx_damaged_outside(tmp_path):
    def verify(array, mutant):
        np.testing.assert_array_equal(array, IMAGE)

    packed = gzip.compress(idx(IMAGE), mtime=0)
    refused, _ = fuzz(tmp_path / "packed-idx.gz", read_idx, packed, BYTES, 2, verify)
    assert refused > FILES_PER_READER // 2


def test_gzipped_idx_damaged_inside(tmp_path):
    def verify(array, mutant):
        assert idx(array) == mutant

    refused, read = fuzz(tmp_path / "inner-idx.gz", read_idx, idx(IMAGE), BYTES, 3, verify, pack=gzip.compress)
    assert min(refused, read) > FILES_PER_READER // 10


# --- npz

ARRAYS = {"x": np.arange(12.0).reshape(3, 4), "words": np.array(["a", "bc"]), "n": np.array(3, np.int32)}


def npz(save):
    stream = io.BytesIO()
    save(stream, **ARRAYS)
    return stream.getvalue()


def assert_original(arrays, _):
    assert list(arrays) == list(ARRAYS)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_damaged_outside(tmp_path, save):
    refused, _ = fuzz(tmp_path / "set.npz", read_npz, npz(save), BYTES, 4, assert_original)
    assert refused > FILES_PER_READER // 2


def test_npz_damaged_inside(tmp_path):
    path = tmp_path / "inner.npz"
    stream = io.BytesIO()
    np.lib.format.write_array(stream, ARRAYS["x"])

    def pack(content):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
        return packed.getvalue()

    def verify(arrays, mutant):
        with np.load(path, allow_pickle=False) as theirs:
            np.testing.assert_array_equal(arrays["x"], theirs["x"])
            assert arrays["x"].dtype == theirs["x"].dtype.newbyteorder("=")

    refused, read = fuzz(path, read_npz, stream.getvalue(), BYTES, 5, verify, pack=pack)
    assert min(refused, read) > FILES_PER_READER // 20


# --- extended XYZ

XYZ = b"""3
Lattice="9.0 0.0 0.0 1.0 8.0 0.0 0.0 0.0 7.0" Properties=species:S:1:pos:R:3:forces:R:3:tag:I:1:fixed:L:1 \
energy=-13.25 pbc="T T F" stress="1 2 3 2 5 6 3 6 9" config_type=bulk name="two words" angles="_JSON [1.5, 2]" \
rows=[[1, 2], [3, 4]] done
O 0.0 0.0 0.0 0.1 0.2 0.3 7 T
H 0.96 0.0 0.0 -0.1 -0.2 -0.3 8 F
H -0.24 0.93 0.0 0.0 0.0 0.0 9 F
1
Properties=Z:I:1:pos:R:3:REF_forces:R:3 REF_energy=-2.5e0
6 1.5 2.5 3.5 0 0 0
"""
NAMES = ("numbers", "positions", "energy", "forces", "stress", "lattice", "pbc")


def plain(info):
    # A matrix is written as JSON, which reads back as lists: the values are the same.
    return repr({key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in info.items()})


def assert_equal(one: AtomicStructure, other: AtomicStructure):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert plain(one.info) == plain(other.info)
    assert sorted(one.arrays) == sorted(other.arrays)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])


def assert_sound(structure: AtomicStructure):
    n = len(structure)
    assert structure.numbers.shape == (n,)
    assert ((structure.numbers >= 1) & (structure.numbers <= 118)).all()
    assert structure.positions.shape == (n, 3)
    assert structure.forces is not None
    assert structure.forces.shape == (n, 3)
    labels = [structure.positions, structure.forces, np.array(structure.energy), structure.stress, structure.lattice]
    assert all(np.isfinite(label).all() for label in labels if label is not None)
    gaps = np.linalg.norm(structure.positions[:, None] - structure.positions[None], axis=-1) + np.eye(n)
    assert gaps.min() >= 1e-3
    assert structure.lattice is not None or not any(structure.pbc)


@pytest.mark.parametrize("mutations", [BYTES, TOKENS, BYTES + TOKENS], ids=["bytes", "tokens", "both"])
def test_extxyz(tmp_path, mutations):
    path, again = tmp_path / "set.xyz", tmp_path / "again.xyz"

    def verify(structures, mutant):
        for structure in structures:
            assert_sound(structure)
        try:
            theirs = ase.io.read(path, ":", format="extxyz")
        except Exception:  # ASE raises anything at all on damaged files; it is no judge of those
            theirs = []
        if len(theirs) == len(structures):
            for one, other in zip(structures, theirs, strict=True):
                np.testing.assert_array_equal(one.numbers, other.numbers)
                np.testing.assert_array_equal(one.positions, other.positions)
        try:
            write_extxyz(again, structures)
        except ValueError:  # a key of a damaged header need not be one that can be written
            return
        for one, other in zip(structures, read_extxyz(again), strict=True):
            assert_equal(one, other)

    refused, read = fuzz(path, read_extxyz, XYZ, mutations, 6, verify)
    assert min(refused, read) > FILES_PER_READER // 40


def test_extxyz_ignores_white_space(tmp_path):
    path = tmp_path / "set.xyz"
    path.write_bytes(XYZ)
    original = read_extxyz(path)
    generator = np.random.default_rng(7)
    spaces = [b" ", b"   ", b"\t", b" \t "]
    for _ in range(100):
        # Between the columns of an atom, space may be longer or be tabs; lines may end as on Windows.
        lines = XYZ.split(b"\n")
        atoms = [i for i, line in enumerate(lines) if re.match(rb"[A-Z6] ?[-0-9]* ", line)]
        for i in atoms:
            lines[i] = re.sub(rb" ", lambda _: spaces[int(generator.integers(4))], lines[i])
        end = [b"\n", b"\r\n", b" \n"][int(generator.integers(3))]
        path.write_bytes(end.join(lines) + end * int(generator.integers(3)))
        for one, other in zip(read_extxyz(path), original, strict=True):
            assert_equal(one, other)


# --- headers that lie about sizes


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_extxyz, b"1000000000000\n\nH 0 0 0\n"),
        (read_extxyz, b"1\nProperties=species:S:1:pos:R:3:x:R:999999\nH 0 0 0\n"),
        (read_idx, bytes([0, 0, 8, 3]) + struct.pack(">3I", 10**9, 1000, 1000) + bytes(100)),
        (read_idx, gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 10**9, 1000, 1000) + bytes(100), mtime=0)),
        (read_idx, gzip.compress(bytes([0, 0, 14, 1]) + struct.pack(">I", 2**32 - 1) + bytes(100), mtime=0)),
    ],
)
def test_a_header_that_lies_allocates_nothing(tmp_path, reader, content):
    path = tmp_path / "liar"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="liar"):
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
