r"""Coordinates and Haar measures of GL+(n), SL(n) and their subgroups by factors that are easy to integrate over.

Polar (Cartan) coordinates write `A = exp(X) R` with X symmetric and R a rotation. They cover the whole group, although
the exponential map of the group does not: a matrix such as diag(-2, -1/2) has no real logarithm, yet X = diag(ln 2,
-ln 2) and R is the half turn. In them the Haar measure is a product,

    d mu(A) = prod_{i<j} sinh|a_i - a_j| / |a_i - a_j|  dX dR        (a_i the eigenvalues of X, dR of total mass one),

and so it is in Iwasawa coordinates `A = K D N` (rotation, positive diagonal, unit upper triangular),

    d mu(A) = prod_{i<j} (d_i / d_j)  dK  prod_i d(log d_i)  dN.

Lengths of X are those of the trace form: `|X|^2 = tr X^2`, in which dX is Lebesgue measure.

For n = 2 all is in closed form without eigenvectors; n = 3 uses iterations with derivatives of their own. Every
function has finite gradients at the identity, at half turns and at repeated singular values.

Laws: `polar_exp(*polar_log(A)) == A`; `X(Q A) == Q X(A) Q^T` for rotations Q; the densities make integrals invariant
under `A -> H A` and `A -> A H`.

References: Mironenco & Forre 2024, arXiv:2310.11366; Helgason 1984, "Groups and Geometric Analysis", chapter I.5 (the
measures).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.linalg import polar, safe_eigh
from equivariant_jax.core.typing import Array
from equivariant_jax.lie.elementary import (
    log_sinhc,
    log_sinhc_of_square,
    num_rotation_coordinates,
    rotation_exp,
    rotation_log,
    symmetric_exp,
    symmetric_log,
)

__all__ = [
    "GL2",
    "GL3",
    "R_SO2",
    "SL2",
    "SL3",
    "SO2",
    "SO3",
    "IwasawaFactors",
    "LinearGroup",
    "R",
    "coordinates",
    "haar_log_density_iwasawa",
    "haar_log_density_polar",
    "iwasawa",
    "iwasawa_product",
    "polar_exp",
    "polar_log",
    "stretch_coordinates",
    "stretch_matrix",
]

Stretch = Literal["none", "scale", "traceless", "full"]


@dataclasses.dataclass(frozen=True)
class LinearGroup:
    """A group of matrices with positive determinant, given by what its polar factors may be.

    Attributes:
      n: size of the matrices, 1, 2 or 3.
      stretch: symmetric logarithms: "none", "scale" (multiples of the identity), "traceless" or "full".
      rotation: whether rotations belong to it. Stretches alone are a group only if they commute ("none", "scale").
    """

    n: int
    stretch: Stretch
    rotation: bool = True

    def __post_init__(self):
        num_rotation_coordinates(self.n)
        if self.stretch not in ("none", "scale", "traceless", "full"):
            raise ValueError(f'stretch is {self.stretch!r}; expected "none", "scale", "traceless" or "full".')
        if not self.rotation and self.stretch in ("traceless", "full") and self.n > 1:
            raise ValueError(
                f"{self.stretch} stretches without rotations are no group (their products rotate); "
                "take rotation=True, or stretch='scale'."
            )

    @property
    def num_stretches(self) -> int:
        """Number of coordinates of the symmetric factor."""
        symmetric = self.n * (self.n + 1) // 2
        return {"none": 0, "scale": 1, "traceless": symmetric - 1, "full": symmetric}[self.stretch]

    @property
    def num_rotations(self) -> int:
        """Number of coordinates of the rotation."""
        return num_rotation_coordinates(self.n) if self.rotation else 0

    @property
    def dimension(self) -> int:
        """Dimension of the group."""
        return self.num_stretches + self.num_rotations

    @property
    def preserves_volume(self) -> bool:
        """Whether all determinants are one."""
        return self.stretch in ("none", "traceless")


SO2, SL2, GL2 = LinearGroup(2, "none"), LinearGroup(2, "traceless"), LinearGroup(2, "full")
R, R_SO2 = LinearGroup(2, "scale", rotation=False), LinearGroup(2, "scale")
SO3, SL3, GL3 = LinearGroup(3, "none"), LinearGroup(3, "traceless"), LinearGroup(3, "full")


def _check_matrices(name: str, a: Array) -> Array:
    a = jnp.asarray(a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] not in (1, 2, 3):
        raise ValueError(f"{name} got shape {a.shape}; expected matrices `[..., n, n]` with n = 1, 2 or 3.")
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"{name} got {a.dtype}; expected floating point.")
    return a


def polar_log(a: Array) -> tuple[Array, Array]:
    r"""Polar coordinates: `A = exp(X) R`, `X = 1/2 log(A A^T)`.

    Args:
      a: matrices of positive determinant, shape `[..., n, n]`, n = 1, 2 or 3, float.

    Returns:
      `X` `[..., n, n]`, symmetric, and the rotation `R` `[..., n, n]`, dtype of `a`. NaN where the determinant is not
      positive.

    Raises:
      ValueError: for another shape or dtype.

    Example:
      >>> x, r = polar_log(jnp.array([[-2.0, 0.0], [0.0, -0.5]]))  # has no real logarithm
      >>> np.diag(np.asarray(x, float)).round(3).tolist(), jnp.diag(r).tolist()
      ([0.693, -0.693], [-1.0, -1.0])
    """
    a = _check_matrices("polar_log", a)
    n = a.shape[-1]
    if n == 1:
        return jnp.log(a), jnp.ones_like(a)
    if n == 2:
        p, q, r, s = a[..., 0, 0], a[..., 0, 1], a[..., 1, 0], a[..., 1, 1]
        determinant = p * s - q * r
        x = 0.5 * symmetric_log(a @ jnp.swapaxes(a, -1, -2), determinant=determinant**2)
        cosine, sine = p + s, r - q
        # (p + s)^2 + (r - q)^2 = tr(A A^T) + 2 det A, which cannot vanish.
        valid = determinant > 0
        one = np.asarray(1.0, a.dtype)
        length = jnp.sqrt(jnp.where(valid, cosine * cosine + sine * sine, one))
        c, s = cosine / length, sine / length
        rotation = jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)
        nan = np.asarray(np.nan, a.dtype)
        valid = valid[..., None, None]
        return jnp.where(valid, x, nan), jnp.where(valid, rotation, nan)
    rotation, _ = polar(a)
    stretch = a @ jnp.swapaxes(rotation, -1, -2)
    x = symmetric_log(0.5 * (stretch + jnp.swapaxes(stretch, -1, -2)))
    valid = (jnp.linalg.det(a) > 0)[..., None, None]
    nan = np.asarray(np.nan, a.dtype)
    return jnp.where(valid, x, nan), jnp.where(valid, rotation, nan)


def polar_exp(x: Array, theta: Array) -> Array:
    """The matrix `exp(X) R(theta)` of polar coordinates.

    Args:
      x: symmetric matrices `[..., n, n]`, float.
      theta: angle (n = 2) or rotation vector (n = 3), `[..., n (n - 1) / 2]` in radians, dtype of `x`.

    Returns:
      Matrices `[..., n, n]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> polar_exp(jnp.zeros((2, 2)), jnp.array([jnp.pi])).round(3).tolist()
      [[-1.0, 0.0], [-0.0, -1.0]]
    """
    x = _check_matrices("polar_exp", x)
    return symmetric_exp(x) @ rotation_exp(theta, x.shape[-1])


def _basis(n: int, stretch: Stretch) -> np.ndarray:
    """Orthonormal symmetric matrices of the trace form, `[num_stretches, n, n]`."""
    out = []
    for i in range(n):
        for j in range(i + 1, n):
            matrix = np.zeros((n, n))
            matrix[i, j] = matrix[j, i] = math.sqrt(0.5)
            out.append(matrix)
    diagonal = [np.diag([1.0] * k + [-k] + [0.0] * (n - k - 1)) / math.sqrt(k * (k + 1)) for k in range(1, n)]
    trace = np.eye(n) / math.sqrt(n)
    chosen = {"none": [], "scale": [trace], "traceless": out + diagonal, "full": [*out, *diagonal, trace]}[stretch]
    return np.stack(chosen) if chosen else np.zeros((0, n, n))


def stretch_coordinates(x: Array, group: LinearGroup) -> Array:
    """Orthonormal coordinates of a symmetric logarithm.

    Args:
      x: symmetric matrices `[..., n, n]`, float.
      group: static; components outside it are dropped.

    Returns:
      Coordinates `[..., group.num_stretches]`, dtype of `x`, with `|y|^2 == tr X^2` inside the group.

    Raises:
      ValueError: if the size is not the group's.

    Example:
      >>> np.asarray(stretch_coordinates(jnp.array([[1.0, 2.0], [2.0, -1.0]]), SL2), float).round(3).tolist()
      [2.828, 1.414]
    """
    x = _check_matrices("stretch_coordinates", x)
    if x.shape[-1] != group.n:
        raise ValueError(f"stretch_coordinates got shape {x.shape}; {group} has n = {group.n}.")
    return jnp.einsum("...ij,kij->...k", x, _basis(group.n, group.stretch).astype(x.dtype))


def stretch_matrix(y: Array, group: LinearGroup) -> Array:
    """Symmetric logarithm of orthonormal coordinates, the inverse of `stretch_coordinates`.

    Args:
      y: coordinates `[..., group.num_stretches]`, float.
      group: static.

    Returns:
      Symmetric matrices `[..., n, n]`, dtype of `y`.

    Raises:
      ValueError: if the number of coordinates is not the group's.

    Example:
      >>> stretch_matrix(jnp.array([2.0**0.5]), R).round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    y = jnp.asarray(y)
    if y.ndim < 1 or y.shape[-1] != group.num_stretches:
        raise ValueError(f"stretch_matrix got shape {y.shape}; expected `[..., {group.num_stretches}]` for {group}.")
    return jnp.einsum("...k,kij->...ij", y, _basis(group.n, group.stretch).astype(y.dtype))


def coordinates(a: Array, group: LinearGroup) -> Array:
    """Global coordinates of a matrix: stretch coordinates, then the angle or rotation vector.

    Args:
      a: matrices of the group, `[..., n, n]`, float.
      group: static.

    Returns:
      Coordinates `[..., group.dimension]`, dtype of `a`; angles in (-pi, pi]. They are smooth but at half turns, where
      the angle has its cut.

    Raises:
      ValueError: if the size is not the group's.

    Example:
      >>> turned = jnp.array([[0.0, -2.0], [2.0, 0.0]])  # sqrt(2) log 2, a quarter turn
      >>> np.asarray(coordinates(turned, R_SO2), float).round(3).tolist()
      [0.98, 1.571]
    """
    x, r = polar_log(a)
    y = stretch_coordinates(x, group)
    return jnp.concatenate([y, rotation_log(r)], axis=-1) if group.rotation else y


def haar_log_density_polar(x: Array) -> Array:
    """Logarithm of the Haar measure's density in polar coordinates, by `dX` of the trace form and normalised `dR`.

    Args:
      x: symmetric logarithms `[..., n, n]`, float.

    Returns:
      Log density `[...]`, zero at X = 0; the same for GL+(n) and its subgroups.

    Raises:
      ValueError: for another shape or dtype.

    Example:
      >>> round(float(haar_log_density_polar(jnp.diag(jnp.array([1.0, -1.0])))), 4)  # log(sinh(2) / 2)
      0.5952
    """
    x = _check_matrices("haar_log_density_polar", x)
    n = x.shape[-1]
    if n == 1:
        return jnp.zeros_like(x[..., 0, 0])
    if n == 2:
        p, q = 0.5 * (x[..., 0, 0] - x[..., 1, 1]), x[..., 0, 1]
        return log_sinhc_of_square(4 * (p * p + q * q))
    values, _ = safe_eigh(x)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    return sum((log_sinhc(values[..., i] - values[..., j]) for i, j in pairs), start=jnp.zeros_like(values[..., 0]))


class IwasawaFactors(NamedTuple):
    """Factors of `A = K D N`.

    Attributes:
      rotation: K, shape `[..., n, n]`.
      log_diagonal: logarithms of the diagonal of D, shape `[..., n]`.
      unipotent: N, unit upper triangular, shape `[..., n, n]`.
    """

    rotation: Array
    log_diagonal: Array
    unipotent: Array


def iwasawa(a: Array) -> IwasawaFactors:
    """Iwasawa factors of matrices of positive determinant, by Gram-Schmidt.

    Args:
      a: matrices `[..., n, n]`, n = 1, 2 or 3, float.

    Returns:
      The factors, dtype of `a`; NaN where the determinant is not positive.

    Raises:
      ValueError: for another shape or dtype.

    Example:
      >>> iwasawa(jnp.array([[2.0, 4.0], [0.0, 0.5]])).unipotent.tolist()
      [[1.0, 2.0], [0.0, 1.0]]
    """
    a = _check_matrices("iwasawa", a)
    n = a.shape[-1]
    # Column by column, A = K T with T upper triangular of positive diagonal; then T = D N.
    columns, rows = [], [[jnp.zeros_like(a[..., 0, 0])] * n for _ in range(n)]
    for j in range(n):
        v = a[..., :, j]
        for i, k in enumerate(columns):
            rows[i][j] = jnp.sum(k * v, axis=-1)
            v = v - rows[i][j][..., None] * k
        rows[j][j] = jnp.sqrt(jnp.sum(v * v, axis=-1))
        columns.append(v / rows[j][j][..., None])
    rotation = jnp.stack(columns, axis=-1)
    valid = jnp.linalg.det(a) > 0
    diagonal = jnp.stack([rows[i][i] for i in range(n)], axis=-1)
    triangular = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    nan = np.asarray(np.nan, a.dtype)
    return IwasawaFactors(
        jnp.where(valid[..., None, None], rotation, nan),
        jnp.where(valid[..., None], jnp.log(diagonal), nan),
        jnp.where(valid[..., None, None], triangular / diagonal[..., :, None], nan),
    )


def iwasawa_product(factors: IwasawaFactors) -> Array:
    """The matrix `K D N` of its Iwasawa factors.

    Args:
      factors: from `iwasawa`; shapes `[..., n, n]`, `[..., n]`, `[..., n, n]`.

    Returns:
      Matrices `[..., n, n]`.

    Example:
      >>> iwasawa_product(iwasawa(jnp.array([[2.0, 4.0], [0.0, 0.5]]))).tolist()
      [[2.0, 4.0], [0.0, 0.5]]
    """
    return (factors.rotation * jnp.exp(factors.log_diagonal)[..., None, :]) @ factors.unipotent


def haar_log_density_iwasawa(log_diagonal: Array) -> Array:
    """Logarithm of the Haar measure's density in Iwasawa coordinates, by dK, d(log D) and dN.

    Args:
      log_diagonal: shape `[..., n]`, float.

    Returns:
      `sum_{i<j} (log d_i - log d_j)`, shape `[...]`.

    Example:
      >>> float(haar_log_density_iwasawa(jnp.array([0.5, -0.5])))
      1.0
    """
    n = log_diagonal.shape[-1]
    return jnp.einsum("...i,i->...", log_diagonal, np.arange(n - 1, -n, -2).astype(log_diagonal.dtype))
