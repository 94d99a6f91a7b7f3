"""The potential: symmetry, exact derivatives, padding, degenerate inputs, and learning."""

import dataclasses

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
import pytest

from equivariant_jax.core.graphs import GraphBudget, batch, pad
from equivariant_jax.euclidean import interatomic
from equivariant_jax.euclidean.interatomic import (
    InteratomicPotential,
    PotentialConfig,
    energy_and_forces,
    potential_apply,
    potential_init,
)
from equivariant_jax.euclidean.irreps import degree_slices

CONFIG = PotentialConfig(
    species=(1, 6, 8),
    r_max=3.0,
    lmax=2,
    hidden_lmax=1,
    channels=4,
    radial_hidden=(8,),
    readout_hidden=4,
    max_neighbours=6,
    average_neighbours=4.0,
    energy_scale=2.0,
    energy_shift=0.3,
    reference_energies=(-1.0, -2.0, -3.0),
)
BUDGET = GraphBudget(n_node=16, n_edge=64, n_graph=4)
EVALUATE = jax.jit(energy_and_forces, static_argnums=2)
INIT = jax.jit(potential_init, static_argnums=1, static_argnames="dtype")


def molecule(seed=0, atoms=5, dtype=np.float64, lattice=None):
    """Random atoms about 1.5 apart with the list of all pairs below the cut-off."""
    rng = np.random.default_rng(seed)
    positions = 1.3 * rng.normal(size=(atoms, 3))
    species = rng.integers(0, 3, atoms).astype(np.int32)
    return as_graph(positions, species, dtype, lattice)


def as_graph(positions, species, dtype=np.float64, lattice=None):
    cells = [np.zeros(3)]
    if lattice is not None:
        cells = [np.array(c) @ lattice for c in np.ndindex(3, 3, 3)]
        cells = [c - np.ones(3) @ lattice for c in cells]
    found = [
        (i, j, c)
        for j in range(len(positions))
        for i in range(len(positions))
        for c in cells
        if 1e-9 < np.linalg.norm(positions[i] - positions[j] + c) < CONFIG.r_max
    ]
    return jraph.GraphsTuple(
        nodes={"positions": positions.astype(dtype), "species": species},
        edges={"shifts": np.array([c for *_, c in found], dtype).reshape(-1, 3)},
        globals={},
        senders=np.array([i for i, *_ in found], np.int32),
        receivers=np.array([j for _, j, _ in found], np.int32),
        n_node=np.array([len(positions)], np.int32),
        n_edge=np.array([len(found)], np.int32),
    )


@pytest.fixture
def params(x64):
    return INIT(jax.random.key(1), CONFIG, dtype="float64")


def padded(*graphs, budget=BUDGET):
    return jax.tree.map(jnp.asarray, pad(batch(list(graphs)), budget))


def test_forces_are_minus_the_gradient(params):
    graph = padded(molecule(0), molecule(1))
    forces = EVALUATE(params, graph, CONFIG).forces
    step = 1e-5
    worst = 0.0
    for atom in range(10):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                positions = graph.nodes["positions"].at[atom, axis].add(sign * step)
                moved = graph._replace(nodes={**graph.nodes, "positions": positions})
                energies.append(jnp.sum(EVALUATE(params, moved, CONFIG).energy))
            slope = -(energies[0] - energies[1]) / (2 * step)
            worst = max(worst, abs(float(slope - forces[atom, axis])))
    assert worst <= 1e-6 * float(jnp.abs(forces).max())
    assert float(jnp.abs(forces).max()) > 1e-2


