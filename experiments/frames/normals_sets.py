"""Clouds of points with normals: random solids, or the meshes of ABC."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from equivariant_jax.data.meshes import read_obj, sample_mesh
from equivariant_jax.data.shapes import procedural_shapes

__all__ = ["abc_clouds", "abc_names", "solids"]


def solids(number: int, num_points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws clouds on the surfaces of random solids; mean zero, the farthest point at distance one.

    Args:
      number: of clouds.
      num_points: of each.
      seed: of the solids and points.

    Returns:
      Points and unit normals, float32 `[number, num_points, 3]` each.
    """
    points, normals, _ = procedural_shapes(seed, number, num_points)
    return points, normals


def abc_names(split: str | Path) -> list[str]:
    """Reads the names of a split of ABC.

    Args:
      split: JSON file, {dataset: {class: [names]}}.

    Returns:
      Names in the order of the file.

    Raises:
      ValueError: if the file is something else.
    """
    content = json.loads(Path(split).read_text())
    if not isinstance(content, dict) or not all(isinstance(classes, dict) for classes in content.values()):
        raise ValueError(f"{split}: got {type(content).__name__}; expected {{dataset: {{class: [names]}}}}.")
    names = [name for classes in content.values() for members in classes.values() for name in members]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{split}: expected lists of names, at least one name in all.")
    return names


def abc_clouds(
    directory: str | Path, names: Iterable[str], num_points: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples points and face normals of the meshes `<name>.obj` of a directory, as published.

    Clouds are centred and divided by the standard deviation of the norms of their points.

    Args:
      directory: of the meshes.
      names: from `abc_names`.
      num_points: of each cloud.
      seed: of the points; with the position of a name, all that its cloud depends on.

    Returns:
      Points and unit normals, float32 `[names, num_points, 3]` each.

    Raises:
      ValueError: if a mesh is malformed or missing.
    """
    clouds, normals = [], []
    for i, name in enumerate(names):
        path = Path(directory) / f"{name}.obj"
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; expected a mesh of ABC for each name of the split.")
        points, outward = sample_mesh(np.random.default_rng([seed, i]), *read_obj(path), num_points)
        points = points - points.mean(axis=0)
        clouds.append(points / np.linalg.norm(points, axis=1).std())
        normals.append(outward)
    return np.asarray(clouds, np.float32), np.asarray(normals, np.float32)
