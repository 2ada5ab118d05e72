"""Neighbours of one atom within a cutoff, laid out so that loops over them vectorise.

Arrays of neighbours start at `FIRST`, entry 0 is a dummy neighbour whose factors are zero, and all
arrays have room for `PAD` entries beyond the last, so that loops may run to a multiple of eight.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.loops import (
    LOOP,
    SCALAR,
    STAGE,
    aligned,
    cutoff_factors,
    exponential,
    round_up,
    scale_by_element,
)
from schnetpack_softadapt.descriptors.acsf.kernels.plan import ALL_CHANNELS, NO_WEIGHTS
from schnetpack_softadapt.descriptors.compiled import INDEX_OF_NO_ATOM, UNKNOWN_ELEMENT, VALID

__all__ = [
    "EDGE",
    "FIRST",
    "PAD",
    "TINY",
    "Neighbors",
    "channel_range",
    "factor_slope",
    "load_shell",
    "new_neighbors",
    "sort_pairs",
]

FIRST = 8
PAD = 32
# nearer the cutoff (relative, in r^2) f_c < 1e-28 and no digit is left of its logarithm's slope
EDGE = 1.0 - 1e-14
TINY = 1e-12  # Ang^2, keeps coinciding atoms finite, as in `functions.lengths`


class Neighbors(NamedTuple):
    """Neighbours of one atom within one cutoff, sorted by channel."""

    pair: np.ndarray  # (m,) row of the pair list
    number: np.ndarray  # (m,) atomic number
    bounds: np.ndarray  # (n_channels + 1,) where each channel begins; the last entry is the end
    # x, y, z: (m,) unit vectors; r, r2, inverse: (m,) r, r^2, 1/r in Ang
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    r: np.ndarray
    r2: np.ndarray
    inverse: np.ndarray
    # cut, slope: (n_fn, m) cutoff functions and d log f_c/d(r^2)
    cut: np.ndarray
    slope: np.ndarray
    factors: np.ndarray  # (n_factors, m) radial parts of the functions of one neighbour, see `Plan`
    weighted_cut: np.ndarray  # (m,) f_c times the element's weight, for the weighted group at hand


@njit(nogil=True)
def new_neighbors(sizes, most):
    """Room for `most` neighbours; see `Plan.sizes`."""
    n = round_up(FIRST + most + PAD)
    rows, factors = aligned(7 + 2 * sizes[1], n), aligned(sizes[2], n)
    rows[:], factors[:] = 1.0, 0.0  # finite everywhere
    rows[6] = 0.0
    return Neighbors(
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(sizes[0] + 1, np.int64),
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        rows[4],
        rows[5],
        rows[7 : 7 + sizes[1]],
        rows[7 + sizes[1] :],
        factors,
        rows[6],
    )


@njit(nogil=True, cache=True)
def sort_pairs(idx_i, idx_j, numbers, species, channel, sizes):
    """Order of the pairs by central atom, then by channel of the neighbour; stable.

    Returns:
        (status, most, first (N + 1,), order (P,)): pairs of atom i are
        order[first[i]:first[i + 1]], `most` at most; the status says whether the input can be used.
    """
    n_channels = sizes[0]
    n_atoms, n_pairs = len(numbers), len(idx_i)
    first = np.zeros(n_atoms + 1, np.int64)
    order = np.arange(n_pairs)
    for z in numbers:
        if z < 0 or z >= len(species) or species[z] < 0:
            return UNKNOWN_ELEMENT, 0, first, order
    is_sorted = True
    for p in range(n_pairs):
        i, j = idx_i[p], idx_j[p]
        if i < 0 or j < 0 or i >= n_atoms or j >= n_atoms:
            return INDEX_OF_NO_ATOM, 0, first, order
        first[i + 1] += 1
        is_sorted &= p == 0 or idx_i[p - 1] <= i
    most = 0
    for i in range(n_atoms):
        most = max(most, first[i + 1])
        first[i + 1] += first[i]
    if n_channels > 1:
        start = np.zeros(n_channels + 1, np.int64)
        for p in range(n_pairs):
            start[channel[numbers[idx_j[p]]] + 1] += 1
        for c in range(n_channels):
            start[c + 1] += start[c]
        for p in range(n_pairs):
            c = channel[numbers[idx_j[p]]]
            order[start[c]] = p
            start[c] += 1
    elif is_sorted:
        return VALID, most, first, order
    result = np.empty_like(order)
    at = first[:-1].copy()
    for k in range(n_pairs):
        p = order[k]
        i = idx_i[p]
        result[at[i]] = p
        at[i] += 1
    return VALID, most, first, result


@njit(**LOOP)
def _normalize(x, y, z, r2, r, inverse, n):
    for t in range(FIRST, FIRST + n):
        d = np.sqrt(r2[t])
        w = 1.0 / d
        r[t] = d
        inverse[t] = w
        x[t] *= w
        y[t] *= w
        z[t] *= w


@njit(**LOOP)
def _gaussians(curvature, center, r, r2, f, out, n):
    """out = f exp(curvature (r - center)^2)."""
    if center == 0.0:
        for t in range(n):
            out[t] = f[t] * exponential(curvature * r2[t])
    else:
        for t in range(n):
            d = r[t] - center
            out[t] = f[t] * exponential(curvature * (d * d))


@njit(**SCALAR)
def factor_slope(curvature, center, cut_slope, inverse):
    """dlog f/d(r^2) of a factor f = f_c exp(curvature (r - center)^2), from dlog f_c/d(r^2)."""
    return cut_slope + curvature * (1.0 - center * inverse)


@njit(**STAGE)
def channel_range(neighbors, channel):
    """Begin and end of a channel, or of all neighbours."""
    bounds = neighbors.bounds
    if channel == ALL_CHANNELS:
        return bounds[0], bounds[-1]
    return bounds[channel], bounds[channel + 1]


@njit(**STAGE)
def load_shell(plan, shell, pairs, i, out):
    """Fill `out` with the neighbours of atom i within the cutoff of a shell; the end of them."""
    cutoff = plan.shells[shell].cutoff
    limit = cutoff * cutoff * EDGE
    m, c = FIRST, 0
    out.bounds[0] = FIRST
    for k in range(pairs.first[i], pairs.first[i + 1]):
        p = pairs.order[k]
        x, y, z = pairs.r_ij[p, 0], pairs.r_ij[p, 1], pairs.r_ij[p, 2]
        r2 = x * x + y * y + z * z
        if r2 >= limit:  # so written that NaN stays
            continue
        number = pairs.numbers[pairs.idx_j[p]]
        channel = plan.channel[number]
        while c < channel:
            c += 1
            out.bounds[c] = m
        out.pair[m] = p
        out.number[m] = number
        out.x[m], out.y[m], out.z[m] = x, y, z
        out.r2[m] = TINY if r2 < TINY else r2
        m += 1
    while c < len(out.bounds) - 1:
        c += 1
        out.bounds[c] = m
    for t in range(m, m + 8):
        out.x[t], out.y[t], out.z[t], out.r2[t] = 1.0, 0.0, 0.0, 0.25 * limit
    n = round_up(m - FIRST)
    _normalize(out.x, out.y, out.z, out.r2, out.r, out.inverse, n)
    if m == FIRST:
        return m
    here, after = plan.shells[shell], plan.shells[shell + 1]
    for k in range(here.first_fn, after.first_fn):
        cut, slope = out.cut[k - here.first_fn], out.slope[k - here.first_fn]
        cutoff_factors(plan.fn_codes[k], out.r2, cutoff, cut, slope, FIRST + n)
        cut[0] = 0.0  # the dummy neighbour
    for k in range(here.first_factor, after.first_factor):
        factor = plan.factors[k]
        lo, hi = channel_range(out, factor.channel)
        row, cut = out.factors[k - here.first_factor], out.cut[factor.fn]
        # the overrun falls on entries that this factor does not use
        n = round_up(hi - lo)
        _gaussians(factor.curvature, factor.center, out.r[lo:], out.r2[lo:], cut[lo:], row[lo:], n)
        if factor.weights != NO_WEIGHTS:
            weights = plan.element_weights[factor.weights]
            scale_by_element(row[lo:], weights, out.number[lo:], row[lo:], hi - lo)
    return m
