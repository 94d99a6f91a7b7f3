"""Batches of `jraph.GraphsTuple` with a static budget of nodes, edges and graphs.

Ragged graphs become arrays of one fixed shape, so that a training run compiles once. The convention is jraph's: behind
the real graphs stands one *padding graph* that takes all padding nodes (at least one) and all padding edges, and behind
it as many empty graphs as fill the budget. Padding edges connect padding nodes, so messages never reach a real node.

The host side (`plan_budget`, `pack`, `batch`, `pad`, `stack`) is NumPy; the masks run under `jit`.

Law: for every model `f` on graphs and every budget that fits, `f(pad(g, budget))` equals `f(g)` on real items.

Reference: Godwin et al. 2020, jraph (whose `zero_out_padding` and `with_zero_out_padding_outputs` call the removed
`jax.tree_map` and are not used here).
"""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
# jraph annotates its fields as jax arrays that may be None; host-side batches are NumPy arrays.

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equivariant_jax.core.typing import Array

__all__ = [
    "GraphBudget",
    "batch",
    "edge_mask",
    "fill_factor",
    "graph_mask",
    "node_graph_index",
    "node_mask",
    "pack",
    "pad",
    "plan_budget",
    "stack",
    "unpad",
]


@dataclasses.dataclass(frozen=True)
class GraphBudget:
    """The fixed size of a padded batch; each number includes the padding.

    Attributes:
      n_node: nodes in total, at least one of them padding.
      n_edge: edges in total.
      n_graph: graphs in total, at least one of them padding.

    Example:
      >>> GraphBudget(n_node=64, n_edge=256, n_graph=9).n_graph
      9
    """

    n_node: int
    n_edge: int
    n_graph: int

    def __post_init__(self):
        if self.n_node < 1 or self.n_graph < 1 or self.n_edge < 0:
            raise ValueError(
                f"{self} leaves no room for padding; n_node and n_graph must be at least 1 and n_edge at least 0."
            )

    def fits(self, n_node: int, n_edge: int, n_graph: int) -> bool:
        """Whether so many real nodes, edges and graphs leave room for the padding graph (one node, one graph)."""
        return n_node < self.n_node and n_edge <= self.n_edge and n_graph < self.n_graph


