"""The recipe as it ships, with no setting but the data and few epochs."""

import math

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT

import schnetpack_softadapt as spksa
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.structures import Structure

N = 30


def crystals(elements: str):
    """Four atoms of fcc, in all mixtures; EMT knows the elements but for their real lattices."""
    rng = np.random.default_rng(0)
    symbols = elements.split()
    for k in range(N):
        atoms = bulk("Cu", a=3.8 + 0.05 * rng.normal(), cubic=True)
        atoms.symbols[:] = [symbols[(k + i * (1 + k // 5)) % len(symbols)] for i in range(4)]
        yield strained(atoms, rng)


def slabs():
    """Periodic in the plane, with a cell vector of zero out of it."""
    rng = np.random.default_rng(0)
    for k in range(N):
        atoms = fcc111("Cu", (1, 1, 3), a=3.7, periodic=False)
        atoms.symbols[k % 3] = "Au"
        yield strained(atoms, rng)


def molecules():
    rng = np.random.default_rng(0)
    for k in range(4 * N):
        atoms = molecule(("CH4", "H2O", "NH3")[k % 3])
        yield strained(atoms, rng, 0.0)


def strained(atoms: Atoms, rng, sigma: float = 0.03) -> Atoms:
    deformation = np.eye(3) + rng.normal(0, sigma, (3, 3)) * np.outer(atoms.pbc, atoms.pbc)
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    atoms.calc = EMT()
    return atoms


SETS = {
    "one element": lambda: crystals("Cu"),
    "two elements": lambda: crystals("Cu Au"),
    "three elements": lambda: crystals("Cu Au Pd"),
    "five elements": lambda: crystals("Cu Au Pd Ag Ni"),
    "slabs": slabs,
    "molecules": molecules,
}


def labelled(atoms: Atoms) -> Structure:
    stress = atoms.get_stress() if atoms.pbc.all() else None
    labels = atoms.get_potential_energy(), atoms.get_forces(), stress
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, *labels)


@pytest.mark.parametrize("name", SETS)
def test_recipe_beats_a_constant(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structures = [labelled(atoms) for atoms in SETS[name]()]
    write_database("my.db", structures, "EMT")
    metrics = spksa.train("my.db", epochs=3).metrics
    with np.load("runs/my/split.npz") as split:
        train = [structures[k] for k in split["train_idx"]]
    assert all(math.isfinite(e) for subset in ("train", "test") for e in metrics[subset].values())
    # of three structures for testing, errors are a matter of luck
    for key, error in errors_of_a_constant(train).items():
        assert metrics["train"][key] < error, key


def errors_of_a_constant(structures) -> dict[str, float]:
    """RMSE of the best energies per element, of forces of zero and of the mean stress."""
    elements = np.unique(np.concatenate([s.numbers for s in structures]))
    fractions = np.array([[np.mean(s.numbers == z) for z in elements] for s in structures])
    energies = np.array([s.energy / s.n_atoms for s in structures])
    energies = energies - fractions @ np.linalg.lstsq(fractions, energies, rcond=None)[0]
    forces = np.concatenate([s.forces for s in structures])
    errors = {"energy_rmse_meV_per_atom": 1e3 * energies, "forces_rmse_meV_per_Ang": 1e3 * forces}
    if structures[0].stress is not None:
        stresses = np.array([s.stress_voigt for s in structures])
        errors["stress_rmse_MPa"] = (stresses - stresses.mean(axis=0)) / units.GPa * 1e3
    return {key: float(np.sqrt(np.mean(error**2))) for key, error in errors.items()}
