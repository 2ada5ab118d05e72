"""The whole model: from a data module to energies, forces and stress, over the same file for the
stored and the computed route, and through SchNetPack's own calculator."""

import logging

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from emt_data import data_module, labelled
from schnetpack import properties
from schnetpack.atomistic import PairwiseDistances
from schnetpack.data import AtomsDataModule
from schnetpack.interfaces import SpkCalculator
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo64

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.descriptors.elements import UnknownElementError
from schnetpack_softadapt.model import (
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    EnergyScale,
    ForcesAndStress,
)

CUTOFF = 4.5
GRID = {"n_radial": 4}


def alloy(seed, n=2):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((n, 1, 1))
    atoms.numbers[rng.integers(len(atoms), size=len(atoms) // 3)] = 79
    strain = rng.normal(0, 0.03, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("potential") / "alloy.db"
    write_database(path, [labelled(alloy(k)) for k in range(12)], provenance="EMT")
    return path


def data(database, cls=SoftAdaptDataModule, **kwargs):
    if cls is SoftAdaptDataModule:
        kwargs = {"store": False, **kwargs}
    return data_module(database, CUTOFF, 8, 2, 2, cls, batch_size=3, **kwargs)


def potential(datamodule=None, **kwargs):
    torch.manual_seed(0)
    model = DescriptorPotential(
        representation=ACSF(cutoff=CUTOFF, grid=GRID, **kwargs.pop("representation", {})),
        output_modules=[
            ElementalAtomwise(n_hidden=[8, 8], per_atom_output_key=keys.atomic_energies),
            ForcesAndStress(True, True),
        ],
        **kwargs,
    )
    if datamodule is not None:
        model.initialize_transforms(datamodule)
    return model.double()


@pytest.fixture(scope="module")
def model(database):
    return potential(data(database)).eval()


def batch_of(atoms_list, dtype=torch.float64):
    from schnetpack.interfaces import AtomsConverter

    return AtomsConverter(NeighborList(CUTOFF), dtype=dtype)(list(atoms_list))


def evaluate(model, *atoms_list):
    out = model(batch_of(atoms_list))
    return {key: value.detach().numpy() for key, value in out.items()}


def test_completed_from_the_data(model):
    assert model.representation.descriptor.elements == (29, 79)
    assert model.representation.n_atom_basis == model.representation.descriptor.n_columns
    assert model.metadata["elements"] == ["Cu", "Au"]
    assert model.metadata["units"]["energy"] == "eV"
    assert model.metadata["units"]["length"] == "Ang"
    shifts = model.output_modules[0].shifts.shift
    assert shifts[29] != 0
    assert torch.count_nonzero(shifts) == 2


def test_a_run_says_little_of_its_many_functions(database, caplog):
    with caplog.at_level(logging.INFO, "schnetpack_softadapt"):
        layout = potential(data(database)).representation.descriptor
    assert layout.summary() in caplog.text
    assert "r_s=" not in caplog.text  # the table, of 160 lines for two elements
    with caplog.at_level(logging.DEBUG, "schnetpack_softadapt"):
        potential(data(database))
    assert str(layout) in caplog.text


def test_scaled_training_descriptors_have_mean_zero_and_range_one(model, database):
    datamodule = data(database)
    scaled, numbers = [], []
    for sample in (datamodule.train_dataset[k] for k in range(8)):
        r_ij = PairwiseDistances()(dict(sample))[properties.Rij].double()
        inputs = model.representation({**sample, properties.Rij: r_ij})
        scaled.append(inputs[keys.scalar_representation])
        numbers.append(sample[properties.Z])
    scaled, numbers = torch.cat(scaled), torch.cat(numbers)
    for z, n in model.representation.descriptor.n_functions.items():
        x = scaled[numbers == z, :n]
        # the data module gives positions in float32, of which the range magnifies the rounding
        torch.testing.assert_close(x.mean(0), torch.zeros(n).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(x.amax(0) - x.amin(0), torch.ones(n).double(), rtol=1e-6, atol=0)


def test_forces_and_stress_are_derivatives(model):
    atoms = alloy(100)
    out = evaluate(model, atoms)
    h = 1e-4
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(evaluate(model, moved)["energy"][0])
        expected = -(energies[0] - energies[1]) / (2 * h)
        # central differences: truncation h^2 E''' about 1e-7
        assert out["forces"][atom, axis] == pytest.approx(expected, abs=1e-6)
    for a, b in ((0, 0), (1, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * h
            strain[b, a] += 0.5 * sign * h
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(evaluate(model, strained)["energy"][0])
        expected = (energies[0] - energies[1]) / (2 * h) / atoms.get_volume()
        assert out["stress"][0, a, b] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_symmetries(model):
    atoms = alloy(101)
    out = evaluate(model, atoms)
    rotated = atoms.copy()
    rotated.rotate(33, (1, 2, 3), rotate_cell=True)
    turned = evaluate(model, rotated)
    rotation = np.linalg.solve(atoms.cell.array, rotated.cell.array)  # rows turn from the right
    assert turned["energy"][0] == pytest.approx(out["energy"][0], rel=1e-12)
    np.testing.assert_allclose(turned["forces"], out["forces"] @ rotation, atol=1e-9)
    np.testing.assert_allclose(
        turned["stress"][0], rotation.T @ out["stress"][0] @ rotation, atol=1e-11
    )
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(
        evaluate(model, atoms[order])["forces"], out["forces"][order], atol=1e-9
    )
    double = evaluate(model, atoms.repeat((1, 2, 1)))
    assert double["energy"][0] == pytest.approx(2 * out["energy"][0], rel=1e-12)
    np.testing.assert_allclose(double["stress"], out["stress"], atol=1e-11)


def test_batch_equals_single_structures(model):
    structures = [alloy(1), alloy(2, n=1), alloy(3)]
    together = evaluate(model, *structures)
    alone = [evaluate(model, atoms) for atoms in structures]
    for key in ("energy", "forces", "stress", keys.atomic_energies):
        np.testing.assert_allclose(
            together[key], np.concatenate([a[key] for a in alone]), atol=1e-9
        )


def test_stored_route_equals_computed_route(database, model):
    """The same model on batches from the store and on neighbour lists; float64 store."""
    datamodule = data(database, store=True, store_dtype="float64")
    datamodule.attach_descriptors(model.representation.descriptor)
    with_pairs = data(database)
    for train in (False, True):
        model.train(train)
        results = []
        for module in (datamodule, with_pairs):
            batch = next(iter(module.val_dataloader()))
            batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
            assert (keys.descriptors in batch) == (module is datamodule)
            out = model(batch)
            grads = [None]
            if train:  # what training on forces and stress differentiates
                model.zero_grad()
                loss = (out["forces"] ** 2).sum() + (out["stress"] ** 2).sum() * 1e3
                (loss + (out["energy"] ** 2).sum()).backward()
                grads = [p.grad.clone() for p in model.parameters()]
            results.append((out, grads))
        for key in ("energy", "forces", "stress"):
            a, b = (r[0][key].detach().numpy() for r in results)
            # sums in another order: 1e-12 of the largest value
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, abs(b).max()))
        if train:
            for a, b in zip(results[0][1], results[1][1], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * b.abs().max())
    model.eval()


@pytest.mark.parametrize("store", [True, False], ids=["store", "pairs"])
def test_training_step_under_detect_anomaly(database, model, store):
    """Through SchNetPack's modules: the second derivative by positions, which nobody reads."""
    datamodule = data(database, store=store)
    datamodule.attach_descriptors(model.representation.descriptor)
    batch = next(iter(datamodule.val_dataloader()))
    assert (keys.descriptors in batch) == store
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    model.train()
    gradients = []
    for check in (False, True):
        model.zero_grad()
        with torch.autograd.set_detect_anomaly(check):
            out = model(dict(batch))
            sum((out[key] ** 2).sum() for key in ("energy", "forces", "stress")).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.eval()
    assert gradients[0].abs().max() > 0.1
    assert torch.equal(*gradients)


def test_saved_model_holds_no_store(database, tmp_path):
    datamodule = data(database, store=True)
    model = potential(datamodule)
    torch.save(model, tmp_path / "model")
    assert (tmp_path / "model").stat().st_size < 200_000
    loaded = torch.load(tmp_path / "model", weights_only=False).eval()
    atoms = alloy(5)
    np.testing.assert_array_equal(
        evaluate(loaded, atoms)["forces"], evaluate(model.eval(), atoms)["forces"]
    )


def test_stock_data_module(database):
    """The representation and the networks complete themselves from SchNetPack's data module too."""
    stock = potential(data(database, AtomsDataModule))
    assert stock.representation.descriptor.elements == (29, 79)
    assert stock.representation.scaling.is_fitted
    networks = stock.output_modules[0]
    assert networks.elements == (29, 79)
    # the shifts are a start as from our data module: EMT's energies, to 0.1 eV per atom
    atoms = alloy(3)
    shifts = float(networks.shifts.shift[atoms.numbers].sum())
    assert abs(shifts - labelled(atoms).energy) < 0.1 * len(atoms)
    by_modules = NeuralNetworkPotential.forward(stock.eval(), batch_of([atoms]))["energy"].item()
    assert evaluate(stock, atoms)["energy"][0] == pytest.approx(by_modules, rel=1e-12)


def test_pieces_in_a_stock_potential_with_offsets():
    """Explicit sizes, no data module: ACSF and ElementalAtomwise inside SchNetPack's own model."""
    representation = ACSF(cutoff=CUTOFF, elements=["Cu", "Au"], grid=GRID)
    model = NeuralNetworkPotential(
        representation=representation,
        input_modules=[PairwiseDistances()],
        output_modules=[
            ElementalAtomwise(n_in=representation.descriptor.n_functions, elements=["Cu", "Au"]),
            ForcesAndStress(),
        ],
        postprocessors=[
            CastTo64(),
            AddOffsets("energy", add_mean=True, property_mean=torch.tensor([2.0])),
        ],
    ).double()
    atoms = alloy(0)
    with_offset = evaluate(model.eval(), atoms)["energy"][0]
    model.do_postprocessing = False
    without = evaluate(model, atoms)["energy"][0]
    assert with_offset - without == pytest.approx(2.0 * len(atoms), abs=1e-9)


def test_spk_calculator(model, tmp_path):
    torch.save(model, tmp_path / "best_model")
    calculator = SpkCalculator(
        str(tmp_path / "best_model"),
        NeighborList(CUTOFF),
        energy_unit="eV",
        position_unit="Ang",
        stress_key="stress",
        dtype=torch.float64,
    )
    atoms = Atoms(alloy(7))
    expected = evaluate(model, atoms)
    atoms.calc = calculator
    calculator.calculate(atoms, ["energy", "forces", "stress"])
    assert calculator.results["energy"] == pytest.approx(expected["energy"][0], abs=1e-9)
    np.testing.assert_allclose(calculator.results["forces"], expected["forces"], atol=1e-10)
    np.testing.assert_allclose(calculator.results["stress"], expected["stress"][0], atol=1e-12)


def test_nve_conserves_energy(model, tmp_path):
    torch.save(model, tmp_path / "best_model")
    atoms = Atoms(alloy(8))
    atoms.calc = SpkCalculator(
        str(tmp_path / "best_model"),
        NeighborList(CUTOFF),
        energy_unit="eV",
        position_unit="Ang",
        dtype=torch.float64,
    )
    MaxwellBoltzmannDistribution(atoms, temperature_K=30, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(50)
    kinetic = atoms.get_kinetic_energy()
    # an untrained network is rough; a force that is no gradient drifts by the kinetic energy
    assert np.ptp(energies) < 0.02 * max(kinetic, 0.05)


def test_unknown_element_is_refused_before_training(database):
    with pytest.raises(UnknownElementError, match="structure 0: the model does not know Au"):
        potential(data(database), representation={"elements": ["Cu"]})


def test_unknown_element_in_a_structure_is_named(model):
    atoms = alloy(9)
    atoms.numbers[0] = 47
    with pytest.raises(UnknownElementError, match="does not know Ag"):
        evaluate(model, atoms)


def test_isolated_atom(model):
    atoms = Atoms("Cu", positions=[[0, 0, 0]], cell=[20, 20, 20], pbc=True)
    out = evaluate(model, atoms)
    # the networks read what the scaling makes of functions that are all zero
    numbers = torch.tensor([29])
    zero = torch.zeros(1, model.representation.n_atom_basis, dtype=torch.float64)
    networks = model.output_modules[0]
    expected = networks.atomic_energies(model.representation.scaling(zero, numbers), numbers)
    expected = expected.item() + networks.shifts.shift[29].item()
    assert out["energy"][0] == pytest.approx(expected, rel=1e-13)
    assert np.abs(out["forces"]).max() == 0
    assert np.abs(out["stress"]).max() == 0


def test_hessian_through_the_reference_backend_only(database):
    atoms = alloy(10, n=1)
    hessians = {}
    for backend in ("reference", "kernels"):
        model = potential(data(database), representation={"backend": backend}).train()
        batch = batch_of([atoms])
        out = model(batch)
        row = torch.autograd.grad(-out["forces"][0, 0], batch[properties.R])[0]
        hessians[backend] = row.numpy()
    assert np.isnan(hessians["kernels"]).any(), "a missing second derivative must not pass for zero"
    h = 1e-4
    model = potential(data(database), representation={"backend": "reference"}).eval()
    plus, minus = atoms.copy(), atoms.copy()
    plus.positions[1, 2] += h
    minus.positions[1, 2] -= h
    difference = evaluate(model, plus)["forces"][0, 0] - evaluate(model, minus)["forces"][0, 0]
    assert hessians["reference"][1, 2] == pytest.approx(-difference / (2 * h), abs=1e-5)


def test_energy_scale_is_the_spread_of_an_atomic_energy(tmp_path):
    """n independent atomic energies of this size sum to energies that spread by scale sqrt(n)."""
    rng = np.random.default_rng(3)
    structures = []
    for n in rng.integers(2, 9, 400):
        energy = -3.0 * n + 0.05 * np.sqrt(n) * rng.standard_normal()
        positions = rng.uniform(0, 4, (n, 3))
        structures.append(Structure([1] * n, positions, 9 * np.eye(3), [True] * 3, energy))
    write_database(tmp_path / "h.db", structures, provenance="random")
    training = SoftAdaptDataModule(
        str(tmp_path / "h.db"), 10, 380, 10, 10, store=False, split_file=None
    )
    training.setup()
    module = EnergyScale()
    module.datamodule(training)
    assert module.scale.item() == pytest.approx(0.05, rel=0.1)  # 380 samples: 3.6 % a sigma
    energies = torch.tensor([2.0, -1.0])
    after = module({"energy": energies.clone()})["energy"]
    torch.testing.assert_close(after, energies * module.scale, rtol=0, atol=0)
