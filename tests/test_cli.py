"""What all commands share: help, versions, messages, errors, outputs."""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from schnetpack_softadapt import __version__, errors
from schnetpack_softadapt.cli import arguments
from schnetpack_softadapt.cli import main as cli
from schnetpack_softadapt.data.structures import read_atoms
from schnetpack_softadapt.descriptors.acsf.layout import Layout

#: commands that write a result, and the others
WRITERS = (
    "import",
    "generate",
    "select-functions",
    "predict",
    "report",
    "check",
    "export",
    "import-potential",
)
NAMES = (*WRITERS, "train", "tune", "info")


@pytest.fixture
def command(monkeypatch):
    """Makes `run` the handler of a command `try`."""

    def replace(run, **defaults):
        def add(commands):
            commands.add_parser("try").set_defaults(run=run, **defaults)

        monkeypatch.setattr(cli, "COMMANDS", [add])

    return replace


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_is_for_users(capsys):
    text = help_of(capsys)
    assert "wiring" not in text
    for name in NAMES:
        assert name in text


@pytest.mark.parametrize("name", NAMES)
def test_one_convention_for_all_commands(name, capsys):
    text = help_of(capsys, name)
    options = ["-v, --verbose ", "--debug "]
    if name in WRITERS:
        options += ["--out ", "--overwrite "]
    for option in options:
        assert option in text


def test_version_names_what_a_report_needs(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    text = capsys.readouterr().out
    assert text.startswith(f"schnetpack_softadapt {__version__} (Python 3.")
    for name in ("schnetpack 2.", "torch 2.", "ase 3."):
        assert name in text


def refused(args):
    raise ValueError("file.xyz, structure 3: no energy; give --energy-key")


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (refused, "file.xyz, structure 3: no energy; give --energy-key"),
        (lambda args: Path("nowhere.xyz").read_text(), "nowhere.xyz: No such file or directory"),
        (lambda args: read_atoms("empty.xyz"), "empty.xyz is no structure file"),
    ],
)
def test_an_error_of_the_users_is_one_line(command, capsys, tmp_path, monkeypatch, run, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.xyz").touch()
    # the rule looks for `raise` in our package: these handlers stand in for its modules
    monkeypatch.setattr(errors, "PACKAGE", errors.PACKAGE.anchor)
    command(run)
    assert cli.main(["try"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"spk-softadapt try: {text}")
    assert error.count("\n") == 1
    for options in (["--debug", "try"], ["try", "--debug"]):
        assert cli.main(options) == 2
        error = capsys.readouterr().err
        assert error.startswith("Traceback")
        assert text in error.splitlines()[-1]


@pytest.mark.parametrize(
    "run",
    [
        lambda args: {}["energy"],
        lambda args: np.zeros(3) + np.zeros(4),  # a ValueError too, but nobody's on purpose
        lambda args: float("three"),
    ],
)
def test_a_fault_of_ours_has_traceback_and_address(command, capsys, monkeypatch, run):
    monkeypatch.setattr(errors, "PACKAGE", errors.PACKAGE.anchor)
    command(run)
    assert cli.main(["try"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert "fault of schnetpack_softadapt" in lines[-1]
    assert "--version" in lines[-1]


def test_a_value_error_of_another_package_is_not_the_users(command, capsys):
    command(refused)  # raised on purpose, but outside our package
    assert cli.main(["try"]) == 3


def test_an_interruption_is_no_traceback(command, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    command(interrupted)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    command(interrupted, goes_on=True)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def talk(args):
    warnings.warn("torch.jit.script is deprecated", FutureWarning, stacklevel=1)
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger("schnetpack_softadapt.data"), level)("a %s", level)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ["WARNING a warning"]),
        (["-v"], ["INFO a info", "WARNING a warning"]),
        (["--debug"], ["DEBUG a debug", "INFO a info", "WARNING a warning"]),
    ],
)
def test_how_much_is_said(command, capsys, options, shown):
    command(talk)
    logger = logging.getLogger("schnetpack_softadapt")
    for command_line in (["try", *options], [*options, "try"]):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert cli.main(command_line) == 0
        assert capsys.readouterr().err.splitlines() == shown
        assert len(found) == (options == ["--debug"])
        assert logger.handlers == []


def test_nothing_is_said_twice(command, capsys, monkeypatch):
    command(talk)
    for stream, shown in ((sys.stdout, "WARNING a warning"), (sys.stderr, "a warning")):
        monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(stream)])
        assert cli.main(["try"]) == 0
        assert capsys.readouterr().err.splitlines() == [shown]


def test_results_are_not_replaced_unasked(command, capsys, tmp_path, monkeypatch):
    done = []

    def add(commands):
        parser = commands.add_parser("try")
        arguments.add_output(parser, "DIR", "a folder", "result.json", default=str(tmp_path))
        parser.set_defaults(run=lambda args: done.append(args.out))

    monkeypatch.setattr(cli, "COMMANDS", [add])
    (tmp_path / "other.txt").touch()
    assert cli.main(["try"]) == 0  # a folder with other things is welcome
    (tmp_path / "result.json").touch()
    assert cli.main(["try"]) == 2
    assert f"{tmp_path / 'result.json'} exists already" in capsys.readouterr().err
    assert cli.main(["try", "--overwrite"]) == 0
    assert cli.main(["try", "--out", str(tmp_path / "new")]) == 0
    assert done == [str(tmp_path), str(tmp_path), str(tmp_path / "new")]


def test_summary_of_many_symmetry_functions():
    functions = [
        {"kind": "G2", "neighbors": ["Cu"], "cutoff": 6.0, "eta": eta, "r_s": r_s}
        for eta, r_s in ((0.01, 0.0), (4.0, 0.0), (4.0, 2.5))
    ]
    angular = {"kind": "G5", "neighbors": ["Cu", "Au"], "cutoff": 5.0, "eta": 0.1}
    functions += [{**angular, "zeta": zeta, "lam": 1.0} for zeta in (1.0, 16.0)]
    layout = Layout.from_dict({"Cu": functions, "Au": functions[:1]})
    assert layout.summary().splitlines() == [
        "Cu: 5 symmetry functions",
        "     3 G2   eta 0.01..4 r_s 0..2.5 r_c 6",
        "     2 G5   eta 0.1 r_s 0 zeta 1..16 r_c 5",
        "Au: 1 symmetry functions",
        "     1 G2   eta 0.01 r_s 0 r_c 6",
    ]
