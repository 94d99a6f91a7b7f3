r"""Estimates the normals of surfaces by networks averaged over frames: `frames.normals`.

512 points of a surface in, a direction for each out; the loss is the mean of `1 - (n . n')^2`, n and n' unit vectors,
which knows no orientation. Surfaces are random solids (`data.shapes`), or those of ABC (`--abc` with `--abc-train` and
`--abc-test`, files of names). PointNet and DGCNN at reduced width, alone and averaged over E(3) frames (`fa_`): one
random element for each cloud in training, all eight in the test, averaged as axes, since a network that is trained
without orientation gives each element a sign of its own, and vectors would cancel. Training poses are those of the
data, or random rotations and reflections (`_rotated`); each run is tested on the data's poses (`test_loss`) and on
random ones (`test_loss_rotated`), which gives the published settings I/I, I/SO(3) and SO(3)/SO(3).

Published on ABC, SO(3)/SO(3), from memory: FA-DGCNN 0.071, DGCNN 0.121, FA-PointNet 0.161, PointNet 0.258. Random
solids are another task: their numbers compare with each other only. Preset `paper` has the published sizes and needs
ABC and an accelerator.

Command: `python -m experiments frames.normals cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run; each run draws some clouds with their estimates as `normals.svg` in
its working directory.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.linalg import safe_eigh, safe_normalize
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.data import ArraySource, make_pipeline
from equivariant_jax.frames import (
    DGCNNConfig,
    PointNetConfig,
    dgcnn_apply,
    dgcnn_init,
    pca_frames,
    pointnet_apply,
    pointnet_init,
)
from experiments.claims import Claims
from experiments.frames.normals_sets import abc_clouds, abc_names, solids
from experiments.frames.poses import turned
from experiments.pictures import picture
from experiments.results import seed_values
from experiments.runs import device_mesh, make_folder, train, whole_set, write_metrics
from experiments.tables import cell, runs_table

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "estimate", "plots", "run", "tables"]

CARD = "frame_averaging"

VARIANTS: dict[str, dict[str, Any]] = {
    "fa_pointnet": {},
    "pointnet": {"frames": False},
    "pointnet_rotated": {"frames": False, "rotated": True},
    "fa_dgcnn": {"model": "dgcnn"},
    "dgcnn": {"model": "dgcnn", "frames": False},
    "dgcnn_rotated": {"model": "dgcnn", "frames": False, "rotated": True},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      model: "pointnet" or "dgcnn".
      frames: whether the network is averaged over frames.
      rotated: whether training clouds are turned and reflected at random.
      small: whether the network has a reduced width, rather than the published.
      points: of each cloud.
      train_size: clouds for training.
      test_size: clouds of the test.
      scales: least and largest factor by which training clouds are scaled at random.
      abc: directory of ABC's meshes; empty for random solids.
      abc_train: file of names for training.
      abc_test: file of names for the test.
      steps: optimiser steps.
      batch_size: clouds per step.
      learning_rate: of Adam; halved four times over the run.
      picture: whether some clouds are drawn.
      data_seed: of clouds and test poses.
      seed: of parameters, frames, poses and batches.
    """

    model: Literal["pointnet", "dgcnn"] = "pointnet"
    frames: bool = True
    rotated: bool = False
    small: bool = True
    points: int = 512
    train_size: int = 1000
    test_size: int = 100
    scales: tuple[float, float] = (0.8, 1.25)
    abc: str = ""
    abc_train: str = ""
    abc_test: str = ""
    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 2e-3
    picture: bool = True
    data_seed: int = 0
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(points=64, train_size=32, test_size=16, steps=4, batch_size=8, picture=False),
    "cpu": Config(),
    # 500 epochs of ABC's 10,000 clouds.
    "paper": Config(
        small=False, train_size=9000, test_size=1000, abc="abc", abc_train="train.json", abc_test="test.json",
        steps=156_000, batch_size=32, learning_rate=1e-3,
    ),
}  # fmt: skip


def network_config(config: Config) -> PointNetConfig | DGCNNConfig:
    """Makes the network's static description."""
    if config.model == "pointnet":
        small = PointNetConfig(widths=(32, 64, 64, 128, 256), head=(128, 128, 64))
        return small if config.small else PointNetConfig()
    small = DGCNNConfig(neighbours=16, blocks=((32, 32), (32, 32)), width=128, head=(64, 64))
    return small if config.small else DGCNNConfig()


