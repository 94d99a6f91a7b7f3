r"""Networks over the nodes of a graph, to be averaged over frames: message passing among points, and GIN.

Both take leading axes and commute with permutations of the nodes (GIN without identifiers). The message passing is that
of the five-body task and has 92,103 parameters by default, as published.

In GIN the weight `1 + epsilon` of a node's own features is drawn, as in the official code, and must not be one: two
graphs whose I + A differ by a permutation of rows and another of columns (the prism and K_{3,3}) would have the same
outputs after averaging over all orders of the nodes, with identifiers or without.

References: Puny et al. 2021, arXiv:2110.03336, section 4 and its official code; Xu et al. 2019, arXiv:1810.00826.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames.backbones import check_points, masked, positive
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.mlp import mlp_apply

__all__ = ["GINConfig", "MPNNConfig", "gin_apply", "gin_init", "mpnn_apply", "mpnn_init", "node_identifiers"]


@dataclasses.dataclass(frozen=True)
class MPNNConfig:
    """Static description of a message passing network on all pairs of nodes.

    Attributes:
      channels_in: of each node.
      edge_features: of each pair.
      width: of all hidden layers; a multiple of 3 for `fa_gnn_apply`.
      depth: number of layers.
      channels_out: of each node.
    """

    channels_in: int = 6
    edge_features: int = 2
    width: int = 60
    depth: int = 4
    channels_out: int = 3

    def __post_init__(self):
        positive(self, self.channels_in, self.edge_features, self.width, self.depth, self.channels_out)


@dataclasses.dataclass(frozen=True)
class GINConfig:
    """Static description of a graph isomorphism network with one output for each graph.

    Attributes:
      channels_in: of each node, identifiers included.
      width: of all hidden layers.
      depth: number of layers.
      channels_out: of the graph.
      activation: "tanh" (separation of graphs) or "relu" (classification).
      readout: "sum" (separation) or "mean" (classification) over nodes.
    """

    channels_in: int
    width: int = 64
    depth: int = 3
    channels_out: int = 10
    activation: Literal["tanh", "relu"] = "tanh"
    readout: Literal["sum", "mean"] = "sum"

    def __post_init__(self):
        positive(self, self.channels_in, self.width, self.depth, self.channels_out)
        if self.activation not in ("tanh", "relu") or self.readout not in ("sum", "mean"):
            raise ValueError(
                f'got activation={self.activation!r}, readout={self.readout!r}; expected "tanh" or "relu", and "sum" '
                'or "mean".'
            )


def mpnn_init(key: PRNGKey, config: MPNNConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters of a message passing network (`mpnn_apply`, `fa_gnn_apply`).

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `embed` (kernel `[channels_in, width]`), `layers` (a list with pairs of dense layers `edge` and `node`) and `out`
      (a pair).

    Example:
      >>> sum(leaf.size for leaf in jax.tree.leaves(mpnn_init(jax.random.key(0), MPNNConfig())))
      92103
    """
    width, keys = config.width, jax.random.split(key, config.depth + 2)

    def pair(key: PRNGKey, n_in: int, n_out: int) -> tuple[PyTree, PyTree]:
        first, second = jax.random.split(key)
        return dense_init(first, n_in, width, dtype=dtype), dense_init(second, width, n_out, dtype=dtype)

    layers = []
    for layer_key in keys[2:]:
        key_edge, key_node = jax.random.split(layer_key)
        edge = pair(key_edge, 2 * width + config.edge_features, width)
        layers.append({"edge": edge, "node": pair(key_node, 2 * width, width)})
    embed = dense_init(keys[0], config.channels_in, width, dtype=dtype)
    return {"embed": embed, "layers": layers, "out": pair(keys[1], width, config.channels_out)}


def _message_layer(layer: PyTree, h: Array, edges: Array, pair: Array, precision) -> Array:
    """`h_i + node(h_i, sum_j edge(h_i, h_j, e_ij))` over pairs that count."""
    width, (first, second) = h.shape[-1], layer["edge"]
    # The first layer is linear in each of its three parts: two products for each node instead of one for each pair.
    own, other, rest = jnp.split(first["kernel"], [width, 2 * width])
    m = jnp.matmul(h, own, precision=precision)[..., :, None, :]
    m = m + jnp.matmul(h, other, precision=precision)[..., None, :, :]
    m = m + jnp.matmul(edges, rest, precision=precision)
    m = jax.nn.silu(m + first["bias"].reshape((1,) * (m.ndim - 1) + (-1,)))
    m = jax.nn.silu(dense_apply(second, m, precision=precision))
    total = jnp.sum(jnp.where(pair[..., None], m, jnp.zeros((), m.dtype)), axis=-2)
    both = jnp.concatenate([h, total], axis=-1)
    return h + mlp_apply(layer["node"], both, activation=jax.nn.silu, precision=precision)


def _pairs(mask: Array) -> Array:
    """Pairs of different real nodes, `[..., n, n]`."""
    different = ~np.eye(mask.shape[-1], dtype=bool)
    return mask[..., :, None] & mask[..., None, :] & different.reshape((1,) * (mask.ndim - 1) + different.shape)


