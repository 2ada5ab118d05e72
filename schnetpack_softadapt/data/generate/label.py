"""Labels for any list of structures."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.executors import Spec
from schnetpack_softadapt.data.formats.format import ImportOptions, format_of
from schnetpack_softadapt.data.generate.journal import Task, compute, journal_of
from schnetpack_softadapt.data.generate.labelling import import_calculator
from schnetpack_softadapt.data.generate.labelling import label as label_one
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import shortened
from schnetpack_softadapt.files import locked, replacing

__all__ = ["LabelResult", "ToLabel", "label", "label_all", "labels_journal", "read_geometries"]


@dataclass
class LabelResult:
    """What came of a list of structures.

    Attributes:
        labelled: structures with labels, all of them, in the order of the list; their
            `info["calculator"]` is name and arguments, as JSON.
        n_new: how many of these were labelled now.
        skipped: key and reason of structures that were not worth labelling.
        failed: key and reason of structures whose calculation failed.
    """

    labelled: list[Atoms] = field(default_factory=list)
    n_new: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"labelled     {len(self.labelled)} ({self.n_new} of them now)"]
        for name, reasons in (("skipped", self.skipped), ("failed", self.failed)):
            if reasons:
                lines.append(f"{name:<12} {len(reasons)}")
                shown = shortened([f"{key}: {reason}" for key, reason in reasons.items()], 20)
                lines += [f"  {text}" for text in shown]
        return "\n".join(lines)


@dataclass
class ToLabel:
    """A structure to label.

    Attributes:
        name: for messages.
        atoms: the structure.
        arguments: keyword arguments of the calculator; "{worker}" in a text becomes the name of the
            process, for calculators that write files into a directory of their own.
        key: by which its result is found again; the digest if not given.
    """

    name: str
    atoms: Atoms
    arguments: dict
    key: str | None = None

    def task(self, calculator: str) -> Task:
        digest = _digest(self.atoms, [calculator, self.arguments])
        return Task(self.key or digest, digest, (self.atoms, calculator, self.arguments))


def label(
    structures: Sequence[str | Path] | Mapping[str, Atoms],
    calculator: str,
    out: str | Path,
    calculator_args: dict | None = None,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> LabelResult:
    """Label structures that have no labels of this calculator yet, and write all that have.

    Results are kept in `<out>.journal` by geometry and calculator: the same call goes on after an
    interruption, with more structures or after failures, in any order of structures.

    Args:
        structures: files, folders and patterns as for `import`, or structures by name.
        calculator: "module:name" of a class or function that makes an ASE calculator, or
            `labelling.COMMAND` for an external program.
        out: extended XYZ, or a database (.db) in SchNetPack's format; written at the end.
        calculator_args: keyword arguments, see `ToLabel`.
        executor, timeout, retries: see `executors.run_all`.
        overwrite: replace an `out` that no earlier run made; results in a journal are kept.
        say: gets the messages for the user.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, a wrong setting, another process at work on the same
            file, or nothing could be labelled.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out, arguments = Path(out), calculator_args or {}
    journal = labels_journal(out, calculator, [arguments], overwrite)
    if not isinstance(structures, Mapping):
        structures = dict(read_geometries(structures))
    todo = [ToLabel(name, atoms, arguments) for name, atoms in structures.items()]
    how = {"executor": executor, "timeout": timeout, "retries": retries, "say": say}
    with locked(journal):
        about = f"labels by {calculator} {arguments}"
        return label_all(todo, calculator, out, journal, about, **how)


