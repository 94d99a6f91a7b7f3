"""Reads pickled `torch_geometric` objects as plain NumPy data, without torch and without running what a pickle says.

A pickle is a program; Python's own reader runs it. Here, the only names that a pickle may call are stand-ins of this
module that build containers and arrays: plain containers, NumPy arrays and scalars, torch tensors (from
`torch._utils._rebuild_tensor_v2` and the bytes of their storages), and records of fields in place of `torch_geometric`
objects of both layouts, the flat one of version 1 and the one of version 2 with its `_store`. Any other name is a
`ValueError` that tells it. Sizes are checked against the bytes that are there before anything is allocated.

Reference: torch's legacy serialisation (`torch.save(..., _use_new_zipfile_serialization=False)`), which pickled
storages carry: five pickles (magic number, version, system, object, keys), then for each key a count and raw numbers.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import numpy as np

__all__ = ["load_pickle"]

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_MAGIC = 0x1950A86A20F9469CFC6C
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


def load_pickle(content: bytes) -> Any:
    """Rebuilds plain data from a pickle.

    Args:
      content: the pickle, all of it.

    Returns:
      Containers, numbers, strings and arrays of any shape; a `torch_geometric` object as a dict of its fields.

    Raises:
      ValueError: if the bytes are damaged or name anything that is not data.

    Example:
      >>> load_pickle(pickle.dumps({"y": -1.5, "natoms": 3}))
      {'y': -1.5, 'natoms': 3}
      >>> load_pickle(pickle.dumps(print))
      Traceback (most recent call last):
        ...
      ValueError: the pickle names builtins.print, which is not data; nothing was run
    """
    stream = io.BytesIO(content)
    value = _plain(_load(stream, content))
    if stream.tell() != len(content):
        raise ValueError(f"{len(content) - stream.tell()} bytes follow the end of the pickle")
    return value


def _load(stream: io.BytesIO, content: bytes, storages: dict[str, Any] | None = None) -> Any:
    # One pickle from where the stream stands.
    start = stream.tell()
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in _PUTS and int(argument or 0) > len(content):
                raise ValueError(f"a memo index of {argument} in {len(content)} bytes")
        stream.seek(start)
        return _Reader(stream, storages).load()
    except _NotData as error:
        raise ValueError(str(error)) from None
    # A damaged program fails in any way at all, also in the stand-ins.
    except Exception as error:
        raise ValueError(f"not a sound pickle ({type(error).__name__}: {error})") from error


class _NotData(Exception):
    """A name that is not data."""


class _Callable:
    """A function that a pickle may call, and on which it can leave nothing."""

    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setattr__(self, name, value):
        raise ValueError("the pickle changes a function")

    def __setstate__(self, state):
        raise ValueError("the pickle changes a function")


class _Record:
    """Stand-in of an object of which only the fields count."""

    def __init__(self, *arguments):
        self.fields: Any = {}

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) == 2:  # (__dict__, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict):
            raise ValueError(f"the state of an object is a {type(state).__name__}, expected a dict")
        self.__dict__["fields"] = state

    def __getattr__(self, name):
        # NEWOBJ makes an object without __init__; one that no state follows has no fields.
        if name == "fields":
            return {}
        raise AttributeError(name)


class _Dtype:
    """Stand-in of `numpy.dtype`: a letter, a size, and a byte order that comes later."""

    def __init__(self, name="", align=False, copy=False):
        self.name, self.order = str(name), "<"

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"the state {state!r} of a dtype")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype, of numbers, booleans or strings."""
        if len(self.name) > 8 or self.name[:1] not in tuple("biufcSU"):
            raise ValueError(f"arrays of dtype {self.name!r} are not read")
        return np.dtype(self.order + self.name)


def _array(content, kind: np.dtype, shape, order: str) -> np.ndarray:
    # An array `shape` from raw bytes, in the byte order of this machine.
    if isinstance(content, str):
        content = content.encode("latin1")
    sound = isinstance(content, (bytes, bytearray)) and min(shape, default=0) >= 0 and order in ("C", "F")
    if not sound or math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"an array of shape {shape}, dtype {kind} and order {order} does not fit its bytes")
    return np.frombuffer(content, kind).astype(kind.newbyteorder("=")).reshape(shape, order=order)  # type: ignore


class _Array:
    """Stand-in of `numpy.ndarray`."""

    def __init__(self, *arguments):
        self.array: Any = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype.dtype(), shape, "F" if fortran else "C")


def _frombuffer(content, dtype, shape, order, *_):
    # How protocol 5 makes an array.
    made = _Array()
    made.array = _array(content, dtype.dtype(), shape, order)
    return made


