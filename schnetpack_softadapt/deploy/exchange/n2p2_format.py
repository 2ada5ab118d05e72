"""What the files of an n2p2 (or RuNNer) potential say, as plain data in the files' own units.

A. Singraber, J. Behler, C. Dellago, J. Chem. Theory Comput. 15, 1827 (2019). A potential is a
folder with `input.nn` (keywords), `scaling.data` (statistics of the symmetry functions) and one
`weights.ZZZ.data` for each element of atomic number ZZZ.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from ase import units

from schnetpack_softadapt.descriptors.acsf.layout import SymmetryFunction

__all__ = [
    "ACTIVATION_LETTERS",
    "CUTOFFS_WITH_ALPHA",
    "CUTOFF_TYPES",
    "ENERGY_UNITS",
    "FUNCTION_TYPES",
    "LENGTH_UNITS",
    "REFUSED_ACTIVATIONS",
    "REFUSED_CUTOFF_TYPES",
    "REFUSED_FUNCTION_TYPES",
    "SCALING_KEYWORDS",
    "ElementData",
    "N2P2FormatError",
    "N2P2Potential",
    "column_order",
    "convert_length",
    "finite",
    "resolve_unit",
]


class N2P2FormatError(ValueError):
    """The files of a potential are broken, or say something this plugin cannot express."""


#: `symfunction_short` type of each kind
FUNCTION_TYPES = {"G2": 2, "G4": 3, "G5": 9, "wG2": 12, "wG4": 13}
REFUSED_FUNCTION_TYPES = {
    **dict.fromkeys(
        range(20, 26), "the polynomial symmetry functions with compact support are not implemented"
    ),
    4: "angular histogram functions are not implemented",
    5: "functions of the absolute position are no descriptors of an environment",
    6: "functions of a single distance are not implemented",
}

CUTOFF_TYPES = {"cosine": 1, "tanh3": 2, "exp": 4, "poly1": 5, "poly2": 6, "poly3": 7, "poly4": 8}
REFUSED_CUTOFF_TYPES = {
    0: "a hard cutoff makes energies jump when a neighbour passes it",
    3: "the normalised tanh^3 cutoff is not implemented (type 2 is)",
}
#: cutoff types that n2p2 gives an inner radius, `cutoff_type <type> <alpha>`
CUTOFFS_WITH_ALPHA = (1, 4, 5, 6, 7, 8)

ACTIVATION_LETTERS = {
    "identity": "l",
    "tanh": "t",
    "sigmoid": "s",
    "softplus": "p",
    "gaussian": "g",
    "cos": "c",
}
REFUSED_ACTIVATIONS = {
    "r": "forces of a ReLU network jump",
    "e": "the exponential activation is not implemented",
    "h": "the harmonic activation is not implemented",
}

#: keywords of each scaling mode of `descriptors.scaling`
SCALING_KEYWORDS = {
    "none": (),
    "center": ("center_symmetry_functions",),
    "scale": ("scale_symmetry_functions",),
    "scale_center": ("scale_symmetry_functions", "center_symmetry_functions"),
    "sigma": ("scale_symmetry_functions_sigma",),
}

#: size of the units in Ang and eV
LENGTH_UNITS = {"Ang": units.Angstrom, "Bohr": units.Bohr, "nm": units.nm}
ENERGY_UNITS = {
    "eV": units.eV,
    "Ha": units.Hartree,
    "Ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}
_UNIT_ALIASES = {
    "angstrom": "Ang",
    "ang": "Ang",
    "a": "Ang",
    "bohr": "Bohr",
    "au": "Bohr",
    "nm": "nm",
    "ev": "eV",
    "ha": "Ha",
    "hartree": "Ha",
    "ry": "Ry",
    "rydberg": "Ry",
    "kcal/mol": "kcal/mol",
    "kj/mol": "kJ/mol",
}


def finite(word: str) -> float:
    """The number that a word of a file says.

    Raises:
        ValueError: it is none, or nan or infinite.
    """
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word!r} is not a finite number")
    return value


def resolve_unit(name: str, known: dict[str, float]) -> str:
    """The name of a unit in `known`, however it is spelled.

    Raises:
        ValueError: a name that is not known.
    """
    unit = _UNIT_ALIASES.get(name.strip().strip(".").lower())
    if unit not in known:
        raise ValueError(f"unknown unit {name!r}; choose from {list(known)}")
    return unit


@dataclass
class ElementData:
    """The part of a potential that belongs to one element; D functions, layers of widths n_l.

    Attributes:
        functions: symmetry functions in n2p2's order (`column_order`), lengths in the files' unit.
        statistics: (D, 4) minimum, maximum, mean, sigma of each function over the training atoms;
            None when there is no scaling.data.
        weights: one (n_in, n_out) array per layer.
        biases: one (n_out,) array per layer.
        atom_energy: offset of the energy per atom, in the files' unit.
    """

    functions: list[SymmetryFunction]
    statistics: np.ndarray | None
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    atom_energy: float = 0.0


@dataclass
class N2P2Potential:
    """A potential as its files describe it; everything in the files' units.

    E = sum_i NN_Z(i)(G_i) / conv_energy + n_atoms mean_energy + sum_i atom_energy_Z(i)

    Attributes:
        elements: data by atomic number, ascending.
        scaling: mode as in `descriptors.scaling`.
        scale_range: (minimum, maximum) that the scaling aims at, n2p2's Smin and Smax.
        activations: one letter per hidden layer; the output layer is linear.
        mean_energy: subtracted from the training energies per atom, after the atom energies.
        conv_energy: energies were multiplied by it before training.
        normalize_nodes: whether each layer's input is divided by its number of inputs; the weights
            and biases above are as in the file, not divided.
        length_unit: name in `LENGTH_UNITS`.
        energy_unit: name in `ENERGY_UNITS`.
        units_stated: whether the files (or the caller) named the units.
    """

    elements: dict[int, ElementData]
    scaling: str = "none"
    scale_range: tuple[float, float] = (0.0, 1.0)
    activations: tuple[str, ...] = ()
    mean_energy: float = 0.0
    conv_energy: float = 1.0
    normalize_nodes: bool = False
    length_unit: str = "Bohr"
    energy_unit: str = "Ha"
    units_stated: bool = True


def column_order(function: SymmetryFunction) -> tuple:
    """Sort key of the functions of one element: n2p2's order, that of scaling.data and weights.

    Functions are ordered by type, cutoff radius, eta, shift, zeta, lambda and the neighbours'
    elements, whatever their order in input.nn.
    """
    return (
        FUNCTION_TYPES[function.kind],
        function.cutoff,
        function.eta,
        function.r_s,
        function.zeta,
        function.lam,
        function.neighbors,
    )


def convert_length(function: SymmetryFunction, factor: float) -> SymmetryFunction:
    """The same function with lengths multiplied by `factor` (and eta divided by its square)."""
    if factor == 1.0:
        return function
    return dataclasses.replace(
        function,
        cutoff=function.cutoff * factor,
        r_s=function.r_s * factor,
        eta=function.eta / factor**2,
    )
