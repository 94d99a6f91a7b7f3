"""The experiment of moving agents: sets, models, losses, measures, claims, table, figure, and published settings."""

import dataclasses
import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean.motion import eqmotion_init
from experiments.euclidean import motion, motion_laws, motion_measure, motion_models, motion_report, motion_sets

TINY = dataclasses.replace(
    motion.PRESETS["ci"], train_size=20, validation_size=6, test_size=6, layers=1, channels=4, scalars=4, past=6,
    future=5, steps=3, batch_size=8, evaluations=1,
)  # fmt: skip


@functools.cache
def springs():
    return motion_sets.load(TINY, Path())


def test_a_short_run_measures_what_it_says(tmp_path):
    metrics = motion.run(TINY, tmp_path)
    assert metrics["steps"] == 3
    assert metrics["rotation_gap"] < 1e-5
    assert 0.5 <= metrics["edge_accuracy"] <= 1
    assert metrics["ade"] == pytest.approx(np.mean([metrics[f"frame/{t}"] for t in range(1, 6)]), rel=1e-6)
    assert metrics["cv_fde"] == pytest.approx(metrics["cv_frame/5"])
    assert {"path/past/4/5/1", "path/future/4/4/1", "path/predicted/4/4/1"} <= set(metrics)
    motion_report.plots({"run": {"metrics": {"eqmotion": table(**metrics)}}}, tmp_path)
    assert (tmp_path / "euclidean.motion.svg").stat().st_size > 1000


@pytest.mark.parametrize("model", ["eqmotion", "egnn", "mlp"])
def test_only_the_network_without_symmetry_sees_the_axes(model):
    config = dataclasses.replace(TINY, model=model, heads=2)
    past, mask = springs()["test"].positions[:, :, :6], springs()["test"].mask
    predictor = motion_models.make_predictor(config, 5, 3)
    params = predictor.init(jax.random.key(0))
    turn = motion_sets.random_rotations(1, 3, 0)[0].astype(np.float32)
    both = jax.jit(lambda params, x, mask: jax.vmap(lambda x: predictor.apply(params, x, mask)[0])(x))
    straight, turned = both(params, np.stack([past, past @ turn + 1]), mask)
    assert straight.shape == (6, 2, 5, 5, 3)
    error = float(jnp.abs(straight @ turn + 1 - turned).max())
    assert (error > 0.01) if model == "mlp" else (error < 1e-4)


def test_aligned_scenes_do_not_depend_on_their_orientation():
    rng = np.random.default_rng(0)
    for n in (2, 3):
        scenes = rng.normal(size=(20, 4, 8, n)) * (1 + np.arange(n))
        turned = scenes @ motion_sets.random_rotations(20, n, 1)[:, None] + rng.normal(size=(20, 1, 1, n))
        first, second = (motion_sets.aligned(x, 6) for x in (scenes, turned))
        np.testing.assert_allclose(first, second, atol=1e-9)
        np.testing.assert_allclose(first[:, :, :6].mean((1, 2)), 0, atol=1e-12)
        spread = first[:, :, :6].var(axis=(1, 2))
        assert np.all(np.diff(spread, axis=-1) < 0)
        lengths = [np.linalg.norm(x[:, 0, 0] - x[:, 1, 7], axis=-1) for x in (scenes, first)]
        np.testing.assert_allclose(*lengths)


