"""The cluster expansion in plain torch: any device, differentiable to any order."""

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.ace.coupling import Coupled, halves, real_clebsch_gordan
from schnetpack_softadapt.descriptors.ace.functions import Density
from schnetpack_softadapt.descriptors.ace.harmonics import spherical_harmonics
from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion
from schnetpack_softadapt.descriptors.ace.radial import radial_functions
from schnetpack_softadapt.descriptors.blockwise_reference import BlockwiseReference, NearPairs

__all__ = ["ReferenceEngine"]

_TINY_SQUARE = 1e-12  # Ang^2, keeps coinciding atoms finite


class ReferenceEngine(BlockwiseReference):
    """The formulas of `ClusterExpansion`, one after the other.

    Args:
        descriptor: the parameters.
        is_exact: values keep their graph.
    """

    def __init__(self, descriptor: ClusterExpansion, is_exact: bool = False):
        super().__init__(descriptor, is_exact)
        self._weights = torch.from_numpy(descriptor.weights.T.copy())  # (elements, C)

    def _block(self, pairs: NearPairs, r_ij: Tensor, start: int, stop: int, near: Tensor) -> Tensor:
        """Values (stop - start, D) of some atoms, `near` being their pairs."""
        d = self.descriptor
        vectors, idx_i = r_ij.index_select(0, near), pairs.idx_i[near] - start
        r = torch.sqrt((vectors * vectors).sum(1).clamp(min=_TINY_SQUARE))
        weights = self._weights.to(vectors)[pairs.rows[pairs.idx_j[near]]]  # (p, C)
        radial = radial_functions(d, r)  # (p, n)
        densities = []  # (atoms, C, n, 2 l + 1) of each l
        for level, y in enumerate(spherical_harmonics(vectors / r[:, None], d.top_level)):
            own = radial
            if d.radial_table is not None:
                bonds = pairs.rows[pairs.idx_i[near]], pairs.rows[pairs.idx_j[near]]
                table = torch.from_numpy(d.radial_table[level]).to(radial)[bonds]
                own = (table @ radial[..., None])[..., 0]
            terms = (weights[:, :, None] * own[:, None])[..., None] * y[:, None, None, :]
            densities.append(terms.new_zeros(stop - start, *terms.shape[1:]))
            densities[-1] = densities[-1].index_add(0, idx_i, terms)
        products: dict[Coupled, Tensor] = {}

        def density(x: Density) -> Tensor:
            return densities[x.l][:, x.channel, x.n - 1]

        def coupled(vector: Coupled) -> Tensor:
            """(atoms, 2 level + 1)."""
            if len(vector.parts) == 1:
                return density(vector.parts[0])
            if vector not in products:
                a, b = map(coupled, vector.factors())
                c = real_clebsch_gordan(a.shape[1] // 2, b.shape[1] // 2, vector.path[0])
                products[vector] = torch.einsum("na,nb,abm->nm", a, b, torch.from_numpy(c).to(a))
            return products[vector]

        columns = []
        for parts, level in d.functions:
            if len(parts) == 1:
                columns.append(density(parts[0])[:, 0])
                continue
            left, right = map(coupled, halves(parts, level))
            columns.append((left * right).sum(1))
        return torch.stack(columns, 1)
