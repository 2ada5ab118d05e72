"""Neighbours of one atom and their pairs (j, k), laid out so that the loops over them vectorise.

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
    gaussians,
)
from schnetpack_softadapt.descriptors.acsf.kernels.plan import ALL_CHANNELS

__all__ = [
    "FIRST",
    "INDEX_OF_NO_ATOM",
    "UNKNOWN_ELEMENT",
    "VALID",
    "Neighbors",
    "Pairs",
    "channel_range",
    "load_shell",
    "new_neighbors",
    "new_pairs",
    "round_up",
    "select_pairs",
    "sort_pairs",
]

VALID, INDEX_OF_NO_ATOM, UNKNOWN_ELEMENT = 0, 1, 2  # what `sort_pairs` finds

FIRST = 8
PAD = 32
CHUNK = 512  # pairs (j, k) handled at a time: their arrays stay in the first-level cache
# nearer the cutoff (relative, in r^2) f_c < 1e-28 and no digit is left of its logarithm's slope
EDGE = 1.0 - 1e-14
TINY = 1e-12  # Ang^2, keeps coinciding atoms finite, as in `functions.lengths`


class Neighbors(NamedTuple):
    """Neighbours of one atom within one cutoff, sorted by channel.

    Attributes:
        position: (m,) place in the sorted order of the pairs; number: (m,) atomic number.
        bounds: (n_channels + 1,) where each channel begins; the last entry is the end.
        x, y, z: (m,) unit vectors; r, r2, inverse: (m,) r, r^2, 1/r in Ang.
        cut, slope: (n_fn, m) cutoff functions and d log f_c/d(r^2).
        factors: (n_factors, m) f_c exp(-eta (r - r_s)^2), times z for weighted functions.
        weighted_cut: (m,) f_c z, for the weighted group at hand.
    """

    position: np.ndarray
    number: np.ndarray
    bounds: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    r: np.ndarray
    r2: np.ndarray
    inverse: np.ndarray
    cut: np.ndarray
    slope: np.ndarray
    factors: np.ndarray
    weighted_cut: np.ndarray


class Pairs(NamedTuple):
    """Pairs (j, k) of neighbours of one atom, a chunk at a time.

    Attributes:
        index: (CHUNK,) j * 65536 + k.
        cosine: (CHUNK,) cos(theta_jik); s: (CHUNK,) r_jk^2, Ang^2.
        cut, slope: (CHUNK,) f_c(r_jk) and d log f_c/ds.
        product: (CHUNK,) product of the cutoff functions.
        sum1, sum2: (CHUNK,) sums of the distances and of their squares.
        weights: (n_widths, CHUNK) radial part of each width.
        rows: (n_rows, CHUNK) ones, (1 + cos)/2, (1 - cos)/2, exponentials, powers of these.
    """

    index: np.ndarray
    cosine: np.ndarray
    s: np.ndarray
    cut: np.ndarray
    slope: np.ndarray
    product: np.ndarray
    sum1: np.ndarray
    sum2: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


@njit(**STAGE)
def round_up(n):
    """The next multiple of eight."""
    return (n + 7) & ~7


@njit(nogil=True)
def new_neighbors(sizes, most):
    """Room for `most` neighbours; see `Plan.sizes`."""
    n = FIRST + most + PAD
    f = np.float64
    neighbors = Neighbors(
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(sizes[0] + 1, np.int64),
        np.zeros(n, f),
        np.zeros(n, f),
        np.zeros(n, f),
        np.ones(n, f),
        np.ones(n, f),
        np.ones(n, f),
        np.zeros((sizes[1], n), f),
        np.zeros((sizes[1], n), f),
        np.zeros((sizes[2], n), f),
        np.zeros(n, f),
    )
    return neighbors


@njit(nogil=True)
def new_pairs(sizes, most):
    """Room for a chunk of pairs, at least one row of `most`."""
    # not a multiple of a memory page: equal positions of many rows would share cache lines
    n = round_up(max(CHUNK, most + 8) + PAD)
    # what is read has been written before; not zeroing saves the page faults of a small system
    each, rows = aligned(7, n), aligned(sizes[4], n)
    rows[0] = 1.0
    return Pairs(
        np.empty(n, np.uint32),
        each[0],
        each[1],
        each[2],
        each[3],
        each[4],
        each[5],
        each[6],
        aligned(sizes[3], n),
        rows,
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


@njit(**SCALAR)
def _scale_by_number(number, out, lo, hi):
    for t in range(lo, hi):
        out[t] *= number[t]


@njit(**STAGE)
def channel_range(neighbors, channel):
    """Begin and end of a channel, or of all neighbours."""
    bounds = neighbors.bounds
    if channel == ALL_CHANNELS:
        return bounds[0], bounds[-1]
    return bounds[channel], bounds[channel + 1]


@njit(**STAGE)
def load_shell(plan, shell, r_ij, idx_j, numbers, order, begin, end, out):
    """Fill `out` with the neighbours order[begin:end] within the cutoff of a shell."""
    cutoff = plan.shells[shell].cutoff
    limit = cutoff * cutoff * EDGE
    m, c = FIRST, 0
    out.bounds[0] = FIRST
    for k in range(begin, end):
        p = order[k]
        x, y, z = r_ij[p, 0], r_ij[p, 1], r_ij[p, 2]
        r2 = x * x + y * y + z * z
        if r2 >= limit:  # so written that NaN stays
            continue
        number = numbers[idx_j[p]]
        channel = plan.channel[number]
        while c < channel:
            c += 1
            out.bounds[c] = m
        out.position[m] = k
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
    first_fn = plan.shells[shell].first_fn
    for k in range(first_fn, plan.shells[shell + 1].first_fn):
        row = k - first_fn
        cutoff_factors(plan.fn_codes[k], out.r2, cutoff, out.cut[row], out.slope[row], FIRST + n)
        out.cut[row, 0] = 0.0  # the dummy neighbour
    first_factor = plan.shells[shell].first_factor
    for k in range(first_factor, plan.shells[shell + 1].first_factor):
        factor = plan.factors[k]
        lo, hi = channel_range(out, factor.channel)
        row = out.factors[k - first_factor]
        # the overrun falls on entries that this factor does not use
        n = round_up(hi - lo)
        cut = out.cut[factor.fn]
        gaussians(factor.eta, factor.shift, out.r[lo:], out.r2[lo:], cut[lo:], row[lo:], n)
        if factor.weighted:
            _scale_by_number(out.number, row, lo, hi)
    return m


@njit(**LOOP)
def _row(xj, yj, zj, rj, rj2, tag, x, y, z, r, r2, n, index, cosine, s):
    """Pairs of one neighbour j with n others; all arrays begin at the row."""
    for t in range(n):
        c = xj * x[t] + yj * y[t] + zj * z[t]
        d = (rj2 + r2[t]) - 2.0 * rj * r[t] * c
        cosine[t] = c
        s[t] = TINY if d < TINY else d
        index[t] = tag + np.uint32(t)


@njit(**SCALAR)
def _compress(index, cosine, s, limit, n):
    m = 0
    for t in range(n):
        d = s[t]
        index[m], cosine[m], s[m] = index[t], cosine[t], d
        m += 0 if d >= limit else 1
    return m


@njit(**SCALAR)
def _pad(index, cosine, s, distance2):
    for t in range(8):
        index[t], cosine[t], s[t] = 0, 0.0, distance2


@njit(**STAGE)
def select_pairs(neighbors, group, cutoff, j, pairs):
    """Fill `pairs` with the next chunk of a group, from neighbour j (FIRST at the beginning) on.

    Narrow groups keep the pairs with r_jk within the cutoff only: half of them in a dense system.

    Returns:
        (n, j): pairs found, padded with weightless ones to a multiple of eight; and where to go on,
        -1 after the last chunk.
    """
    lo_a, hi_a = channel_range(neighbors, group.channel_a)
    lo_b, hi_b = channel_range(neighbors, group.channel_b)
    same = group.channel_a == group.channel_b
    x, y, z, r, r2 = neighbors.x, neighbors.y, neighbors.z, neighbors.r, neighbors.r2
    index, cosine, s = pairs.index, pairs.cosine, pairs.s
    room = len(s) - PAD
    j = max(j, lo_a)
    n = 0
    while j < hi_a:
        length = j - lo_b if same else hi_b - lo_b
        if n + length > room:
            break
        # what a row writes beyond its end is overwritten by the next
        _row(
            x[j],
            y[j],
            z[j],
            r[j],
            r2[j],
            np.uint32((j << 16) + lo_b),
            x[lo_b:],
            y[lo_b:],
            z[lo_b:],
            r[lo_b:],
            r2[lo_b:],
            round_up(length),
            index[n:],
            cosine[n:],
            s[n:],
        )
        n += length
        j += 1
    limit = cutoff * cutoff * EDGE
    if group.narrow:
        n = _compress(index, cosine, s, limit, n)
    _pad(index[n:], cosine[n:], s[n:], 0.25 * limit)
    return n, j if j < hi_a else -1