def _scalar(dtype, content=b""):
    if isinstance(content, str):
        content = content.encode("latin1")
    return np.frombuffer(content, dtype.dtype(), count=1)[0].item()


def _encode(text, encoding="latin1"):
    # How protocols below 3 spell bytes.
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _storage(content):
    """Reads the numbers of a storage from torch's legacy bytes, float or integer `[count]`."""
    if not isinstance(content, bytes):
        raise ValueError(f"a storage is a {type(content).__name__}, expected bytes")
    stream, found = io.BytesIO(content), {}
    magic, version, _ = (_load(stream, content) for _ in range(3))
    if magic != _MAGIC or version != 1001:
        raise ValueError("a storage does not start with torch's magic number and version 1001")
    reference = _load(stream, content, found)
    for key in _load(stream, content):
        dtype, expected = found[key]
        count = int.from_bytes(stream.read(8), "little", signed=True)
        raw = stream.read(count * dtype.itemsize) if count >= 0 else b""
        if count != expected or len(raw) != count * dtype.itemsize:
            raise ValueError(f"a storage of {expected} numbers announces {count} and holds {len(raw)} bytes")
        found[key] = np.frombuffer(raw, dtype)
    if not isinstance(reference, _Reference) or not isinstance(found.get(reference.key), np.ndarray):
        raise ValueError("the bytes of a storage hold something else")
    return found[reference.key]


class _Reference:
    """Where a pickled storage finds its numbers."""

    __slots__ = ("key",)

    def __init__(self, key):
        self.key = key


def _tensor(storage, offset, size, stride, *_):
    """Cuts a tensor of shape `size` out of a storage."""
    size, stride = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"a tensor of size {size}, strides {stride} and offset {offset}")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count and (last >= storage.size or count > storage.size):
        raise ValueError(f"a tensor of size {size} and strides {stride} in a storage of {storage.size} numbers")
    if not count:
        return np.zeros(size, storage.dtype)
    steps = [s * storage.itemsize for s in stride]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
    return view.astype(storage.dtype.newbyteorder("="))


def _parameter(tensor, *_):
    return tensor


def _reconstructor(kind, base, state):
    # How protocols 0 and 1 make an object of a class.
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise ValueError(f"an object of {kind!r}")
    return kind()


_FUNCTIONS = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": tuple,
    "collections.OrderedDict": OrderedDict,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "_codecs.encode": _encode,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "__builtin__.set": set,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
_RECORDS = {
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.storage.GlobalStorage",
}
# Passed as arguments to the functions above, and never called with effect.
_MARKERS = {"numpy.ndarray", "builtins.object", "__builtin__.object"}


class _Reader(pickle.Unpickler):
    """An unpickler to which only the stand-ins of this module exist."""

    def __init__(self, stream: io.BytesIO, storages: dict[str, Any] | None):
        super().__init__(stream, encoding="latin1")
        self._storages = storages

    def find_class(self, module_name, global_name):
        """Returns the stand-in of a name, made anew so that a pickle cannot change it for the next one."""
        name = f"{module_name}.{global_name}"
        if name in _FUNCTIONS:
            return _Callable(_FUNCTIONS[name])
        if name in _RECORDS or name in _MARKERS:
            return type(global_name, (_Record,), {})
        if module_name == "torch" and global_name in _STORAGES:
            return _Callable(_STORAGES[global_name].__str__)
        raise _NotData(f"the pickle names {name}, which is not data; nothing was run")

    def persistent_load(self, pid):
        """Notes the storage that a legacy torch pickle refers to."""
        if self._storages is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError("a reference to something outside of the pickle")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _Callable) or not isinstance(key, str) or (len(pid) > 5 and pid[5] is not None):
            raise ValueError("a storage of an unknown kind, or one that is a view of another")
        self._storages[key] = (np.dtype(kind()), int(count))
        return _Reference(key)


def _plain(value: Any) -> Any:
    # Stand-ins at the top and among the fields become what they stand for; objects inside of objects are left out.
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, _Record):
        fields = value.fields
        # Version 2 keeps the fields two objects further down; version 1 has them on top.
        for inner in (fields.get("_store"), fields):
            inner = inner.fields if isinstance(inner, _Record) else inner
            if isinstance(inner, dict) and isinstance(inner.get("_mapping"), dict):
                fields = inner["_mapping"]
                break
        value = {name: field for name, field in fields.items() if not isinstance(field, (_Record, type))}
    if type(value) is dict:
        return {name: field.array if isinstance(field, _Array) else field for name, field in value.items()}
    return value
