"""Contract entries of the networks that move points (EGNN, EqMotion on edges): E(n) and permutations of points."""

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean.egnn import EgnnConfig, egnn_apply, egnn_init
from equivariant_jax.euclidean.motion import MotionConfig, eqmotion_init
from equivariant_jax.euclidean.motion_graph import eqmotion_graph_apply
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

POINTS = 4
EGNN = EgnnConfig(scalars_in=2, history=2, width=4, layers=2, positions_out=2)

MOTION = MotionConfig(past=4, future=3, scalars=4, channels=4, layers=2, heads=2)
# A complete graph, so that permuting agents needs no other edges.
RECEIVERS, SENDERS = np.nonzero(~np.eye(POINTS, dtype=bool))


def _egnn(params, positions, velocities, history, scalars):
    return egnn_apply(params, positions, scalars, EGNN, velocities=velocities, history=history)._asdict()


def _on_edges(params, positions, mask):
    """Displacements from the last position, zero for agents that are not there."""
    edges = jnp.asarray(SENDERS), jnp.asarray(RECEIVERS)
    predicted, _ = eqmotion_graph_apply(params, positions, *edges, MOTION, mask=mask)
    moved = predicted - positions[None, :, -1:]
    return jnp.where(mask[None, :, None, None], moved, jnp.zeros_like(moved))


def _points(n):
    def make(key, dtype):
        keys = jax.random.split(key, 4)
        shapes = ((POINTS, n), (POINTS, n), (POINTS, 2, n), (POINTS, 2))
        return egnn_init(jax.random.key(3), EGNN, dtype=dtype), tuple(
            jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)
        )

    return make


def _laws(n):
    vectors = {"positions": rep.Point(), "velocities": rep.Vector(), "scalars": rep.Trivial()}
    by_point = {"positions": -3, "velocities": -3, "scalars": -2}
    return (
        Law(groups.Euclidean(n), (rep.Point(), rep.Vector(), rep.Vector(), rep.Trivial()), vectors),
        Law(
            groups.Symmetric(POINTS),
            tuple(rep.Permuted((axis,)) for axis in (-2, -2, -3, -2)),
            {name: rep.Permuted((axis,)) for name, axis in by_point.items()},
        ),
    )


def _coincident(inputs):
    positions, *rest = inputs
    return (jnp.zeros_like(positions), *rest)


LAYERS: list[Layer] = [
    Layer(
        name=f"euclidean.egnn_apply (n = {n})",
        function=_egnn,
        make=_points(n),
        laws=_laws(n),
        degenerate=(_coincident,),
        dtypes=("float32",),
        leading_axes=True,
        slow=n == 2,
    )
    for n in (3, 2)
]

LAYERS.append(
    Layer(
        name="euclidean.eqmotion_graph_apply",
        function=_on_edges,
        make=lambda key, dtype: (
            eqmotion_init(jax.random.key(3), MOTION, dtype=dtype),
            (jax.random.normal(key, (POINTS, 4, 3), dtype).cumsum(axis=1), jnp.arange(POINTS) < POINTS - 1),
        ),
        laws=(
            Law(groups.Euclidean(3), (rep.Point(), rep.Trivial()), rep.Vector()),
            Law(groups.Symmetric(POINTS), (rep.Permuted((-3,)), rep.Permuted((-1,))), rep.Permuted((-3,))),
        ),
        degenerate=(_coincident,),
        padding=lambda inputs: ((~inputs[1], None), None),
        dtypes=("float32",),
    )
)
