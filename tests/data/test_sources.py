"""What stands on the command line of `import`: files, folders, patterns, frames; and the groups."""

import lzma
from pathlib import Path

import pytest
from ase.io import write
from emt_structures import labelled_atoms

from schnetpack_softadapt.cli.main import main
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.importing.sources import find_sources


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*names) -> list[tuple[str, str]]:
    return [(str(source), source.group) for source in find_sources(names)]


def test_a_folder_stands_for_the_labelled_files_below_it():
    touch("set/10.json", "set/2.json", "set/fcc/deep/a.extxyz.gz", "set/OUTCAR.1", "set/README.md")
    touch("set/.hidden.json", "set/.git/a.json", "set/my.db", "set/fcc/POSCAR")
    assert found("set") == [
        ("set/2.json", "set"),
        ("set/10.json", "set"),
        ("set/OUTCAR.1", "set"),
        ("set/fcc/deep/a.extxyz.gz", "deep"),
    ]


def test_a_pattern_finds_what_a_folder_does_not():
    touch("runs/1/a.out", "runs/1/b.log", "runs/2/c/a.out")
    assert found("runs/**/*.out") == [("runs/1/a.out", "1"), ("runs/2/c/a.out", "c")]


@pytest.mark.parametrize("name", ["OUTCAR", "vasprun.xml", "input.data", "same.extxyz"])
def test_files_of_one_name_are_told_apart_by_their_folders(name):
    names = [f"{folder}/{name}" for folder in ("bcc", "fcc")]
    touch(*names)
    assert found(*names) == [(names[0], "bcc"), (names[1], "fcc")]


def test_a_file_with_a_name_of_its_own_is_its_own_group():
    touch("run/OUTCAR", "run/more.extxyz", "other.xyz")
    groups = [group for _, group in found("run/OUTCAR", "run/more.extxyz", "other.xyz")]
    assert groups == ["run", "more", "other"]


def test_a_file_that_exists_is_read_whatever_its_name():
    touch("run@300K.extxyz", "a[1].xyz", "a.traj")
    assert found("run@300K.extxyz", "a[1].xyz", "a.traj@-3:") == [
        ("run@300K.extxyz", "run@300K"),
        ("a[1].xyz", "a[1]"),
        ("a.traj@-3:", "a"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.xyz", "no file missing.xyz"),
        ("missing.xyz@1", "no file missing.xyz"),
        ("*.out", "no file matches"),
        ("empty", r"in empty or below; .*'empty/\*\*/\*.out'"),
    ],
)
def test_nothing_found_is_an_error(name, message):
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_sources([name])


def test_the_two_outputs_of_one_vasp_run_are_not_both_taken():
    touch("runs/1/OUTCAR", "runs/1/vasprun.xml")
    with pytest.raises(ValueError, match=r"runs/1 holds OUTCAR and vasprun.xml.*'runs/\*\*/OUTCAR"):
        find_sources(["runs"])
    assert len(found("runs/**/OUTCAR")) == 1


def test_folders_patterns_and_names_with_at_into_one_database(capsys):
    frames = labelled_atoms(5)
    for atoms in frames:
        del atoms.info["group"]
    for k, name in enumerate(["set/fcc/2.extxyz", "set/fcc/10.extxyz", "set/bcc/1.extxyz"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write(name, frames[k])
    write("run@300K.extxyz", frames[3:4])
    write("frames@x.traj", frames[:2] + frames[4:])
    args = ["set/f*/*", "set/bcc", "run@300K.extxyz", "frames@x.traj@-1"]
    assert main(["import", *args, "--out", "my.db"]) == 0
    structures = read_database("my.db")
    # extended XYZ has 8 decimals
    energies = [frames[k].calc.results["energy"] for k in (0, 1, 2, 3, 4)]
    assert [s.energy for s in structures] == pytest.approx(energies, abs=1e-7)
    assert [s.group for s in structures] == ["fcc", "fcc", "bcc", "run@300K", "frames@x"]


def test_a_compressed_file_is_decompressed_once(monkeypatch):
    """ASE jumps back to each frame, which decompresses all before it again."""
    frames = labelled_atoms(4)
    write("a.extxyz", frames)
    Path("a.extxyz.xz").write_bytes(lzma.compress(Path("a.extxyz").read_bytes()))

    def seek(*_):
        raise AssertionError("jumped in a compressed file")

    monkeypatch.setattr(lzma.LZMAFile, "seek", seek)
    assert main(["import", "a.extxyz.xz@1:3", "--out", "my.db"]) == 0
    energies = [atoms.calc.results["energy"] for atoms in frames[1:3]]
    assert [s.energy for s in read_database("my.db")] == pytest.approx(energies, abs=1e-7)


def test_a_remark_that_holds_for_many_files_is_made_once(capsys):
    text = "begin\natom 0 0 0 Cu 0 0 0 0 0\natom 3 0 0 Cu 0 0 0 0 0\nenergy -1.{}\nend\n"
    for k in range(12):
        Path(f"{k}.data").write_text(text.format(k))
    assert main(["import", "*.data", "--out", "my.db"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == 1
    assert "0.data and 11 more: lengths in Bohr" in notes[0]
