"""Runs of SchNetPack's own experiment with our task and callbacks: files and reports."""

import pytest
import test_drop_in
from omegaconf import OmegaConf
from test_drop_in import md17, spktrain, write_molecules

from schnetpack_softadapt.reports.run import Run

OURS = ("task=softadapt_task", "callbacks=[acsf_callbacks]", "~callbacks.progress")


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "molecules.db")


def test_a_resumed_run_says_its_present_settings(molecules, tmp_path, monkeypatch):
    spktrain(monkeypatch, tmp_path, *md17(molecules, *OURS, "trainer.max_epochs=2"))
    first = (tmp_path / "run/config.yaml").read_text()
    more = ("trainer.max_epochs=5", "globals.lr=2e-3")
    small = [s.replace("seed=1", "seed=7") for s in test_drop_in.SMALL]
    monkeypatch.setattr(test_drop_in, "SMALL", small)
    run = spktrain(monkeypatch, tmp_path, *md17(molecules, *OURS, *more))
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.max_epochs == 5
    assert config.globals.lr == 2e-3
    assert config.seed == 1  # that of the first start, which the run keeps
    # nothing else has changed
    again = (run / "config.yaml").read_text().splitlines()
    changed = [line for line in first.splitlines() if line not in again]
    assert [line.split(":")[0].strip() for line in changed] == ["lr", "max_epochs"]
    (run / "metrics.json").unlink()
    (run / "best_model.task").unlink()
    history = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join(history[:-1]))
    [note] = [note for note in Run.read(run).notes if "epochs logged" in note]
    assert note == "The run goes on, or was stopped: 4 of at most 5 epochs logged so far."
