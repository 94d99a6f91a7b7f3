"""One-parameter groups acting over time: networks for sequences whose contents move.

A flow `psi_t(nu)` moves a sequence frame by frame, `f_t -> psi_t(nu) . f_t`. An ordinary recurrent network with
equivariant convolutions is not equivariant to it, because its memory stays where the object was. Here the hidden state
has a bank for each velocity that its own flow carries along.

- `generators`: shifts of the torus (whole and fractional), rotations, and what a flow of one's own must satisfy.
- `lifting`: features over velocities; steerable kernels over the cyclic group.
- `recurrent`: the cell and its scan, in the published and in the co-moving form; mixing between velocities; pooling.
- `linear`: the linear recurrence in Fourier space, parallel in time.
- `next_frame`: predicts frames; `classifier`: labels sequences, with its baselines; `world_model`: a latent map that is
  larger than the view, with a moving agent.

    >>> import jax, jax.numpy as jnp
    >>> from equivariant_jax import flow
    >>> params = flow.flow_rnn_init(jax.random.key(0), channels_in=1, channels=8)
    >>> frames = jnp.zeros((2, 10, 16, 16, 1))
    >>> flow.flow_scan(params, frames, flow.velocity_grid(1)).outputs.shape  # [batch, time, V, height, width, channels]
    (2, 10, 9, 16, 16, 8)
"""

from equivariant_jax.flow.classifier import (
    SequenceClassifier,
    SequenceClassifierConfig,
    sequence_classifier_apply,
    sequence_classifier_init,
)
from equivariant_jax.flow.generators import (
    apply_flow,
    fractional_shift,
    rotation_flow,
    rotation_velocities,
    torus_shift,
    velocity_array,
    velocity_grid,
)
from equivariant_jax.flow.lifting import (
    cyclic_kernel,
    cyclic_kernel_init,
    cyclic_lifting_kernel,
    flow_lift,
    steerable_basis,
    trivial_lift,
)
from equivariant_jax.flow.linear import linear_flow_scan
from equivariant_jax.flow.next_frame import (
    NextFrame,
    NextFrameConfig,
    expand_kernels,
    next_frame_apply,
    next_frame_init,
)
from equivariant_jax.flow.recurrent import (
    FlowScanOutput,
    FlowState,
    flow_pool,
    flow_rnn_cell,
    flow_rnn_init,
    flow_scan,
    flow_state,
    lab_frame,
    mixing_offsets,
)
from equivariant_jax.flow.world_model import WorldState, world_model_read, world_model_scan, world_model_state

__all__ = [
    "FlowScanOutput",
    "FlowState",
    "NextFrame",
    "NextFrameConfig",
    "SequenceClassifier",
    "SequenceClassifierConfig",
    "WorldState",
    "apply_flow",
    "cyclic_kernel",
    "cyclic_kernel_init",
    "cyclic_lifting_kernel",
    "expand_kernels",
    "flow_lift",
    "flow_pool",
    "flow_rnn_cell",
    "flow_rnn_init",
    "flow_scan",
    "flow_state",
    "fractional_shift",
    "lab_frame",
    "linear_flow_scan",
    "mixing_offsets",
    "next_frame_apply",
    "next_frame_init",
    "rotation_flow",
    "rotation_velocities",
    "sequence_classifier_apply",
    "sequence_classifier_init",
    "steerable_basis",
    "torus_shift",
    "trivial_lift",
    "velocity_array",
    "velocity_grid",
    "world_model_read",
    "world_model_scan",
    "world_model_state",
]
