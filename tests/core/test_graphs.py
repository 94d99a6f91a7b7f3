"""Static-budget batches: nothing lost, nothing leaked, padding where it belongs."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from equivariant_jax.core import checks, graphs, segments


def random_graph(rng, n_node=None, n_edge=None):
    n = int(rng.integers(0, 12)) if n_node is None else n_node
    e = (int(rng.integers(0, 4 * n + 1)) if n else 0) if n_edge is None else n_edge
    return jraph.GraphsTuple(
        nodes={"x": rng.normal(size=(n, 3)).astype(np.float32)},
        edges={"w": rng.normal(size=(e,)).astype(np.float32)},
        globals={"y": rng.normal(size=(1, 2)).astype(np.float32)},
        senders=rng.integers(0, max(n, 1), e).astype(np.int32),
        receivers=np.sort(rng.integers(0, max(n, 1), e)).astype(np.int32),
        n_node=np.array([n], np.int32),
        n_edge=np.array([e], np.int32),
    )


@pytest.fixture
def ragged():
    rng = np.random.default_rng(0)
    return [random_graph(rng) for _ in range(200)]


def sizes(items):
    return [int(g.n_node[0]) for g in items], [int(g.n_edge[0]) for g in items]


def test_plan_pack_pad_round_trip(ragged):
    n_node, n_edge = sizes(ragged)
    budget = graphs.plan_budget(n_node, n_edge, batch_size=16)
    packed = graphs.pack(n_node, n_edge, budget)
    assert sorted(i for b in packed for i in b) == list(range(len(ragged)))
    padded = [graphs.pad(graphs.batch([ragged[i] for i in b]), budget) for b in packed]
    shapes = {tuple(np.shape(x) for x in jax.tree.leaves(g)) for g in padded}
    assert len(shapes) == 1
    for members, g in zip(packed, padded, strict=True):
        back = graphs.unpad(g)
        want = graphs.batch([ragged[i] for i in members])
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (np.diff(g.receivers) >= 0).all()
    fill = graphs.fill_factor(padded[:-1])
    assert fill["node"] > 0.9
    assert fill["edge"] > 0.85


def test_equal_graphs_fill_every_batch_but_the_reserved_padding():
    budget = graphs.plan_budget([11] * 64, [92] * 64, batch_size=8)
    assert [len(b) for b in graphs.pack([11] * 64, [92] * 64, budget)] == [8] * 8


def test_masks_count_the_real_items(ragged):
    for k in range(1, 6):
        whole = graphs.batch(ragged[:k])
        v, e = int(whole.n_node.sum()), int(whole.n_edge.sum())
        padded = graphs.pad(whole, graphs.GraphBudget(v + 5, e + 7, k + 3))
        node, edge, graph = (jax.jit(f)(padded) for f in (graphs.node_mask, graphs.edge_mask, graphs.graph_mask))
        np.testing.assert_array_equal(node, np.arange(v + 5) < v)
        np.testing.assert_array_equal(edge, np.arange(e + 7) < e)
        np.testing.assert_array_equal(graph, np.arange(k + 3) < k)
        index = jax.jit(graphs.node_graph_index)(padded)
        np.testing.assert_array_equal(index[:v], np.repeat(np.arange(k), whole.n_node))
        assert (index[v:] == k).all()


def test_masks_agree_with_jraph_where_jraph_still_runs(ragged):
    padded = graphs.pad(graphs.batch(ragged[:4]), graphs.GraphBudget(64, 256, 8))
    np.testing.assert_array_equal(graphs.graph_mask(padded), jraph.get_graph_padding_mask(padded))
    np.testing.assert_array_equal(graphs.node_mask(padded), jraph.get_node_padding_mask(padded))
    np.testing.assert_array_equal(graphs.edge_mask(padded), jraph.get_edge_padding_mask(padded))


def test_empty_graphs_stay_real():
    """A real graph without nodes, also in last place, is not mistaken for padding."""
    rng = np.random.default_rng(1)
    whole = graphs.batch([random_graph(rng, 0, 0), random_graph(rng, 3, 2), random_graph(rng, 0, 0)])
    padded = graphs.pad(whole, graphs.GraphBudget(8, 8, 6))
    np.testing.assert_array_equal(graphs.graph_mask(padded), [True, True, True, False, False, False])
    only_empty = graphs.pad(graphs.batch([random_graph(rng, 0, 0)]), graphs.GraphBudget(2, 0, 2))
    assert not graphs.node_mask(only_empty).any()


def test_model_sees_the_same_with_and_without_padding(ragged):
    def model(g):
        messages = g.edges["w"][:, None] * g.nodes["x"][g.senders]
        h = segments.segment_sum(messages, g.receivers, g.nodes["x"].shape[0], indices_are_sorted=True)
        return segments.segment_sum(h, graphs.node_graph_index(g), g.n_node.shape[0], indices_are_sorted=True)

    whole = graphs.batch(ragged[:5])
    padded = graphs.pad(whole, graphs.GraphBudget(128, 512, 9))
    np.testing.assert_allclose(jax.jit(model)(padded)[:5], model(whole), atol=1e-5)


def test_all_batches_share_one_trace(ragged):
    budget = graphs.plan_budget(*sizes(ragged), batch_size=8)
    packed = graphs.pack(*sizes(ragged), budget)[:3]
    batches = [graphs.pad(graphs.batch([ragged[i] for i in b]), budget) for b in packed]
    checks.assert_one_trace(lambda g: jnp.sum(g.nodes["x"]), *[(b,) for b in batches])


def test_stack_for_devices(ragged):
    budget = graphs.plan_budget(*sizes(ragged), batch_size=8)
    packed = graphs.pack(*sizes(ragged), budget)[:4]
    stacked = graphs.stack([graphs.pad(graphs.batch([ragged[i] for i in b]), budget) for b in packed])
    assert stacked.nodes["x"].shape == (4, budget.n_node, 3)
    counts = jax.vmap(lambda g: graphs.graph_mask(g).sum())(stacked)
    np.testing.assert_array_equal(counts, [len(b) for b in packed])


def test_errors_say_what_to_do(ragged):
    with pytest.raises(ValueError, match="graph 1 has 9 nodes"):
        graphs.pack([2, 9], [1, 1], graphs.GraphBudget(8, 8, 3))
    with pytest.raises(ValueError, match="plan_budget and pack"):
        graphs.pad(graphs.batch(ragged[:50]), graphs.GraphBudget(8, 8, 3))
    with pytest.raises(ValueError, match="expected two lists"):
        graphs.plan_budget([1, 2], [1], batch_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        graphs.plan_budget([1], [1], batch_size=0)
    with pytest.raises(ValueError, match="no room for padding"):
        graphs.GraphBudget(0, 1, 1)
    with pytest.raises(ValueError, match="pad all to one budget"):
        graphs.stack(ragged[:4])
    with pytest.raises(ValueError, match="no graphs"):
        graphs.batch([])
