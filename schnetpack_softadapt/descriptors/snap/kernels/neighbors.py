"""Neighbours in groups of eight: their rotations, and the sums of these, the densities."""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.snap.kernels.groups import sort_groups
from schnetpack_softadapt.descriptors.snap.kernels.vectors import (
    LANES,
    add,
    fma,
    fnma,
    load,
    mul,
    splat,
    store,
    sub,
    total,
)

__all__ = ["INLINE", "Sorted", "advance_row", "densities", "load_rotation", "sort", "start_row"]

INLINE = {
    "error_model": "numpy",
    "nogil": True,
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}

#: rows of `Sorted.geometry`
X, Y, Z, INVERSE, SIN, COS, RATE, FACTOR, SLOPE = range(9)
_TINY_SQUARE = 1e-12  # Ang^2, keeps coinciding atoms finite, as in the reference


class Sorted(NamedTuple):
    """Neighbours within the cutoffs by atom and channel, each channel padded to whole groups."""

    # (N C + 1,) slots of channel c of atom i are first[i C + c] to first[i C + c + 1]
    first: np.ndarray
    pair: np.ndarray  # (n_slots,) row of the pair list, -1 in padding
    rows: np.ndarray  # (N,) element of each atom
    row_j: np.ndarray  # (n_slots,) element of the neighbour
    # (9, n_slots): unit vector (its padding 0), 1/r, sin theta, cos theta, dtheta/dr, f_c weight
    # and its derivative by r
    geometry: np.ndarray
    # (N, C, H, 2) sums of u, real and imaginary parts, without the atom itself
    densities: np.ndarray


@njit(nogil=True, cache=True, error_model="numpy")
def sort(plan, r_ij, idx_i, idx_j, numbers):
    """(status, `Sorted` with unit vectors still of length r; the rest of the geometry not set)."""
    n_channels, n_half = plan.sizes[1], plan.sizes[2]
    status, rows, first, pair, row_j, geometry = sort_groups(
        plan.species, plan.pair[:, :, 0], plan.channel, n_channels, 9, r_ij, idx_i, idx_j, numbers
    )
    room = np.empty((len(numbers), n_channels, n_half, 2))
    return status, Sorted(first, pair, rows, row_j, geometry, room)


@njit(nogil=True, error_model="numpy")
def _measure(plan, neighbors, i, s):
    """Geometry of slot s of atom i."""
    rfac0, rmin0, switch, inner = plan.options
    g = neighbors.geometry
    x, y, z = g[X, s], g[Y, s], g[Z, s]
    r = math.sqrt(max(x * x + y * y + z * z, _TINY_SQUARE))
    inverse = 1.0 / r
    g[X, s], g[Y, s], g[Z, s], g[INVERSE, s] = x * inverse, y * inverse, z * inverse, inverse
    pair = plan.pair[neighbors.rows[i], neighbors.row_j[s]]
    radius, weight, low, width = pair[0], pair[1], pair[2], pair[3]
    rate = math.pi / (radius - rmin0)
    angle = rate * (r - rmin0)
    g[SIN, s], g[COS, s] = math.sin(rfac0 * angle), math.cos(rfac0 * angle)
    g[RATE, s] = rfac0 * rate
    factor, slope = weight, 0.0
    if switch and r > rmin0:
        factor = 0.5 * weight * (math.cos(angle) + 1.0)
        slope = -0.5 * weight * rate * math.sin(angle)
    if inner:
        t = (r - low) / width
        if t <= -1.0:
            factor, slope = 0.0, 0.0
        elif t < 1.0:
            half = 0.5 * math.pi * t
            inside = 0.5 * (1.0 + math.sin(half))
            slope = slope * inside + factor * 0.25 * math.pi / width * math.cos(half)
            factor *= inside
    g[FACTOR, s], g[SLOPE, s] = factor, slope


@njit(**INLINE)
def load_rotation(geometry, s):
    """conj(a) and conj(b) of the group at slot s, real and imaginary parts."""
    sine = load(geometry[SIN], s)
    ar, ai = load(geometry[COS], s), mul(load(geometry[Z], s), sine)
    br, bi = mul(load(geometry[Y], s), sine), mul(load(geometry[X], s), sine)
    return ar, ai, br, bi


