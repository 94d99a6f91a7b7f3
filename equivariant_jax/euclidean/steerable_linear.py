r"""Linear maps of steerable features whose matrices depend on the geometry, and the gate that follows them.

Features are coefficients `[parities, (lmax + 1)**2, channels, ...]`: the first parity is natural (degree l changes by
(-1)^l under inversion), the second, if there is one, pseudo (by -(-1)^l). Every feature of O(3) is one of the two.
Items (batch, nodes, edges) come last, for the reason given in `steerable_products`. A map multiplies features x with
natural attributes a (spherical harmonics of directions) and mixes channels,

  "cg", "cg_odd"            z_{l3} = sum_{l1, l2} [ (x_{l1} V_{l1 l2 l3}) (x) a_{l2} ]_{l3},   a matrix V for each path;
  "gaunt", "gaunt_bracket"  z_{l3} = GTP(x V, w a)_{l3} U_{l3},   matrices before and after, a factor w for each channel
                            and attribute degree, one product per channel.

"cg" and "gaunt" hold the paths with l1 + l2 + l3 even: natural stays natural, and no output tells a shape from its
mirror image. "cg_odd" adds the Clebsch-Gordan paths with l1 + l2 + l3 odd, "gaunt_bracket" the spherical Poisson
bracket {x V, w' a}, which holds the same paths; both turn natural into pseudo and pseudo into natural.

Laws: `map(D x, D a) == D map(x, a)` for O(3); a map of several inputs is the sum of the maps of each, up to the bias,
which only natural scalars have.

References: Brandstetter et al. 2022, arXiv:2110.02905, eqs. 6 to 8; Luo et al. 2024, arXiv:2401.10216. Here the gates
are a linear map of the scalars (there, further outputs of the product), and weights are drawn with unit variance.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.irreps import degree_index, lmax_of, num_coefficients
from equivariant_jax.euclidean.steerable_products import couple_paths, coupling_blocks, weighted_product
from equivariant_jax.nn.mlp import unit_silu

__all__ = [
    "SteerableProduct",
    "SteerableType",
    "attribute_linear",
    "attribute_linear_init",
    "gated",
    "gated_init",
    "num_parities",
]

SteerableProduct = Literal["cg", "cg_odd", "gaunt", "gaunt_bracket"]


class SteerableType(NamedTuple):
    """Static shape of a feature, `[parities, (lmax + 1)**2, channels, ...]`.

    Attributes:
      lmax: largest degree.
      parities: 1 (natural) or 2 (natural, pseudo).
      channels: features per coefficient.
    """

    lmax: int
    parities: int
    channels: int


def num_parities(product: SteerableProduct) -> int:
    """Says how many parities the result of a product has.

    Args:
      product: static; name of the product.

    Returns:
      1 for "cg" and "gaunt", 2 for "cg_odd" and "gaunt_bracket".

    Raises:
      ValueError: if there is no such product.

    Example:
      >>> num_parities("gaunt_bracket")
      2
    """
    if product not in get_args(SteerableProduct):
        raise ValueError(f"product is {product!r}; expected one of {', '.join(get_args(SteerableProduct))}.")
    return 2 if product in ("cg_odd", "gaunt_bracket") else 1


def _union(inputs: Sequence[SteerableType]) -> tuple[int, int]:
    return max(t.lmax for t in inputs), max(t.parities for t in inputs)


def _fan_in(inputs: Sequence[SteerableType], parity: int, degree: int) -> int:
    return sum(t.channels for t in inputs if parity < t.parities and degree <= t.lmax)


def _normal(key: PRNGKey, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
    return jax.random.normal(key, shape, dtype) * np.asarray(fan_in**-0.5, dtype)


def _mixes(product: str, inputs: Sequence[SteerableType], attribute_lmax: int, lmax_out: int):
    """Where channels are mixed before the product: (parity, degree, number of matrices)."""
    lmax, parities = _union(inputs)
    if product.startswith("cg"):
        blocks = coupling_blocks(lmax, parities, attribute_lmax, lmax_out, product == "cg_odd")
        return [(b.parity, b.degree, len(b.paths)) for b in blocks]
    return [(parity, degree, 1) for parity in range(parities) for degree in range(lmax + 1)]


def attribute_linear_init(
    key: PRNGKey,
    inputs: Sequence[SteerableType],
    *,
    product: SteerableProduct,
    attribute_lmax: int,
    lmax_out: int,
    channels_out: int,
    dtype=jnp.float32,
) -> PyTree:
    """Draws parameters with which unit-variance features and attributes give unit variance.

    Args:
      key: typed random key.
      inputs: static; one type for each input of the map.
      product: static; "cg", "cg_odd", "gaunt" or "gaunt_bracket".
      attribute_lmax: static; largest degree of the attributes.
      lmax_out: static; largest degree of the result.
      channels_out: static; channels of the result.
      dtype: parameter dtype.

    Returns:
      Dict of arrays: `kernels` (for each input a dict `parity_degree` -> `[matrices, channels, channels_out]`), `bias`
      `[channels_out]`, and for Gaunt products `attribute` `[terms, channels_out, attribute_lmax + 1]` and `out`.

    Raises:
      ValueError: if the product is unknown, or has natural features only and an input has both parities.

    Example:
      >>> kind = SteerableType(lmax=1, parities=1, channels=3)
      >>> params = attribute_linear_init(
      ...     jax.random.key(0), [kind], product="cg", attribute_lmax=1, lmax_out=1, channels_out=5
      ... )
      >>> params["kernels"][0]["0_1"].shape  # natural vectors: paths (1, 0, 1) and (1, 1, 0)
      (2, 3, 5)
    """
    parities_out = num_parities(product)
    if _union(inputs)[1] > parities_out:
        raise ValueError(
            f'product "{product}" gives natural features only, but an input has both parities: {tuple(inputs)}.'
        )
    key_in, key_attribute, key_out = jax.random.split(key, 3)
    kernels: list[dict[str, Array]] = [{} for _ in inputs]
    for i, (parity, degree, matrices) in enumerate(_mixes(product, inputs, attribute_lmax, lmax_out)):
        fan_in = _fan_in(inputs, parity, degree)
        for j, kind in enumerate(inputs):
            if parity < kind.parities and degree <= kind.lmax:
                own = jax.random.fold_in(jax.random.fold_in(key_in, i), j)
                shape = (matrices, kind.channels, channels_out)
                kernels[j][f"{parity}_{degree}"] = _normal(own, shape, fan_in, dtype)
    params: dict[str, Any] = {"kernels": tuple(kernels), "bias": jnp.zeros((channels_out,), dtype)}
    if product.startswith("gaunt"):
        terms = 2 if product == "gaunt_bracket" else 1
        shape = (terms, channels_out, attribute_lmax + 1)
        params["attribute"] = jax.random.normal(key_attribute, shape, dtype)
        keys = jax.random.split(key_out, parities_out)
        numbers = _num_parts(product, _union(inputs)[1])
        params["out"] = tuple(
            _out_kernel(k, num, lmax_out, channels_out, dtype) for k, num in zip(keys, numbers, strict=True)
        )
    return params


def _out_kernel(key: PRNGKey, num: int, lmax_out: int, channels: int, dtype: Any) -> Array:
    kernel = _normal(key, (lmax_out + 1, num * channels, channels), num * channels, dtype)
    # No odd path leads to degree zero, which therefore has half as many inputs where two products meet.
    gain = np.where(np.arange(lmax_out + 1) == 0, num**0.5, 1.0)
    return kernel * gain.astype(kernel.dtype)[:, None, None]


def _num_parts(product: str, parities: int) -> tuple[int, ...]:
    # How many products of channels meet in the natural and in the pseudo output.
    if product == "gaunt":
        return (1,)
    return (2, 2) if parities == 2 else (1, 1)


def _mixed(kernels: Sequence[dict[str, Array]], inputs: Sequence[Array], parity: int, degree: int, precision) -> Array:
    """Channels of one parity and degree, `[2 l + 1, matrices, channels_out, ...]`, summed over inputs."""
    terms = []
    for own, x in zip(kernels, inputs, strict=True):
        if f"{parity}_{degree}" in own:
            kernel = own[f"{parity}_{degree}"]
            matrices, size_in, size_out = kernel.shape
            flat = jnp.moveaxis(kernel, 1, 2).reshape(1, matrices * size_out, size_in)
            rows = x[parity, degree * degree : (degree + 1) ** 2]
            flat = jnp.broadcast_to(flat, (2 * degree + 1, *flat.shape[1:]))
            product = jnp.matmul(flat, rows.reshape(*rows.shape[:2], -1), precision=precision)
            terms.append(product.reshape(2 * degree + 1, matrices, size_out, *rows.shape[2:]))
    return functools.reduce(jnp.add, terms)


def _couple_gaunt(params, u: Array, attributes: Array, product: str, parities: int, lmax_out: int, precision) -> Array:
    # u: [(lmax + 1)**2, parities * channels, ...]. The parities are channels of one product: half the program.
    weights = jnp.tile(params["attribute"], (1, parities, 1))

    def multiply(kind: Literal["gaunt", "bracket"], own: Array) -> list[Array]:
        out = weighted_product(kind, u, attributes, own, lmax_out=lmax_out, precision=precision)
        return jnp.split(out, parities, axis=1)

    even = multiply("gaunt", weights[0])
    parts = [even]
    if product == "gaunt_bracket":
        odd = multiply("bracket", weights[1])
        # The bracket with a natural attribute turns natural into pseudo and pseudo into natural.
        parts = [even[p : p + 1] + odd[1 - p : 2 - p] for p in range(2)]
    mixed = []
    for kernel, own in zip(params["out"], parts, strict=True):
        x = jnp.concatenate(own, axis=1)
        matrices = jnp.take(jnp.swapaxes(kernel, 1, 2), degree_index(lmax_out), axis=0)
        out = jnp.matmul(matrices, x.reshape(*x.shape[:2], -1), precision=precision)
        mixed.append(out.reshape(*out.shape[:2], *x.shape[2:]))
    return jnp.stack(mixed)


def attribute_linear(
    params: PyTree,
    inputs: Sequence[Array],
    attributes: Array,
    *,
    product: SteerableProduct,
    lmax_out: int,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Maps features by a matrix that the attributes determine; see the formulas of the module.

    Args:
      params: from `attribute_linear_init`.
      inputs: features `[parities, (lmax + 1)**2, channels, ...]` of the types that `params` were made for, float; what
        enters is their concatenation over channels, but trailing axes (as many as the attributes have) broadcast, so
        that what does not depend on an edge is mixed once per node.
      attributes: natural features `[(attribute_lmax + 1)**2, ...]`, dtype of the inputs, of unit mean square (component
        normalised harmonics).
      product: static; the product that `params` were made for.
      lmax_out: static; largest degree of the result.
      precision: static; precision of the matrix products.

    Returns:
      Array `[parities of the product, (lmax_out + 1)**2, channels_out, ...]`, dtype of the inputs.

    Raises:
      ValueError: if the inputs are not as many as `params` were made for or shapes do not fit.

    Example:
      >>> kind = SteerableType(lmax=0, parities=1, channels=3)
      >>> static = {"product": "gaunt_bracket", "lmax_out": 1}
      >>> params = attribute_linear_init(jax.random.key(0), [kind], attribute_lmax=2, channels_out=5, **static)
      >>> attribute_linear(params, [jnp.ones((1, 1, 3, 7))], jnp.ones((9, 7)), **static).shape
      (2, 4, 5, 7)
    """
    parities_out, kernels = num_parities(product), params["kernels"]
    if len(inputs) != len(kernels):
        raise ValueError(f"attribute_linear got {len(inputs)} inputs; the parameters were made for {len(kernels)}.")
    types = []
    for x, own in zip(inputs, kernels, strict=True):
        channels = next(iter(own.values())).shape[1]
        if x.ndim != attributes.ndim + 2 or x.shape[2] != channels:
            raise ValueError(
                f"attribute_linear got an input {x.shape} with attributes {attributes.shape}; expected `[parities, "
                f"(lmax + 1)**2, {channels}, ...]` with as many trailing axes as the attributes `[coefficients, ...]`."
            )
        types.append(SteerableType(lmax_of(x.shape[1]), x.shape[0], channels))
    attribute_lmax = lmax_of(attributes.shape[0])
    lmax, parities = _union(types)
    mixes = _mixes(product, types, attribute_lmax, lmax_out)
    mixed = [_mixed(kernels, inputs, parity, degree, precision) for parity, degree, _ in mixes]
    if product.startswith("cg"):
        blocks = coupling_blocks(lmax, parities, attribute_lmax, lmax_out, product == "cg_odd")
        out = couple_paths(mixed, attributes, blocks, lmax_out=lmax_out, parities_out=parities_out)
    else:
        rows = [row[:, 0] for row in mixed]
        trailing = np.broadcast_shapes(*(row.shape[2:] for row in rows))
        rows = [jnp.broadcast_to(row, (*row.shape[:2], *trailing)) for row in rows]
        # One row of parities for each degree.
        degrees = [jnp.concatenate(rows[degree :: lmax + 1], axis=1) for degree in range(lmax + 1)]
        out = _couple_gaunt(params, jnp.concatenate(degrees), attributes, product, parities, lmax_out, precision)
    where = np.zeros((parities_out, num_coefficients(lmax_out), 1))
    where[0, 0] = 1.0
    bias = where.astype(out.dtype) * params["bias"].reshape(1, 1, -1)
    return out + bias.reshape(*bias.shape, *(1,) * (out.ndim - 3))


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
# Makes the gate of a standard normal number have second moment one.
_GATE_GAIN = float(np.sqrt(np.sqrt(2 * np.pi) / np.sum(_WEIGHTS / (1 + np.exp(-_NODES)) ** 2)))


