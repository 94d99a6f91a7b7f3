"""Reductions of ragged groups (neighbourhoods, graphs, sets) stored flat: one value row, one segment index each.

All functions take `mask` (True = real) so that padding changes neither a result nor a gradient, return zeros for empty
segments, and have finite gradients there. Half-precision data is accumulated in float32 and cast back.

Law: for every permutation `p` of the rows, `segment_op(data[p], ids[p]) == segment_op(data, ids)`.
"""

import jax
import jax.numpy as jnp

from equivariant_jax.core.typing import Array

__all__ = [
    "segment_count",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_norm",
    "segment_softmax",
    "segment_std",
    "segment_sum",
]


def _rows(flags: Array, data: Array) -> Array:
    # A `[n]` vector made to broadcast against `[n, ...]` without rank promotion.
    return flags.reshape(flags.shape + (1,) * (data.ndim - 1))


def _accumulator(dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if dtype in (jnp.bfloat16, jnp.float16) else jnp.dtype(dtype)


def _check(name: str, data: Array, segment_ids: Array, mask: Array | None) -> None:
    if data.ndim < 1 or segment_ids.ndim != 1 or segment_ids.shape[0] != data.shape[0]:
        raise ValueError(
            f"{name} got data of shape {data.shape} and segment_ids of shape {segment_ids.shape}; expected data "
            "`[n, ...]` and segment_ids `[n]`. For a batch, use jax.vmap or offset the ids."
        )
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(f"{name} got segment_ids of dtype {segment_ids.dtype}; expected integers.")
    if mask is not None and (mask.shape != segment_ids.shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"{name} got mask of shape {mask.shape} and dtype {mask.dtype}; expected bool of shape "
            f"{segment_ids.shape} (True = real)."
        )


def segment_sum(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Sums rows by segment.

    Args:
      data: rows, shape `[n, ...]`, float or integer.
      segment_ids: segment of each row, shape `[n]`, integer in `[0, num_segments)`; rows outside are dropped.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Sums of shape `[num_segments, ...]`, dtype of `data`; zero for empty segments.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> segment_sum(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 0, 2]), 3).tolist()
      [3.0, 0.0, 4.0]
    """
    data, segment_ids = jnp.asarray(data), jnp.asarray(segment_ids)
    _check("segment_sum", data, segment_ids, mask)
    dtype = data.dtype
    data = data.astype(_accumulator(dtype))
    if mask is not None:
        data = jnp.where(_rows(mask, data), data, jnp.zeros((), data.dtype))
    out = jax.ops.segment_sum(data, segment_ids, num_segments, indices_are_sorted=indices_are_sorted)
    return out.astype(dtype)


def segment_count(
    segment_ids: Array, num_segments: int, *, mask: Array | None = None, indices_are_sorted: bool = False
) -> Array:
    """Counts the real rows of each segment.

    Args:
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Counts, shape `[num_segments]`, int32.
    """
    segment_ids = jnp.asarray(segment_ids)
    ones = jnp.ones(segment_ids.shape, jnp.int32)
    return segment_sum(ones, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)


def segment_mean(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Averages real rows by segment; zero, with zero gradient, for empty segments.

    Args:
      data: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Means of shape `[num_segments, ...]`, dtype of `data`.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> segment_mean(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 0, 2]), 3).tolist()
      [1.5, 0.0, 4.0]
    """
    data = jnp.asarray(data)
    dtype = data.dtype
    data = data.astype(_accumulator(dtype))
    total = segment_sum(data, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    count = segment_count(segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    return (total / _rows(jnp.maximum(count, 1).astype(total.dtype), total)).astype(dtype)


def _segment_extreme(name, op, data, segment_ids, num_segments, mask, indices_are_sorted, sign):
    data, segment_ids = jnp.asarray(data), jnp.asarray(segment_ids)
    _check(name, data, segment_ids, mask)
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise ValueError(f"{name} got data of dtype {data.dtype}; expected floating point.")
    if mask is not None:
        data = jnp.where(_rows(mask, data), data, jnp.full((), sign * jnp.inf, data.dtype))
    out = op(data, segment_ids, num_segments, indices_are_sorted=indices_are_sorted)
    filled = segment_count(segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted) > 0
    return jnp.where(_rows(filled, out), out, jnp.zeros((), out.dtype))


def segment_max(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Maximum of real rows by segment; zero for empty segments.

    Args:
      data: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Maxima of shape `[num_segments, ...]`, dtype of `data`.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    op = jax.ops.segment_max
    return _segment_extreme("segment_max", op, data, segment_ids, num_segments, mask, indices_are_sorted, -1)


def segment_min(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Minimum of real rows by segment; zero for empty segments.

    Args:
      data: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Minima of shape `[num_segments, ...]`, dtype of `data`.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    op = jax.ops.segment_min
    return _segment_extreme("segment_min", op, data, segment_ids, num_segments, mask, indices_are_sorted, 1)


def segment_softmax(
    logits: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Softmax over the real rows of each segment; padding rows get exactly zero.

    Args:
      logits: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Weights of shape `[n, ...]`, dtype of `logits`, that sum to one over each non-empty segment.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> w = segment_softmax(jnp.zeros(3), jnp.array([0, 0, 1]), 2)
      >>> w.tolist()
      [0.5, 0.5, 1.0]
    """
    logits, segment_ids = jnp.asarray(logits), jnp.asarray(segment_ids)
    dtype = logits.dtype
    x = logits.astype(_accumulator(dtype))
    if mask is not None:
        x = jnp.where(_rows(mask, x), x, jnp.zeros((), x.dtype))
    top = segment_max(x, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    top = jax.lax.stop_gradient(top)
    shifted = x - top[segment_ids]
    if mask is not None:
        # A padding row may lie far above its segment's maximum, which is taken over real rows only.
        shifted = jnp.where(_rows(mask, x), shifted, jnp.zeros((), x.dtype))
    weights = jnp.exp(shifted)
    total = segment_sum(weights, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    safe = jnp.where(total > 0, total, jnp.ones((), total.dtype))
    out = weights / safe[segment_ids]
    if mask is not None:
        out = jnp.where(_rows(mask, out), out, jnp.zeros((), out.dtype))
    return out.astype(dtype)


def segment_std(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
    epsilon: float = 1e-5,
) -> Array:
    r"""Standard deviation of real rows by segment, $\sqrt{\mathrm{var} + \epsilon} - \sqrt{\epsilon}$.

    The two-pass form is used: a difference of squares loses all digits in float32 when the mean is large. The offset
    keeps the gradient finite where all rows are equal, and the value there exactly zero.

    Args:
      data: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.
      epsilon: variance below which the root is rounded off, in squared units of `data`.

    Returns:
      Population standard deviations, shape `[num_segments, ...]`, dtype of `data`; zero for empty segments.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    data, segment_ids = jnp.asarray(data), jnp.asarray(segment_ids)
    dtype = data.dtype
    x = data.astype(_accumulator(dtype))
    if mask is not None:
        x = jnp.where(_rows(mask, x), x, jnp.zeros((), x.dtype))
    mean = segment_mean(x, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    square = (x - mean[segment_ids]) ** 2
    variance = segment_mean(square, segment_ids, num_segments, mask=mask, indices_are_sorted=indices_are_sorted)
    floor = jnp.asarray(epsilon, variance.dtype)
    return (jnp.sqrt(variance + floor) - jnp.sqrt(floor)).astype(dtype)


def segment_norm(
    data: Array,
    segment_ids: Array,
    num_segments: int,
    *,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
) -> Array:
    """Euclidean norm of real rows by segment, with zero gradient where it vanishes.

    Args:
      data: rows, shape `[n, ...]`, float.
      segment_ids: segment of each row, shape `[n]`, integer.
      num_segments: static number of segments.
      mask: True where a row is real, shape `[n]`, bool; default all.
      indices_are_sorted: static; promise that `segment_ids` do not decrease.

    Returns:
      Norms of shape `[num_segments, ...]`, dtype of `data`.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    data = jnp.asarray(data)
    dtype = data.dtype
    x = data.astype(_accumulator(dtype))
    if mask is not None:
        x = jnp.where(_rows(mask, x), x, jnp.zeros((), x.dtype))
    total = segment_sum(x**2, segment_ids, num_segments, indices_are_sorted=indices_are_sorted)
    positive = total > 0
    root = jnp.sqrt(jnp.where(positive, total, jnp.ones((), total.dtype)))
    return jnp.where(positive, root, jnp.zeros((), total.dtype)).astype(dtype)
