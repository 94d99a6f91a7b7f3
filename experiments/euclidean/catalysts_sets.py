"""Surfaces with adsorbates computed by ASE's effective medium theory, and any OC20 set, as graphs of the S2EF task.

The generated set: slabs of three layers of 2 x 2 atoms, fcc(111) or fcc(100), of one metal or of two mixed at random,
with one adsorbate near a random site; atoms above the lowest layer are displaced at random, then relaxed for a random
number of steps (none as well), so that forces range from large to small. Energies and forces are those of `ase`'s EMT,
which knows H, C, N and O only crudely; as a function of positions it is as good a target as any. As in OC20, the test
sets are one of the same compositions (`test_id`) and one of pairs of metals that training never saw (`test_ood`).

Everything follows from the seed; the set is computed once and kept as npz in the working directory.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equivariant_jax.data import AtomicStructure, from_ase, to_graph
from equivariant_jax.data.catalysts import read_catalysts, write_catalysts

__all__ = ["CatalystSet", "SurfaceConfig", "load_catalysts", "make_surfaces", "nearest_neighbours"]

# Adsorbates by name: symbols and positions relative to the atom that is put on the surface.
_ADSORBATES: dict[str, tuple[str, list[tuple[float, float, float]]]] = {
    "H": ("H", [(0, 0, 0)]),
    "C": ("C", [(0, 0, 0)]),
    "N": ("N", [(0, 0, 0)]),
    "O": ("O", [(0, 0, 0)]),
    "CO": ("CO", [(0, 0, 0), (0, 0, 1.15)]),
    "OH": ("OH", [(0, 0, 0), (0.6, 0, 0.76)]),
}


@dataclasses.dataclass(frozen=True)
class SurfaceConfig:
    """Which surfaces are generated.

    Attributes:
      metals: symbols of the metals, out of Al, Cu, Ag, Au, Ni, Pd, Pt.
      adsorbates: names out of H, C, N, O, CO, OH.
      held_out: pairs of metals that only `test_ood` has.
      train_size: number of training structures.
      validation_size: number of validation structures.
      test_size: number of structures of each test set.
      rattle: standard deviation of the random displacements in angstrom.
      relax_steps: largest number of relaxation steps.
      surface_seed: of the generator.
    """

    metals: tuple[str, ...] = ("Cu", "Pd", "Ag", "Pt")
    adsorbates: tuple[str, ...] = ("H", "C", "N", "O", "CO")
    held_out: tuple[tuple[str, str], ...] = (("Cu", "Pt"), ("Pd", "Ag"))
    train_size: int = 1200
    validation_size: int = 60
    test_size: int = 200
    rattle: float = 0.12
    relax_steps: int = 12
    surface_seed: int = 0


class CatalystSet(NamedTuple):
    """Graphs of one set, with what its training part fixes.

    Attributes:
      train: unpadded `jraph.GraphsTuple`s; nodes have `free` `[n]`, False where an atom is held.
      validation: graphs to watch during training.
      tests: name -> graphs.
      species: atomic numbers.
      average_neighbours: mean number of neighbours in the training part.
      average_atoms: mean number of atoms.
      energy_scale: standard deviation of the training energies in eV, after the reference.
      forces_scale: root mean square force component on free atoms in eV/angstrom.
    """

    train: list[Any]
    validation: list[Any]
    tests: dict[str, list[Any]]
    species: tuple[int, ...]
    average_neighbours: float
    average_atoms: float
    energy_scale: float
    forces_scale: float


def _surface(rng: np.random.Generator, metals: Sequence[str], config: SurfaceConfig) -> AtomicStructure:
    from ase import Atoms
    from ase.build import add_adsorbate, fcc100, fcc111
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms
    from ase.data import atomic_numbers, reference_states
    from ase.optimize import BFGS

    # A random share of the second metal; the lattice constant follows it.
    second = rng.random(12) < rng.uniform(0.2, 0.8) if len(metals) == 2 else np.zeros(12, bool)
    constants = [float(reference_states[atomic_numbers[m]]["a"]) for m in metals]  # type: ignore[index]
    lattice = constants[0] + (constants[-1] - constants[0]) * second.mean()
    build = fcc111 if rng.random() < 0.5 else fcc100
    atoms = build(metals[0], size=(2, 2, 3), a=lattice * rng.uniform(0.98, 1.02), vacuum=6.0)
    atoms.numbers[second] = atomic_numbers[metals[-1]]
    name = config.adsorbates[int(rng.integers(len(config.adsorbates)))]
    symbols, places = _ADSORBATES[name]
    molecule = Atoms(symbols, positions=places)
    molecule.rotate(float(rng.uniform(0, 360)), "z")
    sites = ("ontop", "bridge", "fcc", "hcp") if build is fcc111 else ("ontop", "bridge", "hollow")
    site = sites[int(rng.integers(len(sites)))]
    add_adsorbate(atoms, molecule, height=float(rng.uniform(1.0, 2.0)), position=site)
    atoms.pbc = (True, True, True)
    # Layers are numbered from the top; adsorbates have tag 0, as ase.build leaves them.
    tags = np.where(atoms.get_tags() == 0, 2, np.where(atoms.get_tags() == 1, 1, 0))
    fixed = atoms.get_tags() == 3
    atoms.positions[~fixed] += config.rattle * rng.normal(size=(int((~fixed).sum()), 3))
    atoms.calc = EMT()
    atoms.set_constraint(FixAtoms(mask=fixed))
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=int(rng.integers(config.relax_steps + 1)))
    # Forces on fixed atoms are part of the record; which of them count is another matter.
    atoms.get_potential_energy()
    atoms.set_constraint()
    forces = atoms.get_forces()
    made = from_ase(atoms)
    return dataclasses.replace(made, forces=forces, stress=None, info={}, arrays={"fixed": fixed, "tags": tags})


def make_surfaces(config: SurfaceConfig) -> dict[str, list[AtomicStructure]]:
    """Computes the parts `train`, `validation`, `test_id` and `test_ood`.

    Args:
      config: which surfaces.

    Returns:
      Part -> structures with `fixed` and `tags`; forces of at most 15 eV/angstrom, by drawing again.
    """
    held = {frozenset(pair) for pair in config.held_out}
    pairs = [p for p in itertools.combinations(config.metals, 2) if frozenset(p) not in held]
    known: list[tuple[str, ...]] = [*((m,) for m in config.metals), *pairs]
    sizes = {
        "train": config.train_size,
        "validation": config.validation_size,
        "test_id": config.test_size,
        "test_ood": config.test_size,
    }
    parts: dict[str, list[AtomicStructure]] = {}
    for part, (name, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([config.surface_seed, part])
        choices = list(config.held_out) if name == "test_ood" else known
        found: list[AtomicStructure] = []
        while len(found) < size:
            made = _surface(rng, choices[int(rng.integers(len(choices)))], config)
            if made.forces is not None and np.abs(made.forces).max() < 15:
                found.append(made)
        parts[name] = found
    return parts


def _cached(config: SurfaceConfig, folder: Path) -> dict[str, list[AtomicStructure]]:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("train", "validation", "test_id", "test_ood")
    stamp = folder / "surfaces.txt"
    if not stamp.exists() or stamp.read_text() != repr(config):
        for name, structures in make_surfaces(config).items():
            write_catalysts(folder / f"{name}.npz", structures)
        stamp.write_text(repr(config))
    return {name: read_catalysts(folder / f"{name}.npz") for name in names}


def nearest_neighbours(graph: Any, count: int | None) -> Any:
    """Keeps the nearest `count` neighbours of each atom, as OC20's models do; all for None.

    Args:
      graph: unpadded, receivers ascending, edges with `shifts` `[n_edge, 3]`.
      count: largest number of edges that an atom receives.

    Returns:
      The graph with fewer edges.
    """
    if count is None:
        return graph
    positions, shifts = graph.nodes["positions"], graph.edges["shifts"]
    lengths = np.linalg.norm(positions[graph.senders] - positions[graph.receivers] + shifts, axis=1)
    order = np.lexsort((lengths, graph.receivers))
    degree = np.bincount(graph.receivers, minlength=len(positions))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
    kept = np.sort(order[rank < count])
    return graph._replace(
        senders=graph.senders[kept],
        receivers=graph.receivers[kept],
        edges={"shifts": shifts[kept]},
        n_edge=np.array([len(kept)], np.int32),
    )


def _references(train: Sequence[AtomicStructure], species: Sequence[int]) -> np.ndarray:
    counts = np.array([[np.sum(s.numbers == z) for z in species] for s in train], float)
    return np.linalg.lstsq(counts, np.array([s.energy for s in train], float), rcond=None)[0]


def load_catalysts(
    dataset: str,
    r_max: float,
    folder: Path,
    *,
    surfaces: SurfaceConfig,
    max_neighbours: int | None = None,
    validation_size: int = 60,
) -> CatalystSet:
    """Makes or reads a set and its graphs; energies are taken relative to a least-squares energy for each species.

    Args:
      dataset: "emt", or a folder with `train` and `val_*` (each an npz, LMDB file or folder of LMDB files).
      r_max: cut-off in angstrom.
      folder: where the generated set is kept.
      surfaces: which surfaces to generate.
      max_neighbours: keep so many nearest neighbours of each atom, None for all.
      validation_size: structures of the first `val_*` that are watched during training.

    Returns:
      `CatalystSet`.

    Raises:
      ValueError: if the folder of a data set lacks a part.
    """
    if dataset == "emt":
        parts = _cached(surfaces, folder)
        train, validation = parts["train"], parts["validation"]
        tests = {name: parts[name] for name in ("test_id", "test_ood")}
    else:
        root = Path(dataset)
        found = {p.stem: p for p in sorted(root.glob("*")) if p.stem == "train" or p.stem.startswith("val_")}
        if "train" not in found or len(found) < 2:
            raise ValueError(f"{root} holds {sorted(found)}; expected `train` and `val_id`, as folders, .lmdb or .npz.")
        train = read_catalysts(found.pop("train"))
        tests = {name: read_catalysts(path) for name, path in found.items()}
        validation = next(iter(tests.values()))[:validation_size]
    everything = [*train, *validation, *(s for part in tests.values() for s in part)]
    species = tuple(sorted({int(z) for s in everything for z in s.numbers}))
    references = dict(zip(species, _references(train, species).tolist(), strict=True))

    def graphs(structures: Sequence[AtomicStructure]) -> list[Any]:
        made = []
        for s in structures:
            graph = to_graph(s, r_max, species, reference_energies=references)
            nodes: Any = graph.nodes
            free = ~np.asarray(s.arrays.get("fixed", np.zeros(len(s), bool)), bool)
            globals_: Any = graph.globals
            graph = graph._replace(nodes={**nodes, "free": free}, globals={"energy": globals_["energy"]})
            made.append(nearest_neighbours(graph, max_neighbours))
        return made

    parts_of_graphs = graphs(train), graphs(validation), {name: graphs(part) for name, part in tests.items()}
    forces = np.concatenate([g.nodes["forces"][g.nodes["free"]] for g in parts_of_graphs[0]]).astype(np.float64)
    return CatalystSet(
        *parts_of_graphs,
        species=species,
        average_neighbours=float(np.mean([len(g.senders) / len(g.nodes["species"]) for g in parts_of_graphs[0]])),
        average_atoms=float(np.mean([len(g.nodes["species"]) for g in parts_of_graphs[0]])),
        energy_scale=float(np.std([g.globals["energy"][0] for g in parts_of_graphs[0]])),
        forces_scale=float(np.sqrt(np.mean(forces**2))),
    )
