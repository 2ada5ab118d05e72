"""What studies of many fits share: sub-commands, splits by group, fits, tables, figures."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FRACTIONS = (0.7, 0.1, 0.2)  # train, val, test
#: groups of the W-Be files whose stresses are in the unit stated; others lack a factor of 1000
RIGHT_STRESS = ("slice_sample", "gamma_surface")


def published_snap():
    """The potential of M. A. Wood et al., Phys. Rev. B 99, 184305 (2019), with its ZBL."""
    from shared import shared_path

    from schnetpack_softadapt.deploy.exchange.snap import read_snap
    from schnetpack_softadapt.model import ZBL

    model = read_snap(shared_path("reference/snap/WBe_Wood_PRB2019.snapcoeff"))
    model.postprocessors.append(ZBL.of_elements([4, 74], inner=4.0, outer=4.8))
    return model


def subcommand(commands, run: Callable, folder: bool = True) -> argparse.ArgumentParser:
    """The parser of a function of the same name, most with a folder."""
    command = commands.add_parser(run.__name__)
    command.set_defaults(run=run)
    if folder:
        command.add_argument("folder", type=Path)
    return command


def by_group(groups: Sequence[str], seed: int) -> Iterable[np.ndarray]:
    """Indices of the structures of each group, in random order."""
    from schnetpack_softadapt.data.splitting import seeded_order

    groups = np.asarray(groups)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        yield members[seeded_order(len(members), seed)]


def split_by_group(groups: Sequence[str], seed: int) -> list[list[int]]:
    """Structures to train, validate and test, the same shares of each group.

    Depends on the members of a group alone; one of two structures is for testing.
    """
    subsets = [[], [], []]
    for members in by_group(groups, seed):
        ends = np.ceil(np.cumsum(FRACTIONS)[:2] * len(members) - 0.5).astype(int)
        for subset, part in zip(subsets, np.split(members, ends), strict=True):
            subset += part.tolist()
    return [sorted(subset) for subset in subsets]


def fit(folder: Path, database: Path, overrides: Sequence[str]) -> dict:
    """Metrics of the run in a folder, which is trained unless it is there."""
    from schnetpack_softadapt.api import run_spktrain

    folder = folder.absolute()
    if not (folder / "metrics.json").exists():
        run_spktrain(
            [
                *overrides,
                f"data.datapath={database.absolute()}",
                f"run.path={folder.parent}",
                f"run.id={folder.name}",
                "logger=acsf_quiet",
                "print_config=false",
            ]
        )
    return json.loads((folder / "metrics.json").read_text())


def short(x: float, digits: int = 3) -> str:
    """A number with so many digits, without powers of ten up to a million."""
    return f"{float(f'{x:.{digits}g}'):g}"


def print_table(head: Sequence, rows: Iterable[Sequence]) -> None:
    """In Markdown."""
    print(f"| {' | '.join(map(str, head))} |\n{'|---' * len(head)}|")
    for row in rows:
        cells = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in row)
        print(f"| {' | '.join(cells)} |", flush=True)


def save_picture(path: str | Path | None, draw: Callable, *args) -> None:
    """Write a figure as PNG; nothing without a path."""
    from schnetpack_softadapt.files import write_file
    from schnetpack_softadapt.reports.style import png_bytes

    if path:
        write_file(path, png_bytes(draw, *args))
        print(f"written {path}")


def legend(figure, entries: Iterable[tuple[str, str, str]], **where) -> None:
    """A legend of the figure for (format of the line, colour, label), whatever is drawn."""
    for style, colour, label in entries:
        figure.axes[0].plot([], [], style, color=colour, label=label)
    figure.legend(**where)


def plain_ticks(axis) -> None:
    """Numbers in place of powers of ten on a logarithmic axis of few decades."""
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter("{x:g}")
    axis.set_major_formatter("{x:g}")
