"""`spk-softadapt import` of other programs' training sets: units, signs, orders, and mistakes.

Each format is written here as its programs write it, from EMT's labels, and must come back the
same. EMT's stress of the sheared cells is first checked against what a shear must give.
"""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from emt_structures import labelled_atoms
from shared import shared_path

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.formats import format as format_module
from schnetpack_softadapt.data.formats.format import (
    Format,
    ImportOptions,
    format_of,
    known_formats,
    read_files,
)
from schnetpack_softadapt.data.formats.units import LabelUnits
from schnetpack_softadapt.data.importing.sources import find_sources

SHEARS = {"yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}
KBAR = 1e3 * units.bar


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sheared(a: int, b: int, strain: float = 0.03) -> Atoms:
    """Cubic Cu under tensor shear strain eps_ab, and stretched along x."""
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    deformation = np.eye(3)
    deformation[a, b] = deformation[b, a] = strain
    deformation[0, 0] += 0.05
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.calc = EMT()
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **labels, stress=atoms.get_stress())
    return atoms


def stress_of(atoms) -> np.ndarray:
    return atoms.get_stress(voigt=False)


def runner_text(atoms, length=units.Bohr, energy=units.Hartree, stress=True, comment="") -> str:
    lines = ["begin", f"comment {comment}"]
    lines += ["lattice " + " ".join(f"{x:.16e}" for x in row / length) for row in atoms.cell.array]
    if stress:
        rows = stress_of(atoms) / (energy / length**3)
        lines += ["stress " + " ".join(f"{x:.16e}" for x in row) for row in rows]
    for symbol, r, f in zip(atoms.symbols, atoms.positions, atoms.get_forces(), strict=True):
        r_text = " ".join(f"{x:.16e}" for x in r / length)
        f_text = " ".join(f"{x:.16e}" for x in f / (energy / length))
        lines.append(f"atom {r_text} {symbol} 0.7 0.3 {f_text}")
    return "\n".join(
        [*lines, f"energy {atoms.get_potential_energy() / energy:.16e}", "charge 2.5", "end", ""]
    )


def mlearn_member(atoms, **changes) -> dict:
    xx, yy, zz, yz, xz, xy = -atoms.get_stress() / KBAR
    fractional = atoms.get_scaled_positions(wrap=False)
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "label": symbol,
        }
        for symbol, abc, xyz in zip(atoms.symbols, fractional, atoms.positions, strict=True)
    ]
    return {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": None,
            "lattice": {"matrix": atoms.cell.array.tolist(), "a": 1.0},
            "sites": sites,
        },
        "num_atoms": len(atoms),
        "outputs": {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces().tolist(),
            "virial_stress": [xx, yy, zz, xy, xz, yz],
        },
        "group": "Elastic",
        "description": "sheared",
        "tag": "train",
        **changes,
    }


def fitsnap_text(atoms, header=None, header_line="# made for a test\n", **changes) -> str:
    data = {
        "Stress": (-stress_of(atoms) / units.bar).tolist(),
        "Positions": atoms.positions.tolist(),
        "Energy": atoms.get_potential_energy(),
        "AtomTypes": list(atoms.symbols),
        "Lattice": atoms.cell.array.tolist(),
        "NumAtoms": len(atoms),
        "Forces": atoms.get_forces().tolist(),
        **changes,
    }
    data = {key: value for key, value in data.items() if value is not None}
    styles = {
        "PositionsStyle": "angstrom",
        "AtomTypeStyle": "chemicalsymbol",
        "Label": "a label",
        "StressStyle": "bar",
        "LatticeStyle": "angstrom",
        "EnergyStyle": "electronvolt",
        "ForcesStyle": "electronvoltperangstrom",
        **(header or {}),
    }
    return header_line + json.dumps({"Dataset": {"Data": [data], **styles}})


WRITERS = {
    "runner": ("input.data", runner_text),
    "mlearn": ("training.json", lambda atoms: json.dumps([mlearn_member(atoms)])),
    "fitsnap": ("Cu_1.json", fitsnap_text),
}


def read_one(name: str, **options):
    structures, problems, remarks = read_files(find_sources([name]), ImportOptions(**options))
    assert problems == []
    (structure,) = structures
    return structure, remarks


