r"""Products of features with attributes as short sums over non-zero coefficients, items (batch, nodes, edges) last.

At degrees one and two a product has so few non-zero coefficients that a sum over them, each term one long row, beats
every transform. Three sets of coefficients, all scaled so that independent unit-variance inputs give unit variance:
Clebsch-Gordan paths, each for a feature of its own; Gaunt products; and spherical Poisson brackets. The last two are
`gaunt_tensor_product` and `spherical_poisson_bracket` with `normalization="component"`, to which higher degrees go.

Law: each commutes with rotations; even paths keep the parity, odd ones (the bracket's) turn natural into pseudo.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import sphere_gradient_table, sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.bracket import spherical_poisson_bracket
from equivariant_jax.euclidean.coupling import clebsch_gordan
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.irreps import degree_index, expand_degrees, lmax_of, num_coefficients
from equivariant_jax.euclidean.quadrature import sphere_quadrature

__all__ = ["CouplingBlock", "couple_paths", "coupling_blocks", "weighted_product"]

# Up to this degree products are sums; above, they go to the grid.
MAX_UNROLLED = 2

# Terms of a bilinear sum: (index of x, index of y, factor).
Terms = tuple[tuple[int, int, float], ...]


class CouplingBlock(NamedTuple):
    """The Clebsch-Gordan paths that start from one parity and degree of the input.

    Attributes:
      parity: 0 (natural) or 1 (pseudo).
      degree: of the input.
      paths: for each path its attribute degree, output degree and output parity.
    """

    parity: int
    degree: int
    paths: tuple[tuple[int, int, int], ...]


@functools.cache
def coupling_blocks(
    lmax: int, parities: int, attribute_lmax: int, lmax_out: int, odd: bool
) -> tuple[CouplingBlock, ...]:
    """Lists all paths from features and natural attributes to features.

    Args:
      lmax: largest degree of the input.
      parities: 1 if the input has natural features only, 2 if pseudo ones too.
      attribute_lmax: largest degree of the attributes.
      lmax_out: largest degree of the output.
      odd: whether paths with `l1 + l2 + l3` odd count.

    Returns:
      Blocks with at least one path each, in order of parity and degree.

    Example:
      >>> [len(block.paths) for block in coupling_blocks(1, 1, 1, 1, odd=True)]
      [2, 3]
    """
    blocks = []
    for parity in range(parities):
        for l1 in range(lmax + 1):
            paths = tuple(
                (l2, l3, (parity + l1 + l2 + l3) % 2)
                for l2 in range(attribute_lmax + 1)
                for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
                if odd or (l1 + l2 + l3) % 2 == 0
            )
            if paths:
                blocks.append(CouplingBlock(parity, l1, paths))
    return tuple(blocks)


@functools.cache
def _path_terms(blocks: tuple[CouplingBlock, ...], lmax_out: int, parities_out: int) -> tuple[Terms, ...]:
    # One row per output parity and coefficient; x is counted by block, m1 and path.
    size = num_coefficients(lmax_out)
    counts = np.zeros((parities_out, lmax_out + 1))
    for block in blocks:
        for _, l3, parity in block.paths:
            counts[parity, l3] += 1
    rows: list[list[tuple[int, int, float]]] = [[] for _ in range(parities_out * size)]
    start = 0
    for block in blocks:
        for path, (l2, l3, parity) in enumerate(block.paths):
            table = clebsch_gordan(block.degree, l2, l3) * np.sqrt((2 * l3 + 1) / counts[parity, l3])
            for m1, m2, m3 in np.argwhere(table):
                i = start + int(m1) * len(block.paths) + path
                rows[parity * size + l3 * l3 + m3].append((i, int(l2 * l2 + m2), float(table[m1, m2, m3])))
        start += (2 * block.degree + 1) * len(block.paths)
    return tuple(tuple(row) for row in rows)


@functools.cache
def _bracket_table(lmax1: int, lmax2: int, lmax_out: int) -> np.ndarray:
    """`int {Y_k1, Y_k2} Y_k3 / sqrt(l1 (l1+1) l2 (l2+1))`, zero at degree zero; float64."""
    rule = sphere_quadrature(lmax1 + lmax2 + lmax_out, "gauss")
    polar, azimuthal = sphere_gradient_table(rule.points, max(lmax1, lmax2))
    level = [1 / np.sqrt(np.maximum(l * (l + 1), 1)) for l in (degree_index(lmax1), degree_index(lmax2))]
    first = [part[:, : len(level[0])] * level[0] for part in (polar, azimuthal)]
    second = [part[:, : len(level[1])] * level[1] for part in (polar, azimuthal)]
    third = sphere_table(rule.points, lmax_out) * rule.weights[:, None]
    table = np.einsum("gi,gj,gk->ijk", first[0], second[1], third)
    table = table - np.einsum("gi,gj,gk->ijk", first[1], second[0], third)
    table[np.abs(table) < 1e-13] = 0.0
    return table


@functools.cache
def _product_terms(kind: str, lmax1: int, lmax2: int, lmax_out: int) -> tuple[tuple[Terms, ...], ...]:
    # For each output coefficient, the terms by degree of y; scaled per output degree to unit variance.
    table = (gaunt_table if kind == "gaunt" else _bracket_table)(lmax1, lmax2, lmax_out)
    variance = np.sum(table**2, axis=(0, 1))[[l * l for l in range(lmax_out + 1)]]
    table = table / np.sqrt(np.where(variance > 1e-12, variance, 1.0))[degree_index(lmax_out)]
    degrees = degree_index(lmax2)

    def terms(k, l):
        return tuple((int(i), int(j), float(table[i, j, k])) for i, j in np.argwhere(table[..., k]) if degrees[j] == l)

    return tuple(tuple(terms(k, l) for l in range(lmax2 + 1)) for k in range(table.shape[2]))


def _unstack(x: Array, axes: int = 1) -> list[Array]:
    # One array for each entry of the leading axes. The derivative of a split is one concatenation; that of indexing
    # would be as many arrays of zeros as there are entries.
    x = x.reshape(-1, *x.shape[axes:])
    return [part[0] for part in lax.split(x, [1] * x.shape[0])]


def _sum_products(x: Sequence[Array], y: Sequence[Array], terms: Terms) -> Array | None:
    """`sum factor * x[i] * y[j]` over the terms, for x `[channels, ...]` and y `[...]`; None if there are none."""
    # What multiplies one x first: a number per item, shared by the channels.
    factors: dict[int, Array] = {}
    for i, j, factor in terms:
        term = y[j] * np.asarray(factor, y[j].dtype)
        factors[i] = factors[i] + term if i in factors else term
    products = [x[i] * factor[None] for i, factor in factors.items()]
    return functools.reduce(jnp.add, products) if products else None


def _stack_rows(rows: Sequence[Array | None], like: Array, items: tuple[int, ...]) -> Array:
    zero = jnp.zeros((like.shape[0], *items), like.dtype)
    return jnp.stack([zero if row is None else row for row in rows])


def couple_paths(
    x: Sequence[Array], attributes: Array, blocks: tuple[CouplingBlock, ...], *, lmax_out: int, parities_out: int
) -> Array:
    """Sums all Clebsch-Gordan paths, each with a feature of its own.

    Args:
      x: for each block the features `[2 degree + 1, paths, channels, ...]`, float.
      attributes: natural attributes `[(attribute_lmax + 1)**2, ...]`, dtype of `x`; trailing axes broadcast.
      blocks: static; from `coupling_blocks`.
      lmax_out: static; largest degree of the result.
      parities_out: static; 1 or 2, parities of the result.

    Returns:
      Array `[parities_out, (lmax_out + 1)**2, channels, ...]`.

    Example:
      >>> blocks = coupling_blocks(0, 1, 1, 1, odd=False)  # scalars to scalars and to vectors
      >>> couple_paths([jnp.ones((1, 2, 3, 7))], jnp.ones((4, 7)), blocks, lmax_out=1, parities_out=1).shape
      (1, 4, 3, 7)
    """
    features = [part for block in x for part in _unstack(block, 2)]
    harmonics = _unstack(attributes)
    items = jnp.broadcast_shapes(features[0].shape[1:], harmonics[0].shape)
    rows = [_sum_products(features, harmonics, row) for row in _path_terms(blocks, lmax_out, parities_out)]
    out = _stack_rows(rows, features[0], items)
    return out.reshape(parities_out, -1, *out.shape[1:])


def weighted_product(
    kind: Literal["gaunt", "bracket"],
    x: Array,
    attributes: Array,
    weights: Array,
    *,
    lmax_out: int,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Multiplies every channel with the attributes, whose degrees have a factor for each channel.

    Args:
      kind: static; "gaunt" (even paths) or "bracket" (odd paths).
      x: features `[(lmax + 1)**2, channels, ...]`, float.
      attributes: `[(attribute_lmax + 1)**2, ...]`, dtype of `x`; trailing axes broadcast.
      weights: `[channels, attribute_lmax + 1]`, dtype of `x`.
      lmax_out: static; largest degree of the result.
      precision: static; precision of the matrix products, where there are any.

    Returns:
      Array `[(lmax_out + 1)**2, channels, ...]`, of unit variance if x, weights and attributes are.

    Raises:
      ValueError: if there is no such product.

    Example:
      >>> weighted_product("bracket", jnp.ones((4, 3, 7)), jnp.ones((4, 7)), jnp.ones((3, 2)), lmax_out=1).shape
      (4, 3, 7)
    """
    if kind not in ("gaunt", "bracket"):
        raise ValueError(f'kind must be "gaunt" or "bracket", got {kind!r}.')
    lmax1, lmax2 = lmax_of(x.shape[0]), lmax_of(attributes.shape[0])
    if max(lmax1, lmax2, lmax_out) > MAX_UNROLLED:
        factors = expand_degrees(weights)
        factors = factors.reshape(factors.shape[0], *(1,) * (attributes.ndim - 1), factors.shape[1])
        multiply = gaunt_tensor_product if kind == "gaunt" else spherical_poisson_bracket
        out = multiply(
            jnp.moveaxis(x, 0, -1),
            jnp.moveaxis(attributes, 0, -1)[None] * factors,
            lmax_out=lmax_out,
            normalization="component",
            precision=precision,
        )
        return jnp.moveaxis(out, -1, 0)
    features, harmonics = _unstack(x), _unstack(attributes)
    shaped = [w.reshape(-1, *(1,) * (attributes.ndim - 1)) for w in _unstack(weights.T)]
    rows: list[Array | None] = []
    for by_degree in _product_terms(kind, lmax1, lmax2, lmax_out):
        sums = [_sum_products(features, harmonics, terms) for terms in by_degree]
        weighted = [w * value for w, value in zip(shaped, sums, strict=True) if value is not None]
        rows.append(functools.reduce(jnp.add, weighted) if weighted else None)
    return _stack_rows(rows, x[0], jnp.broadcast_shapes(x.shape[2:], attributes.shape[1:]))
