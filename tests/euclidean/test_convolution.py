"""The forms of the convolution and the neighbour table, against a loop over edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean.convolution import gaunt_convolution, gaunt_convolution_slots
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.irreps import degree_index
from equivariant_jax.euclidean.neighbours import neighbour_slots

NODES, SLOTS, CHANNELS = 4, 5, 3


@pytest.fixture
def edges():
    receivers = np.array([2, 0, 1, 0, 2, 2, 3, 3, 3], np.int32)
    senders = np.array([0, 1, 2, 2, 1, 3, 0, 3, 3], np.int32)
    mask = np.array([True] * 7 + [False] * 2)
    return jnp.asarray(senders), jnp.asarray(receivers), jnp.asarray(mask)


def inputs(lmax_in, lmax, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(NODES, (lmax_in + 1) ** 2, CHANNELS)))
    vectors = jnp.asarray(rng.normal(size=(9, 3)))
    radial = jnp.asarray(rng.normal(size=(9, lmax + 1, CHANNELS)))
    return x, vectors, radial


def by_loop(x, harmonics, radial, senders, receivers, mask, lmax_out):
    x, harmonics, radial = (np.asarray(a) for a in (x, harmonics, radial))
    lmax = radial.shape[1] - 1
    table = gaunt_table(int(np.sqrt(x.shape[1])) - 1, lmax, lmax_out)
    out = np.zeros((NODES, (lmax_out + 1) ** 2, CHANNELS))
    for e in np.flatnonzero(mask):
        for c in range(CHANNELS):
            h = radial[e, degree_index(lmax), c] * harmonics[e]
            out[receivers[e], :, c] += np.einsum("i,j,ijk->k", x[senders[e], :, c], h, table)
    return out


def with_slots(x, harmonics, radial, senders, receivers, mask, lmax_out):
    slots = neighbour_slots(receivers, NODES, SLOTS, mask=mask)
    kept = jnp.where(slots.mask[..., None, None], radial[slots.edges], 0.0)
    return gaunt_convolution_slots(x, harmonics[slots.edges], kept, senders[slots.edges], lmax_out=lmax_out)


@pytest.mark.parametrize(("lmax_in", "lmax", "lmax_out"), [(0, 2, 2), (0, 1, 3), (0, 3, 1), (1, 2, 2), (2, 1, 3)])
def test_all_forms_equal_the_loop(x64, edges, lmax_in, lmax, lmax_out):
    senders, receivers, mask = edges
    x, vectors, radial = inputs(lmax_in, lmax)
    harmonics = spherical_harmonics(vectors, lmax, normalization="integral")
    expected = by_loop(x, harmonics, radial, senders, receivers, mask, lmax_out)
    assert np.abs(expected[3]).max() > 0.01
    for method in ("grid", "rotated"):
        out = gaunt_convolution(x, vectors, radial, senders, receivers, lmax_out=lmax_out, method=method, mask=mask)
        np.testing.assert_allclose(out, expected, atol=1e-12)
    slots = with_slots(x, harmonics, radial, senders, receivers, mask, lmax_out)
    np.testing.assert_allclose(slots, expected, atol=1e-12)


def test_equivariance(x64, edges, key):
    senders, receivers, mask = edges
    x, vectors, radial = inputs(1, 2)
    rotation = -jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    d1, d2 = (jax.scipy.linalg.block_diag(*wigner_d(rotation, l)) for l in (1, 2))

    def f(x, vectors):
        return with_slots(
            x, spherical_harmonics(vectors, 2, normalization="integral"), radial, senders, receivers, mask, 2
        )

    moved = f(jnp.einsum("ij,njc->nic", d1, x), vectors @ rotation.T)
    np.testing.assert_allclose(moved, jnp.einsum("ij,njc->nic", d2, f(x, vectors)), atol=1e-12)
    assert np.abs(moved - f(x, vectors)).max() > 0.1
    # The harmonics must turn with the features: leave them, and the test sees it.
    still = f(jnp.einsum("ij,njc->nic", d1, x), vectors)
    assert np.abs(still - jnp.einsum("ij,njc->nic", d2, f(x, vectors))).max() > 0.1


def test_gaunt_table_is_the_product_of_unit_vectors(x64):
    table = gaunt_table(1, 2, 3)
    x, y = (jnp.asarray(np.random.default_rng(k).normal(size=n)) for k, n in ((0, 4), (1, 9)))
    np.testing.assert_allclose(np.einsum("i,j,ijk->k", x, y, table), gaunt_tensor_product(x, y), atol=1e-13)


def test_gaunt_table_is_symmetric_and_sparse():
    table = gaunt_table(2, 2, 2)
    np.testing.assert_allclose(table, table.transpose(1, 0, 2), atol=1e-14)
    np.testing.assert_allclose(table, table.transpose(2, 1, 0), atol=1e-14)
    assert np.count_nonzero(table) < 0.2 * table.size


def test_slots_hold_every_real_edge_once_in_order(edges):
    _, receivers, mask = edges
    slots = neighbour_slots(receivers, NODES, 3, mask=mask)
    assert not bool(slots.overflow)
    for node in range(NODES):
        expected = [e for e in range(9) if mask[e] and receivers[e] == node]
        assert slots.edges[node][slots.mask[node]].tolist() == expected
    assert bool(neighbour_slots(receivers, NODES, 2, mask=mask).overflow)


def test_slots_without_edges():
    slots = neighbour_slots(jnp.zeros(0, jnp.int32), 3, 2, mask=jnp.zeros(0, bool))
    assert not bool(slots.mask.any())
    assert not bool(slots.overflow)


POLES = [
    [0.0, 1, 0],
    [0, -1, 0],
    [0, 2, 1e-9],
    [0, -3, 1e-9],
    [1, 0, 0],
    [-1, 1e-12, 0],
    [0, -1e-12, 1],
    [0, 0, 0],
    [3, 1, 2],
]


@pytest.mark.parametrize("method", ["grid", "rotated"])
def test_edges_on_the_poles_the_equator_and_of_no_length(x64, edges, method):
    """Values and gradients against the harmonics, which have no frame that could be singular."""
    senders, receivers, _ = edges
    x, _, radial = inputs(2, 3)
    mask = jnp.ones(9, bool)
    table = gaunt_table(2, 3, 2)

    def by_harmonics(vectors):
        filters = spherical_harmonics(vectors, 3, normalization="integral")[..., None] * radial[:, degree_index(3)]
        messages = jnp.einsum("eic,ejc,ijk->ekc", x[senders], filters, table)
        return jax.ops.segment_sum(messages, receivers, NODES)

    def by_convolution(vectors):
        return gaunt_convolution(x, vectors, radial, senders, receivers, lmax_out=2, method=method, mask=mask)

    vectors = jnp.asarray(POLES)
    np.testing.assert_allclose(by_convolution(vectors), by_harmonics(vectors), atol=1e-12)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(NODES, 9, CHANNELS)))
    slopes = [jax.grad(lambda v, f=f: jnp.vdot(f(v), weights))(vectors) for f in (by_convolution, by_harmonics)]
    # Gradients grow like 1 / |v|; the shortest vector here has length one.
    np.testing.assert_allclose(*slopes, atol=1e-11)
    assert not np.any(slopes[0][7])  # the edge of no length


@pytest.mark.parametrize("method", ["grid", "rotated"])
def test_padded_edges_have_no_value_and_no_gradient(x64, edges, method):
    senders, receivers, mask = edges
    x, vectors, radial = inputs(1, 2)
    vectors = vectors.at[7:].set(0.0)

    def total(x, vectors, radial):
        out = gaunt_convolution(x, vectors, radial, senders, receivers, lmax_out=2, method=method, mask=mask)
        return jnp.sum(out**2)

    value, slopes = jax.value_and_grad(total, argnums=(0, 1, 2))(x, vectors, radial)
    assert np.isfinite(value)
    assert not np.any(slopes[1][7:])
    assert not np.any(slopes[2][7:])
    changed = total(x, vectors.at[7:].set(3.0), radial.at[7:].set(9.0))
    np.testing.assert_allclose(changed, value, rtol=1e-14)


@pytest.mark.parametrize("method", ["grid", "rotated"])
def test_second_derivatives_for_force_training(x64, edges, method):
    """The Jacobian of the forces of an energy built on the convolution is symmetric."""
    senders, receivers, mask = edges
    x, vectors, radial = inputs(1, 2)

    def energy(vectors):
        smooth = radial * jnp.exp(-jnp.sum(vectors**2, -1))[:, None, None]
        out = gaunt_convolution(x, vectors, smooth, senders, receivers, lmax_out=2, method=method, mask=mask)
        return jnp.sum(jnp.tanh(out))

    hessian = jax.hessian(energy)(vectors).reshape(27, 27)
    assert np.abs(hessian).max() > 1e-3
    assert np.abs(hessian - hessian.T).max() <= 1e-10 * np.abs(hessian).max()


def test_no_edges(x64):
    none = jnp.zeros(0, jnp.int32)
    for method in ("grid", "rotated"):
        out = gaunt_convolution(
            jnp.ones((3, 4, 2)), jnp.zeros((0, 3)), jnp.zeros((0, 2, 2)), none, none, lmax_out=1, method=method
        )
        assert out.shape == (3, 4, 2)
        assert not np.any(out)


def test_bad_input_is_named():
    x, none = jnp.ones((3, 4, 2)), jnp.zeros(0, jnp.int32)
    with pytest.raises(ValueError, match=r"radial \(0, 2, 5\)"):
        gaunt_convolution(x, jnp.zeros((0, 3)), jnp.zeros((0, 2, 5)), none, none, lmax_out=1)
    with pytest.raises(ValueError, match="turned"):
        gaunt_convolution(
            x,
            jnp.zeros((0, 3)),
            jnp.zeros((0, 2, 2)),
            none,
            none,
            lmax_out=1,
            method="turned",  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"\(4,\)"):
        neighbour_slots(jnp.zeros(3, jnp.int32), 3, 2, mask=jnp.zeros(4, bool))
