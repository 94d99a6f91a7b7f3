r"""Labels solids in any pose and size after training on upright ones: `frames.shapes`.

Published (ModelNet40, trained without rotations, tested under all of SO(3), as quoted by a summary of Deng et al. 2021,
arXiv:2104.12229): plain DGCNN 16.6 %, VN-DGCNN 90.0 %. No table of TinvNN's paper could be opened. ModelNet40 must be
fetched by the user (preset `paper`; see `equivariant_jax.data.meshes`).

Presets `ci` and `cpu`: ten classes of procedural solids (`equivariant_jax.data.shapes`), 2,000 clouds of 128 points,
all upright; tested upright, rotated, and moved (rotated, scaled by 0.1 to 10, shifted by up to 3 in each coordinate).
All variants have one network, data and number of steps: `raw` sees points as they are; `augmented` sees them centred
and scaled, and in training rotated at random; `canonical`, `average` and `random` see distance coordinates with that
policy of signs (`random` is tested with `average`).

Continuity (point 4 of the card): clouds of the test are bent until the third moment of their first column vanishes;
then normal noise of standard deviation `jitter` moves each coordinate. What that changes in the logits is measured with
canonical signs and with the average over signs, of the same network.

Command: `python -m experiments frames.shapes cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.groups import SpecialOrthogonal
from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.meshes import modelnet40
from equivariant_jax.data.shapes import SHAPE_CLASSES, procedural_shapes
from equivariant_jax.frames import distance_coordinates
from experiments.claims import Claims
from experiments.frames.cloud_classifier import (
    CloudClassifierConfig,
    cloud_classifier_apply,
    cloud_classifier_init,
)
from experiments.results import seed_values
from experiments.runs import cross_entropy, make_folder, random_batches, train, write_metrics
from experiments.tables import cell, runs_table

__all__ = [
    "CARD",
    "POINTS",
    "PRESETS",
    "VARIANTS",
    "Config",
    "balanced",
    "claims",
    "random_similarity",
    "run",
    "tables",
]

CARD = "tinvnn"
POINTS = (1, 2, 3, 4, 5, 6)

VARIANTS: dict[str, dict[str, Any]] = {
    "canonical": {},
    "average": {"signs": "average", "test_signs": "average"},
    "random": {"signs": "random", "test_signs": "average"},
    "raw": {"signs": "none", "test_signs": "none"},
    "augmented": {"signs": "none", "test_signs": "none", "standardize": True, "augment": True},
}

Policy = Literal["canonical", "average", "random", "none"]


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      dataset: "shapes" (procedural) or "modelnet40" (the real files).
      num_points: of each cloud.
      train_size: clouds for training (procedural).
      test_size: clouds of each test (procedural).
      signs: policy of signs in training; "none" gives the points as they are.
      test_signs: policy in the tests.
      standardize: whether points that are not made distance coordinates are centred, and scaled to variance one.
      augment: whether training rotates each cloud at random.
      backbone: "pointnet" or "dgcnn".
      widths: of the backbone.
      features: of each point before the pooling.
      neighbours: of DGCNN.
      hidden: width after the pooling.
      dropout: rate before the last layer.
      steps: optimiser steps.
      batch_size: clouds per step.
      learning_rate: of Adam.
      eval_every: steps between evaluations (reported only; the last parameters are tested).
      eval_batch: clouds per call in the tests.
      jitter: standard deviation of the noise on each coordinate, relative to clouds of radius one.
      jitter_clouds: bent clouds of which continuity is measured.
      data_seed: of clouds and poses.
      seed: of parameters and batches.
    """

    dataset: Literal["shapes", "modelnet40"] = "shapes"
    num_points: int = 128
    train_size: int = 2000
    test_size: int = 1000
    signs: Policy = "canonical"
    test_signs: Policy = "canonical"
    standardize: bool = False
    augment: bool = False
    backbone: Literal["pointnet", "dgcnn"] = "pointnet"
    widths: tuple[int, ...] = (32, 64, 128)
    features: int = 128
    neighbours: int = 20
    hidden: int = 128
    dropout: float = 0.3
    steps: int = 250
    batch_size: int = 32
    learning_rate: float = 2e-3
    eval_every: int = 125
    eval_batch: int = 100
    jitter: float = 1e-3
    jitter_clouds: int = 40
    data_seed: int = 0
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(
        num_points=48, train_size=200, test_size=100, widths=(16, 32), features=32, hidden=32, steps=60, batch_size=20,
        eval_every=60, jitter_clouds=4,
    ),
    "cpu": Config(),
    # 9,843 clouds of 1,024 points, 250 epochs, DGCNN's published sizes; an accelerator's hours.
    "paper": Config(
        dataset="modelnet40", num_points=1024, backbone="dgcnn", widths=(64, 64, 128, 256), features=1024, hidden=512,
        dropout=0.5, steps=76_750, learning_rate=1e-3, eval_every=3_070, eval_batch=20,
    ),
}  # fmt: skip


