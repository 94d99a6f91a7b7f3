r"""Measures what affine layers promise, without training: `lie.laws`.

Coordinates: reconstruction of random matrices, the share that has no real logarithm, gradients where formulas
degenerate. Haar measure: quadrature of a function and of the moved function, polar against Iwasawa coordinates,
weighted and unweighted Monte Carlo. Lifting: the law on analytic images, read at transformed positions and not
interpolated, for the published grid and for larger ones. Group convolution: error against the number of samples.

One variant for each group. Seeds draw the matrices, kernels and samples anew. The largest matrices of a Gaussian are
nearly singular, where no rounding in float32 could give 1e-5 of a matrix's inverse; those with a condition number
above 1,000 (below 1 %) are left out.

Command: `python -m experiments lie.laws cpu --seeds 0 1 2 --variants all`. Numbers reached, hardware and time stand in
`experiments/results`, written by the run.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax import lie
from equivariant_jax.core.typing import Array
from experiments.claims import Claims
from experiments.lie.quadrature import SHIFTS, bump, iwasawa_integral, polar_integral
from experiments.results import seed_values
from experiments.tables import markdown

__all__ = ["CARD", "PRESETS", "VARIANTS", "Config", "blobs", "claims", "elements", "lifting_error", "run", "tables"]

CARD = "lie_group_decompositions"
VARIANTS: dict[str, dict[str, Any]] = {"SL2": {}, "GL2": {"group": "GL2"}}
_GROUPS = {"SL2": lie.SL2, "GL2": lie.GL2}
_METHODS: tuple[Literal["random", "stratified", "quasi"], ...] = ("random", "stratified", "quasi")
_DTYPES = {"float32": 1e-5, "float64": 1e-12}
# Samples per unit box and half side of the box: the published layout, a finer one, a wider one, and two as wide as
# the largest stretch.
_GRIDS = {"published": (5, 1.0), "fine": (17, 1.0), "wide": (17, 2.0), "fitted": (17, None), "dense": (33, None)}


@dataclasses.dataclass(frozen=True)
class Config:
    """One measurement.

    Attributes:
      group: "SL2" or "GL2"; matrices of n = 3 have determinant one, or any positive one, likewise.
      matrices: of each kind.
      radii: points of the quadrature in the radius.
      angles: its directions, and its rotations.
      log_scales: points of the quadrature in the scale, for "GL2".
      batches: Monte Carlo estimates of 512 samples each.
      elements: pairs (g, h) of the lifting's law.
      sizes: numbers of samples of the group convolution.
      repeats: sets of samples of each size.
      dense: samples of the reference.
      seed: of everything drawn.
    """

    group: Literal["SL2", "GL2"] = "SL2"
    matrices: int = 100_000
    radii: int = 200
    angles: int = 64
    log_scales: int = 64
    batches: int = 128
    elements: int = 64
    sizes: tuple[int, ...] = (16, 64, 256, 1024)
    repeats: int = 48
    dense: int = 50_000
    seed: int = 0


PRESETS: dict[str, Config] = {
    "ci": Config(
        matrices=500, radii=40, angles=16, log_scales=6, batches=8, elements=8, sizes=(16, 64), repeats=8, dense=2000
    ),
    "cpu": Config(),
    "paper": Config(matrices=1_000_000, elements=512, repeats=256, sizes=(4, 10, 16, 20, 64, 256, 1024)),
}


def _gaussian(rng: np.random.Generator, number: int, n: int, *, volume: bool) -> np.ndarray:
    """Matrices of positive determinant, or one, float64 `[number, n, n]`."""
    a = rng.normal(size=(number, n, n))
    a[:, 0] *= np.sign(np.linalg.det(a))[:, None]
    return a / np.linalg.det(a)[:, None, None] ** (1 / n) if volume else a


def _coordinates(config: Config) -> dict[str, float]:
    rng, found = np.random.default_rng(config.seed), {}

    @jax.jit
    def again(a):
        x, r = lie.polar_log(a)
        return lie.polar_exp(x, lie.rotation_log(r))

    @jax.jit
    def slope(a):
        def value(a):
            x, r = lie.polar_log(a)
            density = lie.haar_log_density_polar(x)
            return jnp.sum(x) + jnp.sum(r) + jnp.sum(lie.rotation_log(r)) + jnp.sum(lie.iwasawa(a).unipotent) + density

        return jax.grad(value)(a)

    degenerate = (np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.diag([2.0, 2.0, 0.5]), 2 * np.eye(3))
    for n in (2, 3):
        matrices = _gaussian(rng, config.matrices, n, volume=config.group == "SL2")
        kept = matrices[np.linalg.cond(matrices) < 1e3]
        for dtype in _DTYPES:
            a = jnp.asarray(kept, dtype)
            error = jnp.linalg.norm(again(a) - a, axis=(1, 2)) / jnp.linalg.norm(a, axis=(1, 2))
            found[f"coordinates/n={n}/{dtype}"] = float(jnp.max(error))
            finite = [bool(jnp.all(jnp.isfinite(slope(jnp.asarray(d[:n, :n], dtype))))) for d in degenerate]
            found[f"finite_gradients/n={n}/{dtype}"] = float(all(finite))
        found[f"kept/n={n}"] = len(kept) / len(matrices)
        if n == 2:
            # A real logarithm is lacking where both eigenvalues are negative and differ (Culver 1966).
            values = np.linalg.eigvals(matrices)
            without = (np.abs(values.imag) < 1e-12).all(axis=1) & (values.real < 0).any(axis=1)
            found["no_real_logarithm"] = float(without.mean())
    return found


def _haar(config: Config) -> dict[str, float]:
    group = _GROUPS[config.group]
    shape = np.eye(2) + 0.2 * np.random.default_rng(config.seed).normal(size=(2, 2))
    scales, reach = (None, 3.2) if group.preserves_volume else (np.linspace(-3.0, 1.8, config.log_scales), 5.0)

    def around(centre: np.ndarray) -> Callable[[Array], Array]:
        # The measure of matrices with small determinants is infinite: there a function has to vanish.
        near = bump(centre)
        power = 0 if group.preserves_volume else 4
        return lambda g: near(g) * (g[..., 0, 0] * g[..., 1, 1] - g[..., 0, 1] * g[..., 1, 0]) ** power

    def moved(f: Callable[[Array], Array], name: str) -> Callable[[Array], Array]:
        inverse = jnp.asarray(np.linalg.inv(SHIFTS[name]))
        return lambda g: f(jnp.einsum("ij,...jk->...ik", inverse.astype(g.dtype), g))

    # Invariance for a function somewhere; what a missing weight does, for one at the identity as in the card.
    somewhere, here = around(shape / np.linalg.det(shape) ** 0.5), around(np.eye(2))
    integral = functools.partial(
        polar_integral, points=(config.radii, config.angles, config.angles), reach=reach, log_scales=scales
    )
    exact = {name: integral(moved(somewhere, name)) for name in SHIFTS}
    plain = {name: integral(moved(here, name), weighted=False) for name in SHIFTS}
    found = {f"haar/quadrature/{name}": abs(exact[name] / exact["identity"] - 1) for name in SHIFTS}
    found |= {f"haar/unweighted/{name}": abs(plain[name] / plain["identity"] - 1) for name in SHIFTS}
    if group.preserves_volume:
        functions = [somewhere, here, around(np.array([[0.5, -1.0], [1.0, 0.3]]))]
        ratios = np.asarray([integral(g) / iwasawa_integral(g) for g in functions])
        found["haar/polar_over_iwasawa_spread"] = float(ratios.max() / ratios.min() - 1)

    for method in _METHODS:
        for weighted in (True, False):

            @jax.jit
            def gap(key, method: Literal["random", "stratified", "quasi"] = method, weighted: bool = weighted):
                samples = lie.sample_polar(key, 512, group, scale=0.7, method=method, dtype="float64")
                w = samples.weights if weighted else jnp.full_like(samples.log_weight, 1 / 512)
                values = [jnp.sum(moved(here, name)(samples.matrix) * w) for name in ("identity", "shear", "stretch")]
                return jnp.stack(values[1:]) - values[0]

            keys = jax.random.split(jax.random.key(config.seed), config.batches)
            gaps = np.asarray(jax.lax.map(gap, keys))
            errors = np.abs(gaps.mean(0)) / (gaps.std(0, ddof=1) / math.sqrt(len(gaps)))
            found[f"haar/monte_carlo/{method}/{'weighted' if weighted else 'unweighted'}"] = float(errors.max())
    return found


def elements(
    group: lie.LinearGroup, number: int, *, stretch: float = 0.35, seed: int = 0, dtype="float64"
) -> lie.GroupSamples:
    """Draws group elements with all rotations, as samples without weights; matrices `[number, 2, 2]`."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(number, group.num_stretches)) * stretch
    angle = rng.uniform(-math.pi, math.pi, size=(number, group.num_rotations))
    x = lie.stretch_matrix(jnp.asarray(y, dtype), group)
    theta = jnp.asarray(angle if group.rotation else np.zeros((number, 1)), dtype)
    matrix = lie.polar_exp(x, theta)
    return lie.GroupSamples(matrix, jnp.linalg.inv(matrix), jnp.zeros(number, dtype))


