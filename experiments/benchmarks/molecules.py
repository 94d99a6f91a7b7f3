"""Gaunt against Clebsch-Gordan products inside the interatomic potential, and the many-body product alone.

A training step is the gradient by all parameters of a loss on energies and forces (a gradient of a gradient) for a
padded batch of molecules of the embedded set. The many-body product alone is `gaunt_polynomial` against MACE's
symmetric contraction, in MACE's order of evaluation (which the training steps use) and in one that is faster for values
and gradients, float32, all degrees up to L out; "forward+backward" adds the gradients by features and weights. That
errors are equal at equal size is for `euclidean.molecules` to show.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.graphs import plan_budget
from equivariant_jax.euclidean import gaunt_contraction, gaunt_paths, gaunt_polynomial
from equivariant_jax.euclidean.interatomic import PotentialConfig, potential_init
from equivariant_jax.euclidean.symmetric_contraction import contraction_paths, symmetric_contraction
from experiments.benchmarks.harness import Case
from experiments.claims import Claims
from experiments.euclidean.molecular_models import make_loss, padded, sizes
from experiments.euclidean.molecular_sets import load_molecules

__all__ = ["CARD", "PRESETS", "Config", "cases", "claims"]

CARD = "gaunt_tensor_product"
MACE, MONOMIALS, PATHS = "MACE U tensors", "the same on monomials", "ours, a weight for every path"
# Products of the training step: neighbours / many-body.
STEPS: dict[str, tuple[Any, Any]] = {
    "gaunt / gaunt": ("gaunt", "gaunt"),
    "cg / gaunt": ("cg", "gaunt"),
    "cg / gaunt_paths": ("cg", "gaunt_paths"),
    "cg / cg": ("cg", "cg"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      degrees: values of L for the many-body product.
      order: highest power of the many-body product and the potential.
      rows: nodes times channels of the many-body product.
      step_degrees: values of lmax for the training step.
      channels: values of the potential's width.
      batch_size: molecules in a step.
      r_max: cut-off in angstrom.
      dataset: as in `euclidean.molecules`.
    """

    degrees: tuple[int, ...] = (1, 2, 3)
    order: int = 3
    rows: int = 1024
    step_degrees: tuple[int, ...] = (2, 3)
    channels: tuple[int, ...] = (16, 32, 64)
    batch_size: int = 5
    r_max: float = 5.0
    dataset: str = "embedded"


PRESETS = {
    "ci": Config(degrees=(1,), rows=64, step_degrees=(1,), channels=(4,), batch_size=2),
    "cpu": Config(),
    "paper": Config(channels=(64, 128, 256)),
}


def _with_gradient(function: Callable) -> Callable:
    def loss(x, weights):
        out = function(x, weights)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return jax.value_and_grad(loss, argnums=(0, 1))


def _contractions(config: Config) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    channels = 32
    nodes = max(1, config.rows // channels)
    for degree in config.degrees:
        paths = sum(map(sum, contraction_paths(degree, degree, config.order)))
        coupled = (paths, channels)
        listed = gaunt_paths(degree, degree, config.order)
        gaunt = (sum(len(some) for by_order in listed for some in by_order), channels)
        shapes = {"ours": (config.order, degree + 1, channels), PATHS: gaunt, MACE: coupled, MONOMIALS: coupled}
        x = jnp.asarray(rng.normal(size=(nodes, (degree + 1) ** 2, channels)), jnp.float32)
        arguments = {
            name: (x, jnp.asarray(rng.normal(size=(nodes, *shape)), jnp.float32)) for name, shape in shapes.items()
        }
        contenders: dict[str, Callable] = {
            "ours": lambda x, w, degree=degree: gaunt_polynomial(x, w, lmax_out=degree),
            PATHS: lambda x, w, degree=degree: gaunt_contraction(x, w, lmax_out=degree, order=config.order),
            MACE: lambda x, w, degree=degree: symmetric_contraction(x, w, lmax_out=degree, order=config.order),
            MONOMIALS: lambda x, w, degree=degree: symmetric_contraction(
                x, w, lmax_out=degree, order=config.order, method="monomials"
            ),
        }
        name = f"many-body, order {config.order}, L={degree}, {nodes} x {channels}"
        yield Case(f"{name}, forward", contenders, arguments)
        gradients = {name: _with_gradient(function) for name, function in contenders.items()}
        yield Case(f"{name}, forward+backward", gradients, arguments)


def _training_step(potential: PotentialConfig) -> Callable:
    loss_fn = make_loss(potential)

    def loss(params, graph):
        terms = loss_fn(params, graph, key=None, model_state=None).terms
        return 10.0 * terms["energy_loss"].compute() + terms["forces_loss"].compute()

    return jax.value_and_grad(loss)


def _training_steps(config: Config) -> Iterator[Case]:
    data = load_molecules(config.dataset, config.r_max, train_size=16 * config.batch_size)
    graph = padded(data.train, plan_budget(*sizes(data.train), batch_size=config.batch_size, slack=2.0))[0]
    graph = jax.tree.map(jnp.asarray, graph)
    for lmax in config.step_degrees:
        for channels in config.channels:
            contenders, arguments = {}, {}
            for name, (convolution, contraction) in STEPS.items():
                potential = PotentialConfig(
                    species=data.species,
                    r_max=config.r_max,
                    lmax=lmax,
                    channels=channels,
                    correlation=config.order,
                    max_neighbours=data.max_neighbours,
                    average_neighbours=data.average_neighbours,
                    energy_scale=data.energy_scale,
                    energy_shift=data.energy_shift,
                    convolution=convolution,
                    contraction=contraction,
                )
                contenders[name] = _training_step(potential)
                params = jax.jit(potential_init, static_argnums=1)(jax.random.key(0), potential)
                arguments[name] = (params, graph)
            yield Case(f"training step, L={lmax}, {channels} channels", contenders, arguments)


def cases(config: Config) -> Iterator[Case]:
    """Yields the many-body products, then the training steps; inputs are fixed random numbers and molecules."""
    yield from _contractions(config)
    yield from _training_steps(config)


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates the speed-ups that the card asks for; of several rows the slowest decides.

    Args:
      rows: from `harness.run_cases`.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for degree, bar in ((2, 3.0), (3, 50.0)):
        for mode in ("forward", "forward+backward"):
            chosen = [
                row["ratios"][MACE]
                for row in rows
                if row["case"].startswith("many-body")
                and f"L={degree}," in row["case"]
                and row["case"].endswith(f" {mode}")
            ]
            if chosen:
                worst = min(chosen)
                statement = f"{MACE} over gaunt_polynomial, L={degree}, {mode}"
                claim.add("7 many-body", statement, bar, worst, holds=worst >= bar)
    steps = [row["ratios"]["cg / cg"] for row in rows if row["case"].startswith("training step, L=3")]
    if steps:
        slowest = 1 / min(steps)
        statement = "training step, Gaunt over MACE's products, L=3, any width"
        claim.add("9 real data", statement, 0.76, slowest, holds=slowest <= 0.76)
    return claim.found
