"""Engines by compiled loops on the CPU: what those of all families share.

All is computed in double precision; float32 tensors are converted on the way in and out. Pairs
prepared from arrays give arrays, so that simulations with them do without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import config

from schnetpack_softadapt.descriptors.compiled import (
    as_array,
    call,
    call_in_parts,
    check_pairs,
    n_threads,
    pair_arrays,
)
from schnetpack_softadapt.descriptors.pair_blocks import blocks
from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine, Jacobian
from schnetpack_softadapt.descriptors.snap.kernels.vectors import LANES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CompiledEngine", "CompiledPairs", "Kernels"]

_FLOAT = np.dtype(np.float64)

# fewer atoms than this are done before a second thread has woken up
_ATOMS_PER_TASK = 4 * LANES


class Kernels(NamedTuple):
    """Compiled functions of (plan, neighbors, first atom, end, ...arrays to read and to fill)."""

    sort: Callable  # (plan, *pairs) -> status for `check_pairs`, neighbors
    values: Callable  # into (N, D), zero before
    vjp: Callable  # of (N, D) into (P, 3), zero before
    # of (P, 3) into (N, D), zero before; None where it follows from the Jacobian
    jvp: Callable | None = None
    # from the results of `blocks` into those of `Jacobian`; None: see `Engine`
    jacobian: Callable | None = None
    # of neighbors that hold sums over an atom's neighbours, into these
    densities: Callable | None = None


class CompiledPairs(NamedTuple):
    """Prepared pairs."""

    neighbors: Any  # sorted, of the family's own type
    r_ij: np.ndarray  # this and the next three: see `Pairs`; float64 and int64
    idx_i: np.ndarray
    idx_j: np.ndarray
    numbers: np.ndarray
    dtype: torch.dtype | None  # of what is computed from them; None stands for arrays

    def of_type(self, values: np.ndarray) -> Tensor | np.ndarray:
        """Results in that type."""
        if self.dtype is None:
            return values
        import torch

        return torch.from_numpy(values).to(self.dtype)


class CompiledEngine(Engine):
    """Base of the engines of single families, which set `kernels`.

    Raises:
        ImportError: numba is told not to compile.
    """

    kernels: Kernels

    def __init__(self, descriptor: Descriptor, plan: Any):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.descriptor, self._plan = descriptor, plan

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> CompiledPairs:
        """Sort the neighbours, and sum their densities; see `Engine.prepare`.

        Raises:
            UnknownElementError: an atom of an element that the descriptor does not know.
            ValueError: an index that is not that of an atom, tensors that are not on the CPU.
        """
        dtype = None if isinstance(r_ij, np.ndarray) else r_ij.dtype
        arrays = pair_arrays(r_ij, idx_i, idx_j, numbers)
        status, neighbors = self._sort(*arrays)
        check_pairs(status, arrays[3], self.descriptor.elements)
        pairs = CompiledPairs(neighbors, *arrays, dtype)
        if self.kernels.densities is not None:
            self._call(self.kernels.densities, pairs)
        return pairs

    def values(self, pairs: CompiledPairs) -> Tensor | np.ndarray:
        return pairs.of_type(self._run(self.kernels.values, pairs, self.descriptor.n_columns))

    def vjp(self, pairs: CompiledPairs, grad_g: Tensor | np.ndarray) -> Tensor | np.ndarray:
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._call(self.kernels.vjp, pairs, as_array(grad_g, _FLOAT), grad_r)
        return pairs.of_type(grad_r)

    def jvp(self, pairs: CompiledPairs, tangent: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if self.kernels.jvp is None:
            return super().jvp(pairs, tangent)
        tangent = as_array(tangent, _FLOAT)
        return pairs.of_type(self._run(self.kernels.jvp, pairs, self.descriptor.n_columns, tangent))

    def jacobian(
        self, pairs: CompiledPairs, dtype: type = np.float64, threads: int | None = None
    ) -> Jacobian:
        """See `Engine.jacobian`; the loops run without Python's global lock."""
        if self.kernels.jacobian is None:
            return super().jacobian(pairs, dtype, threads)
        n_atoms, n_columns = len(pairs.numbers), self.descriptor.n_columns
        order = np.argsort(pairs.idx_i, kind="stable")
        first = np.searchsorted(pairs.idx_i[order], np.arange(n_atoms + 1))
        found = call(blocks, first, order, pairs.idx_j, n_atoms)
        g = np.empty((n_atoms, n_columns), dtype)
        strain = np.empty((n_atoms, 6, n_columns), dtype)
        dg_dr = np.empty((len(found[1]), 3, n_columns), dtype)
        self._call(self.kernels.jacobian, pairs, *found, g, strain, dg_dr, threads=threads)
        return Jacobian(g, strain, found[0], found[1], dg_dr)

    def _run(self, kernel: Callable, pairs: CompiledPairs, n_columns: int, *arrays) -> np.ndarray:
        """(N, n_columns) that a kernel fills."""
        out = np.zeros((len(pairs.numbers), n_columns))
        self._call(kernel, pairs, *arrays, out)
        return out

    def _call(
        self, kernel: Callable, pairs: CompiledPairs, *arrays, threads: int | None = None
    ) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms, threads = len(pairs.numbers), threads or n_threads()
        if n_atoms == 0:
            return
        ends = [0, n_atoms] if threads == 1 else self._ends(pairs.neighbors, n_atoms, threads)
        call_in_parts(kernel, self._plan, pairs.neighbors, ends, threads, *arrays)

    def _sort(self, *pairs: np.ndarray) -> tuple[int, Any]:
        return call(self.kernels.sort, self._plan, *pairs)

    def _ends(self, neighbors: Any, n_atoms: int, threads: int) -> list[int]:
        """Ranges of atoms for several threads: first atoms, and the end."""
        size = max(_ATOMS_PER_TASK, -(-n_atoms // (4 * threads * LANES)) * LANES)
        return [*range(0, n_atoms, size), n_atoms]
