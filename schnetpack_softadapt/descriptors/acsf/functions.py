"""The terms of the symmetry functions: one equation, one function, in plain torch.

Shapes: P pairs, T triples (a central atom i with two neighbours j, k), F functions. Distances in
Ang. Every function is differentiable to any order and free of NaN at collinear atoms.

References:
    [1] J. Behler, J. Chem. Phys. 134, 074106 (2011).
    [2] M. Gastegger, L. Schwiedrzik, M. Bittermann, F. Berzsenyi, P. Marquetand,
        J. Chem. Phys. 148, 241709 (2018).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["angular_factors", "cosine_of_angle", "gaussians", "lengths", "powers"]

# Ang^2; below it the square root is cut off, so that coinciding atoms give finite derivatives
_TINY_SQUARE = 1e-12


def lengths(vectors: Tensor) -> Tensor:
    """Lengths (n,) of vectors (n, 3), with finite derivatives also at zero."""
    return torch.sqrt((vectors * vectors).sum(-1).clamp(min=_TINY_SQUARE))


def cosine_of_angle(r_ij: Tensor, r_ik: Tensor, d_ij: Tensor, d_ik: Tensor) -> Tensor:
    """cos(theta_ijk) = r_ij . r_ik / (d_ij d_ik) between vectors (T, 3) of lengths (T,).

    Rounding may carry it beyond +-1. It is left there: a clamp would set the second derivative of
    collinear atoms, which is not zero, to zero.
    """
    return (r_ij * r_ik).sum(-1) / (d_ij * d_ik)


def gaussians(
    distances: Sequence[Tensor],
    widths: Sequence[tuple[float, float]],
    each: float = 1.0,
    joint: float = 0.0,
) -> Tensor:
    """exp(-eta [each sum_m u_m^2 + joint (sum_m u_m)^2]), u_m = r_m - r_s; (F, n).

    With r_ij it is the Gaussian of `G2` of [1], with r_ij, r_ik that of the wide `G5`, with r_jk
    besides that of the narrow `G4`, shifted as in the weighted functions of [2].

    Args:
        distances: r_m (n,), one to three of them.
        widths: (eta, r_s) of the functions.
        each, joint: see `layout.Kind`.
    """
    exponents: dict[float, Tensor] = {}
    for r_s in {r_s for _, r_s in widths}:
        shifted = [d - r_s for d in distances]
        exponents[r_s] = each * sum(u * u for u in shifted)
        if joint:
            exponents[r_s] = exponents[r_s] + joint * sum(shifted) ** 2
    return torch.stack([torch.exp(-eta * exponents[r_s]) for eta, r_s in widths])


def powers(base: Tensor, exponents: Sequence[float]) -> Tensor:
    """base^zeta for every zeta >= 1 of `exponents`; (len(exponents), n).

    Integer exponents are products of repeated squares: exact for a base that rounding made
    negative, and without pow's singular derivatives at zero.
    """
    squares = [base]  # base^(2^m)
    rows = []
    for zeta in exponents:
        if zeta != int(zeta):
            # The true derivatives vanish with the base for collinear atoms (the base is quadratic
            # in the angle), pow's would be inf * 0; below the bound the term is rounding error.
            rows.append(base.clamp(min=8 * torch.finfo(base.dtype).eps) ** zeta)
            continue
        while len(squares) < int(zeta).bit_length():
            squares.append(squares[-1] * squares[-1])
        rows.append(math.prod(s for m, s in enumerate(squares) if int(zeta) >> m & 1))
    return torch.stack(rows)


def angular_factors(cosine: Tensor, shapes: Sequence[tuple[float, float]]) -> Tensor:
    """2^(1 - zeta) (1 + lam cos(theta))^zeta for every (zeta, lam) of `shapes`; (F, T)."""
    rows: dict[tuple[float, float], Tensor] = {}
    for sign in {lam for _, lam in shapes}:
        zetas = [zeta for zeta, lam in shapes if lam == sign]
        # ((1 + lam cos) / 2)^zeta lies in [0, 1]: no overflow of large powers in float32
        for zeta, row in zip(zetas, powers(0.5 + (0.5 * sign) * cosine, zetas), strict=True):
            rows[zeta, sign] = 2.0 * row
    return torch.stack([rows[shape] for shape in shapes])
