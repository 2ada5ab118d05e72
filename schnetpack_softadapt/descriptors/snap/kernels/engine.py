"""Bispectrum components by compiled loops on the CPU: the fast engine.

All is computed in double precision; float32 tensors are converted on the way in and out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numba import config
from torch import Tensor

from schnetpack_softadapt.descriptors.compiled import (
    as_array,
    call,
    call_in_parts,
    check_pairs,
    n_threads,
    pair_arrays,
    stamp_sources,
)
from schnetpack_softadapt.descriptors.protocol import Engine
from schnetpack_softadapt.descriptors.snap.kernels.neighbors import (
    Sorted,
    densities,
    sort,
)
from schnetpack_softadapt.descriptors.snap.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.snap.kernels.products import jacobian, values, vjp
from schnetpack_softadapt.descriptors.snap.kernels.vectors import LANES
from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["KernelEngine"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)

# fewer atoms than this are done before a second thread has woken up
_ATOMS_PER_TASK = 4 * LANES

stamp_sources((sort, densities, values, vjp, jacobian), sorted(Path(__file__).parent.glob("*.py")))


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
    """Bispectrum components by compiled loops.

    Args:
        descriptor: the parameters.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: Bispectrum):
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        self.descriptor = descriptor
        self._plan = make_plan(descriptor)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> KernelPairs:
        """Sort the neighbours and sum their rotations; see `Engine.prepare`.

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
        b = self._components(pairs)
        if self.descriptor.quadraticflag:
            b = np.concatenate([b, self._products(b)], axis=1)
        return pairs.tensor(b)

    def vjp(self, pairs: KernelPairs, grad_g: Tensor | np.ndarray) -> Tensor:
        """See `Engine.vjp`."""
        return pairs.tensor(self._vjp(pairs, as_array(grad_g, _FLOAT)))

    def _vjp(self, pairs: KernelPairs, grad_g: np.ndarray) -> np.ndarray:
        if self.descriptor.quadraticflag:
            grad_g = self._of_components(self._components(pairs), grad_g)
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._run(vjp, pairs.neighbors, grad_g, grad_r)
        return grad_r

    def _by_pair(self, pairs: KernelPairs, threads: int | None = None) -> Tensor:
        n = self.descriptor.n_components
        by_pair = np.zeros((len(pairs.idx_j), 3, n))
        self._run(jacobian, pairs.neighbors, by_pair, threads=threads)
        if self.descriptor.quadraticflag:
            b = self._components(pairs)[pairs.idx_i.numpy(), None]
            first, second = np.triu_indices(n)
            half = np.where(first == second, 0.5, 1.0)
            products = b[..., first] * by_pair[..., second] + b[..., second] * by_pair[..., first]
            by_pair = np.concatenate([by_pair, half * products], axis=2)
        return torch.from_numpy(by_pair)

    def _components(self, pairs: KernelPairs) -> np.ndarray:
        b = np.empty((len(pairs.numbers), self.descriptor.n_components))
        self._run(values, pairs.neighbors, b)
        return b

    def _products(self, b: np.ndarray) -> np.ndarray:
        """Columns of the products of components b (N, n)."""
        first, second = np.triu_indices(b.shape[1])
        return np.where(first == second, 0.5, 1.0) * b[:, first] * b[:, second]

    def _of_components(self, b: np.ndarray, grad_g: np.ndarray) -> np.ndarray:
        """Derivatives by components b (N, n) from those by them and their products."""
        n = b.shape[1]
        first, second = np.triu_indices(n)
        matrix = np.zeros((len(b), n, n))
        matrix[:, first, second] = grad_g[:, n:]
        matrix[:, second, first] = grad_g[:, n:]
        return grad_g[:, :n] + np.einsum("nkm,nm->nk", matrix, b)

    def _run(
        self, kernel: Callable, neighbors: Sorted, *arrays, threads: int | None = None
    ) -> None:
        """Call a kernel on all atoms, in as many threads as there is work for."""
        n_atoms = len(neighbors.rows)
        threads = threads or n_threads()
        size = max(_ATOMS_PER_TASK, -(-n_atoms // (4 * threads * LANES)) * LANES)
        ends = [0, n_atoms] if threads == 1 else [*range(0, max(n_atoms, 1), size), n_atoms]
        call_in_parts(kernel, self._plan, neighbors, ends, threads, *arrays)
