"""A second-order optimizer for networks of many parameters: its matrix is that of the residuals."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from schnetpack_softadapt.training.optimizers.ranks import (
    columns_of_all_ranks,
    own_rows,
    sum_over_ranks,
)
from schnetpack_softadapt.training.optimizers.residual_optimizer import ResidualOptimizer
from schnetpack_softadapt.training.optimizers.residuals import Residuals

__all__ = ["Spring"]


class Spring(ResidualOptimizer):
    """SPRING: damped Gauss-Newton steps in the space of residuals, with the last one as momentum.

    For residuals r(theta) (M,) of a batch with Jacobian J (M, P), momentum mu and the last phi',

        phi = J^T (J J^T + lambda I)^-1 (r - mu J phi') + mu phi'
        theta <- theta - lr phi

    (G. Goldshlager, N. Abrahamsen and L. Lin, J. Comput. Phys. 516, 113351, 2024). phi is what
    minimises |J phi - r|^2 + lambda |phi - mu phi'|^2: it solves the batch at hand and stays near
    the last step in what the batch does not determine, as a Kaczmarz iteration does. Without
    momentum it is the damped Gauss-Newton step (J^T J + lambda I)^-1 J^T r.

    The matrix is M x M where that of `KalmanFilter` is P x P: a step costs M^2 P + M^3 / 3
    operations and the memory of J, M P numbers. J and the products with it are in the type of the
    parameters, the Cholesky factor is in float64.

    lambda = `damping` x mean(diag(J J^T)), over the rows that count. In place of the limit of the
    paper on the length of a step, one that changes the linearised residuals by more than `trust` of
    their squared length is shortened; J phi = r - lambda x with the solution x costs nothing.

    Several ranks take the step of one rank with the batches of all. Each computes its rows of J,
    ranks swap them for about P / N columns of all rows each, and the parts of J J^T are summed.

    Args:
        params: parameters of one model; one group.
        lr: length of the step in Gauss-Newton steps, in (0, 1]; a scheduler takes it to zero.
        momentum: mu, in [0, 1).
        damping: lambda / mean(diag(J J^T)), positive.
        trust: largest change of the squared length of the linearised residuals in one step,
            relative to it.
        fraction: part of the residuals of a component used in each step.
        min_groups: components with fewer groups of residuals than this (atoms for forces,
            structures for energy and stress) are used entirely; on each rank.

    Raises:
        ValueError: an argument out of range, nothing to train, several groups.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.5,
        momentum: float = 0.95,
        damping: float = 0.1,
        trust: float = 0.3,
        fraction: float = 0.2,
        min_groups: int = 32,
    ):
        settings = {
            "lr": (lr, 0.0 <= lr <= 1.0),
            "momentum": (momentum, 0.0 <= momentum < 1.0),
            "damping": (damping, damping > 0.0),
            "trust": (trust, trust > 0.0),
            "fraction": (fraction, 0.0 < fraction <= 1.0),
            "min_groups": (min_groups, min_groups >= 1),
        }
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Residuals]) -> Tensor:
        group = self.param_groups[0]
        residuals, loss = self._residuals(closure)
        j, r = self._linearize(residuals, group)
        state = self.state[self._parameters[0]]
        if not state:
            # in the type of the parameters, to which torch converts what it loads
            state["phi"], state["step"] = j.new_zeros(self.n_parameters), 0
        phi = group["momentum"] * state["phi"]

        mine, n_rows = own_rows(j)
        j, columns = columns_of_all_ranks(j)
        # J J^T, J mu phi' and r side by side: one sum over ranks
        system = torch.zeros(n_rows, n_rows + 2, dtype=torch.float64, device=j.device)
        self._lower_product(j, system[:, :n_rows])
        system[:, n_rows] = j @ phi[columns]
        system[mine, n_rows + 1] = r.double()
        sum_over_ranks(system)
        self._check_derivatives(system.diagonal())
        matrix, old, r = system[:, :n_rows], system[:, n_rows], system[:, n_rows + 1]
        x, damping = self._solve(matrix, r - old, group["damping"], torch.finfo(j.dtype).eps)

        step = torch.zeros_like(phi)
        step[columns] = j.T @ x.to(j.dtype)
        step = sum_over_ranks(step) + phi
        self._move(step, group["lr"], float((r - damping * x).square().sum()), loss)
        state["phi"] = step
        state["step"] += 1
        return torch.tensor(loss, dtype=torch.float64)

    @staticmethod
    def _lower_product(j: Tensor, out: Tensor) -> None:
        """J J^T in the lower triangle of `out` and somewhat above it: five eighths of the work."""
        step = max(32, -(-len(j) // 4))
        for first in range(0, len(j), step):
            end = first + step
            out[first:end, :end] = j[first:end] @ j[:end].T

    @staticmethod
    def _solve(matrix: Tensor, rhs: Tensor, damping: float, eps: float) -> tuple[Tensor, float]:
        """(matrix + lambda I)^-1 rhs (M,) and lambda; the matrix is overwritten."""
        diagonal = matrix.diagonal()
        # rows of zeros are structures without a label, or there to make ranks equally long
        mean = diagonal.sum() / (diagonal > 0.0).sum().clamp_min(1)
        # the second term is for rounding in J J^T, the third for a batch that nothing depends on
        added = float(damping * mean + 2 * eps * diagonal.max()) + 1e-30
        diagonal += added
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise ValueError("the matrix of Spring is not positive; raise `damping`")
        return torch.cholesky_solve(rhs[:, None], factor)[:, 0], added
