"""`spk-softadapt check`: right numbers for a known potential, and potentials that must fail."""

import functools
import io
import json
import sys
from importlib import resources

import numpy as np
import pytest
import spglib
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, make_supercell, molecule, mx2
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read
from deploy_models import make_model, mo

from schnetpack_softadapt import data
from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.deploy.check import elastic as check_elastic_module
from schnetpack_softadapt.deploy.check import structure as check_structure
from schnetpack_softadapt.deploy.check.check import read_options, run_checks
from schnetpack_softadapt.deploy.check.checks import (
    check_derivatives,
    check_eos,
    check_nve,
    check_phonons,
    relax,
)
from schnetpack_softadapt.deploy.check.elastic import check_elastic, mean_moduli
from schnetpack_softadapt.deploy.check.results import plot_checks, summary
from schnetpack_softadapt.deploy.check.structure import bulk_directions


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
    # of a fit to energies over 12 % of volume against differences at a strain of 0.2 %
    bulk_modulus = results["elastic"]["bulk_modulus_GPa"]["hill"]
    assert bulk_modulus == pytest.approx(results["eos"]["bulk_modulus_GPa"], rel=0.005)
    assert "Fm-3m (225): C11 172.6, C12 115.4, C44 89.9; bulk 134.5" in summary(results)
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


def in_any_frame(atoms, seed=0):
    """The same crystal in another cell, turned and shifted."""
    rng = np.random.default_rng(seed)
    atoms = make_supercell(atoms, [[1, 0, 0], [1, 1, 0], [0, -1, 1]])
    atoms.rotate(rng.uniform(0, 180), rng.normal(size=3), rotate_cell=True)
    atoms.positions += rng.normal(size=3)
    atoms.wrap()
    atoms.calc = EMT()
    return atoms


def rhombohedral():
    """Two atoms on the threefold axis of a stretched fcc cell: C14 is not zero."""
    atoms = bulk("Cu", a=3.9) + Atoms("Cu", [[0.62 * 3.9] * 3])
    shear = 0.06 * (np.ones((3, 3)) - np.eye(3))
    atoms.set_cell(atoms.cell @ (np.eye(3) + shear), scale_atoms=True)
    return atoms


def sheared(components):
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[:2] = "Ag"
    strain = np.zeros((3, 3))
    for (i, j), value in components.items():
        strain[i, j] = value
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


CRYSTALS = {
    "Fm-3m": lambda: bulk("Cu"),
    "P6_3/mmc": lambda: bulk("Cu", "hcp", a=2.54, c=4.15),
    "P4/mmm": lambda: sheared({}),
    "R-3m": rhombohedral,
    "C2/m": lambda: sheared({(0, 0): 0.04, (0, 1): 0.05, (2, 2): -0.02}),
    "P-1": lambda: sheared({(0, 1): 0.05, (0, 2): 0.03, (1, 2): -0.04, (0, 0): 0.02}),
}


