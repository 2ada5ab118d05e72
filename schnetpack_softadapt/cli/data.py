"""Commands that make data: import, generate, label."""

import argparse
import functools

from schnetpack_softadapt.cli.arguments import chosen

__all__ = ["COMMANDS"]


def add_import(commands) -> None:
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
    options = ImportOptions(**chosen(args, *ImportOptions.__dataclass_fields__))
    convert_files(
        args.files,
        args.out,
        val=args.val,
        test=args.test,
        options=options,
        repairs=[StressRepair.parse(text) for text in args.repair_stress],
        overwrite=args.overwrite,
    )


def add_generate(commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="strained, perturbed and defective structures, labelled by any ASE calculator; or"
        " diverse ones",
        description="From relaxed prototypes: grids of strain, Gaussian displacements, supercells"
        " and vacancies, and by a recipe (FILE.yaml) also surfaces, stacking faults, interstitials,"
        " molecular dynamics and exchanges of elements, each with labels. Reproducible from the"
        " seed; results are kept in OUT.journal as they come, so that the same command goes on"
        " after an interruption and computes only what is missing or failed. Settings come from"
        " --config, and from the options, which go before it. A GRID is numbers, or"
        " start:stop:step. Exit status 1 if calculations failed. With --method entropy: structures"
        " without labels whose atoms have environments as different as can be, from --elements"
        " alone; they are resumable and reproducible likewise.",
    )
    parser.add_argument(
        "--method",
        choices=("grid", "entropy"),
        default="grid",
        help="grid: of prototypes (default); entropy: diverse structures",
    )
    parser.add_argument(
        "prototypes",
        nargs="*",
        metavar="PROTOTYPE",
        help="files that ASE reads, or a recipe *.yaml",
    )
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
    _add_labelling(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    diverse = parser.add_argument_group(
        "--method entropy",
        "more settings (n_atoms, volume, density, shape, descriptor..) in the file of --config",
    )
    diverse.add_argument("--elements", nargs="+", metavar="SYMBOL", help="of random compositions")
    diverse.add_argument("--n", type=int, metavar="N", help="number of structures (default: 100)")
    diverse.add_argument(
        "--k", type=float, metavar="EV", help="above zero diverse, below ordered (default: 3)"
    )
    diverse.add_argument(
        "--against", nargs="+", metavar="FILE", help="structures that new ones shall differ from"
    )
    parser.set_defaults(run=_generate, goes_on=True)


def _generate_diverse(args) -> int:
    from schnetpack_softadapt.data.generate.entropy import generate_diverse, read_entropy_recipe

    names = ("prototypes", "strain", "sigma", "supercell", "vacancies", "calculator", "dry_run")
    names += ("timeout", "retries")
    for name in names:
        if getattr(args, name):
            raise ValueError(f"--method entropy takes no {name.replace('_', '-')}")
    if args.out is None:
        raise ValueError("give --out, the file to write")
    recipe = read_entropy_recipe(args.config, vars(args))
    generate_diverse(recipe, args.out, args.executor, args.overwrite)
    return 0


def _generate(args) -> int:
    from schnetpack_softadapt.data.generate.generate import generate, plan
    from schnetpack_softadapt.data.generate.recipe import read_recipe

    if args.method == "entropy":
        return _generate_diverse(args)
    if args.config is None and args.prototypes[:1] and args.prototypes[0].endswith(".yaml"):
        args.config = args.prototypes.pop(0)
    recipe = read_recipe(args.config, vars(args))
    if args.dry_run:
        print(plan(recipe))
        return 0
    if args.out is None:
        raise ValueError("give --out, the file to write (or --dry-run)")
    how = chosen(args, "executor", "timeout", "retries", "overwrite")
    return int(bool(generate(recipe, args.out, **how).failed))


def _add_labelling(parser: argparse.ArgumentParser) -> None:
    """Options of whatever labels structures."""
    group = parser.add_argument_group("calculations")
    group.add_argument(
        "--calculator",
        metavar="MODULE:NAME",
        help="such as ase.calculators.emt:EMT. The module is imported, which executes it",
    )
    group.add_argument(
        "--calculator-args",
        metavar="JSON",
        help='keyword arguments, such as \'{"directory": "run-{worker}"}\'; {worker} becomes the'
        " name of the process",
    )
    group.add_argument(
        "--executor",
        default="local:1",
        metavar="WHERE",
        help="local:N (processes here; set OMP_NUM_THREADS to their threads), dask:ADDRESS, or a"
        " YAML file, such as one with `dask: dask_jobqueue:SLURMCluster`, `workers: 20` and"
        " `arguments: {cores: 1, memory: 4GB}` (default: local:1)",
    )
    group.add_argument("--timeout", type=float, metavar="S", help="of one structure")
    group.add_argument(
        "--retries", type=int, default=0, metavar="N", help="of a structure that fails (default: 0)"
    )


def add_label(commands) -> None:
    parser = commands.add_parser(
        "label",
        help="labels of any ASE calculator or program for any structures, here or on a cluster",
        description="Label structures of files that `import` or ASE reads (labels in them are not"
        " looked at). Results are kept in OUT.journal as they come: the same command goes on after"
        " an interruption and computes what is missing or failed. A calculation that crashes or"
        " takes too long costs one structure. Exit status 1 if calculations failed.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder or 'PATTERN'")
    parser.add_argument("--out", required=True, metavar="FILE", help="*.extxyz, or a database *.db")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a FILE that was made otherwise"
    )
    _add_labelling(parser)
    parser.add_argument(
        "--command",
        dest="shell_command",
        metavar="TEXT",
        help="instead of --calculator: reads in.extxyz and writes out.extxyz with energy, forces"
        " and perhaps stress, in a directory of its own",
    )
    parser.set_defaults(run=_label, goes_on=True)


def _label(args) -> int:
    from schnetpack_softadapt.data.generate.label import label
    from schnetpack_softadapt.data.generate.labelling import COMMAND
    from schnetpack_softadapt.data.generate.recipe import parse_arguments

    arguments = parse_arguments(args.calculator_args or "{}")
    if args.shell_command is not None:
        if not args.shell_command.strip():
            raise ValueError("--command is empty")
        if args.calculator is not None:
            raise ValueError("give --calculator or --command, not both")
        args.calculator, arguments = COMMAND, {"command": args.shell_command, **arguments}
    how = chosen(args, "executor", "timeout", "retries", "overwrite")
    result = label(args.files, args.calculator, args.out, arguments, **how)
    return int(bool(result.failed))


COMMANDS = (add_import, add_generate, add_label)
