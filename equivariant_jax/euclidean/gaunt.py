r"""Gaunt tensor products: products of functions on the sphere, by quadrature (Luo, Chen, Krishnapriyan, ICLR 2024).

For features `x, y` seen as functions `f_x, f_y` on the sphere, the product is `z_k = int f_x f_y Y_k dOm`. In terms of
Clebsch-Gordan blocks of unit Frobenius norm it is one block per output degree,

  z_{l3} = sum_{l1, l2} W(l1, l2, l3) [x_{l1} (x) y_{l2}]_{l3},
  W = sqrt((2l1+1)(2l2+1)(2l3+1)/(4 pi)) |3j(l1 l2 l3; 0 0 0)|,

which holds every path with `l1 + l2 + l3` even. On a grid that is exact for the total degree it costs three small
matrix products. The official code uses 2D Fourier series; the numbers are the same, and the grid is cheaper (Xie et al.
2025, arXiv:2506.13523).

Laws: `GTP(D x, D y) == D GTP(x, y)`; for true scalar fields the same under inversion; `int f_x f_y f_z` is symmetric in
its three arguments.

Reference: arXiv:2401.10216. The sphere's constants are those of `quadrature.py`.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, expand_degrees, lmax_of
from equivariant_jax.euclidean.quadrature import QuadratureKind, from_sphere_grid, to_sphere_grid

__all__ = ["gaunt_polynomial", "gaunt_power", "gaunt_tensor_product"]

ProductNormalization = Literal["integral", "norm", "component"]


@functools.cache
def _path_variance(lmax1: int, lmax2: int, lmax_out: int) -> np.ndarray:
    # Variance of each output degree for independent unit-variance inputs: sum (2l1+1)(2l2+1)/(4 pi) 3j(000)^2, with
    # 3j(000)^2 = 1/2 int P_l1 P_l2 P_l3 by Gauss-Legendre quadrature.
    nodes, weights = np.polynomial.legendre.leggauss((lmax1 + lmax2 + lmax_out) // 2 + 1)
    table = np.polynomial.legendre.legvander(nodes, max(lmax1, lmax2, lmax_out))
    density1 = table[:, : lmax1 + 1] @ (2 * np.arange(lmax1 + 1) + 1)
    density2 = table[:, : lmax2 + 1] @ (2 * np.arange(lmax2 + 1) + 1)
    return 0.5 * (weights * density1 * density2) @ table[:, : lmax_out + 1] / (4 * np.pi)


def _product_scales(lmax1: int, lmax2: int, lmax_out: int, normalization: str) -> list[np.ndarray | None]:
    # Per-degree factors (on x, y and the output) that turn the integral into another normalisation.
    if normalization == "integral":
        return [None, None, None]
    if normalization == "norm":
        roots = [np.sqrt(2 * np.arange(l + 1) + 1) for l in (lmax1, lmax2, lmax_out)]
        return [1 / roots[0], 1 / roots[1], np.sqrt(4 * np.pi) / roots[2]]
    if normalization == "component":
        variance = _path_variance(lmax1, lmax2, lmax_out)
        # Degrees that no path reaches (above lmax1 + lmax2) stay zero.
        return [None, None, np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)]
    raise ValueError(f'normalization must be "integral", "norm" or "component", got {normalization!r}.')


def _scale_degrees(x: Array, constant: np.ndarray | None, weights: Array | None, name: str) -> Array:
    lmax = lmax_of(x.shape[-1])
    if constant is not None:
        x = x * constant[degree_index(lmax)].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    if weights is None:
        return x
    if weights.shape[-1] != lmax + 1 or weights.ndim > x.ndim:
        raise ValueError(
            f"{name} got shape {weights.shape}; expected `[..., {lmax + 1}]`, one weight per degree, with leading "
            f"axes that broadcast against {x.shape[:-1]}."
        )
    factors = expand_degrees(weights)
    return x * factors.reshape((1,) * (x.ndim - factors.ndim) + factors.shape)


def _same_rank(x: Array, y: Array) -> tuple[Array, Array]:
    rank = max(x.ndim, y.ndim)
    return x.reshape((1,) * (rank - x.ndim) + x.shape), y.reshape((1,) * (rank - y.ndim) + y.shape)


def gaunt_tensor_product(
    x: Array,
    y: Array,
    *,
    lmax_out: int | None = None,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    out_weights: Array | None = None,
    method: Literal["grid"] = "grid",
    normalization: ProductNormalization = "integral",
    kind: QuadratureKind = "lebedev",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Multiplies two features as functions on the sphere, `z_k = int f_x f_y Y_k dOm`.

    Args:
      x: coefficients, shape `[..., (L1 + 1)**2]`, float.
      y: coefficients, shape `[..., (L2 + 1)**2]`, dtype of `x`; leading axes broadcast.
      lmax_out: static; largest degree of the result, default `L1 + L2` (nothing is cut off).
      x_weights: factor per degree of `x`, shape `[..., L1 + 1]`, leading axes broadcast.
      y_weights: factor per degree of `y`, shape `[..., L2 + 1]`.
      out_weights: factor per degree of the result, shape `[..., lmax_out + 1]`.
      method: static; "grid" (quadrature and three matrix products).
      normalization: static; path factor `W` of the module's page ("integral"), `|3j(l1 l2 l3; 0 0 0)|` ("norm"), or
        `W` divided per output degree so that independent unit-variance inputs give unit variance ("component").
      kind: static; quadrature rule, "lebedev" or "gauss".
      precision: static; precision of the matrix products. The default keeps full float32 on every backend.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2]`, dtype of `x`.

    Raises:
      ValueError: if a coefficient axis is not a square or an option is unknown.

    Example:
      >>> x, y = jnp.array([2.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> z = gaunt_tensor_product(x, y, lmax_out=1)  # a constant times a vector
      >>> bool(jnp.allclose(z, jnp.array([0.0, 1.0, 2.0, 3.0]) * 2 / jnp.sqrt(4 * jnp.pi), atol=1e-6))
      True

    References:
      Luo et al. 2024, arXiv:2401.10216, section 3; Xie et al. 2025, arXiv:2506.13523 (grid form).
    """
    if method != "grid":
        raise ValueError(f'method must be "grid", got {method!r}.')
    x, y = jnp.asarray(x), jnp.asarray(y)
    lmax1, lmax2 = lmax_of(x.shape[-1]), lmax_of(y.shape[-1])
    lmax_out = lmax1 + lmax2 if lmax_out is None else lmax_out
    scales = _product_scales(lmax1, lmax2, lmax_out, normalization)
    degree = lmax1 + lmax2 + lmax_out
    x = _scale_degrees(x, scales[0], x_weights, "x_weights")
    y = _scale_degrees(y, scales[1], y_weights, "y_weights")
    f, g = _same_rank(
        to_sphere_grid(x, degree, kind=kind, precision=precision),
        to_sphere_grid(y, degree, kind=kind, precision=precision),
    )
    z = from_sphere_grid(f * g, lmax_out, degree, kind=kind, precision=precision)
    return _scale_degrees(z, scales[2], out_weights, "out_weights")


