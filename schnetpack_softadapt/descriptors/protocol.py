"""What every family of descriptors is to the rest of the package: `Descriptor` and `Engine`.

A descriptor G_i (D columns) of atom i is a function of the vectors r_ij to its neighbours within a
cutoff, and of their elements; nothing changes when all atoms move or turn together. A family is a
folder `descriptors.<kind>` that defines a `Descriptor` (the parameters) and at least one `Engine`
(how they are computed). An engine must give values and the vector-Jacobian product; everything
else has a default. No other room knows a family, except for the exchange of its own file formats.

N: atoms, P: pairs, D: columns.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import yaml
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.elements import check_elements

# torch is imported by what computes with it: simulations with compiled engines do without
if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "ENGINES",
    "Descriptor",
    "Engine",
    "Jacobian",
    "LinearMap",
    "PairMap",
    "Pairs",
    "check_engine_name",
    "descriptor_from_dict",
    "read_descriptor",
]

#: names that `Descriptor.engine` takes
ENGINES = ("auto", "kernels", "reference")

_KINDS: dict[str, type[Descriptor]] = {}


def check_engine_name(name: str) -> None:
    """Raises ValueError for a name that is not in `ENGINES`."""
    if name not in ENGINES:
        raise ValueError(f"unknown backend {name!r}; choose from {ENGINES}")


class Descriptor(ABC):
    """Parameters of a descriptor, which say all that its values depend on.

    A subclass sets `kind` and is then found by `descriptor_from_dict`. Two descriptors with the
    same fingerprint are equal.
    """

    kind: ClassVar[str]
    #: what its functions are called in messages
    name: ClassVar[str] = "functions"
    #: of the formulas: stores of an older version are computed again
    version: ClassVar[int] = 1

    elements: tuple[int, ...]  # atomic numbers that have descriptors, ascending
    cutoff: float  # Ang
    n_functions: Mapping[int, int]  # used columns of each element

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    @cached_property
    def n_columns(self) -> int:
        """D, the largest number of functions of an element; others are padded with zeros."""
        return max(self.n_functions.values())

    @abstractmethod
    def to_dict(self) -> dict:
        """Plain numbers and strings, with the key "kind"."""

    @classmethod
    def from_dict(cls, data: Mapping) -> Descriptor:
        """Read what `to_dict` wrote; what is not there has its default."""
        return cls(**{key: value for key, value in data.items() if key != "kind"})

    def engine(self, device: torch.device | str = "cpu", name: str = "auto") -> Engine:
        """Compiled loops on the CPU ("kernels"), else torch ("reference": exact if asked for).

        A family with one engine returns it for every name.

        Raises:
            ValueError: an unknown name, or "kernels" for a device other than the CPU.
            ImportError: "kernels" with NUMBA_DISABLE_JIT.
        """
        from schnetpack_softadapt.descriptors.engines import choose_engine

        return choose_engine(self, str(device).partition(":")[0], name)

    def columns(self, z_i: int, z_j: int) -> Sequence[int]:
        """Columns of an atom of element z_i that depend on neighbours of z_j; by default all."""
        return range(self.n_functions[z_i])

    def select(self, columns: Mapping[int, Sequence[int]]) -> Descriptor:
        """The same descriptor with some of its columns only, in the order given.

        A family whose columns are not computed one by one may compute all and keep some.

        Args:
            columns: of each element, by atomic number.

        Raises:
            ValueError: the family has no such choice.
        """
        raise ValueError(
            f"columns of a descriptor of the kind {self.kind!r} cannot be chosen: leave `select`"
            " out of model.representation"
        )

    def describe(self, z: int, column: int) -> str:
        """What a column of element z is, in one line, for reports and warnings."""
        return f"{self.kind} {column}"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all parameters and the version of the formulas."""
        text = json.dumps({"version": self.version, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __eq__(self, other):
        return isinstance(other, Descriptor) and self.fingerprint == other.fingerprint

    def __hash__(self):
        return hash(self.fingerprint)

    @property
    def title(self) -> str:
        """Kind, number of functions of each element, and cutoff, in one line."""
        numbers = ", ".join(f"{n} of {chemical_symbols[z]}" for z, n in self.n_functions.items())
        return f"{self.name} ({self.kind}): {numbers}; cutoff {self.cutoff:g} Ang"

    def summary(self) -> str:
        """What fits on a screen."""
        return self.title

    def __str__(self):
        """The title, and all functions, one a line."""
        lines = [self.title]
        for z, n in self.n_functions.items():
            lines.append(f"{chemical_symbols[z]}: {n} {self.name}")
            lines += [f"  {k:3d} {self.describe(z, k)}" for k in range(n)]
        return "\n".join(lines)


def descriptor_from_dict(data: Mapping) -> Descriptor:
    """The descriptor that `to_dict` of any family wrote.

    Raises:
        ValueError: no family of that kind.
    """
    kind = data.get("kind")
    if kind not in _KINDS:
        try:
            import_module(f"{__package__}.{kind}")  # its folder, not imported so far
        except ImportError:
            raise ValueError(f"there is no descriptor of the kind {kind!r}") from None
    return _KINDS[kind].from_dict(data)


def read_descriptor(path: str | Path) -> Descriptor:
    """The descriptor in a JSON or YAML file that holds what `to_dict` gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no descriptor.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, Mapping):
            raise ValueError("it holds no dictionary")
        return descriptor_from_dict(data)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no descriptor as `spk-softadapt select-functions` writes it: {reason}"
        ) from error


class Pairs(NamedTuple):
    """A pair list, as `Engine.prepare` takes it."""

    r_ij: Tensor  # (P, 3) vectors from atom i to its neighbour j, Ang, float32 or float64
    idx_i: Tensor  # (P,) central atoms, in any order; every pair is listed in both directions
    idx_j: Tensor  # (P,) neighbours
    numbers: Tensor  # (N,) atomic numbers


class Jacobian(NamedTuple):
    """Descriptors and their derivatives by positions and strain, numpy."""

    values: np.ndarray  # (N, D)
    # (N, 6, D) strain derivative sum_p sym(dG/dr_p (x) r_p), Voigt order xx yy zz yz xz xy,
    # off-diagonal entries not doubled
    dg_dstrain: np.ndarray
    block_first: np.ndarray  # (N + 1,) first block of each atom
    # (n_blocks,) atom j that a block differentiates by, each at most once for an atom i; blocks of
    # an atom with itself may be among them
    block_atom: np.ndarray
    dg_dr: np.ndarray  # (n_blocks, 3, D) dG_i/dR_j, summed over the periodic images of j, 1/Ang


class LinearMap(Protocol):
    """The derivative of descriptors G (N, D) by some variables x, at one point.

    Prepared pairs of an engine (x: pair vectors) and a batch of a store (x: positions and strain)
    are both one. A variable without requires_grad may be None in what `vjp` returns.
    """

    def vjp(self, grad_g: Tensor) -> tuple[Tensor | None, ...]:
        """Sum over atoms and columns of grad_g dG/dx, one tensor for each variable."""

    def jvp(self, *tangents: Tensor | None) -> Tensor:
        """Sum over the variables of dG/dx . tangent, (N, D); None stands for zeros."""


class Engine(ABC):
    """Computes a descriptor. Tensors in, tensors out; the dtype is that of the pair vectors.

    Of pairs prepared from arrays, a compiled engine may give arrays (float64).
    """

    descriptor: Descriptor  # what it computes
    # values carry a graph that is differentiable by `r_ij` to any order. `values` is then called
    # with gradients enabled, and the products are not needed in training.
    is_exact: bool = False

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> Any:
        """What the other methods take, made once for a pair list; see `Pairs`.

        Tensors or arrays; `numbers` may hold atoms that are the neighbour of others only.

        Raises:
            UnknownElementError: an atom of an element that the descriptor does not know.
        """
        import torch

        pairs = Pairs(*map(torch.as_tensor, (r_ij, idx_i, idx_j, numbers)))
        check_elements(set(pairs.numbers.tolist()), self.descriptor.elements)
        return pairs

    @abstractmethod
    def values(self, pairs) -> Tensor:
        """Descriptors (N, D) without scaling; columns beyond an element's own are zero."""

    @abstractmethod
    def vjp(self, pairs, grad_g: Tensor) -> Tensor:
        """Vector-Jacobian product sum_iD grad_g_iD dG_iD/dr_ij, (P, 3), for `grad_g` (N, D)."""

    def jvp(self, pairs, tangent: Tensor) -> Tensor:
        """Jacobian-vector product sum_p dG/dr_p . tangent_p, (N, D), for `tangent` (P, 3)."""
        import torch

        by_pair, idx_i = map(torch.as_tensor, (self._by_pair(pairs), pairs.idx_i))
        change = (by_pair * tangent[:, :, None]).sum(1)
        return change.new_zeros(len(pairs.numbers), change.shape[1]).index_add(0, idx_i, change)

    def jacobian(self, pairs, dtype: type = np.float64, threads: int | None = None) -> Jacobian:
        """Values with the derivatives that a store keeps.

        Args:
            pairs: of `prepare`, float64.
            dtype: numpy type of the results.
            threads: threads to use; 1 where several structures are done at a time.
        """
        # numba takes a second to load
        from schnetpack_softadapt.descriptors.pair_blocks import sum_pairs

        values = self.values(pairs)
        values = np.asarray(values if isinstance(values, np.ndarray) else values.detach())
        by_pair = np.asarray(self._by_pair(pairs, threads))
        idx_i, idx_j, r_ij = map(np.asarray, (pairs.idx_i, pairs.idx_j, pairs.r_ij))
        n_atoms = len(values)
        blocks, inverse = np.unique(idx_i * n_atoms + idx_j, return_inverse=True)
        strain, dg_dr = sum_pairs(idx_i, inverse.reshape(-1), r_ij, by_pair, n_atoms, dtype)
        first = np.searchsorted(blocks, np.arange(n_atoms + 1) * n_atoms)
        return Jacobian(values.astype(dtype), strain, first, blocks % n_atoms, dg_dr)

    def _by_pair(self, pairs, threads: int | None = None) -> Tensor | np.ndarray:
        """dG_i/dr_ij (P, 3, D), by one vector-Jacobian product for each column."""
        import torch

        n_columns = self.descriptor.n_columns
        one = pairs.r_ij.new_zeros(len(pairs.numbers), n_columns)
        columns = []
        for k in range(n_columns):
            one[:, k] = 1.0
            columns.append(self.vjp(pairs, one))
            one[:, k] = 0.0
        return torch.stack(columns, dim=2)


class PairMap(NamedTuple):
    """The derivative by pair vectors (P, 3), as a `LinearMap`."""

    engine: Engine  # computes it
    pairs: Any  # prepared by `engine`

    def vjp(self, grad_g: Tensor) -> tuple[Tensor]:
        """(N, D) -> (P, 3)."""
        return (self.engine.vjp(self.pairs, grad_g),)

    def jvp(self, tangent: Tensor | None) -> Tensor:
        """(P, 3) -> (N, D)."""
        return self.engine.jvp(self.pairs, tangent)
