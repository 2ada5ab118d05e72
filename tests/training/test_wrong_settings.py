"""What `spktrain` says of settings that are wrong: one line, before anything long is done."""

import sys
import traceback

import hydra
import pytest
import torch
import toy_runs
from omegaconf import OmegaConf
from processes import start
from schnetpack import cli
from schnetpack.train import ReduceLROnPlateau

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.model import ACSF
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.optimizers import KalmanFilter
from schnetpack_softadapt.training.rules import Fixed, LinearRamp, SoftAdapt
from schnetpack_softadapt.training.settings import (
    check_monitor,
    check_optimizer,
    logged_names,
    update_config,
)
from schnetpack_softadapt.training.task import SoftAdaptTask

SMALL = (
    "experiment=recommended_softadapt",
    "globals.cutoff=4.0",
    "globals.n_hidden=[4]",
    "data.num_train=10",
    "data.num_val=4",
    "data.num_test=4",
    "data.batch_size=5",
    "data.store=false",
    "model.representation.grid.n_radial=3",
    "model.representation.grid.n_angular_widths=1",
    "model.representation.grid.zetas=[1]",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "print_config=false",
    "~callbacks.progress",
    "logger=acsf_quiet",
)


@pytest.fixture
def spktrain(database, tmp_path, monkeypatch, capsys):
    """The command in this process; returns the lines in which Hydra says what is wrong."""

    def run(*overrides):
        given = [*SMALL, f"data.datapath={database}", *overrides, f"run.path={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["spktrain", *given])
        with pytest.raises(SystemExit) as stop:
            cli.train()
        assert stop.value.code == 1
        # Hydra's own lines: which overrides it was given, and how to see the traceback
        _, _, said = capsys.readouterr().err.partition("Error executing job with overrides:")
        _, *lines, blank, hint = said.splitlines()
        assert not blank
        assert "HYDRA_FULL_ERROR=1" in hint
        return lines

    return run


@pytest.fixture
def unread(monkeypatch):
    """No structure may be read."""

    def read(self):
        raise AssertionError("the data were read")

    monkeypatch.setattr(InMemoryAtomsData, "_read", read)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.datapath=none.db"], "none.db; make one with `spk-softadapt import"),
        (["+data.load_properties=[energy,force]"], "has no force; it holds energy, forces"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_data_that_are_not_there(spktrain, unread, overrides, text):
    (line,) = spktrain(*overrides)
    assert text in line


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.num_train=1000"], "there are only 18"),
        (["data.splitting=grouped", "data.split_key=phase"], "no groups 'phase'"),
        (["+task.outputs.0.groups=[huge]"], "its groups are small, large"),
        (["model.representation.elements=[Cu]"], "does not know Au"),
        (
            ["data.transforms.0.cutoff=3.5", "task/optimizer=acsf_adamw"],  # which takes the list
            "cutoff of 3.5 Ang, the symmetry functions reach 4",
        ),
        (["callbacks.early_stopping.monitor=val_lss"], "EarlyStopping.monitor='val_lss' is not"),
        (["callbacks.model_checkpoint.monitor=val_lss"], "RunCheckpoint.monitor='val_lss' is not"),
        (["trainer.max_epochs=many"], "'many' is no number of epochs"),
        (["+task.optimizer_args.kalman.max_parameters=10"], "for at most max_parameters=10"),
        (
            ["task/weighting=fixed", "task.weighting.weights={energy: 1, forces: 1}"],
            "no initial weight for the loss component stress",  # the data could have no stress
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else x[-1],
)
def test_what_shows_with_the_data_is_one_line(spktrain, overrides, text):
    (line,) = spktrain(*overrides)
    assert text in line


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.datapath=null"], "data.datapath=my.db"),
        (["model.representation.grid.angular=G3"], "'G4', 'G5' or 'mixed', got 'G3'"),
        (
            ["task/weighting=fixed", "task.weighting.weights={energy: 1, force: 1, stress: 1}"],
            "no initial weight for the loss component forces",
        ),
        (["+task.optimizer_args.weight_decay=0.1"], "unexpected keyword argument 'weight_decay'"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_what_shows_before_the_data_is_said_by_hydra(spktrain, unread, overrides, text):
    target, line, key = spktrain(*overrides)
    assert target.startswith("Error in call to target 'schnetpack_softadapt.")
    assert text in line
    assert key.startswith("full_key: ")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("task.optimizer_cls", "torch.optim.AdmW"),
        ("task.optimizer_cls", "AdamW"),
        ("task.scheduler_cls", "schnetpack.trian.ReduceLROnPlateau"),
    ],
)
@pytest.mark.parametrize("stock", [False, True])
def test_classes_that_there_are_not(spktrain, unread, name, wrong, stock):
    overrides = [f"{name}={wrong}"]
    if stock:  # nothing of ours but the task
        overrides += ["data._target_=schnetpack.data.AtomsDataModule"]
        ours = ("splitting", "split_key", "split_seed")
        ours += ("store", "store_dir", "store_budget", "store_dtype", "weights", "exclude")
        # what is null has to be given a value before Hydra removes it
        overrides += [x for key in ours for x in (f"data.{key}=0", f"~data.{key}")]
    (line,) = spktrain(*overrides)
    assert line.startswith(f"there is no class {wrong} (")
    assert name in line


@pytest.mark.parametrize("lr", ["1e30", "nan", "inf", "-0.1", "fast"])
@pytest.mark.parametrize("optimizer", ["acsf_adamw", "sgd"])
def test_learning_rates_that_cannot_work(spktrain, unread, lr, optimizer):
    choice = [f"task/optimizer={optimizer}", f"task.optimizer_args.lr={lr}"]
    target, line, _ = spktrain(*choice)
    assert target.startswith("Error in call to target 'schnetpack_softadapt.training.task.")
    assert f"task.optimizer_args.lr={float(lr) if lr != 'fast' else lr} is no learning rate" in line


def test_a_corrected_command_writes_its_own_settings(spktrain, tmp_path):
    """Upstream, config.yaml keeps the settings of a first start that has failed."""
    spktrain("callbacks.early_stopping.monitor=val_lss", "run.id=run", "seed=3")
    wrong = OmegaConf.load(tmp_path / "run/config.yaml")
    assert wrong.callbacks.early_stopping.monitor == "val_lss"
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        spktrain("data.batch_size=4", "run.id=run", "seed=4")
    config = OmegaConf.load(tmp_path / "run/config.yaml")
    assert config.callbacks.early_stopping.monitor == "val_loss"
    assert (config.data.batch_size, config.seed) == (4, 4)


def test_a_run_does_not_go_on_with_another_model(spktrain):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        spktrain()
    (line,) = spktrain("globals.n_hidden=[5]")
    assert line.startswith("the checkpoint is of another model (size mismatch for model.")
    assert "run.id=" in line


def test_the_traceback_on_request(spktrain, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(FileNotFoundError, match="spk-softadapt import") as error:
        spktrain("data.datapath=none.db")
    assert traceback.extract_tb(error.value.__cause__.__traceback__)[-1].name == "open_database"


@pytest.mark.parametrize("fault", [KeyError("energy"), ValueError("shapes (3,) and (4,)")])
def test_a_fault_of_ours_keeps_its_traceback(spktrain, monkeypatch, fault):
    def prepare(self, datamodule):
        raise fault  # outside our package: as if numpy had raised it

    monkeypatch.setattr(SoftAdaptTask, "_prepare", prepare)
    lines = spktrain()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == f"{type(fault).__name__}: {fault}"


# --- what is known without data


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cutoff": 0.0}, "the cutoff of 0 Ang must exceed"),
        ({"scaling": "sigmoid"}, "unknown scaling 'sigmoid'"),
        ({"grid": {"n_radial": 0}}, "at least one radial function"),
        ({"grid": {"zetas": [0.5]}}, "zeta must be at least 1"),
        ({"grid": {"angular_cutoff": 8.0}}, "angular cutoff 8 exceeds the cutoff 6"),
        ({"grid": {"cutoff_fn": "cosin"}}, "unknown cutoff function 'cosin'"),
    ],
    ids=str,
)
def test_symmetry_functions_of_open_elements(settings, text):
    with pytest.raises(ValueError, match=text):
        ACSF(**settings)
    assert ACSF().descriptor is None  # hydrogen was there for the check only
    assert ACSF().scaling is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 0}, "data.batch_size is a whole number from 1 on, not 0"),
        ({"val_batch_size": 2.5}, "data.val_batch_size is a whole number from 1 on, not 2.5"),
        ({"num_workers": -1}, "data.num_workers is a whole number from 0 on"),
        ({"num_train": "all"}, "num_train is a number of structures.*not 'all'"),
        ({"num_val": 1.5}, "num_val is a number of structures.*not 1.5"),
        ({"property_units": {"energy": "horse"}}, "'horse' cannot be read.*kcal/mol"),
        ({"distance_unit": "A"}, "'A' cannot be read.*Ang"),
    ],
    ids=str,
)
def test_arguments_of_the_data_module(settings, text):
    with pytest.raises(ValueError, match=text):
        SoftAdaptDataModule("my.db", **settings)


ADAM = {
    "optimizer_cls": torch.optim.AdamW,
    "optimizer_args": {"lr": 1e-3},
    "scheduler_cls": None,
    "scheduler_args": {},
    "scheduler_monitor": None,
}
PLATEAU = {"scheduler_cls": ReduceLROnPlateau}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"optimizer_args": {}}, "optimizer_args needs lr"),
        ({"optimizer_args": {"lr": -1.0}}, "lr=-1.0 is no learning rate"),
        ({"optimizer_args": {"lr": 1e-3, "momentum": 0.9}}, "argument 'momentum'"),
        ({"optimizer_cls": KalmanFilter, "optimizer_args": {"lr": 5}}, "lr=5 is out of range"),
        ({"scheduler_cls": torch.optim.lr_scheduler.CosineAnnealingLR}, "argument: 'T_max'"),
        ({**PLATEAU, "scheduler_args": {"factor": 1.5}}, "Factor should be < 1.0"),
        (
            {**PLATEAU, "scheduler_monitor": "val_lss"},
            "'val_lss' is not logged; there are.*val_los",
        ),
        (PLATEAU, "scheduler_monitor=None is not logged"),
    ],
)
def test_optimizer_and_scheduler(settings, text):
    logged = logged_names([EnergyLoss()])
    with pytest.raises(ValueError, match=text):
        check_optimizer(**{**ADAM, **settings}, logged=logged)
    check_optimizer(**ADAM, logged=logged)
    check_optimizer(**{**ADAM, **PLATEAU, "scheduler_monitor": "val_energy_mae"}, logged=logged)


def test_names_that_are_logged(tmp_path, database):
    losses = [EnergyLoss(), ForcesLoss(component="f"), StressLoss()]
    task = toy_runs.toy_task(outputs=losses)
    trainer = toy_runs.toy_trainer(tmp_path, 1)
    trainer.fit(task, datamodule=toy_runs.toy_data(database))
    assert set(task.record) - {"epoch"} == logged_names(losses)


NAMES = ["energy", "forces", "stress"]


@pytest.mark.parametrize(
    ("rule", "optional", "missing"),
    [
        (Fixed({"energy": 1, "forces": 1}), [], "stress"),
        (Fixed({"energy": 1, "forces": 1}), ["stress"], None),
        (Fixed({"energy": 1, "force": 1, "stress": 1}), NAMES, "forces"),
        (SoftAdapt(prior={"energy": 3, "force": 1, "stress": 1}), NAMES, "forces"),
        (LinearRamp({"energy": 1}, {"energy": 1, "forces": 1}), ["stress"], "forces"),
        (SoftAdapt(prior="labels"), [], None),
        (SoftAdapt(), [], None),
    ],
)
def test_weights_of_components(rule, optional, missing):
    if missing is None:
        assert rule.check(NAMES, optional) == []
        return
    with pytest.raises(ValueError, match=f"weight for the loss component {missing}"):
        rule.check(NAMES, optional)


def test_weights_of_other_names_are_named(database, tmp_path, caplog):
    rule = Fixed({"energy": 1, "forces": 1, "stress": 1, "force": 3})
    assert rule.check(NAMES, NAMES) == ["force"]
    task = toy_runs.toy_task(weighting=rule)
    toy_runs.toy_trainer(tmp_path, 1).fit(task, datamodule=toy_runs.toy_data(database))
    assert "weights of force have no effect: the loss components are energy" in caplog.text


def test_values_of_other_callbacks_may_be_watched():
    check_monitor("EarlyStopping.monitor", "val_torsion_barrier", {"val_loss", "val_forces_rmse"})
    with pytest.raises(ValueError, match="'val_forces_rsme' is not logged"):
        check_monitor("EarlyStopping.monitor", "val_forces_rsme", {"val_loss", "val_forces_rmse"})


def test_a_config_of_the_user_stays(tmp_path):
    """A Hydra program of the user's whose own config.yaml is where it was started."""
    (tmp_path / "config.yaml").write_text("lr: 1 # mine\n")

    def program():
        sys.argv = ["program.py", "lr=5"]
        main = hydra.main(config_path=str(tmp_path), config_name="config", version_base="1.2")
        main(lambda config: update_config(tmp_path / "config.yaml", False, {}))()

    process = start(program, folder=tmp_path, log=tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "config.yaml").read_text() == "lr: 1 # mine\n"
