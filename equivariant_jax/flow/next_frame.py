r"""Predicts the next frames of a sequence with a flow-equivariant recurrent network.

The given frames go into the hidden state; then each predicted frame is decoded from the state and fed back.

    advance (default):  y_{t+1} = D( max_nu psi_1(nu) . s_t(nu) ),           y_{t+1} is then frame t + 1;
    published:          feeds the last given frame a second time, and  y = D( max_nu s(nu) ).

The official code's loop is the second: from the first predicted frame on it adds each frame to a memory that is one
step ahead of it, so the hidden law fails there. The first keeps the law: with velocities closed under differences
(`velocity_grid((n - 1) // 2)` on an `n x n` torus, n odd), predictions of a moving input move along,

    y[psi(nu_hat) . f]_t = psi_t(nu_hat) . y[f]_t,

for every whole velocity. `D` is a stack of convolutions with ReLU between, applied to each frame.

Reference: Keller 2025, arXiv:2507.14793, section 4 and the official code (Flowing MNIST).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.flow.generators import Flow, Velocities, rotation_flow, torus_shift, velocity_grid
from equivariant_jax.flow.lifting import cyclic_kernel, cyclic_kernel_init, cyclic_lifting_kernel
from equivariant_jax.flow.recurrent import (
    FlowState,
    Form,
    flow_rnn_cell,
    flow_rnn_init,
    flow_scan,
    mixing_offsets,
    pooled_lab_frame,
)
from equivariant_jax.nn.convolution import Boundary, convolution, convolution_init

__all__ = ["NextFrame", "NextFrameConfig", "expand_kernels", "next_frame_apply", "next_frame_init"]


@dataclasses.dataclass(frozen=True)
class NextFrameConfig:
    """Static description of a next-frame predictor.

    Attributes:
      velocities: of the banks; one velocity zero gives the ordinary recurrent network.
      channels_in: channels of a frame.
      channels: of the hidden state; with orientations, fields over the group (times `orientations` numbers).
      decoder_layers: convolutions with ReLU before the last.
      decoder: "plain" (as published), or "cyclic": steerable too, mean over orientations at the end.
      orientations: order of the cyclic group; 1 for translations, more for rotations.
      motion: "shift" (velocities in pixels per frame) or "rotation" (degrees per frame).
      decode: "advance" or "published", see the module's page.
      form: "comoving" or "published", of the recurrence.
      mixing: largest offset of velocities that feed each other, 0 for none.
      period: velocities count modulo this number when mixed, or None.
      boundary: "circular" or "zero", of all convolutions.
      feedback_gradient: whether gradients flow through the frames that are fed back.
    """

    velocities: Velocities = dataclasses.field(default_factory=lambda: velocity_grid(1))
    channels_in: int = 1
    channels: int = 128
    decoder_layers: int = 4
    decoder: Literal["plain", "cyclic"] = "plain"
    orientations: int = 1
    motion: Literal["shift", "rotation"] = "shift"
    decode: Literal["advance", "published"] = "advance"
    form: Form = "comoving"
    mixing: float = 0
    period: int | None = None
    boundary: Boundary = "circular"
    feedback_gradient: bool = False

    def __post_init__(self):
        for name in ("channels_in", "channels", "orientations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a positive number.")
        if self.motion not in ("shift", "rotation") or self.decode not in ("advance", "published"):
            raise ValueError(f"got motion={self.motion!r}, decode={self.decode!r}; see the attributes' description.")
        if self.motion == "shift" and self.orientations > 1:
            raise ValueError(f"orientations: got {self.orientations} with shifts, expected 1 or motion='rotation'.")
        if self.orientations > 1:
            steps = np.asarray(self.velocities) * self.orientations / 360
            if np.abs(steps - np.round(steps)).max() > 1e-6:
                raise ValueError(
                    f"velocities: got {self.velocities}, expected multiples of {360 / self.orientations} degrees for "
                    f"{self.orientations} orientations."
                )
        if self.decoder == "cyclic" and self.orientations == 1:
            raise ValueError("decoder: got 'cyclic' with one orientation; use 'plain'.")

    @property
    def flow(self) -> Flow:
        """The action of a velocity on hidden states."""
        return torus_shift if self.motion == "shift" else rotation_flow(self.orientations)


def next_frame_init(key: PRNGKey, config: NextFrameConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters, as PyTorch draws its convolutions.

    Args:
      key: typed random key.
      config: static description.
      dtype: of the parameters.

    Returns:
      Dict with `cell` (`input`, `recurrent`) and `decoder`, a tuple of kernels, of shape `[3, 3, in, out]`, or the
      weights of steerable ones, `[functions, n, in, out]`. Their number does not depend on the velocities unless they
      are mixed.
    """
    key_cell, key_decoder = jax.random.split(key)
    n, channels = config.orientations, config.channels
    offsets = len(mixing_offsets(config.velocities, config.mixing, period=config.period)[0]) if config.mixing else 1
    if n == 1:
        cell = flow_rnn_init(key_cell, config.channels_in, channels, offsets=offsets, dtype=dtype)
    else:
        if offsets > 1:
            raise ValueError(f"mixing: got {config.mixing} with {n} orientations; only shifts mix velocities here.")
        key_input, key_recurrent = jax.random.split(key_cell)
        # Of variance 1/3 over the inputs, that of PyTorch's uniform draw.
        third = np.asarray(1 / np.sqrt(3), dtype)
        cell = {
            "input": third * cyclic_kernel_init(key_input, config.channels_in, channels, n, lifting=True, dtype=dtype),
            "recurrent": third * cyclic_kernel_init(key_recurrent, channels, channels, n, lifting=False, dtype=dtype),
        }
    keys = jax.random.split(key_decoder, config.decoder_layers + 1)
    if config.decoder == "cyclic":
        third = np.asarray(1 / np.sqrt(3), dtype)
        decoder = tuple(
            third * cyclic_kernel_init(k, channels, out, n, lifting=False, dtype=dtype)
            for k, out in zip(keys, (channels,) * config.decoder_layers + (config.channels_in,), strict=True)
        )
    else:
        width = channels * n
        decoder = tuple(
            convolution_init(k, 3, width, out, dtype=dtype)
            for k, out in zip(keys, (width,) * config.decoder_layers + (config.channels_in,), strict=True)
        )
    return {"cell": cell, "decoder": decoder}


