"""Forward derivatives: the Jacobian-vector product, and the Jacobian for the descriptor store.

A function depends on few densities, and these on all neighbours, so the Jacobian of an atom is the
product of a sparse matrix, dB/dA, and a small dense one, dA/dx, in which the images of an atom have
been added up before.
"""

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.ace.kernels.neighbors import (
    INVERSE,
    OPTIONS,
    X,
    Y,
    Z,
    basis,
    new_work,
)
from schnetpack_softadapt.descriptors.ace.kernels.products import fill_nodes
from schnetpack_softadapt.descriptors.snap.kernels.vectors import (
    LANES,
    add,
    fma,
    fnma,
    load,
    mul,
    splat,
    store,
    sub,
    total,
)

__all__ = ["jacobian", "jvp"]


@njit(**OPTIONS)
def _across(out, k, gx, gy, gz, x, y, z, inverse):
    """Store what of a gradient by the unit vector is left when that turns with r."""
    along = fma(x, gx, fma(y, gy, mul(z, gz)))
    store(out, k, mul(inverse, fnma(along, x, gx)))
    store(out, k + LANES, mul(inverse, fnma(along, y, gy)))
    store(out, k + 2 * LANES, mul(inverse, fnma(along, z, gz)))


@njit(**OPTIONS)
def _gradients(plan, work, out):
    """dY_lm/dr ((top + 1)^2, 3, 8) flat of the group that `basis` was called for."""
    top = plan.sizes[2]
    g, q, c, sines = work.geometry, work.q, work.c, work.s
    x, y, z, inverse = load(g, X), load(g, Y), load(g, Z), load(g, INVERSE)
    for level in range(top + 1):
        middle = level * level + level
        for m in range(level + 1):
            norm = splat(plan.norms[level, m])
            above = mul(norm, load(q, (level * (top + 2) + m + 1) * LANES))
            here = mul(mul(norm, splat(float(m))), load(q, (level * (top + 2) + m) * LANES))
            cm, sm = load(c, m * LANES), load(sines, m * LANES)
            k = max(m - 1, 0) * LANES
            a, b = mul(here, load(c, k)), mul(here, load(sines, k))
            plus, minus = (middle + m) * 3 * LANES, (middle - m) * 3 * LANES
            if m:
                _across(out, minus, b, a, mul(above, sm), x, y, z, inverse)
            _across(out, plus, a, sub(splat(0.0), b), mul(above, cm), x, y, z, inverse)


