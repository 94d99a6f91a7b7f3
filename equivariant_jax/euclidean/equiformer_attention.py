r"""Graph attention of EquiformerV2 in the frames of the edges.

For an edge from j to i, the features of both ends are turned into the edge's frame, where the sparse linear maps
`so2_linear` (with factors from a radial network) take the place of tensor products:

  (z_ij, s_ij) = SO2(radial_ij * [x_j, x_i]),   a_ij = softmax_j(w . leaky_relu(norm(s_ij))),
  x_i' = linear(sum_j a_ij R_ij^T SO2(activation(z_ij))).

Law: with everything but a grid activation, `f(D x, Q vectors) == D f(x, Q vectors)` for every rotation Q to rounding,
whichever frame an edge has. Reflections are not symmetries: an SO(2) map may tell an image from its mirror image.

Differences from the published code: attention weights carry a smooth envelope, so that forces are continuous when an
atom crosses the cut-off; the radial network has no layer normalisation; no dropout.

References: Liao et al. 2024, arXiv:2306.12059; Passaro and Zitnick 2023, arXiv:2302.03655.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.representations import wigner_d
from equivariant_jax.core.segments import segment_max, segment_sum
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.edge_frames import edge_frames, frame_matrix, orders_first
from equivariant_jax.euclidean.equiformer_layers import (
    add_to_scalars,
    degree_kernels,
    gate_activation,
    sphere_activation,
)
from equivariant_jax.euclidean.irreps import degree_linear
from equivariant_jax.euclidean.radial import polynomial_cutoff
from equivariant_jax.nn.mlp import mlp_apply, mlp_init

__all__ = [
    "AttentionConfig",
    "FramedEdges",
    "edge_degree_embedding",
    "frame_edges",
    "graph_attention",
    "graph_attention_init",
    "so2_linear",
    "so2_linear_init",
]


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Sizes of one attention layer; hashable.

    Attributes:
      lmax: largest degree.
      mmax: largest order in the frames of the edges, at most `lmax`.
      channels: channels of a node's features.
      hidden_channels: channels between the two SO(2) maps.
      heads: attention heads.
      alpha_channels: scalars per head from which the logit is made.
      value_channels: channels per head of the message.
      radial_widths: widths of the radial network before its last layer: inputs, then hidden.
      activation: "sphere" (SiLU on a grid, equivariant up to the grid) or "gate" (exact).
      grid_degree: degree of the grid's quadrature rule.
    """

    lmax: int
    mmax: int
    channels: int
    hidden_channels: int
    heads: int
    alpha_channels: int
    value_channels: int
    radial_widths: tuple[int, ...]
    activation: Literal["sphere", "gate"] = "sphere"
    grid_degree: int = 18

    def __post_init__(self):
        if not 0 <= self.mmax <= self.lmax:
            raise ValueError(f"0 <= mmax <= lmax is needed, got mmax={self.mmax} and lmax={self.lmax}.")
        if self.activation not in ("sphere", "gate"):
            raise ValueError(f'activation must be "sphere" or "gate", got {self.activation!r}.')


class FramedEdges(NamedTuple):
    """What every layer needs to know of the edges of a padded batch.

    Attributes:
      senders: shape `[n_edge]`, int32.
      receivers: shape `[n_edge]`, int32.
      rotation: `frame_matrix` of each edge, shape `[n_edge, n, (lmax + 1)**2]`, float.
      features: invariant features of each edge, shape `[n_edge, inputs]`, dtype of `rotation`.
      envelope: 1 at distance zero, falling smoothly to 0 at the cut-off; 0 for padding, shape `[n_edge]`.
    """

    senders: Array
    receivers: Array
    rotation: Array
    features: Array
    envelope: Array


