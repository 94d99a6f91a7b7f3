r"""Separates graphs that colour refinement cannot, by a network averaged over sorted frames: `frames.graphs`.

All connected graphs with a number of nodes, of networkx' atlas (up to seven) or of a file of graph6 lines (all 11,117
with eight: `geng -c 8 > graphs.g6` of Debian's nauty, then `--graph6 graphs.g6`, preset `eight`). The network is a GIN
with random weights, three layers of width 64, degrees as features: `fa_gin` with one-hot identifiers of the nodes,
averaged over all elements of the frame that sorts spectral keys, against the same GIN without frames and identifiers.
Two graphs are told apart where the outputs of one of a few draws of the weights differ by more than 1e-3 in the 1-norm
(published: of one of a hundred draws).

Measured: the largest change of an output under relabelling (frames of at most `law_frame` elements), how many of the
pairs that colour refinement (1-WL) cannot tell apart are told apart, and how many pairs of all are not.

Published (from memory): of the pairs of eight-node graphs GIN with random weights cannot tell 386 apart, FA-GIN+ID all;
so for EXP, 600 pairs with frames near 10^11 elements, where an element is drawn at random and invariance holds in
expectation only. EXP is not run here: its file is a pickle of torch-geometric objects, which runs code as it is read,
and a random element's noise tells isomorphic graphs apart as well. Pairs of one's own can be given as graph6 lines.

Command: `python -m experiments frames.graphs cpu --seeds 0 1 2`. Numbers reached, hardware and time stand in
`experiments/results`, written by the run.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import PyTree
from equivariant_jax.data.graph6 import read_graph6
from equivariant_jax.frames import (
    GINConfig,
    frame_average,
    gin_apply,
    gin_init,
    laplacian_frames,
    node_identifiers,
)
from experiments.claims import Claims
from experiments.runs import make_folder, write_metrics
from experiments.tables import each_variant, markdown

__all__ = ["CARD", "PRESETS", "Config", "atlas", "claims", "colour_refinement", "embed", "run", "tables"]

CARD = "frame_averaging"
APART = 1e-3


@dataclasses.dataclass(frozen=True)
class Config:
    """One set of graphs and one network.

    Attributes:
      nodes: of the graphs, at most seven from the atlas.
      graph6: file of graph6 lines to read instead; graphs with another number of nodes are left out.
      width: of the network.
      depth: layers of the network.
      networks: draws of the weights.
      max_frame: largest frame that is enumerated; graphs with more elements are left out and counted.
      law_frame: largest frame of the graphs that are relabelled.
      relabellings: random relabellings of each graph.
      elements_at_once: frame elements that are evaluated together.
      seed: of weights and relabellings.
    """

    nodes: int = 7
    graph6: str = ""
    width: int = 64
    depth: int = 3
    networks: int = 4
    max_frame: int = 5040
    law_frame: int = 720
    relabellings: int = 4
    elements_at_once: int = 50_000
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(nodes=6, width=16, max_frame=720, law_frame=48, networks=2, relabellings=1),
    "cpu": Config(),
    "eight": Config(nodes=8, max_frame=40_320, relabellings=1, graph6="graphs.g6"),
}


def atlas(nodes: int) -> list[np.ndarray]:
    """Lists all connected graphs with up to seven nodes.

    Args:
      nodes: 2 to 7.

    Returns:
      Adjacency matrices `[nodes, nodes]`, float32.

    Raises:
      ValueError: for other sizes, or if networkx is not installed.
    """
    if not 2 <= nodes <= 7:
        raise ValueError(f"got nodes={nodes}; expected 2 to 7, or a file of graph6 lines (see --graph6).")
    try:
        import networkx
    except ImportError as error:
        raise ValueError("the atlas of graphs needs networkx (pip install networkx), or give --graph6.") from error
    graphs = (g for g in networkx.graph_atlas_g() if g.number_of_nodes() == nodes and networkx.is_connected(g))
    return [networkx.to_numpy_array(g).astype(np.float32) for g in graphs]


def colour_refinement(adjacency: np.ndarray) -> tuple:
    """Refines colours of nodes by those of their neighbours (1-WL).

    Args:
      adjacency: shape `[n, n]`.

    Returns:
      The multisets of colours after each round; equal for two graphs exactly if 1-WL cannot tell them apart.
    """
    neighbours = [np.flatnonzero(row) for row in adjacency]
    colours, history = np.zeros(len(adjacency), int), []
    for _ in neighbours:
        signs = [(colours[i], tuple(sorted(colours[others]))) for i, others in enumerate(neighbours)]
        history.append(tuple(sorted(signs)))
        names = {sign: name for name, sign in enumerate(sorted(set(signs)))}
        colours = np.array([names[sign] for sign in signs])
    return tuple(history)


def _pairs(graphs: np.ndarray) -> np.ndarray:
    """Index pairs of graphs that colour refinement cannot tell apart, `[pairs, 2]`."""
    classes = defaultdict(list)
    for i, graph in enumerate(graphs):
        classes[colour_refinement(graph)].append(i)
    found = [(a, b) for members in classes.values() for k, a in enumerate(members) for b in members[k + 1 :]]
    return np.array(found, int).reshape(-1, 2)


@functools.cache
def _network(config: GINConfig, elements: int):
    """Compiled `(params, adjacency [batch, n, n]) -> [batch, networks, 10]`; without a frame for `elements` of zero."""

    def plain(params, a):
        degree = jnp.sum(a, axis=-1)[..., None]
        features = node_identifiers(degree) if elements else degree
        each = jax.vmap(lambda p: gin_apply(p, features, a, config))(params)
        return jnp.moveaxis(each, 0, -2)

    def averaged(params, a):
        frames = laplacian_frames(a, num_samples=elements)
        return frame_average(functools.partial(plain, params), frames, in_types=("pair",))(a)

    return jax.jit(averaged if elements else plain)


def embed(params: PyTree, graphs: np.ndarray, sizes: np.ndarray, config: GINConfig, *, at_once: int) -> np.ndarray:
    """Averages the network over all elements of each graph's frame.

    Args:
      params: from `gin_init`, with `1 + n` channels (one without frames); stacked, leaves `[networks, ...]`.
      graphs: adjacency matrices, shape `[graphs, n, n]`, float.
      sizes: of their frames, shape `[graphs]`; zero for none.
      config: of the network.
      at_once: frame elements that are evaluated together.

    Returns:
      Outputs `[graphs, networks, 10]`, float32.
    """
    networks = len(params["layers"][0]["epsilon"])
    out = np.full((len(graphs), networks, config.channels_out), np.nan, np.float32)
    # Few programs: graphs are grouped by the power of four that holds their frame.
    room = 4 ** np.ceil(np.log(np.maximum(sizes, 1)) / np.log(4) - 1e-9).astype(int)
    room = np.where(sizes == 0, 0, np.minimum(room, sizes.max()))
    for elements in np.unique(room):
        chosen, batch = np.flatnonzero(room == elements), int(max(1, min(4096, at_once // max(elements, 1))))
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            # The last batch is filled up, so that each size is compiled once.
            index = np.resize(part, batch)
            out[part] = np.asarray(_network(config, int(elements))(params, graphs[index]))[: len(part)]
    return out


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1-norm of the difference for the network that sees the largest: `[..., networks, 10]` twice to `[...]`."""
    return np.abs(a - b).sum(-1).max(-1)


