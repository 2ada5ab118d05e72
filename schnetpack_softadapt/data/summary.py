"""What was imported, in numbers, and which of them look as if a unit or a sign were wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from ase import units
from ase.data import chemical_symbols, covalent_radii

from schnetpack_softadapt.data.checks import duplicates, where
from schnetpack_softadapt.data.stress_labels import findings_from_strained_cells
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs
from schnetpack_softadapt.quantities import STRESS

__all__ = ["Summary", "summarize", "suspicions"]

MPA = 1 / STRESS.shown_factor  # eV/Ang^3
MAX_SAMPLED = 200  # structures looked at for distances, which take longest


@dataclass
class Spread:
    """Range, mean and standard deviation of a set of numbers."""

    minimum: float
    maximum: float
    mean: float
    std: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of all entries of an array that is not empty."""
        return cls(*(float(f(values)) for f in (np.min, np.max, np.mean, np.std)))


@dataclass
class Summary:
    """Counts and spreads of labelled structures; `str` of it is what the importer prints.

    Attributes:
        n_structures, n_atoms: counts.
        n_forces, n_stress: structures with these labels.
        elements: atoms of each element, by symbol.
        groups: structures of each group.
        energy: spread of energies per atom, eV.
        forces: spread of force components, eV/Ang; None without forces.
        stress: spread of stress components, eV/Ang^3; None without stress.
        remarks: how labels were understood.
        warnings: what looks wrong.
    """

    n_structures: int
    n_atoms: int
    n_forces: int
    n_stress: int
    elements: dict[str, int]
    groups: dict[str, int]
    energy: Spread
    forces: Spread | None
    stress: Spread | None
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self):
        share = ", ".join(f"{s} {n} ({n / self.n_atoms:.1%})" for s, n in self.elements.items())
        lines = [
            f"structures   {self.n_structures} ({self.n_forces} with forces, {self.n_stress} with"
            " stress)",
            f"atoms        {self.n_atoms}: {share}",
            f"groups       {_shortened([f'{name} {n}' for name, n in self.groups.items()])}",
            f"energy       {self.energy.minimum:.4f} to {self.energy.maximum:.4f} eV/atom, standard"
            f" deviation {1e3 * self.energy.std:.1f} meV/atom",
        ]
        if self.forces is not None:
            lines.append(
                f"forces       {self.forces.minimum:.3f} to {self.forces.maximum:.3f} eV/Ang,"
                f" standard deviation {1e3 * self.forces.std:.1f} meV/Ang"
            )
        if self.stress is not None:
            low, high, std = (
                x / MPA for x in (self.stress.minimum, self.stress.maximum, self.stress.std)
            )
            lines.append(
                f"stress       {low:.0f} to {high:.0f} MPa (positive = tension), standard deviation"
                f" {std:.0f} MPa"
            )
        lines += [f"note         {text}" for text in self.remarks]
        lines += [f"WARNING      {text}" for text in self.warnings]
        return "\n".join(lines)


def _shortened(names: Sequence[str], n_shown: int = 8) -> str:
    more = f", and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(names[:n_shown]) + more


def summarize(structures: Sequence[Structure], remarks: Sequence[str] = ()) -> Summary:
    """Counts, spreads and warnings of valid structures (see `checks`), at least one."""
    numbers = np.concatenate([s.numbers for s in structures])
    n_atoms = np.array([s.n_atoms for s in structures])
    forces = [s.forces for s in structures if s.forces is not None]
    stresses = [s.stress_voigt for s in structures if s.stress is not None]
    return Summary(
        n_structures=len(structures),
        n_atoms=len(numbers),
        n_forces=len(forces),
        n_stress=len(stresses),
        elements={
            chemical_symbols[z]: int(n)
            for z, n in zip(*np.unique(numbers, return_counts=True), strict=True)
        },
        groups=dict(Counter(s.group for s in structures)),
        energy=Spread.of(np.array([s.energy for s in structures]) / n_atoms),
        forces=Spread.of(np.concatenate(forces)) if forces else None,
        stress=Spread.of(np.array(stresses)) if stresses else None,
        remarks=list(remarks),
        warnings=[*_duplicate_warnings(structures), *suspicions(structures)],
    )


def _duplicate_warnings(structures: Sequence[Structure]) -> list[str]:
    pairs = duplicates(structures)
    if not pairs:
        return []
    named = [
        f"{where(structures[a], a)} = {where(structures[b], b)}"
        + ("" if abs(structures[a].energy - structures[b].energy) < 1e-6 else " (other energy!)")
        for a, b in pairs
    ]
    text = f"{len(pairs)} duplicate structure(s): {_shortened(named, 3)}"
    subset = [s.info.get("subset") for s in structures]
    n_leaked = sum(subset[a] != subset[b] for a, b in pairs)
    if n_leaked:
        text += f"; {n_leaked} of them stand in two subsets, so errors will look too small"
    return [text]


