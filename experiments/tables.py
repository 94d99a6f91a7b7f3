"""Markdown tables of results: heads and rows, means with their spread over seeds, what a run took."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.results import seed_values

__all__ = ["cell", "each_variant", "markdown", "mean_and_spread", "ratio_cells", "runs_table"]


def markdown(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    r"""Writes a table.

    Args:
      heads: of the columns.
      rows: cells of each row, as many as heads.

    Returns:
      Markdown without a newline at the end.

    Raises:
      ValueError: if a row has another number of cells.

    Example:
      >>> markdown(("model", "error"), [("ours", "0.1")])
      '| model | error |\n|---|---|\n| ours | 0.1 |'
    """
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = tuple(row)
        if len(cells) != len(heads):
            raise ValueError(f"row {cells}: got {len(cells)} cells, expected {len(heads)}, one for each of {heads}.")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def each_variant(found: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Yields result, name of the variant, and its table of metrics, for each variant of each result by file stem."""
    for result in found.values():
        for variant, table in result["metrics"].items():
            yield result, variant, table


def runs_table(found: Mapping[str, Any], heads: Sequence[str], cells: Callable[..., Iterable[str]]) -> str:
    """Writes a table with a row for each variant of each result; seeds and minutes of training come last.

    Args:
      found: results by file stem.
      heads: of the columns but the last two.
      cells: `(result, variant, table of metrics) -> cells`, one for each of the heads.

    Returns:
      Markdown.
    """
    rows = (
        (
            *cells(result, variant, table),
            str(len(result["seeds"])),
            f"{seed_values(table, 'train_seconds').mean() / 60:.1f} min",
        )
        for result, variant, table in each_variant(found)
    )
    return markdown((*heads, "seeds", "training"), rows)


def mean_and_spread(values: Sequence[float] | np.ndarray, mean: str, spread: str = "") -> str:
    """Writes the mean and, of two values or more, the sample standard deviation.

    Args:
      values: one per seed, shape `[seeds]`.
      mean: format of the mean.
      spread: format of the standard deviation; that of the mean by default.

    Returns:
      The text of a cell.

    Example:
      >>> mean_and_spread([1.0, 3.0], ".1f"), mean_and_spread([1.0], ".1f")
      ('2.0 ± 1.4', '1.0')
    """
    text = f"{np.mean(values):{mean}}"
    if len(values) < 2:
        return text
    # Equal numbers may miss their own mean by rounding.
    deviation = np.std(values, ddof=1) if np.ptp(values) else 0.0
    return f"{text} ± {deviation:{spread or mean}}"


def cell(table: Mapping[str, Any], name: str, mean: str, spread: str = "", *, factor: float = 1.0) -> str:
    """Writes a metric with its spread over seeds.

    Args:
      table: metric -> {"values": one per seed}.
      name: of the metric.
      mean: format of the mean.
      spread: format of the standard deviation; that of the mean by default.
      factor: multiplies the values, 100 for percent.

    Returns:
      The text of a cell, "-" if there is no such metric.
    """
    return mean_and_spread(factor * seed_values(table, name), mean, spread) if name in table else "-"


def ratio_cells(row: Mapping[str, Any], peers: Iterable[str], form: str = ".2g", *, missing: str = "-") -> list[str]:
    """Writes how many times ours each peer takes.

    Args:
      row: of a benchmark's harness.
      peers: names of contenders.
      form: format of the ratios.
      missing: text for a peer that was not measured.

    Returns:
      A cell for each peer.
    """
    return [f"{row['ratios'][peer]:{form}}x" if peer in row["ratios"] else missing for peer in peers]
