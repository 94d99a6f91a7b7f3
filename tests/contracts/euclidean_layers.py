"""Contract entries of `euclidean` and of the network blocks it uses."""

import dataclasses

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equivariant_jax.core import graphs, groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import (
    PotentialConfig,
    bessel_basis,
    degree_linear,
    energy_and_forces,
    from_sphere_grid,
    gaunt_convolution,
    gaunt_convolution_slots,
    gaunt_polynomial,
    gaunt_power,
    gaunt_tensor_product,
    polynomial_cutoff,
    potential_init,
    spherical_harmonics,
    spherical_poisson_bracket,
    to_sphere_grid,
)
from equivariant_jax.nn.mlp import mlp_apply, mlp_init
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

O3 = groups.Orthogonal(3)
FIELD, LAST = rep.Irreps, -1
# Pseudo parity on one factor: mixed products are pseudo-fields, (-1)^(l+1) under inversion.
PSEUDO = rep.Irreps(tuple((l, -((-1) ** l)) for l in range(3)))
PSEUDO_OUT = rep.Irreps(tuple((l, -((-1) ** l)) for l in range(6)))


def _normal(*shapes):
    def make(key, dtype):
        keys = jax.random.split(key, len(shapes))
        return {}, tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))

    return make


def _coincident(inputs):
    return (inputs[0].at[1].set(inputs[0][0]), *inputs[1:])


# A convolution over eight edges of five nodes, the last two edges padding.
SENDERS = np.array([1, 2, 0, 3, 4, 0, 4, 4], np.int32)
RECEIVERS = np.array([0, 0, 1, 1, 2, 3, 4, 4], np.int32)
EDGE_MASK = np.array([True] * 6 + [False] * 2)
SLOT_SENDERS = np.array([[1, 2], [0, 3], [4, 0], [0, 0], [0, 0]], np.int32)


def _convolution(method):
    def function(params, x, vectors, radial, mask):
        return gaunt_convolution(x, vectors, radial, SENDERS, RECEIVERS, lmax_out=2, method=method, mask=mask)

    return function


def _convolution_inputs(key, dtype):
    _, (x, vectors, radial) = _normal((5, 4, 2), (8, 3), (8, 3, 2))(key, dtype)
    return {}, (x, vectors, radial, jnp.asarray(EDGE_MASK))


def _slots(params, x, vectors, radial):
    harmonics = spherical_harmonics(vectors, 2, normalization="integral")
    return gaunt_convolution_slots(x, harmonics, radial, SLOT_SENDERS, lmax_out=2)


CONFIG = PotentialConfig(species=(1, 6, 8), r_max=3.0, lmax=1, correlation=2, channels=4, max_neighbours=6)
NUM_ATOMS, NUM_EDGES, BUDGET = 5, 20, graphs.GraphBudget(n_node=8, n_edge=28, n_graph=4)
ALL_PAIRS = [(i, j) for j in range(NUM_ATOMS) for i in range(NUM_ATOMS) if i != j]


def _potential_inputs(key, dtype):
    """One molecule of five atoms and one without atoms, as one padded batch of flat arrays."""
    places = np.array([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [0, 0, 1.3], [0.9, 0.9, 0.8]])
    positions = jnp.asarray(places, dtype) + jnp.asarray(0.1, dtype) * jax.random.normal(key, places.shape, dtype)
    positions = jnp.concatenate([positions, jnp.zeros((BUDGET.n_node - NUM_ATOMS, 3), dtype)])
    species = jnp.asarray([0, 1, 2, 0, 1, 0, 0, 0], jnp.int32)
    shifts = jnp.zeros((BUDGET.n_edge, 3), dtype)
    return potential_init(jax.random.key(3), CONFIG, dtype=dtype), (positions, species, shifts)


def _potential(params, positions, species, shifts):
    whole = jraph.GraphsTuple(
        nodes={"x": np.zeros((NUM_ATOMS, 1))},
        edges=None,
        globals=None,
        senders=np.array([i for i, _ in ALL_PAIRS]),
        receivers=np.array([j for _, j in ALL_PAIRS]),
        n_node=np.array([NUM_ATOMS, 0]),
        n_edge=np.array([NUM_EDGES, 0]),
    )
    padded = graphs.pad(whole, BUDGET)._replace(
        nodes={"positions": positions, "species": species}, edges={"shifts": shifts}, globals={}
    )
    out = energy_and_forces(params, padded, CONFIG)
    return {"energy": out.energy, "forces": out.forces, "virial": out.virial}


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
    out = {
        "energy": jnp.arange(BUDGET.n_graph) >= 2,
        "forces": atoms,
        "virial": jnp.arange(BUDGET.n_graph) >= 2,
    }
    return (atoms, None, edges), out


