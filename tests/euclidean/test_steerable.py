"""Steerable message passing: products, symmetry, the mirror pair, padding, degenerate inputs, and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import checks, groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import steerable_linear as linear
from equivariant_jax.euclidean import steerable_products as products
from equivariant_jax.euclidean.steerable import (
    SteerableConfig,
    SteerableNetwork,
    SteerableOutput,
    steerable_apply,
    steerable_init,
)

PRODUCTS = ("cg", "cg_odd", "gaunt", "gaunt_bracket")
BASE = SteerableConfig(
    scalars_in=2, vectors_in=1, edge_scalars_in=1, scalars_out=2, vectors_out=2, channels=3, layers=1,
    centred_positions=True,
)  # fmt: skip
# A chain of four points that differs from its mirror image.
SHAPE = np.array([[0.0, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1.2, 0]], np.float32)
CHAIN = np.eye(4, k=1, dtype=bool) | np.eye(4, k=-1, dtype=bool)

init = jax.jit(steerable_init, static_argnums=1)


def config_of(product, **changes):
    odd = product in ("cg_odd", "gaunt_bracket")
    return dataclasses.replace(BASE, product=product, pseudoscalars_out=2 * odd, **changes)


def inputs_of(key, n=5, leading=()):
    k = jax.random.split(key, 4)
    return (
        jax.random.normal(k[0], (*leading, n, 3)),
        jax.random.normal(k[1], (*leading, n, 2)),
        jax.random.normal(k[2], (*leading, n, 1, 3)),
        jax.random.normal(k[3], (*leading, n, n, 1)),
    )


def apply_of(config, params, **fixed):
    def apply(positions, scalars, vectors, edge_scalars):
        return steerable_apply(params, positions, scalars, config, vectors=vectors, edge_scalars=edge_scalars, **fixed)

    return apply


@dataclasses.dataclass(frozen=True)
class Determinant:
    """Pseudoscalars: multiplied by the determinant of the linear part."""

    def __call__(self, g, x):
        return x * jnp.linalg.det(g.matrix).astype(x.dtype)


@pytest.mark.parametrize(("lmax", "attribute_lmax"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["gaunt", "bracket"])
def test_sums_are_the_products_of_the_library(kind, lmax, attribute_lmax, x64, monkeypatch):
    k = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(k[0], ((lmax + 1) ** 2, 3, 7), jnp.float64)
    a = jax.random.normal(k[1], ((attribute_lmax + 1) ** 2, 7), jnp.float64)
    w = jax.random.normal(k[2], (3, attribute_lmax + 1), jnp.float64)
    for lmax_out in (0, 2):
        summed = products.weighted_product(kind, x, a, w, lmax_out=lmax_out)
        with monkeypatch.context() as patch:
            patch.setattr(products, "MAX_UNROLLED", -1)
            on_grid = products.weighted_product(kind, x, a, w, lmax_out=lmax_out)
        assert summed.dtype == on_grid.dtype == jnp.float64
        np.testing.assert_allclose(summed, on_grid, atol=1e-13)
    assert np.abs(summed).max() > 0.1


def test_every_clebsch_gordan_path_has_its_matrix(x64):
    """Against sums over e3nn's coefficients, path by path in NumPy."""
    import e3nn_jax

    kinds = [linear.SteerableType(1, 2, 3), linear.SteerableType(0, 1, 2)]
    static = {"product": "cg_odd", "lmax_out": 2}
    params = linear.attribute_linear_init(
        jax.random.key(0), kinds, attribute_lmax=2, channels_out=4, dtype=jnp.float64, **static
    )
    params["bias"] = jnp.arange(4.0, dtype=jnp.float64)
    k = jax.random.split(jax.random.key(1), 3)
    x, s = jax.random.normal(k[0], (2, 4, 3, 7), jnp.float64), jax.random.normal(k[1], (1, 1, 2, 7), jnp.float64)
    a = jax.random.normal(k[2], (9, 7), jnp.float64)
    expected = np.zeros((2, 9, 4, 7))
    counts = np.zeros((2, 3))
    for scale in (False, True):  # the first round counts the paths to each output degree
        for p in range(2):
            for l1 in range(2):
                at = 0
                for l2 in range(3):
                    for l3 in range(abs(l1 - l2), min(l1 + l2, 2) + 1):
                        to = (p + l1 + l2 + l3) % 2
                        if not scale:
                            counts[to, l3] += 1
                            continue
                        table = np.asarray(e3nn_jax.clebsch_gordan(l1, l2, l3), np.float64)
                        u = np.einsum("mci,cd->mdi", x[p, l1**2 : (l1 + 1) ** 2], params["kernels"][0][f"{p}_{l1}"][at])
                        if f"{p}_{l1}" in params["kernels"][1]:
                            u = u + np.einsum("mci,cd->mdi", s[0], params["kernels"][1][f"{p}_{l1}"][at])
                        z = np.einsum("mno,mdi,ni->odi", table, u, a[l2**2 : (l2 + 1) ** 2])
                        expected[to, l3**2 : (l3 + 1) ** 2] += z * np.sqrt((2 * l3 + 1) / counts[to, l3])
                        at += 1
    expected[0, 0] += np.arange(4.0)[:, None]
    np.testing.assert_allclose(linear.attribute_linear(params, [x, s], a, **static), expected, atol=1e-12)