@njit(**INLINE)
def advance_row(row, out, j, ar, ai, br, bi):
    """Write row p of level j to `out` from that of level j - 1; (n, 2, 8) flat, may be the same."""
    # from the right, because the left neighbour is needed after
    xr, xi = load(row, (j - 1) * 16), load(row, (j - 1) * 16 + 8)
    store(out, j * 16, sub(mul(bi, xi), mul(br, xr)))
    store(out, j * 16 + 8, fnma(br, xi, sub(splat(0.0), mul(bi, xr))))
    for q in range(j - 1, 0, -1):
        yr, yi = load(row, q * 16 - 16), load(row, q * 16 - 8)
        real = fnma(ai, xi, mul(ar, xr))
        imaginary = fma(ai, xr, mul(ar, xi))
        real = fma(bi, yi, fnma(br, yr, real))
        imaginary = fnma(bi, yr, fnma(br, yi, imaginary))
        store(out, q * 16, real)
        store(out, q * 16 + 8, imaginary)
        xr, xi = yr, yi
    store(out, 0, fnma(ai, xi, mul(ar, xr)))
    store(out, 8, fma(ai, xr, mul(ar, xi)))


@njit(**INLINE)
def start_row(row, out, j, ar, ai, br, bi):
    """Write row p = j / 2 of level j from row p - 1 of level j - 1."""
    xr, xi = load(row, (j - 1) * 16), load(row, (j - 1) * 16 + 8)
    # with conj(a) = ar + i ai and conj(b) likewise
    store(out, j * 16, fma(ai, xi, mul(ar, xr)))
    store(out, j * 16 + 8, fnma(ai, xr, mul(ar, xi)))
    for q in range(j - 1, 0, -1):
        yr, yi = load(row, q * 16 - 16), load(row, q * 16 - 8)
        real = fma(bi, xi, mul(br, xr))
        imaginary = fnma(bi, xr, mul(br, xi))
        real = fma(ai, yi, fma(ar, yr, real))
        imaginary = fnma(ai, yr, fma(ar, yi, imaginary))
        store(out, q * 16, real)
        store(out, q * 16 + 8, imaginary)
        xr, xi = yr, yi
    store(out, 0, fma(bi, xi, mul(br, xr)))
    store(out, 8, fnma(bi, xr, mul(br, xi)))


@njit(**INLINE)
def _add_row(row, sums, n):
    for k in range(0, n * 16, 8):
        store(sums, k, add(load(sums, k), load(row, k)))


@njit(nogil=True, cache=True, error_model="numpy")
def densities(plan, neighbors, start, stop):
    """Compute the geometry and the densities of atoms start to stop."""
    twojmax, n_channels, n_half = plan.sizes[0], plan.sizes[1], plan.sizes[2]
    sums = np.empty(n_half * 16)
    row, following = np.zeros((twojmax + 1) * 16), np.zeros((twojmax + 1) * 16)
    for i in range(start, stop):
        for c in range(n_channels):
            k = i * n_channels + c
            first, last = neighbors.first[k], neighbors.first[k + 1]
            sums[:] = 0.0
            for s in range(first, last):
                _measure(plan, neighbors, i, s)
                if neighbors.pair[s] < 0:
                    neighbors.geometry[FACTOR, s] = neighbors.geometry[SLOPE, s] = 0.0
            for s in range(first, last, LANES):
                ar, ai, br, bi = load_rotation(neighbors.geometry, s)
                store(row, 0, load(neighbors.geometry[FACTOR], s))
                store(row, 8, splat(0.0))
                for p in range(twojmax // 2 + 1):
                    if p:
                        start_row(following, row, 2 * p, ar, ai, br, bi)
                    _add_row(row, sums[plan.row_first[p, 2 * p] * 16 :], 2 * p + 1)
                    for j in range(2 * p + 1, twojmax + 1):
                        advance_row(row, row, j, ar, ai, br, bi)
                        _add_row(row, sums[plan.row_first[p, j] * 16 :], j + 1)
                        if j == 2 * p + 1:
                            following[: (j + 1) * 16] = row[: (j + 1) * 16]
            out = neighbors.densities[i, c]
            for h in range(n_half):
                out[h, 0] = total(load(sums, h * 16)) * plan.half[h].scale
                out[h, 1] = total(load(sums, h * 16 + 8)) * plan.half[h].scale
