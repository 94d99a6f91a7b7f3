r"""The KTH set of human actions: six classes, 25 persons, four scenes, as labelled clips that can be set in motion.

Specification. The folder `kth` of the data directory holds the list `00sequences.txt` and, anywhere below it (also in
a folder per class), the videos `personNN_ACTION_dM_uncomp.avi` (160 x 120 pixels, 25 frames per second).

- The list: an introduction, then a line per video, `person01_boxing_d1  frames  1-95, 96-185, 186-245, 246-360`. Frames
  count from 1 and both ends belong to the sequence. Known irregularities, all accepted: a video that is `*missing*`
  (person13_handclapping_d3, no sequences), three sequences instead of four, sequences that overlap or are out of order,
  and person01_boxing_d4, whose published file breaks off at frame 304 of the 370 listed (its last sequence ends there).
- Frames are grey, and resized by the mean over each new pixel's area.
- Clips are cut from each sequence one behind the other: clip i of the sequence `a-b` shows the frames
  `a + (i clip_length + j) stride`, j < clip_length; a last incomplete one, of less than `clip_length stride` frames, is
  dropped.
- Split by person: 1-16 train, 17-20 validation, 21-25 test. (Not that of the list's introduction, which is the 2004
  paper's.) Labels are positions in `KTH_ACTIONS`.
- `moving_clips` gives a clip one velocity v, fixed over the clip: frame t is moved by `+t v` on the torus.

Law: a flow that acts on the whole clip adds its velocity to the clip's (tested).

Differences from the official code of arXiv:2507.14793. It moves KTH's clips by `-t v` and moving digits by `+t v`; this
library moves by `+t v` everywhere. It flips the moved clip, which turns the horizontal velocity around; here the
flipped clip is moved (the same law if velocities are symmetric under `vx -> -vx`), so that the velocities returned are
those one sees. It draws the start of one clip per sequence at random, in validation and test too; here all clips are
cut, the same each time. It reads the list's frames as if they counted from 0.

References: Schuldt, Laptev and Caputo 2004, "Recognizing human actions: a local SVM approach" (ICPR), with the data at
https://www.csc.kth.se/cvap/actions/; Keller 2025, arXiv:2507.14793, section 4 (Moving KTH).
"""

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.images import shift_image
from equivariant_jax.core.typing import Array, PRNGKey
from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.sources import ArraySource, MissingDataError, find_data_file

__all__ = ["KTH_ACTIONS", "kth_actions", "moving_clips", "read_sequences", "read_video", "resize_area"]

KTH_ACTIONS = ("walking", "jogging", "running", "boxing", "handwaving", "handclapping")
"""The classes; a label is a position in this tuple."""

Sequences = tuple[tuple[int, int], ...]
"""First and last frames, counted from 1, both included."""

_SPLITS = {"train": range(1, 17), "validation": range(17, 21), "test": range(21, 26)}
_PROJECT = (
    "the KTH action set of Schuldt, Laptev and Caputo (for non-commercial use): "
    "https://www.csc.kth.se/cvap/actions/ (00sequences.txt and six archives of videos, unpacked)"
)
_NAME = re.compile(rf"person(0[1-9]|1\d|2[0-5])_({'|'.join(KTH_ACTIONS)})_d[1-4]", re.ASCII)
_SEQUENCE = re.compile(r"(\d{1,7})-(\d{1,7})", re.ASCII)
_VIDEO = "_uncomp.avi"
# The published file is cut off: of the 370 frames that the list gives it, 304 can be decoded.
_LAST_FRAMES = {"person01_boxing_d4": 304}
# Raise it when the frames or clips that the same files and settings give change: older caches are then stale.
_CACHE_FORMAT = 1


def read_sequences(path: str | os.PathLike[str]) -> dict[str, Sequences]:
    r"""Reads the list of sequences, `00sequences.txt`.

    Lines up to the first whose first word has an underscore are the introduction; from there on each line is blank or
    describes a video.

    Args:
      path: the list.

    Returns:
      For each video's name, `personNN_ACTION_dM`, in the order of the list, its sequences `(first, last)`: frames
      counted from 1, both included. A `*missing*` video has none.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is malformed or a video comes twice; the message names file, line and field.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "00sequences.txt")
      ...     _ = path.write_text("Six classes\n\nperson01_boxing_d1  frames  1-95, 96-185\n")
      ...     read_sequences(path)
      {'person01_boxing_d1': ((1, 95), (96, 185))}
    """
    path = Path(path)
    found: dict[str, Sequences] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        words = line.split(maxsplit=1)
        if not words or (not found and b"_" not in words[0]):
            continue
        try:
            name, sequences = _parse_line(line.decode("ascii"))
            if name in found:
                raise ValueError(f"name: {name} comes twice")
        except ValueError as error:  # a UnicodeDecodeError is one
            raise ValueError(f"{path}, line {number}: {error}") from error
        found[name] = sequences
    if not found:
        raise ValueError(f"{path}: no line describes a video, such as 'person01_boxing_d1  frames  1-95, 96-185'")
    return found


