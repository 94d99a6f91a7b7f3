r"""Functions on the sphere split by their parity under reflections of the coordinate axes.

The reflections `x -> -x`, `y -> -y`, `z -> -z` generate a group of eight elements under which Lebedev's rules are
symmetric and every real harmonic is even or odd. Take a subgroup G of them: a function falls into |G| parity classes, a
class is known on the whole sphere once it is known on one point of each orbit of G, and

  (f g)_c = sum_a f_a g_{a xor c}.

So both transforms between coefficients and grid values split into |G| small matrix products that together do 1/|G| of
the work, for |G| products of classes at each point. Which subgroup is best depends on the degree: the antipodal map
alone ("grid"), four elements ("quadrant") or all eight ("octant").

Coefficients and grid values come first here and the batch last, `[(lmax + 1)**2, ...]` and `[points, ...]`: every
matrix product then has a constant of a few rows on the left and the whole batch on the right.

Law: `project(evaluate(x), lmax) == x` for a rule of degree `2 lmax`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.sphere import sphere_gradient_table, sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, lmax_of
from equivariant_jax.euclidean.quadrature import sphere_quadrature

__all__ = ["GENERATORS", "ReflectionGrid", "multiply_classes", "reflection_parities"]

# Reflections as bits: x is 4, y is 2, z is 1; 7 is the antipodal map.
GENERATORS: dict[str, tuple[int, ...]] = {"grid": (7,), "quadrant": (7, 2), "octant": (4, 2, 1)}

# Taking a component of the gradient changes the parity: dY/dth by y, (1/sin th) dY/dph by x and z.
SHIFTS = {"value": 0, "polar": 2, "azimuthal": 5}

Fields = tuple[Array | None, ...]


@functools.cache
def reflection_parities(lmax: int) -> np.ndarray:
    """Gives the parity of each harmonic under the three reflections, as bits (x is 4, y is 2, z is 1).

    Args:
      lmax: largest degree, static.

    Returns:
      int32 array of shape `[(lmax + 1)**2]`; a set bit means odd.

    Example:
      >>> reflection_parities(1).tolist()  # 1, x, y, z
      [0, 4, 2, 1]
    """
    l = degree_index(lmax)
    m = np.concatenate([np.arange(-degree, degree + 1) for degree in range(lmax + 1)])
    # (z + ix)^|m| has degree |m| in x and z together; its imaginary part (m < 0) is odd in x.
    odd_x = m < 0
    bits = 4 * odd_x + 2 * ((l - np.abs(m)) % 2) + (np.abs(m) - odd_x) % 2
    return bits.astype(np.int32)


def _character(bits: np.ndarray, generators: Sequence[int]) -> np.ndarray:
    # Index of the parity class: one bit for each generator.
    index = np.zeros_like(bits)
    for generator in generators:
        index = 2 * index + np.array([int(b & generator).bit_count() % 2 for b in bits], bits.dtype)
    return index


@functools.cache
def _orbits(degree: int, generators: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    # One point of each orbit, with the weight of the whole orbit.
    rule = sphere_quadrature(degree)
    points = np.round(rule.points, 12) + 0.0
    elements = {0}
    for generator in generators:
        elements |= {e ^ generator for e in elements}
    signs = np.array([[1 - 2 * (e >> 2 & 1), 1 - 2 * (e >> 1 & 1), 1 - 2 * (e & 1)] for e in sorted(elements)])
    chosen: dict[tuple, int] = {}
    weights: list[float] = []
    kept: list[int] = []
    for i, images in enumerate(np.round(points[:, None] * signs, 9) + 0.0):
        label = max(map(tuple, images.tolist()))
        if label not in chosen:
            chosen[label] = len(kept)
            kept.append(i)
            weights.append(0.0)
        weights[chosen[label]] += rule.weights[i]
    return rule.points[kept], np.array(weights)


@functools.cache
def _tables(lmax: int, degree: int, generators: tuple[int, ...], part: str) -> tuple[np.ndarray, tuple, np.ndarray]:
    # Values at the representatives [points, N], the coefficients of each class, and the weights of the orbits.
    points, weights = _orbits(degree, generators)
    if part == "value":
        table = sphere_table(points, lmax)
    else:
        table = sphere_gradient_table(points, lmax)[("polar", "azimuthal").index(part)]
    classes = _character(reflection_parities(lmax) ^ SHIFTS[part], generators)
    # int32: a 64-bit index would be traced differently with and without JAX's 64-bit mode.
    members = tuple(np.flatnonzero(classes == c).astype(np.int32) for c in range(2 ** len(generators)))
    return table, members, weights


def multiply_classes(f: Fields, g: Fields) -> Fields:
    """Multiplies two functions given by their parity classes, `h_c = sum_a f_a g_{a xor c}`.

    Args:
      f: arrays of shape `[points, ...]`, one for each class, or None where the class vanishes.
      g: likewise, shapes that broadcast.

    Returns:
      Tuple of as many arrays of shape `[points, ...]`.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> [None if h is None else h.item() for h in multiply_classes((one, None), (2 * one, 3 * one))]
      [2.0, 3.0]
    """
    products = []
    for c in range(len(f)):
        pairs = [(a, g[i ^ c]) for i, a in enumerate(f)]
        terms = [a * b for a, b in pairs if a is not None and b is not None]
        products.append(functools.reduce(jnp.add, terms) if terms else None)
    return tuple(products)


@dataclasses.dataclass(frozen=True)
class ReflectionGrid:
    """A Lebedev rule reduced by reflections, and the transforms between coefficients and parity classes on it.

    Attributes:
      degree: total degree that the rule integrates exactly.
      method: "grid", "quadrant" or "octant", a key of `GENERATORS`.
    """

    degree: int
    method: str = "octant"

    def evaluate(self, x: Array, *, scale: np.ndarray | None = None, part: str = "value", precision=None) -> Fields:
        """Evaluates coefficients on one point of each orbit.

        Args:
          x: coefficients, shape `[(lmax + 1)**2, ...]`, float.
          scale: NumPy factor per degree, shape `[lmax + 1]`, folded into the constants.
          part: static; "value", or a component of the gradient, "polar" or "azimuthal".
          precision: static; precision of the matrix products.

        Returns:
          One array `[points, ...]` for each class, None where no harmonic has that parity.
        """
        lmax = lmax_of(x.shape[0])
        table, members, _ = _tables(lmax, self.degree, GENERATORS[self.method], part)
        if scale is not None:
            table = table * scale[degree_index(lmax)]
        return tuple(
            _times(table[:, index], _rows(x, index), precision) if index.size and np.any(table[:, index]) else None
            for index in members
        )

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
        table, members, weights = _tables(lmax, self.degree, GENERATORS[self.method], "value")
        table = table * weights[:, None]
        if scale is not None:
            table = table * scale[degree_index(lmax)]
        some = next(field for field in fields if field is not None)
        parts = [
            jnp.zeros((index.size, *some.shape[1:]), some.dtype)
            if field is None
            else _times(table[:, index].T, field, precision)
            for field, index in zip(fields, members, strict=True)
            if index.size
        ]
        order = np.argsort(np.concatenate(members)).astype(np.int32)
        return _rows(jnp.concatenate(parts), order)


def _rows(x: Array, index: np.ndarray) -> Array:
    if index.size == x.shape[0] and np.all(index == np.arange(index.size)):
        return x
    return jnp.take(x, index, axis=0)


def _times(matrix: np.ndarray, x: Array, precision) -> Array:
    # [p, k] @ [k, ...]: the batch as one long axis.
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return jnp.matmul(matrix.astype(x.dtype), flat, precision=precision).reshape(matrix.shape[0], *x.shape[1:])
