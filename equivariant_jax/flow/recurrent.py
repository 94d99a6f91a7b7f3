r"""Flow-equivariant recurrent networks: a hidden state for every velocity, each carried along by its own flow.

With hidden state `s_t(nu, .)` after frames `f_0 .. f_t`, and `s_{-1} = 0`,

    s_t(nu) = act( psi_1(nu) . sum_nu' W(nu' - nu) * s_{t-1}(nu')  +  U * f_t )

where `*` is a convolution that commutes with the flows. Parameters do not depend on the number of velocities: with the
single velocity zero this is the ordinary convolutional recurrent network. Usually `W(nu' - nu) = 0` unless `nu' = nu`;
`mixing = m` keeps offsets with `max |nu' - nu| <= m`.

**Law** (generators commute, `nu - nu_hat` among the velocities): if the input moves, `f_t -> psi_t(nu_hat) . f_t`, then

    s_t(nu) -> psi_t(nu_hat) . s_t(nu - nu_hat).

Without mixing it holds for each pair of velocities that both are in the list; with mixing, and after pooling over
velocities, only where the list is closed (all of `Z_n^2` on an `n x n` torus, `period=n`). It fails for generators that
do not commute.

**Two forms, one function.** `form="published"` moves the state at each step. `form="comoving"` keeps
`k_t(nu) = psi_t(nu)^-1 . s_t(nu)`,

    k_t(nu) = act( sum_nu' W(nu' - nu) * psi_{t-1}(nu' - nu) . k_{t-1}(nu')  +  psi_t(nu)^-1 . (U * f_t) ),

so without mixing the state never moves: only the features of the frame do, once, and a step is one convolution. For
shifts both give the same numbers; for rotations between quarter turns the second interpolates each frame once where the
first interpolates its memory again at each step.

Reference: Keller 2025, arXiv:2507.14793, section 3; the second form is section 3.3's non-trivial lift.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.flow.generators import Flow, Velocities, apply_flow, time_dtype, torus_shift, velocity_array
from equivariant_jax.flow.lifting import flow_lift, trivial_lift
from equivariant_jax.nn.convolution import Boundary, convolution, convolution_init

__all__ = [
    "FlowScanOutput",
    "FlowState",
    "Form",
    "Pool",
    "flow_pool",
    "flow_rnn_cell",
    "flow_rnn_init",
    "flow_scan",
    "flow_state",
    "lab_frame",
    "mixing_offsets",
    "pooled_lab_frame",
]

Form = Literal["comoving", "published"]
Pool = Literal["max", "mean", "sum"]


class FlowState(NamedTuple):
    """Hidden state between frames.

    Attributes:
      banks: shape `[batch, V, height, width, channels]`; in the moving frames of the banks for the co-moving form.
      time: index of the next frame, shape `[]`, int32.
    """

    banks: Array
    time: Array


class FlowScanOutput(NamedTuple):
    """What a scan gives.

    Attributes:
      state: after the last frame.
      outputs: states of all frames, pooled or whole, or None; see `flow_scan`.
    """

    state: FlowState
    outputs: Array | None


def mixing_offsets(velocities: Velocities, mixing: float, *, period: int | None = None) -> tuple[np.ndarray, ...]:
    """Lists which banks feed which.

    Args:
      velocities: static; `V` velocities.
      mixing: largest component of an offset, in units of the velocities; 0 for none.
      period: velocities count modulo this number, or None.

    Returns:
      Offsets `nu' - nu`, `[D, d]` float64, in lexical order; index of `nu'` for each bank and offset, `[V, D]` int32;
      and whether there is such a bank, `[V, D]` bool.

    Raises:
      ValueError: if `mixing` is negative.

    Example:
      >>> offsets, banks, there = mixing_offsets(((-1.0,), (0.0,), (1.0,)), 1.0)
      >>> offsets[:, 0].tolist(), there.astype(int).tolist()
      ([-1.0, 0.0, 1.0], [[0, 1, 1], [1, 1, 1], [1, 1, 0]])
    """
    if mixing < 0:
        raise ValueError(f"mixing: got {mixing}, expected 0 or more.")
    nu = velocity_array(velocities)
    difference = nu[None, :, :] - nu[:, None, :]
    if period is not None:
        difference = (difference + period / 2) % period - period / 2
    near = np.abs(difference).max(axis=-1) <= mixing
    offsets = np.unique(difference[near], axis=0)
    matches = np.all(difference[:, :, None, :] == offsets[None, None], axis=-1)  # [V, V', D]
    return offsets, np.argmax(matches, axis=1).astype(np.int32), matches.any(axis=1)


def flow_rnn_init(
    key: PRNGKey,
    channels_in: int,
    channels: int,
    *,
    size: int = 3,
    offsets: int = 1,
    gain: float = 1.0,
    dtype=jnp.float32,
) -> PyTree:
    """Draws the kernels of a recurrent layer.

    Args:
      key: typed random key.
      channels_in: channels of a frame.
      channels: channels of the hidden state.
      size: odd; pixels of a kernel's side.
      offsets: number D of velocity offsets that are mixed, see `mixing_offsets`; 1 without mixing.
      gain: factor of the bound of the uniform distribution.
      dtype: of the kernels.

    Returns:
      Dict with `input` `[size, size, channels_in, channels]` and `recurrent` `[size, size, channels, channels]`, or
      `[D, size, size, channels, channels]` if `offsets > 1`.
    """
    key_input, key_recurrent = jax.random.split(key)
    kernel = convolution_init(key_recurrent, size, offsets * channels, channels, gain=gain, dtype=dtype)
    if offsets > 1:
        kernel = jnp.moveaxis(kernel.reshape(size, size, offsets, channels, channels), 2, 0)
    return {
        "input": convolution_init(key_input, size, channels_in, channels, gain=gain, dtype=dtype),
        "recurrent": kernel,
    }


def flow_state(batch: int, velocities: Velocities, height: int, width: int, channels: int, dtype: Any) -> FlowState:
    """Makes the state before the first frame, zeros.

    Args:
      batch: number of sequences.
      velocities: static; `V` velocities.
      height: of the frames.
      width: of the frames.
      channels: of the hidden state.
      dtype: of the hidden state.

    Returns:
      `FlowState`.
    """
    return FlowState(
        jnp.zeros((batch, len(velocities), height, width, channels), dtype),
        jnp.zeros((), jnp.int32),
    )


def lab_frame(state: FlowState, velocities: Velocities, *, flow: Flow = torus_shift, ahead: int = 0) -> Array:
    """Takes the banks of a co-moving state back to where the frames are.

    Args:
      state: from the co-moving form, after at least one frame.
      velocities: static; `V` velocities.
      flow: static; see `generators`.
      ahead: static; frames by which to carry the banks on, 1 for where things will be at the next frame.

    Returns:
      Banks `psi_{time - 1 + ahead}(nu) . k`, shape `[batch, V, height, width, channels]`.
    """
    return apply_flow(state.banks, velocities, state.time - 1 + ahead, flow=flow)


def pooled_lab_frame(
    state: FlowState, velocities: Velocities, *, flow: Flow, form: Form, how: Pool = "max", ahead: int = 0
) -> Array:
    """Pools the banks where the frames are; the backward pass moves them again instead of keeping them.

    Args:
      state: after at least one frame.
      velocities: static; `V` velocities.
      flow: static; see `generators`.
      form: static; of the state.
      how: static; see `flow_pool`.
      ahead: static; frames by which to carry the banks on before pooling.

    Returns:
      Array of shape `[batch, height, width, channels]`.
    """

    def pooled(state: FlowState) -> Array:
        if form == "comoving":
            return flow_pool(lab_frame(state, velocities, flow=flow, ahead=ahead), how=how)
        return flow_pool(apply_flow(state.banks, velocities, ahead, flow=flow) if ahead else state.banks, how=how)

    return jax.checkpoint(pooled, prevent_cse=False)(state)


def _mix(
    banks: Array, kernel: Array, velocities: Velocities, mixing: float, period: int | None,
    boundary: Boundary, precision: Any, carry: Callable[[Array, np.ndarray], Array],
) -> Array:  # fmt: skip
    """W * s: one convolution of all banks, or of each bank's neighbours, brought along by `carry(banks, offset)`."""
    if kernel.ndim == 4:
        if mixing:
            raise ValueError(f"recurrent: got shape {kernel.shape}, expected [D, size, size, in, out] with mixing.")
        return convolution(banks, kernel, boundary=boundary, precision=precision)
    offsets, index, there = mixing_offsets(velocities, mixing, period=period)
    if kernel.shape[0] != len(offsets):
        raise ValueError(f"recurrent: got shape {kernel.shape}, expected {len(offsets)} velocity offsets on axis 0.")
    found = []
    for d, offset in enumerate(offsets):
        neighbour = carry(jnp.take(banks, index[:, d], axis=1), offset)
        found.append(jnp.where(there[:, d].reshape(1, -1, 1, 1, 1), neighbour, jnp.zeros((), banks.dtype)))
    joined = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    return convolution(jnp.concatenate(found, axis=-1), joined, boundary=boundary, precision=precision)


