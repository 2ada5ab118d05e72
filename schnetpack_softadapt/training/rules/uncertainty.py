"""Learned homoscedastic uncertainty."""

import math
from collections.abc import Mapping

from schnetpack_softadapt.training.rules.rule import Rule, require

__all__ = ["Uncertainty"]


class Uncertainty(Rule):
    """Learned homoscedastic uncertainty (Kendall, Gal, Cipolla, CVPR 2018, eq. 7).

    The objective sum_k (l_k exp(-s_k) + s_k) / 2 is minimised in the log variances s_k as well,
    which weights each loss by alpha_k = exp(-s_k) / 2. The paper takes gradient steps in s beside
    those of the network. Here the gradient flow ds/dt = -(1 - l exp(-s)) / 2 is followed exactly
    for a time `rate` per epoch: with v = exp(s) it is dv/dt = -(v - l) / 2, so
    v <- l + (v - l) exp(-rate / 2),
    stable for every rate and free of overflow. Gradient descent with learning rate h and n steps
    per epoch corresponds to rate = n h.

    Args:
        rate: time followed per epoch; 2 moves the variance 63 % of the way to the loss.
        initial: weights of the first epoch, 1 / (2 v); v = 1 (weights of 1/2) if None.
        normalize: scale the weights to a sum of 1, which leaves their ratios. The bare weights grow
            as the losses fall, which raises the effective learning rate of plain SGD.
        floor: smallest variance, so that a loss of zero does not take all the weight.
        prior: see `Rule`; with "labels" the objective counts labels, as that of `Likelihood`.
    """

    _memory = ("variance",)

    def __init__(
        self,
        rate: float = 0.2,
        initial: Mapping[str, float] | None = None,
        normalize: bool = True,
        floor: float = 1e-6,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(initial, prior)
        require(rate > 0, f"rate must be positive, not {rate}")
        require(floor > 0, f"floor must be positive, not {floor}")
        positive = self.initial is None or all(w > 0 for w in self.initial.values())
        require(positive, "uncertainty weights start from positive weights")
        self.rate, self.normalize, self.floor = float(rate), bool(normalize), float(floor)

    def _first(self, components, lr):
        first = super()._first(components, lr)
        given = self.initial is not None
        self.variance = {k: 0.5 / w if given else 1.0 for k, w in first.items()}
        return self._weights()

    def _next(self, epoch, losses, lr, progress):
        keep = math.exp(-0.5 * self.rate)
        for k, loss in losses.items():
            self.rates[k] = loss - self.variance[k]
            self.variance[k] = max(loss + (self.variance[k] - loss) * keep, self.floor)
        return self._weights()

    def _weights(self) -> dict[str, float]:
        weights = {k: 0.5 / v for k, v in self.variance.items()}
        total = sum(weights.values()) if self.normalize else 1.0
        return {k: w / total for k, w in weights.items()}
