r"""Frames that turn an edge onto the polar axis, and features seen in them.

In a frame whose polar axis `e_y` is the edge, what is left of the rotations are the turns about the edge, and maps that
commute with those are linear maps per order `m`: a sparse matrix in place of a tensor product (Passaro and Zitnick
2023, arXiv:2302.03655). `edge_frames` gives a rotation `R` with `R r / |r| = e_y` for each edge.

No choice of `R` is continuous over the whole sphere (it would comb the hairy ball), so there are two charts. On the
hemisphere `y >= 0` it is the shortest rotation, whose quaternion `(1 + y, u x e_y)` needs no angle and has norm
`sqrt(2 (1 + y)) >= sqrt(2)`; on the other one it is a fixed half turn about the x axis followed by the shortest
rotation of what that gives. Both are rational functions of the direction without a small denominator, so that the
derivatives of every order stay of order one, at the poles as well. Euler angles have derivatives that grow like
`1 / sin(theta)` there and spoil forces (fairchem, pull request 1771); one chart of shortest rotations has the same
trouble at `-e_y`; a random turn about the edge makes a model's output depend on a seed. On the boundary `y = 0` the two
frames differ by a turn about the edge, which a map that commutes with those turns does not see.

Laws: `edge_frames(r) @ r == |r| e_y`; the result is a rotation; for every rotation `Q` the matrix
`edge_frames(Q r) @ Q @ edge_frames(r).T` is a turn about `e_y`.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_normalize
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_slices, lmax_of, num_coefficients

__all__ = ["edge_frames", "frame_matrix", "order_index", "orders_first", "rotate_from_frame", "rotate_to_frame"]


def edge_frames(vectors: Array) -> Array:
    r"""Gives rotation matrices that take each vector's direction to the polar axis y.

    Args:
      vectors: shape `[..., 3]` in the order x, y, z, float, of any length.

    Returns:
      Matrices `R` of shape `[..., 3, 3]`, dtype of `vectors`, with `R @ vectors == |vectors| e_y`. A zero vector gets
      the identity, with zero derivatives.

    Raises:
      ValueError: if the last axis is not 3 or the dtype is not floating.

    Example:
      >>> (edge_frames(jnp.array([0.0, 0.0, -2.0])) @ jnp.array([0.0, 0.0, -2.0])).tolist()
      [0.0, 2.0, 0.0]
    """
    vectors = jnp.asarray(vectors)
    if vectors.ndim < 1 or vectors.shape[-1] != 3 or not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(f"edge_frames needs float vectors `[..., 3]`, got {vectors.shape} {vectors.dtype}.")
    x, y, z = jnp.moveaxis(safe_normalize(vectors), -1, 0)
    one, zero = jnp.ones_like(y), jnp.zeros_like(y)
    upper = y >= 0
    # Shortest rotation of (x, y, z): (1 + y, -z, 0, x). Of the half-turned (x, -y, -z), times the half turn (0, 1, 0,
    # 0): (-z, 1 - y, x, 0). At the zero vector the first is the identity.
    w = jnp.where(upper, one + y, -z)
    a = jnp.where(upper, -z, one - y)
    b = jnp.where(upper, zero, x)
    c = jnp.where(upper, x, zero)
    s = np.asarray(2, vectors.dtype) / (w * w + a * a + b * b + c * c)
    rows = [
        [one - s * (b * b + c * c), s * (a * b - w * c), s * (a * c + w * b)],
        [s * (a * b + w * c), one - s * (a * a + c * c), s * (b * c - w * a)],
        [s * (a * c - w * b), s * (b * c + w * a), one - s * (a * a + b * b)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def order_index(lmax: int, mmax: int | None = None) -> np.ndarray:
    """Lists the coefficients of order `|m| <= mmax`, degree by degree.

    Args:
      lmax: largest degree, static.
      mmax: largest order, static; None for all.

    Returns:
      int32 array of shape `[n]`, ascending indices into the `(lmax + 1)**2` coefficients.

    Example:
      >>> order_index(2, 1).tolist()
      [0, 1, 2, 3, 5, 6, 7]
    """
    mmax = lmax if mmax is None else mmax
    kept = [l * l + l + m for l in range(lmax + 1) for m in range(-min(l, mmax), min(l, mmax) + 1)]
    return np.array(kept, np.int32)


@functools.cache
def orders_first(lmax: int, mmax: int) -> np.ndarray:
    """Lists the coefficients of order `|m| <= mmax`, order by order: 0, then 1, -1, 2, -2, ..., degrees ascending.

    A map that commutes with turns about the edge acts on each order alone, on contiguous rows in this layout.

    Args:
      lmax: largest degree, static.
      mmax: largest order, static, at most `lmax`.

    Returns:
      int32 array of shape `[n]`, read-only, indices into the `(lmax + 1)**2` coefficients.

    Raises:
      ValueError: unless `0 <= mmax <= lmax`.

    Example:
      >>> orders_first(2, 1).tolist()
      [0, 2, 6, 3, 7, 1, 5]
    """
    if not 0 <= mmax <= lmax:
        raise ValueError(f"0 <= mmax <= lmax is needed, got mmax={mmax} and lmax={lmax}.")
    orders = [0, *(s * m for m in range(1, mmax + 1) for s in (1, -1))]
    table = np.array([l * l + l + m for m in orders for l in range(abs(m), lmax + 1)], np.int32)
    table.setflags(write=False)
    return table


def frame_matrix(wigner: Sequence[Array], mmax: int) -> Array:
    """Joins Wigner matrices into one matrix that rotates into the frame and sorts by order, see `orders_first`.

    One matrix product for each edge in place of one for each degree: more operations and, on CPU, half the time.

    Args:
      wigner: `lmax + 1` matrices of shapes `[..., 2l+1, 2l+1]`.
      mmax: static; largest order kept, at most `lmax`.

    Returns:
      Array `M` of shape `[..., n, (lmax + 1)**2]`: `M @ x` is `rotate_to_frame(x, wigner, mmax=mmax)` in the order of
      `orders_first(lmax, mmax)`, and `M^T @ y` rotates back.

    Example:
      >>> from equivariant_jax.core.representations import wigner_d
      >>> frame_matrix(wigner_d(edge_frames(jnp.ones((5, 3))), 2), 1).shape
      (5, 7, 9)
    """
    lmax = len(wigner) - 1
    size, lead = num_coefficients(lmax), wigner[0].ndim - 2
    rows = []
    for l, block in enumerate(degree_slices(lmax)):
        kept = _rows(wigner[l], l, mmax)
        rows.append(jnp.pad(kept, [(0, 0)] * (lead + 1) + [(block.start, size - block.stop)]))
    place = np.searchsorted(order_index(lmax, mmax), orders_first(lmax, mmax)).astype(np.int32)
    return jnp.take(jnp.concatenate(rows, axis=-2), place, axis=-2)


def _rows(matrix: Array, l: int, mmax: int | None) -> Array:
    # Rows of orders -mmax..mmax of the matrix of degree l.
    return matrix if mmax is None or mmax >= l else matrix[..., l - mmax : l + mmax + 1, :]


def rotate_to_frame(
    x: Array, wigner: Sequence[Array], *, mmax: int | None = None, precision=lax.Precision.HIGHEST
) -> Array:
    """Applies block-diagonal Wigner matrices, `y_l = D_l x_l`, and keeps the orders up to `mmax`.

    Args:
      x: coefficients, shape `[..., (lmax + 1)**2, channels]`, float.
      wigner: `lmax + 1` or more matrices of shapes `[..., 2l+1, 2l+1]` with the leading axes of `x`, dtype of `x`; from
        `core.representations.wigner_d(edge_frames(vectors), lmax)`.
      mmax: static; largest order kept, None for all.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., n, channels]`, dtype of `x`, with the `n` coefficients of `order_index(lmax, mmax)`.

    Raises:
      ValueError: if a degree of `x` has no matrix.

    Example:
      >>> from equivariant_jax.core.representations import wigner_d
      >>> up = wigner_d(edge_frames(jnp.array([1.0, 0.0, 0.0])), 1)
      >>> rotate_to_frame(jnp.array([[5.0], [2.0], [0.0], [0.0]]), up).round(4)[:, 0].tolist()
      [5.0, 0.0, 2.0, 0.0]
    """
    lmax = lmax_of(x.shape[-2])
    if len(wigner) <= lmax:
        raise ValueError(f"rotate_to_frame got {len(wigner)} matrices for degrees 0..{lmax}; pass one for each degree.")
    blocks = [
        jnp.matmul(_rows(wigner[l], l, mmax), x[..., block, :], precision=precision)
        for l, block in enumerate(degree_slices(lmax))
    ]
    return jnp.concatenate(blocks, axis=-2)


def rotate_from_frame(
    x: Array, wigner: Sequence[Array], *, mmax: int | None = None, precision=lax.Precision.HIGHEST
) -> Array:
    """Applies the transposes, `y_l = D_l^T x_l`, where orders above `mmax` are absent and count as zero.

    Args:
      x: coefficients in the frame, shape `[..., n, channels]`, float, in the order of `order_index(lmax, mmax)`.
      wigner: exactly `lmax + 1` matrices of shapes `[..., 2l+1, 2l+1]` with the leading axes of `x`, dtype of `x`.
      mmax: static; largest order of `x`, None for all.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax + 1)**2, channels]`, dtype of `x`. With all orders it undoes `rotate_to_frame`.

    Raises:
      ValueError: if `x` does not have the coefficients that `wigner` and `mmax` say.

    Example:
      >>> from equivariant_jax.core.representations import wigner_d
      >>> up = wigner_d(edge_frames(jnp.array([1.0, 0.0, 0.0])), 1)
      >>> rotate_from_frame(jnp.array([[5.0], [2.0]]), up, mmax=0).round(4)[:, 0].tolist()
      [5.0, 2.0, 0.0, 0.0]
    """
    lmax = len(wigner) - 1
    sizes = [2 * min(l, l if mmax is None else mmax) + 1 for l in range(lmax + 1)]
    if x.shape[-2] != sum(sizes):
        raise ValueError(
            f"rotate_from_frame got {x.shape[-2]} coefficients; degrees 0..{lmax} with orders up to {mmax} have "
            f"{sum(sizes)}."
        )
    starts = np.cumsum([0, *sizes]).tolist()
    blocks = [
        jnp.matmul(
            jnp.swapaxes(_rows(matrix, l, mmax), -1, -2), x[..., starts[l] : starts[l + 1], :], precision=precision
        )
        for l, matrix in enumerate(wigner)
    ]
    return jnp.concatenate(blocks, axis=-2)
