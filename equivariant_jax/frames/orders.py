r"""Sorted frames: permutations that put a set, or a graph's nodes, into the order of keys that move with them.

The frame of keys S is the set of all permutations that sort the rows of S lexicographically,

    F(S) = {g in S_n : S[g[0]] <= S[g[1]] <= ...},        F(S permuted by h) = h F(S),

in the convention of `core.groups.Symmetric`: g moves entry i to place g[i], and `rho(g)^-1 x = x[g]`. It has
`prod_c |c|!` elements, c the classes of equal rows. Three modes:

* exact: all elements (as many as a static number allows), the law holds to rounding;
* sampled: one uniform element, the law holds in distribution;
* averaged: the mean over several uniform elements, the same with a smaller variance.

For graphs the keys are the diagonals of the projectors on the eigenspaces of `L = diag(A 1) - A`, in ascending order of
the eigenvalues (the squares of the paper's columns, which sort alike and have no square root's noise at zero).

Numbers that rounding made different must be equal, and the others not: values are put into one class where they differ
by less than a tolerance, and `SortedFrames` reports the largest difference that was ignored and the smallest that was
not. The official code takes eigenvalues as equal only if all bits are, and rounds keys to two decimals, which splits
equal ones at the edge of a decimal: its frame changes under relabelling.

Reference: Puny et al. 2021, arXiv:2110.03336, section 3.2.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey

__all__ = ["GraphKeys", "SortedFrames", "laplacian_frames", "laplacian_keys", "sorted_frames"]

Mode = Literal["exact", "sample", "auto"]
_AXES = {"node": 1, "pair": 2}


class SortedFrames(NamedTuple):
    """Permutations that sort keys; an element moves entry i to place `permutation[i]`.

    Kinds of arrays: "scalar" (does not move), "node" (`[..., n, *rest]`), "pair" (`[..., n, n, *rest]`, such as an
    adjacency matrix), or a representation of `core.representations`, called with a permutation.

    Attributes:
      permutation: shape `[..., F, n]`, int32; real entries before padding.
      weight: of each element, shape `[..., F]`, float; zero for places that are not used, NaN if the frame has more
        than F elements and all were asked for.
      log_size: natural logarithm of the frame's number of elements, shape `[...]`, float.
      complete: True where all elements are here, shape `[...]`, bool; False: the law holds in distribution only.
      gap: smallest difference that separated two rows, relative to the largest entry of its column, shape `[...]`;
        infinite where nothing was separated.
      noise: largest relative difference that was ignored, shape `[...]`.
    """

    permutation: Array
    weight: Array
    log_size: Array
    complete: Array
    gap: Array
    noise: Array

    def _order(self, kind: Any, shape: tuple[int, ...], lead: int) -> int:
        """Number of node axes of a kind; checks a shape with `lead` leading axes."""
        if kind not in _AXES:
            raise ValueError(
                f'got kind {kind!r}; expected "scalar", "node", "pair", or a representation of '
                "equivariant_jax.core.representations."
            )
        n, number = self.permutation.shape[-1], _AXES[kind]
        expected = (*self.permutation.shape[:lead], *(n,) * number)
        if shape[: lead + number] != expected:
            raise ValueError(
                f"got {kind} of shape {shape} for frames {self.permutation.shape}; expected "
                f"[{', '.join(map(str, expected))}, ...]."
            )
        return number

    def pull(self, kind: Any, x: Array) -> Array:
        """Moves `[..., *rest]` by the inverse of every element, `x[g]`, to `[..., F, *rest]`; dtype of `x`."""
        lead, f = self.permutation.ndim - 2, self.permutation.shape[-2]
        copies = jnp.broadcast_to(jnp.expand_dims(x, lead), (*x.shape[:lead], f, *x.shape[lead:]))
        if kind == "scalar":
            return copies
        if callable(kind):
            return _mapped(kind, lead + 1)(jnp.argsort(self.permutation, axis=-1), copies)
        number = self._order(kind, x.shape, lead)
        return _mapped(lambda g, a: _take(a, g, number), lead + 1)(self.permutation, copies)

    def push(self, kind: Any, y: Array) -> Array:
        """Moves each `[..., F, *rest]` by its own element; shape and dtype of `y`."""
        if kind == "scalar":
            return y
        lead = self.permutation.ndim - 1
        if callable(kind):
            return _mapped(kind, lead)(self.permutation, y)
        number = self._order(kind, y.shape, lead)
        return _mapped(lambda g, a: _take(a, g, number), lead)(jnp.argsort(self.permutation, axis=-1), y)

    def pick(self, key: PRNGKey) -> "SortedFrames":
        """Keeps one element, F = 1, drawn with its weight, independently for each leading index `[...]`."""
        logits = jnp.where(self.weight > 0, jnp.zeros_like(self.weight), jnp.full_like(self.weight, -jnp.inf))
        index = jax.random.categorical(key, logits, axis=-1)[..., None]
        permutation = jnp.take_along_axis(self.permutation, index[..., None], axis=-2)
        total = jnp.sum(self.weight, axis=-1, keepdims=True)
        return self._replace(permutation=permutation, weight=total, complete=self.complete & (self.log_size == 0))


def _mapped(function: Any, times: int) -> Any:
    for _ in range(times):
        function = jax.vmap(function)
    return function


def _take(x: Array, order: Array, number: int) -> Array:
    for axis in range(number):
        x = jnp.take(x, order, axis=axis)
    return x


def _default_tolerance(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.5


def _codes(column: Array, real: Array, tolerance: np.ndarray) -> tuple[Array, Array, Array]:
    """Classes of almost equal numbers of one column, `[n]` int32 ascending; smallest gap between, largest within."""
    inf, zero = jnp.full((), jnp.inf, column.dtype), jnp.zeros((), column.dtype)
    order = jnp.argsort(jnp.where(real, column, inf))
    ordered = column[order]
    pair = real[order][1:] & real[order][:-1]
    scale = jnp.max(jnp.where(real, jnp.abs(column), zero))
    step = jnp.where(pair, ordered[1:] - ordered[:-1], zero) / jnp.where(scale > 0, scale, jnp.ones_like(scale))
    separate = step > tolerance
    code = jnp.concatenate([jnp.zeros_like(order[:1]), jnp.cumsum(separate)]).astype(jnp.int32)
    gap = jnp.min(jnp.where(separate, step, inf), initial=jnp.inf)
    noise = jnp.max(jnp.where(separate, zero, step), initial=0.0)
    return jnp.zeros_like(code).at[order].set(code, unique_indices=True), gap, noise


def _dense_rank(code: Array) -> Array:
    """Replaces integers by the number of smaller distinct ones, `[n]` int32."""
    order = jnp.argsort(code)
    new = jnp.concatenate([jnp.zeros((1,), jnp.int32), (jnp.diff(code[order]) > 0).astype(jnp.int32)])
    return jnp.zeros_like(new).at[order].set(jnp.cumsum(new).astype(jnp.int32), unique_indices=True)


def _classes(keys: Array, real: Array, tolerance: np.ndarray) -> tuple[Array, Array, Array]:
    """Lexicographic rank of the rows of `[n, m]`, equal for equal rows, `[n]`; gap and noise."""
    n = keys.shape[0]
    codes, gap, noise = jax.vmap(_codes, in_axes=(1, None, None))(keys, real, tolerance)

    def refine(rank: Array, code: Array) -> tuple[Array, None]:
        return _dense_rank(rank * n + code), None

    # Padding comes last, each row of it in a class of its own: it adds nothing to the frame.
    start = jnp.where(real, 0, 1 + jnp.cumsum(~real)).astype(jnp.int32)
    # The zeros make the carry vary over devices where the keys do, as shard_map asks.
    rank, _ = lax.scan(refine, _dense_rank(start) + jnp.zeros_like(codes[0]), codes)
    return rank, jnp.min(gap), jnp.max(noise)


def _arrangement(order: Array, digit: Array) -> Array:
    """Fisher-Yates within classes: place p takes what stands `digit[p]` places behind it, `[n]`."""

    def swap(row: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        p, q = step
        a, b = row[p], row[q]
        return row.at[p].set(b).at[q].set(a), None

    places = jnp.arange(order.shape[0], dtype=jnp.int32)
    return lax.scan(swap, order + jnp.zeros_like(digit), (places, places + digit))[0]


def _digits(choices: Array, number: Array) -> tuple[Array, Array]:
    """Digits of a number in the mixed radix `choices`, `[n]`, and what is left of it."""

    def divide(rest: Array, radix: Array) -> tuple[Array, Array]:
        return rest // radix, rest % radix

    rest, digits = lax.scan(divide, number + jnp.zeros_like(choices[0]), choices)
    return digits, rest


def _elements(
    rank: Array, real: Array, key: PRNGKey | None, num: int, mode: Mode, dtype: Any
) -> tuple[Array, Array, Array, Array]:
    n = rank.shape[0]
    order = jnp.argsort(rank).astype(jnp.int32)
    ordered = rank[order]
    # How many of its class stand at a place or behind it: the choices that Fisher-Yates has there.
    later = (ordered[None, :] == ordered[:, None]) & (np.arange(n)[None, :] >= np.arange(n)[:, None])
    choices = jnp.sum(later, axis=1).astype(jnp.int32)
    log_size = jnp.sum(jnp.log(choices.astype(dtype)))
    numbers = jnp.arange(num, dtype=jnp.int32)
    digits, rest = jax.vmap(_digits, in_axes=(None, 0))(choices, numbers)
    used = rest == 0
    # The frame fits if the number behind the last place is not an element any more.
    complete = _digits(choices, jnp.asarray(num, jnp.int32))[1] > 0
    weight = used.astype(dtype) / jnp.sum(used).astype(dtype)
    if mode == "exact":
        weight = jnp.where(complete, weight, jnp.full((), jnp.nan, dtype))
    elif key is not None:
        drawn = jax.random.randint(key, (num, n), 0, jnp.broadcast_to(choices[None, :], (num, n)))
        some = jnp.full((num,), 1 / num, dtype)
        if mode == "sample":
            digits, weight, complete = drawn, some, log_size == 0
        else:
            digits, weight = jnp.where(complete, digits, drawn), jnp.where(complete, weight, some)
    permutation = jax.vmap(_arrangement, in_axes=(None, 0))(order, digits)
    return permutation, weight, log_size, complete


def sorted_frames(
    keys: Array,
    mask: Array | None = None,
    *,
    num: int = 1,
    mode: Mode = "exact",
    key: PRNGKey | None = None,
    tolerance: float | None = None,
) -> SortedFrames:
    """Makes the frame of all permutations that sort the rows of `keys`, or a part of it.

    Nothing is differentiated: permutations do not change with small changes of the keys.

    Args:
      keys: one row for each entry, shape `[..., n, m]`, float: features that the permutation moves, such as the
        elements of a set themselves, or `laplacian_keys(...).values`.
      mask: True where an entry is real, shape `[..., n]`, bool; default all. Padding sorts last, in its order.
      num: static; number F of elements that there is room for.
      mode: static; "exact": all elements, weights are NaN where there are more than `num` (see `log_size`); "sample":
        `num` uniform elements, with repetition; "auto": exact where they fit, else sampled.
      key: typed random key, for "sample" and "auto".
      tolerance: static; differences up to this part of a column's largest entry are ignored; default square root of
        epsilon. Look at `gap` and `noise` of the result: the tolerance should stand far from both.

    Returns:
      The frames, permutations `[..., num, n]`.

    Raises:
      ValueError: if shapes or options do not fit.

    Example:
      >>> frames = sorted_frames(jnp.array([[2.0], [1.0], [2.0]]), num=4)
      >>> frames.permutation[frames.weight > 0].tolist(), round(float(jnp.exp(frames.log_size)))
      ([[1, 0, 2], [1, 2, 0]], 2)
    """
    if keys.ndim < 2 or 0 in keys.shape[-2:] or not jnp.issubdtype(keys.dtype, jnp.floating):
        raise ValueError(f"keys: got {keys.dtype} of shape {keys.shape}; expected floating [..., n, m], not empty.")
    if mask is not None and (mask.shape != keys.shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}; expected bool {keys.shape[:-1]}.")
    if mode not in ("exact", "sample", "auto") or (mode != "exact" and key is None) or num < 1:
        raise ValueError(
            f'got mode={mode!r}, key={key}, num={num}; expected "exact", or "sample" or "auto" with a random key, and '
            "num of at least 1."
        )
    wide = lax.stop_gradient(keys if keys.dtype == jnp.float64 else keys.astype(jnp.float32))
    least = np.asarray(_default_tolerance(keys.dtype) if tolerance is None else tolerance, wide.dtype)
    real = jnp.ones(keys.shape[:-1], bool) if mask is None else mask

    def one(rows: Array, real: Array, key: PRNGKey | None) -> SortedFrames:
        rank, gap, noise = _classes(rows, real, least)
        permutation, weight, log_size, complete = _elements(rank, real, key, num, mode, wide.dtype)
        return SortedFrames(permutation, weight, log_size, complete, gap, noise)

    batch = keys.shape[:-2]
    if not batch:
        return one(wide, real, key)
    flat = math.prod(batch)
    several = None if key is None else jax.random.split(key, flat)
    axes = (0, 0, None if key is None else 0)
    out = jax.vmap(one, in_axes=axes)(wide.reshape(flat, *keys.shape[-2:]), real.reshape(flat, -1), several)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), out)


class GraphKeys(NamedTuple):
    """Spectral keys of the nodes of a graph.

    Attributes:
      values: diagonals of the projectors on the eigenspaces, one column for each, shape `[..., n, n]`; columns beyond
        the number of eigenspaces are zero.
      eigenvalues: of the Laplacian, ascending, shape `[..., n]`.
      gap: smallest difference of eigenvalues of different eigenspaces over the largest eigenvalue, shape `[...]`;
        infinite for one eigenspace.
      noise: largest relative difference within an eigenspace, shape `[...]`.
    """

    values: Array
    eigenvalues: Array
    gap: Array
    noise: Array


def laplacian_keys(adjacency: Array, mask: Array | None = None, *, tolerance: float | None = None) -> GraphKeys:
    r"""Finds `S_ik = (P_k)_ii` with `P_k` the projector on the k-th eigenspace of `L = diag(A 1) - A`.

    Law: relabelled nodes have the same rows. Isomorphic graphs have the same set of rows; the converse fails.

    Args:
      adjacency: symmetric, shape `[..., n, n]`, float; weights are allowed. Computed in float32 at least.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      tolerance: static; eigenvalues that differ by less than this part of the largest are one; default square root of
        epsilon.

    Returns:
      The keys, values `[..., n, n]`, without derivatives.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> star = jnp.zeros((4, 4)).at[0, 1:].set(1.0).at[1:, 0].set(1.0)
      >>> keys = laplacian_keys(star)
      >>> [round(12 * float(value), 3) for value in keys.values[1]]
      [3.0, 8.0, 1.0, 0.0]
    """
    if adjacency.ndim < 2 or adjacency.shape[-1] != adjacency.shape[-2] or adjacency.shape[-1] == 0:
        raise ValueError(f"adjacency: got shape {adjacency.shape}; expected [..., n, n].")
    if not jnp.issubdtype(adjacency.dtype, jnp.floating):
        raise ValueError(f"adjacency: got {adjacency.dtype}; expected floating point, such as .astype(jnp.float32).")
    if mask is not None and (mask.shape != adjacency.shape[:-1] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask: got {mask.dtype} of shape {mask.shape}; expected bool {adjacency.shape[:-1]}.")
    a = lax.stop_gradient(adjacency if adjacency.dtype == jnp.float64 else adjacency.astype(jnp.float32))
    if mask is not None:
        a = jnp.where(mask[..., :, None] & mask[..., None, :], a, jnp.zeros((), a.dtype))
    n = a.shape[-1]
    degree = jnp.sum(a, axis=-1)
    # Padding adds zero eigenvalues, a space orthogonal to all real nodes: no real node's projection changes.
    values, vectors = jnp.linalg.eigh(degree[..., None] * jnp.eye(n, dtype=a.dtype)[(None,) * (a.ndim - 2)] - a)
    one = jnp.ones((), a.dtype)
    largest = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    step = jnp.diff(values, axis=-1) / jnp.where(largest > 0, largest, one)
    least = np.asarray(_default_tolerance(adjacency.dtype) if tolerance is None else tolerance, a.dtype)
    separate = step > least
    space = jnp.concatenate(
        [jnp.zeros_like(values[..., :1], jnp.int32), jnp.cumsum(separate, -1).astype(jnp.int32)], -1
    )
    member = jax.nn.one_hot(space, n, dtype=a.dtype)
    keys = jnp.einsum("...ie,...ek->...ik", jnp.square(vectors), member, precision=lax.Precision.HIGHEST)
    inf = jnp.full((), jnp.inf, a.dtype)
    gap = jnp.min(jnp.where(separate, step, inf), axis=-1, initial=jnp.inf)
    noise = jnp.max(jnp.where(separate, jnp.zeros((), a.dtype), jnp.abs(step)), axis=-1, initial=0.0)
    dtype = adjacency.dtype
    return GraphKeys(keys.astype(dtype), values.astype(dtype), gap.astype(dtype), noise.astype(dtype))


def laplacian_frames(
    adjacency: Array,
    mask: Array | None = None,
    key: PRNGKey | None = None,
    num_samples: int = 1,
    *,
    mode: Mode = "exact",
    tolerance: float | None = None,
    key_tolerance: float | None = None,
) -> SortedFrames:
    """Makes the frame of a graph: the permutations that sort its spectral keys.

    Args:
      adjacency: symmetric, shape `[..., n, n]`, float.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      key: typed random key, for "sample" and "auto".
      num_samples: static; number F of elements that there is room for.
      mode: static; as in `sorted_frames`. Frames of graphs are often too large to enumerate.
      tolerance: static; of eigenvalues, see `laplacian_keys`.
      key_tolerance: static; of keys, see `sorted_frames`.

    Returns:
      The frames, permutations `[..., num_samples, n]`; `gap` and `noise` are those of the keys.

    Raises:
      ValueError: if shapes or options do not fit.

    Example:
      >>> path = jnp.zeros((4, 4)).at[[0, 1, 2], [1, 2, 3]].set(1.0)
      >>> frames = laplacian_frames(path + path.T, num_samples=8)
      >>> round(float(jnp.exp(frames.log_size))), bool(frames.complete)
      (4, True)
    """
    keys = laplacian_keys(adjacency, mask, tolerance=tolerance)
    return sorted_frames(keys.values, mask, num=num_samples, mode=mode, key=key, tolerance=key_tolerance)
