"""Normalisation of features by their statistics, as pure functions with explicit running averages."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PyTree

__all__ = ["batch_norm", "batch_norm_init"]


def batch_norm_init(features: int, *, dtype: Any = jnp.float32) -> tuple[PyTree, PyTree]:
    """Makes parameters and running statistics of a batch normalisation.

    Args:
      features: size of the last axis.
      dtype: of the parameters; statistics are float32.

    Returns:
      Parameters `scale` (ones) and `bias` (zeros), statistics `mean` (zeros) and `variance` (ones), each `[features]`.
    """
    statistics = {"mean": jnp.zeros((features,), jnp.float32), "variance": jnp.ones((features,), jnp.float32)}
    return {"scale": jnp.ones((features,), dtype), "bias": jnp.zeros((features,), dtype)}, statistics


def batch_norm(
    params: PyTree,
    statistics: PyTree,
    x: Array,
    *,
    training: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
) -> tuple[Array, PyTree]:
    """Normalises each feature over all other axes (training) or by running statistics.

    Args:
      params: from `batch_norm_init`.
      statistics: from `batch_norm_init` or an earlier call.
      x: shape `[..., features]`, float.
      training: static; True uses and updates the statistics of this batch.
      momentum: static; weight of the old running statistics.
      epsilon: static; added to the variance.
      axis_name: static; mapped axis over which the batch is spread, or None. Under `jit` with a sharded batch none is
        needed.

    Returns:
      The normalised array, dtype of `x`, and the new statistics (float32; the running variance is unbiased).

    Raises:
      ValueError: if the last axis does not fit.

    Example:
      >>> params, statistics = batch_norm_init(1)
      >>> y, _ = batch_norm(params, statistics, jnp.array([[1.0], [3.0]]), training=True)
      >>> y[:, 0].round(3).tolist()
      [-1.0, 1.0]
    """
    if x.shape[-1:] != params["scale"].shape:
        raise ValueError(f"batch_norm got x {x.shape}, expected {params['scale'].shape[0]} features on the last axis.")
    one = (1,) * (x.ndim - 1) + (-1,)
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    mean, variance = (statistics[name].astype(wide.dtype) for name in ("mean", "variance"))
    if training:
        axes, count = tuple(range(x.ndim - 1)), float(np.prod(x.shape[:-1]))
        mean, square = jnp.mean(wide, axis=axes), jnp.mean(wide * wide, axis=axes)
        if axis_name is not None:
            mean, square = lax.pmean((mean, square), axis_name)
            count = count * lax.axis_size(axis_name)
        variance = jnp.maximum(square - mean * mean, 0)
        kept, share = np.float32(momentum), np.float32(1 - momentum)
        unbiased = np.float32(count / max(count - 1, 1))
        statistics = {
            "mean": kept * statistics["mean"] + share * lax.stop_gradient(mean).astype(jnp.float32),
            "variance": kept * statistics["variance"]
            + share * unbiased * lax.stop_gradient(variance).astype(jnp.float32),
        }
    scale = params["scale"].astype(wide.dtype) * lax.rsqrt(variance + np.asarray(epsilon, wide.dtype))
    shifted = (wide - mean.reshape(one)) * scale.reshape(one) + params["bias"].astype(wide.dtype).reshape(one)
    return shifted.astype(x.dtype), statistics
