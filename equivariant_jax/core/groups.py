r"""Groups as small static objects that compose, invert and sample elements.

An element is an array or a pytree of arrays, so elements go through `jit`, `vmap` and `grad`; the group itself is a
frozen dataclass, hashable, and may be a static argument. Every group has four pure functions:

    identity() -> g      compose(g, h) -> gh      inverse(g) -> g^-1      sample(key) -> g

and matrix Lie groups also `exp` (algebra coordinates -> element) and, where a closed form exists, `log`.

`compose(g, h)` acts as "first h, then g", so for every representation `act(compose(g, h), x) == act(g, act(h, x))`.
How elements act on arrays is in `core.representations`; what to do with both is in `core.checks`.

| group | element | sampled from |
|---|---|---|
| `Symmetric(n)` | int32 `[n]`, the image of each index | uniform |
| `Cyclic(n)` | int32 `[]`, mod n | uniform |
| `Dihedral(n)` | int32 `[2]`: turns mod n, reflected (0 or 1) | uniform |
| `TorusShifts(sizes)` | int32 `[d]`, mod sizes | uniform |
| `Orthogonal(n)`, `SpecialOrthogonal(n)` | matrix `[n, n]` | Haar |
| `GeneralLinear(n)`, `SpecialLinear(n)` | matrix `[n, n]`, determinant > 0, = 1 | rotation times exp of Gaussian |
| `Affine`, `Euclidean`, `SpecialEuclidean` | `AffineElement(matrix, translation)` | its linear group, Gaussian shift |
| `Product(groups)` | tuple of elements | each factor |
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PRNGKey

__all__ = [
    "Affine",
    "AffineElement",
    "Cyclic",
    "Dihedral",
    "Euclidean",
    "GeneralLinear",
    "Group",
    "Orthogonal",
    "Product",
    "SpecialEuclidean",
    "SpecialLinear",
    "SpecialOrthogonal",
    "Symmetric",
    "TorusShifts",
]


@runtime_checkable
class Group(Protocol):
    """What every group offers; elements are arrays or pytrees of arrays, and functions are pure and jit-able."""

    def identity(self) -> Any:
        """The neutral element."""
        ...

    def compose(self, g: Any, h: Any) -> Any:
        """The product `gh`, which acts as h first, then g."""
        ...

    def inverse(self, g: Any) -> Any:
        """The element that undoes g: their product is the identity."""
        ...

    def sample(self, key: PRNGKey) -> Any:
        """A random element, from the Haar measure where the group is compact."""
        ...


def _check_size(group: object, n: int, least: int = 1) -> None:
    if not isinstance(n, int) or n < least:
        raise ValueError(f"{type(group).__name__} got n={n!r}; expected an integer of at least {least}.")


@dataclasses.dataclass(frozen=True)
class Symmetric:
    """Permutations of n things, S_n; an element maps index i to `g[i]`.

    Example:
      >>> import jax.numpy as jnp
      >>> Symmetric(3).inverse(jnp.array([1, 2, 0])).tolist()
      [2, 0, 1]
    """

    n: int

    def __post_init__(self):
        _check_size(self, self.n)

    def identity(self) -> Array:
        """The permutation that moves nothing, int32 `[n]`."""
        return jnp.arange(self.n, dtype=jnp.int32)

    def compose(self, g: Array, h: Array) -> Array:
        """`(gh)[i] = g[h[i]]`, int32 `[n]`."""
        return g[h]

    def inverse(self, g: Array) -> Array:
        """The inverse permutation, int32 `[n]`."""
        return jnp.zeros(self.n, jnp.int32).at[g].set(self.identity(), unique_indices=True)

    def sample(self, key: PRNGKey) -> Array:
        """A uniform permutation, int32 `[n]`."""
        return jax.random.permutation(key, self.identity())


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """Rotations by multiples of 1/n of a turn, C_n; an element is the multiple.

    Example:
      >>> import jax.numpy as jnp
      >>> int(Cyclic(4).compose(jnp.array(3), jnp.array(2)))
      1
    """

    n: int

    def __post_init__(self):
        _check_size(self, self.n)

    @property
    def order(self) -> int:
        """Number of elements."""
        return self.n

    def identity(self) -> Array:
        """Zero, int32 `[]`."""
        return jnp.zeros((), jnp.int32)

    def compose(self, g: Array, h: Array) -> Array:
        """Sum modulo n, int32 `[]`."""
        return (g + h) % self.n

    def inverse(self, g: Array) -> Array:
        """Negative modulo n, int32 `[]`."""
        return -g % self.n

    def sample(self, key: PRNGKey) -> Array:
        """A uniform element, int32 `[]`."""
        return jax.random.randint(key, (), 0, self.n, jnp.int32)

    def elements(self) -> Array:
        """All elements in order of their index, int32 `[n]`."""
        return jnp.arange(self.n, dtype=jnp.int32)

    def index(self, g: Array) -> Array:
        """Position of an element in `elements()`, int32 `[]`."""
        return g


@dataclasses.dataclass(frozen=True)
class Dihedral:
    """Symmetries of the regular n-gon, D_n: `[turns, reflected]` is "reflect if reflected, then turn".

    Example:
      >>> import jax.numpy as jnp
      >>> reflection = jnp.array([1, 1])
      >>> Dihedral(4).compose(reflection, reflection).tolist()
      [0, 0]
    """

    n: int

    def __post_init__(self):
        _check_size(self, self.n)

    @property
    def order(self) -> int:
        """Number of elements."""
        return 2 * self.n

    def identity(self) -> Array:
        """No turn, no reflection, int32 `[2]`."""
        return jnp.zeros(2, jnp.int32)

    def compose(self, g: Array, h: Array) -> Array:
        """Product, int32 `[2]`: a reflection reverses the turns that follow it on the right."""
        turns = g[..., 0] + jnp.where(g[..., 1] == 1, -h[..., 0], h[..., 0])
        return jnp.stack([turns % self.n, (g[..., 1] + h[..., 1]) % 2], axis=-1)

    def inverse(self, g: Array) -> Array:
        """Inverse, int32 `[2]`: reflections are their own."""
        return jnp.stack([jnp.where(g[..., 1] == 1, g[..., 0], -g[..., 0] % self.n), g[..., 1]], axis=-1)

    def sample(self, key: PRNGKey) -> Array:
        """A uniform element, int32 `[2]`."""
        return self.elements()[jax.random.randint(key, (), 0, self.order)]

    def elements(self) -> Array:
        """All elements in order of their index, int32 `[2n, 2]`: the turns, then the reflected ones."""
        turns = np.tile(np.arange(self.n), 2)
        return jnp.asarray(np.stack([turns, np.repeat([0, 1], self.n)], axis=-1), jnp.int32)

    def index(self, g: Array) -> Array:
        """Position of an element in `elements()`, int32 `[]`."""
        return g[..., 1] * self.n + g[..., 0]


@dataclasses.dataclass(frozen=True)
class TorusShifts:
    """Cyclic shifts of a grid, Z_{s1} x Z_{s2} x ...; an element counts the steps along each axis.

    Example:
      >>> import jax.numpy as jnp
      >>> TorusShifts((28, 28)).inverse(jnp.array([1, 0])).tolist()
      [27, 0]
    """

    sizes: tuple[int, ...]

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"TorusShifts got sizes={self.sizes}; expected at least one positive length.")

    def _sizes(self) -> Array:
        return jnp.asarray(self.sizes, jnp.int32)

    def identity(self) -> Array:
        """No shift, int32 `[d]`."""
        return jnp.zeros(len(self.sizes), jnp.int32)

    def compose(self, g: Array, h: Array) -> Array:
        """Sum modulo the sizes, int32 `[d]`."""
        return (g + h) % self._sizes()

    def inverse(self, g: Array) -> Array:
        """Negative modulo the sizes, int32 `[d]`."""
        return -g % self._sizes()

    def sample(self, key: PRNGKey) -> Array:
        """A uniform shift, int32 `[d]`."""
        return jax.random.randint(key, (len(self.sizes),), 0, self._sizes(), jnp.int32)


@dataclasses.dataclass(frozen=True)
class _MatrixGroup:
    """Shared part of matrix groups: `[n, n]` elements, matrix product, dtype of samples."""

    n: int
    dtype: str = "float32"

    def __post_init__(self):
        _check_size(self, self.n)

    def identity(self) -> Array:
        """The unit matrix `[n, n]`."""
        return jnp.eye(self.n, dtype=self.dtype)

    def compose(self, g: Array, h: Array) -> Array:
        """Matrix product `[n, n]`, at full precision on every backend."""
        return jnp.matmul(g, h, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Orthogonal(_MatrixGroup):
    """Rotations and reflections, O(n).

    Example:
      >>> import jax
      >>> g = Orthogonal(3).sample(jax.random.key(0))
      >>> bool(abs(g @ g.T - jax.numpy.eye(3)).max() < 1e-5)
      True
    """

    def inverse(self, g: Array) -> Array:
        """The transpose `[n, n]`."""
        return jnp.swapaxes(g, -1, -2)

    def sample(self, key: PRNGKey) -> Array:
        """A Haar-distributed matrix `[n, n]` (QR of a Gaussian, columns signed by R's diagonal)."""
        q, r = jnp.linalg.qr(jax.random.normal(key, (self.n, self.n), self.dtype))
        d = jnp.diagonal(r)
        return q * jnp.where(d < 0, -jnp.ones((), d.dtype), jnp.ones((), d.dtype))[None, :]


@dataclasses.dataclass(frozen=True)
class SpecialOrthogonal(Orthogonal):
    """Rotations, SO(n), with algebra coordinates `[n (n-1) / 2]`.

    For n = 3 the coordinates are the rotation vector (axis times angle in radians), for n = 2 the angle, otherwise the
    entries above the diagonal of the skew matrix, row by row.

    Example:
      >>> import jax.numpy as jnp
      >>> SpecialOrthogonal(3).exp(jnp.array([0.0, 0.0, jnp.pi])).round(3)[0, 0].item()
      -1.0
    """

    def sample(self, key: PRNGKey) -> Array:
        """A Haar-distributed rotation `[n, n]`."""
        q = Orthogonal.sample(self, key)
        return q.at[:, 0].multiply(jnp.sign(jnp.linalg.det(q)))

    @property
    def dim(self) -> int:
        """Dimension of the group and of its algebra coordinates."""
        return self.n * (self.n - 1) // 2

    def exp(self, v: Array) -> Array:
        """Rotation `[n, n]` from algebra coordinates `[dim]`."""
        return jax.scipy.linalg.expm(self._skew(v))

    def _skew(self, v: Array) -> Array:
        if v.shape != (self.dim,):
            raise ValueError(f"SpecialOrthogonal({self.n}).exp got shape {v.shape}; expected ({self.dim},).")
        zero = jnp.zeros((), v.dtype)
        if self.n == 2:
            return jnp.stack([jnp.stack([zero, -v[0]]), jnp.stack([v[0], zero])])
        if self.n == 3:
            x, y, z = v
            return jnp.stack([jnp.stack([zero, -z, y]), jnp.stack([z, zero, -x]), jnp.stack([-y, x, zero])])
        upper = jnp.zeros((self.n, self.n), v.dtype).at[np.triu_indices(self.n, 1)].set(v)
        return upper - upper.T

    def log(self, g: Array) -> Array:
        """Algebra coordinates `[dim]` of a rotation by less than pi, for n = 2 and n = 3.

        Raises:
          ValueError: for n > 3, where no closed form is provided.
        """
        if self.n == 2:
            return jnp.arctan2(g[1, 0], g[0, 0])[None]
        if self.n != 3:
            raise ValueError(f"SpecialOrthogonal({self.n}).log has a closed form for n = 2 and n = 3 only.")
        # sin(angle) * axis, and the angle from both sine and cosine so that no digits are lost near 0.
        w = 0.5 * jnp.stack([g[2, 1] - g[1, 2], g[0, 2] - g[2, 0], g[1, 0] - g[0, 1]])
        sine, cosine = safe_norm(w), 0.5 * (jnp.trace(g) - 1)
        angle = jnp.arctan2(sine, cosine)
        small = sine < 1e-4
        ratio = jnp.where(small, 1 + angle**2 / 6, angle / jnp.where(small, jnp.ones((), w.dtype), sine))
        return w * ratio


@dataclasses.dataclass(frozen=True)
class GeneralLinear(_MatrixGroup):
    """Invertible matrices of positive determinant, GL+(n), with algebra coordinates `[n, n]`.

    Samples are a Haar rotation times the exponential of a symmetric Gaussian matrix of standard deviation `scale`.
    """

    scale: float = 0.3

    def inverse(self, g: Array) -> Array:
        """The matrix inverse `[n, n]`."""
        return jnp.linalg.inv(g)

    def exp(self, v: Array) -> Array:
        """Matrix exponential `[n, n]` of coordinates `[n, n]`; not onto: some elements have no real logarithm."""
        return jax.scipy.linalg.expm(v)

    def _stretch(self, key: PRNGKey) -> Array:
        a = self.scale * jax.random.normal(key, (self.n, self.n), self.dtype)
        return 0.5 * (a + a.T)

    def sample(self, key: PRNGKey) -> Array:
        """A random matrix `[n, n]` of positive determinant."""
        turn, stretch = jax.random.split(key)
        rotation = SpecialOrthogonal(self.n, self.dtype).sample(turn)
        return self.compose(rotation, jax.scipy.linalg.expm(self._stretch(stretch)))


@dataclasses.dataclass(frozen=True)
class SpecialLinear(GeneralLinear):
    """Volume-preserving matrices, SL(n); as GL+(n) with traceless algebra."""

    def exp(self, v: Array) -> Array:
        """Matrix exponential `[n, n]` of the traceless part of `[n, n]`."""
        return jax.scipy.linalg.expm(self._traceless(v))

    def _traceless(self, v: Array) -> Array:
        return v - (jnp.trace(v) / self.n) * jnp.eye(self.n, dtype=v.dtype)

    def _stretch(self, key: PRNGKey) -> Array:
        return self._traceless(GeneralLinear._stretch(self, key))


class AffineElement(NamedTuple):
    """The map x -> matrix @ x + translation.

    Attributes:
      matrix: linear part, `[n, n]`, float.
      translation: shift, `[n]`, float, in the units of the points.
    """

    matrix: Array
    translation: Array


@dataclasses.dataclass(frozen=True)
class Affine:
    """Affine maps of n-dimensional space: a linear group (GL+(n) by default) with translations.

    Attributes:
      n: dimension of space.
      dtype: dtype of samples.
      translation_scale: standard deviation of sampled translations.
    """

    n: int
    dtype: str = "float32"
    translation_scale: float = 1.0

    def __post_init__(self):
        _check_size(self, self.n)

    @property
    def linear(self) -> GeneralLinear | Orthogonal:
        """The group of linear parts."""
        return GeneralLinear(self.n, self.dtype)

    def identity(self) -> AffineElement:
        """The map that moves nothing."""
        return AffineElement(self.linear.identity(), jnp.zeros(self.n, self.dtype))

    def compose(self, g: AffineElement, h: AffineElement) -> AffineElement:
        """The map that applies h, then g."""
        shift = jnp.matmul(g.matrix, h.translation, precision=jax.lax.Precision.HIGHEST)
        return AffineElement(self.linear.compose(g.matrix, h.matrix), shift + g.translation)

    def inverse(self, g: AffineElement) -> AffineElement:
        """The inverse map."""
        inverse = self.linear.inverse(g.matrix)
        return AffineElement(inverse, -jnp.matmul(inverse, g.translation, precision=jax.lax.Precision.HIGHEST))

    def sample(self, key: PRNGKey) -> AffineElement:
        """A random linear part and a Gaussian translation."""
        linear, shift = jax.random.split(key)
        translation = self.translation_scale * jax.random.normal(shift, (self.n,), self.dtype)
        return AffineElement(self.linear.sample(linear), translation)


@dataclasses.dataclass(frozen=True)
class Euclidean(Affine):
    """Rotations, reflections and translations, E(n)."""

    @property
    def linear(self) -> Orthogonal:
        """O(n)."""
        return Orthogonal(self.n, self.dtype)


@dataclasses.dataclass(frozen=True)
class SpecialEuclidean(Affine):
    """Rotations and translations, SE(n), with algebra coordinates `[n (n-1) / 2 + n]`: rotation, then velocity."""

    @property
    def linear(self) -> SpecialOrthogonal:
        """SO(n)."""
        return SpecialOrthogonal(self.n, self.dtype)

    def exp(self, v: Array) -> AffineElement:
        """The screw motion of algebra coordinates `[n (n-1) / 2 + n]`."""
        rotation = self.linear
        if v.shape != (rotation.dim + self.n,):
            raise ValueError(
                f"SpecialEuclidean({self.n}).exp got shape {v.shape}; expected ({rotation.dim + self.n},)."
            )
        top = jnp.concatenate([rotation._skew(v[: rotation.dim]), v[rotation.dim :, None]], axis=1)
        m = jax.scipy.linalg.expm(jnp.concatenate([top, jnp.zeros((1, self.n + 1), v.dtype)]))
        return AffineElement(m[:-1, :-1], m[:-1, -1])

    def log(self, g: AffineElement) -> Array:
        """Algebra coordinates `[n (n-1) / 2 + n]` of a motion that turns by less than pi, for n = 2 and n = 3.

        Raises:
          ValueError: for n > 3, where no closed form is provided.
        """
        turn = self.linear.log(g.matrix)
        # translation = V velocity with V the mean rotation on the way, a block of one larger exponential.
        skew, eye = self.linear._skew(turn), jnp.eye(self.n, dtype=turn.dtype)
        top = jnp.concatenate([skew, eye], axis=1)
        mean = jax.scipy.linalg.expm(jnp.concatenate([top, jnp.zeros_like(top)]))[: self.n, self.n :]
        return jnp.concatenate([turn, jnp.linalg.solve(mean, g.translation)])


@dataclasses.dataclass(frozen=True)
class Product:
    """Direct product of groups; an element is a tuple with one element of each factor.

    Example:
      >>> import jax
      >>> permutation, rotation = Product((Symmetric(5), Orthogonal(3))).sample(jax.random.key(0))
      >>> permutation.shape, rotation.shape
      ((5,), (3, 3))
    """

    groups: tuple[Any, ...]

    def identity(self) -> tuple:
        """The tuple of identities."""
        return tuple(group.identity() for group in self.groups)

    def compose(self, g: tuple, h: tuple) -> tuple:
        """Factor by factor."""
        return tuple(group.compose(a, b) for group, a, b in zip(self.groups, g, h, strict=True))

    def inverse(self, g: tuple) -> tuple:
        """Factor by factor."""
        return tuple(group.inverse(a) for group, a in zip(self.groups, g, strict=True))

    def sample(self, key: PRNGKey) -> tuple:
        """Independent samples of the factors."""
        keys = jax.random.split(key, len(self.groups))
        return tuple(group.sample(k) for group, k in zip(self.groups, keys, strict=True))
