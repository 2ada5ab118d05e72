"""`spk-softadapt set` by the command line: what it changes and keeps, what training takes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from emt_structures import labelled_atoms, labelled_structures

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.edit.duplicates import find_duplicates
from schnetpack_softadapt.data.formats.ase import _vasp_settings
from schnetpack_softadapt.data.formats.format import LabelledFile
from schnetpack_softadapt.data.provenance import _spacings, mixed_settings
from schnetpack_softadapt.data.splitting import Split, save_split, split_path
from schnetpack_softadapt.data.structures import Structure


@pytest.fixture(autouse=True)
def _in_folder_with_a_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made("my.db", 10)


def made(path, n, **kwargs):
    return write_database(path, labelled_structures(n, **kwargs), "the test", overwrite=True)


def change(*args, database="my.db") -> int:
    return main(["set", database, *map(str, args)])


def energies(path="my.db"):
    return [s.energy for s in read_database(path)]


def split_of(path="my.db", **kwargs):
    data = SoftAdaptDataModule(path, split_file=None, **kwargs)
    data.setup()
    return data.train_idx, data.val_idx, data.test_idx


def test_groups_by_rows_sources_and_conditions(capsys):
    assert change("tag", "first", "--rows", "0:2", "9") == 0
    assert [s.group for s in read_database("my.db")][:3] == ["first", "first", "family 0"]
    assert read_database("my.db")[9].group == "first"
    assert change("tag", "large", "--where", "n_atoms == 4 and group != 'first'") == 0
    found = [(s.group == "large", s.n_atoms == 4) for s in read_database("my.db")[2:9]]
    assert all(a == b for a, b in found)
    assert any(a for a, _ in found)
    capsys.readouterr()
    assert change("list", "--group", "fir*", "--where", "n_Cu > 0") == 0
    assert "3 structures" in capsys.readouterr().out
    assert change("list") == 0
    shown = capsys.readouterr().out
    assert "before: my.v1.db" in shown
    assert "before: my.v2.db" in shown
    assert [
        line.split()[:2] for line in shown.splitlines() if line.strip().startswith("first")
    ] == [["first", "3"]]


def test_every_change_keeps_what_was_there_and_can_be_undone(capsys):
    before, content = energies(), Path("my.db").read_bytes()
    assert change("remove", "--rows", "3") == 0
    assert energies() == before[:3] + before[4:]
    assert Path("my.v1.db").read_bytes() == content
    assert change("weight", "0.5", "--rows", "0") == 0
    assert change("undo") == 0
    assert change("undo") == 0
    assert Path("my.db").read_bytes() == content
    # what was undone is there too
    assert change("undo", "my.v3.db") == 0
    assert len(energies()) == 9
    assert connect("my.db").metadata["weights"][0] == 0.5
    # nothing to do is no new version
    n = len(list(Path().glob("my.v*.db")))
    assert change("weight", "0.5", "--rows", "0") == 0
    assert len(list(Path().glob("my.v*.db"))) == n
    # the next name is free, whatever was removed
    Path("my.v1.db").unlink()
    assert change("tag", "x", "--all") == 0
    assert {p.name for p in Path().glob("my.v*.db")} == {"my.v2.db", "my.v3.db"}
    assert change("undo", "my.v1.db") == 2
    assert "kept are my.v2.db, my.v3.db" in capsys.readouterr().err


def test_a_failed_change_leaves_all_as_it_was(capsys):
    content = Path("my.db").read_bytes()
    write_database("bare.db", [Structure(s.numbers, s.positions, s.cell, s.pbc, s.energy)
                               for s in labelled_structures(2)], "")  # fmt: skip
    for args, message in (
        (["merge", "bare.db"], "bare.db has no forces in eV/Ang"),
        (["tag", "x"], "which structures?"),
        (["tag", "x", "--rows", "10"], "nor one of the 10 structures"),
        (["tag", "x", "--group", "family", "--all"], "no group 'family'; there are family 0"),
        (["tag", "x", "--where", "forces > 1"], "names are"),
        (["remove", "--all"], "no structure would be left"),
        (["weight", "-1", "--all"], "a number from 0 on"),
        (["undo"], "was never changed"),
        (["deduplicate", "--tolerance", "0"], "--tolerance"),
    ):
        assert change(*args) == 2
        assert message in capsys.readouterr().err
    assert Path("my.db").read_bytes() == content
    assert not list(Path().glob("*.v*.db"))


def test_append_and_merge_carry_what_is_known(capsys):
    new = labelled_atoms(3, seed=7)
    for atoms in new:
        atoms.info |= {"calculator": json.dumps({"name": "vasp", "encut": 400, "xc": "PBE"})}
    del new[0].calc.results["stress"]
    write("new.extxyz", new)
    assert change("append", "new.extxyz", "--group", "fresh", "--assign", "test") == 0
    assert change("weight", "2", "--group", "fresh") == 0
    made("other.db", 4, seed=3)
    assert change("tag", "theirs", "--all", database="other.db") == 0
    assert change("merge", "other.db", "my.v1.db") == 0
    structures = read_database("my.db")
    assert len(structures) == 10 + 3 + 4 + 10
    assert structures[10].energy == pytest.approx(new[0].calc.results["energy"])
    assert structures[10].stress is None
    assert structures[11].stress_voigt == pytest.approx(new[1].calc.results["stress"], abs=1e-7)
    assert [s.group for s in structures[10:14]] == ["fresh"] * 3 + ["theirs"]
    metadata = connect("my.db").metadata
    assert metadata["weights"] == [1.0] * 10 + [2.0] * 3 + [1.0] * 14
    subset = metadata["groups_ids"]["subset"]
    assert [metadata["names"]["subset"][k] if k >= 0 else None for k in subset] == (
        [None] * 10 + ["test"] * 3 + [None] * 14
    )
    # the fingerprint is that of the same structures written at once
    assert metadata["fingerprint"] == write_database("again.db", structures, "")
    # rows of a copy of the same database are new rows
    ids = [row.id for row in connect("my.db").select()]
    assert ids == list(range(1, 28))


def test_the_datamodule_takes_assignments_where_no_split_file_is_given(caplog):
    assert change("assign", "test", "--group", "family 1") == 0
    assert change("assign", "val", "--rows", "0", "2") == 0
    train, val, test = [4, 6, 8], [0, 2], [1, 3, 5, 7, 9]
    assert split_of() == (train, val, test)
    assert split_of(splitting="assigned") == (train, val, test)
    assert split_of(splitting="random")[2] != test
    with pytest.raises(ValueError, match="num_test=7, but the assignments in"):
        split_of(num_test=7)
    save_split(split_path("my.db"), Split([0], [1], [2]))
    assert split_of(splitting="assigned") == (train, val, test)
    data = SoftAdaptDataModule("my.db")
    data.setup()
    assert (data.train_idx, data.val_idx, data.test_idx) == ([0], [1], [2])
    # the split beside it becomes assignments of what is changed next, and goes with the old one
    assert change("remove", "--rows", "5") == 0
    assert not split_path("my.db").exists()
    assert split_path("my.v3.db").exists()
    assert split_of()[1:] == ([1], [2])
    made("plain.db", 5)
    with pytest.raises(ValueError, match="assigns no structures"):
        split_of("plain.db", splitting="assigned")


def test_weights_multiply_those_of_a_scheme():
    def weights(**kwargs):
        data = SoftAdaptDataModule("my.db", split_file=None, **kwargs)
        data.setup()
        return data.dataset.raw.values(keys.structure_weight).reshape(-1), data.train_idx

    scheme, _ = weights(weights="energy")
    assert change("weight", "3", "--rows", "1:4") == 0
    given = np.where(np.isin(np.arange(10), [1, 2, 3]), 3.0, 1.0)
    for expected, kwargs in ((given, {}), (given * scheme, {"weights": "energy"})):
        found, train = weights(**kwargs)
        assert found == pytest.approx(expected / expected[train].mean())


def with_labels(atoms, energy, forces):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return Structure.from_atoms(atoms)


def test_duplicates_but_for_rotation_numbering_and_cell(capsys):
    (crystal,) = labelled_atoms(1)  # two atoms
    e, f = crystal.calc.results["energy"], crystal.calc.results["forces"]
    turned = crystal.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    turned.positions += 0.3
    other_cell = crystal.copy()
    other_cell.set_cell(np.array([[1, 1, 0], [0, 1, 0], [2, 0, 1]]) @ crystal.cell.array)
    moved = crystal.copy()
    moved.positions[0, 0] += 0.01
    doubled = crystal.repeat((1, 2, 1))
    chain = Atoms("CuAu", positions=[[0, 0, 0], [2.5, 0, 0]])
    structures = [
        with_labels(crystal, e, f),
        with_labels(turned[::-1], e, f[::-1]),
        with_labels(other_cell, e, f),
        with_labels(doubled, 2 * e, np.tile(f, (2, 1))),
        with_labels(moved, e, f),
        with_labels(turned, e + 0.5, f),
        with_labels(crystal, e, 1.5 * f),
        with_labels(chain, e, f),
        with_labels(chain.repeat((1, 1, 1)), e, f),
    ]
    write_database("twice.db", structures, "")
    found = find_duplicates("twice.db")
    assert [(d.kept, d.other, d.differs) for d in found] == [
        (0, 1, False), (0, 2, False), (0, 3, False), (0, 5, True), (0, 6, True), (7, 8, False)
    ]  # fmt: skip
    assert found[3].energy == pytest.approx(0.25)
    assert found[4].force == pytest.approx(0.5 * np.linalg.norm(f, axis=1).max())
    assert [d.other for d in find_duplicates("twice.db", keep="last")] == [0, 1, 2, 3, 5, 7]
    assert {d.other for d in find_duplicates("twice.db", tolerance=0.011)} == {1, 2, 3, 4, 5, 6, 8}
    assert change("deduplicate", database="twice.db") == 0
    shown = capsys.readouterr().out
    assert "4 removed, 5 left" in shown
    assert "0 = 5: +0.2500, 0.000" in shown
    assert len(read_database("twice.db")) == 5
    assert change("deduplicate", "--differing", database="twice.db") == 0
    assert len(read_database("twice.db")) == 3


def test_settings_of_calculators_are_kept_and_mixed_ones_named(capsys, caplog):
    frames = labelled_atoms(6)
    for k, atoms in enumerate(frames):
        # names and nesting differ between codes
        if k < 2:
            atoms.info["calculator"] = {"name": "gpaw:GPAW", "arguments": {
                "mode": {"name": "pw", "ecut": 300 + 100 * k}, "xc": "PBE"}}  # fmt: skip
        elif k < 4:
            atoms.info["calculator"] = json.dumps({"name": "vasp", "ENCUT": 520, "GGA": "PS"})
    write("a.extxyz", frames[:3])
    write("b.extxyz", frames[3:])
    assert main(["import", "a.extxyz", "b.extxyz", "--out", "new.db"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "1 by gpaw:GPAW, functional PBE, cutoff 300 (a.extxyz)",
        "1 by gpaw:GPAW, functional PBE, cutoff 400 (a.extxyz)",
        "2 by vasp, functional PS, cutoff 520 (a.extxyz, b.extxyz)",
        "2 do not say",
    ):
        assert part in shown
    assert json.loads(read_database("new.db")[1].info["calculator"])["arguments"]["xc"] == "PBE"
    SoftAdaptDataModule("new.db", split_file=None).setup()
    assert "2 by vasp, functional PS, cutoff 520" in caplog.text
    assert change("remove", "--where", "source == 'a.extxyz'",
                  database="new.db") == 0  # fmt: skip
    caplog.clear()
    SoftAdaptDataModule("new.db", split_file=None, num_train=1, num_val=1).setup()
    assert "different settings" not in caplog.text


def test_calculators_as_mappings_or_names_are_one_text():
    structures = labelled_structures(3)
    for s, given in zip(structures, ({"xc": "PBE", "name": "a"}, '{"name": "a", "xc": "PBE"}', "b"),
                        strict=True):  # fmt: skip
        s.info["calculator"] = given
    write_database("new.db", structures, "")
    metadata = connect("new.db").metadata
    assert metadata["groups_ids"]["calculator"] == [0, 0, 1]
    assert metadata["names"]["calculator"] == ['{"name": "a", "xc": "PBE"}', '{"name": "b"}']


def test_spacing_of_k_points_follows_the_cell():
    cell = 3.0 * np.eye(3)
    mesh = [json.dumps({"kpts": {"size": [n, n, n]}}) for n in (8, 4, 2)]
    # 2 pi / 3 / 8 and 2 pi / 6 / 4 are the same
    assert mixed_settings(mesh[:2], ["a", "b"], np.array([cell, 2 * cell])) == []
    (text,) = mixed_settings(mesh[::2], ["a", "b"], np.array([cell, cell]))
    assert "0.26 in a to 1.05 in b" in text
    # the first reciprocal vector of a sheared cell is (1/3, -1/12, 0)
    sheared = np.array([[3.0, 0, 0], [1, 4, 0], [0, 0, 5]])
    spacing = 2 * np.pi * np.hypot(1 / 3, 1 / 12) / 8
    assert _spacings(sheared[None], [8, 1, 1]) == pytest.approx([spacing])


OUTCAR = """ vasp.6.3.0
 TITEL  = PAW_PBE Cu 22Jun2005
   LEXCH  = PE
   ENMAX  =  295.446; ENMIN  =  221.585 eV
 generate k-points for:    4    4    2
   ENCUT  =  520.0 eV  38.22 Ry    6.18 a.u.
   GGA     =    --    GGA type
"""
VASPRUN = """<incar> <i name="ENCUT">    520.00000000</i>
 <i type="string" name="GGA">PS</i> </incar>
 <v type="int" name="divisions">       4        4        2 </v>
 <parameters><i name="ENMAX"> 520.0</i><i name="KSPACING"> 0.5</i></parameters>
"""


@pytest.mark.parametrize(("text", "functional"), [(OUTCAR, "lexch"), (VASPRUN, "gga")])
def test_settings_in_vasps_files(text, functional, tmp_path):
    Path("OUTCAR").write_text(text)
    found = _vasp_settings(LabelledFile(Path("OUTCAR"), None, ""))
    potentials = {"potcar": ["PAW_PBE Cu"]} if functional == "lexch" else {}
    assert found == {
        "name": "vasp",
        functional: "PE" if functional == "lexch" else "PS",
        "encut": "520.0" if functional == "lexch" else "520.00000000",
        "kpts": [4, 4, 2],
        **potentials,
    }
