"""EquiformerV2 with the Gaunt self-interaction: each layer's law, the whole network's, and what the grid breaks."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from equivariant_jax.core.graphs import GraphBudget, batch, pad
from equivariant_jax.core.representations import Irreps, wigner_d
from equivariant_jax.euclidean.convolution import gaunt_table
from equivariant_jax.euclidean.edge_frames import edge_frames, frame_matrix, orders_first
from equivariant_jax.euclidean.equiformer import (
    Equiformer,
    EquiformerConfig,
    equiformer_apply,
    equiformer_block,
    equiformer_init,
)
from equivariant_jax.euclidean.equiformer_attention import (
    AttentionConfig,
    frame_edges,
    graph_attention,
    graph_attention_init,
    so2_linear,
    so2_linear_init,
)
from equivariant_jax.euclidean.equiformer_layers import (
    equivariant_layer_norm,
    feed_forward,
    feed_forward_init,
    gate_activation,
    layer_norm_init,
    selfmix,
    selfmix_init,
    sphere_activation,
)
from equivariant_jax.euclidean.irreps import degree_index, degree_linear

CONFIG = EquiformerConfig(
    species=(8, 29), r_max=3.0, lmax=2, mmax=1, channels=4, layers=2, heads=2, hidden_channels=4, alpha_channels=4,
    value_channels=2, ffn_channels=4, edge_channels=4, num_basis=6, activation="gate", grid_degree=6, grid_mlp=False,
    selfmix=True, average_neighbours=4.0, average_atoms=5.0, energy_scale=2.0, energy_shift=0.3, forces_scale=1.5,
)  # fmt: skip
BUDGET = GraphBudget(n_node=12, n_edge=64, n_graph=4)
APPLY = jax.jit(equiformer_apply, static_argnums=2)


def normal(seed, *shape, dtype="float64"):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def rotation(seed=0, improper=False):
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    matrix *= np.linalg.det(matrix)
    return jnp.asarray(-matrix if improper else matrix)


def field(matrix, x):
    """Acts on features `[..., (lmax + 1)**2, channels]`."""
    return Irreps(int(np.sqrt(x.shape[-2])) - 1, axis=-2)(matrix, x)


def turn(angle, lmax, mmax):
    """Matrix of a turn about the polar axis on the orders up to `mmax`, in the layout of a frame."""
    c, s = np.cos(angle), np.sin(angle)
    blocks = wigner_d(jnp.asarray([[c, 0, s], [0, 1, 0], [-s, 0, c]]), lmax)
    whole = jax.scipy.linalg.block_diag(*blocks)
    kept = orders_first(lmax, mmax)
    return whole[np.ix_(kept, kept)]


@functools.cache
def parameters(config, dtype="float64"):
    """Generic parameters, drawn here: biases, scales and factors are not left at zero and one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if re.search("scale|weights", jax.tree_util.keystr(path)) else 0.0
        return jnp.asarray(mean + 0.35 * rng.normal(size=leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: equiformer_init(jax.random.key(1), config)))


# --- layers


def polynomial(_, x):
    return sphere_activation(
        x, x[:, 0], lmax=3, grid_degree=12, function=lambda f: f - np.asarray(0.3, f.dtype) * f**2 + f**3
    )


@pytest.mark.parametrize("improper", [False, True])
def test_nodewise_layers_commute_with_rotations_and_reflections(x64, improper):
    lmax, channels = 3, 4
    x, matrix = 2 * normal(0, 5, 16, channels), rotation(improper=improper)
    norm = {"scale": normal(1, lmax + 1, channels), "bias": normal(2, channels)}
    mix = {**selfmix_init(jax.random.key(3), lmax, channels, dtype="float64"), "weights": normal(4, 3, 4, channels)}
    gated = feed_forward_init(jax.random.key(5), lmax, channels, 6, gated=True, dtype="float64")
    layers = {
        "norm": (norm, equivariant_layer_norm),
        "selfmix": (mix, selfmix),
        "feed_forward": (gated, functools.partial(feed_forward, grid_degree=0)),
        "polynomial": ({}, polynomial),
    }
    for name, (params, layer) in layers.items():
        layer = jax.jit(layer)
        out = layer(params, x)
        np.testing.assert_allclose(layer(params, field(matrix, x)), field(matrix, out), atol=1e-12, err_msg=name)
        assert np.abs(field(matrix, out) - out).max() > 0.1, name
        if improper:
            continue
        low, single = jax.tree.map(lambda p: p.astype("float32"), (params, x))
        single = field(matrix.astype("float32"), single)
        tolerance = 256 * np.finfo("f4").eps * np.abs(out).max()
        np.testing.assert_allclose(layer(low, single), field(matrix, out), atol=tolerance, err_msg=name)


