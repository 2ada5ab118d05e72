"""Rules that set the weights of the loss components, from floats alone.

A rule is told once per epoch the mean of every unweighted loss component over that epoch, and says
with which weights the next epoch is trained: total = sum_k alpha_k l_k. Rules that balance
components give weights that sum to 1, so that changing the rule does not change the scale of the
gradient. Nothing here knows a tensor; the same floats give the same weights on every machine and
on every rank.
"""

import math
from collections.abc import Mapping, Sequence

__all__ = ["Fixed", "LinearRamp", "Rule", "SoftAdapt", "TwoStage"]


class Rule:
    """Base class: holds the weights in use and checks what it is told.

    Subclasses override `_next`. A rule is made without knowing which components a run has;
    `begin` names them.

    Args:
        initial: weights of the first epoch by component; equal weights that sum to 1 if None.
            Entries of components that a run does not have are ignored.

    Attributes:
        weights: the weights in use, by component.
        rates: for logging, what the rule made of the last change of each loss (0 if nothing).
    """

    def __init__(self, initial: Mapping[str, float] | None = None):
        self.initial = None if initial is None else _checked("initial", initial)
        self.weights: dict[str, float] = {}
        self.rates: dict[str, float] = {}

    def begin(self, components: Sequence[str], lr: float | None = None) -> dict[str, float]:
        """Name the components of a run; returns the weights of its first epoch.

        Args:
            components: names in a fixed order.
            lr: learning rate at the start of training.

        Raises:
            ValueError: no component, or one without a weight.
        """
        if not components:
            raise ValueError("a weighting rule needs at least one loss component")
        self.weights = self._initial(list(components))
        self.rates = dict.fromkeys(components, 0.0)
        return dict(self.weights)

    def update(
        self, epoch: int, losses: Mapping[str, float], lr: float | None = None
    ) -> dict[str, float]:
        """Take the losses of an epoch; returns the weights of the next.

        Args:
            epoch: number of the epoch that has just ended, from 0.
            losses: mean unweighted loss of each component over that epoch.
            lr: learning rate of the next epoch.

        Raises:
            ValueError: a loss is not finite; names component and epoch.
        """
        if not self.weights:
            raise ValueError("call begin() with the names of the components before update()")
        if set(losses) != set(self.weights):
            raise ValueError(f"losses of {sorted(losses)}, but weights of {sorted(self.weights)}")
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise ValueError(
                    f"the {name} loss of epoch {epoch} is {loss}: lower the learning rate, clip"
                    " gradients, or look for broken structures in the data"
                )
        ordered = {name: float(losses[name]) for name in self.weights}
        self.weights = self._next(epoch, ordered, lr)
        return dict(self.weights)

    def state_dict(self) -> dict:
        """Everything a resumed run needs, as plain Python values."""
        state = {
            key: value.copy() if isinstance(value, dict | list) else value
            for key, value in vars(self).items()
            if key in self._state
        }
        return {"rule": type(self).__name__, **state}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of another rule or of other components.
        """
        if state.get("rule") != type(self).__name__:
            raise ValueError(f"the saved weights are of rule {state.get('rule')}")
        if self.weights and set(state["weights"]) != set(self.weights):
            raise ValueError(
                f"the saved weights are of {sorted(state['weights'])}, this run has"
                f" {sorted(self.weights)}"
            )
        for key in self._state:
            value = state[key]
            setattr(self, key, value.copy() if isinstance(value, dict | list) else value)

    #: attributes that change during a run
    _state: tuple[str, ...] = ("weights", "rates")

    def _initial(self, components: list[str]) -> dict[str, float]:
        if self.initial is None:
            return dict.fromkeys(components, 1.0 / len(components))
        return _select("initial", self.initial, components)

    def _next(self, epoch: int, losses: dict[str, float], lr: float | None) -> dict[str, float]:
        raise NotImplementedError


class Fixed(Rule):
    """Weights that stay as they are.

    Args:
        weights: by component; equal weights that sum to 1 if None.
    """

    def __init__(self, weights: Mapping[str, float] | None = None):
        super().__init__(weights)

    def _next(self, epoch, losses, lr):
        return self.weights


class SoftAdapt(Rule):
    """Weights from how fast each loss changes (Heydari, Thompson, Mehmood, arXiv:1912.12355).

    s_k = l_k(i) - l_k(i-1), normalised, then
    alpha_k = exp(beta s_k) / (sum_m exp(beta s_m) + eps).
    With beta > 0 a loss that falls slowest, or grows, gets the largest weight. The first two epochs
    have the initial weights, since one loss gives no rate.

    Args:
        beta: sharpness; 0 gives equal weights, negative values favour what falls fastest.
        n: the weights used are the mean of the last n epochs' alpha, renewed every n epochs.
        normalization: "l1" divides s by sum_m |s_m| + eps, "l2" by sqrt(sum_m s_m^2) + eps, "none"
            leaves it, and then the weights depend on the units of the losses.
        loss_weighted: multiply each exponential by its loss, as Heydari's loss-weighted variant.
        initial: weights of the first epochs; `prior` if None.
        eps: keeps the divisions finite; in alpha relative to the largest numerator.
        prior: factors p_k on the exponentials, alpha_k = p_k exp(beta s_k) / (sum_m p_m exp(beta
            s_m) + eps), by component: what a component is worth when all fall alike. None: 1, as
            in the paper. Normalised rates say nothing of how small a loss is or how many labels
            stand behind it.
    """

    _state = ("weights", "rates", "previous", "alphas")

    def __init__(
        self,
        beta: float = 1.0,
        n: int = 1,
        normalization: str = "l1",
        loss_weighted: bool = False,
        initial: Mapping[str, float] | None = None,
        eps: float = 1e-8,
        prior: Mapping[str, float] | None = None,
    ):
        super().__init__(initial)
        self.prior = None if prior is None else _checked("prior", prior)
        if normalization not in ("l1", "l2", "none"):
            raise ValueError(f"normalization is l1, l2 or none, not {normalization!r}")
        if int(n) != n or n < 1:
            raise ValueError(f"n is a number of epochs, at least 1, not {n}")
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, not {beta}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, not {eps}")
        self.beta, self.n, self.eps = float(beta), int(n), float(eps)
        self.normalization, self.loss_weighted = normalization, bool(loss_weighted)
        self.previous: dict[str, float] = {}
        self.alphas: list[dict[str, float]] = []

    def begin(self, components, lr=None):
        self.previous, self.alphas = {}, []
        if self.prior is not None:
            _select("prior", self.prior, list(components))
        return super().begin(components, lr)

    def _initial(self, components):
        if self.prior is None or self.initial is not None:
            return super()._initial(components)
        chosen = _select("prior", self.prior, components)
        total = sum(chosen.values())
        return {k: p / total for k, p in chosen.items()}

    def _next(self, epoch, losses, lr):
        if self.previous:
            change = {k: losses[k] - self.previous[k] for k in losses}
            self.rates = self._normalised(change)
            self.alphas.append(self._alpha(losses))
        self.previous = losses
        if len(self.alphas) < self.n:
            return self.weights
        mean = {k: sum(a[k] for a in self.alphas) / len(self.alphas) for k in losses}
        self.alphas = []
        return mean

    def _normalised(self, change: dict[str, float]) -> dict[str, float]:
        # divided by the largest first: losses of 1e200 must not overflow the sums
        largest = max(abs(s) for s in change.values())
        if self.normalization == "none" or largest == 0.0:
            return change
        if self.normalization == "l1":
            norm = largest * sum(abs(s) / largest for s in change.values())
        else:
            norm = largest * math.sqrt(sum((s / largest) ** 2 for s in change.values()))
        return {k: s / (norm + self.eps) for k, s in change.items()}

    def _alpha(self, losses: dict[str, float]) -> dict[str, float]:
        power = {k: self.beta * s for k, s in self.rates.items()}
        largest = max(power.values())  # subtracted, so that no exponential overflows
        value = {k: math.exp(p - largest) for k, p in power.items()}
        if self.prior is not None:
            value = {k: self.prior[k] * v for k, v in value.items()}
        if self.loss_weighted:
            weighted = {k: v * losses[k] for k, v in value.items()}
            # all losses zero: nothing to weight by, and weights of zero would end the training
            value = weighted if sum(weighted.values()) > 0 else value
        # eps is relative to the largest, or weights of losses like 1e-8 would not sum to 1
        total = sum(value.values()) + self.eps * max(value.values())
        return {k: v / total for k, v in value.items()}


class LinearRamp(Rule):
    """Weights that go from `start` to `limit` as the learning rate decays.

    p = p_limit (1 - r(t)/r(0)) + p_start r(t)/r(0) with the learning rate r, the prefactors of
    Zhang, Han, Wang, Car, E, Phys. Rev. Lett. 120, 143001 (2018). The weights move only if a
    scheduler lowers the learning rate.

    Args:
        start: weights at the initial learning rate, by component.
        limit: weights at learning rate zero, by component.
        lr_start: initial learning rate r(0); the one at the start of training if None.
    """

    _state = ("weights", "rates", "lr_start")

    def __init__(
        self,
        start: Mapping[str, float],
        limit: Mapping[str, float],
        lr_start: float | None = None,
    ):
        super().__init__(start)
        self.limit = _checked("limit", limit)
        if lr_start is not None and not lr_start > 0:
            raise ValueError(f"lr_start must be positive, not {lr_start}")
        self.lr_start = lr_start

    def begin(self, components, lr=None):
        weights = super().begin(components, lr)
        _select("limit", self.limit, list(components))
        if self.lr_start is None:
            self.lr_start = lr
        return weights

    def _next(self, epoch, losses, lr):
        if lr is None or not self.lr_start:
            raise ValueError("linear_ramp follows the learning rate, but the optimizer has none")
        # warm-up starts below r(0) and is no decay; the ratio stays in [0, 1]
        ratio = min(max(lr / self.lr_start, 0.0), 1.0)
        return {k: self.limit[k] * (1 - ratio) + self.initial[k] * ratio for k in losses}


class TwoStage(Rule):
    """One set of weights, then another from epoch `switch` on (stage two of MACE).

    Batatia et al., NeurIPS 2022: forces first, then the weight of the energy is raised.

    Args:
        first: weights of epochs 0 to switch - 1, by component.
        second: weights of all later epochs, by component.
        switch: first epoch of the second stage.
    """

    def __init__(self, first: Mapping[str, float], second: Mapping[str, float], switch: int):
        super().__init__(first)
        self.second = _checked("second", second)
        if int(switch) != switch or switch < 0:
            raise ValueError(f"switch is the number of an epoch, not {switch}")
        self.switch = int(switch)

    def begin(self, components, lr=None):
        super().begin(components, lr)
        self.weights = self._stage(0, list(components))
        return dict(self.weights)

    def _next(self, epoch, losses, lr):
        return self._stage(epoch + 1, list(losses))

    def _stage(self, epoch: int, components: list[str]) -> dict[str, float]:
        first = _select("first", self.initial, components)
        second = _select("second", self.second, components)
        return second if epoch >= self.switch else first


def _checked(what: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as floats; refuses negative, infinite and all-zero ones."""
    out = {str(k): float(v) for k, v in weights.items()}
    for name, value in out.items():
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{what} weight of {name} is {value}; weights are finite and >= 0")
    if not any(out.values()):
        raise ValueError(f"{what} weights are all zero: nothing would be trained")
    return out


def _select(what: str, weights: Mapping[str, float], components: list[str]) -> dict[str, float]:
    """The weights of these components, in their order; others are dropped."""
    missing = [name for name in components if name not in weights]
    if missing:
        raise ValueError(
            f"no {what} weight for the loss component {', '.join(missing)}; the given weights are"
            f" for {', '.join(weights)}"
        )
    chosen = {name: weights[name] for name in components}
    if not any(chosen.values()):
        raise ValueError(
            f"{what} weights of {', '.join(components)} are all zero: nothing would be trained"
        )
    return chosen
