"""Symmetry functions by compiled loops on the CPU: the fast backend.

The loops (numba) run over the atoms of a call; how they are built is told in `loops` and `triples`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.acsf.kernels.jacobian import jacobian
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import sort_pairs
from schnetpack_softadapt.descriptors.acsf.kernels.plan import compile_layout
from schnetpack_softadapt.descriptors.acsf.kernels.products import jvp, values, vjp
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.compiled import call, stamp_sources
from schnetpack_softadapt.descriptors.compiled_engine import CompiledEngine, Kernels

__all__ = ["KernelEngine", "SortedPairs"]

# fewer triples than this are done before a second thread has woken up
_TRIPLES_PER_TASK = 100_000


class SortedPairs(NamedTuple):
    """Pairs by atom and element; see `neighbors.sort_pairs`."""

    first: np.ndarray
    order: np.ndarray
    r_ij: np.ndarray
    idx_j: np.ndarray
    numbers: np.ndarray
    most: int


class KernelEngine(CompiledEngine):
    """Symmetry functions of a layout by compiled loops."""

    kernels = Kernels(sort_pairs, values, vjp, jvp, jacobian)
    stamp_sources(kernels[:5], sorted(Path(__file__).parent.glob("*.py")))

    def __init__(self, descriptor: Layout):
        super().__init__(descriptor, compile_layout(descriptor))

    def _sort(self, r_ij, idx_i, idx_j, numbers):
        plan = self._plan
        status, most, first, order = call(
            sort_pairs, idx_i, idx_j, numbers, plan.species, plan.channel, plan.sizes
        )
        if most >= 65_000:
            raise ValueError(f"an atom has {most} neighbours; the kernels take up to 65,000")
        return status, SortedPairs(first, order, r_ij, idx_j, numbers, most)

    def _ends(self, neighbors, n_atoms, threads):
        triples = np.concatenate([[0], np.cumsum(np.diff(neighbors.first) ** 2)])
        # several tasks a thread, because other work may slow one of them down
        tasks = min(4 * threads, n_atoms, 1 + int(triples[-1]) // _TRIPLES_PER_TASK)
        ends = np.searchsorted(triples, np.linspace(0, triples[-1], tasks + 1))
        ends[0], ends[-1] = 0, n_atoms
        return ends.tolist()
