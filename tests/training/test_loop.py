"""The loop: bit-exact resume above all, then what happens when a run goes wrong."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.training import (
    Checkpointer,
    LoopConfig,
    LossOutput,
    Mean,
    NonFiniteError,
    OptimizerConfig,
    evaluator,
    fit,
    make_eval_step,
    make_mesh,
    make_optimizer,
    make_train_step,
    plateau_observer,
    read_rows,
)

OPTIMIZER = OptimizerConfig(
    "adam",
    learning_rate=0.05,
    schedule="cosine",
    total_steps=100,
    clip_norm=5.0,
    plateau_factor=0.5,
    plateau_patience=1,
    plateau_rtol=0.5,
)


def rows_without_time(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@functools.cache
def compiled(loss_fn, make_batch, mesh):
    """One compilation for all runs; experiments/stress_checkpoints.py has a fresh one for each."""
    step = make_train_step(loss_fn, make_optimizer(OPTIMIZER), mesh=mesh, accumulate=2, ema_decay=0.9)
    return step, evaluator(make_eval_step(loss_fn, mesh=mesh), lambda: [make_batch(1000)])


def train(problem, workdir, num_steps, *, mesh=None, length=None, **options):
    """A run with everything in it that a resume could forget."""
    step, evaluate = compiled(problem.noisy_loss_fn, problem.make_batch, mesh)
    state = problem.make_state(make_optimizer(OPTIMIZER), ema=True, model_state={"mean": jnp.zeros(3)})
    options = {"log_every": 4, "eval_every": 6, "checkpoint_every": 5, "progress": False, **options}
    return fit(
        step,
        state,
        problem.stream(length),
        num_steps=num_steps,
        workdir=workdir,
        config=LoopConfig(**options),
        evaluate=evaluate,
        on_evaluation=plateau_observer(OPTIMIZER),
        experiment={"name": "test"},
    )


@pytest.mark.parametrize("devices", [0, 4])
def test_resume_is_bit_exact(tmp_path, problem, devices):
    """2n steps = n steps, stop, resume, n steps: state and metric rows; n falls between log and checkpoint steps."""
    mesh = make_mesh(devices=jax.devices()[:devices]) if devices else None
    whole = train(problem, tmp_path / "whole", 26, mesh=mesh)
    first = train(problem, tmp_path / "parts", 13, mesh=mesh)
    assert first.step == 13
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as stream:  # as if killed later than its last checkpoint
        stream.write('{"step": 16, "split": "train", "loss": 1.0}\n')
    second = train(problem, tmp_path / "parts", 26, mesh=mesh, resume=True)
    problem.assert_same_bits(second.state, whole.state)
    assert second[1:] == whole[1:]
    rows = rows_without_time(tmp_path / "whole")
    assert rows_without_time(tmp_path / "parts") == rows
    assert [row["step"] for row in rows if row["split"] == "train"] == [4, 8, 12, 16, 20, 24]
    assert (tmp_path / "parts" / "metrics.csv").read_text().count("train,loss") == 6
    assert float(whole.state.opt_state[-1].scale) < 1  # the plateau rule was at work
    unlike = train(problem, tmp_path / "unlike", 13, mesh=mesh)
    assert not np.array_equal(unlike.state.params["kernel"], whole.state.params["kernel"])


def test_resume_reads_the_checkpoint_not_the_arguments(tmp_path, problem):
    train(problem, tmp_path, 10)
    again = train(problem, tmp_path, 10, resume=True)
    assert again.step == 10
    assert again.stop_reason == "finished"
    with pytest.raises(ValueError, match="resume=True"):
        train(problem, tmp_path, 20)


def test_best_model_and_early_stop(tmp_path, problem):
    values = iter([3.0, 2.0, 2.5, math.nan, 2.2, 1.0])
    optimizer = optax.sgd(0.01)
    result = fit(
        make_train_step(problem.loss_fn, optimizer),
        problem.make_state(optimizer),
        problem.stream(),
        num_steps=100,
        workdir=tmp_path,
        config=LoopConfig(
            log_every=1, eval_every=2, checkpoint_every=3, early_stop_patience=3, monitor="error", keep_checkpoints=1
        ),
        evaluate=lambda state: {"error": next(values)},
    )
    assert (result.stop_reason, result.step, result.best_step, result.best_value) == ("early stop", 10, 4, 2.0)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    assert checkpointer.best() == 4
    assert checkpointer.steps() == [4, 10]
    assert int(checkpointer.restore(result.state, step=4).state.step) == 4
    assert [row["error"] for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "eval"][3] is None
    resumed = fit(
        make_train_step(problem.loss_fn, optimizer),
        problem.make_state(optimizer),
        problem.stream(),
        num_steps=100,
        workdir=tmp_path,
        config=LoopConfig(resume=True, early_stop_patience=3),
    )
    assert (resumed.step, resumed.stop_reason) == (10, "early stop")


def poisoned_fit(
    problem, workdir, poisoned, *, checkpoint_every=4, checkpoints=True, num_steps=30, resume=False, evaluate=None
):
    """The gradient of `kernel` is NaN on batches whose number is in `poisoned`."""

    def loss_fn(params, batch, *, key, model_state):
        spoil = jnp.where(batch["bad"].any(), jnp.nan, 1.0)
        error = (batch["x"] @ params["kernel"] * spoil) ** 2
        return LossOutput({"error": Mean.of(error)}, {}, None)

    optimizer = optax.adam(0.01)

    def make(number):
        return {"x": problem.make_batch(number)["x"], "bad": np.full(16, number in poisoned)}

    return fit(
        make_train_step(loss_fn, optimizer),
        problem.make_state(optimizer),
        problem.Stream(make),
        num_steps=num_steps,
        workdir=workdir,
        config=LoopConfig(
            log_every=2,
            checkpoint_every=checkpoint_every if checkpoints else None,
            max_consecutive_skips=3,
            in_flight=2,
            resume=resume,
            eval_every=5,
        ),
        evaluate=evaluate,
    )


def test_single_skips_are_counted_and_survived(tmp_path, problem):
    result = poisoned_fit(problem, tmp_path, {5, 9, 10})
    assert (result.skipped, result.step) == (3, 30)
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    assert rows[6]["skipped"] == 0.5
    assert np.isfinite(rows[6]["error"])


def test_rolls_back_once_and_goes_on_with_other_data(tmp_path, problem, caplog):
    """Batches 9..13 are bad: noticed at step 14 (two in flight), back to 8, data goes on at 14."""
    with caplog.at_level(logging.WARNING):
        result = poisoned_fit(problem, tmp_path, set(range(9, 14)))
    assert "params/kernel" in caplog.text
    assert "Rolling back to step 8" in caplog.text
    assert (result.step, result.skipped, result.stop_reason) == (30, 0, "finished")
    events = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "event"]
    assert [(e["step"], e["rolled_back_from"]) for e in events] == [(9, 14)]
    assert "params/kernel" in events[0]["nonfinite"]
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(2, 31, 2))
    again = poisoned_fit(problem, tmp_path, set(range(9, 14)), num_steps=34, resume=True)
    assert again.step == 34


def test_checkpoints_inside_a_bad_streak_are_not_rolled_back_to(tmp_path, problem, caplog):
    with caplog.at_level(logging.WARNING):
        poisoned_fit(problem, tmp_path, set(range(7, 13)), checkpoint_every=1)
    assert "Rolling back to step 7" in caplog.text


def test_later_checkpoints_are_gone_after_a_roll_back(tmp_path, problem):
    """The best model of step 10 is saved inside the bad streak; a resume after the roll back must not start there."""
    calls = []

    def evaluate(state):
        calls.append(int(state.step))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"loss": -len(calls)}

    with pytest.raises(KeyboardInterrupt):
        poisoned_fit(problem, tmp_path, set(range(9, 14)), evaluate=evaluate)
    assert calls == [5, 10, 10]  # the second 10 is after the return to 8
    assert Checkpointer(tmp_path / "checkpoints").latest() == 8


def test_stops_and_names_the_leaf_the_second_time(tmp_path, problem):
    with pytest.raises(NonFiniteError, match=r"params/kernel.*rolled back 1 time.*step 8"):
        poisoned_fit(problem, tmp_path, set(range(9, 1000)))


def test_stops_at_once_without_checkpoints(tmp_path, problem):
    with pytest.raises(NonFiniteError, match=r"params/kernel.*last good checkpoint is none"):
        poisoned_fit(problem, tmp_path, set(range(9, 1000)), checkpoints=False)


def test_data_that_ends_is_said(tmp_path, problem, caplog):
    with caplog.at_level(logging.WARNING):
        result = train(problem, tmp_path, 50, length=7)
    assert (result.step, result.stop_reason) == (7, "data exhausted")
    assert "ended after step 7 of 50" in caplog.text
    assert Checkpointer(tmp_path / "checkpoints").latest() == 7


def test_longer_data_continues_after_exhaustion(tmp_path, problem):
    train(problem, tmp_path, 50, length=7)
    assert train(problem, tmp_path, 9, resume=True).step == 9


def test_mistakes_are_named(tmp_path, problem):
    with pytest.raises(ValueError, match="log_every is 0"):
        LoopConfig(log_every=0)
    with pytest.raises(ValueError, match="mode"):
        LoopConfig(mode="least")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"monitor is 'accuracy'; the evaluation reports \['energy'"):
        train(problem, tmp_path, 10, monitor="accuracy")
    train(problem, tmp_path / "position", 5)
    with pytest.raises(ValueError, match="set_state"):
        fit(
            make_train_step(problem.noisy_loss_fn, make_optimizer(OPTIMIZER), ema_decay=0.9),
            problem.make_state(make_optimizer(OPTIMIZER), ema=True, model_state={"mean": jnp.zeros(3)}),
            iter([]),
            num_steps=9,
            workdir=tmp_path / "position",
            config=LoopConfig(resume=True),
        )


def test_throughput_and_progress(tmp_path, problem, capsys):
    result = train(problem, tmp_path, 12, progress=True)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train"]
    assert rows[-1]["time/steps_per_second"] > 0
    assert rows[-1]["time/flops_per_second"] > 0
    assert "time/peak_share" not in rows[-1]  # a CPU's peak is unknown
    err = capsys.readouterr().err
    assert "12/12" in err
    assert "loss=" in err
    assert result.train["loss"] > 0
