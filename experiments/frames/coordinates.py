r"""Measures the laws and the cost of distance coordinates, without any training: `frames.coordinates`.

Random clouds: n points of which half to all are real (the rest is padding at 1e6), coordinates exponential, stretched
by 0.3 to 1 along each of d axes, rotated; `number` clouds for each n and d. Each is compared with itself moved by
`s Q x + t`, s from 1e-3 to 1e3, t up to 100 in each coordinate. Canonical coordinates are continuous where the
relative eigengap and all odd moments are large: clouds where one is below `well` are counted (`outside_fraction`) and
left out of the changes.

In float32 a cloud of size 1e-3 at the distance 100 is rounded to 1 % of its size before any function sees it. The
number `float32_change` includes such clouds; `float32_change_near` moves by `s (Q x + t)` instead, so that shifts are
up to 100 sizes of the cloud; `float32_over_rounding` divides each change of the first kind by the rounding of the moved
points over the cloud's size and gap.

Command: `python -m experiments frames.coordinates cpu --seeds 0 1 2`. Numbers reached, hardware and time stand in
`experiments/results`, written by the run.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.frames import classical_mds, distance_coordinates, pairwise_distances
from experiments.claims import Claims
from experiments.frames.cloud_classifier import (
    CloudClassifierConfig,
    cloud_classifier_apply,
    cloud_classifier_init,
)
from experiments.results import seed_values
from experiments.runs import make_folder, write_metrics
from experiments.tables import each_variant, markdown

__all__ = ["CARD", "PRESETS", "Config", "claims", "run", "tables"]

CARD = "tinvnn"


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      sizes: points of a cloud, padding included.
      dimensions: d.
      number: clouds for each size and dimension.
      well: least relative eigengap and odd moment of a cloud whose change counts.
      both_routes: clouds of each size and dimension of which the n x n route is taken, a tenth above n = 200.
      timed_points: points of the clouds that are timed.
      timed_batch: clouds that are timed together.
      repeats: runs of which the fastest counts.
      neighbours: of the DGCNN that is timed.
      widths: of its blocks.
      features: of its last layer.
      seed: of the clouds.
    """

    sizes: tuple[int, ...] = (16, 128, 1024)
    dimensions: tuple[int, ...] = (2, 3, 8)
    number: int = 200
    well: float = 1e-2
    both_routes: int = 20
    timed_points: int = 1024
    timed_batch: int = 4
    repeats: int = 10
    neighbours: int = 20
    widths: tuple[int, ...] = (64, 64, 128, 256)
    features: int = 1024
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(
        sizes=(16, 32), dimensions=(2, 3), number=10, both_routes=3, timed_points=64, repeats=2, widths=(8,), features=8
    ),
    "cpu": Config(),
    "paper": Config(repeats=100),
}


