"""The examples run, and say what they promise; that of PaiNN in `training/test_drop_in.py`."""

import re

import ase.io
import pytest
from test_api import SMALL, crystals, imported

from schnetpack_softadapt.examples import committee_md, export_lammps, train

FAST = (*SMALL, "globals.cutoff=4.0", "globals.n_hidden=[4]", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    imported(list(crystals(12)), folder / "my.db")
    return folder


def test_train_then_export(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    train.main("my.db", "my.extxyz", *FAST)
    text = capsys.readouterr().out
    assert "12 structures, 48 atoms" in text
    assert len(ase.io.read("predictions.extxyz", ":")) == 12
    ase.io.write("start.extxyz", ase.io.read("my.extxyz", 0))
    export_lammps.main("runs/my", "start.extxyz", "potential")
    text = capsys.readouterr().out
    for name in ("input.nn", "in.lammps", "structure.data"):
        assert f"potential/{name}\n" in text
    before, after = map(float, re.findall(r" (\S+) eV\n", text))
    assert after == pytest.approx(before, rel=1e-12)


def test_committee(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    ase.io.write("start.extxyz", ase.io.read("my.extxyz", 0))
    committee_md.main("my.db", "start.extxyz", *FAST, n_steps=20)
    spreads = re.findall(r"uncertain by up to (\S+) eV/Ang", capsys.readouterr().out)
    assert len(spreads) == 3  # at the start and every ten steps
    assert min(map(float, spreads)) > 0
