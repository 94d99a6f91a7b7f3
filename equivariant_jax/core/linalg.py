r"""Norms and decompositions whose gradients stay finite where the textbook formulas divide by zero.

`jnp.linalg.norm` has a NaN gradient at zero, `eigh` and `svd` at equal eigenvalues. The functions here return the same
values and replace $1/x$ in the derivative by $x/(x^2+\epsilon^2)$, with $\epsilon$ relative to the largest value, so
that well separated spectra are untouched to rounding and degenerate directions contribute nothing.

Laws: `safe_eigh(R A R^T)` has the same eigenvalues; `polar(R A S)` equals `R polar(A) S` for orthogonal `R`, `S`.

References: Giles 2008, "An extended collection of matrix derivative results"; Liao, Liu, Wang, Xiang 2019,
arXiv:1903.09650 (Lorentzian broadening).
"""

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array

__all__ = ["polar", "safe_eigh", "safe_norm", "safe_normalize", "safe_sqrt", "safe_svd"]


def _precise(function: Callable) -> Callable:
    """Multiplies matrices in full precision where the device's default is less (bfloat16 on TPU)."""

    @wraps(function)
    def run(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return run


def safe_sqrt(x: Array) -> Array:
    """Square root with value and gradient zero for `x <= 0`.

    Args:
      x: array of any shape, float.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> import jax
      >>> float(jax.grad(safe_sqrt)(0.0))
      0.0
    """
    x = jnp.asarray(x)
    positive = x > 0
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, one)), zero)


def safe_norm(x: Array, axis: int | tuple[int, ...] | None = -1, keepdims: bool = False) -> Array:
    """Euclidean norm whose gradient at the zero vector is zero.

    Args:
      x: array of any shape, float.
      axis: static; axis or axes to reduce, None for all.
      keepdims: static; keep reduced axes with length one.

    Returns:
      Norms, dtype of `x`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jax.grad(lambda v: safe_norm(v))(jnp.zeros(3)).tolist()
      [0.0, 0.0, 0.0]
    """
    return safe_sqrt(jnp.sum(jnp.square(jnp.asarray(x)), axis=axis, keepdims=keepdims))


def safe_normalize(x: Array, axis: int = -1) -> Array:
    """Divides by the Euclidean norm; the zero vector stays zero, with zero gradient.

    Args:
      x: vectors along `axis`, float.
      axis: static; the axis of components.

    Returns:
      Unit (or zero) vectors, shape and dtype of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> safe_normalize(jnp.array([3.0, 4.0])).round(3).tolist()
      [0.6000000238418579, 0.800000011920929]
    """
    x = jnp.asarray(x)
    norm = safe_norm(x, axis=axis, keepdims=True)
    positive = norm > 0
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
    return jnp.where(positive, x / jnp.where(positive, norm, one), zero)


def _check_matrix(name: str, a: Array, *, square: bool) -> Array:
    a = jnp.asarray(a)
    if a.ndim < 2 or (square and a.shape[-1] != a.shape[-2]):
        wanted = "`[..., n, n]`" if square else "`[..., m, n]`"
        raise ValueError(f"{name} got an array of shape {a.shape}; expected matrices {wanted}.")
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"{name} got dtype {a.dtype}; expected real floating point.")
    return a


def _safe_reciprocal(x: Array, scale: Array) -> Array:
    """`x / (x^2 + eps^2)` with eps a few units of rounding of `scale`; zero at zero."""
    eps = 32 * jnp.finfo(x.dtype).eps * scale
    square = x * x + eps * eps
    positive = square > 0
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
    return jnp.where(positive, x / jnp.where(positive, square, one), zero)


def _off_diagonal(x: Array, scale: Array) -> Array:
    """`_safe_reciprocal` off the diagonal, exact zeros on it.

    The diagonal must be cut before the division: in reverse mode its derivative 1/eps^2 would meet its own negative and
    cancel every digit of the second derivative.
    """
    eye = jnp.eye(x.shape[-1], dtype=bool)
    eye = jnp.broadcast_to(eye, x.shape)
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
    return jnp.where(eye, zero, _safe_reciprocal(jnp.where(eye, one, x), scale))


