"""Bispectrum components by compiled loops on the CPU: the fast engine."""

from pathlib import Path

import numpy as np

from schnetpack_softadapt.descriptors.compiled import as_array, stamp_sources
from schnetpack_softadapt.descriptors.compiled_engine import CompiledEngine, CompiledPairs, Kernels
from schnetpack_softadapt.descriptors.snap.kernels.neighbors import densities, sort
from schnetpack_softadapt.descriptors.snap.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.snap.kernels.products import jacobian, values, vjp
from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["KernelEngine"]

_FLOAT = np.dtype(np.float64)

stamp_sources((sort, densities, values, vjp, jacobian), sorted(Path(__file__).parent.glob("*.py")))


class KernelEngine(CompiledEngine):
    """Bispectrum components by compiled loops; their products by arrays."""

    kernels = Kernels(sort, values, vjp, densities=densities)

    def __init__(self, descriptor: Bispectrum):
        super().__init__(descriptor, make_plan(descriptor))

    def values(self, pairs: CompiledPairs):
        b = self._components(pairs)
        if self.descriptor.quadraticflag:
            first, second, half = self._products()
            b = np.concatenate([b, half * b[:, first] * b[:, second]], axis=1)
        return pairs.of_type(b)

    def vjp(self, pairs: CompiledPairs, grad_g):
        grad_g = as_array(grad_g, _FLOAT)
        if self.descriptor.quadraticflag:
            b = self._components(pairs)
            n = b.shape[1]
            first, second, _ = self._products()
            matrix = np.zeros((len(b), n, n))
            matrix[:, first, second] = matrix[:, second, first] = grad_g[:, n:]
            grad_g = grad_g[:, :n] + np.einsum("nkm,nm->nk", matrix, b)
        return super().vjp(pairs, grad_g)

    def _by_pair(self, pairs: CompiledPairs, threads: int | None = None):
        by_pair = np.zeros((len(pairs.idx_j), 3, self.descriptor.n_components))
        self._call(jacobian, pairs, by_pair, threads=threads)
        if self.descriptor.quadraticflag:
            b = self._components(pairs)[pairs.idx_i, None]
            first, second, half = self._products()
            products = b[..., first] * by_pair[..., second] + b[..., second] * by_pair[..., first]
            by_pair = np.concatenate([by_pair, half * products], axis=2)
        return by_pair

    def _components(self, pairs: CompiledPairs) -> np.ndarray:
        return self._run(values, pairs, self.descriptor.n_components)

    def _products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two components of each product, and its factor."""
        first, second = np.triu_indices(self.descriptor.n_components)
        return first, second, np.where(first == second, 0.5, 1.0)