def test_random_rotations_are_rotations():
    q = motion_sets.random_rotations(500, 3, 0)
    np.testing.assert_allclose(q @ q.transpose(0, 2, 1), np.broadcast_to(np.eye(3), q.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(q), 1)
    assert np.abs(q.mean(axis=0)).max() < 0.1


def test_errors_agree_with_loops():
    rng = np.random.default_rng(0)
    edges = rng.random((7, 2, 2)) < 0.5
    scenes = motion_sets.MotionSet(rng.normal(size=(7, 2, 5, 2)).astype(np.float32), rng.random((7, 2)) < 0.7, edges)
    config = types.SimpleNamespace(past=3, future=2, scale=2.0, supervision=0.0, data_seed=0)
    predicted, categories = rng.normal(size=(7, 4, 2, 2, 2)), rng.random((7, 2, 2, 2))
    calls = iter([(predicted, categories)])
    found = motion_measure.measure(lambda *_: next(calls), None, scenes, config)
    ade, fde, right, number = [], [], 0, 0
    for s in range(7):
        for a in range(2):
            if scenes.mask[s, a]:
                errors = np.linalg.norm(predicted[s, :, a] - scenes.positions[s, a, 3:], axis=-1) / 2
                ade.append(errors.mean(axis=-1).min())
                fde.append(errors[:, -1].min())
                if scenes.mask[s, 1 - a]:
                    number += 1
                    right += (categories[s, a, 1 - a, 1] > categories[s, a, 1 - a, 0]) == edges[s, a, 1 - a]
    assert found["ade"] == pytest.approx(np.mean(ade))
    assert found["fde"] == pytest.approx(np.mean(fde))
    assert found["edge_accuracy"] == pytest.approx(max(right, number - right) / number)


def test_chunks_do_not_show(monkeypatch):
    monkeypatch.setattr(motion_measure, "CHUNK", 4)
    x = np.arange(10.0).reshape(10, 1, 1, 1)
    out, pairs = motion_measure._predict(lambda _, x, m: (x + 1, None), None, x, np.ones((10, 1), bool))
    np.testing.assert_array_equal(out, x + 1)
    assert pairs is None


def loss_terms(config, **change):
    config = dataclasses.replace(config, **change)
    predictor = motion_models.make_predictor(config, 5, 3)
    train = springs()["train"]
    batch = {"positions": train.positions[:8, :, :11], "mask": train.mask[:8], "edges": np.asarray(train.edges)[:8],
             "noise": np.full(8, 0.1, np.float32)}  # fmt: skip

    @jax.jit
    def terms(key):
        params = predictor.init(jax.random.key(0))
        return motion._loss(config, predictor)(params, batch, key=key, model_state=None).terms

    return {name: float(term.compute()) for name, term in terms(jax.random.key(1)).items()}


def test_losses_have_the_terms_asked_for():
    plain = loss_terms(TINY, noise=0.0, balance=0.0)
    assert set(plain) == {"distance"}
    # The ego agent alone, falling weights: another number, the same kind.
    all_on = loss_terms(TINY, supervision=1.0, ego_only=True, decline=5.0)
    assert set(all_on) == {"distance", "balance", "pairs"}
    assert 0 <= all_on["balance"] <= np.log(2)
    assert all_on["pairs"] > 0.3
    assert all_on["distance"] != plain["distance"]


def test_noise_falls_to_zero():
    config = dataclasses.replace(TINY, steps=10, noise=0.5, noise_until=0.4, scale=2.0)
    batches = motion._batches(springs()["train"], config, jax.random.key(0))
    levels = [float(next(batches)["noise"][0]) for _ in range(6)]
    np.testing.assert_allclose(levels, [1.0, 0.75, 0.5, 0.25, 0, 0])
    constant = motion._batches(springs()["train"], dataclasses.replace(config, noise_until=0.0), jax.random.key(0))
    assert [float(next(constant)["noise"][0]) for _ in range(3)] == [1.0] * 3


def test_stretched_scenes_are_scaled_and_nothing_else():
    config = dataclasses.replace(TINY, stretch=1.5, first_starts=3)
    train, key = springs()["train"], jax.random.key(3)
    plain = np.asarray(next(motion._batches(train, dataclasses.replace(config, stretch=1.0), key))["positions"])
    stretched = np.asarray(next(motion._batches(train, config, key))["positions"])
    factor = stretched[:, :1, :1, :1] / plain[:, :1, :1, :1]
    np.testing.assert_allclose(stretched, plain * factor, rtol=1e-5)
    assert 1 / 1.5 <= factor.min() < 0.9
    assert 1.1 < factor.max() <= 1.5


def test_published_settings():
    shapes = jax.eval_shape(
        functools.partial(eqmotion_init, config=motion_models.motion_config(motion.PRESETS["paper_charged"])),
        jax.random.key(0),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 468_166 - 78_852
    expected = {
        "paper": (20, 20, 64, 2, 0.5), "paper_charged": (20, 20, 64, 2, 1.0), "paper_molecule": (10, 10, 32, 2, 1.0),
        "paper_human": (10, 10, 72, 4, 1.0), "paper_human_long": (25, 25, 96, 4, 1.0),
        "paper_pedestrians": (8, 12, 64, 4, 1.0),
    }  # fmt: skip
    for name, settings in expected.items():
        preset = motion.PRESETS[name]
        assert (preset.past, preset.future, preset.channels, preset.categories, preset.temperature) == settings
        assert (preset.scalars, preset.layers, preset.batch_size, preset.noise, preset.balance) == (64, 4, 100, 0, 0)
        motion_models.make_predictor(preset, 5, 3)
    for change in motion.VARIANTS.values():
        dataclasses.replace(motion.PRESETS["cpu"], **change)


def table(**values):
    return {name: {"values": [value] * 3, "mean": value, "std": 0.0} for name, value in values.items()}


SHARED = {"steps": 8000.0, "cv_ade": 0.5, "cv_fde": 1.0, "train_seconds": 300.0, "cpu_seconds": 240.0,
          "parameters": 10.0, "train_scenes": 1000.0, "fde": 0.3, "train_distance": 0.1}  # fmt: skip


def test_claims_of_springs():
    metrics = {
        "eqmotion": table(task=0.0, ade=0.1, rotation_gap=1e-7, edge_accuracy=0.95, rotated_ade=0.1, **SHARED),
        "no_interaction": table(task=0.0, ade=0.2, edge_accuracy=0.52, **SHARED),
        "mlp": table(task=0.0, ade=0.2, rotated_ade=0.6, **SHARED),
    }
    found = motion.claims(metrics)
    assert [c["point"] for c in found] == [2, 2, 2, 2, 4, 4]
    assert all(c["holds"] for c in found)
    metrics["eqmotion"]["edge_accuracy"]["values"][1] = 0.8
    metrics["mlp"]["rotated_ade"]["values"][2] = 0.25
    assert [c["holds"] for c in motion.claims(metrics)] == [False, True, True, True, True, False]
    short = {"eqmotion": metrics["eqmotion"] | table(steps=60.0)}
    assert not motion.claims(short)


@pytest.mark.parametrize(
    ("task", "ade", "points"),
    [("charged", 0.2, [3, 3]), ("zara1", 0.19, [5]), ("hotel", 0.12, [5]), ("molecule", 0.2, [6])],
)
def test_claims_of_other_tasks(task, ade, points):
    index = float(motion.TASKS.index(task))
    metrics = {"eqmotion": table(task=index, ade=ade, rotation_gap=0.0, **SHARED)}
    if task == "charged":
        metrics["egnn"] = table(task=index, ade=0.3, **SHARED)
    found = motion.claims(metrics)
    assert [c["point"] for c in found] == points
    assert all(c["holds"] for c in found)
    metrics["eqmotion"]["ade"]["values"][0] = metrics["eqmotion"]["ade"]["values"][1] = 0.31
    assert not any(c["holds"] for c in motion.claims(metrics))


def test_table():
    metrics = {"eqmotion": table(task=float(motion.TASKS.index("hotel")), ade=0.125, rotated_ade=0.125, **SHARED)}
    result = {"metrics": metrics, "seeds": [0, 1, 2], "config": {"data_seed": 0}}
    other = {**result, "config": {"data_seed": 1}}
    text = motion.tables({"run": result, "other": other})["euclidean.motion"]
    assert "| hotel, simulator's seed 1 | eqmotion" in text
    assert "| hotel | eqmotion | 10 | 0.125 ± 0 | 0.3 ± 0 | 0.5/1 | 0.125 ± 0 | - | 0.12/0.18 | 3 | 5.0 min |" in text
    assert "five scenes" not in text


def test_the_mean_of_the_scenes_needs_all_five():
    found = {}
    for i, scene in enumerate(("eth", "hotel", "univ", "zara1", "zara2")):
        metrics = {"eqmotion": table(task=float(motion.TASKS.index(scene)), ade=0.1 * i, rotated_ade=0.2, **SHARED)}
        found[scene] = {"metrics": metrics, "seeds": [0, 1, 2], "config": {"data_seed": 0}}
    last = motion.tables(found)["euclidean.motion"].splitlines()[-1]
    assert last == (
        "| mean of five scenes | eqmotion | - | 0.2 ± 0 | 0.3 ± 0 | 0.5/1 | 0.2 ± 0 | - | 0.21/0.35 | 3 | 25.0 min |"
    )
    del found["univ"]
    assert "five scenes" not in motion.tables(found)["euclidean.motion"]


def test_laws_are_measured_on_moves_that_move(tmp_path, monkeypatch):
    config = motion_laws.Config(scenes=3, width=4, layers=1)
    metrics = motion_laws.run(config, tmp_path)
    assert metrics["float64/spread_of_categories"] > 1e-4
    found = motion_laws.claims({"run": table(**metrics)})
    assert len(found) == 5
    assert all(c["holds"] for c in found)
    assert "| float64 |" in motion_laws.tables({"run": {"metrics": {"run": table(**metrics)}}})["euclidean.motion_laws"]
    # Break the layer: a coordinate that the network is told.
    apply = motion_laws.eqmotion_apply
    monkeypatch.setattr(
        motion_laws, "eqmotion_apply", lambda params, x, *rest: apply(params, x.at[..., 0].multiply(1.01), *rest)
    )
    motion_laws._predict.clear_cache()
    broken = motion_laws._worst(config, "float32", 1.0)
    motion_laws._predict.clear_cache()
    assert broken["positions"] > 1e-3
