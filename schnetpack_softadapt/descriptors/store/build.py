"""Computes a descriptor store: many threads compute, one writes; memory holds a few portions.

The neighbours of all atoms are counted first, so that the size is known and said, and compared with
the free disk and a budget, before anything is computed. The arrays are written front to back into a
folder of another name, which is renamed when all is there.
"""

import contextlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit
from tqdm import tqdm

from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine
from schnetpack_softadapt.descriptors.store.files import (
    MANIFEST,
    checksum,
    n_checked_parts,
    write_header,
)
from schnetpack_softadapt.neighbors.pair_list import LinkedCells

__all__ = ["DTYPES", "FORMAT", "Columns", "Counted", "batch_arrays", "build_store", "choose_dtype"]

log = logging.getLogger(__name__)

#: raise when files or their meaning change: older stores are then computed again
FORMAT = 3

#: numbers on disk -> type of `dg_dr`, of the other arrays
DTYPES = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    # a 16-bit mantissa each, one scale for an atom and column: five digits of the largest
    # derivative, where IEEE's half precision has three of each
    "float16": ("int16", "float32"),
}
#: part of the free disk that "auto" leaves alone
RESERVE = 0.1

#: numbers of G in a portion; with 50 neighbours, 20 MB of float64 in dg_dr
PORTION_NUMBERS = 16_000
LEAST_ROWS = 64


class Columns:
    """Columns that the derivative by a neighbour can fill, by element of atom and neighbour.

    A symmetry function of one neighbour element does not change with atoms of another: of two
    elements two numbers in five are zeros, of three more than half.

    Attributes:
        lists: (n, W) int32 columns; short lists are filled up with columns of zeros.
        list_of: (119, 119) int16 the list of an atomic number and its neighbour's.
        kept: (n, D) whether a list has a column.
    """

    def __init__(self, descriptor: Descriptor):
        n_columns = descriptor.n_columns
        lists: dict[tuple[int, ...], int] = {}
        self.list_of = np.zeros((119, 119), np.int16)
        for z_i in descriptor.elements:
            for z_j in descriptor.elements:
                columns = tuple(descriptor.columns(z_i, z_j))
                self.list_of[z_i, z_j] = lists.setdefault(columns, len(lists))
        width = max(1, *map(len, lists))
        filled = [(*c, *[k for k in range(n_columns) if k not in c]) for c in lists]
        self.lists = np.array([c[:width] for c in filled], np.int32)
        self.kept = np.zeros((len(lists), n_columns), bool)
        np.put_along_axis(self.kept, self.lists, True, axis=1)


