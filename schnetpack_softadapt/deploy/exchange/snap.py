"""SNAP potentials of LAMMPS (`.snapcoeff`, `.snapparam`) as our models and back.

E = sum_i [c_0 + sum_k c_k B_k(i)] with coefficients of each element (A. P. Thompson et al., J.
Comput. Phys. 285, 316, 2015, eq. 14; products of two B in quadratic ones): a network without hidden
layers. Other pair styles that LAMMPS adds to it, such as ZBL, are not in these files.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import nn

from schnetpack_softadapt.deploy.exchange.models import made_model, made_networks, refuse_fading
from schnetpack_softadapt.descriptors.elements import UnknownElementError, atomic_number
from schnetpack_softadapt.descriptors.snap import Bispectrum
from schnetpack_softadapt.descriptors.snap.clebsch import components
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.model import SNAP, DescriptorPotential
from schnetpack_softadapt.model.composition import (
    Composition,
    UnsupportedModelError,
    take_apart,
)

__all__ = ["SnapFormatError", "read_snap", "unscaled", "write_snap"]

_FLAGS = ("switchflag", "bzeroflag", "chemflag", "wselfallflag", "bnormflag", "quadraticflag")
_NUMBERS = ("twojmax", "rcutfac", "rfac0", "rmin0")
_OF_ELEMENTS = ("sinner", "dinner")
# of how LAMMPS computes, not of what
_IGNORED = ("chunksize", "parallelthresh", "diagonalstyle")


class SnapFormatError(ValueError):
    """Files that are no SNAP potential, or one that we do not know; names file and line."""


def read_snap(
    coefficients: str | Path, parameters: str | Path | None = None
) -> DescriptorPotential:
    """A model (float64, energies, forces and stress) from a potential in metal units.

    Args:
        coefficients: the file NAME.snapcoeff.
        parameters: by default NAME.snapparam beside it.

    Raises:
        OSError: a file that is not there.
        SnapFormatError: what is wrong in which line.
    """
    path = Path(coefficients)
    options = _read_parameters(Path(parameters or path.with_suffix(".snapparam")))
    elements, rows = _read_coefficients(path)
    for name in _OF_ELEMENTS:
        if name in options:
            values = options[name]
            if len(values) != len(elements):
                raise SnapFormatError(f"{path}: {name} needs a number for each of {[*elements]}")
            options[name] = dict(zip(elements, values, strict=True))
    try:
        descriptor = Bispectrum(
            {x: values[0] for x, values in elements.items()},
            {x: values[1] for x, values in elements.items()},
            **options,
        )
    except ValueError as error:
        raise SnapFormatError(f"{path}: {error}") from error
    n = descriptor.n_columns
    if rows.shape[1] != n + 1:
        raise SnapFormatError(
            f"{path}: {rows.shape[1]} coefficients of each element, but {n + 1} belong to twojmax ="
            f" {descriptor.twojmax} and the other parameters"
        )
    order = _columns(descriptor, [*elements])
    shifts = {x: float(row[0]) for x, row in zip(elements, rows, strict=True)}
    networks = made_networks(n, shifts, n_hidden=())
    representation = SNAP(descriptor=descriptor, scaling="none")
    model = made_model(representation, networks, "read from a SNAP potential")
    with torch.no_grad():
        networks.biases[0].zero_()
        for x, row in zip(elements, rows, strict=True):
            place = networks.elements.index(atomic_number(x))
            networks.weights[0][place, :, 0] = torch.from_numpy(row[1:][order])
    return model


def write_snap(
    model: nn.Module, coefficients: str | Path, with_overlay: bool = False
) -> list[Path]:
    """Write NAME.snapcoeff and NAME.snapparam for `pair_style snap`, metal units.

    Args:
        model: one of our models with bispectrum components, linear or quadratic in these.
        coefficients: NAME.snapcoeff.
        with_overlay: the caller adds a baseline that LAMMPS has a pair style for.

    Raises:
        UnsupportedModelError: another model.
    """
    composition = take_apart(model, short_range=with_overlay)
    descriptor, networks = composition.descriptor, composition.networks
    if descriptor.kind != Bispectrum.kind or networks.n_hidden:
        raise UnsupportedModelError(
            "a SNAP potential has bispectrum components and networks without hidden layers, not"
            f" {descriptor.name} and hidden layers of {[*networks.n_hidden]}"
        )
    refuse_fading(composition, "snap")
    quadratic = descriptor.quadraticflag or networks.quadratic
    if descriptor.quadraticflag and networks.quadratic:
        raise UnsupportedModelError("SNAP has no products of products: leave quadraticflag out")
    constant, coefficient = unscaled(composition)
    path = Path(coefficients)
    lines = ["# SNAP coefficients", "", f"{len(coefficient)} {coefficient.shape[1] + 1}"]
    for row, z in enumerate(descriptor.elements):
        radius, weight = descriptor.radii[z], descriptor.weights[z]
        lines.append(f"{chemical_symbols[z]} {radius!r} {weight!r}")
        values = [constant[row] + float(composition.offsets[z]), *coefficient[row]]
        if not np.isfinite(values).all():
            raise UnsupportedModelError(f"a coefficient of {chemical_symbols[z]} is not finite")
        lines += [repr(float(x)) for x in values]
    settings = [f"{name} {getattr(descriptor, name)!r}" for name in _NUMBERS]
    flags = {name: getattr(descriptor, name) for name in _FLAGS} | {"quadraticflag": quadratic}
    settings += [f"{name} {int(flag)}" for name, flag in flags.items()]
    if descriptor.sinner is not None:
        settings.append("switchinnerflag 1")
        for name in _OF_ELEMENTS:
            settings.append(" ".join([name, *map(repr, getattr(descriptor, name).values())]))
    second = path.with_suffix(".snapparam")
    write_file(path, "\n".join(lines) + "\n")
    write_file(second, "\n".join(["# SNAP parameters", *settings]) + "\n")
    return [path, second]


def unscaled(composition: Composition) -> tuple[np.ndarray, np.ndarray]:
    """Constants (n_elements,) and coefficients (n_elements, D or more) of columns as they are.

    With x = (G - s) f, x w + x A x / 2 has the coefficients f A f of products, and of single
    columns f w - (f A f) s.
    """
    networks = composition.networks
    shift, factor = (
        getattr(composition.scaling, x).cpu().double().numpy() for x in ("shift", "factor")
    )
    weights, bias = (
        x[0].detach().cpu().double().numpy() * float(networks.scale)
        for x in (networks.weights, networks.biases)
    )
    n = shift.shape[1]
    linear, constant = weights[:, :n, 0] * factor, bias[:, 0, 0]
    constant = constant - (linear * shift).sum(1)
    if not networks.quadratic:
        return constant, linear
    k, l = np.triu_indices(n)
    products = weights[:, n:, 0] * factor[:, k] * factor[:, l]
    matrix = np.zeros((len(shift), n, n))
    matrix[:, k, l] = matrix[:, l, k] = products
    by_shift = np.einsum("ekl,el->ek", matrix, shift)
    constant = constant + 0.5 * (by_shift * shift).sum(1)
    return constant, np.concatenate([linear - by_shift, products], axis=1)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Numbers and words of the lines that say something."""
    lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
    return [(k, words) for k, words in enumerate(lines, start=1) if words]


