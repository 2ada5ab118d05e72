"""Components of eight atoms at a time, and their vector-Jacobian product.

With Y = sum of g Z over the products Z that stand beside conj(U) in a component with derivative g
(Thompson et al. 2015, eq. 23), the derivative by a neighbour is that of Re sum conj(Y) f u. It is
needed for the turns of the rotation u about three axes and for its weight f only, and a turn acts
on the matrices u by a fixed sparse matrix, which is applied to Y, once for all neighbours:

    u_1 = exp(i theta n.sigma),  n = (-x, -y, z),  du_1 = u_1 i omega.sigma,
    omega = n dtheta + sin theta cos theta dn + sin^2 theta (n x dn).

No derivative of u is ever formed.

The Jacobian has the same sums for each product Z by itself, on the one level that it has, and then
adds them to the components that contain it: three products a component, not all levels of Y.
"""

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.snap.kernels.neighbors import (
    COS,
    FACTOR,
    INLINE,
    INVERSE,
    RATE,
    SIN,
    SLOPE,
    X,
    Y,
    Z,
    advance_row,
    load_rotation,
    start_row,
)
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
)

__all__ = ["jacobian", "values", "vjp"]


@njit(nogil=True, error_model="numpy")
def _gather(plan, neighbors, start, stop, whole):
    """Densities of up to eight atoms, (C, F, 2, 8) flat, whole matrices and the atom itself."""
    twojmax, n_channels, n_half, n_full = plan.sizes[:4]
    whole[:] = 0.0
    for lane in range(stop - start):
        i = start + lane
        for c in range(n_channels):
            source = neighbors.densities[i, c]
            out = whole[c * n_full * 16 + lane :]
            for h in range(n_half):
                entry = plan.half[h]
                real, imaginary = source[h, 0], source[h, 1]
                out[entry.own * 16], out[entry.own * 16 + 8] = real, imaginary
                out[entry.mirrored * 16] = entry.sign * real
                out[entry.mirrored * 16 + 8] = -entry.sign * imaginary
            own = plan.self_terms[neighbors.rows[i], c]
            for j in range(twojmax + 1):
                for p in range(j + 1):
                    out[(plan.level_first[j] + p * (j + 2)) * 16] += own


@njit(**INLINE)
def _element(whole, couplings, j1, first1, j2, first2, p, q):
    """Z[p - shift, q - shift] of eight atoms."""
    zr = zi = splat(0.0)
    low, high = max(0, q - j2), min(j1, q)
    for p1 in range(max(0, p - j2), min(j1, p) + 1):
        p2 = p - p1
        rr = ii = ri = ir = splat(0.0)
        x = (first1 + p1 * (j1 + 1) + low) * 16
        y = (first2 + p2 * (j2 + 1) + q - low) * 16
        k = low * (j2 + 1) + q - low
        for _ in range(low, high + 1):
            factor = splat(couplings[k])
            xr, xi = mul(factor, load(whole, x)), mul(factor, load(whole, x + 8))
            yr, yi = load(whole, y), load(whole, y + 8)
            rr, ii = fma(xr, yr, rr), fma(xi, yi, ii)
            ri, ir = fma(xr, yi, ri), fma(xi, yr, ir)
            x, y, k = x + 16, y - 16, k + j2
        factor = splat(couplings[p1 * (j2 + 1) + p2])
        zr, zi = fma(factor, sub(rr, ii), zr), fma(factor, add(ri, ir), zi)
    return zr, zi


