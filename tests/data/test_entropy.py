"""`generate --method entropy`: the artificial potential, and structures made by it."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.data import covalent_radii
from ase.io import read, write
from processes import start
from scipy.spatial.distance import cdist

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.children import kill_children, place
from schnetpack_softadapt.data.generate import entropy as module
from schnetpack_softadapt.data.generate.entropy import (
    EntropyPotential,
    EntropyRecipe,
    entropy,
    generate_diverse,
    make_structure,
    read_entropy_recipe,
)
from schnetpack_softadapt.descriptors.ambient import ambient_volume, default_descriptor
from schnetpack_softadapt.descriptors.whitening import Whitening
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

SMALL = {"kind": "snap", "radii": {"W": 0.5, "Be": 0.4}, "weights": {"W": 1.0, "Be": 0.7}}
SMALL |= {"twojmax": 4, "rcutfac": 4.5}
RECIPE = EntropyRecipe(
    ["W"], 3, (4, 10), anneal_steps=10, steps=30, min_distance=2.2, descriptor="small.json"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entropy")
    folder.joinpath("small.json").write_text(json.dumps(SMALL))
    return folder


@pytest.fixture(autouse=True)
def a_small_descriptor(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "_SAMPLE", 12)


@pytest.fixture(scope="module")
def make():
    """All with one process, since each takes seconds to start."""
    with ThreadPoolExecutor(1) as executor:
        yield partial(generate_diverse, executor=executor, overwrite=True, say=lambda text: None)
        kill_children(place())


@pytest.fixture
def potential():
    return module.make_potential(RECIPE)


def test_whitening():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)) * 1e3 + 7
    x = Whitening.of(values)(values)
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(4), atol=1e-10)
    values[:, 1] = 5.0  # constant
    x = Whitening.of(values)(values)
    assert np.isfinite(x).all()
    assert np.ptp(x[:, 1]) < 1e-10


def test_entropy_by_definition():
    rng = np.random.default_rng(0)
    x, numbers = rng.standard_normal((6, 3)), np.array([74, 4, 74, 74, 4, 5])
    known = {4: rng.standard_normal((3, 3))}
    w = cdist(x[[0, 2, 3]], x[[0, 2, 3]]) + 1e9 * np.eye(3)
    be = np.hstack([cdist(x[[1, 4]], x[[1, 4]]) + 1e9 * np.eye(2), cdist(x[[1, 4]], known[4])])
    nearest = np.concatenate([w.min(1), be.min(1)])
    total, _, n = entropy(x, numbers, known)
    assert n == 5  # boron has nothing to compare with
    assert total == pytest.approx(0.5 * np.log(nearest**2 + 0.01).sum(), rel=1e-12)


@pytest.mark.parametrize("k", [3.0, -2.0])
def test_forces_are_the_gradient(k):
    """Two elements, atoms that repel and known environments; differences of the fourth order."""
    recipe = replace(RECIPE, elements=["W", "Be"], n_atoms=(8, 8))
    potential = module.make_potential(recipe)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5, 14))
    potential = EntropyPotential(potential.engine.descriptor, potential.whitening, k, None, {4: x})
    atoms = bulk("W", cubic=True) * (2, 2, 1)
    atoms.symbols[::3] = "Be"
    atoms.positions += rng.normal(0, 0.3, atoms.positions.shape)
    atoms.calc = potential
    radii = 0.65 * covalent_radii[atoms.numbers]
    i, j, r, _ = neighbor_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    assert (np.linalg.norm(r, axis=1) < 1.25 * (radii[i] + radii[j])).sum() > 4
    forces = atoms.get_forces()
    step = 1e-3
    for atom, axis in [(0, 0), (3, 1), (5, 2), (7, 0)]:
        energies = []
        for shift in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[atom, axis] += shift * step
            energies.append(potential.get_potential_energy(moved))
        slope = np.dot([1, -8, 8, -1], energies) / (12 * step)
        assert forces[atom, axis] == pytest.approx(-slope, rel=1e-5, abs=1e-6)


def test_more_diverse_than_a_rattled_crystal_and_less_with_negative_k(potential):
    crystal = bulk("W", cubic=True) * (2, 2, 2)
    crystal.rattle(0.2, seed=1)
    rattled = potential.get_property("entropy", crystal)
    found = {}
    for k in (3.0, -3.0):
        potential.k = k
        made = [make_structure(replace(RECIPE, k=k), n, potential) for n in range(3)]
        found[k] = np.mean([atoms.info["entropy"] for atoms in made])
    assert found[3.0] > rattled + 0.3
    assert found[-3.0] < found[3.0] - 0.5


def test_exclusion_radius_size_and_density(make):
    recipe = replace(RECIPE, n=4, min_distance=2.4, k=30.0, density=(0.9, 1.1))
    for atoms in make(recipe, "a.extxyz"):
        distances = neighbor_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)[2]
        assert np.linalg.norm(distances, axis=1).min() >= 2.4
        assert 4 <= len(atoms) <= 10
        assert 0.9 <= atoms.get_volume() / len(atoms) / ambient_volume(74) <= 1.1
    with pytest.raises(ValueError, match="no room for"):
        make(replace(RECIPE, min_distance=3.4, n_atoms=(4, 4)), "b.extxyz")


def test_different_from_what_is_known(potential, make):
    (alone,) = make(replace(RECIPE, n=1), "c.extxyz")
    (other,) = make(replace(RECIPE, n=1, against=["c.extxyz"]), "d.extxyz")
    known = module._by_element(potential.engine.descriptor, [alone])
    known = {z: potential.whitening[z](x) for z, x in known.items()}
    judge = EntropyPotential(potential.engine.descriptor, potential.whitening, known=known)
    # `alone` lies on itself: rho = 0
    assert judge.get_property("entropy", other) > judge.get_property("entropy", alone) + 1


def test_resumed_after_kill_the_same_with_any_number_of_processes(monkeypatch, make):
    monkeypatch.setattr(module, "_SAMPLE", 50)  # as the other process has it
    Path("my.yaml").write_text(
        "elements: [W, Be]\nn_atoms: [4, 8]\nanneal_steps: 10\nsteps: 40\ndescriptor: small.json\n"
    )
    command = ["generate", "--method", "entropy", "--config", "my.yaml", "--seed", "3"]
    many = [*command, "--n", "200", "--executor", "local:2", "--out", "out.extxyz"]
    process = start(main, many, folder=Path.cwd())
    journal = Path("out.extxyz.journal")
    deadline = time.monotonic() + 300
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 3:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = _children(process.pid)
    process.kill()
    process.join()
    with open(journal, "ab") as file:
        file.write(b'{"key": "7", "dig')  # the line that was being written
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    n_kept = len(journal.read_bytes().splitlines()) - 1
    n = str(n_kept + 2)
    assert main([*command, "--n", n, "--out", "out.extxyz"]) == 0
    recipe = read_entropy_recipe("my.yaml", {"seed": 3, "n": n_kept + 2})
    make(recipe, "straight.extxyz")
    assert Path("out.extxyz").read_bytes() == Path("straight.extxyz").read_bytes()
    assert len({a.get_chemical_formula() for a in read("out.extxyz", ":")}) > 1
    # another seed is another set
    (other,) = make(replace(recipe, seed=4, n=1), "out.extxyz")
    assert not np.allclose(other.cell, read("straight.extxyz").cell)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_default_descriptor():
    assert ambient_volume(74) == pytest.approx(15.8, abs=0.1)
    assert default_descriptor([74]).n_columns == 55
    assert default_descriptor([74]).cutoff == pytest.approx(4.77)
    assert EntropyRecipe(["W"], descriptor=SMALL).make_descriptor().n_columns == 14
    descriptor = default_descriptor([8, 14, 26])  # a gas, diamond, bcc
    assert descriptor.weights[8] != descriptor.weights[14] != descriptor.weights[26]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which elements?"),
        (["--elements", "Xx"], "give symbols, such as W"),
        (["--elements", "W", "--n", "0"], "n must be positive, not 0"),
        (["--elements", "W", "--k", "0"], "k is an energy other than zero"),
        (["--elements", "W", "--calculator", "a:b"], "--method entropy takes no calculator"),
        (["--elements", "W", "--seed", "-1"], "seed is a whole number from 0 on, not -1"),
        (["--elements", "W", "--timeout", "9"], "--method entropy takes no timeout"),
        (["--elements", "W", "--out", "a.db"], "the name must end in .extxyz"),
        (["--elements", "Mo", "--config", "my.yaml"], "does not know Mo"),
        (["--elements", "W", "--against", "nowhere.xyz"], "nowhere.xyz"),
    ],
)
def test_mistakes(args, message, capsys):
    Path("my.yaml").write_text("descriptor: small.json\n")
    assert main(["generate", "--method", "entropy", "--out", "out.extxyz", *args]) == 2
    assert message in capsys.readouterr().err
    write("there.extxyz", bulk("W"))
    command = ["generate", "--method", "entropy", "--out", "there.extxyz", "--elements", "W"]
    assert main(command) == 2
