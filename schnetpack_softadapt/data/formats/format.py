"""What a file format is, which there are, and reading structures by them.

Another package adds a format by an entry point of the group `schnetpack_softadapt.formats` that
names its `Format`. A format only says where the numbers stand in a file and in which units; names,
units, signs, orders and groups that the user gives are applied here to all of them alike.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from schnetpack_softadapt.data.formats.units import LabelUnits, stress_matrix, stress_order
from schnetpack_softadapt.data.provenance import calculator_text
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import shortened

__all__ = [
    "AUTO",
    "NONE",
    "Format",
    "ImportOptions",
    "LabelledFile",
    "format_of",
    "known_formats",
    "option_help",
    "read_files",
]

log = logging.getLogger(__name__)

GROUP = "schnetpack_softadapt.formats"
OWN = ("ase", "runner", "mlearn", "fitsnap", "dpdata")
AUTO = "auto"
NONE = "none"  # as the name of a label: leave it out
VIRIAL_KEYS = ("virial", "virials")  # of GAP, DeePMD and GPUMD; of MACE and dpdata
N_CHARACTERS_LOOKED_AT = 4096

#: for the help: what the user may give for each field of `LabelUnits`
CHOICES = {
    "energy_unit": "eV, Ha, Ry, kcal/mol..",
    "length_unit": "Ang, Bohr, nm",
    "forces_unit": "such as Ha/Bohr",
    "stress_unit": "eV/Ang^3, GPa, kbar, Ha/Bohr^3..",
    "stress_sign": "1: positive = tension (ASE), -1: positive = compression (VASP, pressures)",
    "stress_order": "of six numbers: voigt (xx yy zz yz xz xy), vasp (xx yy zz xy yz zx), lammps"
    " (xx yy zz xy xz yz), or the six components in quotes",
}


@dataclass(frozen=True)
class Format:
    """How files of one kind are recognised and read.

    Attributes:
        name: as the user names it with `--format`.
        description: of the files, for the help.
        frames: yields what `structure` needs of each structure of a file.
        structure: the numbers of one structure as they stand in the file: `numbers`, `positions`,
            `cell`, `pbc`; `labels`, mappings that hold energy, forces and stress (six or nine
            numbers) or virial (-volume * stress, an energy), of which the first counts that has
            one; `usual`, the names of labels that are not just these; `entries`, by which the user
            may group and split; `group` and `units` (fields of `LabelUnits`) where the file states
            them. Raises ValueError where they make no sense, KeyError with the name of what is
            missing.
        detect: whether a file is unmistakably of this format, from its path and the text that it
            begins with; None where the user has to name the format.
        units: what holds unless the file or the user says otherwise.
        states_units: for the help: files say which units they are in.
        argument: what the user adds to the name after a colon, for the help; empty: nothing.
        takes_folders: a folder is one set of data.
    """

    name: str
    description: str
    frames: "Callable[[LabelledFile], Iterator[Any]]"
    structure: "Callable[[Any, LabelledFile], dict]"
    detect: Callable[[Path, str], bool] | None = None
    units: LabelUnits = field(default_factory=LabelUnits)
    states_units: bool = False
    argument: str = ""
    takes_folders: bool = False


@cache
def known_formats() -> dict[str, Format]:
    """All formats by name: this package's, and those of other installed packages."""
    own = [EntryPoint(name, f"{__package__}.{name}:FORMAT", GROUP) for name in OWN]
    found = {}
    for point in (*own, *entry_points(group=GROUP)):
        try:
            record = point.load()
            found.setdefault(record.name, record)
        except Exception as error:  # whatever is wrong with another package
            log.warning("the format %s (%s) cannot be used: %r", point.name, point.value, error)
    return found


