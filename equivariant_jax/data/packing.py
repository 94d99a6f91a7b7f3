"""Batches of graphs of one fixed size: packed greedily anew each epoch, padded, one for each device, resumable exactly.

How many batches an epoch has depends on its order, so the packing of an epoch is planned as a whole from the sizes of
the graphs: pure in (seed, epoch), equal on all processes, and known before a single graph is read. A step takes one
pack for every device of every process; the devices are numbered process by process, so two processes of one device
continue what one process of two devices began.
"""

from collections.abc import Sequence

import jax
import jraph
import numpy as np

from equivariant_jax.core import graphs as graph_batches
from equivariant_jax.core.graphs import GraphBudget
from equivariant_jax.data.pipeline import Pipeline, checked_seed, epoch_order, process_position
from equivariant_jax.data.sources import RandomAccessSource

__all__ = ["GraphPipeline", "graph_pipeline", "graph_sizes"]


def graph_sizes(source: RandomAccessSource[jraph.GraphsTuple]) -> tuple[np.ndarray, np.ndarray]:
    """Reads how many nodes and edges each graph has, for `core.graphs.plan_budget` and `graph_pipeline`.

    Args:
      source: the graphs; each is read once.

    Returns:
      `n_node` and `n_edge`, both int64 `[len(source)]`.

    Example:
      >>> pair = jraph.GraphsTuple(
      ...     np.ones((2, 3)), None, np.array([0]), np.array([1]), None, np.array([2]), np.array([1])
      ... )
      >>> graph_sizes([pair, pair])
      (array([2, 2]), array([1, 1]))
    """
    sizes = [(int(np.sum(g.n_node)), int(np.sum(g.n_edge))) for g in (source[i] for i in range(len(source)))]
    n_node, n_edge = np.array(sizes, np.int64).reshape(-1, 2).T
    return n_node, n_edge


class GraphPipeline(Pipeline[jraph.GraphsTuple]):
    """A pipeline over padded graph batches that knows how full they are; made by `graph_pipeline`."""

    def __init__(self, *args, n_node: np.ndarray, n_edge: np.ndarray, budget: GraphBudget, **kwargs):
        super().__init__(*args, **kwargs)
        self._sizes = (n_node, n_edge, np.ones_like(n_node))
        self.budget = budget

    def fill_factor(self, epoch: int = 0) -> dict[str, float]:
        """The share of real nodes, edges and graphs in the batches of an epoch, over all processes and devices.

        Returns:
          `{"node": ..., "edge": ..., "graph": ...}`, each between 0 and 1; the same as `core.graphs.fill_factor` over
          the batches themselves, without reading them.
        """
        packs = [pack for step in self._plan(epoch) for pack in step]
        chosen = np.concatenate([np.array(pack, np.int64) for pack in packs])
        room = (self.budget.n_node, self.budget.n_edge, self.budget.n_graph)
        share = [
            float(sizes[chosen].sum() / (len(packs) * most)) if most else 1.0
            for sizes, most in zip(self._sizes, room, strict=True)
        ]
        return dict(zip(("node", "edge", "graph"), share, strict=True))


