"""The descriptors of a batch and their derivatives, out of the arrays of a store.

Forward hands out the stored values; the products with the stored Jacobian that backward and
backward of backward need are those of a `LinearMap` by positions and strain.

N: atoms in the batch, B: structures, D: descriptor columns, P: blocks of W columns (see `store`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.autograd import differentiable
from schnetpack_softadapt.descriptors.compiled import thread_pool
from schnetpack_softadapt.descriptors.store.products import (
    StoredAtoms,
    jvp_atoms,
    subtract_flow,
    vjp_atoms,
)
from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_ROWS, voigt_to_full

__all__ = ["DeviceMap", "HostMap", "PositionTerms", "batch_descriptors", "position_terms"]

# bytes of the store that one more thread must have to read to be worth waking up (about 0.1 ms)
_BYTES_PER_THREAD = 1_000_000


def batch_descriptors(
    positions: Tensor, strain: Tensor | None, idx_m: Tensor, batch: Mapping[str, Tensor]
) -> Tensor:
    """Descriptors of a batch, differentiable by positions and strain.

    The store holds the derivative by a strain of the whole structure. SchNetPack's `Strain` also
    strains the positions, and autograd adds that part on the way back; the gradient by `strain` is
    therefore the total less sum_i dE/dR_i (x) R_i. The total is symmetric.

    Args:
        positions: (N, 3) Ang, those of the store: the derivatives hold there and nowhere else.
        strain: (B, 3, 3), zero, as SchNetPack's `Strain` makes it; None if nothing depends on it.
        idx_m: (N,) structure of each atom, ascending.
        batch: the entries of `properties` that begin with `store_`, and `descriptors` (N, D).
            Either the arrays of the whole store with `store_rows` (N,), or the part that belongs to
            this batch, without `store_rows`. On the CPU they are read in place.

    Returns:
        (N, D) the values of the store; see `autograd.differentiable`.

    Raises:
        ValueError: the store does not fit the batch; raised by the derivatives.
    """
    values = batch[keys.descriptors]
    wants_strain = strain is not None and strain.requires_grad
    if not (torch.is_grad_enabled() and (positions.requires_grad or wants_strain)):
        return values
    of_device = HostMap if positions.device.type == "cpu" else DeviceMap
    n_structures = len(strain) if wants_strain else 0
    linear_map = of_device(positions.detach(), n_structures, idx_m, batch)
    return differentiable(values, linear_map, positions, strain)


class HostMap:
    """The Jacobian of a batch by compiled loops over the store's own memory.

    Args:
        positions: (N, 3) Ang.
        n_structures: B, or 0 where no derivative by strain is wanted.
        idx_m: (N,) structure of each atom, ascending.
        batch: as for `batch_descriptors`.
    """

    def __init__(self, positions: Tensor, n_structures: int, idx_m: Tensor, batch: Mapping):
        self.n_structures = n_structures
        self.dtype = batch[keys.descriptors].dtype
        self.n_columns = batch[keys.descriptors].shape[1]
        rows = batch.get(keys.store_rows)
        self.atoms = StoredAtoms(
            np.arange(len(positions)) if rows is None else rows.numpy(),
            idx_m.numpy(),
            positions.numpy().astype(np.float64),
            batch[keys.store_dg_dstrain].numpy(),
            batch[keys.store_block_first].numpy(),
            batch[keys.store_block_atom].numpy(),
            batch[keys.store_block_columns].numpy(),
            batch[keys.store_columns].numpy(),
            batch[keys.store_dg_dr].numpy(),
            batch[keys.store_scale].numpy(),
        )
        self.real = self.atoms.dg_dstrain.dtype  # of the products

    def vjp(self, grad_g: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> gradients by positions (N, 3) and strain (B, 3, 3)."""
        u = np.ascontiguousarray(grad_g.detach().numpy(), dtype=self.real)
        ranges = self._ranges()
        grad_r = np.zeros((len(ranges), len(self.atoms.rows), 3))
        grad_strain = np.zeros((len(ranges), self.n_structures, 3, 3))
        self._run(
            lambda k, begin, end: vjp_atoms(begin, end, u, self.atoms, grad_r[k], grad_strain[k]),
            ranges,
        )
        grad_r = grad_r[0] if len(ranges) == 1 else grad_r.sum(axis=0)
        grad_strain = grad_strain[0] if len(ranges) == 1 else grad_strain.sum(axis=0)
        if self.n_structures:
            subtract_flow(grad_r, self.atoms.positions, self.atoms.idx_m, grad_strain)
        return torch.from_numpy(grad_r), torch.from_numpy(grad_strain)

    def jvp(self, tangent_r: Tensor | None, tangent_strain: Tensor | None) -> Tensor:
        """Changes of positions (N, 3) and strain (B, 3, 3) -> change of the descriptors (N, D)."""
        n_atoms = len(self.atoms.rows)
        tangents = [
            np.zeros(shape) if x is None else x.detach().numpy().astype(np.float64)
            for x, shape in ((tangent_r, (n_atoms, 3)), (tangent_strain, (0, 3, 3)))
        ]
        tangent_g = np.empty((n_atoms, self.n_columns), self.real)
        self._run(
            lambda k, begin, end: jvp_atoms(begin, end, *tangents, self.atoms, tangent_g),
            self._ranges(),
        )
        return torch.from_numpy(tangent_g).to(self.dtype)

    def _ranges(self) -> list[tuple[int, int]]:
        """Ranges of atoms, one for each thread that is worth its while."""
        n_atoms, n_stored = len(self.atoms.rows), max(1, len(self.atoms.block_first) - 1)
        n_bytes = self.atoms.dg_dr.nbytes * n_atoms / n_stored
        n = max(1, min(torch.get_num_threads(), int(n_bytes / _BYTES_PER_THREAD), n_atoms))
        return [(k * n_atoms // n, (k + 1) * n_atoms // n) for k in range(n)]

    def _run(self, product: Callable[[int, int, int], int], ranges: list[tuple[int, int]]) -> None:
        if len(ranges) == 1:
            bad = product(0, *ranges[0])
        else:
            pool = thread_pool(torch.get_num_threads())
            jobs = [pool.submit(product, k, *r) for k, r in enumerate(ranges)]
            bad = max(job.result() for job in jobs)
        if bad >= 0:
            raise ValueError(
                f"atom {bad} of the batch (structure {self.atoms.idx_m[bad]}, row"
                f" {self.atoms.rows[bad]} of the descriptor store) does not fit the store: either"
                " the batch was not made from this store, or the store is damaged; delete its"
                " folder and it is built again"
            )


class _Blocks(NamedTuple):
    """The blocks of a batch; see `store`."""

    place: Tensor | None  # (P,) in the arrays; None: these hold the blocks of the batch in order
    atom_i: Tensor  # (P,)
    atom_j: Tensor  # (P,)


def _blocks(idx_m: Tensor, batch: Mapping[str, Tensor]) -> _Blocks:
    first, rows = batch[keys.store_block_first], batch.get(keys.store_rows)
    block_atom, place = batch[keys.store_block_atom], None
    atoms = torch.arange(len(idx_m), device=idx_m.device)
    if rows is None:
        atom_i = torch.repeat_interleave(atoms, first.diff(), output_size=len(block_atom))
    else:
        n_blocks = first[rows + 1] - first[rows]
        atom_i = torch.repeat_interleave(atoms, n_blocks)
        start = first[rows] - n_blocks.cumsum(0) + n_blocks
        place = start[atom_i] + torch.arange(len(atom_i), device=idx_m.device)
        block_atom = block_atom[place]
    first_atom = torch.searchsorted(idx_m, idx_m)  # (N,) of the same structure
    return _Blocks(place, atom_i, first_atom[atom_i] + block_atom)


def _scale_of_atoms(batch: Mapping[str, Tensor]) -> Tensor | None:
    """(N, D) what an integer of the blocks of each atom is worth; None if they are no integers."""
    scale, rows = batch[keys.store_scale], batch.get(keys.store_rows)
    if not len(scale):
        return None
    return scale if rows is None else scale[rows]


class DeviceMap:
    """The Jacobian of a batch in plain torch, for GPUs: nothing waits for the device.

    Args:
        positions, n_structures, idx_m: as for `HostMap`.
        batch: with `store_rows` (arrays of the whole store on the device) the number of blocks has
            to be fetched from the device, and blocks are copied; a gathered batch has neither cost.
    """

    def __init__(self, positions: Tensor, n_structures: int, idx_m: Tensor, batch: Mapping):
        self.positions, self.n_structures, self.idx_m = positions, n_structures, idx_m
        self.n_atoms, self.n_columns = batch[keys.descriptors].shape
        self.dtype = batch[keys.descriptors].dtype
        self.dg_dr, self.dg_dstrain = batch[keys.store_dg_dr], batch[keys.store_dg_dstrain]
        self.scale = _scale_of_atoms(batch)
        lists = batch[keys.store_block_columns]
        place, self.block_i, self.block_j = _blocks(idx_m, batch)
        if place is not None:
            self.dg_dr, lists = self.dg_dr[place], lists[place]
            self.dg_dstrain = self.dg_dstrain[batch[keys.store_rows]]
        # columns of all lists in turn (L W,), and list of each block in the table (N L, W) of the
        # columns that atoms have in them: an index for each number of the store would outweigh it
        n_lists, self.width = batch[keys.store_columns].shape
        self.columns = batch[keys.store_columns].reshape(-1)
        self.block_list = self.block_i * n_lists + lists

    def vjp(self, grad_g: Tensor) -> tuple[Tensor, Tensor]:
        """As `HostMap.vjp`."""
        u = grad_g.detach().to(self.dg_dstrain.dtype)
        scaled = u if self.scale is None else u * self.scale
        table = scaled.index_select(1, self.columns).view(-1, self.width)  # (N L, W)
        chosen = table.index_select(0, self.block_list)  # (P, W)
        forces = torch.bmm(self.dg_dr.to(u.dtype), chosen[:, :, None])[:, :, 0]  # (P, 3)
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
        """As `HostMap.jvp`."""
        dtype = self.dg_dstrain.dtype
        out = self.dg_dstrain.new_zeros(self.n_atoms, self.n_columns)
        t = out.new_zeros(self.n_atoms, 3)
        if tangent_r is not None:
            t = t + tangent_r.detach().to(dtype)
        if tangent_strain is not None:
            s = tangent_strain.detach().to(dtype).index_select(0, self.idx_m)  # (N, 3, 3)
            t = t - torch.bmm(s, self.positions.to(dtype)[:, :, None])[:, :, 0]
        t = t.index_select(0, self.block_j) - t.index_select(0, self.block_i)
        change = torch.bmm(t[:, None, :], self.dg_dr.to(dtype))[:, 0]  # (P, W)
        table = out.new_zeros(self.n_atoms * len(self.columns) // self.width, self.width)
        table.index_add_(0, self.block_list, change)
        out.index_add_(1, self.columns, table.view(self.n_atoms, -1))
        if self.scale is not None:
            out *= self.scale
        if tangent_strain is not None:
            s = s + s.transpose(1, 2)
            axes = zip(VOIGT_ROWS, VOIGT_COLUMNS, strict=True)
            voigt = torch.stack([s[:, a, c] * (0.5 if a == c else 1) for a, c in axes], dim=1)
            out += torch.bmm(voigt[:, None, :], self.dg_dstrain)[:, 0]
        return out.to(self.dtype)


class PositionTerms(NamedTuple):
    """dG_i/dR_j by terms, one for each atom i whose descriptors change with a chosen atom j."""

    centers: Tensor  # (T,) atom i of the batch
    rows: Tensor  # (T,) which of the chosen atoms j is; ascending
    derivatives: Tensor  # (T, 3, D) 1/Ang


def position_terms(atoms: Tensor, idx_m: Tensor, batch: Mapping[str, Tensor]) -> PositionTerms:
    """Derivatives of the descriptors of all atoms by the positions of some.

    For optimizers that need the Jacobian itself and not its products.

    Args:
        atoms: (R,) atoms of the batch, each at most once.
        idx_m: (N,) structure of each atom, ascending.
        batch: as for `batch_descriptors`.
    """
    place, atom_i, atom_j = _blocks(idx_m, batch)
    if place is None:
        place = torch.arange(len(atom_i), device=idx_m.device)
    numbered = torch.arange(len(atoms), device=idx_m.device)
    row_of = torch.full((len(idx_m),), -1, device=idx_m.device)
    row_of[atoms] = numbered
    wanted = (row_of[atom_j] >= 0).nonzero()[:, 0]
    # the block of an atom with itself is minus the sum of its others, which are not its columns
    own = (row_of[atom_i] >= 0).nonzero()[:, 0]
    scale = _scale_of_atoms(batch)

    def derivatives_of(blocks: Tensor) -> Tensor:
        found = _all_columns(place[blocks], batch)
        return found if scale is None else found * scale[atom_i[blocks]][:, None]

    derivatives = derivatives_of(wanted)
    total = derivatives.new_zeros(len(atoms), *derivatives.shape[1:])
    total.index_add_(0, row_of[atom_i[own]], derivatives_of(own))
    rows = torch.cat([row_of[atom_j[wanted]], numbered])
    centers = torch.cat([atom_i[wanted], atoms])
    order = torch.argsort(rows, stable=True)
    return PositionTerms(
        centers[order], rows[order], torch.cat([derivatives, -total]).index_select(0, order)
    )


def _all_columns(place: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Blocks (n,) of the store with all columns, (n, 3, D), in the units of the store."""
    kept = batch[keys.store_dg_dr].index_select(0, place).to(batch[keys.store_dg_dstrain].dtype)
    columns = batch[keys.store_columns].long()[batch[keys.store_block_columns][place].long()]
    out = kept.new_zeros(len(place), 3, batch[keys.descriptors].shape[1])
    return out.scatter_add_(2, columns[:, None, :].expand_as(kept), kept)
