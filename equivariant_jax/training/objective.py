"""From a loss of several masked terms to one gradient that does not depend on how the batch was cut.

The objective of a global batch is `sum_k c_k * T_k / W_k`: for each term `k`, `T_k` and `W_k` are the sum and the
number of its real items over all devices and all microbatches. Terms count different items (graphs for energies, atoms
for forces), so no average of per-device means gives this number once padding is uneven. The ratio is kept exact as
follows: `W_k` does not depend on parameters, so it is summed first (in a pass whose unused model evaluation the
compiler removes), and gradients of `sum_k (c_k / W_k) * total_k` are then plain sums over microbatches and devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from equivariant_jax.core.precision import Policy
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.training.metrics import Mean, Metric, at_least_float32
from equivariant_jax.training.sharding import BATCH_AXES

__all__ = ["Gradient", "LossFunction", "LossOutput", "make_gradient", "make_measure", "weighted_objective"]


class LossOutput(NamedTuple):
    """What a loss returns for a batch (or a part of one).

    Attributes:
      terms: name -> `Mean` of each term of the objective, leaves `[]`; weights must not depend on parameters.
      metrics: name -> `Mean` or `RootMean` to report, leaves `[]`.
      model_state: updated model state, same structure, shapes and dtypes as came in; None leaves it as it was.
    """

    terms: Mapping[str, Mean]
    metrics: Mapping[str, Metric] = {}
    model_state: PyTree = None


class LossFunction(Protocol):
    """`loss_fn(params, batch, *, key, model_state) -> LossOutput`; `key` is None when the model is evaluated."""

    def __call__(self, params: PyTree, batch: PyTree, *, key: PRNGKey | None, model_state: PyTree) -> LossOutput:
        """Returns the sums of the batch; shapes are the caller's own."""
        ...


class Gradient(NamedTuple):
    """Gradient of the objective of a global batch, and the sums that it was made of.

    Attributes:
      gradient: pytree like the parameters.
      objective: `[]`, float32.
      terms: name -> `Mean` over the global batch.
      metrics: name -> `Mean` or `RootMean` over the global batch.
      model_state: updated model state.
    """

    gradient: PyTree
    objective: Array
    terms: dict[str, Mean]
    metrics: dict[str, Metric]
    model_state: PyTree


def _scales(weights: Mapping[str, Array], coefficients: Mapping[str, float] | None) -> dict[str, Array]:
    coefficients = {} if coefficients is None else coefficients
    unknown = set(coefficients) - set(weights)
    if unknown:
        raise ValueError(f"coefficients name {sorted(unknown)}, but the loss has the terms {sorted(weights)}.")
    scales = {}
    for name, weight in weights.items():
        weight = jax.lax.stop_gradient(weight)
        real = weight > 0
        # A term without a single real item (no forces in this batch) contributes nothing instead of 0 / 0.
        scales[name] = jnp.where(real, coefficients.get(name, 1.0) / jnp.where(real, weight, 1), 0)
    return scales


def weighted_objective(terms: Mapping[str, Mean], coefficients: Mapping[str, float] | None = None) -> Array:
    """Returns `sum_k c_k * total_k / weight_k`, shape `[]`; terms without a real item count as zero.

    Args:
      terms: name -> `Mean`, leaves `[]`.
      coefficients: name -> factor, 1 where not named.

    Raises:
      ValueError: if a coefficient names no term.

    Example:
      >>> import jax.numpy as jnp
      >>> terms = {"energy": Mean(jnp.array(4.0), jnp.array(2.0)), "forces": Mean(jnp.array(6.0), jnp.array(3.0))}
      >>> float(weighted_objective(terms, {"forces": 10.0}))
      22.0
    """
    terms = {name: Mean(jnp.asarray(t.total), jnp.asarray(t.weight)) for name, t in terms.items()}
    scales = _scales({name: term.weight for name, term in terms.items()}, coefficients)
    return jnp.asarray(sum(scales[name] * term.total for name, term in terms.items()))


