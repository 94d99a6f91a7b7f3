r"""Measures how exact averages over frames of point clouds are: `frames.exactness`.

A network without any symmetry (two layers of random weights on positions and vectors, position and scalar outputs) is
averaged over the frames of random normal clouds. Measured over random rigid motions, half of them reflections: the
largest defect of the law, in float64 and, for clouds whose eigenvalues are `gap` of their sum apart, in float32; what a
reflection changes with SE(d) frames; the difference to a NumPy loop over the same group elements; and what padding
changes. The network's outputs are of order one.

Command: `python -m experiments frames.exactness cpu --seeds 0 1 2`. Numbers reached, hardware and time stand in
`experiments/results`, written by the run.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.frames import frame_average, pca_frames
from experiments.claims import Claims
from experiments.runs import make_folder, write_metrics

__all__ = ["CARD", "PRESETS", "Config", "claims", "run"]

CARD = "frame_averaging"


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      clouds: random clouds of each dimension.
      points: of each cloud.
      dimensions: of the clouds.
      width: of the network.
      gap: least distance of eigenvalues over their sum, for float32.
      seed: of clouds, motions and weights.
    """

    clouds: int = 256
    points: int = 32
    dimensions: tuple[int, ...] = (2, 3, 5)
    width: int = 16
    gap: float = 1e-3
    seed: int = 0


PRESETS: dict[str, Config] = {"ci": Config(clouds=8, points=8, dimensions=(2,), width=4), "cpu": Config()}

_Weights = tuple[np.ndarray, ...]


def _weights(rng: np.random.Generator, d: int, width: int) -> _Weights:
    return tuple(
        rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((d, width), (d, width), (width, width), (width, d))
    )


def _network(xp: Any, weights: _Weights, x: Any, v: Any, real: Any) -> tuple[Any, Any]:
    """Positions `[n, d]` and a number from `[n, d]` twice; `xp` is NumPy or jax.numpy."""
    a, b, c, out = (w.astype(x.dtype) for w in weights)
    number = xp.sum(real).astype(x.dtype)
    h = xp.where(real[:, None], xp.tanh(x @ a + v @ b + 0.5), 0.0)
    h = xp.where(real[:, None], xp.tanh(h @ c + xp.sum(h, axis=0)[None] / number + 0.5), 0.0)
    return h @ out, xp.sum(h[:, 0] * h[:, 1]) / number


@functools.cache
def _averaged(group: Any, d: int, width: int, seed: int):
    weights = _weights(np.random.default_rng([seed, d]), d, width)

    def one(x, v, mask):
        frames = pca_frames(x, mask, group=group)
        function = functools.partial(_network, jnp, weights)
        kinds = ("position", "vector", "scalar")
        return frame_average(function, frames, in_types=kinds, out_types=("position", "scalar"))(x, v, mask)

    return jax.jit(one)


