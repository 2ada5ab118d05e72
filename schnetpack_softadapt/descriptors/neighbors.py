"""Pairs of atoms within a cutoff: molecules, slabs, crystals, also cells smaller than it.

Linked cells (M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids, sec. 5.3) of half the
cutoff, compiled, linear in the number of atoms, without the global interpreter lock.
"""

import numpy as np
from numba import njit

__all__ = ["neighbor_pairs", "neighbor_shifts"]

# what rounding may move an atom across a bin wall, as a fraction of the cell
_ROUNDING = 1e-9

# smallest volume of a cell relative to that of a box with edges of the same lengths
_FLAT = 1e-6

# atoms this many cells away lose digits, and would overflow the integers further out
_LARGEST_IMAGE = 2.0**31

_MOST_BINS = 2**20


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
    idx_i, idx_j, shifts, r_ij = neighbor_shifts(positions, cell, pbc, cutoff)
    vectors = np.where(np.asarray(pbc, bool)[:, None], np.asarray(cell, np.float64), 0.0)
    return idx_i, idx_j, r_ij, shifts @ vectors


def neighbor_shifts(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `neighbor_pairs`, with the images as integers.

    Returns:
        idx_i (P,) ascending, idx_j (P,), shifts (P, 3) int64, r_ij (P, 3) Ang;
        r_ij = R_j + shifts @ cell - R_i, and shifts are zero along non-periodic directions.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    cell = np.array(cell, dtype=np.float64).reshape(3, 3)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), 3)
    if not cutoff > 0 or not np.isfinite(cutoff):
        raise ValueError(f"the cutoff must be a positive length, got {cutoff}")
    box = cell
    if not pbc.all():
        cell[~pbc] = 0.0
        box = _complete(cell, pbc)
    valid, n_bins, reach, bins, image = _bin_atoms(positions, box, pbc, float(cutoff))
    if not valid:
        _explain(positions, cell, pbc)
    return _linked_cells(positions, cell, pbc, n_bins, reach, bins, image, float(cutoff) ** 2)


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


@njit(cache=True, nogil=True)
def _bin_atoms(positions, box, pbc, cutoff):
    """Bins of about half the cutoff: whether all is well, numbers of bins, bins to search, places.

    Returns:
        valid, n_bins (3,), reach (3,) bins to each side, bins (N, 3), image (N, 3) the periodic
        cell in which an atom was given.
    """
    n_atoms = len(positions)
    n_bins = np.ones(3, np.int64)
    reach = np.zeros(3, np.int64)
    bins = np.zeros((n_atoms, 3), np.int64)
    image = np.zeros((n_atoms, 3), np.int64)
    inverse = np.empty((3, 3))  # columns: reciprocal vectors
    for k in range(3):
        u, v = (k + 1) % 3, (k + 2) % 3
        for a in range(3):
            b, c = (a + 1) % 3, (a + 2) % 3
            inverse[a, k] = box[u, b] * box[v, c] - box[u, c] * box[v, b]
    volume = box[0, 0] * inverse[0, 0] + box[0, 1] * inverse[1, 0] + box[0, 2] * inverse[2, 0]
    edges = 1.0
    for k in range(3):
        edges *= np.sqrt(box[k, 0] ** 2 + box[k, 1] ** 2 + box[k, 2] ** 2)
    if not abs(volume) > _FLAT * edges:
        return False, n_bins, reach, bins, image
    for a in range(3):
        for k in range(3):
            inverse[a, k] /= volume
    scaled = np.empty((n_atoms, 3))
    low = np.zeros(3)
    high = np.ones(3)
    for k in range(3):
        if not pbc[k]:  # the box spans the atoms
            low[k], high[k] = np.inf, -np.inf
        for i in range(n_atoms):
            x = (
                positions[i, 0] * inverse[0, k]
                + positions[i, 1] * inverse[1, k]
                + positions[i, 2] * inverse[2, k]
            )
            if not abs(x) < _LARGEST_IMAGE:
                return False, n_bins, reach, bins, image
            if pbc[k]:
                image[i, k] = np.int64(np.floor(x))
                x -= image[i, k]
            else:
                low[k], high[k] = min(low[k], x), max(high[k], x)
            scaled[i, k] = x
    heights = np.empty(3)  # distance between opposite faces, Ang
    for k in range(3):
        if not pbc[k]:
            high[k] = low[k] + max(high[k] - low[k], 1e-6) * (1 + _ROUNDING)
        reciprocal = np.sqrt(inverse[0, k] ** 2 + inverse[1, k] ** 2 + inverse[2, k] ** 2)
        heights[k] = (high[k] - low[k]) / reciprocal
        n_bins[k] = min(max(np.int64(2.0 * heights[k] / cutoff), 1), _MOST_BINS)
    # not many more bins than atoms, or walking through empty ones costs more than they save
    while n_bins[0] * n_bins[1] * n_bins[2] > max(27, 2 * n_atoms):
        k = 0
        for a in range(1, 3):
            k = a if n_bins[a] > n_bins[k] else k
        n_bins[k] = (n_bins[k] + 1) // 2
    for k in range(3):
        width = heights[k] / n_bins[k]
        reach[k] = np.int64(np.ceil(cutoff / width * (1 + _ROUNDING) + _ROUNDING))
        if not pbc[k]:
            reach[k] = min(reach[k], n_bins[k])
        for i in range(n_atoms):
            place = np.int64((scaled[i, k] - low[k]) / (high[k] - low[k]) * n_bins[k])
            bins[i, k] = min(max(place, 0), n_bins[k] - 1)
    return True, n_bins, reach, bins, image


