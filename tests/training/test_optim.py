"""Optimisers and schedules against their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.training import OptimizerConfig, make_optimizer, make_schedule, observe_plateau

PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}}
GRADIENT = {"dense": {"kernel": jnp.array([[0.3, -0.1]]), "bias": jnp.array([0.2])}}

EQUIVALENT = {
    "adam": optax.adam(0.1, b2=0.99),
    "amsgrad": optax.amsgrad(0.1, b2=0.99),
    "sgd": optax.sgd(0.1, momentum=0.9),
    "lion": optax.lion(0.1, b2=0.99, weight_decay=0.0),
    "rmsprop": optax.rmsprop(0.1, decay=0.99),
    "adabelief": optax.adabelief(0.1, b2=0.99, eps=1e-8, eps_root=1e-16),
    "adamw": optax.adamw(0.1, b2=0.99, weight_decay=0.0),
}


def run(optimizer, steps=3):
    params, state = PARAMS, optimizer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for i in range(steps):
            gradient = jax.tree.map(lambda g, i=i: g * (1 + i), GRADIENT)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", sorted(EQUIVALENT))
def test_names_mean_what_optax_means(name):
    config = OptimizerConfig(name, learning_rate=0.1, b2=0.99, momentum=0.9)
    found, expected = run(make_optimizer(config)), run(EQUIVALENT[name])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_weight_decay_spares_what_the_mask_names():
    config = OptimizerConfig("sgd", learning_rate=0.1, weight_decay=0.5)
    plain = dataclasses.replace(config, weight_decay=0.0)
    with_decay, without = run(make_optimizer(config), 1)["dense"], run(make_optimizer(plain), 1)["dense"]
    np.testing.assert_array_equal(with_decay["bias"], without["bias"])
    shrunk = without["kernel"] - 0.1 * 0.5 * PARAMS["dense"]["kernel"]
    np.testing.assert_allclose(with_decay["kernel"], shrunk, rtol=1e-6)
    everything = run(make_optimizer(dataclasses.replace(config, no_decay="")), 1)["dense"]
    assert not np.array_equal(everything["bias"], without["bias"])


def test_clipping_bounds_the_gradient_not_the_update():
    config = OptimizerConfig("sgd", learning_rate=2.0, clip_norm=0.1)
    moved = jax.tree.map(jnp.subtract, run(make_optimizer(config), 1), PARAMS)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.2, rel=1e-5)


def test_schedules_pass_through_their_corners():
    def at(step, **fields):
        return float(make_schedule(OptimizerConfig(learning_rate=2.0, **fields))(step))

    assert at(5) == 2.0
    assert at(50, schedule="cosine", total_steps=100, end_factor=0.1) == pytest.approx(1.1)
    assert at(100, schedule="cosine", total_steps=100, end_factor=0.1) == pytest.approx(0.2)
    warm = {"schedule": "warmup_cosine", "total_steps": 100, "warmup_steps": 10}
    assert [at(0, **warm), at(5, **warm), at(10, **warm), at(100, **warm)] == pytest.approx([0, 1, 2, 0], abs=1e-6)
    assert at(20, schedule="exponential", decay_steps=10, decay_rate=0.5) == pytest.approx(0.5)
    assert at(25, schedule="piecewise", boundaries=(10, 20), decay_rate=0.1) == pytest.approx(0.02)


def test_plateau_lowers_the_rate_after_patience_and_never_by_itself():
    config = OptimizerConfig("sgd", learning_rate=1.0, plateau_factor=0.5, plateau_patience=2, plateau_min_scale=0.2)
    optimizer = make_optimizer(config)
    state = optimizer.init(PARAMS)
    scales = []
    for value in (1.0, 0.5, 0.6, 0.7, 0.4, 0.4, float("nan"), 0.4, 0.4, 0.4, 0.4):
        updates, state = optimizer.update(GRADIENT, state, PARAMS)
        np.testing.assert_allclose(-updates["dense"]["bias"], GRADIENT["dense"]["bias"] * float(state[-1].scale))
        state = observe_plateau(state, value, config)
        scales.append(float(state[-1].scale))
    # Halved after two evaluations that do not beat 0.5, again after two that do not beat 0.4; 0.2 is the floor.
    assert scales == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamm"}, "Unknown optimiser 'adamm'"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'"),
        ({"schedule": "cosine"}, "needs total_steps"),
        ({"schedule": "exponential"}, "needs decay_steps"),
        ({"schedule": "warmup_cosine", "total_steps": 5, "warmup_steps": 5}, "warmup_steps is 5"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(**fields))
