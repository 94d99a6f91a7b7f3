r"""Equivariant convolution over neighbours with Gaunt products, in two exact forms.

  A_i = sum_{j in N(i)} GTP(x_j, h_ij),   h_ij = sum_l R_l(r_ij) Y_l(r_ij / |r_ij|),

with the radial functions `R` per degree and channel. `gaunt_convolution` stays on the grid: the sender's field times
the filter's field, summed over edges at each grid point, projected once per node. `gaunt_convolution_slots` builds, per
edge and filter degree but for all channels at once, the matrix `B[k1, k3] = sum_m Y_lm(r) int Y_k1 Y_lm Y_k3` and sums
over neighbours inside one matrix product per node: on CPU the faster form, most of all in its derivatives (no scatter,
and no grid values per edge in memory).

Law: `conv(D x, R vectors) == D conv(x, vectors)`; permuting the edges of a node changes nothing.

Reference: Luo et al. 2024, arXiv:2401.10216, section 3.2.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.segments import segment_sum
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.irreps import degree_slices, expand_degrees, lmax_of, num_coefficients
from equivariant_jax.euclidean.quadrature import from_sphere_grid, to_sphere_grid

__all__ = ["gaunt_convolution", "gaunt_convolution_slots"]


def gaunt_convolution(
    x: Array,
    harmonics: Array,
    radial: Array,
    senders: Array,
    receivers: Array,
    *,
    lmax_out: int,
    mask: Array | None = None,
    indices_are_sorted: bool = False,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves on the sphere's grid: multiply and sum over edges there, project once per node.

    Args:
      x: node features, shape `[n_node, (L1 + 1)**2, channels]`, float.
      harmonics: orthonormal harmonics of the edge directions, shape `[n_edge, (L2 + 1)**2]`, dtype of `x`.
      radial: radial functions, shape `[n_edge, L2 + 1, channels]`, dtype of `x`.
      senders: shape `[n_edge]`, int32.
      receivers: shape `[n_edge]`, int32.
      lmax_out: static; largest degree of the result.
      mask: True where an edge is real, shape `[n_edge]`, bool; default all.
      indices_are_sorted: static; promise that `receivers` do not decrease.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[n_node, (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if a coefficient axis is not a square.

    Example:
      >>> x, y, radial = jnp.ones((2, 1, 3)), jnp.ones((1, 4)), jnp.ones((1, 2, 3))
      >>> gaunt_convolution(x, y, radial, jnp.array([0]), jnp.array([1]), lmax_out=1).shape
      (2, 4, 3)
    """
    lmax1, lmax2 = lmax_of(x.shape[-2]), lmax_of(harmonics.shape[-1])
    degree = lmax1 + lmax2 + lmax_out

    def on_grid(coefficients):
        # Points between items and channels, so that gathering and summing move whole rows.
        return jnp.moveaxis(
            to_sphere_grid(jnp.moveaxis(coefficients, -2, 0), degree, axis=0, precision=precision), 0, 1
        )

    filters = on_grid(harmonics[..., None] * expand_degrees(radial, axis=-2))
    summed = segment_sum(
        on_grid(x)[senders] * filters, receivers, x.shape[0], mask=mask, indices_are_sorted=indices_are_sorted
    )
    out = from_sphere_grid(jnp.moveaxis(summed, 1, 0), lmax_out, degree, axis=0, precision=precision)
    return jnp.moveaxis(out, 0, 1)


def gaunt_convolution_slots(
    x: Array,
    harmonics: Array,
    radial: Array,
    senders: Array,
    *,
    lmax_out: int,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves over a table of neighbour slots (see `neighbour_slots`) with one matrix product per node.

    Args:
      x: node features, shape `[n_node, (L1 + 1)**2, channels]`, float.
      harmonics: orthonormal harmonics of the edge directions, shape `[n_node, slots, (L2 + 1)**2]`, dtype of `x`.
      radial: radial functions, shape `[n_node, slots, L2 + 1, channels]`, dtype of `x`; zero in empty slots.
      senders: node in each slot, shape `[n_node, slots]`, int32 (any node in empty slots).
      lmax_out: static; largest degree of the result.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[n_node, (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if a coefficient axis is not a square.

    Example:
      >>> x, y, radial = jnp.ones((2, 1, 3)), jnp.ones((2, 5, 4)), jnp.ones((2, 5, 2, 3))
      >>> gaunt_convolution_slots(x, y, radial, jnp.zeros((2, 5), int), lmax_out=1).shape
      (2, 4, 3)
    """
    size_in, size_out = x.shape[-2], num_coefficients(lmax_out)
    lmax1, lmax2 = lmax_of(size_in), lmax_of(harmonics.shape[-1])
    nodes, slots = senders.shape
    neighbours = x[senders]
    if lmax1 == 0:
        # The product with a constant function: each degree of the filter passes through alone.
        scaled = neighbours * (radial * np.asarray(np.sqrt(1 / (4 * np.pi)), x.dtype))
        blocks = [
            jnp.einsum("njm,njc->nmc", harmonics[..., block], scaled[:, :, l], precision=precision)
            for l, block in enumerate(degree_slices(lmax2)[: lmax_out + 1])
        ]
        out = jnp.concatenate(blocks, axis=-2)
        missing = size_out - out.shape[-2]
        return jnp.pad(out, ((0, 0), (0, missing), (0, 0))) if missing else out
    table = gaunt_table(lmax2, lmax1, lmax_out).astype(x.dtype)
    operators = jnp.stack(
        [
            jnp.matmul(harmonics[..., block], table[block].reshape(2 * l + 1, -1), precision=precision)
            for l, block in enumerate(degree_slices(lmax2))
        ],
        axis=2,
    )
    operators = operators.reshape(nodes, slots * (lmax2 + 1) * size_in, size_out)
    messages = neighbours[:, :, None] * radial[:, :, :, None]
    messages = messages.reshape(nodes, slots * (lmax2 + 1) * size_in, x.shape[-1])
    return jnp.einsum("npk,npc->nkc", operators, messages, precision=precision)
