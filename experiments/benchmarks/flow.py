"""Times the next-frame predictor: co-moving scan, published form, the official loop, the ordinary network, PyTorch.

All contenders take the same frames through the same network (cell and decoder of circular 3 x 3 convolutions with ReLU,
published decoding) and, but for the ordinary network (one velocity), predict the same frames. "training step" is the
gradient of their mean squared error by all kernels. The loops over time and velocities are the official code's
algorithm, compiled; PyTorch is that algorithm as published, eager, and is measured where torch is installed.
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

from equivariant_jax.flow import NextFrameConfig, next_frame_apply, next_frame_init, velocity_grid
from equivariant_jax.flow.generators import Velocities
from experiments.benchmarks.harness import Case, find_torch
from experiments.claims import Claims
from experiments.tables import markdown, ratio_cells

__all__ = ["CARD", "PRESETS", "Config", "cases", "claims", "tables"]

CARD = "flow_equivariant_rnn"
OURS, PUBLISHED, LOOP, PLAIN, TORCH = "co-moving scan", "published scan", "published loops", "G-RNN", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      radii: largest velocities; `(2 radius + 1)**2` banks.
      channels: of the hidden state.
      decoder_layers: convolutions of the decoder before the last.
      size: side of the frames.
      given: frames that are shown.
      predicted: frames that are predicted.
      batch: sequences.
      loop_radius: largest radius for which the unrolled loops are measured (they compile for long).
    """

    radii: tuple[int, ...] = (0, 1, 2)
    channels: int = 128
    decoder_layers: int = 4
    size: int = 28
    given: int = 3
    predicted: int = 3
    batch: int = 2
    loop_radius: int = 1


PRESETS = {
    "ci": Config(radii=(0, 1), channels=4, decoder_layers=1, size=8),
    "cpu": Config(),
    "paper": Config(given=10, predicted=10, batch=128),
}


def _network(config: Config, radius: int, form: Any = "comoving") -> NextFrameConfig:
    return NextFrameConfig(
        velocities=velocity_grid(radius),
        channels=config.channels,
        decoder_layers=config.decoder_layers,
        decode="published",
        form=form,
    )


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _loops(params: Any, frames: jax.Array, velocities: Velocities, config: Config) -> jax.Array:
    """The official algorithm: for each frame, for each velocity, roll, convolve all banks, add, ReLU; then decode."""
    cell, decoder = params["cell"], params["decoder"]
    shape = (frames.shape[0], len(velocities), *frames.shape[2:4], config.channels)
    banks, frame, found = jnp.zeros(shape, frames.dtype), frames[:, 0], []
    for t in range(config.given + config.predicted):
        frame = frames[:, t] if t < config.given else frame
        rolled = [jnp.roll(banks[:, i], (int(vy), int(vx)), axis=(1, 2)) for i, (vx, vy) in enumerate(velocities)]
        stacked = jnp.stack(rolled, axis=1)
        memory = _convolve(stacked.reshape(-1, *stacked.shape[2:]), cell["recurrent"]).reshape(shape)
        banks = jax.nn.relu(memory + _convolve(frame, cell["input"])[:, None])
        if t >= config.given:
            features = jnp.max(banks, axis=1)
            for kernel in decoder[:-1]:
                features = jax.nn.relu(_convolve(features, kernel))
            found.append(_convolve(features, decoder[-1]))
            frame = lax.stop_gradient(found[-1])
    return jnp.stack(found, axis=1)


def _torch_step(velocities: Velocities, config: Config, gradient: bool) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """The official step in PyTorch, called from the compiled program with NumPy arrays."""
    torch: Any = importlib.import_module("torch")

    def convolve(x, kernel):
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), kernel)

    def step(kernels, frames, targets):
        kernels = [torch.from_numpy(np.array(k)).permute(3, 2, 0, 1).contiguous() for k in kernels]
        for kernel in kernels:
            kernel.requires_grad_(gradient)
        x, y = (torch.from_numpy(np.array(v)).permute(0, 1, 4, 2, 3).contiguous() for v in (frames, targets))
        decoder, (inputs, recurrent) = kernels[:-2], kernels[-2:]
        with torch.set_grad_enabled(gradient):
            banks = torch.zeros(x.shape[0], len(velocities), config.channels, *x.shape[3:])
            frame, found = x[:, 0], []
            for t in range(config.given + config.predicted):
                frame = x[:, t] if t < config.given else frame
                rolled = [torch.roll(banks[:, i], (int(vy), int(vx)), (2, 3)) for i, (vx, vy) in enumerate(velocities)]
                stacked = torch.stack(rolled, 1)
                memory = convolve(stacked.flatten(0, 1), recurrent).view(stacked.shape)
                banks = torch.relu(memory + convolve(frame, inputs)[:, None])
                if t >= config.given:
                    features = banks.amax(1)
                    for kernel in decoder[:-1]:
                        features = torch.relu(convolve(features, kernel))
                    found.append(convolve(features, decoder[-1]))
                    frame = found[-1].detach()
            out = torch.stack(found, 1)
            if not gradient:
                return np.ascontiguousarray(out.permute(0, 1, 3, 4, 2).numpy())
            ((out - y) ** 2).mean().backward()
        return tuple(np.ascontiguousarray(k.grad.permute(2, 3, 1, 0).numpy()) for k in kernels)

    def call(params, frames, targets):
        kernels = (*params["decoder"], params["cell"]["input"], params["cell"]["recurrent"])
        if not gradient:
            return jax.pure_callback(step, jax.ShapeDtypeStruct(targets.shape, jnp.float32), kernels, frames, targets)
        shapes = tuple(jax.ShapeDtypeStruct(k.shape, jnp.float32) for k in kernels)
        *decoder, inputs, recurrent = jax.pure_callback(step, shapes, kernels, frames, targets)
        return {"cell": {"input": inputs, "recurrent": recurrent}, "decoder": tuple(decoder)}

    return call


