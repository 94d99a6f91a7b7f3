"""Rotations, reflections and translations of three-dimensional space, in the basis of spherical harmonics.

Features are coefficients of functions on the sphere, `[..., (lmax + 1)**2]` in e3nn's order; a rotation acts on each
degree by its Wigner matrix. Everything here commutes with the whole group O(3), and potentials with E(3) and with
relabelling of atoms.

- `harmonics`, `irreps`: real spherical harmonics of any degree, index tables, linear maps per degree.
- `quadrature`, `reflections`, `separable`: exact rules on the sphere, maps between coefficients and grid values.
- `gaunt`, `bracket`, `many_body`: products of functions on the sphere, the Poisson bracket for the paths they lack, and
  powers; `modules` (Linen) and `irreps_array` (e3nn-jax) around them. `fourier`, `fused`, `gaunt_coefficients` are
  further routes to the same numbers, `method_choice` chooses among them.
- `gaunt_contraction`: many-body products on the sphere with a weight for every path.
- `coupling`, `symmetric_contraction`: Clebsch-Gordan products, path by path, to compare with.
- `radial`, `neighbours`, `edge_frames`, `convolution`: radial functions, neighbour tables, frames along edges,
  convolutions over neighbours.
- `interatomic`: a MACE-like interatomic potential on either kind of product; energies, exact forces, stress.
- `equiformer`: a graph transformer after EquiformerV2 with the Gaunt self-interaction.
- `steerable`: steerable message passing (SEGNN) on either kind of product.
- `vectors`, `motion`: channels of vectors in any dimension; motion of interacting points (EqMotion), on all pairs or
  (`motion_graph`) on the edges of graphs.
- `egnn`: an equivariant graph network on coordinates, on all pairs of a padded set.
- `pair_potential`: a linear pair potential by ridge regression, the baseline.
- `dynamics`: potentials as ASE calculators (molecular dynamics, relaxation).

    >>> import jax, jax.numpy as jnp
    >>> from equivariant_jax import euclidean
    >>> y = euclidean.spherical_harmonics(jnp.array([0.0, 0.0, 1.0]), lmax=2)
    >>> euclidean.gaunt_tensor_product(y, y, lmax_out=4).shape
    (25,)
"""

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.euclidean.bracket import spherical_poisson_bracket
from equivariant_jax.euclidean.convolution import gaunt_convolution, gaunt_convolution_slots
from equivariant_jax.euclidean.coupling import cg_convolution_slots, clebsch_gordan, coupling_paths
from equivariant_jax.euclidean.dynamics import potential_calculator
from equivariant_jax.euclidean.edge_frames import edge_frames, rotate_from_frame, rotate_to_frame
from equivariant_jax.euclidean.egnn import EgnnConfig, EgnnOutput, egnn_apply, egnn_init
from equivariant_jax.euclidean.equiformer import (
    Equiformer,
    EquiformerConfig,
    EquiformerOutput,
    equiformer_apply,
    equiformer_block,
    equiformer_init,
)
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.gaunt_contraction import gaunt_contraction, gaunt_paths
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.interatomic import (
    InteratomicPotential,
    PotentialConfig,
    PotentialOutput,
    atomic_energies,
    energy_and_forces,
    potential_apply,
    potential_init,
)
from equivariant_jax.euclidean.irreps import (
    degree_index,
    degree_linear,
    degree_slices,
    expand_degrees,
    lmax_of,
    num_coefficients,
)
from equivariant_jax.euclidean.irreps_array import from_irreps_array, spherical_product, to_irreps_array
from equivariant_jax.euclidean.many_body import gaunt_polynomial, gaunt_power
from equivariant_jax.euclidean.modules import GauntConvolution, GauntSelfInteraction, SphericalProduct
from equivariant_jax.euclidean.motion import EqMotion, MotionConfig, eqmotion_apply, eqmotion_init
from equivariant_jax.euclidean.motion_graph import eqmotion_graph_apply
from equivariant_jax.euclidean.neighbours import NeighbourSlots, neighbour_slots
from equivariant_jax.euclidean.pair_potential import PairPotential, fit_pair_potential, pair_features
from equivariant_jax.euclidean.quadrature import (
    SphereQuadrature,
    from_sphere_grid,
    sphere_quadrature,
    to_sphere_grid,
)
from equivariant_jax.euclidean.radial import bessel_basis, polynomial_cutoff
from equivariant_jax.euclidean.steerable import (
    SteerableConfig,
    SteerableNetwork,
    SteerableOutput,
    steerable_apply,
    steerable_init,
)
from equivariant_jax.euclidean.symmetric_contraction import contraction_paths, symmetric_contraction

__all__ = [
    "EgnnConfig",
    "EgnnOutput",
    "EqMotion",
    "Equiformer",
    "EquiformerConfig",
    "EquiformerOutput",
    "GauntConvolution",
    "GauntSelfInteraction",
    "InteratomicPotential",
    "MotionConfig",
    "NeighbourSlots",
    "PairPotential",
    "PotentialConfig",
    "PotentialOutput",
    "SphereQuadrature",
    "SphericalProduct",
    "SteerableConfig",
    "SteerableNetwork",
    "SteerableOutput",
    "atomic_energies",
    "bessel_basis",
    "cg_convolution_slots",
    "clebsch_gordan",
    "contraction_paths",
    "coupling_paths",
    "degree_index",
    "degree_linear",
    "degree_slices",
    "edge_frames",
    "egnn_apply",
    "egnn_init",
    "energy_and_forces",
    "eqmotion_apply",
    "eqmotion_graph_apply",
    "eqmotion_init",
    "equiformer_apply",
    "equiformer_block",
    "equiformer_init",
    "expand_degrees",
    "fit_pair_potential",
    "from_irreps_array",
    "from_sphere_grid",
    "gaunt_contraction",
    "gaunt_convolution",
    "gaunt_convolution_slots",
    "gaunt_paths",
    "gaunt_polynomial",
    "gaunt_power",
    "gaunt_table",
    "gaunt_tensor_product",
    "lmax_of",
    "neighbour_slots",
    "num_coefficients",
    "pair_features",
    "polynomial_cutoff",
    "potential_apply",
    "potential_calculator",
    "potential_init",
    "rotate_from_frame",
    "rotate_to_frame",
    "sphere_quadrature",
    "sphere_table",
    "spherical_harmonics",
    "spherical_poisson_bracket",
    "spherical_product",
    "steerable_apply",
    "steerable_init",
    "symmetric_contraction",
    "to_irreps_array",
    "to_sphere_grid",
]
