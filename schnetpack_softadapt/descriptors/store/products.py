"""Products with the Jacobian of a descriptor store, read where it lies (a map of a file).

Each number of the store is used once per product, so the speed is that of reading memory: the
inner loops run over the contiguous columns of a block and do two operations per number.
Compiled without the global interpreter lock, for stores of any type; integers are
converted as they are read.

With B_ij = dG_i/dR_j (block of a pair of distinct atoms) and S_i = dG_i/dstrain (Voigt), for atoms
i of structure m:

    product with a vector u:   F_j = sum_i u_i B_ij - (j's own blocks),  V_m = sum_i u_i S_i - F R
    product with tangents t:   G'_i = sum_j B_ij (t_j - t_i) + S_i s,    t_j = R'_j - strain' R_j

A descriptor does not change when all atoms move together, so that the block of an atom with itself
is minus the sum of its others: it is neither stored nor read. Strain moves positions and periodic
offsets; -F R takes out the part that autograd already sends through the positions.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_ROWS

__all__ = ["StoredAtoms", "jvp_atoms", "subtract_flow", "vjp_atoms"]

# sums may be reordered and fused, but nan and inf must come out as what they are
_FASTMATH = {"reassoc", "nsz", "contract", "arcp"}


class StoredAtoms(NamedTuple):
    """The N atoms of a batch, and the arrays of their store."""

    rows: np.ndarray  # (N,) rows in the store
    idx_m: np.ndarray  # (N,) structure of each atom, ascending
    positions: np.ndarray  # (N, 3) float64
    dg_dstrain: np.ndarray  # (rows, 6, D)
    block_first: np.ndarray  # (rows + 1,)
    block_atom: np.ndarray  # (blocks,)
    block_columns: np.ndarray  # (blocks,) row of `columns`
    # (n, W) columns of a block; what fills a row up to W has zeros in the block
    columns: np.ndarray
    dg_dr: np.ndarray  # (blocks, 3, W), real numbers, or integers in units of `scale`
    scale: np.ndarray  # (rows, D), or of length 0 if `dg_dr` holds real numbers


@njit(cache=True, nogil=True)
def _structure_of(i, idx_m):
    """First and last + 1 atom of the structure to which atom i belongs."""
    first = i
    while first > 0 and idx_m[first - 1] == idx_m[i]:
        first -= 1
    last = i + 1
    while last < len(idx_m) and idx_m[last] == idx_m[i]:
        last += 1
    return first, last


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def vjp_atoms(begin, end, u, atoms, grad_r, grad_strain):
    """Add the products of atoms begin..end of the batch.

    Args:
        begin, end: range of atoms.
        u: (N, D) of the type of `dg_dstrain`, in which the products are computed.
        atoms: `StoredAtoms`.
        grad_r: (N, 3) float64, added to.
        grad_strain: (B, 3, 3) float64, added to; of length 0 if not wanted. Without the
            -F R of the module's docstring, which `grad_r` of all atoms is needed for.

    Returns:
        -1, or the first atom that does not fit the store.
    """
    rows, idx_m, _, dg_dstrain, block_first, block_atom = atoms[:6]
    block_columns, columns, dg_dr, scale = atoms[6:]
    n_columns, width = u.shape[1], columns.shape[1]
    n_lists = len(columns)
    has_strain, has_scale = len(grad_strain) > 0, len(scale) > 0
    chosen = np.empty((n_lists, width), u.dtype)
    chosen_for = np.full(n_lists, -1)
    real = u.dtype.type
    zero = real(0)
    first, last = 0, 0
    for i in range(begin, end):
        if i >= last:
            first, last = _structure_of(i, idx_m)
        row = rows[i]
        if row < 0 or row >= len(block_first) - 1 or block_first[row + 1] > len(block_atom):
            return i
        f_x, f_y, f_z = 0.0, 0.0, 0.0
        for b in range(block_first[row], block_first[row + 1]):
            j = first + block_atom[b]
            which = block_columns[b]
            if j < first or j >= last or which < 0 or which >= n_lists:
                return i
            if chosen_for[which] != i:
                chosen_for[which] = i
                for k in range(width):
                    chosen[which, k] = u[i, columns[which, k]]
                    if has_scale:
                        chosen[which, k] *= scale[row, columns[which, k]]
            s_x, s_y, s_z = zero, zero, zero
            for k in range(width):
                value = chosen[which, k]
                s_x += value * real(dg_dr[b, 0, k])
                s_y += value * real(dg_dr[b, 1, k])
                s_z += value * real(dg_dr[b, 2, k])
            grad_r[j, 0] += s_x
            grad_r[j, 1] += s_y
            grad_r[j, 2] += s_z
            f_x += s_x
            f_y += s_y
            f_z += s_z
        grad_r[i, 0] -= f_x
        grad_r[i, 1] -= f_y
        grad_r[i, 2] -= f_z
        if has_strain:
            m = idx_m[i]
            if m < 0 or m >= len(grad_strain):
                return i
            for v in range(6):
                s_x = zero
                for k in range(n_columns):
                    s_x += u[i, k] * dg_dstrain[row, v, k]
                a, c = VOIGT_ROWS[v], VOIGT_COLUMNS[v]
                grad_strain[m, a, c] += s_x
                if a != c:
                    grad_strain[m, c, a] += s_x
    return -1


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def jvp_atoms(begin, end, tangent_r, tangent_strain, atoms, tangent_g):
    """Write the rows begin..end of G', the exact transpose of `vjp_atoms`.

    Args:
        begin, end, atoms: as there.
        tangent_r: (N, 3) float64, change of the positions.
        tangent_strain: (B, 3, 3) float64, change of the strain, or of length 0.
        tangent_g: (N, D) of the type of `dg_dstrain`, written.

    Returns:
        -1, or the first atom that does not fit the store.
    """
    rows, idx_m, positions, dg_dstrain, block_first, block_atom = atoms[:6]
    block_columns, columns, dg_dr, scale = atoms[6:]
    n_columns, width = tangent_g.shape[1], columns.shape[1]
    n_lists = len(columns)
    has_strain, has_scale = len(tangent_strain) > 0, len(scale) > 0
    real = tangent_g.dtype.type
    change = np.zeros((n_lists, width), tangent_g.dtype)
    used = np.zeros(n_lists, np.bool_)
    voigt = np.zeros(6, tangent_g.dtype)
    # a window of tangents of one structure, with what the strain moves taken out
    t = np.empty((0, 3))
    first, last = 0, 0
    for i in range(begin, end):
        m = idx_m[i]
        if has_strain and (m < 0 or m >= len(tangent_strain)):
            return i
        if i >= last:
            first, last = _structure_of(i, idx_m)
            t = np.empty((last - first, 3))
            for j in range(first, last):
                for a in range(3):
                    t[j - first, a] = tangent_r[j, a]
                    if has_strain:
                        for c in range(3):
                            t[j - first, a] -= tangent_strain[m, a, c] * positions[j, c]
            if has_strain:
                for a in range(3):
                    voigt[a] = tangent_strain[m, a, a]
                voigt[3] = tangent_strain[m, 1, 2] + tangent_strain[m, 2, 1]
                voigt[4] = tangent_strain[m, 0, 2] + tangent_strain[m, 2, 0]
                voigt[5] = tangent_strain[m, 0, 1] + tangent_strain[m, 1, 0]
        row = rows[i]
        if row < 0 or row >= len(block_first) - 1 or block_first[row + 1] > len(block_atom):
            return i
        for b in range(block_first[row], block_first[row + 1]):
            j = block_atom[b]
            which = block_columns[b]
            if j < 0 or j >= last - first or which < 0 or which >= n_lists:
                return i
            used[which] = True
            t_x = real(t[j, 0] - t[i - first, 0])
            t_y = real(t[j, 1] - t[i - first, 1])
            t_z = real(t[j, 2] - t[i - first, 2])
            for k in range(width):
                change[which, k] += (
                    t_x * real(dg_dr[b, 0, k])
                    + t_y * real(dg_dr[b, 1, k])
                    + t_z * real(dg_dr[b, 2, k])
                )
        for k in range(n_columns):
            tangent_g[i, k] = 0.0
        if has_strain:
            for v in range(6):
                for k in range(n_columns):
                    tangent_g[i, k] += voigt[v] * dg_dstrain[row, v, k]
        for which in range(n_lists):
            if used[which]:
                used[which] = False
                for k in range(width):
                    if has_scale:
                        change[which, k] *= scale[row, columns[which, k]]
                    tangent_g[i, columns[which, k]] += change[which, k]
                    change[which, k] = 0.0
    return -1


@njit(cache=True, nogil=True)
def subtract_flow(grad_r, positions, idx_m, grad_strain):
    """Take sum_i F_i (x) R_i of each structure from `grad_strain` (B, 3, 3), in place.

    Args:
        grad_r: (N, 3) F, gradient by the positions, of all atoms of the batch.
        positions: (N, 3).
        idx_m: (N,).
        grad_strain: (B, 3, 3).
    """
    for i in range(len(idx_m)):
        m = idx_m[i]
        for a in range(3):
            for c in range(3):
                grad_strain[m, a, c] -= grad_r[i, a] * positions[i, c]
