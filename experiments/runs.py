"""What runs that train have in common: batches, the loss of classifiers, parameters, and the metrics they leave."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from equivariant_jax import training
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.data import ArraySource, make_pipeline
from equivariant_jax.data.generated import GeneratedBatches

__all__ = [
    "Trained",
    "count_parameters",
    "cross_entropy",
    "device_mesh",
    "make_folder",
    "num_parameters",
    "random_batches",
    "train",
    "whole_set",
    "write_metrics",
]


def make_folder(path: str | Path) -> Path:
    """Makes a folder with all above it, if it is not there, and gives its path."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def random_batches(arrays: Mapping[str, Array], batch_size: int, key: PRNGKey) -> GeneratedBatches[dict[str, Array]]:
    """Draws batches without end on the device, each without repetition, this process's part of them.

    Args:
      arrays: name -> shape `[n, ...]`, any dtype, the same n.
      batch_size: rows of a batch over all processes.
      key: typed random key; batch i depends on the key and i alone.

    Returns:
      An iterator over dicts of arrays `[batch_size / processes, ...]`.
    """

    @jax.jit
    def choose(key: PRNGKey, arrays: Mapping[str, Array]) -> dict[str, Array]:
        number = len(next(iter(arrays.values())))
        chosen = jax.random.choice(key, number, (batch_size // jax.process_count(),), replace=False)
        return {name: array[chosen] for name, array in arrays.items()}

    # The arrays are an argument: as constants they would be compiled into the program.
    return GeneratedBatches(lambda key: choose(key, arrays), key)


def whole_set(source: ArraySource, batch_size: int) -> Callable[[], Iterable[Any]]:
    """Makes what `training.evaluator` takes: all rows once, in order; `mask` says which rows of a batch are real.

    Args:
      source: of arrays.
      batch_size: rows of a batch; the last one is filled up.

    Returns:
      A function without arguments that starts from the first row.
    """
    return lambda: make_pipeline(
        source, batch_size=batch_size, shuffle=False, num_epochs=1, drop_remainder=False, mask_key="mask", prefetch=0
    )


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes minus the log probability of each label.

    Args:
      logits: shape `[batch, classes]`, float.
      labels: shape `[batch]`, integers.

    Returns:
      Shape `[batch]`, dtype of `logits`.
    """
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def num_parameters(params: PyTree) -> int:
    """Counts the numbers in a pytree of arrays, or of their shapes and dtypes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_parameters(init: Callable[[PRNGKey], PyTree]) -> int:
    """Counts the parameters that `init(key)` would draw, without drawing them."""
    return num_parameters(jax.eval_shape(init, jax.random.key(0)))


def device_mesh() -> jax.sharding.Mesh | None:
    """Makes a mesh of all devices, or None for a single one."""
    return training.make_mesh() if jax.device_count() > 1 else None


class Trained(NamedTuple):
    """What training gave.

    Attributes:
      result: of `training.fit`.
      metrics: of every training: `parameters`, `steps`, `train_seconds`, `skipped_updates`.
      step: the compiled step.
      cpu_seconds: of this process while it trained, summed over its threads.
    """

    result: training.FitResult
    metrics: dict[str, float]
    step: training.TrainStep
    cpu_seconds: float


def train(
    init: Callable[[PRNGKey], tuple[PyTree, PyTree]],
    loss_fn: Any,
    optimizer: optax.GradientTransformation,
    batches: Iterator[Any],
    *,
    keys: Iterable[PRNGKey],
    ema_decay: float | None = None,
    coefficients: Mapping[str, float] | None = None,
    per_device: bool = False,
    **options: Any,
) -> Trained:
    """Trains one network on all devices.

    Args:
      init: `key -> (params, model state)`; the state is None for a network without one.
      loss_fn: as `training.make_train_step` takes it.
      optimizer: optax transformation.
      batches: iterator over this process's part of the batches.
      keys: typed random keys, of the parameters and of the steps.
      ema_decay: decay of the averaged parameters, None for no average.
      coefficients: of the loss's terms, see `training.make_train_step`.
      per_device: whether each device has a batch of its own, see there.
      **options: of `training.fit`.

    Returns:
      `Trained`.
    """
    mesh = device_mesh()

    def make_state(key_params: PRNGKey, key_state: PRNGKey) -> training.TrainState:
        params, model_state = init(key_params)
        return training.TrainState.create(
            params, optimizer, key=key_state, model_state=model_state, ema=ema_decay is not None
        )

    state = training.init_sharded(make_state, mesh, (), *keys)
    step = training.make_train_step(
        loss_fn, optimizer, mesh=mesh, coefficients=coefficients, ema_decay=ema_decay, per_device=per_device
    )
    started, started_cpu = time.perf_counter(), time.process_time()
    result = training.fit(step, state, batches, **options)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    metrics = {
        "parameters": float(num_parameters(result.state.params)),
        "steps": float(result.step),
        "train_seconds": seconds,
        "skipped_updates": float(result.skipped),
    }
    return Trained(result, metrics, step, cpu_seconds)


def write_metrics(workdir: Path, metrics: dict[str, float], **more: Any) -> dict[str, float]:
    """Writes `metrics.json`, process 0 alone.

    Args:
      workdir: folder of the run.
      metrics: flat dict of floats.
      **more: written as well, any JSON values.

    Returns:
      The metrics.
    """
    if jax.process_index() == 0:
        (workdir / "metrics.json").write_text(json.dumps(metrics | more, indent=1, sort_keys=True))
    return metrics
