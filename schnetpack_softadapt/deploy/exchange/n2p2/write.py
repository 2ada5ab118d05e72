"""Write an `N2P2Potential` as the files that n2p2, LAMMPS and RuNNer read, in Ang and eV."""

from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.deploy.exchange.n2p2.format import (
    ACTIVATIONS,
    CUTOFF_TYPES,
    FUNCTION_TYPES,
    SCALING_KEYWORDS,
    ElementData,
    N2P2FormatError,
    N2P2Potential,
    column_order,
)
from schnetpack_softadapt.descriptors.acsf.layout import SymmetryFunction
from schnetpack_softadapt.files import write_file

__all__ = ["write_files"]


def write_files(potential: N2P2Potential, folder: str | Path) -> list[Path]:
    """Write `input.nn`, `scaling.data` and one `weights.ZZZ.data` per element.

    Numbers have 17 digits, so that reading gives back the same doubles.

    Raises:
        N2P2FormatError: the potential cannot be expressed in these files.
    """
    folder = Path(folder)
    texts = {"input.nn": _input_text(potential), "scaling.data": _scaling_text(potential)}
    for number, data in potential.elements.items():
        texts[f"weights.{number:03d}.data"] = _weights_text(data, potential.energy_scale)
    # a weight file left from another potential would be read by a program that globs
    for old in folder.glob("weights.*.data"):
        if old.name not in texts:
            old.unlink()
    return [write_file(folder / name, text) for name, text in texts.items()]


def _input_text(potential: N2P2Potential) -> str:
    elements = {chemical_symbols[z]: data for z, data in potential.elements.items()}
    cutoff_fns = {f.cutoff_fn for data in elements.values() for f in data.functions}
    if len(cutoff_fns) > 1:
        raise N2P2FormatError(
            f"n2p2 has one cutoff function for all symmetry functions, the model has"
            f" {sorted(cutoff_fns)}"
        )
    (cutoff_fn,) = cutoff_fns
    if cutoff_fn not in CUTOFF_TYPES:
        raise N2P2FormatError(f"n2p2 has no cutoff function {cutoff_fn!r}")
    widths = [[len(bias) for bias in data.biases[:-1]] for data in elements.values()]
    if any(own != widths[0] for own in widths):
        # the keyword for widths by element has changed its meaning between versions of n2p2
        raise N2P2FormatError(
            "all elements need hidden layers of the same widths; fill up with neurons of weight 0"
        )
    lines = [
        "# Neural network potential, written by schnetpack_softadapt.",
        "# Length unit     : Ang",
        "# Energy unit     : eV",
        "",
        f"number_of_elements {len(elements)}",
        f"elements {' '.join(elements)}",
        *(f"atom_energy {symbol} {data.offset!r}" for symbol, data in elements.items()),
        f"cutoff_type {CUTOFF_TYPES[cutoff_fn]}",
        *SCALING_KEYWORDS[potential.scaling],
    ]
    if potential.scaling not in ("none", "center"):
        low, high = potential.scale_range
        lines += [f"scale_min_short {low!r}", f"scale_max_short {high!r}"]
    letters = [ACTIVATIONS[name] for name in potential.activations]
    lines += [
        f"global_hidden_layers_short {len(letters)}",
        f"global_nodes_short {' '.join(map(str, widths[0]))}",
        f"global_activation_short {' '.join(letters)} l",
    ]
    for symbol, data in elements.items():
        if data.functions != sorted(data.functions, key=column_order):
            raise N2P2FormatError(f"the functions of {symbol} are not in n2p2's order")
        lines += ["", f"# {len(data.functions)} functions of {symbol}"]
        lines += [_function_line(symbol, f) for f in data.functions]
    return "\n".join(lines) + "\n"


def _function_line(center: str, f: SymmetryFunction) -> str:
    number, _, names = FUNCTION_TYPES[f.kind]
    if names[-1] == "r_s" and f.r_s == 0.0:
        names = names[:-1]
    neighbors = [chemical_symbols[z] for z in f.neighbors]
    words = [center, number, *neighbors, *(getattr(f, name) for name in names)]
    return "symfunction_short " + " ".join(map(str, words))


def _scaling_text(potential: N2P2Potential) -> str:
    lines = [
        "# Symmetry function scaling data: minimum, maximum, mean and standard deviation over the"
        " training atoms.",
        "# columns: e_index sf_index sf_min sf_max sf_mean sf_sigma",
    ]
    for index, data in enumerate(potential.elements.values(), start=1):
        statistics = data.statistics
        if statistics is None:
            statistics = np.zeros((len(data.functions), 4))
        for column, row in enumerate(statistics, start=1):
            values = " ".join(f"{value:24.16E}" for value in row)
            lines.append(f"{index:10d} {column:10d} {values}")
    return "\n".join(lines) + "\n"


def _weights_text(data: ElementData, energy_scale: float) -> str:
    lines = [
        "# Neural network weights (a) and biases (b), layer by layer.",
        "# columns: value type index start_layer start_neuron end_layer end_neuron",
    ]
    index = 0
    for layer, (weight, bias) in enumerate(zip(data.weights, data.biases, strict=True), start=1):
        factor = energy_scale if layer == len(data.weights) else 1.0
        for (j, k), value in np.ndenumerate(weight * factor):
            index += 1
            lines.append(
                f"{value:24.16E} a {index:9d} {layer - 1:5d} {j + 1:5d} {layer:5d} {k + 1:5d}"
            )
        for k, value in enumerate(bias * factor):
            index += 1
            lines.append(f"{value:24.16E} b {index:9d} {layer:5d} {k + 1:5d}")
    return "\n".join(lines) + "\n"
