r"""Networks to be averaged over frames, without a symmetry of space: PointNet and DGCNN.

Both take leading axes, so that all elements of a frame go through as one larger batch (`frame_average(...,
vectorized=True)`), and commute with permutations of their points. Defaults are the published sizes.

Unlike the official code, PointNet and DGCNN have no network that predicts a transformation of the input (a frame takes
its place; FA-DGCNN has both there).

References: Puny et al. 2021, arXiv:2110.03336, section 4 and its official code; Qi et al. 2017, arXiv:1612.00593; Wang
et al. 2019, arXiv:1801.07829.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.normalisation import batch_norm, batch_norm_init
from equivariant_jax.nn.pooling import global_max

__all__ = [
    "DGCNN",
    "DGCNNConfig",
    "PointNet",
    "PointNetConfig",
    "dgcnn_apply",
    "dgcnn_init",
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
        positive(self, self.channels_in, *self.widths, *self.head, self.channels_out)


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
        positive(self, self.channels_in, self.neighbours, *(w for b in self.blocks for w in b), self.width, *self.head)
        if self.pool not in ("mean", "max") or not 0 <= self.dropout < 1:
            raise ValueError(f'got pool={self.pool!r}, dropout={self.dropout}; expected "mean" or "max", and [0, 1).')


def positive(config: object, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"got {config}; expected sizes of at least 1.")


def check_points(name: str, x: Array, channels: int, mask: Array | None, training: bool = False) -> None:
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(f"{name}: got shape {x.shape}, expected [..., n, {channels}].")
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}, expected bool {x.shape[:-1]}.")
    if mask is not None and training:
        raise ValueError("mask and training: statistics of the batch would count padding; train on full clouds.")


def masked(x: Array, mask: Array | None) -> Array:
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
    check_points("x", x, config.channels_in, mask, training and config.batch_norm)
    x = masked(x, mask)
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
    return masked(dense_apply(params["out"], x, precision=precision), mask), after


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
    check_points("x", x, config.channels_in, mask, training)
    if x.shape[-2] < config.neighbours:
        raise ValueError(f"got {x.shape[-2]} points and neighbours={config.neighbours}; expected as many points.")
    points = x = masked(x, mask)
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
    return masked(2 * jax.nn.sigmoid(dense_apply(params["out"], x, precision=precision)) - 1, mask), after


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

    Dropout is on in training where the stream of random keys "dropout" is given.

    Attributes:
      config: static description.
      training: whether normalisations use the statistics of the batch.
    """

    config: DGCNNConfig
    training: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps points `[..., n, channels_in]` to `[..., n, channels_out]`."""
        key = self.make_rng("dropout") if self.training and self.has_rng("dropout") else None
        return _with_statistics(self, dgcnn_init, functools.partial(dgcnn_apply, key=key), x)


def _with_statistics(module, init, apply, x: Array) -> Array:
    params = module.param("network", lambda key: init(key, module.config, dtype=x.dtype)[0])
    statistics = module.variable("batch_stats", "statistics", lambda: init(jax.random.key(0), module.config)[1])
    out, after = apply(params, statistics.value, x, module.config, training=module.training)
    if module.training and not module.is_initializing():
        statistics.value = after
    return out