def _evaluate(loss_fn: LossFunction, policy: Policy | None, params, batch, key, model_state) -> LossOutput:
    out = loss_fn(params if policy is None else policy.cast_to_compute(params), batch, key=key, model_state=model_state)
    if not isinstance(out, LossOutput) or not out.terms:
        raise ValueError(f"loss_fn returned {type(out).__name__}; expected a LossOutput with at least one term.")
    clash = (set(out.terms) & set(out.metrics)) | ({"loss", "gradient_norm", "skipped"} & {*out.terms, *out.metrics})
    if clash:
        raise ValueError(f"loss_fn uses the names {sorted(clash)} twice or they are reserved; rename them.")
    for name, metric in {**out.terms, **out.metrics}.items():
        for field, value in metric._asdict().items():
            if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise ValueError(
                    f"'{name}'.{field} has shape {jnp.shape(value)} and dtype {jnp.result_type(value)}; expected a "
                    "floating scalar. Mean.of(values, mask) makes one."
                )
    terms, metrics = jax.tree.map(
        lambda x: jnp.asarray(x, at_least_float32(jnp.result_type(x))), (dict(out.terms), dict(out.metrics))
    )
    return LossOutput(terms, metrics, model_state if out.model_state is None else out.model_state)


def _over_devices(mesh: Mesh | None, per_device: bool) -> tuple[int, Callable[[Any], Any]]:
    """Number of parts that a per-device batch has, and the sum over them."""
    if not per_device or mesh is None:
        return 1, lambda tree: tree
    return mesh.size, lambda tree: jax.lax.psum(tree, BATCH_AXES)


def _vary(tree: PyTree) -> PyTree:
    """Marks values as different on each device, so that their gradients stay local until we sum them, once."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, BATCH_AXES, to="varying"), tree)


def _invariant_state(model_state: PyTree, parts: int) -> PyTree:
    """One model state out of each device's own: floating leaves are averaged, others (counters) take the maximum."""

    def merge(x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.psum(x, BATCH_AXES) / parts
        if x.dtype == jnp.bool_:
            return jax.lax.pmax(x.astype(jnp.int32), BATCH_AXES).astype(jnp.bool_)
        return jax.lax.pmax(x, BATCH_AXES)

    return jax.tree.map(merge, model_state)


def _check_leading(batch: PyTree, expected: int | None, hint: str) -> int:
    """Returns the leading axis that all leaves share."""
    lengths = [jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)]
    if len(set(lengths)) != 1 or (expected is not None and lengths[0] != expected):
        wanted = "one common leading axis" if expected is None else f"a leading axis of {expected}"
        raise ValueError(f"Batch leaves have leading axes {sorted(set(lengths))} (0: none); expected {wanted}. {hint}")
    return lengths[0]