def test_layer_norm_balances_degrees(x64):
    # Degree 3 has seven components of the same size as degree 1's three: each degree gets the same mean square.
    x = normal(0, 1000, 16, 32)
    out = equivariant_layer_norm(layer_norm_init(3, 32, dtype="float64"), x)
    scalars = np.asarray(out[:, 0])
    np.testing.assert_allclose(scalars.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((scalars**2).mean(axis=1), 1, atol=1e-4)
    square = (np.asarray(out) ** 2).mean(axis=-1)
    balanced = np.mean([square[:, degree_index(3) == l].mean(axis=1) for l in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(balanced, 1, atol=1e-4)
    zero = equivariant_layer_norm(layer_norm_init(3, 32, dtype="float64"), jnp.zeros((2, 16, 32)))
    np.testing.assert_array_equal(zero, jnp.zeros_like(zero))


@pytest.mark.parametrize(("lmax", "mmax"), [(2, 1), (3, 3), (4, 2)])
def test_so2_linear_commutes_with_turns_about_the_edge(x64, lmax, mmax):
    size, rows = orders_first(lmax, mmax).size, sum(lmax - m + 1 for m in range(mmax + 1))
    params = so2_linear_init(jax.random.key(0), lmax, mmax, 3, 2, extra=4, dtype="float64")
    params["bias"] = normal(1, *params["bias"].shape)
    x, radial, turned = normal(2, 5, size, 3), normal(3, 5, rows, 3), turn(0.7, lmax, mmax)
    apply = jax.jit(functools.partial(so2_linear, lmax=lmax, extra=4))
    out, scalars = apply(params, x, radial=radial)
    moved, same = apply(params, jnp.einsum("ab,ebc->eac", turned, x), radial=radial)
    np.testing.assert_allclose(moved, jnp.einsum("ab,ebc->eac", turned, out), atol=1e-12)
    np.testing.assert_allclose(same, scalars, atol=1e-12)
    assert np.abs(moved - out).max() > 0.1
    # The mirror image in the plane of x and y: the imaginary parts see it.
    mirror = jnp.asarray(np.diag([1.0, 1, -1]))
    kept = orders_first(lmax, mmax)
    mirrored = jax.scipy.linalg.block_diag(*wigner_d(mirror, lmax))[np.ix_(kept, kept)]
    reflected, _ = apply(params, jnp.einsum("ab,ebc->eac", mirrored, x), radial=radial)
    assert np.abs(reflected - jnp.einsum("ab,ebc->eac", mirrored, out)).max() > 0.1


def test_so2_linear_is_every_map_that_commutes(x64):
    """The dimension of the commutant of a generic turn equals the number of parameters, one channel in and out."""
    for lmax, mmax in ((2, 2), (3, 1)):
        matrix = np.asarray(turn(0.37, lmax, mmax))
        eye = np.eye(len(matrix))
        condition = np.kron(eye, matrix) - np.kron(matrix.T, eye)
        dimension = int((np.linalg.svd(condition, compute_uv=False) < 1e-9).sum())
        params = so2_linear_init(jax.random.key(0), lmax, mmax, 1, 1)
        assert dimension == sum(p.size for name, p in params.items() if name != "bias")


def test_sphere_activation_is_a_pointwise_function(x64):
    # A much finer grid of the other kind, in plain NumPy.
    from equivariant_jax.core.sphere import sphere_table
    from equivariant_jax.euclidean.quadrature import sphere_quadrature

    x, lmax = np.asarray(normal(0, 4, 9, 3)), 2
    rule = sphere_quadrature(60, "gauss")
    table, scale = sphere_table(rule.points, lmax), np.sqrt(4 * np.pi / 9)
    values = scale * np.einsum("gk,nkc->ngc", table, x)
    expected = np.einsum("g,gk,ngc->nkc", rule.weights, table, values / (1 + np.exp(-values))) / scale
    out = sphere_activation(jnp.asarray(x), jnp.asarray(x[:, 0]), lmax=lmax, grid_degree=35)
    np.testing.assert_allclose(out[:, 1:], expected[:, 1:], atol=1e-7)
    np.testing.assert_allclose(out[:, 0], x[:, 0] / (1 + np.exp(-x[:, 0])), atol=1e-12)


def test_defect_of_the_sphere_activation_falls_with_the_grid(x64):
    """SiLU has all degrees; what aliases is a quarter of the output at 2 L, 1 % at 3 L and under 1e-4 at 8 L."""
    lmax = 4
    x = normal(0, 64, 25, 8)
    matrices = [rotation(seed) for seed in range(3)]
    defects = {}
    for degree in (2 * lmax, 3 * lmax, 4 * lmax, 8 * lmax):
        act = jax.jit(functools.partial(sphere_activation, lmax=lmax, grid_degree=degree))
        out = act(x, x[:, 0])
        gaps = [act(field(m, x), x[:, 0]) - field(m, out) for m in matrices]
        defects[degree] = float(jnp.sqrt(jnp.mean(jnp.stack(gaps) ** 2) / jnp.mean(out[:, 1:] ** 2)))
    values = list(defects.values())
    assert all(after < 0.8 * before for before, after in itertools.pairwise(values)), defects
    assert all(value < bar for value, bar in zip(values, (0.4, 0.03, 0.015, 1e-4), strict=True)), defects


def test_activations_in_a_frame(x64):
    lmax, mmax = 3, 2
    kept = orders_first(lmax, mmax)
    x, scalars = normal(0, 5, kept.size, 2), normal(1, 5, 2)
    whole = jnp.zeros((5, 16, 2)).at[:, kept].set(x)
    framed = sphere_activation(x, scalars, lmax=lmax, mmax=mmax, grid_degree=12)
    # The same field by degree; only its scale differs, being that of 16 coefficients.
    ratio = np.sqrt(16 / kept.size)
    by_degree = sphere_activation(whole * ratio, scalars, lmax=lmax, grid_degree=12)
    np.testing.assert_allclose(framed[:, 1:] * ratio, by_degree[:, kept][:, 1:], atol=1e-12)
    gates = normal(2, 5, (lmax + 1) * 2)
    framed, by_degree = gate_activation(x, gates, lmax=lmax, mmax=mmax), gate_activation(whole, gates, lmax=lmax)
    np.testing.assert_allclose(framed, by_degree[:, kept], atol=1e-15)
    turned = turn(1.1, lmax, mmax)
    for act in (
        lambda x: gate_activation(x, gates, lmax=lmax, mmax=mmax),
        lambda x: sphere_activation(x, scalars, lmax=lmax, mmax=mmax, grid_degree=9, function=lambda f: f**2),
    ):
        np.testing.assert_allclose(
            act(jnp.einsum("ab,ebc->eac", turned, x)), jnp.einsum("ab,ebc->eac", turned, act(x)), atol=1e-12
        )


def test_selfmix_is_the_gaunt_product_with_weights_per_degree(x64):
    lmax, channels = 2, 3
    params = selfmix_init(jax.random.key(0), lmax, channels, dtype="float64")
    params["weights"] = normal(1, 3, lmax + 1, channels)
    x, degrees = normal(2, 6, 9, channels), degree_index(lmax)
    left, right = degree_linear(params["left"], x), degree_linear(params["right"], x)
    table = gaunt_table(lmax, lmax, lmax)
    weights = np.asarray(params["weights"])[:, degrees]
    product = np.einsum("abk,nac,nbc->nkc", table, left * weights[0][None], right * weights[1][None])
    # Unit variance for independent unit-variance inputs: the sum of squares of the table over both inputs.
    product /= np.sqrt(np.sum(table**2, axis=(0, 1)))[None, :, None]
    expected = degree_linear(params["out"], jnp.asarray(product * weights[2][None]))
    np.testing.assert_allclose(selfmix(params, x), expected, atol=1e-12)


def test_plain_scalars_of_a_lone_atom_do_not_see_its_higher_degrees(x64):
    """What the self-interaction is for: without it, high degrees reach an atom's own scalars only over edges."""
    x = normal(0, 3, 9, 4)
    other = x.at[:, 1:].set(normal(1, 3, 8, 4))
    none = jnp.zeros((0,), jnp.int32)
    for mixed in (True, False):
        config = dataclasses.replace(CONFIG, selfmix=mixed)
        edges = frame_edges(
            jnp.zeros((0, 3)), jnp.zeros((0, config.radial_widths[0])), none, none, mask=jnp.zeros((0,), bool),
            config=config.attention, r_max=3.0,
        )  # fmt: skip
        block = jax.tree.map(lambda p: p[0], parameters(config)["blocks"])
        gap = equiformer_block(block, other, edges, config)[:, 0] - equiformer_block(block, x, edges, config)[:, 0]
        assert (np.abs(gap).max() > 1e-2) == mixed


ATTENTION = AttentionConfig(
    lmax=2, mmax=1, channels=3, hidden_channels=4, heads=2, alpha_channels=3, value_channels=2, radial_widths=(5, 4),
    activation="gate",
)  # fmt: skip


def attention_problem(seed=0, turns=None):
    """Six atoms with edges between all pairs; the frames may be turned about the edges."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(i, j) for j in range(6) for i in range(6) if i != j], np.int32)
    vectors, features = jnp.asarray(rng.normal(size=(30, 3))), jnp.asarray(rng.normal(size=(30, 5)))
    senders, receivers = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])

    def edges(vectors):
        made = frame_edges(vectors, features, senders, receivers, mask=jnp.ones(30, bool), config=ATTENTION, r_max=4.0)
        if turns is None:
            return made
        c, s, one, zero = np.cos(turns), np.sin(turns), np.ones(30), np.zeros(30)
        about = np.stack([c, zero, s, zero, one, zero, -s, zero, c], axis=-1).reshape(30, 3, 3)
        frames = jnp.asarray(about) @ edge_frames(vectors)
        return made._replace(rotation=frame_matrix(wigner_d(frames, ATTENTION.lmax), ATTENTION.mmax))

    params = graph_attention_init(jax.random.key(seed), ATTENTION, 2, dtype="float64")
    return params, jnp.asarray(rng.normal(size=(6, 9, 3))), vectors, edges


def test_attention_commutes_with_rotations_in_any_frames(x64):
    params, x, vectors, edges = attention_problem()
    attend = jax.jit(lambda x, edges: graph_attention(params, x, edges, ATTENTION))
    out, matrix = attend(x, edges(vectors)), rotation()
    moved = attend(field(matrix, x), edges(vectors @ matrix.T))
    np.testing.assert_allclose(moved, field(matrix, out), atol=1e-12)
    assert np.abs(moved - out).max() > 0.1
    *_, turned = attention_problem(turns=np.random.default_rng(1).uniform(0, 6, 30))
    np.testing.assert_allclose(attend(x, turned(vectors)), out, atol=1e-12)
    # Frames that do not point along the edges are no symmetry.
    wrong = edges(vectors)._replace(rotation=edges(jnp.roll(vectors, 1, axis=0)).rotation)
    wrong_moved = wrong._replace(rotation=edges(jnp.roll(vectors, 1, axis=0)).rotation)
    assert np.abs(attend(field(matrix, x), wrong_moved) - field(matrix, attend(x, wrong))).max() > 0.1


def test_attention_weights_add_up_and_fade_at_the_cutoff(x64):
    from equivariant_jax.euclidean.equiformer_attention import _attention_weights

    _, _, vectors, edges = attention_problem()
    framed, logits = edges(vectors), normal(3, 30, 2)
    full = _attention_weights(logits, framed._replace(envelope=jnp.ones(30)), 6)
    expected = np.exp(logits).reshape(6, 5, 2)
    expected = (expected / expected.sum(axis=1, keepdims=True)).reshape(30, 2)
    np.testing.assert_allclose(full, expected, atol=1e-12)
    # A single neighbour: the weight is the envelope itself, so it fades, where a softmax would say one.
    alone = framed._replace(envelope=jnp.zeros(30).at[7].set(1e-3))
    np.testing.assert_allclose(_attention_weights(logits, alone, 6)[7], 1e-3, rtol=1e-9)
    slope = jax.jacfwd(lambda e: _attention_weights(logits, framed._replace(envelope=e), 6))(jnp.zeros(30))
    assert np.isfinite(slope).all()


# --- the network


def molecule(seed=0, atoms=5, dtype="float64"):
    rng = np.random.default_rng(seed)
    return as_graph(1.2 * rng.normal(size=(atoms, 3)), rng.integers(0, 2, atoms), dtype)


def as_graph(positions, species, dtype="float64"):
    found = [
        (i, j)
        for j in range(len(positions))
        for i in range(len(positions))
        if i != j and np.linalg.norm(positions[i] - positions[j]) < CONFIG.r_max
    ]
    return jraph.GraphsTuple(
        nodes={"positions": np.asarray(positions, dtype), "species": np.asarray(species, np.int32)},
        edges={"shifts": np.zeros((len(found), 3), dtype)},
        globals={},
        senders=np.array([i for i, _ in found], np.int32),
        receivers=np.array([j for _, j in found], np.int32),
        n_node=np.array([len(positions)], np.int32),
        n_edge=np.array([len(found)], np.int32),
    )


def padded(*graphs, budget=BUDGET):
    return jax.tree.map(jnp.asarray, pad(batch(list(graphs)), budget))


def moved(graph, matrix, shift):
    positions = np.asarray(graph.nodes["positions"] @ np.asarray(matrix).T + shift, graph.nodes["positions"].dtype)
    return graph._replace(nodes={**graph.nodes, "positions": positions})


SHIFT = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_invariant_energy_and_equivariant_forces(x64, forces):
    config = dataclasses.replace(CONFIG, forces=forces)
    graph, params, matrix = molecule(), parameters(config), np.asarray(rotation())
    out = APPLY(params, padded(graph), config)
    turned = APPLY(params, padded(moved(graph, matrix, SHIFT)), config)
    np.testing.assert_allclose(turned.energy, out.energy, atol=1e-11)
    np.testing.assert_allclose(turned.forces, out.forces @ matrix.T, atol=1e-11)
    assert np.abs(turned.forces - out.forces).max() > 1e-2
    # Permuting atoms permutes forces.
    order = np.array([3, 0, 4, 2, 1])
    shuffled = as_graph(graph.nodes["positions"][order], graph.nodes["species"][order])
    permuted = APPLY(params, padded(shuffled), config)
    np.testing.assert_allclose(permuted.energy, out.energy, atol=1e-12)
    np.testing.assert_allclose(permuted.forces[:5], out.forces[order], atol=1e-12)
    # As the page says: mirror images are not the same to it.
    assert np.abs(APPLY(params, padded(moved(graph, -np.eye(3), SHIFT)), config).energy - out.energy).max() > 1e-4


def test_float32():
    # A few hundred roundings of numbers of order one; one trace for graphs of one budget.
    params, matrix, low = parameters(CONFIG, "float32"), np.asarray(rotation(), "f4"), molecule(dtype="float32")
    before = APPLY._cache_size()
    one, two = (APPLY(params, padded(g), CONFIG) for g in (low, moved(low, matrix, SHIFT)))
    assert APPLY._cache_size() - before <= 1
    assert one.energy.dtype == one.forces.dtype == jnp.float32
    tolerance = 512 * np.finfo("f4").eps
    np.testing.assert_allclose(two.energy, one.energy, atol=tolerance * np.abs(one.energy).max())
    np.testing.assert_allclose(two.forces, one.forces @ matrix.T, atol=tolerance * np.abs(one.forces).max())


def test_defect_of_the_network_falls_with_the_grid(x64):
    graph, matrix = molecule(), np.asarray(rotation())
    defects = []
    for degree in (4, 16):
        config = dataclasses.replace(CONFIG, activation="sphere", grid_degree=degree, layers=1)
        params = parameters(config)
        out = APPLY(params, padded(graph), config)
        turned = APPLY(params, padded(moved(graph, matrix, SHIFT)), config)
        defects.append(float(jnp.abs(turned.forces - out.forces @ matrix.T).max() / jnp.abs(out.forces).max()))
    assert defects[0] < 0.1, defects
    assert defects[1] < 0.02 * defects[0], defects
    assert defects[1] < 1e-4, defects


def test_gradient_forces_are_minus_the_gradient(x64):
    config = dataclasses.replace(CONFIG, forces="gradient")
    params, graph = parameters(config), padded(molecule())
    out, step = APPLY(params, graph, config), 1e-5
    for atom, axis in ((0, 0), (1, 2), (4, 1)):
        energies = []
        for sign in (1, -1):
            positions = graph.nodes["positions"].at[atom, axis].add(sign * step)
            energies.append(APPLY(params, graph._replace(nodes={**graph.nodes, "positions": positions}), config).energy)
        slope = -(energies[0][0] - energies[1][0]) / (2 * step)
        np.testing.assert_allclose(out.forces[atom, axis], slope, atol=1e-7 * float(jnp.abs(out.forces).max()))
    assert float(jnp.abs(out.forces).max()) > 1e-2


def test_continuous_at_the_cutoff(x64):
    params = parameters(CONFIG)

    def three(distance):
        graph = as_graph(np.array([[0.0, 0, 0], [1.0, 0, 0], [0.0, distance, 0]]), np.array([0, 1, 1]))
        out = APPLY(params, padded(graph), CONFIG)
        return np.concatenate([out.energy[:1], np.asarray(out.forces).reshape(-1)])

    np.testing.assert_allclose(three(CONFIG.r_max - 1e-5), three(CONFIG.r_max + 1e-5), atol=1e-9)
    assert np.abs(three(2.0) - three(2.5)).max() > 1e-4


def test_padding_and_the_rest_of_the_batch_change_nothing(x64):
    params, one, two = parameters(CONFIG), molecule(0), molecule(1, atoms=4)
    alone, both = APPLY(params, padded(one), CONFIG), APPLY(params, padded(two, one), CONFIG)
    np.testing.assert_allclose(both.energy[1], alone.energy[0], atol=1e-12)
    np.testing.assert_allclose(both.forces[4:9], alone.forces[:5], atol=1e-12)
    assert (np.asarray(both.energy[2:]) == 0).all()
    assert (np.asarray(both.forces[9:]) == 0).all()
    order = np.random.default_rng(3).permutation(len(one.senders))
    shuffled = one._replace(senders=one.senders[order], receivers=one.receivers[order])
    np.testing.assert_allclose(APPLY(params, padded(shuffled), CONFIG).forces, alone.forces, atol=1e-12)


def test_every_degree_and_order_contributes(x64):
    params, graph = parameters(CONFIG), padded(molecule())
    forces = APPLY(params, graph, CONFIG).forces
    blocks = params["blocks"]
    for degree in (1, 2):
        kernels = blocks["attention"]["project"].at[:, degree].set(0.0)
        cut = {**params, "blocks": {**blocks, "attention": {**blocks["attention"], "project": kernels}}}
        assert np.abs(APPLY(cut, graph, CONFIG).forces - forces).max() > 1e-4
    first = {**blocks["attention"]["first"], "order_1": 0 * blocks["attention"]["first"]["order_1"]}
    cut = {**params, "blocks": {**blocks, "attention": {**blocks["attention"], "first": first}}}
    assert np.abs(APPLY(cut, graph, CONFIG).forces - forces).max() > 1e-4


@functools.partial(jax.jit, static_argnums=2)
def gradient_of_squares(params, graph, config):
    def squares(params, positions):
        out = equiformer_apply(params, graph._replace(nodes={**graph.nodes, "positions": positions}), config)
        return jnp.sum(out.energy**2) + jnp.sum(out.forces**2)

    return jax.value_and_grad(squares, argnums=(0, 1))(params, graph.nodes["positions"])


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_degenerate_inputs_stay_finite(forces):
    # One configuration for each, with the activation on the grid and the network at its points.
    config = dataclasses.replace(CONFIG, forces=forces, activation="sphere", grid_mlp=True, layers=1)
    params = parameters(config, "float32")
    coincident = molecule(dtype="float32")
    positions = coincident.nodes["positions"].copy()
    positions[int(coincident.senders[0])] = positions[int(coincident.receivers[0])]
    poles = np.array([[0, 0, 0], [0, 1.0, 0], [0, -1.2, 0], [1.1, 0, 0]])
    for graph in (
        coincident._replace(nodes={**coincident.nodes, "positions": positions}),
        as_graph(poles, np.array([0, 1, 0, 1]), "float32"),
        as_graph(np.zeros((1, 3)), np.array([1]), "float32"),
        as_graph(np.array([[0, 0, 0], [CONFIG.r_max * (1 - 1e-7), 0, 0]]), np.array([0, 1]), "float32"),
        as_graph(np.zeros((0, 3)), np.zeros(0), "float32"),
    ):
        for leaf in jax.tree.leaves(gradient_of_squares(params, padded(graph), config)):
            assert np.isfinite(leaf).all()


def test_rematerialised_blocks_give_the_same():
    config = dataclasses.replace(CONFIG, activation="sphere", grid_mlp=True, layers=1)
    params, graph = parameters(config, "float32"), padded(molecule(dtype="float32"))
    one = gradient_of_squares(params, graph, config)
    two = gradient_of_squares(params, graph, dataclasses.replace(config, remat=True))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(a).max())))


def test_start_at_order_one():
    params = jax.jit(lambda key: equiformer_init(key, CONFIG))(jax.random.key(0))
    out = APPLY(params, padded(molecule(dtype="float32")), CONFIG)
    assert 1e-2 < float(jnp.abs(out.energy[0] - CONFIG.energy_shift)) < 10
    assert 1e-2 < float(jnp.std(out.forces[:5])) < 10


def test_published_sizes_can_be_built():
    config = EquiformerConfig(species=tuple(range(1, 84)), selfmix=True)
    shapes = jax.eval_shape(lambda: equiformer_init(jax.random.key(0), config))
    assert shapes["blocks"]["selfmix"]["left"].shape == (12, 7, 128, 128)
    graph = padded(molecule(dtype="float32"))
    out = jax.eval_shape(lambda p: equiformer_apply(p, graph, config), shapes)
    assert out.forces.shape == (BUDGET.n_node, 3)


def test_linen_module_is_the_pure_function():
    graph = padded(molecule(dtype="float32"))
    module = Equiformer(CONFIG)
    params = parameters(CONFIG, "float32")
    assert jax.tree.map(jnp.shape, jax.eval_shape(module.init, jax.random.key(0), graph)["params"]["equiformer"]) == (
        jax.tree.map(jnp.shape, params)
    )
    out = jax.jit(module.apply)({"params": {"equiformer": params}}, graph)
    np.testing.assert_allclose(out.forces, APPLY(params, graph, CONFIG).forces, atol=1e-5)


def test_bad_input_is_named(x64):
    params, graph = parameters(CONFIG), padded(molecule())
    with pytest.raises(ValueError, match="float32"):
        equiformer_apply(params, padded(molecule(dtype="float32")), CONFIG)
    with pytest.raises(ValueError, match="species"):
        equiformer_apply(params, graph._replace(nodes={"positions": graph.nodes["positions"]}), CONFIG)
    with pytest.raises(ValueError, match="shifts"):
        equiformer_apply(params, graph._replace(edges={}), CONFIG)
    with pytest.raises(ValueError, match="expected"):
        so2_linear(so2_linear_init(jax.random.key(0), 2, 1, 1, 1), jnp.zeros((3, 9, 1)), lmax=2)
    for bad in (
        {"species": (1, 1)}, {"mmax": 3}, {"layers": 0}, {"forces": "both"}, {"activation": "relu"},
        {"activation": "sphere", "grid_degree": 3}, {"basis": "fourier"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"got"):
            dataclasses.replace(CONFIG, **bad)
