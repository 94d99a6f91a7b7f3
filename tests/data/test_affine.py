"""Digits under affine maps and homographies: the specification; readers on small files of the published layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from equivariant_jax.core.images import rotate_image, warp_image
from equivariant_jax.data import AffineRanges, MissingDataError, affine_mnist, affnist, homnist, homography_mnist
from equivariant_jax.data.affine import read_mat_images

NOTHING = AffineRanges(0.0, 0.0, (1.0, 1.0), 0.0)


def blob(size=12, width=1.5):
    line = np.arange(size) - (size - 1) / 2
    image = np.exp(-(line[:, None] ** 2 + (line[None] - 1.5) ** 2) / (2 * width**2))
    return jnp.asarray(np.where(image > 0.05, image, 0.0), jnp.float32)


def centre(image):
    """Centre of mass `(right, up)` from the middle."""
    image = np.asarray(image, float)
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    total = image.sum()
    right = (image.sum(0) * columns).sum() / total - (image.shape[1] - 1) / 2
    up = (image.shape[0] - 1) / 2 - (image.sum(1) * rows).sum() / total
    return np.array([right, up])


def test_no_transformation_puts_the_image_into_the_middle():
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8))
    found = affine_mnist(jax.random.key(1), images, NOTHING, size=12)
    np.testing.assert_allclose(found.images[:, 2:-2, 2:-2, 0], images, atol=1e-6)
    assert float(jnp.abs(found.images[:, :2]).max()) == 0
    np.testing.assert_allclose(found.matrices, np.tile(np.eye(3), (3, 1, 1)), atol=1e-6)


def test_images_move_as_their_matrices_say():
    """The centre of mass of a symmetric blob goes where the matrix sends it."""
    images = jnp.stack([blob()] * 20)
    for found in (
        affine_mnist(jax.random.key(0), images, AffineRanges(shift=3.0), size=24),
        homography_mnist(jax.random.key(0), images, strength=0.05, size=24),
    ):
        start = np.append(centre(images[0]), 1.0)
        for image, matrix in zip(found.images, found.matrices, strict=True):
            target = np.asarray(matrix, float) @ start
            np.testing.assert_allclose(centre(image[..., 0]), target[:2] / target[2], atol=0.25)
        assert np.std([centre(image[..., 0]) for image in found.images]) > 0.5


def test_affine_maps_are_within_their_ranges():
    ranges = AffineRanges(degrees=20.0, shear=0.2, scale=(0.8, 1.2), shift=2.0)
    matrices = np.asarray(affine_mnist(jax.random.key(0), jnp.ones((4000, 2, 2)), ranges, size=4).matrices, float)
    angle = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    scale_x = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    scale_y = np.linalg.det(matrices) / scale_x
    back = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], axis=-1)
    shear = np.sum(back * matrices[:, :2, 1], axis=-1) / scale_y
    for values, low, high in (
        (angle, -20, 20), (scale_x, 0.8, 1.2), (scale_y, 0.8, 1.2), (shear, -0.2, 0.2), (matrices[:, 0, 2], -2, 2),
    ):  # fmt: skip
        assert low - 1e-3 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high + 1e-3
    np.testing.assert_allclose(matrices[:, 2], np.tile([0, 0, 1], (4000, 1)))


def test_ink_stays_on_the_canvas():
    images = jnp.stack([blob(16, 2.0)] * 64)
    found = affine_mnist(jax.random.key(0), images, size=28)
    area = np.linalg.det(np.asarray(found.matrices, float))
    kept = np.asarray(jnp.sum(found.images, axis=(1, 2, 3)), float) / (area * float(images[0].sum()))
    assert np.abs(kept - 1).max() < 0.03  # bilinear sums, no ink cut off
    outside = affine_mnist(jax.random.key(0), images, AffineRanges(shift=12.0), size=28)
    lost = np.asarray(jnp.sum(outside.images, axis=(1, 2, 3)), float) / float(images[0].sum())
    assert lost.min() < 0.7
    spread = np.std(np.asarray(found.matrices)[:, :2, 2], axis=0)
    assert spread.min() > 1.0
    empty = affine_mnist(jax.random.key(0), jnp.zeros((2, 8, 8)), size=10)
    assert bool(jnp.isfinite(empty.matrices).all())


def test_warping_is_rotation_where_it_is_one():
    image = jax.random.uniform(jax.random.key(0), (9, 9, 2))
    angle = np.radians(25.0)
    inverse = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(warp_image(image, jnp.asarray(inverse)), rotate_image(image, jnp.array(25.0)), atol=1e-5)
    behind = jnp.asarray(np.diag([1.0, 1.0, -1.0]), jnp.float32)
    assert float(jnp.abs(warp_image(image, behind)).max()) == 0


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content)


def test_affnist_files_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40)).astype(np.uint8)
    labels = np.array([3, 1, 4, 1, 5])
    struct = {"image": images.reshape(5, 1600).T, "label_int": labels, "human_readable_transform": np.zeros((6, 5))}
    for name in ("just_centered/training", "transformed/test"):
        save(tmp_path / "affnist" / f"{name}.mat", {"affNISTdata": struct})
    for split in ("train", "test"):
        source = affnist(split, tmp_path)
        np.testing.assert_array_equal(source.arrays["image"][..., 0], images)
        np.testing.assert_array_equal(source.arrays["label"], labels)
    with pytest.raises(MissingDataError, match="validation"):
        affnist("validation", tmp_path)
    with pytest.raises(ValueError, match="split"):
        affnist("dev", tmp_path)


@pytest.mark.parametrize("layout", ["square", "rows"])
def test_homnist_files_are_read(tmp_path, layout):
    images = np.random.default_rng(0).uniform(size=(3, 40, 40)).astype(np.float32)
    matrices = np.random.default_rng(1).normal(size=(3, 3, 3))
    stored = images if layout == "square" else images.reshape(3, 1600)
    content = {"img_data": stored, "labels": np.array([[7, 0, 9]]), "hom_matrices": matrices}
    save(tmp_path / "homnist" / "homNIST_test.mat", content)
    source = homnist(tmp_path)
    np.testing.assert_array_equal(source.arrays["image"][..., 0], images)
    np.testing.assert_array_equal(source.arrays["label"], [7, 0, 9])
    np.testing.assert_array_equal(source.arrays["matrix"], matrices)


def test_malformed_files_are_named(tmp_path):
    path = tmp_path / "file.mat"
    read = lambda **fields: read_mat_images(path, images="image", labels="label", **fields)  # noqa: E731
    path.write_bytes(b"not a MATLAB file" * 20)
    with pytest.raises(ValueError, match="not a MATLAB file"):
        read()
    save(path, {"image": np.zeros((3, 40, 40))})
    with pytest.raises(ValueError, match="no field 'label'"):
        read()
    with pytest.raises(ValueError, match="no struct 'affNISTdata'"):
        read(struct="affNISTdata")
    save(path, {"image": np.zeros((3, 28, 28)), "label": np.arange(3)})
    with pytest.raises(ValueError, match="image: got"):
        read()
    save(path, {"image": np.zeros((3, 40, 40)), "label": np.array([1, 2, 12])})
    with pytest.raises(ValueError, match="digits 0 to 9"):
        read()
    save(path, {"image": np.zeros((3, 40, 40)), "label": np.array([1, 2, 2.5])})
    with pytest.raises(ValueError, match="whole numbers"):
        read()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="scales"):
        AffineRanges(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="float"):
        affine_mnist(jax.random.key(0), jnp.zeros((2, 8, 8), jnp.uint8))
    with pytest.raises(ValueError, match="strength"):
        homography_mnist(jax.random.key(0), jnp.zeros((2, 8, 8)), strength=-1.0)
    with pytest.raises(ValueError, match="warp_image"):
        warp_image(jnp.zeros((8, 8)), jnp.eye(3))
