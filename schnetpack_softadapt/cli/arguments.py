"""What the commands have in common: `--out` and `--overwrite`, a model, a structure from a file."""

import argparse
from pathlib import Path

__all__ = ["add_model", "add_output", "chosen", "keep_existing", "read_structure"]


def add_output(
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


def add_model(parser: argparse.ArgumentParser) -> None:
    """A model to predict with, and the units of one that does not state them."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="best_model or run directory (a pickle, which can execute code: only what you trust),"
        " or n2p2 folder (text)",
    )
    parser.add_argument("--energy-unit", help="of a model that does not state it")
    parser.add_argument("--position-unit", help="likewise")


def chosen(args: argparse.Namespace, *names: str) -> dict:
    """Some of the arguments by name."""
    return {name: getattr(args, name) for name in names}


def keep_existing(args: argparse.Namespace) -> None:
    if args.out is None or args.result is None or args.overwrite:
        return
    path = Path(args.out) / args.result
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another --out or give --overwrite")


def read_structure(path: str):
    """A structure from a file that ASE reads."""
    import ase.io

    try:
        return ase.io.read(path)
    except OSError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise ValueError(f"{path} is no structure file that ASE reads ({error!r})") from error
