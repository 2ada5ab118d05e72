"""The progress bar and history.csv."""

import math
from types import SimpleNamespace

import toy_runs

from schnetpack_softadapt.training.callbacks import HistoryWriter, WeightsProgressBar, describe
from schnetpack_softadapt.training.checkpoints import AveragedWeights


def test_bar_shows_units_and_weights():
    record = {
        "val_energy_rmse": 0.0041,
        "val_forces_rmse": 0.226,
        "val_stress_rmse": 0.432 * 0.006241509,
        "weight_energy": 0.2,
        "weight_forces": 0.5,
        "weight_stress": 0.3,
        "train_energy_rmse": 9.0,
    }
    text = describe(toy_runs.components(), record)
    assert text == (
        "val E 4.1 meV/atom  F 226 meV/Å  S 432 MPa | weights energy 0.20 forces 0.50 stress 0.30"
    )
    only_train = {"train_energy_rmse": 0.001, "weight_energy": 1.0}
    assert describe(toy_runs.components(), only_train).startswith("train E 1 meV/atom")


def test_bar_of_a_run(database, tmp_path, capsys):
    bar = WeightsProgressBar(log_refresh_s=0.0)
    toy_runs.run(tmp_path, database, 2, callbacks=[bar], enable_progress_bar=True)
    err = capsys.readouterr().err
    assert "2/2" in err
    assert "meV/atom" in err
    assert "weights energy" in err


def test_history_gains_columns_and_keeps_all_digits(tmp_path):
    writer = HistoryWriter(str(tmp_path / "history.csv"))
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=0)
    writer.on_train_start(trainer, None)
    writer.on_epoch_record(trainer, None, {"epoch": 0, "train_loss": math.pi})
    writer.on_epoch_record(trainer, None, {"epoch": 1, "train_loss": 1e-20, "val_loss": 2.0})
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss"
    assert lines[1] == f"0,{math.pi!r},"
    assert lines[2] == "1,1e-20,2.0"


def test_a_new_run_in_an_old_folder_starts_the_file_anew(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,train_loss\n0,1.0\n1,0.5\n")
    writer = HistoryWriter(str(tmp_path / "history.csv"))
    writer.on_train_start(SimpleNamespace(is_global_zero=True, current_epoch=0), None)
    assert not (tmp_path / "history.csv").exists()


def test_average_by_hand(database, tmp_path):
    import torch

    average = AveragedWeights(0.5)
    model = torch.nn.Linear(1, 1, bias=False)
    module = SimpleNamespace(model=model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.on_fit_start(None, module)
    expected, decays = 1.0, (2 / 11, 3 / 12)  # (1 + n) / (10 + n) while below 0.5
    for value, decay in zip((2.0, 4.0), decays, strict=True):
        with torch.no_grad():
            model.weight.fill_(value)
        average.on_train_batch_end(None, module)
        expected = decay * expected + (1 - decay) * value
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    average.on_validation_start(trainer, module)
    assert math.isclose(float(model.weight.detach()), expected, rel_tol=1e-6)
    average.on_train_epoch_start(trainer, module)
    assert float(model.weight.detach()) == 4.0
