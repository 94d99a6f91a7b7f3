"""The ordinary twin of the affine classifier: as deep, plain convolutions, group normalisation, the same head."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.convolution import convolution, convolution_init
from equivariant_jax.nn.pooling import global_max, max_pool

__all__ = ["PlainConfig", "plain_apply", "plain_init"]


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """Static description.

    Attributes:
      channels: of all features.
      size: side of the kernels.
      groups: of the normalisation.
      head: width of the hidden dense layer.
      dropout: rate before the last layer.
      pools: after which of the four convolutions a 2 x 2 maximum follows.
      num_classes: number of labels.
    """

    channels: int = 32
    size: int = 5
    groups: int = 8
    head: int = 256
    dropout: float = 0.3
    pools: tuple[int, ...] = (2,)
    num_classes: int = 10


def plain_init(key: PRNGKey, config: PlainConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      Four convolutions with scale and bias `[channels]`, and the two dense layers.
    """
    *keys, key_hidden, key_out = jax.random.split(key, 6)
    c, head = config.channels, config.head
    norm = lambda width: {"scale": jnp.ones((width,), dtype), "bias": jnp.zeros((width,), dtype)}  # noqa: E731
    layers = [
        {"kernel": convolution_init(k, config.size, c_in, c, dtype=dtype), **norm(c)}
        for k, c_in in zip(keys, (1, c, c, c), strict=True)
    ]
    hidden = jax.random.uniform(key_hidden, (c, head), dtype, -1 / math.sqrt(c), 1 / math.sqrt(c))
    out = jax.random.uniform(key_out, (head, config.num_classes), dtype, -1 / math.sqrt(head), 1 / math.sqrt(head))
    bias = jnp.zeros((config.num_classes,), dtype)
    return {
        "layers": tuple(layers),
        "hidden": {"kernel": hidden, **norm(head)},
        "out": {"kernel": out, "bias": bias},
    }


def _group_norm(x: Array, groups: int, scale: Array, bias: Array) -> Array:
    *batch, height, width, channels = x.shape
    x = x.reshape(*batch, height, width, groups, channels // groups)
    mean = jnp.mean(x, axis=(-4, -3, -1), keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=(-4, -3, -1), keepdims=True)
    x = ((x - mean) * lax.rsqrt(variance + np.asarray(1e-5, x.dtype))).reshape(*batch, height, width, channels)
    return x * scale.reshape((1,) * (x.ndim - 1) + (-1,)) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def plain_apply(params: PyTree, images: Array, config: PlainConfig, *, key: PRNGKey | None = None) -> Array:
    """Labels images.

    Args:
      params: from `plain_init`.
      images: shape `[batch, height, width, 1]`.
      config: static.
      key: for dropout (training); None for none.

    Returns:
      Logits, shape `[batch, num_classes]`.
    """
    x = images
    for index, layer in enumerate(params["layers"]):
        x = convolution(x, layer["kernel"], boundary="zero")
        x = jax.nn.gelu(_group_norm(x, config.groups, layer["scale"], layer["bias"]), approximate=False)
        if index in config.pools:
            x = max_pool(x)
    x = global_max(x) @ params["hidden"]["kernel"]
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    x = (x - mean) * lax.rsqrt(variance + np.asarray(1e-5, x.dtype))
    x = jax.nn.gelu(x * params["hidden"]["scale"][None] + params["hidden"]["bias"][None], approximate=False)
    if key is not None and config.dropout > 0:
        kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
        x = jnp.where(kept, x / np.asarray(1 - config.dropout, x.dtype), jnp.zeros_like(x))
    return x @ params["out"]["kernel"] + params["out"]["bias"][None]
