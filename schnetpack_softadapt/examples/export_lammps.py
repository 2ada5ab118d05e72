"""A trained model as text files for LAMMPS (`pair_style hdnnp`), and back.

    python -m schnetpack_softadapt.examples.export_lammps runs/my start.extxyz potential

Unlike `best_model`, a pickle, the files execute nothing when they are read: the way to share one.
"""

import sys

from ase.io import read

import schnetpack_softadapt as spksa
from schnetpack_softadapt.deploy import write_potential

__all__ = ["main"]


def main(model: str, structure: str, folder: str) -> None:
    """Write the potential, with the input of a short run to be started in the folder."""
    atoms = read(structure)
    for path in write_potential(spksa.load(model), folder, atoms):
        print(path)

    for name in (model, folder):  # the folder is a model like any other
        print(name, spksa.predict(name, atoms).energy[0], "eV")


if __name__ == "__main__":
    main(*sys.argv[1:])
