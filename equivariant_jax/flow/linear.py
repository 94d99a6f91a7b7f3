r"""A linear flow-equivariant recurrence, parallel in time.

Without an activation, and for shifts of the torus, the recurrence is diagonal in spatial frequency: in moving frames

    k_t(nu, q) = W(q) k_{t-1}(nu, q) + exp(2 pi i t nu . q / n) U(q) f_t(q),

one first-order recurrence per frequency q, which an associative scan evaluates in `log2(time)` rounds. Velocities may
be fractions of a pixel per frame: on odd grids the law

    f_t -> psi_t(nu_hat) . f_t   gives   s_t(nu) -> psi_t(nu_hat) . s_t(nu - nu_hat)

holds for all of them (`generators.fractional_shift`).

Reference: Keller 2025, arXiv:2507.14793, section 3 (the recurrence); Martin, Cundy 2018, arXiv:1709.04057 (the scan).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.flow.generators import Velocities, velocity_array
from equivariant_jax.nn.convolution import convolution

__all__ = ["linear_flow_scan"]


def _frequency_response(kernel: Array, height: int, width: int) -> Array:
    """Of a correlation: `[size, size, ...] -> [height, width // 2 + 1, ...]`, complex."""
    size = kernel.shape[0]
    radius = size // 2
    at = np.arange(size) - radius
    rows = np.exp(2j * np.pi * np.outer(np.fft.fftfreq(height), at))
    columns = np.exp(2j * np.pi * np.outer(np.fft.rfftfreq(width), at))
    wave = np.einsum("pi,qj->pqij", rows, columns).reshape(height * (width // 2 + 1), size * size)
    flat = kernel.reshape(size * size, -1)
    real = jnp.matmul(jnp.asarray(wave.real, kernel.dtype), flat, precision=lax.Precision.HIGHEST)
    imaginary = jnp.matmul(jnp.asarray(wave.imag, kernel.dtype), flat, precision=lax.Precision.HIGHEST)
    return lax.complex(real, imaginary).reshape(height, width // 2 + 1, *kernel.shape[2:])


def _phases(velocities: np.ndarray, times: int, height: int, width: int) -> np.ndarray:
    """`exp(-2 pi i t nu . q / n)`, of psi_t(nu), `[T, V, height, width // 2 + 1]`."""

    def side(frequency, speed, even):
        turns = frequency * np.multiply.outer(np.arange(times), speed)[..., None]
        wave = np.exp(-2j * np.pi * turns)
        if even:  # the highest frequency has no sine
            highest = np.isclose(np.abs(frequency), 0.5)
            wave[..., highest] = wave[..., highest].real
        return wave

    rows = side(np.fft.fftfreq(height), velocities[:, 1], height % 2 == 0)
    columns = side(np.fft.rfftfreq(width), velocities[:, 0], width % 2 == 0)
    return rows[..., :, None] * columns[..., None, :]


def linear_flow_scan(
    params: PyTree, frames: Array, velocities: Velocities, *, precision=lax.Precision.HIGHEST
) -> Array:
    """Evaluates the linear recurrence for all frames at once.

    Args:
      params: dict with `input` `[size, size, channels_in, channels]` and `recurrent`, either a kernel for each channel
        alone, `[size, size, channels]` (fast), or between channels, `[size, size, channels, channels]` (the scan then
        multiplies matrices, `channels` times the work).
      frames: shape `[batch, time, height, width, channels_in]`, float32 or float64, dtype of `params`.
      velocities: static; `V` velocities `(vx, vy)` in pixels per frame, any real numbers.
      precision: static; of the products.

    Returns:
      States `s_t(nu)`, shape `[batch, time, V, height, width, channels]`, dtype of `frames`. With real velocities they
      are what a sequential recurrence with `fractional_shift` gives.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> params = {"input": jnp.ones((1, 1, 1, 2)), "recurrent": jnp.full((1, 1, 2), 0.5)}
      >>> states = linear_flow_scan(params, jnp.ones((1, 3, 5, 5, 1)), ((0.0, 0.0), (0.5, 0.0)))
      >>> [round(float(value), 3) for value in states[0, :, 1, 0, 0, 0]]  # 1, 1 + 1/2, 1 + 1/2 + 1/4
      [1.0, 1.5, 1.75]
    """
    kernel, recurrent = params["input"], params["recurrent"]
    if frames.ndim != 5 or frames.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"frames: got shape {frames.shape}, expected [batch, time, height, width, {kernel.shape[-2]}]."
        )
    if recurrent.ndim not in (3, 4) or set(recurrent.shape[2:]) != {kernel.shape[-1]}:
        raise ValueError(f"recurrent: got shape {recurrent.shape}, expected [size, size, C] or [size, size, C, C].")
    if frames.dtype != kernel.dtype or frames.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"frames are {frames.dtype}, parameters {kernel.dtype}; expected both float32 or float64.")
    nu = velocity_array(velocities)
    if nu.shape[1] != 2:
        raise ValueError(f"velocities: got {nu.shape[1]} components, expected (vx, vy).")
    times, height, width = frames.shape[1:4]
    drive = jnp.fft.rfft2(convolution(frames, kernel, precision=precision), axes=(2, 3))
    response = _frequency_response(recurrent, height, width)
    phases = jnp.asarray(_phases(nu, times, height, width), drive.dtype)[None, ..., None]
    # Each bank's drive seen from its moving frame, [batch, T, V, height, frequencies, channels].
    moving = drive[:, :, None] * jnp.conj(phases)
    diagonal = recurrent.ndim == 3

    def combine(early, late):
        (a, x), (b, y) = early, late
        if diagonal:
            return b * a, b * x + y
        # Row vectors: k W, as convolutions have it.
        return (
            jnp.matmul(a, b, precision=precision),
            jnp.matmul(x[..., None, :], b, precision=precision)[..., 0, :] + y,
        )

    powers = jnp.broadcast_to(response[None, None, None], (1, times, 1, *response.shape))
    _, states = lax.associative_scan(combine, (powers, moving), axis=1)
    return jnp.fft.irfft2(states * phases, s=(height, width), axes=(3, 4)).astype(frames.dtype)
