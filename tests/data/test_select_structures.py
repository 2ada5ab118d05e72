"""Choosing structures: what is far from all others comes first, copies last."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.cli.select_structures import committee_spread
from schnetpack_softadapt.data.select.select import METHODS, Rows, select, structure_rows
from schnetpack_softadapt.data.select.select import _exchanges as exchanges
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.descriptors.snap import Bispectrum

DESCRIPTOR = Bispectrum({"Cu": 0.5, "Au": 0.5}, {"Cu": 1.0, "Au": 0.8}, twojmax=2, rcutfac=4.5)
N, OUTLIER, COPIES = 42, 5, (40, 41)


def crystals():
    """Rattled crystals: in one an atom is far from its place, the last two are copies of others."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(N - 2):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
        atoms.symbols[3] = "Au"
        atoms.positions[1, 0] += 1.0 * (k == OUTLIER)
        atoms.positions += rng.normal(0, 0.05, (4, 3))
        found.append(atoms)
    return [*found, found[0].copy(), found[OUTLIER].copy()]


def structures():
    return [Structure.from_atoms(atoms) for atoms in crystals()]


@pytest.mark.parametrize("by", ["atoms", "mean", "mean_std"])
@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_first_and_copies_last(method, by):
    rows, _ = structure_rows(structures(), DESCRIPTOR, by)
    order = select(rows, N, method)
    assert sorted(order) == list(range(N))
    assert order[0] == OUTLIER
    assert set(order[-2:]) == set(COPIES)
    assert select(rows, 3, method) == order[:3]


@pytest.mark.parametrize("method", METHODS)
def test_new_with_respect_to_what_is_known(method):
    every = structures()
    new = {4, 6, 7}
    known = [s for k, s in enumerate(every) if k not in new]
    rows, known = structure_rows(every, DESCRIPTOR, "atoms", known)
    assert len(known) == 4 * (N - 3)
    order = select(rows, 3, method, known)
    assert set(order) == new


