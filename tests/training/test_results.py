"""metrics.json, predictions and the table at the end of a run."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from ase import units
from ase.db import connect
from schnetpack.data import AtomsDataModule
from schnetpack.transform import AddOffsets, CastTo32, CastTo64, MatScipyNeighborList, RemoveOffsets

from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.reports.outliers import find_outliers
from schnetpack_softadapt.reports.predict import predict_missing
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.training.predictions import predict_subset, prediction_errors
from schnetpack_softadapt.training.results import ResultsWriter, format_table

NAMES = {kind: (kind, kind) for kind in ("energy", "forces", "stress")}
KEYS = {
    f"{kind}_{metric}_{unit}"
    for kind, unit in (("energy", "meV_per_atom"), ("forces", "meV_per_Ang"), ("stress", "MPa"))
    for metric in ("rmse", "mae")
}


@pytest.mark.parametrize("stock", [True, False])
def test_files_of_a_finished_run(database, tmp_path, stock, capsys):
    trainer, task, datamodule = toy_runs.run(tmp_path, database, 3, data={"stock": stock})
    trainer.test(task, datamodule=datamodule, ckpt_path="best", verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"train", "val", "test", "units", "epochs", "wall_s"}
    history_units = {"energy": "eV/atom", "forces": "eV/Ang", "stress": "eV/Ang^3"}
    assert metrics["units"] == {"history.csv": history_units}
    assert metrics["epochs"] == 3
    assert metrics["wall_s"] > 0
    assert all(set(metrics[subset]) == KEYS for subset in ("train", "val", "test"))
    # the validation errors are those that were logged when the best epoch was found
    rows = toy_runs.history(tmp_path)
    best = min(rows, key=lambda row: row["val_loss"])
    val = metrics["val"]
    assert val["energy_rmse_meV_per_atom"] == pytest.approx(1e3 * best["val_energy_rmse"], rel=1e-4)
    assert val["forces_mae_meV_per_Ang"] == pytest.approx(1e3 * best["val_forces_mae"], rel=1e-5)
    assert val["stress_rmse_MPa"] == pytest.approx(
        1e3 / units.GPa * best["val_stress_rmse"], rel=1e-5
    )
    out = capsys.readouterr().out
    assert "meV/atom" in out
    assert f"{val['forces_rmse_meV_per_Ang']:.4g}" in out
    for subset, n in (("train", 10), ("val", 4), ("test", 2)):
        with np.load(tmp_path / "predictions" / f"{subset}.npz") as arrays:
            arrays = dict(arrays)
        n_atoms = arrays["n_atoms"].sum()
        assert arrays["energy"].shape == arrays["energy_ref"].shape == (n,)
        assert arrays["forces"].shape == arrays["forces_ref"].shape == (n_atoms, 3)
        assert arrays["stress"].shape == arrays["stress_ref"].shape == (n, 3, 3)
        assert arrays["numbers"].shape == (n_atoms,)
        assert arrays["stress_mask"].dtype == bool
        assert list(arrays["index"]) == sorted(getattr(datamodule, f"{subset}_idx"))
        found = prediction_errors(arrays)
        assert found == pytest.approx(metrics[subset], rel=1e-12)
        assert list(arrays["group_names"]) == ["small", "large"]
        assert list(arrays["group"]) == [i % 2 for i in arrays["index"]]


def test_references_are_those_of_the_database(database, tmp_path):
    _, task, datamodule = toy_runs.run(tmp_path, database, 1)
    arrays = predict_subset(task.model, datamodule, "train", NAMES)
    structures = toy_runs.emt_structures(18)
    first = 0
    for k, index in enumerate(arrays["index"]):
        atoms = structures[index]
        part = slice(first, first + len(atoms))
        first += len(atoms)
        # forces and stress went through float32
        assert arrays["energy_ref"][k] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert np.allclose(arrays["forces_ref"][part], atoms.get_forces(), atol=1e-5)
        assert list(arrays["numbers"][part]) == list(atoms.numbers)
        if arrays["stress_mask"][k]:
            stress = atoms.get_stress(voigt=False)
            assert np.allclose(arrays["stress_ref"][k], stress, atol=1e-6)
        else:
            assert index == 3


CONFIG = """
run: {{work_dir: "${{hydra:runtime.cwd}}", id: run}}
globals: {{energy_key: energy, forces_key: forces, stress_key: stress}}
data:
  _target_: {target}
  datapath: {database}
  batch_size: 4
  num_train: 10
  num_val: 4
  num_test: 2
  num_workers: 0
  split_file: split.npz
  transforms:
    - {{_target_: schnetpack.transform.RemoveOffsets, property: energy, remove_mean: true}}
    - {{_target_: schnetpack.transform.MatScipyNeighborList, cutoff: {cutoff}}}
    - {{_target_: schnetpack.transform.CastTo32}}
