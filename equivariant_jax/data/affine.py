r"""Digits under affine maps and homographies, made on the device from keys; readers of affNIST and homNIST.

Specification of `affine_mnist`. Each image f becomes `f(A^-1 (p - y))` on a larger canvas, sampled bilinearly, with

    A = R(angle) [[1, shear], [0, 1]] diag(scale_x, scale_y)

angle, shear and both scales uniform in their ranges, and y uniform: within +-`shift` pixels, or (None) wherever all ink
stays on the canvas. The defaults are affNIST's ranges as they are remembered: what is made here is affine MNIST, not
affNIST, and accuracies on the two compare only roughly.

`homography_mnist` moves each image by a homography near the identity, `exp` of a random traceless 3 x 3 matrix in
coordinates in which the canvas is [-1, 1]^2.

affNIST's files (T. Tieleman, https://www.cs.toronto.edu/~tijmen/affNIST): MATLAB structs `affNISTdata` with `image`
`[1600, n]` uint8 and `label_int` `[n]`; `just_centered` holds upright digits for training, `transformed` the test.
homNIST's file `homNIST_test.mat`: `img_data`, `labels`, `hom_matrices` (3 x 3 each).

References: Mironenco & Forre 2024, arXiv:2310.11366, section 5; MacDonald et al. 2022, arXiv:2111.08251 (homNIST).
"""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.images import warp_image
from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.sources import ArraySource, find_data_file

__all__ = ["AffineRanges", "WarpedImages", "affine_mnist", "affnist", "homnist", "homography_mnist", "read_mat_images"]


@dataclasses.dataclass(frozen=True)
class AffineRanges:
    """What affine maps are drawn from.

    Attributes:
      degrees: largest angle, either way.
      shear: largest shear, either way.
      scale: smallest and largest scale of each axis.
      shift: largest shift of each axis in pixels, either way; None: wherever no ink leaves the canvas.
    """

    degrees: float = 20.0
    shear: float = 0.2
    scale: tuple[float, float] = (0.8, 1.2)
    shift: float | None = None

    def __post_init__(self):
        if self.degrees < 0 or self.shear < 0 or not 0 < self.scale[0] <= self.scale[1] or (self.shift or 0) < 0:
            raise ValueError(f"{self}: expected sizes of zero or more, and scales 0 < smallest <= largest.")


class WarpedImages(NamedTuple):
    """Transformed images and their transformations.

    Attributes:
      images: shape `[n, size, size, 1]`, float.
      matrices: of the transformations in pixels from the centre, `(right, up, 1)`, shape `[n, 3, 3]`, float32.
    """

    images: Array
    matrices: Array


def _check(images: Array) -> Array:
    images = jnp.asarray(images)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] != 1 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: got {images.dtype} {images.shape}, expected float [n, height, width] or [..., 1].")
    return images


