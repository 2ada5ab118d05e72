"""Labelled structures from whatever ASE reads."""

import io
import re
from collections.abc import Iterator

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression
from ase.stress import voigt_6_to_full_3x3_stress

from schnetpack_softadapt.data.formats.format import Format, LabelledFile

__all__ = ["COMPRESSED", "FORMAT"]

COMPRESSED = (".gz", ".xz", ".bz2")
VASP_FORMATS = ("vasp-out", "vasp-xml")
#: settings as they stand in OUTCAR (`ENCUT  =  520.0 eV`) and vasprun.xml (`name="ENCUT"> 520.0<`)
VASP_SETTINGS = re.compile(
    r"\b(ENCUT|ENMAX|GGA|METAGGA|LEXCH|IVDW|KSPACING)\b(?: *=|\"[^>\n]*>) *([\w.+-]*\w)"
)
VASP_MESH = re.compile(r"(?:generate k-points for:|name=\"divisions\">) *(\d+) +(\d+) +(\d+)")
VASP_POTENTIALS = re.compile(r"(?:TITEL *= *|<c> *)(PAW\w* [\w.]+)")
VASP_HEADER = 4_000_000  # characters; forces come later


def _frames(file: LabelledFile) -> Iterator[tuple[Atoms, str]]:
    """Structures, and the name of the format that ASE gives them."""
    try:
        kind = filetype(str(file.path))
    except UnknownFileTypeError:
        raise ValueError("format not recognised by ASE") from None
    has_usual_energy = file.options.energy_key is None
    if has_usual_energy and kind in VASP_FORMATS:
        file.remarks.append(
            "energies are VASP's free energies (TOTEN), which its forces derive from"
        )
    stream = str(file.path)
    if kind == "extxyz" and file.path.suffix in COMPRESSED:
        # ASE jumps back to each frame, and would decompress what is before it each time
        with open_with_compression(stream, "r") as compressed:
            stream = io.StringIO(compressed.read())
    calculator = _vasp_settings(file) if kind in VASP_FORMATS else None
    difference = 0.0
    frames = file.frames or ":"
    for atoms in ase.io.iread(stream, frames, kind, do_not_split_by_at_sign=True):
        results = atoms.calc.results if atoms.calc is not None else {}
        if {"energy", "free_energy"} <= results.keys():
            here = abs(results["energy"] - results["free_energy"]) / max(len(atoms), 1)
            difference = max(difference, here)
        if calculator is not None:
            atoms.info["calculator"] = calculator
        elif results and "calculator" not in atoms.info:
            name, parameters = getattr(atoms.calc, "name", None), dict(atoms.calc.parameters)
            if parameters or name not in (None, "unknown"):
                atoms.info["calculator"] = {"name": name, **parameters}
        yield atoms, kind
    if difference > 1e-6 and has_usual_energy and kind not in VASP_FORMATS:
        file.remarks.append(
            f"took `energy`; `free_energy` differs by up to {1e3 * difference:.3g} meV/atom, and"
            " forces derive from the latter (--energy-key free_energy)"
        )


def _vasp_settings(file: LabelledFile) -> dict:
    """Functional, cutoff, potentials and k points, from the beginning of OUTCAR or vasprun.xml."""
    with open_with_compression(str(file.path), "r") as stream:
        text = stream.read(VASP_HEADER)
    found: dict = {"name": "vasp"}
    for name, value in VASP_SETTINGS.findall(text):
        found.setdefault(name.lower(), value)
    if "encut" in found:
        found.pop("enmax", None)  # of a potential
    mesh = VASP_MESH.search(text)
    if mesh is not None:
        found["kpts"] = [int(k) for k in mesh.groups()]
        found.pop("kspacing", None)  # its default is printed too
    potentials = sorted(set(VASP_POTENTIALS.findall(text)))
    return {**found, "potcar": potentials} if potentials else found


def _structure(frame: tuple[Atoms, str], file: LabelledFile) -> dict:
    atoms, kind = frame
    # not `get_forces()`, which puts zeros on constrained atoms
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    if kind == "extxyz" and np.shape(results.get("stress")) == (6,):
        # there it stands as nine numbers, which ASE reduced
        results["stress"] = voigt_6_to_full_3x3_stress(results["stress"])
    return {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "labels": (results, atoms.info, atoms.arrays),
        "usual": {"energy": "free_energy"} if kind in VASP_FORMATS else {},
        "entries": atoms.info,
    }


FORMAT = Format("ase", "anything that ASE reads", _frames, _structure)  # its readers convert units
