"""Derivatives of all descriptors by the positions of chosen atoms, out of a descriptor store.

For optimizers that need the Jacobian itself and not its products; see `store` for the arrays.
N: atoms in the batch, D: descriptor columns, T: terms, one for each atom whose descriptors change
with a chosen one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from schnetpack_softadapt import properties as keys

__all__ = ["PositionTerms", "position_terms"]


class PositionTerms(NamedTuple):
    """dG_i/dR_j by terms.

    Attributes:
        centers: (T,) atom i of the batch.
        rows: (T,) which of the chosen atoms j is; ascending.
        derivatives: (T, 3, D) 1/Ang.
    """

    centers: Tensor
    rows: Tensor
    derivatives: Tensor


def position_terms(atoms: Tensor, idx_m: Tensor, batch: Mapping[str, Tensor]) -> PositionTerms:
    """Derivatives of the descriptors of all atoms by the positions of some.

    Args:
        atoms: (R,) atoms of the batch, each at most once.
        idx_m: (N,) structure of each atom, ascending.
        batch: the entries of `properties` that begin with `store_`, and `descriptors` (N, D), as
            for `stored.stored_descriptors`.
    """
    device, n_atoms = idx_m.device, len(idx_m)
    n_columns = batch[keys.descriptors].shape[1]
    first, dg_dr = batch[keys.store_block_first], batch[keys.store_dg_dr]
    store_rows = batch.get(keys.store_rows)
    if store_rows is None:
        store_rows = torch.arange(n_atoms, device=device)
    start = first[store_rows]
    n_blocks = first[store_rows + 1] - start
    block_i = torch.repeat_interleave(torch.arange(n_atoms, device=device), n_blocks)
    before = n_blocks.cumsum(0) - n_blocks
    block = torch.arange(len(block_i), device=device) + (start - before)[block_i]
    first_atom = torch.searchsorted(idx_m, idx_m)  # (N,) first atom of the same structure
    block_j = first_atom[block_i] + batch[keys.store_block_atom][block]

    row_of = torch.full((n_atoms,), -1, device=device)
    row_of[atoms] = torch.arange(len(atoms), device=device)
    wanted = (row_of[block_j] >= 0).nonzero()[:, 0]
    # the block of an atom with itself is minus the sum of its others, which are not its columns
    own = (row_of[block_i] >= 0).nonzero()[:, 0]
    derivatives = _unpacked(block[wanted], dg_dr, batch, n_columns)
    total = derivatives.new_zeros(len(atoms), 3, n_columns)
    total.index_add_(0, row_of[block_i[own]], _unpacked(block[own], dg_dr, batch, n_columns))

    rows = torch.cat([row_of[block_j[wanted]], torch.arange(len(atoms), device=device)])
    centers = torch.cat([block_i[wanted], atoms])
    order = torch.argsort(rows, stable=True)
    return PositionTerms(
        centers[order], rows[order], torch.cat([derivatives, -total]).index_select(0, order)
    )


def _unpacked(block: Tensor, dg_dr: Tensor, batch: Mapping[str, Tensor], n_columns: int) -> Tensor:
    """Blocks (n,) of the store with all columns, (n, 3, D)."""
    packed = dg_dr.index_select(0, block)
    if keys.store_columns not in batch:
        return packed
    columns = batch[keys.store_columns].long()[batch[keys.store_block_columns][block].long()]
    out = packed.new_zeros(len(block), 3, n_columns)
    return out.scatter_add_(2, columns[:, None, :].expand_as(packed), packed)
