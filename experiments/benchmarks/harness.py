"""Times compiled functions side by side: interleaved rounds, medians, ratios, compile time, traces, roofline.

Absolute times depend on what else the machine does, so the figure to quote is the ratio: in every round each contender
runs in turn, the ratio to ours is taken within the round, and the median over rounds is reported. The roofline fraction
is the least time that the operations as written, or reading the inputs and writing the outputs once, would take at the
rates measured on large arrays; small problems that live in a cache may exceed one.
"""

import dataclasses
import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Case", "count_flops", "device_peaks", "find_torch", "measure", "run_cases"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: sizes and mode, such as "L=4, batch 1024, forward".
      contenders: name -> function of `arguments`; the first is ours.
      arguments: arrays for all contenders, or name -> arrays where layouts differ.
      reference: name of a contender whose output the others must equal, or None where outputs are not comparable.
      tolerance: largest relative error against the reference.
      different: names of contenders whose output is something else (more paths), which are not compared.
    """

    name: str
    contenders: Mapping[str, Callable[..., Any]]
    arguments: tuple | Mapping[str, tuple]
    reference: str | None = None
    tolerance: float = 1e-4
    different: tuple[str, ...] = ()


def find_torch(missing: str) -> bool:
    """Says whether PyTorch is installed, and has it use one thread; else prints that `missing` is not measured."""
    there = importlib.util.find_spec("torch") is not None
    if there:
        importlib.import_module("torch").set_num_threads(1)
    else:
        print(f"torch is not installed: {missing} is not measured")
    return there


def _arguments(case: Case, name: str) -> tuple:
    return case.arguments[name] if isinstance(case.arguments, Mapping) else case.arguments


def _seconds(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        out = run()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def device_peaks() -> dict[str, float]:
    """Rates that this device reaches now: float32 matrix product (FLOP/s) and streaming (bytes/s), measured."""
    n = 1024
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    x = jnp.ones((64 * 1024 * 1024 // 4,), jnp.float32)
    stream = jax.jit(lambda x: x + 1.0)
    for warm in (product, stream):
        jax.block_until_ready(warm(a if warm is product else x))
    flops = 2 * n**3 / min(_seconds(lambda: product(a), 5) for _ in range(5))
    rate = 2 * x.nbytes / min(_seconds(lambda: stream(x), 5) for _ in range(5))
    return {"flops_per_s": flops, "bytes_per_s": rate}


def _jaxpr_flops(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, [math.prod(v.aval.shape) for v in equation.outvars]
        inner = [getattr(v, "jaxpr", v) for value in equation.params.values() for v in _listed(value)]
        inner = [v for v in inner if hasattr(v, "eqns")]
        if inner:
            calls = equation.params.get("length", 1) if name == "scan" else 1
            # A conditional runs one branch, everything else all that it holds.
            counts = [_jaxpr_flops(v) for v in inner]
            total += calls * (max(counts) if name == "cond" else sum(counts))
        elif name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out[0] * math.prod(shape[i] for i in left)
        elif name in ("conv_general_dilated", "image_convolution"):
            kernel = equation.invars[1].aval.shape
            # Each output number sums over the kernel's window and input channels.
            dimensions = equation.params.get("dimension_numbers")
            outputs = kernel[-1] if dimensions is None else kernel[dimensions.rhs_spec[0]]
            total += 2 * out[0] * math.prod(kernel) // outputs
        elif name == "image_convolution_by_kernel":
            total += 2 * out[0] * math.prod(equation.invars[0].aval.shape[:-1])
        elif name == "fft":
            length = math.prod(equation.params["fft_lengths"])
            total += 5 * max(out[0], math.prod(equation.invars[0].aval.shape)) * math.log2(max(length, 2))
        elif name in _ARITHMETIC:
            total += out[0]
        elif name in ("reduce_sum", "scatter-add", "scatter_add"):
            total += math.prod(equation.invars[-1 if "scatter" in name else 0].aval.shape)
    return total


_ARITHMETIC = {"add", "sub", "mul", "div", "neg", "add_any", "max", "min", "sqrt", "rsqrt", "exp", "log", "sin", "cos",
               "tanh", "logistic", "integer_pow", "pow"}  # fmt: skip


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def count_flops(function: Callable, *arguments: Any) -> float:
    """Counts the floating-point operations of a function as it is written, before any compiler.

    Loops count as often as they run, which a compiler's own cost analysis does not do.

    Args:
      function: a traceable function.
      *arguments: its arguments, or their shapes and dtypes.

    Returns:
      Operations: two for each multiply-add of a matrix product, one for other arithmetic, `5 n log2 n` for a Fourier
      transform.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _floor_bytes(function: Callable, arguments: tuple) -> float:
    # What must move at least: every input read and every output written once.
    outputs = jax.eval_shape(function, *arguments)
    return sum(v.size * v.dtype.itemsize for v in (*jax.tree.leaves(arguments), *jax.tree.leaves(outputs)))


