"""Descriptors of a data set and their derivatives, computed once and kept on disk.

They depend on no trainable parameter, so training reads them instead of computing them again in
every step. A store is a folder of `.npy` files, mapped into memory: it may be larger than that.

rows: atoms of all structures, one after the other; blocks: pairs of an atom i and a distinct other
atom j of its structure within the cutoff, periodic images summed; D: columns of the descriptors.

- `G` (rows, D): descriptors without scaling.
- `dg_dstrain` (rows, 6, D): sum_p sym(dG/dr_p (x) r_p), Voigt order xx yy zz yz xz xy; off-diagonal
  entries are components of that symmetric matrix, not doubled.
- `structure_first` (S + 1,) int64: first row of each structure.
- `block_first` (rows + 1,) int64: first block of each row.
- `block_atom` (blocks,) int32: j, counted within the structure, ascending in a row.
- `dg_dr` (blocks, 3, W): dG_i/dR_j of the columns that i and j can fill, 1/Ang.
- `columns` (n, W) int32: lists of those columns.
- `block_columns` (blocks,) int16: which list a block uses.

The block of an atom with itself is minus the sum of its others, because nothing changes when all
atoms move together; it is not kept. Symmetry functions of one neighbour element do not change with
atoms of another, so W is about 3/5 of D for two elements and 1/2 for three.
"""

import contextlib
import hashlib
import json
import logging
import os
import random
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.store.build import FORMAT, Build, wait_for_others
from schnetpack_softadapt.descriptors.store.files import (
    Shard,
    StoreError,
    checksums,
    claim,
    file_checksum,
    map_array,
    remove_store,
)
from schnetpack_softadapt.descriptors.store.shards import ShardWorker, array_shapes

__all__ = ["DescriptorStore", "StoreError", "fingerprint"]

log = logging.getLogger(__name__)

#: bytes read at every opening to compare checksums; a larger store is sampled
CHECKED_BYTES = 256_000_000

_SMALL = ("block_first", "structure_first", "columns")


def fingerprint(structures: Sequence, layout, dtype: str = "float32") -> tuple[str, np.ndarray]:
    """What a store depends on, as a hash, and the first row of each structure.

    Returns:
        32 hexadecimal digits of structures (numbers, positions, cell, pbc), layout, dtype and
        format; (S + 1,) int64.

    Raises:
        UnknownElementError: a structure with an element that the layout does not have.
    """
    digest = hashlib.blake2b(
        f"{FORMAT} {layout.fingerprint} {np.dtype(dtype).str}".encode(), digest_size=16
    )
    first = np.zeros(len(structures) + 1, np.int64)
    for index in range(len(structures)):
        structure = structures[index]
        numbers = np.ascontiguousarray(structure.numbers, np.int64)
        check_elements(numbers.tolist(), layout.elements, f"structure {index}")
        first[index + 1] = first[index] + len(numbers)
        digest.update(len(numbers).to_bytes(8, "little"))
        digest.update(numbers)
        for values, kind in (("positions", np.float64), ("cell", np.float64), ("pbc", bool)):
            digest.update(np.ascontiguousarray(getattr(structure, values), kind))
    return digest.hexdigest(), first


