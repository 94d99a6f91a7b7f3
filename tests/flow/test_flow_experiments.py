"""The experiments of the flow room: short runs, their metrics, claims and tables, and published settings."""

import dataclasses

import jax
import numpy as np
import pytest

from equivariant_jax.flow import next_frame_init
from experiments.flow import actions, flowing_mnist, flowing_report, rotation_law

TINY = dataclasses.replace(
    flowing_mnist.PRESETS["ci"], given=2, predicted=2, horizon=3, channels=2, steps=4, eval_every=2, eval_sequences=8,
    batch_size=4, model_radius=1,
)  # fmt: skip


def test_a_short_run_measures_what_it_says(tmp_path):
    metrics = flowing_mnist.run(TINY, tmp_path / "run")
    assert metrics["banks"] == 3
    assert metrics["steps"] == 4
    assert {"step/01", "step/02", "step/03", "speed/+2"} <= set(metrics)
    assert metrics["test_mse"] == pytest.approx((metrics["step/01"] + metrics["step/02"]) / 2)
    assert metrics["late_mse"] == pytest.approx(metrics["step/03"])
    assert 0 < metrics["copy_last_mse"] < 1


def test_published_settings():
    paper = flowing_mnist.PRESETS["paper"]
    for variant in ("grnn", "fernn_1", "fernn_2"):
        config = dataclasses.replace(paper, **flowing_mnist.VARIANTS[variant])
        network = flowing_mnist.network_config(config)
        shapes = jax.eval_shape(lambda key, network=network: next_frame_init(key, network), jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 739_584
        assert len(network.velocities) == {"grnn": 1, "fernn_1": 9, "fernn_2": 25}[variant]
        assert network.decode == "published"
    rotation = flowing_mnist.network_config(flowing_mnist.PRESETS["paper_rotation"])
    assert len(rotation.velocities) == 9
    assert rotation.orientations == 36


def _table(**values):
    return {name: {"values": [value] * 3, "mean": value} for name, value in values.items()}


def test_claims_compare_the_right_numbers():
    shared = {"steps": 600.0, "speed/-2": 0.2}
    metrics = {
        "grnn": _table(banks=1.0, test_mse=0.01, late_mse=0.1, **shared, **{"speed/+2": 0.2}),
        "fernn_2": _table(banks=5.0, test_mse=0.01, late_mse=0.06, steps=600.0, **{"speed/+2": 0.02, "speed/-2": 0.02}),
    }
    found = {claim["statement"]: claim for claim in flowing_report.claims(metrics)}
    assert [c["holds"] for c in found.values()] == [True, True, True]
    unseen = next(c for s, c in found.items() if s.startswith("grnn"))
    assert unseen["value"] == pytest.approx(20.0)
    metrics["fernn_2"]["late_mse"] = {"values": [0.09], "mean": 0.09}
    late = next(c for c in flowing_report.claims(metrics) if "steps 13-18" in c["statement"])
    assert not late["holds"]
    plane = {"grnn": metrics["grnn"], "fernn_1": _table(banks=9.0, test_mse=0.003, late_mse=1.0, steps=400.0)}
    (claim,) = flowing_report.claims(plane)
    assert claim["point"] == 4
    assert claim["holds"]
    assert flowing_report.claims({name: {**t, "steps": {"mean": 60.0}} for name, t in metrics.items()}) == []


def test_tables_have_a_row_for_each_variant():
    result = {"metrics": {}, "seeds": [0, 1, 2], "config": {"dataset": "mnist"}}
    for variant in ("grnn", "fernn_2"):
        result["metrics"][variant] = _table(
            banks=1.0, test_mse=0.1, late_mse=0.2, copy_last_mse=0.3, train_seconds=60.0, parameters=9.0,
            test_accuracy=0.5, **{"speed/+2": 0.1, "speed/-2": 0.3},
        )  # fmt: skip
    text = flowing_report.tables({"flow.flowing_mnist.cpu": result})["flow.flowing_mnist"]
    assert text.count("\n") == 3
    assert "0.2 ± " in text
    assert actions.tables({"flow.actions.cpu": result})["flow.actions"].count("\n") == 3


@pytest.mark.parametrize("variant", ["fernn_2", "cnn3d"])
def test_a_short_classification(tmp_path, variant):
    config = dataclasses.replace(
        actions.PRESETS["ci"], **{"model_radius": 1, **actions.VARIANTS[variant]}, steps=4, eval_every=2,
        eval_sequences=16, length=3, unseen_radius=2, batch_size=8,
    )  # fmt: skip
    metrics = actions.run(config, tmp_path)
    assert {"test_accuracy", "validation_accuracy", "unseen_accuracy"} <= set(metrics)
    assert 0 <= metrics["test_accuracy"] <= 1


def test_kth_is_batched_without_losing_clips(monkeypatch):
    clips = {"train": 5, "validation": 3, "test": 7}

    class Source:
        def __init__(self, part):
            rng = np.random.default_rng(0)
            self.arrays = {
                "frames": rng.integers(0, 256, (clips[part], 4, 8, 8, 1)).astype(np.uint8),
                "label": np.arange(clips[part], dtype=np.int32) % 6,
            }

    monkeypatch.setattr(actions, "kth_actions", lambda part, clip_length: Source(part))
    config = dataclasses.replace(actions.PRESETS["paper"], length=4, batch_size=2)
    train, fixed = actions._kth(config)
    assert train(jax.random.key(0))["frames"].shape == (2, 4, 8, 8, 1)
    assert [len(batch["labels"]) for batch in fixed["test"]] == [2, 2, 2, 1]
    assert actions.network_config(config).num_classes == 6
    # One velocity for good: the same clips again.
    again = actions._kth(config)[1]
    np.testing.assert_array_equal(again["test"][0]["frames"], fixed["test"][0]["frames"])


def test_a_resumed_run_tests_the_best_epoch_of_the_whole(tmp_path):
    config = dataclasses.replace(
        actions.PRESETS["ci"], model_radius=0, eval_every=2, eval_sequences=16, length=2, batch_size=8,
        checkpoint_every=2, steps=4,
    )  # fmt: skip
    first = actions.run(config, tmp_path)
    again = actions.run(dataclasses.replace(config, resume=True), tmp_path)
    assert again["test_accuracy"] == first["test_accuracy"]
    assert again["validation_accuracy"] == first["validation_accuracy"]


def test_the_rotation_law_is_measured_angle_by_angle(tmp_path):
    metrics = {}
    for variant, overrides in rotation_law.VARIANTS.items():
        config = dataclasses.replace(rotation_law.PRESETS["ci"], **overrides)
        run = rotation_law.run(config, tmp_path)
        assert sorted(run) == [*(f"error/{angle:03d}" for angle in range(0, 181, 45)), "frames"]
        metrics[variant] = {name: {"values": [value], "mean": value} for name, value in run.items()}
    found = {claim["statement"].split(":")[0]: claim for claim in rotation_law.claims(metrics)}
    assert found["comoving"]["holds"]
    assert found["published"]["holds"]
    assert metrics["still"]["error/090"]["mean"] > 0.5  # the ordinary recurrence breaks the law
    with pytest.raises(ValueError, match="multiple of 360 / 8"):
        rotation_law.run(dataclasses.replace(rotation_law.PRESETS["ci"], angle_step=10), tmp_path)
