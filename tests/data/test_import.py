"""`spk-softadapt import`, through the command line: what it reads, refuses and warns about."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from emt_structures import labelled_atoms

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.dataset import read_database


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*args) -> int:
    return main(["import", *map(str, args)])


def relabelled(atoms, **changes) -> Atoms:
    """Copy whose calculator's results are changed; None removes a label."""
    copy = atoms.copy()
    results = {**atoms.calc.results, **changes}
    copy.calc = SinglePointCalculator(copy, **{k: v for k, v in results.items() if v is not None})
    return copy


def with_info(atoms, **info) -> Atoms:
    """Copy without calculator, labels in `info` and `arrays` under the given names."""
    copy = atoms.copy()
    for key, value in info.items():
        if np.shape(value) == (len(copy), 3):
            copy.arrays[key] = np.array(value)
        else:
            copy.info[key] = value
    return copy


def with_labels(atoms, **info) -> Atoms:
    """The same with its calculator, and more labels in `info`."""
    atoms.info.update(info)
    return atoms


def assert_labels(structure, atoms, **tolerance):
    assert structure.energy == pytest.approx(atoms.calc.results["energy"], **tolerance)
    assert structure.forces == pytest.approx(atoms.calc.results["forces"], **tolerance)
    assert structure.stress_voigt == pytest.approx(atoms.calc.results["stress"], **tolerance)


# extended XYZ has 8 decimals for forces and positions
XYZ = {"abs": 1e-7}


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.traj"])
def test_labels_survive_the_way_into_the_database(name, capsys):
    frames = labelled_atoms(5)
    write(name, frames)
    assert run(name, "--out", "my.db") == 0
    structures = read_database("my.db")
    assert len(structures) == 5
    for structure, atoms in zip(structures, frames, strict=True):
        assert structure.positions == pytest.approx(atoms.positions, **XYZ)
        assert structure.cell == pytest.approx(atoms.cell.array, **XYZ)
        assert_labels(structure, atoms, **XYZ)
        assert structure.group == atoms.info["group"]
    out = capsys.readouterr().out
    assert "structures   5 (5 with forces, 5 with stress)" in out
    assert "Au" in out
    assert "family 0 3, family 1 2" in out
    assert "WARNING" not in out


def test_several_files_keep_their_order():
    frames = labelled_atoms(4)
    write("b.extxyz", frames[:1])
    write("a.traj", frames[1:])
    assert run("b.extxyz", "a.traj", "--out", "my.db") == 0
    energies = [s.energy for s in read_database("my.db")]
    assert energies == pytest.approx([a.calc.results["energy"] for a in frames], **XYZ)


def test_frames_are_selected_as_in_ase():
    frames = labelled_atoms(4)
    write("a.traj", frames)
    assert run("a.traj@1:4:2", "--out", "my.db") == 0
    energies = [s.energy for s in read_database("my.db")]
    assert energies == [frames[1].calc.results["energy"], frames[3].calc.results["energy"]]


def test_keys_units_sign_and_order_of_another_code():
    frames = labelled_atoms(3)
    foreign = []
    for atoms in frames:
        r = atoms.calc.results
        xx, yy, zz, yz, xz, xy = -r["stress"] / (0.1 * units.GPa)
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array / units.Bohr, scale_atoms=True)
        labels = {
            "E0": r["energy"] / units.Hartree,
            "F0": r["forces"] / (units.Hartree / units.Bohr),
            "S0": np.array([xx, yy, zz, xy, xz, yz]),
        }
        foreign.append(with_info(scaled, **labels))
    write("a.extxyz", foreign, columns=["symbols", "positions", "F0"])
    options = "--energy-key E0 --forces-key F0 --stress-key S0 --energy-unit Ha --length-unit Bohr"
    stress = ["--stress-unit", "kbar", "--stress-sign", -1, "--stress-order", "xx yy zz xy xz yz"]
    assert run("a.extxyz", "--out", "my.db", *options.split(), *stress) == 0
    for structure, atoms in zip(read_database("my.db"), frames, strict=True):
        assert structure.positions == pytest.approx(atoms.positions, **XYZ)
        # forces have 8 decimals in Ha/Bohr, 51 eV/Ang
        assert_labels(structure, atoms, abs=1e-6)


