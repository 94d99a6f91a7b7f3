r"""Frames of point clouds for O(d), SO(d), E(d) and SE(d), by principal component analysis.

t is the mean and `C = (X - 1 t^T)^T (X - 1 t^T)`; its eigenvectors in *ascending* order of the eigenvalues are the
columns of R with all signs. F has `2^d` elements for O(d) and E(d), and the `2^(d-1)` rotations among them for SO(d)
and SE(d). The order is a part of the definition: descending gives another function.

Law: `F(X Q^T + 1 s^T) == {(Q R, Q t + s)}` over the (R, t) of F(X), as sets.

Where two eigenvalues are equal the frame is infinite, and any finite choice is discontinuous. `Frames.gap` reports how
close the spectrum is to that, and a policy says what happens there (`pca_frames`); nothing is added to C elsewhere.

Unlike the official code: frames are differentiable unless that is switched off (a force from an energy needs the
derivative of the rotation), and rotations keep whole columns of the eigenvectors.

Reference: Puny, Atzmon, Ben-Hamu, Misra, Grover, Smith, Lipman 2021, arXiv:2110.03336, section 3.1.
"""

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.groups import AffineElement
from equivariant_jax.core.linalg import safe_eigh
from equivariant_jax.core.typing import Array, PRNGKey

__all__ = ["Frames", "pca_frames"]

Group = Literal["O", "SO", "E", "SE"]
Policy = Literal["keep", "nan", "random"]
_HIGHEST = lax.Precision.HIGHEST


class Frames(NamedTuple):
    """Rigid motions `x -> R x + t` that move with the cloud which they were made of.

    Kinds of arrays: "scalar" (does not move), "vector" (`[..., *rest, d]`, rotated: velocities, forces, the lattice of
    a periodic cell with its vectors in rows), "position" (rotated and shifted), "tensor" (`[..., *rest, d, d]`, rotated
    on both axes), or a representation of `core.representations`, called with an `AffineElement`.

    Attributes:
      rotation: R, shape `[..., F, d, d]`.
      translation: t, shape `[..., d]`, in the unit of the points; zero for O and SO.
      eigenvalues: of C, ascending, shape `[..., d]`, in the squared unit of the points.
      gap: smallest difference of neighbouring eigenvalues over their sum, shape `[...]`; zero for a frame that is not
        defined. The error of a frame is the rounding of the points over this number.
    """

    rotation: Array
    translation: Array
    eigenvalues: Array
    gap: Array

    @property
    def weight(self) -> Array:
        """One over the number of elements, shape `[..., F]`."""
        shape = self.rotation.shape[:-2]
        return jnp.full(shape, 1 / shape[-1], self.rotation.dtype)

    def _rows(self, kind: Any, x: Array, *, lead: int) -> tuple[Array, tuple[int, ...]]:
        """Flattens what stands between the leading axes and the components to one axis of rows."""
        d, batch = self.rotation.shape[-1], self.rotation.shape[:lead]
        last = 2 if kind == "tensor" else 1
        if x.shape[:lead] != batch or x.ndim < lead + last or x.shape[-last:] != (d,) * last:
            expected = ", ".join(map(str, (*batch, "...", *(d,) * last)))
            raise ValueError(f"got {kind} of shape {x.shape} for frames {self.rotation.shape}; expected [{expected}].")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'got {kind} of dtype {x.dtype}; expected floating point, or the kind "scalar".')
        return x.reshape(*batch, -1, *x.shape[x.ndim - last :]), x.shape[lead:]

    def _affine(self, *, inverse: bool) -> AffineElement:
        r, shift = self.rotation, self.translation[..., None, :]
        shift = jnp.broadcast_to(shift, r.shape[:-1])
        if not inverse:
            return AffineElement(r, shift)
        back = jnp.swapaxes(r, -1, -2)
        return AffineElement(back, -jnp.einsum("...ij,...j->...i", back, shift, precision=_HIGHEST))

    def pull(self, kind: Any, x: Array) -> Array:
        """Moves `[..., *rest]` by the inverse of every element, to `[..., F, *rest]`; dtype of `x`."""
        batch, f = self.rotation.shape[:-3], self.rotation.shape[-3]
        if kind == "scalar":
            return jnp.broadcast_to(jnp.expand_dims(x, len(batch)), (*batch, f, *x.shape[len(batch) :]))
        if callable(kind):
            act: Any = jax.vmap(kind, in_axes=(0, None))
            for _ in batch:
                act = jax.vmap(act)
            return act(self._affine(inverse=True), x)
        rows, rest = self._rows(_known(kind), x, lead=len(batch))
        r = self.rotation.astype(x.dtype)
        if kind == "tensor":
            out = jnp.einsum("...fik,...mij,...fjl->...fmkl", r, rows, r, precision=_HIGHEST)
        else:
            if kind == "position":
                # Subtracted before the product: far from the origin the other order loses digits.
                rows = rows - self.translation[..., None, :].astype(x.dtype)
            out = jnp.einsum("...md,...fde->...fme", rows, r, precision=_HIGHEST)
        return out.reshape(*batch, f, *rest)

    def push(self, kind: Any, y: Array) -> Array:
        """Moves each `[..., F, *rest]` by its own element; shape and dtype of `y`."""
        if kind == "scalar":
            return y
        if callable(kind):
            act: Any = kind
            for _ in self.rotation.shape[:-2]:
                act = jax.vmap(act)
            return act(self._affine(inverse=False), y)
        rows, _ = self._rows(_known(kind), y, lead=self.rotation.ndim - 2)
        r = self.rotation.astype(y.dtype)
        if kind == "tensor":
            return jnp.einsum("...ik,...mkl,...jl->...mij", r, rows, r, precision=_HIGHEST).reshape(y.shape)
        out = jnp.einsum("...md,...ed->...me", rows, r, precision=_HIGHEST)
        if kind == "position":
            out = out + self.translation[..., None, None, :].astype(y.dtype)
        return out.reshape(y.shape)

    def pick(self, key: PRNGKey) -> "Frames":
        """Keeps one uniformly drawn element, F = 1, independently for each leading index `[...]`."""
        batch, f = self.rotation.shape[:-3], self.rotation.shape[-3]
        index = jax.random.randint(key, (*batch, 1, 1, 1), 0, f)
        return self._replace(rotation=jnp.take_along_axis(self.rotation, index, axis=-3))


