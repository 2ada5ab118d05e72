"""What the optimizers that step with residual vectors have in common."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from schnetpack_softadapt.training.optimizers.ranks import sum_over_ranks
from schnetpack_softadapt.training.optimizers.residuals import Residuals

__all__ = ["ResidualOptimizer"]


class ResidualOptimizer(torch.optim.Optimizer):
    """An optimizer of a sum of squared residuals by their Jacobian J (M, P).

    Of components with many residuals a random part is used in every step, as A. Singraber et al.,
    J. Chem. Theory Comput. 15, 3075 (2019) take some percent of the forces: steps cost less, and
    neighbouring forces say much the same.

    Args:
        params: parameters of one model; one group.
        settings: value of each setting of the group, and whether it is valid. Common ones are
            `fraction`: part of the residuals of a component used in each step; `min_groups`:
            components with fewer groups of residuals than this (atoms for forces, structures for
            energy and stress), on each rank, are used entirely; `trust`: largest change of the
            squared length of the linearised residuals in one step, relative to it.

    Raises:
        ValueError: a setting out of range, nothing to train, several groups.
    """

    #: `SoftAdaptTask` steps optimizers with this attribute by a closure that returns `Residuals`
    uses_residuals = True
    #: and runs those with this one on several ranks, each of which has its part of the residuals
    sums_over_ranks = True

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict], settings: Mapping[str, tuple[Any, bool]]
    ):
        for name, (value, valid) in settings.items():
            if not valid:
                raise ValueError(f"{name}={value} is out of range")
        super().__init__(params, {name: value for name, (value, _) in settings.items()})
        name = type(self).__name__
        if len(self.param_groups) != 1:
            raise ValueError(f"{name} takes one group of parameters: they are one vector")
        self._parameters = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        self._sizes = [p.numel() for p in self._parameters]
        self.n_parameters = sum(self._sizes)
        self._room: Tensor | None = None  # the largest Jacobian so far, for the next one
        if not self.n_parameters:
            raise ValueError(f"{name} has nothing to train: no parameter of the model requires it")

    def step(self, closure: Callable[[], Residuals]) -> Tensor:
        """One step.

        Args:
            closure: returns the residuals at the current parameters, with their graph; on several
                ranks, those of this rank's part of the batch.

        Returns:
            The loss before the step, the sum of squares of all residuals.

        Raises:
            ValueError: the closure returns no `Residuals`; a residual, a derivative or the step is
                not finite.
        """
        raise NotImplementedError

    def _residuals(self, closure: Callable[[], Residuals]) -> tuple[Residuals, float]:
        """Residuals of this rank with their graph, and the sum of squares of all ranks.

        Raises:
            ValueError: the closure returns anything else, or a residual is not finite.
        """
        with torch.enable_grad():
            residuals = closure()
        if not isinstance(residuals, Residuals):
            raise ValueError(
                f"{type(self).__name__} needs Residuals with their Jacobian from its closure, not a"
                f" {type(residuals).__name__}: train with SoftAdaptTask, or with another optimizer"
            )
        squares = [r.detach().double().square().sum() for r in residuals.values()]
        squares = sum_over_ranks(torch.stack(squares)).tolist()
        for name, value in zip(residuals, squares, strict=True):
            if not abs(value) < float("inf"):
                raise ValueError(
                    f"residuals of the component {name} are not finite: the run has diverged (lower"
                    " lr) or the labels are damaged"
                )
        return residuals, sum(squares)

    def _linearize(self, residuals: Residuals, group: dict) -> tuple[Tensor, Tensor]:
        """Jacobian (M, P) and residuals (M,) of the part that is used, scaled to stand for all.

        On several ranks, each takes its part of its own residuals.
        """
        chosen, scale = dict.fromkeys(residuals), {}
        for name, value in residuals.items():
            n = len(value) // residuals.n_columns[name]
            n_used = min(n, max(group["min_groups"], round(group["fraction"] * n)))
            if n_used < n:
                chosen[name] = torch.randperm(n)[:n_used].sort().values.to(value.device)
            scale[name] = (n / max(n_used, 1)) ** 0.5
        with torch.enable_grad():
            j = residuals.jacobian(chosen, self._parameters, scale, self._room)
        if self._room is None or len(j) > len(self._room):
            self._room = j
        entries = [residuals.entries(name, chosen[name]) * scale[name] for name in residuals]
        return j, torch.cat(entries).detach().to(j.dtype)

    @staticmethod
    def _check_derivatives(sums: Tensor) -> None:
        """Refuse what is not finite in sums over all rows of J of all ranks, which must agree.

        Raises:
            ValueError: a derivative is not finite.
        """
        # nan and inf survive a sum
        if not torch.isfinite(sums.sum()):
            raise ValueError("derivatives of the residuals are not finite: the run has diverged")

    def _move(self, step: Tensor, length: float, change: float, loss: float) -> None:
        """theta <- theta - length x step (P,), shortened where the linear model is not trusted.

        Args:
            change: squared length of the change of the linearised residuals by `step`; where it is
                more than `trust` of the loss, the length is reduced.

        Raises:
            ValueError: the step is not finite.
        """
        if not torch.isfinite(step).all():
            raise ValueError(f"the step of {type(self).__name__} is not finite; raise `damping`")
        change *= length**2
        trusted = self.param_groups[0]["trust"] * loss
        if change > trusted:
            length *= (trusted / change) ** 0.5
        for p, part in zip(self._parameters, step.split(self._sizes), strict=True):
            p.sub_(part.view_as(p).to(p.dtype), alpha=length)
