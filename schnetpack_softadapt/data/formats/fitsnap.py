"""FitSNAP's JSON: a `Dataset` with one or more structures and the units they are in.

The file may begin with comment lines. Lattice vectors stand in rows; the stress (3, 3) has the
sign of a pressure (positive = compression: it is compared with LAMMPS' virial pressure), in bar
unless its header says otherwise. FitSNAP names the group of a structure by the folder of its file.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from schnetpack_softadapt.data.formats.conventions import stress_matrix
from schnetpack_softadapt.data.formats.options import NONE, ImportOptions
from schnetpack_softadapt.data.sources import Source
from schnetpack_softadapt.data.structures import Structure

__all__ = ["is_fitsnap", "read_fitsnap"]

#: names of units in FitSNAP's headers, and ours
ENERGIES = {"electronvolt": "eV", "ev": "eV", "hartree": "Ha", "rydberg": "Ry"}
ENERGIES |= {"kcalpermol": "kcal/mol", "kcalpermole": "kcal/mol", "kcal/mol": "kcal/mol"}
LENGTHS = {"angstrom": "Ang", "ang": "Ang", "bohr": "Bohr", "nanometer": "nm", "nm": "nm"}
STRESSES = {"bar": "bar", "kb": "kbar", "kbar": "kbar", "kilobar": "kbar", "gpa": "GPa"}
STRESSES |= {"gigapascal": "GPa", "mpa": "MPa", "pascal": "Pa", "pa": "Pa"}
FRACTIONAL = ("fractional", "relative", "scaled", "direct")


def is_fitsnap(path: Path, text: str) -> bool:
    """Whether it is a JSON object, after comment lines, whose first name is `Dataset`."""
    body = _without_comments(text)
    return body.startswith("{") and body[1:].lstrip().startswith('"Dataset"')


def read_fitsnap(
    source: Source, options: ImportOptions, remarks: list[str]
) -> Iterator[Structure | str]:
    """Yield the structures of a file, or why one could not be understood.

    Units given by the user go before those of the header. The group is the folder, unless the
    user names an entry of the file, such as `Label`.
    """
    options.refuse_keys("fitsnap")
    content = json.loads(_without_comments(source.path.read_text(encoding="utf-8")))
    if not isinstance(content, dict) or "Dataset" not in content:
        raise ValueError("no 'Dataset' in the file")
    header = content["Dataset"]
    if "Data" not in header:
        raise ValueError("no 'Data' in the 'Dataset'")
    folder = source.path.absolute().parent.name
    for data in header["Data"]:
        try:
            yield _convert({**header, **data}, options, folder, remarks)
        except (ValueError, TypeError) as error:
            yield str(error)


def _without_comments(text: str) -> str:
    """The text from its first line that is neither empty nor a comment."""
    text = text.lstrip("\ufeff \t\r\n")
    while text.startswith("#"):
        text = text.partition("\n")[2].lstrip()
    return text


def _convert(
    data: dict, options: ImportOptions, default_group: str, remarks: list[str]
) -> Structure:
    missing = [k for k in ("Positions", "AtomTypes", "Lattice", "Energy") if k not in data]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the structure")
    is_fractional = str(data.get("PositionsStyle", "")).lower() in FRACTIONAL
    lattice_unit = _unit(data, "Lattice", LENGTHS)
    units = options.units(
        "fitsnap",
        energy_unit=_unit(data, "Energy", ENERGIES),
        length_unit=lattice_unit,
        forces_unit=_forces_unit(data),
        stress_unit=_unit(data, "Stress", STRESSES),
    )
    if not is_fractional and options.length_unit is None:
        unit = _unit(data, "Positions", LENGTHS)
        if unit != lattice_unit and None not in (unit, lattice_unit):
            raise ValueError(f"positions in {unit} but lattice in {lattice_unit}; convert one")
    if "StressStyle" not in data and "Stress" in data and options.stress_unit is None:
        remarks.append(f"has no StressStyle; stress taken to be in {units.stress_unit}")
    numbers = _numbers(data)
    n_atoms = data.get("NumAtoms", len(numbers))
    if n_atoms != len(numbers):
        raise ValueError(f"NumAtoms is {n_atoms}, but there are {len(numbers)} AtomTypes")
    cell = _array(data, "Lattice", (3, 3))
    positions = _array(data, "Positions", (n_atoms, 3))
    forces = stress = None
    if options.forces_key != NONE and "Forces" in data:
        forces = _array(data, "Forces", (n_atoms, 3)) * units.forces_factor
    if options.stress_key != NONE and "Stress" in data:
        stress = stress_matrix(_array(data, "Stress", (3, 3)), factor=units.stress_factor)
    simple = {k: v for k, v in data.items() if isinstance(v, str | int | float)}
    group, info = options.entries(simple, default_group)
    return Structure(
        numbers=numbers,
        positions=(positions @ cell if is_fractional else positions) * units.length_factor,
        cell=cell * units.length_factor,
        pbc=True,
        energy=float(data["Energy"]) * units.energy_factor,
        forces=forces,
        stress=stress,
        group=group,
        info=info,
    )


def _array(data: dict, key: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        values = np.array(data[key], dtype=np.float64)
    except ValueError:
        raise ValueError(f"{key} is no array of numbers of shape {shape}") from None
    if values.shape != shape:
        raise ValueError(f"{key} has shape {values.shape}, not {shape}")
    return values


def _numbers(data: dict) -> np.ndarray:
    style = str(data.get("AtomTypeStyle", "chemicalsymbol")).lower()
    types = data["AtomTypes"]
    if style == "chemicalsymbol":
        unknown = [t for t in types if t not in atomic_numbers or t == "X"]
        if unknown:
            raise ValueError(f"AtomTypes: {unknown[0]!r} is no chemical element")
        return np.array([atomic_numbers[t] for t in types], dtype=np.int64)
    if style == "atomicnumber":
        unknown = [t for t in types if not 0 < int(t) < len(chemical_symbols)]
        if unknown:
            raise ValueError(f"AtomTypes: {unknown[0]!r} is no atomic number")
        return np.array(types, dtype=np.int64)
    raise ValueError(f"AtomTypeStyle {style!r} is not known; use chemicalsymbol or atomicnumber")


def _unit(data: dict, name: str, names: dict[str, str]) -> str | None:
    """Our name of the unit in `<name>Style`; None without such an entry."""
    style = data.get(f"{name}Style")
    if style is None:
        return None
    if str(style).lower() not in names:
        raise ValueError(f"unknown {name}Style {style!r}; known are {', '.join(names)}")
    return names[str(style).lower()]


def _forces_unit(data: dict) -> str | None:
    """Of `electronvoltperangstrom` and the like: energy, "per", length."""
    style = data.get("ForcesStyle")
    if style is None:
        return None
    energy, _, length = str(style).lower().rpartition("per")
    if energy not in ENERGIES or length not in LENGTHS:
        raise ValueError(f"unknown ForcesStyle {style!r}; such as electronvoltperangstrom")
    return f"{ENERGIES[energy]}/{LENGTHS[length]}"
