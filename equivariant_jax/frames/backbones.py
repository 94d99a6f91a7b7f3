r"""Networks to be averaged over frames, without a symmetry of space: PointNet, DGCNN, message passing, GIN.

All take leading axes, so that all elements of a frame go through as one larger batch (`frame_average(...,
vectorized=True)`), and commute with permutations of their points or nodes (GIN without identifiers). Defaults are the
published sizes; the numbers of parameters follow from them, 92,103 for the message passing of the five-body task.

Unlike the official code, PointNet and DGCNN have no network that predicts a transformation of the input (a frame takes
its place; FA-DGCNN has both there), and the scale of a node's own features in GIN starts at one.

References: Puny et al. 2021, arXiv:2110.03336, section 4 and its official code; Qi et al. 2017, arXiv:1612.00593; Wang
et al. 2019, arXiv:1801.07829; Xu et al. 2019, arXiv:1810.00826.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.mlp import mlp_apply
from equivariant_jax.nn.normalisation import batch_norm, batch_norm_init
from equivariant_jax.nn.pooling import global_max

__all__ = [
    "DGCNN",
    "DGCNNConfig",
    "GINConfig",
    "MPNNConfig",
    "PointNet",
    "PointNetConfig",
    "dgcnn_apply",
    "dgcnn_init",
    "gin_apply",
    "gin_init",
    "mpnn_apply",
    "mpnn_init",
    "node_identifiers",
    "pointnet_apply",
    "pointnet_init",
]


@dataclasses.dataclass(frozen=True)
class PointNetConfig:
    """Static description of a PointNet with one output for each point.

    Attributes:
      channels_in: of each point.
      widths: of the layers on single points; their maximum over points, and all of them, go to the head.
      head: hidden widths of the head.
      channels_out: of each point.
      batch_norm: whether hidden layers are normalised over the batch.
    """

    channels_in: int = 3
    widths: tuple[int, ...] = (64, 128, 128, 512, 2048)
    head: tuple[int, ...] = (256, 256, 128)
    channels_out: int = 3
    batch_norm: bool = True

    def __post_init__(self):
        _positive(self, self.channels_in, *self.widths, *self.head, self.channels_out)


@dataclasses.dataclass(frozen=True)
class DGCNNConfig:
    """Static description of a DGCNN with one output for each point.

    Attributes:
      channels_in: of each point.
      neighbours: k nearest in the features of each block's input, the point itself among them.
      blocks: widths of the layers on pairs, for each block.
      width: of the layer before the pooling over points.
      head: hidden widths of the head.
      channels_out: of each point, between -1 and 1.
      pool: "mean" (published for FA-DGCNN) or "max" (published for DGCNN), over neighbours and over points.
      skip_input: whether the points go to the layer before the pooling as well (published for FA-DGCNN).
      dropout: rate in the head.
    """

    channels_in: int = 3
    neighbours: int = 40
    blocks: tuple[tuple[int, ...], ...] = ((64, 64), (64, 64), (64,))
    width: int = 1024
    head: tuple[int, ...] = (256, 256, 128)
    channels_out: int = 3
    pool: Literal["mean", "max"] = "mean"
    skip_input: bool = True
    dropout: float = 0.5

    def __post_init__(self):
        _positive(self, self.channels_in, self.neighbours, *(w for b in self.blocks for w in b), self.width, *self.head)
        if self.pool not in ("mean", "max") or not 0 <= self.dropout < 1:
            raise ValueError(f'got pool={self.pool!r}, dropout={self.dropout}; expected "mean" or "max", and [0, 1).')


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
        _positive(self, self.channels_in, self.edge_features, self.width, self.depth, self.channels_out)


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
        _positive(self, self.channels_in, self.width, self.depth, self.channels_out)
        if self.activation not in ("tanh", "relu") or self.readout not in ("sum", "mean"):
            raise ValueError(
                f'got activation={self.activation!r}, readout={self.readout!r}; expected "tanh" or "relu", and "sum" '
                'or "mean".'
            )


def _positive(config: object, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"got {config}; expected sizes of at least 1.")


def _check_points(name: str, x: Array, channels: int, mask: Array | None, training: bool = False) -> None:
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(f"{name}: got shape {x.shape}, expected [..., n, {channels}].")
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}, expected bool {x.shape[:-1]}.")
    if mask is not None and training:
        raise ValueError("mask and training: statistics of the batch would count padding; train on full clouds.")


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def _pooled(x: Array, valid: Array | None, how: str) -> Array:
    """Maximum or mean over the axis before the last, of what is valid; zero where nothing is."""
    if valid is None:
        return global_max(x, axes=1) if how == "max" else jnp.mean(x, axis=-2)
    zero = jnp.zeros((), x.dtype)
    if how == "max":
        largest = global_max(jnp.where(valid[..., None], x, jnp.full((), -jnp.inf, x.dtype)), axes=1)
        return jnp.where(jnp.any(valid, axis=-1)[..., None], largest, zero)
    count = jnp.maximum(jnp.sum(valid, axis=-1), 1).astype(x.dtype)
    return jnp.sum(jnp.where(valid[..., None], x, zero), axis=-2) / count[..., None]


def _chain_init(key: PRNGKey, widths: tuple[int, ...], norm: bool, use_bias: bool, dtype) -> tuple[list, list]:
    """Dense layers with a normalisation behind each: parameters and running statistics."""
    layers, statistics = [], []
    for k, n_in, n_out in zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True):
        layer, running = {"dense": dense_init(k, n_in, n_out, use_bias=use_bias, dtype=dtype)}, {}
        if norm:
            layer["norm"], running = batch_norm_init(n_out, dtype=dtype)
        layers.append(layer)
        statistics.append(running)
    return layers, statistics


def _layer(layer: PyTree, running: PyTree, x: Array, training: bool, precision) -> tuple[Array, PyTree]:
    x = dense_apply(layer["dense"], x, precision=precision)
    return batch_norm(layer["norm"], running, x, training=training) if "norm" in layer else (x, running)


def pointnet_init(key: PRNGKey, config: PointNetConfig, *, dtype=jnp.float32) -> tuple[PyTree, PyTree]:
    """Draws parameters, and running statistics.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `points` and `head`, lists of layers (`dense`: kernel `[in, out]` and bias; `norm`: scale and bias `[out]`), and
      `out`, a kernel `[in, channels_out]` and bias; and the running statistics of the same lists.
    """
    key_points, key_head, key_out = jax.random.split(key, 3)
    points, first = _chain_init(key_points, (config.channels_in, *config.widths), config.batch_norm, True, dtype)
    joined = config.widths[-1] + sum(config.widths)
    head, second = _chain_init(key_head, (joined, *config.head), config.batch_norm, True, dtype)
    out = dense_init(key_out, (joined, *config.head)[-1], config.channels_out, dtype=dtype)
    return {"points": points, "head": head, "out": out}, {"points": first, "head": second}


def pointnet_apply(
    params: PyTree,
    statistics: PyTree,
    x: Array,
    config: PointNetConfig,
    *,
    mask: Array | None = None,
    training: bool = False,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, PyTree]:
    """Maps each point by its own features and the maximum over all points.

    Args:
      params: from `pointnet_init`.
      statistics: from `pointnet_init` or an earlier call.
      x: points, shape `[..., n, channels_in]`, dtype of `params`.
      config: static.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      training: static; whether normalisations use and update the statistics of this batch.
      precision: static; of the products.

    Returns:
      Outputs, shape `[..., n, channels_out]`, zero in padding, and the statistics.

    Raises:
      ValueError: if shapes do not fit, or a mask comes with `training`.

    Example:
      >>> config = PointNetConfig(widths=(8, 16), head=(8,))
      >>> params, statistics = pointnet_init(jax.random.key(0), config)
      >>> pointnet_apply(params, statistics, jnp.ones((5, 3)), config)[0].shape
      (5, 3)
    """
    _check_points("x", x, config.channels_in, mask, training and config.batch_norm)
    x = _masked(x, mask)
    levels, after = [], {"points": [], "head": []}
    for i, (layer, running) in enumerate(zip(params["points"], statistics["points"], strict=True)):
        x, running = _layer(layer, running, x, training, precision)
        # As published, the last layer before the maximum has no activation.
        x = x if i == len(config.widths) - 1 else jax.nn.relu(x)
        levels.append(x)
        after["points"].append(running)
    whole = _pooled(x, mask, "max")[..., None, :]
    x = jnp.concatenate([jnp.broadcast_to(whole, x.shape), *levels], axis=-1)
    for layer, running in zip(params["head"], statistics["head"], strict=True):
        x, running = _layer(layer, running, x, training, precision)
        x = jax.nn.relu(x)
        after["head"].append(running)
    return _masked(dense_apply(params["out"], x, precision=precision), mask), after


def _neighbours(x: Array, mask: Array | None, k: int) -> Array:
    """Indices of the k nearest rows, the row itself among them, `[..., n, k]`; padding is farther than all else."""
    x = lax.stop_gradient(x if x.dtype == jnp.float64 else x.astype(jnp.float32))
    square = jnp.sum(jnp.square(x), axis=-1)
    product = jnp.einsum("...ic,...jc->...ij", x, x, precision=lax.Precision.HIGHEST)
    near = 2 * product - square[..., None, :] - square[..., :, None]
    if mask is not None:
        near = jnp.where(mask[..., None, :], near, jnp.full((), -jnp.inf, near.dtype))
    return lax.top_k(near, k)[1]


def _gathered(x: Array, index: Array) -> Array:
    """Rows of neighbours: `[..., n, c]` and `[..., n, k]` to `[..., n, k, c]`."""
    flat = index.reshape(*index.shape[:-2], -1, 1)
    return jnp.take_along_axis(x, flat, axis=-2).reshape(*index.shape, x.shape[-1])


def dgcnn_init(key: PRNGKey, config: DGCNNConfig, *, dtype=jnp.float32) -> tuple[PyTree, PyTree]:
    """Draws parameters, and running statistics.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `blocks` (a list of lists of layers, see `pointnet_init`; without biases), `wide` and `head` (lists of layers) and
      `out` (kernel `[in, channels_out]`); and the running statistics of the same lists.
    """
    keys = jax.random.split(key, len(config.blocks) + 3)
    blocks, first, width = [], [], config.channels_in
    for k, widths in zip(keys[3:], config.blocks, strict=True):
        block, running = _chain_init(k, (2 * width, *widths), True, False, dtype)
        blocks.append(block)
        first.append(running)
        width = widths[-1]
    joined = sum(widths[-1] for widths in config.blocks)
    skipped = joined + config.channels_in * config.skip_input
    wide, second = _chain_init(keys[0], (skipped, config.width), True, False, dtype)
    head, third = _chain_init(keys[1], (config.width + joined, *config.head), True, False, dtype)
    out = dense_init(keys[2], config.head[-1], config.channels_out, use_bias=False, dtype=dtype)
    params = {"blocks": blocks, "wide": wide, "head": head, "out": out}
    return params, {"blocks": first, "wide": second, "head": third}


def dgcnn_apply(
    params: PyTree,
    statistics: PyTree,
    x: Array,
    config: DGCNNConfig,
    *,
    mask: Array | None = None,
    training: bool = False,
    key: PRNGKey | None = None,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, PyTree]:
    """Maps each point by blocks of `pool_j f(x_j - x_i, x_i)` over the nearest neighbours in the block's input.

    Args:
      params: from `dgcnn_init`.
      statistics: from `dgcnn_init` or an earlier call.
      x: points, shape `[..., n, channels_in]`, dtype of `params`.
      config: static.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      training: static; whether normalisations use and update the statistics of this batch.
      key: for dropout, or None for none.
      precision: static; of the products.

    Returns:
      Outputs between -1 and 1, shape `[..., n, channels_out]`, zero in padding, and the statistics.

    Raises:
      ValueError: if shapes do not fit, there are fewer points than neighbours, or a mask comes with `training`.

    Example:
      >>> config = DGCNNConfig(neighbours=3, blocks=((8,),), width=8, head=(8,))
      >>> params, statistics = dgcnn_init(jax.random.key(0), config)
      >>> dgcnn_apply(params, statistics, jnp.ones((5, 3)), config)[0].shape
      (5, 3)
    """
    _check_points("x", x, config.channels_in, mask, training)
    if x.shape[-2] < config.neighbours:
        raise ValueError(f"got {x.shape[-2]} points and neighbours={config.neighbours}; expected as many points.")
    points = x = _masked(x, mask)
    levels, after = [], {"blocks": [], "wide": [], "head": []}

    def chain(layers: list, running: list, x: Array, drop: PRNGKey | None = None) -> tuple[Array, list]:
        new = []
        for i, (layer, old) in enumerate(zip(layers, running, strict=True)):
            x, old = _layer(layer, old, x, training, precision)
            x = jax.nn.leaky_relu(x, 0.2)
            if drop is not None and config.dropout > 0:
                kept = jax.random.bernoulli(jax.random.fold_in(drop, i), 1 - config.dropout, x.shape)
                x = jnp.where(kept, x / np.asarray(1 - config.dropout, x.dtype), jnp.zeros((), x.dtype))
            new.append(old)
        return x, new

    for block, running in zip(params["blocks"], statistics["blocks"], strict=True):
        index = _neighbours(x, mask, config.neighbours)
        other = _gathered(x, index)
        own = jnp.broadcast_to(x[..., None, :], other.shape)
        pairs, running = chain(block, running, jnp.concatenate([other - own, own], axis=-1))
        valid = None
        if mask is not None:
            valid = _gathered(mask[..., None], index)[..., 0]
        x = _pooled(pairs, valid, config.pool)
        levels.append(x)
        after["blocks"].append(running)
    x = jnp.concatenate([points, *levels] if config.skip_input else levels, axis=-1)
    x, after["wide"] = chain(params["wide"], statistics["wide"], x)
    whole = _pooled(x, mask, config.pool)[..., None, :]
    x = jnp.concatenate([jnp.broadcast_to(whole, (*x.shape[:-1], whole.shape[-1])), *levels], axis=-1)
    x, after["head"] = chain(params["head"], statistics["head"], x, key)
    return _masked(2 * jax.nn.sigmoid(dense_apply(params["out"], x, precision=precision)) - 1, mask), after


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
    _check_points("features", features, config.channels_in, mask)
    n = features.shape[-2]
    if edges.ndim != features.ndim + 1 or edges.shape[-3:] != (n, n, config.edge_features):
        raise ValueError(f"edges: got shape {edges.shape}, expected [..., {n}, {n}, {config.edge_features}].")
    mask = jnp.ones(features.shape[:-1], bool) if mask is None else mask
    pair = _pairs(mask)
    edges = jnp.where(pair[..., None], edges, jnp.zeros((), edges.dtype))
    h = dense_apply(params["embed"], _masked(features, mask), precision=precision)
    for i, layer in enumerate(params["layers"]):
        h = h if between is None or i == 0 else between(i, h)
        h = _message_layer(layer, h, edges, pair, precision)
    return _masked(mlp_apply(params["out"], h, activation=jax.nn.silu, precision=precision), mask)


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
      `layers`, a list of `dense` (kernel `[in, width]`, bias) and `epsilon` (shape `[]`, zero), and `out` (kernel
      `[width, channels_out]`, bias).
    """
    widths = (config.channels_in,) + (config.width,) * config.depth
    *keys, key_out = jax.random.split(key, config.depth + 1)
    layers = [
        {"dense": dense_init(k, n_in, n_out, dtype=dtype), "epsilon": jnp.zeros((), dtype)}
        for k, n_in, n_out in zip(keys, widths[:-1], widths[1:], strict=True)
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
    _check_points("features", features, config.channels_in, mask)
    if adjacency.shape != (*features.shape[:-1], features.shape[-2]):
        raise ValueError(f"adjacency: got shape {adjacency.shape} for nodes {features.shape}; expected [..., n, n].")
    act = jnp.tanh if config.activation == "tanh" else jax.nn.relu
    h = _masked(features, mask)
    if mask is not None:
        adjacency = jnp.where(mask[..., :, None] & mask[..., None, :], adjacency, jnp.zeros((), adjacency.dtype))
    for layer in params["layers"]:
        h = (1 + layer["epsilon"]) * h + jnp.matmul(adjacency, h, precision=precision)
        h = _masked(act(dense_apply(layer["dense"], h, precision=precision)), mask)
    total = jnp.sum(h, axis=-2)
    if config.readout == "mean":
        count = jnp.full(h.shape[:-2], h.shape[-2]) if mask is None else jnp.sum(mask, axis=-1)
        total = total / jnp.maximum(count, 1).astype(h.dtype)[..., None]
    return act(dense_apply(params["out"], total, precision=precision))


class PointNet(nn.Module):
    """Linen module over `pointnet_apply`; statistics are in the collection `batch_stats`.

    Attributes:
      config: static description.
      training: whether normalisations use the statistics of the batch.
    """

    config: PointNetConfig
    training: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps points `[..., n, channels_in]` to `[..., n, channels_out]`."""
        return _with_statistics(self, pointnet_init, pointnet_apply, x)


class DGCNN(nn.Module):
    """Linen module over `dgcnn_apply`; statistics are in the collection `batch_stats`.

    Attributes:
      config: static description.
      training: whether normalisations use the statistics of the batch.
    """

    config: DGCNNConfig
    training: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps points `[..., n, channels_in]` to `[..., n, channels_out]`."""
        return _with_statistics(self, dgcnn_init, dgcnn_apply, x)


def _with_statistics(module, init, apply, x: Array) -> Array:
    params = module.param("network", lambda key: init(key, module.config, dtype=x.dtype)[0])
    statistics = module.variable("batch_stats", "statistics", lambda: init(jax.random.key(0), module.config)[1])
    out, after = apply(params, statistics.value, x, module.config, training=module.training)
    if module.training and not module.is_initializing():
        statistics.value = after
    return out
