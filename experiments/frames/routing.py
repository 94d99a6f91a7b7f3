r"""Learns to make tours that do not depend on how the map lies: `frames.routing`.

An attention model (Kool, van Hoof, Welling 2019, arXiv:1803.08475; published for TSP-20: 0.34 % above the optimum by
greedy decoding, from memory) is trained by REINFORCE with a greedy rollout as baseline on uniform points of the unit
square. It sees the points themselves (`raw`) or their distance coordinates (`canonical`). 1,000 instances of the test
are solved as they are and moved by a random similarity (rotation, reflection, scaling by 0.1 to 10, shifts by up to 3);
tours are measured on the unmoved points. No table of TinvNN's paper could be opened.

The gap is that to the best tour of 2-opt from every start (for 11 points, compared with the exact optimum by
`two_opt_excess`). `best_of_signs` is the shortest of the four tours for all signs of the coordinates: invariant too.

Presets: `cpu` is a quarter of the model for some minutes; `paper` is the published one (100 epochs of 1,280,000
instances), an accelerator's days.

Command: `python -m experiments frames.routing cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.groups import Orthogonal
from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.generated import GeneratedBatches
from equivariant_jax.data.routing import optimal_tour, tour_length, two_opt
from equivariant_jax.frames import distance_coordinates
from experiments.claims import Claims
from experiments.frames.attention_model import (
    AttentionModelConfig,
    attention_model_init,
    decode,
    encode,
    lengths,
)
from experiments.results import seed_values
from experiments.runs import make_folder, train, write_metrics
from experiments.tables import cell, runs_table

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "random_similarity", "run", "tables"]

CARD = "tinvnn"

VARIANTS: dict[str, dict[str, Any]] = {"canonical": {}, "raw": {"inputs": "raw"}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      inputs: "canonical" (distance coordinates) or "raw" (the points).
      num_points: cities of an instance.
      width: of the model.
      heads: of its attentions.
      depth: of its encoder.
      hidden: width inside of the encoder's dense blocks.
      steps: optimiser steps.
      batch_size: instances per step.
      learning_rate: of Adam.
      clip_norm: largest norm of the gradient.
      challenge_every: steps between comparisons of policy and baseline.
      challenge_size: instances of a comparison.
      test_size: instances of the test.
      eval_every: steps between evaluations (reported only; the last parameters are tested).
      data_seed: of the test's instances and similarities.
      seed: of parameters and batches.
    """

    inputs: Literal["canonical", "raw"] = "canonical"
    num_points: int = 20
    width: int = 64
    heads: int = 4
    depth: int = 2
    hidden: int = 128
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    challenge_every: int = 100
    challenge_size: int = 500
    test_size: int = 1000
    eval_every: int = 1000
    data_seed: int = 0
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(
        num_points=6, width=16, heads=2, depth=1, hidden=16, steps=20, batch_size=32, challenge_every=10,
        challenge_size=20, test_size=20, eval_every=20,
    ),
    "cpu": Config(),
    # 100 epochs of 2,500 batches of 512; the baseline is challenged after each by 10,000 instances.
    "paper": Config(
        width=128, heads=8, depth=3, hidden=512, steps=250_000, batch_size=512, learning_rate=1e-4,
        challenge_every=2_500, challenge_size=10_000, test_size=10_000, eval_every=2_500,
    ),
}  # fmt: skip


def random_similarity(key: PRNGKey, x: Array) -> Array:
    """Rotates or reflects, scales (by 0.1 to 10) and shifts (by up to 3) each instance `[batch, n, 2]` on its own."""
    key_scale, key_shift, key_turn = jax.random.split(key, 3)
    scale = 10 ** jax.random.uniform(key_scale, (len(x), 1, 1), x.dtype, -1.0, 1.0)
    shift = jax.random.uniform(key_shift, (len(x), 1, 2), x.dtype, -3.0, 3.0)
    turns = jax.vmap(Orthogonal(2, str(x.dtype)).sample)(jax.random.split(key_turn, len(x)))
    return scale * jnp.einsum("bnd,bed->bne", x, turns, precision="highest") + shift


def _rotated(key: PRNGKey, x: Array) -> Array:
    """Each instance rotated by a uniform angle about the middle of the square."""
    angle = jax.random.uniform(key, (len(x), 1), x.dtype, 0.0, 2 * np.pi)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., 0] - 0.5, x[..., 1] - 0.5
    return jnp.stack([cos * a - sin * b, sin * a + cos * b], axis=-1) + 0.5


