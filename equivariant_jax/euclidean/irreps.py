"""Index tables of spherical-harmonic coefficients, and linear maps that act on each degree separately.

A feature of degree at most `lmax` has `(lmax + 1)**2` coefficients; the coefficient of degree `l` and order `m` stands
at index `l * l + l + m`, `m = -l..l` (e3nn's order). By Schur's lemma the linear maps between such features that
commute with every rotation are the ones that mix channels within a degree and leave the order `m` alone.

Law: `degree_linear(kernels, D @ x) == D @ degree_linear(kernels, x)` for `D` block diagonal in Wigner matrices.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array

__all__ = ["degree_index", "degree_linear", "degree_slices", "expand_degrees", "lmax_of", "num_coefficients"]


def num_coefficients(lmax: int) -> int:
    """Counts the coefficients of degrees `0..lmax`.

    Args:
      lmax: largest degree, static.

    Returns:
      `(lmax + 1)**2`.

    Raises:
      ValueError: if `lmax` is negative.

    Example:
      >>> num_coefficients(3)
      16
    """
    if lmax < 0:
        raise ValueError(f"lmax must be 0 or more, got {lmax}.")
    return (lmax + 1) ** 2


def lmax_of(size: int) -> int:
    """Reads the largest degree from the static size of a coefficient axis.

    Args:
      size: length of the axis.

    Returns:
      `lmax` with `(lmax + 1)**2 == size`.

    Raises:
      ValueError: if `size` is not the square of a positive integer.

    Example:
      >>> lmax_of(16)
      3
    """
    root = math.isqrt(max(size, 0))
    if root < 1 or root * root != size:
        raise ValueError(
            f"A coefficient axis has (lmax + 1)**2 entries (1, 4, 9, 16, ...), got {size}; pad missing degrees with "
            "zeros, or say which axis holds the coefficients."
        )
    return root - 1


def degree_slices(lmax: int) -> tuple[slice, ...]:
    """Gives the slice of each degree `0..lmax`.

    Args:
      lmax: largest degree, static.

    Returns:
      Tuple of `lmax + 1` slices; slice `l` has length `2l + 1`.

    Example:
      >>> degree_slices(1)
      (slice(0, 1, None), slice(1, 4, None))
    """
    num_coefficients(lmax)
    return tuple(slice(l * l, (l + 1) ** 2) for l in range(lmax + 1))


@functools.cache
def degree_index(lmax: int) -> np.ndarray:
    """Gives the degree of each coefficient.

    Args:
      lmax: largest degree, static.

    Returns:
      int32 array of shape `[(lmax + 1)**2]`, read-only.

    Example:
      >>> degree_index(2).tolist()
      [0, 1, 1, 1, 2, 2, 2, 2, 2]
    """
    table = np.repeat(np.arange(lmax + 1, dtype=np.int32), 2 * np.arange(lmax + 1) + 1)
    table.setflags(write=False)
    return table


def expand_degrees(weights: Array, *, axis: int = -1) -> Array:
    """Repeats one weight per degree into one weight per coefficient.

    Args:
      weights: shape `[..., lmax + 1, ...]` with the degrees on `axis`.
      axis: static; the axis of degrees.

    Returns:
      Array with `(lmax + 1)**2` entries on `axis`, dtype of `weights`.

    Example:
      >>> expand_degrees(jnp.array([1.0, 3.0])).tolist()
      [1.0, 3.0, 3.0, 3.0]
    """
    weights = jnp.asarray(weights)
    return jnp.take(weights, degree_index(weights.shape[axis] - 1), axis=axis)


def degree_linear(kernels: Array, x: Array) -> Array:
    """Mixes channels within each degree, `z_lm = x_lm @ kernels_l`.

    Args:
      kernels: shape `[lmax_kernel + 1, channels_in, channels_out]`, float.
      x: features, shape `[..., (lmax + 1)**2, channels_in]`, dtype of `kernels`, with `lmax <= lmax_kernel`.

    Returns:
      Array of shape `[..., (lmax + 1)**2, channels_out]`. Not scaled: draw `kernels` with variance `1 / channels_in`.

    Raises:
      ValueError: if channels do not fit or a degree has no kernel.

    Example:
      >>> degree_linear(jnp.ones((2, 3, 5)), jnp.ones((7, 4, 3))).shape
      (7, 4, 5)
    """
    lmax = lmax_of(x.shape[-2])
    if kernels.ndim != 3 or kernels.shape[1] != x.shape[-1] or kernels.shape[0] <= lmax:
        raise ValueError(
            f"degree_linear got kernels {kernels.shape} and x {x.shape}; expected kernels `[lmax + 1, channels_in, "
            f"channels_out]` with at least {lmax + 1} degrees and {x.shape[-1]} channels."
        )
    blocks = [
        jnp.matmul(x[..., block, :], kernels[l], precision=lax.Precision.HIGHEST)
        for l, block in enumerate(degree_slices(lmax))
    ]
    return jnp.concatenate(blocks, axis=-2)
