"""The folder of a report: what is written there, each file whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from . import html
from .run import Run
from .style import png_bytes, write_atomically
from .tables import ErrorRow, csv_text, without_nan

__all__ = ["FORMAT", "Figures", "begin", "finish", "run_content"]

#: version of the layout of report.json
FORMAT: Final = 1


class Figures:
    """Draws figures into the folder and keeps their names and HTML blocks."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.names: list[str] = []

    def block(
        self, name: str, alt: str, caption: str, draw: Callable[..., Any], *args: Any
    ) -> list[str]:
        png = png_bytes(draw, *args)
        if png is None:
            return []
        write_atomically(self.out / f"{name}.png", png)
        self.names.append(f"{name}.png")
        return [html.figure(png, alt, caption)]


def begin(out: Path) -> set[str]:
    """Make the folder; names of the pictures an earlier report left there."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        earlier = json.loads((out / "report.json").read_text(encoding="utf-8"))["figures"]
        return {name for name in earlier if name.endswith(".png") and Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def finish(
    out: Path,
    stale: set[str],
    title: str,
    blocks: list[str],
    content: dict[str, Any],
    rows: list[tuple[str, ErrorRow]],
) -> None:
    """Write report.csv, report.html and report.json, and delete pictures not drawn again."""
    text = json.dumps(without_nan(content), indent=1, allow_nan=False)
    write_atomically(out / "report.csv", csv_text(rows))
    write_atomically(out / "report.html", html.page(title, [b for b in blocks if b]))
    write_atomically(out / "report.json", text + "\n")
    for name in stale - set(content["figures"]):
        (out / name).unlink(missing_ok=True)


def run_content(run: Run, rows: list[ErrorRow], name: str | None = None) -> dict[str, Any]:
    """What report.json says of one run."""
    return {
        "name": name or run.name,
        "seed": run.seed,
        "finished": run.finished,
        "epochs": run.n_epochs,
        "best_epoch": run.best_epoch,
        "wall_s": run.wall_s,
        "notes": run.notes,
        "errors": [asdict(row) for row in rows],
    }
