r"""Walking people: the ETH and UCY sequences, read from text, cut into windows, split by leaving one scene out.

A row of a file is one person at one time, 17 words separated by spaces: word 0 the frame (annotated every 0.4 s, so
frames are counted in that unit), word 1 the person, word 2 the class (`Pedestrian`), words 13 and 15 the position x, y
in metres; the other words are -1. Five scenes are the test in turn,

    eth: biwi_eth; hotel: biwi_hotel; univ: students001, students003; zara1: crowds_zara01; zara2: crowds_zara02,

and training and validation are all sequences of the other scenes together with crowds_zara03 and uni_examples, which
are never in a test. Those two come as `_train` and `_val` files, one sequence cut in time at 80 % of its frames; the
others come whole, and are cut here at the first frame of their last fifth.

A window is `past + future` consecutive frames; who is not there in all of them is not in the window. Counted once for
each person, windows of 8 + 12 are 364 (eth), 1,197 (hotel), 24,334 (univ), 2,356 (zara1) and 5,910 (zara2). Walking on
at the last velocity there gives an average and a final displacement error of 1.075/2.282, 0.319/0.614, 0.524/1.165,
0.427/0.952 and 0.324/0.724 m, the same as with the windows of the official code of EqMotion. Some published numbers for
eth are of coordinates divided by 1.6 (0.672/1.426): see `divide`.

References: Pellegrini et al. 2009 (ETH); Lerner et al. 2007 (UCY); Gupta et al. 2018, arXiv:1803.10892 (the protocol).
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from equivariant_jax.data.sources import find_data_file

__all__ = [
    "PEDESTRIAN_SCENES",
    "PedestrianTracks",
    "PedestrianWindows",
    "alone",
    "pedestrian_windows",
    "pedestrians",
    "read_pedestrians",
]

PEDESTRIAN_SCENES = {
    "eth": ("biwi_eth",),
    "hotel": ("biwi_hotel",),
    "univ": ("students001", "students003"),
    "zara1": ("crowds_zara01",),
    "zara2": ("crowds_zara02",),
}
"""Scenes that are left out in turn, and their sequences."""

# Sequences for training only, which come cut in two files.
_CUT = ("crowds_zara03", "uni_examples")
_TRAINING_PART = 0.8
_WORDS, _CLASS = 17, "Pedestrian"


class PedestrianTracks(NamedTuple):
    """Rows of one sequence, ordered by frame, then person.

    Attributes:
      frames: time in units of 0.4 s, shape `[rows]`, int64.
      people: who, shape `[rows]`, int64.
      positions: metres, shape `[rows, 2]`, float64.
    """

    frames: np.ndarray
    people: np.ndarray
    positions: np.ndarray


class PedestrianWindows(NamedTuple):
    """Windows of consecutive frames, all people of a window together.

    Attributes:
      positions: metres, zero where nobody is, shape `[windows, agents, past + future, 2]`, float64.
      mask: who is there, shape `[windows, agents]`, bool; the first is always.
      frames: first frame of each window, shape `[windows]`, int64.
    """

    positions: np.ndarray
    mask: np.ndarray
    frames: np.ndarray


def read_pedestrians(path: str | os.PathLike[str]) -> PedestrianTracks:
    """Reads one file.

    Args:
      path: of the file.

    Returns:
      Its rows; `positions` `[rows, 2]` in metres.

    Raises:
      ValueError: if a row is malformed, or someone is at two places at one time; the message names file and line.
    """
    path = Path(path)
    rows: dict[tuple[int, int], tuple[float, float]] = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != _WORDS or words[2] != _CLASS:
            raise ValueError(f"{where}: got {len(words)} words {line[:40]!r}, expected {_WORDS} with {_CLASS!r} third.")
        try:
            frame, person, x, y = (float(words[i]) for i in (0, 1, 13, 15))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; expected numbers as words 0, 1, 13 and 15.") from error
        if not (frame.is_integer() and person.is_integer() and abs(x) < 1e6 and abs(y) < 1e6):
            raise ValueError(f"{where}: got {frame}, {person}, {x}, {y}; expected whole numbers, and metres.")
        if (int(frame), int(person)) in rows:
            raise ValueError(f"{where}: person {int(person)} comes twice in frame {int(frame)}.")
        rows[int(frame), int(person)] = (x, y)
    order = sorted(rows)
    keys = np.array(order, np.int64).reshape(-1, 2)
    return PedestrianTracks(keys[:, 0], keys[:, 1], np.array([rows[key] for key in order], np.float64).reshape(-1, 2))


def pedestrian_windows(tracks: PedestrianTracks, *, past: int = 8, future: int = 12) -> PedestrianWindows:
    """Cuts a sequence into all its windows in which anybody is.

    Args:
      tracks: from `read_pedestrians`; `positions` `[rows, 2]`.
      past: frames that are known.
      future: frames to predict.

    Returns:
      `PedestrianWindows`, one for each first frame, padded to the largest number of people; people in order of their
      number.

    Raises:
      ValueError: if the window has no frames.

    Example:
      >>> tracks = PedestrianTracks(np.array([0, 0, 1, 2, 2]), np.array([1, 2, 2, 1, 2]), np.ones((5, 2)))
      >>> windows = pedestrian_windows(tracks, past=2, future=1)
      >>> windows.positions.shape, windows.mask.tolist()  # person 1 is not seen in frame 1
      ((1, 1, 3, 2), [[True]])
    """
    length = past + future
    if past < 1 or future < 0:
        raise ValueError(f"past={past}, future={future}: expected at least 1 and 0.")
    # Within a person's rows, a window is complete if its last row is length - 1 frames later.
    order = np.lexsort((tracks.frames, tracks.people))
    frames, people, positions = tracks.frames[order], tracks.people[order], tracks.positions[order]
    starts = np.arange(max(len(frames) - length + 1, 0))
    ends = starts + length - 1
    starts = starts[(people[starts] == people[ends]) & (frames[ends] - frames[starts] == length - 1)]
    firsts, which = np.unique(frames[starts], return_inverse=True)
    counts = np.bincount(which, minlength=len(firsts))
    mask = np.arange(counts.max(initial=1))[None, :] < counts[:, None]
    out = np.zeros((*mask.shape, length, 2))
    # `starts` runs over people in order, so a stable sort by window keeps them in order.
    by_window = starts[np.argsort(which, kind="stable")]
    out[mask] = positions[by_window[:, None] + np.arange(length)[None, :]]
    return PedestrianWindows(out, mask, firsts)


def alone(windows: PedestrianWindows) -> PedestrianWindows:
    """Takes windows apart into one for each person, as published for eth, hotel and zara2.

    Args:
      windows: `positions` `[windows, agents, times, 2]`.

    Returns:
      `PedestrianWindows` of one agent each, `positions` `[people of all windows, 1, times, 2]`.

    Example:
      >>> together = PedestrianWindows(np.zeros((2, 3, 20, 2)), np.arange(3)[None] < np.array([[1], [3]]), np.arange(2))
      >>> alone(together).positions.shape
      (4, 1, 20, 2)
    """
    frames = np.broadcast_to(windows.frames[:, None], windows.mask.shape)[windows.mask]
    positions = windows.positions[windows.mask][:, None]
    return PedestrianWindows(positions, np.ones(positions.shape[:2], bool), frames)


def _joined(parts: list[PedestrianWindows]) -> PedestrianWindows:
    agents = max(part.mask.shape[1] for part in parts)
    grown = [
        part._replace(
            positions=np.pad(part.positions, ((0, 0), (0, agents - part.mask.shape[1]), (0, 0), (0, 0))),
            mask=np.pad(part.mask, ((0, 0), (0, agents - part.mask.shape[1]))),
        )
        for part in parts
    ]
    return PedestrianWindows(*(np.concatenate(leaves) for leaves in zip(*grown, strict=True)))


def _cut(tracks: PedestrianTracks, split: str) -> PedestrianTracks:
    low, high = int(tracks.frames.min()), int(tracks.frames.max())
    first = low + _TRAINING_PART * (high + 1 - low)
    chosen = tracks.frames < first if split == "train" else tracks.frames >= first
    return PedestrianTracks(*(leaf[chosen] for leaf in tracks))


def pedestrians(
    scene: str,
    split: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    past: int = 8,
    future: int = 12,
    divide: float = 1.0,
) -> PedestrianWindows:
    """Reads the windows of one split when one scene is left out for the test.

    Args:
      scene: "eth", "hotel", "univ", "zara1" or "zara2": the test.
      split: "train" or "validation" (of the other scenes and the two further sequences), or "test" (the scene, whole).
      directory: the data directory, with `pedestrians/*.txt`; the environment variable EQUIVARIANT_JAX_DATA by default.
      past: frames that are known.
      future: frames to predict.
      divide: coordinates of biwi_eth are divided by this, in whatever split it is; 1.6 in the official code's test.

    Returns:
      `PedestrianWindows`, `positions` `[windows, agents, past + future, 2]`.

    Raises:
      MissingDataError: if a file is not there.
      ValueError: if there is no such scene or split, or a file is malformed.
    """
    if scene not in PEDESTRIAN_SCENES or split not in ("train", "validation", "test"):
        raise ValueError(
            f"got scene {scene!r}, split {split!r}; expected one of {tuple(PEDESTRIAN_SCENES)}, and train, validation "
            "or test."
        )

    def read(name: str) -> PedestrianTracks:
        project = "https://github.com/MediaBrain-SJTU/EqMotion, its files of ETH and UCY, all in one folder"
        tracks = read_pedestrians(find_data_file(f"pedestrians/{name}.txt", project=project, directory=directory))
        if name == "biwi_eth":
            tracks = tracks._replace(positions=tracks.positions / divide)
        return tracks

    if split == "test":
        sequences = [read(name) for name in PEDESTRIAN_SCENES[scene]]
    else:
        others = [name for other, names in PEDESTRIAN_SCENES.items() if other != scene for name in names]
        suffix = "_train" if split == "train" else "_val"
        sequences = [_cut(read(name), split) for name in others] + [read(name + suffix) for name in _CUT]
    return _joined([pedestrian_windows(tracks, past=past, future=future) for tracks in sequences])
