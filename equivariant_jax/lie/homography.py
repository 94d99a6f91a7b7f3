r"""Convolutions over the homographies of the plane, SL(3) acting on projective points. Experimental.

`h . u = (h (u, 1))_{1,2} / (h (u, 1))_3` moves points and `(L_g f)(u) = f(g^-1 . u)` images. Translations belong to the
group and are no normal factor that a kernel could be shared over as in the affine case: features live on samples of
SL(3) alone, `[..., samples, channels]`.

    lifting            F(h)  = int f(u) k(h^-1 . u) |J_{h^-1}(u)| du,      J_a(u) = det a / (a (u, 1))_3^3
    group convolution  F'(h) = int F(v) k(h^-1 v) d mu(v)

Law: `F_{L_g f}(h) == F_f(g^-1 h)`, and the same for F'; substituting `u = g . u'`, the Jacobians multiply. The canvas
is [-1, 1]^2, the kernel's disc has a radius of its own; points that a homography sends behind the horizon are left out.

References: MacDonald, Ramasinghe and Lucey 2022, arXiv:2111.08251; Mironenco & Forre 2024, arXiv:2310.11366 (factors).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.lie.kernels import AffineKernelConfig, affine_kernel, affine_kernel_init, group_factor
from equivariant_jax.lie.sampling import GroupSamples

__all__ = ["homography_action", "homography_conv", "homography_conv_init", "homography_lift"]


def homography_action(h: Array, u: Array) -> tuple[Array, Array]:
    """Moves points by a homography.

    Args:
      h: matrix, shape `[3, 3]`, float.
      u: points, shape `[..., 2]`, dtype of `h`.

    Returns:
      Moved points `[..., 2]` and the Jacobian determinant there `[...]`; both are zero where the last homogeneous
      component is not positive.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> moved, jacobian = homography_action(jnp.diag(jnp.array([2.0, 1.0, 0.5])), jnp.array([[0.5, 1.0]]))
      >>> moved.tolist(), jacobian.tolist()
      ([[2.0, 2.0]], [8.0])
    """
    if h.shape != (3, 3) or u.ndim < 1 or u.shape[-1] != 2:
        raise ValueError(f"homography_action got h {h.shape}, u {u.shape}; expected [3, 3] and [..., 2].")
    homogeneous = jnp.concatenate([u, jnp.ones_like(u[..., :1])], axis=-1)
    found = jnp.einsum("ij,...j->...i", h, homogeneous, precision=lax.Precision.HIGHEST)
    ahead = found[..., 2] > 0
    depth = jnp.where(ahead, found[..., 2], jnp.ones_like(found[..., 2]))
    moved = jnp.where(ahead[..., None], found[..., :2] / depth[..., None], jnp.zeros_like(found[..., :2]))
    determinant = jnp.dot(h[0], jnp.cross(h[1], h[2]), precision=lax.Precision.HIGHEST)
    return moved, jnp.where(ahead, determinant / depth**3, jnp.zeros_like(depth))


def _check(samples: GroupSamples, name: str) -> None:
    if samples.matrix.ndim != 3 or samples.matrix.shape[-2:] != (3, 3):
        raise ValueError(f"{name}: got matrices {samples.matrix.shape}, expected [samples, 3, 3].")


def homography_lift(
    params: PyTree,
    image: Array,
    samples: GroupSamples,
    config: AffineKernelConfig,
    *,
    radius: float = 0.5,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Lifts images to samples of SL(3): `F(h) = sum_u f(u) k(h^-1 . u / radius) |J| du`.

    Args:
      params: from `affine_kernel_init(..., lifting=True)` with a group of n = 2.
      image: shape `[..., height, width, channels_in]`, dtype of `params`.
      samples: homographies h, matrices `[samples, 3, 3]`; dtype of `params`.
      config: static; of the kernel in the plane.
      radius: static; of the kernel's disc, in units of half the canvas.
      precision: static; of the products.

    Returns:
      Features, shape `[..., samples, channels_out]`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> import jax
      >>> from equivariant_jax.lie import SL2, SL3, sample_polar
      >>> config = AffineKernelConfig(SL2)
      >>> params = affine_kernel_init(jax.random.key(0), config, 1, 4, lifting=True)
      >>> homography_lift(params, jnp.ones((8, 8, 1)), sample_polar(jax.random.key(1), 6, SL3), config).shape
      (6, 4)
    """
    _check(samples, "samples")
    if image.ndim < 3 or config.group.n != 2 or radius <= 0:
        raise ValueError(
            f"homography_lift got an image {image.shape}, {config.group}, radius={radius}; expected [..., height, "
            "width, channels], a kernel of n = 2, and a positive radius."
        )
    height, width, channels = image.shape[-3:]
    right = (np.arange(width) + 0.5) * (2 / width) - 1
    up = 1 - (np.arange(height) + 0.5) * (2 / height)
    points = np.stack(np.broadcast_arrays(right[None, :], up[:, None]), axis=-1)
    points = jnp.asarray(points.reshape(-1, 2), samples.inverse.dtype)

    def weights(inverse: Array) -> Array:
        moved, jacobian = homography_action(inverse, points)
        kernel = affine_kernel(params, moved / np.asarray(radius, moved.dtype), None, config, channels)
        return kernel * (jacobian * np.asarray(1 / (height * width * radius**2), moved.dtype))[:, None, None]

    def one(_: None, inverse: Array) -> tuple[None, Array]:
        return None, weights(inverse)

    _, kernel = lax.scan(one, None, samples.inverse)
    flat = image.reshape(*image.shape[:-3], height * width, channels)
    return jnp.einsum("...pc,spcd->...sd", flat, kernel, precision=precision)


