"""EqMotion on edges: equal to all pairs on complete graphs, padding, several graphs, and who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean.motion import MotionConfig, eqmotion_apply, eqmotion_init
from equivariant_jax.euclidean.motion_graph import eqmotion_graph_apply

SMALL = MotionConfig(past=5, future=3, scalars=6, channels=5, layers=2, categories=3, heads=2)
STATIC = ("num_graphs", "receivers_are_sorted")

init = jax.jit(eqmotion_init, static_argnums=1, static_argnames="dtype")
dense = jax.jit(eqmotion_apply, static_argnums=2)
graph = jax.jit(eqmotion_graph_apply, static_argnums=4, static_argnames=STATIC)


def scene(agents, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(agents, 5, 3)).cumsum(axis=1))


def complete(*sizes):
    """Edges, sorted by receiver, of complete graphs one after another, and the graph of each node."""
    receivers, senders, start = [], [], 0
    for size in sizes:
        i, j = np.nonzero(~np.eye(size, dtype=bool))
        receivers.append(start + i)
        senders.append(start + j)
        start += size
    return np.concatenate(senders), np.concatenate(receivers), np.repeat(np.arange(len(sizes)), sizes)


def test_complete_graphs_give_what_all_pairs_give(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    sizes = (5, 3)
    scenes = [scene(size, size) for size in sizes]
    senders, receivers, graph_of = complete(*sizes)
    found, categories = graph(
        params, jnp.concatenate(scenes), senders, receivers, SMALL, graph_of=graph_of, num_graphs=2,
        receivers_are_sorted=True,
    )  # fmt: skip
    start, edge = 0, 0
    for x in scenes:
        expected, expected_categories = dense(params, x, SMALL)
        np.testing.assert_allclose(found[:, start : start + len(x)], expected, atol=1e-11)
        pairs = expected_categories[~np.eye(len(x), dtype=bool)]
        np.testing.assert_allclose(categories[edge : edge + len(pairs)], pairs, atol=1e-12)
        start, edge = start + len(x), edge + len(pairs)


def test_without_edges_nodes_are_computed_without_pairs(x64):
    """Nodes that see each other through the mean alone; a padded edge changes nothing and costs products."""
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x, none, one = jnp.asarray(scene(2)), jnp.zeros((0,), jnp.int32), jnp.zeros((1,), jnp.int32)
    run = lambda edge, mask: eqmotion_graph_apply(params, x, edge, edge, SMALL, edge_mask=mask)[0]  # noqa: E731
    without, padded = (none, jnp.zeros((0,), bool)), (one, jnp.zeros((1,), bool))
    np.testing.assert_allclose(run(*without), run(*padded), atol=1e-11)
    products = [str(jax.make_jaxpr(run)(*edges)).count("dot_general") for edges in (without, padded)]
    assert products[0] < products[1]


def test_gradients_agree_with_those_of_all_pairs(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x, (senders, receivers, _) = scene(4), complete(4)
    square = lambda out: jnp.sum(jnp.square(out[0]))  # noqa: E731
    first = jax.jit(jax.grad(lambda p: square(eqmotion_apply(p, x, SMALL))))(params)
    second = jax.jit(jax.grad(lambda p: square(eqmotion_graph_apply(p, x, senders, receivers, SMALL))))(params)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


def test_padding_changes_nothing(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x, (senders, receivers, _) = scene(4), complete(4)
    expected, expected_categories = graph(params, x, senders, receivers, SMALL)
    # Two agents and six edges that are not there: edges of missing agents, to real ones too, and masked edges.
    padded = jnp.concatenate([x, jnp.full((2, 5, 3), 1e6)])
    more = np.array([5, 0, 4, 1, 2, 3]), np.array([4, 5, 2, 3, 0, 0])
    found, categories = graph(
        params, padded, np.concatenate([senders, more[0]]), np.concatenate([receivers, more[1]]), SMALL,
        mask=jnp.arange(6) < 4, edge_mask=np.arange(18) < 16,
    )  # fmt: skip
    # The edge 1 -> 3 stands there twice: once too many.
    assert float(jnp.abs(found[:, :4] - expected).max()) > 1e-6
    found, categories = graph(
        params, padded, np.concatenate([senders, more[0]]), np.concatenate([receivers, more[1]]), SMALL,
        mask=jnp.arange(6) < 4, edge_mask=(np.arange(18) < 15),
    )  # fmt: skip
    np.testing.assert_allclose(found[:, :4], expected, atol=1e-11)
    np.testing.assert_allclose(categories[:12], expected_categories, atol=1e-12)
    assert float(jnp.abs(found[:, 4:]).max()) == 0


def test_an_agent_is_moved_by_those_it_receives_from(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x = scene(4)
    # 0 <- 1 <- 2 <- 3, and two rounds: what 3 does reaches 1 (and all by the mean, which here stays).
    senders, receivers = np.array([1, 2, 3]), np.array([0, 1, 2])
    turn = jnp.zeros_like(x).at[3].set(x[3] * 0.1).at[2].set(-x[3] * 0.1)
    first, _ = graph(params, x, senders, receivers, SMALL)
    second, _ = graph(params, x + turn, senders, receivers, SMALL)
    cut, _ = graph(params, x, senders[1:], receivers[1:], SMALL)
    moved = jnp.abs(second - first).max(axis=(0, 2, 3))
    assert float(moved[1]) > 1e-4
    assert float(jnp.abs(cut[:, 0] - first[:, 0]).max()) > 1e-4


def test_bad_input_is_named():
    params = init(jax.random.key(0), SMALL)
    x, (senders, receivers, _) = jnp.zeros((4, 5, 3)), complete(4)
    with pytest.raises(ValueError, match=r"\[nodes, 5, n\]"):
        graph(params, x[None], senders, receivers, SMALL)
    with pytest.raises(ValueError, match="receivers: got shape"):
        graph(params, x, senders, receivers[:3], SMALL)
    with pytest.raises(ValueError, match="mask: got shape"):
        graph(params, x, senders, receivers, SMALL, mask=jnp.ones(3, bool))
