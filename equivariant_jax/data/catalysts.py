"""Catalyst surfaces with adsorbates: OC20's S2EF task (structure to energy and forces), and a plain format of arrays.

`read_catalysts` reads

- LMDB files as OC20 publishes them (keys `b"0"`, `b"1"`, ..., `b"length"`; values pickled `torch_geometric` objects),
  without torch and without trusting the pickles, see `catalyst_pickles`;
- npz files, as `write_catalysts` writes them: `offsets` int64 `[S + 1]` says that structure `i` owns the atoms
  `offsets[i]:offsets[i+1]` of `numbers` int32 `[N]`, `positions` float64 `[N, 3]` (angstrom) and, if the set has them,
  `forces` float64 `[N, 3]` (eV/angstrom), `fixed` bool `[N]` and `tags` int32 `[N]`; `lattice` float64 `[S, 3, 3]`
  (angstrom), `pbc` bool `[S, 3]` and, if the set has them, `energy` float64 `[S]` (eV) belong to structures.

In both cases a structure's `arrays` hold `fixed` (True where an atom was held in place: its force does not count) and
`tags` (0 below the surface, 1 surface, 2 adsorbate) where the file has them. OC20's neighbour lists are not read:
`to_graph` makes them anew. Its energies `y` are relative to the clean slab and the adsorbate in the gas phase.

Reference: Chanussot et al. 2021, arXiv:2010.09990 (OC20); https://github.com/facebookresearch/fairchem (the format).
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.catalyst_pickles import load_pickle
from equivariant_jax.data.structures import AtomicStructure

__all__ = ["CatalystLMDB", "catalyst_from_pickle", "read_catalysts", "write_catalysts"]

_PER_ATOM = ("forces", "fixed", "tags")


def _ints(name: str, value: Any, n: int | None = None) -> np.ndarray:
    # OC20 stores atomic numbers and masks as floating point.
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim != 1 or (n is not None and len(array) != n):
        raise ValueError(f"{name}: got dtype {array.dtype} and shape {array.shape}, expected numbers [{n or 'n'}]")
    if not np.isfinite(array).all() or (array != np.round(array)).any() or np.abs(array).max(initial=0) > 10**6:
        raise ValueError(f"{name}: expected small integers, got {array[:8].tolist()} ...")
    return array.astype(np.int32)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def catalyst_from_pickle(content: bytes) -> AtomicStructure:
    """Reads one structure from the bytes of a pickled `torch_geometric` object, as OC20's LMDB files hold them.

    Args:
      content: the value of one key.

    Returns:
      The structure, positions `[n, 3]` in angstrom; periodic in all directions if there is a cell.

    Raises:
      ValueError: if the bytes are damaged, name a class that is not data, or lack positions and atomic numbers.
    """
    record = load_pickle(content)
    if not isinstance(record, Mapping):
        raise ValueError(f"a pickled {type(record).__name__}, expected an object with fields `pos`, `atomic_numbers`")
    positions, numbers = record.get("pos"), record.get("atomic_numbers")
    if positions is None or numbers is None:
        raise ValueError(f"the fields `pos` and `atomic_numbers` are needed, found {sorted(map(str, record))}")
    numbers = _ints("atomic_numbers", numbers)
    cell, energy = record.get("cell"), _first(record, ("y", "energy"))
    arrays: dict[str, np.ndarray] = {}
    if record.get("fixed") is not None:
        fixed = _ints("fixed", record["fixed"], len(numbers))
        if ((fixed != 0) & (fixed != 1)).any():
            raise ValueError(f"fixed: expected 0 or 1 for each atom, got {fixed[:8].tolist()} ...")
        arrays["fixed"] = fixed.astype(bool)
    if record.get("tags") is not None:
        arrays["tags"] = _ints("tags", record["tags"], len(numbers))
    if cell is not None:
        cell = np.asarray(cell)
        cell = cell[0] if cell.shape == (1, 3, 3) else cell
    if energy is not None and np.size(energy) == 1 and np.asarray(energy).dtype.kind in "iuf":
        energy = float(np.asarray(energy).reshape(()))
    info = {name: record[name] for name in ("sid", "fid") if isinstance(record.get(name), (int, str))}
    return AtomicStructure(
        numbers=numbers,
        positions=positions,
        energy=energy,
        forces=_first(record, ("force", "forces")),
        lattice=cell,
        pbc=(True, True, True) if cell is not None else (False, False, False),
        info=info,
        arrays=arrays,
    )


# A process may open an LMDB file once, whatever number of data sets read it, and a forked one must open it anew.
_ENVIRONMENTS: dict[tuple[int, int, int], Any] = {}
_LOCK = threading.Lock()


def _environment(path: Path) -> tuple[Any, type[Exception]]:
    """The open file, and the class of lmdb's errors."""
    try:
        import lmdb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("LMDB files need lmdb: pip install 'equivariant_jax[catalysts]'") from error
    status = path.stat()
    key = (os.getpid(), status.st_dev, status.st_ino)
    with _LOCK:
        if key not in _ENVIRONMENTS:
            try:
                _ENVIRONMENTS[key] = lmdb.open(
                    str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False
                )
            except lmdb.Error as error:
                raise ValueError(f"{path}: not a sound LMDB file ({error})") from error
        return _ENVIRONMENTS[key], lmdb.Error


