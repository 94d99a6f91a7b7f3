"""The embedded set is what its description says; published sets are found, read whole, or named when missing."""

import os

import ase.io
import numpy as np
import pytest

from equivariant_jax.data.conversion import from_ase
from equivariant_jax.data.extxyz import read_extxyz
from equivariant_jax.data.images import mnist
from equivariant_jax.data.molecules import (
    AMINOETHANOL_SPLITS,
    EMBEDDED_AMINOETHANOL,
    aminoethanol,
    aminoethanol_metadata,
    published_molecules,
)
from equivariant_jax.data.sources import MissingDataError, find_data_file
from equivariant_jax.data.structures import isolated_atom_energies

needs_data = pytest.mark.skipif("EQUIVARIANT_JAX_DATA" not in os.environ, reason="EQUIVARIANT_JAX_DATA is not set")
COUNTS = {"train_300K": 500, "validation_300K": 100, "test_300K": 300, "test_600K": 300}


@pytest.fixture(scope="module")
def splits():
    return {split: aminoethanol(split) for split in COUNTS}


def test_embedded_set_has_the_documented_size(splits):
    assert {split: len(frames) for split, frames in splits.items()} == COUNTS
    assert set(AMINOETHANOL_SPLITS) == {*COUNTS, "isolated_atoms"}
    assert EMBEDDED_AMINOETHANOL.stat().st_size <= 2_000_000
    for frame in (frame for frames in splits.values() for frame in frames):
        assert frame.formula == "C2H7NO"
        assert frame.lattice is None
        assert frame.forces.dtype == np.float64


def test_embedded_labels_are_physical(splits):
    positions = {split: np.stack([f.positions for f in frames]) for split, frames in splits.items()}
    forces = {split: np.stack([f.forces for f in frames]) for split, frames in splits.items()}
    energy = {split: np.array([f.energy for f in frames]) for split, frames in splits.items()}
    for split in COUNTS:
        # An isolated molecule feels neither a net force nor a net torque.
        assert np.abs(forces[split].sum(axis=1)).max() < 1e-6
        assert np.abs(np.cross(positions[split], forces[split]).sum(axis=1)).max() < 1e-6
    # Equipartition of 3n - 6 classical harmonic modes: <V> rises by 27 / 2 k (600 K - 300 K) = 0.349 eV.
    rise = energy["test_600K"].mean() - energy["test_300K"].mean()
    assert 0.25 < rise < 0.45
    assert energy["test_600K"].std() > 1.5 * energy["test_300K"].std()


def test_atoms_hold_together_in_the_embedded_set():
    atoms = isolated_atom_energies(aminoethanol("isolated_atoms"))
    assert list(atoms) == [1, 6, 7, 8]
    frames = aminoethanol("validation_300K")
    binding = np.array([f.energy - sum(atoms[int(z)] for z in f.numbers) for f in frames])
    # Ten bonds of 3 to 5 eV each.
    assert ((binding < -30) & (binding > -60)).all()


def test_no_frame_is_near_one_of_another_split(splits):
    def distances(frames):
        positions = np.stack([frame.positions for frame in frames])
        first, second = np.triu_indices(positions.shape[1], 1)
        return np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)

    train = distances(splits["train_300K"])
    # Consecutive frames, 50 fs apart, are already as different from each other as frames of other walkers.
    for split in ("validation_300K", "test_300K", "test_600K"):
        gap = np.sqrt(((distances(splits[split])[:, None] - train[None]) ** 2).mean(axis=-1)).min()
        assert gap > 0.01


def test_embedded_frames_name_their_walker(splits):
    plan = aminoethanol_metadata()["splits"]
    for split, frames in splits.items():
        walkers = [frame.info["walker"] for frame in frames]
        assert walkers == np.repeat(np.arange(plan[split]["walkers"]), plan[split]["frames"]).tolist()
    seeds = [seed for p in plan.values() for seed in range(p["seed"], p["seed"] + p["walkers"])]
    assert len(set(seeds)) == len(seeds)


def test_embedded_set_says_how_it_was_made():
    metadata = aminoethanol_metadata()
    assert metadata["method"] == "GFN2-xTB"
    assert metadata["units"] == {"positions": "angstrom", "energy": "eV", "forces": "eV/angstrom"}
    assert set(metadata["versions"]) == {"tblite", "numpy", "python"}


def test_unknown_names_are_refused_and_missing_sets_named(tmp_path):
    with pytest.raises(ValueError, match="split: got 'train'"):
        aminoethanol("train")
    with pytest.raises(ValueError, match="name: got 'qm9'"):
        published_molecules("qm9", "train", tmp_path)
    with pytest.raises(ValueError, match=r"split: got 'train', expected one of .* for acac"):
        published_molecules("acac", "train", tmp_path)
    with pytest.raises(MissingDataError, match=r"BOTNet-datasets.*acac/train_300K.xyz"):
        published_molecules("acac", "train_300K", tmp_path)


PUBLISHED = [
    ("acac", "train_300K", 500, "C5H8O2"),
    ("acac", "train_600K", 500, "C5H8O2"),
    ("acac", "test_300K", 650, "C5H8O2"),
    ("acac", "test_600K", 650, "C5H8O2"),
    ("acac", "test_dihedral", 45, "C5H8O2"),
    ("acac", "test_h_transfer", 15, "C5H8O2"),
    ("acac", "isolated_atoms", 3, "H"),
    ("3bpa", "train_300K", 500, "C12H12N2O"),
    ("3bpa", "train_mixed", 500, "C12H12N2O"),
    ("3bpa", "isolated_atoms", 4, "C"),
    ("rmd17_aspirin", "train", 1200, "C9H8O4"),
    ("rmd17_aspirin", "test", 1800, "C9H8O4"),
]


@needs_data
@pytest.mark.parametrize(("name", "split", "count", "formula"), PUBLISHED)
def test_published_sets_are_read_whole(name, split, count, formula):
    structures = published_molecules(name, split)
    assert len(structures) == count
    assert structures[0].formula == formula
    energies_only = "isolated" in split or split in ("test_dihedral", "test_h_transfer")
    assert all((s.forces is None) == energies_only for s in structures)


@needs_data
@pytest.mark.parametrize("file", ["acac/test_H_transfer.xyz", "3bpa/train_mixedT.xyz", "rmd17/aspirin_train.xyz"])
def test_published_files_read_as_ase_reads_them(file):
    path = find_data_file(file, project="see published_molecules")
    theirs = [from_ase(atoms) for atoms in ase.io.read(path, "::20", format="extxyz")]
    ours = read_extxyz(path, require=("energy",), index=slice(None, None, 20))
    for one, other in zip(ours, theirs, strict=True):
        for name in ("numbers", "positions", "energy", "forces", "lattice", "pbc"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@needs_data
@pytest.mark.parametrize(("split", "count", "first"), [("train", 60_000, 5), ("test", 10_000, 7)])
def test_mnist_is_read_whole(split, count, first):
    source = mnist(split)
    assert len(source) == count
    assert int(source[0]["label"]) == first
    # About 19 % of all pixels are ink, in either split.
    assert 0.18 < (source.arrays["image"] > 0).mean() < 0.20
