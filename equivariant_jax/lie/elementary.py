r"""Exponentials and logarithms of symmetric matrices and of rotations, whose derivatives are finite everywhere.

For 2 x 2 matrices these are closed forms in polynomials of the entries, without eigenvectors: at equal eigenvalues
nothing is special. For larger symmetric matrices the derivative is the one of Daleckii and Krein, whose divided
differences have limits where eigenvalues meet. The logarithm of a rotation takes the half turn too (either sign is a
logarithm there), by the largest of four quaternion components.

Laws: `symmetric_log(symmetric_exp(X)) == X`; `f(Q X Q^T) == Q f(X) Q^T` for orthogonal `Q`;
`rotation_log(rotation_exp(t)) == t` for turns below a half.

References: Higham 2008, "Functions of Matrices"; Shepperd 1978 (quaternion of a rotation).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.linalg import safe_eigh, safe_sqrt
from equivariant_jax.core.typing import Array

__all__ = [
    "log_sinhc",
    "log_sinhc_of_square",
    "num_rotation_coordinates",
    "rotation_exp",
    "rotation_log",
    "symmetric_exp",
    "symmetric_log",
]

# Below these arguments a power series replaces the closed form; ten terms reach double precision there.
_SMALL = 0.04
_TERMS = 10


def _series(coefficients: np.ndarray, u: Array) -> Array:
    out = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        out = out * u + np.asarray(c, u.dtype)
    return out


def _even(coefficients: np.ndarray, closed, u: Array) -> Array:
    """A function of `u >= 0`: its series where u is small, `closed(sqrt(u))` elsewhere; all derivatives are finite."""
    small = u < _SMALL
    root = jnp.sqrt(jnp.where(small, np.asarray(1.0, u.dtype), u))
    return jnp.where(small, _series(coefficients, jnp.where(small, u, np.asarray(0.0, u.dtype))), closed(root))


def _inverse_factorials(start: int) -> np.ndarray:
    odd = np.cumprod([1.0] + [1.0 / ((start + 2 * k - 1) * (start + 2 * k)) for k in range(1, _TERMS)])
    return odd / np.prod(np.arange(1, start + 1))


_SIGNS = (-1.0) ** np.arange(_TERMS)
_SINHC, _COSHM = _inverse_factorials(1), _inverse_factorials(2)  # sinh(r)/r and (cosh(r) - 1)/r^2 in powers of r^2
_ATANHC = 1.0 / (2 * np.arange(_TERMS) + 1)
# log(sinh(r)/r) in powers of r^2: B_2k 2^(2k-1) / (k (2k)!) for k = 1 ...
_LOG_SINHC = np.array(
    [0.0, 1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000]
)


def log_sinhc(r: Array) -> Array:
    """`log(sinh(r) / r)`, zero at zero, without overflow.

    Args:
      r: array of any shape, float.

    Returns:
      Array of the shape and dtype of `r`.

    Example:
      >>> np.asarray(log_sinhc(jnp.array([0.0, 1.0, 100.0])), float).round(3).tolist()
      [0.0, 0.161, 94.702]
    """
    r = jnp.asarray(r)
    return log_sinhc_of_square(r * r)


def log_sinhc_of_square(u: Array) -> Array:
    """`log(sinh(r) / r)` as the smooth function of `u = r**2` that it is.

    Args:
      u: array of any shape, float, not negative.

    Returns:
      Array of the shape and dtype of `u`.

    Example:
      >>> round(float(jax.grad(log_sinhc_of_square)(0.0)), 4)
      0.1667
    """

    def closed(root: Array) -> Array:
        return root - jnp.log(2 * root) + jnp.log1p(-jnp.exp(-2 * root))

    return _even(_LOG_SINHC, closed, jnp.asarray(u))


def _check_square(name: str, a: Array) -> Array:
    a = jnp.asarray(a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 1 or not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"{name} got {a.dtype} of shape {a.shape}; expected float matrices `[..., n, n]`.")
    return a


def _matrix2(a: Array, b: Array, c: Array, d: Array) -> Array:
    return jnp.stack([jnp.stack([a, b], axis=-1), jnp.stack([c, d], axis=-1)], axis=-2)


def symmetric_exp(x: Array) -> Array:
    """Exponential of symmetric matrices.

    Args:
      x: symmetric matrices `[..., n, n]`, float.

    Returns:
      Symmetric positive matrices `[..., n, n]`, dtype of `x`.

    Raises:
      ValueError: if the matrices are not square or not floating point.

    Example:
      >>> np.asarray(symmetric_exp(jnp.array([[0.0, 1.0], [1.0, 0.0]])), float).round(3).tolist()
      [[1.543, 1.175], [1.175, 1.543]]
    """
    x = _check_square("symmetric_exp", x)
    if x.shape[-1] == 1:
        return jnp.exp(x)
    if x.shape[-1] != 2:
        return _spectral(x, "exp")
    mean, p, q = 0.5 * (x[..., 0, 0] + x[..., 1, 1]), 0.5 * (x[..., 0, 0] - x[..., 1, 1]), x[..., 0, 1]
    u = p * p + q * q
    cosh = 1 + u * _even(_COSHM, lambda r: (jnp.cosh(r) - 1) / (r * r), u)
    sinhc = _even(_SINHC, lambda r: jnp.sinh(r) / r, u)
    scale = jnp.exp(mean)
    return _matrix2(scale * (cosh + sinhc * p), scale * sinhc * q, scale * sinhc * q, scale * (cosh - sinhc * p))


def symmetric_log(s: Array, *, determinant: Array | None = None) -> Array:
    """Logarithm of symmetric positive matrices.

    Args:
      s: symmetric positive matrices `[..., n, n]`, float.
      determinant: of `s`, shape `[...]`, where it is known better than from the entries (n = 2 only): it carries the
        digits of the smaller eigenvalue of an ill-conditioned matrix.

    Returns:
      Symmetric matrices `[..., n, n]`, dtype of `s`; NaN where `s` is not positive.

    Raises:
      ValueError: if the matrices are not square or not floating point.

    Example:
      >>> s = jnp.array([[1.543081, 1.175201], [1.175201, 1.543081]])
      >>> np.abs(np.asarray(symmetric_log(s), float)).round(3).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    s = _check_square("symmetric_log", s)
    if s.shape[-1] == 1:
        return jnp.log(s)
    if s.shape[-1] != 2:
        return _spectral(s, "log")
    mean, p, q = 0.5 * (s[..., 0, 0] + s[..., 1, 1]), 0.5 * (s[..., 0, 0] - s[..., 1, 1]), s[..., 0, 1]
    if determinant is None:
        determinant = s[..., 0, 0] * s[..., 1, 1] - q * q
    half_log = 0.5 * jnp.log(determinant)
    # log S = half_log I + beta (S - mean I), beta = atanh(d / mean) / d with d^2 = p^2 + q^2.
    squared = p * p + q * q
    small = squared < _SMALL * mean * mean
    ratio = jnp.where(small, squared / (mean * mean), np.asarray(0.0, s.dtype))
    d = jnp.sqrt(jnp.where(small, np.asarray(1.0, s.dtype), squared))
    beta = jnp.where(small, _series(_ATANHC, ratio) / mean, (jnp.log(mean + d) - half_log) / d)
    return _matrix2(half_log + beta * p, beta * q, beta * q, half_log - beta * p)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _spectral(x: Array, function: str) -> Array:
    values, vectors = safe_eigh(x)
    return _compose(vectors, getattr(jnp, function)(values))


