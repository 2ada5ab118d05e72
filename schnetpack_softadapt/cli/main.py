"""`spk-softadapt`: argument parsing and wiring only; the work is done by the modules it calls.

Each command adds its parser in `_add_<command>` and imports what it runs inside the handler, so
that `--help` answers at once. Outputs have one convention, `_add_output`; errors another, `main`.
"""

import argparse
import contextlib
import functools
import logging
import sys
import traceback
import warnings
from pathlib import Path

from schnetpack_softadapt import __version__
from schnetpack_softadapt.errors import error_text, is_users

__all__ = ["main"]

DESCRIPTION = (
    "Interatomic potentials with SchNetPack: data, training, predictions, reports, checks and"
    " exports."
)
FAULT = (
    "This is a fault of schnetpack_softadapt, not yours. Please report it to its authors, with the"
    " lines above and what `spk-softadapt --version` prints."
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    2 stands for errors of the user's, who reads one line with the reason, and 3 for faults of ours,
    with a traceback and where to report it.
    """
    parser = argparse.ArgumentParser(prog="spk-softadapt", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version, help="versions of this package and others")
    parser.set_defaults(verbose=False, debug=False, out=None, overwrite=False, result=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in COMMANDS:
        add(commands)
    for each in (parser, *commands.choices.values()):
        _add_verbosity(each)
    args, rest = parser.parse_known_args(argv)
    # argparse gives options between positional arguments, but not the other way round
    if not hasattr(args, "overrides") or any(text.startswith("-") for text in rest):
        args = parser.parse_args(argv)
    else:
        args.overrides += rest
    with _messages(args):
        try:
            _keep_existing(args)
            return args.run(args) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            users = is_users(error)
            if args.debug or not users:
                traceback.print_exc()
            print(
                f"spk-softadapt {args.command}: {error_text(error) if users else FAULT}",
                file=sys.stderr,
            )
            return 2 if users else 3


class _Version(argparse.Action):
    """Prints what a report of a fault needs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser, *args):
        from importlib.metadata import version

        names = ("schnetpack", "torch", "pytorch-lightning", "ase", "numpy", "numba")
        others = ", ".join(f"{name} {version(name)}" for name in names)
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"schnetpack_softadapt {__version__} (Python {python}, {others})")
        parser.exit()


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Options that stand before or after the command; suppressed defaults keep both."""
    shown = {"action": "store_true", "default": argparse.SUPPRESS}
    parser.add_argument("-v", "--verbose", help="say more of what is done", **shown)
    parser.add_argument("--debug", help="say all, with a traceback of any error", **shown)


def _add_output(
    parser: argparse.ArgumentParser, metavar: str, help: str, result: str = "", **kwargs
) -> None:
    """`--out` and `--overwrite`: a command never replaces a result that it was not told to.

    Args:
        result: file by which a folder given as `--out` is known to hold an earlier result; empty
            where `--out` is the result.
    """
    parser.add_argument("--out", metavar=metavar, help=help, **kwargs)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result there")
    parser.set_defaults(result=result)


def _keep_existing(args: argparse.Namespace) -> None:
    if args.out is None or args.result is None or args.overwrite:
        return
    path = Path(args.out) / args.result
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another --out or give --overwrite")


@contextlib.contextmanager
def _messages(args: argparse.Namespace):
    """Our messages on stderr; warnings of other packages' future only for `--debug`."""
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    logger = logging.getLogger("schnetpack_softadapt")
    before, handler = logger.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    with warnings.catch_warnings():
        if not args.debug:
            warnings.simplefilter("ignore", FutureWarning)
        logger.addHandler(handler)
        logger.setLevel(level)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)


def _read_structure(path: str):
    """A structure from a file that ASE reads."""
    import ase.io

    try:
        return ase.io.read(path)
    except OSError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise ValueError(f"{path} is no structure file that ASE reads ({error!r})") from error


