"""Batches that carry descriptors and their derivatives, from a store on disk or computed anew."""

import numpy as np
import torch
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.ragged import RaggedSamples, joined_ranges
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.descriptors.protocol import Descriptor

__all__ = ["ComputedSource", "DescriptorSource", "Geometries", "StoreSource"]


class DescriptorSource:
    """What a data set hands to its samples and batches.

    Attributes:
        keep_neighbors: whether samples keep their neighbour lists; otherwise these are empty.
        in_advance: whether a batch costs so much that it is worth making while another is used.
    """

    keep_neighbors: bool
    in_advance: bool

    def no_neighbors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """An empty neighbour list, over which Strain and PairwiseDistances run, if none is kept."""
        if self.keep_neighbors:
            return {}
        return {
            properties.idx_i: torch.zeros(0, dtype=torch.int64),
            properties.idx_j: torch.zeros(0, dtype=torch.int64),
            properties.offsets: torch.zeros(0, 3, dtype=dtype),
        }

    def sample(self, index: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Keys to add to structure `index` of the database, with descriptors (n, D)."""
        raise NotImplementedError

    def batch(self, batch: dict[str, torch.Tensor], gather: bool) -> dict[str, torch.Tensor]:
        """Keys to add to a batch of structures, whose indices in the database it holds.

        Args:
            batch: with `_idx` (B,), `_n_atoms` (B,) and positions.
            gather: copy the part of the derivatives that belongs to the batch. Needed wherever the
                batch leaves this process' memory: GPUs, pinned memory, loader workers. Otherwise
                the whole arrays may be passed with the rows of the atoms, and nothing is copied.
        """
        raise NotImplementedError


class StoreSource(DescriptorSource):
    """Reads a store; see `DescriptorSource`.

    Args:
        store: a `DescriptorStore` of all structures of the database, in order.
        keep_neighbors: see `DescriptorSource`.
    """

    in_advance = False

    def __init__(self, store, keep_neighbors: bool = False):
        self._store = store
        self.keep_neighbors = keep_neighbors
        self._whole = store.tensors()

    def sample(self, index, dtype):
        first, last = self._store.structure_first[index : index + 2].tolist()
        return {
            keys.descriptors: torch.from_numpy(self._store.G[first:last].copy()),
            keys.store_rows: torch.arange(first, last),
            **self.no_neighbors(dtype),
        }

    def batch(self, batch, gather):
        first = self._store.structure_first[batch[properties.idx].numpy()]
        rows = joined_ranges(first, batch[properties.n_atoms].numpy())
        if gather:
            derivatives = self._store.gather(rows)
        else:
            derivatives = {**self._whole, keys.store_rows: torch.from_numpy(rows)}
        return {
            keys.descriptors: torch.from_numpy(self._store.G.take(rows, axis=0)),
            **self.no_neighbors(batch[properties.R].dtype),
            **derivatives,
        }


class ComputedSource(DescriptorSource):
    """Computes for every batch what a store would hold of it; see `DescriptorSource`.

    The memory is that of a few batches.

    Args:
        structures: all structures of the database, in order.
        descriptor: what is computed.
        keep_neighbors: see `DescriptorSource`.
        dtype: "float32" or "float64".
        jacobian: whether batches carry the derivatives. They cost three times as much as the two
            products that first-order training needs; without them batches carry all pairs of
            neighbours, and the model computes the descriptors.
    """

    in_advance = True

    def __init__(
        self,
        structures: "Geometries",  # all structures of the database, in order
        descriptor: Descriptor,  # what is computed
        keep_neighbors: bool = False,
        dtype: str = "float32",  # "float32" or "float64"
        # whether batches carry the derivatives. They cost three times as much as the two products
        # that first-order training needs; without them batches carry all pairs of neighbours, and
        # the model computes the descriptors.
        jacobian: bool = True,
    ):
        # compiled kernels, only where needed
        from schnetpack_softadapt.descriptors.store.build import Columns

        self.structures, self.keep_neighbors, self.jacobian = structures, keep_neighbors, jacobian
        self._dtype = dtype
        self._engine, self._columns = descriptor.engine("cpu"), Columns(descriptor)

    def sample(self, index, dtype):
        s = self.structures[index]
        i, j, r_ij = self._pairs(s)
        values = torch.as_tensor(self._engine.values(self._engine.prepare(r_ij, i, j, s.numbers)))
        return {
            keys.descriptors: values.to(getattr(torch, self._dtype)),
            **self.no_neighbors(dtype),
        }

    def batch(self, batch, gather):
        chosen = [self.structures[k] for k in batch[properties.idx].tolist()]
        if self.jacobian:
            return {**self._arrays(chosen), **self.no_neighbors(batch[properties.R].dtype)}
        found, n = [], 0
        for s in chosen:
            i, j, r_ij = self._pairs(s)
            found.append((i + n, j + n, r_ij))
            n += len(s.numbers)
        i, j, r_ij = (torch.from_numpy(np.concatenate(x)) for x in zip(*found, strict=True))
        # the transforms may have shifted atoms
        offsets = r_ij - (batch[properties.R][j].double() - batch[properties.R][i].double())
        return {
            properties.idx_i: i,
            properties.idx_j: j,
            properties.offsets: offsets.to(batch[properties.R].dtype),
        }

    def _arrays(self, chosen: list[Structure]) -> dict[str, torch.Tensor]:
        from schnetpack_softadapt.descriptors.compiled import n_threads
        from schnetpack_softadapt.descriptors.store.build import batch_arrays
        from schnetpack_softadapt.descriptors.store.store import in_batch

        found = batch_arrays(chosen, self._engine, self._columns, self._dtype, n_threads())
        return {keys.descriptors: torch.from_numpy(found.pop("G")), **in_batch(found)}

    def _pairs(self, s: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

        return neighbor_pairs(s.positions, s.cell, s.pbc, self._engine.descriptor.cutoff)[:3]


class Geometries:
    """The structures of a database as a sequence, without labels and without copies.

    Args:
        raw: samples of the database.
    """

    def __init__(self, raw: RaggedSamples):
        self._raw = raw

    def __len__(self):
        return len(self._raw)

    def __getitem__(self, index: int) -> Structure:
        numbers, positions, cell, pbc = (
            self._raw.rows(key, index)
            for key in (properties.Z, properties.R, properties.cell, properties.pbc)
        )
        return Structure(numbers, positions, cell[0], pbc)
