"""Convolutions and batch normalisation against slow references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.nn import batch_norm, batch_norm_init, convolution, convolution_init


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_equals_the_sum_over_pixels(x64, boundary, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 7, 3)), rng.normal(size=(size, size, 3, 4))
    r = size // 2
    mode = {"mode": "wrap"} if boundary == "circular" else {}
    padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)), **mode)
    expected = np.zeros((2, 6, 7, 4))
    for h in range(6):
        for w in range(7):
            expected[:, h, w] = np.einsum("bijc,ijco->bo", padded[:, h : h + size, w : w + size], kernel)
    np.testing.assert_allclose(
        convolution(jnp.asarray(x), jnp.asarray(kernel), boundary=boundary), expected, atol=1e-12
    )


def test_leading_axes_are_a_batch():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 5, 1))
    kernel = convolution_init(jax.random.key(1), 3, 1, 2)
    np.testing.assert_allclose(convolution(x, kernel)[1], convolution(x[1], kernel), atol=1e-6)


def test_kernels_are_drawn_within_the_bound():
    kernel = convolution_init(jax.random.key(0), 3, 16, 64)
    bound = 1 / np.sqrt(9 * 16)
    assert np.abs(kernel).max() <= bound
    assert abs(float(jnp.std(kernel)) - bound / np.sqrt(3)) < 0.02 * bound


def test_batch_norm_equals_its_definition_and_its_running_average(x64):
    x = np.random.default_rng(0).normal(2, 3, size=(4, 5, 3))
    params, statistics = batch_norm_init(3, dtype=jnp.float64)
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, -1.0, 1.0])}
    y, after = batch_norm(params, statistics, jnp.asarray(x), training=True)
    mean, variance = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * np.array([1, 2, 3]) + np.array([0, -1, 1])
    np.testing.assert_allclose(y, expected, atol=1e-10)
    np.testing.assert_allclose(after["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["variance"], 0.9 + 0.1 * x.var(axis=(0, 1), ddof=1), rtol=1e-5)
    z, same = batch_norm(params, after, jnp.asarray(x), training=False)
    running = (x - 0.1 * mean) / np.sqrt(np.asarray(after["variance"], float) + 1e-5)
    np.testing.assert_allclose(z, running * np.array([1, 2, 3]) + np.array([0, -1, 1]), rtol=1e-5)
    assert same is after


def test_batch_norm_over_a_mapped_axis_is_that_of_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    params, statistics = batch_norm_init(3)
    whole, after = batch_norm(params, statistics, x, training=True)
    parts, afters = jax.vmap(
        lambda x: batch_norm(params, statistics, x, training=True, axis_name="parts"), axis_name="parts"
    )(x)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    for name in after:
        np.testing.assert_allclose(afters[name][0], after[name], atol=1e-6)


def test_wrong_input_is_named():
    kernel = jnp.zeros((3, 3, 2, 2))
    with pytest.raises(ValueError, match=r"x: got shape \(4, 4, 1\)"):
        convolution(jnp.zeros((4, 4, 1)), kernel)
    with pytest.raises(ValueError, match="kernel: got shape"):
        convolution(jnp.zeros((4, 4, 2)), kernel[:2])
    with pytest.raises(ValueError, match="boundary"):
        convolution(jnp.zeros((4, 4, 2)), kernel, boundary="mirror")
    with pytest.raises(ValueError, match="too large for a torus"):
        convolution(jnp.zeros((2, 2, 2)), jnp.zeros((7, 7, 2, 2)))
    with pytest.raises(ValueError, match="odd size"):
        convolution_init(jax.random.key(0), 2, 1, 1)
    with pytest.raises(ValueError, match="features"):
        batch_norm(*batch_norm_init(3), jnp.zeros((2, 4)), training=True)
