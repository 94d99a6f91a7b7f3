"""Motion of interacting points: the formulas in loops, laws, padding, counts, gradients where norms vanish."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean import motion_pairs
from equivariant_jax.euclidean.motion import EqMotion, MotionConfig, eqmotion_apply, eqmotion_init
from equivariant_jax.euclidean.vectors import dct_matrix, turning_angles, vector_relu

SMALL = MotionConfig(past=6, future=4, scalars=8, channels=6, layers=3, categories=3, temperature=0.7, heads=2)

init = jax.jit(eqmotion_init, static_argnums=1, static_argnames="dtype")
apply = jax.jit(eqmotion_apply, static_argnums=2)


@jax.jit
def gradient(params, x, mask):
    def loss(params, x):
        return jnp.sum(jnp.square(eqmotion_apply(params, x, SMALL, mask)[0]))

    return jax.grad(loss, (0, 1))(params, x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_published_size_without_what_it_never_uses():
    shapes = jax.eval_shape(lambda key: init(key, MotionConfig()), jax.random.key(0))
    assert count(shapes) == 468_166 - 78_852
    molecules = MotionConfig(past=10, future=10, channels=32)
    shapes = jax.eval_shape(lambda key: init(key, molecules), jax.random.key(0))
    h, c = 64, 32
    # Per layer: the network of edge weights and the attention that no input reaches; in the last also edges and nodes.
    unused = 4 * (h * h + h + h * c + c * c + c + c + 1) + (2 * h + c) * h + 2 * h + h * h + 3 * h * h + 2 * h
    assert count(shapes) == 316_230 - unused


def silu(x):
    return x / (1 + np.exp(-x))


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0)


def reference(params, x, config):
    """The card's formulas for one scene, agent by agent."""
    agents, times, _ = x.shape
    h, k = config.scalars, config.categories

    def perceptron(layers, v):
        for layer in layers:
            v = silu(dense(layer, v))
        return v

    velocity = np.concatenate([x[:, 1:2] - x[:, :1], x[:, 1:] - x[:, :-1]], axis=1)
    speed = np.linalg.norm(velocity, axis=-1)
    before = np.concatenate([velocity[:, :1], velocity[:, :-1]], axis=1)
    cosine = np.sum(velocity * before, -1) / (speed * np.linalg.norm(before, axis=-1))
    angle = np.arccos(np.clip(cosine, -1, 1))
    angle[:, 0] = 0
    scalars = np.concatenate([dense(params["speed"], speed), dense(params["angle"], angle)], axis=-1)
    middle = x.mean((0, 1))
    p = np.array(
        [
            [np.sqrt((1 if i == 0 else 2) / times) * np.cos(np.pi * (t + 0.5) * i / times) for t in range(times)]
            for i in range(times)
        ]
    )
    z, w = p @ (x - middle), p @ velocity
    g = np.stack([params["positions"].T @ (z[i] - z.mean((0, 1))) for i in range(agents)]) + z.mean((0, 1))
    u = np.stack([params["velocities"].T @ w[i] for i in range(agents)])
    both = np.concatenate([g, u], axis=1)
    r = params["reasoning"]
    d = [
        [perceptron(r["distance"], np.linalg.norm(both[i] - both[j], axis=-1)) for j in range(agents)]
        for i in range(agents)
    ]
    node = []
    for i in range(agents):
        edges = [
            perceptron(r["edge"], np.concatenate([scalars[i], scalars[j], d[i][j]])) for j in range(agents) if j != i
        ]
        node.append(perceptron(r["node"], np.concatenate([scalars[i], np.sum(edges, axis=0)])))
    c = np.zeros((agents, agents, k))
    for i in range(agents):
        for j in range(agents):
            v = np.concatenate([node[i], node[j], d[i][j]])
            v = dense(r["logits"][1], silu(dense(r["logits"][0], v)))
            v = np.exp((v - v.max()) / config.temperature)
            c[i, j] = v / v.sum()

    def layer(layer_params, g, scalars):
        m = g.mean((0, 1))
        out = np.zeros_like(g)
        gathered = np.zeros((agents, h))
        for i in range(agents):
            out[i] = g[i] + silu(dense(layer_params["self"], scalars[i]))[:, None] * (g[i] - m)
            for j in range(agents):
                delta = g[i] - g[j]
                v = np.concatenate([scalars[i], scalars[j], np.linalg.norm(delta, axis=-1)])
                chi = [
                    perceptron(jax.tree.map(lambda leaf, a=a: leaf[a], layer_params["category"]), v) for a in range(k)
                ]
                out[i] += (
                    perceptron(layer_params["factor"], sum(c[i, j, a] * chi[a] for a in range(k)))[:, None] * delta
                )
                if "edge" in layer_params and j != i:
                    gathered[i] += perceptron(layer_params["edge"], v)
            out[i] += layer_params["velocity"].T @ u[i]
        m = out.mean((0, 1))
        for i in range(agents):
            q, key = layer_params["query"].T @ (out[i] - m), layer_params["key"].T @ (out[i] - m)
            for a in range(config.channels):
                if q[a] @ key[a] < 0:
                    q[a] = q[a] - (q[a] @ key[a]) / (key[a] @ key[a] + 1e-4) * key[a]
            out[i] = q + m
        if "node" in layer_params:
            seen = np.concatenate([scalars, gathered], axis=-1)
            scalars = scalars + dense(layer_params["node"][1], silu(dense(layer_params["node"][0], seen)))
        return out, scalars

    for index in range(config.layers - 1):
        g, scalars = layer(jax.tree.map(lambda leaf, a=index: leaf[a], params["layers"]), g, scalars)
    q = np.array(dct_matrix(config.future, dtype="float64"))
    found = []
    for index in range(config.heads):
        head = jax.tree.map(lambda leaf, a=index: leaf[a], params["heads"])
        out, _ = layer(head, g, scalars)
        m = out.mean((0, 1))
        found.append(np.stack([q.T @ (head["out"].T @ (out[i] - m) + m) for i in range(agents)]) + middle)
    return np.stack(found), c


