"""Executes notebooks from top to bottom and fails at the first error: `python -m experiments.notebooks FILE ...`.

Also refuses stored outputs, so that a diff of a notebook shows what a person wrote.
"""

import sys
import time
from pathlib import Path

__all__ = ["execute", "main"]


def execute(path: Path, *, timeout: int = 180) -> float:
    """Runs every cell in a fresh kernel, in the notebook's folder.

    Args:
      path: the notebook.
      timeout: seconds that one cell may take.

    Returns:
      Seconds that the whole notebook took.

    Raises:
      ValueError: if the notebook holds outputs.
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    stored = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.outputs]
    if stored:
        raise ValueError(f"{path} holds outputs in cells {stored}; expected none: clear all outputs before you commit.")
    start = time.perf_counter()
    client = nbclient.NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    return time.perf_counter() - start


def main(names: list[str]) -> int:
    """Runs the notebooks named; returns the exit status."""
    if not names:
        print("usage: python -m experiments.notebooks FILE ...", file=sys.stderr)
        return 2
    for name in names:
        print(f"{name}: {execute(Path(name)):.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
