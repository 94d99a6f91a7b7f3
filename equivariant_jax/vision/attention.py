r"""Layers of vision transformers on maps of tokens, and which shifts of the torus they commute with.

    patch embedding           F(S_{s k} x) = S_k F(x)        stride s, kernel s
    window attention          F(S_{w k} x) = S_{w k} F(x)    softmax(Q K^T / sqrt(d)) V in each w x w window
    subsampled attention      F(S_{r k} x) = S_{r k} F(x)    all tokens ask, a stride-r convolution of them answers
    depthwise position code   F(S_g x) = S_g F(x)            x + DWConv(x) on the torus, which adds no absolute position

Global attention over tokens without positions commutes with all permutations. Anchoring (`vision.polyphase`) turns the
first three laws into ones for all shifts. Maps are `[..., height, width, channels]`. Normalisation and softmax are in
float32 at least, everything else in the dtype of the input.

References: Ding et al. 2023, arXiv:2306.07470; Chu et al. 2021, arXiv:2104.13840 (Twins); Liu et al. 2021,
arXiv:2103.14030 (Swin: windows moved by half, relative position bias).
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.depthwise import depthwise_convolution

__all__ = [
    "attention_init",
    "depthwise_position",
    "depthwise_position_init",
    "global_attention",
    "patch_embed",
    "patch_embed_init",
    "subsampled_attention",
    "window_attention",
]


def _dense_init(key: PRNGKey, features_in: int, features_out: int, dtype, *, bias: bool = True) -> PyTree:
    """Normal of deviation 0.02 cut at two deviations, as published; biases zero."""
    draw = jax.random.truncated_normal(key, -2, 2, (features_in, features_out), jnp.float32)
    params = {"kernel": (draw * np.float32(0.02)).astype(dtype)}
    return {**params, "bias": jnp.zeros((features_out,), dtype)} if bias else params


def _dense(params: PyTree, x: Array, precision) -> Array:
    y = jnp.matmul(x, params["kernel"], precision=precision)
    return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in params else y


def _layer_norm_init(features: int, dtype) -> PyTree:
    return {"scale": jnp.ones((features,), dtype), "bias": jnp.zeros((features,), dtype)}


def _layer_norm(params: PyTree, x: Array, epsilon: float = 1e-6) -> Array:
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    one = (1,) * (x.ndim - 1) + (-1,)
    scaled = wide * lax.rsqrt(variance + np.asarray(epsilon, wide.dtype))
    return scaled.astype(x.dtype) * params["scale"].reshape(one) + params["bias"].reshape(one)


def _check_map(x: Array, channels: int, divisor: int, name: str) -> None:
    if x.ndim < 3 or x.shape[-1] != channels:
        raise ValueError(f"{name} got shape {x.shape}; expected [..., height, width, {channels}] for these parameters.")
    if divisor < 1 or x.shape[-3] % divisor or x.shape[-2] % divisor:
        raise ValueError(
            f"{name} got a map of {x.shape[-3]} x {x.shape[-2]} for blocks of {divisor}; expected a positive size that "
            "divides both sides. Resize the image."
        )


def _blocks(x: Array, size: int) -> Array:
    """`[..., H, W, C]` to `[..., H / size, W / size, size * size, C]`."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // size, size, width // size, size, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, height // size, width // size, size * size, channels)


def _unblocked(x: Array, size: int) -> Array:
    *lead, rows, columns, _, channels = x.shape
    x = jnp.swapaxes(x.reshape(*lead, rows, columns, size, size, channels), -4, -3)
    return x.reshape(*lead, rows * size, columns * size, channels)


def patch_embed_init(key: PRNGKey, stride: int, channels_in: int, channels_out: int, *, dtype=jnp.float32) -> PyTree:
    """Draws a convolution whose kernel is as wide as its stride.

    Args:
      key: typed random key.
      stride: pixels of a patch's side.
      channels_in: channels of the image.
      channels_out: channels of a token.
      dtype: of the parameters.

    Returns:
      `kernel` `[stride, stride, channels_in, channels_out]` of variance `1 / (stride^2 channels_in)`, `bias` (zero).

    Raises:
      ValueError: if a number is below one.
    """
    if min(stride, channels_in, channels_out) < 1:
        raise ValueError(
            f"patch_embed_init got stride={stride}, {channels_in} channels in, {channels_out} out; expected positive "
            "numbers."
        )
    shape = (stride, stride, channels_in, channels_out)
    deviation = np.float32(1 / math.sqrt(stride * stride * channels_in))
    kernel = jax.random.normal(key, shape, jnp.float32) * deviation
    return {"kernel": kernel.astype(dtype), "bias": jnp.zeros((channels_out,), dtype)}


