"""Ethanol at 500 K by GFN2-xTB: a trajectory to cut windows from, in the format of MD17's npz files.

Langevin dynamics with a weak friction (1 / ps) in steps of 0.5 fs, after heating for 1 ps; a step takes about 10 ms on
one core. It needs `tblite` (`pip install tblite`) and `ase`, for the first geometry.
"""

import os
from pathlib import Path

import numpy as np

from experiments.embedded_molecule import BOHR, BOLTZMANN, FEMTOSECOND, HARTREE, MASSES, METHOD, langevin

__all__ = ["xtb_ethanol"]

TEMPERATURE = 500.0
FRICTION_PER_FS = 0.001
HEATING_STEPS = 2000


def xtb_ethanol(path: Path, *, steps: int, seed: int) -> Path:
    """Runs the dynamics, unless the file is there.

    Args:
      path: npz to write: `R` `[steps, 9, 3]` in angstrom, `z` `[9]`.
      steps: after heating, of 0.5 fs.
      seed: of velocities and noise.

    Returns:
      The path.
    """
    if path.exists():
        return path
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ase.build import molecule
    from tblite.interface import Calculator  # pyright: ignore[reportMissingImports]

    atoms = molecule("CH3CH2OH")
    numbers, positions = np.asarray(atoms.numbers, np.int32), np.asarray(atoms.positions, np.float64)
    generator = np.random.default_rng(seed)
    masses = np.array([MASSES[int(number)] for number in numbers])
    calculator = Calculator(METHOD, numbers, positions / BOHR)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()

    def force(positions: np.ndarray) -> np.ndarray:
        nonlocal result
        calculator.update(positions / BOHR)
        result = calculator.singlepoint(result)  # the last density is the first guess
        return -np.asarray(result["gradient"]) * (HARTREE / BOHR)

    velocities = np.sqrt(BOLTZMANN * TEMPERATURE / masses)[:, None] * generator.standard_normal(positions.shape)
    options = {"temperature": TEMPERATURE, "generator": generator, "friction": FRICTION_PER_FS / FEMTOSECOND}
    # Ten times the friction warms it up sooner.
    positions, velocities = langevin(
        force, positions, velocities, masses, steps=HEATING_STEPS,
        **{**options, "friction": 10 * options["friction"]},
    )  # fmt: skip
    frames = []

    def observe(positions: np.ndarray, velocities: np.ndarray) -> None:
        frames.append(positions - masses @ positions / masses.sum())

    langevin(force, positions, velocities, masses, steps=steps, observe=observe, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(temporary, R=np.stack(frames), z=numbers)
    temporary.replace(path)
    return path
