r"""Steerable message passing (SEGNN) with the product as an option: Clebsch-Gordan or Gaunt, with or without odd paths.

Nodes carry features of every degree up to `lmax`; attributes of an edge are harmonics of its direction, those of a node
the mean of its edges' plus the harmonics of its own vectors. With `L(x | a)` an attribute-dependent linear map
(`steerable_linear`) and g the gate, a layer computes

  m_ij = g L( g L( (x_i, x_j, s_ij) | a_ij ) | a_ij ),      x_i <- x_i + L( g L( (x_i, sum_j m_ij) | a_i ) | a_i ),

where s_ij are invariants of the edge, the distance among them. Graphs are small, dense and padded: `[..., n, ...]` with
a mask of nodes and, if not all pairs are edges, a mask of pairs.

Laws, for R in O(3), shift t and permutation P: scalars(P(R x + t)) = P scalars, pseudoscalars = det(R) P pseudoscalars,
vectors = P R vectors. With a product of natural paths only ("cg", "gaunt") a shape and its mirror image therefore get
the same scalars; with the odd paths ("cg_odd", "gaunt_bracket") pseudoscalars tell them apart.

Differences from the official code: features of all degrees have equally many channels, gates are a linear map of the
scalars, the centroid is the mean over nodes (there, for n-body, over the three coordinates of each node, which is not
equivariant), and sums are divided by `average_neighbours`.

References: Brandstetter et al. 2022, arXiv:2110.02905; Luo et al. 2024, arXiv:2401.10216 (n-body sanity check).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.steerable_linear import (
    SteerableProduct,
    SteerableType,
    attribute_linear,
    attribute_linear_init,
    gated,
    gated_init,
    num_parities,
)

__all__ = ["SteerableConfig", "SteerableNetwork", "SteerableOutput", "steerable_apply", "steerable_init"]


@dataclasses.dataclass(frozen=True)
class SteerableConfig:
    """Everything static about a network; hashable.

    Attributes:
      scalars_in: invariant features of a node, 1 or more.
      vectors_in: vector features of a node (velocities, say); their harmonics are attributes as well.
      edge_scalars_in: invariant features of an edge beside the distance, which is always there.
      scalars_out: invariant outputs of a node.
      pseudoscalars_out: outputs of a node that change sign under inversion; need odd paths.
      vectors_out: vector outputs of a node.
      product: "cg" or "gaunt" (natural paths), "cg_odd" or "gaunt_bracket" (all paths).
      lmax: largest degree of hidden features.
      attribute_lmax: largest degree of attributes.
      channels: features per coefficient.
      layers: rounds of message passing.
      centred_positions: whether the position relative to the centroid is a vector feature.
      average_neighbours: mean number of neighbours, by which sums are divided.
    """

    scalars_in: int = 1
    vectors_in: int = 0
    edge_scalars_in: int = 0
    scalars_out: int = 0
    pseudoscalars_out: int = 0
    vectors_out: int = 0
    product: SteerableProduct = "gaunt"
    lmax: int = 1
    attribute_lmax: int = 1
    channels: int = 16
    layers: int = 4
    centred_positions: bool = False
    average_neighbours: float = 4.0

    def __post_init__(self):
        outputs = (self.scalars_out, self.pseudoscalars_out, self.vectors_out)
        if min(self.scalars_in, self.channels, self.layers) < 1 or max(outputs) < 1:
            raise ValueError(
                f"scalars_in, channels, layers and at least one of the outputs must be at least 1, got {self}."
            )
        if min(self.lmax, self.attribute_lmax, self.vectors_in, self.edge_scalars_in, *outputs) < 0:
            raise ValueError(f"degrees and numbers of features must not be negative, got {self}.")
        if self.pseudoscalars_out and num_parities(self.product) == 1:
            raise ValueError(
                f'product "{self.product}" has natural paths only, which make no pseudoscalar; use "cg_odd" or '
                '"gaunt_bracket", or set pseudoscalars_out=0.'
            )
        vectors = self.vectors_in + self.vectors_out + self.centred_positions
        if self.lmax == 0 and vectors:
            raise ValueError(f"lmax=0 leaves no room for vectors in or out; use lmax >= 1, got {self}.")


class SteerableOutput(NamedTuple):
    """What the network predicts for each node; zeros on padding.

    Attributes:
      scalars: shape `[..., n, scalars_out]`.
      pseudoscalars: shape `[..., n, pseudoscalars_out]`.
      vectors: shape `[..., n, vectors_out, 3]`.
    """

    scalars: Array
    pseudoscalars: Array
    vectors: Array


def _hidden(config: SteerableConfig) -> SteerableType:
    return SteerableType(config.lmax, num_parities(config.product), config.channels)


def _maps(config: SteerableConfig) -> dict[str, tuple[SteerableType, ...]]:
    """Inputs of the attribute-dependent maps of a layer, by name."""
    hidden = _hidden(config)
    edge = SteerableType(0, 1, config.edge_scalars_in + 1)
    return {
        "message_1": (hidden, hidden, edge),
        "message_2": (hidden,),
        "update_1": (hidden, hidden),
        "update_2": (hidden,),
    }


def steerable_init(key: PRNGKey, config: SteerableConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters with which features are O(1) at every layer.

    Args:
      key: typed random key.
      config: static description.
      dtype: parameter dtype, which must be that of the positions later.

    Returns:
      Dict of arrays: `embed_scalars` `[scalars_in, channels]`, `layers` with a leading axis of
      layers, and so on.

    Example:
      >>> params = steerable_init(jax.random.key(0), SteerableConfig(scalars_out=1, channels=4, layers=2))
      >>> sorted(params)
      ['embed', 'embed_scalars', 'layers', 'out_scalars', 'read_1', 'read_2', 'read_gate']
    """
    hidden = _hidden(config)
    vectors_in = config.vectors_in + config.centred_positions
    keys = iter(jax.random.split(key, 16 + 8 * config.layers))

    def normal(*shape):
        return jax.random.normal(next(keys), shape, dtype) * np.asarray(shape[0] ** -0.5, dtype)

    def linear(*inputs):
        return attribute_linear_init(
            next(keys),
            inputs,
            product=config.product,
            attribute_lmax=config.attribute_lmax,
            lmax_out=config.lmax,
            channels_out=config.channels,
            dtype=dtype,
        )

    params: dict[str, Any] = {"embed_scalars": normal(config.scalars_in, config.channels)}
    if vectors_in:
        params["embed_vectors"] = normal(vectors_in, config.channels)
    params["embed"] = linear(SteerableType(min(1, vectors_in), 1, config.channels))
    layers = []
    for _ in range(config.layers):
        layer = {name: linear(*inputs) for name, inputs in _maps(config).items()}
        for name in ("message_1", "message_2", "update_1"):
            layer[f"{name}_gate"] = gated_init(next(keys), hidden, dtype=dtype)
        layers.append(layer)
    params["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    params |= {
        "read_1": linear(hidden),
        "read_gate": gated_init(next(keys), hidden, dtype=dtype),
        "read_2": linear(hidden),
    }
    for name in ("scalars", "pseudoscalars", "vectors"):
        size = getattr(config, f"{name}_out")
        if size:
            params[f"out_{name}"] = normal(config.channels, size)
    return params


