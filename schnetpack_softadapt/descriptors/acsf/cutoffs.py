"""Cutoff functions: one at zero distance (but for `tanh3`), zero from the cutoff on.

Every function takes distances `r` of any shape and a cutoff radius in the same unit and returns a
tensor of the shape of `r`. Values, first and second derivatives are finite everywhere and exactly
zero for `r >= cutoff`. With x = r / r_c:

============ ================================ ====================== =========================
name         formula for x < 1                n2p2 `cutoff_type`     continuous derivatives
============ ================================ ====================== =========================
`cosine`     (cos(pi x) + 1) / 2              1                      1
`tanh3`      tanh^3(1 - x)                    2                      2
`exp`        exp(1 - 1 / (1 - x^2))           4                      all
`poly1`      1 + x^2 (2 x - 3)                5                      1
`poly2`      1 - x^3 (10 - 15 x + 6 x^2)      6                      2
`poly3`      1 - x^4 (35 - 84 x + 70 x^2 ...) 7                      3
`poly4`      1 - x^5 (126 - 420 x + ...)      8                      4
============ ================================ ====================== =========================

`cosine` and `tanh3` are from J. Behler, J. Chem. Phys. 134, 074106 (2011); the others
follow A. Singraber, J. Behler, C. Dellago, J. Chem. Theory Comput. 15, 1827 (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CUTOFFS"]


def _zero_beyond(values: Tensor, r: Tensor, cutoff: float) -> Tensor:
    # so written that a NaN distance stays NaN
    return values.masked_fill(r >= cutoff, 0.0)


def _cosine(r: Tensor, cutoff: float) -> Tensor:
    # cos^2(x / 2) is the same number without the cancellation near the cutoff
    half = (r * (0.5 * math.pi / cutoff)).cos()
    return _zero_beyond(half * half, r, cutoff)


def _tanh3(r: Tensor, cutoff: float) -> Tensor:
    t = (1.0 - r / cutoff).tanh()
    return _zero_beyond(t * t * t, r, cutoff)


def _exp(r: Tensor, cutoff: float) -> Tensor:
    x = r / cutoff
    # where the bound acts the exponential has long underflowed to zero: nothing changes but that
    # no derivative becomes inf * 0
    rest = ((1.0 - x) * (1.0 + x)).clamp(min=1.0 / 800.0)
    return _zero_beyond((1.0 - 1.0 / rest).exp(), r, cutoff)


def _polynomial(r: Tensor, cutoff: float, n: int) -> Tensor:
    """(1 - x)^(n+1) sum_k binomial(n+k, k) x^k, k = 0 ... n: no term cancels near the cutoff."""
    x = r / cutoff
    series = x.new_full(x.shape, math.comb(2 * n, n))
    for k in reversed(range(n)):
        series = math.comb(n + k, k) + x * series
    return _zero_beyond((1.0 - x) ** (n + 1) * series, r, cutoff)


CUTOFFS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "cosine": _cosine,
    "tanh3": _tanh3,
    "exp": _exp,
    **{f"poly{n}": partial(_polynomial, n=n) for n in (1, 2, 3, 4)},
}
