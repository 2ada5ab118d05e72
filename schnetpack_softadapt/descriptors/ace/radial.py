"""Radial functions of the cluster expansion, in torch; the formulas are in `ClusterExpansion`."""

import math

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion

__all__ = ["bessel_factors", "radial_functions"]


def bessel_factors(n: int) -> list[tuple[float, float, float]]:
    """Of the functions 0 to n - 1: that of f_n without r_c^(-3/2), sqrt(e_n/d_{n-1}), sqrt(d_n)."""
    rows, d = [], 1.0
    for k in range(n):
        a, b = k + 1, k + 2
        e = k**2 * b**2 / (4 * a**4 + 1)
        previous, d = d, 1.0 - e / d if k else 1.0
        front = (-1) ** k * math.sqrt(2) * math.pi * a * b / math.hypot(a, b)
        rows.append((front, math.sqrt(e / previous), math.sqrt(d)))
    return rows


def radial_functions(descriptor: ClusterExpansion, r: Tensor) -> Tensor:
    """R_n (P, n_radial) of distances r (P,) below the cutoff, before any `radial_table`."""
    d, n = descriptor, descriptor.n_radial
    factor = torch.ones_like(r)
    if d.cutoff_fn == "cosine":
        factor = 0.5 * (torch.cos((math.pi / d.cutoff) * r) + 1)
    elif d.cutoff_fn == "power":
        factor = (1 - (r / d.cutoff) ** 2) ** 2
    if d.outer_width > 0:
        x = ((r - d.cutoff) / d.outer_width + 1).clamp(min=0)
        factor = factor * 0.5 * (torch.cos(math.pi * x) + 1)
    if d.inner > 0:
        t = ((r - d.inner + d.inner_width) / d.inner_width).clamp(0, 1)
        factor = factor * t**3 * (10 - 15 * t + 6 * t**2)
    if d.radial != "bessel":
        if d.radial == "chebyshev":
            x = 1 - 2 * torch.expm1(d.decay * (1 - r / d.cutoff)) / math.expm1(d.decay)
        else:
            x = 1 - 2 * (1 - r / d.cutoff) ** d.decay
        chebyshev = [torch.ones_like(x), x]
        while len(chebyshev) <= n:
            chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
        functions = [torch.ones_like(x)] if d.radial == "chebyshev" else []
        functions += [0.5 * (1 - t) for t in chebyshev[1:]]
        functions = functions[:n]
    else:
        angle = (math.pi / d.cutoff) * r
        s = [torch.sin(k * angle) / (k * angle) for k in range(1, n + 2)]
        functions = []
        for k, (front, mix, root) in enumerate(bessel_factors(n)):
            f = front * d.cutoff**-1.5 * (s[k] + s[k + 1])
            functions.append((f + mix * functions[-1] if k else f) / root)
    return factor[:, None] * torch.stack(functions, 1)
