r"""Coordinates made of distances alone: any network on them is invariant under similarities (TinvNN).

Multidimensional scaling turns the distances $D$ of a cloud X, divided by their size c, into points again:

    B = -1/2 J (D / c)^2 J,   J = I - 1 1^T / n,   B = U diag(l) U^T, l descending,   H = U diag(sqrt(l))

H keeps all distances, `|h_i - h_j| = |x_i - x_j| / c`. Law: for similarities `x -> s Q x + t` (s > 0, Q orthogonal) and
permutations P, `H(P s X Q^T + P 1 t^T) == P H(X)` up to the signs of columns and a rotation among columns of equal
eigenvalues, which distances do not tell. What depends on X up to similarities only is a function of H: nothing else is
lost.

This is frame averaging plus scale. With the centre t and the principal axes V of X (`pca_frames`), `B = (X - 1 t^T)
(X - 1 t^T)^T / c^2` and `H = (X - 1 t^T) V / c`: a d x d eigenproblem in place of an n x n one. `similarity_frames`
makes the elements (V, t, c), with axes in descending order; `distance_coordinates` is X pulled back by them, and
`with_invariant_inputs` their `frame_average`. `scaling.classical_mds` is the n x n route, for distances without points.

Signs are a policy. "canonical": each column's third moment is positive (where it vanishes the fifth, and then the
largest entry); one evaluation, and discontinuous where the moment vanishes (`SimilarityFrames.oddness`). "average": all
2^d signs; exact. "random": one uniform choice; exact in distribution. Only the last two are continuous, and none is
where eigenvalues meet (`SimilarityFrames.gap`).

The paper's own rule for signs could not be confirmed; these are this library's. So are chirality (what keeps mirror
images apart) and equivariant outputs in this form.

References: Zhang, Wang, Zhang, Cui, Zhu 2021, arXiv:2112.12345; Torgerson 1952 (classical scaling); Puny et al. 2021,
arXiv:2110.03336 (frames).
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_sqrt
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames.averaging import frame_average
from equivariant_jax.frames.pca import Frames, pca_frames
from equivariant_jax.frames.scaling import check_cloud, odd_signs, pairwise_distances

__all__ = [
    "SimilarityFrames",
    "distance_coordinates",
    "similarity_frames",
    "with_invariant_inputs",
]

Scale = Literal["rms", "max", "none"]
Signs = Literal["canonical", "average", "random"]
_HIGHEST = lax.Precision.HIGHEST
# More columns would need more sign patterns than memory holds.
_LARGEST_DIMENSION = 12


class SimilarityFrames(NamedTuple):
    """Similarities `x -> scale R x + t` that move with the cloud which they were made of; a `FrameSet`.

    Kinds of arrays: "scalar" (does not move), "length" (`[..., *rest]`, scaled: distances), "position" (`[..., *rest,
    d]`, rotated, scaled and shifted), "vector" (rotated and scaled: differences of positions), "direction" (rotated:
    normals), "tensor" (`[..., *rest, d, d]`, rotated on both axes).

    Attributes:
      rotation: R, shape `[..., F, d, d]`; its columns are the principal axes, those of largest variance first.
      translation: t, shape `[..., d]`, the (weighted) mean, in the unit of the points.
      scale: c, shape `[...]`, in the unit of the points; one where all points coincide.
      eigenvalues: of the Gram matrix of the scaled coordinates, descending, shape `[..., d]`.
      gap: smallest difference of neighbouring eigenvalues over their sum, shape `[...]`.
      oddness: absolute third moment of each standardised column, shape `[..., d]`; zero for a column without extent.
    """

    rotation: Array
    translation: Array
    scale: Array
    eigenvalues: Array
    gap: Array
    oddness: Array

    @property
    def weight(self) -> Array:
        """One over the number of elements, shape `[..., F]`."""
        return self._rigid.weight

    @property
    def _rigid(self) -> Frames:
        return Frames(self.rotation, self.translation, self.eigenvalues, self.gap)

    def _size(self, x: Array, axes: int) -> Array:
        """The scale as it multiplies `[..., (F), *rest]`: with ones for all axes but the leading ones."""
        scale = self.scale.astype(x.dtype)
        return scale.reshape(scale.shape + (1,) * (axes - scale.ndim))

    def pull(self, kind: Any, x: Array) -> Array:
        """Moves `[..., *rest]` by the inverse of every element, to `[..., F, *rest]`; dtype of `x`."""
        out = self._rigid.pull(_rigid_kind(kind), x)
        return out / self._size(out, out.ndim) if kind in _SCALED else out

    def push(self, kind: Any, y: Array) -> Array:
        """Moves each `[..., F, *rest]` by its own element; shape and dtype of `y`."""
        return self._rigid.push(_rigid_kind(kind), y * self._size(y, y.ndim) if kind in _SCALED else y)

    def pick(self, key: PRNGKey) -> "SimilarityFrames":
        """Keeps one uniformly drawn element, F = 1, independently for each leading index `[...]`."""
        return self._replace(rotation=self._rigid.pick(key).rotation)


_SCALED = ("length", "vector", "position")
_RIGID_KINDS = {"length": "scalar", "direction": "vector"}


def _rigid_kind(kind: Any) -> Any:
    if kind not in ("scalar", "length", "position", "vector", "direction", "tensor"):
        raise ValueError(
            f'got kind {kind!r}; expected "scalar", "length", "position", "vector", "direction" or "tensor".'
        )
    return _RIGID_KINDS.get(kind, kind)


def similarity_frames(
    x: Array,
    mask: Array | None = None,
    weights: Array | None = None,
    *,
    scale: Scale = "rms",
    signs: Signs = "canonical",
    chirality: bool = False,
    key: PRNGKey | None = None,
    degenerate: Literal["keep", "nan", "random"] = "keep",
    stop_gradient: bool = False,
) -> SimilarityFrames:
    r"""Makes similarities that move with a cloud: principal axes, mean and size; see `distance_coordinates`.

    Args:
      x: points, shape `[..., n, d]`, float, d at most 12. Computed in float32 at least.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      weights: of the points, not negative, shape `[..., n]`, float; default one.
      scale: static; see `distance_coordinates`.
      signs: static; see `distance_coordinates`.
      chirality: static; see `distance_coordinates`.
      key: typed random key, for `signs="random"` and `degenerate="random"`.
      degenerate: static; what to do where neighbouring eigenvalues are equal to rounding, see `pca_frames`.
      stop_gradient: static; see `distance_coordinates`.

    Returns:
      The frames: F = 1 elements, or 2^d (with `chirality` 2^(d - 1)) for `signs="average"`; dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes do not fit, an option is unknown, or a policy has no key.

    Example:
      >>> frames = jax.jit(similarity_frames)(jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [2.0, -1.0]]))
      >>> frames.rotation.shape, frames.translation.tolist(), round(float(frames.scale), 3)
      ((1, 2, 2), [2.0, 0.0], 2.236)
    """
    frames = _wide_frames(x, mask, weights, scale, signs, chirality, key, degenerate, stop_gradient)[0]
    return jax.tree.map(lambda leaf: leaf.astype(x.dtype), frames)


def _wide_frames(
    x: Array,
    mask: Array | None,
    weights: Array | None,
    scale: Scale,
    signs: Signs,
    chirality: bool,
    key: PRNGKey | None,
    degenerate: Literal["keep", "nan", "random"],
    stop_gradient: bool,
) -> tuple[SimilarityFrames, Array]:
    """Frames, and coordinates `[..., F, n, d]` with zeros in padding, in float32 at least."""
    check_cloud(x, mask)
    if scale not in ("rms", "max", "none") or signs not in ("canonical", "average", "random"):
        raise ValueError(
            f'got scale={scale!r}, signs={signs!r}; expected "rms", "max" or "none", and "canonical", "average" or '
            '"random".'
        )
    if key is None and "random" in (signs, degenerate):
        raise ValueError(f"got signs={signs!r}, degenerate={degenerate!r} without a key; give a typed random key.")
    d = x.shape[-1]
    if d > _LARGEST_DIMENSION:
        raise ValueError(f"x: got d={d}; expected at most {_LARGEST_DIMENSION}: there are 2^d signs of the columns.")
    key_signs, key_axes = (None, None) if key is None else jax.random.split(key)
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    one = jnp.ones((), wide.dtype)
    real = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    weight = real.astype(wide.dtype)
    if weights is not None:
        if weights.shape != x.shape[:-1] or not jnp.issubdtype(weights.dtype, jnp.floating):
            raise ValueError(f"weights: got {weights.dtype} {weights.shape}; expected floating {x.shape[:-1]}.")
        weight = jnp.where(real, weights.astype(wide.dtype), jnp.zeros_like(weight))
        real = real & (weight > 0)
    # Centred and scaled before anything is squared; the result does not depend on either, nor does its derivative.
    z, origin, size = _normalized(wide, real)
    made = pca_frames(z, real, weight, group="E", degenerate=degenerate, key=key_axes, stop_gradient=stop_gradient)
    axes = jnp.flip(made.rotation[..., 0, :, :], axis=-1)
    inner = jnp.where(real[..., None], z - made.translation[..., None, :], jnp.zeros_like(z))
    h = jnp.einsum("...nd,...de->...ne", inner, axes, precision=_HIGHEST)
    c = _scale(h, real, weight, scale, size)
    c = lax.stop_gradient(c) if stop_gradient else c
    chosen, oddness = odd_signs(h, weight)
    flips = chosen[..., None, :]
    if signs != "canonical":
        flips = jnp.broadcast_to(_patterns(d, chirality, wide.dtype), (*x.shape[:-2], 2 ** (d - chirality), d))
    if chirality:
        # The last column's sign makes the determinant one.
        hand = jnp.where(jnp.linalg.det(lax.stop_gradient(axes)) < 0, -one, one)
        others = jnp.prod(flips[..., :-1], axis=-1, keepdims=True)
        flips = jnp.concatenate([flips[..., :-1], others * hand[..., None, None]], axis=-1)
    frames = SimilarityFrames(
        axes[..., None, :, :] * flips[..., None, :],
        origin + size[..., None] * made.translation,
        c * size,
        jnp.flip(made.eigenvalues, axis=-1) / jnp.square(c)[..., None],
        made.gap,
        oddness,
    )
    if signs == "random" and key_signs is not None:
        number = jax.random.randint(key_signs, (*x.shape[:-2], 1, 1), 0, flips.shape[-2])
        flips = jnp.take_along_axis(flips, number, axis=-2)
        frames = frames._replace(rotation=axes[..., None, :, :] * flips[..., None, :])
    return frames, h[..., None, :, :] * flips[..., None, :] / c[..., None, None, None]


def _patterns(d: int, chirality: bool, dtype: Any) -> np.ndarray:
    """All signs of columns, `[2^d, d]`; with chirality of the first d - 1 only."""
    free = d - chirality
    rows = np.array(list(itertools.product((1.0, -1.0), repeat=free)), dtype).reshape(2**free, free)
    return np.concatenate([rows, np.ones((2**free, d - free), dtype)], axis=1)


def _normalized(x: Array, real: Array) -> tuple[Array, Array, Array]:
    """Points minus their mean over their largest coordinate, zero in padding; that mean and size, constants."""
    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    clean = jnp.where(real[..., None], x, zero)
    fixed = lax.stop_gradient(clean)
    count = jnp.maximum(jnp.sum(real, axis=-1), 1).astype(x.dtype)
    origin = jnp.sum(fixed, axis=-2) / count[..., None]
    size = jnp.max(jnp.where(real[..., None], jnp.abs(fixed - origin[..., None, :]), zero), axis=(-2, -1))
    size = jnp.where(size > 0, size, one)
    z = (clean - origin[..., None, :]) / size[..., None, None]
    return jnp.where(real[..., None], z, zero), origin, size


def _scale(h: Array, real: Array, weight: Array, scale: Scale, size: Array) -> Array:
    """What h is divided by, `[...]`."""
    one = jnp.ones((), h.dtype)
    if scale == "none":
        return 1 / size
    if scale == "max":
        c = jnp.max(pairwise_distances(h, real), axis=(-2, -1))
    else:
        # The mean square over all ordered pairs is twice the variance.
        total = jnp.sum(weight, axis=-1)
        square = jnp.sum(weight[..., None] * jnp.square(h), axis=(-2, -1))
        c = safe_sqrt(2 * square / jnp.where(total > 0, total, one))
    return jnp.where(c > 0, c, one)


def distance_coordinates(
    x: Array,
    mask: Array | None = None,
    *,
    weights: Array | None = None,
    scale: Scale = "rms",
    signs: Signs = "canonical",
    chirality: bool = False,
    key: PRNGKey | None = None,
    degenerate: Literal["keep", "nan", "random"] = "keep",
    stop_gradient: bool = False,
) -> tuple[Array, SimilarityFrames]:
    r"""Represents points so that no translation, rotation, reflection or scaling shows: `H = (X - 1 t^T) V / c`.

    Law: `H(P s X Q^T + P 1 t^T) == P H(X)`, and `|h_i - h_j| == |x_i - x_j| / c`.

    Args:
      x: points, shape `[..., n, d]`, float, d at most 12. Computed in float32 at least.
      mask: True where a point is real, shape `[..., n]`, bool; default all.
      weights: of the points in mean, axes and moments, not negative, shape `[..., n]`, float; default one. A point of
        weight zero is padding.
      scale: static; c: "rms", the root mean square of the distances of all ordered pairs (a point with itself
        included); "max", the largest distance (n x n numbers in memory); "none", one, for the Euclidean group alone.
      signs: static; "canonical": one choice, by odd moments; "average": all, on an axis in front of the points;
        "random": one, uniform for each leading index.
      chirality: static; whether mirror images differ: only signs for which V is a rotation.
      key: typed random key, for `signs="random"` and `degenerate="random"`.
      degenerate: static; what to do where neighbouring eigenvalues are equal to rounding, see `pca_frames`.
      stop_gradient: static; True treats V, t and c as constants: cheaper, and wrong where something differentiates with
        respect to `x`. Otherwise derivatives are exact but for a bounded `1 / (l_i - l_j)` near equal eigenvalues.

    Returns:
      Coordinates, shape `[..., n, d]`, or `[..., F, n, d]` with F = 2^d (with `chirality` 2^(d - 1)) for
      `signs="average"`, zero in padding, columns by descending variance, dtype of `x`; and the `SimilarityFrames` that
      move features in and outputs back.

    Raises:
      ValueError: if shapes or dtypes do not fit, an option is unknown, or a policy has no key.

    Example:
      >>> coordinates = jax.jit(lambda x: distance_coordinates(x)[0])
      >>> x = jax.random.normal(jax.random.key(0), (5, 2))
      >>> turned = 3 * x @ jnp.array([[0.0, -1.0], [1.0, 0.0]]) + 7
      >>> bool(jnp.allclose(coordinates(x), coordinates(turned), atol=1e-5))
      True
    """
    frames, h = _wide_frames(x, mask, weights, scale, signs, chirality, key, degenerate, stop_gradient)
    h = h if signs == "average" else h[..., 0, :, :]
    return h.astype(x.dtype), jax.tree.map(lambda leaf: leaf.astype(x.dtype), frames)


def with_invariant_inputs(
    apply_fn: Callable[..., PyTree],
    *,
    in_types: tuple[Any, ...] = ("position",),
    out_types: Any = "scalar",
    scale: Scale = "rms",
    signs: Signs = "canonical",
    chirality: bool = False,
    degenerate: Literal["keep", "nan", "random"] = "keep",
    stop_gradient: bool = False,
    vectorized: bool = False,
) -> Callable[..., PyTree]:
    r"""Makes any function of points invariant, or equivariant, under similarities by giving it other inputs.

    Args:
      apply_fn: pure function `(params, *inputs) -> pytree of floating arrays` of one cloud (see `vectorized`), such as
        a Flax module's `apply`. What it commutes with, permutations say, it keeps.
      in_types: static; kind of each input, see `SimilarityFrames`; the first "position" is the cloud.
      out_types: static; kind of the output, or a tree of kinds. "scalar" is invariant; all others move with the cloud.
      scale: static; see `distance_coordinates`.
      signs: static; see `distance_coordinates`. "average" evaluates the function on all signs.
      chirality: static; see `distance_coordinates`. Without it no output can tell a cloud from its mirror image.
      degenerate: static; see `pca_frames`.
      stop_gradient: static; see `distance_coordinates`.
      vectorized: static; True calls the function once with inputs `[..., F, *]`, for networks with statistics of a
        batch, instead of mapping it over leading axes and elements.

    Returns:
      Function `(params, *inputs, mask=None, weights=None, key=None)` of inputs `[..., *]` to outputs `[..., *]`. Of the
      padding in the cloud it makes zeros; a function that needs the mask itself takes it as a further "scalar" input.

    Raises:
      ValueError: if no input is a position, an option is unknown, or (when called) shapes do not fit.

    Example:
      >>> energy = jax.jit(with_invariant_inputs(lambda params, x: jnp.sum(jnp.cos(x @ params)), signs="average"))
      >>> x = jax.random.normal(jax.random.key(0), (5, 2))
      >>> w = jnp.array([1.0, 2.0])
      >>> bool(jnp.allclose(energy(w, x), energy(w, 2 * x[:, ::-1] + 1), atol=1e-5))
      True
    """
    if "position" not in in_types:
        raise ValueError(f'in_types: got {in_types}; expected a "position" among them, the cloud.')
    cloud = in_types.index("position")

    def invariant(
        params: PyTree,
        *inputs: PyTree,
        mask: Array | None = None,
        weights: Array | None = None,
        key: PRNGKey | None = None,
    ) -> PyTree:
        if len(inputs) != len(in_types):
            raise ValueError(f"got {len(inputs)} inputs and in_types {in_types}; expected one kind for each.")
        frames = similarity_frames(
            inputs[cloud], mask, weights, scale=scale, signs=signs, chirality=chirality, key=key,
            degenerate=degenerate, stop_gradient=stop_gradient,
        )  # fmt: skip
        real = jnp.ones(inputs[cloud].shape[:-1], bool) if mask is None else mask

        def masked(real: Array, *moved: PyTree) -> PyTree:
            h = jnp.where(real[..., None], moved[cloud], jnp.zeros((), moved[cloud].dtype))
            return apply_fn(params, *moved[:cloud], h, *moved[cloud + 1 :])

        averaged = frame_average(
            masked, frames, in_types=("scalar", *in_types), out_types=out_types, vectorized=vectorized
        )
        return averaged(real, *inputs)

    return invariant
