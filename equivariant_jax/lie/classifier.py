r"""Labels images by affine group convolutions; the label's scores do not change when a transformation moves the image.

    lifting -> norm, GELU -> residual block (two group convolutions) -> norm -> 2 x 2 pooling -> GELU
            -> group convolution -> norm, GELU -> maximum over positions and samples -> two dense layers

Law: `logits(L_g f) == logits(f)` for affine g, up to the errors of sampling the plane and the group (see
`equivariant_jax.lie.convolution`).

`published_classifier` has the settings of the paper's code (339,102 parameters for SL(2), 339,282 for GL+(2)), whose
samples are drawn anew in every call (`published_samples`). What this module changes by default, since the layers are
then closer to the law: kernels that see angles without a jump and are not cut off, weighted integrals, zeros outside of
the image where the background is zero, and the normalisation (`lie.normalisation`). The published one is over
channels, samples and positions of each image, so that it changes with the border and with the samples. Running
statistics ("batch") are equivariant, but an image that a transformation has blurred has another contrast than those of
the training; over the channels of each position ("position") it is equivariant as well, but blows up what faint rests
of a feature there are around the ink.

Reference: Mironenco & Forre 2024, arXiv:2310.11366, section 5, and its official code.
"""

import dataclasses
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
from equivariant_jax.lie.normalisation import moment_norm, moment_norm_init
from equivariant_jax.lie.sampling import GroupSamples
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.normalisation import batch_norm, batch_norm_init
from equivariant_jax.nn.pooling import max_pool, mean_pool

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
      lift_size: pixels across the lifting's unstretched kernel, odd; None for that of `kernel`.
      num_classes: number of labels.
      channels_in: of the images.
      channels: of the features before the block, and, without `wide`, of all features.
      wide: channels of the block and of what follows, None for `channels`. With another number the block's shortcut
        mixes channels at each position and sample.
      head: width of the hidden dense layer.
      dropout: rate before the last layer.
      normalisation: "moments" (see `moment_norm`), "batch" (each channel, with running statistics), "position" (over
        channels) or "published" (over channels, samples and positions).
      activation: "gelu" (exact, as published) or "relu".
      border: "same" keeps the image's size, "valid" shrinks it in the first and the last convolution, as published.
      lift_stride: pixels from one position of the lifted features to the next.
      downsample: what follows the block: the "max" of 2 x 2 positions, as published, their "mean", or "none".
      pool: "max" or "mean", the read-out.
    """

    kernel: AffineKernelConfig = dataclasses.field(default_factory=lambda: AffineKernelConfig(SL2))
    lift_size: int | None = None
    num_classes: int = 10
    channels_in: int = 1
    channels: int = 40
    wide: int | None = None
    head: int = 256
    dropout: float = 0.3
    normalisation: Literal["moments", "batch", "position", "published"] = "moments"
    activation: Literal["gelu", "relu"] = "gelu"
    border: Literal["same", "valid"] = "same"
    lift_stride: int = 1
    downsample: Literal["max", "mean", "none"] = "max"
    pool: Literal["max", "mean"] = "max"

    @property
    def width(self) -> int:
        """Channels of the block and of what follows."""
        return self.channels if self.wide is None else self.wide

    @property
    def lift_kernel(self) -> AffineKernelConfig:
        """Description of the lifting's kernel."""
        return self.kernel if self.lift_size is None else dataclasses.replace(self.kernel, size=self.lift_size)

    def __post_init__(self):
        if (
            min(self.num_classes, self.channels_in, self.channels, self.width, self.head) < 1
            or not 0 <= self.dropout < 1
        ):
            raise ValueError(
                f"got num_classes={self.num_classes}, channels_in={self.channels_in}, channels={self.channels}, "
                f"wide={self.wide}, head={self.head}, dropout={self.dropout}; expected positive numbers and a rate in "
                "[0, 1)."
            )
        for name, known in (
            ("normalisation", ("moments", "batch", "position", "published")),
            ("activation", ("gelu", "relu")),
            ("border", ("same", "valid")),
            ("downsample", ("max", "mean", "none")),
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


_NORMS = ("lift", "first", "second", "block", "last")


def affine_classifier_init(key: PRNGKey, config: AffineClassifierConfig, *, dtype=jnp.float32) -> tuple[PyTree, PyTree]:
    """Draws parameters, and running statistics.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      Kernels of `lift`, `first`, `second` and `last` (see `affine_kernel_init`), of the block's `shortcut` where
      channels change (`[channels, wide]`), and of the head `hidden` (`[channels, head]`), `norm` (scale and bias
      `[head]`) and `out` (kernel `[head, num_classes]`, bias); with "moments" and "batch" also `norms` (scales and
      biases `[channels]`). And the running statistics, empty but for "batch".
    """
    key_lift, key_first, key_second, key_last, key_hidden, key_out = jax.random.split(key, 6)
    width = {name: config.channels if name == "lift" else config.width for name in _NORMS}
    convolution = {
        name: affine_kernel_init(k, config.kernel, channels_in, config.width, dtype=dtype)
        for name, k, channels_in in (
            ("first", key_first, config.channels),
            ("second", key_second, config.width),
            ("last", key_last, config.width),
        )
    }  # fmt: skip
    if config.width != config.channels:
        key_shortcut = jax.random.fold_in(key_first, 1)
        convolution["shortcut"] = dense_init(key_shortcut, config.channels, config.width, use_bias=False, dtype=dtype)
    params = {
        "lift": affine_kernel_init(
            key_lift, config.lift_kernel, config.channels_in, config.channels, lifting=True, dtype=dtype
        ),
        **convolution,
        "hidden": dense_init(key_hidden, config.width, config.head, use_bias=False, dtype=dtype),
        "norm": {"scale": jnp.ones((config.head,), dtype), "bias": jnp.zeros((config.head,), dtype)},
        "out": dense_init(key_out, config.head, config.num_classes, dtype=dtype),
    }
    if config.normalisation == "moments":
        params["norms"] = {name: moment_norm_init(width[name], dtype=dtype) for name in _NORMS}
        return params, {}
    if config.normalisation != "batch":
        return params, {}
    norms = {name: batch_norm_init(width[name], dtype=dtype) for name in _NORMS}
    params["norms"] = {name: norm[0] for name, norm in norms.items()}
    return params, {name: norm[1] for name, norm in norms.items()}


def _normalised(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide * lax.rsqrt(variance + np.asarray(epsilon, wide.dtype))).astype(x.dtype)


def affine_classifier_apply(
    params: PyTree,
    statistics: PyTree,
    images: Array,
    samples: tuple[GroupSamples, GroupSamples],
    config: AffineClassifierConfig,
    *,
    training: bool = False,
    key: PRNGKey | None = None,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, PyTree]:
    """Labels images.

    Args:
      params: from `affine_classifier_init`.
      statistics: from `affine_classifier_init` or an earlier call.
      images: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: two sets of group elements, matrices `[samples, 2, 2]`: of the lifting and the block, and of the last
        convolution; they may be the same.
      config: static.
      training: static; whether batch normalisations use and update the statistics of this batch.
      key: for dropout; None for none.
      precision: static; of the products.

    Returns:
      Logits, shape `[..., num_classes]`, and the statistics.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> from equivariant_jax.lie import sample_polar
      >>> config = AffineClassifierConfig(AffineKernelConfig(SL2, separable=True), channels=4, head=8)
      >>> samples = sample_polar(jax.random.key(1), 6, SL2)
      >>> params, statistics = affine_classifier_init(jax.random.key(0), config)
      >>> images = jnp.zeros((3, 12, 12, 1))
      >>> affine_classifier_apply(params, statistics, images, (samples, samples), config)[0].shape
      (3, 10)
    """
    if images.ndim < 3 or images.shape[-1] != config.channels_in:
        raise ValueError(f"images: got shape {images.shape}, expected [..., height, width, {config.channels_in}].")
    inner, outer = samples
    axes, after = (-1,) if config.normalisation == "position" else (-4, -3, -2, -1), {}

    def active(x: Array) -> Array:
        return jax.nn.relu(x) if config.activation == "relu" else jax.nn.gelu(x, approximate=False)

    def normalised(name: str, x: Array, where: GroupSamples = inner) -> Array:
        if config.normalisation == "moments":
            return moment_norm(params["norms"][name], x, where, config.kernel.group, active)
        if config.normalisation != "batch":
            return active(_normalised(x, axes))
        out, after[name] = batch_norm(params["norms"][name], statistics[name], x, training=training)
        return active(out)

    def convolved(name: str, x: Array, out: GroupSamples, padding: Literal["same", "valid"] = "same") -> Array:
        return affine_group_conv(params[name], x, inner, out, config.kernel, padding=padding, precision=precision)

    x = lift_conv(
        params["lift"], images, inner, config.lift_kernel, padding=config.border, stride=config.lift_stride,
        precision=precision,
    )  # fmt: skip
    x = normalised("lift", x)
    y = normalised("first", convolved("first", x, inner))
    y = normalised("second", convolved("second", y, inner))
    if "shortcut" in params:
        x = dense_apply(params["shortcut"], x, precision=precision)
    x = normalised("block", active(x + y))
    if config.downsample != "none":
        x = (max_pool if config.downsample == "max" else mean_pool)(x, axis=-4)
    x = normalised("last", convolved("last", x, outer, config.border), outer)
    x = group_pool(x, how=config.pool, samples=outer)
    x = dense_apply(params["hidden"], x, precision=precision)
    x = _normalised(x, (-1,))
    one = (1,) * (x.ndim - 1) + (-1,)
    x = active(x * params["norm"]["scale"].reshape(one) + params["norm"]["bias"].reshape(one))
    if key is not None and config.dropout > 0:
        kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
        x = jnp.where(kept, x / np.asarray(1 - config.dropout, x.dtype), jnp.zeros_like(x))
    return dense_apply(params["out"], x, precision=precision), after


def averaged_probabilities(
    params: PyTree,
    statistics: PyTree,
    images: Array,
    samples: tuple[GroupSamples, GroupSamples],
    config: AffineClassifierConfig,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Averages the probabilities over several sets of samples.

    Args:
      params: from `affine_classifier_init`.
      statistics: of batch normalisations, likewise.
      images: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: as in `affine_classifier_apply`, with a leading axis of sets, `[sets, samples, 2, 2]`.
      config: static.
      precision: static; of the products.

    Returns:
      Probabilities, shape `[..., num_classes]`.
    """

    def one(total: Array, sets: tuple[GroupSamples, GroupSamples]) -> tuple[Array, None]:
        logits, _ = affine_classifier_apply(params, statistics, images, sets, config, precision=precision)
        return total + jax.nn.softmax(logits), None

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
        self,
        images: Array,
        samples: tuple[GroupSamples, GroupSamples],
        *,
        training: bool = False,
        key: PRNGKey | None = None,
    ) -> Array:
        """Labels images.

        Args:
          images: shape `[..., height, width, channels_in]`.
          samples: two sets of group elements, matrices `[samples, 2, 2]`.
          training: static; batch statistics, kept in the collection `batch_stats`.
          key: for dropout, or None.

        Returns:
          Logits, shape `[..., num_classes]`.
        """
        dtype = images.dtype
        params = self.param("classifier", lambda key: affine_classifier_init(key, self.config, dtype=dtype)[0])
        start = lambda: affine_classifier_init(jax.random.key(0), self.config, dtype=dtype)[1]  # noqa: E731
        statistics = self.variable("batch_stats", "statistics", start)
        logits, after = affine_classifier_apply(
            params, statistics.value, images, samples, self.config, training=training, key=key
        )
        if training and not self.is_initializing():
            statistics.value = after
        return logits
