r"""How a group element acts on an array: small static objects, called as `representation(g, x)`.

A representation is a homomorphism, `rep(compose(g, h), x) == rep(g, rep(h, x))`, which the tests check for each. They
say nothing about batch axes: everything not named by `axis` is carried along.

| representation | element | acts on |
|---|---|---|
| `Trivial()` | any | leaves x as it is: outputs of an invariant function |
| `Vector(axis)` | matrix or affine | directions and velocities: the matrix on one axis |
| `Point(axis)` | affine | positions: matrix and translation |
| `Permuted(axes)` | permutation | rows of a set (one axis), adjacency matrices (two axes) |
| `Shifted(axes)` | torus shift or C_n | pixels of a periodic image or signal |
| `QuarterTurns(axes)` | C_4 or D_4 | pixels of a square image |
| `Regular(group, axis)` | C_n or D_n | a function on the group |
| `Irreps(degrees)` | O(3) matrix | spherical-harmonic coefficients, e3nn order |
| `TensorProduct(a, b)` | as a and b | matrices between two features |
| `DirectSum(parts)` | as its parts | concatenated features |
| `Joint(parts)` | tuple (`groups.Product`) | one representation for each factor, one after the other |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.groups import AffineElement, Cyclic, Dihedral
from equivariant_jax.core.sphere import raising_coupling
from equivariant_jax.core.typing import Array

__all__ = [
    "DirectSum",
    "Irreps",
    "Joint",
    "Permuted",
    "Point",
    "QuarterTurns",
    "Regular",
    "Representation",
    "Shifted",
    "TensorProduct",
    "Trivial",
    "Vector",
    "wigner_d",
]

Representation = Callable[[Any, Array], Array]


def _contract(matrix: Array, x: Array, axis: int) -> Array:
    """`matrix @ x` along one axis at full precision."""
    y = jnp.tensordot(x, matrix.astype(x.dtype), axes=((axis,), (1,)), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(y, -1, axis)


@dataclasses.dataclass(frozen=True)
class Trivial:
    """Leaves every array as it is."""

    def __call__(self, g: Any, x: Array) -> Array:
        """Returns `x` unchanged, whatever `g`."""
        del g
        return x


@dataclasses.dataclass(frozen=True)
class Vector:
    """A matrix group on its own space; of an affine element the linear part.

    Attributes:
      axis: the axis of components, length n.
    """

    axis: int = -1

    def __call__(self, g: Any, x: Array) -> Array:
        """Returns `g @ x` along `axis`, shape and dtype of `x`."""
        return _contract(g.matrix if isinstance(g, AffineElement) else g, x, self.axis)


@dataclasses.dataclass(frozen=True)
class Point:
    """An affine group on positions.

    Attributes:
      axis: the axis of coordinates, length n.
    """

    axis: int = -1

    def __call__(self, g: AffineElement, x: Array) -> Array:
        """Returns `matrix @ x + translation` along `axis`, shape and dtype of `x`."""
        y = jnp.moveaxis(_contract(g.matrix, x, self.axis), self.axis, -1)
        y = y + g.translation.astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return jnp.moveaxis(y, -1, self.axis)


@dataclasses.dataclass(frozen=True)
class Permuted:
    """A permutation on one or more axes: entry i moves to place `g[i]`.

    Attributes:
      axes: the axes that are permuted together, each of length n; `(-2,)` for a set of feature rows, `(0, 1)` for an
        adjacency matrix.
    """

    axes: tuple[int, ...] = (-2,)

    def __call__(self, g: Array, x: Array) -> Array:
        """Returns `x` with its entries moved, shape and dtype of `x`."""
        source = jnp.argsort(g)
        for axis in self.axes:
            x = jnp.take(x, source, axis=axis)
        return x


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Cyclic shifts of grid axes.

    Attributes:
      axes: one axis for each entry of the element; a scalar element (C_n) shifts a single axis.
      strides: static steps of the axis for one step of the element, one for each axis; default 1. A feature map that
        was subsampled by two has the fractional step that integer strides cannot express: check even shifts there.
    """

    axes: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __call__(self, g: Array, x: Array) -> Array:
        """Returns `x` rolled by `g` along `axes`, shape and dtype of `x`."""
        g = jnp.atleast_1d(g)
        strides = self.strides or (1,) * len(self.axes)
        for i, (axis, stride) in enumerate(zip(self.axes, strides, strict=True)):
            x = jnp.roll(x, g[i] * stride, axis=axis)
        return x