def test_forces_may_have_units_of_their_own():
    atoms = labelled_atoms(1)[0]
    forces = atoms.calc.results["forces"]
    write("a.traj", relabelled(atoms, forces=forces / (units.Hartree / units.Bohr)))
    assert run("a.traj", "--out", "my.db", "--forces-unit", "Ha/Bohr") == 0
    assert read_database("my.db")[0].forces == pytest.approx(forces, rel=1e-12)


def test_stress_order_does_not_touch_the_nine_numbers_of_extended_xyz():
    """ASE's reader makes six of them, in its own order."""
    atoms = labelled_atoms(1)[0]
    write("a.extxyz", atoms)
    assert run("a.extxyz", "--out", "my.db", "--stress-order", "vasp") == 0
    assert read_database("my.db")[0].stress_voigt == pytest.approx(
        atoms.calc.results["stress"], rel=1e-12
    )


def test_stress_order_holds_for_six_numbers_in_a_calculator():
    atoms = labelled_atoms(1)[0]
    xx, yy, zz, yz, xz, xy = stress = atoms.calc.results["stress"]
    write("a.traj", relabelled(atoms, stress=np.array([xx, yy, zz, xy, yz, xz])))
    assert run("a.traj", "--out", "my.db", "--stress-order", "vasp") == 0
    assert read_database("my.db")[0].stress_voigt == pytest.approx(stress, rel=1e-12)


def test_constraints_do_not_erase_forces():
    atoms = labelled_atoms(1)[0]
    constrained = relabelled(atoms)
    constrained.set_constraint(FixAtoms([0]))
    write("a.traj", constrained)
    assert run("a.traj", "--out", "my.db") == 0
    assert np.array_equal(read_database("my.db")[0].forces, atoms.calc.results["forces"])


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj"])
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("virial", []),
        ("virials", []),
        ("REF_virials", ["--stress-key", "REF_virials"]),
    ],
)
def test_a_virial_becomes_a_stress_and_its_sign_is_said(name, key, options, capsys):
    frames = labelled_atoms(3)
    virials = [-atoms.get_volume() * atoms.get_stress(voigt=False) for atoms in frames]
    write(
        name,
        [
            with_labels(relabelled(atoms, stress=None), **{key: virial})
            for atoms, virial in zip(frames, virials, strict=True)
        ],
    )
    assert run(name, "--out", "my.db", *options) == 0
    for structure, atoms in zip(read_database("my.db"), frames, strict=True):
        assert structure.stress_voigt == pytest.approx(atoms.calc.results["stress"], **XYZ)
    assert f"stress is -{key} / volume, a virial in eV that is positive in compression" in (
        capsys.readouterr().out
    )
    # the other sign, for who has it so
    assert run(name, "--out", "other.db", *options, "--stress-sign", 1) == 0
    assert read_database("other.db")[0].stress_voigt == pytest.approx(
        -frames[0].calc.results["stress"], **XYZ
    )
    assert f"stress is {key} / volume" in capsys.readouterr().out


def test_units_and_order_of_a_virial(capsys):
    """An energy: its unit is the energy's, and the volume is in the file's length unit."""
    atoms = labelled_atoms(1)[0]
    xx, yy, zz, yz, xz, xy = -atoms.get_volume() * atoms.get_stress() / units.Hartree
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell.array / units.Bohr, scale_atoms=True)
    energy = atoms.calc.results["energy"] / units.Hartree
    write("a.traj", with_info(scaled, energy=energy, virial=np.array([xx, yy, zz, xy, yz, xz])))
    options = ["--energy-unit", "Ha", "--length-unit", "Bohr", "--stress-order", "vasp"]
    assert run("a.traj", "--out", "my.db", *options) == 0
    assert read_database("my.db")[0].stress_voigt == pytest.approx(
        atoms.calc.results["stress"], rel=1e-12
    )
    assert run("a.traj", "--out", "b.db", *options, "--stress-unit", "GPa") == 2
    assert "'virial' is a virial, an energy: --stress-unit does not" in capsys.readouterr().err


