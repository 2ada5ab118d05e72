"""Several runs side by side: grouped by settings, mean and spread over seeds, bars and curves."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from schnetpack_softadapt.quantities import METRICS, QUANTITIES, SUBSETS
from schnetpack_softadapt.reports.curves import draw_curves
from schnetpack_softadapt.reports.page import Report, paragraph, points, run_content, table
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import SUBSET_COLOURS, new_figure
from schnetpack_softadapt.reports.tables import duration, error_rows, figures, headline

__all__ = ["Group", "Spread", "draw_bars", "group_runs", "names_of", "write_comparison"]

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
        deviation = self.deviation
        if deviation is None:
            return figures(self.mean)
        if not 0.0 < deviation < math.inf or not 0.0 < abs(self.mean) < math.inf:
            return f"{figures(self.mean)} ± {figures(deviation)}"
        digits = min(1 - _exponent(deviation), max(2 - _exponent(self.mean), 0))
        digits = max(digits, 0)
        return f"{self.mean:.{digits}f} ± {deviation:.{digits}f}"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


@dataclass
class Group:
    """Runs of equal settings but for the seed."""

    label: str
    runs: list[Run]
    errors: dict[tuple[str, str, str], Spread]  # by subset, quantity, metric

    @property
    def wall(self) -> Spread | None:
        """Wall time in seconds over the runs that know it."""
        seconds = tuple(run.wall_s for run in self.runs if run.wall_s is not None)
        return Spread(seconds) if seconds else None


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order of their first run; a run without config.yaml stands alone.

    Settings are all entries of config.yaml except seeds, the section `run` and the loggers. Labels
    name the settings in which the groups differ, or the runs' directories when too many differ.
    """
    members: dict[str, list[Run]] = {}
    for index, run in enumerate(runs):
        settings = json.dumps(_settings(run), sort_keys=True, default=str)
        members.setdefault(settings if run.config else f"run {index}", []).append(run)
    together = list(members.values())
    labels = _labels(together, names_of(runs))
    return [
        Group(label, group, _spreads(group)) for label, group in zip(labels, together, strict=True)
    ]


def _spreads(runs: list[Run]) -> dict[tuple[str, str, str], Spread]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for key, value in headline(error_rows(run)).items():
            found.setdefault(key, []).append(value)
    return {key: Spread(tuple(values)) for key, values in found.items()}


def _settings(run: Run) -> dict[str, Any]:
    """Flat settings by dotted name, without what a repetition may change."""
    kept = {key: v for key, v in run.config.items() if key not in _IGNORED_SECTIONS}
    return {name: value for name, value in _flat(kept, "") if name.rpartition(".")[2] != "seed"}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def names_of(runs: list[Run]) -> dict[int, str]:
    """Names of runs, with their parent directory where two share a name."""
    plain = [run.name for run in runs]
    return {
        id(run): name if plain.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for run, name in zip(runs, plain, strict=True)
    }


def _labels(groups: list[list[Run]], name_of: dict[int, str]) -> list[str]:
    names = [name_of[id(runs[0])] for runs in groups]
    settings = [_settings(runs[0]) for runs in groups]
    keys = sorted({key for s in settings for key in s})
    differing = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in settings}) > 1]
    if not differing or not all(settings):
        labels = names
    elif len(differing) <= _LABEL_SETTINGS:
        labels = [
            ", ".join(f"{_short(key, differing)} {_shown(s[key])}" for key in differing if key in s)
            for s in settings
        ]
        labels = [label or name for label, name in zip(labels, names, strict=True)]
    else:
        experiments = [(runs[0].config.get("run") or {}).get("experiment") for runs in groups]
        distinct = len(set(map(str, experiments))) == len(groups)
        labels = [str(e) for e in experiments] if distinct else names
    return [
        label if labels.count(label) == 1 or label == name else f"{label} ({name})"
        for label, name in zip(labels, names, strict=True)
    ]


def _short(key: str, keys: list[str]) -> str:
    """The last part of a dotted name, with the part before it when that would be ambiguous."""
    last = key.rpartition(".")[2]
    if last == "_target_":
        return key.split(".")[-2] if "." in key else key
    if sum(other.rpartition(".")[2] == last for other in keys) > 1:
        return ".".join(key.split(".")[-2:])
    return last


def _shown(value: Any) -> str:
    text = str(value)
    return text.rpartition(".")[2] if "." in text and text[0].isalpha() else text


