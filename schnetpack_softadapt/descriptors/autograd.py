"""Descriptors as one autograd function, whatever computes their derivative.

Forward the values G(x), backward the vector-Jacobian product, backward of that the Jacobian-vector
product: what forces, stress and training on them need. The second derivative d2G/dx2 is not there;
asked for it, autograd gets NaN, never a silent zero. Exact Hessians go through an engine that is
differentiable itself (`backend="reference"`).

A backward pass that differentiates forces reaches the variables whether anybody wants that or not:
they are leaves, and get the NaN. `torch.autograd.detect_anomaly` stops at every NaN, so under it
the pass gets nothing, the leaves are told, and only who asks for the derivative gets an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from schnetpack_softadapt.descriptors.protocol import Engine, LinearMap, PairMap

__all__ = ["differentiable", "pair_descriptors"]

# identifies the running backward pass; private, so missing it must not hurt
_current_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)

# a leaf that nobody asks for; every function with a missing derivative takes it as an argument
_asked_for = torch.zeros((), requires_grad=True)

# whether the running backward pass needs a node; private, so missing it must not hurt
_needs: Callable[[Node], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)


def differentiable(values: Tensor, linear_map: LinearMap, *variables: Tensor | None) -> Tensor:
    """`values` as a function of the variables whose derivative `linear_map` is.

    Args:
        values: (N, D) without a graph.
        linear_map: at the present variables.
        variables: in the order of the map; None for one that nothing depends on.

    Returns:
        (N, D), differentiable by the variables once, and by what follows in between any number of
        times; the second derivative by the variables comes out as NaN.
    """
    wanted = [x if x is not None and x.requires_grad else None for x in variables]
    if not torch.is_grad_enabled() or all(x is None for x in wanted):
        return values
    return _Values.apply(values, _Call(linear_map), *wanted)


def pair_descriptors(
    r_ij: Tensor, idx_i: Tensor, idx_j: Tensor, numbers: Tensor, engine: Engine
) -> Tensor:
    """Descriptors (N, D) of every atom, differentiable by the pair vectors; see `Pairs`."""
    if engine.is_exact:
        return engine.values(engine.prepare(r_ij, idx_i, idx_j, numbers))
    with torch.no_grad():
        pairs = engine.prepare(r_ij.detach(), idx_i, idx_j, numbers)
        values = engine.values(pairs)
    return differentiable(values, PairMap(engine, pairs), r_ij)


class _Call:
    """One call of `differentiable`: its map, and the pass in which NaN went to the variables."""

    def __init__(self, linear_map: LinearMap):
        self.map = linear_map
        self.nan_task = -2


class _Values(torch.autograd.Function):
    """The values as a function of the variables."""

    @staticmethod
    def forward(ctx, values, call, *variables):
        ctx.save_for_backward(*variables)
        ctx.call = call
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad_g):
        variables, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if ctx.call.nan_task == _current_task() != -1:
            # This pass differentiates the forces, and NaN has gone to the variables already; the
            # product would be lost in it. A third of the time of a training step.
            grads = map(_second_derivative, variables, needs)
        else:
            grads = _Gradient.apply(grad_g, ctx.call, _asked_for, *variables)
        return None, None, *grads


class _Gradient(torch.autograd.Function):
    """grad_g -> grad_g dG/dx for each variable: linear in grad_g."""

    @staticmethod
    def forward(ctx, grad_g, call, _, *variables):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*variables)
        ctx.call = call
        grads = call.map.vjp(grad_g)
        return tuple(
            None if x is None else grad.to(x.dtype)
            for grad, x in zip(grads, variables, strict=True)
        )

    @staticmethod
    def backward(ctx, *tangents):
        variables, needs = ctx.saved_tensors, ctx.needs_input_grad
        grad_g = None
        if needs[0] and any(t is not None for t in tangents):
            n = len(tangents)
            grad_g = _Tangent.apply(n, ctx.call, _asked_for, *tangents, *variables)
        if any(needs[3:]):
            ctx.call.nan_task = _current_task()
        return grad_g, None, None, *map(_second_derivative, variables, needs[3:])


class _Tangent(torch.autograd.Function):
    """Changes of the variables -> change of the values: `_Gradient` transposed."""

    @staticmethod
    def forward(ctx, n, call, _, *tangents_and_variables):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tangents_and_variables[n:])
        ctx.n, ctx.call = n, call
        return call.map.jvp(*tangents_and_variables[:n])

    @staticmethod
    def backward(ctx, grad_g):
        variables, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if grad_g is None:
            return (None,) * (3 + len(needs))
        grads = _Gradient.apply(grad_g, ctx.call, _asked_for, *variables)
        tangents = [g if needed else None for g, needed in zip(grads, needs, strict=False)]
        return None, None, None, *tangents, *map(_second_derivative, variables, needs[ctx.n :])


def _second_derivative(x: Tensor | None, wanted: bool) -> Tensor | None:
    """What a backward pass gets for the second derivative by `x`: NaN, None if not wanted.

    Raises:
        RuntimeError: under `detect_anomaly`, where it is what `autograd.grad` was asked for.
    """
    if not wanted:
        return None
    anomaly = torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled()
    if not anomaly or _needs is None:
        return x.new_full((), torch.nan).expand_as(x)
    node = get_gradient_edge(x).node
    if not _is_needed(node):
        return None
    if not _is_needed(get_gradient_edge(_asked_for).node):
        raise RuntimeError(
            "the second derivative of the descriptors by positions was asked for; the kernels and"
            " the store do not have it: use backend='reference' and no store"
        )
    _spoil_leaves(node)  # `backward()` to all leaves: no one is asking, but they can be read
    return None


def _is_needed(node: Node) -> bool:
    try:
        return _needs(node)
    except RuntimeError:  # a leaf that `autograd.grad` was asked for
        return True


def _spoil_leaves(node: Node) -> None:
    """Set `grad` of all leaves behind a node to NaN as soon as this pass has written it."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            _spoil(node)
        else:
            todo += [following for following, _ in node.next_functions]


def _spoil(leaf: Node) -> None:
    def spoil(*_):
        leaf.variable.grad = torch.full_like(leaf.variable, torch.nan)
        handle.remove()

    handle = leaf.register_hook(spoil)
