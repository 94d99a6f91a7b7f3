"""Neighbour lists against brute force and ASE, in free space and in cells of every kind; graphs made of them."""

import itertools

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from equivariant_jax.data import neighbours
from equivariant_jax.data.neighbours import neighbour_list, to_graph
from equivariant_jax.data.structures import AtomicStructure

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.9, 3.5, 0.0], [-1.3, 1.7, 5.0]])
SMALL = np.array([[1.5, 0.2, 0.0], [0.7, 1.4, 0.1], [-0.2, 0.4, 1.9]])
SKEWED = np.array([[3.0, 0.0, 0.0], [8.5, 3.0, 0.0], [-7.0, 9.0, 3.0]])
CELLS = [(None, (False,) * 3)] + [
    (lattice, pbc)
    for lattice in (np.diag([5.0, 6.0, 7.0]), TRICLINIC, SMALL, SKEWED)
    for pbc in ((True, True, True), (True, False, True), (False, True, False))
]


def random_structure(seed, n, lattice, pbc, spread=3.0):
    generator = np.random.default_rng(seed)
    while True:
        positions = generator.normal(size=(n, 3)) * spread
        try:
            return AtomicStructure(generator.integers(1, 9, n), positions, lattice=lattice, pbc=pbc)
        except ValueError:  # two atoms fell onto one place
            continue


def brute_force(structure, cutoff, span):
    """Every (receiver, sender, shift) within the cut-off, by trying all images up to `span` along each direction."""
    lattice = np.zeros((3, 3)) if structure.lattice is None else structure.lattice
    ranges = [range(-span, span + 1) if periodic else range(1) for periodic in structure.pbc]
    images = np.array(list(itertools.product(*ranges)))
    edges = set()
    for i, j in itertools.product(range(len(structure)), repeat=2):
        vectors = structure.positions[j] - structure.positions[i] + images @ lattice
        near = (np.linalg.norm(vectors, axis=1) < cutoff) & ((i != j) | images.any(axis=1))
        edges |= {(i, j, *shift) for shift in (np.round(images[near] @ lattice, 6) + 0.0).tolist()}
    return edges


def as_set(edges):
    rows = zip(edges.receivers.tolist(), edges.senders.tolist(), np.round(edges.shifts, 6).tolist(), strict=True)
    found = [(i, j, *(x + 0.0 for x in shift)) for i, j, shift in rows]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("search", ["dense", "bins"])
@pytest.mark.parametrize(("lattice", "pbc"), CELLS)
def test_agrees_with_brute_force(lattice, pbc, search, monkeypatch):
    monkeypatch.setattr(neighbours, "_DENSE_PAIRS", 10**9 if search == "dense" else 0)
    structure = random_structure(0, 3, lattice, pbc, spread=2.0)
    cutoff = 2.6
    edges = neighbour_list(structure, cutoff)
    assert len(edges.senders) > 0
    assert as_set(edges) == brute_force(structure, cutoff, span=20)


@pytest.mark.parametrize(("lattice", "pbc"), CELLS)
def test_agrees_with_ase(lattice, pbc):
    structure = random_structure(1, 40, lattice, pbc)
    cutoff = 3.3
    cell = np.eye(3) if lattice is None else lattice
    i, j, vectors = primitive_neighbor_list("ijD", pbc, cell, structure.positions, cutoff)
    edges = neighbour_list(structure, cutoff)
    ours = structure.positions[edges.senders] - structure.positions[edges.receivers] + edges.shifts
    assert len(i) == len(ours) > 0
    rows = np.column_stack([edges.receivers, edges.senders, ours])
    theirs = np.column_stack([i, j, vectors])

    def order(x):
        return x[np.lexsort(np.round(x, 6).T)]

    np.testing.assert_allclose(order(rows), order(theirs), atol=1e-10)


def test_edges_are_sorted_typed_and_closed_under_reversal():
    structure = random_structure(2, 50, TRICLINIC, (True, True, True), spread=10.0)
    edges = neighbour_list(structure, 4.0)
    assert (edges.senders.dtype, edges.receivers.dtype, edges.shifts.dtype) == (np.int32, np.int32, np.float64)
    assert (np.diff(edges.receivers) >= 0).all()
    forward = set(zip(edges.senders.tolist(), edges.receivers.tolist(), map(tuple, edges.shifts.tolist()), strict=True))
    backward = set(
        zip(edges.receivers.tolist(), edges.senders.tolist(), map(tuple, (0.0 - edges.shifts).tolist()), strict=True)
    )
    assert forward == backward


def test_bins_are_linear_and_agree_with_the_dense_search(monkeypatch):
    structure = random_structure(3, 3000, None, (False,) * 3, spread=12.0)
    bins = neighbour_list(structure, 2.0)
    monkeypatch.setattr(neighbours, "_DENSE_PAIRS", 10**9)
    dense = neighbour_list(structure, 2.0)
    for one, other in zip(bins, dense, strict=True):
        np.testing.assert_array_equal(one, other)


