"""The one training loop: it knows no model, no data set and no loss, only steps, states and batches.

What it promises: 2n steps give the same parameters, optimiser, average, key and metric rows, bit for bit, as n steps,
an interruption at any moment, a resume, and n more. For that, whatever influences a later step or row is in the
checkpoint: the state, the data iterator's position, and the loop's own `Carried` (half-filled sums of the current
logging interval, best value, patience). Logs, evaluations and periodic checkpoints happen at multiples of their
interval only, so that where a run was cut leaves no trace.

The device is never waited for at a step: metrics are summed on it and fetched at log steps, and the flag that a step
was skipped is read `in_flight` steps later.
"""

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from equivariant_jax.core.typing import PyTree
from equivariant_jax.training.carried import Carried
from equivariant_jax.training.checkpoint import Checkpointer, Restored
from equivariant_jax.training.interruption import Interruption
from equivariant_jax.training.metrics import add_metrics, compute_metrics
from equivariant_jax.training.profiling import cost_of, device_peak
from equivariant_jax.training.progress import Progress, Throughput
from equivariant_jax.training.state import TrainState, nonfinite_leaves
from equivariant_jax.training.step import TrainStep
from equivariant_jax.training.writer import MetricsWriter

__all__ = ["FitResult", "LoopConfig", "NonFiniteError", "fit"]

_LOG = logging.getLogger(__name__)

Evaluate = Callable[[TrainState], Mapping[str, float]]
OnEvaluation = Callable[[TrainState, dict[str, float]], TrainState]