def problem_of(name: str, text: str, **options) -> str:
    with open(name, "w") as file:
        file.write(text)
    structures, problems, _ = read_files(find_sources([name]), ImportOptions(**options))
    assert structures == []
    (problem,) = problems
    return problem


@pytest.mark.parametrize("component", SHEARS)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_sheared_cubic_cell_shows_its_shear_stress(kind, component, capsys):
    a, b = SHEARS[component]
    atoms = sheared(a, b)
    name, write = WRITERS[kind]
    with open(name, "w") as file:
        file.write(write(atoms))
    assert main(["import", name, "--out", "my.db"]) == 0
    assert f"format {kind}" in str(capsys.readouterr()) + _provenance("my.db")
    (structure,) = read_database("my.db")
    # tensile where stretched and positive where sheared positively; 2 C44 eps in EMT Cu is 3 GPa
    assert structure.stress[a, b] / units.GPa > 2
    others = {(0, 1), (0, 2), (1, 2)} - {(a, b)}
    assert all(abs(structure.stress[i, j]) < 0.01 * units.GPa for i, j in others)
    assert structure.stress[0, 0] > max(structure.stress[1, 1], structure.stress[2, 2]) > 0
    # the numbers are written with 16 digits
    assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-9)
    assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-9)
    assert structure.positions == pytest.approx(atoms.positions, abs=1e-9)
    assert structure.cell == pytest.approx(atoms.cell.array, abs=1e-9)
    assert list(structure.numbers) == list(atoms.numbers)
    assert structure.pbc.all()


def _provenance(path: str) -> str:
    from ase.db import connect

    with connect(path) as database:
        return str(database.metadata)


@pytest.mark.parametrize("kind", WRITERS)
def test_sheared_alloys_with_forces_come_back_the_same(kind):
    name, write = WRITERS[kind]
    for k, atoms in enumerate(labelled_atoms(3, seed=3)):
        with open(f"{k}{name}", "w") as file:
            file.write(write(atoms))
        structure, _ = read_one(f"{k}{name}")
        assert np.abs(atoms.get_forces()).max() > 0.1
        assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-9)
        assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-9)
        assert structure.positions == pytest.approx(atoms.positions, abs=1e-9)
        assert list(structure.numbers) == list(atoms.numbers)


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_are_known_by_their_content(kind, tmp_path):
    _, write = WRITERS[kind]
    other = tmp_path / "anything.txt"
    other.write_text("\n" * (kind != "fitsnap") + write(sheared(0, 1)))
    assert format_of(other, ImportOptions()).name == kind
    assert format_of(other, ImportOptions(format="ase")).name == "ase"


def test_other_files_are_left_to_ase(tmp_path):
    from ase.io import write

    for name in ("a.extxyz", "a.traj", "a.json", "a.db"):
        write(tmp_path / name, sheared(0, 1))
        assert format_of(tmp_path / name, ImportOptions()).name == "ase"


def test_forces_before_the_structure_do_not_hide_mlearn(tmp_path):
    member = mlearn_member(sheared(0, 1))
    member = {"outputs": {"forces": [[0.0] * 3] * 2000}, **{k: member[k] for k in ("structure",)}}
    (tmp_path / "a.json").write_text(json.dumps([member]))
    assert format_of(tmp_path / "a.json", ImportOptions()).name == "mlearn"


# input.data


def test_input_data_in_other_units():
    atoms = labelled_atoms(1)[0]
    with open("input.data", "w") as file:
        file.write("# made by hand\n\n" + runner_text(atoms, units.Ang, units.eV))
    structure, remarks = read_one("input.data", length_unit="Ang", energy_unit="eV")
    assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-9)
    assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-9)
    assert not any("Bohr" in remark for remark in remarks)
    _, remarks = read_one("input.data")
    assert any("lengths in Bohr, energies in Ha" in remark for remark in remarks)
    assert any("positive = tension" in remark for remark in remarks)


