"""Residual vectors of a batch and their derivatives by the parameters, for second-order optimizers.

An optimizer class with `uses_residuals = True` is stepped with a closure that returns `Residuals`.
It knows nothing of energies and forces; models that know a short way to the derivatives offer it as
a method `parameter_jacobian(batch, atoms)`, see `Residuals.jacobian`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from schnetpack import properties
from torch import Tensor, nn

from schnetpack_softadapt.quantities import VOIGT_IN_FULL
from schnetpack_softadapt.training.losses import LossComponent

__all__ = ["BatchResiduals", "Residuals", "least_squares_weight"]


def least_squares_weight(component: LossComponent, residual: Tensor) -> Tensor | None:
    """Factors on squared residuals whose sum has the gradient of a component's loss; None for 1.

    Those of iteratively reweighted least squares: P. Holland and R. Welsch, Commun. Stat. Theory
    Methods 6, 813 (1977), equation 2 and table 1.

    Raises:
        ValueError: the loss is neither "mse" nor "huber".
    """
    if component.loss == "mse":
        return None
    if component.loss == "huber":
        delta = component.delta
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
    """

    def __init__(self, vectors: Mapping[str, Tensor], n_columns: Mapping[str, int] | None = None):
        super().__init__(vectors)
        self.n_columns = {name: (n_columns or {}).get(name, 1) for name in self}

    def jacobian(
        self, groups: Mapping[str, Tensor | None], parameters: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Derivatives of residuals by the parameters, one backward pass for each row.

        Args:
            groups: (n,) groups of rows of each component, ascending; all if None. Group g holds the
                entries n_columns g to n_columns (g + 1) - 1.
            parameters: their number of elements sums to P; columns in their order.

        Returns:
            (n n_columns, P) by component.
        """
        return {
            name: _backward_passes(self.entries(name, chosen), parameters)
            for name, chosen in groups.items()
        }

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
    """

    def __init__(
        self,
        components: Sequence[LossComponent],
        vectors: Mapping[str, Tensor],
        pred: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        model: nn.Module,
    ):
        super().__init__(vectors, {c.component: c.n_columns for c in components})
        self._components = {c.component: c for c in components}
        self._pred, self._batch, self._model = pred, batch, model

    def jacobian(self, groups, parameters):
        """As in the base class; by the short way of the model where it has one."""
        short: Callable | None = getattr(self._model, "parameter_jacobian", None)
        atoms = self._atoms(groups)
        rows = None if short is None else short(self._batch, atoms)
        if rows is None:
            return super().jacobian(groups, parameters)
        n_parameters = sum(p.numel() for p in parameters)
        out = {}
        for name, chosen in groups.items():
            c = self._components[name]
            value = rows[c.name]  # (rows, columns, P)
            if value.shape[2] != n_parameters:
                raise ValueError(
                    f"the model differentiates by {value.shape[2]} parameters, the optimizer has"
                    f" {n_parameters}: give it all that are trained"
                )
            if c.kind == "forces":
                place = torch.searchsorted(atoms, self._all(chosen))
                value = value if len(place) == len(value) else value.index_select(0, place)
            elif chosen is not None:
                value = value.index_select(0, chosen)
            if c.kind == "stress":
                value = c.counted(value)
            factor = self._factor(c, chosen).to(value.dtype)
            out[name] = (value * factor[:, :, None]).reshape(-1, n_parameters)
        return out

    def _all(self, chosen: Tensor | None) -> Tensor:
        """Chosen atoms, or all of the batch."""
        numbers = self._batch[properties.Z]
        return torch.arange(len(numbers), device=numbers.device) if chosen is None else chosen

    def _atoms(self, groups: Mapping[str, Tensor | None]) -> Tensor:
        """Atoms whose forces any component wants, ascending."""
        wanted = [
            self._all(chosen)
            for name, chosen in groups.items()
            if self._components[name].kind == "forces"
        ]
        if not wanted:
            return torch.zeros(0, dtype=torch.long, device=self._batch[properties.Z].device)
        return torch.unique(torch.cat(wanted)) if len(wanted) > 1 else wanted[0]

    def _factor(self, c: LossComponent, chosen: Tensor | None) -> Tensor:
        """Derivative of each residual by the prediction that it belongs to, (rows, columns)."""
        value = self._pred[c.name]
        (factor,) = torch.autograd.grad(self[c.component].sum(), value, retain_graph=True)
        if c.kind == "stress":
            # a residual takes both halves of a symmetric matrix
            factor = factor.reshape(-1, 3, 3)
            eye = torch.eye(3, dtype=factor.dtype, device=factor.device)
            factor = (factor + factor.transpose(1, 2)) * (1 - 0.5 * eye)
            factor = c.counted(factor.reshape(-1, 9)[:, VOIGT_IN_FULL])
        else:
            factor = factor.reshape(-1, self.n_columns[c.component])
        return factor if chosen is None else factor.index_select(0, chosen)


def _backward_passes(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of each entry of `values` (M,) by the parameters, (M, P)."""
    n_parameters = sum(p.numel() for p in parameters)
    out = parameters[0].new_zeros(len(values), n_parameters)
    if not values.requires_grad:
        return out
    for row, value in zip(out, values, strict=True):
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        first = 0
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                row[first : first + parameter.numel()] = grad.reshape(-1)
            first += parameter.numel()
    return out