def _compose(vectors: Array, values: Array) -> Array:
    return jnp.einsum("...ik,...k,...jk->...ij", vectors, values, vectors)


@_spectral.defjvp
def _spectral_jvp(function: str, primals: Any, tangents: Any):
    (x,), (dx,) = primals, tangents
    values, vectors = safe_eigh(x)
    a, b = values[..., :, None], values[..., None, :]
    # Divided differences (f(a) - f(b)) / (a - b) without cancellation: both functions by sinh(h) / h.
    if function == "exp":
        half = 0.5 * (a - b)
        slopes = jnp.exp(0.5 * (a + b)) * _even(_SINHC, lambda r: jnp.sinh(r) / r, half * half)
        out = jnp.exp(values)
    else:
        out = jnp.log(values)
        half = 0.5 * (out[..., :, None] - out[..., None, :])
        slopes = 1 / (jnp.sqrt(a * b) * _even(_SINHC, lambda r: jnp.sinh(r) / r, half * half))
    inner = jnp.einsum("...ki,...kl,...lj->...ij", vectors, 0.5 * (dx + jnp.swapaxes(dx, -1, -2)), vectors)
    tangent = jnp.einsum("...ik,...kl,...jl->...ij", vectors, slopes * inner, vectors)
    return _compose(vectors, out), tangent


def num_rotation_coordinates(n: int) -> int:
    """Dimension of SO(n), `n (n - 1) / 2`.

    Args:
      n: static; 1, 2 or 3.

    Returns:
      0, 1 or 3.

    Raises:
      ValueError: for other n, for which this file has no logarithm.

    Example:
      >>> num_rotation_coordinates(3)
      3
    """
    if n not in (1, 2, 3):
        raise ValueError(f"rotations are implemented for n = 1, 2 and 3, got n = {n}.")
    return n * (n - 1) // 2


