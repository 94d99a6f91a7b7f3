"""OC20's files without torch: real byte layouts read, everything that is not data refused, damage a clear error."""

import dataclasses
import io
import pickle
import struct
import subprocess
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from equivariant_jax.data.catalyst_pickles import load_pickle
from equivariant_jax.data.catalysts import CatalystLMDB, catalyst_from_pickle, read_catalysts, write_catalysts
from equivariant_jax.data.structures import AtomicStructure

RNG = np.random.default_rng(0)
POSITIONS = RNG.normal(size=(4, 3)).astype(np.float32) * 3
FORCES = RNG.normal(size=(4, 3)).astype(np.float32)
CELL = np.diag([8.0, 9.0, 30.0]).astype(np.float32)
NUMBERS = np.array([29, 29, 6, 8])
NAMES = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "b1": "BoolStorage"}


@pytest.fixture
def torch_like(monkeypatch):
    """Modules with torch's and torch_geometric's names, whose objects pickle by the calls that the real ones make."""
    modules = {
        name: types.ModuleType(name)
        for name in (
            "torch",
            "torch._utils",
            "torch.storage",
            "torch_geometric",
            "torch_geometric.data",
            "torch_geometric.data.data",
            "torch_geometric.data.storage",
        )
    }

    def define(module, name, bases=(), **members):
        made = type(name, bases or (object,), {"__module__": module, "__qualname__": name, **members})
        setattr(modules[module], name, made)
        return made

    def function(module, name):
        def call(*_):
            raise AssertionError("the reader must not call this")

        call.__module__, call.__qualname__ = module, name
        setattr(modules[module], name, call)
        return call

    rebuild = function("torch._utils", "_rebuild_tensor_v2")
    from_bytes = function("torch.storage", "_load_from_bytes")
    kinds = {code: define("torch", name) for code, name in NAMES.items()}

    class Storage:
        def __init__(self, array):
            self.array = array

        def content(self):
            """What torch.save writes in its legacy format: five pickles, then counts and raw numbers."""
            kind, stream = kinds[self.array.dtype.str[1:]], io.BytesIO()

            class Pickler(pickle.Pickler):
                def persistent_id(_, obj):
                    return ("storage", kind, "94", "cpu", self.array.size, None) if obj is self else None

            for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
                pickle.dump(head, stream, protocol=2)
            Pickler(stream, protocol=2).dump(self)
            pickle.dump(["94"], stream, protocol=2)
            return stream.getvalue() + struct.pack("<q", self.array.size) + self.array.tobytes()

        def __reduce__(self):
            return from_bytes, (self.content(),)

    class Tensor:
        def __init__(self, array, base=None, offset=0, stride=None):
            array = np.asarray(array)
            self.base = np.ascontiguousarray(array).reshape(-1) if base is None else base
            strides = np.ascontiguousarray(array).strides
            self.arguments = (offset, array.shape, stride or tuple(s // array.itemsize for s in strides))

        def __reduce__(self):
            return rebuild, (Storage(self.base), *self.arguments, False, OrderedDict())

    data = define("torch_geometric.data.data", "Data")
    edge_attr = define("torch_geometric.data.data", "DataEdgeAttr")
    store = define("torch_geometric.data.storage", "GlobalStorage")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def record(layout, fields, protocol):
        made = data()
        if layout == "flat":
            made.__dict__.update(fields)
        else:
            made._edge_attr_cls = edge_attr
            made._store = store()
            made._store.__dict__.update(_mapping=dict(fields), _parent=made)
        return pickle.dumps(made, protocol=protocol)

    return types.SimpleNamespace(Tensor=Tensor, record=record, torch=modules["torch"])


def fields(tensor):
    return {
        "pos": tensor(POSITIONS),
        "atomic_numbers": tensor(NUMBERS.astype(np.float32)),
        "cell": tensor(CELL[None]),
        "y": -3.25,
        "force": tensor(FORCES),
        "fixed": tensor(np.array([1, 0, 0, 0], np.float32)),
        "tags": tensor(np.array([0, 1, 2, 2])),
        "natoms": 4,
        "edge_index": tensor(np.zeros((2, 5), np.int64)),
        "cell_offsets": tensor(np.zeros((5, 3), np.int64)),
        "sid": 1234,
        "fid": 7,
        "contiguous": None,
    }


def check(structure):
    np.testing.assert_array_equal(structure.numbers, NUMBERS)
    np.testing.assert_array_equal(structure.positions, POSITIONS)
    np.testing.assert_array_equal(structure.forces, FORCES)
    np.testing.assert_array_equal(structure.lattice, CELL)
    assert structure.energy == -3.25
    assert structure.pbc == (True, True, True)
    np.testing.assert_array_equal(structure.arrays["fixed"], [True, False, False, False])
    np.testing.assert_array_equal(structure.arrays["tags"], [0, 1, 2, 2])
    assert structure.info == {"sid": 1234, "fid": 7}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("layout", ["flat", "store"])
def test_objects_of_both_layouts(torch_like, layout, protocol):
    check(catalyst_from_pickle(torch_like.record(layout, fields(torch_like.Tensor), protocol)))


def test_views_and_other_dtypes(torch_like):
    # Columns 1 and 2 of a matrix, transposed: offset and strides of a storage that holds more.
    whole = np.arange(12, dtype=np.int64)
    view = torch_like.Tensor(np.zeros((2, 3), np.int64), base=whole, offset=1, stride=(1, 4))
    content = {"view": view, "flag": torch_like.Tensor(np.array([True, False])), "wide": torch_like.Tensor(np.eye(2))}
    found = load_pickle(torch_like.record("flat", content, 4))
    np.testing.assert_array_equal(found["view"], whole.reshape(3, 4).T[1:3])
    np.testing.assert_array_equal(found["flag"], [True, False])
    np.testing.assert_array_equal(found["wide"], np.eye(2))
    empty = load_pickle(torch_like.record("flat", {"none": torch_like.Tensor(np.zeros((0, 3), np.float32))}, 4))
    assert empty["none"].shape == (0, 3)


def test_a_view_that_leaves_its_storage_is_refused(torch_like):
    for offset, stride in ((7, (1, 4)), (1, (1, 40)), (-1, (1, 4))):
        view = torch_like.Tensor(np.zeros((2, 3), np.int64), base=np.arange(12), offset=offset, stride=stride)
        with pytest.raises(ValueError, match="a tensor of size"):
            load_pickle(torch_like.record("flat", {"view": view}, 4))
    # Stride zero would make a huge array of a small storage.
    huge = torch_like.Tensor(np.zeros((1,), np.int64), base=np.arange(12), stride=(0,))
    huge.arguments = (0, (10**9,), (0,))
    with pytest.raises(ValueError, match="in a storage of 12"):
        load_pickle(torch_like.record("flat", {"view": huge}, 4))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numpy_objects(protocol):
    content = {
        "x": POSITIONS,
        "n": NUMBERS,
        "s": np.float64(2.5),
        "b": np.array([True, False]),
        "F": np.asfortranarray(CELL),
    }
    found = load_pickle(pickle.dumps(content, protocol=protocol))
    for name in ("x", "n", "b", "F"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype
    assert found["s"] == 2.5
    with pytest.raises(ValueError, match="pickle"):
        load_pickle(pickle.dumps(np.array([print, None], object), protocol=protocol))


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_but_data_is_built(tmp_path, torch_like):
    import os

    target = tmp_path / "made"
    cases = {
        "mkdir": Evil(os.mkdir, str(target)),
        "eval": Evil(eval, f"open({str(target)!r}, 'w')"),
        "getattr": Evil(getattr, "x", "upper"),
        "Path": target,
        "Tensor": Evil(torch_like.torch.FloatStorage.__class__, "x", (), {}),
    }
    for evil in cases.values():
        for content in (evil, [evil], {"pos": evil}):
            with pytest.raises(ValueError, match=r"the pickle names [\w.]+, which is not data"):
                load_pickle(pickle.dumps(content))
    assert not target.exists()
    # Inside of the bytes of a storage as well.
    nested = Evil(sys.modules["torch.storage"]._load_from_bytes, pickle.dumps(Evil(os.mkdir, str(target))))
    with pytest.raises(ValueError, match="mkdir"):
        load_pickle(pickle.dumps(nested))
    assert not target.exists()


def test_a_pickle_leaves_nothing_behind(torch_like):
    # BUILD on a class or a function would change it for every later file.
    for target in (b"ctorch_geometric.data.data\nData\n", b"ctorch._utils\n_rebuild_tensor_v2\n"):
        with pytest.raises(ValueError, match="sound pickle"):
            load_pickle(target + b"(dS'fields'\nI1\nsb.")
    check(catalyst_from_pickle(torch_like.record("flat", fields(torch_like.Tensor), 4)))


def test_sizes_are_checked_before_memory_is_taken():
    for content in (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",  # BINBYTES8 of a terabyte
        b"\x80\x04N\x72" + struct.pack("<I", 2**32 - 2) + b".",  # LONG_BINPUT at four billion
        b"\x80\x04\x8a\xff" + b"\x01" * 10,
        b"(" * 100_000 + b"t" * 100_000 + b".",
    ):
        with pytest.raises(ValueError, match=r"pickle|byte"):
            catalyst_from_pickle(content)


def damaged(content, count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        at = int(rng.integers(len(content)))
        if i % 3 == 0:
            yield content[:at]
        elif i % 3 == 1:
            yield content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
        else:
            size = int(rng.integers(1, 9))
            yield content[:at] + rng.bytes(size) + content[at + size :]


@pytest.mark.parametrize("layout", ["flat", "store"])
def test_damage_is_a_value_error_or_sound(torch_like, layout):
    content = torch_like.record(layout, fields(torch_like.Tensor), 4)
    refused = accepted = 0
    for mutant in damaged(content, 600, seed=1):
        try:
            structure = catalyst_from_pickle(mutant)
        except ValueError as error:
            refused += type(error) is ValueError and len(str(error)) > 10
        else:  # a digit of a number changed, or a field that is not read
            accepted += 1
            assert np.isfinite(structure.positions).all()
            assert structure.positions.shape == (len(structure), 3)
    assert refused + accepted == 600
    assert refused > 300
    for cut in range(0, len(content) - 1, 7):
        with pytest.raises(ValueError, match=r"pickle|byte|field"):
            catalyst_from_pickle(content[:cut])


def test_missing_and_wrong_fields(torch_like):
    good = fields(torch_like.Tensor)
    for change, match in (
        ({"pos": None}, "pos"),
        ({"atomic_numbers": torch_like.Tensor(np.array([29.5, 29, 6, 8], np.float32))}, "atomic_numbers"),
        ({"fixed": torch_like.Tensor(np.array([1, 0, 2, 0], np.float32))}, "fixed"),
        ({"tags": torch_like.Tensor(np.array([1, 0, 2]))}, "tags"),
        ({"force": torch_like.Tensor(FORCES[:3])}, "forces"),
        ({"y": float("nan")}, "energy"),
    ):
        with pytest.raises(ValueError, match=match):
            catalyst_from_pickle(torch_like.record("flat", {**good, **change}, 4))
    with pytest.raises(ValueError, match="list"):
        catalyst_from_pickle(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="follow"):
        load_pickle(pickle.dumps(1) + b"x")


# --- LMDB


def test_lmdb_files(tmp_path, torch_like):
    lmdb = pytest.importorskip("lmdb")
    for file in range(2):
        environment = lmdb.open(str(tmp_path / f"data.{file:04d}.lmdb"), map_size=2**24, subdir=False, lock=False)
        with environment.begin(write=True) as transaction:
            for i in range(3):
                content = torch_like.record("flat", {**fields(torch_like.Tensor), "fid": 3 * file + i}, 4)
                transaction.put(str(i).encode(), content)
            transaction.put(b"length", pickle.dumps(3))
        environment.close()
    source = CatalystLMDB(tmp_path)
    assert len(source) == 6
    assert [source[i].info["fid"] for i in (5, 0, 3)] == [5, 0, 3]
    assert [s.info["fid"] for s in pickle.loads(pickle.dumps(source))] == list(range(6))
    assert len(read_catalysts(tmp_path / "data.0001.lmdb")) == 3
    with pytest.raises(IndexError):
        source[6]
    broken = tmp_path / "broken.lmdb"
    broken.write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="broken"):
        read_catalysts(broken)


def test_without_lmdb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "a.lmdb").write_bytes(b"")
    with pytest.raises(ImportError, match="catalysts"):
        read_catalysts(tmp_path / "a.lmdb")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_catalysts(tmp_path / "nowhere.lmdb")


def test_importing_needs_neither_lmdb_nor_torch():
    code = "import sys, equivariant_jax.data.catalysts; print(sorted({'lmdb', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- npz


def structure(n, seed, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "numbers": rng.integers(1, 80, n),
        "positions": rng.normal(size=(n, 3)) * 5,
        "energy": float(rng.normal()),
        "forces": rng.normal(size=(n, 3)),
        "lattice": np.diag(rng.uniform(8, 9, 3)),
        "pbc": (True, True, False),
        "arrays": {"fixed": rng.random(n) < 0.5, "tags": rng.integers(0, 3, n).astype(np.int32)},
    }
    return AtomicStructure(**{**values, **changes})


def same(one, other):
    for name in ("numbers", "positions", "energy", "forces", "lattice", "pbc"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert sorted(one.arrays) == sorted(other.arrays)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])
        assert array.dtype == other.arrays[name].dtype


def test_npz_round_trip(tmp_path):
    path = tmp_path / "set.npz"
    structures = [structure(n, n) for n in (3, 1, 7, 12)]
    write_catalysts(path, structures)
    for one, other in zip(read_catalysts(path), structures, strict=True):
        same(one, other)
    bare = [dataclasses.replace(s, energy=None, forces=None, arrays={}) for s in structures]
    bare[0] = dataclasses.replace(bare[0], lattice=None, pbc=(False, False, False))
    write_catalysts(path, bare)
    for one, other in zip(read_catalysts(path), bare, strict=True):
        same(one, other)


def test_npz_labels_of_some_are_refused(tmp_path):
    structures = [structure(3, 0), structure(3, 1, energy=None)]
    with pytest.raises(ValueError, match="energy: structure 1 has none"):
        write_catalysts(tmp_path / "set.npz", structures)
    with pytest.raises(ValueError, match="at least one"):
        write_catalysts(tmp_path / "set.npz", [])


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("offsets", lambda a: a[::-1], "offsets"),
        ("offsets", lambda a: a[:-1], "offsets"),
        ("offsets", lambda a: np.concatenate([a[:1], a]), "offsets"),
        ("energy", lambda a: a[:-1], "energy"),
        ("forces", lambda a: a[:-1], "forces"),
        ("positions", lambda a: a[:, :2], "structure 0"),
        ("numbers", lambda a: a * 0, "structure 0"),
    ],
)
def test_npz_that_does_not_add_up(tmp_path, name, change, match):
    path = tmp_path / "set.npz"
    write_catalysts(path, [structure(n, n) for n in (3, 5)])
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, name: change(arrays[name])})
    with pytest.raises(ValueError, match=match):
        read_catalysts(path)
