"""Jacobians of descriptors by pairs of distinct atoms and by strain, as a store keeps them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

__all__ = ["AtomsJacobian", "Columns", "Part", "count_blocks", "jacobian_of_atoms"]


class Columns:
    """Columns that the derivative by a neighbour can fill, by element of atom and neighbour.

    A symmetry function of one neighbour element does not change with atoms of another: of two
    elements two numbers in five are zeros, of three more than half. Descriptors that do not say so
    (`layout.functions` without `neighbors`) keep all columns.

    Attributes:
        lists: (n, W) int32 columns; short lists are filled up with columns of zeros.
        list_of: (119, 119) int16 the list of an atomic number and its neighbour's.
        kept: (n, D) whether a list has a column.
    """

    def __init__(self, layout):
        lists: dict[tuple[int, ...], int] = {}
        self.list_of = np.zeros((119, 119), np.int16)
        for z_i in layout.elements:
            functions = getattr(layout, "functions", {}).get(z_i, ())
            for z_j in layout.elements:
                columns = tuple(
                    k
                    for k, f in enumerate(functions)
                    if not getattr(f, "neighbors", ()) or z_j in f.neighbors
                )
                if not functions:
                    columns = tuple(range(layout.n_columns))
                self.list_of[z_i, z_j] = lists.setdefault(columns, len(lists))
        width = max(1, *map(len, lists))
        filled = [(*c, *[k for k in range(layout.n_columns) if k not in c]) for c in lists]
        self.lists = np.array([c[:width] for c in filled], np.int32)
        self.kept = np.zeros((len(lists), layout.n_columns), bool)
        np.put_along_axis(self.kept, self.lists, True, axis=1)


class AtomsJacobian(NamedTuple):
    """Jacobian of the descriptors of n atoms, one after the other; P blocks of W out of D columns.

    Attributes:
        values: (n, D) descriptors.
        dg_dstrain: (n, 6, D) sum_p sym(dG/dr_p (x) r_p), Voigt order xx yy zz yz xz xy;
            off-diagonal entries are not doubled.
        n_blocks: (n,) distinct other atoms in the pair list.
        block_atom: (P,) those atoms by their index in the structure, ascending for each atom.
        block_columns: (P,) int16 which list of columns a block uses.
        dg_dr: (P, 3, W) derivative by the position of the other, images summed, 1/Ang.
    """

    values: np.ndarray
    dg_dstrain: np.ndarray
    n_blocks: np.ndarray
    block_atom: np.ndarray
    block_columns: np.ndarray
    dg_dr: np.ndarray


class Part(NamedTuple):
    """Some consecutive atoms of a structure, with their neighbours.

    Attributes:
        numbers: (N,) atomic numbers of the whole structure.
        begin, end: the atoms.
        pairs: idx_i (P,) ascending, idx_j (P,), r_ij (P, 3) of these atoms.
    """

    numbers: np.ndarray
    begin: int
    end: int
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]


def count_blocks(part: Part) -> np.ndarray:
    """Distinct other atoms in the pair list of each atom of a part, (n,) int32."""
    idx_i, idx_j, _ = part.pairs
    return _count_distinct(idx_i, idx_j, len(part.numbers))[part.begin : part.end]


def jacobian_of_atoms(
    parts: Sequence[Part], columns: Columns, backend, dtype: str = "float64"
) -> AtomsJacobian:
    """Jacobian of the atoms of several structures in one call, in one thread.

    Args:
        parts: of different structures, or of one.
        columns: those to keep.
        backend: with a method `jacobian(r_ij, idx_i, idx_j, numbers, dtype=, threads=)` that
            returns what `kernels.Jacobian` does (a block for every two atoms of the pair list, with
            or without those of atoms with themselves, in any order), or else `values` and `vjp`, of
            which one per column is taken.
        dtype: of the results; computed in float64.
    """
    # atoms that take part: those of the parts and their neighbours
    used, first = [], [0]
    idx_i, idx_j, atoms = [], [], []
    for part in parts:
        i, j, _ = part.pairs
        mine = np.arange(part.begin, part.end)
        near = np.union1d(mine, j) if len(mine) < len(part.numbers) else mine
        idx_i.append(np.searchsorted(near, i) + first[-1])
        idx_j.append(np.searchsorted(near, j) + first[-1])
        atoms.append(np.searchsorted(near, mine) + first[-1])
        used.append(near)
        first.append(first[-1] + len(near))
    idx_i, idx_j, atoms = (np.concatenate(x).astype(np.int64) for x in (idx_i, idx_j, atoms))
    r_ij = np.concatenate([part.pairs[2] for part in parts])
    numbers = np.concatenate([part.numbers[near] for part, near in zip(parts, used, strict=True)])
    arguments = [torch.from_numpy(x) for x in (r_ij, idx_i, idx_j, numbers.astype(np.int64))]
    if hasattr(backend, "jacobian"):
        found = backend.jacobian(*arguments, dtype=np.dtype(dtype).type, threads=1)
        values, strain, block_first, block_j, dg_dr = map(np.asarray, found)
    else:
        values, strain, block_first, block_j, dg_dr = _by_columns(backend, *arguments)
    n_atoms = len(numbers)
    block_i = np.repeat(np.arange(n_atoms), np.diff(block_first))
    # in ascending order, without the block of an atom with itself (minus the sum of its others)
    order = np.argsort(block_i * n_atoms + block_j, kind="stable")
    order = order[block_i[order] != block_j[order]]
    block_i, block_j = block_i[order], block_j[order]
    n_blocks = np.bincount(block_i, minlength=n_atoms)
    if not np.array_equal(n_blocks, _count_distinct(idx_i, idx_j, n_atoms)):
        raise RuntimeError("the backend's blocks are not those of the neighbour list")
    which = columns.list_of[numbers[block_i], numbers[block_j]]
    packed = np.empty((len(order), 3, columns.lists.shape[1]), dtype)
    if not _pack(np.ascontiguousarray(dg_dr), order, which, columns.lists, columns.kept, packed):
        raise RuntimeError("a descriptor depends on an element that its layout denies")
    return AtomsJacobian(
        values=values[atoms].astype(dtype, copy=False),
        dg_dstrain=strain[atoms].astype(dtype, copy=False),
        n_blocks=n_blocks[atoms].astype(np.int32),
        block_atom=np.concatenate(used)[block_j].astype(np.int32),
        block_columns=which,
        dg_dr=packed,
    )


@njit(cache=True, nogil=True)
def _pack(dg_dr, order, which, lists, kept, packed):
    """Copy the kept columns of the blocks `order`; whether all others are zero."""
    for p in range(len(order)):
        b, k = order[p], which[p]
        for x in range(3):
            for column in range(dg_dr.shape[2]):
                if not kept[k, column] and dg_dr[b, x, column] != 0.0:
                    return False
            for n in range(lists.shape[1]):
                packed[p, x, n] = dg_dr[b, x, lists[k, n]]
    return True


def _by_columns(backend, r_ij, idx_i, idx_j, numbers):
    """What `backend.jacobian` returns, from one vector-Jacobian product per column."""
    with torch.no_grad():
        values = backend.values(r_ij, idx_i, idx_j, numbers)  # (N, D)
        by_pair = r_ij.new_empty(*r_ij.shape, values.shape[1])  # (P, 3, D)
        for k in range(values.shape[1]):
            grad_g = torch.zeros_like(values)
            grad_g[:, k] = 1.0
            by_pair[:, :, k] = backend.vjp(r_ij, idx_i, idx_j, numbers, grad_g)
    n_atoms = len(numbers)
    by_pair, r_ij = by_pair.numpy(), r_ij.numpy()
    idx_i, idx_j = idx_i.numpy(), idx_j.numpy()
    blocks, inverse = np.unique(idx_i * n_atoms + idx_j, return_inverse=True)
    dg_dr = np.zeros((len(blocks), *by_pair.shape[1:]))
    np.add.at(dg_dr, inverse.reshape(-1), by_pair)
    strain = np.zeros((n_atoms, 6, by_pair.shape[2]))
    for v, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        product = by_pair[:, a] * r_ij[:, b, None] + by_pair[:, b] * r_ij[:, a, None]
        np.add.at(strain[:, v], idx_i, 0.5 * product)
    first = np.searchsorted(blocks, np.arange(n_atoms + 1) * n_atoms)
    return values.numpy(), strain, first, blocks % n_atoms, dg_dr


@njit(cache=True, nogil=True)
def _count_distinct(idx_i, idx_j, n_atoms):
    """Distinct idx_j != idx_i for each of n_atoms; idx_i is ascending."""
    counts = np.zeros(n_atoms, np.int32)
    seen_by = np.full(n_atoms, -1)
    for p in range(len(idx_i)):
        i, j = idx_i[p], idx_j[p]
        if i != j and seen_by[j] != i:
            seen_by[j] = i
            counts[i] += 1
    return counts
