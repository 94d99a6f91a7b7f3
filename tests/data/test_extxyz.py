"""Extended XYZ: everything the format can say is read, agrees with ASE, comes back bit for bit; faults are named."""

import ase.io
import numpy as np
import pytest

from equivariant_jax.data.conversion import from_ase, to_ase
from equivariant_jax.data.extxyz import read_extxyz, write_extxyz
from equivariant_jax.data.extxyz_header import format_header, parse_header
from equivariant_jax.data.structures import AtomicStructure

PLAIN = "species:S:1:pos:R:3"
FRAME = """2
Lattice="5.0 0.0 0.0 1.0 6.0 0.0 0.0 0.0 7.0" Properties=species:S:1:pos:R:3:forces:R:3:weight:R:1:tag:I:1:fixed:L:1 \
energy=-13.25 stress="1 2 3 2 5 6 3 6 9" pbc="T T F" config_type=bulk name='two words' angles="_JSON [1.5, 2]" relaxed
H 0.0 0.0 0.0 0.1 0.2 0.3 0.5 7 T
Cl 1.0e0 0.5 -2 -0.1 -0.2 -0.3 -0.5 8 F
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "structures.xyz"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_reads_everything_a_frame_says(write):
    [structure] = read_extxyz(write(FRAME), require=("energy", "forces", "stress"))
    assert structure.numbers.tolist() == [1, 17]
    assert structure.positions.tolist() == [[0, 0, 0], [1, 0.5, -2]]
    assert structure.forces.tolist() == [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    assert structure.stress.tolist() == [[1, 2, 3], [2, 5, 6], [3, 6, 9]]
    assert structure.lattice.tolist() == [[5, 0, 0], [1, 6, 0], [0, 0, 7]]
    assert (structure.energy, structure.pbc) == (-13.25, (True, True, False))
    assert structure.info == {"config_type": "bulk", "name": "two words", "angles": [1.5, 2], "relaxed": True}
    assert {name: array.tolist() for name, array in structure.arrays.items()} == {
        "weight": [0.5, -0.5],
        "tag": [7, 8],
        "fixed": [True, False],
    }


def test_agrees_with_ase_on_everything(write):
    path = write(FRAME * 3)
    ours, theirs = read_extxyz(path), [from_ase(atoms) for atoms in ase.io.read(path, ":", format="extxyz")]
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        for name in ("numbers", "positions", "energy", "forces", "stress", "lattice", "pbc"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        # ASE turns JSON lists into arrays; we keep what the file says.
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in other.info.items()}
        assert one.info == plain
        assert sorted(one.arrays) == sorted(other.arrays)
        for name in one.arrays:
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name])


@pytest.mark.parametrize("energy", ["energy", "TotEnergy", "REF_energy", "dft_energy"])
@pytest.mark.parametrize("forces", ["forces", "force", "REF_forces", "dft_forces"])
def test_common_spellings_are_found(write, energy, forces):
    text = f"1\nProperties={PLAIN}:{forces}:R:3 {energy}=-1.5\nHe 0 0 0 1 2 3\n"
    [structure] = read_extxyz(write(text))
    assert (structure.energy, structure.forces.tolist()) == (-1.5, [[1, 2, 3]])
    assert structure.info == structure.arrays == {}


def test_other_spellings_are_given_and_disagreement_is_refused(write):
    path = write(f"1\nProperties={PLAIN} energy=-1.5 dft_energy=-2.5 E0=-3.5\nHe 0 0 0\n")
    with pytest.raises(ValueError, match=r"frame 0 .*energy: \['energy', 'dft_energy'\] disagree"):
        read_extxyz(path, require=["energy"])
    [structure] = read_extxyz(path, require=["energy"], energy_keys=["E0"])
    assert structure.energy == -3.5
    assert structure.info == {"energy": -1.5, "dft_energy": -2.5}


def test_a_virial_becomes_a_stress(write):
    lattice = 'Lattice="2 0 0 0 3 0 0 0 4"'
    path = write(f'1\n{lattice} virial="24 0 0 0 48 0 0 0 72" energy=0\nHe 0 0 0\n')
    [structure] = read_extxyz(path, require=["stress"])
    np.testing.assert_allclose(structure.stress, np.diag([-1.0, -2.0, -3.0]), rtol=1e-14)
    with pytest.raises(ValueError, match="virial: needs a periodic lattice"):
        read_extxyz(write('1\nvirial="1 0 0 0 1 0 0 0 1"\nHe 0 0 0\n'), require=[])


@pytest.mark.parametrize(
    ("header", "pbc"),
    [
        ("", (False, False, False)),
        ('pbc="F F F" Lattice="9 0 0 0 9 0 0 0 9"', (False, False, False)),
        ('Lattice="9 0 0 0 9 0 0 0 9"', (True, True, True)),
        ('Lattice="9 0 0 0 9 0 0 0 9" pbc=[T, F, T]', (True, False, True)),
        ('Lattice="9 0 0 0 9 0 0 0 9" pbc="1 0 0"', (True, False, False)),
        ("Lattice={9 0 0 0 9 0 0 0 9} pbc={F T F}", (False, True, False)),
        ("Lattice=[[9, 0, 0], [0, 9, 0], [0, 0, 9]]", (True, True, True)),
    ],
)
def test_periodicity_follows_the_format(write, header, pbc):
    [structure] = read_extxyz(write(f"1\n{header}\nHe 0 0 0\n"), require=[])
    assert structure.pbc == pbc


def test_atomic_numbers_replace_symbols_and_must_agree_with_them(write):
    [structure] = read_extxyz(write("1\nProperties=Z:I:1:pos:R:3\n17 0 0 0\n"), require=[])
    assert structure.numbers.tolist() == [17]
    with pytest.raises(ValueError, match="Z: the atomic numbers disagree"):
        read_extxyz(write("1\nProperties=species:S:1:Z:I:1:pos:R:3\nH 2 0 0 0\n"), require=[])


def test_index_chooses_frames(write):
    path = write("".join(f"1\nenergy={i}\nHe 0 0 0\n" for i in range(5)) + "\n\n")
    for index, expected in [(None, [0, 1, 2, 3, 4]), (2, [2]), (-1, [4]), (slice(1, None, 2), [1, 3])]:
        assert [s.energy for s in read_extxyz(path, require=["energy"], index=index)] == expected
    with pytest.raises(ValueError, match="frame 5 was asked for, and the file has 5"):
        read_extxyz(path, require=["energy"], index=5)


def test_windows_line_ends_and_missing_last_line_end(write):
    path = write(FRAME.replace("\n", "\r\n").rstrip().encode())
    assert read_extxyz(path)[0].energy == -13.25


@pytest.mark.parametrize(
    ("text", "frame", "message"),
    [
        ("", None, "no frames"),
        ("two\n\nH 0 0 0\n", 0, "number of atoms: got 'two'"),
        ("0\n\n", 0, "number of atoms: got '0'"),
        ("-1\n\nH 0 0 0\n", 0, "number of atoms: got '-1'"),
        ("2\n\nH 0 0 0\n", 0, "number of atoms: 2 atoms are announced, and the file ends"),
        ("1000000000000\n\nH 0 0 0\n", 0, "1000000000000 atoms are announced"),
        ("9" * 400 + "\n\nH 0 0 0\n", 0, "number of atoms"),
        ("1\n\nH 0 0 0\n1\n\nH 0 0\n", 1, "pos: line 6 has 3 columns, expected 4"),
        ("1\n\nH 0 0 0\nH 0 0 1\n", 1, "number of atoms: got 'H 0 0 1'"),
        ("1\n\nH 0 0 0 9\n", 0, "Properties: line 3 has 5 columns, expected 4"),
        ("1\n\nQq 0 0 0\n", 0, "species: unknown element 'Qq'"),
        ("1\n\nh 0 0 0\n", 0, "species: unknown element 'h'"),
        ("1\n\nH 0 nan 0\n", 0, r"positions: the value at index \[0, 1\] is nan"),
        ("1\n\nH 0 inf 0\n", 0, "positions: .*inf"),
        ("1\n\nH 0 1_0 0\n", 0, "pos: line 3 has '0 1_0 0', expected a number"),
        ("1\n\nH 0 a 0\n", 0, "pos: line 3 has '0 a 0', expected a number"),
        ("1\n\nH 0 \u0661 0\n", 0, "pos: line 3"),
        ("2\n\nH 0 0 0\nH 0 0 0\n", 0, "positions: atoms 0 and 1 stand at one place"),
        ("1\nenergy=low\nH 0 0 0\n", 0, "energy: got 'low', expected a number"),
        ("1\nenergy=nan\nH 0 0 0\n", 0, "energy: .*nan"),
        ('1\nenergy="1 2"\nH 0 0 0\n', 0, "energy: .*expected a number"),
        ("1\nenergy\nH 0 0 0\n", 0, "energy: got 'True'"),
        ("1\nenergy=1 energy=2\nH 0 0 0\n", 0, "energy: given twice"),
        ('1\nenergy=1 name="open\nH 0 0 0\n', 0, "name: the value is empty or has no end"),
        ("1\nenergy= \nH 0 0 0\n", 0, "energy: the value is empty"),
        ("1\nlist=[1, [2\nH 0 0 0\n", 0, "list: the bracket .* never closed"),
        ("1\nlist=[[1, 2], [3]]\nH 0 0 0\n", 0, "list: .*rows of one length"),
        ('1\nx="_JSON [1,"\nH 0 0 0\n', 0, "x: .*not JSON"),
        ('1\nx="_JSON ' + "[" * 100000 + '"\nH 0 0 0\n', 0, "x: .*not JSON"),
        ('1\nLattice="1 0 0 0 1 0 0 0"\nH 0 0 0\n', 0, "Lattice: .*expected 9 numbers"),
        ('1\nLattice="1 0 0 1 0 0 0 0 1"\nH 0 0 0\n', 0, "lattice: .*span no volume"),
        ('1\nLattice="1 0 0 0 nan 0 0 0 1"\nH 0 0 0\n', 0, "lattice: .*nan"),
        ('1\npbc="T T T"\nH 0 0 0\n', 0, "lattice: missing"),
        ('1\npbc="T T"\nH 0 0 0\n', 0, "pbc: .*three of T and F"),
        ('1\nstress="1 2 3"\nH 0 0 0\n', 0, "stress: .*expected 9 numbers"),
        ("1\nProperties=species:S:1:pos:R\nH 0 0 0\n", 0, "Properties: .*name:type:width"),
        ("1\nProperties=species:S:1:pos:R:0\nH 0 0 0\n", 0, "Properties: pos:R:0"),
        ("1\nProperties=species:S:1:pos:R:999999999\nH 0 0 0\n", 0, "Properties: pos:R:999999999"),
        ("1\nProperties=species:S:1:pos:Q:3\nH 0 0 0\n", 0, "Properties: pos:Q:3"),
        ("1\nProperties=species:S:1:pos:R:3:pos:R:3\nH 0 0 0 0 0 0\n", 0, "Properties: pos:R:3"),
        ("1\nProperties=species:S:1:pos:R:2\nH 0 0\n", 0, "pos: .*expected pos:R:3"),
        ("1\nProperties=pos:R:3\n0 0 0\n", 0, "species: missing in Properties"),
        (f"1\nProperties={PLAIN}:forces:R:2\nH 0 0 0 0 0\n", 0, "forces: .*expected 3 numbers"),
        (f"1\nProperties={PLAIN}:forces:R:3\nH 0 0 0 0 0 nan\n", 0, r"forces: the value at index \[0, 2\]"),
        (f"1\nProperties={PLAIN}:tag:I:1\nH 0 0 0 1.5\n", 0, "tag: line 3 has '1.5', expected an integer"),
        (f"1\nProperties={PLAIN}:tag:I:1\nH 0 0 0 {'9' * 40}\n", 0, "tag: line 3"),
        (f"1\nProperties={PLAIN}:fixed:L:1\nH 0 0 0 maybe\n", 0, "fixed: line 3 has 'maybe', expected T or F"),
        (b"1\nname=\xff\nH 0 0 0\n", 0, "header: not UTF-8"),
    ],
)
def test_malformed_files_are_refused_by_file_frame_and_field(write, text, frame, message):
    path = write(text)
    where = "" if frame is None else f", frame {frame} "
    with pytest.raises(ValueError, match=message) as caught:
        read_extxyz(path, require=[])
    assert str(caught.value).startswith(f"{path}{where}")


def test_missing_labels_are_refused_by_name(write):
    path = write(f"1\nProperties={PLAIN}:push:R:3 E=-1\nH 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match=r"frame 0 .*energy: missing; looked for .* and found \['E'\]"):
        read_extxyz(path)
    with pytest.raises(ValueError, match=r"forces: missing; .* and found \['push'\]"):
        read_extxyz(path, require=["forces"])
    with pytest.raises(ValueError, match="stress: missing"):
        read_extxyz(path, require=["stress"])
    [structure] = read_extxyz(path, energy_keys=["E"], forces_keys=["push"])
    assert structure.energy == -1.0
    with pytest.raises(ValueError, match="require: got"):
        read_extxyz(path, require=["dipole"])
    with pytest.raises(FileNotFoundError):
        read_extxyz(path.with_name("nowhere.xyz"))


@pytest.fixture
def rich():
    generator = np.random.default_rng(0)
    return AtomicStructure(
        numbers=[1, 17, 6],
        positions=generator.normal(size=(3, 3)) * 1e3,
        energy=generator.normal() * 1e5,
        forces=generator.normal(size=(3, 3)) * 1e-7,
        stress=generator.normal(size=(3, 3)),
        lattice=generator.normal(size=(3, 3)),
        pbc=(True, False, True),
        info={
            "name": "two words",
            "quote": 'say "a\\b" {',
            "digits": "12",
            "n": 3,
            "flag": False,
            "one": [1],
            "none": None,
        },
        arrays={
            "tag": np.array([1, -2, 3]),
            "label": np.array(["a", "b_1", "é"]),
            "tensor": generator.normal(size=(3, 9)),
        },
    )


def test_round_trip_is_exact(tmp_path, rich):
    path = tmp_path / "out.xyz"
    write_extxyz(path, [rich, rich])
    back, _ = read_extxyz(path, require=("energy", "forces", "stress"))
    for name in ("numbers", "positions", "energy", "forces", "stress", "lattice", "pbc"):
        np.testing.assert_array_equal(getattr(back, name), getattr(rich, name), err_msg=name)
    assert back.info == rich.info
    for name, array in rich.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)


def test_ase_reads_what_we_write_and_we_read_what_ase_writes(tmp_path, rich):
    ours, theirs = tmp_path / "ours.xyz", tmp_path / "theirs.xyz"
    symmetric = (rich.stress + rich.stress.T) / 2
    structure = AtomicStructure(
        rich.numbers,
        rich.positions,
        rich.energy,
        rich.forces,
        symmetric,
        rich.lattice,
        rich.pbc,
        {"n": 3, "name": "a b"},
    )
    write_extxyz(ours, [structure])
    read_by_ase = from_ase(ase.io.read(ours, format="extxyz"))
    ase.io.write(theirs, to_ase(structure), format="extxyz")
    [read_by_us] = read_extxyz(theirs)
    for name in ("numbers", "positions", "energy", "forces", "stress", "lattice", "pbc"):
        np.testing.assert_array_equal(getattr(read_by_ase, name), getattr(structure, name), err_msg=name)
        np.testing.assert_allclose(getattr(read_by_us, name), getattr(structure, name), atol=1e-8, err_msg=name)
    assert read_by_ase.info == structure.info


@pytest.mark.parametrize(
    "changes",
    [
        {"info": {"two words": 1}},
        {"info": {"energy": 1}},
        {"info": {"object": object()}},
        {"arrays": {"pos": np.zeros(1)}},
        {"arrays": {"label": np.array(["two words"])}},
        {"arrays": {"z": np.zeros(1, complex)}},
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=r"info|arrays|names|header"):
        write_extxyz(tmp_path / "out.xyz", [AtomicStructure([1], [[0, 0, 0]], energy=1.0, **changes)])


@pytest.mark.parametrize(
    "value",
    [
        1,
        -1.5,
        1e300,
        5e-324,
        True,
        "word",
        "T",
        "1",
        "",
        " padded ",
        "a\nb",
        "_JSON",
        "a=b",
        [1, 2],
        [1.5],
        [],
        {"k": [1]},
    ],
)
def test_header_values_round_trip(value):
    [(key, back)] = parse_header(format_header({"key": value})).items()
    back = back.tolist() if isinstance(back, np.ndarray) else back
    assert (key, back, type(back)) == ("key", value, type(value))