def test_virial_is_the_strain_derivative(params):
    lattice = np.array([[3.6, 0.1, 0.0], [0.0, 3.5, 0.2], [0.1, 0.0, 3.7]])
    config = dataclasses.replace(CONFIG, max_neighbours=40)
    rng = np.random.default_rng(5)
    graph = as_graph(rng.uniform(0, 3.5, (3, 3)), np.array([0, 1, 2], np.int32), lattice=lattice)
    graph = padded(graph, budget=GraphBudget(n_node=5, n_edge=160, n_graph=2))
    virial = EVALUATE(params, graph, config).virial[0]
    step = 1e-5
    for a, b in ((0, 0), (0, 1), (1, 2), (2, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            stretch = jnp.asarray(np.eye(3) + strain)
            moved = graph._replace(
                nodes={**graph.nodes, "positions": graph.nodes["positions"] @ stretch},
                edges={"shifts": graph.edges["shifts"] @ stretch},
            )
            energies.append(EVALUATE(params, moved, config).energy[0])
        slope = (energies[0] - energies[1]) / (2 * step)
        np.testing.assert_allclose(virial[a, b], slope, atol=1e-7 * float(jnp.abs(virial).max()) + 1e-9)
    assert float(jnp.abs(virial).max()) > 1e-3


def test_invariant_energy_and_equivariant_forces(params, key):
    graph = molecule(0)
    out = EVALUATE(params, padded(graph), CONFIG)
    rotation = np.asarray(jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0])
    for matrix in (rotation, -rotation):
        positions = graph.nodes["positions"] @ matrix.T + np.array([1.0, -2.0, 0.5])
        moved = EVALUATE(params, padded(graph._replace(nodes={**graph.nodes, "positions": positions})), CONFIG)
        np.testing.assert_allclose(moved.energy, out.energy, atol=1e-11)
        np.testing.assert_allclose(moved.forces, out.forces @ matrix.T, atol=1e-11)
        assert np.abs(moved.forces - out.forces).max() > 1e-2


def test_every_degree_contributes(params):
    # An equivariance test also passes for a model that ignores its higher degrees.
    graph = padded(molecule(0))
    energy = EVALUATE(params, graph, CONFIG).energy[0]
    for degree in (1, 2):
        layer = params["layer_0"]
        cut = {**params, "layer_0": {**layer, "mix": layer["mix"].at[degree].set(0.0)}}
        assert abs(EVALUATE(cut, graph, CONFIG).energy[0] - energy) > 1e-4


def test_permuting_atoms_permutes_forces(params):
    graph = molecule(0)
    order = np.array([3, 0, 4, 2, 1])
    moved = as_graph(graph.nodes["positions"][order], graph.nodes["species"][order])
    one, two = EVALUATE(params, padded(graph), CONFIG), EVALUATE(params, padded(moved), CONFIG)
    np.testing.assert_allclose(two.energy, one.energy, atol=1e-12)
    np.testing.assert_allclose(two.forces[:5], one.forces[order], atol=1e-12)


def test_edges_may_come_in_any_order(params):
    graph = molecule(0)
    order = np.random.default_rng(3).permutation(len(graph.senders))
    shuffled = graph._replace(
        senders=graph.senders[order], receivers=graph.receivers[order], edges={"shifts": graph.edges["shifts"][order]}
    )
    np.testing.assert_allclose(
        EVALUATE(params, padded(shuffled), CONFIG).forces, EVALUATE(params, padded(graph), CONFIG).forces, atol=1e-12
    )


def test_padding_and_neighbours_in_the_batch_change_nothing(params):
    one, two = molecule(0), molecule(1, atoms=4)
    alone = EVALUATE(params, padded(one), CONFIG)
    both = EVALUATE(params, padded(two, one), CONFIG)
    np.testing.assert_allclose(both.energy[1], alone.energy[0], atol=1e-12)
    np.testing.assert_allclose(both.forces[4:9], alone.forces[:5], atol=1e-12)
    assert (np.asarray(both.energy[2:]) == 0).all()
    assert (np.asarray(both.forces[9:]) == 0).all()
    assert (np.asarray(both.virial[2:]) == 0).all()
    wider = EVALUATE(params, padded(one, budget=GraphBudget(24, 80, 6)), CONFIG)
    np.testing.assert_allclose(wider.forces[:5], alone.forces[:5], atol=1e-12)


def test_energy_is_continuous_at_the_cutoff(params):
    def pair(distance):
        graph = as_graph(np.array([[0.0, 0, 0], [1.0, 0, 0], [0.0, distance, 0]]), np.array([0, 1, 2], np.int32))
        return EVALUATE(params, padded(graph), CONFIG).energy[0]

    assert abs(pair(CONFIG.r_max - 1e-5) - pair(CONFIG.r_max + 1e-5)) < 1e-10
    assert abs(pair(2.0) - pair(2.5)) > 1e-4


def test_energy_parts(params):
    graph = molecule(0)
    out = EVALUATE(params, padded(graph), CONFIG)
    reference = sum(CONFIG.reference_energies[s] for s in graph.nodes["species"])
    np.testing.assert_allclose(out.energy[0] - out.interaction_energy[0], reference, rtol=1e-12)
    interaction = jax.jit(potential_apply, static_argnums=2)(params, padded(graph), CONFIG)
    np.testing.assert_allclose(interaction, out.interaction_energy, rtol=1e-12)


def squares(params, graph):
    out = energy_and_forces(params, graph, CONFIG)
    return jnp.sum(out.energy**2) + jnp.sum(out.forces**2)


GRADIENT = jax.jit(jax.grad(squares))


@pytest.mark.parametrize("case", ["coincident", "isolated", "empty", "far"])
def test_degenerate_inputs_stay_finite(params, case):
    if case == "coincident":
        graph = molecule(0)
        positions = graph.nodes["positions"].copy()
        positions[int(graph.senders[0])] = positions[int(graph.receivers[0])]
        graph = graph._replace(nodes={**graph.nodes, "positions": positions})
    elif case == "isolated":
        graph = as_graph(np.zeros((1, 3)), np.array([1], np.int32))
    elif case == "far":
        graph = as_graph(1e4 * np.random.default_rng(0).normal(size=(3, 3)), np.array([0, 1, 2], np.int32))
    else:
        graph = as_graph(np.zeros((0, 3)), np.zeros(0, np.int32))
    graph = padded(graph)
    for leaf in jax.tree.leaves((EVALUATE(params, graph, CONFIG), GRADIENT(params, graph))):
        assert np.isfinite(leaf).all()


def test_gradient_of_a_force_loss_against_central_differences(params):
    graph = padded(molecule(0))
    gradient = GRADIENT(params, graph)
    direction = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), params)

    def loss(t):
        out = EVALUATE(jax.tree.map(lambda p, d: p + t * d, params, direction), graph, CONFIG)
        return jnp.sum(out.energy**2) + jnp.sum(out.forces**2)

    step = 1e-6
    slope = (loss(step) - loss(-step)) / (2 * step)
    exact = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(exact, slope, rtol=1e-6)


