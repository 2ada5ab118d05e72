"""Bispectrum components by compiled loops on the CPU: the fast engine.

All is computed in double precision; float32 tensors are converted on the way in and out.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.compiled import (
    as_array,
    stamp_sources,
)
from schnetpack_softadapt.descriptors.density_engine import DensityEngine, DensityPairs
from schnetpack_softadapt.descriptors.snap.kernels.neighbors import (
    densities,
    sort,
)
from schnetpack_softadapt.descriptors.snap.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.snap.kernels.products import jacobian, values, vjp
from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["KernelEngine"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)

stamp_sources((sort, densities, values, vjp, jacobian), sorted(Path(__file__).parent.glob("*.py")))


class KernelEngine(DensityEngine):
    """Bispectrum components by compiled loops.

    Args:
        descriptor: the parameters.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: Bispectrum):
        super().__init__(descriptor, make_plan(descriptor), sort, densities)

    def values(self, pairs: DensityPairs) -> Tensor:
        """See `Engine.values`; computed in float64, as all of the following."""
        b = self._components(pairs)
        if self.descriptor.quadraticflag:
            b = np.concatenate([b, self._products(b)], axis=1)
        return pairs.tensor(b)

    def vjp(self, pairs: DensityPairs, grad_g: Tensor | np.ndarray) -> Tensor:
        """See `Engine.vjp`."""
        return pairs.tensor(self._vjp(pairs, as_array(grad_g, _FLOAT)))

    def _vjp(self, pairs: DensityPairs, grad_g: np.ndarray) -> np.ndarray:
        if self.descriptor.quadraticflag:
            grad_g = self._of_components(self._components(pairs), grad_g)
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._run(vjp, pairs.neighbors, grad_g, grad_r)
        return grad_r

    def _by_pair(self, pairs: DensityPairs, threads: int | None = None) -> Tensor:
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

    def _components(self, pairs: DensityPairs) -> np.ndarray:
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
