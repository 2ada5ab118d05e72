"""Labelled structures from files: a registry of readers, and the reader of whatever ASE reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype
from tqdm import tqdm

from .conventions import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    stress_matrix,
    stress_order,
    unit_factor,
)
from .structures import Structure

__all__ = ["READERS", "ImportOptions", "file_of", "read_ase", "read_files"]

VASP_FORMATS = ("vasp-out", "vasp-xml")
NONE = "none"


@dataclass
class ImportOptions:
    """How labels stand in the files; the defaults are what ASE's readers return.

    Attributes:
        format: a name in `READERS`; "ase" reads everything that `ase.io` knows.
        energy_key, forces_key, stress_key: names in the calculator, `info` or `arrays` of the
            structures; None for the usual ones, "none" to leave a label out. The usual energy is
            `energy`, but for VASP's own files `free_energy`, which their forces derive from.
        energy_unit, length_unit, forces_unit, stress_unit: as in `conventions`; forces and stress
            follow from energy and length when not given.
        stress_sign: -1 if positive means compression.
        stress_order: order of the stress where it is given as six numbers.
        group_key: `info` entry that names the group; None: `group` or `config_type`, else the file.
        split_keys: `info` entries that must agree only within one subset of a split.
    """

    format: str = "ase"
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    energy_unit: str = "eV"
    length_unit: str = "Ang"
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: int = 1
    stress_order: str = "voigt"
    group_key: str | None = None
    split_keys: tuple[str, ...] = ()

    def __post_init__(self):
        if self.format not in READERS:
            raise ValueError(f"unknown format {self.format!r}; choose from {', '.join(READERS)}")
        if self.stress_sign not in (-1, 1):
            raise ValueError(f"the sign of the stress is +1 or -1, not {self.stress_sign}")
        self.energy_factor = unit_factor(self.energy_unit, ENERGY_UNITS, "energy")
        self.length_factor = unit_factor(self.length_unit, LENGTH_UNITS, "length")
        self.forces_factor = self.energy_factor / self.length_factor
        if self.forces_unit is not None:
            energy, _, length = self.forces_unit.rpartition("/")
            self.forces_factor = unit_factor(energy, ENERGY_UNITS, "force's energy")
            self.forces_factor /= unit_factor(length, LENGTH_UNITS, "force's length")
        self.stress_factor = self.energy_factor / self.length_factor**3
        if self.stress_unit is not None:
            self.stress_factor = unit_factor(self.stress_unit, STRESS_UNITS, "stress")
        self.stress_factor *= self.stress_sign
        self.stress_components = stress_order(self.stress_order)


def read_files(
    files: list[str | Path], options: ImportOptions, progress: bool = False
) -> tuple[list[Structure], list[str], list[str]]:
    """Read all structures of all files.

    Each structure's `info` gets `file`, `index` (position in the file, from 0) and, with
    `split_keys`, `strain_state`.

    Returns:
        structures; problems of single structures, each naming file and index; remarks on how the
        labels were understood.

    Raises:
        ValueError: a file cannot be read, or holds no structures.
    """
    structures: list[Structure] = []
    problems: list[str] = []
    remarks: list[str] = []
    reader = READERS[options.format]
    with tqdm(desc="reading", unit=" structures", disable=not progress) as bar:
        for file in files:
            bar.set_postfix_str(file_of(file).name)
            index = 0
            try:
                for item in reader(file, options, remarks):
                    if isinstance(item, Structure):
                        item.info.update(file=str(file), index=index)
                        structures.append(item)
                    else:
                        problems.append(f"{file}, structure {index}: {item}")
                    index += 1
                    bar.update()
            except Exception as error:  # parsers of many formats raise anything at all
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{file} cannot be read from structure {index} on ({reason})"
                ) from error
            if index == 0:
                raise ValueError(f"{file} holds no structures")
    return structures, problems, list(dict.fromkeys(remarks))


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
    largest_difference = 0.0
    for atoms in frames:
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        if options.energy_key is None and {"energy", "free_energy"} <= results.keys():
            difference = abs(results["energy"] - results["free_energy"]) / max(len(atoms), 1)
            largest_difference = max(largest_difference, difference)
        try:
            yield _convert(atoms, results, options, energy_key, path, kind == "extxyz")
        except ValueError as error:
            yield str(error)
    if largest_difference > 1e-6 and energy_key is None:
        remarks.append(
            f"{path.name}: took `energy`; `free_energy` differs by up to"
            f" {1e3 * largest_difference:.3g} meV/atom, and forces derive from the latter"
            " (--energy-key free_energy)"
        )


#: reader by name: yields structures, or a text saying what is wrong with one; may add remarks
READERS: dict[str, Callable[[str | Path, ImportOptions, list[str]], Iterator[Structure | str]]] = {
    "ase": read_ase
}


def _convert(
    atoms: Atoms,
    results: dict,
    options: ImportOptions,
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
        forces = np.asarray(forces, dtype=np.float64) * options.forces_factor
    if stress is not None:
        order = options.stress_components
        if is_extxyz and (options.stress_key or "stress") in results:
            order = stress_order("voigt")  # there it stands as nine numbers, which ASE reduced
        stress = stress_matrix(stress, order, options.stress_factor)
    info = {}
    if options.split_keys:
        info["strain_state"] = " ".join(str(_info(atoms, k, "split")) for k in options.split_keys)
    if options.group_key is not None:
        group = _info(atoms, options.group_key, "group")
    else:
        group = atoms.info.get("group", atoms.info.get("config_type", path.stem))
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions * options.length_factor,
        cell=atoms.cell.array * options.length_factor,
        pbc=atoms.pbc,
        energy=float(np.ravel(energy)[0]) * options.energy_factor,
        forces=forces,
        stress=stress,
        group=str(group),
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


def _info(atoms: Atoms, key: str, what: str):
    if key not in atoms.info:
        known = ", ".join(map(str, atoms.info)) or "no entries"
        raise ValueError(f"no {key!r} to {what} by; its info has {known}")
    return atoms.info[key]


def file_of(file: str | Path) -> Path:
    """The file meant by ASE's notation `file@index`."""
    path = Path(file)
    return path if path.exists() or "@" not in path.name else Path(str(file).rpartition("@")[0])
