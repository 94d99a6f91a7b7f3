"""The compiled evaluation step, and sums over a whole data set."""

from collections.abc import Callable, Iterable, Mapping

import jax
from jax.sharding import Mesh

from equivariant_jax.core.precision import Policy
from equivariant_jax.core.typing import PyTree
from equivariant_jax.training.metrics import Mean, Metric, add_metrics, compute_metrics
from equivariant_jax.training.objective import LossFunction, make_measure, weighted_objective
from equivariant_jax.training.sharding import place_batch
from equivariant_jax.training.state import TrainState

__all__ = ["EvalStep", "evaluator", "make_eval_step"]

_Measure = Callable[[PyTree, PyTree, PyTree], tuple[dict[str, Mean], dict[str, Metric]]]


class EvalStep:
    """A compiled `eval_step(state, batch) -> metrics`; made by `make_eval_step`.

    Attributes:
      mesh: mesh that state and batches live on, or None.
      coefficients: factor of each term of the objective, 1 where not named.
      traces: how often the step was traced.
      term_names: names of the loss's terms, known once it was traced.
    """

    def __init__(self, measure: _Measure, *, mesh: Mesh | None, coefficients: Mapping[str, float], use_ema: bool):
        self.mesh = mesh
        self.coefficients = dict(coefficients)
        self.traces = 0
        self.term_names: tuple[str, ...] = ()
        self._use_ema = use_ema
        self._measure = measure
        self._compiled = jax.jit(self._traced)

    def _traced(self, params: PyTree, batch: PyTree, model_state: PyTree) -> dict[str, Metric]:
        self.traces += 1
        terms, metrics = self._measure(params, batch, model_state)
        self.term_names = tuple(terms)
        return {**terms, **metrics}

    def __call__(self, state: TrainState, batch: PyTree) -> dict[str, Metric]:
        """Measures one batch (leaves `[n, ...]`); returns name -> `Mean` or `RootMean`, leaves `[]`, to be added up."""
        params = state.ema_params if self._use_ema and state.ema_params is not None else state.params
        return self._compiled(params, place_batch(batch, self.mesh), state.model_state)


def make_eval_step(
    loss_fn: LossFunction,
    *,
    coefficients: Mapping[str, float] | None = None,
    mesh: Mesh | None = None,
    policy: Policy | None = None,
    per_device: bool = False,
    use_ema: bool = True,
) -> EvalStep:
    """Builds the compiled evaluation of a loss (called with `key=None`: no dropout, no noise).

    Args:
      loss_fn: as in `make_train_step`.
      coefficients: factors of the terms, for the `loss` that `evaluator` reports; static.
      mesh: as in `make_train_step`.
      policy: as in `make_train_step`.
      per_device: batches have a leading axis of `devices` and the loss sees one entry at a time.
      use_ema: evaluate the averaged parameters where the state has them.

    Returns:
      An `EvalStep`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from equivariant_jax.training import LossOutput, Mean, TrainState
      >>> def loss_fn(params, batch, *, key, model_state):
      ...     return LossOutput({"error": Mean.of((batch - params["mean"]) ** 2)})
      >>> state = TrainState.create({"mean": jnp.zeros(())}, optax.sgd(0.1), key=jax.random.key(0))
      >>> float(make_eval_step(loss_fn)(state, jnp.array([1.0, 3.0]))["error"].compute())
      5.0
    """
    measure = make_measure(loss_fn, policy=policy, mesh=mesh, per_device=per_device)
    return EvalStep(measure, mesh=mesh, coefficients=coefficients or {}, use_ema=use_ema)


def evaluator(eval_step: EvalStep, batches: Callable[[], Iterable[PyTree]]) -> Callable[[TrainState], dict[str, float]]:
    """Makes `evaluate(state) -> name -> float` over a whole data set, weighted by real items.

    Args:
      eval_step: from `make_eval_step`.
      batches: called at each evaluation; returns the batches (leaves `[n, ...]`) of one pass. A last batch that is
        smaller costs a second trace: pad it and mask the padding.

    Returns:
      A function that sums over all batches and divides once; `loss` is the objective of the data set as a whole.

    Raises:
      ValueError: when called, if there is no batch.
    """
    add = jax.jit(add_metrics)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = None
        for batch in batches():
            measured = eval_step(state, batch)
            sums = measured if sums is None else add(sums, measured)
        if sums is None:
            raise ValueError("The evaluation set has no batch; batches() must return a fresh iterable at each call.")
        fetched = jax.device_get(sums)
        terms = {name: fetched[name] for name in eval_step.term_names}
        return {"loss": float(weighted_objective(terms, eval_step.coefficients)), **compute_metrics(fetched)}

    return evaluate
