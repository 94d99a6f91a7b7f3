"""npz archives: what NumPy writes is read; what is damaged, lies about its size or hides a pickle is refused."""

import io
import zipfile

import numpy as np
import pytest

from equivariant_jax.data.arrays import read_npz


def npy(array, **replace):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    content = stream.getvalue()
    for old, new in replace.values():
        assert old in content
        content = content.replace(old, new)
    return content


@pytest.fixture
def archive(tmp_path):
    def write(members, method=zipfile.ZIP_DEFLATED):
        path = tmp_path / "arrays.npz"
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path

    return write


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path, save):
    arrays = {
        "matrix": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "words": np.array(["a", "longer"]),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "complex": np.array([1 + 2j]),
    }
    save(tmp_path / "set.npz", **arrays)
    back = read_npz(tmp_path / "set.npz", require=["matrix"])
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert back[name].dtype.isnative


def test_missing_arrays_and_files_are_named(tmp_path, archive):
    path = archive({"x.npy": npy(np.arange(3))})
    with pytest.raises(ValueError, match=r"arrays.npz: the arrays \['y'\] are missing; found \['x'\]"):
        read_npz(path, require=["x", "y"])
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic"),
        (b"PK not an array", "magic"),
        (npy(np.array([object()], dtype=object)), "Python objects are not read"),
        (npy(np.zeros(2, [("a", "f4")])), "plain array"),
        (npy(np.arange(3), shape=(b"(3,)", b"(4,)")), "need 32 bytes, and 24"),
        (
            npy(np.arange(3), shape=(b"(3,), }" + b" " * 14, b"(1000000000000,), }" + b" " * 2)),
            "need 8000000000000 bytes",
        ),
        (npy(np.arange(3), descr=(b"<i8", b"<i7")), "unknown dtype"),
        (npy(np.arange(3), descr=(b"'<i8'", b"exit()")), "plain array"),
        (npy(np.arange(3))[:-5], "need 24 bytes, and 19"),
        (npy(np.arange(3)).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"), "npy version 9"),
    ],
)
def test_malformed_arrays_are_refused_by_name(archive, content, message):
    path = archive({"good.npy": npy(np.arange(3)), "bad.npy": content})
    with pytest.raises(ValueError, match=message) as caught:
        read_npz(path)
    assert str(caught.value).startswith(f"{path}, array 'bad': ")


def test_damaged_archives_are_refused(archive):
    path = archive({"x.npy": npy(np.arange(100))})
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:-10], whole[: len(whole) // 2], whole.replace(b"x.npy", b"x.txt"), b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"arrays.npz: not a sound npz archive"):
            read_npz(path)


@pytest.mark.parametrize("count", [0, 1])
def test_arrays_are_not_lost_unseen_with_a_damaged_directory(archive, count):
    # The comment of the first entry swallows the second, and zipfile alone would not notice.
    path = archive({"x.npy": npy(np.arange(3)), "y.npy": npy(np.arange(3))})
    content = bytearray(path.read_bytes())
    central, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    if count:
        content[central + 32 : central + 34] = (end - central - 51).to_bytes(2, "little")
    else:
        content[end + 8 : end + 16] = bytes(8)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as file:
        assert len(file.namelist()) == count
    with pytest.raises(ValueError, match=f"{'2' if count else '0'} members are announced, and {count} are listed"):
        read_npz(path)


def test_a_size_that_the_file_cannot_hold_is_refused_before_it_is_read(archive):
    path = archive({"x.npy": npy(np.arange(100))})
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 24 : central + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="announces 2147483648 bytes"):
        read_npz(path)


def test_other_compression_methods_are_refused(archive):
    path = archive({"x.npy": npy(np.arange(100))}, method=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed by method 14"):
        read_npz(path)
