"""Batches from a random-access source: shuffled, sharded by process, read ahead by threads, and resumable exactly.

The order of an epoch is a pure function of (seed, epoch), the batch that comes next a pure function of (epoch, step).
That pair is the whole state of a pipeline: plain JSON, the same on every process, good for any number of processes and
not tied to a version of `grain` (whose iterators read ahead here) or of NumPy (only the raw stream of its bit generator
is used, which NumPy keeps stable).

`batch_size` is that of the whole program. Process p of P reads the p-th of P equal parts of each batch, so the parts in
order of processes are the batch that one process alone would read: a run may go on with another number of processes.

Laws (tested): every example comes once an epoch; the parts of the processes are disjoint; a pipeline set to a state
gives bit for bit the batches that the one it was taken from gave next.
"""

import bisect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from equivariant_jax.core.typing import PyTree
from equivariant_jax.data.sources import ArraySource, RandomAccessSource

__all__ = ["Pipeline", "Plan", "checked_seed", "epoch_order", "make_pipeline", "process_position"]

Batch = TypeVar("Batch")
_VERSION = 1


class Plan(Protocol):
    """The steps of an epoch, each whatever `load` turns into a batch; a pure function of the epoch."""

    def __call__(self, epoch: int, /) -> Sequence[Any]:
        """Steps of one epoch."""
        ...


class _Schedule:
    """The steps of all epochs behind a start, one after another, as the random-access source that `grain` reads.

    Epochs may differ in length and are planned when they are reached; behind the last epoch stands None.
    """

    def __init__(self, plan: Plan, epoch: int, step: int, num_epochs: int | None):
        self._plan, self._num_epochs = plan, num_epochs
        self._lock = threading.Lock()
        self._first_epoch = epoch
        # Index in this schedule at which each epoch starts; the first may have started before index 0.
        self._starts = [-step]
        self._plans: dict[int, Sequence[Any]] = {}

    def __len__(self) -> int:
        return np.iinfo(np.int64).max

    def __getitem__(self, index: int) -> tuple[int, int, Any] | None:
        """Epoch, step in it, and the step itself."""
        with self._lock:
            while True:
                at = bisect.bisect_right(self._starts, index) - 1
                epoch = self._first_epoch + at
                if self._num_epochs is not None and epoch >= self._num_epochs:
                    return None
                steps = self._steps(epoch)
                step = index - self._starts[at]
                if step < len(steps):
                    return epoch, step, steps[step]
                self._starts.append(self._starts[at] + len(steps))

    def _steps(self, epoch: int) -> Sequence[Any]:
        if epoch not in self._plans:
            # Reading ahead touches this epoch and the next; older plans are not asked for again.
            self._plans = {known: plan for known, plan in self._plans.items() if known >= epoch - 2}
            self._plans[epoch] = self._plan(epoch)
        return self._plans[epoch]


