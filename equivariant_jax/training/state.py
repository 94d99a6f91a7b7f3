"""Everything that a training run must carry from one step to the next, as one pytree of arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.training.sharding import leaf_paths

__all__ = ["TrainState", "nonfinite_leaves"]


def _own_strong(leaf: Any) -> Array:
    """Copies a leaf (the step donates it) and drops weak types (they would cost a second compilation)."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.copy(leaf)
    return jnp.array(leaf, dtype=leaf.dtype, copy=True)


class TrainState(flax.struct.PyTreeNode):
    """State of a run; each field is a pytree of arrays, so that it can be donated, sharded and saved as a whole.

    Attributes:
      step: batches consumed (skipped ones included), int32 `[]`.
      params: parameters, pytree of floating arrays.
      opt_state: optax state.
      ema_params: exponential moving average of `params`, or None.
      model_state: what the model carries besides parameters (running statistics, say), or None.
      key: typed random key; the key of step `t` is `fold_in(key, t)`, so a resumed run repeats an uninterrupted one.
      skipped: updates skipped because a number was not finite, int32 `[]`.
      consecutive_skips: skips since the last applied update, int32 `[]`.
      nonfinite: which leaves were not finite in the last skipped step, bool `[number of parameter leaves + 2]`; read it
        with `nonfinite_leaves`.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    ema_params: PyTree
    model_state: PyTree
    key: PRNGKey
    skipped: Array
    consecutive_skips: Array
    nonfinite: Array

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        *,
        key: PRNGKey,
        model_state: PyTree = None,
        ema: bool = False,
    ) -> "TrainState":
        """Builds the state of step 0; pure, so `init_sharded` can run it where the arrays shall live.

        Args:
          params: pytree of floating arrays, any shapes; copied, because training donates the state's buffers.
          optimizer: optax transformation.
          key: typed random key, `[]`.
          model_state: pytree of arrays that the loss returns updated, or None.
          ema: keep a moving average of the parameters (starting at `params`).

        Returns:
          The state.

        Raises:
          ValueError: if `key` is not a typed key, or a parameter is not floating (named by its path).

        Example:
          >>> state = TrainState.create({"w": jnp.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
          >>> int(state.step), state.ema_params is None
          (0, True)
        """
        if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
            raise ValueError(f"key is {key!r}; expected a typed key as made by jax.random.key(seed).")
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(
                    f"Parameter '{path}' has dtype {jnp.result_type(leaf)}; expected a floating dtype. Put counters "
                    "and tables into model_state."
                )
        params = jax.tree.map(_own_strong, params)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=jax.tree.map(_own_strong, optimizer.init(params)),
            ema_params=jax.tree.map(_own_strong, params) if ema else None,
            model_state=jax.tree.map(_own_strong, model_state),
            key=_own_strong(key),
            skipped=jnp.zeros((), jnp.int32),
            consecutive_skips=jnp.zeros((), jnp.int32),
            nonfinite=jnp.zeros(len(jax.tree.leaves(params)) + 2, bool),
        )


def nonfinite_leaves(state: TrainState) -> list[str]:
    """Names what was not finite in the last skipped step (fetches one array, bool `[number of parameter leaves + 2]`).

    Returns:
      Paths such as `params/dense/kernel` (its gradient or its update), `loss` and `model_state`; empty when nothing was
      skipped.
    """
    flags = jax.device_get(state.nonfinite)
    names = [*leaf_paths({"params": state.params}), "loss", "model_state"]
    return [name for name, flag in zip(names, flags, strict=True) if flag]
