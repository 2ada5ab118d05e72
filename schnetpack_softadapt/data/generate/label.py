"""Labels for any list of structures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from schnetpack_softadapt.data.executors import Spec
from schnetpack_softadapt.data.formats.format import ImportOptions, format_of
from schnetpack_softadapt.data.generate.journal import (
    LabelResult,
    Task,
    digest,
    journal_of,
    label_tasks,
    write_labelled,
)
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.files import locked

__all__ = ["label", "read_geometries"]


def label(
    structures: Sequence[str | Path] | Mapping[str, Atoms],
    calculator: str,
    out: str | Path,
    calculator_args: dict | None = None,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    overwrite: bool = False,
    progress: bool = False,
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
        calculator_args: keyword arguments, see `journal.label_tasks`.
        executor, timeout, retries: see `executors.run_all`.
        overwrite: replace an `out` that no earlier run made; results in a journal are kept.
        progress: show a progress bar.
        say: gets the messages for the user.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, a wrong setting, another process at work on the same
            file, or nothing could be labelled.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out, arguments = Path(out), calculator_args or {}
    journal = journal_of(out, calculator, overwrite)
    if not isinstance(structures, Mapping):
        structures = dict(read_geometries(structures))
    tasks, names = [], {}
    for name, atoms in structures.items():
        key = digest(atoms, [calculator, arguments])
        names.setdefault(key, name)
        tasks.append(Task(key, atoms, arguments, key))
    result = LabelResult()
    with locked(journal):
        label_tasks(tasks, calculator, journal, result, executor, timeout, retries, progress, say)
        result.failed = {names[key]: reason for key, reason in result.failed.items()}
        write_labelled(out, result, f"labels by {calculator} {arguments}", say)
    return result


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
