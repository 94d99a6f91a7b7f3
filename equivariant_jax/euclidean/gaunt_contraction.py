r"""Many-body products on the sphere with a weight for every path: MACE's symmetric contraction by pointwise products.

With `f_l` the degree-l part of a feature as a function on the sphere,

  B_{lm, c} = sum_nu sum_{l1 <= .. <= l_nu} w[l1..l_nu, c] P_lm[ f_l1 f_l2 .. f_lnu ],

each set of degrees (a path) in units of its standard deviation. `symmetric_contraction` has the same sum over
generalised Clebsch-Gordan tensors; for invariants up to `nu = 3` both span the same functions, for higher degrees Gaunt
products have one map for each set of degrees where there may be several. `gaunt_polynomial` is the cheaper form in
which all paths of an order share a weight.

Cost: the fields of all degrees take one transform; products of fields of the same or other parity are even or odd under
inversion, so half of the grid is enough; a path is one multiply-add for each point.

Law: `B(D x) == D B(x)` for every rotation and reflection.

References: Luo et al. 2024, arXiv:2401.10216, section 3.3; Batatia et al. 2022, arXiv:2206.07697, eq. 10.
"""

import functools
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_slices, lmax_of, num_coefficients
from equivariant_jax.euclidean.quadrature import sphere_quadrature
from equivariant_jax.euclidean.symmetric_contraction import contraction_variance

__all__ = ["gaunt_contraction", "gaunt_paths"]

Path = tuple[int, ...]


