r"""Equivariant convolution over neighbours with Gaunt products, in three exact forms.

  A_i = sum_{j in N(i)} GTP(x_j, h_ij),   h_ij = sum_l R_l(r_ij) Y_l(r_ij / |r_ij|),

with the radial functions `R` per degree and channel. The filter `h` is zonal about the edge, `h(Om) = sum_l R_l (2l+1)
/ (4 pi) P_l(r . Om)`, which two forms use:

- `gaunt_convolution(method="grid")` evaluates it on the sphere's grid by the recursion of the Legendre polynomials,
  multiplies the sender's field there and sums over edges at each grid point: one projection for each node, not for
  each edge.
- `gaunt_convolution(method="rotated")` turns each edge onto the polar axis (`edge_frames`, two charts without a
  singular point). The filter then depends on the polar angle alone and the product is diagonal in the order m: one
  Legendre transform there and back for each order, `O(lmax^3)` an edge. This is the SO(2) layer of eSCN restricted to
  the even paths.
- `gaunt_convolution_slots` builds, per edge and filter degree but for all channels at once, the matrix
  `B[k1, k3] = sum_m Y_lm(r) int Y_k1 Y_lm Y_k3` and sums over neighbours inside one matrix product per node: on CPU the
  fastest form at low degrees, most of all in its derivatives (no scatter, and no grid values per edge in memory).

Law: `conv(D x, R vectors) == D conv(x, vectors)`; permuting the edges of a node changes nothing. A zero vector counts
as an edge without direction (degree 0 alone), and has zero derivatives.

References: Luo et al. 2024, arXiv:2401.10216, section 3.2; Passaro and Zitnick 2023, arXiv:2302.03655 (rotated frames).
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm, safe_normalize
from equivariant_jax.core.representations import wigner_d
from equivariant_jax.core.segments import segment_sum
from equivariant_jax.core.sphere import legendre_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.edge_frames import edge_frames, rotate_from_frame, rotate_to_frame
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.irreps import degree_slices, lmax_of, num_coefficients
from equivariant_jax.euclidean.quadrature import from_sphere_grid, sphere_quadrature, to_sphere_grid

__all__ = ["gaunt_convolution", "gaunt_convolution_slots"]


def _zonal_factors(vectors: Array, radial: Array) -> Array:
    # (2l + 1) / (4 pi) R_l, with the degrees above 0 switched off for zero vectors (their direction is none).
    lmax = radial.shape[1] - 1
    factors = ((2 * np.arange(lmax + 1) + 1) / (4 * np.pi)).astype(radial.dtype)
    moving = (safe_norm(vectors) > 0).astype(radial.dtype)[:, None, None]
    constant = (np.arange(lmax + 1) == 0).astype(radial.dtype)[None, :, None]
    return radial * factors[None, :, None] * (constant + (1 - constant) * moving)


def _legendre_polynomials(t: Array, lmax: int) -> Array:
    # P_0..P_lmax on a new axis 1.
    values = [jnp.ones_like(t), t]
    for l in range(1, lmax):
        values.append(
            (t * values[l] * np.asarray(2 * l + 1, t.dtype) - values[l - 1] * np.asarray(l, t.dtype))
            * np.asarray(1 / (l + 1), t.dtype)
        )
    return jnp.stack(values[: lmax + 1], axis=1)


def _messages_on_grid(x, vectors, radial, degree, precision):
    # Sender's field and filter at every point, [node, point, channel] and [edge, point, channel].
    points = sphere_quadrature(degree).points.astype(x.dtype)
    cosines = jnp.matmul(safe_normalize(vectors), points.T, precision=precision)
    polynomials = _legendre_polynomials(cosines, radial.shape[1] - 1)
    filters = jnp.einsum("elg,elc->egc", polynomials, _zonal_factors(vectors, radial), precision=precision)
    # Points between items and channels, so that gathering and summing move whole rows.
    fields = to_sphere_grid(jnp.moveaxis(x, -2, 0), degree, axis=0, precision=precision)
    return jnp.moveaxis(fields, 0, 1), filters


@functools.cache
def _order_tables(lmax1: int, lmax2: int, lmax_out: int):
    # Gauss nodes; Legendre factors T_l^|m| of in- and output and the rows they belong to, padded, one for each order
    # that both have: [orders, nodes, degrees] and [orders, degrees]; and P_l of the filter, [degrees, nodes].
    nodes, weights = np.polynomial.legendre.leggauss((lmax1 + lmax2 + lmax_out) // 2 + 1)
    sine = np.sqrt(1 - nodes * nodes)
    top = min(lmax1, lmax_out)

    def order_table(lmax):
        # T_l^|m| times sqrt(2 pi): sines and cosines, with their sqrt(2), have the norm pi over the circle.
        legendre = legendre_table(nodes, lmax) * np.sqrt(2 * np.pi)
        factors = np.zeros((2 * top + 1, nodes.size, lmax + 1))
        rows = np.full((2 * top + 1, lmax + 1), (lmax + 1) ** 2, np.int32)
        for i, m in enumerate(range(-top, top + 1)):
            for j, l in enumerate(range(abs(m), lmax + 1)):
                factors[i, :, j] = sine ** abs(m) * legendre[l, abs(m)]
                rows[i, j] = l * l + l + m
        return factors, rows

    polynomials = np.polynomial.legendre.legvander(nodes, lmax2).T
    return order_table(lmax1), order_table(lmax_out), polynomials, weights


def _messages_in_frames(x, vectors, radial, senders, lmax_out, precision):
    # [edge, (lmax_out + 1)^2, channel], each product taken with the edge as polar axis.
    lmax1, lmax2 = lmax_of(x.shape[-2]), radial.shape[1] - 1
    (factors1, rows1), (factors3, rows3), polynomials, weights = _order_tables(lmax1, lmax2, lmax_out)
    frames = wigner_d(edge_frames(vectors), max(lmax1, lmax_out))
    turned = rotate_to_frame(x[senders], frames[: lmax1 + 1], precision=precision)
    turned = jnp.pad(turned, ((0, 0), (0, 1), (0, 0)))[:, rows1]
    filters = jnp.einsum(
        "lp,elc->epc", polynomials.astype(x.dtype), _zonal_factors(vectors, radial), precision=precision
    )
    values = jnp.einsum("mpl,emlc->empc", factors1.astype(x.dtype), turned, precision=precision)
    projection = (factors3 * weights[:, None]).astype(x.dtype)
    products = jnp.einsum("mpl,empc->emlc", projection, values * filters[:, None], precision=precision)
    real = rows3 < (lmax_out + 1) ** 2
    kept = products.reshape(products.shape[0], rows3.size, products.shape[-1])[:, np.flatnonzero(real).astype(np.int32)]
    known = rows3[real]
    missing = np.setdiff1d(np.arange((lmax_out + 1) ** 2), known)  # orders that the input does not have
    kept = jnp.pad(kept, ((0, 0), (0, missing.size), (0, 0)))
    place = np.argsort(np.concatenate([known, missing])).astype(np.int32)
    return rotate_from_frame(kept[:, place], frames[: lmax_out + 1], precision=precision)


def gaunt_convolution(
    x: Array,
    vectors: Array,
    radial: Array,
    senders: Array,
    receivers: Array,
    *,
    lmax_out: int,
    method: Literal["grid", "rotated"] = "grid",
    mask: Array | None = None,
    indices_are_sorted: bool = False,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves features with filters `sum_l R_l Y_l(edge)` of orthonormal harmonics, `A_i = sum_j GTP(x_j, h_ij)`.

    Args:
      x: node features, shape `[n_node, (L1 + 1)**2, channels]`, float.
      vectors: edge vectors of any length (only the direction counts), shape `[n_edge, 3]`, dtype of `x`.
      radial: radial functions, shape `[n_edge, L2 + 1, channels]`, dtype of `x`.
      senders: shape `[n_edge]`, int32.
      receivers: shape `[n_edge]`, int32.
      lmax_out: static; largest degree of the result.
      method: static; "grid" (sum over edges on the sphere's grid) or "rotated" (each edge as polar axis; better at
        high degrees). Equal numbers.
      mask: True where an edge is real, shape `[n_edge]`, bool; default all.
      indices_are_sorted: static; promise that `receivers` do not decrease.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[n_node, (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit or the method is unknown.

    Example:
      >>> x, edge, radial = jnp.ones((2, 1, 3)), jnp.ones((1, 3)), jnp.ones((1, 2, 3))
      >>> gaunt_convolution(x, edge, radial, jnp.array([0]), jnp.array([1]), lmax_out=1).shape
      (2, 4, 3)
    """
    lmax1 = lmax_of(x.shape[-2])
    edges = senders.shape[0]
    if (
        x.ndim != 3
        or vectors.shape != (edges, 3)
        or radial.ndim != 3
        or radial.shape[0] != edges
        or radial.shape[2] != x.shape[2]
    ):
        raise ValueError(
            f"gaunt_convolution got x {x.shape}, vectors {vectors.shape}, radial {radial.shape}, senders "
            f"{senders.shape}; expected `[n_node, (L1 + 1)**2, channels]`, `[n_edge, 3]`, "
            "`[n_edge, L2 + 1, channels]`, `[n_edge]`."
        )
    reduce = functools.partial(
        segment_sum,
        segment_ids=receivers,
        num_segments=x.shape[0],
        mask=mask,
        indices_are_sorted=indices_are_sorted,
    )
    if method == "rotated":
        return reduce(_messages_in_frames(x, vectors, radial, senders, lmax_out, precision))
    if method != "grid":
        raise ValueError(f'method must be "grid" or "rotated", got {method!r}.')
    degree = lmax1 + radial.shape[1] - 1 + lmax_out
    fields, filters = _messages_on_grid(x, vectors, radial, degree, precision)
    summed = reduce(fields[senders] * filters)
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
