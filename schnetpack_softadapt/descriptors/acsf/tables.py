"""Symmetry functions by tables: small grids of chosen parameters that are added up.

A table has n = `points` radial parts (eta, r_s) between r_low and the cutoff r_c:

    imbalzano  centred  r_s = 0, eta = 1 / r_m^2, r_m = r_c (r_low / r_c)^(m/(n-1)), m = 0 .. n-1
    imbalzano  shifted  r_s = r_m, eta = 1 / (r_(m-1) - r_m)^2, r_m = r_c (r_low / r_c)^(m/n),
                        m = 1 .. n
    gastegger  centred  r_s = 0, eta = 1 / (2 r_m^2), r_m from r_low to r_c, equidistant
    gastegger  shifted  r_s = r_low + m dr, eta = 1 / (2 dr^2), dr = (r_c - r_low) / n, m = 0 .. n-1

G. Imbalzano et al., J. Chem. Phys. 148, 241730 (2018), whose r_low is r_c / n with n the number of
the intervals; M. Gastegger et al., J. Chem. Phys. 148, 241709 (2018). A shifted function at the
cutoff itself, where f_c vanishes, is left out. In an angular table every radial part is combined
with every zeta and lambda.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from schnetpack_softadapt.descriptors.acsf.channels import environments
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

__all__ = ["TABLES", "Table", "table_layout"]

_KINDS = {"radial": "G2", "wide": "G5", "narrow": "G4", "ani": "ANI"}
_PLACEMENTS = ("centred", "shifted")
_RULES = ("imbalzano", "gastegger")


@dataclass(frozen=True)
class Table:
    """Settings of a table.

    Raises:
        ValueError: a setting that is out of range.
    """

    kind: str  # "radial" G2, "wide" G5, "narrow" G4 or "ani" (`layout.KINDS`)
    placement: str = "shifted"  # "centred" on the atom with several widths, or "shifted" along r
    points: int = 4  # number of radial parts
    r_low: float = 1.0  # shortest distance of the grid, Ang
    # Ang; by default that of the layout, for radial or for angular functions
    cutoff: float | None = None
    # "imbalzano" (distances in geometric progression) or "gastegger" (equidistant)
    after: str = "imbalzano"
    zetas: Sequence[float] = (1,)  # of the angular kinds
    lambdas: Sequence[float] = (-1, 1)  # of the angular kinds
    # weighted, channels: sums over elements instead of functions of each, see `default_layout`
    weighted: bool = False
    channels: int | Sequence[Mapping] | None = None

    def __post_init__(self):
        for name, known in (("kind", _KINDS), ("placement", _PLACEMENTS), ("after", _RULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {[*known]}, got {getattr(self, name)!r}")
        if not isinstance(self.points, int) or self.points < 1:
            raise ValueError(f"points must be a whole number from 1 on, got {self.points!r}")
        if self.kind != "radial" and not (self.zetas and self.lambdas):
            raise ValueError("zetas and lambdas must not be empty")

    def radial_parts(self, cutoff: float) -> list[tuple[float, float]]:
        """(eta, r_s) of each point.

        Raises:
            ValueError: r_low is not between 0 and the cutoff.
        """
        low, n = float(self.r_low), self.points
        if not 0.0 < low < cutoff:
            raise ValueError(f"r_low must be between 0 and the cutoff of {cutoff:g}, got {low:g}")
        if self.after == "imbalzano":
            if self.placement == "centred":
                return [(r**-2, 0.0) for r in np.geomspace(cutoff, low, n)]
            r = np.geomspace(cutoff, low, n + 1)
            return [*zip(np.diff(r) ** -2, r[1:], strict=True)]
        if self.placement == "centred":
            return [(0.5 * r**-2, 0.0) for r in np.linspace(low, cutoff, n)]
        spacing = (cutoff - low) / n
        return [(0.5 * spacing**-2, low + m * spacing) for m in range(n)]

    def functions(
        self, elements: Sequence[int], cutoff: float, cutoff_fn: str
    ) -> list[SymmetryFunction]:
        """The symmetry functions, the same for each central element."""
        is_radial = self.kind == "radial"
        shapes = (
            [(1.0, 1.0)] if is_radial else [(z, lam) for z in self.zetas for lam in self.lambdas]
        )
        where = environments(elements, 1 if is_radial else 2, self.weighted, self.channels)
        return [
            SymmetryFunction(
                place.prefix + _KINDS[self.kind],
                place.neighbors,
                cutoff,
                float(eta),
                float(r_s),
                zeta,
                lam,
                cutoff_fn,
                place.weights,
            )
            for place in where
            for eta, r_s in self.radial_parts(cutoff)
            for zeta, lam in shapes
        ]


#: tables by name: a shifted radial grid and a wide angular one as other tools offer them
TABLES = {
    "imbalzano": (
        {"kind": "radial", "points": 10},
        {"kind": "wide", "placement": "centred", "points": 4, "zetas": (1, 3, 12)},
    ),
}


def table_layout(
    elements: Sequence[int],
    tables: str | Sequence[Mapping],
    cutoff: float,
    angular_cutoff: float,
    cutoff_fn: str,
) -> Layout:
    """All functions of several tables, those that two of them share once.

    Args:
        elements: atomic numbers.
        tables: settings of each `Table`, or a name in `TABLES`.
        cutoff, angular_cutoff: of the tables that do not say, Ang; none may exceed `cutoff`.
        cutoff_fn: name in `acsf.cutoffs.CUTOFFS`.

    Raises:
        ValueError: an unknown name; or naming the table, counted from 1, and the setting.
    """
    if isinstance(tables, str):
        if tables not in TABLES:
            raise ValueError(f"there are no tables named {tables!r}; choose from {[*TABLES]}")
        tables = TABLES[tables]
    if not tables:
        raise ValueError("the list of tables is empty; give at least one, or null for none")
    known = [field.name for field in fields(Table)]
    functions: dict[SymmetryFunction, None] = {}
    for k, settings in enumerate(tables, 1):
        where = f"table {k} ({settings.get('kind', 'of no kind')})"
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"{where}: unknown setting {unknown[0]!r}; choose from {known}")
        if "kind" not in settings:
            raise ValueError(f"{where}: kind is missing; choose from {[*_KINDS]}")
        try:
            table = Table(**settings)
            own = table.cutoff or (cutoff if table.kind == "radial" else angular_cutoff)
            if own > cutoff:
                raise ValueError(f"cutoff {own:g} exceeds that of the layout, {cutoff:g} Ang")
            functions |= dict.fromkeys(table.functions(elements, own, cutoff_fn))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
    return Layout(dict.fromkeys(elements, functions))
