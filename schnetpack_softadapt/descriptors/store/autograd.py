"""Descriptors of a known data set as an autograd function on the arrays of its store.

Forward hands out the stored values, backward is the vector-Jacobian product with the stored
derivatives, backward of backward the Jacobian-vector product: all that training on energies,
forces and stress needs. Second derivatives by positions and strain come out as NaN.

N: atoms in the batch, B: structures, D: descriptor columns, W: columns of a block (`store`).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.second_derivative import asked_for, second_derivative
from schnetpack_softadapt.descriptors.store.device import DeviceJacobian
from schnetpack_softadapt.descriptors.store.products import jvp_atoms, subtract_flow, vjp_atoms

__all__ = ["stored_descriptors"]

# bytes of the store that one more thread must have to read to be worth waking up (about 0.1 ms)
_BYTES_PER_THREAD = 1_000_000

# identifies the running backward pass; private, so missing it must not hurt
_current_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def stored_descriptors(
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
        (N, D) the values of the store. Differentiable by `positions` and `strain` once, and by what
        follows in between any number of times.

    Raises:
        ValueError: the store does not fit the batch; raised by the derivatives.
    """
    values = batch[keys.descriptors]
    wants_strain = strain is not None and strain.requires_grad
    if not (torch.is_grad_enabled() and (positions.requires_grad or wants_strain)):
        return values
    if not wants_strain:
        strain = None
    on_cpu = positions.device.type == "cpu"
    jacobian = (_HostJacobian if on_cpu else DeviceJacobian)(
        positions.detach(), 0 if strain is None else len(strain), idx_m, batch
    )
    return _Values.apply(positions, strain, values, jacobian)


class _Values(torch.autograd.Function):
    """The stored values, as a function of positions and strain."""

    @staticmethod
    def forward(ctx, positions, strain, values, jacobian):
        ctx.save_for_backward(positions, strain)
        ctx.jacobian = jacobian
        return values.view_as(values)

    @staticmethod
    def backward(ctx, u):
        positions, strain = ctx.saved_tensors
        if ctx.jacobian.nan_task == _current_task() != -1:
            # This pass differentiates the forces, and NaN has gone to the positions already; the
            # product would be lost in it. A third of the time of a training step.
            by_r, by_strain = map(second_derivative, (positions, strain), ctx.needs_input_grad)
            return by_r, by_strain, None, None
        return *_Gradient.apply(u, positions, strain, ctx.jacobian, asked_for), None, None


class _Gradient(torch.autograd.Function):
    """u -> u dG/dR, u dG/dstrain: linear in u."""

    @staticmethod
    def forward(ctx, u, positions, strain, jacobian, _):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, strain)
        ctx.jacobian = jacobian
        grad_r, grad_strain = jacobian.vjp(u)
        grad_r = grad_r.to(positions.dtype)
        return grad_r, None if strain is None else grad_strain.to(strain.dtype)

    @staticmethod
    def backward(ctx, tangent_r, tangent_strain):
        positions, strain = ctx.saved_tensors
        needs = ctx.needs_input_grad
        u = None
        if needs[0] and not (tangent_r is None and tangent_strain is None):
            u = _Tangent.apply(
                tangent_r, tangent_strain, positions, strain, ctx.jacobian, asked_for
            )
        if needs[1]:
            ctx.jacobian.nan_task = _current_task()
        by_r, by_strain = map(second_derivative, (positions, strain), needs[1:3])
        return u, by_r, by_strain, None, None


class _Tangent(torch.autograd.Function):
    """Changes of positions and strain -> change of descriptors: `_Gradient` transposed."""

    @staticmethod
    def forward(ctx, tangent_r, tangent_strain, positions, strain, jacobian, _):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(positions, strain)
        ctx.jacobian = jacobian
        return jacobian.jvp(tangent_r, tangent_strain)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return None, None, None, None, None, None
        positions, strain = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_r, grad_strain = _Gradient.apply(u, positions, strain, ctx.jacobian, asked_for)
        return (
            grad_r if needs[0] else None,
            grad_strain if needs[1] else None,
            second_derivative(positions, needs[2]),
            second_derivative(strain, needs[3]),
            None,
            None,
        )


