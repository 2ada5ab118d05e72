"""Clebsch-Gordan coefficients, and which products of densities make the bispectrum.

Angular momenta are doubled throughout (j = 2J), so that half-integers are whole numbers; rows of a
representation count from 0 to j, m = 2 row - j.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = ["Component", "Product", "clebsch_gordan", "components", "products"]


@lru_cache(maxsize=4096)
def clebsch_gordan(j1: int, j2: int, j: int) -> np.ndarray:
    """C^{j m}_{j1 m1 j2 m2} (j1 + 1, j2 + 1) by rows of m1 and m2; m = m1 + m2, zero where |m| > j.

    Racah's sum in exact arithmetic (Varshalovich, Moskalev and Khersonskii, Quantum Theory of
    Angular Momentum, 8.2.1).
    """
    f = math.factorial
    coefficients = np.zeros((j1 + 1, j2 + 1))
    a, b, c = (j1 + j2 - j) // 2, (j1 - j2 + j) // 2, (j2 - j1 + j) // 2
    triangle = Fraction(f(a) * f(b) * f(c), f((j1 + j2 + j) // 2 + 1))
    for p1, p2 in product(range(j1 + 1), range(j2 + 1)):
        p = p1 + p2 - a
        if not 0 <= p <= j:
            continue
        total = Fraction(0)
        for k in range(max(0, a - p1, p2 - c), min(a, j1 - p1, p2) + 1):
            terms = (k, a - k, j1 - p1 - k, p2 - k, p1 - a + k, c - p2 + k)
            total += Fraction((-1) ** k, math.prod(map(f, terms)))
        square = (j + 1) * triangle * f(p1) * f(j1 - p1) * f(p2) * f(j2 - p2) * f(p) * f(j - p)
        coefficients[p1, p2] = math.copysign(math.sqrt(square * total * total), total)
    return coefficients


class Component(NamedTuple):
    """B^{abc}_{j1 j2 j} = sum_m conj(U^c_j) Z^{ab}_{j1 j2 j}, with densities U^a of channels."""

    j1: int  # 0 <= j2 <= j1 <= j
    j2: int  # 0 <= j2 <= j1 <= j
    j: int  # 0 <= j2 <= j1 <= j
    a: int  # channel of each, in the same order
    b: int  # channel of each, in the same order
    c: int  # channel of each, in the same order


@lru_cache(maxsize=64)
def components(twojmax: int, n_channels: int = 1) -> tuple[Component, ...]:
    """Columns of the descriptor, in the order of LAMMPS."""
    triples = [
        (j1, j2, j)
        for j1 in range(twojmax + 1)
        for j2 in range(j1 + 1)
        for j in range(j1 - j2, min(twojmax, j1 + j2) + 1, 2)
        if j >= j1
    ]
    channels = product(range(n_channels), repeat=3)
    return tuple(Component(*triple, *abc) for abc in channels for triple in triples)


class Product(NamedTuple):
    """Z^{ab}_{j1 j2 j}, the part of the product of two densities that transforms as j."""

    j1: int
    a: int
    j2: int
    b: int
    j: int


@dataclass
class Uses:
    """What a product is needed for."""

    values: list[tuple[int, int]]  # (column, channel c): B of the column is conj(U^c_j) . Z.
    # by channel c, (column, factor): dB of the column contains factor conj(dU^c_j) . Z.
    gradient: dict[int, list[tuple[int, float]]]


@lru_cache(maxsize=64)
def products(twojmax: int, n_channels: int = 1) -> Mapping[Product, Uses]:
    """All products that components and their derivatives are made of.

    B_{j1 j2 j} / (2J + 1) does not change when its three densities change places, so each of them
    stands once outside of the product: Thompson et al. 2015, eq. 21 ff.
    """
    found: dict[Product, Uses] = defaultdict(lambda: Uses([], {}))

    def use(j1, a, j2, b, j) -> Uses:
        (j1, a), (j2, b) = sorted([(j1, a), (j2, b)], reverse=True)
        return found[Product(j1, a, j2, b, j)]

    for column, (j1, j2, j, a, b, c) in enumerate(components(twojmax, n_channels)):
        outer = use(j1, a, j2, b, j)
        outer.values.append((column, c))
        outer.gradient.setdefault(c, []).append((column, 1.0))
        for uses, channel, other in ((use(j, c, j2, b, j1), a, j1), (use(j, c, j1, a, j2), b, j2)):
            factor = (j + 1) / (other + 1)
            uses.gradient.setdefault(channel, []).append((column, factor))
    return dict(found)