def draw_bars(groups: list[Group], metric: str = "rmse") -> Figure | None:
    """Errors as grouped bars (figure 2 of Ocampo et al. 2024), dots for single seeds."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    known = {(s, q) for group in groups for s, q, m in group.errors if m == metric}
    panels = [q for q in QUANTITIES if any((s, q.name) in known for s in SUBSETS)]
    if not panels:
        return None
    subsets = [s for s in SUBSETS if any((s, q.name) in known for q in panels)]
    thickness = 0.8 / len(subsets)
    height = max(2.8, 1.5 + 0.30 * len(groups) * (len(subsets) + 0.6))
    figure = new_figure(10.0, height)
    for column, quantity in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        longest = 0.0
        for row, group in enumerate(groups):
            for index, subset in enumerate(subsets):
                spread = group.errors.get((subset, quantity.name, metric))
                if spread is None:
                    continue
                y = row + (index - (len(subsets) - 1) / 2) * thickness
                deviation = spread.deviation or 0.0
                axes.barh(y, spread.mean, 0.9 * thickness, color=SUBSET_COLOURS[subset])
                if deviation:
                    line = {"elinewidth": 1.3, "capsize": 2.5, "ecolor": "#777777"}
                    axes.errorbar(spread.mean, y, xerr=deviation, fmt="none", zorder=3, **line)
                    axes.plot(
                        spread.values,
                        [y] * len(spread.values),
                        "o",
                        markersize=4,
                        markerfacecolor="white",
                        markeredgecolor="#555555",
                        markeredgewidth=0.9,
                        zorder=4,
                    )
                end = max(spread.mean + deviation, *spread.values)
                axes.annotate(
                    figures(spread.mean),
                    (end, y),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=10,
                )
                longest = max(longest, end)
        axes.set_xlim(0.0, 1.28 * longest or 1.0)
        axes.set_yticks(range(len(groups)), [g.label for g in groups] if column == 0 else [])
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"{metric.upper()} ({quantity.shown_unit})")
        axes.set_title(quantity.title)
    handles = [
        figure.axes[0].plot([], [], "s", color=SUBSET_COLOURS[s], label=SUBSETS[s])[0]
        for s in subsets
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handletextpad=0.1)
    return figure


def write_comparison(runs: list[Run], out: Path) -> Path:
    """Write the comparison of `runs` into the folder `out` and return it."""
    report = Report(out)
    groups = group_runs(runs)
    rows = {id(run): error_rows(run) for run in runs}
    names = names_of(runs)
    seeds = " Runs that differ by the seed only share a row." if len(groups) < len(runs) else ""
    notes = [f"{names[id(run)]}: {note}" for run in runs for note in run.notes]
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
            report.add(table(caption, *_side_by_side(groups, subset)))
    report.heading("Runs")
    report.add(table("Every run", *_every_run(groups, names)), points(notes))
    content = {
        "runs": [run_content(run, rows[id(run)], names[id(run)]) for run in runs],
        "groups": [_group_content(group, names) for group in groups],
    }
    flat = [(names[id(run)], row) for run in runs for row in rows[id(run)]]
    return report.write("Comparison of runs", content, flat)


def _side_by_side(groups: list[Group], subset: str) -> tuple[list[str], list[list[str]]]:
    columns = [
        (quantity, metric)
        for metric in ("rmse", "mae")
        for quantity in QUANTITIES
        if any((subset, quantity.name, metric) in group.errors for group in groups)
    ]
    header = ["settings", "runs", *(f"{q.name} {m.upper()}, {q.shown_unit}" for q, m in columns)]
    rows = [
        [
            group.label,
            str(len(group.runs)),
            *(
                str(group.errors.get((subset, quantity.name, metric)) or "–")
                for quantity, metric in columns
            ),
        ]
        for group in groups
    ]
    return header, rows


def _every_run(groups: list[Group], names: dict[int, str]) -> tuple[list[str], list[list[str]]]:
    header = ["run", "settings", "seed", "epochs", "best epoch", "wall time", "finished"]
    rows = [
        [
            names[id(run)],
            group.label,
            "–" if run.seed is None else str(run.seed),
            "–" if run.n_epochs is None else str(run.n_epochs),
            "–" if run.best_epoch is None else str(run.best_epoch),
            duration(run.wall_s),
            "yes" if run.finished else "no",
        ]
        for group in groups
        for run in group.runs
    ]
    return header, rows


def _group_content(group: Group, names: dict[int, str]) -> dict[str, Any]:
    def content(spread: Spread) -> dict[str, Any]:
        return {"mean": spread.mean, "deviation": spread.deviation, "values": spread.values}

    return {
        "label": group.label,
        "runs": [names[id(run)] for run in group.runs],
        "wall_s": content(group.wall) if group.wall else None,
        "errors": [
            {"subset": subset, "quantity": quantity, "metric": metric, **content(spread)}
            for (subset, quantity, metric), spread in group.errors.items()
        ],
    }