def _cut(batch: PyTree, accumulate: int, mesh: Mesh | None) -> PyTree:
    """`[n, ...]` to `[accumulate, n / accumulate, ...]`; item i goes to microbatch i % accumulate.

    Cutting by stride keeps each item on its device: a cut into contiguous runs would gather a microbatch on few
    devices.
    """
    length = _check_leading(batch, None, "A packed graph batch cannot be cut: stack graphs and use per_device=True.")
    if length % accumulate:
        raise ValueError(f"A batch of {length} items cannot be cut into accumulate={accumulate} equal microbatches.")

    def cut(x):
        x = jnp.moveaxis(x.reshape((x.shape[0] // accumulate, accumulate, *x.shape[1:])), 1, 0)
        return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))

    return jax.tree.map(cut, batch)


def make_gradient(
    loss_fn: LossFunction,
    *,
    coefficients: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    per_device: bool = False,
) -> Callable[[PyTree, PyTree, PRNGKey, PyTree], Gradient]:
    """Makes `gradient(params, batch, key, model_state) -> Gradient` of the objective of the global batch.

    Args:
      loss_fn: see `LossFunction`; deterministic losses give the same gradient however the batch is cut, losses that
        draw random numbers draw other ones (keys are folded with the microbatch's and the device's number).
      coefficients: name of a term -> its factor `c_k`; static, 1 where not named.
      policy: `params` are cast to its compute dtype inside the loss, gradients come back in the parameters' dtype. The
        batch is handed on as it is: energies of hundreds of eV have no place in bfloat16, so the loss casts its inputs.
      accumulate: number of microbatches evaluated one after the other; static.
      mesh: mesh that batches are split over, or None.
      per_device: False: `batch` is one global batch, leaves `[n, ...]`. True: leaves have a leading axis of
        `devices * accumulate`, and `loss_fn` sees one entry at a time, on one device (a stack of padded graphs); runs
        in `jax.shard_map`. Model states of the devices are averaged.

    Returns:
      A pure function, to be compiled by the caller.

    Raises:
      ValueError: when traced, if the batch cannot be cut so, or the loss does not return a proper `LossOutput`.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; expected at least 1.")
    parts, total = _over_devices(mesh, per_device)

    def objective(params, batch, key, model_state, scales):
        out = _evaluate(loss_fn, policy, params, batch, key, model_state)
        if scales is None:
            scales = _scales(
                total({name: jax.lax.stop_gradient(t.weight) for name, t in out.terms.items()}), coefficients
            )
        value = sum(scales[name] * term.total for name, term in out.terms.items())
        return value, out

    differentiate = jax.value_and_grad(objective, has_aux=True)

    def whole(params, batch, key, model_state):
        (value, out), gradient = differentiate(params, batch, key, model_state, None)
        return Gradient(gradient, value, dict(out.terms), dict(out.metrics), out.model_state)

    def accumulated(params, batches, key, model_state):
        numbers = jnp.arange(accumulate)

        def weigh(xs):
            out = _evaluate(loss_fn, policy, params, xs[0], jax.random.fold_in(key, xs[1]), model_state)
            return {name: jax.lax.stop_gradient(term.weight) for name, term in out.terms.items()}

        scales = _scales(total({k: w.sum() for k, w in jax.lax.map(weigh, (batches, numbers)).items()}), coefficients)

        def body(carry, xs):
            gradient, model_state = carry
            (value, out), new = differentiate(params, xs[0], jax.random.fold_in(key, xs[1]), model_state, scales)
            return (jax.tree.map(jnp.add, gradient, new), out.model_state), (value, out.terms, out.metrics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (gradient, model_state), sums = jax.lax.scan(body, (zeros, model_state), (batches, numbers))
        value, terms, metrics = jax.tree.map(lambda x: x.sum(0), sums)
        return Gradient(gradient, value, terms, metrics, model_state)

    def stacked_program(params, batch, key, model_state):
        _check_leading(batch, parts * accumulate, "per_device=True expects devices * accumulate entries.")

        def local(params, batch, key, model_state):
            if mesh is not None:
                for axis in BATCH_AXES:
                    key = jax.random.fold_in(key, jax.lax.axis_index(axis))
                params, model_state = _vary(params), _vary(model_state)
            if accumulate == 1:
                out = whole(params, jax.tree.map(lambda x: x[0], batch), key, model_state)
            else:
                out = accumulated(params, batch, key, model_state)
            if mesh is None:
                return out
            gradient, objective, terms, metrics = total((out.gradient, out.objective, out.terms, out.metrics))
            return Gradient(gradient, objective, terms, metrics, _invariant_state(out.model_state, parts))

        if mesh is None:
            return local(params, batch, key, model_state)
        specs = (P(), P(BATCH_AXES), P(), P())
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(params, batch, key, model_state)

    def global_program(params, batch, key, model_state):
        if accumulate == 1:
            return whole(params, batch, key, model_state)
        return accumulated(params, _cut(batch, accumulate, mesh), key, model_state)

    return stacked_program if per_device else global_program


def make_measure(
    loss_fn: LossFunction, *, policy: Policy | None = None, mesh: Mesh | None = None, per_device: bool = False
) -> Callable[[PyTree, PyTree, PyTree], tuple[dict[str, Mean], dict[str, Metric]]]:
    """Makes `measure(params, batch, model_state) -> (terms, metrics)` of a global batch, without a gradient.

    Args:
      loss_fn: see `LossFunction`; called with `key=None`.
      policy: as in `make_gradient`.
      mesh: as in `make_gradient`.
      per_device: as in `make_gradient`; leaves have a leading axis of `devices`.

    Returns:
      A pure function; the metrics' leaves have shape `[]`.
    """
    parts, total = _over_devices(mesh, per_device)

    def one(params, batch, model_state):
        out = _evaluate(loss_fn, policy, params, batch, None, model_state)
        return dict(out.terms), dict(out.metrics)

    def stacked(params, batch, model_state):
        _check_leading(batch, parts, "per_device=True expects one entry per device.")
        if mesh is None:
            return one(params, jax.tree.map(lambda x: x[0], batch), model_state)

        def local(params, batch, model_state):
            return total(one(params, jax.tree.map(lambda x: x[0], batch), model_state))

        specs = (P(), P(BATCH_AXES), P())
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())(params, batch, model_state)

    return stacked if per_device else one
