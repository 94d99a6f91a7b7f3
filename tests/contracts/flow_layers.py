"""Contract entries of `flow` and of the image blocks of `nn` and `core`."""

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import groups, images
from equivariant_jax.core import representations as rep
from equivariant_jax.flow import (
    NextFrameConfig,
    SequenceClassifierConfig,
    apply_flow,
    cyclic_kernel,
    cyclic_lifting_kernel,
    flow_lift,
    flow_pool,
    flow_rnn_init,
    flow_scan,
    fractional_shift,
    linear_flow_scan,
    next_frame_apply,
    next_frame_init,
    rotation_flow,
    sequence_classifier_apply,
    sequence_classifier_init,
    torus_shift,
    velocity_grid,
    world_model_scan,
    world_model_state,
)
from equivariant_jax.nn import batch_norm, batch_norm_init, convolution, convolution_init
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

SIDE, TIMES = 5, 3
TORUS, IMAGE = groups.TorusShifts((SIDE, SIDE)), rep.Shifted((-3, -2))
ALL = velocity_grid((SIDE - 1) // 2)  # every velocity of the torus of 5 x 5
HALVES = groups.Cyclic(4)


class _Flow:
    """A velocity (vy, vx) of the torus acting on sequences, `[..., time, (V,) height, width, channels]`.

    With `banks` the velocities of the hidden state are permuted too: bank nu holds what bank nu - nu_hat held.
    """

    def __init__(self, *, banks=False, start=0):
        self.banks, self.start = banks, start

    def __call__(self, g, x):
        if self.banks:
            vy, vx = g[0], g[1]
            grid = x.reshape(*x.shape[:-4], SIDE, SIDE, *x.shape[-3:])  # vx outer, vy inner
            x = jnp.roll(grid, (vx, vy), axis=(-5, -4)).reshape(x.shape)
        axis = -5 if self.banks else -4
        frames = jnp.moveaxis(x, axis, 0)
        moved = [
            jnp.roll(frame, ((self.start + t) * g[0], (self.start + t) * g[1]), axis=(-3, -2))
            for t, frame in enumerate(frames)
        ]
        return jnp.moveaxis(jnp.stack(moved), 0, axis)


STATIC = Law(TORUS, (IMAGE,), IMAGE)
FRAMES, STATES = _Flow(), _Flow(banks=True)


def _images(*shape, params=lambda key, dtype: {}):
    def make(key, dtype):
        key_params, key_images = jax.random.split(key)
        return params(key_params, dtype), (jax.random.normal(key_images, shape, dtype),)

    return make


def _sequence(params):
    return _images(2, TIMES, SIDE, SIDE, 2, params=params)


def _scan(**options):
    return lambda params, frames: flow_scan(params, frames, ALL, **options).outputs


def _cell(offsets=1):
    return lambda key, dtype: flow_rnn_init(key, 2, 3, offsets=offsets, gain=2.0, dtype=dtype)


def _kernel(key, dtype):
    return {"kernel": convolution_init(key, 3, 2, 3, dtype=dtype)}


def _linear(key, dtype):
    key_input, key_recurrent = jax.random.split(key)
    recurrent = convolution_init(key_recurrent, 3, 1, 3, dtype=dtype)[:, :, 0]
    return {"input": convolution_init(key_input, 3, 2, 3, dtype=dtype), "recurrent": recurrent}


def _turning(params, frames):
    """The cyclic group C_4 on a square with zero boundary; features averaged over orientations."""
    kernels = {
        "input": cyclic_lifting_kernel(params["input"], 4),
        "recurrent": cyclic_kernel(params["recurrent"]),
    }
    velocities = tuple((90.0 * k,) for k in range(4))
    states = flow_scan(kernels, frames, velocities, flow=rotation_flow(4), boundary="zero").outputs
    return jnp.mean(flow_pool(states).reshape(*states.shape[:2], *states.shape[3:5], 4, -1), axis=-2)


def _turning_params(key, dtype):
    key_input, key_recurrent = jax.random.split(key)
    return {
        "input": jax.random.normal(key_input, (6, 2, 2), dtype) / 2,
        "recurrent": jax.random.normal(key_recurrent, (6, 4, 2, 2), dtype) / 8,
    }


NEXT = NextFrameConfig(ALL, channels_in=2, channels=3, decoder_layers=1)
CLASSIFIER = SequenceClassifierConfig(
    num_classes=2, velocities=ALL, channels_in=2, input_channels=(3,), input_sizes=(3,), block_channels=(3,)
)


def _classifier_params(key, dtype):
    params, statistics = sequence_classifier_init(key, CLASSIFIER, dtype=dtype)
    return {"params": params, "statistics": statistics}


def _classify(params, frames):
    return sequence_classifier_apply(params["params"], params["statistics"], frames, CLASSIFIER)[0]


def _world(params, frames):
    state = world_model_state(frames.shape[0], velocity_grid(1), 7, 3, frames.dtype)
    # Of the frames, as inside shard_map the map must vary over devices with them.
    state = state._replace(banks=state.banks + jnp.zeros_like(frames[:, :1, :1, :1, :1]))
    position = state.position + jnp.zeros_like(frames[:, :1, 0, 0, :1]).astype(jnp.int32)
    actions = jnp.asarray(np.array([[1, 0], [0, -2], [3, 1]], np.int32))[None]
    actions = jnp.broadcast_to(actions, (frames.shape[0], TIMES, 2))
    return world_model_scan(params, state._replace(position=position), frames, actions, velocity_grid(1))[1]


LAYERS = [
    Layer(
        name="core.images.shift_image",
        function=lambda params, x: images.shift_image(x, jnp.array([2, -1])),
        make=_images(4, SIDE, SIDE, 2),
        laws=(STATIC,),
        leading_axes=True,
    ),
    Layer(
        name="core.images.rotate_image (quarter turn)",
        function=lambda params, x: images.rotate_image(x, jnp.array(90.0)),
        make=_images(4, SIDE, SIDE, 2),
        laws=(Law(HALVES, (rep.QuarterTurns(),), rep.QuarterTurns()),),
        leading_axes=True,
    ),
    Layer(
        name="nn.convolution (circular)",
        function=lambda params, x: convolution(x, params["kernel"]),
        make=_images(4, SIDE, SIDE, 2, params=_kernel),
        laws=(STATIC,),
        leading_axes=True,
    ),
    Layer(
        name="nn.convolution (zero)",
        function=lambda params, x: convolution(x, params["kernel"], boundary="zero"),
        make=_images(4, SIDE, SIDE, 2, params=_kernel),
        exempt={"equivariance": "zeros beyond the border mark where the image ends"},
        leading_axes=True,
    ),
    Layer(
        name="nn.batch_norm (running statistics)",
        function=lambda params, x: batch_norm(*params["norm"], x, training=False)[0],
        make=_images(4, SIDE, SIDE, 2, params=lambda key, dtype: {"norm": batch_norm_init(2, dtype=dtype)}),
        laws=(STATIC,),
        leading_axes=True,
    ),
    Layer(
        name="flow.apply_flow",
        function=lambda params, x: apply_flow(x, ALL, 3),
        make=_images(4, 25, SIDE, SIDE, 2),
        laws=(STATIC,),
        leading_axes=True,
    ),
    Layer(
        name="flow.fractional_shift",
        function=lambda params, x: fractional_shift(x, jnp.array([0.3, -1.2]), jnp.array(2.0)),
        make=_images(4, SIDE, SIDE, 2),
        laws=(STATIC,),
        dtypes=("float32",),  # XLA has no half-precision Fourier transform
        leading_axes=True,
    ),
    Layer(
        name="flow.flow_lift",
        function=lambda params, x: flow_lift(x, ALL, 2, flow=torus_shift),
        make=_images(4, SIDE, SIDE, 2),
        laws=(STATIC,),
        leading_axes=True,
    ),
    Layer(
        name="flow.flow_pool",
        function=lambda params, x: flow_pool(x),
        make=_images(2, TIMES, 25, SIDE, SIDE, 2),
        laws=(Law(TORUS, (STATES,), FRAMES),),
        leading_axes=True,
    ),
    *(
        Layer(
            name=f"flow.flow_scan ({form})",
            function=_scan(form=form),
            make=_sequence(_cell()),
            laws=(Law(TORUS, (FRAMES,), STATES), STATIC),
        )
        for form in ("comoving", "published")
    ),
    Layer(
        name="flow.flow_scan (mixing, pooled)",
        function=_scan(mixing=1, period=SIDE, outputs="max"),
        make=_sequence(_cell(offsets=9)),
        laws=(Law(TORUS, (FRAMES,), FRAMES),),
    ),
    Layer(
        name="flow.flow_scan (cyclic group, pooled)",
        function=_turning,
        make=_sequence(_turning_params),
        laws=(Law(HALVES, (rep.QuarterTurns(),), rep.QuarterTurns()),),
    ),
    Layer(
        name="flow.linear_flow_scan",
        function=lambda params, frames: linear_flow_scan(params, frames, ALL),
        make=_sequence(_linear),
        laws=(Law(TORUS, (FRAMES,), STATES), STATIC),
        dtypes=("float32",),  # XLA has no half-precision Fourier transform
    ),
    Layer(
        name="flow.next_frame_apply",
        function=lambda params, frames: next_frame_apply(params, frames, 2, NEXT),
        make=_sequence(lambda key, dtype: next_frame_init(key, NEXT, dtype=dtype)),
        laws=(Law(TORUS, (FRAMES,), _Flow(start=TIMES)),),
    ),
    Layer(
        name="flow.sequence_classifier_apply",
        function=_classify,
        make=_sequence(_classifier_params),
        laws=(Law(TORUS, (FRAMES,), rep.Trivial()), Law(TORUS, (IMAGE,), rep.Trivial())),
    ),
    Layer(
        name="flow.world_model_scan",
        function=_world,
        make=_sequence(_cell()),
        exempt={"equivariance": "its law moves agent and velocities, which are static here; see test_classifier"},
    ),
]
