"""Clebsch-Gordan couplings and their convolution, against closed forms, a loop over edges and the Gaunt convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean.convolution import gaunt_convolution_slots, gaunt_table
from equivariant_jax.euclidean.coupling import cg_convolution_slots, clebsch_gordan, coupling_paths
from equivariant_jax.euclidean.harmonics import spherical_harmonics
from equivariant_jax.euclidean.irreps import degree_slices

NODES, SLOTS, CHANNELS = 4, 3, 2
SENDERS = np.array([[1, 2, 0], [0, 3, 0], [3, 0, 1], [0, 0, 0]], np.int32)


def inputs(lmax_in, lmax, lmax_out, seed=0):
    rng = np.random.default_rng(seed)
    paths = coupling_paths(lmax_in, lmax, lmax_out)
    x = jnp.asarray(rng.normal(size=(NODES, (lmax_in + 1) ** 2, CHANNELS)))
    vectors = jnp.asarray(rng.normal(size=(NODES, SLOTS, 3)))
    radial = jnp.asarray(rng.normal(size=(NODES, SLOTS, len(paths), CHANNELS)))
    kernels = jnp.asarray(rng.normal(size=(len(paths), CHANNELS, 5)))
    return x, vectors, radial.at[-1].set(0.0), kernels


def by_loop(x, harmonics, radial, lmaxes, kernels=None):
    x, harmonics, radial = (np.asarray(a) for a in (x, harmonics, radial))
    out = np.zeros((NODES, (lmaxes[2] + 1) ** 2, CHANNELS if kernels is None else kernels.shape[-1]))
    first, second, third = (degree_slices(l) for l in lmaxes)
    for place, (l1, l2, l3) in enumerate(coupling_paths(*lmaxes)):
        table = clebsch_gordan(l1, l2, l3)
        kernel = np.eye(CHANNELS) if kernels is None else kernels[place]
        for node in range(NODES):
            for slot in range(SLOTS):
                left = x[SENDERS[node, slot], first[l1]] * radial[node, slot, place]
                block = np.einsum("ac,b,abk->kc", left, harmonics[node, slot, second[l2]], table)
                out[node, third[l3]] += block @ kernel
    return out


def test_couplings_are_invariant_and_isometries(x64):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    d = [np.asarray(matrix) for matrix in wigner_d(jnp.asarray(rotation * np.linalg.det(rotation)), 3)]
    for l1, l2, l3 in coupling_paths(3, 3, 3, parity="all"):
        table = clebsch_gordan(l1, l2, l3)
        assert table.dtype == np.float64
        np.testing.assert_allclose(np.sum(table**2), 1, atol=1e-14)
        np.testing.assert_allclose(np.einsum("abc,ia,jb,kc->ijk", table, d[l1], d[l2], d[l3]), table, atol=1e-12)
        gram = np.einsum("abc,abd->cd", table, table)
        np.testing.assert_allclose(gram, np.eye(2 * l3 + 1) / (2 * l3 + 1), atol=1e-13)


def test_cross_product_is_the_odd_path():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.5, 2.0])
    # Degree 1 is ordered x, y, z.
    np.testing.assert_allclose(
        np.einsum("a,b,abk->k", a, b, clebsch_gordan(1, 1, 1)), np.cross(a, b) / np.sqrt(6), atol=1e-14
    )
    assert (1, 1, 1) in coupling_paths(1, 1, 1, parity="all")
    assert (1, 1, 1) not in coupling_paths(1, 1, 1)


def test_gaunt_integrals_are_positive_multiples_of_the_even_couplings():
    table, slices = gaunt_table(3, 3, 3), degree_slices(3)
    for l1, l2, l3 in coupling_paths(3, 3, 3):
        block = table[slices[l1], slices[l2], slices[l3]]
        weight = np.sum(block * clebsch_gordan(l1, l2, l3))
        assert weight > 0.01
        np.testing.assert_allclose(block, weight * clebsch_gordan(l1, l2, l3), atol=1e-13)


def test_number_of_paths():
    # Every triangle once: l3 between |l1 - l2| and l1 + l2.
    everything = coupling_paths(2, 3, 2, parity="all")
    expected = {
        (a, b, c) for a in range(3) for b in range(4) for c in range(3) if abs(a - b) <= c <= a + b
    }  # fmt: skip
    assert len(everything) == len(set(everything))
    assert set(everything) == expected
    assert set(coupling_paths(2, 3, 2)) == {p for p in expected if sum(p) % 2 == 0}
    assert coupling_paths(0, 3, 3) == tuple((0, l, l) for l in range(4))


LMAXES = [(0, 2, 2), (0, 1, 3), (0, 3, 1), (1, 2, 2), (2, 1, 3), (1, 3, 0)]


@pytest.mark.parametrize("lmaxes", LMAXES)
def test_convolution_equals_the_loop(x64, lmaxes):
    x, vectors, radial, kernels = inputs(*lmaxes)
    harmonics = spherical_harmonics(vectors, lmaxes[1])
    expected = by_loop(x, harmonics, radial, lmaxes)
    assert np.abs(expected).max() > 0.1
    out = cg_convolution_slots(x, harmonics, radial, SENDERS, lmax_out=lmaxes[2])
    np.testing.assert_allclose(out, expected, atol=1e-12)
    mixed = cg_convolution_slots(x, harmonics, radial, SENDERS, lmax_out=lmaxes[2], kernels=kernels)
    np.testing.assert_allclose(mixed, by_loop(x, harmonics, radial, lmaxes, np.asarray(kernels)), atol=1e-12)


@pytest.mark.parametrize("lmaxes", LMAXES)
def test_gaunt_convolution_is_the_one_with_fixed_path_weights(x64, lmaxes):
    x, vectors, _, _ = inputs(*lmaxes)
    harmonics = spherical_harmonics(vectors, lmaxes[1], normalization="integral")
    per_degree = jnp.asarray(np.random.default_rng(3).normal(size=(NODES, SLOTS, lmaxes[1] + 1, CHANNELS)))
    first, second, third = (degree_slices(l) for l in lmaxes)
    table = gaunt_table(*lmaxes)
    fixed = [
        per_degree[:, :, l2] * np.sum(table[first[l1], second[l2], third[l3]] * clebsch_gordan(l1, l2, l3))
        for l1, l2, l3 in coupling_paths(*lmaxes)
    ]
    ours = gaunt_convolution_slots(x, harmonics, per_degree, SENDERS, lmax_out=lmaxes[2])
    theirs = cg_convolution_slots(x, harmonics, jnp.stack(fixed, axis=2), SENDERS, lmax_out=lmaxes[2])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.abs(ours).max() > 0.1


def test_equivariance(x64, key):
    lmaxes = (1, 2, 2)
    x, vectors, radial, kernels = inputs(*lmaxes)
    rotation = -jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    d1, d2 = (jax.scipy.linalg.block_diag(*wigner_d(rotation, l)) for l in (1, 2))

    def f(x, vectors):
        return cg_convolution_slots(
            x, spherical_harmonics(vectors, 2), radial, SENDERS, lmax_out=2, kernels=kernels, normalization="component"
        )

    moved = f(jnp.einsum("ij,njc->nic", d1, x), vectors @ rotation.T)
    np.testing.assert_allclose(moved, jnp.einsum("ij,njc->nic", d2, f(x, vectors)), atol=1e-12)
    assert np.abs(moved - f(x, vectors)).max() > 0.1
    still = f(jnp.einsum("ij,njc->nic", d1, x), vectors)
    assert np.abs(still - jnp.einsum("ij,njc->nic", d2, f(x, vectors))).max() > 0.1


def test_component_normalisation_keeps_unit_variance():
    rng = np.random.default_rng(0)
    nodes, lmax = 4000, 2
    paths = coupling_paths(lmax, lmax, lmax)
    x, y = (
        jnp.asarray(rng.normal(size=(nodes, *s)), jnp.float32) for s in (((lmax + 1) ** 2, 1), (1, (lmax + 1) ** 2))
    )
    senders = np.arange(nodes, dtype=np.int32)[:, None]

    @jax.jit
    def convolve(radial):
        return cg_convolution_slots(x, y, radial, senders, lmax_out=lmax, normalization="component")

    for place in range(len(paths)):
        radial = jnp.zeros((nodes, 1, len(paths), 1)).at[:, :, place].set(1.0)
        out = convolve(radial)
        power = np.mean(np.asarray(out[:, degree_slices(lmax)[paths[place][2]]], np.float64) ** 2, axis=(1, 2))
        error = np.std(power) / np.sqrt(nodes)
        assert abs(np.mean(power) - 1) < 5 * error
        assert error < 0.05


def test_bad_input_is_named():
    x, vectors, radial, kernels = (jnp.asarray(a, jnp.float32) for a in inputs(1, 2, 2))
    harmonics = spherical_harmonics(vectors, 2)
    with pytest.raises(ValueError, match="one entry for each of coupling_paths"):
        cg_convolution_slots(x, harmonics, radial[:, :, :-1], SENDERS, lmax_out=2)
    with pytest.raises(ValueError, match="kernels"):
        cg_convolution_slots(x, harmonics, radial, SENDERS, lmax_out=2, kernels=kernels[1:])
    with pytest.raises(ValueError, match="normalization"):
        cg_convolution_slots(x, harmonics, radial, SENDERS, lmax_out=2, normalization="norm")
    with pytest.raises(ValueError, match="clebsch_gordan needs"):
        clebsch_gordan(1, 1, 3)
    with pytest.raises(ValueError, match="parity"):
        coupling_paths(1, 1, 1, parity="odd")
