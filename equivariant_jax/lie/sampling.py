r"""Samples of a matrix group with the weights that turn sums over them into integrals by the Haar measure.

`int f(g) d mu(g) ~ 1/S sum_s f(g_s) w_s`, `w_s = Haar density / proposal density`. The proposal is a normal
distribution of the stretch's orthonormal coordinates, or a uniform one on a ball of them (then the weights are almost
alike, and the integral is over the part of the group within it), and a uniform one of the rotations, all of them or
those up to an angle. Without the weights the sum tends to an integral against another measure, which only rotations
leave alone.

Samples are values, drawn from a key and passed on; no layer draws its own. Three ways to draw:

* "random": independent;
* "stratified": each coordinate falls once into each of S equal shares of its distribution (Latin hypercube);
* "quasi": an additive recurrence with a random shift, evenly spread in all coordinates at once.

References: Mironenco & Forre 2024, arXiv:2310.11366 (polar sampling); Owen 1998 (Latin hypercubes); Roberts 2018,
"The unreasonable effectiveness of quasirandom sequences" (the recurrence).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.lie.decomposition import LinearGroup, haar_log_density_polar, stretch_matrix
from equivariant_jax.lie.elementary import rotation_exp, symmetric_exp

__all__ = ["GroupSamples", "published_samples", "sample_polar"]

Method = Literal["random", "stratified", "quasi"]
Proposal = Literal["normal", "ball"]


class GroupSamples(NamedTuple):
    """Elements of a matrix group with integration weights.

    Attributes:
      matrix: elements g, shape `[samples, n, n]`.
      inverse: their inverses, shape `[samples, n, n]`, made from the factors, without inverting.
      log_weight: logarithm of Haar density over proposal density, shape `[samples]`; the integral of f is the mean of
        `f(g) exp(log_weight)`.
    """

    matrix: Array
    inverse: Array
    log_weight: Array

    @property
    def weights(self) -> Array:
        """What each sample counts in a sum, `exp(log_weight) / samples`, shape `[samples]`."""
        return jnp.exp(self.log_weight) * np.asarray(1.0 / self.log_weight.shape[0], self.log_weight.dtype)


def _recurrence(dimension: int) -> np.ndarray:
    """Steps `1 / phi, 1 / phi**2, ...` with `phi**(d + 1) = phi + 1`, the generalised golden ratio."""
    phi = 2.0
    for _ in range(60):
        phi = (1 + phi) ** (1 / (dimension + 1))
    return phi ** -np.arange(1.0, dimension + 1)


def _uniform(key: PRNGKey, num: int, dimension: int, method: Method, dtype) -> Array:
    """Points of the unit cube, `[num, dimension]`, each coordinate uniform."""
    if method == "random":
        return jax.random.uniform(key, (num, dimension), dtype)
    if method == "quasi":
        index = np.arange(num)[:, None] * _recurrence(max(dimension, 1))[None, :dimension]
        lattice = np.mod(index, 1.0)
        shift = jax.random.uniform(key, (1, dimension), dtype)
        moved = jnp.asarray(lattice, shift.dtype) + shift
        return moved - jnp.floor(moved)
    key_order, key_place = jax.random.split(key)
    keys = jax.random.split(key_order, dimension)
    order = jnp.stack([jax.random.permutation(k, num) for k in keys], axis=-1) if dimension else jnp.zeros((num, 0))
    return (order.astype(dtype) + jax.random.uniform(key_place, (num, dimension), dtype)) / num


def _normal(u: Array) -> Array:
    # A uniform number of zero or one would be sent to infinity.
    least = float(jnp.finfo(u.dtype).eps)
    return jax.scipy.special.ndtri(jnp.clip(u, least, 1 - least))


def sample_polar(
    key: PRNGKey,
    num: int,
    group: LinearGroup,
    *,
    scale: float = 0.1**0.5,
    proposal: Proposal = "normal",
    max_angle: float = math.pi,
    method: Method = "quasi",
    dtype=jnp.float32,
) -> GroupSamples:
    """Draws group elements `exp(X) R` with weights for Haar integrals.

    Args:
      key: typed random key.
      num: static; number of samples, at least one.
      group: static.
      scale: static; standard deviation of each orthonormal coordinate of the stretch X, or the ball's radius, positive.
        (The paper draws a normal `log(A A^T) = 2 X` with variance 0.1.)
      proposal: static; "normal" or "ball", of the stretch's coordinates.
      max_angle: static; rotations are uniform up to this angle in radians; pi takes all. Rotations beyond it have no
        sample, so that integrals are over the part of the group within it.
      method: static; "random", "stratified" or "quasi".
      dtype: of the samples.

    Returns:
      The samples: matrices and inverses `[num, n, n]`, log weights `[num]`.

    Raises:
      ValueError: if an option is out of range.

    Example:
      >>> from equivariant_jax.lie import SL2
      >>> samples = sample_polar(jax.random.key(0), 16, SL2)
      >>> samples.matrix.shape, jnp.linalg.det(samples.matrix).round(3).max().item()
      ((16, 2, 2), 1.0)
    """
    if num < 1 or scale <= 0 or not 0 < max_angle <= math.pi:
        raise ValueError(
            f"sample_polar got num={num}, scale={scale}, max_angle={max_angle}; expected at least one sample, a "
            "positive scale, and an angle in (0, pi]."
        )
    if method not in ("random", "stratified", "quasi"):
        raise ValueError(f'method is {method!r}; expected "random", "stratified" or "quasi".')
    if proposal not in ("normal", "ball"):
        raise ValueError(f'proposal is {proposal!r}; expected "normal" or "ball".')
    stretches, n = group.num_stretches, group.n
    u = _uniform(key, num, group.dimension, method, dtype)
    y, log_proposal = _stretches(u[:, :stretches], scale, proposal)
    x = stretch_matrix(y, group)
    if group.rotation:
        theta, log_volume = _rotations(u[:, stretches:], n, max_angle)
    else:
        theta, log_volume = jnp.zeros((num, n * (n - 1) // 2), u.dtype), jnp.zeros((num,), u.dtype)
    stretch, inverse_stretch = symmetric_exp(x), symmetric_exp(-x)
    rotation = rotation_exp(theta, n)
    # Stretches that commute have Lebesgue measure; the others the density of polar coordinates.
    haar = haar_log_density_polar(x) if group.stretch in ("traceless", "full") else jnp.zeros_like(log_proposal)
    return GroupSamples(
        matrix=stretch @ rotation,
        inverse=jnp.swapaxes(rotation, -1, -2) @ inverse_stretch,
        log_weight=haar - log_proposal + log_volume,
    )


def _stretches(u: Array, scale: float, proposal: Proposal) -> tuple[Array, Array]:
    """Coordinates of stretches from the unit cube, and the log density of their distribution."""
    number, normal = u.shape[-1], _normal(u)
    square = jnp.sum(jnp.square(normal), axis=-1)
    if proposal == "normal" or number == 0:
        constant = np.asarray(number * (math.log(scale) + 0.5 * math.log(2 * math.pi)), u.dtype)
        return normal * np.asarray(scale, u.dtype), -0.5 * square - constant
    # The length of a normal vector, put through its distribution function, is uniform and independent of direction.
    half = np.asarray(number / 2, u.dtype)
    share = jax.scipy.special.gammainc(half, 0.5 * square)
    radius = np.asarray(scale, u.dtype) * share ** np.asarray(1 / number, u.dtype)
    length = jnp.sqrt(jnp.maximum(square, np.asarray(jnp.finfo(u.dtype).tiny, u.dtype)))
    volume = math.log(math.pi) * number / 2 - math.lgamma(number / 2 + 1) + number * math.log(scale)
    return normal * (radius / length)[:, None], jnp.full(square.shape, -volume, u.dtype)


def _rotations(u: Array, n: int, max_angle: float) -> tuple[Array, Array]:
    """Coordinates of rotations, and the log of normalised Haar density over proposal density."""
    zero = jnp.zeros(u.shape[:-1], u.dtype)
    if n == 1:
        return jnp.zeros((*u.shape[:-1], 0), u.dtype), zero
    if n == 2:
        return (2 * u - 1) * np.asarray(max_angle, u.dtype), zero + np.asarray(math.log(max_angle / math.pi), u.dtype)
    # n = 3: the direction uniform; the angle uniform in (0, max_angle), whose Haar density is (1 - cos t) / pi =
    # t^2 sinc^2(t / 2) / (2 pi).
    height, turn = 2 * u[..., 0] - 1, 2 * math.pi * u[..., 1]
    radius = jnp.sqrt(jnp.maximum(1 - height**2, np.asarray(0.0, u.dtype)))
    direction = jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn), height], axis=-1)
    angle = u[..., 2] * np.asarray(max_angle, u.dtype)
    density = jnp.maximum((1 - jnp.cos(angle)) / math.pi, np.asarray(jnp.finfo(u.dtype).tiny, u.dtype))
    return direction * angle[..., None], jnp.log(density * np.asarray(max_angle, u.dtype))


def published_samples(key: PRNGKey, num: int, group: LinearGroup, *, dtype=jnp.float32) -> GroupSamples:
    """Draws samples as the official code does, for comparison: not the Haar measure.

    Rotations are evenly spaced from -pi to pi, both ends included; stretches are `exp(Y / 2)` with normal coordinates
    of variance 0.1; no sample has a weight, and a sum is not divided by their number.

    Args:
      key: typed random key.
      num: static; number of samples, at least one.
      group: static; with n = 2.
      dtype: of the samples.

    Returns:
      The samples, matrices `[num, 2, 2]`; their `weights` are all one.

    Raises:
      ValueError: if the group's n is not 2, or there is no sample.
    """
    if num < 1 or group.n != 2:
        raise ValueError(f"published_samples got num={num} for {group}; expected at least one sample, and n = 2.")
    y = jax.random.normal(key, (num, group.num_stretches), dtype) * np.asarray(0.5 * 0.1**0.5, dtype)
    angles = np.linspace(-math.pi, math.pi, num) if group.rotation else np.zeros(num)
    rotation = rotation_exp(jnp.asarray(angles[:, None], dtype), 2)
    x = stretch_matrix(y, group)
    inverse = jnp.swapaxes(rotation, -1, -2) @ symmetric_exp(-x)
    return GroupSamples(symmetric_exp(x) @ rotation, inverse, jnp.full((num,), math.log(num), dtype))
