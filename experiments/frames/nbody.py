r"""Predicts charged particles 1000 steps ahead by message passing averaged over frames: `frames.nbody`.

The network is `equivariant_jax.frames.fa_gnn_apply` (FA-GNN), the data `data.simulators` (the charged 5-body simulation
of EGNN, made anew, frame 30 -> 40); the metric is the mean squared error of the positions on the test set, of the
parameters with the best validation. Variants:

- `fa_gnn` draws one element of each layer's frame in every training step and averages over all eight in evaluation;
- `no_frames` is the same network on centred coordinates, with no symmetry but that of translations;
- `full_frames` averages over all eight in training too, in fewer epochs, since a step costs several times as much;
  `short` is `fa_gnn` in as many epochs, `derivatives` the same with differentiated frames;
- `augmented` is `no_frames` on randomly rotated and reflected systems.

`linear_mse` is what one fitted time t reaches with `x + t v`. Published (1e-3, from memory): FA-GNN 5.7, EGNN 7.0, a
plain graph network 10.7, linear 81.9. The `paper` preset has the settings of the official code: all eight frames, Adam
at 1e-3, batch 100, 10,000 epochs, validation each 5; its weight decay of 1e-12 is left out, and the mean of the hidden
vectors is kept.

Command: `python -m experiments frames.nbody cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time stand
in `experiments/results`, written by the run.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.groups import Orthogonal
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.data import ArraySource, make_pipeline
from equivariant_jax.data.simulators import ChargedTask, charged_particles_splits
from equivariant_jax.frames import MPNNConfig, fa_gnn_apply, mpnn_apply, mpnn_init
from experiments.flow.best_epoch import BestEpoch

__all__ = ["CARD", "POINTS", "PRESETS", "VARIANTS", "Config", "claims", "predict", "run", "tables"]

CARD = "frame_averaging"
POINTS = ("1", "2", "3", "4", "5", "6")

VARIANTS: dict[str, dict[str, Any]] = {
    "fa_gnn": {},
    "no_frames": {"model": "plain"},
    "short": {"epochs": 30},
    "full_frames": {"epochs": 30, "train_frames": "all"},
    "derivatives": {"epochs": 30, "stop_gradient": False},
    "augmented": {"model": "plain", "augment": True},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      model: "fa_gnn", or "plain" (the same network without frames).
      train_frames: "one" random element for each layer and step, or "all"; evaluation takes all.
      stop_gradient: whether frames are constants.
      augment: whether training systems are rotated and reflected at random.
      width: of all layers, a multiple of 3.
      depth: rounds of message passing.
      train_size: training simulations.
      validation_size: validation simulations.
      test_size: test simulations.
      data_seed: of the simulations; all runs share the data.
      epochs: passes over the training set.
      batch_size: simulations per step.
      learning_rate: peak of the schedule.
      schedule: "cosine" or "constant".
      eval_every: epochs between validations.
      checkpoint_every: steps between checkpoints, None for none.
      timed_steps: steps that are timed one by one after the training.
      seed: of parameters, frames and order of batches.
      resume: continue from the newest checkpoint in the working directory.
    """

    model: Literal["fa_gnn", "plain"] = "fa_gnn"
    train_frames: Literal["one", "all"] = "one"
    stop_gradient: bool = True
    augment: bool = False
    width: int = 60
    depth: int = 4
    train_size: int = 3000
    validation_size: int = 2000
    test_size: int = 2000
    data_seed: int = 43
    epochs: int = 220
    batch_size: int = 100
    learning_rate: float = 4e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    eval_every: int = 10
    checkpoint_every: int | None = None
    timed_steps: int = 20
    seed: int = 0
    resume: bool = False


PRESETS: dict[str, Config] = {
    "ci": Config(
        width=12, depth=2, train_size=200, validation_size=100, test_size=100, epochs=4, eval_every=2, batch_size=20,
        timed_steps=3,
    ),
    "cpu": Config(),
    "paper": Config(
        train_frames="all", epochs=10_000, learning_rate=1e-3, schedule="constant", eval_every=5, checkpoint_every=3000
    ),
}  # fmt: skip


