"""Settings of the calculations that labels come from, and whether a set mixes several.

Functional, plane-wave cutoff and k points shift energies by more than potentials err; a set of two
settings teaches their difference as if it were physics. Each structure may carry a text
`calculator`, JSON with the name and arguments of its calculator, whatever their nesting.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from schnetpack_softadapt.errors import shortened

__all__ = ["calculator_text", "mixed_settings", "settings"]

#: names of arguments, in lower case, by what they set; the first of each that is there counts
NAMES = {
    "functional": ("metagga", "gga", "xc", "functional", "input_dft", "dft_functional", "lexch"),
    "cutoff": ("encut", "ecut", "ecutwfc", "cut_off_energy", "cutoff_energy", "pw_cutoff", "enmax"),
    "k spacing": ("kspacing", "kpoints_mp_spacing"),
}
MESH = ("kpts", "k_points", "kpoints")  # three numbers, of this cell
LARGEST_RATIO = 2.0  # of k spacings; numbers of points are rounded
MAX_NAMED = 3  # files


def calculator_text(value) -> str | None:
    """A calculator's name and arguments as the database keeps them: JSON, names in order."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        if not isinstance(value, Mapping):
            value = {"name": str(value)}
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def settings(text: str) -> dict[str, str]:
    """Name, functional, cutoff and k spacing, where a calculator states them."""
    flat = dict(_flattened(_mapping(text)))
    found = {"name": flat.get("name", flat.get("calculator"))}
    for what, names in NAMES.items():
        found[what] = next((flat[name] for name in names if name in flat), None)
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in found.items() if v}
    return shown or {"name": "a calculator without name"}


def _mapping(text: str) -> Mapping:
    value = json.loads(calculator_text(text))
    return value if isinstance(value, Mapping) else {}


def _flattened(value: Mapping, inside: str = "") -> Iterator[tuple[str, object]]:
    """Entries at any depth by their names in lower case, the outer ones first."""
    for name, entry in value.items():
        # one of a mode or a smearing is not that of the calculator
        name = f"{inside} name" if inside and name.lower() == "name" else name.lower()
        if not isinstance(entry, Mapping):
            yield name, entry
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield name.lower(), json.dumps(entry, sort_keys=True)
            yield from _flattened(entry, name.lower())


def _mesh(text: str) -> list[int] | None:
    """Numbers of k points along the reciprocal vectors."""
    value = _mapping(text)
    while isinstance(value, Mapping):
        lower = {name.lower(): entry for name, entry in value.items()}
        mesh = next((lower[name] for name in MESH if name in lower), None)
        mesh = mesh.get("size") if isinstance(mesh, Mapping) else mesh
        if isinstance(mesh, list) and len(mesh) == 3 and all(isinstance(k, int) for k in mesh):
            return mesh
        value = next((v for v in value.values() if isinstance(v, Mapping) and v is not mesh), None)
    return None


def mixed_settings(
    calculators: Sequence[str | None], sources: Sequence[str | None], cells: np.ndarray
) -> list[str]:
    """What to warn of: structures by different settings, with their files and numbers.

    Args:
        calculators: (S,) texts; None where not known.
        sources: (S,) files.
        cells: (S, 3, 3) Ang, rows are lattice vectors, for the spacing of k points.
    """
    table = pd.DataFrame({"text": calculators, "source": sources}, dtype=object)
    known = table[table.text.notna()]
    words = {
        text: ", ".join(v if k == "name" else f"{k} {v}" for k, v in settings(text).items())
        for text in known.text.unique()
    }
    kinds = known.groupby(known.text.map(words), sort=False)
    warnings = []
    if len(kinds) > 1:
        parts = [f"{len(part)} by {name} ({_files(part.source)})" for name, part in kinds]
        n_unknown = len(table) - len(known)
        parts += [f"{n_unknown} do not say"] * bool(n_unknown)
        warnings.append(
            f"the labels are of different settings, which the model takes for physics:"
            f" {'; '.join(parts)}"
        )
    spacings = {}
    for text, rows in known.groupby("text", sort=False).groups.items():
        mesh = _mesh(text)
        if mesh is not None:
            spacings |= dict(zip(rows, _spacings(np.asarray(cells)[rows], mesh), strict=True))
    values = pd.Series(spacings, dtype=float)
    values = values[values > 0]
    if len(values) and values.max() > LARGEST_RATIO * values.min():
        named = [f"{values[k]:.2f} in {sources[k]}" for k in (values.idxmin(), values.idxmax())]
        warnings.append(f"the spacing of k points differs: {' to '.join(named)} (1/Ang)")
    return warnings


def _spacings(cells: np.ndarray, mesh: Sequence[int]) -> np.ndarray:
    """Largest distance (S,) of neighbouring k points, 1/Ang, among directions with several."""
    reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.pinv(cells), axis=1)  # (S, 3)
    several = np.array(mesh) > 1  # a single one is for molecules and slabs, or a large cell
    return (reciprocal / mesh)[:, several].max(axis=1, initial=0.0)


def _files(sources: pd.Series) -> str:
    names = [str(name) for name in sources.dropna().unique()]
    return ", ".join(shortened(names, MAX_NAMED)) or "file not known"
