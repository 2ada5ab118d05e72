"""The JSON sets of mlearn and maml: a list of pymatgen structures with the outputs of VASP.

eV and Ang; `virial_stress` in kbar, positive = compression, in the order xx yy zz xy xz yz of
LAMMPS and not in VASP's (a pure yz shear of elemental bcc tells them apart).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from schnetpack_softadapt.data.formats.conventions import stress_matrix
from schnetpack_softadapt.data.formats.options import NONE, ImportOptions, LabelUnits
from schnetpack_softadapt.data.sources import Source
from schnetpack_softadapt.data.structures import Structure

__all__ = ["is_mlearn", "read_mlearn"]

#: where each label stands in `outputs`, unless told otherwise
KEYS = {"energy": "energy", "forces": "forces", "stress": "virial_stress"}


def is_mlearn(path: Path, text: str) -> bool:
    """Whether it is a JSON list whose members have `structure` and `outputs`."""
    if not text.lstrip().startswith("["):
        return False
    if '"structure"' not in text or '"outputs"' not in text:
        # one of them may stand behind a thousand forces
        text = path.read_text(encoding="utf-8", errors="replace")
    return '"structure"' in text and '"outputs"' in text and '"lattice"' in text


def read_mlearn(
    source: Source, options: ImportOptions, remarks: list[str]
) -> Iterator[Structure | str]:
    """Yield the structures of a JSON set, or why one could not be understood.

    The entries to group and split by are those of each member: group, description, tag, element.
    """
    with open(source.path, encoding="utf-8") as stream:
        members = json.load(stream)
    if isinstance(members, dict):
        members = [members]
    units = options.units("mlearn")
    for member in members:
        try:
            yield _convert(member, options, units, source.group, remarks)
        except (ValueError, TypeError) as error:
            yield str(error)


def _convert(
    member: dict, options: ImportOptions, units: LabelUnits, default_group: str, remarks: list[str]
) -> Structure:
    structure = _part(member, "structure", "the member")
    sites = _part(structure, "sites", "its structure")
    outputs = _part(member, "outputs", "the member")
    n_atoms = len(sites)
    stated = member.get("num_atoms", n_atoms)
    if stated != n_atoms:
        raise ValueError(f"num_atoms is {stated}, but the structure has {n_atoms} sites")
    lattice = structure.get("lattice")
    cell = np.zeros((3, 3))
    if lattice is not None:
        cell = np.array(_part(lattice, "matrix", "its lattice"), dtype=np.float64)
    energy = _label(outputs, "energy", options.energy_key, required=True)
    forces = _label(outputs, "forces", options.forces_key)
    stress = _label(outputs, "stress", options.stress_key)
    if stress is None and "stress" in outputs and options.stress_key is None:
        remarks.append(
            "`stress` is not read, since its unit and order are not known;"
            " give --stress-key stress --stress-unit --stress-sign --stress-order"
        )
    if forces is not None:
        forces = np.array(forces, dtype=np.float64)
        if forces.shape != (n_atoms, 3):
            raise ValueError(f"forces have shape {forces.shape} for {n_atoms} atoms")
        forces *= units.forces_factor
    if stress is not None:
        stress = stress_matrix(stress, units.stress_components, units.stress_factor)
    simple = {k: v for k, v in member.items() if isinstance(v, str | int | float)}
    group, info = options.entries(simple, default_group)
    if "description" in simple:
        info["description"] = simple["description"]
    return Structure(
        numbers=np.array([_number(i, site) for i, site in enumerate(sites)], dtype=np.int64),
        positions=np.array([_position(i, s, cell) for i, s in enumerate(sites)])
        * units.length_factor,
        cell=cell * units.length_factor,
        pbc=(lattice or {}).get("pbc", lattice is not None),
        energy=float(energy) * units.energy_factor,
        forces=forces,
        stress=stress,
        group=group,
        info=info,
    )


def _part(parent: dict, key: str, where: str):
    if not isinstance(parent, dict) or key not in parent:
        known = ", ".join(parent) if isinstance(parent, dict) else type(parent).__name__
        raise ValueError(f"no {key!r} in {where} (there is: {known})")
    return parent[key]


def _label(outputs: dict, name: str, key: str | None, required: bool = False):
    """Value of a label, or None where it may be missing."""
    if key == NONE and not required:
        return None
    wanted = key or KEYS[name]
    value = outputs.get(wanted)
    if value is None and (required or key is not None):
        raise ValueError(f"no {name}: there is no {wanted!r} in outputs ({', '.join(outputs)})")
    return value


def _number(index: int, site: dict) -> int:
    """Atomic number of a site, which must hold one whole atom."""
    species = _part(site, "species", f"site {index}")
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise ValueError(f"site {index} is not occupied by one whole atom")
    symbol = _part(species[0], "element", f"site {index}")
    if symbol not in atomic_numbers or symbol == "X":
        raise ValueError(f"site {index}: {symbol!r} is no chemical element")
    return atomic_numbers[symbol]


def _position(index: int, site: dict, cell: np.ndarray) -> np.ndarray:
    """Cartesian, from the fractional coordinates if there are some, as pymatgen reads them."""
    if "abc" in site and cell.any():
        position = np.array(site["abc"], dtype=np.float64) @ cell
    else:
        position = np.array(_part(site, "xyz", f"site {index}"), dtype=np.float64)
    if position.shape != (3,):
        raise ValueError(f"site {index} has coordinates of shape {position.shape}")
    return position