def homography_conv_init(
    key: PRNGKey, config: AffineKernelConfig, channels_in: int, channels_out: int, *, dtype=jnp.float32
) -> PyTree:
    """Draws the parameters of a kernel on SL(3).

    Args:
      key: typed random key.
      config: static; with group SL3.
      channels_in: channels of the features it reads.
      channels_out: channels of the features it makes.
      dtype: of the parameters.

    Returns:
      `{"group": function}`, a tuple of layers whose kernels have shape `[in, out]`.
    """
    separable = dataclasses.replace(config, separable=True)
    return {"group": affine_kernel_init(key, separable, channels_in, channels_out, dtype=dtype)["group"]}


def homography_conv(
    params: PyTree,
    features: Array,
    samples_in: GroupSamples,
    samples_out: GroupSamples,
    config: AffineKernelConfig,
    *,
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves features on SL(3): `F'(h) = sum_v F(v) k(h^-1 v) w_v`.

    Args:
      params: from `homography_conv_init`.
      features: shape `[..., samples_in, channels_in]`, dtype of `params`.
      samples_in: elements v with weights, matrices `[samples_in, 3, 3]`.
      samples_out: elements h, matrices `[samples_out, 3, 3]`.
      config: static; with group SL3.
      precision: static; of the products.

    Returns:
      Features, shape `[..., samples_out, channels_out]`.

    Raises:
      ValueError: if shapes do not fit.
    """
    _check(samples_in, "samples_in")
    _check(samples_out, "samples_out")
    if config.group.n != 3 or features.ndim < 2 or features.shape[-2] != samples_in.matrix.shape[0]:
        raise ValueError(
            f"homography_conv got features {features.shape} and {config.group}; expected [..., "
            f"{samples_in.matrix.shape[0]}, channels] for these samples, and a kernel of n = 3."
        )
    relative = jnp.einsum("oij,sjk->osik", samples_out.inverse, samples_in.matrix, precision=lax.Precision.HIGHEST)
    kernel = group_factor(params, relative, config, features.shape[-1])
    return jnp.einsum("...sc,oscd,s->...od", features, kernel, samples_in.weights, precision=precision)
