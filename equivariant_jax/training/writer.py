"""Metric rows on disk: JSON lines for programs, CSV for spreadsheets, both append-only and safe to cut anywhere.

`metrics.jsonl` has one object per row, `{"step": 100, "split": "train", "loss": ...}`. `metrics.csv` is the same data
in long form (`step,split,name,value`), so that a new metric never changes a header. A process that dies may leave half
a row, and rows beyond the checkpoint that the next process resumes from; opening the files again cuts both off, so the
files of an interrupted run end up equal to those of an uninterrupted one (but for names that begin with `time/`).
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MetricsWriter", "read_rows"]


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Reads the rows of a `metrics.jsonl`; an incomplete last line (the writer was killed) is left out.

    Raises:
      ValueError: naming file and line, if a line other than the last is not JSON.
    """
    lines = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it: cut off while being written
                break
            raise ValueError(f"{path}, line {number} is not JSON: {error}. Remove the line or the file.") from error
    return rows


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and `metrics.csv` in a directory.

    Args:
      directory: created if missing.
      resume_step: keep the rows up to this step and cut off later ones; None starts new files.
      enabled: False makes every call do nothing (processes other than 0).

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> with MetricsWriter(directory) as writer:
      ...     writer.write(10, "train", {"loss": 0.5})
      >>> read_rows(f"{directory}/metrics.jsonl")
      [{'step': 10, 'split': 'train', 'loss': 0.5}]
    """

    def __init__(self, directory: str | os.PathLike, *, resume_step: int | None = None, enabled: bool = True):
        self._enabled = enabled
        self._streams: list[io.TextIOWrapper] = []
        if not enabled:
            return
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._jsonl = Path(directory) / "metrics.jsonl"
        self._csv = Path(directory) / "metrics.csv"
        self.rewind(-1 if resume_step is None else resume_step)

    def rewind(self, step: int) -> None:
        """Cuts off the rows after a step and appends from there."""
        if not self._enabled:
            return
        self.close()
        rows = [row for row in read_rows(self._jsonl) if row["step"] <= step] if self._jsonl.exists() else []
        _replace(self._jsonl, "".join(json.dumps(row) + "\n" for row in rows))
        _replace(self._csv, "step,split,name,value\n" + "".join(map(self._csv_lines, rows)))
        self._streams = [self._jsonl.open("a", newline=""), self._csv.open("a", newline="")]

    @staticmethod
    def _csv_lines(row: Mapping) -> str:
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        for name, value in row.items():
            if name not in ("step", "split"):
                table.writerow([row["step"], row["split"], name, "" if value is None else value])
        return buffer.getvalue()

    def write(self, step: int, split: str, values: Mapping[str, float | int | str]) -> None:
        """Appends a row and hands it to the operating system (a killed process loses at most the row being written).

        Args:
          step: step that the values belong to.
          split: `train`, `eval` or `event`.
          values: name -> scalar; what is not finite is written as null, since NaN is not JSON.

        Raises:
          ValueError: if a name is reserved.
        """
        if not self._enabled:
            return
        if {"step", "split"} & values.keys():
            raise ValueError("Metrics may not be called 'step' or 'split'; rename them.")
        row = {"step": step, "split": split}
        for name, value in values.items():
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        jsonl, table = self._streams
        jsonl.write(json.dumps(row, allow_nan=False) + "\n")
        jsonl.flush()
        table.write(self._csv_lines(row))
        table.flush()

    def close(self) -> None:
        """Closes the files."""
        for stream in self._streams:
            stream.close()
        self._streams = []

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