@njit(nogil=True, cache=True, error_model="numpy")
def values(plan, neighbors, start, stop, b):
    """Write components (N, n) of atoms start to stop."""
    n_channels, n_full, n_components = plan.sizes[1], plan.sizes[3], plan.sizes[4]
    whole, sums = np.empty(n_channels * n_full * 16), np.empty(n_components * LANES)
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        _gather(plan, neighbors, begin, end, whole)
        sums[:] = 0.0
        for k in range(len(plan.products) - 1):
            product = plan.products[k]
            last = plan.products[k + 1].first_value
            if product.first_value == last:
                continue
            j, shift = product.j, product.shift
            couplings = plan.couplings[product.first_coupling :]
            for p in range(j // 2 + 1):
                n = p + 1 if 2 * p == j else j + 1
                for q in range(n):
                    zr, zi = _element(
                        whole,
                        couplings,
                        product.j1,
                        product.first1,
                        product.j2,
                        product.first2,
                        p + shift,
                        q + shift,
                    )
                    weight = 1.0 if 2 * p == j and q == p else 2.0
                    zr, zi = mul(splat(weight), zr), mul(splat(weight), zi)
                    for v in range(product.first_value, last):
                        use = plan.values[v]
                        u = (use.first + p * (j + 1) + q) * 16
                        x = load(sums, use.column * LANES)
                        x = fma(load(whole, u), zr, fma(load(whole, u + 8), zi, x))
                        store(sums, use.column * LANES, x)
        for lane in range(end - begin):
            isolated = plan.isolated[neighbors.rows[begin + lane]]
            for k in range(n_components):
                value = sums[k * LANES + lane]
                b[begin + lane, k] = value * plan.factors[k] - isolated[k]


@njit(nogil=True, error_model="numpy")
def _adjoint(plan, whole, gradient, y):
    """Y (C, H, 2, 8) flat from the derivatives by the components (n, 8) flat."""
    n_half, factors = plan.sizes[2], np.empty(plan.sizes[1] * LANES)
    y[:] = 0.0
    for k in range(len(plan.products) - 1):
        product = plan.products[k]
        j, shift = product.j, product.shift
        couplings = plan.couplings[product.first_coupling :]
        first, last = product.first_output, plan.products[k + 1].first_output
        for o in range(first, last):
            factor = splat(0.0)
            for t in range(plan.outputs[o].first_term, plan.outputs[o + 1].first_term):
                term = plan.terms[t]
                factor = fma(splat(term.factor), load(gradient, term.column * LANES), factor)
            store(factors, (o - first) * LANES, factor)
        for p in range(j // 2 + 1):
            place = plan.row_first[p, j]
            for q in range(p + 1 if 2 * p == j else j + 1):
                zr, zi = _element(
                    whole,
                    couplings,
                    product.j1,
                    product.first1,
                    product.j2,
                    product.first2,
                    p + shift,
                    q + shift,
                )
                for o in range(first, last):
                    factor = load(factors, (o - first) * LANES)
                    out = (plan.outputs[o].channel * n_half + place + q) * 16
                    store(y, out, fma(factor, zr, load(y, out)))
                    store(y, out + 8, fma(factor, zi, load(y, out + 8)))


@njit(nogil=True, error_model="numpy")
def _turn(plan, y, turned):
    """Coefficients of Re v and Im v in Re sum conj(Y) u and in its derivatives by three turns.

    Args:
        y: (H, 2, 8) flat; overwritten.
        turned: (H, 4, 2, 8) flat.
    """
    twojmax = plan.sizes[0]
    for p in range(twojmax // 2 + 1):
        for j in range(2 * p, twojmax + 1):
            first = plan.row_first[p, j]
            _turn_row(plan, first, j, y[first * 16 :], turned[first * 64 :])


@njit(nogil=True, error_model="numpy")
def _turn_row(plan, first, j, y, turned):
    """The same of a row of level j, whose place in the half is `first`: y (j + 1, 2, 8) flat."""
    for q in range(j + 1):
        weight = splat(plan.half[first + q].weight)
        store(y, q * 16, mul(weight, load(y, q * 16)))
        store(y, q * 16 + 8, mul(weight, load(y, q * 16 + 8)))
    for q in range(j + 1):
        entry = plan.half[first + q]
        scale = splat(entry.scale)
        xr, xi = mul(scale, load(y, q * 16)), mul(scale, load(y, q * 16 + 8))
        below, above = splat(entry.below * entry.scale), splat(entry.above * entry.scale)
        # conj(Y) = F; the neighbours' terms vanish at the ends of the row
        pr = pi = qr = qi = splat(0.0)
        if q > 0:
            pr, pi = mul(below, load(y, q * 16 - 16)), mul(below, load(y, q * 16 - 8))
        if q < j:
            qr, qi = mul(above, load(y, q * 16 + 16)), mul(above, load(y, q * 16 + 24))
        tilt, out = splat(entry.tilt), q * 64
        # Re(F u) = Yr ur + Yi ui; of i G: coefficients -Im, -Re of G = F
        store(turned, out, xr)
        store(turned, out + 8, xi)
        store(turned, out + 16, add(pi, qi))
        store(turned, out + 24, sub(splat(0.0), add(pr, qr)))
        store(turned, out + 32, sub(qr, pr))
        store(turned, out + 40, sub(qi, pi))
        store(turned, out + 48, mul(tilt, xi))
        store(turned, out + 56, sub(splat(0.0), mul(tilt, xr)))


@njit(**INLINE)
def _contract_row(row, turned, n, e0, e1, e2, e3):
    """Add the products of a row of v with the coefficients of one atom (n, 4, 2)."""
    for q in range(n):
        vr, vi, t = load(row, q * 16), load(row, q * 16 + 8), q * 8
        e0 = fma(splat(turned[t]), vr, e0)
        e1 = fma(splat(turned[t + 2]), vr, e1)
        e2 = fma(splat(turned[t + 4]), vr, e2)
        e3 = fma(splat(turned[t + 6]), vr, e3)
        e0 = fma(splat(turned[t + 1]), vi, e0)
        e1 = fma(splat(turned[t + 3]), vi, e1)
        e2 = fma(splat(turned[t + 5]), vi, e2)
        e3 = fma(splat(turned[t + 7]), vi, e3)
    return e0, e1, e2, e3


@njit(**INLINE)
def _by_position(geometry, s, e, g1, g2, g3, out):
    """Derivative by r (3, 8) flat from e = Re sum conj(Y) u and its derivatives by the turns."""
    x, y, z = load(geometry[X], s), load(geometry[Y], s), load(geometry[Z], s)
    sine, cosine = load(geometry[SIN], s), load(geometry[COS], s)
    factor = load(geometry[FACTOR], s)
    # M g and M (g x n) with M = diag(-1, -1, 1), n = M (x, y, z)
    m1, m2 = sub(splat(0.0), g1), sub(splat(0.0), g2)
    along = fma(m1, x, fma(m2, y, mul(g3, z)))
    c1 = sub(splat(0.0), fma(g2, z, mul(g3, y)))
    c2 = fma(g3, x, mul(g1, z))
    c3 = fnma(g1, y, mul(g2, x))
    across = mul(mul(factor, sine), load(geometry[INVERSE], s))
    parallel, normal = mul(across, cosine), mul(across, sine)
    radial = fma(load(geometry[SLOPE], s), e, mul(mul(factor, load(geometry[RATE], s)), along))
    radial = fnma(parallel, along, radial)
    store(out, 0, fma(radial, x, fma(parallel, m1, mul(normal, c1))))
    store(out, 8, fma(radial, y, fma(parallel, m2, mul(normal, c2))))
    store(out, 16, fma(radial, z, fma(parallel, g3, mul(normal, c3))))


@njit(nogil=True, cache=True, error_model="numpy")
def vjp(plan, neighbors, start, stop, grad_b, grad_r):
    """Write derivatives (P, 3) by the neighbours of atoms start to stop from those by components.

    Args:
        grad_b: (N, n).
        grad_r: of pairs beyond the cutoffs left as it is.
    """
    twojmax, n_channels, n_half, n_full, n_components = plan.sizes
    whole, y = np.empty(n_channels * n_full * 16), np.empty(n_channels * n_half * 16)
    gradient, lanes = np.zeros(n_components * LANES), np.empty(n_half * 64)
    turned, by_position = np.empty((LANES, n_half * 8)), np.empty(3 * LANES)
    row, following = np.zeros((twojmax + 1) * 16), np.zeros((twojmax + 1) * 16)
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        _gather(plan, neighbors, begin, end, whole)
        for k in range(n_components):
            for lane in range(end - begin):
                gradient[k * LANES + lane] = grad_b[begin + lane, k] * plan.factors[k]
        _adjoint(plan, whole, gradient, y)
        for c in range(n_channels):
            _turn(plan, y[c * n_half * 16 :], lanes)
            for lane in range(end - begin):
                for k in range(n_half * 8):
                    turned[lane, k] = lanes[k * LANES + lane]
            for lane in range(end - begin):
                i = (begin + lane) * n_channels + c
                coefficients = turned[lane]
                for s in range(neighbors.first[i], neighbors.first[i + 1], LANES):
                    ar, ai, br, bi = load_rotation(neighbors.geometry, s)
                    e0 = e1 = e2 = e3 = splat(0.0)
                    store(row, 0, splat(1.0))
                    store(row, 8, splat(0.0))
                    for p in range(twojmax // 2 + 1):
                        if p:
                            start_row(following, row, 2 * p, ar, ai, br, bi)
                        e0, e1, e2, e3 = _contract_row(
                            row,
                            coefficients[plan.row_first[p, 2 * p] * 8 :],
                            2 * p + 1,
                            e0,
                            e1,
                            e2,
                            e3,
                        )
                        for j in range(2 * p + 1, twojmax + 1):
                            advance_row(row, row, j, ar, ai, br, bi)
                            e0, e1, e2, e3 = _contract_row(
                                row, coefficients[plan.row_first[p, j] * 8 :], j + 1, e0, e1, e2, e3
                            )
                            if j == 2 * p + 1:
                                following[: (j + 1) * 16] = row[: (j + 1) * 16]
                    _by_position(neighbors.geometry, s, e0, e1, e2, e3, by_position)
                    for k in range(LANES):
                        pair = neighbors.pair[s + k]
                        if pair >= 0:
                            grad_r[pair, 0] = by_position[k]
                            grad_r[pair, 1] = by_position[8 + k]
                            grad_r[pair, 2] = by_position[16 + k]


@njit(nogil=True, error_model="numpy")
def _turn_products(plan, whole, row, turned):
    """Coefficients as of `_turn` of each product: (j / 2 + 1) (j + 1) rows of (4, 2, 8), flat."""
    at = 0
    for k in range(len(plan.products) - 1):
        product = plan.products[k]
        j, shift = product.j, product.shift
        couplings = plan.couplings[product.first_coupling :]
        for p in range(j // 2 + 1):
            n = p + 1 if 2 * p == j else j + 1
            row[: (j + 1) * 16] = 0.0
            for q in range(n):
                zr, zi = _element(
                    whole,
                    couplings,
                    product.j1,
                    product.first1,
                    product.j2,
                    product.first2,
                    p + shift,
                    q + shift,
                )
                store(row, q * 16, zr)
                store(row, q * 16 + 8, zi)
            _turn_row(plan, plan.row_first[p, j], j, row, turned[at * 64 :])
            at += j + 1


@njit(nogil=True, error_model="numpy")
def _rotations(plan, geometry, s, u):
    """All rows of v of the group at slot s, (H, 2, 8) flat, without the weight f."""
    ar, ai, br, bi = load_rotation(geometry, s)
    store(u, 0, splat(1.0))
    store(u, 8, splat(0.0))
    for p in range(plan.sizes[0] // 2 + 1):
        if p:
            before = u[plan.row_first[p - 1, 2 * p - 1] * 16 :]
            start_row(before, u[plan.row_first[p, 2 * p] * 16 :], 2 * p, ar, ai, br, bi)
        for j in range(2 * p + 1, plan.sizes[0] + 1):
            before, here = u[plan.row_first[p, j - 1] * 16 :], u[plan.row_first[p, j] * 16 :]
            advance_row(before, here, j, ar, ai, br, bi)


@njit(nogil=True, error_model="numpy")
def _contract_products(plan, c, u, turned, sums):
    """Add what the products are to the components by way of channel c; sums (n, 4, 8) flat."""
    at = 0
    for k in range(len(plan.products) - 1):
        j = plan.products[k].j
        e0 = e1 = e2 = e3 = splat(0.0)
        is_used = False
        for o in range(plan.products[k].first_output, plan.products[k + 1].first_output):
            is_used = is_used or plan.outputs[o].channel == c
        for p in range(j // 2 + 1 if is_used else 0):
            row = u[plan.row_first[p, j] * 16 :]
            place = turned[(at + p * (j + 1)) * 8 :]
            e0, e1, e2, e3 = _contract_row(row, place, j + 1, e0, e1, e2, e3)
        at += (j // 2 + 1) * (j + 1)
        for o in range(plan.products[k].first_output, plan.products[k + 1].first_output):
            if plan.outputs[o].channel != c:
                continue
            for t in range(plan.outputs[o].first_term, plan.outputs[o + 1].first_term):
                term = plan.terms[t]
                factor, x = splat(term.factor * plan.factors[term.column]), term.column * 32
                store(sums, x, fma(factor, e0, load(sums, x)))
                store(sums, x + 8, fma(factor, e1, load(sums, x + 8)))
                store(sums, x + 16, fma(factor, e2, load(sums, x + 16)))
                store(sums, x + 24, fma(factor, e3, load(sums, x + 24)))


@njit(nogil=True, cache=True, error_model="numpy")
def jacobian(plan, neighbors, start, stop, by_pair):
    """Write derivatives (P, 3, n) of components by the neighbours of atoms start to stop.

    Args:
        by_pair: of pairs beyond the cutoffs left as it is.
    """
    twojmax, n_channels, n_half, n_full, n_components = plan.sizes
    size = 0
    for k in range(len(plan.products) - 1):
        j = plan.products[k].j
        size += (j // 2 + 1) * (j + 1)
    whole, lanes = np.empty(n_channels * n_full * 16), np.empty(size * 64)
    turned, row = np.empty((LANES, size * 8)), np.zeros((twojmax + 1) * 16)
    u, sums, by_position = np.empty(n_half * 16), np.empty(n_components * 32), np.empty(3 * LANES)
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        _gather(plan, neighbors, begin, end, whole)
        _turn_products(plan, whole, row, lanes)
        for lane in range(end - begin):
            for k in range(size * 8):
                turned[lane, k] = lanes[k * LANES + lane]
        for lane in range(end - begin):
            for c in range(n_channels):
                i = (begin + lane) * n_channels + c
                for s in range(neighbors.first[i], neighbors.first[i + 1], LANES):
                    _rotations(plan, neighbors.geometry, s, u)
                    sums[:] = 0.0
                    _contract_products(plan, c, u, turned[lane], sums)
                    for column in range(n_components):
                        x = column * 32
                        e, g1 = load(sums, x), load(sums, x + 8)
                        g2, g3 = load(sums, x + 16), load(sums, x + 24)
                        _by_position(neighbors.geometry, s, e, g1, g2, g3, by_position)
                        for k in range(LANES):
                            pair = neighbors.pair[s + k]
                            if pair >= 0:
                                for a in range(3):
                                    by_pair[pair, a, column] = by_position[a * LANES + k]
