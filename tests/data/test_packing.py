"""Graph pipelines: one shape, every graph once an epoch, one pack a device, exactly resumable."""

import json

import jax
import jraph
import numpy as np
import pytest

from equivariant_jax.core import graphs as graph_batches
from equivariant_jax.core.graphs import GraphBudget, plan_budget
from equivariant_jax.data.molecules import aminoethanol, to_graph
from equivariant_jax.data.packing import graph_pipeline, graph_sizes

ONE = {"process_index": 0, "process_count": 1}


def random_graph(index, generator):
    n_node = int(generator.integers(1, 9))
    n_edge = int(generator.integers(0, 3 * n_node))
    return jraph.GraphsTuple(
        nodes={"x": np.full((n_node, 2), index, np.float32)},
        edges={"shifts": np.ones((n_edge, 3), np.float32)},
        globals={"id": np.array([index], np.int32)},
        senders=generator.integers(0, n_node, n_edge).astype(np.int32),
        receivers=np.sort(generator.integers(0, n_node, n_edge)).astype(np.int32),
        n_node=np.array([n_node], np.int32),
        n_edge=np.array([n_edge], np.int32),
    )


@pytest.fixture(scope="module")
def ragged():
    generator = np.random.default_rng(0)
    return [random_graph(i, generator) for i in range(61)]


@pytest.fixture(scope="module")
def budget(ragged):
    return plan_budget(*graph_sizes(ragged), batch_size=6)


def ids(batch):
    return batch.globals["id"][np.asarray(graph_batches.graph_mask(batch))].tolist()