def _known(kind: Any) -> str:
    if kind not in ("vector", "position", "tensor"):
        raise ValueError(
            f'got kind {kind!r}; expected "scalar", "vector", "position", "tensor", or a representation of '
            "equivariant_jax.core.representations."
        )
    return kind


def _signs(d: int, special: bool) -> np.ndarray:
    """All signs of the columns, `[2^d, d]`; of the first d - 1 with ones behind them for `special`."""
    free = d - 1 if special else d
    rows = np.array(list(itertools.product((1.0, -1.0), repeat=free))).reshape(2**free, free)
    return np.concatenate([rows, np.ones((2**free, d - free))], axis=1)


def _random_bases(key: PRNGKey, values: Array, vectors: Array, near: Array) -> Array:
    """Turns eigenvectors of almost equal eigenvalues by a uniform rotation among themselves.

    The eigenvectors of a Gaussian symmetric matrix are uniform in any basis: the law of the frame moves with the cloud
    although the basis that the eigensolver returned does not.
    """
    d = values.shape[-1]
    noise = jax.random.normal(key, (*values.shape, d), values.dtype)
    noise = noise + jnp.swapaxes(noise, -1, -2)
    # Eigenvalues form a cluster where each is near to the one before it.
    steps = (jnp.diff(values, axis=-1) > near[..., None]).astype(values.dtype)
    cluster = jnp.cumsum(jnp.concatenate([jnp.zeros_like(values[..., :1]), steps], axis=-1), axis=-1)
    same = cluster[..., :, None] == cluster[..., None, :]
    mixed = jnp.where(same, noise, jnp.zeros((), values.dtype))
    # Far larger than any noise: clusters stay in order.
    level = jnp.asarray(100.0 * d, values.dtype) * cluster
    turn = safe_eigh(mixed + level[..., None, :] * _eye(mixed))[1]
    return jnp.matmul(vectors, lax.stop_gradient(turn), precision=_HIGHEST)


def _eye(a: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)


def _point_weights(x: Array, mask: Array | None, weights: Array | None) -> Array:
    """Weight of each point, zero in padding, `[..., n]`."""
    rows = x.shape[:-1]
    for name, value in (("mask", mask), ("weights", weights)):
        if value is not None and value.shape != rows:
            raise ValueError(f"{name}: got shape {value.shape} for points {x.shape}; expected {rows}.")
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(f"mask: got dtype {mask.dtype}; expected bool, True where a point is real.")
    if weights is not None and not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights: got dtype {weights.dtype}; expected floating point, not negative.")
    w = jnp.ones(rows, x.dtype) if weights is None else weights.astype(x.dtype)
    return w if mask is None else jnp.where(mask, w, jnp.zeros_like(w))


