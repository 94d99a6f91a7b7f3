import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.euclidean.quadrature import (
    from_parity_grids,
    from_sphere_grid,
    sphere_quadrature,
    to_parity_grids,
    to_sphere_grid,
)


@pytest.mark.parametrize("kind", ["lebedev", "gauss"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 7, 12, 14, 19, 26, 33])
def test_integrates_its_degree_exactly_and_not_the_next(kind, degree):
    rule = sphere_quadrature(degree, kind)
    assert rule.degree >= degree
    assert (rule.weights > 0).all()
    np.testing.assert_allclose(np.linalg.norm(rule.points, axis=1), 1.0, atol=1e-13)
    # The integral of Y_lm is zero but for l = 0.
    moments = rule.weights @ sphere_table(rule.points, rule.degree + 2)
    expected = np.zeros_like(moments)
    expected[0] = np.sqrt(4 * np.pi)
    exact = (rule.degree + 1) ** 2
    np.testing.assert_allclose(moments[:exact], expected[:exact], atol=1e-12)
    # An antipodal rule gives odd degrees for nothing; one degree further it must fail.
    assert np.abs(moments[exact:]).max() > 1e-4


def test_sizes_of_the_rules():
    assert [sphere_quadrature(d).weights.size for d in (0, 4, 8, 12, 16, 20, 24, 32)] == [
        2,
        14,
        38,
        86,
        110,
        170,
        302,
        434,
    ]
    assert [sphere_quadrature(d, "gauss").weights.size for d in (4, 8, 12)] == [15, 45, 91]


@pytest.mark.parametrize("degree", [1, 4, 17])
def test_points_come_in_antipodal_pairs(degree):
    rule = sphere_quadrature(degree)
    half = rule.weights.size // 2
    assert rule.antipodal
    np.testing.assert_allclose(rule.points[:half], -rule.points[half:], atol=1e-15)
    np.testing.assert_array_equal(rule.weights[:half], rule.weights[half:])


@pytest.mark.parametrize("kind", ["lebedev", "gauss"])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("lmax", [0, 1, 4])
def test_round_trip_needs_twice_the_degree(x64, kind, axis, lmax):
    x = jnp.asarray(np.random.default_rng(lmax).normal(size=(3, (lmax + 1) ** 2)))
    x = x if axis == -1 else x.T
    there = to_sphere_grid(x, 2 * lmax, kind=kind, axis=axis)
    back = from_sphere_grid(there, lmax, 2 * lmax, kind=kind, axis=axis)
    np.testing.assert_allclose(back, x, atol=1e-13)
    if lmax:
        short = sphere_quadrature(2 * lmax, kind).degree - 2 * lmax + 1
        low = 2 * lmax - short
        broken = from_sphere_grid(to_sphere_grid(x, low, kind=kind, axis=axis), lmax, low, kind=kind, axis=axis)
        if sphere_quadrature(low, kind).degree < 2 * lmax:
            assert np.abs(broken - x).max() > 1e-2


@pytest.mark.parametrize("kind", ["lebedev", "gauss"])
def test_values_are_the_function_at_the_points(x64, kind):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)))
    rule = sphere_quadrature(9, kind)
    np.testing.assert_allclose(to_sphere_grid(x, 9, kind=kind), x @ sphere_table(rule.points, 3).T, atol=1e-13)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="132"):
        sphere_quadrature(132)
    with pytest.raises(ValueError, match="-1"):
        sphere_quadrature(-1)
    with pytest.raises(ValueError, match="fibonacci"):
        sphere_quadrature(3, "fibonacci")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="13 values"):
        from_sphere_grid(jnp.ones(13), 1, 3)
    with pytest.raises(ValueError, match="axis"):
        to_sphere_grid(jnp.ones((4, 4)), 3, axis=1)


@pytest.mark.parametrize("kind", ["lebedev", "gauss"])
@pytest.mark.parametrize("lmax", [0, 1, 3, 4])
def test_parity_grids_are_the_two_halves_of_the_grid(x64, kind, lmax):
    x = jnp.asarray(np.random.default_rng(0).normal(size=((lmax + 1) ** 2, 5)))
    for degree in (3 * lmax + 2, 3 * lmax + 3):
        even, odd = to_parity_grids(x, degree, kind=kind)
        full, points = to_sphere_grid(x, degree, axis=0, kind=kind), even.shape[0]
        np.testing.assert_allclose(even + odd, full[:points], atol=1e-13)
        if sphere_quadrature(degree, kind).antipodal:
            np.testing.assert_allclose(even - odd, full[points:], atol=1e-13)
        assert lmax == 0 or np.abs(odd).max() > 0.1
        np.testing.assert_allclose(from_parity_grids(even, odd, lmax, degree, kind=kind), x, atol=1e-13)
    with pytest.raises(ValueError, match="expected"):
        from_parity_grids(even[1:], odd[1:], lmax, degree, kind=kind)
