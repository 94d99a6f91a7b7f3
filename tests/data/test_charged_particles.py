"""The n-body simulation: conserved quantities, symmetries, a slow reference, and the distribution of the task."""

import numpy as np
import pytest

from equivariant_jax.data.simulators import (
    charged_energy,
    charged_particles_splits,
    evolve_charged_particles,
    simulate_charged_particles,
)

RNG = np.random.default_rng(0)


def quiet(num=4, n=5):
    """Initial states of equal charges on a jittered grid: nothing comes close, no force is clipped."""
    corners = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    positions = np.stack([corners[RNG.permutation(8)[:n]] for _ in range(num)]) + 0.2 * RNG.normal(size=(num, n, 3))
    return positions, 0.3 * RNG.normal(size=(num, n, 3)), np.ones((num, n))


def slow(positions, velocities, charges, num_steps, sample_every, max_force=100.0):
    """One simulation by loops over pairs, as the module's specification says."""
    x, v = [list(map(float, row)) for row in positions], [list(map(float, row)) for row in velocities]
    frames = []

    def kick():
        for i in range(len(x)):
            force = [0.0, 0.0, 0.0]
            for j in range(len(x)):
                if i != j:
                    r = [x[i][d] - x[j][d] for d in range(3)]
                    size = charges[i] * charges[j] / sum(c * c for c in r) ** 1.5
                    force = [f + size * c for f, c in zip(force, r, strict=True)]
            for d in range(3):
                kicks[i][d] = 0.001 * min(max(force[d], -max_force), max_force)
        for i in range(len(x)):
            for d in range(3):
                v[i][d] += kicks[i][d]

    kicks = [[0.0] * 3 for _ in x]
    kick()
    for step in range(1, num_steps):
        for i in range(len(x)):
            for d in range(3):
                x[i][d] += 0.001 * v[i][d]
        if step % sample_every == 0:
            frames.append((np.array(x), np.array(v)))
        kick()
    return np.stack([f[0] for f in frames]), np.stack([f[1] for f in frames])


def test_agrees_with_loops_over_pairs():
    positions, velocities, _ = quiet(2)
    charges = np.array([[1.0, -1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, -1.0, 1.0]])
    out = evolve_charged_particles(positions, velocities, charges, num_steps=200, sample_every=50)
    for i in range(2):
        x, v = slow(positions[i], velocities[i], charges[i], 200, 50)
        assert x.shape == out.positions[i].shape == (3, 5, 3)
        np.testing.assert_allclose(out.positions[i], x, atol=1e-12)
        np.testing.assert_allclose(out.velocities[i], v, atol=1e-12)


def test_the_clip_bounds_each_component():
    positions = np.array([[[0.0, 0.0, 0.0], [0.03, 0.02, 0.0]]])
    charges = np.array([[1.0, -1.0]])
    out = evolve_charged_particles(positions, 0 * positions, charges, num_steps=2, sample_every=1)
    np.testing.assert_allclose(out.velocities[0, 0, 0], [0.1, 0.1, 0.0])  # unclipped: 640 and 427 times 0.001
    x, v = slow(positions[0], 0 * positions[0], charges[0], 60, 1)
    out = evolve_charged_particles(positions, 0 * positions, charges, num_steps=60, sample_every=1)
    np.testing.assert_allclose(out.positions[0], x, atol=1e-9)
    np.testing.assert_allclose(out.velocities[0], v, atol=1e-9)


def test_energy_and_momentum():
    positions, velocities, charges = quiet(8)
    out = evolve_charged_particles(positions, velocities, charges, num_steps=2000)
    momentum = out.velocities.sum(axis=2)
    np.testing.assert_allclose(momentum, np.broadcast_to(velocities.sum(axis=1)[:, None], momentum.shape), atol=1e-10)
    energy = charged_energy(out.positions, out.velocities, charges[:, None])
    start = charged_energy(positions, velocities, charges)
    # A first-order rule, read half a step apart: the error is of the order of dt times the power, 0.001 * 10.
    assert np.abs(energy / start[:, None] - 1).max() < 5e-3
    drift = []
    for step in (0.002, 0.001):
        count = round(2.0 / step)
        fine = evolve_charged_particles(
            positions, velocities, charges, num_steps=2 * count, sample_every=count, time_step=step
        )
        drift.append(np.abs(charged_energy(fine.positions, fine.velocities, charges[:, None]) - start[:, None]).max())
    assert 1.7 < drift[0] / drift[1] < 2.3, "half the step must halve the error"


