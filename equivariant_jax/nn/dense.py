"""One affine map of the last axis, drawn uniformly within `1 / sqrt(features_in)`, as in PyTorch's layers."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree

__all__ = ["dense_apply", "dense_init"]


def dense_init(
    key: PRNGKey, features_in: int, features_out: int, *, use_bias: bool = True, dtype=jnp.float32
) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      features_in: width of the input.
      features_out: width of the output.
      use_bias: static; whether there is a bias.
      dtype: of the parameters.

    Returns:
      `kernel`, shape `[features_in, features_out]`, and `bias`, shape `[features_out]`, if used.

    Raises:
      ValueError: if a width is below one.

    Example:
      >>> dense_init(jax.random.key(0), 3, 5)["kernel"].shape
      (3, 5)
    """
    if min(features_in, features_out) < 1:
        raise ValueError(f"dense_init got widths {features_in} and {features_out}; expected at least 1.")
    bound = 1 / math.sqrt(features_in)
    key_kernel, key_bias = jax.random.split(key)
    params = {"kernel": jax.random.uniform(key_kernel, (features_in, features_out), dtype, -bound, bound)}
    if use_bias:
        params["bias"] = jax.random.uniform(key_bias, (features_out,), dtype, -bound, bound)
    return params


def dense_apply(params: PyTree, x: Array, *, precision: lax.Precision | None = lax.Precision.HIGHEST) -> Array:
    """Applies the map to the last axis.

    Args:
      params: from `dense_init`.
      x: shape `[..., features_in]`, dtype of the parameters.
      precision: static; of the product.

    Returns:
      Array of shape `[..., features_out]`.

    Raises:
      ValueError: if the last axis does not fit.

    Example:
      >>> dense_apply(dense_init(jax.random.key(0), 3, 5), jnp.ones((2, 3))).shape
      (2, 5)
    """
    if x.shape[-1:] != params["kernel"].shape[:1]:
        raise ValueError(f"dense_apply got x {x.shape}; the kernel takes {params['kernel'].shape[0]} features.")
    out = jnp.matmul(x, params["kernel"], precision=precision)
    return out if "bias" not in params else out + params["bias"].reshape((1,) * (out.ndim - 1) + (-1,))