def per_device(batch, devices):
    return [jax.tree.map(lambda x: x[d], batch) for d in range(devices)]  # noqa: B023


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_graph_comes_once_an_epoch_in_batches_of_one_shape(ragged, budget):
    pipeline = graph_pipeline(ragged, budget, num_epochs=2, **ONE)
    batches = list(pipeline)
    assert len({str(jax.tree.map(np.shape, batch)) for batch in batches}) == 1
    assert batches[0].nodes["x"].shape == (budget.n_node, 2)
    first = pipeline.steps_per_epoch(0)
    assert len(batches) == first + pipeline.steps_per_epoch(1)
    epochs = [[i for batch in part for i in ids(batch)] for part in (batches[:first], batches[first:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(61))] * 2
    assert epochs[0] != epochs[1]
    for batch in batches:
        for graph, i in zip(jraph.unbatch_np(graph_batches.unpad(batch)), ids(batch), strict=True):
            assert_same(graph.nodes, ragged[i].nodes)
            np.testing.assert_array_equal(graph.senders, ragged[i].senders)


def test_fill_factor_is_that_of_the_batches(ragged, budget):
    pipeline = graph_pipeline(ragged, budget, num_epochs=1, devices=2, **ONE)
    batches = [single for batch in pipeline for single in per_device(batch, 2)]
    assert pipeline.fill_factor() == pytest.approx(graph_batches.fill_factor(batches))
    assert pipeline.fill_factor()["node"] > 0.8


def test_without_shuffling_the_order_is_nearly_that_of_the_source(ragged, budget):
    batches = list(graph_pipeline(ragged, budget, num_epochs=1, shuffle=False, **ONE))
    flat = [i for batch in batches for i in ids(batch)]
    assert sorted(flat) == list(range(61))
    assert flat[:3] == [0, 1, 2]


def test_devices_get_a_leading_axis_and_missing_packs_are_padding(ragged, budget):
    batches = list(graph_pipeline(ragged, budget, num_epochs=1, devices=5, **ONE))
    assert all(leaf.shape[0] == 5 for batch in batches for leaf in jax.tree.leaves(batch))
    singles = [single for batch in batches for single in per_device(batch, 5)]
    assert sorted(i for single in singles for i in ids(single)) == list(range(61))
    empty = [single for single in singles if not ids(single)]
    assert empty, "this set and budget should leave a device without a pack"
    for single in empty:
        assert single.n_node[0] == budget.n_node
        assert not np.asarray(graph_batches.node_mask(single)).any()
    dropped = graph_pipeline(ragged, budget, num_epochs=1, devices=5, drop_remainder=True, **ONE)
    kept = [single for batch in dropped for single in per_device(batch, 5)]
    assert len(kept) < len(singles)
    assert all(ids(single) for single in kept)


@pytest.mark.parametrize(("process_count", "devices"), [(2, 1), (2, 2), (4, None)])
def test_processes_share_the_packs_of_one(ragged, budget, process_count, devices):
    width = process_count * (devices or 1)
    whole = list(graph_pipeline(ragged, budget, num_epochs=1, devices=width, **ONE))
    parts = [
        list(
            graph_pipeline(ragged, budget, num_epochs=1, devices=devices, process_index=p, process_count=process_count)
        )
        for p in range(process_count)
    ]
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        singles = mine if devices is None else [s for b in mine for s in per_device(b, devices)]
        assert_same(graph_batches.stack(singles), batch)


@pytest.mark.parametrize("stop", [0, 1, 5, 11, 12, 13, 20])
def test_a_state_continues_exactly_across_epochs_of_unequal_length(ragged, budget, stop):
    def make(prefetch):
        return graph_pipeline(ragged, budget, num_epochs=3, seed=5, prefetch=prefetch, **ONE)

    whole = list(make(4))
    assert len({make(0).steps_per_epoch(epoch) for epoch in range(40)}) > 1, "epochs should differ in length"
    first = make(3)
    for _ in range(stop):
        next(first)
    second = make(2)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for one, other in zip(second, whole[stop:], strict=True):
        assert_same(one, other)


def test_a_state_of_two_processes_continues_on_one(ragged, budget):
    pair = [graph_pipeline(ragged, budget, devices=1, process_index=p, process_count=2) for p in range(2)]
    for _ in range(3):
        for pipeline in pair:
            next(pipeline)
    one = graph_pipeline(ragged, budget, devices=2, **ONE)
    one.set_state(pair[0].get_state())
    parts = [per_device(next(pipeline), 1)[0] for pipeline in pair]
    assert_same(next(one), graph_batches.stack(parts))
    with pytest.raises(ValueError, match=r"'packs_per_step': .2, 1."):
        graph_pipeline(ragged, budget, **ONE).set_state(pair[0].get_state())


def test_graphs_of_real_molecules_are_packed_full():
    frames = aminoethanol("validation_300K")
    graphs = [to_graph(frame, 4.0, (1, 6, 7, 8)) for frame in frames]
    sizes = graph_sizes(graphs)
    pipeline = graph_pipeline(graphs, plan_budget(*sizes, batch_size=8), sizes=sizes, num_epochs=1, **ONE)
    energies = np.concatenate([b.globals["energy"][np.asarray(graph_batches.graph_mask(b))] for b in pipeline])
    np.testing.assert_array_equal(np.sort(energies), np.sort(np.float32([frame.energy for frame in frames])))
    assert pipeline.fill_factor()["node"] > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": []}, "there are no graphs"),
        ({"budget": GraphBudget(n_node=4, n_edge=8, n_graph=2)}, r"graph \d+ has . nodes"),
        ({"devices": 0}, "devices: got 0"),
        ({"sizes": (np.ones(3, int), np.ones(3, int))}, r"sizes: got shapes \(3,\)"),
        ({"devices": 1000, "drop_remainder": True}, "do not fill one batch for each of 1000 devices"),
    ],
)
def test_wrong_options_are_refused(ragged, budget, changes, message):
    options = {"source": ragged, "budget": budget} | ONE | changes
    with pytest.raises(ValueError, match=message):
        graph_pipeline(options.pop("source"), options.pop("budget"), **options)
