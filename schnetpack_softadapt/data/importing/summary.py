"""What was imported, in numbers, and which of them look as if a unit or a sign were wrong."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from ase import units
from ase.data import chemical_symbols, covalent_radii

from schnetpack_softadapt.data.importing.checks import where
from schnetpack_softadapt.data.importing.stress_labels import findings_from_strained_cells
from schnetpack_softadapt.data.provenance import mixed_settings
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import shortened
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs
from schnetpack_softadapt.quantities import STRESS

__all__ = ["summary"]

MPA = 1 / STRESS.shown_factor  # eV/Ang^3
MAX_SAMPLED = 200  # structures looked at for distances, which take longest


def summary(structures: Sequence[Structure], remarks: Iterable[str] = ()) -> str:
    """Counts and spreads of valid structures (see `checks`), at least one; remarks; warnings.

    Warnings name duplicates, and magnitudes and signs that suggest a wrong unit, key or convention.
    """
    numbers = np.concatenate([s.numbers for s in structures])
    n_atoms, elements = len(numbers), zip(*np.unique(numbers, return_counts=True), strict=True)
    energies = np.array([s.energy / s.n_atoms for s in structures])
    forces = [s.forces for s in structures if s.forces is not None]
    stresses = [s.stress_voigt for s in structures if s.stress is not None]
    groups = Counter(s.group for s in structures)
    lines = [
        f"structures   {len(structures)} ({len(forces)} with forces, {len(stresses)} with stress)",
        f"atoms        {n_atoms}: "
        + ", ".join(f"{chemical_symbols[z]} {n} ({n / n_atoms:.1%})" for z, n in elements),
        f"groups       {', '.join(shortened([f'{name} {n}' for name, n in groups.items()], 8))}",
        f"energy       {energies.min():.4f} to {energies.max():.4f} eV/atom, standard deviation"
        f" {1e3 * energies.std():.1f} meV/atom",
    ]
    if forces:
        f = np.concatenate(forces)
        lines.append(
            f"forces       {f.min():.3f} to {f.max():.3f} eV/Ang, standard deviation"
            f" {1e3 * f.std():.1f} meV/Ang"
        )
    if stresses:
        s = np.array(stresses) / MPA
        lines.append(
            f"stress       {s.min():.0f} to {s.max():.0f} MPa (positive = tension), standard"
            f" deviation {s.std():.0f} MPa"
        )
    lines += [f"note         {text}" for text in dict.fromkeys(remarks)]
    checks = (
        _duplicates,
        _settings,
        _distances,
        _energies,
        _forces,
        _energies_against_forces,
        _stresses,
    )
    lines += [f"WARNING      {text}" for check in checks for text in check(structures)]
    return "\n".join(lines)


def _duplicates(structures: Sequence[Structure]) -> Iterator[str]:
    """Structures with the same atoms, to 1e-6 Ang, and cell."""
    first: dict[bytes, int] = {}
    named, n_leaked = [], 0
    for k, s in enumerate(structures):
        # adding 0 turns -0 into 0, which has other bytes
        geometry = np.round(np.concatenate([s.positions, s.cell]), 6) + 0.0
        key = s.numbers.tobytes() + geometry.tobytes() + s.pbc.tobytes()
        j = first.setdefault(key, k)
        if j != k:
            other = "" if abs(structures[j].energy - s.energy) < 1e-6 else " (other energy!)"
            named.append(f"{where(structures[j], j)} = {where(s, k)}{other}")
            n_leaked += structures[j].info.get("subset") != s.info.get("subset")
    if named:
        text = f"{len(named)} duplicate structure(s): {', '.join(shortened(named, 3))}"
        if n_leaked:
            text += f"; {n_leaked} of them stand in two subsets, so errors will look too small"
        yield text


def _settings(structures: Sequence[Structure]) -> list[str]:
    calculators, files = ([s.info.get(k) for s in structures] for k in ("calculator", "file"))
    return mixed_settings(calculators, files, np.array([s.cell for s in structures]))


def _distances(structures: Sequence[Structure]) -> Iterator[str]:
    """Bonds against the sums of covalent radii: bohr make them 1.9 times too long."""
    step = max(1, len(structures) // MAX_SAMPLED)
    ratios = []
    for s in structures[::step]:
        radii = covalent_radii[s.numbers]
        i, j, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, 4.4 * radii.max())
        if len(i):
            ratios.append((np.linalg.norm(r_ij, axis=1) / (radii[i] + radii[j])).min())
    if ratios and not 0.55 < np.median(ratios) < 1.6:
        yield (
            f"shortest bonds are {np.median(ratios):.2f} times the sum of covalent radii: are"
            " lengths in another unit? (--length-unit)"
        )


def _energies(structures: Sequence[Structure]) -> Iterator[str]:
    # Thomas-Fermi energy of neutral atoms with its two corrections, within 10 % from carbon on:
    # -0.7687 Z^(7/3) + Z^2 / 2 - 0.2699 Z^(5/3) hartree (Englert and Schwinger, Phys. Rev. A 1985)
    ratios = []
    for s in structures:
        z = s.numbers.astype(float)
        ratios.append(s.energy / (-0.7687 * z ** (7 / 3) + z**2 / 2 - 0.2699 * z ** (5 / 3)).sum())
    energies = np.array([s.energy / s.n_atoms for s in structures])
    # in eV the ratio is 27
    if 0.85 < np.median(ratios) < 1.15 and max(s.numbers.max() for s in structures) >= 6:
        yield "energies look like all-electron energies in hartree: give --energy-unit Ha"
    elif len(structures) > 2 and np.ptp(energies) == 0:
        yield "all energies per atom are equal: is this the right key? (--energy-key)"
    elif (energies > 0).all() and np.median(energies) > 2.0:
        yield "all energies are positive: is this the right key and sign? (--energy-key)"


def _forces(structures: Sequence[Structure]) -> Iterator[str]:
    forces = [s.forces for s in structures if s.forces is not None]
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else 1.0
    if rms == 0:
        yield "all forces are zero"
    elif rms > 30:
        yield f"forces are large, {rms:.0f} eV/Ang root mean square: another unit? (--forces-unit)"


def _energies_against_forces(structures: Sequence[Structure]) -> Iterator[str]:
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
        return
    if abs(np.corrcoef(change, work)[0, 1]) < 0.9:
        return
    ratio = float(change @ work / (work @ work))
    if ratio < 0:
        yield "energies rise along the forces: these seem to be gradients, not forces"
    elif not 0.8 < ratio < 1.25:
        yield (
            f"energy differences along the trajectory are {ratio:.3g} times the work of the forces:"
            " energies and forces are in different units (hartree: 0.0368, kcal/mol: 23.1)"
        )


def _stresses(structures: Sequence[Structure]) -> Iterator[str]:
    values = np.array([s.stress for s in structures if s.stress is not None])
    rms = float(np.sqrt(np.mean(values**2))) if len(values) else 1e-3
    if rms == 0:
        yield "all stresses are zero: leave them out with --stress-key none"
    elif rms > 0.5:  # 80 GPa
        yield (
            f"stress is large, {rms / units.GPa:.0f} GPa root mean square: it looks like kbar or"
            " GPa (--stress-unit kbar, --stress-unit GPa)"
        )
    elif rms < 1e-6:  # 0.16 MPa
        yield f"stress is tiny, {rms / MPA:.2g} MPa root mean square: another unit?"
    yield from map(str, findings_from_strained_cells(structures))