def _undistinguished(outputs: np.ndarray) -> int:
    """Number of pairs that no network tells apart."""
    order = np.argsort(outputs[:, 0, 0])
    y, total = outputs[order], 0
    for i in range(len(y) - 1):
        # Nearer than that in the 1-norm means nearer in the first entry.
        stop = np.searchsorted(y[:, 0, 0], y[i, 0, 0] + APART, side="right")
        total += int(np.sum(_distance(y[i + 1 : stop], y[i]) <= APART))
    return total


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures the law and what is told apart, for a few draws of the weights.

    Args:
      config: the run.
      workdir: gets the metrics.

    Returns:
      Flat dict of floats: `relabel_defect`, `wl_pairs`, `wl_pairs_separated`, `gin_wl_pairs_separated`,
      `undistinguished`, `gin_undistinguished`, and so on.
    """
    workdir = make_folder(workdir)
    found = read_graph6(config.graph6) if config.graph6 else atlas(config.nodes)
    graphs = np.stack([g for g in found if len(g) == config.nodes]).astype(np.float32)
    key, key_plain, key_order = jax.random.split(jax.random.key(config.seed), 3)
    network = GINConfig(1 + config.nodes, width=config.width, depth=config.depth)
    plain = dataclasses.replace(network, channels_in=1)
    params, params_plain = (
        jax.vmap(functools.partial(gin_init, config=c))(jax.random.split(k, config.networks))
        for k, c in ((key, network), (key_plain, plain))
    )
    frames = jax.jit(laplacian_frames)(graphs)
    sizes = np.round(np.exp(np.asarray(frames.log_size, np.float64))).astype(int)
    kept = np.flatnonzero(sizes <= config.max_frame)
    graphs, sizes = graphs[kept], sizes[kept]
    outputs = embed(params, graphs, sizes, network, at_once=config.elements_at_once)

    law, defect = np.flatnonzero(sizes <= config.law_frame), 0.0
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_order)))
    for _ in range(config.relabellings):
        orders = rng.permuted(np.tile(np.arange(config.nodes), (len(law), 1)), axis=1)
        moved = graphs[law[:, None, None], orders[:, :, None], orders[:, None, :]]
        again = embed(params, moved, sizes[law], network, at_once=config.elements_at_once)
        # A frame that changed its size would show as NaN.
        defect = max(defect, float(np.abs(np.nan_to_num(again - outputs[law], nan=np.inf)).max()))

    first, second = _pairs(graphs).T
    bare = embed(params_plain, graphs, 0 * sizes, plain, at_once=config.elements_at_once)
    differences = {name: _distance(y[first], y[second]) for name, y in (("fa", outputs), ("gin", bare))}
    metrics = {
        "graphs": float(len(graphs)),
        "graphs_left_out": float(len(found) - len(graphs)),
        "law_graphs": float(len(law)),
        "largest_frame": float(sizes.max()),
        "median_frame": float(np.median(sizes)),
        "relabel_defect": defect,
        "wl_pairs": float(len(first)),
        "wl_pairs_separated": float(np.sum(differences["fa"] > APART)),
        "wl_pairs_smallest_difference": float(differences["fa"].min()),
        "gin_wl_pairs_separated": float(np.sum(differences["gin"] > APART)),
        "gin_wl_pairs_largest_difference": float(differences["gin"].max()),
        "undistinguished": float(_undistinguished(outputs)),
        "gin_undistinguished": float(_undistinguished(bare)),
        "key_gap": float(np.asarray(frames.gap)[kept].min()),
        "key_noise": float(np.asarray(frames.noise)[kept].max()),
    }
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for table in metrics.values():
        graphs, law = (round(table[name]["values"][0]) for name in ("graphs", "law_graphs"))
        defect = max(table["relabel_defect"]["values"])
        claim.at_most("3", f"largest change under relabelling, {law} of {graphs} graphs", 1e-5, defect)
        pairs, separated = table["wl_pairs"]["values"][0], min(table["wl_pairs_separated"]["values"])
        statement = "pairs beyond 1-WL told apart by FA-GIN+ID, all of them"
        claim.add("3", statement, pairs, separated, holds=separated == pairs)
        plain = max(table["gin_wl_pairs_separated"]["values"])
        claim.add("3", "pairs beyond 1-WL told apart by plain GIN, none", 0.0, plain, holds=plain == 0)
        known = {(853, 7): 17, (11_117, 8): 312}
        for (number, nodes), expected in known.items():
            if graphs == number:
                statement = f"pairs of connected graphs with {nodes} nodes that 1-WL cannot tell apart, equal"
                claim.add("3", statement, expected, pairs, holds=pairs == expected)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs; the worst seed counts.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = (
        "nodes", "graphs", "largest frame", "change under relabelling", "pairs beyond 1-WL", "told apart",
        "by GIN alone", "pairs of all not told apart", "by GIN alone", "seeds",
    )  # fmt: skip
    rows = []
    for result, _, table in each_variant(found):
        values = {name: m["values"] for name, m in table.items()}
        rows.append((
            str(result["config"]["nodes"]), f"{values['graphs'][0]:,.0f}", f"{values['largest_frame'][0]:,.0f}",
            f"{max(values['relabel_defect']):.1g}", f"{values['wl_pairs'][0]:.0f}",
            f"{min(values['wl_pairs_separated']):.0f}", f"{max(values['gin_wl_pairs_separated']):.0f}",
            f"{max(values['undistinguished']):.0f}", f"{max(values['gin_undistinguished']):,.0f}",
            str(len(result["seeds"])),
        ))  # fmt: skip
    return {"frames.graphs": markdown(heads, rows)}
