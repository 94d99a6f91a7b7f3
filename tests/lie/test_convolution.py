"""Kernels and affine convolutions: exact and analytic laws without interpolation, references in loops, quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax import lie
from equivariant_jax.lie import (
    GL2,
    SL2,
    SO2,
    AffineKernelConfig,
    GroupSamples,
    affine_group_conv,
    affine_kernel,
    affine_kernel_init,
    group_kernel,
    group_pool,
    kernel_grid,
    lift_conv,
    polar_exp,
)
from experiments.lie.laws import elements, lifting_error
from tests.lie.compiled import sample_polar


@pytest.mark.parametrize("group", [SL2, GL2])
def test_lifting_commutes_with_the_group_without_interpolation(x64, group):
    """Point 3 of the card: 17 pixels per unit box and the box [-2, 2]^2 suffice; a box that cuts kernels does not."""
    wide = lifting_error(group, 17, 2.5)
    cut = lifting_error(group, 17, 1.0)
    coarse = lifting_error(group, 5, 1.0)
    assert wide <= 0.01
    assert cut > 1.5 * wide
    assert coarse > cut


def test_without_the_determinant_lifting_does_not_commute(x64, monkeypatch):
    right = lifting_error(GL2, 17, 2.5)
    monkeypatch.setattr(lie.LinearGroup, "preserves_volume", property(lambda self: True))
    assert lifting_error(GL2, 17, 2.5) > 10 * right


def slow_group_conv(params, features, samples_in, samples_out, config):
    """The sum over pixels and samples, loop by loop, at the middle pixel of images as large as the kernel."""
    grid = np.asarray(kernel_grid(config, dtype="float64"))
    channels = features.shape[-1]
    out = []
    for h_inverse in np.asarray(samples_out.inverse):
        total = 0.0
        for s, v in enumerate(np.asarray(samples_in.matrix)):
            weight = float(np.exp(samples_in.log_weight[s])) / len(samples_in.log_weight)
            for i in range(config.side):
                for j in range(config.side):
                    k = affine_kernel(
                        params, jnp.asarray(h_inverse @ grid[i, j]), jnp.asarray(h_inverse @ v), config, channels
                    )
                    share = weight / abs(np.linalg.det(v)) / config.size**2
                    total = total + share * np.asarray(features)[i, j, s] @ np.asarray(k)
        out.append(total)
    return np.stack(out)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("group", [SO2, GL2])
def test_group_convolution_is_the_sum_it_says(x64, group, separable):
    config = AffineKernelConfig(group, size=3, reach=1.4, hidden=(8, 8), separable=separable, group_radius=4.0)
    params = affine_kernel_init(jax.random.key(0), config, 2, 3, dtype="float64")
    samples = sample_polar(jax.random.key(1), 3, group, dtype="float64")
    out = sample_polar(jax.random.key(2), 2, group, dtype="float64")
    features = jax.random.normal(jax.random.key(3), (config.side, config.side, 3, 2), "float64")
    found = affine_group_conv(params, features, samples, out, config, padding="valid")
    assert found.shape == (1, 1, 2, 3)
    np.testing.assert_allclose(found[0, 0], slow_group_conv(params, features, samples, out, config), atol=1e-12)
    same = affine_group_conv(params, features, samples, out, config)
    np.testing.assert_allclose(same[config.side // 2, config.side // 2], found[0, 0], atol=1e-12)


def test_a_separable_kernel_is_the_full_one_multiplied_out(x64):
    config = AffineKernelConfig(SL2, size=5, reach=1.3, separable=True)
    params = affine_kernel_init(jax.random.key(0), config, 3, 4, dtype="float64")
    samples, out = (sample_polar(jax.random.key(i), 5, SL2, dtype="float64") for i in (1, 2))
    features = jax.random.normal(jax.random.key(3), (2, 9, 8, 5, 3), "float64")
    fast = affine_group_conv(params, features, samples, out, config)
    kernel = group_kernel(params, samples, out, config, 3)
    merged = kernel.reshape(*kernel.shape[:2], 15, 20)
    slow = jax.lax.conv_general_dilated(
        features.reshape(2, 9, 8, 15), merged, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(fast.reshape(slow.shape), slow, atol=1e-12)


def bump_on_group(v, channels=2):
    """A smooth function of matrices near the identity, `[..., channels]`, zero far away."""
    square = jnp.sum(jnp.square(v - jnp.eye(2)[None]), axis=(-1, -2))
    return jnp.stack([jnp.exp(-2 * square), jnp.exp(-1.5 * square) * v[..., 0, 1]][:channels], axis=-1)


def group_law_error(*, weighted=True, number=30_000, method="quasi"):
    """`F'_{L_g F}(0, h)` against `F'_F(0, g^-1 h)` for a function on SL(2) alone (kernel of one pixel)."""
    config = AffineKernelConfig(SL2, size=1, window="none", hidden=(16, 16), group_radius=1.6, frequency=3.0)
    params = affine_kernel_init(jax.random.key(0), config, 2, 4, dtype="float64")
    samples = sample_polar(jax.random.key(1), number, SL2, scale=0.75, method=method, dtype="float64")
    if not weighted:
        samples = samples._replace(log_weight=jnp.zeros_like(samples.log_weight))
    g, h = elements(SL2, 6, stretch=0.2, seed=3), elements(SL2, 6, stretch=0.2, seed=4)
    errors, sizes = [], []
    for k in range(6):
        moved = jnp.einsum("ij,sjk->sik", g.inverse[k], samples.matrix)
        back = g.inverse[k] @ h.matrix[k]
        one = GroupSamples(h.matrix[k : k + 1], h.inverse[k : k + 1], jnp.zeros(1))
        other = GroupSamples(back[None], jnp.linalg.inv(back)[None], jnp.zeros(1))
        left = affine_group_conv(params, bump_on_group(moved)[None, None], samples, one, config)
        right = affine_group_conv(params, bump_on_group(samples.matrix)[None, None], samples, other, config)
        errors.append(np.sum((left - right) ** 2))
        sizes.append(np.sum(right**2))
    return math.sqrt(sum(errors) / sum(sizes))


def test_group_convolution_commutes_with_weights_only(x64):
    """The Haar weights are what makes the sum over samples invariant under stretches and shears."""
    assert group_law_error() < 0.02
    assert group_law_error(weighted=False) > 0.1


def test_error_falls_as_one_over_the_root_of_samples(x64):
    """Point 4 of the card: slope between -0.6 and -0.4 for random samples, and quasi-random ones are better."""
    config = AffineKernelConfig(SL2, size=1, window="none", hidden=(16, 16), group_radius=1.6, frequency=3.0)
    params = affine_kernel_init(jax.random.key(0), config, 2, 4, dtype="float64")
    out = elements(SL2, 4, stretch=0.2, seed=5)

    def value(key, number, method):
        samples = sample_polar(key, number, SL2, scale=0.75, method=method, dtype="float64")
        return affine_group_conv(params, bump_on_group(samples.matrix)[None, None], samples, out, config)

    exact = jax.jit(lambda key: value(key, 50_000, "quasi"))(jax.random.key(9))
    keys = jax.random.split(jax.random.key(0), 48)

    def error(number, method):
        found = jax.jit(jax.vmap(lambda k: value(k, number, method)))(keys)
        return float(jnp.sqrt(jnp.mean((found - exact[None]) ** 2)))

    sizes = (16, 128, 1024)
    random = [error(n, "random") for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(random), 1)[0]
    assert -0.6 < slope < -0.4
    assert error(1024, "quasi") < 0.5 * random[-1]
    assert error(1024, "stratified") < random[-1]


def quarter_turns(group, number, dtype="float64"):
    """Samples that quarter turns permute: turn k of sample s is sample `k * number + s`."""
    some = sample_polar(jax.random.key(5), number, group, max_angle=0.7, dtype=dtype)
    turns = [
        np.round(np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]))
        for a in np.arange(4) * math.pi / 2
    ]
    matrix = jnp.concatenate([jnp.asarray(t, dtype) @ some.matrix for t in turns])
    inverse = jnp.concatenate([some.inverse @ jnp.asarray(t.T, dtype) for t in turns])
    return GroupSamples(matrix, inverse, jnp.tile(some.log_weight, 4))


def turned_features(x, number):
    """A quarter turn of features `[b, h, w, 4 * number, c]`: of the image, and of the samples."""
    return jnp.roll(jnp.rot90(x, axes=(1, 2)), number, axis=3)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_quarter_turns_are_exact(x64, separable, padding):
    config = AffineKernelConfig(GL2, size=3, reach=1.3, separable=separable)
    samples = quarter_turns(GL2, 2)
    lift = affine_kernel_init(jax.random.key(0), config, 1, 3, lifting=True, dtype="float64")
    group = affine_kernel_init(jax.random.key(1), config, 3, 3, dtype="float64")
    image = jax.random.normal(jax.random.key(2), (2, 11, 11, 1), "float64")

    def layers(image):
        lifted = jax.nn.gelu(lift_conv(lift, image, samples, config, padding=padding))
        return affine_group_conv(group, lifted, samples, samples, config, padding=padding)

    expected = turned_features(layers(image), 2)
    found = layers(jnp.rot90(image, axes=(1, 2)))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert float(jnp.abs(found - layers(image)).max()) > 1e-3
    for how in ("max", "mean"):
        np.testing.assert_allclose(
            group_pool(found, how=how, samples=samples), group_pool(layers(image), how=how, samples=samples), atol=1e-12
        )


# What the official code does, and what it costs: one test for each defect in the list of the paper's card.


def test_rotations_are_evenly_spaced(x64):
    """(a) The published samples hold the half turn twice; ours are evenly spread over the circle."""
    ours = sample_polar(jax.random.key(0), 6, SO2, method="stratified")
    angles = np.sort(np.asarray(lie.coordinates(ours.matrix, SO2)[:, 0], float))
    gaps = np.diff(np.append(angles, angles[0] + 2 * math.pi))
    assert gaps.min() > 0
    assert gaps.max() < 2 * 2 * math.pi / 6
    theirs = lie.published_samples(jax.random.key(0), 6, SO2)
    np.testing.assert_allclose(theirs.matrix[0], theirs.matrix[-1], atol=1e-6)


@pytest.mark.parametrize(("angles", "jumps"), [("circle", False), ("principal", False), ("published", True)])
def test_the_kernel_is_continuous_at_small_angles(x64, angles, jumps):
    """(b) The published angle in [0, 2 pi) makes the kernel jump at zero relative rotation."""
    config = AffineKernelConfig(GL2, angles=angles, window="logistic")
    params = affine_kernel_init(jax.random.key(0), config, 1, 8, dtype="float64")
    turn = polar_exp(jnp.zeros((2, 2, 2)), jnp.array([[1e-6], [-1e-6]]))
    values = affine_kernel(params, jnp.full((2, 2), 0.1), turn, config, 1)
    difference = float(jnp.linalg.norm(values[0] - values[1]) / jnp.linalg.norm(values[0]))
    assert (difference > 0.1) == jumps
    assert jumps or difference < 1e-4


def test_half_turns_are_no_cut_on_the_circle(x64):
    config = AffineKernelConfig(SL2, angles="circle")
    params = affine_kernel_init(jax.random.key(0), config, 1, 8, dtype="float64")
    turn = polar_exp(jnp.zeros((2, 2, 2)), jnp.array([[math.pi - 1e-6], [-math.pi + 1e-6]]))
    values = affine_kernel(params, jnp.full((2, 2), 0.1), turn, config, 1)
    np.testing.assert_allclose(values[0], values[1], atol=1e-4)


def test_coordinates_and_exponential_are_of_one_scale(x64):
    """(c) The angle in the coordinates is the angle of the rotation."""
    matrix = polar_exp(jnp.zeros((2, 2)), jnp.array([0.7]))
    np.testing.assert_allclose(lie.coordinates(matrix, SO2), [0.7], atol=1e-12)
    np.testing.assert_allclose(matrix[1, 0], math.sin(0.7), atol=1e-12)


def test_the_scale_of_features_does_not_depend_on_the_number_of_samples(x64):
    """(d) Sums are weighted means: with more samples they converge, and the published sum grows with the number."""
    config = AffineKernelConfig(SL2, size=3, hidden=(16, 16), group_radius=2.0, frequency=3.0)
    params = affine_kernel_init(jax.random.key(0), config, 1, 8, dtype="float64")
    out = elements(SL2, 2, stretch=0.1)

    def norm(samples):
        number = samples.log_weight.shape[0]
        return float(jnp.linalg.norm(affine_group_conv(params, jnp.ones((3, 3, number, 1)), samples, out, config)))

    draw = lambda n: sample_polar(jax.random.key(1), n, SL2, scale=0.5, dtype="float64")  # noqa: E731
    assert abs(norm(draw(2048)) / norm(draw(256)) - 1) < 0.1
    theirs = lambda n: lie.published_samples(jax.random.key(1), n, SL2, dtype="float64")  # noqa: E731
    assert norm(theirs(2048)) / norm(theirs(256)) > 5


def test_the_grid_holds_stretched_kernels(x64):
    """(e) `reach` makes the grid as large as the largest stretch; the published one stays at the unit box."""
    assert AffineKernelConfig(SL2, size=5).side == 5
    assert AffineKernelConfig(SL2, size=5, reach=2.0).side == 11
    corner = kernel_grid(AffineKernelConfig(SL2, size=5, reach=2.0))
    assert float(jnp.abs(corner).max()) >= 2.0
    stretch = 1.5
    matrix = jnp.asarray([[[stretch, 0.0], [0.0, 1 / stretch]]])
    stretched = GroupSamples(matrix, jnp.linalg.inv(matrix), jnp.zeros(1))

    def outside(reach):
        config = AffineKernelConfig(SL2, size=17, reach=reach)
        params = affine_kernel_init(jax.random.key(0), config, 1, 1, lifting=True, dtype="float64")
        kernel = lie.lift_kernel(params, stretched, config)[:, :, 0, 0, 0]
        return float(jnp.abs(kernel[0]).max() + jnp.abs(kernel[:, 0]).max())

    assert outside(1.0) > 0
    assert outside(stretch + 2 / 17) == 0


def test_bad_input_is_named():
    config = AffineKernelConfig(SL2)
    samples = sample_polar(jax.random.key(0), 4, SL2)
    params = affine_kernel_init(jax.random.key(0), config, 2, 3)
    with pytest.raises(ValueError, match="odd size"):
        AffineKernelConfig(SL2, size=4)
    with pytest.raises(ValueError, match="angles"):
        AffineKernelConfig(lie.SL3, angles="published")
    with pytest.raises(ValueError, match="window"):
        AffineKernelConfig(SL2, window="box")
    with pytest.raises(ValueError, match="group_radius"):
        AffineKernelConfig(SL2, group_radius=0.0)
    with pytest.raises(ValueError, match="padding"):
        affine_group_conv(params, jnp.ones((8, 8, 4, 2)), samples, samples, config, padding="full")
    with pytest.raises(ValueError, match=r"expected \[\.\.\., height, width, 4, channels\]"):
        affine_group_conv(params, jnp.ones((8, 8, 3, 2)), samples, samples, config)
    with pytest.raises(ValueError, match="n = 2"):
        lift_conv(params, jnp.ones((8, 8, 1)), sample_polar(jax.random.key(0), 4, lie.SL3), config)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        affine_group_conv(params, jnp.ones((3, 3, 4, 2)), samples, samples, config, padding="valid")
    with pytest.raises(ValueError, match="samples for a mean"):
        group_pool(jnp.ones((2, 2, 4, 1)), how="mean")
    separable = AffineKernelConfig(SL2, separable=True)
    product = affine_kernel_init(jax.random.key(0), separable, 1, 1)
    with pytest.raises(ValueError, match="group elements"):
        affine_kernel(product, jnp.ones((2, 2)), None, separable, 1)
