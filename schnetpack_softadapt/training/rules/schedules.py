"""Weights that follow from the epoch and the learning rate alone."""

from collections.abc import Mapping

from schnetpack_softadapt.training.rules.rule import Rule, named_weights, require

__all__ = ["Fixed", "LinearRamp", "TwoStage"]


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
    _given = ("prior", "start", "limit")
    _memory = ("lr_begin",)

    def __init__(
        self,
        start: Mapping[str, float],
        limit: Mapping[str, float],
        lr_start: float | None = None,
        prior: Mapping[str, float] | str | None = None,
    ):
        super().__init__(prior=prior)
        require(lr_start is None or lr_start > 0, f"lr_start must be positive, not {lr_start}")
        self.start = named_weights("start", start)
        self.limit = named_weights("limit", limit)
        self.lr_start = lr_start

    def _first(self, components, lr):
        self.lr_begin = lr if self.lr_start is None else self.lr_start
        named_weights("limit", self.limit, components)
        return named_weights("start", self.start, components)

    def _next(self, epoch, losses, lr, progress):
        known = lr is not None and self.lr_begin
        require(known, "linear_ramp follows the learning rate, but the optimizer has none")
        # warm-up starts below r(0) and is no decay; the ratio stays in [0, 1]
        ratio = min(max(lr / self.lr_begin, 0.0), 1.0)
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
        whole = int(switch) == switch and switch >= 0
        require(whole, f"switch is the number of an epoch, not {switch}")
        self.first = named_weights("first", first)
        self.second = named_weights("second", second)
        self.switch = int(switch)

    def _first(self, components, lr):
        first = named_weights("first", self.first, components)
        second = named_weights("second", self.second, components)
        return first if self.switch > 0 else second

    def _next(self, epoch, losses, lr, progress):
        stage = self.first if epoch + 1 < self.switch else self.second
        return {name: stage[name] for name in losses}
