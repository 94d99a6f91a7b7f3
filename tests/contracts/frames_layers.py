"""Contract entries of Frame Averaging: rigid motions of points, orders of nodes."""

import functools

import jax
import jax.numpy as jnp

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.frames import (
    DGCNNConfig,
    GINConfig,
    MPNNConfig,
    PointNetConfig,
    dgcnn_apply,
    dgcnn_init,
    fa_gnn_apply,
    frame_average,
    gin_apply,
    gin_init,
    laplacian_frames,
    laplacian_keys,
    mpnn_apply,
    mpnn_init,
    node_identifiers,
    pca_frames,
    pointnet_apply,
    pointnet_init,
    sorted_frames,
)
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

N, REAL = 6, 4
E3, SE3, S6 = groups.Euclidean(3), groups.SpecialEuclidean(3), groups.Symmetric(N)
ROWS, PAIRS = rep.Permuted((0,)), rep.Permuted((0, 1))
MPNN, GIN = MPNNConfig(width=9, depth=2), GINConfig(1 + N, width=8, depth=2, channels_out=3)
POINTNET, DGCNN = PointNetConfig(widths=(6, 8), head=(5,)), DGCNNConfig(3, 3, ((6,), (5,)), 7, (6,))
MASK = jnp.arange(N) < REAL
PADDED_ROWS = jnp.broadcast_to(~MASK[:, None], (N, 3))
PADDED_PAIRS = ~(MASK[:, None] & MASK[None, :])


def _points(*more, init=lambda key, dtype: {}):
    """Points, and arrays of other shapes; parameters that do not depend on the example."""

    def make(key, dtype):
        keys = jax.random.split(key, 1 + len(more))
        x = jax.random.normal(keys[0], (N, 3), dtype) * jnp.asarray([1.0, 1.7, 2.9], dtype)[None]
        rest = tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys[1:], more, strict=True))
        return init(jax.random.key(7), dtype), (x, *rest)

    return make


def _path(key, dtype, init=lambda key, dtype: {}):
    """A weighted path: its frame has one element."""
    weight = 1 + jax.random.uniform(key, (N - 1,), dtype)
    a = jnp.diag(weight, 1)
    return init(jax.random.key(7), dtype), (a + a.T,)


def _head(x, v):
    h = jnp.tanh(x * 0.3 + jnp.sin(v) * jnp.cos(x[:, ::-1]) + 0.2)
    return {"position": h, "vector": h * h, "scalar": jnp.sum(h[:, 0] * h[:, 1] ** 2)}


def _averaged(x, v, group="E"):
    kinds = {"position": "position", "vector": "vector", "scalar": "scalar"}
    return frame_average(_head, pca_frames(x, group=group), in_types=("position", "vector"), out_types=kinds)(x, v)


def _moved(group):
    return Law(
        group, (rep.Point(), rep.Vector()), {"position": rep.Point(), "vector": rep.Vector(), "scalar": rep.Trivial()}
    )


def _set(params, x):
    frames = sorted_frames(x, num=720)  # room for six equal rows
    return frame_average(lambda x: x * jnp.cos(jnp.cumsum(x, 0)), frames, in_types=("node",), out_types="node")(x)


def _graph(params, a):
    def network(a):
        return gin_apply(params, node_identifiers(jnp.sum(a, -1)[:, None]), a, GIN)

    return frame_average(network, laplacian_frames(a, num_samples=1), in_types=("pair",))(a)


def _message_passing(params, x, edges):
    features = jnp.concatenate([x, x * x], axis=-1)
    return mpnn_apply(params, features, edges, MPNN, mask=jnp.broadcast_to(MASK, x.shape[:-1]))


def _first(apply, params, x, config):
    return apply(params[0], params[1], x, config, mask=jnp.broadcast_to(MASK, x.shape[:-1]))[0]


# With padding the law is that of a permutation among the real rows.
REAL_ORDERS = groups.Symmetric(REAL)


class _AmongReal(rep.Permuted):
    """Permutes the first entries of an axis and leaves the padding behind them."""

    def __call__(self, g, x):
        return super().__call__(jnp.concatenate([g, jnp.arange(REAL, N)]), x)


class _PaddedPoint(rep.Point):
    """Moves positions and leaves the zeros of the padding."""

    def __call__(self, g, x):
        return jnp.where(MASK[:, None], super().__call__(g, x), x)


REAL_ROWS, REAL_PAIRS = _AmongReal((0,)), _AmongReal((0, 1))

