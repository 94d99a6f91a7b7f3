import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.data import AtomicStructure, to_graph
from equivariant_jax.euclidean.pair_potential import PairPotential, fit_pair_potential, pair_features
from equivariant_jax.euclidean.radial import bessel_basis, polynomial_cutoff


def structures(count, seed=0):
    rng = np.random.default_rng(seed)
    numbers = np.array([1, 8, 1, 8])
    return [AtomicStructure(numbers, 1.5 * rng.normal(size=(4, 3)) + 2.0 * np.eye(4, 3)) for _ in range(count)]


def test_features_are_the_radial_functions_of_the_library(x64):
    structure = AtomicStructure(np.array([1, 8]), np.array([[0.0, 0, 0], [0, 1.7, 0]]))
    energy, forces = pair_features(to_graph(structure, 5.0, (1, 8)), 2, 4, 5.0)
    basis = lambda r: bessel_basis(r, 4, 5.0) * polynomial_cutoff(r, 5.0)  # noqa: E731
    # Elements (0, 1) are pair 1; positions travel in float32.
    np.testing.assert_allclose(energy[4:8], basis(jnp.array(1.7)), atol=1e-6)
    assert energy[-1] == 2
    np.testing.assert_allclose(forces[1, 1, 4:8], -jax.jacfwd(basis)(jnp.array(1.7)), rtol=1e-5)
    np.testing.assert_allclose(forces[0], -forces[1], atol=1e-15)


def test_force_features_are_minus_the_gradient():
    structure = structures(1)[0]
    _, forces = pair_features(to_graph(structure, 5.0, (1, 8)), 2, 4, 5.0)
    step = 2.0**-7  # exact in float32
    for atom, axis in ((0, 1), (3, 2)):
        ends = []
        for sign in (1, -1):
            positions = structure.positions.astype(np.float32).astype(np.float64)
            positions[atom, axis] += sign * step
            ends.append(
                pair_features(to_graph(AtomicStructure(structure.numbers, positions), 5.0, (1, 8)), 2, 4, 5.0)[0]
            )
        slope = -(ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(forces[atom, axis], slope, atol=5e-3 * np.abs(forces).max())


def test_recovers_a_pair_potential():
    truth = PairPotential(np.random.default_rng(1).normal(size=3 * 6 + 1), 2, 6, 4.0)
    graphs = []
    for structure in structures(40):
        graph = to_graph(structure, 4.0, (1, 8))
        energy, forces = truth.predict(graph)
        graphs.append(graph._replace(nodes={**graph.nodes, "forces": forces}, globals={"energy": np.array([energy])}))
    fitted = fit_pair_potential(graphs[:30], 2, num_bessel=6, r_max=4.0, ridge=1e-14)
    for graph in graphs[30:]:
        np.testing.assert_allclose(fitted.predict(graph)[1], graph.nodes["forces"], atol=1e-4)


def test_needs_data():
    with pytest.raises(ValueError, match="none"):
        fit_pair_potential([], 2)
