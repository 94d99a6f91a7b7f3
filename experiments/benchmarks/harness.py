"""Times compiled functions side by side: interleaved rounds, medians, ratios, compile time, traces, roofline.

Absolute times depend on what else the machine does, so the figure to quote is the ratio: in every round each contender
runs in turn, the ratio to ours is taken within the round, and the median over rounds is reported. The roofline fraction
compares with rates measured on large arrays; small problems that live in a cache may exceed one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Case", "device_peaks", "measure", "run_cases"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: sizes and mode, such as "L=4, batch 1024, forward".
      contenders: name -> function of `arguments`; the first is ours.
      arguments: arrays for all contenders, or name -> arrays where layouts differ.
      reference: name of a contender whose output the others must equal, or None where outputs are not comparable.
      tolerance: largest relative error against the reference.
    """

    name: str
    contenders: Mapping[str, Callable[..., Any]]
    arguments: tuple | Mapping[str, tuple]
    reference: str | None = None
    tolerance: float = 1e-4


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
        "gflop": float(cost.get("flops", 0.0)) / 1e9,
        "mbyte": float(cost.get("bytes accessed", 0.0)) / 1e6,
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
