"""Symmetry functions in plain torch: any device, any dtype, differentiable to any order.

Memory stays bounded in every derivative: the sum over triples runs in chunks, and a chunk keeps
only its inputs and is computed again when a derivative asks for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS
from schnetpack_softadapt.descriptors.acsf.functions import (
    angular_factors,
    cosine_of_angle,
    gaussians,
    lengths,
)
from schnetpack_softadapt.descriptors.acsf.layout import KINDS, Kind, Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.triples import NeighborTable, Triples
from schnetpack_softadapt.descriptors.elements import check_elements
from schnetpack_softadapt.descriptors.protocol import Engine

__all__ = ["ReferenceEngine"]

# rows of a chunk; large enough to hide the cost of a kernel launch on the GPU, small enough to stay
# near the cache on the CPU
_CHUNK = {"cpu": 100_000, "cuda": 1_000_000}


@dataclass(frozen=True)
class _Group:
    """Functions that share pairs or triples, cutoff factors and columns."""

    centers: tuple[int, ...]
    functions: tuple[SymmetryFunction, ...]
    columns: tuple[int, ...]

    @property
    def head(self) -> SymmetryFunction:
        return self.functions[0]

    @property
    def kind(self) -> Kind:
        return KINDS[self.head.kind]

    def cut(self, distances: Tensor) -> Tensor:
        return CUTOFFS[self.head.cutoff_fn](distances, self.head.cutoff)

    def weights(self, z_j: Tensor, like: Tensor) -> Tensor:
        """Weights of neighbours z_j (n,)."""
        return like.new_tensor(self.head.weight_of)[z_j]


def _group(layout: Layout) -> list[_Group]:
    members: dict[tuple, list[tuple[int, SymmetryFunction]]] = {}
    for z, functions in layout.functions.items():
        for column, f in enumerate(functions):
            key = (z, f.kind, f.neighbors, f.weights, f.cutoff, f.cutoff_fn)
            members.setdefault(key, []).append((column, f))
    # elements with the same functions in the same columns are summed together
    centers: dict[tuple, list[int]] = {}
    for (z, *_), columns_and_functions in members.items():
        centers.setdefault(tuple(columns_and_functions), []).append(z)
    groups = []
    for columns_and_functions, zs in centers.items():
        columns, functions = zip(*columns_and_functions, strict=True)
        groups.append(_Group(tuple(zs), functions, columns))
    return groups


class _Recomputed(torch.autograd.Function):
    """`outputs = function(*inputs)` that keeps only its inputs, in every derivative.

    The backward pass is again a `_Recomputed`, of the vector-Jacobian product, so second and higher
    derivatives keep no more than the first.
    """

    @staticmethod
    def forward(ctx, function: Callable, *inputs: Tensor):
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        inputs = ctx.saved_tensors
        product = partial(_vector_jacobian, ctx.function, len(inputs))
        grads = _Recomputed.apply(product, *inputs, *grads)
        return None, *grads


def _vector_jacobian(function: Callable, n_inputs: int, *args: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `function` by its inputs `args[:n_inputs]`, given those by its outputs."""
    create_graph = torch.is_grad_enabled()
    inputs, grads = args[:n_inputs], args[n_inputs:]
    if not create_graph:
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
    with torch.enable_grad():
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # the derivative of a linear function is no longer connected to its input
        connected = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
        if not connected:
            return tuple(torch.zeros_like(x) for x in inputs)
        outputs, grads = zip(*connected, strict=True)
        return torch.autograd.grad(
            outputs,
            inputs,
            grads,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )


class _Prepared(NamedTuple):
    """A pair list with what each group of functions sums over."""

    r_ij: Tensor
    idx_i: Tensor
    idx_j: Tensor
    numbers: Tensor
    sources: list  # rows of the pair list of a radial group, Triples of an angular one
    n_terms: list[int]  # their numbers


