"""The files of `pair_style pace`: `.yace` (YAML) and its predecessor `.ace` (text).

Both hold sums over products of complex densities A_{mu n l m} = sum_j R_nl(r_ij) Y_lm of the
neighbours of an element mu, with the phase of Condon and Shortley and Y_00 = 1 (Y. Lysogorskiy et
al., npj Comput. Mater. 7, 97, 2021):

    E_i = E_0 + f sum_p w_p F(rho_p; m_p) + sum_j core(r_ij),
    rho_p = Re sum_products sum_{m1 m2 ...} c_{p; m1 m2 ...} A_{1 m1} A_{2 m2} ...,
    R_nl = sum_k c_nlk g_k(r_ij),

where products of one density take the g_k themselves, and f goes to zero at `energy_cutoff` of the
core energies.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from schnetpack_softadapt.files import write_file

__all__ = ["Bond", "Embedding", "PaceFormatError", "PaceProduct", "Potential", "read", "write"]

_SPLINE_BINS = 0.001


class PaceFormatError(ValueError):
    """A file that is no such potential, or one that we cannot express; names it and says why."""


class Bond(NamedTuple):
    """Radial functions of a pair of elements."""

    kind: str  # name of the g_k
    decay: float  # their parameter lambda
    cutoff: float  # Ang
    outer_width: float  # Ang
    inner_kind: str  # of the inner cutoff: "distance" or "density" (none for the g_k), "zbl"
    inner: float  # Ang
    inner_width: float  # Ang
    core: tuple[float, float]  # A (eV Ang) and lambda (1/Ang^2) of the repulsion
    table: np.ndarray  # (n, lmax + 1, k) c_nlk


class Embedding(NamedTuple):
    """How the densities of an element give the energy."""

    kind: str  # name of F
    weights: np.ndarray  # (P,) w and m
    exponents: np.ndarray  # (P,) w and m
    energy_cutoff: tuple[float, float]  # of core energies, and the width where f falls, eV


class PaceProduct(NamedTuple):
    """Products of the same densities."""

    densities: tuple[tuple[int, int, int], ...]  # (element, n, l) of each, n from 1
    ms: np.ndarray  # (M, rank)
    coefficients: np.ndarray  # (M, P)


class Potential(NamedTuple):
    """A whole potential; elements are counted in the order of `elements`."""

    elements: list[str]  # symbols
    constants: list[float]  # E_0 of each, eV
    embeddings: list[Embedding]  # of each
    bonds: dict[tuple[int, int], Bond]  # of each pair (i, j)
    products: list[list[PaceProduct]]  # of each element


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Lists as keys, such as [0, 0] of bonds, become tuples."""

    def construct_mapping(self, node, deep=False):
        values = {}
        for key, value in node.value:
            key = self.construct_object(key, deep=True)
            key = tuple(key) if isinstance(key, list) else key
            values[key] = self.construct_object(value, deep=True)
        return values


_Loader.add_constructor(
    "tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True)
)


def read(path: str | Path) -> Potential:
    """A potential from a file.

    Raises:
        OSError: it is not there.
        PaceFormatError: what is wrong with it.
    """
    path = Path(path)
    text = path.read_text()
    try:
        potential = _read_text(text) if path.suffix == ".ace" else _read_yaml(text)
        _check(potential)
    except PaceFormatError as error:
        raise PaceFormatError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise PaceFormatError(f"{path}: {' '.join(str(error).split())}") from error
    except KeyError as error:
        raise PaceFormatError(f"{path} lacks {error}") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise PaceFormatError(f"{path} is no potential of pair_style pace ({error})") from error
    return potential


def _check(p: Potential) -> None:
    n = range(len(p.elements))
    missing = [f"{[i, j]}" for i in n for j in n if (i, j) not in p.bonds]
    if missing:
        raise PaceFormatError(f"there are no bonds {', '.join(missing)}")
    numbers = [*p.constants]
    for x in p.embeddings:
        numbers += [*x.weights, *x.exponents, *x.energy_cutoff]
    for x in p.bonds.values():
        numbers += [x.decay, x.cutoff, x.outer_width, x.inner, x.inner_width, *x.core]
        numbers += x.table.ravel().tolist()
    for i in n:
        for x in p.products[i]:
            for (mu, order, level), ms in zip(x.densities, x.ms.T, strict=True):
                shape = p.bonds[i, mu].table.shape
                most = shape[2] if len(x.densities) == 1 else shape[0]
                if not (1 <= order <= most and 0 <= level < shape[1] and abs(ms).max() <= level):
                    raise PaceFormatError(
                        f"there is no density n = {order}, l = {level}, m = {ms} of {mu} around {i}"
                    )
            numbers += x.coefficients.ravel().tolist()
    if not np.isfinite(numbers).all():
        raise PaceFormatError("a number is not finite")


def _floats(values) -> np.ndarray:
    """Nested lists of numbers, which YAML may take for texts (1e-05)."""
    return np.array(values, dtype=object).astype(float)


def _product(densities: Iterable, ms, coefficients, n_densities: int) -> PaceProduct:
    densities = tuple((int(mu), int(n), int(level)) for mu, n, level in densities)
    ms = np.array(ms, int).reshape(-1, len(densities))
    return PaceProduct(densities, ms, _floats(coefficients).reshape(len(ms), n_densities))


