r"""From images to features over velocities, and from plain to steerable convolutions over the cyclic group.

**Lifting.** The hidden state of a flow-equivariant network has an axis of velocities. Features of a frame get it either
by repetition (`trivial_lift`), or seen from frames that move along (`flow_lift`): bank nu of frame t is
`psi_t(nu)^-1 . features`. In the moving frames an object of velocity nu_hat stands still in bank nu_hat, and a flow of
the whole input is a permutation of the banks.

**Cyclic group.** Kernels of a convolution that commutes with rotations by `360 / n` degrees follow from weights on a
steerable basis: with orientations g, g' and relative positions x,

    K(g, g', x) = sum_b w[b, g' - g] B_b(R_g^-1 x)

where `B_b` are `gauss(|x| - r) cos(m phi)` and `sin(m phi)` on rings r = 0, 1, .. with m below a limit that the ring's
pixels carry (`m <= 2 r`). On 3 x 3 pixels: one function at the centre and five on the ring, so 6 weights per pair of
fields and relative orientation, as escnn's `R2Conv` on regular fields has.

Law: `convolution(rot(x), K) == rot(convolution(x, K))` for quarter turns exactly, for others up to what pixels miss.

Reference: Keller 2025, arXiv:2507.14793, sections 3 and 4; Weiler, Cesa 2019, arXiv:1911.08251 (steerable kernels).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.flow.generators import Flow, Velocities, time_dtype, torus_shift, velocity_array

__all__ = [
    "cyclic_kernel",
    "cyclic_kernel_init",
    "cyclic_lifting_kernel",
    "flow_lift",
    "steerable_basis",
    "trivial_lift",
]


def trivial_lift(features: Array, num_velocities: int) -> Array:
    """Repeats features in every bank.

    Args:
      features: shape `[..., height, width, channels]`, float.
      num_velocities: static; number of banks V.

    Returns:
      Array of shape `[..., V, height, width, channels]`.

    Raises:
      ValueError: if `features` has fewer than three axes.
    """
    if features.ndim < 3:
        raise ValueError(f"features: got shape {features.shape}, expected [..., height, width, channels].")
    shape = (*features.shape[:-3], num_velocities, *features.shape[-3:])
    return jnp.broadcast_to(features[..., None, :, :, :], shape)


def flow_lift(features: Array, velocities: Velocities, t: Array | float, *, flow: Flow = torus_shift) -> Array:
    """Shows each bank the features from its moving frame: `y[..., v] = psi_t(nu_v)^-1 . features`.

    Args:
      features: shape `[..., height, width, channels]`, float.
      velocities: static; `V` velocities.
      t: time in frames, shape `[]`.
      flow: static; see `generators`.

    Returns:
      Array of shape `[..., V, height, width, channels]`, dtype of `features`.

    Raises:
      ValueError: if `features` has fewer than three axes.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> flow_lift(x, ((0.0, 0.0), (1.0, 0.0)), 1)[..., 0, :, 0].tolist()
      [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 0.0]]
    """
    if features.ndim < 3:
        raise ValueError(f"features: got shape {features.shape}, expected [..., height, width, channels].")
    nu = jnp.asarray(velocity_array(velocities), time_dtype(features))
    return jax.vmap(flow, in_axes=(None, 0, None), out_axes=-4)(features, nu, -jnp.asarray(t).astype(nu.dtype))


@functools.cache
def steerable_basis(size: int, orientations: int) -> np.ndarray:
    """Tabulates the rotated basis functions, `B_b(R_g^-1 x)` on the pixels of a kernel.

    Args:
      size: odd; pixels of a side.
      orientations: order n of the group.

    Returns:
      Array of shape `[n, functions, size, size]`, float64, each function with sum of squares one at `g = 0`; read-only.

    Raises:
      ValueError: if `size` is even or `orientations` below one.

    Example:
      >>> steerable_basis(3, 8).shape
      (8, 6, 3, 3)
    """
    if size % 2 == 0 or orientations < 1:
        raise ValueError(f"steerable_basis got size={size}, orientations={orientations}; expected odd and positive.")
    radius = size // 2
    row, column = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance, angle = np.hypot(row, column), np.arctan2(-row, column)  # counter-clockwise, rows run down
    tables = []
    for g in range(orientations):
        turned = angle - 2 * np.pi * g / orientations
        functions = []
        for ring in range(radius + 1):
            gauss = np.exp(-0.5 * ((distance - ring) / 0.6) ** 2)
            for m in range(2 * ring + 1):
                waves = (np.cos, np.sin)[: 1 if m == 0 else 2]
                # The centre has no direction: only m = 0 lives there.
                functions.extend(gauss * np.where((distance == 0) & (m > 0), 0.0, wave(m * turned)) for wave in waves)
        tables.append(functions)
    table = np.array(tables)
    table /= np.sqrt(np.sum(table[:1] ** 2, axis=(2, 3), keepdims=True))
    table.setflags(write=False)
    return table


def cyclic_kernel_init(
    key: PRNGKey, fields_in: int, fields_out: int, orientations: int, *, size: int = 3, lifting: bool, dtype=jnp.float32
) -> Array:
    """Draws the weights of a steerable kernel, with variance 1 / (number of inputs of one output).

    Args:
      key: typed random key.
      fields_in: fields (or, for lifting, channels) of the input.
      fields_out: fields of the output.
      orientations: order n of the group.
      size: odd; pixels of a side.
      lifting: from a plain image, or from a field over the group.
      dtype: of the weights.

    Returns:
      Shape `[functions, fields_in, fields_out]` for lifting, else `[functions, n, fields_in, fields_out]`.
    """
    functions = steerable_basis(size, orientations).shape[1]
    shape = (functions, fields_in, fields_out) if lifting else (functions, orientations, fields_in, fields_out)
    return jax.random.normal(key, shape, dtype) * np.asarray(1 / np.sqrt(np.prod(shape[:-1])), dtype)


def cyclic_lifting_kernel(weights: Array, orientations: int, *, size: int = 3) -> Array:
    """Expands weights into the kernel of a convolution from a plain image to a field over the group.

    Args:
      weights: shape `[functions, channels_in, fields_out]`, float.
      orientations: static; order n of the group.
      size: static, odd.

    Returns:
      Kernel of shape `[size, size, channels_in, n fields_out]`, orientation before field.

    Raises:
      ValueError: if the number of functions does not fit.
    """
    basis = _basis_for(weights, 3, size, orientations)
    kernel = jnp.einsum("gbij,bco->ijcgo", basis, weights, precision=lax.Precision.HIGHEST)
    return kernel.reshape(*kernel.shape[:3], -1)


def cyclic_kernel(weights: Array, *, size: int = 3) -> Array:
    """Expands weights into the kernel of a convolution between fields over the cyclic group.

    Args:
      weights: shape `[functions, n, fields_in, fields_out]`, float; axis 1 is the input's orientation relative to the
        output's.
      size: static, odd.

    Returns:
      Kernel of shape `[size, size, n fields_in, n fields_out]`, orientation before field.

    Raises:
      ValueError: if the number of functions does not fit.
    """
    orientations = weights.shape[1] if weights.ndim == 4 else 1
    basis = _basis_for(weights, 4, size, orientations)
    g = np.arange(orientations)
    relative = weights[:, (g[None, :] - g[:, None]) % orientations]  # [functions, g, g', in, out]
    kernel = jnp.einsum("gbij,bghco->ijhcgo", basis, relative, precision=lax.Precision.HIGHEST)
    fields_in, fields_out = weights.shape[2:]
    return kernel.reshape(size, size, orientations * fields_in, orientations * fields_out)


def _basis_for(weights: Array, ndim: int, size: int, orientations: int) -> Array:
    basis = steerable_basis(size, orientations)
    if weights.ndim != ndim or weights.shape[0] != basis.shape[1]:
        raise ValueError(
            f"weights: got shape {weights.shape}, expected {ndim} axes, the first of {basis.shape[1]} basis functions."
        )
    return jnp.asarray(basis, weights.dtype)
