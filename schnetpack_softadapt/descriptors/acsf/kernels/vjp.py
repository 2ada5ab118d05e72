"""Vector-Jacobian products of the symmetry functions of single atoms.

With W the radial part of a triple (j, k), P(c) = sum over functions of dE/dG 2 u^zeta and primes
for derivatives, the energy's derivative by the vector r_j is

    a_j r_j + sum_k B_jk r_k,    B = W P' / (r_j r_k) - 2 A,
    a_j = sum_k [2 (W P dlog W/d(r_j^2) + A) - W P' c / r_j^2],    A = W P dlog W/d(r_jk^2)

so a triple leaves few numbers, computed in vector loops, and one scalar loop adds them up.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.loops import (
    LOOP,
    SCALAR,
    STAGE,
    aligned,
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

__all__ = ["vjp"]


class _Sums(NamedTuple):
    """Per triple of a chunk, (CHUNK,): sums over functions, see the module.

    Attributes:
        value, slope: P and P' of one width.
        total: W P; turn: W P'; square: W P dphi/ds_2; stretch: W P dphi/ds_1 / 2; over all widths.
        cross: B; common: the part of a_j and a_k that is the same.
    """

    value: np.ndarray
    slope: np.ndarray
    total: np.ndarray
    turn: np.ndarray
    square: np.ndarray
    stretch: np.ndarray
    cross: np.ndarray
    common: np.ndarray


@njit(nogil=True)
def _new_sums(n):
    e = aligned(8, n)
    return _Sums(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7])


@njit(**LOOP)
def _combine4(rows, i, j, k, m, a, b, c, d, out, n):
    for t in range(n):
        out[t] = (a * rows[i, t] + b * rows[j, t]) + (c * rows[k, t] + d * rows[m, t])


@njit(**LOOP)
def _add4(rows, i, j, k, m, a, b, c, d, out, n):
    for t in range(n):
        out[t] += (a * rows[i, t] + b * rows[j, t]) + (c * rows[k, t] + d * rows[m, t])


@njit(**LOOP)
def _first_width(weight, value, slope, factor, total, square, turn, n):
    for t in range(n):
        w = weight[t] * value[t]
        total[t] = w
        square[t] = factor * w
        turn[t] = weight[t] * slope[t]


@njit(**LOOP)
def _next_width(weight, value, slope, factor, total, square, turn, n):
    for t in range(n):
        w = weight[t] * value[t]
        total[t] += w
        square[t] += factor * w
        turn[t] += weight[t] * slope[t]


@njit(**LOOP)
def _add_stretch(weight, value, linear, quadratic, sum1, out, n):
    for t in range(n):
        out[t] += stretch(linear, quadratic, sum1[t]) * (weight[t] * value[t])


@njit(**SCALAR)
def _inverse_products(inverse, index, out, n):
    for t in range(n):
        jk = index[t]
        out[t] = inverse[jk >> 16] * inverse[jk & 0xFFFF]


@njit(**LOOP)
def _finish_narrow(slope, cosine, total, square, turn, cross, common, n):
    for t in range(n):
        a = total[t] * slope[t] + square[t]
        cross[t] = turn[t] * cross[t] - 2.0 * a
        common[t] = 2.0 * (a + square[t])
        turn[t] *= cosine[t]


@njit(**LOOP)
def _finish_wide(cosine, square, turn, cross, common, n):
    for t in range(n):
        cross[t] *= turn[t]
        common[t] = 2.0 * square[t]
        turn[t] *= cosine[t]


@njit(**LOOP)
def _finish_stretch(s, sums, cross, common, n):
    for t in range(n):
        a = sums[t] / np.sqrt(s[t])
        cross[t] -= 2.0 * a
        common[t] += 2.0 * a


@njit(**STAGE)
def sum_functions(plan, g, triples, grad, sums, n):
    """Sums over the functions of group g for n triples; `grad` (D,) is dE/dG of the atom."""
    group = plan.groups[g]
    n = round_up(n)
    rows, value, slope, total, turn = triples.rows, sums.value, sums.slope, sums.total, sums.turn
    if group.by_distance:
        sums.stretch[:n] = 0.0
    for w in range(group.first_width, plan.groups[g + 1].first_width):
        width, last = plan.widths[w], plan.widths[w + 1].first_term
        weight = triples.weights[w - group.first_width]
        for k in range(width.first_term, last, 4):
            p, q, r, s = plan.terms[k], plan.terms[k + 1], plan.terms[k + 2], plan.terms[k + 3]
            # a padded term has column -1, the last, and its factor is zero
            a = 2.0 * grad[p.column]
            b = 2.0 * grad[q.column] if q.column >= 0 else 0.0
            c = 2.0 * grad[r.column] if r.column >= 0 else 0.0
            d = 2.0 * grad[s.column] if s.column >= 0 else 0.0
            e, f = a * p.slope_factor, b * q.slope_factor
            h, o = c * r.slope_factor, d * s.slope_factor
            i, j, l, m = p.slope_row, q.slope_row, r.slope_row, s.slope_row
            if k == width.first_term:
                _combine4(rows, p.row, q.row, r.row, s.row, a, b, c, d, value, n)
                _combine4(rows, i, j, l, m, e, f, h, o, slope, n)
            else:
                _add4(rows, p.row, q.row, r.row, s.row, a, b, c, d, value, n)
                _add4(rows, i, j, l, m, e, f, h, o, slope, n)
        if w == group.first_width:
            _first_width(weight, value, slope, width.squares, total, sums.square, turn, n)
        else:
            _next_width(weight, value, slope, width.squares, total, sums.square, turn, n)
        if group.by_distance:
            linear, quadratic, sum1 = width.linear, width.quadratic, triples.sum1
            _add_stretch(weight, value, linear, quadratic, sum1, sums.stretch, n)


@njit(**SCALAR)
def _scatter(index, cross, total, common, turn, slope, inverse, vectors, out, n):
    """Add what each pair (j, k) leaves to out (x, y, z, a) of both, four numbers per neighbour.

    Unsigned counters, because numba would guard signed ones against negative indices; all loads
    before all stores, because the compiler cannot know that the arrays do not overlap.
    """
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    t, end = np.uintp(0), np.uintp(n)
    while t < end:
        j = np.uintp(index[t] >> 16)
        j4 = four * j
        xj, yj, zj = vectors[j4], vectors[j4 + one], vectors[j4 + two]
        x = y = z = sum_total = sum_common = sum_turn = 0.0
        while np.uintp(index[t] >> 16) == j:  # ends: the entry after the last is 0
            k = np.uintp(index[t] & 0xFFFF)
            k4 = four * k
            b, w, c, d = cross[t], total[t], common[t], turn[t]
            i = inverse[k]
            a = c + 2.0 * w * slope[k] - d * (i * i)
            xk, yk, zk = vectors[k4], vectors[k4 + one], vectors[k4 + two]
            ox = out[k4] + b * xj
            oy = out[k4 + one] + b * yj
            oz = out[k4 + two] + b * zj
            oa = out[k4 + three] + a
            out[k4], out[k4 + one], out[k4 + two], out[k4 + three] = ox, oy, oz, oa
            x += b * xk
            y += b * yk
            z += b * zk
            sum_total += w
            sum_common += c
            sum_turn += d
            t += one
        i = inverse[j]
        out[j4] += x
        out[j4 + one] += y
        out[j4 + two] += z
        out[j4 + three] += sum_common + 2.0 * sum_total * slope[j] - sum_turn * (i * i)


@njit(**SCALAR)
def _scatter_stretch(index, sums, inverse, out, n):
    for t in range(n):
        j, k, w = index[t] >> 16, index[t] & 0xFFFF, 2.0 * sums[t]
        out[4 * j + 3] += w * inverse[j]
        out[4 * k + 3] += w * inverse[k]


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, triples, sums, vectors, grad, out):
    group = plan.groups[g]
    slope, inverse = neighbors.slope[group.fn], neighbors.inverse
    total, turn, cross, common = sums.total, sums.turn, sums.cross, sums.common
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, True)
        m = round_up(n)
        sum_functions(plan, g, triples, grad, sums, n)
        _inverse_products(inverse, triples.index, cross, m)
        if group.narrow:
            _finish_narrow(
                triples.slope, triples.cosine, total, sums.square, turn, cross, common, m
            )
            if group.by_distance:
                _finish_stretch(triples.s, sums.stretch, cross, common, m)
        else:
            _finish_wide(triples.cosine, sums.square, turn, cross, common, m)
        _scatter(triples.index, cross, total, common, turn, slope, inverse, vectors, out, n)
        if group.by_distance:
            _scatter_stretch(triples.index, sums.stretch, inverse, out, n)


@njit(**LOOP)
def _radial(factor, slope, inverse, curvature, center, grad, out, n):
    for t in range(n):
        w = factor_slope(curvature, center, slope[t], inverse[t])
        out[t] += (2.0 * grad) * factor[t] * w


@njit(nogil=True, cache=True)
def vjp(plan, pairs, start, stop, grad_g, grad_r):
    """Add sum_D grad_g dG/dr_ij of the pairs of atoms start to stop to grad_r (P, 3).

    Args: as for `values.values`; grad_g (N, D).
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    sums = _new_sums(len(triples.s))
    room = len(neighbors.x)
    vectors, out, radial = np.zeros(4 * room), np.zeros(4 * room), np.zeros(room)
    for i in range(start, stop):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            end = load_shell(plan, shell, pairs, i, neighbors)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            radial[FIRST : end + 8] = 0.0
            for k in range(here.first_radial, after.first_radial):
                row, column = plan.radials[k].factor, plan.radials[k].column
                factor = plan.factors[here.first_factor + row]
                lo, hi = channel_range(neighbors, factor.channel)
                _radial(
                    neighbors.factors[row, lo:],
                    neighbors.slope[factor.fn, lo:],
                    neighbors.inverse[lo:],
                    factor.curvature,
                    factor.center,
                    grad_g[i, column],
                    radial[lo:],
                    hi - lo,
                )
            out[4 * FIRST : 4 * end] = 0.0
            for p in range(FIRST, end):
                vectors[4 * p] = neighbors.x[p] * neighbors.r[p]
                vectors[4 * p + 1] = neighbors.y[p] * neighbors.r[p]
                vectors[4 * p + 2] = neighbors.z[p] * neighbors.r[p]
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, triples, sums, vectors, grad_g[i], out)
            for p in range(FIRST, end):
                a = out[4 * p + 3] + radial[p]
                for c in range(3):
                    grad_r[neighbors.pair[p], c] += a * vectors[4 * p + c] + out[4 * p + c]
