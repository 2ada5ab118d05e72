"""Jacobians of the symmetry functions of single atoms, for the descriptor store.

The derivative of every function by every neighbour vector is built in a buffer of one atom; from
there it is added up over the periodic images of each neighbour and contracted to the strain
derivative. Within a triple the loop runs over the functions: with the notation of `products` and
T = W P, D = W P' each adds a_j r_j + B r_k to the derivative by r_j.
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

__all__ = ["jacobian"]


class _Work(NamedTuple):
    """Of the functions of a group."""

    value: np.ndarray  # (CHUNK, F) T and D of each triple
    slope: np.ndarray  # (CHUNK, F) T and D of each triple
    linear: np.ndarray  # (F,) coefficients of the exponents
    quadratic: np.ndarray  # (F,) coefficients of the exponents
    squares: np.ndarray  # (F,) coefficients of the exponents
    stretches: np.ndarray  # (F,) `stretch` of the triple at hand
    sums: np.ndarray  # (F,) of T
    gradient: np.ndarray  # (m, 3, F) by each neighbour vector


@njit(**SCALAR)
def _columns(weight, rows, row, slope_row, slope_factor, value, slope, k, n):
    """Column k of T and D."""
    for t in range(n):
        value[t, k] = 2.0 * weight[t] * rows[row, t]
        slope[t, k] = (2.0 * slope_factor) * weight[t] * rows[slope_row, t]


@njit(**LOOP)
def _stretches(linear, quadratic, sum1, out, n):
    for t in range(n):
        out[t] = stretch(linear[t], quadratic[t], sum1)


@njit(**LOOP)
def _spread(value, slope, squares, stretches, scalars, xj, xk, g, jx, jy, jz, kx, ky, kz, n):
    """Add the derivatives of all functions by r_j and r_k for one triple.

    Args:
        value, slope, squares, stretches: (n,) see `_Work`.
        scalars: dlog f_c/d(r^2) and 1/r of r_j, r_k, r_jk, then cos.
        xj, xk: (3,) r_j, r_k.
    """
    lj, ij, lk, ik, ljk, ijk, c, narrow = scalars
    x1, y1, z1 = xj
    x2, y2, z2 = xk
    turn, turn_j, turn_k = ij * ik, c * ij * ij, c * ik * ik
    for t in range(n):
        v, d, e, f = value[t], slope[t], squares[t], stretches[t]
        a = narrow * v * (ljk + e + f * ijk)
        b = d * turn - 2.0 * a
        aj = 2.0 * (v * (lj + e + f * ij) + a) - d * turn_j
        ak = 2.0 * (v * (lk + e + f * ik) + a) - d * turn_k
        g[t] += v
        jx[t] += aj * x1 + b * x2
        jy[t] += aj * y1 + b * y2
        jz[t] += aj * z1 + b * z2
        kx[t] += ak * x2 + b * x1
        ky[t] += ak * y2 + b * y1
        kz[t] += ak * z2 + b * z1


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, triples, work, vectors, out_g, out):
    """Add the functions of group g to out_g (D,) and out (neighbours of the atom, 3, D)."""
    value, slope, linear, quadratic, squares, stretches, sums, gradient = work
    joint = False
    group = plan.groups[g]
    first_term = plan.widths[group.first_width].first_term
    last_term = plan.widths[plan.groups[g + 1].first_width].first_term
    n_terms = last_term - first_term
    for w in range(group.first_width, plan.groups[g + 1].first_width):
        width = plan.widths[w]
        for k in range(width.first_term - first_term, plan.widths[w + 1].first_term - first_term):
            linear[k], quadratic[k] = width.linear, width.quadratic
            squares[k] = width.squares
            stretches[k] = stretch(width.linear, width.quadratic, 0.0)
            joint |= width.quadratic != 0.0
    lo, hi = neighbors.bounds[0], neighbors.bounds[-1]
    sums[:n_terms] = 0.0
    gradient[lo:hi, :, :n_terms] = 0.0
    cut_slope, inverse = neighbors.slope[group.fn], neighbors.inverse
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, True)
        for w in range(group.first_width, plan.groups[g + 1].first_width):
            weight, rows = triples.weights[w - group.first_width], triples.rows
            for k in range(plan.widths[w].first_term, plan.widths[w + 1].first_term):
                term, column = plan.terms[k], k - first_term
                row, slope_row, factor = term.row, term.slope_row, term.slope_factor
                _columns(weight, rows, row, slope_row, factor, value, slope, column, n)
        for t in range(n):
            j1, k1 = triples.index[t] >> 16, triples.index[t] & 0xFFFF
            if joint:
                _stretches(linear, quadratic, triples.sum1[t], stretches, n_terms)
            scalars = (
                cut_slope[j1],
                inverse[j1],
                cut_slope[k1],
                inverse[k1],
                triples.slope[t] if group.narrow else 0.0,  # not filled for wide groups
                1.0 / np.sqrt(triples.s[t]),
                triples.cosine[t],
                1.0 if group.narrow else 0.0,
            )
            _spread(
                value[t],
                slope[t],
                squares,
                stretches,
                scalars,
                (vectors[j1, 0], vectors[j1, 1], vectors[j1, 2]),
                (vectors[k1, 0], vectors[k1, 1], vectors[k1, 2]),
                sums,
                gradient[j1, 0],
                gradient[j1, 1],
                gradient[j1, 2],
                gradient[k1, 0],
                gradient[k1, 1],
                gradient[k1, 2],
                n_terms,
            )
    for k in range(first_term, last_term):
        column = plan.terms[k].column
        if column >= 0:
            out_g[column] += sums[k - first_term]
            for p in range(lo, hi):
                for c in range(3):
                    out[p - lo, c, column] += gradient[p, c, k - first_term]


@njit(**LOOP)
def _strain(gx, gy, gz, x, y, z, s0, s1, s2, s3, s4, s5, n):
    for t in range(n):
        a, b, c = gx[t], gy[t], gz[t]
        s0[t] += a * x
        s1[t] += b * y
        s2[t] += c * z
        s3[t] += 0.5 * (b * z + c * y)
        s4[t] += 0.5 * (a * z + c * x)
        s5[t] += 0.5 * (a * y + b * x)


@njit(**LOOP)
def _move(gradient, block, own, n):
    for t in range(n):
        block[t] += gradient[t]
        own[t] -= gradient[t]


@njit(nogil=True, cache=True)
def jacobian(plan, pairs, start, stop, block_first, block_atom, pair_block, g, strain, dg_dr):
    """Values and Jacobians of atoms start to stop.

    Args: as for `products.values`, then the results of `pair_blocks.blocks` and the arrays to fill,
        of any float type: g (N, D), strain (N, 6, D) and dg_dr (n_blocks, 3, D).
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    n_columns, room = g.shape[1], len(neighbors.x)
    n_terms, n = round_up(len(plan.terms)), len(triples.s)
    value, slope, rows = aligned(n, n_terms), aligned(n, n_terms), aligned(5, n_terms)
    by_neighbor = aligned(3 * room, n_terms).reshape((room, 3, n_terms))
    work = _Work(value, slope, rows[0], rows[1], rows[2], rows[3], rows[4], by_neighbor)
    vectors = np.empty((room, 3))
    values = np.empty(n_columns)
    gradient = np.empty((pairs.most, 3, n_columns))
    of_block = np.empty((pairs.most + 1, 3, n_columns))
    by_strain = np.empty((6, n_columns))
    s0, s1, s2, s3, s4, s5 = by_strain
    for i in range(start, stop):
        n_blocks = block_first[i + 1] - block_first[i]
        own = 0
        while block_atom[block_first[i] + own] != i:
            own += 1
        values[:] = 0.0
        of_block[:n_blocks] = 0.0
        by_strain[:] = 0.0
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            end = load_shell(plan, shell, pairs, i, neighbors)
            gradient[: end - FIRST] = 0.0
            for p in range(FIRST, end):
                r = neighbors.r[p]
                vectors[p, 0] = neighbors.x[p] * r
                vectors[p, 1] = neighbors.y[p] * r
                vectors[p, 2] = neighbors.z[p] * r
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                cut_slope = neighbors.slope[factor.fn]
                lo, hi = channel_range(neighbors, factor.channel)
                for p in range(lo, hi):
                    value = neighbors.factors[radial.factor, p]
                    slope = factor_slope(
                        factor.curvature, factor.center, cut_slope[p], neighbors.inverse[p]
                    )
                    w = 2.0 * value * slope
                    values[radial.column] += value
                    for c in range(3):
                        gradient[p - FIRST, c, radial.column] += w * vectors[p, c]
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, triples, work, vectors, values, gradient)
            for p in range(FIRST, end):
                d, (x, y, z) = gradient[p - FIRST], (vectors[p, 0], vectors[p, 1], vectors[p, 2])
                _strain(d[0], d[1], d[2], x, y, z, s0, s1, s2, s3, s4, s5, n_columns)
                b = pair_block[neighbors.pair[p]]
                if b != own:  # an image of the atom itself moves with it
                    for c in range(3):
                        _move(d[c], of_block[b, c], of_block[own, c], n_columns)
        g[i] = values
        strain[i] = by_strain
        dg_dr[block_first[i] : block_first[i + 1]] = of_block[:n_blocks]
