"""Triples of a central atom and two of its neighbours, from a pair list in any order.

A structure has tens of times more triples than pairs, so they are never all built: `Triples`
numbers them and writes out any range of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NeighborTable", "Triples"]

# larger than every atomic number
_STRIDE = 128


class Triples:
    """Numbered triples; `pairs` writes out a range of them. Made by `NeighborTable.triples`.

    Args:
        order: (P,) the pairs in the order of the table.
        first_partner: (P,) position in `order` of the first partner of the pair at each position.
        n_partners: (P,) number of partners of each position; they follow each other.
    """

    def __init__(self, order: Tensor, first_partner: Tensor, n_partners: Tensor):
        self._order = order
        self._last = torch.cumsum(n_partners, 0)  # (P,)
        # partner = number of the triple + shift of its position
        self._shift = first_partner - (self._last - n_partners)

    @property
    def total(self) -> Tensor:
        """Number of triples, a tensor () on the device (reading it waits for the device)."""
        return self._last[-1] if len(self._last) else self._last.sum()

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Pairs (i, j) and (i, k) of the triples `start` to `stop`: two (stop - start,) tensors.

        Triples of one central atom follow each other.
        """
        number = torch.arange(start, stop, device=self._last.device)
        position = torch.searchsorted(self._last, number, right=True)
        return self._order[position], self._order[number + self._shift[position]]


class NeighborTable:
    """Pairs sorted by central atom, and by the element of the neighbour within each atom.

    Args:
        idx_i: (P,) central atom of each pair, int64, in any order.
        z_j: (P,) atomic number of the neighbour, int64.
        within: (P,) whether a pair counts; the others take part in no triple.
    """

    def __init__(self, idx_i: Tensor, z_j: Tensor, within: Tensor):
        key = torch.where(within, idx_i * _STRIDE + z_j, torch.iinfo(torch.int64).max)
        # stable, so that sums run in the same order every time
        self._key, self._order = torch.sort(key, stable=True)
        self._within = within[self._order]
        self._atom = self._key // _STRIDE
        self._z_j = self._key % _STRIDE

    def triples(self, is_center: Tensor, neighbors: Sequence[int] = ()) -> Triples:
        """The triples of some central atoms with neighbours of two elements, each once.

        Args:
            is_center: (P,) whether the central atom of each pair counts.
            neighbors: atomic numbers of the two neighbours; any two when empty.
        """
        starts = self._within & is_center[self._order]
        begin = torch.arange(1, len(self._key) + 1, device=self._key.device)
        if not neighbors:
            end = torch.searchsorted(self._key, self._atom * _STRIDE + (_STRIDE - 1), right=True)
        else:
            z_first, z_second = neighbors
            starts = starts & (self._z_j == z_first)
            key = self._atom * _STRIDE + z_second
            end = torch.searchsorted(self._key, key, right=True)
            if z_first != z_second:
                begin = torch.searchsorted(self._key, key)
        return Triples(self._order, begin, torch.where(starts, end - begin, 0))
