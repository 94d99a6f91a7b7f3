"""Images under shifts and rotations against slow references and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.images import rotate_image, sample_image, shift_image


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, 1), (-2, 3), (11, -9)])
def test_shift_is_a_roll(shift):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    np.testing.assert_array_equal(shift_image(x, jnp.array(shift)), np.roll(x, (shift[1], shift[0]), axis=(1, 2)))


def test_shift_may_be_traced_and_mapped():
    x, shifts = jax.random.normal(jax.random.key(0), (6, 6, 1)), jnp.array([[1, 2], [0, -1]])
    mapped = jax.jit(jax.vmap(shift_image, in_axes=(None, 0)))(x, shifts)
    for found, shift in zip(mapped, shifts.tolist(), strict=True):
        np.testing.assert_array_equal(found, np.roll(x, (shift[1], shift[0]), axis=(0, 1)))


@pytest.mark.parametrize("size", [4, 5])
def test_quarter_turns_are_exact(size):
    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    for k in (-1, 0, 1, 2, 3):
        np.testing.assert_allclose(rotate_image(x, jnp.array(90.0 * k)), np.rot90(x, k, axes=(1, 2)), atol=1e-5)


def test_bilinear_sampling_against_scipy():
    from scipy.ndimage import map_coordinates

    x = np.random.default_rng(0).normal(size=(6, 7))
    row = np.random.default_rng(1).uniform(-2, 8, size=(5, 4))
    column = np.random.default_rng(2).uniform(-2, 9, size=(5, 4))
    framed = np.pad(x, 4)  # beyond the border values fall to zero over one pixel
    expected = map_coordinates(framed, [row + 4, column + 4], order=1)
    found = sample_image(jnp.asarray(x, jnp.float32)[..., None], jnp.asarray(row), jnp.asarray(column))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)


def test_rotation_turns_a_ramp_exactly(x64):
    at = np.arange(15) - 7.0
    ramp = np.tile(at, (15, 1))  # grows to the right
    turned = rotate_image(jnp.asarray(ramp)[..., None], jnp.array(30.0))[..., 0]
    # Counter-clockwise by 30 degrees: it grows along (cos 30, sin 30), y upwards.
    expected = np.cos(np.pi / 6) * at[None, :] + np.sin(np.pi / 6) * -at[:, None]
    inside = np.hypot(at[:, None], at[None, :]) < 6
    np.testing.assert_allclose(np.asarray(turned)[inside], expected[inside], atol=1e-12)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="two integers"):
        shift_image(jnp.zeros((4, 4, 1)), jnp.zeros((2,)))
    with pytest.raises(ValueError, match="two tables"):
        sample_image(jnp.zeros((4, 4, 1)), jnp.zeros((2, 2)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="height"):
        rotate_image(jnp.zeros((4, 4)), jnp.array(0.0))
