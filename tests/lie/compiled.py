"""The sampler compiled as a whole; one by one, its many small operations take seconds to compile."""

import jax

from equivariant_jax import lie

__all__ = ["sample_polar"]

sample_polar = jax.jit(
    lie.sample_polar,
    static_argnums=(1, 2),
    static_argnames=("scale", "proposal", "max_angle", "method", "dtype"),
)
