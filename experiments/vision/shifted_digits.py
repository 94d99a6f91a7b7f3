r"""Learns centred digits and labels them under all shifts of the torus: `vision.shifted_digits`.

Published (ImageNet, Ding et al. 2023): 100 % consistency of ViT and Twins with polyphase anchoring under circular
shifts; Twins alone falls from 80.57 to 62.40 % when images are shifted by a few pixels. ImageNet itself must be fetched
by the user and wants accelerators.

Preset `cpu`: MNIST digits in the centre of a torus of 32 x 32 pixels, never shifted in training; patches of 4, width
64, 4 blocks, 3 epochs of the 50,000 first training digits. The test shows each digit at rest and under circular shifts,
drawn for each digit anew, and, for the picture, along the diagonal pixel by pixel. "filled" shows them moved by up to
`fill_range` pixels with zeros behind, which is no shift of the torus: nothing is promised there. All variants have one
code, data and budget; `plain` and `plain_twins` are the ordinary networks of the same size.

Command: `python -m experiments vision.shifted_digits cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and
time stand in `experiments/results`, written by the run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.typing import Array
from equivariant_jax.data.images import mnist, small_digits
from equivariant_jax.vision import (
    PyramidConfig,
    ViTConfig,
    ordinary_twin,
    shift_consistency,
    shift_vit_apply,
    shift_vit_init,
)
from experiments.claims import Claims
from experiments.pictures import draw_curve, picture
from experiments.results import seed_curve, seed_values
from experiments.runs import cross_entropy, make_folder, random_batches, train, write_metrics
from experiments.tables import cell, runs_table

__all__ = ["CARD", "POINTS", "PRESETS", "VARIANTS", "Config", "claims", "network_config", "plots", "run", "tables"]

CARD = "shift_equivariant_vit"
POINTS = (1, 2, 3, 4, 5, 6)

VARIANTS: dict[str, dict[str, Any]] = {
    "poly": {},
    "plain": {"anchored": False},
    "published": {"anchoring": "layers", "criterion": "norm"},
    "poly_twins": {"architecture": "twins"},
    "plain_twins": {"architecture": "twins", "anchored": False},
    "published_twins": {"architecture": "twins", "anchoring": "layers", "criterion": "norm"},
    "poly_swin": {"architecture": "swin"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      dataset: "mnist", or "digits" (1,797 of 8 x 8, from scikit-learn).
      canvas: side of the torus in pixels.
      train_size: training images.
      test_size: test images, from the end of the set for "digits".
      architecture: "vit", "twins" or "swin".
      anchored: False for the ordinary network of the same size.
      anchoring: of the anchored network, see `equivariant_jax.vision`.
      criterion: of anchoring "layers".
      patch: pixels of a patch's side; half of it for "twins" and "swin", which merge once.
      width: channels of a token; half of it in the first stage of "twins" and "swin".
      depth: blocks; half of them in each stage of "twins" and "swin".
      heads: of each block.
      window: tokens of a window's side, "twins" and "swin".
      epochs: passes over the training images.
      batch_size: images per step.
      learning_rate: peak of the cosine schedule of AdamW.
      weight_decay: of AdamW.
      warmup: share of the steps in which the learning rate rises.
      shifts: circular shifts of each test image.
      fill_range: largest shift with zeros behind, in pixels.
      data_seed: of the test's shifts.
      seed: of parameters and batches.
    """

    dataset: Literal["mnist", "digits"] = "mnist"
    canvas: int = 32
    train_size: int = 50_000
    test_size: int = 10_000
    architecture: Literal["vit", "twins", "swin"] = "vit"
    anchored: bool = True
    anchoring: Literal["input", "layers"] = "input"
    criterion: Literal["exact", "norm", "projection"] = "projection"
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    window: int = 4
    epochs: int = 3
    batch_size: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    shifts: int = 5
    fill_range: int = 3
    data_seed: int = 0
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(
        dataset="digits", canvas=8, train_size=1300, test_size=400, patch=2, width=16, depth=2, heads=2, window=2,
        epochs=1, batch_size=50, shifts=2, fill_range=1,
    ),
    "cpu": Config(),
    # The small network of the paper on the largest images at hand; ImageNet needs a reader given by the user.
    "paper": Config(canvas=224, patch=16, width=384, depth=12, heads=6, window=7, epochs=300, batch_size=512,
                    learning_rate=5e-4, warmup=20 / 300),
}  # fmt: skip


