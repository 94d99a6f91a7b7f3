r"""Real spherical harmonics as tables in NumPy float64: the constants that layers and Wigner matrices are made of.

Axes and order are e3nn's: polar axis `y`, azimuth measured from `z` towards `x`, index `l*l + l + m`, no
Condon-Shortley sign; degree 1 is the vector `(x, y, z)` itself, up to a factor.

Reference: Limpanuparb and Milthorpe, 2014, arXiv:1410.1748 (normalised Legendre recursion).
"""

import functools

import numpy as np

__all__ = ["legendre_table", "raising_coupling", "sphere_gradient_table", "sphere_table"]


def legendre_table(polar_cosine: np.ndarray, lmax: int) -> np.ndarray:
    r"""Tabulates normalised Legendre factors `Q_l^m`.

    `Y_l0 = Q_l^0`, `Y_lm = sqrt(2) sin^m(th) Q_l^m cos(m ph)` for `m > 0`, and
    `Q_l^m = a (y Q_{l-1}^m - b Q_{l-2}^m)`, `a^2 = (4l^2-1)/(l^2-m^2)`, `b^2 = ((l-1)^2-m^2)/(4(l-1)^2-1)`; they are
    polynomials in `y = cos(th)`, without the factor `sin^m`.

    Args:
      polar_cosine: `y`, shape `[n]`, float64, between -1 and 1.
      lmax: largest degree.

    Returns:
      float64 array of shape `[lmax + 1, lmax + 1, n]`, entry `[l, m]`; zero for `m > l`.

    Example:
      >>> float(legendre_table(np.array([1.0]), 1)[1, 0, 0].round(6))
      0.488603
    """
    y = np.asarray(polar_cosine, np.float64)
    table = np.zeros((lmax + 1, lmax + 1, y.size))
    diagonal = np.sqrt(1 / (4 * np.pi))
    for m in range(lmax + 1):
        if m > 0:
            diagonal = diagonal * np.sqrt((2 * m + 1) / (2 * m))
        table[m, m] = diagonal
        for l in range(m + 1, lmax + 1):
            a = np.sqrt((4 * l * l - 1) / (l * l - m * m))
            b = np.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1))
            older = b * table[l - 2, m] if l > m + 1 else 0.0
            table[l, m] = a * (y * table[l - 1, m] - older)
    return table


def sphere_table(points: np.ndarray, lmax: int) -> np.ndarray:
    r"""Tabulates orthonormal spherical harmonics at points of the unit sphere, in NumPy float64.

    With `(z + ix)^m = c_m + i s_m`, `Y_lm = Q_l^|m|(y) * {sqrt(2) s_|m|; 1; sqrt(2) c_m}` for `m < 0, = 0, > 0`.

    Args:
      points: unit vectors, shape `[n, 3]` in the order x, y, z, float64.
      lmax: largest degree.

    Returns:
      float64 array of shape `[n, (lmax + 1)**2]`, normalised so that the integral of `Y^2` over the sphere is 1.

    Example:
      >>> float(sphere_table(np.array([[0.0, 1.0, 0.0]]), 1)[0, 2].round(6))
      0.488603
    """
    x, y, z = np.asarray(points, np.float64).T
    legendre = legendre_table(y, lmax)
    table = np.empty((x.shape[0], (lmax + 1) ** 2))
    cosine, sine = np.ones_like(x), np.zeros_like(x)
    for m in range(lmax + 1):
        if m > 0:
            cosine, sine = z * cosine - x * sine, z * sine + x * cosine
        for l in range(m, lmax + 1):
            if m == 0:
                table[:, l * l + l] = legendre[l, 0]
            else:
                table[:, l * l + l + m] = np.sqrt(2) * legendre[l, m] * cosine
                table[:, l * l + l - m] = np.sqrt(2) * legendre[l, m] * sine
    return table


