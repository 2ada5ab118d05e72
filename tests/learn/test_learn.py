"""`spk-softadapt learn`: what the loop trains on, when it ends, and that it goes on."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from processes import start

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.children import kill_children, place
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.learn import loop
from schnetpack_softadapt.learn.loop import Learning, _is_over, learn
from schnetpack_softadapt.learn.posterior import PosteriorCalculator, root_and_scale

SETTINGS = {
    "train": "start.extxyz",
    "test": "test.extxyz",
    "calculator": "ase.calculators.emt:EMT",
    "members": 2,
    "model": {
        "epochs": 2,
        "n_hidden": [4],
        "cutoff": 4.0,
        "overrides": ["model.representation.grid.n_radial=4"],
    },
    "explore": [
        {"method": "md", "temperature": [300, 900], "steps": 8, "every": 4, "stop": 1e-9},
        {"method": "strain", "strain": 0.05, "sigma": 0.2, "n": 6},
    ],
    "uncertain": 1e-4,
    "hopeless": 1e6,  # models of two epochs know nothing
    "n": 4,
    "pool": 1,
    "rounds": 2,
}


def labelled(n: int, sigma: float, seed: int) -> list:
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms.positions += rng.normal(0, sigma, (4, 3))
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results, stress=atoms.get_stress())
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def executor():
    """One process for all, which takes seconds to import what it needs."""
    with ThreadPoolExecutor(1) as threads:
        yield threads
        kill_children(place())


def test_two_rounds_interrupted_between_them(executor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("start.extxyz", labelled(8, 0.02, 0))
    write("test.extxyz", labelled(3, 0.1, 1))
    first, said = Path("out/round-00"), []

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    settings = Learning(**SETTINGS, executor=executor)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "label", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(settings, "out", say=said.append)
    done = [*first.glob("member-*/trained"), *first.glob("explored/*/visited.extxyz")]
    assert len(done) == 2 + 2
    times = [path.stat().st_mtime_ns for path in done]
    table = learn(settings, "out", say=said.append)
    assert [path.stat().st_mtime_ns for path in done] == times
    # what is over stays so: nothing is trained or labelled
    monkeypatch.setattr(loop, "label", interrupted)
    pd.testing.assert_frame_equal(learn(settings, "out", say=said.append), table)
    assert "done: the last round" in said
    # the second training set: the first, and what was chosen, with the teacher's labels
    known, more = (list(read_database(f"out/round-0{k}/train.db")) for k in (0, 1))
    assert (len(known), len(more)) == (8, 12)
    for old, structure in zip(known, more[:8], strict=True):
        assert np.array_equal(structure.positions, old.positions)
        assert np.array_equal(structure.forces, old.forces)
    chosen = read(first / "selected.extxyz", ":")
    visited = [a for p in sorted(first.glob("explored/*/visited.extxyz")) for a in read(p, ":")]
    assert len(visited) == 1 + 6  # dynamics end where the members differ: at once
    spreads = [sorted(a.info["spread"] for a in some) for some in (chosen, visited)]
    assert spreads[0] == spreads[1][-4:]
    for atoms, structure in zip(chosen, more[8:], strict=True):
        assert any(np.array_equal(atoms.positions, other.positions) for other in visited)
        assert structure.positions == pytest.approx(atoms.positions)
        atoms.calc = EMT()
        assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-6)
    rows = pd.read_csv("out/rounds.csv")
    assert rows["structures"].tolist() == [8, 12]
    assert rows["labels"].tolist() == [4, 0]
    # members differ, and the second ones started from the first
    for k in (0, 1):
        config = Path(f"out/round-01/member-{k}/config.yaml").read_text()
        assert f"round-00/member-{k}" in config
    assert rows["spread"][0] > 1e-4


LINEAR = {
    **{k: v for k, v in SETTINGS.items() if k != "members"},
    "model": {"cutoff": 4.0},
    "explore": [{"method": "md", "temperature": 600, "steps": 60, "every": 2, "repeats": 2}],
    "n": 3,
}


def children(pid: int) -> list[int]:
    """Processes that its threads have started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def test_killed_and_started_again(executor, tmp_path, monkeypatch):
    """The linear model of no settings; parent and children end in an exploration."""
    monkeypatch.chdir(tmp_path)
    write("start.extxyz", labelled(8, 0.02, 0))
    write("test.extxyz", labelled(3, 0.1, 1))
    Path("learn.yaml").write_text(yaml.safe_dump({**LINEAR, "executor": "local:1"}))
    process = start(main, ["learn", "learn.yaml", "--out", "killed"], folder=tmp_path)
    with ThreadPoolExecutor(1) as beside:
        settings = Learning(**LINEAR, executor=executor)
        whole = beside.submit(learn, settings, "whole", say=lambda text: None)
        walks = Path("killed/round-00/explored")
        while len([*walks.glob("*/*.jsonl")]) < 2 and process.is_alive():
            time.sleep(0.01)
        victims = children(process.pid)
        process.kill()
        process.join()
        assert victims
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert [path.parent.name for path in walks.glob("*/visited.extxyz")] == ["0-0"]
        trained = Path("killed/round-00/member-0/trained").stat().st_mtime_ns
        whole = whole.result()
        again = learn(settings, "killed", say=lambda text: None)
    assert Path("killed/round-00/member-0/trained").stat().st_mtime_ns == trained
    pd.testing.assert_frame_equal(again, whole, rtol=1e-6)
    assert whole["labels"].tolist() == [3, 0]
    # of what the model knows least, first the structure of the largest leverage
    chosen = read("whole/round-00/selected.extxyz", ":")
    paths = sorted(Path("whole/round-00/explored").glob("*/visited.extxyz"))
    visited = [a for path in paths for a in read(path, ":")]
    calculator = PosteriorCalculator("whole/round-00/member-0")
    largest = [(calculator.whitened(atoms) ** 2).sum(1).max() for atoms in visited]
    assert np.array_equal(chosen[0].positions, visited[np.argmax(largest)].positions)
    # one function for four of 8 (11) times 1 + 12 + 6 labels
    for number, n in ((0, 38), (1, 52)):
        model = PosteriorCalculator(f"whole/round-0{number}/member-0").model
        assert len(model.representation.descriptor.functions) == n
    # all are trained on but the first of all, and the uncertainty is that of this fit
    history = pd.read_csv("whole/round-01/member-0/history.csv")
    assert history["weight_forces"].item() == pytest.approx(0.9)
    calculator = PosteriorCalculator("whole/round-01/member-0")
    known = [s.to_atoms() for s in read_database("whole/round-01/train.db")]
    forces = [s.forces.ravel() for s in read_database("whole/round-01/train.db")]
    rows = [calculator.posterior.rows(a.numbers, a.positions, a.cell.array, a.pbc) for a in known]
    coefficients = [p.detach().numpy().ravel() for p in calculator.model.parameters()]
    errors = [b - x @ np.concatenate(coefficients) for x, b in zip(rows, forces, strict=True)]
    root, scale = root_and_scale(rows[1:], errors[1:])
    np.testing.assert_allclose(calculator.root, root, rtol=1e-9, atol=1e-9 * np.abs(root).max())
    assert calculator.scale == pytest.approx(scale, rel=1e-9)