def suspicions(structures: Sequence[Structure]) -> list[str]:
    """Magnitudes and signs that suggest a wrong unit, key or convention."""
    return [
        text
        for check in (_distances, _energies, _forces, _energies_against_forces, _stresses)
        for text in check(structures)
    ]


def _distances(structures: Sequence[Structure]) -> list[str]:
    """Bonds against the sums of covalent radii: bohr make them 1.9 times too long."""
    step = max(1, len(structures) // MAX_SAMPLED)
    ratios = []
    for s in structures[::step]:
        radii = covalent_radii[s.numbers]
        i, j, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, 4.4 * radii.max())
        if len(i):
            ratios.append((np.linalg.norm(r_ij, axis=1) / (radii[i] + radii[j])).min())
    if ratios and not 0.55 < np.median(ratios) < 1.6:
        return [
            f"shortest bonds are {np.median(ratios):.2f} times the sum of covalent radii: are"
            " lengths in another unit? (--length-unit)"
        ]
    return []


def _energies(structures: Sequence[Structure]) -> list[str]:
    # Thomas-Fermi energy of neutral atoms with its two corrections, within 10 % from carbon on:
    # -0.7687 Z^(7/3) + Z^2 / 2 - 0.2699 Z^(5/3) hartree (Englert and Schwinger, Phys. Rev. A 1985)
    ratios = []
    for s in structures:
        z = s.numbers.astype(float)
        ratios.append(s.energy / (-0.7687 * z ** (7 / 3) + z**2 / 2 - 0.2699 * z ** (5 / 3)).sum())
    ratio = float(np.median(ratios))
    if 0.85 < ratio < 1.15 and max(s.numbers.max() for s in structures) >= 6:
        return [
            "energies look like all-electron energies in hartree: give --energy-unit Ha"
        ]  # in eV the ratio is 27
    energies = np.array([s.energy / s.n_atoms for s in structures])
    if len(structures) > 2 and np.ptp(energies) == 0:
        return ["all energies per atom are equal: is this the right key? (--energy-key)"]
    if all(s.energy > 0 for s in structures) and np.median(energies) > 2.0:
        return ["all energies are positive: is this the right key and sign? (--energy-key)"]
    return []


def _forces(structures: Sequence[Structure]) -> list[str]:
    forces = [s.forces for s in structures if s.forces is not None]
    if not forces:
        return []
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
    if rms == 0:
        return ["all forces are zero"]
    if rms > 30:
        return [
            f"forces are large, {rms:.0f} eV/Ang root mean square: another unit? (--forces-unit)"
        ]
    return []


def _energies_against_forces(structures: Sequence[Structure]) -> list[str]:
    """Along a trajectory, energy differences equal the work of the forces, dE = -F dR."""
    change, work = [], []
    for a, b in pairwise(structures):
        if a.forces is None or b.forces is None or not np.array_equal(a.numbers, b.numbers):
            continue
        step = b.positions - a.positions
        if not np.allclose(a.cell, b.cell) or not 1e-4 < np.abs(step).max() < 0.1:
            continue
        change.append(b.energy - a.energy)
        work.append(-0.5 * ((a.forces + b.forces) * step).sum())
    change, work = np.array(change), np.array(work)
    if len(work) < 5 or work.std() == 0 or change.std() == 0:
        return []
    if abs(np.corrcoef(change, work)[0, 1]) < 0.9:
        return []
    ratio = float(change @ work / (work @ work))
    if ratio < 0:
        return ["energies rise along the forces: these seem to be gradients, not forces"]
    if not 0.8 < ratio < 1.25:
        return [
            f"energy differences along the trajectory are {ratio:.3g} times the work of the forces:"
            " energies and forces are in different units (hartree: 0.0368, kcal/mol: 23.1)"
        ]
    return []


def _stresses(structures: Sequence[Structure]) -> list[str]:
    labelled = [s for s in structures if s.stress is not None]
    if not labelled:
        return []
    values = np.array([s.stress for s in labelled])
    rms = float(np.sqrt(np.mean(values**2)))
    found = []
    if rms == 0:
        found.append("all stresses are zero: leave them out with --stress-key none")
    elif rms > 0.5:  # 80 GPa
        found.append(
            f"stress is large, {rms / units.GPa:.0f} GPa root mean square: it looks like kbar or"
            " GPa (--stress-unit kbar, --stress-unit GPa)"
        )
    elif rms < 1e-6:  # 0.16 MPa
        found.append(f"stress is tiny, {rms / MPA:.2g} MPa root mean square: another unit?")
    found += map(str, findings_from_strained_cells(structures))
    return found
