"""Small labelled structures for the tests of the data folder; ASE's EMT potential labels them."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from schnetpack_softadapt.data.structures import Structure

__all__ = ["labelled_atoms", "labelled_structures"]


def labelled_atoms(
    n: int = 6, seed: int = 0, symbols: str = "CuAu", periodic: bool = True
) -> list[Atoms]:
    """`n` perturbed, sheared cells of 2 to 4 atoms (or methanol molecules) with EMT's labels."""
    rng = np.random.default_rng(seed)
    result = []
    for k in range(n):
        if periodic:
            atoms = bulk("Cu", "fcc", a=3.8, cubic=True)[: 2 + k % 3]
            atoms.symbols[: len(atoms) // 2] = symbols[-2:]
            cell = atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
            atoms.set_cell(cell, scale_atoms=True)
        else:
            atoms = molecule("CH3OH")
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        labels = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
        }
        if periodic:
            labels["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["group"] = f"family {k % 2}"
        result.append(atoms)
    return result


def labelled_structures(n: int = 6, seed: int = 0, **kwargs) -> list[Structure]:
    """The same as structures of this package; consecutive pairs share a strain state."""
    return [
        Structure(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.calc.results["energy"],
            forces=atoms.calc.results["forces"],
            stress=atoms.calc.results.get("stress"),
            group=atoms.info["group"],
            info={"strain_state": f"state {k // 2}"},
        )
        for k, atoms in enumerate(labelled_atoms(n, seed, **kwargs))
    ]
