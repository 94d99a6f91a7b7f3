"""Metric rows, exported functions, costs of compiled functions, the launch recipe."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.training import (
    Mean,
    MetricsWriter,
    RootMean,
    add_metrics,
    analyse,
    compute_metrics,
    device_peak,
    read_rows,
    trace,
)
from equivariant_jax.training.export import export_function, load_exported, save_exported
from equivariant_jax.training.profiling import DevicePeak, cost_of

REPOSITORY = Path(__file__).parents[2]


def test_sums_merge_to_the_mean_over_the_union():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 3)).astype(np.float32)
    mask = np.arange(12) % 3 > 0
    for kind, expected in ((Mean, values[mask].mean()), (RootMean, np.sqrt((values[mask] ** 2).mean()))):
        data = values if kind is Mean else values**2
        left, right = kind.of(data[:5], mask[:5]), kind.of(data[5:], mask[5:])
        merged = add_metrics({"m": left}, {"m": right})
        assert compute_metrics(merged)["m"] == pytest.approx(float(expected), rel=1e-5)
        assert float(left.merge(right).compute()) == pytest.approx(float(expected), rel=1e-5)
        assert float(merged["m"].weight) == mask.sum() * 3
    assert np.isnan(compute_metrics({"none": Mean.of(values, np.zeros(12, bool))})["none"])
    with pytest.raises(ValueError, match="leading"):
        Mean.of(values, np.ones(3, bool))
    with pytest.raises(ValueError, match="same names"):
        add_metrics({"a": left}, {"b": right})


def test_sums_ignore_what_padding_holds_and_keep_count_in_bfloat16():
    poisoned = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    mask = jnp.array([True, False, True, False])
    assert float(Mean.of(poisoned, mask).compute()) == 2.0
    gradient = jax.grad(lambda x: Mean.of(x**2, mask).total)(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert gradient.tolist() == [2.0, 0.0, 6.0, 0.0]
    many = Mean.of(jnp.ones(1000, jnp.bfloat16))  # a bfloat16 sum of ones stops at 256
    assert (float(many.total), many.total.dtype) == (1000.0, jnp.float32)


def test_rows_survive_a_cut_and_later_ones_are_dropped(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": 1 / step, "bad": float("nan")})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "spl')  # killed in the middle of a row
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("4,tr")
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, "eval", {"loss": 9.0, "note, with comma": "x"})
    rows = read_rows(path)
    assert [(row["step"], row["split"]) for row in rows] == [(1, "train"), (2, "train"), (3, "eval")]
    assert rows[0]["bad"] is None
    with (tmp_path / "metrics.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert table[-1] == {"step": "3", "split": "eval", "name": "note, with comma", "value": "x"}
    assert float(table[0]["value"]) == rows[0]["loss"]
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_rows(path)
    with MetricsWriter(tmp_path / "new") as writer, pytest.raises(ValueError, match="rename"):
        writer.write(1, "train", {"step": 3})
    with MetricsWriter(tmp_path / "off", enabled=False) as writer:
        writer.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "off").exists()


def test_export_round_trip_with_any_batch(tmp_path):
    weight = jnp.arange(6.0).reshape(3, 2)

    def model(x, scale):
        return {"y": jnp.tanh(x @ weight) * scale, "sum": x.sum(-1)}

    exported = export_function(model, jnp.ones((4, 3)), jnp.array(2.0))
    save_exported(tmp_path / "model.bin", exported)
    loaded = load_exported(tmp_path / "model.bin")
    for batch in (1, 7):
        x = np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)
        found, expected = loaded(x, jnp.array(2.0)), jax.jit(model)(x, jnp.array(2.0))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError):
        loaded(np.ones((4, 5), np.float32), jnp.array(2.0))
    (tmp_path / "model.bin").write_bytes(b"not a function at all")
    with pytest.raises(ValueError, match=r"model\.bin"):
        load_exported(tmp_path / "model.bin")


def test_export_lowers_for_platforms_that_are_absent_and_for_graphs():
    def sums(x, receivers):
        return jax.ops.segment_sum(x[receivers], receivers, x.shape[0])

    args = (jnp.ones((5, 3)), jnp.zeros(9, jnp.int32))
    exported = export_function(sums, *args, dimensions=("n_node, 3", "n_edge"), platforms=("cpu", "cuda", "tpu"))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    out = exported.call(jnp.ones((2, 3)), jnp.array([0, 1, 1], jnp.int32))
    assert out.tolist() == [[1.0] * 3, [2.0] * 3]
    with pytest.raises(Exception, match="batch"):
        export_function(lambda x: x.reshape(4, -1) if x.shape[0] > 3 else x, jnp.ones((8, 2)))


def test_costs_are_those_of_the_matrix_product(tmp_path):
    n = 64
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((n, n))).compile()
    cost = cost_of(compiled, peak=DevicePeak(flops=2.0 * n**3, bandwidth=1e12))
    assert cost.flops == 2 * n**3
    assert cost.roofline_seconds == pytest.approx(1.0)
    assert cost.bytes_accessed is not None
    assert cost.intensity == pytest.approx(cost.flops / cost.bytes_accessed)
    assert cost.peak_memory is not None
    assert cost.peak_memory >= 2 * 4 * n * n
    assert device_peak() is None
    measured = analyse(lambda x: x @ x, jnp.ones((n, n)))
    assert measured.roofline_seconds is None
    assert measured.compile_seconds is not None
    assert measured.compile_seconds > 0
    with trace(tmp_path / "profile"):
        jax.block_until_ready(compiled(jnp.ones((n, n))))
    assert any(path.is_file() for path in (tmp_path / "profile").rglob("*"))
    with trace(None):
        pass


def pod(*arguments):
    command = [sys.executable, "-m", "experiments.pod", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_dry_run_says_what_each_worker_does():
    run = pod("--platform", "hosts", "--hosts", "a,b", "--batch-size", "64", "--dry-run", "--", "python", "train.py")
    assert run.returncode == 0, run.stderr
    assert "worker 1 on b (silent)" in run.stdout
    assert "devices 4..7, items 32..63" in run.stdout
    assert "EQUIVARIANT_JAX_COORDINATOR=a:8476" in run.stdout
    assert "ssh b 'env EQUIVARIANT_JAX_COORDINATOR=a:8476" in run.stdout
    run = pod("--workers", "3", "--batch-size", "64", "--dry-run", "--", "python", "train.py")
    assert run.returncode == 2
    assert "choose a multiple of 12" in run.stderr


@pytest.mark.multiprocess
def test_the_recipe_works_on_this_machine():
    program = (
        "from equivariant_jax.training.distributed import initialize; import json; print(json.dumps(initialize()))"
    )
    options = ("--platform", "local", "--workers", "2", "--devices", "2", "--batch-size", "8")
    run = pod(*options, "--", sys.executable, "-c", program)
    assert run.returncode == 0, run.stderr
    assert sorted(json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")) == [
        [0, 2, 2, 4],
        [1, 2, 2, 4],
    ]