def test_too_many_neighbours_are_not_silent(params):
    config = dataclasses.replace(CONFIG, max_neighbours=2)
    out = EVALUATE(params, padded(molecule(0)), config)
    assert np.isnan(out.energy[0])
    assert np.isnan(out.forces[0]).all()


def test_energies_start_at_order_one():
    from equivariant_jax.data import aminoethanol, to_graph

    frames = [to_graph(frame, 3.0, (1, 6, 7, 8)) for frame in aminoethanol("train_300K")[:4]]
    graph = padded(*frames, budget=GraphBudget(4 * 12, 4 * 110, 5))
    config = PotentialConfig(
        species=(1, 6, 7, 8), r_max=3.0, channels=32, radial_hidden=(8,), max_neighbours=10, average_neighbours=6.0
    )
    energies = [EVALUATE(INIT(jax.random.key(s), config), graph, config).interaction_energy[0] / 11 for s in range(6)]
    assert 0.1 < np.std(energies) < 5


def test_float32_and_one_trace():
    parameters = INIT(jax.random.key(1), CONFIG)
    traces = []

    @jax.jit
    def evaluate(graph):
        traces.append(1)
        return energy_and_forces(parameters, graph, CONFIG)

    outs = [evaluate(padded(molecule(seed, dtype=np.float32))) for seed in range(3)]
    assert len(traces) == 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outs))


def test_linen_module_is_the_pure_function():
    graph = padded(molecule(0, dtype=np.float32))
    module = InteratomicPotential(CONFIG)
    variables = jax.jit(module.init)(jax.random.key(2), graph)
    out = jax.jit(module.apply)(variables, graph)
    expected = EVALUATE(variables["params"]["potential"], graph, CONFIG)
    np.testing.assert_allclose(out.forces, expected.forces, atol=1e-5)


def test_bad_input_is_named(params):
    graph = padded(molecule(0))
    with pytest.raises(ValueError, match="float32"):
        energy_and_forces(INIT(jax.random.key(1), CONFIG), graph, CONFIG)
    with pytest.raises(ValueError, match="species"):
        energy_and_forces(params, graph._replace(nodes={"positions": graph.nodes["positions"]}), CONFIG)
    with pytest.raises(ValueError, match="shifts"):
        energy_and_forces(params, graph._replace(edges={}), CONFIG)
    for bad in (
        {"species": (1, 1)},
        {"hidden_lmax": 4},
        {"layers": 0},
        {"reference_energies": (1.0,)},
        {"convolution": "mace"},
        {"contraction": "CG"},
    ):
        with pytest.raises(ValueError, match=r"got|entries"):
            dataclasses.replace(CONFIG, **bad)


