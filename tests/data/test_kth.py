"""KTH actions: the list, videos, clips, their cache, each fault by name; and the law of clips in motion."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.data import kth
from equivariant_jax.data.kth import KTH_ACTIONS, kth_actions, moving_clips, read_sequences, read_video, resize_area
from equivariant_jax.data.sources import MissingDataError

INTRODUCTION = """
This database contains sequences of six classes of actions performed by
25 subjects in four different conditions (see below).

Training:   person11, 12, 13
Test:       person22, 02

"""


# The list


def test_reads_the_list_with_its_irregularities(tmp_path):
    path = tmp_path / "00sequences.txt"
    text = (
        "person01_boxing_d1\t\tframes\t1-95, 96-185, 186-245, 246-360\n"
        "person11_boxing_d4    \t\tframes\t1-106, 107-194, 195-250\n"
        "\n"
        "person13_handclapping_d3\t*missing*\n"
        "  person07_jogging_d4 frames 1-64,270-332 , 194-264  \n"
        "person21_handclapping_d1\tframes\t1-118, 225-365, 266-500\n"
    )
    expected = {
        "person01_boxing_d1": ((1, 95), (96, 185), (186, 245), (246, 360)),
        "person11_boxing_d4": ((1, 106), (107, 194), (195, 250)),
        "person13_handclapping_d3": (),
        "person07_jogging_d4": ((1, 64), (270, 332), (194, 264)),
        "person21_handclapping_d1": ((1, 118), (225, 365), (266, 500)),
    }
    for content in (INTRODUCTION + text, text, (INTRODUCTION + text).replace("\n", "\r\n")):
        path.write_bytes(content.encode())
        assert list(read_sequences(path).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("person1_boxing_d1 frames 1-95", r"name: got 'person1_boxing_d1', expected personNN_ACTION_dM"),
        ("person00_boxing_d1 frames 1-95", "name: got 'person00_boxing_d1'"),
        ("person26_boxing_d1 frames 1-95", "name: got 'person26_boxing_d1'"),
        ("person01_dancing_d1 frames 1-95", "name: got 'person01_dancing_d1'.*'walking'"),
        ("person01_boxing_d5 frames 1-95", "name: got 'person01_boxing_d5'"),
        ("person02_boxing_d1 frames 1-95", "name: person02_boxing_d1 comes twice"),
        ("Notes: none", "name: got 'Notes:'"),
        ("person01_boxing_d1", "frames: got '' behind person01_boxing_d1, expected the word 'frames'"),
        ("person01_boxing_d1 missing", "frames: got 'missing' behind"),
        ("person01_boxing_d1 *missing* 1-95", r"frames: got '\*missing\*' behind"),
        ("person01_boxing_d1 1-95", "frames: got '1-95' behind"),
        ("person01_boxing_d1 frames", "sequence 1 of person01_boxing_d1: got '', expected first-last"),
        ("person01_boxing_d1 frames 1-95,", "sequence 2 of person01_boxing_d1: got ''"),
        ("person01_boxing_d1 frames 1-95 96-99", "sequence 1 of person01_boxing_d1: got '1-95 96-99'"),
        ("person01_boxing_d1 frames 1-95, 96", "sequence 2 of person01_boxing_d1: got '96'"),
        ("person01_boxing_d1 frames 0-95", "sequence 1 of person01_boxing_d1: got '0-95'.* 1 <= first <= last"),
        ("person01_boxing_d1 frames 1-95, 99-96", "sequence 2 of person01_boxing_d1: got '99-96'"),
        ("person01_boxing_d1 frames 1--95", "got '1--95'"),
        ("person01_boxing_d1 frames 1-" + "9" * 5000, "sequence 1 of person01_boxing_d1: got '1-999"),
        ("person01_boxing_d1 frames 1-9५", "'ascii' codec"),
        ("person01_boxing_d1 frames 1-95\x00", "sequence 1 of person01_boxing_d1"),
    ],
)
def test_malformed_lines_are_refused_by_field(tmp_path, line, message):
    path = tmp_path / "00sequences.txt"
    path.write_text(f"Six classes\n\nperson02_boxing_d1 frames 1-95\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_sequences(path)
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert len(str(caught.value)) < 600


def test_a_list_without_videos_is_refused(tmp_path):
    path = tmp_path / "00sequences.txt"
    for text in ("", INTRODUCTION):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"00sequences.txt: no line describes a video"):
            read_sequences(path)
    with pytest.raises(FileNotFoundError):
        read_sequences(tmp_path / "nowhere")


# Shrinking


def slow_resize(image, size):
    """Each new pixel's mean by exact integers: every pixel is cut into as many parts as the new image has."""
    (height, width), (rows, columns) = image.shape, size
    parts = np.repeat(np.repeat(image.astype(np.int64), rows, axis=0), columns, axis=1)
    out = np.zeros(size, np.uint8)
    for i in range(rows):
        for j in range(columns):
            total = int(parts[i * height : (i + 1) * height, j * width : (j + 1) * width].sum())
            whole, rest = divmod(total, height * width)
            up = 2 * rest > height * width or (2 * rest == height * width and whole % 2 == 1)
            out[i, j] = whole + up
    return out


