r"""Convolution kernels on the plane and on groups of matrices: functions of coordinates, cut to a window.

    k(x, h) = net([x ; coordinates(h)])                 "full"
    k(x, h) = net_1(x) net_2(coordinates(h))            "separable": depthwise in space, a mix of channels over H

The functions are sine networks, as published, or (`basis="gaussian"`) linear in their parameters: Gaussians around the
unstretched kernel's pixels, times one and the coordinates of h. The latter is a convolution's usual kernel made smooth,
and has no frequencies beyond those of the pixel grid, which the networks have unless `frequency` is low.

`x` is a position in units in which the unstretched kernel is the disc of radius one, `size` pixels across; h is in
polar coordinates, of which the network sees those of the stretch and the cosine and sine of the angle, or the angle
itself. An affine convolution evaluates it at `(h^-1 x, h^-1 v)`, so that a stretched h has a stretched kernel: `reach`,
the half side of the pixel grid in the same units, should be the largest stretch among the samples, or kernels are cut.

Windows make the kernel's support compact: in space ("disc", as the official code for SL(2); "bump", `(1 - |x|^2)^2`,
continuous with its derivative), and by `group_radius` on the group, where a window makes integrals by the Haar measure
of a non-compact group finite. "logistic" is the official code's for GL+(2), `sigmoid(2 - 2 |coordinates|)`.

Differences from the official code, each of which its layers need to be equivariant: the angle's cut lies at half turns
and not at zero, or nowhere with the cosine and sine; the window treats angles of both signs alike.

References: Mironenco & Forre 2024, arXiv:2310.11366, section 4; Knigge et al. 2022, arXiv:2110.13059 (separable).
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.lie.decomposition import LinearGroup, coordinates
from equivariant_jax.lie.elementary import rotation_exp
from equivariant_jax.nn.sine import sine_network_apply, sine_network_init

__all__ = ["AffineKernelConfig", "affine_kernel", "affine_kernel_init", "kernel_grid"]


@dataclasses.dataclass(frozen=True)
class AffineKernelConfig:
    """Static description of a kernel.

    Attributes:
      group: H, of n x n matrices, n = 2 for images.
      size: pixels across the unstretched kernel, odd.
      reach: half side of the grid of pixels in units of the unstretched kernel's radius; the published layout has 1.
      hidden: widths of the sine layers.
      frequency: factor inside of the sines.
      basis: "sine" (a network) or "gaussian" (linear in the parameters; then `hidden` and `frequency` have no meaning).
      width: of the Gaussians, their standard deviation in pixels.
      angles: "circle" (cosine and sine; for n = 3 the rotation's entries), "principal" (in (-pi, pi]), or "published"
        (in [0, 2 pi), n = 2 only: a kernel with a jump at zero, for comparison).
      window: in space: "disc", "bump", "logistic" or "none".
      group_radius: where the kernel vanishes on the group, in the norm of stretch coordinates and angle together
        (`1 - |c|^2 / group_radius^2`, squared); None for no window.
      separable: whether it is a product of a kernel in space and one on the group.
    """

    group: LinearGroup
    size: int = 5
    reach: float = 1.0
    hidden: tuple[int, ...] = (60, 60, 60)
    frequency: float = 10.0
    basis: Literal["sine", "gaussian"] = "sine"
    width: float = 0.6
    angles: Literal["circle", "principal", "published"] = "circle"
    window: Literal["disc", "bump", "logistic", "none"] = "bump"
    group_radius: float | None = None
    separable: bool = False

    def __post_init__(self):
        if self.size < 1 or self.size % 2 == 0 or self.reach <= 0 or not self.hidden:
            raise ValueError(
                f"got size={self.size}, reach={self.reach}, hidden={self.hidden}; expected an odd size, a positive "
                "reach and at least one hidden layer."
            )
        if self.angles not in ("circle", "principal", "published") or (
            self.angles == "published" and self.group.n != 2
        ):
            raise ValueError(
                f'angles: got {self.angles!r} for n = {self.group.n}; expected "circle", "principal", or "published" '
                "with n = 2."
            )
        if self.basis not in ("sine", "gaussian") or self.width <= 0:
            raise ValueError(f'got basis={self.basis!r}, width={self.width}; expected "sine" or "gaussian", positive.')
        if self.window not in ("disc", "bump", "logistic", "none"):
            raise ValueError(f'window: got {self.window!r}, expected "disc", "bump", "logistic" or "none".')
        if self.group_radius is not None and self.group_radius <= 0:
            raise ValueError(f"group_radius: got {self.group_radius}, expected a positive radius or None.")

    @property
    def num_group_inputs(self) -> int:
        """Number of the network's inputs that describe the group element."""
        if not self.group.rotation or self.angles != "circle":
            return self.group.dimension
        return self.group.num_stretches + (2 if self.group.n == 2 else self.group.n**2)

    @property
    def side(self) -> int:
        """Pixels of a side of the grid, odd."""
        return 2 * math.ceil(self.reach * self.size / 2 - 0.5) + 1


def kernel_grid(config: AffineKernelConfig, *, dtype=jnp.float32) -> Array:
    """Positions of a kernel's pixels: `2 / size` apart, zero in the middle.

    Args:
      config: static.
      dtype: of the result.

    Returns:
      Positions `(right, up)`, shape `[side, side, 2]`; rows run down, as in images.

    Example:
      >>> from equivariant_jax.lie import SL2
      >>> np.asarray(kernel_grid(AffineKernelConfig(SL2)), float)[0, :, 0].round(3).tolist()
      [-0.8, -0.4, 0.0, 0.4, 0.8]
    """
    line = (np.arange(config.side) - config.side // 2) * (2.0 / config.size)
    right, down = np.meshgrid(line, line)
    return jnp.asarray(np.stack([right, -down], axis=-1), dtype)


def affine_kernel_init(
    key: PRNGKey,
    config: AffineKernelConfig,
    channels_in: int,
    channels_out: int,
    *,
    lifting: bool = False,
    dtype=jnp.float32,
) -> PyTree:
    """Draws a kernel's parameters, scaled so that a convolution keeps variances roughly.

    Args:
      key: typed random key.
      config: static.
      channels_in: channels of the features it reads.
      channels_out: channels of the features it makes.
      lifting: static; whether it reads images, and so depends on x alone.
      dtype: of the parameters.

    Returns:
      Full or lifting: `{"full": function}` with `channels_in * channels_out` values; separable: `{"space": function,
      "group": function}` with `channels_out` and `channels_in * channels_out` values. A function is a tuple of layers,
      whose kernels have shape `[in, out]`.

    Raises:
      ValueError: if a number of channels is below one.
    """
    if min(channels_in, channels_out) < 1:
        raise ValueError(f"affine_kernel_init got {channels_in} channels in, {channels_out} out; expected at least 1.")
    space, both = config.group.n, config.group.n + config.num_group_inputs
    values = channels_in * channels_out

    pixels, terms = config.size**space, 1 + config.num_group_inputs

    def function(key, inputs, features, outputs, gain, unit=pixels):
        if config.basis == "gaussian":
            # In the units of an ordinary convolution's weights, so that usual learning rates suit them.
            bound = math.sqrt(3.0) * gain / unit
            return ({"kernel": jax.random.uniform(key, (features, outputs), dtype, -bound, bound)},)
        widths = (inputs, *config.hidden, outputs)
        return sine_network_init(key, widths, frequency=config.frequency, gain=gain, dtype=dtype)

    if lifting or not config.separable:
        features = pixels if lifting else pixels * terms
        return {"full": function(key, space if lifting else both, features, values, config.size / channels_in**0.5)}
    key_space, key_group = jax.random.split(key)
    return {
        "space": function(key_space, space, pixels, channels_out, float(config.size)),
        "group": function(key_group, config.num_group_inputs, terms, values, channels_in**-0.5, 1),
    }


def _inputs(h: Array, config: AffineKernelConfig) -> tuple[Array, Array]:
    """The network's view of group elements, `[..., num_group_inputs]`, and their polar coordinates."""
    found = coordinates(h, config.group)
    if not config.group.rotation or config.angles == "principal":
        return found, found
    stretch, angle = found[..., : config.group.num_stretches], found[..., config.group.num_stretches :]
    if config.angles == "published":
        full = np.asarray(2 * math.pi, h.dtype)
        seen = jnp.where(angle < 0, angle + full, angle)
        return jnp.concatenate([stretch, seen], axis=-1), jnp.concatenate([stretch, seen], axis=-1)
    if config.group.n == 2:
        turned = [jnp.cos(angle), jnp.sin(angle)]
    else:
        turned = [rotation_exp(angle, config.group.n).reshape(*angle.shape[:-1], config.group.n**2)]
    return jnp.concatenate([stretch, *turned], axis=-1), found


def _evaluate(params: PyTree, x: Array | None, seen: Array | None, config: AffineKernelConfig, precision) -> Array:
    """Values of a function of positions `[..., n]`, of the view of group elements `[..., inputs]`, or of both."""
    if config.basis == "sine":
        inputs = [part for part in (x, seen) if part is not None]
        return sine_network_apply(
            params, jnp.concatenate(inputs, axis=-1), frequency=config.frequency, precision=precision
        )
    features = None
    if x is not None:
        line = (np.arange(config.size) - config.size // 2) * (2.0 / config.size)
        places = np.stack(np.meshgrid(*[line] * config.group.n, indexing="ij"), axis=-1).reshape(-1, config.group.n)
        centres = np.asarray(places, x.dtype).reshape((1,) * (x.ndim - 1) + places.shape)
        square = jnp.sum(jnp.square(x[..., None, :] - centres), axis=-1)
        features = jnp.exp(square * np.asarray(-0.5 * (config.size / (2 * config.width)) ** 2, x.dtype))
        features = features * np.asarray(config.size**config.group.n, x.dtype)
    if seen is not None:
        terms = jnp.concatenate([jnp.ones_like(seen[..., :1]), seen], axis=-1)
        features = terms if features is None else features[..., :, None] * terms[..., None, :]
        features = features.reshape(*seen.shape[:-1], -1)
    if features is None:
        raise ValueError("a kernel is a function of positions, group elements or both; got neither.")
    return jnp.matmul(features, params[0]["kernel"], precision=precision)


def _bump(square: Array) -> Array:
    return jnp.square(jnp.maximum(1 - square, jnp.zeros_like(square)))


def _space_window(x: Array, config: AffineKernelConfig) -> Array:
    square = jnp.sum(jnp.square(x), axis=-1)
    if config.window == "disc":
        return (square <= 1).astype(x.dtype)
    return _bump(square) if config.window == "bump" else jnp.ones_like(square)


def _group_window(c: Array, config: AffineKernelConfig) -> Array:
    square = jnp.sum(jnp.square(c), axis=-1)
    if config.group_radius is None:
        return jnp.ones_like(square)
    return _bump(square * np.asarray(config.group_radius**-2, c.dtype))


def _logistic(square: Array) -> Array:
    nonzero = square > 0
    norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, jnp.ones_like(square))), jnp.zeros_like(square))
    return jax.nn.sigmoid(2 - 2 * norm)


