r"""Many-body products by generalised Clebsch-Gordan tensors: MACE's symmetric contraction, which Gaunt powers replace.

  B_{l3 m, c} = sum_nu sum_path w[path, c] sum_{k1..k_nu} U^nu_path[k1, .., k_nu, m] A_{k1 c} ... A_{k_nu c}

For each order `nu` and degree `l3` the tensors `U` are an orthonormal basis of all maps that commute with O(3), from
`nu` equal features (of degrees `0..lmax`, natural parity) to degree `l3`. They are chains of couplings, made symmetric
under exchange of the inputs; as these are no longer independent, a basis of their span is kept.

Laws: `B(D A) == D B(A)`; a Gaunt polynomial is the same sum with fixed weights for its paths.

Reference: Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 11. MACE's tensors are not orthonormal (earlier releases
keep dependent chains too); the spanned maps are the same.
"""

import functools
import itertools
import math
from collections import Counter
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.coupling import clebsch_gordan
from equivariant_jax.euclidean.irreps import degree_slices, lmax_of, num_coefficients

__all__ = ["contraction_paths", "contraction_variance", "symmetric_basis", "symmetric_contraction"]


def _chains(degrees: tuple[int, ...], degree: int) -> list[np.ndarray]:
    # Couplings of the degrees from left to right to `degree`, one for each sequence of degrees between.
    states = {degrees[0]: [np.eye(2 * degrees[0] + 1)]}
    for l in degrees[1:]:
        grown: dict[int, list[np.ndarray]] = {}
        for before, tensors in states.items():
            for after in range(abs(before - l), before + l + 1):
                table = clebsch_gordan(before, l, after)
                grown.setdefault(after, []).extend(np.tensordot(t, table, axes=1) for t in tensors)
        states = grown
    return states.get(degree, [])


def _independent(rows: np.ndarray) -> np.ndarray:
    # An orthonormal basis of the rows' span. Singular values give its size; Gram and Schmidt, in order, the vectors, so
    # that signs and order (and with them the meaning of learned weights) do not hang on a LAPACK.
    values = np.linalg.svd(rows, compute_uv=False)
    rank = int(np.sum(values > 1e-6))
    if np.any((values > 1e-10) & (values < 1e-4)):
        raise RuntimeError(f"the rank of the symmetric maps is not clear: singular values {values}.")
    basis = np.zeros((0, rows.shape[1]))
    for row in rows:
        for _ in range(2):  # twice is enough
            row = row - basis.T @ (basis @ row)
        if np.linalg.norm(row) > 1e-6 and len(basis) < rank:
            basis = np.concatenate([basis, row[None] / np.linalg.norm(row)])
    if len(basis) != rank:
        raise RuntimeError(f"found {len(basis)} independent symmetric maps where the rank is {rank}.")
    return basis


@functools.cache
def symmetric_basis(lmax: int, order: int, degree: int) -> np.ndarray:
    """Builds the U tensors of one order and one output degree.

    Args:
      lmax: largest degree of the inputs.
      order: number of equal inputs, 1 or more.
      degree: degree of the result.

    Returns:
      float64 array of shape `[(lmax+1)**2, ... (order times), 2 degree + 1, paths]`, read-only, symmetric in its first
      `order` axes and orthonormal over paths. Each path belongs to one set of input degrees.

    Raises:
      ValueError: if `order` is below 1 or a degree is negative.

    Example:
      >>> symmetric_basis(2, 2, 0).shape  # the squared norms of degrees 0, 1 and 2
      (9, 9, 1, 3)
    """
    if order < 1 or min(lmax, degree) < 0:
        raise ValueError(f"symmetric_basis needs order >= 1 and degrees >= 0, got {(lmax, order, degree)}.")
    slices, size = degree_slices(lmax), num_coefficients(lmax)
    found = []
    for degrees in itertools.combinations_with_replacement(range(lmax + 1), order):
        chains = _chains(degrees, degree) if (sum(degrees) + degree) % 2 == 0 else []
        # Exchanges of inputs of equal degree act within the block, the others place copies of it.
        exchanges = [p for p in itertools.permutations(range(order)) if tuple(degrees[i] for i in p) == degrees]
        symmetric = [np.mean([t.transpose(*p, order) for p in exchanges], axis=0) for t in chains]
        if not symmetric:
            continue
        basis = _independent(np.stack(symmetric).reshape(len(symmetric), -1)).reshape(-1, *symmetric[0].shape)
        places = {tuple(degrees[i] for i in p): p for p in itertools.permutations(range(order))}
        for tensor in basis:
            full = np.zeros((size,) * order + (2 * degree + 1,))
            for target, p in places.items():
                full[tuple(slices[l] for l in target)] = tensor.transpose(*p, order) / math.sqrt(len(places))
            found.append(full)
    table = np.stack(found, axis=-1) if found else np.zeros((size,) * order + (2 * degree + 1, 0))
    table[np.abs(table) < 1e-14] = 0.0
    table.setflags(write=False)
    return table


