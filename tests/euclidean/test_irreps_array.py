"""The adapter to e3nn-jax: round trips, and products against e3nn-jax's own tensor product."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.euclidean import from_irreps_array, spherical_harmonics, spherical_product, to_irreps_array
from tests.euclidean.paths import threej


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("parity", ["natural", "pseudo"])
def test_round_trip(x64, parity):
    x = normal(0, 5, 3, 16)
    array = to_irreps_array(x, parity)
    assert str(array.irreps) == ("3x0e+3x1o+3x2e+3x3o" if parity == "natural" else "3x0o+3x1e+3x2o+3x3e")
    np.testing.assert_array_equal(from_irreps_array(array, parity), x)
    other = "pseudo" if parity == "natural" else "natural"
    assert from_irreps_array(array, other).shape == (5, 0, 1)


def test_harmonics_are_those_of_e3nn(x64):
    vectors = normal(0, 7, 3)
    theirs = e3nn.spherical_harmonics(e3nn.s2_irreps(3), vectors, normalize=True, normalization="component")
    ours = to_irreps_array(spherical_harmonics(vectors, 3)[:, None])
    assert ours.irreps == theirs.irreps
    np.testing.assert_allclose(ours.array, theirs.array, atol=1e-12)


def test_absent_degrees_are_zero_and_order_does_not_matter(x64):
    array = e3nn.IrrepsArray("2x2e + 2x0e + 1x1e", normal(0, 4, 15))
    x = from_irreps_array(array, lmax=3)
    assert x.shape == (4, 2, 16)
    np.testing.assert_array_equal(x[:, :, 0], array.array[:, 10:12])
    np.testing.assert_array_equal(x[:, :, 4:9], array.array[:, :10].reshape(4, 2, 5))
    assert not np.any(x[:, :, 1:4])
    assert not np.any(x[:, :, 9:])


@pytest.mark.parametrize("odd_paths", [False, True])
def test_every_path_of_e3nn_is_there_once_with_a_known_factor(x64, odd_paths):
    """e3nn's outputs path by path, weighted with |3j|, sum to ours."""
    x, y = normal(0, 4, 1, 9), normal(1, 4, 1, 9)
    ours = spherical_product(to_irreps_array(x), to_irreps_array(y), odd_paths=odd_paths, normalization="norm")
    expected = {1: np.zeros((4, 25)), -1: np.zeros((4, 25))}
    for a in range(3):
        for b in range(3):
            left = e3nn.IrrepsArray([(1, (a, (-1) ** a))], x[:, 0, a * a : (a + 1) ** 2])
            right = e3nn.IrrepsArray([(1, (b, (-1) ** b))], y[:, 0, b * b : (b + 1) ** 2])
            paths = e3nn.tensor_product(left, right, irrep_normalization="norm")
            for entry, chunk in zip(paths.irreps, paths.chunks, strict=True):
                c = entry.ir.l
                even = (a + b + c) % 2 == 0
                block = np.asarray(chunk)[:, 0] / np.sqrt((2 * a + 1) * (2 * b + 1))  # unit Frobenius norm
                factor = threej(a, b, c, 0, 0) if even else threej(a, b, c, 1, -1)
                expected[1 if even else -1][:, c * c : (c + 1) ** 2] += factor * block
    np.testing.assert_allclose(from_irreps_array(ours, "natural")[:, 0], expected[1], atol=1e-12)
    if odd_paths:
        np.testing.assert_allclose(from_irreps_array(ours, "pseudo")[:, 0], expected[-1], atol=1e-12)
        assert np.abs(expected[-1]).max() > 0.1
    else:
        assert from_irreps_array(ours, "pseudo").shape[-2] == 0


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance_by_e3nns_own_transformations(x64, key, inversion):
    irreps = e3nn.Irreps("2x0e+2x0o+2x1o+2x1e+2x2e")
    x, y = (e3nn.IrrepsArray(irreps, normal(seed, 5, irreps.dim)) for seed in (0, 1))
    rotation = e3nn.rand_matrix(key, (), dtype="float64")
    if inversion:
        rotation = -rotation

    def f(x, y):
        return spherical_product(x, y, lmax_out=2, odd_paths=True)

    out = f(x, y)
    moved = f(x.transform_by_matrix(rotation), y.transform_by_matrix(rotation))
    np.testing.assert_allclose(moved.array, out.transform_by_matrix(rotation).array, atol=1e-12)
    assert np.abs(moved.array - out.array).max() > 0.1
    assert str(out.irreps) == "2x0e+2x1o+2x2e+2x0o+2x1e+2x2o"


def test_one_channel_meets_many(x64):
    x, y = to_irreps_array(normal(0, 5, 4, 9)), to_irreps_array(normal(1, 5, 1, 4))
    out = spherical_product(x, y, lmax_out=1)
    assert str(out.irreps) == "4x0e+4x1o"
    alone = spherical_product(to_irreps_array(from_irreps_array(x)[:, 2:3]), y, lmax_out=1)
    np.testing.assert_allclose(from_irreps_array(out)[:, 2], from_irreps_array(alone)[:, 0], atol=1e-14)


def test_runs_under_jit_and_grad(x64):
    x = to_irreps_array(normal(0, 5, 4, 9))
    loss = jax.jit(jax.grad(lambda x: jnp.sum(spherical_product(x, x, lmax_out=2).array ** 2)))
    assert np.isfinite(loss(x).array).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2x0e"):
        from_irreps_array(e3nn.IrrepsArray("2x0e+1x1o", jnp.ones(5)))
    with pytest.raises(ValueError, match="lmax=1"):
        from_irreps_array(e3nn.IrrepsArray("2x2e", jnp.ones(10)), lmax=1)
    with pytest.raises(ValueError, match="odd"):
        to_irreps_array(jnp.ones((2, 4)), "odd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3x0e"):
        spherical_product(e3nn.IrrepsArray("3x0e", jnp.ones(3)), e3nn.IrrepsArray("2x0e", jnp.ones(2)))
