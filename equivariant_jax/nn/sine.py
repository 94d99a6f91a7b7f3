r"""Networks of sine layers, smooth functions of a few coordinates: `x -> sin(frequency (x W + b))`, layer on layer.

The distribution of the layers' outputs is the same at every depth, and so is that of their derivatives: such a network
is a convolution kernel, or any other function of position, that can be evaluated at every point.

Reference: Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation Functions", arXiv:2006.09661.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree

__all__ = ["sine_network_apply", "sine_network_init"]


def sine_network_init(
    key: PRNGKey, features: Sequence[int], *, frequency: float = 10.0, gain: float = 1.0, dtype=jnp.float32
) -> PyTree:
    """Draws parameters: the first kernel uniform in `+-1 / in`, the others in `+-sqrt(6 / in) / frequency`.

    Args:
      key: typed random key.
      features: widths `(in, hidden..., out)`, at least one hidden layer.
      frequency: static; factor inside of the sines.
      gain: static; the last kernel, which no sine follows, is uniform in `+-gain sqrt(6 / in)`.
      dtype: of the parameters.

    Returns:
      Tuple with a dict for each layer: `kernel` `[in, out]`, `bias` `[out]` (zero but for the first layer's, which is
      uniform in `+-1 / sqrt(in)`).

    Raises:
      ValueError: if there is no hidden layer.

    Example:
      >>> [layer["kernel"].shape for layer in sine_network_init(jax.random.key(0), (2, 60, 60, 5))]
      [(2, 60), (60, 60), (60, 5)]
    """
    if len(features) < 3 or min(features) < 1:
        raise ValueError(f"sine_network_init got widths {tuple(features)}; expected (in, hidden..., out), at least 3.")
    key_bias, *keys = jax.random.split(key, len(features))
    last, layers = len(features) - 2, []
    for depth, (layer_key, n_in, n_out) in enumerate(zip(keys, features[:-1], features[1:], strict=True)):
        bound = {0: 1 / n_in, last: gain * np.sqrt(6 / n_in)}.get(depth, np.sqrt(6 / n_in) / frequency)
        layers.append(
            {
                "kernel": jax.random.uniform(layer_key, (n_in, n_out), dtype, -bound, bound),
                "bias": jnp.zeros((n_out,), dtype),
            }
        )
    bound = 1 / np.sqrt(features[0])
    layers[0]["bias"] = jax.random.uniform(key_bias, (features[1],), dtype, -bound, bound)
    return tuple(layers)


def sine_network_apply(params: PyTree, x: Array, *, frequency: float = 10.0, precision=lax.Precision.HIGHEST) -> Array:
    """Evaluates the network at points.

    Args:
      params: from `sine_network_init`.
      x: coordinates of the points, shape `[..., in]`, dtype of `params`.
      frequency: static; as in `sine_network_init`.
      precision: static; of the products.

    Returns:
      Values, shape `[..., out]`, dtype of `x`.

    Raises:
      ValueError: if the number of coordinates does not fit.

    Example:
      >>> params = sine_network_init(jax.random.key(0), (2, 8, 3))
      >>> sine_network_apply(params, jnp.zeros((7, 2))).shape
      (7, 3)
    """
    if x.ndim < 1 or x.shape[-1] != params[0]["kernel"].shape[0]:
        raise ValueError(f"x: got shape {x.shape}, expected [..., {params[0]['kernel'].shape[0]}] for these params.")
    out = x.reshape(-1, x.shape[-1])
    for depth, layer in enumerate(params):
        out = jnp.matmul(out, layer["kernel"], precision=precision) + layer["bias"][None, :]
        if depth < len(params) - 1:
            out = jnp.sin(np.asarray(frequency, out.dtype) * out)
    return out.reshape(*x.shape[:-1], out.shape[-1])
