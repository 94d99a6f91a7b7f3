"""The task of both n-body experiments: charged particles 1000 steps ahead, and what a straight line reaches on it."""

import functools

import numpy as np

from equivariant_jax.data import ArraySource
from equivariant_jax.data.simulators import ChargedTask, charged_particles_splits

__all__ = ["linear_mse", "source", "splits"]


@functools.cache
def splits(train: int, validation: int, test: int, seed: int) -> dict[str, ChargedTask]:
    """Simulates the parts `train`, `validation` and `test` of so many systems each, once for all runs of a process."""
    return charged_particles_splits(train, validation, test, seed=seed)


def source(task: ChargedTask) -> ArraySource:
    """Makes the source of a part: its arrays by name, float32."""
    return ArraySource({name: np.asarray(value, np.float32) for name, value in task._asdict().items()})


def linear_mse(train: ChargedTask, test: ChargedTask) -> float:
    """Fits the one time t of `x + t v` on a part, and gives the mean squared error of these positions on another."""
    moved = train.targets - train.positions
    time = np.sum(moved * train.velocities) / np.sum(train.velocities**2)
    return float(np.mean((test.positions + time * test.velocities - test.targets) ** 2))
