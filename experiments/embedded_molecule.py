"""Makes `equivariant_jax/data/embedded/aminoethanol.npz`, the small molecular set that ships inside the package.

Molecule: 2-aminoethanol, C2H7NO, 11 atoms: four elements, two heavy torsions (N-C-C-O and C-C-O-H), a rotating amino
group and an O-H...N hydrogen bond that makes and breaks.

Level of theory: GFN2-xTB (Bannwarth, Ehlert, Grimme 2019, doi:10.1021/acs.jctc.8b01176), charge 0, closed shell, Fermi
smearing at 300 K, computed by tblite with `accuracy = 0.01` (self-consistency 100 times tighter than the default) and a
fresh initial guess for every stored frame, so that a stored number does not depend on the frame before it.

Sampling: Langevin dynamics (BAOAB splitting, Leimkuhler & Matthews 2013, doi:10.1093/amrx/abs010), time step 0.5 fs,
friction 10 / ps. Each split has walkers of its own, never frames of a walker that another split uses. A walker starts
at the minimum, is heated at 600 K for 4 ps, brought to its temperature for 2 ps, and then gives 50 frames, one every
50 fs. The heating lets walkers fall into different conformers, which a 300 K walker then seldom leaves. With so few
walkers the splits differ in their shares of conformers (`--check` prints them) and none is a converged ensemble: a test
error is one on other trajectories with other shares, not one on neighbours of training frames.

Isolated atoms: the same method, `uhf` = 1, 2, 3, 2 unpaired electrons for H, C, N, O (the terms 2S, 3P, 4S, 3P).
GFN2-xTB has no spin-polarisation term unless one asks for it and none was asked for, so these are references for
training, not accurate atomisation limits.

Units: positions in angstrom, energies in eV, forces in eV / angstrom. Hartree, Bohr, k_B and the atomic mass unit are
those of CODATA 2014 as `ase.units` uses them, so that ASE reads the same numbers.

Commands (tblite is not a dependency of the library: `pip install tblite`; making the set takes 12 minutes on one core,
and gives the same trajectories bit for bit on the same machine and versions):

    python -m experiments.embedded_molecule --check          # recomputes frames of the shipped file
    python -m experiments.embedded_molecule --out FILE.npz   # makes the set again
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from equivariant_jax.data.molecules import EMBEDDED_AMINOETHANOL

__all__ = ["Plan", "check", "generate", "langevin", "single_point"]

# CODATA 2014, as ase.units (ase >= 3.13): doi:10.1103/RevModPhys.88.035009.
BOHR = 0.5291772105638411  # angstrom
HARTREE = 27.211386024367243  # eV
BOLTZMANN = 8.617330337217213e-05  # eV / K
FEMTOSECOND = 0.09822694788464063  # in units of angstrom * sqrt(amu / eV)

METHOD = "GFN2-xTB"
ACCURACY = 0.01
NUMBERS = np.array([6, 6, 7, 8, 1, 1, 1, 1, 1, 1, 1], dtype=np.int32)
MASSES = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999}  # standard atomic weights, IUPAC 2021 abridged
UNPAIRED_ELECTRONS = {1: 1, 6: 2, 7: 3, 8: 2}
BONDS = ((0, 1), (0, 2), (1, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8), (2, 9), (3, 10))
# The gauche conformer with the O-H...N hydrogen bond, relaxed at the level of theory above.
MINIMUM = np.array(
    [
        [0.2658, 0.6704, 0.0815],
        [0.7689, -0.7744, 0.0810],
        [-1.1908, 0.6416, 0.0412],
        [0.3086, -1.4706, -1.0459],
        [0.6797, 1.2016, 0.9533],
        [0.6128, 1.1698, -0.8266],
        [1.8605, -0.8016, 0.0524],
        [0.4301, -1.2756, 1.0025],
        [-1.5668, 1.5755, -0.0735],
        [-1.5577, 0.2632, 0.9094],
        [-0.6111, -1.2000, -1.1753],
    ]
)


class Plan(NamedTuple):
    """How one split is sampled: its temperature in K, its walkers, the frames of each and the first walker's seed."""

    temperature: float
    walkers: int
    frames: int
    seed: int


