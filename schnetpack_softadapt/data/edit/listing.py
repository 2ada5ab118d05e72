"""What stands in a database, as text: by group, file and calculator, or structure by structure."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from schnetpack_softadapt.data.annotations import CALCULATOR, SOURCE, SUBSET, WEIGHT
from schnetpack_softadapt.data.edit.editing import Edit, Selection, kept_versions, labels_table
from schnetpack_softadapt.errors import shortened
from schnetpack_softadapt.quantities import SUBSETS

__all__ = ["list_database", "list_structures"]

MAX_LINES = 60
SHOWN = ("energy", "max_force", "max_stress")
UNITS = "energies in eV/atom, forces in eV/Ang, stresses in GPa"


def list_database(path: str | Path) -> str:
    """Groups, files and calculators with their numbers and ranges, and earlier versions."""
    edit = Edit(path)
    table = pd.concat([edit.table, labels_table(path)], axis=1)
    lines = [f"{path}: {len(table)} structures, {table.n_atoms.sum()} atoms; {UNITS}"]
    lines += ["", *_by(table, "group")]
    for key in (SOURCE, CALCULATOR):
        if table[key].notna().any():
            lines += ["", *_by(table, key)]
    lines += ["", *_history(edit)]
    return "\n".join(lines)


def _by(table: pd.DataFrame, key: str) -> Iterator[str]:
    labels = table[key].fillna("not known").replace("", "(no name)")
    rows = []
    for name, part in table.groupby(labels, sort=False):
        row = {key: name, "n": len(part)}
        row |= {words: int((part[SUBSET] == subset).sum()) for subset, words in SUBSETS.items()}
        row["weight"] = f"{part[WEIGHT].mean():.4g}"
        for what, digits in zip(SHOWN, (3, 2, 2), strict=True):
            values = part[what].dropna()
            low, high = values.min(), values.max()
            row[what.replace("_", " ")] = (
                f"{low:.{digits}f} to {high:.{digits}f}" if len(values) else "none"
            )
        rows.append(row)
    lines = pd.DataFrame(rows).to_string(index=False).splitlines()
    yield from shortened(lines, MAX_LINES + 1)


def _history(edit: Edit) -> Iterator[str]:
    for step in edit.metadata.get("history", []):
        yield f"{step['when']}  {step['what']}  (before: {step['before']})"
    sizes = [(p.name, p.stat().st_size / 1e6) for p in kept_versions(edit.path)]
    if sizes:
        kept = ", ".join(f"{name} {size:.1f} MB" for name, size in sizes)
        yield f"kept: {kept}; remove what you do not need, `undo NAME` goes back to one"
    else:
        yield "no earlier versions"


def list_structures(path: str | Path, selection: Selection) -> str:
    """The chosen structures, one a line, by their numbers."""
    edit = Edit(path)
    rows = selection.of(edit)
    table = pd.concat([edit.table, labels_table(path)], axis=1)
    columns = ["formula", "group", SOURCE, SUBSET, WEIGHT, *SHOWN, "volume"]
    text = table.loc[rows[:MAX_LINES], columns].to_string(na_rep="-", float_format="%.4f")
    more = f"\nand {len(rows) - MAX_LINES} more" if len(rows) > MAX_LINES else ""
    return f"{len(rows)} structures; {UNITS}, volumes in Ang^3/atom\n{text}{more}"