def test_input_data_with_many_blocks_comments_molecules_and_fortran_numbers():
    atoms = labelled_atoms(1)[0]
    molecule = labelled_atoms(1, periodic=False)[0]
    periodic = runner_text(atoms, stress=False, comment="AIMD  set").replace("e+00", "D+00")
    isolated = runner_text(molecule, stress=False)
    isolated = "\n".join(x for x in isolated.splitlines() if not x.startswith("lattice")) + "\n"
    with open("input.data", "w") as file:
        file.write(periodic + isolated)
    structures, problems, _ = read_files(
        find_sources(["input.data"]), ImportOptions(group_key="comment")
    )
    assert problems == []
    assert [s.group for s in structures] == ["AIMD set", ""]
    assert structures[0].forces == pytest.approx(atoms.get_forces(), abs=1e-9)
    assert not structures[1].pbc.any()
    assert structures[1].stress is None
    assert structures[1].energy == pytest.approx(molecule.get_potential_energy(), abs=1e-9)


def test_the_reference_structures_of_n2p2():
    path = shared_path("reference/acsf24_Mo54") / "input.data"
    (structure,), problems, _ = read_files(
        find_sources([path]),
        ImportOptions(length_unit="Ang", energy_unit="eV", group_key="comment"),
    )
    assert problems == []
    assert structure.energy == pytest.approx(-526.30686678)
    assert structure.forces[0] == pytest.approx([-1.20906125, -0.19384507, 2.06867351])
    assert structure.group.startswith("AIMD-NVT")
    path = shared_path("reference/H2O_RPBE-D3") / "input.data"
    (structure,), problems, _ = read_files(find_sources([path]), ImportOptions())
    mass = structure.to_atoms().get_masses().sum() / structure.volume
    assert mass / (units.kg / units.m**3) == pytest.approx(1000, rel=0.1)  # water, if in bohr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy", "#energy", "no energy"),
        ("end", "", "has no 'end'"),
        (" Cu ", " Qq ", "'Qq' is no chemical element"),
        (" 0.7 0.3 ", " ", "7 entries instead of 9"),
        ("lattice", "#lattice", "2 lattice lines, not 3"),
        ("charge", "magic", "unknown keyword 'magic'"),
        ("energy ", "energy x", "not 1 numbers"),
    ],
)
def test_mistakes_in_input_data_name_file_structure_and_line(old, new, message):
    text = runner_text(sheared(0, 1)).replace(old, new, 1)
    problem = problem_of("input.data", text)
    assert problem.startswith("input.data, structure 0: ")
    assert message in problem


def test_what_stands_outside_the_blocks_is_refused():
    with open("input.data", "w") as file:
        file.write(runner_text(sheared(0, 1)) + "lattice 1 2 3\n")
    with pytest.raises(ValueError, match=r"input.data cannot be read.*outside begin..end"):
        read_files(find_sources(["input.data"]), ImportOptions())


def test_keys_hold_for_every_format():
    problem = problem_of("input.data", runner_text(sheared(0, 1)), energy_key="E0")
    assert "there is no 'E0' among energy, forces, stress" in problem
    structure, _ = read_one("input.data", stress_key="none", forces_key="none")
    assert structure.stress is None
    assert structure.forces is None


# mlearn


def test_group_and_split_entries_of_mlearn():
    member = mlearn_member(sheared(0, 1))
    with open("a.json", "w") as file:
        json.dump([member, {**member, "group": "Surface", "tag": "test"}], file)
    structures, _, _ = read_files(find_sources(["a.json"]), ImportOptions(split_keys=("tag",)))
    assert [s.group for s in structures] == ["Elastic", "Surface"]
    assert [s.info["strain_state"] for s in structures] == ["train", "test"]


def test_the_published_molybdenum_set_has_its_shear_where_it_was_found():
    # a test structure of the authors' Mo set, as published, and as converted independently
    published = [331.57331, 410.39505, 330.71125, -1.21756, 21.59387, 2.48879]
    from ase.io import read

    frames = read(shared_path("data/mlearn/Mo_test.extxyz"), index=":")
    (atoms,) = (a for a in frames if abs(a.get_potential_energy() + 526.30686678) < 1e-6)
    member = mlearn_member(atoms)
    member["outputs"]["virial_stress"] = published
    with open("a.json", "w") as file:
        json.dump([member], file)
    structure, _ = read_one("a.json")
    assert structure.stress_voigt == pytest.approx(atoms.get_stress(), abs=1e-7)


