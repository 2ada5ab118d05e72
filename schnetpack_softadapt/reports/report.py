"""`spk-softadapt report`: one run, or several side by side, and a summary for the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path

from .compare import group_runs, names_of
from .quantities import QUANTITIES, SUBSETS
from .run import Run
from .several import write_comparison
from .single import write_single
from .tables import plain_table

__all__ = ["read_runs", "terminal_summary", "write_report"]


def read_runs(run_dirs: Sequence[Path | str]) -> list[Run]:
    """Read run directories, each once.

    Raises:
        ValueError: no directory was given, or one is not a run (see `Run.read`).
    """
    if not run_dirs:
        raise ValueError("no run directory given")
    return [Run.read(path) for path in dict.fromkeys(Path(p).resolve() for p in run_dirs)]


def write_report(runs: Sequence[Run], out: Path | str | None = None) -> Path:
    """Write the report of one run, or the comparison of several, and return its folder.

    Args:
        runs: what `read_runs` gives, one at least
        out: folder of the report; default `report` in the run's directory, or, for several runs,
            in the directory they have in common
    """
    if out is None:
        paths = [run.path for run in runs]
        common = paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))
        out = common / "report"
    return write_single(runs[0], Path(out)) if len(runs) == 1 else write_comparison(runs, Path(out))


def terminal_summary(runs: Sequence[Run]) -> str:
    """The RMSE table and what is missing, for the terminal; equal settings share a row."""
    names = names_of(runs)
    groups = group_runs(runs)
    header = ["RMSE", *(f"{q.name} ({q.unit})" for q in QUANTITIES)]
    lines = []
    for group in groups:
        for subset in SUBSETS:
            spreads = [group.errors.get((subset, q.name, "rmse")) for q in QUANTITIES]
            if any(spreads):
                title = f"{group.label}, {SUBSETS[subset]}"
                lines.append([title, *(str(spread or "–") for spread in spreads)])
    text = [plain_table(header, lines)] if lines else ["No errors are known yet."]
    for run in runs:
        text += [f"{names[id(run)]}: {note}" for note in run.notes]
    return "\n".join(text)
