r"""Gaunt coefficients as a table, and the product written out over its non-zeros.

For the lowest degrees the sum `z_k = sum_ij G_ijk x_i y_j` has so few terms that a fused loop over the batch beats
every transform. The number of terms grows like `lmax^5`, and with it the compile time.

Law: `G` is symmetric in its three indices; `G[i, j, k] = 0` unless the degrees form a triangle of even sum.
"""

import functools

import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, lmax_of, num_coefficients
from equivariant_jax.euclidean.quadrature import sphere_quadrature

__all__ = ["gaunt_table", "sparse_product"]


@functools.cache
def gaunt_table(lmax1: int, lmax2: int, lmax3: int) -> np.ndarray:
    """Tabulates `int Y_k1 Y_k2 Y_k3 dOm` by exact quadrature.

    Args:
      lmax1: largest degree of the first harmonic.
      lmax2: largest degree of the second.
      lmax3: largest degree of the third.

    Returns:
      float64 array of shape `[(lmax1+1)**2, (lmax2+1)**2, (lmax3+1)**2]`, read-only.

    Example:
      >>> float((gaunt_table(0, 1, 1)[0, 1, 1] * np.sqrt(4 * np.pi)).round(9))
      1.0
    """
    rule = sphere_quadrature(lmax1 + lmax2 + lmax3, "gauss")
    tables = sphere_table(rule.points, max(lmax1, lmax2, lmax3))
    first, second, third = (tables[:, : num_coefficients(l)] for l in (lmax1, lmax2, lmax3))
    products = (first[:, :, None] * second[:, None, :]).reshape(len(tables), -1)
    table = (products.T @ (third * rule.weights[:, None])).reshape(first.shape[1], second.shape[1], third.shape[1])
    table[np.abs(table) < 1e-14] = 0.0
    table.setflags(write=False)
    return table


def sparse_product(x: Array, y: Array, lmax_out: int, scales: tuple[np.ndarray | None, ...]) -> Array:
    """Multiplies two features over the non-zero Gaunt coefficients, coefficients first.

    Args:
      x: shape `[(L1 + 1)**2, ...]`, float.
      y: shape `[(L2 + 1)**2, ...]`, dtype of `x`; trailing axes broadcast.
      lmax_out: static; largest degree of the result.
      scales: three NumPy factors per degree (of `x`, `y`, result) or None, folded into the coefficients.

    Returns:
      Array of shape `[(lmax_out + 1)**2, ...]`.

    Example:
      >>> sparse_product(jnp.ones((4, 7)), jnp.ones((4, 7)), 2, (None, None, None)).shape
      (9, 7)
    """
    lmaxes = (lmax_of(x.shape[0]), lmax_of(y.shape[0]), lmax_out)
    table = np.array(gaunt_table(*lmaxes))
    for axis, (scale, lmax) in enumerate(zip(scales, lmaxes, strict=True)):
        if scale is not None:
            shape = [1, 1, 1]
            shape[axis] = -1
            table = table * scale[degree_index(lmax)].reshape(shape)
    zero = jnp.zeros(jnp.broadcast_shapes(x.shape[1:], y.shape[1:]), x.dtype)
    out = []
    for k in range(table.shape[2]):
        total = zero
        for i in np.flatnonzero(table[:, :, k].any(axis=1)):
            inner = [y[j] * np.asarray(table[i, j, k], x.dtype) for j in np.flatnonzero(table[i, :, k])]
            total = total + x[i] * functools.reduce(jnp.add, inner)
        out.append(total)
    return jnp.stack(out)
