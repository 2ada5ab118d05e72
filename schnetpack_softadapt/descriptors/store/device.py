"""Products with the Jacobian of a descriptor store in plain torch, for batches on a GPU.

The same sums as in `stored_kernels`, without waiting for the device.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_ROWS, voigt_to_full

__all__ = ["DeviceJacobian"]


class DeviceJacobian:
    """The Jacobian of a batch; N atoms, B structures, D columns, P blocks of W columns.

    Args:
        positions: (N, 3) Ang.
        n_structures: B, or 0 where no derivative by strain is wanted.
        idx_m: (N,) structure of each atom, ascending.
        batch: as for `stored.stored_descriptors`. With `store_rows` (arrays of the whole store on
            the device) the number of blocks has to be fetched from the device, and blocks are
            copied; a gathered batch has neither cost.
    """

    nan_task = -2

    def __init__(self, positions: Tensor, n_structures: int, idx_m: Tensor, batch: Mapping):
        device = positions.device
        self.positions, self.n_structures, self.idx_m = positions, n_structures, idx_m
        self.n_atoms = len(positions)
        self.n_columns = batch[keys.descriptors].shape[1]
        self.dtype = batch[keys.descriptors].dtype
        first = batch[keys.store_block_first]
        self.dg_dr, self.dg_dstrain = batch[keys.store_dg_dr], batch[keys.store_dg_dstrain]
        block_atom = batch[keys.store_block_atom]
        lists = batch.get(keys.store_block_columns)
        rows = batch.get(keys.store_rows)
        atoms = torch.arange(self.n_atoms, device=device)
        if rows is None:
            n_blocks = first.diff()
            self.block_i = torch.repeat_interleave(atoms, n_blocks, output_size=len(self.dg_dr))
        else:
            n_blocks = first[rows + 1] - first[rows]
            self.block_i = torch.repeat_interleave(atoms, n_blocks)
            start = first[rows] - n_blocks.cumsum(0) + n_blocks
            chosen = start[self.block_i] + torch.arange(len(self.block_i), device=device)
            self.dg_dr, self.dg_dstrain = self.dg_dr[chosen], self.dg_dstrain[rows]
            block_atom = block_atom[chosen]
            lists = None if lists is None else lists[chosen]
        first_atom = torch.searchsorted(idx_m, idx_m)  # (N,) first atom of the same structure
        self.block_j = first_atom[self.block_i] + block_atom
        # columns of all lists in turn (L W,), and list of each block in the table (N L, W) of the
        # columns that atoms have in them: an index for each number of the store would outweigh it
        self.columns = None
        if keys.store_columns in batch:
            n_lists, self.width = batch[keys.store_columns].shape
            self.columns = batch[keys.store_columns].reshape(-1)
            self.block_list = self.block_i * n_lists + lists

    def vjp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> gradients by positions (N, 3) and strain (B, 3, 3)."""
        u = u.detach().to(self.dg_dr.dtype)
        if self.columns is None:
            packed = u.index_select(0, self.block_i)  # (P, W)
        else:
            table = u.index_select(1, self.columns).view(-1, self.width)  # (N L, W)
            packed = table.index_select(0, self.block_list)
        forces = torch.bmm(self.dg_dr, packed[:, :, None])[:, :, 0]  # (P, 3)
        grad_r = forces.new_zeros(self.n_atoms, 3)
        grad_r.index_add_(0, self.block_j, forces)
        grad_r.index_add_(0, self.block_i, forces, alpha=-1)
        grad_strain = forces.new_zeros(self.n_structures, 3, 3)
        if self.n_structures:
            voigt = torch.bmm(self.dg_dstrain, u[:, :, None])[:, :, 0]  # (N, 6)
            total = voigt_to_full(voigt)
            flow = grad_r[:, :, None] * self.positions.to(grad_r.dtype)[:, None, :]
            grad_strain.index_add_(0, self.idx_m, total - flow)
        return grad_r, grad_strain

    def jvp(self, tangent_r: Tensor | None, tangent_strain: Tensor | None) -> Tensor:
        """Changes of positions (N, 3) and strain (B, 3, 3) -> change of the descriptors (N, D)."""
        dtype = self.dg_dr.dtype
        out = self.dg_dr.new_zeros(self.n_atoms, self.n_columns)
        t = self.dg_dr.new_zeros(self.n_atoms, 3)
        if tangent_r is not None:
            t = t + tangent_r.detach().to(dtype)
        if tangent_strain is not None:
            s = tangent_strain.detach().to(dtype).index_select(0, self.idx_m)  # (N, 3, 3)
            t = t - torch.bmm(s, self.positions.to(dtype)[:, :, None])[:, :, 0]
            s = s + s.transpose(1, 2)
            axes = zip(VOIGT_ROWS, VOIGT_COLUMNS, strict=True)
            voigt = torch.stack([s[:, a, c] * (0.5 if a == c else 1) for a, c in axes], dim=1)
            out += torch.bmm(voigt[:, None, :], self.dg_dstrain)[:, 0]
        t = t.index_select(0, self.block_j) - t.index_select(0, self.block_i)
        packed = torch.bmm(t[:, None, :], self.dg_dr)[:, 0]  # (P, W)
        if self.columns is None:
            out.index_add_(0, self.block_i, packed)
        else:
            table = out.new_zeros(self.n_atoms * len(self.columns) // self.width, self.width)
            table.index_add_(0, self.block_list, packed)
            out.index_add_(1, self.columns, table.view(self.n_atoms, -1))
        return out.to(self.dtype)
