"""Which symmetry functions describe the atoms of each element, and in which column each stands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS
from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.descriptors.protocol import Descriptor

__all__ = ["KINDS", "Kind", "Layout", "SymmetryFunction"]


class Kind(NamedTuple):
    """What sets one kind of symmetry functions apart.

    The term of a neighbour or pair of neighbours, with n distances r_m, has the radial part

        W = prod_m f_c(r_m) exp(-eta [each sum_m u_m^2 + joint (sum_m u_m)^2]),   u_m = r_m - r_s

    and with more than one distance the angular part P = 2^(1-zeta) (1 + lam cos(theta_jik))^zeta.
    """

    name: str  # what to call it in a sentence
    n_distances: int  # 1 for r_ij; 2 for r_ij and r_ik; 3 for these and r_jk
    # whether it sums over all elements, each neighbour weighted by its element
    weighted: bool = False
    each: float = 1.0  # coefficients of the exponent
    joint: float = 0.0  # coefficients of the exponent


KINDS = {
    "G2": Kind("radial", 1),
    "wG2": Kind("weighted radial", 1, weighted=True),
    "G4": Kind("narrow angular", 3),
    "G5": Kind("wide angular", 2),
    "wG4": Kind("weighted narrow angular", 3, weighted=True),
    "wG5": Kind("weighted wide angular", 2, weighted=True),
    # exp(-eta ((r_ij + r_ik)/2 - r_s)^2): J. S. Smith, O. Isayev, A. E. Roitberg, Chem. Sci. 8,
    # 3192 (2017), eq. 4, with lam = +-1 for the angular shifts 0 and pi
    "ANI": Kind("modified angular", 2, each=0.0, joint=0.25),
}


@dataclass(frozen=True)
class SymmetryFunction:
    """One atom-centred symmetry function.

    Raises:
        UnknownElementError: a neighbour that is no chemical element.
        ValueError: a parameter that is out of range or not finite.
    """

    # "G2" radial, "G4" narrow angular (with the distance r_jk), "G5" wide angular, "ANI" wide with
    # a Gaussian of the mean of r_ij and r_ik about r_s; with a leading "w" the weighted variant
    # (Gastegger et al., J. Chem. Phys. 148, 241709, 2018), which sums over all elements, each
    # neighbour weighted by `weights`, a pair by the product of two.
    kind: str
    # atomic numbers (or symbols) of the neighbours: one for G2, two for G4, G5 and ANI, none for
    # the weighted kinds; kept as numbers, ascending
    neighbors: tuple[int, ...]
    cutoff: float  # radius beyond which a neighbour does not count, Ang
    eta: float  # width of the Gaussian, 1/Ang^2
    r_s: float = 0.0  # shift of the Gaussian, Ang
    zeta: float = 1.0  # angular exponent (angular kinds)
    lam: float = 1.0  # +1 or -1, the angle at which the angular part is largest is 0 or 180 degrees
    cutoff_fn: str = "cosine"  # name of a function in `acsf.cutoffs`
    # element weights of the weighted kinds, a mapping of symbols or atomic numbers, kept as pairs
    # (atomic number, weight), ascending, without zeros; what is not named has the weight zero.
    # Empty: the atomic number.
    weights: tuple[tuple[int, float], ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown symmetry function kind {self.kind!r}; choose from {(*KINDS,)}"
            )
        kind = KINDS[self.kind]
        n_expected = 0 if kind.weighted else min(kind.n_distances, 2)
        neighbors = tuple(sorted(map(atomic_number, self.neighbors)))
        if len(neighbors) != n_expected:
            raise ValueError(
                f"{self.kind} takes {n_expected} neighbour element(s), got {self.neighbors}"
            )
        object.__setattr__(self, "neighbors", neighbors)
        for name in ("cutoff", "eta", "r_s", "zeta", "lam"):
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
            object.__setattr__(self, name, value)
        if self.cutoff_fn not in CUTOFFS:
            raise ValueError(
                f"unknown cutoff function {self.cutoff_fn!r}; choose from {sorted(CUTOFFS)}"
            )
        if self.eta < 0:
            raise ValueError(f"eta must not be negative, got {self.eta}")
        if not self.cutoff > 0:
            raise ValueError(f"cutoff must be positive, got {self.cutoff}")
        if kind.n_distances > 1 and self.lam not in (-1.0, 1.0):
            raise ValueError(f"lam must be +1 or -1, got {self.lam}")
        if kind.n_distances > 1 and self.zeta < 1.0:
            # below 1 the derivative diverges where 1 + lam cos(theta) vanishes
            raise ValueError(f"zeta must be at least 1, got {self.zeta}")
        object.__setattr__(self, "weights", _weights(self.weights))
        if self.weights and not kind.weighted:
            raise ValueError(f"{self.kind} takes no element weights; w{self.kind} does")

    @property
    def weight_of(self) -> np.ndarray:
        """(119,) weight of a neighbour by atomic number, of the weighted kinds."""
        if not self.weights:
            return np.arange(len(chemical_symbols), dtype=np.float64)
        table = np.zeros(len(chemical_symbols))
        for z, weight in self.weights:
            table[z] = weight
        return table

    def depends_on(self, z: int) -> bool:
        """Whether neighbours of element `z` count."""
        return z in self.neighbors if self.neighbors else bool(self.weight_of[z])

    def to_dict(self) -> dict:
        """Plain numbers and strings, the arguments; weights by symbol where they are given."""
        data = dict(vars(self))  # dataclasses.asdict would copy each pair of the weights
        del data["weights"]  # what was written before there were weights stays as it was
        if self.weights:
            data["weights"] = {chemical_symbols[z]: weight for z, weight in self.weights}
        return data

    def __str__(self):
        names = " ".join(chemical_symbols[z] for z in self.neighbors) or "*"
        text = f"{self.kind:4s}{names:6s} eta={self.eta:<9.4g} r_s={self.r_s:<7.4g}"
        if KINDS[self.kind].n_distances > 1:
            text += f" zeta={self.zeta:<5g} lam={self.lam:+g}"
        text += f" r_c={self.cutoff:g} {self.cutoff_fn}"
        if self.weights:
            text += " weights " + " ".join(f"{chemical_symbols[z]}={w:g}" for z, w in self.weights)
        return text


def _weights(weights) -> tuple[tuple[int, float], ...]:
    items = weights.items() if isinstance(weights, Mapping) else weights or ()
    return _checked_weights(tuple(map(tuple, items)))


@lru_cache  # many functions have the same
def _checked_weights(items: tuple[tuple[Any, float], ...]) -> tuple[tuple[int, float], ...]:
    table = {atomic_number(element): float(weight) for element, weight in items}
    for z, weight in table.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {chemical_symbols[z]} is not finite: {weight}")
    if table and not any(table.values()):
        raise ValueError("all element weights are zero")
    return tuple(sorted((z, weight) for z, weight in table.items() if weight))


class Layout(Descriptor):
    """Symmetry functions per element; the order is the order of the columns.

    Elements may have different numbers of functions; the descriptor matrix is padded with zeros on
    the right to `n_columns`, the largest number.

    Args:
        functions: symmetry functions of each central element, by atomic number or symbol.

    Raises:
        UnknownElementError: a key that is no chemical element.
        ValueError: an element without functions, or with one of them twice.
    """

    kind = "acsf"
    name = "symmetry functions"

    def __init__(self, functions: Mapping[int | str, Iterable[SymmetryFunction]]):
        numbers = {atomic_number(key): tuple(value) for key, value in functions.items()}
        self.functions: dict[int, tuple[SymmetryFunction, ...]] = dict(sorted(numbers.items()))
        if not self.functions:
            raise ValueError("a layout needs at least one element")
        for number, values in self.functions.items():
            if not values:
                raise ValueError(f"{chemical_symbols[number]} has no symmetry functions")
            if len(set(values)) != len(values):
                raise ValueError(f"{chemical_symbols[number]} has a symmetry function twice")

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers of the central elements, ascending."""
        return tuple(self.functions)

    @cached_property
    def n_functions(self) -> dict[int, int]:
        """Number of functions (used columns) of each element."""
        return {number: len(values) for number, values in self.functions.items()}

    @property
    def cutoff(self) -> float:
        """Largest cutoff of all functions, Ang: what a neighbour list needs."""
        return max(f.cutoff for values in self.functions.values() for f in values)

    def to_dict(self) -> dict:
        """Plain numbers and strings, fit for JSON; `from_dict` reads it back."""
        functions = {
            chemical_symbols[number]: [f.to_dict() for f in values]
            for number, values in self.functions.items()
        }
        return {"kind": self.kind, "functions": functions}

    @classmethod
    def from_dict(cls, data: Mapping) -> Layout:
        """Read what `to_dict` wrote; neighbours may also be given as chemical symbols.

        Lists of functions by element will do, as a config has them.
        """
        return cls(
            {
                key: [SymmetryFunction(**{"neighbors": (), **entry}) for entry in values]
                for key, values in data.get("functions", data).items()
            }
        )

    def columns(self, z_i: int, z_j: int) -> list[int]:
        """A function of one neighbour element does not change with atoms of another."""
        return [k for k, f in enumerate(self.functions[z_i]) if f.depends_on(z_j)]

    def select(self, columns: Mapping[int, Sequence[int]]) -> Layout:
        """Some of the functions of each element."""
        return Layout({z: [self.functions[z][k] for k in columns[z]] for z in self.elements})

    def describe(self, z: int, column: int) -> str:
        """Kind and parameters of a function."""
        return str(self.functions[z][column])

    def summary(self) -> str:
        """How many functions of which kind each element has, with the ranges of parameters."""
        lines = []
        for number, values in self.functions.items():
            lines.append(f"{chemical_symbols[number]}: {len(values)} symmetry functions")
            for kind in KINDS:
                chosen = [f for f in values if f.kind == kind]
                if chosen:
                    lines.append(f"  {len(chosen):4d} {kind:4s}" + _ranges(chosen))
        return "\n".join(lines)


def _ranges(functions: list[SymmetryFunction]) -> str:
    zeta = ("zeta",) if KINDS[functions[0].kind].n_distances > 1 else ()
    names = ("eta", "r_s", *zeta, "cutoff")
    text = ""
    for name in names:
        values = [getattr(f, name) for f in functions]
        low, high = f"{min(values):.4g}", f"{max(values):.4g}"
        text += f" {'r_c' if name == 'cutoff' else name} {low if low == high else f'{low}..{high}'}"
    return text
