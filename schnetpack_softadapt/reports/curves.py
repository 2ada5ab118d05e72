"""What changes over epochs: losses, errors, and the weights of the loss components."""

import math
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import (
    CYCLE,
    QUANTITY_COLOURS,
    SUBSET_COLOURS,
    new_figure,
    png_bytes,
)

__all__ = ["component_colours", "draw_curves", "draw_learning", "draw_weights", "training_picture"]

#: more epochs than this get a running mean over the raw values
_SMOOTHED_FROM: Final = 120


def draw_learning(run: Run) -> Figure | None:
    """Loss and errors over epochs, training and validation, the best epoch marked.

    Of loss components other than energy, forces and stress, their loss.
    """
    history = run.history
    if history is None:
        return None
    panels = []
    if losses := run.logged_losses():
        panels.append(("Loss", "unweighted loss" if run.own_task else "loss", losses))
    for quantity in QUANTITIES:
        for metric in ("rmse", "mae"):
            series = {s: run.logged_error(s, quantity, metric) for s in ("train", "val")}
            series = {subset: s for subset, s in series.items() if s is not None}
            if series:
                unit = next(iter(series.values())).unit
                values = {subset: s.values for subset, s in series.items()}
                panels.append((quantity.title, f"{metric.upper()} ({unit})", values))
                break
    for component in _further_components(run):
        series = {s: history.get(f"{s}_{component}_loss") for s in ("train", "val")}
        series = {subset: values for subset, values in series.items() if values is not None}
        if series:
            title = component.replace("_", " ").capitalize()
            panels.append((title, "unweighted loss", series))
    if not panels:
        return None
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.1 * rows + 0.4)
    shown = {subset for _, _, series in panels for subset in series}
    for index, (title, label, series) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for subset, values in series.items():
            _line(axes, history.epochs, values, SUBSET_COLOURS[subset], logarithmic=True)
        _log_axis(axes, list(series.values()))
        _mark_best(axes, run)
        axes.set_title(title)
        axes.set_ylabel(label)
        _epoch_axis(axes, history.epochs, labelled=index >= len(panels) - columns)
    handles = [
        figure.axes[0].plot([], [], color=SUBSET_COLOURS[s], label=SUBSETS[s])[0]
        for s in SUBSETS
        if s in shown
    ]
    if run.best_epoch is not None:
        handles.append(_best_handle(figure.axes[0], run))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _further_components(run: Run) -> list[str]:
    """Loss components that are not the whole of energy, forces or stress."""
    keys = {run.output_key(quantity) for quantity in QUANTITIES}
    return [name for name in run.history.prefixed("weight_") if name not in keys]


def draw_weights(run: Run) -> Figure | None:
    """Weights of the loss components over epochs (figure 3 of Ocampo et al. 2024)."""
    if run.history is None or not run.history.prefixed("weight_"):
        return None
    figure = new_figure(9.0, 4.2)
    _weights_panel(figure.add_subplot(), run)
    return figure


