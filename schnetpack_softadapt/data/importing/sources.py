"""The files to import, from what stands on the command line: files, folders, patterns, frames."""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from schnetpack_softadapt.data.formats.ase import COMPRESSED
from schnetpack_softadapt.data.formats.format import LabelledFile

__all__ = ["find_sources"]

#: names of files that a folder stands for, also compressed; anything else needs a pattern
LABELLED = ("*.extxyz", "*.xyz", "*.traj", "*.json", "input.data", "OUTCAR*", "vasprun*.xml")

#: names that programs give to their files, and that tell nothing about the structures
ANONYMOUS = ("input.data*", "OUTCAR*", "vasprun*")


def find_sources(
    names: Sequence[str | os.PathLike], takes_folders: bool = False
) -> list[LabelledFile]:
    """Files that the names stand for, in their order, within folders and patterns by name.

    A name is a file, `FILE@FRAMES`, a folder (all labelled structures below it) or a pattern as
    in `glob`, with `**` for folders at any depth. A file that exists is read, whatever its name.

    The group is the name of the folder where a file was found in a folder or by a pattern, or
    where its own name tells nothing (`OUTCAR`, or several files of one name); else the file's.

    Args:
        names: as above.
        takes_folders: a folder is one set of data, by its own name, instead of a place to search.

    Raises:
        FileNotFoundError: no such file, or nothing that fits.
        ValueError: a folder holds the same structures twice, as OUTCAR and vasprun.xml.
    """
    found: list[tuple[Path, str | None, bool]] = []  # file, frames, whether it was looked for
    for name in map(os.fspath, names):
        path = Path(name)
        file, at, frames = name.rpartition("@")
        if path.is_dir() and not takes_folders:
            found += [(file, None, True) for file in _files_below(path)]
        elif path.exists():
            found.append((path, None, False))
        elif at and Path(file).exists():
            found.append((Path(file), frames, False))
        elif glob.has_magic(name):
            found += [(file, None, True) for file in _matching(name, takes_folders)]
        else:
            raise FileNotFoundError(f"no file {file if at else name}")
    n_of_name = Counter(path.name for path, _, was_sought in found if not was_sought)
    sources = []
    for path, frames, was_sought in found:
        by_folder = (was_sought and path.is_file()) or n_of_name[path.name] > 1
        sources.append(LabelledFile(path, frames, _group(path, by_folder)))
    return sources


def _group(path: Path, by_folder: bool) -> str:
    if by_folder or any(fnmatch(path.name, pattern) for pattern in ANONYMOUS):
        return path.absolute().parent.name
    return path.stem


def _files_below(folder: Path) -> list[Path]:
    """Files with labelled structures in a folder and the folders in it, but for hidden ones."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        chosen = [name for name in names if not name.startswith(".") and _is_labelled(name)]
        if all(any(name.startswith(start) for name in chosen) for start in ("OUTCAR", "vasprun")):
            raise ValueError(
                f"{place} holds OUTCAR and vasprun.xml, which are the same structures; choose by a"
                f" pattern in quotes: '{folder}/**/OUTCAR'"
            )
        files += [Path(place, name) for name in chosen]
    if not files:
        raise FileNotFoundError(
            f"no {', '.join(LABELLED)} in {folder} or below; name others by a pattern in quotes:"
            f" '{folder}/**/*.out'"
        )
    return sorted(files, key=_natural)


def _is_labelled(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    name = stem if suffix in COMPRESSED else name
    return any(fnmatch(name, pattern) for pattern in LABELLED)


def _matching(pattern: str, takes_folders: bool) -> list[Path]:
    files = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = sorted((path for path in files if takes_folders or path.is_file()), key=_natural)
    if not files:
        raise FileNotFoundError(f"no file matches {pattern}")
    return files


def _natural(path: Path) -> list:
    """Sorts `2.json` before `10.json`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
