"""Pairs of atoms within a cut-off, in free space and in any periodic cell, and graphs made of them.

Law: with `vector = positions[sender] - positions[receiver] + shift`, the edges are all (sender, receiver, image) with
`|vector| < cutoff` except an atom with itself in the same image; the list is closed under reversal, also in floating
point, because both directions are computed by the same expression up to sign.

Cells may be triclinic and smaller than the cut-off: periodic images are laid out explicitly as ghost atoms around one
cell, and what remains is a search in free space, over all pairs if there are few and over a grid of bins (linear in the
number of atoms) if there are many.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np

from equivariant_jax.data.structures import SYMBOLS, AtomicStructure

__all__ = ["NeighbourList", "neighbour_list", "to_graph"]

# Below this many candidate pairs one dense distance matrix is faster than sorting atoms into bins.
_DENSE_PAIRS = 1 << 16
# More ghosts than this mean a cut-off many times the cell; the list itself would not fit in memory.
_MAX_GHOSTS = 20_000_000


class NeighbourList(NamedTuple):
    """Directed edges, sorted by receiver, then sender, then shift.

    Attributes:
      senders: int32 `[n_edge]`.
      receivers: int32 `[n_edge]`, ascending.
      shifts: Cartesian lattice translations in angstrom, float64 `[n_edge, 3]`;
        `positions[senders] - positions[receivers] + shifts` are the edge vectors.
    """

    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray


def neighbour_list(structure: AtomicStructure, cutoff: float) -> NeighbourList:
    """Finds all pairs closer than `cutoff`, images of an atom itself included.

    Args:
      structure: positions float64 `[n, 3]` in angstrom; `lattice` counts only along directions where `pbc` is true.
      cutoff: angstrom, positive.

    Returns:
      Senders and receivers int32 `[n_edge]` and shifts float64 `[n_edge, 3]` in angstrom, sorted by receiver.

    Raises:
      ValueError: if the cut-off is not a positive number, or holds so many images that the list would not fit.

    Example:
      >>> chain = AtomicStructure([6], [[0, 0, 0]], lattice=[[2, 0, 0], [0, 9, 0], [0, 0, 9]], pbc=(True, False, False))
      >>> neighbour_list(chain, 4.5).shifts[:, 0].tolist()
      [-4.0, -2.0, 2.0, 4.0]
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff: got {cutoff}, expected a positive number of angstrom")
    positions = structure.positions
    # Both searches round differently from the final distances, so they look a little further and the end decides.
    reach = cutoff * (1 + 1e-9) + 1e-9
    if structure.lattice is None or not any(structure.pbc):
        home, ghost_of, images = positions, np.arange(len(positions)), np.zeros((len(positions), 3))
        lattice, wraps = np.eye(3), np.zeros((len(positions), 3))
    else:
        lattice = structure.lattice
        fractional = np.linalg.solve(lattice.T, positions.T).T
        wraps = np.where(structure.pbc, np.floor(fractional), 0.0)
        home = positions - wraps @ lattice
        ghost_of, images = _ghosts(home, lattice, structure.pbc, reach)
    ghosts = home[ghost_of] + images @ lattice
    search = _search_dense if len(home) * len(ghosts) <= _DENSE_PAIRS else _search_bins
    receivers, hits = search(home, ghosts, reach)
    senders = ghost_of[hits]
    cells = images[hits] - wraps[senders] + wraps[receivers]
    shifts = cells @ lattice
    vectors = positions[senders] - positions[receivers] + shifts
    real = (np.einsum("ed,ed->e", vectors, vectors) < cutoff**2) & ((senders != receivers) | (cells != 0).any(axis=1))
    senders, receivers, cells, shifts = senders[real], receivers[real], cells[real], shifts[real]
    order = np.lexsort((cells[:, 2], cells[:, 1], cells[:, 0], senders, receivers))
    # Adding zero turns the -0.0 of an unmoved edge into 0.0.
    return NeighbourList(senders[order].astype(np.int32), receivers[order].astype(np.int32), shifts[order] + 0.0)


