"""Run by tests in a process of its own: trains in WORKDIR to NUM_STEPS, resuming what is there."""

import sys

import jax.numpy as jnp
import optax

from equivariant_jax.training import LoopConfig, fit, make_train_step
from tests.training import problem


def train(workdir, num_steps):
    optimizer = optax.adam(0.05)
    return fit(
        make_train_step(problem.noisy_loss_fn, optimizer, ema_decay=0.9),
        problem.make_state(optimizer, ema=True, model_state={"mean": jnp.zeros(3)}),
        problem.Stream(problem.make_batch),
        num_steps=num_steps,
        workdir=workdir,
        config=LoopConfig(log_every=3, checkpoint_every=1000, resume=True, progress=False),
    )


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
