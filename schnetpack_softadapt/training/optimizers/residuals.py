"""Residual vectors of a batch and their derivatives by the parameters, for second-order optimizers.

An optimizer class with `uses_residuals = True` is stepped with a closure that returns `Residuals`.
It knows nothing of energies and forces; models that know a short way to the derivatives offer it as
a method `parameter_jacobian(batch, wanted)`, see `model.jacobian`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from schnetpack_softadapt.model.jacobian import JacobianRows
from schnetpack_softadapt.quantities import full_to_voigt
from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["BatchResiduals", "Residuals", "least_squares_weight"]


def least_squares_weight(
    component: LossComponent, residual: Tensor, delta: float | Tensor
) -> Tensor | None:
    """Factors on squared residuals whose sum has the gradient of a component's loss; None for 1.

    Those of iteratively reweighted least squares: P. Holland and R. Welsch, Commun. Stat. Theory
    Methods 6, 813 (1977), equation 2 and table 1. `delta` as `LossComponent.deltas` gives it.

    Raises:
        ValueError: the loss is neither "mse" nor "huber".
    """
    if component.loss == "mse":
        return None
    if component.loss == "huber":
        return 0.5 * (delta / residual.detach().abs().clamp_min(delta))
    raise ValueError(
        f"component {component.component} has loss {component.loss!r}; optimizers that use"
        " residuals need loss: mse or huber in all of task.outputs"
    )


class Residuals(dict[str, Tensor]):
    """Residual vectors (M,) by component, with their graph; the loss is the sum of all squares.

    Args:
        vectors: residuals by component.
        n_columns: entries that belong together, such as the three components of a force; rows of
            a Jacobian are chosen in such groups. 1 for components that are not named.
        counts: what each component counts, its residuals if not given: the sum of squares over
            batches by that of counts is a loss.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        n_columns: Mapping[str, int] | None = None,
        counts: Mapping[str, float] | None = None,
    ):
        super().__init__(vectors)
        self.n_columns = {name: (n_columns or {}).get(name, 1) for name in self}
        self.counts = {name: len(v) for name, v in self.items()} if counts is None else dict(counts)

    def jacobian(
        self,
        groups: Mapping[str, Tensor | None],
        parameters: Sequence[Tensor],
        scale: Mapping[str, float] | None = None,
        room: Tensor | None = None,
    ) -> Tensor:
        """Derivatives of residuals by the parameters, one backward pass for each row.

        Args:
            groups: (n,) groups of rows of each component, ascending; all if None. Group g holds the
                entries n_columns g to n_columns (g + 1) - 1.
            parameters: their number of elements sums to P; columns in their order.
            scale: factors on all rows of a component, 1 if not given.
            room: memory of an older Jacobian, which the short way writes over: as long as the
                computation itself takes the system to give pages to a new one of 50 MB.

        Returns:
            (M, P), the n n_columns rows of each component in turn.
        """
        scale = scale or {}
        entries = [
            self.entries(name, chosen) * scale.get(name, 1.0) for name, chosen in groups.items()
        ]
        return _backward_passes(torch.cat(entries), parameters)

    def entries(self, name: str, groups: Tensor | None) -> Tensor:
        """Residuals of groups (n,) of a component, (n n_columns,)."""
        if groups is None:
            return self[name]
        return self[name].view(-1, self.n_columns[name]).index_select(0, groups).reshape(-1)


class BatchResiduals(Residuals):
    """Residuals of energies, forces and stress of a batch.

    Args:
        components: loss components.
        vectors: residuals by component, as diagonal functions of what is predicted.
        pred: what the model predicted, with its graph.
        batch: what it predicted it from.
        model: the model.
        counts: see `Residuals`.
    """

    def __init__(
        self,
        components: Sequence[LossComponent],
        vectors: Mapping[str, Tensor],
        pred: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        model: nn.Module,
        counts: Mapping[str, float] | None = None,
    ):
        super().__init__(vectors, {c.component: c.n_columns for c in components}, counts)
        self._components = {c.component: c for c in components}
        self._pred, self._batch, self._model = pred, batch, model

    def jacobian(self, groups, parameters, scale=None, room=None):
        """As in the base class; by the short way of the model where it has one."""
        short: Callable | None = getattr(self._model, "parameter_jacobian", None)
        if short is None:
            return super().jacobian(groups, parameters, scale)
        wanted = []
        for name, chosen in groups.items():
            c = self._components[name]
            factor = self._factor(c) * (scale or {}).get(name, 1.0)  # (rows, columns)
            if chosen is None:
                chosen = torch.arange(len(factor), device=factor.device)
            columns = c.columns if c.kind == "stress" else None
            wanted.append(JacobianRows(c.name, chosen, factor.index_select(0, chosen), columns))
        out = short(self._batch, wanted, room)
        if out is None:
            return super().jacobian(groups, parameters, scale)
        n_parameters = sum(p.numel() for p in parameters)
        if out.shape[1] != n_parameters:
            raise ValueError(
                f"the model differentiates by {out.shape[1]} parameters, the optimizer has"
                f" {n_parameters}: give it all that are trained"
            )
        return out

    def _factor(self, c: LossComponent) -> Tensor:
        """Derivative of each residual by the prediction that it belongs to, (rows, columns)."""
        value = self._pred[c.name]
        (factor,) = torch.autograd.grad(self[c.component].sum(), value, retain_graph=True)
        if c.kind != "stress":
            return factor.reshape(-1, c.n_columns)
        # a residual takes both halves of a symmetric matrix
        factor = 2 * full_to_voigt(factor.reshape(-1, 3, 3))
        factor[:, :3] /= 2
        return c.counted(factor)


def _backward_passes(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of each entry of `values` (M,) by the parameters, (M, P)."""
    out = parameters[0].new_zeros(len(values), sum(p.numel() for p in parameters))
    for row, value in zip(out, values if values.requires_grad else (), strict=False):
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        grads = [0 * p if g is None else g for g, p in zip(grads, parameters, strict=True)]
        row[:] = torch.cat([g.detach().reshape(-1) for g in grads])
    return out
