"""Files of labelled structures into one database: read, check, summarise, write."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.formats.format import (
    ImportOptions,
    LabelledFile,
    known_formats,
    read_files,
)
from schnetpack_softadapt.data.importing.checks import leave_out_placeholder_stress, raise_problems
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.data.importing.stress_labels import StressRepair, repair
from schnetpack_softadapt.data.importing.summary import summary
from schnetpack_softadapt.data.splitting import Split, save_split, split_path
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import shortened

__all__ = ["convert_files"]


def convert_files(
    files: Sequence[str | Path],
    out: str | Path,
    val: Sequence[str | Path] = (),
    test: Sequence[str | Path] = (),
    options: ImportOptions | None = None,
    repairs: Sequence[StressRepair] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Import files into a database in SchNetPack's format; nothing is written if anything is wrong.

    Args:
        files: files, folders and patterns (see `find_sources`) for training; with neither `val`
            nor `test`, for a later split.
        out: database to write, ending in `.db`.
        val, test: files of the validation and test sets. Then the split is written beside the
            database (`my.db`: `my.split.npz`), where the data module finds it. Without `val`, the
            data module takes a part of the training structures for validation.
        options: how labels stand in the files.
        repairs: stresses of groups to be read another way than the files say.
        overwrite: replace an existing database.
        say: gets the messages for the user.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or structures are invalid (all problems are listed).
    """
    options = options or ImportOptions()
    out = Path(out)
    if out.suffix != ".db":
        raise ValueError(f"--out {out}: the name must end in .db, by which SchNetPack knows it")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already; choose another name or give --overwrite")
    takes_folders = options.record is not None and options.record.takes_folders
    subsets = {
        subset: find_sources(names, takes_folders)
        for subset, names in (("train", files), ("val", val), ("test", test))
    }
    _refuse_files_given_twice(subsets)
    structures: list[Structure] = []
    problems: list[str] = []
    remarks: list[str] = []
    for subset, sources in subsets.items():
        found, wrong, remarked = read_files(sources, options)
        for structure in found:
            structure.info["subset"] = subset
        structures += found
        problems += wrong
        remarks += remarked
    repaired = repair(structures, repairs)
    remarks += [*repaired, *leave_out_placeholder_stress(structures)]
    raise_problems(structures, problems)
    text = summary(structures, remarks)
    if overwrite:
        # a split of the old database must not meet the new one, even if writing is interrupted
        split_path(out).unlink(missing_ok=True)
    names = [Path(name).name for name in (*files, *val, *test)]
    shown = ", ".join(shortened(names, 10))
    formats = sorted({s.info["format"] for s in structures})
    units = [f"format {name}: {options.units(known_formats()[name].units)}" for name in formats]
    fingerprint = write_database(
        out,
        structures,
        provenance="; ".join([f"imported from {shown}", *units, *repaired]),
        overwrite=overwrite,
    )
    say(text)
    if val or test:
        subset_of = np.array([s.info["subset"] for s in structures])
        indices = {name: np.flatnonzero(subset_of == name).tolist() for name in subsets}
        save_split(split_path(out), Split(**indices, fingerprint=fingerprint))
        counts = ", ".join(f"{len(part)} {name}" for name, part in indices.items())
        say(f"split        {split_path(out)} ({counts})")
    say(f"written      {out}")


def _refuse_files_given_twice(subsets: dict[str, list[LabelledFile]]) -> None:
    """A slip that would leak the test set."""
    seen: dict[str, str] = {}
    for subset, sources in subsets.items():
        for source in map(str, sources):
            path = os.path.realpath(source)
            if path in seen:
                raise ValueError(f"{source} is given twice, for {seen[path]} and for {subset}")
            seen[path] = subset