"""


@pytest.mark.parametrize("cls", [AtomsDataModule, SoftAdaptDataModule])
def test_training_and_report_write_the_same_file(database, tmp_path, cls):
    """Offsets and indices too: training has wrong labels named by their place in the database."""
    pl.seed_everything(1, verbose=False)
    model = toy_runs.toy_model()
    offsets = AddOffsets("energy", add_mean=True)
    model.postprocessors = torch.nn.ModuleList([CastTo64(), offsets])
    datamodule = cls(
        str(database),
        batch_size=4,
        num_train=10,
        num_val=4,
        num_test=2,
        num_workers=0,
        split_file=str(tmp_path / "split.npz"),
        transforms=[
            RemoveOffsets("energy", remove_mean=True),
            MatScipyNeighborList(cutoff=toy_runs.CUTOFF),
            CastTo32(),
        ],
    )
    trainer = toy_runs.toy_trainer(tmp_path, 1)
    task = toy_runs.toy_task(model=model)
    trainer.fit(task, datamodule=datamodule)
    trainer.test(task, datamodule=datamodule, ckpt_path="best", verbose=False)
    target = f"{cls.__module__}.{cls.__name__}"
    config = CONFIG.format(target=target, database=database, cutoff=toy_runs.CUTOFF)
    (tmp_path / "config.yaml").write_text(config)
    files = [tmp_path / "predictions" / f"{subset}.npz" for subset in ("train", "val", "test")]
    trained = [dict(np.load(file)) for file in files]
    for file in files:
        file.unlink()
    assert predict_missing(tmp_path) == files
    structures = toy_runs.emt_structures(18)
    for file, arrays in zip(files, trained, strict=True):
        again = dict(np.load(file))
        assert again.keys() == arrays.keys()
        for key, values in arrays.items():
            assert again[key].dtype == values.dtype
            if key in NAMES:
                # float32 networks, summed in batches of other structures
                assert again[key] == pytest.approx(values, rel=1e-5, abs=1e-6)
            else:
                assert np.array_equal(again[key], values)
        energies = [structures[k].get_potential_energy() for k in arrays["index"]]
        assert arrays["energy_ref"] == pytest.approx(energies, rel=1e-12)
    # the loss saw energies without their mean, the file has it on both sides
    assert float(offsets.mean) > 0.1  # eV/atom, of errors of 0.3
    rmse = prediction_errors(trained[1])["energy_rmse_meV_per_atom"]
    [row] = toy_runs.history(tmp_path)
    assert rmse == pytest.approx(1e3 * row["val_energy_rmse"], rel=1e-5)
    wrong = dict(trained[0])
    wrong["energy_ref"] = wrong["energy_ref"] + 100.0 * (wrong["index"] == wrong["index"][4])
    doubtful = Predictions.from_arrays("train", wrong)
    assert wrong["index"][4] in set(find_outliers([doubtful])["index"])


def test_metrics_by_hand():
    arrays = {
        "n_atoms": np.array([1, 2]),
        "energy": np.array([1.0, 2.0]),
        "energy_ref": np.array([0.999, 2.004]),
        "stress": np.zeros((2, 3, 3)),
        "stress_ref": np.zeros((2, 3, 3)),
        "stress_mask": np.array([True, False]),
    }
    arrays["stress"][0, 0, 1] = arrays["stress"][0, 1, 0] = 6e-3 * units.GPa
    arrays["stress"][1] = 1e9
    metrics = prediction_errors(arrays)
    assert metrics["energy_rmse_meV_per_atom"] == pytest.approx((2.5) ** 0.5)
    assert metrics["energy_mae_meV_per_atom"] == pytest.approx(1.5)
    assert metrics["stress_mae_MPa"] == pytest.approx(1.0)  # one of six components, not two of nine
    assert metrics["stress_rmse_MPa"] == pytest.approx(6 / 6**0.5)
    assert "forces_rmse_meV_per_Ang" not in metrics


def test_errors_in_the_unit_of_the_data_by_hand():
    arrays = {
        "n_atoms": np.array([1, 2]),
        "energy": np.array([1.0, 2.0]),
        "energy_ref": np.array([0.999, 2.004]),
        "forces": np.zeros((3, 3)),
        "forces_ref": np.full((3, 3), 1e-3),
    }
    data_units = {"energy": "kcal/mol", "forces": "Hartree/Bohr"}
    metrics = prediction_errors(arrays, data_units)
    assert prediction_errors(arrays).items() < metrics.items()
    # of whole structures: errors of 1 and 4 meV
    kcal = units.mol / units.kcal
    assert metrics["energy_mae_data_unit"] == pytest.approx(2.5e-3 * kcal, rel=1e-12)
    assert metrics["energy_rmse_data_unit"] == pytest.approx(8.5**0.5 * 1e-3 * kcal, rel=1e-12)
    atomic = units.Bohr / units.Hartree
    assert metrics["forces_rmse_data_unit"] == pytest.approx(1e-3 * atomic, rel=1e-12)
    table = format_table(
        {"test": metrics, "units": {"data": data_units}, "epochs": 1, "wall_s": 0.0}
    ).splitlines()
    assert re.split("  +", table[1])[1:] == [
        "energy [meV/atom]",
        "forces [meV/Å]",
        "energy [kcal/mol]",
        "forces [Hartree/Bohr]",
    ]
    assert re.split("  +", table[5])[3] == "0.06723 (0.05765)"
    assert table[-2:] == [
        "energies in kcal/mol are those of whole structures",
        "history.csv has eV/atom, eV/Ang, eV/Ang^3",
    ]


def test_empty_subsets_are_said_to_be_empty(tmp_path, database, caplog):
    data = {"n_train": 12, "n_val": 6, "n_test": 0}
    trainer, task, _ = toy_runs.run(tmp_path, database, 1, data=data)
    writer = next(c for c in trainer.callbacks if type(c).__name__ == "ResultsWriter")
    writer._evaluate(trainer, task)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test"] == {}
    assert "no test structures" in caplog.text
    assert "-" in format_table(metrics)


def test_what_is_not_finite_stays_out_of_metrics(database, tmp_path, caplog):
    trainer, task, _ = toy_runs.run(tmp_path, database, 1)
    with torch.no_grad():
        next(task.model.output_modules[0].parameters()).fill_(float("nan"))
    writer = next(c for c in trainer.callbacks if type(c).__name__ == "ResultsWriter")
    writer._evaluate(trainer, task)
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["val"] == {}
    assert "energy_rmse_meV_per_atom" in caplog.text


def test_evaluation_leaves_the_mode_of_the_task(database, tmp_path):
    _, task, datamodule = toy_runs.run(tmp_path, database, 1)
    task.train()
    predict_subset(task.model, datamodule, "val", NAMES)
    assert task.training
    assert torch.is_grad_enabled()


def test_table_of_symmetry_functions_is_a_file(tmp_path):
    functions = [SymmetryFunction("G2", (29,), 4.0, eta) for eta in (0.1, 0.2)]
    layout = Layout({"Cu": functions})
    task = SimpleNamespace(model=SimpleNamespace(representation=SimpleNamespace(descriptor=layout)))
    writer = ResultsWriter(str(tmp_path))
    trainer = SimpleNamespace(is_global_zero=False, ckpt_path=None)
    writer.on_fit_start(trainer, task)
    assert list(tmp_path.iterdir()) == []
    trainer.is_global_zero = True
    writer.on_fit_start(trainer, task)
    [file] = tmp_path.iterdir()
    assert file.name == "descriptor.txt"
    assert file.read_text() == f"{layout}\n"
    writer.on_fit_start(trainer, SimpleNamespace(model=toy_runs.toy_model()))


def test_energies_stored_as_plain_numbers(tmp_path, monkeypatch):
    """Other programs write databases so; they are read once, at the start."""
    path = toy_runs.write_database(tmp_path / "a.db", toy_runs.emt_structures(18))
    with connect(path) as database:
        metadata = database.metadata
        for row in list(database.select()):
            data = {**row.data, "energy": float(np.ravel(row.data["energy"])[0])}
            database.update(row.id, data=data)
        database.metadata = metadata
    monkeypatch.chdir(tmp_path)
    callback = ResultsWriter(str(tmp_path))
    trainer, task, data = toy_runs.run(tmp_path, path, 1, callbacks=[callback])
    trainer.test(task, datamodule=data, verbose=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["energy_rmse_meV_per_atom"]
