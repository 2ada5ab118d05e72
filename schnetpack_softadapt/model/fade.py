"""How networks end where atoms come closer than in the data they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from schnetpack_softadapt.model.close_pairs import closeness

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fade"]


class Fade:
    """The network's energy of an atom goes to a constant as a neighbour comes too close.

        e_i -> c + f_i (e_i - c),    f_i = (1 - x_i)^3 for x_i < 1, else 0
        x_i = sum_j ((s - r_ij) / (s - e))^3 over neighbours with r_ij < s

    `s` (start) is the smallest distance of two elements in the data, so that nothing changes there,
    and e (stop) where the network is gone. Values, forces and their first derivatives are
    continuous. The constant c is the highest energy per atom of the training set, above those of
    its composition: giving up the network then costs energy, so that fading itself repels.

    Args:
        elements: atomic numbers, ascending.
        start, stop: (n, n) by pair of elements, in the model's unit of length.
        ceiling: c in the model's unit of energy.
    """

    def __init__(
        self, elements: Sequence[int], start: np.ndarray, stop: np.ndarray, ceiling: float = 0.0
    ):
        self.elements = tuple(elements)
        self.start, self.stop = np.asarray(start), np.asarray(stop)
        self.ceiling = float(ceiling)

    def __call__(self, energies: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Energies (n_atoms,) of networks without shifts, faded; structures in a store are left.

        These are in the data, where nothing is close.
        """
        # not loaded for simulations that do without torch
        import torch
        from schnetpack import properties

        from schnetpack_softadapt import properties as keys

        if keys.descriptors in inputs or not len(inputs[properties.idx_i]):
            return energies
        idx_i, idx_j = inputs[properties.idx_i], inputs[properties.idx_j]
        numbers, r_ij = inputs[properties.Z], inputs[properties.Rij]
        elements = torch.tensor(self.elements, device=numbers.device)
        rows = torch.searchsorted(elements, numbers).clamp_max(len(elements) - 1)
        pair = rows[idx_i] * len(elements) + rows[idx_j]
        start, stop = (
            torch.from_numpy(t).to(r_ij).reshape(-1)[pair] for t in (self.start, self.stop)
        )
        close = (r_ij.detach().square().sum(dim=1) < start.square()).nonzero()[:, 0]
        if not len(close):
            return energies
        start, stop = start[close], stop[close]
        q = ((start - r_ij[close].norm(dim=1)) / (start - stop)) ** 3
        x = torch.zeros_like(energies).index_add(0, idx_i[close], q.to(energies.dtype))
        f = (1.0 - x).clamp_min(0.0) ** 3
        return self.ceiling + f * (energies - self.ceiling)

    def of_pairs(self, r_ij, idx_i, idx_j, numbers, energies: np.ndarray):
        """The same by pairs, for `PairEvaluator`.

        Args:
            r_ij, idx_i, idx_j, numbers: as there.
            energies: (n_central,) of networks, without shifts.

        Returns:
            energies (n_central,); f (n_central,), their derivative by the networks' energies; the
            derivative by the pair vectors at fixed energies of the networks (P, 3). None if no
            pair is close.
        """
        rows = np.searchsorted(self.elements, numbers)
        arguments = (r_ij, idx_i, idx_j, rows, self.start, self.stop, len(energies))
        x, slope = closeness(*arguments)
        if not len(slope):
            return None
        rest = np.maximum(1.0 - x, 0.0)
        excess = energies - self.ceiling
        f = rest**3
        gradient = (-3.0 * rest**2 * excess)[idx_i, None] * slope
        return self.ceiling + f * excess, f, gradient
