"""A potential of `pair_style pace` as a model of ours.

The coefficients of products of complex densities become those of real ones, and these, since the
whole is invariant, sums of our independent functions: what refers to the same densities in another
order, or differs by couplings that depend on each other, becomes one set of columns.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from schnetpack_softadapt.deploy.exchange.models import made_model, made_networks
from schnetpack_softadapt.deploy.exchange.pace.format import (
    PaceFormatError,
    PaceProduct,
    Potential,
    read,
)
from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.descriptors.ace.coupling import (
    MOST_DENSITIES,
    generalised,
    independent,
    symmetric,
    to_real,
)
from schnetpack_softadapt.descriptors.ace.functions import Density
from schnetpack_softadapt.descriptors.elements import UnknownElementError, atomic_number
from schnetpack_softadapt.model import ACE, DescriptorPotential
from schnetpack_softadapt.model.core_repulsion import CoreRepulsion

__all__ = ["KINDS", "read_pace"]

#: our radial functions and cutoff functions by their names
KINDS = {
    "ChebExpCos": ("chebyshev", "cosine"),
    "ChebPow": ("chebyshev_power", "none"),
    "SBessel": ("bessel", "none"),
}
#: distances where the energy cutoff may act, which we do not have, Ang
_CLOSE = 0.5
#: part of the coefficients of a product that is not invariant
_TOLERANCE = 1e-7


def read_pace(path: str | Path) -> DescriptorPotential:
    """A model (float64, energies, forces and stress) from a `.yace` or `.ace` file.

    Its descriptor has the radial functions of the file as a table and the independent invariants of
    its products as columns; their coefficients in the densities are the first layer of
    `finnis_sinclair` networks, or linear ones. `train(..., start_from=path)` trains these further.

    Raises:
        OSError: a file that is not there.
        PaceFormatError: what is wrong with it, or what we cannot express.
    """
    path = Path(path)
    potential = read(path)
    try:
        return _model(potential)
    except (PaceFormatError, UnknownElementError, ValueError) as error:
        raise PaceFormatError(f"{path}: {error}") from error


def _model(p: Potential) -> DescriptorPotential:
    numbers = [atomic_number(x) for x in p.elements]
    if len(set(numbers)) < len(numbers):
        raise PaceFormatError("an element stands there twice")
    order = np.argsort(numbers)  # ours are ascending
    channels = {int(mu): k for k, mu in enumerate(order)}
    elements = [p.elements[k] for k in order]
    # (n, l, k) of each bond
    tables = [[p.bonds[i, j].table for j in order] for i in order]
    shape = tables[0][0].shape
    if any(x.shape != shape for row in tables for x in row):
        raise PaceFormatError("bonds with different numbers of radial functions are not supported")
    plain = np.broadcast_to(np.eye(shape[0], shape[2])[:, None], shape)
    is_plain = all(np.array_equal(x, plain) for row in tables for x in row)
    # products of one density have the g_k: rows of l = 0 after those of the R_n0
    shift = 0 if is_plain else shape[0]
    columns, n_densities, embedding = {}, _densities(p), []
    for i in order:
        embedding.append(_embedding(p, i, n_densities))
        found: dict[tuple[Density, ...], np.ndarray] = {}
        for product in p.products[i]:
            parts, c = _real(product, channels, shift)
            # (2 l1 + 1, ..., P)
            c = c @ embedding[-1][1]
            found[parts] = found.get(parts, 0.0) + c
        for parts, c in found.items():
            for level, x in _invariants(parts, c).items():
                key = (parts, level)
                columns.setdefault(key, np.zeros((len(order), n_densities)))[len(embedding) - 1] = x
    if not columns:
        raise PaceFormatError("there are no products")
    arguments = _radial_arguments(p)
    if not is_plain:
        rows = [[[x[:, k] for k in range(shape[1])] for x in row] for row in tables]
        for row in rows:
            for x in row:
                x[0] = np.concatenate([x[0], np.eye(shape[2])])
        arguments["radial_table"] = [[[c.tolist() for c in x] for x in row] for row in rows]
    descriptor = ClusterExpansion(elements, products=[*columns], **arguments)
    coefficients = np.stack([*columns.values()], 1)  # (E, D, P)
    weights = np.stack([w for w, _ in embedding])
    is_linear = n_densities == 1
    networks = made_networks(
        descriptor.n_columns,
        {p.elements[k]: float(p.constants[k]) for k in order},
        n_hidden=() if is_linear else (n_densities,),
        activation="finnis_sinclair",
        dtype="float64",
    )
    with torch.no_grad():
        for bias in networks.biases:
            bias.zero_()
        networks.weights[0].copy_(torch.from_numpy(coefficients))
        if not is_linear:
            networks.weights[1].copy_(torch.from_numpy(weights[:, :, None]))
    representation = ACE(descriptor=descriptor, scaling="none")
    provenance = "read from a potential of pair_style pace"
    return made_model(representation, networks, provenance, _core(p))


def _radial_arguments(p: Potential) -> dict:
    """Of the descriptor, the same for all bonds."""
    first, *others = p.bonds.values()
    ours = [x._replace(core=(0.0, 0.0), table=0) for x in (first, *others)]
    if any(x != ours[0] for x in ours):
        raise PaceFormatError("bonds with different radial functions or cutoffs are not supported")
    if first.kind not in KINDS:
        raise PaceFormatError(
            f"radial functions {first.kind!r} are not among {', '.join(KINDS)}, which are supported"
        )
    if first.inner_kind not in ("distance", "density"):
        raise PaceFormatError(
            f"an inner cutoff of kind {first.inner_kind!r} depends on the nearest neighbour, which"
            " is not supported"
        )
    radial, cutoff_fn = KINDS[first.kind]
    arguments = {
        "cutoff": first.cutoff,
        "radial": radial,
        "cutoff_fn": cutoff_fn,
        "decay": first.decay,
        "outer_width": first.outer_width if radial == "chebyshev" else 0.0,
    }
    if first.inner_kind == "distance" and first.inner > 0:
        arguments |= {"inner": first.inner, "inner_width": first.inner_width}
    elif first.inner_kind == "density" and first.inner - first.inner_width > 0:
        raise PaceFormatError("radial functions that jump to zero at rcut_in are not supported")
    return arguments


def _densities(p: Potential) -> int:
    """How many our networks have: one that is linear, then square roots."""
    return 1 + max(int(np.sum(x.exponents != 1)) for x in p.embeddings)


def _embedding(p: Potential, i: int, n_densities: int) -> tuple[np.ndarray, np.ndarray]:
    """w (n_densities,) of our densities, and these of the potential's, (P, n_densities)."""
    x = p.embeddings[i]
    is_root = x.exponents != 1
    if x.kind not in ("FinnisSinclair", "FinnisSinclairShiftedScaled"):
        raise PaceFormatError(f"the embedding {x.kind!r} of {p.elements[i]} is not known")
    if is_root.any() and (
        x.kind != "FinnisSinclairShiftedScaled" or (x.exponents[is_root] != 0.5).any()
    ):
        raise PaceFormatError(
            f"the embedding {x.kind} of {p.elements[i]} with exponents {x.exponents.tolist()}: only"
            " FinnisSinclairShiftedScaled with 0.5, and 1, are supported"
        )
    weights, matrix = np.zeros(n_densities), np.zeros((len(x.weights), n_densities))
    matrix[~is_root, 0], weights[0] = x.weights[~is_root], 1.0
    for k, old in enumerate(np.flatnonzero(is_root), start=1):
        matrix[old, k], weights[k] = 1.0, x.weights[old]
    return weights, matrix


