"""The ASE calculator: the model's numbers, few compilations, conserved energy, converging relaxations."""

import jax
import numpy as np
import pytest

from equivariant_jax.euclidean.dynamics import potential_calculator
from equivariant_jax.euclidean.interatomic import PotentialConfig, potential_init

ase = pytest.importorskip("ase")

CONFIG = PotentialConfig(
    species=(1, 8, 14),
    r_max=3.2,
    lmax=1,
    channels=4,
    layers=1,
    correlation=2,
    radial_hidden=(4,),
    readout_hidden=4,
    max_neighbours=1,
    average_neighbours=8.0,
    reference_energies=(-13.5, -2000.25, -7800.125),
)
INIT = jax.jit(potential_init, static_argnums=1, static_argnames="dtype")


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        return INIT(jax.random.key(4), CONFIG, dtype="float64")


def silicon():
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def water():
    from ase import Atoms

    return Atoms("OH2", positions=[[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def test_forces_and_stress_are_derivatives_of_the_energy(params):
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = silicon()
    atoms.calc = potential_calculator(params, CONFIG)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    numerical = calculate_numerical_forces(atoms, 1e-4, iatoms=[0, 5])
    np.testing.assert_allclose(forces[[0, 5]], numerical, atol=1e-6 * np.abs(forces).max() + 1e-8)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, 1e-5), atol=1e-5 * np.abs(stress).max())
    assert np.abs(forces).max() > 1e-3
    assert np.abs(stress).max() > 1e-5
    # Every evaluation above, strained cells included, ran the one compiled program.
    assert atoms.calc.evaluator.traces == 1


def test_periodic_images_are_counted(params):
    small, large = silicon(), silicon().repeat((2, 1, 1))
    for atoms in (small, large):
        atoms.calc = potential_calculator(params, CONFIG)
    np.testing.assert_allclose(large.get_potential_energy(), 2 * small.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(large.get_forces()[8:], small.get_forces(), atol=1e-10)
    shifted = silicon()
    shifted.positions[3] += shifted.cell[0] - 2 * shifted.cell[2]
    shifted.calc = potential_calculator(params, CONFIG)
    np.testing.assert_allclose(shifted.get_forces(), small.get_forces(), atol=1e-10)


def test_isolated_energies_are_added_in_double_precision(params):
    single = jax.tree.map(lambda p: np.asarray(p, np.float32), params)
    energies = []
    for parameters in (params, single):
        atoms = water()
        atoms.calc = potential_calculator(parameters, CONFIG)
        energies.append(atoms.get_potential_energy())
    # The interaction of about 1 eV is rounded to float32; a float32 total of 2027 eV would be off by up to 1e-4 eV.
    assert abs(energies[0] - energies[1]) < 1e-5, energies
    assert energies[0] < -2000


def test_skin_changes_nothing_and_saves_rebuilds(params):
    rng = np.random.default_rng(0)
    with_skin, without = water(), water()
    with_skin.calc = potential_calculator(params, CONFIG, skin=1.0)
    without.calc = potential_calculator(params, CONFIG, skin=0.0)
    for _ in range(6):
        moves = 0.05 * rng.normal(size=(3, 3))
        for atoms in (with_skin, without):
            atoms.positions += moves
        np.testing.assert_allclose(with_skin.get_forces(), without.get_forces(), atol=1e-12)
    assert with_skin.calc.evaluator.rebuilds == 1
    assert without.calc.evaluator.rebuilds == 6


def test_atoms_that_come_into_reach_are_seen(params):
    from ase import Atoms

    pair = Atoms("OSi", positions=[[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
    pair.calc = potential_calculator(params, CONFIG)
    assert np.abs(pair.get_forces()).max() == 0.0
    pair.positions[1, 0] = 1.8
    assert np.abs(pair.get_forces()).max() > 1e-3


def test_compiles_again_only_when_a_capacity_is_exceeded(params):
    from ase import Atoms

    line = Atoms("H12", positions=[[6.0 * i, 0, 0] for i in range(12)])
    line.calc = potential_calculator(params, CONFIG)
    line.get_forces()
    for spacing in (5.0, 3.0, 2.9):
        line.positions[:, 0] = spacing * np.arange(12)
        line.get_forces()
    assert line.calc.evaluator.traces == 1
    line.positions[:, 0] = 0.5 * np.arange(12)
    line.get_forces()
    assert line.calc.evaluator.traces == 2
    fresh = line.copy()
    fresh.calc = potential_calculator(params, CONFIG)
    np.testing.assert_allclose(line.get_forces(), fresh.get_forces(), atol=1e-12)


def test_energy_is_conserved(params):
    from ase import units
    from ase.md.verlet import VelocityVerlet

    atoms = silicon()
    atoms.calc = potential_calculator(params, CONFIG)
    speed = np.sqrt(units.kB * 300 * atoms.get_masses())[:, None]
    atoms.set_momenta(speed * np.random.default_rng(2).normal(size=(8, 3)))
    drift = []
    for step in (2.0, 1.0):
        moving = atoms.copy()
        moving.calc = atoms.calc
        energies = []
        dynamics = VelocityVerlet(moving, timestep=step * units.fs)
        dynamics.attach(lambda moving=moving, energies=energies: energies.append(moving.get_total_energy()))
        dynamics.run(int(60 / step))
        drift.append(np.ptp(energies) / len(atoms))
    assert drift[1] < 1e-4
    # Second order: halving the step divides the fluctuation by four.
    assert drift[1] < 0.4 * drift[0]


def test_relaxation_converges(params):
    from ase.optimize import BFGS

    atoms = silicon()
    atoms.calc = potential_calculator(params, CONFIG)
    start = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=200)
    assert np.abs(atoms.get_forces()).max() < 1e-3
    assert atoms.get_potential_energy() < start


def test_unknown_elements_are_named(params):
    atoms = water()
    atoms.numbers[0] = 79
    atoms.calc = potential_calculator(params, CONFIG)
    with pytest.raises(ValueError, match="79"):
        atoms.get_forces()
    with pytest.raises(ValueError, match="-1"):
        potential_calculator(params, CONFIG, skin=-1.0)
