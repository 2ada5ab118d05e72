"""The parameters of a bispectrum descriptor, by the names that LAMMPS gives them."""

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.descriptors.snap.clebsch import components

__all__ = ["Bispectrum"]


class Bispectrum(Descriptor):
    """Bispectrum components of an atom's neighbours on the sphere in four dimensions.

    A neighbour at r = r (x, y, z) stands for a rotation by the angle 2 theta about an axis,

        theta = rfac0 pi (r - rmin0) / (R_ij - rmin0),    R_ij = rcutfac (radius_i + radius_j),

    whose matrices u_j of dimension j + 1 (j = 2J = 0, 1, ..., twojmax) have as the second one

        u_1 = [[conj(a), -conj(b)], [b, a]],
        a = cos theta - i z sin theta,  b = (y - i x) sin theta.

    The density of an atom has the expansion coefficients

        U_j = 1 + sum_j f_c(r_ij) weight_j u_j(r_ij),
        f_c = (cos(pi (r - rmin0) / (R_ij - rmin0)) + 1) / 2,

    and the components are, with the Clebsch-Gordan coefficients C,

        B_{j1 j2 j} = sum_{m n} conj(U_j)_{m n} Z_{m n},
        Z_{m n} = sum C^{j m}_{j1 m1 j2 m2} C^{j n}_{j1 n1 j2 n2} (U_j1)_{m1 n1} (U_j2)_{m2 n2}.

    A. P. Bartok, M. C. Payne, R. Kondor, G. Csanyi, Phys. Rev. Lett. 104, 136403 (2010), eqs. 3-7;
    A. P. Thompson, L. P. Swiler, C. R. Trott, S. M. Foiles, G. J. Tucker, J. Comput. Phys. 285, 316
    (2015), eqs. 3-12. twojmax 2, 4, 6, 8 have 5, 14, 30, 55 components.

    Args:
        radii: radius of each element (symbol or atomic number) in units of rcutfac; the keys are
            the elements that have descriptors.
        weights: of neighbours of each element; 1 where not given.
        twojmax: largest j.
        rcutfac: Ang.
        rfac0: part of the sphere that is used.
        rmin0: distance that is put at its pole, Ang.
        switchflag: with False f_c = 1 up to the cutoff, where values jump.
        bzeroflag: subtract the components of an atom without neighbours.
        chemflag: a density for the neighbours of each element, and the components of all triples of
            densities (M. A. Cusentino, M. A. Wood, A. P. Thompson, J. Phys. Chem. A 124, 5456,
            2020), elements by ascending atomic number. Neighbours keep their weights.
        wselfallflag: the 1 of the atom itself is in the density of every element, not of its own.
        bnormflag: divide by 2J + 1.
        sinner, dinner: of each element, Ang: f_c also goes to zero between (s_i + s_j) / 2 plus and
            minus (d_i + d_j) / 2 (LAMMPS: switchinnerflag). Both or none.
        quadraticflag: products of the components follow them: B_1^2 / 2, B_1 B_2, ..., B_2^2 / 2,
            ... (M. A. Wood, A. P. Thompson, J. Chem. Phys. 148, 241721, 2018, eq. 8).

    Raises:
        UnknownElementError: a key that is no chemical element.
        ValueError: a parameter out of range, or of an element without radius.
    """

    kind = "snap"
    name = "bispectrum components"

    def __init__(
        self,
        radii: Mapping[int | str, float],
        weights: Mapping[int | str, float] | None = None,
        twojmax: int = 6,
        rcutfac: float = 4.7,
        rfac0: float = 0.99363,
        rmin0: float = 0.0,
        switchflag: bool = True,
        bzeroflag: bool = True,
        chemflag: bool = False,
        wselfallflag: bool = False,
        bnormflag: bool = False,
        sinner: Mapping[int | str, float] | None = None,
        dinner: Mapping[int | str, float] | None = None,
        quadraticflag: bool = False,
    ):
        self.radii = dict(sorted(_by_number(radii, "radii").items()))
        self.elements = tuple(self.radii)
        if not self.radii:
            raise ValueError("a bispectrum needs the radius of at least one element")
        if int(twojmax) != twojmax or not 0 <= twojmax <= 16:
            raise ValueError(f"twojmax must be an integer from 0 to 16, got {twojmax}")
        self.weights = dict.fromkeys(self.radii, 1.0)
        self.weights |= self._of_elements(weights or {}, "weights")
        self.twojmax = int(twojmax)
        self.rcutfac, self.rfac0, self.rmin0 = float(rcutfac), float(rfac0), float(rmin0)
        self.switchflag, self.bzeroflag = bool(switchflag), bool(bzeroflag)
        self.chemflag, self.wselfallflag = bool(chemflag), bool(wselfallflag)
        self.bnormflag = bool(bnormflag)
        self.quadraticflag = bool(quadraticflag)
        if (sinner is None) != (dinner is None):
            raise ValueError("sinner and dinner must be given together")
        self.sinner = self.dinner = None
        if sinner is not None:
            self.sinner = self._of_elements(sinner, "sinner", complete=True)
            self.dinner = self._of_elements(dinner, "dinner", complete=True)
        for name, values in (("radii", self.radii), ("dinner", self.dinner or {})):
            for z, value in values.items():
                if not value > 0:
                    raise ValueError(f"{name} of {chemical_symbols[z]} must be positive: {value}")
        numbers = (self.rcutfac, self.rfac0, self.rmin0)
        if not all(map(math.isfinite, numbers)) or self.rcutfac <= 0 or not 0 < self.rfac0 <= 1:
            raise ValueError(
                "rcutfac must be positive, rfac0 in (0, 1], rmin0 finite; got"
                f" {self.rcutfac}, {self.rfac0}, {self.rmin0}"
            )
        if not 0 <= self.rmin0 < self.rcutfac * 2 * min(self.radii.values()):
            raise ValueError(f"rmin0 must be from 0 to below the shortest cutoff, got {self.rmin0}")

    def _of_elements(self, values: Mapping, name: str, complete: bool = False) -> dict[int, float]:
        values = _by_number(values, name)
        unknown = set(values) - set(self.radii)
        missing = set(self.radii) - set(values) if complete else set()
        if unknown or missing:
            names = ", ".join(chemical_symbols[z] for z in sorted(unknown or missing))
            what = "names elements without radius" if unknown else "lacks"
            raise ValueError(f"{name} {what}: {names}")
        return dict(sorted(values.items()))

    @property
    def cutoff(self) -> float:
        """Largest distance of a neighbour, Ang."""
        return self.rcutfac * 2 * max(self.radii.values())

    @property
    def n_channels(self) -> int:
        """Densities of an atom."""
        return len(self.elements) if self.chemflag else 1

    @property
    def n_components(self) -> int:
        """Components before their products."""
        return len(components(self.twojmax, self.n_channels))

    @cached_property
    def n_functions(self) -> dict[int, int]:
        """The same number for all elements."""
        n = self.n_components
        return dict.fromkeys(self.elements, n + n * (n + 1) // 2 if self.quadraticflag else n)

    @cached_property
    def channels(self) -> dict[int, int]:
        """Which density a neighbour counts in, by atomic number."""
        return {z: k if self.chemflag else 0 for k, z in enumerate(self.elements)}

    def pair_table(self) -> np.ndarray:
        """R_ij, weight_j, s_ij, d_ij (n_elements, n_elements, 4) by rows of elements i and j."""
        radius, weight = (np.array(list(x.values())) for x in (self.radii, self.weights))
        table = np.zeros((len(radius), len(radius), 4))
        table[..., 0] = self.rcutfac * (radius[:, None] + radius)
        table[..., 1] = weight
        if self.sinner is not None:
            for k, values in ((2, self.sinner), (3, self.dinner)):
                x = np.array(list(values.values()))
                table[..., k] = 0.5 * (x[:, None] + x)
        return table

    def self_terms(self) -> np.ndarray:
        """(n_elements, n_channels) what an atom of each element adds to the densities."""
        if self.wselfallflag or not self.chemflag:
            return np.ones((len(self.elements), self.n_channels))
        return np.eye(len(self.elements))

    def factors(self) -> np.ndarray:
        """(n_components,) what each sum conj(U) Z is multiplied by."""
        parts = components(self.twojmax, self.n_channels)
        return np.array([1 / (b.j + 1) if self.bnormflag else 1.0 for b in parts])

    def isolated(self) -> np.ndarray:
        """(n_elements, n_components) what is subtracted from them: of an atom by itself, or 0."""
        parts, own = components(self.twojmax, self.n_channels), self.self_terms()
        values = [[s[b.a] * s[b.b] * s[b.c] * (b.j + 1) for b in parts] for s in own]
        return np.array(values) * self.factors() * self.bzeroflag

    def to_dict(self) -> dict:
        """Plain numbers and strings, elements by symbol."""
        data = {"kind": self.kind}
        for name in _OF_ELEMENTS:
            values = getattr(self, name)
            data[name] = values and {chemical_symbols[z]: x for z, x in values.items()}
        return data | {name: getattr(self, name) for name in _PLAIN}

    def columns(self, z_i: int, z_j: int) -> list[int]:
        """With chemflag, a component without the density of an element does not depend on it."""
        c = self.channels[z_j]
        parts = components(self.twojmax, self.n_channels)
        linear = [c in (b.a, b.b, b.c) for b in parts]
        if self.quadraticflag:
            linear += [linear[k] or linear[m] for k, m in self.pairs_of_components()]
        return [k for k, depends in enumerate(linear) if depends]

    def pairs_of_components(self) -> list[tuple[int, int]]:
        """The two factors of each product, in the order of the columns."""
        n = self.n_components
        return [(k, m) for k in range(n) for m in range(k, n)]

    def describe(self, z: int, column: int) -> str:
        """The momenta J1, J2, J of a component, and the elements of its densities."""
        parts, n = components(self.twojmax, self.n_channels), self.n_components
        if column >= n:
            k, m = self.pairs_of_components()[column - n]
            return f"{self.describe(z, k)} times {self.describe(z, m)}" + " / 2" * (k == m)
        b = parts[column]
        text = f"B({b.j1 / 2:g}, {b.j2 / 2:g}, {b.j / 2:g})"
        if self.chemflag:
            text += " of " + " ".join(chemical_symbols[self.elements[x]] for x in b[3:])
        return text


_OF_ELEMENTS = ("radii", "weights", "sinner", "dinner")
_PLAIN = (
    "twojmax",
    "rcutfac",
    "rfac0",
    "rmin0",
    "switchflag",
    "bzeroflag",
    "chemflag",
    "wselfallflag",
    "bnormflag",
    "quadraticflag",
)


def _by_number(values: Mapping[int | str, float], name: str) -> dict[int, float]:
    numbers = {atomic_number(key): float(value) for key, value in values.items()}
    for z, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} of {chemical_symbols[z]} must be a finite number: {value}")
    return numbers
