r"""EquiformerV2 for atoms on surfaces, with the Gaunt self-interaction ("Gaunt-Selfmix") as an option.

Atoms carry fields on the sphere, `[(lmax + 1)**2, channels]`. They start from their species and from how their
neighbours lie around them; each block then adds, in turn,

  1. graph attention in the frames of the edges (`equiformer_attention`),
  2. with `selfmix`, the product of two linear images of the field (`equiformer_layers.selfmix`), which lets high
     degrees of one atom speak to each other and to its scalars without going over an edge,
  3. a feed-forward network with a pointwise function on the sphere,

each of the normalised features. The energy is a sum of atomic energies; forces are a head of their own, one more
attention layer read at degree 1 (as published for OC20; fast, and not the gradient of anything), or the exact gradient.

Laws: for rotations Q, shifts t and permutations P of the atoms, `E(P(Q r + t)) == E(r)` and `F(P(Q r + t)) ==
P(Q F(r))`, to rounding with `activation="gate"`, and up to what the grid misses with `activation="sphere"` (see
`equiformer_layers`). Mirror images may have different energies. Energies and forces are continuous when atoms cross the
cut-off, but not where the graph keeps only the nearest neighbours.

Placement of the self-interaction: the paper's code for OC20 was not released; here it stands between attention and
feed-forward network, once per block.

References: Liao et al. 2024, arXiv:2306.12059; Luo et al. 2024, arXiv:2401.10216, section 4 (OC20).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax

from equivariant_jax.core.graphs import edge_mask, node_graph_index, node_mask
from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.segments import segment_sum
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.equiformer_attention import (
    AttentionConfig,
    FramedEdges,
    edge_degree_embedding,
    frame_edges,
    graph_attention,
    graph_attention_init,
)
from equivariant_jax.euclidean.equiformer_layers import (
    equivariant_layer_norm,
    feed_forward,
    feed_forward_init,
    layer_norm_init,
    selfmix,
    selfmix_init,
)
from equivariant_jax.euclidean.neighbours import check_atomic_graph
from equivariant_jax.euclidean.radial import bessel_basis, gaussian_basis
from equivariant_jax.nn.mlp import mlp_apply, mlp_init

__all__ = [
    "Equiformer",
    "EquiformerConfig",
    "EquiformerOutput",
    "equiformer_apply",
    "equiformer_block",
    "equiformer_init",
]


@dataclasses.dataclass(frozen=True)
class EquiformerConfig:
    """Everything static about the network; hashable. The defaults are the published sizes for OC20 (2M).

    Attributes:
      species: atomic numbers that the model knows, in the order of the graph's species index.
      r_max: cut-off radius in angstrom.
      lmax: largest degree.
      mmax: largest order in the frames of the edges.
      channels: channels of a node's features.
      layers: number of blocks.
      heads: attention heads.
      hidden_channels: channels inside the attention.
      alpha_channels: scalars per head behind an attention logit.
      value_channels: channels per head of a message.
      ffn_channels: channels inside the feed-forward network and the energy head.
      edge_channels: width of species embeddings of edges and of the radial networks.
      num_basis: radial basis functions.
      basis: "gaussian" (as published) or "bessel".
      cutoff_power: exponent p of the polynomial envelope.
      activation: "sphere" (SiLU on a grid) or "gate" (exactly equivariant).
      grid_degree: degree of the grid's rule; 17 resolves what the published 18 x 18 grid does.
      grid_mlp: feed-forward networks apply three layers at each grid point, as published, instead of one function.
      selfmix: whether blocks hold the Gaunt self-interaction.
      forces: "direct" (a head of its own) or "gradient" (minus the gradient of the energy).
      remat: compute each block anew in the backward pass, for memory.
      average_neighbours: mean number of neighbours, by which the first sum is normalised.
      average_atoms: mean number of atoms, by which the sum of atomic outputs is divided.
      energy_scale: in eV; the energy is `energy_shift + energy_scale * sum(outputs) / average_atoms`.
      energy_shift: in eV, for each structure.
      forces_scale: in eV/angstrom; unit of the direct force head.
    """

    species: tuple[int, ...]
    r_max: float = 12.0
    lmax: int = 6
    mmax: int = 2
    channels: int = 128
    layers: int = 12
    heads: int = 8
    hidden_channels: int = 64
    alpha_channels: int = 64
    value_channels: int = 16
    ffn_channels: int = 128
    edge_channels: int = 128
    num_basis: int = 512
    basis: Literal["gaussian", "bessel"] = "gaussian"
    cutoff_power: int = 5
    activation: Literal["sphere", "gate"] = "sphere"
    grid_degree: int = 17
    grid_mlp: bool = True
    selfmix: bool = False
    forces: Literal["direct", "gradient"] = "direct"
    remat: bool = False
    average_neighbours: float = 20.0
    average_atoms: float = 78.0
    energy_scale: float = 1.0
    energy_shift: float = 0.0
    forces_scale: float = 1.0

    def __post_init__(self):
        if not self.species or len(set(self.species)) != len(self.species):
            raise ValueError(f"species must be distinct atomic numbers, at least one, got {self.species}.")
        if self.forces not in ("direct", "gradient") or self.basis not in ("gaussian", "bessel"):
            raise ValueError(
                f'forces must be "direct" or "gradient" and basis "gaussian" or "bessel", got {self.forces!r} and '
                f"{self.basis!r}."
            )
        if self.lmax < 1 or min(self.channels, self.layers, self.heads, self.num_basis) < 1:
            raise ValueError(f"lmax, channels, layers, heads and num_basis must be at least 1, got {self}.")
        if self.activation == "sphere" and self.grid_degree < 2 * self.lmax:
            raise ValueError(f"grid_degree must be at least 2 lmax = {2 * self.lmax}, got {self.grid_degree}.")
        _ = self.attention  # checks orders and activation

    @property
    def attention(self) -> AttentionConfig:
        """Sizes of the attention layers."""
        return AttentionConfig(
            lmax=self.lmax,
            mmax=self.mmax,
            channels=self.channels,
            hidden_channels=self.hidden_channels,
            heads=self.heads,
            alpha_channels=self.alpha_channels,
            value_channels=self.value_channels,
            radial_widths=self.radial_widths,
            activation=self.activation,
            grid_degree=self.grid_degree,
        )

    @property
    def radial_widths(self) -> tuple[int, ...]:
        """Widths of the radial networks before the last layer: inputs, then hidden."""
        return (self.num_basis + 2 * self.edge_channels, self.edge_channels, self.edge_channels)


class EquiformerOutput(NamedTuple):
    """What the network predicts for a (padded) batch; zeros on padding.

    Attributes:
      energy: shape `[n_graph]`, in eV.
      forces: shape `[n_node, 3]`, in eV/angstrom.
    """

    energy: Array
    forces: Array


def _block_init(key: PRNGKey, config: EquiformerConfig, dtype) -> PyTree:
    attention, mix, forward = jax.random.split(key, 3)
    norm = layer_norm_init(config.lmax, config.channels, dtype=dtype)
    params = {
        "attention_norm": norm,
        "attention": graph_attention_init(attention, config.attention, config.channels, dtype=dtype),
        "forward_norm": norm,
        "forward": feed_forward_init(
            forward,
            config.lmax,
            config.channels,
            config.ffn_channels,
            gated=config.activation == "gate",
            grid_mlp=config.grid_mlp and config.activation == "sphere",
            dtype=dtype,
        ),
    }
    if config.selfmix:
        params |= {"selfmix_norm": norm, "selfmix": selfmix_init(mix, config.lmax, config.channels, dtype=dtype)}
    return params


def equiformer_init(key: PRNGKey, config: EquiformerConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters with which activations are O(1) at every layer.

    Args:
      key: typed random key.
      config: static description.
      dtype: parameter dtype, which must be that of the positions later.

    Returns:
      Dict of arrays: `embedding` of shape `[species, channels]`, `sender_embedding` and `receiver_embedding` of shape
      `[species, edge_channels]`, `edge_degree`, `norm`, `energy`, `forces` (if direct) and `blocks`, whose leaves have
      a leading axis `[layers]`.

    Example:
      >>> config = EquiformerConfig(species=(1, 8), lmax=1, mmax=1, channels=4, layers=2, heads=1, num_basis=8)
      >>> shapes = jax.eval_shape(lambda: equiformer_init(jax.random.key(0), config))
      >>> shapes["blocks"]["attention"]["project"].shape
      (2, 2, 16, 4)
    """
    keys = jax.random.split(key, 7)
    num_species = len(config.species)

    def embedding(key, width):
        return jax.random.normal(key, (num_species, width), dtype)

    params: dict[str, Any] = {
        "embedding": embedding(keys[0], config.channels),
        "sender_embedding": embedding(keys[1], config.edge_channels),
        "receiver_embedding": embedding(keys[2], config.edge_channels),
        "edge_degree": mlp_init(keys[3], (*config.radial_widths, (config.lmax + 1) * config.channels), dtype=dtype),
        "blocks": jax.vmap(lambda key: _block_init(key, config, dtype))(jax.random.split(keys[4], config.layers)),
        "norm": layer_norm_init(config.lmax, config.channels, dtype=dtype),
        "energy": mlp_init(keys[5], (config.channels, config.ffn_channels, 1), dtype=dtype),
    }
    if config.forces == "direct":
        params["forces"] = graph_attention_init(keys[6], config.attention, 1, dtype=dtype)
    return params


