"""Spherical harmonics beside e3nn-jax: `benchmarks.spherical`.

float32, steady state; forward, and forward with the cotangent of the vectors. The products have `benchmarks.gaunt`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.euclidean import spherical_harmonics
from experiments.benchmarks.harness import Case

__all__ = ["PRESETS", "Config", "cases"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      batch: vectors.
      degrees: values of lmax.
    """

    batch: int = 1024
    degrees: tuple[int, ...] = (2, 4, 8)


PRESETS = {
    "ci": Config(batch=64, degrees=(2,)),
    "cpu": Config(),
    "paper": Config(degrees=(2, 4, 8, 11)),
}


def _with_cotangent(function: Callable) -> Callable:
    def run(vectors, cotangent):
        value, pull = jax.vjp(function, vectors)
        return value, pull(cotangent)

    return run


def cases(config: Config) -> Iterator[Case]:
    """Yields one case for each size and mode; inputs are fixed random numbers."""
    import e3nn_jax as e3nn

    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(config.batch, 3)), jnp.float32)
    for l in config.degrees:
        contenders: dict[str, Any] = {
            "ours": lambda v, l=l: spherical_harmonics(v, l),
            "e3nn-jax": lambda v, l=l: e3nn.spherical_harmonics(e3nn.s2_irreps(l), v, normalize=True).array,
        }
        yield Case(f"harmonics, L={l}, forward", contenders, (vectors,), reference="e3nn-jax", tolerance=2e-4)
        cotangent = jnp.asarray(rng.normal(size=(config.batch, (l + 1) ** 2)), jnp.float32)
        both = {name: _with_cotangent(function) for name, function in contenders.items()}
        yield Case(
            f"harmonics, L={l}, forward+backward", both, (vectors, cotangent), reference="e3nn-jax", tolerance=2e-4
        )
