"""`spk-softadapt report`: one run, or several side by side, and a summary for the terminal."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from schnetpack_softadapt.quantities import QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.compare import group_runs, names_of, write_comparison
from schnetpack_softadapt.reports.curves import draw_learning, draw_weights
from schnetpack_softadapt.reports.outliers import find_outliers, find_stress_order, outlier_blocks
from schnetpack_softadapt.reports.page import Report, paragraph, points, run_content, table
from schnetpack_softadapt.reports.parity import (
    draw_density,
    draw_differences,
    draw_histograms,
    draw_parity,
)
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.tables import duration, error_rows, error_tables, plain_table

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
    return (
        _write_single(runs[0], Path(out)) if len(runs) == 1 else write_comparison(runs, Path(out))
    )


def terminal_summary(runs: Sequence[Run]) -> str:
    """The RMSE table, what is missing and what is doubtful; equal settings share a row."""
    names = names_of(runs)
    groups = group_runs(runs)
    header = ["RMSE", *(f"{q.name} ({q.shown_unit})" for q in QUANTITIES)]
    lines = []
    for group in groups:
        for subset in SUBSETS:
            spreads = [group.errors.get((subset, q.name, "rmse")) for q in QUANTITIES]
            if any(spreads):
                title = f"{group.label}, {SUBSETS[subset]}"
                lines.append([title, *(str(spread or "–") for spread in spreads)])
    text = [plain_table(header, lines)] if lines else ["No errors are known yet."]
    for run in runs:
        doubtful = map(str, find_stress_order(list(run.predictions.values())))
        text += [f"{names[id(run)]}: {note}" for note in (*run.notes, *doubtful)]
    return "\n".join(text)


def _write_single(run: Run, out: Path) -> Path:
    """The report of one run: pictures, then numbers, then labels to look at."""
    report = Report(out)
    rows = error_rows(run)
    subsets = list(run.predictions.values())
    outliers, findings = find_outliers(subsets), find_stress_order(subsets)
    report.add(paragraph(_facts(run)), points(run.notes))
    report.heading("Parity")
    report.draw(
        "parity",
        "Predicted over reference energy, forces and stress, one colour per subset",
        "Prediction against reference. Dashed: line fitted to each subset, its slope and intercept "
        "in the corner; grey: perfect agreement. Energies are per atom, relative to a fit of one "
        "energy per element. Stress has six components per structure.",
        draw_parity,
        subsets,
    )
    for quantity in QUANTITIES:
        report.draw(
            f"parity_{quantity.name}",
            f"Predicted {quantity.name} and its error over the reference, a column per subset",
            f"{quantity.title} by subset: prediction and difference over reference; where points "
            "are many, their density.",
            draw_density,
            subsets,
            quantity,
        )
    report.heading("Differences")
    report.draw(
        "differences",
        "Prediction minus reference over reference for energy, forces and stress",
        "Prediction minus reference against reference.",
        draw_differences,
        subsets,
    )
    report.draw(
        "histograms",
        "Histograms of the errors in energy, forces and stress",
        "Distribution of the errors; the outlines of all subsets have equal area.",
        draw_histograms,
        subsets,
    )
    best = "" if run.best_epoch is None else " The best epoch has the smallest validation loss."
    report.heading("Learning curves")
    report.draw(
        "learning_curves",
        "Training and validation loss and errors over epochs",
        "Loss and errors over epochs; with many epochs a running mean over the pale raw values."
        + best,
        draw_learning,
        run,
    )
    report.heading("Loss weights")
    report.draw(
        "loss_weights",
        "Weights of the loss components over epochs",
        "Weights of the loss components over epochs.",
        draw_weights,
        run,
    )
    report.heading("Errors")
    tables = [table(*parts) for parts in error_tables(rows)]
    report.add(*(tables or [paragraph("No errors are known yet.")]))
    report.heading("Doubtful labels")
    report.add(points([str(finding) for finding in findings]), *outlier_blocks(outliers))
    content = {
        "runs": [run_content(run, rows)],
        "outliers": [asdict(outlier) for outlier in outliers],
        "stress_labels": [{**asdict(found), "text": str(found)} for found in findings],
    }
    return report.write(f"Report of {run.name}", content, [(run.name, row) for row in rows])


def _facts(run: Run) -> str:
    facts = [f"{run.n_epochs} epochs" if run.n_epochs else "no finished epoch"]
    if run.best_epoch is not None:
        facts.append(f"best epoch {run.best_epoch}")
    if run.wall_s is not None:
        facts.append(f"wall time {duration(run.wall_s)}")
    if run.seed is not None:
        facts.append(f"seed {run.seed}")
    if run.descriptor is not None:
        facts.append(run.descriptor)
    for subset, predictions in run.predictions.items():
        atoms = int(predictions.n_atoms.sum())
        facts.append(f"{predictions.n_structures} {SUBSETS[subset]} structures ({atoms} atoms)")
    return ", ".join(facts) + "."
