"""Compiled models as files that run without the code that made them (`jax.export`, StableHLO)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from equivariant_jax.core.typing import PyTree

__all__ = ["export_function", "load_exported", "save_exported"]


def export_function(
    function: Callable[..., PyTree],
    *args: PyTree,
    dimensions: PyTree = "batch, ...",
    constraints: Sequence[str] = (),
    platforms: Sequence[str] = ("cpu",),
) -> jax.export.Exported:
    """Lowers a function for any size of the named dimensions, and for platforms that need not be present.

    Close over the parameters to make the file self-contained: `export_function(lambda x: apply(params, x), x)`.

    Args:
      function: pure function of arrays.
      *args: example arguments (arrays or `ShapeDtypeStruct`s); leaves of rank 0 keep their shape.
      dimensions: shape of the arguments in the notation of `jax.export.symbolic_args_specs`: one string for all leaves,
        or a pytree prefix of `args` with a string per leaf, such as `("n_node, 3", "n_edge")`.
      constraints: known facts about the dimensions, such as `"batch >= 1"` or `"mod(batch, 8) == 0"`.
      platforms: any of `cpu`, `cuda`, `rocm`, `tpu`.

    Returns:
      A `jax.export.Exported`; `.call(*args)` runs it, `save_exported` writes it.

    Raises:
      ValueError: if the function needs to know a named dimension (from jax, naming the operation).

    Example:
      >>> import jax.numpy as jnp
      >>> exported = export_function(lambda x: (x**2).sum(-1), jnp.ones((4, 3)))
      >>> exported.call(jnp.ones((7, 3))).shape
      (7,)
    """
    if isinstance(dimensions, str):
        spec = dimensions
        dimensions = jax.tree.map(lambda leaf: spec if jax.numpy.ndim(leaf) else "", args)
    specs = jax.export.symbolic_args_specs(args, dimensions, constraints=list(constraints))
    return jax.export.export(jax.jit(function), platforms=tuple(platforms))(*specs)


def save_exported(path: str | os.PathLike, exported: jax.export.Exported) -> None:
    """Writes an exported function, whole or not at all; shapes, dtypes and platforms travel with it.

    Args:
      path: file to write.
      exported: from `export_function`.

    Raises:
      ImportError: if `flatbuffers`, which jax serialises with, is not installed.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(bytes(exported.serialize()))
    os.replace(partial, path)


def load_exported(path: str | os.PathLike) -> Callable[..., Any]:
    """Loads an exported function; its arguments have the shapes and dtypes that it was exported for.

    Args:
      path: file written by `save_exported`.

    Returns:
      The function.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file was not written by `save_exported`.
    """
    content = Path(path).read_bytes()
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:  # the FlatBuffers reader raises whatever a wrong offset leads to
        raise ValueError(f"{path} is not an exported function, or is damaged: {error}") from error
    return exported.call
