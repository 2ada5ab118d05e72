"""Neighbours in groups of eight: radial functions, spherical harmonics, and their sums."""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.snap.kernels.groups import sort_groups
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

__all__ = [
    "INVERSE",
    "OPTIONS",
    "Sorted",
    "Work",
    "X",
    "Y",
    "Z",
    "add_gradient",
    "basis",
    "densities",
    "new_work",
    "sort",
]

OPTIONS = {"nogil": True, "error_model": "numpy"}

_TINY_SQUARE = 1e-12  # Ang^2, keeps coinciding atoms finite, as in the reference
#: rows of `Work.geometry`: unit vector, 1/r, f_c f_in and its derivative, argument of the radial
#: functions and its derivative (Chebyshev: x, dx/dr; Bessel: cos and sin of pi r / r_c)
X, Y, Z, INVERSE, _FACTOR, _SLOPE, _ARGUMENT, _RATE = (8 * k for k in range(8))


class Sorted(NamedTuple):
    """Neighbours within the cutoff by atom and element, each element padded to whole groups."""

    # (N E + 1,) slots of element e of atom i are first[i E + e] to first[i E + e + 1]
    first: np.ndarray
    pair: np.ndarray  # (n_slots,) row of the pair list, -1 in padding
    rows: np.ndarray  # (N,) element of each atom
    vectors: np.ndarray  # (3, n_slots) Ang
    densities: np.ndarray  # (N, C V) A


class Work(NamedTuple):
    """Of one group, flat, eight numbers each."""

    geometry: np.ndarray  # see above
    # radial, slopes: the rows of the table, R_n after these, and derivatives by r
    radial: np.ndarray
    slopes: np.ndarray
    q: np.ndarray  # Q_l^m, m up to l + 1, at l (top + 2) + m
    c: np.ndarray  # (x + i y)^m
    s: np.ndarray  # (x + i y)^m
    harmonics: np.ndarray  # Y_lm at l^2 + l + m
    sums: np.ndarray  # (V,) of the densities


@njit(**OPTIONS)
def new_work(plan):
    """Room for one group."""
    n_densities, n_radial, top, _ = plan.sizes
    n_radial += plan.table.shape[2]
    return Work(
        np.zeros(8 * LANES),
        np.zeros(n_radial * LANES),
        np.zeros(n_radial * LANES),
        np.zeros((top + 1) * (top + 2) * LANES),
        np.zeros((top + 1) * LANES),
        np.zeros((top + 1) * LANES),
        np.zeros((top + 1) ** 2 * LANES),
        np.zeros(n_densities * LANES),
    )


@njit(cache=True, **OPTIONS)
def sort(plan, r_ij, idx_i, idx_j, numbers):
    """(status, `Sorted` without densities)."""
    n = plan.weights.shape[1]
    status, rows, first, pair, _, vectors = sort_groups(
        plan.species,
        np.full((n, n), plan.lengths[0]),
        np.arange(n),
        n,
        3,
        r_ij,
        idx_i,
        idx_j,
        numbers,
    )
    room = np.zeros((len(numbers), plan.weights.shape[0] * plan.sizes[0]))
    return status, Sorted(first, pair, rows, vectors, room)


@njit(**OPTIONS)
def _measure(plan, neighbors, s, g):
    """Geometry of the eight neighbours from slot s on."""
    cutoff, decay, inner, width, outer = plan.lengths
    for lane in range(LANES):
        x, y, z = (
            neighbors.vectors[0, s + lane],
            neighbors.vectors[1, s + lane],
            neighbors.vectors[2, s + lane],
        )
        if neighbors.pair[s + lane] < 0:
            x = 0.5 * cutoff
        r = math.sqrt(max(x * x + y * y + z * z, _TINY_SQUARE))
        inverse = 1.0 / r
        g[X + lane], g[Y + lane], g[Z + lane] = x * inverse, y * inverse, z * inverse
        g[INVERSE + lane] = inverse
        factor, slope, rate = 1.0, 0.0, math.pi / cutoff
        cosine, sine = math.cos(rate * r), math.sin(rate * r)
        if plan.kinds[1] == 0:
            factor, slope = 0.5 * (cosine + 1.0), -0.5 * rate * sine
        elif plan.kinds[1] == 1:
            rest = 1.0 - (r / cutoff) ** 2
            factor, slope = rest * rest, -4.0 * rest * r / cutoff**2
        if outer > 0.0 and r > cutoff - outer:
            turn = math.pi / outer
            angle = turn * (r - cutoff + outer)
            fall = 0.5 * (math.cos(angle) + 1.0)
            slope = slope * fall - factor * 0.5 * turn * math.sin(angle)
            factor *= fall
        if inner > 0.0:
            t = (r - inner + width) / width
            if t <= 0.0:
                factor, slope = 0.0, 0.0
            elif t < 1.0:
                rise = t**3 * (10.0 - 15.0 * t + 6.0 * t * t)
                slope = slope * rise + factor * 30.0 * (t * (1.0 - t)) ** 2 / width
                factor *= rise
        if neighbors.pair[s + lane] < 0:
            factor, slope = 0.0, 0.0
        g[_FACTOR + lane], g[_SLOPE + lane] = factor, slope
        if plan.kinds[0] == 0:
            scale = 2.0 / math.expm1(decay)
            e = math.expm1(decay * (1.0 - r / cutoff))
            g[_ARGUMENT + lane] = 1.0 - scale * e
            g[_RATE + lane] = scale * decay / cutoff * (e + 1.0)
        elif plan.kinds[0] == 2:
            y = max(1.0 - r / cutoff, 0.0)
            power = y ** (decay - 1.0)
            g[_ARGUMENT + lane] = 1.0 - 2.0 * power * y
            g[_RATE + lane] = 2.0 * decay / cutoff * power
        else:
            g[_ARGUMENT + lane], g[_RATE + lane] = cosine, sine