def draw_curves(groups: dict[str, list[Run]]) -> Figure | None:
    """Validation errors over epochs, a colour per group (by its label), a line per run."""
    panels = []
    for quantity in QUANTITIES:
        lines = [
            (index, run.history.epochs, series)
            for index, runs in enumerate(groups.values())
            for run in runs
            if (series := run.logged_error("val", quantity)) is not None
        ]
        if lines:
            panels.append((quantity, lines))
    if not panels:
        return None
    figure = new_figure(10.0, 3.9 + 0.22 * math.ceil(len(groups) / 3))
    styles = ("-", (0, (5, 2)), (0, (1.5, 1.2)))
    look = [
        {"color": CYCLE[i % len(CYCLE)], "linestyle": styles[i // len(CYCLE) % len(styles)]}
        for i in range(len(groups))
    ]
    for column, (quantity, lines) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        units = sorted({series.unit for _, _, series in lines})
        for index, epochs, series in lines:
            axes.plot(epochs, series.values, linewidth=1.4, alpha=0.85, **look[index])
        _log_axis(axes, [series.values for _, _, series in lines])
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation RMSE ({' or '.join(units)})")
        axes.set_title(quantity.title)
    shown = {index for _, lines in panels for index, _, _ in lines}
    handles = [
        figure.axes[0].plot([], [], label=label, linewidth=2.5, **look[i])[0]
        for i, label in enumerate(groups)
        if i in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def training_picture(run_dir: Path | str, out_png: Path | str) -> None:
    """Loss weights and validation errors of a real run over epochs, in one picture.

    Args:
        run_dir: a run of SoftAdaptTask with logged weights
        out_png: where the PNG goes; written atomically

    Raises:
        ValueError: the run has logged no weights or no validation errors.
    """
    content = png_bytes(_draw_training, Run.read(run_dir))
    if content is None:
        raise ValueError(
            f"{run_dir} has no logged loss weights or validation errors; the picture needs a run "
            "of SoftAdaptTask with at least one finished epoch"
        )
    write_file(Path(out_png), content)


def component_colours(names: list[str]) -> dict[str, str]:
    """A colour per loss component: the quantities' own, further components in turn."""
    free = [c for c in CYCLE if c not in {QUANTITY_COLOURS.get(name) for name in names}]
    colours, n_further = {}, 0
    for name in names:
        if name in QUANTITY_COLOURS:
            colours[name] = QUANTITY_COLOURS[name]
        else:
            colours[name] = free[n_further % len(free)]
            n_further += 1
    return colours


def _draw_training(run: Run) -> Figure | None:
    history = run.history
    if history is None or not history.prefixed("weight_"):
        return None
    errors = [(q, run.logged_error("val", q)) for q in QUANTITIES]
    errors = [(quantity, series) for quantity, series in errors if series is not None]
    if not errors:
        return None
    figure = new_figure(10.0, 6.2)
    grid = figure.add_gridspec(2, len(errors), height_ratios=[1.15, 1.0])
    top = figure.add_subplot(grid[0, :])
    _weights_panel(top, run)
    top.set_xlabel("")
    top.set_title("Loss weights", loc="left")
    for column, (quantity, series) in enumerate(errors):
        axes = figure.add_subplot(grid[1, column])
        _line(
            axes, history.epochs, series.values, QUANTITY_COLOURS[quantity.name], logarithmic=True
        )
        _log_axis(axes, [series.values])
        axes.set_title(f"{quantity.title}, validation RMSE", loc="left", fontsize=12)
        axes.set_ylabel(series.unit)
        best = run.best_epoch
        if best is not None:
            at = int(np.flatnonzero(history.epochs == best)[0])
            value = series.values[at]
            axes.plot(best, value, "o", color="black", markersize=6, zorder=4)
            axes.text(
                0.97,
                0.93,
                f"best epoch\n{value:.3g} {series.unit}",
                transform=axes.transAxes,
                ha="right",
                va="top",
            )
        _epoch_axis(axes, history.epochs)
    return figure


def _weights_panel(axes: Axes, run: Run) -> None:
    quantities = {run.output_key(q): q.name for q in QUANTITIES}
    logged = run.history.prefixed("weight_")
    weights = {quantities.get(name, name): values for name, values in logged.items()}
    colours = component_colours(list(weights))
    styles = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
    for index, (name, values) in enumerate(weights.items()):
        _line(
            axes,
            run.history.epochs,
            values,
            colours[name],
            label=name.replace("_", " "),
            style=styles[index // len(CYCLE) % len(styles)],
        )
    _mark_best(axes, run)
    top = np.nanmax([np.nanmax(values) for values in weights.values()])
    if top <= 1.0 + 1e-9:
        axes.set_ylim(0.0, min(1.02, 1.1 * top))
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_ylabel("weight in the loss")
    _epoch_axis(axes, run.history.epochs)
    handles, _ = axes.get_legend_handles_labels()
    if run.best_epoch is not None:
        handles.append(_best_handle(axes, run))
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4)


def _line(
    axes: Axes,
    epochs: np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str | None = None,
    style: str | tuple = "-",
    logarithmic: bool = False,
) -> None:
    """Values over epochs; where there are many, pale under their running mean (of logarithms)."""
    there = np.isfinite(values)
    x, y = epochs[there], values[there]
    if len(x) > _SMOOTHED_FROM:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
        window = max(3, len(y) // 50 | 1)
        if logarithmic and y.min() > 0.0:
            y = np.exp(_running_mean(np.log(y), window))
        else:
            y = _running_mean(y, window)
    marker = "o" if len(x) == 1 else None
    axes.plot(x, y, color=colour, label=label, linestyle=style, marker=marker)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over an odd window, over the part that exists at the ends."""
    kernel = np.ones(window)
    summed = np.convolve(values, kernel, mode="same")
    return summed / np.convolve(np.ones(len(values)), kernel, mode="same")


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


def _mark_best(axes: Axes, run: Run) -> None:
    if run.best_epoch is not None:
        axes.axvline(run.best_epoch, color="#555555", linewidth=1.2, linestyle=(0, (2, 2)))


def _best_handle(axes: Axes, run: Run):
    style = {"color": "#555555", "linewidth": 1.2, "linestyle": (0, (2, 2))}
    return axes.plot([], [], label=f"best epoch ({run.best_epoch})", **style)[0]


def _epoch_axis(axes: Axes, epochs: np.ndarray, labelled: bool = True) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(*((epochs[0], epochs[-1]) if len(epochs) > 1 else (-0.5, epochs[0] + 0.5)))
    if labelled:
        axes.set_xlabel("epoch")