@dataclass
class ImportOptions:
    """What the user says about the files; None: as is usual in their format.

    Attributes:
        format: "auto", or a name of `known_formats`, followed by a colon and what it needs.
        energy_key, forces_key, stress_key: names of the labels; None for the usual ones, "none" to
            leave a label out. A stress of a name such as `virial` is -volume * stress, an energy.
        energy_unit, length_unit, forces_unit, stress_unit, stress_sign, stress_order: as in
            `LabelUnits`.
        group_key: entry that names the group; None: `group` or `config_type`, else the file
            or its folder.
        split_keys: entries that must agree only within one subset of a split.
    """

    format: str = AUTO
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: int | None = None
    stress_order: str | None = None
    group_key: str | None = None
    split_keys: tuple[str, ...] = ()

    def __post_init__(self):
        name, _, argument = self.format.partition(":")
        if name != AUTO:
            known = known_formats()
            if name not in known:
                names = ", ".join([AUTO, *known])
                raise ValueError(f"unknown format {self.format!r}; choose from {names}")
            if bool(argument) != bool(known[name].argument):
                wanted = f"{name}:{known[name].argument}" if known[name].argument else name
                raise ValueError(f"--format {self.format}: give {wanted}")
        self.units(LabelUnits())  # a misspelt unit is an error before any file is read

    @property
    def record(self) -> Format | None:
        """The format that the user names; None for that of each file."""
        return known_formats().get(self.format.partition(":")[0])

    def units(self, usual: LabelUnits, stated: Mapping = {}) -> LabelUnits:
        """Units of labels: what the user gave, else what the file states, else what is usual."""
        values = []
        for name in (f.name for f in fields(LabelUnits)):
            candidates = (getattr(self, name), stated.get(name), getattr(usual, name))
            values.append(next((value for value in candidates if value is not None), None))
        return _label_units(*values)


_label_units = cache(LabelUnits)  # mostly one for all structures of a file


@dataclass
class LabelledFile:
    """A file to read, or a folder where its format takes folders.

    Attributes:
        path: the file.
        frames: which of its structures, in ASE's notation; None for all.
        group: group of structures that do not name theirs.
        options: what the user says about it.
        remarks: how labels were understood; the user sees each once.
    """

    path: Path
    frames: str | None
    group: str
    options: ImportOptions = field(default_factory=ImportOptions)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.path) if self.frames is None else f"{self.path}@{self.frames}"


def format_of(file: str | Path, options: ImportOptions) -> Format:
    """The format of a file: the one asked for, else by its content, else ASE's."""
    if options.record is not None:
        return options.record
    path = Path(file)
    with open(path, "rb") as stream:
        start = stream.read(N_CHARACTERS_LOOKED_AT)
    if b"\0" not in start:  # else a binary file, which ASE knows
        text = start.decode("utf-8", errors="replace")
        for record in known_formats().values():
            if record.detect is not None and record.detect(path, text):
                return record
    return known_formats()["ase"]


def read_files(
    files: Sequence[LabelledFile], options: ImportOptions
) -> tuple[list[Structure], list[str], list[str]]:
    """Read all structures of all files.

    Each structure's `info` gets `file`, `format`, `index` (position in what is read of the file,
    from 0) and, with `split_keys`, `strain_state`.

    Returns:
        structures; problems of single structures, each naming file and index; remarks on how the
        labels were understood, each with the files that it holds for.

    Raises:
        ValueError: a file cannot be read, or holds no structures.
    """
    structures: list[Structure] = []
    problems: list[str] = []
    files_of_remark: dict[str, list[str]] = {}
    # one large file shows its structures, many show how many of them are done
    unit, total = (" structures", None) if len(files) == 1 else (" files", len(files))
    with tqdm(desc="reading", unit=unit, total=total, delay=1, disable=None) as bar:
        for file in files:
            file.options, index = options, 0
            record = format_of(file.path, options)
            try:
                for frame in record.frames(file):
                    try:
                        structure = _structure(record.structure(frame, file), record, file)
                        structure.info.update(file=str(file), format=record.name, index=index)
                        structures.append(structure)
                    except (KeyError, TypeError, ValueError) as error:
                        reason = f"no {error}" if isinstance(error, KeyError) else error
                        problems.append(f"{file}, structure {index}: {reason}")
                    index += 1
                    bar.update(total is None)
            except ImportError as error:
                raise ValueError(f"--format {options.format}: {error}") from error
            except Exception as error:  # parsers of many formats raise anything at all
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{file} cannot be read from structure {index} on ({reason})"
                ) from error
            if index == 0:
                raise ValueError(f"{file} holds no structures")
            for remark in dict.fromkeys(file.remarks):
                files_of_remark.setdefault(remark, []).append(file.path.name)
            bar.update(total is not None)
    found = files_of_remark.items()
    remarks = [f"{' '.join(shortened(names, 1))}: {text}" for text, names in found]
    return structures, problems, remarks


