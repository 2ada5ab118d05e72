"""What the files of an n2p2 (or RuNNer) potential can say, and the record of one potential.

A. Singraber, J. Behler, C. Dellago, J. Chem. Theory Comput. 15, 1827 (2019). A potential is a
folder with `input.nn` (keywords), `scaling.data` (statistics of the symmetry functions) and one
`weights.ZZZ.data` for each element of atomic number ZZZ.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.acsf.layout import SymmetryFunction

__all__ = [
    "ACTIVATIONS",
    "CUTOFF_TYPES",
    "FUNCTION_TYPES",
    "REFUSED",
    "SCALING_KEYWORDS",
    "ElementData",
    "N2P2FormatError",
    "N2P2Potential",
    "column_order",
]


class N2P2FormatError(ValueError):
    """The files of a potential are broken, or say something this plugin cannot express."""


class FunctionType(NamedTuple):
    """A kind of function in lines `symfunction_short <centre> <number> <neighbours> <arguments>`.

    A shift `r_s` that comes last may be left out; older n2p2 and RuNNer do not know it there.
    """

    number: int
    n_neighbors: int
    #: fields of `SymmetryFunction`
    arguments: tuple[str, ...]


FUNCTION_TYPES = {
    "G2": FunctionType(2, 1, ("eta", "r_s", "cutoff")),
    "G4": FunctionType(3, 2, ("eta", "lam", "zeta", "cutoff", "r_s")),
    "G5": FunctionType(9, 2, ("eta", "lam", "zeta", "cutoff", "r_s")),
    "wG2": FunctionType(12, 0, ("eta", "r_s", "cutoff")),
    "wG4": FunctionType(13, 0, ("eta", "r_s", "lam", "zeta", "cutoff")),
}

CUTOFF_TYPES = {"cosine": 1, "tanh3": 2, "exp": 4, "poly1": 5, "poly2": 6, "poly3": 7, "poly4": 8}

#: letter of each activation of the hidden layers
ACTIVATIONS = {
    "identity": "l",
    "tanh": "t",
    "sigmoid": "s",
    "softplus": "p",
    "gaussian": "g",
    "cos": "c",
}

#: keywords of each scaling mode of `descriptors.scaling`
SCALING_KEYWORDS = {
    "none": (),
    "center": ("center_symmetry_functions",),
    "scale": ("scale_symmetry_functions",),
    "scale_center": ("scale_symmetry_functions", "center_symmetry_functions"),
    "sigma": ("scale_symmetry_functions_sigma",),
}

#: why other types and letters cannot be expressed
REFUSED = {
    "symmetry function type": {
        **dict.fromkeys(
            range(20, 26),
            "the polynomial symmetry functions with compact support are not implemented",
        ),
        4: "angular histogram functions are not implemented",
        5: "functions of the absolute position are no descriptors of an environment",
        6: "functions of a single distance are not implemented",
    },
    "cutoff_type": {
        0: "a hard cutoff makes energies jump when a neighbour passes it",
        3: "the normalised tanh^3 cutoff is not implemented (type 2 is)",
    },
    "activation": {
        "r": "forces of a ReLU network jump",
        "e": "the exponential activation is not implemented",
        "h": "the harmonic activation is not implemented",
    },
}


@dataclass
class ElementData:
    """The part of a potential that belongs to one element; D functions, layers of widths n_l."""

    functions: list[SymmetryFunction]  # symmetry functions in n2p2's order (`column_order`)
    # (D, 4) minimum, maximum, mean, sigma of each function over the training atoms; None when there
    # is no scaling.data
    statistics: np.ndarray | None
    weights: list[np.ndarray]  # one (n_in, n_out) array per layer
    biases: list[np.ndarray]  # one (n_out,) array per layer
    offset: float = 0.0  # energy per atom that is added to the network's, eV


@dataclass
class N2P2Potential:
    """A potential, E = sum_i [energy_scale NN_Z(i)(G_i) + offset_Z(i)], in Ang and eV."""

    elements: dict[int, ElementData]  # data by atomic number, ascending
    # name in `ACTIVATIONS` of each hidden layer; the output layer is linear
    activations: tuple[str, ...]
    energy_scale: float = 1.0  # eV for a network output of 1
    scaling: str = "none"  # mode as in `descriptors.scaling`
    # (minimum, maximum) that the scaling aims at, n2p2's Smin and Smax
    scale_range: tuple[float, float] = (0.0, 1.0)


def column_order(function: SymmetryFunction) -> tuple:
    """Sort key of the functions of one element: n2p2's order, that of scaling.data and weights.

    Functions are ordered by type, cutoff radius, eta, shift, zeta, lambda and the neighbours'
    elements, whatever their order in input.nn.
    """
    f = function
    return FUNCTION_TYPES[f.kind].number, f.cutoff, f.eta, f.r_s, f.zeta, f.lam, f.neighbors
