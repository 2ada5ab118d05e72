"""Search for the neighbours of atoms by linked cells, in compiled loops.

M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids, sec. 5.3, with cells ("bins") of half
the cutoff; linear in the number of atoms, without the global interpreter lock.
"""

import numpy as np
from numba import njit

__all__ = ["bin_atoms", "link", "search", "vectors"]

# what rounding may move an atom across a bin wall, as a fraction of the cell
_ROUNDING = 1e-9

# smallest volume of a cell relative to that of a box with edges of the same lengths
_FLAT = 1e-6

# atoms this many cells away lose digits, and would overflow the integers (int32) further out
_LARGEST_IMAGE = 2.0**29

_MOST_BINS = 2**20


@njit(cache=True, nogil=True)
def bin_atoms(positions, box, pbc, cutoff):
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
def link(positions, cell, n_bins, bins, image):
    """Atoms in the order of their bins.

    Returns:
        first (n_bins + 1,) of each bin, order (N,) of the atoms, rank (N,) of each in it, wrapped
        (N, 3) positions within the cell, in that order.
    """
    n_atoms = len(positions)
    first = np.zeros(n_bins[0] * n_bins[1] * n_bins[2] + 1, np.int64)
    for i in range(n_atoms):
        first[(bins[i, 0] * n_bins[1] + bins[i, 1]) * n_bins[2] + bins[i, 2] + 1] += 1
    for b in range(len(first) - 1):
        first[b + 1] += first[b]
    order = np.empty(n_atoms, np.int32)
    rank = np.empty(n_atoms, np.int32)
    wrapped = np.empty((n_atoms, 3))
    filled = np.zeros(len(first), np.int32)  # atoms of each bin so far
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
    return first, order, rank, wrapped


@njit(cache=True, nogil=True)
def search(start, stop, cell, pbc, bins, links, cutoff2):
    """Pairs of the atoms start to stop - 1 with a squared distance below cutoff2."""
    n_bins, reach, bins, image = bins
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
    capacity = max(64 * (stop - start), 1024)
    idx_i = np.empty(capacity, np.int32)
    idx_j = np.empty(capacity, np.int32)
    shifts = np.empty((capacity, 3), np.int32)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    n_pairs = 0
    i = start
    while i < stop:
        for k in range(3):
            low[k] = bins[i, k]
            high[k] = bins[i, k] + 2 * reach[k] + 1
            if not pbc[k]:
                low[k] = max(low[k], reach[k])
                high[k] = min(high[k], n_bins[k] + reach[k])
        grid = (low, high, n_bins, places, images)
        found = _search_atom(i, cell, grid, image, links, cutoff2, idx_j, shifts, n_pairs)
        if found < 0:  # room in proportion to what the atoms so far have used, and again
            more = max(capacity // 2, capacity * (stop - i) // (i - start + 1))
            capacity += min(more, 4 * capacity)
            idx_i = _resized(idx_i, n_pairs, capacity)
            idx_j = _resized(idx_j, n_pairs, capacity)
            shifts = _resized(shifts, n_pairs, capacity)
            continue
        for p in range(n_pairs, found):
            idx_i[p] = i
        n_pairs = found
        i += 1
    # views: memory that was never written to is not taken from the machine
    return idx_i[:n_pairs], idx_j[:n_pairs], shifts[:n_pairs]


@njit(cache=True, nogil=True)
def _search_atom(i, cell, grid, image, links, cutoff2, idx_j, shifts, n_pairs):
    """Write the pairs of one atom behind `n_pairs` others; their new number, -1 without room."""
    low, high, n_bins, places, images = grid
    first, order, rank, wrapped = links
    me = rank[i]
    x_i, y_i, z_i = wrapped[me, 0], wrapped[me, 1], wrapped[me, 2]
    for ta in range(low[0], high[0]):
        sa, a = images[0, ta], places[0, ta]
        for tb in range(low[1], high[1]):
            sb, ab = images[1, tb], (a * n_bins[1] + places[1, tb]) * n_bins[2]
            x_ab = sa * cell[0, 0] + sb * cell[1, 0] - x_i
            y_ab = sa * cell[0, 1] + sb * cell[1, 1] - y_i
            z_ab = sa * cell[0, 2] + sb * cell[1, 2] - z_i
            tc = low[2]
            while tc < high[2]:
                # the bins of one image follow one another, and so do their atoms
                sc, c = images[2, tc], places[2, tc]
                n_same = min(high[2] - tc, n_bins[2] - c)
                tc += n_same
                begin, end = first[ab + c], first[ab + c + n_same]
                if n_pairs + end - begin > len(idx_j):
                    return -1
                x = x_ab + sc * cell[2, 0]
                y = y_ab + sc * cell[2, 1]
                z = z_ab + sc * cell[2, 2]
                myself = me if sa == 0 and sb == 0 and sc == 0 else -1
                found = n_pairs
                for row in range(begin, end):
                    dx = wrapped[row, 0] + x
                    dy = wrapped[row, 1] + y
                    dz = wrapped[row, 2] + z
                    # written before it is known whether it counts: a branch takes longer
                    idx_j[found] = row
                    near = dx * dx + dy * dy + dz * dz < cutoff2
                    found += np.int64(near & (row != myself))
                for p in range(n_pairs, found):
                    j = order[idx_j[p]]
                    idx_j[p] = j
                    shifts[p, 0] = sa - image[j, 0] + image[i, 0]
                    shifts[p, 1] = sb - image[j, 1] + image[i, 1]
                    shifts[p, 2] = sc - image[j, 2] + image[i, 2]
                n_pairs = found
    return n_pairs


@njit(cache=True, nogil=True)
def vectors(positions, cell, idx_i, idx_j, shifts):
    """R_j + shift @ cell - R_i, (P, 3)."""
    # from the positions as they were given, so that no rounding of the wrapping is left in r_ij
    n_pairs = len(idx_i)
    r_ij = np.empty((n_pairs, 3))
    for p in range(n_pairs):
        i, j = idx_i[p], idx_j[p]
        for k in range(3):
            offset = (
                shifts[p, 0] * cell[0, k] + shifts[p, 1] * cell[1, k] + shifts[p, 2] * cell[2, k]
            )
            r_ij[p, k] = offset + (positions[j, k] - positions[i, k])
    return r_ij


@njit(cache=True, nogil=True)
def _resized(values, n_used, size):
    """Copy of the first `n_used` rows, with room for `size`."""
    new = np.empty((size, *values.shape[1:]), values.dtype)
    new[:n_used] = values[:n_used]
    return new
