"""Frames of edges: rotations onto the polar axis, smooth where angles are not, and features seen in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.representations import Irreps, wigner_d
from equivariant_jax.euclidean.edge_frames import (
    edge_frames,
    frame_matrix,
    order_index,
    orders_first,
    rotate_from_frame,
    rotate_to_frame,
)
from equivariant_jax.euclidean.harmonics import spherical_harmonics

FRAMES = jax.jit(edge_frames)
AXES = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
POLE = np.array([0.0, 1.0, 0.0])


def directions(count, seed=0):
    """Random vectors of many lengths, the six axes, and vectors near the poles and on both sides of the equator."""
    generic = np.random.default_rng(seed).normal(size=(count, 3))
    near = np.array([[1e-6, 1, 0], [0, -1, 1e-6], [1e-9, -1, -1e-9], [1, 1e-9, 0], [1, -1e-9, 0], [0.3, -1e-12, -0.9]])
    return np.concatenate([generic, 1e-3 * generic[:5], 1e3 * generic[:5], AXES, -AXES, near])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rotations_onto_the_polar_axis(x64, dtype):
    vectors = jnp.asarray(directions(200), dtype)
    frames = FRAMES(vectors)
    assert frames.dtype == dtype
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    lengths = np.linalg.norm(np.asarray(vectors, np.float64), axis=-1, keepdims=True)
    turned = np.einsum("nij,nj->ni", np.asarray(frames, np.float64), np.asarray(vectors, np.float64)) / lengths
    np.testing.assert_allclose(turned, np.broadcast_to(POLE, turned.shape), atol=tolerance)
    product = np.einsum("nij,nkj->nik", np.asarray(frames, np.float64), np.asarray(frames, np.float64))
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=tolerance)
    np.testing.assert_allclose(np.linalg.det(np.asarray(frames, np.float64)), 1, atol=tolerance)


def test_upper_chart_is_the_shortest_rotation(x64):
    vectors = directions(50)
    vectors = vectors[vectors[:, 1] >= 0]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Rodrigues' formula about u x e_y, the angle being that between u and e_y.
    axis = np.cross(unit, POLE)
    cross = np.zeros((len(unit), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    cross -= np.swapaxes(cross, 1, 2)
    expected = np.eye(3) + cross + cross @ cross / (1 + unit[:, 1])[:, None, None]
    np.testing.assert_allclose(FRAMES(jnp.asarray(vectors)), expected, atol=1e-14)


def test_derivatives_of_two_orders_stay_of_order_one(x64):
    """Angles would give 1 / sin(theta), that is 1e9 here; a single chart the same near -y."""
    towards = [np.array([1e-9, s, 2e-9]) for s in (1.0, -1.0)] + list(directions(50, seed=1)[:50])
    unit = jnp.asarray(np.array([v / np.linalg.norm(v) for v in towards]))
    first = jax.jit(jax.vmap(jax.jacfwd(edge_frames)))(unit)
    second = jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(edge_frames))))(unit)
    assert float(jnp.abs(first).max()) < 3
    assert float(jnp.abs(second).max()) < 10
    assert float(jnp.abs(first).max()) > 0.5


def test_derivative_against_central_differences(x64):
    vectors = jnp.asarray(directions(20, seed=2)[:20])
    step = 1e-6
    exact = jax.vmap(jax.jacfwd(edge_frames))(vectors)
    for axis in range(3):
        moved = [FRAMES(vectors + s * step * jnp.asarray(AXES[axis]).reshape(1, 3)) for s in (1, -1)]
        np.testing.assert_allclose(exact[..., axis], (moved[0] - moved[1]) / (2 * step), atol=1e-8)


def test_zero_vector():
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(FRAMES(zero), np.broadcast_to(np.eye(3), (2, 3, 3)))
    slope = jax.jacrev(edge_frames)(zero)
    curvature = jax.jacfwd(jax.jacrev(edge_frames))(zero)
    np.testing.assert_array_equal(slope, np.zeros_like(slope))
    np.testing.assert_array_equal(curvature, np.zeros_like(curvature))


def test_frames_of_a_rotated_edge_differ_by_a_turn_about_it(x64):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    vectors = directions(60, seed=4)
    before, after = FRAMES(jnp.asarray(vectors)), FRAMES(jnp.asarray(vectors @ rotation.T))
    turn = np.einsum("nij,jk,nlk->nil", after, rotation, before)
    np.testing.assert_allclose(turn[:, 1], np.broadcast_to(POLE, (len(turn), 3)), atol=1e-13)
    assert np.abs(turn - np.eye(3)).max() > 1


def test_harmonics_of_the_edge_become_zonal(x64):
    lmax = 4
    vectors = jnp.asarray(directions(30))
    wigner = wigner_d(FRAMES(vectors), lmax)
    seen = rotate_to_frame(spherical_harmonics(vectors, lmax, normalization="norm")[..., None], wigner)[..., 0]
    expected = np.zeros((lmax + 1) ** 2)
    expected[[l * l + l for l in range(lmax + 1)]] = 1
    np.testing.assert_allclose(seen, np.broadcast_to(expected, seen.shape), atol=1e-13)


@pytest.mark.parametrize("mmax", [None, 0, 1, 3])
def test_there_and_back(x64, mmax):
    lmax, channels = 3, 2
    vectors = jnp.asarray(directions(10)[:10])
    x = jnp.asarray(np.random.default_rng(5).normal(size=(10, 16, channels)))
    wigner = wigner_d(FRAMES(vectors), lmax)
    seen = rotate_to_frame(x, wigner, mmax=mmax)
    kept = order_index(lmax, mmax)
    whole = Irreps(lmax, axis=-2)
    expected = np.stack([whole(frame, row) for frame, row in zip(FRAMES(vectors), x, strict=True)])
    np.testing.assert_allclose(seen, expected[:, kept], atol=1e-13)
    # What was cut off counts as zero on the way back.
    expected[:, np.setdiff1d(np.arange(16), kept)] = 0
    back = np.stack([whole(frame.T, row) for frame, row in zip(FRAMES(vectors), jnp.asarray(expected), strict=True)])
    np.testing.assert_allclose(rotate_from_frame(seen, wigner, mmax=mmax), back, atol=1e-13)
    if mmax is None or mmax == 3:
        np.testing.assert_allclose(back, x, atol=1e-13)


@pytest.mark.parametrize("mmax", [0, 2, 3])
def test_one_matrix_sorts_by_order(x64, mmax):
    vectors = jnp.asarray(directions(6)[:6])
    x = jnp.asarray(np.random.default_rng(6).normal(size=(6, 16, 2)))
    wigner = wigner_d(FRAMES(vectors), 3)
    matrix = frame_matrix(wigner, mmax)
    place = np.searchsorted(order_index(3, mmax), orders_first(3, mmax))
    expected = rotate_to_frame(x, wigner, mmax=mmax)[:, place]
    seen = jnp.einsum("enk,ekc->enc", matrix, x)
    np.testing.assert_allclose(seen, expected, atol=1e-13)
    back = rotate_from_frame(seen[:, np.argsort(place)], wigner, mmax=mmax)
    np.testing.assert_allclose(jnp.einsum("enk,enc->ekc", matrix, seen), back, atol=1e-13)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="mmax=3"):
        orders_first(2, 3)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        edge_frames(jnp.zeros(4))
    with pytest.raises(ValueError, match="int32"):
        edge_frames(jnp.zeros(3, jnp.int32))
    wigner = wigner_d(jnp.eye(3), 1)
    with pytest.raises(ValueError, match="2 matrices"):
        rotate_to_frame(jnp.zeros((9, 1)), wigner)
    with pytest.raises(ValueError, match="9 coefficients"):
        rotate_from_frame(jnp.zeros((9, 1)), wigner)