def plan_budget(
    n_node: Sequence[int], n_edge: Sequence[int], *, batch_size: int, multiple: int = 8, slack: float = 0.0
) -> GraphBudget:
    """Finds a budget for about `batch_size` graphs a batch from the sizes of the graphs in a data set.

    Nodes and edges get `batch_size` times their mean, widened by `slack` standard deviations of a batch's sum, never
    less than the largest single graph, and rounded up to `multiple` (accelerators like multiples of 8 or 128). On sets
    of equal graphs every batch is full; on ragged sets greedy packing fills about 95 %.

    Args:
      n_node: nodes of each graph, length `[num_graphs]`.
      n_edge: edges of each graph, length `[num_graphs]`.
      batch_size: real graphs a batch should hold on average, at least 1.
      multiple: what nodes and edges are rounded up to.
      slack: standard deviations of head room for a batch that is larger than the average.

    Returns:
      The budget, padding included.

    Raises:
      ValueError: if the lists are empty, differ in length, or hold a negative number, or `batch_size < 1`.

    Example:
      >>> plan_budget([11] * 100, [90] * 100, batch_size=4)
      GraphBudget(n_node=48, n_edge=360, n_graph=5)
    """
    nodes, edges = np.asarray(n_node, np.int64), np.asarray(n_edge, np.int64)
    if nodes.ndim != 1 or nodes.shape != edges.shape or nodes.size == 0:
        raise ValueError(
            f"plan_budget got n_node of shape {nodes.shape} and n_edge of shape {edges.shape}; expected two lists of "
            "one equal, positive length: one entry for each graph of the data set."
        )
    if batch_size < 1 or nodes.min() < 0 or edges.min() < 0:
        raise ValueError(
            f"plan_budget got batch_size={batch_size}, smallest n_node={nodes.min()}, smallest n_edge={edges.min()}; "
            "expected batch_size >= 1 and no negative size."
        )

    def total(sizes: np.ndarray) -> int:
        spread = slack * sizes.std() * np.sqrt(batch_size)
        return int(max(np.ceil(batch_size * sizes.mean() + spread), sizes.max()))

    def up(x: int) -> int:
        return -(-x // multiple) * multiple

    # A varying graph count lets small graphs share a batch; for equal graphs the count is exact.
    ragged = nodes.min() != nodes.max() or edges.min() != edges.max()
    n_graph = batch_size + (max(1, batch_size // 2) if ragged else 0)
    return GraphBudget(n_node=up(total(nodes) + 1), n_edge=up(total(edges)), n_graph=n_graph + 1)


def pack(n_node: Sequence[int], n_edge: Sequence[int], budget: GraphBudget) -> list[list[int]]:
    """Packs graphs greedily, in the order given, into batches that fit the budget.

    Each batch takes graphs from the front of the queue and skips one that does not fit any more, within a window of
    64 graphs, so that order (and thus shuffling) is nearly kept and large graphs do not leave holes.

    Args:
      n_node: nodes of each graph, length `[num_graphs]`.
      n_edge: edges of each graph, length `[num_graphs]`.
      budget: what a batch may hold.

    Returns:
      Indices of the graphs of each batch; every graph appears exactly once.

    Raises:
      ValueError: if a single graph does not fit; the message names it.

    Example:
      >>> pack([3, 3, 3], [2, 2, 2], GraphBudget(n_node=7, n_edge=8, n_graph=3))
      [[0, 1], [2]]
    """
    for i, (v, e) in enumerate(zip(n_node, n_edge, strict=True)):
        if not budget.fits(v, e, 1):
            raise ValueError(
                f"graph {i} has {v} nodes and {e} edges and does not fit {budget} (one node and one graph are kept for "
                "padding); plan the budget from all graphs of the data set or make it larger."
            )
    window, rest, batches = 64, iter(range(len(n_node))), []
    waiting = list(itertools.islice(rest, window))
    while waiting:
        chosen, passed_over = [], []
        v = e = 0
        for i in waiting:
            if budget.fits(v + n_node[i], e + n_edge[i], len(chosen) + 1):
                chosen.append(i)
                v, e = v + n_node[i], e + n_edge[i]
            else:
                passed_over.append(i)
        batches.append(chosen)
        waiting = passed_over + list(itertools.islice(rest, window - len(passed_over)))
    return batches


def batch(graphs: Sequence[jraph.GraphsTuple]) -> jraph.GraphsTuple:
    """Joins graphs into one `GraphsTuple` of NumPy arrays, node indices shifted.

    Args:
      graphs: graphs with equal structure of features; `nodes` leaves `[n_node, ...]`, `edges` leaves `[n_edge, ...]`,
        `globals` leaves `[n_graph, ...]`, `senders` and `receivers` int `[n_edge]`.

    Returns:
      One graph tuple whose leaves are concatenated along the first axis.

    Raises:
      ValueError: if the list is empty.
    """
    if not graphs:
        raise ValueError("batch got no graphs; expected at least one jraph.GraphsTuple.")
    offsets = np.cumsum([0] + [int(np.sum(g.n_node)) for g in graphs[:-1]])

    def join(name):
        return jax.tree.map(lambda *x: np.concatenate(x, axis=0), *(getattr(g, name) for g in graphs))

    def indices(name):
        parts = [np.asarray(getattr(g, name)) + o for g, o in zip(graphs, offsets, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    return jraph.GraphsTuple(
        nodes=join("nodes"),
        edges=join("edges"),
        globals=join("globals"),
        senders=indices("senders"),
        receivers=indices("receivers"),
        n_node=join("n_node"),
        n_edge=join("n_edge"),
    )


def pad(graph: jraph.GraphsTuple, budget: GraphBudget) -> jraph.GraphsTuple:
    """Pads a (batched) graph with zeros to the budget.

    Padding edges run from the first padding node to itself, so receivers that were sorted stay sorted.

    Args:
      graph: graphs with `nodes` leaves `[n_node, ...]`, `edges` leaves `[n_edge, ...]`, `globals` leaves
        `[n_graph, ...]`.
      budget: the size to reach.

    Returns:
      A graph tuple of NumPy arrays with leading axes `budget.n_node`, `budget.n_edge`, `budget.n_graph`.

    Raises:
      ValueError: if the graph does not fit.

    Example:
      >>> g = jraph.GraphsTuple(
      ...     np.ones((2, 3)), None, np.zeros(0, int), np.zeros(0, int), np.ones((1, 1)), np.array([2]), np.array([0])
      ... )
      >>> p = pad(g, GraphBudget(n_node=4, n_edge=2, n_graph=3))
      >>> p.nodes.shape, p.n_node.tolist(), node_mask(p).tolist()
      ((4, 3), [2, 2, 0], [True, True, False, False])
    """
    n_node, n_edge, n_graph = int(np.sum(graph.n_node)), int(np.sum(graph.n_edge)), len(graph.n_node)
    if not budget.fits(n_node, n_edge, n_graph):
        raise ValueError(
            f"pad got {n_node} nodes, {n_edge} edges and {n_graph} graphs, which do not fit {budget} (one node and one "
            "graph are kept for padding); use plan_budget and pack, or a larger budget."
        )

    def fill(tree, size):
        def one(x):
            x = np.asarray(x)
            return np.concatenate([x, np.zeros((size - x.shape[0], *x.shape[1:]), x.dtype)])

        return jax.tree.map(one, tree)

    def connect(x):
        return np.concatenate([np.asarray(x), np.full(budget.n_edge - n_edge, n_node)]).astype(np.int32)

    def sizes(counts, rest):
        tail = np.zeros(budget.n_graph - n_graph, np.int32)
        tail[0] = rest
        return np.concatenate([np.asarray(counts), tail]).astype(np.int32)

    return jraph.GraphsTuple(
        nodes=fill(graph.nodes, budget.n_node),
        edges=fill(graph.edges, budget.n_edge),
        globals=fill(graph.globals, budget.n_graph),
        senders=connect(graph.senders),
        receivers=connect(graph.receivers),
        n_node=sizes(graph.n_node, budget.n_node - n_node),
        n_edge=sizes(graph.n_edge, budget.n_edge - n_edge),
    )


def _count_real_graphs(n_node) -> Array:
    # The padding graph is the last one with nodes; everything behind it is empty.
    n_node = jnp.asarray(n_node)
    has_nodes = (n_node > 0).astype(jnp.int32)
    return n_node.shape[0] - 1 - jnp.argmax(has_nodes[::-1])


def graph_mask(graph: jraph.GraphsTuple) -> Array:
    """Marks real graphs of a padded batch.

    Args:
      graph: padded batch.

    Returns:
      True = real, bool `[n_graph]`.
    """
    return jnp.arange(graph.n_node.shape[0]) < _count_real_graphs(graph.n_node)


def _item_mask(counts, real: Array, size: int) -> Array:
    counts = jnp.asarray(counts)
    total = jnp.sum(jnp.where(jnp.arange(counts.shape[0]) < real, counts, 0))
    return jnp.arange(size) < total


def node_mask(graph: jraph.GraphsTuple) -> Array:
    """Marks real nodes of a padded batch.

    Args:
      graph: padded batch.

    Returns:
      True = real, bool `[n_node]`.

    Raises:
      ValueError: if the graph has no node features, since the number of nodes is then unknown under `jit`.
    """
    return _item_mask(graph.n_node, _count_real_graphs(graph.n_node), _num_nodes(graph))


def edge_mask(graph: jraph.GraphsTuple) -> Array:
    """Marks real edges of a padded batch.

    Args:
      graph: padded batch.

    Returns:
      True = real, bool `[n_edge]`.
    """
    return _item_mask(graph.n_edge, _count_real_graphs(graph.n_node), graph.senders.shape[0])


def _num_nodes(graph: jraph.GraphsTuple) -> int:
    leaves = jax.tree.leaves(graph.nodes)
    if not leaves:
        raise ValueError("the graph has no node features (nodes=None); expected at least one array `[n_node, ...]`.")
    return leaves[0].shape[0]


def node_graph_index(graph: jraph.GraphsTuple) -> Array:
    """Gives for each node the index of its graph.

    Args:
      graph: padded batch.

    Returns:
      Index, int32 `[n_node]`, not decreasing, so that read-outs can promise sorted segments.

    Raises:
      ValueError: if the graph has no node features.
    """
    n_graph = graph.n_node.shape[0]
    return jnp.repeat(jnp.arange(n_graph, dtype=jnp.int32), graph.n_node, total_repeat_length=_num_nodes(graph))


def fill_factor(graphs: jraph.GraphsTuple | Iterable[jraph.GraphsTuple]) -> dict[str, float]:
    """The share of real nodes, edges and graphs in padded batches: what padding costs.

    Args:
      graphs: one padded batch or several.

    Returns:
      `{"node": ..., "edge": ..., "graph": ...}`, each between 0 and 1 (1 where there was nothing to fill).
    """
    several = [graphs] if isinstance(graphs, jraph.GraphsTuple) else list(graphs)
    real, total = np.zeros(3), np.zeros(3)
    for g in several:
        k = int(_count_real_graphs(g.n_node))
        real += [np.sum(g.n_node[:k]), np.sum(g.n_edge[:k]), k]
        total += [np.sum(g.n_node), np.sum(g.n_edge), len(g.n_node)]
    share = np.where(total > 0, real / np.maximum(total, 1), 1.0)
    return dict(zip(("node", "edge", "graph"), (float(s) for s in share), strict=True))


def stack(graphs: Sequence[jraph.GraphsTuple]) -> jraph.GraphsTuple:
    """Stacks padded batches of one budget along a new leading device axis, for `shard_map` or `pmap`.

    Args:
      graphs: padded batches of equal shapes, one for each device.

    Returns:
      A graph tuple whose every leaf has the leading axis `[num_devices]`.

    Raises:
      ValueError: if the list is empty or shapes differ.
    """
    if not graphs:
        raise ValueError("stack got no graphs; expected one padded batch for each device.")
    shapes = [[np.shape(x) for x in jax.tree.leaves(g)] for g in graphs]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"stack got graph {i} with shapes {shape} beside {shapes[0]}; pad all to one budget first."
            )
    return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *graphs)


def unpad(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Removes the padding again, on the host: the inverse of `pad`.

    Args:
      graph: a padded batch.

    Returns:
      A graph tuple of NumPy arrays that holds the real graphs only.
    """
    k = int(_count_real_graphs(graph.n_node))
    v, e = int(np.sum(graph.n_node[:k])), int(np.sum(graph.n_edge[:k]))

    def cut(tree, size):
        return jax.tree.map(lambda x: np.asarray(x)[:size], tree)

    return jraph.GraphsTuple(
        nodes=cut(graph.nodes, v),
        edges=cut(graph.edges, e),
        globals=cut(graph.globals, k),
        senders=cut(graph.senders, e),
        receivers=cut(graph.receivers, e),
        n_node=cut(graph.n_node, k),
        n_edge=cut(graph.n_edge, k),
    )
