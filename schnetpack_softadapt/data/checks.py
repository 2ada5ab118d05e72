"""Whether labelled structures make sense, before anything long is done with them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols
from tqdm import tqdm

from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.neighbors.cells import MIN_VOLUME_ANG3
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = [
    "InvalidStructures",
    "duplicates",
    "find_problems",
    "leave_out_placeholder_stress",
    "raise_problems",
    "where",
]

MIN_DISTANCE_ANG = 0.5  # no two nuclei come closer in any data worth learning; H2 has 0.74


class InvalidStructures(ValueError):
    """Structures that cannot be used; the message lists them with file, index and reason."""


def find_problems(structure: Structure) -> Iterator[str]:
    """Yield what is wrong with a structure, in words that say what to do about it."""
    n_atoms = structure.n_atoms
    if n_atoms == 0:
        yield "no atoms"
        return
    known = (structure.numbers > 0) & (structure.numbers < len(chemical_symbols))
    if not known.all():
        atom = int(np.argmin(known))
        yield f"atom {atom} is no chemical element (atomic number {structure.numbers[atom]})"
    geometry_is_finite = True
    for name in ("positions", "cell"):
        if not np.isfinite(getattr(structure, name)).all():
            geometry_is_finite = False
            yield f"{name} not finite (nan or inf)"
    if structure.energy is None:
        yield "no energy"
    elif not np.isfinite(structure.energy):
        yield f"energy not finite ({structure.energy})"
    forces = structure.forces
    if forces is not None:
        if forces.shape != (n_atoms, 3):
            yield f"wrong number of forces: shape {forces.shape} for {n_atoms} atoms"
        elif not np.isfinite(forces).all():
            atom = int(np.argmin(np.isfinite(forces).all(axis=1)))
            yield f"forces not finite (first on atom {atom})"
    if structure.stress is not None and not np.isfinite(structure.stress).all():
        yield "stress not finite"
    if geometry_is_finite:
        yield from _cell_problems(structure)


def _cell_problems(structure: Structure) -> Iterator[str]:
    zero = ~structure.cell.any(axis=1)
    flat = structure.volume < MIN_VOLUME_ANG3
    if (zero & structure.pbc).any():
        yield f"periodic along lattice vector {int(np.argmax(zero & structure.pbc))}, which is zero"
        return
    if flat and not zero.any():
        yield "cell of volume zero: its lattice vectors are linearly dependent"
        return
    try:
        distance, i, j = _closest_pair(structure)
    except ValueError as error:  # a cell so flat that it has no neighbours to speak of
        yield str(error)
        return
    if distance < MIN_DISTANCE_ANG:
        whom = f"atoms {i} and {j}" if i != j else f"atom {i} and its periodic image"
        yield f"{whom} are {distance:.3f} Ang apart; lengths in another unit? (--length-unit)"


def _closest_pair(structure: Structure) -> tuple[float, int, int]:
    """Shortest distance below the limit, over periodic images, and its atoms; inf if none."""
    i, j, r_ij, _ = neighbor_pairs(
        structure.positions, structure.cell, structure.pbc, MIN_DISTANCE_ANG
    )
    if len(i) == 0:
        return np.inf, 0, 0
    d_ij = np.linalg.norm(r_ij, axis=1)
    k = int(np.argmin(d_ij))
    return float(d_ij[k]), int(min(i[k], j[k])), int(max(i[k], j[k]))


def leave_out_placeholder_stress(structures: Sequence[Structure]) -> list[str]:
    """Set stresses that are no labels to None, in place; returns what was left out, and where.

    A stress needs a periodic cell with a volume; sets that mix molecules and crystals give the
    molecules any number. Nor is a stress a label that is zero to the last digit where others of
    the set are not: a crystal at rest has some rounding.
    """
    labelled = [(k, s) for k, s in enumerate(structures) if s.stress is not None]
    undefined = [(k, s) for k, s in labelled if not s.pbc.any() or s.volume < MIN_VOLUME_ANG3]
    remarks = []
    if undefined:
        text = f"stress of {len(undefined)} structure(s) without a periodic cell left out"
        stated = [(k, s) for k, s in undefined if np.isfinite(s.stress).all() and s.stress.any()]
        if stated:
            k, s = stated[0]
            text += (
                f"; in {len(stated)} it is not zero (first: {where(s, k)}): if they are periodic,"
                " their files lack pbc or a lattice vector"
            )
        remarks.append(text)
    for _, s in undefined:
        s.stress = None
    zero = [s for s in structures if s.stress is not None and not s.stress.any()]
    if 0 < len(zero) < sum(s.stress is not None for s in structures):
        remarks.append(
            f"stress of {len(zero)} structure(s) is zero to the last digit, taken for a placeholder"
            " and left out"
        )
        for s in zero:
            s.stress = None
    return remarks


def where(structure: Structure, position: int) -> str:
    """File and index of a structure, for messages."""
    file = structure.info.get("file")
    return f"{file}, structure {structure.info['index']}" if file else f"structure {position}"


def raise_problems(
    structures: Sequence[Structure],
    problems: Iterable[str] = (),
    max_listed: int = 20,
    progress: bool = False,
) -> None:
    """Check all structures and raise one error that lists what is wrong.

    Args:
        structures: their `info` may hold `file` and `index`, which messages then name.
        problems: found before, for instance while reading.
        max_listed: how many problems the message shows.
        progress: show a progress bar.

    Raises:
        InvalidStructures: with the first problems and their number.
    """
    problems = list(problems)
    bar = tqdm(structures, "checking", unit=" structures", disable=not progress)
    for k, structure in enumerate(bar):
        problems += [f"{where(structure, k)}: {text}" for text in find_problems(structure)]
    has_forces = [s.forces is not None for s in structures]
    if any(has_forces) and not all(has_forces):
        problems += [
            f"{where(s, k)}: no forces, although other structures have them; give forces to all"
            " or leave them out of all (--forces-key none)"
            for k, s in enumerate(structures)
            if s.forces is None
        ]
    if not problems:
        return
    lines = [f"{len(problems)} problem(s), nothing written:", *problems[:max_listed]]
    if len(problems) > max_listed:
        lines.append(f"and {len(problems) - max_listed} more")
    raise InvalidStructures("\n  ".join(lines))


def duplicates(structures: Sequence[Structure]) -> list[tuple[int, int]]:
    """Pairs (first, later) of structures with the same atoms, to 1e-6 Ang, and cell."""
    seen: dict[bytes, int] = {}
    pairs = []
    for k, s in enumerate(structures):
        # adding 0 turns -0 into 0, which has other bytes
        geometry = np.round(np.concatenate([s.positions, s.cell]), 6) + 0.0
        key = s.numbers.tobytes() + geometry.tobytes() + s.pbc.tobytes()
        if key in seen:
            pairs.append((seen[key], k))
        else:
            seen[key] = k
    return pairs