def rotation_exp(theta: Array, n: int) -> Array:
    """Rotation by an angle (n = 2) or by a rotation vector (n = 3).

    Args:
      theta: coordinates `[..., n (n - 1) / 2]` in radians, float.
      n: static; 1, 2 or 3.

    Returns:
      Rotation matrices `[..., n, n]`, dtype of `theta`.

    Raises:
      ValueError: if the coordinates do not fit.

    Example:
      >>> np.asarray(rotation_exp(jnp.array([jnp.pi / 6]), 2), float).round(3).tolist()
      [[0.866, -0.5], [0.5, 0.866]]
    """
    theta = jnp.asarray(theta)
    if theta.ndim < 1 or theta.shape[-1] != num_rotation_coordinates(n):
        raise ValueError(f"rotation_exp got shape {theta.shape}; expected `[..., {num_rotation_coordinates(n)}]`.")
    if n == 1:
        return jnp.ones((*theta.shape[:-1], 1, 1), theta.dtype)
    if n == 2:
        c, s = jnp.cos(theta[..., 0]), jnp.sin(theta[..., 0])
        return _matrix2(c, -s, s, c)
    u = jnp.sum(theta * theta, axis=-1)[..., None, None]
    sinc = _even(_SIGNS * _SINHC, lambda r: jnp.sin(r) / r, u)
    cosm = _even(_SIGNS * _COSHM, lambda r: (1 - jnp.cos(r)) / (r * r), u)
    skew = _skew(theta)
    identity = jnp.broadcast_to(jnp.eye(3, dtype=theta.dtype), skew.shape)
    return identity + sinc * skew + cosm * (skew @ skew)


def _skew(v: Array) -> Array:
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = jnp.zeros_like(x)
    rows = [jnp.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return jnp.stack(rows, axis=-2)


def rotation_log(r: Array) -> Array:
    """Angle in (-pi, pi] (n = 2) or rotation vector of length at most pi (n = 3).

    Args:
      r: rotation matrices `[..., n, n]`, n = 1, 2 or 3, float; for n = 2 a positive multiple will do.

    Returns:
      Coordinates `[..., n (n - 1) / 2]` in radians, dtype of `r`.

    Raises:
      ValueError: if the matrices are not square, not floating point or larger.

    Example:
      >>> np.asarray(rotation_log(jnp.array([[0.0, -1.0], [1.0, 0.0]])), float).round(3).tolist()
      [1.571]
    """
    r = _check_square("rotation_log", r)
    n = r.shape[-1]
    num_rotation_coordinates(n)
    if n == 1:
        return jnp.zeros((*r.shape[:-2], 0), r.dtype)
    if n == 2:
        sine, cosine = r[..., 1, 0] - r[..., 0, 1], r[..., 0, 0] + r[..., 1, 1]
        return jnp.arctan2(sine, cosine)[..., None]
    quaternion = _quaternion(r)
    w, v = quaternion[..., 0], quaternion[..., 1:]
    squared = jnp.sum(v * v, axis=-1)
    # angle / |v| = 2 atan2(|v|, w) / |v|; near zero by the series of asin.
    small = squared < 1e-3
    length = jnp.sqrt(jnp.where(small, np.asarray(1.0, r.dtype), squared))
    series = _series(2.0 * np.array([1, 1 / 6, 3 / 40, 15 / 336, 105 / 3456, 945 / 42240, 10395 / 599040]),
                     jnp.where(small, squared, np.asarray(0.0, r.dtype)))  # fmt: skip
    factor = jnp.where(small, series, 2 * jnp.arctan2(length, jnp.where(small, np.asarray(1.0, r.dtype), w)) / length)
    return v * factor[..., None]


def _quaternion(r: Array) -> Array:
    """Unit quaternion (w, x, y, z) with w >= 0, from whichever component is largest."""
    m = [[r[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    squares = jnp.stack([trace, *(2 * m[i][i] - trace for i in range(3))], axis=-1)
    twice = 1 + squares  # 4 times the square of each component
    off = {
        (0, 1): m[2][1] - m[1][2], (0, 2): m[0][2] - m[2][0], (0, 3): m[1][0] - m[0][1],
        (1, 2): m[1][0] + m[0][1], (1, 3): m[0][2] + m[2][0], (2, 3): m[2][1] + m[1][2],
    }  # fmt: skip

    def product(i: int, j: int) -> Array:
        return twice[..., i] if i == j else off[min(i, j), max(i, j)]

    rows = jnp.stack([jnp.stack([product(i, j) for j in range(4)], axis=-1) for i in range(4)], axis=-2)
    largest = jnp.argmax(squares, axis=-1)
    row = jnp.take_along_axis(rows, largest[..., None, None], axis=-2)[..., 0, :]
    unit = row / safe_sqrt(jnp.sum(row * row, axis=-1, keepdims=True))
    return jnp.where(unit[..., :1] < 0, -unit, unit)
