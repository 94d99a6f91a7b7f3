r"""Frame averaging: exact invariance and equivariance of any function, by averaging over a few group elements.

A frame F maps an input X to a finite set of group elements that moves with it, `F(rho1(g) X) == g F(X)`. With it

    invariant      <phi>(X) = 1/|F(X)| sum_{g in F(X)} phi(rho1(g)^-1 X)
    equivariant    <phi>(X) = 1/|F(X)| sum_{g in F(X)} rho2(g) phi(rho1(g)^-1 X)

Law: `<phi>(rho1(h) X) == rho2(h) <phi>(X)` for every h in G and every phi. What phi commutes with (a permutation of the
points, say), the average commutes with as well if the frame does not change under it.

`pca_frames` makes frames of point clouds: t is the mean, `C = (X - 1 t^T)^T (X - 1 t^T)`, its eigenvectors in
*ascending* order of the eigenvalues are the columns of R with all signs; F has `2^d` elements for O(d) and E(d), and
the `2^(d-1)` rotations among them for SO(d) and SE(d). The order is a part of the definition: descending gives another
function.

Where two eigenvalues are equal the frame is infinite, and any finite choice is discontinuous. `Frames.gap` reports how
close the spectrum is to that, and a policy says what happens there (`pca_frames`); nothing is added to C elsewhere.

`fa_gnn_apply` is the paper's FA-GNN: between two layers all features are read as vectors, mapped back and averaged over
the elements, and expressed in a new frame, that of the features.

Unlike the official code: frames are differentiable unless that is switched off (a force from an energy needs the
derivative of the rotation); rotations keep whole columns of the eigenvectors; a position gets its centre back; the mean
of FA-GNN's hidden vectors is kept (hidden vectors do not move with a translation, so there is no need to lose it).

References: Puny, Atzmon, Ben-Hamu, Misra, Grover, Smith, Lipman 2021, arXiv:2110.03336, sections 2 and 3; Duval et al.
2023, arXiv:2305.05577 (one random element).
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.groups import AffineElement
from equivariant_jax.core.linalg import safe_eigh
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames.graph_networks import MPNNConfig, mpnn_apply, mpnn_init

__all__ = ["FAGNN", "FrameAveraged", "FrameSet", "Frames", "fa_gnn_apply", "frame_average", "pca_frames"]

Group = Literal["O", "SO", "E", "SE"]
Policy = Literal["keep", "nan", "random"]
_HIGHEST = lax.Precision.HIGHEST


class FrameSet(Protocol):
    """What `frame_average` needs of frames: elements with weights, and their action on arrays of a named kind."""

    @property
    def weight(self) -> Array:
        """What each element counts, shape `[..., F]`; the sum over elements is one."""
        ...

    def pull(self, kind: Any, x: Array) -> Array:
        """Moves `[..., *rest]` by the inverse of every element, to `[..., F, *rest]`."""
        ...

    def push(self, kind: Any, y: Array) -> Array:
        """Moves each `[..., F, *rest]` by its own element; keeps the shape."""
        ...

    def pick(self, key: PRNGKey) -> "FrameSet":
        """Keeps one uniformly drawn element, F = 1, independently for each leading index `[...]`."""
        ...


class Frames(NamedTuple):
    """Rigid motions `x -> R x + t` that move with the cloud which they were made of.

    Kinds of arrays: "scalar" (does not move), "vector" (`[..., *rest, d]`, rotated: velocities, forces, rows of a
    lattice), "position" (rotated and shifted), "tensor" (`[..., *rest, d, d]`, rotated on both axes), or a
    representation of `core.representations`, called with an `AffineElement`.

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
            act = jax.vmap(kind, in_axes=(0, None))
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
            act = kind
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
    turn = jnp.linalg.eigh(mixed + level[..., None, :] * _eye(mixed))[1]
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
        real = jnp.where((w > 0)[..., None], real - t[..., None, :], zero)
    else:
        t = jnp.zeros((*x.shape[:-2], d), wide.dtype)
    c = jnp.einsum("...n,...ni,...nj->...ij", w, real, real, precision=_HIGHEST)
    values, vectors = safe_eigh(c)
    trace = jnp.sum(values, axis=-1)
    step = jnp.min(jnp.diff(values, axis=-1), axis=-1) if d > 1 else trace
    gap = lax.stop_gradient(jnp.where(trace > 0, step / jnp.where(trace > 0, trace, one), zero))
    least = np.asarray(64 * jnp.finfo(wide.dtype).eps if tolerance is None else tolerance, wide.dtype)
    if degenerate == "random" and key is not None:
        vectors = _random_bases(key, lax.stop_gradient(values), vectors, least * lax.stop_gradient(trace))
    elif degenerate == "nan":
        vectors = jnp.where((gap > least)[..., None, None], vectors, jnp.full((), jnp.nan, wide.dtype))
    signs = _signs(d, group in ("SO", "SE"))
    rotation = vectors[..., None, :, :] * signs.astype(wide.dtype).reshape((1,) * (x.ndim - 2) + (-1, 1, d))
    if group in ("SO", "SE"):
        # The last column's sign is that which makes the determinant one; whole columns stay eigenvectors.
        flip = jnp.where(jnp.linalg.det(lax.stop_gradient(rotation)) < 0, -one, one)
        rotation = jnp.concatenate([rotation[..., :-1], rotation[..., -1:] * flip[..., None, None]], axis=-1)
    return Frames(rotation.astype(dtype), t.astype(dtype), values.astype(dtype), gap.astype(dtype))


