"""What `spk-softadapt set` does to a database, one function a change; each returns a text."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.annotations import CALCULATOR, SOURCE, SUBSET, WEIGHT
from schnetpack_softadapt.data.edit import editing
from schnetpack_softadapt.data.edit.duplicates import Duplicate, find_duplicates
from schnetpack_softadapt.data.edit.editing import Edit, Selection
from schnetpack_softadapt.data.formats.format import ImportOptions, read_files
from schnetpack_softadapt.data.importing.checks import leave_out_placeholder_stress, raise_problems
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.data.provenance import mixed_settings
from schnetpack_softadapt.errors import shortened

__all__ = ["append", "assign", "deduplicate", "merge", "remove", "tag", "undo", "weight"]

MAX_NAMED = 20


def tag(path: str | Path, name: str, selection: Selection) -> str:
    """Give structures the group `name`."""
    return _label(path, "group", name, selection)


def weight(path: str | Path, weight: float, selection: Selection) -> str:
    """Weigh structures in all losses.

    Raises:
        ValueError: a negative weight, or one that is no number.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight is a number from 0 on, not {weight}")
    return _label(path, WEIGHT, weight, selection)


def assign(path: str | Path, subset: str, selection: Selection) -> str:
    """Use structures for "train", "val" or "test"; "none" takes an assignment back."""
    return _label(path, SUBSET, None if subset == "none" else subset, selection)


def _label(path, column: str, value, selection: Selection) -> str:
    with editing.editing(path, f"{column} {value}: {selection}") as edit:
        rows = selection.of(edit)
        edit.table.loc[rows, column] = value
    return f"{len(rows)} structures of {path}: {column} {value}"


def remove(path: str | Path, selection: Selection) -> str:
    """Leave structures out."""
    with editing.editing(path, f"remove {selection}") as edit:
        rows = selection.of(edit)
        edit.remove(rows)
    return f"{len(rows)} structures removed from {path}, {len(edit.table)} left"


def append(
    path: str | Path,
    files: Sequence[str | Path],
    name: str | None = None,
    subset: str | None = None,
) -> str:
    """Add structures from files; `name` is their group, `subset` what they are assigned to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: structures are not valid, or have other labels than the database.
    """
    structures, problems, remarks = read_files(find_sources(files), ImportOptions())
    remarks += leave_out_placeholder_stress(structures)
    raise_problems(structures, problems)
    for s in structures:
        s.group = s.group if name is None else name
    with editing.editing(path, f"append {_shown(files)}") as edit:
        n_before = len(edit.table)
        edit.append(structures, subset)
    lines = [f"{len(structures)} structures appended to the {n_before} of {path}"]
    return "\n".join([*lines, *map("note: {}".format, remarks), *_warnings(edit)])


def merge(path: str | Path, files: Sequence[str | Path]) -> str:
    """Add the structures of other databases.

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: one has other labels, or other units.
    """
    with editing.editing(path, f"merge {_shown(files)}") as edit:
        n_before = len(edit.table)
        for other in files:
            edit.merge(other)
    n = len(edit.table)
    text = f"{n - n_before} structures added to the {n_before} of {path}"
    return "\n".join([text, *_warnings(edit)])


def _warnings(edit: Edit) -> list[str]:
    """Of labels by different settings."""
    table = edit.table
    if table[CALCULATOR].isna().all():
        return []
    cells = np.array([row.cell for row in editing.read_rows(edit.path)])
    texts = mixed_settings(table[CALCULATOR].tolist(), table[SOURCE].tolist(), cells)
    return [f"WARNING: {text}" for text in texts]


def _shown(files: Sequence[str | Path]) -> str:
    return ", ".join(shortened([Path(file).name for file in files], 5))


def deduplicate(
    path: str | Path,
    tolerance: float = 1e-3,
    keep: str = "first",
    differing: bool = False,
    dry_run: bool = False,
) -> str:
    """Remove structures that are there already; see `find_duplicates`.

    Args:
        path: the database.
        tolerance: by which atoms may be moved, Ang.
        keep: "first" or "last" of several.
        differing: also those with other labels, which are only named otherwise.
        dry_run: only name them.
    """
    with editing.editing(path, f"deduplicate, {tolerance:g} Ang, keep {keep}") as edit:
        table = edit.table
        found = find_duplicates(path, tolerance, keep)
        gone = [d.other for d in found if differing or not d.differs]
        if gone and not dry_run:
            edit.remove(gone)
    others = [d for d in found if d.differs]
    lines = [f"{len(found)} structures of {path} are there already"]
    if others:
        lines.append(f"{len(others)} of them have other labels (energy per atom, forces):")
        lines += [f"  {text}" for text in shortened([_named(d, table) for d in others], MAX_NAMED)]
        if not differing:
            lines.append("  which are left; --differing removes them too")
    if gone and not dry_run:
        lines.append(f"{len(gone)} removed, {len(edit.table)} left")
    return "\n".join(lines)


def _named(d: Duplicate, table) -> str:
    places = []
    for k in (d.kept, d.other):
        source, group = table[SOURCE][k], table["group"][k]
        about = ", ".join(str(text) for text in (source, group) if text)
        places.append(f"{k} ({about})" if about else str(k))
    return f"{places[0]} = {places[1]}: {d.energy:+.4f}, {d.force:.3f}"


def undo(path: str | Path, back_to: str | Path | None = None) -> str:
    """Go back to the version before the last change, or to one that is kept."""
    kept = editing.undo(path, back_to)
    return f"{path} is as before; what it was is {kept}"
