"""What is reported of `flow.flowing_mnist`: claims, a table, curves over time and over velocity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CARD", "claims", "plots", "tables"]

CARD = "flow_equivariant_rnn"

# Test MSE, translations with data velocities {-2..2}^2, from a summary of the paper's Table 1.
PUBLISHED = {"grnn": 8.1e-3, "fernn_1": 5.3e-4, "fernn_2": 1.5e-4}


def _claim(point: Any, statement: str, bar: float, value: float, holds: bool) -> dict[str, Any]:
    return {
        "card": CARD, "point": point, "statement": statement, "bar": bar, "value": float(value), "holds": bool(holds),
    }  # fmt: skip


def _values(metrics: Mapping[str, Any], variant: str, name: str) -> np.ndarray:
    return np.asarray(metrics[variant][name]["values"])


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; ratios are of means over seeds.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for what was run.
    """
    found = []

    def ratio(variant: str, name: str, other: str, other_name: str) -> float:
        return _values(metrics, variant, name).mean() / _values(metrics, other, other_name).mean()

    def both(*variants: str) -> bool:
        return all(variant in metrics for variant in variants)

    metrics = {variant: table for variant, table in metrics.items() if table["steps"]["mean"] >= 400}
    plane = any(table["banks"]["mean"] in (9, 25) for table in metrics.values())
    shifts = plane or any(table["banks"]["mean"] == 5 for table in metrics.values())
    if both("fernn_1", "grnn") and plane:
        value = ratio("fernn_1", "test_mse", "grnn", "test_mse")
        found.append(
            _claim(4, "motion in the plane: test MSE of FERNN V_1 over G-RNN, at most", 0.35, value, value <= 0.35)
        )
    if shifts and not plane:
        for variant, unseen_bar in (("fernn_2", 3.0), ("fernn_2_advance", 3.0), ("grnn", 10.0)):
            if variant in metrics and {"speed/+2", "speed/-2"} <= set(metrics[variant]):
                fast = (_values(metrics, variant, "speed/+2") + _values(metrics, variant, "speed/-2")) / 2
                value = fast.mean() / _values(metrics, variant, "test_mse").mean()
                at_most = variant != "grnn"
                statement = (
                    f"{variant}: MSE at the unseen speeds +-2 over in distribution, at {'most' if at_most else 'least'}"
                )
                holds = value <= unseen_bar if at_most else value >= unseen_bar
                found.append(_claim(5, statement, unseen_bar, value, holds))
        for variant, bar in (("fernn_2", 0.7), ("fernn_2_advance", 0.4)):
            if both(variant, "grnn"):
                value = ratio(variant, "late_mse", "grnn", "late_mse")
                statement = f"MSE of steps 13-18, trained on 6: {variant} over grnn, at most"
                found.append(_claim(5, statement, bar, value, value <= bar))
    return found


def _cell(table: Mapping[str, Any], name: str) -> str:
    if name not in table:
        return "-"
    values = np.asarray(table[name]["values"])
    spread = f" ± {values.std(ddof=1):.1g}" if len(values) > 1 else ""
    return f"{values.mean():.2g}{spread}"


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    lines = [
        "| preset | model | banks | test MSE | last third of horizon | speed ±2 | copy the last | seeds | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        for variant, table in result["metrics"].items():
            fast = "-"
            if "speed/+2" in table and "speed/-2" in table:
                joined = [(a + b) / 2 for a, b in zip(*(table[f"speed/{s}2"]["values"] for s in "+-"), strict=True)]
                fast = _cell({"x": {"values": joined}}, "x")
            minutes = np.mean(table["train_seconds"]["values"]) / 60
            cells = (
                name.split(".")[-1], variant, f"{table['banks']['mean']:.0f}", _cell(table, "test_mse"),
                _cell(table, "late_mse"), fast, _cell({"x": {"values": [table["copy_last_mse"]["mean"]]}}, "x"),
                str(len(result["seeds"])), f"{minutes:.1f} min",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return {"flow.flowing_mnist": "\n".join(lines)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws error against step and against velocity, mean and range over seeds, as `flow.flowing_mnist.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = found.get("flow.flowing_mnist.cpu")
    if result is None:
        return
    plt.rcParams["svg.hashsalt"] = "equivariant_jax"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for variant, table in result["metrics"].items():
        for axis, prefix in zip(axes, ("step/", "speed/"), strict=True):
            points = sorted(
                (int(name[len(prefix) :]), m["values"]) for name, m in table.items() if name.startswith(prefix)
            )
            at = [x for x, _ in points]
            axis.plot(at, [np.mean(v) for _, v in points], marker="o", markersize=3, label=variant)
            axis.fill_between(at, [min(v) for _, v in points], [max(v) for _, v in points], alpha=0.15)
    trained = result["config"]["predicted"] + 0.5, result["config"]["data_radius"] + 0.5
    axes[0].axvline(trained[0], color="grey", linestyle=":")
    axes[1].axvspan(-trained[1], trained[1], color="grey", alpha=0.1)
    axes[0].set(xlabel="predicted frame (trained up to the line)", ylabel="mean squared error", yscale="log")
    axes[1].set(xlabel="speed of all digits (trained within the band)", yscale="log")
    axes[0].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "flow.flowing_mnist.svg", metadata={"Date": None})
    plt.close(figure)