def _compile(function: Callable, arguments: tuple) -> tuple[Callable, dict[str, Any]]:
    traces = 0

    def counted(*args):
        nonlocal traces
        traces += 1
        return function(*args)

    start = time.perf_counter()
    compiled = jax.jit(counted).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    memory = compiled.memory_analysis()
    facts = {
        "compile_s": seconds,
        "traces": traces,
        "gflop": count_flops(function, *arguments) / 1e9,
        "mbyte": _floor_bytes(function, arguments) / 1e6,
        "xla_mbyte": float(cost.get("bytes accessed", 0.0)) / 1e6,
        "temporary_mbyte": getattr(memory, "temp_size_in_bytes", 0) / 1e6,
    }
    return compiled, facts


def _error(got: Any, want: Any) -> float:
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        worst = max(worst, float(np.abs(a - b).max(initial=0.0) / max(np.abs(b).max(initial=0.0), 1e-30)))
    return worst


def measure(case: Case, peaks: Mapping[str, float], *, rounds: int = 9, round_seconds: float = 0.05) -> dict[str, Any]:
    """Compiles and times one case.

    Args:
      case: what to compare.
      peaks: from `device_peaks`.
      rounds: interleaved rounds.
      round_seconds: time each contender gets in a round.

    Returns:
      A row: `case`, `ours`, `ours_ms`, `ratios` (peer time over ours: above one means that ours is faster),
      `compile_s`, and `contenders` with every figure of each.

    Raises:
      ValueError: if a contender's output differs from the reference by more than the tolerance.
    """
    compiled, facts = {}, {}
    for name, function in case.contenders.items():
        program, facts[name] = _compile(function, _arguments(case, name))
        compiled[name] = lambda program=program, name=name: program(*_arguments(case, name))
    if case.reference is not None:
        want = compiled[case.reference]()
        for name, run in compiled.items():
            if name in case.different:
                continue
            error = _error(run(), want)
            facts[name]["error"] = error
            if not error <= case.tolerance:
                raise ValueError(
                    f"{case.name}: {name} differs from {case.reference} by {error:.1e} > {case.tolerance:.1e}"
                )
    calls = {
        n: max(1, round(round_seconds / max(min(_seconds(r, 1) for _ in range(3)), 1e-7))) for n, r in compiled.items()
    }
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, run in compiled.items():
            times[name].append(_seconds(run, calls[name]))
    ours = next(iter(compiled))
    for name, values in times.items():
        median = statistics.median(values)
        bound = max(
            facts[name]["gflop"] * 1e9 / peaks["flops_per_s"], facts[name]["mbyte"] * 1e6 / peaks["bytes_per_s"]
        )
        facts[name] |= {"ms": 1e3 * median, "spread": max(values) / min(values), "roofline_fraction": bound / median}
    ratios = {
        name: statistics.median(t / o for t, o in zip(times[name], times[ours], strict=True))
        for name in compiled
        if name != ours
    }
    return {
        "case": case.name,
        "ours": ours,
        "ours_ms": facts[ours]["ms"],
        "ratios": ratios,
        "compile_s": facts[ours]["compile_s"],
        "contenders": facts,
    }


def run_cases(cases: Iterable[Case], *, rounds: int = 9) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures all cases and prints a line for each; returns the rows and the device's peaks."""
    peaks = device_peaks()
    rows = []
    for case in cases:
        row = measure(case, peaks, rounds=rounds)
        peers = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
        roofline = row["contenders"][row["ours"]]["roofline_fraction"]
        print(
            f"{row['case']:<44s} {row['ours_ms']:9.3f} ms  {peers}  compile {row['compile_s']:.2f} s  "
            f"roofline {roofline:.0%}",
            flush=True,
        )
        rows.append(row)
    return rows, peaks
