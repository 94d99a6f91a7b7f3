import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean.radial import bessel_basis, gaussian_basis, polynomial_cutoff


def test_bessel_functions_are_orthonormal_in_the_ball(x64):
    nodes, weights = np.polynomial.legendre.leggauss(80)
    r = 2.5 * (nodes + 1)
    values = np.asarray(bessel_basis(jnp.asarray(r), 6, 5.0))
    gram = np.einsum("r,rn,rm->nm", 2.5 * weights * r**2, values, values)
    np.testing.assert_allclose(gram, np.eye(6), atol=1e-12)


def test_derivatives_are_finite_and_right_at_zero(x64):
    basis = lambda r: bessel_basis(r, 4, 5.0)  # noqa: E731
    assert np.isfinite(basis(jnp.array(0.0))).all()
    np.testing.assert_allclose(basis(jnp.array(0.0)), basis(jnp.array(1e-6)), rtol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(basis)(jnp.array(0.0)), 0.0, atol=1e-12)
    second = jax.jacfwd(jax.jacfwd(basis))(jnp.array(0.0))
    k = np.arange(1, 5) * np.pi / 5
    np.testing.assert_allclose(second, -np.sqrt(2 / 5) * k**3 / 3, rtol=1e-10)


@pytest.mark.parametrize("p", [2, 5, 6])
def test_cutoff_is_smooth_at_both_ends(x64, p):
    cutoff = lambda r: polynomial_cutoff(r, 4.0, p)  # noqa: E731
    first, second = jax.grad(cutoff), jax.grad(jax.grad(cutoff))
    assert cutoff(jnp.array(0.0)) == 1.0
    edge = jnp.array(4.0 - 1e-6)
    assert abs(cutoff(edge)) < 1e-14
    assert abs(first(edge)) < 1e-9
    assert abs(second(edge)) < 1e-4
    for f in (cutoff, first, second):
        assert f(jnp.array(4.5)) == 0.0
        assert np.isfinite(f(jnp.array(0.0)))
    values = jax.vmap(cutoff)(jnp.linspace(0, 4, 50))
    assert (jnp.diff(values) < 0).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_bessel"):
        bessel_basis(jnp.ones(2), 0, 5.0)
    with pytest.raises(ValueError, match="p=1"):
        polynomial_cutoff(jnp.ones(2), 5.0, 1)


def test_gaussian_basis():
    distance = jnp.linspace(0.0, 3.0, 7)
    expected = np.exp(-((np.linspace(0, 3, 7)[:, None] - np.linspace(0, 3, 4)) ** 2) / 8)
    np.testing.assert_allclose(gaussian_basis(distance, 4, 3.0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="num_basis"):
        gaussian_basis(distance, 1, 3.0)
