"""SchNetPack's own experiments with one override, and its outputs in Python."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from processes import start_ranks
from schnetpack import atomistic, cli, representation, transform
from schnetpack.data import ASEAtomsData, AtomsDataModule, AtomsLoader
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.task import ConsiderOnlySelectedAtoms, ModelOutput, UnsupervisedModelOutput
from schnetpack.units import convert_units
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError
from toy_runs import toy_trainer

import schnetpack_softadapt
from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.model import (
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    ElementShift,
    ForcesAndStress,
)
from schnetpack_softadapt.model.outputs import property_kinds
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss
from schnetpack_softadapt.training.model_outputs import ModelOutputLoss, components_of
from schnetpack_softadapt.training.rules import Likelihood
from schnetpack_softadapt.training.task import SoftAdaptTask

KCAL = 23.060541945329334  # kcal/mol per eV


def write_molecules(path, energy="energy", forces="forces", unit="kcal/mol", n=24):
    """Distorted water and methanol with EMT labels in the unit; a dipole that is a vector sum."""
    rng = np.random.default_rng(0)
    factor = convert_units("eV", unit)
    units = {energy: unit, forces: f"{unit}/Ang", "dipole_moment": "Debye", "selected": "1"}
    data = ASEAtomsData.create(str(path), distance_unit="Ang", property_unit_dict=units)
    structures, labels = [], []
    for k in range(n):
        atoms = molecule("H2O" if k % 2 else "CH3OH")
        atoms.positions += rng.normal(scale=0.06, size=atoms.positions.shape)
        atoms.calc = EMT()
        charges = 0.4 - 0.1 * atoms.numbers
        labels.append(
            {
                energy: np.array([atoms.get_potential_energy() * factor]),
                forces: atoms.get_forces() * factor,
                "dipole_moment": (charges @ atoms.positions)[None],
                "selected": (atoms.numbers > 1).astype(np.float64)[:, None],
            }
        )
        structures.append(atoms)
    data.add_systems(property_list=labels, atoms_list=structures)
    data.update_metadata(molecule="ethanol")
    return path


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "molecules.db")


SMALL = (
    "model/representation=painn",
    "model.representation.n_atom_basis=8",
    "model.representation.n_interactions=1",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "+trainer.enable_progress_bar=false",
    "print_config=false",
    "logger=csv",
    "run.id=run",
    "+seed=1",
)


def spktrain(monkeypatch, folder, *overrides):
    """The command, in this process; returns the folder of the run."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["spktrain", *overrides, *SMALL, f"run.path={folder}"])
    cli.train()
    return folder / "run"


def md17(path, *more):
    """SchNetPack's md17 experiment on a data set of ours."""
    return (
        "experiment=md17",
        "data.molecule=ethanol",
        f"data.datapath={path}",
        "data.num_train=16",
        "data.num_val=4",
        "data.num_test=4",
        "trainer.max_epochs=3",
        *more,
    )


def logged(run):
    """All values that SchNetPack's CSV logger wrote, by name."""
    values = {}
    for path in run.rglob("metrics.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value:
                        values.setdefault(name, []).append(float(value))
    return values


@pytest.mark.parametrize(
    "line",
    ["task._target_=schnetpack_softadapt.SoftAdaptTask", "task=softadapt_task"],
)
def test_the_one_line(molecules, tmp_path, monkeypatch, line):
    run = spktrain(monkeypatch, tmp_path, *md17(molecules, line))
    values = logged(run)
    # the metrics of the experiment keep their names and their meaning, kcal/mol of a molecule
    assert values["val_energy_mae"][0] > values["val_energy_mae"][-1] > 0
    assert len(values["weight_energy"]) == len(values["weight_forces"]) == 3
    assert values["weight_energy"][0] + values["weight_forces"][0] == pytest.approx(1.0)
    # 0.01 : 0.99 of the experiment is the prior
    assert values["weight_forces"][0] == pytest.approx(0.99)
    assert values["val_loss"][-1] == pytest.approx(
        values["val_energy_loss"][-1] + values["val_forces_loss"][-1], rel=1e-5
    )
    # standardised: a model that knows the mean has a loss of order one, whatever the unit
    assert 0.02 < values["val_forces_loss"][0] < 5.0
    model = torch.load(run / "best_model", weights_only=False)
    assert model.metadata["units"]["energy"] == "kcal/mol"
    assert model.metadata["units"]["length"] == "Ang"


def test_the_schedule_is_the_users(molecules, tmp_path, monkeypatch):
    more = ("task=softadapt_task", "task.scheduler_args.patience=0",
            "task.scheduler_args.threshold=0.99", "task.scheduler_args.cooldown=0")  # fmt: skip
    run = spktrain(monkeypatch, tmp_path, *md17(molecules, *more))
    rates = logged(run)["lr"]
    # a threshold that nothing reaches: halved each epoch from the second on
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4], rel=1e-6)