def blobs(u: np.ndarray) -> np.ndarray:
    """A smooth image at positions `[..., 2]`."""
    centres, widths = np.array([[0.2, -0.1], [-0.3, 0.25], [0.05, 0.4]]), np.array([0.35, 0.25, 0.3])
    heights = np.array([1.0, -0.7, 0.6])
    square = np.sum((u[..., None, :] - centres) ** 2, axis=-1)
    return np.sum(heights * np.exp(-square / (2 * widths**2)), axis=-1)


def lifting_error(
    group: lie.LinearGroup,
    size: int,
    reach: float | None,
    *,
    window: Literal["disc", "bump", "logistic", "none"] = "bump",
    number: int = 64,
    seed: int = 0,
) -> float:
    """Relative L2 difference of `F_{L_g f}(0, h)` and `F_f(0, g^-1 h)`; images are read, not interpolated.

    Args:
      group: H.
      size: pixels across the unit box.
      reach: half side of the kernel's grid; None for the largest stretch among all kernels.
      window: of the kernel.
      number: pairs (g, h).
      seed: of kernel and pairs.

    Returns:
      The error.
    """
    g, h = elements(group, number, seed=2 * seed + 1), elements(group, number, seed=2 * seed + 2)
    back = jnp.einsum("sij,sjk->sik", g.inverse, h.matrix)
    moved = lie.GroupSamples(back, jnp.linalg.inv(back), g.log_weight)
    if reach is None:
        reach = float(np.linalg.norm(np.concatenate([h.matrix, back]), 2, axis=(1, 2)).max())
    config = lie.AffineKernelConfig(group, size=size, reach=reach, window=window)
    params = lie.affine_kernel_init(jax.random.key(seed), config, 1, 8, lifting=True, dtype="float64")
    grid = np.asarray(lie.kernel_grid(config, dtype="float64"))

    @functools.partial(jax.vmap, in_axes=(0, 0))
    def at_zero(image, sample):
        return lie.lift_conv(params, image[..., None], sample, config, padding="valid")[0, 0, 0]

    one, other = (jax.tree.map(lambda leaf: leaf[:, None], s) for s in (h, moved))
    images = jnp.asarray(np.stack([blobs(grid @ np.asarray(m).T) for m in g.inverse]))
    left = at_zero(images, one)
    right = at_zero(jnp.broadcast_to(jnp.asarray(blobs(grid))[None], images.shape), other)
    return float(jnp.linalg.norm(left - right) / jnp.linalg.norm(right))