def _structure(raw: dict, record: Format, file: LabelledFile) -> Structure:
    """A structure in ASE's units from numbers as they stand in a file."""
    options, stated = file.options, raw.get("units", {})
    units, plain = options.units(record.units, stated), options.units(LabelUnits(), stated)
    if (units.energy_unit, units.length_unit) != (plain.energy_unit, plain.length_unit):
        file.remarks.append(
            f"lengths in {units.length_unit}, energies in {units.energy_unit}, as is usual in"
            f" {record.name} files (else --length-unit, --energy-unit)"
        )
    energy, forces = (_label(name, raw, options) for name in ("energy", "forces"))
    if np.size(energy) != 1:
        raise ValueError(f"energy has shape {np.shape(energy)}")
    cell = np.asarray(raw["cell"], dtype=np.float64) * units.length_factor
    entries = raw.get("entries", {})
    group = entries.get("group", entries.get("config_type", raw.get("group", file.group)))
    if options.group_key is not None:
        group = _entry(entries, options.group_key, "group")
    info = {}
    if options.split_keys:
        values = [str(_entry(entries, key, "split")) for key in options.split_keys]
        info["strain_state"] = " ".join(values)
    calculator = calculator_text(entries.get("calculator"))
    if calculator is not None:
        info["calculator"] = calculator
    return Structure(
        numbers=raw["numbers"],
        positions=np.asarray(raw["positions"], dtype=np.float64) * units.length_factor,
        cell=cell,
        pbc=raw["pbc"],
        energy=float(np.ravel(energy)[0]) * units.energy_factor,
        forces=None if forces is None else np.asarray(forces, np.float64) * units.forces_factor,
        stress=_stress(raw, units, cell, file),
        group=str(group),
        info=info,
    )


def _stress(raw: dict, units: LabelUnits, cell: np.ndarray, file: LabelledFile):
    """Stress (3, 3) in eV/Ang^3, also from a virial; None without."""
    # a virial of each atom has the name of that of the cell
    names = {
        name
        for labels in raw["labels"]
        for name, value in labels.items()
        if name not in VIRIAL_KEYS or np.size(value) in (6, 9)
    }
    key, order = file.options.stress_key, stress_order(units.stress_order)
    if key is None and raw.get("usual", {}).get("stress", "stress") not in names:
        key = next((k for k in VIRIAL_KEYS if k in names), None)
    values = _label("stress", raw, file.options, key)
    # `virial_stress` is a stress
    is_virial = key is not None and "virial" in key.lower() and "stress" not in key.lower()
    if values is None or not is_virial:
        return None if values is None else stress_matrix(values, order, units.stress_factor)
    if file.options.stress_unit is not None:
        raise ValueError(f"{key!r} is a virial, an energy: --stress-unit does not apply to it")
    sign = file.options.stress_sign or -1
    file.remarks.append(
        f"stress is {'-' if sign < 0 else ''}{key} / volume, a virial in {units.energy_unit} that"
        f" is positive in {'compression' if sign < 0 else 'tension'} (else --stress-sign {-sign})"
    )
    # without a volume there is no stress, only a placeholder
    volume = abs(np.linalg.det(cell)) or np.nan
    return stress_matrix(values, order, sign * units.energy_factor / volume)


def _label(name: str, raw: dict, options: ImportOptions, key: str | None = None):
    """A label by the name that the user gave, else by its usual one; None if it may be missing."""
    given, is_needed = getattr(options, f"{name}_key"), name == "energy"
    if given == NONE and not is_needed:
        return None
    wanted = given or key or raw.get("usual", {}).get(name, name)
    for labels in raw["labels"]:
        if labels.get(wanted) is not None:
            return labels[wanted]
    if given is None and not is_needed:
        return None
    known = sorted(set().union(*raw["labels"]) - {"numbers", "positions"})
    raise ValueError(
        f"no {name}: there is no {wanted!r} among {', '.join(known) or 'its labels (it has none)'};"
        f" name the right one with --{name}-key"
    )


def _entry(entries: Mapping, key: str, what: str):
    if key not in entries:
        known = ", ".join(map(str, entries)) or "no entries"
        raise ValueError(f"no {key!r} to {what} by; its info has {known}")
    return entries[key]


def option_help() -> dict[str, str]:
    """Help of the command-line options that depend on the formats, by their names."""
    records = list(known_formats().values())
    names = [f"{r.name}{':' * bool(r.argument)}{r.argument} ({r.description})" for r in records]
    texts = {"format": f"auto (default: by the content), {', '.join(names)}"}
    stating = ", ".join(r.name for r in records if r.states_units)
    for option, choice in CHOICES.items():
        usual = getattr(LabelUnits, option)
        others = [r for r in records if getattr(r.units, option) != usual]
        parts = [f"{getattr(r.units, option)} in {r.name}" for r in others]
        parts += [f"what the file states in {stating}"] * option.endswith("unit")
        text = f"{choice}; default: {usual or 'from energy and length'}"
        texts[option] = f"{text}, but {', '.join(parts)}" if parts else text
    return texts