def without(member: dict, *path: str) -> dict:
    copy = json.loads(json.dumps(member))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: without(m, "outputs", "energy"), "there is no 'energy' among forces"),
        (lambda m: without(m, "structure", "sites"), "no 'sites'"),
        (lambda m: {**m, "num_atoms": 7}, "num_atoms is 7, but the structure has 4 sites"),
        (lambda m: {**m, "outputs": {**m["outputs"], "forces": [[0, 0, 0]]}}, "shape (1, 3)"),
        (lambda m: {**m, "outputs": {**m["outputs"], "virial_stress": [1, 2]}}, "six or nine"),
    ],
)
def test_mistakes_in_mlearn_name_file_and_structure(change, message):
    good = mlearn_member(sheared(0, 1))
    with open("a.json", "w") as file:
        json.dump([good, change(good)], file)
    structures, problems, _ = read_files(find_sources(["a.json"]), ImportOptions(format="mlearn"))
    assert len(structures) == 1
    assert problems[0].startswith("a.json, structure 1: ")
    assert message in problems[0]


def test_half_occupied_sites_are_refused():
    member = mlearn_member(sheared(0, 1))
    member["structure"]["sites"][2]["species"][0]["occu"] = 0.5
    assert "site 2 is not occupied by one whole atom" in problem_of("a.json", json.dumps([member]))


def test_a_stress_of_unknown_unit_is_not_read():
    member = mlearn_member(sheared(0, 1))
    member["outputs"]["stress"] = member["outputs"].pop("virial_stress")
    with open("a.json", "w") as file:
        json.dump([member], file)
    structure, remarks = read_one("a.json")
    assert structure.stress is None
    assert "`stress` is not read" in remarks[0]
    structure, _ = read_one("a.json", stress_key="stress")
    assert structure.stress == pytest.approx(stress_of(sheared(0, 1)), abs=1e-9)


# FitSNAP


def test_units_of_fitsnap_stand_in_its_header():
    atoms = labelled_atoms(1)[0]
    text = fitsnap_text(
        atoms,
        {
            "StressStyle": "kB",
            "EnergyStyle": "hartree",
            "ForcesStyle": "hartreeperbohr",
            "LatticeStyle": "bohr",
            "PositionsStyle": "bohr",
        },
        Stress=(-stress_of(atoms) / KBAR).tolist(),
        Energy=atoms.get_potential_energy() / units.Hartree,
        Forces=(atoms.get_forces() / (units.Hartree / units.Bohr)).tolist(),
        Lattice=(atoms.cell.array / units.Bohr).tolist(),
        Positions=(atoms.positions / units.Bohr).tolist(),
    )
    with open("a.json", "w") as file:
        file.write(text)
    structure, _ = read_one("a.json")
    assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-9)
    assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-9)
    assert structure.positions == pytest.approx(atoms.positions, abs=1e-9)
    # what the user says goes before what the header says
    structure, _ = read_one("a.json", stress_unit="bar", stress_sign=1)
    assert structure.stress == pytest.approx(-1e-3 * stress_of(atoms), abs=1e-9)


def test_fractional_positions_and_no_header_line():
    atoms = labelled_atoms(1)[0]
    fractional = atoms.get_scaled_positions(wrap=False).tolist()
    header = {"PositionsStyle": "fractional"}
    with open("a.json", "w") as file:
        file.write(fitsnap_text(atoms, header, header_line="", Positions=fractional))
    structure, _ = read_one("a.json")
    assert structure.positions == pytest.approx(atoms.positions, abs=1e-9)


def test_groups_of_fitsnap_are_its_folders(tmp_path):
    folder = tmp_path / "Elastic_FCC"
    folder.mkdir()
    (folder / "a.json").write_text(fitsnap_text(sheared(0, 1)))
    assert read_one(folder / "a.json")[0].group == "Elastic_FCC"
    assert read_one(folder / "a.json", group_key="Label")[0].group == "a label"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Energy": None}, "no Energy"),
        ({"Lattice": None, "AtomTypes": None}, "no AtomTypes, Lattice"),
        ({"NumAtoms": 3}, "NumAtoms is 3, but there are 4 AtomTypes"),
        ({"Forces": [[0, 0, 0]]}, "Forces has shape (1, 3), not (4, 3)"),
        ({"Stress": [1, 2, 3, 4, 5, 6]}, "Stress has shape (6,)"),
        ({"AtomTypes": ["Cu", "Cu", "Qq", "Cu"]}, "'Qq' is no chemical element"),
        ({"header": {"StressStyle": "stones"}}, "unknown StressStyle 'stones'"),
        ({"header": {"PositionsStyle": "bohr"}}, "positions in Bohr but lattice in Ang"),
        ({"header": {"AtomTypeStyle": "lammps"}}, "AtomTypeStyle 'lammps' is not known"),
    ],
)
def test_mistakes_in_fitsnap_name_file_and_structure(changes, message):
    problem = problem_of("a.json", fitsnap_text(sheared(0, 1), **changes))
    assert problem.startswith("a.json, structure 0: ")
    assert message in problem