def equiformer_block(
    params: PyTree, x: Array, edges: FramedEdges, config: EquiformerConfig, *, precision=lax.Precision.HIGHEST
) -> Array:
    """Applies one block: attention, self-interaction if the configuration has it, feed-forward network.

    Args:
      params: one block's, without the leading axis `[layers]` (pytree).
      x: node features, shape `[n_node, (lmax + 1)**2, channels]`, float.
      edges: the edges in their frames, arrays of shapes `[n_edge, ...]`, dtype of `x`.
      config: static description.
      precision: static; precision of the matrix products.

    Returns:
      Array of the shape and dtype of `x`.
    """
    normed = equivariant_layer_norm(params["attention_norm"], x)
    x = x + graph_attention(params["attention"], normed, edges, config.attention, precision=precision)
    if config.selfmix:
        x = x + selfmix(params["selfmix"], equivariant_layer_norm(params["selfmix_norm"], x), precision=precision)
    normed = equivariant_layer_norm(params["forward_norm"], x)
    return x + feed_forward(params["forward"], normed, grid_degree=config.grid_degree, precision=precision)


def _edge_features(params: PyTree, vectors: Array, graph: Any, config: EquiformerConfig) -> Array:
    species, distance = jnp.asarray(graph.nodes["species"]), safe_norm(vectors)
    if config.basis == "gaussian":
        basis = gaussian_basis(distance, config.num_basis, config.r_max)
    else:
        # In units in which the mean square over the ball of radius r_max is one.
        unit = np.asarray((config.r_max**3 / 3) ** 0.5, vectors.dtype)
        basis = bessel_basis(distance, config.num_basis, config.r_max) * unit
    ends = (("sender_embedding", graph.senders), ("receiver_embedding", graph.receivers))
    return jnp.concatenate([basis, *(params[name][species[jnp.asarray(end)]] for name, end in ends)], axis=-1)


