"""Convolutions of images, channels last, as pure functions: stride one, the image kept in size.

Boundaries are "circular" (the image is a torus, and cyclic shifts commute with the convolution exactly) or "zero".
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
    radius = kernel.shape[0] // 2
    if boundary == "circular" and radius > min(x.shape[-3:-1]):
        raise ValueError(f"kernel: got size {kernel.shape[0]}, too large for a torus of {x.shape[-3:-1]} pixels.")
    images = x.reshape(-1, *x.shape[-3:])
    if boundary == "circular" and radius > 0:
        images = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="wrap")
    padding = "VALID" if boundary == "circular" else "SAME"
    out = lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
    return out.reshape(*x.shape[:-1], kernel.shape[-1])
