"""Real spherical harmonics of unit vectors by recursion."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["harmonic_norms", "spherical_harmonics"]


def harmonic_norms(top: int) -> np.ndarray:
    """N_lm (top + 1, top + 1) of l and m >= 0; zero where m > l."""
    f = math.factorial
    norms = np.zeros((top + 1, top + 1))
    for level in range(top + 1):
        for m in range(level + 1):
            square = (2 * level + 1) * f(level - m) / f(level + m)
            norms[level, m] = math.sqrt(square if m == 0 else 2 * square)
    return norms


def spherical_harmonics(unit: Tensor, top: int) -> list[Tensor]:
    """Y_lm (P, 2 l + 1), m from -l to l, for every l up to `top`, of unit vectors (P, 3).

    With (x + i y)^m = c_m + i s_m and the derivatives Q_l^m = d^m P_l / dz^m of the Legendre
    polynomials,

        Y_lm = N_lm Q_l^m(z) c_m,  Y_{l -m} = N_lm Q_l^m(z) s_m,
        (l - m) Q_l^m = (2 l - 1) z Q_{l-1}^m - (l + m - 1) Q_{l-2}^m,  Q_m^m = (2 m - 1)!!:

    polynomials of x, y, z, without a pole anywhere, 4 pi normalised: Y_00 = 1.
    """
    x, y, z = unit.unbind(1)
    norms = harmonic_norms(top)
    c, s = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(top):
        c, s = [*c, c[-1] * x - s[-1] * y], [*s, s[-1] * x + c[-1] * y]
    q = {(0, 0): torch.ones_like(z)}
    for m in range(top + 1):
        q[m, m] = torch.full_like(z, math.prod(range(1, 2 * m, 2)))
        for level in range(m + 1, top + 1):
            q[level, m] = (2 * level - 1) * z * q[level - 1, m]
            if level > m + 1:
                q[level, m] = q[level, m] - (level + m - 1) * q[level - 2, m]
            q[level, m] = q[level, m] / (level - m)
    rows = []
    for level in range(top + 1):
        of = [float(norms[level, m]) * q[level, m] for m in range(level + 1)]
        sines = [of[m] * s[m] for m in range(level, 0, -1)]
        rows.append(torch.stack([*sines, *(of[m] * c[m] for m in range(level + 1))], 1))
    return rows
