"""Modules that read neighbour lists, in a model whose descriptors come from a store."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from emt_data import data_module, labelled
from schnetpack import properties
from schnetpack.atomistic import Aggregation, PairwiseDistances, ZBLRepulsionEnergy
from schnetpack.interfaces import SpkCalculator
from schnetpack.nn import CosineCutoff
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress

CUTOFF = 4.0


class Coordination(nn.Module):
    """Reads who is whose neighbour, but no vectors."""

    def forward(self, inputs):
        counts = torch.zeros(len(inputs[properties.Z]), dtype=torch.float64)
        counts.index_add_(
            0, inputs[properties.idx_i], torch.ones_like(inputs[properties.Rij])[:, 0]
        )
        inputs["counts"] = torch.zeros(len(inputs[properties.n_atoms]), dtype=torch.float64)
        inputs["counts"].index_add_(0, inputs[properties.idx_m], counts)
        return inputs


class Blind(nn.Module):
    reads_neighbors = False

    def forward(self, inputs):
        inputs["counts"] = inputs[properties.n_atoms].double()
        return inputs


class Seeing(Coordination, Blind):
    """A subclass of one that says that it reads none."""


@pytest.fixture(scope="module")
def structures():
    result = []
    for seed in range(10):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        result.append(labelled(atoms))
    return result


@pytest.fixture(scope="module")
def database(tmp_path_factory, structures):
    path = tmp_path_factory.mktemp("beside") / "copper.db"
    write_database(path, structures, "EMT")
    return str(path)


def data(database, store):
    return data_module(database, CUTOFF, 6, 2, 2, store=store, store_dtype="float64")


def potential(datamodule, extra, added):
    torch.manual_seed(0)
    model = DescriptorPotential(
        # plain torch: not to wait for the compiler
        representation=ACSF(CUTOFF, grid={"n_radial": 3}, backend="reference"),
        output_modules=[
            ElementalAtomwise(n_hidden=[4], output_key="network"),
            extra,
            Aggregation(["network", added], "energy"),
            ForcesAndStress(True, True),
        ],
    )
    model.initialize_transforms(datamodule)
    return model.double()


def zbl():
    return ZBLRepulsionEnergy("eV", "Ang", "zbl", cutoff_fn=CosineCutoff(CUTOFF))


def predictions(model, datamodule):
    result = model(datamodule.train_dataset.batch(range(6)))
    return {key: result[key].detach().numpy() for key in ("energy", "forces", "stress")}


def test_repulsion_is_the_same_in_training_and_in_both_calculators(database, structures, tmp_path):
    stored, computed = data(database, True), data(database, False)
    model = potential(stored, zbl(), "zbl")
    batch = stored.train_dataset.batch([0])
    assert keys.descriptors in batch
    assert len(batch[properties.idx_i])
    repulsion = zbl().double()(PairwiseDistances()(batch))["zbl"].item()
    assert repulsion > 9  # eV; it was 0 with a store
    training, direct = predictions(model, stored), predictions(model, computed)
    # float64 on both sides, sums in another order
    for key, values in training.items():
        np.testing.assert_allclose(values, direct[key], rtol=1e-10, atol=1e-10, err_msg=key)
    path = str(tmp_path / "best_model")
    torch.save(model.eval(), path)
    units = {"energy_unit": "eV", "position_unit": "Ang"}
    for calculator in (
        SoftAdaptCalculator(path, **units),
        SpkCalculator(path, NeighborList(CUTOFF), dtype=torch.float64, **units),
    ):
        for k, index in enumerate(stored.train_idx):
            atoms = structures[index].to_atoms()
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(training["energy"][k], rel=1e-10)


@pytest.mark.parametrize("kind", [Coordination, Seeing])
def test_any_module_that_is_not_known_gets_its_pairs(database, kind):
    stored, computed = data(database, True), data(database, False)
    model = potential(stored, kind(), "counts")
    with_store, without = (predictions(model, d)["energy"] for d in (stored, computed))
    # sums in another order; without its pairs the module would give 0 for 4 atoms x 18
    np.testing.assert_allclose(with_store, without, rtol=1e-12)


def test_models_that_read_no_pairs_get_none(database, caplog):
    stored = data(database, True)
    caplog.set_level("INFO")
    potential(stored, Blind(), "counts")
    assert len(stored.train_dataset.batch([0])[properties.idx_i]) == 0
    assert "neighbour lists beside" not in caplog.text
    potential(stored, zbl(), "zbl")  # another model on the same data
    assert "neighbour lists beside stored descriptors, for ZBLRepulsionEnergy" in caplog.text
    assert len(stored.train_dataset.batch([0])[properties.idx_i])


def test_a_model_of_other_classes_keeps_its_pairs(database):
    """Only DescriptorPotential knows all its modules."""
    stored = data(database, True)
    ACSF(CUTOFF, grid={"n_radial": 3}, backend="reference").datamodule(stored)
    batch = stored.train_dataset.batch([0])
    assert keys.descriptors in batch
    assert len(batch[properties.idx_i])