class _Geometry(NamedTuple):
    # Mask [..., n, n], attributes of edges [k, ..., n, n] and of nodes [k, ..., n], invariants of edges as features
    # [1, 1, s, ..., n, n]; i receives, j sends.
    pairs: Array
    edges: Array
    nodes: Array
    invariants: Array


def _geometry(positions, vectors, edge_scalars, pairs, config: SteerableConfig) -> _Geometry:
    zero = jnp.zeros((), positions.dtype)
    # Entry [i, j] belongs to the edge from j to i.
    relative = positions[..., None, :, :] - positions[..., :, None, :]
    relative = jnp.where(pairs[..., None], relative, zero)
    distances = safe_norm(relative)[..., None]
    invariants = distances if edge_scalars is None else jnp.concatenate([distances, edge_scalars], axis=-1)
    invariants = jnp.where(pairs[..., None], invariants, zero)
    edges = spherical_harmonics(relative, config.attribute_lmax)
    degrees = jnp.maximum(jnp.sum(pairs, axis=-1, dtype=jnp.int32), 1).astype(positions.dtype)
    nodes = jnp.sum(jnp.where(pairs[..., None], edges, zero), axis=-2) / degrees[..., None]
    if config.vectors_in:
        nodes = nodes + jnp.sum(spherical_harmonics(vectors, config.attribute_lmax), axis=-2)
        # A mean of harmonics again, so that attributes are no larger than those of a single direction.
        nodes = nodes * np.asarray(1 / (1 + config.vectors_in), nodes.dtype)
    # The trivial attribute is one on every node, also on one without neighbours.
    nodes = jnp.concatenate([jnp.ones_like(nodes[..., :1]), nodes[..., 1:]], axis=-1)
    return _Geometry(
        pairs, jnp.moveaxis(edges, -1, 0), jnp.moveaxis(nodes, -1, 0), jnp.moveaxis(invariants, -1, 0)[None, None]
    )


