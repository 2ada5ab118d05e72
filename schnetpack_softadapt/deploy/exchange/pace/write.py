"""Linear and Finnis-Sinclair models of ours as `.yace` files for `pair_style pace`."""

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from torch import nn

from schnetpack_softadapt.deploy.exchange.models import energy_in_ev, refuse_fading
from schnetpack_softadapt.deploy.exchange.pace.format import (
    Bond,
    Embedding,
    PaceProduct,
    Potential,
    write,
)
from schnetpack_softadapt.deploy.exchange.pace.read import KINDS
from schnetpack_softadapt.deploy.exchange.snap import unscaled
from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.descriptors.ace.coupling import generalised, to_real
from schnetpack_softadapt.descriptors.ace.functions import Function
from schnetpack_softadapt.model.composition import (
    Composition,
    UnsupportedModelError,
    take_apart,
)
from schnetpack_softadapt.model.core_repulsion import CoreRepulsion

__all__ = ["write_pace"]

#: products of all elements that a file may have
_MOST_PRODUCTS = 100_000
#: the outer cutoff cannot be left out, and this is no distance that occurs, Ang
_NO_WIDTH = 1e-9
#: core energies where the cluster expansion would end, eV: never
_NEVER = (1e10, 1.0)


def write_pace(model: nn.Module, path: str | Path, with_overlay: bool = False) -> Path:
    """Write a `.yace` file.

    Args:
        model: one of ours with the functions of a cluster expansion, linear or of Finnis-Sinclair
            densities; with a `CoreRepulsion` or none.
        with_overlay: the caller adds another baseline that LAMMPS has a pair style for.

    Raises:
        UnsupportedModelError: another model, and why.
    """
    composition = take_apart(model, short_range=True)
    energy = energy_in_ev(model, composition)
    return write(_potential(composition, energy, with_overlay), path)


def _potential(composition: Composition, energy: float, with_overlay: bool) -> Potential:
    d, networks, baseline = composition.descriptor, composition.networks, composition.baseline
    is_linear = not networks.n_hidden and not networks.quadratic
    if d.kind != ClusterExpansion.kind or not (is_linear or networks.has_densities):
        raise UnsupportedModelError(
            "pair_style pace has functions of the cluster expansion (model/representation=ace) in"
            " linear models or Finnis-Sinclair densities, not"
            f" {d.name} in networks with hidden layers of {[*networks.n_hidden]}"
            f"{' and products' * networks.quadratic}"
        )
    refuse_fading(composition, "pace")
    if baseline is not None and not (with_overlay or isinstance(baseline, CoreRepulsion)):
        raise UnsupportedModelError(f"a .yace file has no place for {baseline.to_dict()}")
    kind = {ours: name for name, ours in KINDS.items()}.get((d.radial, d.cutoff_fn))
    if kind is None or (d.outer_width and kind != "ChebExpCos"):
        raise UnsupportedModelError(
            f"LAMMPS has no radial functions {d.radial!r} with the cutoff function {d.cutoff_fn!r}:"
            " chebyshev with cosine, chebyshev_power and bessel with none"
        )
    symbols = [chemical_symbols[z] for z in d.elements]
    constants, coefficients, embeddings = _densities(composition, energy)
    if not all(np.isfinite(x).all() for x in (constants, coefficients)):
        raise UnsupportedModelError("a coefficient is not finite")
    tables = _tables(d)
    products = _products(d, coefficients)
    inner_kind, cores = _core(d, symbols, baseline)
    n = range(len(symbols))
    bonds = {
        (i, j): Bond(
            kind,
            d.decay,
            d.cutoff,
            d.outer_width or _NO_WIDTH,
            inner_kind,
            d.inner,
            d.inner_width,
            cores[i][j],
            tables[i][j],
        )
        for i in n
        for j in n
    }
    return Potential(symbols, constants.tolist(), embeddings, bonds, products)


def _densities(
    composition: Composition, energy: float
) -> tuple[np.ndarray, np.ndarray, list[Embedding]]:
    """Constants (E,), coefficients (E, D, P) of the functions in the densities, embeddings."""
    networks, elements = composition.networks, composition.descriptor.elements
    offsets = np.array([float(composition.offsets[z]) for z in elements])
    if not networks.n_hidden:
        constants, linear = unscaled(composition)
        coefficients = linear[:, :, None]
        weights = np.ones((len(elements), 1))
    else:
        w = [x.detach().cpu().double().numpy() for x in (*networks.weights, *networks.biases)]
        scaling = composition.scaling
        shift, factor = (x.cpu().double().numpy() for x in (scaling.shift, scaling.factor))
        if len(w) != 4 or shift.any() or w[2].any():
            raise UnsupportedModelError("densities that do not vanish with their functions")
        coefficients, weights = w[0] * factor[:, :, None], w[1][:, :, 0] * float(networks.scale)
        constants = w[3][:, 0, 0] * float(networks.scale)
    exponents = np.array([1.0] + [0.5] * (weights.shape[1] - 1))
    name = "FinnisSinclairShiftedScaled"
    embeddings = [Embedding(name, energy * x, exponents, _NEVER) for x in weights]
    return energy * (constants + offsets), coefficients, embeddings


