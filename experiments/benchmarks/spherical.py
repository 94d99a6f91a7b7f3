"""Spherical harmonics and the Gaunt product on a grid, beside e3nn-jax.

Ours against `e3nn_jax.spherical_harmonics`, `e3nn_jax.tensor_product` (all Clebsch-Gordan paths: more outputs than one
block for each degree, see the contenders' FLOPs) and e3nn-jax's own sphere grid. float32, steady state; forward, and
forward with the gradient of a weighted sum.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.euclidean import gaunt_tensor_product, spherical_harmonics
from experiments.benchmarks.harness import Case

__all__ = ["PRESETS", "Config", "cases"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      batch: vectors or products.
      degrees: values of L for the product.
      harmonic_degrees: values of lmax for the harmonics.
      gradient: also measure forward and backward together.
      tensor_product_degree: largest L for e3nn's tensor product, whose compilation takes minutes above 6.
    """

    batch: int = 1024
    degrees: tuple[int, ...] = (1, 2, 4)
    harmonic_degrees: tuple[int, ...] = (2, 4, 8)
    gradient: bool = True
    tensor_product_degree: int = 4


PRESETS = {
    "ci": Config(batch=64, degrees=(1,), harmonic_degrees=(2,), tensor_product_degree=1),
    "cpu": Config(),
    "paper": Config(degrees=(1, 2, 4, 6, 8), harmonic_degrees=(2, 4, 8, 11), tensor_product_degree=6),
}


def _with_gradient(function: Callable) -> Callable:
    def loss(*args):
        # Fixed weights: the plain sum of squares of harmonics is constant, and its gradient nothing but rounding.
        out = function(*args)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return lambda *args: jax.value_and_grad(loss, argnums=tuple(range(len(args))))(*args)


def _modes(config: Config, contenders: dict[str, Callable]) -> Iterator[tuple[str, dict[str, Callable]]]:
    yield "forward", contenders
    if config.gradient:
        yield "forward+backward", {name: _with_gradient(f) for name, f in contenders.items()}


def _product_contenders(l: int, config: Config) -> dict[str, Callable]:
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(l)
    # e3nn's grid needs a resolution that integrates degree 4 l; the quadrature then is exact, up to its factor.
    points = 2 * (2 * l + 1)

    def grid(x, y):
        def signal(v):
            return e3nn.to_s2grid(
                e3nn.IrrepsArray(irreps, v), points, points - 1, quadrature="gausslegendre", fft=False
            )

        product = signal(x) * signal(y)
        out = e3nn.from_s2grid(product, e3nn.s2_irreps(2 * l), fft=False).array
        return out / np.asarray(np.sqrt(4 * np.pi), x.dtype)

    def coupled(x, y):
        return e3nn.tensor_product(e3nn.IrrepsArray(irreps, x), e3nn.IrrepsArray(irreps, y)).array

    contenders: dict[str, Callable] = {"ours": gaunt_tensor_product, "e3nn-jax sphere grid": grid}
    if l <= config.tensor_product_degree:
        contenders["e3nn-jax tensor_product"] = coupled
    return contenders


def cases(config: Config) -> Iterator[Case]:
    """Yields one case for each size and mode; inputs are fixed random numbers."""
    import e3nn_jax as e3nn

    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(config.batch, 3)), jnp.float32)
    for l in config.harmonic_degrees:
        contenders: dict[str, Any] = {
            "ours": lambda v, l=l: spherical_harmonics(v, l),
            "e3nn-jax": lambda v, l=l: e3nn.spherical_harmonics(e3nn.s2_irreps(l), v, normalize=True).array,
        }
        for mode, functions in _modes(config, contenders):
            yield Case(f"harmonics, L={l}, {mode}", functions, (vectors,), reference="e3nn-jax", tolerance=2e-4)
    for l in config.degrees:
        x, y = (jnp.asarray(rng.normal(size=(config.batch, (l + 1) ** 2)), jnp.float32) for _ in range(2))
        for mode, functions in _modes(config, _product_contenders(l, config)):
            yield Case(f"product, L={l}, {mode}", functions, (x, y))