def _layer(layer: Any, x: Array, around: _Geometry, config: SteerableConfig, precision) -> Array:
    static: dict[str, Any] = {"product": config.product, "lmax_out": config.lmax, "precision": precision}
    receivers, senders = x[..., :, None], x[..., None, :]
    message = attribute_linear(layer["message_1"], (receivers, senders, around.invariants), around.edges, **static)
    message = gated(layer["message_1_gate"], message, precision=precision)
    message = attribute_linear(layer["message_2"], (message,), around.edges, **static)
    message = gated(layer["message_2_gate"], message, precision=precision)
    message = jnp.where(around.pairs[None, None, None], message, jnp.zeros((), x.dtype))
    gathered = jnp.sum(message, axis=-1) * np.asarray(1 / config.average_neighbours, x.dtype)
    update = attribute_linear(layer["update_1"], (x, gathered), around.nodes, **static)
    update = gated(layer["update_1_gate"], update, precision=precision)
    return x + attribute_linear(layer["update_2"], (update,), around.nodes, **static)


def _check(params, positions, scalars, config: SteerableConfig, vectors, edge_scalars, mask, edges) -> None:
    if positions.ndim < 2 or positions.shape[-1] != 3:
        raise ValueError(f"positions have shape {positions.shape}; expected `[..., n, 3]`.")
    leading, n = positions.shape[:-1], positions.shape[-2]
    expected: dict[str, tuple[Any, tuple[int, ...] | None]] = {
        "scalars": (scalars, (*leading, config.scalars_in)),
        "vectors": (vectors, (*leading, config.vectors_in, 3) if config.vectors_in else None),
        "edge_scalars": (
            edge_scalars,
            (*leading, n, config.edge_scalars_in) if config.edge_scalars_in else None,
        ),
        "mask": (mask, leading),
        "edges": (edges, (*leading, n)),
    }
    for name, (value, shape) in expected.items():
        optional = name in ("mask", "edges")
        if shape is None and value is not None:
            raise ValueError(f"{name} were given, but the configuration has none; set {name}_in or leave them out.")
        if value is None and shape is not None and not optional:
            raise ValueError(f"{name} are missing; the configuration needs an array of shape {shape}.")
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} have shape {value.shape}; expected {shape}.")
        if value is not None and optional and value.dtype != jnp.bool_:
            raise ValueError(f"{name} has dtype {value.dtype}; expected bool, True where real.")
        if value is not None and not optional and value.dtype != positions.dtype:
            raise ValueError(f"{name} are {value.dtype}, positions {positions.dtype}; cast one of them.")
    if positions.dtype != params["embed_scalars"].dtype:
        raise ValueError(f"positions are {positions.dtype}, parameters {params['embed_scalars'].dtype}; cast one.")


