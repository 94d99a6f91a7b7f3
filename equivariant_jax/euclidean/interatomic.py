r"""An equivariant interatomic potential of the MACE family, with Gaunt products where MACE has Clebsch-Gordan ones.

Atoms carry features `[(hidden_lmax + 1)**2, channels]`; each layer
  1. mixes channels per degree and sums over neighbours, `A_i = sum_j GTP(x_j, sum_l R_l(r_ij) Y_l(r_ij))`, with learned
     radial functions per degree and channel;
  2. takes the many-body product `B_i = sum_nu w_nu P[A_i^nu]` as pointwise powers on the sphere, with weights per
     element, order, degree and channel;
  3. mixes channels, adds the features that came in, and reads an invariant energy off the scalars.

The energy is a sum over atoms plus fixed energies of the isolated atoms; forces and stress are its exact derivatives
(the model depends on edge vectors only, so one gradient gives both).

Law: for every rotation or reflection R, shift t and permutation P, `E(P(R x + t)) == E(x)` and
`F(P(R x + t)) == P(R F(x))`.

Differences from MACE: one Gaunt path per order instead of all Clebsch-Gordan paths (expressivity comes back through the
channel mixing), a residual with weights per element and degree instead of one matrix per element, and a bias-free
radial network that makes an edge vanish smoothly at the cut-off. `convolution="cg"` and `contraction="cg"` bring MACE's
own products back in step 1 and step 2 and change nothing else: the twin to compare with. The paper's MACE-Gaunt has the
convolution of the one and the contraction of the other.

References: Batatia et al. 2022, arXiv:2206.07697; Luo et al. 2024, arXiv:2401.10216.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax

from equivariant_jax.core.graphs import edge_mask, node_graph_index, node_mask
from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.segments import segment_sum
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.convolution import gaunt_convolution_slots
from equivariant_jax.euclidean.coupling import cg_convolution_slots, coupling_paths
from equivariant_jax.euclidean.gaunt_contraction import gaunt_contraction, gaunt_paths
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.irreps import degree_linear, expand_degrees
from equivariant_jax.euclidean.many_body import gaunt_polynomial
from equivariant_jax.euclidean.neighbours import check_atomic_graph, neighbour_slots
from equivariant_jax.euclidean.radial import bessel_basis, polynomial_cutoff
from equivariant_jax.euclidean.symmetric_contraction import contraction_paths, symmetric_contraction
from equivariant_jax.nn.mlp import mlp_apply, mlp_init

__all__ = [
    "InteratomicPotential",
    "PotentialConfig",
    "PotentialOutput",
    "atomic_energies",
    "energy_and_forces",
    "potential_apply",
    "potential_init",
]


@dataclasses.dataclass(frozen=True)
class PotentialConfig:
    """Everything static about a potential; hashable.

    Attributes:
      species: atomic numbers that the model knows, in the order of the graph's species index.
      r_max: cut-off radius in angstrom.
      lmax: largest degree of the edge harmonics and of the neighbourhood `A`.
      hidden_lmax: largest degree that atoms pass on to the next layer, at most `lmax`.
      channels: features per coefficient.
      layers: rounds of message passing.
      correlation: highest power of the neighbourhood (body order minus one).
      num_bessel: radial basis functions.
      cutoff_power: exponent p of the polynomial cut-off.
      radial_hidden: hidden widths of the radial network.
      readout_hidden: hidden width of the last read-out.
      max_neighbours: static slots per atom; more neighbours than this turn the energies into NaN, so take it from the
        data with room to spare.
      average_neighbours: mean number of neighbours, by which sums are normalised.
      energy_scale: unit of the network's atomic energies in eV.
      energy_shift: mean interaction energy per atom in eV.
      reference_energies: energy of an isolated atom of each species in eV, or empty for zero.
      convolution: products over neighbours, "gaunt" (radial functions per degree) or "cg" (per Clebsch-Gordan path).
      contraction: many-body products, "gaunt" (powers on the sphere, a weight for each order), "gaunt_paths" (products
        on the sphere, a weight for each set of degrees) or "cg" (MACE's symmetric contraction).
    """

    species: tuple[int, ...]
    r_max: float = 5.0
    lmax: int = 3
    hidden_lmax: int = 1
    channels: int = 64
    layers: int = 2
    correlation: int = 3
    num_bessel: int = 8
    cutoff_power: int = 5
    radial_hidden: tuple[int, ...] = (64,)
    readout_hidden: int = 16
    max_neighbours: int = 32
    average_neighbours: float = 12.0
    energy_scale: float = 1.0
    energy_shift: float = 0.0
    reference_energies: tuple[float, ...] = ()
    convolution: Literal["gaunt", "cg"] = "gaunt"
    contraction: Literal["gaunt", "gaunt_paths", "cg"] = "gaunt"

    def __post_init__(self):
        if not self.species or len(set(self.species)) != len(self.species):
            raise ValueError(f"species must be distinct atomic numbers, at least one, got {self.species}.")
        if self.hidden_lmax > self.lmax or min(self.lmax, self.hidden_lmax) < 0:
            raise ValueError(f"0 <= hidden_lmax <= lmax is needed, got {self.hidden_lmax} and {self.lmax}.")
        if min(self.channels, self.layers, self.correlation, self.max_neighbours) < 1:
            raise ValueError(f"channels, layers, correlation and max_neighbours must be at least 1, got {self}.")
        if self.reference_energies and len(self.reference_energies) != len(self.species):
            raise ValueError(
                f"reference_energies has {len(self.reference_energies)} entries for {len(self.species)} species."
            )
        if self.convolution not in ("gaunt", "cg") or self.contraction not in ("gaunt", "gaunt_paths", "cg"):
            raise ValueError(
                'convolution must be "gaunt" or "cg", contraction "gaunt", "gaunt_paths" or "cg", got '
                f"{self.convolution!r} and {self.contraction!r}."
            )


class PotentialOutput(NamedTuple):
    """What the potential predicts for a (padded) batch; zeros on padding.

    Attributes:
      interaction_energy: energy without the isolated atoms, shape `[n_graph]`, in eV. Train on this one: total energies
        of 10^4 eV leave float32 no digits below a meV.
      energy: total energy, shape `[n_graph]`, in eV.
      forces: minus the gradient of the energy, shape `[n_node, 3]`, in eV/angstrom.
      virial: derivative of the energy by a homogeneous strain, symmetric, shape `[n_graph, 3, 3]`, in eV; the stress is
        `virial / volume`.
    """

    interaction_energy: Array
    energy: Array
    forces: Array
    virial: Array


def _lmax_in(config: PotentialConfig, layer: int) -> int:
    return 0 if layer == 0 else config.hidden_lmax


def _lmax_out(config: PotentialConfig, layer: int) -> int:
    return 0 if layer == config.layers - 1 else config.hidden_lmax


def _convolution_scales(config: PotentialConfig, layer: int) -> np.ndarray:
    # Standard deviation of the kernel behind each radial function (a degree, or a path), so that mixing keeps variance.
    if config.convolution == "gaunt":
        return np.full(config.lmax + 1, config.channels**-0.5)
    ends = np.array([l3 for *_, l3 in coupling_paths(_lmax_in(config, layer), config.lmax, config.lmax)])
    return (config.channels * np.bincount(ends)[ends]) ** -0.5


def _product_scales(config: PotentialConfig, layer: int) -> np.ndarray:
    # Standard deviation of the weights of each power [correlation, lmax_out + 1] or path [paths]: all orders alike.
    shape = (config.correlation, _lmax_out(config, layer) + 1)
    if config.contraction == "gaunt":
        return np.full(shape, config.correlation**-0.5)
    if config.contraction == "gaunt_paths":
        listed = gaunt_paths(config.lmax, _lmax_out(config, layer), config.correlation)
        counts = np.array([len(paths) for by_order in listed for paths in by_order])
    else:
        counts = np.ravel(contraction_paths(config.lmax, _lmax_out(config, layer), config.correlation))
    return np.repeat((config.correlation * np.maximum(counts, 1)) ** -0.5, counts)


def potential_init(key: PRNGKey, config: PotentialConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters with which activations are O(1) at every layer.

    Args:
      key: typed random key.
      config: static description.
      dtype: parameter dtype, which must be that of the positions later.

    Returns:
      Dict of arrays: `embedding` of shape `[species, channels]` and one entry `layer_i` per layer.

    Example:
      >>> params = potential_init(jax.random.key(0), PotentialConfig(species=(1, 8), channels=4))
      >>> params["embedding"].shape
      (2, 4)
    """
    channels, num_species = config.channels, len(config.species)
    keys = jax.random.split(key, config.layers + 1)

    def normal(key, shape, scale):
        return jax.random.normal(key, shape, dtype) * np.asarray(scale, dtype)

    def scaled(key, before, scales):
        return normal(key, (*before, *scales.shape, channels), scales.reshape((1,) * len(before) + scales.shape + (1,)))

    params: dict[str, Any] = {"embedding": normal(keys[0], (num_species, channels), 1.0)}
    for layer in range(config.layers):
        l_in, l_out = _lmax_in(config, layer), _lmax_out(config, layer)
        k_up, k_radial, k_mix, k_product, k_out, k_skip, k_readout = jax.random.split(keys[layer + 1], 7)
        kernel = channels**-0.5
        mixing = _convolution_scales(config, layer)
        entry = {
            "up": normal(k_up, (l_in + 1, channels, channels), kernel),
            "radial": mlp_init(
                k_radial,
                (config.num_bessel, *config.radial_hidden, len(mixing) * channels),
                use_bias=False,
                dtype=dtype,
            ),
            "mix": normal(k_mix, (len(mixing), channels, channels), mixing[:, None, None]),
            "product": scaled(k_product, (num_species,), _product_scales(config, layer)),
            "out": normal(k_out, (l_out + 1, channels, channels), kernel),
            "readout": mlp_init(k_readout, (channels, 1), use_bias=False, dtype=dtype)
            if layer < config.layers - 1
            else mlp_init(k_readout, (channels, config.readout_hidden, 1), dtype=dtype),
        }
        if layer > 0:
            entry["skip"] = normal(k_skip, (min(l_in, l_out) + 1, channels, channels), kernel)
            entry["skip_scale"] = jnp.ones((num_species, min(l_in, l_out) + 1, channels), dtype)
        params[f"layer_{layer}"] = entry
    return params


class _Neighbourhood(NamedTuple):
    # What every layer needs of the geometry: harmonics [n, slots, k], radial basis [n, slots, b], senders [n, slots].
    harmonics: Array
    basis: Array
    senders: Array


def _neighbourhood(vectors: Array, mask: Array, senders: Array, config: PotentialConfig) -> _Neighbourhood:
    distance = safe_norm(vectors)
    harmonics = spherical_harmonics(vectors, config.lmax, normalization="component")
    # In units in which the mean square over the ball of radius r_max is one.
    basis = bessel_basis(distance, config.num_bessel, config.r_max) * np.asarray(
        (config.r_max**3 / 3) ** 0.5, vectors.dtype
    )
    # Empty slots hold a zero vector; the mask takes their (finite) value at distance zero away. The cut-off multiplies
    # the few basis functions, not the many channels: the network behind it has no bias and maps zero to zero.
    envelope = jnp.where(mask, polynomial_cutoff(distance, config.r_max, config.cutoff_power), 0)
    return _Neighbourhood(harmonics, basis * envelope[..., None], senders)


def _neighbour_sum(entry, x, around: _Neighbourhood, config: PotentialConfig, layer: int, precision) -> Array:
    radial = mlp_apply(entry["radial"], around.basis, precision=precision)
    radial = radial.reshape((*radial.shape[:-1], -1, config.channels))
    x = degree_linear(entry["up"], x)
    if config.convolution == "cg":
        summed = cg_convolution_slots(
            x, around.harmonics, radial, around.senders,
            lmax_out=config.lmax, kernels=entry["mix"], normalization="component", precision=precision,
        )  # fmt: skip
        return summed * np.asarray(1 / config.average_neighbours, x.dtype)
    # Unit-variance coefficients of degrees up to L give a product of variance (L + 1)^2 / (4 pi) (at degree zero).
    summed = gaunt_convolution_slots(x, around.harmonics, radial, around.senders, lmax_out=config.lmax) * np.asarray(
        (4 * np.pi) ** 0.5 / (config.average_neighbours * (_lmax_in(config, layer) + 1)), x.dtype
    )
    return degree_linear(entry["mix"], summed)


def _many_body(entry, gathered, species, config: PotentialConfig, layer: int, precision) -> Array:
    weights, l_out = entry["product"][species], _lmax_out(config, layer)
    if config.contraction == "cg":
        return symmetric_contraction(gathered, weights, lmax_out=l_out, order=config.correlation, precision=precision)
    if config.contraction == "gaunt_paths":
        return gaunt_contraction(gathered, weights, lmax_out=l_out, order=config.correlation, precision=precision)
    return gaunt_polynomial(gathered, weights, lmax_out=l_out, precision=precision)


def _layer(entry, x, species, around: _Neighbourhood, config: PotentialConfig, layer: int, precision) -> Array:
    gathered = _neighbour_sum(entry, x, around, config, layer, precision)
    out = degree_linear(entry["out"], _many_body(entry, gathered, species, config, layer, precision))
    if "skip" in entry:
        kept = min(_lmax_in(config, layer), _lmax_out(config, layer))
        kept = degree_linear(entry["skip"], x[:, : (kept + 1) ** 2])
        out = out + kept * expand_degrees(entry["skip_scale"][species], axis=-2)
    return out


def atomic_energies(
    params: PyTree,
    vectors: Array,
    mask: Array,
    senders: Array,
    species: Array,
    config: PotentialConfig,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Evaluates the interaction energy of each atom from the vectors to its neighbours.

    Args:
      params: from `potential_init`.
      vectors: neighbour minus atom, shape `[n_node, max_neighbours, 3]`, in angstrom, dtype of `params`.
      mask: True where a slot is real, shape `[n_node, max_neighbours]`, bool.
      senders: index of the neighbour, shape `[n_node, max_neighbours]`, int32.
      species: index into `config.species`, shape `[n_node]`, int32.
      config: static description.
      precision: static; precision of the matrix products.

    Returns:
      Energies, shape `[n_node]`, in eV, without the isolated-atom energies.
    """
    around = _neighbourhood(vectors, mask, senders, config)
    x = params["embedding"][species][:, None]
    energy = jnp.zeros(species.shape, vectors.dtype)
    for layer in range(config.layers):
        x = _layer(params[f"layer_{layer}"], x, species, around, config, layer, precision)
        energy = energy + mlp_apply(params[f"layer_{layer}"]["readout"], x[:, 0], precision=precision)[:, 0]
    scale, shift = (np.asarray(v, vectors.dtype) for v in (config.energy_scale, config.energy_shift))
    return energy * scale + shift


def potential_apply(
    params: PyTree, graph: jraph.GraphsTuple, config: PotentialConfig, *, precision=lax.Precision.HIGHEST
) -> Array:
    """Evaluates the interaction energy of each graph (total energy minus isolated atoms).

    Args:
      params: from `potential_init`.
      graph: padded batch; `nodes` with `positions` `[n_node, 3]` in angstrom and `species` int32 `[n_node]`, `edges`
        with `shifts` `[n_edge, 3]` (edge vector = sender - receiver + shift).
      config: static description.
      precision: static; precision of the matrix products.

    Returns:
      Energies, shape `[n_graph]`, in eV; zero for padding, NaN throughout if an atom had more than
      `config.max_neighbours` neighbours.

    Raises:
      ValueError: if the graph lacks a field or the dtypes differ.
    """
    return energy_and_forces(params, graph, config, precision=precision).interaction_energy


def energy_and_forces(
    params: PyTree, graph: jraph.GraphsTuple, config: PotentialConfig, *, precision=lax.Precision.HIGHEST
) -> PotentialOutput:
    """Evaluates energies, forces and virials of a padded batch.

    Args:
      params: from `potential_init`.
      graph: as in `potential_apply`.
      config: static description.
      precision: static; precision of the matrix products.

    Returns:
      `PotentialOutput`, dtype of `params`; NaN throughout if an atom had more than `config.max_neighbours` neighbours.

    Raises:
      ValueError: if the graph lacks a field or the dtypes differ.

    Example:
      >>> config = PotentialConfig(species=(1,), channels=4, lmax=1, max_neighbours=2)
      >>> two = jraph.GraphsTuple(
      ...     nodes={"positions": jnp.array([[0.0, 0, 0], [0.9, 0, 0]]), "species": jnp.zeros(2, int)},
      ...     edges={"shifts": jnp.zeros((2, 3))},
      ...     globals={},
      ...     senders=jnp.array([1, 0]),
      ...     receivers=jnp.array([0, 1]),
      ...     n_node=jnp.array([2]),
      ...     n_edge=jnp.array([2]),
      ... )
      >>> from equivariant_jax.core.graphs import GraphBudget, pad
      >>> padded = pad(two, GraphBudget(n_node=3, n_edge=2, n_graph=2))
      >>> out = energy_and_forces(potential_init(jax.random.key(0), config), padded, config)
      >>> out.energy.shape, out.forces.shape, bool(jnp.abs(out.forces.sum()) < 1e-5)
      ((2,), (3, 3), True)
    """
    check_atomic_graph(graph, params["embedding"].dtype)
    params = jax.tree.map(jnp.asarray, params)  # NumPy leaves, as a checkpoint holds them, cannot be indexed by tracers
    nodes: Any = graph.nodes
    edges: Any = graph.edges
    positions, species = jnp.asarray(nodes["positions"]), jnp.asarray(nodes["species"])
    num_nodes, num_graphs, dtype = species.shape[0], graph.n_node.shape[0], positions.dtype
    real, graph_of = node_mask(graph), node_graph_index(graph)
    slots = neighbour_slots(jnp.asarray(graph.receivers), num_nodes, config.max_neighbours, mask=edge_mask(graph))
    if edges["shifts"].shape[0] == 0:
        senders, shifts = jnp.zeros(slots.mask.shape, jnp.int32), jnp.zeros((*slots.mask.shape, 3), dtype)
    else:
        senders, shifts = jnp.asarray(graph.senders)[slots.edges], jnp.asarray(edges["shifts"])[slots.edges]
    vectors = positions[senders] - positions[:, None] + shifts
    vectors = jnp.where(slots.mask[..., None], vectors, jnp.zeros((), dtype))

    def total(vectors):
        atomic = atomic_energies(params, vectors, slots.mask, senders, species, config, precision=precision)
        return jnp.sum(jnp.where(real, atomic, 0)), atomic

    gradient, atomic = jax.grad(total, has_aux=True)(vectors)
    gradient = jnp.where(slots.overflow, jnp.full((), jnp.nan, dtype), gradient)
    atomic = jnp.where(slots.overflow, jnp.full((), jnp.nan, dtype), atomic)
    pulled = segment_sum(gradient.reshape(-1, 3), senders.reshape(-1), num_nodes, mask=slots.mask.reshape(-1))
    forces = jnp.where(real[:, None], jnp.sum(gradient, axis=1) - pulled, jnp.zeros((), dtype))
    strain = jnp.einsum("nja,njb->nab", vectors, gradient, precision=precision)
    virial = segment_sum(strain, graph_of, num_graphs, mask=real)
    interaction = segment_sum(atomic, graph_of, num_graphs, mask=real)
    reference = np.asarray(config.reference_energies or np.zeros(len(config.species)), dtype)
    isolated = segment_sum(jnp.asarray(reference)[species], graph_of, num_graphs, mask=real)
    return PotentialOutput(interaction, interaction + isolated, forces, 0.5 * (virial + jnp.swapaxes(virial, -1, -2)))


class InteratomicPotential(nn.Module):
    """Linen form of `energy_and_forces`.

    Attributes:
      config: static description.
    """

    config: PotentialConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple) -> PotentialOutput:
        """Evaluates a padded batch; parameters take the dtype of its positions."""
        nodes: Any = graph.nodes
        dtype = nodes["positions"].dtype
        params = self.param("potential", lambda key: potential_init(key, self.config, dtype=dtype))
        return energy_and_forces(params, graph, self.config)
