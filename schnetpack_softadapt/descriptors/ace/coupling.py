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
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan

__all__ = ["generalised", "independent", "real_clebsch_gordan"]

# the squared part of a vector of length one that others do not explain: 0 but for rounding, or a
# number of the order of one
_INDEPENDENT = 1e-8


def _to_real(level: int) -> np.ndarray:
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
    u1, u2, u = _to_real(l1), _to_real(l2), _to_real(level)
    real = np.einsum("ai,bj,ck,ijk->abc", u1.conj(), u2.conj(), u, c)
    real = real.imag if (l1 + l2 + level) % 2 else real.real
    real[np.abs(real) < 1e-14] = 0.0
    return real


def generalised(levels: Sequence[int], level: int) -> np.ndarray:
    """Coefficients of A_{m1} A_{m2} ... (2 l1 + 1, 2 l2 + 1, ...) in the product of that path."""
    if len(levels) == 1:
        return np.ones(1)
    if len(levels) == 2:
        return np.eye(2 * level + 1)
    first = real_clebsch_gordan(*levels[:2], level)
    if len(levels) == 3:
        return first
    return np.einsum("abM,cdM->abcd", first, real_clebsch_gordan(*levels[2:], level))


@lru_cache(maxsize=8192)
def independent(levels: tuple[int, ...], same: tuple[int, ...]) -> tuple[int, ...]:
    """The L whose products are independent, ascending.

    Args:
        levels: l of up to four densities.
        same: a label of each density; equal ones are the same density, and stand side by side.
    """
    n = len(levels)
    if sum(levels) % 2:
        return ()
    if n < 3:
        return (levels[0],) if levels[0] == levels[-1] and (n == 2 or levels[0] == 0) else ()
    low, high = abs(levels[0] - levels[1]), levels[0] + levels[1]
    if n == 3:
        paths = range(levels[2], levels[2] + 1) if low <= levels[2] <= high else ()
    else:
        low = max(low, abs(levels[2] - levels[3]))
        paths = range(low, min(high, levels[2] + levels[3]) + 1)
    if len(set(same)) == n:
        return tuple(paths)
    orders = [p for p in permutations(range(n)) if all(same[p[k]] == same[k] for k in range(n))]
    kept, found = [], np.zeros((0, int(np.prod([2 * x + 1 for x in levels]))))
    for path in paths:
        c = generalised(levels, path)
        symmetric = sum(np.transpose(c, p) for p in orders).ravel() / len(orders)
        # twice: once leaves rounding errors of a nearly dependent vector
        rest = symmetric
        for _ in range(2):
            rest = rest - found.T @ (found @ rest)
        if rest @ rest > _INDEPENDENT * (c.ravel() @ c.ravel()):
            kept.append(path)
            found = np.vstack([found, rest / np.linalg.norm(rest)])
    return tuple(kept)
