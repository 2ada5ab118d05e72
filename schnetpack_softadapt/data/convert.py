"""Files of labelled structures into one database: read, check, summarise, write."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.checks import leave_out_placeholder_stress, raise_problems
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.formats.registry import ImportOptions, read_files
from schnetpack_softadapt.data.sources import Source, find_sources
from schnetpack_softadapt.data.split_file import Split, save_split, split_path
from schnetpack_softadapt.data.stress_labels import StressRepair, repair
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.data.summary import Summary, summarize

__all__ = ["convert_files"]


def convert_files(
    files: Sequence[str | Path],
    out: str | Path,
    val: Sequence[str | Path] = (),
    test: Sequence[str | Path] = (),
    options: ImportOptions | None = None,
    repairs: Sequence[StressRepair] = (),
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
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
        progress: show progress bars.
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
    subsets = {
        subset: find_sources(names)
        for subset, names in (("train", files), ("val", val), ("test", test))
    }
    _refuse_files_given_twice(subsets)
    n_of: dict[str, int] = {}
    structures: list[Structure] = []
    problems: list[str] = []
    remarks: list[str] = []
    for subset, sources in subsets.items():
        found, wrong, remarked = read_files(sources, options, progress)
        for structure in found:
            structure.info["subset"] = subset if val or test else "train"
        structures += found
        problems += wrong
        remarks += remarked
        n_of[subset] = len(found)
    repaired = repair(structures, repairs)
    remarks += repaired
    remarks += leave_out_placeholder_stress(structures)
    raise_problems(structures, problems, progress=progress)
    summary = summarize(structures, list(dict.fromkeys(remarks)))
    names = [Path(name).name for name in (*files, *val, *test)]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    if overwrite:
        # a split of the old database must not meet the new one, even if writing is interrupted
        split_path(out).unlink(missing_ok=True)
    fingerprint = write_database(
        out,
        structures,
        provenance="; ".join(
            [f"imported from {shown}", _conventions(structures, options), *repaired]
        ),
        overwrite=overwrite,
        progress=progress,
    )
    say(str(summary))
    if val or test:
        _write_split(out, n_of, fingerprint)
        counts = ", ".join(f"{n} {subset}" for subset, n in n_of.items())
        say(f"split        {split_path(out)} ({counts})")
    say(f"written      {out}")
    return summary


def _refuse_files_given_twice(subsets: dict[str, list[Source]]) -> None:
    """A slip that would leak the test set."""
    seen: dict[str, str] = {}
    for subset, sources in subsets.items():
        for source in map(str, sources):
            path = os.path.realpath(source)
            if path in seen:
                raise ValueError(f"{source} is given twice, for {seen[path]} and for {subset}")
            seen[path] = subset


def _write_split(out: Path, n_of: dict[str, int], fingerprint: str) -> None:
    """Consecutive index ranges: training, validation, test."""
    ends = np.cumsum(list(n_of.values()))
    train, val, test = (
        list(range(end - n, end)) for end, n in zip(ends, n_of.values(), strict=True)
    )
    save_split(split_path(out), Split(train, val, test, fingerprint=fingerprint))


def _conventions(structures: list[Structure], options: ImportOptions) -> str:
    """What was assumed of each format; FitSNAP's headers may say otherwise file by file."""
    formats = sorted({s.info["format"] for s in structures})
    return "; ".join(f"format {name}: {options.units(name)}" for name in formats)
