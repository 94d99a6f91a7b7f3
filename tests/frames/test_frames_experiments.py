"""Experiments of Frame Averaging: short runs, sets, claims, tables, published settings."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.data.graph6 import graph6_line
from equivariant_jax.frames import gin_init, mpnn_init
from experiments import charged_particles
from experiments.benchmarks import frames as benchmark
from experiments.frames import exactness, graphs, nbody, normals, normals_sets, poses


def _table(**values):
    return {name: {"values": [value] * 3, "mean": value} for name, value in values.items()}


def _holds(claims):
    assert all(set(claim) - {"why"} == {"card", "point", "statement", "bar", "value", "holds"} for claim in claims)
    return [claim["holds"] for claim in claims]


NBODY = dataclasses.replace(
    nbody.PRESETS["ci"], train_size=40, validation_size=20, test_size=20, epochs=2, eval_every=1, timed_steps=2
)


def test_a_short_nbody_run_measures_what_it_says(tmp_path):
    metrics = nbody.run(NBODY, tmp_path)
    assert metrics["rotation_defect"] < 1e-4
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0.01 < metrics["linear_mse"] < 0.5


def test_nbody_without_frames_is_another_function_of_the_pose(key):
    config = dataclasses.replace(NBODY, model="plain")
    params = mpnn_init(key, nbody.MPNNConfig(width=config.width, depth=config.depth))
    task = charged_particles.splits(40, 20, 20, 43)["test"]
    assert nbody._rotation_defect(params, config, task, key) > 1e-2
    assert nbody._rotation_defect(params, NBODY, task, key) < 1e-4


def test_nbody_published_settings_and_claims():
    paper = nbody.PRESETS["paper"]
    assert (paper.width, paper.depth, paper.epochs, paper.batch_size, paper.learning_rate) == (60, 4, 10_000, 100, 1e-3)
    assert paper.train_frames == "all"
    for change in nbody.VARIANTS.values():
        dataclasses.replace(nbody.PRESETS["cpu"], **change)
    metrics = {
        "fa_gnn": _table(test_mse=0.01, linear_mse=0.08, epochs=220.0, train_seconds=80.0),
        "no_frames": _table(test_mse=0.02),
        "short": _table(test_mse=0.015, step_milliseconds=20.0),
        "full_frames": _table(test_mse=0.01, step_milliseconds=90.0, epochs=30.0, train_seconds=160.0),
    }
    assert _holds(nbody.claims(metrics)) == [True, True, True, False, True]
    slower = metrics | {"fa_gnn": metrics["fa_gnn"] | _table(train_seconds=170.0)}
    assert _holds(nbody.claims(slower)) == [True, True, True, False, False]
    assert not nbody.claims({"no_frames": metrics["no_frames"]})
    full = metrics["fa_gnn"] | _table(rotation_defect=1e-6, train_seconds=90.0)
    table = nbody.tables({"x": {"seeds": [0, 1, 2], "metrics": {"fa_gnn": full}}})["frames.nbody"]
    assert table.endswith("| fa_gnn | 220 | 10.00 ± 0.00 | 80.0 | 1e-06 | 3 | 1.5 min |")
    metrics["fa_gnn"]["epochs"]["values"] = [10_000.0]
    assert _holds(nbody.claims({"fa_gnn": metrics["fa_gnn"]})) == [True, False]


TRIANGLES = np.kron(np.eye(2), 1 - np.eye(3))
HEXAGON = np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), -1, axis=1)


def test_colour_refinement_and_pairs():
    path = np.eye(6, k=1) + np.eye(6, k=-1)
    assert graphs.colour_refinement(TRIANGLES) == graphs.colour_refinement(HEXAGON)
    assert graphs.colour_refinement(path) != graphs.colour_refinement(HEXAGON)
    np.testing.assert_array_equal(graphs._pairs(np.stack([TRIANGLES, path, HEXAGON])), [[0, 2]])
    order = [3, 0, 5, 1, 2, 4]
    assert graphs.colour_refinement(path) == graphs.colour_refinement(path[np.ix_(order, order)])


def test_embedding_puts_graphs_back_in_their_order(key):
    """Groups by size of frame, filled batches: the same as one graph after the other."""
    network = graphs.GINConfig(5, width=4, depth=1)
    params = jax.vmap(lambda k: gin_init(k, network))(jax.random.split(key, 2))
    path, star = np.eye(4, k=1) + np.eye(4, k=-1), np.zeros((4, 4))
    star[0, 1:] = star[1:, 0] = 1
    cycle = np.roll(np.eye(4), 1, axis=1) + np.roll(np.eye(4), -1, axis=1)
    every = np.stack([star, path, cycle, path, path]).astype(np.float32)
    sizes = np.array([6, 4, 24, 4, 4])
    together = graphs.embed(params, every, sizes, network, at_once=8)
    assert together.shape == (5, 2, 10)
    one = np.concatenate(
        [graphs.embed(params, g[None], s[None], network, at_once=8) for g, s in zip(every, sizes, strict=True)]
    )
    np.testing.assert_allclose(together, one, atol=1e-6)
    np.testing.assert_array_equal(together[1], together[3])


def test_undistinguished_pairs_by_brute_force():
    rng = np.random.default_rng(0)
    y = np.round(rng.random((30, 2, 10)) * 2).astype(np.float32)
    y[7], y[9] = y[3], y[3]
    y[11] = y[12] + 0.9 * graphs.APART / 10
    y[13], y[13, 1, 0] = y[14], y[14, 1, 0] + 2 * graphs.APART  # the second network sees it
    expected = sum(np.abs(a - b).sum(-1).max() <= graphs.APART for a, b in itertools.combinations(y, 2))
    assert graphs._undistinguished(y) == expected == 4


def test_a_run_on_a_file_of_graphs(tmp_path):
    path = tmp_path / "graphs.g6"
    wheel = HEXAGON[:5, :5].copy()
    wheel[4, :4] = wheel[:4, 4] = 1
    lines = [graph6_line(a) for a in (np.eye(5, k=1) + np.eye(5, k=-1), wheel, HEXAGON, 1 - np.eye(5))]
    house = np.eye(5, k=1) + np.eye(5, k=-1)
    house[0, 4] = house[4, 0] = house[0, 2] = house[2, 0] = 1
    path.write_text("\n".join([*lines, graph6_line(house), graph6_line(np.roll(house, 1, (0, 1)))]))
    config = graphs.Config(
        nodes=5, graph6=str(path), width=4, depth=2, networks=1, max_frame=24, law_frame=24, relabellings=1
    )
    metrics = graphs.run(config, tmp_path / "run")
    assert metrics["graphs"] == 4  # without the complete graph, of 120 elements, and the hexagon
    assert metrics["graphs_left_out"] == 2
    assert metrics["relabel_defect"] < 1e-5
    assert metrics["wl_pairs"] == metrics["undistinguished"] == 1  # the house, twice


def test_atlas():
    pytest.importorskip("networkx")
    assert [len(graphs.atlas(n)) for n in (2, 3, 4, 5)] == [1, 2, 6, 21]
    with pytest.raises(ValueError, match="expected 2 to 7"):
        graphs.atlas(8)


def test_graphs_claims():
    good = _table(
        graphs=853.0, law_graphs=850.0, relabel_defect=1e-6, wl_pairs=17.0, wl_pairs_separated=17.0,
        gin_wl_pairs_separated=0.0,
    )  # fmt: skip
    assert _holds(graphs.claims({"run": good})) == [True] * 4
    full = good | _table(largest_frame=5040.0, undistinguished=0.0, gin_undistinguished=45.0)
    table = graphs.tables({"x": {"seeds": [0], "config": {"nodes": 7}, "metrics": {"run": full}}})["frames.graphs"]
    assert table.endswith("| 7 | 853 | 5,040 | 1e-06 | 17 | 17 | 0 | 0 | 45 | 1 |")
    bad = {**good, **_table(relabel_defect=1e-4, wl_pairs_separated=16.0, gin_wl_pairs_separated=1.0, graphs=112.0)}
    assert _holds(graphs.claims({"run": bad})) == [False] * 3


@pytest.mark.parametrize("variant", ["fa_pointnet", pytest.param("dgcnn_rotated", marks=pytest.mark.slow)])
def test_a_short_run_on_normals(tmp_path, variant):
    config = dataclasses.replace(
        normals.PRESETS["ci"], points=24, train_size=8, test_size=4, batch_size=4, steps=2, **normals.VARIANTS[variant]
    )
    metrics = normals.run(config, tmp_path)
    assert all(np.isfinite(value) for value in metrics.values())
    changed = abs(metrics["test_loss_rotated"] - metrics["test_loss"])
    assert (changed < 1e-4) is (variant == "fa_pointnet")


def test_estimates_of_normals_turn_with_the_cloud(key):
    config = dataclasses.replace(normals.PRESETS["ci"], points=24)
    params, statistics = normals.pointnet_init(key, normals.network_config(config))
    x, _ = normals_sets.solids(2, 24, 5)
    run = jax.jit(lambda x: normals.estimate(params, statistics, x, config)[0])
    turned, want = poses.turned(key, jnp.asarray(x), run(jnp.asarray(x)))
    found = run(turned)
    np.testing.assert_allclose(found * jnp.sign(jnp.sum(found * want, axis=-1, keepdims=True)), want, atol=1e-3)


def test_estimates_of_opposite_signs_do_not_cancel(monkeypatch):
    """The loss sees no sign, so a network may well say n in one frame and -n in the next."""
    config = dataclasses.replace(normals.PRESETS["ci"], points=24)
    x = jnp.asarray(normals_sets.solids(2, 24, 5)[0])
    x = x - x.mean(axis=1, keepdims=True)

    def apply(params, statistics, points, network, *, training):
        signs = jnp.where(jnp.arange(points.shape[1]) % 2, -1.0, 1.0)[None, :, None, None]
        return signs * points, statistics  # directions from the mean, which is zero

    monkeypatch.setattr(normals, "pointnet_apply", apply)
    found, _ = normals.estimate(None, None, x, config)
    true = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(jnp.abs(jnp.sum(found * true, axis=-1)), 1.0, atol=1e-5)


CUBE = """v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
f 1 4 3 2
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