@pytest.mark.parametrize("product", PRODUCTS)
def test_maps_keep_unit_variance(product):
    parities = linear.num_parities(product)
    kinds = [linear.SteerableType(1, parities, 32), linear.SteerableType(0, 1, 32)]
    static = {"product": product, "lmax_out": 1}
    k = jax.random.split(jax.random.key(0), 4)
    params = linear.attribute_linear_init(k[0], kinds, attribute_lmax=1, channels_out=32, **static)
    x, s = jax.random.normal(k[1], (parities, 4, 32, 300)), jax.random.normal(k[2], (1, 1, 32, 300))
    out = linear.attribute_linear(params, [x, s], jax.random.normal(k[3], (4, 300)), **static)
    variance = np.asarray(jnp.mean(out**2, axis=(2, 3)))
    # Paths from pseudo scalars or to degrees that fewer inputs reach vary about one.
    assert 0.4 < variance.min() < variance.max() < 2.5
    gate = linear.gated_init(k[3], linear.SteerableType(1, parities, 32))
    np.testing.assert_allclose(jnp.mean(linear.gated(gate, x) ** 2), 1.0, atol=0.2)


@pytest.mark.parametrize("product", PRODUCTS)
def test_equivariant_under_rotations_reflections_shifts(product):
    config = config_of(product, attribute_lmax=2)
    apply = apply_of(config, init(jax.random.key(1), config))
    checks.assert_equivariant(
        apply,
        groups.Euclidean(3),
        (rep.Point(), rep.Trivial(), rep.Vector(), rep.Trivial()),
        SteerableOutput(rep.Trivial(), Determinant(), rep.Vector()),
        jax.random.key(2),
        inputs_of(jax.random.key(3)),
    )


def test_equivariant_under_relabelling():
    config = config_of("gaunt_bracket")
    edges = jax.random.bernoulli(jax.random.key(9), 0.5, (5, 5))
    params = init(jax.random.key(1), config)

    def apply(positions, scalars, vectors, edge_scalars, edges):
        return apply_of(config, params, edges=edges > 0.5)(positions, scalars, vectors, edge_scalars)

    nodes, pairs = rep.Permuted((0,)), rep.Permuted((0, 1))
    checks.assert_equivariant(
        apply,
        groups.Symmetric(5),
        (nodes, nodes, nodes, pairs, pairs),
        SteerableOutput(nodes, nodes, nodes),
        jax.random.key(2),
        (*inputs_of(jax.random.key(3)), edges.astype(jnp.float32)),
    )


def mirror_outputs(product):
    config = SteerableConfig(
        scalars_out=3, pseudoscalars_out=2 * linear.num_parities(product) - 2, product=product, channels=8, layers=2,
        average_neighbours=1.5,
    )  # fmt: skip
    params = init(jax.random.key(0), config)
    mirrored = SHAPE * np.array([1.0, -1.0, 1.0], np.float32)
    scalars = jnp.array([[1.0], [2.0], [-1.0], [0.5]])
    apply = jax.jit(lambda x: steerable_apply(params, x, scalars, config, edges=jnp.asarray(CHAIN)))
    return apply(SHAPE), apply(mirrored)


