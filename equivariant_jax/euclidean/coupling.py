r"""Clebsch-Gordan products: one block for each path `l1 x l2 -> l3`, and the convolution that Gaunt products replace.

A coupling `C[m1, m2, m3]` of unit Frobenius norm takes features of degrees `l1` and `l2` to one of degree `l3` between
`|l1 - l2|` and `l1 + l2`. If `l1 + l2 + l3` is even it keeps natural parity, `(-1)^l` under inversion; if odd it turns
natural into pseudo. A Gaunt product adds the even paths up with fixed weights (see `gaunt`); here each has its own:

  A_{i, path} = sum_{j in N(i)} R_path(r_ij) [x_{j l1} (x) Y_{l2}(r_ij)]_{l3}.

Law: `conv(D x, R vectors) == D conv(x, vectors)`; with `R_path = W(l1, l2, l3) R_{l2}` and paths added up it is the
Gaunt convolution.

References: Batatia et al. 2022, arXiv:2206.07697, eq. 8; the coefficients are those of e3nn-jax.
"""

import functools
import itertools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import lmax_of

__all__ = ["cg_convolution_slots", "clebsch_gordan", "coupling_paths"]

Parity = Literal["natural", "all"]


@functools.cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Gives the real coupling of two degrees to a third, in e3nn's basis and sign.

    Args:
      l1: first degree.
      l2: second degree.
      l3: degree of the result.

    Returns:
      float64 array of shape `[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]`, read-only, of unit Frobenius norm.

    Raises:
      ValueError: if the three degrees are no triangle.

    Example:
      >>> clebsch_gordan(1, 1, 0)[:, :, 0].round(3).tolist()  # the inner product over sqrt(3)
      [[0.577, 0.0, 0.0], [0.0, 0.577, 0.0], [0.0, 0.0, 0.577]]
    """
    if min(l1, l2, l3) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"clebsch_gordan needs |l1 - l2| <= l3 <= l1 + l2, got {(l1, l2, l3)}.")
    import e3nn_jax

    table = np.array(e3nn_jax.clebsch_gordan(l1, l2, l3), np.float64)
    table[np.abs(table) < 1e-14] = 0.0
    table /= np.linalg.norm(table)
    table.setflags(write=False)
    return table


@functools.cache
def coupling_paths(
    lmax1: int, lmax2: int, lmax3: int, *, parity: Parity = "natural"
) -> tuple[tuple[int, int, int], ...]:
    """Lists all paths `(l1, l2, l3)` below three largest degrees, in order of `l2`, then `l1`, then `l3`.

    Args:
      lmax1: largest first degree.
      lmax2: largest second degree.
      lmax3: largest degree of the result.
      parity: static; "natural" keeps paths with `l1 + l2 + l3` even, "all" keeps every triangle.

    Returns:
      Tuple of triples of int.

    Raises:
      ValueError: for another `parity`.

    Example:
      >>> coupling_paths(1, 1, 1)
      ((0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0))
    """
    if parity not in ("natural", "all"):
        raise ValueError(f'parity must be "natural" or "all", got {parity!r}.')
    return tuple(
        (l1, l2, l3)
        for l2 in range(lmax2 + 1)
        for l1 in range(lmax1 + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax3) + 1)
        if parity == "all" or (l1 + l2 + l3) % 2 == 0
    )


def cg_convolution_slots(
    x: Array,
    harmonics: Array,
    radial: Array,
    senders: Array,
    *,
    lmax_out: int,
    kernels: Array | None = None,
    normalization: Literal["block", "component"] = "block",
    precision=lax.Precision.HIGHEST,
) -> Array:
    """Convolves over a table of neighbour slots with a radial function for each Clebsch-Gordan path of natural parity.

    The sum over neighbours is the inner axis of one matrix product for each node and filter degree, `sum_j Y_{j m2}
    (R_path x)_{j m1}`; the couplings then act once for each node. In a first layer (`L1 = 0`) every path is a degree of
    the filter, and up to factors this is the Gaunt convolution.

    Args:
      x: node features, shape `[n_node, (L1 + 1)**2, channels]`, float.
      harmonics: harmonics of the edge directions, shape `[n_node, slots, (L2 + 1)**2]`, dtype of `x`.
      radial: radial functions in the order of `coupling_paths(L1, L2, lmax_out)`, shape `[n_node, slots, paths,
        channels]`, dtype of `x`; zero in empty slots.
      senders: node in each slot, shape `[n_node, slots]`, int32 (any node in empty slots).
      lmax_out: static; largest degree of the result.
      kernels: mix the channels of all paths to one degree, as MACE does; shape `[paths, channels, channels_out]`, dtype
        of `x`. Default: the paths to one degree are added up.
      normalization: static; couplings of unit Frobenius norm ("block"), or times `sqrt(2 l3 + 1)` ("component": unit
        variance in, unit variance out, for each path).
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[n_node, (lmax_out + 1)**2, channels_out]`, dtype of `x`; zeros for degrees without a path.

    Raises:
      ValueError: if a coefficient axis is not a square, the number of paths differs, or an option is unknown.

    Example:
      >>> x, y = jnp.ones((2, 4, 3)), jnp.ones((2, 5, 4))
      >>> radial = jnp.ones((2, 5, len(coupling_paths(1, 1, 2)), 3))
      >>> cg_convolution_slots(x, y, radial, jnp.zeros((2, 5), int), lmax_out=2).shape
      (2, 9, 3)
    """
    lmax1, lmax2 = lmax_of(x.shape[-2]), lmax_of(harmonics.shape[-1])
    paths = coupling_paths(lmax1, lmax2, lmax_out)
    channels = x.shape[-1]
    if radial.shape[-2] != len(paths) or (kernels is not None and kernels.shape[:2] != (len(paths), channels)):
        raise ValueError(
            f"cg_convolution_slots got radial {radial.shape} and kernels {getattr(kernels, 'shape', None)}; expected "
            f"`[n_node, slots, {len(paths)}, channels]` and `[{len(paths)}, {channels}, channels_out]`, one entry for "
            f"each of coupling_paths({lmax1}, {lmax2}, {lmax_out})."
        )
    if normalization not in ("block", "component"):
        raise ValueError(f'normalization must be "block" or "component", got {normalization!r}.')
    nodes, slots = senders.shape
    # Split, not sliced: the transpose of a split is one concatenation, that of n slices n padded sums.
    parts = jnp.split(x[senders][:, :, None], [l * l for l in range(1, lmax1 + 1)], axis=3)
    filters = jnp.split(jnp.swapaxes(harmonics, -1, -2), [l * l for l in range(1, lmax2 + 1)], axis=-2)
    groups = [list(group) for _, group in itertools.groupby(paths, lambda path: (path[1], path[0]))]
    functions = jnp.split(radial[:, :, :, None], np.cumsum([len(g) for g in groups])[:-1].tolist(), axis=2)
    blocks: dict[int, list[Array]] = {l3: [] for l3 in range(lmax_out + 1)}
    for degree, matrix in enumerate(filters):
        chosen = [(g, f) for g, f in zip(groups, functions, strict=True) if g[0][1] == degree]
        messages = [(parts[group[0][0]] * f).reshape(nodes, slots, -1) for group, f in chosen]
        if not messages:
            continue
        sums = jnp.matmul(matrix, jnp.concatenate(messages, axis=-1), precision=precision)
        # All (path, m1) stand side by side on the last axis, in the order of `paths`.
        chosen = [path for group, _ in chosen for path in group]
        ends = np.cumsum([(2 * l1 + 1) * channels for l1, _, _ in chosen])[:-1].tolist()
        for path, outer in zip(chosen, jnp.split(sums, ends, axis=-1), strict=True):
            scale = np.sqrt(2 * path[2] + 1) if normalization == "component" else 1.0
            table = (scale * clebsch_gordan(*path).transpose(1, 0, 2)).reshape(-1, 2 * path[2] + 1).astype(x.dtype)
            outer = outer.reshape(nodes, -1, channels)
            blocks[path[2]].append(jnp.einsum("pk,npc->nkc", table, outer, precision=precision))
    out = []
    for l3, found in blocks.items():
        places = np.array([i for i, path in enumerate(paths) if path[2] == l3], np.int32)
        if not found:
            out.append(jnp.zeros((nodes, 2 * l3 + 1, channels if kernels is None else kernels.shape[-1]), x.dtype))
        elif kernels is None:
            out.append(functools.reduce(jnp.add, found))
        else:
            kernel = kernels[places].reshape(len(found) * channels, -1)
            out.append(jnp.matmul(jnp.concatenate(found, axis=-1), kernel, precision=precision))
    return jnp.concatenate(out, axis=1)
