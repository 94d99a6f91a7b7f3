r"""Measures what anchors promise under circular shifts, without training: `vision.shift_laws`.

Anchored maps of shifted copies differ by whole strides, bit by bit, on random maps and on unit-norm tokens; the
gradient through an anchor is that of the rolled gather. Networks at random initialisation: largest change of a logit
under random shifts, for the anchor at the input (ours), the published one before each strided layer, the published
criterion's remedies, and no anchor. Maps: window attention in the canonical frame moves with its image, exactly.

Variants are networks. Command: `python -m experiments vision.shift_laws cpu --seeds 0 1 2 --variants all`. Numbers
reached, hardware and time stand in `experiments/results`, written by the run.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array
from equivariant_jax.vision import (
    Criterion,
    PyramidConfig,
    ViTConfig,
    attention_init,
    in_canonical_frame,
    ordinary_twin,
    polyphase_anchor,
    shift_consistency,
    shift_vit_apply,
    shift_vit_init,
    window_attention,
)
from experiments.claims import Claims
from experiments.results import seed_values
from experiments.tables import markdown

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "network_config", "run", "tables"]

CARD = "shift_equivariant_vit"
VARIANTS: dict[str, dict[str, Any]] = {
    "vit": {}, "twins": {"architecture": "twins"}, "swin": {"architecture": "swin"},
}  # fmt: skip
_STRIDES = (2, 3, 4, 7)
_CRITERIA: tuple[Criterion, ...] = ("exact", "projection", "norm")


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      architecture: "vit", "twins" or "swin".
      side: of the images in pixels, a multiple of 56 for windows of 7 and two halvings.
      patch: pixels of a patch's side; half of it for "twins" and "swin".
      width: channels of the last stage; half of it in the first of "twins" and "swin".
      depth: blocks of each stage.
      images: of each measurement but that in bfloat16.
      low_images: in bfloat16.
      shifts: random shifts of each image.
      seed: of images, parameters and shifts.
    """

    architecture: Literal["vit", "twins", "swin"] = "vit"
    side: int = 112
    patch: int = 8
    width: int = 64
    depth: int = 2
    images: int = 4
    low_images: int = 1000
    shifts: int = 100
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(side=56, width=16, depth=1, images=2, low_images=8, shifts=5),
    "cpu": Config(),
    "paper": Config(side=224, patch=16, width=384, depth=6, images=64),
}


def network_config(config: Config, side: int | None = None) -> ViTConfig | PyramidConfig:
    """Makes the network's static description; windows of 7 tokens, heads of 16 channels."""
    heads = max(config.width // 16, 1)
    if config.architecture == "vit":
        tokens = (side or config.side) // config.patch
        return ViTConfig(
            patch=config.patch, width=config.width, depth=config.depth, heads=heads, num_classes=10, channels_in=3,
            grid=(tokens, tokens),
        )  # fmt: skip
    return PyramidConfig(
        kind=config.architecture, patch=config.patch // 2, widths=(config.width // 2, config.width),
        depths=(config.depth,) * 2, heads=(max(heads // 2, 1), heads), window=7, reductions=(2, 1), num_classes=10,
        channels_in=3,
    )  # fmt: skip


def _orbit(x: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(x, tuple(g), axis=(0, 1)) for g in shifts])


def _unit(x: np.ndarray) -> np.ndarray:
    """Tokens as a layer normalisation leaves them."""
    x = x - x.mean(axis=-1, keepdims=True)
    return (x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))).astype(np.float32)


def _anchors(seed: int) -> dict[str, float]:
    """Share of shifts for which the law of the anchor holds bit by bit, and the error of its gradient."""
    found, rng = {}, np.random.default_rng(seed)
    for stride in _STRIDES:
        noise = rng.normal(size=(3 * stride, 2 * stride, 8)).astype(np.float32)
        shifts = np.array(list(itertools.product(range(3 * stride), range(2 * stride))))
        for name, x in (("maps", noise), ("unit_tokens", _unit(noise))):
            for criterion in _CRITERIA:
                run = jax.jit(functools.partial(polyphase_anchor, stride=stride, criterion=criterion))
                anchored, phases = (np.asarray(v) for v in run(jnp.asarray(_orbit(x, shifts))))
                moved = shifts + phases[0] - phases
                holds = [
                    not np.any(m % stride) and np.array_equal(np.roll(anchored[0], tuple(m), axis=(0, 1)), a)
                    for m, a in zip(moved, anchored, strict=True)
                ]
                found[f"anchor/{name}/{criterion}/stride_{stride}"] = float(np.mean(holds))
        weight = jnp.asarray(rng.normal(size=noise.shape).astype(np.float32))
        slope = jax.grad(lambda x, s=stride, w=weight: jnp.sum(w * jnp.sin(polyphase_anchor(x, s)[0])))(noise)
        phase = np.asarray(polyphase_anchor(jnp.asarray(noise), stride)[1])
        expected = np.roll(np.asarray(weight), tuple(phase), axis=(0, 1)) * np.cos(noise)
        found[f"gradient_error/stride_{stride}"] = float(np.abs(slope - expected).max())
    return found


