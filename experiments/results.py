"""What a run leaves behind: one JSON with everything needed to believe and repeat it."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import equivariant_jax

__all__ = [
    "RESULTS",
    "RUN",
    "check_claims",
    "command_line",
    "dump",
    "environment",
    "finished_run",
    "read_all",
    "seed_curve",
    "seed_values",
    "summarise",
    "write",
]

RESULTS = Path(__file__).parent / "results"
# What each run of an experiment leaves in its working directory: configuration, metrics, environment.
RUN = "run.json"
CLAIM_FIELDS = {"card", "point", "statement", "bar", "value", "holds"}


def _git(*words: str) -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def environment() -> dict[str, Any]:
    """Commit, versions and device of this process, as plain JSON values."""
    import jax

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), "equivariant_jax": equivariant_jax.__version__}
        | {p: importlib.metadata.version(p) for p in packages},
        "device": {
            "backend": jax.default_backend(),
            "kind": _processor() if device.platform == "cpu" else device.device_kind,
            "count": jax.device_count(),
            "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, spread and single values of each metric over seeds.

    Args:
      runs: one flat dict of finite or non-finite numbers for each seed, with equal keys.

    Returns:
      Metric name -> `{"mean", "std", "values"}`; `std` is the sample standard deviation, None for a single seed.

    Raises:
      ValueError: if the runs differ in their metrics.

    Example:
      >>> summarise([{"mae": 1.0}, {"mae": 3.0}])["mae"]
      {'mean': 2.0, 'std': 1.4142135623730951, 'values': [1.0, 3.0]}
    """
    for i, run in enumerate(runs):
        if run.keys() != runs[0].keys():
            raise ValueError(f"run {i} has metrics {sorted(run)} beside {sorted(runs[0])}; expected the same names.")
    out = {}
    for name in runs[0]:
        values = [float(run[name]) for run in runs]
        spread = None
        if len(values) > 1:  # `stdev` does not take what is not finite
            spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
        out[name] = {"mean": statistics.fmean(values), "std": spread, "values": values}
    return out


def seed_values(table: Mapping[str, Any], name: str) -> np.ndarray:
    """Reads one metric of a variant.

    Args:
      table: metric -> {"values": one per seed}.
      name: of the metric.

    Returns:
      Its values, float64 `[seeds]`.

    Raises:
      KeyError: if there is no such metric.

    Example:
      >>> seed_values(summarise([{"mae": 1.0}, {"mae": 3.0}]), "mae")
      array([1., 3.])
    """
    return np.asarray(table[name]["values"], float)


def seed_curve(table: Mapping[str, Any], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the metrics that are called by a prefix and a whole number, in order of the number.

    Args:
      table: metric -> {"values": one per seed}.
      prefix: of the names, such as "step/".

    Returns:
      The numbers, int `[n]`, and their metrics' values, float64 `[n, seeds]`; `[0]` and `[0, 1]` if there are none.

    Example:
      >>> at, values = seed_curve(summarise([{"step/10": 1.0, "step/9": 2.0}]), "step/")
      >>> at.tolist(), values.tolist()
      ([9, 10], [[2.0], [1.0]])
    """
    points = {int(name.removeprefix(prefix)): name for name in table if name.startswith(prefix)}
    values = [seed_values(table, points[at]) for at in sorted(points)]
    return np.array(sorted(points), int), np.array(values, float).reshape(len(points), -1 if points else 1)


def check_claims(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checks the form of claims: every field present, `holds` a bool that code computed.

    Raises:
      ValueError: naming the claim and the field.
    """
    for i, claim in enumerate(claims):
        missing = CLAIM_FIELDS - claim.keys()
        if missing or not isinstance(claim["holds"], bool):
            raise ValueError(f"claim {i} lacks {sorted(missing)} or its 'holds' is not a bool: {dict(claim)}.")
    return [dict(claim) for claim in claims]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if getattr(value, "shape", None) == ():
        return _plain(np.asarray(value).item())
    return str(value)


def finished_run(workdir: Path, config: Any) -> dict[str, Any] | None:
    """Reads what a finished run of the same configuration left in a working directory.

    Args:
      workdir: folder of one variant and seed.
      config: dataclass; its JSON form must be that of the finished run. A flag `resume` does not count.

    Returns:
      The content of `run.json` with metrics as floats, or None if there is none for this configuration.
    """

    def key(plain: Any) -> Any:
        return {name: value for name, value in plain.items() if name != "resume"}

    try:
        content = json.loads((workdir / RUN).read_text())
    except FileNotFoundError:
        return None
    if key(content["config"]) != key(json.loads(json.dumps(_plain(config)))):
        return None
    return {**content, "metrics": {name: float(value) for name, value in content["metrics"].items()}}


def write(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes a result with this process's environment and command line added; replaces the file at once.

    Args:
      path: file to write.
      content: JSON-able values; dataclasses, paths and scalars are converted.

    Returns:
      The path.
    """
    return dump(path, {**content, **environment(), "command": command_line(sys.argv[1:])})


def command_line(arguments: Sequence[str]) -> str:
    """Writes the command of a result, without the folder where its runs were kept, which nobody else has.

    Args:
      arguments: of `python -m experiments`.

    Returns:
      The command.

    Example:
      >>> command_line(["frames.nbody", "cpu", "--workdir", "/somewhere", "--save"])
      'python -m experiments frames.nbody cpu --save'
    """
    kept = []
    for before, word in zip(("", *arguments), arguments, strict=False):
        if before != "--workdir" and word != "--workdir" and not word.startswith("--workdir="):
            kept.append(word)
    return " ".join(("python -m experiments", *kept))


def dump(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes JSON, replacing the file at once; NaN and infinities become strings.

    Args:
      path: file to write.
      content: JSON-able values; dataclasses, paths and scalars are converted.

    Returns:
      The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return path


def read_all(directory: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results of a directory by file stem, in order of name."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(directory.glob("*.json"))}
