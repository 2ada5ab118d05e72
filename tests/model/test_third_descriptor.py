"""A descriptor of a family that the package does not know works everywhere that ACSF does.

Between the two lines of dashes stands all that it takes: values and one product; everything else
is the default of the protocol.
"""

import json
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces
from emt_data import labelled
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import CastTo32
from torch.optim import Adam

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.evaluate import ComposedModels
from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine, descriptor_from_dict
from schnetpack_softadapt.model import (
    DescriptorPotential,
    DescriptorRepresentation,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.composition import UnsupportedModelError
from schnetpack_softadapt.reports.report import read_runs, write_report
from schnetpack_softadapt.training.callbacks import HistoryWriter
from schnetpack_softadapt.training.checkpoints import RunCheckpoint
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers.kalman import KalmanFilter
from schnetpack_softadapt.training.results import ResultsWriter
from schnetpack_softadapt.training.rules import Fixed
from schnetpack_softadapt.training.task import SoftAdaptTask

CUTOFF = 4.5

# --------------------------------------------------------------------------------------------------


class SmoothDistances(Descriptor):
    """G_ik = sum_j Z_j exp(-eta (r_ij - c_k)^2) (1 - r_ij^2 / r_c^2)^3 within the cutoff r_c."""

    kind: ClassVar[str] = "smooth_distances"
    name: ClassVar[str] = "Gaussians of distances"

    def __init__(self, elements=(29, 79), centers=(1.5, 2.3, 2.8, 3.4), cutoff=CUTOFF):
        self.elements, self.centers, self.cutoff = tuple(elements), tuple(centers), cutoff
        self.n_functions = dict.fromkeys(self.elements, len(self.centers))

    def to_dict(self):
        parameters = {"centers": list(self.centers), "cutoff": self.cutoff}
        return {"kind": self.kind, "elements": list(self.elements), **parameters}

    @classmethod
    def from_dict(cls, data):
        return cls(data["elements"], data["centers"], data["cutoff"])

    def describe(self, z, column):
        return f"distances about {self.centers[column]:g} Ang"

    def engine(self, device="cpu", name="auto"):
        return SmoothDistancesEngine(self)


class SmoothDistancesEngine(Engine):
    """Plain torch."""

    eta = 2.0

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def terms(self, pairs):
        """(P, D) terms and their derivatives by the distance over the distance."""
        r2 = (pairs.r_ij**2).sum(1, keepdim=True)
        from_center = r2.sqrt() - r2.new_tensor(self.descriptor.centers)
        cut = (1 - r2 / self.descriptor.cutoff**2).clamp_min(0)
        gaussian = pairs.numbers[pairs.idx_j, None] * torch.exp(-self.eta * from_center**2)
        slope = -2 * self.eta * from_center / r2.sqrt() * cut**3
        slope = slope - 6 * cut**2 / self.descriptor.cutoff**2
        return gaussian * cut**3, gaussian * slope

    def values(self, pairs):
        terms, _ = self.terms(pairs)
        return terms.new_zeros(len(pairs.numbers), terms.shape[1]).index_add(0, pairs.idx_i, terms)

    def vjp(self, pairs, grad_g):
        _, slopes = self.terms(pairs)
        return (slopes * grad_g[pairs.idx_i]).sum(1, keepdim=True) * pairs.r_ij


# --------------------------------------------------------------------------------------------------


def alloy(seed, rattle=0.08):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True, a=3.7) * (1 + seed % 2, 1, 1)
    atoms.numbers[rng.permutation(len(atoms))[: 1 + seed % 3]] = 79
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("third") / "alloy.db"
    write_database(path, [labelled(alloy(k)) for k in range(14)], provenance="EMT")
    return path


def train(database, folder, optimizer, store, epochs=3):
    pl.seed_everything(3, verbose=False)
    model = DescriptorPotential(
        representation=DescriptorRepresentation(SmoothDistances()),
        output_modules=[ElementalAtomwise(n_hidden=[5, 4]), ForcesAndStress(True, True)],
    )
    task = SoftAdaptTask(
        model,
        [EnergyLoss(), ForcesLoss(), StressLoss()],
        optimizer_cls=optimizer,
        optimizer_args={"lr": 0.5} if optimizer is KalmanFilter else {"lr": 0.02},
        weighting=Fixed(),
    )
    datamodule = SoftAdaptDataModule(
        str(database),
        batch_size=4,
        num_train=8,
        num_val=3,
        num_test=3,
        num_workers=0,
        splitting="random",
        split_file=str(folder / "split.npz"),
        store=store,
        transforms=[NeighborList(CUTOFF), CastTo32()],
    )
    trainer = pl.Trainer(
        default_root_dir=str(folder),
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        callbacks=[
            RunCheckpoint(str(folder / "checkpoints"), model_path=str(folder / "best_model")),
            HistoryWriter(str(folder / "history.csv")),
            ResultsWriter(str(folder)),
        ],
    )
    trainer.fit(task, datamodule=datamodule)
    trainer.test(task, datamodule=datamodule, ckpt_path="best", verbose=False)
    return read_runs([folder])[0]