class ReferenceEngine(Engine):
    """Symmetry functions of a layout in plain torch.

    Args:
        descriptor: the functions.
        max_triples: largest number of triples (and of pairs) held in memory at a time; by default
            100,000 on the CPU and a million on a GPU. Values do not depend on it.
        is_exact: use plain autograd, which is slower, also where the first derivative would do.
    """

    def __init__(self, descriptor: Layout, max_triples: int | None = None, is_exact: bool = False):
        if max_triples is not None and max_triples < 1:
            raise ValueError(f"max_triples must be positive, got {max_triples}")
        self.descriptor = descriptor
        self.max_triples = max_triples
        self.is_exact = is_exact
        self._groups = _group(descriptor)

    def prepare(self, r_ij, idx_i, idx_j, numbers) -> _Prepared:
        """Find what each function sums over; see `Engine.prepare`.

        Raises:
            UnknownElementError: an atom of an element that the layout does not know.
        """
        r_ij = torch.as_tensor(r_ij)
        idx_i, idx_j, numbers = (torch.as_tensor(x).long() for x in (idx_i, idx_j, numbers))
        with torch.no_grad():
            distances = lengths(r_ij.detach())
            z_i, z_j = numbers[idx_i], numbers[idx_j]
            tables: dict[float, NeighborTable] = {}
            sources = []
            for group in self._groups:
                is_center = _is_any(z_i, group.centers)
                within = ~(distances >= group.head.cutoff)  # a NaN stays in the sum
                if group.kind.n_distances > 1:
                    if group.head.cutoff not in tables:
                        tables[group.head.cutoff] = NeighborTable(idx_i, z_j, within)
                    table = tables[group.head.cutoff]
                    sources.append(table.triples(is_center, group.head.neighbors))
                else:
                    chosen = is_center & within
                    if not group.kind.weighted:
                        chosen = chosen & (z_j == group.head.neighbors[0])
                    sources.append(chosen.nonzero().squeeze(1))
            n_terms = self._count(sources, numbers)
        return _Prepared(r_ij, idx_i, idx_j, numbers, sources, n_terms)

    def values(self, pairs: _Prepared) -> Tensor:
        """Symmetry functions (N, D), differentiable by `pairs.r_ij` to any order."""
        r_ij = pairs.r_ij
        blocks: dict[tuple[int, ...], Tensor] = {}
        for columns, term in self._terms(pairs):
            block = _Recomputed.apply(term, r_ij)  # (F, N)
            blocks[columns] = blocks[columns] + block if columns in blocks else block
        g = r_ij.new_zeros(self.descriptor.n_columns, len(pairs.numbers))
        if blocks:
            rows = torch.tensor([c for columns in blocks for c in columns], device=r_ij.device)
            g = g.index_add(0, rows, torch.cat(list(blocks.values())))
        return g.t().contiguous()

    def vjp(self, pairs: _Prepared, grad_g: Tensor) -> Tensor:
        grad_r = torch.zeros_like(pairs.r_ij)
        grad_rows = grad_g.detach().t()  # (D, N)
        for columns, term in self._terms(pairs):
            leaf = pairs.r_ij.detach().requires_grad_()
            with torch.enable_grad():
                block = term(leaf)
            (grad,) = torch.autograd.grad(block, leaf, grad_rows[list(columns)])
            grad_r += grad
        return grad_r

    def jvp(self, pairs: _Prepared, tangent: Tensor) -> Tensor:
        g = pairs.r_ij.new_zeros(self.descriptor.n_columns, len(pairs.numbers))
        for columns, term in self._terms(pairs):
            # Reverse mode twice: u -> u J is linear in u, and its transpose is what we want.
            # (Forward mode is no faster, and silently off within a custom function.)
            leaf = pairs.r_ij.detach().requires_grad_()
            with torch.enable_grad():
                block = term(leaf)
                u = torch.zeros_like(block, requires_grad=True)
                (product,) = torch.autograd.grad(block, leaf, u, create_graph=True)
            (block,) = torch.autograd.grad(product, u, tangent.detach())
            g[list(columns)] += block
        return g.t().contiguous()

    def _terms(
        self, pairs: _Prepared
    ) -> Iterator[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
        """Terms of the sum: columns and a function of `r_ij` that gives their (F, N) values."""
        size = self.max_triples or _CHUNK.get(pairs.r_ij.device.type, _CHUNK["cpu"])
        atoms = (pairs.idx_i, pairs.numbers[pairs.idx_j], len(pairs.numbers))
        for group, source, n in zip(self._groups, pairs.sources, pairs.n_terms, strict=True):
            for start in range(0, n, size):
                stop = min(start + size, n)
                if group.kind.n_distances > 1:
                    yield group.columns, partial(_angular, group, atoms, source, start, stop)
                else:
                    yield group.columns, partial(_radial, group, atoms, source[start:stop])

    def _count(self, sources: list[Tensor | Triples], numbers: Tensor) -> list[int]:
        known = _is_any(numbers, self.descriptor.elements)
        counts = [(~known).sum()]
        counts += [s.total for s in sources if isinstance(s, Triples)]
        # one transfer, because each makes the host wait for the device
        n_unknown, *totals = torch.stack(counts).tolist()
        if n_unknown:
            check_elements(numbers.tolist(), self.descriptor.elements)
        return [totals.pop(0) if isinstance(s, Triples) else len(s) for s in sources]


def _is_any(numbers: Tensor, values: tuple[int, ...]) -> Tensor:
    """Whether each of `numbers` (n,) is one of `values`."""
    return torch.isin(numbers, numbers.new_tensor(values))


def _radial(group: _Group, atoms: tuple[Tensor, Tensor, int], rows: Tensor, r_ij: Tensor) -> Tensor:
    """Sum over the pairs `rows` of the radial part [z_j] of `layout.Kind`; (F, N)."""
    kind = group.kind
    idx_i, z_j, n_atoms = atoms
    d = lengths(r_ij.index_select(0, rows))
    factor = group.cut(d)
    if kind.weighted:
        factor = factor * group.weights(z_j[rows], d)
    widths = [(f.eta, f.r_s) for f in group.functions]
    terms = gaussians([d], widths, kind.each, kind.joint) * factor  # (F, n)
    return terms.new_zeros(len(terms), n_atoms).index_add(1, idx_i[rows], terms)


def _angular(
    group: _Group,
    atoms: tuple[Tensor, Tensor, int],
    triples: Triples,
    start: int,
    stop: int,
    r_ij: Tensor,
) -> Tensor:
    """Sum over a range of triples of the radial times the angular part of `layout.Kind`; (F, N)."""
    kind = group.kind
    idx_i, z_j, n_atoms = atoms
    first, second = triples.pairs(start, stop)
    if kind.n_distances == 3:
        # half of the triples of a dense system have r_jk beyond the cutoff
        with torch.no_grad():
            r_jk = r_ij.index_select(0, second) - r_ij.index_select(0, first)
            keep = (~(lengths(r_jk) >= group.head.cutoff)).nonzero().squeeze(1)
            first, second = first[keep], second[keep]
    r_j, r_k = r_ij.index_select(0, first), r_ij.index_select(0, second)
    distances = [lengths(r_j), lengths(r_k)]
    cosine = cosine_of_angle(r_j, r_k, *distances)
    if kind.n_distances == 3:
        distances.append(lengths(r_k - r_j))
    factor = group.cut(torch.stack(distances)).prod(0)
    if kind.weighted:
        factor = factor * group.weights(z_j[first], factor) * group.weights(z_j[second], factor)
    widths = {(f.eta, f.r_s): None for f in group.functions}
    shapes = {(f.zeta, f.lam): None for f in group.functions}
    radial = gaussians(distances, list(widths), kind.each, kind.joint) * factor
    radial = dict(zip(widths, radial, strict=True))
    angular = dict(zip(shapes, angular_factors(cosine, list(shapes)), strict=True))
    terms = torch.stack([radial[f.eta, f.r_s] * angular[f.zeta, f.lam] for f in group.functions])
    return terms.new_zeros(len(terms), n_atoms).index_add(1, idx_i[first], terms)
