"""The cluster expansion by compiled loops on the CPU: the fast engine.

All is computed in double precision; float32 tensors are converted on the way in and out.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from schnetpack_softadapt.descriptors.ace.kernels.jacobian import jacobian, jvp
from schnetpack_softadapt.descriptors.ace.kernels.neighbors import densities, sort
from schnetpack_softadapt.descriptors.ace.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.ace.kernels.products import values, vjp
from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion
from schnetpack_softadapt.descriptors.acsf.kernels.jacobian import blocks
from schnetpack_softadapt.descriptors.compiled import (
    as_array,
    call,
    stamp_sources,
)
from schnetpack_softadapt.descriptors.density_engine import DensityEngine, DensityPairs
from schnetpack_softadapt.descriptors.protocol import Jacobian
from schnetpack_softadapt.descriptors.snap.kernels import groups, vectors

__all__ = ["KernelEngine"]

_FLOAT = np.dtype(np.float64)

stamp_sources(
    (sort, densities, values, vjp, jvp, jacobian),
    [*sorted(Path(__file__).parent.glob("*.py")), groups.__file__, vectors.__file__],
)


class KernelEngine(DensityEngine):
    """The cluster expansion by compiled loops.

    Args:
        descriptor: the parameters.

    Raises:
        ImportError: numba is told not to compile.
    """

    def __init__(self, descriptor: ClusterExpansion):
        super().__init__(descriptor, make_plan(descriptor), sort, densities)

    def values(self, pairs: DensityPairs) -> Tensor:
        """See `Engine.values`; computed in float64, as all of the following."""
        g = np.empty((len(pairs.numbers), self.descriptor.n_columns))
        self._run(values, pairs.neighbors, g)
        return pairs.tensor(g)

    def vjp(self, pairs: DensityPairs, grad_g: Tensor | np.ndarray) -> Tensor:
        """See `Engine.vjp`."""
        grad_r = np.zeros((len(pairs.idx_j), 3))
        self._run(vjp, pairs.neighbors, as_array(grad_g, _FLOAT), grad_r)
        return pairs.tensor(grad_r)

    def jvp(self, pairs: DensityPairs, tangent: Tensor | np.ndarray) -> Tensor:
        """See `Engine.jvp`."""
        change = np.empty((len(pairs.numbers), self.descriptor.n_columns))
        self._run(jvp, pairs.neighbors, as_array(tangent, _FLOAT), change)
        return pairs.tensor(change)

    def jacobian(
        self, pairs: DensityPairs, dtype: type = np.float64, threads: int | None = None
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
