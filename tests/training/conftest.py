import logging

import pytest
import toy_runs


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """18 structures with energies, forces and stresses; one stress is missing."""
    path = tmp_path_factory.mktemp("emt") / "cuau.db"
    return toy_runs.write_database(path, toy_runs.emt_structures(18), masked=(3,))


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    """SchNetPack writes splitting.lock and split.npz into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def logging_as_before():
    """Hydra sets logging up for a process of its own, on streams that pytest closes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
