r"""Many-body products: powers of one function on the sphere, and their weighted sum (the contraction of MACE).

`f_x^nu`, projected on the harmonics, is the `nu`-fold Gaunt product of `x` with itself. On a grid that is exact for
`nu` factors it costs one transform, `nu - 1` pointwise products and one projection, where a chain of products would
project after each factor.

Law: `power(D x) == D power(x)` for every rotation; for a true scalar field the same under inversion.

References: Batatia et al. 2022, arXiv:2206.07697 (with Clebsch-Gordan products); Luo et al. 2024, arXiv:2401.10216.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import expand_degrees, lmax_of
from equivariant_jax.euclidean.quadrature import (
    QuadratureKind,
    from_parity_grids,
    from_sphere_grid,
    to_parity_grids,
    to_sphere_grid,
)

__all__ = ["gaunt_polynomial", "gaunt_power"]


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

    One transform to half of the grid, `order - 1` pointwise products of even and odd parts, one projection of them
    all; the term `nu = 1` is `x` itself.
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
        even, odd = to_parity_grids(x * np.asarray(scale, x.dtype), degree, kind=kind, precision=precision)
        powers = [(even, odd)]
        for _ in range(1, order):
            s, a = powers[-1]
            powers.append((s * even + a * odd, s * odd + a * even))
        all_even, all_odd = (jnp.stack(part, axis=1) for part in zip(*powers[1:], strict=True))
        projected = from_parity_grids(all_even, all_odd, lmax_out, degree, kind=kind, precision=precision)
        projected = projected * np.asarray(1 / scale, x.dtype)
        result = result + jnp.sum(jnp.moveaxis(factors[1:], 0, 1) * projected, axis=1)
    return jnp.moveaxis(result, 0, -2)
