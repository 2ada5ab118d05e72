"""Functions of eight atoms at a time, and their vector-Jacobian product.

The adjoint of the products gives the derivatives by the densities, whatever the number of functions
and neighbours; one loop over the neighbours then gives those by their vectors (Y. Lysogorskiy et
al., npj Comput. Mater. 7, 97 (2021), section on the force gradients).
"""

import numpy as np
from numba import njit

from schnetpack_softadapt.descriptors.ace.kernels.neighbors import (
    OPTIONS,
    add_gradient,
    basis,
    new_work,
)
from schnetpack_softadapt.descriptors.snap.kernels.vectors import (
    LANES,
    fma,
    load,
    mul,
    splat,
    store,
)

__all__ = ["fill_nodes", "values", "vjp"]


@njit(**OPTIONS)
def fill_nodes(plan, neighbors, start, stop, nodes):
    """Nodes of up to eight atoms, (n_nodes, 8) flat."""
    n = neighbors.densities.shape[1]
    nodes[: n * LANES] = 0.0
    for i in range(start, stop):
        row = neighbors.densities[i]
        for v in range(n):
            nodes[v * LANES + i - start] = row[v]
    k, terms = n * LANES, plan.terms
    for p in range(len(plan.product_first) - 1):
        total = splat(0.0)
        for t in range(plan.product_first[p], plan.product_first[p + 1]):
            a, b = load(nodes, terms[t].a * LANES), load(nodes, terms[t].b * LANES)
            total = fma(mul(splat(terms[t].factor), a), b, total)
        store(nodes, k, total)
        k += LANES
    store(nodes, k, splat(1.0))


@njit(cache=True, **OPTIONS)
def values(plan, neighbors, start, stop, g):
    """Write functions (N, D) of atoms start to stop."""
    nodes, one = np.empty(plan.sizes[3] * LANES), np.empty(LANES)
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        fill_nodes(plan, neighbors, begin, end, nodes)
        for column in range(len(plan.functions)):
            f = plan.functions[column]
            x, y = f.x * LANES, f.y * LANES
            total = splat(0.0)
            for m in range(0, f.length * LANES, LANES):
                total = fma(load(nodes, x + m), load(nodes, y + m), total)
            store(one, 0, total)
            for i in range(begin, end):
                g[i, column] = one[i - begin]


@njit(**OPTIONS)
def _adjoint(plan, nodes, by_column, by_node):
    """Derivatives by the nodes (n_nodes, 8) flat from those by the columns (D, 8) flat."""
    by_node[:] = 0.0
    for column in range(len(plan.functions)):
        f = plan.functions[column]
        x, y = f.x * LANES, f.y * LANES
        factor = load(by_column, column * LANES)
        for m in range(0, f.length * LANES, LANES):
            a, b = load(nodes, x + m), load(nodes, y + m)
            store(by_node, x + m, fma(factor, b, load(by_node, x + m)))
            store(by_node, y + m, fma(factor, a, load(by_node, y + m)))
    n_products, terms = len(plan.product_first) - 1, plan.terms
    k = len(by_node) - 2 * LANES
    for p in range(n_products - 1, -1, -1):  # a product may be part of later ones
        here = load(by_node, k)
        for t in range(plan.product_first[p], plan.product_first[p + 1]):
            a, b = terms[t].a * LANES, terms[t].b * LANES
            factor = mul(splat(terms[t].factor), here)
            store(by_node, a, fma(factor, load(nodes, b), load(by_node, a)))
            store(by_node, b, fma(factor, load(nodes, a), load(by_node, b)))
        k -= LANES


@njit(cache=True, **OPTIONS)
def vjp(plan, neighbors, start, stop, grad_g, grad_r):
    """Write the products with grad_g (N, D) of atoms start to stop, (P, 3)."""
    n_channels, n_elements = plan.weights.shape
    n_densities, n_nodes = plan.sizes[0], plan.sizes[3]
    nodes, by_node = np.empty(n_nodes * LANES), np.empty(n_nodes * LANES)
    by_column = np.empty(len(plan.functions) * LANES)
    by_density, gradient = np.empty(n_densities), np.empty(3 * LANES)
    work = new_work(plan)
    for begin in range(start, stop, LANES):
        end = min(begin + LANES, stop)
        fill_nodes(plan, neighbors, begin, end, nodes)
        by_column[:] = 0.0
        for i in range(begin, end):
            for column in range(len(plan.functions)):
                by_column[column * LANES + i - begin] = grad_g[i, column]
        _adjoint(plan, nodes, by_column, by_node)
        for i in range(begin, end):
            for e in range(n_elements):
                lo = neighbors.first[i * n_elements + e]
                hi = neighbors.first[i * n_elements + e + 1]
                if lo == hi:
                    continue
                by_density[:] = 0.0
                for channel in range(n_channels):
                    weight = plan.weights[channel, e]
                    k = channel * n_densities * LANES + i - begin
                    for v in range(n_densities):
                        by_density[v] += weight * by_node[k + v * LANES]
                for s in range(lo, hi, LANES):
                    basis(plan, neighbors, i, e, s, work)
                    add_gradient(plan, work, by_density, gradient)
                    for lane in range(LANES):
                        p = neighbors.pair[s + lane]
                        if p >= 0:
                            for x in range(3):
                                grad_r[p, x] = gradient[x * LANES + lane]
