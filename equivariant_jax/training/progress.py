"""What a person watching a run sees, and how fast it goes."""

import sys
import time
from collections.abc import Mapping

import jax

__all__ = ["Progress", "Throughput"]


class Progress:
    """A progress bar with rate and time left on the standard error of process 0.

    Args:
      total: last step of the run.
      start: step that it begins at.
      enabled: None shows the bar on a terminal only.

    Example:
      >>> with Progress(total=10, enabled=False) as progress:
      ...     progress.advance_to(5)
    """

    def __init__(self, total: int, start: int = 0, enabled: bool | None = None):
        enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bar = None
        if enabled and jax.process_index() == 0:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance_to(self, step: int) -> None:
        """Moves the bar to a step (back as well)."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def show(self, values: Mapping[str, float]) -> None:
        """Shows scalars beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Throughput:
    """Steps per second and share of the devices' peak between two readings.

    Args:
      flops_per_step: floating-point operations of one step on one device, or None.
      peak: peak FLOP/s of one device, or None; without it no share is given.

    Example:
      >>> sorted(Throughput(1e6, 1e12).read(0)), sorted(Throughput(None, None).read(10))
      ([], ['time/steps_per_second'])
    """

    def __init__(self, flops_per_step: float | None, peak: float | None):
        self._flops = flops_per_step
        self._peak = peak
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts a new interval at a step, leaving out what came before (compilation, an evaluation)."""
        self._step, self._time = step, time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        """Reads the interval that ends now; empty if it holds no step.

        Returns:
          `time/steps_per_second`; `time/flops_per_second` (one device) and `time/peak_share` where known.
        """
        seconds, steps = time.perf_counter() - self._time, step - self._step
        if steps <= 0 or seconds <= 0:
            return {}
        rate = steps / seconds
        values = {"time/steps_per_second": rate}
        if self._flops is not None:
            values["time/flops_per_second"] = rate * self._flops
            if self._peak is not None:
                values["time/peak_share"] = rate * self._flops / self._peak
        return values
