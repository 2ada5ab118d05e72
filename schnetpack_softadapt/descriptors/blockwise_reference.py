"""What reference engines share that do some atoms after the other: any device, any derivative."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine

__all__ = ["BlockwiseReference", "NearPairs"]

_ATOMS = 128  # done at a time


class NearPairs(NamedTuple):
    """A pair list without what is beyond the cutoff, sorted by atom."""

    r_ij: Tensor  # this and the next three: see `Pairs`
    idx_i: Tensor
    idx_j: Tensor
    numbers: Tensor
    rows: Tensor  # (N,) element of each atom
    near: Tensor  # (n_near,) pairs within their cutoff, sorted by idx_i


class BlockwiseReference(Engine):
    """Base of engines that have `_block`, the values of some atoms; derivatives are autograd's.

    Args:
        is_exact: values keep their graph.
    """

    def __init__(self, descriptor: Descriptor, is_exact: bool = False):
        self.descriptor = descriptor
        self.is_exact = is_exact
        self._index = ElementIndex(descriptor.elements)

    def _cutoffs(self, rows_i: Tensor, rows_j: Tensor, like: Tensor) -> Tensor | float:
        """Of pairs of elements (n_pairs,), Ang, in the type of another tensor."""
        return self.descriptor.cutoff

    def _block(self, pairs: NearPairs, r_ij: Tensor, start: int, stop: int, near: Tensor) -> Tensor:
        """Values (stop - start, D) of the atoms from start to stop, whose pairs are `near`."""
        raise NotImplementedError

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> NearPairs:
        pairs = super().prepare(r_ij, idx_i, idx_j, numbers)
        with torch.no_grad():
            rows = self._index.rows.to(pairs.numbers.device)[pairs.numbers.long()]
            idx_i, idx_j = pairs.idx_i.long(), pairs.idx_j.long()
            cutoff = self._cutoffs(rows[idx_i], rows[idx_j], pairs.r_ij)
            far = torch.linalg.norm(pairs.r_ij.detach(), dim=1) >= cutoff  # a NaN stays in the sum
            order = torch.argsort(idx_i, stable=True)
            near = order[~far[order]]
        return NearPairs(pairs.r_ij, idx_i, idx_j, pairs.numbers, rows, near)

    def values(self, pairs: NearPairs) -> Tensor:
        """See `Engine.values`; differentiable by `pairs.r_ij` to any order."""
        blocks = [self._block(pairs, pairs.r_ij, *block) for block in self._blocks(pairs)]
        return torch.cat(blocks) if blocks else pairs.r_ij.new_zeros(0, self.descriptor.n_columns)

    def vjp(self, pairs: NearPairs, grad_g: Tensor) -> Tensor:
        leaf, grad_r = pairs.r_ij.detach().requires_grad_(), torch.zeros_like(pairs.r_ij)
        for start, stop, near in self._blocks(pairs):
            with torch.enable_grad():
                values = self._block(pairs, leaf, start, stop, near)
            if values.requires_grad:
                grad_r += torch.autograd.grad(values, leaf, grad_g[start:stop].detach())[0]
        return grad_r

    def jvp(self, pairs: NearPairs, tangent: Tensor) -> Tensor:
        """See `Engine.jvp`: the vector-Jacobian product is linear, this is its transpose."""
        leaf, changes = pairs.r_ij.detach().requires_grad_(), []
        for block in self._blocks(pairs):
            with torch.enable_grad():
                values = self._block(pairs, leaf, *block)
                u = torch.zeros_like(values, requires_grad=True)
                if values.requires_grad:
                    (product,) = torch.autograd.grad(values, leaf, u, create_graph=True)
                    changes += torch.autograd.grad(product, u, tangent.detach())
                else:
                    changes.append(torch.zeros_like(values))
        return torch.cat(changes) if changes else leaf.new_zeros(0, self.descriptor.n_columns)

    def _by_pair(self, pairs: NearPairs, threads: int | None = None) -> Tensor:
        leaf = pairs.r_ij.detach().requires_grad_()
        by_pair = leaf.new_zeros(*leaf.shape, self.descriptor.n_columns)
        for block in self._blocks(pairs):
            with torch.enable_grad():
                totals = self._block(pairs, leaf, *block).sum(0)
                for k, total in enumerate(totals if totals.requires_grad else ()):
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
