r"""Equivariant graph network on coordinates (EGNN), with velocities, on all pairs of a padded set of points.

With invariant scalars h_i, positions x_i and velocities v_i, a layer is

    m_ij = phi_e(h_i, h_j, |x_i - x_j|^2, a_ij),
    v_i <- phi_v(h_i) v_i + sum_k phi_u(h_i)_k u_ik + 1 / (N - 1) sum_{j != i} (x_i - x_j) phi_x(m_ij),
    x_i <- x_i + v_i,    h_i <- h_i + phi_h(h_i, sum_{j != i} m_ij),

with the symmetry of all of E(n) (positions move, velocities turn, scalars stay) and of permutations.

Two additions, both off by default: `history`, further vectors u_ik of each point (earlier velocities), without which
the direction of what came before would be lost; and `positions_out` > 1, a last layer with as many phi_v, phi_u and
phi_x, for as many future times.

Reference: Satorras, Hoogeboom, Welling 2021, arXiv:2102.09844, equations 3 to 7.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.nn.dense import dense_apply, dense_init

__all__ = ["EgnnConfig", "EgnnOutput", "egnn_apply", "egnn_init"]


@dataclasses.dataclass(frozen=True)
class EgnnConfig:
    """Static description.

    Attributes:
      scalars_in: invariants of each point.
      pair_scalars: invariants a_ij of each ordered pair.
      history: number of further vectors u of each point.
      width: of all scalars and messages.
      layers: at least one.
      positions_out: positions of each point that the last layer gives.
    """

    scalars_in: int
    pair_scalars: int = 0
    history: int = 0
    width: int = 64
    layers: int = 4
    positions_out: int = 1

    def __post_init__(self):
        if (
            min(self.scalars_in, self.width, self.layers, self.positions_out) < 1
            or min(self.pair_scalars, self.history) < 0
        ):
            raise ValueError(f"{self}: expected positive numbers; pair_scalars and history may be zero.")


class EgnnOutput(NamedTuple):
    """What the network gives; zero for points that are not there.

    Attributes:
      positions: shape `[..., points, positions_out, n]`.
      velocities: the last displacements, shape `[..., points, positions_out, n]`.
      scalars: shape `[..., points, width]`.
    """

    positions: Array
    velocities: Array
    scalars: Array


def _network(key: PRNGKey, widths: tuple[int, int, int], dtype, *, last: float = 1.0) -> PyTree:
    first, second = jax.random.split(key)
    out = dense_init(second, *widths[1:], dtype=dtype)
    out = jax.tree.map(lambda leaf: leaf * np.asarray(last, dtype), out)
    return {"hidden": dense_init(first, *widths[:2], dtype=dtype), "out": out}


def _layer_init(key: PRNGKey, config: EgnnConfig, outputs: int, dtype) -> PyTree:
    w = config.width
    keys = jax.random.split(key, 4)
    return {
        "edge": _network(keys[0], (2 * w + 1 + config.pair_scalars, w, w), dtype),
        # Pulls are small at first, so that layers do not throw points far away.
        "pull": _network(keys[1], (w, w, outputs), dtype, last=1e-3),
        "velocity": _network(keys[2], (w, w, outputs * (1 + config.history)), dtype),
        "node": _network(keys[3], (2 * w, w, w), dtype),
    }


def egnn_init(key: PRNGKey, config: EgnnConfig, *, dtype=jnp.float32) -> PyTree:
    """Draws parameters.

    Args:
      key: typed random key.
      config: static.
      dtype: of the parameters.

    Returns:
      `embed` (`[scalars_in, width]` with bias), `layers` (stacked, `layers - 1` of them) and `last`.
    """
    key_embed, key_layers, key_last = jax.random.split(key, 3)
    params = {
        "embed": dense_init(key_embed, config.scalars_in, config.width, dtype=dtype),
        "last": _layer_init(key_last, config, config.positions_out, dtype),
    }
    if config.layers > 1:
        keys = jax.random.split(key_layers, config.layers - 1)
        params["layers"] = jax.vmap(lambda k: _layer_init(k, config, 1, dtype))(keys)
    return params


def _apply(params: PyTree, x: Array, precision) -> Array:
    return dense_apply(
        params["out"], jax.nn.silu(dense_apply(params["hidden"], x, precision=precision)), precision=precision
    )


def _messages(params: PyTree, scalars: Array, pair: Array, precision) -> Array:
    """A network of `[h_i, h_j, pair_ij]`, `[..., points, points, width]`; the points' parts once per point."""
    kernel, w = params["hidden"]["kernel"], scalars.shape[-1]
    hidden = jnp.matmul(pair, kernel[2 * w :], precision=precision)
    hidden = hidden + jnp.matmul(scalars, kernel[:w], precision=precision)[..., :, None, :]
    hidden = hidden + jnp.matmul(scalars, kernel[w : 2 * w], precision=precision)[..., None, :, :]
    hidden = hidden + params["hidden"]["bias"].reshape((1,) * (hidden.ndim - 1) + (-1,))
    return dense_apply(params["out"], jax.nn.silu(hidden), precision=precision)