LAYERS: list[Layer] = [
    Layer(
        name="frames.pca_frames",
        # The set of elements: what is the same for all of them.
        function=lambda params, x: jnp.concatenate([pca_frames(x).eigenvalues, pca_frames(x).gap[..., None]], axis=-1),
        make=_points(),
        laws=(Law(E3, (rep.Point(),), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="frames.frame_average (E)",
        function=lambda params, x, v: _averaged(x, v),
        make=_points((N, 3)),
        laws=(_moved(E3), Law(S6, (ROWS, ROWS), {"position": ROWS, "vector": ROWS, "scalar": rep.Trivial()})),
    ),
    Layer(
        name="frames.frame_average (SE)",
        function=lambda params, x, v: _averaged(x, v, "SE"),
        make=_points((N, 3)),
        laws=(_moved(SE3),),
        slow=True,
    ),
    Layer(
        name="frames.fa_gnn_apply",
        function=lambda params, x, v, q: fa_gnn_apply(
            params, x, v, q, MPNN, stop_gradient=False, mask=jnp.broadcast_to(MASK, q.shape)
        ),
        make=_points((N, 3), (N,), init=lambda key, dtype: mpnn_init(key, MPNN, dtype=dtype)),
        laws=(Law(E3, (rep.Point(), rep.Vector(), rep.Trivial()), _PaddedPoint()),),
        padding=lambda inputs: ((PADDED_ROWS, PADDED_ROWS, ~MASK), PADDED_ROWS),
        leading_axes=True,
    ),
    Layer(
        name="frames.sorted_frames",
        function=_set,
        make=_points(),
        laws=(Law(S6, (ROWS,), ROWS),),
    ),
    Layer(
        name="frames.laplacian_keys",
        function=lambda params, a: laplacian_keys(a).values,
        make=_path,
        laws=(Law(S6, (PAIRS,), ROWS),),
        leading_axes=True,
        exempt={"finite_gradients": "the keys have no derivatives by design: they order, they do not enter."},
    ),
    Layer(
        name="frames.laplacian_frames (GIN with identifiers)",
        function=_graph,
        make=functools.partial(_path, init=lambda key, dtype: gin_init(key, GIN, dtype=dtype)),
        laws=(Law(S6, (PAIRS,), rep.Trivial()),),
        exempt={
            "finite_gradients": "zeros and ones have frames of 720 elements, for which the contract's one is NaN.",
        },
    ),
    Layer(
        name="frames.mpnn_apply",
        function=_message_passing,
        make=_points((N, N, 2), init=lambda key, dtype: mpnn_init(key, MPNN, dtype=dtype)),
        laws=(Law(REAL_ORDERS, (REAL_ROWS, REAL_PAIRS), REAL_ROWS),),
        padding=lambda inputs: (
            (PADDED_ROWS, jnp.broadcast_to(PADDED_PAIRS[..., None], (N, N, 2))),
            PADDED_ROWS,
        ),
        leading_axes=True,
        slow=True,  # fa_gnn_apply runs it
    ),
    Layer(
        name="frames.pointnet_apply",
        function=functools.partial(_first, pointnet_apply, config=POINTNET),
        make=_points(init=lambda key, dtype: pointnet_init(key, POINTNET, dtype=dtype)),
        laws=(Law(REAL_ORDERS, (REAL_ROWS,), REAL_ROWS),),
        padding=lambda inputs: ((PADDED_ROWS,), PADDED_ROWS),
        leading_axes=True,
    ),
    Layer(
        name="frames.dgcnn_apply",
        function=functools.partial(_first, dgcnn_apply, config=DGCNN),
        make=_points(init=lambda key, dtype: dgcnn_init(key, DGCNN, dtype=dtype)),
        laws=(Law(REAL_ORDERS, (REAL_ROWS,), REAL_ROWS),),
        padding=lambda inputs: ((PADDED_ROWS,), PADDED_ROWS),
        leading_axes=True,
    ),
    Layer(
        name="frames.gin_apply",
        function=lambda params, a: gin_apply(params, jnp.sum(a, -1)[..., None], a, GINConfig(1, 8, 2, 3)),
        make=functools.partial(_path, init=lambda key, dtype: gin_init(key, GINConfig(1, 8, 2, 3), dtype=dtype)),
        laws=(Law(S6, (PAIRS,), rep.Trivial()),),
        leading_axes=True,
    ),
]
