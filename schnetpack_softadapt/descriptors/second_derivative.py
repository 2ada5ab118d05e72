"""The second derivative of the descriptors by positions, which kernels and store do not know.

A backward pass that differentiates forces reaches the positions whether anybody wants that or not:
they are leaves. It gets NaN there, so that a Hessian shouts. `torch.autograd.detect_anomaly` stops
at every NaN, so under it the pass gets nothing, the leaves are told, and only who asks for the
derivative gets an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

__all__ = ["asked_for", "second_derivative"]

#: a leaf that nobody asks for; every function with a missing derivative takes it as an argument
asked_for = torch.zeros((), requires_grad=True)

# whether the running backward pass needs a node; private, so missing it must not hurt
_needs: Callable[[Node], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)


def second_derivative(x: Tensor | None, wanted: bool) -> Tensor | None:
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
    if not _is_needed(get_gradient_edge(asked_for).node):
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
