"""Sorted frames of sets and graphs: explicit projectors, brute force over S_n, sampling, padding, an old fault."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import representations as rep
from equivariant_jax.frames import (
    GINConfig,
    frame_average,
    gin_apply,
    gin_init,
    laplacian_frames,
    laplacian_keys,
    node_identifiers,
    sorted_frames,
)

exact = jax.jit(functools.partial(sorted_frames, num=24))


@functools.cache
def laplacian(num):
    return jax.jit(functools.partial(laplacian_frames, num_samples=num))


def graph(n, edges):
    a = np.zeros((n, n))
    for i, j in edges:
        a[i, j] = a[j, i] = 1
    return a


CYCLE = graph(6, [(i, (i + 1) % 6) for i in range(6)])
STAR = graph(5, [(0, i) for i in range(1, 5)])
PRISM = graph(6, [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5)])
K33 = graph(6, [(i, j) for i in range(3) for j in range(3, 6)])
# Trees of two triangles and of a square and a bridge: many equal eigenvalues, frames of moderate size.
BUTTERFLY = graph(5, [(0, 1), (1, 2), (2, 0), (0, 3), (3, 4), (4, 0)])
PATH = graph(6, [(i, i + 1) for i in range(5)])


def reference_keys(a):
    """Diagonals of projectors, one eigenspace after the other."""
    values, vectors = np.linalg.eigh(np.diag(a.sum(1)) - a)
    columns, start = [], 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] - values[i - 1] > 1e-6:
            basis = vectors[:, start:i]
            columns.append(np.diagonal(basis @ basis.T))
            start = i
    return np.stack(columns, axis=1)


def reference_frame(keys):
    """All permutations of S_n that sort the rows lexicographically."""
    rows = [tuple(np.round(row, 6) + 0.0) for row in keys]
    return {
        g for g in itertools.permutations(range(len(rows))) if all(rows[a] <= rows[b] for a, b in itertools.pairwise(g))
    }


def found(frames):
    return {tuple(g) for g, w in zip(np.asarray(frames.permutation), np.asarray(frames.weight), strict=True) if w > 0}


@pytest.mark.parametrize("a", [STAR, BUTTERFLY, PATH, PRISM], ids=["star", "butterfly", "path", "prism"])
def test_keys_and_frame_by_definition(a, x64):
    want = reference_keys(a)
    keys = laplacian_keys(jnp.asarray(a))
    np.testing.assert_allclose(keys.values[:, : want.shape[1]], want, atol=1e-12)
    assert not np.any(keys.values[:, want.shape[1] :])
    np.testing.assert_allclose(jnp.sum(keys.values, axis=1), 1.0, atol=1e-12)  # projectors add up to one
    assert float(keys.noise) < 1e-12 < 1e-3 < float(keys.gap)
    frame = reference_frame(want)
    frames = laplacian(720)(jnp.asarray(a))
    assert found(frames) == frame
    assert round(math.exp(float(frames.log_size))) == len(frame) == round(1 / float(frames.weight.max()))
    assert bool(frames.complete)


def test_the_group_acts_on_frames(x64):
    """`F(h X) = h F(X)` as sets, with `(h g)[k] = h[g[k]]`."""
    rng = np.random.default_rng(0)
    for a in (STAR, BUTTERFLY):
        h = rng.permutation(len(a))
        moved = np.zeros_like(a)
        moved[np.ix_(h, h)] = a  # entry i moves to place h[i]
        before = found(laplacian(24)(jnp.asarray(a)))
        after = found(laplacian(24)(jnp.asarray(moved)))
        assert after == {tuple(h[list(g)]) for g in before}


def test_sets_by_several_columns():
    keys = jnp.array([[1.0, 5.0], [0.0, 7.0], [1.0, 5.0], [1.0, 2.0]])
    assert found(exact(keys)) == {(1, 3, 0, 2), (1, 3, 2, 0)}


def test_tolerance_gap_and_noise():
    keys = jnp.array([[1.0], [1.0 + 1e-6], [0.5], [0.5 + 1e-3]])
    frames = exact(keys)
    assert found(frames) == {(2, 3, 0, 1), (2, 3, 1, 0)}
    assert 5e-7 < float(frames.noise) < 2e-6
    assert float(frames.gap) == pytest.approx(1e-3, rel=1e-2)
    coarse = sorted_frames(keys, num=24, tolerance=1e-2)
    assert len(found(coarse)) == 4


def phi(params, config, a, x):
    h = node_identifiers(jnp.concatenate([jnp.sum(a, -1)[:, None], x], axis=-1))
    return {
        "graph": gin_apply(params, h, a, config),
        "node": jnp.tanh(a @ x + jnp.cumsum(x, axis=0)),
        "pair": a * x[:, 0][None],
    }


def test_average_over_all_orders_by_a_loop(x64):
    """The law for three kinds of outputs, and the average by its definition."""
    config = GINConfig(2 + 6, width=8, depth=2)
    params = gin_init(jax.random.key(0), config, dtype=jnp.float64)
    kinds = {"graph": "scalar", "node": "node", "pair": "pair"}
    run = jax.jit(
        lambda a, x: frame_average(
            functools.partial(phi, params, config),
            laplacian_frames(a, num_samples=8),
            in_types=("pair", "node"),
            out_types=kinds,
        )(a, x)
    )
    rng = np.random.default_rng(1)
    x, a = rng.standard_normal((6, 1)), PATH
    out = run(jnp.asarray(a), jnp.asarray(x))
    total = {"graph": 0.0, "node": 0.0, "pair": 0.0}
    frame = [np.array(g) for g in reference_frame(reference_keys(a))]
    for g in frame:
        y = jax.tree.map(np.asarray, phi(params, config, jnp.asarray(a[np.ix_(g, g)]), jnp.asarray(x[g])))
        back = np.argsort(g)
        total["graph"] += y["graph"] / len(frame)
        total["node"] += y["node"][back] / len(frame)
        total["pair"] += y["pair"][np.ix_(back, back)] / len(frame)
    for name, want in total.items():
        np.testing.assert_allclose(out[name], want, atol=1e-12)
    h = rng.permutation(6)
    moved = run(jnp.asarray(a[np.ix_(h, h)]), jnp.asarray(x[h]))
    np.testing.assert_allclose(moved["graph"], out["graph"], atol=1e-12)
    np.testing.assert_allclose(moved["node"], out["node"][h], atol=1e-12)
    np.testing.assert_allclose(moved["pair"], out["pair"][np.ix_(h, h)], atol=1e-12)


def test_kinds_are_representations():
    frames = exact(jnp.array([[1.0], [0.0], [1.0]]))
    x, a = jnp.arange(6.0).reshape(3, 2), jnp.arange(9.0).reshape(3, 3)
    for kind, representation, value in (("node", rep.Permuted((0,)), x), ("pair", rep.Permuted((0, 1)), a)):
        pulled = frames.pull(kind, value)
        np.testing.assert_array_equal(pulled, frames.pull(representation, value))
        np.testing.assert_array_equal(frames.push(kind, pulled), np.broadcast_to(value, pulled.shape))
        np.testing.assert_array_equal(frames.push(representation, pulled), np.broadcast_to(value, pulled.shape))


@functools.cache
def sampled(num, mode="sample"):
    return jax.jit(lambda keys, key: sorted_frames(keys, num=num, mode=mode, key=key))


def test_samples_are_uniform():
    """All elements of a frame of twelve, equally often; elements of one call and of one batch are independent."""
    keys = jnp.array([[1.0], [0.0], [1.0], [0.0], [1.0]])
    frames = sampled(3000)(keys, jax.random.key(0))
    draws = [tuple(g) for g in np.asarray(frames.permutation)]
    expected = reference_frame(np.asarray(keys))
    assert set(draws) == expected
    assert len(expected) == 12
    counts = np.array([draws.count(g) for g in expected])
    assert np.sum((counts - 250) ** 2 / 250) < 31.3  # 0.999 of chi^2 with 11 degrees
    assert not bool(frames.complete)
    np.testing.assert_allclose(jnp.sum(frames.weight), 1.0, rtol=1e-5)
    batch = sampled(1)(jnp.zeros((64, 4, 1)), jax.random.key(1)).permutation[:, 0]
    assert len(np.unique(np.asarray(batch), axis=0)) > 10


def test_sample_of_an_average_is_unbiased():
    keys = jnp.array([[1.0], [0.0], [1.0], [0.0], [1.0]])
    x = jnp.array([0.3, -1.0, 0.2, 2.0, 1.0])

    def f(x):
        return jnp.sum(jnp.tanh(x * jnp.arange(5.0)))

    frames = exact(keys)
    mean = frame_average(f, frames, in_types=("node",))(x)
    one = jax.jit(jax.vmap(lambda k: frame_average(f, frames, in_types=("node",), reduce="sample", key=k)(x)))
    draws = np.asarray(one(jax.random.split(jax.random.key(2), 4096)))
    assert abs(draws.mean() - float(mean)) < 4 * draws.std() / 64
    assert draws.std() > 1e-2


def test_exact_refuses_what_does_not_fit_and_auto_samples():
    keys = jnp.zeros((5, 1))
    frames = exact(keys)  # 120 elements, room for 24
    assert not bool(frames.complete)
    assert bool(jnp.all(jnp.isnan(frames.weight)))
    value = frame_average(jnp.sum, frames, in_types=("node",))(jnp.ones(5))
    assert bool(jnp.isnan(value))
    assert bool(
        jnp.isnan(
            frame_average(jnp.sum, frames, in_types=("node",), reduce="sample", key=jax.random.key(0))(jnp.ones(5))
        )
    )
    auto = sampled(24, "auto")(keys, jax.random.key(0))
    np.testing.assert_allclose(jnp.sum(auto.weight), 1.0, rtol=1e-5)
    assert not bool(auto.complete)
    assert len(np.unique(np.asarray(auto.permutation), axis=0)) > 12
    fits = jnp.array([[0.0], [0.0], [1.0], [2.0], [3.0]])
    auto = sampled(24, "auto")(fits, jax.random.key(0))
    assert bool(auto.complete)
    assert found(auto) == found(exact(fits))


def test_padding():
    """Padding is sorted last and changes no real output, whatever stands in it."""
    a = jnp.asarray(BUTTERFLY, jnp.float32)
    run = laplacian(24)
    plain = run(a, jnp.ones(5, bool))
    mask = jnp.arange(8) < 5
    for fill in (0.0, 3.0, np.nan):
        wide = jnp.full((8, 8), fill).at[:5, :5].set(a)
        frames = run(wide, mask)
        assert {g[:5] for g in found(frames)} == found(plain)
        assert {g[5:] for g in found(frames)} == {(5, 6, 7)}
        assert float(frames.log_size) == pytest.approx(float(plain.log_size))
        np.testing.assert_allclose(laplacian_keys(wide, mask).values[:5, :5], laplacian_keys(a).values, atol=1e-6)


def test_exact_equality_and_two_decimals_are_not_invariant():
    """The published keys: float32 eigenvalues merged only when equal in all bits, keys rounded to two decimals."""

    def published(a):
        # Not NumPy's, which computes in float64.
        laplacian = jnp.asarray(np.diag(a.sum(1)) - a, jnp.float32)
        values, vectors = map(np.asarray, jnp.linalg.eigh(laplacian))
        columns = []
        for value in np.unique(values):
            basis = vectors[:, values == value]
            columns.append(np.sqrt(np.sum(basis**2, axis=1)))
        keys = np.round(np.stack(columns, axis=1), 2)
        return keys[np.lexsort(keys.T[::-1])]

    rng = np.random.default_rng(0)
    # A ring of rings has eigenvalues of multiplicity two to five.
    n, edges = 24, []
    for c in range(4):
        edges += [(6 * c + i, 6 * c + (i + 1) % 6) for i in range(6)] + [(6 * c, 6 * ((c + 1) % 4))]
    a = graph(n, edges)
    moved = []
    for _ in range(8):
        h = rng.permutation(n)
        moved.append(a[np.ix_(h, h)])
    reference = published(a)
    broken = [
        b for b in moved if published(b).shape != reference.shape or np.abs(published(b) - reference).max() > 0.02
    ]
    assert broken
    every = jax.jit(laplacian_keys)(jnp.asarray(np.stack([a, *moved]), jnp.float32))
    rows = np.asarray(every.values)
    rows = np.stack([r[np.lexsort(np.round(r.T[::-1], 3))] for r in rows])
    assert np.abs(rows - rows[0]).max() < 1e-4
    sizes = laplacian(1)(jnp.asarray(np.stack([a, *moved]), jnp.float32)).log_size
    assert float(jnp.ptp(sizes)) == 0


def test_own_weight_of_a_node_must_not_be_one(x64):
    """The prism and K33 have the same I + A up to permutations of rows and columns: one GIN sees them, another not."""
    config = GINConfig(7, width=16, depth=3)
    params = gin_init(jax.random.key(0), config, dtype=jnp.float64)
    assert len({float(layer["epsilon"]) for layer in params["layers"]}) == 3

    @jax.jit
    def outputs(params):
        def one(a):
            f = frame_average(
                lambda a: gin_apply(params, node_identifiers(jnp.sum(a, -1)[:, None]), a, config),
                laplacian_frames(a, num_samples=720),
                in_types=("pair",),
            )
            return f(a)

        return jax.vmap(one)(jnp.asarray(np.stack([PRISM, K33])))

    def apart(params):
        y = outputs(params)
        return float(jnp.abs(y[0] - y[1]).sum())

    equal = {**params, "layers": [{**layer, "epsilon": jnp.zeros((), jnp.float64)} for layer in params["layers"]]}
    assert apart(equal) < 1e-12
    assert apart(params) > 1e-3


def test_bfloat16_and_batches():
    a = jnp.asarray(np.stack([PATH, CYCLE]), jnp.bfloat16)
    assert jax.eval_shape(laplacian_keys, a).values.dtype == jnp.bfloat16
    frames = laplacian(2)(a)
    assert frames.permutation.shape == (2, 2, 6)
    single = laplacian(2)(a[0])
    np.testing.assert_array_equal(frames.permutation[0], single.permutation)


def test_no_call_back_under_jit():
    program = jax.make_jaxpr(functools.partial(laplacian_frames, num_samples=4))(jnp.asarray(PATH, jnp.float32))
    assert "callback" not in str(program)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sorted_frames(jnp.ones(3)), "keys"),
        (lambda: sorted_frames(jnp.ones((3, 1), jnp.int32)), "keys"),
        (lambda: sorted_frames(jnp.ones((3, 1)), jnp.ones(3)), "mask"),
        (lambda: sorted_frames(jnp.ones((3, 1)), mode="sample"), "random key"),
        (lambda: sorted_frames(jnp.ones((3, 1)), num=0), "num of at least 1"),
        (lambda: laplacian_keys(jnp.ones((3, 2))), "adjacency"),
        (lambda: laplacian_keys(jnp.ones((3, 3), jnp.int32)), "floating"),
        (lambda: laplacian_frames(jnp.ones((3, 3)), jnp.ones(2, bool)), "mask"),
        (lambda: exact(jnp.ones((3, 1))).pull("position", jnp.ones(3)), "got kind 'position'"),
        (lambda: exact(jnp.ones((3, 1))).pull("pair", jnp.ones((3, 2))), "got pair of shape"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
