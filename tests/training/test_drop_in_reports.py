"""Runs of SchNetPack's own experiment with our task and callbacks: files and reports."""

import json

import numpy as np
import pytest
import test_drop_in
import toy_runs
from omegaconf import OmegaConf
from test_drop_in import KCAL, OTHER_NAMES, logged, md17, spktrain, write_molecules

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.quantities import ENERGY, FORCES
from schnetpack_softadapt.reports.curves import draw_learning, draw_weights
from schnetpack_softadapt.reports.predict import predict_missing
from schnetpack_softadapt.reports.run import Run

OURS = ("task=softadapt_task", "callbacks=[acsf_callbacks]", "~callbacks.progress")


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "molecules.db")


@pytest.fixture(scope="module")
def trained(molecules, tmp_path_factory):
    """A finished run with its report."""
    with pytest.MonkeyPatch.context() as patch:
        run = spktrain(patch, tmp_path_factory.mktemp("trained"), *md17(molecules, *OURS))
    assert main(["report", str(run)]) == 0
    return run


def test_errors_are_in_our_units_and_in_those_of_the_data(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["units"] == {
        "history.csv": {"energy": "eV/atom", "forces": "eV/Ang"},
        "data": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"},
    }
    # SchNetPack's own metrics, of whole structures; float32 energies of some 10 kcal/mol
    theirs = logged(trained)
    for kind in ("energy", "forces"):
        for metric in ("rmse", "mae"):
            [value] = theirs[f"test_{kind}_{metric}"]
            ours = metrics["test"][f"{kind}_{metric}_data_unit"]
            assert ours == pytest.approx(value, rel=1e-5)
    test = metrics["test"]
    assert test["forces_mae_data_unit"] == pytest.approx(
        test["forces_mae_meV_per_Ang"] * KCAL / 1e3, rel=1e-6
    )
    best = min(toy_runs.history(trained), key=lambda row: row["val_loss"])
    assert best["val_forces_rmse"] == pytest.approx(
        metrics["val"]["forces_rmse_data_unit"] / KCAL, rel=1e-5
    )


def test_report_of_schnetpacks_experiment(trained):
    content = json.loads((trained / "report/report.json").read_text())
    [run] = content["runs"]
    assert run["notes"] == []
    assert (run["finished"], run["epochs"]) == (True, 3)
    metrics = json.loads((trained / "metrics.json").read_text())
    for row in run["errors"]:
        if row["selection"] == "all":
            key = {"energy": "energy_mae_meV_per_atom", "forces": "forces_mae_meV_per_Ang"}
            assert row["mae"] == pytest.approx(metrics[row["subset"]][key[row["quantity"]]])
    assert {"learning_curves.png", "loss_weights.png", "parity.png"} <= set(content["figures"])


def test_without_history_csv_metrics_of_the_user_keep_their_unit(trained, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "config.yaml").write_text((trained / "config.yaml").read_text())
    for path in trained.rglob("metrics.csv"):
        (copy / "metrics.csv").write_text(path.read_text())
    run, complete = Run.read(copy), Run.read(trained)
    assert run.own_task
    forces = run.logged_error("val", FORCES)
    assert forces.unit == "meV/Å"
    assert forces.values == pytest.approx(complete.logged_error("val", FORCES).values, rel=1e-5)
    energy = run.logged_error("val", ENERGY, "mae")
    assert energy.unit == "meV per structure"
    assert energy.values == pytest.approx(
        1e3 / KCAL * np.array(logged(trained)["val_energy_mae"]), rel=1e-6
    )


def test_keys_of_other_names_have_the_same_report(trained, tmp_path, monkeypatch):
    path = write_molecules(tmp_path / "named.db", "energy_U0", "F")
    run = spktrain(monkeypatch, tmp_path, *md17(path, *OURS, *OTHER_NAMES))
    assert "weight_energy_U0" in toy_runs.history(run)[0]
    assert main(["report", str(run)]) == 0
    ours, theirs = (
        json.loads((folder / "report/report.json").read_text()) for folder in (run, trained)
    )
    assert ours["figures"] == theirs["figures"]
    # a bit of float32 is another one where the names sort in another order
    for row, expected in zip(ours["runs"][0]["errors"], theirs["runs"][0]["errors"], strict=True):
        assert {k: v for k, v in row.items() if not isinstance(v, float)} == {
            k: v for k, v in expected.items() if not isinstance(v, float)
        }
        assert row["rmse"] == pytest.approx(expected["rmse"], rel=1e-3)
    titles = [
        [axes.get_title() for axes in draw_learning(Run.read(folder)).axes]
        for folder in (run, trained)
    ]
    assert titles == [["Loss", "Energy", "Forces"]] * 2
    weights = draw_weights(Run.read(run)).axes[0]
    assert [text.get_text() for text in weights.get_legend().texts][:2] == ["energy", "forces"]
    # from the model alone: its modules say which output is what
    config = OmegaConf.load(run / "config.yaml")
    before = np.load(run / "predictions/test.npz")
    (run / "predictions/test.npz").unlink()
    del config.model, config.globals.energy_key, config.globals.forces_key, config.task.outputs
    OmegaConf.save(config, run / "config.yaml")
    [file] = predict_missing(run)
    again = np.load(file)
    for key in ("energy", "energy_ref", "forces", "forces_ref"):
        assert again[key] == pytest.approx(before[key], rel=1e-5, abs=1e-5)


DIPOLE = """
# @package _global_
defaults:
  - md17
model:
  output_modules:
    - _target_: schnetpack.atomistic.Atomwise
      output_key: energy
      n_in: ${model.representation.n_atom_basis}
    - _target_: schnetpack.atomistic.Forces
    - _target_: schnetpack.atomistic.DipoleMoment
      n_in: ${model.representation.n_atom_basis}
      use_vector_representation: false
task:
  outputs:
    - _target_: schnetpack.task.ModelOutput
      name: energy
      loss_fn: {_target_: torch.nn.MSELoss}
      metrics: {}
    - _target_: schnetpack.task.ModelOutput
      name: forces
      loss_fn: {_target_: torch.nn.MSELoss}
      metrics: {}
    - _target_: schnetpack.task.ModelOutput
      name: dipole_moment
      loss_fn: {_target_: torch.nn.MSELoss}
      metrics:
        mae: {_target_: torchmetrics.regression.MeanAbsoluteError}
"""


@pytest.mark.parametrize("alone", [False, True])
def test_report_of_an_output_that_is_no_energy(molecules, tmp_path, monkeypatch, alone):
    """A dipole moment beside energy and forces, and alone."""
    config = OmegaConf.create(DIPOLE)
    if alone:
        config.model.output_modules = config.model.output_modules[2:]
        config.task.outputs = config.task.outputs[2:]
        config.model.postprocessors = []
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n" + OmegaConf.to_yaml(config)
    (tmp_path / "experiment/dipole.yaml").write_text(text)
    settings = [x.replace("=md17", "=dipole") for x in md17(molecules, *OURS)]
    run = spktrain(monkeypatch, tmp_path, f"--config-dir={tmp_path}", *settings)
    rows = toy_runs.history(run)
    assert rows[0]["train_dipole_moment_loss"] > rows[-1]["train_dipole_moment_loss"] > 0
    assert main(["report", str(run)]) == 0
    figure = draw_learning(Run.read(run))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["Loss", *([] if alone else ["Energy", "Forces"]), "Dipole moment"]
    drawn = panels["Dipole moment"].lines[1].get_ydata()
    assert list(drawn) == [row["val_dipole_moment_loss"] for row in rows]
    content = json.loads((run / "report/report.json").read_text())
    assert {row["quantity"] for row in content["runs"][0]["errors"]} == (
        set() if alone else {"energy", "forces"}
    )


def test_a_resumed_run_says_its_present_settings(molecules, tmp_path, monkeypatch):
    spktrain(monkeypatch, tmp_path, *md17(molecules, *OURS, "trainer.max_epochs=2"))
    first = (tmp_path / "run/config.yaml").read_text()
    more = ("trainer.max_epochs=5", "globals.lr=2e-3")
    small = [s.replace("seed=1", "seed=7") for s in test_drop_in.SMALL]
    monkeypatch.setattr(test_drop_in, "SMALL", small)
    run = spktrain(monkeypatch, tmp_path, *md17(molecules, *OURS, *more))
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.max_epochs == 5
    assert config.globals.lr == 2e-3
    assert config.seed == 1  # that of the first start, which the run keeps
    # nothing else has changed
    again = (run / "config.yaml").read_text().splitlines()
    changed = [line for line in first.splitlines() if line not in again]
    assert [line.split(":")[0].strip() for line in changed] == ["lr", "max_epochs"]
    (run / "metrics.json").unlink()
    (run / "best_model.task").unlink()
    history = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join(history[:-1]))
    [note] = [note for note in Run.read(run).notes if "epochs logged" in note]
    assert note == "The run goes on, or was stopped: 4 of at most 5 epochs logged so far."
