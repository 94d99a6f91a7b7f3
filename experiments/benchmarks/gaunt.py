"""Gaunt tensor products beside everything that computes them today: `benchmarks.gaunt`.

Ours (every route, and "auto") against `e3nn_jax.tensor_product` (all Clebsch-Gordan paths: more outputs), e3nn-jax's
`to_s2grid * from_s2grid`, a Gauss-grid matrix product left to XLA's autodiff, a Lebedev-grid matrix product (what the
product of InstaDeep's `mlip` does, on better points than its spherical designs), the paper's algorithm with complex
FFTs, and `mlip`'s and `e3j`'s own layers where these packages are installed. float32, steady state, results of full
degree 2 L; forward, forward with both cotangents, and a second derivative.

For the speed of one core: `taskset -c 0 python -m experiments benchmarks.gaunt cpu`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.sphere import legendre_table, sphere_table
from equivariant_jax.euclidean import gaunt_tensor_product, sphere_quadrature
from experiments.benchmarks.harness import Case
from experiments.claims import Claims
from experiments.tables import markdown, ratio_cells

__all__ = ["CARD", "PRESETS", "Config", "cases", "claims", "plots", "tables"]

CARD = "gaunt_tensor_product"
OURS, TENSOR_PRODUCT, SPHERE_GRID = "ours", "e3nn-jax tensor_product", "e3nn-jax sphere grid"
NAIVE, LEBEDEV, FOURIER = "Gauss grid, XLA autodiff", "Lebedev matmul", "complex FFT (paper's algorithm)"
MLIP, E3J = "mlip GauntTensorProduct", "e3j TensorProduct"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      degrees: values of L.
      batch: products at once.
      modes: of "forward", "forward+backward", "double backward".
      tensor_product_degree: largest L for e3nn's tensor product, which compiles for minutes above 6.
      fourier_degree: largest L for the paper's algorithm.
      routes: also time every route of ours, not only the chosen one.
      batches: further batch sizes, at L = 4.
      channels: further channel counts, at L = 4, with one filter shared by all channels.
    """

    degrees: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    batch: int = 1024
    modes: tuple[str, ...] = ("forward", "forward+backward", "double backward")
    tensor_product_degree: int = 8
    fourier_degree: int = 8
    routes: bool = True
    batches: tuple[int, ...] = (1, 64, 16384)
    channels: tuple[int, ...] = (1, 16, 128)


PRESETS = {
    "ci": Config(
        degrees=(1, 2), batch=64, modes=("forward", "forward+backward"), tensor_product_degree=1, fourier_degree=1,
        batches=(), channels=(4,),
    ),
    "cpu": Config(),
    "paper": Config(degrees=(1, 2, 3, 4, 6, 8, 10, 12, 14, 16), batches=(1, 32, 128, 1024, 10_000)),
}  # fmt: skip


def _modes(config: Config, contenders: Mapping[str, Callable]) -> Iterator[tuple[str, dict[str, Callable]]]:
    # Cotangents are arguments: a constant could be folded into the program.
    def backward(function):
        def run(x, y, ct):
            value, pull = jax.vjp(function, x, y)
            return value, pull(ct[..., : value.shape[-1]])

        return run

    def double(function):
        def run(x, y, ct):
            def slope(x, y):
                return jnp.sum(jax.grad(lambda x: jnp.vdot(jnp.tanh(function(x, y)), ct, precision="highest"))(x) ** 2)

            return jax.grad(slope, argnums=(0, 1))(x, y)

        return run

    for mode in config.modes:
        make = {"forward": lambda f: lambda x, y, ct: f(x, y), "forward+backward": backward, "double backward": double}
        yield mode, {name: make[mode](function) for name, function in contenders.items()}


@functools.cache
def _dense(l: int, kind: Any) -> tuple[np.ndarray, np.ndarray]:
    rule = sphere_quadrature(4 * l, kind)
    table = sphere_table(rule.points, 2 * l)
    return (
        table[:, : (l + 1) ** 2].T.astype(np.float32),
        (table * rule.weights[:, None]).astype(np.float32),
    )


