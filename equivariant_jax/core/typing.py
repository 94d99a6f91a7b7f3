"""Names of the types that signatures share."""

from typing import Any

import jax

__all__ = ["Array", "PRNGKey", "PyTree"]

Array = jax.Array
"""A JAX array; functions also accept NumPy arrays wherever this stands."""

PRNGKey = jax.Array
"""A typed random key, as made by `jax.random.key`."""

PyTree = Any
"""Any nesting of tuples, lists, dicts and registered nodes with arrays as leaves."""
