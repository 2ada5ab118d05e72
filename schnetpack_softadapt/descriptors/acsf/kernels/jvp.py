"""Jacobian-vector products of the symmetry functions of single atoms.

For a tangent v_j of every neighbour vector r_j each triple changes by

    d(W u^zeta) = W (dlog W) u^zeta + W zeta lam/2 u^(zeta-1) dc,

so the sums over functions are those of the values, with two other weights.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.geometry import (
    FIRST,
    channel_range,
    load_shell,
    new_neighbors,
    new_pairs,
    round_up,
    select_pairs,
)
from schnetpack_softadapt.descriptors.acsf.kernels.loops import LOOP, STAGE, dot4
from schnetpack_softadapt.descriptors.acsf.kernels.values import (
    fill_rows,
    fill_weights,
    start_group,
)

__all__ = ["jvp"]


class _Tangents(NamedTuple):
    """Changes of the neighbours, (m,), and of pairs, (CHUNK,).

    Attributes:
        x, y, z: v / r; stretch: d log r = n . v / r; square: d(r^2); by_r: d(r^2) / r;
            by_cut: d(r^2) dlog f_c/d(r^2).
        cosine: dc; cross: (v_j n_k / r_j + v_k n_j / r_k) r_j r_k.
        cuts, squares, distances: sums of by_cut, square and by_r over the distances of a triple.
        value, slope: the two weights.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    stretch: np.ndarray
    square: np.ndarray
    by_cut: np.ndarray
    by_r: np.ndarray
    cosine: np.ndarray
    cross: np.ndarray
    cuts: np.ndarray
    squares: np.ndarray
    distances: np.ndarray
    value: np.ndarray
    slope: np.ndarray


@njit(nogil=True)
def _new_tangents(m, n):
    f = np.float64
    return _Tangents(
        np.zeros(m, f),
        np.zeros(m, f),
        np.zeros(m, f),
        np.zeros(m, f),
        np.zeros(m, f),
        np.zeros(m, f),
        np.zeros(m, f),
        np.empty(n, f),
        np.empty(n, f),
        np.empty(n, f),
        np.empty(n, f),
        np.empty(n, f),
        np.empty(n, f),
        np.empty(n, f),
    )


@njit(**STAGE)
def _load(neighbors, order, tangent, end, out):
    for p in range(FIRST, end):
        pair = order[neighbors.position[p]]
        i = neighbors.inverse[p]
        x, y, z = tangent[pair, 0] * i, tangent[pair, 1] * i, tangent[pair, 2] * i
        stretch = x * neighbors.x[p] + y * neighbors.y[p] + z * neighbors.z[p]
        out.x[p], out.y[p], out.z[p], out.stretch[p] = x, y, z, stretch
        out.square[p] = 2.0 * stretch * neighbors.r2[p]
        out.by_r[p] = 2.0 * stretch * neighbors.r[p]


@njit(**STAGE)
def _gather(neighbors, index, cosine, tangents, n):
    for t in range(n):
        jk = index[t]
        j, k = jk >> 16, jk & 0xFFFF
        c = tangents.x[j] * neighbors.x[k] + neighbors.x[j] * tangents.x[k]
        c += tangents.y[j] * neighbors.y[k] + neighbors.y[j] * tangents.y[k]
        c += tangents.z[j] * neighbors.z[k] + neighbors.z[j] * tangents.z[k]
        tangents.cross[t] = c * (neighbors.r[j] * neighbors.r[k])
        tangents.cosine[t] = c - cosine[t] * (tangents.stretch[j] + tangents.stretch[k])
        tangents.cuts[t] = tangents.by_cut[j] + tangents.by_cut[k]
        tangents.squares[t] = tangents.square[j] + tangents.square[k]
        tangents.distances[t] = tangents.by_r[j] + tangents.by_r[k]