PLANS = {
    "train_300K": Plan(300.0, 10, 50, 1000),
    "validation_300K": Plan(300.0, 2, 50, 2000),
    "test_300K": Plan(300.0, 6, 50, 3000),
    "test_600K": Plan(600.0, 6, 50, 4000),
}
TIME_STEP_FS = 0.5
FRICTION_PER_FS = 0.01
HEATING = (600.0, 8000)  # K, steps
EQUILIBRATION_STEPS = 4000
STEPS_BETWEEN_FRAMES = 100


def _calculator(numbers: np.ndarray, positions: np.ndarray, unpaired: int):
    # Threads of OpenMP only wait for each other over eleven atoms, and wait long on a machine that does other work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from tblite.interface import Calculator  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(
            "tblite is needed to compute energies and is not installed: run `pip install tblite`. "
            "The embedded set itself is read without it, by equivariant_jax.data.aminoethanol."
        ) from error
    calculator = Calculator(METHOD, numbers, positions / BOHR, charge=0.0, uhf=unpaired)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", ACCURACY)
    return calculator


def single_point(numbers: np.ndarray, positions: np.ndarray, unpaired: int = 0) -> tuple[float, np.ndarray]:
    """Energy in eV and forces `[n, 3]` in eV / angstrom of `positions` `[n, 3]` in angstrom, from a fresh guess."""
    result = _calculator(numbers, positions, unpaired).singlepoint()
    return float(result["energy"]) * HARTREE, -np.asarray(result["gradient"]) * (HARTREE / BOHR)


