"""`spk-softadapt check`: right numbers for a known potential, and potentials that must fail."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from deploy_models import make_model, mo

from schnetpack_softadapt.cli import main
from schnetpack_softadapt.deploy.check import run_checks, summary
from schnetpack_softadapt.deploy.check_dynamics import check_nve, check_phonons
from schnetpack_softadapt.deploy.check_plots import plot_checks
from schnetpack_softadapt.deploy.check_static import check_derivatives, check_eos, relax


def copper():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    return atoms


class Broken(Calculator):
    """EMT with an error in the forces or the stress, or a step in the energy."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, force=1.0, shear=0.0, step=0.0):
        super().__init__()
        self.emt, self.force, self.shear, self.step = EMT(), force, shear, step

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        copy = atoms.copy()
        copy.calc = self.emt
        x = copy.positions[:, 0]
        self.results = {
            "energy": copy.get_potential_energy() + self.step * np.floor(40 * x).sum(),
            "forces": self.force * copy.get_forces(),
            "stress": copy.get_stress() + self.shear * np.eye(6)[3],
        }


def with_calculator(calculator):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = calculator
    return atoms


def test_all_checks_of_copper(tmp_path):
    atoms = copper()
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    shorter = {"duration": 30.0, "time_steps": (0.5, 1.0, 2.0, 10.0)}
    results = run_checks(atoms, folder=tmp_path, options={"nve": shorter})
    assert all(r["ok"] for r in results.values()), summary(results)
    # ASE's own numbers for EMT copper: a = 3.59 Ang, B = 134 GPa
    assert results["relax"]["cell_lengths_Ang"] == pytest.approx([3.59] * 3, abs=0.01)
    assert results["eos"]["bulk_modulus_GPa"] == pytest.approx(134, abs=3)
    elastic = np.array(results["elastic"]["elastic_constants_GPa"])
    assert elastic[0, 0] == pytest.approx(elastic[2, 2], rel=1e-3)
    bulk_modulus = (elastic[0, 0] + 2 * elastic[0, 1]) / 3
    assert bulk_modulus == pytest.approx(results["eos"]["bulk_modulus_GPa"], rel=0.02)
    # sampled by four atoms: the zone-boundary modes of fcc copper lie between 4 and 8 THz
    assert 4 < results["phonons"]["frequencies_THz"][-1] < 9
    assert results["phonons"]["acoustic_max_THz"] < 0.05
    assert results["nve"]["slope"] == pytest.approx(2.0, abs=0.2)
    assert json.loads((tmp_path / "check.json").read_text()) == results
    assert (tmp_path / "check.png").stat().st_size > 10_000
    assert (tmp_path / "relaxed.extxyz").exists()
    assert not list(tmp_path.glob(".*"))
    assert "slope 2.0" in summary(results)


def test_wrong_forces_and_stress_are_found():
    good = check_derivatives(with_calculator(Broken()))
    assert good["ok"]
    assert good["force_max_error_eV_per_Ang"] < 1e-7
    assert not check_derivatives(with_calculator(Broken(force=1.001)))["ok"]
    sheared = check_derivatives(with_calculator(Broken(shear=1e-3)))
    assert sheared["stress_max_error_eV_per_Ang3"] == pytest.approx(1e-3, rel=1e-3)
    assert not sheared["ok"]


def test_nve_sees_wrong_forces_and_steps():
    for broken in (Broken(force=1.05), Broken(step=1e-3)):
        result = check_nve(with_calculator(broken), time_steps=(1.0, 2.0), duration=20)
        assert not result["ok"], result
        assert result["slope"] < 1.5


def test_unstable_crystal_has_imaginary_frequencies():
    atoms = Atoms("Cu2", [[0, 0, 0], [0.0, 0.0, 1.9]], cell=[2.5, 2.5, 3.8], pbc=True)
    atoms.calc = EMT()
    result = check_phonons(atoms)
    assert not result["ok"]
    assert result["n_imaginary"] > 0
    assert min(result["frequencies_THz"]) < -0.1


def test_molecule_and_slab():
    atoms = molecule("H2O")
    atoms.calc = EMT()
    results = run_checks(atoms, checks=("derivatives", "relax", "eos", "elastic", "phonons"))
    assert results["derivatives"]["ok"]
    assert "stress_max_error_eV_per_Ang3" not in results["derivatives"]
    assert results["relax"]["ok"]
    assert "needs a cell" in results["eos"]["skipped"]
    assert "needs a cell" in results["elastic"]["skipped"]
    assert "skipped" in summary(results)
    assert len(results["phonons"]["frequencies_THz"]) == 9, results["phonons"]
    slab = Atoms("Cu2", [[0, 0, 5], [1.3, 1.3, 6.8]], cell=[2.6, 2.6, 12], pbc=[1, 1, 0])
    slab.calc = EMT()
    relaxed, result = relax(slab)
    assert result["ok"]
    # the vacuum stays as it was
    assert relaxed.cell[2].tolist() == [0, 0, 12]
    assert abs(relaxed.get_stress()[:2]).max() < 1e-4


def test_failures_are_reported_and_the_rest_goes_on(tmp_path):
    atoms = with_calculator(LennardJones(sigma=0.1, rc=4.0))  # nothing binds at this distance
    results = run_checks(atoms, checks=("eos", "phonons"), folder=tmp_path)
    assert not results["eos"]["ok"]
    assert "NOT OK" in summary(results)
    assert "phonons" in results
    with pytest.raises(ValueError, match=r"unknown checks \['speed'\]; choose from"):
        run_checks(atoms, checks=("speed",))
    assert plot_checks({"eos": {"skipped": "no cell"}}, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
    many = bulk("Cu", cubic=True) * (5, 5, 4)
    assert "give a smaller cell" in check_phonons(many)["skipped"]


def test_command_line(tmp_path, capsys):
    """export, import-potential and check of one model; a random potential need not be stable."""
    model, structure = make_model(seed=5), mo(0.05, n=1)
    torch.save(model, tmp_path / "best_model")
    structure.write(tmp_path / "mo.xyz")
    folder = str(tmp_path / "n2p2")
    assert (
        main(["export", str(tmp_path), "--out", folder, "--structure", str(tmp_path / "mo.xyz")])
        == 0
    )
    assert "in.lammps" in capsys.readouterr().out
    assert main(["import-potential", folder, "--out", str(tmp_path / "again")]) == 0
    assert "Mo: 7 symmetry functions" in capsys.readouterr().out
    out = str(tmp_path / "check")
    arguments = [str(tmp_path / "again"), str(tmp_path / "mo.xyz"), "--out", out]
    assert main(["check", *arguments, "--only", "derivatives"]) == 0
    assert "derivatives  ok" in capsys.readouterr().out
    assert main(["check", *arguments, "--only", "nothing", "--overwrite"]) == 2
    assert "unknown checks" in capsys.readouterr().err
    for command in (["export", str(tmp_path), "--out", folder], ["check", *arguments]):
        assert main(command) == 2
        assert "exists already" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 2
    assert "there is no model at" in capsys.readouterr().err


def test_our_model_is_smooth():
    """Time steps below those of a stiff potential with random weights."""
    atoms = mo(0.02, n=1)
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

    atoms.calc = SoftAdaptCalculator(make_model(seed=5))
    assert check_derivatives(atoms)["ok"]
    result = check_nve(atoms, time_steps=(0.5, 1.0, 2.0), duration=20, min_atoms=2)
    assert result["ok"], result
    assert len(check_eos(atoms, n_points=7)["energies_eV_per_atom"]) == 7
