r"""Triangle meshes: readers of OFF and OBJ files, uniform points with normals, and the files of ModelNet40.

- `read_off`: text, `OFF`, then numbers of vertices, faces and edges, then vertices, then faces (`count index ...`).
  Polygons become fans of triangles; colours behind the indices and comments (`#`) are ignored. The first line of many
  files of ModelNet40 lacks its line break (`OFF490 518 0`); that is accepted.
- `read_obj`: `v x y z` and `f a/b/c ...`, indices from 1 or, negative, from the end; other records are ignored.
- `sample_mesh`: points uniform by area, with the normals of their faces.
- `modelnet40`: the set as clouds of points, from HDF5 shards (`modelnet40_ply_hdf5_2048/ply_data_{split}*.h5` with
  `data` `[N, 2048, 3]` and `label` `[N, 1]`) or from the meshes (`ModelNet40/{class}/{train,test}/*.off`).

Reference: Wu et al. 2015, arXiv:1406.5670 (ModelNet40).
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from equivariant_jax.data.sources import ArraySource, MissingDataError, data_directory

__all__ = ["modelnet40", "read_obj", "read_off", "read_shards", "sample_mesh"]

_PROJECT = "ModelNet40, https://modelnet.cs.princeton.edu (meshes; for research), or its HDF5 shards of 2,048 points"


def sample_mesh(
    rng: np.random.Generator, vertices: np.ndarray, faces: np.ndarray, num_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws points uniform by area on a triangle mesh, with the unit normals of their faces.

    Normals follow the order of the corners (counterclockwise from outside, if the mesh is oriented so).

    Args:
      rng: random generator.
      vertices: shape `[v, 3]`, float, any unit of length.
      faces: indices of corners, shape `[f, 3]`, int.
      num_points: how many.

    Returns:
      Points and normals, shape `[num_points, 3]` each, dtype of `vertices`.

    Raises:
      ValueError: if shapes or indices do not fit, or the mesh has no area.

    Example:
      >>> corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
      >>> points, normals = sample_mesh(np.random.default_rng(0), corners, np.array([[0, 1, 2]]), 5)
      >>> points.shape, normals[0].tolist()
      ((5, 3), [0.0, 0.0, 1.0])
    """
    vertices, faces = _checked(np.asarray(vertices), np.asarray(faces), "mesh")
    corners = vertices.astype(np.float64)[faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(first, second)
    area = np.linalg.norm(across, axis=-1)
    total = area.sum()
    if not np.isfinite(total) or total <= 0:
        raise ValueError(f"mesh of {len(faces)} faces: got twice the area {total}; expected a positive finite area.")
    chosen = rng.choice(len(faces), num_points, p=area / total)
    # Points beyond the diagonal of the parallelogram are turned back into the triangle.
    u, v = rng.uniform(size=(2, num_points, 1))
    beyond = u + v > 1
    u, v = np.where(beyond, 1 - u, u), np.where(beyond, 1 - v, v)
    points = corners[chosen, 0] + u * first[chosen] + v * second[chosen]
    normals = across[chosen] / area[chosen, None]
    dtype = vertices.dtype if np.issubdtype(vertices.dtype, np.floating) else np.float64
    return points.astype(dtype), normals.astype(dtype)


def _checked(vertices: np.ndarray, faces: np.ndarray, where: object) -> tuple[np.ndarray, np.ndarray]:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise ValueError(
            f"{where}: got vertices {vertices.shape} and faces {faces.shape}; expected [v, 3] and [f, 3], f positive."
        )
    if not np.issubdtype(faces.dtype, np.integer) or faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(
            f"{where}: got faces of {faces.dtype} from {faces.min()} to {faces.max()}; expected whole numbers from 0 "
            f"to {len(vertices) - 1}."
        )
    if not np.all(np.isfinite(vertices)):
        raise ValueError(f"{where}: got vertices that are not finite.")
    return vertices, faces


def _fans(polygons: Sequence[Sequence[int]]) -> np.ndarray:
    """Triangles `(first, i, i + 1)` of each polygon, `[f, 3]`."""
    return np.asarray([(p[0], b, c) for p in polygons for b, c in itertools.pairwise(p[1:])], np.int32).reshape(-1, 3)


def read_off(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    r"""Reads an OFF mesh.

    Args:
      path: of the file; the first line may run into the second, as in ModelNet40.

    Returns:
      Vertices `[v, 3]` float64 and triangles `[f, 3]` int32.

    Raises:
      ValueError: if the file is malformed; the message names the line.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "one.off")
      ...     _ = path.write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
      ...     read_off(path)[1].tolist()
      [[0, 1, 2]]
    """
    path = Path(path)
    rows = [
        (number, words)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if (words := line.split("#", 1)[0].split())
    ]
    if not rows or not rows[0][1][0].upper().startswith("OFF"):
        raise ValueError(f"{path}: expected OFF in the first line.")
    number, words = rows.pop(0)
    words = [words[0][3:], *words[1:]] if len(words[0]) > 3 else words[1:]
    if words:
        rows.insert(0, (number, words))
    try:
        number, words = rows[0]
        num_vertices, num_faces = int(words[0]), int(words[1])
        body = iter(rows[1:])
        vertices, polygons = [], []
        for _ in range(num_vertices):
            number, words = next(body)
            vertices.append([float(w) for w in words[:3]])
            if len(vertices[-1]) != 3:
                raise ValueError(f"got {len(words)} coordinates")
        for _ in range(num_faces):
            number, words = next(body)
            polygon = [int(w) for w in words[1 : 1 + int(words[0])]]
            if len(polygon) < 2 or len(polygon) != int(words[0]):
                raise ValueError(f"got {len(words) - 1} indices for a face of {words[0]}")
            polygons.append(polygon)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    except StopIteration:
        raise ValueError(f"{path}: ends before {num_vertices} vertices and {num_faces} faces were read.") from None
    return _checked(np.asarray(vertices, np.float64).reshape(-1, 3), _fans(polygons), path)


def read_obj(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads vertices and faces of an OBJ mesh.

    Args:
      path: of the file.

    Returns:
      Vertices `[v, 3]` float64 and triangles `[f, 3]` int32.

    Raises:
      ValueError: if the file is malformed; the message names the line.
    """
    path = Path(path)
    vertices, polygons = [], []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        try:
            if words[:1] == ["v"]:
                x, y, z = (float(w) for w in words[1:4])
                vertices.append((x, y, z))
            elif words[:1] == ["f"]:
                found = [int(w.split("/", 1)[0]) for w in words[1:]]
                if len(found) < 3 or 0 in found:
                    raise ValueError(f"got a face {found}; expected at least three indices from 1 or from the end, -1")
                polygons.append([i - 1 if i > 0 else len(vertices) + i for i in found])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return _checked(np.asarray(vertices, np.float64).reshape(-1, 3), _fans(polygons), path)


def read_shards(paths: Sequence[str | os.PathLike[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Reads clouds and labels from HDF5 files with `data` `[N, n, 3]` and `label` `[N]` or `[N, 1]`.

    Args:
      paths: of the files, in order.

    Returns:
      Points `[total, n, 3]` float32 and labels `[total]` int32.

    Raises:
      ImportError: if h5py is not installed.
      ValueError: if a file is malformed; the message names file and field.
    """
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("reading HDF5 shards needs h5py: pip install h5py") from error
    points, labels = [], []
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                missing = [name for name in ("data", "label") if not isinstance(file.get(name), h5py.Dataset)]
                if missing:
                    raise ValueError(f"{path}: no field {missing[0]!r}; it has {sorted(file)}")
                data, label = np.asarray(file["data"]), np.asarray(file["label"])
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path}: not an HDF5 file ({error})") from error
        if data.ndim != 3 or data.shape[-1] != 3 or not np.issubdtype(data.dtype, np.floating):
            raise ValueError(f"{path}: data: got {data.dtype} {data.shape}, expected float [N, n, 3]")
        if label.shape not in ((len(data),), (len(data), 1)) or not np.issubdtype(label.dtype, np.integer):
            raise ValueError(f"{path}: label: got {label.dtype} {label.shape}, expected whole numbers [{len(data)}, 1]")
        points.append(data.astype(np.float32))
        labels.append(label.reshape(-1).astype(np.int32))
    if len({p.shape[1] for p in points}) != 1:
        raise ValueError(f"data: got {[p.shape for p in points]}; expected shards of clouds of one size")
    return np.concatenate(points), np.concatenate(labels)


def modelnet40(
    split: Literal["train", "test"],
    directory: str | os.PathLike[str] | None = None,
    *,
    num_points: int = 1024,
    seed: int = 0,
) -> ArraySource:
    """Reads ModelNet40 as clouds of points, from its HDF5 shards or, if there are none, from its meshes.

    Args:
      split: "train" or "test".
      directory: the data directory; the environment variable EQUIVARIANT_JAX_DATA by default.
      num_points: of each cloud; at most 2,048 of shards, of which the first are taken.
      seed: of the points drawn on meshes.

    Returns:
      Source of dicts: `points` `[num_points, 3]` float32, mean zero and largest norm one, and `label` int32, a position
      in the alphabetical order of the 40 classes.

    Raises:
      MissingDataError: if the files are not there.
      ValueError: if a file is malformed, `split` is unknown, or the shards have fewer points.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, expected 'train' or 'test'.")
    root = data_directory(directory)
    shards = [] if root is None else sorted((root / "modelnet40_ply_hdf5_2048").glob(f"ply_data_{split}*.h5"))
    folders = [] if root is None else sorted(p for p in (root / "ModelNet40").glob("*") if p.is_dir())
    if shards:
        points, labels = read_shards(shards)
        if points.shape[1] < num_points:
            raise ValueError(f"num_points: got {num_points}; the shards have {points.shape[1]}.")
        points = points[:, :num_points]
    elif folders:
        clouds, classes = [], []
        for label, folder in enumerate(folders):
            for i, path in enumerate(sorted((folder / split).glob("*.off"))):
                rng = np.random.default_rng([seed, label, i])
                clouds.append(sample_mesh(rng, *read_off(path), num_points)[0])
                classes.append(label)
        if not clouds:
            raise MissingDataError(f"ModelNet40's split {split!r}", _PROJECT, str(folders[0] / split / "*.off"))
        points, labels = np.asarray(clouds, np.float32), np.asarray(classes, np.int32)
    else:
        where = "$EQUIVARIANT_JAX_DATA" if root is None else str(root)
        places = f"{where}/modelnet40_ply_hdf5_2048/*.h5 or {where}/ModelNet40/{{class}}/{split}/*.off"
        raise MissingDataError("ModelNet40", _PROJECT, places)
    points = points - points.mean(axis=1, keepdims=True)
    points = points / np.maximum(np.linalg.norm(points, axis=-1).max(axis=1), 1e-12)[:, None, None]
    return ArraySource({"points": points, "label": labels})
