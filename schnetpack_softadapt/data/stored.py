"""Batches that carry descriptors and their derivatives from a store on disk."""

import warnings

import numpy as np
import torch
from schnetpack import properties

from .. import properties as keys
from .packed import joined_ranges

__all__ = ["StoredDescriptors"]


def _as_array(array) -> np.ndarray:
    """The same memory, which may be a map of a file, as a plain array."""
    return array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor."""
    with warnings.catch_warnings():
        # torch has no read-only tensors; nobody writes into these
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


class StoredDescriptors:
    """What a data set hands from a `descriptors.store.DescriptorStore` to its samples and batches.

    Args:
        store: its arrays are named in `descriptors.store`; row r of G belongs to atom
            r - structure_first[s] of the structure s of the database.
    """

    def __init__(self, store):
        self.source = store
        self._values = _as_array(store.G)  # (rows, D)
        self._dg_dstrain = _as_array(store.dg_dstrain)  # (rows, 6, D)
        self._block_first = _as_array(store.block_first)  # (rows + 1,)
        self._block_atom = _as_array(store.block_atom)  # (blocks,)
        self._block_columns = _as_array(store.block_columns)  # (blocks,)
        self._columns = _as_array(store.columns)  # (n, W)
        self._dg_dr = _as_array(store.dg_dr)  # (blocks, 3, W)
        self._structure_first = _as_array(store.structure_first)  # (S + 1,)
        self._whole = {
            keys.store_dg_dstrain: _as_tensor(self._dg_dstrain),
            keys.store_block_first: _as_tensor(self._block_first),
            keys.store_block_atom: _as_tensor(self._block_atom),
            keys.store_block_columns: _as_tensor(self._block_columns),
            keys.store_columns: _as_tensor(self._columns),
            keys.store_dg_dr: _as_tensor(self._dg_dr),
        }

    def sample(self, index: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Descriptors (n, D) of structure `index` of the database and an empty neighbour list."""
        first, last = self._structure_first[index : index + 2].tolist()
        return {
            keys.descriptors: torch.from_numpy(self._values[first:last].copy()),
            keys.store_rows: torch.arange(first, last),
            **_no_neighbors(dtype),
        }

    def batch(self, batch: dict[str, torch.Tensor], gather: bool) -> dict[str, torch.Tensor]:
        """Keys to add to a batch of structures, whose indices in the database it holds.

        Args:
            batch: with `_idx` (B,), `_n_atoms` (B,) and positions.
            gather: copy the part of the arrays that belongs to the batch. Needed wherever the batch
                leaves this process' memory: GPUs, pinned memory, loader workers. Otherwise the
                arrays are passed whole and nothing is copied.
        """
        rows = joined_ranges(
            self._structure_first[batch[properties.idx].numpy()],
            batch[properties.n_atoms].numpy(),
        )
        result = {
            keys.descriptors: torch.from_numpy(self._values.take(rows, axis=0)),
            **_no_neighbors(batch[properties.R].dtype),
        }
        if not gather:
            return {**result, keys.store_rows: torch.from_numpy(rows), **self._whole}
        start = self._block_first[rows]
        n_blocks = self._block_first[rows + 1] - start  # (N,)
        blocks = joined_ranges(start, n_blocks)
        arrays = {
            # no store_rows: the arrays hold this batch and nothing else
            keys.store_dg_dstrain: self._dg_dstrain.take(rows, axis=0),
            keys.store_block_first: np.concatenate([[0], n_blocks.cumsum()]),
            keys.store_block_atom: self._block_atom.take(blocks),
            keys.store_block_columns: self._block_columns.take(blocks),
            keys.store_columns: self._columns.copy(),
            keys.store_dg_dr: self._dg_dr.take(blocks, axis=0),
        }
        return {**result, **{key: torch.from_numpy(array) for key, array in arrays.items()}}


def _no_neighbors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Empty neighbour list, so that SchNetPack's own modules run over it."""
    return {
        properties.idx_i: torch.zeros(0, dtype=torch.int64),
        properties.idx_j: torch.zeros(0, dtype=torch.int64),
        properties.offsets: torch.zeros(0, 3, dtype=dtype),
    }
