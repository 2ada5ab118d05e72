"""Compiled loops over close pairs: the ZBL repulsion, and how close the neighbours of an atom are.

Pairs go both ways, as in any pair list: each way carries half of a pair's energy.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

__all__ = ["N_PARAMETERS", "add_zbl", "closeness", "zbl_parameters", "zbl_table"]

#: of a pair of elements: Z_i Z_j e^2, a, inner, outer, A / 3, B / 4, C
N_PARAMETERS = 7

#: e^2 / (4 pi eps_0) in eV Ang, as LAMMPS has it in its metal units
COULOMB = 14.399645

_C = (0.18175, 0.50986, 0.28022, 0.02817)
_D = (3.19980, 0.94229, 0.40290, 0.20162)


def zbl_parameters(z_i: int, z_j: int, inner: float, outer: float) -> np.ndarray:
    """(N_PARAMETERS,) of a pair of elements, in eV and Ang.

    The screened Coulomb energy E of J. F. Ziegler, J. P. Biersack, U. Littmark, "The Stopping and
    Range of Ions in Solids" (1985), with the screening length 0.4685 / (Z_i^0.23 + Z_j^0.23) Ang,
    ends at `outer` with energy, force and curvature zero: E + C below `inner` and
    E + A/3 (r - inner)^3 + B/4 (r - inner)^4 + C up to `outer`, as in LAMMPS' documentation of
    `pair_style zbl`.
    """
    p = np.zeros(N_PARAMETERS)
    p[:4] = z_i * z_j * COULOMB, 0.46850 / (z_i**0.23 + z_j**0.23), inner, outer
    e, de, dde = _screened(outer, p[0], p[1])
    width = outer - inner
    a = (-3.0 * de + width * dde) / width**2
    b = (2.0 * de - width * dde) / width**3
    p[4:] = a / 3.0, b / 4.0, -e + width / 2.0 * de - width**2 / 12.0 * dde
    return p


def zbl_table(
    elements: Sequence[int], cutoffs: Mapping[tuple[int, int], tuple[float, float]]
) -> np.ndarray:
    """(n, n, N_PARAMETERS) for `add_zbl`, of inner and outer cutoff (Ang) by atomic numbers."""
    table = np.zeros((len(elements), len(elements), N_PARAMETERS))
    for (a, b), (inner, outer) in cutoffs.items():
        i, j = elements.index(a), elements.index(b)
        table[i, j] = table[j, i] = zbl_parameters(a, b, inner, outer)
    return table


@njit(nogil=True, cache=True)
def _screened(r, zze, a):
    """E, dE/dr and d2E/dr2 of the screened Coulomb energy."""
    s = ds = dds = 0.0
    for c, d in zip(_C, _D):  # noqa: B905 (numba has no strict)
        k = d / a
        term = c * math.exp(-k * r)
        s += term
        ds -= k * term
        dds += k * k * term
    e = zze * s / r
    de = zze * ds / r - e / r
    dde = zze * dds / r - 2.0 * de / r
    return e, de, dde


@njit(nogil=True, cache=True)
def add_zbl(r_ij, idx_i, idx_j, rows, table, energies, gradient):
    """Add atomic energies and derivatives by the pair vectors.

    Args:
        r_ij, idx_i, idx_j: pairs (P, 3), (P,), (P,), Ang.
        rows: (N,) element of each atom in the table.
        table: (n, n, N_PARAMETERS).
        energies: (N,) or fewer, of the atoms idx_i; eV, added to.
        gradient: (P, 3) dE/dr_ij, added to.
    """
    for p in range(len(idx_i)):
        t = table[rows[idx_i[p]], rows[idx_j[p]]]
        x, y, z = r_ij[p, 0], r_ij[p, 1], r_ij[p, 2]
        r2 = x * x + y * y + z * z
        if r2 >= t[3] * t[3]:
            continue
        r = math.sqrt(r2)
        e, de, _ = _screened(r, t[0], t[1])
        e += t[6]
        if r > t[2]:
            w = r - t[2]
            e += w * w * w * (t[4] + t[5] * w)
            de += w * w * (3.0 * t[4] + 4.0 * t[5] * w)
        energies[idx_i[p]] += 0.5 * e
        slope = 0.5 * de / r
        gradient[p, 0] += slope * x
        gradient[p, 1] += slope * y
        gradient[p, 2] += slope * z


@njit(nogil=True, cache=True)
def closeness(r_ij, idx_i, idx_j, rows, start, stop, n_central):
    """x_i = sum_j q(r_ij), q = ((start - r)/(start - stop))^3 below `start`, else 0.

    Args:
        r_ij, idx_i, idx_j, rows: as for `add_zbl`.
        start, stop: (n, n) by element, Ang.
        n_central: atoms asked for, the first ones.

    Returns:
        x (n_central,), and dq/dr_ij (P, 3), which is empty where no pair is close.
    """
    x = np.zeros(n_central)
    slope = np.zeros((0, 3))
    for p in range(len(idx_i)):
        a, b = rows[idx_i[p]], rows[idx_j[p]]
        r2 = r_ij[p, 0] ** 2 + r_ij[p, 1] ** 2 + r_ij[p, 2] ** 2
        if r2 >= start[a, b] ** 2:
            continue
        if len(slope) == 0:
            slope = np.zeros((len(idx_i), 3))
        r, width = math.sqrt(r2), start[a, b] - stop[a, b]
        q = (start[a, b] - r) / width
        x[idx_i[p]] += q**3
        for k in range(3):
            slope[p, k] = -3.0 * q * q / width * r_ij[p, k] / r
    return x, slope
