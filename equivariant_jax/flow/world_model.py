r"""A latent map larger than the view, in which things move and from which an agent looks: the flow world model's cell.

The map has a bank for each velocity. The view is a window at the map's corner (0, 0); what it sees is written there,
and when the agent moves by a_t, everything in its coordinates moves by -a_t:

    s_t(nu) = act( psi_1(nu - a_t) . [W * s_{t-1}(nu)] + embed(U * f_t) ),      read: max_nu of s_t inside the window.

Law: for a world that drifts by nu_hat and an agent whose actions are `a_t + nu_hat`, the view is the same as without
either, and the banks are permuted: what bank nu held is in bank nu + nu_hat. An agent that returns to where it was
finds what it saw there, moved on.

The state is kept where it started, `k_t(nu) = psi_{-p}. s_t(nu)` with `p_t(nu) = t nu - sum a`, so that, as in
`recurrent`, only what is written and read moves.

Reference: Lillemark et al. 2026, arXiv:2601.01075 (Flow Equivariant World Models).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.images import shift_image
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.flow.generators import Velocities, velocity_array
from equivariant_jax.flow.recurrent import flow_pool
from equivariant_jax.nn.convolution import convolution

__all__ = ["WorldState", "world_model_read", "world_model_scan", "world_model_state"]


class WorldState(NamedTuple):
    """The map between views.

    Attributes:
      banks: shape `[batch, V, world, world, channels]`, in the frames of their own motion.
      position: how far each bank has moved in the agent's coordinates, `[batch, V, 2]`, int32, `(x, y)`.
    """

    banks: Array
    position: Array


def world_model_state(batch: int, velocities: Velocities, world: int, channels: int, dtype=jnp.float32) -> WorldState:
    """Makes an empty map.

    Args:
      batch: number of sequences.
      velocities: static; `V` whole velocities `(vx, vy)` in pixels per frame.
      world: side of the map, a torus.
      channels: of the map.
      dtype: of the map.

    Returns:
      `WorldState`.
    """
    banks = jnp.zeros((batch, len(velocities), world, world, channels), dtype)
    return WorldState(banks, jnp.zeros((batch, len(velocities), 2), jnp.int32))


def _shift(banks: Array, shift: Array) -> Array:
    """Moves each image `[batch, V, h, w, c]` by its own `[batch, V, 2]`."""
    return jax.vmap(jax.vmap(shift_image))(banks, shift)


def world_model_read(state: WorldState, window: int) -> Array:
    """Reads the map inside the window.

    Args:
      state: the map.
      window: static; side of the view.

    Returns:
      Features pooled over velocities, shape `[batch, window, window, channels]`.
    """
    return flow_pool(_shift(state.banks, state.position)[:, :, :window, :window])


def world_model_scan(
    params: PyTree,
    state: WorldState,
    frames: Array,
    actions: Array,
    velocities: Velocities,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    precision=lax.Precision.HIGHEST,
) -> tuple[WorldState, Array]:
    """Looks at a sequence while moving.

    Args:
      params: from `flow_rnn_init` (without mixing).
      state: from `world_model_state` or an earlier call.
      frames: what is seen, shape `[batch, time, window, window, channels_in]`, dtype of `params`.
      actions: by how much the agent moved before each frame, shape `[batch, time, 2]`, int32, `(x, y)` in pixels.
      velocities: static; `V` whole velocities of the banks.
      activation: static; elementwise, zero at zero.
      precision: static; of the products.

    Returns:
      The map, and what `world_model_read` gives after each frame, `[batch, time, window, window, channels]`.

    Raises:
      ValueError: if shapes do not fit, or actions are not integers.
    """
    world = state.banks.shape[2]
    if frames.ndim != 5 or frames.shape[2] != frames.shape[3] or frames.shape[2] > world:
        raise ValueError(f"frames: got shape {frames.shape}, expected [batch, time, side, side, c], side <= {world}.")
    if actions.shape != (*frames.shape[:2], 2) or not jnp.issubdtype(actions.dtype, jnp.integer):
        raise ValueError(f"actions: got {actions.dtype} {actions.shape}, expected integers {(*frames.shape[:2], 2)}.")
    window = frames.shape[2]
    if state.banks.shape[1] != len(velocities):
        raise ValueError(f"state: got {state.banks.shape[1]} banks, expected {len(velocities)}.")
    nu = jnp.asarray(np.round(velocity_array(velocities)).astype(np.int32))[None]
    # Zeros around the view: what is outside is not known to be empty.
    drive = convolution(frames, params["input"], boundary="zero", precision=precision)
    margin = world - window
    drive = jnp.pad(jnp.moveaxis(drive, 1, 0), ((0, 0), (0, 0), (0, margin), (0, margin), (0, 0)))

    def body(state: WorldState, item: tuple[Array, Array]):
        written, action = item
        position = state.position + nu - action[:, None]
        memory = convolution(state.banks, params["recurrent"], precision=precision)
        seen = _shift(jnp.broadcast_to(written[:, None], memory.shape), -position)
        state = WorldState(activation(memory + seen), position)
        return state, world_model_read(state, window)

    body = jax.checkpoint(body, prevent_cse=False)
    state, views = lax.scan(body, state, (drive, jnp.moveaxis(actions, 1, 0).astype(jnp.int32)))
    return state, jnp.moveaxis(views, 0, 1)