def _real(
    product: PaceProduct, channels: dict[int, int], shift: int
) -> tuple[tuple[Density, ...], np.ndarray]:
    """Our densities, ascending, and coefficients (2 l1 + 1, ..., P) of their real products."""
    rank = len(product.densities)
    if rank > MOST_DENSITIES:
        raise PaceFormatError(f"products of {rank} densities: at most {MOST_DENSITIES} can be")
    parts = [
        Density(level, n + (shift if rank == 1 else 0), channels[mu])
        for mu, n, level in product.densities
    ]
    c = np.zeros([2 * x.l + 1 for x in parts] + [product.coefficients.shape[1]], complex)
    for ms, values in zip(product.ms, product.coefficients, strict=True):
        c[tuple(m + x.l for m, x in zip(ms, parts, strict=True))] += values
    for x in parts:  # each turns the first axis and puts it behind the others
        c = np.tensordot(c, to_real(x.l).conj(), (0, 1))
    c = np.moveaxis(c.real, 0, -1)  # the densities are real, and so is what counts
    order = sorted(range(rank), key=parts.__getitem__)
    return tuple(parts[k] for k in order), c.transpose(*order, rank)


@lru_cache(maxsize=4096)
def _basis(levels: tuple[int, ...], same: tuple[int, ...]) -> tuple[tuple, np.ndarray]:
    paths = independent(levels, same)
    rows = [symmetric(generalised(levels, x), same).ravel() for x in paths]
    return paths, np.array(rows).reshape(len(paths), math.prod(2 * x + 1 for x in levels))


def _invariants(parts: tuple[Density, ...], c: np.ndarray) -> dict:
    """Coefficients (P,) of our functions of a product, by their `Function.level`."""
    levels, same = tuple(x.l for x in parts), tuple(parts.index(x) for x in parts)
    paths, basis = _basis(levels, same)
    c = np.stack([symmetric(x, same).ravel() for x in np.moveaxis(c, -1, 0)], 1)
    found = np.linalg.lstsq(basis.T, c, rcond=None)[0]
    if np.abs(basis.T @ found - c).max() > _TOLERANCE * np.abs(c).max():
        names = " ".join(f"A(n={x.n}, l={x.l})" for x in parts)
        raise PaceFormatError(f"the products {names} change when all atoms turn or are mirrored")
    return dict(zip(paths, found, strict=True))


def _core(p: Potential) -> CoreRepulsion | None:
    """Checks that the energy cutoff does not act where atoms come."""
    pairs, cutoff = {}, 0.0
    for (i, j), x in p.bonds.items():
        height, rate = map(abs, x.core)
        has_inner = x.inner_kind == "distance"
        if height == 0 or (has_inner and x.inner <= 0):
            continue
        if x.core != p.bonds[j, i].core:
            raise PaceFormatError(f"bonds {[i, j]} and {[j, i]} have different core repulsions")
        inner = (x.inner, x.inner_width) if has_inner else (0.0, 0.0)
        pairs[f"{p.elements[i]}-{p.elements[j]}"] = (height, rate, *inner)
        cutoff = x.cutoff
        start = min(y.energy_cutoff[0] - y.energy_cutoff[1] for y in p.embeddings)
        if height * math.exp(-rate * _CLOSE**2) / _CLOSE > start:
            raise PaceFormatError(
                f"core energies reach rho_core_cutoff - drho_core_cutoff = {start} eV at more than"
                f" {_CLOSE} Ang, where the cluster expansion ends: that is not supported"
            )
    return CoreRepulsion(pairs, cutoff) if pairs else None
