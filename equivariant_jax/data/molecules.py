"""Sets of molecules with energies and forces: one inside the package, and three published ones read from disk.

`aminoethanol` needs nothing: GFN2-xTB molecular dynamics of 2-aminoethanol, made by `experiments/embedded_molecule.py`,
whose docstring gives the level of theory, the sampling and the units. `published_molecules` reads the sets that papers
on interatomic potentials report on, under `EQUIVARIANT_JAX_DATA`.

This module is also the one to import for everything on molecules: structures, files, neighbour lists, graphs.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.conversion import from_ase, to_ase
from equivariant_jax.data.extxyz import read_extxyz, write_extxyz
from equivariant_jax.data.neighbours import NeighbourList, neighbour_list, to_graph
from equivariant_jax.data.sources import find_data_file
from equivariant_jax.data.structures import AtomicStructure, isolated_atom_energies

__all__ = [
    "AMINOETHANOL_SPLITS",
    "EMBEDDED_AMINOETHANOL",
    "AtomicStructure",
    "NeighbourList",
    "aminoethanol",
    "aminoethanol_metadata",
    "from_ase",
    "isolated_atom_energies",
    "neighbour_list",
    "published_molecules",
    "read_extxyz",
    "to_ase",
    "to_graph",
    "write_extxyz",
]

EMBEDDED_AMINOETHANOL = Path(__file__).parent / "embedded" / "aminoethanol.npz"
"""Where the embedded set lies."""

AMINOETHANOL_SPLITS = ("train_300K", "validation_300K", "test_300K", "test_600K", "isolated_atoms")
"""The splits of the embedded set; no two share a trajectory."""

_BOTNET = "https://github.com/davkovacs/BOTNet-datasets (MIT)"
_RMD17 = "https://doi.org/10.6084/m9.figshare.12672038 (revised MD17; here in extended XYZ, as in mace-jax)"
_LABELLED, _ENERGY_ONLY = ("energy", "forces"), ("energy",)

# name -> project, folder, split -> (file, labels that every frame has)
_PUBLISHED: dict[str, tuple[str, str, dict[str, tuple[str, tuple[str, ...]]]]] = {
    "acac": (
        _BOTNET,
        "acac",
        {
            "train_300K": ("train_300K.xyz", _LABELLED),
            "train_600K": ("train_600K.xyz", _LABELLED),
            "test_300K": ("test_MD_300K.xyz", _LABELLED),
            "test_600K": ("test_MD_600K.xyz", _LABELLED),
            "test_dihedral": ("test_dihedral.xyz", _ENERGY_ONLY),
            "test_h_transfer": ("test_H_transfer.xyz", _ENERGY_ONLY),
            "isolated_atoms": ("isolated_atoms.xyz", _ENERGY_ONLY),
        },
    ),
    "3bpa": (
        _BOTNET,
        "3bpa",
        {
            "train_300K": ("train_300K.xyz", _LABELLED),
            "train_mixed": ("train_mixedT.xyz", _LABELLED),
            "isolated_atoms": ("iso_atoms.xyz", _ENERGY_ONLY),
        },
    ),
    "rmd17_aspirin": (
        _RMD17,
        "rmd17",
        {"train": ("aspirin_train.xyz", _LABELLED), "test": ("aspirin_test.xyz", _LABELLED)},
    ),
}


def aminoethanol(split: str) -> list[AtomicStructure]:
    """Reads a split of the embedded set: 2-aminoethanol (C2H7NO, 11 atoms) at the GFN2-xTB level.

    Args:
      split: "train_300K" (500 frames), "validation_300K" (100), "test_300K" (300), "test_600K" (300), or
        "isolated_atoms" (one atom each of H, C, N, O, without forces).

    Returns:
      Structures with energy in eV and forces float64 `[11, 3]` in eV / angstrom, in the order of their trajectories;
      `info["walker"]` numbers the trajectory.

    Raises:
      ValueError: if there is no such split.

    Example:
      >>> frames = aminoethanol("train_300K")
      >>> len(frames), frames[0].formula, frames[0].forces.shape
      (500, 'C2H7NO', (11, 3))
      >>> list(isolated_atom_energies(aminoethanol("isolated_atoms")))
      [1, 6, 7, 8]
    """
    if split not in AMINOETHANOL_SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {AMINOETHANOL_SPLITS}")
    arrays = read_npz(EMBEDDED_AMINOETHANOL)
    if split == "isolated_atoms":
        atoms = zip(arrays["isolated_numbers"], arrays["isolated_energy"], strict=True)
        return [AtomicStructure(np.array([number]), np.zeros((1, 3)), energy=float(energy)) for number, energy in atoms]
    columns = (arrays[f"{split}_{name}"] for name in ("positions", "energy", "forces", "walker"))
    return [
        AtomicStructure(arrays["numbers"], positions, energy=energy, forces=forces, info={"walker": int(walker)})
        for positions, energy, forces, walker in zip(*columns, strict=True)
    ]


def aminoethanol_metadata() -> dict[str, Any]:
    """Level of theory, versions, seeds, units and sampling of the embedded set, as its script recorded them.

    Returns:
      JSON-like dict.

    Example:
      >>> aminoethanol_metadata()["method"]
      'GFN2-xTB'
    """
    return json.loads(str(read_npz(EMBEDDED_AMINOETHANOL, require=["metadata"])["metadata"]))


def published_molecules(
    name: str, split: str, directory: str | os.PathLike[str] | None = None
) -> list[AtomicStructure]:
    """Reads a split of a published set from the data directory.

    Args:
      name: "acac" (acetylacetone, 15 atoms, PBE-D3/def2-SVP), "3bpa" (3-(benzyloxy)pyridin-2-amine, 27 atoms,
        wB97X/6-31G(d)) or "rmd17_aspirin" (21 atoms, PBE/def2-SVP).
      split: for acac "train_300K", "train_600K", "test_300K", "test_600K", "test_dihedral", "test_h_transfer" or
        "isolated_atoms"; for 3bpa "train_300K", "train_mixed" (300, 600 and 1200 K) or "isolated_atoms"; for
        rmd17_aspirin "train" or "test".
      directory: the data directory; the environment variable EQUIVARIANT_JAX_DATA by default.

    Returns:
      Structures with energy in eV and, but for scans and isolated atoms, forces float64 `[n, 3]` in eV / angstrom.

    Raises:
      MissingDataError: if the file is not there; the message says what to fetch, from whom, and where to put it.
      ValueError: if there is no such set or split, or the file is malformed.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"name: got {name!r}, expected one of {tuple(_PUBLISHED)}")
    project, folder, splits = _PUBLISHED[name]
    if split not in splits:
        raise ValueError(f"split: got {split!r}, expected one of {tuple(splits)} for {name}")
    file, require = splits[split]
    path = find_data_file(f"{folder}/{file}", project=project, directory=directory)
    return read_extxyz(path, require=require)
