"""The cluster expansion in plain torch: any device, differentiable to any order."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.ace.coupling import real_clebsch_gordan
from schnetpack_softadapt.descriptors.ace.functions import Density
from schnetpack_softadapt.descriptors.ace.harmonics import spherical_harmonics
from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion
from schnetpack_softadapt.descriptors.ace.radial import radial_functions
from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.protocol import Engine

__all__ = ["ReferenceEngine"]

_TINY_SQUARE = 1e-12  # Ang^2, keeps coinciding atoms finite
_ATOMS = 128  # done at a time


class NearPairs(NamedTuple):
    """A pair list without what is beyond the cutoff, sorted by atom.

    Attributes:
        r_ij, idx_i, idx_j, numbers: see `Pairs`, as given.
        rows: (N,) element of each atom.
        near: (n_near,) pairs within the cutoff, sorted by idx_i.
    """

    r_ij: Tensor
    idx_i: Tensor
    idx_j: Tensor
    numbers: Tensor
    rows: Tensor
    near: Tensor


class ReferenceEngine(Engine):
    """The formulas of `ClusterExpansion`, one after the other.

    Args:
        descriptor: the parameters.
        is_exact: values keep their graph.
    """

    def __init__(self, descriptor: ClusterExpansion, is_exact: bool = False):
        self.descriptor = descriptor
        self.is_exact = is_exact
        self._index = ElementIndex(descriptor.elements)
        self._weights = torch.from_numpy(descriptor.weights.T.copy())  # (elements, C)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> NearPairs:
        """See `Engine.prepare`."""
        pairs = super().prepare(r_ij, idx_i, idx_j, numbers)
        with torch.no_grad():
            rows = self._index.rows.to(pairs.numbers.device)[pairs.numbers.long()]
            idx_i, idx_j = pairs.idx_i.long(), pairs.idx_j.long()
            # a NaN stays in the sum
            far = torch.linalg.norm(pairs.r_ij.detach(), dim=1) >= self.descriptor.cutoff
            order = torch.argsort(idx_i, stable=True)
            near = order[~far[order]]
        return NearPairs(pairs.r_ij, idx_i, idx_j, pairs.numbers, rows, near)

    def values(self, pairs: NearPairs) -> Tensor:
        """See `Engine.values`; differentiable by `pairs.r_ij` to any order."""
        blocks = [self._block(pairs, pairs.r_ij, *block) for block in self._blocks(pairs)]
        return torch.cat(blocks) if blocks else pairs.r_ij.new_zeros(0, self.descriptor.n_columns)

    def vjp(self, pairs: NearPairs, grad_g: Tensor) -> Tensor:
        """See `Engine.vjp`."""
        leaf, grad_r = pairs.r_ij.detach().requires_grad_(), torch.zeros_like(pairs.r_ij)
        for start, stop, near in self._blocks(pairs):
            with torch.enable_grad():
                values = self._block(pairs, leaf, start, stop, near)
            grad_r += torch.autograd.grad(values, leaf, grad_g[start:stop].detach())[0]
        return grad_r

    def jvp(self, pairs: NearPairs, tangent: Tensor) -> Tensor:
        """See `Engine.jvp`: the vector-Jacobian product is linear, this is its transpose."""
        leaf, changes = pairs.r_ij.detach().requires_grad_(), []
        for block in self._blocks(pairs):
            with torch.enable_grad():
                values = self._block(pairs, leaf, *block)
                u = torch.zeros_like(values, requires_grad=True)
                (product,) = torch.autograd.grad(values, leaf, u, create_graph=True)
                changes += torch.autograd.grad(product, u, tangent.detach())
        return torch.cat(changes) if changes else leaf.new_zeros(0, self.descriptor.n_columns)

    def _by_pair(self, pairs: NearPairs) -> Tensor:
        leaf = pairs.r_ij.detach().requires_grad_()
        by_pair = leaf.new_zeros(*leaf.shape, self.descriptor.n_columns)
        for block in self._blocks(pairs):
            with torch.enable_grad():
                for k, total in enumerate(self._block(pairs, leaf, *block).sum(0)):
                    by_pair[..., k] += torch.autograd.grad(total, leaf, retain_graph=True)[0]
        return by_pair

    def _blocks(self, pairs: NearPairs) -> Iterator[tuple[int, int, Tensor]]:
        """First atom, end, and pairs of some atoms after the other."""
        n_atoms = len(pairs.numbers)
        ends = [*range(0, n_atoms, _ATOMS), n_atoms]
        bounds = torch.searchsorted(
            pairs.idx_i[pairs.near], torch.tensor(ends, device=pairs.idx_i.device)
        ).tolist()
        for k in range(len(ends) - 1):
            yield ends[k], ends[k + 1], pairs.near[bounds[k] : bounds[k + 1]]

    def _block(self, pairs: NearPairs, r_ij: Tensor, start: int, stop: int, near: Tensor) -> Tensor:
        """Values (stop - start, D) of some atoms, `near` being their pairs."""
        d = self.descriptor
        vectors, idx_i = r_ij.index_select(0, near), pairs.idx_i[near] - start
        r = torch.sqrt((vectors * vectors).sum(1).clamp(min=_TINY_SQUARE))
        weights = self._weights.to(vectors)[pairs.rows[pairs.idx_j[near]]]  # (p, C)
        radial = weights[:, :, None] * radial_functions(d, r)[:, None]  # (p, C, n)
        densities = []  # (atoms, C, n, 2 l + 1) of each l
        for y in spherical_harmonics(vectors / r[:, None], d.top_level):
            terms = radial[..., None] * y[:, None, None, :]
            densities.append(terms.new_zeros(stop - start, *terms.shape[1:]))
            densities[-1] = densities[-1].index_add(0, idx_i, terms)
        pairs_of: dict[tuple[Density, Density, int], Tensor] = {}

        def density(x: Density) -> Tensor:
            return densities[x.l][:, x.channel, x.n - 1]

        def coupled(parts: tuple[Density, ...], level: int) -> Tensor:
            """(atoms, 2 level + 1)."""
            if len(parts) == 1:
                return density(parts[0])
            if (*parts, level) not in pairs_of:
                c = real_clebsch_gordan(parts[0].l, parts[1].l, level)
                a, b = map(density, parts)
                product = torch.einsum("na,nb,abm->nm", a, b, torch.from_numpy(c).to(a))
                pairs_of[(*parts, level)] = product
            return pairs_of[(*parts, level)]

        columns = []
        for parts, level in d.functions:
            if len(parts) == 1:
                columns.append(density(parts[0])[:, 0])
                continue
            cut = 1 if len(parts) == 2 else 2
            left, right = coupled(parts[:cut], level), coupled(parts[cut:], level)
            columns.append((left * right).sum(1))
        return torch.stack(columns, 1)