def patch_embed(params: PyTree, x: Array, *, precision=lax.Precision.HIGHEST) -> Array:
    """Embeds patches: a convolution of equal kernel and stride s, as one matrix product.

    Args:
      params: from `patch_embed_init`; they fix the stride.
      x: shape `[..., height, width, channels_in]`, dtype of `params`.
      precision: static; of the products.

    Returns:
      Tokens, shape `[..., height / s, width / s, channels_out]`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> params = patch_embed_init(jax.random.key(0), 4, 3, 8)
      >>> patch_embed(params, jnp.ones((2, 16, 12, 3))).shape
      (2, 4, 3, 8)
    """
    stride, _, channels, width = params["kernel"].shape
    _check_map(x, channels, stride, "patch_embed")
    blocks = _blocks(x, stride)
    flat = blocks.reshape(*blocks.shape[:-2], -1)
    return _dense({"kernel": params["kernel"].reshape(-1, width), "bias": params["bias"]}, flat, precision)


def depthwise_position_init(key: PRNGKey, channels: int, *, size: int = 3, dtype=jnp.float32) -> PyTree:
    """Draws the kernel of a position code.

    Args:
      key: typed random key.
      channels: channels of the map.
      size: odd; side of the kernel.
      dtype: of the parameters.

    Returns:
      `kernel` `[size, size, channels]` of variance `1 / size^2`, `bias` `[channels]` (zero).

    Raises:
      ValueError: if the size is even or there is no channel.
    """
    if size < 1 or size % 2 == 0 or channels < 1:
        raise ValueError(f"depthwise_position_init got size={size}, {channels} channels; expected odd and positive.")
    kernel = jax.random.normal(key, (size, size, channels), jnp.float32) * np.float32(1 / size)
    return {"kernel": kernel.astype(dtype), "bias": jnp.zeros((channels,), dtype)}


def depthwise_position(
    params: PyTree,
    x: Array,
    *,
    boundary: Literal["circular", "zero"] = "circular",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Adds to each token a filter of its neighbours, `x + DWConv(x) + bias`; commutes with all shifts of the torus.

    Args:
      params: from `depthwise_position_init`.
      x: shape `[..., height, width, channels]`, dtype of `params`.
      boundary: static; "zero", as in ordinary networks, tells tokens how far the border is and breaks the law.
      precision: static; of the products.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> params = depthwise_position_init(jax.random.key(0), 8)
      >>> depthwise_position(params, jnp.ones((4, 4, 8))).shape
      (4, 4, 8)
    """
    around = depthwise_convolution(x, params["kernel"], boundary=boundary, precision=precision)
    return x + around + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def attention_init(
    key: PRNGKey, channels: int, heads: int, *, window: int | None = None, stride: int = 1, dtype=jnp.float32
) -> PyTree:
    """Draws the parameters of an attention layer.

    Args:
      key: typed random key.
      channels: of tokens; the heads share them.
      heads: number of heads.
      window: side of the windows for a relative position bias, or None for none.
      stride: of the convolution that makes keys and values (`subsampled_attention`); 1 for none.
      dtype: of the parameters.

    Returns:
      `query` `[channels, channels]`, `key_value` `[channels, 2 channels]` and `out` (kernels with biases); with a
      window `relative` `[(2 window - 1)^2, heads]`; with a stride `reduce` (see `patch_embed_init`) and `norm`.

    Raises:
      ValueError: if the heads do not divide the channels.

    Example:
      >>> sorted(attention_init(jax.random.key(0), 8, 2, stride=2))
      ['key_value', 'norm', 'out', 'query', 'reduce']
    """
    if heads < 1 or channels % heads or channels < 1:
        raise ValueError(f"attention_init got {channels} channels, {heads} heads; expected heads to divide channels.")
    query, key_value, out, extra = jax.random.split(key, 4)
    params = {
        "query": _dense_init(query, channels, channels, dtype),
        "key_value": _dense_init(key_value, channels, 2 * channels, dtype),
        "out": _dense_init(out, channels, channels, dtype),
    }
    if window is not None:
        params["relative"] = _dense_init(extra, (2 * window - 1) ** 2, heads, dtype, bias=False)["kernel"]
    if stride > 1:
        params["reduce"] = patch_embed_init(extra, stride, channels, channels, dtype=dtype)
        params["norm"] = _layer_norm_init(channels, dtype)
    return params


def _attend(params: PyTree, x: Array, source: Array, heads: int, bias: Array | None, precision) -> Array:
    """Tokens `[..., n, C]` ask tokens `[..., m, C]`; `bias` is added to the scores `[..., heads, n, m]`."""
    depth = x.shape[-1] // heads

    def split(y: Array) -> Array:
        return y.reshape(*y.shape[:-1], heads, depth)

    query = split(_dense(params["query"], x, precision))
    key, value = (split(y) for y in jnp.split(_dense(params["key_value"], source, precision), 2, axis=-1))
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    scores = jnp.einsum("...nhd,...mhd->...hnm", query, key, precision=precision, preferred_element_type=wide)
    scores = scores * np.asarray(1 / math.sqrt(depth), wide)
    if bias is not None:
        scores = scores + bias.astype(wide)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("...hnm,...mhd->...nhd", weights, value, precision=precision)
    return _dense(params["out"], mixed.reshape(x.shape), precision)


def _check_heads(params: PyTree, heads: int, name: str) -> int:
    channels = params["query"]["kernel"].shape[0]
    if heads < 1 or channels % heads:
        raise ValueError(f"{name} got {heads} heads for {channels} channels; expected a divisor of the channels.")
    return channels


def global_attention(params: PyTree, x: Array, *, heads: int, precision=lax.Precision.HIGHEST) -> Array:
    """Attention of all tokens to all tokens; commutes with every permutation of them.

    Args:
      params: from `attention_init`.
      x: shape `[..., tokens, channels]`, dtype of `params`.
      heads: static.
      precision: static; of the products.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> global_attention(attention_init(jax.random.key(0), 8, 2), jnp.ones((5, 8)), heads=2).shape
      (5, 8)
    """
    channels = _check_heads(params, heads, "global_attention")
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(f"global_attention got shape {x.shape}; expected [..., tokens, {channels}].")
    return _attend(params, x, x, heads, None, precision)


def _relative_places(window: int) -> np.ndarray:
    """Row of the bias table for each pair of a window's positions."""
    place = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), axis=-1).reshape(-1, 2)
    offset = place[:, None] - place[None, :] + window - 1
    return (offset[..., 0] * (2 * window - 1) + offset[..., 1]).astype(np.int32)


