"""Weights of maximum likelihood, the default."""

import math
from collections.abc import Mapping

from schnetpack_softadapt.training.rules.rule import Rule, log_loss, require, smoothed, softmax

__all__ = ["Likelihood"]


class Likelihood(Rule):
    """Weights of maximum likelihood, one noise level for each component, with annealed counts.

    If the N_k labels of component k scatter normally about the model with a variance v_k, the
    negative logarithm of the likelihood of all labels is, with the mean squared error l_k,

        1/2 sum_k N_k (l_k / v_k + log v_k)

    (Kendall, Gal, Cipolla, CVPR 2018, eq. 7, who leave out N_k). It is least at v_k = l_k, so the
    model is trained with weights N_k / l_k; N / l is also that of an absolute error. A force
    component that is well predicted and one of many is so given what it is worth against one energy
    per structure. Equal weights on mean losses count the one energy of a molecule as much as all of
    its forces together, and so do rates, which know neither N_k nor how far a component has come.

    That holds while errors are independent. A model that has learnt what it can is left with errors
    that its form imposes, shared by neighbouring atoms and by structures alike: the 3 N force
    components of a structure are then no 3 N pieces of evidence. So the counts are annealed,

        alpha_k = N_k^r / l_k / sum_m N_m^r / l_m,   r = end + (1 - end) q,

    with q from 1 to 0: the smaller of the learning rate, by the largest so far, and the part of the
    run (of its epochs, or of its time with `max_time`) that is left. With a decaying rate, a
    plateau scheduler or a warm-up it follows the rate, with a constant rate the epochs. The loss is
    averaged over epochs in the logarithm, so that the noise of one epoch does not enter.

    Args:
        end: exponent r of the counts at the end; 1 keeps the likelihood's weights throughout.
        smooth: part of the average of log l_k that is the average before.
        ceiling: largest l_k that counts. A standardised loss above 1 is that of a model worse than
            the mean of the labels, which says nothing of the noise.
        initial: see `Rule`.
        prior: N_k, see `Rule`.
    """

    _memory = ("logs", "largest_lr")

    def __init__(
        self,
        end: float = 0.5,
        smooth: float = 0.8,
        ceiling: float = 1.0,
        initial: Mapping[str, float] | None = None,
        prior: Mapping[str, float] | str | None = "auto",
    ):
        super().__init__(initial, prior)
        require(0 <= end <= 1, f"end lies between 0 and 1, not {end}")
        require(0 <= smooth < 1, f"smooth lies between 0 and 1, 1 excluded, not {smooth}")
        require(ceiling > 0, f"ceiling must be positive, not {ceiling}")
        self.end, self.smooth, self.ceiling = float(end), float(smooth), float(ceiling)

    def _next(self, epoch, losses, lr, progress):
        logs = {k: min(log_loss(l), math.log(self.ceiling)) for k, l in losses.items()}
        self.rates = {k: v - (self.logs or logs)[k] for k, v in logs.items()}
        self.logs = smoothed(logs, self.logs, self.smooth)
        left = 1.0 - min(max(progress, 0.0), 1.0)
        if lr is not None:
            self.largest_lr = max(self.largest_lr or 0.0, lr)
            left = min(left, lr / self.largest_lr if self.largest_lr > 0 else 1.0)
        # the prior N_k comes on top of the balance: N_k^(r - 1) / l_k here
        power = (self.end - 1.0) * (1.0 - left)
        return softmax(
            {k: power * log_loss(self.factors.get(k, 1.0)) - v for k, v in self.logs.items()}
        )
