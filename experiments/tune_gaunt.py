"""Measures every route of the Gaunt product and the Poisson bracket on this backend, and writes the table of "auto".

    python -m experiments.tune_gaunt                  # prints the table
    python -m experiments.tune_gaunt --write          # and stores it in equivariant_jax/euclidean/gaunt_methods.json

Each entry is the geometric mean of the forward time and of the time of forward and backward together, relative to the
fastest route; rounds are interleaved and medians taken. Entries of other backends in the file are kept. Run it on an
idle machine.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import equivariant_jax.euclidean
from equivariant_jax.core import backend
from equivariant_jax.euclidean import gaunt_tensor_product, spherical_poisson_bracket
from experiments import results

DEGREES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
ROWS = (32, 2048)
TABLE = Path(next(iter(equivariant_jax.euclidean.__path__))) / "gaunt_methods.json"


def _methods(kind: str, lmax: int) -> list[str]:
    methods = ["grid", "quadrant", "octant", "separable"]
    if lmax <= 2 and kind == "product":
        methods.append("sparse")  # its compile time grows like lmax^5
    if lmax <= 4 and kind == "product":
        methods.append("fourier")
    if lmax > 12:
        methods.remove("grid")
    if jax.default_backend() in ("gpu", "tpu") and kind == "product":
        methods.append("fused")
    return methods


def _seconds(run: Any, least: float) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        jax.block_until_ready(run())
        calls += 1
        if time.perf_counter() - start > least:
            return (time.perf_counter() - start) / calls


def measure(kind: str, lmax: int, rows: int, *, rounds: int = 5, least: float = 0.01) -> dict[str, Any]:
    """Times all routes at one size, results of full degree.

    Args:
      kind: "product" or "bracket".
      lmax: degree of both operands.
      rows: products.
      rounds: interleaved rounds.
      least: seconds for each route and round.

    Returns:
      An entry of the table.
    """
    function: Any = gaunt_tensor_product if kind == "product" else spherical_poisson_bracket
    rng = np.random.default_rng(0)
    top = 2 * lmax if kind == "product" else 2 * lmax - 1
    x, y = (jnp.asarray(rng.normal(size=(rows, (lmax + 1) ** 2)), jnp.float32) for _ in range(2))
    ct = jnp.asarray(rng.normal(size=(rows, (top + 1) ** 2)), jnp.float32)
    runs: dict[str, list[Any]] = {}
    for method in _methods(kind, lmax):

        def forward(x, y, method=method):
            return function(x, y, method=method)

        def both(x, y, ct, forward=forward):
            value, pull = jax.vjp(forward, x, y)
            return value, pull(ct)

        one, two = jax.jit(forward).lower(x, y).compile(), jax.jit(both).lower(x, y, ct).compile()
        runs[method] = [lambda one=one: one(x, y), lambda two=two: two(x, y, ct)]
    times: dict[str, list[list[float]]] = {method: [[], []] for method in runs}
    for round_index in range(rounds + 1):
        for method, pair in runs.items():
            for k, run in enumerate(pair):
                seconds = _seconds(run, least)
                if round_index:
                    times[method][k].append(seconds)
    means = {m: math.sqrt(math.prod(statistics.median(t) for t in pair)) for m, pair in times.items()}
    best = min(means.values())
    return {
        "degree": 2 * lmax + top,
        "rows": rows,
        "relative": {m: round(v / best, 3) for m, v in sorted(means.items(), key=lambda item: item[1])},
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the table")
    parser.add_argument("--largest", type=int, default=max(DEGREES), help="largest degree to measure")
    options = parser.parse_args()
    backend.apply_workarounds()
    measured: dict[str, Any] = {"device": results.environment()["device"], "jax": jax.__version__}
    for kind in ("product", "bracket"):
        measured[kind] = []
        for lmax in DEGREES:
            if lmax > options.largest:
                continue
            for rows in ROWS:
                if rows * lmax**2 > 2048 * 16**2:
                    continue
                entry = measure(kind, lmax, rows)
                print(kind, f"L={lmax}", entry, flush=True)
                measured[kind].append(entry)
    if options.write:
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        table[jax.default_backend()] = measured
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
