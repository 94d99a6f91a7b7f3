"""Predictors of `euclidean.motion`, in one form: EqMotion and its ablation, EGNN, and a network without symmetry."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.egnn import EgnnConfig, egnn_apply, egnn_init
from equivariant_jax.euclidean.motion import MotionConfig, eqmotion_apply, eqmotion_init
from equivariant_jax.euclidean.vectors import masked_mean_vector, turning_angles
from equivariant_jax.nn.mlp import mlp_apply, mlp_init

__all__ = ["Predictor", "make_predictor", "motion_config"]


class Predictor(NamedTuple):
    """A model.

    Attributes:
      init: `key -> params`.
      apply: `(params, past [scenes, agents, past, n], mask [scenes, agents]) -> (predicted [scenes, heads, agents,
        future, n], categories [scenes, agents, agents, K] or None)`.
    """

    init: Callable[[PRNGKey], PyTree]
    apply: Callable[[PyTree, Array, Array], tuple[Array, Array | None]]


def motion_config(config: Any) -> MotionConfig:
    """Makes EqMotion's static description of a run's configuration."""
    return MotionConfig(
        past=config.past, future=config.future, scalars=config.scalars, channels=config.channels, layers=config.layers,
        categories=config.categories, temperature=config.temperature, heads=config.heads,
        interaction=config.model != "no_interaction", published_logits=config.published_logits,
    )  # fmt: skip


def _eqmotion(config: Any) -> Predictor:
    network = motion_config(config)
    return Predictor(
        functools.partial(eqmotion_init, config=network),
        lambda params, past, mask: eqmotion_apply(params, past, network, mask),
    )


def _egnn(config: Any) -> Predictor:
    """From the last position and all displacements; the last layer gives all future positions."""
    network = EgnnConfig(
        scalars_in=2 * config.past, history=config.past - 2, width=config.egnn_width, layers=config.layers,
        positions_out=config.future * config.heads,
    )  # fmt: skip

    def apply(params: PyTree, past: Array, mask: Array) -> tuple[Array, None]:
        steps = past[..., 1:, :] - past[..., :-1, :]
        velocities = jnp.concatenate([steps[..., :1, :], steps], axis=-2)
        scalars = jnp.concatenate([safe_norm(velocities), turning_angles(velocities)], axis=-1)
        out = egnn_apply(
            params, past[..., -1, :], scalars, network, velocities=steps[..., -1, :], history=steps[..., :-1, :],
            mask=mask,
        )  # fmt: skip
        split = out.positions.reshape(*out.positions.shape[:-2], config.heads, config.future, past.shape[-1])
        return jnp.moveaxis(split, -3, -4), None

    return Predictor(functools.partial(egnn_init, config=network), apply)


def _mlp(config: Any, agents: int, n: int) -> Predictor:
    """All coordinates of a scene at once, about its mean; what is learnt are displacements from the last positions."""
    out = config.heads * agents * config.future * n
    widths = (agents * config.past * n, *(config.mlp_width,) * config.mlp_layers, out)

    def apply(params: PyTree, past: Array, mask: Array) -> tuple[Array, None]:
        there = mask[..., None, None]
        centred = jnp.where(there, past - masked_mean_vector(past, mask), jnp.zeros_like(past))
        moved = mlp_apply(params, centred.reshape(len(past), -1))
        moved = moved.reshape(len(past), config.heads, agents, config.future, n)
        return past[:, None, :, -1:] + moved, None

    return Predictor(lambda key: mlp_init(key, widths), apply)


def make_predictor(config: Any, agents: int, n: int) -> Predictor:
    """Makes the model of a run.

    Args:
      config: of the experiment.
      agents: in a scene, which only the network without symmetry needs to know.
      n: dimensions of space.

    Returns:
      A `Predictor`.
    """
    if config.model == "mlp":
        return _mlp(config, agents, n)
    return _egnn(config) if config.model == "egnn" else _eqmotion(config)