class _Piece(NamedTuple):
    """Some consecutive atoms of a structure."""

    index: int
    structure: object
    begin: int
    end: int

    def pairs(self, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """idx_i (P,) ascending, idx_j (P,), r_ij (P, 3) of these atoms."""
        s = self.structure
        try:
            return LinkedCells(s.positions, s.cell, s.pbc, cutoff).pairs(self.begin, self.end)
        except ValueError as error:
            raise ValueError(f"structure {self.index}: {error}") from error


class Counted:
    """Structures with the number of blocks of each atom, which tells the size of a store.

    Args:
        structures: fetched by one thread, in order.
        structure_first: (S + 1,) first row of each structure.

    Attributes:
        block_first: (rows + 1,) first block of each row.

    Raises:
        ValueError: a structure cannot be described.
    """

    def __init__(
        self,
        structures: Sequence,
        structure_first: np.ndarray,
        descriptor: Descriptor,
        n_jobs: int,
        progress: bool,
    ):
        self.structures, self.structure_first = structures, structure_first
        self.descriptor, self.columns = descriptor, Columns(descriptor)
        self.n_jobs, self.progress = n_jobs, progress
        self.n_rows = int(structure_first[-1])
        self._portions = _portions(structure_first, _portion_rows(descriptor))

        def count(pieces: list[_Piece]) -> np.ndarray:
            return np.concatenate([_n_blocks(p, descriptor.cutoff) for p in pieces])

        found = self.run(count, "counting neighbours", delay=3.0)
        self.block_first = np.cumsum(np.concatenate([np.zeros(1, np.int64), *found]))

    def run(self, function: Callable, name: str, delay: float) -> Iterator:
        """Results of a function of lists of pieces, in order."""
        work = (
            [_Piece(k, self.structures[k], begin, end) for k, begin, end in pieces]
            for pieces in self._portions
        )
        with tqdm(
            desc=name, total=self.n_rows, unit=" atoms", delay=delay, disable=not self.progress
        ) as bar:
            for pieces, result in _in_order(function, work, self.n_jobs):
                yield result
                bar.update(sum(p.end - p.begin for p in pieces))

    def shapes(self, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of the arrays that are written front to back."""
        derivatives, real = DTYPES[dtype]
        n_blocks, (_, width) = int(self.block_first[-1]), self.columns.lists.shape
        n_columns = self.descriptor.n_columns
        return {
            "G": ((self.n_rows, n_columns), real),
            "dg_dstrain": ((self.n_rows, 6, n_columns), real),
            "block_atom": ((n_blocks,), "int32"),
            "block_columns": ((n_blocks,), "int16"),
            "dg_dr": ((n_blocks, 3, width), derivatives),
            "scale": ((self.n_rows if derivatives == "int16" else 0, n_columns), real),
        }

    def nbytes(self, dtype: str) -> int:
        """Size of a store but for headers and indices of rows."""
        return sum(
            int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize
            for shape, kind in self.shapes(dtype).values()
        )


def choose_dtype(
    sizes: Mapping[str, int], budget: int | None, free: int, folder: Path, memory: float = math.inf
) -> tuple[str, str]:
    """The first type whose store fits, and why, in words.

    What memory holds as well goes first: every epoch reads the whole store.

    Args:
        sizes: bytes of a store of each type, the preferred one first.
        budget: bytes that a store may have; None for what the disk has.
        free: bytes left on the disk of `folder`.
        memory: bytes of the machine's memory.

    Raises:
        OSError: none of them fits, with the remedies.
    """
    room = free if len(sizes) == 1 else int((1 - RESERVE) * free)
    allowed = room if budget is None else min(budget, room)
    listed = " or ".join(f"{size / 1e9:.2f} GB ({dtype})" for dtype, size in sizes.items())
    if budget is not None and budget <= room:
        limit = f"data.store_budget allows {budget / 1e9:.2f} GB"
    else:
        limit = f"{folder} has {free / 1e9:.2f} GB left"
    for dtype, size in sorted(sizes.items(), key=lambda item: item[1] > memory):
        if size <= allowed:
            return dtype, f"of {listed}, and {limit}"
    least = min(sizes.values()) / 1e9
    remedy = "choose another folder with data.store_dir=..."
    if allowed < room:
        remedy = f"data.store_budget={least + 0.01:.2f}GB would do"
    raise OSError(
        f"the descriptor store needs {listed}, and {limit}; {remedy}, or take fewer descriptors, or"
        " data.store=false"
    )


def build_store(
    target: Path, building: Path, counted: Counted, dtype: str, description: dict
) -> None:
    """Compute a store in the folder `building`, which becomes `target`.

    Args:
        dtype: one of `DTYPES`.
        description: entries of the manifest.

    Raises:
        ValueError: descriptors that are not finite.
        OSError: no space left.
    """
    engine, columns, shapes = (
        counted.descriptor.engine("cpu"),
        counted.columns,
        counted.shapes(dtype),
    )

    def compute(pieces: list[_Piece]) -> dict[str, np.ndarray]:
        real = DTYPES[dtype][1]
        arrays = _arrays(pieces, counted.descriptor.cutoff, engine, columns, real)
        arrays["scale"] = np.empty((0, columns.kept.shape[1]), real)
        if dtype == "float16":
            arrays["scale"], arrays["dg_dr"] = _as_integers(arrays, columns.lists)
        return arrays

    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(building / f"{name}.npy", "wb")) for name in shapes}
        for name, file in files.items():
            write_header(file, *shapes[name])
        for arrays in counted.run(compute, "descriptor store", delay=0.0):
            for name, file in files.items():
                file.write(np.ascontiguousarray(arrays[name]))
    whole = {
        "structure_first": counted.structure_first,
        "block_first": counted.block_first,
        "columns": columns.lists,
    }
    for name, values in whole.items():
        np.save(building / f"{name}.npy", values)
        shapes[name] = (values.shape, values.dtype.name)
    described = {}
    for name, (shape, kind) in shapes.items():
        path = building / f"{name}.npy"
        crc = [checksum(path, part) for part in range(n_checked_parts(path))]
        described[name] = {"shape": shape, "dtype": kind, "crc": crc}
    manifest = {"format": FORMAT, **description, "arrays": described}
    (building / MANIFEST).write_text(json.dumps(manifest))
    os.rename(building, target)


def batch_arrays(
    structures: Sequence, engine: Engine, columns: Columns, dtype: str, threads: int
) -> dict[str, np.ndarray]:
    """What `DescriptorStore.gather` gives for some structures, and `G`, computed anew.

    Args:
        dtype: "float32" or "float64".
    """
    first = np.cumsum([0, *(len(s.numbers) for s in structures)])
    rows = min(_portion_rows(engine.descriptor), max(LEAST_ROWS, -(-int(first[-1]) // threads)))
    work = (
        [_Piece(k, structures[k], begin, end) for k, begin, end in pieces]
        for pieces in _portions(first, rows)
    )

    def compute(pieces: list[_Piece]) -> dict[str, np.ndarray]:
        return _arrays(pieces, engine.descriptor.cutoff, engine, columns, dtype)

    parts = [arrays for _, arrays in _in_order(compute, work, threads)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["block_first"] = np.concatenate([[0], np.cumsum(arrays.pop("n_blocks"))])
    arrays["columns"], arrays["scale"] = columns.lists, np.empty((0, columns.kept.shape[1]), dtype)
    return arrays


def _portion_rows(descriptor: Descriptor) -> int:
    return max(LEAST_ROWS, PORTION_NUMBERS // descriptor.n_columns)


def _portions(structure_first: np.ndarray, rows: int) -> list[list[tuple[int, int, int]]]:
    """Pieces (structure, first atom, last + 1 atom) of about `rows` atoms together."""
    portions, portion, n_atoms = [], [], 0
    for index, size in enumerate(np.diff(structure_first).tolist()):
        for begin in range(0, size, rows):
            end = min(begin + rows, size)
            if n_atoms + end - begin > rows:
                portions.append(portion)
                portion, n_atoms = [], 0
            portion.append((index, begin, end))
            n_atoms += end - begin
    return [*portions, portion] if portion else portions


def _in_order(function: Callable, arguments: Iterable, n_jobs: int) -> Iterator[tuple]:
    """Arguments with the results of a function, by threads; few are held at a time."""
    if n_jobs <= 1:
        yield from ((x, function(x)) for x in arguments)
        return
    with ThreadPoolExecutor(n_jobs) as pool:
        waiting: deque = deque()
        try:
            for x in arguments:
                waiting.append((x, pool.submit(function, x)))
                if len(waiting) > n_jobs:
                    done = waiting.popleft()
                    yield done[0], done[1].result()
            while waiting:
                done = waiting.popleft()
                yield done[0], done[1].result()
        finally:
            for _, future in waiting:
                future.cancel()


def _n_blocks(piece: _Piece, cutoff: float) -> np.ndarray:
    """Distinct other atoms in the pair list of each atom of a piece, (n,)."""
    idx_i, idx_j, _ = piece.pairs(cutoff)
    return _count_distinct(idx_i, idx_j, len(piece.structure.numbers))[piece.begin : piece.end]


def _arrays(
    pieces: list[_Piece], cutoff: float, engine: Engine, columns: Columns, dtype: str
) -> dict[str, np.ndarray]:
    """What a store holds of some atoms, by one call of the engine in one thread; n_blocks (n,)."""
    # atoms that take part: those of the pieces and their neighbours
    used, idx_i, idx_j, r_ij, atoms, numbers = [], [], [], [], [], []
    n = 0
    for piece in pieces:
        i, j, r = piece.pairs(cutoff)
        mine = np.arange(piece.begin, piece.end)
        near = np.union1d(mine, j) if len(mine) < len(piece.structure.numbers) else mine
        idx_i.append(np.searchsorted(near, i) + n)
        idx_j.append(np.searchsorted(near, j) + n)
        atoms.append(np.searchsorted(near, mine) + n)
        r_ij.append(r)
        used.append(near)
        numbers.append(np.asarray(piece.structure.numbers)[near])
        n += len(near)
    idx_i, idx_j, r_ij, atoms, used, numbers = map(
        np.concatenate, (idx_i, idx_j, r_ij, atoms, used, numbers)
    )
    pairs = engine.prepare(r_ij, idx_i, idx_j, numbers.astype(np.int64))
    found = engine.jacobian(pairs, dtype=np.dtype(dtype).type, threads=1)
    block_i = np.repeat(np.arange(n), np.diff(found.block_first))
    # in ascending order, without the block of an atom with itself (minus the sum of its others)
    order = np.argsort(block_i * n + found.block_atom, kind="stable")
    order = order[block_i[order] != found.block_atom[order]]
    block_i, block_j = block_i[order], found.block_atom[order]
    n_blocks = np.bincount(block_i, minlength=n)
    if not np.array_equal(n_blocks, _count_distinct(idx_i, idx_j, n)):
        raise RuntimeError("the engine's blocks are not those of the neighbour list")
    which = columns.list_of[numbers[block_i], numbers[block_j]]
    kept = np.empty((len(order), 3, columns.lists.shape[1]), dtype)
    dg_dr = np.ascontiguousarray(found.dg_dr)
    if not _keep(dg_dr, order, which, columns.lists, columns.kept, kept):
        raise RuntimeError("a descriptor depends on an element that its `columns` denies")
    arrays = {
        "G": found.values[atoms].astype(dtype, copy=False),
        "dg_dstrain": found.dg_dstrain[atoms].astype(dtype, copy=False),
        "n_blocks": n_blocks[atoms],
        "block_atom": used[block_j].astype(np.int32),
        "block_columns": which,
        "dg_dr": kept,
    }
    if not all(np.isfinite(arrays[name]).all() for name in ("G", "dg_dstrain", "dg_dr")):
        raise ValueError(
            f"descriptors of structures {pieces[0].index} to {pieces[-1].index} are not finite: do"
            " two atoms of one of them lie in the same place?"
        )
    return arrays


def _as_integers(arrays: dict, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`scale` (n, D) and `dg_dr` of 16 bits: the largest of each atom and column is 32767."""
    dg_dr, n_rows = arrays["dg_dr"], len(arrays["G"])
    scale, integers = np.zeros_like(arrays["G"]), np.zeros(dg_dr.shape, np.int16)
    row = np.repeat(np.arange(n_rows), arrays["n_blocks"])
    _to_integers(dg_dr, row, arrays["block_columns"], lists, scale, integers)
    return scale, integers


@njit(cache=True, nogil=True)
def _to_integers(dg_dr, row, which, lists, scale, out):
    for p in range(len(row)):
        for x in range(3):
            for k in range(lists.shape[1]):
                column = lists[which[p], k]
                scale[row[p], column] = max(scale[row[p], column], abs(dg_dr[p, x, k]) / 32767)
    for p in range(len(row)):
        for x in range(3):
            for k in range(lists.shape[1]):
                unit = scale[row[p], lists[which[p], k]]
                if unit > 0.0:  # below 1e-41 there is none
                    out[p, x, k] = round(min(max(dg_dr[p, x, k] / unit, -32767.0), 32767.0))


@njit(cache=True, nogil=True)
def _keep(dg_dr, order, which, lists, kept_columns, out):
    """Copy the kept columns of the blocks `order`; whether all others are zero."""
    for p in range(len(order)):
        b, k = order[p], which[p]
        for x in range(3):
            for column in range(dg_dr.shape[2]):
                if not kept_columns[k, column] and dg_dr[b, x, column] != 0.0:
                    return False
            for n in range(lists.shape[1]):
                out[p, x, n] = dg_dr[b, x, lists[k, n]]
    return True


@njit(cache=True, nogil=True)
def _count_distinct(idx_i, idx_j, n_atoms):
    """Distinct idx_j != idx_i for each of n_atoms; idx_i is ascending."""
    counts = np.zeros(n_atoms, np.int64)
    seen_by = np.full(n_atoms, -1)
    for p in range(len(idx_i)):
        i, j = idx_i[p], idx_j[p]
        if i != j and seen_by[j] != i:
            seen_by[j] = i
            counts[i] += 1
    return counts
