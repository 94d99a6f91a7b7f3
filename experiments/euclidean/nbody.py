r"""Predicts charged particles 1000 steps ahead with Clebsch-Gordan or Gaunt products: `euclidean.nbody`.

The network is `equivariant_jax.euclidean.steerable` (SEGNN's message passing), the data `data.simulators` (the charged
5-body simulation of EGNN, made anew, frame 30 -> 40); the metric is the mean squared error of the positions on the test
set. Variants differ in the product and have as nearly equal numbers of parameters as a whole number of channels allows:
`gaunt`, `cg`, the same with attributes of degree 2 (`gaunt_2`, `cg_2`), and `plain`, the same network at degree 0 that
is fed coordinates as if they were invariants: no symmetry, same code and budget. `linear_mse` is what one fitted time t
reaches with `x + t v`.

Published (1e-3): SEGNN 4.3, EGNN 7.1, a plain graph network 10.7, linear 81.9 (arXiv:2110.02905, arXiv:2102.09844; from
memory); with the Gaunt product (arXiv:2401.10216, read off a chart) Clebsch-Gordan 5.0 and 5.2, Gaunt 4.8 and 5.0 at
attribute degree 1 and 2. The `paper` preset has the settings of SEGNN's repository: 4 layers, `lmax` 1, 32 channels
(its 64 hidden features balanced by weights), batch 100, 1000 epochs of Adam at 5e-4; what the Gaunt paper changed of
them is not known.

Command: `python -m experiments euclidean.nbody cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run.
"""

import bisect
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.data import make_pipeline
from equivariant_jax.euclidean.steerable import SteerableConfig, steerable_apply, steerable_init
from experiments import charged_particles
from experiments.claims import Claims
from experiments.runs import count_parameters, device_mesh, make_folder, train, whole_set, write_metrics

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "network_config", "num_parameters", "predict", "run"]

CARD = "gaunt_tensor_product"
POINT = "sanity check: n-body"
# Published test errors by attribute degree, read off a chart.
PUBLISHED = {"cg": {1: 5.0e-3, 2: 5.2e-3}, "gaunt": {1: 4.8e-3, 2: 5.0e-3}}

