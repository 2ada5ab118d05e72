"""Our models as n2p2 potentials and back: the way into LAMMPS, and the safe way to share a model.

A saved model (`best_model`) is a pickle, which can run any code when it is loaded; an n2p2
potential is text that cannot.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from schnetpack.atomistic import PairwiseDistances, Strain
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.deploy.exchange.lammps import write_lammps
from schnetpack_softadapt.deploy.exchange.n2p2_format import (
    ACTIVATION_LETTERS,
    ENERGY_UNITS,
    FUNCTION_TYPES,
    LENGTH_UNITS,
    ElementData,
    N2P2FormatError,
    N2P2Potential,
    column_order,
    convert_length,
)
from schnetpack_softadapt.deploy.exchange.n2p2_read import read_files
from schnetpack_softadapt.deploy.exchange.n2p2_write import write_files
from schnetpack_softadapt.deploy.parts import model_parts
from schnetpack_softadapt.descriptors.acsf.layout import KINDS, Layout
from schnetpack_softadapt.model import ACSF, ACSFPotential, ElementalAtomwise, ForcesAndStress

_STATISTICS = ("minimum", "maximum", "mean", "sigma")  # columns of scaling.data

__all__ = ["from_model", "read_potential", "to_model", "write_potential"]


def read_potential(
    folder: str | Path, length_unit: str | None = None, energy_unit: str | None = None
) -> ACSFPotential:
    """A model (float64, energies, forces and stress in ASE units) from an n2p2 or RuNNer potential.

    Args:
        folder: holds input.nn, scaling.data and weights.ZZZ.data.
        length_unit: unit of the files, "Ang" or "Bohr"; when not given, what a comment such as
            `# Length unit : Bohr` in input.nn states, else Bohr with a warning.
        energy_unit: the same for energies; "eV", "Ha" and others, else Ha with a warning.

    Raises:
        FileNotFoundError: a file is missing.
        N2P2FormatError: a file is broken or says what our models cannot express; with the reason.
    """
    potential = read_files(folder, length_unit, energy_unit)
    if not potential.units_stated:
        warnings.warn(
            f"{folder}: the units of the files are not stated; taking them to be in"
            f" {potential.length_unit} and {potential.energy_unit}. Give length_unit and"
            " energy_unit to be sure.",
            stacklevel=2,
        )
    return to_model(potential)


def write_potential(
    model: nn.Module, folder: str | Path, structure: Atoms | None = None
) -> list[Path]:
    """Write a model as an n2p2 potential in Ang and eV, with a LAMMPS input and a README.

    Args:
        model: one of our models (`ACSF` representation, `ElementalAtomwise` networks).
        folder: made if it does not exist; files of an earlier potential are replaced.
        structure: what the LAMMPS input simulates, see `lammps.write_lammps`.

    Returns:
        The files written.

    Raises:
        ValueError: the model cannot be expressed in n2p2's files; with the reason.
    """
    potential = from_model(model)
    files = write_files(potential, folder)
    cutoff = model.representation.layout.cutoff
    symbols = [chemical_symbols[number] for number in potential.elements]
    return files + write_lammps(folder, symbols, cutoff, structure)


def to_model(potential: N2P2Potential) -> ACSFPotential:
    """The model that gives the potential's energies, in ASE units."""
    length, energy = LENGTH_UNITS[potential.length_unit], ENERGY_UNITS[potential.energy_unit]
    layout = Layout(
        {
            number: [convert_length(f, length) for f in data.functions]
            for number, data in potential.elements.items()
        }
    )
    names = {letter: name for name, letter in ACTIVATION_LETTERS.items()} | {"S": "sigmoid"}
    widths = [[len(bias) for bias in data.biases[:-1]] for data in potential.elements.values()]
    hidden = [max(column) for column in zip(*widths, strict=True)]
    symbols = [chemical_symbols[number] for number in layout.elements]
    # both offsets are energies per atom
    offsets = [
        energy * (data.atom_energy + potential.mean_energy) for data in potential.elements.values()
    ]
    networks = ElementalAtomwise(
        n_in={s: layout.n_functions[z] for s, z in zip(symbols, layout.elements, strict=True)},
        elements=symbols,
        n_hidden=hidden,
        per_atom_output_key=keys.atomic_energies,
        fit_shifts=False,
        shifts=dict(zip(symbols, offsets, strict=True)),
        fit_scale=False,
    )
    networks.activations = tuple(names[letter] for letter in potential.activations)
    model = ACSFPotential(
        representation=ACSF(layout=layout, scaling=potential.scaling),
        input_modules=[Strain(), PairwiseDistances()],
        output_modules=[networks, ForcesAndStress(calc_forces=True, calc_stress=True)],
        input_dtype_str="float64",
    ).double()
    networks.scale = torch.tensor(energy / potential.conv_energy, dtype=torch.float64)
    _set_weights(networks, potential)
    _set_scaling(model.representation.scaling, potential)
    model.metadata.update(
        units={"energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang/Ang/Ang", "length": "Ang"},
        elements=symbols,
        layout=layout.to_dict(),
        provenance="read from an n2p2 potential",
    )
    return model.eval()


