"""Label strained and perturbed MoTe2 monolayers with GPAW (PBE); how `mote2_pbe.extxyz` was made.

    python label_with_gpaw.py PART N_PARTS SECONDS

labels every N_PARTS-th structure of a shuffled list, into `part<PART>.extxyz`, until the time is
up; started again, it goes on. The first two parts were made with perturbations twice as large
(`SIGMA_STEP` 0.02 Ang), see `merge_labels.py`.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import make_supercell, mx2
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS
from gpaw import GPAW, PW, FermiDirac

HEIGHT = 20.0  # of the cell, Ang
CUTOFF = 293  # of the plane waves, eV
K_POINTS = {"2H": (6, 6, 1), "1T'": (6, 3, 1)}
STRAINS = np.arange(-0.10, 0.1001, 0.02)
N_PERTURBATIONS = 12  # per strain state, besides the unperturbed structure
SIGMA_STEP = 0.01  # the p-th perturbation displaces each component by p times this, Ang
MAX_DISPLACEMENT = 1.0  # of an atom, Ang


def calculator(phase: str) -> GPAW:
    """PBE with plane waves and tight convergence."""
    return GPAW(
        mode=PW(CUTOFF),
        xc="PBE",
        kpts={"size": K_POINTS[phase], "gamma": True},
        occupations=FermiDirac(0.05),
        convergence={"energy": 1e-6, "density": 1e-5},
        txt=None,
        maxiter=120,
        symmetry={"point_group": False, "time_reversal": True},
    )


def unstrained_cell(phase: str) -> Atoms:
    """Atoms relaxed in the fixed lattice; kept in a file."""
    file = Path(f"relaxed_{phase[:2]}.xyz")
    if file.exists():
        return read(file)
    if phase == "2H":
        atoms = mx2("MoTe2", kind="2H", a=3.55, thickness=3.61, vacuum=5)
    else:
        atoms = mx2("MoTe2", kind="1T", a=3.46, thickness=3.6, vacuum=5)
        atoms = make_supercell(atoms, [[1, 0, 0], [1, 2, 0], [0, 0, 1]])
        cell = atoms.cell.array.copy()
        cell[1] = [0, 6.37, 0]
        atoms.set_cell(cell, scale_atoms=True)
        # off the symmetric site, so that the metal atoms dimerise
        first, second = (i for i, s in enumerate(atoms.get_chemical_symbols()) if s == "Mo")
        atoms.positions[first, 1] += 0.2
        atoms.positions[second, 1] -= 0.2
        atoms.rattle(0.02, seed=1)
    cell = atoms.cell.array.copy()
    cell[2] = [0, 0, HEIGHT]
    atoms.set_cell(cell)
    atoms.center(axis=2)
    atoms.pbc = True
    atoms.calc = calculator(phase)
    BFGS(atoms, logfile=f"relax_{phase[:2]}.log").run(fmax=0.03, steps=40)
    write(file, atoms)
    return read(file)


def jobs() -> list[tuple[str, int, float, float, int]]:
    """All structures: phase, number of the strain state, strains, perturbation (0: none)."""
    return [
        (phase, state, float(strain_x), float(strain_y), p)
        for phase in K_POINTS
        for state, (strain_x, strain_y) in enumerate(itertools.product(STRAINS, STRAINS))
        for p in range(N_PERTURBATIONS + 1)
    ]


def strained_and_perturbed(phase, state, strain_x, strain_y, p, cell: Atoms) -> Atoms:
    """The structure of one job."""
    atoms = cell.copy()
    deformation = np.diag([1 + strain_x, 1 + strain_y, 1.0])
    atoms.set_cell(cell.cell.array @ deformation, scale_atoms=True)
    if p:
        rng = np.random.default_rng(500000 + 100000 * (phase != "2H") + 100 * state + p)
        step = rng.normal(0, SIGMA_STEP * p, atoms.positions.shape)
        length = np.linalg.norm(step, axis=1, keepdims=True)
        step *= np.minimum(1, MAX_DISPLACEMENT / np.maximum(length, 1e-9))
        atoms.positions += step
    return atoms


def label(atoms: Atoms, phase: str) -> None:
    """Replace the calculator by its results; the energy is the free energy."""
    atoms.calc = calculator(phase)
    energy = atoms.get_potential_energy(force_consistent=True)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    atoms.calc = SinglePointCalculator(
        atoms, energy=energy, free_energy=energy, forces=forces, stress=stress
    )


def main(part: int, n_parts: int, seconds: float) -> None:
    """Label a part of all structures until the time is up."""
    start = time.time()
    cells = {phase: unstrained_cell(phase) for phase in K_POINTS}
    all_jobs = jobs()
    order = np.random.default_rng(2025).permutation(len(all_jobs))
    done_file = Path(f"done{part}.txt")
    done = set(map(int, done_file.read_text().split())) if done_file.exists() else set()
    for n, job in enumerate(order):
        if n % n_parts != part or n in done:
            continue
        if time.time() - start > seconds:
            break
        phase, state, strain_x, strain_y, p = all_jobs[job]
        atoms = strained_and_perturbed(phase, state, strain_x, strain_y, p, cells[phase])
        try:
            label(atoms, phase)
            atoms.info.update(
                phase=phase,
                strain_x=round(strain_x, 3),
                strain_y=round(strain_y, 3),
                perturbation=p,
                sigma=round(SIGMA_STEP * p, 3),
                job=int(job),
                order=n,
            )
            write(f"part{part}.extxyz", atoms, append=True, format="extxyz")
            message = f"{n} {phase} p{p}"
        except Exception as error:  # an unconverged calculation must not end the campaign
            message = f"{n} FAILED {phase} {state} {p} {error!r}"
        with done_file.open("a") as file:
            file.write(f"{n}\n")
        print(message, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
