"""Homographies: the action, and both layers' laws on analytic images and functions, without interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.lie import (
    SL2,
    SL3,
    AffineKernelConfig,
    GroupSamples,
    affine_kernel_init,
    homography_action,
    homography_conv,
    homography_conv_init,
    homography_lift,
)
from tests.lie.compiled import sample_polar


def homographies(number, strength, seed):
    """Homographies near the identity, `[number, 3, 3]` of determinant one."""
    algebra = np.random.default_rng(seed).normal(size=(number, 3, 3)) * strength
    algebra -= np.trace(algebra, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3
    return np.asarray(jax.scipy.linalg.expm(jnp.asarray(algebra)))


def samples_of(matrices):
    matrices = jnp.asarray(matrices)
    return GroupSamples(matrices, jnp.linalg.inv(matrices), jnp.zeros(len(matrices)))


def test_the_action_is_one_and_its_jacobian_is_right(x64):
    a, b = homographies(2, 0.2, 0)
    u = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (7, 2)))
    once, jacobian_b = homography_action(jnp.asarray(b), u)
    twice, jacobian_a = homography_action(jnp.asarray(a), once)
    both, jacobian = homography_action(jnp.asarray(a @ b), u)
    np.testing.assert_allclose(twice, both, atol=1e-12)
    np.testing.assert_allclose(jacobian_a * jacobian_b, jacobian, atol=1e-12)
    derivative = jax.vmap(jax.jacfwd(lambda p: homography_action(jnp.asarray(a), p)[0]))(u)
    np.testing.assert_allclose(np.linalg.det(derivative), homography_action(jnp.asarray(a), u)[1], atol=1e-12)
    behind, none = homography_action(jnp.diag(jnp.array([1.0, 1.0, -1.0])), u)
    assert float(jnp.abs(behind).max()) == float(jnp.abs(none).max()) == 0


def blob(u):
    square = (u[..., 0] - 0.1) ** 2 + (u[..., 1] + 0.05) ** 2
    return np.exp(-square / 0.03) - 0.5 * np.exp(-((u[..., 0] + 0.2) ** 2 + (u[..., 1] - 0.2) ** 2) / 0.02)


def lifting_error(side=96):
    config = AffineKernelConfig(SL2, frequency=3.0)
    params = affine_kernel_init(jax.random.key(0), config, 1, 6, lifting=True, dtype="float64")
    g, h = homographies(8, 0.08, 2), homographies(8, 0.08, 3)
    line = (np.arange(side) + 0.5) * (2 / side) - 1
    points = np.stack(np.broadcast_arrays(line[None, :], -line[:, None]), axis=-1)
    back = np.linalg.inv(g)
    moved = [blob(np.asarray(homography_action(jnp.asarray(m), jnp.asarray(points))[0])) for m in back]
    left = homography_lift(params, jnp.asarray(np.stack(moved))[..., None], samples_of(h), config, radius=0.7)
    each = [samples_of(m @ h) for m in back]
    right = [homography_lift(params, jnp.asarray(blob(points))[..., None], s, config, radius=0.7) for s in each]
    right = jnp.stack(right)
    still = homography_lift(params, jnp.asarray(blob(points))[..., None], samples_of(h), config, radius=0.7)
    scale = float(jnp.linalg.norm(right))
    return float(jnp.linalg.norm(left - right)) / scale, float(jnp.linalg.norm(left - still[None])) / scale


def test_lifting_commutes_with_homographies(x64):
    error, moved = lifting_error()
    assert error < 0.01
    assert moved > 0.1


def test_without_the_jacobian_it_does_not(x64, monkeypatch):
    from equivariant_jax.lie import homography

    action = homography.homography_action
    monkeypatch.setattr(homography, "homography_action", lambda h, u: (action(h, u)[0], jnp.ones(u.shape[:-1])))
    assert lifting_error()[0] > 0.05


def test_convolution_is_the_sum_it_says(x64):
    config = AffineKernelConfig(SL3, hidden=(8, 8), frequency=2.0, group_radius=4.0)
    params = homography_conv_init(jax.random.key(0), config, 2, 3, dtype="float64")
    inner, outer = (sample_polar(jax.random.key(i), n, SL3, dtype="float64") for i, n in ((1, 5), (2, 4)))
    features = jax.random.normal(jax.random.key(3), (2, 5, 2), "float64")
    convolved = jax.jit(lambda x, inner, outer: homography_conv(params, x, inner, outer, config))
    found = convolved(features, inner, outer)
    # F'(h) depends on h^-1 v alone: moving all elements by one changes nothing.
    g = jnp.asarray(homographies(1, 0.3, 4)[0])
    shift = lambda s: GroupSamples(g @ s.matrix, s.inverse @ jnp.linalg.inv(g), s.log_weight)  # noqa: E731
    np.testing.assert_allclose(convolved(features, shift(inner), shift(outer)), found, atol=1e-9)
    one = homography_conv(params, features[:, 2:3], jax.tree.map(lambda leaf: leaf[2:3], inner), outer, config)
    rest = convolved(features.at[:, 2].set(0), inner, outer)
    np.testing.assert_allclose(rest + one / 5, found, atol=1e-12)


def test_bad_input_is_named():
    config = AffineKernelConfig(SL2)
    params = affine_kernel_init(jax.random.key(0), config, 1, 2, lifting=True)
    plane, space = sample_polar(jax.random.key(0), 3, SL2), sample_polar(jax.random.key(0), 3, SL3)
    with pytest.raises(ValueError, match=r"expected \[samples, 3, 3\]"):
        homography_lift(params, jnp.ones((4, 4, 1)), plane, config)
    with pytest.raises(ValueError, match="positive radius"):
        homography_lift(params, jnp.ones((4, 4, 1)), space, config, radius=0.0)
    with pytest.raises(ValueError, match="n = 3"):
        homography_conv({}, jnp.ones((3, 1)), space, space, config)
    with pytest.raises(ValueError, match="homography_action"):
        homography_action(jnp.eye(2), jnp.ones((3, 2)))