def _matmul_product(l: int, kind: str, precision: str) -> Callable:
    values, projection = _dense(l, kind)

    def product(x, y):
        fields = [jnp.matmul(v, values, precision=precision) for v in (x, y)]
        return jnp.matmul(fields[0] * fields[1], projection, precision=precision)

    return product


@functools.cache
def _fourier_constants(l: int) -> tuple[np.ndarray, np.ndarray]:
    # The paper's dense complex arrays: [N(L), u, v] of the series, and [u, v, N(2 L)] of the way back.
    def series(lmax: int) -> np.ndarray:
        count = 2 * lmax + 1
        theta = 2 * np.pi * np.arange(count) / count
        legendre = legendre_table(np.cos(theta), lmax)
        out = np.zeros(((lmax + 1) ** 2, count, count), complex)
        for degree in range(lmax + 1):
            for m in range(degree + 1):
                spectrum = np.fft.fftshift(np.fft.fft(np.sin(theta) ** m * legendre[degree, m])) / count
                k = degree * degree + degree
                if m == 0:
                    out[k, :, lmax] = spectrum
                    continue
                out[k + m, :, lmax + m] = out[k + m, :, lmax - m] = spectrum / np.sqrt(2)
                out[k - m, :, lmax + m], out[k - m, :, lmax - m] = (
                    spectrum / (1j * np.sqrt(2)),
                    -spectrum / (1j * np.sqrt(2)),
                )
        return out

    top = 2 * l
    u = np.arange(-top, top + 1)
    n = u[:, None] + u[None, :]
    even = n % 2 == 0
    # int_0^pi e^{in th} sin(th) dth
    half = np.where(even, 2 / np.where(even, 1 - n.astype(float) ** 2, 1), 0) + 0j
    half = half + np.where(n == 1, 0.5j * np.pi, 0) - np.where(n == -1, 0.5j * np.pi, 0)
    back = 2 * np.pi * np.einsum("uw,kwv->uvk", half, series(top)[:, :, ::-1])
    return series(l).astype(np.complex64), back.astype(np.complex64)


def _fourier_product(l: int) -> Callable:
    values, projection = _fourier_constants(l)
    size = 4 * l + 1

    def product(x, y):
        spectra = [
            jnp.fft.fft2(jnp.einsum("bk,kuv->buv", v.astype("complex64"), values, precision="highest"), s=(size, size))
            for v in (x, y)
        ]
        series = jnp.fft.ifft2(spectra[0] * spectra[1])
        return jnp.real(jnp.einsum("buv,uvk->bk", series, projection, precision="highest"))

    return product


def _e3nn_products(l: int, config: Config) -> dict[str, Callable]:
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(l)
    # The coarsest grid that is exact for degree 4 L; e3nn wants an even number of polar angles.
    polar, azimuth = 2 * l + 2, 4 * l + 1

    def grid(x, y):
        def signal(v):
            return e3nn.to_s2grid(e3nn.IrrepsArray(irreps, v), polar, azimuth, quadrature="gausslegendre", fft=False)

        # e3nn's signals carry factors that make the product sqrt(4 pi) too large.
        product = signal(x * np.asarray(1 / np.sqrt(4 * np.pi), x.dtype)) * signal(y)
        return e3nn.from_s2grid(product, e3nn.s2_irreps(2 * l), fft=False).array

    def coupled(x, y):
        return e3nn.tensor_product(e3nn.IrrepsArray(irreps, x), e3nn.IrrepsArray(irreps, y)).array

    found = {SPHERE_GRID: grid}
    if l <= config.tensor_product_degree:
        found[TENSOR_PRODUCT] = coupled
    return found