@njit(cache=True, **OPTIONS)
def jvp(plan, neighbors, start, stop, tangent, out):
    """Write the products with tangent (P, 3) of atoms start to stop, (N, D)."""
    n_channels, n_elements = plan.weights.shape
    n_densities, _, top, n_nodes = plan.sizes
    nodes, changes = np.empty(n_nodes * LANES), np.zeros(n_nodes * LANES)
    work, t, one = new_work(plan), np.zeros(3 * LANES), np.empty(LANES)
    gradients = np.empty((top + 1) ** 2 * 3 * LANES)
    sums, harmonics, g, terms = work.sums, work.harmonics, work.geometry, plan.terms
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        fill_nodes(plan, neighbors, begin, end, nodes)
        changes[:] = 0.0
        for i in range(begin, end):
            for e in range(n_elements):
                lo = neighbors.first[i * n_elements + e]
                hi = neighbors.first[i * n_elements + e + 1]
                if lo == hi:
                    continue
                sums[:] = 0.0
                for s in range(lo, hi, LANES):
                    basis(plan, neighbors, i, e, s, work)
                    _gradients(plan, work, gradients)
                    for lane in range(LANES):
                        p = neighbors.pair[s + lane]
                        for x in range(3):
                            t[x * LANES + lane] = tangent[p, x] if p >= 0 else 0.0
                    tx, ty, tz = load(t, 0), load(t, LANES), load(t, 2 * LANES)
                    along = fma(tx, load(g, X), fma(ty, load(g, Y), mul(tz, load(g, Z))))
                    k = 0
                    for level in range(top + 1):
                        for n in range(plan.n_of_level[level]):
                            row = (plan.radial_first[level] + n) * LANES
                            value = load(work.radial, row)
                            slope = mul(load(work.slopes, row), along)
                            for lm in range(level * level, (level + 1) * (level + 1)):
                                d = lm * 3 * LANES
                                turn = mul(tx, load(gradients, d))
                                turn = fma(ty, load(gradients, d + LANES), turn)
                                turn = fma(tz, load(gradients, d + 2 * LANES), turn)
                                change = fma(slope, load(harmonics, lm * LANES), load(sums, k))
                                store(sums, k, fma(value, turn, change))
                                k += LANES
                for v in range(n_densities):
                    change = total(load(sums, v * LANES))
                    for channel in range(n_channels):
                        place = (channel * n_densities + v) * LANES + i - begin
                        changes[place] += plan.weights[channel, e] * change
        k = n_channels * n_densities * LANES
        for p in range(len(plan.product_first) - 1):
            change = splat(0.0)
            for n in range(plan.product_first[p], plan.product_first[p + 1]):
                a, b = terms[n].a * LANES, terms[n].b * LANES
                both = mul(load(changes, a), load(nodes, b))
                both = fma(load(nodes, a), load(changes, b), both)
                change = fma(splat(terms[n].factor), both, change)
            store(changes, k, change)
            k += LANES
        for column in range(len(plan.functions)):
            f = plan.functions[column]
            x, y = f.x * LANES, f.y * LANES
            change = splat(0.0)
            for m in range(0, f.length * LANES, LANES):
                change = fma(load(changes, x + m), load(nodes, y + m), change)
                change = add(change, mul(load(nodes, x + m), load(changes, y + m)))
            store(one, 0, change)
            for i in range(begin, end):
                out[i, column] = one[i - begin]


@njit(**OPTIONS)
def _of_densities(plan, neighbors, i, pair_block, own, n_blocks, work, gradients, out):
    """dA/dx (C V, 3 n_blocks + 6) of atom i: x are positions by block, then strain (Voigt)."""
    n_channels, n_elements = plan.weights.shape
    n_densities, top = plan.sizes[0], plan.sizes[2]
    g, strain = work.geometry, 3 * n_blocks
    out[:] = 0.0
    for e in range(n_elements):
        lo, hi = neighbors.first[i * n_elements + e], neighbors.first[i * n_elements + e + 1]
        for s in range(lo, hi, LANES):
            basis(plan, neighbors, i, e, s, work)
            _gradients(plan, work, gradients)
            for lane in range(LANES):
                p = neighbors.pair[s + lane]
                if p < 0:
                    continue
                x, y, z = (
                    neighbors.vectors[0, s + lane],
                    neighbors.vectors[1, s + lane],
                    neighbors.vectors[2, s + lane],
                )
                ux, uy, uz = g[X + lane], g[Y + lane], g[Z + lane]
                block = 3 * pair_block[p]
                v = 0
                for level in range(top + 1):
                    for n in range(plan.n_of_level[level]):
                        k = (plan.radial_first[level] + n) * LANES + lane
                        value, slope = work.radial[k], work.slopes[k]
                        for lm in range(level * level, (level + 1) * (level + 1)):
                            rate = slope * work.harmonics[lm * LANES + lane]
                            k = lm * 3 * LANES + lane
                            dx = rate * ux + value * gradients[k]
                            dy = rate * uy + value * gradients[k + LANES]
                            dz = rate * uz + value * gradients[k + 2 * LANES]
                            for channel in range(n_channels):
                                weight = plan.weights[channel, e]
                                if weight == 0.0:
                                    continue
                                row = out[channel * n_densities + v]
                                if pair_block[p] != own:  # an image of the atom moves with it
                                    row[block] += weight * dx
                                    row[block + 1] += weight * dy
                                    row[block + 2] += weight * dz
                                row[strain] += weight * dx * x
                                row[strain + 1] += weight * dy * y
                                row[strain + 2] += weight * dz * z
                                row[strain + 3] += 0.5 * weight * (dy * z + dz * y)
                                row[strain + 4] += 0.5 * weight * (dx * z + dz * x)
                                row[strain + 5] += 0.5 * weight * (dx * y + dy * x)
                            v += 1
    for v in range(len(out)):
        row = out[v]
        for x in range(3):
            moved = 0.0
            for block in range(n_blocks):
                moved += row[3 * block + x]
            row[3 * own + x] = -moved


