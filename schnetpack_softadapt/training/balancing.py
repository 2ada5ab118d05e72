"""Rules that balance the loss components beside SoftAdapt; see `weighting` for what a rule is."""

import math
import random
from collections.abc import Mapping

from schnetpack_softadapt.training.weighting import Rule

__all__ = ["ReLoBRaLo", "Uncertainty"]


class ReLoBRaLo(Rule):
    """Relative loss balancing with random lookback (Bischof and Kraus, arXiv:2110.09813, 2021).

    b_k(t, t') = exp(l_k(t) / (T l_k(t'))) / sum_m exp(l_m(t) / (T l_m(t')))
    history    = rho alpha_k(t-1) + (1 - rho) b_k(t, 0)
    alpha_k(t) = a history + (1 - a) b_k(t, t-1)
    rho is 1 with probability `rho` and 0 otherwise, drawn anew each epoch (the paper: each step).
    The paper's b carries a factor of the number of losses; here the weights sum to 1.

    Args:
        temperature: T; large values give equal weights.
        decay: a, how long the past is remembered.
        rho: expectation of rho, the chance not to look back to the first epoch.
        seed: of the draws, which depend on it and on the epoch only.
        initial, prior: see `Rule`.
    """

    _state = ("first", "previous")

    def __init__(
        self,
        temperature: float = 1.0,
        decay: float = 0.9,
        rho: float = 0.99,
        seed: int = 0,
        initial: Mapping[str, float] | None = None,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(initial, prior)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        for name, value in (("decay", decay), ("rho", rho)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} lies between 0 and 1, not {value}")
        self.temperature, self.decay, self.rho = float(temperature), float(decay), float(rho)
        self.seed = seed
        self.first: dict[str, float] = {}
        self.previous: dict[str, float] = {}

    def begin(self, components, lr=None, labels=None, loss_weights=None):
        self.first, self.previous = {}, {}
        return super().begin(components, lr, labels, loss_weights)

    def _next(self, epoch, losses, lr, progress):
        if not self.previous:
            self.first = self.previous = losses
            return None
        keep = random.Random(f"{self.seed}:{epoch}").random() < self.rho
        history = self.balance if keep else self._balance(losses, self.first)
        recent = self._balance(losses, self.previous)
        self.rates = {k: _ratio(losses[k], self.previous[k]) for k in losses}
        self.previous = losses
        return {k: self.decay * history[k] + (1 - self.decay) * recent[k] for k in losses}

    def _balance(self, now: dict[str, float], then: dict[str, float]) -> dict[str, float]:
        power = {k: _ratio(now[k], then[k]) / self.temperature for k in now}
        largest = max(power.values())
        value = {k: math.exp(p - largest) for k, p in power.items()}
        total = sum(value.values())
        return {k: v / total for k, v in value.items()}


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

    _state = ("variance",)

    def __init__(
        self,
        rate: float = 0.2,
        initial: Mapping[str, float] | None = None,
        normalize: bool = True,
        floor: float = 1e-6,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(initial, prior)
        if not rate > 0:
            raise ValueError(f"rate must be positive, not {rate}")
        if not floor > 0:
            raise ValueError(f"floor must be positive, not {floor}")
        if self.initial is not None and not all(w > 0 for w in self.initial.values()):
            raise ValueError("uncertainty weights start from positive weights")
        self.rate, self.normalize, self.floor = float(rate), bool(normalize), float(floor)
        self.variance: dict[str, float] = {}

    def _first(self, components):
        given = self.initial is not None
        first = super()._first(components)
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


def _ratio(now: float, then: float) -> float:
    """now / then; 1 where a loss was and is zero, bounded where it rose from zero."""
    if then == 0.0:
        return 1.0 if now == 0.0 else 1e6
    return min(now / then, 1e6)