def gated_init(key: PRNGKey, kind: SteerableType, *, dtype=jnp.float32) -> PyTree:
    """Draws the parameters of the gates.

    Args:
      key: typed random key.
      kind: static; type of the features.
      dtype: parameter dtype.

    Returns:
      Dict: `kernel` `[channels, gates * channels]` and `bias` `[gates * channels]`, a gate for each degree and parity
      but the natural scalars.

    Example:
      >>> gated_init(jax.random.key(0), SteerableType(lmax=1, parities=2, channels=4))["kernel"].shape
      (4, 12)
    """
    size = (kind.parities * (kind.lmax + 1) - 1) * kind.channels
    return {
        "kernel": _normal(key, (kind.channels, size), kind.channels, dtype),
        "bias": jnp.zeros((size,), dtype),
    }


def gated(params: PyTree, x: Array, *, precision=lax.Precision.HIGHEST) -> Array:
    """Applies SiLU to natural scalars, and multiplies everything else by the sigmoid of a linear map of them.

    Args:
      params: from `gated_init`.
      x: features `[parities, (lmax + 1)**2, channels, ...]`, float.
      precision: static; precision of the matrix product.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> x = jnp.ones((1, 4, 5, 7))
      >>> gated(gated_init(jax.random.key(0), SteerableType(1, 1, 5)), x).shape
      (1, 4, 5, 7)
    """
    parities, size, channels, *trailing = x.shape
    lmax = lmax_of(size)
    scalars = x[0, 0]
    gates = jnp.matmul(params["kernel"].T, scalars.reshape(channels, -1), precision=precision)
    gates = jax.nn.sigmoid(gates + params["bias"][:, None]) * np.asarray(_GATE_GAIN, x.dtype)
    gates = gates.reshape(-1, channels, *trailing)
    # One row per parity and degree, the first for the natural scalars, which take SiLU instead of a gate.
    rows = np.concatenate([parity * (lmax + 1) + degree_index(lmax) for parity in range(parities)])
    factors = jnp.take(gates, rows[1:] - 1, axis=0)
    flat = x.reshape(parities * size, channels, *trailing)
    return jnp.concatenate([unit_silu(scalars)[None], flat[1:] * factors]).reshape(x.shape)
