"""One training loop for every model: step, state, checkpoints, metrics, devices. Knows no model and no data set.

What a caller supplies is a loss over real items; everything else is here.

    def loss_fn(params, batch, *, key, model_state):
        error = model.apply({"params": params}, batch["x"]) - batch["y"]
        return LossOutput({"error": Mean.of(error**2, batch["mask"])})

    optimizer = make_optimizer(OptimizerConfig("adam", learning_rate=1e-3, clip_norm=1.0))
    make = lambda key: TrainState.create(model.init(key, x)["params"], optimizer, key=key)
    mesh = make_mesh()
    step = make_train_step(loss_fn, optimizer, mesh=mesh)
    result = fit(step, init_sharded(make, mesh, (), key), batches, num_steps=1000, workdir="runs/first")

- `step`, `state`, `objective`, `evaluation`: the compiled step. The gradient is that of the global batch's real items,
  the same number on any number of devices and with any number of microbatches.
- `loop`: `fit`, with metric rows, evaluation, best model, early stop, roll back, SIGTERM, and bit-exact resume.
- `checkpoint`: asynchronous, verified checkpoints that are restored onto whatever devices there are.
- `sharding`, `distributed`: meshes, placement rules, several processes.
- `optim`, `metrics`, `writer`, `progress`, `profiling`, `export`.
"""

from equivariant_jax.training.checkpoint import Checkpointer, CheckpointError, Restored
from equivariant_jax.training.distributed import ProcessInfo, initialize, run_local_processes
from equivariant_jax.training.evaluation import EvalStep, evaluator, make_eval_step
from equivariant_jax.training.export import export_function, load_exported, save_exported
from equivariant_jax.training.loop import FitResult, LoopConfig, NonFiniteError, fit
from equivariant_jax.training.metrics import Mean, Metric, RootMean, add_metrics, compute_metrics
from equivariant_jax.training.objective import Gradient, LossOutput, make_gradient, weighted_objective
from equivariant_jax.training.optim import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    observe_plateau,
    plateau_observer,
)
from equivariant_jax.training.profiling import Cost, analyse, count_traces, device_peak, trace
from equivariant_jax.training.sharding import init_sharded, leaf_paths, make_mesh, shard_batch, shardings_for
from equivariant_jax.training.state import TrainState, nonfinite_leaves
from equivariant_jax.training.step import TrainStep, make_train_step
from equivariant_jax.training.writer import MetricsWriter, read_rows

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Cost",
    "EvalStep",
    "FitResult",
    "Gradient",
    "LoopConfig",
    "LossOutput",
    "Mean",
    "Metric",
    "MetricsWriter",
    "NonFiniteError",
    "OptimizerConfig",
    "ProcessInfo",
    "Restored",
    "RootMean",
    "TrainState",
    "TrainStep",
    "add_metrics",
    "analyse",
    "compute_metrics",
    "count_traces",
    "device_peak",
    "evaluator",
    "export_function",
    "fit",
    "init_sharded",
    "initialize",
    "leaf_paths",
    "load_exported",
    "make_eval_step",
    "make_gradient",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "nonfinite_leaves",
    "observe_plateau",
    "plateau_observer",
    "read_rows",
    "run_local_processes",
    "save_exported",
    "shard_batch",
    "shardings_for",
    "trace",
    "weighted_objective",
]