def frame_edges(
    vectors: Array,
    features: Array,
    senders: Array,
    receivers: Array,
    *,
    mask: Array,
    config: AttentionConfig,
    r_max: float,
    cutoff_power: int = 5,
) -> FramedEdges:
    """Gives each edge its frame and its envelope.

    Args:
      vectors: edge vectors, zero for padding, shape `[n_edge, 3]`, in angstrom, float.
      features: invariant features, shape `[n_edge, inputs]`, dtype of `vectors`.
      senders: shape `[n_edge]`, int32.
      receivers: shape `[n_edge]`, int32.
      mask: True where an edge is real, shape `[n_edge]`, bool.
      config: static sizes.
      r_max: static; cut-off in angstrom.
      cutoff_power: static; exponent of the envelope, see `polynomial_cutoff`.

    Returns:
      `FramedEdges`, arrays of shapes `[n_edge, ...]`.
    """
    envelope = polynomial_cutoff(safe_norm(vectors), r_max, cutoff_power)
    return FramedEdges(
        senders=senders,
        receivers=receivers,
        rotation=frame_matrix(wigner_d(edge_frames(vectors), config.lmax), config.mmax),
        features=features,
        envelope=jnp.where(mask, envelope, jnp.zeros((), envelope.dtype)),
    )


def so2_linear_init(
    key: PRNGKey, lmax: int, mmax: int, channels_in: int, channels_out: int, *, extra: int = 0, dtype=jnp.float32
) -> PyTree:
    """Draws the parameters of `so2_linear`.

    Args:
      key: typed random key.
      lmax: static; largest degree.
      mmax: static; largest order.
      channels_in: static; channels of the input.
      channels_out: static; channels of the output.
      extra: static; scalars that the map gives besides.
      dtype: dtype of the parameters.

    Returns:
      Dict with `order_m` of shape `[rows * channels_in, columns]` for each order `m <= mmax`, where `rows = lmax-m+1`,
      and `bias` of shape `[extra + (lmax + 1) * channels_out]`.
    """
    keys = jax.random.split(key, mmax + 1)
    params: dict[str, Any] = {}
    for m in range(mmax + 1):
        rows = lmax - m + 1
        columns = extra + rows * channels_out if m == 0 else 2 * rows * channels_out
        # Real and imaginary part add up, hence the 2.
        scale = (rows * channels_in * (1 if m == 0 else 2)) ** -0.5
        params[f"order_{m}"] = jax.random.normal(keys[m], (rows * channels_in, columns), dtype) * np.asarray(
            scale, dtype
        )
    params["bias"] = jnp.zeros((extra + (lmax + 1) * channels_out,), dtype)
    return params


