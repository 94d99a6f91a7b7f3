"""Contract entries of `core`."""

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import assignment, groups, linalg, segments
from equivariant_jax.core import representations as rep
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

IDS = np.array([0, 0, 1, 1, 1, 3, 3, 0])
ROW_MASK = np.array([True, True, True, False, True, True, False, True])
S4 = groups.Symmetric(4)


class _PermuteWithinSegments:
    """A permutation of four things, used on the rows of segments 0 and 1 that are real."""

    rows = np.array([0, 1, 7, 2])

    def __call__(self, g, x):
        full = jnp.arange(len(IDS)).at[self.rows].set(jnp.asarray(self.rows)[g])
        return rep.Permuted((0,))(full, x)


def _segment_layer(name, op, per_row=False):
    def function(params, data, ids, mask):
        return op(params["scale"].reshape(1, 1) * data, ids, 4, mask=mask)

    def make(key, dtype):
        data = jax.random.normal(key, (len(IDS), 3), dtype)
        return {"scale": jnp.asarray(1.5, dtype)}, (data, jnp.asarray(IDS), jnp.asarray(ROW_MASK))

    move = _PermuteWithinSegments()
    return Layer(
        name=f"core.segments.{name}",
        function=function,
        make=make,
        laws=(Law(S4, (move, move, move), move if per_row else rep.Trivial()),),
        degenerate=(lambda inputs: (inputs[0], inputs[1], jnp.zeros_like(inputs[2])),),
        padding=lambda inputs: ((~inputs[2], None, None), None),
    )


def _normal(*shape):
    return lambda key, dtype: ({}, (jax.random.normal(key, shape, dtype),))


O3, O3_PAIR = groups.Orthogonal(3), groups.Product((groups.Orthogonal(3), groups.Orthogonal(3)))
S5_PAIR = groups.Product((groups.Symmetric(5), groups.Symmetric(5)))
PERMUTE_PAIR = rep.Joint((rep.Permuted((-2,)), rep.Permuted((-1,))))
CONJUGATE = rep.TensorProduct(rep.Vector(-1), rep.Vector(-2))
FLOAT32 = ("float32",)  # LAPACK has no half precision

LAYERS = [
    *(
        _segment_layer(name, getattr(segments, name))
        for name in ("segment_sum", "segment_mean", "segment_max", "segment_min", "segment_std", "segment_norm")
    ),
    _segment_layer("segment_softmax", segments.segment_softmax, per_row=True),
    Layer(
        name="core.linalg.safe_norm",
        function=lambda params, x: linalg.safe_norm(x),
        make=_normal(5, 3),
        laws=(Law(O3, (rep.Vector(),), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="core.linalg.safe_normalize",
        function=lambda params, x: linalg.safe_normalize(x),
        make=_normal(5, 3),
        laws=(Law(O3, (rep.Vector(),), rep.Vector()),),
        leading_axes=True,
    ),
    Layer(
        name="core.linalg.safe_eigh (eigenvalues)",
        function=lambda params, x: linalg.safe_eigh(x)[0],
        make=_normal(3, 3),
        laws=(Law(O3, (CONJUGATE,), rep.Trivial()),),
        degenerate=(lambda inputs: (jnp.eye(3),), lambda inputs: (jnp.diag(jnp.array([1.0, 1.0, 2.0])),)),
        dtypes=FLOAT32,
        leading_axes=True,
    ),
    Layer(
        name="core.linalg.safe_svd (singular values)",
        function=lambda params, x: linalg.safe_svd(x)[1],
        make=_normal(3, 3),
        laws=(Law(O3_PAIR, (rep.Joint((rep.Vector(-1), rep.Vector(-2))),), rep.Trivial()),),
        degenerate=(lambda inputs: (jnp.eye(3),),),
        dtypes=FLOAT32,
        leading_axes=True,
    ),
    Layer(
        name="core.linalg.polar",
        function=lambda params, x: linalg.polar(x)[0],
        make=_normal(3, 3),
        laws=(
            Law(
                O3_PAIR,
                (rep.Joint((rep.Vector(-1), rep.Vector(-2))),),
                rep.Joint((rep.Vector(-1), rep.Vector(-2))),
            ),
        ),
        degenerate=(lambda inputs: (jnp.eye(3),), lambda inputs: (-jnp.eye(3),)),
        dtypes=FLOAT32,
        leading_axes=True,
    ),
    Layer(
        name="core.representations.wigner_d",
        # D(gR) = D(g) D(R): the law of a representation, with the group acting on the matrix from the left.
        function=lambda params, x: rep.wigner_d(x, 3),
        make=lambda key, dtype: ({}, (groups.SpecialOrthogonal(3).sample(key).astype(dtype),)),
        laws=(Law(O3, (rep.Vector(-2),), tuple(rep.Irreps(((l, (-1) ** l),), axis=-2) for l in range(4))),),
        leading_axes=True,
    ),
    Layer(
        name="core.assignment.sinkhorn",
        function=lambda params, x: assignment.sinkhorn(x, num_iterations=5),
        make=_normal(5, 5),
        laws=(Law(S5_PAIR, (PERMUTE_PAIR,), PERMUTE_PAIR),),
        leading_axes=True,
    ),
    Layer(
        name="core.assignment.linear_assignment",
        function=lambda params, x: jax.nn.one_hot(assignment.linear_assignment(x), 5, dtype=x.dtype),
        make=_normal(5, 5),
        laws=(Law(S5_PAIR, (PERMUTE_PAIR,), PERMUTE_PAIR),),
        dtypes=FLOAT32,
        leading_axes=True,
        check_vma=False,
        exempt={
            "finite_gradients": "an index has no gradient",
            "dtype_kept": "the result is an index; optax's solver keeps its potentials in the default float dtype",
        },
    ),
]
