"""What all rules share: components, priors, checks, state of a run."""

import copy
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

__all__ = ["Rule", "log_loss", "named_weights", "require", "smoothed", "softmax"]


class Rule:
    """Base class: holds the weights in use and checks what it is told.

    Subclasses override `_next`, which says how the components are balanced; the weights in use are
    that balance times the prior, scaled to the same sum. Balances sum to 1 where a rule makes them
    itself, so that changing the rule does not change the scale of the gradient. A rule is made
    without knowing which components a run has; `begin` names them.

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

    #: False: the weights follow from epoch and learning rate alone
    has_memory = True
    #: attributes that are weights by component, if the user gave some
    _given: tuple[str, ...] = ("initial", "prior")
    #: further attributes that change during a run, None at its start
    _memory: tuple[str, ...] = ()

    def __init__(
        self,
        initial: Mapping[str, float] | None = None,
        prior: Mapping[str, float] | str | None = None,
    ):
        if isinstance(prior, str):
            require(
                prior in ("labels", "loss_weight", "auto"),
                f"prior is labels, loss_weight, auto or a number for each component, not {prior!r}",
            )
        elif prior is not None:
            prior = named_weights("prior", prior)
        self.initial = None if initial is None else named_weights("initial", initial)
        self.prior = prior
        self.factors: dict[str, float] = {}
        self._forget([])

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
        components = list(components)
        require(components, "a weighting rule needs at least one loss component")
        self.factors = self._prior_factors(components, labels, loss_weights)
        self._forget(components)
        self.balance = self._first(components, lr)
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
        unknown = {}
        for what in self._given:
            weights = getattr(self, what)
            if not isinstance(weights, Mapping):
                continue
            strange = [k for k in weights if k not in components]
            needed = [k for k in components if k in weights or k not in optional or strange]
            if needed:
                named_weights(what, weights, needed)
            unknown |= dict.fromkeys(strange)
        return list(unknown)

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
        require(self.weights, "call begin() with the names of the components before update()")
        require(
            set(losses) == set(self.weights),
            f"losses of {sorted(losses)}, but weights of {sorted(self.weights)}",
        )
        for name, loss in losses.items():
            require(
                math.isfinite(loss),
                f"the {name} loss of epoch {epoch} is {loss}: lower the learning rate, clip"
                " gradients, or look for broken structures in the data",
            )
        ordered = {name: float(losses[name]) for name in self.weights}
        balance = self._next(epoch, ordered, lr, progress)
        if balance is not None:
            self.balance, self.weights = balance, self._weigh(balance)
        return dict(self.weights)

    def state_dict(self) -> dict:
        """Everything a resumed run needs, as plain Python values."""
        state = {name: getattr(self, name) for name in self._names()}
        return {"rule": type(self).__name__, **copy.deepcopy(state)}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of another rule or of other components.
        """
        rule, weights = state.get("rule"), state.get("weights", {})
        require(rule == type(self).__name__, f"the saved weights are of rule {rule}")
        require(
            not self.weights or set(weights) == set(self.weights),
            f"the saved weights are of {sorted(weights)}, this run has {sorted(self.weights)}",
        )
        vars(self).update(copy.deepcopy({name: state[name] for name in self._names()}))

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return ("balance", "weights", "rates", *cls._memory)

    def _forget(self, components: list[str]) -> None:
        self.balance: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.rates: dict[str, float] = dict.fromkeys(components, 0.0)
        vars(self).update(dict.fromkeys(self._memory))

    def _first(self, components: list[str], lr: float | None) -> dict[str, float]:
        """The balance of the first epoch."""
        if self.initial is None:
            return dict.fromkeys(components, 1.0 / len(components))
        return named_weights("initial", self.initial, components)

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
        require(
            total > 0,
            f"the prior is zero for all components that have a weight ({', '.join(balance)})",
        )
        scale = sum(balance.values()) / total
        return {k: v * scale for k, v in value.items()}

    def _prior_factors(self, components, labels, loss_weights) -> dict[str, float]:
        """The prior of these components with the largest at 1; empty if all count the same."""
        name, given = "prior", self.prior
        if isinstance(given, str):
            require(
                given != "labels" or labels is not None,
                "the prior wants the labels of the components; give begin() them",
            )
            name = given if given != "auto" else "labels" if loss_weights is None else "loss_weight"
            given = labels if name == "labels" else loss_weights
        if given is None:
            return {}
        chosen = named_weights(name, given, components)
        largest = max(chosen.values())
        return {k: v / largest for k, v in chosen.items()}


def require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def named_weights(
    what: str, weights: Mapping[str, float], components: list[str] | None = None
) -> dict[str, float]:
    """Weights as floats; with names of components, those of them, in their order.

    Raises:
        ValueError: one is missing, negative or not finite, or all are zero.
    """
    names = list(weights) if components is None else components
    missing = ", ".join(name for name in names if name not in weights)
    require(
        not missing,
        f"no {what} weight for the loss component {missing}; the given weights are for"
        f" {', '.join(weights)}",
    )
    chosen = {str(name): float(weights[name]) for name in names}
    for name, value in chosen.items():
        finite = math.isfinite(value) and value >= 0
        require(finite, f"{what} weight of {name} is {value}; weights are finite and >= 0")
    names = ", ".join(chosen)
    require(any(chosen.values()), f"all {what} weights of {names} are zero: nothing to train")
    return chosen


def softmax(powers: Mapping[str, float], eps: float = 0.0) -> dict[str, float]:
    """exp(p_k) / (sum_m exp(p_m) + eps), with eps relative to the largest exponential."""
    largest = max(powers.values())  # subtracted, so that no exponential overflows
    value = {k: math.exp(p - largest) for k, p in powers.items()}
    total = sum(value.values()) + eps
    return {k: v / total for k, v in value.items()}


def log_loss(value: float) -> float:
    """Logarithm of a loss; one of exactly zero counts as 1e-12."""
    return math.log(max(value, 1e-12))


def smoothed(new: dict[str, float], old: dict[str, float] | None, keep: float) -> dict[str, float]:
    """Exponential average, `keep` of it the old one; the new values if there are no old ones."""
    return {k: keep * old[k] + (1.0 - keep) * v for k, v in new.items()} if old else new