def _forward(params, vectors, mask, graph, config: EquiformerConfig, precision) -> tuple[Array, Array]:
    # Atomic outputs [n_node], and direct forces [n_node, 3], zeros where there is no head for them.
    species = jnp.asarray(graph.nodes["species"])
    edges = frame_edges(
        vectors,
        _edge_features(params, vectors, graph, config),
        jnp.asarray(graph.senders),
        jnp.asarray(graph.receivers),
        mask=mask,
        config=config.attention,
        r_max=config.r_max,
        cutoff_power=config.cutoff_power,
    )
    x = edge_degree_embedding(params["edge_degree"], edges, species.shape[0], lmax=config.lmax, precision=precision)
    # A sum of n terms of variance one, where n is the typical number of neighbours.
    x = x * np.asarray(config.average_neighbours**-0.5, x.dtype)
    x = jnp.concatenate([x[:, :1] + params["embedding"][species][:, None], x[:, 1:]], axis=1)

    def body(x, block):
        return equiformer_block(block, x, edges, config, precision=precision), None

    x, _ = lax.scan(jax.checkpoint(body) if config.remat else body, x, params["blocks"])
    x = equivariant_layer_norm(params["norm"], x)
    atomic = mlp_apply(params["energy"], x[:, 0], precision=precision)[:, 0]
    if config.forces == "gradient":
        return atomic, jnp.zeros((species.shape[0], 3), x.dtype)
    field = graph_attention(params["forces"], x, edges, config.attention, precision=precision)
    return atomic, field[:, 1:4, 0] * np.asarray(config.forces_scale, x.dtype)


