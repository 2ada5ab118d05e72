"""The tables that the compiled loops read.

The matrices of a density have the symmetry u[p, q] = (-1)^(p - q) conj(u[j - p, j - q]), so rows
p <= j / 2 are all there is to know: the half. It is kept chain by chain: row p of level j comes
from row p of level j - 1 alone, so a chain is one row p through all levels j = 2 p, ..., twojmax.
"""

import math
from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan, products
from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["Plan", "make_plan"]

_PRODUCT = np.dtype(
    [(name, np.int64) for name in ("j1", "first1", "j2", "first2", "j", "shift", "first_coupling")]
    + [(name, np.int64) for name in ("first_value", "first_output")]
)
_VALUE = np.dtype([("column", np.int64), ("first", np.int64)])
_OUTPUT = np.dtype([("channel", np.int64), ("first_term", np.int64)])
_TERM = np.dtype([("column", np.int64), ("factor", np.float64)])
_HALF = np.dtype(
    [(name, np.int64) for name in ("own", "mirrored")]
    + [(name, np.float64) for name in ("sign", "scale", "weight", "below", "above", "tilt")]
)


class Plan(NamedTuple):
    """Tables of one descriptor; C channels, H numbers in the half, F in whole matrices.

    The loops compute v = u / scale, scale[j, p, q] = sqrt((j - q)! q! / (j - p)! / p!), for then no
    square roots are left in the recursion:

        v_j[p, q] = conj(a) v_{j-1}[p, q] - conj(b) v_{j-1}[p, q - 1]
        v_j[p, q] = b v_{j-1}[p - 1, q] + a v_{j-1}[p - 1, q - 1]
    """

    species: np.ndarray  # (119,) row of each element, -1 for those that are not known
    channel: np.ndarray  # (n_elements,) channel of a neighbour
    pair: np.ndarray  # (n_elements, n_elements, 4) see `Bispectrum.pair_table`
    # rfac0, rmin0, whether to switch at the cutoff, whether inside too
    options: tuple[float, float, bool, bool]
    sizes: tuple[int, int, int, int, int]  # twojmax, C, H, F, number of components
    self_terms: np.ndarray  # see `Bispectrum`
    factors: np.ndarray  # see `Bispectrum`
    isolated: np.ndarray  # see `Bispectrum`
    row_first: np.ndarray  # (p, j) place of row p of level j in the half
    level_first: np.ndarray  # (twojmax + 1,) place of each level in whole matrices
    # of each number in the half: its place in the whole, that of its mirror image, the sign there;
    # `scale` see below; `weight`, how often it counts in a sum over the whole; and what a turn of
    # the matrix does: the coefficients of its left and right neighbours in the row, and of itself
    half: np.ndarray
    # with a last one that ends the others; `first1`, `first2` are places in the densities,
    # `first_coupling` one in `couplings`
    products: np.ndarray
    # values, outputs, terms: what a product is used for, see `clebsch.Uses`
    values: np.ndarray
    outputs: np.ndarray
    terms: np.ndarray
    couplings: np.ndarray  # Clebsch-Gordan coefficients


def _half(twojmax: int, level_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row_first = np.full((twojmax // 2 + 1, twojmax + 1), -1, np.int64)
    f, rows = math.factorial, []
    for p in range(twojmax // 2 + 1):
        for j in range(2 * p, twojmax + 1):
            row_first[p, j] = len(rows)
            for q in range(j + 1):
                own = level_first[j] + p * (j + 1) + q
                mirrored = level_first[j] + (j - p) * (j + 1) + j - q
                scale = math.sqrt(f(j - q) * f(q) / (f(j - p) * f(p)))
                weight = 2.0 if 2 * p < j or q < p else float(q == p)
                below, above = math.sqrt(q * (j - q + 1)), math.sqrt((q + 1) * (j - q))
                sign = (-1.0) ** (p - q)
                rows.append((own, mirrored, sign, scale, weight, below, above, j - 2.0 * q))
    return row_first, np.array(rows, _HALF)


def make_plan(descriptor: Bispectrum) -> Plan:
    """The tables of a descriptor."""
    twojmax, n_channels = descriptor.twojmax, descriptor.n_channels
    level_first = np.cumsum([0, *((j + 1) ** 2 for j in range(twojmax + 1))])
    n_full, level_first = int(level_first[-1]), level_first[:-1]
    row_first, half = _half(twojmax, level_first)
    table, values, outputs, terms, couplings, places = [], [], [], [], [], {}
    n_couplings = 0
    for (j1, a, j2, b, j), uses in products(twojmax, n_channels).items():
        if (j1, j2, j) not in places:
            places[j1, j2, j] = n_couplings
            couplings.append(clebsch_gordan(j1, j2, j).ravel())
            n_couplings += couplings[-1].size
        first1, first2 = (c * n_full + level_first[k] for c, k in ((a, j1), (b, j2)))
        shift, coupling = (j1 + j2 - j) // 2, places[j1, j2, j]
        table.append((j1, first1, j2, first2, j, shift, coupling, len(values), len(outputs)))
        values += [(column, c * n_full + level_first[j]) for column, c in uses.values]
        for c, members in uses.gradient.items():
            outputs.append((c, len(terms)))
            terms += members
    table.append((0, 0, 0, 0, 0, 0, 0, len(values), len(outputs)))
    outputs.append((0, len(terms)))
    species = np.full(119, -1, np.int64)
    species[list(descriptor.elements)] = np.arange(len(descriptor.elements))
    d = descriptor
    return Plan(
        species,
        np.array([*d.channels.values()], np.int64),
        d.pair_table(),
        (d.rfac0, d.rmin0, d.switchflag, d.sinner is not None),
        (twojmax, n_channels, len(half), n_full, d.n_components),
        d.self_terms(),
        d.factors(),
        d.isolated(),
        row_first,
        level_first,
        half,
        np.array(table, _PRODUCT),
        np.array(values, _VALUE),
        np.array(outputs, _OUTPUT),
        np.array(terms, _TERM),
        np.concatenate(couplings),
    )