def test_problems_stop_the_import(capsys):
    with open("a.json", "w") as file:
        file.write(fitsnap_text(sheared(0, 1), Energy=None))
    assert main(["import", "a.json", "--out", "my.db"]) == 2
    assert "a.json, structure 0: no Energy" in capsys.readouterr().err


# formats of other packages


def lines_of(file):
    yield from (line.split() for line in file.path.read_text().splitlines()[1:])


def dimer(words, file):
    """One line a structure: distance, energy, force along z, stress of a box of 8 Bohr."""
    distance, energy, force, pressure = map(float, words)
    return {
        "numbers": [1, 1],
        "positions": [[0, 0, 0], [0, 0, distance]],
        "cell": 8 * np.eye(3),
        "pbc": True,
        "labels": [
            {
                "energy": energy,
                "forces": [[0, 0, -force], [0, 0, force]],
                "stress": pressure * np.eye(3),
            }
        ],
        "entries": {"group": "dimers"},
    }


@pytest.fixture
def dimers(monkeypatch):
    """A package with a format of its own is installed, and one that is broken."""
    units = LabelUnits("Ha", "Bohr", stress_unit="GPa", stress_sign=-1)
    record = Format(
        "dimers", "hydrogen", lines_of, dimer, lambda _, text: text.startswith("#dimers"), units
    )
    package = ModuleType("other_package")
    package.FORMAT = record
    monkeypatch.setitem(sys.modules, "other_package", package)
    points = [
        EntryPoint("dimers", "other_package:FORMAT", "schnetpack_softadapt.formats"),
        EntryPoint("broken", "no_such_package:FORMAT", "schnetpack_softadapt.formats"),
    ]

    def entry_points(group):
        return [point for point in points if point.group == group]

    monkeypatch.setattr(format_module, "entry_points", entry_points)
    known_formats.cache_clear()
    yield record
    known_formats.cache_clear()


def test_another_package_adds_a_format(dimers, caplog, capsys):
    Path("h2.txt").write_text("#dimers\n1.4 -1.17 0.01 2\n1.5 -1.16 0.02 3\n")
    assert main(["import", "h2.txt", "--out", "my.db"]) == 0
    assert "the format broken (no_such_package:FORMAT) cannot be used" in caplog.text
    structure = read_database("my.db")[1]
    assert structure.positions[1, 2] == pytest.approx(1.5 * units.Bohr, rel=1e-12)
    assert structure.cell[0, 0] == pytest.approx(8 * units.Bohr, rel=1e-12)
    assert structure.energy == pytest.approx(-1.16 * units.Hartree, rel=1e-12)
    force = 0.02 * units.Hartree / units.Bohr
    assert structure.forces == pytest.approx(np.array([[0, 0, -force], [0, 0, force]]), rel=1e-12)
    assert structure.stress == pytest.approx(-3 * units.GPa * np.eye(3), rel=1e-12)
    assert structure.group == "dimers"
    # the user's word goes before the format's
    options = ["--format", "dimers", "--stress-sign", "1", "--energy-unit", "Ry"]
    assert main(["import", "h2.txt", "--out", "b.db", *options]) == 0
    structure = read_database("b.db")[1]
    assert structure.stress[0, 0] == pytest.approx(3 * units.GPa, rel=1e-12)
    assert structure.energy == pytest.approx(-1.16 * units.Rydberg, rel=1e-12)


