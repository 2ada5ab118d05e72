"""Labelled structures from whatever ASE reads."""

import io
from collections.abc import Iterator

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression

from schnetpack_softadapt.data.formats.conventions import stress_matrix, stress_order
from schnetpack_softadapt.data.formats.options import NONE, ImportOptions, LabelUnits
from schnetpack_softadapt.data.sources import COMPRESSED, Source
from schnetpack_softadapt.data.structures import Structure

__all__ = ["read_ase"]

VIRIAL_KEYS = ("virial", "virials")  # of GAP, DeePMD and GPUMD; of MACE
VASP_FORMATS = ("vasp-out", "vasp-xml")


def read_ase(
    source: Source, options: ImportOptions, remarks: list[str]
) -> Iterator[Structure | str]:
    """Yield the structures of a file that `ase.io` reads, or why one could not be understood."""
    try:
        kind = filetype(str(source.path))
    except UnknownFileTypeError:
        raise ValueError("format not recognised by ASE") from None
    energy_key = options.energy_key
    if energy_key is None and kind in VASP_FORMATS:
        energy_key = "free_energy"
        remarks.append("energies are VASP's free energies (TOTEN), which its forces derive from")
    units = options.units("ase")
    largest_difference = 0.0
    for atoms in _frames(source, kind):
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        if options.energy_key is None and {"energy", "free_energy"} <= results.keys():
            difference = abs(results["energy"] - results["free_energy"]) / max(len(atoms), 1)
            largest_difference = max(largest_difference, difference)
        try:
            yield _convert(
                atoms, results, options, units, energy_key, source.group, kind == "extxyz", remarks
            )
        except ValueError as error:
            yield str(error)
    if largest_difference > 1e-6 and energy_key is None:
        remarks.append(
            "took `energy`; `free_energy` differs by up to"
            f" {1e3 * largest_difference:.3g} meV/atom, and forces derive from the latter"
            " (--energy-key free_energy)"
        )


def _frames(source: Source, kind: str) -> Iterator[Atoms]:
    file = str(source.path)
    if kind == "extxyz" and source.path.suffix in COMPRESSED:
        # ASE jumps back to each frame, and would decompress what is before it each time
        with open_with_compression(file, "r") as stream:
            file = io.StringIO(stream.read())
    yield from ase.io.iread(file, source.frames or ":", kind, do_not_split_by_at_sign=True)


def _convert(
    atoms: Atoms,
    results: dict,
    options: ImportOptions,
    units: LabelUnits,
    energy_key: str | None,
    default_group: str,
    is_extxyz: bool,
    remarks: list[str],
) -> Structure:
    """Labels of one structure in ASE's units; raises ValueError where they make no sense."""
    energy = _label(atoms, results, energy_key, "energy", required=True)
    # not `get_forces()`, which puts zeros on constrained atoms
    forces = _label(atoms, results, options.forces_key, "forces")
    if np.size(energy) != 1:
        raise ValueError(f"energy has shape {np.shape(energy)}")
    if forces is not None:
        if np.size(forces) == 3 * len(atoms):
            forces = np.reshape(forces, (-1, 3))
        forces = np.asarray(forces, dtype=np.float64) * units.forces_factor
    group, info = options.entries(atoms.info, default_group)
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions * units.length_factor,
        cell=atoms.cell.array * units.length_factor,
        pbc=atoms.pbc,
        energy=float(np.ravel(energy)[0]) * units.energy_factor,
        forces=forces,
        stress=_stress(atoms, results, options, units, is_extxyz, remarks),
        group=group,
        info=info,
    )


def _stress(
    atoms: Atoms,
    results: dict,
    options: ImportOptions,
    units: LabelUnits,
    is_extxyz: bool,
    remarks: list[str],
) -> np.ndarray | None:
    """Stress (3, 3) in eV/Ang^3, also from a virial: -volume * stress, an energy."""
    key = options.stress_key
    if key is None and "stress" not in results | atoms.info:
        key = next((k for k in VIRIAL_KEYS if k in results | atoms.info), None)
    values = _label(atoms, results, key, "stress")
    if values is None:
        return None
    order = units.stress_components
    if is_extxyz and (key or "stress") in results:
        order = stress_order("voigt")  # there it stands as nine numbers, which ASE reduced
    if not _is_virial(key):
        return stress_matrix(values, order, units.stress_factor)
    if options.stress_unit is not None:
        raise ValueError(f"{key!r} is a virial, an energy: --stress-unit does not apply to it")
    sign = options.stress_sign or -1
    remarks.append(
        f"stress is {'-' if sign < 0 else ''}{key} / volume, a virial in {units.energy_unit} that"
        f" is positive in {'compression' if sign < 0 else 'tension'} (else --stress-sign {-sign})"
    )
    volume = atoms.cell.volume * units.length_factor**3
    # without a volume there is no stress, only a placeholder
    return stress_matrix(values, order, sign * units.energy_factor / (volume or np.nan))


def _is_virial(key: str | None) -> bool:
    """Whether the name of a label says that it is a virial (`virial_stress` is a stress)."""
    return key is not None and "virial" in key.lower() and "stress" not in key.lower()


def _label(atoms: Atoms, results: dict, key: str | None, name: str, required: bool = False):
    """Value of a label, or None where it may be missing."""
    if key == NONE and not required:
        return None
    wanted = key or name
    for place in (results, atoms.info, atoms.arrays):
        if wanted in place:
            return place[wanted]
    if key is None and not required:
        return None
    known = sorted({*results, *atoms.info, *atoms.arrays} - {"numbers", "positions"})
    raise ValueError(
        f"no {name}: there is no {wanted!r} among {', '.join(known) or 'its labels (it has none)'};"
        f" name the right one with --{name}-key"
    )
