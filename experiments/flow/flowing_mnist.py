r"""Predicts the next frames of drifting or turning digits, with and without flow equivariance: `flow.flowing_mnist`.

Published (test MSE, Table 1 of arXiv:2507.14793 as a summary of it quotes it, not re-read here): translations of data
velocities {-2..2}^2, G-RNN 8.1e-3 +- 6e-4, FERNN with {-1..1}^2 5.3e-4 +- 8e-5, with {-2..2}^2 1.5e-4 +- 2e-5;
rotations, G-RNN 4.0e-3 +- 5e-4, FERNN with nine speeds 6.1e-4 +- 3e-5.

Presets: `cpu`, horizontal motion at half scale, where the sequences of the test are longer or faster than any in
training; `plane`, motion in the plane at half scale; `rotation`, turning digits; `paper` and `paper_rotation`, the
published settings (`paper` takes an accelerator some hours). All train on MNIST under EQUIVARIANT_JAX_DATA; `ci` on the
small digits that scikit-learn ships.

The variants differ in nothing but velocities and decoding: all have the same parameters. `grnn` is the ordinary
recurrent network (velocity zero alone), `fernn_1` and `fernn_2` have banks up to speed 1 and 2 with the published
decoding, `_advance` decodes from where things will be (see `equivariant_jax.flow.next_frame`).

Command: `python -m experiments flow.flowing_mnist cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.data.flowing import FlowingSequence, flowing_mnist, rotating_mnist
from equivariant_jax.data.generated import GeneratedBatches
from equivariant_jax.flow.generators import Velocities, rotation_velocities, velocity_grid
from equivariant_jax.flow.next_frame import NextFrameConfig, next_frame_apply, next_frame_init
from experiments.flow.best_epoch import BestEpoch
from experiments.flow.digits import digit_parts
from experiments.flow.flowing_report import CARD, claims, plots, tables
from experiments.runs import device_mesh, make_folder, train, write_metrics

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "network_config", "plots", "run", "tables"]

VARIANTS: dict[str, dict[str, Any]] = {
    "fernn_2_advance": {},
    "fernn_2": {"decode": "published"},
    "fernn_1": {"model_radius": 1, "decode": "published"},
    "grnn": {"model_radius": 0, "decode": "published"},
    "grnn_advance": {"model_radius": 0},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      dataset: "mnist", or "digits" (1,797 of 8 x 8, from scikit-learn).
      scale: "half" (14 x 14 pixels, put into 16 x 16) or "full" (28 x 28); the small digits fill 8 x 8.
      motion: "shift" or "rotation".
      axes: 1 for horizontal shifts only, 2 for the plane.
      step: degrees per frame between neighbouring angular velocities.
      data_radius: largest velocity in training data, in steps.
      model_radius: largest velocity of the banks, in steps; 0 is the ordinary recurrent network.
      unseen: velocities of further tests, in steps, all digits at this speed (along x).
      num_digits: digits in a sequence.
      given: frames that are shown.
      predicted: frames that are predicted in training.
      horizon: frames that are predicted in the test.
      channels: of the hidden state, or fields over the orientations.
      orientations: order of the cyclic group (rotation), 1 otherwise.
      decoder_layers: convolutions with ReLU before the last.
      decoder: "plain" (as published) or "cyclic" (rotation).
      decode: "advance" or "published".
      form: "comoving" or "published".
      steps: optimiser steps.
      batch_size: sequences per step.
      learning_rate: of Adam, constant.
      clip_norm: largest norm of the gradient, None for no clipping.
      eval_every: steps between validations; the best of them is tested.
      eval_sequences: sequences of validation and of each test.
      checkpoint_every: steps between checkpoints, None for none.
      data_seed: of the test sequences.
      seed: of parameters and training sequences.
      resume: continue from the newest checkpoint in the working directory.
    """

    dataset: Literal["mnist", "digits"] = "mnist"
    scale: Literal["half", "full"] = "half"
    motion: Literal["shift", "rotation"] = "shift"
    axes: int = 1
    step: float = 10.0
    data_radius: int = 1
    model_radius: int = 2
    unseen: tuple[int, ...] = (-3, -2, -1, 0, 1, 2, 3)
    num_digits: int = 2
    given: int = 6
    predicted: int = 6
    horizon: int = 18
    channels: int = 16
    orientations: int = 1
    decoder_layers: int = 2
    decoder: Literal["plain", "cyclic"] = "plain"
    decode: Literal["advance", "published"] = "advance"
    form: Literal["comoving", "published"] = "comoving"
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 3e-3
    clip_norm: float | None = 1.0
    eval_every: int = 100
    eval_sequences: int = 512
    checkpoint_every: int | None = None
    data_seed: int = 0
    seed: int = 0
    resume: bool = False


