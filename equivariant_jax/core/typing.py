"""Names of the types that signatures share."""

from collections.abc import Callable, Hashable
from typing import Any

import jax

__all__ = ["Array", "Dtype", "PRNGKey", "PyTree", "Shape", "StaticFunction"]

Array = jax.Array
"""A JAX array; functions also accept NumPy arrays wherever this stands."""

PRNGKey = jax.Array
"""A typed random key, as made by `jax.random.key`."""

PyTree = Any
"""Any nesting of tuples, lists, dicts and registered nodes with arrays as leaves."""

Shape = tuple[int, ...]
Dtype = Any
StaticFunction = Callable[..., Any] | Hashable
"""A value that must be hashable because it is static under `jit`."""
