"""The step around the gradient: donation, guard, moving average, traces, placement."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.training import (
    LossOutput,
    Mean,
    TrainState,
    leaf_paths,
    make_mesh,
    make_train_step,
    nonfinite_leaves,
    shard_batch,
    shardings_for,
)


def poisoned_loss(params, batch, *, key, model_state):
    """Finite loss, but a NaN gradient of `bias` (0 * sqrt'(0)) where the batch says so."""
    root = jnp.sqrt(params["bias"] * 0 + jnp.where(batch["bad"].any(), 0.0, 1.0)).sum()
    error = (batch["x"] @ params["kernel"] - 1) ** 2
    return LossOutput({"error": Mean.of(error)})._replace(
        terms={"error": Mean(error.sum() + root, jnp.asarray(error.size, jnp.float32))},
        model_state={"seen": model_state["seen"] + 1},
    )


def poisoned_batch(bad):
    return {"x": np.ones((4, 3), np.float32), "bad": np.full(4, bad)}


def test_guard_skips_counts_and_names(problem):
    optimizer = optax.adam(0.1)
    step = make_train_step(poisoned_loss, optimizer, ema_decay=0.5, donate=False)
    state = problem.make_state(optimizer, ema=True, model_state={"seen": jnp.zeros(())})
    good, _ = step(state, poisoned_batch(False))
    assert nonfinite_leaves(good) == []
    bad, metrics = step(good, poisoned_batch(True))
    for field in ("params", "opt_state", "ema_params", "model_state"):
        problem.assert_same_bits(getattr(bad, field), getattr(good, field))
    assert (int(bad.step), int(bad.skipped), int(bad.consecutive_skips)) == (2, 1, 1)
    assert nonfinite_leaves(bad) == ["params/bias"]
    assert float(metrics["skipped"].compute()) == 1
    assert float(metrics["error"].weight) == 0
    again, _ = step(bad, poisoned_batch(True))
    assert int(again.consecutive_skips) == 2
    healed, _ = step(again, poisoned_batch(False))
    assert (int(healed.skipped), int(healed.consecutive_skips)) == (2, 0)
    assert not np.array_equal(healed.params["kernel"], again.params["kernel"])
    assert step.traces == 1


def test_guard_sees_losses_and_updates_that_overflow(problem):
    def overflow(params, batch, *, key, model_state):
        return LossOutput({"error": Mean.of(params["kernel"] * jnp.exp(batch.sum()))})

    state, _ = make_train_step(overflow, optax.sgd(1.0))(problem.make_state(), np.full(4, 100.0, np.float32))
    assert "loss" in nonfinite_leaves(state)
    huge = optax.scale(3e38)

    def steep(params, batch, *, key, model_state):
        return LossOutput({"error": Mean.of(params["kernel"] ** 2 * 100)})

    state, _ = make_train_step(steep, huge)(problem.make_state(huge), np.ones(4, np.float32))
    assert nonfinite_leaves(state) == ["params/kernel"]


def test_each_step_has_its_own_key(problem):
    def draw(params, batch, *, key, model_state):
        return LossOutput({"draw": Mean.of(jax.random.normal(key, ()) + 0 * params["bias"].sum())})

    step, state, draws = make_train_step(draw, optax.sgd(1.0)), problem.make_state(), []
    for _ in range(2):
        state, metrics = step(state, np.ones(2))
        draws.append(float(metrics["draw"].compute()))
    key = jax.random.key(0)
    assert draws == [float(jax.random.normal(jax.random.fold_in(key, t), ())) for t in range(2)]


def test_moving_average_and_clipping(problem):
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    step = make_train_step(problem.loss_fn, optimizer, ema_decay=0.75)
    before = problem.make_params()
    state, metrics = step(problem.make_state(optimizer, ema=True), problem.make_batch(0))
    moved = jax.tree.map(lambda p, q: np.asarray(p) - np.asarray(q), state.params, before)
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-3)
    assert float(metrics["gradient_norm"].compute()) > 1e-3
    for name in before:
        expected = 0.75 * np.asarray(before[name]) + 0.25 * np.asarray(state.params[name])
        np.testing.assert_allclose(state.ema_params[name], expected, rtol=1e-6)


def test_state_is_donated_and_params_of_the_caller_are_not(problem):
    params = problem.make_params()
    state = TrainState.create(params, optax.sgd(1.0), key=jax.random.key(0))
    make_train_step(problem.loss_fn, optax.sgd(1.0))(state, problem.make_batch(0))
    assert state.params["kernel"].is_deleted()
    assert not params["kernel"].is_deleted()


def test_one_trace_per_shape_with_and_without_mesh(problem):
    for mesh in (None, make_mesh()):
        step = make_train_step(problem.loss_fn, optax.sgd(0.1), mesh=mesh)
        state = problem.make_state(optax.sgd(0.1))
        for i in range(3):
            state, _ = step(state, problem.make_batch(i))
        assert step.traces == 1
        step.lower(state, problem.make_batch(0))
        assert step.traces == 1
        state, _ = step(state, jax.tree.map(lambda x: x[:8], problem.make_batch(0)))
        assert step.traces == 2


def test_mistakes_are_named(problem):
    with pytest.raises(ValueError, match="ema_decay"):
        make_train_step(problem.loss_fn, optax.sgd(1.0), ema_decay=1.5)
    with pytest.raises(ValueError, match="both or neither"):
        make_train_step(problem.loss_fn, optax.sgd(1.0), ema_decay=0.9)(problem.make_state(), problem.make_batch(0))
    with pytest.raises(ValueError, match="typed key"):
        TrainState.create({"w": jnp.ones(2)}, optax.sgd(1.0), key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="'table'"):
        TrainState.create({"table": jnp.arange(2)}, optax.sgd(1.0), key=jax.random.key(0))
    with pytest.raises(ValueError, match="devices given"):
        make_mesh(data=3)
    mesh = make_mesh(data=2, fsdp=2)
    with pytest.raises(ValueError, match="'a/kernel'"):
        shardings_for({"a": {"kernel": jnp.ones((3, 4))}}, [("kernel", jax.P("fsdp"))], mesh)
    with pytest.raises(ValueError, match="Unknown rule"):
        shardings_for({"a": jnp.ones(3)}, [("a", "mystery")], mesh)
    with pytest.raises(ValueError, match=r"'x' of shape \(6,\)"):
        shard_batch({"x": np.ones(6)}, mesh)


def test_first_matching_rule_wins():
    mesh = make_mesh(data=1, fsdp=4)
    tree = {"embed": jnp.ones((8, 12)), "dense": jnp.ones((3, 5)), "scale": jnp.ones(())}
    out = shardings_for(tree, [("embed", jax.P("fsdp")), (".*", "fsdp")], mesh)
    assert {k: v.spec for k, v in out.items()} == {"embed": jax.P("fsdp"), "dense": jax.P(), "scale": jax.P()}
    assert leaf_paths(tree) == ["dense", "embed", "scale"]
