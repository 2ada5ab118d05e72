"""`spk-softadapt`: argument parsing and wiring only; the work is done by the modules it calls.

Each command (in `data` and `models`) imports what it runs inside its handler, so that `--help`
answers at once. Outputs have one convention, `arguments.add_output`; errors another, `main`.
"""

import argparse
import contextlib
import logging
import sys
import traceback
import warnings

from schnetpack_softadapt import __version__
from schnetpack_softadapt.cli import data, edit, learn, models
from schnetpack_softadapt.cli.arguments import keep_existing
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
    defaults = {"verbose": False, "debug": False, "overwrite": False, "goes_on": False}
    parser.set_defaults(out=None, result=None, **defaults)
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
            keep_existing(args)
            return args.run(args) or 0
        except KeyboardInterrupt:
            more = "; the same command goes on from here" if args.goes_on else ""
            print(f"interrupted{more}", file=sys.stderr)
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


def _root_shows() -> bool:
    """Whether messages are on stderr anyway: SchNetPack's programs, once imported, see to that."""
    kinds = ((type(handler), getattr(handler, "stream", None)) for handler in logging.root.handlers)
    return (logging.StreamHandler, sys.stderr) in kinds


@contextlib.contextmanager
def _messages(args: argparse.Namespace):
    """Our messages on stderr; warnings of other packages' future only for `--debug`."""
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    logger = logging.getLogger("schnetpack_softadapt")
    before, handler = logger.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(lambda _: not _root_shows())
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


#: each takes the subparsers object, adds its parser and sets `run`
COMMANDS = (*data.COMMANDS, *edit.COMMANDS, *models.COMMANDS, *learn.COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
