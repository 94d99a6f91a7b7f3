"""EqMotion beside the official order of its sums, and beside EGNN: `benchmarks.motion`.

float32. "eqmotion" is `eqmotion_apply`; "official order" has the same parameters and results, compiled, but as the
official code computes: an array of agents x agents x channels x n, the inputs of each pair written out, the cosine
transform made anew in every call, loops over layers, categories and heads. "EGNN" predicts as many frames from as many,
with the same width: another, smaller network. A training step is the gradient with respect to the parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.euclidean.motion import MotionConfig, eqmotion_apply, eqmotion_init
from equivariant_jax.euclidean.vectors import turning_angles, vector_relu
from experiments.benchmarks.harness import Case
from experiments.claims import Claims
from experiments.euclidean.motion_models import make_predictor
from experiments.tables import markdown, ratio_cells

__all__ = ["PRESETS", "Config", "cases", "claims", "tables"]

CARD = "eqmotion"
OURS, OFFICIAL, EGNN = "eqmotion", "official order", "EGNN"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      batch: scenes.
      agents: numbers of agents, of a single head.
      heads: heads of a further case with one agent, as for pedestrians.
      width: H and C.
      layers: number of layers.
      past: frames of the input, and to predict.
    """

    batch: int = 32
    agents: tuple[int, ...] = (5, 20)
    heads: int = 20
    width: int = 64
    layers: int = 4
    past: int = 20


PRESETS = {
    "ci": Config(batch=2, agents=(3,), heads=2, width=8, layers=2, past=5),
    "cpu": Config(),
    # The published batch, on an accelerator.
    "paper": Config(batch=100, agents=(5, 20, 60)),
}


def _dense(layer: PyTree, x: Array) -> Array:
    out = jnp.matmul(x, layer["kernel"], precision="highest")
    return out + layer["bias"].reshape((1,) * (out.ndim - 1) + (-1,)) if "bias" in layer else out


def _perceptron(layers: Sequence[PyTree], x: Array) -> Array:
    for layer in layers:
        x = jax.nn.silu(_dense(layer, x))
    return x


def _two(layers: Sequence[PyTree], x: Array) -> Array:
    return _dense(layers[1], jax.nn.silu(_dense(layers[0], x)))


def _transform(length: int) -> Array:
    k = jnp.arange(length, dtype=jnp.float32)
    scale = jnp.where(k == 0, jnp.sqrt(1 / length), jnp.sqrt(2 / length))
    return scale[:, None] * jnp.cos(jnp.pi / length * k[:, None] * (k[None, :] + 0.5))


def _mix(kernel: Array, vectors: Array) -> Array:
    return jnp.einsum("...cn,cd->...dn", vectors, kernel, precision="highest")


def _pairs(h: Array, distance: Array) -> Array:
    """`[h_i, h_j, d_ij]`, written out."""
    shape = (*distance.shape[:-1], h.shape[-1])
    first, second = jnp.broadcast_to(h[:, :, None], shape), jnp.broadcast_to(h[:, None], shape)
    return jnp.concatenate([first, second, distance], axis=-1)


def _centre(vectors: Array) -> Array:
    return jnp.mean(vectors, axis=(1, 2), keepdims=True)


def _layer(params: PyTree, h: Array, g: Array, u: Array, c: Array, others: Array) -> tuple[Array, Array]:
    delta = g[:, :, None] - g[:, None]
    seen = _pairs(h, safe_norm(delta))
    moved = g + jax.nn.silu(_dense(params["self"], h))[..., None] * (g - _centre(g))
    message = jnp.zeros((*seen.shape[:-1], g.shape[2]), g.dtype)
    for k in range(c.shape[-1]):
        one = _perceptron(jax.tree.map(lambda leaf, k=k: leaf[k], params["category"]), seen)
        message = message + c[..., k : k + 1] * one
    moved = moved + jnp.sum(_perceptron(params["factor"], message)[..., None] * delta, axis=2)
    moved = moved + _mix(params["velocity"], u)
    centre = _centre(moved)
    around = moved - centre
    g = vector_relu(_mix(params["query"], around), _mix(params["key"], around)) + centre
    if "edge" in params:
        gathered = jnp.sum(jax.nn.silu(_two(params["edge"], seen)) * others, axis=2)
        h = h + _two(params["node"], jnp.concatenate([h, gathered], axis=-1))
    return g, h


