"""Reader and writer of extended XYZ files, the common format of data sets of molecules and materials.

A frame is a line with the number of atoms, a line of `key=value` pairs (`extxyz_header`) and one line for each atom,
whose columns the pair `Properties=name:type:width:...` describes (types S, I, R, L: string, integer, real, logical).
`Lattice` holds the three vectors one after another; `stress` and `virial` nine numbers, `virial = -volume * stress`.

Programs disagree on names, so the names looked for are arguments with a documented default. The reader is strict: what
it cannot read without guessing is a `ValueError` that names file, frame, line and field. `ase.io` reads the same files
to the same numbers (tested); this reader needs nothing but NumPy.

Reference: https://github.com/libAtoms/extxyz
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from equivariant_jax.data.extxyz_header import LOGICAL, format_header, parse_header
from equivariant_jax.data.structures import SYMBOLS, AtomicStructure, atomic_number

__all__ = ["ENERGY_KEYS", "FORCES_KEYS", "STRESS_KEYS", "VIRIAL_KEYS", "read_extxyz", "write_extxyz"]

ENERGY_KEYS = ("energy", "Energy", "TotEnergy", "total_energy", "REF_energy", "ref_energy", "dft_energy", "DFT_energy")
FORCES_KEYS = ("forces", "force", "Forces", "REF_forces", "ref_forces", "dft_forces", "DFT_forces", "dft_force")
STRESS_KEYS = ("stress", "REF_stress", "ref_stress", "dft_stress", "DFT_stress")
VIRIAL_KEYS = ("virial", "virials", "REF_virial", "REF_virials", "dft_virial", "DFT_virial")

_FIELDS = ("energy", "forces", "stress")
_PLAIN_XYZ = "species:S:1:pos:R:3"
_LONGEST_WORD = 256


class _Frame(NamedTuple):
    """The lines of one frame, still bytes: the number of its first line, the header and one entry for each atom."""

    line: int
    header: bytes
    atoms: list[bytes]


class _Keys(NamedTuple):
    energy: Sequence[str]
    forces: Sequence[str]
    stress: Sequence[str]
    virial: Sequence[str]


def read_extxyz(
    path: str | os.PathLike[str],
    *,
    require: Sequence[str] = ("energy", "forces"),
    index: int | slice | None = None,
    energy_keys: Sequence[str] = ENERGY_KEYS,
    forces_keys: Sequence[str] = FORCES_KEYS,
    stress_keys: Sequence[str] = STRESS_KEYS,
    virial_keys: Sequence[str] = VIRIAL_KEYS,
) -> list[AtomicStructure]:
    r"""Reads structures, their labels and everything else that an extended XYZ file says.

    Where several of the names of one quantity are present, their values must agree; otherwise say which one is meant.
    The names of a label that was read leave `info` and `arrays`; all others stay there.

    Args:
      path: the file.
      require: which of "energy", "forces" and "stress" every frame must have.
      index: which frames, a Python index or slice; all by default.
      energy_keys: names of the total energy in eV.
      forces_keys: names of the columns of forces in eV / angstrom.
      stress_keys: names of the stress in eV / angstrom^3.
      virial_keys: names of the virial in eV, turned into stress by `-virial / volume` where no stress is given.

    Returns:
      One structure for each frame, also where `index` is a single number; positions and forces float64 `[n, 3]`,
      stress and lattice float64 `[3, 3]`. A lattice without `pbc` is periodic in all directions, as the format says.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is malformed or a required label is missing; the message names file, frame, line, field.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "hydrogen.xyz")
      ...     _ = path.write_text("2\nProperties=species:S:1:pos:R:3 dft_energy=-31.7\nH 0 0 0\nH 0 0 0.74\n")
      ...     [structure] = read_extxyz(path, require=["energy"])
      >>> structure.energy, structure.numbers.tolist(), structure.forces
      (-31.7, [1, 1], None)
    """
    if isinstance(require, str) or not set(require) <= set(_FIELDS):
        raise ValueError(f"require: got {require!r}, expected a sequence of names out of {_FIELDS}")
    path = Path(path)
    frames = _split(path)
    chosen = list(range(len(frames)))
    if isinstance(index, slice):
        chosen = chosen[index]
    elif index is not None:
        if not -len(frames) <= index < len(frames):
            raise ValueError(f"{path}: frame {index} was asked for, and the file has {len(frames)} frames")
        chosen = [chosen[index]]
    keys = _Keys(energy_keys, forces_keys, stress_keys, virial_keys)
    structures = []
    for number in chosen:
        try:
            structures.append(_parse(frames[number], require, keys))
        except ValueError as error:
            raise ValueError(f"{path}, frame {number} (line {frames[number].line}): {error}") from error
    return structures


def _split(path: Path) -> list[_Frame]:
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file has no frames")
    frames, at = [], 0
    while at < len(lines):
        where = f"{path}, frame {len(frames)} (line {at + 1}): number of atoms"
        if not re.fullmatch(rb"\s*\d{1,18}\s*", lines[at]) or int(lines[at]) < 1:
            raise ValueError(f"{where}: got {_show(lines[at])}, expected a positive integer")
        count = int(lines[at])
        if at + 2 + count > len(lines):
            raise ValueError(f"{where}: {count} atoms are announced, and the file ends after {len(lines)} lines")
        frames.append(_Frame(at + 1, lines[at + 1], lines[at + 2 : at + 2 + count]))
        at += 2 + count
    return frames


def _show(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def _parse(frame: _Frame, require: Sequence[str], keys: _Keys) -> AtomicStructure:
    try:
        info = parse_header(frame.header.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"header: not UTF-8 text ({error})") from error
    columns = _read_columns(frame, str(info.pop("Properties", _PLAIN_XYZ)))
    numbers, positions = _pop_identity(columns)
    lattice, pbc = _pop_cell(info)
    energy = _pop_label("energy", info, keys.energy, ())
    forces = _pop_label("forces", columns, keys.forces, (len(numbers), 3))
    stress = _pop_label("stress", info, keys.stress, (3, 3))
    virial = _pop_label("virial", info, keys.virial, (3, 3))
    if stress is None and virial is not None:
        if lattice is None or not any(pbc):
            raise ValueError("virial: needs a periodic lattice to become a stress, and there is none")
        stress = -virial / abs(np.linalg.det(lattice))
    for field, value in zip(_FIELDS, (energy, forces, stress), strict=True):
        if field in require and value is None:
            there = sorted(columns if field == "forces" else info)
            raise ValueError(
                f"{field}: missing; looked for {list(getattr(keys, field))} and found {there}; name it by "
                f"{field}_keys=..., or leave it out of require=..."
            )
    return AtomicStructure(
        numbers=numbers,
        positions=positions,
        energy=None if energy is None else float(energy),
        forces=forces,
        # The format writes matrices column by column, which matters for a stress that is not quite symmetric.
        stress=None if stress is None else stress.T,
        lattice=lattice,
        pbc=pbc,
        info=info,
        arrays=columns,
    )


def _real(token: bytes) -> float:
    if b"_" in token:  # Python reads 1_000 as a thousand
        raise ValueError(token)
    return float(token)


def _integer(token: bytes) -> int:
    if b"_" in token or len(token) > 18:
        raise ValueError(token)
    return int(token)


def _logical(token: bytes) -> bool:
    return LOGICAL[token.decode("ascii")]


def _word(token: bytes) -> str:
    if len(token) > _LONGEST_WORD:
        raise ValueError(token)
    return token.decode("utf-8")


_CONVERT = {"S": (_word, "a word"), "I": (_integer, "an integer"), "R": (_real, "a number"), "L": (_logical, "T or F")}


def _read_columns(frame: _Frame, properties: str) -> dict[str, np.ndarray]:
    fields = properties.split(":")
    if len(fields) % 3:
        raise ValueError(f"Properties: {properties!r} is not a list of name:type:width")
    rows = [line.split() for line in frame.atoms]
    widths = {len(row) for row in rows}
    columns: dict[str, np.ndarray] = {}
    start = 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if not name or name in columns or kind not in _CONVERT or not re.fullmatch(r"[1-9][0-9]{0,5}", width):
            raise ValueError(
                f"Properties: {name}:{kind}:{width} is not name:type:width with a new name, a type out of S, I, R, L "
                "and a positive width"
            )
        stop = start + int(width)
        if min(widths) < stop:
            short = next(offset for offset, row in enumerate(rows) if len(row) < stop)
            raise ValueError(
                f"{name}: line {frame.line + 2 + short} has {len(rows[short])} columns, expected {stop} or more"
            )
        columns[name] = _read_column(name, kind, [row[start:stop] for row in rows], frame.line + 2)
        start = stop
    if max(widths) > start:
        long = next(offset for offset, row in enumerate(rows) if len(row) > start)
        raise ValueError(
            f"Properties: line {frame.line + 2 + long} has {len(rows[long])} columns, expected {start} ({properties})"
        )
    return columns


def _read_column(name: str, kind: str, rows: list[list[bytes]], first_line: int) -> np.ndarray:
    convert, expected = _CONVERT[kind]
    values = []
    for offset, row in enumerate(rows):
        try:
            values.append([convert(token) for token in row])
        except (ValueError, KeyError) as error:
            shown = _show(b" ".join(row))
            raise ValueError(f"{name}: line {first_line + offset} has {shown}, expected {expected}") from error
    array = np.array(values)
    return array[:, 0] if array.shape[1] == 1 else array


def _pop_identity(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    positions = columns.pop("pos", None)
    if positions is None or positions.shape[1:] != (3,) or positions.dtype.kind != "f":
        raise ValueError("pos: missing in Properties or not three reals, expected pos:R:3")
    symbols, numbers = columns.pop("species", None), columns.pop("Z", None)
    if symbols is not None:
        if symbols.ndim != 1 or symbols.dtype.kind != "U":
            raise ValueError("species: not one word an atom, expected species:S:1 in Properties")
        try:
            of_symbols = np.array([atomic_number(str(symbol)) for symbol in symbols])
        except ValueError as error:
            raise ValueError(f"species: {error}") from error
        if numbers is not None and not np.array_equal(of_symbols, numbers):
            raise ValueError("Z: the atomic numbers disagree with the column species")
        return of_symbols, positions
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind != "i":
        raise ValueError("species: missing in Properties, expected species:S:1 or Z:I:1")
    return numbers, positions


def _pop_cell(info: dict[str, Any]) -> tuple[np.ndarray | None, tuple[bool, bool, bool]]:
    lattice = info.pop("Lattice", None)
    if lattice is not None:
        lattice = _numbers("Lattice", lattice, (3, 3))
        # ASE writes a lattice of zeros for "none".
        lattice = lattice if lattice.any() else None
    pbc = info.pop("pbc", None)
    flags = np.full(3, lattice is not None) if pbc is None else np.asarray(pbc)
    if flags.shape != (3,) or not (flags.dtype.kind in "bi" and np.isin(flags, (0, 1)).all()):
        raise ValueError(f"pbc: got {pbc!r}, expected three of T and F")
    a, b, c = flags.astype(bool).tolist()
    return lattice, (a, b, c)


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths in a JSON value
        array = np.empty(0, object)
    size = int(np.prod(shape))
    if array.dtype.kind not in "if" or array.size != size:
        raise ValueError(f"{name}: got {str(value)[:60]!r}, expected {'a number' if size == 1 else f'{size} numbers'}")
    return array.astype(np.float64).reshape(shape)


def _pop_label(field: str, mapping: dict[str, Any], keys: Sequence[str], shape: tuple[int, ...]) -> np.ndarray | None:
    found = {key: _numbers(key, mapping.pop(key), shape) for key in keys if key in mapping}
    if not found:
        return None
    first, *others = found.values()
    if any(not np.array_equal(first, other) for other in others):
        raise ValueError(f"{field}: {list(found)} disagree; say which one is meant by {field}_keys=(...,)")
    return first


def write_extxyz(path: str | os.PathLike[str], structures: Iterable[AtomicStructure]) -> None:
    """Writes structures so that `read_extxyz` gives them back bit for bit; `ase.io` reads the file too.

    Args:
      path: the file, replaced if it exists.
      structures: what to write, in the units of `AtomicStructure`.

    Raises:
      ValueError: if `info` or `arrays` hold what the format cannot, or use a name that is taken.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "atom.xyz")
      ...     write_extxyz(path, [AtomicStructure([2], [[0, 0, 0]], energy=-79.0)])
      ...     print(path.read_text().splitlines()[1])
      Properties=species:S:1:pos:R:3 energy=-79.0 pbc="F F F"
    """
    Path(path).write_text("".join(_format(structure) for structure in structures), encoding="utf-8", newline="\n")


def _format(structure: AtomicStructure) -> str:
    columns: dict[str, np.ndarray] = {"pos": structure.positions}
    if structure.forces is not None:
        columns["forces"] = structure.forces
    header: dict[str, Any] = {} if structure.lattice is None else {"Lattice": structure.lattice.ravel()}
    header["Properties"] = ""
    if structure.energy is not None:
        header["energy"] = structure.energy
    if structure.stress is not None:
        header["stress"] = structure.stress.T.ravel()
    header["pbc"] = np.array(structure.pbc)
    taken = {"species", "Z", "Lattice", *columns, *header}
    clash = sorted((set(structure.info) | set(structure.arrays)) & taken)
    if clash:
        raise ValueError(f"{clash}: these names of info or arrays are taken by the format; rename them")
    columns |= structure.arrays
    words = [[SYMBOLS[number]] for number in structure.numbers]
    properties = "species:S:1"
    for name, column in columns.items():
        kind = {"U": "S", "i": "I", "u": "I", "f": "R", "b": "L"}.get(column.dtype.kind)
        flat = column.reshape(len(structure), -1)
        cells = [[str(item)[:1] if kind == "L" else str(item) for item in row] for row in flat.tolist()]
        one_word_each = all(len(cell.split()) == 1 for row in cells for cell in row)
        if kind is None or column.ndim > 2 or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not one_word_each:
            raise ValueError(f"arrays[{name!r}]: not columns of words, integers, reals or logicals under a plain name")
        properties += f":{name}:{kind}:{flat.shape[1]}"
        words = [left + right for left, right in zip(words, cells, strict=True)]
    header["Properties"] = properties
    lines = [str(len(structure)), format_header(header | dict(structure.info)), *(" ".join(row) for row in words)]
    return "\n".join(lines) + "\n"