def _forward(function: Callable) -> Callable:
    return lambda params, frames, targets: function(params, frames)


def _training_step(function: Callable) -> Callable:
    return jax.grad(lambda params, frames, targets: jnp.mean((function(params, frames) - targets) ** 2))


def cases(config: Config) -> Iterator[Case]:
    """Yields comparisons, forward and training step, for each number of velocities."""
    params = next_frame_init(jax.random.key(0), _network(config, 0))
    shape = (config.batch, config.given, config.size, config.size, 1)
    frames = jax.random.uniform(jax.random.key(1), shape)
    targets = jax.random.uniform(jax.random.key(2), (config.batch, config.predicted, *shape[2:]))
    torch_there = find_torch("the official step")

    def scan(radius: int, form: Any = "comoving") -> Callable:
        network = _network(config, radius, form)
        return lambda params, frames: next_frame_apply(params, frames, config.predicted, network)

    for radius in config.radii:
        velocities = velocity_grid(radius)
        for mode, wrap in (("forward", _forward), ("training step", _training_step)):
            contenders: dict[str, Callable] = {OURS: scan(radius), PUBLISHED: scan(radius, "published")}
            if radius <= config.loop_radius:
                contenders[LOOP] = functools.partial(_loops, velocities=velocities, config=config)
            if radius > 0:
                contenders[PLAIN] = scan(0)
            contenders = {name: wrap(function) for name, function in contenders.items()}
            if torch_there:
                contenders[TORCH] = _torch_step(velocities, config, gradient=mode != "forward")
            yield Case(
                f"|V|={len(velocities)}, {mode}",
                contenders,
                (params, frames, targets),
                reference=PUBLISHED,
                tolerance=1e-3,
                different=(PLAIN,),
            )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates the speed points.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    by_case = {row["case"]: row for row in rows}
    claim = Claims(CARD)
    nine = by_case.get("|V|=9, training step")
    if nine and LOOP in nine["ratios"]:
        statement = "training step, |V| = 9: loops over time and velocities over the co-moving scan"
        claim.at_least(3, statement, 1.5, nine["ratios"][LOOP])
        value = nine["compile_s"] / nine["contenders"][LOOP]["compile_s"]
        why = "six unrolled frames compile as fast as one body of a loop; theirs takes longer with every frame"
        claim.at_most(3, "compile time of the co-moving scan over that of the loops, |V| = 9", 0.2, value, why=why)
    for count in (9, 25):
        for mode in ("forward", "training step"):
            row = by_case.get(f"|V|={count}, {mode}")
            if row and PLAIN in row["ratios"]:
                value = 1 / row["ratios"][PLAIN]
                statement = f"{mode}, |V| = {count}: co-moving scan over the G-RNN, at most |V| / 2"
                claim.add(3, statement, count / 2, value, holds=value <= count / 2)
    for name, row in by_case.items():
        if TORCH in row["ratios"]:
            value = row["ratios"][TORCH]
            why = "one bank is a plain convolution, and nothing is shared" if name.startswith("|V|=1,") else ""
            claim.at_least(3, f"{name}: the official PyTorch step over the co-moving scan", 1.0, value, why=why)
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = (
        "case", "co-moving scan", "sequences/s", "compile", "published scan", "loops", "G-RNN", "PyTorch", "memory",
    )  # fmt: skip
    rows = (
        (
            row["case"].replace("|", "\\|"), f"{row['ours_ms']:.0f} ms",
            f"{1e3 * result['config']['batch'] / row['ours_ms']:.2g}", f"{row['compile_s']:.1f} s",
            *ratio_cells(row, (PUBLISHED, LOOP, PLAIN, TORCH), ".2f"),
            f"{row['contenders'][OURS]['temporary_mbyte']:.0f} MB",
        )
        for result in found.values()
        for row in result["rows"]
    )  # fmt: skip
    return {"benchmarks.flow": markdown(heads, rows)}
