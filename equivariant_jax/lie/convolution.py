r"""Affine group convolutions of images: lifting, group convolution and read-out, with the samples as arguments.

G is the plane's translations and a group H of 2 x 2 matrices, `(x, h)(y, g) = (x + h y, h g)`. It acts on images by
`(L f)(x) = f(g^-1 (x - y))` and on lifted features by `(L F)(x, h) = F(g^-1 (x - y), g^-1 h)`. With the Haar measure mu

    lifting            F(x, h)  = |det h|^-1 int f(u) k(h^-1 (u - x)) du
    group convolution  F'(x, h) = int int F(u, v) k(h^-1 (u - x), h^-1 v) |det v|^-1 du d mu(v)

commute with both actions; their maximum, or mean, over x and h does not change at all. The integrals are sums over
pixels and over weighted samples of H (`lie.sampling`): what is exact for the integrals holds for the sums up to the
error of the quadrature, to which belong the finite set of samples (a transformation moves some of them out of it), the
grid of pixels and the image's border.

Spatial measure: the square around the unstretched kernel's disc has area one, a pixel `size^-2`.

Features are `[..., height, width, samples, channels]`. Kernels are described by an `AffineKernelConfig`; both forms are
ordinary convolutions with weights made from the network at every call. Full: one with `samples * channels` channels.
Separable: a mix of samples and channels, then a depthwise convolution.

References: Mironenco & Forre 2024, arXiv:2310.11366, section 3; MacDonald et al. 2022, arXiv:2111.08251.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.lie.decomposition import LinearGroup
from equivariant_jax.lie.kernels import (
    AffineKernelConfig,
    affine_kernel,
    group_factor,
    kernel_grid,
    space_factor,
)
from equivariant_jax.lie.sampling import GroupSamples
from equivariant_jax.nn.depthwise import depthwise_convolution
from equivariant_jax.nn.pooling import global_max

__all__ = ["affine_group_conv", "group_kernel", "group_measure", "group_pool", "lift_conv", "lift_kernel"]

Padding = Literal["same", "valid"]


def _check(samples: GroupSamples, config: AffineKernelConfig, name: str) -> None:
    if samples.matrix.ndim != 3 or samples.matrix.shape[-1] != 2 or config.group.n != 2:
        raise ValueError(
            f"{name}: got matrices {samples.matrix.shape} for {config.group}; expected [samples, 2, 2] of a group with "
            "n = 2 (for homographies see equivariant_jax.lie.homography)."
        )


def _determinant(a: Array) -> Array:
    return a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]


def _positions(samples: GroupSamples, config: AffineKernelConfig) -> Array:
    """Where each sample's kernel reads, `h^-1 x`, `[samples, side, side, 2]`."""
    grid = kernel_grid(config, dtype=samples.inverse.dtype)
    return jnp.einsum("sij,yxj->syxi", samples.inverse, grid, precision=lax.Precision.HIGHEST)


def lift_kernel(params: PyTree, samples: GroupSamples, config: AffineKernelConfig, channels_in: int = 1) -> Array:
    """Weights of the lifting convolution, `|det h|^-1 k(h^-1 x) size^-2`.

    Args:
      params: from `affine_kernel_init(..., lifting=True)`.
      samples: elements h, matrices `[samples, 2, 2]`; dtype of `params`.
      config: static.
      channels_in: static.

    Returns:
      Weights, shape `[side, side, channels_in, samples, channels_out]`.

    Raises:
      ValueError: if the matrices are not 2 x 2.
    """
    _check(samples, config, "samples")
    kernel = affine_kernel(params, _positions(samples, config), None, config, channels_in)
    kernel = kernel * np.asarray(config.size**-2, kernel.dtype)
    if not config.group.preserves_volume:
        kernel = kernel * jnp.abs(_determinant(samples.inverse))[:, None, None, None, None]
    return jnp.moveaxis(kernel, 0, 3)