class NonFiniteError(FloatingPointError):
    """Updates were not finite too many times in a row; the message names the leaves."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When to log, evaluate, save and stop; all intervals are in steps.

    Attributes:
      log_every: interval of metric rows.
      eval_every: interval of evaluations, None for none.
      checkpoint_every: interval of checkpoints; None saves at the end only (and the best, and on SIGTERM).
      keep_checkpoints: newest checkpoints to keep beside the best one.
      resume: continue from the newest usable checkpoint in `workdir`, or start if there is none. With False, a
        `workdir` that holds checkpoints is an error.
      monitor: metric of the evaluation that says what is best.
      mode: whether `min` or `max` of it is.
      min_delta: smallest improvement that counts.
      early_stop_patience: stop after so many evaluations without improvement, None never.
      max_consecutive_skips: roll back to the last good checkpoint after so many skipped updates in a row.
      max_rollbacks: stop with `NonFiniteError` instead of rolling back once more than this.
      in_flight: steps that may be dispatched before the host looks at the flags of an earlier one.
      progress: progress bar on standard error; None shows it on a terminal.
    """

    log_every: int = 100
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 3
    resume: bool = False
    monitor: str = "loss"
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    early_stop_patience: int | None = None
    max_consecutive_skips: int = 10
    max_rollbacks: int = 1
    in_flight: int = 4
    progress: bool | None = None

    def __post_init__(self):
        for name in ("log_every", "eval_every", "checkpoint_every", "early_stop_patience", "max_consecutive_skips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"LoopConfig.{name} is {value}; expected at least 1.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"LoopConfig.mode is {self.mode!r}; expected 'min' or 'max'.")


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: last state.
      step: its step.
      train: metrics of the last logging interval, whole or not.
      evaluation: metrics of the last evaluation, empty if there was none.
      best_step: step of the best evaluation, None if there was none.
      best_value: its monitored metric.
      skipped: number of skipped updates.
      stop_reason: `finished`, `early stop` or `data exhausted`.
    """

    state: TrainState
    step: int
    train: dict[str, float]
    evaluation: dict[str, float]
    best_step: int | None
    best_value: float | None
    skipped: int
    stop_reason: str


class _Run:
    """One call of `fit`: what its events (log, evaluate, save, roll back) work on."""

    def __init__(
        self,
        step: TrainStep,
        state: TrainState,
        iterator: Iterator[PyTree],
        workdir: Path,
        config: LoopConfig,
        checkpointer: Checkpointer | None,
        experiment: Any,
    ):
        self.step, self.state, self.iterator = step, state, iterator
        self.config, self.checkpointer, self.experiment = config, checkpointer, experiment
        self.n = int(state.step)
        self.saved_at: int | None = None
        self.carried = Carried()
        self.last_row: dict[str, float] = {}
        self.stop_reason = "finished"
        self.meter = Throughput(None, None)
        self.add = jax.jit(add_metrics)
        resumed = self.resume()
        self.writer = MetricsWriter(workdir, resume_step=self.n if resumed else None, enabled=jax.process_index() == 0)
        if checkpointer is not None and not resumed:
            self.save()  # something to roll back to, and to resume from, at any time

    def resume(self) -> bool:
        checkpointer = self.checkpointer
        newest = None if checkpointer is None else checkpointer.latest()
        if checkpointer is None or newest is None:
            return False
        if not self.config.resume:
            raise ValueError(
                f"{checkpointer.directory} holds checkpoints of a run (newest: step {newest}). Continue it with "
                "resume=True (--resume), or choose another workdir."
            )
        restored = checkpointer.restore(self.state)
        self.adopt(restored)
        self.saved_at = self.n
        if restored.iterator_state is not None:
            set_state = getattr(self.iterator, "set_state", None)
            if set_state is None:
                raise ValueError(
                    f"The checkpoint of step {self.n} holds a data position, but {type(self.iterator).__name__} has no "
                    "set_state; pass the kind of iterator that the run was started with."
                )
            set_state(restored.iterator_state)
        else:
            _LOG.warning("The data starts anew at step %d, since the checkpoint holds no position of it.", self.n)
        return True

    def adopt(self, restored: Restored) -> None:
        self.state, self.n = restored.state, restored.step
        self.carried = Carried.from_json(restored.extra["loop"])

    def good(self) -> bool:
        return int(self.state.consecutive_skips) == 0

    def save(self, *, best: bool = False) -> None:
        if self.checkpointer is None:
            return
        get_state = getattr(self.iterator, "get_state", None)
        self.checkpointer.save(
            self.n,
            self.state,
            iterator_state=None if get_state is None else get_state(),
            config=self.experiment,
            extra={"loop": self.carried.to_json(), "good": self.good()},
            best=best,
        )
        self.saved_at = self.n

    def advance(self, batch: PyTree) -> None:
        self.state, metrics = self.step(self.state, batch)
        self.n += 1
        self.carried.note(metrics, self.add, self.config.in_flight)

    def start_clock(self, batch: PyTree) -> None:
        """Leaves the compilation in the first step out of the rate, and reads the cost of the compiled step."""
        peak = device_peak()
        flops = cost_of(self.step.lower(self.state, batch).compile()).flops
        jax.block_until_ready(self.state.step)
        self.meter = Throughput(flops, None if peak is None else peak.flops)
        self.meter.restart(self.n)

    def log(self) -> dict[str, float]:
        if self.carried.sums is not None:
            self.last_row = compute_metrics(self.carried.sums)
            self.carried.sums = None
            self.writer.write(self.n, "train", {**self.last_row, **self.meter.read(self.n)})
        self.meter.restart(self.n)
        return self.last_row

    def evaluate(self, evaluate: Evaluate, on_evaluation: OnEvaluation | None) -> bool:
        """Evaluates, writes the row, keeps the best value and the patience; True if it is the best so far."""
        carried, config = self.carried, self.config
        values = {name: float(value) for name, value in evaluate(self.state).items()}
        if config.monitor not in values:
            raise ValueError(f"LoopConfig.monitor is {config.monitor!r}; the evaluation reports {sorted(values)}.")
        self.writer.write(self.n, "eval", values)
        value = values[config.monitor]
        sign = 1.0 if config.mode == "min" else -1.0
        better = not math.isnan(value) and (
            carried.best_value is None or sign * value < sign * carried.best_value - config.min_delta
        )
        carried.evaluation = values
        carried.stale = 0 if better else carried.stale + 1
        if better:
            carried.best_step, carried.best_value = self.n, value
        if on_evaluation is not None:
            self.state = on_evaluation(self.state, values)
        self.meter.restart(self.n)
        return better

    def out_of_patience(self) -> bool:
        patience = self.config.early_stop_patience
        if patience is None or self.carried.stale < patience:
            return False
        self.stop_reason = "early stop"
        return True

    def roll_back(self) -> None:
        """Returns to the last good checkpoint; the data goes on, since the same batches would fail the same way."""
        names = ", ".join(nonfinite_leaves(self.state))
        what = (
            f"{self.carried.consecutive} updates in a row, up to step {self.n}, were skipped because numbers were not "
            f"finite in: {names}"
        )
        checkpointer, good = self.checkpointer, None
        if checkpointer is not None:
            good = checkpointer.newest(lambda extra: extra["good"])
        if checkpointer is None or good is None or self.carried.rollbacks >= self.config.max_rollbacks:
            raise NonFiniteError(
                f"{what}. The run was rolled back {self.carried.rollbacks} time(s); the last good checkpoint is "
                f"{'none' if good is None else f'step {good}'}. Lower the learning rate, clip the gradient, or look "
                "at the data of these steps."
            )
        _LOG.warning("%s. Rolling back to step %d.", what, good)
        failed_at, rollbacks = self.n, self.carried.rollbacks + 1
        self.adopt(checkpointer.restore(self.state, step=good))
        self.carried.rollbacks = rollbacks
        checkpointer.discard_after(good)
        self.writer.rewind(good)
        self.writer.write(good + 1, "event", {"rolled_back_from": failed_at, "nonfinite": names})
        self.meter.restart(self.n)

    def result(self) -> FitResult:
        carried = self.carried
        return FitResult(
            state=self.state,
            step=self.n,
            train=self.last_row if carried.sums is None else compute_metrics(carried.sums),
            evaluation=carried.evaluation,
            best_step=carried.best_step,
            best_value=carried.best_value,
            skipped=int(self.state.skipped),
            stop_reason=self.stop_reason,
        )


def fit(
    step: TrainStep,
    state: TrainState,
    train_iterator: Iterator[PyTree],
    *,
    num_steps: int,
    workdir: str | os.PathLike,
    config: LoopConfig | None = None,
    evaluate: Evaluate | None = None,
    on_evaluation: OnEvaluation | None = None,
    checkpointer: Checkpointer | None = None,
    experiment: Any = None,
) -> FitResult:
    """Trains until `num_steps`, writing `metrics.jsonl`, `metrics.csv` and checkpoints into `workdir`.

    Args:
      step: from `make_train_step`.
      state: state to start from, also the pattern that a checkpoint is restored onto; donated to the first step.
      train_iterator: yields host batches (leaves `[n, ...]`; this process's part). With `get_state()` and
        `set_state(state)` (JSON or bytes), its position is saved and restored.
      num_steps: value of `state.step` to stop at, so a resumed run takes the same number.
      workdir: directory of the run, shared by all processes.
      config: intervals and policies, default `LoopConfig()`.
      evaluate: `evaluate(state) -> name -> float`, see `evaluator`; None for no evaluation.
      on_evaluation: `(state, values) -> state`, called after each evaluation, e.g.
        `plateau_observer(optimizer_config)`.
      checkpointer: None makes one in `workdir/checkpoints` if `config` has `checkpoint_every` or `resume`, and
        otherwise saves nothing.
      experiment: JSON stored in every checkpoint (the experiment's configuration).

    Returns:
      A `FitResult`.

    Raises:
      ValueError: if `workdir` holds checkpoints and `config.resume` is False, or the monitored metric is not reported.
      NonFiniteError: if updates stay non-finite after `config.max_rollbacks` returns to the last good checkpoint.
      SystemExit: with code 0, after SIGTERM, once the state is saved (only if there is a checkpointer).

    Example:
      >>> import itertools, tempfile, jax.numpy as jnp, numpy as np, optax
      >>> from equivariant_jax.training import LossOutput, Mean, TrainState, make_train_step
      >>> def loss_fn(params, batch, *, key, model_state):
      ...     return LossOutput({"error": Mean.of((batch - params["mean"]) ** 2)})
      >>> optimizer = optax.sgd(0.25)
      >>> state = TrainState.create({"mean": jnp.zeros(())}, optimizer, key=jax.random.key(0))
      >>> batches = itertools.repeat(np.array([1.0, 3.0], np.float32))
      >>> result = fit(make_train_step(loss_fn, optimizer), state, batches, num_steps=20, workdir=tempfile.mkdtemp())
      >>> round(float(result.state.params["mean"]), 3)
      2.0
    """
    config = LoopConfig() if config is None else config
    workdir = Path(workdir).absolute()
    if checkpointer is None and (config.checkpoint_every is not None or config.resume):
        checkpointer = Checkpointer(workdir / "checkpoints", keep=config.keep_checkpoints)
    run = _Run(step, state, train_iterator, workdir, config, checkpointer, experiment)
    del state  # donated

    def due(interval: int | None) -> bool:
        return interval is not None and run.n % interval == 0

    first = True
    with (
        run.writer,
        Interruption(enabled=checkpointer is not None) as interruption,
        Progress(num_steps, run.n, config.progress) as bar,
    ):
        while run.n < num_steps and not run.out_of_patience():
            batch = next(train_iterator, None)
            if batch is None:
                _LOG.warning("The data ended after step %d of %d.", run.n, num_steps)
                run.stop_reason = "data exhausted"
                break
            batch = step.place(batch)
            run.advance(batch)
            if first:
                run.start_clock(batch)
                first = False
            if run.carried.consecutive >= config.max_consecutive_skips:
                run.roll_back()
                bar.advance_to(run.n)
                continue
            bar.advance_to(run.n)
            if due(config.log_every):
                bar.show(run.log())
            best = evaluate is not None and due(config.eval_every) and run.evaluate(evaluate, on_evaluation)
            # A state in the middle of a streak of skips is not worth an older one's place.
            if best or (due(config.checkpoint_every) and run.good()):
                run.save(best=best)
            if interruption.requested(run.n):
                if run.saved_at != run.n:
                    run.save()
                _leave(run, num_steps)
        if checkpointer is not None:
            if run.saved_at != run.n:
                run.save()
            checkpointer.wait()
        return run.result()


def _leave(run: _Run, num_steps: int) -> None:
    """Ends the process after SIGTERM, once the checkpoint that was just started is committed."""
    if run.checkpointer is not None:
        run.checkpointer.wait()
        if jax.process_index() == 0:
            sys.stderr.write(
                f"\nSIGTERM: saved step {run.n} of {num_steps} to {run.checkpointer.path(run.n)}. Run the same "
                "command with resume=True (--resume) to continue.\n"
            )
    raise SystemExit(0)
