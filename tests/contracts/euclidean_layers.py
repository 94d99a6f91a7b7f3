"""Contract entries of the functions of `euclidean` and of the network blocks it uses."""

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import (
    bessel_basis,
    cg_convolution_slots,
    contraction_paths,
    coupling_paths,
    degree_linear,
    edge_frames,
    from_sphere_grid,
    gaunt_contraction,
    gaunt_convolution,
    gaunt_convolution_slots,
    gaunt_polynomial,
    gaunt_power,
    gaunt_tensor_product,
    polynomial_cutoff,
    rotate_from_frame,
    rotate_to_frame,
    spherical_harmonics,
    spherical_poisson_bracket,
    symmetric_contraction,
    to_sphere_grid,
)
from equivariant_jax.euclidean.equiformer_layers import (
    equivariant_layer_norm,
    layer_norm_init,
    selfmix,
    selfmix_init,
    sphere_activation,
)
from equivariant_jax.nn.dense import dense_apply, dense_init
from equivariant_jax.nn.mlp import mlp_apply, mlp_init
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

O3 = groups.Orthogonal(3)
FIELD, LAST = rep.Irreps, -1
# Pseudo parity on one factor: mixed products are pseudo-fields, (-1)^(l+1) under inversion.
PSEUDO = rep.Irreps(tuple((l, -((-1) ** l)) for l in range(3)))
PSEUDO_OUT = rep.Irreps(tuple((l, -((-1) ** l)) for l in range(6)))


def _normal(*shapes):
    def make(key, dtype):
        keys = jax.random.split(key, len(shapes))
        return {}, tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))

    return make


def _coincident(inputs):
    return (inputs[0].at[1].set(inputs[0][0]), *inputs[1:])


# A convolution over eight edges of five nodes, the last two edges padding.
SENDERS = np.array([1, 2, 0, 3, 4, 0, 4, 4], np.int32)
RECEIVERS = np.array([0, 0, 1, 1, 2, 3, 4, 4], np.int32)
EDGE_MASK = np.array([True] * 6 + [False] * 2)
SLOT_SENDERS = np.array([[1, 2], [0, 3], [4, 0], [0, 0], [0, 0]], np.int32)


def _convolution(method):
    def function(params, x, vectors, radial, mask):
        return gaunt_convolution(x, vectors, radial, SENDERS, RECEIVERS, lmax_out=2, method=method, mask=mask)

    return function


def _convolution_inputs(key, dtype):
    _, (x, vectors, radial) = _normal((5, 4, 2), (8, 3), (8, 3, 2))(key, dtype)
    return {}, (x, vectors, radial, jnp.asarray(EDGE_MASK))


def _slots(params, x, vectors, radial):
    harmonics = spherical_harmonics(vectors, 2, normalization="integral")
    return gaunt_convolution_slots(x, harmonics, radial, SLOT_SENDERS, lmax_out=2)


def _in_frame(params, x, vectors):
    """What is left of a field when only orders up to 1 about an edge are kept, seen from outside again."""
    wigner = rep.wigner_d(edge_frames(vectors), 2)
    return rotate_from_frame(rotate_to_frame(x, wigner, mmax=1), wigner, mmax=1)


CG_PATHS = len(coupling_paths(1, 2, 2))
CONTRACTION_PATHS = sum(map(sum, contraction_paths(2, 1, 3)))


def _cg_slots(params, x, vectors, radial):
    harmonics = spherical_harmonics(vectors, 2)
    return cg_convolution_slots(
        x, harmonics, radial, SLOT_SENDERS, lmax_out=2, kernels=params["kernels"], normalization="component"
    )


def _cg_slots_inputs(key, dtype):
    params = {"kernels": jax.random.normal(key, (CG_PATHS, 2, 3), dtype)}
    return params, _normal((5, 4, 2), (5, 2, 3), (5, 2, CG_PATHS, 2))(key, dtype)[1]


def _contraction_inputs(key, dtype):
    params = {"w": jax.random.normal(key, (1, CONTRACTION_PATHS, 3), dtype)}
    return params, _normal((4, 9, 3))(key, dtype)[1]