def steerable_apply(
    params: PyTree,
    positions: Array,
    scalars: Array,
    config: SteerableConfig,
    *,
    vectors: Array | None = None,
    edge_scalars: Array | None = None,
    edges: Array | None = None,
    mask: Array | None = None,
    precision=lax.Precision.HIGHEST,
) -> SteerableOutput:
    """Runs the network on small dense graphs.

    Args:
      params: from `steerable_init`.
      positions: shape `[..., n, 3]`, dtype of `params`.
      scalars: invariant features of nodes, shape `[..., n, scalars_in]`, dtype of `params`.
      config: static description.
      vectors: vector features of nodes, shape `[..., n, vectors_in, 3]`, dtype of `params`.
      edge_scalars: invariant features of edges, entry `[i, j]` of the edge from j to i, shape `[..., n, n,
        edge_scalars_in]`, dtype of `params`.
      edges: True where j sends to i at `[i, j]`, shape `[..., n, n]`, bool; default all pairs. The diagonal is ignored.
      mask: True where a node is real, shape `[..., n]`, bool; default all.
      precision: static; precision of the matrix products.

    Returns:
      `SteerableOutput` with arrays `[..., n, ...]`, dtype of `params`.

    Raises:
      ValueError: if a shape or dtype does not fit the configuration.

    Example:
      >>> config = SteerableConfig(scalars_out=2, vectors_out=1, channels=4, layers=1)
      >>> params = steerable_init(jax.random.key(0), config)
      >>> out = steerable_apply(params, jnp.eye(3), jnp.ones((3, 1)), config)
      >>> out.scalars.shape, out.vectors.shape
      ((3, 2), (3, 1, 3))
    """
    positions, scalars = jnp.asarray(positions), jnp.asarray(scalars)
    _check(params, positions, scalars, config, vectors, edge_scalars, mask, edges)
    n, dtype = positions.shape[-2], positions.dtype
    zero = jnp.zeros((), dtype)
    real = jnp.ones(positions.shape[:-1], bool) if mask is None else mask
    pairs = real[..., :, None] & real[..., None, :] & jnp.broadcast_to(~np.eye(n, dtype=bool), (*real.shape, n))
    pairs = pairs if edges is None else pairs & edges
    positions, scalars = (jnp.where(real[..., None], v, zero) for v in (positions, scalars))
    inputs = [] if vectors is None else [jnp.where(real[..., None, None], vectors, zero)]
    around = _geometry(positions, inputs[0] if inputs else None, edge_scalars, pairs, config)
    if config.centred_positions:
        count = jnp.maximum(jnp.sum(real, axis=-1, dtype=jnp.int32), 1).astype(dtype)[..., None, None]
        centred = positions - jnp.sum(positions, axis=-2, keepdims=True) / count
        inputs.append(jnp.where(real[..., None], centred, zero)[..., None, :])
    x = jnp.matmul(scalars, params["embed_scalars"], precision=precision)[..., None, :]
    if inputs:
        # Degree one in e3nn's order is x, y, z.
        directions = jnp.swapaxes(jnp.concatenate(inputs, axis=-2), -1, -2)
        x = jnp.concatenate([x, jnp.matmul(directions, params["embed_vectors"], precision=precision)], axis=-2)
    x = jnp.moveaxis(x, (-2, -1), (0, 1))[None]
    static: dict[str, Any] = {"product": config.product, "lmax_out": config.lmax, "precision": precision}
    x = attribute_linear(params["embed"], (x,), around.nodes, **static)
    # A scan: one layer is traced and compiled, however many there are.
    x, _ = lax.scan(lambda x, layer: (_layer(layer, x, around, config, precision), None), x, params["layers"])
    x = attribute_linear(params["read_1"], (x,), around.nodes, **static)
    x = gated(params["read_gate"], x, precision=precision)
    x = attribute_linear(params["read_2"], (x,), around.nodes, **static)

    x = jnp.moveaxis(x, (0, 1, 2), (-3, -2, -1))

    def read(name, features):
        if f"out_{name}" not in params:
            return jnp.zeros((*features.shape[:-1], 0), dtype)
        keep = real.reshape((*real.shape, *(1,) * (features.ndim - real.ndim)))
        return jnp.where(keep, jnp.matmul(features, params[f"out_{name}"], precision=precision), zero)

    directions = x[..., 0, 1:4, :] if config.lmax else jnp.zeros((*real.shape, 3, config.channels), dtype)
    return SteerableOutput(
        read("scalars", x[..., 0, 0, :]),
        read("pseudoscalars", x[..., -1, 0, :]),
        jnp.swapaxes(read("vectors", directions), -1, -2),
    )


class SteerableNetwork(nn.Module):
    """Linen form of `steerable_apply`.

    Attributes:
      config: static description.
    """

    config: SteerableConfig

    @nn.compact
    def __call__(self, positions: Array, scalars: Array, **inputs: Any) -> SteerableOutput:
        """Runs the network on `[..., n, 3]` positions; `inputs` are the keywords of `steerable_apply`."""
        params = self.param("network", lambda key: steerable_init(key, self.config, dtype=positions.dtype))
        return steerable_apply(params, positions, scalars, self.config, **inputs)
