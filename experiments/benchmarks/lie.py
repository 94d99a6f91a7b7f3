"""One affine group convolution beside the published layout: `benchmarks.lie`.

float32, GL+(2), kernels of 5 x 5 pixels; weights are made from the sine network in every call, as training does. "full"
is our layer with a weight for every pair of samples, "published layout" the same sum in the order of the official code
(channels first, kernel `[C_out S_out, C_in S_in, k, k]`), compiled, and "PyTorch" that order as published, eager, where
torch is installed. "separable" is our default: another, smaller kernel.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.lie import (
    GL2,
    AffineKernelConfig,
    GroupSamples,
    affine_group_conv,
    affine_kernel_init,
    coordinates,
    kernel_grid,
    sample_polar,
)
from experiments.benchmarks.harness import Case, find_torch
from experiments.claims import Claims
from experiments.tables import markdown, ratio_cells

__all__ = ["PRESETS", "Config", "cases", "claims", "tables"]

CARD = "lie_group_decompositions"
OURS, FULL, LAYOUT, TORCH = "separable", "full", "published layout", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      batch: images.
      side: of the images in pixels.
      channels: of the features, in and out.
      samples: numbers of group elements.
    """

    batch: int = 8
    side: int = 20
    channels: int = 40
    samples: tuple[int, ...] = (4, 10, 20)


PRESETS = {
    "ci": Config(batch=1, side=6, channels=3, samples=(2,)),
    "cpu": Config(),
    # The published batch, on an accelerator.
    "paper": Config(batch=128, side=36),
}


def _kernel(separable: bool) -> AffineKernelConfig:
    return AffineKernelConfig(GL2, size=5, angles="principal", window="none", separable=separable)


def _published(params: Any, features: jax.Array, samples: GroupSamples, channels: int) -> jax.Array:
    """The full layer in the official order: relative coordinates, network, one convolution, channels first."""
    config, number = _kernel(False), samples.matrix.shape[0]
    values, weight = _points(samples, config)
    for depth, layer in enumerate(params["full"]):
        values = jnp.matmul(values, layer["kernel"], precision="highest") + layer["bias"].reshape((1,) * 4 + (-1,))
        values = jnp.sin(10 * values) if depth < len(params["full"]) - 1 else values
    values = values.reshape(*values.shape[:-1], channels, channels) * weight[None, None, None, :, None, None]
    kernel = jnp.transpose(values, (0, 5, 3, 4, 1, 2)).reshape(number * channels, number * channels, 5, 5)
    x = jnp.transpose(features, (0, 3, 4, 1, 2)).reshape(features.shape[0], -1, *features.shape[1:3])
    out = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", precision="highest")
    out = out.reshape(x.shape[0], number, channels, *x.shape[2:])
    return jnp.transpose(out, (0, 3, 4, 1, 2))


def _points(samples: GroupSamples, config: AffineKernelConfig) -> tuple[jax.Array, jax.Array]:
    """The network's inputs `[out, row, column, in, coordinates]`, and what each sample counts."""
    number = samples.matrix.shape[0]
    x = jnp.einsum("sij,yxj->syxi", samples.inverse, kernel_grid(config), precision="highest")
    h = coordinates(jnp.einsum("oij,sjk->osik", samples.inverse, samples.matrix, precision="highest"), config.group)
    shape = (number, config.side, config.side, number)
    x = jnp.broadcast_to(x[:, :, :, None], (*shape, 2))
    h = jnp.broadcast_to(h[:, None, None], (*shape, h.shape[-1]))
    weight = samples.weights * jnp.abs(jnp.linalg.det(samples.inverse)) / config.size**2
    return jnp.concatenate([x, h], axis=-1), weight


