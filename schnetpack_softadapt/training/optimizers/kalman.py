"""A second-order optimizer for networks of a few thousand parameters."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from schnetpack_softadapt.training.optimizers.ranks import rows_of_all_ranks
from schnetpack_softadapt.training.optimizers.residual_optimizer import ResidualOptimizer
from schnetpack_softadapt.training.optimizers.residuals import Residuals

__all__ = ["KalmanFilter"]


class KalmanFilter(ResidualOptimizer):
    """Multi-stream extended Kalman filter with fading memory, in information form.

    For residuals r(theta) of a batch with Jacobian J, memory m and Levenberg damping lambda,

        A <- m A + J^T J,    n <- m n + 1
        theta <- theta - lr (A / n + lambda D)^-1 J^T r

    A is the inverse of the covariance matrix of the extended Kalman filter: with `kalman_gain`,
    lr = 1 and no damping these are its equations (S. Haykin, Kalman Filtering and Neural Networks,
    Wiley 2001, chapter 2; for interatomic potentials A. Singraber et al., J. Chem. Theory Comput.
    15, 3075, 2019), solved for all residuals of a batch at once: a batch of M residuals costs
    M P^2 + P^3 / 3 operations where the covariance form costs 4 M P^2. Without `kalman_gain` the
    step has the length of a Gauss-Newton step times `lr`, which a scheduler takes to zero.

    The loss is the sum of squares, so weights of components count as they do in the loss.

    Damping, D = mean(diag(A / n)) and lambda = `damping` x loss, is large while the loss is and
    vanishes with it (J. Fan and Y. Yuan, Computing 74, 23, 2005), so there is nothing to adapt. A
    step that changes the linearised residuals by more than `trust` of their squared length is
    shortened.

    The factor of A is most of the cost of large P and is renewed only every `refresh` steps. In
    between, the batch at hand is added to the old one by the matrix inversion lemma, for 2 M P^2
    operations: without it, directions that older batches know nothing of would get huge steps.

    Memory: A, a float64 copy of it and its factor, 20 bytes P^2 in float32: 20 MB for P = 1000
    parameters, 0.5 GB for 5000; 4 bytes P^2 in each checkpoint. `max_parameters` refuses more.

    Several ranks take the step of one rank with the batches of all: each computes its rows of J,
    and all of them do the rest with the rows of all.

    Args:
        params: parameters of one model; one group.
        lr: length of the step in Gauss-Newton steps, in (0, 1].
        memory: m, the fading factor per step; in (0, 1].
        damping: lambda / loss.
        trust, fraction, min_groups: see `ResidualOptimizer`.
        refresh: steps between two factorisations; None: one for each 1000 parameters.
        kalman_gain: divide the step by n.
        initial_information: A starts as this times the identity.
        max_parameters: refuse larger models.

    Raises:
        ValueError: as `ResidualOptimizer`; too many parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.5,
        memory: float = 0.95,
        damping: float = 1e-2,
        trust: float = 0.3,
        fraction: float = 0.2,
        min_groups: int = 32,
        refresh: int | None = None,
        kalman_gain: bool = False,
        initial_information: float = 0.0,
        max_parameters: int = 10_000,
    ):
        settings = {
            "lr": (lr, 0.0 <= lr <= 1.0),
            "memory": (memory, 0.0 < memory <= 1.0),
            "damping": (damping, damping >= 0.0),
            "trust": (trust, trust > 0.0),
            "fraction": (fraction, 0.0 < fraction <= 1.0),
            "min_groups": (min_groups, min_groups >= 1),
            "refresh": (refresh, refresh is None or refresh >= 1),
            "kalman_gain": (kalman_gain, True),
            "initial_information": (initial_information, initial_information >= 0.0),
        }
        super().__init__(params, settings)
        self._factor: Tensor | None = None
        self._age = 0  # steps since the factor was made
        if self.n_parameters > max_parameters:
            raise ValueError(
                f"KalmanFilter keeps a matrix of {self.n_parameters} x {self.n_parameters}, for at"
                f" most max_parameters={max_parameters}; choose smaller networks (n_hidden) or"
                " another optimizer (task/optimizer=softadapt_spring)"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Residuals]) -> Tensor:
        group = self.param_groups[0]
        residuals, loss = self._residuals(closure)
        j, r = map(rows_of_all_ranks, self._linearize(residuals, group))
        gradient = (j.T @ r).double()
        self._check_derivatives(gradient)
        state, memory = self.state[self._parameters[0]], group["memory"]
        if not state:
            state["information"] = torch.eye(len(j.T), dtype=j.dtype, device=j.device)
            state["information"] *= group["initial_information"]
            state["n"], state["loss"], state["step"] = 0.0, None, 0
        state["information"].mul_(memory).addmm_(j.T, j)
        state["n"] = memory * state["n"] + 1.0
        state["loss"] = loss if state["loss"] is None else 0.8 * state["loss"] + 0.2 * loss
        state["step"] += 1

        refresh = group["refresh"] or -(-self.n_parameters // 1000)
        if self._factor is None or self._age >= refresh:
            self._factor, self._age = self._factorize(state, group["damping"] * state["loss"]), 0
            step = torch.cholesky_solve(gradient[:, None], self._factor)[:, 0]
        else:
            step = self._updated_solve(self._factor, state["n"], j.double(), r.double())
        self._age += 1
        length = group["lr"] / (state["n"] if group["kalman_gain"] else 1.0)
        self._move(step, length, float(gradient @ step), loss)
        return torch.tensor(loss, dtype=torch.float64)

    def state_dict(self) -> dict:
        """As every optimizer's, without the factor.

        That is forgotten here, as in the run that goes on from this state: both take equal steps.
        """
        self._factor = None
        return super().state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self._factor = None
        super().load_state_dict(state_dict)

    @staticmethod
    def _updated_solve(factor: Tensor, n: float, j: Tensor, r: Tensor) -> Tensor:
        """(L L^T + J^T J / n)^-1 J^T r for an older factor L: the Kalman gain times r."""
        x = torch.cholesky_solve(j.T, factor)  # (P, M)
        inner = j @ x
        inner.diagonal().add_(n)
        return x @ torch.linalg.solve(inner, n * r)

    @staticmethod
    def _factorize(state: dict, damping: float) -> Tensor:
        """Cholesky factor of A / n + damping D in float64."""
        matrix = state["information"].double() / state["n"]
        diagonal = matrix.diagonal()
        # what rounding in the sums of A may have made negative
        floor = 2 * torch.finfo(state["information"].dtype).eps * float(diagonal.max())
        added = damping * float(diagonal.mean()) + floor
        for _ in range(20):
            diagonal += added
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:
                return factor
            added = max(9 * added, 1e-300)  # ten times in total
        raise ValueError("the Kalman filter's matrix is not positive; raise `damping`")
