"""Symmetry-blind building blocks: what networks of every room are made of, with no group in sight.

- `convolution`, `depthwise`: convolutions of images, circular or padded with zeros; `normalisation`: batch
  normalisation; `pooling`: maxima with safe gradients.
- `mlp`: multi-layer perceptrons (`mlp_init`, `mlp_apply`, the Linen module `MLP`) with variance-keeping SiLU; `sine`:
  networks of sine layers, smooth functions of a few coordinates.

    >>> import jax, jax.numpy as jnp
    >>> from equivariant_jax import nn
    >>> nn.mlp_apply(nn.mlp_init(jax.random.key(0), (3, 16, 2)), jnp.ones((4, 3))).shape
    (4, 2)
"""

from equivariant_jax.nn.convolution import convolution, convolution_init
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.depthwise import depthwise_convolution
from equivariant_jax.nn.mlp import MLP, mlp_apply, mlp_init, unit_silu
from equivariant_jax.nn.normalisation import batch_norm, batch_norm_init
from equivariant_jax.nn.pooling import global_max, max_pool, mean_pool
from equivariant_jax.nn.sine import sine_network_apply, sine_network_init

__all__ = [
    "MLP",
    "batch_norm",
    "batch_norm_init",
    "convolution",
    "convolution_init",
    "dense_apply",
    "dense_init",
    "depthwise_convolution",
    "global_max",
    "max_pool",
    "mean_pool",
    "mlp_apply",
    "mlp_init",
    "sine_network_apply",
    "sine_network_init",
    "unit_silu",
]
