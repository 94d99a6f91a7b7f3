"""EqMotion on the edges of graphs, for scenes of many agents of which each sees some.

On complete graphs it gives what `eqmotion_apply` gives, with the same parameters; with fewer edges each agent is moved
by those it receives from alone. The law is the same: E(n), and permutations of agents along with the edges. Memory and
time grow with the number of edges instead of agents squared.
"""

import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.euclidean.motion import MotionConfig, motion_on_pairs
from equivariant_jax.euclidean.motion_pairs import EdgePairs

__all__ = ["eqmotion_graph_apply"]


def eqmotion_graph_apply(
    params: PyTree,
    positions: Array,
    senders: Array,
    receivers: Array,
    config: MotionConfig,
    *,
    mask: Array | None = None,
    edge_mask: Array | None = None,
    graph_of: Array | None = None,
    num_graphs: int = 1,
    receivers_are_sorted: bool = False,
    recompute: bool = True,
    precision=lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
    """Predicts future positions of the nodes of graphs, and categories of their edges.

    Args:
      params: from `eqmotion_init`.
      positions: past positions, shape `[nodes, past, n]`, dtype of `params`.
      senders: agent j that is seen, int, shape `[edges]`; no edge from an agent to itself.
      receivers: agent i that sees it, int, shape `[edges]`.
      config: static.
      mask: which agents are there, bool, shape `[nodes]`; None for all. What stands at the others has no effect.
      edge_mask: which edges are there, bool, shape `[edges]`; None for all.
      graph_of: graph of each node, int in `[0, num_graphs)`, shape `[nodes]`; None for a single graph.
      num_graphs: static; graphs, each with a mean of its own.
      receivers_are_sorted: static; promise that `receivers` do not decrease.
      recompute: static; whether the backward pass computes each layer's arrays of edges again instead of keeping them.
      precision: static; of the products.

    Returns:
      Predictions, shape `[heads, nodes, future, n]`, zero for agents that are not there; and the categories'
      probabilities `[edges, categories]`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> import jax
      >>> from equivariant_jax.euclidean.motion import eqmotion_init
      >>> config = MotionConfig(past=5, future=3, scalars=8, channels=8)
      >>> params, edges = eqmotion_init(jax.random.key(0), config), (jnp.array([0, 1]), jnp.array([1, 2]))
      >>> predicted, categories = eqmotion_graph_apply(params, jnp.zeros((3, 5, 2)), *edges, config)
      >>> predicted.shape, categories.shape
      ((1, 3, 3, 2), (2, 2))
    """
    if positions.ndim != 3 or positions.shape[1] != config.past:
        raise ValueError(f"positions: got shape {positions.shape}, expected [nodes, {config.past}, n].")
    nodes, edges = positions.shape[0], senders.shape[:1]
    mask = jnp.ones(nodes, bool) if mask is None else mask
    edge_mask = jnp.ones(edges, bool) if edge_mask is None else edge_mask
    graph_of = jnp.zeros(nodes, jnp.int32) if graph_of is None else graph_of
    expected = {"senders": (senders, edges), "receivers": (receivers, edges), "edge_mask": (edge_mask, edges),
                "mask": (mask, (nodes,)), "graph_of": (graph_of, (nodes,))}  # fmt: skip
    for name, (value, shape) in expected.items():
        if value.ndim != 1 or value.shape != shape:
            raise ValueError(f"{name}: got shape {value.shape}, expected {shape or '[edges]'} for {nodes} nodes.")
    # An edge of an agent that is not there is not there either.
    edge_mask = edge_mask & mask[senders] & mask[receivers]
    pairs = EdgePairs(mask, senders, receivers, edge_mask, graph_of, num_graphs, receivers_are_sorted)
    return motion_on_pairs(params, positions, pairs, config, recompute=recompute, precision=precision)
