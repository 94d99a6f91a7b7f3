"""Starts a command on all workers of a TPU pod, a Slurm GPU cluster, a list of hosts, or this machine.

    python -m experiments.pod --platform tpu --name my-pod --zone us-central2-b --workers 8 --devices 4 --dry-run \
        -- python -m experiments euclidean.molecules paper

prints, for each worker, who it is, which devices and which part of the batch it has, its environment, and the command
that starts it; without `--dry-run` those commands are run. The script that is started calls
`equivariant_jax.training.distributed.initialize()` first and needs nothing else: the environment says the rest.
"""

import argparse
import dataclasses
import shlex
import subprocess
import sys
from typing import Literal

from equivariant_jax.training.distributed import process_environment, run_local_processes

__all__ = ["Launch", "Worker", "main", "plan"]


@dataclasses.dataclass(frozen=True)
class Launch:
    """What to start, and where.

    Attributes:
      command: the program and its arguments, the same on every worker.
      platform: `tpu` (Cloud TPU pod), `slurm` (one task per node), `hosts` (ssh), or `local` (CPU processes here).
      workers: number of processes; one per host.
      devices: accelerators of each worker.
      batch_size: items of the global batch.
      name: name of the TPU pod.
      zone: zone of the TPU pod.
      hosts: host names for `hosts`; the first is the coordinator.
      port: port of the coordinator.
    """

    command: tuple[str, ...]
    platform: Literal["tpu", "slurm", "hosts", "local"] = "tpu"
    workers: int = 1
    devices: int = 4
    batch_size: int = 256
    name: str = "NAME"
    zone: str = "ZONE"
    hosts: tuple[str, ...] = ()
    port: int = 8476


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process of the program.

    Attributes:
      index: process number.
      host: where it runs.
      devices: numbers of its devices among all, first and last.
      items: items of the global batch that it loads, first and last.
      environment: variables that are set for it.
    """

    index: int
    host: str
    devices: tuple[int, int]
    items: tuple[int, int]
    environment: dict[str, str]


def plan(launch: Launch) -> list[Worker]:
    """Says what each worker does.

    Raises:
      ValueError: if there is no command, hosts are missing, or the batch cannot be split over all devices.

    Example:
      >>> workers = plan(Launch(("python", "train.py"), workers=2, devices=4, batch_size=64))
      >>> workers[1].devices, workers[1].items
      ((4, 7), (32, 63))
    """
    if not launch.command:
        raise ValueError("There is no command to start; put it behind `--`.")
    count = len(launch.hosts) if launch.platform == "hosts" else launch.workers
    if count < 1:
        raise ValueError("There is no worker; pass --workers, or --hosts for the platform 'hosts'.")
    if launch.batch_size % (count * launch.devices):
        raise ValueError(
            f"A batch of {launch.batch_size} items cannot be split over {count} workers with {launch.devices} devices; "
            f"choose a multiple of {count * launch.devices}."
        )
    items = launch.batch_size // count
    workers = []
    for index in range(count):
        if launch.platform in ("tpu", "slurm"):
            # jax finds coordinator, count and number by itself: from the TPU's metadata, or from Slurm's variables.
            host, environment = f"{launch.platform} worker {index}", {"EQUIVARIANT_JAX_CLUSTER": "1"}
        else:
            host = launch.hosts[index] if launch.platform == "hosts" else "localhost"
            first = launch.hosts[0] if launch.platform == "hosts" else "127.0.0.1"
            environment = process_environment(f"{first}:{launch.port}", count, index)
        devices = (index * launch.devices, (index + 1) * launch.devices - 1)
        workers.append(Worker(index, host, devices, (index * items, (index + 1) * items - 1), environment))
    return workers


def commands(launch: Launch) -> list[list[str]]:
    """Commands, run on this machine at the same time, that start all workers; empty for `local`."""
    workers = plan(launch)
    if launch.platform == "local":
        return []
    program = [
        shlex.join(["env", *(f"{k}={v}" for k, v in worker.environment.items()), *launch.command]) for worker in workers
    ]
    if launch.platform == "tpu":
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", launch.name, f"--zone={launch.zone}"]
        return [[*ssh, "--worker=all", f"--command={program[0]}"]]
    if launch.platform == "slurm":
        srun = ["srun", f"--nodes={len(workers)}", "--ntasks-per-node=1", f"--gpus-per-task={launch.devices}"]
        return [[*srun, *shlex.split(program[0])]]
    return [["ssh", worker.host, line] for worker, line in zip(workers, program, strict=True)]


def describe(launch: Launch) -> str:
    """The text that `--dry-run` prints."""
    lines = [f"{shlex.join(launch.command)}   on {launch.platform}, global batch of {launch.batch_size} items"]
    for worker in plan(launch):
        role = "coordinator; writes logs and metric rows" if worker.index == 0 else "silent"
        lines += [
            f"worker {worker.index} on {worker.host} ({role})",
            f"  devices {worker.devices[0]}..{worker.devices[1]}, items {worker.items[0]}..{worker.items[1]} of each "
            "batch",
            *(f"  {name}={value}" for name, value in worker.environment.items()),
        ]
    lines += ["commands run here:", *(f"  {shlex.join(command)}" for command in commands(launch))]
    if launch.platform == "local":
        lines.append(f"  (no shell command: {launch.workers} child processes, port chosen at the start)")
    return "\n".join(lines)


def run(launch: Launch) -> int:
    """Starts all workers and waits; returns 0 if all ended well, and the first other status otherwise."""
    if launch.platform == "local":
        for output in run_local_processes(
            launch.workers, launch.command, devices_per_process=launch.devices, timeout=float("inf")
        ):
            sys.stdout.write(output.stdout)
            sys.stderr.write(output.stderr)
        return 0
    processes = [subprocess.Popen(command) for command in commands(launch)]
    return next((status for status in [process.wait() for process in processes] if status), 0)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file."""
    defaults = Launch(())
    parser = argparse.ArgumentParser(description="Start a command on all workers of a pod or cluster.")
    parser.add_argument("--platform", choices=("tpu", "slurm", "hosts", "local"), default=defaults.platform)
    parser.add_argument("--hosts", default="", help="host names, separated by commas")
    for field in ("workers", "devices", "batch_size", "port"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(defaults, field))
    parser.add_argument("--name", default=defaults.name)
    parser.add_argument("--zone", default=defaults.zone)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- command and arguments")
    options = vars(parser.parse_args(argv))
    dry_run, command = options.pop("dry_run"), options.pop("command")
    hosts = tuple(host for host in options.pop("hosts").split(",") if host)
    launch = Launch(command=tuple(command[1:] if command[:1] == ["--"] else command), hosts=hosts, **options)
    try:
        text = describe(launch)
    except ValueError as error:
        parser.error(str(error))
    if dry_run:
        print(text)
        return 0
    return run(launch)


if __name__ == "__main__":
    sys.exit(main())
