import importlib.util
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.db import connect
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.importing.checks import raise_problems
from schnetpack_softadapt.data.mote2 import (
    MoTe2DataModule,
    create_mote2_database,
    mote2_structures,
)

CONFIGS = Path(importlib.util.find_spec("schnetpack_softadapt.configs").origin).parent


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return create_mote2_database(tmp_path_factory.mktemp("mote2") / "data" / "mote2_pbe.db")


def test_the_shipped_set_is_what_its_provenance_says(database):
    structures = read_database(database)
    raise_problems(structures)
    assert len(structures) == 645
    assert sum(s.n_atoms for s in structures) == 2913
    assert [sum(s.group == g for s in structures) for g in ("2H", "1Tp")] == [319, 326]
    energy = np.array([s.energy / s.n_atoms for s in structures])
    forces = np.concatenate([s.forces for s in structures])
    stress = np.array([s.stress_voigt for s in structures]) / (1e-3 * units.GPa)
    # as the README rounds them
    assert round(1e3 * energy.std()) == 130
    assert round(1e3 * forces.std()) == 1173
    assert round(stress.std()) == 2742
    with connect(database) as connection:
        metadata = connection.metadata
    assert "Pulay" in metadata["provenance"]
    assert len(set(metadata["groups_ids"]["strain_state"])) == 227


def test_tension_is_positive():
    """Unperturbed 2H cells: the stress of the stretched one is larger than of the compressed."""
    cells = [s for s in mote2_structures() if s.group == "2H"]
    stretched = max(cells, key=lambda s: s.volume)
    compressed = min(cells, key=lambda s: s.volume)
    assert stretched.stress[0, 0] > 0 > compressed.stress[0, 0]


def test_default_split_keeps_strain_states_together(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datamodule = MoTe2DataModule(str(database))
    datamodule.setup()
    states = np.array(datamodule.dataset.metadata["groups_ids"]["strain_state"])
    parts = [datamodule.train_idx, datamodule.val_idx, datamodule.test_idx]
    assert sorted(k for part in parts for k in part) == list(range(645))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not set(states[parts[a]]) & set(states[parts[b]])
    for part, fraction in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(part) / 645 - fraction) < 0.01
    # the same split in every run: numbers in the README belong to it
    assert parts[2][:5] == [10, 11, 12, 13, 14]


def test_processes_that_start_together_make_one_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def slow():
        time.sleep(0.5)  # long enough that all processes have started
        return mote2_structures()

    monkeypatch.setattr("schnetpack_softadapt.data.mote2.mote2_structures", slow)
    context = multiprocessing.get_context("fork")  # no second import of everything
    processes = [context.Process(target=create_mote2_database, args=["m.db"]) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(read_database("m.db")) == 645
    assert [p.name for p in tmp_path.iterdir()] == ["m.db"]


def test_the_config_needs_no_argument(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONFIGS), version_base="1.2"):
        config = compose(
            "data/mote2_pbe",
            overrides=[f"+run.data_dir={database.parent}", "+globals.cutoff=5.0"],
        )
    datamodule = instantiate(config.data)
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert len(batch["energy"]) == 10
    assert batch["_offsets"].dtype == batch["_positions"].dtype


def test_another_version_of_the_set_is_pointed_out(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    create_mote2_database("mote2.db")
    monkeypatch.setattr("schnetpack_softadapt.data.mote2._source_hash", lambda: "newer")
    MoTe2DataModule("mote2.db").setup()
    assert "another version of the MoTe2 set" in caplog.text