@njit(cache=True, nogil=True)
def _linked_cells(positions, cell, pbc, n_bins, reach, bins, image, cutoff2):
    """Pairs with a squared distance below cutoff2, from the bins of `_bin_atoms`."""
    n_atoms = len(positions)
    first = np.zeros(n_bins[0] * n_bins[1] * n_bins[2] + 1, np.int64)
    for i in range(n_atoms):
        first[(bins[i, 0] * n_bins[1] + bins[i, 1]) * n_bins[2] + bins[i, 2] + 1] += 1
    for b in range(len(first) - 1):
        first[b + 1] += first[b]
    order = np.empty(n_atoms, np.int64)
    rank = np.empty(n_atoms, np.int64)
    wrapped = np.empty((n_atoms, 3))  # in the order of the bins
    filled = np.zeros(len(first), np.int64)  # atoms of each bin so far
    for i in range(n_atoms):
        b = (bins[i, 0] * n_bins[1] + bins[i, 1]) * n_bins[2] + bins[i, 2]
        row = first[b] + filled[b]
        filled[b] += 1
        order[row] = i
        rank[i] = row
        for k in range(3):
            wrapped[row, k] = positions[i, k] - (
                image[i, 0] * cell[0, k] + image[i, 1] * cell[1, k] + image[i, 2] * cell[2, k]
            )
    # bin and image at a number of bins from the first one, so that no division is left below
    most = 0
    for k in range(3):
        most = max(most, n_bins[k] + 2 * reach[k])
    places = np.empty((3, most), np.int64)
    images = np.empty((3, most), np.int64)
    for k in range(3):
        for t in range(n_bins[k] + 2 * reach[k]):
            images[k, t] = (t - reach[k]) // n_bins[k]
            places[k, t] = t - reach[k] - images[k, t] * n_bins[k]
    capacity = max(64 * n_atoms, 1024)
    idx_i = np.empty(capacity, np.int64)
    idx_j = np.empty(capacity, np.int64)
    shifts = np.empty(3 * capacity, np.int64)
    n_pairs = 0
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for i in range(n_atoms):
        for k in range(3):
            low[k] = bins[i, k]
            high[k] = bins[i, k] + 2 * reach[k] + 1
            if not pbc[k]:
                low[k] = max(low[k], reach[k])
                high[k] = min(high[k], n_bins[k] + reach[k])
        me = rank[i]
        x_i, y_i, z_i = wrapped[me, 0], wrapped[me, 1], wrapped[me, 2]
        for ta in range(low[0], high[0]):
            sa, a = images[0, ta], places[0, ta]
            for tb in range(low[1], high[1]):
                sb, ab = images[1, tb], (a * n_bins[1] + places[1, tb]) * n_bins[2]
                x_ab = sa * cell[0, 0] + sb * cell[1, 0] - x_i
                y_ab = sa * cell[0, 1] + sb * cell[1, 1] - y_i
                z_ab = sa * cell[0, 2] + sb * cell[1, 2] - z_i
                for tc in range(low[2], high[2]):
                    sc, abc = images[2, tc], ab + places[2, tc]
                    x = x_ab + sc * cell[2, 0]
                    y = y_ab + sc * cell[2, 1]
                    z = z_ab + sc * cell[2, 2]
                    home = sa == 0 and sb == 0 and sc == 0
                    for row in range(first[abc], first[abc + 1]):
                        dx = wrapped[row, 0] + x
                        dy = wrapped[row, 1] + y
                        dz = wrapped[row, 2] + z
                        if dx * dx + dy * dy + dz * dz >= cutoff2 or (home and row == me):
                            continue
                        if n_pairs == capacity:
                            # room in proportion to what the atoms so far have used
                            more = max(capacity // 2, capacity * (n_atoms - i) // (i + 1))
                            capacity += min(more, 4 * capacity)
                            idx_i = _resized(idx_i, n_pairs, capacity)
                            idx_j = _resized(idx_j, n_pairs, capacity)
                            shifts = _resized(shifts, 3 * n_pairs, 3 * capacity)
                        j = order[row]
                        idx_i[n_pairs] = i
                        idx_j[n_pairs] = j
                        shifts[3 * n_pairs + 0] = sa - image[j, 0] + image[i, 0]
                        shifts[3 * n_pairs + 1] = sb - image[j, 1] + image[i, 1]
                        shifts[3 * n_pairs + 2] = sc - image[j, 2] + image[i, 2]
                        n_pairs += 1
    idx_i, idx_j = _resized(idx_i, n_pairs, n_pairs), _resized(idx_j, n_pairs, n_pairs)
    shifts = _resized(shifts, 3 * n_pairs, 3 * n_pairs).reshape(n_pairs, 3)
    # from the positions as they were given, so that no rounding of the wrapping is left in r_ij
    r_ij = np.empty((n_pairs, 3))
    for p in range(n_pairs):
        i, j = idx_i[p], idx_j[p]
        for k in range(3):
            offset = (
                shifts[p, 0] * cell[0, k] + shifts[p, 1] * cell[1, k] + shifts[p, 2] * cell[2, k]
            )
            r_ij[p, k] = offset + (positions[j, k] - positions[i, k])
    return idx_i, idx_j, shifts, r_ij


@njit(cache=True, nogil=True)
def _resized(values, n_used, size):
    """Copy of the first `n_used` values of a vector, with room for `size`."""
    new = np.empty(size, np.int64)
    for k in range(n_used):
        new[k] = values[k]
    return new
