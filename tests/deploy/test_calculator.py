"""The ASE calculator: right where SpkCalculator is not (each test names what goes wrong there)."""

import itertools
import logging
import pickle
import sys
from types import ModuleType

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS
from deploy_models import make_layout, make_model, mo, mote2
from schnetpack import properties
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances, Strain
from schnetpack.interfaces import AtomsConverter, SpkCalculator
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import SchNet

from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator, StressNotDefinedError
from schnetpack_softadapt.deploy.evaluate import ComposedModels
from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
from schnetpack_softadapt.deploy.extrapolation import ExtrapolationError
from schnetpack_softadapt.deploy.loading import load_potential


def make_schnet(stress=False):
    torch.manual_seed(0)
    n_features = 8
    representation = SchNet(
        n_atom_basis=n_features,
        n_interactions=1,
        radial_basis=GaussianRBF(n_rbf=8, cutoff=4.0),
        cutoff_fn=CosineCutoff(4.0),
    )
    model = NeuralNetworkPotential(
        representation=representation,
        input_modules=[PairwiseDistances()],
        output_modules=[
            Atomwise(n_in=n_features, output_key="energy"),
            Forces(calc_forces=True, calc_stress=stress),
        ],
    )
    model.metadata = {"units": {"energy": "eV", "length": "Ang"}}  # as SoftAdaptTask writes them
    return model


def calculated(atoms, model, **kwargs):
    atoms = atoms.copy()
    atoms.calc = SoftAdaptCalculator(model, **kwargs)
    return atoms


def through_schnetpack(atoms, model, **kwargs):
    """The same calculator, made to call the modules of the model one after the other."""
    atoms = calculated(atoms, model, additional_inputs={"dummy": torch.zeros(1)}, **kwargs)
    (evaluator,) = atoms.calc._evaluators
    assert type(evaluator).__name__ == "BatchModel"
    # with somebody listening the model takes no short cut of its own
    evaluator.model.output_modules[0].register_forward_hook(lambda *args: None)
    return atoms


class MyAtoms(Atoms):
    """Subclasses of Atoms raise TypeError in SpkCalculator."""


# --- numbers


@pytest.mark.parametrize("make_atoms", [mo, mote2])
def test_finite_differences(make_atoms):
    atoms = calculated(make_atoms(0.15), make_model())
    h = 1e-4
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    numeric = np.zeros_like(forces[:3])
    for i, k in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[i, k] += sign * h
            energies.append(moved.get_potential_energy())
        numeric[i, k] = (energies[1] - energies[0]) / (2 * h)
    # truncation h^2 and rounding 1e-13 / h, both near 1e-8
    np.testing.assert_allclose(forces[:3], numeric, atol=1e-7)
    numeric = np.zeros((3, 3))
    for i, k in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, k] += 0.5 * sign * h
            strain[k, i] += 0.5 * sign * h
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = atoms.calc
            energies.append(strained.get_potential_energy())
        numeric[i, k] = (energies[0] - energies[1]) / (2 * h) / atoms.get_volume()
    np.testing.assert_allclose(stress, numeric, atol=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("make_atoms", [mo, mote2])
def test_short_way_equals_schnetpacks_way(make_atoms, activation):
    model = make_model(activation=activation)
    direct, batch = calculated(make_atoms(), model), through_schnetpack(make_atoms(), model)
    assert direct.get_potential_energy() == pytest.approx(batch.get_potential_energy(), abs=1e-10)
    for name in ("forces", "stress", "energies"):
        a, b = (x.calc.get_property(name, x) for x in (direct, batch))
        # sums over some hundred pairs in another order
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    assert isinstance(direct.calc._evaluators[0], ComposedModels)
    assert isinstance(direct.calc, SpkCalculator)


def test_energies_sum_and_free_energy():
    atoms = calculated(mote2(), make_model())
    energies = atoms.get_potential_energies()
    assert energies.shape == (len(atoms),)
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_float32():
    double, single = (
        calculated(mote2(), make_model()),
        calculated(mote2(), make_model(), dtype="float32"),
    )
    assert single.calc.dtype == torch.float32
    # 24 atoms of 6 eV and forces of 1 eV/Ang, seven digits each
    assert single.get_potential_energy() == pytest.approx(double.get_potential_energy(), abs=2e-4)
    np.testing.assert_allclose(single.get_forces(), double.get_forces(), atol=2e-5)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got 'float16'"):
        SoftAdaptCalculator(make_model(), dtype="float16")


def test_molecular_dynamics_reuses_the_list():
    """Steps with the skin equal fresh calculations, cell and all."""
    model, atoms = make_model(), calculated(mo(), make_model())
    rng = np.random.default_rng(0)
    for _ in range(25):
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 1e-3, (3, 3))), scale_atoms=True)
        fresh = calculated(atoms, model, skin=0.0)
        assert atoms.get_potential_energy() == pytest.approx(
            fresh.get_potential_energy(), abs=1e-10
        )
        np.testing.assert_allclose(atoms.get_stress(), fresh.get_stress(), atol=1e-12)
    assert atoms.calc.neighbors.n_builds < 10