#: SchNetPack's md17 experiment on data with other names
OTHER_NAMES = (
    "globals.energy_key=energy_U0",
    "globals.forces_key=F",
    "~data.property_units",
    "data.transforms.1.property=energy_U0",
    "model.postprocessors.1.property=energy_U0",
)


def test_keys_of_any_name(tmp_path, monkeypatch):
    path = write_molecules(tmp_path / "named.db", "energy_U0", "F")
    task = "task._target_=schnetpack_softadapt.SoftAdaptTask"
    run = spktrain(monkeypatch, tmp_path, *md17(path, *OTHER_NAMES, task))
    values = logged(run)
    assert 0.02 < values["train_F_loss"][0] < 5.0
    assert 0.02 < values["train_energy_U0_loss"][-1] < 20.0
    model = torch.load(run / "best_model", weights_only=False)
    assert model.metadata["units"]["energy_U0"] == "kcal/mol"


@pytest.mark.parametrize(
    "settings",
    [
        ("+trainer.gradient_clip_val=0.01", "trainer.accumulate_grad_batches=2"),
        ("trainer.precision=bf16-mixed", "task.warmup_steps=3"),
        ("+trainer.max_time=00:00:01:00", "callbacks.early_stopping.patience=1"),
        # no plateau scheduler: Lightning refuses it when the first epoch has no val_loss
        ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4", "task.scheduler_cls=null"),
        ("task/scheduler=softadapt_cosine", "task/optimizer=acsf_adamw"),
        ("task/weighting=softadapt", "data.num_workers=2"),
    ],
    ids=lambda s: s[0],
)
def test_settings_of_the_trainer(molecules, tmp_path, monkeypatch, settings):
    settings = [s.removeprefix("+") if "gradient_clip" in s else s for s in settings]
    run = spktrain(monkeypatch, tmp_path, *md17(molecules, "task=softadapt_task", *settings))
    values = logged(run)
    weights = np.array([values["weight_energy"], values["weight_forces"]])
    assert weights.sum(0) == pytest.approx(np.ones(weights.shape[1]), abs=1e-6)
    assert values["val_loss"][-1] < values["val_loss"][0]
    outputs = torch.load(run / "best_model", weights_only=False).model_outputs
    assert set(outputs) == {"energy", "forces"}


def test_two_ranks_with_the_stock_trainer(molecules, tmp_path):
    more = ("task=softadapt_task", "trainer=ddp_trainer", "trainer.num_nodes=1")

    def train():
        sys.argv = ["spktrain", *md17(molecules, *more), *SMALL, f"run.path={tmp_path}"]
        cli.train()

    start_ranks(train, tmp_path)
    values = logged(tmp_path / "run")
    assert values["val_loss"][-1] < values["val_loss"][0]
    assert values["weight_forces"][0] == pytest.approx(0.99)


# --- outputs of other kinds, in Python


def painn(*heads, forces=True):
    torch.manual_seed(0)
    heads = [atomistic.Atomwise(n_in=8, output_key="energy"), *heads]
    if forces:
        heads.append(atomistic.Forces())
    return NeuralNetworkPotential(
        representation.PaiNN(8, 1, GaussianRBF(8, 4.0), cutoff_fn=CosineCutoff(4.0)),
        input_modules=[atomistic.PairwiseDistances()],
        output_modules=heads,
    )


def data_module(path, folder, batch_size=4, **kwargs):
    transforms = [transform.MatScipyNeighborList(4.0), transform.CastTo32()]
    return AtomsDataModule(
        str(path), batch_size, num_train=16, num_val=4, num_test=4, num_workers=0,
        split_file=str(folder / "split.npz"), transforms=transforms, **kwargs,
    )  # fmt: skip


