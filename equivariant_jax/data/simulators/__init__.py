"""Simulators in plain NumPy, seeded, and on the device; docstrings of the former specify what is simulated.

Symmetry: what a simulation commutes with is stated and tested per module.

- `charged_particles`: five charged particles in free space (the n-body task of EGNN and SEGNN).
- `springs`: particles of which some pairs are joined by springs, to predict and to say which.
- `on_device`: both as pure JAX functions, e.g. for `GeneratedBatches`.

    >>> from equivariant_jax.data import simulators
    >>> simulators.simulate_charged_particles(1, seed=0, num_steps=200).charges.shape
    (1, 5)
"""

from equivariant_jax.data.simulators.charged_particles import (
    ChargedTask,
    ChargedTrajectories,
    charged_energy,
    charged_particles_splits,
    evolve_charged_particles,
    simulate_charged_particles,
)
from equivariant_jax.data.simulators.on_device import (
    charged_forces,
    draw_charged_particles,
    draw_springs,
    spring_forces,
    symplectic_trajectory,
)
from equivariant_jax.data.simulators.springs import SpringTrajectories, evolve_springs, simulate_springs

__all__ = [
    "ChargedTask",
    "ChargedTrajectories",
    "SpringTrajectories",
    "charged_energy",
    "charged_forces",
    "charged_particles_splits",
    "draw_charged_particles",
    "draw_springs",
    "evolve_charged_particles",
    "evolve_springs",
    "simulate_charged_particles",
    "simulate_springs",
    "spring_forces",
    "symplectic_trajectory",
]
