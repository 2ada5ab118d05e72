"""Checks of how atoms move: frequencies at Gamma, conservation of the energy.

Conventions as in `check_static`.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from schnetpack_softadapt.deploy.check.structure import bulk_directions, copy_of, progress

__all__ = ["TIME_STEPS", "check_nve", "check_phonons"]

log = logging.getLogger(__name__)

#: fs
TIME_STEPS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


def check_phonons(atoms: Atoms, delta: float = 0.01) -> dict:
    """Frequencies at Gamma of the cell as it stands; imaginary ones count as negative.

    Args:
        atoms: with a calculator, relaxed.
        delta: displacement, Ang.
    """
    if len(atoms) > 300:
        return {"skipped": f"{len(atoms)} atoms are many; give a smaller cell"}
    moved = copy_of(atoms)
    hessian = np.zeros((3 * len(atoms), 3 * len(atoms)))  # eV/Ang^2
    for row in progress(range(len(hessian)), "phonons"):
        i, k = divmod(row, 3)
        for sign in (1, -1):
            moved.positions[i, k] = atoms.positions[i, k] + sign * delta
            hessian[row] -= sign * moved.get_forces().ravel() / (2 * delta)
        moved.positions[i, k] = atoms.positions[i, k]
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
    derivative, give a smaller slope.

    Args:
        atoms: with a calculator; repeated until it has `min_atoms`.
        time_steps: fs, ascending.
        duration: of each run, fs.
        temperature: of the initial velocities, K; half of it remains in a harmonic crystal.
        min_atoms: size of the supercell in the directions of a crystal.
        seed: of the velocities.
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
    slope = _slope(np.array(time_steps), np.array(spreads))
    return {
        "n_atoms": len(start),
        "temperature_K": temperature,
        "duration_fs": duration,
        "time_steps_fs": list(time_steps),
        "energy_spread_eV_per_atom": [x if math.isfinite(x) else None for x in spreads],
        "slope": slope,
        "ok": bool(slope is not None and abs(slope - 2.0) < 0.3),
    }


def _slope(time_steps: np.ndarray, spreads: np.ndarray) -> float | None:
    """Slope over the time steps up to 2 fs at which the spread is above rounding."""
    used = (time_steps <= 2.0) & np.isfinite(spreads) & (spreads > 1e-11)
    if used.sum() < 2:
        return None
    return float(np.polyfit(np.log(time_steps[used]), np.log(spreads[used]), 1)[0])
