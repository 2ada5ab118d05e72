"""Our models as n2p2 potentials and back: the way into LAMMPS, and the safe way to share a model.

A saved model (`best_model`) is a pickle, which can run any code when it is loaded; an n2p2
potential is text that cannot.
"""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import nn

from schnetpack_softadapt.deploy.exchange.lammps import write_lammps
from schnetpack_softadapt.deploy.exchange.models import made_model, made_networks, refuse_fading
from schnetpack_softadapt.deploy.exchange.n2p2.format import (
    ACTIVATIONS,
    FUNCTION_TYPES,
    ElementData,
    N2P2FormatError,
    N2P2Potential,
    column_order,
)
from schnetpack_softadapt.deploy.exchange.n2p2.read import read_files
from schnetpack_softadapt.deploy.exchange.n2p2.write import write_files
from schnetpack_softadapt.descriptors.acsf.layout import KINDS, Layout
from schnetpack_softadapt.model import ACSF, DescriptorPotential
from schnetpack_softadapt.model.composition import UnsupportedModelError, take_apart

__all__ = ["from_model", "read_potential", "to_model", "write_potential"]

_STATISTICS = ("minimum", "maximum", "mean", "sigma")  # columns of scaling.data


def read_potential(
    folder: str | Path, length_unit: str | None = None, energy_unit: str | None = None
) -> DescriptorPotential:
    """A model (float64, energies, forces and stress in ASE units) from an n2p2 or RuNNer potential.

    Arguments and errors are those of `read.read_files`.
    """
    return to_model(read_files(folder, length_unit, energy_unit))


def write_potential(
    model: nn.Module, folder: str | Path, structure: Atoms | None = None
) -> list[Path]:
    """Write a model as an n2p2 potential in Ang and eV, with a LAMMPS input and a README.

    Returns:
        The files written; those of an earlier potential in the folder are replaced.

    Raises:
        ValueError: the model cannot be expressed in n2p2's files; with the reason.
    """
    potential = from_model(model)
    files = write_files(potential, folder)
    cutoff = model.representation.cutoff
    symbols = [chemical_symbols[number] for number in potential.elements]
    return files + write_lammps(folder, symbols, cutoff, structure)


def to_model(potential: N2P2Potential) -> DescriptorPotential:
    """The model that gives the potential's energies."""
    elements = {chemical_symbols[z]: data for z, data in potential.elements.items()}
    layout = Layout({symbol: data.functions for symbol, data in elements.items()})
    widths = [[len(bias) for bias in data.biases[:-1]] for data in elements.values()]
    networks = made_networks(
        {symbol: len(data.functions) for symbol, data in elements.items()},
        {symbol: data.offset for symbol, data in elements.items()},
        n_hidden=[max(column) for column in zip(*widths, strict=True)],
    )
    networks.activations = potential.activations
    representation = ACSF(layout=layout, scaling=potential.scaling)
    model = made_model(representation, networks, "read from an n2p2 potential")
    networks.scale.fill_(potential.energy_scale)
    scaling = representation.scaling
    for row, (symbol, data) in enumerate(elements.items()):
        # elements with narrower layers keep neurons without effect
        stacks = [*networks.weights, *networks.biases]
        for stack, own in zip(stacks, [*data.weights, *data.biases], strict=True):
            own = torch.from_numpy(np.atleast_2d(own))
            with torch.no_grad():
                stack[row] = 0.0
                stack[row, : own.shape[0], : own.shape[1]] = own
        n = len(data.functions)
        if data.statistics is not None:
            for column, name in enumerate(_STATISTICS):
                getattr(scaling, name)[row, :n] = torch.from_numpy(data.statistics[:, column])
            scaling.n_atoms[row] = 1  # the file does not tell how many
        shift, factor = _affine(
            potential.scaling, potential.scale_range, data.statistics, n, symbol
        )
        scaling.shift[row, :n] = torch.from_numpy(shift)
        scaling.factor[row, :n] = torch.from_numpy(factor)
    return model


