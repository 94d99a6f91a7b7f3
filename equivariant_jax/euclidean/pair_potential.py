r"""A linear pair potential fitted by ridge regression: the baseline that any potential with angles has to beat.

  E = sum_{i<j} sum_n c_n^{ab} phi_n(r_ij),   F = -dE/dr exactly,

with one set of coefficients per unordered pair of elements and Bessel functions times the smooth cut-off as `phi`. The
fit is linear in `c`, so energies and forces are fitted together in closed form (NumPy float64): nothing is left to
training, and the number is reproducible to rounding.

Law: like every function of distances alone, the energy is invariant under all rotations, reflections and relabellings.
"""

from typing import Any, NamedTuple

import jraph
import numpy as np

__all__ = ["PairPotential", "fit_pair_potential", "pair_features"]


class PairPotential(NamedTuple):
    """A fitted pair potential.

    Attributes:
      coefficients: float64, shape `[num_pairs * num_bessel + 1]`; the last one is an energy per atom.
      num_species: number of elements.
      num_bessel: radial functions per pair of elements.
      r_max: cut-off in angstrom.
    """

    coefficients: np.ndarray
    num_species: int
    num_bessel: int
    r_max: float

    def predict(self, graph: jraph.GraphsTuple) -> tuple[float, np.ndarray]:
        """Returns energy (float, eV) and forces (`[n, 3]`, eV/angstrom) of one unpadded graph."""
        energy, forces = pair_features(graph, self.num_species, self.num_bessel, self.r_max)
        return float(energy @ self.coefficients), np.einsum("nxf,f->nx", forces, self.coefficients)


def _radial(distance: np.ndarray, num_bessel: int, r_max: float) -> tuple[np.ndarray, np.ndarray]:
    # phi_n [e, b] and its derivative; the functions of `radial.py` with p = 5, in float64 on the host.
    r = np.maximum(distance, 1e-12)[:, None]
    k = np.arange(1, num_bessel + 1) * np.pi / r_max
    amplitude = np.sqrt(2 / r_max)
    bessel = amplitude * np.sin(k * r) / r
    bessel_slope = amplitude * (k * np.cos(k * r) - np.sin(k * r) / r) / r
    d = np.minimum(r / r_max, 1.0)
    cutoff = 1 - 21 * d**5 + 35 * d**6 - 15 * d**7
    cutoff_slope = -105 * d**4 * (1 - d) ** 2 / r_max
    return bessel * cutoff, bessel_slope * cutoff + bessel * cutoff_slope


def pair_features(
    graph: jraph.GraphsTuple, num_species: int, num_bessel: int, r_max: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the derivatives of energy and forces by the coefficients.

    Args:
      graph: one unpadded graph with NumPy fields, as made by `data.to_graph` with a cut-off of at least `r_max`.
      num_species: number of elements.
      num_bessel: radial functions per pair of elements.
      r_max: cut-off in angstrom.

    Returns:
      Energy features `[f]` and force features `[n, 3, f]`, float64, `f = num_pairs * num_bessel + 1`.
    """
    nodes: Any = graph.nodes
    edges: Any = graph.edges
    positions, species = np.asarray(nodes["positions"], np.float64), np.asarray(nodes["species"])
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    vectors = positions[senders] - positions[receivers] + np.asarray(edges["shifts"], np.float64)
    distance = np.linalg.norm(vectors, axis=-1)
    values, slopes = _radial(distance, num_bessel, r_max)
    low, high = np.minimum(species[senders], species[receivers]), np.maximum(species[senders], species[receivers])
    pair = high * (high + 1) // 2 + low
    num_features = num_species * (num_species + 1) // 2 * num_bessel + 1
    columns = pair[:, None] * num_bessel + np.arange(num_bessel)
    energy = np.zeros(num_features)
    # Every pair is listed from both ends.
    np.add.at(energy, columns, 0.5 * values)
    energy[-1] = len(positions)
    unit = vectors / np.maximum(distance, 1e-12)[:, None]
    # An atom is pulled by its own half of the pair and, as the sender of the mirrored edge, by the other half.
    pull = np.zeros((len(vectors), num_features, 3))
    pull[np.arange(len(vectors))[:, None], columns] = slopes[:, :, None] * unit[:, None, :]
    ends = (receivers[None] == np.arange(len(positions))[:, None]).astype(np.float64)
    forces = (ends @ pull.reshape(len(vectors), -1)).reshape(len(positions), num_features, 3)
    return energy, np.swapaxes(forces, 1, 2)


def fit_pair_potential(
    graphs: list[jraph.GraphsTuple],
    num_species: int,
    *,
    num_bessel: int = 12,
    r_max: float = 5.0,
    energy_weight: float = 1.0,
    ridge: float = 1e-8,
) -> PairPotential:
    """Fits energies and forces of unpadded graphs by ridge regression.

    Args:
      graphs: graphs with `nodes["forces"]` `[n, 3]` and `globals["energy"]` `[1]`, lists of edges from both ends.
      num_species: number of elements.
      num_bessel: radial functions per pair of elements.
      r_max: cut-off in angstrom.
      energy_weight: weight of a squared energy error per atom against a squared force component.
      ridge: penalty, relative to the mean squared column.

    Returns:
      `PairPotential`.

    Raises:
      ValueError: if there is no graph.
    """
    if not graphs:
        raise ValueError("fit_pair_potential needs at least one graph, got none.")
    gram, right = 0.0, 0.0
    for graph in graphs:
        energy, forces = pair_features(graph, num_species, num_bessel, r_max)
        atoms = len(forces)
        nodes: Any = graph.nodes
        known: Any = graph.globals
        rows = np.concatenate([forces.reshape(-1, energy.size), energy_weight * energy[None] / atoms])
        target = np.concatenate(
            [
                np.asarray(nodes["forces"], np.float64).reshape(-1),
                energy_weight * np.asarray(known["energy"], np.float64).reshape(1) / atoms,
            ]
        )
        gram, right = gram + rows.T @ rows, right + rows.T @ target
    gram = np.asarray(gram)
    scale = np.trace(gram) / len(gram)
    coefficients = np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), np.asarray(right))
    return PairPotential(coefficients, num_species, num_bessel, r_max)
