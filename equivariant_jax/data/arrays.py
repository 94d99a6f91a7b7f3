"""Reader of NumPy's npz archives that trusts nothing: no pickles, no sizes larger than the file can hold.

A header that announces 10^12 numbers, a truncated member, a flipped bit or an object array is a `ValueError` that names
the file and the array, before anything large is allocated.

Reference: the npy format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["DEFLATE_LIMIT", "read_npz"]

DEFLATE_LIMIT = 1032
"""How many times deflate can expand its input at most (zlib's technical notes); a header that needs more lies."""

# What zipfile raises on damaged archives: its own error, zlib's, and those of seeks and fields that make no sense.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error, Warning)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SIZE = rb"(?:0|[1-9]\d{0,18})"
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufcSU]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:%s,(?: ?%s(?:, ?%s)*,?)?)?)\),? ?\} *\n?" % (_SIZE, _SIZE, _SIZE)
)


def read_npz(path: str | os.PathLike[str], *, require: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads every array of an npz archive.

    Args:
      path: the file, as `np.savez` or `np.savez_compressed` write it.
      require: names of arrays that must be there.

    Returns:
      Arrays by name, any shape, of booleans, numbers or strings, in the order of the archive.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the archive is malformed, holds Python objects or lacks an array; the message names file and array.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(Path(folder, "set.npz"), x=np.arange(3))
      ...     read_npz(Path(folder, "set.npz"), require=["x"])["x"].tolist()
      [0, 1, 2]
    """
    path = Path(path)
    arrays = {}
    for name, content in _members(path).items():
        try:
            arrays[name] = _parse_npy(content)
        except ValueError as error:
            raise ValueError(f"{path}, array {name!r}: {error}") from error
    missing = [name for name in require if name not in arrays]
    if missing:
        raise ValueError(f"{path}: the arrays {missing} are missing; found {list(arrays)}")
    return arrays


def _members(path: Path) -> dict[str, bytes]:
    size = path.stat().st_size
    contents: dict[str, bytes] = {}
    try:
        # Newer Pythons only warn of overlapping members; a sound archive has none.
        with warnings.catch_warnings(action="error"), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in contents:
                    raise ValueError(f"the member {member.filename!r} is not an npy file or comes twice")
                if member.file_size > DEFLATE_LIMIT * size or member.compress_type not in _METHODS:
                    raise ValueError(
                        f"the member {member.filename!r} announces {member.file_size} bytes, packed by method "
                        f"{member.compress_type}, more than {size} bytes of stored or deflated data can hold"
                    )
                contents[name] = archive.read(member)
        announced = _announced_members(path)
        # The field saturates at 65535 members; an archive of none is no data set but a damaged directory.
        if announced != min(len(contents), 0xFFFF) or not contents:
            raise ValueError(f"{announced} members are announced, and {len(contents)} are listed")
    # What zipfile raises on damaged archives: its own error, zlib's, and those of seeks and fields that make no sense.
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        struct.error,
        Warning,
    ) as error:
        raise ValueError(f"{path}: not a sound npz archive ({error})") from error
    return contents


def _announced_members(path: Path) -> int:
    # zipfile does not look at this number, so a directory damaged in the right place would lose arrays unseen.
    with path.open("rb") as file:
        file.seek(-22, os.SEEK_END)
        end = file.read()
    if end[:4] != b"PK\5\6":
        raise ValueError("the file does not end with the end of the archive's directory")
    return int.from_bytes(end[10:12], "little")


def _parse_npy(content: bytes) -> np.ndarray:
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        raise ValueError("not an npy file: the magic bytes are missing")
    width = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(content[6:8])
    if width is None:
        raise ValueError(f"npy version {content[6]}.{content[7]} is unknown, expected 1.0 to 3.0")
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = _HEADER.fullmatch(content[8 + width : start])
    if header is None:
        raise ValueError(
            f"the npy header {content[8 + width : min(start, 160)]!r} does not describe a plain array of booleans, "
            "numbers or strings (Python objects are not read)"
        )
    try:
        dtype = np.dtype(header[1].decode("ascii"))
    except TypeError as error:
        raise ValueError(f"the npy header names an unknown dtype {header[1]!r}") from error
    shape = tuple(int(size) for size in header[3].split(b",") if size.strip())
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(f"shape {shape} and dtype {dtype} need {expected} bytes, and {len(content) - start} are there")
    flat = np.frombuffer(content, dtype, offset=start, count=math.prod(shape)).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C")
