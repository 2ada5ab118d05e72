"""Pair vectors from positions, and forces and virial from the derivatives by pair vectors."""

import numpy as np
from numba import njit

__all__ = ["add_pair_forces", "pair_vectors"]


@njit(nogil=True, cache=True)
def pair_vectors(positions, offsets, idx_i, idx_j):
    """r_ij = R_j - R_i + offset (P, 3) of positions (N, 3) and offsets (P, 3).

    Raises:
        IndexError: an index that is not that of an atom.
    """
    n_atoms = len(positions)
    r_ij = np.empty((len(idx_i), 3))
    for p in range(len(idx_i)):
        i, j = idx_i[p], idx_j[p]
        if i < 0 or j < 0 or i >= n_atoms or j >= n_atoms:
            raise IndexError("idx_i and idx_j must be indices of atoms")
        for k in range(3):
            r_ij[p, k] = positions[j, k] - positions[i, k] + offsets[p, k]
    return r_ij


@njit(nogil=True, cache=True)
def add_pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, forces, virial):
    """Add the forces and virials of an energy with the derivatives gradient = dE/dr_ij (P, 3).

    Args:
        idx_i, idx_j, r_ij: the pairs; fastest where those of an atom follow each other.
        idx_m: (N,) structure of each atom.
        forces: (N, 3), added to.
        virial: (n_structures, 3, 3) dE/dstrain, symmetric, added to.

    Raises:
        IndexError: an atom of no structure.
    """
    for m in idx_m:
        if m < 0 or m >= len(virial):
            raise IndexError("idx_m must be indices of structures")
    first = 0
    while first < len(idx_i):
        # sums of the pairs of one atom stay in registers
        i = idx_i[first]
        x = y = z = xx = yy = zz = yz = xz = xy = 0.0
        p = first
        while p < len(idx_i) and idx_i[p] == i:
            j = idx_j[p]
            a, b, c = gradient[p, 0], gradient[p, 1], gradient[p, 2]
            u, v, w = r_ij[p, 0], r_ij[p, 1], r_ij[p, 2]
            forces[j, 0] -= a
            forces[j, 1] -= b
            forces[j, 2] -= c
            x += a
            y += b
            z += c
            xx += a * u
            yy += b * v
            zz += c * w
            yz += b * w + c * v
            xz += a * w + c * u
            xy += a * v + b * u
            p += 1
        forces[i, 0] += x
        forces[i, 1] += y
        forces[i, 2] += z
        total = virial[idx_m[i]]
        total[0, 0] += xx
        total[1, 1] += yy
        total[2, 2] += zz
        total[1, 2] += 0.5 * yz
        total[0, 2] += 0.5 * xz
        total[0, 1] += 0.5 * xy
        first = p
    for total in virial:
        total[2, 1], total[2, 0], total[1, 0] = total[1, 2], total[0, 2], total[0, 1]