def test_farthest_by_definition():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 2)).astype(np.float32)
    chosen = [int((x**2).sum(1).argmax())]
    while len(chosen) < 6:
        distances = np.linalg.norm(x[:, None] - x[chosen], axis=2).min(1)
        chosen.append(int(distances.argmax()))
    assert select(Rows(x, np.arange(12)), 6, "farthest") == chosen
    # of two atoms each, the farther one counts
    chosen = [int((x**2).sum(1).argmax()) // 2]
    while len(chosen) < 4:
        taken = np.isin(np.arange(12) // 2, chosen)
        distances = np.linalg.norm(x[:, None] - x[taken], axis=2).min(1)
        chosen.append(int(distances.argmax()) // 2)
    assert select(Rows(x, np.arange(12) // 2), 4, "farthest") == chosen


def test_maxvol_interpolates_all_rows_by_the_submatrix():
    x = np.random.default_rng(2).standard_normal((200, 5))
    inverse, empty = np.eye(5) * 30, np.ones(5, bool)
    grades, taken = x @ inverse, []
    for row in exchanges(grades, inverse, empty):
        taken.append(row)
    matrix = np.linalg.inv(inverse)
    assert not empty.any()
    assert all(np.isclose(matrix[k], x[taken]).all(1).any() for k in range(5))
    assert np.abs(x @ inverse).max() <= 1.01
    assert len(set(select(Rows(x, np.arange(200)), 30, "maxvol"))) == 30
    # of longer rows only those that known ones do not interpolate are new
    known = np.array([[10.0, 0.0], [0.0, 1.0], [3.0, 0.3]])
    new = np.array([[9.0, 0.1], [0.0, 1.5], [-8.0, 0.0]])
    assert select(Rows(new, np.arange(3)), 1, "maxvol", known) == [1]


def test_leverage_by_definition():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((30, 4))
    known = rng.standard_normal((9, 4))
    matrix, chosen = 1e-3 * np.eye(4) + known.T @ known, []
    for _ in range(5):
        score = np.einsum("ij,jk,ik->i", x, np.linalg.inv(matrix), x)
        score[chosen] = 0
        chosen.append(int(score.argmax()))
        matrix += np.outer(x[chosen[-1]], x[chosen[-1]])
    assert select(Rows(x, np.arange(30)), 5, "leverage", known) == chosen


def test_scores_decide_but_copies_come_last():
    rows, _ = structure_rows(structures(), DESCRIPTOR)
    scores = np.arange(float(N))
    order = [*reversed(range(N - 2)), *COPIES]
    assert select(rows, N, "committee", scores=scores) == order


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("a.extxyz", crystals()[:6])
    write("b.extxyz", crystals()[6:])
    assert main(["select", "a.extxyz", "b.extxyz", "--n", "4", "--out", "c.extxyz"]) == 0
    assert "chosen       4 of 42 structures by farthest" in capsys.readouterr().out
    first, *others = read("c.extxyz", ":")
    np.testing.assert_allclose(first.positions, crystals()[OUTLIER].positions, atol=1e-7)
    assert first.info["selected_from"] == "a.extxyz@5"
    assert len(others) == 3
    # what was chosen is known
    command = ["select", "a.extxyz", "b.extxyz", "--from", "c.extxyz", "--n", "36"]
    assert main(command) == 0
    names = {atoms.info["selected_from"] for atoms in read("chosen.extxyz", ":")}
    assert len(names | {a.info["selected_from"] for a in [first, *others]}) == 40


def test_a_committee(tmp_path, monkeypatch):
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.exchange.snap import write_snap

    monkeypatch.chdir(tmp_path)
    models = [_linear_model(seed) for seed in (0, 1)]
    spread = committee_spread(structures(), models)
    forces = []
    for model in models:
        atoms = crystals()[OUTLIER]
        atoms.calc = SoftAdaptCalculator(model)
        forces.append(atoms.get_forces())
    by_definition = np.linalg.norm(0.5 * (forces[0] - forces[1]), axis=1).max()
    assert spread.shape == (N,)
    assert spread[OUTLIER] == pytest.approx(by_definition, rel=1e-9)
    for k, model in enumerate(models):
        write_snap(model, f"{k}.snapcoeff")
    write("a.extxyz", crystals())
    command = ["select", "a.extxyz", "--n", "2", "--method", "committee"]
    assert main([*command, "--models", "0.snapcoeff", "1.snapcoeff"]) == 0
    frames = read("chosen.extxyz", ":")
    best = np.sort(np.unique(np.round(spread, 9)))[::-1][:2]
    np.testing.assert_allclose([a.info["forces_spread"] for a in frames], best, rtol=1e-6)


def _linear_model(seed: int):
    """A SNAP with random coefficients."""
    from schnetpack_softadapt.deploy.exchange.snap import read_snap

    rng = np.random.default_rng(seed)
    n = DESCRIPTOR.n_columns
    lines = [f"2 {n + 1}"]
    for x, weight in (("Cu", 1.0), ("Au", 0.8)):
        lines += [f"{x} 0.5 {weight}", *map(str, rng.normal(0, 0.01, n + 1).tolist())]
    Path("m.snapcoeff").write_text("\n".join(lines) + "\n")
    Path("m.snapparam").write_text("twojmax 2\nrcutfac 4.5\n")
    return read_snap("m.snapcoeff")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--n", "43"], "the files have 42 structures"),
        (["--n", "1", "--method", "best"], "--method best is none of farthest, cur"),
        (["--n", "1", "--by", "atom"], "by 'atom' is none of atoms, mean, mean_std"),
        (["--n", "1", "--method", "committee"], "needs --models with two models at least"),
        (["--n", "1", "--from", "no.extxyz"], "no structures at no.extxyz"),
        (["--n", "1", "--out", "a.db"], "the name must end in .extxyz"),
    ],
)
def test_mistakes(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("a.extxyz", crystals())
    assert main(["select", "a.extxyz", *args]) == 2
    assert message in capsys.readouterr().err