def _networks(config: Config) -> dict[str, float]:
    key_params, key_images, key_shifts = jax.random.split(jax.random.key(config.seed), 3)
    base = network_config(config)
    networks = {
        "input": base,
        "layers_exact": dataclasses.replace(base, anchoring="layers", criterion="exact"),
        "layers_projection": dataclasses.replace(base, anchoring="layers", criterion="projection"),
        "layers_norm": dataclasses.replace(base, anchoring="layers", criterion="norm"),
        "ordinary": ordinary_twin(base),
    }
    shape = (config.side, config.side, 3)
    images = jax.random.normal(key_images, (config.images, *shape))
    shifts = jax.random.randint(key_shifts, (config.shifts, config.images, 2), 0, config.side)
    found = {}

    def measure(network: Any) -> Callable[..., Any]:
        def run(params, images, shifts):
            return shift_consistency(lambda x: shift_vit_apply(params, x, network), images, shifts)

        return jax.jit(run)

    for name, network in networks.items():
        params = shift_vit_init(key_params, network)
        made = measure(network)(params, images, shifts)
        found[f"change/{name}"] = float(jnp.max(made.change))
    params = shift_vit_init(key_params, base, dtype=jnp.bfloat16)
    run, agree, size = measure(base), [], min(50, config.low_images)
    for i in range(0, config.low_images // size):
        key_few, key_moves = jax.random.split(jax.random.fold_in(key_images, i))
        few = jax.random.normal(key_few, (size, *shape), jnp.bfloat16)
        moves = jax.random.randint(key_moves, (2, size, 2), 0, config.side)
        agree.append(float(jnp.min(run(params, few, moves).consistency)))
    return found | {"consistency_bfloat16": min(agree)}


def _maps(seed: int) -> dict[str, float]:
    """Share of all shifts under which window attention in the canonical frame moves with its image, bit by bit."""
    height, width, window, channels = 8, 12, 4, 16
    key_params, key_image = jax.random.split(jax.random.key(seed))
    params = attention_init(key_params, channels, 2, window=window)
    image = np.asarray(jax.random.normal(key_image, (height, width, channels)))
    shifts = np.array(list(itertools.product(range(height), range(width))))

    def attend(x: Array) -> Array:
        return window_attention(params, x, window=window, heads=2)

    orbit = jnp.asarray(_orbit(image, shifts))
    found = {}
    for name, function in (("framed", lambda x: in_canonical_frame(attend, x, (window,))), ("bare", attend)):
        out = np.asarray(jax.jit(function)(orbit))
        found[f"map_moves/{name}"] = float(
            np.mean(
                [np.array_equal(np.roll(out[0], tuple(g), axis=(0, 1)), o) for g, o in zip(shifts, out, strict=True)]
            )
        )
    return found


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures the laws of anchors, of one network at random initialisation, and of window attention.

    Args:
      config: the measurement.
      workdir: not written to.

    Returns:
      Flat dict of floats: `anchor/...` (share of shifts), `gradient_error/...`, `change/ANCHORING` (relative to the
      largest logit), `consistency_bfloat16`, `map_moves/...` (share of shifts).
    """
    del workdir
    return _anchors(config.seed) | _networks(config) | _maps(config.seed)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates points 1 to 3 of the card, each by its worst seed.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for variant, table in metrics.items():
        least = {name: seed_values(table, name).min() for name in table}
        worst = {name: seed_values(table, name).max() for name in table}
        if variant == next(iter(metrics)):
            for name in ("maps", "unit_tokens"):
                share = min(least[f"anchor/{name}/exact/stride_{s}"] for s in _STRIDES)
                text = f"share of all shifts where anchored {name} differ by whole strides, bit by bit, strides 2 to 7"
                claim.add(1, text, 1.0, share, holds=share == 1)
            error = max(worst[f"gradient_error/stride_{s}"] for s in _STRIDES)
            text = "gradient of the anchor against that of the rolled gather, largest error"
            claim.at_most(1, text, 1e-6, error)
            share = least["map_moves/framed"]
            text = "share of all shifts under which framed window attention moves with its image, bit by bit"
            claim.add(3, text, 1.0, share, holds=share == 1)
            claim.below(3, "the same without the frame", 0.5, worst["map_moves/bare"])
        text = f"{variant}, random: largest relative change of a logit under shifts"
        claim.at_most(2, text, 1e-5, worst["change/input"])
        for name in ("exact", "projection"):
            text = f"{variant}, random, anchored before each strided layer by `{name}`"
            claim.at_most(2, text, 1e-5, worst[f"change/layers_{name}"])
        claim.at_least(2, f"{variant}, random: the same without anchors", 0.01, least["change/ordinary"])
        low = least["consistency_bfloat16"]
        claim.add(2, f"{variant}, random: consistency in bfloat16", 1.0, low, holds=low == 1)
        if variant == "twins":
            change = worst["change/layers_norm"]
            text = "twins, random: the published criterion fails on unit tokens, change at least"
            claim.add(2, text, 1e-3, change, holds=change >= 1e-3)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of changes at random initialisation.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    result = found.get("vision.shift_laws.cpu")
    if result is None:
        return {}
    columns = {
        "anchored at the input": "input", "before each layer, exact": "layers_exact",
        "before each layer, projection": "layers_projection", "before each layer, norm (published)": "layers_norm",
        "no anchor": "ordinary",
    }  # fmt: skip
    head = ("random network, largest relative change of a logit", *columns, "same label, bfloat16")
    rows = (
        (
            variant,
            *(f"{seed_values(table, f'change/{name}').max():.1e}" for name in columns.values()),
            f"{100 * seed_values(table, 'consistency_bfloat16').min():.1f} %",
        )
        for variant, table in result["metrics"].items()
    )
    return {"vision.shift_laws": markdown(head, rows)}
