"""Sources: the protocol, where data lies, what is said when it does not, TensorFlow Datasets without TensorFlow."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from equivariant_jax.data.pipeline import make_pipeline
from equivariant_jax.data.sources import (
    ArraySource,
    MissingDataError,
    RandomAccessSource,
    data_directory,
    find_data_file,
    tfds_source,
)


def test_arrays_are_a_source():
    source = ArraySource({"x": np.arange(6.0).reshape(3, 2), "y": (np.arange(3),)})
    assert isinstance(source, RandomAccessSource)
    assert isinstance([1, 2], RandomAccessSource)
    assert [int(example["y"][0]) for example in (source[i] for i in range(len(source)))] == [0, 1, 2]
    assert source[-1]["x"].tolist() == [4.0, 5.0]
    with pytest.raises(IndexError, match="index 3 is out of range for 3"):
        source[3]


@pytest.mark.parametrize("arrays", [{}, {"x": np.float64(1.0)}, {"x": np.zeros(3), "y": np.zeros(4)}])
def test_arrays_of_different_length_are_refused(arrays):
    with pytest.raises(ValueError, match="arrays: got leaves of shapes"):
        ArraySource(arrays)


def test_data_directory_is_the_argument_or_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIVARIANT_JAX_DATA", str(tmp_path))
    assert data_directory() == tmp_path
    assert data_directory("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("EQUIVARIANT_JAX_DATA")
    assert data_directory() is None


def test_missing_files_say_what_from_whom_and_where(tmp_path, monkeypatch):
    monkeypatch.delenv("EQUIVARIANT_JAX_DATA", raising=False)
    with pytest.raises(
        MissingDataError, match=r"set/a.xyz .*Fetch it from Project .*EQUIVARIANT_JAX_DATA/set/a.xyz"
    ) as caught:
        find_data_file("set/a.xyz", project="Project")
    with pytest.raises(MissingDataError, match=str(tmp_path / "set/a.xyz")):
        find_data_file("set/a.xyz", project="Project", directory=tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.what, again.project, str(again)) == ("set/a.xyz", "Project", str(caught.value))
    (tmp_path / "b").touch()
    assert find_data_file("a", project="Project", directory=tmp_path, alternatives=("b",)) == tmp_path / "b"


def test_room_imports_nothing_heavy_and_reads_without_it():
    code = (
        "import sys, jax; before = set(sys.modules); import equivariant_jax.data as data;"
        "data.aminoethanol('test_300K');"
        "heavy = {'grain', 'tensorflow_datasets', 'tensorflow', 'ase', 'orbax', 'e3nn_jax'};"
        "heavy &= set(sys.modules) - before;"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny set written by tensorflow_datasets itself, in array_record, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        # Finding it needs importlib_resources, which tensorflow_datasets 4.9.10 does not declare on Python 3.11.
        code_path = None

        def _info(self):
            features = {"x": tfds.features.Tensor(shape=(3,), dtype=np.float32), "label": np.int64}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"x": np.full(3, i, np.float32), "label": i}

    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    TinySet(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_sets_are_read_at_random_without_tensorflow(prepared):
    source = tfds_source("tiny_set", "train", prepared)
    assert isinstance(source, RandomAccessSource)
    examples = [source[i] for i in range(len(source))]
    assert sorted(int(example["label"]) for example in examples) == list(range(10))
    for example in examples:
        assert example["x"].dtype == np.float32
        assert example["x"].tolist() == [float(example["label"])] * 3
    assert len(tfds_source("tiny_set:1.0.0", "test", prepared)) == 4
    assert len(tfds_source("tiny_set", "train[:30%]", prepared)) == 3
    # Several threads read at once here.
    batches = list(make_pipeline(source, batch_size=2, num_epochs=1, prefetch=4, process_index=0, process_count=1))
    assert sorted(np.concatenate([batch["label"] for batch in batches]).tolist()) == list(range(10))
    assert "tensorflow" not in sys.modules


def test_tfds_sets_are_found_below_the_data_directory(prepared, monkeypatch):
    monkeypatch.setenv("EQUIVARIANT_JAX_DATA", str(prepared.parent))
    prepared.parent.joinpath("tensorflow_datasets").unlink(missing_ok=True)
    prepared.parent.joinpath("tensorflow_datasets").symlink_to(prepared)
    assert len(tfds_source("tiny_set", "train")) == 10


def test_missing_tfds_sets_and_splits_are_named(prepared):
    with pytest.raises(
        MissingDataError, match=r"'mnist' of tensorflow_datasets .*file_format='array_record'.*put it at"
    ):
        tfds_source("mnist", "train", prepared)
    with pytest.raises(ValueError, match="split 'valid' cannot be read"):
        tfds_source("tiny_set", "valid", prepared)