def group_kernel(
    params: PyTree, samples_in: GroupSamples, samples_out: GroupSamples, config: AffineKernelConfig, channels_in: int
) -> Array:
    """Weights of the full group convolution, `k(h^-1 x, h^-1 v) |det v|^-1 w_v size^-2`.

    Args:
      params: from `affine_kernel_init`.
      samples_in: elements v with weights, matrices `[samples_in, 2, 2]`.
      samples_out: elements h, matrices `[samples_out, 2, 2]`.
      config: static; a separable kernel is multiplied out.
      channels_in: static.

    Returns:
      Weights, shape `[side, side, samples_in, channels_in, samples_out, channels_out]`.

    Raises:
      ValueError: if the matrices are not 2 x 2.
    """
    _check(samples_in, config, "samples_in")
    _check(samples_out, config, "samples_out")
    relative = _relative(samples_in, samples_out)
    x = _positions(samples_out, config)
    shape = (*x.shape[:3], relative.shape[1])
    x = jnp.broadcast_to(x[:, :, :, None], (*shape, 2))
    h = jnp.broadcast_to(relative[:, None, None], (*shape, 2, 2))
    kernel = affine_kernel(params, x, h, config, channels_in)
    kernel = kernel * group_measure(samples_in, config.group)[None, None, None, :, None, None]
    return jnp.moveaxis(kernel * np.asarray(config.size**-2, kernel.dtype), 0, 4)


def _relative(samples_in: GroupSamples, samples_out: GroupSamples) -> Array:
    """`h^-1 v`, `[samples_out, samples_in, 2, 2]`."""
    return jnp.einsum("oij,sjk->osik", samples_out.inverse, samples_in.matrix, precision=lax.Precision.HIGHEST)


def group_measure(samples: GroupSamples, group: LinearGroup) -> Array:
    """What each sample counts in an integral over features, `w_v |det v|^-1`.

    Args:
      samples: elements v with weights, matrices `[samples, 2, 2]`.
      group: static.

    Returns:
      Array, shape `[samples]`.
    """
    if group.preserves_volume:
        return samples.weights
    return samples.weights * jnp.abs(_determinant(samples.inverse))


def _convolve(x: Array, kernel: Array, padding: Padding, precision, stride: int = 1) -> Array:
    side = kernel.shape[0]
    if padding == "valid" and min(x.shape[-3:-1]) < side:
        raise ValueError(
            f"images of {x.shape[-3:-1]} pixels are smaller than the kernel's {side}; take padding='same'."
        )
    images = x.reshape(-1, *x.shape[-3:])
    out = lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding.upper(),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return out.reshape(*x.shape[:-3], *out.shape[1:])


