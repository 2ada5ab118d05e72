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


def _structure(member: dict, file: LabelledFile) -> dict:
    structure, outputs = member["structure"], member["outputs"]
    sites = structure["sites"]
    stated = member.get("num_atoms", len(sites))
    if stated != len(sites):
        raise ValueError(f"num_atoms is {stated}, but the structure has {len(sites)} sites")
    lattice = structure.get("lattice")
    cell = np.array(np.zeros((3, 3)) if lattice is None else lattice["matrix"], dtype=np.float64)
    unclear = "stress" in outputs and "virial_stress" not in outputs
    if unclear and file.options.stress_key is None:
        file.remarks.append(
            "`stress` is not read, since its unit and order are not known;"
            " give --stress-key stress --stress-unit --stress-sign --stress-order"
        )
    return {
        "numbers": [_number(i, site) for i, site in enumerate(sites)],
        # from the fractional coordinates if there are some, as pymatgen reads them
        "positions": [
            np.array(s["abc"], dtype=np.float64) @ cell if "abc" in s and cell.any() else s["xyz"]
            for s in sites
        ],
        "cell": cell,
        "pbc": (lattice or {}).get("pbc", lattice is not None),
        "labels": [outputs],
        "usual": {"stress": "virial_stress"},
        "entries": {k: v for k, v in member.items() if isinstance(v, str | int | float)},
    }


def _number(index: int, site: dict) -> int:
    """Atomic number of a site, which must hold one whole atom."""
    species = site.get("species", ())
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise ValueError(f"site {index} is not occupied by one whole atom (`species`)")
    try:
        return atomic_number(str(species[0]["element"]))
    except ValueError as error:
        raise ValueError(f"site {index}: {error}") from None


FORMAT = Format(
    "mlearn",
    "JSON of mlearn and maml",
    _members,
    _structure,
    _is_mlearn,
    LabelUnits(stress_unit="kbar", stress_sign=-1, stress_order="lammps"),
)