def random_similarity(key: PRNGKey, x: Array) -> Array:
    """Rotates, scales (by 0.1 to 10) and shifts (by up to 3) each cloud `[..., n, 3]` on its own."""
    key_turn, key_scale, key_shift = jax.random.split(key, 3)
    lead = x.shape[:-2]
    scale = 10 ** jax.random.uniform(key_scale, (*lead, 1, 1), minval=-1.0, maxval=1.0)
    shift = jax.random.uniform(key_shift, (*lead, 1, 3), minval=-3.0, maxval=3.0)
    return scale * _rotated(key_turn, x) + shift


def _rotated(key: PRNGKey, x: Array) -> Array:
    count = int(np.prod(x.shape[:-2]))
    turns = jax.vmap(SpecialOrthogonal(3).sample)(jax.random.split(key, count)).reshape(*x.shape[:-2], 3, 3)
    return jnp.einsum("...nd,...ed->...ne", x, turns, precision="highest")


def balanced(x: np.ndarray, steps: int = 60) -> np.ndarray | None:
    """Bends a cloud along its first principal axis until its third moment there vanishes.

    Args:
      x: points `[n, 3]`.
      steps: of the bisection.

    Returns:
      Points `[n, 3]`, or None if no bend of at most one does it.
    """
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    first = np.linalg.eigh(x.T @ x)[1][:, -1]

    def bent(bend: float) -> np.ndarray:
        return x + bend * np.outer((x @ first) ** 2, first)

    def moment(bend: float) -> float:
        y = bent(bend)
        y = y - y.mean(axis=0)
        axis = np.linalg.eigh(y.T @ y)[1][:, -1]
        return float(np.mean((y @ axis * np.sign(axis @ first)) ** 3))

    low, high = -1.0, 1.0
    if moment(low) >= 0 or moment(high) <= 0:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if moment(middle) < 0 else (low, middle)
    return bent(low)


def _data(config: Config) -> dict[str, tuple[Array, Array]]:
    """Upright clouds `[number, n, 3]` and labels, of training and test."""
    if config.dataset == "modelnet40":
        found = {}
        for split in ("train", "test"):
            arrays = modelnet40(split, num_points=config.num_points, seed=config.data_seed).arrays
            found[split] = jnp.asarray(arrays["points"]), jnp.asarray(arrays["label"])
        return found
    found = {}
    for offset, (split, number) in enumerate((("train", config.train_size), ("test", config.test_size))):
        points, _, labels = procedural_shapes(2 * config.data_seed + offset, number, config.num_points)
        found[split] = jnp.asarray(points), jnp.asarray(labels)
    return found