class CatalystLMDB:
    """A data set of OC20's LMDB files with random access; files are opened when a structure is asked for.

    Args:
      path: one LMDB file, or a folder, whose files `*.lmdb` follow one another in order of their names.

    Raises:
      FileNotFoundError: if there is no such file or the folder holds none.
    """

    def __init__(self, path: str | os.PathLike[str]):
        path = Path(path)
        self.paths = sorted(path.glob("*.lmdb")) if path.is_dir() else [path]
        if not self.paths or not all(p.is_file() for p in self.paths):
            raise FileNotFoundError(f"{path} is no LMDB file and holds none; fetch OC20's S2EF files and unpack them.")
        self._ends: np.ndarray | None = None

    def _get(self, index: int, key: str) -> bytes | None:
        environment, lmdb_error = _environment(self.paths[index])
        try:
            with environment.begin() as transaction:
                return transaction.get(key.encode("ascii"))
        except lmdb_error as error:
            raise ValueError(f"{self.paths[index]}, key {key!r}: {error}") from error

    def _length(self, index: int) -> int:
        content = self._get(index, "length")
        if content is None:
            return int(_environment(self.paths[index])[0].stat()["entries"])
        try:
            length = load_pickle(content)
        except ValueError as error:
            raise ValueError(f"{self.paths[index]}, key 'length': {error}") from error
        if not isinstance(length, (int, np.integer)) or length < 0:
            raise ValueError(f"{self.paths[index]}, key 'length': got {length!r}, expected a count")
        return int(length)

    @property
    def ends(self) -> np.ndarray:
        """Number of structures up to and with each file, int64 `[files]`."""
        if self._ends is None:
            self._ends = np.cumsum([self._length(i) for i in range(len(self.paths))]).astype(np.int64)
        return self._ends

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> AtomicStructure:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} structures")
        file = int(np.searchsorted(self.ends, index, side="right"))
        key = str(index - (int(self.ends[file - 1]) if file else 0))
        content = self._get(file, key)
        if content is None:
            raise ValueError(f"{self.paths[file]}: the key {key!r} is missing of {len(self)} structures")
        try:
            return catalyst_from_pickle(content)
        except ValueError as error:
            raise ValueError(f"{self.paths[file]}, key {key!r}: {error}") from error

    def __iter__(self) -> Iterator[AtomicStructure]:
        return (self[i] for i in range(len(self)))


