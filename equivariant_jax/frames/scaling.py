r"""Classical multidimensional scaling: points that have given distances, from the n x n Gram matrix.

    B = -1/2 J D^2 J,   J = I - 1 1^T / n,   B = U diag(l) U^T, l descending,   H = U_k diag(sqrt(max(l_k, 0)))

Laws: distances of points in k dimensions are kept exactly, `|h_i - h_j| == D_ij`; H moves with permutations of the
points. It is defined up to signs of its columns, which `odd_signs` chooses, and a rotation among columns of equal
eigenvalues.

References: Torgerson 1952, "Multidimensional scaling: I. Theory and method"; Zhang, Wang, Zhang, Cui, Zhu 2021,
arXiv:2112.12345.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.linalg import safe_eigh, safe_sqrt
from equivariant_jax.core.typing import Array

__all__ = ["ScaledCoordinates", "classical_mds", "odd_signs", "pairwise_distances"]


def check_cloud(x: Array, mask: Array | None) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x: got {x.dtype} of shape {x.shape}; expected floating points [..., n, d], n and d positive."
        )
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}; expected bool {x.shape[:-1]}.")


def _pairs(mask: Array) -> Array:
    return mask[..., :, None] & mask[..., None, :]


def pairwise_distances(x: Array, mask: Array | None = None, *, squared: bool = False) -> Array:
    """Euclidean distances between all pairs, from differences: exact far from the origin, with safe gradients.

    Args:
      x: points, shape `[..., n, d]`, float, any unit of length.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      squared: static; whether to return squares.

    Returns:
      Distances, shape `[..., n, n]`, zero where a point is padding; dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> pairwise_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 5.0], [5.0, 0.0]]
    """
    check_cloud(x, mask)
    if mask is not None:
        x = jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))
    square = jnp.sum(jnp.square(x[..., :, None, :] - x[..., None, :, :]), axis=-1)
    if mask is not None:
        square = jnp.where(_pairs(mask), square, jnp.zeros((), x.dtype))
    return square if squared else safe_sqrt(square)


def odd_signs(h: Array, weight: Array) -> tuple[Array, Array]:
    """Signs of columns that make an odd statistic positive: the third moment, else the fifth, else the largest entry.

    The second and third are for moments that vanish to rounding. Multiplied by its sign, a column no longer depends on
    the sign that it came with.

    Args:
      h: centred coordinates, shape `[..., n, d]`, float32 or float64.
      weight: of the points, zero in padding, shape `[..., n]`, dtype of `h`.

    Returns:
      Signs, 1 or -1, and the absolute third moments of the standardised columns; shape `[..., d]` each, constants
      under differentiation. A column that is rounding beside the others has no moments.

    Example:
      >>> odd_signs(jnp.array([[-2.0], [1.0], [1.0]]), jnp.ones(3))[0].tolist()
      [-1.0]
    """
    h = lax.stop_gradient(h)
    zero, one = jnp.zeros((), h.dtype), jnp.ones((), h.dtype)
    total = jnp.sum(weight, axis=-1)[..., None]
    share = weight[..., None] / jnp.where(total > 0, total, one)[..., None]
    spread = jnp.sqrt(jnp.sum(share * jnp.square(h), axis=-2, keepdims=True))
    least = 64 * jnp.finfo(h.dtype).eps * jnp.max(spread, axis=-1, keepdims=True)
    flat = spread <= least.astype(h.dtype)
    u = jnp.where(flat, zero, h / jnp.where(flat, one, spread))
    third, fifth = (jnp.sum(share * u**power, axis=-2) for power in (3, 5))
    largest = jnp.argmax(jnp.where((weight > 0)[..., None], jnp.abs(u), -one), axis=-2)
    peak = jnp.take_along_axis(u, largest[..., None, :], axis=-2)[..., 0, :]
    rounding = jnp.asarray(1024 * jnp.finfo(h.dtype).eps, h.dtype)
    statistic = jnp.where(jnp.abs(fifth) > rounding, fifth, peak)
    statistic = jnp.where(jnp.abs(third) > rounding, third, statistic)
    return jnp.where(statistic < 0, -one, one), jnp.abs(third)


class ScaledCoordinates(NamedTuple):
    """What multidimensional scaling finds.

    Attributes:
      coordinates: H, shape `[..., n, k]`, zero in padding, columns by descending eigenvalue.
      eigenvalues: the k largest, descending, shape `[..., k]`.
      lost: fraction of the spectrum that is negative, `sum |l_neg| / sum |l|`, shape `[...]`: zero for distances of
        points in some Euclidean space, of any dimension.
    """

    coordinates: Array
    eigenvalues: Array
    lost: Array


def classical_mds(squared_distances: Array, mask: Array | None = None, k: int = 3) -> ScaledCoordinates:
    r"""Finds points with given distances: `H = U diag(sqrt(max(l, 0)))` of the k largest eigenvalues of `-1/2 J D^2 J`.

    For distances that are not Euclidean (of graphs, travel times) the negative part of the spectrum is dropped. Signs
    are canonical, as in `distance_coordinates`. Costs an n x n eigenproblem; for points use that function.

    Args:
      squared_distances: D squared entry by entry, shape `[..., n, n]`, float, symmetric.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      k: static; columns, at most n.

    Returns:
      `ScaledCoordinates`, dtype of the distances (computed in float32 at least).

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> line = jnp.array([[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]])
      >>> found = classical_mds(line, k=1)
      >>> abs(found.coordinates[:, 0] - found.coordinates[0, 0]).round().astype(int).tolist()
      [0, 1, 3]
    """
    shape, dtype = squared_distances.shape, squared_distances.dtype
    if len(shape) < 2 or shape[-1] != shape[-2] or not jnp.issubdtype(dtype, jnp.floating) or not 1 <= k <= shape[-1]:
        raise ValueError(
            f"got squared_distances {dtype} {shape} and k={k}; expected float [..., n, n] and 1 <= k <= n."
        )
    if mask is not None and (mask.shape != shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}; expected bool {shape[:-1]}.")
    square = squared_distances if dtype == jnp.float64 else squared_distances.astype(jnp.float32)
    real = jnp.ones(shape[:-1], bool) if mask is None else mask
    zero, one = jnp.zeros((), square.dtype), jnp.ones((), square.dtype)
    count = jnp.maximum(jnp.sum(real, axis=-1), 1).astype(square.dtype)[..., None, None]
    square = jnp.where(_pairs(real), square, zero)
    rows, columns = (jnp.sum(square, axis=axis, keepdims=True) / count for axis in (-1, -2))
    b = (square - rows - columns + jnp.sum(rows, axis=-2, keepdims=True) / count) / -2
    values, vectors = safe_eigh(jnp.where(_pairs(real), b, zero))
    magnitude = jnp.sum(jnp.abs(values), axis=-1)
    lost = jnp.sum(jnp.where(values < 0, -values, zero), axis=-1) / jnp.where(magnitude > 0, magnitude, one)
    top = jnp.flip(values, axis=-1)[..., :k]
    # What is rounding of the largest has no root worth a derivative.
    least = 8 * shape[-1] * jnp.finfo(square.dtype).eps * jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    root = safe_sqrt(jnp.where(top > least.astype(top.dtype), top, zero))
    h = jnp.flip(vectors, axis=-1)[..., :k] * root[..., None, :]
    h = jnp.where(real[..., None], h, zero)
    h = h * odd_signs(h, real.astype(h.dtype))[0][..., None, :]
    return ScaledCoordinates(h.astype(dtype), top.astype(dtype), lost.astype(dtype))
