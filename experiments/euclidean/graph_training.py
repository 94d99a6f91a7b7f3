"""Training on padded batches of atomic graphs: from optimiser to averaged parameters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from equivariant_jax import training
from equivariant_jax.core.graphs import GraphBudget, plan_budget
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.data import graph_pipeline
from experiments.euclidean.molecular_models import sizes
from experiments.runs import device_mesh, train

__all__ = ["GraphRun", "train_on_graphs"]


class GraphRun(NamedTuple):
    """What training gave.

    Attributes:
      params: averaged parameters, on the host.
      metrics: `parameters`, `train_seconds`, `steps`, `fill_edges`, `skipped_updates`.
      budget: of the padded validation batches.
    """

    params: PyTree
    metrics: dict[str, float]
    budget: GraphBudget


def train_on_graphs(
    init: Callable[[Array], PyTree],
    loss_fn: Any,
    coefficients: Mapping[str, float],
    optimizer: training.OptimizerConfig,
    config: Any,
    data: Any,
    workdir: Path,
    *,
    monitor: str,
    experiment: Mapping[str, Any],
    slack: float,
    validation_batch: int,
) -> GraphRun:
    """Trains one network, one padded batch per device: the gradient is that of the whole batch.

    Args:
      init: key -> parameters.
      loss_fn: as `training.make_train_step` takes it.
      coefficients: factor of each term of the loss.
      optimizer: of the run; `warmup_steps` may exceed the steps of a short run.
      config: the experiment's, with `steps`, `batch_size`, `ema_decay`, `eval_every`, `checkpoint_every`, `seed` and
        `resume`.
      data: with `train` and `validation`, sequences of graphs.
      workdir: gets metrics and checkpoints.
      monitor: name of the validation metric by which the best checkpoint is known.
      experiment: written beside each checkpoint.
      slack: room of a training batch above the mean, see `plan_budget`.
      validation_batch: graphs in a validation batch.

    Returns:
      `GraphRun`.
    """
    several = jax.device_count() > 1
    devices = jax.local_device_count() if several else None
    per_device = max(1, round(config.batch_size / jax.device_count()))
    budget = plan_budget(*sizes(data.train), batch_size=per_device, slack=slack)
    parallel: dict[str, Any] = {"coefficients": coefficients, "per_device": several}
    measure = training.make_eval_step(loss_fn, mesh=device_mesh(), **parallel)
    batches = graph_pipeline(data.train, budget, seed=config.seed, devices=devices, prefetch=2)
    wide = plan_budget(*sizes(data.validation), batch_size=validation_batch, slack=2.0)
    validation = graph_pipeline(data.validation, wide, shuffle=False, num_epochs=1, devices=devices, prefetch=0)

    def validation_batches():
        validation.reset()
        return validation

    result, trained, *_ = train(
        lambda key: (init(key), None),
        loss_fn,
        training.make_optimizer(optimizer),
        batches,
        keys=jax.random.split(jax.random.key(config.seed)),
        ema_decay=config.ema_decay,
        **parallel,
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(50, config.steps),
            eval_every=min(config.eval_every, config.steps),
            checkpoint_every=config.checkpoint_every,
            resume=config.resume,
            monitor=monitor,
        ),
        evaluate=training.evaluator(measure, validation_batches),
        experiment=experiment,
    )
    metrics = {**trained, "fill_edges": batches.fill_factor()["edge"]}
    return GraphRun(jax.device_get(result.state.ema_params), metrics, wide)
