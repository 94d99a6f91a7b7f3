r"""Trains an equivariant interatomic potential on molecules: `euclidean.molecules`.

The network is `equivariant_jax.euclidean.interatomic` (MACE's architecture with Gaunt products on a quadrature grid).
Beside it, with the same code, data, steps and learning-rate schedule: the same network with `lmax = 0` and at least as
many parameters (`invariant`), a linear pair potential by ridge regression (`pair`), and the same network with
Clebsch-Gordan products over neighbours (the paper's MACE-Gaunt; `mace_gaunt` with one weight for all paths of an order,
`mace_gaunt_paths` with a weight for each path) or throughout (`mace_cg`, MACE's own).

Published numbers for acetylacetone (`--dataset acac`; train on 300 K, RMSE of energy in meV and of forces in
meV/angstrom, 300 K | 600 K): MACE 0.9, 5.1 | 4.6, 22.4; NequIP 0.81, 5.90 | 6.04, 27.8; BOTNet 0.89, 6.3 | 6.2, 29.8
(Batatia et al. 2022, arXiv:2206.07697, AcAc table, quoted from memory and not re-read here).

Commands: `python -m experiments euclidean.molecules cpu --seeds 0 1 2`; Gaunt against Clebsch-Gordan products:
`python -m experiments euclidean.molecules acac_cg --seeds 0 1 2 --variants gaunt mace_gaunt mace_gaunt_paths mace_cg`.
Numbers reached, hardware and time stand in `experiments/results`, written by the run.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from equivariant_jax import training
from equivariant_jax.euclidean.interatomic import PotentialConfig, potential_init
from equivariant_jax.euclidean.pair_potential import fit_pair_potential
from experiments.euclidean.graph_training import train_on_graphs
from experiments.euclidean.molecular_models import (
    errors,
    export_potential,
    make_loss,
    num_parameters,
    padded,
    predict,
    save_potential,
)
from experiments.euclidean.molecular_report import CARD, PUBLISHED, claims, plots, tables
from experiments.euclidean.molecular_sets import MolecularSet, load_molecules
from experiments.runs import make_folder, write_metrics

__all__ = ["CARD", "PRESETS", "PUBLISHED", "VARIANTS", "Config", "claims", "plots", "run", "tables"]

# Run by the same code with the same data, steps and schedule. The first takes the products that the configuration
# names: Gaunt everywhere, but in the preset `paper`.
VARIANTS: dict[str, dict[str, Any]] = {
    "gaunt": {},
    "invariant": {"model": "invariant"},
    "pair": {"model": "pair"},
    "mace_gaunt": {"convolution": "cg", "contraction": "gaunt"},
    "mace_gaunt_paths": {"convolution": "cg", "contraction": "gaunt_paths"},
    "mace_cg": {"convolution": "cg", "contraction": "cg"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      dataset: "embedded" (2-aminoethanol, in the package), "acac", "3bpa", "rmd17" (under EQUIVARIANT_JAX_DATA), or the
        path of an extended XYZ file with energies and forces.
      train_size: use only so many training structures; None for all.
      validation_size: structures held out for validation.
      model: "gaunt" (equivariant), "invariant" (the same network with lmax = 0, widened to at least as many
        parameters) or "pair" (ridge regression).
      convolution: products over neighbours, "gaunt" or "cg" (Clebsch-Gordan).
      contraction: many-body products, "gaunt", "gaunt_paths" (a weight for each set of degrees) or "cg".
      r_max: cut-off in angstrom.
      lmax: largest degree of edges and neighbourhoods.
      hidden_lmax: largest degree that atoms pass on.
      channels: features per coefficient.
      layers: rounds of message passing.
      correlation: highest power of a neighbourhood.
      num_bessel: radial basis functions.
      radial_hidden: hidden widths of the radial network.
      readout_hidden: hidden width of the last read-out.
      steps: optimiser steps.
      batch_size: structures per step.
      optimizer: "adam" or "amsgrad".
      learning_rate: peak of the warm-up and cosine schedule.
      warmup_steps: steps of the linear rise.
      clip_norm: largest norm of the gradient.
      ema_decay: decay of the averaged parameters that are evaluated.
      loss: "mse", or "huber" (quadratic below `huber_delta`, linear above).
      huber_delta: in units of the scaled error, eV per atom and eV/angstrom.
      energy_weight: factor of the energy term (squared error per atom).
      forces_weight: factor of the force term (squared error per component).
      eval_every: steps between validations.
      checkpoint_every: steps between checkpoints.
      seed: of parameters, order of batches and hold-out.
      resume: continue from the newest checkpoint in the working directory.
    """

    dataset: str = "embedded"
    train_size: int | None = None
    validation_size: int = 50
    model: Literal["gaunt", "invariant", "pair"] = "gaunt"
    convolution: Literal["gaunt", "cg"] = "gaunt"
    contraction: Literal["gaunt", "gaunt_paths", "cg"] = "gaunt"
    r_max: float = 4.0
    lmax: int = 3
    hidden_lmax: int = 1
    channels: int = 32
    layers: int = 2
    correlation: int = 3
    num_bessel: int = 8
    radial_hidden: tuple[int, ...] = (64,)
    readout_hidden: int = 16
    steps: int = 4000
    batch_size: int = 5
    optimizer: Literal["adam", "amsgrad"] = "adam"
    learning_rate: float = 1e-2
    warmup_steps: int = 50
    clip_norm: float = 100.0
    ema_decay: float = 0.99
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = 0.05
    energy_weight: float = 10.0
    forces_weight: float = 1.0
    eval_every: int = 500
    checkpoint_every: int = 1000
    seed: int = 0
    resume: bool = False


