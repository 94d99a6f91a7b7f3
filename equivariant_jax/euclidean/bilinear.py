r"""What all products of two features share: leading axes, weights per degree, blocks of rows, recomputed grids.

A product is written for rows of coefficients. Here the leading axes of both operands are matched, on CPU the rows are
taken in blocks that stay in the cache, and each block is a `jax.checkpoint`: its derivatives of any order and in any
mode start again from the coefficients, so that no grid values are kept between the forward and the backward pass.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import expand_degrees, lmax_of

__all__ = ["DegreeWeights", "apply_to_rows", "check_degree_weights", "scale_degrees"]

# Factors per degree of the first operand, the second operand and the result; None for one.
DegreeWeights = tuple[Array | None, Array | None, Array | None]

# Rows of a block for each core: at least so many (64 to 256 are within a few per cent of each other for products of
# degree 16 to 64), more where the grid has few points. Up to so many points in all there is one block.
_ROWS, _POINTS, _ONE_BLOCK = 128, 2**14, 2**17


def check_degree_weights(weights: DegreeWeights | None) -> DegreeWeights:
    """Checks the form of the `weights` argument of a product.

    Args:
      weights: None, or a tuple of three entries, each None or an array `[..., degrees]` of any float dtype.

    Returns:
      The three entries.

    Raises:
      ValueError: if it is not a tuple of three.
    """
    if weights is None:
        return None, None, None
    if not isinstance(weights, tuple | list) or len(weights) != 3:
        raise ValueError(
            f"weights must be None or a tuple `(x, y, out)` of arrays per degree or None, got {type(weights).__name__}"
            + (f" of length {len(weights)}." if isinstance(weights, tuple | list) else ".")
        )
    return weights[0], weights[1], weights[2]


def scale_degrees(x: Array, weights: Array | None, name: str) -> Array:
    """Multiplies coefficients by one factor per degree.

    Args:
      x: shape `[..., (lmax + 1)**2]`, float.
      weights: shape `[..., lmax + 1]`, dtype of `x`, leading axes broadcast against those of `x`; None for one.
      name: what to call the weights in an error.

    Returns:
      Array of the shape of `x`.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if weights is None:
        return x
    lmax = lmax_of(x.shape[-1])
    weights = jnp.asarray(weights)
    if weights.ndim == 0 or weights.shape[-1] != lmax + 1 or weights.ndim > x.ndim:
        raise ValueError(
            f"{name} got shape {weights.shape}; expected `[..., {lmax + 1}]`, one weight per degree, with leading "
            f"axes that broadcast against {x.shape[:-1]}."
        )
    factors = expand_degrees(weights)
    return x * factors.reshape((1,) * (x.ndim - factors.ndim) + factors.shape)


def _block(rows: int, inner: int, degree: int) -> int:
    # Rows of a block, a divisor of `rows` where one is near; all rows off the CPU, where blocks would be launched one
    # after the other.
    if jax.default_backend() != "cpu":
        return rows
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    points = max((degree + 1) ** 2 // 3, 1)
    if rows * inner * points <= cores * _ONE_BLOCK:
        return rows
    target = max(1, max(_ROWS, _POINTS // points) * cores // max(inner, 1))
    if rows <= target:
        return rows
    near = [size for size in range(max(1, target // 2), 2 * target + 1) if rows % size == 0]
    if near:
        return min(near, key=lambda size: abs(size - target))
    return -(-rows // -(-rows // target))


def apply_to_rows(body: Callable[[Array, Array], Array], x: Array, y: Array, degree: int | None) -> Array:
    """Applies a product of coefficient arrays over broadcast leading axes.

    Args:
      body: maps `[rows, ..., N1]` and `[rows, ..., N2]`, of equal rank and with broadcasting inner axes, to
        `[rows, ..., N3]`.
      x: shape `[..., N1]`, float.
      y: shape `[..., N2]`, leading axes broadcast.
      degree: static; total degree of the grid, which decides how many rows fit the cache of a CPU core; None to take
        all rows at once.

    Returns:
      Array of shape `[..., N3]`.
    """
    # On CPU nothing large can be merged between the passes: they are separate loops, or the rows are few.
    body = jax.checkpoint(body, prevent_cse=jax.default_backend() != "cpu" or degree is None)
    rank = max(x.ndim, y.ndim)
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    y = y.reshape((1,) * (rank - y.ndim) + y.shape)
    leading = jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    # Axes that both have are rows; from the first one on that only one of them has, an operand is transformed once and
    # broadcast on the grid.
    shared = 0
    while shared < rank - 1 and x.shape[shared] == y.shape[shared]:
        shared += 1
    rows = 1
    for size in leading[:shared]:
        rows *= size
    inner = 1
    for size in leading[shared:]:
        inner *= size
    x, y = x.reshape(rows, *x.shape[shared:]), y.reshape(rows, *y.shape[shared:])
    block = rows if degree is None else _block(rows, inner, degree)
    if block == rows:
        out = body(x, y)
    else:
        count = -(-rows // block)
        if count * block > rows:
            x, y = (jnp.pad(v, [(0, count * block - rows)] + [(0, 0)] * (v.ndim - 1)) for v in (x, y))
        x, y = (v.reshape(count, block, *v.shape[1:]) for v in (x, y))
        out = lax.map(lambda pair: body(*pair), (x, y))
        out = out.reshape(count * block, *out.shape[2:])[:rows]
    return out.reshape(*leading, out.shape[-1])
