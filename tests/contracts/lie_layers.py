"""Contract entries of `lie`: quarter turns are the transformations of the plane that are exact on pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import groups
from equivariant_jax.core import images as image_maps
from equivariant_jax.core import representations as rep
from equivariant_jax.lie import (
    GL2,
    AffineClassifierConfig,
    AffineKernelConfig,
    GroupSamples,
    affine_classifier_apply,
    affine_classifier_init,
    affine_group_conv,
    affine_kernel_init,
    group_pool,
    lift_conv,
    moment_norm,
    moment_norm_init,
    sample_polar,
)
from equivariant_jax.nn import (
    depthwise_convolution,
    global_max,
    max_pool,
    mean_pool,
    sine_network_apply,
    sine_network_init,
)
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

SIDE, SAMPLES = 7, 2
TURNS, IMAGE = groups.Cyclic(4), rep.QuarterTurns()


def _samples(dtype: str) -> GroupSamples:
    """Samples that quarter turns permute: turn k of sample s is sample `k * SAMPLES + s`."""
    some = sample_polar(jax.random.key(5), SAMPLES, GL2, max_angle=0.7)
    turns = [np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), k).astype(np.float32) for k in range(4)]
    matrix = jnp.concatenate([turn @ some.matrix for turn in turns])
    inverse = jnp.concatenate([some.inverse @ turn.T for turn in turns])
    return jax.tree.map(lambda leaf: leaf.astype(dtype), GroupSamples(matrix, inverse, jnp.tile(some.log_weight, 4)))


class _TurnedFeatures:
    """Quarter turns of lifted features `[..., height, width, samples, channels]`: of the image and of the samples."""

    def __call__(self, g, x):
        x = rep.QuarterTurns((-4, -3))(g, x)
        grouped = x.reshape(*x.shape[:-2], 4, SAMPLES, x.shape[-1])
        return jnp.take(grouped, jnp.mod(jnp.arange(4) - g, 4), axis=-3).reshape(x.shape)


FEATURES = _TurnedFeatures()
CONFIG = AffineKernelConfig(GL2, size=3, reach=1.3, hidden=(8, 8), frequency=2.0)
SEPARABLE = AffineKernelConfig(GL2, size=3, reach=1.3, basis="gaussian", separable=True)
CLASSIFIER = AffineClassifierConfig(SEPARABLE, channels=3, head=4, num_classes=3)


def _make(shape, params):
    def make(key, dtype):
        key_params, key_x = jax.random.split(key)
        return params(key_params, dtype), (jax.random.normal(key_x, shape, dtype),)

    return make


def _kernel(config, channels_in, *, lifting=False):
    def params(key, dtype):
        kernel = affine_kernel_init(key, config, channels_in, 2, lifting=lifting, dtype=dtype)
        return {"kernel": kernel, "samples": _samples(dtype)}

    return params


def _classifier(key, dtype):
    params, statistics = affine_classifier_init(key, CLASSIFIER, dtype=dtype)
    return {"params": params, "statistics": statistics, "samples": _samples(dtype)}


def _group(params, x, config):
    return affine_group_conv(params["kernel"], x, params["samples"], params["samples"], config)


LAYERS: list[Layer] = [
    Layer(
        name="core.images.warp_image (quarter turn)",
        function=lambda params, x: image_maps.warp_image(
            x, jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        ),
        make=_make((4, SIDE, SIDE, 2), lambda key, dtype: {}),
        laws=(Law(TURNS, (IMAGE,), IMAGE),),
        leading_axes=True,
    ),
    Layer(
        name="nn.depthwise_convolution",
        function=lambda params, x: depthwise_convolution(x, params["kernel"], boundary="circular"),
        make=_make((4, SIDE, SIDE, 2), lambda key, dtype: {"kernel": jax.random.normal(key, (3, 3, 2), dtype)}),
        laws=(Law(groups.TorusShifts((SIDE, SIDE)), (rep.Shifted((-3, -2)),), rep.Shifted((-3, -2))),),
        leading_axes=True,
    ),
    Layer(
        name="nn.sine_network_apply",
        function=lambda params, x: sine_network_apply(params, x, frequency=3.0),
        make=_make((4, 5, 3), lambda key, dtype: sine_network_init(key, (3, 8, 2), frequency=3.0, dtype=dtype)),
        exempt={"equivariance": "a function of coordinates, with no symmetry of its own"},
        leading_axes=True,
    ),
    Layer(
        name="nn.global_max",
        function=lambda params, x: global_max(x),
        make=_make((4, SIDE, SIDE, 2), lambda key, dtype: {}),
        laws=(Law(TURNS, (IMAGE,), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="nn.max_pool",
        function=lambda params, x: max_pool(x),
        make=_make((4, 6, 6, 2), lambda key, dtype: {}),
        laws=(Law(TURNS, (IMAGE,), IMAGE),),
        leading_axes=True,
    ),
    Layer(
        name="nn.mean_pool",
        function=lambda params, x: mean_pool(x),
        make=_make((4, 6, 6, 2), lambda key, dtype: {}),
        laws=(Law(TURNS, (IMAGE,), IMAGE),),
        leading_axes=True,
    ),
    Layer(
        name="lie.moment_norm",
        function=lambda params, x: moment_norm(params["norm"], x, params["samples"], GL2, jax.nn.gelu),
        make=_make(
            (4, SIDE, SIDE, 4 * SAMPLES, 2),
            lambda key, dtype: {"norm": moment_norm_init(2, dtype=dtype), "samples": _samples(dtype)},
        ),
        laws=(Law(TURNS, (FEATURES,), FEATURES),),
        leading_axes=True,
    ),
    Layer(
        name="lie.lift_conv",
        function=lambda params, x: lift_conv(params["kernel"], x, params["samples"], CONFIG),
        make=_make((4, SIDE, SIDE, 1), _kernel(CONFIG, 1, lifting=True)),
        laws=(Law(TURNS, (IMAGE,), FEATURES),),
        leading_axes=True,
        dtypes=("float32",),  # kernels are made in the samples' precision, which coordinates need
    ),
    Layer(
        name="lie.affine_group_conv (full)",
        function=lambda params, x: _group(params, x, CONFIG),
        make=_make((4, SIDE, SIDE, 4 * SAMPLES, 2), _kernel(CONFIG, 2)),
        laws=(Law(TURNS, (FEATURES,), FEATURES),),
        leading_axes=True,
        dtypes=("float32",),
    ),
    Layer(
        name="lie.affine_group_conv (separable)",
        function=lambda params, x: _group(params, x, SEPARABLE),
        make=_make((4, SIDE, SIDE, 4 * SAMPLES, 2), _kernel(SEPARABLE, 2)),
        laws=(Law(TURNS, (FEATURES,), FEATURES),),
        leading_axes=True,
        dtypes=("float32",),
    ),
    Layer(
        name="lie.group_pool (max)",
        function=lambda params, x: group_pool(x),
        make=_make((4, SIDE, SIDE, 4 * SAMPLES, 2), lambda key, dtype: {}),
        laws=(Law(TURNS, (FEATURES,), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="lie.affine_classifier_apply",
        function=lambda params, x: affine_classifier_apply(
            params["params"], params["statistics"], x, (params["samples"], params["samples"]), CLASSIFIER
        )[0],
        make=_make((4, 8, 8, 1), _classifier),
        laws=(Law(TURNS, (IMAGE,), rep.Trivial()),),
        leading_axes=True,
        dtypes=("float32",),
    ),
]