def test_computes_again_when_anything_changed_and_only_then():
    atoms = calculated(mote2(), make_model())
    changes = {
        "positions": lambda a: a.positions.__iadd__(np.eye(len(a), 3) * 1e-13),
        "cell": lambda a: a.set_cell(a.cell * 1.001),
        "numbers": lambda a: a.numbers.__setitem__(0, 52),
        "pbc": lambda a: a.set_pbc([True, True, False]),
    }
    atoms.get_forces()
    for n, (name, change) in enumerate(changes.items(), start=1):
        change(atoms)
        assert atoms.calc.check_state(atoms) == [name]
        energy = atoms.get_potential_energy()
        # again, of an equal structure, and without a structure: what is kept
        for same in (atoms, atoms.copy(), None):
            np.testing.assert_array_equal(
                atoms.calc.get_property("forces", same), atoms.get_forces()
            )
        assert atoms.calc.neighbors.n_updates == n + 1
        fresh = calculated(atoms, make_model())
        assert energy == pytest.approx(fresh.get_potential_energy(), abs=1e-10)
    kept = atoms.calc.atoms
    np.testing.assert_array_equal(kept.positions, atoms.positions)
    atoms.positions += 1.0
    assert abs(kept.positions - atoms.positions).min() == pytest.approx(1.0)
    with pytest.raises(StressNotDefinedError, match="stress_key=None"):
        calculated(mo(), make_model(), stress_key=None).get_stress()


# --- structures of every kind


def test_left_handed_cell():
    """SchNetPack's stress changes its sign with the handedness of the cell."""
    atoms = calculated(mote2(), make_model())
    left = atoms.copy()
    left.set_cell(left.cell[[1, 0, 2]])
    left.calc = SoftAdaptCalculator(make_model())
    np.testing.assert_allclose(left.get_stress(), atoms.get_stress(), atol=1e-12)
    schnet = make_schnet(stress=True)
    right, left = calculated(mote2(), make_schnet()), calculated(left, schnet)
    np.testing.assert_allclose(left.get_stress(), right.get_stress(), atol=1e-12)


def test_slab_with_and_without_a_third_vector():
    slab = mote2()
    slab.set_cell([*slab.cell[:2], [0, 0, 40.0]])
    slab.pbc = [True, True, False]
    boxed = calculated(slab, make_model())
    assert boxed.get_stress().shape == (6,)
    slab.set_cell([*slab.cell[:2], [0, 0, 0]])
    flat = calculated(slab, make_model())
    np.testing.assert_allclose(flat.get_forces(), boxed.get_forces(), atol=1e-12)
    with pytest.raises(StressNotDefinedError, match=r"center\(vacuum=..., axis=2\)"):
        flat.get_stress()