def fit(task, path, folder, epochs=2, **data):
    trainer = toy_trainer(folder, epochs)
    trainer.fit(task, datamodule=data_module(path, folder, **data))
    return trainer, task.record


def energy(**kwargs):
    return ModelOutput("energy", torch.nn.MSELoss(), metrics={}, **kwargs)


def test_components_are_recognised_by_the_modules_of_the_model():
    model = painn()
    model.output_modules[-1].energy_key = model.output_modules[0].output_key = "U"
    model.output_modules[-1].force_key = "F"
    model.output_modules[-1].model_outputs = ["F"]
    assert property_kinds(model) == {"U": "energy", "F": "forces"}
    outputs = [
        ModelOutput("U", torch.nn.L1Loss(), 2.0, metrics={}),
        ModelOutput("F", torch.nn.MSELoss(), metrics={}, target_property="forces_label"),
        ModelOutput("forces", torch.nn.MSELoss(), metrics={}),
        ModelOutput("U", torch.nn.HuberLoss(), metrics={}),
        ModelOutput("F", torch.nn.MSELoss(reduction="sum"), metrics={}),
        ModelOutput("F", torch.nn.MSELoss(), 0.0, metrics={}),
    ]
    made = components_of(outputs, model)
    assert [type(c) for c in made] == [EnergyLoss, ForcesLoss, *[ModelOutputLoss] * 4]
    assert (made[0].loss, made[0].loss_weight) == ("mae", 2.0)
    assert made[1].target_property == "forces_label"
    assert [c.is_trained for c in made] == [True] * 5 + [False]


def head(key, **kwargs):
    return atomistic.Atomwise(n_in=8, output_key=key, **kwargs)


@pytest.mark.parametrize(
    ("heads", "kinds"),
    [
        ([head("energy_U0")], {"energy_U0": "energy"}),
        ([head("enthalpy_H"), head("charge")], {"enthalpy_H": "energy"}),
        ([head("U"), atomistic.DipoleMoment(8, predict_magnitude=True)], {"U": "energy"}),
        ([ElementalAtomwise(output_key="label")], {"label": "energy"}),
        ([head("y"), ElementShift("y")], {"y": "energy"}),
        # any scalar: only its name can say
        ([head("homo")], {}),
        ([head("energy_gap")], {}),
        ([head("isotropic_polarizability")], {}),
        ([head("heat_capacity")], {}),
        ([head("energy", aggregation_mode="avg")], {}),
        ([head("energy", n_out=3)], {}),
        ([atomistic.DipoleMoment(8, predict_magnitude=True, dipole_key="energy")], {}),
        # which of the two
        ([head("energy_U0"), head("energy_U")], {}),
    ],
)
def test_energies_without_forces(heads, kinds):
    model = painn(forces=False)
    model.output_modules = torch.nn.ModuleList(heads)
    assert property_kinds(model) == kinds


def qm9(path, *more):
    """SchNetPack's qm9 experiment on a data set of ours: no forces."""
    return (
        "experiment=qm9_atomwise",
        f"data.datapath={path}",
        "data._target_=schnetpack.data.AtomsDataModule",
        "~data.remove_uncharacterized",
        "~data.property_units",
        "data.transforms.1.remove_atomrefs=false",
        "model.postprocessors.1.add_atomrefs=false",
        "data.num_train=16",
        "data.num_val=4",
        "+data.num_test=4",
        "trainer.max_epochs=3",
        *more,
    )


def test_schnetpacks_qm9_experiment_has_errors_per_atom(tmp_path, monkeypatch):
    path = write_molecules(tmp_path / "named.db", "energy_U0", "F", "eV")
    run = spktrain(
        monkeypatch,
        tmp_path,
        *qm9(path, "task=softadapt_task", "callbacks=[acsf_callbacks]", "~callbacks.progress"),
    )
    values = logged(run)
    # the user's metric is that of structures (3 to 6 atoms), ours per atom: both in eV here
    theirs = values["test_energy_U0_mae"][-1]
    assert 0.02 < values["train_energy_U0_loss"][0] < 20.0
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    assert metrics.keys() >= {"energy_mae_meV_per_atom", "energy_rmse_meV_per_atom"}
    assert 1 / 6 < metrics["energy_mae_meV_per_atom"] / 1e3 / theirs < 1 / 3
    with np.load(run / "predictions/test.npz") as arrays:
        mae = np.abs(arrays["energy"] - arrays["energy_ref"]).mean()
    assert mae == pytest.approx(theirs, rel=1e-5)  # float32 energies of some eV


