"""Simulators on the device against those in NumPy, which are the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.data.simulators import (
    charged_forces,
    draw_charged_particles,
    draw_springs,
    evolve_charged_particles,
    evolve_springs,
    spring_forces,
    symplectic_trajectory,
)

STEPS = {"num_steps": 600, "sample_every": 100}


def states(n=5, d=3):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 4, n, d))
    couplings = np.triu(rng.random((4, n, n)) < 0.5, 1)
    return x, v, couplings | couplings.transpose(0, 2, 1), rng.choice([-1.0, 1.0], size=(4, n))


def test_springs_agree_with_numpy(x64):
    x, v, couplings, _ = states(d=2)
    expected = evolve_springs(x, v, couplings, **STEPS)
    run = jax.jit(lambda x, v: symplectic_trajectory(lambda x: spring_forces(x, jnp.asarray(couplings)), x, v, **STEPS))
    for ours, theirs in zip(run(x, v), expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)
    low = run(x.astype(np.float32), v.astype(np.float32))
    assert low[0].dtype == jnp.float32
    np.testing.assert_allclose(low[0], expected.positions, atol=1e-4)


def test_charges_agree_with_numpy(x64):
    x, v, _, charges = states()
    expected = evolve_charged_particles(x, v, charges, **STEPS)
    run = jax.jit(lambda x, v: symplectic_trajectory(lambda x: charged_forces(x, jnp.asarray(charges)), x, v, **STEPS))
    for ours, theirs in zip(run(x, v), expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_forces_are_clipped_and_those_at_one_place_are_none(x64):
    near = jnp.array([[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]])
    np.testing.assert_array_equal(charged_forces(near, jnp.ones(2))[:, 0], [-100.0, 100.0])
    np.testing.assert_array_equal(charged_forces(jnp.zeros((2, 3)), jnp.ones(2)), jnp.zeros((2, 3)))
    gradient = jax.grad(lambda x: charged_forces(x, jnp.ones(2)).sum())(jnp.zeros((2, 3)))
    assert bool(jnp.all(jnp.isfinite(gradient)))
    far = jnp.array([[0.0], [1e6]])
    np.testing.assert_array_equal(spring_forces(far, ~jnp.eye(2, dtype=bool))[:, 0], [100.0, -100.0])


@pytest.mark.parametrize("kind", ["springs", "charges"])
def test_trajectories_turn_with_the_state(kind, x64):
    x, v, couplings, charges = states()
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])

    def force(x):
        if kind == "springs":
            return spring_forces(x, jnp.asarray(couplings))
        return charged_forces(x, jnp.asarray(charges), max_force=np.inf)

    def clipped(x):
        return jnp.clip(100 * force(x), -1, 1)

    def gap(force):
        at_rest, _ = symplectic_trajectory(force, jnp.asarray(x), jnp.asarray(v), **STEPS)
        turned, _ = symplectic_trajectory(force, x @ turn.T + 2.0, v @ turn.T, **STEPS)
        return float(jnp.abs(turned - (at_rest @ turn.T + 2.0)).max())

    assert gap(force) < 1e-10
    assert gap(clipped) > 1e-3  # component by component: no symmetric force


@pytest.mark.parametrize("draw", [draw_springs, draw_charged_particles])
def test_draws(draw):
    few = jax.jit(lambda key: draw(key, 200, num_steps=2, sample_every=1))(jax.random.key(0))
    assert few.positions.shape == few.velocities.shape == (200, 1, 5, 3)
    other = draw(jax.random.key(1), 200, num_steps=2, sample_every=1)
    assert float(jnp.abs(other.positions - few.positions).max()) > 0.1
    spread, third = (0.5, few.couplings) if draw is draw_springs else (1.0, few.charges)
    np.testing.assert_allclose(jnp.std(few.positions), spread, rtol=0.1)
    np.testing.assert_allclose(jnp.linalg.norm(few.velocities, axis=-1), 0.5, atol=0.2)
    if draw is draw_springs:
        assert third.dtype == jnp.bool_
        assert bool(jnp.all(third == jnp.swapaxes(third, 1, 2)))
        assert not bool(jnp.any(jnp.diagonal(third, axis1=1, axis2=2)))
        np.testing.assert_allclose(third.sum() / (200 * 20), 0.5, atol=0.05)
    else:
        assert set(np.unique(third)) == {-1.0, 1.0}
        np.testing.assert_allclose(third.mean(), 0.0, atol=0.1)


def test_errors():
    x = jnp.zeros((2, 3))
    for call, match in (
        (lambda: spring_forces(x, jnp.ones((3, 3))), "couplings: got shape"),
        (lambda: charged_forces(x, jnp.ones(3)), "charges: got shape"),
        (lambda: charged_forces(jnp.zeros((2, 3), jnp.int32), jnp.ones(2)), "floating positions"),
        (lambda: symplectic_trajectory(lambda x: x, x, x[:1], **STEPS), "expected both"),
        (lambda: symplectic_trajectory(lambda x: x, x, x, num_steps=7, sample_every=2), "multiple of at least 2 times"),
        (lambda: draw_springs(jax.random.key(0), 0), "expected at least 1, 2 and 1"),
        (lambda: draw_charged_particles(jax.random.key(0), 1, num_particles=1), "expected at least 1 and 2"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
