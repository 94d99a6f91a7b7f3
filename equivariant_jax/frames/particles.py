r"""FA-GNN: message passing among particles in frames, with new frames between the layers.

Between two layers all features are read as vectors, mapped back and averaged over the elements, and expressed in a new
frame, that of the features. Law: see `fa_gnn_apply`.

Unlike the official code the mean of the hidden vectors is kept by default: hidden vectors do not move with a
translation, so there is no need to lose it.

Reference: Puny et al. 2021, arXiv:2110.03336, section 4 and appendix.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames.graph_networks import MPNNConfig, mpnn_apply, mpnn_init
from equivariant_jax.frames.pca import Frames, pca_frames

__all__ = ["FAGNN", "fa_gnn_apply"]


def fa_gnn_apply(
    params: PyTree,
    positions: Array,
    velocities: Array,
    charges: Array,
    config: MPNNConfig,
    *,
    mask: Array | None = None,
    key: PRNGKey | None = None,
    group: Literal["E", "SE"] = "E",
    stop_gradient: bool = True,
    keep_mean: bool = True,
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Predicts positions by message passing in frames, with new frames between the layers (FA-GNN).

    Law: `f(X R^T + 1 t^T, V R^T) == f(X, V) R^T + 1 t^T`, and permuted nodes give permuted positions.

    Args:
      params: from `mpnn_init` with six input channels, two edge features and three outputs.
      positions: shape `[..., n, 3]`, dtype of `params`, any unit of length.
      velocities: shape `[..., n, 3]`.
      charges: shape `[..., n]`.
      config: static; `width` is a multiple of 3.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      key: draws one element of each layer's frame; None averages over all.
      group: static; "E" or "SE" (sees the hand of the coordinate system).
      stop_gradient: static; frames as constants, as published. The gradient is then biased: frames of hidden features
        depend on the parameters, and all on the positions.
      keep_mean: static; False drops the mean of the hidden vectors when they go to a new frame, as published.
      precision: static; of the network's products.

    Returns:
      Positions, shape `[..., n, 3]`, zero in padding.

    Raises:
      ValueError: if shapes or sizes do not fit.

    Example:
      >>> config = MPNNConfig(width=12, depth=2)
      >>> x = jax.random.normal(jax.random.key(1), (5, 3))
      >>> fa_gnn_apply(mpnn_init(jax.random.key(0), config), x, x, jnp.ones(5), config).shape
      (5, 3)
    """
    shape, sizes = positions.shape, (config.channels_in, config.edge_features, config.channels_out)
    if len(shape) < 2 or shape[-1] != 3 or velocities.shape != shape or charges.shape != shape[:-1]:
        raise ValueError(
            f"got positions {shape}, velocities {velocities.shape}, charges {charges.shape}; expected [..., n, 3] "
            "twice and [..., n]."
        )
    if sizes != (6, 2, 3) or config.width % 3 or group not in ("E", "SE"):
        raise ValueError(
            f"got {config} and group={group!r}; expected 6 input channels, 2 edge features, 3 outputs, a width that is "
            'a multiple of 3, and "E" or "SE".'
        )
    real = jnp.ones(shape[:-1], bool) if mask is None else mask
    x, v, q = (
        a if mask is None else jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, jnp.zeros_like(a))
        for a in (positions, velocities, charges)
    )
    square = jnp.sum(jnp.square(x[..., :, None, :] - x[..., None, :, :]), axis=-1)
    edges = jnp.stack([q[..., :, None] * q[..., None, :], square], axis=-1)[..., None, :, :, :]
    keys = None if key is None else jax.random.split(key, config.depth)
    frames, vectors = [], config.width // 3

    def reframed(layer: int, points: Array, real: Array) -> Frames:
        made = pca_frames(points, real, group=group, stop_gradient=stop_gradient)
        frames.append(made if keys is None else made.pick(keys[layer]))
        return frames[-1]

    def between(layer: int, h: Array) -> Array:
        # Hidden features [..., F, n, width] are n * width / 3 vectors, one set for each element of their own frame.
        flat = jnp.mean(frames[-1].push("vector", h.reshape(*h.shape[:-2], -1, 3)), axis=-3)
        made = reframed(layer, flat, jnp.repeat(real, vectors, axis=-1))
        return made.pull("vector" if keep_mean else "position", flat).reshape(h.shape)

    first = reframed(0, x, real)
    h = jnp.concatenate([first.pull("position", x), first.pull("vector", v)], axis=-1)
    seen = jnp.broadcast_to(real[..., None, :], h.shape[:-1])
    out = mpnn_apply(params, h, edges, config, mask=seen, between=between, precision=precision)
    out = jnp.mean(frames[-1].push("vector", out), axis=-3) + first.translation[..., None, :]
    return jnp.where(real[..., None], out, jnp.zeros_like(out))


class FAGNN(nn.Module):
    """Linen module over `fa_gnn_apply`.

    Attributes:
      config: static description.
      group: "E" or "SE".
      stop_gradient: whether frames are constants.
    """

    config: MPNNConfig = MPNNConfig()
    group: Literal["E", "SE"] = "E"
    stop_gradient: bool = True

    @nn.compact
    def __call__(
        self,
        positions: Array,
        velocities: Array,
        charges: Array,
        *,
        mask: Array | None = None,
        key: PRNGKey | None = None,
    ) -> Array:
        """Predicts positions `[..., n, 3]` from positions and velocities `[..., n, 3]` and charges `[..., n]`."""
        params = self.param("network", lambda key: mpnn_init(key, self.config, dtype=positions.dtype))
        return fa_gnn_apply(
            params, positions, velocities, charges, self.config, mask=mask, key=key, group=self.group,
            stop_gradient=self.stop_gradient,
        )  # fmt: skip
