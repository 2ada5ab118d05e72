"""What changes over epochs: losses, errors, and the weights of the loss components."""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from schnetpack_softadapt.quantities import METRICS, QUANTITIES
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import CYCLE, SUBSET_COLOURS, new_figure, subset_legend

__all__ = ["draw_curves", "draw_learning", "draw_weights"]

#: more epochs than this get a running mean over the raw values
_SMOOTHED_FROM: Final = 120
_STYLES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.2)))
_BEST: Final = {"color": "#555555", "linewidth": 1.2, "linestyle": (0, (2, 2))}


def draw_learning(run: Run) -> Figure | None:
    """Loss and errors over epochs, training and validation, the best epoch marked.

    Of loss components other than energy, forces and stress, their loss.
    """
    if run.history is None:
        return None
    panels = _learning_panels(run)
    if not panels:
        return None
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.1 * rows + 0.4)
    for index, (title, label, series) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1, title=title, ylabel=label)
        for subset, values in series.items():
            _line(axes, run.history.epochs, values, logarithmic=True, color=SUBSET_COLOURS[subset])
        _log_axis(axes, list(series.values()))
        _epoch_axis(axes, run, labelled=index >= len(panels) - columns)
    shown = {subset for _, _, series in panels for subset in series}
    subset_legend(figure, shown, *_best_handles(figure.axes[0], run), marker="-")
    return figure


def _learning_panels(run: Run) -> list[tuple[str, str, dict[str, np.ndarray]]]:
    """Title, label and values by subset of each panel."""
    panels = []
    if losses := run.logged_losses():
        panels.append(("Loss", "unweighted loss" if run.own_task else "loss", losses))
    for quantity in QUANTITIES:
        for metric in METRICS:
            logged = {s: run.logged_error(s, quantity, metric) for s in ("train", "val")}
            logged = {subset: found for subset, found in logged.items() if found is not None}
            if logged:
                [unit, *_] = [found.unit for found in logged.values()]
                values = {subset: found.values for subset, found in logged.items()}
                panels.append((quantity.title, f"{metric.upper()} ({unit})", values))
                break
    keys = {run.model_key(quantity) for quantity in QUANTITIES}
    for component in run.history.prefixed("weight_"):
        series = {s: run.history.get(f"{s}_{component}_loss") for s in ("train", "val")}
        series = {subset: values for subset, values in series.items() if values is not None}
        if component not in keys and series:
            title = component.replace("_", " ").capitalize()
            panels.append((title, "unweighted loss", series))
    return panels


def draw_weights(run: Run) -> Figure | None:
    """Weights of the loss components over epochs (figure 3 of Ocampo et al. 2024)."""
    logged = {} if run.history is None else run.history.prefixed("weight_")
    if not logged:
        return None
    axes = new_figure(9.0, 4.2).add_subplot(ylabel="weight in the loss")
    quantities = {run.model_key(q): q.name for q in QUANTITIES}
    names = [quantities.get(name, name) for name in logged]
    looks = _looks(names)
    for name, values in zip(names, logged.values(), strict=True):
        _line(axes, run.history.epochs, values, label=name.replace("_", " "), **looks[name])
    top = max(np.nanmax(values) for values in logged.values())
    axes.set_ylim(0.0, min(1.02, 1.1 * top) if top <= 1.0 + 1e-9 else None)
    _epoch_axis(axes, run)
    handles = [*axes.get_legend_handles_labels()[0], *_best_handles(axes, run)]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4)
    return axes.figure


def draw_curves(groups: dict[str, list[Run]]) -> Figure | None:
    """Validation errors over epochs, a colour per group (by its label), a line per run."""
    look = _looks(groups)
    panels = []
    for quantity in QUANTITIES:
        lines = [
            (label, run.history.epochs, logged)
            for label, runs in groups.items()
            for run in runs
            if (logged := run.logged_error("val", quantity)) is not None
        ]
        if lines:
            panels.append((quantity, lines))
    if not panels:
        return None
    figure = new_figure(10.0, 3.9 + 0.22 * math.ceil(len(groups) / 3))
    for column, (quantity, lines) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1, title=quantity.title)
        for label, epochs, logged in lines:
            axes.plot(epochs, logged.values, linewidth=1.4, alpha=0.85, **look[label])
        _log_axis(axes, [logged.values for _, _, logged in lines])
        units = sorted({logged.unit for _, _, logged in lines})
        axes.set(xlabel="epoch", ylabel=f"validation RMSE ({' or '.join(units)})")
    shown = {label for _, lines in panels for label, _, _ in lines}
    handles = [
        figure.axes[0].plot([], [], label=label, linewidth=2.5, **look[label])[0]
        for label in groups
        if label in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def _looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour and line style of each name: all colours, then again in another style."""
    return {
        name: {
            "color": CYCLE[k % len(CYCLE)],
            "linestyle": _STYLES[k // len(CYCLE) % len(_STYLES)],
        }
        for k, name in enumerate(names)
    }


def _line(axes: Axes, epochs: np.ndarray, values: np.ndarray, logarithmic=False, **look) -> None:
    """Values over epochs; where there are many, pale under their running mean (of logarithms)."""
    line = pd.Series(values, index=epochs).dropna()
    if len(line) > _SMOOTHED_FROM:
        axes.plot(line, color=look["color"], linewidth=0.8, alpha=0.3)
        is_log = logarithmic and line.min() > 0.0
        window = max(3, len(line) // 50 | 1)
        line = np.log(line) if is_log else line
        line = line.rolling(window, center=True, min_periods=1).mean()
        line = np.exp(line) if is_log else line
    axes.plot(line, marker="o" if len(line) == 1 else None, **look)


def _log_axis(axes: Axes, series: list[np.ndarray]) -> None:
    """Log scale where all values are positive, with labels between the decades when few."""
    values = np.concatenate([s[np.isfinite(s)] for s in series])
    if not len(values) or values.min() <= 0.0:
        return
    axes.set_yscale("log")
    if values.max() / values.min() < 30.0:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _epoch_axis(axes: Axes, run: Run, labelled: bool = True) -> None:
    """Limits and label of the epochs, the best one marked."""
    epochs = run.history.epochs
    if run.best_epoch is not None:
        axes.axvline(run.best_epoch, **_BEST)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(*((epochs[0], epochs[-1]) if len(epochs) > 1 else (-0.5, epochs[0] + 0.5)))
    axes.set_xlabel("epoch" if labelled else "")


def _best_handles(axes: Axes, run: Run) -> list:
    if run.best_epoch is None:
        return []
    return axes.plot([], [], label=f"best epoch ({run.best_epoch})", **_BEST)
