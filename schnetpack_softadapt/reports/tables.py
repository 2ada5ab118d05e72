"""Errors of a run as rows: by subset, by element, by structure group; as dictionaries and text."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.quantities import (
    ENERGY,
    FORCES,
    METRICS,
    QUANTITIES,
    SUBSETS,
    Quantity,
)
from schnetpack_softadapt.reports.predictions import Comparison, Predictions, parity_points
from schnetpack_softadapt.reports.run import Run

__all__ = [
    "CSV_FIELDS",
    "ErrorRow",
    "csv_text",
    "duration",
    "error_rows",
    "error_tables",
    "figures",
    "headline",
    "plain_table",
    "without_nan",
]


@dataclass(frozen=True)
class ErrorRow:
    """Errors of one quantity over one part of the data, in `unit`; None where unknown.

    `selection` is "all", "element" or "group" and `name` the element's symbol or group's name.
    `n` counts values: structures for energies, components for forces (3 per atom) and stress (6
    per structure with a reference stress). `slope` and `intercept` are those of the fitted line
    of prediction over reference (energies relative to the composition fit). `source` says where
    the errors come from: "predictions", "metrics.json", or "history" (at the best epoch).
    """

    subset: str
    quantity: str
    unit: str
    selection: str
    name: str
    n: int | None
    rmse: float | None
    mae: float | None
    largest: float | None
    slope: float | None
    intercept: float | None
    source: str


def error_rows(run: Run) -> list[ErrorRow]:
    """All rows of a run, subset by subset; what is not known has no row."""
    rows = []
    for quantity in QUANTITIES:
        lines = parity_points(list(run.predictions.values()), quantity)
        for subset in SUBSETS:
            predictions = run.predictions.get(subset)
            if predictions is not None and predictions.has(quantity):
                rows += _measured(predictions, quantity, lines[subset])
            elif (stored := _stored(run, subset, quantity)) is not None:
                rows.append(stored)
    order = list(SUBSETS)
    return sorted(rows, key=lambda row: order.index(row.subset))


def _measured(predictions: Predictions, quantity: Quantity, line: Comparison) -> list[ErrorRow]:
    rows = [_row(predictions, quantity, "all", "", predictions.compare(quantity), line)]
    # With one element or one group the row would repeat the first.
    if quantity is FORCES and len(predictions.elements()) > 1:
        for z in predictions.elements():
            part = predictions.compare(quantity, element=z)
            rows.append(_row(predictions, quantity, "element", chemical_symbols[z], part))
    if predictions.group is not None and len(predictions.group_names) > 1:
        for index in np.unique(predictions.group):
            part = predictions.compare(quantity, group=int(index))
            if part.n:
                name = predictions.group_names[index]
                rows.append(_row(predictions, quantity, "group", name, part))
    return rows


def _row(
    predictions: Predictions,
    quantity: Quantity,
    selection: str,
    name: str,
    part: Comparison,
    line: Comparison | None = None,
) -> ErrorRow:
    scale = quantity.shown_factor
    slope, intercept = line.line() if line is not None else (math.nan, math.nan)
    return ErrorRow(
        subset=predictions.subset,
        quantity=quantity.name,
        unit=quantity.shown_unit,
        selection=selection,
        name=name,
        n=part.n,
        rmse=_finite(part.rmse() * scale),
        mae=_finite(part.mae() * scale),
        largest=_finite(part.largest() * scale),
        slope=_finite(slope),
        intercept=_finite(intercept * scale),
        source="predictions",
    )


def _stored(run: Run, subset: str, quantity: Quantity) -> ErrorRow | None:
    """A row from metrics.json, else from the best epoch's logged values; None without either."""
    errors = {metric: run.stored_metric(subset, quantity, metric) for metric in METRICS}
    source = "metrics.json"
    if all(value is None for value in errors.values()):
        source = "history"
        errors = {metric: _at_best(run, subset, quantity, metric) for metric in METRICS}
    if all(value is None for value in errors.values()):
        return None
    return ErrorRow(
        subset=subset,
        quantity=quantity.name,
        unit=quantity.shown_unit,
        selection="all",
        name="",
        n=None,
        rmse=errors["rmse"],
        mae=errors["mae"],
        largest=None,
        slope=None,
        intercept=None,
        source=source,
    )


def _at_best(run: Run, subset: str, quantity: Quantity, metric: str) -> float | None:
    series = run.logged_error(subset, quantity, metric)
    if series is None or series.unit != quantity.shown_unit or run.best_epoch is None:
        return None
    return _finite(float(series.values[run.history.epochs == run.best_epoch][0]))


def headline(rows: Iterable[ErrorRow]) -> dict[tuple[str, str, str], float]:
    """Errors over all structures, by subset, quantity and metric."""
    found = {}
    for row in rows:
        if row.selection == "all":
            for metric in METRICS:
                value = getattr(row, metric)
                if value is not None:
                    found[row.subset, row.quantity, metric] = value
    return found


def error_tables(rows: list[ErrorRow]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Caption, header and cells of the tables for people.

    First all subsets; then, where there are groups or several elements, a table for each subset
    with its groups and elements down and the quantities across.
    """
    of_all = [replace(row, name=SUBSETS[row.subset]) for row in rows if row.selection == "all"]
    if not of_all:
        return []
    others = sorted({row.source for row in of_all} - {"predictions"})
    source = f" (from {' and '.join(others)})" if others else ""
    tables = [(f"All structures{source}", *_wide("subset", of_all, (*METRICS, "largest")))]
    for subset, title in SUBSETS.items():
        parts = [row for row in rows if row.subset == subset and row.selection != "all"]
        parts.sort(key=lambda row: (row.selection != "group", row.name))
        if parts:
            named = [
                replace(row, name=f"atoms of {row.name}") if row.selection == "element" else row
                for row in parts
            ]
            caption = f"{title.capitalize()} errors by structure group and element"
            tables.append((caption, *_wide("group", named, METRICS)))
    return tables


def _wide(
    first: str, rows: list[ErrorRow], metrics: Iterable[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells: names down, quantities and metrics across; only columns with a value."""
    found = {(row.name, row.quantity): row for row in rows}
    columns = [
        (quantity, metric)
        for quantity in QUANTITIES
        for metric in metrics
        if any(row.quantity == quantity.name and getattr(row, metric) is not None for row in rows)
    ]
    words = {"rmse": "RMSE", "mae": "MAE", "largest": "largest error"}
    header = [first, "structures", *(f"{q.name} {words[m]}, {q.shown_unit}" for q, m in columns)]
    cells = []
    for name in dict.fromkeys(row.name for row in rows):
        n = getattr(found.get((name, ENERGY.name)), "n", None)
        values = [getattr(found.get((name, q.name)), metric, None) for q, metric in columns]
        cells.append([name, "–" if n is None else str(n), *map(figures, values)])
    return header, cells


#: columns of report.csv
CSV_FIELDS = ["run", *ErrorRow.__dataclass_fields__]


def csv_text(rows: Iterable[tuple[str, ErrorRow]]) -> str:
    """report.csv from pairs of run name and row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for run, row in rows:
        writer.writerow({"run": run, **asdict(row)})
    return buffer.getvalue()


def without_nan(value):
    """The same nested value with None for numbers JSON cannot write."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(value: float | None) -> str:
    """A number for people: three significant digits, plain notation, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0.0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    if digits > 4:
        return f"{value:.2e}".replace("-", "−")
    return f"{round(value, digits):.{max(digits, 0)}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds in words, as in "1 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def plain_table(header: list[str], rows: list[list[str]]) -> str:
    """A table for the terminal: first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
