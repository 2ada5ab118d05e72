"""Tabulated pair potentials below the network, from the files of LAMMPS' `pair_style table`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy.interpolate import CubicHermiteSpline

from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.model.baseline import PairBaseline

__all__ = ["PairTable", "read_table"]

#: eV, a step at the end of a table
_END = 1e-3


class PairTable(PairBaseline):
    """Energies and forces of pairs, from a table in eV and Ang (LAMMPS' units metal).

    Between its points cubic polynomials that have its energies and forces there (Hermite), so that
    forces are derivatives of energies; LAMMPS interpolates either by itself. Zero from the last
    point on; below the first one is an error, as in LAMMPS.

    Args:
        file: of one or more tables.
        pairs: keyword of the table of each pair of elements, such as {"Cu-Au": "CU_AU"}; pairs that
            are not named do not interact.
        kwargs: names of the outputs, see `Baseline`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name that is no pair of elements, or a table that cannot be used.
    """

    def __init__(self, file: str, pairs: Mapping[str, str], **kwargs):
        super().__init__(**kwargs)
        path = user_path(file)
        self.file, self._splines, self._entries = path.name, {}, {}
        for name, keyword in pairs.items():
            numbers = [atomic_numbers.get(symbol) for symbol in name.split("-")]
            if len(numbers) != 2 or None in numbers:
                raise ValueError(f"pairs of elements are named as Cu-Au, not {name}")
            table = read_table(path, keyword)
            r, energy, force = table.T
            self._splines[tuple(sorted(numbers))] = CubicHermiteSpline(r, energy, -force)
            digest = hashlib.sha256(table.tobytes()).hexdigest()[:16]
            self._entries[name] = {"keyword": keyword, "points": len(r), "sha256": digest}

    @property
    def cutoff(self) -> float:
        return max(spline.x[-1] for spline in self._splines.values()) / self.length_unit

    def to_dict(self) -> dict:
        return {"kind": "table", "file": self.file, "pairs": self._entries}

    def _add(self, r_ij, idx_i, idx_j, numbers, energies, gradient) -> None:
        distances = np.linalg.norm(r_ij, axis=1)
        z = np.sort(numbers[np.stack([idx_i, idx_j])], axis=0)
        for (a, b), spline in self._splines.items():
            of = np.flatnonzero((z[0] == a) & (z[1] == b) & (distances < spline.x[-1]))
            r = distances[of]
            if len(r) and r.min() < spline.x[0]:
                raise ValueError(
                    f"{chemical_symbols[a]} and {chemical_symbols[b]} are {r.min():.4g} Ang apart,"
                    f" but their table in {self.file} begins at {spline.x[0]:.4g}"
                )
            np.add.at(energies, idx_i[of], 0.5 * spline(r))  # the other way has the other half
            gradient[of] += (0.5 * spline(r, 1) / r)[:, None] * r_ij[of]


def read_table(path: str | Path, keyword: str) -> np.ndarray:
    """(n, 3) distance (Ang), energy (eV) and force (eV/Ang) of a section of a table file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such section, numbers missing, distances that do not ascend, forces that are
            not minus the slope of the energies, or an end that is not zero; names file and section.
    """
    lines = [line.split("#")[0].split() for line in Path(path).read_text().splitlines()]
    where, lines = f"{path}, table {keyword}", [words for words in lines if words]
    starts = [k for k, words in enumerate(lines) if words == [keyword]]
    settings = lines[starts[0] + 1] if starts and starts[0] + 1 < len(lines) else []
    if "N" not in settings[:-1] or "BITMAP" in settings:
        raise ValueError(f"{where}: no such section with a line `N points`, without BITMAP")
    try:
        n = int(settings[settings.index("N") + 1])
        rows = lines[starts[0] + 2 : starts[0] + 2 + n]
        table = np.array([[float(word) for word in words[1:4]] for words in rows])
        r, energy, force = table.T
    except ValueError as error:
        raise ValueError(f"{where}: lines of index, r, energy and force are wanted") from error
    if len(r) != n or n < 2 or not np.isfinite(table).all() or r[0] <= 0 or (np.diff(r) <= 0).any():
        raise ValueError(f"{where}: {n} points with ascending distances are wanted, all finite")
    steps, slopes = np.diff(energy), -0.5 * (force[1:] + force[:-1]) * np.diff(r)
    if not 0.7 < (steps @ slopes + 1e-12) / (steps @ steps + 1e-12) < 1.4:
        raise ValueError(f"{where}: the forces are not minus the slope of the energies")
    if abs(energy[-1]) > _END:
        raise ValueError(f"{where}: ends with {energy[-1]:.3g} eV, not with zero: shift it")
    return table
