"""Runs side by side: grouped by settings, mean and spread over seeds, bars and curves."""

import json
import math
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from schnetpack_softadapt.quantities import METRICS, QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.curves import draw_curves
from schnetpack_softadapt.reports.errors import across, duration, figures, records
from schnetpack_softadapt.reports.page import Report, paragraph, points, table
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import SUBSET_COLOURS, new_figure, subset_legend

__all__ = ["draw_bars", "group_runs", "spread_text", "spreads", "write_comparison"]

#: settings that do not make two runs different experiments
_IGNORED_SECTIONS: Final = ("run", "print_config", "logger")
#: a label made of more settings than this says less than the run's name
_LABEL_SETTINGS: Final = 3


def group_runs(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of equal settings but for the seed, by a label, in the order of their first run.

    Settings are all entries of config.yaml except seeds, the section `run` and the loggers; a run
    without config.yaml stands alone. Labels name the settings in which the groups differ, or the
    runs' directories when too many differ.
    """
    members: dict[str, list[Run]] = {}
    for index, run in enumerate(runs):
        settings = json.dumps(_settings(run), sort_keys=True, default=str)
        members.setdefault(settings if run.config else f"run {index}", []).append(run)
    groups = list(members.values())
    return dict(zip(_labels(groups), groups, strict=True))


def spreads(groups: dict[str, list[Run]]) -> pd.DataFrame:
    """Errors over the runs of each group.

    Returns:
        columns settings (the group's label), subset, quantity, metric, mean, deviation (sample
        standard deviation, NaN for one run), values, and text, see `spread_text`.
    """
    errors = {label: pd.concat([run.errors for run in runs]) for label, runs in groups.items()}
    table = pd.concat(errors, names=["settings"]).reset_index("settings")
    table = table[table["selection"] == "all"]
    keys = ["settings", "subset", "quantity", "metric"]
    table = table.melt(keys[:3], list(METRICS), keys[3]).dropna(subset="value")
    values = table.groupby(keys, sort=False)["value"]
    found = values.agg(mean="mean", deviation="std", values=list).reset_index()
    pairs = zip(found["mean"], found["deviation"], strict=True)
    return found.assign(text=[spread_text(*pair) for pair in pairs])


def spread_text(mean: float, deviation: float) -> str:
    """Mean ± deviation: three digits of the mean, but no more than two of the deviation."""
    if not deviation >= 0:
        return figures(mean)
    if not deviation or not mean:
        return f"{figures(mean)} ± {figures(deviation)}"
    of_mean, of_deviation = (math.floor(math.log10(abs(x))) for x in (mean, deviation))
    digits = max(min(1 - of_deviation, max(2 - of_mean, 0)), 0)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _settings(run: Run) -> dict[str, Any]:
    """Settings by dotted name, without what a repetition may change."""
    config = OmegaConf.to_container(run.config)  # interpolations as written
    kept = {key: value for key, value in config.items() if key not in _IGNORED_SECTIONS}
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


def draw_bars(errors: pd.DataFrame) -> Figure | None:
    """RMSE in `spreads` as grouped bars (figure 2 of Ocampo et al. 2024), dots for single seeds."""
    errors = errors[errors["metric"] == "rmse"]
    panels = [q for q in QUANTITIES if q.name in set(errors["quantity"])]
    if not panels:
        return None
    subsets = [s for s in SUBSETS if s in set(errors["subset"])]
    labels = list(errors["settings"].unique())
    thickness = 0.8 / len(subsets)
    figure = new_figure(10.0, max(2.8, 1.5 + 0.30 * len(labels) * (len(subsets) + 0.6)))
    for column, quantity in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1, title=quantity.title)
        bars = errors[errors["quantity"] == quantity.name].fillna({"deviation": 0.0})
        offset = bars["subset"].map(subsets.index) - (len(subsets) - 1) / 2
        y = bars["settings"].map(labels.index) + offset * thickness
        colours = bars["subset"].map(SUBSET_COLOURS)
        axes.barh(y, bars["mean"], 0.9 * thickness, color=colours)
        ends = bars["values"].map(max).clip(lower=bars["mean"] + bars["deviation"])
        for bar, at, end in zip(bars.itertuples(), y, ends, strict=True):
            if bar.deviation:
                line = {"elinewidth": 1.3, "capsize": 2.5, "ecolor": "#777777"}
                axes.errorbar(bar.mean, at, xerr=bar.deviation, fmt="none", zorder=3, **line)
                dots = {"markersize": 4, "markerfacecolor": "white", "markeredgecolor": "#555555"}
                axes.plot(bar.values, [at] * len(bar.values), "o", zorder=4, **dots)
            place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(figures(bar.mean), (end, at), fontsize=10, **place)
        axes.set_xlim(0.0, 1.28 * ends.max() or 1.0)
        axes.set_yticks(range(len(labels)), labels if column == 0 else [])
        axes.set_ylim(len(labels) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"RMSE ({quantity.shown_unit})")
    subset_legend(figure, subsets, marker="s")
    return figure


def write_comparison(runs: list[Run], out: Path) -> Path:
    """Write the comparison of `runs` into the folder `out` and return it."""
    report, groups = Report(out), group_runs(runs)
    errors = spreads(groups)
    seeds = " Runs that differ by the seed only share a row." if len(groups) < len(runs) else ""
    report.add(paragraph(f"{len(runs)} runs, {len(groups)} settings.{seeds}"))
    report.heading("Side by side")
    report.draw(
        "compared_errors",
        "Bars of energy, force and stress RMSE for each setting",
        "RMSE of each setting; lines show the standard deviation over seeds.",
        draw_bars,
        errors,
    )
    report.draw(
        "compared_curves",
        "Validation RMSE over epochs, one colour per setting",
        "Validation RMSE over epochs; one line per run.",
        draw_curves,
        groups,
    )
    over = "; mean ± standard deviation over seeds" if seeds else ""
    for subset in reversed(SUBSETS):
        cells = across(errors[errors["subset"] == subset], "settings")
        cells.insert(0, "runs", [str(len(groups[label])) for label in cells.index])
        caption = f"{SUBSETS[subset].capitalize()} errors{over}"
        report.add(table(caption, cells) if len(cells) else "")
    report.heading("Runs")
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    report.add(table("Every run", _every_run(groups)), points(notes))
    content = {"groups": [_group_content(*group, errors) for group in groups.items()]}
    return report.write("Comparison of runs", content, runs)


def _every_run(groups: dict[str, list[Run]]) -> pd.DataFrame:
    rows = [
        {
            "run": run.name,
            "settings": label,
            "seed": run.seed,
            "epochs": run.n_epochs,
            "best epoch": run.best_epoch,
            "wall time": duration(run.wall_s),
            "finished": "yes" if run.finished else "no",
        }
        for label, runs in groups.items()
        for run in runs
    ]
    cells = pd.DataFrame(rows, dtype=object).set_index("run")
    return cells.map(lambda cell: "–" if cell is None else str(cell))


def _group_content(label: str, runs: list[Run], errors: pd.DataFrame) -> dict[str, Any]:
    """What report.json says of a group."""
    columns = ["subset", "quantity", "metric", "mean", "deviation", "values"]
    wall = pd.Series([run.wall_s for run in runs], dtype=float).dropna()
    wall = pd.DataFrame({"mean": [wall.mean()], "deviation": wall.std(), "values": [[*wall]]})
    return {
        "label": label,
        "runs": [run.name for run in runs],
        "wall_s": records(wall)[0] if wall["mean"].notna().all() else None,
        "errors": records(errors.loc[errors["settings"] == label, columns]),
    }
