"""Explorers, each with a committee of two elements."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from schnetpack_softadapt.learn.explore import EXPLORERS, explore


@pytest.fixture(scope="module")
def committee(tmp_path_factory):
    """Two SNAPs that differ in all coefficients."""
    folder = tmp_path_factory.mktemp("committee")
    for seed in (0, 1):
        rng, lines = np.random.default_rng(seed), ["2 6"]
        for x, weight in (("Cu", 1.0), ("Au", 0.8)):
            lines += [f"{x} 0.5 {weight}", *map(str, rng.normal(0, 1e-3, 6).tolist())]
        (folder / f"{seed}.snapcoeff").write_text("\n".join(lines) + "\n")
        (folder / f"{seed}.snapparam").write_text("twojmax 2\nrcutfac 4.5\n")
    return [str(folder / f"{seed}.snapcoeff") for seed in (0, 1)]


def start():
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True).repeat((1, 1, 2))
    atoms.symbols[:3] = "Au"
    return atoms


MD = {"method": "md", "temperature": 300, "steps": 6, "every": 2}


@pytest.mark.parametrize(
    "settings",
    [
        MD,
        {**MD, "ensemble": "npt", "pressure": 50.0},
        {"method": "swaps", "temperature": 1e5, "steps": 12, "every": 4},
        {"method": "strain", "strain": 0.04, "sigma": 0.01, "n": 3},
        {"method": "entropy", "n": 3, "n_atoms": [4, 5], "anneal_steps": 2, "steps": 5},
    ],
    ids=["nvt", "npt", "swaps", "strain", "entropy"],
)
def test_every_explorer(settings, committee, tmp_path):
    explore(settings, start(), committee, 5, tmp_path / "visited.extxyz")
    found, ideal = read(tmp_path / "visited.extxyz", ":"), start()
    assert len(found) == 3
    cells = [np.linalg.solve(ideal.cell.array, a.cell.array) - np.eye(3) for a in found]
    for atoms, strain in zip(found, cells, strict=True):
        assert atoms.info["group"] == settings["method"]
        assert set(atoms.symbols) == {"Cu", "Au"}
        assert 0 < atoms.info["spread"] < 10
        if settings["method"] == "swaps":
            np.testing.assert_allclose(atoms.positions, ideal.positions, atol=1e-7)
            assert sorted(atoms.symbols) == sorted(ideal.symbols)
        elif settings["method"] == "strain":
            assert 0.004 < np.abs(strain).max() <= 0.04
            moved = atoms.get_scaled_positions() @ ideal.cell - ideal.positions
            assert 0.001 < np.abs(moved - np.round(moved / 3.8) * 3.8).max() < 0.05
        elif settings.get("ensemble") == "npt":
            assert strain[0, 0] < -1e-5  # compressed, and as much in all directions
            np.testing.assert_allclose(strain, strain[0, 0] * np.eye(3), atol=1e-9)
        elif settings["method"] == "md":
            assert np.abs(strain).max() < 1e-9
    assert len({a.positions.tobytes() + a.numbers.tobytes() for a in found}) > 1
    assert {s["method"] for s in (MD, settings)} <= set(EXPLORERS)


@pytest.mark.parametrize("method", ["md", "swaps"])
def test_the_stop(method, committee, tmp_path):
    settings = {"method": method, "temperature": 300, "steps": 6, "every": 2, "stop": 1e-9}
    explore(settings, start(), committee, 5, tmp_path / "visited.extxyz")
    (atoms,) = read(tmp_path / "visited.extxyz", ":")
    assert atoms.info["step"] == 0
