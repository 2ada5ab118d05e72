"""Runs side by side: grouped by settings, mean and spread over seeds, bars and curves."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from schnetpack_softadapt.quantities import METRICS, QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.curves import draw_curves
from schnetpack_softadapt.reports.errors import duration, figures
from schnetpack_softadapt.reports.page import Report, paragraph, points, table
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import SUBSET_COLOURS, new_figure, subset_legend

__all__ = ["Group", "Spread", "draw_bars", "group_runs", "write_comparison"]

#: settings that do not make two runs different experiments
_IGNORED_SECTIONS: Final = ("run", "print_config", "logger")
#: a label made of more settings than this says less than the run's name
_LABEL_SETTINGS: Final = 3


@dataclass(frozen=True)
class Spread:
    """Values of one error over the runs of a group."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); None for one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Mean ± deviation: three digits of the mean, but no more than two of the deviation."""
        if self.deviation is None:
            return figures(self.mean)
        if not self.deviation or not self.mean:
            return f"{figures(self.mean)} ± {figures(self.deviation)}"
        mean, deviation = (math.floor(math.log10(abs(x))) for x in (self.mean, self.deviation))
        digits = max(min(1 - deviation, max(2 - mean, 0)), 0)
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass
class Group:
    """Runs of equal settings but for the seed."""

    label: str
    runs: list[Run]
    errors: dict[tuple[str, str, str], Spread]  # by subset, quantity, metric

    def text(self, subset: str, quantity: str, metric: str) -> str:
        return str(self.errors.get((subset, quantity, metric)) or "–")


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order of their first run; a run without config.yaml stands alone.

    Settings are all entries of config.yaml except seeds, the section `run` and the loggers. Labels
    name the settings in which the groups differ, or the runs' directories when too many differ.
    """
    members: dict[str, list[Run]] = {}
    for index, run in enumerate(runs):
        settings = json.dumps(_settings(run), sort_keys=True, default=str)
        members.setdefault(settings if run.config else f"run {index}", []).append(run)
    groups = list(members.values())
    return [
        Group(label, group, _spreads(group))
        for label, group in zip(_labels(groups), groups, strict=True)
    ]


def _spreads(runs: list[Run]) -> dict[tuple[str, str, str], Spread]:
    errors = pd.concat([run.errors for run in runs]).query("selection == 'all'")
    errors = errors.melt(["subset", "quantity"], METRICS, var_name="metric").dropna()
    values = errors.groupby(["subset", "quantity", "metric"], sort=False)["value"]
    return {key: Spread(tuple(found)) for key, found in values}


def _settings(run: Run) -> dict[str, Any]:
    """Settings by dotted name, without what a repetition may change."""
    kept = {key: value for key, value in run.config.items() if key not in _IGNORED_SECTIONS}
    [flat] = pd.json_normalize(kept).to_dict("records") if kept else [{}]
    return {name: value for name, value in flat.items() if name.rpartition(".")[2] != "seed"}


def _labels(groups: list[list[Run]]) -> list[str]:
    names = [runs[0].name for runs in groups]
    settings = [_settings(runs[0]) for runs in groups]
    keys = sorted({key for of_group in settings for key in of_group})
    differing = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in settings}) > 1]
    labels = names
    if all(settings) and 0 < len(differing) <= _LABEL_SETTINGS:
        short = {key: _short(key, differing) for key in differing}
        texts = [[f"{short[k]} {_shown(s[k])}" for k in short if k in s] for s in settings]
        labels = [", ".join(text) or name for text, name in zip(texts, names, strict=True)]
    elif all(settings) and differing:
        experiments = [str(runs[0].setting("run.experiment")) for runs in groups]
        labels = experiments if len(set(experiments)) == len(groups) else names
    return [
        label if labels.count(label) == 1 or label == name else f"{label} ({name})"
        for label, name in zip(labels, names, strict=True)
    ]


def _short(key: str, keys: list[str]) -> str:
    """The last part of a dotted name, with the part before it when that would be ambiguous."""
    *before, last = key.split(".")
    if last == "_target_":
        return before[-1] if before else key
    is_ambiguous = sum(other.rpartition(".")[2] == last for other in keys) > 1
    return ".".join([*before[-1:], last]) if is_ambiguous else last


def _shown(value: Any) -> str:
    text = str(value)
    return text.rpartition(".")[2] if text[:1].isalpha() else text


def draw_bars(groups: list[Group]) -> Figure | None:
    """RMSE as grouped bars (figure 2 of Ocampo et al. 2024), dots for single seeds."""
    known = {(s, q) for group in groups for s, q, metric in group.errors if metric == "rmse"}
    panels = [q for q in QUANTITIES if any((s, q.name) in known for s in SUBSETS)]
    if not panels:
        return None
    subsets = [s for s in SUBSETS if any((s, q.name) in known for q in panels)]
    thickness = 0.8 / len(subsets)
    figure = new_figure(10.0, max(2.8, 1.5 + 0.30 * len(groups) * (len(subsets) + 0.6)))
    for column, quantity in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1, title=quantity.title)
        longest = 0.0
        for row, group in enumerate(groups):
            for index, subset in enumerate(subsets):
                spread = group.errors.get((subset, quantity.name, "rmse"))
                if spread is not None:
                    y = row + (index - (len(subsets) - 1) / 2) * thickness
                    end = _draw_bar(axes, y, 0.9 * thickness, spread, SUBSET_COLOURS[subset])
                    longest = max(longest, end)
        axes.set_xlim(0.0, 1.28 * longest or 1.0)
        axes.set_yticks(range(len(groups)), [g.label for g in groups] if column == 0 else [])
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"RMSE ({quantity.shown_unit})")
    subset_legend(figure, subsets, marker="s")
    return figure


def _draw_bar(axes, y: float, thickness: float, spread: Spread, colour: str) -> float:
    """The mean as a bar with its number, the deviation and the values on it; where they end."""
    deviation = spread.deviation or 0.0
    axes.barh(y, spread.mean, thickness, color=colour)
    if deviation:
        line = {"elinewidth": 1.3, "capsize": 2.5, "ecolor": "#777777"}
        axes.errorbar(spread.mean, y, xerr=deviation, fmt="none", zorder=3, **line)
        dots = {"markersize": 4, "markerfacecolor": "white", "markeredgecolor": "#555555"}
        axes.plot(spread.values, [y] * len(spread.values), "o", zorder=4, **dots)
    end = max(spread.mean + deviation, *spread.values)
    place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 10}
    axes.annotate(figures(spread.mean), (end, y), **place)
    return end


def write_comparison(runs: list[Run], out: Path) -> Path:
    """Write the comparison of `runs` into the folder `out` and return it."""
    report, groups = Report(out), group_runs(runs)
    seeds = " Runs that differ by the seed only share a row." if len(groups) < len(runs) else ""
    report.add(paragraph(f"{len(runs)} runs, {len(groups)} settings.{seeds}"))
    report.heading("Side by side")
    report.draw(
        "compared_errors",
        "Bars of energy, force and stress RMSE for each setting",
        "RMSE of each setting; lines show the standard deviation over seeds.",
        draw_bars,
        groups,
    )
    report.draw(
        "compared_curves",
        "Validation RMSE over epochs, one colour per setting",
        "Validation RMSE over epochs; one line per run.",
        draw_curves,
        {group.label: group.runs for group in groups},
    )
    for subset in reversed(SUBSETS):
        if any(key[0] == subset for group in groups for key in group.errors):
            over = "; mean ± standard deviation over seeds" if seeds else ""
            caption = f"{SUBSETS[subset].capitalize()} errors (RMSE, then MAE){over}"
            report.add(table(caption, _side_by_side(groups, subset)))
    report.heading("Runs")
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    report.add(table("Every run", _every_run(groups)), points(notes))
    content = {"groups": [_group_content(group) for group in groups]}
    return report.write("Comparison of runs", content, runs)


def _side_by_side(groups: list[Group], subset: str) -> pd.DataFrame:
    cells = {"runs": [str(len(group.runs)) for group in groups]}
    for metric in METRICS:
        for q in QUANTITIES:
            if any((subset, q.name, metric) in group.errors for group in groups):
                column = [group.text(subset, q.name, metric) for group in groups]
                cells[f"{q.name} {metric.upper()}, {q.shown_unit}"] = column
    return pd.DataFrame(cells, index=pd.Index([g.label for g in groups], name="settings"))


def _every_run(groups: list[Group]) -> pd.DataFrame:
    rows = [
        {
            "run": run.name,
            "settings": group.label,
            "seed": run.seed,
            "epochs": run.n_epochs,
            "best epoch": run.best_epoch,
            "wall time": duration(run.wall_s),
            "finished": "yes" if run.finished else "no",
        }
        for group in groups
        for run in group.runs
    ]
    cells = pd.DataFrame(rows, dtype=object).set_index("run")
    return cells.map(lambda cell: "–" if cell is None else str(cell))


def _group_content(group: Group) -> dict[str, Any]:
    def content(spread: Spread) -> dict[str, Any]:
        return {"mean": spread.mean, "deviation": spread.deviation, "values": spread.values}

    seconds = tuple(run.wall_s for run in group.runs if run.wall_s is not None)
    return {
        "label": group.label,
        "runs": [run.name for run in group.runs],
        "wall_s": content(Spread(seconds)) if seconds else None,
        "errors": [
            {"subset": subset, "quantity": quantity, "metric": metric, **content(spread)}
            for (subset, quantity, metric), spread in group.errors.items()
        ],
    }
