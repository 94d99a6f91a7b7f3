r"""Gaunt tensor products: products of functions on the sphere (Luo, Chen, Krishnapriyan, ICLR 2024).

For features `x, y` seen as functions `f_x, f_y` on the sphere, the product is `z_k = int f_x f_y Y_k dOm`. In terms of
Clebsch-Gordan blocks of unit Frobenius norm it is one block per output degree,

  z_{l3} = sum_{l1, l2} W(l1, l2, l3) [x_{l1} (x) y_{l2}]_{l3},
  W = sqrt((2l1+1)(2l2+1)(2l3+1)/(4 pi)) |3j(l1 l2 l3; 0 0 0)|,

which holds every path with `l1 + l2 + l3` even; the odd ones are in `bracket.spherical_poisson_bracket`. The routes to
these numbers agree to rounding and differ in cost:

- "grid", "quadrant", "octant": a Lebedev rule, `O(L^4)` in small matrix products, split by 1, 2 or 3 reflections;
- "separable": Legendre and Fourier matrices in turn on a Gauss grid, `O(L^3)`, any degree;
- "fourier": the paper's two-dimensional Fourier series with fast transforms, `O(L^3)`, the slowest in practice;
- "sparse": the sum over non-zero Gaunt coefficients, for the lowest degrees;
- "fused": one Pallas kernel for GPU and TPU in which grid values never reach memory;
- "auto": the fastest of those measured on this backend (`method_choice`).

Laws: `GTP(D x, D y) == D GTP(x, y)`. Call a feature natural if degree `l` has parity `(-1)^l` under inversion and
pseudo if `-(-1)^l`: natural times natural and pseudo times pseudo are natural, mixed ones pseudo. `int f_x f_y f_z` is
symmetric in its three arguments.

References: arXiv:2401.10216; Xie et al. 2025, arXiv:2506.13523 (grids instead of Fourier series).
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.bilinear import DegreeWeights, apply_to_rows, check_degree_weights, scale_degrees
from equivariant_jax.euclidean.fourier import fourier_product
from equivariant_jax.euclidean.gaunt_coefficients import sparse_product
from equivariant_jax.euclidean.irreps import degree_index, lmax_of
from equivariant_jax.euclidean.method_choice import ProductMethod, choose_method
from equivariant_jax.euclidean.reflections import GENERATORS, ReflectionGrid, multiply_classes
from equivariant_jax.euclidean.separable import SeparableGrid

__all__ = ["gaunt_tensor_product"]

ProductNormalization = Literal["integral", "norm", "component"]
Scales = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]
METHODS = ("auto", *GENERATORS, "separable", "fourier", "sparse", "fused")


@functools.cache
def _path_variance(lmax1: int, lmax2: int, lmax_out: int) -> np.ndarray:
    # Variance of each output degree for independent unit-variance inputs: sum (2l1+1)(2l2+1)/(4 pi) 3j(000)^2, with
    # 3j(000)^2 = 1/2 int P_l1 P_l2 P_l3 by Gauss-Legendre quadrature.
    nodes, weights = np.polynomial.legendre.leggauss((lmax1 + lmax2 + lmax_out) // 2 + 1)
    table = np.polynomial.legendre.legvander(nodes, max(lmax1, lmax2, lmax_out))
    density1 = table[:, : lmax1 + 1] @ (2 * np.arange(lmax1 + 1) + 1)
    density2 = table[:, : lmax2 + 1] @ (2 * np.arange(lmax2 + 1) + 1)
    return 0.5 * (weights * density1 * density2) @ table[:, : lmax_out + 1] / (4 * np.pi)


def _product_scales(lmax1: int, lmax2: int, lmax_out: int, normalization: str) -> Scales:
    # Per-degree factors (on x, y and the output) that turn the integral into another normalisation.
    if normalization == "integral":
        return None, None, None
    if normalization == "norm":
        roots = [np.sqrt(2 * np.arange(l + 1) + 1) for l in (lmax1, lmax2, lmax_out)]
        return 1 / roots[0], 1 / roots[1], np.sqrt(4 * np.pi) / roots[2]
    if normalization == "component":
        variance = _path_variance(lmax1, lmax2, lmax_out)
        # Degrees that no path reaches (above lmax1 + lmax2) stay zero.
        return None, None, np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    raise ValueError(f'normalization must be "integral", "norm" or "component", got {normalization!r}.')


def _body(method: str, degree: int, lmax_out: int, scales: Scales, precision) -> Callable[[Array, Array], Array]:
    # The product of [rows, ..., N1] and [rows, ..., N2].
    if method == "fourier":
        return lambda x, y: fourier_product(x, y, lmax_out, scales, precision=precision)
    if method == "sparse":

        def sparse(x: Array, y: Array) -> Array:
            return jnp.moveaxis(sparse_product(jnp.moveaxis(x, -1, 0), jnp.moveaxis(y, -1, 0), lmax_out, scales), 0, -1)

        return sparse
    grid = SeparableGrid(degree) if method == "separable" else ReflectionGrid(degree, method)

    def on_grid(x: Array, y: Array) -> Array:
        f = grid.evaluate(jnp.moveaxis(x, -1, 0), scale=scales[0], precision=precision)
        g = grid.evaluate(jnp.moveaxis(y, -1, 0), scale=scales[1], precision=precision)
        z = grid.project(multiply_classes(f, g), lmax_out, scale=scales[2], precision=precision)
        return jnp.moveaxis(z, 0, -1)

    return on_grid


def gaunt_tensor_product(
    x: Array,
    y: Array,
    *,
    lmax_out: int | None = None,
    weights: DegreeWeights | None = None,
    method: ProductMethod = "auto",
    normalization: ProductNormalization = "integral",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Multiplies two features as functions on the sphere, `z_k = int f_x f_y Y_k dOm`.

    Derivatives of every order, forward and reverse, recompute the grid values: only `x` and `y` are kept.

    Args:
      x: coefficients, shape `[..., (L1 + 1)**2]`, float; channels are leading axes.
      y: coefficients, shape `[..., (L2 + 1)**2]`, dtype of `x`; leading axes broadcast.
      lmax_out: static; largest degree of the result, default `L1 + L2` (nothing is cut off).
      weights: None, or a tuple `(x, y, out)` of factors per degree, each None or of shape `[..., L + 1]` with leading
        axes that broadcast against those of `x`, `y` and the result.
      method: static; one of the routes of the module's page. They differ in speed only.
      normalization: static; path factor `W` of the module's page ("integral"), `|3j(l1 l2 l3; 0 0 0)|` ("norm"), or
        `W` divided per output degree so that independent unit-variance inputs give unit variance ("component").
      precision: static; precision of the matrix products, as in `jnp.matmul` (`lax.Precision`, or a
        `lax.DotAlgorithmPreset` such as `BF16_BF16_F32_X3` or `TF32_TF32_F32` where the backend has it). The default
        keeps full float32 on every backend.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2]`, dtype of `x`.

    Raises:
      ValueError: if a coefficient axis is not a square, dtypes differ or an option is unknown.

    Example:
      >>> x, y = jnp.array([2.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> z = gaunt_tensor_product(x, y, lmax_out=1)  # a constant times a vector
      >>> bool(jnp.allclose(z, jnp.array([0.0, 1.0, 2.0, 3.0]) * 2 / jnp.sqrt(4 * jnp.pi), atol=1e-6))
      True

    References:
      Luo et al. 2024, arXiv:2401.10216, section 3; Xie et al. 2025, arXiv:2506.13523 (grid form).
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x and y must be of one floating dtype, got {x.dtype} and {y.dtype}; cast one of them.")
    lmax1, lmax2 = lmax_of(x.shape[-1]), lmax_of(y.shape[-1])
    lmax_out = lmax1 + lmax2 if lmax_out is None else lmax_out
    if lmax_out < 0:
        raise ValueError(f"lmax_out must be 0 or more, got {lmax_out}.")
    scales = _product_scales(lmax1, lmax2, lmax_out, normalization)
    x_weights, y_weights, out_weights = check_degree_weights(weights)
    x, y = scale_degrees(x, x_weights, "weights[0] (x)"), scale_degrees(y, y_weights, "weights[1] (y)")
    # Degrees above L1 + L2 are empty and need no finer grid.
    reached = min(lmax_out, lmax1 + lmax2)
    if method == "auto":
        method = choose_method(lmax1, lmax2, reached, x.size // x.shape[-1], x.dtype)
    scales = (*scales[:2], None if scales[2] is None else scales[2][: reached + 1])
    if method == "fused":
        from equivariant_jax.euclidean.fused import fused_product

        z = fused_product(x, y, reached, scales, precision=precision)
    else:
        degree = lmax1 + lmax2 + reached
        body = _body(method, degree, reached, scales, precision)
        z = apply_to_rows(body, x, y, None if method == "fourier" else degree)
    if reached < lmax_out:
        missing = (lmax_out + 1) ** 2 - degree_index(reached).size
        z = jnp.pad(z, [(0, 0)] * (z.ndim - 1) + [(0, missing)])
    return scale_degrees(z, out_weights, "weights[2] (out)")
