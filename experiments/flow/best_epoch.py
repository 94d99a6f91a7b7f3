"""Keeps the state of the best validation, which is the one that is tested."""

from collections.abc import Mapping
from pathlib import Path

import jax

from equivariant_jax import training

__all__ = ["BestEpoch"]


class BestEpoch:
    """Remembers the best state on the host; pass the object to `training.fit` as `on_evaluation`.

    Args:
      metric: name of the validation's metric.
      higher_is_better: its direction.
    """

    def __init__(self, metric: str, *, higher_is_better: bool = False):
        self._metric, self._sign = metric, -1.0 if higher_is_better else 1.0
        self._value, self._kept = float("inf"), None

    def __call__(self, state: training.TrainState, values: Mapping[str, float]) -> training.TrainState:
        """Keeps parameters and model state if they are better than any before; gives the state back as it is."""
        value = self._sign * values[self._metric]
        if value < self._value:
            self._value, self._kept = value, jax.device_get((state.params, state.model_state))
        return state

    def of(self, result: training.FitResult, workdir: Path, *, checkpoints: bool) -> training.TrainState:
        """Gives the best state of a run.

        Args:
          result: of the run.
          workdir: of the run.
          checkpoints: whether it saved checkpoints; the best one is then read, which a resumed run has not seen itself.

        Returns:
          The last state, with the best parameters and model state.
        """
        if checkpoints and result.best_step is not None:
            return training.Checkpointer(workdir / "checkpoints").restore(result.state, step=result.best_step).state
        if self._kept is None:
            return result.state
        return result.state.replace(params=self._kept[0], model_state=self._kept[1])
