r"""Labels sequences whose contents drift: human actions (KTH) or, in their place, noisy digits: `flow.actions`.

Published (test accuracy on KTH with velocities {-2..2}^2, from a summary of arXiv:2507.14793's Table 2, not re-read
here): 3D-CNN 0.626 +- 0.02, G-RNN 0.665 +- 0.03, FERNN with {-2..2}^2 0.716 +- 0.04.

KTH must be fetched by the user (`--dataset kth`, preset `paper`; see `equivariant_jax.data.kth`). The stand-in of the
presets `ci` and `cpu` shows one digit that drifts along the torus with a velocity of {-2..2}, which says nothing about
its label, under noise: who follows the digit can average over the frames. A second test shows speed 3, which no model
has seen and no bank has.

All variants have one code, budget and (but for `grnn_plus` and `cnn3d`) the same number of parameters.

Command: `python -m experiments flow.actions cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time stand
in `experiments/results`, written by the run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.flowing import flowing_mnist
from equivariant_jax.data.generated import GeneratedBatches
from equivariant_jax.data.kth import KTH_ACTIONS, kth_actions, moving_clips
from equivariant_jax.flow.classifier import (
    SequenceClassifierConfig,
    sequence_classifier_apply,
    sequence_classifier_init,
)
from equivariant_jax.flow.generators import velocity_grid
from experiments.claims import Claims
from experiments.flow.best_epoch import BestEpoch
from experiments.flow.digits import digit_parts
from experiments.results import seed_values
from experiments.runs import cross_entropy, device_mesh, make_folder, train, write_metrics
from experiments.tables import cell, runs_table

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "network_config", "run", "tables"]

CARD = "flow_equivariant_rnn"

VARIANTS: dict[str, dict[str, Any]] = {
    "fernn_2": {},
    "fernn_1": {"model_radius": 1},
    "grnn": {"model_radius": 0},
    "grnn_plus": {"kind": "learned"},
    "cnn3d": {"kind": "convolution"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      dataset: "mnist" (drifting noisy digits at half scale), "digits" (the same of scikit-learn's 8 x 8), or "kth".
      kind: "flow", "learned" or "convolution"; see `equivariant_jax.flow.classifier`.
      axes: 1 for horizontal motion only, 2 for the plane.
      model_radius: largest velocity of the banks; 0 is the ordinary recurrent network.
      data_radius: largest velocity of the data.
      unseen_radius: speed (largest component) of the second test, None for none.
      length: frames of a sequence.
      noise: standard deviation of the noise on each pixel of each frame.
      boundary: of the input network, "circular" or "zero" (as published).
      input_channels: of the input network; the last is the hidden state's width.
      input_sizes: sides of its kernels.
      block_channels: of the blocks of "convolution".
      steps: optimiser steps.
      batch_size: sequences per step.
      learning_rate: of Adam, constant.
      clip_norm: largest norm of the gradient.
      eval_every: steps between validations; the best of them is tested.
      eval_sequences: sequences of validation and test (digits).
      checkpoint_every: steps between checkpoints, None for none.
      data_seed: of test sequences and of KTH's velocities.
      seed: of parameters and training sequences.
      resume: continue from the newest checkpoint in the working directory.
    """

    dataset: Literal["mnist", "digits", "kth"] = "mnist"
    kind: Literal["flow", "learned", "convolution"] = "flow"
    axes: int = 2
    model_radius: int = 2
    data_radius: int = 2
    unseen_radius: int | None = 3
    length: int = 8
    noise: float = 0.8
    boundary: Literal["circular", "zero"] = "circular"
    input_channels: tuple[int, ...] = (8, 16)
    input_sizes: tuple[int, ...] = (3, 3)
    block_channels: tuple[int, ...] = (8, 16, 16, 16, 16)
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 1e-3
    clip_norm: float | None = 1.0
    eval_every: int = 100
    eval_sequences: int = 512
    checkpoint_every: int | None = None
    data_seed: int = 0
    seed: int = 0
    resume: bool = False


