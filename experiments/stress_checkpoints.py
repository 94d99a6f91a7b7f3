"""Kills a training run with SIGKILL at random moments and compares every resume with one uninterrupted reference.

Claim under test: `kill -9` at any moment leaves a usable checkpoint, and the resumed run repeats the uninterrupted one
bit for bit. A small run (noise from the state's key, running statistics, Adam, moving average, two microbatches, a
checkpoint every three steps) writes the SHA-256 of its whole state before every step. Each resume is compared with the
uninterrupted reference at the step that it restored and at every step that it then takes, until it is killed in turn.

    python -m experiments.stress_checkpoints [--resumes 100] [--seed 0] [--output
    experiments/results/stress_checkpoints.json]

About five minutes on two cores, most of it compilation: children are forked from a process that has imported everything
but started no device.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1  # noqa: F401 - imported before forking, or every child would

from equivariant_jax.training import (
    LoopConfig,
    LossOutput,
    Mean,
    RootMean,
    TrainState,
    evaluator,
    fit,
    make_eval_step,
    make_train_step,
    read_rows,
)
from experiments.results import environment

__all__ = ["main", "stress"]

DEFAULT_OUTPUT = "experiments/results/stress_checkpoints.json"
_LOG = "states.log"


class Stream:
    """An endless, seeded stream of batches whose position is one integer."""

    def __init__(self):
        self._position = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([7, self._position])
        self._position += 1
        return {"x": rng.normal(size=(8, 16)).astype(np.float32), "mask": rng.random(8) < 0.7}

    def get_state(self) -> dict[str, int]:
        """Position, as JSON."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self._position = state["position"]


def loss_fn(params: Any, batch: Any, *, key: Any, model_state: Any) -> LossOutput:
    """An autoencoder with input noise and running statistics."""
    x = batch["x"]
    if key is not None:
        x = x + 0.1 * jax.random.normal(key, x.shape)
    hidden = jnp.tanh(x @ params["encoder"]) - model_state["mean"][None]
    error = (hidden @ params["decoder"] - batch["x"]) ** 2
    mean = 0.9 * model_state["mean"] + 0.1 * jax.lax.stop_gradient(hidden.mean(0))
    return LossOutput(
        {"error": Mean.of(error, batch["mask"])}, {"rmse": RootMean.of(error, batch["mask"])}, {"mean": mean}
    )


def _digest(state: TrainState) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class _Recording:
    """A step that first writes down the state it is given."""

    def __init__(self, step: Any, log: Path):
        self._step = step
        self._log = log.open("a")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, state: TrainState, batch: Any) -> Any:
        self._log.write(f"{int(state.step)} {_digest(state)}\n")
        self._log.flush()
        return self._step(state, batch)


def _train(workdir: Path, log: Path, num_steps: int) -> None:
    """Runs, or resumes, in this process."""
    optimizer = optax.adam(optax.exponential_decay(1e-2, 50, 0.7))
    params = {"encoder": jnp.full((16, 32), 0.02), "decoder": jnp.full((32, 16), -0.01)}
    model_state = {"mean": jnp.zeros(32)}
    state = TrainState.create(params, optimizer, key=jax.random.key(3), model_state=model_state, ema=True)
    step = make_train_step(loss_fn, optimizer, accumulate=2, ema_decay=0.9)
    fit(
        _Recording(step, log),  # pyright: ignore[reportArgumentType]
        state,
        Stream(),
        num_steps=num_steps,
        workdir=workdir,
        config=LoopConfig(log_every=4, eval_every=10, checkpoint_every=3, resume=True, progress=False),
        evaluate=evaluator(make_eval_step(loss_fn), lambda: [next(Stream())]),
    )


