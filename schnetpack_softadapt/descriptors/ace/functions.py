"""The functions of a cluster expansion, in the order in which they are taken."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from schnetpack_softadapt.descriptors.ace.coupling import independent

__all__ = ["MOST_FUNCTIONS", "Density", "Function", "choose"]

#: more than this are a mistake: a generator's usual number is 700
MOST_FUNCTIONS = 5_000


class Density(NamedTuple):
    """A_{c n l m}, all m. They are sorted by these three, so that low l are coupled in pairs."""

    l: int  # angular momentum
    n: int  # radial function, from 1
    channel: int  # neighbours that count


class Function(NamedTuple):
    """An invariant product."""

    parts: tuple[Density, ...]  # one to four densities, ascending; up to six in those of others
    # L of the coupling, (L, K) or (L, K, J) of five and six densities; see `coupling`
    level: int | tuple[int, ...]


def choose(
    n_channels: int,
    max_order: int,
    number: int | None,
    degree: float | None,
    n_max: Sequence[int] | None,
    l_max: Sequence[int] | None,
    l_weight: float,
) -> tuple[Function, ...]:
    """Functions by ascending degree, lower orders first within a step of one.

    Args: see `ClusterExpansion`; one of `number`, `degree`, or both `n_max` and `l_max` are given.

    Raises:
        ValueError: more than `MOST_FUNCTIONS`, or none.
    """
    last = degree
    if n_max is not None and l_max is not None:
        tops = zip(n_max, l_max, strict=True)
        bound = max((k + 1) * (n + l_weight * x) for k, (n, x) in enumerate(tops))
        last = bound if degree is None else min(degree, bound)
    found: list[Function] = []
    step = 0
    while (last is None or step < last) and (number is None or len(found) < number):
        step += 1
        high = step if last is None else min(step, last)
        for order in range(1, max_order + 1):
            n_top = None if n_max is None else n_max[order - 1]
            l_top = None if l_max is None else l_max[order - 1]
            densities = _densities(n_channels, high - order + 1, n_top, l_top, l_weight)
            for parts in _products(densities, order, step - 1, high):
                levels = tuple(x.l for x in parts)
                same = tuple(parts.index(x) for x in parts)
                found += [Function(parts, level) for level in independent(levels, same)]
                if len(found) > max(MOST_FUNCTIONS, number or 0):
                    raise ValueError(
                        f"more than {MOST_FUNCTIONS} functions: give a smaller degree, n_max or"
                        " l_max, fewer channels, or n_functions"
                    )
    if not found:
        raise ValueError("no functions: give a larger degree, or n_max of 1 or more")
    return tuple(found[:number])


def _densities(
    n_channels: int, degree: float, n_top: int | None, l_top: int | None, l_weight: float
) -> list[tuple[float, Density]]:
    """Densities up to a degree, with their degrees n + l_weight l, sorted."""
    n_top = int(degree) if n_top is None else min(n_top, int(degree))
    rows, level = [], 0
    while 1 + l_weight * level <= degree and (l_top is None or level <= l_top):
        for n in range(1, n_top + 1):
            if n + l_weight * level <= degree:
                rows += [(n + l_weight * level, Density(level, n, c)) for c in range(n_channels)]
        level += 1
    return rows


def _products(
    densities: list[tuple[float, Density]], order: int, low: float, high: float
) -> Iterator[tuple[Density, ...]]:
    """Products of so many densities, ascending, with a degree above `low` and up to `high`."""

    def extend(first: int, parts: tuple[Density, ...], degree: float):
        left = order - len(parts)
        if not left:
            if round(degree, 9) > low:
                yield parts
            return
        for k in range(first, len(densities)):
            more, density = densities[k]
            if round(degree + more, 9) + left - 1 <= high:  # each of the others has 1 at least
                yield from extend(k, (*parts, density), degree + more)

    yield from extend(0, (), 0.0)
