"""Pooling over positions; maxima whose gradients are right under every compiler.

The gradient of `jnp.max` looks for the entries that equal the maximum. A compiler may compute those entries a second
time and round them otherwise; then none is equal, and the gradient is 0 / 0. These maxima remember the place.
"""

import math

import jax.numpy as jnp

from equivariant_jax.core.typing import Array

__all__ = ["global_max", "max_pool", "mean_pool"]


def global_max(x: Array, *, axes: int = 2) -> Array:
    """Maximum over the axes before the last; its gradient goes to the first of equal entries.

    Args:
      x: shape `[..., n_1, ..., n_axes, channels]`, float.
      axes: static; number of axes to reduce.

    Returns:
      Array of shape `[..., channels]`, dtype of `x`.

    Raises:
      ValueError: if `x` has too few axes, or there is nothing to reduce.

    Example:
      >>> global_max(jnp.arange(8.0).reshape(2, 2, 2)).tolist()
      [6.0, 7.0]
    """
    if axes < 1 or x.ndim < axes + 1 or 0 in x.shape[-axes - 1 : -1]:
        raise ValueError(f"global_max got shape {x.shape}; expected {axes} axes that are not empty before the last.")
    number = math.prod(x.shape[-axes - 1 : -1])
    flat = x.reshape(*x.shape[: -axes - 1], number, x.shape[-1])
    place = jnp.argmax(flat, axis=-2, keepdims=True)
    return jnp.take_along_axis(flat, place, axis=-2)[..., 0, :]


def _quarters(x: Array, axis: int, name: str) -> tuple[Array, Array, Array, Array]:
    """The four pixels of every 2 x 2 block."""
    axis = axis % x.ndim
    if axis + 1 >= x.ndim or min(x.shape[axis : axis + 2]) < 2:
        raise ValueError(f"{name} got shape {x.shape} and axis {axis}; expected at least 2 x 2 pixels there.")
    height, width = x.shape[axis] // 2, x.shape[axis + 1] // 2
    before = (slice(None),) * axis

    def part(i: int, j: int) -> Array:
        return x[(*before, slice(i, i + 2 * height - 1, 2), slice(j, j + 2 * width - 1, 2))]

    return part(0, 0), part(0, 1), part(1, 0), part(1, 1)


def max_pool(x: Array, *, axis: int = -3) -> Array:
    """Maximum over 2 x 2 pixels; an odd last row or column is dropped.

    Args:
      x: shape `[..., height, width, ...]`, float.
      axis: static; the axis of the height, the width follows it.

    Returns:
      Array with half of the height and the width, dtype of `x`.

    Raises:
      ValueError: if the image has less than two pixels in a direction.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1))[..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    a, b, c, d = _quarters(x, axis, "max_pool")
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def mean_pool(x: Array, *, axis: int = -3) -> Array:
    """Mean over 2 x 2 pixels; an odd last row or column is dropped.

    Args:
      x: shape `[..., height, width, ...]`, float.
      axis: static; the axis of the height, the width follows it.

    Returns:
      Array with half of the height and the width, dtype of `x`.

    Raises:
      ValueError: if the image has less than two pixels in a direction.

    Example:
      >>> mean_pool(jnp.arange(16.0).reshape(4, 4, 1))[..., 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    a, b, c, d = _quarters(x, axis, "mean_pool")
    return (a + b + c + d) / 4
