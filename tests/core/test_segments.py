"""Segment reductions against plain loops, with masks, empty segments, half precision and hard gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import segments

NUM = 5


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    ids = np.array([0, 0, 1, 3, 3, 3, 0, 1])
    mask = np.array([True, True, False, True, True, False, True, False])  # segment 1 has padding only, 2 and 4 none
    return rng.normal(size=(8, 3)).astype(np.float32), ids, mask


def loop(data, ids, mask, reduce):
    out = np.zeros((NUM, *data.shape[1:]))
    for s in range(NUM):
        rows = data[(ids == s) & mask]
        if len(rows):
            out[s] = reduce(rows.astype(np.float64))
    return out


REDUCTIONS = {
    "sum": (segments.segment_sum, lambda r: r.sum(0)),
    "mean": (segments.segment_mean, lambda r: r.mean(0)),
    "max": (segments.segment_max, lambda r: r.max(0)),
    "min": (segments.segment_min, lambda r: r.min(0)),
    "std": (segments.segment_std, lambda r: np.sqrt(r.var(0) + 1e-5) - np.sqrt(1e-5)),
    "norm": (segments.segment_norm, lambda r: np.linalg.norm(r, axis=0)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_against_a_loop(name, case):
    op, reduce = REDUCTIONS[name]
    data, ids, mask = case
    for m in (mask, np.ones_like(mask)):
        got = jax.jit(lambda d, m, op=op: op(d, jnp.asarray(ids), NUM, mask=m))(data, jnp.asarray(m))
        np.testing.assert_allclose(got, loop(data, ids, m, reduce), atol=1e-6)
    order = np.argsort(ids, kind="stable")
    got = op(
        jnp.asarray(data[order]), jnp.asarray(ids[order]), NUM, mask=jnp.asarray(mask[order]), indices_are_sorted=True
    )
    np.testing.assert_allclose(got, loop(data, ids, mask, reduce), atol=1e-6)


@pytest.mark.parametrize("name", [*REDUCTIONS, "softmax"])
def test_gradients_are_finite_and_blind_to_padding(name, case):
    op = REDUCTIONS[name][0] if name in REDUCTIONS else segments.segment_softmax
    data, ids, mask = case
    for values in (data, np.zeros_like(data), np.full_like(data, 3.0)):
        values = np.where(mask[:, None], values, np.nan if name != "softmax" else 1e4).astype(np.float32)
        grad = jax.grad(lambda d, op=op: jnp.sum(op(d, jnp.asarray(ids), NUM, mask=jnp.asarray(mask)) ** 2))(values)
        assert np.isfinite(grad).all()
        assert (np.asarray(grad)[~mask] == 0).all()


def test_softmax(case):
    data, ids, mask = case
    got = np.asarray(segments.segment_softmax(data, ids, NUM, mask=mask))
    for s in range(NUM):
        rows = (ids == s) & mask
        if rows.any():
            e = np.exp(data[rows] - data[rows].max(0))
            np.testing.assert_allclose(got[rows], e / e.sum(0), rtol=1e-5)
    assert (got[~mask] == 0).all()
    shifted = segments.segment_softmax(data + np.float32(1e4), ids, NUM, mask=mask)
    np.testing.assert_allclose(shifted, got, atol=2e-3)


def test_count(case):
    _, ids, mask = case
    np.testing.assert_array_equal(segments.segment_count(ids, NUM, mask=mask), [3, 0, 0, 2, 0])


def test_half_precision_accumulates_in_float32():
    data, ids = jnp.ones((4096, 1), jnp.bfloat16), jnp.zeros(4096, jnp.int32)
    total = segments.segment_sum(data, ids, 1)
    assert total.dtype == jnp.bfloat16
    assert float(total[0, 0]) == 4096.0  # a bfloat16 accumulator would stop at 256
    assert float(segments.segment_mean(data, ids, 1)[0, 0]) == 1.0
    assert float(segments.segment_norm(data, ids, 1)[0, 0]) == 64.0


def test_std_survives_a_large_mean():
    x = jnp.asarray(np.float32(1e4) + np.array([[-1.0], [1.0]], np.float32))
    np.testing.assert_allclose(segments.segment_std(x, jnp.zeros(2, jnp.int32), 1)[0, 0], 1.0, rtol=0.01)


def test_errors():
    x, ids = jnp.ones((3, 2)), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="segment_ids"):
        segments.segment_sum(x, jnp.zeros(2, jnp.int32), 2)
    with pytest.raises(ValueError, match="integers"):
        segments.segment_mean(x, jnp.zeros(3), 2)
    with pytest.raises(ValueError, match="True = real"):
        segments.segment_sum(x, ids, 2, mask=jnp.ones(3))
    with pytest.raises(ValueError, match="floating"):
        segments.segment_max(jnp.ones((3, 2), jnp.int32), ids, 2)
