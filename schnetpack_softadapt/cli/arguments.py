"""What the commands have in common: `--out` and `--overwrite`, a model."""

import argparse
from pathlib import Path

__all__ = ["add_model", "add_output", "chosen", "keep_existing"]


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
