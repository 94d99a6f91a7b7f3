"""IDX files, plain and gzipped: every type is read, every fault is named; MNIST from a directory."""

import gzip
import struct

import numpy as np
import pytest

from equivariant_jax.data import images
from equivariant_jax.data.images import mnist, read_idx
from equivariant_jax.data.sources import MissingDataError

TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, sizes=None):
    sizes = array.shape if sizes is None else sizes
    head = bytes([0, 0, TYPES[array.dtype.str[1:]], len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("dtype", TYPES)
def test_reads_every_type(tmp_path, dtype, pack):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    back = read_idx(tmp_path / "file")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.dtype.isnative


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:2], "magic number"),
        (b"\x00\x01" + GOOD[2:], "magic number: got '00010802'"),
        (b"\x00\x00\x07\x02" + GOOD[4:], "magic number: got '00000702'"),
        (b"\x00\x00\x08\x00", "magic number"),
        (GOOD[:9], "sizes: the file ends within"),
        (GOOD[:-1], "values: .*need 12 bytes, and the file ends after 11"),
        (GOOD + b"\0", "values: .*goes on"),
        (idx(np.zeros(4, np.uint8), sizes=(10**9, 1000)), "sizes: .*more than the file can hold"),
        (idx(np.zeros(4, np.float64), sizes=(2**32 - 1,) * 9), "sizes: .*more than the file can hold"),
        (idx(np.zeros(0, np.uint8), sizes=(0,) * 40), "40 axes"),
    ],
)
def test_malformed_files_are_refused_by_field(tmp_path, content, message, pack):
    path = tmp_path / "bad-idx"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(str(path))


def test_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "bad.gz"
    whole = bytearray(gzip.compress(GOOD))
    wrong_sum = whole.copy()
    wrong_sum[-6] ^= 1
    for content in (whole[:-9], whole[:12], wrong_sum, whole[:10] + b"\xff" * 8):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.gz: damaged gzip"):
            read_idx(path)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MNIST", {"train": ("train", 5), "test": ("t10k", 3)})
    (tmp_path / "mnist").mkdir()
    pixels = np.arange(5 * 28 * 28).reshape(5, 28, 28).astype(np.uint8)
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(5, dtype=np.uint8)))
    return tmp_path


def test_mnist_is_a_source_of_images_with_channels_last(tiny_mnist):
    source = mnist("train", tiny_mnist)
    assert len(source) == 5
    example = source[3]
    assert (example["image"].shape, example["image"].dtype) == ((28, 28, 1), np.uint8)
    assert (int(example["label"]), example["label"].dtype) == (3, np.int32)


def test_mnist_says_what_is_missing_or_wrong(tiny_mnist):
    with pytest.raises(MissingDataError, match=r"mnist/t10k-images-idx3-ubyte.gz is not there. Fetch it from MNIST"):
        mnist("test", tiny_mnist)
    with pytest.raises(ValueError, match="split: got 'valid'"):
        mnist("valid", tiny_mnist)
    labels = tiny_mnist / "mnist" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.arange(6, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: sizes: got uint8 \(6,\), expected"):
        mnist("train", tiny_mnist)
    labels.write_bytes(idx(np.full(5, 11, np.uint8)))
    with pytest.raises(ValueError, match="labels: got the label 11"):
        mnist("train", tiny_mnist)
