"""The steerable network's two experiments: budgets, symmetry of what is predicted, the mirror pair, claims."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import checks, groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import steerable_linear
from equivariant_jax.euclidean.steerable import steerable_init
from experiments.euclidean import nbody, tetris

init = jax.jit(steerable_init, static_argnums=1)


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_variants_have_nearly_equal_parameters(preset):
    for degree in (1, 2):
        base = dataclasses.replace(nbody.PRESETS[preset], attribute_lmax=degree)
        counts = {
            model: nbody.num_parameters(nbody.network_config(dataclasses.replace(base, model=model)))
            for model in ("cg", "gaunt", "plain")
        }
        assert counts["cg"] > 10_000
        assert all(abs(count / counts["cg"] - 1) < 0.1 for count in counts.values()), counts


def moving(model):
    config = dataclasses.replace(nbody.PRESETS["ci"], model=model)
    network = nbody.network_config(config)
    params = init(jax.random.key(0), network)
    k = jax.random.split(jax.random.key(1), 3)
    inputs = (
        jax.random.normal(k[0], (2, 5, 3)),
        jax.random.normal(k[1], (2, 5, 3)),
        jnp.where(jax.random.bernoulli(k[2], 0.5, (2, 5)), 1.0, -1.0),
    )
    return lambda *x: nbody.predict(params, network, *x), inputs


def test_predictions_turn_with_the_particles():
    predict, inputs = moving("gaunt")
    acts = (rep.Point(), rep.Vector(), rep.Trivial())
    checks.assert_equivariant(predict, groups.Euclidean(3), acts, rep.Point(), jax.random.key(2), inputs)


def test_the_plain_twin_has_no_symmetry():
    predict, inputs = moving("plain")
    acts = (rep.Point(), rep.Vector(), rep.Trivial())
    report = checks.equivariance_error(predict, groups.Euclidean(3), acts, rep.Point(), jax.random.key(2), inputs)
    assert report.error > 0.01


def test_nbody_learns_and_reports(tmp_path):
    config = dataclasses.replace(nbody.PRESETS["ci"], train_size=60, validation_size=30, test_size=30, epochs=4)
    metrics = nbody.run(config, tmp_path)
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
    assert metrics["skipped_updates"] == 0
    assert 0.05 < metrics["linear_mse"] < 0.12
    assert (tmp_path / "metrics.json").exists()
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_symmetric_network_beats_its_twin(tmp_path):
    """One seed of the claim, at a tenth of its training."""
    errors = {}
    for model in ("gaunt", "plain"):
        config = dataclasses.replace(nbody.PRESETS["cpu"], model=model, channels=8, layers=2, epochs=10)
        errors[model] = nbody.run(config, tmp_path / model)["test_mse"]
    assert errors["plain"] > 1.5 * errors["gaunt"]


def test_nbody_claims():
    def table(*values, epochs=60.0):
        return {"test_mse": {"values": list(values), "mean": float(np.mean(values))}, "epochs": {"values": [epochs]}}

    found = nbody.claims({"gaunt": table(0.011, 0.012), "cg": table(0.010), "plain": table(0.013, 0.03)})
    assert [(round(c["value"], 3), c["holds"]) for c in found] == [(1.15, False), (1.083, False), (1.3, False)]
    found = nbody.claims({"gaunt_2": table(0.005, epochs=1000.0), "cg_2": table(0.005, epochs=1000.0)})
    assert [(round(c["value"], 3), c["holds"]) for c in found] == [(1.0, True), (1.0, True), (0.962, True)]
    assert nbody.claims({"gaunt": table(0.01)}) == []


def handedness(cubes):
    """Sign of the volume that three successive steps span; zero for a flat shape."""
    return np.sign(np.linalg.det(np.diff(cubes, axis=0)))


def test_shapes():
    shapes = tetris.shapes()
    assert shapes.shape == (8, 4, 3)
    distances = np.sort(np.linalg.norm(shapes[:, :, None] - shapes[:, None], axis=-1).reshape(8, -1), axis=1)
    # All are told apart by their distances, except the mirror pair, which is told apart by its handedness alone.
    for i in range(8):
        for j in range(i):
            assert np.allclose(distances[i], distances[j]) == ((i, j) == (1, 0))
    assert handedness(shapes[0]) == -handedness(shapes[1]) != 0
    np.testing.assert_allclose(shapes[0] * [1, -1, 1], shapes[1], atol=1e-6)
    # Every shape is connected by steps of one: three edges, four for the square.
    edges = (np.abs(np.linalg.norm(shapes[:, :, None] - shapes[:, None], axis=-1) - 1) < 1e-6).sum(axis=(1, 2)) // 2
    assert edges.tolist() == [3, 3, 4, 3, 3, 3, 3, 3]


def test_logits_are_invariant_to_rotations():
    network = tetris.network_config(tetris.PRESETS["ci"])
    params = init(jax.random.key(0), network)
    positions = jnp.asarray(tetris.shapes())
    move = groups.SpecialEuclidean(3)
    report = checks.equivariance_error(
        lambda x: tetris.logits(params, network, x), move, rep.Point(), rep.Trivial(), jax.random.key(1), (positions,)
    )
    assert report.error < 1e-4
    gap = tetris._mirror_gap(np.asarray(tetris.logits(params, network, positions))[None])
    assert gap > 1e-3


def test_the_natural_network_cannot_tell_the_mirror_pair(tmp_path):
    config = dataclasses.replace(tetris.PRESETS["ci"], product="gaunt", steps=40, num_rotations=10)
    metrics = tetris.run(config, tmp_path)
    assert metrics["mirror_gap_before"] < 1e-4
    assert metrics["mirror_gap_after"] < 1e-4
    assert metrics["right_best"] <= 7


@pytest.mark.slow
@pytest.mark.parametrize("product", ["gaunt_bracket", "cg_odd"])
def test_the_odd_paths_tell_all_eight(product, tmp_path):
    metrics = tetris.run(dataclasses.replace(tetris.PRESETS["ci"], product=product), tmp_path)
    assert metrics["right_worst"] == 8


@pytest.mark.slow
def test_without_the_bracket_the_eighth_is_lost(tmp_path, monkeypatch):
    original = steerable_linear.weighted_product

    def natural_only(kind, x, *args, **kwargs):
        out = original(kind, x, *args, **kwargs)
        return jnp.zeros_like(out) if kind == "bracket" else out

    monkeypatch.setattr(steerable_linear, "weighted_product", natural_only)
    metrics = tetris.run(tetris.PRESETS["ci"], tmp_path)
    assert metrics["right_best"] <= 7


def test_a_tie_is_no_answer():
    values = np.zeros((2, 8, 8)) + 5.0 * np.eye(8)
    values[0, 0, 1] = values[0, 1, 0] = 5.0 - 1e-6
    assert tetris._right(values, 1e-2).tolist() == [6, 8]
    assert tetris._right(values, 0.0).tolist() == [8, 8]


def test_tetris_claims():
    def table(worst, best, gap=1e-7):
        names = ("right_worst", "right_best", "mirror_gap_before", "mirror_gap_after")
        return {name: {"values": [value]} for name, value in zip(names, (worst, best, gap, gap), strict=True)}

    found = tetris.claims({"gaunt": table(6, 7), "gaunt_bracket": table(8, 8), "cg": table(7, 8)})
    assert [c["holds"] for c in found] == [True, True, True, False]
    assert [c["holds"] for c in tetris.claims({"gaunt": table(8, 8, 0.1)})] == [False, False]