def _step(
    params: PyTree, state: FlowState, drive: Array, velocities: Velocities, *, flow: Flow, form: Form, mixing: float,
    period: int | None, activation: Callable[[Array], Array], boundary: Boundary, precision: Any,
) -> FlowState:  # fmt: skip
    """One step, given `drive = U * f_t`, `[batch, height, width, channels]`."""
    banks, time = state
    if form == "comoving":

        def carry(neighbour: Array, offset: np.ndarray) -> Array:
            difference = jnp.asarray(offset, time_dtype(neighbour))
            return neighbour if not offset.any() else flow(neighbour, difference, (time - 1).astype(difference.dtype))

        memory = _mix(banks, params["recurrent"], velocities, mixing, period, boundary, precision, carry)
        drive = flow_lift(drive, velocities, time, flow=flow)
    else:
        memory = _mix(banks, params["recurrent"], velocities, mixing, period, boundary, precision, lambda x, _: x)
        memory = apply_flow(memory, velocities, 1, flow=flow)
        drive = trivial_lift(drive, len(velocities))
    return FlowState(activation(memory + drive), time + 1)


def _check(params: PyTree, frames: Array, ndim: int, form: str) -> None:
    kernel, recurrent = params["input"], params["recurrent"]
    if form not in ("comoving", "published"):
        raise ValueError(f'form: got {form!r}, expected "comoving" or "published".')
    if frames.ndim != ndim or frames.shape[-1] != kernel.shape[-2]:
        axes = "[batch, time, height, width" if ndim == 5 else "[batch, height, width"
        raise ValueError(f"frames: got shape {frames.shape}, expected {axes}, {kernel.shape[-2]}].")
    if recurrent.ndim not in (4, 5) or recurrent.shape[-2:] != (kernel.shape[-1],) * 2:
        raise ValueError(
            f"recurrent: got shape {recurrent.shape}, expected [..., {kernel.shape[-1]}, {kernel.shape[-1]}]."
        )
    if frames.dtype != kernel.dtype:
        raise ValueError(f"frames are {frames.dtype}, parameters {kernel.dtype}; cast one of them.")


