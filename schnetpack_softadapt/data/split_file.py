"""The file that says which structures of a database train, validate and test."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schnetpack_softadapt.files import replacing

__all__ = ["SUBSETS", "Split", "load_split", "save_split", "split_path"]

SUBSETS = ("train", "val", "test")


@dataclass
class Split:
    """Indices of structures of a database, for training, validation and test.

    Attributes:
        train, val, test: indices, counted from 0.
        request: what was asked for when the split was made (sizes, seed, strategy).
        fingerprint: of the database it belongs to, if that has one.
    """

    train: list[int]
    val: list[int]
    test: list[int]
    request: dict | None = None
    fingerprint: str | None = None


def split_path(database: str | Path) -> Path:
    """Where the split belonging to a database is kept: `my.db` has `my.split.npz`."""
    return Path(database).with_suffix(".split.npz")


def save_split(path: str | Path, split: Split, replace: bool = True) -> None:
    """Write SchNetPack's split file (npz with train_idx, val_idx, test_idx), atomically.

    Without `replace`, a file that is there stays, also one that another process just made.
    """
    arrays = {f"{name}_idx": np.array(getattr(split, name), dtype=np.int64) for name in SUBSETS}
    if split.request is not None:
        arrays["request"] = np.array(json.dumps(split.request, sort_keys=True))
    if split.fingerprint is not None:
        arrays["fingerprint"] = np.array(split.fingerprint)
    with replacing(path, overwrite=replace) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_split(path: str | Path, n_structures: int, fingerprint: str | None = None) -> Split:
    """Read a split file and check that it fits a database.

    Raises:
        ValueError: it is damaged, or was made for other data.
    """
    try:
        with np.load(path) as data:
            parts = {name: data[f"{name}_idx"].tolist() for name in SUBSETS}
            request = json.loads(str(data["request"])) if "request" in data else None
            made_for = str(data["fingerprint"]) if "fingerprint" in data else None
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no split file ({error}); choose another with data.split_file=..."
        ) from error
    problem = _misfit(parts, n_structures)
    if fingerprint is not None and made_for is not None and made_for != fingerprint:
        problem = problem or "its fingerprint is that of another database"
    if problem:
        raise ValueError(
            f"the split file {path} was made for other data: {problem}; choose another with"
            " data.split_file=..."
        )
    return Split(**parts, request=request, fingerprint=made_for)


def _misfit(parts: dict[str, Sequence[int]], n_structures: int) -> str:
    indices = [k for part in parts.values() for k in part]
    if len(set(indices)) != len(indices):
        return "a structure stands in two subsets"
    if indices and not (min(indices) >= 0 and max(indices) < n_structures):
        return f"it names structure {max(indices)} of {n_structures}"
    return ""
