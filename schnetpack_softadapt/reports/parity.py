"""Prediction against reference: parity plots, differences, and histograms of the errors."""

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from schnetpack_softadapt.quantities import ENERGY, QUANTITIES, Quantity
from schnetpack_softadapt.reports.errors import fitted_line
from schnetpack_softadapt.reports.predictions import Predictions, parity_values
from schnetpack_softadapt.reports.style import SUBSET_COLOURS, new_figure, subset_legend

__all__ = ["draw_histograms", "draw_parity", "interleaved"]

#: drawn points are thinned to one per cell of a grid this fine
_CELLS: Final = 250
#: histograms show this part of the errors, the rest is counted
_SHOWN: Final = 0.99
_DOTS: Final = {"s": 9, "linewidths": 0, "rasterized": True}
#: text in a corner, legible where a poor model has its points
_CORNER: Final = {
    "ha": "right",
    "va": "bottom",
    "fontsize": 10.5,
    "zorder": 5,
    "bbox": {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
}
_LINE_STEP: Final = 0.065  # of the height of a panel


def draw_parity(subsets: list[Predictions]) -> Figure | None:
    """Prediction over reference, and below their difference; a column for each quantity.

    Subsets are in colours; None without predictions.
    """
    figure, panels = _panels(subsets, 6.8, height_ratios=[1.35, 1.0])
    for quantity, tables, upper, lower in panels:
        points = interleaved(tables)
        x, y = (points[key] * quantity.axis_factor for key in ("reference", "prediction"))
        errors = points["error"] * quantity.shown_factor
        low, high = _limits(pd.concat([x, y]))
        upper.scatter(x, y, c=points["colour"], **_DOTS)
        upper.plot([low, high], [low, high], color="#999999", linewidth=1.0, zorder=1.5)
        upper.set(xlim=(low, high), ylim=(low, high))
        for name, table in tables.items():
            slope, intercept = fitted_line(table["reference"], table["prediction"])
            if np.isfinite(slope):
                start = (0.0, intercept * quantity.axis_factor)
                look = {"color": SUBSET_COLOURS[name], "linestyle": (0, (5, 3)), "linewidth": 1.4}
                upper.axline(start, slope=slope, zorder=3, **look)
        _line_table(upper, quantity, tables)
        lower.scatter(x, errors, c=points["colour"], **_DOTS)
        lower.axhline(0.0, color="#777777", linewidth=1.0, zorder=1.5)
        extent = 1.08 * float(errors.abs().max()) or 1.0
        lower.set(xlim=(low, high), ylim=(-extent, extent))
        for axis in (upper.xaxis, upper.yaxis, lower.xaxis):
            axis.set_major_locator(MaxNLocator(5))
        # energies are relative to the composition fit
        what = "relative energy" if quantity is ENERGY else quantity.name
        upper.set_ylabel(f"predicted {what}\n({quantity.axis_unit})")
        lower.set_xlabel(f"reference {what}\n({quantity.axis_unit})")
        lower.set_ylabel(f"difference ({quantity.shown_unit})")
    return figure


def draw_histograms(subsets: list[Predictions]) -> Figure | None:
    """Distribution of the errors, one panel per quantity, area one for each subset."""
    figure, panels = _panels(subsets, 3.8)
    for column, (quantity, tables, axes) in enumerate(panels):
        errors = {name: table["error"] * quantity.shown_factor for name, table in tables.items()}
        sizes = np.abs(np.concatenate(list(errors.values())))
        limit = float(np.quantile(sizes, _SHOWN)) or 1.0
        # the smallest subset sets the bin width, or its outline would be noise
        fewest = min(map(len, errors.values()))
        edges = np.linspace(-limit, limit, int(np.clip(1.3 * np.sqrt(fewest), 12, 60)) + 1)
        for k, (name, values) in enumerate(errors.items()):
            density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
            look = {"color": SUBSET_COLOURS[name], "linewidth": 1.8}
            axes.stairs(density, edges, **look)
            if k == 0:
                axes.stairs(density, edges, fill=True, alpha=0.35, **look)
        axes.axvline(0.0, color="#777777", linewidth=1.0)
        axes.set(xlim=(-limit, limit), yticks=[])
        axes.set_ylim(bottom=0.0)
        axes.spines["left"].set_visible(False)
        beyond = f"{np.mean(sizes > limit):.1%} lie beyond"
        axes.set_xlabel(f"prediction − reference ({quantity.shown_unit})\n{beyond}")
        axes.set_ylabel("" if column else "share of errors")
    return figure


def interleaved(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Points of all subsets for one fair scatter plot: the tables joined, and their colours.

    Of the points that fall on the same spot one per subset is kept, which changes no pixel that
    could be told apart but keeps a million points quick to draw. The rest is shuffled, so that no
    subset hides another.
    """
    everything = pd.concat(tables.values())
    low, high = everything.min(), everything.max()
    points = []
    for name, table in tables.items():
        cells = ((table - low) / (high - low) * _CELLS).fillna(0).astype(np.int64)
        points.append(table[~cells.duplicated()].assign(colour=SUBSET_COLOURS[name]))
    return pd.concat(points).sample(frac=1.0, random_state=0)


def _panels(subsets: list[Predictions], height: float, **rows):
    """A figure, and for each quantity itself, its values by subset, and its axes from the top."""
    found = [(q, _finite(parity_values(subsets, q))) for q in QUANTITIES]
    found = [(quantity, tables) for quantity, tables in found if tables]
    if not found:
        return None, []
    figure = new_figure(max(3.6 * len(found), 4.4), height)
    n_rows = len(rows.get("height_ratios", [1]))
    axes = figure.subplots(n_rows, len(found), squeeze=False, gridspec_kw=rows)
    for column, (quantity, _) in zip(axes.T, found, strict=True):
        column[0].set_title(quantity.title)
    subset_legend(figure, {name for _, tables in found for name in tables})
    return figure, [(*pair, *column) for pair, column in zip(found, axes.T, strict=True)]


def _finite(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    columns = ["reference", "prediction", "error"]
    tables = {
        name: table.loc[np.isfinite(table["error"]), columns] for name, table in tables.items()
    }
    return {name: table for name, table in tables.items() if len(table)}


def _limits(values: pd.Series) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def _line_table(axes: Axes, quantity: Quantity, tables: dict[str, pd.DataFrame]) -> None:
    """Slope and intercept of each subset, in its colour, in the empty corner of the plot."""
    rows = [("slope", "intercept", "#444444"), ("", f"({quantity.shown_unit})", "#444444")]
    for name, table in tables.items():
        slope, intercept = fitted_line(table["reference"], table["prediction"])
        shown = _number(intercept * quantity.shown_factor, "+.2f")
        rows.append((_number(slope, ".3f"), shown, SUBSET_COLOURS[name]))
    for index, (slope, intercept, colour) in enumerate(reversed(rows)):
        place = {"transform": axes.transAxes, "color": colour, **_CORNER}
        axes.text(0.67, 0.02 + _LINE_STEP * index, slope, **place)
        axes.text(0.98, 0.02 + _LINE_STEP * index, intercept, **place)


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−") if np.isfinite(value) else "–"
