"""Derivatives by pair vectors summed up to those by atoms and by strain; blocks of a Jacobian."""

import numpy as np
from numba import njit

from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_ROWS

__all__ = ["blocks", "sum_pairs"]


def sum_pairs(
    idx_i: np.ndarray,
    block: np.ndarray,
    r_ij: np.ndarray,
    by_pair: np.ndarray,
    n_atoms: int,
    dtype: type = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the pairs of a block (periodic images), and sum_p sym(dG/dr_p (x) r_p) of atoms.

    Args:
        idx_i: (P,) central atoms.
        block: (P,) block of each pair, 0 to its largest.
        r_ij: (P, 3) float64.
        by_pair: (P, 3, D) float64, dG_i/dr_p.
        n_atoms: N.
        dtype: of the results.

    Returns:
        (N, 6, D) in Voigt order; (n_blocks, 3, D).
    """
    n_blocks, n_columns = int(block.max(initial=-1)) + 1, by_pair.shape[2]
    strain, sums = np.zeros((n_atoms, 6, n_columns)), np.zeros((n_blocks, 3, n_columns))
    axes = np.array([VOIGT_ROWS, VOIGT_COLUMNS])
    _sum_pairs(idx_i, block, r_ij, np.ascontiguousarray(by_pair), axes, strain, sums)
    return strain.astype(dtype, copy=False), sums.astype(dtype, copy=False)


@njit(nogil=True, cache=True)
def _sum_pairs(idx_i, block, r_ij, by_pair, axes, strain, sums):
    for p in range(len(idx_i)):
        for a in range(3):
            for k in range(by_pair.shape[2]):
                sums[block[p], a, k] += by_pair[p, a, k]
        for v in range(6):
            a, b = axes[0, v], axes[1, v]
            x, y = 0.5 * r_ij[p, b], 0.5 * r_ij[p, a]
            for k in range(by_pair.shape[2]):
                strain[idx_i[p], v, k] += x * by_pair[p, a, k] + y * by_pair[p, b, k]


@njit(nogil=True, cache=True)
def blocks(first, order, idx_j, n_atoms):
    """Distinct atoms in the pair list of each atom.

    Distances and cutoffs are left alone: a neighbour in whose reach no function is has a block of
    zeros, and nobody can count other blocks than these.

    Returns:
        (block_first (N + 1,), block_atom (n_blocks,), pair_block (P,)): the atoms of i, ascending
        and with i itself, are block_atom[block_first[i]:block_first[i + 1]]; pair_block is the
        block of each pair counted from block_first[i].
    """
    block_first = np.zeros(n_atoms + 1, np.int64)
    block_atom = np.empty(len(idx_j) + n_atoms, np.int32)
    pair_block = np.empty(len(idx_j), np.int32)
    seen = np.full(n_atoms, -1, np.int64)
    number = np.empty(n_atoms, np.int32)
    n = 0
    for i in range(n_atoms):
        begin = n
        block_atom[n] = i
        seen[i] = i
        n += 1
        for k in range(first[i], first[i + 1]):
            j = idx_j[order[k]]
            if seen[j] != i:
                seen[j] = i
                block_atom[n] = j
                n += 1
        block_atom[begin:n].sort()
        for b in range(begin, n):
            number[block_atom[b]] = b - begin
        for k in range(first[i], first[i + 1]):
            pair_block[order[k]] = number[idx_j[order[k]]]
        block_first[i + 1] = n
    return block_first, block_atom[:n].copy(), pair_block