VARIANTS: dict[str, dict[str, Any]] = {
    "gaunt": {},
    "cg": {"model": "cg"},
    "plain": {"model": "plain"},
    "gaunt_2": {"attribute_lmax": 2},
    "cg_2": {"model": "cg", "attribute_lmax": 2},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      model: "gaunt" or "cg" (product of the network), or "plain" (no symmetry).
      lmax: largest degree of hidden features.
      attribute_lmax: largest degree of attributes.
      channels: features per coefficient of "cg"; the other models get as many as bring them nearest to its parameters.
      layers: rounds of message passing.
      train_size: training simulations.
      validation_size: validation simulations.
      test_size: test simulations.
      data_seed: of the simulations; all runs share the data.
      epochs: passes over the training set.
      batch_size: simulations per step.
      learning_rate: peak of the schedule.
      schedule: "warmup_cosine" or "constant".
      clip_norm: largest norm of the gradient.
      ema_decay: decay of the averaged parameters that are evaluated.
      evaluations: validations during training.
      checkpoint_every: steps between checkpoints, None for none.
      seed: of parameters and order of batches.
      resume: continue from the newest checkpoint in the working directory.
    """

    model: Literal["gaunt", "cg", "plain"] = "gaunt"
    lmax: int = 1
    attribute_lmax: int = 1
    channels: int = 16
    layers: int = 3
    train_size: int = 3000
    validation_size: int = 2000
    test_size: int = 2000
    data_seed: int = 43
    epochs: int = 60
    batch_size: int = 100
    learning_rate: float = 5e-3
    schedule: Literal["warmup_cosine", "constant"] = "warmup_cosine"
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    evaluations: int = 5
    checkpoint_every: int | None = None
    seed: int = 0
    resume: bool = False


PRESETS: dict[str, Config] = {
    "ci": Config(
        channels=4, layers=1, train_size=200, validation_size=100, test_size=100, epochs=10, evaluations=2,
        batch_size=20,
    ),
    "cpu": Config(),
    "paper": Config(
        channels=32, layers=4, epochs=1000, learning_rate=5e-4, schedule="constant", evaluations=200,
        checkpoint_every=3000,
    ),
}  # fmt: skip


@functools.cache
def num_parameters(network: SteerableConfig) -> int:
    """Counts the parameters of a network without drawing them."""
    return count_parameters(functools.partial(steerable_init, config=network))


def network_config(config: Config) -> SteerableConfig:
    """Makes the network's configuration, with the channels that bring its parameters nearest to those of "cg".

    Args:
      config: the run.

    Returns:
      The network's static description.
    """
    steerable = SteerableConfig(
        scalars_in=1, vectors_in=1, edge_scalars_in=1, vectors_out=1, product="cg", lmax=config.lmax,
        attribute_lmax=config.attribute_lmax, channels=config.channels, layers=config.layers, centred_positions=True,
        average_neighbours=4.0,
    )  # fmt: skip
    if config.model == "cg":
        return steerable
    if config.model == "gaunt":
        other = dataclasses.replace(steerable, product="gaunt")
    else:
        other = SteerableConfig(
            scalars_in=7, edge_scalars_in=4, scalars_out=3, product="cg", lmax=0, attribute_lmax=0,
            layers=config.layers, average_neighbours=4.0,
        )  # fmt: skip
    target = num_parameters(steerable)
    # The number grows with the channels: the nearest is the first that reaches the target, or the one before.
    widths = range(1, 64 * config.channels)
    first = bisect.bisect_left(widths, target, key=lambda c: num_parameters(dataclasses.replace(other, channels=c)))
    candidates = [dataclasses.replace(other, channels=c) for c in widths[max(first - 1, 0) : first + 1]]
    return min(candidates, key=lambda candidate: abs(num_parameters(candidate) - target))


def predict(params: PyTree, network: SteerableConfig, positions: Array, velocities: Array, charges: Array) -> Array:
    """Predicts positions 1000 steps later.

    Args:
      params: from `steerable_init`.
      network: from `network_config`; without vectors it is the network without symmetry.
      positions: shape `[batch, n, 3]`, dtype of `params`.
      velocities: shape `[batch, n, 3]`.
      charges: shape `[batch, n]`.

    Returns:
      Positions, shape `[batch, n, 3]`.
    """
    products = (charges[..., :, None] * charges[..., None, :])[..., None]
    speed = safe_norm(velocities)[..., None]
    if network.vectors_out:
        out = steerable_apply(
            params, positions, speed, network, vectors=velocities[..., None, :], edge_scalars=products
        )
        return positions + out.vectors[..., 0, :]
    centred = positions - jnp.mean(positions, axis=-2, keepdims=True)
    relative = positions[..., None, :, :] - positions[..., :, None, :]
    scalars = jnp.concatenate([centred, velocities, speed], axis=-1)
    edge_scalars = jnp.concatenate([relative, products], axis=-1)
    return positions + steerable_apply(params, positions, scalars, network, edge_scalars=edge_scalars).scalars


def _loss(network: SteerableConfig):
    def loss_fn(params, batch, *, key, model_state):
        del key, model_state
        predicted = predict(params, network, batch["positions"], batch["velocities"], batch["charges"])
        return training.LossOutput({"mse": training.Mean.of((predicted - batch["targets"]) ** 2, batch.get("mask"))})

    return loss_fn


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one model and measures it on the test set.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON), and checkpoints if asked for.

    Returns:
      Flat dict of floats: `test_mse`, `validation_mse`, `train_mse` (of the last logged steps), `linear_mse`,
      `parameters`, and so on.
    """
    workdir = make_folder(workdir)
    splits = charged_particles.splits(config.train_size, config.validation_size, config.test_size, config.data_seed)
    sources = {name: charged_particles.source(task) for name, task in splits.items()}
    network = network_config(config)
    steps = config.epochs * (config.train_size // config.batch_size)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            warmup_steps=steps // 20,
            total_steps=steps,
            end_factor=1e-2,
            clip_norm=config.clip_norm,
        )
    )
    key_params, key_state = jax.random.split(jax.random.key(config.seed))

    loss_fn = _loss(network)
    measure = training.make_eval_step(loss_fn, mesh=device_mesh())
    batches = make_pipeline(sources["train"], batch_size=config.batch_size, seed=config.seed, prefetch=2)
    validate = training.evaluator(measure, whole_set(sources["validation"], config.batch_size))
    result, trained, *_ = train(
        lambda key: (steerable_init(key, network), None),
        loss_fn,
        optimizer,
        batches,
        keys=(key_params, key_state),
        ema_decay=config.ema_decay,
        num_steps=steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(100, steps),
            eval_every=max(1, steps // config.evaluations),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor="mse",
        ),
        evaluate=validate,
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    metrics = {
        "test_mse": training.evaluator(measure, whole_set(sources["test"], config.batch_size))(result.state)["mse"],
        "validation_mse": validate(result.state)["mse"],
        "train_mse": float(result.train.get("mse", np.nan)),
        "linear_mse": charged_particles.linear_mse(splits["train"], splits["test"]),
        "channels": float(network.channels),
        "epochs": float(config.epochs),
        **{name: trained[name] for name in ("parameters", "train_seconds", "skipped_updates")},
    }
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run. The published
      numbers are compared with runs of at least 1000 epochs only.
    """
    claim = Claims(CARD)
    for degree, suffix in ((1, ""), (2, "_2")):
        ours, theirs = (metrics.get(f"{product}{suffix}", {}).get("test_mse") for product in ("gaunt", "cg"))
        if ours and theirs:
            ratio = ours["mean"] / theirs["mean"]
            statement = f"attribute degree {degree}: test MSE of gaunt over cg, mean over seeds"
            claim.at_most(POINT, statement, 1.1, ratio)
    plain = metrics.get("plain", {}).get("test_mse")
    for product in ("gaunt", "cg"):
        ours = metrics.get(product, {}).get("test_mse")
        if ours and plain:
            ratio = min(plain["values"]) / max(ours["values"])
            statement = f"test MSE of the network without symmetry, best seed, over {product}, worst seed"
            claim.at_least(POINT, statement, 1.5, ratio)
        for degree, suffix in ((1, ""), (2, "_2")):
            table = metrics.get(f"{product}{suffix}", {})
            if table and min(table["epochs"]["values"]) >= 1000:
                ratio = table["test_mse"]["mean"] / PUBLISHED[product][degree]
                statement = f"attribute degree {degree}: test MSE of {product}, mean over seeds, over the published"
                claim.at_most(POINT, statement, 1.0, ratio)
    return claim.found
