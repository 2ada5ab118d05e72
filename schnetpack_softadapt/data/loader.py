"""Batches through torch's DataLoader: reproducible order, no work per structure."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from schnetpack.data import AtomsLoader
from torch.utils.data import Dataset, RandomSampler

from schnetpack_softadapt.data.dataset import InMemoryAtomsData

__all__ = ["BatchSource", "EpochSampler", "InMemoryLoader", "as_batch"]


class EpochSampler(RandomSampler):
    """A random order that follows from seed and epoch alone.

    torch's RandomSampler draws from the global generator, whose state is another one after a
    resume. The order is that of `torch.utils.data.DistributedSampler`, which Lightning puts in its
    place under DDP: k ranks with batches of b see the same batches as one rank with k b.

    Args:
        data_source: anything with a length.
        seed: that of `seed_everything` when not given.
    """

    def __init__(self, data_source: Dataset, seed: int | None = None):
        super().__init__(data_source)
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed() % 2**32))
        self.seed = seed
        self.epoch = -1
        self._was_told = False

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch comes next; without it they are counted."""
        self.epoch = epoch
        self._was_told = True

    def __iter__(self) -> Iterator[int]:
        if not self._was_told:
            self.epoch += 1
        self._was_told = False
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        yield from torch.randperm(len(self.data_source), generator=generator).tolist()


class BatchSource(Dataset):
    """A data set whose batches are cut out of memory in one go.

    Args:
        dataset: where they are cut from.
        gather: whether batches carry their own part of a descriptor store, see
            `InMemoryAtomsData.batch`.
    """

    def __init__(self, dataset: InMemoryAtomsData):
        self.dataset, self.gather = dataset, False

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        # torch's fetcher calls this with the indices of a whole batch
        return self.dataset.batch(indices, self.gather)


class InMemoryLoader(AtomsLoader):
    """Loader over a `BatchSource`; prepares the data once, before worker processes are made.

    Batches whose descriptors are computed are made in a thread while the step before them runs.
    """

    def __iter__(self):
        dataset = self.dataset.dataset
        dataset.prepare()
        batches = super().__iter__()
        ahead = dataset.store is not None and dataset.store.in_advance and self.num_workers == 0
        return _ahead(batches) if ahead else batches


def _ahead(batches: Iterator, n: int = 2) -> Iterator:
    """The same batches, n of them made in advance by another thread."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(n))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch


def as_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collation of what `BatchSource` gives: it is a batch already."""
    return batch
