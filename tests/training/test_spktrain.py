"""The way of a user: import a file, `spktrain`, report."""

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import toy_runs
from ase.calculators.singlepoint import SinglePointCalculator
from schnetpack import cli

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

#: a network and symmetry functions that train in a moment
SMALL = [
    "data.store=false",
    "trainer.accelerator=cpu",
    "globals.cutoff=4.0",
    "globals.n_hidden=[4]",
    "model.representation.grid.n_radial=3",
    "model.representation.grid.n_angular_widths=1",
    "model.representation.grid.zetas=[1]",
    "print_config=false",
    "run.id=run",
]


def labelled(n):
    """EMT structures as a file holds them."""
    out = []
    for atoms in toy_runs.emt_structures(n):
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


def test_from_import_to_report(tmp_path, capsys):
    """A new process for `spktrain`, since Hydra owns logging and working directory in its own."""
    structures = labelled(10)
    ase.io.write("cuau.extxyz", structures)
    assert main(["import", "cuau.extxyz", "--out", "cuau.db"]) == 0
    settings = [
        "experiment=acsf_softadapt",
        "data.datapath=cuau.db",
        "data.batch_size=4",
        "data.num_train=6",
        "data.num_val=2",
        "data.num_test=2",
        "trainer.max_epochs=3",
        "trainer.accelerator=cpu",
        "globals.cutoff=4.0",
        "globals.n_hidden=[4]",
        "model.representation.grid.n_radial=3",
        "model.representation.grid.n_angular_widths=1",
        "model.representation.grid.zetas=[1]",
    ]
    command = [Path(sys.executable).with_name("spktrain"), *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not available" not in done.stderr  # Hydra's warning about the search path
    run = tmp_path / "runs" / "acsf_softadapt"
    assert [row["epoch"] for row in toy_runs.history(run)] == [0, 1, 2]
    metrics = json.loads((run / "metrics.json").read_text())

    # from the stored descriptors in training, and from the saved model on the structures
    with np.load(run / "split.npz") as split:
        test = [structures[k] for k in split["test_idx"]]
    calculator = SoftAdaptCalculator(run / "best_model")
    errors = []
    for atoms in test:
        reference = atoms.get_forces()
        atoms.calc = calculator
        errors.append((atoms.get_forces() - reference).ravel())
    rmse = 1e3 * np.sqrt(np.mean(np.concatenate(errors) ** 2))
    # float32 in training, float64 in the calculator
    assert metrics["test"]["forces_rmse_meV_per_Ang"] == pytest.approx(rmse, rel=1e-5)

    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "test" in capsys.readouterr().out
    (content,) = json.loads((run / "report" / "report.json").read_text())["runs"]
    assert content["finished"]
    assert content["notes"] == []
    (row,) = [
        row
        for row in content["errors"]
        if (row["selection"], row["subset"], row["quantity"]) == ("all", "test", "forces")
    ]
    assert row["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert row["n"] == sum(3 * len(atoms) for atoms in test)


def test_shear_stress_has_a_weight_of_its_own(database, tmp_path, monkeypatch):
    """One override of the recipe, with its Kalman filter; errors are those of the whole stress."""
    settings = [
        "experiment=recommended_softadapt",
        "+task.outputs.2.split=normal_shear",
        f"data.datapath={database}",
        "task/weighting=likelihood",
        "data.num_train=10",
        "data.num_val=4",
        "data.num_test=4",
        "data.batch_size=5",
        "trainer.max_epochs=2",
        *SMALL,
        f"run.path={tmp_path}",
    ]
    monkeypatch.setattr(sys, "argv", ["spktrain", *settings])
    cli.train()
    first, second = toy_runs.history(tmp_path / "run")
    names = ["weight_energy", "weight_forces", "weight_stress_normal", "weight_stress_shear"]
    assert [key for key in first if key.startswith("weight_")] == names
    assert first["weight_stress_normal"] == pytest.approx(first["weight_stress_shear"], rel=1e-12)
    assert second["weight_stress_normal"] != second["weight_stress_shear"]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())["test"]
    assert {key.split("_")[0] for key in metrics} == {"energy", "forces", "stress"}
    assert main(["report", str(tmp_path / "run")]) == 0
    content = json.loads((tmp_path / "run/report/report.json").read_text())["runs"][0]
    assert {row["quantity"] for row in content["errors"]} == {"energy", "forces", "stress"}


def test_recipe_chooses_optimizer_and_epochs(database, tmp_path, monkeypatch):
    """SPRING for a large network, as many epochs as it takes; then the run is extended."""
    settings = [
        "experiment=recommended_softadapt",
        "task.optimizer_args.kalman_up_to=10",
        "task.optimizer_args.spring_epochs=2",
        f"data.datapath={database}",
        "data.num_train=8",
        "data.num_val=2",
        "data.num_test=2",
        *SMALL,
        f"run.path={tmp_path}",
    ]
    for more, epochs in (([], 2), ([], 2), (["trainer.max_epochs=3"], 3)):
        monkeypatch.setattr(sys, "argv", ["spktrain", *settings, *more])
        cli.train()
        rows = toy_runs.history(tmp_path / "run")
        assert [row["epoch"] for row in rows] == list(range(epochs))
        config = (tmp_path / "run/config.yaml").read_text()
        assert f"max_epochs: {epochs}\n" in config
        assert "optimizer_cls: schnetpack_softadapt.training.optimizers.spring.Spring\n" in config
    # half a cosine over two epochs, then the third of three
    assert [row["lr"] for row in rows] == pytest.approx([0.5, 0.25, 0.125], rel=1e-9)
