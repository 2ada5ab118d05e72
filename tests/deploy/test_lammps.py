"""The LAMMPS input beside an exported potential: complete, and the structure that was meant."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from ase.neighborlist import neighbor_list
from deploy_models import make_layout, make_model, mo, mote2

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
from schnetpack_softadapt.descriptors.acsf.layout import Layout


def test_lammps_files(tmp_path):
    write_potential(make_model(), tmp_path, mote2())
    text = (tmp_path / "in.lammps").read_text()
    assert "units           metal" in text
    assert "pair_style      hdnnp 4.51 dir" in text
    assert "pair_coeff      * * Mo Te" in text
    assert "fix             1 all nve" in text
    assert "mass            2 127.6  # Te" in text
    readme = (tmp_path / "README.md").read_text()
    assert "executes no code" in readme
    assert len(readme.splitlines()) <= 11


def test_lammps_structures(tmp_path):
    """A crystal for one element, none for a compound, and boxes that LAMMPS refuses."""
    model = make_model(layout=Layout({"Mo": make_layout().functions[42][6:]}))
    write_potential(model, tmp_path / "Mo")
    assert "Atoms" in (tmp_path / "Mo/structure.data").read_text()
    write_potential(make_model(), tmp_path / "MoTe2")
    assert not (tmp_path / "MoTe2/structure.data").exists()
    assert "write yours" in (tmp_path / "MoTe2/README.md").read_text()
    with pytest.raises(
        ValueError, match="the structure: the model does not know Te; it was made for Mo"
    ):
        write_potential(model, tmp_path / "a", mote2())
    with pytest.raises(ValueError, match="direction of the structure has no lattice vector"):
        write_potential(model, tmp_path / "b", Atoms("Mo", pbc=True))


def as_lammps_reads(folder) -> Atoms:
    """The atoms of `structure.data`, with elements from the masses of `in.lammps`."""
    commands = [line.split() for line in (folder / "in.lammps").read_text().splitlines()]
    masses = {int(c[1]): float(c[2]) for c in commands if c[:1] == ["mass"]}
    elements = {k: int(np.argmin(abs(atomic_masses - m))) for k, m in masses.items()}
    # the potential's elements by type: the same assignment
    (symbols,) = [c[3:] for c in commands if c[:1] == ["pair_coeff"]]
    assert {k: atomic_numbers[s] for k, s in enumerate(symbols, start=1)} == elements
    (boundary,) = [c[1:] for c in commands if c[:1] == ["boundary"]]
    header, rows = (folder / "structure.data").read_text().split("Atoms # atomic\n")
    values = {
        " ".join(w[n:]): w[:n] for w in map(str.split, header.splitlines()) for n in (1, 2, 3)
    }
    assert int(values["atom types"][0]) == len(symbols)
    (lx, ly, lz), (xy, xz, yz) = (
        [float(values[f"{x}lo {x}hi"][1]) - float(values[f"{x}lo {x}hi"][0]) for x in "xyz"],
        map(float, values["xy xz yz"]),
    )
    table = np.array([row.split() for row in rows.split("\n") if row], dtype=float)
    assert table[:, 0].tolist() == list(range(1, int(values["atoms"][0]) + 1))
    return Atoms(
        numbers=[elements[int(k)] for k in table[:, 1]],
        positions=table[:, 2:],
        cell=[[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]],
        pbc=[letter == "p" for letter in boundary],
    )


def free(*pbc: bool, height: float = 0.0) -> Atoms:
    """MoTe2 with directions that are not periodic, turned and far from the origin."""
    atoms = mote2(0.1)
    atoms.pbc = pbc
    atoms.cell[~atoms.pbc] *= height
    atoms.rotate(70, (1, 2, 3), rotate_cell=True)
    atoms.positions += 30.0
    return atoms


def left_handed() -> Atoms:
    atoms = mote2(0.1)
    atoms.set_cell(atoms.cell[[2, 1, 0]])
    return atoms


def skewed(xy: float, xz: float, yz: float) -> Atoms:
    """Tilts in units of the edges."""
    atoms = mo(0.1)
    atoms.cell[1] += xy * atoms.cell[0]
    atoms.cell[2] += xz * atoms.cell[0] + yz * atoms.cell[1]
    return atoms


LAMMPS_STRUCTURES = {
    "layer in a sheared box": mote2,
    "the same crystal as in a cubic box": lambda: skewed(1, 2, -1),
    "skewed": lambda: skewed(0.4, 3.2, 2.3),
    "nearly rectangular": lambda: skewed(0, 5e-5, 0),
    "left-handed": left_handed,
    "flat": lambda: free(True, True, False),
    "flat in a tilted box": lambda: free(True, True, False, height=1.0),
    "wire": lambda: free(False, True, False),
    "two directions that are no neighbours": lambda: free(True, False, True),
    "molecule": lambda: free(False, False, False),
}


def chirality(atoms: Atoms) -> float:
    """Of the surroundings of atom 0: changes its sign in a mirror."""
    i, vectors, distances = neighbor_list("iDd", atoms, 4.5)
    vectors, distances = vectors[i == 0], distances[i == 0]
    return np.linalg.det([(vectors * distances[:, None] ** -n).sum(axis=0) for n in (1, 3, 5)])


@pytest.mark.parametrize("name", LAMMPS_STRUCTURES)
def test_lammps_structure_is_the_same_structure(tmp_path, name):
    """Its energy says so: it sees elements, distances and angles through the periodic box."""
    atoms, model = LAMMPS_STRUCTURES[name](), make_model()
    write_potential(model, tmp_path, atoms)
    got = as_lammps_reads(tmp_path)
    calculators = SoftAdaptCalculator(model), SoftAdaptCalculator(model)
    expected = atoms.copy()
    got.calc, expected.calc = calculators
    # 17 digits are written; rounding of a turn and of a wrap
    np.testing.assert_allclose(
        got.get_potential_energies(), expected.get_potential_energies(), rtol=1e-10
    )
    assert chirality(got) == pytest.approx(chirality(expected), rel=1e-8)
    assert got.get_chemical_symbols() == atoms.get_chemical_symbols()
    assert got.pbc.sum() == atoms.pbc.sum()
    # LAMMPS loses atoms outside of the box, and refuses a strong tilt, or any without periodicity
    scaled = got.get_scaled_positions(wrap=False)
    assert scaled.min() > -1e-9
    assert scaled.max() < 1 + 1e-9
    (lx, _, _), (xy, ly, _), (xz, yz, _) = got.cell
    for tilt, length, periodic in (
        (xy, lx, got.pbc[:2]),
        (xz, lx, got.pbc[::2]),
        (yz, ly, got.pbc[1:]),
    ):
        assert abs(tilt) <= (0.5 + 1e-9) * length
        assert periodic.all() or tilt == 0


# --- the run's own structure


@pytest.fixture
def run_dir(tmp_path):
    """A run whose second training structure is the largest."""
    structures = [mo(n=1), mote2(), mo(n=2), mo(n=1), mo(n=2, seed=3)]
    write_database(
        tmp_path / "data/my.db",
        [
            Structure(a.numbers, a.positions, a.cell, a.pbc, energy=0.0, forces=0 * a.positions)
            for a in structures
        ],
        "test",
    )
    folder = tmp_path / "runs/one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "run: {work_dir: '${hydra:runtime.cwd}', data_dir: '${run.work_dir}/data'}\n"
        "data: {datapath: '${run.data_dir}/my.db'}\n"
    )
    np.savez(folder / "split.npz", train_idx=[0, 2, 3], val_idx=[4], test_idx=[1])
    torch.save(make_model(), folder / "best_model")
    return folder


@pytest.mark.parametrize(
    "datapath", ["${run.data_dir}/my.db", "data/my.db", "../data/my.db", "ABSOLUTE"]
)
@pytest.mark.parametrize("model", [".", "best_model"])
def test_export_of_a_run_simulates_its_training_structure(run_dir, datapath, model, monkeypatch):
    """The folder is complete wherever the command is given from; types are the potential's."""
    monkeypatch.chdir(run_dir.parent)
    config = run_dir / "config.yaml"
    datapath = datapath.replace("ABSOLUTE", str(run_dir.parent.parent / "data/my.db"))
    config.write_text(config.read_text().replace("${run.data_dir}/my.db", datapath))
    assert main(["export", f"one/{model}", "--out", "out"]) == 0
    atoms = as_lammps_reads(run_dir.parent / "out")
    expected = mo(n=2)
    np.testing.assert_allclose(atoms.cell, expected.cell, atol=1e-12)
    np.testing.assert_allclose(atoms.positions, expected.get_positions(wrap=True), atol=1e-12)
    assert atoms.symbols.get_chemical_formula() == "Mo16"


def test_export_without_the_runs_data(run_dir, capsys):
    """The potential is written all the same; what to do for LAMMPS is said."""
    out = run_dir / "out"
    (run_dir / "split.npz").unlink()
    for reason in ("no split file at", "no database at", "is no run directory"):
        assert main(["export", str(run_dir), "--out", str(out), "--overwrite"]) == 0
        error = capsys.readouterr().err
        assert reason in error
        assert "give --structure" in error
        assert (out / "input.nn").exists()
        assert not (out / "structure.data").exists()
        (run_dir.parent.parent / "data/my.db").unlink(missing_ok=True)
        if reason == "no database at":
            (run_dir / "config.yaml").unlink()
