"""What README shows of `euclidean.molecules`: a table beside the published numbers, and a plot of the three models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "plots", "tables"]

# RMSE of energy in meV and of forces in meV/angstrom on acetylacetone, trained on 300 K (Batatia et al. 2022,
# arXiv:2206.07697, table of the AcAc benchmark; quoted from memory, since the table could not be opened).
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "acac": {
        "MACE": {"test_300K": (0.9, 5.1), "test_600K": (4.6, 22.4)},
        "NequIP": {"test_300K": (0.81, 5.90), "test_600K": (6.04, 27.8)},
        "BOTNet": {"test_300K": (0.89, 6.3), "test_600K": (6.2, 29.8)},
    }
}
_SPLITS = ("test_300K", "test_600K", "test_dihedral", "test_h_transfer", "test")


def _cell(table: Mapping[str, Any], name: str) -> str:
    if name not in table:
        return "-"
    value = table[name]
    spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
    return f"{value['mean']:.3g}{spread}"


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    lines = [
        "| data | model | split | energy MAE / RMSE (meV) | force MAE / RMSE (meV/Å) | seeds | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in found.values():
        dataset = result["config"]["dataset"]
        for variant, table in result["metrics"].items():
            seconds = table.get("train_seconds", {}).get("mean")
            for split in _SPLITS:
                if f"{split}/energy_mae_meV" not in table:
                    continue
                pairs = [
                    " / ".join(_cell(table, f"{split}/{quantity}_{kind}_{unit}") for kind in ("mae", "rmse"))
                    for quantity, unit in (("energy", "meV"), ("forces", "meV_A"))
                ]
                time = "-" if seconds is None else f"{seconds / 60:.0f} min, {result['device']['cpu_cores']} cores"
                cells = (dataset, variant, split, *pairs, str(len(result["seeds"])), time)
                lines.append("| " + " | ".join(cells) + " |")
        for model, splits in PUBLISHED.get(dataset, {}).items():
            for split, (energy, forces) in splits.items():
                name = f"{model} (published, from memory)"
                cells = (dataset, name, split, f"- / {energy}", f"- / {forces}", "-", "-")
                lines.append("| " + " | ".join(cells) + " |")
    return {"euclidean.molecules": "\n".join(lines)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws the force error of each model on each split of the embedded set, as `euclidean.molecules.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = found.get("euclidean.molecules.cpu")
    if result is None:
        return
    plt.rcParams["svg.hashsalt"] = "equivariant_jax"  # the same picture from the same numbers, byte for byte
    figure, axis = plt.subplots(figsize=(6, 2.8))
    splits = ("test_300K", "test_600K")
    for i, (variant, table) in enumerate(result["metrics"].items()):
        values = [table[f"{split}/forces_mae_meV_A"] for split in splits]
        places = [j + 0.27 * (i - 1) for j in range(len(splits))]
        bars = axis.bar(
            places, [v["mean"] for v in values], 0.25, yerr=[v["std"] or 0.0 for v in values], label=variant
        )
        axis.bar_label(bars, fmt="%.0f", padding=2)
    axis.set(ylabel="force error (meV/Å)", title="2-aminoethanol: mean absolute error, three seeds")
    axis.set_xticks(range(len(splits)), splits)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "euclidean.molecules.svg", metadata={"Date": None})
    plt.close(figure)
