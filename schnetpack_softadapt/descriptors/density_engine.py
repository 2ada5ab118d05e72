"""What compiled engines share whose atoms sum the densities of their neighbours first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import config
from torch import Tensor

from schnetpack_softadapt.descriptors.compiled import (
    call,
    call_in_parts,
    check_pairs,
    n_threads,
    pair_arrays,
)
from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine
from schnetpack_softadapt.descriptors.snap.kernels.vectors import LANES

__all__ = ["DensityEngine", "DensityPairs"]

# fewer atoms than this are done before a second thread has woken up
_ATOMS_PER_TASK = 4 * LANES


class DensityPairs(NamedTuple):
    """Prepared pairs with the densities of the atoms.

    Attributes:
        neighbors: sorted, of the family's own type.
        r_ij, idx_i, idx_j, numbers: see `Pairs`; float64 and int64.
        dtype: of what is computed from them.
    """

    neighbors: Any
    r_ij: Tensor
    idx_i: Tensor
    idx_j: Tensor
    numbers: Tensor
    dtype: torch.dtype

    def tensor(self, array: np.ndarray) -> Tensor:
        """Results in that type."""
        return torch.from_numpy(array).to(self.dtype)


class DensityEngine(Engine):
    """Base of them.

    Args:
        descriptor: the parameters.
        plan: what its kernels need of these.
        sort: kernel that sorts the neighbours.
        densities: kernel that sums them.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: Descriptor, plan: Any, sort: Callable, densities: Callable):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.descriptor = descriptor
        self._plan, self._sort, self._densities = plan, sort, densities

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> DensityPairs:
        """Sort the neighbours and sum their densities; see `Engine.prepare`.

        Raises:
            UnknownElementError: an atom of an element that the descriptor does not know.
            ValueError: an index that is not that of an atom, tensors that are not on the CPU.
        """
        dtype = r_ij.dtype if isinstance(r_ij, Tensor) else torch.float64
        r_ij, idx_i, idx_j, numbers = pair_arrays(r_ij, idx_i, idx_j, numbers)
        status, neighbors = call(self._sort, self._plan, r_ij, idx_i, idx_j, numbers)
        check_pairs(status, numbers, self.descriptor.elements)
        self._run(self._densities, neighbors)
        tensors = map(torch.from_numpy, (r_ij, idx_i, idx_j, numbers))
        return DensityPairs(neighbors, *tensors, dtype)

    def _run(self, kernel: Callable, neighbors: Any, *arrays, threads: int | None = None) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms = len(neighbors.rows)
        threads = threads or n_threads()
        size = max(_ATOMS_PER_TASK, -(-n_atoms // (4 * threads * LANES)) * LANES)
        ends = [0, n_atoms] if threads == 1 else [*range(0, max(n_atoms, 1), size), n_atoms]
        call_in_parts(kernel, self._plan, neighbors, ends, threads, *arrays)