@pytest.fixture(scope="module")
def run(database, tmp_path_factory):
    return train(database, tmp_path_factory.mktemp("run"), Adam, store=True, epochs=30)


@pytest.mark.parametrize("optimizer", [Adam, KalmanFilter])
def test_trains_from_the_store_and_without(database, tmp_path, optimizer):
    losses = []
    for store in (True, False):
        folder = tmp_path / str(store)
        folder.mkdir()
        losses.append(train(database, folder, optimizer, store).history.get("val_loss"))
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # float32 on two routes
    # the names of the numbers are those of the store
    assert len(list(database.parent.glob("alloy.db.descriptors/descriptors-*"))) == 1


def test_products_have_defaults():
    """Against autograd through the values, which are torch's here."""
    engine = SmoothDistances().engine()
    r_ij = torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    idx_i, idx_j = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    pairs = engine.prepare(r_ij, idx_i, idx_j, torch.tensor([29, 79, 29]))
    values = engine.values(pairs)
    grad_g, tangent = torch.randn_like(values), torch.randn_like(r_ij)
    (expected,) = torch.autograd.grad(values, r_ij, grad_g)
    found = engine.vjp(pairs, grad_g)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    change = engine.jvp(pairs, tangent)
    torch.testing.assert_close((change * grad_g).sum(), (tangent * expected).sum())


def calculated(atoms, run, **kwargs):
    atoms = atoms.copy()
    atoms.calc = SoftAdaptCalculator(run.path, **kwargs)
    return atoms


def test_calculator_against_finite_differences(run):
    atoms = calculated(alloy(21), run)
    assert isinstance(atoms.calc._evaluators[0], ComposedModels)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    # third derivatives of some 100 eV/Ang^3 with steps of 1e-4 Ang
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=2e-6)
    stress, h = atoms.get_stress(voigt=False), 1e-5
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h
            moved = calculated(atoms, run)
            moved.set_cell(atoms.cell @ strain.T, scale_atoms=True)
            energies.append(moved.get_potential_energy())
        numeric = (energies[0] - energies[1]) / (2 * h * atoms.get_volume())
        assert stress[a, b] == pytest.approx(numeric, abs=1e-7)


def test_chunks_and_schnetpacks_modules_agree(run):
    atoms = calculated(alloy(21), run)
    chunked = calculated(alloy(21), run, atoms_per_chunk=3)
    through_modules = calculated(alloy(21), run, additional_inputs={"dummy": torch.zeros(1)})
    for name in ("energy", "forces", "stress"):
        expected = atoms.calc.get_property(name, atoms)
        for other in (chunked, through_modules):
            found = other.calc.get_property(name, other)
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_extrapolations_are_counted_and_named(run):
    atoms = calculated(alloy(21), run)
    atoms.set_cell(atoms.cell * 0.85, scale_atoms=True)
    atoms.get_potential_energy()
    monitor = atoms.calc.extrapolation
    assert monitor.n_last > 0
    assert "distances about 1.5 Ang" in monitor.summary()
    strict = calculated(atoms, run, max_extrapolations=0)
    with pytest.raises(ValueError, match=r"Gaussians of distances of \d atoms are outside"):
        strict.get_potential_energy()


def test_report_names_it(run):
    title = "Gaussians of distances (smooth_distances): 4 of Cu, 4 of Au; cutoff 4.5 Ang"
    folder = write_report([run])
    (content,) = json.loads((folder / "report.json").read_text())["runs"]
    assert content["descriptor"] == title
    assert title in (folder / "report.html").read_text()
    assert "distances about 2.8 Ang" in (run.path / "descriptor.txt").read_text()


def test_saved_model_and_its_dictionary(run):
    model = torch.load(run.path / "best_model", weights_only=False)
    assert isinstance(model, NeuralNetworkPotential)
    again = descriptor_from_dict(json.loads(json.dumps(model.metadata["descriptor"])))
    assert again == model.representation.descriptor == SmoothDistances()
    assert again != SmoothDistances(centers=(1.5,))
    with pytest.raises(ValueError, match="no descriptor of the kind 'unheard_of'"):
        descriptor_from_dict({"kind": "unheard_of"})


def test_export_to_the_files_of_one_family_asks_for_it(run, tmp_path):
    model = torch.load(run.path / "best_model", weights_only=False)
    with pytest.raises(UnsupportedModelError, match="no descriptor of the kind 'smooth_distances'"):
        write_potential(model, tmp_path)