def _ghosts(home: np.ndarray, lattice: np.ndarray, pbc: Sequence[bool], reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of all images, the home cell included, within `reach` of the home cell: indices and integer cells."""
    # The distance between lattice planes, not the length of a vector, says how many cells a sphere spans.
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    spans = [int(np.ceil(reach / h)) if periodic else 0 for h, periodic in zip(heights, pbc, strict=True)]
    count = np.prod([2.0 * span + 1.0 for span in spans]) * len(home)
    if count > _MAX_GHOSTS:
        raise ValueError(
            f"cutoff: {reach:.4g} angstrom spans {count:.2g} periodic images of the atoms, more than fit in memory; "
            "check the units of the lattice and of the cut-off"
        )
    cells = np.array(list(itertools.product(*(range(-span, span + 1) for span in spans))), float)
    fractional = np.linalg.solve(lattice.T, home.T).T
    margin = np.where(pbc, reach / heights, np.inf)
    images = fractional[None] + cells[:, None]
    near = ((images > -margin) & (images < 1 + margin)).all(axis=-1)
    cell_index, atom_index = np.nonzero(near)
    return atom_index, cells[cell_index]


def _search_dense(home: np.ndarray, ghosts: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    vectors = ghosts[None] - home[:, None]
    receivers, hits = np.nonzero(np.einsum("ijd,ijd->ij", vectors, vectors) < reach**2)
    return receivers, hits


def _search_bins(home: np.ndarray, ghosts: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (home, ghost) within reach: ghosts are sorted into cubes of edge `reach`, 27 of which hold all partners."""
    low = np.minimum(home.min(axis=0), ghosts.min(axis=0))
    extent = np.maximum(home.max(axis=0), ghosts.max(axis=0)) - low
    # Wider cubes stay correct; this bound keeps the number of a cube inside 63 bits for atoms that are far apart.
    edge = max(reach, float(extent.max()) / 2**19)
    ghost_cubes = np.floor((ghosts - low) / edge).astype(np.int64) + 1
    home_cubes = np.floor((home - low) / edge).astype(np.int64) + 1
    # One empty layer on every side, so that a neighbouring cube never is one of the next row.
    sides = np.maximum(ghost_cubes.max(axis=0), home_cubes.max(axis=0)) + 2
    strides = np.array([sides[1] * sides[2], sides[2], 1])
    ghost_keys = ghost_cubes @ strides
    order = np.argsort(ghost_keys, kind="stable")
    ghost_keys = ghost_keys[order]
    home_keys = home_cubes @ strides
    receivers, hits = [], []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        wanted = home_keys + np.array(offset) @ strides
        first = np.searchsorted(ghost_keys, wanted, side="left")
        counts = np.searchsorted(ghost_keys, wanted, side="right") - first
        receiver = np.repeat(np.arange(len(home)), counts)
        within = np.arange(len(receiver)) - np.repeat(np.cumsum(counts) - counts, counts)
        hit = order[np.repeat(first, counts) + within]
        vectors = ghosts[hit] - home[receiver]
        close = np.einsum("ed,ed->e", vectors, vectors) < reach**2
        receivers.append(receiver[close])
        hits.append(hit[close])
    return np.concatenate(receivers), np.concatenate(hits)


def to_graph(
    structure: AtomicStructure,
    cutoff: float,
    species: Sequence[int],
    *,
    reference_energies: Mapping[int, float] | None = None,
) -> jraph.GraphsTuple:
    """Makes the graph of one structure: atoms are nodes, pairs closer than the cut-off are edges.

    Total energies of molecules run to 10^4 eV, of which float32 keeps no more than 10^-3 eV. Give `reference_energies`
    to subtract the energies of the isolated atoms in float64 first.

    Args:
      structure: positions float64 `[n, 3]` in angstrom.
      cutoff: angstrom.
      species: atomic numbers that the model knows; the node feature `species` is an index into it.
      reference_energies: energy in eV by atomic number, subtracted from the energy once for each atom.

    Returns:
      A `jraph.GraphsTuple` of NumPy arrays with one graph:
        nodes: `positions` float32 `[n, 3]`, `species` int32 `[n]`, `forces` float32 `[n, 3]` if known;
        edges: `shifts` float32 `[n_edge, 3]`, see `neighbour_list`;
        globals: `energy` float32 `[1]` if known; `lattice` float32 `[1, 3, 3]` if a direction is periodic; `stress`
        float32 `[1, 3, 3]` if known;
        senders, receivers: int32 `[n_edge]`, receivers ascending; n_node, n_edge: int32 `[1]`.

    Raises:
      ValueError: if an element is missing in `species` or `reference_energies`, or the cut-off is not positive.

    Example:
      >>> water = AtomicStructure([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], energy=-14.2)
      >>> graph = to_graph(water, cutoff=1.2, species=(1, 8))
      >>> graph.nodes["species"].tolist(), graph.senders.tolist(), graph.receivers.tolist()
      ([1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 2])
    """
    index_of = {int(number): index for index, number in enumerate(species)}
    elements = sorted({int(number) for number in structure.numbers})
    _require(elements, index_of, "species")
    senders, receivers, shifts = neighbour_list(structure, cutoff)
    nodes: dict[str, Any] = {
        "positions": structure.positions.astype(np.float32),
        "species": np.array([index_of[int(number)] for number in structure.numbers], np.int32),
    }
    if structure.forces is not None:
        nodes["forces"] = structure.forces.astype(np.float32)
    properties = {}
    if structure.energy is not None:
        energy = structure.energy
        if reference_energies is not None:
            _require(elements, reference_energies, "reference_energies")
            energy -= sum(reference_energies[int(number)] for number in structure.numbers)
        properties["energy"] = np.array([energy], np.float32)
    if structure.lattice is not None and any(structure.pbc):
        properties["lattice"] = structure.lattice[None].astype(np.float32)
    if structure.stress is not None:
        properties["stress"] = structure.stress[None].astype(np.float32)
    fields: dict[str, Any] = {
        "nodes": nodes,
        "edges": {"shifts": shifts.astype(np.float32)},
        "globals": properties,
        "senders": senders,
        "receivers": receivers,
        "n_node": np.array([len(structure)], np.int32),
        "n_edge": np.array([len(senders)], np.int32),
    }
    return jraph.GraphsTuple(**fields)


def _require(elements: Sequence[int], known: Mapping[int, float], name: str) -> None:
    missing = [SYMBOLS[number] for number in elements if number not in known]
    if missing:
        given = [SYMBOLS[number] for number in known]
        raise ValueError(f"{name}: the structure holds {missing}, and only {given} are given; add them")
