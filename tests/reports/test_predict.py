"""Predictions computed from a stock SchNetPack run, through its own loading of model and data."""

import os

import numpy as np
import pytest
import schnetpack
import torch
from ase import Atoms, units
from schnetpack.data import ASEAtomsData
from schnetpack.transform import AddOffsets, CastTo64

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.reports.predict import predict_missing

KCAL = units.kcal / units.mol
SPLIT = {"train_idx": [5, 0, 3], "val_idx": [1, 4], "test_idx": [2]}

CONFIG = """
run: {work_dir: "${hydra:runtime.cwd}", data_dir: "${run.work_dir}/data", id: run}
globals: {cutoff: 4.0, energy_key: energy, forces_key: forces}
data:
  _target_: schnetpack.data.AtomsDataModule
  datapath: ${run.data_dir}/argon.db
  batch_size: 2
  num_train: 3
  num_val: 2
  num_workers: 4
  train_sampler_cls: null
  property_units: {energy: kcal/mol, forces: kcal/mol/Ang}
  transforms:
    - {_target_: schnetpack.transform.RemoveOffsets, property: energy, remove_mean: true}
    - {_target_: schnetpack.transform.ASENeighborList, cutoff: "${globals.cutoff}"}
    - {_target_: schnetpack.transform.CastTo32}
task: {_target_: schnetpack.AtomisticTask}
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """work/runs/run and work/data/argon.db as spktrain leaves them; references in eV."""
    work = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(2)
    (work / "data").mkdir()
    (work / "runs" / "run").mkdir(parents=True)
    references = []
    systems, properties = [], []
    for k in range(6):
        n = 3 + k
        cell = np.diag([6.0, 6.0, 6.0])
        systems.append(Atoms(f"Ar{n}", positions=rng.uniform(0, 6, (n, 3)), cell=cell, pbc=True))
        references.append((rng.normal(-5.0 * n, 0.1), rng.normal(size=(n, 3))))
        energy, forces = references[-1]
        properties.append({"energy": np.array([energy]), "forces": forces})
    data = ASEAtomsData.create(
        str(work / "data" / "argon.db"),
        distance_unit="Ang",
        property_unit_dict={"energy": "eV", "forces": "eV/Ang"},
    )
    data.add_systems(properties, systems)
    data.update_metadata(groups_ids={"group": [0, 1, 0, 1, 0, 1]}, group_names=["gas", "liquid"])
    run = work / "runs" / "run"
    (run / "config.yaml").write_text(CONFIG)
    np.savez(run / "split.npz", **SPLIT)
    torch.manual_seed(0)
    basis = schnetpack.nn.GaussianRBF(n_rbf=5, cutoff=4.0)
    model = schnetpack.model.NeuralNetworkPotential(
        representation=schnetpack.representation.SchNet(
            n_atom_basis=4,
            n_interactions=1,
            radial_basis=basis,
            cutoff_fn=schnetpack.nn.CosineCutoff(4.0),
        ),
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        output_modules=[
            schnetpack.atomistic.Atomwise(n_in=4, output_key="energy"),
            schnetpack.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
        # -100 kcal/mol per atom, as training would have found from the data
        postprocessors=[
            CastTo64(),
            AddOffsets("energy", add_mean=True, property_mean=torch.tensor([-100.0])),
        ],
    )
    torch.save(model, run / "best_model")
    return run, systems, references, model


def test_predictions_of_a_stock_run(stock, capsys):
    run, systems, references, model = stock
    before = os.getcwd()
    assert main(["report", str(run), "--predict"]) == 0
    assert os.getcwd() == before
    assert "training" in capsys.readouterr().out
    converter = schnetpack.interfaces.AtomsConverter(
        neighbor_list=schnetpack.transform.ASENeighborList(cutoff=4.0), dtype=torch.float32
    )
    for subset in ("train", "val", "test"):
        arrays = dict(np.load(run / "predictions" / f"{subset}.npz"))
        indices = sorted(SPLIT[f"{subset}_idx"])
        assert arrays["index"].tolist() == indices
        assert arrays["n_atoms"].tolist() == [len(systems[k]) for k in indices]
        # References are what went into the database: no offset taken off, units converted back.
        # float64 and two conversions: 1e-10
        energies = [references[k][0] for k in indices]
        assert arrays["energy_ref"] == pytest.approx(energies, rel=1e-10)
        forces = np.concatenate([references[k][1] for k in indices])
        assert arrays["forces_ref"] == pytest.approx(forces, rel=1e-10)
        assert "stress" not in arrays
        names = arrays["group_names"][arrays["group"]].tolist()
        assert names == [["gas", "liquid"][k % 2] for k in indices]
        # Predictions are those of the model on each structure alone; the network is float32 and
        # sums in another order in a batch.
        for k, energy in zip(indices, arrays["energy"], strict=True):
            result = model(converter(systems[k]))
            assert energy == pytest.approx(result["energy"].item() * KCAL, rel=1e-6)
    result = model(converter(systems[2]))
    expected = result["forces"].detach().numpy() * KCAL
    # forces below float32 rounding of sums around 1 kcal/mol/Ang do not count
    assert arrays["forces"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_existing_predictions_stay(stock):
    run = stock[0]
    predict_missing(run)
    times = {path: path.stat().st_mtime_ns for path in (run / "predictions").iterdir()}
    (run / "predictions" / "val.npz").unlink()
    assert predict_missing(run) == [run / "predictions" / "val.npz"]
    assert predict_missing(run) == []
    for path in ("train.npz", "test.npz"):
        file = run / "predictions" / path
        assert file.stat().st_mtime_ns == times[file]


@pytest.mark.parametrize("name", ["best_model", "split.npz", "config.yaml"])
def test_what_is_missing_is_named(stock, tmp_path, name):
    run = tmp_path / "runs" / "copy"
    run.mkdir(parents=True)
    for file in ("best_model", "split.npz", "config.yaml"):
        if file != name:
            (run / file).write_bytes((stock[0] / file).read_bytes())
    database = stock[0].parent.parent / "data" / "argon.db"
    with pytest.raises(ValueError, match=name):
        predict_missing(run, datapath=database)


def test_what_is_damaged_is_named(stock, tmp_path, capsys):
    run = tmp_path / "runs" / "copy"
    run.mkdir(parents=True)
    (run / "split.npz").write_bytes((stock[0] / "split.npz").read_bytes())
    (run / "config.yaml").write_text(CONFIG.replace("data.AtomsDataModule", "data.Nothing"))
    (run / "best_model").write_bytes(b"half a pickle")
    assert main(["report", str(run), "--predict"]) == 2
    assert f"{run / 'best_model'} cannot be loaded" in capsys.readouterr().err
    (run / "best_model").write_bytes((stock[0] / "best_model").read_bytes())
    assert main(["report", str(run), "--predict"]) == 2
    assert f"{run / 'config.yaml'}, section data" in capsys.readouterr().err


def test_moved_database(stock, tmp_path):
    run = tmp_path / "runs" / "copy"
    run.mkdir(parents=True)
    for file in ("best_model", "split.npz", "config.yaml"):
        (run / file).write_bytes((stock[0] / file).read_bytes())
    with pytest.raises(ValueError, match=r"argon\.db are not there; give their place with --data"):
        predict_missing(run)
    database = stock[0].parent.parent / "data" / "argon.db"
    assert len(predict_missing(run, datapath=database)) == 3


def test_relative_database(stock, tmp_path):
    run = tmp_path / "runs" / "copy"
    run.mkdir(parents=True)
    for file in ("best_model", "split.npz"):
        (run / file).write_bytes((stock[0] / file).read_bytes())
    (run / "config.yaml").write_text(CONFIG.replace("${run.data_dir}/argon.db", "my.db"))
    database = stock[0].parent.parent / "data" / "argon.db"
    (tmp_path / "my.db").write_bytes(database.read_bytes())
    assert len(predict_missing(run)) == 3
