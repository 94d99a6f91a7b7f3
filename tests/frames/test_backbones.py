"""PointNet, DGCNN and GIN: published sizes, references, permutations, padding, statistics, modules, learning."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.frames import (
    DGCNN,
    DGCNNConfig,
    GINConfig,
    MPNNConfig,
    PointNet,
    PointNetConfig,
    dgcnn_apply,
    dgcnn_init,
    frame_average,
    gin_apply,
    gin_init,
    mpnn_apply,
    mpnn_init,
    pca_frames,
    pointnet_apply,
    pointnet_init,
)

POINTNET = PointNetConfig(widths=(6, 8), head=(5,))
SPARSE = DGCNNConfig(neighbours=3, blocks=((6, 4), (5,)), width=7, head=(6,), dropout=0.5)
MAXIMUM = DGCNNConfig(neighbours=3, blocks=((6,),), width=7, head=(6,), pool="max", skip_input=False)
INIT = {PointNetConfig: pointnet_init, DGCNNConfig: dgcnn_init}
APPLY = {PointNetConfig: pointnet_apply, DGCNNConfig: dgcnn_apply}


@functools.cache
def parameters(config, dtype=jnp.float32):
    """Random scales, biases and running statistics."""
    trees = INIT[type(config)](jax.random.key(0), config, dtype=dtype)
    leaves, structure = jax.tree.flatten(trees)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [x + jnp.abs(jax.random.normal(k, x.shape, x.dtype)) / 4 for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)


@functools.cache
def compiled(config, **options):
    return jax.jit(functools.partial(APPLY[type(config)], config=config, **options))


def points(number=3, n=7, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(2), (number, n, 3), dtype)


def count(config):
    shapes = jax.eval_shape(lambda key: INIT[type(config)](key, config)[0], jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_published_sizes():
    """Layers of the published widths, counted by hand: kernels, biases, and two numbers a channel to normalise."""
    widths = [3, 64, 128, 128, 512, 2048]
    total = sum(a * b + 3 * b for a, b in itertools.pairwise(widths))
    joined = 2048 + sum(widths[1:])
    assert joined == 4928
    head = [joined, 256, 256, 128]
    total += sum(a * b + 3 * b for a, b in itertools.pairwise(head)) + 128 * 3 + 3
    assert count(PointNetConfig()) == total
    blocks = 6 * 64 + 64 * 64 + 128 * 64 + 64 * 64 + 128 * 64 + 2 * 5 * 64
    wide = (3 + 192) * 1024 + 2 * 1024
    head = (1024 + 192) * 256 + 256 * 256 + 256 * 128 + 2 * (256 + 256 + 128) + 128 * 3
    assert count(DGCNNConfig()) == blocks + wide + head


def dense_norm(layer, running, x):
    x = x @ layer["dense"]["kernel"] + layer["dense"].get("bias", 0)
    scale = layer["norm"]["scale"] / np.sqrt(running["variance"] + 1e-5)
    return (x - running["mean"]) * scale + layer["norm"]["bias"]


def test_pointnet_reference(x64):
    params, statistics = (jax.tree.map(np.asarray, t) for t in parameters(POINTNET, jnp.float64))
    x = np.asarray(points(dtype=jnp.float64))
    h = np.maximum(dense_norm(params["points"][0], statistics["points"][0], x), 0)
    g = dense_norm(params["points"][1], statistics["points"][1], h)
    whole = np.broadcast_to(g.max(1, keepdims=True), g.shape)
    y = np.maximum(dense_norm(params["head"][0], statistics["head"][0], np.concatenate([whole, h, g], -1)), 0)
    y = y @ params["out"]["kernel"] + params["out"]["bias"]
    out, after = compiled(POINTNET)(params, statistics, jnp.asarray(x))
    np.testing.assert_allclose(out, y, atol=1e-6)  # statistics are float32
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), statistics, after))


@pytest.mark.parametrize("config", [SPARSE, MAXIMUM], ids=["mean", "max"])
def test_dgcnn_reference(config, x64):
    params, statistics = (jax.tree.map(np.asarray, t) for t in parameters(config, jnp.float64))
    batch = np.asarray(points(1, dtype=jnp.float64))

    def chain(layers, running, x):
        for layer, r in zip(layers, running, strict=True):
            x = dense_norm(layer, r, x)
            x = np.where(x > 0, x, 0.2 * x)
        return x

    pool = np.mean if config.pool == "mean" else np.max
    x = batch[0]
    levels = []
    for block, running in zip(params["blocks"], statistics["blocks"], strict=True):
        rows = []
        for i in range(len(x)):
            near = np.argsort(np.sum((x - x[i]) ** 2, axis=1), kind="stable")[: config.neighbours]
            pairs = np.concatenate([x[near] - x[i], np.broadcast_to(x[i], x[near].shape)], axis=1)
            rows.append(pool(chain(block, running, pairs), axis=0))
        x = np.stack(rows)
        levels.append(x)
    wide = chain(params["wide"], statistics["wide"], np.concatenate([batch[0]] * config.skip_input + levels, axis=1))
    whole = np.broadcast_to(pool(wide, axis=0), wide.shape)
    y = chain(params["head"], statistics["head"], np.concatenate([whole, *levels], axis=1))
    y = 2 / (1 + np.exp(-(y @ params["out"]["kernel"]))) - 1
    out, _ = compiled(config)(params, statistics, jnp.asarray(batch))
    np.testing.assert_allclose(out[0], y, atol=1e-6)


@pytest.mark.parametrize("config", [POINTNET, SPARSE, MAXIMUM], ids=["pointnet", "mean", "max"])
def test_permutations_and_padding(config):
    params, statistics = parameters(config)
    x = points()
    out, _ = compiled(config)(params, statistics, x)
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_allclose(compiled(config)(params, statistics, x[:, order])[0], out[:, order], atol=1e-5)
    mask = jnp.broadcast_to(jnp.arange(10) < 7, (3, 10))
    for fill in (1e3, np.nan):
        wide = jnp.concatenate([x, jnp.full((3, 3, 3), fill)], axis=1)
        padded, _ = compiled(config)(params, statistics, wide, mask=mask)
        np.testing.assert_allclose(padded[:, :7], out, atol=1e-5)
        assert not np.any(padded[:, 7:])


def test_statistics_and_dropout():
    params, statistics = dgcnn_init(jax.random.key(0), SPARSE)
    x = points()
    train = compiled(SPARSE, training=True)
    out, after = train(params, statistics, x)
    changed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), statistics, after)
    assert min(jax.tree.leaves(changed)) > 0
    dropped = train(params, statistics, x, key=jax.random.key(3))[0]
    assert float(jnp.abs(dropped - out).max()) > 1e-3
    with pytest.raises(ValueError, match="mask and training"):
        dgcnn_apply(params, statistics, x, SPARSE, mask=jnp.ones((3, 7), bool), training=True)


@pytest.mark.parametrize(("module", "config"), [(PointNet, POINTNET), (DGCNN, SPARSE)])
def test_modules(module, config):
    x = points()
    model = module(config)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params, statistics = variables["params"]["network"], variables["batch_stats"]["statistics"]
    np.testing.assert_allclose(model.apply(variables, x), compiled(config)(params, statistics, x)[0], atol=1e-6)
    train = jax.jit(functools.partial(module(config, training=True).apply, mutable="batch_stats"))
    out, updated = train(variables, x)
    want, after = compiled(config, training=True)(params, statistics, x)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), updated["batch_stats"]["statistics"], after)
    )
    if module is DGCNN:
        dropped, _ = train(variables, x, rngs={"dropout": jax.random.key(1)})
        assert float(jnp.abs(dropped - out).max()) > 1e-3


def test_gin_reference_and_padding(x64):
    config = GINConfig(2, width=5, depth=2, activation="relu", readout="mean")
    params = gin_init(jax.random.key(0), config, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x, a = rng.standard_normal((4, 2)), rng.random((4, 4))
    h = x
    for layer in jax.tree.map(np.asarray, params["layers"]):
        h = (1 + layer["epsilon"]) * h + a @ h
        h = np.maximum(h @ layer["dense"]["kernel"] + layer["dense"]["bias"], 0)
    want = np.maximum(h.mean(0) @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"]), 0)
    np.testing.assert_allclose(gin_apply(params, jnp.asarray(x), jnp.asarray(a), config), want, atol=1e-12)
    wide_x = jnp.full((6, 2), jnp.nan).at[:4].set(x)
    wide_a = jnp.full((6, 6), jnp.nan).at[:4, :4].set(a)
    padded = gin_apply(params, wide_x, wide_a, config, mask=jnp.arange(6) < 4)
    np.testing.assert_allclose(padded, want, atol=1e-12)


def test_frames_learn_what_turns_with_the_cloud():
    """Vectors of points under random rotations: an averaged PointNet learns on one pose and holds in all others."""
    config = PointNetConfig(widths=(16, 32), head=(16,), batch_norm=False)
    x = jax.random.normal(jax.random.key(0), (64, 12, 3)) * jnp.array([1.0, 2.0, 3.0])[None, None]

    def targets(x):
        centred = x - x.mean(1, keepdims=True)
        return centred * jnp.sum(centred**2, axis=-1, keepdims=True) / 10

    turns = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (64, 3, 3)))[0]
    turned = jnp.einsum("bni,bji->bnj", x, turns)

    def predict(params, x, key=None):
        average = frame_average(
            lambda x: pointnet_apply(params, {"points": [{}, {}], "head": [{}]}, x, config)[0],
            pca_frames(x, stop_gradient=True),
            in_types=("position",), out_types="vector", vectorized=True,
            reduce="mean" if key is None else "sample", key=key,
        )  # fmt: skip
        return average(x)

    def loss(params, x, key=None):
        return jnp.mean((predict(params, x, key) - targets(x)) ** 2)

    params, _ = pointnet_init(jax.random.key(2), config)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, x, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(3), 150))[0][0]

    trained = train(params)
    measure = jax.jit(loss)
    scale = float(jnp.mean(targets(x) ** 2))
    assert float(measure(trained, x)) < 0.1 * scale
    assert float(measure(trained, turned)) == pytest.approx(float(measure(trained, x)), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: PointNetConfig(widths=(0,)), "at least 1"),
        (lambda: DGCNNConfig(pool="sum"), "pool"),
        (lambda: GINConfig(1, activation="gelu"), "activation"),
        (lambda: MPNNConfig(width=0), "at least 1"),
        (lambda: pointnet_apply(*parameters(POINTNET), jnp.ones((5, 2)), POINTNET), "expected"),
        (lambda: dgcnn_apply(*parameters(SPARSE), jnp.ones((2, 3)), SPARSE), "neighbours=3"),
        (lambda: pointnet_apply(*parameters(POINTNET), jnp.ones((5, 3)), POINTNET, mask=jnp.ones(5)), "mask"),
        (
            lambda: mpnn_apply(
                mpnn_init(jax.random.key(0), MPNNConfig(depth=1)), jnp.ones((5, 6)), jnp.ones((4, 5, 2)),
                MPNNConfig(depth=1),
            ),
            "edges",
        ),
        (lambda: gin_apply(gin_init(jax.random.key(0), GINConfig(1)), jnp.ones((4, 1)), jnp.ones((3, 3)), GINConfig(1)),
         "adjacency"),
    ],
)  # fmt: skip
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