def _parse_line(line: str) -> tuple[str, Sequences]:
    name, _, rest = line.strip().replace("\t", " ").partition(" ")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name: got {name[:60]!r}, expected personNN_ACTION_dM with a person 01 to 25, an action out of "
            f"{KTH_ACTIONS} and a scene d1 to d4"
        )
    if rest.strip() == "*missing*":
        return name, ()
    word, _, listed = rest.strip().partition(" ")
    if word != "frames":
        raise ValueError(f"frames: got {word[:60]!r} behind {name}, expected the word 'frames' or '*missing*'")
    sequences = []
    for position, text in enumerate(listed.split(","), start=1):
        match = _SEQUENCE.fullmatch(text.strip())
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"sequence {position} of {name}: got {text.strip()[:60]!r}, expected first-last with 1 <= first <= last"
            )
        sequences.append((first, last))
    return name, tuple(sequences)


@functools.cache
def _overlaps(before: int, after: int) -> np.ndarray:
    """Lengths that `after` new pixels share with `before` old ones, in units of 1 / after: whole, `[after, before]`."""
    new, old = before * np.arange(after)[:, None], after * np.arange(before)[None, :]
    shared = np.minimum(new + before, old + after) - np.maximum(new, old)
    overlaps = np.maximum(shared, 0).astype(np.float64)
    overlaps.flags.writeable = False
    return overlaps


def resize_area(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    r"""Shrinks images by the mean over each new pixel's area.

    From H x W to h x w pixels, `y = round(R x C^T / (H W))`, where `R[i, j]` is h times the length that the intervals
    `[i H/h, (i + 1) H/h]` and `[j, j + 1]` share, and C is the same for columns. All of it but the last division is
    arithmetic of whole numbers, hence exact; ties go to the even neighbour. This is what OpenCV calls INTER_AREA, to
    rounding.

    Args:
      images: shape `[..., height, width]`, uint8.
      size: new `(height, width)`, at most the old one.

    Returns:
      Array of shape `[..., *size]`, uint8.

    Raises:
      ValueError: if the dtype is another one, or the size is not positive or larger than the images.

    Example:
      >>> resize_area(np.array([[0, 100, 200], [0, 100, 200]], np.uint8), (1, 2)).tolist()
      [[33, 167]]
    """
    _check_size(size)
    fits = images.ndim >= 2 and images.dtype == np.uint8
    if not fits or size[0] > images.shape[-2] or size[1] > images.shape[-1]:
        raise ValueError(
            f"resize_area got images {images.dtype} {images.shape} for the size {size}; expected uint8 "
            "[..., height, width], at least as large."
        )
    height, width = images.shape[-2:]
    total = _overlaps(height, size[0]) @ images.astype(np.float64) @ _overlaps(width, size[1]).T
    return np.rint(total / (height * width)).astype(np.uint8)


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size}, expected (height, width), both positive.")


def read_video(
    path: str | os.PathLike[str], *, size: tuple[int, int] = (32, 32), num_frames: int | None = None
) -> np.ndarray:
    """Reads a video as grey frames, shrunk by `resize_area`.

    Decoding is PyAV's, which hides damage within a frame where the codec can.

    Args:
      path: the file, AVI with any codec that PyAV knows.
      size: `(height, width)` of the result, at most the video's.
      num_frames: how many frames to read at most; all by default. What lies behind them is not looked at.

    Returns:
      Array of shape `[frames, *size]`, uint8, black 0 and white 255.

    Raises:
      MissingDataError: if PyAV is not installed.
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no video, is cut off or damaged before its end or `num_frames`, or is smaller than
        `size`; the message names the file and the frame.
    """
    try:
        import av  # pyright: ignore[reportMissingImports]
        from av.error import FFmpegError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDataError(
            "the decoder of videos, PyAV,", "PyPI (pip install av; BSD)", "any place that Python imports from"
        ) from error
    _check_size(size)
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames: got {num_frames}, expected a positive number or None.")
    path = Path(path)
    frames: list[np.ndarray] = []
    with path.open("rb") as file:
        head, length = file.read(8), path.stat().st_size
        announced = 8 + int.from_bytes(head[4:], "little")
        if num_frames is None and head[:4] == b"RIFF" and length < announced:
            raise ValueError(f"{path}: size: the file has {length} bytes and announces {announced}; it is cut off")
        file.seek(0)
        try:
            with av.open(file, "r", format="avi") as container:
                if not container.streams.video:
                    raise ValueError("there is no video in it")
                for frame in itertools.islice(container.decode(video=0), num_frames):
                    grey = frame.to_ndarray(format="gray")
                    frames.append(resize_area(grey, size))
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"{path}: frame {len(frames) + 1}: {error}") from error
    if not frames:
        raise ValueError(f"{path}: frame 1: there are no frames in it")
    return np.stack(frames)


