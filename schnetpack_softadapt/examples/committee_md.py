"""Molecular dynamics with three models that differ in their seed, and what they disagree about.

    python -m schnetpack_softadapt.examples.committee_md my.db start.extxyz

The spread of the forces tells where the models had too little data. Structures with a large one are
written to uncertain.extxyz, to be labelled and added to the data.
"""

import sys

import numpy as np
from ase import units
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

import schnetpack_softadapt as spksa

__all__ = ["main"]


def main(database: str, start: str, *settings: str, n_steps: int = 1000) -> None:
    """Train the committee (or find it trained), and run at 300 K."""
    runs = [spksa.train(database, *settings, seed=k, out=f"runs/member_{k}") for k in (1, 2, 3)]
    atoms = read(start)
    atoms.calc = spksa.SoftAdaptCalculator([run.folder for run in runs])

    def look() -> None:
        energy = atoms.get_potential_energy() / len(atoms)  # eV, the mean over the models
        spread = np.linalg.norm(atoms.calc.results["forces_std"], axis=1).max()  # eV/Ang
        print(f"{energy:.4f} eV/atom, forces uncertain by up to {spread:.3f} eV/Ang")
        if spread > 0.3:
            write("uncertain.extxyz", atoms, append=True)

    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(1))
    dynamics = Langevin(atoms, 1.0 * units.fs, temperature_K=300, friction=0.01 / units.fs)
    dynamics.attach(look, interval=10)
    dynamics.run(n_steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
