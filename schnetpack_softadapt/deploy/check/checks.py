"""Checks of a potential: derivatives, relaxation, equation of state, frequencies, NVE.

Each takes a structure with any ASE calculator and returns plain numbers with their units in the
names, and a verdict `ok`, or `skipped` with the reason.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from ase import Atoms, units
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from schnetpack_softadapt.deploy.check.structure import (
    bulk_directions,
    copy_of,
    displaced,
    progress,
    strained,
    why_not_bulk,
)
from schnetpack_softadapt.quantities import VOIGT

__all__ = ["TIME_STEPS", "check_derivatives", "check_eos", "check_nve", "check_phonons", "relax"]

log = logging.getLogger(__name__)

#: fs
TIME_STEPS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


def _derivative(changed: Callable[[float], Atoms], h: float) -> float:
    """dE/dx at 0 by central differences of fourth order, error O(h^4)."""
    e = {x: changed(x * h).get_potential_energy() for x in (-2, -1, 1, 2)}
    return (8.0 * (e[1] - e[-1]) - (e[2] - e[-2])) / (12.0 * h)


def check_derivatives(
    atoms: Atoms, h: float = 1e-3, rattle: float = 0.05, n_forces: int = 12, seed: int = 0
) -> dict:
    """Forces and stress against finite differences of the energy, on a rattled copy.

    Args:
        atoms: with a calculator.
        h: displacement (Ang) and strain.
        rattle: standard deviation of the rattling, Ang.
        n_forces: number of force components, chosen at random.
    """
    rng = np.random.default_rng(seed)
    atoms = copy_of(atoms)
    atoms.positions += rng.normal(0.0, rattle, atoms.positions.shape)
    forces = atoms.get_forces()
    chosen = rng.choice(forces.size, min(n_forces, forces.size), replace=False)
    errors = []
    for i, k in progress(np.transpose(np.unravel_index(chosen, forces.shape)), "forces"):
        errors.append(forces[i, k] + _derivative(partial(displaced, atoms, i, k), h))
    # differences of energies of E eV are good to 1e-16 E / h
    tolerance = 1e-6 + 1e-14 * abs(float(atoms.get_potential_energy())) / h
    result = {
        "force_components": len(chosen),
        "force_rms_eV_per_Ang": float(np.sqrt((forces**2).mean())),
        "force_max_error_eV_per_Ang": float(np.abs(errors).max()),
        "tolerance_eV_per_Ang": tolerance,
    }
    result["ok"] = result["force_max_error_eV_per_Ang"] < tolerance
    if atoms.pbc.any() and atoms.cell.rank == 3:
        stress, volume = atoms.get_stress(), atoms.get_volume()
        errors = [
            stress[component] - _derivative(partial(strained, atoms, component), h) / volume
            for component in progress(range(6), "stress")
        ]
        result["stress_eV_per_Ang3"] = dict(zip(VOIGT, stress.tolist(), strict=True))
        result["stress_max_error_eV_per_Ang3"] = float(np.abs(errors).max())
        result["ok"] = result["ok"] and result["stress_max_error_eV_per_Ang3"] < tolerance
    return result


def relax(atoms: Atoms, fmax: float = 1e-3, steps: int = 500) -> tuple[Atoms, dict]:
    """Relax positions and, along the directions of a crystal, the cell.

    Args:
        atoms: with a calculator; not changed.
        fmax: largest force at the end, eV/Ang.

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


def check_phonons(atoms: Atoms, delta: float = 0.01) -> dict:
    """Frequencies at Gamma of the cell as it stands; imaginary ones count as negative.

    Args:
        atoms: with a calculator, relaxed.
        delta: displacement, Ang.
    """
    if len(atoms) > 300:
        return {"skipped": f"{len(atoms)} atoms are many; give a smaller cell"}
    hessian = np.zeros((3 * len(atoms), 3 * len(atoms)))  # eV/Ang^2
    for row in progress(range(len(hessian)), "phonons"):
        i, k = divmod(row, 3)
        plus, minus = (displaced(atoms, i, k, x).get_forces() for x in (delta, -delta))
        hessian[row] = (minus - plus).ravel() / (2 * delta)
    masses = np.repeat(atoms.get_masses(), 3)
    squares = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) / np.sqrt(np.outer(masses, masses)))
    omega = np.sign(squares) * np.sqrt(np.abs(squares))  # in ASE's inverse unit of time
    frequencies = 1e3 * units.fs * omega / (2 * np.pi)  # THz
    # turning a molecule costs nothing but for the curvature that the displacement sees
    is_molecule = not bulk_directions(atoms).any()
    n_free = min(6, 3 * len(atoms)) if is_molecule else 3
    imaginary = frequencies[frequencies < -0.1]
    return {
        "frequencies_THz": frequencies.tolist(),
        "acoustic_max_THz": float(np.sort(np.abs(frequencies))[: min(3, n_free)].max()),
        "n_imaginary": len(imaginary),
        "ok": len(imaginary) <= n_free - 3,
    }


def check_nve(
    atoms: Atoms,
    time_steps: Sequence[float] = TIME_STEPS,
    duration: float = 100.0,
    temperature: float = 300.0,
    min_atoms: int = 16,
    seed: int = 0,
) -> dict:
    """Spread of the total energy in NVE runs that differ in the time step only.

    Velocity Verlet keeps the energy to second order in the time step on a smooth surface: the slope
    of log(spread) over log(time step) is 2. A kink of the energy, or forces that are not its
    derivative, give a smaller slope. Time steps up to 2 fs count.

    Args:
        atoms: with a calculator; repeated until it has `min_atoms`.
        time_steps: fs, ascending.
        duration: of each run, fs.
        temperature: of the initial velocities, K; half of it remains in a harmonic crystal.
        min_atoms: size of the supercell in the directions of a crystal.
    """
    start = copy_of(atoms)
    bulk = bulk_directions(start)
    while len(start) < min_atoms and bulk.any() and start.cell.rank == 3:
        start = start.repeat(1 + bulk)
    start.calc = atoms.calc
    MaxwellBoltzmannDistribution(start, temperature_K=temperature, rng=np.random.RandomState(seed))
    Stationary(start)
    spreads = []
    for time_step in time_steps:
        run = copy_of(start)
        energies: list[float] = []
        dynamics = VelocityVerlet(run, timestep=time_step * units.fs)
        dynamics.attach(lambda run=run, out=energies: out.append(run.get_total_energy()))
        n_steps = max(4, round(duration / time_step))
        try:
            with progress(range(n_steps + 1), f"NVE, {time_step:g} fs") as bar:
                dynamics.attach(bar.update)
                dynamics.run(n_steps)
            spread = float(np.std(energies)) / len(run)
        except ValueError as error:  # exploded
            log.info("NVE with %g fs: %s", time_step, error)
            spread = math.inf
        spreads.append(spread)
    steps, found = np.array(time_steps), np.array(spreads)
    used = (steps <= 2.0) & np.isfinite(found) & (found > 1e-11)  # above rounding
    slope = None
    if used.sum() > 1:
        slope = float(np.polyfit(np.log(steps[used]), np.log(found[used]), 1)[0])
    return {
        "n_atoms": len(start),
        "temperature_K": temperature,
        "duration_fs": duration,
        "time_steps_fs": list(time_steps),
        "energy_spread_eV_per_atom": [x if math.isfinite(x) else None for x in spreads],
        "slope": slope,
        "ok": bool(slope is not None and abs(slope - 2.0) < 0.3),
    }