def kth_actions(
    split: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    clip_length: int = 16,
    stride: int = 2,
    size: tuple[int, int] = (32, 32),
    cache: str | os.PathLike[str] | None = None,
) -> ArraySource[dict[str, Any]]:
    """Reads the KTH actions as clips, cut as the module's page says, in the order of the list.

    By default the published list gives 3,777 clips to train, 979 to validate and 1,201 to test. All videos of the split
    are decoded unless a cache has been made. The cache remembers the settings, the list's sequences, and names and
    sizes of the videos, and is made anew when one of them differs or the file is damaged. A video that is replaced by
    one of the same size goes unnoticed.

    Args:
      split: "train" (persons 1 to 16), "validation" (17 to 20) or "test" (21 to 25).
      directory: the data directory, with the set in its folder `kth`; the environment variable EQUIVARIANT_JAX_DATA by
        default.
      clip_length: frames in a clip.
      stride: frames of the video from one frame of the clip to the next.
      size: `(height, width)` of the frames.
      cache: folder for a file of all clips; it is made if need be. No cache by default.

    Returns:
      A source of examples `{"frames": uint8 [clip_length, *size, 1], "label": int32 [], "person": int32 []}`; `.arrays`
      holds all of them at once.

    Raises:
      MissingDataError: if the list or a listed video of the split is not there, or PyAV is not installed and needed;
        the message says what to fetch, from whom, and where to put it.
      ValueError: if there is no such split, a setting is not positive, a file is malformed, a video is there twice or
        ends before its clips do, or no sequence is long enough.

    Example:
      >>> try:
      ...     kth_actions("test", "/nowhere")
      ... except MissingDataError as error:
      ...     print(error)
      kth/00sequences.txt is not there. Fetch it from the KTH action set ... and put it at /nowhere/kth/00sequences.txt.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {tuple(_SPLITS)}")
    if clip_length < 1 or stride < 1:
        raise ValueError(f"got clip_length={clip_length}, stride={stride}; expected positive numbers.")
    _check_size(size)
    listing = find_data_file("kth/00sequences.txt", project=_PROJECT, directory=directory)
    sequences = {name: s for name, s in read_sequences(listing).items() if s and _person(name) in _SPLITS[split]}
    videos = _find_videos(listing.parent, sequences)
    files = [(path.name, path.stat().st_size) for path in videos.values()]
    settings = [_CACHE_FORMAT, split, clip_length, stride, size, sequences, files]
    digest = hashlib.sha256(json.dumps(settings, default=int).encode("ascii")).hexdigest()
    file = f"kth-{split}-{clip_length}-by-{stride}-{size[0]}x{size[1]}.npz"
    arrays = None if cache is None else _read_cache(Path(cache, file), digest)
    if arrays is not None:
        return ArraySource(arrays)
    clips, labels, persons = [], [], []
    for name, path in videos.items():
        starts = _clip_starts(name, sequences[name], clip_length * stride)
        if not starts:
            continue
        needed = max(starts) + (clip_length - 1) * stride + 1
        frames = read_video(path, size=size, num_frames=needed)
        if len(frames) < needed:
            raise ValueError(
                f"{path}: frame {len(frames) + 1}: the video ends before it, and clips of its sequences need {needed} "
                f"frames; fetch it anew, or shorten its sequences in {listing}"
            )
        clips += [frames[start : start + clip_length * stride : stride, ..., None].copy() for start in starts]
        labels += [KTH_ACTIONS.index(name.split("_")[1])] * len(starts)
        persons += [_person(name)] * len(starts)
    if not clips:
        raise ValueError(f"{listing}: no sequence of the {split} split has the {clip_length * stride} frames of a clip")
    arrays = {"frames": np.stack(clips), "label": np.array(labels, np.int32), "person": np.array(persons, np.int32)}
    if cache is not None:
        _write_cache(Path(cache, file), digest, arrays)
    return ArraySource(arrays)


def _person(name: str) -> int:
    return int(name[6:8])


def _find_videos(folder: Path, sequences: Mapping[str, Sequences]) -> dict[str, Path]:
    """The file of each video that has sequences."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{_VIDEO}")):
        name = path.name.removesuffix(_VIDEO)
        if name in found and name in sequences:
            raise ValueError(f"{path}: the same video is also at {found[name]}; remove one of them")
        found[name] = path
    missing = [name for name in sequences if name not in found]
    if missing:
        others = f" (and {len(missing) - 1} more of {len(sequences)} videos)" if missing[1:] else ""
        raise MissingDataError(f"{missing[0]}{_VIDEO}{others}", _PROJECT, f"{folder} or a folder below it")
    return {name: found[name] for name in sequences}


