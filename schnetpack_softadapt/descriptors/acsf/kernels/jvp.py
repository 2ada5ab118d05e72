"""Jacobian-vector products of the symmetry functions of single atoms.

For a tangent v_j of every neighbour vector r_j each triple changes by

    d(W P) = W (dlog W) P + W P' dc,

so the sums over functions are those of the values, with two other weights.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.loops import (
    LOOP,
    STAGE,
    aligned,
    dot4,
    round_up,
)
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import (
    FIRST,
    channel_range,
    factor_slope,
    load_shell,
    new_neighbors,
)
from schnetpack_softadapt.descriptors.acsf.kernels.triples import (
    new_triples,
    next_triples,
    stretch,
)

__all__ = ["jvp"]


class _Tangents(NamedTuple):
    """Changes of the neighbours, (m,), and of triples, (CHUNK,).

    Attributes:
        x, y, z: v / r; log_r: d log r = n . v / r; square: d(r^2); by_r: d(r^2) / r;
            by_cut: d(r^2) dlog f_c/d(r^2).
        cosine: dc; cross: (v_j n_k / r_j + v_k n_j / r_k) r_j r_k.
        cuts, squares, distances: sums of by_cut, square and by_r over the distances of a triple.
        value, slope: the two weights.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    log_r: np.ndarray
    square: np.ndarray
    by_r: np.ndarray
    by_cut: np.ndarray
    cosine: np.ndarray
    cross: np.ndarray
    cuts: np.ndarray
    squares: np.ndarray
    distances: np.ndarray
    value: np.ndarray
    slope: np.ndarray


@njit(nogil=True)
def _new_tangents(m, n):
    a, b = np.zeros((7, m)), aligned(7, n)
    of_neighbors = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    return _Tangents(*of_neighbors, b[0], b[1], b[2], b[3], b[4], b[5], b[6])


@njit(**STAGE)
def _load(neighbors, tangent, end, out):
    for p in range(FIRST, end):
        pair, i = neighbors.pair[p], neighbors.inverse[p]
        x, y, z = tangent[pair, 0] * i, tangent[pair, 1] * i, tangent[pair, 2] * i
        log_r = x * neighbors.x[p] + y * neighbors.y[p] + z * neighbors.z[p]
        out.x[p], out.y[p], out.z[p], out.log_r[p] = x, y, z, log_r
        out.square[p] = 2.0 * log_r * neighbors.r2[p]
        out.by_r[p] = 2.0 * log_r * neighbors.r[p]


@njit(**STAGE)
def _gather(neighbors, index, cosine, tangents, n):
    for t in range(n):
        jk = index[t]
        j, k = jk >> 16, jk & 0xFFFF
        c = tangents.x[j] * neighbors.x[k] + neighbors.x[j] * tangents.x[k]
        c += tangents.y[j] * neighbors.y[k] + neighbors.y[j] * tangents.y[k]
        c += tangents.z[j] * neighbors.z[k] + neighbors.z[j] * tangents.z[k]
        tangents.cross[t] = c * (neighbors.r[j] * neighbors.r[k])
        tangents.cosine[t] = c - cosine[t] * (tangents.log_r[j] + tangents.log_r[k])
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
def _weights(weight, factor, cuts, squares, cosine, value, slope, n):
    for t in range(n):
        value[t] = weight[t] * (cuts[t] + factor * squares[t])
        slope[t] = weight[t] * cosine[t]


@njit(**LOOP)
def _add_stretch(weight, linear, quadratic, sum1, distances, value, n):
    for t in range(n):
        value[t] += weight[t] * stretch(linear, quadratic, sum1[t]) * distances[t]


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, triples, tangents, out):
    group = plan.groups[g]
    for p in range(neighbors.bounds[0], neighbors.bounds[-1]):
        tangents.by_cut[p] = tangents.square[p] * neighbors.slope[group.fn, p]
    cuts, squares, distances = tangents.cuts, tangents.squares, tangents.distances
    value, slope, rows = tangents.value, tangents.slope, triples.rows
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, True)
        n = round_up(n)
        _gather(neighbors, triples.index, triples.cosine, tangents, n)
        if group.narrow:
            _narrow(triples.s, triples.slope, tangents.cross, cuts, squares, distances, n)
        for w in range(group.first_width, plan.groups[g + 1].first_width):
            width, last = plan.widths[w], plan.widths[w + 1].first_term
            weight = triples.weights[w - group.first_width]
            _weights(weight, width.squares, cuts, squares, tangents.cosine, value, slope, n)
            if group.by_distance:
                linear, quadratic, sum1 = width.linear, width.quadratic, triples.sum1
                _add_stretch(weight, linear, quadratic, sum1, distances, value, n)
            for k in range(width.first_term, last, 4):
                p, q, r, s = plan.terms[k], plan.terms[k + 1], plan.terms[k + 2], plan.terms[k + 3]
                values = dot4(value, rows, p.row, q.row, r.row, s.row, n)
                slopes = dot4(slope, rows, p.slope_row, q.slope_row, r.slope_row, s.slope_row, n)
                for m in range(4):
                    term = plan.terms[k + m]
                    if term.column >= 0:
                        out[term.column] += 2.0 * (values[m] + term.slope_factor * slopes[m])


@njit(nogil=True, cache=True)
def jvp(plan, pairs, start, stop, tangent, out):
    """Write sum_p dG/dr_p . tangent_p of atoms start to stop into out (N, D), zero before.

    Args: as for `values.values`; tangent (P, 3).
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    tangents = _new_tangents(len(neighbors.x), len(triples.s))
    for i in range(start, stop):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            end = load_shell(plan, shell, pairs, i, neighbors)
            _load(neighbors, tangent, end, tangents)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                cut_slope = neighbors.slope[factor.fn]
                lo, hi = channel_range(neighbors, factor.channel)
                total = 0.0
                for p in range(lo, hi):
                    slope = factor_slope(
                        factor.curvature, factor.center, cut_slope[p], neighbors.inverse[p]
                    )
                    total += neighbors.factors[radial.factor, p] * slope * tangents.square[p]
                out[i, radial.column] = total
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, triples, tangents, out[i])