def pca_frames(
    x: Array,
    mask: Array | None = None,
    weights: Array | None = None,
    *,
    group: Group = "E",
    key: PRNGKey | None = None,
    degenerate: Policy = "keep",
    tolerance: float | None = None,
    stop_gradient: bool = False,
) -> Frames:
    r"""Makes frames of point clouds by principal component analysis, `C = sum_i w_i (x_i - t) (x_i - t)^T`.

    Law: `pca_frames(x @ Q.T + s)` is the set `{(Q R, Q t + s)}` of the elements (R, t) of `pca_frames(x)`.

    Args:
      x: points, shape `[..., n, d]`, float. C is made in float32 at least.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      weights: of the points, not negative, shape `[..., n]`, float; default one. They must not depend on the pose.
      group: static; "E" (all orthogonal matrices, and the mean as translation), "SE" (rotations), "O" and "SO" (without
        a translation: C is then about the origin).
      key: typed random key, for `degenerate="random"`.
      degenerate: static; what to do where neighbouring eigenvalues differ by less than `tolerance` of their sum.
        "keep": take the eigenvectors that the solver returns; the law fails there. "nan": make the frame NaN, so that
        the failure cannot be missed. "random": turn these eigenvectors by a uniform rotation among themselves, a
        uniform element of the infinite frame: the law holds in distribution, and an average over keys is invariant.
      tolerance: static; see `degenerate`; default 64 epsilon.
      stop_gradient: static; True treats frames as constants. Cheaper, and right where nothing differentiates with
        respect to `x`; wrong for forces and for frames of features. Otherwise the derivative of an eigenvector has
        `1 / (l_i - l_j)` replaced by a bounded function (`core.linalg.safe_eigh`).

    Returns:
      The frames, `[..., F, d, d]`, F = 2^d for "E" and "O", 2^(d-1) for "SE" and "SO"; dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit, an option is unknown, or "random" has no key.

    Example:
      >>> x = jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
      >>> frames = pca_frames(x)
      >>> frames.rotation.shape, frames.translation.tolist(), round(float(frames.gap), 3)
      ((4, 2, 2), [2.0, 0.0], 0.6)
    """
    if x.ndim < 2 or 0 in x.shape[-2:] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x: got {x.dtype} of shape {x.shape}; expected floating points [..., n, d], n and d positive."
        )
    if group not in ("O", "SO", "E", "SE"):
        raise ValueError(f'group: got {group!r}; expected "O", "SO", "E" or "SE".')
    if degenerate not in ("keep", "nan", "random") or (degenerate == "random" and key is None):
        raise ValueError(
            f'degenerate: got {degenerate!r} with key={key}; expected "keep", "nan", or "random" with a random key.'
        )
    dtype, d = x.dtype, x.shape[-1]
    wide = x if dtype == jnp.float64 else x.astype(jnp.float32)
    wide = lax.stop_gradient(wide) if stop_gradient else wide
    w = _point_weights(wide, mask, weights)
    zero, one = jnp.zeros((), wide.dtype), jnp.ones((), wide.dtype)
    real = jnp.where((w > 0)[..., None], wide, zero)
    if group in ("E", "SE"):
        total = jnp.sum(w, axis=-1, keepdims=True)
        t = jnp.sum(w[..., None] * real, axis=-2) / jnp.where(total > 0, total, one)
        # What padding becomes has weight zero.
        real = real - t[..., None, :]
    else:
        t = jnp.zeros((*x.shape[:-2], d), wide.dtype)
    c = jnp.einsum("...n,...ni,...nj->...ij", w, real, real, precision=_HIGHEST)
    values, vectors = safe_eigh(c)
    trace = jnp.sum(values, axis=-1)
    step = jnp.min(jnp.diff(values, axis=-1), axis=-1) if d > 1 else trace
    gap = lax.stop_gradient(jnp.where(trace > 0, step / jnp.where(trace > 0, trace, one), zero))
    least = np.asarray(64 * jnp.finfo(wide.dtype).eps if tolerance is None else tolerance, wide.dtype)
    if degenerate == "random" and key is not None:
        vectors = _random_bases(key, lax.stop_gradient(values), vectors, lax.stop_gradient(trace) * least)
    elif degenerate == "nan":
        vectors = jnp.where((gap > least)[..., None, None], vectors, jnp.full((), jnp.nan, wide.dtype))
    signs = _signs(d, group in ("SO", "SE"))
    rotation = vectors[..., None, :, :] * signs.astype(wide.dtype).reshape((1,) * (x.ndim - 2) + (-1, 1, d))
    if group in ("SO", "SE"):
        # The last column's sign is that which makes the determinant one; whole columns stay eigenvectors.
        flip = jnp.where(jnp.linalg.det(lax.stop_gradient(rotation)) < 0, -one, one)
        rotation = jnp.concatenate([rotation[..., :-1], rotation[..., -1:] * flip[..., None, None]], axis=-1)
    return Frames(rotation.astype(dtype), t.astype(dtype), values.astype(dtype), gap.astype(dtype))
