"""Depthwise convolutions of images, channels last: every channel has a kernel of its own.

On a CPU the sum over the kernel's pixels is one fused loop of shifted products, and its derivative by the kernel a loop
over rows; XLA's grouped convolution is many times slower there. Elsewhere it is the grouped convolution.
Both are bilinear primitives, and all derivatives, of every order and mode, are again these two.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equivariant_jax.core.typing import Array
from equivariant_jax.nn.convolution import Boundary, _padded, _vary_alike

__all__ = ["depthwise_convolution"]


def depthwise_convolution(
    x: Array, kernel: Array, *, boundary: Boundary = "zero", precision=lax.Precision.HIGHEST
) -> Array:
    """Correlates each channel with its kernel: `y[h, w, c] = sum_ij x[h + i - r, w + j - r, c] kernel[i, j, c]`.

    Args:
      x: images, shape `[..., height, width, channels]`, float.
      kernel: shape `[size, size, channels]`, dtype of `x`; `size = 2 r + 1`.
      boundary: static; "zero" or "circular".
      precision: static; precision of the products.

    Returns:
      Images of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or `boundary` is unknown.

    Example:
      >>> depthwise_convolution(jnp.ones((3, 3, 1)), jnp.ones((3, 3, 1)))[..., 0].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel: got shape {kernel.shape}, expected [size, size, channels], odd size.")
    if x.ndim < 3 or x.shape[-1] != kernel.shape[2] or x.dtype != kernel.dtype:
        raise ValueError(
            f"x: got {x.dtype} {x.shape}, expected {kernel.dtype} [..., height, width, {kernel.shape[2]}]."
        )
    if boundary not in ("circular", "zero"):
        raise ValueError(f'boundary: got {boundary!r}, expected "circular" or "zero".')
    if boundary == "circular" and kernel.shape[0] // 2 > min(x.shape[-3:-1]):
        raise ValueError(f"kernel: got size {kernel.shape[0]}, too large for a torus of {x.shape[-3:-1]} pixels.")
    images, kernel = _vary_alike(x.reshape(-1, *x.shape[-3:]), kernel)
    return _depthwise_p.bind(images, kernel, boundary=boundary, precision=precision).reshape(x.shape)


def _by_shifts(x: Array, kernel: Array, *, boundary: Boundary, precision: Any) -> Array:
    del precision  # sums of products of the operands' own dtype
    size, (height, width) = kernel.shape[0], x.shape[1:3]

    # Image by image: the padded image stays in the cache, and XLA can neither make the padding anew for every pixel of
    # the kernel nor the whole sum for everything that reads it (on a CPU it drops barriers before it fuses).
    def one(image: Array) -> Array:
        padded = _padded(image[None], size // 2, boundary)[0]
        taps = [
            padded[i : i + height, j : j + width] * kernel[i, j, None, None] for i in range(size) for j in range(size)
        ]
        return sum(taps[1:], start=taps[0])

    return lax.map(one, x)


def _by_shifts_kernel(x: Array, y: Array, *, size: int, boundary: Boundary, precision: Any) -> Array:
    """The kernel's derivative, `sum_nhw x[n, h + i - r, w + j - r, c] y[n, h, w, c]`."""
    del precision
    batch, height, width, channels = x.shape
    padded, zero, taps = _padded(x, size // 2, boundary), np.int32(0), range(size)

    # Row by row into one sum that stays in the cache: reductions of whole arrays, one for each pixel of the kernel,
    # would read them with long strides and take sixty times as long.
    def add_row(image: Array, h: Array, total: Array) -> Array:
        image, h = image.astype(np.int32), h.astype(np.int32)
        window = lax.dynamic_slice(padded, (image, h, zero, zero), (1, size, padded.shape[2], channels))[0]
        row = lax.dynamic_slice(y, (image, h, zero, zero), (1, 1, width, channels))[0, 0]
        return total + jnp.stack([jnp.stack([window[i, j : j + width] * row for j in taps]) for i in taps])

    def add_image(image: Array, total: Array) -> Array:
        return lax.fori_loop(zero, np.int32(height), functools.partial(add_row, image), total)

    start = jnp.zeros((size, size, width, channels), x.dtype) + jnp.zeros_like(y[0, 0])[None, None]
    return jnp.sum(lax.fori_loop(zero, np.int32(batch), add_image, start), axis=2)


def _grouped(x: Array, kernel: Array, *, boundary: Boundary, precision: Any) -> Array:
    return lax.conv_general_dilated(
        _padded(x, kernel.shape[0] // 2, boundary), kernel[:, :, None], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1], precision=precision,
    )  # fmt: skip


def _grouped_kernel(x: Array, y: Array, *, size: int, boundary: Boundary, precision: Any) -> Array:
    shape = jax.ShapeDtypeStruct((size, size, x.shape[-1]), x.dtype)
    convolve = lambda kernel: _grouped(x, kernel, boundary=boundary, precision=precision)  # noqa: E731
    return jax.linear_transpose(convolve, shape)(y)[0]


_depthwise_p = Primitive("depthwise_convolution")
_by_kernel_p = Primitive("depthwise_convolution_by_kernel")


@_depthwise_p.def_abstract_eval
def _shape(x, kernel, **_):
    del kernel
    return x.update(shape=x.shape)


@_by_kernel_p.def_abstract_eval
def _kernel_shape(x, y, *, size, **_):
    del y
    return x.update(shape=(size, size, x.shape[-1]))


@_depthwise_p.def_impl
def _now(x, kernel, **static):
    return (_by_shifts if jax.default_backend() == "cpu" else _grouped)(x, kernel, **static)


@_by_kernel_p.def_impl
def _by_kernel_now(x, y, **static):
    return (_by_shifts_kernel if jax.default_backend() == "cpu" else _grouped_kernel)(x, y, **static)


mlir.register_lowering(_depthwise_p, mlir.lower_fun(_grouped, multiple_results=False))
mlir.register_lowering(_depthwise_p, mlir.lower_fun(_by_shifts, multiple_results=False), platform="cpu")
mlir.register_lowering(_by_kernel_p, mlir.lower_fun(_grouped_kernel, multiple_results=False))
mlir.register_lowering(_by_kernel_p, mlir.lower_fun(_by_shifts_kernel, multiple_results=False), platform="cpu")


def _turned(kernel: Array) -> Array:
    return kernel[::-1, ::-1]


ad.defbilinear(
    _depthwise_p,
    lambda ct, x, kernel, **static: _depthwise_p.bind(ct, _turned(kernel), **static),
    lambda ct, x, kernel, **static: _by_kernel_p.bind(x, ct, size=kernel.aval.shape[0], **static),
)
ad.defbilinear(
    _by_kernel_p,
    lambda ct, x, y, *, size, **static: _depthwise_p.bind(y, _turned(ct), **static),
    lambda ct, x, y, *, size, **static: _depthwise_p.bind(x, ct, **static),
)


def _batch_depthwise(operands, axes, **static):
    x, kernel = operands
    if axes[1] is not None:  # a kernel for each
        return jax.vmap(functools.partial(_by_shifts, **static), in_axes=axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    out = _depthwise_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **static)
    return out.reshape(x.shape), 0


def _batch_by_kernel(operands, axes, **static):
    return jax.vmap(functools.partial(_by_shifts_kernel, **static), in_axes=axes)(*operands), 0


batching.primitive_batchers[_depthwise_p] = _batch_depthwise
batching.primitive_batchers[_by_kernel_p] = _batch_by_kernel
