"""Histories from each kind of log, resumed and unfinished ones too."""

import numpy as np
import pytest
from fake_run import write_history, write_run

from schnetpack_softadapt.quantities import ENERGY, FORCES, STRESS
from schnetpack_softadapt.reports.history import read_history
from schnetpack_softadapt.reports.run import Run


def test_history_csv_and_best_epoch(tmp_path):
    write_history(tmp_path / "history.csv", 20, best=13)
    history = read_history(tmp_path)
    assert history.source == "history.csv"
    assert history.epochs.tolist() == list(range(20))
    assert history.best_epoch == 13
    assert list(history.prefixed("weight_")) == ["energy", "forces", "stress"]


def test_half_a_line_and_gaps_are_ignored(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,val_loss,lr\n0,3.0,\n1,2.0,0.1\n2,0.")
    history = read_history(tmp_path)
    assert history.epochs.tolist() == [0, 1]
    assert history.get("VAL_LOSS").tolist() == [3.0, 2.0]
    assert np.isnan(history.get("lr")[0])


def test_no_history(tmp_path):
    assert read_history(tmp_path) is None
    (tmp_path / "history.csv").write_text("epoch,val_loss\n")
    assert read_history(tmp_path) is None


def test_resumed_csv_logger_continues_from_its_checkpoint(tmp_path):
    for version, text in (
        ("version_9", "epoch,step,val_loss,train_loss\n0,1,9.0,\n0,2,,4.0\n0,3,,6.0\n1,4,8.0,\n"),
        ("version_10", "epoch,step,val_loss,train_loss\n1,4,7.0,3.0\n2,5,6.0,2.0\n"),
    ):
        folder = tmp_path / "csv" / version
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    history = read_history(tmp_path)
    assert history.source == "the CSV logger"
    assert history.get("val_loss").tolist() == [9.0, 7.0, 6.0]
    assert history.get("train_loss").tolist() == [5.0, 3.0, 2.0]  # steps of an epoch averaged


def test_epoch_of_the_test_phase_is_no_epoch(tmp_path):
    (tmp_path / "csv").mkdir()
    text = "epoch,step,val_loss,test_loss\n0,1,9.0,\n1,2,8.0,\n2,2,,5.0\n"
    (tmp_path / "csv" / "metrics.csv").write_text(text)
    assert read_history(tmp_path).epochs.tolist() == [0, 1]


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboardX import SummaryWriter

    for version, epochs in ((0, (0, 1, 2)), (1, (2, 3))):
        writer = SummaryWriter(str(tmp_path / "tensorboard" / "default" / f"version_{version}"))
        for epoch in epochs:
            step = 10 * (epoch + 1)
            writer.add_scalar("epoch", epoch, step)
            writer.add_scalar("val_loss", 10.0 * version + epoch, step)
        writer.add_scalar("unrelated", 1.0, 9999)  # logged without an epoch
        writer.close()
    history = read_history(tmp_path)
    assert history.source == "TensorBoard"
    assert history.epochs.tolist() == [0, 1, 2, 3]
    assert history.get("val_loss").tolist() == [0.0, 1.0, 12.0, 13.0]


def test_units_of_own_task(tmp_path):
    write_run(tmp_path / "run", subsets=(), metrics=False)
    run = Run.read(tmp_path / "run")
    raw = run.history.get("val_energy_rmse")
    series = run.logged_error("val", ENERGY)
    assert series.unit == "meV/atom"
    assert series.values == pytest.approx(1000.0 * raw, rel=1e-12)
    # 1 eV/Ang^3 is 160217.66 MPa
    ratio = run.logged_error("val", STRESS).values / run.history.get("val_stress_rmse")
    assert ratio == pytest.approx(np.full(30, 160217.6634), rel=1e-6)


def test_units_of_stock_task(tmp_path):
    pytest.importorskip("schnetpack")
    (tmp_path / "config.yaml").write_text(
        "globals: {energy_key: energy_U0}\n"
        "data: {property_units: {energy_U0: kcal/mol}}\n"
        "task: {_target_: schnetpack.AtomisticTask}\n"
    )
    text = "epoch,val_loss,val_energy_U0_MAE,val_forces_rmse\n0,1.0,23.0605,2.0\n"
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text(text)
    run = Run.read(tmp_path)
    series = run.logged_error("val", ENERGY, "mae")
    # 23.0605 kcal/mol are 1 eV, of a whole structure
    assert series.unit == "meV per structure"
    assert series.values == pytest.approx([1000.0], rel=1e-4)
    # Without a unit the value is shown as it is, and says so.
    series = run.logged_error("val", FORCES)
    assert (series.unit, series.values.tolist()) == ("unit of the data", [2.0])


def test_keys_are_those_of_the_models_modules(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "globals: {energy_key: energy, F: F}\n"
        "model:\n  output_modules:\n"
        "  - {_target_: schnetpack.atomistic.Atomwise, output_key: U}\n"
        "  - {_target_: schnetpack.atomistic.Forces, energy_key: U, force_key: '${globals.F}'}\n"
        "task:\n  outputs:\n  - {name: U, target_property: energy_label}\n"
    )
    run = Run.read(tmp_path)
    assert [run.model_key(q) for q in (ENERGY, FORCES, STRESS)] == ["U", "F", "stress"]
    assert [run.data_key(key) for key in ("U", "F")] == ["energy_label", "F"]


def test_loss_panel_sums_unweighted_components(tmp_path):
    write_run(tmp_path / "run", subsets=())
    run = Run.read(tmp_path / "run")
    losses = run.logged_losses()
    parts = [run.history.get(f"train_{name}_loss") for name in ("energy", "forces", "stress")]
    assert losses["train"] == pytest.approx(sum(parts), rel=1e-12)
    assert losses["val"] == pytest.approx(run.history.get("val_loss"), rel=1e-12)
    run.config["task"]["standardize"] = False
    assert list(run.logged_losses()) == ["val"]


def test_pieces_of_a_loss_do_not_add_up(tmp_path):
    write_run(tmp_path / "run", subsets=())
    run = Run.read(tmp_path / "run")
    run.config["task"]["outputs"] = [{"name": "energy"}, {"name": "stress", "split": "voigt"}]
    assert list(run.logged_losses()) == ["val"]
