"""Units, sign and order of labels in other codes' files, converted to ASE's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import units

from schnetpack_softadapt.quantities import VOIGT

__all__ = [
    "ENERGY_UNITS",
    "LENGTH_UNITS",
    "STRESS_ORDERS",
    "STRESS_UNITS",
    "LabelUnits",
    "stress_matrix",
    "stress_order",
    "unit_factor",
]

#: eV per unit
ENERGY_UNITS: dict[str, float] = {
    "eV": units.eV,
    "meV": 1e-3 * units.eV,
    "Ha": units.Hartree,
    "Hartree": units.Hartree,
    "Ry": units.Rydberg,
    "Rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}

#: Ang per unit
LENGTH_UNITS: dict[str, float] = {
    "Ang": units.Ang,
    "Angstrom": units.Ang,
    "Bohr": units.Bohr,
    "nm": units.nm,
}

#: eV/Ang^3 per unit
STRESS_UNITS: dict[str, float] = {
    "eV/Ang^3": units.eV / units.Ang**3,
    "GPa": units.GPa,
    "MPa": 1e-3 * units.GPa,
    "Pa": units.Pascal,
    "kbar": 1e3 * units.bar,
    "bar": units.bar,
    "Ha/Bohr^3": units.Hartree / units.Bohr**3,
    "Ry/Bohr^3": units.Rydberg / units.Bohr**3,
}

#: order of the six numbers of a symmetric tensor, by the program that prints them
STRESS_ORDERS: dict[str, tuple[str, ...]] = {
    "voigt": VOIGT,  # ASE
    "vasp": ("xx", "yy", "zz", "xy", "yz", "zx"),
    "lammps": ("xx", "yy", "zz", "xy", "xz", "yz"),
}


@dataclass(frozen=True)
class LabelUnits:
    """Units, sign and order of the labels in a file, and the factors that convert them.

    Attributes:
        energy_unit, length_unit, forces_unit, stress_unit: names in the tables above; forces and
            stress follow from energy and length when None.
        stress_sign: -1 if positive means compression.
        stress_order: of a stress that is given as six numbers.

    Raises:
        ValueError: unknown unit, sign or order.
    """

    energy_unit: str = "eV"
    length_unit: str = "Ang"
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: int = 1
    stress_order: str = "voigt"

    def __post_init__(self):
        if self.stress_sign not in (-1, 1):
            raise ValueError(f"the sign of the stress is +1 or -1, not {self.stress_sign}")
        stress_order(self.stress_order)
        _ = self.forces_factor, self.stress_factor  # raise where a unit is unknown

    @cached_property
    def energy_factor(self) -> float:
        """eV per unit of energy."""
        return unit_factor(self.energy_unit, ENERGY_UNITS, "energy")

    @cached_property
    def length_factor(self) -> float:
        """Ang per unit of length."""
        return unit_factor(self.length_unit, LENGTH_UNITS, "length")

    @cached_property
    def forces_factor(self) -> float:
        """eV/Ang per unit of force."""
        if self.forces_unit is None:
            return self.energy_factor / self.length_factor
        energy, _, length = self.forces_unit.rpartition("/")
        return unit_factor(energy, ENERGY_UNITS, "force's energy") / unit_factor(
            length, LENGTH_UNITS, "force's length"
        )

    @cached_property
    def stress_factor(self) -> float:
        """eV/Ang^3 per unit of stress, negative if positive numbers mean compression."""
        if self.stress_unit is None:
            return self.stress_sign * self.energy_factor / self.length_factor**3
        return self.stress_sign * unit_factor(self.stress_unit, STRESS_UNITS, "stress")

    def __str__(self) -> str:
        return (
            f"energy in {self.energy_unit}, length in {self.length_unit}, stress in"
            f" {self.stress_unit or 'the same units'}, positive ="
            f" {'tension' if self.stress_sign > 0 else 'compression'}"
        )


def unit_factor(name: str, table: dict[str, float], what: str) -> float:
    """What a number in unit `name` is multiplied by to be in eV, Ang or eV/Ang^3.

    Capitals do not matter. Raises ValueError with the known units for any other name.
    """
    by_lower = {key.lower(): value for key, value in table.items()}
    key = name.strip().lower().replace("**", "^").replace("a0", "bohr")
    key = key.replace("ang3", "ang^3").replace("ang/ang/ang", "ang^3").replace("bohr3", "bohr^3")
    if key not in by_lower:
        raise ValueError(f"unknown {what} unit {name!r}; choose from {', '.join(table)}")
    return by_lower[key]


def stress_order(text: str) -> tuple[str, ...]:
    """Read "voigt", "vasp", "lammps" or six names such as "xx yy zz xy xz yz"."""
    if text.lower() in STRESS_ORDERS:
        return STRESS_ORDERS[text.lower()]
    names = tuple(text.lower().replace(",", " ").split())
    wanted = {frozenset(name) for name in VOIGT}
    if len(names) != 6 or {frozenset(name) for name in names if len(name) == 2} != wanted:
        raise ValueError(
            f"unknown stress order {text!r}; give {', '.join(STRESS_ORDERS)} or the six "
            "components in their order, such as 'xx yy zz xy xz yz'"
        )
    return names


def stress_matrix(
    values: np.ndarray, order: Sequence[str] = VOIGT, factor: float = 1.0
) -> np.ndarray:
    """Stress (3, 3) from six numbers in the given order, or from nine (the order then not used).

    Args:
        values: (6,), (9,) or (3, 3), any unit and sign.
        order: component of each of the six numbers.
        factor: multiplies all: the unit in eV/Ang^3, negative where positive means compression.

    Raises:
        ValueError: other shapes, or nine numbers that are not symmetric.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 6:
        matrix = np.empty((3, 3))
        for value, name in zip(values.ravel(), order, strict=True):
            a, b = ("xyz".index(letter) for letter in name)
            matrix[a, b] = matrix[b, a] = value
    elif values.size == 9:
        matrix = values.reshape(3, 3)
        finite = np.isfinite(matrix).all()
        # codes print about 8 digits; a larger difference is a torque or a misread file
        if finite and np.abs(matrix - matrix.T).max() > 1e-4 * np.abs(matrix).max():
            raise ValueError(f"stress is not symmetric: {matrix.tolist()}")
        matrix = 0.5 * (matrix + matrix.T)
    else:
        raise ValueError(f"stress has shape {values.shape}, not six or nine numbers")
    return matrix * factor
