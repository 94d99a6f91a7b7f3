"""Many-body products with a weight for every path: chains of products, spans, units, and the group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean import (
    contraction_paths,
    gaunt_contraction,
    gaunt_paths,
    gaunt_tensor_product,
    symmetric_contraction,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def listed(lmax, lmax_out, order):
    paths = gaunt_paths(lmax, lmax_out, order)
    return [(degree, path) for degree, by_order in enumerate(paths) for some in by_order for path in some]


def chain(x, path, degree):
    """P_degree[f_l1 f_l2 ..] by products of two, `x` with coefficients last."""
    out = None
    for l in path:
        part = jnp.zeros_like(x).at[..., l * l : (l + 1) ** 2].set(x[..., l * l : (l + 1) ** 2])
        out = part if out is None else gaunt_tensor_product(out, part)
    return out[..., degree * degree : (degree + 1) ** 2]


@pytest.mark.parametrize(("lmax", "lmax_out", "order"), [(2, 2, 2), (3, 1, 3), (1, 1, 4)])
def test_each_path_is_a_chain_of_products_in_units_of_its_spread(x64, lmax, lmax_out, order):
    names = listed(lmax, lmax_out, order)
    x = normal(0, 3000, (lmax + 1) ** 2, 1)
    product = jax.jit(
        lambda w: gaunt_contraction(x, jnp.broadcast_to(w, (3000, *w.shape)), lmax_out=lmax_out, order=order)
    )
    for i, (degree, path) in enumerate(names):
        found = product(jnp.zeros((len(names), 1)).at[i].set(1.0))[..., 0]
        block = found[:, degree * degree : (degree + 1) ** 2]
        np.testing.assert_allclose(jnp.sum(found**2), jnp.sum(block**2))
        expected = chain(x[..., 0], path, degree)
        ratio = float(jnp.sum(block * expected) / jnp.sum(expected**2))
        np.testing.assert_allclose(block, ratio * expected, atol=1e-11 * np.abs(block).max())
        # Unit variance: 3,000 samples of products of up to four normals.
        assert abs(float(jnp.mean(block**2)) - 1) < 0.35


def test_all_paths_are_there():
    """For invariants as many as MACE's tensors have, hence (being independent) the same functions."""
    for lmax in (1, 2, 3):
        ours = [[len(some) for some in by_order] for by_order in gaunt_paths(lmax, 0, 3)]
        assert ours == [list(counts) for counts in contraction_paths(lmax, 0, 3)]
    assert [[len(some) for some in by_order] for by_order in gaunt_paths(3, 1, 3)] == [[1, 4, 8], [1, 3, 9]]
    assert contraction_paths(3, 1, 3) == ((1, 4, 8), (1, 3, 12))


def test_spans_the_invariants_of_the_symmetric_contraction(x64):
    x, count = normal(0, 200, 16, 1), len(listed(3, 0, 3))
    eye = jnp.eye(count)[:, None, :, None] * jnp.ones((1, 200, 1, 1))
    ours = jnp.stack([gaunt_contraction(x, w, lmax_out=0, order=3) for w in eye])[..., 0, 0]
    theirs = jnp.stack([symmetric_contraction(x, w, lmax_out=0, order=3) for w in eye])[..., 0, 0]
    mixing, *_ = np.linalg.lstsq(np.asarray(ours).T, np.asarray(theirs).T, rcond=None)
    np.testing.assert_allclose(ours.T @ mixing, theirs.T, atol=1e-9)
    assert np.linalg.cond(mixing) < 100


def test_commutes_with_rotations_and_reflections(x64):
    key, count = jax.random.key(0), len(listed(3, 2, 3))
    x, w = normal(0, 4, 16, 2), normal(1, 4, count, 2)
    q, _ = jnp.linalg.qr(jax.random.normal(key, (3, 3)))
    for element in (q, -q):
        d = jax.scipy.linalg.block_diag(*wigner_d(element, 3))
        inputs = jnp.einsum("ij,njc->nic", d, x)
        moved = gaunt_contraction(inputs, w, lmax_out=2, order=3)
        plain = gaunt_contraction(x, w, lmax_out=2, order=3)
        np.testing.assert_allclose(moved, jnp.einsum("ij,njc->nic", d[:9, :9], plain), atol=1e-11)
        assert np.abs(moved - plain).max() > 0.1


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="expected weights"):
        gaunt_contraction(jnp.ones((2, 9, 3)), jnp.ones((2, 4, 3)), lmax_out=1, order=2)
    with pytest.raises(ValueError, match="lmax_out=3"):
        gaunt_contraction(jnp.ones((2, 9, 3)), jnp.ones((2, 4, 3)), lmax_out=3, order=2)
