r"""Features of this library as `e3nn_jax.IrrepsArray` and back, and products that take and give IrrepsArrays.

An IrrepsArray of `c` channels has irreps `c x 0e + c x 1o + c x 2e + ...` and lists, degree by degree, all channels of
that degree; here a feature is `[..., channels, (lmax + 1)**2]`. A field that is not a true scalar field is pseudo,
`c x 0o + c x 1e + ...`; every O(3) feature is the sum of one of each.

`spherical_product` stands where `e3nn_jax.elementwise_tensor_product` stood: channel by channel, one block for each
output degree in place of one for each path.

Law: `spherical_product(x.transform(g), y.transform(g)) == spherical_product(x, y).transform(g)` for g in O(3).
"""

from typing import Any, Literal

import jax.numpy as jnp

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.bracket import spherical_poisson_bracket
from equivariant_jax.euclidean.gaunt import ProductNormalization, gaunt_tensor_product
from equivariant_jax.euclidean.irreps import degree_slices, lmax_of
from equivariant_jax.euclidean.method_choice import BracketMethod

__all__ = ["from_irreps_array", "spherical_product", "to_irreps_array"]

Parity = Literal["natural", "pseudo"]


def _sign(parity: str) -> int:
    if parity not in ("natural", "pseudo"):
        raise ValueError(f'parity must be "natural" or "pseudo", got {parity!r}.')
    return 1 if parity == "natural" else -1


def to_irreps_array(x: Array, parity: Parity = "natural") -> Any:
    """Makes an `e3nn_jax.IrrepsArray` of a feature.

    Args:
      x: coefficients, shape `[..., channels, (lmax + 1)**2]`, any dtype.
      parity: static; "natural" (degree `l` has parity `(-1)**l`) or "pseudo".

    Returns:
      IrrepsArray of shape `[..., channels * (lmax + 1)**2]`.

    Raises:
      ValueError: if the last axis is not a coefficient axis.

    Example:
      >>> to_irreps_array(jnp.ones((5, 8, 9))).irreps
      8x0e+8x1o+8x2e
    """
    import e3nn_jax as e3nn

    sign, lmax = _sign(parity), lmax_of(x.shape[-1])
    channels = x.shape[-2]
    irreps = e3nn.Irreps([(channels, (l, sign * (-1) ** l)) for l in range(lmax + 1)])
    blocks = [x[..., block].reshape(*x.shape[:-2], -1) for block in degree_slices(lmax)]
    return e3nn.IrrepsArray(irreps, jnp.concatenate(blocks, axis=-1))


def from_irreps_array(array: Any, parity: Parity = "natural", *, lmax: int | None = None) -> Array:
    """Takes the natural or the pseudo part of an `e3nn_jax.IrrepsArray` as a feature; absent degrees become zero.

    Args:
      array: IrrepsArray of shape `[..., irreps.dim]`; all degrees that it has of this parity must have one
        multiplicity. Repeated entries of a degree count as more channels.
      parity: static; which part, "natural" or "pseudo".
      lmax: static; largest degree of the result, default the largest in `array`.

    Returns:
      Array of shape `[..., channels, (lmax + 1)**2]`; without channels if the part is absent.

    Raises:
      ValueError: if multiplicities differ, naming them, or a degree above `lmax` is present.

    Example:
      >>> from_irreps_array(to_irreps_array(jnp.ones((5, 8, 9)))).shape
      (5, 8, 9)
    """
    sign = _sign(parity)
    array = array.regroup()
    part = array.filter(keep=lambda entry: entry.ir.p == sign * (-1) ** entry.ir.l)
    counts = {entry.ir.l: entry.mul for entry in part.irreps}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"from_irreps_array got {part.irreps}; expected one multiplicity for all degrees of {parity} parity. Mix "
            "channels with a linear map to one multiplicity first."
        )
    highest = max([0, *counts])
    top = highest if lmax is None else lmax
    if counts and highest > top:
        raise ValueError(f"from_irreps_array got {part.irreps} with degrees above lmax={top}; raise lmax or filter.")
    channels = next(iter(counts.values()), 0)
    leading = array.shape[:-1]
    found = {entry.ir.l: chunk for entry, chunk in zip(part.irreps, part.chunks, strict=True) if chunk is not None}
    blocks = [
        found.get(l, jnp.zeros((*leading, channels, 2 * l + 1), array.dtype)).reshape(*leading, channels, 2 * l + 1)
        for l in range(top + 1)
    ]
    return jnp.concatenate(blocks, axis=-1)


def spherical_product(
    x: Any,
    y: Any,
    *,
    lmax_out: int | None = None,
    odd_paths: bool = False,
    normalization: ProductNormalization = "component",
    method: BracketMethod = "auto",
) -> Any:
    """Multiplies two IrrepsArrays channel by channel with Gaunt products, and Poisson brackets for the odd paths.

    Both may have natural and pseudo parts: natural times natural and pseudo times pseudo are natural, mixed products
    pseudo; brackets the other way round.

    Args:
      x: IrrepsArray of shape `[..., dim]`, one multiplicity per parity.
      y: IrrepsArray likewise; multiplicities equal those of `x`, or one; leading axes broadcast.
      lmax_out: static; largest degree of the result, default the sum of the largest degrees.
      odd_paths: static; whether to add the brackets, which makes all Clebsch-Gordan paths present.
      normalization: static; as in `gaunt_tensor_product`.
      method: static; as in `spherical_poisson_bracket`.

    Returns:
      IrrepsArray with natural degrees `0..lmax_out` and, where they occur, pseudo ones.

    Raises:
      ValueError: if multiplicities do not fit.

    Example:
      >>> import e3nn_jax as e3nn
      >>> x = e3nn.IrrepsArray("4x0e + 4x1o", jnp.ones((7, 16)))
      >>> spherical_product(x, x, lmax_out=1, odd_paths=True).irreps
      4x0e+4x1o+4x0o+4x1e
    """
    import e3nn_jax as e3nn

    parts: dict[int, Any] = {1: None, -1: None}

    def add(sign: int, value: Array) -> None:
        parts[sign] = value if parts[sign] is None else parts[sign] + value

    sides = [{1: from_irreps_array(v, "natural"), -1: from_irreps_array(v, "pseudo")} for v in (x, y)]
    top = [max(lmax_of(v.shape[-1]) for v in side.values() if v.shape[-2]) for side in sides]
    lmax_out = sum(top) if lmax_out is None else lmax_out
    options: dict[str, Any] = {"lmax_out": lmax_out, "normalization": normalization, "method": method}
    for p, left in sides[0].items():
        for q, right in sides[1].items():
            if left.shape[-2] == 0 or right.shape[-2] == 0:
                continue
            if 1 not in (left.shape[-2], right.shape[-2]) and left.shape[-2] != right.shape[-2]:
                raise ValueError(
                    f"spherical_product got {x.irreps} and {y.irreps}; multiplicities must be equal or one."
                )
            add(p * q, gaunt_tensor_product(left, right, **options))
            if odd_paths:
                add(-p * q, spherical_poisson_bracket(left, right, **options))
    names: tuple[tuple[int, Parity], ...] = ((1, "natural"), (-1, "pseudo"))
    arrays = [to_irreps_array(parts[sign], name) for sign, name in names if parts[sign] is not None]
    if not arrays:
        raise ValueError(f"spherical_product got {x.irreps} and {y.irreps}; both need at least one irrep.")
    return e3nn.concatenate(arrays, axis=-1)
