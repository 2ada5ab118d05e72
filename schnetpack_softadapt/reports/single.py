"""The report of one run."""

from dataclasses import asdict
from pathlib import Path

from . import html
from .curves import draw_learning, draw_weights
from .differences import draw_differences, draw_histograms
from .outliers import find_outliers, outlier_table
from .output import FORMAT, Figures, begin, finish, run_content
from .parity import draw_density, draw_parity
from .quantities import QUANTITIES, SUBSETS
from .run import Run
from .tables import ErrorRow, duration, error_rows, figures

__all__ = ["write_single"]


def write_single(run: Run, out: Path) -> Path:
    """Write the report of `run` into the folder `out` and return it."""
    stale = begin(out)
    rows = error_rows(run)
    pictures = Figures(out)
    blocks = [html.paragraph(_facts(run)), html.points(run.notes)]
    blocks += [html.heading("Errors"), *_error_tables(rows)]
    subsets = list(run.predictions.values())
    outliers = find_outliers(subsets)
    blocks += outlier_table(outliers)
    parity = pictures.block(
        "parity",
        "Predicted over reference energy, forces and stress, one colour per subset",
        "Prediction against reference. Dashed: line fitted to each subset, its slope and intercept "
        "in the corner; grey: perfect agreement. Energies are per atom, relative to a fit of one "
        "energy per element. Stress has six components per structure.",
        draw_parity,
        subsets,
    )
    for quantity in QUANTITIES:
        parity += pictures.block(
            f"parity_{quantity.name}",
            f"Predicted {quantity.name} and its error over the reference, a column per subset",
            f"{quantity.title} by subset: prediction and difference over reference; where points "
            "are many, their density.",
            draw_density,
            subsets,
            quantity,
        )
    differences = pictures.block(
        "differences",
        "Prediction minus reference over reference for energy, forces and stress",
        "Prediction minus reference against reference.",
        draw_differences,
        subsets,
    ) + pictures.block(
        "histograms",
        "Histograms of the errors in energy, forces and stress",
        "Distribution of the errors; the outlines of all subsets have equal area.",
        draw_histograms,
        subsets,
    )
    best = "" if run.best_epoch is None else " The best epoch has the smallest validation loss."
    learning = pictures.block(
        "learning_curves",
        "Training and validation loss and errors over epochs",
        "Loss and errors over epochs; with many epochs a running mean over the pale raw values."
        + best,
        draw_learning,
        run,
    )
    weights = pictures.block(
        "loss_weights",
        "Weights of the loss components over epochs",
        "Weights of the loss components over epochs.",
        draw_weights,
        run,
    )
    for title, part in (
        ("Parity", parity),
        ("Differences", differences),
        ("Learning curves", learning),
        ("Loss weights", weights),
    ):
        blocks += [html.heading(title), *part] if part else []
    content = {
        "format": FORMAT,
        "runs": [run_content(run, rows)],
        "outliers": [asdict(outlier) for outlier in outliers],
        "figures": pictures.names,
    }
    title = f"Report of {run.name}"
    finish(out, stale, title, blocks, content, [(run.name, row) for row in rows])
    return out


def _facts(run: Run) -> str:
    facts = [f"{run.n_epochs} epochs" if run.n_epochs else "no finished epoch"]
    if run.best_epoch is not None:
        facts.append(f"best epoch {run.best_epoch}")
    if run.wall_s is not None:
        facts.append(f"wall time {duration(run.wall_s)}")
    if run.seed is not None:
        facts.append(f"seed {run.seed}")
    for subset, predictions in run.predictions.items():
        atoms = int(predictions.n_atoms.sum())
        facts.append(f"{predictions.n_structures} {SUBSETS[subset]} structures ({atoms} atoms)")
    return ", ".join(facts) + "."


def _error_tables(rows: list[ErrorRow]) -> list[str]:
    captions = {
        "all": "All structures",
        "element": "Forces by element",
        "group": "By structure group",
    }
    header = ["", "subset", "values", "unit", "RMSE", "MAE", "largest"]
    tables = []
    for selection, caption in captions.items():
        chosen = [row for row in rows if row.selection == selection]
        cells = [
            [
                f"{row.name}: {row.quantity}" if row.name else row.quantity,
                SUBSETS[row.subset],
                "–" if row.n is None else f"{row.n:,}".replace(",", "\u202f"),
                row.unit,
                figures(row.rmse),
                figures(row.mae),
                figures(row.largest),
            ]
            for row in sorted(chosen, key=lambda row: row.name)
        ]
        if cells:
            from_file = {row.source for row in chosen} - {"predictions"}
            source = f" (from {' and '.join(sorted(from_file))})" if from_file else ""
            tables.append(html.table(caption + source, header, cells, row_headers=2))
    return tables or [html.paragraph("No errors are known yet.")]
