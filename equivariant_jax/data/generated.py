"""Endless batches that a pure function makes from a random key, resumable at any batch.

Batch n of a run is `generate(fold_in(key, n))`: it depends on the position alone, so a resumed run sees what the
uninterrupted one would have seen. With several processes each makes its own part.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax

from equivariant_jax.core.typing import PRNGKey

__all__ = ["GeneratedBatches"]

Batch = TypeVar("Batch")


class GeneratedBatches(Generic[Batch]):
    """An iterator over generated batches.

    Args:
      generate: `key -> batch`, a pytree of arrays `[n, ...]` (compile it with `jax.jit` first); this process's part.
      key: typed random key of the run.

    Example:
      >>> batches = GeneratedBatches(lambda key: jax.random.randint(key, (2,), 0, 9), jax.random.key(0))
      >>> first, second = next(batches), next(batches)
      >>> batches.set_state({"position": 1})
      >>> bool((next(batches) == second).all()), batches.get_state()
      (True, {'position': 2})
    """

    def __init__(self, generate: Callable[[PRNGKey], Batch], key: PRNGKey):
        if jax.process_count() > 1:
            key = jax.random.fold_in(key, jax.process_index())
        self._generate, self._key, self._position = generate, key, 0

    def __iter__(self) -> "GeneratedBatches[Batch]":
        return self

    def __next__(self) -> Batch:
        batch = self._generate(jax.random.fold_in(self._key, self._position))
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch returned, JSON."""
        return {"position": self._position}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `get_state` gave.

        Args:
          state: what `get_state` returned.

        Raises:
          ValueError: if it is not a position.
        """
        position = state.get("position")
        if set(state) != {"position"} or not isinstance(position, int) or position < 0:
            raise ValueError(f"state: got {dict(state)}, expected what get_state returns, a position of 0 or more.")
        self._position = position
