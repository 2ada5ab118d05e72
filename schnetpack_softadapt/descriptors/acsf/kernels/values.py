"""Values of the symmetry functions of single atoms."""

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
from schnetpack_softadapt.descriptors.acsf.kernels.loops import (
    LOOP,
    SCALAR,
    STAGE,
    SUM,
    cutoff_factors,
    dot4,
    exponential,
    multiply_rows,
    power_row,
)

__all__ = ["fill_rows", "fill_weights", "start_group", "values"]


@njit(**SUM)
def _sum(row, lo, hi):
    total = 0.0
    for t in range(lo, hi):
        total += row[t]
    return total


@njit(**LOOP)
def _bases(cosine, plus, minus, n):
    for t in range(n):
        c = 0.5 * cosine[t]
        plus[t] = 0.5 + c
        minus[t] = 0.5 - c


@njit(**SCALAR)
def _scale_by_number(cut, number, out, lo, hi):
    for t in range(lo, hi):
        out[t] = cut[t] * number[t]


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
def _exponentials(eta, sum2, row, n):
    for t in range(n):
        row[t] = exponential(-eta * sum2[t])


@njit(**LOOP)
def _shifted_exponentials(eta, shift, n_distances, sum1, sum2, row, n):
    # sum of (r - shift)^2 over two or three distances
    constant = n_distances * shift * shift
    for t in range(n):
        row[t] = exponential(-eta * (sum2[t] - 2.0 * shift * sum1[t] + constant))


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
def fill_weights(plan, shell, g, neighbors, pairs, n):
    """Radial part of each width of group g for n pairs; f_c(r_jk) and its slope if narrow."""
    group = plan.groups[g]
    n = round_up(n)
    cut = neighbors.weighted_cut if group.weighted else neighbors.cut[group.fn]
    _gather(pairs.index, cut, neighbors.r2, pairs.product, pairs.sum2, n)
    if group.shifted:
        _gather_distances(pairs.index, neighbors.r, pairs.sum1, n)
    if group.narrow:
        code = plan.fn_codes[plan.shells[shell].first_fn + group.fn]
        cutoff_factors(code, pairs.s, plan.shells[shell].cutoff, pairs.cut, pairs.slope, n)
        _narrow(pairs.s, pairs.cut, pairs.product, pairs.sum2, n)
        if group.shifted:
            _narrow_distances(pairs.s, pairs.sum1, n)
    for k in range(group.first_base, plan.groups[g + 1].first_base):
        base = plan.bases[k]
        row = pairs.rows[base.row]
        if base.shift == 0.0:
            _exponentials(base.eta, pairs.sum2, row, n)
        else:
            m = 3.0 if group.narrow else 2.0
            _shifted_exponentials(base.eta, base.shift, m, pairs.sum1, pairs.sum2, row, n)
    _powers(plan, pairs.rows, group.first_step, group.first_step + group.n_width_steps, n)
    for k in range(group.first_width, plan.groups[g + 1].first_width):
        row = pairs.rows[plan.widths[k].row]
        _multiply(pairs.product, row, pairs.weights[k - group.first_width], n)


@njit(**STAGE)
def start_group(plan, g, neighbors):
    """Prepare what `fill_weights` needs of the neighbours for group g."""
    group = plan.groups[g]
    if group.weighted:
        lo, hi = channel_range(neighbors, group.channel_a)
        _scale_by_number(neighbors.cut[group.fn], neighbors.number, neighbors.weighted_cut, lo, hi)


@njit(**STAGE)
def fill_rows(plan, g, pairs, n, with_slopes):
    """Powers of (1 +- cos)/2 that group g needs, with those of the slopes on demand."""
    group = plan.groups[g]
    n = round_up(n)
    rows = pairs.rows
    _bases(pairs.cosine, rows[1], rows[2], n)
    first = group.first_step + group.n_width_steps
    last = plan.groups[g + 1].first_step if with_slopes else first + group.n_value_steps
    _powers(plan, rows, first, last, n)


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, pairs, out):
    group = plan.groups[g]
    last_width = plan.groups[g + 1].first_width
    start_group(plan, g, neighbors)
    j = FIRST
    while j >= 0:
        n, j = select_pairs(neighbors, group, plan.shells[shell].cutoff, j, pairs)
        if n == 0:
            continue
        padded = round_up(n)
        fill_weights(plan, shell, g, neighbors, pairs, n)
        fill_rows(plan, g, pairs, n, False)
        for w in range(group.first_width, last_width):
            weight = pairs.weights[w - group.first_width]
            for k in range(plan.widths[w].first_term, plan.widths[w + 1].first_term, 4):
                t = plan.terms
                sums = dot4(
                    weight, pairs.rows, t[k].row, t[k + 1].row, t[k + 2].row, t[k + 3].row, padded
                )
                for m in range(4):
                    if t[k + m].column >= 0:
                        out[t[k + m].column] += 2.0 * sums[m]


@njit(nogil=True, cache=True)
def values(plan, first, order, r_ij, idx_j, numbers, most, start, stop, g):
    """Write the symmetry functions of atoms start to stop into g (N, D), zero before.

    Args:
        plan: `compiled.Plan`.
        first, order: from `sort_pairs`.
        r_ij: (P, 3) Ang; idx_j: (P,); numbers: (N,).
        most: largest number of neighbours of an atom.
    """
    neighbors = new_neighbors(plan.sizes, most)
    pairs = new_pairs(plan.sizes, most)
    for i in range(start, stop):
        species = plan.species[numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            load_shell(plan, shell, r_ij, idx_j, numbers, order, first[i], first[i + 1], neighbors)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                lo, hi = channel_range(neighbors, factor.channel)
                g[i, radial.column] = _sum(neighbors.factors[radial.factor], lo, hi)
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, pairs, g[i])
