"""Plots of a training run: learning curve and parity of forces."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from equivariant_jax.training import read_rows
from experiments.pictures import picture

__all__ = ["plot_learning_curve", "plot_parity"]


def plot_learning_curve(rows: str | Path, path: str | Path) -> None:
    """Plots the force error of training batches and of the validation set over steps.

    Args:
      rows: `metrics.jsonl` of the run.
      path: PNG to write.
    """
    with picture(path, (4.5, 4), box=True, layout="constrained") as axis:
        for split, label in (("train", "training batches"), ("eval", "validation (averaged parameters)")):
            curve = [(row["step"], 1e3 * row["forces_rmse"]) for row in read_rows(rows) if row["split"] == split]
            if curve:
                axis.plot(*np.array(curve).T, label=label, marker="." if split == "eval" else None)
        axis.set(xlabel="step", ylabel="force RMSE (meV/Å)", xscale="log", yscale="log")
        axis.legend()


def plot_parity(forces: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path) -> None:
    """Plots predicted against reference force components.

    Args:
      forces: split -> (reference, prediction), each `[n, 3]` in eV/angstrom.
      path: PNG to write.
    """
    columns = max(len(forces), 1)
    with picture(path, (4.5 * columns, 4), columns=columns, box=True, squeeze=False, layout="constrained") as axes:
        for axis, (name, (reference, prediction)) in zip(axes[0], forces.items(), strict=False):
            low, high = float(np.min(reference)), float(np.max(reference))
            axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
            axis.plot(reference.reshape(-1), prediction.reshape(-1), ".", markersize=1.5, rasterized=True)
            error = 1e3 * np.sqrt(np.mean((reference - prediction) ** 2))
            axis.set(title=f"{name}: RMSE {error:.1f} meV/Å", xlabel="reference (eV/Å)", ylabel="prediction (eV/Å)")
