r"""Quadrature on the sphere, and the maps between coefficients and grid values.

A feature `x` with `(lmax + 1)**2` coefficients is the function `f(Om) = sum_k x_k Y_k(Om)` in the orthonormal basis. A
rule of degree `d` integrates products of total degree `d` exactly, so pointwise products on its grid, projected back,
are exact polynomial algebra on the sphere.

All rules here are stored in antipodal pairs where the rule is symmetric under inversion: point `g + G/2` is minus point
`g`. Even and odd degrees then need only half the grid each, which halves both transforms.

Laws: `from_sphere_grid(to_sphere_grid(x)) == x` for a rule of degree `2 lmax`; a rotation of `x` is a rotation of `f`.

References: Lebedev and Laikov 1999 (through `scipy.integrate.lebedev_rule`); Luo et al. 2024, arXiv:2401.10216.
"""

import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, lmax_of

__all__ = [
    "QuadratureKind",
    "SphereQuadrature",
    "from_parity_grids",
    "from_sphere_grid",
    "sphere_quadrature",
    "to_parity_grids",
    "to_sphere_grid",
]

QuadratureKind = Literal["lebedev", "gauss"]

# Degrees with a Lebedev rule of positive weights (13, 25 and 27 exist but have negative ones).
_LEBEDEV = (*range(3, 12, 2), *range(15, 24, 2), 29, 31, *range(35, 132, 6))


class SphereQuadrature(NamedTuple):
    """A quadrature rule on the unit sphere, in NumPy float64.

    Attributes:
      points: unit vectors, shape `[G, 3]` in the order x, y, z.
      weights: positive weights that sum to `4 pi`, shape `[G]`.
      degree: total polynomial degree that the rule integrates exactly; at least the degree asked for.
      antipodal: True where point `g + G/2` is minus point `g`, with the same weight.
    """

    points: np.ndarray
    weights: np.ndarray
    degree: int
    antipodal: bool


def _antipodal_order(points: np.ndarray) -> np.ndarray:
    # Indices that list one point of each pair first, then the antipodes in the same order.
    rounded = np.round(points, 9) + 0.0
    where = {tuple(point): index for index, point in enumerate(rounded)}
    first = [i for i, point in enumerate(rounded) if tuple(point) > tuple(-point + 0.0)]
    return np.array(first + [where[tuple(-rounded[i] + 0.0)] for i in first])


@functools.cache
def sphere_quadrature(degree: int, kind: QuadratureKind = "lebedev") -> SphereQuadrature:
    """Builds a rule that integrates every polynomial of total degree `degree` over the unit sphere.

    Args:
      degree: total degree to integrate exactly, 0 or more (at most 131 for "lebedev").
      kind: "lebedev" (about `(degree + 1)**2 / 3` points, positive weights) or "gauss" (Gauss-Legendre in the polar
        axis y times equispaced azimuths, `ceil((degree + 1) / 2) * (degree + 1)` points, any degree).

    Returns:
      `SphereQuadrature`.

    Raises:
      ValueError: if the degree or the kind is not available.

    Example:
      >>> sphere_quadrature(12).weights.size, sphere_quadrature(12, "gauss").weights.size
      (86, 91)
    """
    if degree < 0:
        raise ValueError(f"degree must be 0 or more, got {degree}.")
    if kind == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
        azimuth = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
        sine = np.sqrt(1 - nodes * nodes)[:, None]
        points = [sine * np.sin(azimuth), np.repeat(nodes[:, None], degree + 1, 1), sine * np.cos(azimuth)]
        weights = np.repeat(weights * 2 * np.pi / (degree + 1), degree + 1)
        return SphereQuadrature(np.stack(points, axis=-1).reshape(-1, 3), weights, degree, False)
    if kind != "lebedev":
        raise ValueError(f'kind must be "lebedev" or "gauss", got {kind!r}.')
    if degree > _LEBEDEV[-1]:
        raise ValueError(f'Lebedev rules reach degree {_LEBEDEV[-1]}, got {degree}; use kind="gauss".')
    if degree <= 1:
        return SphereQuadrature(np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]), np.full(2, 2 * np.pi), 1, True)
    from scipy.integrate import lebedev_rule

    found = next(d for d in _LEBEDEV if d >= degree)
    points, weights = lebedev_rule(found)
    order = _antipodal_order(points.T)
    return SphereQuadrature(points.T[order], weights[order], found, True)


