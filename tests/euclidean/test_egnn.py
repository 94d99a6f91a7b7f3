"""EGNN: the formulas in loops, its symmetry, padding, exact cases, and faults by name. Contracts: motion_layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean.egnn import EgnnConfig, egnn_apply, egnn_init

SMALL = EgnnConfig(scalars_in=2, pair_scalars=1, history=2, width=6, layers=3, positions_out=3)

init = jax.jit(egnn_init, static_argnums=1, static_argnames="dtype")
apply = jax.jit(egnn_apply, static_argnums=3)


def inputs(seed=0, points=4, n=3):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    return draw(points, n), {
        "scalars": draw(points, 2), "velocities": draw(points, n), "history": draw(points, 2, n),
        "pair_scalars": draw(points, points, 1),
    }  # fmt: skip


def run(params, positions, rest, config=SMALL, mask=None):
    options = {name: value for name, value in rest.items() if name != "scalars"}
    return apply(params, positions, rest["scalars"], config, mask=mask, **options)


def silu(x):
    return x / (1 + np.exp(-x))


def network(params, x):
    hidden = silu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def reference(params, x, scalars, velocities, history, pair_scalars, config):
    """The formulas, point by point."""
    points, h, v = len(x), scalars @ params["embed"]["kernel"] + params["embed"]["bias"], velocities
    stacked = [jax.tree.map(lambda leaf, a=a: leaf[a], params["layers"]) for a in range(config.layers - 1)]
    for depth, layer in enumerate([*stacked, params["last"]]):
        outputs = config.positions_out if depth == config.layers - 1 else 1
        moved, gathered = np.zeros((points, outputs, x.shape[-1])), np.zeros_like(h)
        for i in range(points):
            weights = network(layer["velocity"], h[i]).reshape(outputs, -1)
            moved[i] = weights @ np.concatenate([v[i][None], history[i]])
            for j in range(points):
                if j != i:
                    seen = np.concatenate([h[i], h[j], [np.sum((x[i] - x[j]) ** 2)], pair_scalars[i, j]])
                    message = silu(network(layer["edge"], seen))
                    moved[i] += network(layer["pull"], message)[:, None] * (x[i] - x[j]) / (points - 1)
                    gathered[i] += message
        h = h + network(layer["node"], np.concatenate([h, gathered], axis=-1))
        out = x[:, None] + moved
        x, v = out[:, 0], moved[:, 0]
    return out, moved, h


def test_equals_the_formulas_in_loops(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    # Pulls as large as the rest, so that an error there is seen.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 1e3 * x if "pull" in jax.tree_util.keystr(path) and "out" in jax.tree_util.keystr(path) else x,
        params,
    )
    x, rest = inputs()
    given = {name: np.asarray(value) for name, value in rest.items()}
    expected = reference(jax.tree.map(np.asarray, params), np.asarray(x), config=SMALL, **given)
    for got, want in zip(run(params, x, rest), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)


def test_padded_points_change_nothing_and_are_zero(x64):
    params = init(jax.random.key(0), SMALL, dtype="float64")
    x, rest = inputs()
    expected = run(params, x, rest)
    pad = lambda v, axes: jnp.pad(v, [(0, 2)] * axes + [(0, 0)] * (v.ndim - axes), constant_values=jnp.inf)  # noqa: E731
    padded = {name: pad(v, 2 if name == "pair_scalars" else 1) for name, v in rest.items()}
    padded["pair_scalars"] = jnp.nan_to_num(padded["pair_scalars"], posinf=1e6)
    got = run(params, pad(x, 1), padded, mask=jnp.arange(6) < 4)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a[:4], b, atol=1e-11)
        assert float(jnp.abs(a[4:]).max()) == 0


def test_a_point_by_itself_goes_where_its_velocity_points(x64):
    config = EgnnConfig(scalars_in=1, width=4, layers=2)
    params = init(jax.random.key(1), config, dtype="float64")
    v = jnp.asarray([[1.0, 2.0, -0.5]])
    out = run(params, jnp.zeros((1, 3)), {"scalars": jnp.ones((1, 1)), "velocities": v}, config)
    cross = np.cross(np.asarray(out.positions[0, 0]), np.asarray(v[0]))
    np.testing.assert_allclose(cross, 0, atol=1e-12)
    assert float(jnp.abs(out.positions).max()) > 0.01


def test_bad_input_is_named():
    params = init(jax.random.key(0), SMALL)
    x, rest = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), v) for v in inputs())
    for name, wrong in (("scalars", x), ("velocities", x[:2]), ("history", None), ("pair_scalars", x)):
        with pytest.raises(ValueError, match=f"{name}: got shape"):
            run(params, x, {**rest, name: wrong})
    with pytest.raises(ValueError, match="mask: got shape"):
        run(params, x, rest, mask=x[0])
    with pytest.raises(ValueError, match="positive numbers"):
        dataclasses.replace(SMALL, layers=0)
