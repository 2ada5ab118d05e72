"""Neighbours sorted by atom and channel, each channel padded to whole groups of eight."""

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.compiled import INDEX_OF_NO_ATOM, UNKNOWN_ELEMENT, VALID
from schnetpack_softadapt.descriptors.snap.kernels.vectors import LANES

__all__ = ["sort_groups"]


@njit(nogil=True, error_model="numpy")
def sort_groups(species, cutoffs, channel, n_channels, n_rows, r_ij, idx_i, idx_j, numbers):
    """Sort pairs within their cutoffs.

    Args:
        species: (119,) row of each element, -1 for those that are not known.
        cutoffs: (E, E) by element of atom and neighbour, Ang.
        channel: (E,) channel of a neighbour, below n_channels.
        n_rows: of the geometry, three or more.
        r_ij, idx_i, idx_j, numbers: see `Pairs`.

    Returns:
        status; rows (N,) of the elements; first (N C + 1,), slots of channel c of atom i being
        first[i C + c] to first[i C + c + 1]; pair (n_slots,), row of the pair list, -1 in padding;
        row_j (n_slots,), element of the neighbour; geometry (n_rows, n_slots), of which the first
        three are the vectors, the others zero.
    """
    n_atoms, n_pairs = len(numbers), len(idx_i)
    rows = np.zeros(n_atoms, np.int64)
    first = np.zeros(n_atoms * n_channels + 1, np.int64)
    slot = np.full(n_pairs, -1, np.int64)
    status = VALID
    for i in range(n_atoms):
        z = numbers[i]
        if z < 0 or z >= len(species) or species[z] < 0:
            status = UNKNOWN_ELEMENT
        else:
            rows[i] = species[z]
    for p in range(n_pairs):
        i, j = idx_i[p], idx_j[p]
        if i < 0 or j < 0 or i >= n_atoms or j >= n_atoms:
            status = INDEX_OF_NO_ATOM
    if status == VALID:
        for p in range(n_pairs):
            i, row_j = idx_i[p], rows[idx_j[p]]
            square = r_ij[p, 0] ** 2 + r_ij[p, 1] ** 2 + r_ij[p, 2] ** 2
            if not square >= cutoffs[rows[i], row_j] ** 2:  # a NaN stays in the sum
                c = i * n_channels + channel[row_j] + 1
                slot[p] = first[c]
                first[c] += 1
    for c in range(1, len(first)):
        first[c] = first[c - 1] + (first[c] + LANES - 1) // LANES * LANES
    n_slots = first[-1]
    geometry = np.zeros((n_rows, n_slots))
    pair, row_of_j = np.full(n_slots, -1, np.int64), np.zeros(n_slots, np.int64)
    for p in range(n_pairs):
        if slot[p] >= 0:
            row_j = rows[idx_j[p]]
            s = slot[p] + first[idx_i[p] * n_channels + channel[row_j]]
            pair[s], row_of_j[s] = p, row_j
            for k in range(3):
                geometry[k, s] = r_ij[p, k]
    return status, rows, first, pair, row_of_j, geometry
