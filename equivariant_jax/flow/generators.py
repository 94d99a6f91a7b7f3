r"""One-parameter groups that act on images over time: `psi_t(nu) = exp(t nu)`.

A flow is a pure function `flow(x, velocity, t) -> psi_t(velocity) . x` of an image `[..., height, width, channels]`, a
velocity `[d]` and a time `[]`; velocity and time are floats of one dtype and may be traced, so one compiled program
serves all of them. Any function
with this signature and the two laws

    flow(flow(x, nu, s), nu, t) == flow(x, nu, s + t),   flow(x, nu, 0) == x

can be used where this room asks for a flow; layers are flow equivariant if the generators commute,
`flow(flow(x, nu, t), mu, t) == flow(x, nu + mu, t)`, which `core.checks` can measure. Here are

- `torus_shift`: cyclic shifts by whole pixels, velocity `(vx, vy)` in pixels per frame, exact;
- `fractional_shift`: the same by Fourier interpolation at any real velocity, exact on odd grids;
- `rotation_flow(n)`: rotations about the centre, features being functions on the cyclic group `C_n`; exact for quarter
  turns, bilinear interpolation between.

Reference: Keller 2025, arXiv:2507.14793, section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.images import rotate_image, shift_image
from equivariant_jax.core.typing import Array

__all__ = [
    "Flow",
    "Velocities",
    "apply_flow",
    "fractional_shift",
    "rotation_flow",
    "rotation_velocities",
    "time_dtype",
    "torus_shift",
    "velocity_array",
    "velocity_grid",
]

Flow = Callable[[Array, Array, Array], Array]
Velocities = tuple[tuple[float, ...], ...]


def velocity_grid(radius: int, *, axes: int = 2) -> Velocities:
    """Lists the integer velocities `{-radius..radius}^axes`, the last axis fastest.

    Args:
      radius: 0 or more; 0 is the ordinary recurrent network.
      axes: 2 for `(vx, vy)`; 1 for horizontal motion only, listed as `(vx, 0)`.

    Returns:
      Tuple of velocities `(vx, vy)`, hashable.

    Raises:
      ValueError: if `radius` is negative or `axes` is neither 1 nor 2.

    Example:
      >>> velocity_grid(1, axes=1)
      ((-1.0, 0.0), (0.0, 0.0), (1.0, 0.0))
    """
    if radius < 0 or axes not in (1, 2):
        raise ValueError(f"velocity_grid got radius={radius}, axes={axes}; expected radius >= 0 and axes 1 or 2.")
    line = [float(v) for v in range(-radius, radius + 1)]
    return tuple((vx, vy) for vx in line for vy in (line if axes == 2 else [0.0]))


def rotation_velocities(radius: int, step: float = 10.0) -> Velocities:
    """Lists the angular velocities `-radius step, .., 0, .., radius step`, in degrees per frame.

    Args:
      radius: 0 or more.
      step: degrees per frame between neighbours.

    Returns:
      Tuple of velocities `(degrees,)`.

    Raises:
      ValueError: if `radius` is negative or `step` is not positive.

    Example:
      >>> rotation_velocities(1)
      ((-10.0,), (0.0,), (10.0,))
    """
    if radius < 0 or step <= 0:
        raise ValueError(f"rotation_velocities got radius={radius}, step={step}; expected radius >= 0 and step > 0.")
    return tuple((step * k,) for k in range(-radius, radius + 1))


def velocity_array(velocities: Sequence[Sequence[float]]) -> np.ndarray:
    """Makes an array `[V, d]` of static velocities.

    Args:
      velocities: at least one velocity, all of one length.

    Returns:
      Array of shape `[V, d]`, float64.

    Raises:
      ValueError: if there is none, or they differ in length or repeat.
    """
    listed = [tuple(float(c) for c in velocity) for velocity in velocities]
    if not listed or len({len(v) for v in listed}) != 1 or len(set(listed)) != len(listed):
        raise ValueError(f"velocities: got {tuple(velocities)}, expected distinct tuples of one length, at least one.")
    return np.asarray(listed)


def time_dtype(x: Array) -> Any:
    """The dtype of velocities and times that act on `x` of any shape: float64 with float64, else float32."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def torus_shift(x: Array, velocity: Array, t: Array) -> Array:
    """Moves images on the torus by `t velocity` pixels: `y[h, w] = x[h - t vy, w - t vx]`.

    Args:
      x: shape `[..., height, width, channels]`, any dtype.
      velocity: `(vx, vy)`, shape `[2]`, in pixels per frame, whole numbers (fractions are rounded).
      t: time in frames, shape `[]`; `t velocity` below 2^24.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> torus_shift(x, jnp.array([1.0, 0.0]), jnp.array(1.0))[0, :, 0].tolist()
      [3.0, 0.0, 1.0, 2.0]
    """
    shift = jnp.round(velocity * jnp.asarray(t, velocity.dtype))
    return shift_image(x, shift.astype(jnp.int32))


