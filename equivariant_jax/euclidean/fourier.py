r"""The product on the sphere through two-dimensional Fourier series: the route of the paper, with its symmetries used.

`T_l^m` is `sin^m(th)` times a polynomial in `cos(th)` and so extends to `0 <= th < 2 pi`: even `m` give cosines in
`th`, odd `m` sines. A field is then the series `sum_{u, v} c_uv e^{i(u th + v ph)}` on a torus, products of fields are
convolutions of series, and the coefficients come back through `int_0^pi T_l^m e^{iu th} sin(th) dth`.

Two symmetries save a factor of four over the plain transform: the field is real (only `v >= 0` is kept), and it lives
on a sphere, `F(2 pi - th, ph) = F(th, ph + pi)` (only half of the values of `th` are formed). It remains the slowest of
the routes, as a grid on the torus has twice the points of one on the sphere; it is here for comparison.

Reference: Luo et al. 2024, arXiv:2401.10216, section 3.2 and appendix; the constants are in closed form or by exact
quadrature where the official code ships a file of them.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import legendre_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index, lmax_of

__all__ = ["fourier_product"]


def _length(lmax: int) -> int:
    # Samples per circle for products of degree lmax: odd or even does not matter, factors 2, 3, 5 do; even, so that
    # th = pi is a sample and half of the circle is a whole number of them.
    size = 2 * lmax + 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and size % 2 == 0:
            return size
        size += 1


@functools.cache
def _series(lmax: int) -> np.ndarray:
    # [N, u, v] complex: coefficients of e^{i(u th + v ph)}, u = -lmax..lmax, v = 0..lmax, of each harmonic.
    count = 2 * lmax + 1
    theta = 2 * np.pi * np.arange(count) / count
    legendre = legendre_table(np.cos(theta), lmax)
    out = np.zeros(((lmax + 1) ** 2, count, lmax + 1), complex)
    for l in range(lmax + 1):
        for m in range(l + 1):
            spectrum = np.fft.fftshift(np.fft.fft(np.sin(theta) ** m * legendre[l, m])) / count
            out[l * l + l + m, :, m] = spectrum * (1.0 if m == 0 else 1 / np.sqrt(2))
            if m:
                out[l * l + l - m, :, m] = spectrum / (1j * np.sqrt(2))
    out[np.abs(out) < 1e-15] = 0.0
    return out


@functools.cache
def _projections(lmax: int, degree: int) -> np.ndarray:
    # [l, m, u] real: 2 pi int_0^pi T_l^m {cos u th (m even); sin u th (m odd)} sin(th) dth for u = 0..degree, doubled
    # for u > 0; polynomials in cos(th), so that Gauss-Legendre is exact.
    nodes, weights = np.polynomial.legendre.leggauss((lmax + degree) // 2 + 1)
    theta, sine = np.arccos(nodes), np.sqrt(1 - nodes * nodes)
    legendre = legendre_table(nodes, lmax)
    u = np.arange(degree + 1)
    waves = [np.cos(u[:, None] * theta), np.sin(u[:, None] * theta)]
    double = np.where(u > 0, 2.0, 1.0)
    table = np.zeros((lmax + 1, lmax + 1, degree + 1))
    for m in range(lmax + 1):
        root = 2 * np.pi * (np.sqrt(2.0) if m else 1.0)
        for l in range(m, lmax + 1):
            table[l, m] = root * double * (waves[m % 2] @ (weights * sine**m * legendre[l, m]))
    return table


def _to_series(x: Array, lmax: int, precision) -> tuple[Array, Array]:
    # Real and imaginary part of the half spectrum [..., u, v]. Each order m meets only its own two coefficients per
    # degree, so that the cost is O(lmax^3).
    table = _series(lmax)
    real, imaginary = [], []
    for m in range(lmax + 1):
        cosine = np.array([l * l + l + m for l in range(m, lmax + 1)], np.int32)
        waves = table[cosine, :, m]
        # Even m: the spectrum of a cosine series is real; odd m: that of a sine series is imaginary.
        even = m % 2 == 0
        matrix = (np.real(waves) if even else np.imag(waves)).astype(x.dtype)
        a = jnp.matmul(jnp.take(x, cosine, axis=-1), matrix, precision=precision)
        if m == 0:
            real.append(a)
            imaginary.append(jnp.zeros_like(a))
            continue
        sine = np.array([l * l + l - m for l in range(m, lmax + 1)], np.int32)
        b = jnp.matmul(jnp.take(x, sine, axis=-1), matrix, precision=precision)
        # (a - i b) times the wave's factor 1 or i.
        real.append(a if even else b)
        imaginary.append(-b if even else a)
    return jnp.stack(real, axis=-1), jnp.stack(imaginary, axis=-1)


def _to_torus(x: Array, lmax: int, size: int, precision) -> Array:
    # Values [..., size / 2 + 1, size]: th from 0 to pi, the whole circle of ph.
    real, imaginary = _to_series(x, lmax, precision)
    spectrum = lax.complex(real, imaginary)
    pad = [(0, 0)] * (spectrum.ndim - 2)
    nonnegative, negative = spectrum[..., lmax:, :], spectrum[..., :lmax, :]
    gap = jnp.zeros((*spectrum.shape[:-2], size - (2 * lmax + 1), lmax + 1), spectrum.dtype)
    wide = jnp.concatenate([nonnegative, gap, negative], axis=-2)
    rows = jnp.fft.ifft(wide, axis=-2)[..., : size // 2 + 1, :]
    rows = jnp.pad(rows, [*pad, (0, 0), (0, size // 2 + 1 - (lmax + 1))])
    # numpy's inverse transforms divide by the length; the series does not.
    return jnp.fft.irfft(rows, n=size, axis=-1) * np.asarray(size * size, x.dtype)


def _from_torus(values: Array, lmax: int, degree: int, size: int, precision) -> Array:
    # Values [..., size / 2 + 1, size] of a field of degree `degree`, to coefficients [..., (lmax + 1)**2].
    dtype = values.dtype
    kept = min(lmax, degree)
    rows = jnp.fft.rfft(values, axis=-1)[..., : kept + 1]
    # The other half of the circle in th: F_v(2 pi - th) = (-1)^v F_v(th).
    signs = np.where(np.arange(kept + 1) % 2 == 0, 1.0, -1.0).astype(rows.dtype).reshape((1,) * (rows.ndim - 1) + (-1,))
    mirrored = jnp.flip(rows[..., 1:-1, :], axis=-2) * signs
    spectrum = jnp.fft.fft(jnp.concatenate([rows, mirrored], axis=-2), axis=-2)[..., : degree + 1, :]
    spectrum = spectrum * np.asarray(1 / size**2, spectrum.dtype)
    table = _projections(lmax, degree)
    blocks, rows_of = [], []
    for m in range(kept + 1):
        degrees = range(m, lmax + 1)
        matrix = table[m:, m].T.astype(dtype)
        column = spectrum[..., m]
        # sum_u F_u e^{iu th} = F_0 + 2 sum F_u cos(u th) for even m, 2 i sum F_u sin(u th) for odd m; the sine wave of
        # azimuth takes minus the imaginary part.
        if m % 2 == 0:
            parts = [jnp.real(column), -jnp.imag(column)]
        else:
            parts = [-jnp.imag(column), -jnp.real(column)]
        for sign, part in zip((1, -1), parts[: 1 if m == 0 else 2], strict=False):
            blocks.append(jnp.matmul(part, matrix, precision=precision))
            rows_of.append([l * l + l + sign * m for l in degrees])
    known = np.concatenate(rows_of)
    missing = np.setdiff1d(np.arange((lmax + 1) ** 2), known)
    if missing.size:
        blocks.append(jnp.zeros((*values.shape[:-2], missing.size), dtype))
    order = np.argsort(np.concatenate([known, missing])).astype(np.int32)
    return jnp.take(jnp.concatenate(blocks, axis=-1), order, axis=-1)


def fourier_product(
    x: Array, y: Array, lmax_out: int, scales: tuple[np.ndarray | None, ...], *, precision=None
) -> Array:
    """Multiplies two features as two-dimensional Fourier series, coefficients last.

    Args:
      x: shape `[..., (L1 + 1)**2]`, float32 or float64.
      y: shape `[..., (L2 + 1)**2]`, dtype of `x`; leading axes broadcast.
      lmax_out: static; largest degree of the result.
      scales: three NumPy factors per degree (of `x`, `y`, result) or None.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2]`.

    Raises:
      ValueError: for a dtype without a Fourier transform (bfloat16, float16).

    Example:
      >>> fourier_product(jnp.ones((7, 4)), jnp.ones((7, 4)), 2, (None, None, None)).shape
      (7, 9)
    """
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f'method "fourier" needs float32 or float64, got {x.dtype}; cast, or use another method.')

    def scaled(v: Array, scale: np.ndarray | None) -> Array:
        if scale is None:
            return v
        factors = scale[degree_index(lmax_of(v.shape[-1]))].astype(v.dtype)
        return v * factors.reshape((1,) * (v.ndim - 1) + (-1,))

    lmax1, lmax2 = lmax_of(x.shape[-1]), lmax_of(y.shape[-1])
    degree = lmax1 + lmax2
    size = _length(degree)
    f = _to_torus(scaled(x, scales[0]), lmax1, size, precision)
    g = _to_torus(scaled(y, scales[1]), lmax2, size, precision)
    return scaled(_from_torus(f * g, lmax_out, degree, size, precision), scales[2])
