"""FitSNAP's JSON: a `Dataset` with one or more structures and the units they are in.

The file may begin with comment lines. Lattice vectors stand in rows; the stress (3, 3) has the
sign of a pressure (positive = compression: it is compared with LAMMPS' virial pressure), in bar
unless its header says otherwise. FitSNAP names the group of a structure by the folder of its file.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.formats.format import Format, LabelledFile
from schnetpack_softadapt.data.formats.units import LabelUnits
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["FORMAT"]

#: names of units in FitSNAP's headers, and ours
ENERGIES = {"electronvolt": "eV", "ev": "eV", "hartree": "Ha", "rydberg": "Ry"}
ENERGIES |= {"kcalpermol": "kcal/mol", "kcalpermole": "kcal/mol", "kcal/mol": "kcal/mol"}
LENGTHS = {"angstrom": "Ang", "ang": "Ang", "bohr": "Bohr", "nanometer": "nm", "nm": "nm"}
STRESSES = {"bar": "bar", "kb": "kbar", "kbar": "kbar", "kilobar": "kbar", "gpa": "GPa"}
STRESSES |= {"gigapascal": "GPa", "mpa": "MPa", "pascal": "Pa", "pa": "Pa"}
FORCES = {f"{e}per{x}": f"{ENERGIES[e]}/{LENGTHS[x]}" for e in ENERGIES for x in LENGTHS}
FRACTIONAL = ("fractional", "relative", "scaled", "direct")
NEEDED = ("Positions", "AtomTypes", "Lattice", "Energy")
SHAPES = {"Lattice": (3, 3), "Stress": (3, 3)}


def _is_fitsnap(path: Path, text: str) -> bool:
    """Whether it is a JSON object, after comment lines, whose first name is `Dataset`."""
    body = _without_comments(text)
    return body.startswith("{") and body[1:].lstrip().startswith('"Dataset"')


def _without_comments(text: str) -> str:
    """The text from its first line that is neither empty nor a comment."""
    text = text.lstrip("\ufeff \t\r\n")
    while text.startswith("#"):
        text = text.partition("\n")[2].lstrip()
    return text


def _members(file: LabelledFile) -> Iterator[dict]:
    content = json.loads(_without_comments(file.path.read_text(encoding="utf-8")))
    if not isinstance(content, dict) or "Dataset" not in content:
        raise ValueError("no 'Dataset' in the file")
    header = content["Dataset"]
    if "Data" not in header:
        raise ValueError("no 'Data' in the 'Dataset'")
    for data in header["Data"]:
        yield {**header, **data}


def _structure(data: dict, file: LabelledFile) -> dict:
    missing = [k for k in NEEDED if k not in data]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the structure")
    is_fractional = str(data.get("PositionsStyle", "")).lower() in FRACTIONAL
    stated = {
        "energy_unit": _unit(data, "Energy", ENERGIES),
        "length_unit": _unit(data, "Lattice", LENGTHS),
        "forces_unit": _unit(data, "Forces", FORCES),
        "stress_unit": _unit(data, "Stress", STRESSES),
    }
    if not is_fractional and file.options.length_unit is None:
        unit, lattice_unit = _unit(data, "Positions", LENGTHS), stated["length_unit"]
        if unit != lattice_unit and None not in (unit, lattice_unit):
            raise ValueError(f"positions in {unit} but lattice in {lattice_unit}; convert one")
    if "StressStyle" not in data and "Stress" in data and file.options.stress_unit is None:
        file.remarks.append(f"has no StressStyle; stress taken to be in {FORMAT.units.stress_unit}")
    numbers = _numbers(data)
    n_atoms = data.get("NumAtoms", len(numbers))
    if n_atoms != len(numbers):
        raise ValueError(f"NumAtoms is {n_atoms}, but there are {len(numbers)} AtomTypes")
    cell = _array(data, "Lattice", n_atoms)
    positions = _array(data, "Positions", n_atoms)
    labels = {k: _array(data, k, n_atoms) for k in ("Forces", "Stress") if k in data}
    labels["Energy"] = data["Energy"]
    return {
        "numbers": numbers,
        "positions": positions @ cell if is_fractional else positions,
        "cell": cell,
        "pbc": True,
        "labels": [labels],
        "usual": {"energy": "Energy", "forces": "Forces", "stress": "Stress"},
        "units": stated,
        "group": file.path.absolute().parent.name,
        "entries": {k: v for k, v in data.items() if isinstance(v, str | int | float)},
    }


def _array(data: dict, key: str, n_atoms: int) -> np.ndarray:
    shape = SHAPES.get(key, (n_atoms, 3))
    try:
        values = np.array(data[key], dtype=np.float64)
    except ValueError:
        raise ValueError(f"{key} is no array of numbers of shape {shape}") from None
    if values.shape != shape:
        raise ValueError(f"{key} has shape {values.shape}, not {shape}")
    return values


def _numbers(data: dict) -> list[int]:
    style = str(data.get("AtomTypeStyle", "chemicalsymbol")).lower()
    kind = {"chemicalsymbol": str, "atomicnumber": int}.get(style)
    if kind is None:
        raise ValueError(
            f"AtomTypeStyle {style!r} is not known; use chemicalsymbol or atomicnumber"
        )
    try:
        return [atomic_number(kind(t)) for t in data["AtomTypes"]]
    except ValueError as error:
        raise ValueError(f"AtomTypes: {error}") from None


def _unit(data: dict, name: str, names: dict[str, str]) -> str | None:
    """Our name of the unit in `<name>Style`; None without such an entry."""
    style = data.get(f"{name}Style")
    if style is None or (name == "Positions" and str(style).lower() in FRACTIONAL):
        return None
    if str(style).lower() not in names:
        raise ValueError(f"unknown {name}Style {style!r}; known are {', '.join(names)}")
    return names[str(style).lower()]


FORMAT = Format(
    "fitsnap",
    "JSON",
    _members,
    _structure,
    _is_fitsnap,
    LabelUnits(stress_unit="bar", stress_sign=-1),
    states_units=True,
)