def _official(params: PyTree, x: Array, config: MotionConfig) -> tuple[Array, Array]:
    """The formulas in the order of the official code: `[batch, agents, past, n]`."""
    others = jnp.asarray(~np.eye(x.shape[1], dtype=bool), x.dtype)[None, :, :, None]
    origin = _centre(x)
    x = x - origin
    velocity = jnp.concatenate([x[:, :, 1:2] - x[:, :, :1], x[:, :, 1:] - x[:, :, :-1]], axis=2)
    # Its arc cosine differs from this near straight motion, by rounding.
    h = jnp.concatenate(
        [_dense(params["speed"], safe_norm(velocity)), _dense(params["angle"], turning_angles(velocity))], axis=-1
    )
    p = _transform(config.past)
    z, w = (jnp.einsum("kt,batn->bakn", p, part, precision="highest") for part in (x, velocity))
    g = _mix(params["positions"], z - _centre(z)) + _centre(z)
    u = _mix(params["velocities"], w)
    both = jnp.concatenate([g, u], axis=2)
    r = params["reasoning"]
    distance = _perceptron(r["distance"], safe_norm(both[:, :, None] - both[:, None]))
    edge = jax.nn.silu(_two(r["edge"], _pairs(h, distance)))
    node = _perceptron(r["node"], jnp.concatenate([h, jnp.sum(edge * others, axis=2)], axis=-1))
    c = jax.nn.softmax(_two(r["logits"], _pairs(node, distance)) / np.float32(config.temperature))
    for a in range(config.layers - 1):
        g, h = _layer(jax.tree.map(lambda leaf, a=a: leaf[a], params["layers"]), h, g, u, c, others)
    found = []
    for a in range(config.heads):
        head = jax.tree.map(lambda leaf, a=a: leaf[a], params["heads"])
        out, _ = _layer(head, h, g, u, c, others)
        out = _mix(head["out"], out - _centre(out)) + _centre(out)
        found.append(jnp.einsum("kt,bakn->batn", _transform(config.future), out, precision="highest") + origin)
    return jnp.stack(found, axis=1), c


def _step(function: Callable) -> Callable:
    return jax.grad(lambda params, x: jnp.mean(jnp.square(function(params, x))))


def cases(config: Config) -> Iterator[Case]:
    """Yields comparisons, forward and with the gradient of the parameters."""
    sizes = [(agents, 1) for agents in config.agents] + [(1, config.heads)]
    for agents, heads in sizes:
        network = MotionConfig(
            past=config.past, future=config.past, scalars=config.width, channels=config.width, layers=config.layers,
            heads=heads,
        )  # fmt: skip
        options = dataclasses.make_dataclass("Options", ["model", "past", "future", "heads", "layers", "egnn_width"])
        egnn = make_predictor(
            options("egnn", config.past, config.past, heads, config.layers, config.width), agents, 3
        )  # fmt: skip
        steps = jax.random.normal(jax.random.key(0), (config.batch, agents, config.past, 3))
        x = jnp.cumsum(steps, axis=2) / 5
        params = eqmotion_init(jax.random.key(1), network)
        functions = {
            OURS: lambda params, x, network=network: eqmotion_apply(params, x, network)[0],
            OFFICIAL: lambda params, x, network=network: _official(params, x, network)[0],
            EGNN: functools.partial(_egnn, egnn),
        }
        arguments = {OURS: (params, x), OFFICIAL: (params, x), EGNN: (egnn.init(jax.random.key(2)), x)}
        for mode in ("forward", "training step"):
            wrap = _step if mode == "training step" else (lambda function: function)
            contenders = {name: wrap(function) for name, function in functions.items()}
            yield Case(
                f"N={agents}, {heads} head{'s' * (heads > 1)}, {mode}", contenders, arguments, reference=OFFICIAL,
                tolerance=1e-3, different=(EGNN,),
            )  # fmt: skip


def _egnn(predictor: Any, params: PyTree, x: Array) -> Array:
    return predictor.apply(params, x, jnp.ones(x.shape[:2], bool))[0]


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates whether ours is not slower than the official order.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for row in rows:
        claim.at_least("speed", f"{row['case']}: {OFFICIAL} over ours", 1.0, row["ratios"][OFFICIAL])
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results: times as ratios to ours, memory of temporaries.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("case", "ours", "official order", "EGNN", "compile", "official's", "memory", "official's")
    rows = []
    for result in found.values():
        for row in result["rows"]:
            ours, official = row["contenders"][OURS], row["contenders"][OFFICIAL]
            rows.append((
                row["case"], f"{row['ours_ms']:.3g} ms", *ratio_cells(row, (OFFICIAL, EGNN)),
                f"{ours['compile_s']:.1f} s", f"{official['compile_s']:.1f} s",
                f"{ours['temporary_mbyte']:.1f} MB", f"{official['temporary_mbyte']:.1f} MB",
            ))  # fmt: skip
    return {"benchmarks.motion": markdown(heads, rows)}