def _clip_starts(name: str, sequences: Sequences, span: int) -> list[int]:
    """First frames of the clips, counted from 0."""
    end = _LAST_FRAMES.get(name, np.inf)
    return [start for first, last in sequences for start in range(first - 1, int(min(last, end)) - span + 1, span)]


def _read_cache(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cache, or None if it is not there, damaged or of another `digest`."""
    try:
        arrays = read_npz(path, require=("digest", "frames", "label", "person"))
    except (FileNotFoundError, ValueError):
        return None
    if arrays["digest"].shape != () or arrays.pop("digest").item() != digest:
        return None
    return arrays


def _write_cache(path: Path, digest: str, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be reading or writing the same cache: it sees a whole file or none.
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, digest=np.array(digest), **arrays)  # type: ignore[arg-type]
    unfinished.replace(path)


def moving_clips(key: PRNGKey, frames: Array, velocities: Array, *, flip: bool = False) -> tuple[Array, Array]:
    """Sets clips in motion on the torus: frame t of clip b is moved by `t v_b`.

    A clip's velocity is drawn uniformly from `velocities`. For velocities that stay the same over training, as in the
    paper, move the whole set once; for new ones in each step, each batch with the step's key.

    Args:
      key: typed random key.
      frames: shape `[batch, time, height, width, 1]` (or more channels), uint8, or float in [0, 1].
      velocities: what is drawn from, shape `[m, 2]`, whole `(vx, vy)` in pixels per frame, int or float; rows run
        downwards, so a positive vy moves down.
      flip: static; whether to mirror each clip left to right with probability 0.5, before it is moved. The velocities
        drawn do not depend on it.

    Returns:
      Frames of the shape of `frames`, float32 in [0, 1], and the clips' velocities, shape `[batch, 2]`, float32.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Example:
      >>> frames = np.zeros((1, 3, 1, 4, 1), np.uint8)
      >>> frames[..., 0, 0] = 255
      >>> moved, velocities = moving_clips(jax.random.key(0), frames, [[1, 0]])
      >>> moved[0, :, 0, :, 0].tolist()
      [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    frames, velocities = jnp.asarray(frames), jnp.asarray(velocities)
    if frames.ndim != 5 or not (frames.dtype == jnp.uint8 or jnp.issubdtype(frames.dtype, jnp.floating)):
        raise ValueError(
            f"frames: got {frames.dtype} {frames.shape}, expected uint8, or float in [0, 1], "
            "[batch, time, height, width, channels]."
        )
    numbers = jnp.issubdtype(velocities.dtype, jnp.floating) or jnp.issubdtype(velocities.dtype, jnp.integer)
    if velocities.ndim != 2 or velocities.shape[1] != 2 or velocities.shape[0] < 1 or not numbers:
        raise ValueError(f"velocities: got {velocities.dtype} {velocities.shape}, expected whole numbers [m, 2].")
    key_velocity, key_flip = jax.random.split(key)
    batch, length = frames.shape[:2]
    chosen = jax.random.randint(key_velocity, (batch,), 0, velocities.shape[0])
    moving = jnp.round(velocities.astype(jnp.float32))[chosen]
    if flip:
        coins = jax.random.bernoulli(key_flip, 0.5, (batch, 1, 1, 1, 1))
        frames = jnp.where(coins, frames[..., ::-1, :], frames)
    shift = jnp.arange(length)[None, :, None] * moving.astype(jnp.int32)[:, None, :]
    moved = jax.vmap(jax.vmap(shift_image))(frames, shift).astype(jnp.float32)
    return (moved / 255 if frames.dtype == jnp.uint8 else moved), moving
