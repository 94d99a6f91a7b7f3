"""The Linen modules call their functions and have the parameters that they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean import (
    GauntConvolution,
    GauntSelfInteraction,
    SphericalProduct,
    gaunt_tensor_product,
    spherical_poisson_bracket,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("kind", ["gaunt", "bracket"])
def test_product_starts_as_the_plain_product(x64, key, kind):
    x, y = normal(0, 5, 3, 9), normal(1, 5, 1, 16)
    module = SphericalProduct(lmax_out=2, kind=kind)
    params = module.init(key, x, y)
    assert {k: v.shape for k, v in params["params"].items()} == {
        "x_scale": (3, 3), "y_scale": (1, 4), "out_scale": (3, 3)
    }  # fmt: skip
    function = gaunt_tensor_product if kind == "gaunt" else spherical_poisson_bracket
    expected = function(x, y, lmax_out=2, normalization="component")
    np.testing.assert_allclose(module.apply(params, x, y), expected, atol=1e-14)
    doubled = jax.tree.map(lambda v: 2 * v, params)
    np.testing.assert_allclose(module.apply(doubled, x, y), 8 * expected, atol=1e-13)


def rotate(rotation, x, axis):
    blocks = jax.scipy.linalg.block_diag(*wigner_d(rotation, int(np.sqrt(x.shape[axis])) - 1))
    return jnp.moveaxis(jnp.tensordot(x, blocks, axes=((axis,), (1,))), -1, axis)


def test_self_interaction_is_equivariant_and_keeps_the_scale(x64, key):
    module = GauntSelfInteraction(features=4, lmax_out=3)
    x = normal(0, 2000, 8, 9)
    params = module.init(key, x)
    out = module.apply(params, x)
    assert out.shape == (2000, 4, 16)
    assert 0.4 < np.std(out) < 2.0
    rotation = -jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    moved = module.apply(params, rotate(rotation, x[:5], -1))
    np.testing.assert_allclose(moved, rotate(rotation, out[:5], -1), atol=1e-12)
    assert np.abs(moved - out[:5]).max() > 0.1


@pytest.mark.parametrize("method", ["grid", "rotated"])
def test_convolution_is_equivariant_and_vanishes_with_its_radial_features(x64, key, method):
    module = GauntConvolution(lmax_filter=2, lmax_out=2, hidden=(8,), method=method)
    x, vectors, radial = normal(0, 4, 4, 3), normal(1, 6, 3), normal(2, 6, 5)
    senders, receivers = jnp.array([1, 2, 3, 0, 1, 2]), jnp.array([0, 0, 1, 2, 2, 3])
    params = module.init(key, x, vectors, radial, senders, receivers)
    out = module.apply(params, x, vectors, radial, senders, receivers)
    assert out.shape == (4, 9, 3)
    rotation = -jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    moved = module.apply(params, rotate(rotation, x, 1), vectors @ rotation.T, radial, senders, receivers)
    np.testing.assert_allclose(moved, rotate(rotation, out, 1), atol=1e-12)
    assert np.abs(moved - out).max() > 1e-3
    assert not np.any(module.apply(params, x, vectors, 0 * radial, senders, receivers))


def test_bad_kind_is_named(key):
    with pytest.raises(ValueError, match="cross"):
        SphericalProduct(kind="cross").init(key, jnp.ones((1, 4)), jnp.ones((1, 4)))  # type: ignore[arg-type]