def _separated(height: int, width: int, window: int, offset: int) -> np.ndarray:
    """True for pairs of a moved window that were apart before the map was rolled, `[H / w, W / w, w^2, w^2]`."""
    crossed = [np.arange(size) >= size - offset for size in (height, width)]
    label = (2 * crossed[0][:, None] + crossed[1][None, :]).reshape(height // window, window, width // window, window)
    label = label.swapaxes(1, 2).reshape(height // window, width // window, window * window)
    return label[..., :, None] != label[..., None, :]


def window_attention(
    params: PyTree,
    x: Array,
    *,
    window: int,
    heads: int,
    offset: int = 0,
    boundary: Literal["circular", "zero"] = "circular",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Attention inside of windows; commutes with shifts by multiples of the window.

    Args:
      params: from `attention_init`; with `relative` a bias by the offset of two positions is added.
      x: shape `[..., height, width, channels]`, dtype of `params`.
      window: static; side of the windows, a divisor of both sides.
      heads: static.
      offset: static; how far down and to the right the windows are moved, as in every second block of Swin.
      boundary: static; "zero" keeps what a moved window joins from opposite sides of the image apart, as published, and
        breaks the law; on the torus there is nothing to keep apart.
      precision: static; of the products.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> params = attention_init(jax.random.key(0), 8, 2)
      >>> window_attention(params, jnp.ones((6, 9, 8)), window=3, heads=2).shape
      (6, 9, 8)
    """
    _check_map(x, _check_heads(params, heads, "window_attention"), window, "window_attention")
    if boundary not in ("circular", "zero") or not 0 <= offset < window:
        raise ValueError(
            f'window_attention got boundary={boundary!r}, offset={offset}; expected "circular" or "zero" and an offset '
            f"below the window's {window}."
        )
    bias = None
    if "relative" in params:
        if params["relative"].shape[0] != (2 * window - 1) ** 2:
            raise ValueError(
                f"window_attention got a bias table of {params['relative'].shape[0]} rows; expected "
                f"{(2 * window - 1) ** 2} for windows of {window}."
            )
        bias = jnp.moveaxis(params["relative"][_relative_places(window)], -1, 0)
        bias = bias.reshape((1,) * (x.ndim - 1) + bias.shape)
    if offset and boundary == "zero":
        apart = _separated(x.shape[-3], x.shape[-2], window, offset)[..., None, :, :]
        apart = np.where(apart, np.float32(-100), np.float32(0)).reshape((1,) * (x.ndim - 3) + apart.shape)
        bias = jnp.asarray(apart, x.dtype) if bias is None else bias + jnp.asarray(apart, bias.dtype)
    moved = jnp.roll(x, (-offset, -offset), axis=(-3, -2)) if offset else x
    blocks = _blocks(moved, window)
    y = _unblocked(_attend(params, blocks, blocks, heads, bias, precision), window)
    return jnp.roll(y, (offset, offset), axis=(-3, -2)) if offset else y


def subsampled_attention(params: PyTree, x: Array, *, heads: int, precision=lax.Precision.HIGHEST) -> Array:
    """Attention of all tokens to a coarser map of them; commutes with shifts by multiples of its stride.

    Args:
      params: from `attention_init` with a stride r, which they fix; without one keys and values are all tokens'.
      x: shape `[..., height, width, channels]`, dtype of `params`; r divides both sides.
      heads: static.
      precision: static; of the products.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> params = attention_init(jax.random.key(0), 8, 2, stride=2)
      >>> subsampled_attention(params, jnp.ones((4, 6, 8)), heads=2).shape
      (4, 6, 8)
    """
    stride = params["reduce"]["kernel"].shape[0] if "reduce" in params else 1
    _check_map(x, _check_heads(params, heads, "subsampled_attention"), stride, "subsampled_attention")
    source = x
    if stride > 1:
        source = _layer_norm(params["norm"], patch_embed(params["reduce"], x, precision=precision))
    tokens, source = (y.reshape(*y.shape[:-3], -1, y.shape[-1]) for y in (x, source))
    return _attend(params, tokens, source, heads, None, precision).reshape(x.shape)
