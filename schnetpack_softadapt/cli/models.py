"""Commands that make and use models: training, predictions, reports, checks, exchange."""

import logging
import sys
from pathlib import Path

from schnetpack_softadapt.cli.arguments import add_model, add_output, chosen

__all__ = ["COMMANDS"]


def add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="a potential for a database, with the recommended recipe",
        description="Train with experiment=recommended_softadapt (crystals) or molecule_softadapt"
        " (no structure is periodic); the spktrain command that it stands for is printed. The same"
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
        "--model",
        metavar="KIND",
        help="acsf (default, unless there is --start-from), ace, linear (cluster expansion) or"
        " quadratic (SNAP), both without epochs, painn or schnet",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DB)")
    parser.add_argument("--epochs", type=int, metavar="N", help="largest number of epochs")
    parser.add_argument(
        "--time",
        dest="max_time",
        metavar="TIME",
        help="wall time of the run, such as 90s, 30min, 2h",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of first weights and order")
    parser.add_argument("--cutoff", type=float, metavar="ANG", help="radius of environments")
    parser.add_argument(
        "--weighting", metavar="RULE", help="of the losses: likelihood, softadapt, fixed.."
    )
    parser.add_argument("--device", help="cpu, gpu or auto (default)")
    parser.add_argument(
        "--start-from",
        metavar="MODEL",
        help="run, model, folder of `export`, *.yace, *.snapcoeff or n2p2 folder that new data"
        " refine; with --model, one of fewer functions or neurons",
    )
    parser.set_defaults(run=_train, result=None)


def _train(args) -> None:
    from schnetpack_softadapt.api import train

    names = ["model", "out", "epochs", "max_time", "seed", "cutoff", "weighting", "device"]
    run = train(args.database, *args.overrides, **chosen(args, *names, "start_from"))
    print(f"model {run.folder / 'best_model'}; `spk-softadapt report {run.folder}` makes pictures")


def add_tune(commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="cutoffs, radii, weights, grids, widths: any number of a recipe, by its errors",
        description="Train again and again with settings that a derivative-free optimizer chooses"
        " by the validation errors of energy, forces and stress, balanced. The file (YAML) has the"
        " settings that all fits share, as for spktrain, and the range of each that is tuned:"
        " `train: [experiment=recommended_softadapt, data.datapath=my.db]`, `parameters:"
        " {globals.cutoff: {low: 4, high: 7}}`; also evaluations (100), optimizer (cobyqa,"
        " nelder-mead, optuna) and objective ({energy: 1, forces: 1, stress: 1}). The same command"
        " again goes on with what was stopped, and more evaluations extend it.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of fits.json, path.csv, path.png and the best run (default: runs/CONFIG)",
    )
    parser.set_defaults(run=_tune, result=None)


def _tune(args) -> None:
    from schnetpack_softadapt.cli.tune import read_tuning, tune

    print(tune(read_tuning(args.config), args.out or Path("runs", Path(args.config).stem)))


def add_select_functions(commands) -> None:
    parser = commands.add_parser(
        "select-functions",
        help="the fewest symmetry functions that say what all of them say about a database",
        description="Choose among the functions of the recommended recipe (or of a run) by their"
        " values for the training structures (all structures where there is no split), and write"
        " those kept to a file for model.representation.layout. As a part of a training this is"
        " model.representation.select=N.",
    )
    parser.add_argument("path", metavar="DB|RUN", help="database, or run directory")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="what is chosen from, as for spktrain: model.representation.grid.n_radial=40",
    )
    parser.add_argument(
        "--n", type=int, default=64, metavar="N", help="functions of each element (default: 64)"
    )
    parser.add_argument(
        "--min-range",
        type=float,
        default=0.0,
        metavar="G",
        help="first drop functions whose values differ by less (n2p2 users take 0.01)",
    )
    parser.add_argument(
        "--max-correlation",
        type=float,
        default=1.0,
        metavar="R",
        help="and those more correlated with one before them",
    )
    parser.add_argument(
        "--histograms",
        metavar="FILE",
        help="distribution of each function's values in 200 bins, *.csv or *.png",
    )
    add_output(parser, "FILE", "functions kept (default: layout.json)", default="layout.json")
    parser.set_defaults(run=_select_functions)


def _select_functions(args) -> None:
    from schnetpack_softadapt.cli.select_functions import select_functions

    thresholds = chosen(args, "n", "min_range", "max_correlation")
    print(select_functions(args.path, args.out, args.overrides, args.histograms, **thresholds))


def add_select(commands) -> None:
    parser = commands.add_parser(
        "select",
        help="of many structures the few that are worth labelling",
        description="Choose structures that differ most from each other, and from those of --from,"
        " by the descriptors of their atoms; or those on which the models of a committee disagree."
        " They are written in the order of choice, copies last.",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="what `import` reads, with or without labels; *.db"
    )
    parser.add_argument("--n", type=int, required=True, metavar="N", help="number of structures")
    parser.add_argument(
        "--method",
        default="farthest",
        help="farthest (points; default), cur, leverage (D-optimal), maxvol (extrapolation grade),"
        " committee (largest spread of a force)",
    )
    parser.add_argument(
        "--from",
        dest="known",
        nargs="+",
        default=[],
        metavar="FILE",
        help="structures that are known: new ones shall differ from these",
    )
    parser.add_argument(
        "--by",
        default="atoms",
        help="what stands for a structure: its most telling of all atoms (default), mean or"
        " mean_std over the atoms of each element",
    )
    parser.add_argument(
        "--descriptor", metavar="FILE", help="as `select-functions` writes it (default: bispectrum)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="runs or models (pickles, which can execute code): the committee, and the descriptor",
    )
    add_output(parser, "FILE", "chosen structures, *.extxyz", default="chosen.extxyz")
    parser.set_defaults(run=_select)