@njit(**OPTIONS)
def _add_adjoint(plan, nodes, lane, node, factor, n, by_density):
    """Add factor dnode/dA to `by_density`; n densities."""
    if node < n:
        by_density[node] += factor
    elif node < plan.sizes[3] - 1:
        p, terms = node - n, plan.terms
        for t in range(plan.product_first[p], plan.product_first[p + 1]):
            a, b, c = terms[t].a, terms[t].b, terms[t].factor * factor
            _add_adjoint(plan, nodes, lane, a, c * nodes[b * LANES + lane], n, by_density)
            _add_adjoint(plan, nodes, lane, b, c * nodes[a * LANES + lane], n, by_density)


@njit(**OPTIONS)
def _add_row(factor, row, out):
    for k in range(len(out)):
        out[k] += factor * row[k]


@njit(cache=True, **OPTIONS)
def jacobian(plan, neighbors, start, stop, block_first, block_atom, pair_block, g, strain, dg_dr):
    """Values and Jacobians of atoms start to stop.

    Args: those of every kernel, the results of `pair_blocks.blocks`, and the arrays to
        fill, of any float type: g (N, D), strain (N, 6, D) and dg_dr (n_blocks, 3, D).
    """
    n, n_columns = neighbors.densities.shape[1], len(plan.functions)
    nodes, by_density = np.empty(plan.sizes[3] * LANES), np.zeros(n)
    work, gradients = new_work(plan), np.empty((plan.sizes[2] + 1) ** 2 * 3 * LANES)
    most = 0
    for i in range(start, stop):
        most = max(most, block_first[i + 1] - block_first[i])
    room, rows = np.empty(n * (3 * most + 6)), np.empty(n_columns * (3 * most + 6))
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        fill_nodes(plan, neighbors, begin, end, nodes)
        for i in range(begin, end):
            lane, first = i - begin, block_first[i]
            n_blocks = block_first[i + 1] - first
            own = 0
            while block_atom[first + own] != i:
                own += 1
            width = 3 * n_blocks + 6
            of_densities = room[: n * width].reshape((n, width))
            of_columns = rows[: n_columns * width].reshape((n_columns, width))
            _of_densities(
                plan, neighbors, i, pair_block, own, n_blocks, work, gradients, of_densities
            )
            of_columns[:] = 0.0
            for column in range(n_columns):
                f, value = plan.functions[column], 0.0
                for m in range(f.length):
                    x, y = nodes[(f.x + m) * LANES + lane], nodes[(f.y + m) * LANES + lane]
                    value += x * y
                    _add_adjoint(plan, nodes, lane, f.x + m, y, n, by_density)
                    _add_adjoint(plan, nodes, lane, f.y + m, x, n, by_density)
                g[i, column] = value
                for t in range(plan.touched_first[column], plan.touched_first[column + 1]):
                    v = plan.touched[t]
                    _add_row(by_density[v], of_densities[v], of_columns[column])
                    by_density[v] = 0.0
            for block in range(n_blocks):
                for x in range(3):
                    for column in range(n_columns):
                        dg_dr[first + block, x, column] = of_columns[column, 3 * block + x]
            for v in range(6):
                for column in range(n_columns):
                    strain[i, v, column] = of_columns[column, 3 * n_blocks + v]
