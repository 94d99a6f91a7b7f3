"""The compiled training step: gradient, guard, update, moving average, in one program with a donated state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from equivariant_jax.core.precision import Policy
from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.training.metrics import Mean, Metric
from equivariant_jax.training.objective import LossFunction, make_gradient
from equivariant_jax.training.sharding import Rule, place_batch, replicated, shardings_for
from equivariant_jax.training.state import TrainState

__all__ = ["TrainStep", "make_train_step"]


class TrainStep:
    """A compiled `step(state, batch) -> (state, metrics)`; made by `make_train_step`.

    Attributes:
      mesh: mesh that state and batches live on, or None.
      coefficients: factor of each term of the objective, 1 where not named.
      traces: how often the step was traced; 1 as long as shapes and dtypes of batches do not change.
    """

    def __init__(
        self,
        function: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Metric]]],
        *,
        mesh: Mesh | None,
        rules: Sequence[Rule],
        coefficients: Mapping[str, float],
        donate: bool,
    ):
        self.mesh = mesh
        self.coefficients = dict(coefficients)
        self.traces = 0
        self._rules = tuple(rules)
        self._donate = (0,) if donate else ()
        self._function = function
        self._compiled: Any = None

    def _traced(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Metric]]:
        self.traces += 1
        return self._function(state, batch)

    def _jit(self, state: TrainState) -> Any:
        if self._compiled is None:
            if self.mesh is None:
                self._compiled = jax.jit(self._traced, donate_argnums=self._donate)
            else:
                placement = shardings_for(state, self._rules, self.mesh)
                self._compiled = jax.jit(
                    self._traced,
                    donate_argnums=self._donate,
                    in_shardings=(placement, None),
                    out_shardings=(placement, replicated(self.mesh)),
                )
        return self._compiled

    def place(self, batch: PyTree) -> PyTree:
        """Puts a host batch (leaves `[n, ...]`) onto the mesh; this process's part of it, with several processes."""
        return place_batch(batch, self.mesh)

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Metric]]:
        """Takes one step; returns without waiting for the device.

        Args:
          state: donated, hence unusable afterwards.
          batch: pytree with leaves `[n, ...]` (see `make_train_step`), on the host or placed by `place`.

        Returns:
          The next state, and name -> `Mean` or `RootMean` (leaves `[]`) of the loss's terms and metrics, `loss`,
          `gradient_norm` (before clipping) and `skipped`. A skipped step counts in `skipped` alone.
        """
        if self.mesh is not None and not isinstance(state.step.sharding, NamedSharding):
            # A state made off the mesh would cost one more trace: that of its first step.
            state = jax.device_put(state, shardings_for(state, self._rules, self.mesh))
        return self._jit(state)(state, self.place(batch))

    def lower(self, state: TrainState, batch: PyTree) -> Any:
        """Lowers the step for these shapes without running it (`.compile().cost_analysis()` counts its FLOPs)."""
        return self._jit(state).lower(state, self.place(batch))


def _all_finite(tree: PyTree) -> Array:
    """True if every floating leaf (any shape) is finite: `[]`."""
    floating = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floating]).all() if floating else jnp.array(True)