def expand_kernels(params: PyTree, config: NextFrameConfig) -> PyTree:
    """Expands steerable weights into ordinary kernels; what has none is left as it is.

    Args:
      params: from `next_frame_init`.
      config: static description.

    Returns:
      Parameters of the same tree with kernels `[3, 3, in, out]`.
    """
    cell, decoder, n = params["cell"], params["decoder"], config.orientations
    if n > 1:
        cell = {"input": cyclic_lifting_kernel(cell["input"], n), "recurrent": cyclic_kernel(cell["recurrent"])}
    if config.decoder == "cyclic":
        decoder = tuple(cyclic_kernel(weights) for weights in decoder)
    return {"cell": cell, "decoder": decoder}


def _decode(decoder: PyTree, features: Array, config: NextFrameConfig, precision: Any) -> Array:
    for kernel in decoder[:-1]:
        features = jax.nn.relu(convolution(features, kernel, boundary=config.boundary, precision=precision))
    out = convolution(features, decoder[-1], boundary=config.boundary, precision=precision)
    if config.decoder == "cyclic":
        out = jnp.mean(out.reshape(*out.shape[:-1], config.orientations, -1), axis=-2)
    return out


def next_frame_apply(
    params: PyTree,
    frames: Array,
    num_predicted: int,
    config: NextFrameConfig,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Predicts the frames that follow.

    Args:
      params: from `next_frame_init`.
      frames: given frames, shape `[batch, time, height, width, channels_in]`, dtype of `params`.
      num_predicted: static; number of frames to predict.
      config: static description.
      precision: static; of the products.

    Returns:
      Predicted frames, shape `[batch, num_predicted, height, width, channels_in]`.

    Raises:
      ValueError: if shapes do not fit, no frame is given or none is asked for.

    Example:
      >>> config = NextFrameConfig(channels=4, decoder_layers=1)
      >>> params = next_frame_init(jax.random.key(0), config)
      >>> next_frame_apply(params, jnp.ones((2, 3, 6, 6, 1)), 5, config).shape
      (2, 5, 6, 6, 1)
    """
    if frames.ndim != 5 or frames.shape[1] < 1 or num_predicted < 1:
        raise ValueError(
            f"next_frame_apply got frames {frames.shape} and num_predicted={num_predicted}; expected "
            "[batch, time, height, width, channels] with at least one frame, and at least one to predict."
        )
    kernels = expand_kernels(params, config)
    velocities, flow = config.velocities, config.flow
    shared: dict[str, Any] = {
        "flow": flow,
        "form": config.form,
        "mixing": config.mixing,
        "period": config.period,
        "boundary": config.boundary,
        "precision": precision,
    }
    # The last given frame opens the loop below: for the first time, or, as published, once more.
    given = frames[:, :-1] if config.decode == "advance" else frames
    state = _initial(kernels["cell"], frames, config) if given.shape[1] == 0 else None
    if state is None:
        state = flow_scan(kernels["cell"], given, velocities, outputs="none", **shared).state
    ahead = 1 if config.decode == "advance" else 0

    def body(carry: tuple[FlowState, Array], _: None):
        state, frame = carry
        state = flow_rnn_cell(kernels["cell"], state, frame, velocities, **shared)
        pooled = pooled_lab_frame(state, velocities, flow=flow, form=config.form, ahead=ahead)
        predicted = _decode(kernels["decoder"], pooled, config, precision)
        fed_back = predicted if config.feedback_gradient else lax.stop_gradient(predicted)
        return (state, fed_back), predicted

    _, predicted = lax.scan(body, (state, frames[:, -1]), None, length=num_predicted)
    return jnp.moveaxis(predicted, 0, 1)


def _initial(cell: PyTree, frames: Array, config: NextFrameConfig) -> FlowState:
    zero = jnp.zeros_like(frames[:, 0, :, :, :1])[:, None]
    shape = (frames.shape[0], len(config.velocities), *frames.shape[2:4], cell["recurrent"].shape[-1])
    return FlowState(jnp.broadcast_to(zero, shape), jnp.zeros((), jnp.int32))


class NextFrame(nn.Module):
    """Linen form of `next_frame_apply`.

    Attributes:
      config: static description.
      num_predicted: number of frames to predict.
    """

    config: NextFrameConfig
    num_predicted: int

    @nn.compact
    def __call__(self, frames: Array) -> Array:
        """Predicts `[batch, num_predicted, height, width, channels_in]`; parameters take the dtype of the frames."""
        params = self.param("predictor", lambda key: next_frame_init(key, self.config, dtype=frames.dtype))
        return next_frame_apply(params, frames, self.num_predicted, self.config)
