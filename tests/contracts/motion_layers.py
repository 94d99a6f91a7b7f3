"""Contract entries of the networks that move points: all of E(n), n = 2 and 3, and permutations of points."""

import jax
import jax.numpy as jnp

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean.egnn import EgnnConfig, egnn_apply, egnn_init
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

POINTS = 4
EGNN = EgnnConfig(scalars_in=2, history=2, width=4, layers=2, positions_out=2)


def _egnn(params, positions, velocities, history, scalars):
    return egnn_apply(params, positions, scalars, EGNN, velocities=velocities, history=history)._asdict()


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