def read_catalysts(path: str | os.PathLike[str]) -> list[AtomicStructure]:
    """Reads all structures of a set into memory; for millions of them use `CatalystLMDB`.

    Args:
      path: an npz file, an LMDB file, or a folder of LMDB files.

    Returns:
      Structures with `fixed` and `tags` in their `arrays` where the file has them.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if an LMDB file is read and lmdb (extra `catalysts`) is not installed.
      ValueError: if the file is damaged; the message names it and the place.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _read_arrays(path)
    return list(CatalystLMDB(path))


def _read_arrays(path: Path) -> list[AtomicStructure]:
    arrays = read_npz(path, require=("offsets", "numbers", "positions", "lattice", "pbc"))
    offsets, total = arrays["offsets"], len(arrays["numbers"])
    sound = offsets.ndim == 1 and offsets.dtype.kind in "iu" and offsets.size >= 1
    if not sound or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 1).any():
        raise ValueError(f"{path}: `offsets` must rise from 0 to {total}, the number of atoms; got {offsets[:8]} ...")
    count = len(offsets) - 1
    for name, array in arrays.items():
        if name != "offsets" and len(array) != (count if name in ("lattice", "pbc", "energy") else total):
            raise ValueError(f"{path}: `{name}` has {len(array)} rows for {count} structures of {total} atoms")
    structures = []
    for i in range(count):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        try:
            periodic = arrays["pbc"][i]
            structures.append(
                AtomicStructure(
                    numbers=arrays["numbers"][part],
                    positions=arrays["positions"][part],
                    energy=arrays["energy"][i] if "energy" in arrays else None,
                    forces=arrays["forces"][part] if "forces" in arrays else None,
                    lattice=arrays["lattice"][i] if np.any(arrays["lattice"][i]) else None,
                    pbc=periodic,
                    arrays={name: arrays[name][part] for name in ("fixed", "tags") if name in arrays},
                )
            )
        except ValueError as error:
            raise ValueError(f"{path}, structure {i}: {error}") from error
    return structures


def write_catalysts(path: str | os.PathLike[str], structures: Sequence[AtomicStructure]) -> None:
    """Writes structures into one compressed npz file, in the format of the module's page.

    Args:
      path: the file; its name ends in `.npz`.
      structures: at least one, positions `[n, 3]` in angstrom; energies, forces, `fixed` and `tags` of all or of none.

    Raises:
      ValueError: if there is no structure, or only some have a label.

    Example:
      >>> import tempfile
      >>> pair = AtomicStructure([29, 8], [[0, 0, 0], [0, 0, 1.8]], energy=-1.0, arrays={"fixed": [True, False]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_catalysts(Path(folder, "set.npz"), [pair, pair])
      ...     [s.arrays["fixed"].tolist() for s in read_catalysts(Path(folder, "set.npz"))]
      [[True, False], [True, False]]
    """
    path = Path(path)
    if path.suffix != ".npz" or not structures:
        raise ValueError(
            f"write_catalysts got {path} and {len(structures)} structures; expected a name that ends in "
            ".npz and at least one structure."
        )
    columns: dict[str, np.ndarray] = {
        "offsets": np.cumsum([0, *(len(s) for s in structures)]).astype(np.int64),
        "numbers": np.concatenate([s.numbers for s in structures]),
        "positions": np.concatenate([s.positions for s in structures]),
        "lattice": np.stack([np.zeros((3, 3)) if s.lattice is None else s.lattice for s in structures]),
        "pbc": np.array([s.pbc for s in structures]),
    }
    labels: dict[str, list[Any]] = {
        "energy": [s.energy for s in structures],
        "forces": [s.forces for s in structures],
        **{name: [s.arrays.get(name) for s in structures] for name in ("fixed", "tags")},
    }
    for name, values in labels.items():
        known = [value is not None for value in values]
        if any(known) and not all(known):
            raise ValueError(f"{name}: structure {known.index(False)} has none, others do; give it to all or to none")
        if all(known):
            columns[name] = np.concatenate(values) if name in _PER_ATOM else np.array(values, np.float64)
    with path.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
