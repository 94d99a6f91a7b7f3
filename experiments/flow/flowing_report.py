"""What is reported of `flow.flowing_mnist`: claims, a table, curves over time and over velocity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import Claims
from experiments.pictures import draw_curve, picture
from experiments.results import seed_curve, seed_values
from experiments.tables import cell, mean_and_spread, runs_table

__all__ = ["CARD", "claims", "plots", "tables"]

CARD = "flow_equivariant_rnn"

# Test MSE, translations with data velocities {-2..2}^2, from a summary of the paper's Table 1.
PUBLISHED = {"grnn": 8.1e-3, "fernn_1": 5.3e-4, "fernn_2": 1.5e-4}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; ratios are of means over seeds.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for what was run.
    """
    claim = Claims(CARD)

    def ratio(variant: str, name: str, other: str) -> float:
        return seed_values(metrics[variant], name).mean() / seed_values(metrics[other], name).mean()

    def both(*variants: str) -> bool:
        return all(variant in metrics for variant in variants)

    metrics = {variant: table for variant, table in metrics.items() if table["steps"]["mean"] >= 400}
    plane = any(table["banks"]["mean"] in (9, 25) for table in metrics.values())
    shifts = plane or any(table["banks"]["mean"] == 5 for table in metrics.values())
    if both("fernn_1", "grnn") and plane:
        value = ratio("fernn_1", "test_mse", "grnn")
        claim.at_most(4, "motion in the plane: test MSE of FERNN V_1 over G-RNN", 0.35, value)
    if shifts and not plane:
        for variant, bar in (("fernn_2", 3.0), ("fernn_2_advance", 3.0), ("grnn", 10.0)):
            if variant in metrics and {"speed/+2", "speed/-2"} <= set(metrics[variant]):
                value = _fast(metrics[variant]).mean() / seed_values(metrics[variant], "test_mse").mean()
                compare = claim.at_least if variant == "grnn" else claim.at_most
                known = seed_values(metrics[variant], "test_mse").mean()
                why = f"its error is {known:.2g} at the speeds that it knows already"
                statement = f"{variant}: MSE at the unseen speeds +-2 over in distribution"
                compare(5, statement, bar, value, why=why if variant == "grnn" else "")
        for variant, bar in (("fernn_2", 0.7), ("fernn_2_advance", 0.4)):
            if both(variant, "grnn"):
                value = ratio(variant, "late_mse", "grnn")
                why = "few steps; seeds differ by more than is missing, see the table"
                claim.at_most(5, f"MSE of steps 13-18, trained on 6: {variant} over grnn", bar, value, why=why)
    return claim.found


def _fast(table: Mapping[str, Any]) -> np.ndarray:
    """Errors at speed 2 in either direction, `[seeds]`."""
    return (seed_values(table, "speed/+2") + seed_values(table, "speed/-2")) / 2


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("preset", "model", "banks", "test MSE", "last third of horizon", "speed ±2", "copy the last")
    forms = (".2g", ".1g")

    def cells(result, variant, table):
        fast = {"speed/+2", "speed/-2"} <= set(table)
        return (
            result["stem"].split(".")[-1], variant, f"{table['banks']['mean']:.0f}", cell(table, "test_mse", *forms),
            cell(table, "late_mse", *forms), mean_and_spread(_fast(table), *forms) if fast else "-",
            f"{table['copy_last_mse']['mean']:.2g}",
        )  # fmt: skip

    named = {stem: {**result, "stem": stem} for stem, result in found.items()}
    return {"flow.flowing_mnist": runs_table(named, heads, cells)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws error against step and against velocity, mean and range over seeds, as `flow.flowing_mnist.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    result = found.get("flow.flowing_mnist.cpu")
    if result is None:
        return
    config = result["config"]
    with picture(folder / "flow.flowing_mnist.svg", (9, 3.2), columns=2) as axes:
        for variant, table in result["metrics"].items():
            for axis, prefix in zip(axes, ("step/", "speed/"), strict=True):
                draw_curve(axis, *seed_curve(table, prefix), marker="o", markersize=3, label=variant)
        axes[0].axvline(config["predicted"] + 0.5, color="grey", linestyle=":")
        axes[1].axvspan(-config["data_radius"] - 0.5, config["data_radius"] + 0.5, color="grey", alpha=0.1)
        axes[0].set(xlabel="predicted frame (trained up to the line)", ylabel="mean squared error", yscale="log")
        axes[1].set(xlabel="speed of all digits (trained within the band)", yscale="log")
        axes[0].legend(frameon=False, fontsize=8)