@pytest.mark.parametrize("product", ["cg", "gaunt"])
def test_natural_paths_do_not_tell_a_mirror_image(product):
    first, second = mirror_outputs(product)
    assert np.abs(first.scalars).max() > 0.05
    np.testing.assert_allclose(first.scalars, second.scalars, rtol=1e-4, atol=1e-5)


def check_odd_paths(product):
    first, second = mirror_outputs(product)
    scale = np.abs(first.pseudoscalars).max()
    assert scale > 1e-3, "pseudoscalars are zero"
    np.testing.assert_allclose(first.scalars, second.scalars, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.pseudoscalars, -second.pseudoscalars, atol=1e-4 * scale)


@pytest.mark.parametrize("product", ["cg_odd", "gaunt_bracket"])
def test_odd_paths_tell_a_mirror_image(product):
    check_odd_paths(product)


def test_without_the_bracket_the_mirror_test_fails(monkeypatch):
    def natural_only(kind, x, *args, **kwargs):
        out = products.weighted_product(kind, x, *args, **kwargs)
        return jnp.zeros_like(out) if kind == "bracket" else out

    monkeypatch.setattr(linear, "weighted_product", natural_only)
    with pytest.raises(AssertionError, match="pseudoscalars are zero"):
        check_odd_paths("gaunt_bracket")


def test_padding_changes_nothing():
    config = config_of("gaunt_bracket")
    params = init(jax.random.key(1), config)
    positions, scalars, vectors, edge_scalars = inputs_of(jax.random.key(3), leading=(2,))
    mask = jnp.array([[True] * 4 + [False], [True] * 5])
    grown = [
        jnp.pad(x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2), constant_values=jnp.nan)
        for x in (positions, scalars, vectors)
    ]
    pairs = jnp.pad(edge_scalars, [(0, 0), (0, 3), (0, 3), (0, 0)], constant_values=jnp.nan)
    more = jnp.pad(mask, [(0, 0), (0, 3)])

    def loss(params, mask, positions, scalars, vectors, edge_scalars):
        out = apply_of(config, params, mask=mask)(positions, scalars, vectors, edge_scalars)
        return sum(jnp.sum(x**2) for x in out), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, small), small_gradient = step(params, mask, positions, scalars, vectors, edge_scalars)
    (_, large), large_gradient = step(params, more, *grown, pairs)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(b[:, :5], a, rtol=2e-4, atol=2e-4)
        assert not b[:, 5:].any()
        assert not a[0, 4].any()
    for a, b in zip(jax.tree.leaves(small_gradient), jax.tree.leaves(large_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * max(np.abs(a).max(), 1.0))


@pytest.mark.parametrize("product", ["cg_odd", "gaunt_bracket"])
def test_finite_on_degenerate_graphs(product):
    config = config_of(product)
    params = init(jax.random.key(1), config)
    inputs, mask, edges = inputs_of(jax.random.key(3), n=4), jnp.ones(4, bool), jnp.ones((4, 4), bool)
    cases = {
        "generic": (inputs, mask, edges),
        "coincident": ((inputs[0].at[1].set(inputs[0][0]), *inputs[1:]), mask, edges),
        "all zero": (tuple(jnp.zeros_like(x) for x in inputs), mask, edges),
        "no edges": (inputs, mask, ~edges),
        "one node": (inputs, mask.at[1:].set(False), edges),
        "no node": (inputs, ~mask, edges),
    }

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def slope(params, inputs, mask, edges):
        return sum(jnp.sum(x**2) for x in apply_of(config, params, mask=mask, edges=edges)(*inputs))

    for name, case in cases.items():
        value, gradients = slope(params, *case)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradients))), name
        assert (value > 0) == (name not in ("all zero", "no node")), name


