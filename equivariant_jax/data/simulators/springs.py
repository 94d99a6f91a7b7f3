r"""Particles joined by springs, some pairs and not others, in NumPy float64. This page is its specification.

State: `n` particles in free space (no box), unit mass. Each unordered pair is coupled with probability 1/2,
`c_ij = c_ji` in {0, 1}, `c_ii = 0`, for the whole trajectory. Initial coordinates are N(0, 0.5^2), initial velocities
have a uniform direction and the norm 0.5. Springs have no rest length; the force on particle i, each Cartesian
component of the sum clipped to [-100, 100], is

  F_i = clip( -k sum_j c_ij (x_i - x_j), -100, 100 ),   k = 0.1.

Time runs in steps of `dt = 0.001` by the symplectic Euler rule of `stepping`; frame f, counted from 0, holds `x_s` and
`v_{s-1}'` of step `s = sample_every (f + 1)`. 10,000 steps with a frame
every 200 give 49 frames, steps 200 to 9,800. The task is to predict 20 frames from the 20 before, and to say from them
which pairs are coupled (`couplings`), without having been told for any.

Laws: trajectories commute with translations, permutations and O(d) (the clip acts at distances of about 1000, never in
practice); the momentum is constant; without the clip the motion is linear, `x'' = -k L x` with the couplings' Laplacian
L, which the tests solve by eigenvectors.

Differences from the published generator (of neural relational inference, without its box): other random numbers (a
PCG64 stream for each quantity; simulation i does not depend on how many are drawn).

References: Kipf et al. 2018, arXiv:1802.04687; Xu et al. 2023, arXiv:2303.10876, section 5.1.
"""

from typing import NamedTuple

import numpy as np

from equivariant_jax.data.simulators.stepping import evolve, pairs

__all__ = ["SpringTrajectories", "evolve_springs", "simulate_springs"]


class SpringTrajectories(NamedTuple):
    """Frames of simulations, float64.

    Attributes:
      positions: shape `[simulations, frames, n, d]`.
      velocities: shape `[simulations, frames, n, d]`.
      couplings: which pairs are coupled, symmetric, zero on the diagonal, shape `[simulations, n, n]`, bool.
    """

    positions: np.ndarray
    velocities: np.ndarray
    couplings: np.ndarray


def evolve_springs(
    positions: np.ndarray,
    velocities: np.ndarray,
    couplings: np.ndarray,
    *,
    num_steps: int = 10_000,
    sample_every: int = 200,
    time_step: float = 0.001,
    stiffness: float = 0.1,
    max_force: float = 100.0,
) -> SpringTrajectories:
    """Advances given initial states.

    Args:
      positions: initial positions, shape `[simulations, n, d]`, float.
      velocities: initial velocities, shape `[simulations, n, d]`, float.
      couplings: which pairs are coupled, shape `[simulations, n, n]`, bool, symmetric, False on the diagonal.
      num_steps: length of the trajectory T; the last position computed is that of step T - 1.
      sample_every: steps between frames; `num_steps` is a multiple of it.
      time_step: dt.
      stiffness: k.
      max_force: bound of each component of a particle's force.

    Returns:
      `SpringTrajectories` with `num_steps / sample_every - 1` frames.

    Raises:
      ValueError: if shapes do not fit, couplings are not symmetric, or `num_steps` is not a multiple of `sample_every`,
        at least twice as large.

    Example:
      >>> x = np.array([[[0.0, 0.0], [1.0, 0.0]]])
      >>> out = evolve_springs(x, 0 * x, ~np.eye(2, dtype=bool)[None], num_steps=600)
      >>> out.positions.shape, bool(out.positions[0, 1, 1, 0] < 1.0)  # a spring pulls
      ((1, 2, 2, 2), True)
    """
    positions, velocities = np.asarray(positions, np.float64), np.asarray(velocities, np.float64)
    couplings = np.asarray(couplings)
    if positions.ndim != 3 or velocities.shape != positions.shape:
        raise ValueError(
            f"positions {positions.shape} and velocities {velocities.shape}: expected both `[simulations, n, d]`."
        )
    num, n, _ = positions.shape
    if couplings.shape != (num, n, n) or couplings.dtype != bool:
        raise ValueError(f"couplings: got {couplings.dtype} {couplings.shape}, expected bool {(num, n, n)}.")
    if np.any(couplings != couplings.transpose(0, 2, 1)) or np.any(np.einsum("sii->si", couplings)):
        raise ValueError("couplings: expected symmetric matrices, False on the diagonal.")
    first, second, signs = pairs(n)

    def forces(chunk: slice):
        pull = -stiffness * couplings[chunk][:, first, second].T[:, None]

        def force(x: np.ndarray) -> np.ndarray:
            total = (signs @ ((x[first] - x[second]) * pull).reshape(len(first), -1)).reshape(x.shape)
            return np.clip(total, -max_force, max_force, out=total)

        return force

    out_x, out_v = evolve(
        positions, velocities, forces, num_steps=num_steps, sample_every=sample_every, time_step=time_step
    )
    return SpringTrajectories(out_x, out_v, couplings)


def simulate_springs(
    num: int,
    *,
    seed: int,
    num_particles: int = 5,
    dimensions: int = 3,
    probability: float = 0.5,
    loc_std: float = 0.5,
    vel_norm: float = 0.5,
    stiffness: float = 0.1,
    num_steps: int = 10_000,
    sample_every: int = 200,
) -> SpringTrajectories:
    """Draws initial states and couplings and advances them.

    Args:
      num: number of simulations; the first ones do not depend on it.
      seed: 0 or more.
      num_particles: n.
      dimensions: d.
      probability: that a pair is coupled.
      loc_std: standard deviation of an initial coordinate.
      vel_norm: length of the initial velocities.
      stiffness: k.
      num_steps: see `evolve_springs`.
      sample_every: see `evolve_springs`.

    Returns:
      `SpringTrajectories`, positions of shape `[num, num_steps / sample_every - 1, n, d]`.

    Raises:
      ValueError: if a count is not positive or the probability is none.

    Example:
      >>> simulate_springs(2, seed=0, num_steps=800).couplings.shape
      (2, 5, 5)
    """
    if num < 1 or num_particles < 2 or dimensions < 1 or not 0 <= probability <= 1:
        raise ValueError(
            f"num={num}, num_particles={num_particles}, dimensions={dimensions}, probability={probability}: expected "
            "at least 1, 2 and 1, and a number from 0 to 1."
        )
    streams = [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3)]
    shape = (num, num_particles, dimensions)
    positions = streams[0].standard_normal(shape) * loc_std
    velocities = streams[1].standard_normal(shape)
    velocities *= vel_norm / np.linalg.norm(velocities, axis=-1, keepdims=True)
    first, second = np.triu_indices(num_particles, 1)
    drawn = streams[2].random((num, len(first))) < probability
    couplings = np.zeros((num, num_particles, num_particles), bool)
    couplings[:, first, second] = couplings[:, second, first] = drawn
    return evolve_springs(
        positions, velocities, couplings, stiffness=stiffness, num_steps=num_steps, sample_every=sample_every
    )
