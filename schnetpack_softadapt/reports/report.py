"""`spk-softadapt report`: one run, or runs side by side, and a summary for the terminal."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pandas as pd

from schnetpack_softadapt.quantities import QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.compare import group_runs, spreads, write_comparison
from schnetpack_softadapt.reports.curves import draw_learning, draw_weights
from schnetpack_softadapt.reports.errors import (
    duration,
    error_tables,
    figures,
    plain_table,
    records,
)
from schnetpack_softadapt.reports.outliers import FACTOR, find_outliers, find_stress_order
from schnetpack_softadapt.reports.page import Report, paragraph, points, table
from schnetpack_softadapt.reports.parity import draw_histograms, draw_parity
from schnetpack_softadapt.reports.run import Run, read_runs

__all__ = ["read_runs", "terminal_summary", "write_report"]

#: single structures in the table of outliers
_SHOWN: Final = 30


def write_report(runs: Sequence[Run], out: Path | str | None = None) -> Path:
    """Write the report of one run, or the comparison of more, and return its folder.

    Args:
        runs: what `read_runs` gives, one at least
        out: folder of the report; default `report` in the run's directory, or in the directory
            that the runs have in common
    """
    if out is None:
        paths = [run.path for run in runs]
        out = (paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))) / "report"
    out = Path(out)
    return _write_single(runs[0], out) if len(runs) == 1 else write_comparison(list(runs), out)


def terminal_summary(runs: Sequence[Run]) -> str:
    """The RMSE table, what is missing and what is doubtful; equal settings share a row."""
    errors = spreads(group_runs(list(runs)))
    errors = errors[errors["metric"] == "rmse"]
    rows = errors["settings"] + ", " + errors["subset"].map(SUBSETS)
    cells = errors.assign(row=rows).pivot(index="row", columns="quantity", values="text")
    cells = cells.reindex(rows.unique())
    columns = {f"{q.name} ({q.shown_unit})": cells.get(q.name, "–") for q in QUANTITIES}
    cells = pd.DataFrame(columns, index=cells.index).fillna("–").rename_axis("RMSE")
    text = [plain_table(cells) if len(cells) else "No errors are known yet."]
    for run in runs:
        doubtful = map(str, find_stress_order(list(run.predictions.values())))
        text += [f"{run.name}: {note}" for note in (*run.notes, *doubtful)]
    return "\n".join(text)


def _write_single(run: Run, out: Path) -> Path:
    """The report of one run: pictures, then numbers, then labels to look at."""
    report = Report(out)
    subsets = list(run.predictions.values())
    outliers, findings = find_outliers(subsets), find_stress_order(subsets)
    report.add(paragraph(_facts(run)), points(run.notes))
    report.heading("Parity")
    report.draw(
        "parity",
        "Predicted over reference energy, forces and stress, and the difference",
        "Prediction against reference, and their difference below. Dashed: line fitted to each "
        "subset, its slope and intercept in the corner; grey: perfect agreement. Energies are per "
        "atom, relative to a fit of one energy per element. Stress has six components per "
        "structure.",
        draw_parity,
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
    caption = "Weights of the loss components over epochs"
    report.draw("loss_weights", caption, f"{caption}.", draw_weights, run)
    report.heading("Errors")
    tables = [table(caption, cells) for caption, cells in error_tables(run.errors)]
    report.add(*(tables or [paragraph("No errors are known yet.")]))
    report.heading("Doubtful labels")
    report.add(points([str(finding) for finding in findings]), *_outlier_blocks(outliers))
    content = {
        "outliers": records(outliers),
        "stress_labels": [{**asdict(found), "text": str(found)} for found in findings],
    }
    return report.write(f"Report of {run.name}", content, [run])


def _facts(run: Run) -> str:
    facts = [f"{run.n_epochs} epochs" if run.n_epochs else "no finished epoch"]
    facts += [] if run.best_epoch is None else [f"best epoch {run.best_epoch}"]
    facts += [] if run.wall_s is None else [f"wall time {duration(run.wall_s)}"]
    facts += [] if run.seed is None else [f"seed {run.seed}"]
    facts += [] if run.descriptor is None else [run.descriptor]
    for subset, predictions in run.predictions.items():
        n_atoms = predictions.structures["n_atoms"]
        facts.append(f"{len(n_atoms)} {SUBSETS[subset]} structures ({n_atoms.sum()} atoms)")
    return ", ".join(facts) + "."


def _outlier_blocks(outliers: pd.DataFrame) -> list[str]:
    """HTML blocks; none without outliers."""
    if outliers.empty:
        return []
    shown = outliers[:_SHOWN]
    cells = pd.DataFrame(
        {
            "structure": shown["index"].map(lambda i: "–" if i is None else str(i)),
            "subset": shown["subset"].map(SUBSETS),
            "group": shown["group"].astype(str).replace("", "–"),
            "atoms": shown["n_atoms"].astype(str),
            "quantity": shown["quantity"],
            "error": shown["error"].map(figures) + " " + shown["unit"],
            "times the median": shown["times"].map(figures),
        }
    )
    more = f" The largest {_SHOWN} are shown, report.json has all."
    text = (
        f"{len(outliers)} errors of single structures are more than {FACTOR:g} times the median"
        " over all structures: look at these labels first (data.exclude=[3, 7] leaves out 3 and 7)."
        + (more if len(outliers) > _SHOWN else "")
    )
    return [paragraph(text), table("Errors of single structures", cells.set_index("structure"))]