def _number(path: Path, line: int, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SnapFormatError(f"{path}, line {line}: {word!r} is no finite number")
    return value


def _read_parameters(path: Path) -> dict:
    options, inner = {}, 0.0
    for line, (name, *words) in _lines(path):
        values = [_number(path, line, word) for word in words]
        if name in _OF_ELEMENTS:
            options[name] = values
            continue
        if name not in (*_NUMBERS, *_FLAGS, *_IGNORED, "switchinnerflag"):
            raise SnapFormatError(f"{path}, line {line}: {name!r} is not supported")
        if len(values) != 1:
            raise SnapFormatError(f"{path}, line {line}: {name} needs one number")
        if name == "switchinnerflag":
            inner = values[0]
        elif name in _FLAGS:
            options[name] = bool(values[0])
        elif name in _NUMBERS:
            options[name] = values[0]
    missing = {"twojmax", "rcutfac", *(_OF_ELEMENTS if inner else ())} - set(options)
    if missing:
        raise SnapFormatError(f"{path} lacks {', '.join(sorted(missing))}")
    return {name: x for name, x in options.items() if inner or name not in _OF_ELEMENTS}


def _read_coefficients(path: Path) -> tuple[Mapping[str, tuple[float, float]], np.ndarray]:
    """Radius and weight of each element in the order of the file, coefficients (n_elements, n)."""
    lines = iter(_lines(path))

    def following(n: int, what: str) -> tuple[int, list[str]]:
        line, words = next(lines, (0, []))
        if len(words) != n:
            where = f"line {line}" if line else "at the end"
            raise SnapFormatError(f"{path}, {where}: expected {what}")
        return line, words

    line, words = following(2, "the numbers of elements and coefficients")
    n_elements, n = (int(_number(path, line, word)) for word in words)
    elements, rows = {}, []
    for _ in range(n_elements):
        line, (symbol, *words) = following(3, "an element, its radius and its weight")
        try:
            atomic_number(symbol)
        except UnknownElementError as error:
            raise SnapFormatError(f"{path}, line {line}: {error}") from error
        if symbol in elements:
            raise SnapFormatError(f"{path}, line {line}: {symbol} a second time")
        elements[symbol] = tuple(_number(path, line, word) for word in words)
        row = [following(1, f"a coefficient of {symbol}") for _ in range(n)]
        rows.append([_number(path, line, word) for line, (word,) in row])
    return elements, np.array(rows)


def _columns(descriptor: Bispectrum, symbols: list[str]) -> np.ndarray:
    """Place in the file of each of our columns: there elements have the order of the file."""
    n = descriptor.n_components
    order = np.arange(n)
    if descriptor.chemflag:
        place = [symbols.index(chemical_symbols[z]) for z in descriptor.elements]
        theirs = {b: k for k, b in enumerate(components(descriptor.twojmax, len(symbols)))}
        order = np.array(
            [
                theirs[b._replace(a=place[b.a], b=place[b.b], c=place[b.c])]
                for b in components(descriptor.twojmax, len(symbols))
            ]
        )
    if not descriptor.quadraticflag:
        return order
    at = {pair: n + k for k, pair in enumerate(descriptor.pairs_of_components())}
    pairs = [tuple(sorted((order[k], order[m]))) for k, m in at]
    return np.array([*order, *(at[pair] for pair in pairs)])