def _reference(weights: _Weights, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The average over all signs of the axes by a loop, for one cloud."""
    t = x.mean(axis=0)
    axes = np.linalg.eigh((x - t).T @ (x - t))[1]
    outputs = []
    for signs in itertools.product((-1.0, 1.0), repeat=x.shape[1]):
        r = axes * np.array(signs)
        y, s = _network(np, weights, (x - t) @ r, v @ r, np.ones(len(x), bool))
        outputs.append((y @ r.T + t, s))
    return np.mean([y for y, _ in outputs], axis=0), np.mean([s for _, s in outputs], axis=0)


def _motions(rng: np.random.Generator, number: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal matrices `[number, d, d]`, every second a reflection, and shifts `[number, 1, d]`."""
    q = np.linalg.qr(rng.standard_normal((number, d, d)))[0]
    q[..., 0] *= (np.sign(np.linalg.det(q)) * np.where(np.arange(number) % 2, -1.0, 1.0))[:, None]
    return q, rng.standard_normal((number, 1, d))


def _defects(config: Config, group: str, d: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest defect of each cloud, whether its motion is proper, and its gap."""
    rng = np.random.default_rng([config.seed, d, 1])
    x, v = rng.standard_normal((2, config.clouds, config.points, d))
    q, shift = _motions(rng, config.clouds, d)
    run = _averaged(group, d, config.width, config.seed)
    mask = jnp.ones(x.shape[:-1], bool)

    def outputs(x, v):
        return map(np.asarray, run(jnp.asarray(x, dtype), jnp.asarray(v, dtype), mask))

    y, s = outputs(x, v)
    y_moved, s_moved = outputs(np.einsum("bni,bji->bnj", x, q) + shift, np.einsum("bni,bji->bnj", v, q))
    error = np.abs(y_moved - np.einsum("bni,bji->bnj", y, q) - shift).max(axis=(1, 2))
    gap = np.asarray(pca_frames(jnp.asarray(x, dtype)).gap)
    return np.maximum(error, np.abs(s_moved - s)), np.linalg.det(q) > 0, gap


def _against_loop(config: Config, d: int) -> tuple[float, float]:
    """Difference to the loop, and change by padding; float64."""
    rng = np.random.default_rng([config.seed, d, 2])
    number = min(config.clouds, 16)
    x, v = rng.standard_normal((2, number, config.points, d))
    run = _averaged("E", d, config.width, config.seed)
    y, s = map(np.asarray, run(jnp.asarray(x), jnp.asarray(v), jnp.ones(x.shape[:-1], bool)))
    weights = _weights(np.random.default_rng([config.seed, d]), d, config.width)
    loop = [_reference(weights, *pair) for pair in zip(x, v, strict=True)]
    difference = max(np.abs(y - [r[0] for r in loop]).max(), np.abs(s - [r[1] for r in loop]).max())
    half = config.points // 2
    plain, _ = run(*(jnp.asarray(a[:, :half]) for a in (x, v)), jnp.ones((number, half), bool))
    mask = np.arange(config.points) < half
    filled = [np.where(mask[None, :, None], a, 1e3) for a in (x, v)]
    padded, _ = run(*map(jnp.asarray, filled), jnp.broadcast_to(jnp.asarray(mask), x.shape[:-1]))
    return float(difference), float(np.abs(np.asarray(padded)[:, mask] - np.asarray(plain)).max())


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures all dimensions.

    Args:
      config: the measurement.
      workdir: gets the metrics.

    Returns:
      Flat dict of floats for each dimension d: `defect_float64/d`, `defect_float32/d`, `se_mirror/d`,
      `against_loop/d`, `padding/d`, and so on.
    """
    workdir = make_folder(workdir)
    metrics = {}
    for d in config.dimensions:
        with jax.enable_x64(True):
            metrics[f"defect_float64/{d}"] = float(_defects(config, "E", d, jnp.float64)[0].max())
            error, proper, _ = _defects(config, "SE", d, jnp.float64)
            metrics[f"se_defect_float64/{d}"] = float(error[proper].max())
            metrics[f"se_mirror/{d}"] = float(error[~proper].min())
            metrics[f"against_loop/{d}"], metrics[f"padding/{d}"] = _against_loop(config, d)
        error, _, gap = _defects(config, "E", d, jnp.float32)
        metrics[f"defect_float32/{d}"] = float(error[gap >= config.gap].max())
        metrics[f"clouds_float32/{d}"] = float(np.sum(gap >= config.gap))
    return write_metrics(workdir, metrics)


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates what the runs show; the worst dimension and seed count.

    Args:
      metrics: variant -> metric -> {"mean", "values"}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    bars = (
        ("1", "defect_float64", "largest defect of the law of E(d), float64", 1e-10),
        ("1", "se_defect_float64", "largest defect of the law of SE(d), float64", 1e-10),
        ("1", "defect_float32", "largest defect of the law, float32, well separated axes", 1e-4),
        ("2", "against_loop", "largest difference to a loop over the same matrices", 1e-12),
        ("2", "padding", "largest change by padding", 1e-6),
    )
    for table in metrics.values():
        for point, metric, statement, bar in bars:
            value = max(max(m["values"]) for name, m in table.items() if name.startswith(f"{metric}/"))
            claim.at_most(point, statement, bar, value)
        value = min(min(m["values"]) for name, m in table.items() if name.startswith("se_mirror/"))
        claim.at_least("1", "smallest difference of a mirror image with SE(d) frames", 1e-3, value)
    return claim.found
