"""The gradient of a global batch is one number, however the batch is cut."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from equivariant_jax.core.precision import Policy
from equivariant_jax.training import (
    LossOutput,
    Mean,
    evaluator,
    init_sharded,
    make_eval_step,
    make_mesh,
    make_train_step,
    weighted_objective,
)
from equivariant_jax.training.objective import make_gradient

COEFFICIENTS = {"energy": 1.0, "forces": 10.0}


def stack(batch, parts):
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def numpy_gradient(params, batch):
    """Slow reference in float64: item by item, with the chain rule written out."""
    w, b = (np.asarray(params[k], np.float64) for k in ("kernel", "bias"))
    gw, gb, objective = np.zeros_like(w), np.zeros_like(b), 0.0
    n_graph, n_component = batch["graphs"].sum(), 3 * batch["atoms"].sum()
    magnitude = 0.0
    for i in range(len(batch["energy"])):
        x = batch["x"][i].astype(np.float64)
        h = np.tanh(x @ w + b)
        dh = np.zeros_like(h)
        real = batch["atoms"][i]
        if batch["graphs"][i]:
            residual = h[real].sum() - batch["energy"][i]
            objective += COEFFICIENTS["energy"] * residual**2 / n_graph
            dh[real] += COEFFICIENTS["energy"] * 2 * residual / n_graph
        residual = h[real] - batch["forces"][i][real]
        objective += COEFFICIENTS["forces"] * (residual**2).sum() / n_component
        dh[real] += COEFFICIENTS["forces"] * 2 * residual / n_component
        dz = dh * (1 - h**2)
        gw += x.T @ dz
        gb += dz.sum(0)
        magnitude += np.abs(x).T @ np.abs(dz)
    return {"kernel": gw, "bias": gb}, objective, float(np.max(magnitude))


def step_gradient(problem, batch, *, devices, accumulate, per_device):
    """Gradient as sgd(1.0) shows it: parameters before minus after."""
    mesh = make_mesh(devices=jax.devices()[:devices]) if devices else None
    optimizer = optax.sgd(1.0)
    state = init_sharded(problem.make_state, mesh, ())
    step = make_train_step(
        problem.loss_fn,
        optimizer,
        coefficients=COEFFICIENTS,
        mesh=mesh,
        accumulate=accumulate,
        per_device=per_device,
    )
    if per_device:
        batch = stack(batch, max(devices, 1) * accumulate)
    state, metrics = step(state, batch)
    first = jax.device_get(state.params)
    state, _ = step(state, batch)
    assert step.traces == 1
    gradient = jax.tree.map(lambda p, q: np.asarray(p) - q, problem.make_params(), first)
    return gradient, {name: float(metric.compute()) for name, metric in metrics.items()}


@pytest.mark.parametrize(
    ("devices", "accumulate", "per_device"),
    [
        *[(0, 1, False), (0, 4, False), (0, 2, True)],
        *itertools.product((2,), (1, 2), (False, True)),
        *[(4, 1, False), (4, 1, True), (4, 2, False), (4, 4, True)],
    ],
)
def test_gradient_is_one_number(problem, devices, accumulate, per_device):
    batch = problem.make_batch(0)
    expected, objective, magnitude = numpy_gradient(problem.make_params(), batch)
    found, metrics = step_gradient(problem, batch, devices=devices, accumulate=accumulate, per_device=per_device)
    # A sum of 16 * 5 contributions, each of a few operations, read off as a difference of parameters of size <= 10:
    # c = 16 operations deep, scale = the sum of absolute contributions, plus the parameters' own rounding.
    tolerance = 16 * np.finfo(np.float32).eps * (magnitude + 10)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance)
    assert metrics["loss"] == pytest.approx(objective, rel=64 * float(np.finfo(np.float32).eps))


def test_mean_of_means_is_another_number(problem):
    """What averaging per-device gradients would give on this data differs by far more than rounding."""
    batch = problem.make_batch(0)
    expected, _, magnitude = numpy_gradient(problem.make_params(), batch)
    parts = stack(batch, 4)
    per_part = make_gradient(problem.loss_fn, coefficients=COEFFICIENTS)
    gradients = [
        per_part(problem.make_params(), jax.tree.map(lambda x, i=i: x[i], parts), jax.random.key(0), None).gradient
        for i in range(4)
    ]
    naive = jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *gradients)
    error = np.abs(naive["kernel"] - expected["kernel"]).max()
    assert error > 1e3 * 16 * np.finfo(np.float32).eps * (magnitude + 10)


def test_term_without_items_contributes_nothing(problem):
    batch = {**problem.make_batch(0), "graphs": np.zeros(16, bool)}
    gradient, metrics = step_gradient(problem, batch, devices=2, accumulate=2, per_device=True)
    assert np.isfinite(gradient["kernel"]).all()
    assert metrics["skipped"] == 0
    only_forces = numpy_gradient(problem.make_params(), batch | {"graphs": np.zeros(16, bool)})[1]
    assert metrics["loss"] == pytest.approx(only_forces, rel=1e-5)


@pytest.mark.parametrize("per_device", [False, True])
def test_evaluation_weighs_real_items(problem, per_device):
    mesh = make_mesh()
    eval_step = make_eval_step(problem.loss_fn, coefficients=COEFFICIENTS, mesh=mesh, per_device=per_device)
    batches = [problem.make_batch(i) for i in range(3)]
    whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    evaluate = evaluator(eval_step, lambda: [stack(b, 4) for b in batches] if per_device else batches)
    values = evaluate(problem.make_state())
    assert values["loss"] == pytest.approx(numpy_gradient(problem.make_params(), whole)[1], rel=1e-5)
    assert values["forces_rmse"] == pytest.approx(np.sqrt(values["forces"]), rel=1e-6)
    assert eval_step.traces == 1


def test_model_state_of_devices_is_averaged(problem):
    mesh = make_mesh()
    step = make_train_step(problem.noisy_loss_fn, optax.sgd(0.0), mesh=mesh, per_device=True, accumulate=2)

    def make():
        return problem.make_state(optax.sgd(0.0), model_state={"mean": jnp.zeros(3), "count": jnp.array(2)})

    def loss_fn(params, batch, *, key, model_state):
        out = problem.loss_fn(params, batch, key=key, model_state=None)
        mean = model_state["mean"] + batch["x"].mean((0, 1))
        return out._replace(model_state={"mean": mean, "count": model_state["count"] + 1})

    step = make_train_step(loss_fn, optax.sgd(0.0), mesh=mesh, per_device=True, accumulate=2)
    batch = problem.make_batch(0)
    state, _ = step(init_sharded(make, mesh, ()), stack(batch, 8))
    np.testing.assert_allclose(state.model_state["mean"], 2 * batch["x"].mean((0, 1)), atol=1e-6)
    assert int(state.model_state["count"]) == 4


def test_per_device_keys_differ():
    mesh = make_mesh()

    def loss_fn(params, batch, *, key, model_state):
        return LossOutput({"noise": Mean.of(params["w"] * jax.random.normal(key, ()) + 0 * batch.sum())})

    gradient = make_gradient(loss_fn, mesh=mesh, per_device=True)
    out = jax.jit(gradient)({"w": jnp.ones(())}, jnp.zeros((4, 1)), jax.random.key(0), None)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), d), 0) for d in range(4)]
    draws = [float(jax.random.normal(key, ())) for key in keys]
    assert float(out.gradient["w"]) == pytest.approx(np.mean(draws), rel=1e-5)


def test_policy_computes_in_bfloat16_and_updates_in_float32(problem):
    seen = {}

    def loss_fn(params, batch, *, key, model_state):
        seen["dtype"] = params["kernel"].dtype
        cast = {**batch, "x": batch["x"].astype(params["kernel"].dtype)}
        hidden = jnp.tanh(cast["x"] @ params["kernel"])
        return LossOutput({"error": Mean.of(hidden**2, batch["atoms"])})

    step = make_train_step(loss_fn, optax.sgd(0.1), policy=Policy(compute_dtype="bfloat16"))
    state, metrics = step(problem.make_state(optax.sgd(0.1)), problem.make_batch(0))
    assert seen["dtype"] == jnp.bfloat16
    assert state.params["kernel"].dtype == jnp.float32
    assert metrics["error"].total.dtype == jnp.float32


def test_fsdp_shards_the_state_and_keeps_the_numbers(problem):
    mesh = make_mesh(data=2, fsdp=2)
    optimizer = optax.adam(0.1)
    rules = [(r"wide$", "fsdp")]

    def make():
        return problem.make_state(optimizer).replace(
            params={"wide": jnp.ones((6, 4))}, opt_state=optimizer.init({"wide": jnp.ones((6, 4))})
        )

    def loss_fn(params, batch, *, key, model_state):
        return LossOutput({"error": Mean.of((batch @ params["wide"] - 1) ** 2)})

    batch = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    results = []
    for m in (None, mesh):
        state = init_sharded(make, m, rules).replace(nonfinite=jnp.zeros(3, bool))
        step = make_train_step(loss_fn, optimizer, mesh=m, rules=rules)
        for _ in range(3):
            state, _ = step(state, batch)
        results.append(state)
    assert results[1].params["wide"].sharding.spec == P("fsdp")
    assert results[1].opt_state[0].mu["wide"].sharding.spec == P("fsdp")
    assert len(results[1].params["wide"].addressable_shards[0].data) == 3
    np.testing.assert_allclose(results[1].params["wide"], results[0].params["wide"], rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"a": np.ones((3, 2))}, {"accumulate": 2}, "cannot be cut into accumulate=2"),
        ({"a": np.ones((4, 2)), "b": np.ones(6)}, {"accumulate": 2}, "one common leading axis"),
        ({"a": np.ones((3, 2))}, {"per_device": True}, "a leading axis of 1"),
        ({"a": np.ones((4, 2))}, {"coefficients": {"mistyped": 2.0}}, "mistyped"),
    ],
)
def test_batches_that_cannot_be_cut_are_errors(problem, batch, options, message):
    def loss_fn(params, batch, *, key, model_state):
        return LossOutput({"error": Mean.of(params["kernel"] * batch["a"].sum().astype(jnp.float32))})

    step = make_train_step(loss_fn, optax.sgd(1.0), **options)
    with pytest.raises(ValueError, match=message):
        step(problem.make_state(), batch)


def test_losses_that_are_not_sums_are_errors(problem):
    bad = {
        "expected a LossOutput": lambda p: p["kernel"].sum(),
        "floating scalar": lambda p: LossOutput({"error": Mean(p["kernel"], jnp.ones(()))}),
        "reserved": lambda p: LossOutput({"loss": Mean.of(p["kernel"])}),
    }
    for message, function in bad.items():
        step = make_train_step(lambda params, batch, *, key, model_state, f=function: f(params), optax.sgd(1.0))
        with pytest.raises(ValueError, match=message):
            step(problem.make_state(), np.ones(4))


def test_weighted_objective_matches_its_formula():
    terms = {"a": Mean(jnp.array(6.0), jnp.array(3.0)), "b": Mean(jnp.array(5.0), jnp.array(0.0))}
    assert float(weighted_objective(terms, {"a": 0.5})) == 1.0
