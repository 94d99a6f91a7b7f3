"""What single precision costs: equivariance and accuracy of the products up to high degrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import checks, groups
from equivariant_jax.core import representations as rep
from equivariant_jax.euclidean import gaunt_tensor_product, spherical_poisson_bracket


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def field(lmax, parity):
    return rep.Irreps(tuple((l, parity * (-1) ** l) for l in range(lmax + 1)))


@pytest.mark.parametrize("parity", [1, -1])
@pytest.mark.parametrize(
    ("function", "top", "sign"), [(gaunt_tensor_product, 16, 1), (spherical_poisson_bracket, 15, -1)]
)
def test_single_precision_defect_over_a_hundred_elements_of_o3(key, function, top, sign, parity):
    x, y = normal(0, 2, 81), normal(1, 2, 81)
    report = checks.equivariance_error(
        function,
        groups.Orthogonal(3),
        (field(8, parity), field(8, 1)),
        field(top, sign * parity),
        key,
        (x, y),
        num_samples=100,
    )
    assert report.error <= 5e-6
    assert report.moved > 0.5


@pytest.mark.parametrize("l", [2, 8, 16, 32])
def test_single_precision_error_does_not_grow_with_the_degree(x64, l):
    x, y = normal(0, 4, (l + 1) ** 2, dtype="float64"), normal(1, 4, (l + 1) ** 2, dtype="float64")
    exact = gaunt_tensor_product(x, y)
    single = gaunt_tensor_product(x.astype("float32"), y.astype("float32"))
    error = jnp.sqrt(jnp.mean((single.astype("float64") - exact) ** 2) / jnp.mean(exact**2))
    assert 1e-9 < error <= 1e-6


def test_bracket_is_antisymmetric_in_single_precision():
    x, y = normal(0, 100, 81), normal(1, 100, 81)
    one, other = spherical_poisson_bracket(x, y), spherical_poisson_bracket(y, x)
    assert jnp.abs(one + other).max() <= 1e-6 * jnp.abs(one).max()


def test_force_jacobian_is_symmetric_and_force_loss_has_the_right_gradient(x64):
    """An energy of product and bracket: double backward against central differences."""
    from equivariant_jax.euclidean import spherical_harmonics

    vectors, target = normal(0, 5, 3, dtype="float64"), normal(1, 5, 3, dtype="float64")
    weights = normal(2, 3, dtype="float64")

    def energy(weights, vectors):
        edges = spherical_harmonics(vectors, 3) * jnp.exp(-jnp.sum(vectors**2, -1, keepdims=True))
        left, right = jnp.sum(edges, axis=0), jnp.sum(edges * jnp.sum(vectors**2, -1, keepdims=True), axis=0)
        product = gaunt_tensor_product(left, right, lmax_out=3, normalization="component")
        bracket = spherical_poisson_bracket(left, product, lmax_out=3, normalization="component")
        return weights[0] * product[0] + weights[1] * jnp.sum(product**2) + weights[2] * jnp.sum(jnp.sin(bracket) ** 2)

    force = jax.jit(lambda w, v: -jax.grad(energy, argnums=1)(w, v))
    jacobian = jax.jit(jax.jacfwd(force, argnums=1))(weights, vectors).reshape(15, 15)
    assert np.abs(jacobian - jacobian.T).max() <= 1e-10 * np.abs(jacobian).max()

    def loss(weights, vectors):
        return jnp.sum((force(weights, vectors) - target) ** 2)

    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(weights, vectors)
    h = 1e-5
    for argument, gradient in enumerate(slope):
        direction = normal(3 + argument, *gradient.shape, dtype="float64")
        moved = [
            loss(*[v + s * h * direction if i == argument else v for i, v in enumerate((weights, vectors))])
            for s in (1, -1)
        ]
        difference = (moved[0] - moved[1]) / (2 * h)
        assert abs(difference - jnp.vdot(gradient, direction)) <= 1e-6 * abs(difference)
