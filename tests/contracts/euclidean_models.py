"""Contract entries of the models of `euclidean`: potentials, the graph transformer, steerable message passing."""

import dataclasses

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equivariant_jax.core import graphs, groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import (
    EquiformerConfig,
    MotionConfig,
    PotentialConfig,
    SteerableConfig,
    energy_and_forces,
    eqmotion_apply,
    eqmotion_init,
    equiformer_apply,
    equiformer_init,
    potential_init,
    steerable_apply,
    steerable_init,
)
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]


def _coincident(inputs):
    return (inputs[0].at[1].set(inputs[0][0]), *inputs[1:])


CONFIG = PotentialConfig(species=(1, 6, 8), r_max=3.0, lmax=1, correlation=2, channels=4, max_neighbours=6)
CG_CONFIG = dataclasses.replace(CONFIG, convolution="cg", contraction="cg")
# The exact activation; what the grid of the other one breaks is measured in test_equiformer.py.
EQUIFORMER = EquiformerConfig(
    species=(1, 6, 8), r_max=3.0, lmax=2, mmax=1, channels=4, layers=1, heads=2, hidden_channels=4, alpha_channels=4,
    value_channels=2, ffn_channels=4, edge_channels=4, num_basis=6, activation="gate", grid_mlp=False, selfmix=True,
    average_neighbours=4.0, average_atoms=5.0,
)  # fmt: skip
NUM_ATOMS, NUM_EDGES, BUDGET = 5, 20, graphs.GraphBudget(n_node=8, n_edge=28, n_graph=4)
ALL_PAIRS = [(i, j) for j in range(NUM_ATOMS) for i in range(NUM_ATOMS) if i != j]


def _atoms(key, dtype):
    """One molecule of five atoms and one without atoms, as one padded batch of flat arrays."""
    places = np.array([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [0, 0, 1.3], [0.9, 0.9, 0.8]])
    positions = jnp.asarray(places, dtype) + jnp.asarray(0.1, dtype) * jax.random.normal(key, places.shape, dtype)
    positions = jnp.concatenate([positions, jnp.zeros((BUDGET.n_node - NUM_ATOMS, 3), dtype)])
    species = jnp.asarray([0, 1, 2, 0, 1, 0, 0, 0], jnp.int32)
    shifts = jnp.zeros((BUDGET.n_edge, 3), dtype)
    return positions, species, shifts


def _graph(positions, species, shifts):
    whole = jraph.GraphsTuple(
        nodes={"x": np.zeros((NUM_ATOMS, 1))},
        edges=None,
        globals=None,
        senders=np.array([i for i, _ in ALL_PAIRS]),
        receivers=np.array([j for _, j in ALL_PAIRS]),
        n_node=np.array([NUM_ATOMS, 0]),
        n_edge=np.array([NUM_EDGES, 0]),
    )
    return graphs.pad(whole, BUDGET)._replace(
        nodes={"positions": positions, "species": species}, edges={"shifts": shifts}, globals={}
    )


def _potential(config):
    def function(params, *atoms):
        out = energy_and_forces(params, _graph(*atoms), config)
        return {"energy": out.energy, "forces": out.forces, "virial": out.virial}

    return function


def _equiformer(params, *atoms):
    out = equiformer_apply(params, _graph(*atoms), EQUIFORMER)
    return {"energy": out.energy, "forces": out.forces}


@dataclasses.dataclass(frozen=True)
class RealAtoms:
    """A permutation of the real atoms; padding stays where it is. All pairs are edges, so edges need not move."""

    def __call__(self, g, x):
        return rep.Permuted((0,))(jnp.concatenate([g, jnp.arange(NUM_ATOMS, BUDGET.n_node, dtype=g.dtype)]), x)


E3, S5 = groups.Euclidean(3), groups.Symmetric(NUM_ATOMS)
ENERGY_LAWS = (
    Law(
        E3,
        (rep.Point(), rep.Trivial(), rep.Vector()),
        {
            "energy": rep.Trivial(),
            "forces": rep.Vector(),
            "virial": rep.TensorProduct(rep.Vector(-1), rep.Vector(-2)),
        },
    ),
    Law(
        S5,
        (RealAtoms(), RealAtoms(), rep.Trivial()),
        {"energy": rep.Trivial(), "forces": RealAtoms(), "virial": rep.Trivial()},
    ),
)


def _potential_padding(inputs):
    atoms = jnp.arange(BUDGET.n_node) >= NUM_ATOMS
    edges = jnp.arange(BUDGET.n_edge) >= NUM_EDGES
    graph = jnp.arange(BUDGET.n_graph) >= 2
    return (atoms, None, edges), {"energy": graph, "forces": atoms, "virial": graph}


def _equiformer_padding(inputs):
    padding, out = _potential_padding(inputs)
    return padding, {name: out[name] for name in ("energy", "forces")}


DEGENERATE = (
    _coincident,
    lambda inputs: (100.0 * inputs[0], *inputs[1:]),  # every atom alone
)

