"""A policy that makes tours: an attention encoder, and a decoder that points at the next city (Kool et al. 2019).

Permutation equivariant in the cities, and with no symmetry of the plane: what it sees of space are its inputs.

Reference: Kool, van Hoof, Welling 2019, arXiv:1803.08475.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn import batch_norm, batch_norm_init, dense_apply, dense_init

__all__ = ["AttentionModelConfig", "attention_model_init", "decode", "encode", "lengths"]


@dataclasses.dataclass(frozen=True)
class AttentionModelConfig:
    """Static description.

    Attributes:
      width: of all features, a multiple of `heads`.
      heads: of all attentions but the last, which points.
      depth: layers of the encoder.
      hidden: width inside of the encoder's dense blocks.
      clip: largest absolute logit of the pointer.
    """

    width: int = 128
    heads: int = 8
    depth: int = 3
    hidden: int = 512
    clip: float = 10.0


def attention_model_init(key: PRNGKey, config: AttentionModelConfig, *, dtype=jnp.float32) -> tuple[PyTree, PyTree]:
    """Draws parameters, and running statistics of the encoder's normalisations.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `embed`, `layers`, the decoder's `keys` (glimpse keys, glimpse values, pointer keys), `context`, `whole`,
      `mixed`, and `start` (what stands for the first and last city before there is one, `[2, width]`); the statistics.
    """
    d = config.width
    keys = iter(jax.random.split(key, 6 + 4 * config.depth))
    layers, statistics = [], []
    for _ in range(config.depth):
        first, running_first = batch_norm_init(d, dtype=dtype)
        second, running_second = batch_norm_init(d, dtype=dtype)
        layers.append({
            "qkv": dense_init(next(keys), d, 3 * d, use_bias=False, dtype=dtype),
            "mixed": dense_init(next(keys), d, d, use_bias=False, dtype=dtype),
            "up": dense_init(next(keys), d, config.hidden, dtype=dtype),
            "down": dense_init(next(keys), config.hidden, d, dtype=dtype),
            "first": first,
            "second": second,
        })  # fmt: skip
        statistics.append({"first": running_first, "second": running_second})
    params = {
        "embed": dense_init(next(keys), 2, d, dtype=dtype),
        "layers": layers,
        "keys": dense_init(next(keys), d, 3 * d, use_bias=False, dtype=dtype),
        "whole": dense_init(next(keys), d, d, use_bias=False, dtype=dtype),
        "context": dense_init(next(keys), 2 * d, d, use_bias=False, dtype=dtype),
        "mixed": dense_init(next(keys), d, d, use_bias=False, dtype=dtype),
        "start": jax.random.uniform(next(keys), (2, d), dtype, -1.0, 1.0),
    }
    return params, statistics


def _split(x: Array, heads: int) -> Array:
    """`[..., n, d]` to `[..., heads, n, d / heads]`."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -2, -3)


def _merged(x: Array) -> Array:
    x = jnp.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], -1)


def encode(
    params: PyTree, statistics: PyTree, x: Array, config: AttentionModelConfig, *, training: bool = False
) -> tuple[Array, PyTree]:
    """Embeds cities.

    Args:
      params: from `attention_model_init`.
      statistics: likewise, or from an earlier call.
      x: cities, shape `[batch, n, 2]`.
      config: static.
      training: static; whether normalisations use the statistics of the batch.

    Returns:
      Features `[batch, n, width]` and the statistics.
    """
    x, after = dense_apply(params["embed"], x), []
    root = np.asarray((config.width // config.heads) ** -0.5, x.dtype)
    for layer, running in zip(params["layers"], statistics, strict=True):
        q, k, v = (_split(part, config.heads) for part in jnp.split(dense_apply(layer["qkv"], x), 3, axis=-1))
        attention = jax.nn.softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * root, axis=-1)
        x = x + dense_apply(layer["mixed"], _merged(jnp.einsum("bhij,bhjd->bhid", attention, v)))
        x, first = batch_norm(layer["first"], running["first"], x, training=training)
        x = x + dense_apply(layer["down"], jax.nn.relu(dense_apply(layer["up"], x)))
        x, second = batch_norm(layer["second"], running["second"], x, training=training)
        after.append({"first": first, "second": second})
    return x, after


def decode(params: PyTree, nodes: Array, config: AttentionModelConfig, *, key: PRNGKey | None = None):
    """Visits all cities, one after the other.

    Args:
      params: from `attention_model_init`.
      nodes: from `encode`, shape `[batch, n, width]`.
      config: static.
      key: draws from the policy; None takes the likeliest city each time.

    Returns:
      Tours `[batch, n]`, int32, and their log probabilities `[batch]`.
    """
    batch, n, d = nodes.shape
    glimpse_keys, glimpse_values, pointer = jnp.split(dense_apply(params["keys"], nodes), 3, axis=-1)
    glimpse_keys, glimpse_values = _split(glimpse_keys, config.heads), _split(glimpse_values, config.heads)
    whole = dense_apply(params["whole"], jnp.mean(nodes, axis=1))
    never = jnp.asarray(-1e9, nodes.dtype)
    root = np.asarray((d // config.heads) ** -0.5, nodes.dtype)

    def visit(carry, step):
        first, last, visited = carry
        context = whole + dense_apply(params["context"], jnp.concatenate([first, last], axis=-1))
        query = context.reshape(batch, config.heads, -1)
        score = jnp.einsum("bhd,bhnd->bhn", query, glimpse_keys) * root
        weight = jax.nn.softmax(jnp.where(visited[:, None], never, score), axis=-1)
        glimpse = jnp.einsum("bhn,bhnd->bhd", weight, glimpse_values).reshape(batch, d)
        logits = jnp.einsum("bd,bnd->bn", dense_apply(params["mixed"], glimpse), pointer)
        logits = config.clip * jnp.tanh(logits * np.asarray(d**-0.5, nodes.dtype))
        logits = jax.nn.log_softmax(jnp.where(visited, never, logits), axis=-1)
        if key is None:
            city = jnp.argmax(logits, axis=-1)
        else:
            city = jax.random.categorical(jax.random.fold_in(key, step), logits)
        chosen = jnp.take_along_axis(nodes, city[:, None, None], axis=1)[:, 0]
        probability = jnp.take_along_axis(logits, city[:, None], axis=-1)[:, 0]
        first = jnp.where(step == 0, chosen, first)
        visited = visited | (jnp.arange(n)[None] == city[:, None])
        return (first, chosen, visited), (city.astype(jnp.int32), probability)

    start = jnp.broadcast_to(params["start"][:, None], (2, batch, d))
    carry = (start[0], start[1], jnp.zeros((batch, n), bool))
    _, (tours, probabilities) = lax.scan(visit, carry, jnp.arange(n))
    return tours.T, jnp.sum(probabilities, axis=0)


def lengths(x: Array, tours: Array) -> Array:
    """Lengths `[batch]` of closed tours `[batch, n]` through cities `[batch, n, 2]`."""
    visited = jnp.take_along_axis(x, tours[..., None], axis=-2)
    return jnp.sum(safe_norm(visited - jnp.roll(visited, -1, axis=-2)), axis=-1)
