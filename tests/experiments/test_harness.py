"""The benchmark harness measures what it says it measures."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import harness

PEAKS = {"flops_per_s": 1e11, "bytes_per_s": 1e10}


def test_row_has_ratio_compile_time_and_flops():
    slow = harness.Case("scale", {"small": lambda x: x @ x, "large": lambda x: x @ x}, {
        "small": (jnp.ones((100, 100)),), "large": (jnp.ones((800, 800)),)})  # fmt: skip
    row = harness.measure(slow, PEAKS, rounds=3, round_seconds=0.01)
    assert row["ours"] == "small"
    assert row["ratios"]["large"] > 5  # 512 times the work
    assert row["contenders"]["small"]["traces"] == 1
    assert row["compile_s"] > 0
    assert row["contenders"]["small"]["gflop"] == pytest.approx(2e-3, rel=0.05)


def test_wrong_peers_are_not_timed():
    bad = harness.Case("bad", {"ours": lambda x: x + 1, "peer": lambda x: x}, (jnp.ones(3),), reference="ours")
    with pytest.raises(ValueError, match="differs from ours"):
        harness.measure(bad, PEAKS, rounds=1)
    good = harness.Case("good", {"ours": lambda x: x + 1, "peer": lambda x: 1 + x}, (jnp.ones(3),), reference="ours")
    assert harness.measure(good, PEAKS, rounds=1, round_seconds=0.001)["contenders"]["peer"]["error"] == 0.0


def test_outputs_that_are_something_else_are_not_compared():
    case = harness.Case(
        "more paths",
        {"ours": lambda x: x, "peer": lambda x: 2 * x},
        (jnp.ones(3),),
        reference="ours",
        different=("peer",),
    )
    assert "error" not in harness.measure(case, PEAKS, rounds=1, round_seconds=0.001)["contenders"]["peer"]


def test_flops_of_loops_calls_and_transforms_are_counted():
    x, matrix = jnp.ones((16, 4)), jnp.ones((4, 5))
    assert harness.count_flops(lambda x: x @ matrix, x) == 2 * 16 * 4 * 5
    assert harness.count_flops(lambda x: jnp.sin(x) * x + x, x) == 3 * 64
    # A loop's body counts as often as it runs, also inside jit and checkpoint.
    looped = jax.jit(lambda x: jax.lax.map(jax.checkpoint(lambda row: row @ matrix), x))
    assert harness.count_flops(looped, x) == 2 * 16 * 4 * 5
    assert harness.count_flops(jnp.fft.fft, x.astype("complex64")) == pytest.approx(5 * 64 * 2)
