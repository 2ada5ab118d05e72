"""The JSON sets of mlearn and maml: a list of pymatgen structures with the outputs of VASP.

eV and Ang; `virial_stress` in kbar, positive = compression, in the order xx yy zz xy xz yz of
LAMMPS and not in VASP's (a pure yz shear of elemental bcc tells them apart).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schnetpack_softadapt.data.formats.format import Format, LabelledFile
from schnetpack_softadapt.data.formats.units import LabelUnits
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["FORMAT"]


def _is_mlearn(path: Path, text: str) -> bool:
    """Whether it is a JSON list whose members have `structure` and `outputs`."""
    if not text.lstrip().startswith("["):
        return False
    if '"structure"' not in text or '"outputs"' not in text:
        # one of them may stand behind a thousand forces
        text = path.read_text(encoding="utf-8", errors="replace")
    return '"structure"' in text and '"outputs"' in text and '"lattice"' in text


def _members(file: LabelledFile) -> Iterator[dict]:
    members = json.loads(file.path.read_text(encoding="utf-8"))
    yield from [members] if isinstance(members, dict) else members


def _labels(member: dict, file: LabelledFile) -> dict:
    structure = _part(member, "structure", "the member")
    sites = _part(structure, "sites", "its structure")
    outputs = _part(member, "outputs", "the member")
    stated = member.get("num_atoms", len(sites))
    if stated != len(sites):
        raise ValueError(f"num_atoms is {stated}, but the structure has {len(sites)} sites")
    lattice = structure.get("lattice")
    cell = np.zeros((3, 3))
    if lattice is not None:
        cell = np.array(_part(lattice, "matrix", "its lattice"), dtype=np.float64)
    stress = file.label("stress", outputs, usual="virial_stress")
    if stress is None and "stress" in outputs and file.options.stress_key is None:
        file.remarks.append(
            "`stress` is not read, since its unit and order are not known;"
            " give --stress-key stress --stress-unit --stress-sign --stress-order"
        )
    return {
        "numbers": [_number(i, site) for i, site in enumerate(sites)],
        "positions": [_position(i, site, cell) for i, site in enumerate(sites)],
        "cell": cell,
        "pbc": (lattice or {}).get("pbc", lattice is not None),
        "energy": file.label("energy", outputs),
        "forces": file.label("forces", outputs),
        "stress": stress,
        "entries": {k: v for k, v in member.items() if isinstance(v, str | int | float)},
    }


def _part(parent: dict, key: str, where: str):
    if not isinstance(parent, dict) or key not in parent:
        known = ", ".join(parent) if isinstance(parent, dict) else type(parent).__name__
        raise ValueError(f"no {key!r} in {where} (there is: {known})")
    return parent[key]


def _number(index: int, site: dict) -> int:
    """Atomic number of a site, which must hold one whole atom."""
    species = _part(site, "species", f"site {index}")
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise ValueError(f"site {index} is not occupied by one whole atom")
    try:
        return atomic_number(str(_part(species[0], "element", "its species")))
    except ValueError as error:
        raise ValueError(f"site {index}: {error}") from None


def _position(index: int, site: dict, cell: np.ndarray) -> np.ndarray:
    """Cartesian, from the fractional coordinates if there are some, as pymatgen reads them."""
    if "abc" in site and cell.any():
        position = np.array(site["abc"], dtype=np.float64) @ cell
    else:
        position = np.array(_part(site, "xyz", f"site {index}"), dtype=np.float64)
    if position.shape != (3,):
        raise ValueError(f"site {index} has coordinates of shape {position.shape}")
    return position


FORMAT = Format(
    "mlearn",
    "JSON of mlearn and maml",
    _members,
    _labels,
    _is_mlearn,
    LabelUnits(stress_unit="kbar", stress_sign=-1, stress_order="lammps"),
)