@pytest.mark.parametrize("determinant", [1, -1])
def test_commutes_with_rotations_shifts_and_relabelling(determinant):
    positions, velocities, charges = quiet(3)
    charges[:, ::2] = -1.0
    positions *= 1.5
    q, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    q *= determinant * np.sign(np.linalg.det(q))
    shift, order = RNG.normal(size=3), RNG.permutation(5)
    out = evolve_charged_particles(positions, velocities, charges, num_steps=1000)
    moved = evolve_charged_particles(
        (positions @ q.T + shift)[:, order], (velocities @ q.T)[:, order], charges[:, order], num_steps=1000
    )
    assert np.abs(out.positions[:, -1] - positions).max() > 0.1
    np.testing.assert_allclose(moved.positions, (out.positions @ q.T + shift)[:, :, order], atol=1e-8)
    np.testing.assert_allclose(moved.velocities, (out.velocities @ q.T)[:, :, order], atol=1e-8)


def test_seeds():
    short = {"num_steps": 300}
    few, many = simulate_charged_particles(3, seed=5, **short), simulate_charged_particles(300, seed=5, **short)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])
    other = simulate_charged_particles(3, seed=6, **short)
    assert np.abs(few.positions - other.positions).max() > 0.1
    assert few.positions.dtype == few.velocities.dtype == few.charges.dtype == np.float64


def test_initial_states():
    out = simulate_charged_particles(2000, seed=1, num_particles=4, num_steps=2, sample_every=1)
    assert set(np.unique(out.charges)) == {-1.0, 1.0}
    assert abs(out.charges.mean()) < 0.06
    assert abs(out.positions.std() / (4 / 5) ** (1 / 3) - 1) < 0.02
    # After one kick of most particles little has changed.
    assert abs(np.median(np.linalg.norm(out.velocities, axis=-1)) - 0.5) < 0.01


def test_the_task():
    splits = charged_particles_splits(300, 20, 300)
    assert [splits[name].positions.shape for name in ("train", "validation", "test")] == [
        (300, 5, 3), (20, 5, 3), (300, 5, 3),
    ]  # fmt: skip
    whole = simulate_charged_particles(2, seed=3 * 43)
    assert whole.positions.shape == (2, 49, 5, 3)
    train, test = splits["train"], splits["test"]
    np.testing.assert_array_equal(train.positions[:2], whole.positions[:, 30])
    np.testing.assert_array_equal(train.velocities[:2], whole.velocities[:, 30])
    np.testing.assert_array_equal(train.targets[:2], whole.positions[:, 40])
    # EGNN reports 0.0819 for x + t v with the best t on its own draw of this simulation.
    time = np.sum((train.targets - train.positions) * train.velocities) / np.sum(train.velocities**2)
    assert np.mean((test.positions + time * test.velocities - test.targets) ** 2) == pytest.approx(0.0819, rel=0.2)


def test_bad_input():
    x = np.zeros((2, 5, 3))
    with pytest.raises(ValueError, match="expected both"):
        evolve_charged_particles(x, x[:1], np.ones((2, 5)))
    with pytest.raises(ValueError, match="charges"):
        evolve_charged_particles(x, x, np.ones((2, 4)))
    with pytest.raises(ValueError, match="multiple"):
        evolve_charged_particles(x, x, np.ones((2, 5)), num_steps=150)
    with pytest.raises(ValueError, match="at least 1 and 2"):
        simulate_charged_particles(0, seed=0)
    with pytest.raises(ValueError, match="input_frame"):
        charged_particles_splits(1, 1, 1, input_frame=4, target_frame=4)


def test_initial_states_are_left_alone():
    x = np.array([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    v = np.zeros_like(x)
    before = x.copy()
    evolve_charged_particles(x, v, np.ones((1, 2)), num_steps=200)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(v, 0)
