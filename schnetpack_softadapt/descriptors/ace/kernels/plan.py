"""The tables that the compiled loops read.

The numbers of an atom are nodes: first its densities, by channel, l, n and m; then the products of
two earlier nodes coupled to some L, each of which is made once for all functions that contain it
(the recursion of Y. Lysogorskiy et al., npj Comput. Mater. 7, 97 (2021), in coupled instead of
single products); last a one. A function is the sum over 2 L + 1 products of two nodes.
"""

from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.ace.coupling import Coupled, halves, real_clebsch_gordan
from schnetpack_softadapt.descriptors.ace.functions import Density
from schnetpack_softadapt.descriptors.ace.harmonics import harmonic_norms
from schnetpack_softadapt.descriptors.ace.parameters import (
    CUTOFF_FUNCTIONS,
    RADIAL,
    ClusterExpansion,
)
from schnetpack_softadapt.descriptors.ace.radial import bessel_factors

__all__ = ["Plan", "make_plan"]

_TERM = np.dtype([("a", np.int64), ("b", np.int64), ("factor", np.float64)])
_FUNCTION = np.dtype([("x", np.int64), ("y", np.int64), ("length", np.int64)])


class Plan(NamedTuple):
    """Tables of one descriptor; C channels, E elements, V densities of a channel."""

    species: np.ndarray  # (119,) row of each element, -1 for those that are not known
    weights: np.ndarray  # (C, E)
    kinds: tuple[int, int]  # places of the radial and the cutoff function in their lists
    # cutoff, decay, inner, inner_width, outer_width
    lengths: tuple[float, float, float, float, float]
    sizes: tuple[int, int, int, int]  # V, radial functions R_n, top l, nodes
    first: np.ndarray  # (top + 2,) first density of each l
    n_of_level: np.ndarray  # (top + 1,) radial functions that each l has
    radial_first: np.ndarray  # (top + 1,) first of them among the rows of the table; without one 0
    # (E, E, rows, n) of the radial functions; without rows these are the R_n themselves
    table: np.ndarray
    table_ends: np.ndarray  # (rows, 2) first and last n that a row has, plus one
    norms: np.ndarray  # (top + 1, top + 1) of the spherical harmonics
    # (n, 2) R_n = bessel[n, 0] (s_{n+1} + s_{n+2}) + bessel[n, 1] R_{n-1}, n from 0
    bessel: np.ndarray
    # (n_products + 1,) first term of each product node, which is the sum over `factor a b` of its
    # terms
    product_first: np.ndarray
    terms: np.ndarray  # a, b, factor
    functions: np.ndarray  # a column is the sum over m < length of node[x + m] node[y + m]
    touched_first: np.ndarray  # densities that each column depends on
    touched: np.ndarray  # densities that each column depends on


def make_plan(descriptor: ClusterExpansion) -> Plan:
    """The tables of a descriptor."""
    d, top = descriptor, descriptor.top_level
    n_of_level = np.zeros(top + 1, np.int64)
    for f in d.functions:
        for x in f.parts:
            n_of_level[x.l] = max(n_of_level[x.l], x.n)
    first = np.concatenate([[0], np.cumsum(n_of_level * (2 * np.arange(top + 1) + 1))])
    n_densities = int(first[-1])
    n_channels = len(d.weights)

    def place(x: Density) -> int:
        return int(x.channel * n_densities + first[x.l] + (x.n - 1) * (2 * x.l + 1))

    places: dict[Coupled, int] = {}
    product_first, terms = [0], []

    def coupled(vector: Coupled) -> tuple[int, int]:
        """First node of a density or a product, and its l."""
        if len(vector.parts) == 1:
            return place(vector.parts[0]), vector.parts[0].l
        level = vector.path[0]
        if vector not in places:
            (a, l1), (b, l2) = map(coupled, vector.factors())
            places[vector] = n_channels * n_densities + len(product_first) - 1
            c = real_clebsch_gordan(l1, l2, level)
            if a == b:  # the lower triangle is that of the same products
                c = np.triu((c + c.transpose(1, 0, 2)).transpose(2, 0, 1)).transpose(1, 2, 0)
                c[np.diag_indices(len(c))] *= 0.5
            for m in range(2 * level + 1):
                some = np.argwhere(c[:, :, m]).tolist()
                terms.extend((a + i, b + j, c[i, j, m]) for i, j in some)
                product_first.append(len(terms))
        return places[vector], level

    rows, depends = [], []
    for parts, level in d.functions:
        if len(parts) == 1:
            rows.append((place(parts[0]), -1, 1))
        else:
            (x, l1), (y, _) = map(coupled, halves(parts, level))
            rows.append((x, y, 2 * l1 + 1))
        depends.append(sorted({place(x) + m for x in parts for m in range(2 * x.l + 1)}))
    n_nodes = n_channels * n_densities + len(product_first)
    species = np.full(119, -1, np.int64)
    species[list(d.elements)] = np.arange(len(d.elements))
    functions = np.array(rows, _FUNCTION)
    functions["y"][functions["y"] < 0] = n_nodes - 1
    radial_first, n = np.zeros(top + 1, np.int64), len(d.elements)
    table = np.zeros((n, n, 0, d.n_radial))
    if d.radial_table is not None:
        radial_first = np.concatenate([[0], np.cumsum(n_of_level)[:-1]])
        used = [d.radial_table[x][:, :, : n_of_level[x]] for x in range(top + 1)]
        table = np.concatenate(used, 2)
    is_used = np.abs(table).max((0, 1)) > 0  # (rows, n)
    ends = np.stack([is_used.argmax(1), d.n_radial - is_used[:, ::-1].argmax(1)], 1)
    roots = [(front * d.cutoff**-1.5 / x, mix / x) for front, mix, x in bessel_factors(d.n_radial)]
    return Plan(
        species,
        d.weights,
        (RADIAL.index(d.radial), CUTOFF_FUNCTIONS.index(d.cutoff_fn)),
        (d.cutoff, d.decay, d.inner, d.inner_width, d.outer_width),
        (n_densities, d.n_radial, top, n_nodes),
        first,
        n_of_level,
        radial_first,
        table,
        ends,
        harmonic_norms(top),
        np.array(roots),
        np.array(product_first, np.int64),
        np.array(terms, _TERM),
        functions,
        np.cumsum([0, *map(len, depends)]),
        np.array([k for row in depends for k in row], np.int64),
    )