@njit(**OPTIONS)
def _chebyshev(plan, g, radial, slopes):
    f, df = load(g, _FACTOR), load(g, _SLOPE)
    twice = add(load(g, _ARGUMENT), load(g, _ARGUMENT))
    k = plan.table.shape[2] * LANES
    last = plan.sizes[1] + 1
    if plan.kinds[0] == 0:  # one takes the place of (1 - T_0) / 2
        store(radial, k, f)
        store(slopes, k, df)
        k += LANES
        last -= 1
    before, here = splat(1.0), load(g, _ARGUMENT)  # T_{n-1}, T_n
    d_before, d_here = splat(0.0), splat(1.0)  # derivatives by x
    half, rate = splat(0.5), load(g, _RATE)
    for _ in range(1, last):
        value = fnma(half, here, half)
        store(radial, k, mul(f, value))
        change = mul(mul(half, f), mul(d_here, rate))
        store(slopes, k, sub(mul(df, value), change))
        k += LANES
        d_before, d_here = d_here, sub(fma(twice, d_here, add(here, here)), d_before)
        before, here = here, sub(mul(twice, here), before)


@njit(**OPTIONS)
def _bessel(plan, g, radial, slopes):
    f, df, inverse = load(g, _FACTOR), load(g, _SLOPE), load(g, INVERSE)
    cosine, sine = load(g, _ARGUMENT), load(g, _RATE)
    twice = add(cosine, cosine)
    # 1 / (pi r / r_c)
    unit = mul(splat(plan.lengths[0] / math.pi), inverse)
    sine_before, cosine_before = splat(0.0), splat(1.0)
    sine_here, cosine_here = sine, cosine
    s = mul(sine, unit)
    ds = mul(sub(cosine, s), inverse)
    value, change = splat(0.0), splat(0.0)
    k = plan.table.shape[2] * LANES
    for n in range(plan.sizes[1]):
        sine_before, sine_here = sine_here, sub(mul(twice, sine_here), sine_before)
        cosine_before, cosine_here = cosine_here, sub(mul(twice, cosine_here), cosine_before)
        s_next = mul(splat(1.0 / (n + 2)), mul(sine_here, unit))
        ds_next = mul(sub(cosine_here, s_next), inverse)
        a, b = splat(plan.bessel[n, 0]), splat(plan.bessel[n, 1])
        value = fma(a, add(s, s_next), mul(b, value))
        change = fma(a, add(ds, ds_next), mul(b, change))
        store(radial, k, mul(f, value))
        store(slopes, k, fma(df, value, mul(f, change)))
        k += LANES
        s, ds = s_next, ds_next


@njit(**OPTIONS)
def _combine(table, ends, radial, slopes):
    """Rows of the table (rows, n)."""
    n_rows = table.shape[0]
    for row in range(n_rows):
        value, slope = splat(0.0), splat(0.0)
        for n in range(ends[row, 0], ends[row, 1]):
            c, k = splat(table[row, n]), (n_rows + n) * LANES
            value, slope = fma(c, load(radial, k), value), fma(c, load(slopes, k), slope)
        store(radial, row * LANES, value)
        store(slopes, row * LANES, slope)


