"""Read the files of an n2p2 (or RuNNer) potential, and refuse what this plugin cannot express."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from schnetpack_softadapt.data.formats.units import ENERGY_UNITS, LENGTH_UNITS, unit_factor
from schnetpack_softadapt.deploy.exchange.n2p2.format import (
    ACTIVATIONS,
    CUTOFF_TYPES,
    FUNCTION_TYPES,
    REFUSED,
    SCALING_KEYWORDS,
    ElementData,
    N2P2FormatError,
    N2P2Potential,
    column_order,
)
from schnetpack_softadapt.descriptors.acsf.layout import SymmetryFunction

__all__ = ["read_files"]

_KINDS = {type_.number: kind for kind, type_ in FUNCTION_TYPES.items()}
_CUTOFF_NAMES = {number: name for name, number in CUTOFF_TYPES.items()}
#: cutoff types that n2p2 gives an inner radius, `cutoff_type <type> <alpha>`
_CUTOFFS_WITH_ALPHA = (1, 4, 5, 6, 7, 8)
#: S is 1 - sigmoid(x) = sigmoid(-x)
_ACTIVATION_NAMES = {letter: name for name, letter in ACTIVATIONS.items()} | {"S": "sigmoid"}
#: nnp_type of a short-range potential: n2p2 0 (old) or 2 / 2G-HDNNP, RuNNer 1
_SHORT_RANGE_TYPES = {"0", "1", "2", "2g", "2g-hdnnp"}


def read_files(
    folder: str | Path, length_unit: str | None = None, energy_unit: str | None = None
) -> N2P2Potential:
    """Read `input.nn`, `scaling.data` and the weight files of a folder.

    Args:
        length_unit: unit of the files, such as "Ang" or "Bohr"; when not given, what a comment
            such as `# Length unit : Bohr` in input.nn states, else Bohr with a warning.
        energy_unit: the same for energies; "eV", "Ha" and others, else Ha with a warning.

    Raises:
        FileNotFoundError: a file is missing.
        N2P2FormatError: a file is broken, or uses what this plugin cannot express.
    """
    folder = Path(folder)
    keywords = _Keywords(folder / "input.nn")
    _refuse_other_potentials(keywords)
    stated = {"length": "Bohr", "energy": "Ha"} | keywords.stated_units
    length = unit_factor((length_unit or stated["length"]).strip("."), LENGTH_UNITS, "length")
    energy = unit_factor((energy_unit or stated["energy"]).strip("."), ENERGY_UNITS, "energy")
    given = [k for k, unit in (("length", length_unit), ("energy", energy_unit)) if unit]
    if {*keywords.stated_units, *given} != {"length", "energy"}:
        warnings.warn(
            f"{folder}: the units of the files are not stated; taking them to be in"
            f" {stated['length']} and {stated['energy']}. Give length_unit and energy_unit to be"
            " sure.",
            stacklevel=3,
        )
    numbers = _read_elements(keywords)
    functions = _read_functions(keywords, numbers)
    scaling = _read_scaling_mode(keywords)
    statistics = _read_statistics(folder / "scaling.data", functions, required=scaling != "none")
    candidates, letters = _read_network(keywords, numbers)
    normalisation = [k in keywords.lines for k in ("mean_energy", "conv_energy", "conv_length")]
    if any(normalisation) and not all(normalisation):
        raise N2P2FormatError(
            f"{keywords.path}: mean_energy, conv_energy and conv_length must be given together or"
            " not at all"
        )
    # subtracted from the training energies, per atom
    mean_energy = keywords.number("mean_energy", 0.0)
    atom_energies = _read_atom_energies(keywords, numbers)
    elements = {}
    for number in numbers:
        weights, biases = _read_weights(
            folder / f"weights.{number:03d}.data", len(functions[number]), candidates[number]
        )
        for weight, bias, letter in zip(weights, biases, (*letters, "l"), strict=True):
            factor = -1.0 if letter == "S" else 1.0
            if "normalize_nodes" in keywords.lines:
                factor /= len(weight)
            weight *= factor
            bias *= factor
        elements[number] = ElementData(
            [_convert_length(f, length) for f in functions[number]],
            statistics.get(number),
            weights,
            biases,
            energy * (atom_energies[number] + mean_energy),
        )
    return N2P2Potential(
        elements=elements,
        activations=tuple(_ACTIVATION_NAMES[letter] for letter in letters),
        energy_scale=energy / keywords.number("conv_energy", 1.0),
        scaling=scaling,
        scale_range=(
            keywords.number("scale_min_short", 0.0),
            keywords.number("scale_max_short", 1.0),
        ),
    )


class _Keywords:
    """Keywords of input.nn with their words and line numbers; `#` starts a comment.

    Attributes:
        lines: (line number, words) of each occurrence of a keyword.
        stated_units: "length" and "energy" unit, as far as comments name them.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[str, list[tuple[int, list[str]]]] = {}
        self.stated_units: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            words = line.split("#")[0].split()
            if words:
                self.lines.setdefault(words[0], []).append((number, words[1:]))
            unit = re.search(r"^\s*#.*\b(length|energy) unit\s*[:=]?\s*(\S+)", line, re.I)
            if unit:
                self.stated_units.setdefault(unit.group(1).lower(), unit.group(2))

    def error(self, line: int, message: str) -> N2P2FormatError:
        return N2P2FormatError(f"{self.path}, line {line}: {message}")

    def refused(self, line: int, what: str, value) -> N2P2FormatError:
        reason = REFUSED[what].get(value, "no such type or letter")
        return self.error(line, f"{what} {value} cannot be expressed: {reason}")

    def once(self, name: str) -> tuple[int, list[str]]:
        """Line number and words of a keyword that must stand there once."""
        found = self.lines.get(name, [])
        if len(found) != 1:
            times = "is missing" if not found else f"stands there {len(found)} times"
            raise N2P2FormatError(f"{self.path}: the keyword {name} {times}; it must stand once")
        return found[0]

    def number(self, name: str, default: float) -> float:
        if name not in self.lines:
            return default
        line, words = self.once(name)
        if not words:
            raise self.error(line, f"{name} needs a number")
        return self.read(_finite, line, words[0])

    def read(self, kind: Callable, line: int, word: str):
        """`kind(word)`, int or `_finite`, of a word of a line."""
        try:
            return kind(word)
        except ValueError as error:
            raise self.error(line, f"cannot read {word!r} as a number: {error}") from None

    def element(self, line: int, symbol: str) -> int:
        if symbol not in atomic_numbers:
            raise self.error(line, f"{symbol!r} is not a chemical symbol")
        return atomic_numbers[symbol]


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word!r} is not a finite number")
    return value


