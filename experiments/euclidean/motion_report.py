"""What is reported of `euclidean.motion`: claims, a table, one scene of each task and errors by future frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import Claims
from experiments.pictures import draw_curve, picture
from experiments.results import seed_curve, seed_values
from experiments.tables import cell, mean_and_spread, runs_table

__all__ = ["CARD", "POINTS", "PUBLISHED", "TASKS", "claims", "plots", "tables"]

CARD = "eqmotion"
POINTS = (2, 3, 4, 5, 6)

# minADE20, minFDE20 in m, from the repository.
PUBLISHED = {"eth": (0.40, 0.61), "hotel": (0.12, 0.18), "univ": (0.23, 0.43), "zara1": (0.18, 0.32),
             "zara2": (0.13, 0.23)}  # fmt: skip
TASKS = ("springs", "charged", "molecule", "human", *PUBLISHED)
"""What the metric `task` counts: a result's metrics are all that claims see."""

_ERRORS = ("ade", "fde", "rotated_ade", "cv_ade", "cv_fde")
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
    claim = Claims(CARD)
    metrics = {variant: table for variant, table in metrics.items() if min(table["steps"]["values"]) >= 500}

    def values(variant: str, name: str) -> np.ndarray:
        return seed_values(metrics[variant], name)

    ours = metrics.get("eqmotion")
    if ours is None:
        return claim.found
    kind = _kind(ours)
    ratio = (values("eqmotion", "cv_ade") / values("eqmotion", "ade")).min()
    if kind == "springs":
        accuracy = values("eqmotion", "edge_accuracy").min()
        claim.at_least(2, "springs: edge recovery without labels, worst seed", 0.9, accuracy)
        minutes = values("eqmotion", "cpu_seconds").max() / 60
        claim.at_most(2, "springs: CPU minutes of training, slowest seed", 20.0, minutes)
        claim.at_most(2, "springs: training trajectories", 1000, values("eqmotion", "train_scenes").max())
        if "no_interaction" in metrics:
            other = values("no_interaction", "edge_accuracy").max()
            claim.at_most(2, "springs: edge recovery without interaction, best seed", 0.6, other)
    if kind == "charged":
        claim.at_least(3, "charges: ADE of constant velocity over ours, worst seed", 2.0, ratio)
        for variant, name in (("egnn", "EGNN"), ("egnn_wide", "EGNN of width 64")):
            if variant in metrics:
                worse = values(variant, "ade").min() / values("eqmotion", "ade").max()
                size = values(variant, "parameters")[0] / values("eqmotion", "parameters")[0]
                why = f"the best seed against the worst; it has {size:.2f} times as many parameters"
                statement = f"charges: ADE of {name}, best seed, over ours, worst seed"
                claim.at_least(3, statement, 1.0, worse, why=why if variant == "egnn_wide" else "")
    if kind in ("springs", "charged", "molecule") and "mlp" in metrics:
        gap = values("eqmotion", "rotation_gap").max()
        statement = f"{kind}, trained on one orientation: change of ADE under random rotation, worst seed"
        claim.at_most(4, statement, 1e-5, gap)
        grown = (values("mlp", "rotated_ade") / values("mlp", "ade")).min()
        statement = f"{kind}: ADE of the network without symmetry under random rotation over its ADE, best seed"
        inside, outside = values("mlp", "train_distance").mean(), values("mlp", "ade").mean()
        why = f"it overfits in the orientation that it knows: {inside:.2g} in training, {outside:.2g} in the test"
        claim.at_least(4, statement, 1.5, grown, why=why if kind == "springs" else "")
    if kind in PEDESTRIAN_BARS:
        ade = values("eqmotion", "ade").mean()
        statement = f"{kind}: minADE20 with the choice on validation, mean over seeds (constant velocity 1 head: "
        statement += f"{CONSTANT_VELOCITY[kind]})"
        claim.at_most(5, statement, PEDESTRIAN_BARS[kind], ade)
    if kind == "molecule":
        claim.at_most(6, "xTB ethanol: ADE over that of constant velocity, worst seed", 0.5, 1 / ratio)
    return claim.found