PRESETS: dict[str, Config] = {
    "ci": Config(
        dataset="digits", given=4, predicted=4, horizon=6, channels=8, decoder_layers=1, steps=60, eval_every=30,
        eval_sequences=64, unseen=(2,),
    ),
    "cpu": Config(),
    "plane": Config(axes=2, steps=400),
    # Eight orientations and quarter-of-a-right-angle steps, small enough for a processor.
    "rotation": Config(
        motion="rotation", step=45.0, orientations=8, channels=4, steps=400, decoder="cyclic", unseen=(-2, 2),
    ),
    # 54,000 sequences an epoch, 50 epochs.
    "paper": Config(
        scale="full", axes=2, data_radius=2, given=10, predicted=10, horizon=60, channels=128, decoder_layers=4,
        steps=21_100, batch_size=128, learning_rate=1e-3, clip_norm=1.0, eval_every=422, eval_sequences=6000,
        checkpoint_every=2110,
    ),
    "paper_rotation": Config(
        scale="full", motion="rotation", data_radius=4, model_radius=4, given=10, predicted=10, horizon=70,
        unseen=(-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5), channels=32, orientations=36, decoder_layers=4, steps=84_400,
        batch_size=32, learning_rate=1e-4, clip_norm=None, eval_every=1688, eval_sequences=6000, checkpoint_every=8440,
    ),
}  # fmt: skip


def velocities_of(config: Config, radius: int) -> Velocities:
    """Lists velocities up to a radius, in the units of the motion."""
    if config.motion == "rotation":
        return rotation_velocities(radius, config.step)
    return velocity_grid(radius, axes=config.axes)


def network_config(config: Config) -> NextFrameConfig:
    """Makes the network's static description."""
    return NextFrameConfig(
        velocities=velocities_of(config, config.model_radius),
        channels=config.channels,
        decoder_layers=config.decoder_layers,
        decoder=config.decoder,
        orientations=config.orientations,
        motion=config.motion,
        decode=config.decode,
        form=config.form,
        boundary="circular" if config.motion == "shift" else "zero",
    )


def _generator(config: Config, images: np.ndarray, velocities: Velocities, batch: int, length: int):
    make = flowing_mnist if config.motion == "shift" else rotating_mnist
    # The digits are an argument: as a constant of the program they would be compiled into it.
    compiled = jax.jit(functools.partial(make, batch=batch, num_digits=config.num_digits, length=length))
    table, speeds = jnp.asarray(images), jnp.asarray(np.asarray(velocities, np.float32))

    def generate(key) -> FlowingSequence:
        return compiled(key, table, speeds)

    return generate


def _errors(config: Config, params: PyTree, network: NextFrameConfig, sequences: Array) -> Array:
    """Squared error of each predicted frame, mean over pixels, `[batch, frames - given]`."""
    given, truth = sequences[:, : config.given], sequences[:, config.given :]
    predicted = next_frame_apply(params, given, truth.shape[1], network)
    return jnp.mean((predicted - truth) ** 2, axis=(-3, -2, -1))


