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
- `dg_dr` (blocks, 3, W): dG_i/dR_j of the columns that i and j can fill, 1/Ang; with half the
  bits, integers in units of `scale`.
- `scale` (rows, D) or (0, D): 1/32767 of the largest derivative of a row and column.
- `columns` (n, W) int32: lists of those columns.
- `block_columns` (blocks,) int16: which list a block uses.

The block of an atom with itself is minus the sum of its others, because nothing changes when all
atoms move together; it is not kept. Symmetry functions of one neighbour element do not change with
atoms of another, so W is about 3/5 of D for two elements and 1/2 for three.
"""

import hashlib
import json
import logging
import math
import os
import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.store.build import (
    DTYPES,
    FORMAT,
    Counted,
    build_store,
    choose_dtype,
)
from schnetpack_softadapt.descriptors.store.files import (
    MANIFEST,
    PART_BYTES,
    StoreError,
    checksum,
    claim,
    map_array,
    remove_store,
)
from schnetpack_softadapt.files import locked

__all__ = ["DescriptorStore", "StoreError", "fingerprints", "in_batch"]

log = logging.getLogger(__name__)

#: bytes read at every opening to compare checksums; a larger store is sampled
CHECKED_BYTES = 256_000_000

#: stores beyond this size are announced with a warning
LARGE_BYTES = 1e9

#: what dtype "auto" takes, the first that fits
AUTO = ("float32", "float16")


def fingerprints(
    structures: Sequence, descriptor: Descriptor, dtypes: Sequence[str]
) -> tuple[dict[str, str], np.ndarray]:
    """What a store depends on, as a hash for each dtype, and the first row of each structure.

    Returns:
        32 hexadecimal digits of structures (numbers, positions, cell, pbc), descriptor, dtype and
        format; (S + 1,) int64.

    Raises:
        UnknownElementError: a structure with an element that the descriptor does not have.
    """
    digest = hashlib.blake2b(f"{FORMAT} {descriptor.fingerprint}".encode(), digest_size=16)
    first = np.zeros(len(structures) + 1, np.int64)
    for index in range(len(structures)):
        structure = structures[index]
        numbers = np.ascontiguousarray(structure.numbers, np.int64)
        check_elements(numbers.tolist(), descriptor.elements, f"structure {index}")
        first[index + 1] = first[index] + len(numbers)
        digest.update(len(numbers).to_bytes(8, "little"))
        digest.update(numbers)
        for values, kind in (("positions", np.float64), ("cell", np.float64), ("pbc", bool)):
            digest.update(np.ascontiguousarray(getattr(structure, values), kind))
    found = {}
    for dtype in dtypes:
        of_dtype = digest.copy()
        of_dtype.update(np.dtype(dtype).str.encode())
        found[dtype] = of_dtype.hexdigest()
    return found, first


class DescriptorStore:
    """A finished store; its arrays are attributes, named as in the module's table, read-only.

    Use `open_or_build`. What is checked when a store is opened: the fingerprint; shape, dtype and
    length of every file; checksums of all files if they have at most `CHECKED_BYTES` together, else
    of the small ones and of randomly chosen parts of the others, new ones each time. Indices are
    checked again wherever they are used.

    Args:
        path: folder of the store.
        expected: fingerprint that it must have; None takes any.
        full_check: compare all checksums, whatever the size.

    Raises:
        StoreError: there is no store, or it is damaged or foreign.
    """

    G: np.ndarray
    dg_dstrain: np.ndarray
    structure_first: np.ndarray
    block_first: np.ndarray
    block_atom: np.ndarray
    block_columns: np.ndarray
    columns: np.ndarray
    dg_dr: np.ndarray
    scale: np.ndarray

    def __init__(self, path: str | Path, expected: str | None = None, full_check: bool = False):
        self.path = Path(path)
        claim(self.path, self)
        try:
            manifest = json.loads((self.path / MANIFEST).read_bytes())
            self.fingerprint: str = manifest["fingerprint"]
            crcs = {}
            for name in self.__annotations__:
                entry = manifest["arrays"][name]
                crcs[name] = [int(crc) for crc in entry["crc"]]
                shape = tuple(int(n) for n in entry["shape"])
                setattr(self, name, map_array(self.path / f"{name}.npy", shape, entry["dtype"]))
            version = manifest["format"]
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{MANIFEST} cannot be read ({error!r})") from error
        if version != FORMAT:
            raise StoreError(f"format {version} instead of {FORMAT}")
        if expected is not None and self.fingerprint != expected:
            raise StoreError("it was made from other structures, descriptors or dtype")
        self.n_structures = len(self.structure_first) - 1
        self.n_rows, self.n_blocks = len(self.G), len(self.dg_dr)
        stored = (self.dg_dr.dtype.name, self.G.dtype.name)
        self.dtype = next(name for name, types in DTYPES.items() if types == stored)
        self.nbytes = sum(getattr(self, name).nbytes for name in crcs)
        for name, part in self._parts_to_check(crcs, full_check):
            if checksum(self.path / f"{name}.npy", part) != crcs[name][part]:
                raise StoreError(f"the checksum of {name}.npy is wrong")

    def _parts_to_check(self, crcs: dict[str, list[int]], everything: bool) -> list:
        parts = [(name, part) for name, crc in crcs.items() for part in range(len(crc))]
        if everything or self.nbytes <= CHECKED_BYTES:
            return parts
        # a file that was cut off, or never written to its end, shows there
        ends = [(name, part) for name, crc in crcs.items() for part in {0, len(crc) - 1}]
        others = [part for part in parts if part not in ends]
        # its own generator: opening a store must not move the seeds of a training
        n = min(len(others), max(1, CHECKED_BYTES // PART_BYTES))
        return ends + random.Random(os.urandom(8)).sample(others, n)

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
        """The arrays that `batch.batch_descriptors` reads, by batch key, without a copy.

        The memory is read-only: writing into these tensors ends the process.
        """
        with warnings.catch_warnings():
            # torch has no read-only tensors
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return in_batch(vars(self))

    def gather(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The part of `tensors` that belongs to some rows, copied: for GPUs and other processes.

        Args:
            rows: (N,) rows in the order of the batch, all atoms of each structure.
        """
        start = self.block_first[rows]
        n_blocks = self.block_first[np.add(rows, 1)] - start
        first = np.concatenate([[0], np.cumsum(n_blocks)])
        blocks = np.repeat(start - first[:-1], n_blocks) + np.arange(first[-1])
        arrays = {
            "dg_dstrain": self.dg_dstrain.take(rows, axis=0),
            "block_first": first,
            "block_atom": self.block_atom.take(blocks),
            "block_columns": self.block_columns.take(blocks),
            "columns": self.columns.copy(),
            "dg_dr": self.dg_dr.take(blocks, axis=0),
            "scale": self.scale.take(rows, axis=0) if len(self.scale) else self.scale.copy(),
        }
        return in_batch(arrays)

    @classmethod
    def open_or_build(
        cls,
        folder: str | Path,
        structures: Sequence,
        descriptor: Descriptor,
        dtype: str = "float32",
        n_jobs: int | None = None,
        progress: bool = True,
        database: str | Path | None = None,
        budget: int | None = None,
    ) -> "DescriptorStore":
        """The store of these structures and descriptors, computed first if need be.

        Several processes may call this at once: one computes, the others wait for it and open the
        result. Stores of several databases may lie in `folder`. A build that was killed starts
        again. When a new store is complete, others of the same database are removed that no process
        has open.

        Args:
            folder: where stores lie.
            structures: with `numbers` (n,), `positions` (n, 3), `cell` (3, 3), `pbc` (3,); any
                sequence, also one that reads them from disk.
            dtype: "float32", "float64", "float16" or "auto", of the values on disk; they are
                computed in float64. "float16": 16 bits for each derivative by positions, float32
                for all else. "auto": a store that is there, else float32 if it fits into budget,
                disk and memory, else float16.
            n_jobs: threads; all cores by default.
            database: the file that holds the structures.
            budget: bytes that a new store may have; by default what is free on the disk.

        Raises:
            ValueError: a structure cannot be described, or an unknown dtype.
            OSError: beyond the budget, or no space left.
        """
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"store_dtype={dtype!r}; choose auto, {', '.join(DTYPES)}")
        dtypes = AUTO if dtype == "auto" else (dtype,)
        folder = Path(folder)
        expected, structure_first = fingerprints(structures, descriptor, dtypes)
        targets = {name: folder / f"descriptors-{expected[name][:16]}" for name in dtypes}

        def complete(level: int) -> DescriptorStore | None:
            for name, target in targets.items():
                try:
                    return cls(target, expected[name])
                except StoreError as error:
                    if target.exists():
                        log.log(
                            level, "the descriptor store %s is computed again: %s", target, error
                        )
            return None

        if store := complete(logging.WARNING):
            return store
        building = folder / "building"
        with locked(building, on_wait=lambda: log.warning(_WAIT, folder)):
            if store := complete(logging.DEBUG):  # it may have come while this process waited
                return store
            # of a process that was killed, and damaged ones; who still reads these keeps the maps
            for old in (building, *targets.values()):
                shutil.rmtree(old, ignore_errors=True)
            building.mkdir()
            database = None if database is None else os.path.realpath(database)
            try:
                counted = Counted(
                    structures, structure_first, descriptor, n_jobs or _n_cores(), progress
                )
                sizes = {name: counted.nbytes(name) for name in dtypes}
                free = shutil.disk_usage(folder).free
                dtype, reason = choose_dtype(sizes, budget, free, folder, _memory())
                target = targets[dtype]
                log.log(
                    logging.WARNING if sizes[dtype] > LARGE_BYTES else logging.INFO,
                    "descriptor store: %.2f GB in %s, %s %s; %d atoms with %d descriptors"
                    " (data.store_dir=... puts it elsewhere, data.store=false does without)",
                    sizes[dtype] / 1e9,
                    target,
                    dtype,
                    reason,
                    counted.n_rows,
                    descriptor.n_columns,
                )
                description = {
                    "fingerprint": expected[dtype],
                    "database": database,
                    "descriptor": descriptor.to_dict(),
                }
                build_store(target, building, counted, dtype, description)
            finally:
                shutil.rmtree(building, ignore_errors=True)
            store = cls(target, expected[dtype])
            for other in folder.glob("descriptors-*"):
                if database and other != target and (size := remove_store(other, database)):
                    log.info("removed an older descriptor store, %.2f GB: %s", size / 1e9, other)
            return store


#: arrays that batches carry, by their key there
_IN_BATCH = {
    keys.store_dg_dstrain: "dg_dstrain",
    keys.store_block_first: "block_first",
    keys.store_block_atom: "block_atom",
    keys.store_block_columns: "block_columns",
    keys.store_columns: "columns",
    keys.store_dg_dr: "dg_dr",
    keys.store_scale: "scale",
}


def in_batch(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The arrays that batches carry, by batch key, without a copy."""
    return {key: torch.from_numpy(arrays[name]) for key, name in _IN_BATCH.items()}


_WAIT = "another process computes a descriptor store in %s; waiting for it"


def _memory() -> float:
    """Bytes of memory of this machine; infinite where they are not known."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _n_cores() -> int:
    """Cores that this process may use; a batch system may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
