"""Which route a product takes when the method is "auto": looked up in a table of measured times.

The table is data (`gaunt_methods.json`), one entry for each degree and number of rows, with the time of every route
relative to the fastest and the device's name. `python -m experiments.tune_gaunt` measures it anew for the backend at
hand. Backends that nobody has measured take the rule of `_UNMEASURED`, which is a guess and says so.
"""

import functools
import json
import math
from importlib import resources
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

__all__ = ["BracketMethod", "ProductMethod", "choose_bracket_method", "choose_method", "read_table"]

ProductMethod = Literal["auto", "grid", "quadrant", "octant", "separable", "fourier", "sparse", "fused"]
BracketMethod = Literal["auto", "grid", "quadrant", "octant", "separable"]

# The largest degree of a Lebedev rule.
_LEBEDEV_DEGREE = 131
# Not measured: matrix products with a large inner dimension, as matrix units like them.
_UNMEASURED = "grid"


@functools.cache
def read_table() -> dict[str, Any]:
    """Reads the table that ships with the package.

    Returns:
      Backend name ("cpu", "gpu", "tpu") -> `{"device": str, "product": entries, "bracket": entries}`, where an entry is
      `{"degree": int, "rows": int, "relative": {method: time over the fastest}}`.
    """
    text = resources.files("equivariant_jax.euclidean").joinpath("gaunt_methods.json").read_text()
    return json.loads(text)


@functools.cache
def _lookup(backend: str, kind: str, degree: int, rows: int) -> str:
    if degree > _LEBEDEV_DEGREE:
        return "separable"
    entries = read_table().get(backend, {}).get(kind, [])
    if not entries:
        return _UNMEASURED
    # Nearest in degree first, then in rows, both on a logarithmic scale: the degree decides more than the batch.
    nearest = min(
        entries,
        key=lambda e: (
            abs(math.log(e["degree"] / max(degree, 1))),
            abs(math.log(e["rows"] / max(rows, 1))),
        ),
    )
    return min(nearest["relative"], key=nearest["relative"].get)


def choose_method(lmax1: int, lmax2: int, lmax_out: int, rows: int, dtype: Any) -> ProductMethod:
    """Chooses the route of a Gaunt product by the measured table.

    Args:
      lmax1: largest degree of the first operand.
      lmax2: largest degree of the second.
      lmax_out: largest degree of the result.
      rows: number of products, the product of the leading axes.
      dtype: dtype of the operands.

    Returns:
      A method other than "auto".

    Example:
      >>> choose_method(40, 40, 80, 1, jnp.float32)  # beyond Lebedev's rules
      'separable'
    """
    degree = lmax1 + lmax2 + lmax_out
    method = _lookup(jax.default_backend(), "product", degree, rows)
    if method == "fourier" and jnp.dtype(dtype).itemsize < 4:
        return "grid"
    return next(m for m in get_args(ProductMethod) if m == method)


def choose_bracket_method(lmax1: int, lmax2: int, lmax_out: int, rows: int, dtype: Any) -> BracketMethod:
    """Chooses the route of a Poisson bracket by the measured table.

    Args:
      lmax1: largest degree of the first operand.
      lmax2: largest degree of the second.
      lmax_out: largest degree of the result.
      rows: number of brackets.
      dtype: dtype of the operands, which has no influence.

    Returns:
      A method other than "auto".

    Example:
      >>> choose_bracket_method(40, 40, 79, 1, jnp.float32)
      'separable'
    """
    del dtype
    method = _lookup(jax.default_backend(), "bracket", lmax1 + lmax2 + lmax_out, rows)
    return next(m for m in get_args(BracketMethod) if m == method)
