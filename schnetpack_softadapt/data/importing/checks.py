"""Whether labelled structures make sense, before anything long is done with them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from tqdm import tqdm

from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import shortened
from schnetpack_softadapt.neighbors.cells import MIN_VOLUME_ANG3
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

__all__ = ["closest_contact", "leave_out_placeholder_stress", "raise_problems", "where"]

MIN_DISTANCE_ANG = 0.5  # no two nuclei come closer in any data worth learning; H2 has 0.74
MAX_LISTED = 20


def raise_problems(structures: Sequence[Structure], problems: Iterable[str] = ()) -> None:
    """Check all structures and raise one error that lists what is wrong.

    Args:
        structures: their `info` may hold `file` and `index`, which messages then name.
        problems: found before, for instance while reading.

    Raises:
        ValueError: with the first problems, by file, index and reason, and their number.
    """
    problems = list(problems)
    some_have_forces = any(s.forces is not None for s in structures)
    bar = tqdm(structures, "checking", unit=" structures", delay=1, disable=None)
    for k, structure in enumerate(bar):
        problems += [f"{where(structure, k)}: {text}" for text in _problems(structure)]
        if some_have_forces and structure.forces is None:
            problems.append(
                f"{where(structure, k)}: no forces, although other structures have them; give"
                " forces to all or leave them out of all (--forces-key none)"
            )
    if problems:
        lines = shortened(problems, MAX_LISTED)
        raise ValueError("\n  ".join([f"{len(problems)} problem(s), nothing written:", *lines]))


def where(structure: Structure, position: int) -> str:
    """File and index of a structure, for messages."""
    file = structure.info.get("file")
    return f"{file}, structure {structure.info['index']}" if file else f"structure {position}"


def _problems(structure: Structure) -> Iterator[str]:
    """What is wrong with a structure, in words that say what to do about it."""
    if structure.n_atoms == 0:
        yield "no atoms"
        return
    known = (structure.numbers > 0) & (structure.numbers < len(chemical_symbols))
    if not known.all():
        atom = int(np.argmin(known))
        yield f"atom {atom} is no chemical element (atomic number {structure.numbers[atom]})"
    if structure.energy is None:
        yield "no energy"
    is_finite = {}
    for name in ("positions", "cell", "energy", "forces", "stress"):
        values = getattr(structure, name)
        is_finite[name] = values is None or np.isfinite(values)
        if not np.all(is_finite[name]):
            place = ""
            if name == "forces":
                place = f" (first on atom {int(np.argmin(is_finite[name].all(axis=1)))})"
            yield f"{name} not finite{place}"
    if np.all(is_finite["positions"]) and np.all(is_finite["cell"]):
        yield from _geometry_problems(structure)


def _geometry_problems(structure: Structure) -> Iterator[str]:
    zero = ~structure.cell.any(axis=1)
    if (zero & structure.pbc).any():
        yield f"periodic along lattice vector {int(np.argmax(zero & structure.pbc))}, which is zero"
        return
    if structure.volume < MIN_VOLUME_ANG3 and not zero.any():
        yield "cell of volume zero: its lattice vectors are linearly dependent"
        return
    try:
        contact = closest_contact(structure, MIN_DISTANCE_ANG)
    except ValueError as error:  # a cell so flat that it has no neighbours to speak of
        yield str(error)
        return
    if contact is not None:
        a, b, distance, _ = contact
        whom = f"atoms {a} and {b}" if a != b else f"atom {a} and its periodic image"
        yield f"{whom} are {distance:.3f} Ang apart; lengths in another unit? (--length-unit)"


def closest_contact(
    structure: Structure, limit: float | None, of_covalent: float = 0.0
) -> tuple[int, int, float, float] | None:
    """Of pairs (with periodic images) closer than a limit the closest one; None if there is none.

    Args:
        structure: a structure of this package, or of ASE.
        limit: Ang; None for a part of the sum of the covalent radii.
        of_covalent: that part.

    Returns:
        the two atoms, their distance and the limit, Ang.
    """
    radii = of_covalent * covalent_radii[structure.numbers]
    cell = np.asarray(structure.cell)
    cutoff = 2 * radii.max() if limit is None else limit
    if cutoff <= 0:
        return None
    i, j, r_ij, _ = neighbor_pairs(structure.positions, cell, structure.pbc, cutoff)
    distances = np.linalg.norm(r_ij, axis=1)
    limits = radii[i] + radii[j] if limit is None else np.full(len(i), limit)
    bad = np.flatnonzero(distances < limits)
    if not len(bad):
        return None
    k = bad[np.argmin(distances[bad])]
    a, b = sorted((int(i[k]), int(j[k])))
    return a, b, float(distances[k]), float(limits[k])


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
    if 0 < len(zero) < len(labelled) - len(undefined):
        remarks.append(
            f"stress of {len(zero)} structure(s) is zero to the last digit, taken for a placeholder"
            " and left out"
        )
        for s in zero:
            s.stress = None
    return remarks
