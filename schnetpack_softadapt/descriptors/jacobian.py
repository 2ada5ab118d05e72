"""Jacobians of descriptors by pairs of distinct atoms and by strain, as a store keeps them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from schnetpack_softadapt.descriptors.neighbors import neighbor_pairs

__all__ = ["AtomsJacobian", "block_columns", "count_blocks", "jacobian_of_atoms"]


class AtomsJacobian(NamedTuple):
    """Jacobian of the descriptors of n consecutive atoms; P blocks, D columns, float64.

    Attributes:
        values: (n, D) descriptors.
        dg_dstrain: (n, 6, D) sum_p sym(dG/dr_p (x) r_p), Voigt order xx yy zz yz xz xy;
            off-diagonal entries are not doubled.
        n_blocks: (n,) distinct other atoms within the cutoff.
        block_atom: (P,) those atoms by their index in the structure, ascending for each atom.
        block_pair: (P, 2) atomic numbers of the atom and the other.
        dg_dr: (P, 3, D) derivative by the position of the other, images summed, 1/Ang.
    """

    values: np.ndarray
    dg_dstrain: np.ndarray
    n_blocks: np.ndarray
    block_atom: np.ndarray
    block_pair: np.ndarray
    dg_dr: np.ndarray


def block_columns(layout) -> tuple[np.ndarray, dict[tuple[int, int], int]]:
    """Columns that the derivative by a neighbour can fill, by element of atom and neighbour.

    A symmetry function of one neighbour element does not change with atoms of another: of two
    elements two blocks in five are zeros, of four elements three in five. Descriptors that do not
    say so (`layout.functions` without `neighbors`) keep all columns.

    Returns:
        (n, W) int32 lists of columns, short ones filled up with columns of zeros (or with a column
        of their own, for which the block then holds zeros), and the list of each pair of elements.
    """
    lists: dict[tuple[int, ...], int] = {}
    table = {}
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
            table[z_i, z_j] = lists.setdefault(columns, len(lists))
    width = max(1, *map(len, lists))
    filled = [(*c, *[k for k in range(layout.n_columns) if k not in c]) for c in lists]
    return np.array([c[:width] for c in filled], np.int32), table


def count_blocks(structure, cutoff: float, begin: int, end: int) -> np.ndarray:
    """Distinct other atoms within the cutoff of the atoms begin..end of a structure, (n,) int32."""
    idx_i, idx_j, _, _ = _pairs_of(structure, cutoff, begin, end)
    return _count_distinct(idx_i, idx_j, len(structure.numbers))[begin:end]


def jacobian_of_atoms(parts: Sequence[tuple], cutoff: float, backend) -> AtomsJacobian:
    """Jacobian of the atoms of several structures in one call.

    Args:
        parts: (structure, begin, end): atoms begin..end of each structure are wanted.
        cutoff: Ang.
        backend: with the method `jacobian`, or else `values` and `vjp`, of which it takes one per
            column.
    """
    pieces = [_pairs_of(structure, cutoff, begin, end) for structure, begin, end in parts]
    sizes = [len(structure.numbers) for structure, _, _ in parts]
    first_atom = np.concatenate([[0], np.cumsum(sizes)])
    idx_i = np.concatenate([p[0] + a for p, a in zip(pieces, first_atom, strict=False)])
    idx_j = np.concatenate([p[1] + a for p, a in zip(pieces, first_atom, strict=False)])
    r_ij = np.concatenate([p[2] for p in pieces])
    numbers = np.concatenate([np.asarray(s.numbers, np.int64) for s, _, _ in parts])
    n_atoms = len(numbers)
    wanted = zip(parts, first_atom, strict=False)
    atoms = np.concatenate([np.arange(a + begin, a + end) for (_, begin, end), a in wanted])
    tensors = [torch.from_numpy(x) for x in (r_ij, idx_i, idx_j, numbers)]
    compute = getattr(backend, "jacobian", None)
    values, strain, first, block_j, dg_dr = (
        map(np.asarray, compute(*tensors)) if compute else _by_columns(backend, *tensors)
    )
    block_i = np.repeat(np.arange(n_atoms), np.diff(first))
    # in ascending order, without the block of an atom with itself (minus the sum of its others)
    found = block_i * n_atoms + block_j
    order = np.argsort(found, kind="stable")
    order = order[block_i[order] != block_j[order]]
    n_found = np.bincount(block_i[order], minlength=n_atoms)
    if len(order) != len(found) or not np.array_equal(order, np.arange(len(order))):
        dg_dr = dg_dr[order]
        block_i, block_j = block_i[order], block_j[order]
    expected = _count_distinct(idx_i, idx_j, n_atoms)
    if not np.array_equal(n_found, expected):
        raise RuntimeError("the backend's blocks are not those of the neighbour list")
    local = block_j - first_atom[np.searchsorted(first_atom, block_i, side="right") - 1]
    return AtomsJacobian(
        values=values[atoms],
        dg_dstrain=strain[atoms],
        n_blocks=n_found[atoms].astype(np.int32),
        block_atom=local.astype(np.int32),
        block_pair=np.stack([numbers[block_i], numbers[block_j]], axis=1),
        dg_dr=dg_dr,
    )


def _pairs_of(structure, cutoff: float, begin: int, end: int):
    """idx_i, idx_j, r_ij, offsets of the atoms begin..end, ascending in idx_i."""
    pairs = neighbor_pairs(structure.positions, structure.cell, structure.pbc, cutoff)
    if begin == 0 and end == len(structure.numbers):
        return pairs
    low, high = np.searchsorted(pairs[0], [begin, end])
    return tuple(x[low:high] for x in pairs)


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
