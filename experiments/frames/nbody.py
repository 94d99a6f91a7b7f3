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
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.data import make_pipeline
from equivariant_jax.data.simulators import ChargedTask
from equivariant_jax.frames import MPNNConfig, fa_gnn_apply, mpnn_apply, mpnn_init
from experiments import charged_particles
from experiments.claims import Claims
from experiments.flow.best_epoch import BestEpoch
from experiments.frames.poses import turned
from experiments.runs import device_mesh, make_folder, train, whole_set, write_metrics
from experiments.tables import cell, runs_table

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


def _loss(config: Config):
    def loss_fn(params, batch, *, key, model_state):
        del model_state
        x, v, y = batch["positions"], batch["velocities"], batch["targets"]
        if key is not None and config.augment:
            x, v, y = turned(key, x, v, y)
        chosen = key if config.train_frames == "one" else None
        predicted = predict(params, config, x, v, batch["charges"], chosen)
        return training.LossOutput({"mse": training.Mean.of((predicted - y) ** 2, batch.get("mask"))})

    return loss_fn


def _rotation_defect(params: PyTree, config: Config, task: ChargedTask, key: PRNGKey) -> float:
    """Mean distance between a moved system's prediction and the moved prediction."""
    x, v, q = (jnp.asarray(a[:100], jnp.float32) for a in (task.positions, task.velocities, task.charges))
    run = jax.jit(lambda x, v: predict(params, config, x, v, q))
    turned_x, turned_v, expected = turned(key, x, v, run(x, v))
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
    workdir = make_folder(workdir)
    splits = charged_particles.splits(config.train_size, config.validation_size, config.test_size, config.data_seed)
    sources = {name: charged_particles.source(task) for name, task in splits.items()}
    network = MPNNConfig(width=config.width, depth=config.depth)
    per_epoch = config.train_size // config.batch_size
    steps = config.epochs * per_epoch
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=config.learning_rate, schedule=config.schedule, total_steps=steps, end_factor=1e-2
        )
    )
    key_params, key_state, key_turn = jax.random.split(jax.random.key(config.seed), 3)

    loss_fn = _loss(config)
    measure = training.make_eval_step(loss_fn, mesh=device_mesh())
    batches = make_pipeline(sources["train"], batch_size=config.batch_size, seed=config.seed, prefetch=2)
    best = BestEpoch("mse")
    result, trained, step, _ = train(
        lambda key: (mpnn_init(key, network), None),
        loss_fn,
        optimizer,
        batches,
        keys=(key_params, key_state),
        num_steps=steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(per_epoch * config.eval_every, steps),
            eval_every=min(per_epoch * config.eval_every, steps),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor="mse",
        ),
        evaluate=training.evaluator(measure, whole_set(sources["validation"], config.batch_size)),
        on_evaluation=best,
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    kept = best.of(result, workdir, checkpoints=config.checkpoint_every is not None)
    metrics = {
        "test_mse": training.evaluator(measure, whole_set(sources["test"], config.batch_size))(kept)["mse"],
        "validation_mse": float(result.best_value if result.best_value is not None else np.nan),
        "train_mse": float(result.train.get("mse", np.nan)),
        "linear_mse": charged_particles.linear_mse(splits["train"], splits["test"]),
        "rotation_defect": _rotation_defect(kept.params, config, splits["test"], key_turn),
        "epochs": float(config.epochs),
        **{name: trained[name] for name in ("parameters", "train_seconds", "skipped_updates")},
    }
    one = next(iter(make_pipeline(sources["train"], batch_size=config.batch_size, seed=config.seed, prefetch=0)))
    # Last: it gives the state's memory away.
    metrics["step_milliseconds"] = _step_milliseconds(step, result.state, one, config.timed_steps)
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run. The published
      number is compared with runs of at least 10,000 epochs only.
    """
    claim = Claims(CARD)
    table = metrics.get("fa_gnn", {})
    if table:
        ours = table["test_mse"]
        ratio = max(ours["values"]) / table["linear_mse"]["mean"]
        claim.at_most("4", "n-body: test MSE of fa_gnn, worst seed, over the linear model's", 0.17, ratio)
        if min(table["epochs"]["values"]) >= 10_000:
            claim.at_most("4", "test MSE after 10,000 epochs", 6e-3, ours["mean"])
        for other in ("no_frames", "augmented"):
            if other in metrics:
                ratio = max(ours["values"]) / min(metrics[other]["test_mse"]["values"])
                statement = f"n-body: test MSE of fa_gnn, worst seed, over {other}, best seed, at equal steps"
                claim.below("4", statement, 1.0, ratio)
    if "short" in metrics and "full_frames" in metrics:
        one, every = metrics["short"], metrics["full_frames"]
        times = zip(one["step_milliseconds"]["values"], every["step_milliseconds"]["values"], strict=True)
        statement = "time of a training step with one random element over that with all eight, worst seed"
        share = max(a / b for a, b in times)
        claim.at_most("5", statement, 0.25, share)
        statement = (
            "test MSE with all frames after training with one random element, over that after training with all, "
            "equal epochs"
        )
        why = f"its gradient is noisier; a step takes {share:.2f} of the time, for equal time see the next claim"
        claim.at_most("5", statement, 1.3, one["test_mse"]["mean"] / every["test_mse"]["mean"], why=why)
    if table and "full_frames" in metrics:
        every = metrics["full_frames"]
        took = table["train_seconds"]["mean"] / every["train_seconds"]["mean"]
        epochs = [int(part["epochs"]["mean"]) for part in (table, every)]
        statement = (
            f"the same, {epochs[0]} epochs with one random element over {epochs[1]} with all, in {took:.2f} of the time"
        )
        ratio = table["test_mse"]["mean"] / every["test_mse"]["mean"]
        claim.add("5", f"{statement}, at most", 1.3, ratio, holds=ratio <= 1.3 and took <= 1)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs, mean and sample standard deviation over seeds.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("model", "epochs", "test MSE · 1e-3", "linear model · 1e-3", "changes when turned")

    def cells(_, variant, table):
        errors = cell(table, "test_mse", ".2f", factor=1e3), f"{1e3 * table['linear_mse']['mean']:.1f}"
        return variant, f"{table['epochs']['mean']:.0f}", *errors, f"{max(table['rotation_defect']['values']):.1g}"

    return {"frames.nbody": runs_table(found, heads, cells)}
