"""The cluster expansion by compiled loops on the CPU: the fast engine.

All is computed in double precision; float32 tensors are converted on the way in and out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numba import config
from torch import Tensor

from schnetpack_softadapt.descriptors.ace.kernels.jacobian import jacobian, jvp
from schnetpack_softadapt.descriptors.ace.kernels.neighbors import Sorted, densities, sort
from schnetpack_softadapt.descriptors.ace.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.ace.kernels.products import values, vjp
from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion
from schnetpack_softadapt.descriptors.acsf.kernels.jacobian import blocks
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
from schnetpack_softadapt.descriptors.snap.kernels import vectors
from schnetpack_softadapt.descriptors.snap.kernels.vectors import LANES

__all__ = ["KernelEngine"]

_FLOAT = np.dtype(np.float64)

# fewer atoms than this are done before a second thread has woken up
_ATOMS_PER_TASK = 4 * LANES

stamp_sources(
    (sort, densities, values, vjp, jvp, jacobian),
    [*sorted(Path(__file__).parent.glob("*.py")), vectors.__file__],
)


class KernelPairs(NamedTuple):
    """Prepared pairs with the densities of the atoms.

    Attributes:
        neighbors: sorted.
        r_ij, idx_i, idx_j, numbers: see `Pairs`; float64 and int64.
        dtype: of what is computed from them.
    """

    neighbors: Sorted
    r_ij: Tensor
    idx_i: Tensor
    idx_j: Tensor
    numbers: Tensor
    dtype: torch.dtype

    def tensor(self, array: np.ndarray) -> Tensor:
        """Results in that type."""
        return torch.from_numpy(array).to(self.dtype)


class KernelEngine(Engine):
    """The cluster expansion by compiled loops.

    Args:
        descriptor: the parameters.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: ClusterExpansion):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.descriptor = descriptor
        self._plan = make_plan(descriptor)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> KernelPairs:
        """Sort the neighbours and sum their densities; see `Engine.prepare`.

        Raises:
            UnknownElementError: an atom of an element that the descriptor does not know.
            ValueError: an index that is not that of an atom, tensors that are not on the CPU.
        """
        dtype = r_ij.dtype if isinstance(r_ij, Tensor) else torch.float64
        r_ij, idx_i, idx_j, numbers = pair_arrays(r_ij, idx_i, idx_j, numbers)
        status, neighbors = call(sort, self._plan, r_ij, idx_i, idx_j, numbers)
        check_pairs(status, numbers, self.descriptor.elements)
        self._run(densities, neighbors)
        tensors = map(torch.from_numpy, (r_ij, idx_i, idx_j, numbers))
        return KernelPairs(neighbors, *tensors, dtype)

    def values(self, pairs: KernelPairs) -> Tensor:
        """See `Engine.values`; computed in float64, as all of the following."""
        g = np.empty((len(pairs.numbers), self.descriptor.n_columns))
        self._run(values, pairs.neighbors, g)
        return pairs.tensor(g)

    def vjp(self, pairs: KernelPairs, grad_g: Tensor | np.ndarray) -> Tensor:
        """See `Engine.vjp`."""
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._run(vjp, pairs.neighbors, as_array(grad_g, _FLOAT), grad_r)
        return pairs.tensor(grad_r)

    def jvp(self, pairs: KernelPairs, tangent: Tensor | np.ndarray) -> Tensor:
        """See `Engine.jvp`."""
        change = np.empty((len(pairs.numbers), self.descriptor.n_columns))
        self._run(jvp, pairs.neighbors, as_array(tangent, _FLOAT), change)
        return pairs.tensor(change)

    def jacobian(
        self, pairs: KernelPairs, dtype: type = np.float64, threads: int | None = None
    ) -> Jacobian:
        """See `Engine.jacobian`; the loops run without Python's global lock."""
        idx_i, idx_j = pairs.idx_i.numpy(), pairs.idx_j.numpy()
        n_atoms, n_columns = len(pairs.numbers), self.descriptor.n_columns
        order = np.argsort(idx_i, kind="stable")
        first = np.searchsorted(idx_i[order], np.arange(n_atoms + 1))
        found = call(blocks, first, order, idx_j, n_atoms)
        g = np.empty((n_atoms, n_columns), dtype)
        strain = np.empty((n_atoms, 6, n_columns), dtype)
        dg_dr = np.empty((len(found[1]), 3, n_columns), dtype)
        self._run(jacobian, pairs.neighbors, *found, g, strain, dg_dr, threads=threads)
        return Jacobian(g, strain, found[0], found[1], dg_dr)

    def _run(
        self, kernel: Callable, neighbors: Sorted, *arrays, threads: int | None = None
    ) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms = len(neighbors.rows)
        threads = threads or n_threads()
        size = max(_ATOMS_PER_TASK, -(-n_atoms // (4 * threads * LANES)) * LANES)
        ends = [0, n_atoms] if threads == 1 else [*range(0, max(n_atoms, 1), size), n_atoms]
        call_in_parts(kernel, self._plan, neighbors, ends, threads, *arrays)