def sphere_gradient_table(points: np.ndarray, lmax: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Tabulates `dY/dth` and `(1 / sin th) dY/dph`, the tangential gradient, in NumPy float64.

    With `T_l^m = sin^m(th) Q_l^m`: `dT/dth = m cos(th) sin^(m-1) Q_l^m - sqrt((l-m)(l+m+1)) sin^(m+1) Q_l^(m+1)`, which
    is regular at the poles. There the azimuth is taken as zero, so that the frame is `e_th = z`, `e_ph = x` at `+y`.

    Args:
      points: unit vectors, shape `[n, 3]` in the order x, y, z, float64; polar axis y, azimuth from z to x.
      lmax: largest degree.

    Returns:
      Two float64 arrays of shape `[n, (lmax + 1)**2]`: the polar and the azimuthal component.

    Example:
      >>> polar, azimuthal = sphere_gradient_table(np.array([[0.0, 1.0, 0.0]]), 1)
      >>> np.abs(polar).round(6).tolist(), np.abs(azimuthal).round(6).tolist()
      ([[0.0, 0.0, 0.0, 0.488603]], [[0.0, 0.488603, 0.0, 0.0]])
    """
    x, y, z = np.asarray(points, np.float64).T
    radius = np.hypot(x, z)
    pole = radius < 1e-14
    safe = np.where(pole, 1.0, radius)
    legendre = legendre_table(y, lmax + 1)
    unit = np.where(pole, 1.0 + 0j, (z + 1j * x) / safe)
    polar, azimuthal = (np.zeros((x.shape[0], (lmax + 1) ** 2)) for _ in range(2))
    for m in range(lmax + 1):
        # sin^(m-1), of which m = 0 has no need.
        lower = radius ** (m - 1) if m > 0 else np.zeros_like(radius)
        cosine, sine = np.real(unit**m), np.imag(unit**m)
        for l in range(m, lmax + 1):
            upper = np.sqrt((l - m) * (l + m + 1)) * radius ** (m + 1) * legendre[l, m + 1] if l > m else 0.0
            slope = m * y * lower * legendre[l, m] - upper
            if m == 0:
                polar[:, l * l + l] = slope
                continue
            turn = np.sqrt(2) * m * lower * legendre[l, m]
            polar[:, l * l + l + m] = np.sqrt(2) * slope * cosine
            polar[:, l * l + l - m] = np.sqrt(2) * slope * sine
            azimuthal[:, l * l + l + m] = -turn * sine
            azimuthal[:, l * l + l - m] = turn * cosine
    return polar, azimuthal


@functools.cache
def raising_coupling(degree: int) -> np.ndarray:
    """Tabulates the map from `r (x) Y_l` to `Y_{l+1}`, by projection on an exact quadrature.

    Args:
      degree: `l`, 0 or more.

    Returns:
      float64 array C of shape `[3 * (2l + 1), 2l + 3]` with `Y_{l+1}(r) = (r (x) Y_l(r)) C` on the unit sphere, the
      vector's axis outermost; selection rules hold as exact zeros.

    Example:
      >>> point = np.array([[0.6, 0.0, 0.8]])
      >>> table = sphere_table(point, 2)
      >>> product = (point[:, :, None] * table[:, None, 1:4]).reshape(1, -1)
      >>> bool(np.allclose(product @ raising_coupling(1), table[:, 4:]))
      True
    """
    nodes, weights = np.polynomial.legendre.leggauss(degree + 2)
    azimuth = 2 * np.pi * np.arange(2 * degree + 3) / (2 * degree + 3)
    sine = np.sqrt(1 - nodes * nodes)[:, None]
    points = np.stack([sine * np.sin(azimuth), nodes[:, None] + 0 * azimuth, sine * np.cos(azimuth)], axis=-1).reshape(
        -1, 3
    )
    weights = np.repeat(weights * 2 * np.pi / azimuth.size, azimuth.size)
    table = sphere_table(points, degree + 1)
    lower, upper = table[:, degree**2 : (degree + 1) ** 2], table[:, (degree + 1) ** 2 :]
    products = (points[:, :, None] * lower[:, None, :]).reshape(len(points), -1)
    coupling = products.T @ (weights[:, None] * upper)
    # r (x) Y_l overlaps with Y_{l+1} up to one constant (Schur); divide it out.
    constant = np.mean(np.sum(weights[:, None] * (products @ coupling) * upper, axis=0))
    coupling /= constant
    coupling[np.abs(coupling) < 1e-13] = 0.0
    return coupling
