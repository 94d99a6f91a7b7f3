"""FA-GNN: published size, exact laws, padding, hidden means, derivatives, its module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.frames import FAGNN, MPNNConfig, fa_gnn_apply, mpnn_apply, mpnn_init, pca_frames

CONFIG = MPNNConfig(width=12, depth=3)


@functools.cache
def parameters(dtype=jnp.float32):
    params = mpnn_init(jax.random.key(0), CONFIG, dtype=dtype)
    # Biases that are not zero.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        x + jax.random.normal(k, x.shape, dtype) * np.asarray(0.2, dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(drawn)


def systems(number=4, n=5, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(2), 5)
    x, v = (jax.random.normal(k, (number, n, 3), dtype) for k in keys[:2])
    q = jnp.sign(jax.random.normal(keys[2], (number, n), dtype))
    turn = jnp.linalg.qr(jax.random.normal(keys[3], (3, 3), dtype))[0]
    return x, v, q, turn.at[:, 0].multiply(-jnp.linalg.det(turn)), jax.random.normal(keys[4], (3,), dtype)


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(fa_gnn_apply, config=CONFIG, **options))


def moved(x, turn, shift=None):
    y = x @ turn.T
    return y if shift is None else y + shift[None, None]


def test_published_size():
    shapes = jax.eval_shape(lambda key: mpnn_init(key, MPNNConfig()), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 92_103


def reference(params, x, v, q):
    """One system by loops over frame elements, layers and pairs; NumPy float64."""
    params = jax.tree.map(np.asarray, params)
    n, width = len(x), CONFIG.width

    def dense(p, a):
        return a @ p["kernel"] + p["bias"]

    def silu(a):
        return a / (1 + np.exp(-a))

    def frame(points):
        t = points.mean(0)
        basis = np.linalg.eigh((points - t).T @ (points - t))[1]
        signs = np.array(np.meshgrid(*[[1, -1]] * 3)).reshape(3, -1).T
        return [basis * s for s in signs], t

    frames, t = frame(x)
    hidden = [dense(params["embed"], np.concatenate([(x - t) @ r, v @ r], axis=1)) for r in frames]
    for number, layer in enumerate(params["layers"]):
        if number:
            mean = np.mean([h.reshape(n * width // 3, 3) @ r.T for h, r in zip(hidden, frames, strict=True)], axis=0)
            frames, _ = frame(mean)
            hidden = [(mean @ r).reshape(n, width) for r in frames]
        after = []
        for h in hidden:
            new = np.zeros_like(h)
            for i in range(n):
                total = np.zeros(width)
                for j in range(n):
                    if i != j:
                        e = np.concatenate([h[i], h[j], [q[i] * q[j], np.sum((x[i] - x[j]) ** 2)]])
                        total += silu(dense(layer["edge"][1], silu(dense(layer["edge"][0], e))))
                new[i] = h[i] + dense(layer["node"][1], silu(dense(layer["node"][0], np.concatenate([h[i], total]))))
            after.append(new)
        hidden = after
    out = [dense(params["out"][1], silu(dense(params["out"][0], h))) @ r.T for h, r in zip(hidden, frames, strict=True)]
    return np.mean(out, axis=0) + t


def test_reference(x64):
    x, v, q, _, _ = systems()
    out = compiled()(parameters(jnp.float64), x, v, q)
    for i in range(2):
        want = reference(parameters(jnp.float64), *(np.asarray(a[i]) for a in (x, v, q)))
        np.testing.assert_allclose(out[i], want, atol=1e-11)


def test_laws(x64):
    """Reflections too for "E"; rotations only for "SE", which tells mirror images apart."""
    x, v, q, turn, shift = systems()
    params = parameters(jnp.float64)
    assert float(jnp.linalg.det(turn)) < 0
    out = compiled()(params, x, v, q)
    turned = compiled()(params, moved(x, turn, shift), moved(v, turn), q)
    assert float(jnp.abs(turned - moved(out, turn, shift)).max()) < 1e-10
    proper = -turn
    se = compiled(group="SE")(params, x, v, q)
    turned = compiled(group="SE")(params, moved(x, proper, shift), moved(v, proper), q)
    assert float(jnp.abs(turned - moved(se, proper, shift)).max()) < 1e-10
    turned = compiled(group="SE")(params, moved(x, turn, shift), moved(v, turn), q)
    assert float(jnp.abs(turned - moved(se, turn, shift)).max()) > 1e-3
    order = np.array([3, 1, 4, 0, 2])
    permuted = compiled()(params, x[:, order], v[:, order], q[:, order])
    np.testing.assert_allclose(permuted, out[:, order], atol=1e-10)


def test_padding_and_one_random_element(x64):
    x, v, q, _, _ = systems()
    params = parameters(jnp.float64)
    out = compiled()(params, x, v, q)
    wide = [jnp.concatenate([a, jnp.full_like(a[:, :2], jnp.nan)], axis=1) for a in (x, v, q)]
    mask = jnp.broadcast_to(jnp.arange(7) < 5, (4, 7))
    padded = compiled()(params, *wide, mask=mask)
    assert float(jnp.abs(padded[:, :5] - out).max()) < 1e-11
    assert not np.any(padded[:, 5:])
    # One element for each layer: another function for each key, whose law holds in distribution only.
    drawn = [compiled()(params, x, v, q, key=jax.random.key(i)) for i in range(2)]
    assert float(jnp.abs(drawn[0] - drawn[1]).max()) > 1e-3
    assert float(jnp.abs(drawn[0] - compiled()(params, x, v, q, key=jax.random.key(0))).max()) == 0


def test_hidden_means_are_kept(x64):
    """Published code drops the mean of the hidden vectors when they get a new frame; an option does the same."""
    x, v, q, turn, shift = systems()
    params = parameters(jnp.float64)
    kept, dropped = compiled()(params, x, v, q), compiled(keep_mean=False)(params, x, v, q)
    assert float(jnp.abs(kept - dropped).max()) > 1e-3
    turned = compiled(keep_mean=False)(params, moved(x, turn, shift), moved(v, turn), q)
    assert float(jnp.abs(turned - moved(dropped, turn, shift)).max()) < 1e-10
    # What is lost: two hidden states that differ by a constant vector are one to the next layer.
    flat = jax.random.normal(jax.random.key(5), (20, 3), jnp.float64)
    other = flat + jnp.ones((1, 3))
    a, b = pca_frames(flat), pca_frames(other)
    np.testing.assert_allclose(jnp.abs(a.pull("position", flat)), jnp.abs(b.pull("position", other)), atol=1e-10)
    assert float(jnp.abs(jnp.abs(a.pull("vector", flat)) - jnp.abs(b.pull("vector", other))).max()) > 0.1


def test_derivatives(x64):
    """Constant frames give a biased gradient of the parameters, differentiated ones that of finite differences."""
    x, v, q, _, _ = systems(1)
    params = parameters(jnp.float64)
    direction = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

    def slope(stop_gradient):
        def loss(s):
            at = jax.tree.map(lambda p, d: p + s * d, params, direction)
            return jnp.sum(jnp.sin(fa_gnn_apply(at, x, v, q, CONFIG, stop_gradient=stop_gradient)))

        return jax.jit(jax.value_and_grad(loss))

    exact, frozen = slope(False), slope(True)
    step = 1e-5
    expected = float(exact(jnp.asarray(step))[0] - exact(jnp.asarray(-step))[0]) / (2 * step)
    zero = jnp.zeros((), jnp.float64)
    assert abs(float(exact(zero)[1]) - expected) < 1e-6 * max(1, abs(expected))
    assert abs(float(frozen(zero)[1]) - expected) > 1e-3 * max(1, abs(expected))


def test_message_passing_without_frames_has_no_law(x64):
    x, v, _, turn, _ = systems()
    edges = jnp.zeros((4, 5, 5, 2), jnp.float64)
    run = jax.jit(lambda x, v: mpnn_apply(parameters(jnp.float64), jnp.concatenate([x, v], -1), edges, CONFIG))
    assert float(jnp.abs(run(moved(x, turn), moved(v, turn)) - moved(run(x, v), turn)).max()) > 1e-2


def test_module():
    x, v, q, _, _ = systems(dtype=jnp.float32)
    module = FAGNN(CONFIG)
    variables = module.init(jax.random.key(0), x, v, q)
    out = compiled()(variables["params"]["network"], x, v, q)
    np.testing.assert_allclose(module.apply(variables, x, v, q), out, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"positions": jnp.ones((5, 2))}, "got positions"),
        ({"charges": jnp.ones((5, 1))}, "got positions"),
        ({"config": MPNNConfig(width=10)}, "multiple of 3"),
        ({"group": "O"}, '"E" or "SE"'),
    ],
)
def test_errors(change, match):
    arguments = {"positions": jnp.ones((5, 3)), "velocities": jnp.ones((5, 3)), "charges": jnp.ones(5)}
    with pytest.raises(ValueError, match=match):
        fa_gnn_apply(parameters(), **{**arguments, "config": CONFIG, **change})