class _HostJacobian:
    """The Jacobian of a batch by compiled loops over the store's own memory."""

    nan_task = -2  # the backward pass in which NaN went to the positions

    def __init__(self, positions: Tensor, n_structures: int, idx_m: Tensor, batch: Mapping):
        self.n_structures = n_structures
        self.positions = positions.numpy().astype(np.float64)
        self.idx_m = idx_m.numpy()
        self.dtype = batch[keys.descriptors].dtype
        rows = batch.get(keys.store_rows)
        self.rows = np.arange(len(positions)) if rows is None else rows.numpy()
        self.dg_dr = batch[keys.store_dg_dr].numpy()
        if keys.store_columns in batch:
            lists = batch[keys.store_block_columns].numpy(), batch[keys.store_columns].numpy()
        else:
            lists = np.zeros(0, np.int16), np.arange(self.dg_dr.shape[2], dtype=np.int32)[None]
        self.arrays = (
            self.rows,
            self.idx_m,
            self.positions,
            batch[keys.store_dg_dstrain].numpy(),
            batch[keys.store_block_first].numpy(),
            batch[keys.store_block_atom].numpy(),
            *lists,
            self.dg_dr,
        )

    def vjp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u = np.ascontiguousarray(u.detach().numpy(), dtype=self.dg_dr.dtype)
        ranges = self._ranges()
        n_atoms = len(self.rows)
        grad_r = np.zeros((len(ranges), n_atoms, 3))
        grad_strain = np.zeros((len(ranges), self.n_structures, 3, 3))
        self._run(
            lambda k, begin, end: vjp_atoms(begin, end, u, *self.arrays, grad_r[k], grad_strain[k]),
            ranges,
        )
        grad_r = grad_r[0] if len(ranges) == 1 else grad_r.sum(axis=0)
        grad_strain = grad_strain[0] if len(ranges) == 1 else grad_strain.sum(axis=0)
        if self.n_structures:
            subtract_flow(grad_r, self.positions, self.idx_m, grad_strain)
        return torch.from_numpy(grad_r), torch.from_numpy(grad_strain)

    def jvp(self, tangent_r: Tensor | None, tangent_strain: Tensor | None) -> Tensor:
        n_atoms = len(self.rows)
        if tangent_r is None:
            tangent_r = np.zeros((n_atoms, 3))
        else:
            tangent_r = tangent_r.detach().numpy().astype(np.float64)
        if tangent_strain is None:
            tangent_strain = np.zeros((0, 3, 3))
        else:
            tangent_strain = tangent_strain.detach().numpy().astype(np.float64)
        tangent_g = np.empty((n_atoms, self.arrays[3].shape[2]), self.dg_dr.dtype)
        self._run(
            lambda k, begin, end: jvp_atoms(
                begin, end, tangent_r, tangent_strain, *self.arrays, tangent_g
            ),
            self._ranges(),
        )
        return torch.from_numpy(tangent_g).to(self.dtype)

    def _ranges(self) -> list[tuple[int, int]]:
        """Ranges of atoms, one for each thread that is worth its while."""
        n_atoms = len(self.rows)
        n_bytes = self.dg_dr.nbytes * n_atoms / max(1, len(self.arrays[4]) - 1)
        n = max(1, min(torch.get_num_threads(), int(n_bytes / _BYTES_PER_THREAD), n_atoms))
        return [(k * n_atoms // n, (k + 1) * n_atoms // n) for k in range(n)]

    def _run(self, product: Callable[[int, int, int], int], ranges: list[tuple[int, int]]) -> None:
        if len(ranges) == 1:
            bad = product(0, *ranges[0])
        else:
            # Python threads, not numba's: those abort when a process forks or calls them from two
            # threads at once, and data loaders do both
            jobs = [_threads().submit(product, k, *r) for k, r in enumerate(ranges)]
            bad = max(job.result() for job in jobs)
        if bad >= 0:
            raise ValueError(
                f"atom {bad} of the batch (structure {self.idx_m[bad]}, row {self.rows[bad]} of the"
                " descriptor store) does not fit the store: either the batch was not made from this"
                " store, or the store is damaged; delete its folder and it is built again"
            )


_pool: tuple[int, ThreadPoolExecutor] | None = None


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[0] != os.getpid():  # threads do not survive a fork
        workers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="descriptor-store")
        _pool = os.getpid(), workers
    return _pool[1]
