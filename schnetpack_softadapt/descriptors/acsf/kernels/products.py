"""Values of the symmetry functions of single atoms, and products with their Jacobian.

All are sums over pairs and triples of what `neighbors` and `triples` define: a radial part W with
its slopes dlog W/d(r^2) and an angular part P with P' = dP/dcos; no formula is known here.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.loops import (
    LOOP,
    SCALAR,
    STAGE,
    SUM,
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

__all__ = ["jvp", "values", "vjp"]

# --- values


@njit(**SUM)
def _sum(row, n):
    total = 0.0
    for t in range(n):
        total += row[t]
    return total


@njit(**STAGE)
def _sum_terms(plan, shell, g, neighbors, triples, out):
    group, after = plan.groups[g], plan.groups[g + 1]
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, False)
        n = round_up(n)
        for w in range(group.first_width, after.first_width):
            weight = triples.weights[w - group.first_width]
            for k in range(plan.widths[w].first_term, plan.widths[w + 1].first_term, 4):
                a, b, c, d = plan.terms[k], plan.terms[k + 1], plan.terms[k + 2], plan.terms[k + 3]
                sums = dot4(weight, triples.rows, a.row, b.row, c.row, d.row, n)
                for m in range(4):
                    if plan.terms[k + m].column >= 0:
                        out[plan.terms[k + m].column] += 2.0 * sums[m]


@njit(nogil=True, cache=True)
def values(plan, pairs, start, stop, g):
    """Write the symmetry functions of atoms start to stop into g (N, D), zero before.

    Args:
        plan: `plan.Plan`.
        pairs: `engine.SortedPairs`.
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    for i in range(start, stop):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            load_shell(plan, shell, pairs, i, neighbors)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                lo, hi = channel_range(neighbors, factor.channel)
                g[i, radial.column] = _sum(neighbors.factors[radial.factor, lo:], hi - lo)
            for k in range(here.first_group, after.first_group):
                _sum_terms(plan, shell, k, neighbors, triples, g[i])


# --- vector-Jacobian products
#
# With P(c) = sum over functions of dE/dG 2 u^zeta the energy's derivative by the vector r_j is
#
#     a_j r_j + sum_k B_jk r_k,    B = W P' / (r_j r_k) - 2 A,
#     a_j = sum_k [2 (W P dlog W/d(r_j^2) + A) - W P' c / r_j^2],    A = W P dlog W/d(r_jk^2)
#
# so a triple leaves few numbers, computed in vector loops, and one scalar loop adds them up.


class _Sums(NamedTuple):
    """Per triple of a chunk, (CHUNK,): sums over functions, see above."""

    value: np.ndarray  # P and P' of one width
    slope: np.ndarray  # P and P' of one width
    total: np.ndarray  # W P
    turn: np.ndarray  # W P'
    square: np.ndarray  # W P dphi/ds_2
    stretch: np.ndarray  # W P dphi/ds_1 / 2; over all widths
    cross: np.ndarray  # B
    common: np.ndarray  # the part of a_j and a_k that is the same


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
def _sum_stretch(weight, value, linear, quadratic, sum1, out, n):
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
            _sum_stretch(weight, value, linear, quadratic, sum1, sums.stretch, n)


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
def _vjp_of_group(plan, shell, g, neighbors, triples, sums, vectors, grad, out):
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
def _vjp_of_factor(factor, slope, inverse, curvature, center, grad, out, n):
    for t in range(n):
        w = factor_slope(curvature, center, slope[t], inverse[t])
        out[t] += (2.0 * grad) * factor[t] * w


