"""Rules that set the weights of the loss components, from floats alone.

A rule is told once per epoch the mean of every unweighted loss component over that epoch, and says
with which weights the next epoch is trained: total = sum_k alpha_k l_k. Rules that balance
components give weights that sum to 1, so that changing the rule does not change the scale of the
gradient. Nothing here knows a tensor; the same floats give the same weights on every machine and
on every rank.
"""

import math
from collections.abc import Container, Mapping, Sequence

__all__ = ["Fixed", "Likelihood", "LinearRamp", "Rule", "SoftAdapt", "TwoStage"]


class Rule:
    """Base class: holds the weights in use and checks what it is told.

    Subclasses override `_next`, which says how the components are balanced; the weights in use are
    that balance times the prior, scaled to the same sum. A rule is made without knowing which
    components a run has; `begin` names them.

    Args:
        initial: weights of the first epoch by component, as they are; the prior if None, and equal
            weights that sum to 1 without one. Entries of components that a run does not have are
            ignored.
        prior: what each component counts beside what the rule makes of its loss, by component;
            "labels": its number of labels per structure (1 for an energy, 3 N for forces, 6 for a
            stress); "loss_weight": the `loss_weight` of the outputs; "auto": those where they
            differ from each other, else the labels where they are known; None: all the same.

    Attributes:
        balance: what the rule gives, by component, before the prior.
        weights: the weights in use, by component.
        rates: for logging, what the rule made of the last change of each loss (0 if nothing).
    """

    def __init__(
        self,
        initial: Mapping[str, float] | None = None,
        prior: Mapping[str, float] | str | None = None,
    ):
        self.initial = None if initial is None else _checked("initial", initial)
        if isinstance(prior, str) and prior not in ("labels", "loss_weight", "auto"):
            raise ValueError(
                f"prior is labels, loss_weight, auto or a number for each component, not {prior!r}"
            )
        self.prior = prior if prior is None or isinstance(prior, str) else _checked("prior", prior)
        self.factors: dict[str, float] = {}
        self.balance: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.rates: dict[str, float] = {}

    def begin(
        self,
        components: Sequence[str],
        lr: float | None = None,
        labels: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Name the components of a run; returns the weights of its first epoch.

        Args:
            components: names in a fixed order.
            lr: learning rate at the start of training.
            labels: labels per structure of each component, mean over the training set.
            loss_weights: `loss_weight` of each component; None if they are all the same.

        Raises:
            ValueError: no component, or one without a weight.
        """
        if not components:
            raise ValueError("a weighting rule needs at least one loss component")
        components = list(components)
        self.factors = self._prior_factors(components, labels, loss_weights)
        self.rates = dict.fromkeys(components, 0.0)
        self.balance = self._first(components)
        given = self.initial is not None
        self.weights = dict(self.balance) if given else self._weigh(self.balance)
        return dict(self.weights)

    def check(self, components: Sequence[str], optional: Container[str] = ()) -> list[str]:
        """Refuse weights that no run with these components could have.

        Args:
            components: names of all that a run may have.
            optional: those of them that it may lack. They need a weight all the same if there are
                weights of names that are no component: one of both is misspelt.

        Returns:
            the names that are no component, whose weights have no effect.
        """
        unknown = []
        for what in self._given:
            weights = getattr(self, what)
            if not isinstance(weights, Mapping):
                continue
            strange = [k for k in weights if k not in components]
            needed = [k for k in components if k in weights or k not in optional or strange]
            if needed:
                _select(what, weights, needed)
            unknown += [k for k in strange if k not in unknown]
        return unknown

    def update(
        self,
        epoch: int,
        losses: Mapping[str, float],
        lr: float | None = None,
        progress: float = 0.0,
    ) -> dict[str, float]:
        """Take the losses of an epoch; returns the weights of the next.

        Args:
            epoch: number of the epoch that has just ended, from 0.
            losses: mean unweighted loss of each component over that epoch.
            lr: learning rate of the next epoch.
            progress: part of the run that is done, of its epochs or of its time, 0 to 1.

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
        balance = self._next(epoch, ordered, lr, progress)
        if balance is not None:
            self.balance, self.weights = balance, self._weigh(balance)
        return dict(self.weights)

    def state_dict(self) -> dict:
        """Everything a resumed run needs, as plain Python values."""
        state = {
            key: value.copy() if isinstance(value, dict | list) else value
            for key, value in vars(self).items()
            if key in self._all_state()
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
        for key in self._all_state():
            value = state[key]
            setattr(self, key, value.copy() if isinstance(value, dict | list) else value)

    #: False: the weights follow from epoch and learning rate alone
    has_memory = True
    #: attributes that are weights by component, if the user gave some
    _given: tuple[str, ...] = ("initial", "prior")
    #: attributes that change during a run, beside those that every rule has
    _state: tuple[str, ...] = ()

    @classmethod
    def _all_state(cls) -> tuple[str, ...]:
        return ("balance", "weights", "rates", *cls._state)

    def _first(self, components: list[str]) -> dict[str, float]:
        """The balance of the first epoch."""
        if self.initial is None:
            return dict.fromkeys(components, 1.0 / len(components))
        return _select("initial", self.initial, components)

    def _next(
        self, epoch: int, losses: dict[str, float], lr: float | None, progress: float
    ) -> dict[str, float] | None:
        """The balance of the next epoch; None to go on with the weights in use."""
        raise NotImplementedError

    def _weigh(self, balance: dict[str, float]) -> dict[str, float]:
        """Balance times prior, scaled to the sum of the balance."""
        if not self.factors:
            return dict(balance)
        value = {k: self.factors[k] * v for k, v in balance.items()}
        total = sum(value.values())
        if not total > 0:
            raise ValueError(
                f"the prior is zero for all components that have a weight ({', '.join(balance)})"
            )
        scale = sum(balance.values()) / total
        return {k: v * scale for k, v in value.items()}

    def _prior_factors(self, components, labels, loss_weights) -> dict[str, float]:
        """The prior of these components with the largest at 1; empty if all count the same."""
        name, given = "prior", self.prior
        if given == "auto":
            given = "labels" if loss_weights is None else "loss_weight"
        if isinstance(given, str):
            if given == "labels" and labels is None and self.prior != "auto":
                raise ValueError("the prior wants the labels of the components; give begin() them")
            name, given = given, {"labels": labels, "loss_weight": loss_weights}[given]
            given = given and _checked(name, given)
        if given is None:
            return {}
        chosen = _select(name, given, components)
        largest = max(chosen.values())
        return {k: v / largest for k, v in chosen.items()}


class Fixed(Rule):
    """Weights that stay as they are.

    Args:
        weights: by component; "labels", "loss_weight" or "auto" for those of the prior (see
            `Rule`); equal weights that sum to 1 if None.
    """

    has_memory = False

    def __init__(self, weights: Mapping[str, float] | str | None = None):
        if isinstance(weights, str):
            super().__init__(prior=weights)
        else:
            super().__init__(weights)

    def _next(self, epoch, losses, lr, progress):
        return None


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

    _state = ("previous", "alphas")

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
        self.log, self.smooth = bool(log), _checked_smooth(smooth)
        self.previous: dict[str, float] = {}
        self.alphas: list[dict[str, float]] = []

    def begin(self, components, lr=None, labels=None, loss_weights=None):
        self.previous, self.alphas = {}, []
        return super().begin(components, lr, labels, loss_weights)

    def _next(self, epoch, losses, lr, progress):
        seen = {k: _log(l) for k, l in losses.items()} if self.log else losses
        if self.previous:
            seen = _smoothed(seen, self.previous, self.smooth)
            self.rates = self._normalised({k: seen[k] - self.previous[k] for k in seen})
            self.alphas.append(self._alpha(losses))
        self.previous = seen
        if len(self.alphas) < self.n:
            return None
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
        if self.loss_weighted:
            weighted = {k: v * losses[k] for k, v in value.items()}
            # all losses zero: nothing to weight by, and weights of zero would end the training
            value = weighted if sum(weighted.values()) > 0 else value
        # eps is relative to the largest, or weights of losses like 1e-8 would not sum to 1
        total = sum(value.values()) + self.eps * max(value.values())
        return {k: v / total for k, v in value.items()}


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

    _state = ("logs", "largest_lr")

    def __init__(
        self,
        end: float = 0.5,
        smooth: float = 0.8,
        ceiling: float = 1.0,
        initial: Mapping[str, float] | None = None,
        prior: Mapping[str, float] | str | None = "auto",
    ):
        super().__init__(initial, prior)
        if not 0 <= end <= 1:
            raise ValueError(f"end lies between 0 and 1, not {end}")
        if not ceiling > 0:
            raise ValueError(f"ceiling must be positive, not {ceiling}")
        self.end, self.smooth, self.ceiling = float(end), _checked_smooth(smooth), float(ceiling)
        self.logs: dict[str, float] = {}
        self.largest_lr = 0.0

    def begin(self, components, lr=None, labels=None, loss_weights=None):
        self.logs, self.largest_lr = {}, 0.0
        return super().begin(components, lr, labels, loss_weights)

    def _next(self, epoch, losses, lr, progress):
        logs = {k: min(_log(l), math.log(self.ceiling)) for k, l in losses.items()}
        self.rates = {k: v - self.logs.get(k, v) for k, v in logs.items()}
        self.logs = _smoothed(logs, self.logs or logs, self.smooth)
        left = 1.0 - min(max(progress, 0.0), 1.0)
        if lr is not None:
            self.largest_lr = max(self.largest_lr, lr)
            left = min(left, lr / self.largest_lr if self.largest_lr > 0 else 1.0)
        # the prior N_k comes on top of the balance: N_k^(r - 1) / l_k here
        power = (self.end - 1.0) * (1.0 - left)
        count = {k: self.factors.get(k, 1.0) for k in losses}
        value = {k: power * _log(count[k]) - self.logs[k] for k in losses}
        largest = max(value.values())
        value = {k: math.exp(v - largest) for k, v in value.items()}
        total = sum(value.values())
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
        prior: see `Rule`.
    """

    has_memory = False

    _state = ("lr_start",)
    _given = ("prior", "start", "limit")

    def __init__(
        self,
        start: Mapping[str, float],
        limit: Mapping[str, float],
        lr_start: float | None = None,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(prior=prior)
        self.start, self.limit = _checked("start", start), _checked("limit", limit)
        if lr_start is not None and not lr_start > 0:
            raise ValueError(f"lr_start must be positive, not {lr_start}")
        self.lr_start = lr_start

    def begin(self, components, lr=None, labels=None, loss_weights=None):
        _select("limit", self.limit, list(components))
        if self.lr_start is None:
            self.lr_start = lr
        return super().begin(components, lr, labels, loss_weights)

    def _first(self, components):
        return _select("start", self.start, components)

    def _next(self, epoch, losses, lr, progress):
        if lr is None or not self.lr_start:
            raise ValueError("linear_ramp follows the learning rate, but the optimizer has none")
        # warm-up starts below r(0) and is no decay; the ratio stays in [0, 1]
        ratio = min(max(lr / self.lr_start, 0.0), 1.0)
        return {k: self.limit[k] * (1 - ratio) + self.start[k] * ratio for k in losses}


class TwoStage(Rule):
    """One set of weights, then another from epoch `switch` on (stage two of MACE).

    Batatia et al., NeurIPS 2022: forces first, then the weight of the energy is raised.

    Args:
        first: weights of epochs 0 to switch - 1, by component.
        second: weights of all later epochs, by component.
        switch: first epoch of the second stage.
        prior: see `Rule`.
    """

    has_memory = False

    _given = ("prior", "first", "second")

    def __init__(
        self,
        first: Mapping[str, float],
        second: Mapping[str, float],
        switch: int,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(prior=prior)
        self.first, self.second = _checked("first", first), _checked("second", second)
        if int(switch) != switch or switch < 0:
            raise ValueError(f"switch is the number of an epoch, not {switch}")
        self.switch = int(switch)

    def _first(self, components):
        return self._stage(0, components)

    def _next(self, epoch, losses, lr, progress):
        return self._stage(epoch + 1, list(losses))

    def _stage(self, epoch: int, components: list[str]) -> dict[str, float]:
        first = _select("first", self.first, components)
        second = _select("second", self.second, components)
        return second if epoch >= self.switch else first


def _log(value: float) -> float:
    """Logarithm of a loss; one of exactly zero counts as 1e-12."""
    return math.log(max(value, 1e-12))


def _smoothed(new: dict[str, float], old: dict[str, float], keep: float) -> dict[str, float]:
    """Exponential average, `keep` of it the old one."""
    return {k: keep * old[k] + (1.0 - keep) * v for k, v in new.items()}


def _checked_smooth(smooth: float) -> float:
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth lies between 0 and 1, 1 excluded, not {smooth}")
    return float(smooth)


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