@functools.cache
def _reference(seed: int, number: int, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Instances `[number, n, 2]`, lengths of 2-opt's tours `[number]`, and how much longer those are for 11 points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(number, n, 2))
    best = np.asarray([tour_length(x, two_opt(x)) for x in points])
    small = rng.uniform(size=(10, min(n, 11), 2))
    excess = [tour_length(x, two_opt(x)) / tour_length(x, optimal_tour(x)) - 1 for x in small]
    return points, best, float(np.mean(excess))


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains one policy and measures its tours on instances as they are and moved.

    Args:
      config: the run.
      workdir: gets the metrics (JSONL, CSV, final JSON).

    Returns:
      Flat dict of floats: `gap`, `rotated_gap`, `moved_gap` (mean excess over 2-opt), `rotation_cost` (the difference
      of the first two), `ratio` and `worst_ratio` (of lengths, moved to unmoved: mean, and largest distance from one),
      the same in float64, and so on.
    """
    workdir = make_folder(workdir)
    model = AttentionModelConfig(config.width, config.heads, config.depth, config.hidden)
    key_params, key_state, key_data = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=config.learning_rate, schedule="cosine", total_steps=config.steps, clip_norm=config.clip_norm
        )
    )

    def seen(x: Array) -> Array:
        return x if config.inputs == "raw" else distance_coordinates(x, stop_gradient=True)[0]

    def greedy(policy, x: Array) -> Array:
        nodes, _ = encode(policy[0], policy[1], seen(x), model)
        return decode(policy[0], nodes, model)[0]

    def loss_fn(params, batch, *, key, model_state):
        x = batch["points"]
        key_sample, key_challenge = jax.random.split(key)
        nodes, statistics = encode(params, model_state["statistics"], seen(x), model, training=True)
        tours, log_probability = decode(params, nodes, model, key=key_sample)
        cost = lengths(x, tours)
        baseline = jax.lax.stop_gradient(lengths(x, greedy(model_state["baseline"], x)))
        policy = jax.lax.stop_gradient((params, statistics))

        def challenge(old):
            # The baseline becomes the policy if that is better on fresh instances beyond chance (one-sided, 5 %).
            fresh = jax.random.uniform(key_challenge, (config.challenge_size, *x.shape[1:]))
            better = lengths(fresh, greedy(old, fresh)) - lengths(fresh, greedy(policy, fresh))
            error = jnp.std(better) / np.sqrt(config.challenge_size)
            return jax.tree.map(lambda new, old: jnp.where(jnp.mean(better) > 1.645 * error, new, old), policy, old)

        count = model_state["count"] + 1
        old = jax.lax.stop_gradient(model_state["baseline"])
        after = jax.lax.cond(count % config.challenge_every == 0, challenge, lambda old: old, old)
        advantage = jax.lax.stop_gradient(cost - baseline)
        return training.LossOutput(
            {"reinforce": training.Mean.of(advantage * log_probability)},
            {"cost": training.Mean.of(cost), "baseline": training.Mean.of(baseline)},
            {"statistics": statistics, "baseline": after, "count": count},
        )

    def init(key):
        params, statistics = attention_model_init(key, model)
        copied = jax.tree.map(jnp.array, (params, statistics))
        return params, {"statistics": statistics, "baseline": copied, "count": jnp.zeros((), jnp.int32)}

    points, best, excess = _reference(config.data_seed, config.test_size, config.num_points)
    solve = jax.jit(greedy)

    def tours(state, x: np.ndarray | Array) -> np.ndarray:
        policy = (state.params, state.model_state["statistics"])
        policy = jax.tree.map(lambda leaf: leaf.astype(x.dtype), policy)
        return np.concatenate([solve(policy, jnp.asarray(x[i : i + 250])) for i in range(0, len(x), 250)])

    def gap(found: np.ndarray) -> float:
        return float(np.mean(tour_length(points, found) / best) - 1)

    single = jnp.asarray(points, jnp.float32)
    key_pose = jax.random.key(config.data_seed)
    shape = (config.batch_size // jax.process_count(), config.num_points, 2)
    draw = jax.jit(lambda key: {"points": jax.random.uniform(key, shape)})
    result, trained, *_ = train(
        init,
        loss_fn,
        optimizer,
        GeneratedBatches(draw, key_data),
        keys=(key_params, key_state),
        num_steps=config.steps,
        workdir=workdir,
        config=training.LoopConfig(
            log_every=min(100, config.steps), eval_every=min(config.eval_every, config.steps), checkpoint_every=None,
            monitor="gap", mode="min",
        ),
        evaluate=lambda state: {"gap": gap(tours(state, single))},
        experiment=dataclasses.asdict(config),
    )  # fmt: skip
    unmoved = tours(result.state, single)
    moved = tours(result.state, random_similarity(key_pose, single))
    metrics = {
        "gap": gap(unmoved),
        "rotated_gap": gap(tours(result.state, _rotated(key_pose, single))),
        "moved_gap": gap(moved),
        "two_opt_excess": excess,
        **trained,
    }
    metrics["rotation_cost"] = metrics["rotated_gap"] - metrics["gap"]
    metrics |= _ratios("", points, unmoved, moved)
    with jax.enable_x64(True):
        double = jnp.asarray(points)
        turned = random_similarity(jax.random.key(config.data_seed), double)
        metrics |= _ratios("_float64", points, tours(result.state, double), tours(result.state, turned))
    if config.inputs == "canonical":
        metrics |= _all_signs(result.state, model, single, points, best)
    return write_metrics(workdir, metrics)


def _ratios(name: str, points: np.ndarray, unmoved: np.ndarray, moved: np.ndarray) -> dict[str, float]:
    ratio = tour_length(points, moved) / tour_length(points, unmoved)
    return {
        f"ratio{name}": float(ratio.mean()),
        f"worst_ratio{name}": float(np.abs(ratio - 1).max()),
        f"changed{name}": float(np.mean(np.abs(ratio - 1) > 1e-5)),
    }


def _all_signs(state, model: AttentionModelConfig, x: Array, points: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """The shortest of the tours for all signs of the coordinates, by the same policy."""

    @jax.jit
    def shortest(policy, x):
        every = jnp.swapaxes(distance_coordinates(x, signs="average")[0], 0, 1)
        found = [decode(policy[0], encode(policy[0], policy[1], h, model)[0], model)[0] for h in every]
        tours = jnp.stack(found)
        length = jnp.stack([lengths(x, tour) for tour in found])
        return jnp.take_along_axis(tours, jnp.argmin(length, axis=0)[None, :, None], axis=0)[0]

    policy = (state.params, state.model_state["statistics"])
    found = np.concatenate([shortest(policy, x[i : i + 250]) for i in range(0, len(x), 250)])
    return {"best_of_signs_gap": float(np.mean(tour_length(points, found) / best) - 1)}


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates point 5 of the card.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`; only for variants that were run.
    """
    claim = Claims(CARD)
    if "canonical" in metrics:
        ours = metrics["canonical"]
        worst = np.abs(seed_values(ours, "ratio") - 1).max()
        claim.at_most(5, "distance coordinates: mean tour length ratio minus 1, worst seed", 1e-5, worst)
        worst = seed_values(ours, "worst_ratio").max()
        claim.at_most(5, "distance coordinates: the same of every instance", 1e-5, worst)
        worst = seed_values(ours, "worst_ratio_float64").max()
        claim.at_most(5, "distance coordinates: every instance, in float64", 1e-5, worst)
    if "raw" in metrics:
        cost = seed_values(metrics["raw"], "rotation_cost")
        moved = (seed_values(metrics["raw"], "moved_gap") - seed_values(metrics["raw"], "gap")).min()
        claim.at_least(5, "raw points: mean gap, moved by a similarity minus unmoved, worst seed", 0.005, moved)
        # "0.5 % larger" may be of the gap, or points of the length. The first was added when the numbers were known.
        larger = (seed_values(metrics["raw"], "rotated_gap") / seed_values(metrics["raw"], "gap")).min()
        claim.at_least(5, "raw points: mean gap, rotated over unrotated, worst seed", 1.005, larger)
        why = "uniform points of a turned square differ from those of an upright one near its corners alone"
        for statement, value in (("mean over seeds", cost.mean()), ("worst seed", cost.min())):
            claim.at_least(5, f"raw points: mean gap, rotated minus unrotated, {statement}", 0.005, value, why=why)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("input", "gap %", "rotated %", "moved %", "best of signs %", "tours changed %", "parameters")
    names = ("gap", "rotated_gap", "moved_gap", "best_of_signs_gap", "changed")

    def cells(_, variant, table):
        gaps = (cell(table, name, ".2f", factor=100) for name in names)
        return variant, *gaps, f"{table['parameters']['mean']:.0f}"

    return {"frames.routing": runs_table(found, heads, cells)}