@dataclasses.dataclass(frozen=True)
class QuarterTurns:
    """C_4 and D_4 on a square grid, exactly: turns of 90 degrees, and for D_4 reflections of the second axis.

    Attributes:
      axes: the two grid axes, of equal length.
    """

    axes: tuple[int, int] = (-3, -2)

    def __call__(self, g: Array, x: Array) -> Array:
        """Returns `x` turned (and reflected first, where `g` says so), shape and dtype of `x`."""
        if g.ndim:
            turns, reflected = g[0], g[1]
            x = jnp.where(reflected == 1, jnp.flip(x, self.axes[1]), x)
        else:
            turns = g
        branches = [functools.partial(jnp.rot90, k=k, axes=self.axes) for k in range(4)]
        return jax.lax.switch(turns % 4, branches, x)


@dataclasses.dataclass(frozen=True)
class Regular:
    """A finite group on functions of itself, (g f)(h) = f(g^-1 h).

    Attributes:
      group: `Cyclic` or `Dihedral`.
      axis: the axis of the function's values, in the order of `group.elements()`.
    """

    group: Cyclic | Dihedral
    axis: int = -1

    def __call__(self, g: Array, x: Array) -> Array:
        """Returns the moved function, shape and dtype of `x`."""
        inverse = self.group.inverse(g)
        moved = jax.vmap(lambda h: self.group.index(self.group.compose(inverse, h)))(self.group.elements())
        return jnp.take(x, moved, axis=self.axis)


@functools.cache
def _degree_coupling(l: int) -> np.ndarray:
    """Isometry `[2l+1, 2l-1, 3]` from degree l into degree (l-1) x degree 1, real basis in e3nn's order and axes."""
    tensor = raising_coupling(l - 1).reshape(3, 2 * l - 1, 2 * l + 1).transpose(2, 1, 0)
    return tensor * np.sqrt((2 * l + 1) / np.sum(tensor**2))


def wigner_d(matrix: Array, lmax: int) -> tuple[Array, ...]:
    r"""Real Wigner D matrices of a rotation for all degrees up to `lmax`, e3nn's order and axes.

    Built by $D^l = Q_l (D^{l-1} \otimes R) Q_l^T$ from $D^0 = 1$: a polynomial in the entries of R, so there are no
    angles, no singular frames, and derivatives of every order. An improper matrix gives natural parity, $(-1)^l$.

    Args:
      matrix: orthogonal matrices `[..., 3, 3]`, float.
      lmax: static highest degree, at least 0.

    Returns:
      `lmax + 1` arrays, of shapes `[..., 2l+1, 2l+1]`, dtype of `matrix`.

    Raises:
      ValueError: if `matrix` is not `[..., 3, 3]`.

    Example:
      >>> import jax.numpy as jnp
      >>> [d.shape for d in wigner_d(jnp.eye(3), 2)]
      [(1, 1), (3, 3), (5, 5)]
    """
    matrix = jnp.asarray(matrix)
    if matrix.shape[-2:] != (3, 3) or lmax < 0:
        raise ValueError(f"wigner_d got shape {matrix.shape} and lmax={lmax}; expected `[..., 3, 3]` and lmax >= 0.")
    blocks = [jnp.ones((*matrix.shape[:-2], 1, 1), matrix.dtype)]
    for l in range(1, lmax + 1):
        q = jnp.asarray(_degree_coupling(l), matrix.dtype)
        half = jnp.einsum("abc,...bd->...adc", q, blocks[-1], precision=jax.lax.Precision.HIGHEST)
        half = jnp.einsum("...adc,...ce->...ade", half, matrix, precision=jax.lax.Precision.HIGHEST)
        blocks.append(jnp.einsum("...ade,fde->...af", half, q, precision=jax.lax.Precision.HIGHEST))
    return tuple(blocks)