def test_a_virial_of_a_molecule_is_masked_and_a_stress_goes_before_a_virial():
    crystal = with_labels(labelled_atoms(1)[0], virial=np.eye(3))
    molecule = with_labels(labelled_atoms(1, periodic=False)[0], virial=np.eye(3))
    write("a.traj", [crystal, molecule])
    assert run("a.traj", "--out", "my.db") == 0
    one, two = read_database("my.db")
    assert one.stress_voigt == pytest.approx(crystal.calc.results["stress"], rel=1e-12)
    assert two.stress is None


def test_missing_stress_is_masked():
    frames = labelled_atoms(3)
    write("a.traj", [frames[0], relabelled(frames[1], stress=None), frames[2]])
    assert run("a.traj", "--out", "my.db") == 0
    assert [s.stress is None for s in read_database("my.db")] == [False, True, False]


def placeholders(stress):
    """Two crystals between a molecule, and a slab without its third lattice vector."""
    molecules = labelled_atoms(2, periodic=False)
    slab = moved(labelled_atoms(1), 0, cell=np.diag([8.0, 8.0, 0.0]), pbc=[1, 1, 0])[0]
    dummies = [relabelled(atoms, stress=stress) for atoms in (molecules[0], slab)]
    one, two = labelled_atoms(2)
    return [one, dummies[0], two, dummies[1]]


@pytest.mark.parametrize("stress", [np.zeros(6), np.full(6, np.nan), np.full(6, 0.1)])
def test_placeholders_of_molecules_among_crystals_are_masked(stress, capsys):
    write("a.traj", placeholders(stress))
    assert run("a.traj", "--out", "my.db") == 0
    assert [s.stress is None for s in read_database("my.db")] == [False, True, False, True]
    out = capsys.readouterr().out
    assert "(4 with forces, 2 with stress)" in out
    assert "stress of 2 structure(s) without a periodic cell left out" in out
    # a number that is no placeholder may mean that the file lost its pbc
    assert ("in 2 it is not zero (first: a.traj, structure 1)" in out) == (stress[0] == 0.1)


def test_a_stress_of_exactly_zero_among_others_is_masked(capsys):
    frames = labelled_atoms(3)
    write("a.traj", [frames[0], relabelled(frames[1], stress=np.zeros(6)), frames[2]])
    assert run("a.traj", "--out", "my.db") == 0
    assert [s.stress is None for s in read_database("my.db")] == [False, True, False]
    assert "stress of 1 structure(s) is zero to the last digit" in capsys.readouterr().out


def test_energies_only():
    write("a.traj", [relabelled(a, stress=None, forces=None) for a in labelled_atoms(3)])
    assert run("a.traj", "--out", "my.db") == 0
    assert all(s.forces is None and s.stress is None for s in read_database("my.db"))


def test_labels_are_left_out_on_request():
    write("a.traj", labelled_atoms(3))
    assert run("a.traj", "--out", "my.db", "--stress-key", "none", "--forces-key", "none") == 0
    assert all(s.forces is None and s.stress is None for s in read_database("my.db"))


def test_the_free_energy_is_pointed_out_and_taken_on_request(capsys):
    frames = [relabelled(a, free_energy=a.calc.results["energy"] - 0.1) for a in labelled_atoms(3)]
    write("a.traj", frames)
    assert run("a.traj", "--out", "my.db") == 0
    assert "--energy-key free_energy" in capsys.readouterr().out
    assert run("a.traj", "--out", "free.db", "--energy-key", "free_energy") == 0
    energy, free = (read_database(name)[0].energy for name in ("my.db", "free.db"))
    assert free == pytest.approx(energy - 0.1, abs=1e-12)


