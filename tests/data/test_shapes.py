"""Procedural solids, meshes and tours: integral laws of closed surfaces, readers on small files, exact optima."""

import itertools

import numpy as np
import pytest

from equivariant_jax.data import (
    SHAPE_CLASSES,
    MissingDataError,
    modelnet40,
    optimal_tour,
    procedural_shapes,
    read_obj,
    read_off,
    read_tsplib,
    sample_mesh,
    tour_length,
    two_opt,
)
from equivariant_jax.data.meshes import read_shards

# Two triangles and a square: corners of a unit square in the plane z = 2, and one below its middle.
OFF = "5 5 8\n0 0 2\n1 0 2\n1 1 2\n0 1 2\n.5 .5 1.5 # tip\n4 0 1 2 3\n3 0 4 1 255 0 0\n3 1 4 2\n3 2 4 3\n3 3 4 0\n"


def test_clouds_are_uniform_samples_of_closed_surfaces_with_outer_normals():
    """By the divergence theorem the mean of n is 0 and that of n x^T is volume / area times the identity."""
    m = 40_000
    points, normals, labels = procedural_shapes(3, len(SHAPE_CLASSES), m, normalize=False)
    assert labels.tolist() == list(range(10))
    assert points.dtype == normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, atol=1e-6)
    for name, x, n in zip(SHAPE_CLASSES, points.astype(float), normals.astype(float), strict=True):
        # Five standard errors of means of m terms of size |x| at most.
        error = 5 * np.abs(x).max() / np.sqrt(m)
        moment = n.T @ x / m
        assert np.abs(n.mean(axis=0)).max() < 5 / np.sqrt(m), name
        assert np.abs(moment - np.trace(moment) / 3 * np.eye(3)).max() < error, name
        assert np.trace(moment) / 3 > error, name  # outwards, and a solid


def test_clouds_depend_on_seed_and_index_alone():
    points, normals, labels = procedural_shapes(5, 12, 33)
    again = procedural_shapes(5, 11, 33)
    np.testing.assert_array_equal(points[:11], again[0])
    np.testing.assert_array_equal(normals[:11], again[1])
    assert np.abs(points[0] - points[10]).max() > 0.01
    assert labels[10] == 0
    assert np.abs(points - procedural_shapes(6, 12, 33)[0]).max() > 0.01
    np.testing.assert_allclose(points.mean(axis=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1).max(axis=1), 1.0, atol=1e-6)
    two = procedural_shapes(5, 3, 8, ("torus", "arch"))
    assert two[2].tolist() == [0, 1, 0]
    assert two[0].shape == (3, 8, 3)


def test_samples_of_a_mesh_lie_on_it_in_proportion_to_area(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n" + OFF)
    vertices, faces = read_off(tmp_path / "a.off")
    assert vertices.shape == (5, 3)
    assert faces.tolist()[:2] == [[0, 1, 2], [0, 2, 3]]
    assert len(faces) == 6
    points, normals = sample_mesh(np.random.default_rng(0), vertices, faces, 4000)
    top = normals[:, 2] > 0.99
    np.testing.assert_allclose(points[top, 2], 2.0)
    # Area 1 above, four triangles of height sqrt(1/2) / 1 below.
    share = 1 / (1 + 4 * 0.5 * np.sqrt(0.5))
    assert abs(top.mean() - share) < 5 * np.sqrt(share * (1 - share) / 4000)
    assert np.all(normals[~top, 2] < 0)
    assert points[top, :2].min() > 0
    assert abs(points[top, 0].mean() - 0.5) < 0.05


def test_malformed_first_line_and_obj_give_the_same_mesh(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n" + OFF)
    (tmp_path / "b.off").write_text("OFF" + OFF)
    (tmp_path / "c.obj").write_text(
        "v 0 0 2\nv 1 0 2\nv 1 1 2\nv 0 1 2\nvn 0 0 1\nv .5 .5 1.5\ns off\n"
        "f 1/1/1 2//1 3 4\nf 1 5 2\nf 2 5 3\nf -3 -1 -2\nf 4 5 1\n"
    )
    vertices, faces = read_off(tmp_path / "a.off")
    for other in (read_off(tmp_path / "b.off"), read_obj(tmp_path / "c.obj")):
        np.testing.assert_array_equal(other[0], vertices)
        np.testing.assert_array_equal(other[1], faces)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLY\n1 1 0\n", "expected OFF"),
        ("OFF\n2 1 0\n0 0 0\n1 0\n3 0 1 1\n", "line 4"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "to 7"),
        ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "ends before"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 x 0\n3 0 1 2\n", "line 5"),
    ],
)
def test_malformed_meshes_are_named(tmp_path, text, message):
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_off(tmp_path / "a.off")