def equiformer_apply(
    params: PyTree, graph: jraph.GraphsTuple, config: EquiformerConfig, *, precision=lax.Precision.HIGHEST
) -> EquiformerOutput:
    """Evaluates energies and forces of a padded batch.

    Args:
      params: from `equiformer_init`.
      graph: padded batch; `nodes` with `positions` `[n_node, 3]` in angstrom and `species` int32 `[n_node]`, `edges`
        with `shifts` `[n_edge, 3]` (edge vector = sender - receiver + shift).
      config: static description.
      precision: static; precision of the matrix products.

    Returns:
      `EquiformerOutput`, energies `[n_graph]` and forces `[n_node, 3]`, dtype of `params`; zeros on padding.

    Raises:
      ValueError: if the graph lacks a field or the dtypes differ.

    Example:
      >>> sizes = dict(lmax=1, mmax=1, channels=4, layers=1, heads=1, num_basis=8, edge_channels=4, grid_degree=3)
      >>> config = EquiformerConfig(species=(1,), **sizes)
      >>> nodes = {"positions": jnp.array([[0.0, 0, 0], [0.9, 0, 0]]), "species": jnp.zeros(2, int)}
      >>> ends = {"senders": jnp.array([1, 0]), "receivers": jnp.array([0, 1])}
      >>> counts = {"n_node": jnp.array([2]), "n_edge": jnp.array([2])}
      >>> two = jraph.GraphsTuple(nodes, {"shifts": jnp.zeros((2, 3))}, globals={}, **ends, **counts)
      >>> from equivariant_jax.core.graphs import GraphBudget, pad
      >>> padded = pad(two, GraphBudget(n_node=3, n_edge=2, n_graph=2))
      >>> params = jax.eval_shape(lambda: equiformer_init(jax.random.key(0), config))  # sizes only: fast
      >>> out = jax.eval_shape(lambda params: equiformer_apply(params, padded, config), params)
      >>> out.energy.shape, out.forces.shape
      ((2,), (3, 3))
    """
    check_atomic_graph(graph, params["embedding"].dtype)
    params = jax.tree.map(jnp.asarray, params)  # NumPy leaves, as a checkpoint holds them, cannot be indexed by tracers
    nodes: Any = graph.nodes
    edges: Any = graph.edges
    positions = jnp.asarray(nodes["positions"])
    senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    dtype, num_nodes, num_graphs = positions.dtype, positions.shape[0], graph.n_node.shape[0]
    real, graph_of, mask = node_mask(graph), node_graph_index(graph), edge_mask(graph)
    vectors = positions[senders] - positions[receivers] + jnp.asarray(edges["shifts"])
    vectors = jnp.where(mask[:, None], vectors, jnp.zeros((), dtype))
    scale = np.asarray(config.energy_scale / config.average_atoms, dtype)

    def evaluate(vectors):
        atomic, forces = _forward(params, vectors, mask, graph, config, precision)
        atomic = jnp.where(real, atomic * scale, jnp.zeros((), dtype))
        return jnp.sum(atomic), (atomic, forces)

    if config.forces == "direct":
        _, (atomic, forces) = evaluate(vectors)
    else:
        # The energy depends on the edge vectors alone: an atom's force is what its edges pull.
        gradient, (atomic, forces) = jax.grad(evaluate, has_aux=True)(vectors)
        forces = segment_sum(gradient, receivers, num_nodes, mask=mask) - segment_sum(
            gradient, senders, num_nodes, mask=mask
        )
    energy = segment_sum(atomic, graph_of, num_graphs, mask=real)
    shift = np.asarray(config.energy_shift, dtype)
    occupied = segment_sum(real.astype(dtype), graph_of, num_graphs) > 0
    return EquiformerOutput(
        energy=jnp.where(occupied, energy + shift, jnp.zeros((), dtype)),
        forces=jnp.where(real[:, None], forces, jnp.zeros((), dtype)),
    )


class Equiformer(nn.Module):
    """Linen form of `equiformer_apply`.

    Attributes:
      config: static description.
    """

    config: EquiformerConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple) -> EquiformerOutput:
        """Evaluates a padded batch; parameters take the dtype of its positions."""
        nodes: Any = graph.nodes
        dtype = nodes["positions"].dtype
        params = self.param("equiformer", lambda key: equiformer_init(key, self.config, dtype=dtype))
        return equiformer_apply(params, graph, self.config)
