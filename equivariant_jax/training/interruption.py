"""SIGTERM as a request to save and stop, agreed on by all processes."""

import signal
import threading
from types import FrameType, TracebackType

import jax

__all__ = ["Interruption"]


class Interruption:
    """While active, a SIGTERM sets a flag instead of ending the process.

    With several processes the signal reaches them at different steps; `requested` then asks the coordination service of
    `jax.distributed`, which listens to the signal itself and names one step for all.

    Args:
      enabled: False leaves the signal alone.

    Example:
      >>> import os
      >>> with Interruption() as interruption:
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     interruption.requested(step=7)
      True
    """

    def __init__(self, enabled: bool = True):
        # Python delivers signals to the main thread alone, and only there lets a handler be set.
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._flag = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._flag = True

    def __enter__(self) -> "Interruption":
        if self._enabled and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._enabled and jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self, step: int) -> bool:
        """True if the run shall save and stop after this step; every process calls it at every step."""
        if not self._enabled:
            return False
        if jax.process_count() == 1:
            return self._flag
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