def test_molecule_and_isolated_atom():
    for make in (calculated, through_schnetpack):
        molecule = make(Atoms("MoTe2", [[0, 0, 0], [0, 1.8, 1.8], [0, -1.8, 1.8]]), make_model())
        assert abs(molecule.get_forces().sum(axis=0)).max() < 1e-12
        assert abs(molecule.get_forces()).max() > 1e-3
        with pytest.raises(StressNotDefinedError, match="a molecule has no stress"):
            molecule.get_stress()
        # ASE's own code that asks for what may be missing
        with pytest.raises(PropertyNotImplementedError):
            molecule.get_stress()
        atom = make(Atoms("Te"), make_model())
        np.testing.assert_array_equal(atom.get_forces(), np.zeros((1, 3)))
        lonely = make(Atoms("Te", cell=[20, 20, 20], pbc=True), make_model())
        assert atom.get_potential_energy() == pytest.approx(lonely.get_potential_energy())
        np.testing.assert_array_equal(lonely.get_stress(), np.zeros(6))


def test_subclass_of_atoms_and_constraints():
    atoms = MyAtoms(mo())
    atoms.set_constraint(FixAtoms([0, 3]))
    atoms.calc = SoftAdaptCalculator(make_model())
    forces = atoms.get_forces()
    assert abs(forces[[0, 3]]).max() == 0
    assert abs(atoms.get_forces(apply_constraint=False)[[0, 3]]).min() > 0
    assert abs(forces[1]).max() > 0


def test_cell_relaxation():
    """Voigt stress and an exact list: the filter converges to zero stress."""
    atoms = calculated(mo(0.05, n=1), make_model(seed=3))
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    before = atoms.get_potential_energy()
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=1e-4, steps=200)
    assert atoms.get_potential_energy() < before
    assert abs(atoms.get_stress()).max() < 1e-4


def test_results_can_be_written(tmp_path):
    """ase.db asserts on a (3, 3) stress; extxyz reads back energy, forces and stress."""
    for model in (make_model(), [make_model(0), make_model(1)]):
        atoms = calculated(mo(), model)
        atoms.get_stress()
        with ase.db.connect(tmp_path / "a.db", append=False) as database:
            database.write(atoms)
            row = database.get(1)
        np.testing.assert_allclose(row.stress, atoms.get_stress())
        write(tmp_path / "a.xyz", atoms, format="extxyz")
        again = read(tmp_path / "a.xyz")
        np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), atol=1e-7)
        write(tmp_path / "a.traj", atoms)
        assert read(tmp_path / "a.traj").get_potential_energy() == atoms.get_potential_energy()
        assert set(atoms.calc.export_properties()) >= {"energy", "forces", "stress"}


# --- models in every form


def test_model_from_path_task_run_and_folder(tmp_path):
    model, atoms = make_model(), mo()
    expected = calculated(atoms, model).get_potential_energy()
    torch.save(model, tmp_path / "best_model")
    write_potential(model, tmp_path / "n2p2")
    for given in (
        str(tmp_path / "best_model"),
        tmp_path / "best_model",
        tmp_path,
        tmp_path / "n2p2",
    ):
        assert calculated(atoms, given).get_potential_energy() == pytest.approx(expected, abs=1e-10)


def test_paths_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        SoftAdaptCalculator(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"neither a model \(best_model\) nor"):
        SoftAdaptCalculator(tmp_path)
    (tmp_path / "text").write_text("not a pickle")
    with pytest.raises(ValueError, match="cannot be loaded as a model"):
        SoftAdaptCalculator(tmp_path / "text")
    torch.save({"a": 1}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"cannot be loaded as a model|not a model"):
        SoftAdaptCalculator(tmp_path / "weights")


@pytest.mark.parametrize("make", [make_model, make_schnet])
def test_given_model_is_not_edited(make):
    """SpkCalculator converts it to its dtype and inserts one more Strain at every construction."""
    model = make().float()
    before = pickle.dumps(model.state_dict())
    n_inputs, outputs = len(model.input_modules), list(model.model_outputs)
    first = calculated(mo(), model)
    first.get_stress()
    second = calculated(mo(), model)
    np.testing.assert_array_equal(first.get_stress(), second.get_stress())
    assert len(model.input_modules) == n_inputs
    assert model.model_outputs == outputs
    assert pickle.dumps(model.state_dict()) == before
    # and a calculator made from a calculator's model strains once
    third = calculated(mo(), first.calc.model)
    np.testing.assert_allclose(third.get_stress(), first.get_stress(), atol=1e-14)
    strains = [m for m in third.calc.model.input_modules if isinstance(m, Strain)]
    assert len(strains) == 1


