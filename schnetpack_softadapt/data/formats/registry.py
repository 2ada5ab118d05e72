"""Labelled structures from files: the registry of readers, and reading many files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from schnetpack_softadapt.data.formats.ase import read_ase
from schnetpack_softadapt.data.formats.fitsnap import is_fitsnap, read_fitsnap
from schnetpack_softadapt.data.formats.mlearn import is_mlearn, read_mlearn
from schnetpack_softadapt.data.formats.options import AUTO, ImportOptions
from schnetpack_softadapt.data.formats.runner import is_runner, read_runner
from schnetpack_softadapt.data.sources import Source
from schnetpack_softadapt.data.structures import Structure

__all__ = ["READERS", "ImportOptions", "format_of", "read_files"]

#: reader by name: yields structures, or a text saying what is wrong with one; may add remarks
READERS: dict[str, Callable[[Source, ImportOptions, list[str]], Iterator[Structure | str]]] = {
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
    path = Path(file)
    with open(path, "rb") as stream:
        start = stream.read(N_CHARACTERS_LOOKED_AT)
    if b"\0" not in start:  # else a binary file, which ASE knows
        text = start.decode("utf-8", errors="replace")
        for name, is_format in DETECTORS.items():
            if is_format(path, text):
                return name
    return "ase"


def read_files(
    sources: Sequence[Source], options: ImportOptions, progress: bool = False
) -> tuple[list[Structure], list[str], list[str]]:
    """Read all structures of all files.

    Each structure's `info` gets `file`, `format`, `index` (position in what is read of the file,
    from 0) and, with `split_keys`, `strain_state`.

    Args:
        sources: files, see `find_sources`.
        options: how labels stand in them.
        progress: show a progress bar.

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
    unit, total = (" structures", None) if len(sources) == 1 else (" files", len(sources))
    with tqdm(desc="reading", unit=unit, total=total, disable=not progress) as bar:
        for source in sources:
            format = format_of(source.path, options)
            remarks: list[str] = []
            index = 0
            try:
                for item in READERS[format](source, options, remarks):
                    if isinstance(item, Structure):
                        item.info.update(file=str(source), format=format, index=index)
                        structures.append(item)
                    else:
                        problems.append(f"{source}, structure {index}: {item}")
                    index += 1
                    bar.update(total is None)
            except Exception as error:  # parsers of many formats raise anything at all
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{source} cannot be read from structure {index} on ({reason})"
                ) from error
            if index == 0:
                raise ValueError(f"{source} holds no structures")
            for remark in dict.fromkeys(remarks):
                files_of_remark.setdefault(remark, []).append(source.path.name)
            bar.update(total is not None)
    return structures, problems, [_remark(*item) for item in files_of_remark.items()]


def _remark(text: str, files: Sequence[str]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0]}{more}: {text}"