def test_leading_axes_and_module():
    config = config_of("gaunt")
    inputs = inputs_of(jax.random.key(0), leading=(2, 3))
    module = SteerableNetwork(config)
    keywords = {"vectors": inputs[2], "edge_scalars": inputs[3]}
    variables = jax.jit(module.init)(jax.random.key(1), *inputs[:2], **keywords)
    out = jax.jit(module.apply)(variables, *inputs[:2], **keywords)
    assert [x.shape for x in out] == [(2, 3, 5, 2), (2, 3, 5, 0), (2, 3, 5, 2, 3)]
    apply = apply_of(config, variables["params"]["network"])
    for a, b in zip(out, jax.jit(jax.vmap(jax.vmap(apply)))(*inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_an_edge_is_directed():
    """Only the receiver of an edge sees the sender's scalars."""
    config = SteerableConfig(scalars_out=1, product="gaunt", channels=4, layers=1)
    params = init(jax.random.key(0), config)
    edges = jnp.zeros((3, 3), bool).at[0, 1].set(True)
    apply = jax.jit(functools.partial(steerable_apply, params, jnp.eye(3), config=config, edges=edges))
    change = apply(jnp.ones((3, 1))).scalars - apply(jnp.array([[1.0], [2.0], [1.0]])).scalars
    assert abs(change[0, 0]) > 1e-4
    assert abs(change[1, 0]) > 1e-4
    assert change[2, 0] == 0


def test_bad_input():
    for changes, message in (
        ({"scalars_out": 0, "vectors_out": 0}, "at least one of the outputs"),
        ({"pseudoscalars_out": 1, "product": "gaunt"}, "no pseudoscalar"),
        ({"lmax": 0}, "no room for vectors"),
        ({"attribute_lmax": -1}, "negative"),
        ({"product": "gaunts", "pseudoscalars_out": 1}, "expected one of cg"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(BASE, **changes)
    params = init(jax.random.key(0), BASE)
    positions, scalars, vectors, edge_scalars = inputs_of(jax.random.key(0))
    good = {"vectors": vectors, "edge_scalars": edge_scalars}
    for arguments, keywords, message in (
        ((positions[:, :2], scalars), good, r"expected `\[..., n, 3\]`"),
        ((positions, scalars[:, :1]), good, "scalars have shape"),
        ((positions, scalars), {"vectors": vectors}, "edge_scalars are missing"),
        ((positions, scalars), {**good, "mask": jnp.ones(5)}, "expected bool"),
        ((positions, scalars), {**good, "edges": jnp.ones((5, 4), bool)}, "edges have shape"),
        ((positions, scalars.astype(jnp.bfloat16)), good, "cast one of them"),
        (tuple(x.astype(jnp.bfloat16) for x in (positions, scalars)),
         {k: v.astype(jnp.bfloat16) for k, v in good.items()}, "parameters float32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            steerable_apply(params, *arguments, BASE, **keywords)
    plain = dataclasses.replace(BASE, edge_scalars_in=0)
    with pytest.raises(ValueError, match="the configuration has none"):
        steerable_apply(params, positions, scalars, plain, **good)
    kind = linear.SteerableType(1, 2, 3)
    with pytest.raises(ValueError, match="natural features only"):
        linear.attribute_linear_init(
            jax.random.key(0), [kind], product="gaunt", attribute_lmax=1, lmax_out=1, channels_out=2
        )
    static = {"product": "cg_odd", "lmax_out": 1}
    params = linear.attribute_linear_init(jax.random.key(0), [kind], attribute_lmax=1, channels_out=2, **static)
    with pytest.raises(ValueError, match="made for 1"):
        linear.attribute_linear(params, [jnp.ones((2, 4, 3, 5))] * 2, jnp.ones((4, 5)), **static)
    with pytest.raises(ValueError, match="trailing axes"):
        linear.attribute_linear(params, [jnp.ones((2, 4, 3, 5))], jnp.ones((4,)), **static)
    with pytest.raises(ValueError, match="kind must be"):
        products.weighted_product("cg", jnp.ones((4, 3)), jnp.ones((4,)), jnp.ones((3, 2)), lmax_out=1)
