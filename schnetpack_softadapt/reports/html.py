"""One self-contained HTML page: text, tables, and pictures inside the file."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Final

__all__ = ["figure", "heading", "page", "paragraph", "points", "table"]

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


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def points(items: Sequence[str]) -> str:
    """A list that catches the eye; empty text without items."""
    if not items:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{escape(i)}</li>" for i in items) + "</ul>"


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], row_headers: int = 1
) -> str:
    """A table with caption; the first `row_headers` cells of a row name it for screen readers."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = []
    for row in rows:
        cells = [
            f'<th scope="row">{escape(cell)}</th>'
            if i < row_headers
            else f"<td>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        ]
        body.append("<tr>" + "".join(cells) + "</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(body) + "</tbody></table></div>"
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    """A picture inside the page; `alt` says in words what it shows."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