class DescriptorStore:
    """A finished store; its arrays are attributes, named as in the module's table, read-only.

    Use `open_or_build`. What is checked when a store is opened: the fingerprint; shape, dtype and
    length of every file; checksums of the small arrays; checksums of all other arrays if they have
    at most `CHECKED_BYTES`, else of the first, the last and randomly chosen shards, new ones each
    time. Indices are checked again wherever they are used.

    Args:
        path: folder of the store.
        expected: fingerprint that it must have; None takes any.
        full_check: compare all checksums, whatever the size.

    Raises:
        StoreError: there is no store, or it is damaged or foreign.
    """

    def __init__(self, path: str | Path, expected: str | None = None, full_check: bool = False):
        self.path = Path(path)
        if not claim(self.path, self):
            raise StoreError(f"{self.path} is being removed")
        try:
            manifest = json.loads((self.path / "manifest.json").read_bytes())
            shards = [Shard.from_dict(entry) for entry in manifest["shards"]]
            self.fingerprint: str = manifest["fingerprint"]
            self.dtype: str = manifest["dtype"]
            self.n_structures: int = int(manifest["n_structures"])
            self.n_rows: int = int(manifest["n_rows"])
            self.n_blocks: int = int(manifest["n_blocks"])
            n_columns, crc, version = (manifest[k] for k in ("n_columns", "crc", "format"))
        except FileNotFoundError as error:
            raise StoreError(f"no descriptor store at {self.path}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"manifest.json cannot be read ({error!r})") from error
        if version != FORMAT:
            raise StoreError(f"format {version} instead of {FORMAT}")
        if expected is not None and self.fingerprint != expected:
            raise StoreError("it was made from other structures, descriptors or dtype")
        for name in _SMALL:
            if not (self.path / f"{name}.npy").exists():
                raise StoreError(f"{name}.npy is missing")
            if file_checksum(self.path / f"{name}.npy") != crc.get(name):
                raise StoreError(f"the checksum of {name}.npy is wrong")
        self.structure_first = self._map("structure_first", (self.n_structures + 1,), "int64")
        self.block_first = self._map("block_first", (self.n_rows + 1,), "int64")
        self.columns = self._map("columns", None, "int32")
        shapes = array_shapes(
            self.n_rows, self.n_blocks, n_columns, self.columns.shape[1], self.dtype
        )
        arrays = {name: self._map(name, *shape) for name, shape in shapes.items()}
        self.G: np.ndarray = arrays["G"]
        self.dg_dstrain: np.ndarray = arrays["dg_dstrain"]
        self.block_atom: np.ndarray = arrays["block_atom"]
        self.block_columns: np.ndarray = arrays["block_columns"]
        self.dg_dr: np.ndarray = arrays["dg_dr"]
        self.nbytes = sum(array.nbytes for array in arrays.values())
        for shard in self._sample(shards, full_check):
            if checksums(arrays, shard) != shard.crc:
                raise StoreError(f"the checksum of the atoms {shard.rows} is wrong")

    def _map(self, name: str, shape: tuple | None, dtype: str) -> np.ndarray:
        return map_array(self.path / f"{name}.npy", shape, dtype)

    def _sample(self, shards: list[Shard], everything: bool) -> list[Shard]:
        if everything or self.nbytes <= CHECKED_BYTES or len(shards) < 3:
            return shards
        n = max(2, int(len(shards) * CHECKED_BYTES / self.nbytes))
        # its own generator: opening a store must not move the seeds of a training
        generator = random.Random(os.urandom(8))
        chosen = generator.sample(range(1, len(shards) - 1), min(n, len(shards)) - 2)
        return [shards[0], shards[-1], *(shards[k] for k in chosen)]

    def __len__(self):
        return self.n_structures

    def __repr__(self):
        return (
            f"DescriptorStore({self.n_structures} structures, {self.n_rows} atoms,"
            f" {self.G.shape[1]} columns, {self.nbytes / 1e6:.1f} MB, {str(self.path)!r})"
        )

    def rows(self, index: int) -> slice:
        """Rows of structure `index`."""
        first, last = self.structure_first[index : index + 2].tolist()
        return slice(first, last)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays that `stored.stored_descriptors` reads, by batch key, without a copy.

        The memory is read-only: writing into these tensors ends the process.
        """
        with warnings.catch_warnings():
            # torch has no read-only tensors
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return {
                keys.store_dg_dstrain: torch.from_numpy(self.dg_dstrain),
                keys.store_block_first: torch.from_numpy(self.block_first),
                keys.store_block_atom: torch.from_numpy(self.block_atom),
                keys.store_block_columns: torch.from_numpy(self.block_columns),
                keys.store_columns: torch.from_numpy(self.columns),
                keys.store_dg_dr: torch.from_numpy(self.dg_dr),
            }

    def gather(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The part of `tensors` that belongs to some rows, copied: for GPUs and other processes.

        Args:
            rows: (N,) rows in the order of the batch, all atoms of each structure.
        """
        rows = np.asarray(rows)
        start = self.block_first[rows]
        first = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.block_first[rows + 1] - start, out=first[1:])
        n_blocks = int(first[-1])
        parts = {
            keys.store_block_atom: self.block_atom,
            keys.store_block_columns: self.block_columns,
            keys.store_dg_dr: self.dg_dr,
        }
        result = {
            keys.store_dg_dstrain: torch.from_numpy(self.dg_dstrain[rows]),
            keys.store_block_first: torch.from_numpy(first),
            keys.store_columns: torch.from_numpy(self.columns.copy()),
        }
        # rows of a structure follow each other, so that long runs can be copied at once
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = list(pairwise([0, *cuts.tolist(), len(rows)])) if len(rows) else []
        for key, array in parts.items():
            out = np.empty((n_blocks, *array.shape[1:]), array.dtype)
            for a, b in runs:
                out[first[a] : first[b]] = array[start[a] : self.block_first[rows[b - 1] + 1]]
            result[key] = torch.from_numpy(out)
        return result

    @classmethod
    def open_or_build(
        cls,
        folder: str | Path,
        structures: Sequence,
        layout,
        dtype: str = "float32",
        n_jobs: int | None = None,
        progress: bool = True,
        backend=None,
        rank: int = 0,
        world_size: int = 1,
        database: str | Path | None = None,
    ) -> "DescriptorStore":
        """The store of these structures and descriptors, computed first if need be.

        Several processes may call this at once: one computes, the others wait for it and open the
        result. Stores of several databases may lie in `folder`. A build that was killed goes on
        where it stopped. When a new store is complete, others of the same database are removed:
        those that say that they are of it and that no process has open.

        Args:
            folder: where stores lie.
            structures: with `numbers` (n,), `positions` (n, 3), `cell` (3, 3), `pbc` (3,); any
                sequence, also one that reads them from disk.
            layout: of the descriptors.
            dtype: "float32" or "float64", of the values on disk; they are computed in float64.
            n_jobs: threads; all cores by default.
            progress: show a progress bar with the rate in atoms/s.
            backend: computes the Jacobians; by default `autograd.choose_backend` chooses.
            rank, world_size: with `world_size` > 1 all of that many processes, which may run on
                several machines with a common file system, compute it together.
            database: the file that holds the structures.

        Raises:
            ValueError: a structure cannot be described, an unknown dtype, or other processes that
                build it give no sign of life.
            OSError: no space left.
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        expected, structure_first = fingerprint(structures, layout, dtype)
        target = folder / f"descriptors-{expected[:16]}"
        try:
            return cls(target, expected)
        except StoreError as error:
            if target.exists() and rank == 0:
                log.warning("the descriptor store %s is computed again: %s", target, error)
        lock = FileLock(target.with_name(f"{target.name}.{rank}.lock"))
        if not _acquired(lock):
            log.warning("another process computes the descriptor store %s; waiting for it", target)
            building = target.with_name(f"{target.name}.building")
            wait_for_others(lambda: _acquired(lock), f"another process builds {target}", building)
        database = None if database is None else os.path.realpath(database)
        try:
            try:  # it may have come while this process waited
                return cls(target, expected)
            except StoreError:
                pass
            if backend is None:
                backend = _default_backend(layout)
            worker = ShardWorker(structures, structure_first, layout, dtype, backend)
            n_jobs = n_jobs or _n_cores()
            build = Build(target, expected, worker, n_jobs, progress, rank, world_size, database)
            try:
                build.run()
            except (OSError, StoreError):
                if rank == 0 or not target.exists():
                    raise  # else rank 0 has finished the store of all ranks meanwhile
            store = cls(target, expected)
            if rank == 0 and database is not None:
                _remove_others(target, database)
            return store
        finally:
            if target.exists():
                # who still waits for a file without a name finds the store complete
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink()
            lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _remove_others(target: Path, database: str) -> None:
    """Remove what is left of older stores of a database."""
    for folder in target.parent.glob("descriptors-*"):
        if folder != target and (size := remove_store(folder, database)):
            log.info("removed an older descriptor store, %.2f GB: %s", size / 1e9, folder)


def _n_cores() -> int:
    """Cores that this process may use; a batch system may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _default_backend(layout):
    # imported here: the compiled functions are not needed to read a store
    from schnetpack_softadapt.descriptors.autograd import choose_backend

    return choose_backend(layout, "auto", torch.device("cpu"))
