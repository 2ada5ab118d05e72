"""Samples of many structures as ragged arrays, one per key, and batches cut out of them.

B: structures in the batch, S: structures in all. Values of structure `s` are the rows
`first[s]:first[s + 1]` of its key, where `first` (S + 1,) depends on whether the key has a row per
structure, per atom, per pair of neighbours or anything else.
"""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from schnetpack import properties

__all__ = ["RaggedSamples", "joined_ranges"]

#: indices of atoms, shifted in a batch by the atoms that stand before the structure
ATOM_INDICES = (properties.idx_i, properties.idx_j, properties.idx_i_triples)

#: indices of neighbour pairs, shifted by the pairs that stand before the structure
PAIR_INDICES = (properties.idx_j_triples, properties.idx_k_triples)


class RaggedSamples:
    """Samples as SchNetPack's data sets give them; immutable once made.

    What `sample` and `batch` give is copied: models set `requires_grad` on positions, strain cells
    and overwrite keys, which must not reach the next epoch.

    Args:
        samples: dictionaries of tensors with the same keys and the number of atoms (1,) among them.

    Raises:
        ValueError: the samples differ in their keys or shapes, naming the key.
    """

    def __init__(self, samples: Iterable[dict[str, torch.Tensor]]):
        columns: dict[str, list[torch.Tensor]] = {}
        n_samples = 0
        for sample in samples:
            if n_samples and sample.keys() != columns.keys():
                differing = sorted(sample.keys() ^ columns.keys())
                raise ValueError(f"structure {n_samples} differs from the others in {differing}")
            for key, value in sample.items():
                columns.setdefault(key, []).append(value)
            n_samples += 1
        self._n_samples = n_samples
        self._firsts: list[np.ndarray] = []  # distinct (S + 1,) row pointers
        self._first_of: dict[str, int] = {}  # which of them each key uses
        self._arrays: dict[str, np.ndarray] = {}
        for key in list(columns):
            values = columns.pop(key)  # freed while the next key is joined
            try:
                self._arrays[key] = torch.cat(values).numpy()
            except RuntimeError as error:
                raise ValueError(f"{key!r} differs in shape between structures: {error}") from error
            first = np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int64)
            same = (k for k, known in enumerate(self._firsts) if np.array_equal(known, first))
            self._first_of[key] = next(same, len(self._firsts))
            if self._first_of[key] == len(self._firsts):
                self._firsts.append(first)

    def __len__(self):
        return self._n_samples

    def __contains__(self, key):
        return key in self._arrays

    @property
    def keys(self) -> list[str]:
        return list(self._arrays)

    def values(self, key: str) -> np.ndarray:
        """All rows of a key, not copied: do not write into it."""
        return self._arrays[key]

    def first(self, key: str) -> np.ndarray:
        """First row of each structure in `values(key)`, (S + 1,)."""
        return self._firsts[self._first_of[key]]

    def rows(self, key: str, index: int) -> np.ndarray:
        """Rows of one structure, not copied."""
        first = self.first(key)
        return self._arrays[key][first[index] : first[index + 1]]

    def joined(self, values: dict[str, np.ndarray]) -> "RaggedSamples":
        """The same samples with more keys, whose rows are those of structures or of atoms."""
        result = copy.copy(self)
        result._arrays, result._first_of = {**self._arrays, **values}, dict(self._first_of)
        for key, array in values.items():
            rows = (properties.n_atoms, properties.Z)
            result._first_of[key] = next(
                self._first_of[k] for k in rows if len(self._arrays[k]) == len(array)
            )
        return result

    def sample(self, index: int) -> dict[str, torch.Tensor]:
        """The sample of one structure, copied."""
        return {key: torch.from_numpy(self.rows(key, index).copy()) for key in self._arrays}

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Batch of the structures `indices` (B,), with the keys of SchNetPack's own loader."""
        # numpy throughout: its calls cost a fifth of torch's, which is most of a small batch
        indices = np.asarray(indices)
        counts, rows = [], []
        for first in self._firsts:
            start = first[indices]
            counts.append(first[indices + 1] - start)
            rows.append(joined_ranges(start, counts[-1]))
        batch = {}
        for key, array in self._arrays.items():
            name = f"{key}_local" if key in ATOM_INDICES else key
            batch[name] = array.take(rows[self._first_of[key]], axis=0)
        n_atoms = batch[properties.n_atoms]
        batch[properties.idx_m] = np.arange(len(indices)).repeat(n_atoms)
        atoms_before = n_atoms.cumsum() - n_atoms
        shifts = {}  # by row pointers: both ends of the pairs are shifted alike
        for key in ATOM_INDICES:
            if key in self._arrays:
                k = self._first_of[key]
                if k not in shifts:
                    shifts[k] = atoms_before.repeat(counts[k])
                batch[key] = batch[f"{key}_local"] + shifts[k]
        for key in PAIR_INDICES:
            if key in self._arrays:
                pairs = counts[self._first_of[properties.idx_j]]
                batch[key] += (pairs.cumsum() - pairs).repeat(counts[self._first_of[key]])
        return {key: torch.from_numpy(array) for key, array in batch.items()}


def joined_ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`count[0]` consecutive numbers from `start[0]` on, then those from `start[1]`, and so on."""
    end = count.cumsum()
    result = (start - end + count).repeat(count)
    result += np.arange(len(result))
    return result