@pytest.mark.parametrize(
    ("before", "after"), [((12, 16), (4, 4)), ((12, 16), (5, 7)), ((9, 4), (9, 3)), ((7, 5), (1, 1)), ((2, 2), (2, 2))]
)
def test_shrinking_is_the_mean_over_area(before, after):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *before), np.uint8)
    shrunk = resize_area(images, after)
    assert (shrunk.shape, shrunk.dtype) == ((2, 3, *after), np.uint8)
    expected = [[slow_resize(image, after) for image in row] for row in images]
    np.testing.assert_array_equal(shrunk, expected)


def test_shrinking_keeps_the_mean_and_rounds_ties_to_even():
    image = np.random.default_rng(1).integers(0, 256, (120, 160), np.uint8)
    # Each of the new pixels rounds by half at most.
    assert abs(resize_area(image, (32, 32)).mean() - image.mean()) < 0.5
    assert resize_area(np.array([[0, 1], [1, 2]], np.uint8), (2, 1)).tolist() == [[0], [2]]
    assert (resize_area(np.full((120, 160), 255, np.uint8), (32, 32)) == 255).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "message"),
    [
        ((4, 4), np.uint8, (5, 4), r"images uint8 \(4, 4\) for the size \(5, 4\); expected uint8"),
        ((4, 4), np.uint8, (4, 5), "at least as large"),
        ((4, 4), np.float32, (2, 2), "images float32"),
        ((4,), np.uint8, (2, 2), r"images uint8 \(4,\)"),
        ((4, 4), np.uint8, (0, 2), r"size: got \(0, 2\), expected \(height, width\), both positive"),
        ((4, 4), np.uint8, (2,), r"size: got \(2,\)"),
    ],
)
def test_shrinking_refuses(shape, dtype, size, message):
    with pytest.raises(ValueError, match=message):
        resize_area(np.zeros(shape, dtype), size)


# Videos


def brightness(frame, offset=0):
    """What frame number `frame`, counted from 1, is painted with."""
    return (3 * frame + offset) % 256