def _affine(
    mode: str,
    scale_range: tuple[float, float],
    statistics: np.ndarray | None,
    n: int,
    symbol: str,
) -> tuple[np.ndarray, np.ndarray]:
    """shift and factor (n,) of n2p2's scaled = (G - shift) factor."""
    if mode == "none":
        return np.zeros(n), np.ones(n)
    low, high, mean, sigma = statistics.T
    if mode == "center":
        return mean, np.ones(n)
    width = sigma if mode == "sigma" else high - low
    bad = ~(np.isfinite(width) & (width > 0))
    if bad.any():
        raise N2P2FormatError(
            f"scaling.data: function {int(np.argmax(bad)) + 1} of {symbol} has no spread, n2p2"
            " itself would divide by zero; remove the function and retrain"
        )
    smin, smax = scale_range
    factor = (smax - smin) / width
    return (low if mode == "scale" else mean) - smin / factor, factor


def from_model(model: nn.Module, with_overlay: bool = False) -> N2P2Potential:
    """The n2p2 potential that gives the model's energies.

    Args:
        with_overlay: the caller adds a baseline that LAMMPS has a pair style for.

    Raises:
        UnsupportedModelError: the model is no sum of networks of symmetry functions.
        N2P2FormatError: it has functions or activations that n2p2 does not know.
    """
    composition = take_apart(model, short_range=with_overlay)
    networks, scaling = composition.networks, composition.scaling
    refuse_fading(composition, "hdnnp")
    if composition.baseline is not None and not hasattr(composition.baseline, "lammps"):
        raise UnsupportedModelError(
            f"LAMMPS has no pair style for the baseline {composition.baseline.to_dict()}"
        )
    layout = composition.descriptor
    if layout.kind != Layout.kind:
        raise UnsupportedModelError(f"n2p2 has no descriptor of the kind {layout.kind!r}")
    if networks.n_hidden == ():
        raise N2P2FormatError("n2p2 needs at least one hidden layer")
    for name in networks.activations:
        if name not in ACTIVATIONS:
            raise N2P2FormatError(
                f"n2p2 has no activation {name!r}; train with one of {list(ACTIVATIONS)}"
            )
    # an unfitted scaling changes nothing, whatever its mode
    mode = scaling.mode if scaling.is_fitted else "none"
    mode = "sigma" if mode == "spread" else mode  # n2p2 has none without a shift
    elements = {}
    for row, (number, functions) in enumerate(layout.functions.items()):
        for f in functions:
            if f.kind not in FUNCTION_TYPES:
                raise N2P2FormatError(f"n2p2 has no {KINDS[f.kind].name} function ({f.kind})")
            if f.weights:
                raise N2P2FormatError(
                    f"n2p2's weighted functions ({f.kind}) weigh neighbours by their atomic number;"
                    " this model has element weights of its own (channels)"
                )
        order = sorted(range(len(functions)), key=lambda k: column_order(functions[k]))
        own_shift, own_factor, *columns = (
            _numpy(getattr(scaling, name)[row])[order] for name in ("shift", "factor", *_STATISTICS)
        )
        statistics = _usable_statistics(np.stack(columns, axis=1), scaling.is_fitted)
        weights = [_numpy(w[row]) for w in networks.weights]
        biases = [_numpy(b[row, 0]) for b in networks.biases]
        # our scaled columns are an affine function of n2p2's: x = ratio x_n2p2 + rest
        symbol = chemical_symbols[number]
        shift, factor = _affine(mode, (0.0, 1.0), statistics, len(functions), symbol)
        first = weights[0][order]
        weights[0] = (own_factor / factor)[:, None] * first
        biases[0] = biases[0] + (own_factor * (shift - own_shift)) @ first
        elements[number] = ElementData(
            [functions[k] for k in order],
            statistics,
            weights,
            biases,
            float(composition.offsets[number]),
        )
    return N2P2Potential(elements, networks.activations, float(networks.scale), scaling=mode)


def _usable_statistics(table: np.ndarray, is_fitted: bool) -> np.ndarray:
    """(D, 4) statistics from which n2p2 gets a finite scaling factor.

    A function that was constant in training has no spread; n2p2 would divide by zero. It gets a
    spread far below what could matter, and the weights are scaled with it.
    """
    if not is_fitted:  # no range is known: n2p2 shall not take everything for an extrapolation
        table[:] = (-1e30, 1e30, 0.0, 1.0)
    tiny = 1e-6 * np.maximum(np.abs(table[:, 2]), 1e-6)
    constant = table[:, 1] <= table[:, 0]
    table[constant, 1] = table[constant, 0] + tiny[constant]
    constant = table[:, 3] <= 0
    table[constant, 3] = tiny[constant]
    return table


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy().copy()