def _installed_peers(l: int, config: Config) -> dict[str, Callable]:
    """Products of packages that are not dependencies of this project, where they are installed and reach the degree."""
    import e3nn_jax as e3nn

    found: dict[str, Callable] = {}
    try:
        from mlip.models.gaunt_tensor_product import GauntTensorProduct  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        irreps = str(e3nn.s2_irreps(l))
        try:
            theirs = GauntTensorProduct((irreps, irreps), str(e3nn.s2_irreps(2 * l)))
        except Exception as error:  # their spherical designs end at degree 16
            print(f"mlip at L={l}: {type(error).__name__}: {error}")
        else:
            found[MLIP] = lambda x, y: theirs(e3nn.IrrepsArray(irreps, x), e3nn.IrrepsArray(irreps, y)).array
    try:
        import e3j  # type: ignore[import-not-found]
    except ImportError:
        return found
    if l > min(4, config.tensor_product_degree):
        return found
    irreps = str(e3nn.s2_irreps(l))
    module = e3j.core.TensorProduct((irreps, irreps), None, mode="MAP", layout="TRAILING_CHANNELS")
    found[E3J] = module
    return found


def _routes(l: int) -> dict[str, Callable]:
    names: list[Any] = ["grid", "quadrant", "octant", "separable"]
    names = (["sparse"] if l <= 2 else []) + names + (["fourier"] if l <= 8 else [])
    return {f"ours ({m})": lambda x, y, m=m: gaunt_tensor_product(x, y, method=m) for m in names}


