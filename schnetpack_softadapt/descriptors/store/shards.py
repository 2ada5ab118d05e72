"""Parts of a descriptor store: which atoms they hold, how they are computed and written."""

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from schnetpack_softadapt.descriptors.store.files import Shard, StoreError, write_rows
from schnetpack_softadapt.descriptors.store.jacobian import (
    Columns,
    Part,
    count_blocks,
    jacobian_of_atoms,
)
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

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
        columns: those that blocks keep.
        shards: ranges of rows.
    """

    structures: Sequence
    structure_first: np.ndarray
    layout: object
    dtype: str
    backend: object
    columns: Columns = field(init=False)
    shards: list[tuple[int, int]] = field(init=False)

    def __post_init__(self):
        self.columns = Columns(self.layout)
        rows = max(_LEAST_ROWS, _SHARD_NUMBERS // self.layout.n_columns)
        self.shards = _plan(self.structure_first, rows)
        self._lock = threading.Lock()
        self._pairs: tuple[int, tuple] | None = None

    def pieces(self, shards: Iterable[tuple[int, int]]) -> Iterator[tuple]:
        """Yield each shard with its pieces: (index, structure, first atom, last + 1 atom)."""
        for a, b in shards:
            index = int(np.searchsorted(self.structure_first, a, side="right")) - 1
            pieces = []
            while index < len(self.structure_first) - 1 and self.structure_first[index] < b:
                low, high = (int(x) for x in self.structure_first[index : index + 2])
                if high > low:
                    piece = max(a, low) - low, min(b, high) - low
                    pieces.append((index, self.structures[index], *piece))
                index += 1
            yield (a, b), pieces

    def _part(self, index: int, structure, begin: int, end: int) -> Part:
        """The atoms begin..end of a structure with their neighbours."""
        numbers = np.asarray(structure.numbers)
        arguments = structure.positions, structure.cell, structure.pbc, self.layout.cutoff
        try:
            if end - begin == len(numbers):
                return Part(numbers, begin, end, neighbor_pairs(*arguments)[:3])
            with self._lock:  # the pieces of a large structure share its neighbour list
                if self._pairs is None or self._pairs[0] != index:
                    self._pairs = None
                    self._pairs = index, neighbor_pairs(*arguments)[:3]
                pairs = self._pairs[1]
        except ValueError as error:
            raise ValueError(f"structure {index}: {error}") from error
        low, high = np.searchsorted(pairs[0], [begin, end])
        return Part(numbers, begin, end, tuple(x[low:high] for x in pairs))

    def count(self, rows: tuple[int, int], pieces: list, path: Path) -> tuple[int, int]:
        """Write the numbers of blocks of a shard's atoms."""
        counts = [count_blocks(self._part(*piece)) for piece in pieces]
        write_rows(path, rows[0], np.concatenate(counts))
        return rows

    def compute(
        self, rows: tuple[int, int], pieces: list, block_first: np.ndarray, paths: dict[str, Path]
    ) -> Shard:
        """Compute a shard and write it to its place.

        Raises:
            ValueError: descriptors that are not finite.
            StoreError: the neighbours are not those that were counted.
        """
        parts = [self._part(*piece) for piece in pieces]
        jacobian = jacobian_of_atoms(parts, self.columns, self.backend, self.dtype)
        if not np.array_equal(jacobian.n_blocks, np.diff(block_first[rows[0] : rows[1] + 1])):
            folder = paths["G"].parent
            shutil.rmtree(folder)
            raise StoreError(f"{folder} was damaged; it is deleted now, please start again")
        arrays = {
            "G": jacobian.values,
            "dg_dstrain": jacobian.dg_dstrain,
            "block_atom": jacobian.block_atom,
            "block_columns": jacobian.block_columns,
            "dg_dr": jacobian.dg_dr,
        }
        if not all(np.isfinite(arrays[name]).all() for name in ("G", "dg_dstrain", "dg_dr")):
            raise ValueError(
                f"descriptors of structures {pieces[0][0]} to {pieces[-1][0]} are not finite: do"
                " two atoms of one of them lie in the same place?"
            )
        shard = Shard(rows, tuple(int(b) for b in block_first[list(rows)]), {})
        for name, path in paths.items():
            shard.crc[name] = write_rows(path, shard.range_of(name)[0], arrays[name])
        return shard


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