def _transpose(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


def safe_eigh(a: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of symmetric matrices, with finite gradients at repeated eigenvalues.

    Matrices of up to three rows, of which there are many in geometry, are solved by Jacobi rotations of all of them at
    once: three times as fast as LAPACK one by one on a CPU, with a third of its error, and no solver on an accelerator.

    Args:
      a: matrices `[..., n, n]`, float; only the symmetric part is used.

    Returns:
      Eigenvalues `[..., n]` in ascending order and eigenvectors `[..., n, n]` as columns, dtype of `a`.

    Raises:
      ValueError: if the last two axes differ or the dtype is not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> g = jax.grad(lambda a: safe_eigh(a)[1].sum())(jnp.eye(3))
      >>> bool(jnp.all(jnp.isfinite(g)))
      True
    """
    return _eigh(_check_matrix("safe_eigh", a, square=True))


# Sweeps of Jacobi rotations by number of rows. They converge quadratically: of 120,000 matrices of six kinds, 3 x 3 in
# float64, none needs more than four; two rows need one rotation.
_SWEEPS = {1: 0, 2: 1, 3: 5}


@jax.custom_jvp
def _eigh(a):
    symmetric = 0.5 * (a + _transpose(a))
    if a.shape[-1] in _SWEEPS and a.dtype in (jnp.float32, jnp.float64):
        return _jacobi(symmetric)
    w, v = jnp.linalg.eigh(symmetric, symmetrize_input=False)
    return w, v


def _jacobi(a):
    """Eigenvalues and eigenvectors by a fixed number of cyclic sweeps, entry by entry over all matrices."""
    n = a.shape[-1]
    # Squares of entries must neither overflow nor vanish.
    largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    a = a / scale
    # Made of the matrices, so that the loop's state varies over the same devices before and after a sweep.
    zero = a[..., 0, 0] - a[..., 0, 0]
    one = zero + 1
    entries = {(i, j): a[..., i, j] for i in range(n) for j in range(i, n)}
    vectors = {(i, j): one if i == j else zero for i in range(n) for j in range(n)}

    def rotate(entries, vectors, p, q):
        """Makes entry (p, q) zero by the smaller of the two rotations that do."""
        off, difference = entries[p, q], entries[q, q] - entries[p, p]
        below = jnp.abs(difference) + jnp.sqrt(difference * difference + 4 * off * off)
        tangent = 2 * jnp.where(difference < 0, -off, off) / jnp.where(below > 0, below, one)
        cosine = 1 / jnp.sqrt(1 + tangent * tangent)
        sine = tangent * cosine
        entries, vectors = dict(entries), dict(vectors)
        entries[p, p], entries[q, q] = entries[p, p] - tangent * off, entries[q, q] + tangent * off
        entries[p, q] = zero
        for r in range(n):
            if r not in (p, q):
                at_p, at_q = tuple(sorted((p, r))), tuple(sorted((q, r)))
                x, y = entries[at_p], entries[at_q]
                entries[at_p], entries[at_q] = cosine * x - sine * y, sine * x + cosine * y
            x, y = vectors[r, p], vectors[r, q]
            vectors[r, p], vectors[r, q] = cosine * x - sine * y, sine * x + cosine * y
        return entries, vectors

    def sweep(_, state):
        entries, vectors = state
        for p in range(n):
            for q in range(p + 1, n):
                entries, vectors = rotate(entries, vectors, p, q)
        return entries, vectors

    entries, vectors = lax.fori_loop(np.int32(0), np.int32(_SWEEPS[n]), sweep, (entries, vectors))
    # Columns in ascending order, by a network of comparisons.
    columns = [[entries[i, i], *(vectors[r, i] for r in range(n))] for i in range(n)]
    for last in range(n - 1, 0, -1):
        for i in range(last):
            low, high = columns[i], columns[i + 1]
            swap = low[0] > high[0]
            columns[i] = [jnp.where(swap, y, x) for x, y in zip(low, high, strict=True)]
            columns[i + 1] = [jnp.where(swap, x, y) for x, y in zip(low, high, strict=True)]
    w = jnp.stack([column[0] for column in columns], axis=-1) * scale[..., 0]
    return w, jnp.stack([jnp.stack(column[1:], axis=-1) for column in columns], axis=-1)


@_eigh.defjvp
@_precise
def _eigh_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    w, v = _eigh(a)
    inner = _transpose(v) @ (0.5 * (da + _transpose(da))) @ v
    gap = w[..., None, :] - w[..., :, None]
    scale = jnp.max(jnp.abs(w), axis=-1)[..., None, None]
    dv = v @ (_off_diagonal(gap, scale) * inner)
    return (w, v), (jnp.diagonal(inner, axis1=-2, axis2=-1), dv)


def safe_svd(a: Array) -> tuple[Array, Array, Array]:
    """Thin singular value decomposition with finite gradients at repeated or vanishing singular values.

    Args:
      a: matrices `[..., m, n]`, float.

    Returns:
      `u` `[..., m, k]`, `s` `[..., k]` in descending order, `vt` `[..., k, n]`, with `k = min(m, n)`; dtype of `a`.

    Raises:
      ValueError: if there are fewer than two axes or the dtype is not real floating point.
    """
    return _svd(_check_matrix("safe_svd", a, square=False))


@jax.custom_jvp
def _svd(a):
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vt


@_svd.defjvp
@_precise
def _svd_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    u, s, vt = _svd(a)
    v = _transpose(vt)
    inner = _transpose(u) @ da @ v
    scale = jnp.max(s, axis=-1)[..., None, None]
    row, column = s[..., None, :], s[..., :, None]
    f = _off_diagonal(row - column, scale) * _off_diagonal(row + column, scale)
    skew_u = f * (inner * row + column * _transpose(inner))
    skew_v = f * (column * inner + _transpose(inner) * row)
    # 1/s, for the parts of the tangent outside the spaces that u and v span.
    inverse = _safe_reciprocal(s, scale[..., 0])[..., None, :]
    dav, dau = da @ v, _transpose(da) @ u
    du = u @ skew_u + (dav - u @ (_transpose(u) @ dav)) * inverse
    dv = v @ skew_v + (dau - v @ (vt @ dau)) * inverse
    return (u, s, vt), (du, jnp.diagonal(inner, axis1=-2, axis2=-1), _transpose(dv))


@_precise
def polar(a: Array, *, special: bool = False) -> tuple[Array, Array]:
    r"""Polar decomposition $A = Q P$: the nearest orthogonal matrix and a symmetric factor.

    The derivative solves $P X + X P = Q^T dA - dA^T Q$ for the rotation rate $X$, which divides by $s_i + s_j$ only:
    equal singular values are harmless, as they are not when one differentiates an SVD.

    Args:
      a: matrices `[..., n, n]`, float.
      special: static; if True `Q` is the nearest *rotation* (determinant +1, as in the Kabsch algorithm) and `P` may
        have one negative eigenvalue.

    Returns:
      `Q` `[..., n, n]` orthogonal and `P` `[..., n, n]` symmetric, dtype of `a`.

    Raises:
      ValueError: if the last two axes differ or the dtype is not real floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> q, p = polar(jnp.array([[0.0, -2.0], [3.0, 0.0]]))
      >>> q.round(2).tolist(), (p + 0.0).astype(int).tolist()
      ([[0.0, -1.0], [1.0, 0.0]], [[3, 0], [0, 2]])
    """
    a = _check_matrix("polar", a, square=True)
    q = _orthogonal_factor(a, special)
    p = _transpose(q) @ a
    return q, 0.5 * (p + _transpose(p))


@_precise
def _signed_svd(a, special):
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    if special:
        sign = jnp.where(jnp.linalg.det(u @ vt) < 0, -jnp.ones((), a.dtype), jnp.ones((), a.dtype))
        flip = jnp.concatenate([jnp.ones((*s.shape[:-1], s.shape[-1] - 1), a.dtype), sign[..., None]], axis=-1)
        u, s = u * flip[..., None, :], s * flip
    return u, s, vt


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@_precise
def _orthogonal_factor(a, special):
    u, _, vt = _signed_svd(a, special)
    return u @ vt


@_orthogonal_factor.defjvp
@_precise
def _orthogonal_factor_jvp(special, primals, tangents):
    (a,), (da,) = primals, tangents
    q = _orthogonal_factor(a, special)
    # The symmetric factor's eigenbasis diagonalises the Sylvester equation; `_eigh` keeps this differentiable again.
    p = _transpose(q) @ a
    w, v = _eigh(p)
    rate = _transpose(q) @ da
    rate = _transpose(v) @ (rate - _transpose(rate)) @ v
    scale = jnp.max(jnp.abs(w), axis=-1)[..., None, None]
    x = rate * _safe_reciprocal(w[..., None, :] + w[..., :, None], scale)
    return q, q @ v @ x @ _transpose(v)
