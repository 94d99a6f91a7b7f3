r"""The charged-particle simulation of EGNN and SEGNN, in NumPy float64. This page is its specification.

State: `n` particles in free space (no box), unit mass, charges `q_i` in {-1, +1} with equal probability. Initial
positions are N(0, 1) per component times `loc_std (n / 5)^(1/3)`, initial velocities have a uniform direction and the
norm 0.5. Force on particle i, each Cartesian component of the sum clipped to [-100, 100]:

  F_i = clip( k sum_{j != i} q_i q_j (x_i - x_j) / |x_i - x_j|^3, -100, 100 ),   k = 1.

Time runs in steps of `dt = 0.001` by the symplectic Euler rule (leapfrog whose first kick is a whole one),

  v_0' = v_0 + dt F(x_0);   then for s = 1, 2, ...:   x_s = x_{s-1} + dt v_{s-1}',   v_s' = v_{s-1}' + dt F(x_s).

Every 100 steps a frame is kept: frame f, counted from 0, holds `x_s` and `v_{s-1}'` (the velocity that led there,
before the kick at `x_s`) of step `s = 100 (f + 1)`. 5000 steps give 49 frames, steps 100 to 4900. The task is to say
the positions 1000 steps after frame 30, that is the positions of frame 40, from positions and velocities of frame 30
and the charges; 3,000 simulations for training, 2,000 for validation, 2,000 for the test.

Laws: trajectories commute with translations, permutations and reflections of axes, and with all of O(3) while no force
is clipped (the clip is per component, so it is not invariant: a close encounter breaks the rotation symmetry of the
data themselves); the momentum is constant while no force is clipped.

Differences from the published generator (`ChargedParticlesSim` of EGNN's code, which SEGNN's reuses): other random
numbers (a PCG64 stream for each quantity, simulation i does not depend on how many are drawn, in place of one global
MT19937 stream); an initial position outside [-5, 5] is not folded back (probability 6e-7 per component); squared
distances by differences instead of |a|^2 + |b|^2 - 2 a.b, which is more accurate for close pairs. The published sets
come from one run with seed 43, which draws 10,000 training simulations and uses the first 3,000; whether anything
beyond seed and counts distinguished the authors' files from a fresh run is not known here. EGNN's linear model
(`x + t v` with one fitted t) reaches a test error of 0.0819 on their set, which a fresh set can be compared with.

References: Kipf et al. 2018, arXiv:1802.04687 (the 2-D simulation in a box); Fuchs et al. 2020, arXiv:2006.10503;
Satorras, Hoogeboom, Welling 2021, arXiv:2102.09844, section 5.1; Brandstetter et al. 2022, arXiv:2110.02905.
"""

from typing import NamedTuple

import numpy as np

from equivariant_jax.data.simulators.stepping import evolve, pairs

__all__ = [
    "ChargedTask",
    "ChargedTrajectories",
    "charged_energy",
    "charged_particles_splits",
    "evolve_charged_particles",
    "simulate_charged_particles",
]


class ChargedTrajectories(NamedTuple):
    """Frames of simulations, float64.

    Attributes:
      positions: shape `[simulations, frames, n, 3]`.
      velocities: shape `[simulations, frames, n, 3]`.
      charges: shape `[simulations, n]`, -1 or +1.
    """

    positions: np.ndarray
    velocities: np.ndarray
    charges: np.ndarray


class ChargedTask(NamedTuple):
    """Inputs and targets of one split, float64.

    Attributes:
      positions: at the input frame, shape `[simulations, n, 3]`.
      velocities: at the input frame, shape `[simulations, n, 3]`.
      charges: shape `[simulations, n]`, -1 or +1.
      targets: positions at the target frame, shape `[simulations, n, 3]`.
    """

    positions: np.ndarray
    velocities: np.ndarray
    charges: np.ndarray
    targets: np.ndarray


def _check(positions: np.ndarray, velocities: np.ndarray, charges: np.ndarray) -> None:
    if positions.ndim != 3 or positions.shape[-1] != 3 or velocities.shape != positions.shape:
        raise ValueError(
            f"positions {positions.shape} and velocities {velocities.shape}: expected both `[simulations, n, 3]`."
        )
    if charges.shape != positions.shape[:2]:
        raise ValueError(f"charges {charges.shape}: expected `[simulations, n]` = {positions.shape[:2]}.")


