"""What the training loop itself, beside the train state, carries from step to step and into checkpoints."""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from equivariant_jax.training.metrics import Mean, Metric, RootMean

__all__ = ["Carried"]


@dataclasses.dataclass
class Carried:
    """Sums, counters and values between two steps.

    Attributes:
      sums: metrics of the current logging interval, name -> `Mean` or `RootMean` with leaves `[]`; None at its start.
      pending: flags of the last steps (1 where skipped) that nobody has looked at yet, oldest first.
      consecutive: skipped updates in a row, up to the newest flag looked at.
      rollbacks: returns to an earlier checkpoint so far.
      best_step: step of the best evaluation.
      best_value: its monitored metric.
      stale: evaluations since then.
      evaluation: metrics of the last evaluation.
    """

    sums: dict[str, Metric] | None = None
    pending: deque = dataclasses.field(default_factory=deque)
    consecutive: int = 0
    rollbacks: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)

    def note(self, metrics: dict[str, Metric], add: Callable[..., dict[str, Metric]], in_flight: int) -> None:
        """Adds a step's metrics (leaves `[]`), and looks at the flag of the step `in_flight` before it."""
        self.sums = metrics if self.sums is None else add(self.sums, metrics)
        skipped = metrics["skipped"].total
        skipped.copy_to_host_async()
        self.pending.append(skipped)
        if len(self.pending) > in_flight:
            self.consecutive = self.consecutive + 1 if float(self.pending.popleft()) else 0

    def to_json(self) -> dict[str, Any]:
        """Fetches the sums; a float32 that goes through a JSON number comes back with the same bits."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        sums = None if self.sums is None else jax.device_get(self.sums)
        if sums is not None:
            sums = {k: [type(m).__name__, str(m.total.dtype), float(m.total), float(m.weight)] for k, m in sums.items()}
        return {**fields, "sums": sums, "pending": [float(x) for x in jax.device_get(list(self.pending))]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Carried":
        """Rebuilds what `to_json` returned."""
        kinds = {"Mean": Mean, "RootMean": RootMean}
        sums = stored["sums"]
        if sums is not None:
            sums = {k: kinds[kind](np.asarray(t, d), np.asarray(w, d)) for k, (kind, d, t, w) in sums.items()}
        return cls(**{**stored, "sums": sums, "pending": deque(stored["pending"])})
