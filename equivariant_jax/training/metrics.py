"""Sums that can be added across batches, devices and steps, and divided once at the end.

A mean of means is wrong as soon as batches hold different numbers of real items (the last batch of an evaluation,
padded graphs, molecules of different size). Losses and metrics are therefore carried as `(total, weight)`; adding two
of them field by field, in any order, gives the sums over the union, and `compute` divides.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array

__all__ = ["Mean", "Metric", "RootMean", "add_metrics", "compute_metrics"]


def at_least_float32(dtype: Any) -> Any:
    """The dtype that sums of a floating dtype are kept in: float64 for float64, float32 for anything narrower."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _sums(values: Array, mask: Array | None) -> tuple[Array, Array]:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
    # bfloat16 and float16 sums lose items beyond a few hundred; totals are float32 at least.
    values = values.astype(at_least_float32(values.dtype))
    if mask is None:
        return values.sum(), jnp.asarray(values.size, values.dtype)
    mask = jnp.asarray(mask)
    if mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"mask has shape {mask.shape}, values have shape {values.shape}; expected the mask's shape to be the "
            "leading axes of the values' shape."
        )
    mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
    return jnp.where(mask, values, 0).sum(), mask.sum(dtype=values.dtype)


class Mean(NamedTuple):
    """A mean over real items, kept as two sums.

    Attributes:
      total: sum of the values of the real items, shape `[]`, float32 or float64.
      weight: number (or total weight) of the real items, shape `[]`, same dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> full = Mean.of(jnp.array([1.0, 3.0]))
      >>> padded = Mean.of(jnp.array([8.0, 99.0]), mask=jnp.array([True, False]))
      >>> float(full.merge(padded).compute())  # (1 + 3 + 8) / 3, not (2 + 8) / 2
      4.0
    """

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: Array, mask: Array | None = None) -> "Mean":
        """Sums values over real elements.

        Args:
          values: shape `[...]`, any real dtype; summed in float32 at least.
          mask: True where real, bool, its shape the leading axes of `values`; the remaining axes count as items too.

        Returns:
          `Mean` with `weight` the number of real elements.

        Raises:
          ValueError: if the mask does not fit.
        """
        return cls(*_sums(values, mask))

    def merge(self, other: "Mean") -> "Mean":
        """Returns the mean over the union of both sets of items (all shapes `[]`)."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Array:
        """Returns `total / weight`, shape `[]`; NaN when there was no item."""
        return jnp.asarray(self.total) / jnp.asarray(self.weight)


class RootMean(NamedTuple):
    """The root of a mean over real items (an RMSE, when the values are squared errors), kept as two sums.

    Attributes:
      total: sum of the values before the root, shape `[]`.
      weight: number of real items, shape `[]`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(RootMean.of(jnp.array([9.0, 16.0, 11.0])).compute() ** 2)
      12.0
    """

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: Array, mask: Array | None = None) -> "RootMean":
        """Sums values (squared errors, say) over real elements; arguments and shapes as in `Mean.of`."""
        return cls(*_sums(values, mask))

    def merge(self, other: "RootMean") -> "RootMean":
        """Returns the root mean over the union of both sets of items (all shapes `[]`)."""
        return RootMean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Array:
        """Returns `sqrt(total / weight)`, shape `[]`; NaN when there was no item."""
        return jnp.sqrt(jnp.asarray(self.total) / jnp.asarray(self.weight))


Metric = Mean | RootMean


def add_metrics(left: Mapping[str, Metric], right: Mapping[str, Metric]) -> dict[str, Metric]:
    """Adds two dictionaries of metrics name by name; runs under `jit`.

    Args:
      left: name -> `Mean` or `RootMean`, leaves `[]`.
      right: the same names.

    Returns:
      name -> the metric of the union of both sets of items, leaves `[]`.

    Raises:
      ValueError: if the names differ.
    """
    if left.keys() != right.keys():
        raise ValueError(f"Metrics to add have names {sorted(left)} and {sorted(right)}; expected the same names.")
    return {name: jax.tree.map(jnp.add, left[name], right[name]) for name in left}


def compute_metrics(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Fetches metrics (leaves of shape `[]`) from the device in one transfer and divides on the host.

    Returns:
      One Python float per name; NaN where no item was seen.
    """
    fetched = jax.device_get(dict(metrics))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: np.asarray(m.total) / np.asarray(m.weight) for name, m in fetched.items()}
        return {
            name: float(np.sqrt(values[name]) if isinstance(m, RootMean) else values[name])
            for name, m in fetched.items()
        }
