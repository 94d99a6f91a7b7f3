"""Optimisers from a frozen configuration, so that an experiment's command line says all that there is to say.

Order of the chain: clip the global norm of the gradient, optimiser, decoupled weight decay (where the mask allows),
schedule, plateau factor. The plateau factor is changed between steps, by the loop, from what the evaluation measured:
optax's own `reduce_on_plateau` expects a value at every step, which would be the noisy loss of a batch. Its state and
its rule are used as they are; they live in the optimiser state, so checkpoints carry them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from equivariant_jax.core.typing import PyTree
from equivariant_jax.training.sharding import leaf_paths
from equivariant_jax.training.state import TrainState

__all__ = ["OptimizerConfig", "make_optimizer", "make_schedule", "observe_plateau", "plateau_observer", "plateau_scale"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser, its schedule, clipping, weight decay and plateau rule.

    Attributes:
      name: `adam`, `adamw`, `amsgrad`, `sgd`, `lion`, `rmsprop` or `adabelief`.
      learning_rate: peak learning rate.
      b1: first-moment decay (adam family, lion).
      b2: second-moment decay (adam family, lion, rmsprop).
      eps: added to the root of the second moment.
      momentum: momentum of `sgd` (0: none).
      nesterov: Nesterov momentum for `sgd`.
      schedule: `constant`, `cosine`, `warmup_cosine`, `exponential` or `piecewise`.
      total_steps: steps over which `cosine` and `warmup_cosine` fall to `end_factor`.
      warmup_steps: steps of the linear rise of `warmup_cosine` (0 to the peak).
      end_factor: last learning rate divided by the peak (cosine schedules).
      decay_rate: factor per `decay_steps` (`exponential`, continuous) or per boundary (`piecewise`).
      decay_steps: see `decay_rate`.
      boundaries: steps at which `piecewise` multiplies by `decay_rate`.
      clip_norm: largest global norm of the gradient, None for no clipping.
      weight_decay: decoupled weight decay (multiplied by the learning rate); any optimiser.
      no_decay: regular expression on paths such as `dense/kernel`; matching parameters are not decayed.
      plateau_factor: factor applied when the evaluation has not improved, None for no plateau rule.
      plateau_patience: evaluations without improvement before that.
      plateau_rtol: smallest relative improvement that counts.
      plateau_min_scale: smallest total factor.
    """

    name: Literal["adam", "adamw", "amsgrad", "sgd", "lion", "rmsprop", "adabelief"] = "adam"
    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "warmup_cosine", "exponential", "piecewise"] = "constant"
    total_steps: int | None = None
    warmup_steps: int = 0
    end_factor: float = 0.0
    decay_rate: float = 0.5
    decay_steps: int | None = None
    boundaries: tuple[int, ...] = ()
    clip_norm: float | None = None
    weight_decay: float = 0.0
    no_decay: str = r"(bias|scale)$"
    plateau_factor: float | None = None
    plateau_patience: int = 10
    plateau_rtol: float = 1e-4
    plateau_min_scale: float = 0.0


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Makes `schedule(count) -> learning rate` (`[]` to `[]`).

    Raises:
      ValueError: if the schedule is unknown or lacks a field that it needs.

    Example:
      >>> schedule = make_schedule(OptimizerConfig(schedule="piecewise", boundaries=(10,), learning_rate=1.0))
      >>> float(schedule(9)), float(schedule(10))
      (1.0, 0.5)
    """
    peak = config.learning_rate

    def need(field: str) -> int:
        value = getattr(config, field)
        if not value or value < 0:
            raise ValueError(f"The schedule {config.schedule!r} needs {field} > 0, got {value!r}.")
        return value

    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, need("total_steps"), alpha=config.end_factor)
    if config.schedule == "warmup_cosine":
        total, warmup = need("total_steps"), config.warmup_steps
        if not 0 <= warmup < total:
            raise ValueError(f"warmup_steps is {warmup}; expected 0 <= warmup_steps < total_steps = {total}.")
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, end_value=peak * config.end_factor)
    if config.schedule == "exponential":
        return optax.exponential_decay(peak, need("decay_steps"), config.decay_rate)
    if config.schedule == "piecewise":
        return optax.piecewise_constant_schedule(peak, dict.fromkeys(config.boundaries, config.decay_rate))
    raise ValueError(
        f"Unknown schedule {config.schedule!r}; expected constant, cosine, warmup_cosine, exponential or piecewise."
    )


_DIRECTIONS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "adam": lambda c: optax.scale_by_adam(c.b1, c.b2, c.eps),
    "adamw": lambda c: optax.scale_by_adam(c.b1, c.b2, c.eps),
    "amsgrad": lambda c: optax.scale_by_amsgrad(c.b1, c.b2, c.eps),
    "sgd": lambda c: optax.trace(c.momentum, c.nesterov) if c.momentum else optax.identity(),
    "lion": lambda c: optax.scale_by_lion(c.b1, c.b2),
    "rmsprop": lambda c: optax.scale_by_rms(c.b2, c.eps),
    "adabelief": lambda c: optax.scale_by_belief(c.b1, c.b2, c.eps),
}


def _decay_mask(pattern: str) -> Callable[[PyTree], PyTree]:
    def mask(params):
        decayed = [re.search(pattern, path) is None if pattern else True for path in leaf_paths(params)]
        return jax.tree.unflatten(jax.tree.structure(params), decayed)

    return mask


def plateau_scale(config: OptimizerConfig) -> optax.GradientTransformation:
    """Multiplies updates (any shapes) by the factor that `observe_plateau` lowers; never changes it by itself."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: state.scale.astype(u.dtype) * u, updates), state

    return optax.GradientTransformation(_plateau_rule(config).init, update)


