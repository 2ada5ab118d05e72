"""Which neighbours a symmetry function sums over: those of one element, or all, weighted.

With `n` elements, functions for each pair of elements grow in number with n^2. A channel is a table
of element weights w_z; its radial functions are sum_z w_z G2_z, its angular ones
sum_{z <= z'} w_z w_z' G5_zz', and their number is that of the channels. This contraction is done
before the network, so that network and store do not grow either. The weighted functions of M.
Gastegger et al., J. Chem. Phys. 148, 241709 (2018), are the one channel w_z = z.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

import numpy as np

__all__ = ["Environment", "element_channels", "environments"]


class Environment(NamedTuple):
    """Neighbours that count, as arguments of `layout.SymmetryFunction`."""

    prefix: str = ""  # of the kind, "w" for the weighted ones
    neighbors: tuple[int, ...] = ()  # their elements, of the kinds that are not weighted
    # element weights of the others; empty for the atomic number
    weights: tuple[tuple[int, float], ...] = ()


def element_channels(elements: Sequence[int], n: int) -> list[tuple[tuple[int, float], ...]]:
    """Element weights of `n` channels, or of as many as make a difference.

    The first counts all neighbours alike, the next are orthogonal polynomials of the rank of the
    elements by atomic number, the largest weight of each being one: as many channels as elements
    make the radial functions complete. Beyond these come sums of two of them, which make the
    angular functions complete, for w_a w_b = ((w_a + w_b)^2 - w_a^2 - w_b^2) / 2.

    Args:
        elements: atomic numbers.
        n: number of channels, 1 or more.

    Returns:
        (atomic number, weight) of each element, for each channel.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"at least one channel of element weights is needed, got {n}")
    elements = sorted(elements)
    powers = np.linspace(-1.0, 1.0, len(elements))[:, None] ** np.arange(min(n, len(elements)))
    tables = list(np.linalg.qr(powers)[0].T) if len(elements) > 1 else [np.ones(1)]
    # the heaviest element has the weight one or another positive one
    tables = [t * np.sign(t[-1]) / np.abs(t).max() for t in tables]
    tables += [0.5 * (a + b) for a, b in combinations(tables, 2)][: n - len(tables)]
    # rounding would tell equal weights apart
    return [
        tuple((z, round(float(w), 12)) for z, w in zip(elements, t, strict=True)) for t in tables
    ]


def environments(
    elements: Sequence[int],
    n_neighbors: int,
    weighted: bool = False,
    channels: int | Sequence[Mapping] | None = None,
) -> list[Environment]:
    """What the functions of an atom sum over.

    Args:
        elements: atomic numbers.
        n_neighbors: 1 for radial, 2 for angular functions.
        weighted: all neighbours, weighted by atomic number.
        channels: number of channels (`element_channels`) or the weights of each by element. Of a
            number of channels beyond that of the elements radial functions take no more than that.
    """
    if channels is not None:
        if not (isinstance(channels, int) or all(isinstance(c, Mapping) for c in channels)):
            raise ValueError(
                f"channels must be a number, or weights by element for each, got {channels!r}"
            )
        if isinstance(channels, int):
            n = channels if n_neighbors > 1 else min(channels, len(elements))
            channels = element_channels(elements, n)
        return [Environment("w", weights=table) for table in channels]
    if weighted:
        return [Environment("w")]
    return [
        Environment(neighbors=c)
        for c in combinations_with_replacement(sorted(elements), n_neighbors)
    ]
