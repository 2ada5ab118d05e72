"""The look of all figures: colours, sizes, legends, and how a figure becomes a file.

Figures are made without pyplot, on the Agg canvas, under a local rc context: nothing of a
caller's matplotlib is touched. Colours are those of Okabe and Ito (2008), which people with any
common colour vision tell apart; width 10 inches at 150 dpi, so that text of 12 points is still
read at half size.
"""

import io
from collections.abc import Callable, Iterable
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from schnetpack_softadapt.quantities import SUBSETS

__all__ = ["CYCLE", "SUBSET_COLOURS", "new_figure", "png_bytes", "subset_legend"]

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _VERMILLION, _PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

#: subsets never share a legend with what has the colours of the cycle, so both may use blue
SUBSET_COLOURS: Final = {"train": _BLUE, "val": _ORANGE, "test": "#3a3a3a"}
#: for loss components, and for runs side by side
CYCLE: Final = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK, _YELLOW)

_RC: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.labelsize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "grid.color": "#e4e4e4",
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def new_figure(width: float = 10.0, height: float = 4.0) -> Figure:
    """An empty figure in inches on the Agg canvas, laid out without overlaps."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)
    FigureCanvasAgg(figure)
    return figure


def subset_legend(figure: Figure, subsets: Iterable[str], *further, marker: str = "o") -> None:
    """A legend above the panels: a colour for each subset, then further handles."""
    colours = {s: SUBSET_COLOURS[s] for s in SUBSETS if s in set(subsets)}
    handles = [
        figure.axes[0].plot([], [], marker, color=colour, label=SUBSETS[subset])[0]
        for subset, colour in colours.items()
    ]
    space = {} if marker == "-" else {"handletextpad": 0.1}
    figure.legend(handles=[*handles, *further], loc="outside upper center", ncols=3, **space)


def png_bytes(draw: Callable[..., Figure | None], *args: Any) -> bytes | None:
    """Run a drawing function under our style; PNG file content, None where it drew nothing."""
    with rc_context(_RC):
        figure = draw(*args)
        if figure is None:
            return None
        buffer = io.BytesIO()
        # Matplotlib's version in the metadata would make equal pictures differ
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()