def _tables(d: ClusterExpansion) -> list[list[np.ndarray]]:
    """c_nlk of each pair of elements."""
    n = range(len(d.elements))
    used = [x for f in d.functions for x in f.parts if len(f.parts) > 1] or [
        d.functions[0].parts[0]
    ]
    n_max, top = max(x.n for x in used), max(x.l for x in used)
    if d.radial_table is None:
        table = np.repeat(np.eye(n_max, d.n_radial)[:, None], top + 1, 1)
        return [[table] * len(n)] * len(n)
    tables = [[np.zeros((n_max, top + 1, d.n_radial)) for _ in n] for _ in n]
    for i, j, level in product(n, n, range(top + 1)):
        rows = d.radial_table[level][i, j][:n_max]
        tables[i][j][: len(rows), level] = rows
    return tables


def _core(d: ClusterExpansion, symbols: list[str], baseline) -> tuple[str, list]:
    """Kind of the inner cutoff, and (A, lambda) of each pair of elements."""
    none = (0.0, 1.0)
    if not isinstance(baseline, CoreRepulsion):
        return "distance", [[none] * len(symbols)] * len(symbols)
    inner = {x[2:] for x in baseline.pairs.values()}
    is_whole = inner == {(0.0, 0.0)} and d.inner == 0
    if (not is_whole and inner != {(d.inner, d.inner_width)}) or baseline.cutoff_ang != d.cutoff:
        raise UnsupportedModelError(
            "the core repulsion has other cutoffs than the cluster expansion, which a .yace file"
            " cannot say"
        )

    def core(a: str, b: str) -> tuple[float, float]:
        pairs = baseline.pairs
        return pairs.get(f"{a}-{b}", pairs.get(f"{b}-{a}", none))[:2]

    return "density" if is_whole else "distance", [[core(a, b) for b in symbols] for a in symbols]


@lru_cache(maxsize=8192)
def _complex(levels: tuple[int, ...], level) -> np.ndarray:
    """Coefficients (2 l1 + 1, ...) of products of complex densities in a function of real ones."""
    c = generalised(levels, level).astype(complex)
    for x in levels:
        c = np.tensordot(c, to_real(x), (0, 0))
    assert np.abs(c.imag).max() < 1e-12
    return c.real


def _terms(d: ClusterExpansion, f: Function) -> Iterator[tuple[tuple, dict]]:
    """Densities (l, n, element) of the products that a function consists of, ascending, and their
    coefficients by m1, m2, ..., where equal densities and m, -m (conjugate) are taken together."""
    c = _complex(tuple(x.l for x in f.parts), f.level)
    entries = [(k, c[tuple(k)]) for k in np.argwhere(np.abs(c) > 1e-14)]
    choices = [np.flatnonzero(d.weights[x.channel]) for x in f.parts]
    for elements in product(*choices):
        weight = np.prod([d.weights[x.channel, e] for x, e in zip(f.parts, elements, strict=True)])
        densities = [(x.l, x.n, int(e)) for x, e in zip(f.parts, elements, strict=True)]
        order = sorted(range(len(densities)), key=densities.__getitem__)
        key = tuple(densities[k] for k in order)
        found: dict[tuple, float] = defaultdict(float)
        for place, value in entries:
            ms = [int(place[k]) - densities[k][0] for k in order]
            both = []
            for sign in (1, -1):
                pairs = zip(key, [sign * m for m in ms], strict=True)
                both.append(
                    tuple(
                        m
                        for _, same in groupby(pairs, lambda x: x[0])
                        for m in sorted(y[1] for y in same)
                    )
                )
            found[max(both)] += value * weight
        yield key, found


def _products(d: ClusterExpansion, coefficients: np.ndarray) -> list[list[PaceProduct]]:
    """Of each element."""
    whole: dict[tuple, dict[tuple, np.ndarray]] = {}
    n_elements, _, n_densities = coefficients.shape
    for column, f in enumerate(d.functions):
        for key, terms in _terms(d, f):
            of_key = whole.setdefault(key, {})
            for ms, value in terms.items():
                more = value * coefficients[:, column]  # (E, P)
                of_key[ms] = of_key[ms] + more if ms in of_key else more
        if len(whole) > _MOST_PRODUCTS:
            raise UnsupportedModelError(
                f"channels that are sums over {n_elements} elements give more than {_MOST_PRODUCTS}"
                " products of single elements"
            )
    found = []
    for i in range(n_elements):
        products, single = [], defaultdict(lambda: np.zeros(n_densities))
        for key, terms in whole.items():
            if len(key) > 1:
                densities = tuple((e, n, level) for level, n, e in key)
                values = np.array([x[i] for x in terms.values()])
                products.append(PaceProduct(densities, np.array([*terms]), values))
                continue
            ((_, n, e),) = key  # of one density there are the g_k alone
            for k, c in _of_basis(d, i, e, n):
                single[e, k + 1] += c * terms[(0,)][i]
        first = [
            PaceProduct(((e, k, 0),), np.zeros((1, 1), int), c[None])
            for (e, k), c in single.items()
        ]
        found.append(first + products)
    return found


def _of_basis(d: ClusterExpansion, i: int, e: int, n: int) -> list[tuple[int, float]]:
    """k and coefficients of the g_k in R_n0."""
    if d.radial_table is None:
        return [(n - 1, 1.0)]
    row = d.radial_table[0][i, e][n - 1]
    return [(int(k), float(row[k])) for k in np.flatnonzero(row)]
