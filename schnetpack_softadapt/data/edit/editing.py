"""Changes to a database: what its structures are called, weigh and serve for, and which there are.

Each change writes a new file in the place of the old one, which stays beside it as `my.v1.db`,
`my.v2.db` and so on; `history` in the metadata says what was done and which file was before it. A
split file beside the database becomes assignments of the new one, and stays with the old one.
"""

import contextlib
import filecmp
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import chemical_symbols
from ase.db import connect
from ase.db.row import AtomsRow
from schnetpack.units import convert_units
from tqdm import tqdm

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.annotations import SOURCE, SUBSET, WEIGHT, annotations, entries
from schnetpack_softadapt.data.database import (
    UNITS,
    Fingerprint,
    open_database,
    row_data,
    row_structure,
    structure_table,
)
from schnetpack_softadapt.data.splitting import load_split, split_path
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import link_or_copy, locked, replacing
from schnetpack_softadapt.quantities import ENERGY, FORCES, STRESS, SUBSETS

__all__ = ["Edit", "Selection", "editing", "kept_versions", "labels_table", "read_rows", "undo"]

STRESSES = (STRESS.name, keys.stress_mask)  # which only some structures may have
EDITED = ("groups_ids", "names", "group_names", "weights")  # what `entries` makes


def read_rows(path: Path, what: str = "reading") -> Iterator[AtomsRow]:
    """The rows of a database in their order, one after the other."""
    with open_database(path) as database:
        bar = {"unit": " structures", "total": database.count(), "delay": 1, "disable": None}
        yield from tqdm(database.select(sort="id"), what, **bar)


