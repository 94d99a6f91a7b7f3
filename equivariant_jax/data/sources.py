"""What a data set is to this library: something with a length and random access; and where data sets lie on disk.

Nothing here downloads. A set that is missing is a `MissingDataError` that says what to fetch, from which project and
where to put it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from equivariant_jax.core.typing import PyTree

__all__ = [
    "DATA_VARIABLE",
    "ArraySource",
    "MissingDataError",
    "RandomAccessSource",
    "data_directory",
    "find_data_file",
    "tfds_source",
]

DATA_VARIABLE = "EQUIVARIANT_JAX_DATA"
"""The environment variable that names the directory of data sets."""

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class RandomAccessSource(Protocol[T_co]):
    """A data set: `len(source)` examples, `source[i]` the same example each time, readable from several threads.

    Lists, `ArraySource`, `tensorflow_datasets` and `grain` sources all are one. An example is a pytree of NumPy arrays
    (and for graphs a `jraph.GraphsTuple`).
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> T_co:
        """Example `index`, `0 <= index < len(self)`."""
        ...


class ArraySource(Generic[T_co]):
    """Examples along the first axis of a pytree of arrays.

    Args:
      arrays: pytree whose leaves are arrays `[n, ...]` with one `n`.

    Raises:
      ValueError: if there is no leaf, or leaves differ in length.

    Example:
      >>> source = ArraySource({"x": np.arange(6.0).reshape(3, 2), "label": np.array([0, 1, 0])})
      >>> len(source), source[1]["x"].tolist()
      (3, [2.0, 3.0])
    """

    def __init__(self, arrays: PyTree):
        self.arrays = jax.tree.map(np.asarray, arrays)
        shapes = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(self.arrays)}
        if not shapes or any(not shape for shape in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise ValueError(f"arrays: got leaves of shapes {shapes}, expected arrays [n, ...] with one n")
        self._length = next(iter(shapes.values()))[0]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} examples")
        return jax.tree.map(lambda x: x[index], self.arrays)


class MissingDataError(FileNotFoundError):
    """A data set that is not on this machine.

    Attributes:
      what: the file or set that is missing.
      project: who publishes it.
      where: where it is looked for.
    """

    def __init__(self, what: str, project: str, where: str):
        super().__init__(f"{what} is not there. Fetch it from {project} and put it at {where}.")
        self.what, self.project, self.where = what, project, where

    def __reduce__(self):
        return type(self), (self.what, self.project, self.where)


def data_directory(directory: str | os.PathLike[str] | None = None) -> Path | None:
    """The directory of data sets: the argument, else the environment variable EQUIVARIANT_JAX_DATA, else None."""
    named = directory or os.environ.get(DATA_VARIABLE)
    return Path(named) if named else None


def find_data_file(
    relative: str, *, project: str, directory: str | os.PathLike[str] | None = None, alternatives: Sequence[str] = ()
) -> Path:
    """Finds a file of a data set, or says where it should be.

    Args:
      relative: path below the data directory.
      project: who publishes the file: name, address, licence.
      directory: the data directory; the environment variable EQUIVARIANT_JAX_DATA by default.
      alternatives: other paths below the data directory that would do, such as an uncompressed file.

    Returns:
      The path of the first file that exists.

    Raises:
      MissingDataError: if none exists or no directory is known.

    Example:
      >>> try:
      ...     find_data_file("set.gz", project="https://example.org", directory="/nowhere")
      ... except MissingDataError as error:
      ...     print(error)
      set.gz is not there. Fetch it from https://example.org and put it at /nowhere/set.gz.
    """
    root = data_directory(directory)
    if root is None:
        where = f"$EQUIVARIANT_JAX_DATA/{relative} (the environment variable is not set)"
        raise MissingDataError(relative, project, where)
    for candidate in (relative, *alternatives):
        if (root / candidate).is_file():
            return root / candidate
    raise MissingDataError(relative, project, str(root / relative))


def tfds_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> RandomAccessSource[Any]:
    """Opens a prepared `tensorflow_datasets` set for random access, without TensorFlow.

    The set must have been prepared with `file_format="array_record"`; nothing is downloaded or prepared here.

    Args:
      name: the set, as in `tfds.data_source`: "mnist", "mnist:3.0.1", "name/config".
      split: the split, slices such as "train[:80%]" included.
      data_dir: where prepared sets lie; the folder `tensorflow_datasets` of the data directory if that is set, else the
        default of `tensorflow_datasets`.

    Returns:
      A source of dicts of NumPy arrays.

    Raises:
      MissingDataError: if the set is not prepared.
      ValueError: if the set is prepared in another file format, or has no such split.
    """
    from tensorflow_datasets.core import read_only_builder, registered

    root = data_directory()
    if data_dir is None and root is not None:
        data_dir = root / "tensorflow_datasets"
    where = {} if data_dir is None else {"data_dir": os.fspath(data_dir)}
    try:
        builder: Any = read_only_builder.builder_from_files(name, **where)
    except registered.DatasetNotFoundError as error:
        project = (
            "https://www.tensorflow.org/datasets (where that runs, prepare it once by "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare() and copy the folder)"
        )
        raise MissingDataError(
            f"the set {name!r} of tensorflow_datasets", project, where.get("data_dir", "~/tensorflow_datasets")
        ) from error
    try:
        return builder.as_data_source(split)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{builder.data_dir}: split {split!r} cannot be read at random: {error}") from error
