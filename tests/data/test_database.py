"""Our databases through SchNetPack's own classes, whose rules about shapes and units are strict."""

import contextlib
import dataclasses
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.db import connect
from emt_structures import labelled_structures
from schnetpack import properties
from schnetpack.data import ASEAtomsData, AtomsDataModule
from schnetpack.transform import MatScipyNeighborList
from schnetpack.units import convert_units

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.dataset import InMemoryAtomsData, read_database


def test_numbers_survive_schnetpacks_own_data_module(tmp_path, structures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structures[2] = dataclasses.replace(structures[2], stress=None)
    write_database("my.db", structures, "test")
    datamodule = AtomsDataModule(
        "my.db",
        batch_size=4,
        num_train=4,
        num_val=1,
        num_workers=0,
        transforms=[MatScipyNeighborList(cutoff=3.0)],
    )
    datamodule.setup()
    seen = 0
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        for batch in loader:
            assert batch[properties.stress].shape == (len(batch[properties.idx]), 3, 3)
            for k, index in enumerate(batch[properties.idx].tolist()):
                s, atoms = structures[index], batch[properties.idx_m] == k
                assert batch[properties.energy][k].item() == s.energy
                assert np.array_equal(batch[properties.forces][atoms], s.forces)
                assert np.array_equal(batch[properties.R][atoms], s.positions)
                assert np.array_equal(batch[properties.cell][k], s.cell)
                stress = np.zeros((3, 3)) if s.stress is None else s.stress
                assert np.array_equal(batch[properties.stress][k], stress)
                assert batch[keys.stress_mask][k].item() == (index != 2)
                seen += 1
    assert seen == 5


def test_units_are_written_so_that_schnetpack_can_convert_them(tmp_path, structures):
    path = str(tmp_path / "my.db")
    write_database(path, structures, "test")
    units = ASEAtomsData(path).units
    assert convert_units(units[properties.energy], "kcal/mol") > 23
    assert convert_units(units[properties.stress], "GPa") == pytest.approx(160.21766, rel=1e-7)
    converted = ASEAtomsData(
        path, property_units={"energy": "Ha", "stress": "GPa"}, distance_unit="Bohr"
    )[0]
    assert converted[properties.energy].item() * 27.2113862 == pytest.approx(
        structures[0].energy, rel=1e-7
    )
    ours = InMemoryAtomsData(
        path, property_units={"energy": "Ha", "stress": "GPa"}, distance_unit="Bohr"
    )
    for key, value in converted.items():
        assert torch.equal(ours[0][key], value), key
    assert ours.units == ASEAtomsData(path, property_units={"energy": "Ha", "stress": "GPa"}).units


def test_our_data_set_gives_the_samples_of_schnetpacks(tmp_path, structures):
    path = str(tmp_path / "my.db")
    write_database(path, structures, "test")
    stock, ours = ASEAtomsData(path), InMemoryAtomsData(path)
    assert len(ours) == len(stock)
    for k in range(len(stock)):
        sample = ours[k]
        assert set(sample) - set(stock[k]) == {keys.group}
        for key, value in stock[k].items():
            assert sample[key].dtype == value.dtype
            assert torch.equal(sample[key], value)
    ours, stock = ours.subset([4, 1]).subset([1]), stock.subset([4, 1]).subset([1])
    assert ours[0][properties.idx].item() == stock[0][properties.idx].item() == 1
    for mine, theirs in zip(
        ours.iter_properties(load_properties=["energy"]),
        stock.iter_properties(load_properties=["energy"]),
        strict=True,
    ):
        assert set(mine) == set(theirs)


def test_an_empty_subset_is_empty(tmp_path, structures):
    """SchNetPack's iter_properties takes an empty subset for the whole set."""
    write_database(tmp_path / "my.db", structures, "test")
    empty = InMemoryAtomsData(str(tmp_path / "my.db")).subset([])
    assert len(empty) == 0
    assert list(empty.iter_properties()) == []


def test_metadata_say_what_the_numbers_mean(tmp_path, structures):
    write_database(tmp_path / "my.db", structures, "made by the test", groups={"pair": "aabbcc"})
    with connect(tmp_path / "my.db") as database:
        metadata = database.metadata
    assert metadata["elements"] == ["Cu", "Au"]
    assert "positive = tension" in metadata["stress_convention"]
    assert metadata["provenance"] == "made by the test"
    assert metadata["group_names"] == ["family 0", "family 1"]
    assert metadata["groups_ids"] == {
        "group": [0, 1, 0, 1, 0, 1],
        "strain_state": [0, 0, 1, 1, 2, 2],
        "pair": [0, 0, 1, 1, 2, 2],
    }


def test_the_fingerprint_follows_the_structures(tmp_path):
    prints = [
        write_database(tmp_path / f"{k}.db", labelled_structures(2, seed), "test")
        for k, seed in enumerate((0, 0, 1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_nothing_is_left_of_a_failed_write(tmp_path, structures, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    path = tmp_path / "my.db"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_database(path, structures, "test", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["my.db"]
    assert path.read_text() == "old"


def test_an_existing_database_is_replaced_only_on_request(tmp_path, structures):
    write_database(tmp_path / "my.db", structures, "test")
    with pytest.raises(FileExistsError, match="exists already"):
        write_database(tmp_path / "my.db", structures[:2], "test")
    write_database(tmp_path / "my.db", structures[:2], "test", overwrite=True)
    assert len(read_database(tmp_path / "my.db")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": None}, "structure 1 has no energy, others have"),
        ({"forces": None}, "structure 1 has no forces, others have"),
    ],
)
def test_labels_that_only_some_have_are_refused(change, message, tmp_path, structures):
    structures[1] = dataclasses.replace(structures[1], **change)
    with pytest.raises(ValueError, match=message):
        write_database(tmp_path / "my.db", structures, "test")
    assert not (tmp_path / "my.db").exists()


def test_names_and_emptiness(tmp_path, structures):
    with pytest.raises(ValueError, match=r"ending \.db"):
        write_database(tmp_path / "my.dat", structures, "test")
    with pytest.raises(ValueError, match="no structures"):
        write_database(tmp_path / "my.db", [], "test")


# databases that others wrote


def foreign_database(path: Path, structures, **data) -> str:
    with connect(path) as database:
        database.metadata = {
            "_property_unit_dict": {"energy": "eV", "stress": "eV/Ang/Ang/Ang"},
            "_distance_unit": "Ang",
        }
        for s in structures:
            row = {"energy": np.array([s.energy]), "stress": s.stress[None]}
            database.write(s.to_atoms(), data={**row, **{k: f(s) for k, f in data.items()}})
    return str(path)


def test_plain_shapes_of_other_writers_are_understood(tmp_path, structures):
    """SchNetPack fails on them much later, with messages about something else."""
    path = foreign_database(
        tmp_path / "my.db", structures, energy=lambda s: s.energy, stress=lambda s: s.stress
    )
    batch = InMemoryAtomsData(path).batch([0, 1])
    assert batch[properties.energy].tolist() == [s.energy for s in structures[:2]]
    assert batch[properties.stress].shape == (2, 3, 3)


def test_a_stress_of_six_numbers_is_refused(tmp_path, structures):
    path = foreign_database(tmp_path / "my.db", structures, stress=lambda s: s.stress_voigt)
    with pytest.raises(ValueError, match=r"structure 0: stress of shape \(6,\)"):
        InMemoryAtomsData(path)


def test_a_plain_ase_database_is_explained(tmp_path, structures):
    with connect(tmp_path / "my.db") as database:
        database.write(structures[0].to_atoms())
    with pytest.raises(ValueError, match=r"without SchNetPack's units.*spk-softadapt import"):
        InMemoryAtomsData(str(tmp_path / "my.db"))


def test_other_units_are_not_taken_for_ours(tmp_path, structures):
    path = tmp_path / "my.db"
    write_database(path, structures, "test", metadata={"_distance_unit": "Bohr"})
    with pytest.raises(ValueError, match="lengths in Bohr"):
        read_database(path)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other_tables(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table cities (name)")
        connection.commit()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half, "malformed"),
        (lambda data: data[:-8192] + bytes(8192), "malformed"),
        (lambda data: b"just words " * 100, "file is not a database"),
        (lambda data: b"", "no table of structures"),
        (
            lambda data: data.replace(b'"_distance_unit"', b"\xff_distance_unit'"),
            "Could not decode",
        ),
        (lambda data: data.replace(b'"_distance_unit":', b'"_distance_unit"='), "Expecting ':'"),
    ],
)
def test_a_damaged_database_is_one_line_that_names_it(damage, message, tmp_path):
    path = tmp_path / "my.db"
    write_database(path, labelled_structures(40), "test")
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    for use in (read_database, lambda p: InMemoryAtomsData(str(p))):
        with pytest.raises(ValueError, match=message) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path} is no ASE database, or damaged (")
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__  # no traceback of what SQLite said
    assert path.read_bytes() == before


def test_tables_of_others_are_left_as_they_are(tmp_path):
    """ASE would add its own to them."""
    path = tmp_path / "my.db"
    before = other_tables(path)
    with pytest.raises(ValueError, match="no table of structures"):
        read_database(path)
    assert path.read_bytes() == before


def test_a_missing_database_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="no database at"):
        InMemoryAtomsData(str(tmp_path / "my.db"))
    assert list(tmp_path.iterdir()) == []
