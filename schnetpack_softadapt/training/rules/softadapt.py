"""SoftAdapt: weights from how fast each loss changes."""

import math
from collections.abc import Mapping

from schnetpack_softadapt.training.rules.rule import Rule, log_loss, require, smoothed, softmax

__all__ = ["SoftAdapt"]


class SoftAdapt(Rule):
    """Weights from how fast each loss changes (Heydari, Thompson, Mehmood, arXiv:1912.12355).

    s_k = l_k(i) - l_k(i-1), normalised, then
    alpha_k = exp(beta s_k) / (sum_m exp(beta s_m) + eps).
    With beta > 0 a loss that falls slowest, or grows, gets the largest weight. The first two epochs
    have the initial weights, since one loss gives no rate. The defaults are the rule of Ocampo et
    al. (Comput. Mater. Sci. 2024); `log`, `smooth` and `prior` are ours.

    Args:
        beta: sharpness; 0 gives equal weights, negative values favour what falls fastest.
        n: the weights used are the mean of the last n epochs' alpha, renewed every n epochs.
        normalization: "l1" divides s by sum_m |s_m| + eps, "l2" by sqrt(sum_m s_m^2) + eps, "none"
            leaves it, and then the weights depend on the units of the losses.
        loss_weighted: multiply each exponential by its loss, as Heydari's loss-weighted variant.
        log: rates of the logarithms, s_k = log l_k(i) - log l_k(i-1): the relative change, which
            neither the unit nor the size of a loss enters.
        smooth: l_k is an exponential average over epochs, this part of it the average before; 0:
            the loss of the epoch.
        initial: see `Rule`.
        eps: keeps the divisions finite; in alpha relative to the largest numerator.
        prior: factors on the exponentials, see `Rule`.
    """

    _memory = ("previous", "alphas")

    def __init__(
        self,
        beta: float = 1.0,
        n: int = 1,
        normalization: str = "l1",
        loss_weighted: bool = False,
        log: bool = False,
        smooth: float = 0.0,
        initial: Mapping[str, float] | None = None,
        eps: float = 1e-8,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(initial, prior)
        known = normalization in ("l1", "l2", "none")
        require(known, f"normalization is l1, l2 or none, not {normalization!r}")
        require(int(n) == n and n >= 1, f"n is a number of epochs, at least 1, not {n}")
        require(math.isfinite(beta), f"beta must be finite, not {beta}")
        require(eps > 0, f"eps must be positive, not {eps}")
        require(0 <= smooth < 1, f"smooth lies between 0 and 1, 1 excluded, not {smooth}")
        self.beta, self.n, self.eps = float(beta), int(n), float(eps)
        self.normalization, self.loss_weighted = normalization, bool(loss_weighted)
        self.log, self.smooth = bool(log), float(smooth)

    def _next(self, epoch, losses, lr, progress):
        seen = {k: log_loss(l) for k, l in losses.items()} if self.log else losses
        seen = smoothed(seen, self.previous, self.smooth)
        alphas = self.alphas or []
        if self.previous:
            self.rates = self._normalised({k: v - self.previous[k] for k, v in seen.items()})
            alphas = [*alphas, self._alpha(losses)]
        self.previous = seen
        full = len(alphas) >= self.n
        self.alphas = None if full else alphas
        return {k: sum(a[k] for a in alphas) / len(alphas) for k in losses} if full else None

    def _normalised(self, change: dict[str, float]) -> dict[str, float]:
        # divided by the largest first: losses of 1e200 must not overflow the sums
        largest = max(abs(s) for s in change.values())
        if self.normalization == "none" or largest == 0.0:
            return change
        if self.normalization == "l1":
            norm = largest * sum(abs(s) / largest for s in change.values())
        else:
            norm = largest * math.hypot(*(s / largest for s in change.values()))
        return {k: s / (norm + self.eps) for k, s in change.items()}

    def _alpha(self, losses: dict[str, float]) -> dict[str, float]:
        powers = {k: self.beta * s for k, s in self.rates.items()}
        # all losses zero: nothing to weight by, and weights of zero would end the training
        if self.loss_weighted and any(loss > 0 for loss in losses.values()):
            # a loss of the user's may be negative: it counts as little as one of zero
            powers = {k: p + math.log(losses[k]) for k, p in powers.items() if losses[k] > 0}
        return dict.fromkeys(losses, 0.0) | softmax(powers, self.eps)
