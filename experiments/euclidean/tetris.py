r"""Tells the eight tetris shapes apart, two of which are mirror images: `euclidean.tetris`.

Each shape of four cubes (nodes, edges between neighbours) is seen in training in one orientation; the test turns all
shapes by random rotations. The classifier must be invariant to rotations and translations, but not to reflections: its
group is SE(3), and the mirror image of a chiral shape is another class. Its logits are

  mean over nodes of (scalars + pseudoscalars),

where pseudoscalars change sign under reflection. A network whose products have natural paths only (`gaunt`) has no
pseudoscalars: it is invariant under all of O(3), gives the mirror pair the same logits, whatever its weights, and gets
7 shapes right at most. With the odd paths, by the Poisson bracket (`gaunt_bracket`) or by Clebsch-Gordan (`cg`), it
gets all 8. `mirror_gap` is the largest difference of the pair's logits over the largest logit, before and after
training.

A shape counts as right if its logit exceeds all others by `margin`: of two equal logits rounding would pick one at
random, and a tie is no answer. `argmax_right` counts the largest logit whatever its lead, mean over rotations.

Card, point 8: "on tetris a Gaunt-only natural-parity net cannot exceed 7/8 (mirror pair); with the bracket it reaches
8/8". Command: `python -m experiments euclidean.tetris cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and
time stand in `experiments/results`, written by the run.
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.groups import SpecialOrthogonal
from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.euclidean.steerable import SteerableConfig, steerable_apply, steerable_init
from experiments.claims import Claims
from experiments.runs import cross_entropy, make_folder, num_parameters, write_metrics

__all__ = ["CARD", "PRESETS", "SHAPES", "VARIANTS", "Config", "claims", "logits", "network_config", "run", "shapes"]

CARD = "gaunt_tensor_product"
POINT = 8

# Cubes of each shape; the first two are mirror images of each other.
SHAPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "left screw": ((0, 0, 1), (0, 0, 0), (1, 0, 0), (1, 1, 0)),
    "right screw": ((0, 0, 1), (0, 0, 0), (1, 0, 0), (1, -1, 0)),
    "square": ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)),
    "line": ((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)),
    "corner": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "L": ((0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0)),
    "T": ((0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0)),
    "zigzag": ((0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "gaunt_bracket": {},
    "gaunt": {"product": "gaunt"},
    "cg": {"product": "cg_odd"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      product: "gaunt" (natural paths), "gaunt_bracket" or "cg_odd" (all paths).
      lmax: largest degree of features and attributes.
      channels: features per coefficient.
      layers: rounds of message passing.
      steps: optimiser steps, each on all eight shapes.
      learning_rate: peak of the warm-up and cosine schedule.
      num_rotations: random rotations of the test.
      margin: by how much the right logit must exceed all others.
      seed: of parameters and rotations.
    """

    product: Literal["gaunt", "gaunt_bracket", "cg_odd"] = "gaunt_bracket"
    lmax: int = 1
    channels: int = 8
    layers: int = 2
    steps: int = 300
    learning_rate: float = 1e-2
    num_rotations: int = 100
    margin: float = 1e-2
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(steps=200, num_rotations=20),
    "cpu": Config(),
    # The card asks for the counts only; more degrees and channels change nothing in them.
    "paper": Config(lmax=2, channels=32, layers=3, steps=2000, num_rotations=1000),
}


def shapes() -> np.ndarray:
    """All shapes about their centroids, float32 `[8, 4, 3]`."""
    cubes = np.array(list(SHAPES.values()), np.float32)
    return cubes - cubes.mean(axis=1, keepdims=True)


def network_config(config: Config) -> SteerableConfig:
    """Makes the network's configuration: logits from scalars, and from pseudoscalars if the product has any."""
    odd = config.product != "gaunt"
    return SteerableConfig(
        scalars_in=1, scalars_out=len(SHAPES), pseudoscalars_out=len(SHAPES) * odd, product=config.product,
        lmax=config.lmax, attribute_lmax=config.lmax, channels=config.channels, layers=config.layers,
        average_neighbours=1.5,
    )  # fmt: skip