def _read_yaml(text: str) -> Potential:
    data = yaml.load(text, _Loader)
    elements = list(map(str, data["elements"]))
    n = range(len(elements))
    embeddings, products = [], []
    for i in n:
        x = data["embeddings"][i]
        parameters = _floats(x["FS_parameters"]).reshape(-1, 2)
        if len(parameters) != int(x["ndensity"]):
            raise PaceFormatError(f"FS_parameters of {elements[i]} are not two for each density")
        cutoff = float(x["rho_core_cutoff"]), float(x["drho_core_cutoff"])
        embeddings.append(Embedding(x["npoti"], *parameters.T, cutoff))
        products.append(
            [
                _product(
                    zip(f["mus"], f["ns"], f["ls"], strict=True),
                    f["ms_combs"],
                    f["ctildes"],
                    len(parameters),
                )
                for f in data["functions"][i]
            ]
        )
    bonds = {}
    for pair, x in data["bonds"].items():
        if str(x["radbasename"]).startswith("ACE.jl"):
            raise PaceFormatError(f"radial functions {x['radbasename']} are not supported")
        bonds[pair] = Bond(
            x["radbasename"],
            float(x["radparameters"][0]),
            float(x["rcut"]),
            float(x["dcut"]),
            x.get("inner_cutoff_type", "density"),
            float(x.get("rcut_in", 0)),
            float(x.get("dcut_in", 0)),
            (float(x["prehc"]), float(x["lambdahc"])),
            _floats(x["radcoefficients"]),
        )
    return Potential(elements, list(map(float, data["E0"])), embeddings, bonds, products)


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def _read_text(text: str) -> Potential:
    head, *functions = text.split("ctilde_basis_func:")

    def numbers(name: str, n: int) -> np.ndarray:
        found = re.search(rf"(?<!\S){re.escape(name)}\s*((?:{_NUMBER}\s+){{{n}}})", head)
        if found is None:
            raise PaceFormatError(f"{name!r} with {n} numbers is missing")
        return np.array(found[1].split(), float)

    def word(name: str, default: str | None = None) -> str:
        found = re.search(rf"(?<!\S){re.escape(name)}\s*(\S+)", head)
        if found is None and default is None:
            raise PaceFormatError(f"{name!r} is missing")
        return default if found is None else found[1]

    if int(numbers("nelements=", 1)[0]) != 1:
        raise PaceFormatError("files .ace of several elements are not supported: convert to .yace")
    n_parameters = int(re.search(r"(\d+)\s+FS parameters:", head)[1])
    parameters = numbers("FS parameters:", n_parameters).reshape(-1, 2)
    kind = word("embedding-function:", "FinnisSinclair")
    embedding = Embedding(kind, *parameters.T, tuple(numbers("core energy-cutoff parameters:", 2)))
    n, levels, k = (int(numbers(f"{x}=", 1)[0]) for x in ("nradmax", "lmax", "nradbase"))
    table = numbers("crad=", k * n * (levels + 1)).reshape(k, n, levels + 1).transpose(1, 2, 0)
    bond = Bond(
        word("radbasename=", "ChebExpCos"),
        *(float(numbers(f"{x}=", 1)[0]) for x in ("radparameter", "cutoff", "dcut")),
        "density",
        0.0,
        0.0,
        tuple(numbers("core repulsion parameters:", 2)),
        table,
    )
    products = []
    for text in functions:
        rows = [re.search(rf"\b{x}=\(([^)]*)\)", text)[1].split() for x in ("mu", "n", "l")]
        entries = re.findall(r"<([^>]*)>:([^<]*?)(?=<|total|$)", text, re.DOTALL)
        ms, coefficients = zip(*((a.split(), b.split()) for a, b in entries), strict=True)
        products.append(_product(zip(*rows, strict=True), ms, coefficients, len(parameters)))
    constants = numbers("E0:", 1).tolist()
    return Potential([word("elements:")], constants, [embedding], {(0, 0): bond}, [products])


def write(potential: Potential, path: str | Path) -> Path:
    """Write a `.yace` file."""
    p = potential

    def flow(**entries) -> str:
        return "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"

    lines = [f"elements: [{', '.join(p.elements)}]", f"E0: {list(map(float, p.constants))}"]
    lines += [f"deltaSplineBins: {_SPLINE_BINS}", "embeddings:"]
    for i, x in enumerate(p.embeddings):
        parameters = np.stack([x.weights, x.exponents], 1).ravel().tolist()
        cutoff, width = x.energy_cutoff
        entries = {"ndensity": len(x.weights), "FS_parameters": parameters, "npoti": x.kind}
        text = flow(**entries, rho_core_cutoff=cutoff, drho_core_cutoff=width)
        lines.append(f"  {i}: {text}")
    lines.append("bonds:")
    for (i, j), x in p.bonds.items():
        n, levels, k = x.table.shape
        text = flow(
            nradmax=n,
            lmax=levels - 1,
            nradbasemax=k,
            radbasename=x.kind,
            radparameters=[x.decay],
            radcoefficients=x.table.tolist(),
            prehc=x.core[0],
            lambdahc=x.core[1],
            rcut=x.cutoff,
            dcut=x.outer_width,
            rcut_in=x.inner,
            dcut_in=x.inner_width,
            inner_cutoff_type=x.inner_kind,
        )
        lines.append(f"  [{i}, {j}]: {text}")
    lines.append("functions:")
    for i, products in enumerate(p.products):
        lines.append(f"  {i}:" + (" []" if not products else ""))
        for x in products:
            mus, ns, ls = (list(y) for y in zip(*x.densities, strict=True))
            text = flow(
                mu0=i,
                rank=len(mus),
                ndensity=x.coefficients.shape[1],
                num_ms_combs=len(x.ms),
                mus=mus,
                ns=ns,
                ls=ls,
                ms_combs=x.ms.ravel().tolist(),
                ctildes=x.coefficients.ravel().tolist(),
            )
            lines.append(f"    - {text}")
    return write_file(Path(path), "\n".join(lines) + "\n")