def _plateau_rule(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    return reduce_on_plateau(
        factor=0.5 if config.plateau_factor is None else config.plateau_factor,
        patience=config.plateau_patience,
        rtol=config.plateau_rtol,
        min_scale=config.plateau_min_scale,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the optax transformation of a configuration.

    Args:
      config: see `OptimizerConfig`.

    Returns:
      An optax transformation for parameters of any shape.

    Raises:
      ValueError: if a name is unknown, a field is missing, or a number out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = make_optimizer(OptimizerConfig("sgd", learning_rate=0.5, clip_norm=1.0))
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates["w"].round(2).tolist()
      [-0.29999998211860657, -0.3999999761581421]
    """
    if config.name not in _DIRECTIONS:
        raise ValueError(f"Unknown optimiser {config.name!r}; expected one of {', '.join(_DIRECTIONS)}.")
    if config.clip_norm is not None and config.clip_norm <= 0:
        raise ValueError(f"clip_norm is {config.clip_norm}; expected a positive number, or None for no clipping.")
    if config.weight_decay < 0:
        raise ValueError(f"weight_decay is {config.weight_decay}; expected 0 or more.")
    chain = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    chain.append(_DIRECTIONS[config.name](config))
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, _decay_mask(config.no_decay)))
    chain.append(optax.scale_by_learning_rate(make_schedule(config)))
    if config.plateau_factor is not None:
        chain.append(plateau_scale(config))
    return optax.chain(*chain)


def observe_plateau(opt_state: PyTree, value: float, config: OptimizerConfig) -> PyTree:
    """Tells the plateau rule what an evaluation measured (smaller is better); call it once per evaluation.

    Args:
      opt_state: optimiser state, any shapes; returned as it is if `config` has no plateau rule.
      value: the monitored metric; NaN counts as no improvement.
      config: the configuration that built the optimiser.

    Returns:
      The optimiser state with the rule's counters, best value and factor updated, placed as before.

    Example:
      >>> import jax.numpy as jnp
      >>> config = OptimizerConfig("sgd", plateau_factor=0.1, plateau_patience=1)
      >>> state = make_optimizer(config).init({"w": jnp.ones(2)})
      >>> for value in (1.0, 2.0):
      ...     state = observe_plateau(state, value, config)
      >>> round(float(state[-1].scale), 6)
      0.1
    """
    if config.plateau_factor is None:
        return opt_state
    rule = _plateau_rule(config)

    def observe(state: Any) -> Any:
        if not isinstance(state, ReduceLROnPlateauState):
            return state
        # optax mixes an integer count with the floating average, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            _, new = jax.jit(lambda s, v: rule.update({}, s, value=v))(state, np.float32(value))
        return jax.tree.map(lambda n, o: jax.device_put(n, o.sharding), new, state)

    return jax.tree.map(observe, opt_state, is_leaf=lambda x: isinstance(x, ReduceLROnPlateauState))


def plateau_observer(config: OptimizerConfig, *, monitor: str = "loss", mode: str = "min") -> Callable[..., TrainState]:
    """Makes the `on_evaluation` of `fit` that hands the monitored metric to the plateau rule.

    Args:
      config: the configuration that built the optimiser.
      monitor: name of the metric among those that the evaluation reports.
      mode: `min` or `max`; what the rule takes for an improvement.

    Returns:
      `(state, values) -> state`; shapes and placement are kept.
    """
    sign = 1.0 if mode == "min" else -1.0

    def on_evaluation(state: TrainState, values: Mapping[str, float]) -> TrainState:
        return state.replace(opt_state=observe_plateau(state.opt_state, sign * values[monitor], config))

    return on_evaluation
