"""The fused kernel in Pallas' interpreter: the reference's numbers, its derivatives, lowering for accelerators."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from equivariant_jax.euclidean import fused, gaunt_tensor_product
from equivariant_jax.euclidean.fused import _gpu_product, _tpu_product

PRESETS = lax.DotAlgorithmPreset


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("l", range(9))
def test_both_kernels_give_the_references_numbers(l):
    x, y = normal(0, 37, (l + 1) ** 2), normal(1, 37, (l + 1) ** 2)
    expected = gaunt_tensor_product(x, y, method="octant")
    static = {"degrees": (l, l, 2 * l), "factors": (None, None, None), "precision": lax.Precision.HIGHEST}
    for kernel in (_tpu_product, _gpu_product):
        z = kernel(x, y, **static, interpret=True)
        # Two roundings of sums of at most 434 * 81 products: measured 2e-7, allowed 16 eps.
        assert np.abs(z - expected).max() <= 16 * 2.0**-23 * np.abs(expected).max(), kernel


@pytest.mark.parametrize(("rows", "l1", "l2", "l3"), [(1, 2, 3, 1), (300, 1, 2, 3), (70, 3, 0, 3), (65, 0, 0, 0)])
def test_ragged_sizes(rows, l1, l2, l3):
    x, y = normal(0, rows, (l1 + 1) ** 2), normal(1, rows, (l2 + 1) ** 2)
    expected = gaunt_tensor_product(x, y, lmax_out=l3, method="grid")
    static = {"degrees": (l1, l2, l3), "factors": (None, None, None), "precision": lax.Precision.HIGHEST}
    for kernel, sizes in ((_tpu_product, {"block_rows": 64}), (_gpu_product, {"block_rows": 64})):
        np.testing.assert_allclose(kernel(x, y, **static, **sizes, interpret=True), expected, atol=1e-5)


def test_derivatives_of_every_order_and_mode():
    x, y, u, v = (normal(seed, 6, 9) for seed in range(4))

    def product(method):
        return lambda x, y: gaunt_tensor_product(x, y, lmax_out=2, method=method, normalization="component")

    def third(f):
        energy = lambda x, y: jnp.sum(jnp.sin(f(x, y)))  # noqa: E731
        slope = jax.grad(energy)
        return (
            jax.jvp(f, (x, y), (u, v))[1],
            jax.grad(energy, argnums=(0, 1))(x, y),
            jax.jvp(slope, (x, y), (u, v))[1],
            jax.grad(lambda x: jnp.vdot(slope(x, y), u))(x),
            jax.grad(lambda y: jnp.vdot(slope(x, y), u))(y),
            jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.vdot(slope(x, y), u))(x) ** 2))(x),
            jax.vmap(slope)(x, y),
            jax.vmap(slope, in_axes=(0, None))(x, y[0]),
        )

    for ours, expected in zip(
        jax.tree.leaves(third(product("fused"))), jax.tree.leaves(third(product("grid"))), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=3e-5 * np.abs(expected).max())
        assert np.abs(expected).max() > 1e-2


def test_cotangents_run_in_the_same_kernel():
    text = str(
        jax.make_jaxpr(lambda x, y, z: jax.vjp(lambda x, y: gaunt_tensor_product(x, y, method="fused"), x, y)[1](z))(
            jnp.ones((5, 4)), jnp.ones((5, 9)), jnp.ones((5, 16))
        )
    )
    assert text.count("fused_gaunt_product") == 3  # the product, and one for each operand
    assert "dot_general" not in text


@pytest.mark.parametrize(
    ("preset", "bound"),
    [
        (PRESETS.F32_F32_F32, 1e-6),
        (PRESETS.TF32_TF32_F32_X3, 1e-6),
        (PRESETS.BF16_BF16_F32_X3, 2e-5),
        (PRESETS.TF32_TF32_F32, 1e-3),
        (PRESETS.BF16_BF16_F32, 8e-3),
    ],
)
def test_precision_presets_have_the_errors_of_their_formats(x64, preset, bound):
    """bf16 keeps 8 bits (4e-3), tf32 11 bits (5e-4); three products square that. rms over a product of degree 8."""
    x, y = normal(0, 64, 81, dtype="float64"), normal(1, 64, 81, dtype="float64")
    exact = gaunt_tensor_product(x.astype("float32").astype("float64"), y.astype("float32").astype("float64"))
    z = gaunt_tensor_product(x.astype("float32"), y.astype("float32"), method="fused", precision=preset)
    error = np.sqrt(np.mean((np.asarray(z, np.float64) - exact) ** 2) / np.mean(exact**2))
    assert bound / 100 < error < bound  # a preset that does not reach the kernel would be exact


def abstract_machine(kind, platform):
    """A mesh of one device that is not here: newer jax asks it for the compute capability to lower for."""
    names = inspect.signature(jax.sharding.AbstractDevice).parameters
    extra = {"platform": platform} if "platform" in names else {}  # jax 0.10 has no such field
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, **extra)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


# 2026-11: jax 0.12 announces the end of Pallas on Triton; falls when the kernel is written for Mosaic on GPU.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("platform", "kind"), [("cuda", "NVIDIA H100 80GB HBM3"), ("tpu", "TPU v5 lite")])
@pytest.mark.parametrize("l", [1, 4, 8])
def test_lowers_for_accelerators(platform, kind, l):
    def loss(x, y):
        return jnp.sum(gaunt_tensor_product(x, y, method="fused") ** 2)

    shape = jax.ShapeDtypeStruct((1000, (l + 1) ** 2), jnp.float32)
    with abstract_machine(kind, "gpu" if platform == "cuda" else platform):
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(shape, shape)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    target = "tpu_custom_call" if platform == "tpu" else "triton"
    assert text.count(f"custom_call @{target}") + text.count(f"@__gpu$xla.gpu.{target}") == 3
    assert text.count("stablehlo.dot_general") == 0


def test_an_unknown_algorithm_is_named():
    x = normal(0, 5, 4)
    with pytest.raises(ValueError, match="F16_F16_F16"):
        gaunt_tensor_product(x, x, method="fused", precision=PRESETS.F16_F16_F16)


def test_no_rows():
    assert gaunt_tensor_product(jnp.ones((0, 4)), jnp.ones((0, 4)), method="fused").shape == (0, 9)
    assert fused.fused_product(jnp.ones(4), jnp.ones(4), 2, (None, None, None)).shape == (9,)
