"""Labelled structures from files: the registry of readers, and reading many files."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from .ase_format import file_of, read_ase
from .fitsnap_format import is_fitsnap, read_fitsnap
from .import_options import AUTO, ImportOptions
from .mlearn_format import is_mlearn, read_mlearn
from .runner_format import is_runner, read_runner
from .structures import Structure

__all__ = ["READERS", "ImportOptions", "file_of", "format_of", "read_ase", "read_files"]

#: reader by name: yields structures, or a text saying what is wrong with one; may add remarks
READERS: dict[str, Callable[[str | Path, ImportOptions, list[str]], Iterator[Structure | str]]] = {
    "ase": read_ase,
    "runner": read_runner,
    "mlearn": read_mlearn,
    "fitsnap": read_fitsnap,
}

#: whether a file is unmistakably of a format, from its path and the text it begins with
DETECTORS: dict[str, Callable[[Path, str], bool]] = {
    "runner": is_runner,
    "fitsnap": is_fitsnap,
    "mlearn": is_mlearn,
}

N_CHARACTERS_LOOKED_AT = 4096


def format_of(file: str | Path, options: ImportOptions) -> str:
    """Name of the reader of a file: the one asked for, else by its content, else "ase"."""
    if options.format != AUTO:
        return options.format
    path = file_of(file)
    with open(path, "rb") as stream:
        start = stream.read(N_CHARACTERS_LOOKED_AT)
    if b"\0" not in start:  # else a binary file, which ASE knows
        text = start.decode("utf-8", errors="replace")
        for name, is_format in DETECTORS.items():
            if is_format(path, text):
                return name
    return "ase"


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
    with tqdm(desc="reading", unit=" structures", disable=not progress) as bar:
        for file in files:
            bar.set_postfix_str(file_of(file).name)
            reader = READERS[format_of(file, options)]
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