@functools.cache
def _half_grid(lmax: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Harmonics `[(lmax+1)**2, G/2]` and weights `[G/2]` (of both points of a pair) on one point of each pair."""
    rule = sphere_quadrature(degree)
    half = len(rule.weights) // 2
    return sphere_table(rule.points[:half], lmax).T, 2 * rule.weights[:half]


@functools.cache
def _path_scale(path: Path, lmax: int, degree: int) -> float:
    """Standard deviation of a path's result for standard normal inputs; zero if the path does not exist."""
    order, slices = len(path), degree_slices(lmax)
    harmonics, weights = _half_grid(max(lmax, degree), sum(path) + degree)
    if (sum(path) + degree) % 2:
        return 0.0
    letters = "abcdefgh"[:order]
    blocks = [harmonics[l * l : (l + 1) ** 2] for l in (*path, degree)]
    spec = ",".join(f"{letter}g" for letter in (*letters, "z")) + f",g->{letters}z"
    block = np.einsum(spec, *blocks, weights, optimize=True)
    places = set(itertools.permutations(path))
    full = np.zeros((num_coefficients(lmax),) * order + (2 * degree + 1,))
    for place in places:
        # The block belongs to the sorted path; its axes follow the degrees.
        axes = [0] * order
        left = list(range(order))
        for target, l in enumerate(place):
            source = next(i for i in left if path[i] == l)
            left.remove(source)
            axes[target] = source
        full[tuple(slices[l] for l in place)] = block.transpose(*axes, order) / len(places)
    return math.sqrt(max(float(contraction_variance(full[..., None], order)[0]), 0.0))


@functools.cache
def gaunt_paths(lmax: int, lmax_out: int, order: int) -> tuple[tuple[tuple[Path, ...], ...], ...]:
    """Lists the paths of a contraction.

    Args:
      lmax: largest degree of the inputs.
      lmax_out: largest degree of the result.
      order: highest power.

    Returns:
      For each degree `0..lmax_out`, for each order `1..order`, the sorted degrees of each path; weights of
      `gaunt_contraction` stand in this order.

    Example:
      >>> gaunt_paths(2, 0, 2)
      ((((0,),), ((0, 0), (1, 1), (2, 2))),)
    """
    return tuple(
        tuple(
            tuple(
                path
                for path in itertools.combinations_with_replacement(range(lmax + 1), nu)
                if _path_scale(path, lmax, degree) > 1e-6
            )
            for nu in range(1, order + 1)
        )
        for degree in range(lmax_out + 1)
    )


def _weighted_sum(paths: dict[Path, Array], fields: list[Array], products: dict[Path, Array]) -> Array:
    """`sum_path w[path] f_l1 .. f_lnu` by Horner's rule: factors that paths share are multiplied once."""
    grouped: dict[Path, list[tuple[int, Array]]] = {}
    for path, weight in paths.items():
        grouped.setdefault(path[:-1], []).append((path[-1], weight))
    total: Any = 0.0
    for head, tails in grouped.items():
        inner = functools.reduce(jnp.add, [weight[None] * fields[l] for l, weight in tails])
        if head and head not in products:
            products[head] = functools.reduce(jnp.multiply, [fields[l] for l in head])
        total = total + (products[head] * inner if head else inner)
    return total


def gaunt_contraction(x: Array, weights: Array, *, lmax_out: int, order: int, precision=lax.Precision.HIGHEST) -> Array:
    """Sums all many-body Gaunt products of a feature up to an order, each with a weight.

    Args:
      x: coefficients, shape `[..., (lmax + 1)**2, channels]`, float.
      weights: shape `[..., paths, channels]`, leading axes those of `x`, dtype of `x`; paths of degree 0 (order 1, 2,
        ...), then of degree 1, and so on, as `gaunt_paths` lists them. Each path has unit variance for independent
        standard normal inputs.
      lmax_out: static; largest degree of the result, at most `lmax`.
      order: static; highest power.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> count = sum(len(paths) for degree in gaunt_paths(2, 1, 3) for paths in degree)
      >>> gaunt_contraction(jnp.ones((5, 9, 4)), jnp.ones((5, count, 4)), lmax_out=1, order=3).shape
      (5, 4, 4)
    """
    lmax = lmax_of(x.shape[-2])
    if lmax_out > lmax or lmax_out < 0 or order < 1:
        raise ValueError(f"gaunt_contraction got lmax_out={lmax_out}, order={order} for degrees up to {lmax}.")
    listed = gaunt_paths(lmax, lmax_out, order)
    count = sum(len(paths) for by_order in listed for paths in by_order)
    if weights.shape != (*x.shape[:-2], count, x.shape[-1]):
        raise ValueError(
            f"gaunt_contraction got x {x.shape} and weights {weights.shape}; expected weights "
            f"{(*x.shape[:-2], count, x.shape[-1])}."
        )
    harmonics, rule = _half_grid(lmax, order * lmax + lmax_out)
    first = jnp.moveaxis(x, -2, 0)
    flat = first.reshape(first.shape[0], -1)

    def on_grid(l: int) -> Array:
        table = np.asarray(harmonics[l * l : (l + 1) ** 2].T, x.dtype)
        values = jnp.matmul(table, flat[l * l : (l + 1) ** 2], precision=precision)
        return values.reshape(-1, *first.shape[1:])

    fields = [on_grid(l) for l in range(lmax + 1)]
    found, at, products = [], 0, {}
    for degree, by_order in enumerate(listed):
        paths = {}
        linear: Array = jnp.zeros((), x.dtype)
        for nu, some in enumerate(by_order, start=1):
            for path in some:
                scale = np.asarray(1 / _path_scale(path, lmax, degree), x.dtype)
                weight = jnp.moveaxis(weights, -2, 0)[at] * scale
                at += 1
                if nu == 1:  # the feature itself, without a grid
                    linear = weight[None] * first[degree * degree : (degree + 1) ** 2]
                else:
                    paths[path] = weight
        out = jnp.zeros((2 * degree + 1, *first.shape[1:]), x.dtype) + linear
        if paths:
            field = _weighted_sum(paths, fields, products)
            table = np.asarray(harmonics[degree * degree : (degree + 1) ** 2] * rule, x.dtype)
            out = out + jnp.matmul(table, field.reshape(field.shape[0], -1), precision=precision).reshape(out.shape)
        found.append(out)
    return jnp.moveaxis(jnp.concatenate(found), 0, -2)
