"""The command `learn`."""

import sys
from pathlib import Path

__all__ = ["COMMANDS"]


def add_learn(commands) -> None:
    parser = commands.add_parser(
        "learn",
        help="train, label where models are uncertain, and again until they are not",
        description="Active learning: train a linear model, or several networks, let them run"
        " molecular dynamics and other explorations, label what they know least with any ASE"
        " calculator, train again."
        " The file (YAML) has train, test, calculator, explore, members, model, executor,"
        " uncertain, n, rounds and more (schnetpack_softadapt/learn/loop.py). The same command"
        " again goes on with what was stopped, and more rounds extend it.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of rounds.csv and the rounds (default: runs/CONFIG)"
    )
    parser.set_defaults(run=_learn, result=None)


def _learn(args) -> None:
    from schnetpack_softadapt.learn.loop import learn, read_learning

    out = args.out or Path("runs", Path(args.config).stem)
    learn(read_learning(args.config), out, progress=sys.stderr.isatty())


COMMANDS = (add_learn,)
