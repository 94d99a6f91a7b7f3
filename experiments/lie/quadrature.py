r"""Integrals over SL(2) and GL+(2) by quadrature, in polar and in Iwasawa coordinates, for functions that decay fast.

Everything is float64 and wants 64-bit types enabled. Polar: the trace form gives `dX = 2 r dr dphi` for
`X = r [[cos phi, sin phi], [sin phi, -cos phi]]`; GL+(2) has `c I` more, with `dX` times `sqrt(2) dc`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array
from equivariant_jax.lie import haar_log_density_iwasawa, haar_log_density_polar, polar_exp, rotation_exp

__all__ = ["SHIFTS", "bump", "iwasawa_integral", "polar_integral"]

# Group elements that integrals must not notice.
SHIFTS = {
    "identity": np.eye(2),
    "shear": np.array([[1.0, 0.5], [0.0, 1.0]]),
    "stretch": np.diag([2.0, 0.5]),
    "rotation": np.array([[0.6, -0.8], [0.8, 0.6]]),
}


def bump(shift: np.ndarray) -> Callable[[Array], Array]:
    """A smooth function of matrices around `shift`, `[..., n, n]` to `[...]`, that decays fast in every direction."""

    def f(g: Array) -> Array:
        d = g - jnp.asarray(np.broadcast_to(shift, g.shape))
        return jnp.exp(-1.5 * jnp.sum(d * d, axis=(-1, -2)))

    return f


def polar_integral(
    f: Callable[[Array], Array],
    *,
    weighted: bool = True,
    points: tuple[int, int, int] = (160, 64, 64),
    reach: float = 3.2,
    log_scales: np.ndarray | None = None,
) -> float:
    """Integrates by the Haar measure: the radius by Gauss-Legendre, all else by the trapezoidal rule.

    Args:
      f: smooth function, `[..., 2, 2]` to `[...]`.
      weighted: whether the density of the Haar measure is used; False integrates `dX dR`.
      points: of radius, direction and rotation.
      reach: largest radius.
      log_scales: evenly spaced `c`, for GL+(2); None for SL(2).

    Returns:
      The integral.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points[0])
    radius, weights = 0.5 * reach * (nodes + 1), 0.5 * reach * weights
    phi, theta = (2 * np.pi * np.arange(count) / count for count in points[1:])
    x = np.stack([np.stack([np.cos(phi), np.sin(phi)], -1), np.stack([np.sin(phi), -np.cos(phi)], -1)], axis=-2)
    x = jnp.asarray(radius[:, None, None, None] * x)
    density = jnp.exp(haar_log_density_polar(x)) if weighted else jnp.ones(x.shape[:2])
    share = density * jnp.asarray(2 * radius * weights)[:, None] * (2 * np.pi / points[1] / points[2])

    @jax.jit
    def at(angle: Array, scale: Array) -> Array:
        g = jnp.exp(scale) * polar_exp(x, jnp.full((*x.shape[:2], 1), angle))
        return jnp.sum(f(g) * share)

    scales, step = (np.zeros(1), 1.0) if log_scales is None else (log_scales, np.diff(log_scales)[0] * np.sqrt(2.0))
    return step * sum(float(at(jnp.asarray(a), jnp.asarray(c))) for a in theta for c in scales)


def iwasawa_integral(
    f: Callable[[Array], Array],
    *,
    points: tuple[int, int, int] = (64, 200, 400),
    reach: tuple[float, float] = (3.5, 14.0),
) -> float:
    """Integrates over SL(2) in the coordinates K D N, trapezoidal in all three, dK of total mass one.

    Args:
      f: smooth function, `[..., 2, 2]` to `[...]`.
      points: of rotation, diagonal and shear.
      reach: largest logarithm of the diagonal, and of the scaled shear.

    Returns:
      The integral, in another unit than `polar_integral`'s.
    """
    theta = 2 * np.pi * np.arange(points[0]) / points[0]
    t = np.linspace(-reach[0], reach[0], points[1])
    # N is scaled by the diagonal, u = e^t n, so that the grid follows the function.
    u = np.linspace(-reach[1], reach[1], points[2])
    n = u[None] * np.exp(-t)[:, None]
    upper = np.stack([np.stack([np.ones_like(n), n], -1), np.stack([np.zeros_like(n), np.ones_like(n)], -1)], -2)
    log_diagonal = jnp.asarray(np.stack([t, -t], axis=-1))
    density = jnp.exp(haar_log_density_iwasawa(log_diagonal) - jnp.asarray(t))[:, None]

    @jax.jit
    def at(angle: Array) -> Array:
        k = rotation_exp(jnp.full((1, 1, 1), angle), 2)
        return jnp.sum(f((k * jnp.exp(log_diagonal)[:, None, None, :]) @ jnp.asarray(upper)) * density)

    return sum(float(at(jnp.asarray(a))) for a in theta) * (t[1] - t[0]) * (u[1] - u[0]) / points[0]
