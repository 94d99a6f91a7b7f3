r"""Sequences of moving digits, made on the device from a random key: shifts on the torus, rotations about the centre.

Specification. Each sequence shows `num_digits` images, drawn uniformly with replacement, each with a velocity of its
own, drawn uniformly from a list. Frames are the sum of the digits, clipped to [0, 1].

- `flowing_mnist`: digit d of frame t is image d rolled by `start_d + t v_d` pixels on a `size x size` torus; the start
  is uniform on the torus. Images that are smaller than the torus are put into its centre.
- `rotating_mnist`: digit d of frame t is image d padded by 6 pixels, turned by `angle_d + t w_d` degrees about the
  centre (bilinear), and cropped to its former size; the angle is uniform on the circle.

Laws: a flow that acts on a whole sequence gives the sequence whose digits all are faster by it (tested).

Difference from the published generator: positions of all frames are computed at once and the random numbers are JAX's.

Reference: Keller 2025, arXiv:2507.14793, section 4 (Flowing MNIST) and its official code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.images import rotate_image, shift_image
from equivariant_jax.core.typing import Array, PRNGKey

__all__ = ["FlowingSequence", "flowing_mnist", "half_scale", "rotating_mnist"]


class FlowingSequence(NamedTuple):
    """Sequences and what they were made of.

    Attributes:
      frames: shape `[batch, length, size, size, 1]`, dtype of the images, in [0, 1].
      velocities: of each digit, shape `[batch, digits, d]`, float32, in pixels or degrees per frame.
      indices: of each digit among the images, shape `[batch, digits]`, int32.
    """

    frames: Array
    velocities: Array
    indices: Array


def half_scale(images: np.ndarray, size: int = 16) -> np.ndarray:
    """Halves images by the mean of 2 x 2 pixels and puts them into the centre of a square.

    Args:
      images: shape `[n, height, width]` or `[n, height, width, 1]`, even sides; uint8 (then divided by 255) or float.
      size: side of the result, at least half of the images'.

    Returns:
      Array of shape `[n, size, size]`, float32.

    Raises:
      ValueError: if sides are odd or do not fit.

    Example:
      >>> half_scale(np.ones((1, 4, 4), np.float32), size=4)[0].tolist()[1]
      [0.0, 1.0, 1.0, 0.0]
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.shape[1] % 2 or images.shape[2] % 2 or max(images.shape[1:]) > 2 * size:
        raise ValueError(f"images: got shape {images.shape}, expected [n, height, width], even, at most {2 * size}.")
    scaled = images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
    n, height, width = scaled.shape
    small = scaled.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    return _centred(small, size)


def _centred(images: np.ndarray, size: int) -> np.ndarray:
    top, left = (size - images.shape[1]) // 2, (size - images.shape[2]) // 2
    bottom, right = size - images.shape[1] - top, size - images.shape[2] - left
    return np.pad(images, ((0, 0), (top, bottom), (left, right)))


def _check(images: Array, velocities: Array, components: int, num_digits: int, length: int) -> None:
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: got {images.dtype} {images.shape}, expected float [n, size, size] in [0, 1].")
    if velocities.ndim != 2 or velocities.shape[1] != components or velocities.shape[0] < 1:
        raise ValueError(f"velocities: got shape {velocities.shape}, expected [m, {components}].")
    if num_digits < 1 or length < 1:
        raise ValueError(f"got num_digits={num_digits}, length={length}; expected positive numbers.")


def _draw(key: PRNGKey, images: Array, velocities: Array, batch: int, num_digits: int):
    key_image, key_velocity, key_start = jax.random.split(key, 3)
    indices = jax.random.randint(key_image, (batch, num_digits), 0, images.shape[0])
    chosen = jax.random.randint(key_velocity, (batch, num_digits), 0, velocities.shape[0])
    return images[indices], velocities[chosen], indices, key_start


def flowing_mnist(
    key: PRNGKey,
    images: Array,
    velocities: Array,
    *,
    batch: int,
    num_digits: int = 2,
    length: int = 20,
    size: int | None = None,
) -> FlowingSequence:
    """Makes sequences of digits that drift over the torus.

    Args:
      key: typed random key.
      images: shape `[n, side, side]`, float in [0, 1].
      velocities: what each digit's velocity is drawn from, shape `[m, 2]`, whole `(vx, vy)` in pixels per frame.
      batch: static; number of sequences.
      num_digits: static; digits in each.
      length: static; number of frames.
      size: static; side of the torus, that of the images by default.

    Returns:
      `FlowingSequence`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> sequence = flowing_mnist(jax.random.key(0), jnp.ones((3, 8, 8)), jnp.array([[1.0, 0.0]]), batch=2, length=4)
      >>> sequence.frames.shape
      (2, 4, 8, 8, 1)
    """
    images, velocities = jnp.asarray(images), jnp.asarray(velocities, jnp.float32)
    _check(images, velocities, 2, num_digits, length)
    size = images.shape[1] if size is None else size
    if size < images.shape[1]:
        raise ValueError(f"size: got {size}, expected at least the images' side {images.shape[1]}.")
    digits, moving, indices, key_start = _draw(key, images, velocities, batch, num_digits)
    before = (size - images.shape[1]) // 2
    after = size - images.shape[1] - before
    digits = jnp.pad(digits, ((0, 0), (0, 0), (before, after), (before, after)))[..., None]
    start = jax.random.randint(key_start, (batch, num_digits, 2), 0, size)
    shift = (
        start[:, :, None] + jnp.arange(length)[None, None, :, None] * jnp.round(moving).astype(jnp.int32)[:, :, None]
    )
    over_time = jax.vmap(shift_image, in_axes=(None, 0))
    frames = jax.vmap(jax.vmap(over_time))(digits, shift)
    return FlowingSequence(jnp.clip(jnp.sum(frames, axis=1), 0, 1), moving, indices)


def rotating_mnist(
    key: PRNGKey,
    images: Array,
    velocities: Array,
    *,
    batch: int,
    num_digits: int = 2,
    length: int = 20,
    padding: int = 6,
) -> FlowingSequence:
    """Makes sequences of digits that turn about the centre.

    Args:
      key: typed random key.
      images: shape `[n, side, side]`, float in [0, 1].
      velocities: what each digit's velocity is drawn from, shape `[m, 1]`, degrees per frame, counter-clockwise.
      batch: static; number of sequences.
      num_digits: static; digits in each.
      length: static; number of frames.
      padding: static; pixels around the images while they turn, cropped afterwards.

    Returns:
      `FlowingSequence`.

    Raises:
      ValueError: if shapes do not fit.
    """
    images, velocities = jnp.asarray(images), jnp.asarray(velocities, jnp.float32)
    _check(images, velocities, 1, num_digits, length)
    side = images.shape[1]
    digits, moving, indices, key_start = _draw(key, images, velocities, batch, num_digits)
    digits = jnp.pad(digits, ((0, 0), (0, 0), (padding, padding), (padding, padding)))[..., None]
    start = jax.random.uniform(key_start, (batch, num_digits, 1), maxval=360.0)
    angles = start + jnp.arange(length, dtype=jnp.float32)[None, None, :] * moving
    over_time = jax.vmap(rotate_image, in_axes=(None, 0))
    frames = jax.vmap(jax.vmap(over_time))(digits, angles)
    frames = frames[..., padding : padding + side, padding : padding + side, :]
    return FlowingSequence(jnp.clip(jnp.sum(frames, axis=1), 0, 1), moving, indices)
