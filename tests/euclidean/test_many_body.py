"""Powers and polynomials of a field against chains of products."""

import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.irreps import expand_degrees
from equivariant_jax.euclidean.many_body import gaunt_polynomial, gaunt_power


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_power_is_a_chain_of_products(x64, order):
    x = normal(0, 3, 9)
    chain = x
    for _ in range(order - 1):
        chain = gaunt_tensor_product(chain, x)
    np.testing.assert_allclose(gaunt_power(x, order), chain[:, :9], atol=1e-12)
    np.testing.assert_allclose(gaunt_power(x.T, order, axis=0), chain[:, :9].T, atol=1e-12)


def test_polynomial_is_the_weighted_sum_of_powers(x64):
    x, weights = normal(0, 5, 9, 4), normal(1, 5, 3, 2, 4)
    out = gaunt_polynomial(x, weights, lmax_out=1)
    c = np.sqrt(4 * np.pi) / 3
    expected = 0.0
    for nu in (1, 2, 3):
        power = jnp.swapaxes(gaunt_power(jnp.swapaxes(x, -1, -2), nu, lmax_out=1), -1, -2)
        expected = expected + expand_degrees(weights[:, nu - 1], axis=-2) * power * c ** (nu - 1)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="order"):
        gaunt_power(jnp.ones(4), 0)
    with pytest.raises(ValueError, match="gaunt_polynomial"):
        gaunt_polynomial(jnp.ones((9, 2)), jnp.ones((3, 2, 2)), lmax_out=2)
