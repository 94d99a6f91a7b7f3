"""What shift equivariance costs: `benchmarks.vision`.

Forward and training steps of Twins and ViT with anchors beside the same networks without (`ordinary_twin`), and the
anchor alone beside two ways that roll: `jnp.roll` by a traced amount, and the official algorithm's (pad by a whole
period, then resample bilinearly at the shifted grid, here through `jax.scipy.ndimage.map_coordinates`). float32.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array
from equivariant_jax.vision import (
    PyramidConfig,
    ViTConfig,
    ordinary_twin,
    polyphase_anchor,
    polyphase_energy,
    shift_vit_apply,
    shift_vit_init,
    twins_config,
    vit_config,
)
from experiments.benchmarks.harness import Case
from experiments.claims import Claims
from experiments.tables import markdown, ratio_cells

__all__ = ["PRESETS", "Config", "cases", "claims", "tables"]

CARD = "shift_equivariant_vit"
OURS, PLAIN, LAYERS = "anchored", "ordinary", "anchored in layers"
ROLLED, RESAMPLED = "roll", "pad and resample"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      batch: images.
      side: of the images in pixels.
      channels: of the map that is anchored alone.
      networks: "twins-small", "vit-tiny", or "small" (a few channels, for tests).
    """

    batch: int = 2
    side: int = 224
    channels: int = 64
    networks: tuple[str, ...] = ("twins-small", "vit-tiny")


PRESETS = {
    "ci": Config(batch=1, side=12, channels=4, networks=("small",)),
    "cpu": Config(),
    "paper": Config(batch=128, networks=("twins-small", "twins-base", "vit-small", "vit-base")),
}


def _network(name: str) -> ViTConfig | PyramidConfig:
    if name == "small":
        return ViTConfig(patch=3, width=8, depth=1, heads=2, num_classes=3, channels_in=3, grid=(4, 4))
    kind, _, size = name.partition("-")
    if kind not in ("twins", "vit") or not size:
        raise ValueError(f'networks: got {name!r}, expected "twins-small", "vit-tiny" and so on, or "small".')
    make: Any = twins_config if kind == "twins" else vit_config
    return make(size)


def _strongest(x: Array, stride: int) -> Array:
    """Offset of the strongest polyphase component of each image, `[batch, 2]`."""
    energy = polyphase_energy(x, stride)
    best = jnp.argmax(energy.reshape(x.shape[0], -1), axis=-1)
    return jnp.stack([best // stride, best % stride], axis=-1)


def _rolled(x: Array, stride: int) -> Array:
    return jax.vmap(lambda image, p: jnp.roll(image, (-p[0], -p[1]), axis=(0, 1)))(x, _strongest(x, stride))


def _resampled(x: Array, stride: int) -> Array:
    """The official order: pad periodically by a stride, then read a shifted grid by bilinear interpolation."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (0, stride), (0, stride), (0, 0)), mode="wrap")
    rows, columns = (np.arange(n, dtype=np.float32) for n in (height, width))

    def one(image: Array, p: Array) -> Array:
        at = jnp.meshgrid(rows + p[0].astype(rows.dtype), columns + p[1].astype(rows.dtype), indexing="ij")
        read = lambda plane: jax.scipy.ndimage.map_coordinates(plane, at, order=1)  # noqa: E731
        return jax.vmap(read, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(padded, _strongest(x, stride))


def _step(config: ViTConfig | PyramidConfig) -> Callable:
    return jax.grad(lambda params, x: jnp.mean(shift_vit_apply(params, x, config) ** 2))


def cases(config: Config) -> Iterator[Case]:
    """Yields the anchor alone at strides 4 and 7, then each network, forward and with gradients."""
    x = jax.random.normal(jax.random.key(0), (config.batch, config.side, config.side, config.channels))
    for stride in (4, 7):
        if config.side % stride:
            continue
        contenders: dict[str, Callable] = {
            OURS: lambda x, s=stride: polyphase_anchor(x, s, criterion="norm")[0],
            ROLLED: lambda x, s=stride: _rolled(x, s),
            RESAMPLED: lambda x, s=stride: _resampled(x, s),
        }
        yield Case(f"anchor, stride {stride}", contenders, (x,), reference=OURS, tolerance=1e-5)
    for name in config.networks:
        network = _network(name)
        variants = {
            OURS: network,
            PLAIN: ordinary_twin(network),
            LAYERS: dataclasses.replace(network, anchoring="layers"),
        }
        images = jax.random.normal(jax.random.key(1), (config.batch, config.side, config.side, 3))
        params = {label: shift_vit_init(jax.random.key(2), made) for label, made in variants.items()}
        for mode in ("forward", "training step"):
            contenders = {
                label: _step(made) if mode == "training step" else (lambda p, x, c=made: shift_vit_apply(p, x, c))
                for label, made in variants.items()
            }
            arguments = {label: (params[label], images) for label in contenders}
            yield Case(f"{name}, {mode}", contenders, arguments, different=(PLAIN, LAYERS))


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates point 5 of the card: what anchoring adds to a forward step of Twins.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for row in rows:
        if PLAIN in row["ratios"] and row["case"].endswith("forward"):
            statement = f"{row['case']}: time of the anchored network over the ordinary one's"
            why = "the anchor costs what the image costs, and the smaller the network, the larger its share"
            claim.at_most(5, statement, 1.1, 1 / row["ratios"][PLAIN], why=why)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results: times as ratios to the anchored network's.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    peers = (PLAIN, LAYERS, ROLLED, RESAMPLED)
    rows = (
        (row["case"], f"{row['ours_ms']:.1f} ms", *ratio_cells(row, peers, ".3g"), f"{row['compile_s']:.1f} s")
        for result in found.values()
        for row in result["rows"]
    )
    return {"benchmarks.vision": markdown(("case", "anchored", *peers, "compile"), rows)}