@functools.cache
def _scaled_basis(lmax: int, order: int, degree: int) -> np.ndarray:
    # Each path has unit variance for independent standard normal inputs.
    table = symmetric_basis(lmax, order, degree)
    return table / np.sqrt(contraction_variance(table, order))


def contraction_variance(table: np.ndarray, order: int) -> np.ndarray:
    """Variance (about zero) of contractions of equal standard normal inputs, by Wick's theorem over traces.

    Args:
      table: symmetric in its first `order` axes, shape `[k, ... (order times), m, paths]`, float64.
      order: number of inputs.

    Returns:
      Mean over `m` of each path's second moment, shape `[paths]`.
    """
    variance, trace = np.zeros(table.shape[-1]), table
    for pairs in range(order // 2 + 1):
        free = order - 2 * pairs
        ways = math.factorial(order) / (math.factorial(free) * 2**pairs * math.factorial(pairs))
        variance = variance + ways**2 * math.factorial(free) * np.sum(trace**2, axis=tuple(range(trace.ndim - 1)))
        if free >= 2:
            trace = np.trace(trace, axis1=0, axis2=1)
    return variance / table.shape[-2]


def contraction_paths(lmax: int, lmax_out: int, order: int) -> tuple[tuple[int, ...], ...]:
    """Counts the paths of a symmetric contraction.

    Args:
      lmax: largest degree of the inputs.
      lmax_out: largest degree of the result.
      order: highest power.

    Returns:
      For each degree `0..lmax_out` a tuple with the number of paths of each order `1..order`; the weights of
      `symmetric_contraction` stand in this order.

    Example:
      >>> contraction_paths(3, 1, 3)
      ((1, 4, 8), (1, 3, 12))
    """
    return tuple(
        tuple(symmetric_basis(lmax, nu, degree).shape[-1] for nu in range(1, order + 1))
        for degree in range(lmax_out + 1)
    )


@functools.cache
def _monomial_table(lmax: int, order: int, lmax_out: int) -> np.ndarray:
    # The scaled tensors of all degrees on the distinct products x_i x_j .. with i <= j <= .., each with the number of
    # its orderings: [sum of (2 degree + 1) paths, monomials].
    monomials = list(itertools.combinations_with_replacement(range(num_coefficients(lmax)), order))
    orderings = [math.factorial(order) / math.prod(map(math.factorial, Counter(m).values())) for m in monomials]
    rows = [
        _scaled_basis(lmax, order, degree)[tuple(np.transpose(monomials))].reshape(len(monomials), -1)
        for degree in range(lmax_out + 1)
    ]
    table = (np.concatenate(rows, axis=1) * np.array(orderings)[:, None]).T
    table.setflags(write=False)
    return table


def _by_monomials(x: Array, weights: list[list[Array]], precision) -> list[Array]:
    # weights[degree][nu - 1]: [paths, ...]; x: [coefficients, ...]. One matrix product for each order.
    size, lmax = x.shape[0], lmax_of(x.shape[0])
    blocks: list[list[Array]] = [[] for _ in weights]
    monomials, first = x, list(range(size))  # first[i]: where monomials without the factors x_0 .. x_{i-1} begin
    for nu in range(1, len(weights[0]) + 1):
        if nu > 1:
            grown = [x[i : i + 1] * monomials[first[i] :] for i in range(size)]
            first = np.cumsum([0, *(g.shape[0] for g in grown[:-1])]).tolist()
            monomials = jnp.concatenate(grown, axis=0)
        table = _monomial_table(lmax, nu, len(weights) - 1).astype(x.dtype)
        features = jnp.tensordot(table, monomials, axes=1, precision=precision)
        counts = [(2 * degree + 1) * w[nu - 1].shape[0] for degree, w in enumerate(weights)]
        parts = jnp.split(features, np.cumsum(counts)[:-1].tolist(), axis=0)
        for degree, part in enumerate(parts):
            part = part.reshape(2 * degree + 1, -1, *part.shape[1:])
            blocks[degree].append(jnp.sum(part * weights[degree][nu - 1][None], axis=1))
    return [functools.reduce(jnp.add, terms) for terms in blocks]


def _by_horner(x: Array, weights: list[list[Array]], precision) -> list[Array]:
    size, lmax = x.shape[0], lmax_of(x.shape[0])
    blocks = []
    for degree, by_order in enumerate(weights):
        result = None
        for nu in range(len(by_order), 0, -1):
            # Axes m, k1 .. k_nu, path.
            table = np.moveaxis(_scaled_basis(lmax, nu, degree), -2, 0).astype(x.dtype)
            if result is None:
                pairs = x[:, None] * by_order[nu - 1][None]
                pairs = pairs.reshape(-1, *pairs.shape[2:])
                result = jnp.tensordot(table.reshape(-1, pairs.shape[0]), pairs, axes=1, precision=precision)
            else:
                flat = table.reshape(-1, table.shape[-1])
                tensor = result + jnp.tensordot(flat, by_order[nu - 1], axes=1, precision=precision)
                tensor = tensor.reshape(-1, size, *tensor.shape[1:])
                result = jnp.sum(tensor * x[None], axis=1)
        blocks.append(result)
    return blocks


def symmetric_contraction(
    x: Array,
    weights: Array,
    *,
    lmax_out: int,
    order: int,
    method: Literal["horner", "monomials"] = "horner",
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Sums all symmetric equivariant products of up to `order` copies of `x`, each with its own weight.

    Every path is scaled so that independent standard normal `x` and a weight of one give unit variance.

    Args:
      x: coefficients, shape `[..., (lmax + 1)**2, channels]`, float.
      weights: shape `[..., paths, channels]`, leading axes those of `x` (or broadcasting), dtype of `x`; paths by
        degree, then order, as `contraction_paths(lmax, lmax_out, order)` counts them.
      lmax_out: static; largest degree of the result, at most `lmax`.
      order: static; highest power, 1 or more.
      method: static; "horner", as MACE evaluates it: the tensor of the highest order is contracted with the weights and
        once with `x`, the next lower one added, and so on. "monomials" multiplies the distinct products of coefficients
        with the tensors and weighs the results: the same numbers, faster on CPU for values and gradients (about 3x and
        1.5x to 2x at lmax 2 and 3), slower for gradients of gradients, as training on forces needs them.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2, channels]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit, `order` is below 1, `lmax_out > lmax` or the method is unknown.

    Example:
      >>> paths = sum(sum(counts) for counts in contraction_paths(2, 1, 3))
      >>> symmetric_contraction(jnp.ones((5, 9, 4)), jnp.ones((5, paths, 4)), lmax_out=1, order=3).shape
      (5, 4, 4)

    References:
      Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 11, appendix A.
    """
    lmax = lmax_of(x.shape[-2])
    counts = contraction_paths(lmax, lmax_out, order) if 0 <= lmax_out <= lmax and order > 0 else ()
    paths = sum(map(sum, counts))
    if not counts or weights.ndim != x.ndim or weights.shape[-2:] != (paths, x.shape[-1]):
        raise ValueError(
            f"symmetric_contraction got x {x.shape}, weights {weights.shape}, lmax_out={lmax_out}, order={order}; "
            f"expected x `[..., (lmax + 1)**2, channels]`, weights `[..., {paths}, channels]` (a path for each entry "
            "of contraction_paths), lmax_out <= lmax and order >= 1."
        )
    if method not in ("horner", "monomials"):
        raise ValueError(f'method must be "horner" or "monomials", got {method!r}.')
    # Coefficients first: each contraction with a tensor is then one matrix product for all items and channels.
    ends = np.cumsum(np.ravel(counts))[:-1].tolist()
    terms = iter(jnp.split(jnp.moveaxis(weights, -2, 0), ends, axis=0))
    ordered = [[next(terms) for _ in range(order)] for _ in range(lmax_out + 1)]
    evaluate = _by_monomials if method == "monomials" else _by_horner
    return jnp.moveaxis(jnp.concatenate(evaluate(jnp.moveaxis(x, -2, 0), ordered, precision), axis=0), 0, -2)