@njit(nogil=True, cache=True)
def vjp(plan, pairs, start, stop, grad_g, grad_r):
    """Add sum_D grad_g dG/dr_ij of the pairs of atoms start to stop to grad_r (P, 3).

    Args: as for `values`; grad_g (N, D).
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
                _vjp_of_factor(
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
                _vjp_of_group(plan, shell, k, neighbors, triples, sums, vectors, grad_g[i], out)
            for p in range(FIRST, end):
                a = out[4 * p + 3] + radial[p]
                for c in range(3):
                    grad_r[neighbors.pair[p], c] += a * vectors[4 * p + c] + out[4 * p + c]


# --- Jacobian-vector products
#
# For a tangent v_j of every neighbour vector r_j each triple changes by
#
#     d(W P) = W (dlog W) P + W P' dc,
#
# so the sums over functions are those of the values, with two other weights.


class _Tangents(NamedTuple):
    """Changes of the neighbours, (m,), and of triples, (CHUNK,)."""

    # x, y, z: v / r; log_r: d log r = n . v / r; square: d(r^2); by_r: d(r^2) / r; by_cut: d(r^2)
    # dlog f_c/d(r^2).
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    log_r: np.ndarray
    square: np.ndarray
    by_r: np.ndarray
    by_cut: np.ndarray
    cosine: np.ndarray  # dc
    cross: np.ndarray  # (v_j n_k / r_j + v_k n_j / r_k) r_j r_k
    # cuts, squares, distances: sums of by_cut, square and by_r over the distances of a triple
    cuts: np.ndarray
    squares: np.ndarray
    distances: np.ndarray
    value: np.ndarray  # the two weights
    slope: np.ndarray  # the two weights


@njit(nogil=True)
def _new_tangents(m, n):
    a, b = np.zeros((7, m)), aligned(7, n)
    of_neighbors = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    return _Tangents(*of_neighbors, b[0], b[1], b[2], b[3], b[4], b[5], b[6])


@njit(**STAGE)
def _load_tangent(neighbors, tangent, end, out):
    for p in range(FIRST, end):
        pair, i = neighbors.pair[p], neighbors.inverse[p]
        x, y, z = tangent[pair, 0] * i, tangent[pair, 1] * i, tangent[pair, 2] * i
        log_r = x * neighbors.x[p] + y * neighbors.y[p] + z * neighbors.z[p]
        out.x[p], out.y[p], out.z[p], out.log_r[p] = x, y, z, log_r
        out.square[p] = 2.0 * log_r * neighbors.r2[p]
        out.by_r[p] = 2.0 * log_r * neighbors.r[p]


@njit(**STAGE)
def _change(neighbors, index, cosine, tangents, n):
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
def _change_of_third_side(s, slope, cross, cuts, squares, distances, n):
    for t in range(n):
        d = squares[t] - 2.0 * cross[t]  # d(r_jk^2)
        cuts[t] += slope[t] * d
        squares[t] += d
        distances[t] += d / np.sqrt(s[t])


@njit(**LOOP)
def _change_weights(weight, factor, cuts, squares, cosine, value, slope, n):
    for t in range(n):
        value[t] = weight[t] * (cuts[t] + factor * squares[t])
        slope[t] = weight[t] * cosine[t]


@njit(**LOOP)
def _add_stretch(weight, linear, quadratic, sum1, distances, value, n):
    for t in range(n):
        value[t] += weight[t] * stretch(linear, quadratic, sum1[t]) * distances[t]


@njit(**STAGE)
def _jvp_of_group(plan, shell, g, neighbors, triples, tangents, out):
    group = plan.groups[g]
    for p in range(neighbors.bounds[0], neighbors.bounds[-1]):
        tangents.by_cut[p] = tangents.square[p] * neighbors.slope[group.fn, p]
    cuts, squares, distances = tangents.cuts, tangents.squares, tangents.distances
    value, slope, rows = tangents.value, tangents.slope, triples.rows
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, True)
        n = round_up(n)
        _change(neighbors, triples.index, triples.cosine, tangents, n)
        if group.narrow:
            _change_of_third_side(
                triples.s, triples.slope, tangents.cross, cuts, squares, distances, n
            )
        for w in range(group.first_width, plan.groups[g + 1].first_width):
            width, last = plan.widths[w], plan.widths[w + 1].first_term
            weight = triples.weights[w - group.first_width]
            _change_weights(weight, width.squares, cuts, squares, tangents.cosine, value, slope, n)
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

    Args: as for `values`; tangent (P, 3).
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    tangents = _new_tangents(len(neighbors.x), len(triples.s))
    for i in range(start, stop):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            end = load_shell(plan, shell, pairs, i, neighbors)
            _load_tangent(neighbors, tangent, end, tangents)
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
                _jvp_of_group(plan, shell, k, neighbors, triples, tangents, out[i])
