"""Reflection classes and the reduced grids against the full grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.sphere import sphere_gradient_table, sphere_table
from equivariant_jax.euclidean.reflections import ReflectionGrid, multiply_classes, reflection_parities
from equivariant_jax.euclidean.separable import SeparableGrid


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def grids(degree):
    return [ReflectionGrid(degree, m) for m in ("grid", "quadrant", "octant")] + [SeparableGrid(degree)]


def test_parities_are_those_of_the_harmonics():
    points = np.random.default_rng(0).normal(size=(20, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    table, bits = sphere_table(points, 6), reflection_parities(6)
    for axis, bit in ((0, 4), (1, 2), (2, 1)):
        mirrored = points.copy()
        mirrored[:, axis] *= -1
        np.testing.assert_allclose(sphere_table(mirrored, 6), table * np.where(bits & bit, -1, 1), atol=1e-13)


@pytest.mark.parametrize("l", [0, 1, 2, 3, 5, 8])
def test_projection_undoes_evaluation(x64, l):
    x = normal(0, (l + 1) ** 2, 7)
    for grid in grids(2 * l):
        np.testing.assert_allclose(grid.project(grid.evaluate(x), l), x, atol=1e-13)


def test_a_rule_too_short_is_not_exact(x64):
    x = normal(0, 49, 3)
    for grid in grids(7):
        assert np.abs(grid.project(grid.evaluate(x), 6) - x).max() > 0.01, grid


def test_squared_gradient_gives_the_laplacian(x64):
    """int |grad f|^2 = sum l (l + 1) x_k^2, from both components together."""
    x = normal(0, 25, 1)
    l = np.repeat(np.arange(5), 2 * np.arange(5) + 1)
    for grid in grids(8):
        total = 0.0
        for name in ("polar", "azimuthal"):
            fields = grid.evaluate(x, part=name)
            total = total + grid.project(multiply_classes(fields, fields), 0)[0, 0]
        expected = np.sum(l * (l + 1) * np.asarray(x[:, 0]) ** 2) / np.sqrt(4 * np.pi)
        np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_gradient_table_is_the_derivative_of_the_harmonics():
    theta = np.array([0.3, 1.2, 2.9, 1.5])
    phi = np.array([0.1, 2.0, -1.0, 4.0])

    def points(theta, phi):
        return np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1)

    polar, azimuthal = sphere_gradient_table(points(theta, phi), 5)
    h = 1e-6
    by_theta = (sphere_table(points(theta + h, phi), 5) - sphere_table(points(theta - h, phi), 5)) / (2 * h)
    by_phi = (sphere_table(points(theta, phi + h), 5) - sphere_table(points(theta, phi - h), 5)) / (2 * h)
    np.testing.assert_allclose(polar, by_theta, atol=1e-8)
    np.testing.assert_allclose(azimuthal, by_phi / np.sin(theta)[:, None], atol=1e-7)


def test_gradient_table_is_regular_at_the_poles():
    near = np.array([[1e-9 * np.sin(0.0), 1.0, 1e-9 * np.cos(0.0)], [0.0, -1.0, 1e-9]])
    exact = np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    for a, b in zip(sphere_gradient_table(near, 6), sphere_gradient_table(exact, 6), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_reflection_cuts_the_work():
    """Points that are evaluated: half of the 434 with the antipodal map, about a quarter and an eighth with more."""
    points = [grid.evaluate(jnp.ones((81, 1)))[0].shape[0] for grid in grids(32)[:3]]
    assert points[0] == 217
    assert points[1] < 0.55 * points[0]
    assert points[2] < 0.6 * points[1]