LAYERS = [
    Layer(
        name="euclidean.spherical_harmonics",
        function=lambda params, v: spherical_harmonics(v, 4),
        make=_normal((5, 3)),
        laws=(Law(O3, (rep.Vector(),), FIELD(4)),),
        degenerate=(
            lambda inputs: (inputs[0].at[0].set(0.0),),
            lambda inputs: (inputs[0].at[0].set(jnp.array([0.0, 1.0, 0.0], inputs[0].dtype)),),
        ),
        leading_axes=True,
    ),
    *(
        Layer(
            name=f"euclidean.gaunt_tensor_product ({method})",
            function=lambda params, x, y, method=method: gaunt_tensor_product(x, y, method=method),
            make=_normal((4, 9), (4, 16)),
            laws=(
                Law(O3, (FIELD(2), FIELD(3)), FIELD(5)),
                Law(O3, (PSEUDO, FIELD(3)), PSEUDO_OUT),
            ),
            dtypes=("float32",) if method == "fourier" else ("float32", "bfloat16"),
            leading_axes=True,
            check_vma=method != "fused",
        )
        for method in ("grid", "quadrant", "octant", "separable", "fourier", "sparse", "fused")
    ),
    Layer(
        name="euclidean.gaunt_tensor_product (component, truncated, weighted)",
        function=lambda params, x, y: gaunt_tensor_product(
            x, y, lmax_out=1, normalization="component", weights=(None, None, params["w"].reshape(1, 2))
        ),
        make=lambda key, dtype: ({"w": jnp.asarray([0.5, 2.0], dtype)}, _normal((4, 9), (4, 9))(key, dtype)[1]),
        laws=(Law(O3, (FIELD(2), FIELD(2)), FIELD(1)),),
    ),
    *(
        Layer(
            name=f"euclidean.spherical_poisson_bracket ({method})",
            function=lambda params, x, y, method=method: spherical_poisson_bracket(x, y, method=method),
            make=_normal((4, 9), (4, 16)),
            laws=(
                Law(O3, (FIELD(2), FIELD(3)), rep.Irreps(tuple((l, -((-1) ** l)) for l in range(5)))),
                Law(O3, (PSEUDO, FIELD(3)), FIELD(4)),
            ),
            leading_axes=True,
        )
        for method in ("grid", "octant", "separable")
    ),
    Layer(
        name="euclidean.gaunt_power",
        function=lambda params, x: gaunt_power(x, 3),
        make=_normal((4, 9)),
        laws=(Law(O3, (FIELD(2),), FIELD(2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.gaunt_polynomial",
        function=lambda params, x: gaunt_polynomial(x, jnp.broadcast_to(params["w"], (4, 3, 2, 3)), lmax_out=1),
        make=lambda key, dtype: (
            {"w": jax.random.normal(key, (3, 2, 3), dtype)[None]},
            _normal((4, 9, 3))(key, dtype)[1],
        ),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(1, axis=-2)),),
    ),
    Layer(
        name="euclidean.to_sphere_grid, squared, from_sphere_grid",
        function=lambda params, x: from_sphere_grid(to_sphere_grid(x, 6) ** 2, 2, 6),
        make=_normal((4, 9)),
        laws=(Law(O3, (FIELD(2),), FIELD(2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.degree_linear",
        function=lambda params, x: degree_linear(params["kernels"], x),
        make=lambda key, dtype: (
            {"kernels": jax.random.normal(key, (3, 2, 4), dtype)},
            _normal((5, 9, 2))(key, dtype)[1],
        ),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(2, axis=-2)),),
        leading_axes=True,
    ),
    *(
        Layer(
            name=f"euclidean.gaunt_convolution ({method})",
            function=_convolution(method),
            make=_convolution_inputs,
            laws=(Law(O3, (FIELD(1, axis=-2), rep.Vector(), rep.Trivial(), rep.Trivial()), FIELD(2, axis=-2)),),
            degenerate=(
                lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]), *inputs[2:]),
                lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]).at[:, 1].set(-1.0), *inputs[2:]),
            ),
            padding=lambda inputs: ((None, ~inputs[3], ~inputs[3], None), None),
        )
        for method in ("grid", "rotated")
    ),
    Layer(
        name="euclidean.gaunt_convolution_slots",
        function=_slots,
        make=_normal((5, 4, 2), (5, 2, 3), (5, 2, 3, 2)),
        laws=(Law(O3, (FIELD(1, axis=-2), rep.Vector(), rep.Trivial()), FIELD(2, axis=-2)),),
        degenerate=(lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]), inputs[2]),),
    ),
    Layer(
        name="euclidean.radial basis with cut-off",
        function=lambda params, v: (
            bessel_basis(jnp.sqrt(jnp.sum(v**2, -1) + jnp.asarray(1e-4, v.dtype)), 4, 3.0)
            * polynomial_cutoff(jnp.sqrt(jnp.sum(v**2, -1) + jnp.asarray(1e-4, v.dtype)), 3.0)[..., None]
        ),
        make=_normal((5, 3)),
        laws=(Law(O3, (rep.Vector(),), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.energy_and_forces",
        function=_potential,
        make=_potential_inputs,
        laws=ENERGY_LAWS,
        degenerate=(
            _coincident,
            lambda inputs: (100.0 * inputs[0], *inputs[1:]),  # every atom alone
        ),
        padding=_potential_padding,
        dtypes=("float32",),
    ),
    Layer(
        name="nn.mlp",
        function=lambda params, x: mlp_apply(params, x),
        make=lambda key, dtype: (mlp_init(key, (3, 8, 2), dtype=dtype), _normal((5, 3))(key, dtype)[1]),
        laws=(Law(groups.Symmetric(5), (rep.Permuted(),), rep.Permuted()),),
        leading_axes=True,
    ),
]
