"""Structures of a database that are the same but for rotation, numbering of atoms and cell.

Two structures are taken for the same where the distances of all pairs of atoms within 6 Ang, sorted
by the elements of the pair, differ by no more than twice the tolerance: so they do if each atom is
moved by less than that. A supercell has the distances of its cell, each several times. Different
structures of the same distances are conceivable, and would have different labels; such pairs are
told apart from those whose labels agree.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from schnetpack_softadapt.data.database import open_database, row_structure
from schnetpack_softadapt.data.edit.editing import read_rows
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["Duplicate", "find_duplicates"]

CUTOFF = 6.0  # Ang
N_NEAREST = 16
SAME_ENERGY, SAME_FORCE = 1e-3, 0.02  # eV/atom, eV/Ang: what 1e-3 Ang may do


@dataclass(frozen=True)
class Duplicate:
    """A structure that is there already.

    Attributes:
        kept, other: numbers in the database, counted from 0.
        energy: difference of the two, per atom, in the unit of the database.
        force: largest difference of the magnitudes of forces; nan without forces.
    """

    kept: int
    other: int
    energy: float
    force: float

    @property
    def differs(self) -> bool:
        """Whether the labels are not the same."""
        return abs(self.energy) > SAME_ENERGY or self.force > SAME_FORCE


def find_duplicates(
    path: str | Path, tolerance: float = 1e-3, keep: str = "first"
) -> list[Duplicate]:
    """All structures that resemble an earlier (or, with keep="last", a later) one.

    Args:
        path: the database, with lengths in Ang.
        tolerance: by which atoms may be moved, Ang.
        keep: which of several is kept, "first" or "last" in the database.

    Raises:
        ValueError: a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"--tolerance is a length in Ang, not {tolerance}")
    features: dict[tuple, list[np.ndarray]] = {}
    members: dict[tuple, list[int]] = {}
    for k, row in enumerate(read_rows(Path(path), "comparing")):
        s = row_structure(row)
        kind = _composition(s)
        features.setdefault(kind, []).append(_nearest(s))
        members.setdefault(kind, []).append(k)
    found: dict[int, Duplicate] = {}
    with open_database(path) as database:
        ids = [row.id for row in database.select(sort="id", include_data=False)]

        @lru_cache(256)
        def structure(k: int) -> tuple[Structure, dict]:
            s = row_structure(database.get(id=ids[k]))
            return s, dict(_distances(s))

        for kind, values in features.items():
            order = slice(None, None, -1 if keep == "last" else 1)
            of_kind = members[kind][order]
            for a, b in _candidates(np.array(values)[order], 2 * tolerance):
                first, second = of_kind[a], of_kind[b]
                if first in found or second in found:
                    continue
                (s, mine), (t, theirs) = structure(first), structure(second)
                if all(_differ(mine[pair], theirs[pair]) <= 2 * tolerance for pair in mine):
                    found[second] = _compared(first, s, second, t)
    return [found[k] for k in sorted(found)]


def _composition(s: Structure) -> tuple:
    """What two structures must have in common exactly, whatever their cells."""
    elements, counts = np.unique(s.numbers, return_counts=True)
    unit = math.gcd(*counts.tolist()) if s.pbc.any() else 1
    return int(s.pbc.sum()), *zip(elements.tolist(), (counts // unit).tolist(), strict=True)


def _nearest(s: Structure) -> np.ndarray:
    """Smallest, mean and largest distance over the atoms to the nearest, the second.. neighbour.

    Ang, (3 N_NEAREST,). None changes by more than twice what an atom is moved; atoms without so
    many neighbours within the cutoff have some at the cutoff.
    """
    i, _, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, CUTOFF)
    distances = np.linalg.norm(r_ij, axis=1)
    order = np.lexsort((distances, i))
    rank = np.arange(len(i)) - np.searchsorted(i, i)  # i ascends
    table = np.full((s.n_atoms, N_NEAREST), CUTOFF)
    near = rank < N_NEAREST
    table[i[near], rank[near]] = distances[order][near]
    return np.concatenate([table.min(axis=0), table.mean(axis=0), table.max(axis=0)])


def _candidates(features: np.ndarray, reach: float) -> Iterator[tuple[int, int]]:
    """Pairs a < b of rows that differ by no more than `reach` in any column, ascending."""
    tree = cKDTree(features)
    for a, row in enumerate(features):
        for b in sorted(tree.query_ball_point(row, reach * (1 + 1e-9), p=np.inf)):
            if a < b:
                yield a, b


def _distances(s: Structure) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Sorted distances from atoms a to atoms b within the cutoff, then the number of atoms a."""
    i, j, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, CUTOFF)
    distances, z_i, z_j = np.linalg.norm(r_ij, axis=1), s.numbers[i], s.numbers[j]
    elements, counts = np.unique(s.numbers, return_counts=True)
    for a, n in zip(elements.tolist(), counts.tolist(), strict=True):
        for b in elements.tolist():
            # with the number of atoms, by which cells and supercells compare
            yield (a, b), np.append(np.sort(distances[(z_i == a) & (z_j == b)]), n)


def _differ(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of sorted distances, those of a cell repeated as in its supercell."""
    n, m = int(mine[-1]), int(theirs[-1])
    common = math.lcm(n, m)
    a, b = np.repeat(mine[:-1], common // n), np.repeat(theirs[:-1], common // m)
    size = max(len(a), len(b))
    a, b = (np.pad(x, (0, size - len(x)), constant_values=CUTOFF) for x in (a, b))
    return float(abs(a - b).max(initial=0.0))


def _compared(first: int, s: Structure, second: int, t: Structure) -> Duplicate:
    energy = np.nan
    if None not in (s.energy, t.energy):
        energy = t.energy / t.n_atoms - s.energy / s.n_atoms
    force = np.nan
    if s.forces is not None and t.forces is not None:
        common = math.lcm(s.n_atoms, t.n_atoms)
        norms = [
            np.repeat(np.sort(np.linalg.norm(x.forces, axis=1)), common // x.n_atoms)
            for x in (s, t)
        ]
        force = float(abs(norms[0] - norms[1]).max())
    return Duplicate(first, second, float(energy), force)
