"""Checkpoints that a run can die beside: asynchronous, verified, resharded on restore. Orbax v1 sits behind this file.

A checkpoint is a directory `step_00000100/` with
- `arrays/`: every leaf of the state under its path (`params/dense/kernel`), written by orbax, all processes taking
  part;
- `process_0.json`, ...: what each process keeps on its host, such as the position of its data iterator;
- `manifest.json`: step, configuration, versions, a table of leaves (shape, dtype), and size and SHA-256 of every other
  file. It is written last and renamed into place after everything else has reached the disk.

So a directory without a manifest is not a checkpoint (the writer was killed), and one whose files differ from their
hashes is damaged; `restore` names such a directory in a warning and takes the one before. The hashes are ours because
orbax stores array chunks without a checksum of their own: a flipped bit would be loaded as a number. They cost one pass
over the files in the background thread that saves, and one more when restoring.
"""

import base64
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from equivariant_jax import __version__
from equivariant_jax.core.typing import PyTree
from equivariant_jax.training.manifest import MANIFEST, check_leaves, commit, find_problem, read_manifest, write_json
from equivariant_jax.training.sharding import leaf_paths

__all__ = ["CheckpointError", "Checkpointer", "Restored"]

_LOG = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for cannot be used; the message names the directory and the reason."""


class Restored(NamedTuple):
    """What `Checkpointer.restore` returns.

    Attributes:
      state: pytree like the abstract state, on the shardings of the abstract state.
      step: step of the checkpoint.
      iterator_state: what this process saved, or None (nothing saved, or saved by another number of processes whose
        states differ; then a warning says so).
      extra: JSON that `save` was given as `extra`.
      config: JSON that `save` was given as `config`.
    """

    state: PyTree
    step: int
    iterator_state: Any
    extra: Any
    config: Any


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_json(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else {"json": value}


def _from_json(value: Mapping[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if "base64" in value else value["json"]


def _describe(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _agree(value: int) -> int:
    """The value of process 0, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Checkpointer:
    """Saves and restores a sequence of checkpoints in one directory; every process calls every method.

    Args:
      directory: made absolute; shared by all processes. The first save creates it, and removes the remains of saves
        that were killed; a checkpointer that only restores changes nothing.
      keep: newest checkpoints to keep; the best one (see `save`) is kept as well.
      verify: `"hashes"` reads every file before a restore, `"sizes"` compares sizes only (truncation, but not flipped
        bits, is then found; for checkpoints of terabytes).

    Raises:
      ValueError: if `keep` or `verify` is not as said.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> state = {"w": jnp.arange(3.0)}
      >>> with Checkpointer(tempfile.mkdtemp()) as checkpointer:
      ...     checkpointer.save(10, state, iterator_state={"position": 40})
      ...     restored = checkpointer.restore(jax.eval_shape(lambda: state))
      >>> restored.step, restored.iterator_state, restored.state["w"].tolist()
      (10, {'position': 40}, [0.0, 1.0, 2.0])
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3, verify: str = "hashes"):
        if keep < 1:
            raise ValueError(
                f"keep is {keep}; expected at least 1, since the newest checkpoint is what a run resumes from."
            )
        if verify not in ("hashes", "sizes"):
            raise ValueError(f"verify is {verify!r}; expected 'hashes' or 'sizes'.")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._verify = verify
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved_before = False

    def path(self, step: int) -> Path:
        """Directory of the checkpoint of a step."""
        return self.directory / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending (a save under way is not among them)."""
        return sorted(int(p.parent.name.removeprefix("step_")) for p in self.directory.glob(f"step_*/{MANIFEST}"))

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint (as process 0 sees it), or None."""
        self.wait()
        step = _agree(max(self.steps(), default=-1))
        return None if step < 0 else step

    def best(self) -> int | None:
        """Step of the newest checkpoint saved with `best=True`, or None."""
        marked = [step for step in self.steps() if (read_manifest(self.path(step)) or {}).get("best")]
        return max(marked, default=None)

    def newest(self, accept: Callable[[Any], bool] = lambda extra: True) -> int | None:
        """Step of the newest undamaged checkpoint whose `extra` (see `save`) is accepted, or None.

        Damaged ones that are newer are named in warnings.
        """
        self.wait()
        step = _agree(self._choose(accept) if jax.process_index() == 0 else -1)
        return None if step < 0 else step

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        iterator_state: Any = None,
        config: Any = None,
        extra: Any = None,
        best: bool = False,
    ) -> None:
        """Starts saving and returns once the arrays are copied off the device; an earlier save is waited for first.

        Args:
          step: number of the checkpoint; one of the same number is removed first.
          state: pytree of `jax.Array`s of any shape (typed keys included), global ones if there are several processes.
          iterator_state: this process's data position: bytes or JSON.
          config: JSON stored in the manifest (the experiment's configuration).
          extra: further JSON, given back by `restore`.
          best: keep this checkpoint until another one is saved as best.

        Raises:
          ValueError: naming the leaf, if it is not an array that can be saved.
          CheckpointError: if the save before this one failed.
        """
        self.wait()
        import orbax.checkpoint.experimental.v1 as ocp

        table, arrays = {}, {}
        for path, leaf in zip(leaf_paths(state), jax.tree.leaves(state), strict=True):
            if path in table:
                raise ValueError(f"Two state leaves are called '{path}'; rename the keys that contain '/'.")
            if not isinstance(leaf, jax.Array):
                raise ValueError(f"State leaf '{path}' is a {type(leaf).__name__}; expected a jax.Array.")
            if jax.process_count() > 1 and leaf.is_fully_addressable:
                raise ValueError(
                    f"State leaf '{path}' lives in one process only; make the state with init_sharded on a global mesh."
                )
            table[path] = _describe(leaf)
            if _is_key(leaf):
                table[path]["impl"] = str(jax.random.key_impl(leaf))
            if leaf.size:  # the array store cannot hold empty arrays; their shape says all there is to know
                arrays[path] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        manifest = {
            "step": step,
            "best": best,
            "process_count": jax.process_count(),
            "versions": {"equivariant_jax": __version__, "jax": jax.__version__, "orbax": _orbax_version()},
            "config": config,
            "extra": extra,
            "leaves": table,
        }
        json.dumps(manifest)  # fail here, before anything is touched, if config or extra is not JSON
        directory = self.path(step)
        if jax.process_index() == 0:
            self._make_room(step)
        _barrier(f"save {step}")
        write_json(directory / f"process_{jax.process_index()}.json", {"iterator_state": _to_json(iterator_state)})
        response = ocp.save_async(str(directory / "arrays"), arrays)

        def finish() -> None:
            try:
                response.result()
                if jax.process_index() == 0:
                    commit(directory, manifest)
                    self._prune()
            except BaseException as error:  # handed to the caller by wait()
                self._failure = error

        self._thread = threading.Thread(target=finish, name=f"checkpoint-{step}")
        self._thread.start()

    def _make_room(self, step: int) -> None:
        if not self._saved_before:
            for path in self.directory.glob("step_*"):
                if not (path / MANIFEST).exists():
                    _LOG.info("Removing %s: it was being written when the process ended.", path)
                    shutil.rmtree(path)
            self._saved_before = True
        self._remove(step)
        self.path(step).mkdir(parents=True)

    def _remove(self, step: int) -> None:
        """Takes the manifest away first, so that a half-removed checkpoint is not taken for a whole one."""
        directory = self.path(step)
        if directory.exists():
            (directory / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(directory)

    def _prune(self) -> None:
        steps, best = self.steps(), self.best()
        for step in steps[: -self._keep]:
            if step != best:
                self._remove(step)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps (a run that rolled back must not resume from them)."""
        self.wait()
        if jax.process_index() == 0:
            for later in [s for s in self.steps() if s > step]:
                self._remove(later)
        _barrier(f"discard after {step}")

    def wait(self) -> None:
        """Blocks until the save under way is committed (in process 0; elsewhere: until this process's part is written).

        Raises:
          CheckpointError: if it failed; earlier checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"Saving to {self.directory} failed: {failure}") from failure

    def problem(self, step: int) -> str | None:
        """Says what is wrong with the checkpoint of a step: None if its files are what was written."""
        return find_problem(self.path(step), hashes=self._verify == "hashes")

    def _choose(self, accept: Callable[[Any], bool]) -> int:
        for step in reversed(self.steps()):
            problem = self.problem(step)
            if problem is not None:
                _LOG.warning("Checkpoint %s is damaged and skipped: %s.", self.path(step), problem)
            elif accept((read_manifest(self.path(step)) or {}).get("extra")):
                return step
        return -1

    def restore(self, abstract_state: PyTree, step: int | None = None) -> Restored:
        """Loads a checkpoint onto the current devices, whatever devices and processes saved it.

        Args:
          abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`s (with shardings, if there is a mesh) that says
            structure, shapes, dtypes and placement of the result; a freshly created state will do.
          step: checkpoint to load; None takes the newest that is not damaged, naming those it skips in warnings.

        Returns:
          A `Restored`.

        Raises:
          ValueError: naming the paths, if the state's leaves, shapes or dtypes are not those of the checkpoint.
          CheckpointError: if there is no usable checkpoint, or the one asked for is damaged.
        """
        chosen = self.newest() if step is None else step
        if chosen is None:
            raise CheckpointError(f"There is no usable checkpoint in {self.directory} (damaged: {self.steps()}).")
        problem = None if step is None else self.problem(step)
        manifest = read_manifest(self.path(chosen))
        if problem is not None or manifest is None:
            raise CheckpointError(f"{self.path(chosen)} is damaged: {problem}. Committed steps: {self.steps()}.")
        state = self._load(self.path(chosen), manifest["leaves"], abstract_state)
        return Restored(state, chosen, self._iterator_state(chosen, manifest), manifest["extra"], manifest["config"])

    def _iterator_state(self, step: int, manifest: Mapping[str, Any]) -> Any:
        def read(process: int) -> Any:
            stored = json.loads((self.path(step) / f"process_{process}.json").read_text())
            return _from_json(stored["iterator_state"])

        saved_by = manifest["process_count"]
        if saved_by == jax.process_count():
            return read(jax.process_index())
        states = [read(process) for process in range(saved_by)]
        if all(state == states[0] for state in states):
            return states[0]
        _LOG.warning(
            "%s holds data positions of %d processes that differ, and now there are %d: the data iterator cannot "
            "continue.",
            self.path(step),
            saved_by,
            jax.process_count(),
        )
        return None

    def _load(self, directory: Path, table: Mapping[str, Any], abstract_state: PyTree) -> PyTree:
        import orbax.checkpoint.experimental.v1 as ocp

        leaves, structure = jax.tree.flatten(abstract_state)
        paths = leaf_paths(abstract_state)
        expected = {path: _describe(leaf) for path, leaf in zip(paths, leaves, strict=True)}
        check_leaves(directory, table, expected)

        def placement(leaf):
            return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(leaf):
            sharding = placement(leaf)
            if not _is_key(leaf):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)

        wanted = {path: abstract(leaf) for path, leaf in zip(paths, leaves, strict=True) if leaf.size}
        arrays = ocp.load(str(directory / "arrays"), wanted)

        def finish(path, leaf):
            if not leaf.size:
                return jax.numpy.zeros(leaf.shape, leaf.dtype, device=placement(leaf))
            if not _is_key(leaf):
                return arrays[path]
            return jax.random.wrap_key_data(arrays[path], impl=table[path]["impl"])

        return jax.tree.unflatten(structure, [finish(path, leaf) for path, leaf in zip(paths, leaves, strict=True)])

    def close(self) -> None:
        """Waits for the save under way."""
        self.wait()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _orbax_version() -> str:
    from importlib.metadata import version

    return version("orbax-checkpoint")
