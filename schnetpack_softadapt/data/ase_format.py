"""Labelled structures from whatever ASE reads."""

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype

from .conventions import stress_matrix, stress_order
from .import_options import NONE, ImportOptions, LabelUnits
from .structures import Structure

__all__ = ["file_of", "read_ase"]

VASP_FORMATS = ("vasp-out", "vasp-xml")


def read_ase(
    file: str | Path, options: ImportOptions, remarks: list[str]
) -> Iterator[Structure | str]:
    """Yield the structures of a file that `ase.io` reads, or why one could not be understood."""
    path = file_of(file)
    try:
        kind = filetype(str(path))
    except UnknownFileTypeError:
        raise ValueError("format not recognised by ASE") from None
    energy_key = options.energy_key
    if energy_key is None and kind in VASP_FORMATS:
        energy_key = "free_energy"
        remarks.append(
            f"{path.name}: energies are VASP's free energies (TOTEN), which its forces derive from"
        )
    is_selection = "@" in str(file) and not Path(file).exists()
    frames = ase.io.iread(str(file), index=None if is_selection else ":")
    units = options.units("ase")
    largest_difference = 0.0
    for atoms in frames:
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        if options.energy_key is None and {"energy", "free_energy"} <= results.keys():
            difference = abs(results["energy"] - results["free_energy"]) / max(len(atoms), 1)
            largest_difference = max(largest_difference, difference)
        try:
            yield _convert(atoms, results, options, units, energy_key, path, kind == "extxyz")
        except ValueError as error:
            yield str(error)
    if largest_difference > 1e-6 and energy_key is None:
        remarks.append(
            f"{path.name}: took `energy`; `free_energy` differs by up to"
            f" {1e3 * largest_difference:.3g} meV/atom, and forces derive from the latter"
            " (--energy-key free_energy)"
        )


def file_of(file: str | Path) -> Path:
    """The file meant by ASE's notation `file@index`."""
    path = Path(file)
    return path if path.exists() or "@" not in path.name else Path(str(file).rpartition("@")[0])


def _convert(
    atoms: Atoms,
    results: dict,
    options: ImportOptions,
    units: LabelUnits,
    energy_key: str | None,
    path: Path,
    is_extxyz: bool,
) -> Structure:
    """Labels of one structure in ASE's units; raises ValueError where they make no sense."""
    energy = _label(atoms, results, energy_key, "energy", required=True)
    # not `get_forces()`, which puts zeros on constrained atoms
    forces = _label(atoms, results, options.forces_key, "forces")
    stress = _label(atoms, results, options.stress_key, "stress")
    if np.size(energy) != 1:
        raise ValueError(f"energy has shape {np.shape(energy)}")
    if forces is not None:
        if np.size(forces) == 3 * len(atoms):
            forces = np.reshape(forces, (-1, 3))
        forces = np.asarray(forces, dtype=np.float64) * units.forces_factor
    if stress is not None:
        order = units.stress_components
        if is_extxyz and (options.stress_key or "stress") in results:
            order = stress_order("voigt")  # there it stands as nine numbers, which ASE reduced
        stress = stress_matrix(stress, order, units.stress_factor)
    group, info = options.entries(atoms.info, path.stem)
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions * units.length_factor,
        cell=atoms.cell.array * units.length_factor,
        pbc=atoms.pbc,
        energy=float(np.ravel(energy)[0]) * units.energy_factor,
        forces=forces,
        stress=stress,
        group=group,
        info=info,
    )


def _label(atoms: Atoms, results: dict, key: str | None, name: str, required: bool = False):
    """Value of a label, or None where it may be missing."""
    if key == NONE and not required:
        return None
    wanted = key or name
    for place in (results, atoms.info, atoms.arrays):
        if wanted in place:
            return place[wanted]
    if key is None and not required:
        return None
    known = sorted({*results, *atoms.info, *atoms.arrays} - {"numbers", "positions"})
    raise ValueError(
        f"no {name}: there is no {wanted!r} among {', '.join(known) or 'its labels (it has none)'};"
        f" name the right one with --{name}-key"
    )