def so2_linear(
    params: PyTree,
    x: Array,
    *,
    lmax: int,
    radial: Array | None = None,
    extra: int = 0,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
    r"""Applies a linear map that commutes with turns about the edge.

    With `z_m = x_{+m} + i x_{-m}`, a turn by `a` multiplies `z_m` by `exp(i m a)`, so the maps are complex matrices
    over degrees and channels, one for each order: `(A + iB) z_m`. Mirror images would need `B = 0`: the map commutes
    with rotations, not with reflections, as in the published networks.

    Args:
      params: from `so2_linear_init`.
      x: features in the frame, shape `[e, n, channels_in]`, float, in the order of `orders_first(lmax, mmax)`.
      lmax: static; largest degree.
      radial: factors on the input, equal for `+m` and `-m`, shape `[e, sum_m (lmax-m+1), channels_in]`, dtype of `x`.
      extra: static; number of extra scalars.
      precision: static; precision of the matrix products.

    Returns:
      Features of shape `[e, n, channels_out]` and the extra scalars, shape `[e, extra]`, dtype of `x`.

    Raises:
      ValueError: if `x` does not have the coefficients that `lmax` and the parameters say.

    Example:
      >>> params = so2_linear_init(jax.random.key(0), 2, 1, 3, 5, extra=4)
      >>> [y.shape for y in so2_linear(params, jnp.ones((6, 7, 3)), lmax=2, extra=4)]
      [(6, 7, 5), (6, 4)]
    """
    mmax = len(params) - 2
    if x.ndim != 3 or x.shape[1] != orders_first(lmax, mmax).size:
        raise ValueError(
            f"so2_linear got x {x.shape}; expected `[e, {orders_first(lmax, mmax).size}, channels]` for lmax={lmax} "
            f"and the {mmax + 1} orders of the parameters."
        )
    edges, channels_in = x.shape[0], x.shape[-1]
    parts, scalars = [], x[:, 0, :0]
    start = radial_start = 0
    for m in range(mmax + 1):
        rows, signs = lmax - m + 1, 1 if m == 0 else 2
        block = x[:, start : start + signs * rows].reshape(edges, signs, rows, channels_in)
        if radial is not None:
            block = block * radial[:, None, radial_start : radial_start + rows]
        block = block.reshape(edges, signs, rows * channels_in)
        out = jnp.matmul(block, params[f"order_{m}"], precision=precision)
        if m == 0:
            out = out[:, 0] + params["bias"][None]
            scalars, out = out[:, :extra], out[:, extra:]
        else:
            half = out.shape[-1] // 2
            real, imaginary = out[..., :half], out[..., half:]
            out = jnp.stack([real[:, 0] - imaginary[:, 1], real[:, 1] + imaginary[:, 0]], axis=1)
        # No -1 in shapes: a batch may have no edge at all.
        parts.append(out.reshape(edges, signs * rows, math.prod(out.shape[1:]) // (signs * rows)))
        start, radial_start = start + signs * rows, radial_start + rows
    return jnp.concatenate(parts, axis=1), scalars


def _extra(config: AttentionConfig) -> int:
    gates = config.hidden_channels * (config.lmax + 1 if config.activation == "gate" else 1)
    return config.heads * config.alpha_channels + gates


def graph_attention_init(key: PRNGKey, config: AttentionConfig, channels_out: int, *, dtype=jnp.float32) -> PyTree:
    """Draws the parameters of `graph_attention`.

    Args:
      key: typed random key.
      config: static sizes.
      channels_out: static; channels of the result.
      dtype: dtype of the parameters.

    Returns:
      Dict of `radial` (an MLP), `first` and `second` (SO(2) maps), `alpha` of shape `[heads, alpha_channels]`, its
      normalisation `alpha_scale` and `alpha_bias` of shape `[alpha_channels]`, and `project` of shape
      `[lmax + 1, heads * value_channels, channels_out]` with `project_bias`.
    """
    lmax, mmax = config.lmax, config.mmax
    radial, first, second, alpha, project = jax.random.split(key, 5)
    rows = sum(lmax - m + 1 for m in range(mmax + 1))
    values = config.heads * config.value_channels
    return {
        "radial": mlp_init(radial, (*config.radial_widths, rows * 2 * config.channels), dtype=dtype),
        "first": so2_linear_init(
            first, lmax, mmax, 2 * config.channels, config.hidden_channels, extra=_extra(config), dtype=dtype
        ),
        "second": so2_linear_init(second, lmax, mmax, config.hidden_channels, values, dtype=dtype),
        "alpha": degree_kernels(alpha, 0, config.alpha_channels, config.heads, dtype=dtype)[0].T,
        "alpha_scale": jnp.ones((config.alpha_channels,), dtype),
        "alpha_bias": jnp.zeros((config.alpha_channels,), dtype),
        "project": degree_kernels(project, lmax, values, channels_out, dtype=dtype),
        "project_bias": jnp.zeros((channels_out,), dtype),
    }


def _smooth_leaky_relu(x: Array, slope: float = 0.2) -> Array:
    # (1 + slope)/2 x + (1 - slope)/2 x (2 sigmoid(x) - 1), as published: leaky ReLU with its corner rounded.
    low, high = np.asarray((1 + slope) / 2, x.dtype), np.asarray((1 - slope) / 2, x.dtype)
    one, two = np.asarray(1, x.dtype), np.asarray(2, x.dtype)
    return x * low + x * high * (jax.nn.sigmoid(x) * two - one)


def _logits(params: PyTree, scalars: Array, precision) -> Array:
    # [e, heads, alpha_channels] -> [e, heads]; normalised first, or attention collapses to one neighbour.
    scalars = scalars - jnp.mean(scalars, axis=-1, keepdims=True)
    scalars = scalars * lax.rsqrt(jnp.mean(scalars**2, axis=-1, keepdims=True) + np.asarray(1e-5, scalars.dtype))
    scalars = scalars * params["alpha_scale"][None, None] + params["alpha_bias"][None, None]
    return jnp.einsum("eha,ha->eh", _smooth_leaky_relu(scalars), params["alpha"], precision=precision)


def _attention_weights(logits: Array, edges: FramedEdges, num_nodes: int) -> Array:
    # env^2 exp / sum(env exp): an edge enters with weight and slope zero, also where it is the only one.
    envelope = edges.envelope[:, None]
    real = edges.envelope > 0
    top = lax.stop_gradient(segment_max(logits, edges.receivers, num_nodes, mask=real))
    shifted = jnp.where(real[:, None], logits - top[edges.receivers], jnp.zeros((), logits.dtype))
    weights = jnp.exp(shifted) * envelope
    total = segment_sum(weights, edges.receivers, num_nodes)
    # Far below any sum that matters, far enough above the smallest number for its inverse cube, in second derivatives.
    floor = np.asarray(float(jnp.finfo(logits.dtype).tiny) ** 0.25, logits.dtype)
    return weights * envelope / (total + floor)[edges.receivers]


def graph_attention(
    params: PyTree, x: Array, edges: FramedEdges, config: AttentionConfig, *, precision=lax.Precision.HIGHEST
) -> Array:
    """Attends to the neighbours of each node.

    Args:
      params: from `graph_attention_init`.
      x: node features, shape `[n_node, (lmax + 1)**2, channels]`, float.
      edges: the edges in their frames, arrays of shapes `[n_edge, ...]`, dtype of `x`.
      config: static sizes.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[n_node, (lmax + 1)**2, channels_out]`, dtype of `x`; the bias alone for nodes without edges.
    """
    lmax, mmax, heads = config.lmax, config.mmax, config.heads
    num_edges, num_nodes = edges.senders.shape[0], x.shape[0]
    both = jnp.concatenate([x[edges.senders], x[edges.receivers]], axis=-1)
    both = jnp.einsum("enk,ekc->enc", edges.rotation, both, precision=precision)
    radial = mlp_apply(params["radial"], edges.features, precision=precision)
    radial = radial.reshape(num_edges, radial.shape[-1] // both.shape[-1], both.shape[-1])
    hidden, extra = so2_linear(
        params["first"], both, lmax=lmax, radial=radial, extra=_extra(config), precision=precision
    )
    alpha, scalars = jnp.split(extra, [heads * config.alpha_channels], axis=-1)
    if config.activation == "gate":
        hidden = gate_activation(hidden, scalars, lmax=lmax, mmax=mmax)
    else:
        hidden = sphere_activation(
            hidden, scalars, lmax=lmax, mmax=mmax, grid_degree=config.grid_degree, precision=precision
        )
    values, _ = so2_linear(params["second"], hidden, lmax=lmax, precision=precision)
    logits = _logits(params, alpha.reshape(num_edges, heads, config.alpha_channels), precision)
    weights = _attention_weights(logits, edges, num_nodes)
    weights = jnp.repeat(weights, config.value_channels, axis=-1)
    values = values * weights[:, None]
    values = jnp.einsum("enk,enc->ekc", edges.rotation, values, precision=precision)
    gathered = segment_sum(values, edges.receivers, num_nodes)
    return add_to_scalars(degree_linear(params["project"], gathered), params["project_bias"])


def edge_degree_embedding(
    params: PyTree, edges: FramedEdges, num_nodes: int, *, lmax: int, precision=lax.Precision.HIGHEST
) -> Array:
    """Sums over neighbours what a radial network says of each edge, as fields that are symmetric about the edge.

    Args:
      params: an MLP from the edge's features to `(lmax + 1) * channels` numbers (pytree of `mlp_init`).
      edges: the edges in their frames, arrays of shapes `[n_edge, ...]`.
      num_nodes: static; number of nodes.
      lmax: static; largest degree.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[num_nodes, (lmax + 1)**2, channels]`, dtype of the edges' features.
    """
    radial = mlp_apply(params, edges.features, precision=precision) * edges.envelope[:, None]
    radial = radial.reshape(radial.shape[0], lmax + 1, radial.shape[-1] // (lmax + 1))
    # The coefficients of order zero come first.
    values = jnp.einsum("enk,enc->ekc", edges.rotation[:, : lmax + 1], radial, precision=precision)
    return segment_sum(values, edges.receivers, num_nodes)