def _convergence(config: Config) -> dict[str, float]:
    """Error of a group convolution of functions on the group (kernels of one pixel) against the number of samples."""
    group = _GROUPS[config.group]
    kernel = lie.AffineKernelConfig(group, size=1, window="none", hidden=(16, 16), group_radius=1.6, frequency=3.0)
    params = lie.affine_kernel_init(jax.random.key(config.seed), kernel, 2, 4, dtype="float64")
    out = elements(group, 4, stretch=0.2, seed=5 + config.seed)

    def feature(v):
        square = jnp.sum(jnp.square(v - jnp.eye(2)[None]), axis=(-1, -2))
        return jnp.stack([jnp.exp(-2 * square), jnp.exp(-1.5 * square) * v[..., 0, 1]], axis=-1)

    def value(key, number, method):
        samples = lie.sample_polar(key, number, group, scale=0.75, method=method, dtype="float64")
        return lie.affine_group_conv(params, feature(samples.matrix)[None, None], samples, out, kernel)

    key_exact, key_sets = jax.random.split(jax.random.key(config.seed))
    exact = jax.jit(lambda key: value(key, config.dense, "quasi"))(key_exact)
    keys, found = jax.random.split(key_sets, config.repeats), {}
    for method in _METHODS:
        for number in config.sizes:
            sets = jax.jit(jax.vmap(lambda key, s=number, m=method: value(key, s, m)))(keys)
            error = jnp.sqrt(jnp.mean((sets - exact[None]) ** 2) / jnp.mean(exact**2))
            found[f"error/{method}/{number:04d}"] = float(error)
        errors = [found[f"error/{method}/{number:04d}"] for number in config.sizes]
        found[f"slope/{method}"] = float(np.polyfit(np.log(config.sizes), np.log(errors), 1)[0])
    return found