def fractional_shift(x: Array, velocity: Array, t: Array) -> Array:
    """Moves images on the torus by any distance, as the trigonometric polynomial through their pixels.

    Equals `torus_shift` for whole distances. On a side of even length the highest frequency has no sine, so that
    fractional shifts of it are not inverted by going back.

    Args:
      x: shape `[..., height, width, channels]`, float.
      velocity: `(vx, vy)`, shape `[2]`, in pixels per frame.
      t: time in frames, shape `[]`.

    Returns:
      Array of the shape and dtype of `x`.
    """
    height, width = x.shape[-3:-1]
    shift = velocity.astype(x.dtype) * jnp.asarray(t, x.dtype)

    def phases(side, distance):
        frequency = np.fft.fftfreq(side).astype(x.dtype)
        angle = np.asarray(-2 * np.pi * frequency) * distance
        phase = lax.complex(jnp.cos(angle), jnp.sin(angle))
        if side % 2 == 0:
            phase = phase.at[side // 2].set(phase[side // 2].real.astype(phase.dtype))
        return phase

    one = (1,) * (x.ndim - 3)
    found = jnp.fft.fft2(x, axes=(-3, -2))
    found = found * phases(height, shift[1]).reshape(*one, -1, 1, 1) * phases(width, shift[0]).reshape(*one, 1, -1, 1)
    return jnp.fft.ifft2(found, axes=(-3, -2)).real.astype(x.dtype)


def rotation_flow(orientations: int) -> Flow:
    """Makes the flow of rotations on features over the cyclic group `C_n`.

    The channels of an image are then `[orientations, fields]`, flattened, orientation `k` at `360 k / n` degrees
    counter-clockwise; a rotation turns the image and rolls the orientations. Angles per frame must be multiples of
    `360 / orientations` degrees where `orientations > 1` (others are rounded for the roll).

    Args:
      orientations: static; order of the group, 1 for plain images.

    Returns:
      A flow `(x, velocity, t)` with velocity `[1]` in degrees per frame.

    Raises:
      ValueError: if `orientations` is below one; the flow itself, if it does not divide the channels.
    """
    if orientations < 1:
        raise ValueError(f"orientations: got {orientations}, expected a positive number.")

    def flow(x: Array, velocity: Array, t: Array) -> Array:
        if x.shape[-1] % orientations:
            raise ValueError(f"x: got {x.shape[-1]} channels, expected a multiple of {orientations} orientations.")
        degrees = velocity[0] * jnp.asarray(t, velocity.dtype)
        # Whole turns change nothing, and small angles have exact sines.
        degrees = degrees - 360 * jnp.round(degrees / 360)
        turned = rotate_image(x, degrees)
        if orientations == 1:
            return turned
        steps = jnp.round(degrees * np.asarray(orientations / 360, velocity.dtype)).astype(jnp.int32)
        fields = turned.reshape(*x.shape[:-1], orientations, -1)
        return jnp.roll(fields, steps, axis=-2).reshape(x.shape)

    return flow


def apply_flow(x: Array, velocities: Velocities, t: Array | float, *, flow: Flow = torus_shift) -> Array:
    """Carries each bank along by its own flow: `y[..., v] = psi_t(nu_v) . x[..., v]`.

    Args:
      x: shape `[..., V, height, width, channels]`, float.
      velocities: static; `V` velocities.
      t: time in frames, shape `[]`; negative to go back.
      flow: static; see the module's page.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if the axis of velocities does not fit.

    Example:
      >>> x = jnp.ones((3, 1, 4, 1)) * jnp.arange(4.0).reshape(1, 1, 4, 1)
      >>> apply_flow(x, velocity_grid(1, axes=1), 1)[..., 0, 0].tolist()
      [[1.0], [0.0], [3.0]]
    """
    nu = velocity_array(velocities)
    if x.ndim < 4 or x.shape[-4] != len(nu):
        raise ValueError(f"x: got shape {x.shape}, expected [..., {len(nu)}, height, width, channels].")
    dtype = time_dtype(x)
    return jax.vmap(flow, in_axes=(-4, 0, None), out_axes=-4)(x, jnp.asarray(nu, dtype), jnp.asarray(t).astype(dtype))
