"""Moving digits and generated batches: the specification, its laws, and resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.images import rotate_image
from equivariant_jax.data.flowing import flowing_mnist, half_scale, rotating_mnist
from equivariant_jax.data.generated import GeneratedBatches
from equivariant_jax.data.images import small_digits

SPEEDS = jnp.array([[x, y] for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)])


def digits(n=5, size=8):
    return jax.random.uniform(jax.random.key(9), (n, size, size), maxval=0.5)


def test_digits_drift_as_specified():
    images = digits()
    found = flowing_mnist(jax.random.key(0), images, SPEEDS, batch=4, num_digits=1, length=5)
    for b in range(4):
        velocity = np.asarray(found.velocities[b, 0], int)
        for t in range(5):
            expected = np.roll(found.frames[b, 0], (t * velocity[1], t * velocity[0]), axis=(0, 1))
            np.testing.assert_array_equal(found.frames[b, t], expected)
        image = np.asarray(images[found.indices[b, 0]])
        rolled = [np.roll(image, (i, j), axis=(0, 1)) for i in range(8) for j in range(8)]
        assert any(np.array_equal(found.frames[b, 0, ..., 0], candidate) for candidate in rolled)


def test_each_digit_has_its_own_velocity_and_start():
    found = flowing_mnist(jax.random.key(0), digits(), SPEEDS, batch=64, num_digits=2, length=2)
    assert np.mean(np.any(found.velocities[:, 0] != found.velocities[:, 1], axis=-1)) > 0.7
    counts = np.unique(np.asarray(found.velocities).reshape(-1, 2), axis=0, return_counts=True)[1]
    assert len(counts) == 9
    assert len(np.unique(found.indices)) == 5
    assert float(found.frames.max()) <= 1
    bright = flowing_mnist(jax.random.key(0), jnp.ones((1, 8, 8)), SPEEDS, batch=2, num_digits=2, length=2)
    assert float(bright.frames.max()) == 1.0  # the sum is 2


def test_a_flow_on_all_is_a_larger_velocity_of_each():
    images = digits()
    slow = flowing_mnist(jax.random.key(0), images, jnp.array([[0.0, 1.0]]), batch=3, length=4)
    fast = flowing_mnist(jax.random.key(0), images, jnp.array([[2.0, 0.0]]), batch=3, length=4)
    for t in range(4):
        np.testing.assert_allclose(fast.frames[:, t], np.roll(slow.frames[:, t], (-t, 2 * t), axis=(1, 2)), atol=1e-6)


def test_smaller_images_lie_in_the_centre_of_a_larger_torus():
    found = flowing_mnist(jax.random.key(0), jnp.ones((1, 4, 4)), SPEEDS, batch=2, num_digits=1, length=3, size=10)
    assert found.frames.shape == (2, 3, 10, 10, 1)
    np.testing.assert_allclose(found.frames.sum(axis=(2, 3, 4)), 16.0)


def test_digits_turn_as_specified():
    images = jnp.zeros((1, 12, 12)).at[0, 4:8, 4:10].set(0.7)
    found = rotating_mnist(jax.random.key(0), images, jnp.array([[90.0]]), batch=2, num_digits=1, length=5)
    for t in range(5):
        expected = np.rot90(found.frames[:, 0], t, axes=(1, 2))
        np.testing.assert_allclose(found.frames[:, t], expected, atol=1e-5)
    slow = rotating_mnist(jax.random.key(0), images, jnp.array([[0.0]]), batch=2, num_digits=1, length=2)
    turned = rotate_image(found.frames[:, 0], jnp.array(0.0))
    np.testing.assert_allclose(slow.frames[:, 1], turned, atol=1e-5)
    assert np.abs(found.frames[:, 1] - found.frames[:, 0]).max() > 0.3


def test_half_scale_keeps_the_mean_and_centres():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    small = half_scale(images)
    assert small.shape == (3, 16, 16)
    np.testing.assert_allclose(small[:, 1:15, 1:15].mean(axis=(1, 2)), images.mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert small[:, 0].max() == 0


def test_small_digits_are_digits():
    arrays = small_digits().arrays
    assert arrays["image"].dtype == np.uint8
    assert arrays["image"].max() == 16
    assert sorted(np.unique(arrays["label"])) == list(range(10))


def test_generated_batches_resume_where_they_stopped():
    batches = GeneratedBatches(lambda key: jax.random.normal(key, (3,)), jax.random.key(0))
    first = [np.asarray(next(batches)) for _ in range(4)]
    again = GeneratedBatches(lambda key: jax.random.normal(key, (3,)), jax.random.key(0))
    again.set_state({"position": 2})
    np.testing.assert_array_equal(next(again), first[2])
    assert again.get_state() == {"position": 3}
    assert not np.array_equal(first[0], first[1])
    with pytest.raises(ValueError, match="state: got"):
        again.set_state({"epoch": 1})


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="images: got"):
        flowing_mnist(jax.random.key(0), jnp.zeros((2, 4, 5)), SPEEDS, batch=1)
    with pytest.raises(ValueError, match="velocities: got"):
        rotating_mnist(jax.random.key(0), digits(), SPEEDS, batch=1)
    with pytest.raises(ValueError, match="size: got 4"):
        flowing_mnist(jax.random.key(0), digits(), SPEEDS, batch=1, size=4)
    with pytest.raises(ValueError, match="positive"):
        flowing_mnist(jax.random.key(0), digits(), SPEEDS, batch=1, length=0)
    with pytest.raises(ValueError, match="even"):
        half_scale(np.zeros((1, 5, 4)))
