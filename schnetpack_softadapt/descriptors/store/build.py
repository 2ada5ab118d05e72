"""Computes a descriptor store: in parallel, by many ranks if need be, going on where a kill hit.

The neighbours of all atoms are counted first, so that every array is created once with its final
size and each shard is written to its place. Memory holds a few shards, whatever the size of the
store. A finished shard is noted in a journal with its checksum; a build that starts again believes
the journal only where the checksums agree.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from schnetpack_softadapt.descriptors.store.files import (
    ORIGIN,
    StoreError,
    append_journal,
    checksums,
    claim,
    create_array,
    file_checksum,
    map_array,
    read_journal,
    size_on_disk,
    write_atomically,
)
from schnetpack_softadapt.descriptors.store.shards import ShardWorker, array_shapes, in_parallel

__all__ = ["FORMAT", "Build", "wait_for_others"]

log = logging.getLogger(__name__)

#: raise when files or formulas change: older stores are then computed again
FORMAT = 1

_POLL_S = 0.2
_REMIND_S = 60.0
#: time without a sign of life after which others are taken for dead
PATIENCE_S = 600.0
LARGE_BYTES = 1e9


@dataclass
class Build:
    """One build of a store in the folder `<target>.building`, which becomes `target` at the end.

    Attributes:
        target: folder of the finished store.
        fingerprint: of structures, layout, dtype and format.
        worker: computes the shards.
        n_jobs: threads.
        progress: show progress bars.
        rank, world_size: this process computes every `world_size`-th shard.
        database: to which the store belongs; None: nobody knows.
    """

    target: Path
    fingerprint: str
    worker: ShardWorker
    n_jobs: int = 1
    progress: bool = True
    rank: int = 0
    world_size: int = 1
    database: str | None = None
    folder: Path = field(init=False)

    def __post_init__(self):
        self.folder = self.target.with_name(self.target.name + ".building")

    def run(self) -> None:
        """Compute what is missing; returns when `target` is complete.

        Raises:
            ValueError: a structure cannot be computed.
            OSError: no space left.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0 and self.target.exists():
            shutil.rmtree(self.target)  # damaged; whoever still reads it keeps its maps
        if self.rank == 0 and self.database is not None:
            text = json.dumps({"database": self.database}).encode()
            write_atomically(self.folder / ORIGIN, lambda f: f.write(text))
        if not claim(self.folder, self):
            raise StoreError(f"{self.folder} is being removed; start again")
        mine = self.worker.shards[self.rank :: self.world_size]
        block_first = self._count(mine)
        paths = self._create(block_first)
        finished = self._finished(block_first, paths)
        todo = [rows for rows in mine if rows not in finished]
        n_atoms = sum(b - a for a, b in mine)
        n_done = n_atoms - sum(b - a for a, b in todo)
        if n_done:
            log.info("descriptor store: %d of %d atoms were done already", n_done, n_atoms)
        journal = self.folder / f"journal-{self.rank}.jsonl"
        work = (
            lambda rows=rows, pieces=pieces: self.worker.compute(rows, pieces, block_first, paths)
            for rows, pieces in self.worker.pieces(todo)
        )
        with self._bar("descriptor store", n_atoms, n_done) as bar:
            for shard in in_parallel(work, self.n_jobs):
                append_journal(journal, shard)
                bar.update(shard.rows[1] - shard.rows[0])
        if self.rank == 0:
            self._finish(block_first, paths)
        else:
            self._wait((self.target / "manifest.json").exists, "the store to be complete")

    def _count(self, mine: list[tuple[int, int]]) -> np.ndarray:
        """First block of every row, (rows + 1,); the ranks share the counting through a file."""
        path = self.folder / "n_blocks.npy"
        shape = (int(self.worker.structure_first[-1]),)
        if self.rank == 0 and not _is_array(path, shape, "int32"):
            create_array(path, shape, "int32", fill=-1)
        self._wait(lambda: _is_array(path, shape, "int32"), "the files")
        known = np.load(path)
        todo = [(a, b) for a, b in mine if (known[a:b] < 0).any()]
        work = (
            lambda rows=rows, pieces=pieces: self.worker.count(rows, pieces, path)
            for rows, pieces in self.worker.pieces(todo)
        )
        with self._bar("counting neighbours", sum(b - a for a, b in todo), 0, delay=3.0) as bar:
            for a, b in in_parallel(work, self.n_jobs):
                bar.update(b - a)
        self._wait(lambda: (np.load(path) >= 0).all(), "the other ranks to count neighbours")
        return np.concatenate([[0], np.cumsum(np.load(path), dtype=np.int64)])

    def _create(self, block_first: np.ndarray) -> dict[str, Path]:
        """Files of the arrays, created by rank 0."""
        n_columns, width = self.worker.layout.n_columns, self.worker.columns.lists.shape[1]
        shapes = array_shapes(
            len(block_first) - 1, int(block_first[-1]), n_columns, width, self.worker.dtype
        )
        paths = {name: self.folder / f"{name}.npy" for name in shapes}
        if self.rank == 0:
            there = {name for name in shapes if _is_array(paths[name], *shapes[name])}
            size = sum(
                int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
                for shape, dtype in shapes.values()
            )
            log.log(
                logging.WARNING if size > LARGE_BYTES else logging.INFO,
                "descriptor store: %.2f GB in %s, for %d atoms with %d descriptors"
                " (data.store_dir=... puts it elsewhere, data.store=false does without)",
                size / 1e9,
                self.target,
                len(block_first) - 1,
                n_columns,
            )
            # arrays are made at full length and filled later: what is there may hold nothing yet
            missing = size - sum(size_on_disk(paths[name]) for name in there)
            free = shutil.disk_usage(self.folder).free
            if missing > free:
                raise OSError(
                    f"the descriptor store needs {missing / 1e9:.2f} GB, and {self.folder.parent}"
                    f" has {free / 1e9:.2f} GB left; choose another folder with data.store_dir=...,"
                    " fewer descriptors, or data.store=false"
                )
            for name in shapes.keys() - there:
                create_array(paths[name], *shapes[name])
        self._wait(lambda: all(_is_array(paths[n], *shapes[n]) for n in shapes), "the files")
        return paths

    def _finished(self, block_first: np.ndarray, paths: dict[str, Path]) -> dict:
        """Shards of the journals whose data are there, by their range of rows."""
        arrays = {name: map_array(path) for name, path in paths.items()}
        planned, finished = set(self.worker.shards), {}
        for shard in read_journal(self.folder):
            if (
                shard.rows in planned
                and shard.blocks == tuple(block_first[list(shard.rows)])
                and shard.crc == checksums(arrays, shard)
            ):
                finished[shard.rows] = shard
        return finished

    def _finish(self, block_first: np.ndarray, paths: dict[str, Path]) -> None:
        """Write what describes the store, and give the folder its final name."""
        planned = self.worker.shards
        if self.world_size == 1:
            shards = {shard.rows: shard for shard in read_journal(self.folder)}
        else:
            self._wait(
                lambda: set(planned) <= {shard.rows for shard in read_journal(self.folder)},
                "the other ranks to finish",
            )
            # written by other machines: trust only what can be read back
            shards = self._finished(block_first, paths)
        missing = [rows for rows in planned if rows not in shards]
        if missing:
            raise StoreError(f"atoms {missing[0]} of {self.folder} were not written; start again")
        for name, values in (
            ("block_first", block_first),
            ("structure_first", self.worker.structure_first),
            ("columns", self.worker.columns.lists),
        ):
            write_atomically(self.folder / f"{name}.npy", lambda f, v=values: np.save(f, v))
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dtype": self.worker.dtype,
            "n_structures": len(self.worker.structure_first) - 1,
            "n_rows": len(block_first) - 1,
            "n_blocks": int(block_first[-1]),
            "n_columns": self.worker.layout.n_columns,
            "crc": {
                name: file_checksum(self.folder / f"{name}.npy")
                for name in ("block_first", "structure_first", "columns")
            },
            "layout": self.worker.layout.to_dict(),
            "shards": [shards[rows].to_dict() for rows in planned],
        }
        text = json.dumps(manifest).encode()
        write_atomically(self.folder / "manifest.json", lambda f: f.write(text))
        self.folder.rename(self.target)
        # only now: a build killed before the renaming still needs them
        for path in [self.target / "n_blocks.npy", *self.target.glob("journal-*.jsonl")]:
            path.unlink()

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        wait_for_others(ready, f"rank {self.rank} waits for {what}", self.folder)

    def _bar(self, name: str, total: int, done: int, delay: float = 0.0) -> tqdm:
        return tqdm(
            desc=name if self.world_size == 1 else f"{name} (rank {self.rank})",
            total=total,
            initial=done,
            unit=" atoms",
            delay=delay,
            disable=not self.progress,
        )


def wait_for_others(ready: Callable[[], bool], what: str, folder: Path) -> None:
    """Wait while other processes build a store in `folder`.

    Raises:
        StoreError: for `PATIENCE_S` nothing was written there.
    """
    last, since, reminded = None, time.monotonic(), time.monotonic()
    while not ready():
        now, newest = time.monotonic(), _last_change(folder)
        if newest != last:
            last, since = newest, now
        if now - since > PATIENCE_S:
            raise StoreError(
                f"descriptor store: {what}, but for {PATIENCE_S:.0f} s nothing was written to"
                f" {folder}. End the other processes and start again (what is done is kept), or set"
                " data.store=false"
            )
        if now - reminded > _REMIND_S:
            reminded = now
            log.warning("descriptor store: %s", what)
        time.sleep(_POLL_S)


def _last_change(folder: Path) -> int | None:
    """Time of the last change of a file in a folder, ns; None if there is none."""
    try:
        return max((path.stat().st_mtime_ns for path in folder.iterdir()), default=None)
    except OSError:  # it has just been renamed
        return None


def _is_array(path: Path, shape: tuple, dtype) -> bool:
    try:
        map_array(path, shape, dtype)
    except StoreError:
        return False
    return True
