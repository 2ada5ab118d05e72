"""What the tests of exported files share: a structure, and a step of it in LAMMPS."""

import subprocess

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

__all__ = ["CRYSTAL", "calculated", "lammps_step"]

CRYSTAL = bulk("W", cubic=True).repeat(2)
CRYSTAL.numbers[[1, 6, 11]] = 4
CRYSTAL.rattle(0.2, seed=1)

OUTPUT = """
    thermo_style custom step pe
    thermo_modify format float %.16g
    compute energies all pe/atom
    dump one all custom 1 forces.dump id fx fy fz c_energies
    dump_modify one format float %.16g sort id
    run 0
"""


def calculated(atoms, model) -> Atoms:
    """A copy with the calculator of a model."""
    atoms = atoms.copy()
    atoms.calc = SoftAdaptCalculator(model)
    return atoms


def lammps_step(folder, model) -> tuple[Atoms, float, np.ndarray, np.ndarray]:
    """The structure of an exported folder with the calculator, and LAMMPS' results for it.

    Returns:
        structure; energy, forces (N, 3) and energies (N,) of atoms in eV and Ang.
    """
    text = (folder / "in.lammps").read_text().split("velocity ")[0] + OUTPUT
    (folder / "in.test").write_text(text)
    done = subprocess.run(
        ["lmp", "-in", "in.test"], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    box = read(folder / "structure.data", "0", "lammps-data", atom_style="atomic", units="metal")
    box.numbers = np.array(model.representation.descriptor.elements)[box.arrays["type"] - 1]
    found = np.loadtxt(folder / "forces.dump", skiprows=9)[:, 1:]
    energy = float(done.stdout.split("PotEng")[1].split("\n")[1].split()[1])
    return calculated(box, model), energy, found[:, :3], found[:, 3]
