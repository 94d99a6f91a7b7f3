"""Checkpoints: what was saved comes back, on other devices too; what is damaged is named and left aside."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.training import Checkpointer, CheckpointError, init_sharded, make_mesh, make_train_step
from equivariant_jax.training.manifest import MANIFEST


@pytest.fixture
def state(problem):
    return problem.make_state(optax.adam(0.1), ema=True, model_state={"mean": jnp.ones(3), "none": jnp.zeros((0, 2))})


def largest_file(directory):
    return max((p for p in (directory / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory):
    path = largest_file(directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def flip_a_bit(directory):
    path = largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def remove_a_file(directory):
    path = largest_file(directory)
    path.unlink()
    return path.name


def garble_the_manifest(directory):
    (directory / MANIFEST).write_text('{"format": 1, "files"')
    return MANIFEST


def alter_the_manifest(directory):
    content = (directory / MANIFEST).read_text()
    (directory / MANIFEST).write_text(content.replace('"extra": null', '"extra": 1'))
    return MANIFEST


def test_everything_comes_back(tmp_path, problem, state):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(
            7, state, iterator_state=b"\x00raw", config={"width": {10: 3, 9: 1}}, extra={"best": [1, None]}, best=True
        )
        restored = checkpointer.restore(jax.eval_shape(lambda: state))
        assert checkpointer.latest() == checkpointer.best() == 7
        assert restored.extra == {"best": [1, None]}
        assert checkpointer.newest(lambda extra: extra is None) is None
    problem.assert_same_bits(restored.state, state)
    assert restored.state.key.dtype == state.key.dtype
    assert (restored.step, restored.iterator_state, restored.config) == (7, b"\x00raw", {"width": {"10": 3, "9": 1}})
    manifest = json.loads((tmp_path / "step_00000007" / MANIFEST).read_text())
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["leaves"]["params/kernel"] == {"shape": [3, 3], "dtype": "float32"}


def test_restores_onto_the_current_devices(tmp_path, problem):
    """Four devices with sharded parameters to one device, and to another mesh: same bits, current shardings."""
    optimizer = optax.adam(0.1)

    def make():
        return problem.make_state(optimizer).replace(params={"wide": jnp.arange(24.0).reshape(8, 3)})

    rules = [("wide", "fsdp")]
    four = init_sharded(make, make_mesh(data=1, fsdp=4), rules)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, four)
        for target in (make(), init_sharded(make, make_mesh(data=2, fsdp=2), rules)):
            restored = checkpointer.restore(target).state
            problem.assert_same_bits(restored, make())
            for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
                assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


def test_donation_does_not_reach_into_a_save_under_way(tmp_path, problem):
    step = make_train_step(problem.loss_fn, optax.sgd(0.1))
    state = problem.make_state(optax.sgd(0.1))
    before = jax.tree.map(np.array, state.params)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        for i in range(5):
            state, _ = step(state, problem.make_batch(i))
        restored = checkpointer.restore(state).state
    problem.assert_same_bits(restored.params, before)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_file, garble_the_manifest, alter_the_manifest])
def test_damage_is_named_and_the_one_before_is_used(tmp_path, state, caplog, damage):
    with Checkpointer(tmp_path) as checkpointer:
        for number in (1, 2):
            checkpointer.save(number, state.replace(step=jnp.array(number, jnp.int32)))
        checkpointer.wait()
        name = damage(tmp_path / "step_00000002")
        with caplog.at_level(logging.WARNING):
            restored = checkpointer.restore(state)
        assert (restored.step, int(restored.state.step)) == (1, 1)
        assert "step_00000002" in caplog.text
        assert name in caplog.text
        with pytest.raises(CheckpointError, match=r"step_00000002 is damaged"):
            checkpointer.restore(state, step=2)
        checkpointer.save(2, state)  # a run that goes on from 1 comes by 2 again
        assert checkpointer.restore(state).step == 2


def test_sizes_alone_find_truncation(tmp_path, state):
    with Checkpointer(tmp_path, verify="sizes") as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        assert checkpointer.problem(1) is None
        truncate(tmp_path / "step_00000001")
        assert "bytes instead of" in checkpointer.problem(1)


def test_nothing_usable_is_an_error(tmp_path, state):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(CheckpointError, match="no usable checkpoint"):
            checkpointer.restore(state)


def test_uncommitted_directories_are_not_checkpoints(tmp_path, state):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.save(2, state)
    (tmp_path / "step_00000002" / MANIFEST).unlink()
    (tmp_path / "step_00000003").mkdir()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [1]
        assert checkpointer.restore(state).step == 1
        assert (tmp_path / "step_00000003").exists()  # it may be another process's save under way
        checkpointer.save(4, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000004"]


def test_a_changed_model_names_the_path(tmp_path, state):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        wider = {**state.params, "kernel": jnp.ones((3, 4))}
        with pytest.raises(ValueError, match=r"'params/kernel' has shape \[3, 3\], the state has \[3, 4\]"):
            checkpointer.restore(state.replace(params=wider))
        with pytest.raises(ValueError, match="'params/extra' is in the state but not in the checkpoint"):
            checkpointer.restore(state.replace(params={**state.params, "extra": jnp.ones(2)}))
        with pytest.raises(ValueError, match="'params/bias' is in the checkpoint but not in the state"):
            checkpointer.restore(state.replace(params={"kernel": state.params["kernel"]}))
        half = {**state.params, "bias": state.params["bias"].astype(jnp.bfloat16)}
        with pytest.raises(ValueError, match="'params/bias' has dtype float32, the state has bfloat16"):
            checkpointer.restore(state.replace(params=half))


def test_keeps_the_newest_and_the_best(tmp_path, state):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for number in range(1, 7):
            checkpointer.save(number, state, best=number in (1, 3))
        checkpointer.wait()
        assert checkpointer.steps() == [3, 5, 6]
        checkpointer.discard_after(5)
        assert checkpointer.steps() == [3, 5]


def test_mistakes_are_named(tmp_path, state):
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(ValueError, match="verify"):
        Checkpointer(tmp_path, verify="maybe")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="'count' is a int"):
            checkpointer.save(1, {"count": 3})
        with pytest.raises(ValueError, match="Two state leaves are called 'a/b'"):
            checkpointer.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, state, config={"x": object()})
        assert checkpointer.steps() == []


def test_a_failed_save_is_reported_and_the_earlier_one_stands(tmp_path, state, monkeypatch):
    from equivariant_jax.training import checkpoint

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()

        def full_disk(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(checkpoint, "commit", full_disk)
        checkpointer.save(2, state)
        with pytest.raises(CheckpointError, match="no space left"):
            checkpointer.wait()
        assert checkpointer.steps() == [1]
        assert checkpointer.restore(state).step == 1