PRESETS: dict[str, Config] = {
    "ci": Config(
        dataset="digits", model_radius=1, data_radius=1, unseen_radius=None, length=4, input_channels=(4,),
        input_sizes=(3,), block_channels=(4, 4), steps=40, eval_every=20, eval_sequences=64,
    ),
    "cpu": Config(
        axes=1, noise=0.3, input_channels=(12, 24), input_sizes=(5, 3), steps=1000, learning_rate=3e-3,
    ),
    # 3,777 clips, batches of 32, 500 epochs.
    "paper": Config(
        dataset="kth", unseen_radius=None, length=16, noise=0.0, boundary="zero", input_channels=(32, 64, 128),
        input_sizes=(5, 3, 3), block_channels=(16, 32, 32, 64, 64), steps=59_000, batch_size=32, learning_rate=3e-4,
        eval_every=118, checkpoint_every=5900,
    ),
}  # fmt: skip

Batches = Callable[[PRNGKey], dict[str, Array]]


def network_config(config: Config) -> SequenceClassifierConfig:
    """Makes the network's static description."""
    return SequenceClassifierConfig(
        num_classes=len(KTH_ACTIONS) if config.dataset == "kth" else 10,
        kind=config.kind,
        velocities=velocity_grid(config.model_radius, axes=config.axes),
        input_channels=config.input_channels,
        input_sizes=config.input_sizes,
        block_channels=config.block_channels,
        boundary=config.boundary,
    )


def _drifting(config: Config, part: str, velocities: np.ndarray, batch: int) -> Batches:
    """Sequences of one digit under noise."""
    images, labels = (jnp.asarray(x) for x in digit_parts(config.dataset)[part])

    @jax.jit
    def make(key, images, labels, velocities):
        key_sequence, key_noise = jax.random.split(key)
        found = flowing_mnist(key_sequence, images, velocities, batch=batch, num_digits=1, length=config.length)
        noise = jax.random.normal(key_noise, found.frames.shape, found.frames.dtype)
        frames = found.frames + np.asarray(config.noise, found.frames.dtype) * noise
        return {"frames": frames, "labels": labels[found.indices[:, 0]]}

    return lambda key: make(key, images, labels, jnp.asarray(velocities, jnp.float32))


def _velocities(config: Config, radius: int, *, exactly: bool = False) -> np.ndarray:
    listed = np.asarray(velocity_grid(radius, axes=config.axes), np.float32)
    return listed[np.abs(listed).max(axis=1) == radius] if exactly else listed


def _kth(config: Config) -> tuple[Batches, dict[str, list[dict[str, Array]]]]:
    """Random batches of the training clips, and all clips of the other parts; each clip has one velocity for good."""
    parts = {}
    for index, part in enumerate(("train", "validation", "test")):
        arrays = kth_actions(part, clip_length=config.length).arrays
        key = jax.random.fold_in(jax.random.key(config.data_seed), index)
        frames, _ = moving_clips(key, arrays["frames"], jnp.asarray(_velocities(config, config.data_radius)))
        parts[part] = (frames, jnp.asarray(arrays["label"]))

    def make(key, frames, labels):
        key_choice, key_flip = jax.random.split(key)
        chosen = jax.random.randint(key_choice, (config.batch_size,), 0, len(labels))
        coins = jax.random.bernoulli(key_flip, 0.5, (config.batch_size, 1, 1, 1, 1))
        clips = frames[chosen]
        return {"frames": jnp.where(coins, clips[..., ::-1, :], clips), "labels": labels[chosen]}

    compiled = jax.jit(make)

    def whole(part):
        frames, labels = parts[part]
        # The last batch is shorter: two programs, and no clip is left out.
        size = config.batch_size
        return [{"frames": frames[i : i + size], "labels": labels[i : i + size]} for i in range(0, len(labels), size)]

    return lambda key: compiled(key, *parts["train"]), {part: whole(part) for part in ("validation", "test")}