def _matched(kinds: Any, tree: PyTree, apply: Callable[[Any, Array], Array]) -> PyTree:
    """Applies `apply(kind, leaf)`, where `kinds` is one kind for all leaves or a tree of them above `tree`."""
    if isinstance(kinds, str) or callable(kinds):
        return jax.tree.map(lambda leaf: apply(kinds, leaf), tree)
    return jax.tree.map(lambda kind, part: _matched(kind, part, apply), kinds, tree)


def frame_average(
    function: Callable[..., PyTree],
    frames: FrameSet,
    *,
    in_types: tuple[Any, ...],
    out_types: Any = "scalar",
    reduce: Literal["mean", "sample"] = "mean",
    key: PRNGKey | None = None,
    vectorized: bool = False,
) -> Callable[..., PyTree]:
    r"""Makes a symmetric function of any: `sum_g w_g rho2(g) phi(rho1(g)^-1 X)` over the elements g of the frames.

    Args:
      function: pure function `phi(*inputs) -> pytree of floating arrays`, with no symmetry of its own. It sees one item
        in one frame, without leading axes; it may use random keys and parameters that it closes over.
      frames: from `pca_frames` or `sorted_frames`, of leading shape `[...]`, made of the same inputs.
      in_types: static; the kind of each input (see `Frames` and `SortedFrames`). All leaves of an input that is a
        pytree have its kind. "scalar" inputs are passed on as they are.
      out_types: static; the kind of the output, or a tree of kinds for an output that is a tree.
      reduce: static; "mean" evaluates all elements; "sample" one element drawn uniformly, at the cost of one
        evaluation: unbiased, and symmetric in distribution only.
      key: typed random key, for "sample"; each leading index draws its own element.
      vectorized: static; True calls `function` once with all elements on an axis in front of an item's, `[..., F, *]`,
        instead of mapping it over them: for functions with statistics of a batch.

    Returns:
      Function of inputs `[..., *]` (leaves; leading axes as those of the frames) to outputs `[..., *]`.

    Raises:
      ValueError: if an option or a kind is unknown, or numbers or shapes of inputs do not fit.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (5, 3))
      >>> turn = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
      >>> def norms(x):
      ...     return frame_average(lambda x: jnp.tanh(x @ x[0]), pca_frames(x), in_types=("position",))(x)
      >>> bool(jnp.allclose(norms(x), norms(x @ turn.T + 1), atol=1e-5))
      True
    """
    if reduce not in ("mean", "sample") or (reduce == "sample" and key is None):
        raise ValueError(f'reduce: got {reduce!r} with key={key}; expected "mean", or "sample" with a random key.')
    chosen = frames.pick(key) if reduce == "sample" and key is not None else frames
    weight = chosen.weight
    lead = weight.ndim - 1

    def averaged(*inputs: PyTree) -> PyTree:
        if len(inputs) != len(in_types):
            raise ValueError(
                f"got {len(inputs)} inputs and {len(in_types)} in_types; expected one kind for each input."
            )

        def pulled(kind: Any, x: PyTree) -> PyTree:
            if kind == "scalar" and not vectorized:
                return x
            return _matched(kind, x, lambda k, leaf: chosen.pull(k, jnp.asarray(leaf)))

        moved = [pulled(kind, x) for kind, x in zip(in_types, inputs, strict=True)]
        run = function
        if not vectorized:
            run = jax.vmap(
                run, in_axes=tuple(None if kind == "scalar" else 0 for kind in in_types), axis_size=weight.shape[-1]
            )
            for _ in range(lead):
                run = jax.vmap(run)
        return _matched(out_types, run(*moved), reduced)

    def reduced(kind: Any, y: Array) -> Array:
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(f"function returned {y.dtype}; expected floating point, which can be averaged.")
        if y.shape[: lead + 1] != weight.shape:
            raise ValueError(
                f"function returned shape {y.shape}; expected {weight.shape} in front, one for each element."
            )
        y = chosen.push(kind, y)
        wide = y if y.dtype == jnp.float64 else y.astype(jnp.float32)
        w = weight.astype(wide.dtype).reshape(weight.shape + (1,) * (y.ndim - lead - 1))
        return jnp.sum(wide * w, axis=lead).astype(y.dtype)

    return averaged


