"""Polar and Iwasawa coordinates, their measures and the samplers: reconstruction, invariance, finite gradients."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from equivariant_jax.lie import (
    GL2,
    GL3,
    R_SO2,
    SL2,
    SL3,
    SO2,
    SO3,
    LinearGroup,
    R,
    coordinates,
    haar_log_density_polar,
    iwasawa,
    iwasawa_product,
    polar_exp,
    polar_log,
    rotation_exp,
    rotation_log,
    stretch_coordinates,
    stretch_matrix,
    symmetric_exp,
    symmetric_log,
)
from experiments.lie.quadrature import SHIFTS, bump, iwasawa_integral, polar_integral
from tests.lie.compiled import sample_polar

GROUPS = (SO2, R, R_SO2, SL2, GL2, SO3, SL3, GL3)


def positive(seed, number, n, *, volume=False):
    """Gaussian matrices with positive determinant (or one), float64."""
    a = np.random.default_rng(seed).normal(size=(number, n, n))
    a[:, 0] *= np.sign(np.linalg.det(a))[:, None]
    return a / np.linalg.det(a)[:, None, None] ** (1 / n) if volume else a


def well_conditioned(a, limit=1e3):
    return a[np.linalg.cond(a) < limit]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
def test_polar_coordinates_give_the_matrix_back(x64, n, volume, dtype, bound):
    """Point 1 of the card."""
    a = jnp.asarray(well_conditioned(positive(n, 100_000, n, volume=volume)), dtype)
    assert len(a) > 99_000

    @jax.jit
    def again(a):
        x, r = polar_log(a)
        return polar_exp(x, rotation_log(r)), x, r

    back, x, r = again(a)
    error = np.linalg.norm(back - a, axis=(1, 2)) / np.linalg.norm(a, axis=(1, 2))
    assert error.max() <= bound
    assert back.dtype == x.dtype == r.dtype == dtype
    np.testing.assert_allclose(x, jnp.swapaxes(x, 1, 2), atol=0 if n == 2 else bound)
    if volume:
        assert np.abs(jnp.trace(x, axis1=1, axis2=2)).max() <= 100 * bound


def test_the_share_of_matrices_without_a_real_logarithm_is_covered():
    """A real matrix has a real logarithm unless it has an odd Jordan block of a negative eigenvalue (Culver 1966)."""
    values = np.linalg.eigvals(positive(0, 100_000, 2))
    without = (np.abs(values.imag) < 1e-12).all(axis=1) & (values.real < 0).any(axis=1)
    assert 0.20 < without.mean() < 0.23
    a = positive(0, 100_000, 2)[without][:200]
    assert all(np.abs(scipy.linalg.logm(m).imag).max() > 1 for m in a[:10])
    x, r = polar_log(jnp.asarray(a, jnp.float32))
    back = polar_exp(x, rotation_log(r))
    assert (np.linalg.norm(back - a, axis=(1, 2)) / np.linalg.norm(a, axis=(1, 2))).max() < 1e-5


@pytest.mark.parametrize("n", [2, 3])
def test_elementary_functions_against_eigenvalues_and_scipy(x64, n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, n, n))
    x = x + x.swapaxes(1, 2)
    x[0], x[1] = 0.7 * np.eye(n), np.diag([0.3, 0.3 + 1e-9, -1.0][:n])
    values, vectors = np.linalg.eigh(x)
    expected = (vectors * np.exp(values)[:, None]) @ vectors.swapaxes(1, 2)
    found = symmetric_exp(jnp.asarray(x))
    scale = np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    assert np.abs((found - expected) / scale).max() < 1e-13
    moderate = np.abs(np.linalg.eigvalsh(x)).max(axis=1) < 3
    np.testing.assert_allclose(symmetric_log(jnp.asarray(expected[moderate])), x[moderate], atol=1e-11)
    theta = rng.normal(size=(200, n * (n - 1) // 2))
    theta *= np.minimum(1, 3.1 / np.linalg.norm(theta, axis=1, keepdims=True))
    theta[0], theta[1] = 0, 1e-9
    rotation = np.asarray(rotation_exp(jnp.asarray(theta), n))
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(n), x.shape), atol=1e-14)
    if n == 2:
        skew = theta[:, :, None] * np.array([[0.0, -1], [1, 0]])
    else:
        skew = np.cross(np.eye(3)[None], theta[:, None])  # rows e_i x theta
    np.testing.assert_allclose(rotation, np.stack([scipy.linalg.expm(m) for m in skew]), atol=1e-13)
    np.testing.assert_allclose(rotation_log(jnp.asarray(rotation)), theta, atol=1e-12)


def test_half_turns_about_every_axis():
    axes = np.random.default_rng(0).normal(size=(50, 3))
    axes = np.concatenate([axes / np.linalg.norm(axes, axis=1, keepdims=True), np.eye(3)])
    turns = jnp.asarray(2 * axes[:, :, None] * axes[:, None] - np.eye(3), jnp.float32)
    theta = rotation_log(turns)
    np.testing.assert_allclose(np.linalg.norm(theta, axis=1), np.pi, atol=1e-5)
    np.testing.assert_allclose(rotation_exp(theta, 3), turns, atol=1e-5)


DEGENERATE = {
    "identity": np.eye(3),
    "half turn": np.diag([-1.0, -1.0, 1.0]),
    "twice the identity": 2 * np.eye(3),
    "repeated singular values": np.diag([2.0, 2.0, 0.5]),
    "nearly repeated": np.diag([2.0, 2.0 + 1e-6, 0.5]),
    "a large stretch": np.diag([1e4, 1e-4, 1.0]),
}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("case", DEGENERATE)
def test_gradients_are_finite_and_right_where_formulas_degenerate(x64, n, case):
    a = jnp.asarray(DEGENERATE[case][:n, :n])

    def value(a):
        x, r = polar_log(a)
        weights = np.arange(1.0, n * n + 1).reshape(n, n).astype(a.dtype)
        density = haar_log_density_polar(x)
        return jnp.sum(weights * x) + jnp.sum(weights * r) + jnp.sum(iwasawa(a).unipotent) + density

    gradient = jax.grad(value)(a)
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda a: jnp.sum(rotation_log(polar_log(a)[1])))(a)).all()
    single = jnp.asarray(a, jnp.float32)
    assert np.isfinite(jax.grad(value)(single)).all()
    if case == "a large stretch":
        return
    step = 1e-6
    for i, j in np.ndindex(n, n):
        moved = np.zeros((n, n))
        moved[i, j] = step
        # The density is |difference of eigenvalues| to second order: differences see it well.
        slope = (value(a + moved) - value(a - moved)) / (2 * step)
        np.testing.assert_allclose(gradient[i, j], slope, atol=2e-6 * (1 + abs(slope)))


@pytest.mark.parametrize("n", [2, 3])
def test_second_derivatives_are_finite(x64, n):
    def value(a):
        x, _ = polar_log(a)
        return jnp.sum(x**2) + haar_log_density_polar(x)

    hessian = jax.hessian(value)(jnp.eye(n))
    assert np.isfinite(hessian).all()
    # Near the identity X is the symmetric part e of A - I, sum x^2 is |e|^2, and the log density
    # sum_{i<j} (a_i - a_j)^2 / 6 = (n tr e^2 - (tr e)^2) / 6.
    direction = np.arange(1.0, n * n + 1).reshape(n, n) / 10
    e = 0.5 * (direction + direction.T)
    square = (e**2).sum()
    expected = 2 * (square + (n * square - np.trace(e) ** 2) / 6)
    curvature = np.einsum("ij,ijkl,kl->", direction, hessian, direction)
    if n == 2:  # for n = 3 second derivatives of eigenvalues that meet are finite, and no more is promised
        np.testing.assert_allclose(curvature, expected, rtol=1e-9)


def test_not_a_number_outside_the_group():
    mirror = jnp.diag(jnp.array([1.0, -1.0]))
    assert np.isnan(polar_log(mirror)[0]).all()
    assert np.isnan(polar_log(jnp.diag(jnp.array([1.0, 1.0, -1.0])))[0]).all()
    assert np.isnan(iwasawa(mirror).log_diagonal).all()


@pytest.mark.parametrize("group", GROUPS)
def test_orthonormal_coordinates(group):
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(7, group.num_stretches)), jnp.float32)
    x = stretch_matrix(y, group)
    np.testing.assert_allclose(stretch_coordinates(x, group), y, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(x * x, axis=(1, 2)), jnp.sum(y * y, axis=1), rtol=1e-5, atol=1e-6)
    theta = rng.normal(size=(7, group.num_rotations)) * 0.5
    if group.rotation:
        a = polar_exp(x, jnp.asarray(theta, jnp.float32))
        # What rounding of a does to its smallest singular value.
        bound = 2.0**-23 * float(np.linalg.cond(a).max())
        np.testing.assert_allclose(coordinates(a, group), np.concatenate([y, theta], axis=1), atol=max(bound, 1e-6))
    assert coordinates(jnp.eye(group.n), group).shape == (group.dimension,)


@pytest.mark.parametrize("n", [2, 3])
def test_iwasawa_factors(x64, n):
    a = jnp.asarray(well_conditioned(positive(1, 2000, n)))
    factors = iwasawa(a)
    np.testing.assert_allclose(iwasawa_product(factors), a, atol=1e-12)
    k, upper = np.asarray(factors.rotation), np.asarray(factors.unipotent)
    np.testing.assert_allclose(k @ k.swapaxes(1, 2), np.broadcast_to(np.eye(n), k.shape), atol=1e-9)
    assert (np.linalg.det(k) > 0).all()
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_allclose(np.diagonal(upper, axis1=1, axis2=2), 1, atol=1e-14)


def test_haar_integrals_do_not_change_when_the_function_is_moved(x64):
    """Point 2 of the card: 1e-8 by quadrature; without weights a shear moves the integral visibly."""
    f = bump(np.array([[1.1, 0.2], [-0.1, 0.9]]))
    inverses = {name: np.linalg.inv(h) for name, h in SHIFTS.items()}
    moved = {name: (lambda g, h=h: f(h @ g)) for name, h in inverses.items()}
    values = {name: polar_integral(function) for name, function in moved.items()}
    spread = max(abs(value / values["identity"] - 1) for value in values.values())
    assert spread < 1e-8, values
    right = polar_integral(lambda g: f(g @ SHIFTS["shear"]))
    assert abs(right / values["identity"] - 1) < 1e-8
    plain = {name: polar_integral(function, weighted=False) for name, function in moved.items()}
    assert abs(plain["shear"] / plain["identity"] - 1) > 0.01
    assert abs(plain["stretch"] / plain["identity"] - 1) > 0.05
    assert abs(plain["rotation"] / plain["identity"] - 1) < 1e-8  # rotations leave the wrong measure alone too


def test_polar_and_iwasawa_measures_agree_up_to_one_constant(x64):
    functions = [bump(np.eye(2)), bump(np.array([[1.1, 0.2], [-0.1, 0.9]])), bump(np.array([[0.5, -1.0], [1.0, 0.3]]))]
    ratios = [polar_integral(f) / iwasawa_integral(f) for f in functions]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


@pytest.mark.parametrize("method", ["random", "stratified", "quasi"])
@pytest.mark.parametrize("group", [SL2, GL2, SO3, SL3])
def test_weighted_samples_integrate_by_the_haar_measure(group, method):
    """Point 2: Monte Carlo integrals of a function and of the moved function agree within four standard errors."""
    # The measure of matrices with small determinants is infinite: there the function has to vanish.
    n, near = group.n, bump(np.eye(group.n, dtype=np.float32))
    f = near if group.preserves_volume else lambda g: near(g) * jnp.linalg.det(g) ** 3
    shear = np.eye(n, dtype=np.float32)
    if group.stretch == "none":
        shear = np.asarray(rotation_exp(jnp.array([0.3, 0.5, -0.4]), 3))
    else:
        shear[0, 1] = 0.5
    inverse = jnp.asarray(np.linalg.inv(shear))

    @functools.partial(jax.jit, static_argnums=1)
    def estimate(key, weighted):
        samples = sample_polar(key, 512, group, scale=0.7, method=method)
        weights = samples.weights if weighted else jnp.full((512,), 1 / 512)
        return jnp.sum(f(samples.matrix) * weights), jnp.sum(f(inverse @ samples.matrix) * weights)

    keys = jax.random.split(jax.random.key(1), 128)
    one, other = (np.asarray(v) for v in jax.lax.map(lambda k: estimate(k, True), keys))
    gap = one - other
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert abs(gap.mean()) < 4 * error
    assert error < 0.02 * one.mean()
    if group.stretch != "none":
        one, other = (np.asarray(v) for v in jax.lax.map(lambda k: estimate(k, False), keys))
        gap = one - other
        assert abs(gap.mean()) > 4 * gap.std(ddof=1) / np.sqrt(len(gap))


def test_even_samples_have_smaller_errors():
    f = bump(np.eye(2, dtype=np.float32))

    def spread(method, num):
        def one(key):
            samples = sample_polar(key, num, SL2, scale=0.7, method=method)
            return jnp.sum(f(samples.matrix) * samples.weights)

        return float(jnp.std(jax.lax.map(one, jax.random.split(jax.random.key(0), 200))))

    errors = {method: spread(method, 256) for method in ("random", "stratified", "quasi")}
    assert errors["stratified"] < 0.8 * errors["random"]
    assert errors["quasi"] < 0.3 * errors["random"]
    slope = math.log(spread("random", 1024) / spread("random", 16)) / math.log(64)
    assert -0.6 < slope < -0.4


@pytest.mark.parametrize(("group", "method"), [*itertools.product(GROUPS, ["random", "stratified", "quasi"])])
def test_samples_belong_to_the_group(group, method):
    samples = sample_polar(jax.random.key(0), 33, group, method=method)
    g, inverse = np.asarray(samples.matrix), np.asarray(samples.inverse)
    np.testing.assert_allclose(g @ inverse, np.broadcast_to(np.eye(group.n), g.shape), atol=1e-5)
    determinants = np.linalg.det(g)
    assert (determinants > 0).all()
    if group.preserves_volume:
        np.testing.assert_allclose(determinants, 1, atol=1e-5)
    if group.stretch == "none":
        np.testing.assert_allclose(g @ g.swapaxes(1, 2), np.broadcast_to(np.eye(group.n), g.shape), atol=1e-5)
    if not group.rotation:
        np.testing.assert_allclose(g, g.swapaxes(1, 2))
    assert np.isfinite(samples.log_weight).all()
    assert len(np.unique(g.round(6), axis=0)) == 33  # no element twice: both ends of the circle are one rotation


def test_angles_stay_within_the_limit():
    samples = sample_polar(jax.random.key(0), 200, SL2, max_angle=0.5)
    theta = rotation_log(polar_log(samples.matrix)[1])
    assert 0.45 < float(jnp.abs(theta).max()) <= 0.5 + 1e-5
    turned = sample_polar(jax.random.key(0), 200, SO2, max_angle=0.5)
    np.testing.assert_allclose(jnp.sum(turned.weights), 0.5 / np.pi, rtol=1e-5)


@pytest.mark.parametrize("group", [R_SO2, SL2, GL2])
def test_a_ball_of_stretches_has_its_volume(group):
    """Weights of the uniform proposal: their sum is the Haar measure of the ball, by quadrature over its radii."""
    radius, number = 0.5, group.num_stretches
    samples = sample_polar(jax.random.key(0), 4096, group, scale=radius, proposal="ball")
    y = np.asarray(stretch_coordinates(polar_log(samples.matrix)[0], group))
    length = np.linalg.norm(y, axis=-1)
    assert length.max() <= radius * (1 + 1e-4)
    share = [np.mean(length < r) for r in (0.2, 0.35, 0.45)]
    np.testing.assert_allclose(share, (np.array([0.2, 0.35, 0.45]) / radius) ** number, atol=0.02)
    # Densities: 1 for stretches that commute, sinh(d) / d otherwise, d the difference of the eigenvalues of X.
    if group.stretch == "scale":
        expected = 2 * radius
    else:
        r = (np.arange(2000) + 0.5) * radius / 2000
        d = math.sqrt(2) * r  # eigenvalues +-a of traceless X = y E with |X| = r: a = r / sqrt(2)
        if number == 2:
            expected = np.mean(np.sinh(d) / d * 2 * np.pi * r) * radius
        else:  # the trace's coordinate fills what the traceless ones leave
            expected = np.mean(np.sinh(d) / d * 2 * np.pi * r * 2 * np.sqrt(radius**2 - r**2)) * radius
    np.testing.assert_allclose(float(jnp.sum(samples.weights)), expected, rtol=2e-3)


def test_bad_input():
    for call, message in (
        (lambda: LinearGroup(2, "traceless", rotation=False), "no group"),
        (lambda: LinearGroup(2, "sheared"), "expected"),
        (lambda: LinearGroup(4, "full"), "n = 1, 2 and 3"),
        (lambda: polar_log(jnp.ones((2, 3))), r"expected matrices"),
        (lambda: polar_log(jnp.ones((2, 2), jnp.int32)), "floating"),
        (lambda: stretch_coordinates(jnp.eye(3), SL2), "n = 2"),
        (lambda: stretch_matrix(jnp.ones(3), SL2), "expected"),
        (lambda: rotation_exp(jnp.ones(2), 2), "expected"),
        (lambda: sample_polar(jax.random.key(0), 0, SL2), "at least one"),
        (lambda: sample_polar(jax.random.key(0), 4, SL2, method="sobol"), "method"),  # type: ignore[arg-type]
        (lambda: sample_polar(jax.random.key(0), 4, SL2, max_angle=4.0), "angle"),
        (lambda: sample_polar(jax.random.key(0), 4, SL2, proposal="cube"), "proposal"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            call()
