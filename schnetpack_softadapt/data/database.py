"""Structures in SchNetPack's database format, with units and the stress convention written down."""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ase
import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from ase.db import connect
from ase.db.core import Database
from ase.db.row import AtomsRow
from tqdm import tqdm

from schnetpack_softadapt import __version__
from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.annotations import CALCULATOR, SOURCE, entries
from schnetpack_softadapt.data.provenance import calculator_text
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.quantities import QUANTITIES

__all__ = [
    "UNITS",
    "Fingerprint",
    "labels_of",
    "open_database",
    "row_data",
    "row_structure",
    "structure_table",
    "write_database",
]

ENERGY, FORCES, STRESS = (quantity.name for quantity in QUANTITIES)
UNITS = {**{quantity.name: quantity.unit for quantity in QUANTITIES}, keys.stress_mask: ""}


@contextlib.contextmanager
def open_database(path: str | os.PathLike) -> Iterator[Database]:
    """Open an existing database for reading; a damaged one is one error wherever it shows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no database, or damaged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no database at {path}; make one with `spk-softadapt import FILE... --out {path}`"
        )
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    tables = "select 1 from sqlite_master where name = 'systems'"
    try:
        # ASE would write its tables into any SQLite file, and into an empty one
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            if not connection.execute(tables).fetchall():
                raise sqlite3.DatabaseError("no table of structures")
        with connect(path, type="db", use_lock_file=False) as database:
            yield database
    except (sqlite3.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no ASE database, or damaged ({str(error)[:60]}): copy it again, or make it"
            " anew with `spk-softadapt import`"
        ) from None


def write_database(
    path: str | Path,
    structures: Iterable[Structure],
    provenance: str,
    groups: dict[str, Sequence] | None = None,
    overwrite: bool = False,
    metadata: dict | None = None,
) -> str:
    """Write structures as a database that SchNetPack's AtomsDataModule reads, atomically.

    Every structure needs an energy; forces are needed by all or none. Stress may be missing for
    some: zeros stand in its place, and `stress_mask` is 0.

    Args:
        path: file name ending in `.db`.
        structures: in the order in which the database will hold them.
        provenance: where they come from, for whoever finds the file.
        groups: further ways to group the structures (hashable labels, one per structure), for
            splits that must not part them. `group`, and what the structures' `info` hold of
            `strain_state`, `calculator` and `file` (as `source`), are written anyway.
        overwrite: replace an existing file.
        metadata: further entries (plain numbers, strings, lists, dictionaries).

    Returns:
        the fingerprint of the structures and their labels, which the metadata hold too.

    Raises:
        FileExistsError: the file exists and may not be replaced.
        ValueError: wrong suffix, no structures, or labels that only some have.
    """
    path = Path(path)
    if path.suffix != ".db":
        raise ValueError(f"{path}: SchNetPack finds databases by the ending .db")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or allow overwriting")
    structures = list(structures)
    names = _common_labels(structures)
    fingerprint = Fingerprint()
    for s in structures:
        fingerprint.add(s)
    elements = np.unique(np.concatenate([s.numbers for s in structures]))
    about = {
        "_property_unit_dict": {name: UNITS[name] for name in names},
        "_distance_unit": "Ang",
        "atomrefs": {},
        "stress_convention": "(1, 3, 3), symmetric, dE/dstrain / volume: positive = tension",
        "elements": [chemical_symbols[z] for z in elements],
        **entries(structure_table(structures, groups)),
        "provenance": provenance,
        "fingerprint": str(fingerprint),
        "versions": {"schnetpack_softadapt": __version__, "ase": ase.__version__},
        **(metadata or {}),
    }
    # one transaction for all
    with replacing(path) as file, connect(file, type="db", use_lock_file=False) as database:
        for s in tqdm(structures, "writing", unit=" structures", delay=1, disable=None):
            row = row_data(s)
            database.write(s.to_atoms(), data={name: row[name] for name in names})
        database.metadata = about
    return str(fingerprint)


def structure_table(structures: Sequence[Structure], groups: dict | None = None) -> pd.DataFrame:
    """What is known about structures besides their labels; see `annotations`.

    `strain_state` counts only if all have one.
    """
    table = {"group": [s.group for s in structures]}
    for key, entry in ((SOURCE, "file"), (CALCULATOR, CALCULATOR), *[["strain_state"] * 2]):
        found = [s.info.get(entry) for s in structures]
        if entry == CALCULATOR:
            found = [calculator_text(value) for value in found]
        if all(v is not None for v in found) or (entry != "strain_state" and any(found)):
            table[key] = found
    table |= {key: list(labels) for key, labels in (groups or {}).items()}
    return pd.DataFrame(table, dtype=object)


def row_data(s: Structure) -> dict[str, np.ndarray | None]:
    """Labels of a structure in the shapes that SchNetPack's collation needs."""
    has_stress = s.stress is not None
    return {
        ENERGY: np.array([s.energy]),
        FORCES: s.forces,
        STRESS: s.stress[None] if has_stress else np.zeros((1, 3, 3)),
        keys.stress_mask: np.array([float(has_stress)]),
    }


def row_structure(row: AtomsRow, data: Mapping | None = None) -> Structure:
    """A row of a database as structure, in the units of the database, without its group.

    Args:
        row: of the database.
        data: its labels, where they are not in the row.
    """
    data = row.data if data is None else data
    return Structure(row.numbers, row.positions, row.cell, row.pbc, **labels_of(data))


def labels_of(data: Mapping) -> dict:
    """Energy, forces and stress of a structure from what `row_data` makes of them."""
    energy, stress, mask = (data.get(key) for key in (ENERGY, STRESS, keys.stress_mask))
    return {
        "energy": None if energy is None else np.ravel(energy)[0],
        "forces": data.get(FORCES),
        "stress": None if mask is not None and not np.ravel(mask)[0] else stress,
    }


def _common_labels(structures: Sequence[Structure]) -> list[str]:
    """Properties that the database gets."""
    if not structures:
        raise ValueError("no structures to write")
    names = []
    for name in (ENERGY, FORCES):
        present = [getattr(s, name) is not None for s in structures]
        if any(present) and not all(present):
            raise ValueError(f"structure {present.index(False)} has no {name}, others have")
        names += [name] * all(present)
    if ENERGY not in names:
        raise ValueError("the structures have no energies")
    if any(s.stress is not None for s in structures):
        names += [STRESS, keys.stress_mask]
    return names


class Fingerprint:
    """Of structures and their labels, one after the other; `str` gives it."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, s: Structure) -> None:
        for array in (s.numbers, s.positions, s.cell, s.pbc, s.energy, s.forces, s.stress):
            self._digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())

    def __str__(self) -> str:
        return self._digest.hexdigest()[:32]
