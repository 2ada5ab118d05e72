"""Recipes of molecular dynamics, exchanges, surfaces, faults and interstitials, labelled by EMT."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.io import read, write

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.generate import walks
from schnetpack_softadapt.data.generate.labelling import import_calculator
from schnetpack_softadapt.data.generate.recipe import Prototype, Recipe, build, samples

EMT = "ase.calculators.emt:EMT"

#: stands for a committee whose models differ by a tenth of the forces
COMMITTEE = """
from ase.calculators.emt import EMT

class Two(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces_std"] = 0.1 * self.results["forces"]
"""

RECIPE = """
prototypes: {cu: cu.extxyz, cuau: cuau.extxyz}
calculator: ase.calculators.emt:EMT
surfaces: {indices: [1, 1, 1], layers: "2:3:1", vacuum: 6}
faults: {indices: [1, 1, 1], layers: 4, vacuum: 6, shifts: [[0, 0.25], 0]}
interstitials: [0, 1]
min_distance: 1.2
"""


@pytest.fixture(autouse=True)
def _in_folder_with_prototypes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("cu.extxyz", copper())
    alloy = copper()
    alloy.symbols[:2] = "Au"
    write("cuau.extxyz", alloy)
    Path("committee.py").write_text(COMMITTEE)
    yield
    sys.modules.pop("committee", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def copper():
    return bulk("Cu", "fcc", a=3.6, cubic=True)


def made(text, out="out.extxyz", *args) -> list:
    Path("recipe.yaml").write_text(text)
    assert main(["generate", "recipe.yaml", "--out", out, *args]) == 0
    return read(out, ":") if out.endswith("xyz") else read_database(out)


def test_slabs_faults_and_interstitials_by_group(capsys):
    frames = made(RECIPE)
    groups = {}
    for atoms in frames:
        groups.setdefault(atoms.info["group"], []).append(atoms)
    assert {name: len(part) for name, part in groups.items()} == {
        "cu": 1, "cuau": 1, "interstitial": 2, "surface": 4, "surface interstitial": 4,
        "stacking fault": 4, "stacking fault interstitial": 4,
    }  # fmt: skip
    # (111) of fcc: planes of 4 atoms, a / sqrt(3) apart
    slab = groups["surface"][1]
    assert slab.info["prototype"] == "cu 111 3 layers"
    planes = np.unique(np.round(slab.positions[:, 2], 3), return_counts=True)
    assert planes[0] == pytest.approx(6 + 3.6 / 3**0.5 * np.arange(3), abs=1e-3)
    assert planes[1].tolist() == [4, 4, 4]
    assert slab.cell[2, 2] == pytest.approx(12 + 2 * 3.6 / 3**0.5)
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    bulk_energy = groups["cu"][0].get_potential_energy() / 4
    tension = (slab.get_potential_energy() - len(slab) * bulk_energy) / (2 * area)
    assert 0.04 < tension < 0.12  # eV/Ang^2; EMT's copper has 0.06
    # the fault: the upper half moved by a quarter of a vector in the plane, and costs energy
    still, shifted = groups["stacking fault"][:2]
    moved = shifted.positions - still.positions
    upper = still.positions[:, 2] > still.positions[:, 2].mean()
    assert upper.sum() == len(still) // 2
    assert moved[upper] == pytest.approx(np.tile(0.25 * still.cell[0], (upper.sum(), 1)), abs=1e-6)
    assert moved[~upper] == pytest.approx(0, abs=1e-6)
    assert shifted.get_potential_energy() > still.get_potential_energy() + 0.1
    assert len(groups["interstitial"][0]) == 5


def test_interstitials_are_in_holes():
    recipe = Recipe([Prototype("cu", copper())], interstitials=2, interstitial_element="Au",
                    supercell=(2, 2, 2), repeats=5)  # fmt: skip
    built = [build(sample, recipe) for sample in samples(recipe)]
    for atoms in built:
        assert (atoms.symbols[-2:] == "Au").all()
        for k in (-1, -2):
            near = atoms.get_distances(k, [i for i in range(34) if i != k % 34], mic=True).min()
            assert near > 1.3  # the octahedral hole has 1.8, a random point 0.9 in the mean
    assert not np.allclose(built[0].positions[-1], built[1].positions[-1])


MD = """
prototypes: {cu: cu.extxyz}
supercell: [2, 2, 2]
calculator: ase.calculators.emt:EMT
md:
  - {temperature: [200, 1200], steps: 40, every: 10, ensemble: npt, pressure: 10}
  - {temperature: 600, steps: 20, every: 10, repeats: 2}
"""


def test_dynamics_ramp_the_temperature_and_go_on_after_an_interruption(monkeypatch, capsys):
    frames = made(MD)
    first = [atoms for atoms in frames if atoms.info["strain_state"] == "cu|(2, 2, 2)|md 0"]
    assert len(frames) == 1 + 4 + 2 * 2
    assert [atoms.info["temperature"] for atoms in first] == pytest.approx(
        np.linspace(200, 1200, 4)
    )
    volumes = [atoms.get_volume() for atoms in first]
    assert volumes[-1] < volumes[0] < 8 * 3.6**3  # under pressure
    assert {atoms.info["group"] for atoms in frames} == {"cu", "md"}
    assert len({atoms.positions.tobytes() for atoms in frames}) == 9
    journals = sorted(Path("out.extxyz.walks").iterdir())
    contents = [path.read_bytes() for path in journals]
    # killed in the middle of a line
    for path, content in zip(journals, contents, strict=True):
        lines = content.splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:50])
    again = made(MD)
    for path, content in zip(journals, contents, strict=True):
        assert path.read_bytes().count(b"\n") == content.count(b"\n")
    for a, b in zip(frames, again, strict=True):
        # EMT's neighbours come in another order
        assert a.positions == pytest.approx(b.positions, abs=1e-6)
    # and what is there is not walked again
    monkeypatch.setattr(walks, "_advance", None)
    assert len(made(MD)) == 9


def test_walks_are_the_same_in_several_processes():
    alloy = copper()
    alloy.symbols[:2] = "Au"
    settings = [
        walks.MD([300, 900], 4, 2, ensemble="npt"),
        walks.MD(600, 4, 2),
        walks.Swaps(500, 4, 2),
    ]

    def tasks(folder: str) -> list[walks.Walk]:
        args = (EMT, {}, 7, Path(folder))
        return [walks.Walk(str(k), "cu", alloy, s, *args) for k, s in enumerate(settings)]

    here = [walks.walk(task) for task in tasks("here")]
    there = walks.walk_all(tasks("there"), "local:2")
    for (frames, end), (others, its_end) in zip(here, there, strict=True):
        assert end == its_end == "done"
        assert len(frames) == 2
        for a, b in zip(frames, others, strict=True):
            assert a == b
            assert a.info == b.info
    for a, b in zip(tasks("here"), tasks("there"), strict=True):
        assert a.journal.read_bytes() == b.journal.read_bytes()


def test_the_dynamics_are_those_of_their_temperature():
    task = walks.Walk("k", "cu", copper().repeat((2, 2, 2)), walks.MD(800, 60, 60, friction=0.2),
                      EMT, {}, 1, Path("w"))  # fmt: skip
    walks.walk(task)
    (record,) = map(json.loads, task.journal.read_text().splitlines())
    momenta = np.array(record["momenta"])
    kelvin = (momenta**2).sum() / 63.546 / (3 * len(momenta)) / units.kB
    assert kelvin == pytest.approx(800, rel=0.35)  # 96 degrees of freedom: 14 %


def test_a_committee_that_disagrees_ends_the_run(capsys):
    text = MD.replace("every: 10,", "every: 10, stop: 0.08,", 1)
    frames = made(text + "driver: committee:Two\n")
    first = [atoms for atoms in frames if atoms.info["strain_state"] == "cu|(2, 2, 2)|md 0"]
    *before, last = first
    assert "md 0: step" in capsys.readouterr().out
    assert last.info["spread"] > 0.08
    assert all(atoms.info["spread"] <= 0.08 for atoms in before)
    assert last.info["step"] < 40
    Path("recipe.yaml").write_text(text)
    assert main(["generate", "recipe.yaml", "--out", "other.extxyz"]) == 2
    assert "needs a committee" in capsys.readouterr().err


def test_exchanges_order_an_alloy():
    alloy = copper().repeat((2, 1, 1))
    alloy.symbols[: len(alloy) // 2] = "Au"  # two halves
    settings = {"steps": 40, "every": 4}
    ends = {}
    for kelvin in (1.0, 1e7):
        task = walks.Walk("k", "cu", alloy, walks.Swaps(kelvin, **settings), EMT, {}, 1, Path("w"))
        kept, end = walks.walk(task)
        assert end == "done"
        assert len(kept) == 10
        for atoms in kept:
            assert sorted(atoms.numbers) == sorted(alloy.numbers)
            assert np.array_equal(atoms.positions, alloy.positions)
        ends[kelvin] = [
            import_calculator(EMT)().get_potential_energy(atoms) for atoms in (alloy, *kept)
        ]
    cold, hot = ends.values()
    assert all(b <= a for a, b in pairwise(cold))
    assert cold[-1] < cold[0] - 0.5
    assert max(hot[1:]) > cold[-1] + 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("md: {steps: 10}", "md: "),
        ("md: {temperature: 300, steps: 15, every: 10}", "no multiple"),
        ("md: {temperature: [1, 2, 3]}", "one or two numbers"),
        ("md: {temperature: 300, ensemble: nve}", "nvt or npt"),
        ("swaps: {temperature: 300, steps: 10, every: 10}", "a single element"),
        ("surfaces: {indices: [1, 1, 1]}", "no setting 'layers'"),
        ("surfaces: {indices: [1, 1, 1], layers: 2, depth: 3}", "'depth' is not known"),
    ],
)
def test_mistakes(text, message, capsys):
    Path("recipe.yaml").write_text(f"prototypes: {{cu: cu.extxyz}}\ncalculator: {EMT}\n{text}\n")
    assert main(["generate", "recipe.yaml", "--out", "out.extxyz"]) == 2
    assert message in capsys.readouterr().err
