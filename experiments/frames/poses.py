"""Random poses of clouds and systems of particles."""

import jax
import jax.numpy as jnp

from equivariant_jax.core.groups import Orthogonal
from equivariant_jax.core.typing import Array, PRNGKey

__all__ = ["turned"]


def turned(key: PRNGKey, *arrays: Array) -> list[Array]:
    """Moves each cloud by its own random orthogonal matrix, the same in all arrays.

    Args:
      key: typed random key.
      *arrays: positions or vectors, shape `[batch, n, 3]` each, float.

    Returns:
      The moved arrays.
    """
    turns = jax.vmap(Orthogonal(3).sample)(jax.random.split(key, arrays[0].shape[0])).astype(arrays[0].dtype)
    return [jnp.einsum("bni,bji->bnj", a, turns) for a in arrays]