@pytest.mark.parametrize("space_group", CRYSTALS)
def test_elastic_constants_in_standard_axes(space_group):
    """Equal to those of the standard cell, which spglib builds with its atoms."""
    atoms = in_any_frame(CRYSTALS[space_group]())
    result = check_elastic(atoms, fmax=np.inf)  # positions as they are
    assert result["space_group"].split()[0] == space_group
    cell, positions, numbers = spglib.standardize_cell(
        (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    )
    standard = Atoms(numbers, scaled_positions=positions, cell=cell, pbc=True, calculator=EMT())
    expected = check_elastic_module._constants(standard, 2e-3, np.inf)
    constants = np.array(result["elastic_constants_GPa"])
    # strains of 0.2 % in other axes are others: terms of third order, some 10 (0.2 %)^2
    tolerance = 1e-4 * constants.max()
    np.testing.assert_allclose(constants, expected, rtol=0, atol=tolerance)
    assert result["symmetry_error_GPa"] < tolerance
    if space_group == "R-3m":
        assert abs(constants[0, 3]) > 1
    if space_group == "P-1":
        assert abs(constants[np.triu_indices(6)]).min() > 0.01


def test_elastic_constants_of_a_turned_primitive_cell():
    """Cubic: C11 = C22 = C33 and no C14, whatever the cell; values from energies."""
    primitive = bulk("Cu", a=3.59)
    constants = np.array(check_elastic(in_any_frame(primitive))["elastic_constants_GPa"])
    pattern = np.diag([1, 1, 1, 2, 2, 2]) + np.pad(3 * (1 - np.eye(3, dtype=int)), (0, 3))
    for k in (0, 1, 2, 3):
        values = constants[pattern == k]
        np.testing.assert_allclose(values, 0 if k == 0 else values[0], atol=1e-9)

    def energy(strain):
        strained = bulk("Cu", a=3.59)
        strained.set_cell(strained.cell @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = EMT()
        return strained.get_potential_energy()

    h = 2e-3
    for strain, value in (
        (np.diag([h, 0, 0]), constants[0, 0]),
        (h / 2 * (np.eye(3)[[1, 0, 2]] - np.diag([0, 0, 1])), constants[3, 3]),
    ):
        second = (energy(strain) - 2 * energy(0 * strain) + energy(-strain)) / h**2
        # the crystal is under a small stress at a = 3.59 Ang
        assert value == pytest.approx(second / primitive.get_volume() / units.GPa, rel=0.01)


def test_positions_follow_the_strain():
    """In hcp one position is free; the cell as ASE makes it stands in the standard axes."""
    atoms = bulk("Cu", "hcp", a=2.5386, c=4.143)
    result = check_elastic(in_any_frame(atoms), fmax=1e-4)
    atoms.calc = EMT()
    expected = check_elastic_module._constants(atoms, 2e-3, 1e-8)
    np.testing.assert_allclose(result["elastic_constants_GPa"], expected, atol=0.05)
    clamped = check_elastic_module._constants(atoms, 2e-3, np.inf)
    assert clamped[0, 0] - expected[0, 0] > 1


def test_mean_moduli():
    """Known for a cubic crystal; and the same in any axes, as for a crystal of any symmetry."""
    c11, c12, c44 = 166.0, 64.0, 80.0  # Si
    cubic = np.diag([c11 - c12] * 3 + [c44] * 3) + np.pad(np.full((3, 3), c12), (0, 3))
    found = mean_moduli(cubic)
    assert found["bulk_modulus_GPa"] == pytest.approx(dict.fromkeys(found["bulk_modulus_GPa"], 98))
    shear = found["shear_modulus_GPa"]
    assert shear["voigt"] == pytest.approx((c11 - c12 + 3 * c44) / 5)
    assert shear["reuss"] == pytest.approx(5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12)))
    assert shear["hill"] == pytest.approx((shear["voigt"] + shear["reuss"]) / 2)
    rng = np.random.default_rng(0)
    random = rng.normal(size=(6, 6))
    random = random @ random.T + np.eye(6)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = mean_moduli(check_elastic_module._rotated(random, rotation[None]))
    for name, values in mean_moduli(random).items():
        assert turned[name] == pytest.approx(values, rel=1e-12)
    assert mean_moduli(-cubic)["bulk_modulus_GPa"] == {"voigt": -98, "reuss": None, "hill": None}


def test_dimer_frequency():
    """sqrt(k / mu) / 2 pi, and five that cost nothing."""
    atoms = Atoms("CuAu", [[0, 0, 0], [0, 0, 2.2]], calculator=EMT())
    atoms, _ = relax(atoms, fmax=1e-6)
    h, energies = 1e-3, []
    for x in (-h, 0, h):
        moved = atoms.copy()
        moved.calc = EMT()
        moved.positions[1, 2] += x
        energies.append(moved.get_potential_energy() * units._e)
    k = (energies[0] - 2 * energies[1] + energies[2]) / (h * 1e-10) ** 2  # N/m
    mu = units._amu / (1 / atoms.get_masses()).sum()  # kg
    found = check_phonons(atoms, delta=1e-3)
    # both differences are wrong by h^2, relative 1e-6
    assert found["frequencies_THz"][-1] == pytest.approx(np.sqrt(k / mu) / (2e12 * np.pi), rel=1e-5)
    assert max(map(abs, found["frequencies_THz"][:-1])) < 0.1
    # pressed together it wants to turn, which is no fault of the potential, in a box or without
    atoms.positions[1, 2] -= 0.1
    for box in (0, 12):
        atoms.set_cell([box] * 3)
        atoms.pbc = box > 0
        pressed = check_phonons(atoms)
        assert pressed["n_imaginary"] == 2
        assert pressed["ok"]