def network_config(config: Config) -> ViTConfig | PyramidConfig:
    """Makes the network's static description."""
    shared: dict[str, Any] = {
        "num_classes": 10, "channels_in": 1, "anchoring": config.anchoring, "criterion": config.criterion,
    }  # fmt: skip
    if config.architecture == "vit":
        side = config.canvas // config.patch
        made: ViTConfig | PyramidConfig = ViTConfig(
            patch=config.patch, width=config.width, depth=config.depth, heads=config.heads, grid=(side, side), **shared
        )
    else:
        made = PyramidConfig(
            kind=config.architecture, patch=config.patch // 2, widths=(config.width // 2, config.width),
            depths=(config.depth // 2,) * 2, heads=(config.heads // 2, config.heads), window=config.window,
            reductions=(2, 1), **shared,
        )  # fmt: skip
    return made if config.anchored else ordinary_twin(made)


def _images(config: Config) -> dict[str, tuple[Array, Array]]:
    """Digits in the middle of the torus, float32 `[n, canvas, canvas, 1]` in [0, 1], and labels, by split."""
    if config.dataset == "digits":
        arrays = small_digits().arrays
        parts = {"train": slice(0, config.train_size), "test": slice(-config.test_size, None)}
        raw = {name: (arrays["image"][part] / np.float32(16), arrays["label"][part]) for name, part in parts.items()}
    else:
        sizes, raw = {"train": config.train_size, "test": config.test_size}, {}
        for name, size in sizes.items():
            arrays = mnist(name).arrays
            raw[name] = arrays["image"][:size] / np.float32(255), arrays["label"][:size]
    found = {}
    for name, (images, labels) in raw.items():
        free = config.canvas - images.shape[1]
        if free < 0:
            raise ValueError(f"canvas: got {config.canvas}, expected at least the {images.shape[1]} pixels of a digit.")
        border = (free // 2, free - free // 2)
        found[name] = jnp.asarray(np.pad(images, ((0, 0), border, border, (0, 0)))), jnp.asarray(labels)
    return found


def _filled(images: Array, shifts: Array, margin: int) -> Array:
    """Moves each image by its own shift (rows, columns), zeros behind, `[n, h, w, c]`."""
    grown = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    start = margin - shifts

    def one(image: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])

    return jax.vmap(one)(grown, start)


def _test(params: Any, images: Array, labels: Array, config: Config) -> dict[str, float]:
    """Accuracy at rest, under circular and filled shifts, and consistency."""
    network = network_config(config)

    @jax.jit
    def measure(params, images, labels, key):
        key_shift, key_fill = jax.random.split(key)
        number = images.shape[0]

        def apply(x):
            return shift_vit_apply(params, x, network)

        shifts = jax.random.randint(key_shift, (config.shifts, number, 2), 0, config.canvas)
        circular = shift_consistency(apply, images, shifts)
        moves = jax.random.randint(key_fill, (number, 2), -config.fill_range, config.fill_range + 1)
        at_rest = jnp.argmax(apply(images), axis=-1)
        filled = jnp.argmax(apply(_filled(images, moves, config.fill_range)), axis=-1)
        return {
            "test_accuracy": jnp.mean(at_rest == labels),
            "shifted_accuracy": jnp.mean(circular.labels == labels[None]),
            "consistency": jnp.mean(circular.consistency),
            "largest_change": jnp.max(circular.change),
            "filled_accuracy": jnp.mean(filled == labels),
            "filled_consistency": jnp.mean(filled == at_rest),
        }

    def low_precision(images, key):
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        shifts = jax.random.randint(key, (config.shifts, images.shape[0], 2), 0, config.canvas)
        found = shift_consistency(lambda x: shift_vit_apply(low, x, network), images.astype(jnp.bfloat16), shifts)
        return jnp.mean(found.consistency)

    key = jax.random.key(config.data_seed)
    size = min(500, len(labels))
    parts = [slice(i, i + size) for i in range(0, len(labels) // size * size, size)]
    found = [measure(params, images[p], labels[p], jax.random.fold_in(key, i)) for i, p in enumerate(parts)]
    metrics = {
        name: float((np.max if name == "largest_change" else np.mean)([np.float64(part[name]) for part in found]))
        for name in found[0]
    }
    few, answers = images[:1000], labels[:1000]

    @jax.jit
    def along_diagonal(params, images, labels, shift):
        logits = shift_vit_apply(params, jnp.roll(images, (shift, shift), axis=(1, 2)), network)
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    for shift in range(config.canvas // 2 + 1):
        metrics[f"accuracy_at/{shift:02d}"] = float(along_diagonal(params, few, answers, jnp.int32(shift)))
    low = jax.jit(low_precision)(few, jax.random.fold_in(key, len(parts)))
    return metrics | {"consistency_bfloat16": float(low)}


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one transformer on centred digits and measures what shifts do to it.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON).

    Returns:
      Flat dict of floats: `test_accuracy`, `shifted_accuracy`, `consistency`, `largest_change` of a logit relative to
      the largest, `consistency_bfloat16` (1,000 images), `filled_accuracy`, `parameters`, and so on.
    """
    workdir = make_folder(workdir)
    network, data = network_config(config), _images(config)
    images, labels = data["train"]
    steps = max(1, config.epochs * len(labels) // config.batch_size)
    key_params, key_state, key_data = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            name="adamw", learning_rate=config.learning_rate, weight_decay=config.weight_decay, clip_norm=5.0,
            schedule="warmup_cosine", total_steps=steps, warmup_steps=int(config.warmup * steps),
        )
    )  # fmt: skip

    def loss_fn(params, batch, *, key, model_state):
        logits = shift_vit_apply(params, batch["image"], network, key=key)
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(logits.dtype)
        terms = {"cross_entropy": training.Mean.of(cross_entropy(logits, batch["label"]))}
        return training.LossOutput(terms, {"accuracy": training.Mean.of(right)}, model_state)

    result, trained, *_ = train(
        lambda key: (shift_vit_init(key, network), None),
        loss_fn,
        optimizer,
        random_batches({"image": images, "label": labels}, config.batch_size, key_data),
        keys=(key_params, key_state),
        num_steps=steps,
        workdir=workdir,
        config=training.LoopConfig(log_every=min(50, steps), eval_every=None, checkpoint_every=None),
        experiment={**dataclasses.asdict(config), "network": dataclasses.asdict(network)},
    )
    metrics = _test(result.state.params, *data["test"], config)
    metrics |= {name: trained[name] for name in ("parameters", "steps", "train_seconds")}
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates points 2 and 4 of the card: consistency, change of logits, accuracy at rest and under shifts.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim = Claims(CARD)
    for name in ("poly", "poly_twins"):
        if name not in metrics:
            continue
        worst = seed_values(metrics[name], "largest_change").max()
        claim.at_most(2, f"{name}, trained: largest relative change of a logit under shifts", 1e-5, worst)
        low = seed_values(metrics[name], "consistency_bfloat16").min()
        claim.add(2, f"{name}, trained: consistency in bfloat16, 1,000 images, every seed", 1.0, low, holds=low == 1.0)
    for ours, theirs in (("poly", "plain"), ("poly_twins", "plain_twins")):
        if ours not in metrics or theirs not in metrics:
            continue
        own, other = metrics[ours], metrics[theirs]
        same = seed_values(own, "consistency").min()
        claim.add(4, f"{ours}: consistency under circular shifts, every seed", 1.0, same, holds=same == 1.0)
        plain = seed_values(other, "consistency").mean()
        claim.below(4, f"{theirs}: consistency under circular shifts, mean over seeds", 0.95, plain)
        lost = seed_values(other, "test_accuracy").mean() - seed_values(own, "test_accuracy").mean()
        claim.at_most(4, f"accuracy on centred digits, {theirs} minus {ours}, mean over seeds", 0.005, lost)
        gain = seed_values(own, "shifted_accuracy").mean() - seed_values(other, "shifted_accuracy").mean()
        claim.at_least(4, f"accuracy under circular shifts, {ours} minus {theirs}, mean over seeds", 0.2, gain)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = (
        "variant", "parameters", "centred %", "shifted %", "consistency %", "largest change of a logit",
        "zeros behind %",
    )  # fmt: skip
    names = ("test_accuracy", "shifted_accuracy", "consistency", "filled_accuracy")

    def cells(_, variant, table):
        *shares, filled = (cell(table, name, ".1f", factor=100) for name in names)
        change = f"{seed_values(table, 'largest_change').max():.1g}"
        return variant, f"{table['parameters']['mean']:.0f}", *shares, change, filled

    return {"vision.shifted_digits": runs_table(found, heads, cells)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws accuracy against the shift along the diagonal, mean and range over seeds, as `vision.shifted_digits.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    result = found.get("vision.shifted_digits.cpu")
    if result is None:
        return
    with picture(folder / "vision.shifted_digits.svg", (6, 2.8)) as axis:
        for variant, table in result["metrics"].items():
            shifts, values = seed_curve(table, "accuracy_at/")
            draw_curve(axis, shifts, 100 * values, marker="o", markersize=3, label=variant)
        axis.set(xlabel="circular shift along the diagonal (pixels)", ylabel="accuracy (%)")
        axis.legend(frameon=False, fontsize=8)