def run(config: Config, workdir: str | Path) -> dict[str, float]:
    """Measures all laws of one group.

    Args:
      config: the measurement.
      workdir: not written to.

    Returns:
      Flat dict of floats: `coordinates/n=N/DTYPE` (largest relative error), `no_real_logarithm` (share), `haar/...`
      (relative changes of integrals, or for `monte_carlo` differences in standard errors), `lifting/GRID` (relative
      error), `error/METHOD/SAMPLES` and `slope/METHOD`.
    """
    del workdir
    with jax.enable_x64(True):
        found = _coordinates(config) | _haar(config) | _convergence(config)
        for name, (size, reach) in _GRIDS.items():
            found[f"lifting/{name}"] = lifting_error(
                _GROUPS[config.group], size, reach, number=config.elements, seed=config.seed
            )
    return found


def claims(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluates points 1 to 4 of the card, each by its worst seed.

    Args:
      metrics: variant -> metric -> {"values": one per seed}.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for group, table in metrics.items():
        worst = {name: seed_values(table, name).max() for name in table}
        least = {name: seed_values(table, name).min() for name in table}
        for n in (2, 3):
            for dtype, bar in _DTYPES.items():
                case = f"n = {n}, {dtype}"
                error = worst[f"coordinates/n={n}/{dtype}"]
                claim.at_most(1, f"{group}: error of exp(X) exp(Theta), {case}", bar, error)
                finite = least[f"finite_gradients/n={n}/{dtype}"]
                claim.at_least(1, f"{group}: gradients finite at degenerate matrices, {case}", 1.0, finite)
        statement = f"{group}: share of Gaussian matrices without a real logarithm, all of them covered"
        claim.at_least(1, statement, 0.2, least["no_real_logarithm"])
        moves = [name for name in SHIFTS if name != "identity"]
        change = max(worst[f"haar/quadrature/{name}"] for name in moves)
        claim.at_most(2, f"{group}: change of a Haar integral when its function is moved", 1e-8, change)
        for name, bar in (("shear", 0.01), ("stretch", 0.05)):
            claim.at_least(2, f"{group}: the same without weights, {name}", bar, least[f"haar/unweighted/{name}"])
        if "haar/polar_over_iwasawa_spread" in worst:
            spread = worst["haar/polar_over_iwasawa_spread"]
            claim.at_most(2, f"{group}: spread over functions of polar over Iwasawa integrals", 1e-6, spread)
        for method in _METHODS:
            name, what = f"haar/monte_carlo/{method}", "function against moved function, standard errors"
            claim.at_most(2, f"{group}: {method} weighted sums, {what}", 4.0, worst[f"{name}/weighted"])
            claim.at_least(2, f"{group}: {method} plain sums, {what}", 4.0, least[f"{name}/unweighted"])
        text = f"{group}: error of the lifting's law on analytic images, 17 samples per unit box"
        why = "too few samples for the strongest squeeze: a larger box changes nothing, more samples do"
        claim.at_most(3, f"{text}, box [-2, 2]^2", 0.01, worst["lifting/wide"], why=why)
        claim.at_most(3, f"{text}, box as large as the largest stretch", 0.01, worst["lifting/fitted"], why=why)
        text = text.replace("17", "33")
        claim.at_most(3, f"{text}, box as large as the largest stretch", 0.01, worst["lifting/dense"])
        ratio = least["lifting/published"] / worst["lifting/fitted"]
        claim.at_least(3, f"{group}: error on the published grid over that on 17 samples, large box", 2.0, ratio)
        statement = f"{group}: slope of the error in the number of random samples"
        claim.at_least(4, statement, -0.6, least["slope/random"])
        claim.at_most(4, statement, -0.4, worst["slope/random"])
        last = max(name for name in table if name.startswith("error/random/")).rpartition("/")[2]
        for method in ("quasi", "stratified"):
            ratio = seed_values(table, f"error/{method}/{last}") / seed_values(table, f"error/random/{last}")
            statement = f"{group}: error of {method} samples over random ones, {int(last)} samples"
            claim.at_most(4, statement, 1.0, ratio.max())
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes two tables: errors of laws, and error against the number of samples.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    result = found.get("lie.laws.cpu")
    if result is None:
        return {}
    groups = result["metrics"]

    def worst(name: str) -> list[str]:
        return [f"{np.max(table[name]['values']):.1e}" if name in table else "-" for table in groups.values()]

    rows = {
        "`exp(X) exp(Theta)` against the matrix, n = 2, float32": "coordinates/n=2/float32",
        "the same, n = 3, float64": "coordinates/n=3/float64",
        "share of matrices without a real logarithm": "no_real_logarithm",
        "Haar integral, function stretched": "haar/quadrature/stretch",
        "the same without weights": "haar/unweighted/stretch",
        "lifting, published grid (5 x 5, unit box)": "lifting/published",
        "lifting, 17 x 17, unit box": "lifting/fine",
        "lifting, 17 samples per unit box, twice the box": "lifting/wide",
        "lifting, 17 samples per unit box, box as large as the largest stretch": "lifting/fitted",
        "lifting, 33 samples per unit box, box as large as the largest stretch": "lifting/dense",
    }
    laws = markdown(("relative error, worst seed", *groups), ((text, *worst(name)) for text, name in rows.items()))
    sizes = sorted({name.rpartition("/")[2] for name in next(iter(groups.values())) if name.startswith("error/")})
    error = markdown(
        ("group", "samples drawn", *(f"S = {int(s)}" for s in sizes), "slope"),
        (
            (
                group, method, *(f"{table[f'error/{method}/{s}']['mean']:.2g}" for s in sizes),
                f"{table[f'slope/{method}']['mean']:.2f}",
            )
            for group, table in groups.items()
            for method in _METHODS
        ),
    )  # fmt: skip
    return {"lie.laws": laws, "lie.laws.samples": error}
