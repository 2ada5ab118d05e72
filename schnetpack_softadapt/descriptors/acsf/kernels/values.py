"""Values of the symmetry functions of single atoms: sums of the terms of pairs and triples."""

from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels.loops import STAGE, SUM, dot4, round_up
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import (
    FIRST,
    channel_range,
    load_shell,
    new_neighbors,
)
from schnetpack_softadapt.descriptors.acsf.kernels.triples import new_triples, next_triples

__all__ = ["values"]


@njit(**SUM)
def _sum(row, lo, hi):
    total = 0.0
    for t in range(lo, hi):
        total += row[t]
    return total


@njit(**STAGE)
def _angular(plan, shell, g, neighbors, triples, out):
    group, after = plan.groups[g], plan.groups[g + 1]
    j = FIRST
    while j >= 0:
        n, j = next_triples(plan, shell, g, neighbors, j, triples, False)
        n = round_up(n)
        for w in range(group.first_width, after.first_width):
            weight = triples.weights[w - group.first_width]
            for k in range(plan.widths[w].first_term, plan.widths[w + 1].first_term, 4):
                a, b, c, d = plan.terms[k], plan.terms[k + 1], plan.terms[k + 2], plan.terms[k + 3]
                sums = dot4(weight, triples.rows, a.row, b.row, c.row, d.row, n)
                for m in range(4):
                    if plan.terms[k + m].column >= 0:
                        out[plan.terms[k + m].column] += 2.0 * sums[m]


@njit(nogil=True, cache=True)
def values(plan, pairs, start, stop, g):
    """Write the symmetry functions of atoms start to stop into g (N, D), zero before.

    Args:
        plan: `plan.Plan`.
        pairs: `engine.SortedPairs`.
    """
    neighbors = new_neighbors(plan.sizes, pairs.most)
    triples = new_triples(plan.sizes, pairs.most)
    for i in range(start, stop):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            load_shell(plan, shell, pairs, i, neighbors)
            here, after = plan.shells[shell], plan.shells[shell + 1]
            for k in range(here.first_radial, after.first_radial):
                radial = plan.radials[k]
                factor = plan.factors[here.first_factor + radial.factor]
                lo, hi = channel_range(neighbors, factor.channel)
                g[i, radial.column] = _sum(neighbors.factors[radial.factor], lo, hi)
            for k in range(here.first_group, after.first_group):
                _angular(plan, shell, k, neighbors, triples, g[i])