class EnergySize(torch.nn.Module):
    """An output that has no reference."""

    model_outputs = ("energy_size",)

    def forward(self, inputs):
        return {**inputs, "energy_size": inputs["energy"] * 1e-3}


class MeanSquare(torch.nn.Module):
    """A loss of the user's, of a prediction alone."""

    def forward(self, value):
        return value.square().mean()


def test_a_dipole_moment_is_a_component(molecules, tmp_path):
    dipole = atomistic.DipoleMoment(n_in=8, use_vector_representation=False)
    model = painn(dipole, EnergySize())
    outputs = [
        energy(),
        ModelOutput(
            "forces", torch.nn.MSELoss(), metrics={"rmse": MeanSquaredError(squared=False)}
        ),
        ModelOutput("dipole_moment", torch.nn.MSELoss(), metrics={"mae": MeanAbsoluteError()}),
        UnsupervisedModelOutput("energy_size", MeanSquare(), metrics={}),
    ]
    task = SoftAdaptTask(model, outputs)
    trainer, record = fit(task, molecules, tmp_path)
    assert list(task.rule.weights) == ["energy", "forces", "dipole_moment", "energy_size"]
    # labels of a structure: an energy, 3 N forces (water 3 atoms, methanol 6), 3 of a dipole
    counts = trainer.datamodule.train_dataset
    n_atoms = np.mean([float(counts[k]["_n_atoms"][0]) for k in range(len(counts))])
    expected = {"energy": 1.0, "forces": 3 * n_atoms, "dipole_moment": 3.0, "energy_size": 1.0}
    largest = max(expected.values())
    assert task.rule.factors == pytest.approx({k: v / largest for k, v in expected.items()})
    # standardised by the spread of its labels
    labels = np.array([counts[k]["dipole_moment"].numpy() for k in range(len(counts))])
    spread = float(task.outputs[2].target_spread)
    assert spread == pytest.approx(labels.std(), rel=1e-6)
    batch = next(iter(trainer.datamodule.val_dataloader()))
    pred = task.eval()._predict(batch)
    raw = torch.mean((pred["dipole_moment"] - batch["dipole_moment"]) ** 2).item()
    assert record["val_dipole_moment_loss"] == pytest.approx(raw / spread**2, rel=1e-4)
    metrics = trainer.callback_metrics
    size = torch.mean(torch.abs(pred["dipole_moment"] - batch["dipole_moment"])).item()
    assert float(metrics["val_dipole_moment_mae"]) == pytest.approx(size, rel=1e-4)
    # the user's metric in the unit of the data, ours in history.csv in eV/Ang
    assert float(metrics["val_forces_rmse"]) == pytest.approx(
        record["val_forces_rmse"] * KCAL, rel=1e-4
    )


def test_constraints_hold_in_the_loss_and_in_the_count(molecules, tmp_path):
    constraint = ConsiderOnlySelectedAtoms("selected")
    forces = ModelOutput("forces", torch.nn.MSELoss(), metrics={}, constraints=[constraint])
    task = SoftAdaptTask(painn(), [energy(), forces], standardize=False)
    trainer, record = fit(task, molecules, tmp_path)
    assert isinstance(task.outputs[1], ModelOutputLoss)
    heavy = [float(s["selected"].sum()) for s in trainer.datamodule.train_dataset]
    labels = task.outputs[1].labels(training_targets(trainer.datamodule))
    assert labels == pytest.approx(3 * np.mean(heavy))
    batch = next(iter(trainer.datamodule.val_dataloader()))
    pred = task.eval()._predict(batch)
    chosen = batch["selected"][:, 0] > 0
    raw = torch.mean((pred["forces"] - batch["forces"])[chosen] ** 2).item()
    assert record["val_forces_loss"] == pytest.approx(raw, rel=1e-4)