def _network(config: Config) -> CloudClassifierConfig:
    classes = 40 if config.dataset == "modelnet40" else len(SHAPE_CLASSES)
    return CloudClassifierConfig(
        config.backbone, config.widths, config.features, config.neighbours, config.hidden, config.dropout, classes
    )


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one classifier on upright clouds and measures its accuracy on moved ones.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON).

    Returns:
      Flat dict of floats: `aligned_accuracy`, `rotated_accuracy`, `moved_accuracy`, `gap`, `outside_fraction`, the
      `jitter_*` numbers (for distance coordinates; NaN if no sign was flipped), `parameters`, and so on.
    """
    workdir = make_folder(workdir)
    data, network = _data(config), _network(config)
    key_params, key_state, key_data = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(learning_rate=config.learning_rate, schedule="cosine", total_steps=config.steps)
    )

    def logits(params, statistics, points, signs: Policy, key=None):
        """Logits `[batch, classes]`; training if there is a key."""
        key_signs, key_drop = (None, None) if key is None else jax.random.split(key)
        h = points
        if config.standardize:
            h = h - jnp.mean(h, axis=-2, keepdims=True)
            h = h / jnp.sqrt(jnp.mean(jnp.square(h), axis=(-2, -1), keepdims=True))
        if signs != "none":
            h, _ = distance_coordinates(points, signs=signs, key=key_signs, stop_gradient=True)
        found, after = cloud_classifier_apply(params, statistics, h, network, training=key is not None, key=key_drop)
        return jnp.mean(found, axis=1) if signs == "average" else found, after

    def loss_fn(params, batch, *, key, model_state):
        key_move, key_rest = jax.random.split(key)
        points = _rotated(key_move, batch["points"]) if config.augment else batch["points"]
        found, after = logits(params, model_state, points, config.signs, key_rest)
        return training.LossOutput({"cross_entropy": training.Mean.of(cross_entropy(found, batch["label"]))}, {}, after)

    apply = jax.jit(
        lambda state, points, signs: logits(state.params, state.model_state, points, signs)[0], static_argnums=2
    )

    def all_logits(state, points, signs: Policy = config.test_signs) -> np.ndarray:
        size = config.eval_batch
        return np.concatenate([apply(state, points[i : i + size], signs) for i in range(0, len(points), size)])

    points, labels = data["test"][0], np.asarray(data["test"][1])
    key_pose = jax.random.key(config.data_seed)
    tests = {"aligned": points, "rotated": _rotated(key_pose, points), "moved": random_similarity(key_pose, points)}

    def evaluate(state) -> dict[str, float]:
        return {
            f"{name}_accuracy": float(np.mean(all_logits(state, tests[name]).argmax(-1) == labels))
            for name in ("aligned", "moved")
        }

    result, trained, *_ = train(
        lambda key: cloud_classifier_init(key, network),
        loss_fn,
        optimizer,
        random_batches({"points": data["train"][0], "label": data["train"][1]}, config.batch_size, key_data),
        keys=(key_params, key_state),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(100, config.steps), eval_every=min(config.eval_every, config.steps), checkpoint_every=None,
            monitor="aligned_accuracy", mode="max",
        ),
        evaluate=evaluate,
        experiment=dataclasses.asdict(config),
    )  # fmt: skip
    found = {name: all_logits(result.state, clouds) for name, clouds in tests.items()}
    metrics = {f"{name}_accuracy": float(np.mean(found[name].argmax(-1) == labels)) for name in tests}
    scale = np.abs(found["aligned"]).max()
    _, frames = jax.jit(distance_coordinates)(points)
    well = (np.asarray(frames.gap) > 1e-2) & (np.asarray(frames.oddness).min(axis=-1) > 1e-2)
    metrics |= {
        "gap": metrics["aligned_accuracy"] - metrics["moved_accuracy"],
        "logits_change_median": float(np.median(np.abs(found["moved"] - found["aligned"]).max(-1)) / scale),
        "outside_fraction": float(1 - well.mean()),
        **trained,
    }
    metrics |= _continuity(config, np.asarray(points), lambda x, signs: all_logits(result.state, x, signs))
    return write_metrics(workdir, metrics)


def _continuity(config: Config, points: np.ndarray, apply) -> dict[str, float]:
    """What a jitter that flips a canonical sign changes, at the cloud where the average over signs changes least."""
    names = ("jitter_flips", "jitter_canonical", "jitter_average", "jitter_canonical_median", "jitter_average_median")
    if config.signs == "none":
        return {}
    bent = [y for x in points if (y := balanced(x)) is not None][: config.jitter_clouds]
    if not bent:
        return dict.fromkeys(names, float("nan"))
    clouds = np.asarray(bent, np.float32)
    noise = np.random.default_rng(config.data_seed).normal(size=(8, *clouds.shape)) * config.jitter
    jittered = (clouds + noise).astype(np.float32)
    coordinates = jax.jit(lambda x: distance_coordinates(x)[0])
    before, after = coordinates(clouds), coordinates(jittered)
    odd = np.asarray(jax.jit(lambda x: distance_coordinates(x)[1].oddness)(clouds))
    # A flip of the first column alone; the others' moments are well away from zero.
    flipped = np.sum(np.asarray(before)[None, ..., 0] * np.asarray(after)[..., 0], axis=-1) < 0
    kept = np.sum(np.asarray(before)[None, ..., 1:] * np.asarray(after)[..., 1:], axis=-2).min(axis=-1) > 0
    flipped = flipped & kept & (odd[:, 0] < 1e-3)[None]

    def change(signs: Policy) -> np.ndarray:
        moved = np.stack([apply(jnp.asarray(part), signs) for part in jittered])
        return np.abs(moved - apply(jnp.asarray(clouds), signs)[None]).max(axis=-1)[flipped]

    canonical, average = change("canonical"), change("average")
    if not len(canonical):
        return dict.fromkeys(names, float("nan"))
    large = np.flatnonzero(canonical > 0.1)
    best = large[np.argmin(average[large])] if len(large) else int(np.argmax(canonical))
    values = (float(len(canonical)), canonical[best], average[best], np.median(canonical), np.median(average))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates points 3 and 4 of the card.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim = Claims(CARD)
    if "raw" in metrics:
        raw = metrics["raw"]
        statement = "raw points: accuracy on moved clouds, worst seed"
        claim.at_most(3, statement, 0.5, seed_values(raw, "moved_accuracy").max())
        statement = "raw points: accuracy on clouds that are only rotated, worst seed"
        claim.at_most(3, statement, 0.5, seed_values(raw, "rotated_accuracy").max())
    for variant in ("canonical", "average", "random"):
        if variant not in metrics:
            continue
        worst = np.abs(seed_values(metrics[variant], "gap")).max()
        claim.at_most(3, f"{variant}: aligned minus moved accuracy, worst seed", 0.02, worst)
        least = seed_values(metrics[variant], "moved_accuracy").min()
        claim.at_least(3, f"{variant}: accuracy on moved clouds, worst seed", 0.85, least)
    for variant in ("canonical", "average"):
        if variant not in metrics:
            continue
        least = seed_values(metrics[variant], "jitter_canonical").min()
        statement = f"network of {variant}: a jitter of 1e-3 that flips a sign changes canonical logits, worst seed"
        claim.above(4, statement, 0.1, least)
        worst = seed_values(metrics[variant], "jitter_average").max()
        statement = f"network of {variant}: the same jitter changes averaged logits, worst seed"
        claim.below(4, statement, 0.01, worst)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("input", "upright %", "rotated %", "moved %", "parameters")
    names = ("aligned_accuracy", "rotated_accuracy", "moved_accuracy")

    def cells(_, variant, table):
        accuracies = (cell(table, name, ".1f", factor=100) for name in names)
        return variant, *accuracies, f"{table['parameters']['mean']:.0f}"

    return {"frames.shapes": runs_table(found, heads, cells)}
