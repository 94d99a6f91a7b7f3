"""Symmetry-aware machine learning in JAX and Flax.

Rooms are imported one by one (`from equivariant_jax import core`, `from equivariant_jax.euclidean import harmonics`);
importing the top level costs nothing beyond Python itself.
"""

__version__ = "0.1.0"
