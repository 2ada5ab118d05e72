"""Difference plots and error histograms."""

from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .parity import axis_name, interleaved
from .predictions import Predictions, parity_points
from .quantities import QUANTITIES, SUBSETS
from .style import SUBSET_COLOURS, new_figure

__all__ = ["draw_differences", "draw_histograms"]

#: histograms show this part of the errors, the rest is counted in words
_SHOWN: Final = 0.99


def draw_differences(subsets: list[Predictions]) -> Figure | None:
    """Prediction minus reference over reference, one panel per quantity."""
    panels = _panels(subsets)
    if not panels:
        return None
    figure = new_figure(max(3.6 * len(panels), 4.4), 4.0)
    for column, (quantity, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        scaled = {
            name: (c.reference * quantity.axis_scale, c.error * quantity.error_scale)
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
        what = axis_name(quantity)
        axes.set_xlabel(f"reference {what}\n({quantity.axis_unit})")
        axes.set_ylabel(f"prediction − reference ({quantity.unit})")
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
        errors = {name: c.error * quantity.error_scale for name, c in points.items()}
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
        axes.set_xlabel(f"prediction − reference ({quantity.unit})\n{beyond:.1%} lie beyond")
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
