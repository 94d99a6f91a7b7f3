"""Molecular dynamics and relaxation with a trained potential, through ASE: `euclidean.dynamics`.

Trains a small potential on the embedded set (2-aminoethanol), or takes that of a finished `euclidean.molecules`
run, and then reports the energy drift of an NVE trajectory and whether relaxations converge (needs ase, the extra
`molecules`).

Command: `python -m experiments euclidean.dynamics cpu`.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equivariant_jax.data import aminoethanol
from equivariant_jax.euclidean.dynamics import potential_calculator
from experiments.claims import Claims
from experiments.euclidean import molecules
from experiments.euclidean.molecular_models import load_potential

__all__ = ["CARD", "PRESETS", "Config", "claims", "run"]

CARD = "gaunt_tensor_product"


@dataclasses.dataclass(frozen=True)
class Config:
    """One trajectory and its relaxations.

    Attributes:
      checkpoint: working directory of a finished `euclidean.molecules` run on the embedded set; None trains one here.
      training: preset of `euclidean.molecules` to train with.
      steps: steps of the trajectory.
      timestep_fs: time step in fs.
      temperature: of the starting velocities, in kelvin.
      relaxations: structures to relax.
      double: compute in float64.
      seed: of training and velocities.
    """

    checkpoint: str | None = None
    training: str = "cpu"
    steps: int = 10_000
    timestep_fs: float = 0.5
    temperature: float = 300.0
    relaxations: int = 5
    double: bool = False
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(training="ci", steps=200, relaxations=1),
    "cpu": Config(),
    "paper": Config(steps=100_000, relaxations=50),
}


def _nve(atoms: Any, config: Config) -> dict[str, float]:
    from ase import units
    from ase.md.verlet import VelocityVerlet

    rng = np.random.default_rng(config.seed)
    thermal = np.sqrt(units.kB * config.temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(thermal * rng.normal(size=(len(atoms), 3)))
    atoms.set_momenta(
        atoms.get_momenta() - atoms.get_masses()[:, None] * atoms.get_momenta().sum(0) / atoms.get_masses().sum()
    )
    dynamics = VelocityVerlet(atoms, timestep=config.timestep_fs * units.fs)
    energies, temperatures = [], []

    def record():
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())

    dynamics.attach(record, interval=10)
    started = time.perf_counter()
    dynamics.run(config.steps)
    seconds = time.perf_counter() - started
    energy = 1e3 * np.array(energies) / len(atoms)
    picoseconds = np.arange(len(energy)) * 10 * config.timestep_fs * 1e-3
    return {
        "nve/drift_meV_per_atom_per_ps": abs(float(np.polyfit(picoseconds, energy, 1)[0])),
        "nve/fluctuation_meV_per_atom": float(np.std(energy)),
        "nve/largest_deviation_meV_per_atom": float(np.max(np.abs(energy - energy[0]))),
        "nve/mean_temperature_K": float(np.mean(temperatures)),
        "nve/steps": float(config.steps),
        "nve/steps_per_second": config.steps / seconds,
        "nve/compilations": float(atoms.calc.evaluator.traces),
        "nve/neighbour_rebuilds": float(atoms.calc.evaluator.rebuilds),
    }


def _relax(calculator, structures) -> dict[str, float]:
    from ase.optimize import BFGS, FIRE

    from equivariant_jax.data import to_ase

    result = {}
    for optimizer, fmax in ((BFGS, 0.01), (FIRE, 0.05)):
        converged, steps = [], []
        for structure in structures:
            atoms = to_ase(structure)
            atoms.calc = calculator
            search: Any = optimizer(atoms, logfile=None)  # type: ignore[arg-type]
            converged.append(bool(search.run(fmax=fmax, steps=500)))
            steps.append(search.get_number_of_steps())
        name = f"relax_{optimizer.__name__}"
        result |= {f"{name}/converged": float(np.mean(converged)), f"{name}/mean_steps": float(np.mean(steps))}
    return result


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains or loads a potential, then runs the trajectory and the relaxations.

    Args:
      config: the run.
      workdir: directory of the run.

    Returns:
      Flat dict of floats: drift and fluctuation of the total energy, speed, compilations, share of relaxations that
      converged.
    """
    from equivariant_jax.data import to_ase

    workdir = Path(workdir)
    trained = Path(config.checkpoint) if config.checkpoint else workdir / "potential"
    metrics = {}
    if config.checkpoint is None:
        preset = dataclasses.replace(molecules.PRESETS[config.training], seed=config.seed)
        accuracy = molecules.run(preset, trained)
        metrics["test_300K/forces_mae_meV_A"] = accuracy["test_300K/forces_mae_meV_A"]
    params, potential = load_potential(trained)
    if config.double:
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    structures = aminoethanol("test_300K")
    calculator = potential_calculator(params, potential)
    atoms = to_ase(structures[0])
    atoms.calc = calculator
    metrics |= _nve(atoms, config)
    stride = max(1, len(structures) // config.relaxations)
    return metrics | _relax(calculator, structures[::stride][: config.relaxations])


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; a claim holds if the worst seed meets its bar.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for table in metrics.values():
        values = {name: table[name]["values"] for name in table}
        drift = max(values["nve/drift_meV_per_atom_per_ps"])
        claim.at_most("dynamics", "NVE energy drift per atom and ps (meV)", 0.1, drift)
        claim.at_most("dynamics", "compilations over the whole trajectory", 1.0, max(values["nve/compilations"]))
        for name in ("BFGS", "FIRE"):
            least = min(values[f"relax_{name}/converged"])
            claim.at_least("dynamics", f"share of {name} relaxations that converge", 1.0, least)
    return claim.found
