"""What the keywords of an n2p2 `input.nn` say, and which of them this plugin cannot express."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ase.data import atomic_numbers, chemical_symbols

from schnetpack_softadapt.deploy.exchange.n2p2_format import (
    ACTIVATION_LETTERS,
    CUTOFF_TYPES,
    CUTOFFS_WITH_ALPHA,
    FUNCTION_TYPES,
    REFUSED_ACTIVATIONS,
    REFUSED_CUTOFF_TYPES,
    REFUSED_FUNCTION_TYPES,
    SCALING_KEYWORDS,
    N2P2FormatError,
    column_order,
    finite,
)
from schnetpack_softadapt.descriptors.acsf.layout import SymmetryFunction

__all__ = ["Settings", "read_settings"]

_KINDS = {number: kind for kind, number in FUNCTION_TYPES.items()}
_CUTOFF_NAMES = {number: name for name, number in CUTOFF_TYPES.items()}
#: nnp_type of a short-range potential: n2p2 0 (old) or 2 / 2G-HDNNP, RuNNer 1
_SHORT_RANGE_TYPES = {"0", "1", "2", "2g", "2g-hdnnp"}


@dataclass
class Settings:
    """The contents of `input.nn`, in its own units; fields as in `N2P2Potential`.

    Attributes:
        functions: sorted symmetry functions by atomic number, elements ascending.
        hidden: candidates for the widths of the hidden layers by atomic number; the number of
            weights tells which one holds.
        atom_energies: offsets by atomic number.
        stated_units: what comments name as "length" and "energy" unit.
    """

    functions: dict[int, list[SymmetryFunction]]
    scaling: str
    scale_range: tuple[float, float]
    hidden: dict[int, list[list[int]]]
    activations: tuple[str, ...]
    atom_energies: dict[int, float]
    mean_energy: float
    conv_energy: float
    normalize_nodes: bool
    stated_units: dict[str, str]


def read_settings(path: str | Path) -> Settings:
    """Read `input.nn`.

    Raises:
        FileNotFoundError: there is no such file.
        N2P2FormatError: a keyword is missing, malformed, or cannot be expressed; with line number.
    """
    path = Path(path)
    text = path.read_text()
    keywords = _Keywords(text, path)
    _refuse_other_potentials(keywords)
    elements = _read_elements(keywords)
    normalisation = [keywords.has(k) for k in ("mean_energy", "conv_energy", "conv_length")]
    if any(normalisation) and not all(normalisation):
        raise N2P2FormatError(
            f"{path}: mean_energy, conv_energy and conv_length must be given together or not at all"
        )
    hidden, activations = _read_network(keywords, elements)
    return Settings(
        functions=_read_functions(keywords, elements, _read_cutoff(keywords)),
        scaling=_read_scaling_mode(keywords),
        scale_range=(
            keywords.number("scale_min_short", 0.0),
            keywords.number("scale_max_short", 1.0),
        ),
        hidden=hidden,
        activations=activations,
        atom_energies=_read_atom_energies(keywords, elements),
        mean_energy=keywords.number("mean_energy", 0.0),
        conv_energy=keywords.number("conv_energy", 1.0),
        normalize_nodes=keywords.has("normalize_nodes"),
        stated_units=_stated_units(text),
    )


class _Keywords:
    """Keywords of input.nn with their arguments and line numbers; `#` starts a comment."""

    def __init__(self, text: str, path: Path):
        self.path = path
        self.lines: dict[str, list[tuple[int, list[str]]]] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split("#")[0].split()
            if words:
                self.lines.setdefault(words[0], []).append((number, words[1:]))

    def has(self, name: str) -> bool:
        return name in self.lines

    def error(self, line: int, message: str) -> N2P2FormatError:
        return N2P2FormatError(f"{self.path}, line {line}: {message}")

    def arguments(self, name: str) -> list[str]:
        """Arguments of a keyword that must stand there once."""
        found = self.lines.get(name, [])
        if len(found) != 1:
            times = "is missing" if not found else f"stands there {len(found)} times"
            raise N2P2FormatError(f"{self.path}: the keyword {name} {times}; it must stand once")
        return found[0][1]

    def number(self, name: str, default: float) -> float:
        if not self.has(name):
            return default
        words, line = self.arguments(name), self.lines[name][0][0]
        if not words:
            raise self.error(line, f"{name} needs a number")
        return self.read(finite, line, words[0])

    def read(self, kind: Callable, line: int, word: str):
        """`kind(word)`, int or `finite`, of a word of a line."""
        try:
            return kind(word)
        except ValueError as error:
            raise self.error(line, f"cannot read {word!r} as a number: {error}") from None


def _refuse_other_potentials(keywords: _Keywords) -> None:
    """Charges and pairwise networks are other methods than the one of this plugin."""
    for name in ("nnp_type", "nnp_gen", "runner_mode_gen"):
        if keywords.has(name) and keywords.arguments(name)[0].lower() not in _SHORT_RANGE_TYPES:
            raise N2P2FormatError(
                f"{keywords.path}: {name} {keywords.arguments(name)[0]} is not a short-range"
                " potential of atomic energies; long-range charges are not supported"
            )
    folder = keywords.path.parent
    charges = sorted(p.name for p in folder.glob("weightse.*.data"))
    for name in ("use_electrostatics", "electrostatic_type", "committee_mode"):
        if keywords.has(name) and keywords.arguments(name) not in (["0"], ["disabled"]):
            charges.append(f"the keyword {name}")
    if charges:
        raise N2P2FormatError(
            f"{folder}: found {', '.join(charges)}; only single short-range potentials can be read"
        )


def _element(keywords: _Keywords, line: int, symbol: str) -> int:
    if symbol not in atomic_numbers:
        raise keywords.error(line, f"{symbol!r} is not a chemical symbol")
    return atomic_numbers[symbol]


def _read_elements(keywords: _Keywords) -> list[int]:
    symbols = keywords.arguments("elements")
    line = keywords.lines["elements"][0][0]
    elements = sorted(_element(keywords, line, symbol) for symbol in symbols)
    expected = int(keywords.number("number_of_elements", len(elements)))
    if len(elements) != expected:
        raise keywords.error(line, f"{len(elements)} elements, but number_of_elements {expected}")
    return elements


def _read_cutoff(keywords: _Keywords) -> str:
    words = keywords.arguments("cutoff_type")
    line = keywords.lines["cutoff_type"][0][0]
    number = keywords.read(int, line, words[0])
    if number not in _CUTOFF_NAMES:
        reason = REFUSED_CUTOFF_TYPES.get(number, "no such type")
        raise keywords.error(line, f"cutoff_type {number} cannot be expressed: {reason}")
    alpha = keywords.read(finite, line, words[1]) if len(words) > 1 else 0.0
    if alpha != 0.0 and number in CUTOFFS_WITH_ALPHA:
        raise keywords.error(
            line, f"cutoff_type with an inner radius (alpha = {words[1]}) is not supported"
        )
    return _CUTOFF_NAMES[number]


def _read_functions(
    keywords: _Keywords, elements: list[int], cutoff_fn: str
) -> dict[int, list[SymmetryFunction]]:
    functions: dict[int, list[SymmetryFunction]] = {number: [] for number in elements}
    for line, words in keywords.lines.get("symfunction_short", []):
        try:
            center, type_number = _element(keywords, line, words[0]), int(words[1])
            if type_number not in _KINDS:
                reason = REFUSED_FUNCTION_TYPES.get(type_number, "no such type")
                raise keywords.error(
                    line, f"symmetry function type {type_number} cannot be expressed: {reason}"
                )
            kind = _KINDS[type_number]
            n_neighbors = {"G2": 1, "G4": 2, "G5": 2}.get(kind, 0)
            neighbors = tuple(_element(keywords, line, w) for w in words[2 : 2 + n_neighbors])
            values = [finite(w) for w in words[2 + n_neighbors :]]
            if kind in ("G2", "wG2"):
                arguments = dict(zip(("eta", "r_s", "cutoff"), values, strict=True))
            elif kind == "wG4":
                names = ("eta", "r_s", "lam", "zeta", "cutoff")
                arguments = dict(zip(names, values, strict=True))
            else:  # the shift of the angular functions is optional and comes last
                names = ("eta", "lam", "zeta", "cutoff", "r_s")[: max(len(values), 4)]
                arguments = dict(zip(names, values, strict=True))
            function = SymmetryFunction(kind, neighbors, cutoff_fn=cutoff_fn, **arguments)
        except N2P2FormatError:
            raise
        except (ValueError, IndexError) as error:
            raise keywords.error(
                line, f"cannot read 'symfunction_short {' '.join(words)}': {error}"
            ) from None
        if center not in functions or not set(neighbors) <= set(elements):
            raise keywords.error(line, "an element of this function is not among `elements`")
        functions[center].append(function)
    for number, values in functions.items():
        if not values:
            raise N2P2FormatError(
                f"{keywords.path}: no symmetry functions for {chemical_symbols[number]}"
            )
        if len(set(values)) != len(values):
            twice = next(str(f) for f in values if values.count(f) > 1)
            raise N2P2FormatError(
                f"{keywords.path}: {chemical_symbols[number]} has a function twice: {twice}"
            )
        values.sort(key=column_order)
    return functions


def _read_scaling_mode(keywords: _Keywords) -> str:
    present = {k for names in SCALING_KEYWORDS.values() for k in names if keywords.has(k)}
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
    """Candidates for the hidden widths of each element, and the activation of each hidden layer."""
    n_hidden = int(keywords.number("global_hidden_layers_short", 0))
    if n_hidden < 1:
        raise N2P2FormatError(f"{keywords.path}: global_hidden_layers_short must be at least 1")
    letters = keywords.arguments("global_activation_short")
    words = keywords.arguments("global_nodes_short")
    if len(words) < n_hidden or len(letters) < n_hidden:
        raise N2P2FormatError(
            f"{keywords.path}: {n_hidden} hidden layers need as many global_nodes_short and one"
            " more global_activation_short"
        )
    if len(letters) > n_hidden and letters[n_hidden] != "l":
        raise N2P2FormatError(
            f"{keywords.path}: the output layer must be linear (l), not {letters[n_hidden]}"
        )
    for letter in letters[:n_hidden]:
        if letter not in (*ACTIVATION_LETTERS.values(), "S"):
            reason = REFUSED_ACTIVATIONS.get(letter, "no such letter")
            raise N2P2FormatError(
                f"{keywords.path}: activation {letter} cannot be expressed: {reason}"
            )
    line = keywords.lines["global_nodes_short"][0][0]
    widths = [keywords.read(int, line, word) for word in words[:n_hidden]]
    candidates = {number: [list(widths)] for number in elements}
    for name in ("element_hidden_layers_short", "element_activation_short"):
        for line, _ in keywords.lines.get(name, []):
            raise keywords.error(
                line, f"{name} is not supported: all elements share layers and activations"
            )
    for line, arguments in keywords.lines.get("element_nodes_short", []):
        number = _element(keywords, line, arguments[0])
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
        if len(words) < 2 or _element(keywords, line, words[0]) not in energies:
            raise keywords.error(line, "atom_energy needs an element of the potential and a number")
        energies[atomic_numbers[words[0]]] = keywords.read(finite, line, words[1])
    return energies


def _stated_units(text: str) -> dict[str, str]:
    """Units named in comments such as `# Length unit     : Bohr`."""
    found = {}
    for kind in ("length", "energy"):
        match = re.search(rf"^\s*#.*\b{kind} unit\s*[:=]?\s*(\S+)", text, re.MULTILINE | re.I)
        if match:
            found[kind] = match.group(1)
    return found
