"""The tables that the compiled loops read.

The numbers of an atom are nodes: first its densities, by channel, l, n and m; then the products of
two densities coupled to some L, each of which is made once for all functions that contain it (the
recursion of Y. Lysogorskiy et al., npj Comput. Mater. 7, 97 (2021), in coupled instead of single
products); last a one. A function is the sum over 2 L + 1 products of two nodes.
"""

from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.ace.coupling import real_clebsch_gordan
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
    """Tables of one descriptor; C channels, E elements, V densities of a channel.

    Attributes:
        species: (119,) row of each element, -1 for those that are not known.
        weights: (C, E).
        kinds: places of the radial and the cutoff function in their lists.
        lengths: cutoff, decay, inner, inner_width.
        sizes: V, radial functions, top l, nodes.
        first: (top + 2,) first density of each l.
        n_of_level: (top + 1,) radial functions that each l has.
        norms: (top + 1, top + 1) of the spherical harmonics.
        bessel: (n, 2) R_n = bessel[n, 0] (s_{n+1} + s_{n+2}) + bessel[n, 1] R_{n-1}, n from 0.
        product_first: (n_products + 1,) first term of each product node, which is the sum over
            `factor a b` of its terms.
        terms: a, b, factor.
        functions: a column is the sum over m < length of node[x + m] node[y + m].
        touched_first, touched: densities that each column depends on.
    """

    species: np.ndarray
    weights: np.ndarray
    kinds: tuple[int, int]
    lengths: tuple[float, float, float, float]
    sizes: tuple[int, int, int, int]
    first: np.ndarray
    n_of_level: np.ndarray
    norms: np.ndarray
    bessel: np.ndarray
    product_first: np.ndarray
    terms: np.ndarray
    functions: np.ndarray
    touched_first: np.ndarray
    touched: np.ndarray


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

    places: dict[tuple, int] = {}
    product_first, terms = [0], []

    def coupled(parts: tuple[Density, ...], level: int) -> int:
        """First node of a density or a product."""
        if len(parts) == 1:
            return place(parts[0])
        key = (*parts, level)
        if key in places:
            return places[key]
        places[key] = n_channels * n_densities + len(product_first) - 1
        (a, b), c = map(place, parts), real_clebsch_gordan(parts[0].l, parts[1].l, level)
        if a == b:  # the lower triangle is that of the same products
            c = np.triu((c + c.transpose(1, 0, 2)).transpose(2, 0, 1)).transpose(1, 2, 0)
            c[np.diag_indices(len(c))] *= 0.5
        for m in range(2 * level + 1):
            terms.extend((a + i, b + j, c[i, j, m]) for i, j in np.argwhere(c[:, :, m]).tolist())
            product_first.append(len(terms))
        return places[key]

    rows, depends = [], []
    for parts, level in d.functions:
        cut = 1 if len(parts) < 3 else 2
        y = coupled(parts[cut:], level) if len(parts) > 1 else -1
        rows.append((coupled(parts[:cut], level), y, 1 if len(parts) == 1 else 2 * level + 1))
        depends.append(sorted({place(x) + m for x in parts for m in range(2 * x.l + 1)}))
    n_nodes = n_channels * n_densities + len(product_first)
    species = np.full(119, -1, np.int64)
    species[list(d.elements)] = np.arange(len(d.elements))
    functions = np.array(rows, _FUNCTION)
    functions["y"][functions["y"] < 0] = n_nodes - 1
    roots = [(front * d.cutoff**-1.5 / x, mix / x) for front, mix, x in bessel_factors(d.n_radial)]
    return Plan(
        species,
        d.weights,
        (RADIAL.index(d.radial), CUTOFF_FUNCTIONS.index(d.cutoff_fn)),
        (d.cutoff, d.decay, d.inner, d.inner_width),
        (n_densities, d.n_radial, top, n_nodes),
        first,
        n_of_level,
        harmonic_norms(top),
        np.array(roots),
        np.array(product_first, np.int64),
        np.array(terms, _TERM),
        functions,
        np.cumsum([0, *map(len, depends)]),
        np.array([k for row in depends for k in row], np.int64),
    )
