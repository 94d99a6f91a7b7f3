"""Times flow-equivariant recurrence: co-moving scan, published form, the official loop, the ordinary network, PyTorch.

All contenders take the same frames through the same cell (circular 3 x 3 convolutions, ReLU) and, but for the ordinary
network (one velocity), give the same states pooled over velocities. "training step" is the gradient of their squared
norm by all kernels. The loops over time and velocities are the official code's algorithm, compiled; PyTorch is the
official step itself, eager as published, and is measured where torch is installed.
"""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.flow import flow_rnn_init, flow_scan, velocity_grid
from equivariant_jax.flow.generators import Velocities
from experiments.benchmarks.harness import Case

__all__ = ["CARD", "PRESETS", "Config", "cases", "claims", "tables"]

CARD = "flow_equivariant_rnn"
OURS, PUBLISHED, LOOP, PLAIN, TORCH = "co-moving scan", "published scan", "published loops", "G-RNN", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      radii: largest velocities; `(2 radius + 1)**2` banks.
      channels: of the hidden state.
      size: side of the frames.
      length: frames.
      batch: sequences.
      loops: whether the unrolled loops are measured (they compile for long).
      loop_radius: largest radius for which they are.
    """

    radii: tuple[int, ...] = (0, 1, 2)
    channels: int = 128
    size: int = 28
    length: int = 10
    batch: int = 2
    loops: bool = True
    loop_radius: int = 1


PRESETS = {
    "ci": Config(radii=(0, 1), channels=4, size=8, length=3),
    "cpu": Config(),
    "paper": Config(length=20, batch=128, loop_radius=2),
}


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _loops(params: Any, frames: jax.Array, velocities: Velocities) -> jax.Array:
    """The official algorithm: for each frame, for each velocity, roll, convolve all banks, add, ReLU."""
    batch, length, height, width, _ = frames.shape
    channels = params["recurrent"].shape[-1]
    banks = jnp.zeros((batch, len(velocities), height, width, channels), frames.dtype)
    found = []
    for t in range(length):
        rolled = [jnp.roll(banks[:, i], (int(vy), int(vx)), axis=(1, 2)) for i, (vx, vy) in enumerate(velocities)]
        stacked = jnp.stack(rolled, axis=1)
        memory = _convolve(stacked.reshape(-1, *stacked.shape[2:]), params["recurrent"]).reshape(stacked.shape)
        banks = jax.nn.relu(memory + _convolve(frames[:, t], params["input"])[:, None])
        found.append(jnp.max(banks, axis=1))
    return jnp.stack(found, axis=1)


def _scan(params: Any, frames: jax.Array, velocities: Velocities, form: Any = "comoving") -> jax.Array:
    found = flow_scan(params, frames, velocities, form=form, outputs="max").outputs
    assert found is not None
    return found


def _torch_step(velocities: Velocities, gradient: bool) -> Callable[[Any, jax.Array], Any]:
    """The official step in PyTorch, called from the compiled program with NumPy arrays."""
    torch: Any = importlib.import_module("torch")

    def convolve(x, kernel):
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), kernel)

    def step(inputs, recurrent, frames):
        kernels = [torch.from_numpy(np.array(k)).permute(3, 2, 0, 1).contiguous() for k in (inputs, recurrent)]
        for kernel in kernels:
            kernel.requires_grad_(gradient)
        x = torch.from_numpy(np.array(frames)).permute(0, 1, 4, 2, 3).contiguous()
        batch, length, _, height, width = x.shape
        with torch.set_grad_enabled(gradient):
            banks = torch.zeros(batch, len(velocities), kernels[1].shape[0], height, width)
            found = []
            for t in range(length):
                rolled = [torch.roll(banks[:, i], (int(vy), int(vx)), (2, 3)) for i, (vx, vy) in enumerate(velocities)]
                stacked = torch.stack(rolled, 1)
                memory = convolve(stacked.flatten(0, 1), kernels[1]).view(stacked.shape)
                banks = torch.relu(memory + convolve(x[:, t], kernels[0])[:, None])
                found.append(banks.amax(1))
            out = torch.stack(found, 1)
            if not gradient:
                return np.ascontiguousarray(out.permute(0, 1, 3, 4, 2).numpy())
            (out**2).sum().backward()
        return tuple(np.ascontiguousarray(k.grad.permute(2, 3, 1, 0).numpy()) for k in kernels)

    def call(params, frames):
        channels = params["recurrent"].shape[-1]
        if gradient:
            shape = tuple(jax.ShapeDtypeStruct(params[name].shape, jnp.float32) for name in ("input", "recurrent"))
        else:
            shape = jax.ShapeDtypeStruct((*frames.shape[:-1], channels), jnp.float32)
        found = jax.pure_callback(step, shape, params["input"], params["recurrent"], frames)
        return {"input": found[0], "recurrent": found[1]} if gradient else found

    return call


def _with_gradient(function: Callable) -> Callable:
    return jax.grad(lambda params, frames: jnp.sum(function(params, frames) ** 2))


def cases(config: Config) -> Iterator[Case]:
    """Yields comparisons, forward and training step, for each number of velocities."""
    params = flow_rnn_init(jax.random.key(0), 1, config.channels)
    frames = jax.random.uniform(jax.random.key(1), (config.batch, config.length, config.size, config.size, 1))
    torch_there = importlib.util.find_spec("torch") is not None
    if torch_there:
        importlib.import_module("torch").set_num_threads(1)
    else:
        print("torch is not installed: the official step is not measured")
    for radius in config.radii:
        velocities = velocity_grid(radius)
        for mode in ("forward", "training step"):
            contenders: dict[str, Callable] = {
                OURS: functools.partial(_scan, velocities=velocities),
                PUBLISHED: functools.partial(_scan, velocities=velocities, form="published"),
            }
            if config.loops and radius <= config.loop_radius:
                contenders[LOOP] = functools.partial(_loops, velocities=velocities)
            if radius > 0:
                contenders[PLAIN] = functools.partial(_scan, velocities=velocity_grid(0))
            if mode != "forward":
                contenders = {name: _with_gradient(function) for name, function in contenders.items()}
            if torch_there:
                contenders[TORCH] = _torch_step(velocities, gradient=mode != "forward")
            yield Case(
                f"|V|={len(velocities)}, {mode}",
                contenders,
                (params, frames),
                reference=PUBLISHED,
                tolerance=1e-3,
                different=(PLAIN,),
            )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates the speed points of the issue and the card.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    by_case = {row["case"]: row for row in rows}
    found = []

    def add(statement, bar, value, holds):
        found.append(
            {"card": CARD, "point": 3, "statement": statement, "bar": bar, "value": float(value), "holds": bool(holds)}
        )

    nine = by_case.get("|V|=9, training step")
    if nine and LOOP in nine["ratios"]:
        value = nine["ratios"][LOOP]
        statement = "training step, |V| = 9: loops over time and velocities over the co-moving scan, at least"
        add(statement, 1.5, value, value >= 1.5)
        value = nine["compile_s"] / nine["contenders"][LOOP]["compile_s"]
        add("compile time of the co-moving scan over that of the loops, |V| = 9, at most", 0.2, value, value <= 0.2)
    for count in (9, 25):
        for mode in ("forward", "training step"):
            row = by_case.get(f"|V|={count}, {mode}")
            if row and PLAIN in row["ratios"]:
                value = 1 / row["ratios"][PLAIN]
                statement = f"{mode}, |V| = {count}: co-moving scan over the G-RNN, at most |V| / 2"
                add(statement, count / 2, value, value <= count / 2)
    for name, row in by_case.items():
        if TORCH in row["ratios"]:
            value = row["ratios"][TORCH]
            add(f"{name}: the official PyTorch step over the co-moving scan, at least", 1.0, value, value >= 1.0)
    return found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of the newest result.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    lines = [
        "| case | co-moving scan | compile | published scan | published loops | G-RNN | PyTorch | temporaries |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in found.values():
        for row in result["rows"]:
            peers = (PUBLISHED, LOOP, PLAIN, TORCH)
            ratios = [f"{row['ratios'][name]:.2f}x" if name in row["ratios"] else "-" for name in peers]
            memory = row["contenders"][OURS]["temporary_mbyte"]
            cells = (row["case"], f"{row['ours_ms']:.0f} ms", f"{row['compile_s']:.1f} s", *ratios, f"{memory:.0f} MB")
            lines.append("| " + " | ".join(cells) + " |")
    return {"benchmarks.flow": "\n".join(lines)}