def evolve_charged_particles(
    positions: np.ndarray,
    velocities: np.ndarray,
    charges: np.ndarray,
    *,
    num_steps: int = 5000,
    sample_every: int = 100,
    time_step: float = 0.001,
    strength: float = 1.0,
    max_force: float = 100.0,
) -> ChargedTrajectories:
    """Advances given initial states.

    Args:
      positions: initial positions, shape `[simulations, n, 3]`, float; particles of a simulation must be distinct.
      velocities: initial velocities, shape `[simulations, n, 3]`, float.
      charges: shape `[simulations, n]`, float.
      num_steps: length of the trajectory T; the last position computed is that of step T - 1.
      sample_every: steps between frames; `num_steps` is a multiple of it.
      time_step: dt.
      strength: factor k of the force.
      max_force: bound of each component of a particle's force.

    Returns:
      `ChargedTrajectories` with `num_steps / sample_every - 1` frames.

    Raises:
      ValueError: if shapes do not fit or `num_steps` is not a multiple of `sample_every`, at least twice as large.

    Example:
      >>> x = np.array([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
      >>> out = evolve_charged_particles(x, 0 * x, np.array([[1.0, 1.0]]), num_steps=300)
      >>> out.positions.shape, bool(out.positions[0, 1, 1, 0] > 1.0)  # equal charges part
      ((1, 2, 2, 3), True)
    """
    positions, velocities = np.asarray(positions, np.float64), np.asarray(velocities, np.float64)
    charges = np.asarray(charges, np.float64)
    _check(positions, velocities, charges)
    first, second, signs = pairs(charges.shape[1])

    def forces(chunk: slice):
        q = charges[chunk].T
        products = strength * (q[first] * q[second])

        def force(x: np.ndarray) -> np.ndarray:
            difference = x[first] - x[second]
            square = np.einsum("pds,pds->ps", difference, difference)
            difference *= (products / (square * np.sqrt(square)))[:, None]
            total = (signs @ difference.reshape(len(first), -1)).reshape(x.shape)
            return np.clip(total, -max_force, max_force, out=total)

        return force

    out_x, out_v = evolve(
        positions, velocities, forces, num_steps=num_steps, sample_every=sample_every, time_step=time_step
    )
    return ChargedTrajectories(out_x, out_v, charges)


def simulate_charged_particles(
    num: int,
    *,
    seed: int,
    num_particles: int = 5,
    loc_std: float = 1.0,
    vel_norm: float = 0.5,
    num_steps: int = 5000,
    sample_every: int = 100,
) -> ChargedTrajectories:
    """Draws initial states and advances them.

    Args:
      num: number of simulations; the first ones do not depend on it.
      seed: 0 or more.
      num_particles: n.
      loc_std: standard deviation of an initial coordinate for n = 5.
      vel_norm: length of the initial velocities.
      num_steps: see `evolve_charged_particles`.
      sample_every: see `evolve_charged_particles`.

    Returns:
      `ChargedTrajectories`, positions of shape `[num, num_steps / sample_every - 1, n, 3]`.

    Raises:
      ValueError: if a count is not positive.

    Example:
      >>> simulate_charged_particles(2, seed=0, num_steps=400).positions.shape
      (2, 3, 5, 3)
    """
    if num < 1 or num_particles < 2:
        raise ValueError(f"num={num} and num_particles={num_particles}: expected at least 1 and 2.")
    streams = [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3)]
    shape = (num, num_particles, 3)
    positions = streams[0].standard_normal(shape) * loc_std * (num_particles / 5) ** (1 / 3)
    velocities = streams[1].standard_normal(shape)
    velocities *= vel_norm / np.linalg.norm(velocities, axis=-1, keepdims=True)
    charges = np.where(streams[2].random(shape[:2]) < 0.5, -1.0, 1.0)
    return evolve_charged_particles(positions, velocities, charges, num_steps=num_steps, sample_every=sample_every)


def charged_energy(
    positions: np.ndarray, velocities: np.ndarray, charges: np.ndarray, *, strength: float = 1.0
) -> np.ndarray:
    """Sums kinetic and Coulomb energy.

    Args:
      positions: shape `[..., n, 3]`, float.
      velocities: shape `[..., n, 3]`, float.
      charges: shape `[..., n]`, float.
      strength: factor k of the force.

    Returns:
      Energies, shape `[...]`.

    Example:
      >>> x = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
      >>> float(charged_energy(x, 0 * x, np.array([1.0, -1.0])))
      -0.5
    """
    first, second = np.triu_indices(positions.shape[-2], 1)
    distances = np.linalg.norm(positions[..., first, :] - positions[..., second, :], axis=-1)
    potential = strength * np.sum(charges[..., first] * charges[..., second] / distances, axis=-1)
    return 0.5 * np.sum(velocities**2, axis=(-2, -1)) + potential


def charged_particles_splits(
    train: int = 3000,
    validation: int = 2000,
    test: int = 2000,
    *,
    seed: int = 43,
    input_frame: int = 30,
    target_frame: int = 40,
) -> dict[str, ChargedTask]:
    """Makes the task "positions of frame 40 from frame 30" (of SEGNN, and of EGNN under the name nbody_small).

    Args:
      train: simulations for training.
      validation: simulations for validation.
      test: simulations for the test.
      seed: the three splits are drawn from `3 seed`, `3 seed + 1` and `3 seed + 2`, so that the size of one does not
        change another.
      input_frame: frame of the inputs, counted from 0.
      target_frame: frame of the target positions, 100 steps per frame.

    Returns:
      Dict with a `ChargedTask` for each of "train", "validation" and "test"; arrays `[simulations, 5, ...]`.

    Raises:
      ValueError: if the frames are not ordered or a size is not positive.

    Example:
      >>> splits = charged_particles_splits(4, 2, 2, input_frame=1, target_frame=2)
      >>> splits["train"].targets.shape
      (4, 5, 3)
    """
    if not 0 <= input_frame < target_frame:
        raise ValueError(f"frames {input_frame} -> {target_frame}: expected 0 <= input_frame < target_frame.")
    splits = {}
    for offset, (name, num) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        # Steps beyond the target frame are not needed.
        steps = 100 * (target_frame + 2)
        x, v, charges = simulate_charged_particles(num, seed=3 * seed + offset, num_steps=steps)
        splits[name] = ChargedTask(x[:, input_frame], v[:, input_frame], charges, x[:, target_frame])
    return splits
