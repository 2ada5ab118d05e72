"""A neighbour list with a Verlet skin that stays exact while atoms and cell move.

The list is built for a radius larger than the cutoff by the skin and reused until a pair that is
not in it could have come within the cutoff. Let H0, R0 be the lattice vectors (rows) and positions
of the time of building, H, R those of now, and F a linear map, H0 F = H on the periodic vectors.
A pair with shift S then has the vector

    r = R_j - R_i + S H = r0 F + (u_j - u_i),        u = R - R0 F,

so |r| >= s |r0| - 2 max|u| with s the smallest singular value of F. Every pair that is missing had
|r0| >= cutoff + skin: as long as s (cutoff + skin) - 2 max|u| >= cutoff nothing is missed, however
the cell is strained, sheared or turned. (u is measured from its mean, which no pair vector sees.)
Vectors and offsets are always made from the present positions and cell.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.neighbors.pair_list import LinkedCells

__all__ = ["PairList", "SkinList", "check_finite"]


_NO_CHANGE = np.zeros((3, 3))


class PairList(NamedTuple):
    """Pairs within the cutoff, both directions, sorted by `idx_i`; r_ij = R_j - R_i + offset."""

    idx_i: np.ndarray  # (n_pairs,) int64
    idx_j: np.ndarray  # (n_pairs,) int64
    r_ij: np.ndarray  # (n_pairs, 3) Ang
    offsets: np.ndarray  # (n_pairs, 3) Ang


class SkinList:
    """Neighbour list of one structure that changes step by step.

    Args:
        cutoff: radius, Ang.
        skin: added to the cutoff when the list is built, Ang; 0 builds it whenever something moved.
    """

    def __init__(self, cutoff: float, skin: float = 0.5):
        if not cutoff > 0 or not skin >= 0:
            raise ValueError(f"cutoff must be positive and skin not negative: {cutoff}, {skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.n_builds = 0
        self.n_updates = 0
        self._positions: np.ndarray | None = None

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> PairList:
        """Pairs within the cutoff.

        Args:
            positions: (n_atoms, 3) Ang.
            cell: (3, 3) lattice vectors in rows, Ang; vectors of non-periodic directions are not
                used and may be zero.
            pbc: (3,) periodic directions.

        Raises:
            ValueError: positions or cell are not finite, or a periodic direction has no vector.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        # what non-periodic vectors are must not matter, not even for the decision to rebuild
        pbc = np.asarray(pbc, dtype=bool)
        cell = np.where(pbc[:, None], np.asarray(cell, dtype=np.float64), 0.0)
        self.n_updates += 1
        if not self._still_holds(positions, cell, pbc):
            self._build(positions, cell, pbc)
        return PairList(*_pairs_within(positions, cell, *self._list, self.cutoff))

    def _still_holds(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if (
            self._positions is None
            or positions.shape != self._positions.shape
            or pbc.tobytes() != self._pbc  # of three booleans, faster than comparing arrays
        ):
            return False
        stretch, change = 1.0, _NO_CHANGE
        if cell.tobytes() != self._cell.tobytes():
            # F = 1 + pinv(H0) (H - H0) maps the periodic vectors and leaves what is normal to them
            change = self._inverse @ (cell - self._cell)
            stretch = np.linalg.svd(np.eye(3) + change, compute_uv=False)[-1]
        largest = _largest_displacement(positions, self._positions, change)
        reach = stretch * (self.cutoff + self.skin) - 2.0 * largest
        # nan compares false; the factor covers the rounding of the pair vectors
        return bool(reach >= self.cutoff * (1.0 + 1e-12))

    def _build(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        self._positions = None  # an error below must not leave a list that looks valid
        check_finite(positions, cell)
        self._list = LinkedCells(positions, cell, pbc, self.cutoff + self.skin).shifts()
        self._positions, self._cell, self._pbc = positions.copy(), cell, pbc.tobytes()
        self._inverse = np.linalg.pinv(cell)
        self.n_builds += 1


def check_finite(positions: np.ndarray, cell: np.ndarray) -> None:
    """Refuse what a simulation that went wrong leaves behind.

    Raises:
        ValueError: a number that is not finite.
    """
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise ValueError(
            "positions or cell are not finite: the simulation has exploded; try a smaller time"
            " step, and check whether the structure left the range of the training data"
        )


@njit(cache=True)
def _largest_displacement(positions, reference, change):
    """Largest |u_i - mean u| of u = positions - reference (1 + change)."""
    n_atoms = len(positions)
    u = np.empty((n_atoms, 3))
    mean = np.zeros(3)
    for i in range(n_atoms):
        for k in range(3):
            u[i, k] = positions[i, k] - reference[i, k]
            for l in range(3):
                u[i, k] -= reference[i, l] * change[l, k]
            mean[k] += u[i, k] / n_atoms
    largest = 0.0
    for i in range(n_atoms):
        square = 0.0
        for k in range(3):
            square += (u[i, k] - mean[k]) ** 2
        if not square <= largest:  # also when it is nan
            largest = square
    return np.sqrt(largest)


@njit(cache=True)
def _pairs_within(positions, cell, idx_i, idx_j, shifts, cutoff):
    """The pairs of a list that are closer than the cutoff now, with their vectors."""
    n_pairs = len(idx_i)
    out_i = np.empty(n_pairs, np.int64)
    out_j = np.empty(n_pairs, np.int64)
    r_ij = np.empty((n_pairs, 3))
    offsets = np.empty((n_pairs, 3))
    square = cutoff * cutoff
    n = 0
    for p in range(n_pairs):
        i, j = idx_i[p], idx_j[p]
        a, b, c = shifts[p, 0], shifts[p, 1], shifts[p, 2]
        u = a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0]
        v = a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1]
        w = a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2]
        x = positions[j, 0] - positions[i, 0] + u
        y = positions[j, 1] - positions[i, 1] + v
        z = positions[j, 2] - positions[i, 2] + w
        # written in any case and overwritten by the next: a branch here is often mispredicted
        out_i[n], out_j[n] = i, j
        offsets[n, 0], offsets[n, 1], offsets[n, 2] = u, v, w
        r_ij[n, 0], r_ij[n, 1], r_ij[n, 2] = x, y, z
        n += 1 if x * x + y * y + z * z < square else 0
    return out_i[:n], out_j[:n], r_ij[:n], offsets[:n]