def test_stock_model_equals_spk_calculator(tmp_path):
    model, atoms = make_schnet(), mo()
    ours = calculated(atoms, model)
    torch.save(model, tmp_path / "best_model")
    atoms.calc = SpkCalculator(
        str(tmp_path / "best_model"),  # SchNetPack 2.1.1 takes nothing else
        NeighborList(cutoff=4.0),
        stress_key="stress",
        energy_unit="eV",
        dtype=torch.float64,
        converter=AtomsConverter,
    )
    assert ours.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-11)
    np.testing.assert_allclose(ours.get_forces(), atoms.get_forces(), atol=1e-12)
    stress = atoms.calc.get_property("stress", atoms)  # (3, 3)
    np.testing.assert_allclose(ours.get_stress(voigt=False), stress, atol=1e-12)
    assert "energies" not in ours.calc.results


def test_transforms_reach_the_model():
    seen = []

    def transform(batch):
        seen.append(batch[properties.idx_i].shape[0])
        return batch

    atoms = calculated(mo(), make_schnet(), transforms=transform)
    atoms.get_forces()
    assert seen


def test_units():
    """kcal/mol in SpkCalculator by default; here what the model's metadata state."""
    model = make_model()
    expected = calculated(mo(), model)
    for kwargs, metadata in (
        ({"energy_unit": "kcal/mol", "position_unit": "Ang"}, {}),
        ({"energy_unit": "kcal/mol"}, {"units": {"energy": "eV", "length": "Ang"}}),
        ({"energy_unit": units.kcal / units.mol, "position_unit": 1.0}, {}),
        ({}, {"units": {"energy": "kcal/mol", "length": "Ang"}}),
    ):
        model.metadata = metadata
        atoms = calculated(mo(), model, **kwargs)
        factor = units.kcal / units.mol
        assert atoms.get_potential_energy() == pytest.approx(
            factor * expected.get_potential_energy()
        )
        np.testing.assert_allclose(atoms.get_forces(), factor * expected.get_forces(), rtol=1e-6)
    model.metadata = {"units": {"energy": "eV", "length": "Bohr"}}
    small = mo()
    small.set_cell(small.cell * units.Bohr, scale_atoms=True)
    bohr = calculated(small, model)
    assert bohr.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(
        bohr.get_forces() * units.Bohr, expected.get_forces(), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        bohr.get_stress() * units.Bohr**3, expected.get_stress(), rtol=1e-6, atol=1e-9
    )
    with pytest.raises(ValueError, match="must have the same units"):
        SoftAdaptCalculator([model, make_model()])


@pytest.mark.parametrize("device_way", [calculated, through_schnetpack])
def test_names_of_the_model(device_way):
    """Names that are not the usual ones find their numbers and their unit."""
    expected = calculated(mo(), make_model())
    model = make_model()
    networks, response = model.output_modules
    networks.output_key = response.energy_key = networks.shifts.output_key = "U"
    networks.model_outputs[0] = networks.shifts.model_outputs[0] = "U"
    response.force_key, response.stress_key = "F", "S"
    response.model_outputs = ["F", "S"]
    model.collect_outputs()
    model.metadata = {"units": {"U": "kcal/mol", "length": "Ang"}}
    renamed = device_way(mo(), model)
    assert (renamed.calc.energy_key, renamed.calc.force_key) == ("U", "F")
    assert device_way is through_schnetpack or renamed.calc.extrapolation is not None
    factor = units.kcal / units.mol
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(
            renamed.calc.get_property(name, renamed),
            factor * expected.calc.get_property(name, expected),
            rtol=1e-9,
            atol=1e-13,
        )