class Pipeline(Iterator[Batch], Generic[Batch]):
    """An iterator over batches whose position can be read and set.

    Args:
      plan: gives the steps of an epoch, at least one; pure.
      load: turns a step into a batch; called from several threads.
      num_epochs: how many epochs; None for no end.
      prefetch: how many batches are read ahead, each in a thread; 0 reads when asked.
      settings: JSON-able description of everything that decides which batches come; a state is accepted only by a
        pipeline of equal settings.
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[Any], Batch],
        *,
        num_epochs: int | None,
        prefetch: int,
        settings: Mapping[str, Any],
    ):
        if num_epochs is not None and num_epochs < 1:
            raise ValueError(f"num_epochs: got {num_epochs}, expected a positive number or None for no end")
        if prefetch < 0:
            raise ValueError(f"prefetch: got {prefetch}, expected 0 or more batches to read ahead")
        self._plan, self._load = plan, load
        self._num_epochs, self._prefetch = num_epochs, prefetch
        self._settings = dict(settings)
        self._start(0, 0)

    def _start(self, epoch: int, step: int) -> None:
        import grain

        self._schedule = _Schedule(self._plan, epoch, step, self._num_epochs)
        self._index = 0
        self._epoch, self._step = epoch, step
        options = grain.ReadOptions(num_threads=self._prefetch, prefetch_buffer_size=self._prefetch)
        dataset = grain.MapDataset.source(self._schedule).map(_loader(self._load))
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Batch:
        planned = self._schedule[self._index]
        if planned is None:
            self.close()
            raise StopIteration
        try:
            batch = next(self._iterator)
        except Exception:
            # The reader is past the batch that failed; whoever tries again must get that one and no other.
            self.close()
            self._start(self._epoch, self._step)
            raise
        self._index += 1
        self._epoch, self._step = planned[0], planned[1] + 1
        return batch

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Number of batches in an epoch; only graph pipelines differ between epochs."""
        return len(self._plan(epoch))

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch returned, as JSON-able data; batches read ahead do not count."""
        return {"version": _VERSION, "epoch": self._epoch, "step": self._step, "settings": dict(self._settings)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `get_state` gave, here or in another process or run.

        Args:
          state: what `get_state` returned.

        Raises:
          ValueError: if the state is malformed or of a pipeline with other settings; the message names them.
        """
        if state.get("version") != _VERSION or not {"epoch", "step", "settings"} <= set(state):
            raise ValueError(f"state: got {dict(state)}, expected what get_state of this version ({_VERSION}) returns")
        theirs, ours = dict(state["settings"]), self._settings
        differing = {
            name: (theirs.get(name), ours.get(name))
            for name in sorted(ours | theirs)
            if theirs.get(name) != ours.get(name)
        }
        if differing:
            raise ValueError(
                f"state: it belongs to another pipeline; (state, this pipeline) differ in {differing}. Build the "
                "pipeline with the settings of the run that is to go on, or start without a state"
            )
        epoch, step = state["epoch"], state["step"]
        if not (isinstance(epoch, int) and isinstance(step, int) and epoch >= 0 and step >= 0):
            raise ValueError(f"state: got epoch {epoch!r} and step {step!r}, expected integers that are not negative")
        length = self.steps_per_epoch(epoch)
        if step > length:
            raise ValueError(f"state: got step {step}, and epoch {epoch} has {length} steps")
        self.close()
        self._start(epoch, step)

    def reset(self) -> None:
        """Goes back to the first batch of the first epoch, as for another round of evaluation."""
        self.close()
        self._start(0, 0)

    def close(self) -> None:
        """Ends the threads that read ahead, as the end of the last epoch does; `set_state` and `reset` start anew."""
        self._iterator.close()


def _loader(load: Callable[[Any], Any]) -> Callable[[tuple[int, int, Any] | None], Any]:
    # Not a method: the threads must not keep alive the pipeline whose end would stop them.
    def load_planned(planned: tuple[int, int, Any] | None) -> Any:
        if planned is None:
            return None
        epoch, step, content = planned
        try:
            return load(content)
        except Exception as error:
            error.add_note(f"while loading epoch {epoch}, step {step} of the data pipeline")
            raise

    return load_planned