def _clouds(rng: np.random.Generator, number: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Points `[number, n, d]` with padding at 1e6, and the mask."""
    stretch = np.exp(rng.uniform(np.log(0.3), 0.0, (number, 1, d)))
    x = (rng.exponential(size=(number, n, d)) - 1) * stretch
    x = np.einsum("bnd,bed->bne", x, _orthogonal(rng, number, d))
    mask = np.arange(n)[None] < rng.integers(max(n // 2, d + 2), n + 1, (number, 1))
    return np.where(mask[..., None], x, 1e6), mask


def _orthogonal(rng: np.random.Generator, number: int, d: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(number, d, d)))
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None]


def _changes(
    coordinates: Callable, x: np.ndarray, moved: np.ndarray, mask: np.ndarray, dtype: Any
) -> tuple[np.ndarray, Any]:
    """Largest change of the coordinates over their largest entry, `[number]`, and the frames of the first."""
    h, frames = coordinates(jnp.asarray(x, dtype), mask)
    other, _ = coordinates(jnp.asarray(np.where(mask[..., None], moved, 1e6), dtype), mask)
    change = np.abs(np.asarray(other, float) - np.asarray(h, float)).max(axis=(-2, -1))
    return change / np.abs(np.asarray(h, float)).max(axis=(-2, -1)), frames


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures changes under similarities, distances, both routes, and times.

    Args:
      config: the measurement.
      workdir: gets the metrics (JSON).

    Returns:
      Flat dict of floats; changes and errors are the largest found.
    """
    workdir = make_folder(workdir)
    rng = np.random.default_rng(config.seed)
    rows = []
    with jax.enable_x64(True):
        coordinates = jax.jit(distance_coordinates)
        for n, d in itertools.product(config.sizes, config.dimensions):
            rows.append(_laws(config, coordinates, rng, n, d) | {"n": n, "d": d})
    worst = (
        "float64_change", "float32_change", "float32_change_near", "float32_over_rounding", "distance_error",
        "route_error", "gram_error",
    )  # fmt: skip
    metrics = {name: max(row[name] for row in rows) for name in worst}
    metrics["outside_fraction"] = float(np.mean([row["outside_fraction"] for row in rows]))
    for row in rows:
        metrics[f"outside_fraction_n{row['n']}_d{row['d']}"] = row["outside_fraction"]
    metrics |= _times(config)
    return write_metrics(workdir, metrics, rows=rows)


def _laws(config: Config, coordinates: Callable, rng: np.random.Generator, n: int, d: int) -> dict[str, float]:
    number = config.number
    x, mask = _clouds(rng, number, n, d)
    scale = 10 ** rng.uniform(-3, 3, (number, 1, 1))
    shift = rng.uniform(-100, 100, (number, 1, d))
    turned = np.einsum("bnd,bed->bne", x, _orthogonal(rng, number, d))
    order = rng.permutation(n)
    far, near = scale * turned + shift, scale * (turned + shift)
    double, frames = _changes(coordinates, x, far, mask, np.float64)
    well = (np.asarray(frames.gap) > config.well) & (np.asarray(frames.oddness).min(axis=-1) > config.well)
    single, _ = _changes(coordinates, x, far, mask, np.float32)
    single_near, _ = _changes(coordinates, x, near, mask, np.float32)
    reach = 1 + np.abs(shift).max(axis=(-2, -1)) / (scale[:, 0, 0] * np.asarray(frames.scale))
    rounding = np.finfo(np.float32).eps * reach / np.maximum(np.asarray(frames.gap), 1e-30)
    h = np.asarray(coordinates(jnp.asarray(x), mask)[0])
    permuted = np.asarray(coordinates(jnp.asarray(x[:, order]), mask[:, order])[0])
    double = np.maximum(double, np.abs(permuted - h[:, order]).max(axis=(-2, -1)))
    pairs = mask[:, :, None] & mask[:, None]
    size = np.asarray(frames.scale)[:, None, None]
    distance, route, gram = 0.0, 0.0, 0.0
    few = max(config.both_routes // (10 if n > 200 else 1), 1)
    for i in range(number):
        want = pairwise_distances(jnp.asarray(x[i] / size[i]), mask[i])
        got = pairwise_distances(jnp.asarray(h[i]), mask[i])
        distance = max(distance, float(jnp.max(jnp.where(pairs[i], jnp.abs(got - want), 0.0))))
        if i < few:
            other = np.asarray(classical_mds(jnp.square(want), jnp.asarray(mask[i]), d).coordinates)
            gram = max(gram, np.abs(other @ other.T - h[i] @ h[i].T).max())
            signs = np.sign(np.sum(other * h[i], axis=0))
            if well[i]:
                route = max(route, np.abs(other * signs - h[i]).max())
    return {
        "float64_change": float(double[well].max(initial=0.0)),
        "float32_change": float(single[well].max(initial=0.0)),
        "float32_change_near": float(single_near[well].max(initial=0.0)),
        "float32_over_rounding": float((single / rounding)[well].max(initial=0.0)),
        "outside_fraction": float(1 - well.mean()),
        "distance_error": distance,
        "route_error": float(route),
        "gram_error": float(gram),
    }


def _times(config: Config) -> dict[str, float]:
    x = jax.random.normal(jax.random.key(config.seed), (config.timed_batch, config.timed_points, 3))
    network = CloudClassifierConfig(
        "dgcnn", config.widths, config.features, config.neighbours, hidden=config.features, num_classes=40
    )
    params, statistics = cloud_classifier_init(jax.random.key(0), network)
    functions = {
        "representation_seconds": jax.jit(lambda x: distance_coordinates(x)[0]),
        "dgcnn_seconds": jax.jit(lambda x: cloud_classifier_apply(params, statistics, x, network)[0]),
    }
    found = {}
    for name, function in functions.items():
        jax.block_until_ready(function(x))
        taken = []
        for _ in range(config.repeats):
            start = time.perf_counter()
            jax.block_until_ready(function(x))
            taken.append(time.perf_counter() - start)
        found[name] = min(taken)
    return found | {"relative_cost": found["representation_seconds"] / found["dgcnn_seconds"]}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates points 1, 2 and 6 of the card.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    bars = (
        (1, "float64_change", "relative change of canonical coordinates under similarities, float64", 1e-9),
        (1, "float32_change", "the same in float32, clouds included that float32 has rounded", 1e-3),
        (1, "float32_change_near", "the same in float32, shifts of up to 100 sizes of the cloud", 1e-3),
        (2, "distance_error", "error of distances, float64", 1e-12),
        (2, "route_error", "d x d against n x n route up to signs, float64", 1e-10),
        (6, "relative_cost", "time of the representation over that of a DGCNN", 0.05),
    )
    claim = Claims(CARD)
    for point, name, statement, bar in bars:
        why = "float32 rounds a cloud of size 1e-3 at a distance of 100 by half a percent of its size before it is seen"
        value = seed_values(metrics["run"], name).max()
        claim.at_most(point, statement, bar, value, why=why if name == "float32_change" else "")
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
        for name, value in table.items():
            if name.startswith("outside_fraction_"):
                n, d = name.removeprefix("outside_fraction_").split("_")
                rows.append((f"n = {n[1:]}, d = {d[1:]}", f"{100 * value['mean']:.0f}"))
    return {"frames.coordinates": markdown(("clouds", "outside the well-conditioned set %"), rows)}
