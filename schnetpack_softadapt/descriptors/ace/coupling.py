"""Which products of densities are invariant under rotation and reflection, and independent.

The densities A_{c n l m} of an atom turn like the real spherical harmonics Y_lm. Two of them couple
to every L from |l1 - l2| to l1 + l2 by Clebsch-Gordan coefficients, here of real harmonics,

    (A_1 A_2)_{L M} = sum_{m1 m2} C^{L M}_{l1 m1 l2 m2} A_{1 m1} A_{2 m2},

and the generalised coefficients of an invariant product of up to four are products of these: the
first pair is coupled to L, the other density or pair to the same L, and the two are contracted,

    A_{n 0 0},  sum_M A_1M A_2M,  sum_M (A_1 A_2)_LM A_3M,  sum_M (A_1 A_2)_LM (A_3 A_4)_LM.

R. Drautz, Phys. Rev. B 99, 014104 (2019), section on the coupling of angular momenta; A. Bochkarev
et al., Phys. Rev. Materials 6, 013804 (2022). Reflections demand that l1 + l2 + ... is even.

The L of four densities number the invariants of four *distinct* ones. Where some are the same, the
product is symmetric, and the coefficients, made symmetric, depend on each other linearly or vanish:
as many L are kept, the smallest first, as there are independent ones (G. Dusson et al., J. Comput.
Phys. 454, 110946, 2022, find them by a singular value decomposition). Each function so stays one
path, a contraction of two vectors that it shares with others.

Functions that are read from potentials of others may have five or six densities: the second vector
is then itself coupled of a pair and a density, or of two pairs,

    sum_M (A_1 A_2)_LM ((A_3 A_4)_K A_5)_LM,  sum_M (A_1 A_2)_LM ((A_3 A_4)_K (A_5 A_6)_J)_LM.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from math import prod
from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan

__all__ = [
    "MOST_DENSITIES",
    "Coupled",
    "generalised",
    "halves",
    "independent",
    "real_clebsch_gordan",
    "symmetric",
    "to_real",
]

#: of a product
MOST_DENSITIES = 6

# the squared part of a vector of length one that others do not explain: 0 but for rounding, or a
# number of the order of one
_INDEPENDENT = 1e-8


def to_real(level: int) -> np.ndarray:
    """Y_lm = sum_k U_mk Y_l^k: real harmonics (rows m) of complex ones, both from -l to l."""
    u = np.zeros((2 * level + 1, 2 * level + 1), complex)
    u[level, level] = 1.0
    for m in range(1, level + 1):
        u[level + m, level + m] = (-1) ** m / np.sqrt(2)
        u[level + m, level - m] = 1 / np.sqrt(2)
        u[level - m, level + m] = (-1) ** m / (1j * np.sqrt(2))
        u[level - m, level - m] = -1 / (1j * np.sqrt(2))
    return u


@lru_cache(maxsize=1024)
def real_clebsch_gordan(l1: int, l2: int, level: int) -> np.ndarray:
    """C^{L M}_{l1 m1 l2 m2} (2 l1 + 1, 2 l2 + 1, 2 L + 1) of real harmonics.

    For odd l1 + l2 + L they are imaginary, which is left out.
    """
    pairs, shift = clebsch_gordan(2 * l1, 2 * l2, 2 * level), l1 + l2 - level
    c = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * level + 1))
    for m1, m2 in product(range(2 * l1 + 1), range(2 * l2 + 1)):
        if 0 <= m1 + m2 - shift <= 2 * level:
            c[m1, m2, m1 + m2 - shift] = pairs[m1, m2]
    u1, u2, u = to_real(l1), to_real(l2), to_real(level)
    real = np.einsum("ai,bj,ck,ijk->abc", u1.conj(), u2.conj(), u, c)
    real = real.imag if (l1 + l2 + level) % 2 else real.real
    real[np.abs(real) < 1e-14] = 0.0
    return real


class Coupled(NamedTuple):
    """A vector (2 L + 1): one density, or some that are coupled to L."""

    parts: tuple  # one to four densities, or their l
    # L, then those of the pairs that are coupled to it; empty for one density
    path: tuple[int, ...] = ()

    def factors(self) -> tuple["Coupled", "Coupled"]:
        """The two vectors that are coupled to this one."""
        cut = 1 if len(self.parts) == 2 else 2
        return (
            Coupled(self.parts[:cut], self.path[1:2] if cut == 2 else ()),
            Coupled(self.parts[cut:], self.path[2:3] if len(self.parts) == 4 else ()),
        )


def halves(parts: tuple, level: int | tuple[int, ...]) -> tuple[Coupled, Coupled]:
    """The two vectors whose scalar product is an invariant of two to six densities.

    Args:
        parts: the densities, or their l.
        level: L, or (L, K) and (L, K, J) of five and six.
    """
    path = (level,) if isinstance(level, int) else tuple(level)
    cut = 1 if len(parts) == 2 else 2
    return (
        Coupled(parts[:cut], path[:1] if cut == 2 else ()),
        Coupled(parts[cut:], path if len(parts) > 3 else ()),
    )


def _coefficients(vector: Coupled) -> np.ndarray:
    """Of products of densities with these l in a vector, (2 l1 + 1, ..., 2 L + 1)."""
    if len(vector.parts) == 1:
        return np.eye(2 * vector.parts[0] + 1)
    x, y = vector.factors()
    a, b = _coefficients(x), _coefficients(y)
    c = real_clebsch_gordan(a.shape[-1] // 2, b.shape[-1] // 2, vector.path[0])
    # (m of x, M_y, M), then (m of x, M, m of y)
    both = np.tensordot(np.tensordot(a, c, 1), b, (-2, -1))
    return np.moveaxis(both, len(x.parts), -1)


def generalised(levels: Sequence[int], level: int | tuple[int, ...]) -> np.ndarray:
    """Coefficients of A_{m1} A_{m2} ... (2 l1 + 1, 2 l2 + 1, ...) in the product of that path."""
    if len(levels) == 1:
        return np.ones(1)
    x, y = halves(tuple(levels), level)
    return np.tensordot(_coefficients(x), _coefficients(y), (-1, -1))


def _paths(levels: tuple[int, ...]) -> list:
    """All that can be coupled to zero, ascending."""

    def between(a: int, b: int) -> range:
        return range(abs(a - b), a + b + 1)

    n, first = len(levels), between(*levels[:2])
    if n == 2:
        return [levels[0]] if levels[0] == levels[1] else []
    if n == 3:
        return [levels[2]] if levels[2] in first else []
    if n == 4:
        return [x for x in first if x in between(*levels[2:])]
    inner = between(*levels[2:4])
    if n == 5:
        return [(x, k) for x in first for k in inner if x in between(k, levels[4])]
    last = between(*levels[4:])
    return [(x, k, j) for x in first for k in inner for j in last if x in between(k, j)]


@lru_cache(maxsize=8192)
def independent(levels: tuple[int, ...], same: tuple[int, ...]) -> tuple:
    """The L whose products are independent, ascending; (L, K), (L, K, J) of five and six densities.

    Args:
        levels: l of up to six densities.
        same: a label of each density; equal ones are the same density, and stand side by side.
    """
    n = len(levels)
    if sum(levels) % 2:
        return ()
    if n == 1:
        return (0,) if levels[0] == 0 else ()
    paths = _paths(levels)
    if n < 4 or len(set(same)) == n:
        return tuple(paths)
    kept, found = [], np.zeros((0, prod(2 * x + 1 for x in levels)))
    for path in paths:
        c = generalised(levels, path)
        rest = symmetric(c, same).ravel()
        # twice: once leaves rounding errors of a nearly dependent vector
        for _ in range(2):
            rest = rest - found.T @ (found @ rest)
        if rest @ rest > _INDEPENDENT * (c.ravel() @ c.ravel()):
            kept.append(path)
            found = np.vstack([found, rest / np.linalg.norm(rest)])
    return tuple(kept)


def symmetric(c: np.ndarray, same: tuple[int, ...]) -> np.ndarray:
    """Coefficients (2 l1 + 1, ...) as a mean over the orders of equal densities."""
    n = len(same)
    orders = [p for p in permutations(range(n)) if all(same[p[k]] == same[k] for k in range(n))]
    return sum(np.transpose(c, p) for p in orders) / len(orders)
