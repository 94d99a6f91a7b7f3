"""Run by tests as one of several processes: steps, a fit with checkpoints, and what each process saw, into WORKDIR."""

import json
import os
import signal
import sys
from pathlib import Path

from equivariant_jax.training.distributed import initialize

INFO = initialize()  # before anything else of jax

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from equivariant_jax.training import LoopConfig, fit, init_sharded, make_mesh, make_train_step  # noqa: E402
from tests.training import problem  # noqa: E402

RULES = [("kernel", "fsdp")]


def my_part(batch):
    return jax.tree.map(lambda x: np.split(x, INFO.count)[INFO.index], batch)


def one_step(mesh, *, accumulate, per_device):
    step = make_train_step(
        problem.loss_fn,
        optax.sgd(1.0),
        coefficients={"forces": 10.0},
        mesh=mesh,
        accumulate=accumulate,
        per_device=per_device,
    )
    batch = problem.make_batch(0)
    if per_device:
        batch = jax.tree.map(lambda x: x.reshape(4 * accumulate, -1, *x.shape[1:]), batch)
    state, metrics = step(init_sharded(problem.make_state, mesh, ()), my_part(batch))
    return {"kernel": np.asarray(state.params["kernel"]).tolist(), "loss": float(metrics["loss"].compute())}


def make_state():
    return problem.make_state(optax.adam(0.05), ema=True, model_state={"mean": jnp.zeros(3)})


def train(mesh, workdir, num_steps, part=my_part, **options):
    return fit(
        make_train_step(problem.loss_fn, optax.adam(0.05), mesh=mesh, rules=RULES, ema_decay=0.9),
        init_sharded(make_state, mesh, RULES),
        problem.Stream(lambda number: part(problem.make_batch(number))),
        num_steps=num_steps,
        workdir=workdir,
        config=LoopConfig(log_every=2, checkpoint_every=2, progress=False, **options),
    )


def train_until_sigterm(workdir):
    """Each process is signalled, at a step of its own."""

    def part(batch):
        if part.calls == 5 + 3 * INFO.index:
            os.kill(os.getpid(), signal.SIGTERM)
        part.calls += 1
        return my_part(batch)

    part.calls = 0
    train(make_mesh(data=2, fsdp=2), workdir / "sigterm", 100000, part)


def main(workdir):
    mesh = make_mesh()
    results = {
        f"{accumulate}-{per_device}": one_step(mesh, accumulate=accumulate, per_device=per_device)
        for accumulate in (1, 2)
        for per_device in (False, True)
    }
    fsdp = make_mesh(data=2, fsdp=2)
    train(fsdp, workdir / "fit", 3)
    last = train(fsdp, workdir / "fit", 5, resume=True)
    kernel = multihost_utils.process_allgather(last.state.params["kernel"], tiled=True)
    results["fit"] = {"kernel": np.asarray(kernel).tolist(), "step": last.step, "train": last.train}
    (workdir / f"process_{INFO.index}.json").write_text(json.dumps({"info": INFO, **results}))
    train_until_sigterm(workdir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
