"""Sets of moving agents for `euclidean.motion`: springs, charges, pedestrians, molecules, joints, all in one form."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equivariant_jax.data.pedestrians import PEDESTRIAN_SCENES, alone, pedestrians
from equivariant_jax.data.simulators import simulate_charged_particles, simulate_springs
from equivariant_jax.data.sources import find_data_file
from equivariant_jax.data.trajectories import (
    Skeleton,
    joint_positions,
    read_expmaps,
    read_trajectory,
    slice_trajectory,
    split_in_time,
)
from experiments.euclidean.motion_molecule import xtb_ethanol

__all__ = ["MotionSet", "aligned", "constant_velocity", "load", "random_rotations"]

SPLITS = ("train", "validation", "test")
HUMAN = "Human3.6M as exponential maps (h3.6m.zip of Jain et al. 2016, arXiv:1511.05298), and a table of its skeleton"


class MotionSet(NamedTuple):
    """Scenes of one split.

    Attributes:
      positions: float32, shape `[scenes, agents, frames, n]`, at least `past + future` frames.
      mask: which agents are there, bool, shape `[scenes, agents]`.
      edges: what pairs are, where that is known: bool, shape `[scenes, agents, agents]`, else None.
    """

    positions: np.ndarray
    mask: np.ndarray
    edges: np.ndarray | None = None


def aligned(positions: np.ndarray, past: int) -> np.ndarray:
    """Turns every scene into one orientation: that of the principal axes of its past.

    Args:
      positions: shape `[scenes, agents, frames, n]`.
      past: frames that decide.

    Returns:
      The scenes about the mean of their past, largest spread along the first axis, positive third moments along all
      axes but the last (whose sign makes the turn a rotation).
    """
    seen = positions[:, :, :past].reshape(len(positions), -1, positions.shape[-1])
    centre = seen.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(np.einsum("spi,spj->sij", seen - centre, seen - centre))
    axes = axes[..., ::-1]  # columns, largest first
    skew = np.sum(((seen - centre) @ axes) ** 3, axis=1)
    axes = axes * np.where(skew < 0, -1.0, 1.0)[:, None, :]
    axes[..., -1] *= np.linalg.det(axes)[:, None]
    return (positions - centre[:, None]) @ axes[:, None]


def random_rotations(number: int, n: int, seed: int) -> np.ndarray:
    """Draws rotations uniformly, shape `[number, n, n]`, float64."""
    normal = np.random.default_rng(seed).normal(size=(number, n, n))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.einsum("sii->si", r))[:, None, :]
    q[..., 0] *= np.linalg.det(q)[:, None]
    return q


def constant_velocity(past: np.ndarray, future: int) -> np.ndarray:
    """Goes on at the last velocity: `[..., past, n]` to `[..., future, n]`."""
    step = past[..., -1:, :] - past[..., -2:-1, :]
    return past[..., -1:, :] + step * np.arange(1, future + 1, dtype=past.dtype)[:, None]


def _springs(number: int, seed: int) -> MotionSet:
    simulated = simulate_springs(number, seed=seed)
    positions = simulated.positions.transpose(0, 2, 1, 3)
    return MotionSet(positions, np.ones(positions.shape[:2], bool), simulated.couplings)


def _charged(number: int, seed: int) -> MotionSet:
    simulated = simulate_charged_particles(number, seed=seed, num_steps=10_000, sample_every=200)
    positions, charges = simulated.positions.transpose(0, 2, 1, 3), simulated.charges
    like = charges[:, :, None] * charges[:, None, :] > 0
    return MotionSet(positions, np.ones(positions.shape[:2], bool), like)


def _pedestrians(config: Any) -> dict[str, MotionSet]:
    found = {}
    for split in SPLITS:
        windows = pedestrians(
            config.scene, split, past=config.past, future=config.future, divide=config.divide
        )  # fmt: skip
        windows = alone(windows) if config.alone else windows
        found[split] = MotionSet(windows.positions, windows.mask)
    return found


def _molecule(config: Any, workdir: Path) -> dict[str, MotionSet]:
    if config.trajectory:
        path = Path(config.trajectory)
    else:
        # Beside all variants and seeds of the run, which share it.
        name = f"ethanol_xtb_{config.molecule_steps}.npz"
        folder = Path(config.cache) if config.cache else workdir.parent.parent
        path = xtb_ethanol(folder / name, steps=config.molecule_steps, seed=config.data_seed)
    found = {}
    for split, part in zip(SPLITS, split_in_time(read_trajectory(path)), strict=True):
        windows = slice_trajectory(
            part, past=config.past, future=config.future, every=config.every,
            start_every=config.start_every if split == "train" else config.every,
        )  # fmt: skip
        found[split] = MotionSet(windows, np.ones(windows.shape[:2], bool))
    return found


def _human(config: Any) -> dict[str, MotionSet]:
    """Subjects 1, 6, 7, 8, 9 for training (the last tenth of each file for validation), 5 for the test."""
    table = json.loads(find_data_file("human36m/skeleton.json", project=HUMAN).read_text())
    skeleton, used = Skeleton(np.array(table["parents"]), np.array(table["offsets"])), np.array(table["used"])
    length, parts = config.past + config.future, {split: [] for split in SPLITS}
    root = find_data_file("human36m/S5/walking_1.txt", project=HUMAN).parent.parent
    for file in sorted(root.glob("S*/*.txt")):
        expmaps = read_expmaps(file)[::2]  # 25 frames a second
        expmaps[:, :6] = 0.0  # neither the root's place nor its heading
        joints = joint_positions(expmaps, skeleton)[:, used] / 100.0
        cut = math.ceil(0.9 * len(joints))
        pieces = {"test": joints} if file.parent.name == "S5" else {"train": joints[:cut], "validation": joints[cut:]}
        for split, piece in pieces.items():
            starts = np.arange(0, len(piece) - length + 1, config.start_every)
            parts[split].append(piece[starts[:, None] + np.arange(length)[None, :]].transpose(0, 2, 1, 3))
    joined = {split: np.concatenate(pieces) for split, pieces in parts.items()}
    return {split: MotionSet(x, np.ones(x.shape[:2], bool)) for split, x in joined.items()}


def load(config: Any, workdir: Path) -> dict[str, MotionSet]:
    """Makes or reads the three splits.

    Args:
      config: of the experiment.
      workdir: of the run; generated trajectories are kept two folders above, unless `config.cache` says where.

    Returns:
      "train", "validation" and "test" -> `MotionSet`; positions times `config.scale`.

    Raises:
      ValueError: if the pedestrians' scene is unknown.
      MissingDataError: if files are not there.
    """
    sizes = (config.train_size, config.validation_size, config.test_size)
    if config.dataset in ("springs", "charged"):
        simulate = _springs if config.dataset == "springs" else _charged
        found = {
            split: simulate(size, 3 * config.data_seed + offset)
            for offset, (split, size) in enumerate(zip(SPLITS, sizes, strict=True))
        }
    elif config.dataset == "pedestrians":
        if config.scene not in PEDESTRIAN_SCENES:
            raise ValueError(f"scene: got {config.scene!r}, expected one of {tuple(PEDESTRIAN_SCENES)}.")
        found = _pedestrians(config)
    else:
        found = _molecule(config, workdir) if config.dataset == "molecule" else _human(config)
    out = {}
    for (split, one), size in zip(found.items(), sizes, strict=True):
        # Of sets that are read: evenly spaced scenes, at most as many as asked for (0: all).
        every = max(1, -(-len(one.positions) // size)) if size else 1
        positions = one.positions[::every] * config.scale
        positions = aligned(positions, config.past) if config.orientation == "aligned" else positions
        edges = None if one.edges is None else one.edges[::every]
        out[split] = MotionSet(positions.astype(np.float32), one.mask[::every], edges)
    return out
