"""MACE's symmetric contraction: its basis against characters, its value against sums over couplings, Gaunt powers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean import gaunt_polynomial, gaunt_power
from equivariant_jax.euclidean.coupling import clebsch_gordan
from equivariant_jax.euclidean.irreps import degree_slices
from equivariant_jax.euclidean.symmetric_contraction import (
    contraction_paths,
    symmetric_basis,
    symmetric_contraction,
)


def count(lmax, lmax_out, order):
    return sum(map(sum, contraction_paths(lmax, lmax_out, order)))


def multiplicity(lmax, order, degree):
    """How often degree and parity (-1)^degree occur in the symmetric power, by integrating characters over O(3)."""
    nodes = np.pi * (np.arange(400) + 0.5) / 400
    weights = (1 - np.cos(nodes)) / 400  # the measure of rotation angles
    total = 0.0
    for parity in (1, -1):

        def character(power, parity=parity):
            # Of the power-th power of the group element: angle times power, parity to the power.
            return sum(
                parity ** (l * power) * np.sum(np.cos(np.arange(-l, l + 1)[:, None] * power * nodes), axis=0)
                for l in range(lmax + 1)
            )

        powers = [character(k) for k in range(order + 1)]
        symmetric = np.zeros_like(nodes)
        for kinds in itertools.product(*(range(order // k + 1) for k in range(1, order + 1))):
            if sum(k * n for k, n in enumerate(kinds, 1)) == order:  # a cycle type
                size = math.prod(k**n * math.factorial(n) for k, n in enumerate(kinds, 1))
                symmetric += np.prod([powers[k] ** n for k, n in enumerate(kinds, 1)], axis=0) / size
        one = parity**degree * np.sum(np.cos(np.arange(-degree, degree + 1)[:, None] * nodes), axis=0)
        total += 0.5 * np.sum(weights * symmetric * one)
    return total


@pytest.mark.parametrize("lmax", [0, 1, 2, 3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_basis_is_orthonormal_symmetric_and_complete(lmax, order):
    for degree in range(lmax + 1):
        table = symmetric_basis(lmax, order, degree)
        paths = table.shape[-1]
        assert paths == round(multiplicity(lmax, order, degree))
        np.testing.assert_allclose(multiplicity(lmax, order, degree), paths, atol=1e-9)
        flat = table.reshape(-1, paths)
        np.testing.assert_allclose(flat.T @ flat, np.eye(paths), atol=1e-12)
        for p in itertools.permutations(range(order)):
            np.testing.assert_allclose(table, table.transpose(*p, order, order + 1), atol=1e-13)


def test_fourth_order_counts():
    assert symmetric_basis(2, 4, 1).shape[-1] == round(multiplicity(2, 4, 1))


@pytest.mark.parametrize(("lmax", "lmax_out", "order"), [(2, 2, 3), (3, 1, 3), (1, 1, 4)])
def test_equivariance(x64, key, lmax, lmax_out, order):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (3, (lmax + 1) ** 2, 2), "float64")
    w = jax.random.normal(keys[1], (3, count(lmax, lmax_out, order), 2), "float64")
    rotation = -jnp.linalg.qr(jax.random.normal(keys[2], (3, 3), "float64"))[0]
    d_in, d_out = (jax.scipy.linalg.block_diag(*wigner_d(rotation, l)) for l in (lmax, lmax_out))

    def f(x):
        return symmetric_contraction(x, w, lmax_out=lmax_out, order=order)

    moved, expected = f(jnp.einsum("ij,njc->nic", d_in, x)), jnp.einsum("ij,njc->nic", d_out, f(x))
    np.testing.assert_allclose(moved, expected, atol=1e-11 * float(jnp.abs(expected).max()))
    assert np.abs(moved - f(x)).max() > 0.1
    assert all(np.abs(f(x)[:, block]).max() > 0.1 for block in degree_slices(lmax_out))


def test_second_order_is_a_sum_over_couplings(x64):
    lmax, slices = 2, degree_slices(2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 9, 3))
    counts = contraction_paths(lmax, lmax, 2)
    weights = rng.normal(size=(4, sum(map(sum, counts)), 3))
    expected, place = np.zeros((4, 9, 3)), 0
    for degree in range(lmax + 1):
        expected[:, slices[degree]] += weights[:, place, None] * x[:, slices[degree]]
        place += 1
        for l1 in range(lmax + 1):
            for l2 in range(l1, lmax + 1):
                if (l1 + l2 + degree) % 2 or not abs(l1 - l2) <= degree <= l1 + l2:
                    continue
                block = np.einsum(
                    "nac,nbc,abk->nkc", x[:, slices[l1]], x[:, slices[l2]], clebsch_gordan(l1, l2, degree)
                )
                # Unit variance for standard normal inputs: |C|^2 = 1 over 2 degree + 1 components if l1 != l2, else
                # twice that, and the mean of the squared norm to degree zero.
                variance = 1.0 if l1 != l2 else 2.0 + (2 * l1 + 1 if degree == 0 else 0)
                block = block * np.sqrt((2 * degree + 1) / variance)
                expected[:, slices[degree]] += weights[:, place, None] * block
                place += 1
    assert place == weights.shape[1]
    out = symmetric_contraction(jnp.asarray(x), jnp.asarray(weights), lmax_out=lmax, order=2)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_third_order_is_the_tensor_applied_three_times(x64):
    rng = np.random.default_rng(1)
    x, lmax = rng.normal(size=(5, 9, 1)), 2
    counts = contraction_paths(lmax, 1, 3)
    for path in range(counts[1][2]):
        weights = np.zeros((1, count(lmax, 1, 3), 1))
        weights[:, sum(counts[0]) + sum(counts[1][:2]) + path] = 1.0
        out = symmetric_contraction(jnp.asarray(x), jnp.asarray(weights), lmax_out=1, order=3)
        slow = np.einsum("abcmp,na,nb,nc->nmp", symmetric_basis(lmax, 3, 1), *[x[..., 0]] * 3)[..., path]
        np.testing.assert_allclose(np.abs(out[:, 0]).max(), 0.0, atol=1e-14)
        ratio = np.asarray(out[:, 1:, 0]) / slow  # one positive factor, the normalisation
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)
        assert ratio[0, 0] > 0


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_gaunt_powers_lie_in_the_span(x64, order, lmax):
    rng = np.random.default_rng(order)
    for degree in range(lmax + 1):
        table = symmetric_basis(lmax, order, degree)
        x = rng.normal(size=(3 * table.shape[-1] + 5, (lmax + 1) ** 2))
        power = np.asarray(gaunt_power(jnp.asarray(x), order, lmax_out=degree))[:, degree_slices(degree)[degree]]
        features = table
        for _ in range(order):
            features = np.einsum("na...,na->n...", features, x) if features is not table else np.tensordot(x, table, 1)
        features = features.reshape(-1, table.shape[-1])
        weights, *_ = np.linalg.lstsq(features, power.reshape(-1), rcond=None)
        residual = features @ weights - power.reshape(-1)
        assert np.abs(residual).max() < 1e-10 * np.abs(power).max()
        # One path less of those that matter, and the power is out of reach.
        kept = np.delete(features, np.argmax(np.abs(weights)), axis=1)
        worse = kept @ np.linalg.lstsq(kept, power.reshape(-1), rcond=None)[0] - power.reshape(-1)
        assert np.abs(worse).max() > 1e-4 * np.abs(power).max()


def test_gaunt_polynomial_is_a_contraction_with_fixed_weights(x64):
    """A Gaunt many-body product is the Clebsch-Gordan one with weights that depend on its paths alone."""
    lmax, lmax_out, order = 2, 1, 3
    rng = np.random.default_rng(0)
    paths, samples = count(lmax, lmax_out, order), 60
    degree_weights = rng.normal(size=(1, order, lmax_out + 1, 1))
    x = rng.normal(size=(samples, 9, 1))
    target = np.asarray(gaunt_polynomial(jnp.asarray(x), jnp.asarray(degree_weights), lmax_out=lmax_out))
    # Each path alone, by unit weights; channels stand for paths.
    wide = jnp.asarray(np.repeat(x, paths, axis=-1))
    features = symmetric_contraction(wide, jnp.asarray(np.eye(paths)[None]), lmax_out=lmax_out, order=order)
    features = np.asarray(features).reshape(-1, paths)
    fixed, *_ = np.linalg.lstsq(features, target.reshape(-1), rcond=None)
    assert np.abs(features @ fixed - target.reshape(-1)).max() < 1e-10
    fresh = jnp.asarray(rng.normal(size=(7, 9, 1)))
    np.testing.assert_allclose(
        symmetric_contraction(fresh, jnp.asarray(fixed)[None, :, None], lmax_out=lmax_out, order=order),
        gaunt_polynomial(fresh, jnp.asarray(degree_weights), lmax_out=lmax_out),
        atol=1e-10,
    )
    assert np.abs(fixed).min() > 1e-3  # every path takes part: Gaunt powers leave none of these out


@pytest.mark.parametrize(("lmax", "lmax_out", "order"), [(2, 2, 3), (1, 0, 4), (2, 1, 1), (0, 0, 2)])
def test_both_methods_agree(x64, lmax, lmax_out, order):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, (lmax + 1) ** 2, 4)))
    w = jnp.asarray(rng.normal(size=(1, 3, count(lmax, lmax_out, order), 4)))
    one, two = (symmetric_contraction(x, w, lmax_out=lmax_out, order=order, method=m) for m in ("monomials", "horner"))
    np.testing.assert_allclose(one, two, atol=1e-11 * np.abs(two).max())


def test_every_path_has_unit_variance():
    lmax, lmax_out, order, samples = 2, 2, 3, 4000
    paths = count(lmax, lmax_out, order)
    x = jax.random.normal(jax.random.key(0), (samples, 9, 1))
    wide = jnp.broadcast_to(x, (samples, 9, paths))
    out = jax.jit(lambda x: symmetric_contraction(x, jnp.eye(paths)[None], lmax_out=lmax_out, order=order))(wide)
    place = 0
    for block, row in zip(degree_slices(lmax_out), contraction_paths(lmax, lmax_out, order), strict=True):
        power = np.mean(np.asarray(out[:, block], np.float64) ** 2, axis=1)[:, place : place + sum(row)]
        error = np.std(power, axis=0) / np.sqrt(samples)
        assert (np.abs(np.mean(power, axis=0) - 1) < 5 * error).all()
        assert (error < 0.2).all()
        place += sum(row)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="a path for each entry"):
        symmetric_contraction(jnp.ones((2, 9, 4)), jnp.ones((2, 3, 4)), lmax_out=1, order=2)
    with pytest.raises(ValueError, match="lmax_out <= lmax"):
        symmetric_contraction(jnp.ones((2, 4, 4)), jnp.ones((2, 3, 4)), lmax_out=2, order=2)
    with pytest.raises(ValueError, match="method"):
        symmetric_contraction(jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)), lmax_out=0, order=1, method="dense")
    with pytest.raises(ValueError, match="order"):
        symmetric_basis(1, 0, 0)
