"""Errors of a run as a table: by subset, by element, by structure group; and numbers as text."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from ase.data import chemical_symbols

from schnetpack_softadapt.quantities import METRICS, QUANTITIES, SUBSETS, Quantity
from schnetpack_softadapt.reports.predictions import Predictions, parity_values
from schnetpack_softadapt.training.text_table import text_table

__all__ = [
    "COLUMNS",
    "across",
    "duration",
    "error_rows",
    "error_tables",
    "figures",
    "fitted_line",
    "measures",
    "plain_table",
    "records",
]

#: `selection` is "all", "element" or "group", `name` the element's symbol or the group's name. `n`
#: counts values: structures for energies, components for forces (3 per atom) and stress (6 per
#: structure with a reference stress). Errors are in `unit`, missing where unknown. `slope` and
#: `intercept` are those of the fitted line of prediction over reference (energies relative to the
#: composition fit). `source` is "predictions", "metrics.json", or "history" (at the best epoch).
COLUMNS = ["subset", "quantity", "unit", "selection", "name", "n"]
COLUMNS += ["rmse", "mae", "largest", "slope", "intercept", "source"]


def measures(errors: np.ndarray, factor: float = 1.0) -> dict[str, float]:
    """Number of errors, root mean square, mean and largest size; the latter times `factor`."""
    sizes = np.abs(np.asarray(errors)) * factor
    if not len(sizes):
        return {"n": 0, "rmse": np.nan, "mae": np.nan, "largest": np.nan}
    rmse = np.sqrt(np.mean(sizes**2))
    return {"n": len(sizes), "rmse": rmse, "mae": sizes.mean(), "largest": sizes.max()}


def fitted_line(reference: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the least-squares line of prediction over reference.

    NaN where the references do not vary, for then no slope is defined.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if len(reference) < 2:
        return np.nan, np.nan
    x = reference - reference.mean()
    spread = float(x @ x)
    # rounding leaves a spread of this order in references that are all equal
    if spread <= len(x) * (1e-12 * (1.0 + np.abs(reference).max())) ** 2:
        return np.nan, np.nan
    slope = float(x @ (prediction - prediction.mean())) / spread
    return slope, float(prediction.mean() - slope * reference.mean())


def error_rows(
    predictions: Mapping[str, Predictions],
    elsewhere: Callable[[str, Quantity], dict | None] = lambda subset, quantity: None,
) -> pd.DataFrame:
    """Errors by subset and quantity, see `COLUMNS`; what is not known has no row.

    Args:
        predictions: by subset.
        elsewhere: RMSE, MAE and source of a quantity of a subset without predictions, if known.
    """
    tables = {q: parity_values(list(predictions.values()), q) for q in QUANTITIES}
    rows = []
    for subset in SUBSETS:
        for q in QUANTITIES:
            common = {"subset": subset, "quantity": q.name, "unit": q.shown_unit}
            if subset in tables[q]:
                found = _measured(tables[q][subset], q.shown_factor)
                rows += [{**common, "source": "predictions", **row} for row in found]
            elif known := elsewhere(subset, q):
                rows.append({**common, "selection": "all", "name": "", **known})
    table = pd.DataFrame(rows, columns=COLUMNS).replace([np.inf, -np.inf], np.nan)
    return table.astype({"n": "Int64", "rmse": float, "mae": float})


def _measured(table: pd.DataFrame, factor: float) -> Iterator[dict]:
    slope, intercept = fitted_line(table["reference"], table["prediction"])
    line = {"slope": slope, "intercept": intercept * factor}
    yield {"selection": "all", "name": "", **measures(table["error"], factor), **line}
    for selection in ("element", "group"):
        parts = table.groupby(selection, observed=True)["error"] if selection in table else ()
        # with one element or one group the row would repeat the first
        for name, errors in parts if len(parts) > 1 else ():
            name = chemical_symbols[name] if selection == "element" else name
            yield {"selection": selection, "name": name, **measures(errors, factor)}


def error_tables(errors: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Captions and tables, cells as text.

    First all subsets; then, where there are groups or more than one element, a table for each
    subset with its groups and elements down and the quantities across.
    """
    whole = errors[errors["selection"] == "all"]
    if whole.empty:
        return []
    others = sorted({*whole["source"]} - {"predictions"})
    source = f" (from {' and '.join(others)})" if others else ""
    whole = whole.assign(name=whole["subset"].map(SUBSETS))
    tables = [(f"All structures{source}", _wide("subset", whole, ["rmse", "mae", "largest"]))]
    # groups first, then elements, each by name
    parts = errors[errors["selection"] != "all"].sort_values(
        ["selection", "name"], ascending=[False, True]
    )
    prefix = parts["selection"].map({"group": "", "element": "atoms of "})
    parts = parts.assign(name=prefix + parts["name"])
    for subset, rows in parts.groupby("subset", sort=False):
        caption = f"{SUBSETS[subset].capitalize()} errors by structure group and element"
        tables.append((caption, _wide("group", rows, list(METRICS))))
    return tables


def _wide(first: str, rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    errors = rows.melt(["name", "quantity"], metrics, var_name="metric").dropna(subset="value")
    wide = across(errors.assign(text=errors["value"].map(figures)), "name")
    n = rows[rows["quantity"] == "energy"].set_index("name")["n"].dropna().astype(str)
    wide.insert(0, "structures", n.reindex(wide.index).fillna("–"))
    return wide.rename_axis(first)


def across(errors: pd.DataFrame, first: str) -> pd.DataFrame:
    """The column `text` as a table: the column `first` down, quantities and metrics across."""
    words = {"rmse": "RMSE", "mae": "MAE", "largest": "largest error"}
    wide = errors.pivot(index=first, columns=["quantity", "metric"], values="text").fillna("–")
    keys = [(q, metric) for q in QUANTITIES for metric in words if (q.name, metric) in wide]
    columns = {f"{q.name} {words[m]}, {q.shown_unit}": wide[q.name, m] for q, m in keys}
    return pd.DataFrame(columns).reindex(errors[first].unique()).rename_axis(first)


def records(table: pd.DataFrame) -> list[dict]:
    """Rows as dictionaries for JSON: None where a number is not finite."""
    finite = table.replace([np.inf, -np.inf], np.nan)
    return finite.astype(object).where(finite.notna(), None).to_dict("records")


def figures(value: float | None) -> str:
    """A number for readers: three significant digits, plain notation, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0.0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:.2e}" if digits > 4 else f"{round(value, digits):.{max(digits, 0)}f}"
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds in words, as in "1 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain_table(table: pd.DataFrame) -> str:
    """A table of texts for the terminal."""
    rows = [[table.index.name or "", *table.columns]]
    rows += [[str(cell) for cell in row] for row in table.itertuples()]
    return "\n".join(text_table(rows))