def estimate(
    params: PyTree,
    statistics: PyTree,
    points: Array,
    config: Config,
    *,
    training: bool = False,
    key: PRNGKey | None = None,
) -> tuple[Array, PyTree]:
    """Estimates normals, up to sign.

    Args:
      params: of the network.
      statistics: of its normalisations.
      points: shape `[batch, n, 3]`.
      config: the run.
      training: whether statistics are those of the batch.
      key: draws one element of each cloud's frame, and dropout; None averages over all elements.

    Returns:
      Unit vectors `[batch, n, 3]`, and the statistics. Over all elements it is the axis nearest to their estimates, the
      first eigenvector of the mean of `n n^T`, which moves with the cloud as they do.
    """
    network = network_config(config)
    apply: Any = pointnet_apply
    if config.model == "dgcnn":
        apply = functools.partial(dgcnn_apply, key=None if key is None else jax.random.fold_in(key, 1))
    if not config.frames:
        out, statistics = apply(params, statistics, points, network, training=training)
        return safe_normalize(out), statistics
    frames = pca_frames(points, stop_gradient=True)
    frames = frames if key is None else frames.pick(key)
    out, statistics = apply(params, statistics, frames.pull("position", points), network, training=training)
    found = safe_normalize(frames.push("vector", out))
    if found.shape[1] == 1:
        return found[:, 0], statistics
    # Each element's estimate has a sign of its own, which the loss does not see: vectors would cancel.
    spread = jnp.einsum("bfni,bfnj->bnij", found, found, precision=jax.lax.Precision.HIGHEST)
    return safe_eigh(spread)[1][..., -1], statistics


def _loss(config: Config):
    def loss_fn(params, batch, *, key, model_state):
        x, n = batch["points"], batch["normals"]
        chosen = None
        if key is not None:
            chosen, key_turn, key_scale = jax.random.split(key, 3)
            x, n = turned(key_turn, x, n) if config.rotated else (x, n)
            low, high = config.scales
            x = x * jax.random.uniform(key_scale, (x.shape[0], 1, 1), x.dtype, low, high)
        found, statistics = estimate(params, model_state, x, config, training=key is not None, key=chosen)
        cosine = jnp.abs(jnp.sum(found * n, axis=-1))
        degrees = jnp.degrees(jnp.arccos(jnp.clip(jax.lax.stop_gradient(cosine), 0, 1)))
        mask = batch.get("mask")
        return training.LossOutput(
            {"error": training.Mean.of(1 - cosine**2, mask)},
            {"degrees": training.Mean.of(degrees, mask)},
            statistics if key is not None else None,
        )

    return loss_fn


@functools.cache
def _clouds(config: Config) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for offset, (split, number, file) in enumerate(
        (("train", config.train_size, config.abc_train), ("test", config.test_size, config.abc_test))
    ):
        seed = 2 * config.data_seed + offset
        if config.abc:
            points, normals = abc_clouds(config.abc, abc_names(file)[:number], config.points, seed)
        else:
            points, normals = solids(number, config.points, seed)
        found[split] = {"points": points, "normals": normals}
    test = [jnp.asarray(found["test"][name]) for name in ("points", "normals")]
    moved = jax.jit(turned)(jax.random.key(config.data_seed), *test)
    found["test_rotated"] = dict(zip(("points", "normals"), map(np.asarray, moved), strict=True))
    return found


