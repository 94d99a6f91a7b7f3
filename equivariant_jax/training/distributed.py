"""Several processes as one program: TPU pods, GPU clusters, and local CPU processes for tests.

Every process runs the same script and calls `initialize()` before anything else of jax. Afterwards `jax.devices()` are
the devices of all processes, `make_mesh()` spans them, `shard_batch` takes each process's part of a batch, and every
process calls every step, evaluation and checkpoint method. Process 0 alone writes logs and metric rows.
"""

import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

__all__ = ["ProcessInfo", "ProcessOutput", "initialize", "process_environment", "run_local_processes"]

_COORDINATOR = "EQUIVARIANT_JAX_COORDINATOR"
_COUNT = "EQUIVARIANT_JAX_NUM_PROCESSES"
_INDEX = "EQUIVARIANT_JAX_PROCESS_ID"
_CLUSTER = "EQUIVARIANT_JAX_CLUSTER"


class ProcessInfo(NamedTuple):
    """Where this process stands.

    Attributes:
      index: number of this process.
      count: number of processes.
      local_devices: devices that this process drives.
      devices: devices of all processes.
    """

    index: int
    count: int
    local_devices: int
    devices: int


def process_environment(coordinator: str, count: int, index: int) -> dict[str, str]:
    """Environment variables that make `initialize()` join a program of `count` processes as number `index`.

    Args:
      coordinator: `host:port` of process 0, reachable from all.
      count: number of processes.
      index: number of the process, from 0.

    Returns:
      name -> value.

    Raises:
      ValueError: if the number is out of range, or the address has no port.

    Example:
      >>> sorted(process_environment("10.0.0.1:8476", 4, 0).values())
      ['0', '10.0.0.1:8476', '4']
    """
    if not 0 <= index < count:
        raise ValueError(f"Process {index} of {count}: expected 0 <= index < count.")
    if not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"The coordinator is {coordinator!r}; expected 'host:port'.")
    return {_COORDINATOR: coordinator, _COUNT: str(count), _INDEX: str(index)}


def initialize(*, cluster: bool | None = None) -> ProcessInfo:
    """Joins the processes of a program; call it once, first, before any array or device is asked for.

    With the variables of `process_environment` set, they say who is who. Otherwise, with `cluster=True`, jax detects
    the cluster (TPU pod, Slurm, Open MPI, Kubernetes). Otherwise this is a program of one process, and nothing is done.

    Args:
      cluster: let jax detect the cluster; None asks the variable `EQUIVARIANT_JAX_CLUSTER` (1: yes).

    Returns:
      A `ProcessInfo`.

    Raises:
      ValueError: if only some of the variables are set.
      RuntimeError: if jax has been used already (from jax), or the other processes do not show up.

    Example:
      >>> initialize().count
      1
    """
    given = {name: os.environ[name] for name in (_COORDINATOR, _COUNT, _INDEX) if name in os.environ}
    if given and len(given) < 3:
        missing = sorted({_COORDINATOR, _COUNT, _INDEX} - given.keys())
        raise ValueError(f"The environment has {sorted(given)} but not {missing}; set all three or none.")
    if cluster is None:
        cluster = os.environ.get(_CLUSTER) == "1"
    if (given or cluster) and not jax.distributed.is_initialized():
        # Used by CPU devices alone; without it they have no way to talk to another process.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if given:
            jax.distributed.initialize(given[_COORDINATOR], int(given[_COUNT]), int(given[_INDEX]))
        else:
            jax.distributed.initialize()
    if jax.process_index() != 0:
        logging.getLogger("equivariant_jax").setLevel(logging.ERROR)
    return ProcessInfo(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())


class ProcessOutput(NamedTuple):
    """What one process left behind.

    Attributes:
      returncode: exit status.
      stdout: all of its standard output.
      stderr: all of its standard error.
    """

    returncode: int
    stdout: str
    stderr: str


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_local_processes(
    count: int,
    argv: Sequence[str],
    *,
    devices_per_process: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> list[ProcessOutput]:
    """Runs a command as `count` CPU processes of one program on this machine and waits for all of them.

    Args:
      count: number of processes.
      argv: command, e.g. `[sys.executable, "train.py"]`; the script calls `initialize()` first.
      devices_per_process: fake CPU devices of each process.
      env: further environment variables.
      timeout: seconds after which all are ended.

    Returns:
      The outputs by process number, all with `returncode` 0.

    Raises:
      ChildProcessError: if a process failed or did not end in time; the message holds the end of its standard error.
      ValueError: if `count` or `devices_per_process` is below 1.
    """
    if count < 1 or devices_per_process < 1:
        raise ValueError(f"count={count}, devices_per_process={devices_per_process}; expected at least 1 of each.")
    coordinator = f"127.0.0.1:{_free_port()}"
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for index in range(count):
                environment = {
                    **os.environ,
                    **(env or {}),
                    **process_environment(coordinator, count, index),
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_per_process}",
                }
                # Files, not pipes: a process whose pipe is full would wait for us, and the others for it.
                with (
                    (Path(scratch) / f"{index}.out").open("w") as out,
                    (Path(scratch) / f"{index}.err").open("w") as err,
                ):
                    processes.append(subprocess.Popen(list(argv), stdout=out, stderr=err, env=environment))
            failed = _wait_for_all(processes, timeout)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        read = [[(Path(scratch) / f"{i}.{kind}").read_text() for kind in ("out", "err")] for i in range(count)]
    outputs = [ProcessOutput(p.returncode, out, err) for p, (out, err) in zip(processes, read, strict=True)]
    if failed is not None:
        reason = "did not end in time" if failed < 0 else f"ended with status {outputs[failed].returncode}"
        ends = "\n".join(f"--- process {i}:\n{output.stderr[-2000:]}" for i, output in enumerate(outputs))
        raise ChildProcessError(f"A process of {' '.join(argv)} {reason} (process {max(failed, 0)}).\n{ends}")
    return outputs


def _wait_for_all(processes: Sequence[subprocess.Popen], timeout: float) -> int | None:
    """Number of the first process that failed, -1 if time ran out, None if all ended well."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        states = [process.poll() for process in processes]
        bad = [index for index, state in enumerate(states) if state not in (None, 0)]
        if bad:
            return bad[0]
        if all(state == 0 for state in states):
            return None
        time.sleep(0.02)
    return -1
