"""The contract suite can fail: thirteen planted faults, each caught by the contract that is there for it.

The sound layer sends messages over all pairs of a masked point cloud. Every fault below is a mistake that has been made
in published code; each changes one thing, and all other contracts still pass where they should.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.core.linalg import safe_norm
from tests.contracts.contracts import CONTRACTS
from tests.contracts.layer import Law, Layer

N = 6
MASK = np.array([True] * 4 + [False] * 2)


def sound(params, x, mask, norm=safe_norm, weight=None):
    """Vectors `[..., n, 3]`: sum over real j of phi(|x_i - x_j|) (x_i - x_j)."""
    pair = mask[..., :, None] & mask[..., None, :]
    difference = jnp.where(pair[..., None], x[..., :, None, :] - x[..., None, :, :], jnp.zeros((), x.dtype))
    strength = jnp.tanh(params["w"].reshape((1,) * (x.ndim)) * norm(difference))
    if weight is not None:
        strength = strength * weight
    return jnp.sum(strength[..., None] * difference, axis=-2)


def make(key, dtype):
    w, x = jax.random.split(key)
    return {"w": jax.random.normal(w, (), dtype)}, (jax.random.normal(x, (N, 3), dtype), jnp.asarray(MASK))


REAL = (groups.Product((groups.Symmetric(4), groups.Orthogonal(3))),)


@dataclasses.dataclass(frozen=True)
class RealRows:
    """Permutes the four real rows among themselves."""

    def __call__(self, g, x):
        return rep.Permuted((0,))(jnp.concatenate([g, jnp.arange(4, N, dtype=g.dtype)]), x)


LAWS = (Law(REAL[0], (rep.Joint((RealRows(), rep.Vector())), rep.Trivial()), rep.Joint((RealRows(), rep.Vector()))),)
BASE = Layer(
    name="sound",
    function=sound,
    make=make,
    laws=LAWS,
    degenerate=(lambda inputs: (inputs[0].at[1].set(inputs[0][0]), inputs[1]),),
    padding=lambda inputs: ((~inputs[1], None), ~inputs[1]),
    leading_axes=True,
)


def rotation_broken(params, x, mask):
    return sound(params, x, mask).at[..., 2].multiply(jnp.asarray(1.001, x.dtype))


def permutation_broken(params, x, mask):
    weight = jnp.asarray(1 + 0.01 * np.arange(N), x.dtype).reshape((1,) * (x.ndim - 1) + (N,))
    return sound(params, x, mask, weight=weight)


def only_reflections_broken(params, x, mask):
    """A cross product: right for every rotation, wrong for O(3)."""
    y = sound(params, x, mask)
    return y + jnp.cross(y, sound({"w": 2 * params["w"]}, x, mask))


def padding_in_the_mean(params, x, mask):
    return sound(params, x, mask) - jnp.mean(x, axis=-2, keepdims=True) * jnp.asarray(1e-3, x.dtype)


def padding_in_the_gradient(params, x, mask):
    y = sound(params, x, mask)
    hidden = jnp.sum(x, axis=(-2, -1), keepdims=True)
    return y * (1 + hidden - jax.lax.stop_gradient(hidden))


def nan_at_zero_distance(params, x, mask):
    return sound(params, x, mask, norm=lambda d: jnp.sqrt(jnp.sum(d**2, axis=-1)))


def upcast(params, x, mask):
    return sound(params, x, mask).astype(jnp.float32)


def hidden_float64(params, x, mask):
    y = sound(params, x, mask)
    return (y.astype(float) * jnp.ones((1,) * y.ndim, float)).astype(x.dtype)


COUNTER = itertools.count()


def hidden_state(params, x, mask):
    return sound(params, x, mask) * jnp.asarray(1 + next(COUNTER), x.dtype)


@jax.custom_batching.custom_vmap
def centred(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


@centred.def_vmap
def _centred_rule(axis_size, in_batched, x):
    return x - jnp.mean(x, axis=0, keepdims=True), True  # averages over the batch instead


def wrong_batching_rule(params, x, mask):
    return sound(params, x, mask) * jnp.sum(centred(params["w"] * x[..., 0]) ** 2)


def mixes_the_batch(params, x, mask):
    y = sound(params, x, mask)
    if y.ndim > 2:
        y = y / jnp.sqrt(jnp.mean(y**2, axis=0, keepdims=True) + jnp.asarray(1.0, y.dtype))
    return y


def constant(params, x, mask):
    return jnp.zeros_like(x) * params["w"]


def ragged_make(key, dtype):
    params, (x, _) = make(key, dtype)
    n = 3 + int(jax.random.key_data(key)[-1]) % 3
    return params, (x[:n], jnp.ones(n, bool))


FAULTS = {
    "a broken rotation symmetry": ("equivariance", {"function": rotation_broken}),
    "a broken permutation symmetry": ("equivariance", {"function": permutation_broken}),
    "a broken reflection": ("equivariance", {"function": only_reflections_broken}),
    "an output that depends on nothing": ("equivariance", {"function": constant}),
    "a leak from padding into the value": ("padding_blind", {"function": padding_in_the_mean}),
    "a leak from padding into the gradient": ("padding_blind", {"function": padding_in_the_gradient}),
    "a NaN at zero distance": ("finite_gradients", {"function": nan_at_zero_distance}),
    "a dtype upcast": ("dtype_kept", {"function": upcast}),
    "float64 inside": ("dtype_kept", {"function": hidden_float64}),
    "a retrace": ("one_trace", {"make": ragged_make}),
    "hidden state": ("jit_equals_eager", {"function": hidden_state}),
    "a wrong batching rule": ("vmap_equals_loop", {"function": wrong_batching_rule, "leading_axes": False}),
    "a sharded mismatch": ("sharded_equals_single", {"function": mixes_the_batch}),
}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_sound_layer_passes(contract):
    CONTRACTS[contract](BASE)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault):
    contract, changes = FAULTS[fault]
    with pytest.raises(AssertionError):
        CONTRACTS[contract](dataclasses.replace(BASE, name=fault, **changes))


def test_a_layer_without_a_law_is_refused():
    with pytest.raises(AssertionError, match="states no law"):
        CONTRACTS["equivariance"](dataclasses.replace(BASE, laws=()))
