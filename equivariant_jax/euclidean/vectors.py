r"""Features that are vectors: channels `[..., agents, channels, n]` on which rotations act on the last axis alone.

What commutes with all of O(n): mixing channels, adding a vector that all agents share, multiplying by invariants, and
cutting a vector at the half space of another. What does not change: lengths, angles, distances.

References: Xu et al. 2023, arXiv:2303.10876 (EqMotion); Deng et al. 2021, arXiv:2104.12229 (the vector non-linearity).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array

__all__ = ["dct_matrix", "masked_mean_vector", "mix_channels", "pair_distances", "turning_angles", "vector_relu"]


def dct_matrix(length: int, *, dtype=jnp.float32) -> Array:
    """The orthonormal discrete cosine transform of type II.

    Args:
      length: static; number of times, at least one.
      dtype: of the result.

    Returns:
      Orthogonal matrix P, shape `[length, length]`: `P x` are coefficients, `P^T` takes them back.

    Raises:
      ValueError: if there is no time.

    Example:
      >>> p = dct_matrix(4)
      >>> bool(jnp.allclose(p @ p.T, jnp.eye(4), atol=1e-6))
      True
    """
    if length < 1:
        raise ValueError(f"dct_matrix got length {length}; expected at least 1.")
    k, t = np.arange(length)[:, None], np.arange(length)[None, :]
    matrix = np.sqrt(np.where(k == 0, 1.0, 2.0) / length) * np.cos(np.pi * (t + 0.5) * k / length)
    return jnp.asarray(matrix, dtype)


def mix_channels(kernel: Array, vectors: Array, *, precision=lax.Precision.HIGHEST) -> Array:
    """Mixes channels of vectors, without a bias.

    Args:
      kernel: shape `[channels_in, channels_out]`, dtype of `vectors`.
      vectors: shape `[..., channels_in, n]`.
      precision: static; of the product.

    Returns:
      Vectors, shape `[..., channels_out, n]`.

    Example:
      >>> mix_channels(jnp.ones((3, 2)), jnp.ones((5, 3, 2))).shape
      (5, 2, 2)
    """
    return jnp.einsum("...cn,cd->...dn", vectors, kernel, precision=precision)


def masked_mean_vector(vectors: Array, mask: Array) -> Array:
    """Mean over agents and channels.

    Args:
      vectors: shape `[..., agents, channels, n]`.
      mask: which agents are there, bool, shape `[..., agents]`.

    Returns:
      Vector, shape `[..., 1, 1, n]`; zero without agents.

    Example:
      >>> masked_mean_vector(jnp.ones((3, 2, 2)), jnp.array([True, False, False])).tolist()
      [[[1.0, 1.0]]]
    """
    there = mask[..., None, None]
    number = jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(vectors.dtype) * vectors.shape[-2]
    total = jnp.sum(jnp.where(there, vectors, jnp.zeros_like(vectors)), axis=(-3, -2), keepdims=True)
    return total / number[..., None, None, None]


def pair_distances(vectors: Array) -> Array:
    """Distances of every two agents in each channel.

    Args:
      vectors: shape `[..., agents, channels, n]`.

    Returns:
      Lengths `|v_i - v_j|`, shape `[..., agents, agents, channels]`; their gradient at zero is zero.

    Example:
      >>> pair_distances(jnp.array([[[0.0, 0.0]], [[3.0, 4.0]]]))[..., 0].tolist()
      [[0.0, 5.0], [5.0, 0.0]]
    """
    return safe_norm(vectors[..., :, None, :, :] - vectors[..., None, :, :, :])


def turning_angles(velocities: Array) -> Array:
    """Angles between each velocity and the one before.

    `2 atan2(||b| a - |a| b|, ||b| a + |a| b|)`, exact for small angles too, where the arc cosine has no derivative.

    Args:
      velocities: shape `[..., times, n]`.

    Returns:
      Angles in [0, pi], shape `[..., times]`; the first is zero, and so is one with a velocity of zero. (The official
      code gives pi / 2 there, the arc cosine of zero.)

    Example:
      >>> jnp.rad2deg(turning_angles(jnp.array([[1.0, 0.0], [0.0, 2.0]]))).round().tolist()
      [0.0, 90.0]
    """
    before = jnp.concatenate([velocities[..., :1, :], velocities[..., :-1, :]], axis=-2)
    length, length_before = safe_norm(velocities, keepdims=True), safe_norm(before, keepdims=True)
    a, b = length_before * velocities, length * before
    apart, along = safe_norm(a - b), safe_norm(a + b)
    moving = (length * length_before)[..., 0] > 0
    along = jnp.where(moving, along, jnp.ones_like(along))
    return 2 * jnp.arctan2(jnp.where(moving, apart, jnp.zeros_like(apart)), along)


def vector_relu(query: Array, key: Array, *, epsilon: float = 1e-4) -> Array:
    """Cuts vectors at the half spaces of others: a rectifier that commutes with rotations.

    Args:
      query: vectors q, shape `[..., n]`.
      key: vectors k, the same shape; normals of the half spaces.
      epsilon: static; added to `|k|^2`.

    Returns:
      q where `<q, k> >= 0`, and else `q - <q, k> k / (|k|^2 + epsilon)`, shape `[..., n]`.

    Example:
      >>> vector_relu(jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0]), epsilon=0.0).tolist()
      [1.0, 0.0]
    """
    product = jnp.sum(query * key, axis=-1, keepdims=True)
    square = jnp.sum(jnp.square(key), axis=-1, keepdims=True) + np.asarray(epsilon, key.dtype)
    return query - jnp.minimum(product, jnp.zeros_like(product)) / square * key
