"""What a real LAMMPS computes with an exported folder, against the ASE calculator.

They need `lmp` with the packages ML-IAP (with Python) and PYTHON on PATH, and a Python for it that
finds this package; without it they are skipped.
"""

import os
import re
import shutil
import subprocess
from functools import lru_cache

import ase.io
import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from deploy_models import make_layout, make_model, mo, mote2

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.export import export_potential
from schnetpack_softadapt.deploy.exchange.text import TextPotential, read_text
from schnetpack_softadapt.descriptors.acsf.layout import Layout
from schnetpack_softadapt.model import ZBL, ElementalAtomwise
from schnetpack_softadapt.model.fade import Fade

BAR = 1.6021765e6  # of an eV/Ang^3, LAMMPS' own number


@lru_cache(maxsize=1)
def packages() -> set[str]:
    """What LAMMPS was built with."""
    told = subprocess.run(["lmp", "-h"], capture_output=True, text=True).stdout
    return set(told.partition("Installed packages:")[2].split())


def missing() -> str:
    """Why LAMMPS cannot be run; empty if it can."""
    if shutil.which("lmp") is None:
        return "there is no lmp on PATH"
    if not {"ML-IAP", "PYTHON"} <= packages():
        return "lmp lacks ML-IAP or PYTHON"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def run(folder, text: str, ranks: int = 1) -> str:
    """Run LAMMPS on an input in a folder; what it prints."""
    if ranks > 1 and shutil.which("mpirun") is None:
        pytest.skip("there is no mpirun on PATH")
    (folder / "in.test").write_text(text)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ranked = ("mpirun", "--oversubscribe", "-np", str(ranks)) if ranks > 1 else ()
    done = subprocess.run(
        [*ranked, "lmp", "-in", "in.test"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **threads, **root},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def setup(folder) -> str:
    """The part of `in.lammps` that defines the simulation."""
    return (folder / "in.lammps").read_text().split("velocity ")[0]


OUTPUT = """
compute pe all pe/atom
compute virial all pressure NULL virial
thermo_style custom step pe c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] &
    c_virial[6] etotal c_outside
thermo_modify format float %.17g line one
compute atomic all stress/atom NULL virial
dump one all custom 1000000 {name} id type x y z fx fy fz c_pe c_atomic[*]
dump_modify one format float %.17g sort id first no
"""


def last_thermo(text: str) -> np.ndarray:
    lines = text.splitlines()
    start = max(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    stop = next(k for k in range(start, len(lines)) if lines[k].startswith("Loop time"))
    return np.array(lines[stop - 1].split(), dtype=float)


def compare(folder, thermo, dump, symbols, pbc, tolerance=1e-10, has_virials=True):
    """Energy, energies and virials of atoms, forces and virial of a dump, with the calculator's."""
    atoms = ase.io.read(folder / dump, format="lammps-dump-text", index=-1)
    numbers = [symbols[k - 1] for k in read_column(folder / dump, "type").astype(int)]
    atoms.set_chemical_symbols(numbers)
    atoms.pbc = pbc
    atoms.calc = SoftAdaptCalculator(folder)
    energies = read_column(folder / dump, "c_pe")
    forces = np.stack([read_column(folder / dump, f"f{x}") for x in "xyz"], axis=1)
    n = len(atoms)
    assert abs(thermo[1] - atoms.get_potential_energy()) / n < tolerance
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=tolerance)
    six = [read_column(folder / dump, f"c_atomic[{k}]") for k in range(1, 7)]
    virials = np.stack(six, axis=1) / BAR
    if has_virials:
        expected = virials_of_atoms(atoms, folder)
        np.testing.assert_allclose(virials, expected, rtol=0, atol=tolerance)
    if has_virials and all(pbc):
        total = -thermo[2:8] / BAR * atoms.get_volume()
        np.testing.assert_allclose(virials.sum(axis=0), total, rtol=0, atol=n * tolerance)
        stress = atoms.get_stress()[[0, 1, 2, 5, 4, 3]]
        np.testing.assert_allclose(-thermo[2:8] / BAR, stress, rtol=0, atol=tolerance)


def virials_of_atoms(atoms, folder) -> np.ndarray:
    """(N, 6) half of r_ij (x) dE/dr_ij to either atom of each pair, in LAMMPS' order, eV."""
    potential = TextPotential(read_text(folder))
    i, j, r_ij = neighbor_list("ijD", atoms, potential.cutoff)
    rows = np.searchsorted(potential.elements, atoms.numbers)
    gradient = potential(r_ij, i, j, rows, len(atoms)).gradient
    halves = 0.5 * (r_ij[:, [0, 1, 2, 0, 0, 1]] * gradient[:, [0, 1, 2, 1, 2, 2]])
    virials = np.zeros((len(atoms), 6))
    np.add.at(virials, i, halves)
    np.add.at(virials, j, halves)
    return virials


def read_column(path, name: str) -> np.ndarray:
    """A column of the last frame of a dump."""
    lines = path.read_text().split("ITEM: ATOMS ")[-1].splitlines()
    column = lines[0].split().index(name)
    return np.array([line.split()[column] for line in lines[1:]], dtype=float)


def single() -> Layout:
    return Layout({"Mo": [f for f in make_layout().functions[42] if 52 not in f.neighbors]})


def slab():
    atoms = mote2(0.1)
    atoms.pbc = (True, True, False)
    return atoms


def molecule():
    atoms = mo(0.1, n=1)
    atoms.pbc = False
    return atoms


def with_zbl(fades: bool):
    """Another pair of cutoffs for Mo-Te; all reach into the bonds."""
    model = make_model()
    cutoffs = {"Mo-Te": [2.0, 2.9]}
    model.postprocessors.append(ZBL.of_elements({42, 52}, inner=2.2, outer=3.5, cutoffs=cutoffs))
    if fades:
        networks = next(m for m in model.output_modules if isinstance(m, ElementalAtomwise))
        networks.fade = Fade((42, 52), np.full((2, 2), 2.7), np.full((2, 2), 1.5), ceiling=0.7)
    return [model]


def close():
    atoms = mote2(0.1)
    atoms.positions[1] += 0.3 * (atoms.positions[0] - atoms.positions[1])
    assert 1.5 < atoms.get_distance(0, 1) < 2.2
    return atoms


CASES = {
    "one element, orthogonal": (lambda: [make_model(layout=single())], lambda: mo(0.1, n=3)),
    "two elements, sheared": (lambda: [make_model()], lambda: mote2(0.1) * (2, 2, 1)),
    "committee": (lambda: [make_model(seed=k) for k in range(3)], lambda: mote2(0.1)),
    "slab": (lambda: [make_model()], slab),
    "ZBL": (lambda: with_zbl(True), close),
    "not periodic": (lambda: [make_model(layout=single())], molecule),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_one_step(tmp_path, case, ranks):
    """Small boxes: an atom has several images, and a rank may have no atoms."""
    models, atoms = (make() for make in CASES[case])
    export_potential(models, tmp_path, atoms)
    if "orthogonal" in case:  # LAMMPS has other code for it than for tilts of zero
        path = tmp_path / "structure.data"
        path.write_text(re.sub(".* xy xz yz\n", "", path.read_text()))
    symbols = ["Mo"] if len(models[0].representation.descriptor.elements) == 1 else ["Mo", "Te"]
    text = setup(tmp_path) + OUTPUT.format(name="one.dump") + "run 0\n"
    thermo = last_thermo(run(tmp_path, text, ranks))
    compare(tmp_path, thermo, "one.dump", symbols, atoms.pbc)
    calculator = SoftAdaptCalculator(models)
    got = ase.io.read(tmp_path / "one.dump", format="lammps-dump-text")
    types = read_column(tmp_path / "one.dump", "type").astype(int)
    got.set_chemical_symbols([symbols[k - 1] for k in types])
    got.pbc = atoms.pbc
    calculator.calculate(got)
    # LAMMPS counts those of setup once
    assert thermo[9] == calculator.extrapolation.n_last


@pytest.mark.parametrize("ranks", [1, 2])
def test_hdnnp_with_zbl_below(tmp_path, ranks):
    """The second choice of `in.lammps`: n2p2's networks and LAMMPS' own ZBL."""
    if "ML-HDNNP" not in packages():
        pytest.skip("lmp lacks ML-HDNNP")
    atoms = close()
    export_potential(with_zbl(False), tmp_path, atoms)
    first, _, second = setup(tmp_path).partition("# or, with the package ML-HDNNP")
    assert "#pair_style      hybrid/overlay zbl 2.2 3.5 zbl 2.0 2.9 hdnnp 4.51 dir" in second
    commands = re.sub(r"^#(pair_| +maxew)", r"\1", second.split("\n", 2)[2], flags=re.M)
    output = OUTPUT.format(name="one.dump").replace(" c_outside", "")
    text = first.split("pair_style")[0] + commands + output + "run 0\n"
    thermo = last_thermo(run(tmp_path, text, ranks))
    compare(tmp_path, thermo, "one.dump", ["Mo", "Te"], atoms.pbc, has_virials=False)
    _, reason = export_potential(with_zbl(True), tmp_path, atoms)
    assert "fade out" in reason


def test_spread_of_a_committee(tmp_path):
    models, atoms = [make_model(seed=k) for k in range(3)], mote2(0.1)
    export_potential(models, tmp_path, atoms)
    output = OUTPUT.format(name="one.dump").replace("c_pe ", "c_pe d_energy_std ")
    run(tmp_path, setup(tmp_path) + output + "run 0\n", 2)
    got = ase.io.read(tmp_path / "one.dump", format="lammps-dump-text")
    types = read_column(tmp_path / "one.dump", "type").astype(int)
    got.numbers = np.array([42, 52])[types - 1]
    got.calc = SoftAdaptCalculator(models)
    got.get_potential_energy()
    spread = read_column(tmp_path / "one.dump", "d_energy_std")
    np.testing.assert_allclose(spread, got.calc.results["energies_std"], rtol=0, atol=1e-10)
    assert spread.min() > 1e-3


def test_types_without_an_element(tmp_path):
    """`NULL` leaves them to the other style: the rest is as if they were not there."""
    atoms = mote2(0.1)
    export_potential([make_model(layout=single())], tmp_path, atoms[atoms.numbers == 42])
    text = (tmp_path / "structure.data").read_text()
    alone = last_thermo(run(tmp_path, setup(tmp_path) + OUTPUT.format(name="a.dump") + "run 0\n"))
    alone_forces = np.stack([read_column(tmp_path / "a.dump", f"f{x}") for x in "xyz"], axis=1)
    n = int(text.split(" atoms")[0].split()[-1])
    more = text.replace(f"{n} atoms", f"{n + 2} atoms").replace("1 atom types", "2 atom types")
    # first in the file, so that indices of atoms are not those in the potential's list
    head, rows = more.split("Atoms # atomic\n\n")
    rows = "".join(f"{k} 2 {0.3 * k} {0.2 * k} {1.5 * k}\n" for k in (n + 1, n + 2)) + rows
    (tmp_path / "structure.data").write_text(head + "Atoms # atomic\n\n" + rows)
    hybrid = (
        setup(tmp_path)
        .replace("pair_style      mliap", "mass 2 1.0\npair_style hybrid/overlay zero 5.0 mliap")
        .replace("pair_coeff      * * Mo", "pair_coeff * * zero\npair_coeff * * mliap Mo NULL")
    )
    both = last_thermo(run(tmp_path, hybrid + OUTPUT.format(name="b.dump") + "run 0\n"))
    np.testing.assert_allclose(both[1:8], alone[1:8], rtol=1e-12, atol=1e-8)
    forces = np.stack([read_column(tmp_path / "b.dump", f"f{x}") for x in "xyz"], axis=1)
    types = read_column(tmp_path / "b.dump", "type")
    np.testing.assert_allclose(forces[types == 1], alone_forces, rtol=0, atol=1e-10)
    assert not forces[types == 2].any()


def test_long_runs(tmp_path):
    """NVE keeps the energy; what NPT ends with is what the calculator says; a restart goes on."""
    atoms = mo(0.05, n=3)
    export_potential([make_model(layout=single())], tmp_path, atoms)
    start = setup(tmp_path) + OUTPUT.format(name="x.dump") + "timestep 0.0005\n"
    start += "velocity all create 50.0 12345 mom yes rot yes dist gaussian\nthermo 1000\n"
    text = run(tmp_path, start + "fix 1 all nve\nrun 1000\n", 2)
    first, last = (
        float(line.split()[8])
        for line in text.splitlines()
        if line.split()[:1] in (["0"], ["1000"])
    )
    assert abs(first - last) / len(atoms) < 1e-4

    npt = "fix 1 all npt temp 50 50 0.1 tri 0 0 1.0\n"
    half = npt + "run 1000\nwrite_restart half.restart\n"
    end = "run 1000\nundump one\ndump two all custom 1 end.dump id type x y z fx fy fz c_pe &\n"
    end += "c_atomic[*]\n"
    end += "dump_modify two format float %.17g sort id\nrun 0\n"
    whole = last_thermo(run(tmp_path, start + half + end))
    compare(tmp_path, whole, "end.dump", ["Mo"], atoms.pbc)

    again = start.split("velocity")[0]
    again = again.replace("read_data       structure.data", "read_restart half.restart")
    again = "\n".join(line for line in again.split("\n") if line.split()[:1] not in (["mass"],))
    got = last_thermo(run(tmp_path, again + npt + end))
    # as many steps with other roundings
    np.testing.assert_allclose(got[1:9], whole[1:9], rtol=1e-6)