def layer(kind):
    """A layer or a molecule of copper, periodic in all directions as many are given."""
    if kind == "layer":
        return fcc111("Cu", (1, 1, 3), vacuum=6.0, periodic=True)
    if kind == "turned layer":
        atoms = layer("layer")
        atoms.rotate(50, (1, 2, 3), rotate_cell=True)
        return atoms
    if kind == "layer in another cell":
        return make_supercell(layer("layer"), [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    return Atoms("Cu2", [[0, 0, 0], [0.3, 0.3, 2.2]], cell=[12, 12, 12], pbc=True)


@pytest.mark.parametrize("kind", ["layer", "turned layer", "molecule"])
def test_vacuum_is_no_crystal(kind):
    """C33 = 0 of a layer in a box, and the modulus of its box, are no faults of the potential."""
    atoms = layer(kind)
    atoms.calc = EMT()
    shorter = {"nve": {"duration": 20.0, "time_steps": (1.0, 2.0), "min_atoms": 9}}
    results = run_checks(atoms, options=shorter)
    assert all(r.get("ok", True) for r in results.values()), summary(results)
    empty = "a, b, c" if kind == "molecule" else "c"
    for name in ("eos", "elastic"):
        assert results[name]["skipped"].endswith(f"vacuum along {empty}")
    if kind != "turned layer":
        assert results["relax"]["cell_lengths_Ang"][2] == pytest.approx(atoms.cell.lengths()[2])
    # the supercell grows along the layer, not into the vacuum
    assert results["nve"]["n_atoms"] == {"molecule": 2}.get(kind, 12)
    if kind == "molecule":
        assert results["relax"]["cell_lengths_Ang"] == [12, 12, 12]


def test_directions_of_a_crystal():
    assert bulk_directions(layer("layer in another cell")).tolist() == [False, True, True]
    assert bulk_directions(bulk("Cs")).all()  # wide, but a crystal
    assert bulk_directions(mx2("MoS2", vacuum=1.5)).tolist() == [True, True, False]
    for name in ("2H", "1Tp"):  # the shipped prototypes
        with resources.as_file(resources.files(data) / f"mote2/relaxed_{name}.extxyz") as path:
            atoms = read(path)
        assert atoms.pbc.all()
        assert bulk_directions(atoms).tolist() == [True, True, False]


def test_only_what_was_relaxed_is_written(tmp_path):
    run_checks(copper(), ("eos",), tmp_path / "eos")
    assert not (tmp_path / "eos/relaxed.extxyz").exists()

    class NoForces(Broken):
        def calculate(self, *args, **kwargs):
            raise ValueError("exploded")

    run_checks(with_calculator(NoForces()), ("relax",), tmp_path / "failed")
    assert not (tmp_path / "failed/relaxed.extxyz").exists()
    run_checks(copper(), ("relax",), tmp_path / "relaxed")
    assert (tmp_path / "relaxed/relaxed.extxyz").exists()


def test_progress_bars(monkeypatch):
    """On a terminal each check that takes long says how far it is."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(check_structure, "PROGRESS_DELAY_S", 0)
    every_step = functools.partial(check_structure.tqdm, mininterval=0, miniters=1)
    monkeypatch.setattr(check_structure, "tqdm", every_step)
    monkeypatch.setattr("sys.stderr", Terminal())
    run_checks(copper(), options={"nve": {"duration": 4.0, "time_steps": (1.0, 2.0)}})
    for bar in (
        "forces",
        "stress",
        "relax",
        "equation of state",
        "elastic constants",
        "phonons",
        "NVE, 1 fs",
        "NVE, 2 fs",
    ):
        done = "3it" if bar == "relax" else "100%"
        assert f"{bar}: {done}" in sys.stderr.getvalue(), bar


def test_options():
    assert read_options(["nve.temperature=600", "nve.time_steps=0.5,1", "relax.steps=7"]) == {
        "nve": {"temperature": 600.0, "time_steps": (0.5, 1.0)},
        "relax": {"steps": 7},
    }
    for wrong in ("nve.speed=1", "nve.duration", "relax.steps=1.5", "eos.span=nan", "all"):
        with pytest.raises(ValueError, match="sets no option of a check") as error:
            read_options([wrong])
        assert repr(wrong) in str(error.value)
        assert "nve.time_steps=(0.25,0.5,1.0,2.0,5.0,10.0)" in str(error.value)


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
    options = ["--only", "derivatives", "--set", "derivatives.n_forces=2", "--overwrite"]
    assert main(["check", *arguments, *options]) == 0
    written = json.loads((tmp_path / "check/check.json").read_text())
    assert written["derivatives"]["force_components"] == 2
    assert main(["check", *arguments, "--set", "all", "--overwrite"]) == 2
    assert "relax.fmax=0.001" in capsys.readouterr().err
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
