"""Classifiers of point clouds: the library's PointNet or DGCNN on points, maximum and mean over them, two layers."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames import (
    DGCNNConfig,
    PointNetConfig,
    dgcnn_apply,
    dgcnn_init,
    pointnet_apply,
    pointnet_init,
)
from equivariant_jax.nn import batch_norm, batch_norm_init, dense_apply, dense_init, global_max

__all__ = ["CloudClassifierConfig", "cloud_classifier_apply", "cloud_classifier_init"]


@dataclasses.dataclass(frozen=True)
class CloudClassifierConfig:
    """Static description.

    Attributes:
      backbone: "pointnet" or "dgcnn".
      widths: PointNet's layers on points, or the width of each of DGCNN's blocks.
      features: of each point before the pooling over points.
      neighbours: of DGCNN.
      hidden: width of the layer after the pooling.
      dropout: rate before the last layer.
      num_classes: of the logits.
    """

    backbone: Literal["pointnet", "dgcnn"] = "pointnet"
    widths: tuple[int, ...] = (32, 64, 128)
    features: int = 128
    neighbours: int = 20
    hidden: int = 128
    dropout: float = 0.3
    num_classes: int = 10

    def inner(self) -> PointNetConfig | DGCNNConfig:
        """The backbone's own description."""
        if self.backbone == "pointnet":
            return PointNetConfig(widths=self.widths, head=(self.features,), channels_out=self.features)
        return DGCNNConfig(
            neighbours=self.neighbours, blocks=tuple((width,) for width in self.widths), width=self.features,
            head=(self.features,), channels_out=self.features, pool="max", skip_input=False, dropout=0.0,
        )  # fmt: skip


def cloud_classifier_init(key: PRNGKey, config: CloudClassifierConfig, *, dtype=jnp.float32) -> tuple[PyTree, PyTree]:
    """Draws parameters, and running statistics.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `backbone`, `hidden` (dense and norm) and `out`; and the statistics of the first two.
    """
    inner = config.inner()
    keys = jax.random.split(key, 3)
    init = pointnet_init if isinstance(inner, PointNetConfig) else dgcnn_init
    backbone, first = init(keys[0], inner, dtype=dtype)  # pyright: ignore[reportArgumentType]
    norm, second = batch_norm_init(config.hidden, dtype=dtype)
    hidden = {"dense": dense_init(keys[1], 2 * config.features, config.hidden, dtype=dtype), "norm": norm}
    out = dense_init(keys[2], config.hidden, config.num_classes, dtype=dtype)
    return {"backbone": backbone, "hidden": hidden, "out": out}, {"backbone": first, "hidden": second}


def cloud_classifier_apply(
    params: PyTree,
    statistics: PyTree,
    x: Array,
    config: CloudClassifierConfig,
    *,
    training: bool = False,
    key: PRNGKey | None = None,
) -> tuple[Array, PyTree]:
    """Labels clouds.

    Args:
      params: from `cloud_classifier_init`.
      statistics: from `cloud_classifier_init` or an earlier call.
      x: points, shape `[..., n, 3]`.
      config: static.
      training: static; whether normalisations use the statistics of the batch.
      key: for dropout, or None for none.

    Returns:
      Logits `[..., num_classes]` and the statistics.
    """
    inner = config.inner()
    if isinstance(inner, PointNetConfig):
        x, first = pointnet_apply(params["backbone"], statistics["backbone"], x, inner, training=training)
        x = jax.nn.relu(x)
    else:
        x, first = dgcnn_apply(params["backbone"], statistics["backbone"], x, inner, training=training)
    x = jnp.concatenate([global_max(x, axes=1), jnp.mean(x, axis=-2)], axis=-1)
    x = dense_apply(params["hidden"]["dense"], x)
    x, second = batch_norm(params["hidden"]["norm"], statistics["hidden"], x, training=training)
    x = jax.nn.relu(x)
    if key is not None and config.dropout > 0:
        kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
        x = jnp.where(kept, x / np.asarray(1 - config.dropout, x.dtype), jnp.zeros((), x.dtype))
    return dense_apply(params["out"], x), {"backbone": first, "hidden": second}