def _add_import(commands) -> None:
    parser = commands.add_parser(
        "import",
        help="labelled structures from other programs' files into a database for training",
        description="Read structures with energies, and forces and stress where there are some,"
        " from anything ASE reads (extended XYZ, OUTCAR, vasprun.xml, trajectories; FILE@INDEX"
        " selects as in ASE), from folders (all *.extxyz, *.xyz, *.traj, *.json, input.data, OUTCAR"
        " and vasprun.xml below them) and from patterns in quotes ('runs/**/*.out'), check them,"
        " and write a database in SchNetPack's format: eV, Ang, stress positive = tension. Train on"
        " it with `spk-softadapt train my.db`.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder or 'PATTERN'")
    parser.add_argument("--out", required=True, metavar="DB", help="database to write, *.db")
    parser.add_argument("--val", nargs="+", default=[], metavar="FILE", help="validation set")
    parser.add_argument("--test", nargs="+", default=[], metavar="FILE", help="test set")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing database")
    parser.add_argument("--format", default="auto")
    keys = parser.add_argument_group(
        "keys", "names of the labels in the files, where they are not the usual ones"
    )
    keys.add_argument(
        "--energy-key",
        metavar="KEY",
        help="default: energy; free_energy in VASP's own files, since forces derive from it",
    )
    keys.add_argument("--forces-key", metavar="KEY", help="'none' leaves forces out")
    keys.add_argument(
        "--stress-key",
        metavar="KEY",
        help="'none' leaves stress out; default: stress, else virial or virials. A key with"
        " 'virial' in its name holds -volume * stress, as GAP, MACE and DeePMD have it",
    )
    keys.add_argument(
        "--group-key",
        metavar="KEY",
        help="info entry naming the group; default: group or config_type, else the folder (of what"
        " was found in one or by a pattern) or the file",
    )
    keys.add_argument(
        "--split-key",
        dest="split_keys",
        nargs="+",
        default=[],
        metavar="KEY",
        help="structures that agree in these info entries stay in one subset of a split",
    )
    units = parser.add_argument_group("units and conventions")
    for name in ("energy", "length", "forces", "stress"):
        units.add_argument(f"--{name}-unit", metavar="UNIT")
    units.add_argument("--stress-sign", type=int, choices=(-1, 1))
    units.add_argument("--stress-order", metavar="ORDER")
    units.add_argument(
        "--repair-stress",
        nargs="+",
        default=[],
        metavar="GROUP=READING",
        help="read the stresses of a group another way, as a warning may propose: 'GROUP=xx yy zz"
        " xz yz xy' (what each of xx yy zz yz xz xy really is), GROUP=FACTOR, 'GROUP=FACTOR ORDER'",
    )
    parser.set_defaults(run=_import)
    parser.format_help = functools.partial(_import_help, parser)


def _import_help(parser: argparse.ArgumentParser) -> str:
    """Help with what the formats say about themselves, which takes importing them."""
    from schnetpack_softadapt.data.formats.format import option_help

    texts = option_help()
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)
    return argparse.ArgumentParser.format_help(parser)


def _import(args) -> None:
    from schnetpack_softadapt.data.formats.format import ImportOptions
    from schnetpack_softadapt.data.importing.convert import convert_files
    from schnetpack_softadapt.data.importing.stress_labels import StressRepair

    # the arguments have the names of its fields
    options = ImportOptions(
        **{name: getattr(args, name) for name in ImportOptions.__dataclass_fields__}
    )
    convert_files(
        args.files,
        args.out,
        val=args.val,
        test=args.test,
        options=options,
        repairs=[StressRepair.parse(text) for text in args.repair_stress],
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    )


