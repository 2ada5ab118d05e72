"""The command `set`: look at a database and change it."""

import argparse
from inspect import signature

# as in `quantities`, which loads numpy: help should not wait for that
SUBSETS = ("train", "val", "test")

__all__ = ["COMMANDS"]


def add_set(commands) -> None:
    parser = commands.add_parser(
        "set",
        help="groups, weights, training/validation/test, additions and removals in a database",
        description="Look at a database and change it. Each change writes a new version and keeps"
        " the old one beside it as DB.v1.db, DB.v2.db..; `undo` goes back. Training takes the"
        " weights and assignments: data.splitting=auto (where no split file is given) or assigned.",
        epilog="Examples: set my.db list; set my.db assign test --group 'surface*'; set my.db"
        " weight 0.1 --where 'max_force > 20'; set my.db append new.extxyz --group melt; set my.db"
        " undo",
    )
    parser.add_argument("database", metavar="DB")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, selects: bool = False) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=help, description=help)
        if selects:
            _add_selection(added)
        return added

    action(
        "list", "groups, files, calculators, assignments, ranges; or the chosen structures", True
    )
    tag = action("tag", "name the group of structures", True)
    tag.add_argument("name", metavar="GROUP")
    weight = action("weight", "weigh structures in all losses (1 without)", True)
    weight.add_argument("weight", type=float, metavar="W")
    assign = action(
        "assign", "use structures for training, validation or test; none: no wish", True
    )
    assign.add_argument("subset", choices=[*SUBSETS, "none"])
    action("remove", "leave structures out of the new version", True)
    append = action("append", "add structures from files, as `import` reads them")
    append.add_argument("files", nargs="+", metavar="FILE", help="file, folder or 'PATTERN'")
    append.add_argument("--group", metavar="NAME", dest="name", help="their group")
    append.add_argument("--assign", choices=list(SUBSETS), dest="subset")
    merge = action("merge", "add other databases, with their groups, weights and assignments")
    merge.add_argument("files", nargs="+", metavar="DB")
    same = action(
        "deduplicate",
        "remove structures that are there already, but for rotation, numbering of atoms, cell",
    )
    same.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="ANG", help="displacement (default 0.001)"
    )
    same.add_argument("--keep", choices=("first", "last"), default="first")
    same.add_argument(
        "--differing",
        action="store_true",
        help="remove also those whose energy or forces differ; without, they are only named",
    )
    same.add_argument("--dry-run", action="store_true", help="only name them")
    back = action("undo", "go back to the version before the last change, or to a kept one")
    back.add_argument("back_to", nargs="?", metavar="FILE")
    parser.set_defaults(run=_set)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which structures (all that is given must hold)")
    which.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="N",
        help="numbers from 0 (as in reports), slices 0:100, files of numbers",
    )
    for name in ("group", "source", "subset"):
        which.add_argument(f"--{name}", nargs="+", default=[], metavar="NAME", dest=f"{name}s")
    which.add_argument(
        "--where",
        metavar="CONDITION",
        help="with the columns of `list`, energy, max_force, max_stress, volume, n_atoms, n_Mo..:"
        " 'max_force > 20 and n_Mo > 1'",
    )
    which.add_argument("--all", action="store_true", dest="everything")


def _set(args) -> None:
    from schnetpack_softadapt.data.edit import changes, listing
    from schnetpack_softadapt.data.edit.editing import Selection

    path = args.database
    given = vars(args)
    selection = Selection(**{k: given[k] for k in Selection.__dataclass_fields__ if k in given})
    if args.action == "list":
        if selection.is_empty and not selection.everything:
            print(listing.list_database(path))
        else:
            print(listing.list_structures(path, selection))
        return
    change = getattr(changes, args.action)
    given["selection"] = selection
    print(change(path, **{k: given[k] for k in signature(change).parameters if k in given}))


COMMANDS = (add_set,)
