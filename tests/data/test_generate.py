"""`spk-softadapt generate`: what a recipe makes, and that no interruption or failure loses work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from processes import start

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.generate.recipe import (
    Prototype,
    Recipe,
    build,
    parse_grid,
    parse_strain,
    read_recipe,
    samples,
)
from schnetpack_softadapt.quantities import VOIGT

#: calculators for the tests, imported by the workers from the current directory
CALCULATORS = '''
import os, time
from ase.calculators.emt import EMT

class Logged(EMT):
    """EMT that writes one line per calculation and takes its time."""
    def __init__(self, seconds=0.0, **kwargs):
        super().__init__(**kwargs)
        self.seconds = seconds

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        with open("calculations.log", "a") as file:
            file.write(f"{os.getpid()} {self.results['energy']!r}\\n")
        time.sleep(self.seconds)

class Bad(EMT):
    """Fails where the cell is stretched, in the way asked for."""
    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.atoms.cell[0, 0] > 3.7:
            if self.how == "raise":
                raise RuntimeError("did not converge\\nat all")
            if self.how == "die":
                os._exit(7)
            self.results["forces"][0, 0] = float("nan")

class Free(EMT):
    """Energy without the electronic entropy differs from what forces derive from."""
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["energy"] += 1.0

def no_stress():
    calculator = EMT()
    calculator.implemented_properties = ["energy", "free_energy", "forces"]
    get = calculator.get_property
    def without(name, *args, **kwargs):
        if name == "stress":
            raise NotImplementedError
        return get(name, *args, **kwargs)
    calculator.get_property = without
    return calculator
'''


@pytest.fixture(autouse=True)
def _in_folder_with_copper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("cu.extxyz", copper())
    Path("calculators.py").write_text(CALCULATORS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    sys.modules.pop("calculators", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def copper() -> Atoms:
    return bulk("Cu", "fcc", a=3.6, cubic=True)


def recipe(**settings) -> Recipe:
    return Recipe([Prototype("cu", copper())], **settings)


def run(*args, calculator="ase.calculators.emt:EMT", out="out.extxyz", prototype="cu.extxyz"):
    return main(["generate", prototype, "--calculator", calculator, "--out", out, *map(str, args)])


def same(first: list[Atoms], second: list[Atoms]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.positions, b.positions)
        and np.array_equal(a.cell.array, b.cell.array)
        and a.get_potential_energy() == b.get_potential_energy()
        for a, b in zip(first, second, strict=True)
    )


# what a recipe makes


@pytest.mark.parametrize("component", range(6))
def test_strain_deforms_the_cell_as_its_name_says(component):
    strain = np.zeros(6)
    strain[component] = 0.02
    (sample,) = samples(recipe(strain=strain))
    atoms = build(sample, recipe())
    a, b = ("xyz".index(letter) for letter in VOIGT[component])
    deformation = np.eye(3)
    deformation[a, b] += 0.02
    if a != b:
        deformation[b, a] += 0.02
    assert atoms.cell.array == pytest.approx(copper().cell.array @ deformation)
    assert atoms.positions == pytest.approx(copper().positions @ deformation)
    assert sample.strain_state == f"{VOIGT[component]}+0.02"
    # tensor components: the energy's derivative by one shear holds sigma_ab and sigma_ba
    assert atoms.info["strain"] == pytest.approx(strain)


def test_grids_of_strain():
    in_plane = parse_strain({"in_plane": "-0.1:0.1:0.02"})
    assert len(in_plane) == 121
    assert not in_plane[:, 2:].any()
    assert [0, 0, 0, 0, 0, 0] in in_plane.tolist()
    full = parse_strain({"full": [-0.01, 0, 0.01]})
    assert len(np.unique(full, axis=0)) == 3**6
    both = parse_strain([{"xx": [0, 0.1]}, {"xy": [0, 0.1]}])
    assert both.tolist() == [[0] * 6, [0.1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.1]]
    assert parse_grid("0:0.12:0.01") == tuple(round(0.01 * k, 12) for k in range(13))
    assert parse_grid(["0", 0.5, "0.5,1"]) == (0.0, 0.5, 1.0)


def test_the_mote2_recipe_is_the_grid_of_the_paper():
    mote2 = read_recipe("mote2")
    found = list(samples(mote2))
    assert len(found) == 2 * 121 * 13
    assert len({sample.key for sample in found}) == len(found)
    for name, n_atoms in (("2H", 3), ("1Tp", 6)):
        own = [sample for sample in found if sample.prototype == name]
        assert {round(s.sigma, 6) for s in own} == {round(0.01 * k, 6) for k in range(13)}
        assert {s.strain[:2] for s in own} == {
            (round(0.02 * i, 12), round(0.02 * j, 12)) for i in range(-5, 6) for j in range(-5, 6)
        }
        (prototype,) = (p for p in mote2.prototypes if p.name == name)
        atoms = build(own[0], mote2)  # the first one: both axes -10 %, not perturbed
        assert len(atoms) == n_atoms
        lengths = prototype.atoms.cell.lengths()
        assert atoms.cell.array == pytest.approx(
            prototype.atoms.cell.array @ np.diag([0.9, 0.9, 1.0])
        )
        assert atoms.cell.lengths()[2] == pytest.approx(lengths[2])
        assert prototype.calculator_args["kpts"]["size"][0] == 6
    assert main(["generate", "--config", "mote2", "--dry-run"]) == 0


def test_displacements_have_the_asked_for_spread():
    asked = recipe(sigma=(0.05,), supercell=((6, 6, 6),), seed=1)
    (sample,) = samples(asked)
    atoms = build(sample, asked)
    displacements = atoms.positions - copper().repeat(6).positions
    # 2592 numbers: the standard deviation is known to 1.4 %
    assert displacements.std() == pytest.approx(0.05, rel=0.05)
    assert abs(displacements.mean()) < 4 * 0.05 / np.sqrt(displacements.size)
    short = recipe(sigma=(0.05,), supercell=((6, 6, 6),), seed=1, max_displacement=0.04)
    clipped = build(sample, short).positions - copper().repeat(6).positions
    assert np.linalg.norm(clipped, axis=1).max() == pytest.approx(0.04)


def test_vacancies_and_supercells():
    alloy = copper()
    alloy.symbols[0] = "Au"
    asked = Recipe(
        [Prototype("alloy", alloy)],
        vacancies=(0, 2),
        vacancy_element="Au",
        supercell=((1, 1, 2), (2, 1, 1)),
        repeats=3,
    )
    made = [build(sample, asked) for sample in samples(asked)]
    # without random numbers there is one case, not three
    assert [len(a) for a in made] == [8, 6, 6, 6] * 2
    assert all(a.symbols.count("Au") == 2 - a.info["vacancies"] for a in made)
    assert made[0].cell.lengths() == pytest.approx([3.6, 3.6, 7.2])
    assert made[4].cell.lengths() == pytest.approx([7.2, 3.6, 3.6])
    choices = recipe(vacancies=(1,), supercell=((2, 2, 2),), repeats=5)
    places = {build(s, choices).positions.sum().round(6) for s in samples(choices)}
    assert len(places) > 1


def test_a_structure_does_not_depend_on_the_others():
    small = recipe(sigma=(0.1,), seed=3)
    large = recipe(
        strain=parse_strain({"xx": "-0.02:0.02:0.01"}), sigma=(0.2, 0.1), repeats=2, seed=3
    )
    (wanted,) = samples(small)
    (found,) = (s for s in samples(large) if s.key == wanted.key)
    assert np.array_equal(build(wanted, small).positions, build(found, large).positions)
    # each has random numbers of its own, also if only strain or sigma differ
    drawn = []
    for sample in samples(large):
        atoms = build(sample, large)
        crystal = copper().get_scaled_positions() @ atoms.cell.array
        drawn.append(tuple(((atoms.positions - crystal) / sample.sigma).ravel().round(6)))
    assert len(set(drawn)) == len(drawn) == 5 * 2 * 2
    another = recipe(sigma=(0.1,), seed=4)
    assert not np.array_equal(build(wanted, another).positions, build(wanted, small).positions)


# the command


def test_labels_and_provenance_and_the_way_into_a_database(capsys):
    assert run("--strain", "xx=-0.02:0.02:0.02", "xy=0,0.02", "--sigma", "0", "0.05") == 0
    frames = read("out.extxyz", ":")
    assert len(frames) == 3 * 2 * 2
    for atoms in frames:
        again = atoms.copy()
        again.calc = EMT()
        # 8 decimals of the positions in the file
        assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-6)
        assert atoms.get_forces() == pytest.approx(again.get_forces(), abs=1e-5)
        assert atoms.get_stress() == pytest.approx(again.get_stress(), abs=1e-6)
        assert atoms.info["prototype"] == "cu"
        assert atoms.info["seed"] == 0
        assert json.loads(atoms.info["calculator"]) == {
            "name": "ase.calculators.emt:EMT",
            "arguments": {},
        }
        assert isinstance(atoms.info["child_seed"], int | np.integer)
    assert "labelled     12 (12 of them now)" in capsys.readouterr().out
    assert not list(Path().glob("*lock"))
    options = ["--split-key", "prototype", "strain_state", "--out", "my.db"]
    assert main(["import", "out.extxyz", *options]) == 0
    assert len(read_database("my.db")) == 12
    assert {s.group for s in read_database("my.db")} == {"cu"}


def test_a_database_directly_and_not_over_a_file_of_others():
    assert run("--strain", "in-plane=0,0.01", out="my.db") == 0
    structures = read_database("my.db")
    assert len(structures) == 4
    atoms = structures[1].to_atoms()
    atoms.calc = EMT()
    assert structures[1].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    Path("mine.extxyz").write_text("years of work")
    assert run(out="mine.extxyz") == 2
    assert Path("mine.extxyz").read_text() == "years of work"


def test_results_do_not_depend_on_the_number_of_processes():
    grid = ["--strain", "xx=-0.02:0.02:0.01", "--sigma", 0.05, "--seed", 5]
    assert run(*grid, out="one.extxyz") == 0
    assert run(*grid, "--executor", "local:2", out="two.extxyz") == 0
    assert Path("one.extxyz").read_bytes() == Path("two.extxyz").read_bytes()
    assert run(*grid[:-1], 6, out="other.extxyz") == 0
    assert not same(read("one.extxyz", ":"), read("other.extxyz", ":"))


def test_what_is_known_is_not_computed_again(capsys):
    calculator = "calculators:Logged"
    log = Path("calculations.log")
    assert run("--strain", "xx=0,0.01", calculator=calculator) == 0
    assert len(log.read_text().splitlines()) == 2
    assert run("--strain", "xx=0,0.01,0.02", calculator=calculator) == 0
    assert len(log.read_text().splitlines()) == 3
    assert "labelled     3 (1 of them now)" in capsys.readouterr().out
    # another calculator, or other arguments of it: none of these labels may be taken
    arguments = ["--calculator-args", '{"seconds": 0.001}']
    assert run("--strain", "xx=0,0.01,0.02", *arguments, calculator=calculator) == 0
    assert len(log.read_text().splitlines()) == 6
    assert "3 earlier results are of other settings" in capsys.readouterr().out


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_resumes_after_kill_9():
    grid = ["--strain", "xx=-0.03:0.03:0.01", "--sigma", "0.05", "--executor", "local:2"]
    arguments = ["--calculator-args", '{"seconds": 0.15}']
    command = ["generate", "cu.extxyz", "--calculator", "calculators:Logged", *grid, *arguments]
    command = [*command, "--out", "out.extxyz"]
    process = start(main, command, folder=Path.cwd())
    journal, log = Path("out.extxyz.journal"), Path("calculations.log")
    deadline = time.monotonic() + 60
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 2:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    workers = {int(line.split()[0]) for line in log.read_text().splitlines()}
    while any(is_alive(worker) for worker in workers):  # they go when they notice
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not Path("out.extxyz").exists()
    n_kept = len(journal.read_bytes().splitlines())
    assert 2 <= n_kept < 7
    with open(journal, "ab") as file:
        file.write(b'{"key": "cu|1x1x1|xx-0.03|si')  # the line that was being written
    n_before = len(log.read_text().splitlines())
    assert main([*command, "--out", "out.extxyz"]) == 0
    assert len(log.read_text().splitlines()) - n_before == 7 - n_kept
    assert main([*command, "--out", "straight.extxyz"]) == 0
    assert Path("out.extxyz").read_bytes() == Path("straight.extxyz").read_bytes()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "RuntimeError: did not converge at all"),
        ("die", "the process of the calculation died (exit code 7)"),
        ("nan", "ValueError: forces not finite"),
    ],
)
def test_failures_are_reported_and_do_not_stop_the_others(how, reason, capsys):
    grid = ["--strain", "xx=0:0.06:0.01"]
    arguments = ["--calculator-args", json.dumps({"how": how})]
    assert run(*grid, *arguments, calculator="calculators:Bad") == 1
    out = capsys.readouterr().out
    assert "failed       4" in out
    assert f"cu|1x1x1|xx+0.03|sigma 0|vacancies 0|0: {reason}" in out
    assert len(read("out.extxyz", ":")) == 3
    if how == "raise":  # failures are tried again, and only these
        Path("calculators.py").write_text(CALCULATORS.replace("> 3.7", "> 9"))
        assert run(*grid, *arguments, calculator="calculators:Bad") == 0
        assert "labelled     7 (4 of them now)" in capsys.readouterr().out
        assert len(read("out.extxyz", ":")) == 7


def test_a_file_of_somebody_else_is_kept(capsys):
    Path("out.extxyz").write_text("mine")
    assert run("--strain", "xx=0.01") == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert Path("out.extxyz").read_text() == "mine"
    assert run("--strain", "xx=0.01", "--overwrite") == 0
    assert len(read("out.extxyz", ":")) == 1


def test_nothing_labelled_is_an_error(capsys):
    arguments = ["--calculator-args", '{"how": "raise"}']
    assert run("--strain", "xx=0.06", *arguments, calculator="calculators:Bad") == 2
    assert "no structure could be labelled" in capsys.readouterr().err
    assert not Path("out.extxyz").exists()


def test_atoms_too_close_are_skipped_and_named(capsys):
    # lattice vector 0.4 x 3.6 = 1.44 Ang, below 0.6 x 2 x 1.32 = 1.584 Ang
    assert run("--strain", "xx=-0.6,0", calculator="calculators:Logged") == 0
    out = capsys.readouterr().out
    assert "labelled     1" in out
    assert "skipped      1" in out
    assert "xx-0.6|sigma 0|vacancies 0|0: atoms 0 and 0 are 1.440 Ang apart" in out
    assert len(Path("calculations.log").read_text().splitlines()) == 1
    assert run("--strain", "xx=0", "--min-distance", 2.6, out="b.extxyz") == 2  # all of them
    assert "2.546 Ang apart (less than 2.600" in capsys.readouterr().out


def test_the_energy_is_the_one_forces_derive_from():
    assert run(calculator="calculators:Free") == 0
    atoms = copper()
    atoms.calc = EMT()
    assert read("out.extxyz").get_potential_energy() == pytest.approx(
        atoms.get_potential_energy(), abs=1e-6
    )


def test_calculators_without_stress():
    assert run(calculator="calculators:no_stress", out="my.db") == 0
    (structure,) = read_database("my.db")
    assert structure.stress is None
    assert structure.forces is not None


def test_settings_from_yaml_and_options_before_it():
    Path("sub").mkdir()
    write("sub/gold.extxyz", bulk("Au"))
    Path("sub/my.yaml").write_text(
        "prototypes: {gold: gold.extxyz}\n"
        "strain: [{xx: '0:0.02:0.01'}, {yz: 0.01}]\n"
        "sigma: 0.01\nsupercell: [2, 1, 1]\nseed: 7\ncalculator: ase.calculators.emt:EMT\n"
    )
    assert main(["generate", "--config", "sub/my.yaml", "--out", "a.extxyz", "--seed", "8"]) == 0
    frames = read("a.extxyz", ":")
    assert len(frames) == 4
    assert {len(a) for a in frames} == {2}
    assert {a.info["seed"] for a in frames} == {8}
    assert {a.info["prototype"] for a in frames} == {"gold"}


def test_two_processes_do_not_write_the_same_file(capsys):
    code = (
        "import filelock, time; lock = filelock.FileLock('.out.extxyz.journal.lock');"
        "lock.acquire(); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline().strip() == b"locked"
        assert run() == 2
        assert "another process is writing" in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()
    assert run("--sigma", 0) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--calculator", "ase.calculators.emt:EMTT"], "no 'EMTT' in ase.calculators.emt"),
        (["--calculator", "ase.calculators.emt"], "is not module:name"),
        (["--calculator", "no_such_module:EMT"], "No module named 'no_such_module'"),
        (["--calculator-args", "{how"], "--calculator-args is not JSON"),
        (["--calculator-args", "[1]"], "keyword arguments by name"),
        (["--strain", "0.1"], "write name=grid"),
        (["--strain", "ab=0.1"], "unknown strain 'ab'; choose from xx"),
        (["--strain", "xx=0:0.1:0.03"], "the step does not lead from 0.0 to 0.1"),
        (["--strain", "xx=-1.1"], "turns the cell inside out"),
        (["--sigma", "-0.1"], "sigma is a standard deviation"),
        (["--vacancies", "4"], "4 vacancies are too many for cu repeated [1, 1, 1] (4 atoms)"),
        (["--vacancies", "0.5"], "vacancies is a number of atoms, not 0.5"),
        (["--supercell", "1", "1", "0"], "supercell [1, 1, 0] is not three repetitions"),
        (["--out", "out.dat"], "the name must end in .extxyz"),
        (
            ["--config", "nowhere.yaml"],
            "no file nowhere.yaml, nor a recipe of this name",
        ),
    ],
)
def test_mistakes(args, message, capsys):
    defaults = ["--calculator", "ase.calculators.emt:EMT", "--out", "out.extxyz"]
    assert main(["generate", "cu.extxyz", *defaults, *args]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir().count("out.extxyz") == 0


def test_mistakes_in_yaml(capsys):
    for text, message in (
        ("sigmas: 1", "unknown setting 'sigmas'; choose from"),
        ("a: [", "is not YAML"),
        ("- 1", "holds no settings by name"),
        ("prototypes: [nowhere.cif]", "nowhere.cif for the prototype nowhere"),
        ("prototypes: [my.yaml]", "my.yaml is no structure file that ASE reads"),
        ("prototypes: []", "no prototypes to start from"),
        ("prototypes: {a: {file: cu.extxyz, kpts: 1}}", "unknown setting 'kpts' of prototype a"),
    ):
        Path("my.yaml").write_text(text)
        assert main(["generate", "--config", "my.yaml", "--dry-run"]) == 2
        assert message in capsys.readouterr().err
