"""One arrangement of atoms with what a quantum-chemistry program said about it.

Units throughout: angstrom, eV, eV / angstrom, eV / angstrom^3. Stress is the derivative of the energy with respect to
strain divided by the volume, positive under tension: the sign of ASE; VASP prints the opposite.

A structure that exists is sound: shapes agree, numbers are finite, elements are known, a periodic direction has a
lattice and no two atoms stand at one place. Code behind it need not check again.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["SYMBOLS", "AtomicStructure", "atomic_number", "isolated_atom_energies"]

_TABLE = """
X
H He
Li Be B C N O F Ne
Na Mg Al Si P S Cl Ar
K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe
Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = tuple(_TABLE.split())
"""Chemical symbols by atomic number; index 0 is a place holder and no element."""

COINCIDENCE = 1e-3
"""Two atoms closer than this (angstrom) count as standing at one place."""

_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}


def atomic_number(symbol: str) -> int:
    """Atomic number of a chemical symbol, spelt as the periodic table spells it.

    Raises:
      ValueError: if there is no such element.

    Example:
      >>> atomic_number("Cl")
      17
    """
    try:
        return _NUMBER_OF[symbol]
    except KeyError:
        raise ValueError(f"unknown element {symbol!r}; expected a chemical symbol such as 'H' or 'Cl'") from None


