"""Batches that carry descriptors and their derivatives from a store on disk."""

import torch
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.ragged import joined_ranges

__all__ = ["DescriptorSource"]


class DescriptorSource:
    """What a data set hands from a store to its samples and batches.

    Args:
        store: a `DescriptorStore` of all structures of the database, in order.
        keep_neighbors: whether samples keep their neighbour lists; otherwise these are empty.
    """

    def __init__(self, store, keep_neighbors: bool = False):
        self._store = store
        self.keep_neighbors = keep_neighbors
        self._whole = store.tensors()

    def sample(self, index: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Keys to add to structure `index` of the database, with descriptors (n, D)."""
        first, last = self._store.structure_first[index : index + 2].tolist()
        return {
            keys.descriptors: torch.from_numpy(self._store.G[first:last].copy()),
            keys.store_rows: torch.arange(first, last),
            **self._neighbors(dtype),
        }

    def batch(self, batch: dict[str, torch.Tensor], gather: bool) -> dict[str, torch.Tensor]:
        """Keys to add to a batch of structures, whose indices in the database it holds.

        Args:
            batch: with `_idx` (B,), `_n_atoms` (B,) and positions.
            gather: copy the part of the derivatives that belongs to the batch. Needed wherever the
                batch leaves this process' memory: GPUs, pinned memory, loader workers. Otherwise
                the whole arrays are passed with the rows of the atoms, and nothing is copied.
        """
        rows = joined_ranges(
            self._store.structure_first[batch[properties.idx].numpy()],
            batch[properties.n_atoms].numpy(),
        )
        result = {
            keys.descriptors: torch.from_numpy(self._store.G.take(rows, axis=0)),
            **self._neighbors(batch[properties.R].dtype),
        }
        if gather:
            result.update(self._store.gather(rows))
        else:
            result.update(self._whole)
            result[keys.store_rows] = torch.from_numpy(rows)
        return result

    def _neighbors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """An empty neighbour list, over which Strain and PairwiseDistances run."""
        if self.keep_neighbors:
            return {}
        return {
            properties.idx_i: torch.zeros(0, dtype=torch.int64),
            properties.idx_j: torch.zeros(0, dtype=torch.int64),
            properties.offsets: torch.zeros(0, 3, dtype=dtype),
        }
