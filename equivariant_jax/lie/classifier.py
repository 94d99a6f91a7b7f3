r"""Labels images by affine group convolutions; the label's scores do not change when a transformation moves the image.

    lifting -> norm, GELU -> residual block (two group convolutions) -> norm -> 2 x 2 maximum -> GELU
            -> group convolution -> norm, GELU -> maximum over positions and samples -> two dense layers

Law: `logits(L_g f) == logits(f)` for affine g, up to the errors of sampling the plane and the group (see
`equivariant_jax.lie.convolution`).

`published_classifier` has the settings of the paper's code (339,102 parameters for SL(2), 339,282 for GL+(2)), whose
samples are drawn anew in every call (`published_samples`). What this module changes by default, since the layers are
then closer to the law: kernels that see angles without a jump and are not cut off, weighted integrals, normalisation of
each position by itself (the published one is over channels, samples and positions, so that it changes with the border
and with the samples), zeros outside of the image where the background is zero.

Reference: Mironenco & Forre 2024, arXiv:2310.11366, section 5, and its official code.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.lie.convolution import affine_group_conv, group_pool, lift_conv
from equivariant_jax.lie.decomposition import SL2, LinearGroup
from equivariant_jax.lie.kernels import AffineKernelConfig, affine_kernel_init
from equivariant_jax.lie.sampling import GroupSamples

__all__ = [
    "AffineClassifier",
    "AffineClassifierConfig",
    "affine_classifier_apply",
    "affine_classifier_init",
    "averaged_probabilities",
    "published_classifier",
]


@dataclasses.dataclass(frozen=True)
class AffineClassifierConfig:
    """Static description of a classifier.

    Attributes:
      kernel: of all convolutions; the lifting's is not separable.
      num_classes: number of labels.
      channels_in: of the images.
      channels: of all features.
      head: width of the hidden dense layer.
      dropout: rate before the last layer.
      normalisation: "position" (over channels) or "published" (over channels, samples and positions).
      border: "same" keeps the image's size, "valid" shrinks it in the first and the last convolution, as published.
      early_pooling: whether another 2 x 2 maximum follows the lifting.
      pool: "max" or "mean", the read-out.
    """

    kernel: AffineKernelConfig = dataclasses.field(default_factory=lambda: AffineKernelConfig(SL2))
    num_classes: int = 10
    channels_in: int = 1
    channels: int = 40
    head: int = 256
    dropout: float = 0.3
    normalisation: Literal["position", "published"] = "position"
    border: Literal["same", "valid"] = "same"
    early_pooling: bool = False
    pool: Literal["max", "mean"] = "max"

    def __post_init__(self):
        if min(self.num_classes, self.channels_in, self.channels, self.head) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"got num_classes={self.num_classes}, channels_in={self.channels_in}, channels={self.channels}, "
                f"head={self.head}, dropout={self.dropout}; expected positive numbers and a rate in [0, 1)."
            )
        for name, known in (
            ("normalisation", ("position", "published")),
            ("border", ("same", "valid")),
            ("pool", ("max", "mean")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}.")


def published_classifier(group: LinearGroup = SL2) -> AffineClassifierConfig:
    """Makes the description of the paper's network for 40 x 40 images scaled to [-1, 1].

    Args:
      group: static; SL2 or GL2.

    Returns:
      The description; shapes of images are `[batch, 40, 40, 1]`.
    """
    window = "disc" if group.preserves_volume else "logistic"
    kernel = AffineKernelConfig(group, size=5, reach=1.0, angles="published", window=window)
    return AffineClassifierConfig(kernel, normalisation="published", border="valid")


def _dense_init(key: PRNGKey, features_in: int, features_out: int, bias: bool, dtype) -> PyTree:
    bound = 1 / math.sqrt(features_in)
    key_kernel, key_bias = jax.random.split(key)
    params = {"kernel": jax.random.uniform(key_kernel, (features_in, features_out), dtype, -bound, bound)}
    if bias:
        params["bias"] = jax.random.uniform(key_bias, (features_out,), dtype, -bound, bound)
    return params


def affine_classifier_init(key: PRNGKey, config: AffineClassifierConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      Kernels of `lift`, `first`, `second` and `last` (see `affine_kernel_init`), and of the head `hidden` (kernel
      `[channels, head]`), `norm` (scale and bias `[head]`) and `out` (kernel `[head, num_classes]`, bias).
    """
    key_lift, key_first, key_second, key_last, key_hidden, key_out = jax.random.split(key, 6)
    convolution = {
        name: affine_kernel_init(k, config.kernel, config.channels, config.channels, dtype=dtype)
        for name, k in (("first", key_first), ("second", key_second), ("last", key_last))
    }
    return {
        "lift": affine_kernel_init(
            key_lift, config.kernel, config.channels_in, config.channels, lifting=True, dtype=dtype
        ),
        **convolution,
        "hidden": _dense_init(key_hidden, config.channels, config.head, False, dtype),
        "norm": {"scale": jnp.ones((config.head,), dtype), "bias": jnp.zeros((config.head,), dtype)},
        "out": _dense_init(key_out, config.head, config.num_classes, True, dtype),
    }


