"""Which second-order optimizer a network gets, by its size."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from schnetpack_softadapt.training.optimizers.kalman import KalmanFilter
from schnetpack_softadapt.training.optimizers.spring import Spring

__all__ = ["Choice", "SecondOrder"]


class Choice(NamedTuple):
    """An optimizer that was chosen for a network."""

    optimizer_cls: type[Optimizer]  # its class
    optimizer_args: dict[str, Any]  # its arguments
    epochs: int  # after which a cosine of its learning rate gains little more
    reason: str  # what was chosen and why


class SecondOrder:
    """`KalmanFilter` for networks of up to `kalman_up_to` trainable parameters, `Spring` above.

    For M residuals of a batch and P parameters a step of the filter costs M P^2 operations and one
    of SPRING M^2 P, so the filter's epochs get dear as networks grow; it needs fewer of them, for
    it remembers the curvature of all batches. Measured (tests/benchmarks/results, "Second order"):
    25 epochs of the filter take as long as 100 of SPRING at P = 1700; the filter has smaller errors
    of forces and stress at P = 1265, a larger validation loss at 2738.

    `SoftAdaptTask` asks `choose` once the data have completed the model, and goes on with what it
    returns.
    """

    uses_residuals = True
    sums_over_ranks = True

    def __new__(cls, params: Iterable[Tensor], **arguments: Any) -> Optimizer:
        params = list(params)
        n_parameters = sum(p.numel() for p in params if p.requires_grad)
        choice = cls.choose(n_parameters, **arguments)
        return choice.optimizer_cls(params, **choice.optimizer_args)

    @staticmethod
    def choose(
        n_parameters: int,
        steps_per_epoch: int = 1,
        lr: float = 0.5,
        kalman_up_to: int = 2000,
        kalman: Mapping[str, Any] | None = None,
        spring: Mapping[str, Any] | None = None,
        kalman_epochs: int = 25,
        spring_epochs: int = 100,
        most_steps: int = 20_000,
    ) -> Choice:
        """The optimizer for a number of trainable parameters.

        Args:
            n_parameters: trainable parameters P.
            steps_per_epoch: batches of the training set.
            lr: of both.
            kalman_up_to: largest P of the Kalman filter.
            kalman, spring: other arguments of the optimizers.
            kalman_epochs, spring_epochs: epochs with each, where `trainer.max_epochs` is -1.
            most_steps: fewer epochs, but at least five, if they had more steps than this.
        """
        if n_parameters <= kalman_up_to:
            arguments, epochs, cls = kalman, kalman_epochs, KalmanFilter
            reason = f"Kalman filter: {n_parameters} parameters, at most {kalman_up_to}"
        else:
            arguments, epochs, cls = spring, spring_epochs, Spring
            reason = (
                f"SPRING: {n_parameters} parameters, and steps of the Kalman filter cost the square"
                f" of that (task.optimizer_args.kalman_up_to={kalman_up_to})"
            )
        epochs = min(epochs, max(5, round(most_steps / steps_per_epoch)))
        return Choice(cls, {"lr": lr, **(arguments or {})}, epochs, reason)
