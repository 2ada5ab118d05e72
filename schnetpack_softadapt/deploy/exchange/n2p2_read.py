"""Read the files of an n2p2 (or RuNNer) potential into `N2P2Potential`."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.deploy.exchange.n2p2_format import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    ElementData,
    N2P2FormatError,
    N2P2Potential,
    finite,
    resolve_unit,
)
from schnetpack_softadapt.deploy.exchange.n2p2_input import read_settings

__all__ = ["read_files"]


def read_files(
    folder: str | Path, length_unit: str | None = None, energy_unit: str | None = None
) -> N2P2Potential:
    """Read `input.nn`, `scaling.data` and the weight files of a folder.

    Args:
        folder: the potential.
        length_unit: unit of the files; else what a comment in input.nn states, else Bohr.
        energy_unit: the same for energies, else Ha.

    Raises:
        FileNotFoundError: a file is missing.
        N2P2FormatError: a file is broken, or uses what this plugin cannot express.
    """
    folder = Path(folder)
    settings = read_settings(folder / "input.nn")
    statistics = _read_statistics(
        folder / "scaling.data", settings.functions, required=settings.scaling != "none"
    )
    elements = {}
    for number, functions in settings.functions.items():
        weights, biases = _read_weights(
            folder / f"weights.{number:03d}.data", len(functions), settings.hidden[number]
        )
        elements[number] = ElementData(
            functions, statistics.get(number), weights, biases, settings.atom_energies[number]
        )
    length = length_unit or settings.stated_units.get("length")
    energy = energy_unit or settings.stated_units.get("energy")
    return N2P2Potential(
        elements=elements,
        scaling=settings.scaling,
        scale_range=settings.scale_range,
        activations=settings.activations,
        mean_energy=settings.mean_energy,
        conv_energy=settings.conv_energy,
        normalize_nodes=settings.normalize_nodes,
        length_unit=resolve_unit(length or "Bohr", LENGTH_UNITS),
        energy_unit=resolve_unit(energy or "Ha", ENERGY_UNITS),
        units_stated=bool(length and energy),
    )


def _read_statistics(
    path: Path, functions: Mapping[int, list], required: bool
) -> dict[int, np.ndarray]:
    """(D, 4) minimum, maximum, mean, sigma by atomic number; n2p2 uses the order of the lines."""
    if not path.exists() and not required:
        return {}
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rows.append([finite(word) for word in line.split()])
            except ValueError as error:
                raise N2P2FormatError(
                    f"{path}, line {number}: not a row of numbers: {error}"
                ) from None
    # RuNNer appends a line with the energy range
    rows = [row for row in rows if len(row) >= 5]
    n_expected = sum(map(len, functions.values()))
    if len(rows) != n_expected:
        raise N2P2FormatError(
            f"{path}: {len(rows)} rows, but input.nn has {n_expected} symmetry functions"
        )
    statistics, first = {}, 0
    for index, (element, values) in enumerate(functions.items(), start=1):
        block = rows[first : first + len(values)]
        for column, row in enumerate(block, start=1):
            if (int(row[0]), int(row[1])) != (index, column):
                raise N2P2FormatError(
                    f"{path}: expected the row of function {column} of element {index}"
                    f" ({chemical_symbols[element]}), found {int(row[1])} of {int(row[0])}"
                )
        # older files have no sigma
        statistics[element] = np.array([[*row[2:6], np.nan][:4] for row in block])
        first += len(values)
    return statistics


def _read_weights(
    path: Path, n_in: int, candidates: list[list[int]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights (n_in, n_out) and biases (n_out,) of each layer.

    For each layer the weights come first, those of one input neuron after the other, then the
    biases. Only the first column counts, as in n2p2.
    """
    values = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                values.append(finite(line.split()[0]))
            except ValueError as error:
                raise N2P2FormatError(
                    f"{path}, line {number}: no weight in {line.strip()!r}: {error}"
                ) from None
    for hidden in candidates:
        widths = [n_in, *hidden, 1]
        if sum((a + 1) * b for a, b in pairwise(widths)) == len(values):
            break
    else:
        raise N2P2FormatError(
            f"{path}: {len(values)} weights do not make a network of {n_in} inputs and hidden"
            f" layers {' or '.join(map(str, candidates))}"
        )
    weights, biases, first = [], [], 0
    for a, b in pairwise(widths):
        weights.append(np.array(values[first : first + a * b]).reshape(a, b))
        biases.append(np.array(values[first + a * b : first + (a + 1) * b]))
        first += (a + 1) * b
    return weights, biases
