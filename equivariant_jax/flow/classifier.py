r"""Labels sequences whose contents move: flow-equivariant network, its ordinary twin, and two baselines.

    features_t = N(f_t),    s_t = recurrence(features),    logits = A . mean_x max_nu s_T(nu, x) + b

`N` is a stack of convolutions, each with batch normalisation and ReLU; the recurrence has the activation tanh. With
circular boundaries and velocities that contain the motion's, the logits do not depend on where the contents start and
how fast they drift (closed lists: exactly). The official input network pads with zeros (`boundary="zero"`): that breaks
this at the border.

Models (`kind`):
- "flow": banks for all velocities; with the single velocity zero the ordinary network (G-RNN);
- "learned" (G-RNN+): as many banks, each moved by depthwise kernels of its own, learned instead of known;
- "convolution" (3D-CNN): five blocks of convolution over space and time, normalisation and ReLU, and a global mean.

Reference: Keller 2025, arXiv:2507.14793, section 4 (Moving KTH) and the official code.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.flow.generators import Velocities, velocity_grid
from equivariant_jax.flow.recurrent import Form, flow_pool, flow_rnn_init, flow_scan, lab_frame
from equivariant_jax.nn.convolution import Boundary, convolution, convolution_init
from equivariant_jax.nn.depthwise import depthwise_convolution
from equivariant_jax.nn.normalisation import batch_norm, batch_norm_init

__all__ = [
    "SequenceClassifier",
    "SequenceClassifierConfig",
    "sequence_classifier_apply",
    "sequence_classifier_init",
]


@dataclasses.dataclass(frozen=True)
class SequenceClassifierConfig:
    """Static description of a classifier of sequences.

    Attributes:
      num_classes: number of labels.
      kind: "flow", "learned" or "convolution", see the module's page.
      velocities: of the banks ("flow"); their number and the reach of the learned kernels ("learned").
      channels_in: channels of a frame.
      input_channels: of the convolutions before the recurrence; the last is the width of the hidden state.
      input_sizes: sides of their kernels, odd.
      normalise: whether they have batch normalisation.
      boundary: "circular" or "zero", of the input convolutions; the recurrence is circular.
      form: "comoving" or "published", of the recurrence.
      block_channels: of the blocks of "convolution"; the first halves the number of frames.
    """

    num_classes: int = 6
    kind: Literal["flow", "learned", "convolution"] = "flow"
    velocities: Velocities = dataclasses.field(default_factory=lambda: velocity_grid(2))
    channels_in: int = 1
    input_channels: tuple[int, ...] = (32, 64, 128)
    input_sizes: tuple[int, ...] = (5, 3, 3)
    normalise: bool = True
    boundary: Boundary = "circular"
    form: Form = "comoving"
    block_channels: tuple[int, ...] = (16, 32, 32, 64, 64)

    def __post_init__(self):
        if self.kind not in ("flow", "learned", "convolution"):
            raise ValueError(f'kind: got {self.kind!r}, expected "flow", "learned" or "convolution".')
        if len(self.input_channels) != len(self.input_sizes) or not self.input_channels or self.num_classes < 1:
            raise ValueError(
                f"got {len(self.input_channels)} input_channels, {len(self.input_sizes)} input_sizes and "
                f"num_classes={self.num_classes}; expected as many sizes as widths, at least one, and a class."
            )

    @property
    def reach(self) -> int:
        """Largest component of a velocity, the radius of the learned kernels."""
        return round(max(abs(c) for velocity in self.velocities for c in velocity))


def _dense_init(key: PRNGKey, features_in: int, features_out: int, dtype) -> PyTree:
    bound = 1 / np.sqrt(features_in)
    key_kernel, key_bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(key_kernel, (features_in, features_out), dtype, -bound, bound),
        "bias": jax.random.uniform(key_bias, (features_out,), dtype, -bound, bound),
    }


def sequence_classifier_init(
    key: PRNGKey, config: SequenceClassifierConfig, *, dtype=jnp.float32
) -> tuple[PyTree, PyTree]:
    """Draws parameters, as PyTorch draws its convolutions, and running statistics.

    Args:
      key: typed random key.
      config: static description.
      dtype: of the parameters.

    Returns:
      Parameters: `layers` (kernels, shape `[size, size, in, out]`, or `[3, 3, 3, in, out]` over time and space),
      `norms`, `head`, and by kind `cell` and `moves` (`[V, size, size, channels]`); and the statistics of the batch
      normalisations (a tuple of dicts).
    """
    key_layers, key_cell, key_banks, key_head = jax.random.split(key, 4)
    if config.kind == "convolution":
        widths = (config.channels_in, *config.block_channels)
        keys = jax.random.split(key_layers, len(widths) - 1)
        kernels = [
            jax.random.uniform(k, (3, 3, 3, a, b), dtype, -1 / np.sqrt(27 * a), 1 / np.sqrt(27 * a))
            for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
    else:
        widths = (config.channels_in, *config.input_channels)
        keys = jax.random.split(key_layers, len(widths) - 1)
        kernels = [
            convolution_init(k, size, a, b, dtype=dtype)
            for k, size, a, b in zip(keys, config.input_sizes, widths[:-1], widths[1:], strict=True)
        ]
    norms = [batch_norm_init(width, dtype=dtype) for width in widths[1:]] if config.normalise else []
    params = {
        "layers": tuple(kernels),
        "norms": tuple(p for p, _ in norms),
        "head": _dense_init(key_head, widths[-1], config.num_classes, dtype),
    }
    if config.kind != "convolution":
        params["cell"] = flow_rnn_init(key_cell, widths[-1], widths[-1], dtype=dtype)
    if config.kind == "learned":
        size = 2 * config.reach + 1
        shape = (len(config.velocities), size, size, widths[-1])
        params["moves"] = jax.random.uniform(key_banks, shape, dtype, -1 / size, 1 / size)
    return params, tuple(s for _, s in norms)


def _moved_by_learned_kernels(banks: Array, kernels: Array, precision) -> Array:
    """Depthwise circular convolution of each bank, `[batch, V, h, w, c]` by `[V, k, k, c]`."""
    num_velocities, channels = kernels.shape[0], kernels.shape[-1]
    x = jnp.moveaxis(banks, 1, -2).reshape(banks.shape[0], *banks.shape[2:4], num_velocities * channels)
    kernel = jnp.moveaxis(kernels, 0, -2).reshape(*kernels.shape[1:3], num_velocities * channels)
    out = depthwise_convolution(x, kernel, boundary="circular", precision=precision)
    return jnp.moveaxis(out.reshape(*out.shape[:-1], num_velocities, channels), -2, 1)


def _learned_scan(params: PyTree, features: Array, precision) -> Array:
    drive = jnp.moveaxis(convolution(features, params["cell"]["input"], precision=precision), 1, 0)
    shape = (drive.shape[1], params["moves"].shape[0], *drive.shape[2:])
    start = jnp.broadcast_to(jnp.zeros_like(drive[0])[:, None], shape)

    def body(banks: Array, drive: Array):
        moved = _moved_by_learned_kernels(banks, params["moves"], precision)
        memory = convolution(moved, params["cell"]["recurrent"], precision=precision)
        return jnp.tanh(memory + drive[:, None]), None

    return lax.scan(jax.checkpoint(body, prevent_cse=False), start, drive)[0]


def sequence_classifier_apply(
    params: PyTree,
    statistics: PyTree,
    frames: Array,
    config: SequenceClassifierConfig,
    *,
    training: bool = False,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, PyTree]:
    """Labels sequences.

    Args:
      params: from `sequence_classifier_init`.
      statistics: from `sequence_classifier_init` or an earlier call.
      frames: shape `[batch, time, height, width, channels_in]`, dtype of `params`.
      config: static description.
      training: static; whether batch normalisations use and update the statistics of this batch.
      precision: static; of the products.

    Returns:
      Logits, shape `[batch, num_classes]`, and the statistics.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> config = SequenceClassifierConfig(input_channels=(4,), input_sizes=(3,), velocities=velocity_grid(1))
      >>> params, statistics = sequence_classifier_init(jax.random.key(0), config)
      >>> sequence_classifier_apply(params, statistics, jnp.ones((2, 3, 6, 6, 1)), config)[0].shape
      (2, 6)
    """
    if frames.ndim != 5 or frames.shape[-1] != config.channels_in:
        raise ValueError(
            f"frames: got shape {frames.shape}, expected [batch, time, height, width, {config.channels_in}]."
        )
    x, found = frames, []
    for layer, kernel in enumerate(params["layers"]):
        if config.kind == "convolution":
            x = lax.conv_general_dilated(
                x, kernel, (2 if layer == 0 else 1, 1, 1), "SAME",
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision=precision,
            )  # fmt: skip
        else:
            x = convolution(x, kernel, boundary=config.boundary, precision=precision)
        if config.normalise:
            x, after = batch_norm(params["norms"][layer], statistics[layer], x, training=training)
            found.append(after)
        x = jax.nn.relu(x)
    if config.kind == "convolution":
        pooled = jnp.mean(x, axis=(1, 2, 3))
    else:
        if config.kind == "learned":
            banks = _learned_scan(params, x, precision)
        else:
            state = flow_scan(
                params["cell"], x, config.velocities, form=config.form, activation=jnp.tanh, outputs="none",
                precision=precision,
            ).state  # fmt: skip
            banks = lab_frame(state, config.velocities) if config.form == "comoving" else state.banks
        pooled = jnp.mean(flow_pool(banks), axis=(1, 2))
    head = params["head"]
    logits = jnp.matmul(pooled, head["kernel"], precision=precision) + head["bias"][None]
    return logits, tuple(found)


class SequenceClassifier(nn.Module):
    """Linen form of `sequence_classifier_apply`; statistics are in the collection `batch_stats`.

    Attributes:
      config: static description.
    """

    config: SequenceClassifierConfig

    @nn.compact
    def __call__(self, frames: Array, *, training: bool = False) -> Array:
        """Labels `[batch, time, height, width, channels_in]`; parameters take the dtype of the frames."""

        def make(key):
            return sequence_classifier_init(key, self.config, dtype=frames.dtype)

        params = self.param("classifier", lambda key: make(key)[0])
        statistics = self.variable("batch_stats", "norms", lambda: make(jax.random.key(0))[1])
        logits, after = sequence_classifier_apply(params, statistics.value, frames, self.config, training=training)
        if training and self.is_mutable_collection("batch_stats"):
            statistics.value = after
        return logits