def logits(params: PyTree, network: SteerableConfig, positions: Array) -> Array:
    """Classifies sets of cubes; cubes at distance one are neighbours.

    Args:
      params: from `steerable_init`.
      network: from `network_config`.
      positions: shape `[batch, n, 3]`, dtype of `params`.

    Returns:
      Logits, shape `[batch, 8]`.
    """
    distances = safe_norm(positions[:, None, :, :] - positions[:, :, None, :])
    ones = jnp.ones((*positions.shape[:-1], 1), positions.dtype)
    out = steerable_apply(params, positions, ones, network, edges=distances < 1.2)
    total = out.scalars + out.pseudoscalars if network.pseudoscalars_out else out.scalars
    return jnp.mean(total, axis=-2)


def _loss(network: SteerableConfig):
    def loss_fn(params, batch, *, key, model_state):
        del key, model_state
        losses = cross_entropy(logits(params, network, batch["positions"]), batch["labels"])
        return training.LossOutput({"cross_entropy": training.Mean.of(losses)})

    return loss_fn


def _mirror_gap(values: np.ndarray) -> float:
    """Largest difference between the logits of the mirror pair over the largest logit; values `[rotations, 8, 8]`."""
    return float(np.abs(values[:, 0] - values[:, 1]).max() / np.abs(values).max())


def _right(values: np.ndarray, margin: float) -> np.ndarray:
    """Number of shapes right under each rotation, `[rotations]`."""
    own = np.diagonal(values, axis1=1, axis2=2)
    others = np.where(np.eye(values.shape[-1], dtype=bool), -np.inf, values).max(axis=-1)
    return np.sum(own - others > margin, axis=1)


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one classifier and counts the shapes that it gets right under random rotations.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON).

    Returns:
      Flat dict of floats: `right_best` and `right_worst` (shapes right under the best and worst rotation), `accuracy`
      (mean over rotations), `argmax_right`, `train_right`, `mirror_gap_before`, `mirror_gap_after`, and so on.
    """
    workdir = make_folder(workdir)
    network = network_config(config)
    key_params, key_state, key_rotations = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=config.learning_rate,
            schedule="warmup_cosine",
            warmup_steps=config.steps // 20,
            total_steps=config.steps,
            clip_norm=1.0,
        )
    )
    positions = shapes()
    rotations = jax.vmap(SpecialOrthogonal(3).sample)(jax.random.split(key_rotations, config.num_rotations))
    turned = np.einsum("rij,snj->rsni", np.asarray(rotations, np.float64), positions).astype(np.float32)
    predict = jax.jit(lambda params, x: logits(params, network, x))

    def classify(params, x):
        return np.asarray(predict(params, x.reshape(-1, *x.shape[2:])), np.float64).reshape(*x.shape[:2], -1)

    state = training.TrainState.create(steerable_init(key_params, network), optimizer, key=key_state)
    before = classify(state.params, turned)
    batch = {"positions": positions, "labels": np.arange(len(positions), dtype=np.int32)}
    started = time.perf_counter()
    result = training.fit(
        training.make_train_step(_loss(network), optimizer),
        state,
        itertools.repeat(batch),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(log_every=min(50, config.steps)),
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    seconds = time.perf_counter() - started
    after = classify(result.state.params, turned)
    right = _right(after, config.margin)
    metrics = {
        "right_best": float(right.max()),
        "right_worst": float(right.min()),
        "accuracy": float(right.mean() / len(positions)),
        "argmax_right": float(_right(after, 0.0).mean()),
        "train_right": float(_right(classify(result.state.params, positions[None]), config.margin)[0]),
        "cross_entropy": float(result.train["cross_entropy"]),
        "mirror_gap_before": _mirror_gap(before),
        "mirror_gap_after": _mirror_gap(after),
        "parameters": float(num_parameters(result.state.params)),
        "train_seconds": seconds,
    }
    return write_metrics(workdir, metrics)


# Rounding of float32 through the network, against gaps of order one where the odd paths are.
ROUNDING = 1e-4


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show, over all seeds and rotations.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim = Claims(CARD)
    if "gaunt" in metrics:
        table = metrics["gaunt"]
        most = max(table["right_best"]["values"])
        claim.at_most(POINT, "gaunt alone: most shapes right under any rotation, any seed", 7, most)
        gap = max(*table["mirror_gap_before"]["values"], *table["mirror_gap_after"]["values"])
        statement = "gaunt alone: difference of the mirror pair's logits, relative, before and after training"
        claim.at_most(POINT, statement, ROUNDING, gap)
    for variant in ("gaunt_bracket", "cg"):
        if variant in metrics:
            least = min(metrics[variant]["right_worst"]["values"])
            claim.at_least(POINT, f"{variant}: fewest shapes right under any rotation, any seed", 8, least)
    return claim.found
