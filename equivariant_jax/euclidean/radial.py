r"""Radial bases of interatomic distances, and the smooth cut-off that switches an edge off.

Both are finite, with finite derivatives, at distance zero and vanish at the cut-off with `p - 1` continuous
derivatives, so energies and forces stay continuous when an atom enters or leaves a neighbourhood.

Reference: Gasteiger, Gross, Guennemann 2020, arXiv:2003.03123, eqs. 7 and 8.
"""

import math

import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array

__all__ = ["bessel_basis", "gaussian_basis", "polynomial_cutoff"]


def _sine_over(t: Array) -> Array:
    """`sin(t) / t` of any shape, with derivatives of every order that are right at zero.

    Not `jnp.sinc`: in jax 0.12 it evaluates a polynomial primitive that `shard_map` refuses.
    """
    small = jnp.abs(t) < 0.5
    square = jnp.where(small, t * t, jnp.zeros_like(t))
    series = jnp.zeros_like(t)
    for k in range(8, -1, -1):  # the next term, 0.25^9 / 19!, is below float64 rounding
        series = series * square + np.asarray((-1) ** k / math.factorial(2 * k + 1), t.dtype)
    safe = jnp.where(small, jnp.ones_like(t), t)
    return jnp.where(small, series, jnp.sin(safe) / safe)


def bessel_basis(distance: Array, num_bessel: int, r_max: float) -> Array:
    r"""Evaluates `sqrt(2 / r_max) sin(n pi r / r_max) / r` for `n = 1..num_bessel`.

    Args:
      distance: shape `[...]`, in angstrom, 0 or more, float.
      num_bessel: static; number of functions.
      r_max: static; cut-off in angstrom.

    Returns:
      Array of shape `[..., num_bessel]`, dtype of `distance`, in 1/angstrom^1.5 (orthonormal for the measure
      `r^2 dr` on `[0, r_max]`); the limit `sqrt(2 / r_max) n pi / r_max` at zero.

    Raises:
      ValueError: if `num_bessel` or `r_max` is not positive.

    Example:
      >>> [round(float(value), 3) for value in bessel_basis(jnp.array(0.0), 2, 5.0)]
      [0.397, 0.795]
    """
    if num_bessel < 1 or r_max <= 0:
        raise ValueError(f"bessel_basis needs num_bessel >= 1 and r_max > 0, got {num_bessel} and {r_max}.")
    distance = jnp.asarray(distance)
    dtype = distance.dtype
    order = np.arange(1, num_bessel + 1)
    phase = distance[..., None] * np.asarray(np.pi * order / r_max, dtype).reshape((1,) * distance.ndim + (-1,))
    limits = np.asarray(np.sqrt(2 / r_max) * np.pi * order / r_max, dtype).reshape((1,) * distance.ndim + (-1,))
    return _sine_over(phase) * limits


def polynomial_cutoff(distance: Array, r_max: float, p: int = 5) -> Array:
    r"""Evaluates the envelope `1 - (p+1)(p+2)/2 d^p + p(p+2) d^(p+1) - p(p+1)/2 d^(p+2)`, `d = r / r_max < 1`.

    Args:
      distance: shape `[...]`, in angstrom, float.
      r_max: static; cut-off in angstrom.
      p: static; 2 or more. Value, first and second derivative vanish at `r_max`.

    Returns:
      Array of shape `[...]`: 1 at zero, exactly 0 at and beyond `r_max`.

    Raises:
      ValueError: if `p < 2` or `r_max` is not positive.

    Example:
      >>> [round(float(value), 3) for value in polynomial_cutoff(jnp.array([0.0, 2.5, 5.0, 7.0]), 5.0)]
      [1.0, 0.773, 0.0, 0.0]
    """
    if p < 2 or r_max <= 0:
        raise ValueError(f"polynomial_cutoff needs p >= 2 and r_max > 0, got p={p} and r_max={r_max}.")
    distance = jnp.asarray(distance)
    reduced = distance / np.asarray(r_max, distance.dtype)
    c0, c1, c2 = (np.asarray(c, distance.dtype) for c in ((p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2))
    value = 1 - reduced**p * (c0 - reduced * (c1 - reduced * c2))
    return jnp.where(reduced < 1, value, jnp.zeros_like(value))


def gaussian_basis(distance: Array, num_basis: int, r_max: float) -> Array:
    r"""Evaluates Gaussians at equal distances, `exp(-(r - r_k)^2 / (2 (2 d)^2))` with `r_k = k d`, `r_K = r_max`.

    Args:
      distance: shape `[...]`, in angstrom, float.
      num_basis: static; number of functions, at least 2.
      r_max: static; cut-off in angstrom.

    Returns:
      Array of shape `[..., num_basis]`, dtype of `distance`.

    Raises:
      ValueError: if `num_basis < 2` or `r_max` is not positive.

    Example:
      >>> gaussian_basis(jnp.array(1.0), 3, 2.0).round(3).tolist()
      [0.8820000290870667, 1.0, 0.8820000290870667]
    """
    if num_basis < 2 or r_max <= 0:
        raise ValueError(f"gaussian_basis needs num_basis >= 2 and r_max > 0, got {num_basis} and {r_max}.")
    distance = jnp.asarray(distance)
    step = r_max / (num_basis - 1)
    centres = np.asarray(step * np.arange(num_basis), distance.dtype).reshape((1,) * distance.ndim + (-1,))
    return jnp.exp(np.asarray(-0.5 / (2 * step) ** 2, distance.dtype) * (distance[..., None] - centres) ** 2)