def scene(seed=0, agents=5, n=3, times=6):
    return np.random.default_rng(seed).normal(size=(agents, times, n)).cumsum(axis=1)


@pytest.mark.parametrize("n", [2, 3])
def test_equals_the_formulas_in_loops(x64, n):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x = scene(n=n)
    predicted, categories = jax.jit(lambda x: apply(params, x, SMALL))(jnp.asarray(x))
    expected, expected_categories = reference(jax.tree.map(np.asarray, params), x, SMALL)
    np.testing.assert_allclose(predicted, expected, atol=1e-10)
    np.testing.assert_allclose(categories, expected_categories, atol=1e-12)


@pytest.fixture(scope="module")
def random_moves():
    rng = np.random.default_rng(0)
    moves = []
    for _ in range(100):
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * rng.choice([-1.0, 1.0])
        moves.append((q, rng.uniform(-1e3, 1e3, 3), rng.permutation(5)))
    return moves


@pytest.mark.parametrize(("dtype", "bound", "bound_categories"), [("float64", 1e-9, 1e-10), ("float32", 1e-4, 1e-4)])
def test_moves_of_the_scene(x64, random_moves, dtype, bound, bound_categories):
    """Point 1 of the card: 100 random scenes, rotations and reflections, shifts up to 1e3, permutations."""
    config = dataclasses.replace(SMALL, scalars=32, channels=32)
    params = init(jax.random.key(0), config, dtype=dtype)
    shift = 1e3 if dtype == "float64" else 1.0  # in float32 a shift of 1e3 alone costs the positions four digits
    x = np.stack([scene(seed) for seed in range(100)])
    moved, expected_moves = [], []
    for one, (q, t, order) in zip(x, random_moves, strict=True):
        moved.append((one @ q.T + t * shift / 1e3)[order])
        expected_moves.append((q, t * shift / 1e3, order))
    run = jax.jit(lambda x: apply(params, x, config))
    (y, c), (y_moved, c_moved) = run(jnp.asarray(x, dtype)), run(jnp.asarray(np.stack(moved), dtype))
    assert y.dtype == dtype
    for i, (q, t, order) in enumerate(expected_moves):
        expected = (np.asarray(y[i], np.float64) @ q.T + t)[:, order]
        scale = np.abs(expected).max()
        assert np.abs(np.asarray(y_moved[i]) - expected).max() / scale < bound
        assert np.abs(np.asarray(c_moved[i]) - np.asarray(c[i])[order][:, order]).max() < bound_categories
    assert float(jnp.std(c[..., 0])) > 1e-3  # categories that differ between pairs


def test_without_the_centre_shifts_do_not_commute(x64, monkeypatch):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x = jnp.asarray(scene())

    def shifted():
        run = jax.jit(lambda x: eqmotion_apply(params, x, SMALL)[0])  # traced anew: the layer below is replaced
        return run(x + 3.0) - run(x) - 3.0

    assert float(jnp.abs(shifted()).max()) < 1e-9
    monkeypatch.setattr(motion_pairs, "masked_mean_vector", lambda v, mask: jnp.zeros_like(v[..., :1, :1, :]))
    assert float(jnp.abs(shifted()).max()) > 0.1


