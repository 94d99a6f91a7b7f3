r"""Polyphase anchoring: moves an image on the torus to an origin that only its content chooses.

`(S_g x)[n] = x[n - g]` on the torus of H x W positions; the components of stride s are `x_p[m] = x[s m + p]`, and
`S_g` permutes them. Let `p*` be the component that a criterion prefers. Then

    A_s(x) = S_{-p*} x,            A_s(S_g x) = S_{s k} A_s(x)  for a whole k(g, x)                  (1)
    C(x)   = S_{-o*} x,            C(S_g x) = C(x),   o*(S_g x) = o*(x) + g                          (2)

(1) is anchoring before one operator of stride s. (2) also chooses a position inside of the component: the canonical
image is the same for all shifts, bit by bit, and so is whatever is computed from it. A map F of any kind becomes
equivariant in the canonical frame, `S_{o*} F(C(x))`.

The criterion decides whether the laws hold. "norm" is the published one, the p-norm in floating point: tokens that a
layer normalisation made all have the same norm, rounding decides, and shifted copies go different ways. "projection"
takes the norm of one fixed random combination of the channels, whose gaps are a thousand times wider than rounding.
"exact", the default, adds up energies in integers, which no order of the sum can change, and breaks ties by a
fingerprint of the image as each position sees it. Two positions keep equal fingerprints if the image is symmetric under
the shift between them, and then both choices give one result: the laws hold for constant and periodic images as well.
(Else with a chance of one in four thousand million for each pair that ties in energy.)

The function is discontinuous where the two best components change places; no derivative goes through the choice.
Zero-filled shifts, crops and shifts by parts of a pixel are not shifts of the torus; nothing is promised for them.

References: Ding et al. 2023, arXiv:2306.07470; Chaman & Dokmanic 2021, arXiv:2011.14214; Rojas-Gomez et al. 2023,
arXiv:2305.16316.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.images import shift_image
from equivariant_jax.core.typing import Array

__all__ = [
    "Criterion",
    "canonical_anchor",
    "in_canonical_frame",
    "polyphase_anchor",
    "polyphase_energy",
    "polyphase_restore",
]

Criterion = Literal["exact", "norm", "projection"]


def _check(x: Array, stride: int, name: str) -> None:
    if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} got {x.dtype} {x.shape}; expected floating-point [..., height, width, channels].")
    if stride < 1 or x.shape[-3] % stride or x.shape[-2] % stride or 0 in x.shape[-3:]:
        raise ValueError(
            f"{name} got {x.shape[-3]} x {x.shape[-2]} positions, {x.shape[-1]} channels and stride {stride}; expected "
            "a positive stride that divides both sides. Resize the image, or choose another stride."
        )


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _components(x: Array, rows: int, columns: int) -> Array:
    """`[..., H, W]` to `[..., H / rows, rows, W / columns, columns]`."""
    height, width = x.shape[-2:]
    return x.reshape(*x.shape[:-2], height // rows, rows, width // columns, columns)


def _raised(x: Array, p_norm: float) -> Array:
    return jnp.square(x) if p_norm == 2 else jnp.abs(x) ** np.asarray(p_norm, x.dtype)


def polyphase_energy(x: Array, stride: int, *, p_norm: float = 2.0) -> Array:
    r"""Sums `|x|^p` over each polyphase component: `E[i, j] = \sum_{m, c} |x[s m + (i, j), c]|^p`.

    Args:
      x: shape `[..., height, width, channels]`, float; both sides divisible by the stride.
      stride: static.
      p_norm: static; positive.

    Returns:
      Energies, shape `[..., stride, stride]`, float32, or float64 for float64. In floating point their last bits depend
      on the order of the sum, so on where the image lies.

    Raises:
      ValueError: if shapes or dtypes do not fit, or `p_norm` is not positive.

    Example:
      >>> polyphase_energy(jnp.arange(16.0).reshape(4, 4, 1), 2).tolist()
      [[168.0, 212.0], [392.0, 468.0]]
    """
    _check(x, stride, "polyphase_energy")
    if not p_norm > 0:
        raise ValueError(f"polyphase_energy got p_norm={p_norm}; expected a positive number.")
    return jnp.sum(_components(jnp.sum(_raised(_wide(x), p_norm), axis=-1), stride, stride), axis=(-4, -2))


def _mixed(h: Array) -> Array:
    """Scrambles 32 bits, one to one."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def _fingerprint(x: Array) -> Array:
    """Fingerprint of the whole torus as seen from each position, uint32 `[..., H, W]`; commutes with shifts exactly."""
    x = _wide(x)
    bits = lax.bitcast_convert_type(jnp.where(x == 0, jnp.zeros_like(x), x), jnp.uint32)  # one zero, not two
    bits = bits.reshape(*x.shape[:-1], -1)  # a float64 is two words
    with np.errstate(over="ignore"):
        names = np.arange(1, bits.shape[-1] + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
    h = jnp.sum(_mixed(bits ^ names.reshape((1,) * (bits.ndim - 1) + (-1,))), axis=-1, dtype=jnp.uint32)
    # Each round joins what a position sees with what its neighbour sees, twice as far: the logarithm of the size.
    for axis, multiplier in ((-1, 0x85EBCA6B), (-2, 0xC2B2AE35)):
        step = 1
        while step < x.shape[axis - 1]:
            h = (h ^ (h >> np.uint32(15))) * np.uint32(multiplier) + jnp.roll(h, -step, axis=axis)
            step *= 2
        h = _mixed(h)
    return h


def _carried(high: Array, low: Array) -> tuple[Array, Array]:
    return high + (low >> np.uint32(16)), low & np.uint32(0xFFFF)


def _integer_energy(x: Array) -> tuple[Array, Array]:
    """Energy of each position as a whole number `2^16 high + low`, both uint32 `[..., H, W]`."""
    x = jnp.abs(_wide(x))
    # The largest number of bits for which the sum over all positions fits in 32 + 16.
    bits = min(16, (48 - math.ceil(math.log2(math.prod(x.shape[-3:])))) // 2)
    top = jnp.max(x, axis=(-3, -2, -1), keepdims=True)
    exponent = jnp.maximum(jnp.frexp(top)[1], np.int32(-100))
    # A power of two: the product is exact. Weaker images than 2^-100 have no energy; fingerprints tell positions apart.
    whole = jnp.floor(x * jnp.ldexp(jnp.ones_like(top), np.int32(bits) - exponent)).astype(jnp.uint32)
    square = whole * whole
    high = jnp.sum(square >> np.uint32(16), axis=-1, dtype=jnp.uint32)
    return _carried(high, jnp.sum(square & np.uint32(0xFFFF), axis=-1, dtype=jnp.uint32))


def _first_best(keys: tuple[Array, ...], candidates: Array) -> Array:
    """Position of the lexicographically largest keys among candidates, `[..., rows, columns]` to int32 `[..., 2]`."""
    for key in keys:
        best = jnp.max(jnp.where(candidates, key, jnp.zeros_like(key)), axis=(-2, -1), keepdims=True)
        candidates = candidates & (key == best)
    flat = candidates.reshape(*candidates.shape[:-2], -1).astype(jnp.int32)
    place = jnp.argmax(flat, axis=-1).astype(jnp.int32)
    columns = np.int32(candidates.shape[-1])
    return jnp.stack([place // columns, place % columns], axis=-1)


def _exact_origin(x: Array, strides: tuple[tuple[int, int], ...]) -> Array:
    """Chooses the phase of the first stride, then that of the next among those that agree with it, and so on."""
    x = lax.stop_gradient(x)
    high, low = _integer_energy(x)
    seen = _fingerprint(x)
    chosen, before = None, (1, 1)
    for rows, columns in strides:
        parts = [_components(part, rows, columns) for part in (high, low, seen)]
        sums = [jnp.sum(part, axis=-4, dtype=jnp.uint32) for part in parts]
        sums[:2] = _carried(sums[0], sums[1])
        sums = [jnp.sum(part, axis=-2, dtype=jnp.uint32) for part in sums]
        sums[:2] = _carried(sums[0], sums[1])
        agrees = jnp.ones(sums[0].shape, bool)
        if chosen is not None:
            row = np.arange(rows, dtype=np.int32) % np.int32(before[0])
            column = np.arange(columns, dtype=np.int32) % np.int32(before[1])
            lead = (1,) * (chosen.ndim - 1)
            agrees = (row.reshape(*lead, rows) == chosen[..., :1])[..., :, None] & (
                column.reshape(*lead, columns) == chosen[..., 1:]
            )[..., None, :]
        chosen, before = _first_best(tuple(sums), agrees), (rows, columns)
    assert chosen is not None
    return chosen


def _projection(channels: int) -> np.ndarray:
    """A fixed direction without symmetry among the channels, entries of size one."""
    return np.sqrt(2) * np.cos(np.arange(1, channels + 1, dtype=np.float64) ** 2 * np.sqrt(5))


def _float_origin(x: Array, stride: int, criterion: Criterion, p_norm: float) -> Array:
    x = lax.stop_gradient(x)
    if criterion == "projection":
        direction = _projection(x.shape[-1]).astype(_wide(x).dtype)
        x = jnp.matmul(_wide(x), direction[:, None], precision=lax.Precision.HIGHEST)
    energy = polyphase_energy(x, stride, p_norm=p_norm)
    place = jnp.argmax(energy.reshape(*energy.shape[:-2], -1), axis=-1).astype(jnp.int32)
    return jnp.stack([place // np.int32(stride), place % np.int32(stride)], axis=-1)


def _moved(x: Array, shift: Array) -> Array:
    """Each image by its own shift (rows, columns)."""
    images, shifts = x.reshape(-1, *x.shape[-3:]), shift.reshape(-1, 2)
    return jax.vmap(shift_image)(images, shifts[:, ::-1]).reshape(x.shape)


def polyphase_anchor(
    x: Array, stride: int, *, criterion: Criterion = "exact", p_norm: float = 2.0
) -> tuple[Array, Array]:
    """Moves the strongest polyphase component onto the grid, `A_s(x) = S_{-p*} x`: law (1).

    Args:
      x: shape `[..., height, width, channels]`, float; finite; both sides divisible by the stride.
      stride: static.
      criterion: static; "exact", or "norm" (as published) or "projection" in floating point.
      p_norm: static; of the last two.

    Returns:
      The moved maps, shape and dtype of `x`, and `p*` (row, column), int32 `[..., 2]`, from 0 to `stride - 1`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or an option is unknown.

    Example:
      >>> x = jnp.zeros((4, 6, 1)).at[3, 2, 0].set(1.0)
      >>> anchored, phase = polyphase_anchor(x, 2)
      >>> phase.tolist(), jnp.argwhere(anchored[..., 0], size=1).tolist()
      ([1, 0], [[2, 2]])
    """
    _check(x, stride, "polyphase_anchor")
    if criterion not in ("exact", "norm", "projection"):
        raise ValueError(f'criterion: got {criterion!r}, expected "exact", "norm" or "projection".')
    if criterion == "exact" and p_norm != 2:
        raise ValueError(f'polyphase_anchor got p_norm={p_norm}; "exact" energies are squares, take another criterion.')
    if criterion == "exact":
        phase = _exact_origin(x, ((stride, stride),))
    else:
        phase = _float_origin(x, stride, criterion, p_norm)
    return _moved(x, -phase), phase


def canonical_anchor(x: Array, strides: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """Moves an image to its canonical origin, `C(x) = S_{-o*} x`: law (2), to the last bit.

    The origin has the strongest phase of the first stride; among those, the strongest of the next; at last, it is the
    strongest such position. Phases are sums over many positions, and steadier under noise than one position is: give
    the strides of the network that follows.

    Args:
      x: shape `[..., height, width, channels]`, float; finite.
      strides: static; each divides the next, the last both sides.

    Returns:
      The moved images, shape and dtype of `x`, and `o*` (row, column), int32 `[..., 2]`.

    Raises:
      ValueError: if shapes or dtypes do not fit, or a stride does not divide the next.

    Example:
      >>> x = jnp.array([0.0, 3.0, 5.0, 3.0]).reshape(1, 4, 1)
      >>> canonical_anchor(x)[0][0, :, 0].tolist(), canonical_anchor(jnp.roll(x, 1, axis=1))[0][0, :, 0].tolist()
      ([5.0, 3.0, 0.0, 3.0], [5.0, 3.0, 0.0, 3.0])
    """
    for stride in strides or (1,):
        _check(x, stride, "canonical_anchor")
    if any(b % a for a, b in itertools.pairwise(strides)):
        raise ValueError(f"canonical_anchor got strides={strides}; expected each to divide the next.")
    height, width = x.shape[-3:-1]
    origin = _exact_origin(x, (*((s, s) for s in strides), (height, width)))
    return _moved(x, -origin), origin


def polyphase_restore(y: Array, shift: Array, *, stride: int = 1) -> Array:
    """Moves maps back out of an anchored frame, by `floor(shift / stride)` of their own positions.

    With stride 1 the frame is restored exactly. A map that is coarser by `stride` has no finer positions: it moves with
    the image for shifts by multiples of `stride`, else to within one of its positions. Bring it to the image's
    resolution first where that is too coarse.

    Args:
      y: shape `[..., height, width, channels]`, any dtype.
      shift: from an anchor, int32 `[..., 2]` with the leading axes of `y`.
      stride: static; positions of the anchored image to one of `y`.

    Returns:
      Array of the shape and dtype of `y`.

    Raises:
      ValueError: if shapes do not fit or `stride` is below one.

    Example:
      >>> x = jnp.arange(12.0).reshape(3, 4, 1)
      >>> anchored, shift = canonical_anchor(x)
      >>> bool((polyphase_restore(anchored, shift) == x).all())
      True
    """
    if y.ndim < 3 or shift.shape != (*y.shape[:-3], 2) or stride < 1:
        raise ValueError(
            f"polyphase_restore got y {y.shape}, shift {shift.shape}, stride {stride}; expected [..., height, width, "
            "channels], [..., 2] with the same leading axes, and a positive stride."
        )
    return _moved(y, shift // np.asarray(stride, shift.dtype))


def in_canonical_frame(function: Callable[[Array], Array], x: Array, strides: tuple[int, ...] = ()) -> Array:
    """Makes a map of images equivariant under all shifts of the torus: `S_{o*} F(C(x))`, to the last bit.

    Args:
      function: takes `[..., height, width, channels]` to `[..., height, width, channels_out]`; otherwise anything.
      x: shape `[..., height, width, channels]`, float; finite.
      strides: static; as for `canonical_anchor`.

    Returns:
      The map's result, in the frame of `x`, shape `[..., height, width, channels_out]`.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> ramp = lambda x: x * jnp.arange(4.0)[None, :, None]  # it knows its columns
      >>> x = jnp.array([0.0, 3.0, 5.0, 1.0]).reshape(1, 4, 1)
      >>> in_canonical_frame(ramp, x)[0, :, 0].tolist(), in_canonical_frame(ramp, jnp.roll(x, 1, 1))[0, :, 0].tolist()
      ([0.0, 9.0, 0.0, 1.0], [1.0, 0.0, 9.0, 0.0])
    """
    anchored, origin = canonical_anchor(x, strides)
    y = function(anchored)
    if y.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"function took {x.shape} to {y.shape}; expected to keep all axes but the last.")
    return polyphase_restore(y, origin)