def _normalised(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide * lax.rsqrt(variance + np.asarray(epsilon, wide.dtype))).astype(x.dtype)


def _halved(x: Array) -> Array:
    """Maximum over 2 x 2 pixels, `[..., height, width, samples, channels]`; an odd last row or column is dropped."""
    height, width = x.shape[-4] // 2, x.shape[-3] // 2
    x = x[..., : 2 * height, : 2 * width, :, :]
    blocks = x.reshape(*x.shape[:-4], height, 2, width, 2, *x.shape[-2:])
    return jnp.max(blocks, axis=(-5, -3))


def affine_classifier_apply(
    params: PyTree,
    images: Array,
    samples: tuple[GroupSamples, GroupSamples],
    config: AffineClassifierConfig,
    *,
    key: PRNGKey | None = None,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Labels images.

    Args:
      params: from `affine_classifier_init`.
      images: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: two sets of group elements, matrices `[samples, 2, 2]`: of the lifting and the block, and of the last
        convolution; they may be the same.
      config: static.
      key: for dropout (training); None for none.
      precision: static; of the products.

    Returns:
      Logits, shape `[..., num_classes]`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> from equivariant_jax.lie import sample_polar
      >>> config = AffineClassifierConfig(AffineKernelConfig(SL2, separable=True), channels=4, head=8)
      >>> samples = sample_polar(jax.random.key(1), 6, SL2)
      >>> params = affine_classifier_init(jax.random.key(0), config)
      >>> affine_classifier_apply(params, jnp.zeros((3, 12, 12, 1)), (samples, samples), config).shape
      (3, 10)
    """
    if images.ndim < 3 or images.shape[-1] != config.channels_in:
        raise ValueError(f"images: got shape {images.shape}, expected [..., height, width, {config.channels_in}].")
    inner, outer = samples
    axes = (-1,) if config.normalisation == "position" else (-4, -3, -2, -1)

    def active(x: Array) -> Array:
        return jax.nn.gelu(x, approximate=False)

    def convolved(name: str, x: Array, out: GroupSamples, padding: Literal["same", "valid"] = "same") -> Array:
        return affine_group_conv(params[name], x, inner, out, config.kernel, padding=padding, precision=precision)

    x = lift_conv(params["lift"], images, inner, config.kernel, padding=config.border, precision=precision)
    x = active(_normalised(x, axes))
    if config.early_pooling:
        x = _halved(x)
    y = active(_normalised(convolved("first", x, inner), axes))
    y = active(_normalised(convolved("second", y, inner), axes))
    x = active(x + y)
    x = active(_halved(_normalised(x, axes)))
    x = active(_normalised(convolved("last", x, outer, config.border), axes))
    x = group_pool(x, how=config.pool, samples=outer)
    x = jnp.matmul(x, params["hidden"]["kernel"], precision=precision)
    x = _normalised(x, (-1,))
    one = (1,) * (x.ndim - 1) + (-1,)
    x = active(x * params["norm"]["scale"].reshape(one) + params["norm"]["bias"].reshape(one))
    if key is not None and config.dropout > 0:
        kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
        x = jnp.where(kept, x / np.asarray(1 - config.dropout, x.dtype), jnp.zeros_like(x))
    return jnp.matmul(x, params["out"]["kernel"], precision=precision) + params["out"]["bias"].reshape(one)


def averaged_probabilities(
    params: PyTree,
    images: Array,
    samples: tuple[GroupSamples, GroupSamples],
    config: AffineClassifierConfig,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Averages the probabilities over several sets of samples.

    Args:
      params: from `affine_classifier_init`.
      images: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: as in `affine_classifier_apply`, with a leading axis of sets, `[sets, samples, 2, 2]`.
      config: static.
      precision: static; of the products.

    Returns:
      Probabilities, shape `[..., num_classes]`.
    """

    def one(total: Array, sets: tuple[GroupSamples, GroupSamples]) -> tuple[Array, None]:
        return total + jax.nn.softmax(affine_classifier_apply(params, images, sets, config, precision=precision)), None

    number = samples[0].log_weight.shape[0]
    shape = (*images.shape[:-3], config.num_classes)
    start = jnp.zeros(shape, images.dtype) + jnp.zeros_like(images[..., 0, 0, :1])
    return lax.scan(one, start, samples)[0] / np.asarray(number, images.dtype)


class AffineClassifier(nn.Module):
    """Linen module over `affine_classifier_apply`.

    Attributes:
      config: static description.
    """

    config: AffineClassifierConfig

    @nn.compact
    def __call__(
        self, images: Array, samples: tuple[GroupSamples, GroupSamples], *, key: PRNGKey | None = None
    ) -> Array:
        """Labels images.

        Args:
          images: shape `[..., height, width, channels_in]`.
          samples: two sets of group elements, matrices `[samples, 2, 2]`.
          key: for dropout, or None.

        Returns:
          Logits, shape `[..., num_classes]`.
        """
        params = self.param("params", affine_classifier_init, self.config)
        return affine_classifier_apply(params, images, samples, self.config, key=key)