def langevin(
    force: Callable[[np.ndarray], np.ndarray],
    positions: np.ndarray,
    velocities: np.ndarray,
    masses: np.ndarray,
    *,
    temperature: float,
    steps: int,
    generator: np.random.Generator,
    time_step: float = TIME_STEP_FS * FEMTOSECOND,
    friction: float = FRICTION_PER_FS / FEMTOSECOND,
    observe: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs Langevin dynamics by the BAOAB splitting: half kick, half drift, exact noise, half drift, half kick.

    Args:
      force: maps positions `[n, 3]` (angstrom) to forces `[n, 3]` (eV / angstrom).
      positions: start, `[n, 3]`, angstrom.
      velocities: start, `[n, 3]`, sqrt(eV / amu).
      masses: `[n]`, amu.
      temperature: K.
      steps: how many steps.
      generator: draws the noise.
      time_step: angstrom * sqrt(amu / eV); one femtosecond is `FEMTOSECOND` of these.
      friction: the inverse of that unit.
      observe: called with positions and velocities after every step.

    Returns:
      Final positions and velocities, both `[n, 3]`.
    """
    mass = masses[:, None]
    decay = np.exp(-friction * time_step)
    thermal = np.sqrt(BOLTZMANN * temperature * (1.0 - decay**2) / mass)
    positions, velocities = positions.copy(), velocities.copy()
    forces = force(positions)
    for _ in range(steps):
        velocities += 0.5 * time_step * forces / mass
        positions += 0.5 * time_step * velocities
        velocities = decay * velocities + thermal * generator.standard_normal(positions.shape)
        positions += 0.5 * time_step * velocities
        forces = force(positions)
        velocities += 0.5 * time_step * forces / mass
        if observe is not None:
            observe(positions, velocities)
    return positions, velocities


def _walk(plan: Plan, seed: int) -> tuple[np.ndarray, float]:
    """Positions `[frames, n, 3]` with the centre of mass at the origin, and the mean kinetic temperature in K."""
    generator = np.random.default_rng(seed)
    masses = np.array([MASSES[int(number)] for number in NUMBERS])
    calculator = _calculator(NUMBERS, MINIMUM, 0)
    result = calculator.singlepoint()

    def force(positions: np.ndarray) -> np.ndarray:
        nonlocal result
        calculator.update(positions / BOHR)
        # The last density is a better guess than none: only the trajectory depends on it, not the stored numbers.
        result = calculator.singlepoint(result)
        return -np.asarray(result["gradient"]) * (HARTREE / BOHR)

    positions = MINIMUM
    velocities = np.sqrt(BOLTZMANN * HEATING[0] / masses)[:, None] * generator.standard_normal(positions.shape)
    for temperature, steps in (HEATING, (plan.temperature, EQUILIBRATION_STEPS)):
        positions, velocities = langevin(
            force, positions, velocities, masses, temperature=temperature, steps=steps, generator=generator
        )

    frames, kinetic = [], []

    def observe(positions: np.ndarray, velocities: np.ndarray) -> None:
        kinetic.append((masses[:, None] * velocities**2).sum() / (velocities.size * BOLTZMANN))
        if len(kinetic) % STEPS_BETWEEN_FRAMES == 0:
            frames.append(positions - masses @ positions / masses.sum())

    steps = plan.frames * STEPS_BETWEEN_FRAMES
    langevin(
        force,
        positions,
        velocities,
        masses,
        temperature=plan.temperature,
        steps=steps,
        generator=generator,
        observe=observe,
    )
    return np.stack(frames), float(np.mean(kinetic))


def _assert_intact(positions: np.ndarray) -> None:
    first, second = np.array(BONDS).T
    lengths = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    reference = np.linalg.norm(MINIMUM[first] - MINIMUM[second], axis=-1)
    if (lengths > 1.4 * reference).any():
        raise RuntimeError("a covalent bond broke during the dynamics: choose another seed or a lower temperature")


def generate(out: Path, plans: dict[str, Plan] = PLANS) -> None:
    """Samples every split of `plans`, computes energies and forces, and writes the compressed npz `out`."""
    arrays: dict[str, np.ndarray] = {"numbers": NUMBERS}
    kinetic = {}
    for split, plan in plans.items():
        walks = [_walk(plan, plan.seed + walker) for walker in range(plan.walkers)]
        positions = np.concatenate([frames for frames, _ in walks])
        _assert_intact(positions)
        points = [single_point(NUMBERS, frame) for frame in positions]
        arrays[f"{split}_positions"] = positions
        arrays[f"{split}_energy"] = np.array([energy for energy, _ in points])
        arrays[f"{split}_forces"] = np.stack([forces for _, forces in points])
        arrays[f"{split}_walker"] = np.repeat(np.arange(plan.walkers, dtype=np.int32), plan.frames)
        kinetic[split] = round(float(np.mean([temperature for _, temperature in walks])), 1)
        print(f"{split}: {len(positions)} frames, mean kinetic temperature {kinetic[split]} K", flush=True)
    elements = sorted(MASSES)
    arrays["isolated_numbers"] = np.array(elements, dtype=np.int32)
    arrays["isolated_energy"] = np.array(
        [single_point(np.array([z], np.int32), np.zeros((1, 3)), UNPAIRED_ELECTRONS[z])[0] for z in elements]
    )
    arrays["metadata"] = np.array(json.dumps(_metadata(plans, kinetic), sort_keys=True))
    np.savez_compressed(out, **arrays)  # pyright: ignore[reportArgumentType]
    print(f"{out}: {out.stat().st_size} bytes")


def _metadata(plans: dict[str, Plan], kinetic: dict[str, float]) -> dict:
    return {
        "molecule": "2-aminoethanol, C2H7NO",
        "method": METHOD,
        "accuracy": ACCURACY,
        "electronic_temperature_K": 300.0,
        "charge": 0,
        "unpaired_electrons_of_isolated_atoms": UNPAIRED_ELECTRONS,
        "units": {"positions": "angstrom", "energy": "eV", "forces": "eV/angstrom"},
        "constants": {"source": "CODATA 2014 as in ase.units", "bohr_angstrom": BOHR, "hartree_eV": HARTREE},
        "integrator": {
            "name": "Langevin, BAOAB",
            "time_step_fs": TIME_STEP_FS,
            "friction_per_fs": FRICTION_PER_FS,
            "heating_K_steps": HEATING,
            "equilibration_steps": EQUILIBRATION_STEPS,
            "steps_between_frames": STEPS_BETWEEN_FRAMES,
        },
        "splits": {split: plan._asdict() for split, plan in plans.items()},
        "mean_kinetic_temperature_K": kinetic,
        "versions": {
            "tblite": metadata.version("tblite"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "script": "experiments/embedded_molecule.py",
        "licence": "Apache-2.0",
    }


def check(path: Path | None = None, frames_per_split: int = 4) -> dict[str, float]:
    """Recomputes frames of the shipped file and compares forces with differences of the energy.

    Args:
      path: the npz to check; None for the file inside the package.
      frames_per_split: how many frames, evenly spaced over each split.

    Returns:
      The largest deviations: `energy` (eV), `forces` (eV / angstrom), `isolated_energy` (eV), and
      `finite_difference` (eV / angstrom), the largest difference between a force component and the central difference
      of the energy at that atom.

    Raises:
      SystemExit: an energy deviates by more than 1e-6 eV, or a force by more than 1e-4 eV / angstrom.
    """
    path = path or EMBEDDED_AMINOETHANOL
    worst = {"energy": 0.0, "forces": 0.0, "isolated_energy": 0.0, "finite_difference": 0.0}
    count = 0
    with np.load(path, allow_pickle=False) as stored:
        numbers = stored["numbers"]
        for split in json.loads(str(stored["metadata"]))["splits"]:
            positions = stored[f"{split}_positions"]
            for index in np.linspace(0, len(positions) - 1, frames_per_split).astype(int):
                energy, forces = single_point(numbers, positions[index])
                worst["energy"] = max(worst["energy"], abs(energy - stored[f"{split}_energy"][index]))
                worst["forces"] = max(worst["forces"], np.abs(forces - stored[f"{split}_forces"][index]).max())
                count += 1
            difference = _finite_difference_error(numbers, positions[0], stored[f"{split}_forces"][0])
            worst["finite_difference"] = max(worst["finite_difference"], difference)
            print(f"{split}: {_conformers(positions)}")
        for number, energy in zip(stored["isolated_numbers"], stored["isolated_energy"], strict=True):
            again, _ = single_point(np.array([number]), np.zeros((1, 3)), UNPAIRED_ELECTRONS[int(number)])
            worst["isolated_energy"] = max(worst["isolated_energy"], abs(again - energy))
    worst = {name: float(value) for name, value in worst.items()}
    print(f"{count} frames recomputed; largest deviations: {json.dumps(worst)}")
    if max(worst["energy"], worst["isolated_energy"]) > 1e-6 or max(worst["forces"], worst["finite_difference"]) > 1e-4:
        raise SystemExit(f"{path} is not reproduced by {METHOD} of tblite {metadata.version('tblite')}")
    return worst


def _conformers(positions: np.ndarray) -> str:
    """Shares of the three wells of the torsion N-C-C-O and of frames with a hydrogen bond O-H...N."""
    nitrogen, first, second, oxygen = (positions[:, atom] for atom in (2, 0, 1, 3))
    axis = second - first
    one, other = np.cross(first - nitrogen, axis), np.cross(axis, oxygen - second)
    sine = (np.cross(one, other) * axis).sum(-1) / np.linalg.norm(axis, axis=-1)
    torsion = np.degrees(np.arctan2(sine, (one * other).sum(-1)))
    wells = {"gauche+": abs(torsion - 60) < 60, "trans": abs(torsion) >= 120, "gauche-": abs(torsion + 60) < 60}
    wells["H...N below 2.5 angstrom"] = np.linalg.norm(positions[:, 10] - positions[:, 2], axis=-1) < 2.5
    return ", ".join(f"{name} {100 * share.mean():.0f} %" for name, share in wells.items())


def _finite_difference_error(
    numbers: np.ndarray, positions: np.ndarray, forces: np.ndarray, step: float = 1e-3
) -> float:
    """Largest `|F + dE/dx|` over the coordinates of one hydrogen and the oxygen; the difference is of fourth order."""
    worst = 0.0
    for atom in (3, 10):
        for axis in range(3):
            energy = []
            for shift in (-2, -1, 1, 2):
                moved = positions.copy()
                moved[atom, axis] += shift * step
                energy.append(single_point(numbers, moved)[0])
            slope = (energy[0] - 8 * energy[1] + 8 * energy[2] - energy[3]) / (12 * step)
            worst = max(worst, abs(forces[atom, axis] + slope))
    return worst


def main(arguments: list[str] | None = None) -> None:
    """Runs `--check` or `--out`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.embedded_molecule", description=(__doc__ or "").split("\n")[0]
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="recompute frames of the shipped file")
    action.add_argument("--out", type=Path, help="make the set again and write it here")
    options = parser.parse_args(arguments)
    if options.check:
        check()
    else:
        generate(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
