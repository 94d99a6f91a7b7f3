"""Pipelines: every example once an epoch, disjoint over processes, the same again from a state, also elsewhere."""

import json
import threading

import jax
import numpy as np
import pytest

from equivariant_jax.data.pipeline import epoch_order, make_pipeline
from equivariant_jax.data.sources import ArraySource

COMMON = {"process_index": 0, "process_count": 1}


class Lists:
    """A source that is no array and counts how often it is read, from several threads."""

    def __init__(self, length):
        self._length, self.reads, self._lock = length, 0, threading.Lock()

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        with self._lock:
            self.reads += 1
        return {"x": np.array([index, -index]), "y": np.float32(index)}


def sources(length):
    index = np.arange(length)
    return Lists(length), ArraySource({"x": np.stack([index, -index], axis=-1), "y": index.astype(np.float32)})


def ids(batch):
    return batch["x"][:, 0].tolist()


def drain(pipeline):
    return [ids(batch) for batch in pipeline]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("which", [0, 1])
def test_batches_are_stacked_examples(which):
    pipeline = make_pipeline(sources(10)[which], batch_size=4, shuffle=False, num_epochs=1, **COMMON)
    batches = list(pipeline)
    assert [ids(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (batches[0]["x"].shape, batches[0]["y"].dtype) == ((4, 2), np.float32)
    assert pipeline.steps_per_epoch() == 2


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_every_example_comes_once_an_epoch_in_a_new_order(prefetch):
    pipeline = make_pipeline(sources(12)[0], batch_size=3, num_epochs=3, prefetch=prefetch, **COMMON)
    flat = np.array(drain(pipeline)).reshape(3, 12)
    for epoch in flat:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch) for epoch in flat.tolist()}) == 3
    with pytest.raises(StopIteration):
        next(pipeline)


def test_seed_decides_the_order_and_prefetching_does_not():
    def order(seed, prefetch):
        return drain(make_pipeline(sources(30)[0], batch_size=5, num_epochs=2, seed=seed, prefetch=prefetch, **COMMON))

    assert order(0, 0) == order(0, 7) != order(1, 7)


def test_the_order_of_an_epoch_never_changes():
    # A stored run depends on these numbers: they may not change with NumPy, grain or this library.
    assert epoch_order(8, seed=3, epoch=5).tolist() == [5, 0, 6, 3, 4, 1, 2, 7]


