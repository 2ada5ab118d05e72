"""Wide angular functions (G5) of integer zeta without triples.

(1 + lam cos)^zeta is a sum of Legendre polynomials a_l P_l, and P_l(n_j . n_k) the scalar product
of the spherical harmonics of j and k, so that the sum over pairs of neighbours factorises:

    sum_jk E_j E_k 2 u^zeta = sum_l a_l sum_m M_lm M_lm,     M_lm = sum_j E_j Y_lm(n_j)

exactly. That is linear in the number of neighbours where triples are quadratic. The harmonics are
real and normalised such that sum_m Y_lm(a) Y_lm(b) = P_l(a . b); with n = (x, y, z)

    Y_lm = q_lm(z) Re (x + iy)^m  and  q_lm(z) Im (x + iy)^m,   q_lm' = f_lm q_l,m+1.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.geometry import channel_range, round_up
from schnetpack_softadapt.descriptors.acsf.kernels.loops import LOOP, STAGE, SUM, gaussians

__all__ = ["Moments", "add_moment_gradients", "by_moments", "moment_sums", "new_moments"]


class Moments(NamedTuple):
    """Spherical harmonics of the neighbours and their sums; L the largest degree of the layout.

    Attributes:
        legendre: (L+1)(L+2)/2, m) q_lm of each neighbour, row l (l + 1) / 2 + m.
        real, imag: (L+1, m) (x + iy)^m.
        weight: (m,) E of one width; product: (2, m) scratch.
        sums: (2, 2, (L+1)(L+2)/2) M_lm of the two channels, real and imaginary part.
        partial: (4, m) sums over l; gradient: (4, m) dE/dM Y and its x, y, z derivatives.
    """

    legendre: np.ndarray
    real: np.ndarray
    imag: np.ndarray
    weight: np.ndarray
    product: np.ndarray
    sums: np.ndarray
    partial: np.ndarray
    gradient: np.ndarray


@njit(nogil=True)
def new_moments(sizes, m):
    """Room for m neighbours; see `Plan.sizes`."""
    n = sizes[5] + 1
    rows = n * (n + 1) // 2
    f = np.float64
    return Moments(
        np.zeros((rows, m), f),
        np.zeros((n, m), f),
        np.zeros((n, m), f),
        np.zeros(m, f),
        np.zeros((2, m), f),
        np.zeros((2, 2, rows), f),
        np.zeros((4, m), f),
        np.zeros((4, m), f),
    )


@njit(**STAGE)
def by_moments(plan, g, neighbors):
    """Whether moments are cheaper than triples for group g and these neighbours."""
    group = plan.groups[g]
    if group.degree < 0:
        return False
    n_moments = (group.degree + 1) * (group.degree + 2) // 2
    n_widths = plan.groups[g + 1].first_width - group.first_width
    # Costs in pairs, measured for values and VJP from 4 to 180 neighbours, degrees 1 to 16 and 1 to
    # 3 widths (tests/benchmarks/kernels.py --part wide). A harmonic of one channel costs as much as
    # three pairs and its sums for a width as much as four; two channels take turns in the same
    # arrays, so that each width makes the harmonics anew.
    lo, hi = channel_range(neighbors, group.channel_a)
    m = hi - lo
    if group.channel_a == group.channel_b:
        cost = (3.0 + 4.0 * n_widths) * n_moments + 10.0 * n_widths
        return plan.crossover[0] * cost < m * (m - 1) / 2
    begin, end = channel_range(neighbors, group.channel_b)
    cost = n_widths * (13.0 * n_moments + 30.0)
    return plan.crossover[0] * cost < m * (end - begin)


@njit(**LOOP)
def _circular(x, y, re, im, re_next, im_next, n):
    for t in range(n):
        re_next[t] = x[t] * re[t] - y[t] * im[t]
        im_next[t] = x[t] * im[t] + y[t] * re[t]


@njit(**LOOP)
def _first_row(z, factor, below, out, n):
    for t in range(n):
        out[t] = factor * z[t] * below[t]


@njit(**LOOP)
def _row(z, a, b, below, two_below, out, n):
    for t in range(n):
        out[t] = a * z[t] * below[t] - b * two_below[t]


@njit(**STAGE)
def _harmonics(x, y, z, degree, legendre, real, imag, n):
    """Fill q_lm and (x + iy)^m for n neighbours up to a degree."""
    real[0, :n] = 1.0
    imag[0, :n] = 0.0
    for m in range(degree):
        _circular(x, y, real[m], imag[m], real[m + 1], imag[m + 1], n)
    diagonal = 1.0  # q_mm
    for m in range(degree + 1):
        if m > 1:
            diagonal *= np.sqrt((2 * m - 1) / (2 * m))
        legendre[m * (m + 1) // 2 + m, :n] = diagonal
        for l in range(m + 1, degree + 1):
            row, below = l * (l + 1) // 2 + m, (l - 1) * l // 2 + m
            norm = 1.0 / np.sqrt(l * l - m * m)
            if l == m + 1:
                _first_row(z, (2 * l - 1) * norm, legendre[below], legendre[row], n)
            else:
                two_below = (l - 2) * (l - 1) // 2 + m
                b = np.sqrt((l - 1) * (l - 1) - m * m) * norm
                a = (2 * l - 1) * norm
                _row(z, a, b, legendre[below], legendre[two_below], legendre[row], n)


@njit(**LOOP)
def _products(weight, re, im, re_out, im_out, n):
    for t in range(n):
        re_out[t] = weight[t] * re[t]
        im_out[t] = weight[t] * im[t]


@njit(**SUM)
def _dot2(q, re, im, n):
    a = b = 0.0
    for t in range(n):
        a += q[t] * re[t]
        b += q[t] * im[t]
    return a, b


@njit(**STAGE)
def _prepare(plan, g, neighbors, channel, work):
    """Harmonics of the neighbours of a channel; their begin and number, rounded up."""
    lo, hi = channel_range(neighbors, channel)
    n = round_up(hi - lo)
    x, y, z = neighbors.x[lo:], neighbors.y[lo:], neighbors.z[lo:]
    _harmonics(x, y, z, plan.groups[g].degree, work.legendre, work.real, work.imag, n)
    return lo, n


@njit(**STAGE)
def _weigh(plan, g, width, neighbors, lo, hi, work):
    """E of the neighbours lo to hi, followed by zeros."""
    group = plan.groups[g]
    cut = neighbors.weighted_cut if group.weighted else neighbors.cut[group.fn]
    n = round_up(hi - lo)
    gaussians(width.eta, width.shift, neighbors.r[lo:], neighbors.r2[lo:], cut[lo:], work.weight, n)
    work.weight[hi - lo : n] = 0.0


@njit(**STAGE)
def _sum_side(plan, g, width, neighbors, lo, hi, side, work):
    _weigh(plan, g, width, neighbors, lo, hi, work)
    n = round_up(hi - lo)
    degree = plan.groups[g].degree
    re, im = work.product[0], work.product[1]
    for m in range(degree + 1):
        _products(work.weight, work.real[m], work.imag[m], re, im, n)
        for l in range(m, degree + 1):
            row = l * (l + 1) // 2 + m
            sums = _dot2(work.legendre[row], re, im, n)
            work.sums[side, 0, row], work.sums[side, 1, row] = sums
    squares = 0.0
    for t in range(hi - lo):
        squares += work.weight[t] * work.weight[t]
    return squares


@njit(**STAGE)
def _shell_product(sums, l, side):
    """sum_m M_lm M_lm of the first channel and of `side`."""
    total = 0.0
    for row in range(l * (l + 1) // 2, (l + 1) * (l + 2) // 2):
        total += sums[0, 0, row] * sums[side, 0, row] + sums[0, 1, row] * sums[side, 1, row]
    return total


@njit(**STAGE)
def moment_sums(plan, g, neighbors, work, out):
    """Add the functions of group g to out (D,)."""
    group = plan.groups[g]
    same = group.channel_a == group.channel_b
    other = 0 if same else 1
    for k in range(group.first_width, plan.groups[g + 1].first_width):
        width = plan.widths[k]
        squares = 0.0
        for side in range(1 + other):
            channel = group.channel_b if side else group.channel_a
            lo, hi = channel_range(neighbors, channel)
            if not same or k == group.first_width:
                _prepare(plan, g, neighbors, channel, work)
            squares = _sum_side(plan, g, width, neighbors, lo, hi, side, work)
        for t in range(width.first_term, plan.widths[k + 1].first_term):
            term = plan.terms[t]
            if term.column < 0:
                continue
            value = 0.0
            for l in range(term.degree + 1):
                value += plan.legendre[term.first_legendre + l] * _shell_product(
                    work.sums, l, other
                )
            if same:
                # each pair once, and no neighbour with itself
                value = 0.5 * value - (squares if term.slope_factor > 0 else 0.0)
            out[term.column] += value


@njit(**LOOP)
def _add_degree(q, q_above, re, im, factor, a, b, da, db, n):
    for t in range(n):
        a[t] += re * q[t]
        b[t] += im * q[t]
        da[t] += (factor * re) * q_above[t]
        db[t] += (factor * im) * q_above[t]


@njit(**LOOP)
def _add_order(m, a, b, da, db, re, im, re_below, im_below, value, gx, gy, gz, n):
    for t in range(n):
        value[t] += a[t] * re[t] + b[t] * im[t]
        gx[t] += m * (a[t] * re_below[t] + b[t] * im_below[t])
        gy[t] += m * (b[t] * re_below[t] - a[t] * im_below[t])
        gz[t] += da[t] * re[t] + db[t] * im[t]


@njit(**STAGE)
def _contract(degree, coefficient, sums, work, n):
    """gradient = sum_lm coefficient_l M_lm Y_lm and its derivatives by x, y, z."""
    a, b, da, db = work.partial[0], work.partial[1], work.partial[2], work.partial[3]
    g = work.gradient
    g[:, :n] = 0.0
    for m in range(degree + 1):
        work.partial[:, :n] = 0.0
        for l in range(m, degree + 1):
            row = l * (l + 1) // 2 + m
            re, im = coefficient[l] * sums[0, row], coefficient[l] * sums[1, row]
            if m == 0:
                factor = np.sqrt(0.5 * l * (l + 1))
            else:
                factor = np.sqrt((l + m + 1.0) * (l - m))
            above = row + 1 if l > m else row  # factor 0
            q = work.legendre
            _add_degree(q[row], q[above], re, im, factor, a, b, da, db, n)
        below = m - 1 if m > 0 else 0  # factor 0
        real, imag = work.real, work.imag
        _add_order(
            float(m),
            a,
            b,
            da,
            db,
            real[m],
            imag[m],
            real[below],
            imag[below],
            g[0],
            g[1],
            g[2],
            g[3],
            n,
        )


@njit(**STAGE)
def _spread(neighbors, slope, eta, shift, self_factor, work, lo, hi, out):
    """Add dE/dr_j to out (x, y, z, a): dE/dr_j = (x, y, z) + a r_j."""
    for p in range(lo, hi):
        t = p - lo
        e, i = work.weight[t], neighbors.inverse[p]
        gx, gy, gz = work.gradient[1, t], work.gradient[2, t], work.gradient[3, t]
        value = work.gradient[0, t] - self_factor * e
        radial = 2.0 * value * (slope[p] - eta * (1.0 - shift * i))
        along = gx * neighbors.x[p] + gy * neighbors.y[p] + gz * neighbors.z[p]
        out[4 * p] += e * i * gx
        out[4 * p + 1] += e * i * gy
        out[4 * p + 2] += e * i * gz
        out[4 * p + 3] += e * (radial - along * i * i)


@njit(**STAGE)
def add_moment_gradients(plan, g, neighbors, grad, work, coefficient, out):
    """Add the derivative of sum_D grad_D G_D of group g by the neighbours to out (4 m,).

    Args:
        coefficient: (L + 1,) scratch.
        out: four numbers (x, y, z, a) per neighbour, see `kernel_vjp`.
    """
    group = plan.groups[g]
    same = group.channel_a == group.channel_b
    slope = neighbors.slope[group.fn]
    for k in range(group.first_width, plan.groups[g + 1].first_width):
        width = plan.widths[k]
        coefficient[:] = 0.0
        self_factor = 0.0
        for t in range(width.first_term, plan.widths[k + 1].first_term):
            term = plan.terms[t]
            if term.column < 0:
                continue
            for l in range(term.degree + 1):
                coefficient[l] += grad[term.column] * plan.legendre[term.first_legendre + l]
            if same and term.slope_factor > 0:
                self_factor += 2.0 * grad[term.column]
        lo, hi = channel_range(neighbors, group.channel_a)
        if not same or k == group.first_width:
            _prepare(plan, g, neighbors, group.channel_a, work)
        _sum_side(plan, g, width, neighbors, lo, hi, 0, work)
        if same:
            _contract(group.degree, coefficient, work.sums[0], work, round_up(hi - lo))
            _spread(neighbors, slope, width.eta, width.shift, self_factor, work, lo, hi, out)
            continue
        begin, end = channel_range(neighbors, group.channel_b)
        _prepare(plan, g, neighbors, group.channel_b, work)
        _sum_side(plan, g, width, neighbors, begin, end, 1, work)
        _contract(group.degree, coefficient, work.sums[0], work, round_up(end - begin))
        _spread(neighbors, slope, width.eta, width.shift, 0.0, work, begin, end, out)
        _prepare(plan, g, neighbors, group.channel_a, work)
        _weigh(plan, g, width, neighbors, lo, hi, work)
        _contract(group.degree, coefficient, work.sums[1], work, round_up(hi - lo))
        _spread(neighbors, slope, width.eta, width.shift, 0.0, work, lo, hi, out)