def test_padded_agents_change_nothing(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x = scene()
    padded = np.concatenate([x, np.full((3, 6, 3), 1e6)])
    mask = jnp.arange(8) < 5
    y, c = apply(params, jnp.asarray(x), SMALL)
    y_padded, c_padded = apply(params, jnp.asarray(padded), SMALL, mask)
    np.testing.assert_allclose(y_padded[:, :5], y, atol=1e-9)
    np.testing.assert_allclose(c_padded[:5, :5], c, atol=1e-10)
    assert float(jnp.abs(y_padded[:, 5:]).max()) == 0


def test_an_agent_alone_is_computed_without_pairs(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x = scene()[:1]

    def products(positions, mask=None):
        return str(jax.make_jaxpr(lambda p: eqmotion_apply(p, positions, SMALL, mask))(params)).count("dot_general")

    padded, mask = np.concatenate([x, np.ones_like(x)]), jnp.arange(2) < 1
    alone, _ = apply(params, jnp.asarray(x), SMALL)
    beside, _ = apply(params, jnp.asarray(padded), SMALL, mask)
    np.testing.assert_allclose(alone, beside[:, :1], atol=1e-11)
    assert products(jnp.asarray(x)) < products(jnp.asarray(padded), mask)


@pytest.mark.parametrize("kind", ["at rest", "straight", "all at one place", "nobody"])
def test_gradients_are_finite_where_norms_vanish(kind):
    params = init(jax.random.key(0), SMALL)
    x, mask = jnp.asarray(scene(), jnp.float32), jnp.ones(5, bool)
    if kind == "at rest":
        x = jnp.broadcast_to(x[:, :1], x.shape)
    elif kind == "straight":
        x = x[:, :1] + jnp.arange(6.0)[None, :, None] * (x[:, 1:2] - x[:, :1])
    elif kind == "all at one place":
        x = jnp.zeros_like(x)
    else:
        mask = jnp.zeros(5, bool)

    for leaf in jax.tree.leaves(gradient(params, x, mask)):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_without_interaction_others_matter_through_the_mean_alone(x64):
    config = dataclasses.replace(SMALL, interaction=False)
    params = init(jax.random.key(0), config, dtype="float64")
    x = scene()
    swapped = x.copy()
    # Two others move against each other: every mean over agents stays.
    swapped[3] += 0.7
    swapped[4] -= 0.7
    first = lambda config, x: apply(params, jnp.asarray(x), config)[0][:, 0]  # noqa: E731
    alone = float(jnp.abs(first(config, x) - first(config, swapped)).max())
    together = float(jnp.abs(first(SMALL, x) - first(SMALL, swapped)).max())
    assert alone < 0.5 * together


def test_every_parameter_gets_a_gradient():
    params = init(jax.random.key(0), SMALL)

    def loss(params):
        predicted, categories = apply(params, jnp.asarray(scene(), jnp.float32), SMALL)
        return jnp.sum(jnp.square(predicted)) + jnp.sum(jnp.square(categories))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


def test_angles_and_cut_vectors(x64):
    turn = jnp.asarray([[1.0, 0.0], [np.cos(1e-9), np.sin(1e-9)], [-1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(turning_angles(turn), [0, 1e-9, np.pi - 1e-9, 0, 0], rtol=1e-6)
    q, k = jnp.asarray([[1.0, -2.0, 0.5]]), jnp.asarray([[0.0, 3.0, 0.0]])
    np.testing.assert_allclose(vector_relu(q, k, epsilon=0.0), [[1.0, 0.0, 0.5]], atol=1e-12)
    np.testing.assert_allclose(vector_relu(-q, k), -q, atol=1e-12)


def test_published_logits_are_bounded_below():
    config = dataclasses.replace(SMALL, published_logits=True, temperature=0.01)
    params = init(jax.random.key(0), config)
    params["reasoning"]["logits"][1]["bias"] = jnp.asarray([0.0, -50.0, -50.0])
    free = apply(params, jnp.asarray(scene(), jnp.float32), dataclasses.replace(config, published_logits=False))
    bounded = apply(params, jnp.asarray(scene(), jnp.float32), config)
    assert float(free[1][..., 1].max()) < 1e-6
    assert float(jnp.abs(free[1] - bounded[1]).max()) > 1e-3


def test_module_agrees_with_the_function():
    x = jnp.asarray(scene(), jnp.float32)
    module = EqMotion(SMALL)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    expected = apply(variables["params"]["motion"], x, SMALL)
    for a, b in zip(jax.jit(module.apply)(variables, x), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input_is_named():
    params = init(jax.random.key(0), SMALL)
    with pytest.raises(ValueError, match=r"\[..., agents, 6, n\]"):
        apply(params, jnp.zeros((5, 7, 3)), SMALL)
    with pytest.raises(ValueError, match="mask"):
        apply(params, jnp.zeros((5, 6, 3)), SMALL, jnp.ones(4, bool))
    with pytest.raises(ValueError, match="even scalars"):
        MotionConfig(scalars=7)
    with pytest.raises(ValueError, match="at least 1"):
        dct_matrix(0)
