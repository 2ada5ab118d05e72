"""Parts of a descriptor store: which atoms they hold, how they are computed and written."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from schnetpack_softadapt.descriptors.jacobian import (
    block_columns,
    count_blocks,
    jacobian_of_atoms,
)
from schnetpack_softadapt.descriptors.store_files import Shard, StoreError, write_rows

__all__ = ["ShardWorker", "array_shapes", "in_parallel"]

#: numbers of G in a shard; with 50 neighbours, 20 MB of float64 in dg_dr
_SHARD_NUMBERS = 16_000
_LEAST_ROWS = 64


def array_shapes(n_rows: int, n_blocks: int, n_columns: int, width: int, dtype: str) -> dict:
    """Shape and dtype of each array that shards write."""
    return {
        "G": ((n_rows, n_columns), dtype),
        "dg_dstrain": ((n_rows, 6, n_columns), dtype),
        "block_atom": ((n_blocks,), "int32"),
        "block_columns": ((n_blocks,), "int16"),
        "dg_dr": ((n_blocks, 3, width), dtype),
    }


@dataclass
class ShardWorker:
    """Counts neighbours and computes Jacobians, shard by shard; called by several threads.

    Attributes:
        structures: with `numbers`, `positions`, `cell`, `pbc`; fetched by one thread only.
        structure_first: (S + 1,) first row of each structure.
        layout: of the descriptors.
        dtype: of the values on disk.
        backend: see `jacobian.jacobian_of_atoms`.
        columns: (n, W) lists of columns, see `jacobian.block_columns`.
        shards: ranges of rows.
    """

    structures: Sequence
    structure_first: np.ndarray
    layout: object
    dtype: str
    backend: object
    columns: np.ndarray = field(init=False)
    shards: list[tuple[int, int]] = field(init=False)

    def __post_init__(self):
        self.columns, list_of = block_columns(self.layout)
        self._list_of = np.zeros((119, 119), np.int16)
        for pair, index in list_of.items():
            self._list_of[pair] = index
        rows = max(_LEAST_ROWS, _SHARD_NUMBERS // self.layout.n_columns)
        self.shards = _plan(self.structure_first, rows)

    def parts(self, shards: Iterable[tuple[int, int]]) -> Iterator[tuple]:
        """Yield each shard with its parts (index, structure, first atom, last + 1 atom)."""
        for a, b in shards:
            index = int(np.searchsorted(self.structure_first, a, side="right")) - 1
            parts = []
            while index < len(self.structure_first) - 1 and self.structure_first[index] < b:
                low, high = (int(x) for x in self.structure_first[index : index + 2])
                if high > low:
                    part = max(a, low) - low, min(b, high) - low
                    parts.append((index, self.structures[index], *part))
                index += 1
            yield (a, b), parts

    def count(self, rows: tuple[int, int], parts: list, path: Path) -> tuple[int, int]:
        """Write the numbers of blocks of a shard's atoms."""
        cutoff = self.layout.cutoff
        counts = [_named(index, count_blocks, s, cutoff, a, b) for index, s, a, b in parts]
        write_rows(path, rows[0], np.concatenate(counts))
        return rows

    def compute(
        self, rows: tuple[int, int], parts: list, block_first: np.ndarray, paths: dict[str, Path]
    ) -> Shard:
        """Compute a shard and write it to its place.

        Raises:
            ValueError: descriptors that are not finite.
            StoreError: the neighbours are not those that were counted.
        """
        jacobian = _named(
            parts[0][0],
            jacobian_of_atoms,
            [part[1:] for part in parts],
            self.layout.cutoff,
            self.backend,
        )
        if not np.array_equal(jacobian.n_blocks, np.diff(block_first[rows[0] : rows[1] + 1])):
            folder = paths["G"].parent
            shutil.rmtree(folder)
            raise StoreError(f"{folder} was damaged; it is deleted now, please start again")
        which = self._list_of[jacobian.block_pair[:, 0], jacobian.block_pair[:, 1]]
        arrays = {
            "G": jacobian.values.astype(self.dtype),
            "dg_dstrain": jacobian.dg_dstrain.astype(self.dtype),
            "block_atom": jacobian.block_atom,
            "block_columns": which,
            "dg_dr": self._packed(jacobian.dg_dr, which),
        }
        if not all(np.isfinite(arrays[name]).all() for name in ("G", "dg_dstrain", "dg_dr")):
            raise ValueError(
                f"descriptors in the structures {parts[0][0]} to {parts[-1][0]} are not finite: do"
                " two atoms of one of them lie in the same place?"
            )
        shard = Shard(rows, tuple(int(b) for b in block_first[list(rows)]), {})
        for name, path in paths.items():
            shard.crc[name] = write_rows(path, shard.range_of(name)[0], arrays[name])
        return shard

    def _packed(self, dg_dr: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The columns of each block that its pair of elements can fill, (P, 3, W)."""
        n_columns = dg_dr.shape[2]
        if np.array_equal(self.columns, np.arange(n_columns)[None]):
            return dg_dr.astype(self.dtype)
        packed = np.empty((*dg_dr.shape[:2], self.columns.shape[1]), self.dtype)
        for k, columns in enumerate(self.columns):
            chosen = which == k
            part = dg_dr[chosen]
            packed[chosen] = part[:, :, columns]
            part[:, :, columns] = 0.0
            if part.any():
                raise RuntimeError("a descriptor depends on an element that its layout denies")
        return packed


def _plan(structure_first: np.ndarray, rows: int) -> list[tuple[int, int]]:
    """Ranges of at most `rows` atoms: whole structures, and pieces of larger ones."""
    shards, begin = [], 0
    for first, last in pairwise(structure_first.tolist()):
        if last - begin > rows and first > begin:
            shards.append((begin, first))
            begin = first
        while last - begin > rows:
            shards.append((begin, begin + rows))
            begin += rows
    if structure_first[-1] > begin:
        shards.append((begin, int(structure_first[-1])))
    return shards


def _named(index: int, function: Callable, *args):
    """Call a function; errors say at which structure they happened."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"structure {index} or one soon after it: {error}") from error


def in_parallel(work: Iterable[Callable], n_jobs: int) -> Iterator:
    """Yield the results of callables run by threads, as they come; few are held at a time."""
    if n_jobs <= 1:
        for job in work:
            yield job()
        return
    with ThreadPoolExecutor(n_jobs) as pool:
        running = set()
        try:
            for job in work:
                running.add(pool.submit(job))
                if len(running) > n_jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
