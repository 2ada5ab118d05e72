"""`spk-softadapt label`: any calculator or command, anywhere; accidents stay single."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data import children, executors
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.executors import open_executor
from schnetpack_softadapt.data.generate import labelling
from schnetpack_softadapt.data.generate.label import label, read_geometries
from schnetpack_softadapt.data.generate.labelling import COMMAND

EMT_NAME = "ase.calculators.emt:EMT"

CALCULATORS = '''
import os, time
from ase.calculators.emt import EMT

class NoForces(EMT):
    implemented_properties = ["energy"]

class Needs(EMT):
    def __init__(self, model):
        pass

class Odd(EMT):
    """What happens depends on the lattice constant; each calculation is a line."""
    def __init__(self, seconds=0.0, log="calculations.log", **kwargs):
        super().__init__(**kwargs)
        self.seconds, self.log = seconds, log

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {os.getppid()} {self.atoms.cell[0, 0]:.4f}\\n")
        a = self.atoms.cell[0, 0]
        if a > 4.5:
            time.sleep(60)
        if a > 4.4 and not os.path.exists("died"):
            open("died", "w").close()
            os._exit(7)
        if 4.3 < a < 4.4 and not os.path.exists("tried"):
            open("tried", "w").close()
            raise RuntimeError("did not converge")
        time.sleep(self.seconds)
'''


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("calculators.py").write_text(CALCULATORS)
    yield
    sys.modules.pop("calculators", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def coppers(*lattice: float) -> list[Atoms]:
    return [bulk("Cu", "fcc", a=a, cubic=True) for a in lattice]


def assert_emt(frames: list[Atoms], lattice) -> None:
    """Energies, forces and stress are those of a calculator used here."""
    assert [a.cell[0, 0] for a in frames] == pytest.approx(list(lattice))
    for atoms in frames:
        again = atoms.copy()
        again.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-6)
        assert atoms.get_forces() == pytest.approx(again.get_forces(), abs=1e-6)
        assert atoms.get_stress() == pytest.approx(again.get_stress(), abs=1e-7)


def calculations() -> list[str]:
    path = Path("calculations.log")
    return [line.split()[2] for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, process=None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_accidents_cost_one_structure_each_and_a_second_start_tries_them_again(capsys):
    write("in.extxyz", coppers(3.5, 4.6, 3.6, 4.45, 4.35, 3.7))
    command = ["label", "in.extxyz", "--calculator", "calculators:Odd", "--out", "out.extxyz"]
    assert main([*command, "--timeout", "4", "--executor", "local:2"]) == 1
    out = capsys.readouterr().out
    assert "in.extxyz, structure 1: took longer than 4 s" in out
    assert "structure 3: the process of the calculation died (exit code 7)" in out
    assert "structure 4: RuntimeError: did not converge" in out
    assert_emt(read("out.extxyz", ":"), (3.5, 3.6, 3.7))
    about = json.loads(read("out.extxyz").info["calculator"])
    assert about == {"name": "calculators:Odd", "arguments": {}}
    n = len(calculations())
    assert n == 6
    # in another order, with one more, without the one that hangs: 4.35 succeeds by now
    write("in.extxyz", coppers(3.8, 3.7, 4.35, 3.5))
    assert main(command) == 0
    assert sorted(calculations()[n:]) == ["3.8000", "4.3500"]
    assert_emt(read("out.extxyz", ":"), (3.8, 3.7, 4.35, 3.5))
    # another argument of the calculator is another label
    assert main([*command, "--calculator-args", '{"log": "other.log"}']) == 0
    assert len(Path("other.log").read_text().splitlines()) == 4


def test_retries():
    result = label(dict(enumerate(coppers(4.35))), "calculators:Odd", "a.db", retries=1)
    assert not result.failed
    assert calculations() == ["4.3500"] * 2
    (structure,) = read_database("a.db")
    assert structure.forces.shape == (4, 3)


def test_structures_that_go_to_a_worker_together():
    """One of them kills it, another fails; both are tried again, the others computed once."""
    inputs = [(atoms, "calculators:Odd", {}) for atoms in coppers(3.6, 4.45, 4.35, 3.7)]
    home = children.place()
    try:
        results, _ = children.run_batch(labelling.label, inputs, 20.0, 1, home)
    finally:
        children.kill_children(home)
    assert calculations() == ["3.6000", *["4.4500"] * 2, *["4.3500"] * 2, "3.7000"]
    for (labels, reason), (atoms, _, _) in zip(results, inputs, strict=True):
        atoms.calc = EMT()
        assert reason is None
        assert labels["energy"] == atoms.get_potential_energy()


def test_what_a_calculation_started_ends_with_it():
    command = f"echo $$ > {os.getcwd()}/pid; sleep 77 & echo $! >> {os.getcwd()}/pid; wait"
    structures = {"a": coppers(3.6)[0]}
    with pytest.raises(ValueError, match="no structure could be labelled"):
        label(structures, COMMAND, "a.extxyz", {"command": command}, timeout=4)
    shell, sleep = map(int, Path("pid").read_text().split())
    wait_for(lambda: not is_alive(shell) and not is_alive(sleep))


def test_external_command(capsys):
    Path("program.py").write_text(
        "import sys, ase.io\nfrom ase.calculators.emt import EMT\n"
        "atoms = ase.io.read('in.extxyz')\natoms.calc = EMT()\natoms.get_stress()\n"
        "if atoms.cell[0, 0] > 4: sys.exit('no memory')\n"
        "atoms.get_forces()\nase.io.write('out.extxyz', atoms)\n"
    )
    write("in.extxyz", coppers(3.6, 4.1))
    program = f"{sys.executable} {os.getcwd()}/program.py"
    command = ["label", "in.extxyz", "--command", program, "--out", "out.extxyz"]
    assert main([*command, "--calculator-args", '{"directory": "runs"}']) == 1
    assert "structure 1: RuntimeError: exit status 1, see " in capsys.readouterr().out
    assert_emt(read("out.extxyz", ":"), (3.6,))
    # the directory of the failure stays, that of the success does not
    (folder,) = Path("runs").iterdir()
    assert "no memory" in (folder / "log").read_text()


def test_any_executor_and_directories_of_the_workers():
    arguments = {"log": "{worker}.txt"}
    with ProcessPoolExecutor(2) as executor:
        structures = dict(enumerate(coppers(*np.linspace(3.5, 3.9, 8))))
        result = label(structures, "calculators:Odd", "a.extxyz", arguments, executor)
        assert executor.submit(abs, -1).result() == 1  # still the caller's
    assert_emt(result.labelled, np.linspace(3.5, 3.9, 8))
    logs = list(Path().glob("*-0.txt"))
    assert 1 <= len(logs) <= 2  # of processes: host, id, number
    label({"a": coppers(3.6)[0]}, "calculators:Odd", "b.extxyz", arguments)
    assert len(Path("0.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("local:0", "a number of processes from 1 on"),
        ("nowhere", "is none of local:4"),
        ({"locl": 4}, "has neither `local` nor `dask`"),
        ({"local": 4, "cores": 1}, "unknown setting 'cores'"),
        ({"local": 4, "workers": "x"}, "a number of workers from 1 on, not 'x'"),
        ({"dask": "distributed:NoCluster"}, "there is no 'NoCluster' in distributed"),
        ({"dask": "distributed:LocalCluster", "arguments": 3}, "those of the cluster, by name"),
        ({"dask": 8786}, "dask is tcp://host:8786, a scheduler's file.json"),
        ("damaged.yaml", "damaged.yaml is not YAML"),
        ("dask:damaged.json", "damaged.json: not the file of a scheduler"),
        ("dask:tcp://127.0.0.1:9", "no scheduler answers"),
    ],
)
def test_wrong_executors(spec, message, monkeypatch):
    Path("damaged.yaml").write_text("dask: [1\n")
    Path("damaged.json").write_text("{}")
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    with pytest.raises((ValueError, OSError), match=message), open_executor(spec):
        pass


def test_mistakes(capsys):
    write("in.extxyz", coppers(3.6))
    for options, message in (
        (["--calculator", "ase.calculators.emt:EMTT"], "no 'EMTT'"),
        (["--calculator", EMT_NAME, "--command", "true"], "not both"),
        ([], "no calculator"),
        (["--command", " "], "--command is empty"),
        (["--calculator", "calculators:Needs"], "missing a required argument: 'model'"),
        (["--calculator", "calculators:NoForces"], "has no forces"),
        (["--calculator", EMT_NAME, "--retries", "-1"], "retries -1 no number"),
        (["--calculator", EMT_NAME, "--timeout", "0"], "timeout 0.0 is no time"),
        (["--calculator", EMT_NAME, "--calculator-args", "[1]"], "keyword arguments by name"),
    ):
        assert main(["label", "in.extxyz", "--out", "out.extxyz", *options]) == 2
        assert message in capsys.readouterr().err
    Path("damaged.extxyz").write_text("2\nProperties=species:S:1:pos:R:3\nCu 0 0 0\nCu 0 x 0\n")
    assert main(["label", "damaged.extxyz", "--out", "o.db", "--calculator", EMT_NAME]) == 2
    assert "damaged.extxyz, structure 0: cannot be read" in capsys.readouterr().err
    Path("out.extxyz.journal").write_text('{"key": "a", "digest": "b"}\n{"key"\n{"key"')
    assert main(["label", "in.extxyz", "--out", "out.extxyz", "--calculator", EMT_NAME]) == 2
    assert "out.extxyz.journal, line 2: damaged; remove this line" in capsys.readouterr().err


def test_formats_and_what_stays_of_a_structure():
    atoms = coppers(3.6)[0]
    atoms.info["config_type"] = "cold"
    atoms.set_initial_magnetic_moments([1, 0, 0, 0])
    write("a.traj", atoms)
    Path("input.data").write_text(
        "begin\nlattice 6 0 0\nlattice 0 6 0\nlattice 0 0 6\n"
        "atom 1 2 3 Cu 0 0 0 0 0 0\nenergy 0\ncharge 0\nend\n"
    )
    (name, first), (_, second) = read_geometries(["a.traj", "input.data"])
    assert name == "a.traj, structure 0"
    assert first.info["config_type"] == "cold"
    assert first.get_initial_magnetic_moments()[0] == 1
    assert second.cell.lengths() == pytest.approx([6 * 0.529177] * 3, rel=1e-5)  # bohr
    assert second.positions[0] == pytest.approx(np.array([1, 2, 3]) * 0.529177, rel=1e-5)


# a cluster


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_dask_loses_a_worker_the_parent_and_the_scheduler_and_goes_on(capfd):
    pytest.importorskip("distributed")
    lattice = np.linspace(3.4, 3.9, 30)
    write("in.extxyz", coppers(*lattice))
    journal = Path("out.extxyz.journal")

    def n_kept() -> int:
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    command = ["label", "in.extxyz", "--calculator", "calculators:Odd", "--out", "out.extxyz"]
    command += ["--calculator-args", '{"seconds": 0.1}', "--executor", "dask:s.json"]
    code = f"from schnetpack_softadapt.cli.main import main; main({command!r})"
    dask = [sys.executable, "-m", "dask"]
    about_worker = ["--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    with contextlib.ExitStack() as stack:

        def start(*text: str) -> subprocess.Popen:
            process = subprocess.Popen(text, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        where = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", "s.json"]

        def start_cluster() -> subprocess.Popen:
            scheduler = start(*dask, "scheduler", *where, "--no-dashboard")
            wait_for(Path("s.json").exists, scheduler)
            start(*dask, "worker", "--scheduler-file", "s.json", *about_worker)
            return scheduler

        scheduler = start_cluster()
        parent = start(sys.executable, "-c", code)
        wait_for(lambda: n_kept() > 2, parent)
        child, worker, _ = Path("calculations.log").read_text().split()[-3:]
        os.kill(int(worker), signal.SIGKILL)  # the nanny starts another
        wait_for(lambda: not is_alive(int(child)))
        n = n_kept()
        wait_for(lambda: n_kept() > n + 2, parent)
        parent.kill()
        parent.wait()
        n = n_kept()
        assert n < len(lattice)

        def kill_scheduler() -> None:
            wait_for(lambda: n_kept() > n + 2)
            scheduler.kill()

        threading.Thread(target=kill_scheduler).start()
        assert main(command) == 2
        scheduler.wait()
        errors = capfd.readouterr().err
        assert errors.splitlines()[-1].endswith("what is finished is kept, start again to go on")
        assert "Traceback" not in errors
        n, n_before = n_kept(), len(calculations())
        assert n < len(lattice)
        Path("s.json").unlink()
        start_cluster()
        assert main(command) == 0
    # and, perhaps, two that the workers had in hand
    assert 0 <= len(calculations()) - n_before - (len(lattice) - n) <= 2
    assert_emt(read("out.extxyz", ":"), lattice)
    assert not any("error" in line for line in journal.read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("distributed:LocalCluster", {"n_workers": 0, "processes": False, "threads_per_worker": 2}),
        ("dask_jobqueue.local:LocalCluster", {"cores": 1, "memory": "1GB"}),
    ],
)
def test_a_cluster_by_the_name_of_its_class(name, arguments):
    pytest.importorskip(name.split(".")[0].split(":")[0])
    settings = {"dask": name, "workers": 1, "arguments": arguments}
    Path("cluster.yaml").write_text(json.dumps(settings))
    structures = dict(enumerate(coppers(3.6, 3.7)))
    result = label(structures, EMT_NAME, "a.extxyz", executor="cluster.yaml")
    assert_emt(result.labelled, (3.6, 3.7))


def test_workers_whose_time_is_over_are_replaced(monkeypatch):
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    clusters = []

    class Brief(distributed.LocalCluster):
        def __init__(self):
            clusters.append(self)
            super().__init__(0, processes=False, dashboard_address=None, silence_logs=50)

    monkeypatch.setattr(distributed, "Brief", Brief, raising=False)
    journal, over = Path("a.extxyz.journal"), threading.Event()

    def end_worker() -> None:
        wait_for(lambda: journal.exists() and journal.read_bytes())
        (worker,) = clusters[0].workers.values()
        clusters[0].sync(worker.close)
        if not over.wait(30):
            clusters[0].close()

    threading.Thread(target=end_worker).start()
    structures = dict(enumerate(coppers(*np.linspace(3.5, 3.9, 8))))
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        calculator = ("calculators:Odd", "a.extxyz", {"seconds": 0.1})
        result = label(structures, *calculator, executor={"dask": "distributed:Brief"})
    over.set()
    assert_emt(result.labelled, np.linspace(3.5, 3.9, 8))
