"""A report: one self-contained HTML page, with its numbers and pictures as files beside it."""

import base64
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.reports.errors import records
from schnetpack_softadapt.reports.run import Run
from schnetpack_softadapt.reports.style import png_bytes

__all__ = ["Report", "figure", "page", "paragraph", "points", "run_content", "table"]

#: version of the layout of report.json
FORMAT: Final = 1

_CSS: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: 0.4rem; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { text-align: left; font-weight: normal; }
tbody tr:hover { background: #f4f6f8; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.95rem; }
.notes { background: #fff6e0; border-left: 4px solid #e69f00; padding: 0.5rem 1rem 0.5rem 2rem; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""


def page(title: str, blocks: Sequence[str]) -> str:
    """A whole document from blocks made by the functions below."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(blocks) + "\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def points(items: Sequence[str]) -> str:
    """A list that catches the eye; empty text without items."""
    if not items:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(i)}</li>" for i in items) + "</ul>"


def table(caption: str, cells: pd.DataFrame) -> str:
    """A table of texts with caption; its index names the rows for screen readers."""
    header = [cells.index.name or "", *cells.columns]
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for name, *row in cells.itertuples()
    ]
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(body) + "</tbody></table></div>"
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    """A picture inside the page; `alt` says what it shows."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


class Report:
    """Collects a page's blocks and draws its pictures; every file appears whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.blocks: list[str] = []
        self.figures: list[str] = []
        self._heading = ""
        try:
            content = json.loads((out / "report.json").read_text(encoding="utf-8"))
            self._earlier = {name for name in content["figures"] if Path(name).name == name}
        except (OSError, ValueError, KeyError, TypeError):
            self._earlier = set()

    def heading(self, text: str) -> None:
        """Heading of what is added next; it disappears where nothing is."""
        self._heading = f"<h2>{escape(text)}</h2>"

    def add(self, *blocks: str) -> None:
        """Add blocks; empty ones are left out."""
        for block in filter(None, blocks):
            self.blocks += [self._heading, block] if self._heading else [block]
            self._heading = ""

    def draw(self, name: str, alt: str, caption: str, draw: Callable, *args: Any) -> None:
        """Add the picture that `draw(*args)` makes, if there is something to draw."""
        png = png_bytes(draw, *args)
        if png is not None:
            write_file(self.out / f"{name}.png", png)
            self.figures.append(f"{name}.png")
            self.add(figure(png, alt, caption))

    def write(self, title: str, content: dict[str, Any], runs: Sequence[Run]) -> Path:
        """Write report.csv, report.html and report.json, and return the folder.

        Pictures that an earlier report made and this one did not are deleted.
        """
        content = {"format": FORMAT, "runs": list(map(run_content, runs)), **content}
        content["figures"] = self.figures
        errors = {run.name: run.errors for run in runs}
        rows = pd.concat(errors, names=["run"]).reset_index("run")
        write_file(self.out / "report.csv", rows.to_csv(index=False))
        write_file(self.out / "report.html", page(title, self.blocks))
        text = json.dumps(content, indent=1, allow_nan=False)
        write_file(self.out / "report.json", text + "\n")
        for name in self._earlier - set(self.figures):
            if name.endswith(".png"):
                (self.out / name).unlink(missing_ok=True)
        return self.out


def run_content(run: Run) -> dict[str, Any]:
    """What report.json says of one run."""
    return {
        "name": run.name,
        "seed": run.seed,
        "descriptor": run.descriptor,
        "finished": run.finished,
        "epochs": run.n_epochs,
        "best_epoch": run.best_epoch,
        "wall_s": run.wall_s,
        "notes": run.notes,
        "errors": records(run.errors),
    }
