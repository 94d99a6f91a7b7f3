r"""The Gaunt product as one accelerator kernel: grid values never leave the chip.

On a grid of G points the product is `z = ((x E1) * (y E2)) E3` with three constant matrices. Written as separate matrix
products it moves two arrays of G values a row through memory where in- and output have `(L + 1)^2`. The kernel takes a
block of rows and streams the grid through it in chunks: both operands are evaluated on the chunk, multiplied, and
projected onto an accumulator that stays in registers (GPU, through Triton) or VMEM (TPU, through Mosaic). Memory
traffic is that of the operands and the result, whatever the degree.

The product is a primitive that JAX knows to be bilinear. Its cotangents are products of the same kind,
`x_bar = GTP(y, z_bar)` and `y_bar = GTP(x, z_bar)` on the same grid, so one kernel serves derivatives of every order
and mode, and only `x` and `y` are kept for them.

On CPU the kernel runs in Pallas' interpreter: slow, and of the same numbers. Inside `shard_map` the interpreter needs
`check_vma=False`, since it mixes values that vary over devices with constants that do not.

The matrices are not split by parity as on CPU: with tiles of 128 columns nothing would be gained below degree 8, and
the coefficients would have to be sorted in memory. The kernel has been checked in the interpreter and lowered for both
targets; it has not been timed on either.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.irreps import degree_index
from equivariant_jax.euclidean.quadrature import sphere_quadrature

__all__ = ["fused_product"]

# Largest degree of a Lebedev rule; Gauss rules above.
_LEBEDEV_DEGREE = 131

Degrees = tuple[int, int, int]
# Factors per degree of x, y and the result, as tuples: parameters of a primitive must be hashable.
Factors = tuple[tuple[float, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None]


@functools.cache
def _matrices(degrees: Degrees, factors: Factors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Values [N1, G] and [N2, G], weighted projection [G, N3], with the factors folded in.
    total = sum(degrees)
    rule = sphere_quadrature(total, "lebedev" if total <= _LEBEDEV_DEGREE else "gauss")
    tables = []
    for lmax, factor in zip(degrees, factors, strict=True):
        table = sphere_table(rule.points, lmax)
        tables.append(table if factor is None else table * np.asarray(factor)[degree_index(lmax)])
    return tables[0].T, tables[1].T, tables[2] * rule.weights[:, None]


def _padded(matrix: np.ndarray, rows: int, columns: int, dtype) -> np.ndarray:
    out = np.zeros((rows, columns), dtype)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


# Algorithms of a matrix product as (exponent bits, mantissa bits, number of products): operands are rounded to that
# format, or split into a rounded part and a rounded remainder for three products.
_ALGORITHMS = {
    lax.DotAlgorithmPreset.BF16_BF16_F32: (jnp.bfloat16, 7, 1),
    lax.DotAlgorithmPreset.BF16_BF16_F32_X3: (jnp.bfloat16, 7, 3),
    lax.DotAlgorithmPreset.TF32_TF32_F32: (jnp.float32, 10, 1),
    lax.DotAlgorithmPreset.TF32_TF32_F32_X3: (jnp.float32, 10, 3),
}


def _dot(a: Array, b: Array, precision: Any, target: str) -> Array:
    accumulator = jnp.promote_types(a.dtype, jnp.float32)
    if target == "gpu" or not isinstance(precision, lax.DotAlgorithmPreset):
        return jnp.dot(a, b, precision=precision, preferred_element_type=accumulator)
    if precision is lax.DotAlgorithmPreset.F32_F32_F32:
        return jnp.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=accumulator)
    known = precision in _ALGORITHMS and (target == "interpret" or _ALGORITHMS[precision][0] == jnp.bfloat16)
    if not known or a.dtype != jnp.float32:
        raise ValueError(
            f"precision {precision} is not available for {a.dtype} in this kernel on {target}; use lax.Precision."
            "HIGHEST, or for float32 F32_F32_F32, BF16_BF16_F32, BF16_BF16_F32_X3 (and TF32 on GPU)."
        )
    dtype, mantissa, products = _ALGORITHMS[precision]

    def rounded(v: Array) -> Array:
        # The interpreter's compiler may drop a cast there and back; Mosaic does as it is told.
        return lax.reduce_precision(v, 8, mantissa) if target == "interpret" else v.astype(dtype).astype(v.dtype)

    def multiply(v: Array, w: Array) -> Array:
        exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
        return jnp.dot(v.astype(dtype), w.astype(dtype), precision=exact, preferred_element_type=accumulator)

    a_high, b_high = rounded(a), rounded(b)
    total = multiply(a_high, b_high)
    if products == 1:
        return total
    return total + (multiply(a_high, rounded(b - b_high)) + multiply(rounded(a - a_high), b_high))


def _tpu_kernel(x_ref, y_ref, e1_ref, e2_ref, e3_ref, out_ref, *, dot):
    # Grid (row blocks, chunks); the chunks run in sequence and share one block of the result.
    @pl.when(pl.program_id(1) == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)

    product = dot(x_ref[...], e1_ref[...]) * dot(y_ref[...], e2_ref[...])
    out_ref[...] += dot(product.astype(e3_ref.dtype), e3_ref[...])


def _tpu_product(x, y, *, degrees, factors, precision, interpret=False, block_rows=256, chunk=128):
    e1, e2, e3 = _matrices(degrees, factors)
    (rows, n1), n2, n3 = x.shape, e2.shape[0], e3.shape[1]
    points = chunk * math.ceil(e1.shape[1] / chunk)
    e1, e2 = (_padded(e, e.shape[0], points, x.dtype) for e in (e1, e2))
    e3 = _padded(e3, points, n3, x.dtype)
    block_rows = min(block_rows, 8 * math.ceil(rows / 8))
    out_dtype = jnp.promote_types(x.dtype, jnp.float32)
    out = pl.pallas_call(
        functools.partial(
            _tpu_kernel, dot=functools.partial(_dot, precision=precision, target="interpret" if interpret else "tpu")
        ),
        grid=(pl.cdiv(rows, block_rows), points // chunk),
        in_specs=[
            pl.BlockSpec((block_rows, n1), lambda i, j: (i, 0)),
            pl.BlockSpec((block_rows, n2), lambda i, j: (i, 0)),
            pl.BlockSpec((n1, chunk), lambda i, j: (0, j)),
            pl.BlockSpec((n2, chunk), lambda i, j: (0, j)),
            pl.BlockSpec((chunk, n3), lambda i, j: (j, 0)),
        ],
        out_specs=pl.BlockSpec((block_rows, n3), lambda i, j: (i, 0)),
        out_shape=_out_shape(x, n3, out_dtype),
        interpret=interpret,
        name="gaunt_product",
    )(x, y, e1, e2, e3)
    return out.astype(x.dtype)


def _gpu_kernel(x_ref, y_ref, e1_ref, e2_ref, e3_ref, out_ref, *, rows, sizes, chunk, chunks, blocks, dot):
    # Grid (row blocks, blocks of result columns); each program walks through the chunks with its sum in registers.
    from jax.experimental.pallas import triton

    block_rows, block_columns = blocks
    row = pl.program_id(0) * block_rows + jnp.arange(block_rows)
    first = pl.program_id(1) * block_columns
    column = first + jnp.arange(block_columns)
    inside = row[:, None] < rows

    def operand(ref, size):
        index = jnp.arange(pl.next_power_of_2(max(size, 16)))
        return triton.load(ref.at[row[:, None], index[None, :]], mask=inside & (index[None, :] < size), other=0.0)

    x, y = operand(x_ref, sizes[0]), operand(y_ref, sizes[1])

    def add_chunk(j, total):
        points = pl.ds(j * chunk, chunk)
        product = dot(x, e1_ref[:, points]) * dot(y, e2_ref[:, points])
        weights = e3_ref[points, pl.ds(first, block_columns)]
        return total + dot(product.astype(weights.dtype), weights)

    total = jnp.zeros((block_rows, block_columns), jnp.promote_types(x.dtype, jnp.float32))
    total = lax.fori_loop(0, chunks, add_chunk, total)
    triton.store(
        out_ref.at[row[:, None], column[None, :]],
        total.astype(out_ref.dtype),
        mask=inside & (column[None, :] < sizes[2]),
    )


def _gpu_product(x, y, *, degrees, factors, precision, interpret=False, block_rows=64, chunk=32):
    from jax.experimental.pallas import triton

    e1, e2, e3 = _matrices(degrees, factors)
    sizes = (x.shape[1], y.shape[1], e3.shape[1])
    points = chunk * math.ceil(e1.shape[1] / chunk)
    block_columns = min(128, pl.next_power_of_2(max(sizes[2], 16)))
    columns = block_columns * math.ceil(sizes[2] / block_columns)
    e1, e2 = (_padded(e, pl.next_power_of_2(max(e.shape[0], 16)), points, x.dtype) for e in (e1, e2))
    kernel = functools.partial(
        _gpu_kernel,
        rows=x.shape[0],
        sizes=sizes,
        chunk=chunk,
        chunks=points // chunk,
        blocks=(block_rows, block_columns),
        dot=functools.partial(_dot, precision=precision, target="interpret" if interpret else "gpu"),
    )
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(x.shape[0], block_rows), columns // block_columns),
        out_shape=_out_shape(x, sizes[2], x.dtype),
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="gaunt_product",
    )(x, y, e1, e2, _padded(e3, points, columns, x.dtype))


_product_p = Primitive("fused_gaunt_product")


def _bind(x: Array, y: Array, degrees: Degrees, factors: Factors, precision: Any) -> Array:
    return _product_p.bind(x, y, degrees=degrees, factors=factors, precision=precision)


@_product_p.def_abstract_eval
def _abstract(x, y, *, degrees, factors, precision):
    del y, factors, precision
    return x.update(shape=(x.shape[0], (degrees[2] + 1) ** 2))


def _out_shape(x: Array, columns: int, dtype) -> jax.ShapeDtypeStruct:
    # Under shard_map the result varies over the same mesh axes as the operands, which `fused_product` made equal.
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    extra: dict[str, Any] = {} if kind is None else {"manual_axis_type": kind}
    return jax.ShapeDtypeStruct((x.shape[0], columns), dtype, **extra)


def _vary_alike(x: Array, y: Array) -> tuple[Array, Array]:
    axes = [getattr(getattr(jax.typeof(v), "manual_axis_type", None), "varying", frozenset()) for v in (x, y)]
    both = axes[0] | axes[1]
    return tuple(
        lax.pcast(v, tuple(sorted(both - own)), to="varying") if both - own else v
        for v, own in zip((x, y), axes, strict=True)
    )  # type: ignore[return-value]


_cpu_product = functools.partial(_tpu_product, interpret=True)


@_product_p.def_impl
def _evaluate(x, y, **static):
    kernels = {"tpu": _tpu_product, "gpu": _gpu_product}
    return kernels.get(jax.default_backend(), _cpu_product)(x, y, **static)


mlir.register_lowering(_product_p, mlir.lower_fun(_cpu_product, multiple_results=False))
mlir.register_lowering(_product_p, mlir.lower_fun(_tpu_product, multiple_results=False), platform="tpu")
mlir.register_lowering(_product_p, mlir.lower_fun(_gpu_product, multiple_results=False), platform="cuda")


def _exchanged(degrees: Degrees, factors: Factors, order: tuple[int, int, int]) -> tuple[Degrees, Factors]:
    a, b, c = order
    return (degrees[a], degrees[b], degrees[c]), (factors[a], factors[b], factors[c])


def _x_cotangent(ct, x, y, *, degrees, factors, precision):
    return _bind(y, ct, *_exchanged(degrees, factors, (1, 2, 0)), precision)


def _y_cotangent(ct, x, y, *, degrees, factors, precision):
    return _bind(x, ct, *_exchanged(degrees, factors, (0, 2, 1)), precision)


ad.defbilinear(_product_p, _x_cotangent, _y_cotangent)


def _batch(operands, axes, **static):
    count = next(v.shape[a] for v, a in zip(operands, axes, strict=True) if a is not None)
    moved = [
        jnp.broadcast_to(v, (count, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
        for v, a in zip(operands, axes, strict=True)
    ]
    flat = [v.reshape(v.shape[0] * v.shape[1], v.shape[2]) for v in moved]
    out = _product_p.bind(*flat, **static)
    return out.reshape(count, moved[0].shape[1], out.shape[1]), 0


batching.primitive_batchers[_product_p] = _batch


def fused_product(
    x: Array, y: Array, lmax_out: int, scales: tuple[np.ndarray | None, ...], *, precision=lax.Precision.HIGHEST
) -> Array:
    """Multiplies two features in one kernel, coefficients last.

    Args:
      x: shape `[..., (L1 + 1)**2]`, float.
      y: shape `[..., (L2 + 1)**2]`, dtype of `x`; leading axes broadcast (in memory).
      lmax_out: static; largest degree of the result.
      scales: three NumPy factors per degree (of `x`, `y`, result) or None, folded into the constants.
      precision: static; precision of the matrix products.

    Returns:
      Array of shape `[..., (lmax_out + 1)**2]`, dtype of `x`.

    Example:
      >>> fused_product(jnp.ones((3, 4)), jnp.ones((3, 4)), 2, (None, None, None)).shape
      (3, 9)
    """
    leading = jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    rows = math.prod(leading)
    lmax1, lmax2 = math.isqrt(x.shape[-1]) - 1, math.isqrt(y.shape[-1]) - 1
    if rows == 0:
        return jnp.zeros((*leading, (lmax_out + 1) ** 2), x.dtype)
    x, y = (jnp.broadcast_to(v, (*leading, v.shape[-1])).reshape(rows, v.shape[-1]) for v in (x, y))
    x, y = _vary_alike(x, y)
    factors: Any = tuple(None if scale is None else tuple(np.asarray(scale).tolist()) for scale in scales)
    return _bind(x, y, (lmax1, lmax2, lmax_out), factors, precision).reshape(*leading, (lmax_out + 1) ** 2)
