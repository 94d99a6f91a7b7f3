"""Which structures train, validate and test a potential, and what is fixed from the training part before training."""

from typing import Any, NamedTuple

import numpy as np

from equivariant_jax.data import (
    AtomicStructure,
    aminoethanol,
    isolated_atom_energies,
    published_molecules,
    read_extxyz,
    to_graph,
)

__all__ = ["MolecularSet", "load_molecules"]


class MolecularSet(NamedTuple):
    """Graphs of one data set, with what their training part fixes.

    Attributes:
      train: unpadded `jraph.GraphsTuple`s (energies without the isolated atoms).
      validation: graphs to watch during training.
      tests: name -> graphs.
      species: atomic numbers.
      reference_energies: energy of each isolated atom in eV, or what least squares made of it.
      reference: where these come from, "isolated atoms" or "least squares".
      average_neighbours: mean number of neighbours in the training part.
      max_neighbours: largest number of neighbours in any part.
      energy_shift: mean interaction energy per atom in eV.
      energy_scale: root mean square force component in eV/angstrom.
    """

    train: list[Any]
    validation: list[Any]
    tests: dict[str, list[Any]]
    species: tuple[int, ...]
    reference_energies: tuple[float, ...]
    reference: str
    average_neighbours: float
    max_neighbours: int
    energy_shift: float
    energy_scale: float


def _split(structures: list[AtomicStructure], count: int, seed: int) -> tuple[list, list]:
    # A fixed random part of `count` structures, and the rest; in the order of the file.
    order = np.random.default_rng(seed).permutation(len(structures))
    chosen = set(order[:count].tolist())
    return (
        [s for i, s in enumerate(structures) if i in chosen],
        [s for i, s in enumerate(structures) if i not in chosen],
    )


def _read(dataset: str, validation_size: int, seed: int) -> tuple[list, list, dict[str, list], list]:
    # train, validation, tests, isolated atoms
    if dataset == "embedded":
        tests = {name: aminoethanol(name) for name in ("test_300K", "test_600K")}
        parts = aminoethanol("train_300K"), aminoethanol("validation_300K")[:validation_size]
        return *parts, tests, aminoethanol("isolated_atoms")
    if dataset == "acac":
        validation, train = _split(published_molecules("acac", "train_300K"), validation_size, seed)
        names = ("test_300K", "test_600K", "test_dihedral", "test_h_transfer")
        tests = {name: published_molecules("acac", name) for name in names}
        return train, validation, tests, published_molecules("acac", "isolated_atoms")
    if dataset == "3bpa":
        # The published test files are not at hand; the mixed-temperature training file is an extrapolation test.
        validation, train = _split(published_molecules("3bpa", "train_300K"), validation_size, seed)
        tests = {"test_mixed": published_molecules("3bpa", "train_mixed")}
        return train, validation, tests, published_molecules("3bpa", "isolated_atoms")
    if dataset == "rmd17":
        validation, train = _split(published_molecules("rmd17_aspirin", "train"), validation_size, seed)
        return train, validation, {"test": published_molecules("rmd17_aspirin", "test")}, []
    structures = read_extxyz(dataset)
    isolated = [s for s in structures if len(s.numbers) == 1]
    structures = [s for s in structures if len(s.numbers) > 1]
    if len(structures) < 3:
        raise ValueError(f"{dataset} has {len(structures)} structures of two or more atoms; at least 3 are needed.")
    test, rest = _split(structures, max(1, len(structures) // 10), seed)
    validation, train = _split(rest, min(validation_size, max(1, len(rest) // 10)), seed)
    return train, validation, {"test": test}, isolated


def _references(train: list[AtomicStructure], species: tuple[int, ...], isolated: list[AtomicStructure]):
    known = isolated_atom_energies(isolated) if isolated else {}
    if set(species) <= set(known):
        return tuple(known[z] for z in species), "isolated atoms"
    counts = np.array([[np.sum(s.numbers == z) for z in species] for s in train], float)
    energies = np.array([s.energy for s in train], float)
    return tuple(np.linalg.lstsq(counts, energies, rcond=None)[0].tolist()), "least squares"


def load_molecules(
    dataset: str, r_max: float, *, train_size: int | None = None, validation_size: int = 50, seed: int = 0
) -> MolecularSet:
    """Reads a data set and makes its graphs.

    Args:
      dataset: "embedded", "acac", "3bpa", "rmd17", or the path of an extended XYZ file.
      r_max: cut-off in angstrom.
      train_size: use only so many training structures, evenly spaced; None for all.
      validation_size: structures held out of the training part.
      seed: seed of the hold-out.

    Returns:
      `MolecularSet`.

    Raises:
      MissingDataError: if the files of a published set are not there.
    """
    train, validation, tests, isolated = _read(dataset, validation_size, seed)
    if train_size is not None and train_size < len(train):
        train = [train[i] for i in np.linspace(0, len(train) - 1, train_size).round().astype(int)]
    everything = [*train, *validation, *(s for part in tests.values() for s in part)]
    species = tuple(sorted({int(z) for s in everything for z in s.numbers}))
    references, origin = _references(train, species, isolated)
    by_number = dict(zip(species, references, strict=True))

    def graphs(structures: list[AtomicStructure]) -> list[Any]:
        return [to_graph(s, r_max, species, reference_energies=by_number) for s in structures]

    made = graphs(train), graphs(validation), {name: graphs(part) for name, part in tests.items()}
    degrees = [np.bincount(g.receivers, minlength=len(g.nodes["species"])) for g in made[0]]
    others = [np.bincount(g.receivers, minlength=1) for part in (made[1], *made[2].values()) for g in part]
    per_atom = [float(g.globals["energy"][0]) / len(g.nodes["species"]) for g in made[0]]
    forces = np.concatenate([g.nodes["forces"] for g in made[0]]).astype(np.float64)
    return MolecularSet(
        *made,
        species=species,
        reference_energies=references,
        reference=origin,
        average_neighbours=float(np.mean(np.concatenate(degrees))),
        max_neighbours=int(max(d.max() for d in [*degrees, *others])),
        energy_shift=float(np.mean(per_atom)),
        energy_scale=float(np.sqrt(np.mean(forces**2))),
    )
