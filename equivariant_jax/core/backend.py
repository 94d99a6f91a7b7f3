"""The backend sentinel: finds an XLA build that computes wrong numbers before it spoils a result.

Some jaxlib releases return wrong sums, silently, for patterns that this library is full of. `check_backend` runs each
pattern beside NumPy in about a second and names what it finds; `apply_workarounds` switches the faulty pass off where
a switch exists. The test suite and `python -m experiments` call both.

| jaxlib on CPU | fault | reported as |
|---|---|---|
| 0.10.2 | `vmap(matvec, square, then sum)` over 3 columns is wrong beyond row 32,768 | jax-ml/jax#39103 |
| 0.10.0, 0.10.1 | the same without the square | by this file's patterns |
| 0.10.2, 0.11.0 | reductions of rank 7 crash | jax-ml/jax#40412, jax-ml/jax#39257 |

All sit in the pass that hands reductions to the YNNPACK library, hence one flag for all; jax 0.12 has none of them.
"""

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["PATTERNS", "Fault", "Pattern", "apply_workarounds", "check_backend"]

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_FIRST_GOOD_JAXLIB = (0, 12)


class Pattern(NamedTuple):
    """One computation that some backend got wrong.

    Attributes:
      name: what is computed, in words.
      run: function of NumPy arrays, compiled and run on the default backend.
      reference: the same in NumPy float64.
      arguments: makes the NumPy arguments from a `numpy.random.Generator`.
      tolerance: largest relative error that rounding explains: float32 epsilon times the length of the sums.
    """

    name: str
    run: Callable[..., Any]
    reference: Callable[..., np.ndarray]
    arguments: Callable[[np.random.Generator], tuple]
    tolerance: float


class Fault(NamedTuple):
    """What `check_backend` found.

    Attributes:
      pattern: name of the pattern.
      error: largest relative error against NumPy.
      message: versions, device, and what to do.
    """

    pattern: str
    error: float
    message: str


def _normal(*shapes):
    return lambda rng: tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def _rows(rows, columns):
    return _normal((rows, columns), (columns, columns))


def _matvec(x, w):
    return x.astype(np.float64) @ w.T.astype(np.float64)


def _scatter_reference(x, ids, segments):
    out = np.zeros((segments, *x.shape[1:]))
    np.add.at(out, ids, x.astype(np.float64))
    return out


def _gather_energy(x, index):
    def body(total, i):
        return total + jnp.sum(x[i] ** 3), None

    return jax.lax.scan(body, jnp.zeros((), x.dtype), index)[0]


_HIGH_RANK = (2, 3, 4, 5, 2, 3, 4)