def fa_gnn_apply(
    params: PyTree,
    positions: Array,
    velocities: Array,
    charges: Array,
    config: MPNNConfig,
    *,
    mask: Array | None = None,
    key: PRNGKey | None = None,
    group: Literal["E", "SE"] = "E",
    stop_gradient: bool = True,
    keep_mean: bool = True,
    precision=_HIGHEST,
) -> Array:
    r"""Predicts positions by message passing in frames, with new frames between the layers (FA-GNN).

    Law: `f(X R^T + 1 t^T, V R^T) == f(X, V) R^T + 1 t^T`, and permuted nodes give permuted positions.

    Args:
      params: from `mpnn_init` with six input channels, two edge features and three outputs.
      positions: shape `[..., n, 3]`, dtype of `params`, any unit of length.
      velocities: shape `[..., n, 3]`.
      charges: shape `[..., n]`.
      config: static; `width` is a multiple of 3.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      key: draws one element of each layer's frame; None averages over all.
      group: static; "E" or "SE" (sees the hand of the coordinate system).
      stop_gradient: static; frames as constants, as published. The gradient is then biased: frames of hidden features
        depend on the parameters, and all on the positions.
      keep_mean: static; False drops the mean of the hidden vectors when they go to a new frame, as published.
      precision: static; of the network's products.

    Returns:
      Positions, shape `[..., n, 3]`, zero in padding.

    Raises:
      ValueError: if shapes or sizes do not fit.

    Example:
      >>> config = MPNNConfig(width=12, depth=2)
      >>> x = jax.random.normal(jax.random.key(1), (5, 3))
      >>> fa_gnn_apply(mpnn_init(jax.random.key(0), config), x, x, jnp.ones(5), config).shape
      (5, 3)
    """
    shape, sizes = positions.shape, (config.channels_in, config.edge_features, config.channels_out)
    if len(shape) < 2 or shape[-1] != 3 or velocities.shape != shape or charges.shape != shape[:-1]:
        raise ValueError(
            f"got positions {shape}, velocities {velocities.shape}, charges {charges.shape}; expected [..., n, 3] "
            "twice and [..., n]."
        )
    if sizes != (6, 2, 3) or config.width % 3 or group not in ("E", "SE"):
        raise ValueError(
            f"got {config} and group={group!r}; expected 6 input channels, 2 edge features, 3 outputs, a width that is "
            'a multiple of 3, and "E" or "SE".'
        )
    real = jnp.ones(shape[:-1], bool) if mask is None else mask
    x, v, q = (
        a if mask is None else jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, jnp.zeros_like(a))
        for a in (positions, velocities, charges)
    )
    square = jnp.sum(jnp.square(x[..., :, None, :] - x[..., None, :, :]), axis=-1)
    edges = jnp.stack([q[..., :, None] * q[..., None, :], square], axis=-1)[..., None, :, :, :]
    keys = None if key is None else jax.random.split(key, config.depth)
    frames, vectors = [], config.width // 3

    def reframed(layer: int, points: Array, real: Array) -> Frames:
        made = pca_frames(points, real, group=group, stop_gradient=stop_gradient)
        frames.append(made if keys is None else made.pick(keys[layer]))
        return frames[-1]

    def between(layer: int, h: Array) -> Array:
        # Hidden features [..., F, n, width] are n * width / 3 vectors, one set for each element of their own frame.
        flat = jnp.mean(frames[-1].push("vector", h.reshape(*h.shape[:-2], -1, 3)), axis=-3)
        made = reframed(layer, flat, jnp.repeat(real, vectors, axis=-1))
        return made.pull("vector" if keep_mean else "position", flat).reshape(h.shape)

    first = reframed(0, x, real)
    h = jnp.concatenate([first.pull("position", x), first.pull("vector", v)], axis=-1)
    seen = jnp.broadcast_to(real[..., None, :], h.shape[:-1])
    out = mpnn_apply(params, h, edges, config, mask=seen, between=between, precision=precision)
    out = jnp.mean(frames[-1].push("vector", out), axis=-3) + first.translation[..., None, :]
    return jnp.where(real[..., None], out, jnp.zeros_like(out))


