"""Multi-layer perceptrons as pure functions on a plain pytree, and the Linen module over them.

Kernels are drawn with variance `1 / features_in` and the activation is rescaled to keep the second moment of a standard
normal input at one, so activations stay O(1) at any depth and width without normalisation layers.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree

__all__ = ["MLP", "mlp_apply", "mlp_init", "unit_silu"]


def _silu_second_moment() -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    silu = nodes / (1 + np.exp(-nodes))
    return float(np.sum(weights * silu**2) / np.sqrt(2 * np.pi))


_SILU_GAIN = 1 / np.sqrt(_silu_second_moment())


def unit_silu(x: Array) -> Array:
    """SiLU scaled so that a standard normal input has second moment one.

    Args:
      x: array of any shape, float.

    Returns:
      Array of the shape and dtype of `x`; zero at zero.

    Example:
      >>> round(float(unit_silu(jnp.array(1.0))), 4)
      1.2256
    """
    return jax.nn.silu(x) * np.asarray(_SILU_GAIN, x.dtype)


def mlp_init(key: PRNGKey, features: Sequence[int], *, use_bias: bool = True, dtype=jnp.float32) -> PyTree:
    """Draws parameters of an MLP.

    Args:
      key: typed random key.
      features: widths `(in, hidden..., out)`, at least two.
      use_bias: static; False gives a map that takes zero to zero (with an activation that does).
      dtype: parameter dtype.

    Returns:
      Tuple with one dict per layer: `kernel` of shape `[in, out]`, and `bias` of shape `[out]` if used.

    Raises:
      ValueError: if fewer than two widths are given.

    Example:
      >>> [layer["kernel"].shape for layer in mlp_init(jax.random.key(0), (3, 8, 1))]
      [(3, 8), (8, 1)]
    """
    if len(features) < 2:
        raise ValueError(f"features must name the widths (in, hidden..., out), got {tuple(features)}.")
    layers = []
    for layer_key, n_in, n_out in zip(
        jax.random.split(key, len(features) - 1), features[:-1], features[1:], strict=True
    ):
        layer = {"kernel": jax.random.normal(layer_key, (n_in, n_out), dtype) / np.sqrt(n_in).astype(dtype)}
        if use_bias:
            layer["bias"] = jnp.zeros((n_out,), dtype)
        layers.append(layer)
    return tuple(layers)


def mlp_apply(
    params: PyTree,
    x: Array,
    *,
    activation: Callable[[Array], Array] = unit_silu,
    precision: lax.Precision | None = lax.Precision.HIGHEST,
) -> Array:
    """Applies an MLP to the last axis; no activation after the last layer.

    Args:
      params: from `mlp_init`.
      x: shape `[..., in]`, dtype of the parameters.
      activation: static; elementwise function between layers.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., out]`.

    Raises:
      ValueError: if the last axis does not fit the first kernel.

    Example:
      >>> mlp_apply(mlp_init(jax.random.key(0), (3, 8, 1)), jnp.ones((5, 3))).shape
      (5, 1)
    """
    if x.shape[-1] != params[0]["kernel"].shape[0]:
        raise ValueError(f"mlp_apply got x {x.shape}; the first kernel takes {params[0]['kernel'].shape[0]} features.")
    for index, layer in enumerate(params):
        if index > 0:
            x = activation(x)
        x = jnp.matmul(x, layer["kernel"], precision=precision)
        if "bias" in layer:
            x = x + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return x


class MLP(nn.Module):
    """Linen form of `mlp_apply`: `[..., in] -> [..., features[-1]]`.

    Attributes:
      features: widths `(hidden..., out)`.
      use_bias: whether layers have a bias.
      activation: elementwise function between layers.
    """

    features: Sequence[int]
    use_bias: bool = True
    activation: Callable[[Array], Array] = unit_silu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., in]` to `[..., features[-1]]`, dtype of `x`."""
        widths = (x.shape[-1], *self.features)
        init = functools.partial(mlp_init, features=widths, use_bias=self.use_bias, dtype=x.dtype)
        return mlp_apply(self.param("layers", init), x, activation=self.activation)
