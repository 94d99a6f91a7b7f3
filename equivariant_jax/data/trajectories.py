r"""Trajectories of molecules and of human joints, cut into windows of past and future.

Molecules: one trajectory in time, from a `<molecule>_dft.npz` of the sGDML project (MD17), from an extended XYZ file or
from ASE; `slice_trajectory` drops hydrogens and cuts. A window of `past + future` times takes every 20th step; windows
begin every 20 steps, the first at step 20. The trajectory is split in time, 5 : 1 : 2, so that no window of one part
overlaps one of another (the official code of EqMotion draws windows from these three parts).

Human motion: Human3.6M as text, one file for each subject and action, a row of 99 comma-separated numbers a frame: the
root's translation, then a rotation vector (axis times angle, radians) for each of 32 joints. `read_expmaps` reads
them, `joint_positions` walks down a skeleton. The skeleton itself (parents, offsets in millimetres, and which 22 of the
32 joints are compared) is a table that the user gives; it is not repeated here.

References: Chmiela et al. 2017, arXiv:1611.04678 (MD17); Ionescu et al. 2014 (Human3.6M); Xu et al. 2023,
arXiv:2303.10876 (the slicing).
"""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.conversion import from_ase
from equivariant_jax.data.extxyz import read_extxyz
from equivariant_jax.data.structures import AtomicStructure

__all__ = [
    "MolecularTrajectory",
    "Skeleton",
    "joint_positions",
    "read_dft_trajectory",
    "read_expmaps",
    "read_trajectory",
    "slice_trajectory",
    "split_in_time",
    "trajectory_of",
]

_EXPMAP_COLUMNS = 99


class MolecularTrajectory(NamedTuple):
    """One molecule at equally spaced times.

    Attributes:
      positions: angstrom, shape `[times, atoms, 3]`, float64.
      numbers: atomic numbers, shape `[atoms]`, int32.
    """

    positions: np.ndarray
    numbers: np.ndarray


class Skeleton(NamedTuple):
    """Joints and bones.

    Attributes:
      parents: joint that each hangs on, -1 for the root, which comes first; every other joint after its parent; shape
        `[joints]`, int.
      offsets: from the parent, in the parent's frame, in the unit of the result, shape `[joints, 3]`, float.
    """

    parents: np.ndarray
    offsets: np.ndarray


def trajectory_of(structures: Sequence[AtomicStructure]) -> MolecularTrajectory:
    """Joins structures of one molecule.

    Args:
      structures: at equally spaced times, the same atoms in the same order; `positions` `[atoms, 3]` in angstrom.

    Returns:
      `MolecularTrajectory`, `positions` `[times, atoms, 3]`.

    Raises:
      ValueError: if there is none, or the atoms differ; the message names the frame.

    Example:
      >>> frame = AtomicStructure(np.array([8, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
      >>> trajectory_of([frame, frame]).positions.shape
      (2, 2, 3)
    """
    if not structures:
        raise ValueError("structures: got none, expected at least one frame.")
    numbers = structures[0].numbers
    for index, structure in enumerate(structures):
        if not np.array_equal(structure.numbers, numbers):
            raise ValueError(
                f"frame {index}: atoms {structure.numbers.tolist()}, expected those of frame 0, {numbers.tolist()}."
            )
    return MolecularTrajectory(np.stack([s.positions for s in structures]), np.asarray(numbers))


def read_dft_trajectory(path: str | os.PathLike[str]) -> MolecularTrajectory:
    """Reads a `<molecule>_dft.npz` (arrays `R` `[times, atoms, 3]` in angstrom and `z` `[atoms]`).

    Args:
      path: of the file.

    Returns:
      `MolecularTrajectory`, `positions` `[times, atoms, 3]`.

    Raises:
      ValueError: if the file is malformed; the message names file and array.
    """
    arrays = read_npz(path, require=("R", "z"))
    positions, numbers = arrays["R"], arrays["z"].reshape(-1)
    if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3) or positions.dtype.kind != "f":
        raise ValueError(
            f"{path}, R: got {positions.dtype} {positions.shape}, expected float [times, {len(numbers)}, 3]"
        )
    if not np.all(np.isfinite(positions)):
        raise ValueError(f"{path}, R: not every number is finite")
    if numbers.dtype.kind not in "iu" or numbers.min(initial=1) < 1 or numbers.max(initial=1) > 118:
        raise ValueError(f"{path}, z: got {numbers.dtype} {numbers.tolist()}, expected atomic numbers")
    return MolecularTrajectory(positions.astype(np.float64), numbers.astype(np.int32))