@njit(**OPTIONS)
def basis(plan, neighbors, i, e, s, work):
    """Fill all of `work` but the sums for the group at slot s, of element e around atom i."""
    top = plan.sizes[2]
    g, q, c, sines = work.geometry, work.q, work.c, work.s
    _measure(plan, neighbors, s, g)
    if plan.kinds[0] == 1:
        _bessel(plan, g, work.radial, work.slopes)
    else:
        _chebyshev(plan, g, work.radial, work.slopes)
    if plan.table.shape[2]:
        _combine(plan.table[neighbors.rows[i], e], plan.table_ends, work.radial, work.slopes)
    x, y, z = load(g, X), load(g, Y), load(g, Z)
    store(c, 0, splat(1.0))
    store(sines, 0, splat(0.0))
    double = 1.0  # (2 m - 1)!!
    for m in range(top + 1):
        if m:
            a, b = load(c, (m - 1) * LANES), load(sines, (m - 1) * LANES)
            store(c, m * LANES, fnma(b, y, mul(a, x)))
            store(sines, m * LANES, fma(b, x, mul(a, y)))
            double *= 2.0 * m - 1.0
        before, here = splat(0.0), splat(double)
        store(q, (m * (top + 2) + m) * LANES, here)
        store(q, (m * (top + 2) + m + 1) * LANES, splat(0.0))
        for level in range(m + 1, top + 1):
            up = mul(mul(splat((2.0 * level - 1.0) / (level - m)), z), here)
            following = fnma(splat((level + m - 1.0) / (level - m)), before, up)
            before, here = here, following
            store(q, (level * (top + 2) + m) * LANES, here)
    for level in range(top + 1):
        for m in range(level + 1):
            value = mul(splat(plan.norms[level, m]), load(q, (level * (top + 2) + m) * LANES))
            middle = level * level + level
            store(work.harmonics, (middle + m) * LANES, mul(value, load(c, m * LANES)))
            if m:
                store(work.harmonics, (middle - m) * LANES, mul(value, load(sines, m * LANES)))


@njit(cache=True, **OPTIONS)
def densities(plan, neighbors, start, stop):
    """Sum the densities of atoms start to stop."""
    n_channels, n_elements = plan.weights.shape
    n_densities, top = plan.sizes[0], plan.sizes[2]
    work = new_work(plan)
    sums, harmonics = work.sums, work.harmonics
    for i in range(start, stop):
        out = neighbors.densities[i]
        out[:] = 0.0
        for e in range(n_elements):
            lo, hi = neighbors.first[i * n_elements + e], neighbors.first[i * n_elements + e + 1]
            if lo == hi:
                continue
            sums[:] = 0.0
            for s in range(lo, hi, LANES):
                basis(plan, neighbors, i, e, s, work)
                k = 0
                for level in range(top + 1):
                    for n in range(plan.n_of_level[level]):
                        value = load(work.radial, (plan.radial_first[level] + n) * LANES)
                        for lm in range(level * level, (level + 1) * (level + 1)):
                            y = load(harmonics, lm * LANES)
                            store(sums, k, fma(value, y, load(sums, k)))
                            k += LANES
            for v in range(n_densities):
                value = total(load(sums, v * LANES))
                for channel in range(n_channels):
                    out[channel * n_densities + v] += plan.weights[channel, e] * value


@njit(**OPTIONS)
def add_gradient(plan, work, by_density, gradient):
    """dE/dr of the group that `basis` was called for, (3, 8) flat, by `by_density` (V,)."""
    top = plan.sizes[2]
    g, q, c, sines = work.geometry, work.q, work.c, work.s
    gx = gy = gz = along = splat(0.0)
    for level in range(top + 1):
        width, middle = 2 * level + 1, level * level + level
        base = plan.first[level] + level
        for m in range(level + 1):
            # sums over n of the derivatives by Y_lm and Y_l-m, and by the radial functions
            a = b = a_slope = b_slope = splat(0.0)
            k = base
            row = plan.radial_first[level] * LANES
            for n in range(row, row + plan.n_of_level[level] * LANES, LANES):
                value, slope = load(work.radial, n), load(work.slopes, n)
                plus = splat(by_density[k + m])
                a, a_slope = fma(plus, value, a), fma(plus, slope, a_slope)
                if m:
                    minus = splat(by_density[k - m])
                    b, b_slope = fma(minus, value, b), fma(minus, slope, b_slope)
                k += width
            along = fma(a_slope, load(work.harmonics, (middle + m) * LANES), along)
            norm = splat(plan.norms[level, m])
            q_here = mul(norm, load(q, (level * (top + 2) + m) * LANES))
            q_above = mul(norm, load(q, (level * (top + 2) + m + 1) * LANES))
            cm, sm = load(c, m * LANES), load(sines, m * LANES)
            gz = fma(q_above, fma(a, cm, mul(b, sm)), gz)
            if m:
                along = fma(b_slope, load(work.harmonics, (middle - m) * LANES), along)
                # (x + i y)^m has the derivatives m (x + i y)^(m-1) and i times that
                q_here = mul(splat(float(m)), q_here)
                cm, sm = load(c, (m - 1) * LANES), load(sines, (m - 1) * LANES)
                gx = fma(q_here, fma(a, cm, mul(b, sm)), gx)
                gy = fma(q_here, sub(mul(b, cm), mul(a, sm)), gy)
    x, y, z, inverse = load(g, X), load(g, Y), load(g, Z), load(g, INVERSE)
    # only the part across r turns the unit vector
    radial = fma(x, gx, fma(y, gy, mul(z, gz)))
    along = fnma(inverse, radial, along)
    store(gradient, 0, fma(inverse, gx, mul(along, x)))
    store(gradient, LANES, fma(inverse, gy, mul(along, y)))
    store(gradient, 2 * LANES, fma(inverse, gz, mul(along, z)))
