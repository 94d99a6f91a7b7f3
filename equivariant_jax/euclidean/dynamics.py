"""Potentials as calculators of ASE: molecular dynamics, relaxation, everything that ASE drives.

The neighbour list reaches `skin` beyond the cut-off and is rebuilt only once an atom has moved half of that (the model
gives edges beyond its cut-off exactly zero, so the longer list changes nothing). Arrays have capacities, a quarter
above what was first needed; nothing is compiled again until one overflows.

Law: energy, forces and stress are those of `energy_and_forces`, whatever the skin, the capacity and the history.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equivariant_jax.core.typing import PyTree
from equivariant_jax.euclidean.interatomic import PotentialConfig, energy_and_forces

__all__ = ["potential_calculator"]


def _capacity(needed: int, multiple: int) -> int:
    return -(-int(np.ceil(1.25 * max(needed, 1))) // multiple) * multiple


class _Evaluator:
    """Energies, forces and virials of one changing structure with static shapes."""

    def __init__(self, params: PyTree, config: PotentialConfig, skin: float):
        self.params, self.config, self.skin = params, config, skin
        self.dtype = np.dtype(params["embedding"].dtype)
        self.index = {number: index for index, number in enumerate(config.species)}
        self.traces = 0
        self.rebuilds = 0
        self.shape = (0, -1, -1)  # nodes, edges, slots per node
        self.built: tuple[np.ndarray, ...] | None = None
        self.edges: tuple[np.ndarray, ...] = ()
        self.compiled = jax.jit(self._model, static_argnames="slots")

    def _model(self, params, positions, species, shifts, senders, receivers, n_node, n_edge, *, slots: int):
        self.traces += 1
        graph = jraph.GraphsTuple(
            {"positions": positions, "species": species}, {"shifts": shifts}, receivers, senders, {}, n_node, n_edge
        )
        out = energy_and_forces(params, graph, dataclasses.replace(self.config, max_neighbours=slots))
        return out.interaction_energy[0], out.forces, out.virial[0]

    def _needs_rebuild(self, atoms) -> bool:
        if self.built is None or len(self.built[1]) != len(atoms):
            return True
        numbers, positions, cell, pbc = self.built
        same = (numbers == atoms.numbers).all() and (cell == atoms.cell.array).all() and (pbc == atoms.pbc).all()
        moved = np.linalg.norm(atoms.positions - positions, axis=1).max()
        return not same or bool(moved > 0.5 * self.skin)

    def _rebuild(self, atoms) -> None:
        from ase.neighborlist import neighbor_list

        unknown = sorted(set(atoms.numbers.tolist()) - set(self.index))
        if unknown:
            raise ValueError(
                f"The potential knows the elements {self.config.species}; the atoms contain {unknown}. Train with them."
            )
        receivers, senders, cells = neighbor_list("ijS", atoms, self.config.r_max + self.skin)
        degree = int(np.bincount(receivers, minlength=1).max()) if len(receivers) else 0
        nodes, edges, slots = self.shape
        if nodes != len(atoms) + 1:
            nodes, edges, slots = len(atoms) + 1, -1, -1
        self.shape = (
            nodes,
            edges if len(receivers) <= edges else _capacity(len(receivers), 64),
            slots if degree <= slots else _capacity(degree, 4),
        )
        self.edges = (receivers.astype(np.int32), senders.astype(np.int32), cells @ atoms.cell.array)
        self.built = (atoms.numbers.copy(), atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc.copy())
        self.rebuilds += 1

    def __call__(self, atoms) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns interaction energy, forces `[n, 3]` and virial `[3, 3]` in eV and eV/angstrom, float64."""
        if self._needs_rebuild(atoms):
            self._rebuild(atoms)
        nodes, capacity, slots = self.shape
        receivers, senders, shifts = self.edges
        count, spare = len(atoms), capacity - len(receivers)
        arguments = (
            np.pad(atoms.positions, ((0, 1), (0, 0))).astype(self.dtype),
            np.array([*(self.index[int(z)] for z in atoms.numbers), 0], np.int32),
            np.pad(shifts, ((0, spare), (0, 0))).astype(self.dtype),
            np.pad(senders, (0, spare), constant_values=nodes - 1),
            np.pad(receivers, (0, spare), constant_values=nodes - 1),
            np.array([count, 1], np.int32),
            np.array([len(receivers), spare], np.int32),
        )
        with jax.enable_x64(self.dtype == np.float64):
            energy, forces, virial = jax.device_get(
                self.compiled(self.params, *map(jnp.asarray, arguments), slots=slots)
            )
        return float(energy), np.asarray(forces[:count], np.float64), np.asarray(virial, np.float64)


def potential_calculator(params: PyTree, config: PotentialConfig, *, skin: float = 0.5) -> Any:
    """Makes an ASE calculator of a potential: `energy`, `free_energy`, `forces`, and `stress` for periodic cells.

    Args:
      params: from `potential_init` or training, pytree; float64 parameters compute in float64.
      config: static description; `max_neighbours` is not used, capacities follow the atoms.
      skin: how far the neighbour list reaches beyond `r_max`, in angstrom; 0 rebuilds it at every step.

    Returns:
      An `ase.calculators.calculator.Calculator`, positions `[n, 3]` in angstrom to eV and eV/angstrom. Its `evaluator`
      counts compilations (`traces`) and neighbour-list rebuilds (`rebuilds`).

    Raises:
      ImportError: if ase (extra `molecules`) is not installed.
      ValueError: if `skin` is negative; on use, if the atoms hold an element that the potential does not know.
    """
    try:
        from ase.calculators.calculator import Calculator, all_changes
    except ImportError as error:
        raise ImportError(
            "potential_calculator needs ase; install the extra: pip install equivariant_jax[molecules]"
        ) from error
    if skin < 0:
        raise ValueError(f"skin must be 0 or more angstrom, got {skin}.")
    references = dict(zip(config.species, config.reference_energies or (0.0,) * len(config.species), strict=True))

    class PotentialCalculator(Calculator):
        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's interface)

        def __init__(self):
            super().__init__()
            self.evaluator = _Evaluator(params, config, skin)

        def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
            super().calculate(atoms, list(properties), list(system_changes))
            current: Any = self.atoms
            interaction, forces, virial = self.evaluator(current)
            # Isolated-atom energies are added in float64: in float32 they would swallow the interaction's digits.
            energy = interaction + sum(references[int(z)] for z in current.numbers)
            self.results = {"energy": energy, "free_energy": energy, "forces": forces}
            if current.cell.rank == 3:
                stress = virial / current.get_volume()
                self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]

    return PotentialCalculator()