def predict(params: PyTree, config: Config, positions: Array, velocities: Array, charges: Array, key=None) -> Array:
    """Predicts positions 1000 steps later.

    Args:
      params: from `mpnn_init`.
      config: the run.
      positions: shape `[batch, n, 3]`, dtype of `params`.
      velocities: shape `[batch, n, 3]`.
      charges: shape `[batch, n]`.
      key: draws one element of each frame, None averages over all.

    Returns:
      Positions, shape `[batch, n, 3]`.
    """
    network = MPNNConfig(width=config.width, depth=config.depth)
    if config.model == "fa_gnn":
        return fa_gnn_apply(
            params, positions, velocities, charges, network, key=key, stop_gradient=config.stop_gradient
        )
    centre = jnp.mean(positions, axis=-2, keepdims=True)
    x = positions - centre
    square = jnp.sum(jnp.square(x[..., :, None, :] - x[..., None, :, :]), axis=-1)
    edges = jnp.stack([charges[..., :, None] * charges[..., None, :], square], axis=-1)
    return centre + mpnn_apply(params, jnp.concatenate([x, velocities], axis=-1), edges, network)


def _turned(key: PRNGKey, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Moves each system `[batch, n, 3]` of all arrays by its own random orthogonal matrix."""
    turns = jax.vmap(Orthogonal(3).sample)(jax.random.split(key, arrays[0].shape[0])).astype(arrays[0].dtype)
    return tuple(jnp.einsum("bni,bji->bnj", a, turns) for a in arrays)


def _loss(config: Config):
    def loss_fn(params, batch, *, key, model_state):
        del model_state
        x, v, y = batch["positions"], batch["velocities"], batch["targets"]
        if key is not None and config.augment:
            x, v, y = _turned(key, (x, v, y))
        chosen = key if config.train_frames == "one" else None
        predicted = predict(params, config, x, v, batch["charges"], chosen)
        return training.LossOutput({"mse": training.Mean.of((predicted - y) ** 2, batch.get("mask"))})

    return loss_fn


def _source(task: ChargedTask) -> ArraySource:
    return ArraySource({name: np.asarray(value, np.float32) for name, value in task._asdict().items()})


def _linear_mse(train: ChargedTask, test: ChargedTask) -> float:
    moved = train.targets - train.positions
    time = np.sum(moved * train.velocities) / np.sum(train.velocities**2)
    return float(np.mean((test.positions + time * test.velocities - test.targets) ** 2))


@functools.cache
def _splits(train: int, validation: int, test: int, seed: int) -> dict[str, ChargedTask]:
    return charged_particles_splits(train, validation, test, seed=seed)


def _rotation_defect(params: PyTree, config: Config, task: ChargedTask, key: PRNGKey) -> float:
    """Mean distance between a moved system's prediction and the moved prediction."""
    x, v, q = (jnp.asarray(a[:100], jnp.float32) for a in (task.positions, task.velocities, task.charges))
    run = jax.jit(lambda x, v: predict(params, config, x, v, q))
    turned_x, turned_v, expected = _turned(key, (x, v, run(x, v)))
    return float(jnp.mean(jnp.linalg.norm(run(turned_x, turned_v) - expected, axis=-1)))


def _step_milliseconds(step: training.TrainStep, state: training.TrainState, batch: PyTree, number: int) -> float:
    times = []
    for _ in range(number):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one model and measures it on the test set.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON), and checkpoints if asked for.

    Returns:
      Flat dict of floats: `test_mse`, `validation_mse` (the best), `linear_mse`, `rotation_defect`,
      `step_milliseconds` (median), `parameters`, and so on.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    splits = _splits(config.train_size, config.validation_size, config.test_size, config.data_seed)
    network = MPNNConfig(width=config.width, depth=config.depth)
    mesh = training.make_mesh() if jax.device_count() > 1 else None
    per_epoch = config.train_size // config.batch_size
    steps = config.epochs * per_epoch
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=config.learning_rate, schedule=config.schedule, total_steps=steps, end_factor=1e-2
        )
    )
    key_params, key_state, key_turn = jax.random.split(jax.random.key(config.seed), 3)

    def make_state(key_params, key_state):
        return training.TrainState.create(mpnn_init(key_params, network), optimizer, key=key_state)

    loss_fn = _loss(config)
    state = training.init_sharded(make_state, mesh, (), key_params, key_state)
    step = training.make_train_step(loss_fn, optimizer, mesh=mesh)
    measure = training.make_eval_step(loss_fn, mesh=mesh)
    source = _source(splits["train"])
    batches = make_pipeline(source, batch_size=config.batch_size, seed=config.seed, prefetch=2)

    def whole(split):
        source = _source(splits[split])
        return lambda: make_pipeline(
            source, batch_size=config.batch_size, shuffle=False, num_epochs=1, drop_remainder=False, mask_key="mask",
            prefetch=0,
        )  # fmt: skip

    best = BestEpoch("mse")
    started = time.perf_counter()
    result = training.fit(
        step,
        state,
        batches,
        num_steps=steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(per_epoch * config.eval_every, steps),
            eval_every=min(per_epoch * config.eval_every, steps),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor="mse",
        ),
        evaluate=training.evaluator(measure, whole("validation")),
        on_evaluation=best,
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    seconds = time.perf_counter() - started
    kept = best.of(result, workdir, checkpoints=config.checkpoint_every is not None)
    metrics = {
        "test_mse": training.evaluator(measure, whole("test"))(kept)["mse"],
        "validation_mse": float(result.best_value if result.best_value is not None else np.nan),
        "train_mse": float(result.train.get("mse", np.nan)),
        "linear_mse": _linear_mse(splits["train"], splits["test"]),
        "rotation_defect": _rotation_defect(kept.params, config, splits["test"], key_turn),
        "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(kept.params))),
        "epochs": float(config.epochs),
        "train_seconds": seconds,
        "skipped_updates": float(result.skipped),
    }
    one = next(iter(make_pipeline(source, batch_size=config.batch_size, seed=config.seed, prefetch=0)))
    # Last: it gives the state's memory away.
    metrics["step_milliseconds"] = _step_milliseconds(step, result.state, one, config.timed_steps)
    if jax.process_index() == 0:
        (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    return metrics


def _claim(point: str, statement: str, bar: float, value: float, holds: bool) -> dict[str, Any]:
    return {"card": CARD, "point": point, "statement": statement, "bar": bar, "value": value, "holds": bool(holds)}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run. The published
      number is compared with runs of at least 10,000 epochs only.
    """
    found = []
    table = metrics.get("fa_gnn", {})
    if table:
        ours = table["test_mse"]
        ratio = max(ours["values"]) / table["linear_mse"]["mean"]
        statement = "n-body: test MSE of fa_gnn, worst seed, over the linear model's, at most"
        found.append(_claim("4", statement, 0.17, ratio, ratio <= 0.17))
        if min(table["epochs"]["values"]) >= 10_000:
            found.append(_claim("4", "test MSE after 10,000 epochs, at most", 6e-3, ours["mean"], ours["mean"] <= 6e-3))
        for other in ("no_frames", "augmented"):
            if other in metrics:
                ratio = max(ours["values"]) / min(metrics[other]["test_mse"]["values"])
                statement = f"n-body: test MSE of fa_gnn, worst seed, over {other}, best seed, at equal steps, below"
                found.append(_claim("4", statement, 1.0, ratio, ratio < 1.0))
    if "short" in metrics and "full_frames" in metrics:
        one, every = metrics["short"], metrics["full_frames"]
        times = zip(one["step_milliseconds"]["values"], every["step_milliseconds"]["values"], strict=True)
        ratio = max(a / b for a, b in times)
        statement = "time of a training step with one random element over that with all eight, worst seed, at most"
        found.append(_claim("5", statement, 0.25, ratio, ratio <= 0.25))
        ratio = one["test_mse"]["mean"] / every["test_mse"]["mean"]
        statement = (
            "test MSE with all frames after training with one random element, over that after training with all, "
            "equal epochs, at most"
        )
        found.append(_claim("5", statement, 1.3, ratio, ratio <= 1.3))
    return found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs, mean and sample standard deviation over seeds.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """

    def cell(table: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
        values = scale * np.asarray(table[name]["values"])
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{spread}"

    heads = ("model", "epochs", "test MSE · 1e-3", "linear model · 1e-3", "changes when turned", "seeds", "training")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for result in found.values():
        for variant, table in result["metrics"].items():
            cells = (
                variant, f"{table['epochs']['mean']:.0f}", cell(table, "test_mse", 1e3, 2),
                f"{1e3 * table['linear_mse']['mean']:.1f}", f"{max(table['rotation_defect']['values']):.1g}",
                str(len(result["seeds"])), f"{table['train_seconds']['mean'] / 60:.1f} min",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return {"frames.nbody": "\n".join(lines)}