TWINS = [("gaunt", "gaunt"), ("cg", "gaunt"), ("gaunt", "cg"), ("cg", "cg")]


def test_default_is_gaunt_throughout():
    assert (CONFIG.convolution, CONFIG.contraction) == ("gaunt", "gaunt")
    shapes = jax.tree.map(jnp.shape, INIT(jax.random.key(0), CONFIG))
    assert shapes["layer_1"]["mix"] == (3, 4, 4)
    assert shapes["layer_1"]["radial"][-1]["kernel"] == (8, 12)
    assert shapes["layer_0"]["product"] == (3, 3, 2, 4)


@pytest.mark.parametrize(("convolution", "contraction"), [("cg", "gaunt"), ("cg", "cg")])
def test_clebsch_gordan_twins_are_equivariant_with_exact_forces(x64, key, convolution, contraction):
    config = dataclasses.replace(CONFIG, convolution=convolution, contraction=contraction)
    params, graph = INIT(jax.random.key(1), config, dtype="float64"), molecule(0)
    out = EVALUATE(params, padded(graph), config)
    rotation = np.asarray(jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0])

    def moved_by(positions):
        return EVALUATE(params, padded(graph._replace(nodes={**graph.nodes, "positions": positions})), config)

    for matrix in (rotation, -rotation):
        moved = moved_by(graph.nodes["positions"] @ matrix.T + np.array([1.0, -2.0, 0.5]))
        np.testing.assert_allclose(moved.energy, out.energy, atol=1e-10)
        np.testing.assert_allclose(moved.forces, out.forces @ matrix.T, atol=1e-10 * np.abs(out.forces).max())
        assert np.abs(moved.forces - out.forces).max() > 1e-2
    step = 1e-5 * np.eye(15)[4].reshape(5, 3)
    energies = [moved_by(graph.nodes["positions"] + sign * step).energy[0] for sign in (1, -1)]
    slope = (energies[0] - energies[1]) / 2e-5
    np.testing.assert_allclose(out.forces[1, 1], -slope, atol=1e-6 * np.abs(out.forces).max())
    assert (np.asarray(out.forces[5:]) == 0).all()


def test_twins_share_everything_but_their_products():
    configs = {twin: dataclasses.replace(CONFIG, convolution=twin[0], contraction=twin[1]) for twin in TWINS}
    shapes = {
        twin: jax.tree.map(jnp.shape, jax.eval_shape(lambda c=c: potential_init(jax.random.key(0), c)))
        for twin, c in configs.items()
    }
    for twin, other in shapes.items():
        for layer in ("layer_0", "layer_1"):
            for name, changed in (("up", "gaunt"), ("out", "gaunt"), ("mix", twin[0]), ("product", twin[1])):
                same = other[layer][name] == shapes["gaunt", "gaunt"][layer][name]
                # In the first layer a path is a degree of the filter: nothing changes there.
                assert same == (changed == "gaunt" or (name == "mix" and layer == "layer_0")), (twin, layer, name)
    ours, theirs = (INIT(jax.random.key(1), configs[twin]) for twin in (("gaunt", "gaunt"), ("cg", "cg")))
    for name in ("up", "out", "readout", "skip"):
        jax.tree.map(np.testing.assert_array_equal, ours["layer_1"][name], theirs["layer_1"][name])


def test_one_layer_has_one_convolution(x64):
    """From features of degree zero Gaunt and Clebsch-Gordan convolutions are the same function of the same numbers."""
    config = dataclasses.replace(CONFIG, layers=1)
    params, graph = INIT(jax.random.key(1), config, dtype="float64"), padded(molecule(0))
    ours = EVALUATE(params, graph, config)
    theirs = EVALUATE(params, graph, dataclasses.replace(config, convolution="cg"))
    np.testing.assert_allclose(theirs.forces, ours.forces, atol=1e-12)