def vasprun(free_energy=-7.1, energy=-7.0):
    """The least of a vasprun.xml that ASE reads: two atoms, stress in kbar, VASP's sign."""
    energies = f"""<energy><i name="e_fr_energy">{free_energy}</i>
 <i name="e_wo_entrp">{energy}</i><i name="e_0_energy">{energy}</i></energy>"""
    structure = """<crystal>
 <varray name="basis"><v>0 2.7 2.7</v><v>2.7 0 2.7</v><v>2.7 2.7 0</v></varray></crystal>
 <varray name="positions"><v>0 0 0</v><v>0.25 0.25 0.26</v></varray></structure>"""
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?><modeling>
 <atominfo><array name="atoms"><set>
  <rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set></array></atominfo>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray>
  <varray name="weights"><v>1</v></varray></kpoints>
 <structure name="initialpos">{structure}
 <calculation><scstep>{energies}</scstep><structure>{structure}
  <varray name="forces"><v>0.1 0.2 0.3</v><v>-0.1 -0.2 -0.3</v></varray>
  <varray name="stress"><v>10 1 2</v><v>1 20 3</v><v>2 3 30</v></varray>{energies}
 </calculation></modeling>"""


def test_vasp_files_give_the_energy_that_forces_derive_from(capsys):
    Path("vasprun.xml").write_text(vasprun())
    assert run("vasprun.xml", "--out", "my.db") == 0
    structure = read_database("my.db")[0]
    assert structure.energy == pytest.approx(-7.1, abs=1e-9)
    # VASP: kbar, positive = compression
    assert structure.stress == pytest.approx(
        -0.1 * units.GPa * np.array([[10, 1, 2], [1, 20, 3], [2, 3, 30]]), rel=1e-6
    )
    assert "free energies (TOTEN)" in capsys.readouterr().out


def test_several_sets_write_the_split_beside_the_database(capsys):
    frames = labelled_atoms(9)
    write("train.traj", frames[:5])
    write("v1.traj", frames[5:6])
    write("v2.traj", frames[6:7])
    write("test.traj", frames[7:])
    sets = ["--val", "v1.traj", "v2.traj", "--test", "test.traj"]
    assert run("train.traj", "--out", "my.db", *sets) == 0
    split = np.load("my.split.npz")
    assert split["train_idx"].tolist() == [0, 1, 2, 3, 4]
    assert split["val_idx"].tolist() == [5, 6]
    assert split["test_idx"].tolist() == [7, 8]
    assert "5 train, 2 val, 2 test" in capsys.readouterr().out
    # a new database without sets must not inherit the split of the old one
    assert run("train.traj", "--out", "my.db", "--overwrite") == 0
    assert not Path("my.split.npz").exists()


# refusals: one line says file, structure and reason, and nothing is written


def broken(**kwargs):
    frames = labelled_atoms(3)
    frames[1] = relabelled(frames[1], **kwargs)
    return frames


def moved(frames, k, positions=None, cell=None, pbc=None):
    atoms = frames[k].copy()
    if positions is not None:
        atoms.positions = positions
    if cell is not None:
        atoms.cell = cell
    if pbc is not None:
        atoms.pbc = pbc
    atoms.calc = SinglePointCalculator(atoms, **frames[k].calc.results)
    return [*frames[:k], atoms, *frames[k + 1 :]]


def cases():
    frames = labelled_atoms(3)
    one = frames[1]
    nan_forces = one.calc.results["forces"].copy()
    nan_forces[1, 2] = np.nan
    close, infinite = one.positions.copy(), one.positions.copy()
    close[1] = close[0] + [0.1, 0.2, 0.3]
    infinite[0, 0] = np.inf
    through_wall = one.positions.copy()
    through_wall[1] = through_wall[0] + one.cell.array[2] - [0.0, 0.0, 0.3]
    flat = one.cell.array.copy()
    flat[2] = flat[0] + flat[1]
    short = one.cell.array.copy()
    short[2] *= 0.4 / np.linalg.norm(short[2])
    gone = one.cell.array.copy()
    gone[2] = 0
    return {
        "no energy": broken(energy=None),
        "energy not finite": broken(energy=np.inf),
        "wrong number of forces": broken(forces=np.zeros((2, 3))),
        "forces not finite .first on atom 1": broken(forces=nan_forces),
        "stress not finite": broken(stress=np.full(6, np.nan)),
        "no forces, although other structures": broken(forces=None),
        "volume zero: its lattice vectors": moved(frames, 1, cell=flat),
        "periodic along lattice vector 2, which is zero": moved(frames, 1, cell=gone),
        "atoms 0 and 1 are 0.374 Ang apart": moved(frames, 1, positions=close),
        "atoms 0 and 1 are 0.300 Ang apart": moved(frames, 1, positions=through_wall),
        "and its periodic image are 0.400": moved(frames, 1, cell=short),
        "positions not finite": moved(frames, 1, positions=infinite),
    }


@pytest.mark.parametrize("message", cases())
def test_each_invalid_structure_is_named_with_its_file(message, capsys):
    write("good.traj", labelled_atoms(2, seed=5))
    write("bad.traj", cases()[message])
    assert run("good.traj", "bad.traj", "--out", "my.db") == 2
    captured = capsys.readouterr().err
    line = next(line for line in captured.splitlines() if "bad.traj" in line)
    assert line.strip().startswith("bad.traj, structure 1: ")
    assert re.search(message, line)
    assert not Path("my.db").exists()


def test_left_handed_cells_are_fine():
    frames = labelled_atoms(1)
    flipped = moved(frames, 0, cell=frames[0].cell.array[[1, 0, 2]])
    assert np.linalg.det(flipped[0].cell.array) < 0
    write("a.traj", flipped)
    assert run("a.traj", "--out", "my.db") == 0
    structure = read_database("my.db")[0]
    assert structure.volume == pytest.approx(frames[0].get_volume(), rel=1e-12)
    assert structure.stress_voigt == pytest.approx(frames[0].calc.results["stress"], rel=1e-12)


def test_all_problems_are_listed_up_to_twenty(capsys):
    write("a.traj", [relabelled(a, energy=None) for a in labelled_atoms(25)])
    assert run("a.traj", "--out", "my.db") == 2
    err = capsys.readouterr().err
    assert "25 problem(s)" in err
    assert "structure 19:" in err
    assert "structure 20:" not in err
    assert "and 5 more" in err


def test_the_labels_that_are_there_are_named(capsys):
    write("a.extxyz", with_info(labelled_atoms(1)[0], dft_energy=-1.0))
    assert run("a.extxyz", "--out", "my.db") == 2
    err = capsys.readouterr().err
    assert "dft_energy" in err
    assert "--energy-key" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.traj"], "no file missing.traj"),
        (["a.traj", "--test", "missing.traj"], "no file missing.traj"),
        (["empty.extxyz"], "empty.extxyz"),
        (["text.dat"], "text.dat cannot be read from structure 0 on"),
        (["cut.extxyz"], "cut.extxyz cannot be read from structure 2 on"),
        (["a.traj", "--test", "a.traj"], "given twice, for train and for test"),
        (["a.traj", "--stress-unit", "psi"], "unknown stress unit 'psi'"),
        (["a.traj", "--stress-order", "xx"], "unknown stress order 'xx'"),
        (["a.traj", "--format", "magic"], "unknown format 'magic'; choose from auto, ase"),
        (["a.traj", "--group-key", "phase"], "no 'phase' to group by; its info has group"),
        (["a.traj", "--stress-key", "virial"], "no stress: there is no 'virial' among energy"),
    ],
)
def test_files_and_options_that_make_no_sense(args, message, capsys):
    frames = labelled_atoms(3)
    write("a.traj", frames)
    write("cut.extxyz", frames)
    text = Path("cut.extxyz").read_text().splitlines()
    Path("cut.extxyz").write_text("\n".join(text[:-2]))
    Path("empty.extxyz").touch()
    Path("text.dat").write_text("just words\n")
    assert run(*args, "--out", "my.db") == 2
    assert message in capsys.readouterr().err


def test_an_existing_database_is_not_touched(capsys):
    write("a.traj", labelled_atoms(2))
    assert run("a.traj", "--out", "my.db") == 0
    before = Path("my.db").read_bytes()
    assert run("a.traj", "--out", "my.db") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("my.db").read_bytes() == before
    assert run("a.traj", "--out", "my.txt") == 2
    assert "must end in .db" in capsys.readouterr().err


# suspicious magnitudes are pointed out, but imported


def trajectory(n=8):
    """Small steps of one cell, as molecular dynamics makes them."""
    atoms = labelled_atoms(3)[2]
    rng = np.random.default_rng(0)
    frames = []
    step = rng.normal(0, 0.02, atoms.positions.shape)
    for k in range(n):
        frame = atoms.copy()
        frame.positions += k * step
        frame.calc = EMT()
        energy, forces, stress = (
            frame.get_potential_energy(),
            frame.get_forces(),
            frame.get_stress(),
        )
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces, stress=stress)
        frames.append(frame)
    return frames


def breathing(sign=1, factor=1.0):
    """One cell at several volumes."""
    frames = []
    for scale in np.linspace(0.95, 1.05, 8):
        frame = labelled_atoms(1)[0].copy()
        frame.set_cell(frame.cell.array * scale, scale_atoms=True)
        frame.calc = EMT()
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        stress = sign * factor * frame.get_stress()
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces, stress=stress)
        frames.append(frame)
    return frames


def scaled(frames, energy=1.0, forces=1.0, length=1.0):
    result = []
    for atoms in frames:
        r = atoms.calc.results
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array * length, scale_atoms=True)
        copy.calc = SinglePointCalculator(
            copy, energy=r["energy"] * energy, forces=r["forces"] * forces
        )
        result.append(copy)
    return result


def suspects():
    frames = labelled_atoms(8)
    all_electron = relabelled(labelled_atoms(1, periodic=False)[0], energy=-115.7)  # hartree
    return {
        "looks like kbar or GPa": breathing(factor=160.2),
        "sign of the stress": breathing(sign=-1),
        "all stresses are zero": [relabelled(a, stress=np.zeros(6)) for a in frames],
        "look like all-electron energies in hartree": [all_electron],
        "different units": scaled(trajectory(), energy=1 / units.Hartree),
        "seem to be gradients": scaled(trajectory(), forces=-1.0),
        "lengths in another unit": scaled(frames, length=1 / units.Bohr),
        "forces are large": scaled(frames, forces=300.0),
        "all forces are zero": scaled(frames, forces=0.0),
        "all energies are positive": [relabelled(a, energy=5.0 + k) for k, a in enumerate(frames)],
        "1 duplicate structure": [*frames, frames[3]],
    }


@pytest.mark.parametrize("message", suspects())
def test_suspicious_numbers_are_pointed_out(message, capsys):
    write("a.traj", suspects()[message])
    assert run("a.traj", "--out", "my.db") == 0
    warnings = [x for x in capsys.readouterr().out.splitlines() if x.startswith("WARNING")]
    assert any(message in warning for warning in warnings), warnings


@pytest.mark.parametrize("frames", [labelled_atoms(8), trajectory(), breathing()])
def test_sound_numbers_raise_no_suspicion(frames, capsys):
    write("a.traj", frames)
    assert run("a.traj", "--out", "my.db") == 0
    assert "WARNING" not in capsys.readouterr().out


def test_duplicates_across_sets_are_pointed_out(capsys):
    frames = labelled_atoms(4)
    write("a.traj", frames)
    write("b.traj", frames[2:3])
    assert run("a.traj", "--test", "b.traj", "--out", "my.db") == 0
    out = capsys.readouterr().out
    assert "a.traj, structure 2 = b.traj, structure 0" in out
    assert "1 of them stand in two subsets" in out