def _convert_length(function: SymmetryFunction, factor: float) -> SymmetryFunction:
    """The same function with lengths multiplied by `factor` (and eta divided by its square)."""
    if factor == 1.0:
        return function
    f = function
    return replace(f, cutoff=f.cutoff * factor, r_s=f.r_s * factor, eta=f.eta / factor**2)


def _refuse_other_potentials(keywords: _Keywords) -> None:
    """Charges and pairwise networks are other methods than the one of this plugin."""
    for name in ("nnp_type", "nnp_gen", "runner_mode_gen"):
        if name in keywords.lines:
            line, words = keywords.once(name)
            if words[0].lower() not in _SHORT_RANGE_TYPES:
                raise keywords.error(
                    line,
                    f"{name} {words[0]} is not a short-range potential of atomic energies;"
                    " long-range charges are not supported",
                )
    folder = keywords.path.parent
    charges = sorted(p.name for p in folder.glob("weightse.*.data"))
    for name in ("use_electrostatics", "electrostatic_type", "committee_mode"):
        if name in keywords.lines and keywords.once(name)[1] not in (["0"], ["disabled"]):
            charges.append(f"the keyword {name}")
    if charges:
        raise N2P2FormatError(
            f"{folder}: found {', '.join(charges)}; only single short-range potentials can be read"
        )


def _read_elements(keywords: _Keywords) -> list[int]:
    line, symbols = keywords.once("elements")
    elements = sorted(keywords.element(line, symbol) for symbol in symbols)
    expected = int(keywords.number("number_of_elements", len(elements)))
    if len(elements) != expected:
        raise keywords.error(line, f"{len(elements)} elements, but number_of_elements {expected}")
    return elements


def _read_cutoff(keywords: _Keywords) -> str:
    line, words = keywords.once("cutoff_type")
    number = keywords.read(int, line, words[0])
    if number not in _CUTOFF_NAMES:
        raise keywords.refused(line, "cutoff_type", number)
    alpha = keywords.read(_finite, line, words[1]) if len(words) > 1 else 0.0
    if alpha != 0.0 and number in _CUTOFFS_WITH_ALPHA:
        raise keywords.error(
            line, f"cutoff_type with an inner radius (alpha = {words[1]}) is not supported"
        )
    return _CUTOFF_NAMES[number]


def _read_functions(keywords: _Keywords, elements: list[int]) -> dict[int, list[SymmetryFunction]]:
    """Sorted symmetry functions by atomic number, in the unit of the file."""
    cutoff_fn = _read_cutoff(keywords)
    functions: dict[int, list[SymmetryFunction]] = {number: [] for number in elements}
    for line, words in keywords.lines.get("symfunction_short", []):
        try:
            center, number = keywords.element(line, words[0]), int(words[1])
            if number not in _KINDS:
                raise keywords.refused(line, "symmetry function type", number)
            _, n_neighbors, names = FUNCTION_TYPES[_KINDS[number]]
            neighbors = tuple(keywords.element(line, w) for w in words[2 : 2 + n_neighbors])
            values = [_finite(word) for word in words[2 + n_neighbors :]]
            if names[-1] == "r_s" and len(values) == len(names) - 1:
                values.append(0.0)
            arguments = dict(zip(names, values, strict=True))
            function = SymmetryFunction(_KINDS[number], neighbors, cutoff_fn=cutoff_fn, **arguments)
        except N2P2FormatError:
            raise
        except (ValueError, IndexError) as error:
            raise keywords.error(
                line, f"cannot read 'symfunction_short {' '.join(words)}': {error}"
            ) from None
        if center not in functions or not set(neighbors) <= set(elements):
            raise keywords.error(line, "an element of this function is not among `elements`")
        if function in functions[center]:
            raise keywords.error(
                line, f"{chemical_symbols[center]} has a function twice: {function}"
            )
        functions[center].append(function)
    for number, values in functions.items():
        if not values:
            raise N2P2FormatError(
                f"{keywords.path}: no symmetry functions for {chemical_symbols[number]}"
            )
        values.sort(key=column_order)
    return functions


