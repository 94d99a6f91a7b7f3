"""Neighbourhoods as a table of slots, `[n_node, max_neighbours]`, instead of a list of edges.

With a row of slots per receiver, the sum over neighbours becomes the inner axis of a matrix product, where a list of
edges needs a product edge by edge and a scatter. The price is `max_neighbours` slots for every node, 80-95 % full for
molecules and crystals.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from equivariant_jax.core.segments import segment_count
from equivariant_jax.core.typing import Array

__all__ = ["NeighbourSlots", "check_atomic_graph", "neighbour_slots"]


class NeighbourSlots(NamedTuple):
    """Which edge stands in which slot.

    Attributes:
      edges: index of the edge, shape `[n_node, max_neighbours]`, int32; 0 in empty slots.
      mask: True where a slot holds a real edge, shape `[n_node, max_neighbours]`, bool.
      overflow: True if a node had more than `max_neighbours` real edges, shape `[]`, bool; the result is then wrong and
        must not be used.
    """

    edges: Array
    mask: Array
    overflow: Array


def check_atomic_graph(graph: Any, dtype: Any) -> None:
    """Checks that a graph of atoms has the fields that a potential reads.

    Args:
      graph: `jraph.GraphsTuple`.
      dtype: of the potential's parameters.

    Raises:
      ValueError: if `positions`, `species` or `shifts` is missing, or the positions have another dtype.
    """
    if not isinstance(graph.nodes, dict) or not {"positions", "species"} <= set(graph.nodes):
        raise ValueError("The graph's nodes must be a dict with `positions` [n, 3] and `species` [n]; see to_graph.")
    if not isinstance(graph.edges, dict) or "shifts" not in graph.edges:
        raise ValueError("The graph's edges must be a dict with `shifts` [e, 3] (zeros without a lattice).")
    positions = graph.nodes["positions"]
    if positions.dtype != dtype:
        raise ValueError(f"positions are {positions.dtype}, parameters {dtype}; cast one of them.")


def neighbour_slots(receivers: Array, num_nodes: int, max_neighbours: int, *, mask: Array) -> NeighbourSlots:
    """Sorts edges into slots of their receivers.

    Args:
      receivers: receiver of each edge, shape `[n_edge]`, int32, in any order.
      num_nodes: static; number of nodes.
      max_neighbours: static; number of slots per node.
      mask: True where an edge is real, shape `[n_edge]`, bool.

    Returns:
      `NeighbourSlots`; slots of a node keep the order of its edges.

    Raises:
      ValueError: if shapes do not fit or `max_neighbours` is below 1.

    Example:
      >>> slots = neighbour_slots(jnp.array([1, 0, 1]), 2, 2, mask=jnp.array([True, True, True]))
      >>> slots.edges.tolist(), slots.mask.tolist()
      ([[1, 0], [0, 2]], [[True, False], [True, True]])
    """
    if receivers.ndim != 1 or mask.shape != receivers.shape or max_neighbours < 1:
        raise ValueError(
            f"neighbour_slots got receivers {receivers.shape}, mask {mask.shape}, max_neighbours={max_neighbours}; "
            "expected two vectors of one length and at least one slot."
        )
    # Padding edges go behind all nodes, where the scatter drops them.
    owner = jnp.where(mask, receivers, num_nodes)
    order = jnp.argsort(owner, stable=True).astype(jnp.int32)
    owner = owner[order]
    counts = segment_count(owner, num_nodes + 1, indices_are_sorted=True)
    first = jnp.cumsum(counts) - counts
    position = jnp.arange(owner.size, dtype=jnp.int32) - first[owner].astype(jnp.int32)
    table = jnp.full((num_nodes, max_neighbours), -1, jnp.int32)
    table = table.at[owner, position].set(order, mode="drop")
    filled = table >= 0
    return NeighbourSlots(jnp.where(filled, table, 0), filled, jnp.any(counts[:num_nodes] > max_neighbours))