@pytest.mark.parametrize("process_count", [1, 2, 3, 6])
def test_processes_read_disjoint_parts_that_make_up_the_batch_of_one(process_count):
    options = {"batch_size": 6, "num_epochs": 2, "seed": 4}
    whole = drain(make_pipeline(sources(27)[0], **options, **COMMON))
    parts = [
        drain(make_pipeline(sources(27)[0], **options, process_index=p, process_count=process_count))
        for p in range(process_count)
    ]
    assert [[i for part in parts for i in part[step]] for step in range(len(whole))] == whole
    assert len(whole) == 2 * (27 // 6)


@pytest.mark.parametrize("process_count", [1, 2])
def test_masked_remainder_covers_everything_in_equal_shapes(process_count):
    seen = []
    for p in range(process_count):
        pipeline = make_pipeline(
            sources(9)[1],
            batch_size=4,
            num_epochs=1,
            drop_remainder=False,
            mask_key="mask",
            process_index=p,
            process_count=process_count,
        )
        batches = list(pipeline)
        assert [batch["x"].shape for batch in batches] == [(4 // process_count, 2)] * 3
        for batch in batches:
            assert batch["mask"].dtype == bool
            seen += batch["x"][batch["mask"], 0].tolist()
    assert sorted(seen) == list(range(9))


def test_one_process_may_keep_a_smaller_last_batch():
    pipeline = make_pipeline(sources(5)[0], batch_size=3, shuffle=False, num_epochs=1, drop_remainder=False, **COMMON)
    assert drain(pipeline) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 6, 7])
def test_a_state_continues_exactly(stop, prefetch):
    def make():
        return make_pipeline(sources(10)[0], batch_size=4, num_epochs=4, seed=1, prefetch=prefetch, **COMMON)

    whole = list(make())
    first = make()
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = make()
    next(second)
    second.set_state(state)
    rest = list(second)
    assert len(rest) == len(whole) - stop
    for one, other in zip(rest, whole[stop:], strict=True):
        assert_same(one, other)
    # The one that the state was taken from was not disturbed.
    for one, other in zip(first, whole[stop:], strict=True):
        assert_same(one, other)


def test_a_state_continues_with_another_number_of_processes():
    options = {"batch_size": 4, "num_epochs": 3, "seed": 1}
    whole = drain(make_pipeline(sources(10)[0], **options, **COMMON))
    pair = [make_pipeline(sources(10)[0], **options, process_index=p, process_count=2) for p in range(2)]
    begun = [ids(next(pair[0])) + ids(next(pair[1])) for _ in range(3)]
    assert pair[0].get_state() == pair[1].get_state()
    one = make_pipeline(sources(10)[0], **options, **COMMON)
    one.set_state(pair[1].get_state())
    assert begun + drain(one) == whole


def test_batches_read_ahead_do_not_count():
    source = sources(100)[0]
    pipeline = make_pipeline(source, batch_size=2, prefetch=8, **COMMON)
    next(pipeline)
    assert source.reads > 2
    assert (pipeline.get_state()["epoch"], pipeline.get_state()["step"]) == (0, 1)


def reading_threads():
    return {thread for thread in threading.enumerate() if "grain-prefetch" in thread.name}


def test_reset_starts_again():
    pipeline = make_pipeline(sources(10)[0], batch_size=5, num_epochs=1, **COMMON)
    first = drain(pipeline)
    pipeline.reset()
    assert drain(pipeline) == first


@pytest.mark.parametrize("end", ["close", "last epoch", "deletion"])
def test_threads_end_with_the_pipeline(end):
    before = reading_threads()
    pipeline = make_pipeline(sources(10)[0], batch_size=5, num_epochs=1, **COMMON)
    next(pipeline)
    threads = reading_threads() - before
    assert threads
    if end == "close":
        pipeline.close()
    elif end == "last epoch":
        drain(pipeline)
    else:
        del pipeline
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_there_is_no_end_without_a_number_of_epochs():
    pipeline = make_pipeline(sources(3)[0], batch_size=3, **COMMON)
    for _ in range(50):
        assert sorted(ids(next(pipeline))) == [0, 1, 2]
    assert (pipeline.get_state()["epoch"], pipeline.get_state()["step"]) == (49, 1)


@pytest.mark.parametrize(
    ("changes", "named"), [({"seed": 2}, "seed"), ({"batch_size": 5}, "batch_size"), ({"shuffle": False}, "shuffle")]
)
def test_a_state_of_another_pipeline_is_refused_by_name(changes, named):
    options = {"batch_size": 2, "seed": 1} | COMMON
    state = make_pipeline(sources(10)[0], **options).get_state()
    with pytest.raises(ValueError, match=rf"another pipeline.*'{named}'"):
        make_pipeline(sources(10)[0], **(options | changes)).set_state(state)
    with pytest.raises(ValueError, match=r"'length': .10, 11."):
        make_pipeline(sources(11)[0], **options).set_state(state)


@pytest.mark.parametrize("state", [{}, {"version": 0}, {"epoch": 1, "step": 2}])
def test_a_malformed_state_is_refused(state):
    pipeline = make_pipeline(sources(10)[0], batch_size=2, **COMMON)
    with pytest.raises(ValueError, match="state: got"):
        pipeline.set_state(state)
    with pytest.raises(ValueError, match="epoch -1"):
        pipeline.set_state(pipeline.get_state() | {"epoch": -1})
    with pytest.raises(ValueError, match="got step 6, and epoch 3 has 5 steps"):
        pipeline.set_state(pipeline.get_state() | {"epoch": 3, "step": 6})


def test_collate_makes_the_batch():
    pipeline = make_pipeline(
        sources(4)[1], batch_size=2, shuffle=False, collate=lambda examples: [float(e["y"]) for e in examples], **COMMON
    )
    assert next(pipeline) == [0.0, 1.0]


def test_an_error_in_a_thread_says_where_it_happened_and_skips_nothing():
    class Broken(Lists):
        broken = True

        def __getitem__(self, index):
            if index == 5 and self.broken:
                raise ValueError("file 5 is damaged")
            return super().__getitem__(index)

    source = Broken(6)
    pipeline = make_pipeline(source, batch_size=2, shuffle=False, **COMMON)
    next(pipeline)
    next(pipeline)
    with pytest.raises(ValueError, match="file 5 is damaged") as caught:
        next(pipeline)
    assert "while loading epoch 0, step 2 of the data pipeline" in caught.value.__notes__
    source.broken = False
    assert ids(next(pipeline)) == [4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 3, "process_index": 0, "process_count": 2}, "multiple of the 2 processes"),
        ({"batch_size": 2, "process_index": 2, "process_count": 2}, "process_index=2 is not one of 2"),
        ({"batch_size": 2, "process_index": 1, "process_count": None}, "give both"),
        ({"batch_size": 20}, "10 examples do not fill one batch of 20"),
        ({"batch_size": 2, "mask_key": "mask"}, "set drop_remainder=False"),
        ({"batch_size": 4, "drop_remainder": False, "process_index": 0, "process_count": 2}, "mask_key='mask'"),
        ({"batch_size": 2, "num_epochs": 0}, "num_epochs: got 0"),
        ({"batch_size": 2, "prefetch": -1}, "prefetch: got -1"),
        ({"batch_size": 2, "seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(sources(10)[0], **(COMMON | options))


def test_an_empty_source_and_a_mask_without_a_dict_are_refused():
    with pytest.raises(ValueError, match="0 examples"):
        make_pipeline([], batch_size=1, drop_remainder=False, **COMMON)
    pipeline = make_pipeline([np.zeros(2)], batch_size=2, drop_remainder=False, mask_key="mask", **COMMON)
    with pytest.raises(ValueError, match="expected batches to be dicts"):
        next(pipeline)