@njit(**LOOP)
def _narrow(s, slope, cross, cuts, squares, distances, n):
    for t in range(n):
        d = squares[t] - 2.0 * cross[t]  # d(r_jk^2)
        cuts[t] += slope[t] * d
        squares[t] += d
        distances[t] += d / np.sqrt(s[t])


@njit(**LOOP)
def _weights(weight, eta, eta_shift, cuts, squares, distances, cosine, value, slope, n):
    for t in range(n):
        value[t] = weight[t] * (cuts[t] - eta * squares[t] + eta_shift * distances[t])
        slope[t] = weight[t] * cosine[t]


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, pairs, tangents, out):
    group = plan.groups[g]
    lo, hi = neighbors.bounds[0], neighbors.bounds[-1]
    for p in range(lo, hi):
        tangents.by_cut[p] = tangents.square[p] * neighbors.slope[group.fn, p]
    start_group(plan, g, neighbors)
    j = FIRST
    while j >= 0:
        n, j = select_pairs(neighbors, group, plan.shells[shell].cutoff, j, pairs)
        if n == 0:
            continue
        padded = round_up(n)
        fill_weights(plan, shell, g, neighbors, pairs, n)
        fill_rows(plan, g, pairs, n, True)
        _gather(neighbors, pairs.index, pairs.cosine, tangents, padded)
        cuts, squares, distances = tangents.cuts, tangents.squares, tangents.distances
        if group.narrow:
            _narrow(pairs.s, pairs.slope, tangents.cross, cuts, squares, distances, padded)
        for w in range(group.first_width, plan.groups[g + 1].first_width):
            width, last = plan.widths[w], plan.widths[w + 1].first_term
            _weights(
                pairs.weights[w - group.first_width],
                width.eta,
                width.eta * width.shift,
                cuts,
                squares,
                distances,
                tangents.cosine,
                tangents.value,
                tangents.slope,
                padded,
            )
            for k in range(width.first_term, last, 4):
                p, q, r, s = plan.terms[k], plan.terms[k + 1], plan.terms[k + 2], plan.terms[k + 3]
                values = dot4(tangents.value, pairs.rows, p.row, q.row, r.row, s.row, padded)
                slopes = dot4(
                    tangents.slope,
                    pairs.rows,
                    p.slope_row,
                    q.slope_row,
                    r.slope_row,
                    s.slope_row,
                    padded,
                )
                for m in range(4):
                    term = plan.terms[k + m]
                    if term.column >= 0:
                        out[term.column] += 2.0 * (values[m] + term.slope_factor * slopes[m])


@njit(**STAGE)
def _radial(factor, slope, by_r, square, eta, shift, lo, hi):
    total = 0.0
    for p in range(lo, hi):
        w = (slope[p] - eta) * square[p] + eta * shift * by_r[p]
        total += factor[p] * w
    return total


@njit(nogil=True, cache=True)
def jvp(plan, first, order, r_ij, idx_j, numbers, most, start, stop, tangent, out):
    """Write sum_p dG/dr_p . tangent_p of atoms start to stop into out (N, D), zero before.

    Args: as for `kernel_values.values`; tangent (P, 3).
    """
    neighbors = new_neighbors(plan.sizes, most)
    pairs = new_pairs(plan.sizes, most)
    tangents = _new_tangents(len(neighbors.x), len(pairs.s))
    for i in range(start, stop):
        species = plan.species[numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            end = load_shell(
                plan, shell, r_ij, idx_j, numbers, order, first[i], first[i + 1], neighbors
            )
            _load(neighbors, order, tangent, end, tangents)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                lo, hi = channel_range(neighbors, factor.channel)
                out[i, radial.column] = _radial(
                    neighbors.factors[radial.factor],
                    neighbors.slope[factor.fn],
                    tangents.by_r,
                    tangents.square,
                    factor.eta,
                    factor.shift,
                    lo,
                    hi,
                )
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, pairs, tangents, out[i])
