"""Pairs of atoms within a cutoff: molecules, slabs, crystals, also cells smaller than it.

All of a structure at once, or those of some atoms after others, so that a large one fits in memory.
"""

import numpy as np

from schnetpack_softadapt.neighbors.linked_cells import bin_atoms, link, search, vectors

__all__ = ["LinkedCells", "neighbor_pairs"]


def neighbor_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of atoms closer than the cutoff, both directions, periodic images included.

    Args:
        positions: (N, 3) Ang; need not lie within the cell.
        cell: (3, 3) lattice vectors in rows, Ang, of either handedness. Vectors of non-periodic
            directions are not used and may be zero.
        pbc: (3,) periodic along each lattice vector.
        cutoff: Ang.

    Returns:
        idx_i (P,) ascending, idx_j (P,), r_ij (P, 3) = R_j + offset - R_i in Ang, offsets (P, 3) in
        Ang, which are integer sums of the periodic lattice vectors. int64 and float64.

    Raises:
        ValueError: a periodic direction without a lattice vector, linearly dependent periodic
            vectors, numbers that are not finite, a cutoff that is not positive.
    """
    cells = LinkedCells(positions, cell, pbc, cutoff)
    idx_i, idx_j, shifts = cells.shifts()
    r_ij = vectors(cells.positions, cells.cell, idx_i, idx_j, shifts)
    return idx_i.astype(np.int64), idx_j.astype(np.int64), r_ij, shifts @ cells.cell


class LinkedCells:
    """Atoms in bins of about half the cutoff, to find the neighbours of some or all of them.

    About 110 bytes per atom and nothing per pair, so that the pairs of a large structure can be
    had in portions.

    Args:
        positions, cell, pbc, cutoff: as for `neighbor_pairs`, with its errors.

    Attributes:
        positions: (N, 3) as given, Ang.
        cell: (3, 3) lattice vectors, zero in non-periodic directions.
    """

    def __init__(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float):
        positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
        cell = np.array(cell, dtype=np.float64).reshape(3, 3)
        pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), 3)
        if not cutoff > 0 or not np.isfinite(cutoff):
            raise ValueError(f"the cutoff must be a positive length, got {cutoff}")
        box = cell
        if not pbc.all():
            cell[~pbc] = 0.0
            box = _complete(cell, pbc)
        valid, n_bins, reach, bins, image = bin_atoms(positions, box, pbc, float(cutoff))
        if not valid:
            _explain(positions, cell, pbc)
        self.positions, self.cell = positions, cell
        bins = (n_bins, reach, bins, image)
        links = link(positions, cell, n_bins, *bins[2:])
        self._arguments = (cell, pbc, bins, links, float(cutoff) ** 2)

    def shifts(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs whose first atom is in `start:stop`; of all atoms if not given.

        Returns:
            idx_i (P,) ascending, idx_j (P,), shifts (P, 3) int32: r_ij = R_j + shifts @ cell - R_i
            and shifts are zero along non-periodic directions.
        """
        start, stop, _ = slice(start, stop).indices(len(self.positions))
        return search(start, stop, *self._arguments)

    def pairs(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `shifts`, idx_i (P,) and idx_j (P,) int64, and r_ij (P, 3) Ang."""
        idx_i, idx_j, shifts = self.shifts(start, stop)
        r_ij = vectors(self.positions, self.cell, idx_i, idx_j, shifts)
        return idx_i.astype(np.int64), idx_j.astype(np.int64), r_ij


def _complete(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The periodic lattice vectors with unit vectors normal to them in the other directions."""
    box = cell.copy()
    if np.isfinite(cell).all():
        # rows of the null space of the periodic vectors; all of space if there are none
        box[~pbc] = np.linalg.svd(np.vstack([cell[pbc], np.zeros((1, 3))]))[2][pbc.sum() :]
    return box


def _explain(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise the error that says what is wrong with a structure."""
    if not np.isfinite(positions).all():
        atom = int(np.argmin(np.isfinite(positions).all(axis=1)))
        raise ValueError(f"the position of atom {atom} is not finite: {positions[atom]}")
    if not np.isfinite(cell[pbc]).all():
        raise ValueError(f"the cell is not finite: {cell.tolist()}")
    for axis in np.flatnonzero(pbc):
        if not cell[axis].any():
            raise ValueError(
                f"the structure is periodic along lattice vector {axis}, but that vector is zero;"
                " set the cell, or make that direction non-periodic"
            )
    raise ValueError(
        f"the periodic lattice vectors are linearly dependent, or an atom is too far away to count"
        f" cells: cell {cell.tolist()}, largest coordinate {np.abs(positions).max():g} Ang"
    )
