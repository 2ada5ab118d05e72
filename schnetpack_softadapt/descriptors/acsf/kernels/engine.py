"""Symmetry functions by compiled loops on the CPU: the fast backend.

The loops (numba) run over the atoms of a call; how they are built is told in `loops` and
`triples`. They compute in double precision whatever the type of the input, for that is
what the sums need; float32 tensors are converted on the way in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import config

from schnetpack_softadapt.descriptors.acsf.kernels.jacobian import blocks, jacobian
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import sort_pairs
from schnetpack_softadapt.descriptors.acsf.kernels.plan import compile_layout
from schnetpack_softadapt.descriptors.acsf.kernels.products import jvp, values, vjp
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.descriptors.compiled import (
    as_array,
    call,
    call_in_parts,
    check_pairs,
    n_threads,
    pair_arrays,
    stamp_sources,
)
from schnetpack_softadapt.descriptors.protocol import Engine, Jacobian

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["KernelEngine", "SortedPairs"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)

# fewer triples than this are done before a second thread has woken up
_TRIPLES_PER_TASK = 100_000


_KERNELS = (sort_pairs, blocks, jacobian, jvp, values, vjp)
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
stamp_sources(_KERNELS, _SOURCES)


class SortedPairs(NamedTuple):
    """Arguments that all kernels share; see `values`."""

    first: np.ndarray
    order: np.ndarray
    r_ij: np.ndarray
    idx_j: np.ndarray
    numbers: np.ndarray
    most: int


class KernelPairs(NamedTuple):
    """Prepared pairs, and the type of what is computed from them; None stands for arrays."""

    arrays: SortedPairs
    dtype: torch.dtype | None

    def of_type(self, values: np.ndarray) -> Tensor | np.ndarray:
        """Values of a kernel in that type."""
        if self.dtype is None:
            return values
        import torch

        values = torch.from_numpy(values)
        return values if self.dtype == torch.float64 else values.to(self.dtype)


class KernelEngine(Engine):
    """Symmetry functions of a layout by compiled loops.

    Args:
        descriptor: the functions.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: Layout):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.descriptor = descriptor
        self._plan = compile_layout(descriptor)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> KernelPairs:
        """Sort the pairs by atom and element; see `Engine.prepare`.

        Raises:
            UnknownElementError: an atom of an element that the layout does not know.
            ValueError: an index that is not that of an atom, tensors that are not on the CPU.
        """
        dtype = None if isinstance(r_ij, np.ndarray) else r_ij.dtype
        r_ij, idx_i, idx_j, numbers = pair_arrays(r_ij, idx_i, idx_j, numbers)
        plan = self._plan
        status, most, first, order = call(
            sort_pairs, idx_i, idx_j, numbers, plan.species, plan.channel, plan.sizes
        )
        check_pairs(status, numbers, self.descriptor.elements)
        if most >= 65_000:
            raise ValueError(f"an atom has {most} neighbours; the kernels take up to 65,000")
        return KernelPairs(SortedPairs(first, order, r_ij, idx_j, numbers, most), dtype)

    def values(self, pairs: KernelPairs) -> Tensor | np.ndarray:
        """See `Engine.values`; computed in float64, as all of the following."""
        g = np.zeros((len(pairs.arrays.numbers), self.descriptor.n_columns))
        self._run(values, pairs.arrays, g)
        return pairs.of_type(g)

    def vjp(self, pairs: KernelPairs, grad_g: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """See `Engine.vjp`."""
        grad_r = np.zeros((len(pairs.arrays.idx_j), 3))
        self._run(vjp, pairs.arrays, as_array(grad_g, _FLOAT), grad_r)
        return pairs.of_type(grad_r)

    def jvp(self, pairs: KernelPairs, tangent: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """See `Engine.jvp`."""
        g = np.zeros((len(pairs.arrays.numbers), self.descriptor.n_columns))
        self._run(jvp, pairs.arrays, as_array(tangent, _FLOAT), g)
        return pairs.of_type(g)

    def jacobian(
        self, pairs: KernelPairs, dtype: type = np.float64, threads: int | None = None
    ) -> Jacobian:
        """See `Engine.jacobian`; the loops run without Python's global lock."""
        arrays = pairs.arrays
        n_atoms, n_columns = len(arrays.numbers), self.descriptor.n_columns
        found = call(blocks, arrays.first, arrays.order, arrays.idx_j, n_atoms)
        g = np.empty((n_atoms, n_columns), dtype)
        strain = np.empty((n_atoms, 6, n_columns), dtype)
        dg_dr = np.empty((len(found[1]), 3, n_columns), dtype)
        self._run(jacobian, arrays, *found, g, strain, dg_dr, threads=threads)
        return Jacobian(g, strain, found[0], found[1], dg_dr)

    def _run(
        self, kernel: Callable, pairs: SortedPairs, *arrays, threads: int | None = None
    ) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms = len(pairs.numbers)
        if n_atoms == 0:
            return
        threads, ends = threads or n_threads(), [0, n_atoms]
        if threads > 1:
            triples = np.concatenate([[0], np.cumsum(np.diff(pairs.first) ** 2)])
            # several tasks a thread, because other work may slow one of them down
            tasks = min(4 * threads, n_atoms, 1 + int(triples[-1]) // _TRIPLES_PER_TASK)
            if tasks > 1:
                ends = np.searchsorted(triples, np.linspace(0, triples[-1], tasks + 1))
                ends[0], ends[-1] = 0, n_atoms
        call_in_parts(kernel, self._plan, pairs, ends, threads, *arrays)