def lift_conv(
    params: PyTree,
    image: Array,
    samples: GroupSamples,
    config: AffineKernelConfig,
    *,
    padding: Padding = "same",
    stride: int = 1,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Lifts images to the group: `F(x, h) = |det h|^-1 sum_u f(u) k(h^-1 (u - x)) size^-2`.

    Args:
      params: from `affine_kernel_init(..., lifting=True)`.
      image: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: elements h; matrices `[samples, 2, 2]`; dtype of `params`.
      config: static.
      padding: static; "same" (zeros outside) or "valid".
      stride: static; pixels from one output to the next.
      precision: static; of the products.

    Returns:
      Features, shape `[..., height, width, samples, channels_out]`, of the strided height and width.

    Raises:
      ValueError: if shapes do not fit, or `padding` is unknown.

    Example:
      >>> import jax
      >>> from equivariant_jax.lie import SL2, affine_kernel_init, sample_polar
      >>> config = AffineKernelConfig(SL2)
      >>> params = affine_kernel_init(jax.random.key(0), config, 1, 4, lifting=True)
      >>> lift_conv(params, jnp.ones((8, 8, 1)), sample_polar(jax.random.key(1), 6, SL2), config).shape
      (8, 8, 6, 4)
    """
    _check_padding(padding)
    if image.ndim < 3:
        raise ValueError(f"image: got shape {image.shape}, expected [..., height, width, channels].")
    kernel = lift_kernel(params, samples, config, image.shape[-1])
    out = _convolve(image, kernel.reshape(*kernel.shape[:3], -1), padding, precision, stride)
    return out.reshape(*out.shape[:-1], *kernel.shape[3:])


def _check_padding(padding: str) -> None:
    if padding not in ("same", "valid"):
        raise ValueError(f'padding: got {padding!r}, expected "same" or "valid".')


def affine_group_conv(
    params: PyTree,
    features: Array,
    samples_in: GroupSamples,
    samples_out: GroupSamples,
    config: AffineKernelConfig,
    *,
    padding: Padding = "same",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves lifted features, `F'(x, h) = sum_uv F(u, v) k(h^-1 (u - x), h^-1 v) |det v|^-1 w_v size^-2`.

    Args:
      params: from `affine_kernel_init`.
      features: shape `[..., height, width, samples_in, channels_in]`, dtype of `params`.
      samples_in: elements v with weights, matrices `[samples_in, 2, 2]`.
      samples_out: elements h, matrices `[samples_out, 2, 2]`.
      config: static.
      padding: static; "same" (zeros outside) or "valid".
      precision: static; of the products.

    Returns:
      Features, shape `[..., height, width, samples_out, channels_out]`.

    Raises:
      ValueError: if shapes do not fit, or `padding` is unknown.

    Example:
      >>> import jax
      >>> from equivariant_jax.lie import SL2, affine_kernel_init, sample_polar
      >>> config, samples = AffineKernelConfig(SL2, separable=True), sample_polar(jax.random.key(1), 6, SL2)
      >>> params = affine_kernel_init(jax.random.key(0), config, 3, 4)
      >>> affine_group_conv(params, jnp.ones((8, 8, 6, 3)), samples, samples, config).shape
      (8, 8, 6, 4)
    """
    _check_padding(padding)
    _check(samples_in, config, "samples_in")
    _check(samples_out, config, "samples_out")
    if features.ndim < 4 or features.shape[-2] != samples_in.matrix.shape[0]:
        raise ValueError(
            f"features: got shape {features.shape}, expected [..., height, width, {samples_in.matrix.shape[0]}, "
            "channels] for these samples."
        )
    channels_in = features.shape[-1]
    flat = features.reshape(*features.shape[:-2], -1)
    if not config.separable:
        kernel = group_kernel(params, samples_in, samples_out, config, channels_in)
        merged = kernel.reshape(*kernel.shape[:2], flat.shape[-1], -1)
        out = _convolve(flat, merged, padding, precision)
        return out.reshape(*out.shape[:-1], *kernel.shape[4:])
    mix = group_factor(params, _relative(samples_in, samples_out), config, channels_in)
    mix = mix * group_measure(samples_in, config.group)[None, :, None, None]
    mixed = jnp.einsum("...sc,oscd->...od", features, mix, precision=precision)
    space = space_factor(params, _positions(samples_out, config), config) * np.asarray(config.size**-2, mix.dtype)
    kernel = jnp.moveaxis(space, 0, 2)
    out = depthwise_convolution(
        mixed.reshape(*mixed.shape[:-2], -1), kernel.reshape(*kernel.shape[:2], -1), precision=precision
    ).reshape(mixed.shape)
    radius = config.side // 2
    if padding == "valid" and radius:
        if min(mixed.shape[-4:-2]) < config.side:
            raise ValueError(f"images of {mixed.shape[-4:-2]} pixels are smaller than the kernel's {config.side}.")
        out = out[..., radius:-radius, radius:-radius, :, :]
    return out


def group_pool(features: Array, *, how: Literal["max", "mean"] = "max", samples: GroupSamples | None = None) -> Array:
    """Reads out what no transformation of the group changes.

    Args:
      features: shape `[..., height, width, samples, channels]`, float.
      how: static; the maximum over positions and samples, or the mean over positions and, by their weights, samples.
      samples: needed for the mean.

    Returns:
      Array, shape `[..., channels]`, dtype of `features`.

    Raises:
      ValueError: if `how` is unknown, or samples are missing or of another number.

    Example:
      >>> group_pool(jnp.arange(8.0).reshape(1, 2, 2, 2)).tolist()
      [6.0, 7.0]
    """
    if features.ndim < 4 or how not in ("max", "mean"):
        raise ValueError(
            f"group_pool got features {features.shape} and how={how!r}; expected [..., height, width, samples, "
            'channels] and "max" or "mean".'
        )
    if how == "max":
        return global_max(features, axes=3)
    if samples is None or samples.log_weight.shape != features.shape[-2:-1]:
        raise ValueError(f"group_pool needs the {features.shape[-2]} samples for a mean.")
    share = samples.weights / jnp.sum(samples.weights)
    return jnp.einsum("...sc,s->...c", jnp.mean(features, axis=(-4, -3)), share, precision=lax.Precision.HIGHEST)