def test_walks_start_from_all_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("start.extxyz", labelled(5, 0.02, 0))
    begun = []
    monkeypatch.setattr(
        loop._Round, "_map", lambda self, f, tasks, what: begun.extend(a[1] for _, a in tasks)
    )
    settings = Learning(**{**SETTINGS, "explore": [{"method": "strain", "repeats": 3}] * 2})
    for number in range(5):
        with contextlib.suppress(FileNotFoundError):  # nothing was explored
            loop._Round(settings, tmp_path, number, None, False, print)._explore()
    times = [sum(np.array_equal(a.positions, b.positions) for b in begun) for a in begun]
    assert times == [6] * 30


def test_the_end():
    settings = Learning(**{**SETTINGS, "rounds": 5})

    def over(*rounds):
        rows = [
            {"forces_rmse_meV_per_Ang": error, "uncertain": part, "candidates": n}
            for error, part, n in rounds
        ]
        return _is_over(settings, rows)

    assert over((100, 0.5, 9), (50, 0.5, 9)) is None
    assert over((100, 0.5, 9), (50, 0.001, 9)) is None  # agrees, but still gains
    assert over((100, 0.5, 9), (99.5, 0.5, 9)) is None  # gains nothing, but disagrees
    assert "is known, and the test error" in over((100, 0.5, 9), (99.5, 0.001, 9))
    assert "everything" in over((100, 0.0, 0))
    assert over(*[(100, 0.5, 9)] * 5) == "the last round"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"test": None}, "no setting 'test'"),
        ({"members": 0}, "members is a whole number from 1 on"),
        ({"members": 1}, "one model alone is linear or quadratic, without epochs and n_hidden"),
        ({"members": 1, "model": {"model": "ace"}}, "linear or quadratic"),
        ({"members": 1, "model": {}}, "train: give two structures or more"),
        ({"explore": [{"method": "walk"}]}, "method 'walk' is none of md, swaps, strain, entropy"),
        ({"explore": [{"method": "strain", "eps": 1}]}, "strain has no 'eps'; it has n, sigma"),
        ({"explore": [{"method": "md", "temperature": -1}]}, "md: temperature is"),
        ({"calculator": "ase:EMTT"}, "no 'EMTT'"),
        ({"executor": "locl:2"}, "executor 'locl:2' is none of"),
        ({"train": "nowhere.extxyz"}, "nowhere.extxyz"),
    ],
)
def test_mistakes(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("start.extxyz", labelled(1, 0.02, 0))
    write("test.extxyz", labelled(1, 0.02, 1))
    settings = {k: v for k, v in {**SETTINGS, **change}.items() if v is not None}
    Path("learn.yaml").write_text(yaml.safe_dump(settings))
    assert main(["learn", "learn.yaml", "--out", "out"]) == 2
    assert message in capsys.readouterr().err