def test_atoms_far_apart_do_not_overflow_the_bins(monkeypatch):
    monkeypatch.setattr(neighbours, "_DENSE_PAIRS", 0)
    structure = AtomicStructure([1, 1, 1], [[0, 0, 0], [1e13, 0, 0], [1e13, 1.0, -0.5]])
    assert neighbour_list(structure, 1.5).senders.tolist() == [2, 1]


def test_positions_outside_the_cell_give_the_same_vectors():
    atoms = bulk("NaCl", "rocksalt", 5.6)
    lattice, pbc = np.asarray(atoms.cell), (True, True, True)
    inside = AtomicStructure(atoms.numbers, atoms.positions, lattice=lattice, pbc=pbc)
    moved = atoms.positions + np.array([[3, -2, 5], [-1, 0, 4]]) @ lattice
    outside = AtomicStructure(atoms.numbers, moved, lattice=lattice, pbc=pbc)

    def vectors(structure):
        edges = neighbour_list(structure, 4.0)
        v = structure.positions[edges.senders] - structure.positions[edges.receivers] + edges.shifts
        rows = np.round(np.column_stack([edges.receivers, edges.senders, v]), 6) + 0.0
        return rows[np.lexsort(rows.T)]

    np.testing.assert_allclose(vectors(inside), vectors(outside), atol=1e-6)
    # Rock salt at half the lattice constant 2.8: 6 unlike and 12 like neighbours at 2.8 and 3.96 angstrom.
    assert len(vectors(inside)) == 2 * (6 + 12)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf])
def test_a_cutoff_that_is_none_is_refused(cutoff):
    with pytest.raises(ValueError, match="cutoff"):
        neighbour_list(AtomicStructure([1], [[0, 0, 0]]), cutoff)


def test_a_cell_far_too_small_for_the_cutoff_is_refused_before_it_fills_the_memory():
    structure = AtomicStructure([1], [[0, 0, 0]], lattice=np.eye(3) * 0.01, pbc=(True, True, True))
    with pytest.raises(ValueError, match="check the units"):
        neighbour_list(structure, 6.0)


def test_graph_has_the_documented_leaves():
    structure = random_structure(4, 7, TRICLINIC, (True, True, True))
    labelled = AtomicStructure(
        numbers=structure.numbers,
        positions=structure.positions,
        lattice=structure.lattice,
        pbc=structure.pbc,
        energy=-1.5,
        forces=np.ones((7, 3)),
        stress=np.eye(3),
    )
    graph = to_graph(labelled, 3.0, species=range(1, 9))
    n_edge = len(graph.senders)
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in (graph.nodes | graph.edges | graph.globals).items()}
    assert shapes == {
        "positions": ((7, 3), "float32"),
        "species": ((7,), "int32"),
        "forces": ((7, 3), "float32"),
        "shifts": ((n_edge, 3), "float32"),
        "energy": ((1,), "float32"),
        "lattice": ((1, 3, 3), "float32"),
        "stress": ((1, 3, 3), "float32"),
    }
    assert graph.n_node.tolist() == [7]
    assert graph.n_edge.tolist() == [n_edge]
    np.testing.assert_array_equal(graph.nodes["species"], structure.numbers - 1)


def test_graph_leaves_out_what_is_not_known():
    graph = to_graph(AtomicStructure([1], [[0, 0, 0]]), 3.0, species=(1,))
    assert sorted(graph.nodes) == ["positions", "species"]
    assert graph.globals == {}
    assert graph.edges["shifts"].shape == (0, 3)


def test_graph_refuses_elements_that_the_model_does_not_know():
    structure = AtomicStructure([1, 8], [[0, 0, 0], [1, 0, 0]], energy=1.0)
    with pytest.raises(ValueError, match=r"species: .*\['O'\]"):
        to_graph(structure, 3.0, species=(1, 6))
    with pytest.raises(ValueError, match=r"reference_energies: .*'O'"):
        to_graph(structure, 3.0, species=(1, 8), reference_energies={1: -13.6})


def test_reference_energies_are_subtracted_before_the_cast_to_float32():
    structure = AtomicStructure([1, 8], [[0, 0, 0], [1, 0, 0]], energy=-17660.461737861464)
    graph = to_graph(structure, 3.0, species=(1, 8), reference_energies={1: -660.0, 8: -17000.0})
    assert abs(float(graph.globals["energy"][0]) + 0.461737861464) < 1e-7
    assert abs(float(np.float32(structure.energy) + 17660) + 0.461737861464) > 1e-5


def test_rotated_structures_have_rotated_graphs():
    structure = random_structure(5, 12, TRICLINIC, (True, True, True))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = AtomicStructure(
        structure.numbers,
        structure.positions @ rotation.T,
        lattice=structure.lattice @ rotation.T,
        pbc=structure.pbc,
    )
    plain, rotated = neighbour_list(structure, 3.1), neighbour_list(turned, 3.1)
    np.testing.assert_array_equal(plain.senders, rotated.senders)
    np.testing.assert_array_equal(plain.receivers, rotated.receivers)
    np.testing.assert_allclose(plain.shifts @ rotation.T, rotated.shifts, atol=1e-10)
