"""Checks of energies, forces and stress: consistency, relaxation, equation of state.

Each check takes a structure with any ASE calculator and returns plain numbers with their units in
the names, and a verdict `ok`.
"""

from collections.abc import Callable

import numpy as np
from ase import Atoms, units
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_strain

from schnetpack_softadapt.deploy.check.structure import (
    bulk_directions,
    copy_of,
    progress,
    why_not_bulk,
)
from schnetpack_softadapt.quantities import VOIGT

__all__ = ["check_derivatives", "check_eos", "relax"]


def _derivative(energy: Callable[[float], float], h: float) -> float:
    """dE/dx at 0 by central differences of fourth order, error O(h^4)."""
    near, far = energy(h) - energy(-h), energy(2 * h) - energy(-2 * h)
    return (8.0 * near - far) / (12.0 * h)


def check_derivatives(
    atoms: Atoms, h: float = 1e-3, rattle: float = 0.05, n_forces: int = 12, seed: int = 0
) -> dict:
    """Forces and stress against finite differences of the energy, on a rattled copy.

    Args:
        atoms: with a calculator.
        h: displacement (Ang) and strain.
        rattle: standard deviation of the rattling, Ang.
        n_forces: number of force components, chosen at random.
        seed: of rattling and choice.
    """
    rng = np.random.default_rng(seed)
    atoms = copy_of(atoms)
    atoms.positions += rng.normal(0.0, rattle, atoms.positions.shape)
    forces = atoms.get_forces()
    n_forces = min(n_forces, forces.size)
    errors = []
    for index in progress(rng.choice(forces.size, n_forces, replace=False), "forces"):
        i, k = divmod(int(index), 3)

        def energy(x: float, i=i, k=k) -> float:
            moved = copy_of(atoms)
            moved.positions[i, k] += x
            return moved.get_potential_energy()

        errors.append(forces[i, k] + _derivative(energy, h))
    result = {
        "force_components": n_forces,
        "force_rms_eV_per_Ang": float(np.sqrt((forces**2).mean())),
        "force_max_error_eV_per_Ang": float(np.abs(errors).max()),
        # differences of energies of E eV are good to 1e-16 E / h
        "tolerance_eV_per_Ang": 1e-6 + 1e-14 * abs(float(atoms.get_potential_energy())) / h,
    }
    tolerance = result["tolerance_eV_per_Ang"]
    result["ok"] = result["force_max_error_eV_per_Ang"] < tolerance
    if atoms.pbc.any() and atoms.cell.rank == 3:
        stress, volume = atoms.get_stress(), atoms.get_volume()
        differences = []
        for component in progress(range(6), "stress"):

            def energy(x: float, component=component) -> float:
                strain = np.zeros(6)
                strain[component] = x
                strained = copy_of(atoms)
                # ASE's Voigt strain has 2 eps_xy, whose derivative is sigma_xy
                deformation = voigt_6_to_full_3x3_strain(strain)
                strained.set_cell(atoms.cell @ deformation, scale_atoms=True)
                return strained.get_potential_energy()

            differences.append(stress[component] - _derivative(energy, h) / volume)
        result["stress_eV_per_Ang3"] = dict(zip(VOIGT, stress.tolist(), strict=True))
        result["stress_max_error_eV_per_Ang3"] = float(np.abs(differences).max())
        result["ok"] = result["ok"] and result["stress_max_error_eV_per_Ang3"] < tolerance
    return result


def relax(atoms: Atoms, fmax: float = 1e-3, steps: int = 500) -> tuple[Atoms, dict]:
    """Relax positions and, along the directions of a crystal, the cell.

    Args:
        atoms: with a calculator; not changed.
        fmax: largest force at the end, eV/Ang.
        steps: largest number of steps.

    Returns:
        The relaxed structure and what changed.
    """
    relaxed = copy_of(atoms)
    bulk = bulk_directions(relaxed)
    target: Atoms | FrechetCellFilter = relaxed
    if bulk.any() and relaxed.cell.rank == 3:
        # no strain along the normal of a slab, where that is an axis
        normals = relaxed.cell.reciprocal()[~bulk]
        normals /= np.linalg.norm(normals, axis=1)[:, None]
        free = ~(np.abs(normals) > 1.0 - 1e-6).any(axis=0)
        target = FrechetCellFilter(relaxed, mask=np.outer(free, free))
    before = relaxed.get_potential_energy()
    optimizer = BFGS(target, logfile=None)
    with progress(None, "relax") as bar:
        optimizer.attach(bar.update)
        converged = optimizer.run(fmax=fmax, steps=steps)
    lengths = relaxed.cell.cellpar()
    result = {
        "converged": bool(converged),
        "energy_gain_eV_per_atom": float(before - relaxed.get_potential_energy()) / len(atoms),
        "max_force_eV_per_Ang": float(np.linalg.norm(relaxed.get_forces(), axis=1).max()),
        "cell_lengths_Ang": lengths[:3].tolist(),
        "cell_angles_deg": lengths[3:].tolist(),
        "ok": bool(converged),
    }
    if bulk.all():
        change = 100 * (relaxed.get_volume() / atoms.get_volume() - 1)
        result["volume_change_percent"] = float(change)
    return relaxed, result


def check_eos(atoms: Atoms, span: float = 0.06, n_points: int = 11) -> dict:
    """Energies against volume of a relaxed crystal, with a Birch-Murnaghan fit.

    Args:
        atoms: with a calculator, relaxed.
        span: largest relative change of the volume.
        n_points: number of volumes.
    """
    reason = why_not_bulk(atoms)
    if reason is not None:
        return {"skipped": reason}
    volumes, energies = [], []
    for factor in progress(np.linspace(1 - span, 1 + span, n_points), "equation of state"):
        scaled = copy_of(atoms)
        scaled.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
        volumes.append(float(scaled.get_volume()) / len(atoms))
        energies.append(float(scaled.get_potential_energy()) / len(atoms))
    fit = EquationOfState(volumes, energies, eos="birchmurnaghan")
    try:
        v0, e0, bulk_modulus = fit.fit(warn=False)
    except (RuntimeError, ValueError) as error:
        return {"ok": False, "failed": f"no minimum to fit: {error}"}
    return {
        "volume_Ang3_per_atom": float(v0),
        "energy_eV_per_atom": float(e0),
        "bulk_modulus_GPa": float(bulk_modulus / units.GPa),
        "volumes_Ang3_per_atom": volumes,
        "energies_eV_per_atom": energies,
        "ok": bool(bulk_modulus > 0 and min(volumes) < v0 < max(volumes)),
    }
