"""Classifiers of sequences: invariance to drift, the baselines, statistics; the world model's map."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.images import shift_image
from equivariant_jax.flow import (
    SequenceClassifier,
    SequenceClassifierConfig,
    flow_rnn_init,
    sequence_classifier_apply,
    sequence_classifier_init,
    torus_shift,
    velocity_grid,
    world_model_read,
    world_model_scan,
    world_model_state,
)

SMALL = SequenceClassifierConfig(
    num_classes=3, velocities=velocity_grid(3), input_channels=(4, 6), input_sizes=(3, 3), block_channels=(4, 6)
)


def frames_like(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape)


def drift(frames, velocity, start=(0, 0)):
    velocity = jnp.asarray(velocity, jnp.float32)
    at_start = jnp.stack([shift_image(frames[:, t], jnp.asarray(start)) for t in range(frames.shape[1])], axis=1)
    return jnp.stack([torus_shift(at_start[:, t], velocity, t) for t in range(frames.shape[1])], axis=1)


def logits_of(config, frames):
    params, statistics = sequence_classifier_init(jax.random.key(0), config)
    # Larger weights than the initial ones: with those tanh is nearly linear, and the mean hides every motion.
    params = jax.tree.map(lambda x: 4 * x, params)
    return sequence_classifier_apply(params, statistics, frames, config)[0]


def test_logits_do_not_depend_on_drift_when_the_velocities_are_closed():
    frames = frames_like(1, 2, 4, 7, 7, 1)
    plain = logits_of(SMALL, frames)
    for velocity, start in (((2, -3), (0, 0)), ((-1, 1), (3, 5))):
        np.testing.assert_allclose(logits_of(SMALL, drift(frames, velocity, start)), plain, atol=1e-5)
    published = dataclasses.replace(SMALL, form="published")
    np.testing.assert_allclose(logits_of(published, frames), plain, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"velocities": velocity_grid(0)}, {"kind": "learned"}, {"kind": "convolution"}, {"boundary": "zero"}],
    ids=str,
)
def test_without_the_symmetry_they_do(change):
    config = dataclasses.replace(SMALL, **change)
    frames = frames_like(1, 2, 4, 7, 7, 1)
    plain, of_moved = logits_of(config, frames), logits_of(config, drift(frames, (2, -3)))
    assert np.abs(of_moved - plain).max() > 1e-2 * np.abs(plain).max()


def test_learned_kernels_that_are_shifts_give_the_flow_network():
    """G-RNN+ contains the flow network: one-hot kernels move bank nu by nu."""
    learned = dataclasses.replace(SMALL, kind="learned", velocities=velocity_grid(1))
    params, statistics = sequence_classifier_init(jax.random.key(0), learned)
    one_hot = np.zeros((9, 3, 3, 6), np.float32)
    for v, (vx, vy) in enumerate(learned.velocities):
        one_hot[v, 1 - int(vy), 1 - int(vx)] = 1
    frames = frames_like(1, 2, 4, 7, 7, 1)
    ours, _ = sequence_classifier_apply(params | {"moves": jnp.asarray(one_hot)}, statistics, frames, learned)
    flow = dataclasses.replace(learned, kind="flow")
    np.testing.assert_allclose(ours, sequence_classifier_apply(params, statistics, frames, flow)[0], atol=1e-5)


def test_published_shapes():
    params, _ = jax.eval_shape(lambda key: sequence_classifier_init(key, SequenceClassifierConfig()), jax.random.key(0))
    assert [kernel.shape for kernel in params["layers"]] == [(5, 5, 1, 32), (3, 3, 32, 64), (3, 3, 64, 128)]
    assert params["cell"]["recurrent"].shape == (3, 3, 128, 128)
    blocks = dataclasses.replace(SequenceClassifierConfig(), kind="convolution")
    params, _ = jax.eval_shape(lambda key: sequence_classifier_init(key, blocks), jax.random.key(0))
    assert [kernel.shape[-1] for kernel in params["layers"]] == [16, 32, 32, 64, 64]


def test_statistics_are_updated_in_training_only():
    frames = frames_like(1, 2, 4, 7, 7, 1)
    model = SequenceClassifier(SMALL)
    variables = model.init(jax.random.key(0), frames)
    _, changed = model.apply(variables, frames, training=True, mutable=["batch_stats"])
    before = jax.tree.leaves(variables["batch_stats"])
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, jax.tree.leaves(changed["batch_stats"]), strict=True))
    logits = model.apply(variables, frames)
    expected, _ = sequence_classifier_apply(
        variables["params"]["classifier"], variables["batch_stats"]["norms"], frames, SMALL
    )
    np.testing.assert_array_equal(logits, expected)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="kind: got 'other'"):
        SequenceClassifierConfig(kind="other")
    with pytest.raises(ValueError, match="as many sizes as widths"):
        SequenceClassifierConfig(input_sizes=(3,))
    with pytest.raises(ValueError, match=r"frames: got shape \(2, 4, 7, 7\)"):
        logits_of(SMALL, jnp.zeros((2, 4, 7, 7)))


# --- the world model


def world(velocities, frames, actions, size=9, params=None):
    params = flow_rnn_init(jax.random.key(0), 1, 4) if params is None else params
    state = world_model_state(frames.shape[0], velocities, size, params["input"].shape[-1])
    return world_model_scan(params, state, frames, jnp.asarray(actions), velocities)


def test_a_common_drift_of_world_and_agent_changes_nothing():
    frames = frames_like(1, 2, 5, 5, 5, 1)
    actions = np.asarray(jax.random.randint(jax.random.key(2), (2, 5, 2), -2, 3))
    velocities = velocity_grid(1)
    faster = tuple((vx + 2, vy - 1) for vx, vy in velocities)
    state, views = world(velocities, frames, actions)
    other, of_faster = world(faster, frames, actions + np.array([2, -1]))
    np.testing.assert_allclose(of_faster, views, atol=1e-6)
    np.testing.assert_allclose(other.banks, state.banks, atol=1e-6)
    _, alone = world(velocities, frames, actions + np.array([2, -1]))
    assert np.abs(alone - views).max() > 1e-2


def test_an_agent_that_comes_back_finds_what_it_saw():
    keep = {"input": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0), "recurrent": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)}
    frames = jnp.zeros((1, 3, 4, 4, 1)).at[0, 0, 1, 2].set(1.0)
    actions = np.array([[[0, 0], [4, 0], [-4, 0]]])
    _, views = world(velocity_grid(0), frames, actions, size=8, params=keep)
    assert views[0, 1].max() == 0
    np.testing.assert_array_equal(views[0, 2], frames[0, 0])
    # In the bank of velocity (1, 0) it has moved on by two pixels, out of the window's row at column 4.
    state, _ = world(((1.0, 0.0),), frames, actions, size=8, params=keep)
    assert float(shift_image(state.banks[0, 0], state.position[0, 0])[1, 4, 0]) == 1.0
    assert world_model_read(state, 5)[0, 1, 4, 0] == 1.0


def test_world_model_refuses_what_does_not_fit():
    frames = jnp.zeros((1, 2, 4, 4, 1))
    with pytest.raises(ValueError, match="actions: got float"):
        world(velocity_grid(0), frames, np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="frames: got shape"):
        world(velocity_grid(0), frames, np.zeros((1, 2, 2), np.int32), size=3)
    params = flow_rnn_init(jax.random.key(0), 1, 4)
    state = world_model_state(1, velocity_grid(1), 8, 4)
    with pytest.raises(ValueError, match="state: got 9 banks"):
        world_model_scan(params, state, frames, jnp.zeros((1, 2, 2), jnp.int32), velocity_grid(0))
