"""Depthwise convolutions, sine networks and maxima against loops; derivatives of every order and mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.nn import (
    depthwise_convolution,
    global_max,
    max_pool,
    sine_network_apply,
    sine_network_init,
)
from equivariant_jax.nn.depthwise import _by_shifts, _by_shifts_kernel, _grouped, _grouped_kernel


def slow_depthwise(x, kernel, boundary):
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    out = np.zeros_like(x)
    for h in range(height):
        for w in range(width):
            for i in range(size):
                for j in range(size):
                    a, b = h + i - size // 2, w + j - size // 2
                    if boundary == "circular":
                        a, b = a % height, b % width
                    if 0 <= a < height and 0 <= b < width:
                        out[:, h, w] += x[:, a, b] * kernel[i, j]
    return out


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_depthwise_convolution_is_the_sum_it_says(x64, boundary, size):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    kernel = np.random.default_rng(1).normal(size=(size, size, 3))
    expected = slow_depthwise(x, kernel, boundary)
    found = depthwise_convolution(jnp.asarray(x), jnp.asarray(kernel), boundary=boundary)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    static = {"boundary": boundary, "precision": "highest"}
    np.testing.assert_allclose(_grouped(jnp.asarray(x), jnp.asarray(kernel), **static), expected, atol=1e-12)
    y = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    one = _by_shifts_kernel(jnp.asarray(x), y, size=size, **static)
    np.testing.assert_allclose(one, _grouped_kernel(jnp.asarray(x), y, size=size, **static), atol=1e-12)


@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_derivatives_of_depthwise_convolutions(x64, boundary):
    """First, second and mixed derivatives equal those of the plain sum."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 2), "float64")
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2), "float64")

    def ours(x, kernel):
        return jnp.sum(jnp.sin(depthwise_convolution(x, kernel, boundary=boundary)))

    def plain(x, kernel):
        return jnp.sum(jnp.sin(_by_shifts(x, kernel, boundary=boundary, precision=None)))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function, x, kernel):
        both = (0, 1)
        gradient = jax.grad(function, both)
        return gradient(x, kernel), jax.jacfwd(gradient, both)(x, kernel), jax.jacrev(gradient, both)(x, kernel)

    found, expected = derivatives(ours, x, kernel), derivatives(plain, x, kernel)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert float(jnp.abs(found[1][0][1]).max()) > 0.01  # the mixed one


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_depthwise_convolution_maps(x64, axes):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3) if axes[0] is not None else (4, 4, 3), "float64")
    kernel = jax.random.normal(jax.random.key(1), (2, 3, 3, 3) if axes[1] is not None else (3, 3, 3), "float64")

    def derivative(x, kernel):
        return jax.grad(lambda k: jnp.sum(jnp.cos(depthwise_convolution(x, k))))(kernel)

    for f in (depthwise_convolution, derivative):
        found = jax.vmap(f, in_axes=axes)(x, kernel)
        for n in range(2):
            one = f(x[n] if axes[0] is not None else x, kernel[n] if axes[1] is not None else kernel)
            np.testing.assert_allclose(found[n], one, atol=1e-12)


def test_sine_networks_are_what_they_say(x64):
    params = sine_network_init(jax.random.key(0), (3, 50, 40, 2), frequency=7.0, gain=0.5, dtype="float64")
    x = np.random.default_rng(0).normal(size=(6, 5, 3))
    expected = x
    for depth, layer in enumerate(params):
        expected = expected @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        expected = np.sin(7.0 * expected) if depth < 2 else expected
    np.testing.assert_allclose(sine_network_apply(params, jnp.asarray(x), frequency=7.0), expected, atol=1e-12)
    for layer, bound in zip(params, (1 / 3, np.sqrt(6 / 50) / 7, 0.5 * np.sqrt(6 / 40)), strict=True):
        assert 0.9 * bound < float(jnp.abs(layer["kernel"]).max()) <= bound
    assert float(jnp.abs(params[0]["bias"]).max()) > 0
    assert float(jnp.abs(params[1]["bias"]).max()) == 0


def test_maxima_and_their_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    np.testing.assert_array_equal(global_max(x), jnp.max(x, axis=(1, 2)))
    gradient = jax.grad(lambda x: jnp.sum(global_max(x) ** 2))(x)
    assert int(jnp.sum(gradient != 0)) == 6
    pooled = max_pool(x)
    expected = x[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(pooled, expected)
    moved = max_pool(jnp.moveaxis(x, 3, 1), axis=2)
    np.testing.assert_array_equal(jnp.moveaxis(moved, 1, 3), expected)


def test_gradient_of_a_maximum_survives_recomputed_entries():
    """Where entries and maximum are rounded differently no entry equals the maximum; the gradient still has a place."""
    x = jax.random.normal(jax.random.key(0), (3, 64, 8))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(global_max(jnp.exp(x * 1.1) * 0.3 + x, axes=1))))(x)
    assert bool(jnp.isfinite(gradient).all())
    assert int(jnp.sum(gradient != 0)) == 24
    equal = jax.grad(lambda x: jnp.sum(global_max(x, axes=1)))(jnp.zeros((1, 4, 1)))
    np.testing.assert_array_equal(equal[0, :, 0], [1, 0, 0, 0])


def test_bad_input_is_named():
    x = jnp.zeros((4, 4, 2))
    with pytest.raises(ValueError, match="odd size"):
        depthwise_convolution(x, jnp.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"expected float32 \[\.\.\., height, width, 3\]"):
        depthwise_convolution(x, jnp.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="boundary"):
        depthwise_convolution(x, jnp.zeros((3, 3, 2)), boundary="same")
    with pytest.raises(ValueError, match="too large for a torus"):
        depthwise_convolution(x, jnp.zeros((11, 11, 2)), boundary="circular")
    with pytest.raises(ValueError, match="hidden"):
        sine_network_init(jax.random.key(0), (3, 2))
    with pytest.raises(ValueError, match="for these params"):
        sine_network_apply(sine_network_init(jax.random.key(0), (3, 4, 2)), x)
    with pytest.raises(ValueError, match="not empty"):
        global_max(jnp.zeros((0, 4, 2)))
    with pytest.raises(ValueError, match="2 x 2"):
        max_pool(jnp.zeros((1, 4, 2)))