@functools.cache
def _transforms(lmax: int, degree: int, kind: QuadratureKind) -> tuple[np.ndarray, np.ndarray, bool]:
    # (values [N, G], projection [G, N], antipodal); only the first half of the grid where it is antipodal.
    rule = sphere_quadrature(degree, kind)
    table = sphere_table(rule.points, lmax)
    projection = table * rule.weights[:, None]
    if rule.antipodal:
        half = rule.weights.size // 2
        table, projection = table[:half], projection[:half]
    return table.T, projection, rule.antipodal


@functools.cache
def _parity_order(lmax: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Coefficients of even degree, of odd degree, and the permutation that undoes (even, odd).
    degrees = degree_index(lmax)
    # int32: a 64-bit index would be traced differently with and without JAX's 64-bit mode.
    even, odd = (np.flatnonzero(degrees % 2 == parity).astype(np.int32) for parity in (0, 1))
    return even, odd, np.argsort(np.concatenate([even, odd])).astype(np.int32)


def _contract(x: Array, matrix: np.ndarray, axis: int, precision) -> Array:
    # Contracts one axis of x with the first axis of a constant matrix; the new axis takes its place.
    matrix = matrix.astype(x.dtype)
    if axis == -1:
        return jnp.matmul(x, matrix, precision=precision)
    return jnp.einsum("kg,k...->g...", matrix, x, precision=precision)


def _check_axis(axis: int) -> None:
    if axis not in (-1, 0):
        raise ValueError(f"axis must be -1 (coefficients last) or 0 (coefficients first), got {axis}.")


def to_sphere_grid(
    x: Array, degree: int, *, axis: int = -1, kind: QuadratureKind = "lebedev", precision=lax.Precision.HIGHEST
) -> Array:
    """Evaluates coefficients on the grid of `sphere_quadrature(degree, kind)`.

    Args:
      x: coefficients in the orthonormal basis, `(lmax + 1)**2` of them on `axis`, float.
      degree: static; degree of the rule, the sum of the degrees of everything that is multiplied before projection.
      axis: static; -1 for `[..., coefficients]`, 0 for `[coefficients, ...]` (one matrix product
        without a transpose: faster on CPU when lmax is small).
      kind: static; "lebedev" or "gauss".
      precision: static; precision of the matrix product.

    Returns:
      Values with `G` points on `axis`, in the order of `sphere_quadrature(degree, kind).points`, dtype of `x`.

    Raises:
      ValueError: if the axis is not a coefficient axis.

    Example:
      >>> values = to_sphere_grid(jnp.array([1.0, 0.0, 0.0, 0.0]), 2)
      >>> values.shape, round(float(values[0]), 4)
      ((6,), 0.2821)
    """
    _check_axis(axis)
    lmax = lmax_of(x.shape[axis])
    values, _, antipodal = _transforms(lmax, degree, kind)
    if not antipodal:
        return _contract(x, values, axis, precision)
    even, odd, _ = _parity_order(lmax)
    symmetric = _contract(jnp.take(x, even, axis=axis), values[even], axis, precision)
    if lmax == 0:
        return jnp.concatenate([symmetric, symmetric], axis=axis)
    antisymmetric = _contract(jnp.take(x, odd, axis=axis), values[odd], axis, precision)
    return jnp.concatenate([symmetric + antisymmetric, symmetric - antisymmetric], axis=axis)


def from_sphere_grid(
    values: Array,
    lmax: int,
    degree: int,
    *,
    axis: int = -1,
    kind: QuadratureKind = "lebedev",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Projects grid values on the harmonics of degree at most `lmax`, `z_k = sum_g w_g f_g Y_k(Om_g)`.

    Args:
      values: values on the grid of `sphere_quadrature(degree, kind)` on `axis`, float.
      lmax: static; largest degree kept.
      degree: static; degree of the rule. Exact if `values` is a polynomial of degree `degree - lmax` or less.
      axis: static; -1 for `[..., G]`, 0 for `[G, ...]`.
      kind: static; "lebedev" or "gauss".
      precision: static; precision of the matrix product.

    Returns:
      Coefficients in the orthonormal basis, `(lmax + 1)**2` of them on `axis`, dtype of `values`.

    Raises:
      ValueError: if the axis does not have the rule's number of points.

    Example:
      >>> [abs(round(float(z), 4)) for z in from_sphere_grid(jnp.ones(6), 1, 3)]
      [3.5449, 0.0, 0.0, 0.0]
    """
    _check_axis(axis)
    size = sphere_quadrature(degree, kind).weights.size
    if values.shape[axis] != size:
        raise ValueError(
            f"from_sphere_grid got {values.shape[axis]} values on axis {axis}; the {kind} rule of degree {degree} has "
            f"{size} points. Use the degree and kind that to_sphere_grid was called with."
        )
    _, projection, antipodal = _transforms(lmax, degree, kind)
    if not antipodal:
        return _contract(values, projection, axis, precision)
    even, odd, order = _parity_order(lmax)
    near, far = jnp.split(values, 2, axis=axis)
    symmetric = _contract(near + far, projection[:, even], axis, precision)
    if lmax == 0:
        return symmetric
    antisymmetric = _contract(near - far, projection[:, odd], axis, precision)
    return jnp.take(jnp.concatenate([symmetric, antisymmetric], axis=axis), order, axis=axis)


def to_parity_grids(
    x: Array, degree: int, *, kind: QuadratureKind = "lebedev", precision=lax.Precision.HIGHEST
) -> tuple[Array, Array]:
    """Evaluates the even and the odd part of a function, on one point of each antipodal pair.

    Products of functions act on the parts like those of complex numbers with `i**2 = 1`, so that a chain of products
    needs half of the grid and no sums over pairs in between.

    Args:
      x: coefficients, `(lmax + 1)**2` of them on the first axis, float.
      degree: static; degree of the rule.
      kind: static; "lebedev" or "gauss".
      precision: static; precision of the matrix products.

    Returns:
      Values of the even and of the odd part, each `[points, ...]`, dtype of `x`; `points` is half of the rule's where
      the rule is antipodal.

    Example:
      >>> even, odd = to_parity_grids(jnp.ones((4, 7)), 3)
      >>> even.shape, odd.shape
      ((3, 7), (3, 7))
    """
    lmax = lmax_of(x.shape[0])
    values, _, _ = _transforms(lmax, degree, kind)
    even, odd, _ = _parity_order(lmax)
    symmetric = _contract(jnp.take(x, even, axis=0), values[even], 0, precision)
    if lmax == 0:
        return symmetric, jnp.zeros_like(symmetric)
    return symmetric, _contract(jnp.take(x, odd, axis=0), values[odd], 0, precision)


def from_parity_grids(
    even: Array,
    odd: Array,
    lmax: int,
    degree: int,
    *,
    kind: QuadratureKind = "lebedev",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Projects a function whose even and odd part are given as by `to_parity_grids`.

    Args:
      even: values of the even part, `[points, ...]`, float.
      odd: values of the odd part, likewise.
      lmax: static; largest degree kept.
      degree: static; degree of the rule. Exact if the function is a polynomial of degree `degree - lmax` or less.
      kind: static; "lebedev" or "gauss".
      precision: static; precision of the matrix products.

    Returns:
      Coefficients `[(lmax + 1)**2, ...]`, dtype of `even`.

    Raises:
      ValueError: if the parts do not have the grid's number of points.

    Example:
      >>> one = jnp.ones(3)
      >>> [abs(round(float(z), 4)) for z in from_parity_grids(one, 0 * one, 1, 3)]
      [3.5449, 0.0, 0.0, 0.0]
    """
    _, projection, antipodal = _transforms(lmax, degree, kind)
    if even.shape != odd.shape or even.shape[0] != projection.shape[0]:
        raise ValueError(
            f"from_parity_grids got parts of shapes {even.shape} and {odd.shape}; expected `[{projection.shape[0]}, "
            f"...]` for the {kind} rule of degree {degree}."
        )
    projection = projection * (2.0 if antipodal else 1.0)
    first, second, order = _parity_order(lmax)
    symmetric = _contract(even, projection[:, first], 0, precision)
    if lmax == 0:
        return symmetric
    antisymmetric = _contract(odd, projection[:, second], 0, precision)
    return jnp.take(jnp.concatenate([symmetric, antisymmetric], axis=0), order, axis=0)
