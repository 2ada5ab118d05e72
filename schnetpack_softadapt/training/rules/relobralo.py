"""Relative loss balancing with random lookback."""

import random
from collections.abc import Mapping

from schnetpack_softadapt.training.rules.rule import Rule, require, softmax

__all__ = ["ReLoBRaLo"]


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

    _memory = ("first", "previous")

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
        require(temperature > 0, f"temperature must be positive, not {temperature}")
        require(0 <= decay <= 1, f"decay lies between 0 and 1, not {decay}")
        require(0 <= rho <= 1, f"rho lies between 0 and 1, not {rho}")
        self.temperature, self.decay, self.rho = float(temperature), float(decay), float(rho)
        self.seed = seed

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
        return softmax({k: _ratio(now[k], then[k]) / self.temperature for k in now})


def _ratio(now: float, then: float) -> float:
    """now / then; 1 where a loss was and is zero, bounded where it rose from zero."""
    if then == 0.0:
        return 1.0 if now == 0.0 else 1e6
    return min(now / then, 1e6)
