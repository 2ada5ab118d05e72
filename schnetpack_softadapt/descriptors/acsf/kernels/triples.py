"""Triples of an atom and two of its neighbours, and the terms of the angular functions.

A term is W P: of the radial part W = f_c(r_ij) f_c(r_ik) [f_c(r_jk)] exp(phi), the exponent and its
slopes are written here only (`_exponentials`, `stretch`),

    phi = c_0 + c_1 s_1 + c_2 s_1^2 + d s_2,     dphi/d(r_m^2) = d + (c_1 / 2 + c_2 s_1) / r_m

with s_1, s_2 the sums of the distances r_m and of their squares and coefficients from the plan; of
the angular part P = 2 u^zeta, u = (1 + lam cos) / 2, P' = 2 (zeta lam / 2) u^(zeta - 1), the powers
are rows of numbers. Values and derivatives are sums of these over the triples.
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
    multiply_rows,
    power_row,
    round_up,
    scale_by_element,
)
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import (
    EDGE,
    FIRST,
    PAD,
    TINY,
    channel_range,
)
from schnetpack_softadapt.descriptors.acsf.kernels.plan import NO_WEIGHTS

__all__ = [
    "CHUNK",
    "Triples",
    "fill_powers",
    "fill_weights",
    "new_triples",
    "next_triples",
    "select_triples",
    "stretch",
]

CHUNK = 512  # triples handled at a time: their arrays stay in the first-level cache


class Triples(NamedTuple):
    """Triples (i, j, k) of one central atom, a chunk at a time."""

    index: np.ndarray  # (CHUNK,) j * 65536 + k
    cosine: np.ndarray  # (CHUNK,) cos(theta_jik)
    s: np.ndarray  # (CHUNK,) r_jk^2, Ang^2
    # cut, slope: (CHUNK,) f_c(r_jk) and d log f_c/ds, of narrow groups
    cut: np.ndarray
    slope: np.ndarray
    product: np.ndarray  # (CHUNK,) product of the cutoff functions
    # sum1, sum2: (CHUNK,) sums of the distances and of their squares
    sum1: np.ndarray
    sum2: np.ndarray
    weights: np.ndarray  # (n_widths, CHUNK) W of each width
    # (n_rows, CHUNK) ones, (1 + cos)/2, (1 - cos)/2, exponentials, powers of these
    rows: np.ndarray


@njit(nogil=True)
def new_triples(sizes, most):
    """Room for a chunk of triples, at least one row of `most`."""
    # not a multiple of a memory page: equal positions of many rows would share cache lines
    n = round_up(max(CHUNK, most + 8) + PAD)
    # what is read has been written before; not zeroing saves the page faults of a small system
    e, rows = aligned(7, n), aligned(sizes[4], n)
    rows[0] = 1.0
    index = np.empty(n, np.uint32)
    weights = aligned(sizes[3], n)
    return Triples(index, e[0], e[1], e[2], e[3], e[4], e[5], e[6], weights, rows)


# --- which triples


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
def select_triples(neighbors, group, cutoff, j, triples):
    """Fill `triples` with the next chunk of a group, from neighbour j on (FIRST at the beginning).

    Narrow groups keep the triples with r_jk within the cutoff only: half of them in a dense system.

    Returns:
        (n, j): triples found, padded with weightless ones to a multiple of eight; and where to go
        on, -1 after the last chunk.
    """
    lo_a, hi_a = channel_range(neighbors, group.channel_a)
    lo_b, hi_b = channel_range(neighbors, group.channel_b)
    same = group.channel_a == group.channel_b
    x, y, z, r, r2 = neighbors.x, neighbors.y, neighbors.z, neighbors.r, neighbors.r2
    index, cosine, s = triples.index, triples.cosine, triples.s
    xb, yb, zb, rb, r2b = x[lo_b:], y[lo_b:], z[lo_b:], r[lo_b:], r2[lo_b:]
    room = len(s) - PAD
    j = max(j, lo_a)
    n = 0
    while j < hi_a:
        length = j - lo_b if same else hi_b - lo_b
        if n + length > room:
            break
        # what a row writes beyond its end is overwritten by the next
        m, tag = round_up(length), np.uint32((j << 16) + lo_b)
        out = index[n:], cosine[n:], s[n:]
        _row(x[j], y[j], z[j], r[j], r2[j], tag, xb, yb, zb, rb, r2b, m, *out)
        n += length
        j += 1
    limit = cutoff * cutoff * EDGE
    if group.narrow:
        n = _compress(index, cosine, s, limit, n)
    _pad(index[n:], cosine[n:], s[n:], 0.25 * limit)
    return n, j if j < hi_a else -1


# --- radial part


@njit(**SCALAR)
def _gather(index, cut, r2, product, sum2, n):
    for t in range(n):
        jk = index[t]
        j, k = jk >> 16, jk & 0xFFFF
        product[t] = cut[j] * cut[k]
        sum2[t] = r2[j] + r2[k]


@njit(**SCALAR)
def _gather_distances(index, r, sum1, n):
    for t in range(n):
        jk = index[t]
        sum1[t] = r[jk >> 16] + r[jk & 0xFFFF]


@njit(**LOOP)
def _narrow(s, cut, product, sum2, n):
    for t in range(n):
        product[t] *= cut[t]
        sum2[t] += s[t]


@njit(**LOOP)
def _narrow_distances(s, sum1, n):
    for t in range(n):
        sum1[t] += np.sqrt(s[t])


@njit(**LOOP)
def _exponentials(constant, linear, quadratic, squares, sum1, sum2, row, n):
    """exp(phi); sums of distances are read where they matter only."""
    if linear == 0.0 and quadratic == 0.0:
        for t in range(n):
            row[t] = exponential(squares * sum2[t])
    else:
        for t in range(n):
            s = sum1[t]
            row[t] = exponential(constant + s * (linear + s * quadratic) + squares * sum2[t])


@njit(**SCALAR)
def stretch(linear, quadratic, sum1):
    """dphi/ds_1 / 2; the other slope, dphi/ds_2, is the coefficient `squares`."""
    return 0.5 * linear + quadratic * sum1


@njit(**LOOP)
def _multiply(product, row, weight, n):
    for t in range(n):
        weight[t] = product[t] * row[t]


@njit(**STAGE)
def _powers(plan, rows, first, last, n):
    for k in range(first, last):
        step = plan.steps[k]
        if step.exponent == 0.0:
            multiply_rows(rows, rows, rows, step.left, step.right, step.row, n)
        else:
            power_row(rows, step.left, step.row, step.exponent, n)


@njit(**STAGE)
def fill_weights(plan, shell, g, neighbors, triples, n):
    """W of each width of group g for n triples; of narrow groups also f_c(r_jk) and its slope."""
    group, after = plan.groups[g], plan.groups[g + 1]
    n = round_up(n)
    rows, sum1, sum2 = triples.rows, triples.sum1, triples.sum2
    is_weighted = group.weights != NO_WEIGHTS
    cut = neighbors.weighted_cut if is_weighted else neighbors.cut[group.fn]
    _gather(triples.index, cut, neighbors.r2, triples.product, sum2, n)
    if group.by_distance:
        _gather_distances(triples.index, neighbors.r, sum1, n)
    if group.narrow:
        code = plan.fn_codes[plan.shells[shell].first_fn + group.fn]
        cutoff_factors(code, triples.s, plan.shells[shell].cutoff, triples.cut, triples.slope, n)
        _narrow(triples.s, triples.cut, triples.product, sum2, n)
        if group.by_distance:
            _narrow_distances(triples.s, sum1, n)
    for k in range(group.first_base, after.first_base):
        b = plan.bases[k]
        _exponentials(b.constant, b.linear, b.quadratic, b.squares, sum1, sum2, rows[b.row], n)
    _powers(plan, rows, group.first_step, group.first_step + group.n_width_steps, n)
    for k in range(group.first_width, after.first_width):
        weight = triples.weights[k - group.first_width]
        _multiply(triples.product, rows[plan.widths[k].row], weight, n)


# --- angular part


@njit(**LOOP)
def _bases(cosine, plus, minus, n):
    for t in range(n):
        c = 0.5 * cosine[t]
        plus[t] = 0.5 + c
        minus[t] = 0.5 - c


@njit(**STAGE)
def fill_powers(plan, g, triples, n, with_slopes):
    """Powers of (1 +- cos)/2 that group g needs, with those of the slopes on demand."""
    group = plan.groups[g]
    n = round_up(n)
    rows = triples.rows
    _bases(triples.cosine, rows[1], rows[2], n)
    first = group.first_step + group.n_width_steps
    last = plan.groups[g + 1].first_step if with_slopes else first + group.n_value_steps
    _powers(plan, rows, first, last, n)


@njit(**STAGE)
def next_triples(plan, shell, g, neighbors, j, triples, with_slopes):
    """All of the next chunk of triples of group g; arguments and results of `select_triples`."""
    group = plan.groups[g]
    if j == FIRST and group.weights != NO_WEIGHTS:
        lo, hi = channel_range(neighbors, group.channel_a)
        cut, number = neighbors.cut[group.fn, lo:], neighbors.number[lo:]
        weights = plan.element_weights[group.weights]
        scale_by_element(cut, weights, number, neighbors.weighted_cut[lo:], hi - lo)
    n, j = select_triples(neighbors, group, plan.shells[shell].cutoff, j, triples)
    if n > 0:
        fill_weights(plan, shell, g, neighbors, triples, n)
        fill_powers(plan, g, triples, n, with_slopes)
    return n, j
