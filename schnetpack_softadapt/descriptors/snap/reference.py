"""Bispectrum components in plain torch: any device, differentiable to any order.

Sums run over whole matrices and use none of their symmetries.
"""

import math

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.blockwise_reference import BlockwiseReference, NearPairs
from schnetpack_softadapt.descriptors.snap.clebsch import clebsch_gordan, components
from schnetpack_softadapt.descriptors.snap.parameters import Bispectrum

__all__ = ["ReferenceEngine"]

_TINY_SQUARE = 1e-12  # Ang^2, keeps coinciding atoms finite


class ReferenceEngine(BlockwiseReference):
    """The formulas of `Bispectrum`, one after the other.

    Args:
        descriptor: the parameters.
        is_exact: values keep their graph, which takes 10 kB a pair at twojmax = 8.
    """

    def __init__(self, descriptor: Bispectrum, is_exact: bool = False):
        super().__init__(descriptor, is_exact)
        self._table = torch.from_numpy(descriptor.pair_table())
        self._self_terms = torch.from_numpy(descriptor.self_terms())
        self._factors = torch.from_numpy(descriptor.factors())
        self._isolated = torch.from_numpy(descriptor.isolated())
        self._channels = torch.tensor([*descriptor.channels.values()])
        self._couplings: dict[tuple, Tensor] = {}

    def _cutoffs(self, rows_i: Tensor, rows_j: Tensor, like: Tensor) -> Tensor:
        return self._table.to(like)[rows_i, rows_j, 0]

    def _block(self, pairs: NearPairs, r_ij: Tensor, start: int, stop: int, near: Tensor) -> Tensor:
        """Values (stop - start, D) of some atoms, `near` being their pairs."""
        d, like = self.descriptor, pairs.r_ij
        idx_i, row_j = pairs.idx_i[near] - start, pairs.rows[pairs.idx_j[near]]
        rows = pairs.rows[start:stop]
        table = self._table.to(like)[pairs.rows[pairs.idx_i[near]], row_j]
        factor, levels = self._neighbors(r_ij.index_select(0, near), table)
        own = self._self_terms.to(like)[rows]  # (n, C)
        n, n_channels = own.shape
        slot = idx_i * n_channels + self._channels.to(row_j)[row_j]
        densities = []
        for j, u in enumerate(levels):
            eye = torch.eye(j + 1, dtype=u.dtype, device=u.device)
            self_term = (own.flatten()[:, None, None] * eye).to(u.dtype)
            total = self_term.index_add(0, slot, factor[:, None, None] * u)
            densities.append(total.view(n, n_channels, j + 1, j + 1))
        columns = []
        for b in components(d.twojmax, d.n_channels):
            z = self._product(densities[b.j1][:, b.a], densities[b.j2][:, b.b], b.j)
            columns.append((densities[b.j][:, b.c].conj() * z).real.sum((1, 2)))
        values = torch.stack(columns, 1) * self._factors.to(like) - self._isolated.to(like)[rows]
        if d.quadraticflag:
            first, second = (torch.tensor(x) for x in zip(*d.pairs_of_components(), strict=True))
            half = torch.where(first == second, 0.5, 1.0).to(like)
            values = torch.cat([values, half * values[:, first] * values[:, second]], 1)
        return values

    def _neighbors(self, r_ij: Tensor, table: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f_c weight (P,) and u_j (P, j + 1, j + 1) of each level j."""
        d = self.descriptor
        radius, weight, s, width = table.unbind(1)
        r = torch.sqrt((r_ij * r_ij).sum(1).clamp(min=_TINY_SQUARE))
        x, y, z = (r_ij / r[:, None]).unbind(1)
        angle = math.pi * (r - d.rmin0) / (radius - d.rmin0)
        factor = weight
        if d.switchflag:
            factor = factor * torch.where(r > d.rmin0, 0.5 * (torch.cos(angle) + 1), 1.0)
        if d.sinner is not None:
            t = ((r - s) / width).clamp(-1, 1)
            factor = factor * 0.5 * (1 + torch.sin(0.5 * math.pi * t))
        sine, cosine = torch.sin(d.rfac0 * angle), torch.cos(d.rfac0 * angle)
        conj_a = torch.complex(cosine, z * sine)[:, None, None]
        conj_b = torch.complex(y * sine, x * sine)[:, None, None]
        a, b = conj_a.conj(), conj_b.conj()
        levels = [torch.ones_like(a)]
        for j in range(1, d.twojmax + 1):
            levels.append(self._next(levels[-1], j, a, b, conj_a, conj_b))
        return factor, levels

    def _next(self, u: Tensor, j: int, a, b, conj_a, conj_b) -> Tensor:
        """u_j from u_{j-1}: Varshalovich et al., 4.8.2, eqs. 14 and 15.

        u_j[p, q] sqrt(j - p) = sqrt(j - q) conj(a) u[p, q] - sqrt(q) conj(b) u[p, q - 1], and for
        the last row u_j[p, q] sqrt(p) = sqrt(j - q) b u[p - 1, q] + sqrt(q) a u[p - 1, q - 1].
        """
        root = torch.arange(j + 1, dtype=u.real.dtype, device=u.device).sqrt()
        same = torch.nn.functional.pad(u * root[1:].flip(0), (0, 1))
        moved = torch.nn.functional.pad(u * root[1:], (1, 0))
        upper = (conj_a * same - conj_b * moved) / root[1:].flip(0)[:, None]
        last = (b * same[:, -1:] + a * moved[:, -1:]) / root[-1]
        return torch.cat([upper, last], 1)

    def _product(self, u1: Tensor, u2: Tensor, j: int) -> Tensor:
        """Z (n, j + 1, j + 1) of densities (n, j1 + 1, j1 + 1), (n, j2 + 1, j2 + 1)."""
        j1, j2 = u1.shape[1] - 1, u2.shape[1] - 1
        key = (j1, j2, j)
        if key not in self._couplings:
            c, shift = clebsch_gordan(*key), (j1 + j2 - j) // 2
            dense = torch.zeros(j1 + 1, j2 + 1, j + 1, dtype=torch.float64)
            for p1 in range(j1 + 1):
                for p2 in range(j2 + 1):
                    if 0 <= p1 + p2 - shift <= j:
                        dense[p1, p2, p1 + p2 - shift] = c[p1, p2]
            self._couplings[key] = dense
        c = self._couplings[key].to(device=u1.device, dtype=u1.dtype)
        left = torch.einsum("nab,ace->nbce", u1, c)
        both = torch.einsum("nbce,ncd->nbde", left, u2)
        return torch.einsum("nbde,bdf->nef", both, c)
