"""The contracts: each takes a `Layer` and raises AssertionError if the layer breaks it."""

import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from equivariant_jax.core import checks

__all__ = ["CONTRACTS"]

# Two orders of the same float32 sums differ by a few units of rounding for each level of the tree; 256 epsilon
# bounds what layers of this library reach, and is a thousand times below any fault that the mutation tests plant.
ROUNDING = 256


def close(got, want, what, scale_factor=1.0):
    """Compares pytrees leaf by leaf to `ROUNDING` epsilon of the leaf's largest entry."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = f"{what}: output{jax.tree_util.keystr(path)}"
        assert a.shape == b.shape, f"{name} has shape {a.shape}, expected {b.shape}"
        assert a.dtype == b.dtype, f"{name} has dtype {a.dtype}, expected {b.dtype}"
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        tolerance = ROUNDING * scale_factor * float(jnp.finfo(jax.tree.leaves(got)[0].dtype).eps)
        limit = tolerance * max(np.abs(b).max(initial=0.0), 1e-30)
        gap = np.abs(a - b).max(initial=0.0)
        assert gap <= limit, f"{name} differs by {gap:.2e}, allowed {limit:.2e}"


@functools.cache
def example(layer, seed=0, dtype="float32"):
    return layer.make(jax.random.key(seed), dtype)


def stacked(layer, size):
    """One set of parameters and `size` different inputs stacked along a new leading axis."""
    params, _ = example(layer)
    inputs = [example(layer, seed)[1] for seed in range(size)]
    return params, jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *inputs), inputs


def equivariance(layer):
    assert layer.laws or "equivariance" in layer.exempt, f"{layer.name} states no law; add one, or say why not"
    params, inputs = example(layer)
    for i, law in enumerate(layer.laws):
        checks.assert_equivariant(
            functools.partial(layer.function, params),
            law.group,
            law.act_in,
            law.act_out,
            jax.random.key(17 + i),
            inputs,
        )


@contextlib.contextmanager
def optimised():
    """Compiles with XLA's optimisations, which tests/conftest.py leaves out."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def jit_equals_eager(layer):
    params, inputs = example(layer)
    eager = layer.function(params, *inputs)
    emitters = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters=false" in os.environ["XLA_FLAGS"] else None
    compiled = jax.jit(layer.function, compiler_options=emitters)
    with optimised():  # what optimisation could change shows here
        close(compiled(params, *inputs), eager, "jit against eager")
    # A second call of both: hidden state shows as a change from one call to the next.
    close(compiled(params, *inputs), layer.function(params, *inputs), "second call, jit against eager")


def vmap_equals_loop(layer):
    params, batch, singles = stacked(layer, 3)
    one = jax.jit(layer.function)
    loop = jax.tree.map(lambda *x: jnp.stack(x), *[one(params, *inputs) for inputs in singles])
    mapped = jax.jit(jax.vmap(layer.function, in_axes=(None,) + (0,) * len(singles[0])))
    close(mapped(params, *batch), loop, "vmap against loop")
    if layer.leading_axes:
        close(one(params, *batch), loop, "leading axis against loop")


def _floating(tree):
    return all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(tree))


def _fill(inputs, value):
    def one(x):
        return jnp.full_like(x, value) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(one, inputs)


def finite_gradients(layer):
    params, inputs = example(layer)
    arguments = (params, *inputs)
    argnums = tuple(i for i, x in enumerate(arguments) if jax.tree.leaves(x) and _floating(x))
    if not argnums:
        assert "finite_gradients" in layer.exempt, f"{layer.name} has no floating input"
        return

    def loss(*args):
        out = layer.function(*args)
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(out))

    cases = {
        "generic": inputs,
        "zeros": _fill(inputs, 0.0),
        "ones": _fill(inputs, 1.0),
        **{f"degenerate {i}": f(inputs) for i, f in enumerate(layer.degenerate)},
    }
    slope = jax.jit(jax.value_and_grad(loss, argnums=argnums))
    for name, case in cases.items():
        value, gradient = slope(params, *case)
        assert jnp.isfinite(value), f"the output is not finite at the input '{name}'"
        for path, g in jax.tree_util.tree_leaves_with_path(gradient):
            bad = int(jnp.sum(~jnp.isfinite(g)))
            assert bad == 0, f"{bad} gradient entries are not finite at the input '{name}', leaf {path}"


def dtype_kept(layer):
    for dtype in layer.dtypes:
        params, inputs = example(layer, 0, dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(jax.eval_shape(layer.function, params, *inputs)):
            if jnp.issubdtype(x.dtype, jnp.floating):
                assert x.dtype == dtype, f"{dtype} in, {x.dtype} out at output{jax.tree_util.keystr(path)}"
    # With 64-bit types allowed, a constant that was not cast shows as a float64 somewhere in the program.
    params, inputs = example(layer)
    with jax.enable_x64(True):
        program = jax.make_jaxpr(layer.function)(params, *inputs)
    wide = sorted({str(v.aval) for v in _values(program.jaxpr) if getattr(v.aval, "dtype", None) == np.float64})
    assert not wide, f"float32 inputs are computed with in float64: {wide[:3]}"


def _values(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v for v in equation.outvars if v.aval.shape != () or not getattr(v.aval, "weak_type", False))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _values(inner)


def padding_blind(layer):
    if layer.padding is None:
        return
    params, inputs = example(layer)
    padding, output_padding = layer.padding(inputs)
    checks.assert_padding_invariant(
        functools.partial(layer.function, params),
        inputs,
        padding,
        jax.random.key(3),
        output_padding=output_padding,
    )


def one_trace(layer):
    calls = [(example(layer)[0], *example(layer, seed)[1]) for seed in range(3)]
    checks.assert_one_trace(layer.function, *calls)


def sharded_equals_single(layer):
    devices = jax.devices()
    assert len(devices) >= 4, "the contract needs four (fake) devices; see tests/conftest.py"
    params, batch, singles = stacked(layer, 8)
    function = (
        layer.function if layer.leading_axes else jax.vmap(layer.function, in_axes=(None,) + (0,) * len(singles[0]))
    )
    # One item at a time on one device: what a sharded batch has to reproduce.
    one = jax.jit(layer.function)
    single = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *[one(params, *x) for x in singles])

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:4])
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    spread = jax.device_put(batch, rows)
    copied = jax.device_put(params, everywhere)
    global_program = jax.jit(lambda p, b: function(p, *b), out_shardings=rows)
    close(global_program(copied, spread), single, "jit with shardings against one device")

    specs = (PartitionSpec(), PartitionSpec("data"))
    local = jax.shard_map(
        lambda p, b: function(p, *b),
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec("data"),
        check_vma=layer.check_vma,
    )
    close(jax.jit(local)(copied, spread), single, "shard_map against one device")

    folded = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    # Parameters are closed over: pmap of jax 0.10 shifts the in_axes that follow an argument without leaves.
    mapped = jax.pmap(lambda b: function(params, *b), devices=devices[:4])(folded)
    mapped = jax.tree.map(lambda x: np.asarray(x).reshape(8, *x.shape[2:]), mapped)
    close(mapped, single, "pmap against one device")


CONTRACTS = {
    f.__name__: f
    for f in (
        equivariance,
        jit_equals_eager,
        vmap_equals_loop,
        finite_gradients,
        dtype_kept,
        padding_blind,
        one_trace,
        sharded_equals_single,
    )
}
