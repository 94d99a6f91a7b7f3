"""Convolutions of images, channels last, as pure functions: stride one, the image kept in size.

Boundaries are "circular" (the image is a torus, and cyclic shifts commute with the convolution exactly) or "zero".

The convolution is a bilinear primitive of its own, and its derivative by the kernel another: inside a loop, XLA's CPU
back end runs the transposed convolutions that automatic differentiation would make up to 150 times slower than these
(16 images of 28 x 28, 128 channels: 78 s against 0.5 s), and compiles them for minutes. All derivatives of both, of
every order and mode, are again these two.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equivariant_jax.core.typing import Array, PRNGKey

__all__ = ["Boundary", "convolution", "convolution_init"]

Boundary = Literal["circular", "zero"]


def convolution_init(
    key: PRNGKey, size: int, channels_in: int, channels_out: int, *, gain: float = 1.0, dtype=jnp.float32
) -> Array:
    """Draws a kernel uniform in `+-gain / sqrt(size**2 channels_in)`.

    With `gain = 1` this is the default of PyTorch's convolutions; `sqrt(6)` keeps the second moment through a ReLU.

    Args:
      key: typed random key.
      size: odd; pixels of a side.
      channels_in: channels of the input.
      channels_out: channels of the output.
      gain: factor of the bound.
      dtype: of the kernel.

    Returns:
      Kernel, shape `[size, size, channels_in, channels_out]`.

    Raises:
      ValueError: if `size` is even or a number of channels is below one.
    """
    if size % 2 == 0 or min(size, channels_in, channels_out) < 1:
        raise ValueError(
            f"convolution_init got size={size}, {channels_in} channels in, {channels_out} out; expected an odd size "
            "and positive numbers of channels."
        )
    bound = gain / np.sqrt(size * size * channels_in)
    return jax.random.uniform(key, (size, size, channels_in, channels_out), dtype, -bound, bound)


def convolution(x: Array, kernel: Array, *, boundary: Boundary = "circular", precision=lax.Precision.HIGHEST) -> Array:
    """Correlates images with a kernel: `y[h, w] = sum_ij x[h + i - r, w + j - r] kernel[i, j]`, `r = (size - 1) / 2`.

    Args:
      x: images, shape `[..., height, width, channels_in]`, float.
      kernel: shape `[size, size, channels_in, channels_out]`, dtype of `x`; `size` odd.
      boundary: static; "circular" or "zero".
      precision: static; precision of the products.

    Returns:
      Images, shape `[..., height, width, channels_out]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit, or `boundary` is unknown.

    Example:
      >>> x = jnp.zeros((1, 5, 5, 1)).at[0, 0, 0, 0].set(1.0)
      >>> convolution(x, jnp.ones((3, 3, 1, 1)))[0, :, :, 0].sum(axis=0).tolist()  # round the corner
      [3.0, 3.0, 0.0, 0.0, 3.0]
    """
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(
            f"kernel: got shape {kernel.shape}, expected [size, size, channels_in, channels_out], odd size."
        )
    if x.ndim < 3 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"x: got shape {x.shape}, expected [..., height, width, {kernel.shape[2]}] for this kernel.")
    if boundary not in ("circular", "zero"):
        raise ValueError(f'boundary: got {boundary!r}, expected "circular" or "zero".')
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype}, the kernel {kernel.dtype}; cast one of them.")
    radius = kernel.shape[0] // 2
    if boundary == "circular" and radius > min(x.shape[-3:-1]):
        raise ValueError(f"kernel: got size {kernel.shape[0]}, too large for a torus of {x.shape[-3:-1]} pixels.")
    images, kernel = _vary_alike(x.reshape(-1, *x.shape[-3:]), kernel)
    out = _convolve_p.bind(images, kernel, boundary=boundary, precision=precision)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _padded(x: Array, radius: int, boundary: Boundary) -> Array:
    if radius == 0:
        return x
    width = ((0, 0), (radius, radius), (radius, radius), (0, 0))
    return jnp.pad(x, width, mode="wrap") if boundary == "circular" else jnp.pad(x, width)


def _convolve(x: Array, kernel: Array, *, boundary: Boundary, precision: Any) -> Array:
    return lax.conv_general_dilated(
        _padded(x, kernel.shape[0] // 2, boundary), kernel, (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
    )  # fmt: skip


def _correlate(x: Array, y: Array, *, size: int, boundary: Boundary, precision: Any) -> Array:
    """The kernel's derivative, `sum_nhw x[n, h + i - r, w + j - r] y[n, h, w]`."""
    batch, height, width, channels = x.shape
    padded, places, zero = _padded(x, size // 2, boundary), range(size), np.int32(0)
    accumulated = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    # Few images at a time, whose moved copies stay in the cache, as one matrix product with a wide right operand: with
    # one product for each (i, j) over all images the same sum takes 1.7 times as long (128 channels, 28 x 28).
    wanted = max(1, 512 // (height * width))
    share = max(d for d in range(1, min(wanted, batch) + 1) if batch % d == 0)

    def add(step: Array, total: Array) -> Array:
        at = (step.astype(np.int32) * np.int32(share), zero, zero, zero)
        images = lax.dynamic_slice(padded, at, (share, *padded.shape[1:]))
        moved = [images[:, i : i + height, j : j + width] for i in places for j in places]
        columns = jnp.concatenate(moved, axis=-1).reshape(-1, size * size * channels)
        rows = lax.dynamic_slice(y, at, (share, *y.shape[1:])).reshape(-1, y.shape[-1]).T
        return total + jnp.matmul(rows, columns, precision=precision, preferred_element_type=accumulated)

    start = jnp.zeros((y.shape[-1], size * size * channels), accumulated)
    total = lax.fori_loop(zero, np.int32(batch // share), add, start)
    return total.T.reshape(size, size, channels, y.shape[-1]).astype(x.dtype)


def _correlate_by_convolution(x: Array, y: Array, *, size: int, boundary: Boundary, precision: Any) -> Array:
    shape = jax.ShapeDtypeStruct((size, size, x.shape[-1], y.shape[-1]), x.dtype)
    convolve = functools.partial(_convolve, x, boundary=boundary, precision=precision)
    return jax.linear_transpose(convolve, shape)(y)[0]


def _varying(x: Array) -> frozenset:
    return getattr(getattr(jax.typeof(x), "manual_axis_type", None), "varying", frozenset())


def _vary_alike(x: Array, y: Array) -> tuple[Array, Array]:
    """Under shard_map both operands must vary over the same mesh axes; this also sums the kernel's cotangents."""
    both = _varying(x) | _varying(y)
    return tuple(
        lax.pcast(v, tuple(sorted(both - _varying(v))), to="varying") if both - _varying(v) else v for v in (x, y)
    )  # type: ignore[return-value]


_convolve_p = Primitive("image_convolution")
_correlate_p = Primitive("image_convolution_by_kernel")


@_convolve_p.def_abstract_eval
def _convolve_shape(x, kernel, *, boundary, precision):
    del boundary, precision
    return x.update(shape=(*x.shape[:-1], kernel.shape[-1]))


@_correlate_p.def_abstract_eval
def _correlate_shape(x, y, *, size, boundary, precision):
    del boundary, precision
    return x.update(shape=(size, size, x.shape[-1], y.shape[-1]))


@_convolve_p.def_impl
def _convolve_now(x, kernel, **static):
    return _convolve(x, kernel, **static)


@_correlate_p.def_impl
def _correlate_now(x, y, **static):
    one = _correlate if jax.default_backend() == "cpu" else _correlate_by_convolution
    return one(x, y, **static)


mlir.register_lowering(_convolve_p, mlir.lower_fun(_convolve, multiple_results=False))
mlir.register_lowering(_correlate_p, mlir.lower_fun(_correlate_by_convolution, multiple_results=False))
mlir.register_lowering(_correlate_p, mlir.lower_fun(_correlate, multiple_results=False), platform="cpu")


def _turned(kernel: Array) -> Array:
    """The kernel of the transposed map; on odd sizes both boundaries stay what they are."""
    return jnp.swapaxes(kernel[::-1, ::-1], -1, -2)


def _convolve_x_cotangent(ct, x, kernel, *, boundary, precision):
    return _convolve_p.bind(ct, _turned(kernel), boundary=boundary, precision=precision)


def _convolve_kernel_cotangent(ct, x, kernel, *, boundary, precision):
    size = kernel.aval.shape[0]
    return _correlate_p.bind(x, ct, size=size, boundary=boundary, precision=precision)


def _correlate_x_cotangent(ct, x, y, *, size, boundary, precision):
    return _convolve_p.bind(y, _turned(ct), boundary=boundary, precision=precision)


def _correlate_y_cotangent(ct, x, y, *, size, boundary, precision):
    return _convolve_p.bind(x, ct, boundary=boundary, precision=precision)


ad.defbilinear(_convolve_p, _convolve_x_cotangent, _convolve_kernel_cotangent)
ad.defbilinear(_correlate_p, _correlate_x_cotangent, _correlate_y_cotangent)


def _batch_convolve(operands, axes, **static):
    x, kernel = operands
    if axes[1] is not None:  # a kernel for each
        return jax.vmap(functools.partial(_convolve, **static), in_axes=axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    out = _convolve_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **static)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


def _batch_correlate(operands, axes, **static):
    return jax.vmap(functools.partial(_correlate, **static), in_axes=axes)(*operands), 0


batching.primitive_batchers[_convolve_p] = _batch_convolve
batching.primitive_batchers[_correlate_p] = _batch_correlate
