r"""How far the recurrence over turning images is from its law, angle by angle: `flow.rotation_law`.

On the pixel grid a rotation is exact at quarter turns only, so that the law of the hidden state,
`h_t[psi(a) f](nu) = psi_t(a) . h_t[f](nu - a)`, holds to rounding there and approximately elsewhere. Untrained networks
with steerable kernels over the cyclic group, digits that turn by `a` more per frame, the relative error (L2) of the
last hidden state in the bank `nu = a` against the still sequence's bank `nu = 0`. Variants: `comoving` and `published`
(which turns its memory by one step after each frame, and so interpolates it again and again), and the ordinary
recurrence (`still`), whose single bank does not move.

Command: `python -m experiments flow.rotation_law cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time
stand in `experiments/results`, written by the run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.images import rotate_image
from equivariant_jax.core.typing import PyTree
from equivariant_jax.data.flowing import rotating_mnist
from equivariant_jax.data.images import mnist, small_digits
from equivariant_jax.flow import (
    cyclic_kernel,
    cyclic_kernel_init,
    cyclic_lifting_kernel,
    flow_scan,
    rotation_flow,
)
from experiments.claims import Claims
from experiments.pictures import draw_curve, picture
from experiments.results import seed_curve
from experiments.tables import markdown

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "claims", "plots", "run", "tables"]

CARD = "flow_equivariant_rnn"

VARIANTS: dict[str, dict[str, Any]] = {"comoving": {}, "published": {"form": "published"}, "still": {"moving": False}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      dataset: "mnist" (28 x 28), or "digits" (8 x 8, from scikit-learn).
      form: "comoving" or "published".
      moving: whether the bank turns; False is the ordinary recurrence.
      orientations: order of the cyclic group; its step divides all angles.
      fields: fields over the group.
      length: frames.
      batch: sequences.
      angle_step: degrees; angles are its multiples.
      max_angle: degrees; the largest.
      margin: black pixels around the digits, which the hidden state may flow into.
      seed: of kernels and sequences.
    """

    dataset: Literal["mnist", "digits"] = "mnist"
    form: Literal["comoving", "published"] = "comoving"
    moving: bool = True
    orientations: int = 36
    fields: int = 4
    length: int = 10
    batch: int = 4
    angle_step: int = 10
    max_angle: int = 90
    margin: int = 2
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(dataset="digits", orientations=8, fields=2, length=3, batch=2, angle_step=45, max_angle=180),
    "cpu": Config(),
    "paper": Config(fields=32, length=20, batch=64, max_angle=180),
}