PRESETS: dict[str, Config] = {
    "ci": Config(
        train_size=200, validation_size=20, lmax=2, channels=16, radial_hidden=(32,), steps=400, batch_size=4,
        warmup_steps=20, eval_every=200, ema_decay=0.97,
    ),
    "cpu": Config(),
    # Acetylacetone by the published protocol, sized for an hour or two of two CPU cores.
    "acac": Config(
        dataset="acac", r_max=5.0, channels=64, steps=60_000, ema_decay=0.999, eval_every=2000, checkpoint_every=2000,
    ),
    # Gaunt against Clebsch-Gordan products at a width that three seeds of each carry on one core in an hour.
    "acac_cg": Config(
        dataset="acac", r_max=5.0, channels=16, steps=6000, eval_every=1500, checkpoint_every=3000,
    ),
    # MACE-Gaunt's settings for 3BPA (run_3bpa.sh of the official code): two layers, 256 channels of degrees 0-2, and
    # Clebsch-Gordan products over neighbours.
    "paper": Config(
        dataset="3bpa", convolution="cg", contraction="gaunt", r_max=5.0, lmax=3, hidden_lmax=2, channels=256,
        radial_hidden=(64, 64, 64), batch_size=5, steps=180_000, optimizer="amsgrad", learning_rate=1e-2,
        ema_decay=0.99, clip_norm=10.0, energy_weight=1.0, forces_weight=1000.0, eval_every=900, checkpoint_every=9000,
    ),
}  # fmt: skip


def potential_config(config: Config, data: MolecularSet) -> PotentialConfig:
    """Makes the network's configuration from the run's and the training data's statistics."""
    equivariant = PotentialConfig(
        species=data.species,
        r_max=config.r_max,
        lmax=config.lmax,
        hidden_lmax=config.hidden_lmax,
        channels=config.channels,
        layers=config.layers,
        correlation=config.correlation,
        num_bessel=config.num_bessel,
        radial_hidden=config.radial_hidden,
        readout_hidden=config.readout_hidden,
        max_neighbours=data.max_neighbours,
        average_neighbours=data.average_neighbours,
        energy_scale=data.energy_scale,
        energy_shift=data.energy_shift,
        reference_energies=data.reference_energies,
        convolution=config.convolution,
        contraction=config.contraction,
    )
    if config.model != "invariant":
        return equivariant
    target, channels = num_parameters(equivariant), config.channels
    while True:
        twin = dataclasses.replace(equivariant, lmax=0, hidden_lmax=0, channels=channels)
        if num_parameters(twin) >= target:
            return twin
        channels += 4


def _train(config: Config, data: MolecularSet, workdir: Path) -> dict[str, float]:
    potential = potential_config(config, data)
    params, metrics, wide = train_on_graphs(
        lambda key: potential_init(key, potential),
        make_loss(potential, loss=config.loss, huber_delta=config.huber_delta),
        {"energy_loss": config.energy_weight, "forces_loss": config.forces_weight},
        training.OptimizerConfig(
            name=config.optimizer,
            learning_rate=config.learning_rate,
            schedule="warmup_cosine",
            warmup_steps=min(config.warmup_steps, max(config.steps - 1, 0)),
            total_steps=config.steps,
            end_factor=1e-3,
            clip_norm=config.clip_norm,
        ),
        config,
        data,
        workdir,
        monitor="forces_rmse",
        experiment={**dataclasses.asdict(config), "potential": dataclasses.asdict(potential)},
        slack=2.0,
        validation_batch=16,
    )
    parity = {}
    for name, graphs in {"validation": data.validation, **data.tests}.items():
        predictions = predict(params, potential, graphs)
        metrics |= errors(predictions, graphs, name)
        if "forces" in graphs[0].nodes:
            parity[name] = (
                np.concatenate([g.nodes["forces"] for g in graphs]), np.concatenate([p[1] for p in predictions])
            )  # fmt: skip
    if jax.process_index() != 0:
        return metrics
    from experiments.euclidean.molecular_plots import plot_learning_curve, plot_parity

    plot_learning_curve(workdir / "metrics.jsonl", workdir / "learning_curve.png")
    plot_parity(parity, workdir / "force_parity.png")
    save_potential(params, potential, workdir / "potential.npz")
    export_potential(params, potential, padded(data.validation[:1], wide)[0], workdir / "potential.jaxexport")
    return metrics


def _fit_pair(config: Config, data: MolecularSet) -> dict[str, float]:
    model = fit_pair_potential(data.train, len(data.species), r_max=config.r_max)
    metrics = {"parameters": float(model.coefficients.size)}
    for name, graphs in {"validation": data.validation, **data.tests}.items():
        metrics |= errors([model.predict(graph) for graph in graphs], graphs, name)
    return metrics


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one model, measures it on all test splits, and writes everything that a run leaves behind.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON), learning curve and parity plot (PNG), checkpoints, the
        exported model, and the averaged parameters for `load_potential`.

    Returns:
      Flat dict of floats: `SPLIT/energy_rmse_meV`, `SPLIT/forces_mae_meV_A`, and so on.
    """
    workdir = make_folder(workdir)
    data = load_molecules(
        config.dataset,
        config.r_max,
        train_size=config.train_size,
        validation_size=config.validation_size,
        seed=config.seed,
    )
    metrics = _fit_pair(config, data) if config.model == "pair" else _train(config, data, workdir)
    return write_metrics(workdir, metrics)