def _affine(key: PRNGKey, number: int, ranges: AffineRanges) -> Array:
    keys = jax.random.split(key, 3)
    limit = math.radians(ranges.degrees)
    angle = jax.random.uniform(keys[0], (number,), minval=-limit, maxval=limit)
    shear = jax.random.uniform(keys[1], (number,), minval=-ranges.shear, maxval=ranges.shear)
    scale = jax.random.uniform(keys[2], (number, 2), minval=ranges.scale[0], maxval=ranges.scale[1])
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), scale[:, 0], scale[:, 1]
    rows = [[cos * x, (cos * shear - sin) * y], [sin * x, (sin * shear + cos) * y]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _room(image: Array, matrix: Array, size: int) -> tuple[Array, Array]:
    """Smallest and largest shift `(right, up)` that keep the ink on the canvas, `[2]` each."""
    height, width = image.shape[:2]
    up = np.asarray((height - 1) / 2 - np.arange(height), np.float32)[:, None] + np.zeros((1, width), np.float32)
    right = np.asarray(np.arange(width) - (width - 1) / 2, np.float32)[None] + np.zeros((height, 1), np.float32)
    moved = jnp.einsum("ij,jhw->ihw", matrix, np.stack([right, up]), precision="highest")
    ink = (image[..., 0] > 0)[None]
    far = np.asarray(4.0 * (height + width), np.float32)
    least = jnp.min(jnp.where(ink, moved, far), axis=(1, 2))
    largest = jnp.max(jnp.where(ink, moved, -far), axis=(1, 2))
    half = np.asarray((size - 1) / 2, np.float32)
    # A digit too large for the canvas, or an empty image, stays where it is.
    empty = least > largest
    least, largest = jnp.where(empty, 0.0, least), jnp.where(empty, 0.0, largest)
    return jnp.minimum(-half - least, 0.0), jnp.maximum(half - largest, 0.0)


def affine_mnist(key: PRNGKey, images: Array, ranges: AffineRanges | None = None, *, size: int = 40) -> WarpedImages:
    """Moves each image by a random affine map.

    Args:
      key: typed random key.
      images: shape `[n, height, width]` or `[n, height, width, 1]`, float, zero where there is no ink.
      ranges: static; what the maps are drawn from, affNIST's by default.
      size: static; side of the canvas in pixels.

    Returns:
      Images `[n, size, size, 1]` of the dtype of `images`, and matrices `[n, 3, 3]`.

    Raises:
      ValueError: if the images have another shape or dtype.

    Example:
      >>> affine_mnist(jax.random.key(0), jnp.ones((3, 8, 8)), size=20).images.shape
      (3, 20, 20, 1)
    """
    images, ranges = _check(images), AffineRanges() if ranges is None else ranges
    key_matrix, key_shift = jax.random.split(key)
    linear = _affine(key_matrix, images.shape[0], ranges)
    place = jax.random.uniform(key_shift, (images.shape[0], 2))
    if ranges.shift is None:
        low, high = jax.vmap(lambda image, matrix: _room(image, matrix, size))(images, linear)
        shift = low + place * (high - low)
    else:
        shift = (2 * place - 1) * np.asarray(ranges.shift, np.float32)
    bottom = jnp.broadcast_to(jnp.asarray([[[0.0, 0.0, 1.0]]]), (images.shape[0], 1, 3))
    matrices = jnp.concatenate([jnp.concatenate([linear, shift[..., None]], axis=-1), bottom], axis=-2)
    return _warped(images, matrices, size)


def _warped(images: Array, matrices: Array, size: int) -> WarpedImages:
    warp = jax.vmap(lambda image, inverse: warp_image(image, inverse, size=size))
    return WarpedImages(warp(images, jnp.linalg.inv(matrices)), matrices)


def homography_mnist(key: PRNGKey, images: Array, *, strength: float = 0.15, size: int = 40) -> WarpedImages:
    """Moves each image by a random homography.

    Args:
      key: typed random key.
      images: shape `[n, height, width]` or `[n, height, width, 1]`, float, zero where there is no ink.
      strength: static; standard deviation of the entries of the 3 x 3 logarithm in coordinates in which the canvas is
        [-1, 1]^2.
      size: static; side of the canvas in pixels.

    Returns:
      Images `[n, size, size, 1]` of the dtype of `images`, and matrices `[n, 3, 3]` of determinant one.

    Raises:
      ValueError: if the images have another shape or dtype, or `strength` is negative.

    Example:
      >>> homography_mnist(jax.random.key(0), jnp.ones((3, 8, 8)), size=20).matrices.shape
      (3, 3, 3)
    """
    images = _check(images)
    if strength < 0:
        raise ValueError(f"strength: got {strength}, expected zero or more.")
    algebra = np.asarray(strength, np.float32) * jax.random.normal(key, (images.shape[0], 3, 3))
    trace = jnp.trace(algebra, axis1=-2, axis2=-1)[:, None, None] / np.float32(3)
    algebra = algebra - trace * np.eye(3, dtype=np.float32)[None]
    units = np.asarray([2 / size, 2 / size, 1.0], np.float32)
    matrices = jax.scipy.linalg.expm(algebra) * (units[None, :] / units[:, None])[None]
    return _warped(images, matrices, size)


def read_mat_images(
    path: str | os.PathLike[str], *, images: str, labels: str, struct: str | None = None, extra: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Reads labelled images of 40 x 40 pixels from a MATLAB file (up to version 7).

    Args:
      path: of the file.
      images: field of the images: `[1600, n]`, `[n, 1600]` or `[n, 40, 40]`, uint8 or float.
      labels: field of the labels, `[n]`, whole.
      struct: the struct that holds the fields, or None for the top level.
      extra: further fields, returned as they are.

    Returns:
      Dict: `image` `[n, 40, 40, 1]` uint8, or float as found; `label` `[n]` int32; and the further fields.

    Raises:
      ValueError: if the file is malformed; the message names the field.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = Path(path)
    try:
        found: Any = loadmat(path, simplify_cells=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: not a MATLAB file of version 7 or below ({error})") from error
    if struct is not None:
        if not isinstance(found.get(struct), dict):
            raise ValueError(f"{path}: no struct {struct!r}; it has {sorted(k for k in found if k[0] != '_')}")
        found = found[struct]
    missing = [name for name in (images, labels, *extra) if name not in found]
    if missing:
        raise ValueError(f"{path}: no field {missing[0]!r}; it has {sorted(k for k in found if k[0] != '_')}")
    label = np.atleast_1d(np.asarray(found[labels]))
    array = np.asarray(found[images])
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.number) or np.any(label != np.round(label)):
        raise ValueError(f"{path}: {labels}: got {label.dtype} {label.shape}, expected whole numbers [n]")
    n = len(label)
    if array.ndim == 1 and n == 1:  # a file of one image
        array = array[None]
    if array.shape == (1600, n):
        array = array.T
    if array.shape not in ((n, 1600), (n, 40, 40)) or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"{path}: {images}: got {array.dtype} {array.shape}, expected [1600, {n}], [{n}, 1600] or [{n}, 40, 40]"
        )
    if label.min(initial=0) < 0 or label.max(initial=0) > 9:
        raise ValueError(f"{path}: {labels}: got {label.min()} to {label.max()}, expected digits 0 to 9")
    out = {"image": np.ascontiguousarray(array).reshape(n, 40, 40, 1), "label": label.astype(np.int32)}
    return out | {name: np.asarray(found[name]) for name in extra}


_AFFNIST = {
    "train": "affnist/just_centered/training.mat",
    "validation": "affnist/transformed/validation.mat",
    "test": "affnist/transformed/test.mat",
}


def affnist(split: str, directory: str | os.PathLike[str] | None = None) -> ArraySource[dict[str, Any]]:
    """Reads affNIST: digits of 40 x 40 pixels, upright for training, under affine maps for the test.

    Args:
      split: "train" (`affnist/just_centered/training.mat`), "validation" or "test" (`affnist/transformed/...`).
      directory: the data directory; the environment variable EQUIVARIANT_JAX_DATA by default.

    Returns:
      A source of examples `{"image": uint8 [40, 40, 1], "label": int32 []}`; `.arrays` holds all of them at once.

    Raises:
      MissingDataError: if the file is not there; the message says what to fetch and where to put it.
      ValueError: if there is no such split, or the file is malformed.
    """
    if split not in _AFFNIST:
        raise ValueError(f"split: got {split!r}, expected one of {tuple(_AFFNIST)}")
    project = "affNIST: https://www.cs.toronto.edu/~tijmen/affNIST (the 40 x 40 variants, unpacked)"
    path = find_data_file(_AFFNIST[split], project=project, directory=directory)
    return ArraySource(read_mat_images(path, struct="affNISTdata", images="image", labels="label_int"))


def homnist(directory: str | os.PathLike[str] | None = None) -> ArraySource[dict[str, Any]]:
    """Reads homNIST's test set: digits of 40 x 40 pixels under homographies.

    Args:
      directory: the data directory, with `homnist/homNIST_test.mat`; the environment variable EQUIVARIANT_JAX_DATA by
        default.

    Returns:
      A source of examples `{"image": [40, 40, 1], "label": int32 [], "matrix": float64 [3, 3]}`; `.arrays` holds all.

    Raises:
      MissingDataError: if the file is not there; the message says what to fetch and where to put it.
      ValueError: if the file is malformed.
    """
    project = "homNIST, the test file of 'Enabling equivariance for arbitrary Lie groups' (arXiv:2111.08251)"
    path = find_data_file("homnist/homNIST_test.mat", project=project, directory=directory)
    arrays = read_mat_images(path, images="img_data", labels="labels", extra=("hom_matrices",))
    matrices = np.asarray(arrays.pop("hom_matrices"), np.float64)
    if matrices.shape != (len(arrays["label"]), 3, 3):
        raise ValueError(f"{path}: hom_matrices: got {matrices.shape}, expected [{len(arrays['label'])}, 3, 3]")
    return ArraySource({**arrays, "matrix": matrices})
