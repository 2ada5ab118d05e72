"""Symmetry functions that need no choosing: grids from the cutoff and the elements.

Two families of radial Gaussians complement each other:
- centred on the atom, with widths in geometric progression: smooth, they see density and strain;
- shifted along r with the spacing of their centres as width: they resolve the shells.
Both constructions are those of M. Gastegger et al., J. Chem. Phys. 148, 241709 (2018), where
eta = 1 / (2 r_m^2) for the centred and eta = 1 / (2 dr^2) for the shifted family on an auxiliary
radial grid r_m of spacing dr; the geometric progression is from G. Imbalzano et al., J. Chem. Phys.
148, 241730 (2018).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase.data import covalent_radii

from schnetpack_softadapt.descriptors.acsf.channels import Environment, environments
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.tables import table_layout
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["angular_grid", "default_layout", "radial_grid"]

#: More elements than this are described by two channels, whose functions do not grow in number.
MAX_RESOLVED_ELEMENTS = 4

# Fraction of the sum of two covalent radii below which no bond is compressed in ordinary data.
_CLOSEST = 0.7

# Neighbours beyond the larger of a distance in Ang and a multiple of the longest bond tell little
# by their angles and cost most triples.
_ANGULAR_CUTOFF = 5.0
_ANGULAR_BONDS = 1.6


def radial_grid(r_min: float, cutoff: float, n: int) -> list[tuple[float, float]]:
    """(eta, r_s) of `n` radial functions: half of them centred, half (rounded up) shifted.

    Args:
        r_min: shortest distance that the shifted functions resolve, Ang.
        cutoff: cutoff radius, Ang.
        n: number of functions.

    Raises:
        ValueError: `n` below 1 or `r_min` not below `cutoff`.
    """
    if n < 1:
        raise ValueError(f"at least one radial function is needed, got {n}")
    if not 0 < r_min < cutoff:
        raise ValueError(
            f"the cutoff of {cutoff:g} Ang must exceed the shortest distances, {r_min:.2f} Ang"
        )
    n_centered, n_shifted = n // 2, n - n // 2
    # the narrowest falls off within half a bond: it feels repulsion
    widths = np.geomspace(cutoff, 0.5 * r_min, n_centered)
    spacing = (cutoff - r_min) / n_shifted
    centers = r_min + spacing * np.arange(n_shifted)
    return [(0.5 / w**2, 0.0) for w in widths] + [(0.5 / spacing**2, c) for c in centers]


def angular_grid(
    cutoff: float, n_widths: int, zetas: Sequence[float]
) -> list[tuple[float, float, float]]:
    """(eta, zeta, lam) of the angular functions: every width with every exponent and both signs.

    The widest Gaussian has the cutoff as its width, eta = 1 / (2 r_c^2), the others eta times 3, 8,
    23, ...: whole multiples near 2^(3m/2), so that one exponential per triple serves all of them.
    """
    eta = 0.5 / cutoff**2
    multiples = [round(2 ** (1.5 * m)) for m in range(n_widths)]
    return [(m * eta, zeta, lam) for m in multiples for zeta in zetas for lam in (-1.0, 1.0)]


def default_layout(
    elements: Iterable[int | str],
    cutoff: float = 6.0,
    *,
    angular_cutoff: float | None = None,
    n_radial: int = 16,
    n_angular_widths: int = 3,
    zetas: Sequence[float] = (1, 2, 4, 16),
    angular: str = "G5",
    cutoff_fn: str = "poly2",
    weighted: bool | None = None,
    channels: int | Sequence[Mapping[int | str, float]] | None = None,
    tables: str | Sequence[Mapping] | None = None,
) -> Layout:
    """A layout for any material of the given elements.

    With the defaults an element has 40 functions alone, 104 in a binary, 192 in a ternary and 304
    in a quaternary compound; from five elements on two channels take over, 80 however many
    elements there are. On MoTe2 and W-Be, after equal CPU time (one seed), two channels had test
    force errors of 84 and 76 meV/Ang, functions of each pair 110 and 115, the weighted ones of
    Gastegger 2018 (`weighted=True`) 487 and 234; in a linear fit of five elements three channels
    were twice as good as two (tests/benchmarks/results/models.md).

    Args:
        elements: atomic numbers or symbols.
        cutoff: radius of the radial functions, Ang.
        angular_cutoff: radius of the angular functions, Ang. By default 5, or 1.6 times the sum of
            the largest covalent radii where that is more (heavy alkali metals), but at most
            `cutoff`; the cost grows with its sixth power.
        n_radial: radial functions per element of the neighbour.
        n_angular_widths: Gaussian widths of the angular functions; 0 for none.
        zetas: angular exponents; powers of two are fastest.
        angular: "G5" (wide), "G4" (narrow, with r_jk), or "mixed": wide for lam = -1 and narrow for
            lam = +1. A narrow function hardly sees angles near 180 degrees, whose r_jk is twice a
            bond length and beyond the cutoff.
        cutoff_fn: name in `acsf.cutoffs.CUTOFFS`. The default has a continuous second
            derivative, so that forces are smooth.
        weighted: whether to sum over elements, weighted by atomic number, with twice the radial
            functions and one more angular width.
        channels: sum over elements with tables of element weights instead, so many of them
            (`channels.element_channels`), or the weights of each by element; an element then has at
            most `channels` times the functions of one element, however many elements there are. By
            default two from five elements on, unless `weighted` is set.
        tables: grids of your own (settings of `tables.Table`) that are added up, or the name of
            some: "imbalzano" has 10 radial functions (shifted, geometric from 1 Ang) and 24 wide
            angular ones (4 widths, zeta 1, 3, 12). Of the other arguments the cutoffs count only.

    Raises:
        UnknownElementError: what is no chemical element.
        ValueError: no elements, a cutoff within the shortest bond, weights that are not finite.
    """
    numbers = sorted({atomic_number(element) for element in elements})
    if not numbers:
        raise ValueError("a layout needs at least one element")
    if angular not in ("G4", "G5", "mixed"):
        raise ValueError(f"angular must be 'G4', 'G5' or 'mixed', got {angular!r}")
    if angular_cutoff is None:
        longest_bond = 2 * max(float(covalent_radii[z]) for z in numbers)
        angular_cutoff = min(cutoff, max(_ANGULAR_CUTOFF, _ANGULAR_BONDS * longest_bond))
    if angular_cutoff > cutoff:
        raise ValueError(f"angular cutoff {angular_cutoff:g} exceeds the cutoff {cutoff:g}")
    if tables is not None:
        return table_layout(numbers, tables, cutoff, angular_cutoff, cutoff_fn)
    if weighted is None and channels is None and len(numbers) > MAX_RESOLVED_ELEMENTS:
        channels = 2
    if weighted and channels is not None:
        raise ValueError("weighted (by atomic number) and channels exclude each other; give one")
    if weighted:
        n_radial, n_angular_widths = 2 * n_radial, n_angular_widths and n_angular_widths + 1

    def radial_of(z: int, where: Environment):
        r_min = min(_closest(z, other) for other in where.neighbors or numbers)
        return [
            SymmetryFunction(
                where.prefix + "G2",
                where.neighbors,
                cutoff,
                eta,
                r_s,
                cutoff_fn=cutoff_fn,
                weights=where.weights,
            )
            for eta, r_s in radial_grid(r_min, cutoff, n_radial)
        ]

    kinds = {-1.0: "G5", 1.0: "G4"} if angular == "mixed" else {-1.0: angular, 1.0: angular}

    def angular_of(where: Environment):
        return [
            SymmetryFunction(
                where.prefix + kinds[lam],
                where.neighbors,
                angular_cutoff,
                eta,
                zeta=zeta,
                lam=lam,
                cutoff_fn=cutoff_fn,
                weights=where.weights,
            )
            for eta, zeta, lam in angular_grid(angular_cutoff, n_angular_widths, zetas)
        ]

    radial, angular_sums = (environments(numbers, n, weighted, channels) for n in (1, 2))
    return Layout(
        {
            z: [f for where in radial for f in radial_of(z, where)]
            + [f for where in angular_sums for f in angular_of(where)]
            for z in numbers
        }
    )


def _closest(z_i: int, z_j: int) -> float:
    return _CLOSEST * float(covalent_radii[z_i] + covalent_radii[z_j])
