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

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "CUTOFFS",
    "cosine_cutoff",
    "exp_cutoff",
    "poly1_cutoff",
    "poly2_cutoff",
    "poly3_cutoff",
    "poly4_cutoff",
    "tanh3_cutoff",
]


def _zero_beyond(values: Tensor, r: Tensor, cutoff: float) -> Tensor:
    # so written that a NaN distance stays NaN
    return torch.where(r >= cutoff, torch.zeros_like(values), values)


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = (cos(pi r / r_c) + 1) / 2."""
    # cos^2(x / 2) is the same number without the cancellation near the cutoff
    half = torch.cos(r * (0.5 * math.pi / cutoff))
    return _zero_beyond(half * half, r, cutoff)


def tanh3_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = tanh^3(1 - r / r_c); f(0) = 0.442, not 1."""
    t = torch.tanh(1.0 - r / cutoff)
    return _zero_beyond(t * t * t, r, cutoff)


def exp_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = exp(1 - 1 / (1 - x^2)), x = r / r_c."""
    x = r / cutoff
    # where the bound acts the exponential has long underflowed to zero: nothing changes but that
    # no derivative becomes inf * 0
    rest = ((1.0 - x) * (1.0 + x)).clamp(min=1.0 / 800.0)
    return _zero_beyond(torch.exp(1.0 - 1.0 / rest), r, cutoff)


# The polynomials are written with their zero at the cutoff as a factor: all terms are positive,
# nothing cancels where the function is small.


def poly1_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = (1 - x)^2 (1 + 2 x), x = r / r_c."""
    x = r / cutoff
    return _zero_beyond((1.0 - x) ** 2 * (1.0 + 2.0 * x), r, cutoff)


def poly2_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = (1 - x)^3 (1 + 3 x + 6 x^2), x = r / r_c."""
    x = r / cutoff
    return _zero_beyond((1.0 - x) ** 3 * (1.0 + x * (3.0 + 6.0 * x)), r, cutoff)


def poly3_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = (1 - x)^4 (1 + 4 x + 10 x^2 + 20 x^3), x = r / r_c."""
    x = r / cutoff
    return _zero_beyond((1.0 - x) ** 4 * (1.0 + x * (4.0 + x * (10.0 + 20.0 * x))), r, cutoff)


def poly4_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """f(r) = (1 - x)^5 (1 + 5 x + 15 x^2 + 35 x^3 + 70 x^4), x = r / r_c."""
    x = r / cutoff
    series = 1.0 + x * (5.0 + x * (15.0 + x * (35.0 + 70.0 * x)))
    return _zero_beyond((1.0 - x) ** 5 * series, r, cutoff)


CUTOFFS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "cosine": cosine_cutoff,
    "tanh3": tanh3_cutoff,
    "exp": exp_cutoff,
    "poly1": poly1_cutoff,
    "poly2": poly2_cutoff,
    "poly3": poly3_cutoff,
    "poly4": poly4_cutoff,
}