@dataclasses.dataclass(frozen=True)
class Irreps:
    """O(3) on spherical-harmonic coefficients: a concatenation of degrees, each with a parity.

    Attributes:
      degrees: `(l, parity)` of each block in order, parity +1 (even) or -1 (odd) under inversion; or an int `lmax`
        that stands for natural parity, `(l, (-1)**l)` for l = 0 ... lmax.
      axis: the axis of coefficients, of length sum of 2l+1.

    Example:
      >>> import jax.numpy as jnp
      >>> Irreps(1)(-jnp.eye(3), jnp.array([1.0, 2.0, 3.0, 4.0])).round(4).tolist()
      [1.0, -2.0, -3.0, -4.0]
    """

    degrees: int | tuple[tuple[int, int], ...]
    axis: int = -1

    def __call__(self, g: Array, x: Array) -> Array:
        """Returns the moved coefficients, shape and dtype of `x`."""
        degrees = self.degrees
        if isinstance(degrees, int):
            degrees = tuple((l, (-1) ** l) for l in range(degrees + 1))
        sizes = [2 * l + 1 for l, _ in degrees]
        if x.shape[self.axis] != sum(sizes):
            raise ValueError(f"Irreps({self.degrees}) got axis {self.axis} of {x.shape}; expected length {sum(sizes)}.")
        blocks = wigner_d(g, max(l for l, _ in degrees))
        improper = jnp.linalg.det(g) < 0
        parts = []
        for (l, parity), part in zip(degrees, jnp.split(x, np.cumsum(sizes)[:-1], axis=self.axis), strict=True):
            moved = _contract(blocks[l], part, self.axis)
            if parity != (-1) ** l:
                moved = jnp.where(improper, -moved, moved)
            parts.append(moved)
        return jnp.concatenate(parts, axis=self.axis)


@dataclasses.dataclass(frozen=True)
class TensorProduct:
    """Two representations of one group on two axes of an array, such as rows and columns of a matrix.

    Attributes:
      first: representation that names its own axis.
      second: representation that names another.
    """

    first: Any
    second: Any

    def __call__(self, g: Any, x: Array) -> Array:
        """Returns `x` moved along both axes, shape and dtype of `x`."""
        return self.second(g, self.first(g, x))


@dataclasses.dataclass(frozen=True)
class DirectSum:
    """Concatenated features, each part with a representation of its own along the same axis.

    Attributes:
      parts: `(representation, length)` pairs; each representation must name the axis of the sum.
      axis: the axis of concatenation.
    """

    parts: tuple[tuple[Any, int], ...]
    axis: int = -1

    def __call__(self, g: Any, x: Array) -> Array:
        """Returns the moved features, shape and dtype of `x`."""
        lengths = [length for _, length in self.parts]
        if x.shape[self.axis] != sum(lengths):
            raise ValueError(f"DirectSum got axis {self.axis} of shape {x.shape}; expected length {sum(lengths)}.")
        pieces = jnp.split(x, np.cumsum(lengths)[:-1], axis=self.axis)
        moved = [rep(g, piece) for (rep, _), piece in zip(self.parts, pieces, strict=True)]
        return jnp.concatenate(moved, axis=self.axis)


@dataclasses.dataclass(frozen=True)
class Joint:
    """One representation for each factor of a product group, applied in order.

    Attributes:
      parts: representations, one for each factor of the element.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = Joint((Permuted((-2,)), Vector(-1)))
      >>> cloud((jnp.array([1, 0]), -jnp.eye(1)), jnp.array([[1.0], [2.0]])).tolist()
      [[-2.0], [-1.0]]
    """

    parts: tuple[Any, ...]

    def __call__(self, g: tuple, x: Array) -> Array:
        """Returns `x` moved by every factor, shape and dtype of `x`."""
        for rep, element in zip(self.parts, g, strict=True):
            x = rep(element, x)
        return x
