"""Prediction against reference: parity plots, differences, and histograms of the errors."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from schnetpack_softadapt.quantities import ENERGY, QUANTITIES, SUBSETS, Quantity
from schnetpack_softadapt.reports.predictions import Comparison, Predictions, parity_points
from schnetpack_softadapt.reports.style import SUBSET_COLOURS, density_map, new_figure
from schnetpack_softadapt.reports.tables import figures

__all__ = ["draw_density", "draw_differences", "draw_histograms", "draw_parity", "interleaved"]

#: more points than this are shown as a density
_DENSE: Final = 3000
#: drawn points are thinned to one per cell of a grid this fine
_CELLS: Final = 250
#: histograms show this part of the errors, the rest is counted in words
_SHOWN: Final = 0.99
#: text in a corner, legible where a poor model has its points
_CORNER: Final = {
    "ha": "right",
    "va": "bottom",
    "fontsize": 10.5,
    "zorder": 5,
    "bbox": {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
}


def draw_parity(subsets: list[Predictions]) -> Figure | None:
    """Energy, forces and stress side by side, subsets in colours; None without predictions."""
    panels = _panels(subsets)
    if not panels:
        return None
    figure = new_figure(max(3.6 * len(panels), 4.4), 4.5)
    for column, (quantity, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        low, high = _square(axes, quantity, list(points.values()))
        if column:
            axes.set_ylabel("")
        scaled = {
            name: (c.reference * quantity.axis_factor, c.prediction * quantity.axis_factor)
            for name, c in points.items()
        }
        x, y, colours = interleaved(scaled, (low, high), (low, high))
        axes.scatter(x, y, s=9, c=colours, linewidths=0, rasterized=True)
        for name, comparison in points.items():
            _fitted_line(axes, quantity, comparison, (low, high), SUBSET_COLOURS[name])
        _line_table(axes, quantity, points)
        axes.set_title(quantity.title)
    _legend(figure, panels)
    return figure


def draw_density(subsets: list[Predictions], quantity: Quantity) -> Figure | None:
    """A column per subset: parity above, difference below; many points as a density."""
    points = parity_points(subsets, quantity)
    if not points:
        return None
    figure = new_figure(max(3.6 * len(points), 4.4), 7.2)
    grid = figure.add_gridspec(2, len(points), height_ratios=[1.3, 1.0])
    errors = np.concatenate([c.error[np.isfinite(c.error)] for c in points.values()])
    extent = _error_extent(np.abs(errors) * quantity.shown_factor)
    for column, (name, comparison) in enumerate(points.items()):
        colour = SUBSET_COLOURS[name]
        upper = figure.add_subplot(grid[0, column])
        low, high = _square(upper, quantity, list(points.values()))
        x = comparison.reference * quantity.axis_factor
        _cloud(
            upper, x, comparison.prediction * quantity.axis_factor, colour, (low, high, low, high)
        )
        _fitted_line(upper, quantity, comparison, (low, high), "#444444")
        _statistics(upper, quantity, comparison)
        upper.set_title(SUBSETS[name])
        upper.set_xlabel("")
        lower = figure.add_subplot(grid[1, column])
        lower.set_xlim(low, high)
        lower.set_ylim(-extent, extent)
        lower.xaxis.set_major_locator(MaxNLocator(5))
        lower.axhline(0.0, color="#777777", linewidth=1.0, zorder=1.5)
        error = comparison.error * quantity.shown_factor
        cells = _cloud(lower, x, error, colour, (low, high, -extent, extent))
        lower.set_xlabel(f"reference {_axis_name(quantity)}\n({quantity.axis_unit})")
        if beyond := int(np.sum(np.abs(error) > extent)):
            lower.text(0.98, 0.92, f"{beyond} beyond", transform=lower.transAxes, **_CORNER)
        if column:
            upper.set_ylabel("")
        else:
            lower.set_ylabel(f"prediction − reference\n({quantity.shown_unit})")
        if cells is not None:
            bar = figure.colorbar(cells, ax=lower, location="bottom", shrink=0.7, aspect=25)
            bar.set_label("points per cell", fontsize=11)
            bar.outline.set_visible(False)
    return figure


def draw_differences(subsets: list[Predictions]) -> Figure | None:
    """Prediction minus reference over reference, one panel per quantity."""
    panels = _panels(subsets)
    if not panels:
        return None
    figure = new_figure(max(3.6 * len(panels), 4.4), 4.0)
    for column, (quantity, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        scaled = {
            name: (c.reference * quantity.axis_factor, c.error * quantity.shown_factor)
            for name, c in points.items()
        }
        finite = np.concatenate([x[np.isfinite(x)] for x, _ in scaled.values()])
        errors = np.concatenate([y[np.isfinite(y)] for _, y in scaled.values()])
        if not len(finite) or not len(errors):
            axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center")
            continue
        low, high = float(finite.min()), float(finite.max())
        margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
        extent = 1.08 * float(np.abs(errors).max()) or 1.0
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(-extent, extent)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        x, y, colours = interleaved(scaled, axes.get_xlim(), axes.get_ylim())
        axes.axhline(0.0, color="#777777", linewidth=1.0, zorder=1.5)
        axes.scatter(x, y, s=9, c=colours, linewidths=0, rasterized=True)
        what = _axis_name(quantity)
        axes.set_xlabel(f"reference {what}\n({quantity.axis_unit})")
        axes.set_ylabel(f"prediction − reference ({quantity.shown_unit})")
        axes.set_title(quantity.title)
    _legend(figure, panels)
    return figure


def draw_histograms(subsets: list[Predictions]) -> Figure | None:
    """Distribution of the errors, one panel per quantity, area one for each subset."""
    panels = _panels(subsets)
    if not panels:
        return None
    figure = new_figure(max(3.6 * len(panels), 4.4), 3.8)
    for column, (quantity, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        errors = {name: c.error * quantity.shown_factor for name, c in points.items()}
        errors = {name: e[np.isfinite(e)] for name, e in errors.items()}
        pooled = np.abs(np.concatenate(list(errors.values())))
        limit = float(np.quantile(pooled, _SHOWN)) if len(pooled) else 1.0
        limit = limit or 1.0
        # The smallest subset sets the bin width, or its outline would be noise.
        fewest = min((len(e) for e in errors.values() if len(e)), default=1)
        n_bins = int(np.clip(1.3 * np.sqrt(fewest), 12, 60))
        edges = np.linspace(-limit, limit, n_bins + 1)
        for name, values in errors.items():
            if not len(values):
                continue
            counts = np.histogram(values, edges)[0]
            density = counts / (len(values) * np.diff(edges))
            first = name == next(iter(errors))
            axes.stairs(
                density,
                edges,
                color=SUBSET_COLOURS[name],
                fill=first,
                alpha=0.35 if first else 1.0,
                linewidth=1.8,
            )
            if first:
                axes.stairs(density, edges, color=SUBSET_COLOURS[name], linewidth=1.2)
        beyond = np.mean(pooled > limit) if len(pooled) else 0.0
        axes.axvline(0.0, color="#777777", linewidth=1.0)
        axes.set_xlim(-limit, limit)
        axes.set_ylim(bottom=0.0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"prediction − reference ({quantity.shown_unit})\n{beyond:.1%} lie beyond")
        axes.set_title(quantity.title)
        if column == 0:
            axes.set_ylabel("share of errors")
    _legend(figure, panels)
    return figure


def _panels(subsets: list[Predictions]) -> list:
    panels = [(quantity, parity_points(subsets, quantity)) for quantity in QUANTITIES]
    return [(quantity, points) for quantity, points in panels if points]


def _legend(figure: Figure, panels: list) -> None:
    handles = [
        figure.axes[0].plot([], [], "o", color=SUBSET_COLOURS[name], label=SUBSETS[name])[0]
        for name in SUBSETS
        if any(name in points for _, points in panels)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handletextpad=0.1)


def _axis_name(quantity: Quantity) -> str:
    """What the axes of a quantity show; energies are relative to the composition fit."""
    return "relative energy" if quantity is ENERGY else quantity.name


def _error_extent(errors: np.ndarray) -> float:
    """Range of the difference panels: all errors, unless a few lie far out."""
    if not len(errors) or not errors.max() > 0.0:
        return 1.0
    return 1.08 * min(float(errors.max()), 2.5 * float(np.quantile(errors, 0.999)) or np.inf)


def _cloud(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    colour: str,
    extent: tuple[float, float, float, float],
) -> PolyCollection | None:
    """Points, or their density in log scale where they are many (then returned)."""
    inside = np.isfinite(x) & np.isfinite(y) & (y >= extent[2]) & (y <= extent[3])
    x, y = x[inside], y[inside]
    if len(x) <= _DENSE:
        axes.scatter(x, y, s=9, color=colour, alpha=0.5, linewidths=0, rasterized=True)
        return None
    return axes.hexbin(
        x,
        y,
        gridsize=90,
        extent=extent,
        norm=LogNorm(),
        mincnt=1,
        cmap=density_map(colour),
        linewidths=0.1,
        zorder=2,
    )


def _statistics(axes: Axes, quantity: Quantity, comparison: Comparison) -> None:
    slope, intercept = comparison.line()
    scale, unit = quantity.shown_factor, quantity.shown_unit
    lines = (
        f"{comparison.n:,} points".replace(",", "\u202f"),
        f"RMSE {figures(comparison.rmse() * scale)} {unit}",
        f"MAE {figures(comparison.mae() * scale)} {unit}",
        f"slope {_fixed(slope, 3)}",
        f"intercept {_signed(intercept * scale)} {unit}",
    )
    for index, line in enumerate(reversed(lines)):
        axes.text(0.98, 0.02 + 0.065 * index, line, transform=axes.transAxes, **_CORNER)


def interleaved(
    points: dict[str, tuple[np.ndarray, np.ndarray]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of several subsets for one fair scatter plot: x, y and colours.

    Of the points that fall on the same spot one per subset is kept, which changes no pixel that
    could be told apart but keeps a million points quick to draw. The rest is shuffled, so that no
    subset hides another.
    """
    xs, ys, colours = [], [], []
    for name, (x, y) in points.items():
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        column = _cell(x, x_range)
        row = _cell(y, y_range)
        kept = np.unique(column * (_CELLS + 1) + row, return_index=True)[1]
        xs.append(x[kept])
        ys.append(y[kept])
        colours.append(np.full(len(kept), SUBSET_COLOURS[name]))
    x, y, colour = np.concatenate(xs), np.concatenate(ys), np.concatenate(colours)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order], colour[order]