def read_trajectory(path: str | os.PathLike[str]) -> MolecularTrajectory:
    """Reads a trajectory by its file's name.

    Args:
      path: of an npz (see `read_dft_trajectory`), an extended XYZ file (`.xyz`, `.extxyz`), or anything that `ase.io`
        reads (`.traj`, ...), which is imported for those.

    Returns:
      `MolecularTrajectory`, `positions` `[times, atoms, 3]` in angstrom.

    Raises:
      ValueError: if the file is malformed or its frames are not of one molecule.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return read_dft_trajectory(path)
    if path.suffix in (".xyz", ".extxyz"):
        return trajectory_of(read_extxyz(path, require=()))
    import ase.io

    frames: Any = ase.io.read(path, index=":")
    return trajectory_of([from_ase(frame) for frame in frames])


def split_in_time(trajectory: MolecularTrajectory, parts: Sequence[int] = (5, 1, 2)) -> list[MolecularTrajectory]:
    """Cuts a trajectory into consecutive parts.

    Args:
      trajectory: `positions` `[times, atoms, 3]`.
      parts: their relative lengths.

    Returns:
      A `MolecularTrajectory` for each part, `positions` `[times of the part, atoms, 3]`.

    Raises:
      ValueError: if a length is not positive.

    Example:
      >>> trajectory = MolecularTrajectory(np.zeros((16, 2, 3)), np.array([6, 8]))
      >>> [len(part.positions) for part in split_in_time(trajectory)]
      [10, 2, 4]
    """
    if not parts or min(parts) <= 0:
        raise ValueError(f"parts: got {tuple(parts)}, expected positive numbers.")
    total, length = sum(parts), len(trajectory.positions)
    bounds = [length * part // total for part in itertools.accumulate(parts, initial=0)]
    return [trajectory._replace(positions=trajectory.positions[a:b]) for a, b in itertools.pairwise(bounds)]


def slice_trajectory(
    trajectory: MolecularTrajectory,
    *,
    past: int = 10,
    future: int = 10,
    every: int = 20,
    start: int = 20,
    start_every: int = 20,
    hydrogens: bool = False,
) -> np.ndarray:
    """Cuts windows of every 20th step.

    Args:
      trajectory: `positions` `[times, atoms, 3]`.
      past: times of the input.
      future: times to predict.
      every: steps between the times of a window.
      start: step at which the first window begins.
      start_every: steps from one window's beginning to the next.
      hydrogens: whether they are kept.

    Returns:
      Windows, shape `[windows, atoms, past + future, 3]`, float64; none if the trajectory is too short.

    Raises:
      ValueError: if a number makes no sense, or no atom is left.

    Example:
      >>> trajectory = MolecularTrajectory(np.zeros((1000, 3, 3)), np.array([8, 1, 1]))
      >>> slice_trajectory(trajectory).shape
      (30, 1, 20, 3)
    """
    if min(past, every, start_every) < 1 or min(future, start) < 0:
        raise ValueError(
            f"past={past}, future={future}, every={every}, start={start}, start_every={start_every}: expected positive "
            "numbers (future and start may be zero)."
        )
    kept = trajectory.numbers > (0 if hydrogens else 1)
    if not kept.any():
        raise ValueError(f"atoms {trajectory.numbers.tolist()}: none is left without hydrogens.")
    length = (past + future - 1) * every + 1
    starts = np.arange(start, len(trajectory.positions) - length + 1, start_every)
    times = starts[:, None] + every * np.arange(past + future)[None, :]
    return trajectory.positions[times][:, :, kept].transpose(0, 2, 1, 3)


def read_expmaps(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a file of rotation vectors.

    Args:
      path: of the text file, 99 numbers a row, separated by commas.

    Returns:
      Rows, shape `[frames, 99]`, float64: three of translation, then three for each of 32 joints.

    Raises:
      ValueError: if a row is malformed; the message names file and line.
    """
    path = Path(path)
    rows = []
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        words = line.split(",")
        try:
            row = [float(word) for word in words]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        if len(row) != _EXPMAP_COLUMNS or not all(map(math.isfinite, row)):
            raise ValueError(f"{path}, line {number}: got {len(row)} numbers, expected {_EXPMAP_COLUMNS} finite ones.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file has no rows.")
    return np.array(rows)


def _rotations(vectors: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vectors.shape[:-1], 3, 3)
    # sin(a) / a and (1 - cos(a)) / a^2, exact at zero too.
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * skew + second * skew @ skew


def joint_positions(expmaps: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    r"""Places the joints: forward kinematics.

    With the joint's own rotation R_j = exp([w_j]) and its parent p, in row vectors (the convention of the files)

        A_j = R_j A_p,    x_j = offset_j A_p + x_p,    A_root = R_root,    x_root = offset_root + translation.

    Args:
      expmaps: translation and rotation vectors, shape `[..., 3 + 3 joints]`, float.
      skeleton: of as many joints.

    Returns:
      Positions, shape `[..., joints, 3]`, float64, in the unit of the offsets and of the translation.

    Raises:
      ValueError: if shapes do not fit, or a joint comes before its parent.

    Example:
      >>> arm = Skeleton(np.array([-1, 0]), np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
      >>> joint_positions(np.array([0, 0, 5.0, 0, 0, -np.pi / 2, 0, 0, 0]), arm).round(6).tolist()
      [[0.0, 0.0, 5.0], [0.0, 1.0, 5.0]]
    """
    parents, offsets = np.asarray(skeleton.parents), np.asarray(skeleton.offsets, np.float64)
    joints = len(parents)
    if offsets.shape != (joints, 3) or expmaps.shape[-1:] != (3 + 3 * joints,):
        raise ValueError(
            f"expmaps {expmaps.shape}, offsets {offsets.shape}, {joints} parents: expected [..., 3 + 3 joints], "
            "[joints, 3] and [joints]."
        )
    if joints == 0 or parents[0] != -1 or np.any(parents[1:] < 0) or np.any(parents >= np.arange(joints)):
        raise ValueError(f"parents: got {parents.tolist()}, expected -1 first, then joints that came before.")
    own = _rotations(np.asarray(expmaps[..., 3:], np.float64).reshape(*expmaps.shape[:-1], joints, 3))
    frames, places = [own[..., 0, :, :]], [offsets[0] + expmaps[..., :3]]
    for joint in range(1, joints):
        above = parents[joint]
        places.append(places[above] + np.einsum("i,...ij->...j", offsets[joint], frames[above]))
        frames.append(own[..., joint, :, :] @ frames[above])
    return np.stack(places, axis=-2)
