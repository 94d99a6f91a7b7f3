"""Structures to and from `ase.Atoms`, for whoever computes with ASE or reads one of its many file formats.

ASE is the extra `molecules`; nothing here imports it before `to_ase` is called.
"""

from typing import Any

import numpy as np

from equivariant_jax.data.structures import AtomicStructure

__all__ = ["from_ase", "to_ase"]


def from_ase(atoms: Any) -> AtomicStructure:
    """Converts `ase.Atoms`; results that its calculator already holds become energy, forces and stress.

    Args:
      atoms: an `ase.Atoms`; nothing is computed.

    Returns:
      The structure, positions float64 `[n, 3]` in angstrom; `info` and further per-atom arrays are kept.

    Raises:
      ValueError: if the atoms are not sound, see `AtomicStructure`.
    """
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    stress = results.get("stress")
    if stress is not None and np.shape(stress) == (6,):
        xx, yy, zz, yz, xz, xy = stress
        stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    # ASE leaves the lattice vector of a direction without periodicity at zero; `complete` puts a normal there.
    lattice = np.asarray(atoms.cell.complete() if atoms.pbc.any() else atoms.cell)
    extra = {name: array for name, array in atoms.arrays.items() if name not in ("numbers", "positions")}
    return AtomicStructure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        energy=results.get("energy"),
        forces=results.get("forces"),
        stress=stress,
        lattice=lattice if lattice.any() else None,
        pbc=tuple(atoms.pbc.tolist()),
        info=dict(atoms.info),
        arrays=extra,
    )


def to_ase(structure: AtomicStructure) -> Any:
    """Converts to `ase.Atoms`; energy, forces and stress go into a `SinglePointCalculator`.

    Args:
      structure: positions float64 `[n, 3]` in angstrom.

    Returns:
      An `ase.Atoms` that shares no memory with the structure.

    Raises:
      ImportError: if ase (extra `molecules`) is not installed.
    """
    try:
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
    except ImportError as error:
        raise ImportError("to_ase needs ase: pip install 'equivariant_jax[molecules]'") from error
    atoms = Atoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.lattice,
        pbc=structure.pbc,
        info=dict(structure.info),
    )
    for name, array in structure.arrays.items():
        atoms.new_array(name, np.array(array))
    results: dict[str, Any] = {}
    if structure.energy is not None:
        results["energy"] = structure.energy
    if structure.forces is not None:
        results["forces"] = structure.forces.copy()
    if structure.stress is not None:
        s = structure.stress
        results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