def write_video(path, numbers, offset=0, codec="mjpeg", pixels="yuvj420p", height=120, width=160):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        if codec == "mjpeg":
            stream.options = {"qmin": "1", "qmax": "1"}
        for number in numbers:
            grey = np.full((height, width), brightness(number, offset), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize(
    # Grey levels of lossy codecs, and of those with a range of 16 to 235, come back to a few of 255.
    ("codec", "pixels", "tolerance"),
    [("rawvideo", "gray", 0), ("rawvideo", "bgr24", 0), ("mjpeg", "yuvj420p", 0), ("mpeg4", "yuv420p", 4)],
)
def test_reads_videos_frame_by_frame(tmp_path, codec, pixels, tolerance):
    path = tmp_path / "video.avi"
    write_video(path, range(1, 51), codec=codec, pixels=pixels)
    frames = read_video(path)
    assert (frames.shape, frames.dtype) == ((50, 32, 32), np.uint8)
    expected = np.broadcast_to(3 * np.arange(1, 51)[:, None, None], frames.shape)
    np.testing.assert_allclose(frames.astype(int), expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(read_video(path, size=(3, 5), num_frames=7), frames[:7, :3, :5])
    assert len(read_video(path, num_frames=50)) == len(read_video(path, num_frames=60)) == 50


def test_space_is_not_mirrored_or_turned(tmp_path):
    av = pytest.importorskip("av")
    image = np.zeros((120, 160, 3), np.uint8)
    image[:60, :80] = 255
    with av.open(str(tmp_path / "video.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "bgr24"
        for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")):
            container.mux(packet)
    assert read_video(tmp_path / "video.avi", size=(2, 4)).tolist() == [[[255, 255, 0, 0], [0, 0, 0, 0]]]


def test_faults_of_videos_are_named(tmp_path):
    path = tmp_path / "video.avi"
    write_video(path, range(1, 51), codec="mpeg4", pixels="yuv420p")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])
    with pytest.raises(
        ValueError, match=rf"^{path}: size: the file has \d+ bytes and announces {len(whole)}; it is cut"
    ):
        read_video(path)
    assert len(read_video(path, num_frames=10)) == 10
    for content in (b"", b"no video at all" * 50, whole[:3000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"video.avi: frame 1: "):
            read_video(path, num_frames=5)
    write_video(path, range(1, 51), codec="rawvideo", pixels="gray")
    path.write_bytes(path.read_bytes()[: 30 * 160 * 120])
    with pytest.raises(ValueError, match=rf"^{path}: frame 30: "):
        read_video(path, num_frames=50)
    assert len(read_video(path, num_frames=29)) == 29
    write_video(path, range(1, 3), codec="rawvideo", pixels="gray")
    with pytest.raises(ValueError, match=r"video.avi: frame 1: resize_area got images uint8 \(120, 160\)"):
        read_video(path, size=(200, 200))
    with pytest.raises(ValueError, match="size: got"):
        read_video(path, size=(0, 4))
    with pytest.raises(ValueError, match="num_frames: got 0"):
        read_video(path, num_frames=0)
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "nowhere.avi")


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDataError, match=r"PyAV, is not there. Fetch it from PyPI \(pip install av"):
        read_video(tmp_path / "video.avi")


# Clips


# Persons on both sides of each border of the split, every class, spans that end exactly, one short and one beyond.
LISTED = {
    "person01_walking_d1": ((1, 12), (13, 23), (24, 48)),
    "person16_jogging_d2": ((5, 16),),
    "person17_running_d1": ((1, 40),),
    "person20_boxing_d3": ((30, 41), (2, 13)),
    "person21_handwaving_d4": ((1, 11), (3, 26)),
    "person25_handclapping_d1": ((29, 40),),
}
# The first frames of clips of 4 frames at stride 3.
STARTS = {
    "train": {"person01_walking_d1": [1, 24, 36], "person16_jogging_d2": [5]},
    "validation": {"person17_running_d1": [1, 13, 25], "person20_boxing_d3": [30, 2]},
    "test": {"person21_handwaving_d4": [3, 15], "person25_handclapping_d1": [29]},
}
SETTINGS = {"clip_length": 4, "stride": 3, "size": (2, 3)}


def write_list(folder, listed):
    lines = [f"{name}\tframes\t{', '.join(f'{a}-{b}' for a, b in spans)}\n" for name, spans in listed.items()]
    (folder / "00sequences.txt").write_text(INTRODUCTION + "".join(lines) + "person13_handclapping_d3\t*missing*\n")


@pytest.fixture
def tiny(tmp_path):
    """A data directory with six short videos, half of them in folders per class."""
    root = tmp_path / "kth"
    for i, (name, spans) in enumerate(LISTED.items()):
        folder = root / name.split("_")[1] if i % 2 else root
        # The last frame that is needed is the last one that is there.
        last = max(b for a, b in spans if b - a >= 11)
        write_video(folder / f"{name}_uncomp.avi", range(1, last + 1), offset=10 * i)
    # What archives of some systems leave beside the videos.
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._person01_walking_d1_uncomp.avi").write_bytes(b"junk")
    write_list(root, LISTED)
    return tmp_path


@pytest.mark.parametrize("split", STARTS)
def test_clips_are_cut_by_person_and_sequence(tiny, split):
    source = kth_actions(split, tiny, **SETTINGS)
    expected = [(name, start) for name, starts in STARTS[split].items() for start in starts]
    assert len(source) == len(expected)
    for i, (name, start) in enumerate(expected):
        example = source[i]
        assert (example["frames"].shape, example["frames"].dtype) == ((4, 2, 3, 1), np.uint8)
        assert (example["label"].shape, example["label"].dtype, example["person"].dtype) == ((), np.int32, np.int32)
        assert KTH_ACTIONS[example["label"]] == name.split("_")[1]
        assert int(example["person"]) == int(name[6:8])
        painted = [brightness(start + 3 * j, 10 * list(LISTED).index(name)) for j in range(4)]
        np.testing.assert_array_equal(
            example["frames"], np.broadcast_to(np.reshape(painted, (4, 1, 1, 1)), (4, 2, 3, 1))
        )


def test_every_person_is_in_one_split():
    persons = [person for split in kth._SPLITS.values() for person in split]
    assert sorted(persons) == list(range(1, 26))
    assert {name: len(split) for name, split in kth._SPLITS.items()} == {"train": 16, "validation": 4, "test": 5}


def test_the_published_setting_is_the_default(tmp_path, monkeypatch):
    write_video(tmp_path / "kth" / "person22_boxing_d1_uncomp.avi", range(1, 71))
    write_list(tmp_path / "kth", {"person22_boxing_d1": ((1, 31), (3, 70))})
    monkeypatch.setenv("EQUIVARIANT_JAX_DATA", str(tmp_path))
    source = kth_actions("test")
    assert source.arrays["frames"].shape == (2, 16, 32, 32, 1)
    assert source.arrays["frames"][:, :2, 0, 0, 0].tolist() == [[9, 15], [105, 111]]


def test_the_video_that_breaks_off_ends_where_it_does(tmp_path):
    # Frames 305 to 370 are listed and not in the published file.
    name = "person01_boxing_d4"
    write_video(tmp_path / "kth" / f"{name}_uncomp.avi", range(1, 305), height=16, width=16)
    write_list(tmp_path / "kth", {name: ((171, 245), (246, 370))})
    source = kth_actions("train", tmp_path, size=(1, 1))
    assert source.arrays["frames"][:, 0].ravel().tolist() == [brightness(start) for start in (171, 203, 246)]


# The cache


@pytest.fixture
def count(monkeypatch):
    """Names of the videos that are decoded."""
    names = []

    def counted(path, **settings):
        names.append(path.name)
        return read_video(path, **settings)

    monkeypatch.setattr(kth, "read_video", counted)
    return names


def equal(a, b):
    return all(np.array_equal(a.arrays[k], b.arrays[k]) and a.arrays[k].dtype == b.arrays[k].dtype for k in a.arrays)


def test_a_valid_cache_is_used_without_decoding(tiny, count, monkeypatch):
    cache = tiny / "caches" / "here"
    fresh = kth_actions("train", tiny, cache=cache, **SETTINGS)
    assert len(count) == 2
    assert [path.name for path in cache.iterdir()] == ["kth-train-4-by-3-2x3.npz"]
    monkeypatch.setitem(sys.modules, "av", None)
    again = kth_actions("train", tiny, cache=cache, **SETTINGS)
    assert len(count) == 2
    assert equal(fresh, again)
    assert set(again.arrays) == {"frames", "label", "person"}


def test_a_stale_or_damaged_cache_is_made_anew(tiny, count):
    cache = tiny / "cache"
    path = cache / "kth-train-4-by-3-2x3.npz"
    video = tiny / "kth" / "person01_walking_d1_uncomp.avi"

    def read(**settings):
        del count[:]
        found = kth_actions("train", tiny, cache=cache, **{**SETTINGS, **settings})
        return found, len(count)

    first, _ = read()
    # A video of another length and brightness.
    write_video(video, range(1, 60), offset=100)
    changed, decoded = read()
    assert decoded == 2
    assert not equal(first, changed)
    assert read()[1] == 0
    # Another list.
    write_list(tiny / "kth", {**LISTED, "person01_walking_d1": ((2, 13),)})
    shorter, decoded = read()
    assert (len(shorter), decoded) == (2, 2)
    write_list(tiny / "kth", LISTED)
    # Damage: cut off, no archive, another archive.
    assert read()[1] == 2
    whole = path.read_bytes()
    np.savez(tiny / "other.npz", frames=np.zeros(3))
    for content in (whole[:-100], b"no archive", (tiny / "other.npz").read_bytes()):
        path.write_bytes(content)
        mended, decoded = read()
        assert decoded == 2
        assert equal(mended, changed)
    # Other settings have caches of their own.
    assert (read(stride=2)[1], read(size=(3, 2))[1], read(clip_length=3)[1]) == (2, 2, 2)
    assert read()[1] == 0
    assert len(os.listdir(cache)) == 4


def test_a_video_that_has_moved_is_the_same(tiny, count):
    kth_actions("train", tiny, cache=tiny, **SETTINGS)
    (tiny / "kth" / "new").mkdir()
    (tiny / "kth" / "person01_walking_d1_uncomp.avi").rename(tiny / "kth" / "new" / "person01_walking_d1_uncomp.avi")
    kth_actions("train", tiny, cache=tiny, **SETTINGS)
    assert len(count) == 2


# What is missing or wrong


def test_what_is_missing_is_named(tiny, monkeypatch):
    monkeypatch.delenv("EQUIVARIANT_JAX_DATA", raising=False)
    address = r"Fetch it from the KTH action set.*https://www.csc.kth.se/cvap/actions/ .* and put it at "
    with pytest.raises(MissingDataError, match=rf"kth/00sequences.txt is not there. {address}\$EQUIVARIANT_JAX_DATA"):
        kth_actions("train")
    with pytest.raises(MissingDataError, match=rf"kth/00sequences.txt is not there. {address}/nowhere/kth"):
        kth_actions("train", "/nowhere")
    (tiny / "kth" / "person01_walking_d1_uncomp.avi").unlink()
    where = rf"{tiny}/kth or a folder below it"
    with pytest.raises(MissingDataError, match=rf"^person01_walking_d1_uncomp.avi is not there. {address}{where}"):
        kth_actions("train", tiny, **SETTINGS)
    (tiny / "kth" / "jogging" / "person16_jogging_d2_uncomp.avi").unlink()
    with pytest.raises(MissingDataError, match=r"person01_walking_d1_uncomp.avi \(and 1 more of 2 videos\) is not"):
        kth_actions("train", tiny, **SETTINGS)
    # The other splits do not need it.
    assert len(kth_actions("test", tiny, **SETTINGS)) == 3


def test_wrong_settings_and_files_are_named(tiny):
    with pytest.raises(ValueError, match=r"split: got 'valid', expected one of \('train', 'validation', 'test'\)"):
        kth_actions("valid", tiny)
    for wrong in ({"clip_length": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match=r"got clip_length=\d, stride=\d; expected positive numbers"):
            kth_actions("train", tiny, **{**SETTINGS, **wrong})
    with pytest.raises(ValueError, match=r"size: got \(2, 0\)"):
        kth_actions("train", tiny, size=(2, 0))
    with pytest.raises(ValueError, match=r"00sequences.txt: no sequence of the train split has the 300 frames"):
        kth_actions("train", tiny, clip_length=100, stride=3)
    video = tiny / "kth" / "person01_walking_d1_uncomp.avi"
    write_video(video, range(1, 46))  # the last clip's last frame is 36 + 3 * 3 = 45
    assert len(kth_actions("train", tiny, **SETTINGS)) == 4
    write_video(video, range(1, 45))
    with pytest.raises(
        ValueError, match=r"d1_uncomp.avi: frame 45: the video ends before it, .*need 45 frames.*00sequences.txt"
    ):
        kth_actions("train", tiny, **SETTINGS)
    video.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"d1_uncomp.avi: frame 1: "):
        kth_actions("train", tiny, **SETTINGS)
    write_video(tiny / "kth" / "walking" / video.name, range(1, 50))
    with pytest.raises(ValueError, match=r"d1_uncomp.avi: the same video is also at .*; remove one"):
        kth_actions("train", tiny, **SETTINGS)


# Clips in motion


def flow(frames, velocities):
    """Moves frame t of clip b by `t velocities[b]`, in plain NumPy."""
    out = np.empty_like(frames)
    for b, (vx, vy) in enumerate(np.asarray(velocities, int)):
        for t in range(frames.shape[1]):
            out[b, t] = np.roll(frames[b, t], (t * vy, t * vx), axis=(0, 1))
    return out


GRID = np.array([(vx, vy) for vx in range(-2, 3) for vy in range(-2, 3)])


COMPILED = jax.jit(moving_clips, static_argnames="flip")


def random_clips():
    return np.random.default_rng(0).integers(0, 256, (40, 5, 7, 9, 1), np.uint8)


def levels(moved):
    """Grey levels of frames in [0, 1], each within two roundings (the division, or a product with 1 / 255)."""
    found = np.rint(255 * np.asarray(moved)).astype(np.uint8)
    np.testing.assert_allclose(moved, found / np.float32(255), rtol=2 * np.finfo(np.float32).eps)
    return found


def test_clips_move_by_the_velocities_returned(key):
    frames = random_clips()
    moved, velocities = COMPILED(key, frames, GRID)
    assert (moved.shape, moved.dtype) == (frames.shape, jnp.float32)
    assert (velocities.shape, velocities.dtype) == ((40, 2), jnp.float32)
    assert len(np.unique(np.asarray(velocities), axis=0)) > 10
    np.testing.assert_array_equal(levels(moved), flow(frames, velocities))


@pytest.mark.parametrize("extra", [(1, 0), (0, -1), (3, 5), (-40, 11)])
def test_a_flow_upon_a_clip_adds_its_velocity(key, extra):
    frames = random_clips()
    moved_before, velocities = COMPILED(key, flow(frames, [extra] * 40), GRID)
    faster, faster_velocities = COMPILED(key, frames, GRID + np.array(extra))
    np.testing.assert_array_equal(moved_before, faster)
    np.testing.assert_array_equal(np.asarray(velocities) + np.array(extra), faster_velocities)
    assert not np.array_equal(moved_before, COMPILED(key, frames, GRID)[0])


def test_a_shift_of_a_clip_shifts_the_moving_clip(key):
    frames = random_clips()
    shifted, _ = COMPILED(key, np.roll(frames, (2, 3), axis=(2, 3)), GRID)
    np.testing.assert_array_equal(shifted, np.roll(COMPILED(key, frames, GRID)[0], (2, 3), axis=(2, 3)))


def test_flips_are_one_coin_a_clip_and_come_before_the_motion(key):
    frames = random_clips()
    moved, velocities = COMPILED(key, frames, GRID, flip=True)
    np.testing.assert_array_equal(velocities, COMPILED(key, frames, GRID)[1])
    moved, plain, mirrored = levels(moved), flow(frames, velocities), flow(frames[..., ::-1, :], velocities)
    flipped = [np.array_equal(moved[b], mirrored[b]) for b in range(40)]
    kept = [np.array_equal(moved[b], plain[b]) for b in range(40)]
    assert [a != b for a, b in zip(flipped, kept, strict=True)] == [True] * 40
    assert 10 < sum(flipped) < 30  # 20 expected, standard deviation 3.2
    # The published order, flipping what has moved, is this one with the horizontal velocity turned around.
    turned = flow(frames, np.asarray(velocities) * np.array([-1, 1]))[..., ::-1, :]
    np.testing.assert_array_equal(mirrored, turned)


def test_velocities_are_uniform_and_depend_on_the_key(key):
    frames = np.zeros((2500, 1, 1, 1, 1), np.uint8)
    _, velocities = COMPILED(key, frames, GRID)
    _, counts = np.unique(np.asarray(velocities), axis=0, return_counts=True)
    assert len(counts) == 25
    # Chi-square with 24 degrees of freedom: 51 is exceeded once in a thousand.
    assert ((counts - 100) ** 2 / 100).sum() < 51
    assert not np.array_equal(velocities, COMPILED(jax.random.key(1), frames, GRID)[1])
    np.testing.assert_array_equal(velocities, COMPILED(key, frames, GRID)[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_floating_frames_are_taken_as_they_are(key, dtype):
    frames = (jnp.asarray(random_clips(), jnp.float32) / 256).astype(dtype)
    moved, velocities = COMPILED(key, frames, tuple(map(tuple, GRID.astype(float).tolist())))
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, flow(np.asarray(frames.astype(jnp.float32)), velocities))


def test_compiled_is_eager_and_traced_once(key):
    frames = random_clips()
    eager, velocities = moving_clips(key, frames, GRID, flip=True)
    compiled = jax.jit(lambda key, frames, velocities: moving_clips(key, frames, velocities, flip=True))
    moved, same = compiled(key, frames, GRID)
    np.testing.assert_array_equal(velocities, same)
    np.testing.assert_array_equal(levels(eager), levels(moved))
    compiled(key, frames[:, :, ::-1], GRID - 1)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    ("frames", "velocities", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), GRID, r"frames: got uint8 \(2, 3, 4, 4\), expected uint8, or float"),
        (np.zeros((2, 3, 4, 4, 1), np.int32), GRID, "frames: got int32"),
        (np.zeros((2, 3, 4, 4, 1), bool), GRID, "frames: got bool"),
        (
            np.zeros((2, 3, 4, 4, 1), np.uint8),
            GRID[0],
            r"velocities: got int\d\d \(2,\), expected whole numbers \[m, 2\]",
        ),
        (np.zeros((2, 3, 4, 4, 1), np.uint8), GRID[:0], r"velocities: got int\d\d \(0, 2\)"),
        (np.zeros((2, 3, 4, 4, 1), np.uint8), np.zeros((1, 3)), r"velocities: got float32 \(1, 3\)"),
        (np.zeros((2, 3, 4, 4, 1), np.uint8), np.zeros((1, 2), bool), "velocities: got bool"),
    ],
)
def test_wrong_clips_and_velocities_are_refused(key, frames, velocities, message):
    with pytest.raises(ValueError, match=message):
        moving_clips(key, frames, velocities)