def epoch_order(length: int, *, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The order in which an epoch visits the examples, a pure function of its arguments.

    Args:
      length: number of examples.
      seed: seed of the pipeline.
      epoch: number of the epoch.
      shuffle: False keeps the order of the source.

    Returns:
      A permutation, int64 `[length]`.

    Example:
      >>> epoch_order(5, seed=0, epoch=1).tolist() == epoch_order(5, seed=0, epoch=2).tolist()
      False
      >>> sorted(epoch_order(5, seed=0, epoch=1).tolist())
      [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return np.arange(length)
    # Sorting raw 64-bit draws, since NumPy may change Generator.permutation but not the stream of a bit generator.
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(length)
    return np.argsort(draws, kind="stable")


def checked_seed(seed: int) -> int:
    """A seed as a plain integer.

    Raises:
      ValueError: if it is negative.
    """
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected an integer that is not negative")
    return int(seed)


def process_position(process_index: int | None, process_count: int | None) -> tuple[int, int]:
    """Fills in which process this is, of how many, from JAX.

    Args:
      process_index: number of this process, or None to ask JAX.
      process_count: number of processes, or None to ask JAX.

    Returns:
      `(process_index, process_count)`.

    Raises:
      ValueError: if the index is not below the count, or only one of them is given.
    """
    if (process_index is None) != (process_count is None):
        raise ValueError(
            f"process_index={process_index} and process_count={process_count}: give both, or neither to ask JAX"
        )
    if process_index is None or process_count is None:
        return jax.process_index(), jax.process_count()
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not one of {process_count} processes")
    return process_index, process_count


def make_pipeline(
    source: RandomAccessSource[Any],
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    drop_remainder: bool = True,
    mask_key: str | None = None,
    prefetch: int = 4,
) -> Pipeline[PyTree]:
    """Makes an iterator over batches of examples.

    Args:
      source: the data set.
      batch_size: examples in a batch, over all processes; a multiple of the number of processes.
      seed: of the order of examples.
      shuffle: whether each epoch has a new order, or all have the order of the source.
      num_epochs: how many epochs; None for no end.
      process_index: which process this is; by default what JAX says.
      process_count: how many processes there are; by default what JAX says.
      collate: turns a list of examples into a batch; by default leaves `[...]` are stacked to `[batch, ...]`.
      drop_remainder: whether the examples that do not fill the last batch of an epoch are left out.
      mask_key: pads the last batch with repeated examples instead, and adds to every batch, which must be a dict, a
        bool array `[batch]` of this name that is True where an example is real. Shapes are then always the same. Needs
        `drop_remainder=False`.
      prefetch: how many batches are read ahead in threads; 0 for none.

    Returns:
      A pipeline; each batch is a pytree of NumPy arrays `[batch_size / process_count, ...]`.

    Raises:
      ValueError: if the source is empty or smaller than a batch that may not be incomplete, sizes do not divide,
        several processes would get unequal numbers of examples, or the seed is negative.

    Example:
      >>> source = ArraySource({"x": np.arange(10)})
      >>> pipeline = make_pipeline(
      ...     source, batch_size=4, num_epochs=1, shuffle=False, drop_remainder=False, mask_key="mask"
      ... )
      >>> [(batch["x"].tolist(), batch["mask"].tolist()) for batch in pipeline][-1]
      ([8, 9, 8, 8], [True, True, False, False])
    """
    process_index, process_count = process_position(process_index, process_count)
    seed, length = checked_seed(seed), len(source)
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size: got {batch_size}, expected a positive multiple of the {process_count} processes")
    if length == 0 or (drop_remainder and length < batch_size):
        raise ValueError(
            f"source: {length} examples do not fill one batch of {batch_size}; use a smaller batch_size or, if there "
            "are any examples, drop_remainder=False"
        )
    if drop_remainder and mask_key is not None:
        raise ValueError(
            f"mask_key={mask_key!r}: with drop_remainder=True no batch is padded; set drop_remainder=False"
        )
    if not drop_remainder and mask_key is None and process_count > 1 and length % batch_size:
        raise ValueError(
            f"drop_remainder=False: the last of {length} examples do not fill a batch of {batch_size} and cannot be "
            f"shared equally by {process_count} processes; give mask_key='mask' to pad, or drop them"
        )
    share = batch_size // process_count

    def plan(epoch: int) -> list[np.ndarray]:
        order = epoch_order(length, seed=seed, epoch=epoch, shuffle=shuffle)
        stop = length - length % batch_size if drop_remainder else length
        return [order[start : start + batch_size] for start in range(0, stop, batch_size)]

    def load(indices: np.ndarray) -> PyTree:
        real = np.arange(batch_size) < len(indices)
        if mask_key is not None:
            indices = np.concatenate([indices, np.full(batch_size - len(indices), indices[0])])
        mine = indices if process_count == 1 else indices[process_index * share : (process_index + 1) * share]
        batch = _gather(source, mine, collate)
        if mask_key is None:
            return batch
        if not isinstance(batch, dict) or mask_key in batch:
            raise ValueError(f"mask_key={mask_key!r}: expected batches to be dicts without that key, got {type(batch)}")
        return batch | {mask_key: real[process_index * share : (process_index + 1) * share]}

    settings = {
        "kind": "examples",
        "length": length,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "drop_remainder": drop_remainder,
    }
    return Pipeline(plan, load, num_epochs=num_epochs, prefetch=prefetch, settings=settings)


def _gather(source: RandomAccessSource[Any], indices: np.ndarray, collate: Callable | None) -> PyTree:
    if collate is None and isinstance(source, ArraySource):
        return jax.tree.map(lambda x: x[indices], source.arrays)
    examples = [source[int(index)] for index in indices]
    if collate is not None:
        return collate(examples)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