def gaunt_power(
    x: Array,
    order: int,
    *,
    lmax_out: int | None = None,
    axis: int = -1,
    kind: QuadratureKind = "lebedev",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Raises a feature to a power as a function on the sphere, `z_k = int f_x^order Y_k dOm`.

    Args:
      x: coefficients, `(lmax + 1)**2` of them on `axis`, float.
      order: static; 1 or more.
      lmax_out: static; largest degree of the result, default `lmax`.
      axis: static; -1 for `[..., coefficients]`, 0 for `[coefficients, ...]`.
      kind: static; quadrature rule.
      precision: static; precision of the matrix products.

    Returns:
      Array with `(lmax_out + 1)**2` coefficients on `axis`, dtype of `x`.

    Raises:
      ValueError: if `order` is below 1 or the axis is not a coefficient axis.

    Example:
      >>> abs(gaunt_power(jnp.array([2.0]), 3).item() - 8 / (4 * np.pi)) < 1e-6
      True
    """
    if order < 1:
        raise ValueError(f"order must be 1 or more, got {order}.")
    lmax = lmax_of(x.shape[axis])
    lmax_out = lmax if lmax_out is None else lmax_out
    degree = order * lmax + lmax_out
    field = to_sphere_grid(x, degree, axis=axis, kind=kind, precision=precision)
    power = field
    for _ in range(order - 1):
        power = power * field
    return from_sphere_grid(power, lmax_out, degree, axis=axis, kind=kind, precision=precision)


def gaunt_polynomial(
    x: Array,
    weights: Array,
    *,
    lmax_out: int,
    kind: QuadratureKind = "lebedev",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Many-body product of MACE on the sphere, `z_lm = sum_nu w[nu, l] c^(nu-1) P_lm[f^nu]`, channels last.

    One transform to the grid, `order - 1` pointwise products and as many projections; the term `nu = 1` is `x` itself.
    The constant `c = sqrt(4 pi) / (lmax + 1)` gives the field of unit-variance coefficients unit variance, so that the
    terms stay of one size for every order and degree.

    Args:
      x: coefficients, shape `[..., (lmax + 1)**2, channels]`, float.
      weights: shape `[..., order, lmax_out + 1, channels]`, leading axes those of `x` (or broadcasting), dtype of `x`;
        `order` is read from the shape.
      lmax_out: static; largest degree of the result, at most `lmax`.
      kind: static; quadrature rule.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit or `lmax_out > lmax`.

    Example:
      >>> gaunt_polynomial(jnp.ones((5, 9, 4)), jnp.ones((5, 3, 2, 4)), lmax_out=1).shape
      (5, 4, 4)

    References:
      Batatia et al. 2022, arXiv:2206.07697, eq. 10 (with Clebsch-Gordan products); arXiv:2401.10216, section 3.3.
    """
    if (
        weights.ndim != x.ndim + 1
        or weights.shape[-1] != x.shape[-1]
        or weights.shape[-2] != lmax_out + 1
        or lmax_out > lmax_of(x.shape[-2])
    ):
        raise ValueError(
            f"gaunt_polynomial got x {x.shape}, weights {weights.shape}, lmax_out={lmax_out}; expected x "
            "`[..., (lmax + 1)**2, channels]`, weights `[..., order, lmax_out + 1, channels]` and lmax_out <= lmax."
        )
    lmax, order = lmax_of(x.shape[-2]), weights.shape[-3]
    # Coefficients first: each transform is then one matrix product without a transpose of the (larger) grid values.
    x = jnp.moveaxis(x, -2, 0)
    factors = expand_degrees(jnp.moveaxis(weights, (-3, -2), (0, 1)), axis=1)
    result = factors[0] * x[: (lmax_out + 1) ** 2]
    degree = order * lmax + lmax_out
    scale = np.sqrt(4 * np.pi) / (lmax + 1)
    if order > 1:
        field = to_sphere_grid(x * np.asarray(scale, x.dtype), degree, axis=0, kind=kind, precision=precision)
        power = field
        for nu in range(1, order):
            power = power * field
            projected = from_sphere_grid(power, lmax_out, degree, axis=0, kind=kind, precision=precision)
            result = result + factors[nu] * (projected * np.asarray(1 / scale, x.dtype))
    return jnp.moveaxis(result, 0, -2)
