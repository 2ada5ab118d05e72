"""Linear models need no steps: batches are summed up in triangular factors, which are solved."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import solve_triangular
from torch import Tensor

from schnetpack_softadapt.training.optimizers.linear_solvers import SOLVERS, LeastSquaresProblem
from schnetpack_softadapt.training.optimizers.ranks import rows_of_all_ranks, sum_over_ranks
from schnetpack_softadapt.training.optimizers.residual_optimizer import ResidualOptimizer
from schnetpack_softadapt.training.optimizers.residuals import Residuals

__all__ = ["LeastSquares", "Solution"]


class Solution(NamedTuple):
    """What a solution is for each component."""

    losses: dict[str, float]  # mean of w x^2
    # the same of labels that are left out, see `LeastSquares.solve`
    noise: dict[str, float]


# singular values of columns of length 1 that say nothing: rounding, divided by them, would
_DEPENDENT = 1e-6
_ROUNDING = 1e-5  # of the part of rows that is not fitted in any case


class LeastSquares(ResidualOptimizer):
    """Least squares over all batches of an epoch, for models that are linear in their parameters.

    A step adds the rows [A b] of a batch to the triangular factors R_k of their components k
    (energy, forces, stress, and groups of these where they are split), Q-less factorisations of one
    block after the other (G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 5.1):

        [R_k; rows] = Q R_k'

    `solve` stacks these with any weights, sqrt(alpha_k / N_k) R_k, and solves what comes out. The
    loss of each component at the solution follows from its factor without looking at data again, so
    further weights and solvers cost some P^3 operations, and no pass. N_k: the sum of the weights
    of its residuals.

    The condition number is that of A: normal equations, which need the same memory and a third of
    the time, have its square, and nearly dependent columns reach 1e8. Memory: (4 K + 4) (P + 1)^2
    float64 numbers for K components; K (P + 1)^2 in each checkpoint.

    Penalties are relative: columns of the weighted A are scaled to length 1 first. `l2` = 1e-10
    damps what has a singular value below 1e-5 of a column; `l1` is a part of the penalty that
    leaves nothing. They are on what the parameters move by from those of the first step: from 0 in
    a new model, else from another one, which is trained further.

    Args:
        params: parameters of one model; one group.
        lr: part of the way to the solution; 1 for the solution.
        solver: name in `linear_solvers.SOLVERS`: "svd" (`cut`), "ridge" (`l2`), "lasso" (`l1`),
            "elastic_net" (`l1`, `l2`), "ard".
        l2, l1: penalties.
        cut: singular values below this part of the largest are left out.

    Raises:
        ValueError: an argument out of range, nothing to train, several groups.

    Attributes:
        factors: of each component, with `rows` and `count`, what it counts.
        start: (P,) the parameters at the first step; None before.
    """

    #: `SoftAdaptTask` gives sums instead of means, and calls `solve` at the end of the epoch
    sums_over_epoch = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1.0,
        solver: str = "ridge",
        l2: float = 1e-12,
        l1: float = 1e-3,
        cut: float = 1e-8,
    ):
        if solver not in SOLVERS:
            raise ValueError(f"solver is one of {', '.join(SOLVERS)}, not {solver!r}")
        settings = {
            "lr": (lr, 0.0 <= lr <= 1.0),
            "solver": (solver, True),
            "l2": (l2, l2 >= 0.0),
            "l1": (l1, 0.0 <= l1 <= 1.0),
            "cut": (cut, 0.0 <= cut < 1.0),
            "fraction": (1.0, True),
            "min_groups": (1, True),
        }
        super().__init__(params, settings)
        self.factors: dict[str, _Factor] = {}
        self.start: Tensor | None = None
        self._is_solved = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Residuals]) -> Tensor:
        """Take in the rows of a batch; the parameters stay as they are.

        Args:
            closure: returns the residuals at the current parameters, with their graph: sqrt(w) x,
                whose squares are summed over the epoch, with `counts`, the sums of w.

        Returns:
            The sum of squares of all residuals.

        Raises:
            ValueError: a residual or a derivative is not finite.
        """
        if self._is_solved:  # a new epoch
            if self.start is None:
                self.start = torch.cat([p.reshape(-1) for p in self._parameters]).cpu().double()
            self.factors, self._is_solved = {}, False
        group = self.param_groups[0]
        residuals, loss = self._residuals(closure)
        j, r = self._linearize(residuals, group)
        self._check_derivatives(j.sum(0))
        theta = torch.cat([p.reshape(-1) for p in self._parameters]).to(j.dtype)
        rows = torch.cat([j, (j @ theta - r)[:, None]], 1).double().cpu().numpy()
        sizes = [len(value) for value in residuals.values()]
        for name, own in zip(residuals, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
            factor = self.factors.setdefault(name, _Factor(rows.shape[1]))
            factor.add(own, float(residuals.counts[name]))
        return torch.tensor(loss, dtype=torch.float64)

    @torch.no_grad()
    def solve(self, weights: Mapping[str, float], **settings: Any) -> Solution:
        """Set the parameters to the solution with these weights; as often as you like.

        Of the M_k rows of a component t_k = tr(A_k (A^T A)^-1 A_k^T) are fitted whatever their
        labels are: in the extreme a few energies by many parameters, which then say nothing of the
        error of others. `noise` is (M_k / (M_k - t_k))^2 times the loss, the squared error of
        labels that are left out by generalised cross-validation (G. H. Golub, M. Heath, G. Wahba,
        Technometrics 21, 215, 1979), for each component; 1, the spread of the labels, where
        everything is fitted. Weights of maximum likelihood take it in place of the loss.

        Args:
            weights: of the components.
            settings: solver, penalties and others in place of those of this optimizer.

        Raises:
            ValueError: no batch so far, nothing that counts, a solution that is not finite.
        """
        group = {**self.param_groups[0], **settings}
        if not self._is_solved:
            for factor in self.factors.values():
                factor.sum_over_ranks(self._parameters[0].device)
            self._is_solved = True
        counted = {name: f for name, f in self.factors.items() if f.count > 0.0}
        parts = [
            (weights[name] / f.count) ** 0.5 * f.rows
            for name, f in counted.items()
            if weights[name] > 0.0
        ]
        if not parts:
            raise ValueError("no residual counts: the weights of all components with labels are 0")
        n = self.n_parameters
        rows = _triangle(np.concatenate(parts), n + 1)
        length = np.linalg.norm(rows[:, :n], axis=0)
        unit = np.where(length > 0.0, length, 1.0)
        start = np.zeros(n) if self.start is None else self.start.numpy()
        problem = LeastSquaresProblem(
            rows[:n, :n] / unit,
            rows[:n, n] - rows[:n, :n] @ start,
            float(rows[n, n]) ** 2,
            sum(f.n_rows for name, f in counted.items() if weights[name] > 0.0),
        )
        penalties = {name: group[name] for name in ("l2", "l1", "cut")}
        solution = start + SOLVERS[group["solver"]](problem, **penalties) / unit
        if not np.isfinite(solution).all():
            raise ValueError(f"the solution of {group['solver']} is not finite; raise l2 or cut")
        found = torch.from_numpy(solution).split(self._sizes)
        for p, part in zip(self._parameters, found, strict=True):
            p.lerp_(part.view_as(p).to(p), group["lr"])
        at, losses, noise = np.append(solution, -1.0), {}, {}
        damping = max(group["l2"] ** 0.5 if group["solver"] == "ridge" else 0.0, _DEPENDENT)
        triangle = _triangle(np.vstack([problem.r, damping * np.eye(n)]))
        for name, f in counted.items():
            losses[name] = float(np.square(f.rows @ at).sum()) / f.count
            part = (weights[name] / f.count) ** 0.5 * f.rows[:, :n] / unit
            fitted = float(np.square(solve_triangular(triangle, part.T, trans="T")).sum())
            # forces that vanish by symmetry say nothing: rows of zeros
            left = 1.0 - fitted / f.n_rows if f.n_rows else 0.0
            noise[name] = losses[name] / left**2 if left > _ROUNDING else 1.0
        return Solution(losses, noise)

    def state_dict(self) -> dict:
        """As every optimizer's, with the factors: a checkpoint can be solved again."""
        factors = {name: factor.state() for name, factor in self.factors.items()}
        return {**super().state_dict(), "factors": factors, "start": self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        """As every optimizer's."""
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        factors, self.start = state_dict.get("factors", {}), state_dict.get("start")
        self.factors = {name: _Factor.of_state(state) for name, state in factors.items()}
        self._is_solved = True


class _Factor:
    """Triangular factor of the rows so far, and the sum of their weights.

    Args:
        n_columns: of the rows, n.
    """

    def __init__(self, n_columns: int):
        self.n_columns, self.n_rows, self.count = n_columns, 0, 0.0
        self._blocks: list[np.ndarray] = [np.empty((0, n_columns))]
        self._waiting = 0

    @property
    def rows(self) -> np.ndarray:
        """(n, n) upper triangular."""
        if len(self._blocks) > 1:
            self._blocks, self._waiting = [_triangle(np.concatenate(self._blocks))], 0
        return _triangle(self._blocks[0], self.n_columns)

    def add(self, rows: np.ndarray, count: float) -> None:
        """Take in rows (m, n), in which no more than `count` counts."""
        # structures without a label, and those that a sampler repeats, are rows of zeros
        self.n_rows += int(np.count_nonzero(rows.any(axis=1)))
        self.count += count
        self._blocks.append(rows)
        self._waiting += len(rows)
        # blocks of some n rows: the factor is renewed each time, at the cost of n rows
        if self._waiting >= 3 * self.n_columns:
            self._blocks, self._waiting = [_triangle(np.concatenate(self._blocks))], 0

    def sum_over_ranks(self, device: torch.device) -> None:
        """The factor of the rows of all ranks, on each of them; they meet on a device."""
        rows = rows_of_all_ranks(torch.from_numpy(self.rows).to(device)).cpu().numpy()
        sums = torch.tensor([self.n_rows, self.count], dtype=torch.float64, device=device)
        n_rows, self.count = sum_over_ranks(sums).tolist()
        self.n_rows, self._blocks = int(n_rows), [_triangle(rows)]

    def state(self) -> dict[str, Any]:
        rows = torch.from_numpy(self.rows)
        return {"rows": rows, "n_rows": self.n_rows, "count": self.count}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "_Factor":
        rows = state["rows"].double().cpu().numpy()
        factor = cls(rows.shape[1])
        factor.n_rows, factor.count, factor._blocks = state["n_rows"], state["count"], [rows]
        return factor


def _triangle(rows: np.ndarray, at_least: int = 0) -> np.ndarray:
    """R of the QR factorisation of rows (m, n), with zeros up to `at_least` rows."""
    if len(rows) > 1:
        rows = np.linalg.qr(rows, mode="r")
    if len(rows) < at_least:
        rows = np.pad(rows, ((0, at_least - len(rows)), (0, 0)))
    return rows