def flow_rnn_cell(
    params: PyTree,
    state: FlowState,
    frame: Array,
    velocities: Velocities,
    *,
    flow: Flow = torus_shift,
    form: Form = "comoving",
    mixing: float = 0,
    period: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.relu,
    boundary: Boundary = "circular",
    precision=lax.Precision.HIGHEST,
) -> FlowState:
    """Takes one frame into the hidden state.

    Args:
      params: from `flow_rnn_init`.
      state: from `flow_state` or an earlier frame, of the same form.
      frame: shape `[batch, height, width, channels_in]`, dtype of `params`.
      velocities: static; `V` velocities.
      flow: static; how a velocity acts, see `generators`.
      form: static; "comoving" or "published", see the module's page.
      mixing: static; largest offset of velocities that feed each other.
      period: static; velocities count modulo this number when they are mixed, or None.
      activation: static; elementwise.
      boundary: static; of the convolutions.
      precision: static; of the products.

    Returns:
      The next state.

    Raises:
      ValueError: if shapes or dtypes do not fit.
    """
    _check(params, frame, 4, form)
    drive = convolution(frame, params["input"], boundary=boundary, precision=precision)
    return _step(
        params, state, drive, velocities, flow=flow, form=form, mixing=mixing, period=period, activation=activation,
        boundary=boundary, precision=precision,
    )  # fmt: skip


