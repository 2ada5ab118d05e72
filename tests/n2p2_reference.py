"""Reads potentials and the values that n2p2 computes for them.

`HO` lies in `descriptors/reference` with what made it; the larger ones are public data of others in
the shared `reference` folder. Everything stays in the files' own units (the layout's "Ang" are then
bohr for H2O_RPBE-D3).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from shared import shared_path

from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

__all__ = ["NAMES", "ReferencePotential", "load", "pair_list", "read_columns"]

NAMES = ("HO", "acsf24_Mo54", "H2O_RPBE-D3")

_OWN = Path(__file__).parent / "descriptors" / "reference"

_CUTOFF_FN = {"1": "cosine", "2": "tanh3"}
_KINDS = {"2": "G2", "3": "G4", "9": "G5", "12": "wG2", "13": "wG4"}


@dataclass
class ReferencePotential:
    """One folder of the reference data.

    Attributes:
        folder: where it lies.
        layout: the functions in the order of the value files.
        settings: other keywords of input.nn, each a list of words.
        scaling: min, max, mean, sigma of each function of each element (atomic number -> (n, 4)).
        cell: (3, 3); positions: (N, 3); numbers: (N,).
        forces: (N, 3) predicted forces.
    """

    folder: Path
    layout: Layout
    settings: dict[str, list[str]]
    scaling: dict[int, np.ndarray]
    cell: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    forces: np.ndarray

    def values(self, name: str) -> list[np.ndarray]:
        """Rows of G_unscaled.txt, G_scaled.txt (skip 4 words) or dEdG_scaled.txt (skip 3)."""
        skip = 3 if name.startswith("dEdG") else 4
        return [np.array(words[skip:], float) for words in read_columns(self.folder / name)]

    def jacobian(self) -> tuple[np.ndarray, np.ndarray]:
        """dG_i/dR_j (N, N, 3, D) and dG_i/dstrain (N, 3, 3, D), without scaling."""
        n = len(self.numbers)
        dg_dr = np.zeros((n, n, 3, self.layout.n_columns))
        for i, j, k, *derivative in read_columns(self.folder / "dGdr.txt"):
            dg_dr[int(i), int(j), :, int(k)] = derivative
        dg_dstrain = np.zeros((n, 3, 3, self.layout.n_columns))
        for i, k, *derivative in read_columns(self.folder / "dGdstrain.txt"):
            dg_dstrain[int(i), :, :, int(k)] = np.reshape(np.array(derivative, float), (3, 3))
        return dg_dr, dg_dstrain

    def padded(self, name: str) -> np.ndarray:
        """The rows of `values` padded with zeros to the columns of the layout."""
        rows = self.values(name)
        out = np.zeros((len(rows), self.layout.n_columns))
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out


def read_columns(path: Path) -> list[list[str]]:
    """Words of every line that is neither empty nor a comment."""
    lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
    return [words for words in lines if words]


def load(name: str) -> ReferencePotential:
    """Read one of `NAMES`; skips the test when the data is not there."""
    folder = _OWN / name if (_OWN / name).exists() else shared_path(f"reference/{name}")
    settings: dict[str, list[str]] = {}
    functions: list[tuple[int, SymmetryFunction]] = []
    lines = read_columns(folder / "input.nn")
    for key, *words in lines:
        settings[key] = words
    cutoff_fn = _CUTOFF_FN[settings["cutoff_type"][0]]
    for key, *words in lines:
        if key == "symfunction_short":
            functions.append(_function(words, cutoff_fn))
    layout = Layout(_sorted(functions, folder))
    elements = sorted(layout.elements)
    scaling = {z: [] for z in elements}
    for words in read_columns(folder / "scaling.data"):
        if len(words) == 6:
            scaling[elements[int(words[0]) - 1]].append([float(w) for w in words[2:]])
    structure = read_columns(folder / "input.data")
    atoms = [words for words in structure if words[0] == "atom"]
    forces = read_columns(folder / "forces.txt")
    return ReferencePotential(
        folder=folder,
        layout=layout,
        settings=settings,
        scaling={z: np.array(rows) for z, rows in scaling.items()},
        cell=np.array([words[1:] for words in structure if words[0] == "lattice"], float),
        positions=np.array([words[1:4] for words in atoms], float),
        numbers=np.array([atomic_numbers[words[4]] for words in atoms]),
        forces=np.array([words[5:8] for words in forces], float),
    )


def _function(words: list[str], cutoff_fn: str) -> tuple[int, SymmetryFunction]:
    """Central element and function of a `symfunction_short` line."""
    center, kind = atomic_numbers[words[0]], _KINDS[words[1]]
    n_neighbors = {"G2": 1, "wG2": 0, "wG4": 0}.get(kind, 2)
    neighbors = tuple(atomic_numbers[word] for word in words[2 : 2 + n_neighbors])
    numbers = [float(word) for word in words[2 + n_neighbors :]]
    zeta = lam = 1.0
    if kind in ("G2", "wG2"):
        eta, r_s, cutoff = numbers
    elif kind == "wG4":
        eta, r_s, lam, zeta, cutoff = numbers
    else:
        eta, lam, zeta, cutoff, r_s = [*numbers, 0.0][:5]
    return center, SymmetryFunction(
        kind, neighbors, cutoff, eta, r_s, zeta, lam, cutoff_fn=cutoff_fn
    )


def _sorted(
    functions: list[tuple[int, SymmetryFunction]], folder: Path
) -> dict[int, list[SymmetryFunction]]:
    """The functions in the order of symfuncs.txt, whose last column is the line in input.nn."""
    lines = (folder / "input.nn").read_text().splitlines()
    wanted: dict[int, list[SymmetryFunction]] = {}
    by_line = {}
    queue = iter(functions)
    for number, line in enumerate(lines, 1):
        if line.split()[:1] == ["symfunction_short"]:
            by_line[number] = next(queue)
    for words in read_columns(folder / "symfuncs.txt"):
        # the scaling table that follows has a small number in the last column
        if len(words) > 3 and words[3].startswith("ct"):
            center, f = by_line[int(words[-1])]
            wanted.setdefault(center, []).append(f)
    return wanted


def pair_list(
    positions: np.ndarray, cell: np.ndarray, pbc, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r_ij (P, 3), idx_i (P,), idx_j (P,) of all pairs within the cutoff, both directions."""
    from matscipy.neighbours import neighbour_list

    idx_i, idx_j, r_ij = neighbour_list(
        "ijD",
        positions=positions,
        cell=cell,
        pbc=np.broadcast_to(pbc, 3).copy(),
        cutoff=cutoff,
    )
    return r_ij, idx_i.astype(np.int64), idx_j.astype(np.int64)