def test_other_wrong_input_is_named(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nf 1 0 1\n")
    with pytest.raises(ValueError, match="line 2"):
        read_obj(tmp_path / "a.obj")
    flat = np.zeros((3, 3)), np.array([[0, 1, 2]])
    with pytest.raises(ValueError, match="area"):
        sample_mesh(np.random.default_rng(0), *flat, 3)
    with pytest.raises(ValueError, match="classes"):
        procedural_shapes(0, 1, 1, ("sphere",))
    with pytest.raises(ValueError, match="stretch"):
        procedural_shapes(0, 1, 1, stretch=1.0)


def test_modelnet40_from_meshes(tmp_path):
    with pytest.raises(MissingDataError, match="ModelNet40"):
        modelnet40("test", tmp_path)
    for name in ("airplane", "bathtub"):
        folder = tmp_path / "ModelNet40" / name / "test"
        folder.mkdir(parents=True)
        (folder / f"{name}_1.off").write_text("OFF" + OFF)
    source = modelnet40("test", tmp_path, num_points=50)
    assert source.arrays["points"].shape == (2, 50, 3)
    assert source.arrays["label"].tolist() == [0, 1]
    np.testing.assert_allclose(np.linalg.norm(source.arrays["points"], axis=-1).max(axis=1), 1.0, atol=1e-6)
    with pytest.raises(MissingDataError, match="train"):
        modelnet40("train", tmp_path)
    with pytest.raises(ValueError, match="split"):
        modelnet40("dev", tmp_path)  # pyright: ignore[reportArgumentType]


def test_modelnet40_from_shards(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    for i in range(2):
        with h5py.File(folder / f"ply_data_train{i}.h5", "w") as file:
            file["data"] = np.random.default_rng(i).normal(size=(3, 20, 3)).astype(np.float32)
            file["label"] = np.full((3, 1), 7 + i, np.uint8)
    source = modelnet40("train", tmp_path, num_points=16)
    assert source.arrays["points"].shape == (6, 16, 3)
    assert source.arrays["label"].tolist() == [7, 7, 7, 8, 8, 8]
    with pytest.raises(ValueError, match="num_points"):
        modelnet40("train", tmp_path, num_points=21)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["data"] = np.zeros((3, 20, 2), np.float32)
    with pytest.raises(ValueError, match="label"):
        read_shards([tmp_path / "bad.h5"])


def test_tours():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(7, 2))
    every = np.array([(0, *rest) for rest in itertools.permutations(range(1, 7))])
    shortest = tour_length(np.broadcast_to(points, (len(every), 7, 2)), every).min()
    best = optimal_tour(points)
    assert sorted(best.tolist()) == list(range(7))
    assert best[0] == 0
    assert tour_length(points, best) == pytest.approx(shortest)
    points = rng.uniform(size=(11, 2))
    exact, found = tour_length(points, optimal_tour(points)), tour_length(points, two_opt(points))
    assert exact <= found + 1e-12
    assert found < 1.05 * exact
    # Convex position: the only tour without a crossing, which 2-opt finds, is the polygon.
    angles = 2 * np.pi * rng.permutation(30) / 30
    polygon = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert tour_length(polygon, two_opt(polygon, starts=1)) == pytest.approx(60 * np.sin(np.pi / 30))
    assert optimal_tour(points[:1]).tolist() == [0]
    assert two_opt(points[:2]).tolist() == [0, 1]
    with pytest.raises(ValueError, match="two_opt"):
        optimal_tour(rng.uniform(size=(13, 2)))


def test_tsplib(tmp_path):
    path = tmp_path / "a.tsp"
    path.write_text("NAME : a\nTYPE : TSP\nDIMENSION : 2\nNODE_COORD_SECTION\n 1 0.5 1e1\n2 3 4\nEOF\n")
    np.testing.assert_array_equal(read_tsplib(path), [[0.5, 10], [3, 4]])
    path.write_text("DIMENSION : 3\nNODE_COORD_SECTION\n1 0 0\n2 1 1\n")
    with pytest.raises(ValueError, match="expected DIMENSION, 3"):
        read_tsplib(path)
    path.write_text("NODE_COORD_SECTION\n1 0 0\n2 1\n")
    with pytest.raises(ValueError, match="line 3"):
        read_tsplib(path)