def test_abc_meshes(tmp_path):
    (tmp_path / "00000001_a.obj").write_text(CUBE)
    (tmp_path / "split.json").write_text(json.dumps({"ABC": {"train": ["00000001_a"], "more": ["00000001_a"]}}))
    names = normals_sets.abc_names(tmp_path / "split.json")
    assert names == ["00000001_a", "00000001_a"]
    points, outward = normals_sets.abc_clouds(tmp_path, names, 64, 3)
    assert points.shape == outward.shape == (2, 64, 3)
    np.testing.assert_allclose(points.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(points, axis=2).std(1), 1, rtol=1e-4)
    np.testing.assert_allclose(np.abs(outward).max(2), 1, atol=1e-6)
    assert np.all(np.sum(points * outward, axis=2) > 0)
    assert np.abs(points[0] - points[1]).max() > 0.1
    with pytest.raises(ValueError, match="there is no such file"):
        normals_sets.abc_clouds(tmp_path, ["missing"], 4, 0)
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected \{dataset"):
        normals_sets.abc_names(tmp_path / "split.json")


def test_normals_published_settings_and_claims(tmp_path):
    paper = normals.PRESETS["paper"]
    assert normals.network_config(paper) == normals.PointNetConfig()
    assert normals.network_config(dataclasses.replace(paper, model="dgcnn")) == normals.DGCNNConfig()
    metrics = {
        "fa_pointnet": _table(test_loss=0.2, test_loss_rotated=0.2001),
        "pointnet": _table(test_loss=0.15, test_loss_rotated=0.4),
        "pointnet_rotated": _table(test_loss=0.19, test_loss_rotated=0.19),
    }
    assert _holds(normals.claims(metrics)) == [True, True, False]
    full = metrics["pointnet"] | _table(test_degrees=20.0, test_degrees_rotated=30.0, train_seconds=60.0)
    table = normals.tables({"x": {"seeds": [0], "metrics": {"pointnet": full}}})["frames.normals"]
    assert "| pointnet | 0.150 ± 0.000 | 0.400 ± 0.000 | 20.0 ± 0.0 | 30.0 ± 0.0 | 1 | 1.0 min |" in table
    pytest.importorskip("matplotlib")
    normals.plots({"frames.normals.cpu": {"metrics": metrics}}, tmp_path)
    assert "<svg" in (tmp_path / "frames.normals.svg").read_text()


def test_exactness(tmp_path):
    config = exactness.Config(clouds=4, points=6, dimensions=(2,), width=4)
    metrics = exactness.run(config, tmp_path)
    table = {name: {"values": [value], "mean": value} for name, value in metrics.items()}
    assert all(_holds(exactness.claims({"run": table})))
    table["se_mirror/2"]["values"], table["padding/2"]["values"] = [1e-9], [1e-3]
    assert _holds(exactness.claims({"run": table})).count(False) == 2


def test_benchmark_cases_and_claims():
    config = dataclasses.replace(benchmark.PRESETS["ci"], systems=2, clouds=1, points=8, frames=2)
    found = list(benchmark._particles(config, torch_there=False)) + list(benchmark._clouds(config))
    assert [case.name for case in found] == ["FA-GNN, training step", "FA-GNN, forward", "FA-PointNet, forward"]
    shapes = [jax.eval_shape(f, *found[1].arguments).shape for f in found[1].contenders.values()]
    assert set(shapes) == {(2, 5, 3)}
    rows = [
        {"case": "FA-GNN, training step", "ratios": {benchmark.ONE: 0.3}, "ours_ms": 1.0, "compile_s": 1.0},
        {
            "case": "FA-GNN, forward",
            "ratios": {benchmark.ONE: 0.2, benchmark.TORCH: 2.0},
            "ours_ms": 1.0,
            "compile_s": 1.0,
        },
    ]
    assert _holds(benchmark.claims(rows)) == [False, True, True]
    assert benchmark.tables({"x": {"rows": rows}})["benchmarks.frames"].count("\n") == 3


def test_the_official_order_is_the_same_function(key):
    pytest.importorskip("torch")
    case = list(benchmark._particles(dataclasses.replace(benchmark.PRESETS["ci"], systems=3), torch_there=True))[1]
    want, got = (jax.jit(case.contenders[name])(*case.arguments) for name in (benchmark.EIGHT, benchmark.TORCH))
    np.testing.assert_allclose(got, want, atol=1e-3)