def cases(config: Config) -> Iterator[Case]:
    """Yields one case for each size and mode; inputs are fixed random numbers."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    for l in config.degrees:
        n, top = (l + 1) ** 2, (2 * l + 1) ** 2
        contenders: dict[str, Callable] = {OURS: gaunt_tensor_product}
        contenders |= _routes(l) if config.routes else {}
        contenders |= {
            NAIVE: _matmul_product(l, "gauss", "highest"),
            LEBEDEV: _matmul_product(l, "lebedev", "highest"),
        }
        contenders |= _e3nn_products(l, config) | _installed_peers(l, config)
        if l <= config.fourier_degree:
            contenders[FOURIER] = _fourier_product(l)
        arguments = (normal(config.batch, n), normal(config.batch, n), normal(config.batch, top))
        for mode, functions in _modes(config, contenders):
            if mode == "double backward":
                # Other outputs, so another cotangent: leave e3nn's products of all paths out.
                functions = {k: v for k, v in functions.items() if k not in (TENSOR_PRODUCT, E3J, MLIP)}
                yield Case(f"L={l}, {mode}", functions, arguments, reference=LEBEDEV, tolerance=2e-3)
                continue
            wide = (*arguments[:2], normal(config.batch, _paths(l)))
            # e3j is fastest with the batch as the last axis.
            special = {TENSOR_PRODUCT: wide, E3J: tuple(v.T for v in wide)}
            per_name: Any = {k: special.get(k, arguments) for k in functions}
            yield Case(
                f"L={l}, {mode}", functions, per_name, reference=LEBEDEV, tolerance=1e-4,
                different=(TENSOR_PRODUCT, E3J, MLIP),
            )  # fmt: skip
    for batch in config.batches:
        arguments = (normal(batch, 25), normal(batch, 25), normal(batch, 81))
        contenders = {OURS: gaunt_tensor_product, LEBEDEV: _matmul_product(4, "lebedev", "highest")}
        contenders |= {SPHERE_GRID: _e3nn_products(4, config)[SPHERE_GRID]}
        for mode, functions in _modes(dataclasses.replace(config, modes=config.modes[:2]), contenders):
            yield Case(f"L=4, batch {batch}, {mode}", functions, arguments, reference=LEBEDEV)
    for channels in config.channels:
        arguments = (normal(64, channels, 25), normal(64, 1, 25), normal(64, channels, 81))
        contenders = {OURS: gaunt_tensor_product, LEBEDEV: _matmul_product(4, "lebedev", "highest")}
        for mode, functions in _modes(dataclasses.replace(config, modes=config.modes[:2]), contenders):
            yield Case(f"L=4, 64 x {channels} channels, one filter, {mode}", functions, arguments, reference=LEBEDEV)


def _paths(l: int) -> int:
    # Numbers in the output of e3nn's tensor product: every path has its own block.
    return sum(2 * c + 1 for a in range(l + 1) for b in range(l + 1) for c in range(abs(a - b), a + b + 1))


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates the card's bars on the rows that were measured.

    Args:
      rows: of the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    by_case = {row["case"]: row for row in rows}
    claim = Claims(CARD)

    def at_least(l: int, mode: str, peer: str, bar: float) -> None:
        ratio = by_case.get(f"L={l}, {mode}", {}).get("ratios", {}).get(peer)
        if ratio is not None:
            claim.at_least("3 speed", f"{peer} over ours, L={l}, {mode}", bar, ratio)

    for l, bar in ((4, 4), (6, 8), (8, 15)):
        at_least(l, "forward", TENSOR_PRODUCT, bar)
    for l, bar in ((4, 5), (6, 15), (8, 25)):
        at_least(l, "forward+backward", TENSOR_PRODUCT, bar)
    for l in (4, 6, 8):
        at_least(l, "forward", SPHERE_GRID, 2.3)
    for l, bar in ((4, 1.2), (8, 1.4), (12, 2), (16, 2)):
        at_least(l, "forward", LEBEDEV, bar)
    at_least(4, "forward", MLIP, 1.2)
    for l in (4, 6, 8):
        at_least(l, "forward", FOURIER, 14)
    large, small = by_case.get("L=16, forward"), by_case.get("L=8, forward")
    if large and small:
        claim.at_most("4 growth", "time(L=16) / time(L=8)", 8.0, large["ours_ms"] / small["ours_ms"])
    if small:
        claim.at_most("3 speed", "trace and compile at L=8, seconds", 2.0, small["compile_s"])
    both = by_case.get("L=8, forward+backward")
    if both:
        memory = both["contenders"][OURS]["temporary_mbyte"]
        claim.at_most("5 memory", "temporaries of forward+backward at L=8, MB", 4.4, memory)
    return claim.found


def _sweep(rows: Sequence[Mapping[str, Any]], mode: str) -> dict[int, Mapping[str, Any]]:
    found = {}
    for row in rows:
        words = row["case"].split(", ")
        if len(words) == 2 and words[1] == mode:
            found[int(words[0].removeprefix("L="))] = row
    return found


PEERS = (TENSOR_PRODUCT, SPHERE_GRID, NAIVE, LEBEDEV, MLIP, E3J, FOURIER)


def tables(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Makes README's table of the sweep over degrees.

    Args:
      found: results by file stem.

    Returns:
      Marker name -> Markdown.
    """
    heads = ("L", "mode", "ours (ms)", *PEERS, "compile (s)", "temporaries (MB)")
    parts = []
    for stem, result in found.items():
        if result["preset"] == "ci":
            continue
        cores = result["device"]["cpu_cores"]
        rows = (
            (
                str(l), mode, f"{row['ours_ms']:.3g}", *ratio_cells(row, PEERS, missing=""), f"{row['compile_s']:.2g}",
                f"{row['contenders'][OURS]['temporary_mbyte']:.2g}",
            )
            for mode in result["config"]["modes"]
            for l, row in _sweep(result["rows"], mode).items()
        )  # fmt: skip
        parts.append(
            f"`{stem}`: {result['device']['kind']}, {cores} core{'s' if cores > 1 else ''}, batch "
            f"{result['config']['batch']}, float32. Peers in times ours.\n\n{markdown(heads, rows)}"
        )
    return {"benchmarks.gaunt": "\n\n".join(parts)}


def plots(found: Mapping[str, Mapping[str, Any]], directory: Path) -> None:
    """Draws time against degree, one curve for each contender.

    Args:
      found: results by file stem.
      directory: gets `benchmarks.gaunt.svg`.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    result = found.get("benchmarks.gaunt.cpu") or next(iter(found.values()))
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks.gaunt"
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, mode in zip(axes, ("forward", "forward+backward"), strict=True):
        sweep = _sweep(result["rows"], mode)
        for name in (OURS, *PEERS):
            points = [(l, row["contenders"][name]["ms"]) for l, row in sweep.items() if name in row["contenders"]]
            if points:
                style: Any = {"color": "black", "linewidth": 2.5} if name == OURS else {"marker": "o", "markersize": 3}
                axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set(xlabel="degree L", title=mode, xscale="log", yscale="log")
        axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"ms for {result['config']['batch']} products")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(directory / "benchmarks.gaunt.svg", metadata={"Date": None})
    pyplot.close(figure)
