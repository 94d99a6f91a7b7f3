"""The Poisson bracket against Clebsch-Gordan sums over odd paths, the cross product, and the group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean.bracket import spherical_poisson_bracket
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from tests.euclidean.paths import sum_over_paths, threej

METHODS = ["auto", "grid", "quadrant", "octant", "separable"]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def bracket_factor(a, b, c):
    degrees = a * (a + 1) * b * (b + 1) * (2 * a + 1) * (2 * b + 1) * (2 * c + 1)
    return np.sqrt(degrees / (4 * np.pi)) * threej(a, b, c, 1, -1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("l1", "l2", "l3"), [(1, 1, 1), (1, 2, 2), (2, 3, 4), (3, 3, 5), (4, 4, 7), (4, 2, 3), (2, 2, 6)]
)
def test_equals_the_sum_over_odd_paths(x64, method, l1, l2, l3):
    x, y = normal(0, 5, (l1 + 1) ** 2), normal(1, 5, (l2 + 1) ** 2)
    expected = sum_over_paths(x, y, l3, bracket_factor, parity=1)
    z = spherical_poisson_bracket(x, y, lmax_out=l3, method=method)
    assert np.abs(expected).max() > 0.1
    assert np.abs(z - expected).max() <= 1e-12 * np.abs(expected).max()


def test_together_with_the_product_it_has_every_path_once():
    """Each triangle of degrees has a non-zero factor in exactly one of the two."""
    for a in range(13):
        for b in range(13):
            for c in range(abs(a - b), a + b + 1):
                gaunt = threej(a, b, c, 0, 0)
                bracket = bracket_factor(a, b, c) if min(a, b) else 0.0
                # The bracket's integral is antisymmetric in three functions: even paths cancel over the exchange of
                # orders, although their 3j(1 -1 0) is not zero.
                assert (gaunt > 1e-8) == ((a + b + c) % 2 == 0)
                if (a + b + c) % 2 == 1:
                    assert bracket > 1e-8, (a, b, c)


def test_even_paths_are_absent(x64):
    for a, b in ((1, 1), (2, 2), (2, 3)):
        x, y = jnp.zeros(16).at[a * a : (a + 1) ** 2].set(1.0), normal(1, 16)
        y = jnp.zeros(16).at[b * b : (b + 1) ** 2].set(y[b * b : (b + 1) ** 2])
        bracket, product = spherical_poisson_bracket(x, y), gaunt_tensor_product(x, y)
        for c in range(a + b):
            block = slice(c * c, (c + 1) ** 2)
            odd = (a + b + c) % 2 == 1 and c >= abs(a - b)
            assert (np.abs(bracket[block]).max() > 1e-3) == odd
            assert np.abs(product[block]).max() < 1e-13 or not odd


def test_is_the_cross_product_at_degree_one(x64):
    a, b = normal(0, 7, 3), normal(1, 7, 3)
    pad = ((0, 0), (1, 0))
    z = spherical_poisson_bracket(jnp.pad(a, pad), jnp.pad(b, pad))
    np.testing.assert_allclose(z[:, 1:], np.sqrt(3 / (4 * np.pi)) * np.cross(a, b), atol=1e-15)
    np.testing.assert_allclose(z[:, 0], 0.0, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_antisymmetric_in_its_three_arguments(x64, method):
    x, y, h = normal(0, 3, 16), normal(1, 3, 16), normal(2, 3, 16)
    bracket = functools.partial(spherical_poisson_bracket, lmax_out=3, method=method)
    one = np.sum(bracket(x, y) * h, axis=-1)
    np.testing.assert_allclose(bracket(y, x), -bracket(x, y), atol=1e-13)
    np.testing.assert_allclose(np.sum(bracket(y, h) * x, axis=-1), one, atol=1e-12)
    np.testing.assert_allclose(np.sum(bracket(x, h) * y, axis=-1), -one, atol=1e-12)


def test_derivatives_are_brackets(x64):
    x, y, v = normal(0, 3, 9), normal(1, 3, 9), normal(2, 3, 9)

    def bracket(x, y):
        return spherical_poisson_bracket(x, y, lmax_out=2)

    _, pull = jax.vjp(bracket, x, y)
    np.testing.assert_allclose(pull(v)[0], bracket(y, v), atol=1e-12)
    np.testing.assert_allclose(pull(v)[1], -bracket(x, v), atol=1e-12)
    hessian = jax.hessian(lambda x: jnp.sum(jnp.cos(bracket(x, y[0]))))(x[0])
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)


def test_normalizations(x64):
    x, y = normal(0, 5, 9), normal(1, 5, 16)
    expected = sum_over_paths(x, y, 4, lambda a, b, c: threej(a, b, c, 1, -1), parity=1)
    z = spherical_poisson_bracket(x, y, lmax_out=4, normalization="norm")
    np.testing.assert_allclose(z, expected, atol=1e-12)
    samples = 20_000
    z = spherical_poisson_bracket(normal(2, samples, 9), normal(3, samples, 16), normalization="component")
    # Means of products of normals (kurtosis below 20): five standard deviations.
    np.testing.assert_allclose(np.var(z[:, 1:], axis=0), 1.0, atol=5 * np.sqrt(20 / samples))
    assert not np.any(z[:, 0])  # degrees 2 and 3 meet at degree 0 in no path, 1-1 and 2-2 are even there


@pytest.mark.parametrize("flip", [1, -1])
def test_natural_times_natural_is_pseudo(x64, key, flip):
    rotation = jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    rotation = rotation * jnp.linalg.det(rotation) * flip

    def act(v, parity):
        lmax = int(np.sqrt(v.shape[-1])) - 1
        sign = jnp.linalg.det(rotation) if parity < 0 else 1.0
        return sign * (v @ jax.scipy.linalg.block_diag(*wigner_d(rotation, lmax)).T)

    x, y = normal(0, 4, 16), normal(1, 4, 9)
    z = spherical_poisson_bracket(x, y)
    np.testing.assert_allclose(spherical_poisson_bracket(act(x, 1), act(y, 1)), act(z, -1), atol=1e-12)
    np.testing.assert_allclose(spherical_poisson_bracket(act(x, -1), act(y, 1)), act(z, 1), atol=1e-12)
    assert np.abs(act(z, 1) - z).max() > 0.1


def test_weights_and_broadcasting(x64):
    x, y, w = normal(0, 2, 3, 9), normal(1, 3, 9), normal(2, 3, 3)
    z = spherical_poisson_bracket(x, y, weights=(w, None, normal(3, 4)))
    plain = spherical_poisson_bracket(x * jnp.repeat(w, np.array([1, 3, 5]), axis=-1)[None], y)
    np.testing.assert_allclose(z, plain * jnp.repeat(normal(3, 4), np.array([1, 3, 5, 7]))[None, None], atol=1e-13)


def test_constants_have_zero_bracket_and_zero_gradient():
    z, back = jax.value_and_grad(lambda x: jnp.sum(spherical_poisson_bracket(x, jnp.ones((2, 9)))))(jnp.ones((2, 1)))
    assert z == 0
    assert not np.any(back)
    assert spherical_poisson_bracket(jnp.ones(1), jnp.ones(1)).shape == (1,)


def test_bad_input_is_named():
    x = jnp.ones(4)
    with pytest.raises(ValueError, match="5"):
        spherical_poisson_bracket(jnp.ones(5), x)
    with pytest.raises(ValueError, match="fourier"):
        spherical_poisson_bracket(x, x, method="fourier")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit"):
        spherical_poisson_bracket(x, x, normalization="unit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float16"):
        spherical_poisson_bracket(x, x.astype("float16"))
    with pytest.raises(ValueError, match="lmax_out"):
        spherical_poisson_bracket(x, x, lmax_out=-2)
