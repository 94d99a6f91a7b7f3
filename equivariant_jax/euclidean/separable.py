r"""Separable transforms on a Gauss-Legendre times equispaced grid, reduced by the reflections of all three axes.

`Y_lm(th, ph) = T_l^|m|(th) {sin; 1; cos}(m ph)`: a Legendre transform for each order `m`, then a discrete Fourier
transform over the azimuth, `O(lmax^3)` in all where a matrix over the whole grid costs `O(lmax^4)`. In each of the
eight parity classes of `reflections` the Legendre matrices meet only the northern nodes, and the azimuth only a quarter
of the circle, with sines or cosines of even or odd orders: all of the grid's symmetry is used.

The azimuths are offset by half a step and their number is a multiple of four, so no point lies on a mirror in x or z.

Law: `project(evaluate(x), lmax) == x` for a rule of degree `2 lmax`.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import legendre_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, lmax_of
from equivariant_jax.euclidean.reflections import Fields

__all__ = ["SeparableGrid"]


class _Class(NamedTuple):
    # One parity class: rows of the coefficients [orders, degrees], padded with `size`; Legendre factors
    # [orders, polar, degrees], zero where padded; azimuthal factors [azimuths, orders].
    rows: np.ndarray
    legendre: np.ndarray
    azimuthal: np.ndarray


@functools.cache
def _grid(degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Northern Gauss nodes (and the equator), their weights with those of their mirror images, and the azimuths of a
    # quarter of the circle; the weights include the azimuth's.
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    count = 4 * (degree // 4 + 1)
    north = nodes > -1e-12
    nodes, weights = nodes[north], weights[north] * np.where(nodes[north] > 1e-12, 2.0, 1.0)
    azimuth = 2 * np.pi * (np.arange(count // 4) + 0.5) / count
    return np.where(nodes > 1e-12, nodes, 0.0), weights * 2 * np.pi / count * 4, azimuth


def _class(lmax: int, degree: int, bits: int, part: str) -> _Class | None:
    # The harmonics whose (derivative's) parity is `bits`; orders of one parity, degrees of one parity for each.
    nodes, _, azimuth = _grid(degree)
    sine = np.sqrt(1 - nodes * nodes)
    legendre = legendre_table(nodes, lmax + 1)
    source = bits ^ {"value": 0, "polar": 2, "azimuthal": 5}[part]
    odd_x, odd_y, odd_z = source >> 2 & 1, source >> 1 & 1, source & 1
    orders = [m for m in range(lmax + 1) if (m - odd_x) % 2 == odd_z and m + odd_y <= lmax and (m > 0 or not odd_x)]
    if not orders:
        return None
    size = (lmax + 1) ** 2
    length = max(len(range(m + odd_y, lmax + 1, 2)) for m in orders)
    rows = np.full((len(orders), length), size, np.int32)
    factors = np.zeros((len(orders), nodes.size, length))
    angles = np.zeros((azimuth.size, len(orders)))
    for i, m in enumerate(orders):
        wave = np.sqrt(2.0 if m else 1.0) * (np.sin if odd_x else np.cos)(m * azimuth)
        if part == "azimuthal":
            wave = np.sqrt(2.0) * (np.cos(m * azimuth) if odd_x else -np.sin(m * azimuth))
        angles[:, i] = wave
        for j, l in enumerate(range(m + odd_y, lmax + 1, 2)):
            rows[i, j] = l * l + l + (-m if odd_x else m)
            if part == "value":
                factors[i, :, j] = sine**m * legendre[l, m]
            elif part == "azimuthal":
                factors[i, :, j] = m * sine ** (m - 1) * legendre[l, m]
            else:
                factors[i, :, j] = m * nodes * sine ** (m - 1) * legendre[l, m] - (
                    np.sqrt((l - m) * (l + m + 1)) * sine ** (m + 1) * legendre[l, m + 1] if l > m else 0.0
                )
    return _Class(rows, factors, angles)


@functools.cache
def _classes(lmax: int, degree: int, part: str) -> tuple[_Class | None, ...]:
    return tuple(_class(lmax, degree, bits, part) for bits in range(8))


def _scaled(factors: np.ndarray, rows: np.ndarray, lmax: int, scale: np.ndarray | None) -> np.ndarray:
    if scale is None:
        return factors
    return factors * np.append(scale[degree_index(lmax)], 0.0)[rows][:, None, :]


@dataclasses.dataclass(frozen=True)
class SeparableGrid:
    """A Gauss-Legendre times equispaced rule, and the transforms between coefficients and parity classes on it.

    Attributes:
      degree: total degree that the rule integrates exactly; any.
    """

    degree: int

    def evaluate(self, x: Array, *, scale: np.ndarray | None = None, part: str = "value", precision=None) -> Fields:
        """Evaluates coefficients on an eighth of the grid.

        Args:
          x: coefficients, shape `[(lmax + 1)**2, ...]`, float.
          scale: NumPy factor per degree, shape `[lmax + 1]`, folded into the constants.
          part: static; "value", or a component of the gradient, "polar" or "azimuthal".
          precision: static; precision of the matrix products.

        Returns:
          One array `[points, ...]` for each of the eight classes, None where no harmonic has that parity.
        """
        lmax = lmax_of(x.shape[0])
        batch = math.prod(x.shape[1:])
        flat = x.reshape(x.shape[0], batch)
        padded = jnp.concatenate([flat, jnp.zeros((1, batch), x.dtype)])
        fields: list[Array | None] = []
        for found in _classes(lmax, self.degree, part):
            if found is None:
                fields.append(None)
                continue
            factors = _scaled(found.legendre, found.rows, lmax, scale).astype(x.dtype)
            rows = jnp.take(padded, found.rows, axis=0)
            meridians = lax.dot_general(jnp.asarray(factors), rows, (((2,), (1,)), ((0,), (0,))), precision=precision)
            polar = factors.shape[1]
            values = jnp.matmul(
                found.azimuthal.astype(x.dtype),
                meridians.reshape(len(found.rows), polar * batch),
                precision=precision,
            )
            fields.append(values.reshape(len(found.azimuthal) * polar, *x.shape[1:]))
        return tuple(fields)

    def project(self, fields: Fields, lmax: int, *, scale: np.ndarray | None = None, precision=None) -> Array:
        """Projects a function, given by its parity classes, on the harmonics of degree at most `lmax`.

        Args:
          fields: one array `[points, ...]` for each class or None.
          lmax: static; largest degree kept.
          scale: NumPy factor per degree, shape `[lmax + 1]`, folded into the constants.
          precision: static; precision of the matrix products.

        Returns:
          Coefficients, shape `[(lmax + 1)**2, ...]`.
        """
        nodes, weights, azimuth = _grid(self.degree)
        some = next(field for field in fields if field is not None)
        batch = math.prod(some.shape[1:])
        parts, kept = [], []
        for field, found in zip(fields, _classes(lmax, self.degree, "value"), strict=True):
            if found is None:
                continue
            real = found.rows < (lmax + 1) ** 2
            kept.append(found.rows[real])
            if field is None:
                parts.append(jnp.zeros((int(real.sum()), *some.shape[1:]), some.dtype))
                continue
            rows = field.reshape(azimuth.size, nodes.size * batch)
            orders = jnp.matmul(found.azimuthal.T.astype(field.dtype), rows, precision=precision)
            orders = orders.reshape(len(found.rows), nodes.size, batch)
            factors = _scaled(found.legendre, found.rows, lmax, scale) * weights[:, None]
            out = lax.dot_general(
                jnp.asarray(factors.astype(field.dtype)), orders, (((1,), (1,)), ((0,), (0,))), precision=precision
            )
            out = out.reshape(found.rows.size, *some.shape[1:])
            parts.append(out if real.all() else jnp.take(out, np.flatnonzero(real).astype(np.int32), axis=0))
        order = np.argsort(np.concatenate(kept)).astype(np.int32)
        return jnp.take(jnp.concatenate(parts), order, axis=0)