PATTERNS: tuple[Pattern, ...] = (
    *(
        Pattern(
            f"vmap(matvec, then sum), {columns} columns, {rows} rows",
            lambda x, w: jax.vmap(lambda v: jnp.sum(w @ v))(x),
            lambda x, w: _matvec(x, w).sum(1),
            _rows(rows, columns),
            1e-5,
        )
        for columns in (2, 3, 4)
        for rows in (1_000, 33_000, 70_000)
    ),
    *(
        Pattern(
            f"vmap(matvec, square, then sum), 3 columns, {rows} rows",
            lambda x, w: jax.vmap(lambda v: jnp.sum((w @ v) ** 2))(x),
            lambda x, w: (_matvec(x, w) ** 2).sum(1),
            _rows(rows, 3),
            1e-5,
        )
        for rows in (33_000, 70_000)
    ),
    *(
        Pattern(
            f"sum of a product of rank 7 over axes {axes}",
            lambda a, b, axes=axes: jnp.sum(a * b, axes),
            lambda a, b, axes=axes: (a.astype(np.float64) * b).sum(axes),
            _normal(_HIGH_RANK, _HIGH_RANK),
            1e-5,
        )
        for axes in ((3,), (0, 2, 4), (1, 3, 5, 6), tuple(range(7)))
    ),
    Pattern(
        "sum of a product of rank 7 with a degenerate axis",
        lambda a, b: jnp.sum(a * b, 3),
        lambda a, b: (a.astype(np.float64) * b).sum(3),
        _normal((3, 1, 2, 2, 8, 8, 8), (3, 1, 2, 2, 8, 8, 8)),
        1e-5,
    ),
    *(
        Pattern(
            f"sorted scatter-add into {segments} segments",
            lambda x, i, segments=segments: jax.ops.segment_sum(x, i, segments, indices_are_sorted=True),
            lambda x, i, segments=segments: _scatter_reference(x, i, segments),
            lambda rng, segments=segments: (*_normal((50_000, 3))(rng), np.sort(rng.integers(0, segments, 50_000))),
            1e-3,
        )
        for segments in (1, 3, 1_000)
    ),
    Pattern(
        "batch of 3 x 3 products",
        lambda a, b: jnp.einsum("nij,njk->nik", a, b, precision="highest"),
        lambda a, b: np.einsum("nij,njk->nik", a.astype(np.float64), b),
        _normal((40_000, 3, 3), (40_000, 3, 3)),
        1e-5,
    ),
    Pattern(
        "gradient of a gather inside a scan",
        jax.grad(_gather_energy),
        lambda x, index: 3 * np.bincount(index.ravel(), minlength=len(x))[:, None] * x.astype(np.float64) ** 2,
        lambda rng: (*_normal((100, 3))(rng), rng.integers(0, 100, (7, 500))),
        1e-5,
    ),
    Pattern("sort of 70,001 numbers", jnp.sort, np.sort, _normal((70_001,)), 0.0),
    Pattern(
        "cumulative sum of 70,001 numbers",
        jnp.cumsum,
        lambda x: np.cumsum(x, dtype=np.float64),
        _normal((70_001,)),
        1e-3,
    ),
)


def _jaxlib_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])


def apply_workarounds() -> str | None:
    """Adds the XLA flag that switches the faulty CPU reductions off, on the jaxlib versions that have them.

    Call it before the first computation: XLA reads its flags once. A value of the flag that the user has set stays.

    Returns:
      The flag that was added to the environment variable `XLA_FLAGS`, or None if none was needed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _jaxlib_version() >= _FIRST_GOOD_JAXLIB or _FLAG in flags:
        return None
    added = f"{_FLAG}=-reduce"
    os.environ["XLA_FLAGS"] = f"{flags} {added}".strip()
    return added


def check_backend(patterns: tuple[Pattern, ...] = PATTERNS) -> tuple[Fault, ...]:
    """Runs every pattern on the default device and compares with NumPy.

    Args:
      patterns: what to run; default all.

    Returns:
      The faults found, empty on a sound backend. Each message names versions, device and remedy.

    Example:
      >>> check_backend(PATTERNS[:1])
      ()
    """
    faults = []
    for pattern in patterns:
        arguments = pattern.arguments(np.random.default_rng(0))
        want = pattern.reference(*arguments)
        got = np.asarray(jax.jit(pattern.run)(*arguments), np.float64)
        scale = np.abs(want).max()
        # Not `error > tolerance`: a NaN must count as a fault.
        error = float(np.abs(got - want).max() / scale)
        if not error <= pattern.tolerance:
            message = (
                f"jaxlib {importlib.metadata.version('jaxlib')} on {jax.devices()[0].device_kind} computes "
                f"'{pattern.name}' with a relative error of {error:.1e} (rounding explains {pattern.tolerance:.0e}). "
                "Do not trust results of this backend: call equivariant_jax.core.backend.apply_workarounds() before "
                f"the first computation (or set XLA_FLAGS={_FLAG}=-reduce), or install jax "
                f"{'.'.join(map(str, _FIRST_GOOD_JAXLIB))} or later."
            )
            faults.append(Fault(pattern.name, error, message))
    return tuple(faults)
