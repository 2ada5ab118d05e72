"""What a database says about each structure besides its labels: one table, kept in the metadata.

Groups (`group`, `strain_state`, and any others to split by), the file that a structure came from
(`source`), the settings of the calculation (`calculator`), the subset that it is assigned to
(`subset`), and its weight. `metadata["groups_ids"]` holds a number for each structure, as
SchNetPack reads it (-1: not known), `metadata["names"]` what the numbers stand for.
"""

import hashlib
import json
from collections.abc import Mapping

import pandas as pd

from schnetpack_softadapt.quantities import SUBSETS

__all__ = [
    "CALCULATOR",
    "SOURCE",
    "SUBSET",
    "WEIGHT",
    "annotations",
    "assigned",
    "digest",
    "entries",
]

SOURCE, CALCULATOR, SUBSET, WEIGHT = "source", "calculator", "subset", "weight"
MAY_MISS = (SOURCE, CALCULATOR, SUBSET)


def annotations(metadata: Mapping, n_structures: int, name: str = "") -> pd.DataFrame:
    """A row for each structure: `group`, `source`, `calculator`, `subset` (None where not known),
    `weight`, and the other groups of the database.

    Args:
        metadata: of the database.
        n_structures: its number of rows.
        name: of the database, for groups without names.

    Raises:
        ValueError: the metadata are of another number of structures.
    """
    columns: dict[str, list] = dict.fromkeys(("group", *MAY_MISS), [None] * n_structures)
    columns["group"] = [""] * n_structures
    known = {"group": metadata.get("group_names"), **metadata.get("names", {})}
    for key, ids in metadata.get("groups_ids", {}).items():
        names = known.get(key)
        if names is None:
            columns[key] = [f"{name}:{k}" for k in ids]
        else:
            columns[key] = [names[k] if k >= 0 else None for k in ids]
    columns[WEIGHT] = metadata.get("weights", [1.0] * n_structures)
    for key, values in columns.items():
        if len(values) != n_structures:
            raise ValueError(
                f"the metadata of {name} have {len(values)} entries {key!r} for"
                f" {n_structures} structures: rows were added or removed by another program"
            )
    table = pd.DataFrame(columns, dtype=object)
    return table.astype({WEIGHT: float})


def entries(table: pd.DataFrame) -> dict:
    """The metadata of such a table; of columns that are all empty there are none."""
    result: dict = {"groups_ids": {}, "names": {}}
    for key in table.columns.drop(WEIGHT, errors="ignore"):
        labels = table[key]
        if labels.isna().all():
            continue
        if key not in MAY_MISS:  # splits take each of these for a group of its own
            labels = labels.where(labels.notna(), [f"none {k}" for k in range(len(labels))])
        codes, names = pd.factorize(labels)
        result["groups_ids"][key] = codes.tolist()
        result["names"][key] = list(map(str, names))
    result["group_names"] = result["names"].pop("group", [])
    if WEIGHT in table and (table[WEIGHT] != 1).any():
        result["weights"] = table[WEIGHT].tolist()
    return result


def assigned(metadata: Mapping) -> dict[str, list[int]] | None:
    """Structures by subset, those without an assignment in training; None if nothing is assigned.

    "train", "val" and "test" are there always.
    """
    codes = metadata.get("groups_ids", {}).get(SUBSET)
    if codes is None:
        return None
    names = [*metadata["names"][SUBSET], "train"]  # the last one is that of -1
    rows: dict[str, list[int]] = {name: [] for name in SUBSETS}
    for k, code in enumerate(codes):
        rows[names[code]].append(k)
    return rows


def digest(metadata: Mapping) -> str | None:
    """Changes whenever an assignment or a weight does; None if there are none."""
    given = [assigned(metadata), metadata.get("weights")]
    if given == [None, None]:
        return None
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]
