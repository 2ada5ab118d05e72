"""The report that compares several runs."""

from pathlib import Path
from typing import Any

from . import html
from .compare import Group, Spread, draw_bars, draw_curves, group_runs, names_of
from .output import FORMAT, Figures, begin, finish, run_content
from .quantities import QUANTITIES, SUBSETS
from .run import Run
from .tables import duration, error_rows

__all__ = ["write_comparison"]


def write_comparison(runs: list[Run], out: Path) -> Path:
    """Write the comparison of `runs` into the folder `out` and return it."""
    stale = begin(out)
    groups = group_runs(runs)
    rows = {id(run): error_rows(run) for run in runs}
    names = names_of(runs)
    pictures = Figures(out)
    seeds = " Runs that differ by the seed only share a row." if len(groups) < len(runs) else ""
    notes = [f"{names[id(run)]}: {note}" for run in runs for note in run.notes]
    blocks = [
        html.paragraph(f"{len(runs)} runs, {len(groups)} settings.{seeds}"),
        html.heading("Side by side"),
        *[
            html.table(
                f"{SUBSETS[subset].capitalize()} errors (RMSE, then MAE)"
                f"{'; mean ± standard deviation over seeds' if seeds else ''}",
                *_side_by_side(groups, subset),
            )
            for subset in reversed(SUBSETS)
            if any(key[0] == subset for group in groups for key in group.errors)
        ],
        *pictures.block(
            "compared_errors",
            "Bars of energy, force and stress RMSE for each setting",
            "RMSE of each setting; lines show the standard deviation over seeds.",
            draw_bars,
            groups,
        ),
        *pictures.block(
            "compared_curves",
            "Validation RMSE over epochs, one colour per setting",
            "Validation RMSE over epochs; one line per run.",
            draw_curves,
            groups,
        ),
        html.heading("Runs"),
        html.table("Every run", *_every_run(groups, names)),
        html.points(notes),
    ]
    content = {
        "format": FORMAT,
        "runs": [run_content(run, rows[id(run)], names[id(run)]) for run in runs],
        "groups": [_group_content(group, names) for group in groups],
        "figures": pictures.names,
    }
    flat = [(names[id(run)], row) for run in runs for row in rows[id(run)]]
    finish(out, stale, "Comparison of runs", blocks, content, flat)
    return out


def _side_by_side(groups: list[Group], subset: str) -> tuple[list[str], list[list[str]]]:
    columns = [
        (quantity, metric)
        for metric in ("rmse", "mae")
        for quantity in QUANTITIES
        if any((subset, quantity.name, metric) in group.errors for group in groups)
    ]
    header = ["settings", "runs", *(f"{q.name} {m.upper()}, {q.unit}" for q, m in columns)]
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
