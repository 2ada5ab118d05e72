"""RuNNer's and n2p2's `input.data`: blocks of lines between `begin` and `end`.

Per atom: x y z element charge energy f_x f_y f_z. Lengths in bohr and energies in hartree unless
told otherwise; nothing in the file says so. Charges and atomic energies are not used. Three
`stress` lines, which some programs add (the rows of the tensor), are read if they are there.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.formats.format import Format, LabelledFile
from schnetpack_softadapt.data.formats.units import LabelUnits
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["FORMAT"]

IGNORED = ("charge", "totalcharge", "spin", "totalspin")
N_WORDS_ATOM = 9


def _is_runner(path: Path, text: str) -> bool:
    """Whether the first line that says anything is `begin`."""
    lines = (line.split("#")[0].split() for line in text.splitlines())
    return next((words for words in lines if words), None) == ["begin"]


def _blocks(file: LabelledFile) -> Iterator[tuple[int, list[tuple[int, list[str]]], bool]]:
    """Line number of `begin`, numbered words of the lines within, whether `end` was found."""
    lines: list[tuple[int, list[str]]] | None = None
    first = 0
    with open(file.path, encoding="utf-8", errors="replace") as stream:
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


def _structure(block: tuple[int, list[tuple[int, list[str]]], bool], file: LabelledFile) -> dict:
    first, lines, is_complete = block
    if not is_complete:
        raise ValueError(f"the block that begins in line {first} has no 'end'")
    rows: dict[str, list[list[float]]] = {"lattice": [], "stress": [], "atom": [], "energy": []}
    numbers, comments = [], []
    for number, (key, *words) in lines:
        try:
            if key == "comment":
                comments.append(" ".join(words))
            elif key == "atom":
                if len(words) < N_WORDS_ATOM:
                    raise ValueError(
                        "an atom has x y z element charge energy fx fy fz, here are"
                        f" {len(words)} entries instead of {N_WORDS_ATOM}"
                    )
                numbers.append(atomic_number(words[3].capitalize()))
                rows[key].append(_floats(words[:3] + words[6:9], 6))
            elif key in rows:
                rows[key].append(_floats(words, 1 if key == "energy" else 3))
            elif key not in IGNORED:
                raise ValueError(f"unknown keyword {key!r}")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not rows["energy"]:
        raise ValueError(f"no energy between begin (line {first}) and end")
    for key in ("lattice", "stress"):
        if len(rows[key]) not in (0, 3):
            raise ValueError(f"{len(rows[key])} {key} lines, not 3 (block of line {first})")
    if rows["stress"] and file.options.stress_sign is None:
        file.remarks.append("stress taken as positive = tension (else --stress-sign)")
    atoms = np.array(rows["atom"], dtype=np.float64).reshape(-1, 6)
    return {
        "numbers": numbers,
        "positions": atoms[:, :3],
        "cell": rows["lattice"] or np.zeros((3, 3)),
        "pbc": bool(rows["lattice"]),
        "labels": [
            {"energy": rows["energy"][-1], "forces": atoms[:, 3:], "stress": rows["stress"] or None}
        ],
        "entries": {"comment": " ".join(comments), "line": first},
    }


def _floats(words: list[str], n: int) -> list[float]:
    """`n` numbers, also in Fortran's notation 1.0D-3."""
    if len(words) < n:
        raise ValueError(f"{len(words)} numbers instead of {n}")
    try:
        return [float(word.lower().replace("d", "e")) for word in words[:n]]
    except ValueError:
        raise ValueError(f"not {n} numbers: {' '.join(words)[:80]!r}") from None


FORMAT = Format(
    "runner",
    "input.data of n2p2 and RuNNer",
    _blocks,
    _structure,
    _is_runner,
    LabelUnits(energy_unit="Ha", length_unit="Bohr"),
)
