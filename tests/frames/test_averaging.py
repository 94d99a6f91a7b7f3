"""Frames of point clouds and averages over them: laws, a NumPy reference, degenerate clouds, gradients, old faults."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.frames import FrameAveraged, frame_average, pca_frames

CLOUDS, POINTS = 256, 32
KINDS = {"position": "position", "vector": "vector", "scalar": "scalar", "tensor": "tensor"}


def clouds(d, number=CLOUDS, points=POINTS, seed=0):
    """Points, vectors, orthogonal matrices (half of them reflections) and shifts; NumPy float64."""
    rng = np.random.default_rng(seed)
    x, v = rng.standard_normal((2, number, points, d))
    q, r = np.linalg.qr(rng.standard_normal((number, d, d)))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    q[..., 0] *= (np.sign(np.linalg.det(q)) * np.where(np.arange(number) % 2, 1, -1))[:, None]
    return x, v, q, rng.standard_normal((number, 1, d)) * 3


def moved(x, q, shift):
    return np.einsum("bni,bji->bnj", x, q) + shift


def phi(xp, x, v, dtype):
    """A network with no symmetry at all: outputs of four kinds for `[n, d]` and `[n, d]`."""
    d = x.shape[-1]
    rng = np.random.default_rng(5)
    a, b, c = (rng.standard_normal((d, d * d)).astype(dtype) for _ in range(3))
    h = xp.tanh(x @ a + v @ b + xp.tanh(x @ c).sum(0)[None] + 0.5)
    return {"position": h[:, :d], "vector": h[:, -d:], "scalar": xp.sum(h * h[:, ::-1]), "tensor": h.reshape(-1, d, d)}


@functools.cache
def averaged(group, **options):
    def one(x, v):
        frames = pca_frames(x, group=group, **options)
        f = functools.partial(phi, jnp, dtype=x.dtype)
        return frame_average(f, frames, in_types=("position", "vector"), out_types=KINDS)(x, v)

    return jax.jit(one)


def elements(x, group):
    """The frame by its definition, one element after the other."""
    d = x.shape[-1]
    t = x.mean(0) if group in ("E", "SE") else np.zeros(d)
    v = np.linalg.eigh((x - t).T @ (x - t))[1]
    every = [v * np.array(signs) for signs in itertools.product((1.0, -1.0), repeat=d)]
    return [(r, t) for r in every if group in ("O", "E") or np.linalg.det(r) > 0]


def reference(x, v, group):
    found = {kind: [] for kind in KINDS}
    for r, t in elements(x, group):
        y = phi(np, (x - t) @ r, v @ r, x.dtype)
        found["position"].append(y["position"] @ r.T + t)
        found["vector"].append(y["vector"] @ r.T)
        found["scalar"].append(y["scalar"])
        found["tensor"].append(r @ y["tensor"] @ r.T)
    return {kind: np.mean(values, axis=0) for kind, values in found.items()}


def defect(out, turned, q, shift):
    """Largest difference between outputs of moved clouds and moved outputs, for each cloud."""
    scale = max(1.0, float(np.abs(out["scalar"]).max()))
    parts = [
        (turned["position"] - moved(out["position"], q, shift)).reshape(len(q), -1),
        (turned["vector"] - moved(out["vector"], q, 0.0)).reshape(len(q), -1),
        (turned["scalar"] - out["scalar"])[:, None] / scale,
        (turned["tensor"] - np.einsum("bij,bnjk,blk->bnil", q, out["tensor"], q)).reshape(len(q), -1),
    ]
    return np.abs(np.concatenate(parts, axis=1)).max(axis=1)


def both(group, d, dtype, seed=0, **options):
    x, v, q, shift = clouds(d, seed=seed)
    shift = shift if group in ("E", "SE") else 0 * shift
    run = averaged(group, **options)
    arguments = [(x, v), (moved(x, q, shift), moved(v, q, 0.0))]
    out, turned = (jax.tree.map(np.asarray, run(*(jnp.asarray(a, dtype) for a in pair))) for pair in arguments)
    return defect(out, turned, q, shift), np.linalg.det(q) > 0, out, (x, v)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_law_and_reference(d, x64):
    """Must show 1 and 2: the law to 1e-10, group averaging over the same matrices to 1e-12."""
    error, _, out, (x, v) = both("E", d, jnp.float64)
    assert error.max() <= 1e-10
    for i in range(4):
        for kind, want in reference(x[i], v[i], "E").items():
            assert np.abs(out[kind][i] - want).max() <= 1e-12 * max(1.0, np.abs(want).max()), kind


def test_rotations_see_the_hand(x64):
    """SE frames keep the law for rotations, and differ on mirror images, where E frames do not."""
    error, proper, out, (x, v) = both("SE", 3, jnp.float64)
    assert error[proper].max() <= 1e-10
    assert np.median(error[~proper]) > 1e-3
    for i in range(2):
        for kind, want in reference(x[i], v[i], "SE").items():
            assert np.abs(out[kind][i] - want).max() <= 1e-12 * max(1.0, np.abs(want).max()), kind


def test_law_in_float32():
    d = 3
    error = both("E", d, jnp.float32)[0]
    gap = np.asarray(jax.jit(pca_frames)(jnp.asarray(clouds(d)[0], jnp.float32)).gap)
    assert (gap >= 1e-3).sum() > 0.9 * CLOUDS
    assert error[gap >= 1e-3].max() <= 1e-4


@pytest.mark.parametrize("group", ["O", "SO"])
def test_about_the_origin(group, x64):
    x, v, _, _ = clouds(3, 2)
    frames = pca_frames(jnp.asarray(x), group=group)
    assert not np.any(frames.translation)
    assert frames.rotation.shape == (2, 8 if group == "O" else 4, 3, 3)
    out = averaged(group)(jnp.asarray(x), jnp.asarray(v))
    for kind, want in reference(x[0], v[0], group).items():
        np.testing.assert_allclose(out[kind][0], want, rtol=1e-11, atol=1e-12)


def test_elements_are_whole_eigenvectors_of_determinant_one(x64):
    """Published code slices rows of the eigenvector matrix where columns are meant, and leaves SO(3)."""
    x = jnp.asarray(clouds(3, 16)[0])
    frames = jax.jit(functools.partial(pca_frames, group="SE"))(x)
    centred = x - x.mean(1, keepdims=True)
    c = jnp.einsum("bni,bnj->bij", centred, centred)
    r = frames.rotation
    np.testing.assert_allclose(jnp.linalg.det(r), 1.0, atol=1e-12)
    np.testing.assert_allclose(jnp.swapaxes(r, -1, -2) @ r, np.broadcast_to(np.eye(3), r.shape), atol=1e-12)
    np.testing.assert_allclose(c[:, None] @ r, r * frames.eigenvalues[:, None, None], atol=1e-10)
    assert bool(jnp.all(jnp.diff(frames.eigenvalues, axis=-1) > 0))  # ascending: part of the definition
    assert len({tuple(np.round(m.ravel(), 6)) for m in np.asarray(r[0])}) == 4


def test_a_choice_of_one_sign_by_column_sums_is_not_invariant(x64):
    """What a published variant does to save elements; a random element is right in distribution, this is not."""

    def chosen(x):
        t = x.mean(0)
        v = np.linalg.eigh((x - t).T @ (x - t))[1]
        return (x - t) @ (v * np.sign(v.sum(0)))

    x, _, q, _ = clouds(3, 32)
    differ = [np.abs(chosen(a @ b.T) - chosen(a)).max() > 1e-3 for a, b in zip(x, q, strict=True)]
    assert np.mean(differ) > 0.5
    x = jnp.asarray(x[0])
    drawn = jax.jit(jax.vmap(lambda k: pca_frames(x).pick(k).rotation[0]))(jax.random.split(jax.random.key(0), 2048))
    every = pca_frames(x).rotation
    which = np.argmin(np.abs(np.asarray(drawn)[:, None] - np.asarray(every)).sum((-1, -2)), axis=1)
    expected = 2048 / 8
    assert np.sum((np.bincount(which, minlength=8) - expected) ** 2 / expected) < 24.3  # 0.999 of chi^2 with 7 degrees


def test_far_from_the_origin(x64):
    """A position gets its centre back, and loses no digits to it."""
    x, v, _, _ = clouds(3, 4)
    run = averaged("E")
    near, far = run(jnp.asarray(x), jnp.asarray(v)), run(jnp.asarray(x + 1e4), jnp.asarray(v))
    np.testing.assert_allclose(far["position"] - 1e4, near["position"], atol=1e-9)
    np.testing.assert_allclose(far["vector"], near["vector"], atol=1e-9)


def test_padding_and_weights(x64):
    """Must show 2: padding changes nothing; integer weights are repetitions of points."""
    x, _, _, _ = clouds(3, 3, 6)

    @jax.jit
    def run(x, mask):
        frames = pca_frames(x, mask)

        def mean(x, real):
            h = jnp.where(real[:, None], jnp.tanh(x @ x[0][:, None] + x**3), 0.0)
            return h.sum(0) / real.sum().astype(h.dtype)

        return frame_average(mean, frames, in_types=("position", "scalar"), out_types="position")(x, mask)

    plain = run(jnp.asarray(x), jnp.ones((3, 6), bool))
    for fill in (0.0, 1e6, np.nan):
        padded = np.concatenate([x, np.full((3, 4, 3), fill)], axis=1)
        mask = np.arange(10) < 6
        out = run(jnp.asarray(padded), jnp.broadcast_to(jnp.asarray(mask), (3, 10)))
        assert float(jnp.abs(out - plain).max()) <= 1e-12  # must show: 1e-6
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    repeated = np.repeat(x, weights.astype(int), axis=1)
    a = pca_frames(jnp.asarray(x), weights=jnp.broadcast_to(jnp.asarray(weights), (3, 6)))
    b = pca_frames(jnp.asarray(repeated))
    np.testing.assert_allclose(a.eigenvalues, b.eigenvalues, rtol=1e-12)
    np.testing.assert_allclose(a.translation, b.translation, rtol=1e-12)


def test_named_kinds_are_representations(x64):
    x, v, _, _ = clouds(3, 1, 5)
    frames = jax.tree.map(lambda a: a[0], pca_frames(jnp.asarray(x)))
    tensor = jnp.asarray(np.einsum("ni,nj->nij", v[0], x[0]))
    pairs = {
        "position": (rep.Point(), jnp.asarray(x[0])),
        "vector": (rep.Vector(), jnp.asarray(v[0])),
        "tensor": (rep.TensorProduct(rep.Vector(-2), rep.Vector(-1)), tensor),
    }
    for name in ("position", "vector"):
        representation, a = pairs[name]
        np.testing.assert_allclose(frames.pull(name, a), frames.pull(representation, a), atol=1e-13)
        np.testing.assert_allclose(frames.push(name, frames.pull(name, a)), np.broadcast_to(a, (8, 5, 3)), atol=1e-13)
        np.testing.assert_allclose(
            frames.push(representation, frames.pull(name, a)), np.broadcast_to(a, (8, 5, 3)), atol=1e-13
        )
    a = pairs["tensor"][1]
    by_axes = jax.vmap(lambda r: jnp.einsum("ki,nkl,lj->nij", r, a, r))(frames.rotation)
    np.testing.assert_allclose(frames.pull("tensor", a), by_axes, atol=1e-13)


def test_periodic_cell(x64):
    """Cell vectors in rows move as vectors: an energy of positions and cell does not change."""
    x, _, q, shift = clouds(3, 8, 5)
    lattice = np.random.default_rng(1).standard_normal((8, 3, 3)) + 4 * np.eye(3)

    @jax.jit
    def energy(x, lattice):
        def f(x, lattice):
            fractional = x @ jnp.linalg.inv(lattice)
            return jnp.sum(jnp.sin(2 * jnp.pi * fractional) * jnp.tanh(x)) + jnp.sum(lattice**3)

        return frame_average(f, pca_frames(x), in_types=("position", "vector"))(x, lattice)

    a = energy(jnp.asarray(x), jnp.asarray(lattice))
    b = energy(jnp.asarray(moved(x, q, shift)), jnp.asarray(moved(lattice, q, 0.0)))
    np.testing.assert_allclose(a, b, atol=1e-10)


def test_extra_arguments_and_trees_of_kinds(x64):
    x, v, q, shift = clouds(3, 2, 5)
    kinds = ({"x": "position", "extra": ("vector", "scalar")}, "scalar")
    species = jnp.arange(10).reshape(2, 5)

    def f(inputs, species):
        v, s = inputs["extra"]
        out = jnp.tanh(inputs["x"] * (1 + species[:, None]).astype(jnp.float64)) + v**2 * s
        return {"v": out, "s": (out[:, 0] - out[:, 1]).sum()}

    @jax.jit
    def run(x, v):
        inputs = {"x": x, "extra": (v, jnp.asarray([2.0, 3.0]))}
        return frame_average(f, pca_frames(x), in_types=kinds, out_types={"v": "vector", "s": "scalar"})(
            inputs, species
        )

    a = run(jnp.asarray(x), jnp.asarray(v))
    b = run(jnp.asarray(moved(x, q, shift)), jnp.asarray(moved(v, q, 0.0)))
    np.testing.assert_allclose(b["v"], moved(a["v"], q, 0.0), atol=1e-10)
    np.testing.assert_allclose(b["s"], a["s"], atol=1e-10)


def test_vectorized_is_the_same(x64):
    x, v, _, _ = clouds(3, 3, 5)

    def f(x, v):
        return jnp.tanh(x) + jnp.sin(v) * x.sum(-2, keepdims=True)

    def run(vectorized):
        average = frame_average(
            f, pca_frames(jnp.asarray(x)), in_types=("position", "vector"), out_types="vector", vectorized=vectorized
        )
        return average(jnp.asarray(x), jnp.asarray(v))

    np.testing.assert_allclose(run(True), run(False), atol=1e-13)


@pytest.mark.parametrize("vectorized", [False, True])
def test_one_element_after_another_is_the_same(vectorized, x64):
    """Values and gradients; an input that all elements share; a tree of outputs."""
    x, v, _, _ = clouds(3, 3, 5)
    x, v, weight = jnp.asarray(x), jnp.asarray(v), jnp.linspace(1.0, 2.0, 15).reshape(3, 5, 1)
    seen = []

    def f(x, v, weight):
        seen.append(x.shape)
        y = jnp.tanh(weight * x) + jnp.sin(v) * x.sum(-2, keepdims=True)
        return {"vector": y, "scalar": y.sum((-2, -1))}

    def run(x, sequential):
        average = frame_average(
            f, pca_frames(x), in_types=("position", "vector", "scalar"),
            out_types={"vector": "vector", "scalar": "scalar"}, vectorized=vectorized, sequential=sequential,
        )  # fmt: skip
        return average(x, v, weight)

    def total(x, sequential):
        y = run(x, sequential)
        return jnp.sum(y["vector"] ** 3) + jnp.sum(jnp.sin(y["scalar"]))

    for one, all_at_once in zip(jax.tree.leaves(run(x, True)), jax.tree.leaves(run(x, False)), strict=True):
        np.testing.assert_allclose(one, all_at_once, atol=1e-13)
    np.testing.assert_allclose(jax.grad(total)(x, True), jax.grad(total)(x, False), atol=1e-11)
    if vectorized:
        assert set(seen) == {(3, 1, 5, 3), (3, 8, 5, 3)}


def test_sample_is_unbiased_and_independent(x64):
    x, v, _, _ = clouds(2, 3, 5)
    x, v = jnp.asarray(x), jnp.asarray(v)

    @jax.jit
    def sampled(key):
        f = functools.partial(phi, jnp, dtype=x.dtype)
        average = frame_average(
            f, pca_frames(x), in_types=("position", "vector"), out_types=KINDS, reduce="sample", key=key
        )
        return average(x, v)["vector"]

    draws = np.asarray(jax.vmap(sampled)(jax.random.split(jax.random.key(1), 512)))
    mean = np.asarray(averaged("E")(x, v)["vector"])
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * error + 1e-12)
    assert len({tuple(np.round(draw[0].ravel(), 9)) for draw in draws}) == 4
    # Clouds of a batch do not share the draw: all sixteen pairs of elements occur.
    first, second = (np.unique(draws[:, i, 0, 0].round(9), return_inverse=True)[1] for i in (0, 1))
    assert len(np.unique(4 * first + second)) == 16


SQUARE = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])


def test_degenerate_policies(x64):
    """A square has no axes: the gap says so, "nan" refuses, "random" keeps the law on average, "keep" breaks it."""
    x = jnp.asarray(SQUARE)
    angle = 0.7
    turned = x @ jnp.asarray([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    assert float(pca_frames(x).gap) < 1e-12
    assert bool(jnp.all(jnp.isnan(pca_frames(x, degenerate="nan").rotation)))
    assert bool(jnp.all(jnp.isfinite(pca_frames(x * jnp.asarray([1.0, 2.0])[None], degenerate="nan").rotation)))

    def f(x):
        return jnp.tanh(3 * x[:, 0]).max() + jnp.sum(x[:, 1] ** 4)

    def value(x, **options):
        return frame_average(f, pca_frames(x, **options), in_types=("position",))(x)

    assert abs(float(value(x) - value(turned))) > 1e-2
    run = jax.jit(
        jax.vmap(lambda x, k: value(x, degenerate="random", key=k, tolerance=1e-6), in_axes=(None, 0)),
    )
    keys = jax.random.split(jax.random.key(0), 4096)
    a, b = np.asarray(run(x, keys)), np.asarray(run(turned, keys[::-1]))
    assert abs(a.mean() - b.mean()) < 4 * (a.std() + b.std()) / np.sqrt(len(keys))
    assert a.std() > 1e-2


def test_random_turns_only_what_is_degenerate(x64):
    x = jnp.asarray(np.concatenate([np.pad(SQUARE, ((0, 0), (0, 1))), [[0, 0, 3.0], [0, 0, -3.0]]]))
    plain, mixed = pca_frames(x), pca_frames(x, degenerate="random", key=jax.random.key(3))
    np.testing.assert_allclose(jnp.abs(plain.rotation[0, :, 2]), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(jnp.abs(mixed.rotation[0, :, 2]), [0, 0, 1], atol=1e-12)
    assert float(jnp.abs(jnp.abs(mixed.rotation[0]) - jnp.abs(plain.rotation[0])).max()) > 1e-2
    r = mixed.rotation[0]
    np.testing.assert_allclose(r.T @ r, np.eye(3), atol=1e-12)


def test_single_points_are_finite(x64):
    for x in (jnp.zeros((1, 3)), jnp.ones((4, 3))):
        frames = pca_frames(x)
        assert float(frames.gap) == 0
        assert bool(jnp.all(jnp.isfinite(frames.rotation)))
    one = pca_frames(jnp.asarray([[1.0], [3.0]]))
    assert one.rotation.shape == (2, 1, 1)
    assert float(one.gap) == 1


def test_forces(x64):
    """The force of an averaged energy needs the derivative of the frame: finite differences say which one is right."""
    x, _, q, _ = clouds(3, 1, 6, seed=2)
    x, q = jnp.asarray(x[0]), jnp.asarray(q[0])

    def energy(x, stop_gradient=False):
        def f(x):
            return jnp.sum(jnp.sin(x[:, 0] + 2 * x[:, 1] + 0.5) * jnp.tanh(x @ x[0] + 1))

        return frame_average(f, pca_frames(x, stop_gradient=stop_gradient), in_types=("position",))(x)

    force = jax.jit(jax.grad(energy))(x)
    steps = 1e-5 * np.eye(18).reshape(18, 6, 3)
    both = jax.jit(jax.vmap(energy))(jnp.concatenate([x[None] + steps, x[None] - steps]))
    expected = (both[:18] - both[18:]).reshape(6, 3) / 2e-5
    np.testing.assert_allclose(force, expected, atol=1e-7)
    np.testing.assert_allclose(jax.grad(energy)(x @ q.T + 1), force @ q.T, atol=1e-9)
    frozen = jax.grad(lambda x: energy(x, stop_gradient=True))(x)
    assert float(jnp.abs(frozen - expected).max()) > 1e-2
    assert float(jnp.abs(force.sum(0)).max()) < 1e-9 < 1e-3 < float(jnp.abs(frozen.sum(0)).max())


def test_gradients_at_a_square_are_finite():
    def energy(x):
        return frame_average(lambda x: jnp.sum(jnp.sin(x[:, 0])), pca_frames(x), in_types=("position",))(x)

    assert bool(jnp.all(jnp.isfinite(jax.grad(energy)(jnp.asarray(SQUARE, jnp.float32)))))


def test_nothing_waits_for_the_host():
    """Under jit the program has no call-back, and the call moves nothing between host and device."""
    x = jnp.asarray(clouds(3, 2)[0], jnp.float32)

    def run(x, key):
        frames = pca_frames(x, degenerate="random", key=key)
        return frame_average(jnp.tanh, frames, in_types=("position",), out_types="vector")(x)

    key = jax.random.key(0)
    assert "callback" not in str(jax.make_jaxpr(run)(x, key))
    compiled = jax.jit(run)
    compiled(x, key)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(compiled(x, key))


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, v):
        h = nn.Dense(3)(nn.tanh(nn.Dense(8)(jnp.concatenate([x, v], -1))))
        return h, h[..., 0].sum(-1)


def test_module():
    x, v, q, shift = clouds(3, 2, 5)
    module = FrameAveraged(Head(), ("position", "vector"), ("position", "scalar"))
    arguments = [jnp.asarray(a, jnp.float32) for a in (x, v)]
    variables = module.init(jax.random.key(0), *arguments)
    y, s = jax.jit(module.apply)(variables, *arguments)
    turned = [jnp.asarray(a, jnp.float32) for a in (moved(x, q, shift), moved(v, q, 0.0))]
    y_turned, s_turned = jax.jit(module.apply)(variables, *turned)
    np.testing.assert_allclose(y_turned, moved(np.asarray(y), q, shift), atol=1e-4)
    np.testing.assert_allclose(s_turned, s, atol=1e-4)
    one = module.apply(variables, *arguments, key=jax.random.key(1))
    assert one[0].shape == y.shape
    assert float(jnp.abs(one[0] - y).max()) > 1e-3


def test_the_group_acts_on_frames(x64):
    """`F(g X) = g F(X)` as sets, by brute force."""
    x, _, q, shift = clouds(3, 1, 7)
    a, b = pca_frames(jnp.asarray(x[0])), pca_frames(jnp.asarray(moved(x, q, shift)[0]))
    want = sorted(tuple(np.round((q[0] @ np.asarray(r)).ravel(), 8) + 0.0) for r in a.rotation)
    got = sorted(tuple(np.round(np.asarray(r).ravel(), 8) + 0.0) for r in b.rotation)
    np.testing.assert_allclose(want, got, atol=1e-7)
    np.testing.assert_allclose(b.translation, q[0] @ np.asarray(a.translation) + shift[0, 0], atol=1e-12)
    assert isinstance(groups.Orthogonal(3).sample(jax.random.key(0)), jax.Array)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: pca_frames(x[0]), "expected floating points"),
        (lambda x: pca_frames(x.astype(jnp.int32)), "expected floating points"),
        (lambda x: pca_frames(x, group="U"), "group"),
        (lambda x: pca_frames(x, degenerate="random"), "random key"),
        (lambda x: pca_frames(x, jnp.ones(3, bool)), "mask: got shape"),
        (lambda x: pca_frames(x, jnp.ones(4)), "mask: got dtype"),
        (lambda x: pca_frames(x, weights=jnp.ones(4, jnp.int32)), "weights: got dtype"),
        (lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("position",), reduce="sample"), "reduce"),
        (lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("position",))(x, x), "got 2 inputs"),
        (lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("node",))(x), "got kind 'node'"),
        (lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("vector",))(x[:, :2]), "got vector of shape"),
        (
            lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("vector",))(jnp.ones((4, 3), jnp.int32)),
            "got vector of dtype",
        ),
        (
            lambda x: frame_average(jnp.argmax, pca_frames(x), in_types=("vector",))(x),
            "expected floating point, which can be averaged",
        ),
        (
            lambda x: frame_average(jnp.sum, pca_frames(x), in_types=("vector",), vectorized=True)(x),
            "one for each element",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.ones((4, 3)))