def _kind(table: Mapping[str, Any]) -> str:
    """Which task a run was of."""
    return TASKS[int(table["task"]["values"][0])]


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = (
        "task", "model", "parameters", "ADE", "FDE", "constant velocity", "ADE, rotated", "pairs right %", "published",
    )  # fmt: skip
    forms = (".3g", ".1g")

    def cells(result, variant, table):
        kind, seed = _kind(table), result["config"]["data_seed"]
        return (
            f"{kind}, simulator's seed {seed}" if seed else kind, variant, f"{table['parameters']['mean']:.0f}",
            cell(table, "ade", *forms), cell(table, "fde", *forms),
            f"{table['cv_ade']['mean']:.3g}/{table['cv_fde']['mean']:.3g}", cell(table, "rotated_ade", *forms),
            cell(table, "edge_accuracy", *forms, factor=100),
            "/".join(map(str, PUBLISHED[kind])) if kind in PUBLISHED and variant == "eqmotion" else "-",
        )  # fmt: skip

    text = runs_table(found, heads, cells)
    scenes = _scenes(found)
    if scenes.keys() == PUBLISHED.keys() and len({len(table["ade"]["values"]) for table in scenes.values()}) == 1:
        mean = {name: np.mean([seed_values(scenes[s], name) for s in PUBLISHED], axis=0) for name in _ERRORS}
        ade, fde, rotated = (mean_and_spread(mean[name], *forms) for name in ("ade", "fde", "rotated_ade"))
        before = f"{mean['cv_ade'].mean():.3g}/{mean['cv_fde'].mean():.3g}"
        minutes = sum(seed_values(table, "train_seconds").mean() for table in scenes.values()) / 60
        row = ("mean of five scenes", "eqmotion", "-", ade, fde, before, rotated, "-", "0.21/0.35")
        text += "\n| " + " | ".join((*row, str(len(mean["ade"])), f"{minutes:.1f} min")) + " |"
    return {"euclidean.motion": text}


def _scenes(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scene -> table of EqMotion on the people in it."""
    tables = (result["metrics"]["eqmotion"] for result in found.values() if "eqmotion" in result["metrics"])
    return {_kind(table): table for table in tables if _kind(table) in PUBLISHED}


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
    shown: dict[str, Any] = {}  # of each task the first result; of the five scenes with people, two
    for result in found.values():
        if "eqmotion" in result["metrics"]:
            shown.setdefault(_kind(result["metrics"]["eqmotion"]), result)
    shown = {kind: result for kind, result in shown.items() if kind not in ("eth", "univ", "zara2")}
    if not shown:
        return
    size = (3.2 * len(shown), 6)
    with picture(folder / "euclidean.motion.svg", size, rows=2, columns=len(shown), box=True, squeeze=False) as axes:
        for column, result in enumerate(shown.values()):
            metrics, scene, errors = result["metrics"], axes[0, column], axes[1, column]
            table = metrics["eqmotion"]
            past, future, predicted = (_path(table, kind) for kind in ("past", "future", "predicted"))
            for index, agent in enumerate(sorted(past)):
                colour, labels = f"C{index}", (None, None) if index else ("past", "predicted")
                whole = np.concatenate([past[agent], future[agent]])
                scene.plot(*whole.T, color=colour, alpha=0.35)
                scene.plot(*past[agent].T, color=colour, label=labels[0])
                scene.plot(*predicted[agent].T, "x", color=colour, markersize=4, label=labels[1])
            # A square, and no smaller than constant velocity goes wrong, around people who stand still.
            everything = np.concatenate([p for paths in (past, future, predicted) for p in paths.values()])
            low, high = everything.min(axis=0), everything.max(axis=0)
            half = 0.55 * max((high - low).max(), table["cv_fde"]["mean"])
            limits = [(c - half, c + half) for c in (low + high) / 2]
            scene.set(title=_kind(table), aspect="equal", xticks=[], yticks=[], xlim=limits[0], ylim=limits[1])
            scene.legend(frameon=False, fontsize=7)
            for variant, own in metrics.items():
                draw_curve(errors, *seed_curve(own, "frame/"), label=variant)
            draw_curve(errors, *seed_curve(table, "cv_frame/"), label="constant velocity", color="grey")
            errors.set(xlabel="future frame", yscale="log", ylabel="" if column else "mean error")
            errors.legend(frameon=False, fontsize=7)
            errors.spines[["top", "right"]].set_visible(False)