def _data(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Clouds of the run, made once for all variants and seeds."""
    names = ("points", "train_size", "test_size", "abc", "abc_train", "abc_test", "data_seed")
    return _clouds(Config(**{name: getattr(config, name) for name in names}))


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one network and measures it in the poses of the data and in random ones.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON) and the picture.

    Returns:
      Flat dict of floats: `test_loss` and `test_degrees`, the same `_rotated`, and so on.
    """
    workdir = make_folder(workdir)
    data, network = _data(config), network_config(config)
    init: Any = pointnet_init if config.model == "pointnet" else dgcnn_init
    fifths = tuple(config.steps * k // 5 for k in range(1, 5))
    optimizer = training.make_optimizer(
        training.OptimizerConfig(learning_rate=config.learning_rate, schedule="piecewise", boundaries=fifths)
    )
    key_params, key_state = jax.random.split(jax.random.key(config.seed))

    loss_fn = _loss(config)
    result, trained, *_ = train(
        lambda key: init(key, network),
        loss_fn,
        optimizer,
        make_pipeline(ArraySource(data["train"]), batch_size=config.batch_size, seed=config.seed, prefetch=2),
        keys=(key_params, key_state),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(log_every=min(50, config.steps)),
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    metrics = {"train_loss": float(result.train.get("error", np.nan))}
    metrics |= {name: trained[name] for name in ("parameters", "train_seconds", "skipped_updates")}
    measure = training.make_eval_step(loss_fn, mesh=device_mesh())
    for split in ("test", "test_rotated"):
        whole = whole_set(ArraySource(data[split]), config.batch_size)
        measured = training.evaluator(measure, whole)(result.state)
        name = split.removeprefix("test")
        metrics |= {f"test_loss{name}": measured["error"], f"test_degrees{name}": measured["degrees"]}
    if config.picture and jax.process_index() == 0:
        _draw(config, result.state, data["test_rotated"], workdir / "normals.svg")
    return write_metrics(workdir, metrics)


def _draw(config: Config, state: training.TrainState, clouds: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws five turned clouds, coloured by true and by estimated normals, and their angle."""
    points = clouds["points"][:5]
    run = jax.jit(lambda params, statistics, x: estimate(params, statistics, x, config)[0])
    found = np.asarray(run(state.params, state.model_state, points))
    with picture(path, (2 * len(points), 4), rows=2, columns=len(points), squeeze=False) as axes:
        for column, (x, true, near) in enumerate(zip(points, clouds["normals"], found, strict=False)):
            order = np.argsort(x[:, 2])
            angle = np.degrees(np.arccos(np.clip(np.abs(np.sum(true * near, axis=-1)), 0, 1))).mean()
            for row, (normals, title) in enumerate(((true, "normals"), (near, f"estimate, {angle:.0f}° off"))):
                axis = axes[row][column]
                axis.scatter(x[order, 0], x[order, 1], c=np.abs(normals[order]).clip(0, 1), s=4)
                axis.set_title(title, fontsize=8)
                axis.set_aspect("equal")
                axis.axis("off")


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; ratios are of means over seeds.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim, point = Claims(CARD), "table: normals"
    for model in ("pointnet", "dgcnn"):
        ours = metrics.get(f"fa_{model}")
        if ours is None:
            continue
        pairs = zip(ours["test_loss"]["values"], ours["test_loss_rotated"]["values"], strict=True)
        value = max(abs(b - a) / a for a, b in pairs)
        claim.at_most(point, f"fa_{model}: relative change of the test loss when all clouds are turned", 1e-2, value)
        for other, name in ((model, "I/SO(3)"), (f"{model}_rotated", "SO(3)/SO(3)")):
            if other in metrics:
                value = ours["test_loss_rotated"]["mean"] / metrics[other]["test_loss_rotated"]["mean"]
                text = f"test loss on turned clouds, fa_{model} trained in one pose over {other} ({name})"
                claim.at_most(point, text, 1.0, value)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs, mean and sample standard deviation over seeds.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("model", "1 - cos², poses of the data", "random poses", "degrees, poses of the data", "random poses")

    def cells(_, variant, table):
        losses = (cell(table, name, ".3f") for name in ("test_loss", "test_loss_rotated"))
        degrees = (cell(table, name, ".1f") for name in ("test_degrees", "test_degrees_rotated"))
        return variant, *losses, *degrees

    return {"frames.normals": runs_table(found, heads, cells)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws the losses of all variants in both kinds of poses, mean and single seeds, as `frames.normals.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    result = found.get("frames.normals.cpu")
    if result is None:
        return
    names = list(result["metrics"])
    kinds = (("test_loss", "poses of the data"), ("test_loss_rotated", "random poses"))
    with picture(folder / "frames.normals.svg", (6, 2.8)) as axis:
        for shift, (metric, label) in enumerate(kinds):
            values = [seed_values(result["metrics"][name], metric) for name in names]
            at = np.arange(len(names)) + 0.4 * (shift - 0.5)
            axis.bar(at, [v.mean() for v in values], width=0.36, label=label)
            for x, v in zip(at, values, strict=True):
                axis.scatter([x] * len(v), v, color="black", s=5, zorder=3)
        axis.set_xticks(range(len(names)), names, fontsize=7)
        axis.set_ylabel("1 - cos²")
        axis.legend(frameon=False, fontsize=8)
