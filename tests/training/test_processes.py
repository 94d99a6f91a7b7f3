"""What needs processes of its own: two processes as one program, SIGTERM, SIGKILL, and the cost of importing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from equivariant_jax.training import Checkpointer, make_mesh, read_rows
from equivariant_jax.training.distributed import initialize, process_environment, run_local_processes
from tests.training import run_in_processes, run_until_signalled

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.multiprocess
def test_two_processes_are_one_program(tmp_path, problem):
    script = HERE / "run_in_processes.py"
    outputs = run_local_processes(
        2, [sys.executable, str(script), str(tmp_path)], devices_per_process=2, env=ENVIRONMENT, timeout=200
    )
    assert [output.returncode for output in outputs] == [0, 0]
    first, second = (json.loads((tmp_path / f"process_{i}.json").read_text()) for i in range(2))
    assert (first.pop("info"), second.pop("info")) == ([0, 2, 2, 4], [1, 2, 2, 4])
    assert first == second  # every process holds the same numbers

    stopped_at = Checkpointer(tmp_path / "sigterm" / "checkpoints").latest()
    assert stopped_at >= 6
    assert f"saved step {stopped_at} of 100000" in outputs[0].stderr
    assert "saved step" not in outputs[1].stderr

    # The same sums of 80 contributions of size <= 10, in another order: 16 operations deep, parameters of size <= 10.
    tolerance = 16 * np.finfo(np.float32).eps * 20
    for accumulate in (1, 2):
        for per_device in (False, True):
            expected = run_in_processes.one_step(make_mesh(), accumulate=accumulate, per_device=per_device)
            found = first[f"{accumulate}-{per_device}"]
            np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=0, atol=tolerance)
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)

    # Saved by two processes on a sharded mesh, restored by one process on one device, and continued by it on four.
    checkpointer = Checkpointer(tmp_path / "fit" / "checkpoints")
    restored = checkpointer.restore(run_in_processes.make_state())
    assert restored.step == 5
    assert restored.iterator_state == {"position": 5}
    np.testing.assert_array_equal(restored.state.params["kernel"], np.float32(first["fit"]["kernel"]))
    assert len(restored.state.params["kernel"].sharding.device_set) == 1
    continued = run_in_processes.train(make_mesh(data=2, fsdp=2), tmp_path / "fit", 8, resume=True)
    whole = run_in_processes.train(make_mesh(data=2, fsdp=2), tmp_path / "whole", 8)
    # Adam divides by the root of small second moments, so rounding of the gradients is amplified; 8 steps of 0.05.
    np.testing.assert_allclose(continued.state.params["kernel"], whole.state.params["kernel"], atol=1e-4)
    assert [row["step"] for row in read_rows(tmp_path / "fit" / "metrics.jsonl")] == [2, 4, 6, 8]


@pytest.mark.multiprocess
def test_a_failing_process_ends_the_others(tmp_path):
    program = (
        "import sys, time; from equivariant_jax.training.distributed import initialize\n"
        "import os\n"
        "if os.environ['EQUIVARIANT_JAX_PROCESS_ID'] == '1': sys.exit('out of order')\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"status 1 \(process 1\)[\s\S]*out of order"):
        run_local_processes(2, [sys.executable, "-c", program], env=ENVIRONMENT, timeout=100)
    assert time.monotonic() - start < 100


def test_process_environment_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="Process 4 of 4"):
        process_environment("host:1", 4, 4)
    with pytest.raises(ValueError, match="host:port"):
        process_environment("host", 4, 0)
    monkeypatch.setenv("EQUIVARIANT_JAX_COORDINATOR", "host:1")
    with pytest.raises(ValueError, match="EQUIVARIANT_JAX_NUM_PROCESSES"):
        initialize()


@pytest.mark.multiprocess
def test_sigterm_saves_exits_0_and_resumes_bit_exactly(tmp_path, problem):
    command = [sys.executable, str(HERE / "run_until_signalled.py"), str(tmp_path / "run"), "10000000"]
    process = subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "resume=True (--resume)" in err
    stopped_at = Checkpointer(tmp_path / "run" / "checkpoints").latest()
    assert f"saved step {stopped_at} of 10000000" in err
    resumed = run_until_signalled.train(tmp_path / "run", stopped_at + 20)
    whole = run_until_signalled.train(tmp_path / "whole", stopped_at + 20)
    problem.assert_same_bits(resumed.state, whole.state)
    rows = [
        [{k: v for k, v in row.items() if "time/" not in k} for row in read_rows(tmp_path / name / "metrics.jsonl")]
        for name in ("run", "whole")
    ]
    assert rows[0] == rows[1]


@pytest.mark.multiprocess
def test_sigkill_leaves_a_usable_checkpoint(tmp_path):
    """A few moments; `python -m experiments.stress_checkpoints` has a hundred."""
    result = tmp_path / "stress.json"
    command = [
        sys.executable,
        "-m",
        "experiments.stress_checkpoints",
        "--resumes",
        "3",
        "--num-steps",
        "60",
        "--output",
        str(result),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    counts = json.loads(result.read_text())["metrics"]
    assert counts["bit_exact"] == counts["resumes"] == 3
    assert counts["states"] > 3


def test_importing_the_room_is_cheap():
    """Under a second of processor time beyond jax, and none of the heavy packages; the best of three."""
    program = (
        "import time, sys, jax, jax.numpy; start = time.process_time(); import equivariant_jax.training;"
        "import equivariant_jax.training.distributed, equivariant_jax.training.export;"
        "print(time.process_time() - start);"
        "print([name for name in ('orbax', 'tqdm', 'grain', 'tensorflow', 'matplotlib') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    seconds = []
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        first, second = run.stdout.strip().split("\n")
        assert second == "[]"
        seconds.append(float(first))
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1.0


def test_one_process_is_the_default():
    assert initialize() == (0, 1, jax.local_device_count(), jax.device_count())