def labels_journal(
    out: Path, calculator: str | None, arguments: Sequence[Mapping], overwrite: bool
) -> Path:
    """Where the labels for a file are kept, after a look at what the user gave.

    Raises:
        ValueError: no calculator, a wrong name, or wrong ones among its `arguments`.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    if calculator is None:
        raise ValueError("no calculator; give --calculator module:name")
    for each in arguments:  # a mistake is an error now, not once per structure
        import_calculator(calculator, each)
    return journal_of(out, overwrite, (".extxyz", ".xyz", ".db"))


def label_all(
    structures: Sequence[ToLabel],
    calculator: str,
    out: Path,
    journal: Path,
    provenance: str,
    skipped: Mapping[str, str] = {},
    say: Callable[[str], None] = print,
    **how,
) -> LabelResult:
    """Label what a journal has no labels for, and write all that is labelled.

    `provenance` goes into a database, `skipped` into the result, `how` to `journal.compute`.

    Raises:
        ValueError: nothing could be labelled.
    """
    result = LabelResult(skipped=dict(skipped))
    tasks = [s.task(calculator) for s in structures]
    records, result.n_new = compute(label_one, tasks, journal, doing="labelling", say=say, **how)
    for s, task in zip(structures, tasks, strict=True):
        record = records[task.key]
        if "error" in record:
            result.failed[s.name] = record["error"]
            continue
        labels = {name: record[name] for name in ("energy", "forces", "stress")}
        labels = {name: np.array(v) for name, v in labels.items() if v is not None}
        s.atoms.calc = SinglePointCalculator(s.atoms, **labels)
        about = {"name": calculator, "arguments": s.arguments}
        s.atoms.info["calculator"] = json.dumps(about, sort_keys=True)
        result.labelled.append(s.atoms)
    say(str(result))
    if not result.labelled:
        raise ValueError(f"no structure could be labelled; {out} is not written")
    if out.suffix != ".db":
        with replacing(out) as temporary:
            ase.io.write(temporary, result.labelled, format="extxyz")
    else:
        found = []
        for atoms in result.labelled:
            info = {}
            if "prototype" in atoms.info:
                info["strain_state"] = f"{atoms.info['prototype']} {atoms.info['strain_state']}"
            found.append(Structure.from_atoms(atoms, str(atoms.info.get("group", "")), info))
        write_database(out, found, provenance=provenance, overwrite=True)
    say(f"written      {out}")
    return result


def _digest(atoms: Atoms, calculator: list) -> str:
    """Of what labels depend on: name and arguments of the calculator, and the structure."""
    found = hashlib.sha256(json.dumps(calculator, sort_keys=True).encode())
    found.update(atoms.numbers.astype("<i8").tobytes())
    for array in (atoms.positions, atoms.cell.array):
        # to 1e-8 Ang, beyond what differs between machines
        found.update(np.round(array * 1e8).astype("<i8").tobytes())
    for name in ("initial_magmoms", "initial_charges"):
        if atoms.has(name):
            found.update(atoms.get_array(name).astype("<f8").tobytes())
    found.update(atoms.pbc.tobytes())
    return found.hexdigest()[:16]


def read_geometries(files: Sequence[str | Path]) -> Iterator[tuple[str, Atoms]]:
    """Name (file and index) and structure of all in some files; labels are not looked at.

    What stands in `info` stays where ASE reads the file, as do initial moments and charges.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read.
    """
    options = ImportOptions()
    for source in find_sources(files):
        source.options = options
        record, index = format_of(source.path, options), -1
        try:
            for index, frame in enumerate(record.frames(source)):
                raw = record.structure(frame, source)
                to_ang = options.units(record.units, raw.get("units", {})).length_factor
                positions, cell = (
                    to_ang * np.asarray(raw[k], float) for k in ("positions", "cell")
                )
                atoms = Atoms(raw["numbers"], positions, cell=cell, pbc=raw["pbc"])
                found = frame[0] if isinstance(frame, tuple) else frame
                if isinstance(found, Atoms):
                    atoms.info = {k: v for k, v in found.info.items() if k != "calculator"}
                    for name in ("initial_magmoms", "initial_charges"):
                        if found.has(name):
                            atoms.set_array(name, found.get_array(name))
                atoms.info.setdefault("group", str(raw.get("group", source.group)))
                yield f"{source}, structure {index}", atoms
        except Exception as error:  # parsers of many formats raise anything at all
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{source}, structure {index + 1}: cannot be read ({reason})"
            ) from error
