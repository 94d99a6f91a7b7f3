r"""Vision transformers whose logits no circular shift of the image changes: ViT, Twins-SVT and Swin.

Laws, for every shift g of the torus by whole pixels, every image and all parameters:

    shift_vit_apply(S_g x) == shift_vit_apply(x)           shift_vit_dense(S_g x) == S_g shift_vit_dense(x)

Where the image is anchored is the configuration's `anchoring`:

- "input" (default): once, to the canonical origin (`canonical_anchor`). The network sees the same numbers for all
  shifts, so both laws hold to the last bit, in every dtype, and on symmetric images.
- "layers": before every operation with a stride, as published, by the component that `criterion` prefers. After an
  anchor of stride s a map is known up to shifts by s, so an operation whose stride divides s needs none of its own
  (also after merging by m | s, which leaves s / m); the published code computes those norms as well. The laws hold up
  to rounding, as long as rounding does not reach the choice: with criterion "norm", the published one, it does wherever
  tokens come from a layer normalisation.
- "none": nowhere; with `ordinary_twin`, the network that others compare with.

    ViT    patches -> norm -> position code -> blocks of global attention, with a class token
    Twins  four stages: merge -> norm -> blocks of window and of subsampled attention, a position code after the first
    Swin   four stages: merge -> blocks of window attention, every second with moved windows, relative position bias

All but Swin's bias is as published; the order of channels inside of a merged patch is (row, column, channel).

References: Ding et al. 2023, arXiv:2306.07470; Dosovitskiy et al. 2021, arXiv:2010.11929; Chu et al. 2021,
arXiv:2104.13840; Liu et al. 2021, arXiv:2103.14030; Rojas-Gomez et al. 2023, arXiv:2305.16316 (dense outputs).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.images import shift_image
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.mlp import mlp_apply
from equivariant_jax.vision.attention import (
    _dense,
    _dense_init,
    _layer_norm,
    _layer_norm_init,
    attention_init,
    depthwise_position,
    depthwise_position_init,
    global_attention,
    patch_embed,
    patch_embed_init,
    subsampled_attention,
    window_attention,
)
from equivariant_jax.vision.polyphase import canonical_anchor, polyphase_anchor, polyphase_restore
from equivariant_jax.vision.shift_vit_config import PyramidConfig, ShiftConfig, ViTConfig

__all__ = [
    "ShiftConsistency",
    "ShiftViT",
    "ShiftViTSegmenter",
    "shift_consistency",
    "shift_vit_apply",
    "shift_vit_dense",
    "shift_vit_init",
]


def _block_init(key: PRNGKey, width: int, ratio: int, heads: int, dtype, **attention) -> PyTree:
    key_attention, key_first, key_second = jax.random.split(key, 3)
    return {
        "attention_norm": _layer_norm_init(width, dtype),
        "attention": attention_init(key_attention, width, heads, dtype=dtype, **attention),
        "mlp_norm": _layer_norm_init(width, dtype),
        "mlp": (
            _dense_init(key_first, width, ratio * width, dtype),
            _dense_init(key_second, ratio * width, width, dtype),
        ),
    }


def _vit_init(key: PRNGKey, config: ViTConfig, dtype) -> PyTree:
    key_patch, key_position, key_token, key_head, key_blocks = jax.random.split(key, 5)
    params = {
        "patch": patch_embed_init(key_patch, config.patch, config.channels_in, config.width, dtype=dtype),
        "blocks": tuple(
            _block_init(k, config.width, config.mlp_ratio, config.heads, dtype)
            for k in jax.random.split(key_blocks, config.depth)
        ),
        "norm": _layer_norm_init(config.width, dtype),
        "head": _dense_init(key_head, config.width, config.num_classes, dtype),
    }
    if config.embedding_norm:
        params["patch_norm"] = _layer_norm_init(config.width, dtype)
    if config.position == "depthwise":
        params["position"] = depthwise_position_init(key_position, config.width, dtype=dtype)
    else:
        places = math.prod(config.grid) + (config.pool == "token")
        params["positions"] = _dense_init(key_position, places, config.width, dtype, bias=False)["kernel"]
    if config.pool == "token":
        params["token"] = _dense_init(key_token, 1, config.width, dtype, bias=False)["kernel"]
    return params


def _is_local(config: PyramidConfig, block: int) -> bool:
    return config.kind == "swin" or block % 2 == 0


def _pyramid_init(key: PRNGKey, config: PyramidConfig, dtype) -> PyTree:
    key_head, *keys = jax.random.split(key, 1 + len(config.depths))
    stages, before = [], config.channels_in
    for i, (k, width, depth, heads) in enumerate(zip(keys, config.widths, config.depths, config.heads, strict=True)):
        key_merge, key_position, *key_blocks = jax.random.split(k, 2 + depth)
        stage = {}
        if config.kind == "twins" or i == 0:
            stage["merge"] = patch_embed_init(key_merge, 2 if i else config.patch, before, width, dtype=dtype)
            stage["norm"] = _layer_norm_init(width, dtype)
        else:  # normalised before it is merged, without a bias
            stage["norm"] = _layer_norm_init(4 * before, dtype)
            stage["merge"] = _dense_init(key_merge, 4 * before, width, dtype, bias=False)
        if config.kind == "twins":
            stage["position"] = depthwise_position_init(key_position, width, dtype=dtype)
        window = config.window if config.kind == "swin" else None
        stage["blocks"] = tuple(
            _block_init(
                block, width, config.mlp_ratio, heads, dtype,
                window=window, stride=1 if _is_local(config, j) else config.reductions[i],
            )
            for j, block in enumerate(key_blocks)
        )  # fmt: skip
        stages.append(stage)
        before = width
    return {
        "stages": tuple(stages),
        "norm": _layer_norm_init(before, dtype),
        "head": _dense_init(key_head, before, config.num_classes, dtype),
    }


def shift_vit_init(key: PRNGKey, config: ViTConfig | PyramidConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws the parameters of a transformer.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      A pytree of kernels, biases and scales; `patch`, `patch_norm`, `position` (or `positions`
      `[places, width]`), `token` `[1, width]` and `blocks` for a `ViTConfig`, `stages` for a `PyramidConfig`, and for
      both `norm` and `head` (kernel `[width, num_classes]`).

    Example:
      >>> config = ViTConfig(width=192, depth=12, heads=3)  # the published "tiny"
      >>> shapes = jax.eval_shape(lambda key: shift_vit_init(key, config), jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      5681896
    """
    return _vit_init(key, config, dtype) if isinstance(config, ViTConfig) else _pyramid_init(key, config, dtype)


