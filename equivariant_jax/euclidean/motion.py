r"""Predicts the motion of interacting points: vectors that rotate, scalars that do not, and categories of pairs.

For past positions X `[agents, past, n]`, an orthogonal Q, a shift t and a permutation pi

    f(X Q^T + t) = f(X) Q^T + t,    f(pi X) = pi f(X),    c(X Q^T + t) = c(X),    c_{pi i, pi j}(pi X) = c_ij(X).

Each agent has C vectors G (from its positions' cosine transform over time) and H scalars h (from its speeds and turning
angles). Pairs get a soft category c, once; each layer then scales the vectors by functions of the scalars, adds to each
agent the differences to the others, weighted by a network of the pair's category, adds velocities, and cuts vectors
(`vectors.vector_relu`). The last layer may have several heads.

Layers of pairs are applied to the agents' part once per agent, and sums over pairs make no array of agents x agents x
channels x n (`motion_pairs`). What the official code computes in its last layer without using it (78,852 of 468,166
parameters for charged particles) is left out. For many agents see `motion_graph`.

Reference: Xu et al. 2023, arXiv:2303.10876, and its official code.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.motion_pairs import AllPairs, Pairs
from equivariant_jax.euclidean.vectors import dct_matrix, mix_channels, turning_angles, vector_relu
from equivariant_jax.nn.dense import dense_apply, dense_init

__all__ = ["EqMotion", "MotionConfig", "eqmotion_apply", "eqmotion_init", "motion_on_pairs"]


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """Static description.

    Attributes:
      past: times of the input.
      future: times of the prediction.
      scalars: H, even.
      channels: C, of the vectors.
      layers: number of layers, the heads' among them.
      categories: K, of pairs.
      temperature: of the categories' softmax.
      heads: predictions; each is a last layer and an output map of its own.
      interaction: whether agents see each other at all (False: the ablation, each agent alone but for the common mean).
      published_logits: whether the categories' logits pass through SiLU, as in the official code, so that none is below
        -0.28.
    """

    past: int = 20
    future: int = 20
    scalars: int = 64
    channels: int = 64
    layers: int = 4
    categories: int = 2
    temperature: float = 1.0
    heads: int = 1
    interaction: bool = True
    published_logits: bool = False

    def __post_init__(self):
        sizes = (self.past, self.future, self.scalars, self.channels, self.layers, self.categories, self.heads)
        if min(sizes) < 1 or self.past < 2 or self.scalars % 2 or self.temperature <= 0:
            raise ValueError(
                f"got past={self.past}, future={self.future}, scalars={self.scalars}, channels={self.channels}, "
                f"layers={self.layers}, categories={self.categories}, heads={self.heads}, "
                f"temperature={self.temperature}; expected positive numbers, at least two past times, even scalars."
            )


def _perceptron_init(key: PRNGKey, widths: tuple[int, ...], dtype) -> PyTree:
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(dense_init(k, *pair, dtype=dtype) for k, pair in zip(keys, itertools.pairwise(widths), strict=True))


def _mixing_init(key: PRNGKey, channels_in: int, channels_out: int, dtype) -> Array:
    return dense_init(key, channels_in, channels_out, use_bias=False, dtype=dtype)["kernel"]


def _layer_init(key: PRNGKey, config: MotionConfig, *, last: bool, dtype) -> PyTree:
    h, c = config.scalars, config.channels
    keys = jax.random.split(key, 8)
    draw = lambda k: _perceptron_init(k, (2 * h + c, h, c), dtype)  # noqa: E731
    params = {
        "self": dense_init(keys[0], h, c, dtype=dtype),
        "category": jax.vmap(draw)(jax.random.split(keys[1], config.categories)),
        "factor": _perceptron_init(keys[2], (c, c, c), dtype),
        "velocity": _mixing_init(keys[3], c, c, dtype),
        "query": _mixing_init(keys[4], c, c, dtype),
        "key": _mixing_init(keys[5], c, c, dtype),
    }
    if last:
        return params | {"out": _mixing_init(keys[6], c, config.future, dtype)}
    key_edge, key_node = jax.random.split(keys[7])
    return params | {
        "edge": _perceptron_init(key_edge, (2 * h + c, h, h), dtype),
        "node": _perceptron_init(key_node, (2 * h, h, h), dtype),
    }


def eqmotion_init(key: PRNGKey, config: MotionConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `speed`, `angle` (`[past, scalars / 2]` with bias), `positions`, `velocities` (`[past, channels]`), the networks
      of `reasoning`, `layers` (stacked, `layers - 1` of them) and `heads` (stacked).
    """
    h, c = config.scalars, config.channels
    keys = iter(jax.random.split(key, 10))
    reasoning = {
        "distance": _perceptron_init(next(keys), (2 * c, h, 2 * c), dtype),
        "edge": _perceptron_init(next(keys), (2 * h + 2 * c, h, h), dtype),
        "node": _perceptron_init(next(keys), (2 * h, h, h), dtype),
        "logits": _perceptron_init(next(keys), (2 * h + 2 * c, h, config.categories), dtype),
    }
    params = {
        "speed": dense_init(next(keys), config.past, h // 2, dtype=dtype),
        "angle": dense_init(next(keys), config.past, h // 2, dtype=dtype),
        "positions": _mixing_init(next(keys), config.past, c, dtype),
        "velocities": _mixing_init(next(keys), config.past, c, dtype),
        "reasoning": reasoning,
    }
    inner = jax.random.split(next(keys), max(config.layers - 1, 1))
    heads = jax.random.split(next(keys), config.heads)
    if config.layers > 1:
        params["layers"] = jax.vmap(lambda k: _layer_init(k, config, last=False, dtype=dtype))(inner)
    params["heads"] = jax.vmap(lambda k: _layer_init(k, config, last=True, dtype=dtype))(heads)
    return params


def _perceptron(params: PyTree, x: Array, precision) -> Array:
    """SiLU after every layer."""
    for layer in params:
        x = jax.nn.silu(dense_apply(layer, x, precision=precision))
    return x


def _of_pairs(layer: PyTree, scalars: Array, pair: Array, pairs: Pairs, precision) -> Array:
    """`[h_i, h_j, pair_ij] W + b`, `[pair axes, out]`; the agents' parts once per agent."""
    kernel, h = layer["kernel"], scalars.shape[-1]
    first = jnp.matmul(scalars, kernel[:h], precision=precision)
    second = jnp.matmul(scalars, kernel[h : 2 * h], precision=precision)
    out = jnp.matmul(pair, kernel[2 * h :], precision=precision) + pairs.of_agents(first, second)
    return out + layer["bias"].reshape((1,) * (out.ndim - 1) + (-1,))


def _pair_network(params: PyTree, scalars: Array, pair: Array, pairs: Pairs, precision) -> Array:
    hidden = jax.nn.silu(_of_pairs(params[0], scalars, pair, pairs, precision))
    return dense_apply(params[1], hidden, precision=precision)


def _categories(params: PyTree, scalars: Array, vectors: Array, pairs: Pairs, config: MotionConfig, precision) -> Array:
    distance = _perceptron(params["distance"], pairs.distances(vectors), precision)
    edge = jax.nn.silu(_pair_network(params["edge"], scalars, distance, pairs, precision))
    seen = jnp.concatenate([scalars, pairs.total(edge)], axis=-1)
    node = _perceptron(params["node"], seen, precision)
    logits = _pair_network(params["logits"], node, distance, pairs, precision)
    if config.published_logits:
        logits = jax.nn.silu(logits)
    return jax.nn.softmax(logits / np.asarray(config.temperature, logits.dtype))


def _layer(
    params: PyTree, scalars: Array, vectors: Array, velocities: Array, categories: Array, pairs: Pairs,
    config: MotionConfig, precision,
) -> tuple[Array, Array | None]:  # fmt: skip
    """One layer; the scalars are None where the layer has no networks for them."""
    distances = pairs.distances(vectors)
    gate = jax.nn.silu(dense_apply(params["self"], scalars, precision=precision))
    moved = vectors + gate[..., None] * (vectors - pairs.centre(vectors))
    if config.interaction:
        each = jax.vmap(lambda p: jax.nn.silu(_pair_network(p, scalars, distances, pairs, precision)))
        message = jnp.sum(each(params["category"]) * jnp.moveaxis(categories, -1, 0)[..., None], axis=0)
        moved = moved + pairs.pull(_perceptron(params["factor"], message, precision), vectors)
    moved = moved + mix_channels(params["velocity"], velocities, precision=precision)
    centre = pairs.centre(moved)
    around = moved - centre
    cut = vector_relu(
        mix_channels(params["query"], around, precision=precision),
        mix_channels(params["key"], around, precision=precision),
    )
    vectors = pairs.real(cut + centre)
    if "edge" not in params:
        return vectors, None
    gathered = jnp.zeros_like(scalars)
    if config.interaction:
        gathered = pairs.total(jax.nn.silu(_pair_network(params["edge"], scalars, distances, pairs, precision)))
    seen = jnp.concatenate([scalars, gathered], axis=-1)
    new = jax.nn.silu(dense_apply(params["node"][0], seen, precision=precision))
    return vectors, scalars + dense_apply(params["node"][1], new, precision=precision)


def motion_on_pairs(
    params: PyTree, positions: Array, pairs: Pairs, config: MotionConfig, *, recompute: bool, precision
) -> tuple[Array, Array]:
    """The network on any kind of pairs; `eqmotion_apply` and `eqmotion_graph_apply` check shapes and call it.

    Args:
      params: from `eqmotion_init`.
      positions: past positions, shape `[agents axes, past, n]`, dtype of `params`.
      pairs: of the agents.
      config: static.
      recompute: static; whether the backward pass computes each layer's arrays of pairs again.
      precision: static; of the products.

    Returns:
      Predictions `[..., heads, agents, future, n]` and categories `[pair axes, categories]`.
    """
    dtype = positions.dtype
    if pairs.empty:  # the differences and sums that interaction adds are of nothing
        config = dataclasses.replace(config, interaction=False)
    origin = pairs.centre(pairs.real(positions))
    x = pairs.real(positions - origin)
    steps = x[..., 1:, :] - x[..., :-1, :]
    velocity = jnp.concatenate([steps[..., :1, :], steps], axis=-2)
    speed = dense_apply(params["speed"], safe_norm(velocity), precision=precision)
    angle = dense_apply(params["angle"], turning_angles(velocity), precision=precision)
    scalars = jnp.concatenate([speed, angle], axis=-1)
    transform = dct_matrix(config.past, dtype=dtype).T
    z, w = (mix_channels(transform, part, precision=precision) for part in (x, velocity))
    centre = pairs.centre(z)
    vectors = pairs.real(mix_channels(params["positions"], z - centre, precision=precision) + centre)
    velocities = mix_channels(params["velocities"], w, precision=precision)
    both = jnp.concatenate([vectors, velocities], axis=-2)
    categories = _categories(params["reasoning"], scalars, both, pairs, config, precision)

    def layer(carry: tuple[Array, Array], layer_params: PyTree) -> tuple[tuple[Array, Array], None]:
        vectors, scalars = _layer(layer_params, carry[1], carry[0], velocities, categories, pairs, config, precision)
        return (vectors, carry[1] if scalars is None else scalars), None

    if recompute:
        layer = jax.checkpoint(layer, prevent_cse=False)  # in a loop nothing is merged anyway
    if "layers" in params:
        (vectors, scalars), _ = lax.scan(layer, (vectors, scalars), params["layers"])

    def head(head_params: PyTree) -> Array:
        out, _ = _layer(head_params, scalars, vectors, velocities, categories, pairs, config, precision)
        centre = pairs.centre(out)
        out = mix_channels(head_params["out"], out - centre, precision=precision) + centre
        return pairs.real(mix_channels(dct_matrix(config.future, dtype=dtype), out, precision=precision) + origin)

    return jax.vmap(head, out_axes=-4)(params["heads"]), categories


def eqmotion_apply(
    params: PyTree,
    positions: Array,
    config: MotionConfig,
    mask: Array | None = None,
    *,
    recompute: bool = True,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
    """Predicts future positions, and categories of pairs.

    Args:
      params: from `eqmotion_init`.
      positions: past positions, shape `[..., agents, past, n]`, n = 2 or 3 or any other, dtype of `params`.
      config: static.
      mask: which agents are there, bool, shape `[..., agents]`; None for all. What stands at the others has no effect.
      recompute: static; whether the backward pass computes each layer's arrays of pairs again instead of keeping them.
      precision: static; of the products.

    Returns:
      Predictions, shape `[..., heads, agents, future, n]`, zero for agents that are not there; and the categories'
      probabilities `[..., agents, agents, categories]` for every ordered pair (those of an agent with itself, or with
      one that is not there, mean nothing).

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> config = MotionConfig(past=5, future=3, scalars=8, channels=8, heads=2)
      >>> predicted, categories = eqmotion_apply(eqmotion_init(jax.random.key(0), config), jnp.zeros((4, 5, 2)), config)
      >>> predicted.shape, categories.shape
      ((2, 4, 3, 2), (4, 4, 2))
    """
    if positions.ndim < 3 or positions.shape[-2] != config.past:
        raise ValueError(f"positions: got shape {positions.shape}, expected [..., agents, {config.past}, n].")
    if mask is None:
        mask = jnp.ones(positions.shape[:-2], bool)
    if mask.shape != positions.shape[:-2]:
        raise ValueError(f"mask: got shape {mask.shape}, expected {positions.shape[:-2]}.")
    pairs = AllPairs.of(mask)
    return motion_on_pairs(params, positions, pairs, config, recompute=recompute, precision=precision)


class EqMotion(nn.Module):
    """Linen module over `eqmotion_apply`.

    Attributes:
      config: static description.
    """

    config: MotionConfig

    @nn.compact
    def __call__(self, positions: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Predicts `[..., heads, agents, future, n]` and categories `[..., agents, agents, categories]`."""
        params = self.param("motion", lambda key: eqmotion_init(key, self.config, dtype=positions.dtype))
        return eqmotion_apply(params, positions, self.config, mask)