def _add_generate(commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="strained, perturbed and defective structures, labelled by any ASE calculator",
        description="From relaxed prototypes: grids of strain, Gaussian displacements, supercells"
        " and vacancies, each with labels. Reproducible from the seed; results are kept in"
        " OUT.journal as they come, so that the same command goes on after an interruption and"
        " computes only what is missing or failed. Settings come from --config, and from the"
        " options, which go before it. A GRID is numbers, or start:stop:step. Exit status 1 if"
        " calculations failed.",
    )
    parser.add_argument("prototypes", nargs="*", metavar="PROTOTYPE", help="files that ASE reads")
    parser.add_argument("--out", metavar="FILE", help="*.extxyz (for `import`), or a database *.db")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a FILE that was made otherwise; results in its journal are always kept",
    )
    parser.add_argument(
        "--config", metavar="YAML", help="a file, or the name of a recipe of the package: mote2"
    )
    parser.add_argument(
        "--strain",
        nargs="+",
        metavar="NAME=GRID",
        help="such as in_plane=-0.1:0.1:0.02, or full=-0.02:0.02:0.02 for six components; names:"
        " xx yy zz yz xz xy (tensor components), in_plane, normal, full; all combinations",
    )
    parser.add_argument(
        "--sigma", nargs="+", metavar="GRID", help="standard deviations of displacements, Ang"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="draws of each random case")
    parser.add_argument("--supercell", type=int, nargs=3, metavar="N", help="repetitions")
    parser.add_argument(
        "--vacancies", nargs="+", metavar="GRID", help="numbers of atoms removed at random"
    )
    parser.add_argument("--vacancy-element", metavar="SYMBOL", help="remove only this element")
    parser.add_argument(
        "--min-distance",
        type=float,
        metavar="ANG",
        help="skip structures with closer atoms (default: 0.6 of the sum of covalent radii)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of all random numbers (default: 0)")
    parser.add_argument(
        "--calculator",
        metavar="MODULE:NAME",
        help="such as ase.calculators.emt:EMT; a recipe can name one too. The module is imported,"
        " which executes it",
    )
    parser.add_argument(
        "--calculator-args",
        metavar="JSON",
        help='keyword arguments, such as \'{"directory": "run-{worker}"}\'; {worker} becomes the'
        " number of the process",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes (set OMP_NUM_THREADS to their threads; default: 1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    parser.set_defaults(run=_generate)


def _generate(args) -> int:
    from schnetpack_softadapt.data.generate.generate import generate, plan
    from schnetpack_softadapt.data.generate.recipe import read_recipe

    recipe = read_recipe(args.config, vars(args))
    if args.dry_run:
        print(plan(recipe))
        return 0
    if args.out is None:
        raise ValueError("give --out, the file to write (or --dry-run)")
    try:
        result = generate(
            recipe,
            args.out,
            n_jobs=args.jobs,
            overwrite=args.overwrite,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return int(bool(result.failed))


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="a potential for a database, with the recommended recipe",
        description="Train with experiment=mlearn_softadapt (crystals) or molecule_softadapt (no"
        " structure is periodic); the spktrain command that it stands for is printed. The same"
        " command again goes on with a run that was stopped, and more epochs extend it.",
    )
    parser.add_argument("database", metavar="DB", help="database that `import` wrote")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings of the configuration, as for spktrain: task.weighting.beta=1",
    )
    parser.add_argument(
        "--model", default="acsf", metavar="KIND", help="acsf (default), painn or schnet"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DB)")
    parser.add_argument("--epochs", type=int, metavar="N", help="largest number of epochs")
    parser.add_argument(
        "--time", dest="max_time", metavar="TIME", help="such as 90s, 30min, 2h: when to end"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of first weights and order")
    parser.add_argument("--cutoff", type=float, metavar="ANG", help="radius of environments")
    parser.add_argument(
        "--weighting", metavar="RULE", help="of the losses: likelihood, softadapt, fixed.."
    )
    parser.add_argument("--device", help="cpu, gpu or auto (default)")
    parser.set_defaults(run=_train, result=None)


def _train(args) -> None:
    from schnetpack_softadapt.api import train

    names = ("model", "out", "epochs", "max_time", "seed", "cutoff", "weighting", "device")
    run = train(args.database, *args.overrides, **{name: getattr(args, name) for name in names})
    print(f"model {run.folder / 'best_model'}; `spk-softadapt report {run.folder}` makes pictures")


def _add_predict(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="energies, forces and stresses of the structures in a file, and their errors",
        description="Predict the structures of a file that `import` reads, or of a database. Where"
        " they have labels, a table of the errors is printed.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="best_model or run directory (a pickle, which can execute code: only what you trust),"
        " or n2p2 folder (text)",
    )
    parser.add_argument("structures", metavar="FILE", help="structures")
    _add_output(
        parser,
        "FILE",
        "extended XYZ with predictions and labels (energy_ref..), or *.npz (default: none)",
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--energy-unit", help="of a model that does not state it")
    parser.add_argument("--position-unit", help="likewise")
    parser.set_defaults(run=_predict)


def _predict(args) -> None:
    from schnetpack_softadapt.api import predict

    names = ("out", "device", "energy_unit", "position_unit")
    arguments = {name: getattr(args, name) for name in names}
    print(predict(args.model, args.structures, **arguments))


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="what a model, a database or a run is, on one screen",
        description="Elements, cutoff, functions and units of a model; structures, labels and"
        " groups of a database; recipe and errors of a run.",
    )
    parser.add_argument(
        "path",
        metavar="MODEL|DB|RUN",
        help="best_model (a pickle, which can execute code: only what you trust), n2p2 folder,"
        " database or run directory",
    )
    parser.set_defaults(run=_info)


def _info(args) -> None:
    from schnetpack_softadapt.cli.info import info

    print(info(args.path))


def _add_report(commands) -> None:
    parser = commands.add_parser(
        "report",
        help="tables and plots of a run, or of several side by side",
        description="Write report.html (one file, opens offline), report.json, report.csv and PNG "
        "pictures from the files in run directories; unfinished runs and runs of SchNetPack's own "
        "models are welcome.",
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="directory made by spktrain")
    _add_output(
        parser,
        "DIR",
        "folder of the report (default: report/ in the run, or in what several runs share; a report"
        " there is renewed)",
        result="report.json",
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="compute missing predictions from best_model (a pickle, which can execute code: only"
        " for runs you trust) and the run's data",
    )
    parser.add_argument("--data", metavar="DB", help="the run's database, if it has moved")
    parser.add_argument("--device", default="cpu", help="device for --predict (default: cpu)")
    parser.set_defaults(run=_report)


def _report(args) -> None:
    from schnetpack_softadapt.reports.predict import predict_missing
    from schnetpack_softadapt.reports.report import read_runs, terminal_summary, write_report

    if args.predict:
        for run_dir in args.run_dirs:
            predict_missing(run_dir, args.data, args.device)
    runs = read_runs(args.run_dirs)
    out = write_report(runs, args.out)
    print(terminal_summary(runs))
    print(f"Report: {out / 'report.html'}")


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="a trained model as an n2p2 potential, ready for LAMMPS",
        description="Write input.nn, scaling.data and weights.ZZZ.data (Ang, eV), an input for"
        " LAMMPS' pair_style hdnnp, and a README. Text files, safe to share: reading them executes"
        " no code, while best_model is a pickle that can.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="best_model, or a run directory with one: a pickle, which can execute code; export"
        " only what you trust",
    )
    _add_output(parser, "FOLDER", "where the files go", result="input.nn", required=True)
    parser.add_argument(
        "--structure",
        metavar="FILE",
        help="what the LAMMPS input simulates (default: the largest structure of the run's training"
        " set; where that is not known and there is one element, its crystal)",
    )
    parser.set_defaults(run=_export)


def _export(args) -> None:
    from schnetpack_softadapt.deploy.exchange.n2p2 import write_potential
    from schnetpack_softadapt.deploy.loading import load_potential
    from schnetpack_softadapt.deploy.training_data import training_structure

    model = load_potential(args.model)
    structure = _read_structure(args.structure) if args.structure else None
    if structure is None:
        try:
            structure = training_structure(args.model)
        except (OSError, ValueError) as error:
            print(f"no training structure for LAMMPS ({error}); give --structure", file=sys.stderr)
    for path in write_potential(model, args.out, structure):
        print(path)


def _add_import_potential(commands) -> None:
    parser = commands.add_parser(
        "import-potential",
        help="an n2p2 or RuNNer potential as a model for SoftAdaptCalculator and SchNetPack",
        description="Read input.nn, scaling.data and weights.ZZZ.data and save a model.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the n2p2 potential")
    _add_output(parser, "MODEL", "model file to write", required=True)
    parser.add_argument(
        "--length-unit", metavar="UNIT", help="of the files: Ang, Bohr (default: stated, else Bohr)"
    )
    parser.add_argument(
        "--energy-unit", metavar="UNIT", help="of the files: eV, Ha.. (default: stated, else Ha)"
    )
    parser.set_defaults(run=_import_potential)


def _import_potential(args) -> None:
    from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential
    from schnetpack_softadapt.deploy.loading import save_potential

    model = read_potential(args.folder, args.length_unit, args.energy_unit)
    print(model.representation.descriptor.summary())
    logging.getLogger(__name__).info("symmetry functions:\n%s", model.representation.descriptor)
    print(save_potential(model, args.out))


def _add_check(commands) -> None:
    parser = commands.add_parser(
        "check",
        help="is a potential consistent, stable and smooth? forces, stress, eos, phonons, NVE",
        description="Forces and stress against finite differences; then, on the relaxed structure,"
        " equation of state, elastic constants, frequencies at Gamma and the energy deviation in"
        " NVE against the time step. Exit status 1 if a check is not passed.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="best_model or run directory (a pickle, which can execute code: check only what you"
        " trust), or n2p2 folder (text)",
    )
    parser.add_argument("structure", metavar="STRUCTURE", help="a file that ASE reads")
    _add_output(
        parser,
        "DIR",
        "folder of check.json and plots (default: check)",
        "check.json",
        default="check",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CHECK",
        help="some of: derivatives relax eos elastic phonons nve (default: all)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="CHECK.NAME=VALUE",
        help="options, such as nve.temperature=600 nve.time_steps=0.5,1,2 relax.fmax=1e-4"
        " phonons.delta=0.02; `--set all` lists them",
    )
    parser.add_argument("--energy-unit", help="of a model that does not state it")
    parser.add_argument("--position-unit", help="likewise")
    parser.set_defaults(run=_check)


def _check(args) -> int:
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.check.check import CHECKS, read_options, run_checks, summary

    options = read_options(args.set)
    atoms = _read_structure(args.structure)
    units = {"energy_unit": args.energy_unit, "position_unit": args.position_unit}
    atoms.calc = SoftAdaptCalculator(args.model, **units)
    results = run_checks(atoms, args.only or CHECKS, args.out, options)
    print(summary(results))
    return int(any(not r.get("ok", True) for r in results.values()))


#: one function per command: takes the subparsers object, adds its parser, sets `run`
COMMANDS = [
    _add_import,
    _add_generate,
    _add_train,
    _add_predict,
    _add_info,
    _add_report,
    _add_check,
    _add_export,
    _add_import_potential,
]


if __name__ == "__main__":
    sys.exit(main())
