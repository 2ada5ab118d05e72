"""Potentials as one text file, `potential.json`: any of our models, or a committee of them.

The file holds descriptors (`Descriptor.to_dict`), scaling, networks and constant energies, in eV
and Ang, with all digits of the doubles. Reading it executes nothing, and evaluating it needs no
torch where the descriptors have compiled kernels: a program that starts on many cores at once
(`lammps_mliap`) loads numpy and numba only.

    E = mean_k { sum_i [fade_i(scale_k NN_k,Z((G_i - shift_k) factor_k)) + offset_k,Z] + ZBL_k }
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from schnetpack_softadapt.descriptors.protocol import Descriptor, descriptor_from_dict
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.model.close_pairs import add_zbl, zbl_table
from schnetpack_softadapt.model.compiled_networks import ACTIVATION_CODES, CompiledNetworks
from schnetpack_softadapt.model.fade import Fade

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FILE_NAME", "AtomicEnergies", "Member", "TextPotential", "read_text", "write_text"]

#: of the file in a folder
FILE_NAME = "potential.json"

_FORMAT = "schnetpack_softadapt potential"
_VERSION = 1
# rows (D,) of each element, as in `Scaling`
_SCALING = ("shift", "factor", "minimum", "maximum", "mean", "sigma")
_STATISTICS = _SCALING[2:]


class Member(NamedTuple):
    """One model of a text potential; elements ascending, as in its descriptor."""

    descriptor: Descriptor
    activations: tuple[str, ...]  # of all layers but the last
    scale: float  # factor on the network's output, eV
    offsets: np.ndarray  # (n_elements,) constant energy of an atom, eV
    mode: str  # name of the scaling
    # the buffers of `Scaling`, (n_elements, D) each; the statistics (minimum, maximum, mean, sigma)
    # are None where none are known
    scaling: dict[str, np.ndarray | None]
    # (n_elements, n_in, n_out) of each layer, where n_in of the first is D, or more in a quadratic
    # model, which reads products, too
    weights: list[np.ndarray]
    biases: list[np.ndarray]  # (n_elements, n_out)
    fade: Fade | None = None  # how the networks end at short distances, or None
    # (elements, inner, outer) of each pair of elements, Ang; empty for none
    zbl: tuple[tuple[tuple[str, str], float, float], ...] = ()

    @property
    def zbl_table(self) -> np.ndarray | None:
        """Parameters of `close_pairs.add_zbl` by element."""
        cutoffs = {tuple(atomic_numbers[s] for s in pair): own for pair, *own in self.zbl}
        # some may be of the data, but in no structure that networks were made for
        elements = self.descriptor.elements
        known = {pair: own for pair, own in cutoffs.items() if set(pair) <= set(elements)}
        return zbl_table(elements, known) if self.zbl else None


class AtomicEnergies(NamedTuple):
    """What a text potential says of some atoms."""

    energies: np.ndarray  # (n,) eV, the mean over the members
    gradient: np.ndarray  # (P, 3) derivative of their sum by the pair vectors, eV/Ang
    # (n,) standard deviation of the energies over the members, eV; zero for one member
    spread: np.ndarray
    n_outside: np.ndarray  # (n,) descriptors outside of the training range of any member


class TextPotential:
    """The members of a text potential, ready to be evaluated.

    A committee costs little more than one model where its members share their descriptor: the mean
    of the gradients by the descriptors goes through one vector-Jacobian product.

    Args:
        members: at least one, all for the same elements.

    Attributes:
        elements: atomic numbers, ascending.
        cutoff: the largest, Ang.
    """

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self.elements = self.members[0].descriptor.elements
        reach = [outer for member in self.members for _, _, outer in member.zbl]
        self.cutoff = max([member.descriptor.cutoff for member in self.members] + reach)
        self._groups: dict[Descriptor, list] = {}
        for m in self.members:
            networks = CompiledNetworks.from_arrays(
                m.weights,
                m.biases,
                m.activations,
                m.scaling["shift"],
                m.scaling["factor"],
                m.scale,
            )
            self._groups.setdefault(m.descriptor, []).append(
                (networks, m.offsets, m.fade, m.zbl_table)
            )
        self._engines = {descriptor: descriptor.engine("cpu") for descriptor in self._groups}
        self._bounds = {
            d: _bounds([m for m in self.members if m.descriptor == d]) for d in self._groups
        }

    def __call__(
        self, r_ij: np.ndarray, idx_i: np.ndarray, idx_j: np.ndarray, rows: np.ndarray, n: int
    ) -> AtomicEnergies:
        """Energies of some atoms and their derivative.

        Args:
            r_ij, idx_i, idx_j: (P, 3), (P,), (P,) pairs of the first n atoms, Ang.
            rows: (N,) element of each atom, an index into `elements`; of atoms that are only
                neighbours nothing else is seen, so one may stand for all of its element.
            n: atoms that have an energy.
        """
        numbers = np.array(self.elements)[rows]
        energies = np.empty((len(self.members), n))
        gradient, n_outside, k = np.zeros((len(idx_i), 3)), np.zeros(n, np.int64), 0
        close = np.zeros_like(gradient)  # what does not go through descriptors, of all members
        own = rows[:n]
        for descriptor, members in self._groups.items():
            engine = self._engines[descriptor]
            pairs = engine.prepare(r_ij, idx_i, idx_j, numbers)
            values = engine.values(pairs)
            is_compiled = isinstance(values, np.ndarray)
            values = np.asarray(values)[:n]
            low, high = self._bounds[descriptor]
            n_outside += np.count_nonzero((values < low[own]) | (values > high[own]), axis=1)
            by_value = np.zeros((len(rows), descriptor.n_columns))
            for networks, offsets, fade, zbl in members:
                energies[k], slope = networks(own, values)
                faded = fade and fade.of_pairs(r_ij, idx_i, idx_j, numbers, energies[k])
                if faded:
                    energies[k], factor, by_pairs = faded
                    slope *= factor[:, None]
                    close += by_pairs
                energies[k] += offsets[own]
                if zbl is not None:
                    add_zbl(r_ij, idx_i, idx_j, rows, zbl, energies[k], close)
                by_value[:n] += slope
                k += 1
            by_value /= len(self.members)
            if not is_compiled:
                import torch

                by_value = torch.from_numpy(by_value)
            gradient += np.asarray(engine.vjp(pairs, by_value))
        gradient += close / len(self.members)
        spread = energies.std(axis=0) if len(energies) > 1 else np.zeros(n)
        return AtomicEnergies(energies.mean(axis=0), gradient, spread, n_outside)


def _bounds(members: Sequence[Member]) -> tuple[np.ndarray, np.ndarray]:
    """Range (n_elements, D) that lies in the training range of all members, as `Scaling.bounds`."""
    shape = members[0].scaling["shift"].shape
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    for member in members:
        minimum, maximum = member.scaling["minimum"], member.scaling["maximum"]
        if minimum is not None:
            slack = 8 * np.finfo(np.float32).eps * np.maximum(abs(minimum), abs(maximum))
            low, high = np.maximum(low, minimum - slack), np.minimum(high, maximum + slack)
    return low, high


# --- reading


def read_text(path: str | Path) -> list[Member]:
    """The members of a `potential.json`, or of the one in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no potential, or one of a later version.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        data = json.loads(path.read_text())
        if data["format"] != _FORMAT:
            raise KeyError("format")
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no potential of this package ({error!r})") from None
    if data["version"] != _VERSION:
        raise ValueError(
            f"{path} has version {data['version']} of the format, this package reads {_VERSION}:"
            " install a newer one"
        )
    try:
        descriptors = [descriptor_from_dict(d) for d in data["descriptors"]]
        members = [_member(m, descriptors[m["descriptor"]]) for m in data["members"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not members or any(m.descriptor.elements != descriptors[0].elements for m in members):
        raise ValueError(f"{path} is damaged: it needs members, all for the same elements")
    return members


def _member(data: Mapping, descriptor: Descriptor) -> Member:
    elements = [data["elements"][chemical_symbols[z]] for z in descriptor.elements]
    shape = len(elements), descriptor.n_columns
    scaling: dict[str, np.ndarray | None] = {}
    for name in _SCALING:
        rows = [element[name] for element in elements]
        scaling[name] = None if None in rows else np.zeros(shape)
        for k, row in enumerate(rows if None not in rows else ()):
            scaling[name][k, : len(row)] = row
    n_layers = len(data["activations"]) + 1
    weights = [np.array([e["weights"][layer] for e in elements]) for layer in range(n_layers)]
    biases = [np.array([e["biases"][layer] for e in elements]) for layer in range(n_layers)]
    n, quadratic = descriptor.n_columns, data.get("quadratic", False)
    widths = [n + n * (n + 1) // 2 if quadratic else n, *(b.shape[1] for b in biases)]
    shapes = [(len(elements), *pair) for pair in pairwise(widths)]
    if widths[-1] != 1 or [w.shape for w in weights] != shapes:
        raise ValueError("weights and biases do not fit")
    if unknown := set(data["activations"]) - set(ACTIVATION_CODES):
        raise ValueError(f"unknown activations {sorted(unknown)}")
    offsets = np.array([e["offset"] for e in elements], dtype=float)
    return Member(
        descriptor,
        tuple(data["activations"]),
        float(data["scale"]),
        offsets,
        data["scaling"],
        scaling,
        weights,
        biases,
        data.get("fade") and Fade(**data["fade"]),
        tuple((tuple(p["elements"]), p["inner"], p["outer"]) for p in data.get("zbl", ())),
    )


# --- writing


def write_text(models: Sequence[nn.Module], folder: str | Path) -> Path:
    """Write a model, or a committee, as `potential.json`.

    Raises:
        UnsupportedModelError: a model is no sum of networks of descriptors.
        ValueError: members for different elements, no lengths in Ang, or numbers that are not
            finite.
    """
    from schnetpack_softadapt.deploy.exchange.models import energy_in_ev
    from schnetpack_softadapt.model.composition import take_apart

    parts = [take_apart(model, short_range=True) for model in models]
    descriptors = list(dict.fromkeys(part.descriptor for part in parts))
    if len({descriptor.elements for descriptor in descriptors}) > 1:
        raise ValueError("the models of a committee must be made for the same elements")
    members = []
    for model, part in zip(models, parts, strict=True):
        entries = _entries(part, energy_in_ev(model, part))
        members.append({"descriptor": descriptors.index(part.descriptor), **entries})
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "units": {"energy": "eV", "length": "Ang"},
        "descriptors": [descriptor.to_dict() for descriptor in descriptors],
        "members": members,
    }
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        raise ValueError("the model has numbers that are not finite: its training failed") from None
    # a row of numbers a line: to look at and to compare
    return write_file(
        Path(folder) / FILE_NAME, text.replace("], [", "],\n[").replace("}, {", "},\n{") + "\n"
    )


def _entries(part, energy_unit: float) -> dict:
    networks, scaling = part.networks, part.scaling
    tables = {name: _double(getattr(scaling, name)) for name in _SCALING}
    weights, biases = map(_double, networks.weights), map(_double, networks.biases)
    weights, biases = list(weights), [b[:, 0] for b in biases]
    elements = {}
    for row, z in enumerate(part.descriptor.elements):
        n = part.descriptor.n_functions[z]
        entry = {name: tables[name][row, :n].tolist() for name in _SCALING}
        if not scaling.is_fitted:
            entry.update(dict.fromkeys(_STATISTICS))
        elements[chemical_symbols[z]] = {
            "offset": float(part.offsets[z]) * energy_unit,
            **entry,
            "weights": [w[row].tolist() for w in weights],
            "biases": [b[row].tolist() for b in biases],
        }
    entries = {
        "activations": list(networks.activations),
        **({"quadratic": True} if networks.quadratic else {}),
        "scale": float(networks.scale) * energy_unit,
        "scaling": scaling.mode,
        "elements": elements,
    }
    if networks.fade is not None:
        fade = networks.fade
        entries["fade"] = {
            "elements": list(fade.elements),
            "start": fade.start.tolist(),
            "stop": fade.stop.tolist(),
            "ceiling": fade.ceiling * energy_unit,
        }
    if part.baseline is not None:
        described = part.baseline.to_dict()
        if described["kind"] != "zbl":
            raise ValueError(f"{FILE_NAME} has a place for ZBL, for no other baseline: {described}")
        entries["zbl"] = described["pairs"]
    return entries


def _double(tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