@pytest.mark.parametrize("device_way", [calculated, through_schnetpack])
def test_forces_and_stress_of_a_model_that_was_trained_on_energies(device_way):
    expected = calculated(mo(), make_model())
    model = make_model()
    model.output_modules[1].calc_forces = model.output_modules[1].calc_stress = False
    model.output_modules[1].model_outputs = []
    model.output_modules[1].required_derivatives = []
    model.collect_outputs()
    model.collect_derivatives()
    atoms = device_way(mo(), model)
    # sums over some hundred pairs in another order
    np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), expected.get_stress(), atol=1e-12)


# --- errors


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device": "quantum"}, "device 'quantum' cannot be used here: .*cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here: "),
        ({"energy_unit": "horse"}, "unknown energy unit 'horse'; choose from eV"),
        ({"energy_unit": "Ang"}, "unknown energy unit 'Ang'; choose from eV"),
        ({"energy_unit": float("nan")}, "energy_unit must be a name or a positive number, got nan"),
        ({"position_unit": "m"}, "unknown position unit 'm'; choose from Ang"),
        ({"position_unit": 0}, "position_unit must be a name or a positive number, got 0"),
    ],
)
def test_arguments_that_make_no_sense(argument, message):
    with pytest.raises(ValueError, match=message) as caught:
        SoftAdaptCalculator(make_model(), **argument)
    assert "\n" not in str(caught.value)


def test_errors():
    with pytest.raises(ValueError, match="Cu"):
        calculated(Atoms("Cu", cell=[9, 9, 9], pbc=True), make_model()).get_potential_energy()
    with pytest.raises(ValueError, match="no atoms to calculate"):
        calculated(Atoms(), make_model()).get_potential_energy()
    with pytest.raises(ValueError, match="exploded"):
        calculated(Atoms("Mo", [[np.nan, 0, 0]]), make_model()).get_potential_energy()
    model = make_model()
    with torch.no_grad():
        model.output_modules[0].biases[0].fill_(torch.nan)
    atoms = calculated(mo(), model)
    for _ in range(2):  # nothing is left that a second call could return
        with pytest.raises(ValueError, match="the energy is nan"):
            atoms.get_potential_energy()
    with pytest.raises(ValueError, match="at least one model"):
        SoftAdaptCalculator([])
    model = make_schnet()
    model.representation.cutoff = None
    with pytest.raises(ValueError, match="give `cutoff`"):
        SoftAdaptCalculator(model)
    assert SoftAdaptCalculator(model, cutoff=4.0).cutoff == 4.0
    for make, wrong in itertools.product(
        (make_model, lambda: make_schnet(stress=True)), ("energy_key", "force_key", "stress_key")
    ):
        with pytest.raises(ValueError, match=r"the model gives \[.*\], not misspelt"):
            SoftAdaptCalculator(make(), **{wrong: "misspelt"})
    with pytest.raises(StressNotDefinedError, match="stress_key=None"):
        calculated(mo(), make_model(), stress_key=None).get_stress()
    model = make_schnet()
    model.output_modules[1] = NoStress()
    names = {"energy_key": "energy", "force_key": "forces"}
    with pytest.raises(StressNotDefinedError, match="the model gives no stress"):
        calculated(mo(), model, **names).get_stress()
    with pytest.raises(ValueError, match=r"none of these is its forces: give force_key"):
        SoftAdaptCalculator(model)


class NoStress(torch.nn.Module):
    """Forces of zero from a module that knows no stress."""

    def forward(self, inputs):
        inputs["forces"] = torch.zeros_like(inputs[properties.R])
        return inputs


# --- committee


def test_committee_mean_and_spread():
    models, atoms = [make_model(k) for k in range(3)], mote2()
    single = [calculated(atoms, m) for m in models]
    committee = calculated(atoms, models)
    energies = [x.get_potential_energy() for x in single]
    assert committee.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-11)
    assert committee.calc.results["energy_std"] == pytest.approx(np.std(energies), abs=1e-11)
    for name in ("forces", "stress", "energies"):
        values = [x.calc.get_property(name, x) for x in single]
        np.testing.assert_allclose(
            committee.calc.get_property(name, committee), np.mean(values, axis=0), atol=1e-12
        )
        np.testing.assert_allclose(
            committee.calc.results[f"{name}_std"], np.std(values, axis=0), atol=1e-12
        )
    assert len(committee.calc._evaluators) == 1  # symmetry functions were computed once


