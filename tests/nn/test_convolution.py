"""Convolutions and batch normalisation against slow references."""

import functools

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


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("size", [1, 3])
def test_derivatives_of_every_mode_are_those_of_the_plain_convolution(x64, boundary, size):
    def plain(x, kernel):
        r = size // 2
        mode = {"mode": "wrap"} if boundary == "circular" else {}
        padded = jnp.pad(x, ((0, 0), (r, r), (r, r), (0, 0)), **mode)
        return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 2))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 2, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel)))

        gradient = jax.grad(loss, argnums=(0, 1))

        def size_of_gradient(x, kernel):
            return sum(jnp.sum(part**2) for part in gradient(x, kernel))

        several = jnp.stack([x, 2 * x]), jnp.stack([kernel, kernel + 1])
        return {
            "reverse": gradient(x, kernel),
            "forward": jax.jvp(loss, (x, kernel), (x, kernel)),
            "reverse over reverse": jax.grad(size_of_gradient, argnums=(0, 1))(x, kernel),
            "forward over reverse": jax.jvp(gradient, (x, kernel), (x, kernel)),
            "inside a loop": jax.grad(
                lambda k: jax.lax.scan(lambda s, _: (s + loss(x, k * s), None), jnp.ones(()), None, length=3)[0]
            )(kernel),
            "mapped": jax.vmap(gradient)(*several),
            "mapped, one kernel": jax.vmap(gradient, in_axes=(0, None))(several[0], kernel),
            "mapped, one image": jax.vmap(gradient, in_axes=(None, 0))(x, several[1]),
        }

    ours = derivatives(lambda x, k: convolution(x, k, boundary=boundary), x, kernel)
    expected = derivatives(plain, x, kernel)
    for name, found in ours.items():
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11 * max(1.0, float(jnp.abs(b).max())), err_msg=name)


def test_the_accelerators_form_of_the_kernel_gradient_is_the_same(x64):
    from equivariant_jax.nn.convolution import _correlate, _correlate_by_convolution

    x, y = jax.random.normal(jax.random.key(0), (2, 5, 4, 2)), jax.random.normal(jax.random.key(1), (2, 5, 4, 3))
    for boundary in ("circular", "zero"):
        static = {"size": 3, "boundary": boundary, "precision": None}
        np.testing.assert_allclose(_correlate(x, y, **static), _correlate_by_convolution(x, y, **static), atol=1e-12)


def test_lowers_for_accelerators():
    x, kernel = jnp.zeros((2, 5, 5, 2)), jnp.zeros((3, 3, 2, 4))
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(convolution(x, k) ** 2), argnums=(0, 1)))
    for platform, convolutions in (("cuda", 3), ("tpu", 3), ("cpu", 2)):
        text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions
