"""What averaging over frames costs: `benchmarks.frames`.

float32. FA-GNN on five particles at its published width, forward and one training step: all eight elements as one
larger batch, one random element for each layer, the bare network without frames, and, where torch is installed, the
order of the official code (lists of edges, features of pairs joined before the first layer), eager and forward only;
in it the mean of hidden vectors is kept, as in ours. PointNet at reduced width: eight elements one after another
(`sequential`), all at once, one, none. The frames alone: ours beside eager PyTorch.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.frames import (
    MPNNConfig,
    PointNetConfig,
    fa_gnn_apply,
    frame_average,
    mpnn_apply,
    mpnn_init,
    pca_frames,
    pointnet_apply,
    pointnet_init,
)
from experiments.benchmarks.harness import Case, find_torch
from experiments.claims import Claims
from experiments.tables import markdown, ratio_cells

__all__ = ["PRESETS", "Config", "cases", "claims", "tables"]

CARD = "frame_averaging"
EIGHT, AT_ONCE, ONE, BARE, TORCH = "8 elements", "8 at once", "one element", "no frames", "PyTorch"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes to measure.

    Attributes:
      systems: of five particles.
      width: of the message passing.
      depth: its layers.
      clouds: for PointNet.
      points: of each cloud.
      frames: clouds of 32 points, for the frames alone.
    """

    systems: int = 100
    width: int = 60
    depth: int = 4
    clouds: int = 8
    points: int = 512
    frames: int = 4096


PRESETS = {
    "ci": Config(systems=4, width=6, depth=2, clouds=2, points=16, frames=8),
    "cpu": Config(),
    "gpu": Config(systems=4096, clouds=256, frames=65_536),
}


def _torch_dense(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def _torch_frames(points: Any) -> tuple[Any, Any]:
    """All signs of the eigenvectors `[8, batch, 3, 3]`, and the centre `[batch, 1, 3]`."""
    torch: Any = importlib.import_module("torch")

    centre = points.mean(1, keepdim=True)
    centred = points - centre
    vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)[1]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    return vectors[None] * signs[:, None, None, :], centre


def _torch_fa_gnn(params: Any, x: Any, v: Any, q: Any, depth: int) -> Any:
    """FA-GNN in the order of the official code: lists of edges, one enlarged batch."""
    torch: Any = importlib.import_module("torch")

    silu, (batch, n, _) = torch.nn.functional.silu, x.shape
    first, second = np.nonzero(~np.eye(n, dtype=bool))
    start = n * torch.arange(8 * batch)
    i, j = ((start[:, None] + torch.from_numpy(e)[None]).reshape(-1) for e in (first, second))
    features = torch.stack([q[:, first] * q[:, second], ((x[:, first] - x[:, second]) ** 2).sum(-1)], -1)
    features = features[None].expand(8, -1, -1, -1).reshape(-1, 2)
    frames, centre = _torch_frames(x)
    h = torch.cat([(x - centre)[None] @ frames, v[None] @ frames], -1).reshape(8 * batch * n, 6)
    h = _torch_dense(params["embed"], h)
    for number in range(depth):
        layer = params["layers"][number]
        if number:
            vectors = h.reshape(8, batch, -1, 3) @ frames.transpose(2, 3)
            mean = vectors.mean(0)
            frames, _ = _torch_frames(mean)
            h = (mean[None] @ frames).reshape(8 * batch * n, -1)
        pairs = torch.cat([h[i], h[j], features], -1)
        messages = silu(_torch_dense(layer["edge"][1], silu(_torch_dense(layer["edge"][0], pairs))))
        total = torch.zeros_like(h).index_add_(0, i, messages)
        node = silu(_torch_dense(layer["node"][0], torch.cat([h, total], -1)))
        h = h + _torch_dense(layer["node"][1], node)
    out = _torch_dense(params["out"][1], silu(_torch_dense(params["out"][0], h)))
    return (out.reshape(8, batch, n, 3) @ frames.transpose(2, 3)).mean(0) + centre


def _torch(function: Callable, *arguments: Any, shape: tuple[int, ...]) -> jax.Array:
    """Runs eager PyTorch on the host from within a compiled program."""
    torch: Any = importlib.import_module("torch")

    def step(*arrays):
        with torch.no_grad():
            out = function(*jax.tree.map(lambda a: torch.from_numpy(np.array(a)), arrays))
        return np.ascontiguousarray(out.numpy())

    return jax.pure_callback(step, jax.ShapeDtypeStruct(shape, jnp.float32), *arguments)


def _step(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda params, *inputs: jnp.mean(function(params, *inputs) ** 2))


def _particles(config: Config, *, torch_there: bool) -> Iterator[Case]:
    network = MPNNConfig(width=config.width, depth=config.depth)
    keys = jax.random.split(jax.random.key(0), 4)
    x, v = (jax.random.normal(k, (config.systems, 5, 3)) for k in keys[:2])
    q = jnp.sign(jax.random.normal(keys[2], (config.systems, 5)))
    arguments = (mpnn_init(keys[3], network), x, v, q)

    def bare(params, x, v, q):
        centre = jnp.mean(x, axis=-2, keepdims=True)
        square = jnp.sum(jnp.square(x[:, :, None] - x[:, None]), axis=-1)
        edges = jnp.stack([q[:, :, None] * q[:, None], square], axis=-1)
        return centre + mpnn_apply(params, jnp.concatenate([x - centre, v], axis=-1), edges, network)

    eight: Any = functools.partial(fa_gnn_apply, config=network)
    contenders = {EIGHT: eight, ONE: functools.partial(eight, key=jax.random.key(1)), BARE: bare}
    step = {name: _step(function) for name, function in contenders.items()}
    yield Case("FA-GNN, training step", step, arguments, reference=None)
    if torch_there:
        function = functools.partial(_torch_fa_gnn, depth=config.depth)
        contenders = {**contenders, TORCH: functools.partial(_torch, function, shape=x.shape)}
    yield Case("FA-GNN, forward", contenders, arguments, reference=EIGHT, tolerance=2e-2, different=(ONE, BARE))


def _clouds(config: Config) -> Iterator[Case]:
    network = PointNetConfig(widths=(32, 64, 64, 128, 256), head=(128, 128, 64))
    params = pointnet_init(jax.random.key(0), network)
    x = jax.random.normal(jax.random.key(1), (config.clouds, config.points, 3)) * jnp.array([[[1.0, 1.5, 2.0]]])

    def bare(params, x):
        return pointnet_apply(params[0], params[1], x, network)[0]

    def averaged(params, x, **options):
        frames = pca_frames(x, stop_gradient=True)
        average = frame_average(
            functools.partial(bare, params), frames, in_types=("position",), out_types="vector", vectorized=True,
            **options,
        )  # fmt: skip
        return average(x)

    contenders = {
        EIGHT: functools.partial(averaged, sequential=True),
        AT_ONCE: averaged,
        ONE: functools.partial(averaged, reduce="sample", key=jax.random.key(2)),
        BARE: bare,
    }
    yield Case("FA-PointNet, forward", contenders, (params, x), reference=EIGHT, different=(ONE, BARE))


def cases(config: Config) -> Iterator[Case]:
    """Yields comparisons: FA-GNN in both directions, FA-PointNet forward, and the frames alone."""
    torch_there = find_torch("the official order")
    yield from _particles(config, torch_there=torch_there)
    yield from _clouds(config)
    x = jax.random.normal(jax.random.key(3), (config.frames, 32, 3)) * jnp.array([[[1.0, 1.5, 2.0]]])
    contenders: dict[str, Callable] = {"pca_frames": lambda x: pca_frames(x).rotation}
    if torch_there:
        shape = (8, config.frames, 3, 3)
        contenders[TORCH] = functools.partial(_torch, lambda x: _torch_frames(x)[0], shape=shape)
    yield Case("frames alone", contenders, (x,), reference=None)


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluates what eight elements cost beside one.

    Args:
      rows: from the harness.

    Returns:
      Dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`.
    """
    claim = Claims(CARD)
    for row in rows:
        case, ratio = row["case"], row["ratios"]
        if ONE in ratio and case.endswith("forward"):
            claim.at_most("6", f"{case}: eight elements over one", 9.0, 1 / ratio[ONE])
        if ONE in ratio and case.endswith("training step"):
            claim.at_most("5", f"{case}: one element over eight", 0.25, ratio[ONE])
        if TORCH in ratio:
            claim.at_least("6", f"{case}: PyTorch in the official order over ours", 1.0, ratio[TORCH])
    return claim.found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed results: times as ratios to eight elements.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    heads = ("case", "ours", "8 at once", "one element", "no frames", "PyTorch, official order", "compile")
    rows = (
        (
            row["case"], f"{row['ours_ms']:.2g} ms", *ratio_cells(row, (AT_ONCE, ONE, BARE, TORCH)),
            f"{row['compile_s']:.1f} s",
        )
        for result in found.values()
        for row in result["rows"]
    )  # fmt: skip
    return {"benchmarks.frames": markdown(heads, rows)}
