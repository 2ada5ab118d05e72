"""Which structures to label next: those least like what is known and what was chosen before.

A structure stands for one or more rows, descriptors in a whitened space: one for each of its atoms,
or one for their mean (and standard deviation). Rows of different elements have different columns,
and a last column for each element that is constant: linear models have a constant too, and atoms of
different elements are not close. All methods choose one structure after the other, so that the
first n of a longer choice are the choice of n; a structure counts with the row that speaks for it
most, and copies of chosen or known ones come last.

farthest: the largest distance to the nearest row that is known or chosen.
cur: the longest row, rows then made orthogonal to it. Of whitened rows the squared length is the
    leverage score of all singular vectors (G. Imbalzano et al., J. Chem. Phys. 148, 241730, 2018,
    for rows instead of columns).
leverage: the largest x A^-1 x with A = sum x x^T over known and chosen rows: the variance that a
    linear model has there, and D-optimal step by step.
maxvol: rows of the square submatrix of largest volume, which are those that extrapolate (grade
    max_j |x B^-1|_j > 1 where B is the submatrix): E. V. Podryabinkin, A. V. Shapeev, Comput.
    Mater. Sci. 140, 171 (2017). When no row extrapolates, another submatrix is begun.
scores: numbers given for the structures, such as the spread of a committee, largest first.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.whitening import Whitening
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["BY", "METHODS", "Rows", "select", "structure_rows"]

BY = ("atoms", "mean", "mean_std")

# of `Whitening`: few structures do not tell small directions from noise
_FLOOR = 1e-2
# of A before there are rows, in units of the variance of x
_RIDGE = 1e-3
# row exchange by which the volume grows at least
_TOLERANCE = 1.01
# squared length left of a row when it is a combination of those chosen
_DEPENDENT = 1e-10
_CHUNK = 20_000


class Rows:
    """Rows x (R, F) of structures, and the structure of each (R,), ascending.

    Args:
        x: rows.
        owner: 0 to n_structures - 1, each at least once.
    """

    def __init__(self, x: np.ndarray, owner: np.ndarray):
        self.x, self.owner = x, owner
        self.first = np.flatnonzero(np.diff(owner, prepend=-1))  # of each structure

    @classmethod
    def of_all(cls, parts: Sequence[np.ndarray]) -> "Rows":
        """From the rows of each structure."""
        owner = np.repeat(np.arange(len(parts)), [len(x) for x in parts])
        return cls(np.concatenate(parts), owner)

    def __len__(self):
        return len(self.first)

    def of(self, structure: int) -> slice:
        stop = self.first[structure + 1] if structure + 1 < len(self) else len(self.x)
        return slice(self.first[structure], stop)

    def largest(self, score: np.ndarray) -> np.ndarray:
        """Largest score (R,) of a row of each structure."""
        return np.maximum.reduceat(score, self.first)


def structure_rows(
    structures: Sequence[Structure],
    descriptor: Descriptor,
    by: str = "atoms",
    known: Sequence[Structure] = (),
) -> tuple[Rows, np.ndarray]:
    """Rows of structures, and (K, F) those of known ones; whitened by all of them together.

    Args:
        structures: to choose from.
        descriptor: of their atoms.
        by: "atoms", "mean" (over the atoms of each element) or "mean_std".
        known: new ones shall differ from these.

    Raises:
        ValueError: `by` is none of these, or a structure has no descriptors.
    """
    if by not in BY:
        raise ValueError(f"by {by!r} is none of {', '.join(BY)}")
    every, engine = [*structures, *known], descriptor.engine("cpu")
    n_columns, elements = descriptor.n_columns, list(descriptor.elements)
    n_moments = 2 if by == "mean_std" else 1
    parts: list[tuple[np.ndarray, np.ndarray]] = []  # values and element of each row
    owner = []
    bar = tqdm(every, "descriptors", unit=" structures", delay=2, leave=False, disable=None)
    for index, s in enumerate(bar):
        try:
            i, j, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, descriptor.cutoff)
            values = np.asarray(engine.values(engine.prepare(r_ij, i, j, s.numbers)))
            if not np.isfinite(values).all():
                raise ValueError("descriptors are not finite; look for coinciding atoms")
        except ValueError as error:
            which = "structure" if index < len(structures) else "known structure"
            number = index - (index >= len(structures)) * len(structures)
            raise ValueError(f"{which} {number}: {error}") from error
        kinds = np.searchsorted(elements, s.numbers)
        if by != "atoms":
            present = np.unique(kinds)
            moments = [(values[kinds == k].mean(0), values[kinds == k].std(0)) for k in present]
            values = np.array([np.concatenate(m[:n_moments]) for m in moments])
            kinds = present
        parts.append((values.astype(np.float32), kinds))
        owner.append(np.full(len(kinds), index))
    values, kinds = (np.concatenate(x) for x in zip(*parts, strict=True))
    owner, width = np.concatenate(owner), n_moments * n_columns + 1
    del parts
    x = np.zeros((len(values), len(elements) * width), np.float32)
    for k in np.unique(kinds):
        of_kind, start = kinds == k, k * width
        own = values[of_kind].astype(np.float64)
        x[of_kind, start : start + width - 1] = Whitening.of(own, _FLOOR)(own)
        x[of_kind, start + width - 1] = 1.0
    if by != "atoms":  # one row for a structure
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        x, owner = np.add.reduceat(x, first), owner[first]
    x = x[:, x.any(axis=0)]
    new = owner < len(structures)
    return Rows(x[new], owner[new]), x[~new]


def select(
    rows: Rows,
    n: int,
    method: str,
    known: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> list[int]:
    """Structures in the order of choice.

    Args:
        rows: of the structures.
        n: how many.
        method: of `METHODS`, not looked at with `scores`.
        known: rows (K, F) of structures that are known already.
        scores: of the structures, if these decide.

    Raises:
        ValueError: another method, or n beyond the number of structures.
    """
    if scores is None and method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    if not 0 < n <= len(rows):
        raise ValueError(f"{n} of {len(rows)} structures cannot be chosen")
    known = rows.x[:0] if known is None else known
    rounded = np.round(rows.x, 4) + 0.0  # no -0
    old = {row.tobytes() for row in np.round(known, 4).astype(rounded.dtype) + 0.0}
    first: dict[bytes, int] = {}
    for k in range(len(rows)):
        own = rounded[rows.of(k)]
        if not old or not all(row.tobytes() in old for row in own):
            first.setdefault(own.tobytes(), k)
    unique = np.array([*first.values()], dtype=np.int64)
    copies = np.setdiff1d(np.arange(len(rows)), unique).tolist()
    if scores is not None:
        order = unique[np.argsort(-np.asarray(scores)[unique], kind="stable")].tolist()
    elif not len(unique):
        order = []
    else:
        inside = np.isin(rows.owner, unique)
        some = Rows(rows.x[inside], np.searchsorted(unique, rows.owner[inside]))
        order = unique[METHODS[method](some, min(n, len(unique)), known)].tolist()
    return (order + copies)[:n]


def _farthest(rows: Rows, n: int, known: np.ndarray) -> list[int]:
    squares = (rows.x.astype(np.float64) ** 2).sum(1)
    nearest = squares.copy()  # from the centre, so that an outlier is first

    def approach(points: np.ndarray) -> None:
        for start in range(0, len(points), 256):
            some = points[start : start + 256]
            lengths = (some.astype(np.float64) ** 2).sum(1)
            for k in range(0, len(rows.x), _CHUNK):
                part = slice(k, k + _CHUNK)
                distances = squares[part, None] + lengths - 2.0 * (rows.x[part] @ some.T)
                np.minimum(nearest[part], distances.min(1), out=nearest[part])

    if len(known):
        nearest[:] = np.inf
        approach(known)
    chosen: list[int] = []
    while len(chosen) < n:
        chosen.append(_best(rows.largest(nearest), chosen))
        if len(chosen) == 1 and not len(known):
            nearest[:] = np.inf
        approach(rows.x[rows.of(chosen[-1])])
    return chosen


def _best(score: np.ndarray, chosen: Sequence[int]) -> int:
    """The structure with the largest score that is not chosen."""
    score[chosen] = -np.inf
    return int(score.argmax())


def _cur(rows: Rows, n: int, known: np.ndarray) -> list[int]:
    start = rows.x.astype(np.float64)
    least = _DEPENDENT * (start**2).sum(1).max()
    left, chosen = start.copy(), []
    if len(known):  # new is what is no combination of known rows
        _, sizes, right = np.linalg.svd(known.astype(np.float64), full_matrices=False)
        right = right[sizes > np.sqrt(_DEPENDENT) * sizes[0]]
        left -= (left @ right.T) @ right
    while len(chosen) < n:
        lengths = (left**2).sum(1)
        structure = _best(rows.largest(lengths), chosen)
        part = rows.of(structure)
        if lengths[part].max() <= least:  # nothing is new: begin again with those that are left
            left = start.copy()
            left[np.isin(rows.owner, chosen)] = 0.0
            continue
        chosen.append(structure)
        row = left[part][lengths[part].argmax()]
        row = row / np.linalg.norm(row)
        left -= np.outer(left @ row, row)
    return chosen


def _leverage(rows: Rows, n: int, known: np.ndarray) -> list[int]:
    x, known = rows.x, known.astype(np.float64)
    parts = [x[k : k + _CHUNK] for k in range(0, len(x), _CHUNK)]
    inverse = np.linalg.inv(_RIDGE * np.eye(x.shape[1]) + known.T @ known)
    chosen: list[int] = []
    while len(chosen) < n:
        leverage = np.concatenate([((part @ inverse) * part).sum(1) for part in parts])
        chosen.append(_best(rows.largest(leverage), chosen))
        added = x[rows.of(chosen[-1])].astype(np.float64)
        middle = np.linalg.inv(np.eye(len(added)) + added @ inverse @ added.T)
        inverse -= inverse @ added.T @ middle @ added @ inverse
    return chosen


def _maxvol(rows: Rows, n: int, known: np.ndarray) -> list[int]:
    width = rows.x.shape[1]

    def begin() -> tuple[np.ndarray, np.ndarray]:
        """B^-1 of rows that are nearly zero, and which rows of B are."""
        return np.eye(width) / np.sqrt(_RIDGE), np.ones(width, bool)

    inverse, empty = begin()
    for _ in _exchanges(known @ inverse, inverse, empty):
        pass
    chosen: list[int] = []
    while len(chosen) < n:
        grades = rows.x @ inverse
        grades[np.isin(rows.owner, chosen)] = 0.0
        for row in _exchanges(grades, inverse, empty):
            structure = int(rows.owner[row])
            if structure not in chosen:
                chosen.append(structure)
            if len(chosen) == n:
                break
        inverse, empty = begin()
    return chosen


def _exchanges(grades: np.ndarray, inverse: np.ndarray, empty: np.ndarray) -> Iterator[int]:
    """Put rows x into the submatrix B while one extrapolates, and yield each.

    Args:
        grades: x B^-1 (R, F), kept up to date.
        inverse: B^-1 (F, F), likewise.
        empty: (F,) rows of B that hold none of x so far; these go first, to the longest x.
    """
    while len(grades):
        if empty.any():
            row = int((grades[:, empty] ** 2).sum(1).argmax())
            own = np.where(empty, np.abs(grades[row]), 0.0)
        else:
            row = int(np.abs(grades).max(1).argmax())
            own = np.abs(grades[row])
        column = int(own.argmax())
        if own[column] <= _TOLERANCE:
            if not empty.any():
                return
            empty[:] = False  # rows left are combinations of those in B
            continue
        yield row
        change = grades[row].copy()
        change[column] -= 1.0
        change /= grades[row, column]
        grades -= np.outer(grades[:, column], change)
        inverse -= np.outer(inverse[:, column], change)
        empty[column] = False


METHODS = {"farthest": _farthest, "cur": _cur, "leverage": _leverage, "maxvol": _maxvol}