@dataclasses.dataclass(frozen=True, eq=False)
class AtomicStructure:
    """Atoms, their labels and their periodic cell; see the module for units.

    Arrays are copied, converted to the dtypes below and made read-only; change one by `dataclasses.replace`.

    Attributes:
      numbers: atomic numbers 1 to 118, int32 `[n]`.
      positions: angstrom, float64 `[n, 3]`; for periodic structures they need not lie inside the cell.
      energy: total energy in eV, or None.
      forces: eV / angstrom, float64 `[n, 3]`, or None.
      stress: eV / angstrom^3, float64 `[3, 3]`, or None.
      lattice: rows are the lattice vectors, angstrom, float64 `[3, 3]`, or None.
      pbc: which of the three lattice directions repeat.
      info: anything else that is known about the structure as a whole.
      arrays: anything else that is known about each atom, each `[n, ...]`.

    Raises:
      ValueError: if the structure is not sound; the message starts with the field's name.

    Example:
      >>> AtomicStructure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0.74]], energy=-31.7).positions.dtype
      dtype('float64')
      >>> AtomicStructure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0]])
      Traceback (most recent call last):
        ...
      ValueError: positions: atoms 0 and 1 stand at one place (0 angstrom apart)
    """

    numbers: np.ndarray
    positions: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    lattice: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        numbers = _numbers(self.numbers)
        n = len(numbers)
        canonical: dict[str, Any] = {
            "numbers": numbers,
            "positions": _real("positions", self.positions, (n, 3)),
            "energy": None if self.energy is None else float(_real("energy", self.energy, ())),
            "forces": None if self.forces is None else _real("forces", self.forces, (n, 3)),
            "stress": None if self.stress is None else _real("stress", self.stress, (3, 3)),
            "lattice": None if self.lattice is None else _real("lattice", self.lattice, (3, 3)),
            "pbc": _pbc(self.pbc),
            "info": dict(self.info),
            "arrays": {name: np.array(array) for name, array in self.arrays.items()},
        }
        for name, value in canonical.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        for name, value in self.arrays.items():
            if np.shape(value)[:1] != (n,):
                raise ValueError(f"arrays[{name!r}]: got shape {np.shape(value)}, expected ({n}, ...), one row an atom")
        _check_lattice(canonical["lattice"], canonical["pbc"])
        _check_coincidence(canonical["positions"], canonical["lattice"], canonical["pbc"])

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume of the cell in angstrom^3.

        Raises:
          ValueError: if there is no lattice.
        """
        if self.lattice is None:
            raise ValueError("lattice: a structure without a lattice has no volume")
        return abs(float(np.linalg.det(self.lattice)))

    @property
    def formula(self) -> str:
        """Hill formula: carbon, hydrogen, then the others by symbol, as in `C2H7NO`."""
        symbols, counts = np.unique([SYMBOLS[number] for number in self.numbers], return_counts=True)
        count = dict(zip(symbols.tolist(), counts.tolist(), strict=True))
        first = [s for s in ("C", "H") if s in count] if "C" in count else []
        order = first + [s for s in sorted(count) if s not in first]
        return "".join(s + (str(count[s]) if count[s] > 1 else "") for s in order)


def _numbers(value: Any) -> np.ndarray:
    numbers = np.asarray(value)
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"numbers: got shape {numbers.shape} and dtype {numbers.dtype}, expected integers [n] with n >= 1"
        )
    unknown = numbers[(numbers < 1) | (numbers >= len(SYMBOLS))]
    if unknown.size:
        raise ValueError(f"numbers: no element has number {unknown[0]}; expected 1 to {len(SYMBOLS) - 1}")
    return numbers.astype(np.int32)


def _real(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {value!r}, expected real numbers of shape {shape}") from error
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, expected {shape}")
    finite = np.isfinite(array)
    if not finite.all():
        where = np.argwhere(~finite)[0].tolist()
        raise ValueError(f"{name}: the value at index {where} is {array[tuple(where)]}, expected a finite number")
    return array


def _pbc(value: Any) -> tuple[bool, bool, bool]:
    flags = np.asarray(value)
    if flags.shape not in ((), (3,)) or flags.dtype.kind != "b":
        raise ValueError(f"pbc: got {value!r}, expected three booleans")
    a, b, c = np.broadcast_to(flags, (3,)).tolist()
    return a, b, c


def _check_lattice(lattice: np.ndarray | None, pbc: tuple[bool, bool, bool]) -> None:
    if not any(pbc):
        return
    if lattice is None:
        raise ValueError(f"lattice: missing although pbc is {pbc}; give three lattice vectors or no periodicity")
    lengths = np.linalg.norm(lattice, axis=1)
    # Against the product of the lengths the volume of any sensible cell, however skewed, is far above rounding.
    if lengths.min() < COINCIDENCE or abs(np.linalg.det(lattice / lengths[:, None])) < 1e-6:
        raise ValueError(f"lattice: the vectors {lattice.tolist()} span no volume, expected independent rows")


def _check_coincidence(positions: np.ndarray, lattice: np.ndarray | None, pbc: tuple[bool, bool, bool]) -> None:
    if lattice is None or not any(pbc):
        _sweep(positions)
        return
    fractional = np.linalg.solve(lattice.T, positions.T).T
    # Wrapping tears a pair apart along an axis for at most one choice of origin; of four origins, one suits all axes.
    for origin in (0.0, 0.25, 0.5, 0.75):
        wrapped = np.where(pbc, (fractional - origin) % 1.0, fractional)
        _sweep(wrapped @ lattice)


def _sweep(positions: np.ndarray) -> None:
    # Atoms at one place are neighbours in the order along any direction; a generic one separates regular layers.
    direction = np.array([0.6180339887, 0.5497004779, 0.5614277372])
    along = positions @ (direction / np.linalg.norm(direction))
    order = np.argsort(along, kind="stable")
    along = along[order]
    for step in range(1, len(order)):
        near = np.flatnonzero(along[step:] - along[:-step] < COINCIDENCE)
        if near.size == 0:
            return
        distances = np.linalg.norm(positions[order[near + step]] - positions[order[near]], axis=1)
        if distances.min() < COINCIDENCE:
            at = near[distances.argmin()]
            first, second = sorted((int(order[at]), int(order[at + step])))
            raise ValueError(
                f"positions: atoms {first} and {second} stand at one place ({distances.min():.3g} angstrom apart)"
            )


def isolated_atom_energies(structures: Iterable[AtomicStructure]) -> dict[int, float]:
    """Energies of isolated atoms from structures of one atom each, the usual reference of an interatomic potential.

    Args:
      structures: one structure for each element, each of one atom with an energy.

    Returns:
      Energy in eV by atomic number, in ascending order.

    Raises:
      ValueError: if a structure has more than one atom or no energy, or an element comes twice.

    Example:
      >>> isolated_atom_energies([AtomicStructure([1], [[0, 0, 0]], energy=-13.6)])
      {1: -13.6}
    """
    energies: dict[int, float] = {}
    for index, structure in enumerate(structures):
        number = int(structure.numbers[0])
        if len(structure) != 1 or structure.energy is None:
            raise ValueError(
                f"structure {index} is {structure.formula} with energy {structure.energy}, expected one atom with an "
                "energy"
            )
        if number in energies:
            raise ValueError(f"structure {index} is a second {SYMBOLS[number]} atom, expected each element once")
        energies[number] = structure.energy
    return dict(sorted(energies.items()))