def mpnn_apply(
    params: PyTree,
    features: Array,
    edges: Array,
    config: MPNNConfig,
    *,
    mask: Array | None = None,
    between: Callable[[int, Array], Array] | None = None,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Passes messages between all pairs of different nodes.

    Args:
      params: from `mpnn_init`.
      features: of nodes, shape `[..., n, channels_in]`, dtype of `params`.
      edges: of pairs, shape `[..., n, n, edge_features]`; leading axes of length one are allowed.
      config: static.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      between: static; called as `between(layer, hidden)` before every layer but the first, with `[..., n, width]`, and
        returns what the layer gets.
      precision: static; of the products.

    Returns:
      Outputs, shape `[..., n, channels_out]`, zero in padding.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> params = mpnn_init(jax.random.key(0), MPNNConfig(depth=1))
      >>> mpnn_apply(params, jnp.ones((5, 6)), jnp.ones((5, 5, 2)), MPNNConfig(depth=1)).shape
      (5, 3)
    """
    check_points("features", features, config.channels_in, mask)
    n = features.shape[-2]
    if edges.ndim != features.ndim + 1 or edges.shape[-3:] != (n, n, config.edge_features):
        raise ValueError(f"edges: got shape {edges.shape}, expected [..., {n}, {n}, {config.edge_features}].")
    mask = jnp.ones(features.shape[:-1], bool) if mask is None else mask
    pair = _pairs(mask)
    edges = jnp.where(pair[..., None], edges, jnp.zeros((), edges.dtype))
    h = dense_apply(params["embed"], masked(features, mask), precision=precision)
    for i, layer in enumerate(params["layers"]):
        h = h if between is None or i == 0 else between(i, h)
        h = _message_layer(layer, h, edges, pair, precision)
    return masked(mlp_apply(params["out"], h, activation=jax.nn.silu, precision=precision), mask)


def node_identifiers(features: Array) -> Array:
    """Appends one-hot identifiers of the rows: with them a network sees the order in which a frame put the nodes.

    Args:
      features: of nodes, shape `[..., n, c]`, float.

    Returns:
      Array of shape `[..., n, c + n]`, dtype of `features`.

    Raises:
      ValueError: if there are fewer than two axes.
    """
    if features.ndim < 2:
        raise ValueError(f"features: got shape {features.shape}, expected [..., n, c].")
    n = features.shape[-2]
    identity = jnp.broadcast_to(jnp.eye(n, dtype=features.dtype), (*features.shape[:-1], n))
    return jnp.concatenate([features, identity], axis=-1)


def gin_init(key: PRNGKey, config: GINConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `layers`, a list of `dense` (kernel `[in, width]`, bias) and `epsilon` (shape `[]`, between 0 and 1), and `out`
      (kernel `[width, channels_out]`, bias).
    """
    widths = (config.channels_in,) + (config.width,) * config.depth
    key_epsilon, *keys, key_out = jax.random.split(key, config.depth + 2)
    epsilon = jax.random.uniform(key_epsilon, (config.depth,), dtype)
    layers = [
        {"dense": dense_init(k, n_in, n_out, dtype=dtype), "epsilon": e}
        for k, n_in, n_out, e in zip(keys, widths[:-1], widths[1:], epsilon, strict=True)
    ]
    return {"layers": layers, "out": dense_init(key_out, config.width, config.channels_out, dtype=dtype)}


def gin_apply(
    params: PyTree,
    features: Array,
    adjacency: Array,
    config: GINConfig,
    *,
    mask: Array | None = None,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Maps a graph by layers `act(W ((1 + epsilon) h_i + sum_j A_ij h_j) + b)`, a read-out and one more dense layer.

    Args:
      params: from `gin_init`.
      features: of nodes, shape `[..., n, channels_in]`, dtype of `params`.
      adjacency: shape `[..., n, n]`, float.
      config: static.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      precision: static; of the products.

    Returns:
      Outputs, shape `[..., channels_out]`, behind the activation.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> config = GINConfig(1)
      >>> gin_apply(gin_init(jax.random.key(0), config), jnp.ones((4, 1)), jnp.ones((4, 4)), config).shape
      (10,)
    """
    check_points("features", features, config.channels_in, mask)
    if adjacency.shape != (*features.shape[:-1], features.shape[-2]):
        raise ValueError(f"adjacency: got shape {adjacency.shape} for nodes {features.shape}; expected [..., n, n].")
    act = jnp.tanh if config.activation == "tanh" else jax.nn.relu
    h = masked(features, mask)
    if mask is not None:
        adjacency = jnp.where(mask[..., :, None] & mask[..., None, :], adjacency, jnp.zeros((), adjacency.dtype))
    for layer in params["layers"]:
        h = (1 + layer["epsilon"]) * h + jnp.matmul(adjacency, h, precision=precision)
        h = masked(act(dense_apply(layer["dense"], h, precision=precision)), mask)
    total = jnp.sum(h, axis=-2)
    if config.readout == "mean":
        count = jnp.full(h.shape[:-2], h.shape[-2]) if mask is None else jnp.sum(mask, axis=-1)
        total = total / jnp.maximum(count, 1).astype(h.dtype)[..., None]
    return act(dense_apply(params["out"], total, precision=precision))
