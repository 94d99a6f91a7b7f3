"""Pictures of results: the same numbers give the same bytes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw_curve", "picture"]


@contextlib.contextmanager
def picture(
    path: str | Path,
    size: tuple[float, float],
    *,
    rows: int = 1,
    columns: int = 1,
    box: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """Opens a figure without a screen, and saves and closes it behind the block.

    Args:
      path: file to write, SVG, or PNG at 120 dots per inch.
      size: width and height in inches.
      rows: of axes.
      columns: of axes.
      box: whether axes have lines above and on the right.
      **options: of `matplotlib.pyplot.subplots`; without `layout`, axes are fitted to the figure before it is saved.

    Yields:
      The axes, as `matplotlib.pyplot.subplots` gives them.
    """
    # Here, since nobody needs matplotlib to measure.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "equivariant_jax", "axes.spines.top": box, "axes.spines.right": box}):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, **options)
        try:
            yield axes
            if "layout" not in options:
                figure.tight_layout()
            # A date would be another byte every day.
            how: dict[str, Any] = {"metadata": {"Date": None}} if Path(path).suffix == ".svg" else {"dpi": 120}
            figure.savefig(path, **how)
        finally:
            pyplot.close(figure)


def draw_curve(axis: Any, at: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draws the mean over seeds as a line, and their range as a band.

    Args:
      axis: of matplotlib.
      at: positions, shape `[n]`.
      values: shape `[n, seeds]`.
      **style: of the line.
    """
    axis.plot(at, values.mean(axis=1), **style)
    axis.fill_between(at, values.min(axis=1), values.max(axis=1), alpha=0.15)