def _finite_flags(*trees: PyTree) -> Array:
    """True per leaf when it is finite in every one of the trees (same structure, any shapes): `[number of leaves]`."""
    per_tree = [[jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)] for tree in trees]
    return jnp.stack([jnp.stack(flags).all() for flags in zip(*per_tree, strict=True)])


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    coefficients: Mapping[str, float] | None = None,
    mesh: Mesh | None = None,
    rules: Sequence[Rule] = (),
    policy: Policy | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    donate: bool = True,
    per_device: bool = False,
) -> TrainStep:
    r"""Builds the compiled step of a loss and an optimiser.

    The objective is \(\sum_k c_k T_k / W_k\) over the real items of the global batch, whatever the number of devices
    and of microbatches (see `training.objective`). If the objective, a gradient, or an updated parameter is not finite,
    parameters, optimiser, average and model state stay as they were, the skip is counted in the state, and the names of
    the leaves are kept for `nonfinite_leaves`.

    Args:
      loss_fn: `loss_fn(params, batch, *, key, model_state) -> LossOutput`.
      optimizer: optax transformation (clipping belongs into it); it sees the global gradient and `value=objective`.
      coefficients: name of a term -> factor, 1 where not named; static.
      mesh: from `make_mesh`; None runs on one device.
      rules: (regex, rule) pairs that place the state, see `shardings_for`; batches are split over the whole mesh.
      policy: dtype policy; parameters are cast for the loss, the update runs in the parameters' dtype.
      accumulate: microbatches per step; static. A global batch `[n, ...]` is cut by stride into `accumulate` parts.
      ema_decay: decay of the moving average; needs `TrainState.create(..., ema=True)`.
      donate: reuse the state's memory for the next state.
      per_device: batches have a leading axis of `devices * accumulate` and the loss sees one entry at a time
        (`jax.shard_map`; for stacks of padded graphs).

    Returns:
      A `TrainStep`.

    Raises:
      ValueError: if `accumulate` or `ema_decay` is out of range; when traced, if state or batch do not fit.

    Example:
      >>> from equivariant_jax.training import LossOutput, Mean, TrainState
      >>> def loss_fn(params, batch, *, key, model_state):
      ...     return LossOutput({"error": Mean.of((batch["x"] @ params["w"] - batch["y"]) ** 2)})
      >>> optimizer = optax.sgd(0.1)
      >>> state = TrainState.create({"w": jnp.zeros(2)}, optimizer, key=jax.random.key(0))
      >>> step = make_train_step(loss_fn, optimizer)
      >>> state, metrics = step(state, {"x": jnp.eye(2), "y": jnp.array([1.0, -1.0])})
      >>> float(metrics["loss"].compute()), state.params["w"].round(3).tolist()
      (1.0, [0.10000000149011612, -0.10000000149011612])
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay is {ema_decay}; expected 0 <= ema_decay < 1.")
    gradient_of = make_gradient(
        loss_fn, coefficients=coefficients, policy=policy, accumulate=accumulate, mesh=mesh, per_device=per_device
    )
    update = optax.with_extra_args_support(optimizer).update

    def function(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Metric]]:
        if (ema_decay is None) != (state.ema_params is None):
            raise ValueError(
                f"ema_decay is {ema_decay} but the state was created with ema={state.ema_params is not None}; give "
                "both or neither."
            )
        out = gradient_of(state.params, batch, jax.random.fold_in(state.key, state.step), state.model_state)
        # optax raises decay rates to integer counts, which strict promotion, fit for models, forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = update(out.gradient, state.opt_state, state.params, value=out.objective)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.concatenate(
            [
                _finite_flags(out.gradient, params),
                jnp.stack([jnp.isfinite(out.objective), _all_finite(out.model_state)]),
            ]
        )
        applied = finite.all()

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, old)

        params = keep(params, state.params)
        ema = state.ema_params
        if ema_decay is not None:
            ema = keep(optax.incremental_update(params, ema, 1 - ema_decay), ema)
        skip = 1 - applied.astype(jnp.int32)
        next_state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=keep(opt_state, state.opt_state),
            ema_params=ema,
            model_state=keep(out.model_state, state.model_state),
            skipped=state.skipped + skip,
            consecutive_skips=(state.consecutive_skips + 1) * skip,
            nonfinite=jnp.where(applied, state.nonfinite, ~finite),
        )
        one = jnp.ones((), jnp.float32)
        reported = {
            "loss": Mean(out.objective, one),
            **out.terms,
            **out.metrics,
            "gradient_norm": Mean(optax.tree.norm(out.gradient), one),
        }
        # One NaN would erase the sums of a whole logging interval.
        reported = jax.tree.map(lambda x: jnp.where(applied, x, 0), reported)
        return next_state, {**reported, "skipped": Mean(skip.astype(jnp.float32), one)}

    return TrainStep(function, mesh=mesh, rules=rules, coefficients=coefficients or {}, donate=donate)