def _read_scaling_mode(keywords: _Keywords) -> str:
    present = {k for names in SCALING_KEYWORDS.values() for k in names} & set(keywords.lines)
    for mode, names in SCALING_KEYWORDS.items():
        if present == set(names):
            return mode
    # n2p2 looks at sigma last, RuNNer at it first: they would read this file differently
    raise N2P2FormatError(
        f"{keywords.path}: the scaling keywords {', '.join(sorted(present))} contradict each other"
    )


def _read_network(
    keywords: _Keywords, elements: list[int]
) -> tuple[dict[int, list[list[int]]], tuple[str, ...]]:
    """Candidates for the hidden widths of each element, and the letter of each hidden layer."""
    n_hidden = int(keywords.number("global_hidden_layers_short", 0))
    if n_hidden < 1:
        raise N2P2FormatError(f"{keywords.path}: global_hidden_layers_short must be at least 1")
    line, letters = keywords.once("global_activation_short")
    nodes_line, words = keywords.once("global_nodes_short")
    if len(words) < n_hidden or len(letters) < n_hidden:
        raise N2P2FormatError(
            f"{keywords.path}: {n_hidden} hidden layers need as many global_nodes_short and one"
            " more global_activation_short"
        )
    if letters[n_hidden : n_hidden + 1] not in ([], ["l"]):
        raise keywords.error(line, f"the output layer must be linear (l), not {letters[n_hidden]}")
    for letter in letters[:n_hidden]:
        if letter not in _ACTIVATION_NAMES:
            raise keywords.refused(line, "activation", letter)
    widths = [keywords.read(int, nodes_line, word) for word in words[:n_hidden]]
    candidates = {number: [list(widths)] for number in elements}
    for name in ("element_hidden_layers_short", "element_activation_short"):
        for line, _ in keywords.lines.get(name, []):
            raise keywords.error(
                line, f"{name} is not supported: all elements share layers and activations"
            )
    for line, arguments in keywords.lines.get("element_nodes_short", []):
        number = keywords.element(line, arguments[0])
        values = [keywords.read(int, line, word) for word in arguments[1:]]
        if number not in candidates or not values:
            raise keywords.error(line, "element_nodes_short needs a known element and numbers")
        # n2p2 reads `element layer nodes`, newer versions `element nodes ...`: the number of
        # weights in the file decides
        if len(values) == 2 and 1 <= values[0] <= n_hidden:
            candidates[number][0][values[0] - 1] = values[1]
        if len(values) == n_hidden:
            candidates[number].append(values)
    return candidates, tuple(letters[:n_hidden])


def _read_atom_energies(keywords: _Keywords, elements: list[int]) -> dict[int, float]:
    energies = dict.fromkeys(elements, 0.0)
    for line, words in keywords.lines.get("atom_energy", []):
        if len(words) < 2 or keywords.element(line, words[0]) not in energies:
            raise keywords.error(line, "atom_energy needs an element of the potential and a number")
        energies[atomic_numbers[words[0]]] = keywords.read(_finite, line, words[1])
    return energies


def _rows(path: Path, what: str, n_columns: int | None = None) -> Iterator[list[float]]:
    """Numbers in the first columns of each line that is neither empty nor a comment."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                yield [_finite(word) for word in line.split()[:n_columns]]
            except ValueError as error:
                raise N2P2FormatError(
                    f"{path}, line {number}: no {what} in {line.strip()!r}: {error}"
                ) from None


def _read_statistics(
    path: Path, functions: Mapping[int, list], required: bool
) -> dict[int, np.ndarray]:
    """(D, 4) minimum, maximum, mean, sigma by atomic number; n2p2 uses the order of the lines."""
    if not path.exists() and not required:
        return {}
    # RuNNer appends a line with the energy range
    rows = [row for row in _rows(path, "row of numbers") if len(row) >= 5]
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
    values = np.array([value for (value,) in _rows(path, "weight", n_columns=1)])
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
        layer = values[first : first + (a + 1) * b].reshape(a + 1, b)
        weights.append(layer[:-1])
        biases.append(layer[-1])
        first += (a + 1) * b
    return weights, biases
