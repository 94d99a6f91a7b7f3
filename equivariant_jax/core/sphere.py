r"""Real spherical harmonics as tables in NumPy float64: the constants that layers and Wigner matrices are made of.

Axes and order are e3nn's: polar axis `y`, azimuth measured from `z` towards `x`, index `l*l + l + m`, no
Condon-Shortley sign; degree 1 is the vector `(x, y, z)` itself, up to a factor.

Reference: Limpanuparb and Milthorpe, 2014, arXiv:1410.1748 (normalised Legendre recursion).
"""

import functools

import numpy as np

__all__ = ["raising_coupling", "sphere_table"]


def sphere_table(points: np.ndarray, lmax: int) -> np.ndarray:
    r"""Tabulates orthonormal spherical harmonics at points of the unit sphere, in NumPy float64.

    With `(z + ix)^m = c_m + i s_m`, `Y_lm = Q_l^|m|(y) * {sqrt(2) s_|m|; 1; sqrt(2) c_m}` for `m < 0, = 0, > 0`, and
    `Q_l^m = a (y Q_{l-1}^m - b Q_{l-2}^m)`, `a^2 = (4l^2-1)/(l^2-m^2)`, `b^2 = ((l-1)^2-m^2)/(4(l-1)^2-1)`.

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
    table = np.empty((x.shape[0], (lmax + 1) ** 2))
    cosine, sine = np.ones_like(x), np.zeros_like(x)
    diagonal = np.full_like(x, np.sqrt(1 / (4 * np.pi)))
    for m in range(lmax + 1):
        if m > 0:
            cosine, sine = z * cosine - x * sine, z * sine + x * cosine
            diagonal = diagonal * np.sqrt((2 * m + 1) / (2 * m))
        older, row = np.zeros_like(x), diagonal
        for l in range(m, lmax + 1):
            if l > m:
                a = np.sqrt((4 * l * l - 1) / (l * l - m * m))
                b = np.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) if l > m + 1 else 0.0
                older, row = row, a * (y * row - b * older)
            if m == 0:
                table[:, l * l + l] = row
            else:
                table[:, l * l + l + m] = np.sqrt(2) * row * cosine
                table[:, l * l + l - m] = np.sqrt(2) * row * sine
    return table


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
