r"""How exactly EqMotion commutes with moves of the scene: `euclidean.motion_laws`.

Untrained networks of the published size. Scenes of five agents (random walks of unit steps) are turned by random
elements of O(3), shifted by up to 1,000 along each axis and permuted; errors are relative to the largest coordinate of
the moved prediction, and for probabilities of categories absolute. In float32 a shift by 1,000 costs the positions
themselves four digits, so that the error is given for shifts of at most 1 as well. Padded agents stand at 10^6.

Command: `python -m experiments euclidean.motion_laws cpu --seeds 0 1 2`. Numbers reached, hardware and time stand in
`experiments/results`, written by the run.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.typing import Array, PyTree
from equivariant_jax.euclidean.motion import MotionConfig, eqmotion_apply, eqmotion_init
from experiments.claims import Claims
from experiments.euclidean.motion_sets import random_rotations
from experiments.tables import each_variant, markdown

__all__ = ["CARD", "PRESETS", "Config", "claims", "run", "tables"]

CARD = "eqmotion"
PADDING = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      scenes: number of scenes and of moves.
      agents: in a scene.
      width: H and C.
      layers: number of layers.
      shift: largest shift along an axis.
      seed: of parameters, scenes and moves.
    """

    scenes: int = 100
    agents: int = 5
    width: int = 64
    layers: int = 4
    shift: float = 1e3
    seed: int = 0


PRESETS: dict[str, Config] = {"ci": Config(scenes=5, width=8, layers=2), "cpu": Config()}


_init = jax.jit(eqmotion_init, static_argnums=1, static_argnames="dtype")


@functools.partial(jax.jit, static_argnums=2)
def _predict(params: PyTree, x: Array, network: MotionConfig, mask: Array) -> tuple[Array, Array]:
    predicted, categories = eqmotion_apply(params, x, network, mask)
    return predicted[:, 0], categories


def _worst(config: Config, dtype: str, shift: float) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    network = MotionConfig(scalars=config.width, channels=config.width, layers=config.layers)
    shape = (config.scenes, config.agents, network.past, 3)
    x = rng.normal(size=shape).cumsum(axis=2)
    turns = random_rotations(config.scenes, 3, config.seed) * rng.choice([-1.0, 1.0], size=(config.scenes, 1, 1))
    shifts = rng.uniform(-shift, shift, (config.scenes, 1, 1, 3))
    orders = rng.permuted(np.tile(np.arange(config.agents), (config.scenes, 1)), axis=1)
    moved = np.take_along_axis(x @ turns[:, None] + shifts, orders[:, :, None, None], axis=1)
    padded = np.concatenate([x, np.full((config.scenes, PADDING, *shape[2:]), 1e6)], axis=1)
    mask = np.broadcast_to(np.arange(config.agents + PADDING) < config.agents, padded.shape[:2])

    params = _init(jax.random.key(config.seed), network, dtype=dtype)
    none = np.zeros((config.scenes, PADDING, *shape[2:]))
    # One shape for all three, so one program: without padding the mask still says so.
    plain, at, away = (
        tuple(np.asarray(out, np.float64) for out in _predict(params, jnp.asarray(scenes, dtype), network, mask))
        for scenes in (np.concatenate([x, none], 1), np.concatenate([moved, none], 1), padded)
    )
    real = slice(0, config.agents)
    expected = plain[0][:, real] @ turns[:, None] + shifts
    expected = np.take_along_axis(expected, orders[:, :, None, None], axis=1)
    scale = np.abs(expected).max(axis=(1, 2, 3))
    error = np.abs(at[0][:, real] - expected).max(axis=(1, 2, 3)) / scale
    pairs = np.take_along_axis(plain[1][:, real, real], orders[:, :, None, None], axis=1)
    pairs = np.take_along_axis(pairs, orders[:, None, :, None], axis=2)
    return {
        "positions": float(error.max()),
        "categories": float(np.abs(at[1][:, real, real] - pairs).max()),
        "padding": float(np.abs(away[0][:, real] - plain[0][:, real]).max()),
        "spread_of_categories": float(plain[1][:, real, real, 0].std()),
    }


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures one network.

    Args:
      config: the measurement.
      workdir: not used.

    Returns:
      Flat dict of floats: worst errors `float64/positions`, `float64/categories`, `float64/padding`, the same for
      `float32`, and for `float32_near` (shifts of at most 1).
    """
    del workdir
    with jax.enable_x64(True):
        found = {"float64": _worst(config, "float64", config.shift)}
    found |= {"float32": _worst(config, "float32", config.shift), "float32_near": _worst(config, "float32", 1.0)}
    return {f"{name}/{what}": value for name, errors in found.items() for what, value in errors.items()}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates point 1 of the card; values are the worst over seeds.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    bars = {
        "float64/positions": ("float64: relative error of moved predictions", 1e-9),
        "float64/categories": ("float64: error of moved categories", 1e-10),
        "float32/positions": ("float32: relative error of moved predictions", 1e-4),
        "float32_near/categories": ("float32, shifts of at most 1: error of moved categories", 1e-4),
        "float64/padding": ("float64: change by padded agents at arbitrary places", 1e-6),
    }
    claim = Claims(CARD)
    for table in metrics.values():
        for name, (statement, bar) in bars.items():
            claim.at_most(1, statement, bar, max(table[name]["values"]))
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    rows = []
    for _, _, table in each_variant(found):
        for name in ("float64", "float32", "float32_near"):
            errors = (max(table[f"{name}/{what}"]["values"]) for what in ("positions", "categories", "padding"))
            label = {"float32_near": "float32, shifts of at most 1"}.get(name, name)
            rows.append((label, *(f"{error:.1e}" for error in errors)))
    return {"euclidean.motion_laws": markdown(("numbers", "positions, relative", "categories", "padding"), rows)}
