"""Does a database hold trajectories, whose neighbouring frames resemble each other?"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.packed import PackedSamples

__all__ = ["Series", "trajectories"]

LEAST_FRAMES = 10
N_COMPARED = 20  # frames of a series
# to frames farther away: but not so far that a series of several phases looks like a trajectory
LEAST_LAG, LARGEST_LAG = 5, 20
ALIKE = 0.5  # distance of neighbours by that of other frames; 1 if all frames are independent
LEAST_DISTANCE = 0.01  # Ang; less is rounding, or atoms that follow the strain of their cell


class Series(NamedTuple):
    """Consecutive structures of the same atoms in the same order, and of the same group.

    Attributes:
        begin, end: first and last + 1 of them, counted within the data set.
        near: median distance of neighbouring frames, root mean square over atoms, Ang.
        far: of frames farther apart.
    """

    begin: int
    end: int
    near: float
    far: float


def trajectories(raw: PackedSamples, indices: Sequence[int]) -> Iterator[Series]:
    """Series in which neighbours resemble each other much more than frames farther apart do.

    Args:
        raw: the database, untransformed.
        indices: the structures to look at.
    """
    rng = np.random.default_rng(0)
    for begin, end in _series(raw, indices):
        if end - begin < LEAST_FRAMES:
            continue
        near, far = [], []
        for k in np.linspace(begin, end - 2, N_COMPARED).astype(int):
            lag = rng.integers(LEAST_LAG, min(LARGEST_LAG, (end - begin) // 2) + 1)
            near.append(_distance(raw, indices[k], indices[k + 1]))
            far.append(_distance(raw, indices[k], indices[k + lag if k + lag < end else k - lag]))
        near, far = np.array(near), np.array(far)
        if np.median(far) > LEAST_DISTANCE and np.median(near / far.clip(1e-9)) < ALIKE:
            yield Series(begin, end, float(np.median(near)), float(np.median(far)))


def _series(raw: PackedSamples, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    begin, known = 0, None
    for k, index in enumerate(indices):
        kind = [_values(raw, key, index).tobytes() for key in (properties.Z, keys.group)]
        if known is not None and kind != known:
            yield begin, k
            begin = k
        known = kind
    yield begin, len(indices)


def _values(raw: PackedSamples, key: str, index: int) -> np.ndarray:
    if key not in raw:  # databases need not have groups
        return np.zeros(0)
    first = raw.first(key)
    return raw.values(key)[first[index] : first[index + 1]]


def _distance(raw: PackedSamples, a: int, b: int) -> float:
    """Root mean square displacement (Ang) between two structures, without drift and strain."""
    cell_a, cell_b = (_values(raw, properties.cell, index)[0] for index in (a, b))
    moved = _values(raw, properties.R, b) - _values(raw, properties.R, a)
    # rows of a cell may be zero
    moved += _values(raw, properties.R, b) @ np.linalg.pinv(cell_b) @ (cell_a - cell_b)
    moved -= np.round(moved @ np.linalg.pinv(cell_a)) @ cell_a
    moved -= moved.mean(axis=0)
    return float(np.sqrt((moved**2).sum(axis=1).mean()))