def _layer(
    params: PyTree, state: tuple[Array, Array, Array], history: Array | None, pair_scalars: Array | None,
    others: Array, precision,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One layer: positions `[..., points, n]`, velocities alike, scalars -> displacements `[..., points, out, n]`."""
    positions, velocities, scalars = state
    difference = positions[..., :, None, :] - positions[..., None, :, :]
    square = jnp.sum(jnp.square(difference), axis=-1, keepdims=True)
    pair = square if pair_scalars is None else jnp.concatenate([square, pair_scalars], axis=-1)
    message = jax.nn.silu(_messages(params["edge"], scalars, pair, precision))
    message = jnp.where(others, message, jnp.zeros_like(message))
    pull = _apply(params["pull"], message, precision)
    pull = jnp.where(others, pull, jnp.zeros_like(pull))
    number = jnp.maximum(jnp.sum(others, axis=-2), 1).astype(positions.dtype)[..., None]
    pulled = jnp.sum(pull[..., None] * difference[..., None, :], axis=-3) / number
    vectors = velocities[..., None, :]
    vectors = vectors if history is None else jnp.concatenate([vectors, history], axis=-2)
    weights = _apply(params["velocity"], scalars, precision)
    weights = weights.reshape(*weights.shape[:-1], -1, vectors.shape[-2])
    moved = pulled + jnp.sum(weights[..., None] * vectors[..., None, :, :], axis=-2)
    gathered = jnp.concatenate([scalars, jnp.sum(message, axis=-2)], axis=-1)
    return positions[..., None, :] + moved, moved, scalars + _apply(params["node"], gathered, precision)


def egnn_apply(
    params: PyTree,
    positions: Array,
    scalars: Array,
    config: EgnnConfig,
    *,
    velocities: Array | None = None,
    history: Array | None = None,
    pair_scalars: Array | None = None,
    mask: Array | None = None,
    precision=lax.Precision.HIGHEST,
) -> EgnnOutput:
    """Moves points and updates their scalars.

    Args:
      params: from `egnn_init`.
      positions: shape `[..., points, n]`, dtype of `params`; n = 2 or 3 or any other.
      scalars: shape `[..., points, scalars_in]`.
      config: static.
      velocities: shape `[..., points, n]`; None for zero.
      history: further vectors, shape `[..., points, history, n]`, if `config.history`.
      pair_scalars: shape `[..., points, points, pair_scalars]`, if `config.pair_scalars`.
      mask: which points are there, bool, shape `[..., points]`; None for all. What stands at the others has no effect.
      precision: static; of the products.

    Returns:
      `EgnnOutput`: positions `[..., points, positions_out, n]`, velocities, scalars.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> config = EgnnConfig(scalars_in=1, width=8, layers=2)
      >>> x = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
      >>> egnn_apply(egnn_init(jax.random.key(0), config), x, jnp.ones((2, 1)), config).positions.shape
      (2, 1, 3)
    """
    leading = positions.shape[:-1]
    expected = {
        "scalars": (scalars, (*leading, config.scalars_in)),
        "velocities": (velocities, positions.shape),
        "history": (history, (*leading, config.history, positions.shape[-1]) if config.history else None),
        "pair_scalars": (
            pair_scalars, (*leading, leading[-1], config.pair_scalars) if config.pair_scalars else None,
        ),
        "mask": (mask, leading),
    }  # fmt: skip
    for name, (value, shape) in expected.items():
        needed = name == "scalars" or (name in ("history", "pair_scalars") and shape is not None)
        got = None if value is None else value.shape
        if (value is None and needed) or (value is not None and got != shape):
            raise ValueError(f"{name}: got shape {got}, expected {shape}; positions are {positions.shape}.")
    points = leading[-1]
    mask = jnp.ones(leading, bool) if mask is None else mask

    def real(x: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, jnp.zeros_like(x))

    positions, scalars = real(positions), real(scalars)
    velocities = jnp.zeros_like(positions) if velocities is None else real(velocities)
    history = None if history is None else real(history)
    distinct = jnp.asarray(~np.eye(points, dtype=bool)).reshape((1,) * (mask.ndim - 1) + (points, points))
    others = (distinct & mask[..., :, None] & mask[..., None, :])[..., None]

    def layer(state, layer_params):
        x, v, h = _layer(layer_params, state, history, pair_scalars, others, precision)
        return (x[..., 0, :], v[..., 0, :], h), None

    state = (positions, velocities, dense_apply(params["embed"], scalars, precision=precision))
    if "layers" in params:
        state, _ = lax.scan(jax.checkpoint(layer, prevent_cse=False), state, params["layers"])
    return EgnnOutput(*map(real, _layer(params["last"], state, history, pair_scalars, others, precision)))
