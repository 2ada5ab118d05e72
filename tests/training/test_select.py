"""Functions that are chosen before training: in the store, on a resume, in what is made of it."""

import csv
import logging

import numpy as np
import pytest
import torch
import toy_runs
from ase.calculators.fd import calculate_numerical_forces

from schnetpack_softadapt.api import load
from schnetpack_softadapt.cli.main import main as spk_softadapt
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.protocol import read_descriptor
from schnetpack_softadapt.descriptors.selection import sample_values, select_columns
from schnetpack_softadapt.model import (
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    ForcesAndStress,
    representation,
)

GRID = {"n_radial": 5, "n_angular_widths": 1, "zetas": [1, 2]}  # 22 functions
SELECT = 6


def task(select=SELECT):
    torch.manual_seed(0)
    model = DescriptorPotential(
        representation=ACSF(toy_runs.CUTOFF, grid=GRID, select=select),
        output_modules=[ElementalAtomwise(n_hidden=[4, 3]), ForcesAndStress(True, True)],
    )
    return toy_runs.toy_task(model)


def run(folder, database, epochs, store=False, **kwargs):
    data = {"store": store, "store_dir": str(folder / "descriptors")}
    return toy_runs.run(folder, database, epochs, data=data, task=task(**kwargs))


@pytest.mark.parametrize("store", [True, False])
def test_a_resumed_run_has_the_same_functions_and_history(database, tmp_path, caplog, store):
    caplog.set_level(logging.INFO, "schnetpack_softadapt")
    _, whole, data = run(tmp_path / "whole", database, 3, store)
    descriptor = whole.model.representation.descriptor
    assert descriptor.n_functions == {29: SELECT, 79: SELECT}
    assert "kept 6 of 22 symmetry functions of Cu, 6 of 22 symmetry functions of Au" in caplog.text
    if store:
        assert data.train_dataset[0]["_descriptors"].shape[1] == SELECT
    run(tmp_path / "parts", database, 2, store)
    _, resumed, _ = run(tmp_path / "parts", database, 3, store)
    assert resumed.model.representation.descriptor == descriptor
    for a, b in zip(*map(toy_runs.history, (tmp_path / "whole", tmp_path / "parts")), strict=True):
        assert {k: v for k, v in a.items() if k != "wall_s"} == {
            k: v for k, v in b.items() if k != "wall_s"
        }
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_choice_is_by_training_atoms(database, tmp_path):
    _, trained, data = run(tmp_path, database, 1)
    pool = default_layout(["Cu", "Au"], toy_runs.CUTOFF, **GRID)
    structures = data.train_dataset.structures()
    geometry = [(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
    values = sample_values(pool, geometry)
    columns = {z: select_columns(x, SELECT) for z, x in values.items()}
    assert len(values[29]) == sum((s.numbers == 29).sum() for s in structures)
    chosen = trained.model.representation
    assert chosen.descriptor == pool.select(columns)
    assert chosen.selected.tolist() == list(columns.values())


def test_a_checkpoint_with_other_functions_is_refused(database, tmp_path, monkeypatch):
    run(tmp_path, database, 1)
    with pytest.raises(ValueError, match="other symmetry functions than `select` chooses now"):
        run(tmp_path, database, 2, select=SELECT - 1)
    monkeypatch.setattr(representation, "select_columns", lambda x, n: list(range(n)))
    with pytest.raises(ValueError, match="other symmetry functions than `select` chooses now"):
        run(tmp_path, database, 2)


def test_a_model_of_chosen_functions_predicts_and_is_exported(database, tmp_path):
    run(tmp_path, database, 1)
    atoms = toy_runs.emt_structures(1, seed=9)[0]
    atoms.calc = SoftAdaptCalculator(tmp_path / "best_model")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    numerical = calculate_numerical_forces(atoms, 1e-4, [0, 2])
    np.testing.assert_allclose(forces[[0, 2]], numerical, atol=1e-6)
    write_potential(load(tmp_path), tmp_path / "n2p2")
    atoms.calc = SoftAdaptCalculator(tmp_path / "n2p2")
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="select=0 is no number of functions"):
        task(select=0)


def test_command(database, tmp_path, capsys):
    """A layout from the command is that which `select` chooses, and the config takes it."""
    settings = [f"model.representation.grid.{k}={v}".replace(" ", "") for k, v in GRID.items()]
    settings += [f"globals.cutoff={toy_runs.CUTOFF}", "globals.n_hidden=[4,3]"]
    out, table = tmp_path / "layout.json", tmp_path / "histograms.csv"
    options = ["--n", str(SELECT), "--out", str(out), "--histograms", str(table)]
    assert spk_softadapt(["select-functions", str(database), *options, *settings]) == 0
    text = capsys.readouterr().out
    assert "18 (all) structures" in text
    assert f"Cu: {SELECT} of 22 symmetry functions kept, judged by" in text
    layout = read_descriptor(out)
    assert layout.n_functions == {29: SELECT, 79: SELECT}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 44
    assert sum(int(row["kept"]) for row in rows) == 2 * SELECT
    atoms_of = {"Cu": 0, "Au": 0}
    for atoms in toy_runs.emt_structures(18):
        for symbol in atoms.symbols:
            atoms_of[symbol] += 1
    for row in rows:
        counts = [int(row[f"bin_{k}"]) for k in range(200)]
        assert sum(counts) == atoms_of[row["element"]]
        assert not any(counts) or float(row["minimum"]) < float(row["maximum"])

    # the run's own training set, by `select` and by the command on the run
    options = ["--out", str(tmp_path / "run"), "--epochs", "1"]
    chosen = [*settings, f"model.representation.select={SELECT}"]
    assert spk_softadapt(["train", str(database), *options, *chosen]) == 0
    command = ["select-functions", str(tmp_path / "run"), "--n", str(SELECT)]
    assert spk_softadapt([*command, "--out", str(out)]) == 2  # it is there already
    picture = tmp_path / "histograms.png"
    command += ["--out", str(out), "--overwrite", "--histograms", str(picture)]
    assert spk_softadapt(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    in_model = load(tmp_path / "run").representation.descriptor
    assert read_descriptor(out) == in_model

    options = ["--out", str(tmp_path / "from_file"), "--epochs", "1"]
    given = [*settings, f"model.representation.layout={out}"]
    assert spk_softadapt(["train", str(database), *options, *given]) == 0
    assert load(tmp_path / "from_file").representation.descriptor == in_model