class _Frame(NamedTuple):
    """Where a map lies: by `-offset` pixels from the image, `[batch, 2]`; `scale` pixels to a position."""

    offset: Array
    scale: int
    known: int  # the map is the same for all shifts of the image up to shifts by so many positions; 0: the very same


def _anchored(x: Array, frame: _Frame, stride: int, config: ShiftConfig) -> tuple[Array, _Frame]:
    if config.anchoring != "layers" or frame.known % stride == 0:
        return x, frame
    x, phase = polyphase_anchor(x, stride, criterion=config.criterion)
    return x, _Frame(frame.offset + phase * np.int32(frame.scale), frame.scale, stride)


def _merged(frame: _Frame, stride: int) -> _Frame:
    return _Frame(frame.offset, frame.scale * stride, frame.known // stride)


def _dropped(x: Array, rate: float, key: PRNGKey | None) -> Array:
    """Drops a residual branch for whole images, and scales up what is kept."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / np.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


def _block(params: PyTree, x: Array, attend: Callable[[Array], Array], rate: float, key, precision) -> Array:
    key_attention, key_mlp = (None, None) if key is None else jax.random.split(key)
    x = x + _dropped(attend(_layer_norm(params["attention_norm"], x)), rate, key_attention)
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    hidden = mlp_apply(params["mlp"], _layer_norm(params["mlp_norm"], x), activation=gelu, precision=precision)
    return x + _dropped(hidden, rate, key_mlp)


def _rates(config: ShiftConfig, depth: int) -> list[float]:
    return [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def _keys(key: PRNGKey | None, number: int) -> list:
    return [None] * number if key is None else list(jax.random.split(key, number))


def _vit_features(params, x, frame, config: ViTConfig, key, precision) -> tuple[Array, Array, _Frame]:
    x, frame = _anchored(x, frame, config.patch, config)
    x = patch_embed(params["patch"], x, precision=precision)
    frame = _merged(frame, config.patch)
    if config.embedding_norm:
        x = _layer_norm(params["patch_norm"], x)
    batch, *grid, width = x.shape
    if config.position == "depthwise":
        x = depthwise_position(params["position"], x, boundary=config.boundary, precision=precision)
    elif tuple(grid) != config.grid:
        raise ValueError(f"images have {tuple(grid)} patches; expected {config.grid}, for which positions are learned.")
    x = x.reshape(batch, -1, width)
    if config.pool == "token":
        # At the end, so that patches have their numbers with and without it; attention does not see the order.
        x = jnp.concatenate([x, jnp.broadcast_to(params["token"][None], (batch, 1, width))], axis=1)
    if config.position == "learned":
        x = x + params["positions"][None]
    for block, rate, k in zip(params["blocks"], _rates(config, config.depth), _keys(key, config.depth), strict=True):
        attend = functools.partial(global_attention, block["attention"], heads=config.heads, precision=precision)
        x = _block(block, x, attend, rate, k, precision)
    x = _layer_norm(params["norm"], x)
    tokens = x[:, : math.prod(grid)]
    pooled = x[:, -1] if config.pool == "token" else jnp.mean(tokens, axis=1)
    return tokens.reshape(batch, *grid, width), pooled, frame


def _pyramid_features(params, x, frame, config: PyramidConfig, key, precision) -> tuple[Array, Array, _Frame]:
    total = sum(config.depths)
    plan = iter(zip(_rates(config, total), _keys(key, total), strict=True))
    for i, stage in enumerate(params["stages"]):
        stride = 2 if i else config.patch
        x, frame = _anchored(x, frame, stride, config)
        if config.kind == "twins" or i == 0:
            x = _layer_norm(stage["norm"], patch_embed(stage["merge"], x, precision=precision))
        else:
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
            x = x.reshape(batch, height // 2, width // 2, 4 * channels)
            x = _dense(stage["merge"], _layer_norm(stage["norm"], x), precision)
        frame = _merged(frame, stride)
        for j, block in enumerate(stage["blocks"]):
            local, heads, attention = _is_local(config, j), config.heads[i], block["attention"]
            x, frame = _anchored(x, frame, config.window if local else config.reductions[i], config)
            if local:
                moved = config.window // 2 if config.kind == "swin" and j % 2 else 0
                attend = functools.partial(
                    window_attention, attention, window=config.window, heads=heads, offset=moved,
                    boundary=config.boundary, precision=precision,
                )  # fmt: skip
            else:
                attend = functools.partial(subsampled_attention, attention, heads=heads, precision=precision)
            x = _block(block, x, attend, *next(plan), precision)
            if config.kind == "twins" and j == 0:
                x = depthwise_position(stage["position"], x, boundary=config.boundary, precision=precision)
    x = _layer_norm(params["norm"], x)
    return x, jnp.mean(x, axis=(1, 2)), frame


def _features(params, images: Array, config: ViTConfig | PyramidConfig, key, precision) -> tuple[Array, Array, Array]:
    """Map `[batch, h, w, width]`, pooled `[batch, width]` and the frame's offset `[batch, 2]`; one batch axis."""
    if images.ndim < 3 or images.shape[-1] != config.channels_in or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: got {images.dtype} {images.shape}, expected floating-point [..., height, width, "
            f"{config.channels_in}]."
        )
    if any(side % config.multiple or side == 0 for side in images.shape[-3:-1]):
        raise ValueError(
            f"images: got {images.shape[-3]} x {images.shape[-2]} pixels, expected multiples of {config.multiple} for "
            "this network; resize them, or change its patch, window or reductions."
        )
    x = images.reshape(-1, *images.shape[-3:])
    if config.anchoring == "input":
        x, offset = canonical_anchor(x, config.strides)
        frame = _Frame(offset, 1, 0)
    else:
        frame = _Frame(jnp.zeros((x.shape[0], 2), jnp.int32), 1, 1)
    if isinstance(config, ViTConfig):
        maps, pooled, frame = _vit_features(params, x, frame, config, key, precision)
    else:
        maps, pooled, frame = _pyramid_features(params, x, frame, config, key, precision)
    return maps, pooled, frame.offset


def shift_vit_apply(
    params: PyTree,
    images: Array,
    config: ViTConfig | PyramidConfig,
    *,
    key: PRNGKey | None = None,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Labels images; circular shifts by whole pixels leave the logits alone.

    Args:
      params: from `shift_vit_init`.
      images: shape `[..., height, width, channels_in]`, dtype of `params`; both sides multiples of `config.multiple`.
      config: static.
      key: for `drop_path` in training; None for none.
      precision: static; of the products.

    Returns:
      Logits, shape `[..., num_classes]`, dtype of `images`.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> config = ViTConfig(patch=4, width=16, depth=1, heads=2, num_classes=3)
      >>> params = shift_vit_init(jax.random.key(0), config)
      >>> x = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
      >>> moved = jnp.roll(x, (3, 5), axis=(1, 2))
      >>> bool((shift_vit_apply(params, moved, config) == shift_vit_apply(params, x, config)).all())
      True
    """
    _, pooled, _ = _features(params, images, config, key, precision)
    logits = _dense(params["head"], pooled, precision)
    return logits.reshape(*images.shape[:-3], config.num_classes)


def _refinement(size: int, scale: int) -> np.ndarray:
    """Linear interpolation on a circle, `[size * scale, size]`; patch centres keep their values."""
    at = (np.arange(size * scale) + 0.5) / scale - 0.5
    below = np.floor(at).astype(int)
    matrix, rows = np.zeros((size * scale, size)), np.arange(size * scale)
    np.add.at(matrix, (rows, below % size), 1 - (at - below))
    np.add.at(matrix, (rows, (below + 1) % size), at - below)
    return matrix


def shift_vit_dense(
    params: PyTree,
    images: Array,
    config: ViTConfig | PyramidConfig,
    *,
    key: PRNGKey | None = None,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Labels pixels; labels move with the image under circular shifts.

    The head reads every token; its logits are interpolated on the torus to the image's pixels, and there the frame is
    restored.

    Args:
      params: from `shift_vit_init`.
      images: shape `[..., height, width, channels_in]`, dtype of `params`; both sides multiples of `config.multiple`.
      config: static.
      key: for `drop_path` in training; None for none.
      precision: static; of the products.

    Returns:
      Logits, shape `[..., height, width, num_classes]`, dtype of `images`.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> config = ViTConfig(patch=4, width=16, depth=1, heads=2, num_classes=3)
      >>> params = shift_vit_init(jax.random.key(0), config)
      >>> x = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
      >>> moved = shift_vit_dense(params, jnp.roll(x, (3, 5), axis=(1, 2)), config)
      >>> bool((moved == jnp.roll(shift_vit_dense(params, x, config), (3, 5), axis=(1, 2))).all())
      True
    """
    maps, _, offset = _features(params, images, config, key, precision)
    logits = _dense(params["head"], maps, precision)
    for axis, side in ((1, images.shape[-3]), (2, images.shape[-2])):
        matrix = _refinement(maps.shape[axis], side // maps.shape[axis]).astype(logits.dtype)
        logits = jnp.moveaxis(jnp.tensordot(matrix, logits, axes=(1, axis), precision=precision), 0, axis)
    return polyphase_restore(logits, offset).reshape(*images.shape[:-1], config.num_classes)


class ShiftConsistency(NamedTuple):
    """What `shift_consistency` measures, for each image.

    Attributes:
      consistency: share of the shifts under which the label stays, float32 `[batch]`; its mean is the published figure.
      change: largest change of a logit over the largest logit at rest, float32 `[batch]`.
      labels: of the moved images, int32 `[shifts, batch]`; compared with the truth, the accuracy under shifts.
    """

    consistency: Array
    change: Array
    labels: Array


def shift_consistency(apply_fn: Callable[[Array], Array], images: Array, shifts: Array) -> ShiftConsistency:
    """Measures how circular shifts change what a network says.

    The published script draws two shifts for a whole batch, so that its figure varies more than the number of images
    suggests; here each image may have shifts of its own, and it is compared with itself at rest.

    Args:
      apply_fn: takes images `[batch, height, width, channels]` to logits `[batch, num_classes]`.
      images: shape `[batch, height, width, channels]`, any dtype.
      shifts: rows and columns, integer, `[shifts, batch, 2]`, or `[shifts, 2]` for shifts that all images share.

    Returns:
      A `ShiftConsistency`.

    Raises:
      ValueError: if shapes do not fit, or shifts are not integers.

    Example:
      >>> first_pixel = lambda x: x[:, 0, 0]
      >>> images = jnp.eye(2).reshape(1, 2, 1, 2)
      >>> shift_consistency(first_pixel, images, jnp.array([[0, 0], [1, 0]])).consistency.tolist()
      [0.5]
    """
    shifts = jnp.asarray(shifts)
    if images.ndim != 4 or not jnp.issubdtype(shifts.dtype, jnp.integer) or shifts.ndim not in (2, 3):
        raise ValueError(
            f"shift_consistency got images {images.shape} and shifts {shifts.dtype} {shifts.shape}; expected "
            "[batch, height, width, channels] and integers [shifts, batch, 2] or [shifts, 2]."
        )
    if shifts.ndim == 2:
        shifts = jnp.broadcast_to(shifts[:, None], (shifts.shape[0], images.shape[0], shifts.shape[1]))
    if shifts.shape[0] < 1 or shifts.shape[1:] != (images.shape[0], 2):
        raise ValueError(f"shifts: got shape {shifts.shape}, expected [shifts, {images.shape[0]}, 2], at least one.")
    shape = jax.eval_shape(apply_fn, images).shape
    if len(shape) != 2 or shape[0] != images.shape[0]:
        raise ValueError(f"apply_fn gives shape {shape}; expected logits [{images.shape[0]}, num_classes].")

    # Images at rest take the same road: the program compiled twice could round otherwise.
    def one(rest: Array, shift: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        first, moves = shift
        logits = apply_fn(jax.vmap(shift_image)(images, moves[:, ::-1])).astype(jnp.float32)
        rest = jnp.where(first, logits, rest)
        return rest, (jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.max(jnp.abs(logits - rest), axis=-1))

    shifts = jnp.concatenate([jnp.zeros((1, images.shape[0], 2), jnp.int32), shifts.astype(jnp.int32)])
    first = np.arange(shifts.shape[0]) == 0
    rest, (labels, change) = lax.scan(one, jnp.zeros(shape, jnp.float32), (jnp.asarray(first), shifts))
    size = jnp.maximum(jnp.max(jnp.abs(rest), axis=-1), np.finfo(np.float32).tiny)
    same = labels[1:] == labels[:1]
    return ShiftConsistency(jnp.mean(same, axis=0, dtype=jnp.float32), jnp.max(change, axis=0) / size, labels[1:])


class ShiftViT(nn.Module):
    """Linen module over `shift_vit_apply`.

    Attributes:
      config: static description.
    """

    config: ViTConfig | PyramidConfig

    @nn.compact
    def __call__(self, images: Array, *, key: PRNGKey | None = None) -> Array:
        """Labels images `[..., height, width, channels_in]` with logits `[..., num_classes]`; `key` is for training."""
        params = self.param("transformer", functools.partial(shift_vit_init, config=self.config, dtype=images.dtype))
        return shift_vit_apply(params, images, self.config, key=key)


class ShiftViTSegmenter(nn.Module):
    """Linen module over `shift_vit_dense`; the parameters are those of `ShiftViT`.

    Attributes:
      config: static description.
    """

    config: ViTConfig | PyramidConfig

    @nn.compact
    def __call__(self, images: Array, *, key: PRNGKey | None = None) -> Array:
        """Labels pixels: `[..., height, width, channels_in]` to `[..., height, width, num_classes]`."""
        params = self.param("transformer", functools.partial(shift_vit_init, config=self.config, dtype=images.dtype))
        return shift_vit_dense(params, images, self.config, key=key)
