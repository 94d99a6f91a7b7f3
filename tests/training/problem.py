"""A small problem with two unevenly padded terms, noise, running statistics, and a stream that can be put back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from equivariant_jax.training import LossOutput, Mean, RootMean, TrainState

ITEMS, ATOMS, FEATURES = 16, 5, 3


class Stream:
    """Batches as a function of the position, so that any position can be returned to."""

    def __init__(self, make_batch, length=None):
        self.make_batch, self.length, self.position = make_batch, length, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.length is not None and self.position >= self.length:
            raise StopIteration
        self.position += 1
        return self.make_batch(self.position - 1)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_batch(seed):
    rng = np.random.default_rng([5, seed])
    # The share of real atoms grows from item to item, so that every cut of the batch is uneven.
    real = rng.random((ITEMS, ATOMS)) < np.linspace(0.1, 0.95, ITEMS)[:, None]
    return {
        "x": rng.normal(size=(ITEMS, ATOMS, FEATURES)).astype(np.float32),
        "forces": rng.normal(size=(ITEMS, ATOMS, FEATURES)).astype(np.float32),
        "energy": rng.normal(size=ITEMS).astype(np.float32),
        "atoms": real,
        "graphs": np.arange(ITEMS) % 5 > 0,
    }


def loss_fn(params, batch, *, key, model_state):
    """Energies count graphs, forces count atoms; deterministic."""
    hidden = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"][None, None])
    energy = jnp.where(batch["atoms"], hidden.sum(-1), 0).sum(-1) - batch["energy"]
    forces = hidden - batch["forces"]
    return LossOutput(
        {"energy": Mean.of(energy**2, batch["graphs"]), "forces": Mean.of(forces**2, batch["atoms"])},
        {"forces_rmse": RootMean.of(forces**2, batch["atoms"])},
    )


def noisy_loss_fn(params, batch, *, key, model_state):
    """Draws noise and keeps running statistics, so that a resume has more to get right than parameters."""
    if key is not None:
        batch = {**batch, "x": batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)}
    out = loss_fn(params, batch, key=key, model_state=None)
    mean = 0.9 * model_state["mean"] + 0.1 * batch["x"].mean((0, 1))
    return out._replace(model_state={"mean": mean})


def make_params():
    kernel = np.random.default_rng(1).normal(size=(FEATURES, FEATURES)).astype(np.float32)
    return {"kernel": jnp.asarray(kernel), "bias": jnp.full(FEATURES, 0.1)}


def make_state(optimizer=None, *, ema=False, model_state=None, seed=0):
    optimizer = optax.sgd(1.0) if optimizer is None else optimizer
    return TrainState.create(make_params(), optimizer, key=jax.random.key(seed), ema=ema, model_state=model_state)


def to_numpy(tree):
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x), tree
    )


def assert_same_bits(left, right):
    left, right = to_numpy(left), to_numpy(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for path, (a, b) in zip(
        jax.tree_util.tree_flatten_with_path(left)[0],
        zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True),
        strict=True,
    ):
        assert a.dtype == b.dtype, path
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path[0])}: {a} != {b}"


def stream(length=None):
    return Stream(make_batch, length)
