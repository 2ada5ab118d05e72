"""Core repulsion of potentials of the cluster expansion, as a baseline."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import atomic_numbers

from schnetpack_softadapt.model.baseline import PairBaseline

__all__ = ["CoreRepulsion"]


class CoreRepulsion(PairBaseline):
    """The repulsion of cores of potentials of the cluster expansion (`pair_style pace` of LAMMPS).

        E_i = sum_j A exp(-lambda r^2) / r (1 + cos(pi r / r_c)) / 2 f(r)

    with f = 1, or the part of it that an inner cutoff leaves: 1 - t^3 (10 - 15 t + 6 t^2), t = (r -
    inner + width) / width between 0 and 1.

    Args:
        pairs: [A (eV Ang), lambda (1/Ang^2), inner, width (Ang; both 0 for f = 1)] of each pair of
            elements, such as {"W-Be": [400, 7, 0, 0]}.
        cutoff: r_c, Ang.
        kwargs: names of the outputs, see `Baseline`.
    """

    def __init__(self, pairs: Mapping[str, Sequence[float]], cutoff: float, **kwargs):
        super().__init__(**kwargs)
        self.pairs = {name: tuple(map(float, x)) for name, x in pairs.items()}
        self.cutoff_ang = float(cutoff)
        symbols = sorted(
            {x for name in self.pairs for x in name.split("-")}, key=atomic_numbers.get
        )
        self.elements = tuple(atomic_numbers[x] for x in symbols)
        self._table = np.zeros((len(symbols), len(symbols), 4))
        for name, x in self.pairs.items():
            a, b = (symbols.index(symbol) for symbol in name.split("-"))
            self._table[a, b] = self._table[b, a] = x
        self._slowest = max(min(x[1] for x in self.pairs.values()), 1e-3)

    @property
    def cutoff(self) -> float:
        """In the model's unit of length."""
        return self.cutoff_ang / self.length_unit

    def to_dict(self) -> dict:
        pairs = {name: list(x) for name, x in self.pairs.items()}
        return {"kind": "core", "pairs": pairs, "cutoff": self.cutoff_ang}

    def _add(self, r_ij, idx_i, idx_j, numbers, energies, gradient) -> None:
        rows, r2 = np.searchsorted(self.elements, numbers), (r_ij * r_ij).sum(1)
        # beyond, e^-50 is nothing
        near = np.flatnonzero(r2 < min(50.0 / self._slowest, self.cutoff_ang**2))
        if not len(near):
            return
        r, i = np.sqrt(r2[near]), idx_i[near]
        height, rate, inner, width = self._table[rows[i], rows[idx_j[near]]].T
        turn = math.pi / self.cutoff_ang
        e = height * np.exp(-rate * r * r) / r
        de = -e * (2.0 * rate * r + 1.0 / r)
        f, df = 0.5 * (1.0 + np.cos(turn * r)), -0.5 * turn * np.sin(turn * r)
        e, de = e * f, de * f + e * df
        wide = np.where(width > 0, width, 1.0)
        t = np.where(width > 0, np.clip((r - inner + wide) / wide, 0.0, 1.0), 0.0)
        f, df = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t * t), -30.0 * (t * (1.0 - t)) ** 2 / wide
        e, de = e * f, de * f + e * df
        np.add.at(energies, i, e)
        gradient[near] += (de / r)[:, None] * r_ij[near]