LAYERS = [
    Layer(
        name="euclidean.spherical_harmonics",
        function=lambda params, v: spherical_harmonics(v, 4),
        make=_normal((5, 3)),
        laws=(Law(O3, (rep.Vector(),), FIELD(4)),),
        degenerate=(
            lambda inputs: (inputs[0].at[0].set(0.0),),
            lambda inputs: (inputs[0].at[0].set(jnp.array([0.0, 1.0, 0.0], inputs[0].dtype)),),
        ),
        leading_axes=True,
    ),
    *(
        Layer(
            name=f"euclidean.gaunt_tensor_product ({method})",
            function=lambda params, x, y, method=method: gaunt_tensor_product(x, y, method=method),
            make=_normal((4, 9), (4, 16)),
            laws=(
                Law(O3, (FIELD(2), FIELD(3)), FIELD(5)),
                Law(O3, (PSEUDO, FIELD(3)), PSEUDO_OUT),
            ),
            dtypes=("float32",) if method == "fourier" else ("float32", "bfloat16"),
            leading_axes=True,
            check_vma=method != "fused",
        )
        for method in ("grid", "quadrant", "octant", "separable", "fourier", "sparse", "fused")
    ),
    Layer(
        name="euclidean.gaunt_tensor_product (component, truncated, weighted)",
        function=lambda params, x, y: gaunt_tensor_product(
            x, y, lmax_out=1, normalization="component", weights=(None, None, params["w"].reshape(1, 2))
        ),
        make=lambda key, dtype: ({"w": jnp.asarray([0.5, 2.0], dtype)}, _normal((4, 9), (4, 9))(key, dtype)[1]),
        laws=(Law(O3, (FIELD(2), FIELD(2)), FIELD(1)),),
    ),
    *(
        Layer(
            name=f"euclidean.spherical_poisson_bracket ({method})",
            function=lambda params, x, y, method=method: spherical_poisson_bracket(x, y, method=method),
            make=_normal((4, 9), (4, 16)),
            laws=(
                Law(O3, (FIELD(2), FIELD(3)), rep.Irreps(tuple((l, -((-1) ** l)) for l in range(5)))),
                Law(O3, (PSEUDO, FIELD(3)), FIELD(4)),
            ),
            leading_axes=True,
        )
        for method in ("grid", "octant", "separable")
    ),
    Layer(
        name="euclidean.gaunt_power",
        function=lambda params, x: gaunt_power(x, 3),
        make=_normal((4, 9)),
        laws=(Law(O3, (FIELD(2),), FIELD(2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.gaunt_polynomial",
        function=lambda params, x: gaunt_polynomial(x, jnp.broadcast_to(params["w"], (4, 3, 2, 3)), lmax_out=1),
        make=lambda key, dtype: (
            {"w": jax.random.normal(key, (3, 2, 3), dtype)[None]},
            _normal((4, 9, 3))(key, dtype)[1],
        ),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(1, axis=-2)),),
    ),
    Layer(
        name="euclidean.gaunt_contraction",
        function=lambda params, x: gaunt_contraction(x, jnp.broadcast_to(params["w"], (4, 16, 3)), lmax_out=1, order=3),
        make=lambda key, dtype: (
            {"w": jax.random.normal(key, (16, 3), dtype)[None]},
            _normal((4, 9, 3))(key, dtype)[1],
        ),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(1, axis=-2)),),
    ),
    Layer(
        name="euclidean.to_sphere_grid, squared, from_sphere_grid",
        function=lambda params, x: from_sphere_grid(to_sphere_grid(x, 6) ** 2, 2, 6),
        make=_normal((4, 9)),
        laws=(Law(O3, (FIELD(2),), FIELD(2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.degree_linear",
        function=lambda params, x: degree_linear(params["kernels"], x),
        make=lambda key, dtype: (
            {"kernels": jax.random.normal(key, (3, 2, 4), dtype)},
            _normal((5, 9, 2))(key, dtype)[1],
        ),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(2, axis=-2)),),
        leading_axes=True,
    ),
    *(
        Layer(
            name=f"euclidean.gaunt_convolution ({method})",
            function=_convolution(method),
            make=_convolution_inputs,
            laws=(Law(O3, (FIELD(1, axis=-2), rep.Vector(), rep.Trivial(), rep.Trivial()), FIELD(2, axis=-2)),),
            degenerate=(
                lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]), *inputs[2:]),
                lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]).at[:, 1].set(-1.0), *inputs[2:]),
            ),
            padding=lambda inputs: ((None, ~inputs[3], ~inputs[3], None), None),
        )
        for method in ("grid", "rotated")
    ),
    Layer(
        name="euclidean.gaunt_convolution_slots",
        function=_slots,
        make=_normal((5, 4, 2), (5, 2, 3), (5, 2, 3, 2)),
        laws=(Law(O3, (FIELD(1, axis=-2), rep.Vector(), rep.Trivial()), FIELD(2, axis=-2)),),
        degenerate=(lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]), inputs[2]),),
    ),
    Layer(
        name="euclidean.radial basis with cut-off",
        function=lambda params, v: (
            bessel_basis(jnp.sqrt(jnp.sum(v**2, -1) + jnp.asarray(1e-4, v.dtype)), 4, 3.0)
            * polynomial_cutoff(jnp.sqrt(jnp.sum(v**2, -1) + jnp.asarray(1e-4, v.dtype)), 3.0)[..., None]
        ),
        make=_normal((5, 3)),
        laws=(Law(O3, (rep.Vector(),), rep.Trivial()),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.cg_convolution_slots",
        function=_cg_slots,
        make=_cg_slots_inputs,
        laws=(Law(O3, (FIELD(1, axis=-2), rep.Vector(), rep.Trivial()), FIELD(2, axis=-2)),),
        degenerate=(lambda inputs: (inputs[0], jnp.zeros_like(inputs[1]), inputs[2]),),
    ),
    *(
        Layer(
            name=f"euclidean.symmetric_contraction ({method})",
            function=lambda params, x, method=method: symmetric_contraction(
                x, params["w"], lmax_out=1, order=3, method=method
            ),
            make=_contraction_inputs,
            laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(1, axis=-2)),),
        )
        for method in ("horner", "monomials")
    ),
    Layer(
        name="euclidean.rotate_to_frame, rotate_from_frame",
        function=_in_frame,
        make=_normal((5, 9, 2), (5, 3)),
        laws=(Law(O3, (FIELD(2, axis=-2), rep.Vector()), FIELD(2, axis=-2)),),
        degenerate=(
            lambda inputs: (inputs[0], inputs[1].at[0].set(jnp.array([0.0, -1.0, 0.0], inputs[1].dtype))),
            lambda inputs: (inputs[0], inputs[1].at[0].set(0.0)),
        ),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.equivariant_layer_norm",
        function=equivariant_layer_norm,
        make=lambda key, dtype: (layer_norm_init(2, 4, dtype=dtype), _normal((5, 9, 4))(key, dtype)[1]),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(2, axis=-2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.sphere_activation (a square, which the grid resolves)",
        function=lambda params, x, s: sphere_activation(x, s, lmax=2, grid_degree=6, function=jnp.square),
        make=_normal((5, 9, 2), (5, 2)),
        laws=(Law(O3, (FIELD(2, axis=-2), rep.Trivial()), FIELD(2, axis=-2)),),
        leading_axes=True,
    ),
    Layer(
        name="euclidean.selfmix",
        function=selfmix,
        make=lambda key, dtype: (selfmix_init(jax.random.key(3), 2, 4, dtype=dtype), _normal((5, 9, 4))(key, dtype)[1]),
        laws=(Law(O3, (FIELD(2, axis=-2),), FIELD(2, axis=-2)),),
        leading_axes=True,
    ),
    Layer(
        name="nn.dense_apply",
        function=lambda params, x: dense_apply(params, x),
        make=lambda key, dtype: (dense_init(key, 3, 2, dtype=dtype), _normal((5, 3))(key, dtype)[1]),
        laws=(Law(groups.Symmetric(5), (rep.Permuted(),), rep.Permuted()),),
        leading_axes=True,
    ),
    Layer(
        name="nn.mlp",
        function=lambda params, x: mlp_apply(params, x),
        make=lambda key, dtype: (mlp_init(key, (3, 8, 2), dtype=dtype), _normal((5, 3))(key, dtype)[1]),
        laws=(Law(groups.Symmetric(5), (rep.Permuted(),), rep.Permuted()),),
        leading_axes=True,
    ),
]
