"""Gaunt products against Clebsch-Gordan sums, closed forms, and the group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import wigner_d
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.gaunt_coefficients import gaunt_table
from equivariant_jax.euclidean.irreps import expand_degrees
from tests.euclidean.paths import sum_over_paths, threej

METHODS = ["auto", "grid", "quadrant", "octant", "separable", "fourier", "sparse"]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def gaunt_factor(a, b, c):
    return np.sqrt((2 * a + 1) * (2 * b + 1) * (2 * c + 1) / (4 * np.pi)) * threej(a, b, c, 0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("l1", "l2", "l3"), [(0, 0, 0), (1, 1, 2), (2, 3, 1), (3, 3, 6), (4, 4, 4), (4, 4, 8), (1, 2, 5)]
)
def test_equals_the_clebsch_gordan_sum(x64, method, l1, l2, l3):
    x, y = normal(0, 5, (l1 + 1) ** 2), normal(1, 5, (l2 + 1) ** 2)
    expected = sum_over_paths(x, y, l3, gaunt_factor, parity=0)
    z = gaunt_tensor_product(x, y, lmax_out=l3, method=method)
    assert np.abs(z - expected).max() <= 1e-12 * np.abs(expected).max()


def test_norm_normalization_has_threej_as_path_factor(x64):
    x, y = normal(0, 5, 9), normal(1, 5, 16)
    expected = sum_over_paths(x, y, 4, lambda a, b, c: threej(a, b, c, 0, 0), parity=0)
    z = gaunt_tensor_product(x, y, lmax_out=4, normalization="norm")
    np.testing.assert_allclose(z, expected, atol=1e-12)


def test_component_normalization_gives_unit_variance(x64):
    samples = 20_000
    x, y = normal(0, samples, 9), normal(1, samples, 16)
    variance = jnp.var(gaunt_tensor_product(x, y, normalization="component"), axis=0)
    # 36 coefficients, each a mean of products of normals (kurtosis below 20): five standard deviations.
    np.testing.assert_allclose(variance, 1.0, atol=5 * np.sqrt(20 / samples))


@pytest.mark.parametrize("parities", [(1, 1), (-1, 1), (-1, -1)])
def test_equivariance_under_rotations_and_inversion(x64, key, parities):
    def act(matrix, v, parity):
        lmax = int(np.sqrt(v.shape[-1])) - 1
        sign = jnp.linalg.det(matrix) if parity < 0 else 1.0
        return sign * (v @ jax.scipy.linalg.block_diag(*wigner_d(matrix, lmax)).T)

    x, y = normal(2, 4, 16), normal(3, 4, 9)
    z = gaunt_tensor_product(x, y)
    for seed, flip in ((0, 1), (1, 1), (2, -1)):
        matrix = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, seed), (3, 3), "float64"))[0]
        matrix = matrix * jnp.linalg.det(matrix) * flip
        moved = gaunt_tensor_product(act(matrix, x, parities[0]), act(matrix, y, parities[1]))
        expected = act(matrix, z, parities[0] * parities[1])
        np.testing.assert_allclose(moved, expected, atol=1e-12)
        assert np.abs(expected - z).max() > 0.1


def test_a_rule_one_degree_short_breaks_the_symmetry(x64, key):
    # What the equivariance test must be able to see: the same product on too coarse a grid.
    from equivariant_jax.euclidean.quadrature import from_sphere_grid, to_sphere_grid

    def short(x, y):
        degree = 5  # 3 + 3 + 3 is needed
        return from_sphere_grid(to_sphere_grid(x, degree) * to_sphere_grid(y, degree), 3, degree)

    rotation = jnp.linalg.qr(jax.random.normal(key, (3, 3), "float64"))[0]
    rotation = rotation * jnp.linalg.det(rotation)
    blocks = jax.scipy.linalg.block_diag(*wigner_d(rotation, 3))
    x, y = normal(2, 4, 16), normal(3, 4, 16)
    assert np.abs(short(x @ blocks.T, y @ blocks.T) - short(x, y) @ blocks.T).max() > 0.05


def test_closed_forms(x64):
    y00 = np.sqrt(1 / (4 * np.pi))
    x, a, b = normal(0, 16), normal(1, 3), normal(2, 3)
    constant = gaunt_tensor_product(jnp.array([2.0]), x)
    np.testing.assert_allclose(constant, 2 * y00 * x, atol=1e-14)
    vectors = gaunt_tensor_product(jnp.concatenate([jnp.zeros(1), a]), jnp.concatenate([jnp.zeros(1), b]))
    np.testing.assert_allclose(vectors[0], y00 * (a @ b), atol=1e-14)
    np.testing.assert_allclose(vectors[1:4], 0.0, atol=1e-14)
    # The integral of a product of two fields is the dot product of their coefficients.
    np.testing.assert_allclose(gaunt_tensor_product(x, x, lmax_out=0)[0], y00 * (x @ x), atol=1e-13)


def test_symmetric_in_its_three_arguments(x64):
    x, y, z = normal(0, 9), normal(1, 9), normal(2, 9)
    one = gaunt_tensor_product(x, y, lmax_out=2) @ z
    np.testing.assert_allclose(gaunt_tensor_product(x, z, lmax_out=2) @ y, one, atol=1e-13)
    np.testing.assert_allclose(gaunt_tensor_product(y, x, lmax_out=2) @ z, one, atol=1e-13)


def test_weights_per_degree_scale_inputs_and_output(x64):
    x, y = normal(0, 2, 3, 9), normal(1, 16)
    wx, wy, wz = normal(2, 3, 3), normal(3, 4), normal(4, 2, 3, 5)
    z = gaunt_tensor_product(x, y, lmax_out=4, weights=(wx, wy, wz))
    plain = gaunt_tensor_product(x * expand_degrees(wx)[None], y * expand_degrees(wy), lmax_out=4)
    np.testing.assert_allclose(z, plain * expand_degrees(wz), atol=1e-13)


def test_float32_stays_float32_and_accurate(x64):
    x, y = normal(0, 50, 81), normal(1, 50, 81)
    exact = gaunt_tensor_product(x, y)
    single = gaunt_tensor_product(x.astype("float32"), y.astype("float32"))
    assert single.dtype == jnp.float32
    error = single.astype("float64") - exact
    assert jnp.sqrt(jnp.mean(error**2) / jnp.mean(exact**2)) < 1e-6


def test_second_derivatives_exist_in_every_mode(x64):
    x, y = normal(0, 9), normal(1, 9)

    def energy(x):
        return jnp.sum(jnp.sin(gaunt_tensor_product(x, gaunt_tensor_product(x, y, lmax_out=1), lmax_out=1)))

    hessian, other = jax.jit(lambda x: (jax.hessian(energy)(x), jax.jacrev(jax.grad(energy))(x)))(x)
    assert np.abs(hessian - hessian.T).max() <= 1e-12 * np.abs(hessian).max()
    np.testing.assert_allclose(other, hessian, atol=1e-12)
    jax.vmap(jax.grad(energy))(jnp.stack([x, y]))


def test_bad_input_is_named():
    x = jnp.ones(4)
    with pytest.raises(ValueError, match="5"):
        gaunt_tensor_product(jnp.ones(5), x)
    with pytest.raises(ValueError, match="quadrature"):
        gaunt_tensor_product(x, x, method="quadrature")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit"):
        gaunt_tensor_product(x, x, normalization="unit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights\[1\]"):
        gaunt_tensor_product(x, x, weights=(None, jnp.ones(3), None))
    with pytest.raises(ValueError, match="tuple"):
        gaunt_tensor_product(x, x, weights=jnp.ones(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length 2"):
        gaunt_tensor_product(x, x, weights=(None, None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bfloat16"):
        gaunt_tensor_product(x, x.astype("bfloat16"))
    with pytest.raises(ValueError, match="lmax_out"):
        gaunt_tensor_product(x, x, lmax_out=-1)
    with pytest.raises(ValueError, match="bfloat16"):
        gaunt_tensor_product(x.astype("bfloat16"), x.astype("bfloat16"), method="fourier")


@pytest.mark.parametrize("l", [6, 10, 16])
def test_routes_agree(x64, l):
    x, y = normal(0, 3, (l + 1) ** 2), normal(1, 3, (l + 1) ** 2)
    expected = gaunt_tensor_product(x, y, method="grid")
    for method in ("quadrant", "octant", "separable", "fourier"):
        z = gaunt_tensor_product(x, y, method=method)
        assert np.abs(z - expected).max() <= 1e-11 * np.abs(expected).max(), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("normalization", ["norm", "component"])
def test_routes_agree_in_every_normalization(x64, method, normalization):
    x, y = normal(0, 3, 9), normal(1, 3, 16)
    # Degrees above 2 + 3 are asked for and empty.
    z = gaunt_tensor_product(x, y, lmax_out=7, method=method, normalization=normalization)
    expected = gaunt_tensor_product(x, y, lmax_out=5, method="sparse", normalization=normalization)
    np.testing.assert_allclose(z[:, :36], expected, atol=1e-12)
    assert not np.any(z[:, 36:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("left", "right"), [((7, 3), (7, 1)), ((3,), (5, 3)), ((5, 1), (1, 4)), ((), (2,)), ((0,), (0,)), ((1,), (1,))]
)
def test_leading_axes_broadcast(x64, method, left, right):
    x, y = normal(0, *left, 4), normal(1, *right, 9)
    shape = np.broadcast_shapes(left, right)
    z = gaunt_tensor_product(x, y, method=method)
    full = gaunt_tensor_product(
        jnp.broadcast_to(x, (*shape, 4)).reshape(-1, 4),
        jnp.broadcast_to(y, (*shape, 9)).reshape(-1, 9),
        method="sparse",
    )
    assert z.shape == (*shape, 16)
    np.testing.assert_allclose(z.reshape(-1, 16), full, atol=1e-13)


@pytest.mark.parametrize("rows", [255, 1024, 20_011])
def test_blocks_of_rows_are_invisible(x64, rows):
    # 20,011 is prime: the last block is padded.
    x, y = normal(0, rows, 9), normal(1, rows, 9)
    table = jnp.asarray(gaunt_table(2, 2, 2))

    def total(product):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(product(x, y) ** 2)))(x)

    value, slope = total(lambda x, y: gaunt_tensor_product(x, y, lmax_out=2, method="octant"))
    expected, expected_slope = total(lambda x, y: jnp.einsum("bi,bj,ijk->bk", x, y, table))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-10)


@pytest.mark.parametrize("method", ["grid", "octant", "separable", "fourier"])
def test_derivatives_of_every_order_and_mode(x64, method):
    x, y, u, v = (normal(seed, 3, 9) for seed in range(4))

    def product(x, y):
        return gaunt_tensor_product(x, y, lmax_out=2, method=method)

    # Bilinear: the derivative is the product itself, with one argument exchanged.
    _, tangent = jax.jvp(product, (x, y), (u, v))
    np.testing.assert_allclose(tangent, product(u, y) + product(x, v), atol=1e-12)
    # Symmetric in three arguments: so is the cotangent.
    _, pull = jax.vjp(product, x, y)
    np.testing.assert_allclose(pull(v)[0], product(y, v), atol=1e-12)
    np.testing.assert_allclose(pull(v)[1], product(x, v), atol=1e-12)

    def energy(x):
        return jnp.sum(jnp.sin(product(x, y)))

    forward_over_reverse = jax.jvp(jax.grad(energy), (x,), (u,))[1]
    reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(energy)(x), u))(x)
    reverse_over_forward = jax.grad(lambda x: jax.jvp(energy, (x,), (u,))[1])(x)
    np.testing.assert_allclose(reverse_over_reverse, forward_over_reverse, atol=1e-11)
    np.testing.assert_allclose(reverse_over_forward, forward_over_reverse, atol=1e-11)
    batched = jax.vmap(jax.grad(lambda x, y: jnp.sum(jnp.sin(gaunt_tensor_product(x, y, lmax_out=2, method=method)))))
    np.testing.assert_allclose(batched(x, y), jax.grad(energy)(x), atol=1e-12)


def test_only_the_inputs_are_kept_for_the_backward_pass():
    # Values on the grid of degree 32 would be 434 numbers a row and operand; x and y are 81 each.
    def kept(rows):
        x = jnp.ones((rows, 81))
        _, pull = jax.vjp(lambda x, y: gaunt_tensor_product(x, y, method="octant"), x, x)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    # The constants (harmonics on the grid) may be kept too; they do not grow with the batch.
    assert kept(48) - kept(24) == 2 * 24 * 81


def _dots(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _dots(inner)


@pytest.mark.parametrize("method", ["grid", "octant", "separable", "fourier"])
def test_precision_reaches_every_matrix_product(method):
    x = jnp.ones((5, 9))
    for precision in (jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST, jax.lax.DotAlgorithmPreset.F32_F32_F32):
        closed = jax.make_jaxpr(lambda x: gaunt_tensor_product(x, x, method=method, precision=precision))(x)  # noqa: B023
        found = [equation.params["precision"] for equation in _dots(closed.jaxpr)]
        assert len(found) >= 6
        for value in found:
            values = value if isinstance(value, tuple) else (value,)
            assert set(values) <= {precision} or (precision is jax.lax.Precision.DEFAULT and value is None)