def _data(config: Config) -> tuple[Batches, dict[str, list[dict[str, Array]]]]:
    if config.dataset == "kth":
        return _kth(config)
    seen = _velocities(config, config.data_radius)
    tests = {"validation": ("validation", seen), "test": ("test", seen)}
    if config.unseen_radius is not None:
        tests["unseen"] = ("test", _velocities(config, config.unseen_radius, exactly=True))
    fixed, key = {}, jax.random.key(config.data_seed)
    for index, (name, (part, velocities)) in enumerate(tests.items()):
        make = _drifting(config, part, velocities, config.batch_size)
        keys = jax.random.split(jax.random.fold_in(key, index), max(1, config.eval_sequences // config.batch_size))
        fixed[name] = [make(k) for k in keys]
    return _drifting(config, "train", seen, config.batch_size // jax.process_count()), fixed


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one classifier and measures its accuracy.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON), and checkpoints if asked for.

    Returns:
      Flat dict of floats: `test_accuracy`, `unseen_accuracy`, `validation_accuracy`, `parameters`, and so on.
    """
    workdir = make_folder(workdir)
    network = network_config(config)
    batches, fixed = _data(config)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(learning_rate=config.learning_rate, clip_norm=config.clip_norm)
    )
    key_params, key_state, key_data = jax.random.split(jax.random.key(config.seed), 3)

    def loss_fn(params, batch, *, key, model_state):
        logits, after = sequence_classifier_apply(
            params, model_state, batch["frames"], network, training=key is not None
        )
        right = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(logits.dtype)
        terms = {"cross_entropy": training.Mean.of(cross_entropy(logits, batch["labels"]))}
        return training.LossOutput(terms, {"accuracy": training.Mean.of(right)}, after)

    measure = training.make_eval_step(loss_fn, mesh=device_mesh())
    best = BestEpoch("accuracy", higher_is_better=True)
    result, trained, *_ = train(
        lambda key: sequence_classifier_init(key, network),
        loss_fn,
        optimizer,
        GeneratedBatches(batches, key_data),
        keys=(key_params, key_state),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(50, config.steps),
            eval_every=min(config.eval_every, config.steps),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor="accuracy",
            mode="max",
        ),
        evaluate=training.evaluator(measure, lambda: fixed["validation"]),
        on_evaluation=best,
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    final = best.of(result, workdir, checkpoints=config.checkpoint_every is not None)
    metrics = {"banks": float(len(network.velocities)), **trained}
    for name, part in fixed.items():
        metrics[f"{name}_accuracy"] = float(training.evaluator(measure, lambda part=part: part)(final)["accuracy"])
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates whether following the motion helps: accuracy beyond each baseline's, mean over seeds.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim = Claims(CARD)
    for baseline in ("grnn", "grnn_plus", "cnn3d"):
        if "fernn_2" in metrics and baseline in metrics:
            ours, theirs = (seed_values(metrics[variant], "test_accuracy").mean() for variant in ("fernn_2", baseline))
            statement = f"test accuracy of FERNN V_2 minus {baseline}'s, mean over seeds"
            why = (
                "so few frames fit into the kernels of a convolution over space and time" if baseline == "cnn3d" else ""
            )
            claim.above("classification", statement, 0.0, ours - theirs, why=why)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("data", "model", "banks", "parameters", "accuracy", "at unseen speed")

    def cells(result, variant, table):
        counts = (f"{table[name]['mean']:.0f}" for name in ("banks", "parameters"))
        accuracies = (cell(table, name, ".3f") for name in ("test_accuracy", "unseen_accuracy"))
        return result["config"]["dataset"], variant, *counts, *accuracies

    return {"flow.actions": runs_table(found, heads, cells)}
