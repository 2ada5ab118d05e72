"""`import schnetpack_softadapt as spksa`: training and prediction in a few lines, and the commands
that do the same."""

import ast
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from schnetpack import cli as schnetpack_cli

import schnetpack_softadapt as spksa
from schnetpack_softadapt import api
from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.splitting import split_path

#: few and small functions
SMALL = (
    "model.representation.grid.n_radial=3",
    "model.representation.grid.n_angular_widths=1",
    "model.representation.grid.zetas=[1]",
    "data.store=false",
    "logger=acsf_quiet",
)
SETTINGS = {"cutoff": 4.0, "n_hidden": [4], "device": "cpu", "batch_size": 5, "seed": 3}


def labelled(atoms):
    atoms.calc = EMT()
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        labels["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def crystals(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[0] = "Au"
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        yield labelled(atoms)


def imported(frames, path):
    ase.io.write(path.with_suffix(".extxyz"), frames)
    assert main(["import", str(path.with_suffix(".extxyz")), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    # a name that a shell and Hydra's grammar must be told about
    return imported(list(crystals(20)), tmp_path_factory.mktemp("data") / "cu, au=1?.db")


@pytest.fixture(scope="module")
def run(database, tmp_path_factory):
    out = tmp_path_factory.mktemp("work") / "runs/alloy"
    return spksa.train(database, *SMALL, out=out, epochs=2, **SETTINGS)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- names


def test_every_name_is_there_and_known_to_type_checkers():
    assert set(spksa.__all__) <= set(dir(spksa))
    for name in spksa.__all__:
        assert getattr(spksa, name) is not None
    assert spksa.rules.SoftAdapt
    assert spksa.losses.EnergyLoss
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        spksa.trian  # noqa: B018
    tree = ast.parse(Path(spksa.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert {*seen, "__version__"} == set(spksa.__all__)


# --- training


def test_a_run_has_model_errors_and_history(run, database):
    assert isinstance(run.history, pd.DataFrame)
    assert run.history["epoch"].tolist() == [0, 1]
    assert run.metrics["epochs"] == 2
    assert run.report().read_text().startswith("<!DOCTYPE html>")
    with np.load(run.folder / "split.npz") as split:
        test = split["test_idx"]
    frames = ase.io.read(database.with_suffix(".extxyz"), ":")
    found = spksa.predict(run.model, [frames[k] for k in test])
    for name, error in found.errors.items():
        # descriptors and network in float32 in training, all in float64 here
        assert run.metrics["test"][name] == pytest.approx(error, rel=5e-4)


def test_training_is_that_of_spktrain(run, database, monkeypatch):
    arguments = api.spktrain_arguments(database, SMALL, out="runs/same", epochs=2, **SETTINGS)
    monkeypatch.setattr(sys, "argv", ["spktrain", *arguments])
    schnetpack_cli.train()
    same = spksa.Run("runs/same")
    columns = run.history.columns.drop("wall_s")
    pd.testing.assert_frame_equal(run.history[columns], same.history[columns], check_exact=True)


def test_the_same_call_goes_on(database):
    for epochs in (1, 3):
        run = spksa.train(database, *SMALL, out="longer", epochs=epochs, **SETTINGS)
        assert run.history["epoch"].tolist() == list(range(epochs))
    assert run.folder == Path("longer").resolve()


def test_starts_from_a_run(run, database):
    """With steps of no length it stays the model that it started from, but for the constants."""
    still = ["task.optimizer_args.lr=0", "seed=7", "data.split_seed=7", "logger=acsf_quiet"]
    settings = {"epochs": 1, "device": "cpu", "batch_size": 5, "start_from": run.folder}
    frames = ase.io.read(database.with_suffix(".extxyz"), ":")
    old = spksa.predict(run.model, frames)
    for k, form in enumerate(([], [*SMALL, "globals.cutoff=4", "globals.n_hidden=[4]"])):
        new = spksa.train(database, *form, *still, out=f"new{k}", **settings)
        same = spksa.predict(new.model, frames)
        np.testing.assert_allclose(np.ptp(same.energy - old.energy), 0.0, atol=[1e-6, 1e-4][k])
        np.testing.assert_allclose(same.forces, old.forces, rtol=0, atol=[1e-7, 1e-4][k])
    assert np.ptp(old.energy) > 0.1
    with pytest.raises(ValueError, match="there is no model at"):
        spksa.train(database, *SMALL, out="none", start_from="nowhere", **SETTINGS)


@pytest.mark.parametrize("model", ["painn", "schnet"])
def test_models_of_schnetpack(database, model, capsys):
    settings = {k: v for k, v in SETTINGS.items() if k != "n_hidden"}
    small = ["model.representation.n_atom_basis=4", "model.representation.n_interactions=1"]
    run = spksa.train(database, *small, model=model, epochs=1, max_time="1h", **settings)
    assert run.folder == Path("runs/cu, au=1?").resolve()
    assert type(run.model.representation).__name__.lower() == model
    assert run.metrics["test"]["stress_rmse_MPa"] > 0
    with pytest.raises(ValueError, match="only models whose representation is a descriptor"):
        spksa.train(database, start_from=run.folder)
    capsys.readouterr()
    assert main(["info", str(run.folder)]) == 0
    assert "outputs      energy, forces, stress" in capsys.readouterr().out


def test_molecules_have_a_recipe_of_their_own(tmp_path):
    water = [labelled(molecule("H2O")) for _ in range(2)]
    alone = imported(water, tmp_path / "water.db")
    assert api.spktrain_arguments(alone)[0] == "experiment=molecule_softadapt"
    assert api.spktrain_arguments(alone, model="painn") == [
        "experiment=molecule_painn_softadapt",
        f"data.datapath={alone}",
        "run.id=water",
    ]
    # a crystal beside single atoms, as many sets have them
    mixed = imported([*water, *crystals(2)], tmp_path / "mixed.db")
    assert api.spktrain_arguments(mixed)[0] == "experiment=recommended_softadapt"


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90s", "00:00:01:30"),
        ("1.5h", "00:01:30:00"),
        ("2 d", "02:00:00:00"),
        (61, "00:00:01:01"),
        (timedelta(minutes=3), "00:00:03:00"),
        ("01:02:03:04", "01:02:03:04"),
    ],
)
def test_times(database, time, expected):
    arguments = api.spktrain_arguments(database, max_time=time)
    assert arguments[-1] == f"+trainer.max_time='{expected}'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "equally"}, "Could not find 'task/weighting/equally' Available options"),
        ({"model": "gap"}, "model 'gap' is none of acsf, ace, painn, schnet"),
        ({"max_time": "soon"}, "max_time 'soon' is none of 90s"),
        ({"cutoff": -1.0}, "cutoff"),
        ({"num_train": 30}, "30"),
    ],
)
def test_a_wrong_value_is_one_line(database, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        spksa.train(database, *SMALL, **{"device": "cpu", **settings})
    assert "\n" not in str(error.value)


def test_a_wrong_key_or_database_is_one_line(database, tmp_path):
    with pytest.raises(ValueError, match="Could not override 'epochs'") as error:
        spksa.train(database, "epochs=3")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no database at nowhere.db; `spk-softadapt imp"):
        spksa.train("nowhere.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(ValueError, match=r"text.db is no database of structures"):
        spksa.train(tmp_path / "text.db")


# --- prediction


def test_predictions_of_a_file_of_structures_and_of_one(run, database):
    frames = list(crystals(3))
    ase.io.write("three.extxyz", frames)
    found = spksa.predict(run.folder, "three.extxyz", "out.extxyz")
    assert found.energy.shape == (3,)
    assert [len(forces) for forces in found.forces] == [4, 4, 4]
    assert found.stress.shape == (3, 6)
    assert "3 structures, 12 atoms" in str(found)
    assert ase.io.read("out.extxyz", 2).get_potential_energy() == pytest.approx(found.energy[2])

    calculator = spksa.SoftAdaptCalculator(run.model)
    single = spksa.predict(spksa.load(run.folder / "best_model"), frames[1])
    atoms = frames[1].copy()
    atoms.calc = calculator
    # positions of the file have 8 digits, those of `frames` all
    for values in (found.energy[1], single.energy[0]):
        assert values == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(single.forces[0], atoms.get_forces(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(single.stress[0], atoms.get_stress(), rtol=0, atol=1e-12)
    labels = frames[1].calc.results
    np.testing.assert_allclose(
        single.errors["forces_rmse_meV_per_Ang"],
        1e3 * np.sqrt(((single.forces[0] - labels["forces"]) ** 2).mean()),
        rtol=1e-12,
    )


def test_predictions_without_labels_and_without_stress(run):
    alone = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])
    found = spksa.predict([run.model, run.folder], [alone])
    assert np.isnan(found.stress).all()
    assert found.errors == {}
    assert str(found) == "1 structures, 2 atoms, without labels"


# --- the same as commands


def test_commands(run, database, capsys):
    options = ["--epochs", "1", "--time", "1h", "--cutoff", "4", "--device", "cpu"]
    more = ["globals.n_hidden=[3]", "data.batch_size=5"]
    assert main(["train", str(database), *SMALL, *options, "--out", "fast", *more]) == 0
    text = capsys.readouterr().out
    assert text.startswith("spktrain experiment=recommended_softadapt 'data.datapath=")
    assert f"spk-softadapt report {Path('fast').resolve()}" in text
    file = str(database.with_suffix(".extxyz"))
    assert main(["predict", "fast", file, "--out", "p.extxyz"]) == 0
    assert "20 structures, 80 atoms" in capsys.readouterr().out
    assert len(ase.io.read("p.extxyz", ":")) == 20
    assert main(["predict", "fast", file, "--out", "p.extxyz"]) == 2
    assert "p.extxyz exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(database), "--epoch_s", "3"])
    assert "unrecognized arguments: --epoch_s" in capsys.readouterr().err
    assert main(["train", str(database), "--model", "gap"]) == 2
    assert "spk-softadapt train: model 'gap' is none of" in capsys.readouterr().err


def test_info_is_one_screen(run, database, capsys):
    assert main(["export", str(run.folder), "--out", "n2p2"]) == 0
    two = [str(run.folder)] * 2
    assert main(["export", *two, "--format", "lammps", "--out", "committee"]) == 0
    shutil.copy(database, "my.db")
    shutil.copy(run.folder / "split.npz", split_path("my.db"))
    expected = {
        str(run.folder): [
            "recipe       representation ACSF, optimizer KalmanFilter, weights SoftAdapt",
            "epochs       2, best",
            "alloy, test",
        ],
        str(run.folder / "best_model"): ["elements     Cu, Au", "cutoff       4 Ang", "energy eV"],
        "n2p2": ["elements     Cu, Au", "parameters", "read from potential.json"],
        "committee": ["committee    of 2 models", "elements     Cu, Au"],
        "my.db": [
            "structures   20 (20 with forces, 20 with stress)",
            "atoms        80: Cu 60",
            "labels       energy eV, forces eV/Ang",
            "split        training 16, validation 2, test 2",
        ],
    }
    capsys.readouterr()
    for path, texts in expected.items():
        assert main(["info", path]) == 0
        shown = capsys.readouterr().out
        for text in texts:
            assert text in shown
        assert len(shown.splitlines()) < 40
    assert main(["info", "nowhere"]) == 2
    assert "there is nothing at nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(("cell", "n_labels"), [(True, 1 + 12 + 6), (False, 1 + 12)])
def test_functions_of_a_linear_model_follow_from_the_labels(tmp_path, cell, n_labels):
    frames = list(crystals(10))
    for atoms in frames:
        atoms.pbc = atoms.pbc & cell
        if not cell:
            atoms.calc.results.pop("stress")
    database = imported(frames, tmp_path / "my.db")
    # a fourth of the labels, for the coefficients of two elements
    own = f"model.representation.parameters.n_functions={10 * n_labels // 8}"
    given = ["model.representation.parameters.n_functions=7"]
    for overrides, model, expected in (
        ([], "linear", [own]), (given, "linear", given), ([], "ace", []),
    ):  # fmt: skip
        arguments = spksa.api.spktrain_arguments(database, overrides, model)
        assert [x for x in arguments if "n_functions" in x] == expected


def test_a_database_without_labels_has_no_linear_model(tmp_path):
    with ase.db.connect(tmp_path / "bare.db") as bare:
        bare.write(bulk("Cu"))
    with pytest.raises(ValueError, match="no labelled structures"):
        spksa.api.functions_for(tmp_path / "bare.db")
