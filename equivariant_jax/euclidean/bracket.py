r"""The Poisson bracket on the sphere: the antisymmetric product that holds the paths which the Gaunt product lacks.

  {f, g} = r . (grad f x grad g) = (f_th g_ph - f_ph g_th) / sin(th)

is again a function on the sphere, of degree at most `L1 + L2 - 1`. In terms of Clebsch-Gordan blocks of unit norm,

  z_{l3} = sum_{l1, l2} A(l1, l2, l3) [x_{l1} (x) y_{l2}]_{l3}   over l1 + l2 + l3 odd,
  A = sqrt(l1 (l1+1) l2 (l2+1) (2l1+1)(2l2+1)(2l3+1) / (4 pi)) |3j(l1 l2 l3; 1 -1 0)|,

and no odd path vanishes: Gaunt product and bracket together have every Clebsch-Gordan path exactly once. At degree one
it is the vector cross product. It runs on the same grids as the Gaunt product, with two components of the gradient in
place of one value.

Laws: `{D x, D y} == D {x, y}` for rotations; under inversion natural times natural gives pseudo (see `gaunt`);
`{x, y} == -{y, x}`; the integral of `{f, g} h` is antisymmetric in its three arguments.

References: the bracket is classical (area-preserving flows); vector spherical harmonics restore the same paths in
arXiv:2602.21466 and antisymmetric closed coefficients are in arXiv:2603.08630.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.bilinear import DegreeWeights, apply_to_rows, check_degree_weights, scale_degrees
from equivariant_jax.euclidean.irreps import degree_index, lmax_of
from equivariant_jax.euclidean.method_choice import BracketMethod, choose_bracket_method
from equivariant_jax.euclidean.reflections import GENERATORS, Fields, ReflectionGrid, multiply_classes
from equivariant_jax.euclidean.separable import SeparableGrid

__all__ = ["spherical_poisson_bracket"]

METHODS = ("auto", *GENERATORS, "separable")


@functools.cache
def _path_variance(lmax1: int, lmax2: int, lmax_out: int) -> np.ndarray:
    # Variance of each output degree for independent inputs of variance 1 / (l (l + 1)). The bracket of two independent
    # random fields has the correlation a1 c2 + c1 a2 between points at an angle of cosine t, where a and c are the
    # correlations of a gradient along and across the arc between them; its Legendre coefficients are the variances.
    degree = lmax1 + lmax2 + lmax_out
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    polynomials = np.polynomial.legendre.legvander(nodes, max(lmax1, lmax2, lmax_out))
    # For a field of degree l: (2l+1)/(4 pi) (t P' - (1-t^2) P'') and (2l+1)/(4 pi) P', over l(l+1).
    along, across = [], []
    for l in range(max(lmax1, lmax2) + 1):
        p = np.polynomial.legendre.Legendre.basis(l)
        factor = (2 * l + 1) / (4 * np.pi) / max(l * (l + 1), 1)
        first, second = p.deriv(1)(nodes), p.deriv(2)(nodes)
        along.append(factor * (nodes * first - (1 - nodes**2) * second))
        across.append(factor * first)
    a1, c1 = np.sum(along[: lmax1 + 1], axis=0), np.sum(across[: lmax1 + 1], axis=0)
    a2, c2 = np.sum(along[: lmax2 + 1], axis=0), np.sum(across[: lmax2 + 1], axis=0)
    correlation = a1 * c2 + c1 * a2
    return 2 * np.pi * (weights * correlation) @ polynomials[:, : lmax_out + 1]


def _bracket_scales(lmax1: int, lmax2: int, lmax_out: int, normalization: str):
    if normalization == "integral":
        return None, None, None
    if normalization not in ("norm", "component"):
        raise ValueError(f'normalization must be "integral", "norm" or "component", got {normalization!r}.')

    def level(lmax: int) -> np.ndarray:
        l = np.arange(lmax + 1)
        return np.where(l > 0, 1 / np.sqrt(np.maximum(l * (l + 1), 1)), 0.0)

    if normalization == "norm":
        roots = [np.sqrt(2 * np.arange(l + 1) + 1) for l in (lmax1, lmax2, lmax_out)]
        return level(lmax1) / roots[0], level(lmax2) / roots[1], np.sqrt(4 * np.pi) / roots[2]
    variance = _path_variance(lmax1, lmax2, lmax_out)
    out = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    return level(lmax1), level(lmax2), out


def _difference(f: Fields, g: Fields) -> Fields:
    def subtract(a: Array | None, b: Array | None) -> Array | None:
        if a is None or b is None:
            return a if b is None else -b
        return a - b

    return tuple(subtract(a, b) for a, b in zip(f, g, strict=True))


def spherical_poisson_bracket(
    x: Array,
    y: Array,
    *,
    lmax_out: int | None = None,
    weights: DegreeWeights | None = None,
    method: BracketMethod = "auto",
    normalization: Literal["integral", "norm", "component"] = "integral",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Takes the Poisson bracket of two features as functions on the sphere, `z_k = int {f_x, f_y} Y_k dOm`.

    Args:
      x: coefficients, shape `[..., (L1 + 1)**2]`, float; channels are leading axes.
      y: coefficients, shape `[..., (L2 + 1)**2]`, dtype of `x`; leading axes broadcast.
      lmax_out: static; largest degree of the result, default `L1 + L2 - 1` (nothing is cut off), or 0 where that is
        negative.
      weights: None, or a tuple `(x, y, out)` of factors per degree, each None or of shape `[..., L + 1]`.
      method: static; "grid", "quadrant", "octant", "separable" or "auto", as in `gaunt_tensor_product`.
      normalization: static; path factor `A` of the module's page ("integral"), `|3j(l1 l2 l3; 1 -1 0)|` ("norm"), or
        `A / sqrt(l1 (l1+1) l2 (l2+1))` divided per output degree so that independent unit-variance inputs give unit
        variance ("component").
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2]`, dtype of `x`. Degree 0 is always zero when both inputs are equal, and
      zero inputs of degree 0 alone give zero.

    Raises:
      ValueError: if a coefficient axis is not a square, dtypes differ or an option is unknown.

    Example:
      >>> a, b = jnp.array([0.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0, 0.0])  # the vectors x and y
      >>> z = spherical_poisson_bracket(a, b) / jnp.sqrt(3 / (4 * jnp.pi))
      >>> [abs(round(float(v), 5)) for v in z]  # the vector z
      [0.0, 0.0, 0.0, 1.0]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x and y must be of one floating dtype, got {x.dtype} and {y.dtype}; cast one of them.")
    lmax1, lmax2 = lmax_of(x.shape[-1]), lmax_of(y.shape[-1])
    full = max(lmax1 + lmax2 - 1, 0)
    lmax_out = full if lmax_out is None else lmax_out
    if lmax_out < 0:
        raise ValueError(f"lmax_out must be 0 or more, got {lmax_out}.")
    x_weights, y_weights, out_weights = check_degree_weights(weights)
    x, y = scale_degrees(x, x_weights, "weights[0] (x)"), scale_degrees(y, y_weights, "weights[1] (y)")
    reached = min(lmax_out, full)
    scales = _bracket_scales(lmax1, lmax2, reached, normalization)
    if min(lmax1, lmax2) == 0:  # the gradient of a constant
        zero = jnp.zeros((*jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1]), (lmax_out + 1) ** 2), x.dtype)
        return zero + 0 * (jnp.sum(x) + jnp.sum(y))
    if method == "auto":
        method = choose_bracket_method(lmax1, lmax2, reached, x.size // x.shape[-1], x.dtype)
    degree = lmax1 + lmax2 + reached
    grid = SeparableGrid(degree) if method == "separable" else ReflectionGrid(degree, method)

    def body(x: Array, y: Array) -> Array:
        x, y = jnp.moveaxis(x, -1, 0), jnp.moveaxis(y, -1, 0)
        fields = [
            [grid.evaluate(v, scale=scale, part=part, precision=precision) for part in ("polar", "azimuthal")]
            for v, scale in ((x, scales[0]), (y, scales[1]))
        ]
        (f_polar, f_azimuthal), (g_polar, g_azimuthal) = fields
        bracket = _difference(multiply_classes(f_polar, g_azimuthal), multiply_classes(f_azimuthal, g_polar))
        return jnp.moveaxis(grid.project(bracket, reached, scale=scales[2], precision=precision), 0, -1)

    z = apply_to_rows(body, x, y, degree)
    if reached < lmax_out:
        missing = (lmax_out + 1) ** 2 - degree_index(reached).size
        z = jnp.pad(z, [(0, 0)] * (z.ndim - 1) + [(0, missing)])
    return scale_degrees(z, out_weights, "weights[2] (out)")
