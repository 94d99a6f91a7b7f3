"""The experiments on distance coordinates: short runs, the policy that makes tours, poses, claims, tables, settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.frames import coordinates, routing, shapes
from experiments.frames.attention_model import (
    AttentionModelConfig,
    attention_model_init,
    decode,
    encode,
    lengths,
)
from experiments.frames.cloud_classifier import CloudClassifierConfig, cloud_classifier_apply, cloud_classifier_init

TINY = dataclasses.replace(
    shapes.PRESETS["ci"], num_points=24, train_size=40, test_size=20, widths=(8,), features=8, hidden=8, steps=3,
    eval_every=3, eval_batch=20, jitter_clouds=2,
)  # fmt: skip
MODEL = AttentionModelConfig(width=8, heads=2, depth=1, hidden=8)


@pytest.mark.parametrize("variant", ["random", pytest.param("augmented", marks=pytest.mark.slow)])
def test_a_short_run_labels_clouds(tmp_path, variant):
    metrics = shapes.run(dataclasses.replace(TINY, **shapes.VARIANTS[variant]), tmp_path)
    assert metrics["steps"] == 3
    assert metrics["gap"] == pytest.approx(metrics["aligned_accuracy"] - metrics["moved_accuracy"])
    assert ("jitter_average" in metrics) is (variant == "random")
    if variant == "random":  # tested with the average over signs
        assert metrics["logits_change_median"] < 1e-4
        assert metrics["jitter_average"] < 0.1 * metrics["jitter_canonical"]


def test_a_short_run_makes_tours(tmp_path):
    config = dataclasses.replace(
        routing.PRESETS["ci"], width=8, hidden=8, steps=4, eval_every=4, challenge_every=2, challenge_size=8,
        batch_size=8, test_size=8,
    )  # fmt: skip
    metrics = routing.run(config, tmp_path)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["rotation_cost"] == pytest.approx(metrics["rotated_gap"] - metrics["gap"])
    assert -1e-9 < metrics["best_of_signs_gap"] <= metrics["gap"]


def test_laws_are_measured(tmp_path):
    config = dataclasses.replace(
        coordinates.PRESETS["ci"], sizes=(16,), dimensions=(3,), number=4, both_routes=1, timed_batch=1, repeats=1,
        neighbours=4,
    )  # fmt: skip
    metrics = coordinates.run(config, tmp_path)
    found = {c["statement"]: c["holds"] for c in coordinates.claims({"run": _table(**metrics)})}
    assert len(found) == 6
    assert metrics["float64_change"] <= 1e-9
    assert metrics["distance_error"] <= 1e-12
    assert "outside_fraction_n16_d3" in metrics
    table = coordinates.tables({"run": {"metrics": {"run": _table(**metrics)}}})["frames.coordinates"]
    assert "| n = 16, d = 3 |" in table


@functools.cache
def policy(seed=0):
    return attention_model_init(jax.random.key(seed), MODEL)


def test_tours_are_permutations_of_the_stated_probability():
    x = jax.random.uniform(jax.random.key(0), (3, 5, 2))
    params, statistics = policy()

    @jax.jit
    def sampled(x, key):
        return decode(params, encode(params, statistics, x, MODEL)[0], MODEL, key=key)

    tours, log_probability = sampled(x, jax.random.key(1))
    np.testing.assert_array_equal(np.sort(tours, axis=-1), np.tile(np.arange(5), (3, 1)))
    # Drawn many times, tours come as often as they say.
    many, logs = jax.jit(jax.vmap(sampled, in_axes=(None, 0)))(x[:1, :4], jax.random.split(jax.random.key(2), 4000))
    codes = np.asarray(many[:, 0]) @ np.array([64, 16, 4, 1])
    expected = {code: np.exp(log) for code, log in zip(codes, np.asarray(logs[:, 0], float), strict=True)}
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-4)
    for code, probability in expected.items():
        error = np.sqrt(probability / 4000)
        assert abs(np.mean(codes == code) - probability) < 5 * error
    assert float(log_probability.max()) < 0


def test_greedy_tours_move_with_the_cities():
    x = jax.random.uniform(jax.random.key(3), (2, 6, 2))
    order = np.array([3, 0, 5, 1, 4, 2])
    params, statistics = policy()

    @jax.jit
    def greedy(x):
        return decode(params, encode(params, statistics, x, MODEL)[0], MODEL)[0]

    np.testing.assert_array_equal(order[greedy(x[:, order])], greedy(x))
    square = jnp.asarray([[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    assert float(lengths(square, jnp.asarray([[0, 2, 1, 3]]))[0]) == pytest.approx(4.0)


@pytest.mark.parametrize("backbone", ["pointnet", "dgcnn"])
def test_classifiers_do_not_see_the_order_of_points(backbone):
    config = CloudClassifierConfig(backbone, (8,), 8, neighbours=3, hidden=8)
    params, statistics = cloud_classifier_init(jax.random.key(0), config)
    x = jax.random.normal(jax.random.key(1), (2, 3, 6, 3))
    apply = jax.jit(lambda x: cloud_classifier_apply(params, statistics, x, config)[0])
    assert apply(x).shape == (2, 3, 10)
    np.testing.assert_allclose(apply(x[:, :, ::-1]), apply(x), atol=1e-5)


def test_poses_are_similarities_and_bends_balance():
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))
    for y, moved in (
        (x, shapes.random_similarity(jax.random.key(1), x)),
        (x[..., :2], routing.random_similarity(jax.random.key(1), x[..., :2])),
    ):
        before, after = (np.linalg.norm(z[:, :, None] - z[:, None], axis=-1) for z in map(np.asarray, (y, moved)))
        ratio = (after / np.where(before > 0, before, 1)).reshape(4, -1).max(axis=-1)
        np.testing.assert_allclose(after, before * ratio[:, None, None], rtol=1e-4, atol=1e-5)
        assert np.ptp(np.log(ratio)) > 0.1
    bent = shapes.balanced(np.random.default_rng(0).normal(size=(20, 3)) * np.array([3.0, 1.0, 0.5]))
    assert bent is not None
    centred = bent - bent.mean(axis=0)
    first = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    assert abs(np.mean(first**3)) < 1e-9 * np.mean(first**2) ** 1.5


def test_published_settings():
    paper = shapes.PRESETS["paper"]
    assert paper.steps == 250 * (9843 // paper.batch_size)
    assert (paper.num_points, paper.neighbours, paper.learning_rate) == (1024, 20, 1e-3)
    assert paper.widths == (64, 64, 128, 256)
    paper = routing.PRESETS["paper"]
    assert paper.steps * paper.batch_size == 100 * 1_280_000
    assert (paper.depth, paper.heads, paper.width, paper.hidden, paper.learning_rate) == (3, 8, 128, 512, 1e-4)
    for module in (shapes, routing):
        for change in module.VARIANTS.values():
            dataclasses.replace(module.PRESETS["cpu"], **change)


def _table(**values):
    return {name: {"values": [value] * 3, "mean": value} for name, value in values.items()}


def test_claims_and_tables():
    accuracies = {"aligned_accuracy": 0.95, "rotated_accuracy": 0.95, "moved_accuracy": 0.95, "gap": 0.0}
    shared = {"parameters": 10.0, "train_seconds": 60.0}
    jitter = {"jitter_canonical": 0.5, "jitter_average": 0.001}
    metrics = {
        "canonical": _table(**accuracies, **jitter, **shared),
        "raw": _table(**accuracies | {"moved_accuracy": 0.2, "rotated_accuracy": 0.3, "gap": 0.75}, **shared),
    }
    found = shapes.claims(metrics)
    assert [c["point"] for c in found] == [3, 3, 3, 3, 4, 4]
    assert all(c["holds"] for c in found)
    metrics["canonical"]["gap"] = {"values": [0.0, -0.1, 0.0], "mean": 0.0}
    assert [c["holds"] for c in shapes.claims(metrics)] == [True, True, False, True, True, True]
    assert not shapes.claims({"augmented": metrics["raw"]})
    table = shapes.tables({"run": {"metrics": metrics, "seeds": [0, 1, 2]}})["frames.shapes"]
    assert "| raw | 95.0 ± 0.0 | 30.0 ± 0.0 | 20.0 ± 0.0 | 10 | 3 | 1.0 min |" in table
    gaps = {"gap": 0.03, "rotated_gap": 0.05, "moved_gap": 0.06, "changed": 0.5, "rotation_cost": 0.02}
    ratios = {"ratio": 1.0, "worst_ratio": 0.0, "worst_ratio_float64": 0.0}
    metrics = {
        "canonical": _table(**gaps, **ratios, **shared, best_of_signs_gap=0.02), "raw": _table(**gaps, **shared)
    }  # fmt: skip
    assert [c["holds"] for c in routing.claims(metrics)] == [True] * 7
    still = {**metrics, "raw": metrics["raw"] | {"rotated_gap": metrics["raw"]["gap"]}}
    assert [c["holds"] for c in routing.claims(still)] == [True] * 4 + [False] + [True] * 2
    table = routing.tables({"run": {"metrics": metrics, "seeds": [0, 1, 2]}})["frames.routing"]
    assert "| raw | 3.00 ± 0.00 | 5.00 ± 0.00 | 6.00 ± 0.00 | - |" in table
