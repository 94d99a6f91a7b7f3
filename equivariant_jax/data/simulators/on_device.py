r"""The simulators of `springs` and `charged_particles` as pure JAX functions, for data made where they are used.

The equations, the time steps and the frames are those of the NumPy modules, which are the specification; given the same
initial state in float64 the trajectories agree to rounding. Float32 is enough for springs; charged particles that pass
close by each other amplify rounding, as they amplify everything.

Law: `symplectic_trajectory` commutes with each orthogonal map and permutation that `force` commutes with, and with
translations if the force does not see them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.simulators.charged_particles import ChargedTrajectories
from equivariant_jax.data.simulators.springs import SpringTrajectories
from equivariant_jax.data.simulators.stepping import number_of_frames

__all__ = [
    "charged_forces",
    "draw_charged_particles",
    "draw_springs",
    "spring_forces",
    "symplectic_trajectory",
]


def _differences(x: Array) -> Array:
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: got {x.dtype} of shape {x.shape}; expected floating positions [..., n, d].")
    return x[..., :, None, :] - x[..., None, :, :]


def spring_forces(x: Array, couplings: Array, *, stiffness: float = 0.1, max_force: float = 100.0) -> Array:
    """Forces of springs without rest length, `-k sum_j c_ij (x_i - x_j)`, each component clipped.

    Args:
      x: positions, shape `[..., n, d]`, float.
      couplings: shape `[..., n, n]`, symmetric; bool, or weights of any dtype.
      stiffness: k.
      max_force: bound of each component.

    Returns:
      Forces of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> spring_forces(jnp.array([[0.0], [1.0]]), ~jnp.eye(2, dtype=bool)).round(3).tolist()
      [[0.10000000149011612], [-0.10000000149011612]]
    """
    apart = _differences(x)
    if couplings.shape != apart.shape[:-1]:
        raise ValueError(f"couplings: got shape {couplings.shape} for positions {x.shape}; expected [..., n, n].")
    pull = couplings.astype(x.dtype)[..., None] * np.asarray(-stiffness, x.dtype)
    return jnp.clip(jnp.sum(pull * apart, axis=-2), -max_force, max_force)


def charged_forces(x: Array, charges: Array, *, strength: float = 1.0, max_force: float = 100.0) -> Array:
    """Coulomb forces `k sum_j q_i q_j (x_i - x_j) / |x_i - x_j|^3`, each component clipped.

    Args:
      x: positions, shape `[..., n, 3]`, float; two particles at one place exert no force.
      charges: shape `[..., n]`, float.
      strength: k.
      max_force: bound of each component.

    Returns:
      Forces of the shape and dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> charged_forces(jnp.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), jnp.ones(2))[:, 0].tolist()
      [-0.25, 0.25]
    """
    apart = _differences(x)
    if charges.shape != x.shape[:-1]:
        raise ValueError(f"charges: got shape {charges.shape} for positions {x.shape}; expected [..., n].")
    square = jnp.sum(jnp.square(apart), axis=-1)
    there = square > 0
    safe = jnp.where(there, square, jnp.ones_like(square))
    products = (charges[..., :, None] * charges[..., None, :]).astype(x.dtype) * np.asarray(strength, x.dtype)
    factor = jnp.where(there, products / (safe * jnp.sqrt(safe)), jnp.zeros_like(safe))
    return jnp.clip(jnp.sum(factor[..., None] * apart, axis=-2), -max_force, max_force)


def symplectic_trajectory(
    force: Callable[[Array], Array],
    positions: Array,
    velocities: Array,
    *,
    num_steps: int,
    sample_every: int,
    time_step: float = 0.001,
) -> tuple[Array, Array]:
    """Advances systems of unit masses by the symplectic Euler rule; one compiled loop over all steps.

    Args:
      force: pure function of positions to forces of their shape.
      positions: initial, shape `[..., n, d]`, float.
      velocities: initial, shape and dtype of `positions`.
      num_steps: static; length of the trajectory, a multiple of `sample_every`, at least twice as large.
      sample_every: static; steps between frames.
      time_step: dt.

    Returns:
      Positions and velocities of the `num_steps / sample_every - 1` frames, each `[..., frames, n, d]`; see `stepping`
      for which moments they are.

    Raises:
      ValueError: if shapes or numbers of steps do not fit.

    Example:
      >>> x = jnp.array([[1.0, 0.0]])
      >>> path, _ = symplectic_trajectory(lambda x: -x, x, 0 * x, num_steps=4000, sample_every=1000)
      >>> path[:, 0, 0].round(2).tolist()  # cos(1), cos(2), cos(3)
      [0.5399999618530273, -0.41999998688697815, -0.9899999499320984]
    """
    if positions.ndim < 2 or velocities.shape != positions.shape:
        raise ValueError(f"positions {positions.shape} and velocities {velocities.shape}: expected both [..., n, d].")
    frames, step = number_of_frames(num_steps, sample_every), np.asarray(time_step, positions.dtype)

    def advance(_, state):
        x, v = state
        x = x + step * v
        return x, v + step * force(x)

    def frame(state, _):
        x, v = lax.fori_loop(np.int32(0), np.int32(sample_every - 1), advance, state)
        x = x + step * v
        return (x, v + step * force(x)), (x, v)

    start = positions, velocities + step * force(positions)
    _, (x, v) = lax.scan(frame, start, length=frames)
    return jnp.moveaxis(x, 0, -3), jnp.moveaxis(v, 0, -3)


def _started(key: PRNGKey, shape: tuple[int, int, int], spread: float, speed: float, dtype) -> tuple[Array, Array]:
    key_x, key_v = jax.random.split(key)
    x = jax.random.normal(key_x, shape, dtype) * np.asarray(spread, dtype)
    v = jax.random.normal(key_v, shape, dtype)
    return x, v * np.asarray(speed, dtype) / jnp.linalg.norm(v, axis=-1, keepdims=True)


def draw_springs(
    key: PRNGKey,
    num: int,
    *,
    num_particles: int = 5,
    dimensions: int = 3,
    probability: float = 0.5,
    loc_std: float = 0.5,
    vel_norm: float = 0.5,
    stiffness: float = 0.1,
    num_steps: int = 10_000,
    sample_every: int = 200,
    dtype=jnp.float32,
) -> SpringTrajectories:
    """Draws initial states and couplings as `simulate_springs` does (with other random numbers) and advances them.

    Args:
      key: typed random key.
      num: static; number of simulations.
      num_particles: static; n.
      dimensions: static; d.
      probability: that a pair is coupled.
      loc_std: standard deviation of an initial coordinate.
      vel_norm: length of the initial velocities.
      stiffness: k.
      num_steps: static; see `symplectic_trajectory`.
      sample_every: static; see `symplectic_trajectory`.
      dtype: of positions and velocities.

    Returns:
      `SpringTrajectories` of JAX arrays, positions of shape `[num, frames, n, d]`.

    Raises:
      ValueError: if a count is not positive.

    Example:
      >>> draw_springs(jax.random.key(0), 2, num_steps=40, sample_every=20).positions.shape
      (2, 1, 5, 3)
    """
    if num < 1 or num_particles < 2 or dimensions < 1:
        raise ValueError(f"{num=}, {num_particles=}, {dimensions=}: expected at least 1, 2 and 1.")
    key_state, key_pair = jax.random.split(key)
    x, v = _started(key_state, (num, num_particles, dimensions), loc_std, vel_norm, dtype)
    drawn = jnp.triu(jax.random.bernoulli(key_pair, probability, (num, num_particles, num_particles)), 1)
    couplings = drawn | jnp.swapaxes(drawn, 1, 2)
    x, v = symplectic_trajectory(
        lambda x: spring_forces(x, couplings, stiffness=stiffness), x, v, num_steps=num_steps, sample_every=sample_every
    )
    return SpringTrajectories(x, v, couplings)  # type: ignore[arg-type]


def draw_charged_particles(
    key: PRNGKey,
    num: int,
    *,
    num_particles: int = 5,
    loc_std: float = 1.0,
    vel_norm: float = 0.5,
    num_steps: int = 5000,
    sample_every: int = 100,
    dtype=jnp.float32,
) -> ChargedTrajectories:
    """Draws initial states as `simulate_charged_particles` does (with other random numbers) and advances them.

    Args:
      key: typed random key.
      num: static; number of simulations.
      num_particles: static; n.
      loc_std: standard deviation of an initial coordinate for n = 5.
      vel_norm: length of the initial velocities.
      num_steps: static; see `symplectic_trajectory`.
      sample_every: static; see `symplectic_trajectory`.
      dtype: of positions, velocities and charges.

    Returns:
      `ChargedTrajectories` of JAX arrays, positions of shape `[num, frames, n, 3]`.

    Raises:
      ValueError: if a count is not positive.

    Example:
      >>> draw_charged_particles(jax.random.key(0), 2, num_steps=40, sample_every=20).positions.shape
      (2, 1, 5, 3)
    """
    if num < 1 or num_particles < 2:
        raise ValueError(f"{num=} and {num_particles=}: expected at least 1 and 2.")
    key_state, key_charge = jax.random.split(key)
    spread = loc_std * (num_particles / 5) ** (1 / 3)
    x, v = _started(key_state, (num, num_particles, 3), spread, vel_norm, dtype)
    charges = jax.random.rademacher(key_charge, (num, num_particles), dtype)
    x, v = symplectic_trajectory(
        lambda x: charged_forces(x, charges), x, v, num_steps=num_steps, sample_every=sample_every
    )
    return ChargedTrajectories(x, v, charges)  # type: ignore[arg-type]