@pytest.mark.parametrize(("convolution", "contraction"), TWINS)
def test_activations_start_at_order_one(convolution, contraction):
    """Mean squares per degree behind the neighbour sum and the many-body product, for unit-variance inputs."""
    rng = np.random.default_rng(0)
    config = PotentialConfig(
        species=(1,), channels=16, layers=3, max_neighbours=8, average_neighbours=8.0, hidden_lmax=2,
        radial_hidden=(8,), convolution=convolution, contraction=contraction,
    )  # fmt: skip
    x = jnp.asarray(rng.normal(size=(64, 9, 16)), jnp.float32)
    unit = jnp.asarray(rng.normal(size=(64, 16, 16)), jnp.float32)
    vectors = rng.normal(size=(64, 8, 3))
    vectors = jnp.asarray(2.0 * vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), jnp.float32)
    senders = jnp.asarray(rng.integers(0, 64, (64, 8)), jnp.int32)

    @jax.jit
    def activations(key):
        entry = potential_init(key, config)["layer_1"]
        around = interatomic._neighbourhood(vectors, jnp.ones((64, 8), bool), senders, config)
        gathered = interatomic._neighbour_sum(entry, x, around, config, 1, None)
        return gathered, interatomic._many_body(entry, unit, jnp.zeros(64, jnp.int32), config, 1, None)

    outs = [jax.device_get(activations(jax.random.key(seed))) for seed in range(6)]
    # The mean of eight independent neighbours has an eighth of the variance of one.
    for part, lmax, factor in ((0, 3, 8.0), (1, 2, 1.0)):
        squares = [factor * np.mean([np.mean(out[part][:, s] ** 2) for out in outs]) for s in degree_slices(lmax)]
        assert min(squares) > 0.02
        assert max(squares) < 20


def test_learns_angles_that_its_scalar_twin_cannot_see():
    """Three-body forces among few neighbours: the error of the lmax = 0 twin is at least five times as large.

    One layer sees the distances from an atom to its neighbours; the energy here also depends on the angles between
    them, which a scalar neighbourhood cannot tell apart.
    """
    config = PotentialConfig(
        species=(6,), r_max=3.0, lmax=2, hidden_lmax=0, channels=8, layers=1, correlation=2, radial_hidden=(16,),
        max_neighbours=4, average_neighbours=4.0,
    )  # fmt: skip
    twin = dataclasses.replace(config, lmax=0, channels=16)
    rng = np.random.default_rng(0)

    def star():
        # An atom with four neighbours that do not see each other's energy: only the centre has angles.
        directions = rng.normal(size=(4, 3))
        directions *= rng.uniform(1.4, 1.6, (4, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
        positions = np.concatenate([np.zeros((1, 3)), directions]).astype(np.float32)
        ends = np.array([0, 0, 0, 0], np.int32), np.arange(1, 5, dtype=np.int32)
        return jraph.GraphsTuple(
            nodes={"positions": positions, "species": np.zeros(5, np.int32)}, edges={"shifts": np.zeros((4, 3), "f4")},
            globals={}, senders=ends[1], receivers=ends[0], n_node=np.array([5]), n_edge=np.array([4]),
        )  # fmt: skip

    def truth(positions):
        arms = positions.reshape(-1, 5, 3)
        arms = arms[:, 1:] - arms[:, :1]
        length = jnp.sqrt(jnp.sum(arms**2, axis=-1, keepdims=True))
        cosine = jnp.einsum("gix,gjx->gij", arms / length, arms / length) * (1 - jnp.eye(4)[None])
        return jnp.sum(0.5 * (length - 1.5) ** 2) + 0.25 * jnp.sum((cosine + 1 / 3) ** 2)

    budget = GraphBudget(5 * 16 + 1, 4 * 16, 17)
    batches = [padded(*(star() for _ in range(16)), budget=budget) for _ in range(9)]
    batches = [(b, -jax.jit(jax.grad(truth))(b.nodes["positions"][:-1])) for b in batches]

    def train(config):
        optimizer = optax.scale_by_adam()
        parameters = INIT(jax.random.key(0), config)
        state = optimizer.init(parameters)

        def loss(parameters, graph, forces):
            return jnp.mean((energy_and_forces(parameters, graph, config).forces[:-1] - forces) ** 2)

        @jax.jit
        def step(parameters, state, graph, forces, rate):
            value, gradient = jax.value_and_grad(loss)(parameters, graph, forces)
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 power
                updates, state = optimizer.update(gradient, state)
            return jax.tree.map(lambda p, u: p - rate * u, parameters, updates), state, value

        for i in range(250):
            rate = jnp.float32(2e-2 * (1 - i / 250))
            parameters, state, _ = step(parameters, state, *batches[i % 8], rate)
        return float(jnp.sqrt(jax.jit(loss)(parameters, *batches[8]))), sum(p.size for p in jax.tree.leaves(parameters))

    (ours, size), (theirs, twin_size) = train(config), train(twin)
    assert twin_size >= size
    assert theirs >= 5 * ours, (ours, theirs)
