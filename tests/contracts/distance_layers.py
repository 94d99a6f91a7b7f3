"""Contract entries of distance coordinates: similarities of space and permutations of the points."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.frames.distance_coordinates import (
    distance_coordinates,
    similarity_frames,
    with_invariant_inputs,
)
from equivariant_jax.frames.scaling import classical_mds, odd_signs, pairwise_distances
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

POINTS = 7


@dataclasses.dataclass(frozen=True)
class _ScaledOrthogonal(groups.Orthogonal):
    """Orthogonal matrices times positive numbers."""

    def inverse(self, g):
        return jnp.swapaxes(g, -1, -2) / (jnp.sum(jnp.square(g)) / self.n)

    def sample(self, key):
        key, key_scale = jax.random.split(key)
        return super().sample(key) * jnp.exp(0.5 * jax.random.normal(key_scale, (), self.dtype))


@dataclasses.dataclass(frozen=True)
class _Similarities(groups.Affine):
    """Rotations, reflections, scalings and translations."""

    @property
    def linear(self):
        return _ScaledOrthogonal(self.n, self.dtype)


SIMILARITIES, EUCLIDEAN, ORDERS = _Similarities(3), groups.Euclidean(3), groups.Symmetric(POINTS)
ROWS = rep.Permuted((-2,))


def _cloud(key, dtype):
    """Of large gaps and odd moments, whatever the key: canonical signs are continuous there."""
    base = np.random.default_rng(5).exponential(size=(POINTS, 3)) ** 1.5 * np.array([3.0, 1.5, 0.7])
    x = jnp.asarray(base, jnp.float32) + 0.05 * jax.random.normal(key, base.shape)
    return x.astype(dtype), jnp.arange(POINTS) < POINTS - 2


def _make(params=lambda key, dtype: {}):
    return lambda key, dtype: (params(jax.random.key(9), dtype), _cloud(key, dtype))


def _padding(inputs):
    return (~inputs[1], None), None


def _flat(inputs):
    x, mask = inputs
    return x.at[..., 2].set(0.0), mask


def _nothing(inputs):
    x, mask = inputs
    return x, jnp.zeros_like(mask)


SHARED = {"make": _make(), "padding": _padding, "degenerate": (_flat, _nothing), "leading_axes": True}


def _laws(act_out, group=SIMILARITIES):
    return (Law(group, (rep.Point(), rep.Trivial()), act_out),)


def _in_place(function):
    """With rows of padding dropped from an output of rows, so that all of it is real."""
    return lambda params, x, mask: function(x, mask)[..., : POINTS - 2, :]


class _Kept:
    """A permutation of the points, on points and mask together."""

    def __call__(self, g, x):
        return jnp.take(x, jnp.argsort(g), axis=-1)


BY_ORDER = (Law(ORDERS, (ROWS, _Kept()), ROWS),)


def _turned(params, x):
    mixed = x @ params
    return {"position": jnp.tanh(mixed) + x, "vector": x * jnp.cos(mixed), "scalar": jnp.sum(jnp.cos(mixed))}


def _average(params, x, mask):
    kinds = {"position": "position", "vector": "vector", "scalar": "scalar"}
    average = with_invariant_inputs(_turned, out_types=kinds, signs="average", vectorized=False)
    out = average(params, x, mask=mask)
    return {name: y if y.ndim < x.ndim else y[..., : POINTS - 2, :] for name, y in out.items()}


LAYERS: list[Layer] = [
    Layer(
        name="frames.pairwise_distances",
        function=lambda params, x, mask: pairwise_distances(x, mask),
        laws=_laws(rep.Trivial(), EUCLIDEAN),
        **SHARED,
    ),
    Layer(
        name="frames.classical_mds",
        function=_in_place(lambda x, mask: classical_mds(pairwise_distances(x, mask, squared=True), mask)[0]),
        laws=_laws(rep.Trivial(), EUCLIDEAN),
        **SHARED,
    ),
    Layer(
        name="frames.odd_signs",
        function=lambda params, x: odd_signs(x, jnp.ones(x.shape[:-1], x.dtype)),
        make=lambda key, dtype: ({}, _cloud(key, dtype)[:1]),
        laws=(Law(ORDERS, (ROWS,), rep.Trivial()),),
        dtypes=("float32",),  # moments need the digits
        leading_axes=True,
    ),
    Layer(
        name="frames.similarity_frames",
        function=lambda params, x, mask: similarity_frames(x, mask)[:2],
        laws=(Law(EUCLIDEAN, (rep.Point(), rep.Trivial()), (rep.Vector(axis=-2), rep.Point())),),
        **SHARED,
    ),
    Layer(
        name="frames.distance_coordinates (canonical)",
        function=_in_place(lambda x, mask: distance_coordinates(x, mask)[0]),
        laws=_laws(rep.Trivial()),
        **SHARED,
    ),
    Layer(
        name="frames.distance_coordinates (chirality, largest distance)",
        function=lambda params, x, mask: distance_coordinates(x, mask, chirality=True, scale="max")[0],
        laws=BY_ORDER,
        **SHARED,
    ),
    Layer(
        name="frames.with_invariant_inputs (average)",
        function=_average,
        laws=_laws({"position": rep.Point(), "vector": rep.Vector(), "scalar": rep.Trivial()}),
        **{**SHARED, "make": _make(lambda key, dtype: jax.random.normal(key, (3, 3), dtype))},
    ),
]
