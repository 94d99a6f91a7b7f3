"""What runs share: draws that stay what they were, losses, counts, whole sets, a training, what is written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax import training
from equivariant_jax.data import ArraySource
from experiments import charged_particles, runs
from experiments.flow.digits import digit_parts
from experiments.frames.poses import turned


def test_batches_are_those_of_finished_runs(key):
    arrays = {"x": 10 * jnp.arange(20.0), "label": jnp.arange(20)}
    batches = runs.random_batches(arrays, 8, key)
    for number in range(3):
        batch = next(batches)
        # Spelt out: results are repeated by these draws alone.
        chosen = jax.random.choice(jax.random.fold_in(key, number), 20, (8,), replace=False)
        np.testing.assert_array_equal(batch["label"], chosen)
        np.testing.assert_array_equal(batch["x"], 10.0 * np.asarray(chosen))
        assert len(set(chosen.tolist())) == 8


def test_each_process_draws_its_part(key, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (rows,) = next(runs.random_batches({"x": jnp.arange(20)}, 8, key)).values()
    assert rows.shape == (4,)


def test_cross_entropy_by_hand():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    expected = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(runs.cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)


def test_parameters_are_counted_drawn_or_not(key):
    def init(key):
        return {"kernel": jax.random.normal(key, (3, 4)), "layers": [{"bias": jnp.zeros(4)}, {"scale": jnp.ones(())}]}

    assert runs.num_parameters(init(key)) == runs.count_parameters(init) == 17


def test_a_whole_set_has_every_row_once():
    batches = runs.whole_set(ArraySource({"x": np.arange(7)}), 3)
    for _ in range(2):  # it starts anew
        seen = [np.asarray(batch["x"])[np.asarray(batch["mask"])] for batch in batches()]
        np.testing.assert_array_equal(np.concatenate(seen), np.arange(7))
        assert all(len(batch["x"]) == 3 for batch in batches())


def line(ema_decay=None, seed=0, **options):
    """Fits one slope, of which the truth is 3."""

    def loss_fn(params, batch, *, key, model_state):
        error = params["slope"] * batch["x"] - 3 * batch["x"]
        return training.LossOutput({"mse": training.Mean.of(error**2)}, {}, {"steps": model_state["steps"] + 1})

    def init(key):
        return {"slope": jax.random.normal(key, (1,))}, {"steps": jnp.zeros((), jnp.int32)}

    key_params, key_state, key_data = jax.random.split(jax.random.key(seed), 3)
    batches = runs.random_batches({"x": jnp.linspace(-1.0, 1.0, 16)}, 8, key_data)
    return runs.train(
        init, loss_fn, optax.sgd(0.3), batches, keys=(key_params, key_state), ema_decay=ema_decay, num_steps=30,
        **options,
    )  # fmt: skip


def test_a_training_learns_and_says_what_it_took(tmp_path):
    result, metrics, step, cpu_seconds = line(workdir=tmp_path / "first")
    assert float(result.state.params["slope"][0]) == pytest.approx(3.0, abs=1e-2)
    assert int(result.state.model_state["steps"]) == 30
    assert result.state.ema_params is None
    assert list(metrics) == ["parameters", "steps", "train_seconds", "skipped_updates"]
    assert (metrics["parameters"], metrics["steps"], metrics["skipped_updates"]) == (1.0, 30.0, 0.0)
    assert min(metrics["train_seconds"], cpu_seconds) > 0
    assert isinstance(step, training.TrainStep)
    again, averaged = line(workdir=tmp_path / "again"), line(ema_decay=0.9, workdir=tmp_path / "averaged")
    np.testing.assert_array_equal(again.result.state.params["slope"], result.state.params["slope"])
    np.testing.assert_array_equal(averaged.result.state.params["slope"], result.state.params["slope"])
    assert 0 < abs(float((averaged.result.state.ema_params["slope"] - result.state.params["slope"])[0])) < 0.5
    other = line(seed=1, workdir=tmp_path / "other")
    assert float(other.result.state.params["slope"][0]) != float(result.state.params["slope"][0])


def test_metrics_are_written_by_the_first_process(tmp_path, monkeypatch):
    folder = runs.make_folder(str(tmp_path / "a" / "b"))
    assert runs.make_folder(folder) == folder == tmp_path / "a" / "b"
    assert runs.write_metrics(folder, {"b": 1.0, "a": 2.0}, rows=[1]) == {"b": 1.0, "a": 2.0}
    assert list(json.loads((folder / "metrics.json").read_text()).items()) == [("a", 2.0), ("b", 1.0), ("rows", [1])]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert runs.write_metrics(tmp_path, {"a": 1.0}) == {"a": 1.0}
    assert not (tmp_path / "metrics.json").exists()


def test_the_straight_line_of_charged_particles():
    task = charged_particles.splits(20, 10, 10, 0)["train"]
    straight = task._replace(targets=task.positions + 0.7 * task.velocities)
    assert charged_particles.linear_mse(straight, straight) < 1e-12
    off = straight._replace(targets=straight.targets + 0.5)
    assert charged_particles.linear_mse(straight, off) == pytest.approx(0.25)
    arrays = charged_particles.source(task).arrays
    assert set(arrays) == set(task._fields)
    assert all(value.dtype == np.float32 for value in arrays.values())


def test_each_cloud_is_turned_by_its_own_matrix(key):
    x, v = jax.random.normal(key, (2, 30, 4, 3))
    moved_x, moved_v = turned(key, x, v)
    np.testing.assert_allclose(jnp.sum(moved_x * moved_v, -1), jnp.sum(x * v, -1), atol=1e-5)
    assert float(jnp.abs(moved_x - x).max(axis=(1, 2)).min()) > 1e-2
    (same,) = turned(key, jnp.broadcast_to(x[:1], x.shape))
    assert float(jnp.abs(same[1:] - same[:1]).max(axis=(1, 2)).min()) > 1e-2
    # Reflections too.
    signs = np.sign(np.linalg.det(np.asarray(moved_x[:, :3]))) * np.sign(np.linalg.det(np.asarray(x[:, :3])))
    assert set(signs) == {-1.0, 1.0}


def test_digits_are_in_one_part_each():
    pytest.importorskip("sklearn")
    parts = digit_parts("digits")
    assert [len(parts[name][0]) for name in ("train", "validation", "test")] == [1300, 200, 297]
    for images, labels in parts.values():
        assert images.shape == (len(labels), 8, 8)
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0.0, 1.0)
