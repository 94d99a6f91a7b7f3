"""The script behind the embedded set: its integrator samples the right ensemble, its numbers come back."""

import numpy as np
import pytest

from experiments import embedded_molecule as script


def test_constants_are_those_of_ase():
    units = pytest.importorskip("ase.units")
    assert (
        units.Bohr,
        units.Hartree,
        units.kB,
        units.fs,
    ) == (script.BOHR, script.HARTREE, script.BOLTZMANN, script.FEMTOSECOND)


def test_langevin_samples_the_canonical_ensemble_of_a_harmonic_oscillator():
    # BAOAB has the exact variance k T / stiffness of positions at every stable step; that of momenta is low by
    # (omega dt)^2 / 4 = 1 % here. 4000 independent oscillators over 400 steps give 0.5 % of statistical error.
    stiffness, temperature, count = 5.0, 400.0, 4000
    masses = np.full(count, 4.0)
    step = 0.2 / np.sqrt(stiffness / 4.0)
    squares = []
    script.langevin(
        lambda x: -stiffness * x,
        np.zeros((count, 3)),
        np.zeros((count, 3)),
        masses,
        temperature=temperature,
        steps=400,
        generator=np.random.default_rng(0),
        time_step=step,
        friction=1.0 / step / 10,
        observe=lambda x, v: squares.append(((x**2).mean(), (v**2).mean())),
    )
    position, velocity = np.mean(squares[200:], axis=0)
    thermal = script.BOLTZMANN * temperature
    assert position * stiffness / thermal == pytest.approx(1.0, abs=0.015)
    assert velocity * 4.0 / thermal == pytest.approx(0.99, abs=0.015)


def test_langevin_without_friction_conserves_energy():
    energies = []
    script.langevin(
        lambda x: -(x**3),
        np.ones((2, 3)),
        np.zeros((2, 3)),
        np.ones(2),
        temperature=0.0,
        steps=2000,
        generator=np.random.default_rng(0),
        time_step=0.01,
        friction=0.0,
        observe=lambda x, v: energies.append((v**2 / 2 + x**4 / 4).sum()),
    )
    # Velocity Verlet: bounded error of order dt^2, no drift.
    assert np.abs(np.array(energies) - 1.5).max() < 1e-4


def test_stored_frames_are_reproduced():
    pytest.importorskip("tblite.interface", exc_type=ImportError)
    worst = script.check(frames_per_split=2)
    assert worst["energy"] <= 1e-6
    assert worst["finite_difference"] <= 1e-4


def test_a_small_set_is_made_from_scratch(tmp_path, monkeypatch):
    pytest.importorskip("tblite.interface", exc_type=ImportError)
    monkeypatch.setattr(script, "HEATING", (600.0, 5))
    monkeypatch.setattr(script, "EQUILIBRATION_STEPS", 5)
    monkeypatch.setattr(script, "STEPS_BETWEEN_FRAMES", 4)
    path = tmp_path / "small.npz"
    script.generate(path, {"train_300K": script.Plan(300.0, 2, 3, 1)})
    with np.load(path) as arrays:
        assert arrays["train_300K_positions"].shape == (6, 11, 3)
        assert arrays["train_300K_walker"].tolist() == [0, 0, 0, 1, 1, 1]
    assert script.check(path, frames_per_split=1)["energy"] <= 1e-6
