"""Write an `N2P2Potential` as the files that n2p2, LAMMPS and RuNNer read."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.deploy.exchange.n2p2_format import (
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

    Returns:
        The files written.

    Raises:
        N2P2FormatError: the potential cannot be expressed in these files.
    """
    folder = Path(folder)
    for number, data in potential.elements.items():
        if data.functions != sorted(data.functions, key=column_order):
            raise N2P2FormatError(
                f"the functions of {chemical_symbols[number]} are not in n2p2's order"
            )
    texts = {"input.nn": _input_text(potential), "scaling.data": _scaling_text(potential)}
    for number, data in potential.elements.items():
        texts[f"weights.{number:03d}.data"] = _weights_text(data)
    folder.mkdir(parents=True, exist_ok=True)
    # a weight file left from another potential would be read by a program that globs
    for old in folder.glob("weights.*.data"):
        if old.name not in texts:
            old.unlink()
    return [write_file(folder / name, text) for name, text in texts.items()]


def _input_text(potential: N2P2Potential) -> str:
    cutoff_fns = {f.cutoff_fn for data in potential.elements.values() for f in data.functions}
    if len(cutoff_fns) > 1:
        raise N2P2FormatError(
            f"n2p2 has one cutoff function for all symmetry functions, the model has"
            f" {sorted(cutoff_fns)}"
        )
    (cutoff_fn,) = cutoff_fns
    if cutoff_fn not in CUTOFF_TYPES:
        raise N2P2FormatError(f"n2p2 has no cutoff function {cutoff_fn!r}")
    symbols = [chemical_symbols[number] for number in potential.elements]
    lines = [
        "# Neural network potential, written by schnetpack_softadapt.",
        f"# Length unit     : {potential.length_unit}",
        f"# Energy unit     : {potential.energy_unit}",
        "",
        f"number_of_elements {len(symbols)}",
        f"elements {' '.join(symbols)}",
    ]
    for symbol, data in zip(symbols, potential.elements.values(), strict=True):
        lines.append(f"atom_energy {symbol} {data.atom_energy!r}")
    if (potential.mean_energy, potential.conv_energy) != (0.0, 1.0):
        lines += [
            f"mean_energy {potential.mean_energy!r}",
            f"conv_energy {potential.conv_energy!r}",
            "conv_length 1.0",
        ]
    lines.append(f"cutoff_type {CUTOFF_TYPES[cutoff_fn]}")
    lines += SCALING_KEYWORDS[potential.scaling]
    if potential.scaling not in ("none", "center"):
        lines += [
            f"scale_min_short {potential.scale_range[0]!r}",
            f"scale_max_short {potential.scale_range[1]!r}",
        ]
    lines += _network_lines(potential)
    if potential.normalize_nodes:
        lines.append("normalize_nodes")
    for number, data in potential.elements.items():
        lines += ["", f"# {len(data.functions)} functions of {chemical_symbols[number]}"]
        lines += [_function_line(number, f) for f in data.functions]
    return "\n".join(lines) + "\n"


def _network_lines(potential: N2P2Potential) -> list[str]:
    widths = {
        number: [len(bias) for bias in data.biases[:-1]]
        for number, data in potential.elements.items()
    }
    common = next(iter(widths.values()))
    if not common:
        raise N2P2FormatError("n2p2 needs at least one hidden layer")
    if any(own != common for own in widths.values()):
        # the keyword for widths by element has changed its meaning between versions of n2p2
        raise N2P2FormatError(
            "all elements need hidden layers of the same widths; fill up with neurons of weight 0"
        )
    if len(potential.activations) != len(common):
        raise N2P2FormatError(
            f"{len(potential.activations)} activations for {len(common)} hidden layers"
        )
    return [
        f"global_hidden_layers_short {len(common)}",
        f"global_nodes_short {' '.join(map(str, common))}",
        f"global_activation_short {' '.join(potential.activations)} l",
    ]


def _function_line(center: int, f: SymmetryFunction) -> str:
    if f.kind not in FUNCTION_TYPES:
        raise N2P2FormatError(
            f"n2p2 has no symmetry function of kind {f.kind} (its kinds here: "
            f"{', '.join(FUNCTION_TYPES)})"
        )
    words = [chemical_symbols[center], FUNCTION_TYPES[f.kind]]
    words += [chemical_symbols[z] for z in f.neighbors]
    if f.kind in ("G2", "wG2"):
        words += [f.eta, f.r_s, f.cutoff]
    elif f.kind == "wG4":
        words += [f.eta, f.r_s, f.lam, f.zeta, f.cutoff]
    else:  # without the optional shift older n2p2 and RuNNer read the line too
        words += [f.eta, f.lam, f.zeta, f.cutoff] + ([f.r_s] if f.r_s else [])
    return "symfunction_short " + " ".join(str(word) for word in words)


def _scaling_text(potential: N2P2Potential) -> str:
    lines = _header(
        "Symmetry function scaling data: minimum, maximum, mean and standard deviation over the"
        " training atoms.",
        ("e_index", "sf_index", "sf_min", "sf_max", "sf_mean", "sf_sigma"),
    )
    for index, data in enumerate(potential.elements.values(), start=1):
        statistics = data.statistics
        if statistics is None:
            statistics = np.zeros((len(data.functions), 4))
        for column, row in enumerate(statistics, start=1):
            values = " ".join(f"{value:24.16E}" for value in row)
            lines.append(f"{index:10d} {column:10d} {values}")
    return "\n".join(lines) + "\n"


def _weights_text(data: ElementData) -> str:
    lines = _header(
        "Neural network weights (a) and biases (b), layer by layer.",
        ("value", "type", "index", "start_layer", "start_neuron", "end_layer", "end_neuron"),
    )
    index = 0
    for layer, (weight, bias) in enumerate(zip(data.weights, data.biases, strict=True), start=1):
        for (j, k), value in np.ndenumerate(weight):
            index += 1
            lines.append(
                f"{value:24.16E} a {index:9d} {layer - 1:5d} {j + 1:5d} {layer:5d} {k + 1:5d}"
            )
        for k, value in enumerate(bias):
            index += 1
            lines.append(f"{value:24.16E} b {index:9d} {layer:5d} {k + 1:5d}")
    return "\n".join(lines) + "\n"


def _header(title: str, columns: Iterable[str]) -> list[str]:
    return [f"# {title}", f"# columns: {' '.join(columns)}"]
