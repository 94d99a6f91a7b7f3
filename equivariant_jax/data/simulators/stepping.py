"""The symplectic Euler rule for many small systems at once, in NumPy float64: what the simulators here share.

    v_0' = v_0 + dt F(x_0);   then for s = 1, 2, ...:   x_s = x_{s-1} + dt v_{s-1}',   v_s' = v_{s-1}' + dt F(x_s)

Frame f, counted from 0, holds `x_s` and `v_{s-1}'` of step `s = sample_every (f + 1)`; the last position computed is
that of step `num_steps - 1`, so there are `num_steps / sample_every - 1` frames.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["evolve", "number_of_frames", "pairs"]

# Simulations that are advanced together: few enough for the arrays of a step to stay in the cache.
_CHUNK = 256


def number_of_frames(num_steps: int, sample_every: int) -> int:
    """Counts frames.

    Args:
      num_steps: length of the trajectory.
      sample_every: steps between frames.

    Returns:
      The number of frames.

    Raises:
      ValueError: if `num_steps` is not a multiple of `sample_every`, at least twice as large.

    Example:
      >>> number_of_frames(5000, 100)
      49
    """
    if sample_every < 1 or num_steps % sample_every or num_steps < 2 * sample_every:
        raise ValueError(
            f"num_steps={num_steps} and sample_every={sample_every}: expected a multiple of at least 2 times."
        )
    return num_steps // sample_every - 1


def pairs(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists unordered pairs, each once, so that action equals reaction to the last bit before a sum over pairs.

    Args:
      n: number of particles.

    Returns:
      First and second particle of each pair, int64 `[pairs]`, and the matrix `[n, pairs]`, float64, that sums forces on
      the first particles to forces on all: one at the first, minus one at the second.

    Example:
      >>> pairs(3)[2].tolist()
      [[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, -1.0]]
    """
    first, second = np.triu_indices(n, 1)
    signs = np.zeros((n, len(first)))
    signs[first, np.arange(len(first))], signs[second, np.arange(len(first))] = 1.0, -1.0
    return first, second, signs


def evolve(
    positions: np.ndarray,
    velocities: np.ndarray,
    forces: Callable[[slice], Callable[[np.ndarray], np.ndarray]],
    *,
    num_steps: int,
    sample_every: int,
    time_step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Advances systems of unit masses.

    Args:
      positions: initial, shape `[simulations, n, d]`, float64; they do not change.
      velocities: initial, shape `[simulations, n, d]`, float64; they do not change.
      forces: takes a slice of simulations to a function from their positions `[n, d, simulations]` to forces of that
        shape.
      num_steps: see `number_of_frames`.
      sample_every: see `number_of_frames`.
      time_step: dt.

    Returns:
      Positions and velocities, each `[simulations, frames, n, d]`, float64.

    Raises:
      ValueError: see `number_of_frames`.
    """
    frames, (num, n, d) = number_of_frames(num_steps, sample_every), positions.shape
    out_x, out_v = np.empty((2, num, frames, n, d))
    for start in range(0, num, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        force = forces(chunk)
        # Simulations last: every operation then runs over long contiguous rows.
        # Copies, since they are advanced in place (a single simulation is contiguous either way).
        x, v = (np.array(part[chunk].transpose(1, 2, 0), order="C") for part in (positions, velocities))
        v += time_step * force(x)
        for step in range(1, frames * sample_every + 1):
            x += time_step * v
            if step % sample_every == 0:
                out_x[chunk, step // sample_every - 1] = x.transpose(2, 0, 1)
                out_v[chunk, step // sample_every - 1] = v.transpose(2, 0, 1)
            v += time_step * force(x)
    return out_x, out_v