class FrameAveraged(nn.Module):
    """Linen module: the frame average of any module over PCA frames of its first input.

    Attributes:
      module: called as `module(*inputs)` with arrays `[..., F, *]`; it must accept leading axes.
      in_types: kinds of the inputs; the first is "position".
      out_types: kind of the output, or a tree of kinds.
      group: "E", "SE", "O" or "SO".
      stop_gradient: whether frames are constants.
    """

    module: nn.Module
    in_types: tuple[Any, ...] = ("position",)
    out_types: Any = "scalar"
    group: Group = "E"
    stop_gradient: bool = False

    @nn.compact
    def __call__(self, *inputs: Array, mask: Array | None = None, key: PRNGKey | None = None) -> PyTree:
        """Averages the module's output.

        Args:
          *inputs: the first holds positions, shape `[..., n, d]`.
          mask: True where a point is real, shape `[..., n]`.
          key: draws one element for each cloud instead of averaging over all; None averages.

        Returns:
          Outputs, leaves of shape `[..., *]`.
        """
        frames = pca_frames(inputs[0], mask, group=self.group, stop_gradient=self.stop_gradient)
        average = frame_average(
            self.module, frames, in_types=self.in_types, out_types=self.out_types,
            reduce="mean" if key is None else "sample", key=key, vectorized=True,
        )  # fmt: skip
        return average(*inputs)


class FAGNN(nn.Module):
    """Linen module over `fa_gnn_apply`.

    Attributes:
      config: static description.
      group: "E" or "SE".
    """

    config: MPNNConfig = MPNNConfig()
    group: Literal["E", "SE"] = "E"

    @nn.compact
    def __call__(self, positions: Array, velocities: Array, charges: Array, *, key: PRNGKey | None = None) -> Array:
        """Predicts positions `[..., n, 3]` from positions and velocities `[..., n, 3]` and charges `[..., n]`."""
        params = self.param("network", lambda key: mpnn_init(key, self.config, dtype=positions.dtype))
        return fa_gnn_apply(params, positions, velocities, charges, self.config, key=key, group=self.group)