def test_committee_of_different_models():
    ours, schnet, other = make_model(), make_schnet(), make_model(layout=make_layout("poly2"))
    mixed = calculated(mo(), [ours, schnet])
    energies = [calculated(mo(), m).get_potential_energy() for m in (ours, schnet)]
    assert mixed.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-10)
    assert "energies_std" not in mixed.calc.results
    mixed = calculated(mo(), [ours, other])
    energies = [calculated(mo(), m).get_potential_energy() for m in (ours, other)]
    assert mixed.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-10)
    assert mixed.calc.results["energy_std"] == pytest.approx(np.std(energies), abs=1e-10)
    with pytest.raises(ValueError, match="at least one model"):
        SoftAdaptCalculator([])


# --- extrapolation


def test_extrapolation_is_counted_and_reported_once(caplog):
    atoms = calculated(mo(0.05), make_model())
    with caplog.at_level(logging.WARNING):
        atoms.get_potential_energy()
        assert atoms.calc.extrapolation.n_last == 0
        assert not caplog.records
        atoms.set_cell(atoms.cell * 0.8, scale_atoms=True)
        atoms.get_potential_energy()
        first = atoms.calc.extrapolation.n_last
        assert first > 0
        atoms.rattle(0.01)
        atoms.get_potential_energy()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "step 2" in message
    assert "atom 0 (Mo) function 1 [G2 Mo eta=0.3 r_s=1.5 r_c=4.5 cosine]" in message
    monitor = atoms.calc.extrapolation
    assert monitor.n_total == first + monitor.n_last
    assert monitor.n_steps == 3
    assert f"{monitor.n_total} extrapolations in 3 steps" in monitor.summary()
    assert "Mo function 1: G2" in monitor.summary()
    monitor.reset()
    assert monitor.summary() == "no extrapolation in 0 steps"


def test_extrapolation_can_stop_the_run():
    atoms = calculated(mo(0.05), make_model(), max_extrapolations=3)
    atoms.get_potential_energy()
    atoms.set_cell(atoms.cell * 0.8, scale_atoms=True)
    with pytest.raises(ExtrapolationError, match="at most 3 are allowed"):
        atoms.get_potential_energy()
    with pytest.raises(ValueError, match="must not be negative"):
        SoftAdaptCalculator(make_model(), max_extrapolations=-1)
    with pytest.raises(ValueError, match="needs models with descriptors"):
        SoftAdaptCalculator(make_schnet(), max_extrapolations=1)


@pytest.mark.parametrize("narrow", [0, 1])
def test_extrapolation_of_any_member_counts(narrow):
    """Members trained on other structures have other ranges, whichever comes first."""
    models = [make_model(0), make_model(1)]
    committee = calculated(mo(0.05), models)
    committee.get_potential_energy()
    assert committee.calc.extrapolation.n_last == 0
    scaling = models[narrow].representation.scaling
    scaling.maximum[:] = scaling.minimum  # saw a single atom of each element
    atoms = calculated(mo(0.05), models)
    alone = calculated(mo(0.05), models[narrow])
    atoms.get_potential_energy()
    alone.get_potential_energy()
    assert atoms.calc.extrapolation.n_last == alone.calc.extrapolation.n_last > 0


def test_training_atoms_are_inside():
    atoms = calculated(mote2(0.3, seed=2), make_model())
    atoms.get_potential_energy()
    assert atoms.calc.extrapolation.n_total == 0


def test_a_model_of_another_version_is_refused_in_one_sentence(tmp_path, monkeypatch):
    gone = ModuleType("schnetpack_softadapt.model.gone")
    gone.Old = type("Old", (torch.nn.Module,), {"__module__": gone.__name__})
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    torch.save(gone.Old(), tmp_path / "best_model")
    monkeypatch.delitem(sys.modules, gone.__name__)
    with pytest.raises(ValueError, match=r"best_model was made by another version.*train again"):
        load_potential(tmp_path)
