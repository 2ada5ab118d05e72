"""Checks of how atoms move: frequencies at Gamma, conservation of the energy.

Conventions as in `check_static`.
"""

import logging
import math
import tempfile
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.phonons import Phonons

from .check_static import copy_of

__all__ = ["TIME_STEPS", "check_nve", "check_phonons"]

log = logging.getLogger(__name__)

#: fs
TIME_STEPS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


def check_phonons(atoms: Atoms, delta: float = 0.01) -> dict:
    """Frequencies at Gamma of the cell as it stands, by ASE; imaginary ones count as negative.

    Args:
        atoms: with a calculator, relaxed.
        delta: displacement, Ang.
    """
    if len(atoms) > 300:
        return {"skipped": f"{len(atoms)} atoms are many; give a smaller cell"}
    boxed = copy_of(atoms)
    if boxed.cell.rank < 3:  # ASE wants a reciprocal cell, though Gamma needs none
        boxed.set_cell(boxed.cell.complete())
    with tempfile.TemporaryDirectory() as folder:
        phonons = Phonons(
            boxed, atoms.calc, supercell=(1, 1, 1), delta=delta, name=f"{folder}/phonon"
        )
        phonons.run()
        phonons.read(acoustic=True)
        energies = phonons.band_structure([[0.0, 0.0, 0.0]], verbose=False)[0]  # eV
    # ASE returns imaginary frequencies as negative numbers
    frequencies = np.sort(np.real(energies)) / (units._hplanck * units.J * 1e12)  # THz
    # turning a molecule costs nothing but for the curvature that the displacement sees
    n_free = 3 if atoms.pbc.any() else min(6, 3 * len(atoms))
    imaginary = frequencies[frequencies < -0.1]
    return {
        "frequencies_THz": frequencies.tolist(),
        "acoustic_max_THz": float(np.sort(np.abs(frequencies))[: min(3, n_free)].max()),
        "n_imaginary": len(imaginary),
        "ok": len(imaginary) <= (0 if atoms.pbc.any() else n_free - 3),
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
        min_atoms: size of the supercell in periodic directions.
        seed: of the velocities.
    """
    start = copy_of(atoms)
    while len(start) < min_atoms and start.pbc.any() and start.cell.rank == 3:
        start = start.repeat([2 if periodic else 1 for periodic in start.pbc])
    start.calc = atoms.calc
    MaxwellBoltzmannDistribution(start, temperature_K=temperature, rng=np.random.RandomState(seed))
    Stationary(start)
    spreads = []
    for time_step in time_steps:
        run = copy_of(start)
        energies: list[float] = []
        dynamics = VelocityVerlet(run, timestep=time_step * units.fs)
        dynamics.attach(lambda run=run, out=energies: out.append(run.get_total_energy()))
        try:
            dynamics.run(max(4, round(duration / time_step)))
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