def graph_pipeline(
    source: RandomAccessSource[jraph.GraphsTuple],
    budget: GraphBudget,
    *,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    devices: int | None = None,
    drop_remainder: bool = False,
    sizes: tuple[np.ndarray, np.ndarray] | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = 4,
) -> GraphPipeline:
    """Makes an iterator over padded batches of graphs, all of one shape.

    Args:
      source: graphs of one structure of features; see `data.to_graph`.
      budget: the size of a batch, padding included; see `core.graphs.plan_budget`.
      seed: of the order of graphs.
      shuffle: whether each epoch has a new order. Packing keeps the order but for graphs that a nearly full batch
        cannot take.
      num_epochs: how many epochs; None for no end.
      devices: devices of this process; batches then get a leading axis of this length, one pack a device. None for one
        batch without that axis.
      drop_remainder: whether the last packs of an epoch are left out where they do not suffice for all devices of all
        processes; otherwise the missing ones hold nothing but padding, and every graph comes once an epoch.
      sizes: `n_node` and `n_edge` of all graphs, int `[len(source)]`, as `graph_sizes` reads them; found by reading
        every graph once if None.
      process_index: which process this is; by default what JAX says.
      process_count: how many processes there are; by default what JAX says.
      prefetch: how many batches are read ahead in threads; 0 for none.

    Returns:
      A pipeline; each batch is a padded `jraph.GraphsTuple` of NumPy arrays with leading axes `budget.n_node`,
      `budget.n_edge` and `budget.n_graph`, behind the axis `[devices]` where that is given.

    Raises:
      ValueError: if the source is empty, sizes do not match it, a graph does not fit the budget (the message names it),
        no step would be left, or the seed is negative.

    Example:
      >>> def pair(i):
      ...     ends = np.array([0], np.int32)
      ...     return jraph.GraphsTuple(np.full((2, 1), i), None, ends, ends + 1, None, np.array([2]), np.array([1]))
      >>> budget = GraphBudget(n_node=8, n_edge=4, n_graph=4)
      >>> pipeline = graph_pipeline([pair(i) for i in range(6)], budget, num_epochs=1)
      >>> [batch.nodes.shape for batch in pipeline], pipeline.fill_factor()["node"]
      ([(8, 1), (8, 1)], 0.75)
    """
    process_index, process_count = process_position(process_index, process_count)
    seed = checked_seed(seed)
    if devices is not None and devices < 1:
        raise ValueError(f"devices: got {devices}, expected a positive number, or None for no device axis")
    if len(source) == 0:
        raise ValueError("source: there are no graphs")
    n_node, n_edge = graph_sizes(source) if sizes is None else (np.asarray(sizes[0]), np.asarray(sizes[1]))
    if n_node.shape != (len(source),) or n_edge.shape != (len(source),):
        raise ValueError(f"sizes: got shapes {n_node.shape} and {n_edge.shape}, expected two of ({len(source)},)")
    local = devices or 1
    width = local * process_count

    def plan(epoch: int) -> list[list[list[int]]]:
        order = epoch_order(len(source), seed=seed, epoch=epoch, shuffle=shuffle)
        packed = graph_batches.pack(n_node[order].tolist(), n_edge[order].tolist(), budget)
        packs = [order[pack].tolist() for pack in packed]
        if drop_remainder:
            packs = packs[: len(packs) - len(packs) % width]
        packs += [[]] * (-len(packs) % width)
        return [packs[start : start + width] for start in range(0, len(packs), width)]

    def load(step: Sequence[Sequence[int]]) -> jraph.GraphsTuple:
        mine = step[process_index * local : (process_index + 1) * local]
        batches = [graph_batches.pad(_join(source, pack), budget) for pack in mine]
        return batches[0] if devices is None else graph_batches.stack(batches)

    graph_batches.pack(n_node.tolist(), n_edge.tolist(), budget)  # names the graph of the source that does not fit
    if not plan(0):
        raise ValueError(
            f"drop_remainder=True: {len(source)} graphs do not fill one batch for each of {width} devices; use a "
            "smaller budget or drop_remainder=False"
        )
    settings = {
        "kind": "graphs",
        "length": len(source),
        "budget": [budget.n_node, budget.n_edge, budget.n_graph],
        "seed": seed,
        "shuffle": shuffle,
        "drop_remainder": drop_remainder,
        "packs_per_step": width,
    }
    return GraphPipeline(
        plan,
        load,
        num_epochs=num_epochs,
        prefetch=prefetch,
        settings=settings,
        n_node=n_node,
        n_edge=n_edge,
        budget=budget,
    )


def _join(source: RandomAccessSource[jraph.GraphsTuple], pack: Sequence[int]) -> jraph.GraphsTuple:
    if not pack:
        # No graph at all, of the right structure: every axis of length zero.
        return jax.tree.map(lambda x: np.asarray(x)[:0], source[0])
    return graph_batches.batch([source[index] for index in pack])