def _set_weights(networks: ElementalAtomwise, potential: N2P2Potential) -> None:
    """Fill the stacked weights; elements with narrower layers get neurons without effect."""
    with torch.no_grad():
        for parameter in (*networks.weights, *networks.biases):
            parameter.zero_()
        for row, data in enumerate(potential.elements.values()):
            for layer, (weight, bias) in enumerate(zip(data.weights, data.biases, strict=True)):
                n_in, n_out = weight.shape
                factor = 1.0 / n_in if potential.normalize_nodes else 1.0
                if layer < len(potential.activations) and potential.activations[layer] == "S":
                    factor = -factor  # 1 - sigmoid(x) = sigmoid(-x)
                networks.weights[layer][row, :n_in, :n_out] = torch.from_numpy(weight * factor)
                networks.biases[layer][row, 0, :n_out] = torch.from_numpy(bias * factor)


def _set_scaling(scaling: nn.Module, potential: N2P2Potential) -> None:
    """Statistics, shift and factor of every column as n2p2 uses them."""
    low, high = potential.scale_range
    for row, (number, data) in enumerate(potential.elements.items()):
        n = len(data.functions)
        if data.statistics is not None:
            for column, name in enumerate(_STATISTICS):
                getattr(scaling, name)[row, :n] = torch.from_numpy(data.statistics[:, column])
            scaling.n_atoms[row] = 1  # the file does not tell how many
        shift, factor = _affine(potential.scaling, data.statistics, n, number)
        if potential.scaling not in ("none", "center"):
            factor = factor * (high - low)
            shift = shift - low / factor
        scaling.shift[row, :n] = torch.from_numpy(shift)
        scaling.factor[row, :n] = torch.from_numpy(factor)


def _affine(
    mode: str, statistics: np.ndarray | None, n: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """shift and factor (n,) of n2p2's scaled = (G - shift) factor, for Smin = 0 and Smax = 1."""
    if mode == "none":
        return np.zeros(n), np.ones(n)
    low, high, mean, sigma = statistics.T
    if mode == "center":
        return mean, np.ones(n)
    width = sigma if mode == "sigma" else high - low
    bad = ~(np.isfinite(width) & (width > 0))
    if bad.any():
        raise N2P2FormatError(
            f"scaling.data: function {int(np.argmax(bad)) + 1} of {chemical_symbols[number]} has no"
            " spread, n2p2 itself would divide by zero; remove the function and retrain"
        )
    return (low if mode == "scale" else mean), 1.0 / width


def from_model(model: nn.Module) -> N2P2Potential:
    """The n2p2 potential, in Ang and eV, that gives the model's energies.

    Raises:
        UnsupportedModelError: the model is no sum of networks of symmetry functions.
        N2P2FormatError: it has functions or activations that n2p2 does not know.
    """
    parts = model_parts(model)
    networks, layout, scaling = parts.networks, parts.layout, parts.scaling
    if networks.n_hidden == ():
        raise N2P2FormatError("n2p2 needs at least one hidden layer")
    for name in networks.activations:
        if name not in ACTIVATION_LETTERS:
            raise N2P2FormatError(
                f"n2p2 has no activation {name!r}; train with one of {list(ACTIVATION_LETTERS)}"
            )
    # an unfitted scaling changes nothing, whatever its mode
    mode = scaling.mode if scaling.is_fitted else "none"
    elements = {}
    for row, (number, functions) in enumerate(layout.functions.items()):
        for f in functions:
            if f.kind not in FUNCTION_TYPES:
                raise N2P2FormatError(f"n2p2 has no {KINDS[f.kind].name} function ({f.kind})")
        order = np.array(sorted(range(len(functions)), key=lambda k: column_order(functions[k])))
        buffers = {
            name: getattr(scaling, name)[row].detach().cpu().double().numpy()[order]
            for name in ("shift", "factor", *_STATISTICS)
        }
        statistics = _usable_statistics(buffers, scaling.is_fitted)
        weights = [_numpy(w[row]) for w in networks.weights]
        biases = [_numpy(b[row, 0]) for b in networks.biases]
        # our scaled columns are an affine function of n2p2's: x = ratio x_n2p2 + rest
        shift, factor = _affine(mode, statistics, len(functions), number)
        ratio = buffers["factor"] / factor
        rest = buffers["factor"] * (shift - buffers["shift"])
        first = weights[0][order]
        weights[0] = ratio[:, None] * first
        biases[0] = biases[0] + rest @ first
        scale = float(networks.scale)
        weights[-1], biases[-1] = weights[-1] * scale, biases[-1] * scale
        elements[number] = ElementData(
            [functions[k] for k in order], statistics, weights, biases, float(parts.offsets[number])
        )
    return N2P2Potential(
        elements=elements,
        scaling=mode,
        activations=tuple(ACTIVATION_LETTERS[name] for name in networks.activations),
        length_unit="Ang",
        energy_unit="eV",
    )


def _usable_statistics(buffers: Mapping[str, np.ndarray], is_fitted: bool) -> np.ndarray:
    """(D, 4) statistics from which n2p2 gets a finite scaling factor.

    A function that was constant in training has no spread; n2p2 would divide by zero. It gets a
    spread far below what could matter, and the weights are scaled with it.
    """
    table = np.stack([buffers[name] for name in _STATISTICS], axis=1)
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