def test_equal_loss_weights_are_none(molecules, tmp_path):
    outputs = [energy(), ModelOutput("forces", torch.nn.MSELoss(), metrics={})]
    task = SoftAdaptTask(painn(), outputs)
    fit(task, molecules, tmp_path, 1)
    assert type(task.rule) is Likelihood
    assert task.rule.factors["forces"] / task.rule.factors["energy"] > 9  # labels
    weighted = [energy(loss_weight=1.0), ModelOutput("forces", torch.nn.MSELoss(), 5.0, metrics={})]
    task = SoftAdaptTask(painn(), weighted)
    fit(task, molecules, tmp_path, 1)
    assert task.rule.factors == pytest.approx({"energy": 0.2, "forces": 1.0})


def test_loaders_without_a_data_module(molecules, tmp_path):
    module = data_module(molecules, tmp_path)
    module.setup()
    task = SoftAdaptTask(painn(), [energy()])
    with pytest.raises(ValueError, match="data module"):
        toy_trainer(tmp_path, 1).fit(task, AtomsLoader(module.train_dataset, batch_size=4))


def test_second_order_optimizers_refuse_losses_that_are_no_residuals(molecules, tmp_path):
    from schnetpack_softadapt.training.optimizers import KalmanFilter

    outputs = [energy(), ModelOutput("forces", torch.nn.HuberLoss(), metrics={})]
    task = SoftAdaptTask(painn(), outputs, optimizer_cls=KalmanFilter, optimizer_args={"lr": 0.5})
    with pytest.raises(ValueError, match=r"KalmanFilter.*forces.*HuberLoss"):
        fit(task, molecules, tmp_path, 1)


def test_front_door():
    assert schnetpack_softadapt.SoftAdaptTask is SoftAdaptTask
    with pytest.raises(AttributeError, match="SoftAdaptTusk"):
        _ = schnetpack_softadapt.SoftAdaptTusk


def test_the_example_in_python(tmp_path, monkeypatch, capsys):
    from schnetpack_softadapt.examples import painn as example

    path = write_molecules(tmp_path / "molecules.db", unit="eV")
    monkeypatch.chdir(tmp_path)
    example.main([str(path), "--epochs", "2", "--features", "8", "--cutoff", "4"])
    told = float(capsys.readouterr().out.rsplit("eV:", 1)[1])
    model = torch.load("best_model", weights_only=False)
    assert model.metadata["units"]["energy"] == "eV"
    # an untrained network on top of the mean per atom that RemoveOffsets took off
    atoms = ASEAtomsData(str(path)).conn.get_atoms(1)
    atoms.calc = EMT()
    assert told == pytest.approx(atoms.get_potential_energy(), abs=10.0)
    assert (tmp_path / "history.csv").exists()


def test_symmetry_functions_with_keys_of_any_name(tmp_path):
    """Shifts, scale, losses and labels all follow the names that the modules were given."""
    path = write_molecules(tmp_path / "named.db", "energy_U0", "F")
    torch.manual_seed(0)
    potential = DescriptorPotential(
        ACSF(4.0, grid={"n_radial": 4, "n_angular_widths": 1, "zetas": [1]}),
        input_modules=[atomistic.PairwiseDistances()],
        output_modules=[
            ElementalAtomwise(output_key="energy_U0", n_hidden=[4]),
            ForcesAndStress(energy_key="energy_U0", force_key="F", calc_stress="auto"),
        ],
    )
    task = SoftAdaptTask(potential, [EnergyLoss("energy_U0"), ForcesLoss("F")])
    trainer, record = fit(task, path, tmp_path)
    assert set(potential.model_outputs) == {"energy_U0", "F"}
    targets = training_targets(trainer.datamodule)
    _, shifts = composition_fit(targets.named(energy="energy_U0"))
    found = potential.output_modules[0].shifts.shift[torch.as_tensor(targets.elements)]
    assert found.tolist() == pytest.approx(shifts.tolist(), rel=1e-9)
    forces = targets.labels["F"].astype(float)
    assert float(potential.output_modules[0].scale) == pytest.approx(np.sqrt((forces**2).mean()))
    assert 0.02 < record["val_F_loss"] < 5.0
    with pytest.raises(ValueError, match="how many symmetry functions"):
        atomistic.Atomwise(n_in=ACSF(4.0).n_atom_basis)