def _torch(params: Any, features: jax.Array, samples: GroupSamples, channels: int, gradient: bool) -> Any:
    """The official order in PyTorch, called from the compiled program with NumPy arrays."""
    torch: Any = importlib.import_module("torch")
    inputs, weight = _points(samples, _kernel(False))

    def step(layers, features, inputs, weight):
        number = weight.shape[0]
        tensors = [[torch.from_numpy(np.array(v)).requires_grad_(gradient) for v in layer] for layer in layers]
        with torch.set_grad_enabled(gradient):
            values = torch.from_numpy(np.array(inputs))
            for depth, (kernel, bias) in enumerate(tensors):
                values = values @ kernel + bias
                values = torch.sin(10 * values) if depth < len(tensors) - 1 else values
            values = values.reshape(*values.shape[:-1], channels, channels)
            values = values * torch.from_numpy(np.array(weight))[None, None, None, :, None, None]
            kernel = values.permute(0, 5, 3, 4, 1, 2).reshape(number * channels, number * channels, 5, 5)
            x = torch.from_numpy(np.array(features)).permute(0, 3, 4, 1, 2)
            out = torch.nn.functional.conv2d(x.reshape(x.shape[0], -1, *x.shape[3:]), kernel, padding=2)
            out = out.reshape(x.shape).permute(0, 3, 4, 1, 2)
            if not gradient:
                return np.ascontiguousarray(out.numpy())
            (out**2).mean().backward()
        return tuple(tuple(np.ascontiguousarray(t.grad.numpy()) for t in pair) for pair in tensors)

    layers = tuple((layer["kernel"], layer["bias"]) for layer in params["full"])
    if not gradient:
        shape = jax.ShapeDtypeStruct(features.shape, features.dtype)
        return jax.pure_callback(step, shape, layers, features, inputs, weight)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), layers)
    found = jax.pure_callback(step, shapes, layers, features, inputs, weight)
    return {"full": tuple({"kernel": kernel, "bias": bias} for kernel, bias in found)}


def _step(function: Callable) -> Callable:
    return jax.grad(lambda params, features, samples: jnp.mean(function(params, features, samples) ** 2))


def cases(config: Config) -> Iterator[Case]:
    """Yields comparisons, forward and with the gradient of the parameters, for each number of samples."""
    torch_there = find_torch("the official layer")
    channels = config.channels

    def ours(separable: bool) -> Callable:
        kernel = _kernel(separable)
        return lambda params, features, samples: affine_group_conv(params, features, samples, samples, kernel)

    for number in config.samples:
        samples = sample_polar(jax.random.key(0), number, GL2, scale=0.3, proposal="ball")
        features = jax.random.normal(jax.random.key(1), (config.batch, config.side, config.side, number, channels))
        both = [affine_kernel_init(jax.random.key(2), _kernel(s), channels, channels) for s in (True, False)]
        published = functools.partial(_published, channels=channels)
        for mode in ("forward", "training step"):
            wrap = _step if mode == "training step" else (lambda function: function)
            contenders = {OURS: wrap(ours(True)), FULL: wrap(ours(False)), LAYOUT: wrap(published)}
            if torch_there:
                contenders[TORCH] = functools.partial(_torch, channels=channels, gradient=mode == "training step")
            arguments = {name: (both[name != OURS], features, samples) for name in contenders}
            yield Case(
                f"S={number}, {mode}", contenders, arguments, reference=LAYOUT, tolerance=1e-3, different=(OURS,)
            )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates whether the separable layer is faster than the published one, and the full one not slower.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for row in rows:
        for name in (LAYOUT, TORCH):
            if name in row["ratios"]:
                statement = f"{row['case']}: {name} over our separable layer"
                claim.at_least("speed", statement, 1.0, row["ratios"][name])
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results: times as ratios to ours, memory of temporaries.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = (
        "case", "separable", "full", "published layout", "PyTorch", "compile", "memory: separable", "full",
        "published layout",
    )  # fmt: skip
    rows = (
        (
            row["case"], f"{row['ours_ms']:.0f} ms", *ratio_cells(row, (FULL, LAYOUT, TORCH)),
            f"{row['compile_s']:.1f} s",
            *(f"{row['contenders'][name]['temporary_mbyte']:.0f} MB" for name in (OURS, FULL, LAYOUT)),
        )
        for result in found.values()
        for row in result["rows"]
    )  # fmt: skip
    return {"benchmarks.lie": markdown(heads, rows)}
