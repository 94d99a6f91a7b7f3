"""Sizes and options of shift-equivariant vision transformers: ViT, Twins-SVT and Swin as published."""

import dataclasses
import math
from typing import Literal

from equivariant_jax.vision.polyphase import Criterion

__all__ = [
    "Anchoring",
    "PyramidConfig",
    "ShiftConfig",
    "ViTConfig",
    "ordinary_twin",
    "swin_config",
    "twins_config",
    "vit_config",
]

Anchoring = Literal["input", "layers", "none"]


@dataclasses.dataclass(frozen=True)
class ShiftConfig:
    """What all of these networks share; see `ViTConfig` and `PyramidConfig` for the meaning of each field."""

    num_classes: int = 1000
    channels_in: int = 3
    mlp_ratio: int = 4
    drop_path: float = 0.0
    anchoring: Anchoring = "input"
    criterion: Criterion = "projection"
    boundary: Literal["circular", "zero"] = "circular"

    def _check(self, positive: tuple[int, ...], heads: tuple[tuple[int, int], ...]) -> None:
        numbers = (self.num_classes, self.channels_in, self.mlp_ratio, *positive)
        if min(numbers) < 1 or not 0 <= self.drop_path < 1 or any(width % number for width, number in heads):
            raise ValueError(f"got {self}; expected positive numbers, heads that divide widths, drop_path in [0, 1).")
        for name, known in (
            ("anchoring", ("input", "layers", "none")),
            ("criterion", ("exact", "norm", "projection")),
            ("boundary", ("circular", "zero")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}.")


@dataclasses.dataclass(frozen=True)
class ViTConfig(ShiftConfig):
    """Static description of a plain vision transformer.

    Attributes:
      num_classes: number of labels.
      channels_in: of the images.
      mlp_ratio: hidden width of a block's perceptron over `width`.
      drop_path: rate at which the last block's branches are dropped in training; it grows linearly from zero.
      anchoring: "input", "layers" or "none"; see the module.
      criterion: of "layers": "exact", "norm" (as published) or "projection".
      boundary: of the position code.
      patch: pixels of a patch's side.
      width: channels of a token.
      depth: number of blocks.
      heads: of each block.
      position: "depthwise", or "learned": one vector for each place of the grid, which breaks the law under "layers".
      grid: rows and columns of tokens that a learned position is for.
      embedding_norm: whether a normalisation follows the patch embedding.
      pool: the read-out: a class "token", or the "mean" of the tokens (there is no class token then).
    """

    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    position: Literal["depthwise", "learned"] = "depthwise"
    grid: tuple[int, int] = (14, 14)
    embedding_norm: bool = True
    pool: Literal["token", "mean"] = "token"

    def __post_init__(self):
        self._check((self.patch, self.width, self.depth, self.heads, *self.grid), ((self.width, self.heads),))
        if self.position not in ("depthwise", "learned") or self.pool not in ("token", "mean"):
            raise ValueError(
                f"got position={self.position!r}, pool={self.pool!r}; expected depthwise or learned, token or mean."
            )

    @property
    def multiple(self) -> int:
        """What both sides of an image must be a multiple of."""
        return self.patch

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the canonical origin."""
        return (self.patch,)


@dataclasses.dataclass(frozen=True)
class PyramidConfig(ShiftConfig):
    """Static description of a transformer whose stages halve the map: Twins-SVT or Swin.

    Attributes:
      num_classes: number of labels.
      channels_in: of the images.
      mlp_ratio: hidden width of a block's perceptron over its width.
      drop_path: rate at which the last block's branches are dropped in training; it grows linearly from zero.
      anchoring: "input", "layers" or "none"; see the module.
      criterion: of "layers": "exact", "norm" (as published) or "projection".
      boundary: of the position code, and of moved windows.
      kind: "twins" or "swin".
      patch: pixels of a patch's side.
      widths: channels of each stage.
      depths: blocks of each stage.
      heads: of each stage.
      window: tokens of a window's side.
      reductions: of Twins, strides of each stage's subsampled attention.
    """

    kind: Literal["twins", "swin"] = "twins"
    patch: int = 4
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 10, 4)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    window: int = 7
    reductions: tuple[int, ...] = (8, 4, 2, 1)

    def __post_init__(self):
        rows = (self.widths, self.depths, self.heads, self.reductions)
        if self.kind not in ("twins", "swin") or len({len(row) for row in rows}) != 1:
            raise ValueError(f'got {self}; expected kind "twins" or "swin" and rows of one length for the stages.')
        positive = (self.patch, self.window, *(number for row in rows for number in row))
        self._check(positive, tuple(zip(self.widths, self.heads, strict=True)))

    @property
    def multiple(self) -> int:
        """What both sides of an image must be a multiple of."""
        multiple = self.patch
        for i, (depth, reduction) in enumerate(zip(self.depths, self.reductions, strict=True)):
            strides = [self.window] + [reduction] * (self.kind == "twins" and depth > 1)
            multiple = math.lcm(multiple, *(self.patch * 2**i * stride for stride in strides))
        return multiple

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the canonical origin: the patches, and their windows."""
        return (self.patch, self.patch * self.window)


def vit_config(size: Literal["tiny", "small", "base"] = "tiny", **changes) -> ViTConfig:
    """Makes the description of a published plain transformer for images `[batch, 224, 224, 3]`.

    Args:
      size: "tiny", "small" or "base" (patches of 16 pixels).
      **changes: other fields of `ViTConfig`.

    Returns:
      The description.

    Raises:
      ValueError: if the size is unknown.
    """
    widths = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
    if size not in widths:
        raise ValueError(f"vit_config got size {size!r}; expected one of {tuple(widths)}.")
    width, heads = widths[size]
    return dataclasses.replace(ViTConfig(width=width, heads=heads), **changes)


def twins_config(size: Literal["small", "base", "large"] = "small", **changes) -> PyramidConfig:
    """Makes the description of a published Twins-SVT for images `[batch, 224, 224, 3]`.

    Args:
      size: "small", "base" or "large".
      **changes: other fields of `PyramidConfig`.

    Returns:
      The description.

    Raises:
      ValueError: if the size is unknown.
    """
    first = {"small": (64, 2, (2, 2, 10, 4)), "base": (96, 3, (2, 2, 18, 2)), "large": (128, 4, (2, 2, 18, 2))}
    return dataclasses.replace(_pyramid("twins", first, size), **changes)


def swin_config(size: Literal["tiny", "small", "base"] = "tiny", **changes) -> PyramidConfig:
    """Makes the description of a published Swin transformer for images `[batch, 224, 224, 3]`.

    Args:
      size: "tiny", "small" or "base".
      **changes: other fields of `PyramidConfig`.

    Returns:
      The description.

    Raises:
      ValueError: if the size is unknown.
    """
    first = {"tiny": (96, 3, (2, 2, 6, 2)), "small": (96, 3, (2, 2, 18, 2)), "base": (128, 4, (2, 2, 18, 2))}
    return dataclasses.replace(_pyramid("swin", first, size), **changes)


def _pyramid(kind: Literal["twins", "swin"], first: dict, size: str) -> PyramidConfig:
    if size not in first:
        raise ValueError(f"{kind}_config got size {size!r}; expected one of {tuple(first)}.")
    width, heads, depths = first[size]
    widths, numbers = (tuple(number * 2**i for i in range(4)) for number in (width, heads))
    return PyramidConfig(kind=kind, widths=widths, depths=depths, heads=numbers)


def ordinary_twin(config: ViTConfig | PyramidConfig, *, grid: tuple[int, int] | None = None):
    """Describes the network of the same size that does not know of shifts.

    Args:
      config: static.
      grid: rows and columns of tokens for the learned positions of a `ViTConfig`; None for those of `config`.

    Returns:
      The description without anchors, with zero boundaries, and for ViT with learned positions and no norm after the
      embedding; shapes of images are as before, `[batch, height, width, channels_in]`.
    """
    config = dataclasses.replace(config, anchoring="none", boundary="zero")
    if isinstance(config, PyramidConfig):
        return config
    return dataclasses.replace(config, position="learned", embedding_norm=False, grid=grid or config.grid)