def _select(args) -> None:
    from schnetpack_softadapt.cli.select_structures import select_structures

    names = ("n", "method", "known", "by", "descriptor", "models")
    print(select_structures(args.files, args.out, **chosen(args, *names)))


def add_predict(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="energies, forces and stresses of the structures in a file, and their errors",
        description="Predict the structures of a file that `import` reads, or of a database. Where"
        " they have labels, a table of the errors is printed.",
    )
    add_model(parser)
    parser.add_argument("structures", metavar="FILE", help="structures")
    add_output(
        parser,
        "FILE",
        "extended XYZ with predictions and labels (energy_ref..), or *.npz (default: none)",
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.set_defaults(run=_predict)


def _predict(args) -> None:
    from schnetpack_softadapt.api import predict

    names = ("out", "device", "energy_unit", "position_unit")
    print(predict(args.model, args.structures, **chosen(args, *names)))


def add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="what a model, a database or a run is, on one screen",
        description="Elements, cutoff, functions and units of a model; structures, labels and"
        " groups of a database; recipe and errors of a run.",
    )
    parser.add_argument(
        "path",
        metavar="MODEL|DB|RUN",
        help="best_model (a pickle, which can execute code: only what you trust), exported folder,"
        " database or run directory",
    )
    parser.set_defaults(run=_info)


def _info(args) -> None:
    from schnetpack_softadapt.cli.info import info

    print(info(args.path))


def add_report(commands) -> None:
    parser = commands.add_parser(
        "report",
        help="tables and plots of a run, or of runs side by side",
        description="Write report.html (one file, opens offline), report.json, report.csv and PNG "
        "pictures from the files in run directories; unfinished runs and runs of SchNetPack's own "
        "models are welcome.",
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="directory made by spktrain")
    add_output(
        parser,
        "DIR",
        "folder of the report (default: report/ in the run, or in what the runs share; a report"
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


def add_check(commands) -> None:
    parser = commands.add_parser(
        "check",
        help="is a potential consistent, stable and smooth? forces, stress, eos, phonons, NVE",
        description="Forces and stress against finite differences; then, on the relaxed structure,"
        " equation of state, elastic constants, frequencies at Gamma and the energy deviation in"
        " NVE against the time step. Exit status 1 if a check is not passed.",
    )
    add_model(parser)
    parser.add_argument("structure", metavar="STRUCTURE", help="a file that ASE reads")
    add_output(
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
    parser.set_defaults(run=_check)


def _check(args) -> int:
    from schnetpack_softadapt.data.structures import read_atoms
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.check.check import CHECKS, read_options, run_checks
    from schnetpack_softadapt.deploy.check.results import summary

    options = read_options(args.set)
    atoms = read_atoms(args.structure)
    atoms.calc = SoftAdaptCalculator(args.model, **chosen(args, "energy_unit", "position_unit"))
    results = run_checks(atoms, args.only or CHECKS, args.out, options)
    print(summary(results))
    return int(any(not r.get("ok", True) for r in results.values()))


def add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="a trained model, or a committee, as text, ready for LAMMPS",
        description="Write potential.json for LAMMPS' pair_style mliap, the files of n2p2 (Ang, eV)"
        " for pair_style hdnnp where they can express the model, an input that runs as it is, and a"
        " README. Text files, safe to share: reading them executes no code, while best_model is a"
        " pickle that can.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="+",
        help="best_model, or a run directory with one: a pickle, which can execute code; export"
        " only what you trust. Several are a committee, of which LAMMPS runs the mean",
    )
    add_output(parser, "FOLDER", "where the files go", result="in.lammps", required=True)
    parser.add_argument(
        "--format",
        choices=("all", "lammps", "n2p2", "snap", "yace"),
        default="all",
        help="lammps: potential.json for pair_style mliap; n2p2: for pair_style hdnnp and others;"
        " all (the default): both, as far as the model allows; snap: for pair_style snap; yace: for"
        " pair_style pace",
    )
    parser.add_argument(
        "--structure",
        metavar="FILE",
        help="what the LAMMPS input simulates (default: the largest structure of the run's training"
        " set; where that is not known and there is one element, its crystal)",
    )
    parser.set_defaults(run=_export)


def _export(args) -> None:
    from schnetpack_softadapt.data.structures import read_atoms
    from schnetpack_softadapt.deploy.exchange.export import export_potential
    from schnetpack_softadapt.deploy.loading import load_members
    from schnetpack_softadapt.deploy.training_data import training_structure

    models = [member for path in args.model for member in load_members(path)]
    structure = read_atoms(args.structure) if args.structure else None
    if structure is None:
        try:
            structure = training_structure(args.model[0])
        except (OSError, ValueError) as error:
            print(f"no training structure for LAMMPS ({error}); give --structure", file=sys.stderr)
    files, reason = export_potential(models, args.out, structure, args.format)
    if reason:
        print(f"without the files of n2p2: {reason}", file=sys.stderr)
    for path in files:
        print(path)


def add_import_potential(commands) -> None:
    parser = commands.add_parser(
        "import-potential",
        help="an n2p2 or RuNNer potential as a model for SoftAdaptCalculator and SchNetPack",
        description="Read input.nn, scaling.data and weights.ZZZ.data and save a model.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the n2p2 potential")
    add_output(parser, "MODEL", "model file to write", required=True)
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


COMMANDS = (
    add_train,
    add_tune,
    add_select_functions,
    add_select,
    add_predict,
    add_info,
    add_report,
    add_check,
    add_export,
    add_import_potential,
)
