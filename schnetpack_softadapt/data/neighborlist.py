"""SchNetPack's neighbour-list transform on the list that this plugin uses everywhere."""

import torch
from schnetpack.transform import NeighborListTransform

from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["NeighborList"]


class NeighborList(NeighborListTransform):
    """Neighbours within a cutoff, right for molecules, slabs and cells of either handedness.

    SchNetPack's MatScipyNeighborList replaces the whole cell, and so the offsets, when one lattice
    vector is zero (a slab without a height), and returns wrong neighbours without a word; here the
    missing vectors of non-periodic directions are completed first.

    Args:
        cutoff: radius, Ang.
    """

    def _build_neighbor_list(self, Z, positions, cell, pbc, cutoff):
        idx_i, idx_j, _, offsets = neighbor_pairs(
            positions.detach().double().cpu().numpy(),
            cell.detach().double().cpu().numpy().reshape(3, 3),
            pbc.cpu().numpy().reshape(3),
            cutoff,
        )
        return (
            torch.from_numpy(idx_i).long(),
            torch.from_numpy(idx_j).long(),
            torch.from_numpy(offsets).to(positions.dtype),
        )