def _digits(dataset: str) -> np.ndarray:
    if dataset == "digits":
        return small_digits().arrays["image"][..., 0].astype(np.float32) / 16
    return mnist("test").arrays["image"][..., 0].astype(np.float32) / 255


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures the law at every angle.

    Args:
      config: the measurement.
      workdir: not written to.

    Returns:
      `error/AAA` for each angle in degrees, and `frames`, the number of frames.

    Raises:
      ValueError: if the group's step does not divide the angles'.
    """
    del workdir
    if config.angle_step * config.orientations % 360:
        raise ValueError(
            f"angle_step: got {config.angle_step}, expected a multiple of 360 / {config.orientations} degrees."
        )
    keys = jax.random.split(jax.random.key(config.seed), 3)
    weights = cyclic_kernel_init(keys[0], config.fields, config.fields, config.orientations, lifting=False)
    first = cyclic_kernel_init(keys[1], 1, config.fields, config.orientations, lifting=True)
    params = {"input": cyclic_lifting_kernel(first, config.orientations), "recurrent": cyclic_kernel(weights)}
    flow = rotation_flow(config.orientations)
    images = np.pad(_digits(config.dataset), ((0, 0), (config.margin,) * 2, (config.margin,) * 2))
    still = rotating_mnist(
        keys[2], jnp.asarray(images), jnp.zeros((1, 1)), batch=config.batch, num_digits=1, length=config.length
    ).frames

    # Kernels and frames are arguments: as constants of the program they would be convolved by the compiler.
    def error(angle: int, params: PyTree, still: jax.Array) -> jax.Array:
        turn = jax.vmap(lambda t, frame: rotate_image(frame, angle * t), in_axes=(0, 1), out_axes=1)
        turned = turn(jnp.arange(config.length, dtype=jnp.float32), still)

        def last(frames: jax.Array, velocity: int) -> jax.Array:
            bank = ((float(velocity),),)
            states: Any = flow_scan(params, frames, bank, flow=flow, form=config.form, boundary="zero").outputs
            return states[:, -1, 0]

        end = jnp.float32(config.length - 1)
        expected = flow(last(still, 0), jnp.full((1,), angle, jnp.float32), end)
        found = last(turned, angle if config.moving else 0)
        return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)

    angles = range(0, config.max_angle + 1, config.angle_step)
    measure = jax.jit(error, static_argnums=0)
    metrics = {f"error/{angle:03d}": float(measure(angle, params, still)) for angle in angles}
    return {**metrics, "frames": float(config.length)}


def _curve(table: Mapping[str, Any]) -> dict[int, np.ndarray]:
    angles, values = seed_curve(table, "error/")
    return dict(zip(angles.tolist(), values, strict=True))


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates the laws at quarter turns, and what lies between.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim, point = Claims(CARD), "rotation task"
    curves = {variant: _curve(table) for variant, table in metrics.items()}
    for variant in ("comoving", "published"):
        if variant in curves:
            worst = max(v.max() for angle, v in curves[variant].items() if angle % 90 == 0)
            claim.at_most(point, f"{variant}: relative error of the law at quarter turns, worst seed", 1e-5, worst)
    if {"comoving", "published"} <= curves.keys():
        between = [angle for angle in curves["comoving"] if angle % 90]
        ratio = max(curves["comoving"][angle].mean() / curves["published"][angle].mean() for angle in between)
        statement = "error of the co-moving form over the published one's between quarter turns, worst angle"
        claim.below(point, statement, 1.0, ratio)
    if {"comoving", "still"} <= curves.keys():
        between = [angle for angle in curves["still"] if angle]
        ratio = max(curves["comoving"][angle].mean() / curves["still"][angle].mean() for angle in between)
        statement = "error of the co-moving form over the ordinary recurrence's, worst angle"
        claim.at_most(point, statement, 0.5, ratio)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    result = found.get("flow.rotation_law.cpu")
    if result is None:
        return {}
    curves = {variant: _curve(table) for variant, table in result["metrics"].items()}
    shown = [angle for angle in next(iter(curves.values())) if angle % 30 == 0 or angle in (10, 80)]
    rows = ((variant, *(f"{curve[angle].mean():.2g}" for angle in shown)) for variant, curve in curves.items())
    return {"flow.rotation_law": markdown(("recurrence", *(f"{angle}°" for angle in shown)), rows)}


def plots(found: Mapping[str, Any], folder: Path) -> None:
    """Draws error against angle, mean and range over seeds, as `flow.rotation_law.svg`.

    Args:
      found: results by file stem.
      folder: where the picture goes.
    """
    result = found.get("flow.rotation_law.cpu")
    if result is None:
        return
    with picture(folder / "flow.rotation_law.svg", (6, 2.8)) as axis:
        for variant, table in result["metrics"].items():
            angles, values = seed_curve(table, "error/")
            turning = angles > 0
            draw_curve(axis, angles[turning], values[turning], marker="o", markersize=3, label=variant)
        axis.set(xlabel="degrees per frame", ylabel="relative error of the law", yscale="log")
        axis.set_xticks(range(0, result["config"]["max_angle"] + 1, 30))
        axis.legend(frameon=False, fontsize=8)
