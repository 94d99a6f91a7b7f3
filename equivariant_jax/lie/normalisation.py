r"""Normalisation of lifted features that commutes with affine maps and does not see the border.

Statistics over a canvas depend on how much of it is empty, which a transformation changes. A ratio of two integrals
does not: with the Haar measure of the group

    size(F) = int F(u, v)^2 / int |F(u, v)|        over positions, samples and channels

has the unit of F, and both integrals get the same factor `|det g|` from every g, so that `size(L_g F) = size(F)`. Where
F is zero it counts in neither. An image's contrast drops out, as in layer normalisation; zero stays zero, so that an
image on an empty ground is one on an endless plane, and zeros outside of the canvas are its continuation.

    moment_norm(F) = a F / size(F) + b,   then   act(moment_norm(F)) - act(b)

Reference: the layer normalisation of Ba et al. 2016, arXiv:1607.06450, whose statistics are over the canvas.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.lie.convolution import group_measure
from equivariant_jax.lie.decomposition import LinearGroup
from equivariant_jax.lie.sampling import GroupSamples

__all__ = ["moment_norm", "moment_norm_init"]


def moment_norm_init(channels: int, *, dtype=jnp.float32) -> PyTree:
    """Makes the parameters: ones and zeros.

    Args:
      channels: number of channels.
      dtype: of the parameters.

    Returns:
      `{"scale", "bias"}`, shape `[channels]` each.

    Raises:
      ValueError: if there is no channel.
    """
    if channels < 1:
        raise ValueError(f"moment_norm_init got {channels} channels; expected at least 1.")
    return {"scale": jnp.ones((channels,), dtype), "bias": jnp.zeros((channels,), dtype)}


def moment_norm(
    params: PyTree,
    features: Array,
    samples: GroupSamples,
    group: LinearGroup,
    activation: Callable[[Array], Array] | None = None,
    *,
    epsilon: float = 1e-6,
) -> Array:
    """Divides features by their size where they are not zero; keeps zero.

    Args:
      params: from `moment_norm_init`.
      features: shape `[..., height, width, samples, channels]`, float.
      samples: the group elements with weights, matrices `[samples, 2, 2]`.
      group: static.
      activation: static; a pointwise function, None for none. The result is its difference from its value at zero.
      epsilon: static; features smaller than this stay small.

    Returns:
      Array of the same shape and dtype; sums are in float32 at least.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> import jax
      >>> from equivariant_jax.lie import SL2, sample_polar
      >>> samples = sample_polar(jax.random.key(0), 4, SL2)
      >>> ones = jnp.zeros((6, 6, 4, 2)).at[2:4].set(3.0)
      >>> moment_norm(moment_norm_init(2), ones, samples, SL2).max().round(3).item()
      1.0
    """
    channels = params["scale"].shape[0]
    if features.ndim < 4 or features.shape[-2:] != (samples.matrix.shape[0], channels):
        raise ValueError(
            f"features: got shape {features.shape}, expected [..., height, width, {samples.matrix.shape[0]}, "
            f"{channels}] for these samples and parameters."
        )
    wide = features if features.dtype == jnp.float64 else features.astype(jnp.float32)
    measure = group_measure(samples, group).astype(wide.dtype)
    one = (1,) * (features.ndim - 1) + (-1,)
    measure = measure.reshape((1,) * (features.ndim - 2) + (-1, 1))
    least = np.asarray(epsilon, wide.dtype)

    def integral(x: Array) -> Array:
        return jnp.sum(x * measure, axis=(-4, -3, -2, -1), keepdims=True)

    size = integral(jnp.square(wide)) / (integral(jnp.abs(wide)) + least)
    out = (wide / (size + least)).astype(features.dtype) * params["scale"].reshape(one)
    bias = params["bias"].reshape(one)
    if activation is None:
        return out
    return activation(out + bias) - activation(bias)