# Five nodes, the last two padding; velocities as vectors.
STEERABLE = {
    product: SteerableConfig(
        scalars_in=2,
        vectors_in=1,
        scalars_out=1,
        pseudoscalars_out=int(product in ("cg_odd", "gaunt_bracket")),
        vectors_out=1,
        product=product,
        channels=4,
        layers=1,
    )
    for product in ("cg", "cg_odd", "gaunt", "gaunt_bracket")
}
NODES = np.array([True] * 3 + [False] * 2)


@dataclasses.dataclass(frozen=True)
class RealNodes:
    """A permutation of the three real nodes."""

    def __call__(self, g, x):
        return rep.Permuted((0,))(jnp.concatenate([g, jnp.arange(3, 5, dtype=g.dtype)]), x)


@dataclasses.dataclass(frozen=True)
class Pseudoscalar:
    """Changes sign with the determinant of the group's matrix."""

    def __call__(self, g, x):
        return jnp.linalg.det(g.matrix).astype(x.dtype) * x


def _steerable(product):
    def function(params, positions, scalars, velocities, mask):
        out = steerable_apply(params, positions, scalars, STEERABLE[product], vectors=velocities[:, None], mask=mask)
        return out._asdict()

    return function


def _steerable_inputs(product):
    def make(key, dtype):
        keys = jax.random.split(key, 3)
        inputs = [jax.random.normal(k, (5, n), dtype) for k, n in zip(keys, (3, 2, 3), strict=True)]
        return steerable_init(jax.random.key(3), STEERABLE[product], dtype=dtype), (*inputs, jnp.asarray(NODES))

    return make


STEERABLE_LAWS = (
    Law(
        groups.Euclidean(3),
        (rep.Point(), rep.Trivial(), rep.Vector(), rep.Trivial()),
        {"scalars": rep.Trivial(), "pseudoscalars": Pseudoscalar(), "vectors": rep.Vector()},
    ),
    Law(
        groups.Symmetric(3),
        (RealNodes(), RealNodes(), RealNodes(), rep.Trivial()),
        {"scalars": RealNodes(), "pseudoscalars": RealNodes(), "vectors": RealNodes()},
    ),
)

MOTION = MotionConfig(past=4, future=3, scalars=4, channels=4, layers=2, heads=2)


def _scene(key, dtype):
    positions = jax.random.normal(key, (5, 4, 3), dtype).cumsum(axis=1)
    return eqmotion_init(jax.random.key(3), MOTION, dtype=dtype), (positions, jnp.ones(5, bool))


LAYERS = [
    *(
        Layer(
            name=f"euclidean.energy_and_forces{label}",
            function=_potential(config),
            make=lambda key, dtype, config=config: (
                potential_init(jax.random.key(3), config, dtype=dtype),
                _atoms(key, dtype),
            ),
            laws=ENERGY_LAWS,
            degenerate=DEGENERATE,
            padding=_potential_padding,
            dtypes=("float32",),
            slow=bool(label),
        )
        for label, config in (("", CONFIG), (" (Clebsch-Gordan products)", CG_CONFIG))
    ),
    Layer(
        name="euclidean.equiformer_apply",
        function=_equiformer,
        make=lambda key, dtype: (equiformer_init(jax.random.key(3), EQUIFORMER, dtype=dtype), _atoms(key, dtype)),
        laws=(
            Law(
                groups.SpecialEuclidean(3),
                (rep.Point(), rep.Trivial(), rep.Vector()),
                {"energy": rep.Trivial(), "forces": rep.Vector()},
            ),
            Law(S5, (RealAtoms(), RealAtoms(), rep.Trivial()), {"energy": rep.Trivial(), "forces": RealAtoms()}),
        ),
        degenerate=DEGENERATE,
        padding=_equiformer_padding,
        dtypes=("float32",),
    ),
    *(
        Layer(
            name=f"euclidean.steerable_apply ({product})",
            function=_steerable(product),
            make=_steerable_inputs(product),
            laws=STEERABLE_LAWS,
            degenerate=(_coincident,),
            padding=lambda inputs: (
                (~inputs[3], ~inputs[3], ~inputs[3], None),
                {name: ~inputs[3] for name in ("scalars", "pseudoscalars", "vectors")},
            ),
            dtypes=("float32",),
            slow=product != "gaunt_bracket",
        )
        for product in ("gaunt", "gaunt_bracket", "cg_odd")
    ),
    Layer(
        name="euclidean.eqmotion_apply",
        function=lambda params, positions, mask: eqmotion_apply(params, positions, MOTION, mask),
        make=_scene,
        laws=(
            Law(
                groups.Euclidean(3),
                (rep.Point(), rep.Trivial()),
                (rep.Point(), rep.Trivial()),
            ),
            Law(
                groups.Symmetric(5),
                (rep.Permuted((-3,)), rep.Permuted((-1,))),
                (rep.Permuted((-3,)), rep.Permuted((-3, -2))),
            ),
        ),
        degenerate=(_coincident,),
        dtypes=("float32",),
        leading_axes=True,
    ),
]