class Edit:
    """A database that is being changed, see `editing`.

    Attributes:
        path: the database.
        metadata: of the database.
        table: what is known about each structure (see `annotations`), to be changed in place; rows
            change by the methods alone.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_database(path) as database:
            self.metadata, n = dict(database.metadata), database.count()
        self.table = annotations(self.metadata, n, self.path.name)
        self._stays: np.ndarray | None = None
        self._more: list[Iterable[tuple[Atoms | AtomsRow, dict]]] = []
        beside = split_path(path)
        self._has_split = beside.exists()
        if self._has_split:
            split = load_split(beside, n, self.metadata.get("fingerprint"))
            self.table[SUBSET] = None
            for name in SUBSETS:
                self.table.loc[getattr(split, name), SUBSET] = name
        self._before = self.table.copy()

    @property
    def is_changed(self) -> bool:
        rows_are_new = self._stays is not None or bool(self._more)
        return rows_are_new or not self.table.equals(self._before)

    def remove(self, rows: Sequence[int]) -> None:
        self._stays = np.setdiff1d(np.arange(len(self.table)), rows)
        if not len(self._stays):
            raise ValueError(f"no structure would be left in {self.path}")
        self.table = self.table.iloc[self._stays].reset_index(drop=True)

    def append(self, structures: Sequence[Structure], subset: str | None = None) -> None:
        """Add structures that were read from files.

        Raises:
            ValueError: they have other labels than those of the database, or other units.
        """
        has_stress = any(s.stress is not None for s in structures)
        names = [n for n in (ENERGY.name, FORCES.name) if getattr(structures[0], n) is not None]
        units = {name: UNITS[name] for name in (*names, *STRESSES[: 2 * has_stress])}
        self._check_labels(units, "Ang", structures[0].info.get("file", "the new structures"))
        kept, about = self.metadata["_property_unit_dict"], {SUBSET: subset, WEIGHT: 1.0}
        labels = ({k: v for k, v in row_data(s).items() if k in kept} for s in structures)
        atoms = (s.to_atoms() for s in structures)
        self._add(structure_table(structures).assign(**about), zip(atoms, labels, strict=True))

    def merge(self, path: str | Path) -> None:
        """Add the structures of another database, with all that is known about them.

        Raises:
            ValueError: they have other labels than those of the database, or other units.
        """
        other = Edit(path)
        units = other.metadata.get("_property_unit_dict", {})
        self._check_labels(units, other.metadata.get("_distance_unit"), path)
        other.table[SOURCE] = other.table[SOURCE].where(other.table[SOURCE].notna(), str(path))
        self._add(other.table, self._rows_of_other(other.path))

    def _rows_of_other(self, path: Path) -> Iterator[tuple[AtomsRow, dict]]:
        for row in read_rows(path):
            data = row.data
            row.unique_id = uuid.uuid4().hex  # a copy of a row of this database has the same
            yield row, data

    def _add(self, table: pd.DataFrame, items: Iterable[tuple[Atoms | AtomsRow, dict]]) -> None:
        self.table = pd.concat([self.table, table], ignore_index=True).astype({WEIGHT: float})
        self._more.append(items)

    def _check_labels(self, units: dict, distance: str | None, other: object) -> None:
        """Add the stress to the labels if it is new; refuse other labels and units."""
        mine = self.metadata.setdefault("_property_unit_dict", {})
        if STRESS.name in {*mine, *units}:
            for name in STRESSES:
                mine.setdefault(name, units.get(name, mine.get(name, UNITS[name])))
        theirs = {**{k: mine[k] for k in STRESSES if k in mine}, **units, "lengths": distance}
        for name, unit in {**mine, "lengths": self.metadata.get("_distance_unit")}.items():
            if theirs.pop(name, None) != unit:
                raise ValueError(
                    f"{other} has no {name} in {unit}, as {self.path} has it; all structures need"
                    " the same labels, but for stress, in the same units"
                )
        if theirs:
            raise ValueError(
                f"{other} has {', '.join(theirs)}, which {self.path} lacks; merge one without"
                " (`import` leaves a label out with a key of none, such as --forces-key none)"
            )

    def write(self, what: str) -> Path:
        """Write the new version; returns where the old one is kept."""
        kept = _name_for_old(self.path)
        about = {k: v for k, v in self.metadata.items() if k not in EDITED}
        step = {"what": what, "before": kept.name, "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}
        about |= {**entries(self.table), "history": [*about.get("history", []), step]}
        with replacing(self.path) as file:
            if self._stays is None and not self._more:
                shutil.copyfile(self.path, file)
            else:
                about |= self._write_rows(file)
            with connect(file, type="db", use_lock_file=False) as database:
                database.metadata = about
            if not kept.exists():
                link_or_copy(self.path, kept)
        if self._has_split:
            os.replace(split_path(self.path), split_path(kept))
        return kept

    def _write_rows(self, file: Path) -> dict:
        names, elements, fingerprint = self.metadata["_property_unit_dict"], set(), Fingerprint()
        with connect(file, type="db", use_lock_file=False) as database:
            bar = {"unit": " structures", "total": len(self.table), "delay": 1, "disable": None}
            for k, (atoms, data) in enumerate(tqdm(self._items(), "writing", **bar)):
                if STRESS.name in names:
                    data.setdefault(keys.stress_mask, np.array([float(STRESS.name in data)]))
                    data.setdefault(STRESS.name, np.zeros((1, 3, 3)))
                lacking = [name for name in names if data.get(name) is None]
                if lacking:
                    raise ValueError(
                        f"structure {k} of the new {self.path} has no {lacking[0]}, which others"
                        " have; nothing is written"
                    )
                pairs = atoms.key_value_pairs if isinstance(atoms, AtomsRow) else {}
                database.write(atoms, key_value_pairs=pairs, data=data)
                row = atoms if isinstance(atoms, AtomsRow) else AtomsRow(atoms)
                fingerprint.add(row_structure(row, data))
                elements.update(row.numbers.tolist())
        symbols = [chemical_symbols[z] for z in sorted(elements)]
        return {"fingerprint": str(fingerprint), "elements": symbols}

    def _items(self) -> Iterator[tuple[Atoms | AtomsRow, dict]]:
        """Atoms and labels of the new version."""
        stays = None if self._stays is None else set(self._stays.tolist())
        for k, row in enumerate(read_rows(self.path)):
            if stays is None or k in stays:
                yield row, dict(row.data)
        for items in self._more:
            yield from items


@contextlib.contextmanager
def editing(path: str | Path, what: str) -> Iterator[Edit]:
    """Change a database: a new version is written if the block ends without an error.

    Args:
        path: the database.
        what: is done, for its history.

    Raises:
        FileNotFoundError: there is no database.
        ValueError: it is damaged, or another process changes it.
    """
    with locked(path):
        edit = Edit(path)
        yield edit
        if edit.is_changed:
            edit.write(what)


def undo(path: str | Path, version: str | Path | None = None) -> Path:
    """Put the version before the last change in the place of the database, or the one named.

    The present one is kept, so that this can be undone too.

    Returns:
        where the present one is kept.

    Raises:
        FileNotFoundError: there is no such version.
        ValueError: the database has not been changed.
    """
    path = Path(path)
    with locked(path):
        with open_database(path) as database:
            history = database.metadata.get("history", [])
        if version is None and not history:
            raise ValueError(f"{path} was never changed by `spk-softadapt set`")
        old = path.with_name(Path(version).name if version else history[-1]["before"])
        if not old.exists():
            names = ", ".join(p.name for p in kept_versions(path)) or "none"
            raise FileNotFoundError(f"no file {old}; kept are {names}")
        kept = _name_for_old(path)
        with replacing(path) as file:
            shutil.copyfile(old, file)
            if not kept.exists():
                link_or_copy(path, kept)
        if split_path(path).exists():
            os.replace(split_path(path), split_path(kept))
        if split_path(old).exists():
            shutil.copyfile(split_path(old), split_path(path))
    return kept


def kept_versions(path: str | Path) -> list[Path]:
    """Earlier versions beside a database, by their numbers."""
    path = Path(path)
    pattern = re.compile(rf"{re.escape(path.stem)}\.v(\d+)\.db")
    found = {int(m[1]): p for p in path.parent.iterdir() if (m := pattern.fullmatch(p.name))}
    return [found[k] for k in sorted(found)]


def _name_for_old(path: Path) -> Path:
    """Where the present version is kept, or will be: the same content needs no second file."""
    versions = kept_versions(path)
    for version in versions:
        if filecmp.cmp(version, path, shallow=False):
            return version
    last = int(versions[-1].suffixes[-2][2:]) if versions else 0
    return path.with_name(f"{path.stem}.v{last + 1}.db")


def labels_table(path: str | Path) -> pd.DataFrame:
    """A row for each structure, in eV, Ang and GPa, NaN where there is no label.

    `formula`, `n_atoms`, `energy` (per atom), `max_force` (largest of an atom), `max_stress`
    (largest component), `volume` (per atom), and `n_Mo`, `n_Te`.. for each element.
    """
    with open_database(path) as database:
        units, length = (
            database.metadata.get(k) for k in ("_property_unit_dict", "_distance_unit")
        )
    wanted = {ENERGY.name: "eV", FORCES.name: "eV/Ang", STRESS.name: "GPa", "length": "Ang"}
    units = {**(units or {}), "length": length or "Ang"}
    factor = {k: convert_units(units[k], unit) for k, unit in wanted.items() if k in units}
    found = []
    for row in read_rows(path):
        s = row_structure(row)
        n, volume = s.n_atoms, s.volume * factor["length"] ** 3
        entry = {"formula": row.formula, "n_atoms": n, "energy": np.nan, "max_force": np.nan}
        if s.energy is not None:
            entry["energy"] = s.energy / n * factor[ENERGY.name]
        if s.forces is not None:
            entry["max_force"] = np.linalg.norm(s.forces, axis=1).max() * factor[FORCES.name]
        entry["max_stress"] = np.nan
        if s.stress is not None:
            entry["max_stress"] = abs(s.stress).max() * factor[STRESS.name]
        entry["volume"] = volume / n if s.pbc.any() and volume > 0 else np.nan
        elements, counts = np.unique(s.numbers, return_counts=True)
        entry |= {f"n_{chemical_symbols[z]}": c for z, c in zip(elements, counts, strict=True)}
        found.append(entry)
    table = pd.DataFrame(found)
    counts = [name for name in table if name.startswith("n_")]
    return table.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))


@dataclass
class Selection:
    """Some structures of a database; all of what is given must hold.

    Attributes:
        rows: numbers counted from 0, slices such as "0:100" and "::10", or text files of numbers.
        groups, sources, subsets: names, or patterns such as "liquid*"; subset "none": unassigned.
        where: a condition in the words of `labels_table` and `annotations`, for
            `pandas.DataFrame.query`, such as "max_force > 20 and group == 'liquid'".
        everything: the whole database.
    """

    rows: Sequence[str] = ()
    groups: Sequence[str] = ()
    sources: Sequence[str] = ()
    subsets: Sequence[str] = ()
    where: str | None = None
    everything: bool = False

    def __str__(self) -> str:
        parts = [f"{f.name} {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name)]
        return ", ".join(parts)

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.groups or self.sources or self.subsets or self.where)

    def of(self, edit: Edit) -> np.ndarray:
        """Numbers of the structures, ascending.

        Raises:
            ValueError: nothing fits, or a name or condition makes no sense.
        """
        table, path = edit.table, edit.path
        if self.is_empty and not self.everything:
            raise ValueError(
                "which structures? Give --rows, --group, --source, --subset or --where, or --all"
            )
        chosen = np.ones(len(table), dtype=bool)
        if self.rows:
            chosen &= np.isin(np.arange(len(table)), _numbers(self.rows, len(table), path))
        for key, names in (("group", self.groups), (SOURCE, self.sources), (SUBSET, self.subsets)):
            if names:
                chosen &= _named(table[key], names, key)
        if self.where:
            full = pd.concat([table, labels_table(path)], axis=1)
            try:
                chosen &= full.eval(self.where, engine="python").to_numpy(dtype=bool)
            except Exception as error:  # pandas raises whatever the expression meets
                raise ValueError(
                    f"--where {self.where!r} cannot be evaluated ({error}); names are"
                    f" {', '.join(full.columns)}"
                ) from None
        if not chosen.any():
            raise ValueError(f"no structure of {path} is chosen")
        return np.flatnonzero(chosen)


def _numbers(texts: Sequence[str], n: int, path: Path) -> list[int]:
    found: list[int] = []
    for text in texts:
        if Path(text).is_file():
            words = Path(text).read_text(encoding="utf-8").replace(",", " ").split()
            found += _numbers(words, n, path) if words else []
        elif re.fullmatch(r"-?\d*(:-?\d*){1,2}", text):
            found += range(n)[slice(*(int(part) if part else None for part in text.split(":")))]
        elif re.fullmatch(r"\d+", text) and int(text) < n:
            found.append(int(text))
        else:
            raise ValueError(
                f"--rows {text}: neither a file, nor one of the {n} structures of {path} (counted"
                " from 0), nor a slice such as 0:100"
            )
    return found


def _named(labels: pd.Series, patterns: Sequence[str], key: str) -> np.ndarray:
    labels = labels.fillna("none").astype(str)
    known = labels.unique()
    chosen = np.zeros(len(labels), dtype=bool)
    for pattern in patterns:
        names = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not names:
            shown = ", ".join(known[:20]) + (", .." if len(known) > 20 else "")
            raise ValueError(f"no {key} {pattern!r}; there are {shown}")
        chosen |= labels.isin(names).to_numpy()
    return chosen
