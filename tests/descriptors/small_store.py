"""Structures, descriptors and batches for the tests of the store."""

from types import SimpleNamespace

import numpy as np
import torch
from ase.build import bulk, fcc111, molecule

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

__all__ = ["batch_of", "layout", "structures"]

CUTOFF = 4.0


def layout() -> Layout:
    """H and O with different numbers of functions; most see one neighbour element only."""
    s = SymmetryFunction
    return Layout(
        {
            "H": [
                s("G2", (1,), CUTOFF, 0.3),
                s("G2", (8,), CUTOFF, 0.5, 1.0),
                s("G2", (1,), 3.0, 1.5, 1.5),
                s("G4", (1, 8), CUTOFF, 0.05, zeta=2, lam=1),
                s("G4", (8, 8), CUTOFF, 0.05, zeta=1, lam=-1),
                s("wG2", (), CUTOFF, 0.2),
            ],
            "O": [
                s("G2", (1,), CUTOFF, 0.3),
                s("G2", (8,), CUTOFF, 0.3),
                s("G5", (1, 1), CUTOFF, 0.1, zeta=1, lam=-1),
                s("G4", (1, 8), 3.5, 0.05, zeta=3, lam=-1),
            ],
        }
    )


def structures() -> list[SimpleNamespace]:
    """A molecule, a tiny and a larger crystal, a slab without height, an atom alone, left hands."""
    rng = np.random.default_rng(3)
    cubic = bulk("Mo", "bcc", a=3.1, cubic=True)
    large = bulk("Mo", "bcc", a=2.9, cubic=True).repeat((2, 1, 2))
    slab = fcc111("Al", (2, 1, 2), a=3.8)
    left = bulk("Mo", "bcc", a=3.3).copy()
    left.set_cell(left.cell.array[[1, 0, 2]])
    lone = molecule("O")
    result = []
    for atoms in (molecule("H2O"), cubic, large, lone, slab, left):
        numbers = np.array([1, 8, 1])[np.arange(len(atoms)) % 3]
        if len(atoms) == 1 and not atoms.pbc.any():
            numbers[:] = 8
        positions = atoms.positions + rng.normal(0, 0.08, (len(atoms), 3))
        result.append(
            SimpleNamespace(
                numbers=numbers, positions=positions, cell=atoms.cell.array, pbc=atoms.pbc
            )
        )
    return result


def batch_of(store, indices, data, dtype=torch.float64):
    """positions, strain, idx_m, batch (keys of the store), numbers, cells of some structures."""
    rows = np.concatenate([np.arange(store.n_rows)[store.rows(k)] for k in indices])
    sizes = [len(data[k].numbers) for k in indices]
    batch = {
        keys.descriptors: torch.from_numpy(store.G[rows].astype(store.G.dtype)).to(dtype),
        keys.store_rows: torch.from_numpy(rows),
        **store.tensors(),
    }
    positions = torch.from_numpy(np.concatenate([data[k].positions for k in indices]))
    positions = positions.to(dtype).requires_grad_()
    strain = torch.zeros(len(indices), 3, 3, dtype=dtype, requires_grad=True)
    idx_m = torch.repeat_interleave(torch.arange(len(indices)), torch.tensor(sizes))
    return positions, strain, idx_m, batch