def _by_step(config: Config, network: NextFrameConfig, params: PyTree, generate, key) -> np.ndarray:
    """Mean squared error of each step of the horizon over `eval_sequences`."""
    measure = jax.jit(lambda params, frames: jnp.mean(_errors(config, params, network, frames), axis=0))
    rounds = max(1, config.eval_sequences // config.batch_size)
    found = [measure(params, generate(jax.random.fold_in(key, i)).frames) for i in range(rounds)]
    return np.mean(jax.device_get(found), axis=0)


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one network and measures it in distribution, beyond its horizon, and at other velocities.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON), and checkpoints if asked for.

    Returns:
      Flat dict of floats: `test_mse` (the predicted frames of training's length), `late_mse` (the last third of the
      horizon), `step/NN` (each step), `speed/+k` (all digits at k steps), `copy_last_mse`, `zeros_mse`, and so on.
    """
    workdir = make_folder(workdir)
    parts, network = digit_parts(config.dataset, half=config.scale == "half"), network_config(config)
    images = {name: part for name, (part, _) in parts.items()}
    speeds, length = velocities_of(config, config.data_radius), config.given + config.predicted
    optimizer = training.make_optimizer(
        training.OptimizerConfig(learning_rate=config.learning_rate, clip_norm=config.clip_norm)
    )
    key_params, key_state, key_data = jax.random.split(jax.random.key(config.seed), 3)
    key_validation, key_test = jax.random.split(jax.random.key(config.data_seed))

    def loss_fn(params, batch, *, key, model_state):
        del key, model_state
        return training.LossOutput({"mse": training.Mean.of(_errors(config, params, network, batch))})

    generate = _generator(config, images["train"], speeds, config.batch_size // jax.process_count(), length)
    validate = _generator(config, images["validation"], speeds, config.batch_size, length)
    rounds = max(1, config.eval_sequences // config.batch_size)
    measure = training.make_eval_step(loss_fn, mesh=device_mesh())

    def validation():
        return [validate(jax.random.fold_in(key_validation, i)).frames for i in range(rounds)]

    best = BestEpoch("mse")
    result, trained, *_ = train(
        lambda key: (next_frame_init(key, network), None),
        loss_fn,
        optimizer,
        GeneratedBatches(lambda key: generate(key).frames, key_data),
        keys=(key_params, key_state),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(50, config.steps),
            eval_every=min(config.eval_every, config.steps),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor="mse",
        ),
        evaluate=training.evaluator(measure, validation),
        on_evaluation=best,
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    params = best.of(result, workdir, checkpoints=config.checkpoint_every is not None).params
    metrics = {
        "validation_mse": float(result.best_value if result.best_value is not None else np.nan),
        "banks": float(len(network.velocities)),
        **trained,
        **_test(config, network, params, images["test"], key_test),
    }
    return write_metrics(workdir, metrics)


def _test(config: Config, network: NextFrameConfig, params: PyTree, images: np.ndarray, key) -> dict[str, float]:
    speeds = velocities_of(config, config.data_radius)
    long = _generator(config, images, speeds, config.batch_size, config.given + config.horizon)
    errors = _by_step(config, network, params, long, key)
    metrics = {f"step/{t + 1:02d}": float(error) for t, error in enumerate(errors)}
    metrics["test_mse"] = float(errors[: config.predicted].mean())
    metrics["late_mse"] = float(errors[-(config.horizon // 3) :].mean())
    one = long(key).frames
    truth = one[:, config.given : config.given + config.predicted]
    metrics["copy_last_mse"] = float(jnp.mean((truth - one[:, config.given - 1][:, None]) ** 2))
    metrics["zeros_mse"] = float(jnp.mean(truth**2))
    for speed in config.unseen:
        velocity = ((config.step * speed,),) if config.motion == "rotation" else ((float(speed), 0.0),)
        short = _generator(config, images, velocity, config.batch_size, config.given + config.predicted)
        metrics[f"speed/{speed:+d}"] = float(_by_step(config, network, params, short, key).mean())
    return metrics