def test_the_help_is_made_from_the_records(dimers, capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "dimers (hydrogen)" in text
    assert "dpdata:FMT (through dpdata" in text
    assert "default: eV, but Ha in runner, Ha in dimers, what the file states in fitsnap" in text
    assert "default: 1, but -1 in mlearn, -1 in fitsnap, -1 in dimers" in text


def test_every_format_of_the_package_is_an_entry_point():
    import tomllib

    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["entry-points"]["schnetpack_softadapt.formats"]
    for name, record in known_formats().items():
        point = EntryPoint(name, declared.pop(name), "schnetpack_softadapt.formats")
        assert point.load() is record
    assert declared == {}


# dpdata


class LabeledSystem:
    """As much of dpdata's class as is used: the documented arrays, in eV and Ang."""

    def __init__(self, file_name, fmt):
        assert fmt == "deepmd/npy"
        frames = [sheared(1, 2), sheared(0, 1)]
        self.data = {
            "atom_names": ["Au", "Cu"],
            "atom_types": np.ones(4, dtype=int),
            "cells": np.array([a.cell.array for a in frames]),
            "coords": np.array([a.positions for a in frames]),
            "energies": np.array([a.get_potential_energy() for a in frames]),
            "forces": np.array([a.get_forces() for a in frames]),
            # dpdata's convention: -volume * stress
            "virials": np.array([-a.get_volume() * stress_of(a) for a in frames]),
            "nopbc": "molecule" in file_name,
        }
        if "molecule" in file_name:
            del self.data["virials"]


@pytest.mark.parametrize("frames", ["", "@1"])
def test_dpdata_reads_a_folder(frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpdata", SimpleNamespace(LabeledSystem=LabeledSystem))
    for name in ("copper", "molecule"):
        Path(name).mkdir()
    args = ["import", f"copper{frames}", "--format", "dpdata:deepmd/npy", "--out"]
    assert main([*args, "my.db"]) == 0
    structures = read_database("my.db")
    expected = [sheared(1, 2), sheared(0, 1)][1 if frames else 0 :]
    for structure, atoms in zip(structures, expected, strict=True):
        assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-12)
        assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-12)
        assert structure.positions == pytest.approx(atoms.positions, abs=1e-12)
        assert structure.cell == pytest.approx(atoms.cell.array, abs=1e-12)
        assert structure.numbers.tolist() == [29] * 4
        assert structure.group == "copper"
        assert structure.pbc.all()
    assert main([*args[:1], "mol*", *args[2:], "b.db"]) == 0
    structure = read_database("b.db")[0]
    assert not structure.pbc.any()
    assert structure.stress is None
    assert structure.group == "molecule"


def test_what_dpdata_itself_writes_comes_back():
    dpdata = pytest.importorskip("dpdata")
    data = LabeledSystem("copper", "deepmd/npy").data
    data.update(atom_numbs=[0, 4], orig=np.zeros(3))
    dpdata.LabeledSystem(data=data).to("deepmd/npy", "copper", prec=np.float64)
    assert main(["import", "copper", "--format", "dpdata:deepmd/npy", "--out", "my.db"]) == 0
    for structure, atoms in zip(
        read_database("my.db"), (sheared(1, 2), sheared(0, 1)), strict=True
    ):
        assert structure.stress == pytest.approx(stress_of(atoms), abs=1e-9)
        assert structure.forces == pytest.approx(atoms.get_forces(), abs=1e-9)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (
            "dpdata:deepmd/npy",
            "needs the package dpdata: pip install 'schnetpack-softadapt[dpdata]'",
        ),
        ("dpdata", "--format dpdata: give dpdata:FMT"),
        ("runner:x", "--format runner:x: give runner"),
    ],
)
def test_what_is_missing_is_one_line(format, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dpdata", None)
    Path("a.raw").touch()
    assert main(["import", "a.raw", "--format", format, "--out", "my.db"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_virials_of_atoms_are_no_stress(tmp_path):
    atoms = Atoms("Mo2", [[0, 0, 0], [1.5, 1.5, 1.5]], cell=[3.1] * 3, pbc=True)
    atoms.arrays["virials"] = np.ones((2, 9))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.zeros((2, 3)))
    write(tmp_path / "atoms.extxyz", atoms)
    assert "virials:R:9" in (tmp_path / "atoms.extxyz").read_text()
    structures, problems, _ = read_files(find_sources([tmp_path / "atoms.extxyz"]), ImportOptions())
    assert not problems
    assert structures[0].stress is None
