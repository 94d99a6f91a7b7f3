"""Spherical harmonics against e3nn, a slow trigonometric reference, and their laws."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.irreps import degree_slices

EPS32 = np.finfo(np.float32).eps


@pytest.fixture
def vectors(x64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)))


def slow_harmonics(point, lmax):
    """The definition by angles and associated Legendre functions, coefficient by coefficient."""
    x, y, z = point / np.linalg.norm(point)
    theta, phi = np.arccos(y), np.arctan2(x, z)
    out = []
    for l in range(lmax + 1):
        for m in range(-l, l + 1):
            k = abs(m)
            # P_l^k without the Condon-Shortley sign, as a derivative of the Legendre polynomial.
            legendre = (
                np.polynomial.legendre.Legendre.basis(l).deriv(k) if k else np.polynomial.legendre.Legendre.basis(l)
            )
            p = np.sin(theta) ** k * legendre(np.cos(theta))
            t = np.sqrt((2 * l + 1) / (4 * np.pi) * factorial(l - k) / factorial(l + k)) * p
            azimuth = 1.0 if m == 0 else np.sqrt(2) * (np.sin(k * phi) if m < 0 else np.cos(k * phi))
            out.append(t * azimuth)
    return np.array(out)


@pytest.mark.parametrize("normalization", ["component", "integral", "norm"])
@pytest.mark.parametrize("normalize", [True, False])
def test_agrees_with_e3nn(vectors, normalize, normalization):
    import e3nn_jax as e3nn

    ours = spherical_harmonics(vectors, 6, normalize=normalize, normalization=normalization)
    theirs = e3nn.spherical_harmonics(
        list(range(7)), e3nn.IrrepsArray("1o", vectors), normalize=normalize, normalization=normalization
    ).array
    np.testing.assert_allclose(ours, theirs, atol=1e-12 * np.abs(theirs).max())


def test_agrees_with_the_definition_by_angles(vectors):
    ours = spherical_harmonics(vectors[:5], 7, normalization="integral")
    slow = np.stack([slow_harmonics(np.asarray(v), 7) for v in vectors[:5]])
    np.testing.assert_allclose(ours, slow, atol=1e-12)
    np.testing.assert_allclose(
        sphere_table(vectors[:5] / np.linalg.norm(vectors[:5], axis=1)[:, None], 7), slow, atol=1e-12
    )


def test_high_degrees_stay_accurate(vectors):
    unit = np.asarray(vectors) / np.linalg.norm(vectors, axis=1)[:, None]
    table = sphere_table(unit, 24)
    evaluate = jax.jit(lambda v: spherical_harmonics(v, 24, normalization="integral"))
    # Errors of the recursion add up over the degrees: eps * lmax, times a small constant.
    np.testing.assert_allclose(evaluate(vectors), table, atol=100 * 24 * np.finfo(float).eps)
    single = evaluate(vectors.astype("float32"))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, table, atol=4 * 24 * EPS32)


@pytest.mark.parametrize("reflect", [False, True])
def test_rotations_act_by_wigner_matrices(vectors, key, reflect):
    rotation = jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    rotation = rotation * jnp.sign(jnp.linalg.det(rotation)) * (-1 if reflect else 1)
    moved = spherical_harmonics(vectors @ rotation.T, 6)
    still = spherical_harmonics(vectors, 6)
    blocks = wigner_d(rotation, 6)
    expected = jnp.concatenate(
        [still[:, block] @ d.T for d, block in zip(blocks, degree_slices(6), strict=True)], axis=-1
    )
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    assert np.abs(moved - still).max() > 0.5


def test_sum_rule_and_homogeneity(vectors):
    for normalization, total in (("component", 7), ("integral", 7 / (4 * np.pi)), ("norm", 1.0)):
        block = spherical_harmonics(vectors, 3, normalization=normalization)[:, 9:16]
        np.testing.assert_allclose(jnp.sum(block**2, axis=-1), total, rtol=1e-12)
    polynomials = spherical_harmonics(vectors, 3, normalize=False)
    np.testing.assert_allclose(
        spherical_harmonics(2 * vectors, 3, normalize=False)[:, 9:], 8 * polynomials[:, 9:], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("point", [(0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 0.0), (1e-20, 0.0, 0.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_derivatives_are_finite_at_poles_and_origin(x64, point, normalize):
    def f(v):
        return jnp.sum(jnp.sin(spherical_harmonics(v, 3, normalize=normalize)))

    first, second = jax.jit(lambda v: (jax.grad(f)(v), jax.hessian(f)(v)))(jnp.array(point))
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


def test_zero_vector_has_zero_value_and_gradient(x64):
    zero = jnp.zeros(3)
    values = spherical_harmonics(zero, 4)
    np.testing.assert_allclose(values[0], 1.0, rtol=1e-15)
    assert (values[1:] == 0.0).all()
    assert (jax.jit(jax.jacobian(lambda v: spherical_harmonics(v, 4)))(zero) == 0.0).all()


def test_gradient_against_central_differences(vectors):
    step = 1e-6
    jacobian = jax.jit(jax.jacobian(lambda v: spherical_harmonics(v, 4)))(vectors[0])
    for i in range(3):
        shift = step * jnp.eye(3)[i]
        slope = (spherical_harmonics(vectors[0] + shift, 4) - spherical_harmonics(vectors[0] - shift, 4)) / (2 * step)
        np.testing.assert_allclose(jacobian[:, i], slope, atol=1e-8)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        spherical_harmonics(jnp.ones((4, 2)), 1)
    with pytest.raises(ValueError, match="int32"):
        spherical_harmonics(jnp.ones((4, 3), jnp.int32), 1)
    with pytest.raises(ValueError, match="orthonormal"):
        spherical_harmonics(jnp.ones((4, 3)), 1, normalization="orthonormal")
    with pytest.raises(ValueError, match="-1"):
        spherical_harmonics(jnp.ones((4, 3)), -1)
