"""What a compiled function costs: FLOPs, bytes, memory, compile time, and how far from the device's peak it runs."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

__all__ = ["Cost", "DevicePeak", "analyse", "cost_of", "count_traces", "device_peak", "trace"]


class DevicePeak(NamedTuple):
    """Data-sheet numbers of one device.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      bandwidth: bytes/s of device memory.
    """

    flops: float
    bandwidth: float


# From the vendors' data sheets, dense (not sparse) bfloat16; a TPU "device" of jax is a chip from v4 on.
_PEAKS = {
    "TPU v4": DevicePeak(275e12, 1.20e12),
    "TPU v5 lite": DevicePeak(197e12, 0.82e12),
    "TPU v5e": DevicePeak(197e12, 0.82e12),
    "TPU v5p": DevicePeak(459e12, 2.77e12),
    "TPU v5": DevicePeak(459e12, 2.77e12),
    "TPU v6 lite": DevicePeak(918e12, 1.64e12),
    "TPU v6e": DevicePeak(918e12, 1.64e12),
    "A100": DevicePeak(312e12, 1.56e12),
    "H100": DevicePeak(989e12, 3.35e12),
    "H200": DevicePeak(989e12, 4.80e12),
}


def device_peak(device: Any | None = None) -> DevicePeak | None:
    """Looks up the peak of a device by its kind; None if unknown (a CPU's depends on clock, cores and instructions).

    Args:
      device: a `jax.Device`, default the first local one.

    Returns:
      A `DevicePeak`, or None.

    Example:
      >>> device_peak(jax.devices("cpu")[0]) is None
      True
    """
    kind = (jax.local_devices()[0] if device is None else device).device_kind
    for name in sorted(_PEAKS, key=len, reverse=True):
        if name.lower() in kind.lower():
            return _PEAKS[name]
    return None


class Cost(NamedTuple):
    """Cost of one call of a compiled function, per device; None where the backend does not say.

    Attributes:
      flops: floating-point operations, as XLA counts them.
      bytes_accessed: bytes read and written by all operations (an upper bound of memory traffic).
      peak_memory: bytes of arguments, results and temporaries together.
      compile_seconds: time to lower and compile, None when not measured.
      intensity: `flops / bytes_accessed`.
      roofline_seconds: the least time the device's peak allows, None when the peak is unknown.
    """

    flops: float | None
    bytes_accessed: float | None
    peak_memory: int | None
    compile_seconds: float | None
    intensity: float | None
    roofline_seconds: float | None


def cost_of(compiled: Any, *, compile_seconds: float | None = None, peak: DevicePeak | None = None) -> Cost:
    """Reads the cost of a `jax.stages.Compiled`.

    Args:
      compiled: result of `jax.jit(f).lower(...).compile()`.
      compile_seconds: handed on.
      peak: peak of the device for the roofline, default `device_peak()`.

    Returns:
      A `Cost`.
    """
    peak = device_peak() if peak is None else peak
    analysis = compiled.cost_analysis() or {}
    flops, moved = analysis.get("flops"), analysis.get("bytes accessed")
    memory = compiled.memory_analysis()
    total = None
    if memory is not None:
        total = getattr(memory, "peak_memory_in_bytes", 0) or (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    bound = None
    if peak is not None and flops is not None and moved is not None:
        bound = max(flops / peak.flops, moved / peak.bandwidth)
    intensity = flops / moved if flops is not None and moved else None
    return Cost(flops, moved, total, compile_seconds, intensity, bound)


def analyse(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Cost:
    """Compiles a function for the given arguments (arrays or `ShapeDtypeStruct`s of any shape) and reads its cost.

    Args:
      function: pure function, or one that is jitted already.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      A `Cost` with `compile_seconds` measured (the persistent compilation cache, if set, makes it small).

    Example:
      >>> import jax.numpy as jnp
      >>> analyse(lambda x: x @ x, jnp.ones((8, 8))).flops
      1024.0
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    compiled = jitted.lower(*args, **kwargs).compile()
    return cost_of(compiled, compile_seconds=time.perf_counter() - start)


class count_traces:
    """Wraps a function and counts how often it is traced or called; jit the wrapper.

    Example:
      >>> import jax.numpy as jnp
      >>> counted = count_traces(lambda x: x + 1)
      >>> f = jax.jit(counted)
      >>> _ = f(jnp.ones(2)), f(jnp.zeros(2)), f(jnp.ones(3))
      >>> counted.traces
      2
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.traces = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Counts, then calls the function with the same arguments (any shapes)."""
        self.traces += 1
        return self._function(*args, **kwargs)


@contextlib.contextmanager
def trace(directory: str | os.PathLike | None) -> Iterator[None]:
    """Records a profile of the block for TensorBoard or Perfetto; does nothing if `directory` is None.

    Block on the results inside the block, or the device's part may be missing.
    """
    if directory is None:
        yield
        return
    with jax.profiler.trace(os.fspath(directory)):
        yield