def _cell(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return np.clip((values - low) / (high - low) * _CELLS, 0, _CELLS).astype(np.int64)


def _square(axes: Axes, quantity: Quantity, comparisons: list[Comparison]) -> tuple[float, float]:
    """Equal limits and aspect, labels with units, the diagonal; returns the limits."""
    values = np.concatenate([np.concatenate([c.reference, c.prediction]) for c in comparisons])
    values = values[np.isfinite(values)] * quantity.axis_factor
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    what = _axis_name(quantity)
    axes.set_xlabel(f"reference {what}\n({quantity.axis_unit})")
    axes.set_ylabel(f"predicted {what}\n({quantity.axis_unit})")
    axes.plot([low, high], [low, high], color="#999999", linewidth=1.0, zorder=1.5)
    return low, high


def _fitted_line(
    axes: Axes,
    quantity: Quantity,
    comparison: Comparison,
    limits: tuple[float, float],
    colour: str,
) -> None:
    slope, intercept = comparison.line()
    if np.isfinite(slope):
        ends = np.array(limits)
        axes.plot(
            ends,
            slope * ends + intercept * quantity.axis_factor,
            color=colour,
            linewidth=1.4,
            linestyle=(0, (5, 3)),
            zorder=3,
        )


def _line_table(axes: Axes, quantity: Quantity, points: dict[str, Comparison]) -> None:
    """Slope and intercept of each subset, in its colour, in the empty corner of the plot."""
    place = {"transform": axes.transAxes, **_CORNER}
    step = 0.065
    height = 0.02 + step * len(points)
    axes.text(0.67, height + step, "slope", color="#444444", **place)
    axes.text(0.98, height + step, "intercept", color="#444444", **place)
    axes.text(0.98, height, f"({quantity.shown_unit})", color="#444444", **place)
    for name, comparison in points.items():
        height -= step
        slope, intercept = comparison.line()
        colour = SUBSET_COLOURS[name]
        axes.text(0.67, height, _fixed(slope, 3), color=colour, **place)
        axes.text(0.98, height, _signed(intercept * quantity.shown_factor), color=colour, **place)


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if np.isfinite(value) else "–"


def _signed(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:+.{digits}f}".replace("-", "−")