def affine_kernel(
    params: PyTree,
    x: Array,
    h: Array | None,
    config: AffineKernelConfig,
    channels_in: int,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Evaluates a kernel; a separable one is multiplied out.

    Args:
      params: from `affine_kernel_init`.
      x: positions, shape `[..., n]`, dtype of `params`.
      h: group elements, shape `[..., n, n]` with the same leading axes, or None for a lifting kernel.
      config: static.
      channels_in: static; as in `affine_kernel_init`.
      precision: static; of the products.

    Returns:
      Kernel, shape `[..., channels_in, channels_out]`, dtype of `x`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> from equivariant_jax.lie import SL2
      >>> config = AffineKernelConfig(SL2)
      >>> params = affine_kernel_init(jax.random.key(0), config, 3, 4)
      >>> affine_kernel(params, jnp.zeros((7, 2)), jnp.tile(jnp.eye(2), (7, 1, 1)), config, 3).shape
      (7, 3, 4)
    """
    n = config.group.n
    if x.ndim < 1 or x.shape[-1] != n or (h is not None and h.shape != (*x.shape, n)):
        raise ValueError(
            f"affine_kernel got x {x.shape} and h {None if h is None else h.shape}; expected [..., {n}] and "
            f"[..., {n}, {n}]."
        )
    if "space" in params:
        if h is None:
            raise ValueError("affine_kernel got no group elements; a separable kernel needs them.")
        space, group = space_factor(params, x, config), group_factor(params, h, config, channels_in)
        return space[..., None, :] * group
    out = full_values(params["full"], x, h, config, precision)
    return out.reshape(*out.shape[:-1], channels_in, -1)


def full_values(params: PyTree, x: Array, h: Array | None, config: AffineKernelConfig, precision) -> Array:
    """Values of a full kernel, `[..., channels_in * channels_out]`."""
    window, square, seen = _space_window(x, config), jnp.sum(jnp.square(x), axis=-1), None
    if h is not None:
        seen, found = _inputs(h, config)
        window = window * _group_window(found, config)
        square = square + jnp.sum(jnp.square(found), axis=-1)
    if config.window == "logistic":
        window = window * _logistic(square)
    return _evaluate(params, x, seen, config, precision) * window[..., None]


def space_factor(params: PyTree, x: Array, config: AffineKernelConfig, precision=lax.Precision.HIGHEST) -> Array:
    """A separable kernel's factor in space, `[..., channels_out]`."""
    window = _space_window(x, config)
    if config.window == "logistic":
        window = window * _logistic(jnp.sum(jnp.square(x), axis=-1))
    return _evaluate(params["space"], x, None, config, precision) * window[..., None]


def group_factor(
    params: PyTree, h: Array, config: AffineKernelConfig, channels_in: int, precision=lax.Precision.HIGHEST
) -> Array:
    """A separable kernel's factor on the group, `[..., channels_in, channels_out]`."""
    seen, found = _inputs(h, config)
    window = _group_window(found, config)
    if config.window == "logistic":
        window = window * _logistic(jnp.sum(jnp.square(found), axis=-1))
    out = _evaluate(params["group"], None, seen, config, precision)
    return (out * window[..., None]).reshape(*h.shape[:-2], channels_in, -1)