def flow_pool(states: Array, *, how: Pool = "max") -> Array:
    """Pools over velocities.

    Args:
      states: shape `[..., V, height, width, channels]`, float.
      how: static; "max", "mean" or "sum".

    Returns:
      Array of shape `[..., height, width, channels]`. Where banks tie, the gradient of "max" is shared among them.

    Raises:
      ValueError: if `how` is unknown.

    Example:
      >>> flow_pool(jnp.arange(6.0).reshape(3, 1, 2, 1))[0, :, 0].tolist()
      [4.0, 5.0]
    """
    reduce = {"max": jnp.max, "mean": jnp.mean, "sum": jnp.sum}.get(how)
    if reduce is None:
        raise ValueError(f'how: got {how!r}, expected "max", "mean" or "sum".')
    return reduce(states, axis=-4)


def flow_scan(
    params: PyTree,
    frames: Array,
    velocities: Velocities,
    *,
    state: FlowState | None = None,
    flow: Flow = torus_shift,
    form: Form = "comoving",
    mixing: float = 0,
    period: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.relu,
    boundary: Boundary = "circular",
    outputs: Literal["states", "none"] | Pool = "states",
    remat: bool = False,
    unroll: int = 1,
    precision=lax.Precision.HIGHEST,
) -> FlowScanOutput:
    """Takes a sequence of frames into the hidden state.

    `U * f_t` is one convolution over all frames; the scan holds the recurrent convolution and the motion alone.

    Args:
      params: from `flow_rnn_init`.
      frames: shape `[batch, time, height, width, channels_in]`, dtype of `params`.
      velocities: static; `V` velocities.
      state: to start from; zeros by default.
      flow: static; how a velocity acts, see `generators`.
      form: static; "comoving" or "published", see the module's page.
      mixing: static; largest offset of velocities that feed each other.
      period: static; velocities count modulo this number when they are mixed, or None.
      activation: static; elementwise.
      boundary: static; of the convolutions.
      outputs: static; "states" for `s_t(nu)` of all frames, where the frames are (not in moving frames); a way of
        pooling for these pooled over velocities; "none" for None.
      remat: static; compute a step's inner values anew in the backward pass, which then keeps one state per frame. With
        ReLU it would otherwise keep a bit for each number beside it, and need not repeat the convolution.
      unroll: static; steps per iteration of the compiled loop.
      precision: static; of the products.

    Returns:
      `FlowScanOutput`; `outputs` of shape `[batch, time, V, height, width, channels]`, or without `V` if pooled.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> params = flow_rnn_init(jax.random.key(0), 1, 4)
      >>> velocities = tuple((float(v), 0.0) for v in (-1, 0, 1))
      >>> flow_scan(params, jnp.ones((2, 6, 5, 5, 1)), velocities, outputs="max").outputs.shape
      (2, 6, 5, 5, 4)
    """
    _check(params, frames, 5, form)
    batch, _, height, width, _ = frames.shape
    channels = params["input"].shape[-1]
    drive = jnp.moveaxis(convolution(frames, params["input"], boundary=boundary, precision=precision), 1, 0)
    if state is None:
        # Of the frames, so that inside shard_map it varies over devices as they do.
        zero = jnp.zeros_like(frames[:, 0, :, :, :1])[:, None]
        banks = jnp.broadcast_to(zero, (batch, len(velocities), height, width, channels))
        state = FlowState(banks, jnp.zeros((), jnp.int32))

    def step(state: FlowState, drive: Array) -> FlowState:
        return _step(
            params, state, drive, velocities, flow=flow, form=form, mixing=mixing, period=period,
            activation=activation, boundary=boundary, precision=precision,
        )  # fmt: skip

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)

    def body(state: FlowState, drive: Array):
        state = step(state, drive)
        if outputs == "none":
            return state, None
        if outputs == "states":
            return state, lab_frame(state, velocities, flow=flow) if form == "comoving" else state.banks
        return state, pooled_lab_frame(state, velocities, flow=flow, form=form, how=outputs)

    state, found = lax.scan(body, state, drive, unroll=unroll)
    return FlowScanOutput(state, None if found is None else jnp.moveaxis(found, 0, 1))
