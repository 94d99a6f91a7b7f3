"""Structures: what is sound is stored in one form, what is not is refused by field; ASE sees the same numbers."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk, molecule

from equivariant_jax.data.conversion import from_ase, to_ase
from equivariant_jax.data.structures import SYMBOLS, AtomicStructure, atomic_number, isolated_atom_energies

WATER = {"numbers": [8, 1, 1], "positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]}


def test_symbols_are_those_of_ase():
    from ase.data import chemical_symbols

    assert list(SYMBOLS) == chemical_symbols
    assert [atomic_number(symbol) for symbol in SYMBOLS[1:]] == list(range(1, 119))


def test_fields_take_their_documented_types():
    structure = AtomicStructure(**WATER, energy=np.float32(-14.5), forces=np.zeros((3, 3), np.float32))
    assert structure.numbers.dtype == np.int32
    assert structure.positions.dtype == structure.forces.dtype == np.float64
    assert type(structure.energy) is float
    assert (len(structure), structure.formula) == (3, "H2O")


def test_a_structure_does_not_change_with_what_it_was_made_of():
    positions, info = np.array(WATER["positions"]), {"step": 1}
    structure = AtomicStructure(WATER["numbers"], positions, info=info)
    positions += 1.0
    info["step"] = 2
    assert structure.positions[0].tolist() == [0.0, 0.0, 0.0]
    assert structure.info == {"step": 1}
    with pytest.raises(ValueError, match="read-only"):
        structure.positions[0] = 1.0
    assert dataclasses.replace(structure, energy=1.0).energy == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": [8, 1]}, r"positions: got shape \(3, 3\), expected \(2, 3\)"),
        ({"numbers": []}, "numbers: .* n >= 1"),
        ({"numbers": [8, 1, 119]}, "numbers: no element has number 119"),
        ({"numbers": [8, 1, 0]}, "numbers: no element has number 0"),
        ({"numbers": [8.0, 1.0, 1.0]}, "numbers: .*integers"),
        ({"positions": [[0, 0, 0], [0, 0, np.nan], [1, 0, 0]]}, r"positions: the value at index \[1, 2\] is nan"),
        ({"positions": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, "positions: atoms 1 and 2 stand at one place"),
        ({"positions": "abc"}, "positions: .*real numbers"),
        ({"energy": np.inf}, "energy: .*inf"),
        ({"energy": [1.0, 2.0]}, "energy: got shape"),
        ({"forces": np.zeros((2, 3))}, "forces: got shape"),
        ({"stress": np.zeros(6)}, "stress: got shape"),
        ({"pbc": (True, True)}, "pbc: .*three booleans"),
        ({"pbc": (True, False, False)}, "lattice: missing although pbc"),
        ({"pbc": (True, True, True), "lattice": np.ones((3, 3))}, "lattice: .*span no volume"),
        ({"pbc": (True, True, True), "lattice": np.zeros((3, 3))}, "lattice: .*span no volume"),
        ({"arrays": {"charge": np.zeros(2)}}, r"arrays\['charge'\]: got shape \(2,\)"),
    ],
)
def test_unsound_structures_are_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        AtomicStructure(**(WATER | changes))


@pytest.mark.parametrize("offset", [0.0, 1e-9, 0.25, 0.4999999, 0.999999])
def test_coincidence_is_seen_across_every_periodic_boundary(offset):
    lattice = np.array([[4.0, 0.0, 0.0], [1.5, 3.5, 0.0], [0.3, -0.7, 5.0]])
    at = np.full(3, offset) @ lattice
    for image in ([0, 0, 0], [1, 0, 0], [-1, 2, 3]):
        twin = at + np.array(image) @ lattice + 1e-5
        with pytest.raises(ValueError, match="one place"):
            AtomicStructure([1, 1], np.stack([at, twin]), lattice=lattice, pbc=(True, True, True))
    # Along a direction that does not repeat, a lattice vector away is another place.
    AtomicStructure([1, 1], np.stack([at, at + lattice[2]]), lattice=lattice, pbc=(True, True, False))


def test_coincidence_is_found_among_many_atoms_in_one_plane():
    x, y = np.meshgrid(np.arange(60.0), np.arange(60.0))
    plane = np.stack([x.ravel(), y.ravel(), np.zeros(3600)], axis=-1)
    AtomicStructure(np.full(3600, 6), plane)
    plane[1234] = plane[3210]
    with pytest.raises(ValueError, match="atoms 1234 and 3210"):
        AtomicStructure(np.full(3600, 6), plane)


def test_round_trip_through_ase_keeps_everything():
    atoms = bulk("NaCl", "rocksalt", 5.6) * (2, 1, 1)
    structure = AtomicStructure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        energy=-3.5,
        forces=np.arange(12.0).reshape(4, 3),
        stress=np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]]),
        lattice=np.asarray(atoms.cell),
        pbc=(True, True, True),
        info={"name": "salt"},
        arrays={"charge": np.arange(4.0)},
    )
    atoms = to_ase(structure)
    assert atoms.get_potential_energy() == -3.5
    np.testing.assert_array_equal(atoms.get_stress(voigt=False), structure.stress)
    back = from_ase(atoms)
    for name in ("numbers", "positions", "forces", "stress", "lattice"):
        np.testing.assert_array_equal(getattr(back, name), getattr(structure, name))
    assert (back.energy, back.pbc, back.info) == (-3.5, (True,) * 3, {"name": "salt"})
    np.testing.assert_array_equal(back.arrays["charge"], np.arange(4.0))
    atoms.positions += 1.0
    assert structure.positions[0, 0] == 0.0


def test_from_ase_computes_nothing_and_completes_a_slab():
    water = from_ase(molecule("H2O"))
    assert water.energy is None
    assert water.lattice is None
    slab = molecule("H2O")
    slab.set_cell([[5, 0, 0], [0, 5, 0], [0, 0, 0]])
    slab.pbc = (True, True, False)
    assert np.linalg.norm(from_ase(slab).lattice[2]) == 1.0


def test_volume_needs_a_lattice():
    with pytest.raises(ValueError, match="volume"):
        _ = AtomicStructure(**WATER).volume
    cell = AtomicStructure([1], [[0, 0, 0]], lattice=[[0, 0, 2], [3, 0, 0], [0, 4, 0]], pbc=(True, True, True))
    assert cell.volume == pytest.approx(24.0)


def test_isolated_atom_energies_refuse_what_is_not_one():
    hydrogen = AtomicStructure([1], [[0, 0, 0]], energy=-13.6)
    oxygen = AtomicStructure([8], [[0, 0, 0]], energy=-2000.0)
    assert list(isolated_atom_energies([oxygen, hydrogen]).items()) == [(1, -13.6), (8, -2000.0)]
    with pytest.raises(ValueError, match="second H"):
        isolated_atom_energies([hydrogen, hydrogen])
    with pytest.raises(ValueError, match="structure 0 is H2O"):
        isolated_atom_energies([AtomicStructure(**WATER, energy=1.0)])
    with pytest.raises(ValueError, match="energy None"):
        isolated_atom_energies([AtomicStructure([1], [[0, 0, 0]])])
