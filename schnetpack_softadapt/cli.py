"""`spk-softadapt`: argument parsing and wiring only; the work is done by the modules it calls.

Each command adds its parser in `_add_<command>` and imports what it runs inside the handler, so
that `--help` answers at once.
"""

import argparse
import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for bad input, with the reason on stderr)."""
    parser = argparse.ArgumentParser(prog="spk-softadapt", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"spk-softadapt {args.command}: {error}", file=sys.stderr)
        return 2


#: one function per command: takes the subparsers object, adds its parser, sets `run`
COMMANDS = []


if __name__ == "__main__":
    sys.exit(main())
