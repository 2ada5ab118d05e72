"""RuNNer's and n2p2's `input.data`: blocks of lines between `begin` and `end`.

Per atom: x y z element charge energy f_x f_y f_z. Lengths in bohr and energies in hartree unless
told otherwise; nothing in the file says so. Charges and atomic energies are not used.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from schnetpack_softadapt.data.formats.conventions import stress_matrix
from schnetpack_softadapt.data.formats.options import NONE, ImportOptions, LabelUnits
from schnetpack_softadapt.data.sources import Source
from schnetpack_softadapt.data.structures import Structure

__all__ = ["is_runner", "read_runner"]

IGNORED = ("charge", "totalcharge", "spin", "totalspin")
N_WORDS_ATOM = 9


def is_runner(path: Path, text: str) -> bool:
    """Whether the first line that says anything is `begin`."""
    lines = (line.split("#")[0].split() for line in text.splitlines())
    return next((words for words in lines if words), None) == ["begin"]


def read_runner(
    source: Source, options: ImportOptions, remarks: list[str]
) -> Iterator[Structure | str]:
    """Yield the structures of an `input.data`, or why one could not be understood.

    The entries to group and split by are `comment` and `line` (of `begin`). Three `stress` lines,
    which some programs add (the rows of the tensor), are read if they are there.
    """
    options.refuse_keys("runner")
    units = options.units("runner")
    if options.length_unit is None or options.energy_unit is None:
        remarks.append(
            f"lengths in {units.length_unit}, energies in {units.energy_unit}, as is"
            " usual in n2p2 and RuNNer (--length-unit Ang --energy-unit eV if not)"
        )
    for first, lines, is_complete in _blocks(source.path):
        try:
            if not is_complete:
                raise ValueError(f"the block that begins in line {first} has no 'end'")
            yield _convert(first, lines, options, units, source.group, remarks)
        except ValueError as error:
            yield str(error)


def _blocks(path: Path) -> Iterator[tuple[int, list[tuple[int, list[str]]], bool]]:
    """Line number of `begin`, numbered words of the lines within, whether `end` was found."""
    lines: list[tuple[int, list[str]]] | None = None
    first = 0
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key = words[0].lower()
            if key == "begin":
                if lines is not None:
                    yield first, lines, False
                first, lines = number, []
            elif lines is None:
                raise ValueError(f"line {number}: {line.strip()[:60]!r} stands outside begin..end")
            elif key == "end":
                yield first, lines, True
                lines = None
            else:
                lines.append((number, [key, *words[1:]]))
    if lines is not None:
        yield first, lines, False


def _convert(
    first: int,
    lines: list[tuple[int, list[str]]],
    options: ImportOptions,
    units: LabelUnits,
    default_group: str,
    remarks: list[str],
) -> Structure:
    rows: dict[str, list[list[float]]] = {"lattice": [], "stress": [], "atom": []}
    numbers: list[int] = []
    energy = None
    comments = []
    for number, (key, *words) in lines:
        if key == "comment":
            comments.append(" ".join(words))
        elif key == "atom":
            if len(words) < N_WORDS_ATOM:
                raise ValueError(
                    f"line {number}: an atom has x y z element charge energy fx fy fz, here are"
                    f" {len(words)} entries instead of {N_WORDS_ATOM}"
                )
            symbol = words[3].capitalize()
            if symbol not in atomic_numbers or symbol == "X":
                raise ValueError(f"line {number}: {words[3]!r} is no chemical element")
            numbers.append(atomic_numbers[symbol])
            rows["atom"].append(_floats(number, words[:3] + words[6:9], 6))
        elif key in rows:
            rows[key].append(_floats(number, words, 3))
        elif key == "energy":
            (energy,) = _floats(number, words, 1)
        elif key not in IGNORED:
            raise ValueError(f"line {number}: unknown keyword {key!r}")
    if energy is None:
        raise ValueError(f"no energy between begin (line {first}) and end")
    for key in ("lattice", "stress"):
        if len(rows[key]) not in (0, 3):
            raise ValueError(f"{len(rows[key])} {key} lines, not 3 (block of line {first})")
    stress = None
    if rows["stress"] and options.stress_key != NONE:
        stress = stress_matrix(np.array(rows["stress"]), factor=units.stress_factor)
        if options.stress_sign is None:
            remarks.append("stress taken as positive = tension (else --stress-sign)")
    atoms = np.array(rows["atom"], dtype=np.float64).reshape(-1, 6)
    entries = {"comment": " ".join(comments), "line": first}
    group, info = options.entries(entries, default_group)
    return Structure(
        numbers=np.array(numbers, dtype=np.int64),
        positions=atoms[:, :3] * units.length_factor,
        cell=np.array(rows["lattice"] or np.zeros((3, 3))) * units.length_factor,
        pbc=bool(rows["lattice"]),
        energy=energy * units.energy_factor,
        forces=None if options.forces_key == NONE else atoms[:, 3:] * units.forces_factor,
        stress=stress,
        group=group,
        info=info,
    )


def _floats(number: int, words: list[str], n: int) -> list[float]:
    """`n` numbers, also in Fortran's notation 1.0D-3."""
    if len(words) < n:
        raise ValueError(f"line {number}: {len(words)} numbers instead of {n}")
    try:
        return [float(word.lower().replace("d", "e")) for word in words[:n]]
    except ValueError:
        raise ValueError(f"line {number}: not {n} numbers: {' '.join(words)[:80]!r}") from None
