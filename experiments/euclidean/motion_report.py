"""What is reported of `euclidean.motion`: claims, a table, one scene of each task and errors by future frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CARD", "POINTS", "PUBLISHED", "TASKS", "claims", "plots", "tables"]

CARD = "eqmotion"
POINTS = (2, 3, 4, 5, 6)

# minADE20, minFDE20 in m, from the repository.
PUBLISHED = {"eth": (0.40, 0.61), "hotel": (0.12, 0.18), "univ": (0.23, 0.43), "zara1": (0.18, 0.32),
             "zara2": (0.13, 0.23)}  # fmt: skip
TASKS = ("springs", "charged", "molecule", "human", *PUBLISHED)
"""What the metric `task` counts: a result's metrics are all that claims see."""

CONSTANT_VELOCITY = {"zara1": 0.427, "hotel": 0.319}
PEDESTRIAN_BARS = {"zara1": 0.20, "hotel": 0.13}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; each number is the worst over seeds.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for what was run, and nothing for runs of
      fewer than 500 steps.
    """
    found: list[dict[str, Any]] = []
    metrics = {variant: table for variant, table in metrics.items() if min(table["steps"]["values"]) >= 500}

    def values(variant: str, name: str) -> np.ndarray:
        return np.asarray(metrics[variant][name]["values"], float)

    def claim(point: int, statement: str, bar: float, value: float, *, least: bool = False) -> None:
        holds = value >= bar if least else value <= bar
        statement = f"{statement}, at {'least' if least else 'most'}"
        found.append(
            {"card": CARD, "point": point, "statement": statement, "bar": bar, "value": float(value),
             "holds": bool(holds)}
        )  # fmt: skip

    ours = metrics.get("eqmotion")
    if ours is None:
        return found
    kind = _kind(ours)
    ratio = (values("eqmotion", "cv_ade") / values("eqmotion", "ade")).min()
    if kind == "springs":
        accuracy = values("eqmotion", "edge_accuracy").min()
        claim(2, "springs: edge recovery without labels, worst seed", 0.9, accuracy, least=True)
        claim(2, "springs: CPU minutes of training, slowest seed", 20.0, values("eqmotion", "cpu_seconds").max() / 60)
        claim(2, "springs: training trajectories", 1000, values("eqmotion", "train_scenes").max())
        if "no_interaction" in metrics:
            other = values("no_interaction", "edge_accuracy").max()
            claim(2, "springs: edge recovery without interaction, best seed", 0.6, other)
    if kind == "charged":
        claim(3, "charges: ADE of constant velocity over ours, worst seed", 2.0, ratio, least=True)
        if "egnn" in metrics:
            worse = values("egnn", "ade").min() / values("eqmotion", "ade").max()
            claim(3, "charges: ADE of EGNN, best seed, over ours, worst seed", 1.0, worse, least=True)
    if kind in ("springs", "charged", "molecule") and "mlp" in metrics:
        gap = values("eqmotion", "rotation_gap").max()
        claim(4, f"{kind}, trained on one orientation: change of ADE under random rotation, worst seed", 1e-5, gap)
        grown = (values("mlp", "rotated_ade") / values("mlp", "ade")).min()
        statement = f"{kind}: ADE of the network without symmetry under random rotation over its ADE, best seed"
        claim(4, statement, 1.5, grown, least=True)
    if kind in PEDESTRIAN_BARS:
        ade = values("eqmotion", "ade").mean()
        statement = f"{kind}: minADE20 with the choice on validation, mean over seeds (constant velocity 1 head: "
        statement += f"{CONSTANT_VELOCITY[kind]})"
        claim(5, statement, PEDESTRIAN_BARS[kind], ade)
    if kind == "molecule":
        claim(6, "xTB ethanol: ADE over that of constant velocity, worst seed", 0.5, 1 / ratio)
    return found


def _kind(table: Mapping[str, Any]) -> str:
    """Which task a run was of."""
    return TASKS[int(table["task"]["values"][0])]


def _cell(table: Mapping[str, Any], name: str, factor: float = 1.0) -> str:
    if name not in table:
        return "-"
    values = factor * np.asarray(table[name]["values"], float)
    spread = f" ± {values.std(ddof=1):.1g}" if len(values) > 1 else ""
    return f"{values.mean():.3g}{spread}"


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    lines = [
        "| task | model | parameters | ADE | FDE | constant velocity | ADE, rotated | pairs right % | published "
        "| seeds | training |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in found.values():
        for variant, table in result["metrics"].items():
            kind = _kind(table)
            published = "/".join(map(str, PUBLISHED[kind])) if kind in PUBLISHED and variant == "eqmotion" else "-"
            minutes = np.mean(table["train_seconds"]["values"]) / 60
            cells = (
                kind, variant, f"{table['parameters']['mean']:.0f}", _cell(table, "ade"), _cell(table, "fde"),
                f"{table['cv_ade']['mean']:.3g}/{table['cv_fde']['mean']:.3g}", _cell(table, "rotated_ade"),
                _cell(table, "edge_accuracy", 100.0), published, str(len(result["seeds"])), f"{minutes:.1f} min",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return {"euclidean.motion": "\n".join(lines)}


def _path(table: Mapping[str, Any], kind: str) -> dict[int, np.ndarray]:
    """Agent -> points `[frames, 2]`, of the first seed."""
    points: dict[int, dict[int, list[float]]] = {}
    for name, metric in table.items():
        if name.startswith(f"path/{kind}/"):
            agent, frame, axis = map(int, name.split("/")[2:])
            points.setdefault(agent, {}).setdefault(frame, [0.0, 0.0])[axis] = metric["values"][0]
    return {agent: np.array([frames[f] for f in sorted(frames)]) for agent, frames in points.items()}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws one test scene of each task and errors by future frame, as `euclidean.motion.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {stem: result for stem, result in found.items() if "eqmotion" in result["metrics"]}
    if not shown:
        return
    plt.rcParams["svg.hashsalt"] = "equivariant_jax"
    figure, axes = plt.subplots(2, len(shown), figsize=(3.2 * len(shown), 6), squeeze=False)
    for column, result in enumerate(shown.values()):
        metrics, scene, errors = result["metrics"], axes[0, column], axes[1, column]
        table = metrics["eqmotion"]
        past, future, predicted = (_path(table, kind) for kind in ("past", "future", "predicted"))
        for index, agent in enumerate(sorted(past)):
            colour = f"C{index}"
            whole = np.concatenate([past[agent], future[agent]])
            scene.plot(*whole.T, color=colour, alpha=0.35)
            scene.plot(*past[agent].T, color=colour, label="past" if not index else None)
            scene.plot(*predicted[agent].T, "x", color=colour, markersize=4, label="predicted" if not index else None)
        scene.set(title=_kind(table), aspect="equal", xticks=[], yticks=[])
        scene.legend(frameon=False, fontsize=7)
        for variant, own in metrics.items():
            _curve(errors, own, "frame/", variant)
        _curve(errors, table, "cv_frame/", "constant velocity")
        errors.set(xlabel="future frame", yscale="log", ylabel="" if column else "mean error")
        errors.legend(frameon=False, fontsize=7)
        errors.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "euclidean.motion.svg", metadata={"Date": None})
    plt.close(figure)


def _curve(axis: Any, table: Mapping[str, Any], prefix: str, label: str) -> None:
    points = sorted((int(name[len(prefix) :]), m["values"]) for name, m in table.items() if name.startswith(prefix))
    at = [x for x, _ in points]
    axis.plot(at, [np.mean(v) for _, v in points], label=label, color="grey" if prefix == "cv_frame/" else None)
    axis.fill_between(at, [min(v) for _, v in points], [max(v) for _, v in points], alpha=0.15)
