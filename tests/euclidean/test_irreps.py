import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean import irreps


def test_tables_agree_with_each_other():
    for lmax in range(6):
        size = irreps.num_coefficients(lmax)
        assert irreps.lmax_of(size) == lmax
        degrees = irreps.degree_index(lmax)
        for l, block in enumerate(irreps.degree_slices(lmax)):
            assert (degrees[block] == l).all()
            assert block.stop - block.start == 2 * l + 1
        assert degrees.size == size


@pytest.mark.parametrize("size", [0, 2, 3, 5, 8, 15, -4])
def test_axis_that_is_no_square_is_named(size):
    with pytest.raises(ValueError, match=str(size)):
        irreps.lmax_of(size)


def test_tables_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        irreps.degree_index(2)[0] = 5


def test_expand_degrees_on_an_inner_axis(key):
    weights = jax.random.normal(key, (3, 4, 5))
    expanded = irreps.expand_degrees(weights, axis=1)
    for l, block in enumerate(irreps.degree_slices(3)):
        np.testing.assert_array_equal(expanded[:, block], np.repeat(weights[:, l : l + 1], 2 * l + 1, axis=1))


def test_degree_linear_is_a_matrix_per_degree(key):
    k1, k2 = jax.random.split(key)
    kernels, x = jax.random.normal(k1, (4, 3, 5)), jax.random.normal(k2, (2, 16, 3))
    out = irreps.degree_linear(kernels, x)
    expected = np.einsum("nkc,kcd->nkd", x, np.asarray(kernels)[irreps.degree_index(3)])
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_degree_linear_commutes_with_rotations(key, x64):
    k1, k2, k3 = jax.random.split(key, 3)
    kernels = jax.random.normal(k1, (4, 3, 5), "float64")
    x = jax.random.normal(k2, (16, 3), "float64")
    rotation = jnp.linalg.qr(jax.random.normal(k3, (3, 3), "float64"))[0]
    blocks = jax.scipy.linalg.block_diag(*wigner_d(rotation, 3))
    moved = irreps.degree_linear(kernels, blocks @ x)
    np.testing.assert_allclose(moved, blocks @ irreps.degree_linear(kernels, x), atol=1e-13)
    # The group acts: the outputs differ from the unrotated ones.
    assert np.abs(moved - irreps.degree_linear(kernels, x)).max() > 0.1


def test_degree_linear_says_which_shapes_came():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(7, 9, 3\)"):
        irreps.degree_linear(jnp.ones((2, 3, 5)), jnp.ones((7, 9, 3)))