def _fork(workdir: Path, log: Path, num_steps: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _train(workdir, log, num_steps)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _states(log: Path) -> list[tuple[int, str]]:
    """Whole lines of a log: (step, digest)."""
    if not log.exists():
        return []
    lines = log.read_text().split("\n")[:-1]
    return [(int(step), digest) for step, digest in (line.split() for line in lines)]


def _rows(workdir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(workdir / "metrics.jsonl")]


def stress(resumes: int, seed: int, num_steps: int, most_steps: int) -> dict[str, Any]:
    """Kills and resumes until `resumes` resumed runs have been compared with the reference.

    Args:
      resumes: number of resumed runs to compare.
      seed: of the moments.
      num_steps: length of the run; when it is through, it starts again from nothing.
      most_steps: a run is killed up to 0.15 s after it has taken 2 to `most_steps` steps; one in ten is killed up to 3
        s after it was forked instead, hence possibly while it starts or restores.

    Returns:
      Counts: kills, resumes, bit-exact resumes, states compared, kills that left a half-written checkpoint, finished
      runs, finished runs with the reference's metric rows.

    Raises:
      RuntimeError: if the reference run, or a run that was not killed, fails.
    """
    rng = random.Random(seed)
    counts: dict[str, Any] = dict.fromkeys(
        ("kills", "resumes", "bit_exact", "states", "half_written", "finished_runs", "finished_runs_with_equal_rows"), 0
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if os.waitpid(_fork(root / "reference", root / _LOG, num_steps), 0)[1] != 0:
            raise RuntimeError("The reference run failed; see its messages above.")
        reference, rows = dict(_states(root / _LOG)), _rows(root / "reference")
        workdir, child, killed_before = root / "run", 0, False
        while counts["resumes"] < resumes:
            child += 1
            log = root / f"{child}.log"
            pid = _fork(workdir, log, num_steps)
            # Progress, not time, says when most children die, so that a slow machine has as much to compare.
            wait_for = 0 if rng.random() < 0.1 else rng.randint(2, most_steps)
            status = None
            while status is None and len(_states(log)) < wait_for:
                time.sleep(0.001)
                status = _ended(pid)
            deadline = time.monotonic() + rng.uniform(0, 0.15 if wait_for else 3.0)
            while status is None and time.monotonic() < deadline:
                time.sleep(0.0005)
                status = _ended(pid)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif status != 0:
                raise RuntimeError(f"A resumed run ended with status {status} by itself; see its messages above.")
            states = _states(log)
            counts["states"] += len(states)
            if killed_before and states:
                counts["resumes"] += 1
                counts["bit_exact"] += all(reference.get(step) == digest for step, digest in states)
                print(f"resume {counts['resumes']}: {len(states)} states compared", flush=True)
            killed_before = status is None
            if killed_before:
                counts["kills"] += 1
                saved = (workdir / "checkpoints").glob("step_*")
                counts["half_written"] += any(not (path / "manifest.json").exists() for path in saved)
            else:
                counts["finished_runs"] += 1
                counts["finished_runs_with_equal_rows"] += _rows(workdir) == rows
                shutil.rmtree(workdir)
    return counts


def _ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main(argv: list[str] | None = None) -> int:
    """Runs the stress test and writes its result; the exit status says whether the claim holds."""
    parser = argparse.ArgumentParser(description="Kill a training run at random moments and compare every resume.")
    parser.add_argument("--resumes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-steps", type=int, default=150)
    parser.add_argument("--most-steps", type=int, default=30)
    parser.add_argument("--output", default=DEFAULT_OUTPUT)
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    counts = stress(options.resumes, options.seed, options.num_steps, options.most_steps)
    holds = (
        counts["bit_exact"] == counts["resumes"] == options.resumes
        and counts["finished_runs"] == counts["finished_runs_with_equal_rows"]
    )
    result = {
        "config": {k: v for k, v in vars(options).items() if k != "output"},
        "metrics": counts,
        "seconds": round(time.perf_counter() - start, 1),
        "claims": [
            {
                "card": "foundation",
                "point": "kill -9 at any moment leaves a usable checkpoint",
                "statement": "a training run killed with SIGKILL at random moments resumes bit for bit",
                "bar": f"{options.resumes} of {options.resumes} resumes bit-exact",
                "value": f"{counts['bit_exact']} of {counts['resumes']} ({counts['kills']} kills, {counts['states']} "
                f"states compared, {counts['half_written']} of them left a half-written checkpoint)",
                "holds": holds,
            }
        ],
        **environment(),
        "command": shlex.join(["python", "-m", "experiments.stress_checkpoints", *arguments]),
    }
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['claims'][0]['value']} in {result['seconds']} s; written to {options.output}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
