"""Distance coordinates: invariance, distances kept, both routes and plain NumPy agree, policies, gradients, padding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.data import procedural_shapes
from equivariant_jax.frames import frame_average, pca_frames
from equivariant_jax.frames.distance_coordinates import (
    distance_coordinates,
    similarity_frames,
    with_invariant_inputs,
)
from equivariant_jax.frames.scaling import classical_mds, odd_signs, pairwise_distances

OPTIONS = ("scale", "signs", "chirality", "degenerate", "stop_gradient")
coordinates = jax.jit(distance_coordinates, static_argnames=OPTIONS)
scaled = jax.jit(classical_mds, static_argnames="k")


def similarity(seed, d, *, proper=False):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    if proper and np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return 10 ** rng.uniform(-3, 3), q, rng.uniform(-100, 100, d)


def cloud(seed, n=7, d=3):
    """Generic: gaps and odd moments are large."""
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n, d)) ** 1.5 * np.linspace(1.0, 2.5, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]


def slow_coordinates(x):
    """The formula, in NumPy: n x n, root mean square of all pairs, third moments positive."""
    n = len(x)
    square = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
    square = square / square.mean()
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centre @ square @ centre / 2)
    order = np.argsort(values)[::-1][: x.shape[1]]
    h = vectors[:, order] * np.sqrt(values[order])
    return h * np.sign(np.sum(h**3, axis=0))


@pytest.mark.parametrize("d", [2, 3])
def test_both_routes_are_the_formula(x64, d):
    x = cloud(d, 8, d)
    want = slow_coordinates(x)
    h, frames = coordinates(x)
    np.testing.assert_allclose(h, want, atol=1e-12)
    found = scaled(pairwise_distances(jnp.asarray(x) / frames.scale, squared=True), k=d)
    np.testing.assert_allclose(found.coordinates, want, atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, frames.eigenvalues, rtol=1e-12)
    assert float(found.lost) < 1e-12
    np.testing.assert_allclose(pairwise_distances(h), pairwise_distances(jnp.asarray(x)) / frames.scale, atol=1e-12)


def test_similarities_and_permutations_do_not_show(x64):
    for seed in range(4):
        x = cloud(seed, 8, 3)
        (s, q, t), order = similarity(seed, 3), np.random.default_rng(seed).permutation(8)
        h, frames = coordinates(x)
        moved, other = coordinates((s * x @ q.T + t)[order])
        # Rounding of points of size 100 beside a cloud of size s, over the gap.
        limit = 256 * np.finfo(float).eps * (1 + 100 / s) / float(frames.gap)
        np.testing.assert_allclose(moved, h[order], atol=limit)
        np.testing.assert_allclose(other.scale, s * frames.scale, rtol=limit)
        np.testing.assert_allclose(np.abs(other.oddness), np.abs(frames.oddness), rtol=100 * limit)


def test_points_far_away_keep_their_digits():
    """In float32, 1,000 sizes from the origin; squares expanded as |x|^2 + |y|^2 - 2 x.y would keep none."""
    x = cloud(1, 8, 3).astype(np.float32)
    far = x + np.float32(1000.0)
    want = slow_coordinates(far.astype(float))
    np.testing.assert_allclose(coordinates(far)[0], want, atol=1e-5)
    for size in (1e-25, 1e25):  # squares would be zero or infinite
        np.testing.assert_allclose(coordinates(x * np.float32(size))[0], coordinates(x)[0], atol=1e-5)


def test_spectra_of_distances_that_are_not_euclidean(x64):
    steps = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    ring = np.minimum(steps, 5 - steps).astype(float)
    found = scaled(jnp.asarray(ring**2), k=5)
    np.testing.assert_allclose(found.eigenvalues, [2.92705, 2.92705, 0, -0.42705, -0.42705], atol=5e-6)
    np.testing.assert_allclose(found.lost, 0.8541 / (5.8541 + 0.8541), atol=1e-5)
    star = np.full((4, 4), 2.0) - 2 * np.eye(4)
    star[0, 1:] = star[1:, 0] = 1.0
    found = scaled(jnp.asarray(star**2), k=4)
    np.testing.assert_allclose(found.eigenvalues, [2, 2, 0, -0.25], atol=1e-12)
    np.testing.assert_array_equal(found.coordinates[:, 2:], 0.0)
    octahedron = jnp.asarray(np.concatenate([np.eye(3), -np.eye(3)]))
    _, frames = coordinates(octahedron, scale="none")
    np.testing.assert_allclose(frames.eigenvalues, [2, 2, 2], atol=1e-12)
    assert float(frames.gap) < 1e-12
    assert bool(jnp.isnan(coordinates(octahedron, degenerate="nan")[0]).all())


def test_padding_and_weights():
    x, k = cloud(2, 6, 3).astype(np.float32), 4
    mask = np.arange(6) < k
    padded = np.where(mask[:, None], x, np.float32(1e6))
    for scale in ("rms", "max"):
        want, frames = coordinates(x[:k], scale=scale)
        h, other = coordinates(padded, mask, scale=scale)
        np.testing.assert_allclose(h[:k], want, atol=1e-5)
        np.testing.assert_array_equal(h[k:], 0.0)
        np.testing.assert_allclose(other.oddness, frames.oddness, rtol=1e-4)
    square = pairwise_distances(jnp.asarray(padded), jnp.asarray(mask), squared=True)
    np.testing.assert_array_equal(square[k:], 0.0)
    garbage = np.where(mask[:, None] & mask, square, np.float32(1e12))
    found = scaled(garbage, mask, k=3)
    want = scaled(square[:k, :k], k=3)
    np.testing.assert_allclose(found.coordinates[:k], want.coordinates, atol=1e-5)
    np.testing.assert_array_equal(found.coordinates[k:], 0.0)
    # A point of weight two is two points.
    twice = np.concatenate([x, x[:1]])
    weights = np.asarray([2, 1, 1, 1, 1, 1], np.float32)
    np.testing.assert_allclose(coordinates(x, weights=weights)[0], coordinates(twice)[0][:6], atol=1e-5)
    largest = np.sqrt(pairwise_distances(jnp.asarray(x), squared=True).max())
    np.testing.assert_allclose(coordinates(x, scale="max")[1].scale, largest, rtol=1e-5)


def network(params, x):
    """Invariant under permutations, and under nothing else."""
    return jnp.sum(jnp.tanh(x @ params + 0.3), axis=-2)


PARAMS = np.asarray(np.random.default_rng(0).normal(size=(3, 4)) * 2)


@functools.cache
def invariant(signs, chirality=False):
    return jax.jit(with_invariant_inputs(network, signs=signs, chirality=chirality))


def symmetric_cloud(seed):
    """Unchanged by a half turn about z: the third moments of two columns vanish, so do the fifth."""
    half = cloud(seed, 6, 3)
    return np.concatenate([half, half * np.array([-1.0, -1.0, 1.0])])


def balanced_cloud():
    """A cloud without symmetry whose first column has a third moment of zero: a bend of it is found by bisection."""
    straight = np.random.default_rng(4).normal(size=(12, 3)) * np.array([3.0, 1.0, 0.5])
    # Unlike its mirror image: the second coordinate tells the right from the left.
    straight[:, 1] += 2.0 * (straight[:, 0] > 1.0)

    def bent(bend):
        return straight + bend * np.outer(straight[:, 0] ** 2, [1.0, 0.3, 0.0])

    def moment(x):
        x = x - x.mean(axis=0)
        axis = np.linalg.eigh(x.T @ x)[1][:, -1]
        return np.mean((x @ axis * np.sign(axis[0])) ** 3)

    low, high = -0.5, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if moment(bent(middle)) < 0 else (low, middle)
    return bent(low)


def test_averages_are_exact_and_continuous_where_canonical_signs_are_not(x64):
    """A cloud whose first column has a third moment of almost zero: noise decides its sign."""
    x, rng = balanced_cloud(), np.random.default_rng(0)
    assert float(coordinates(x)[1].oddness[0]) < 1e-10
    logits = {signs: invariant(signs)(PARAMS, x) for signs in ("canonical", "average")}
    jumps = dict.fromkeys(logits, 0.0)
    for _ in range(8):
        jittered = x + 1e-3 * rng.normal(size=x.shape)
        assert float(coordinates(jittered)[1].oddness[0]) < 1e-2
        for signs, old in jumps.items():
            change = float(jnp.abs(invariant(signs)(PARAMS, jittered) - logits[signs]).max())
            jumps[signs] = max(old, change)
    assert jumps["canonical"] > 0.1
    assert jumps["average"] < 0.01
    s, q, t = similarity(1, 3)
    moved = invariant("average")(PARAMS, s * x @ q.T + t)
    np.testing.assert_allclose(moved, logits["average"], atol=1e-8)


def test_random_signs_are_one_of_all_and_uniform():
    x = cloud(5).astype(np.float32)
    every, _ = coordinates(x, signs="average")
    assert every.shape == (8, 7, 3)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.jit(jax.vmap(lambda key: distance_coordinates(jnp.asarray(x), signs="random", key=key)[0]))(keys)
    distance = jnp.abs(drawn[:, None] - every[None]).max(axis=(-2, -1))
    assert float(distance.min(axis=1).max()) < 1e-6
    counts = np.bincount(np.asarray(distance.argmin(axis=1)), minlength=8)
    assert counts.min() > 50 - 5 * np.sqrt(50)
    batch, _ = coordinates(np.stack([x] * 32), signs="random", key=jax.random.key(1))
    assert len(np.unique(np.asarray(batch[:, 0]).round(4), axis=0)) > 4  # each cloud draws its own


def test_chirality_tells_mirror_images_apart(x64):
    x = cloud(6)
    mirrored = x * np.array([1.0, 1.0, -1.0])
    s, q, t = similarity(0, 3, proper=True)
    for signs in ("canonical", "average"):
        blind, seeing = invariant(signs), invariant(signs, True)
        np.testing.assert_allclose(blind(PARAMS, mirrored), blind(PARAMS, x), atol=1e-10)
        np.testing.assert_allclose(seeing(PARAMS, s * x @ q.T + t), seeing(PARAMS, x), atol=1e-8)
        assert float(jnp.abs(seeing(PARAMS, mirrored) - seeing(PARAMS, x)).max()) > 1e-2
    # Solvers return axes of either hand.
    _, frames = coordinates(np.stack([cloud(seed) for seed in range(8)]), signs="average", chirality=True)
    np.testing.assert_allclose(jnp.linalg.det(frames.rotation), np.ones((8, 4)), atol=1e-12)


def test_equivariant_outputs_move_with_the_cloud(x64):
    """Every kind of input and output; without the scale, this is frame averaging."""
    rng = np.random.default_rng(0)
    x, v, u = cloud(7), rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
    w = rng.normal(size=(3, 3))

    def function(w, x, v, u, size):
        mixed = jnp.tanh(x @ w + v) + u + size
        return {
            "scalar": mixed.sum(), "length": mixed.mean(), "position": mixed, "vector": mixed * x, "direction": u @ w,
            "tensor": x.T @ mixed,
        }  # fmt: skip

    kinds = {name: name for name in ("scalar", "length", "position", "vector", "direction", "tensor")}
    types = ("position", "vector", "direction", "length")
    size = np.asarray(0.7)
    for signs in ("canonical", "average"):
        wrapped = jax.jit(with_invariant_inputs(function, in_types=types, out_types=kinds, signs=signs))
        out = jax.tree.map(np.asarray, wrapped(w, x, v, u, size))
        s, q, t = similarity(2, 3)
        got = wrapped(w, s * x @ q.T + t, s * v @ q.T, u @ q.T, s * size)
        moved = {
            "scalar": out["scalar"], "length": s * out["length"], "position": s * out["position"] @ q.T + t,
            "vector": s * out["vector"] @ q.T, "direction": out["direction"] @ q.T, "tensor": q @ out["tensor"] @ q.T,
        }  # fmt: skip
        for name, value in moved.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-7, atol=1e-7 * np.abs(value).max(), err_msg=name)
    one = with_invariant_inputs(network, scale="none", signs="average")(PARAMS, x)
    # The same elements; principal components count columns the other way around.
    same = frame_average(lambda x: network(PARAMS[::-1], x), pca_frames(jnp.asarray(x)), in_types=("position",))(x)
    np.testing.assert_allclose(one, same, atol=1e-12)
    assert similarity_frames(jnp.asarray(x)).pick(jax.random.key(0)).rotation.shape == (1, 3, 3)


def test_leading_axes_and_masks_of_the_wrapper():
    x = np.stack([cloud(i) for i in range(3)]).astype(np.float32)
    mask = np.arange(7)[None] < np.array([7, 5, 6])[:, None]
    padded = np.where(mask[..., None], x, np.float32(1e6))
    sums = lambda params, x: jnp.sum(jnp.tanh(x @ params), axis=-2)  # noqa: E731
    params = PARAMS.astype(np.float32)
    for vectorized in (False, True):
        run = jax.jit(with_invariant_inputs(sums, signs="average", vectorized=vectorized))
        got = run(params, padded, mask=mask)
        for i, row in enumerate(mask):
            np.testing.assert_allclose(got[i], run(params, x[i][row]), atol=1e-5)


def test_gradients_are_derivatives(x64):
    x, direction = jnp.asarray(cloud(8)), jnp.asarray(np.random.default_rng(3).normal(size=(7, 3)))
    for scale in ("rms", "max", "none"):
        value = jax.jit(lambda x: jnp.sum(jnp.sin(3 * coordinates(x, scale=scale)[0])))  # noqa: B023
        slope, step = jax.jit(jax.grad(value))(x), 1e-6
        numeric = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(slope, direction), numeric, rtol=1e-6)
    np.testing.assert_allclose(slope.sum(axis=0), 0.0, atol=1e-10)  # no force on the whole
    frozen = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(3 * coordinates(x, stop_gradient=True)[0]))))(x)
    assert float(jnp.abs(frozen - slope).max()) > 0.1


slope_of_squares = jax.jit(
    jax.grad(
        lambda x, mask: (
            jnp.sum(jnp.square(distance_coordinates(x, mask, scale="max")[0] @ jnp.diag(jnp.arange(1.0, 4.0))))
            + jnp.sum(jnp.sin(scaled(pairwise_distances(x, mask, squared=True), mask, k=3).coordinates))
        )
    )
)


@pytest.mark.parametrize("case", ["planar", "line", "point", "equal", "empty"])
def test_gradients_are_finite_at_hard_clouds(case):
    x, mask = cloud(9, 6).astype(np.float32), np.full(6, case != "empty")
    x = {
        "planar": x * np.array([1, 1, 0], np.float32), "line": x * np.array([1, 0, 0], np.float32), "point": x * 0 + 3,
        "equal": np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32), "empty": x,
    }[case]  # fmt: skip
    h, _ = coordinates(x, mask)
    assert bool(jnp.isfinite(h).all())
    assert bool(jnp.isfinite(slope_of_squares(x, mask)).all())


def test_odd_signs_fall_back_where_moments_vanish(x64):
    weight = jnp.ones(5)
    skewed = np.array([-3.0, 1, 1, 1, 0])
    even = np.array([-2.0, 2, -1, 1, 0])
    signs, moments = odd_signs(jnp.asarray(np.stack([skewed, -skewed, even], axis=-1)), weight)
    assert signs.tolist()[:2] == [-1.0, 1.0]
    np.testing.assert_allclose(moments[2], 0.0, atol=1e-12)
    h, _ = coordinates(symmetric_cloud(3))
    again, _ = coordinates(symmetric_cloud(3)[::-1])
    # As sets the two are equal, whichever of the equivalent signs was taken.
    distance = np.linalg.norm(np.asarray(h)[:, None] - np.asarray(again)[None], axis=-1)
    assert distance.min(axis=1).max() < 1e-9


def test_the_law_fails_without_the_rule_for_signs(x64):
    """Axes alone, without the rule, are not invariant: the test above would notice."""
    x = cloud(0, 8, 3)
    found = []
    for seed in range(8):
        s, q, t = similarity(seed, 3)
        moved = jnp.asarray(s * x @ q.T + t)
        frames = similarity_frames(moved)
        axes = pca_frames(moved).rotation[0, :, ::-1]
        found.append(np.asarray((moved - frames.translation[None]) @ axes / frames.scale))
    spread = np.abs(np.stack(found) - found[0]).max()
    patterns = [np.abs(f - found[0] * signs).max() for f in found for signs in itertools.product((1, -1), repeat=3)]
    assert spread > 0.1
    assert sum(p < 1e-8 for p in patterns) == len(found)


def test_labels_learned_upright_hold_in_any_pose():
    """Least squares on pooled random features: half a second of learning, in which all depends on the input."""
    names = ("cone", "torus", "cross", "arch")
    train, _, labels = procedural_shapes(0, 160, 64, names)
    test, _, truth = procedural_shapes(1, 80, 64, names)
    turns = np.linalg.qr(np.random.default_rng(0).normal(size=(80, 3, 3)))[0]
    moved = (3 * np.einsum("bnd,bed->bne", test, turns) + 1).astype(np.float32)
    kernel = (np.random.default_rng(1).normal(size=(3, 60)) * 3).astype(np.float32)

    def accuracy(seen, clouds):
        def features(x):
            return np.asarray(jnp.mean(jnp.cos(seen(x) @ kernel + np.arange(60, dtype=np.float32)[None, None]), axis=1))

        weights = np.linalg.lstsq(features(train), np.eye(4)[labels] - 0.25, rcond=1e-3)[0]
        return np.mean((features(clouds) @ weights).argmax(axis=-1) == truth)

    raw, invariant = lambda x: jnp.asarray(x), lambda x: coordinates(x)[0]
    assert accuracy(raw, test) > 0.9
    assert accuracy(raw, moved) < 0.6
    assert accuracy(invariant, moved) > 0.9
    assert accuracy(invariant, moved) == accuracy(invariant, test)


def test_wrong_input_is_named():
    x = jnp.ones((5, 3))
    for options, message in (
        ({"scale": "mean"}, "rms"), ({"signs": "both"}, "canonical"), ({"signs": "random"}, "key"),
        ({"degenerate": "random"}, "key"), ({"mask": jnp.ones(4, bool)}, "mask"), ({"mask": jnp.ones(5)}, "mask"),
        ({"weights": jnp.ones(5, jnp.int32)}, "weights"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            distance_coordinates(x, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at most 12"):
        distance_coordinates(jnp.ones((5, 13)))
    with pytest.raises(ValueError, match="floating"):
        distance_coordinates(jnp.ones((5, 3), jnp.int32))
    with pytest.raises(ValueError, match="position"):
        with_invariant_inputs(network, in_types=("vector",))
    with pytest.raises(ValueError, match="one kind"):
        with_invariant_inputs(network)(PARAMS, x, x)
    with pytest.raises(ValueError, match="length"):
        with_invariant_inputs(network, out_types="spin")(jnp.ones((3, 4)), x)
    for wrong in ((jnp.ones((4, 5)), None, 2), (jnp.ones((4, 4)), None, 5), (jnp.ones((4, 4)), jnp.ones(3, bool), 2)):
        with pytest.raises(ValueError, match="expected"):
            classical_mds(*wrong)
