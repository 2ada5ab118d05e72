"""Rules against sequences computed by hand."""

import json
import math
import subprocess
import sys

import pytest

from schnetpack_softadapt.training.rules import (
    Fixed,
    Likelihood,
    LinearRamp,
    ReLoBRaLo,
    SoftAdapt,
    TwoStage,
    Uncertainty,
)

NAMES = ["energy", "forces", "stress"]


def feed(rule, sequence, lr=None):
    """Weights used in each epoch and after the last, for losses given as tuples."""
    names = NAMES[: len(sequence[0])]
    used = [rule.begin(names, lr=lr[0] if lr else None)]
    for epoch, losses in enumerate(sequence):
        rate = lr[epoch + 1] if lr else None
        used.append(rule.update(epoch, dict(zip(names, losses, strict=True)), rate))
    return [tuple(w.values()) for w in used]


# --- SoftAdapt


def test_softadapt_by_hand():
    # s = (-1, -3), l1 norm 4: rates (-1/4, -3/4); alpha ~ exp(-1/4), exp(-3/4)
    weights = feed(SoftAdapt(beta=1.0), [(4.0, 5.0), (3.0, 2.0)])
    first = 1.0 / (1.0 + math.exp(-0.5))
    assert weights[0] == weights[1] == (0.5, 0.5)
    # 1e-8 is eps beside a denominator of order 1
    assert weights[2] == pytest.approx((first, 1.0 - first), abs=2e-8)


def test_softadapt_eps_stands_where_the_formula_has_it():
    rule = SoftAdapt(beta=1.0, eps=0.5)
    weights = feed(rule, [(4.0, 5.0), (3.0, 2.0)])
    s = (-1.0 / 4.5, -3.0 / 4.5)
    # the largest exponent is subtracted, so exponentials are 1 and exp(s1 - s0)
    total = 1.0 + math.exp(s[1] - s[0]) + 0.5
    assert tuple(rule.rates.values()) == pytest.approx(s, rel=1e-14)
    assert weights[2] == pytest.approx((1.0 / total, math.exp(s[1] - s[0]) / total), rel=1e-14)


@pytest.mark.parametrize(("normalization", "norm"), [("l1", 7.0), ("l2", 5.0), ("none", 1.0)])
def test_softadapt_normalizations(normalization, norm):
    rule = SoftAdapt(beta=2.0, normalization=normalization)
    weights = feed(rule, [(1.0, 9.0), (4.0, 5.0)])  # s = (3, -4)
    s = (3.0 / norm, -4.0 / norm)
    assert tuple(rule.rates.values()) == pytest.approx(s, rel=1e-8)
    ratio = math.exp(2.0 * (s[1] - s[0]))
    assert weights[2] == pytest.approx((1 / (1 + ratio), ratio / (1 + ratio)), abs=2e-8)


def test_softadapt_loss_weighted():
    # s = (0, 0): alpha in proportion to the losses themselves
    weights = feed(SoftAdapt(loss_weighted=True), [(3.0, 1.0), (3.0, 1.0)])
    assert weights[2] == pytest.approx((0.75, 0.25), abs=1e-8)


@pytest.mark.parametrize("scale", [1e-8, 1e-100])
def test_weights_of_small_losses_and_priors_sum_to_one(scale):
    prior = {"energy": 3 * scale, "forces": scale}
    for rule in (
        SoftAdapt(loss_weighted=True),
        SoftAdapt(prior=prior, initial=dict.fromkeys(NAMES, 1)),
    ):
        weights = feed(rule, [(3 * scale, scale), (3 * scale, scale)])
        assert weights[2] == pytest.approx((0.75, 0.25), abs=1e-8)


def test_weights_sum_to_one_where_a_resumed_run_averages_over_fewer_epochs():
    rule = SoftAdapt(n=5)
    feed(rule, [(4.0, 5.0), (3.0, 2.0), (2.0, 1.0), (1.0, 0.5)])
    resumed = SoftAdapt(n=2)
    resumed.begin(NAMES[:2])
    resumed.load_state_dict(rule.state_dict())  # three alphas, one more than n
    weights = resumed.update(4, {"energy": 0.9, "forces": 0.4})
    assert sum(weights.values()) == pytest.approx(1.0, abs=2e-8)


def test_softadapt_prior_by_hand():
    # rates (-1/4, -3/4) as above; factors 3 and 1
    prior = {"energy": 3.0, "forces": 1.0, "stress": 5.0}  # there is no stress
    weights = feed(SoftAdapt(beta=1.0, prior=prior), [(4.0, 5.0), (3.0, 2.0)])
    assert weights[0] == weights[1] == (0.75, 0.25)
    first = 3.0 / (3.0 + math.exp(-0.5))
    assert weights[2] == pytest.approx((first, 1.0 - first), abs=2e-8)
    equal = {"energy": 0.5, "forces": 0.5}
    weights = feed(SoftAdapt(prior=prior, initial=equal), [(4.0, 5.0), (3.0, 2.0)])
    assert weights[0] == (0.5, 0.5)
    assert weights[2] == pytest.approx((first, 1.0 - first), abs=2e-8)
    with pytest.raises(ValueError, match="no prior weight for the loss component stress"):
        SoftAdapt(prior=equal).begin(NAMES)
    with pytest.raises(ValueError, match="finite"):
        SoftAdapt(prior={"energy": -1.0})


def test_softadapt_averages_over_n_epochs():
    rule, single = SoftAdapt(n=2), SoftAdapt(n=1)
    losses = [(4.0, 5.0), (3.0, 2.0), (3.5, 1.0), (1.0, 1.0), (0.9, 0.5)]
    weights, alphas = feed(rule, losses), feed(single, losses)
    # alpha exists from the second epoch on; the mean of two of them is used from the fourth
    assert weights[:3] == [(0.5, 0.5)] * 3
    mean = tuple((a + b) / 2 for a, b in zip(alphas[2], alphas[3], strict=True))
    assert weights[3] == weights[4] == pytest.approx(mean, rel=1e-14)
    mean = tuple((a + b) / 2 for a, b in zip(alphas[4], alphas[5], strict=True))
    assert weights[5] == pytest.approx(mean, rel=1e-14)


@pytest.mark.parametrize("normalization", ["l1", "l2", "none"])
@pytest.mark.parametrize("loss_weighted", [False, True])
def test_softadapt_edge_cases(normalization, loss_weighted):
    def last(*sequence, beta=1.0):
        rule = SoftAdapt(beta, normalization=normalization, loss_weighted=loss_weighted)
        weights = feed(rule, list(sequence))[-1]
        assert all(math.isfinite(w) and w >= 0 for w in weights)
        assert sum(weights) == pytest.approx(1.0, abs=1e-7)
        return weights

    third = pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=1e-8)
    assert last((2.0, 2.0, 2.0), (1.0, 1.0, 1.0)) == third  # equal losses
    assert last((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) == third  # constant
    assert last((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == third  # exactly zero
    growing = last((1.0, 1.0, 1.0), (2.0, 1.0, 0.5))
    assert growing[0] > growing[1] > growing[2]  # what grows gets the most
    assert last((1.0, 1.0, 1.0), (2.0, 1.0, 0.5), beta=1e6)[0] == pytest.approx(1.0, abs=1e-7)
    assert last((1.0, 1.0, 1.0), (2.0, 1.0, 0.5), beta=-1e6)[2] == pytest.approx(1.0, abs=1e-7)
    one_zero = last((1.0, 0.0, 1.0), (0.5, 0.0, 0.5))
    assert one_zero[1] == 0.0 if loss_weighted else one_zero[1] > one_zero[0]
    if normalization != "none":
        assert math.isclose(sum(last((1e200, 1.0, 0.0), (1e-200, 1e200, 1e199))), 1, abs_tol=1e-7)


def test_beta_zero_is_equal_weights():
    assert feed(SoftAdapt(0.0), [(9.0, 1.0), (1.0, 5.0)])[-1] == pytest.approx((0.5, 0.5), abs=1e-8)


# --- fixed, ramps, stages


def test_fixed_stays():
    assert feed(Fixed({"forces": 0.9, "energy": 0.1}), [(1.0, 2.0)] * 3) == [(0.1, 0.9)] * 4
    assert feed(Fixed(), [(1.0, 2.0, 3.0)])[-1] == (1 / 3, 1 / 3, 1 / 3)


def test_linear_ramp_by_hand():
    rule = LinearRamp(start={"energy": 0.0, "forces": 10.0}, limit={"energy": 1.0, "forces": 2.0})
    weights = feed(rule, [(1.0, 1.0)] * 3, lr=[0.4, 0.4, 0.1, 0.0])
    assert weights == [(0.0, 10.0), (0.0, 10.0), (0.75, 4.0), (1.0, 2.0)]
    with pytest.raises(ValueError, match="learning rate"):
        feed(rule, [(1.0, 1.0)])


def test_two_stage_by_hand():
    first, second = {"energy": 0.1, "forces": 0.9}, {"energy": 0.8, "forces": 0.2}
    weights = feed(TwoStage(first, second, switch=2), [(1.0, 1.0)] * 3)
    assert weights == [(0.1, 0.9), (0.1, 0.9), (0.8, 0.2), (0.8, 0.2)]
    assert feed(TwoStage(first, second, switch=0), [(1.0, 1.0)])[0] == (0.8, 0.2)


# --- ReLoBRaLo and uncertainty


def softmax(*x):
    e = [math.exp(v) for v in x]
    return [v / sum(e) for v in e]


def test_relobralo_by_hand():
    losses = [(4.0, 2.0), (2.0, 2.0), (1.0, 3.0)]
    weights = feed(ReLoBRaLo(temperature=0.5, decay=0.9, rho=1.0), losses)
    assert weights[0] == weights[1] == (0.5, 0.5)
    recent = softmax(0.5 / 0.5, 1.0 / 0.5)
    second = [0.9 * 0.5 + 0.1 * r for r in recent]
    assert weights[2] == pytest.approx(second, rel=1e-14)
    recent = softmax(0.5 / 0.5, 1.5 / 0.5)
    third = [0.9 * w + 0.1 * r for w, r in zip(second, recent, strict=True)]
    assert weights[3] == pytest.approx(third, rel=1e-14)
    # rho = 0 always looks back to the first epoch
    weights = feed(ReLoBRaLo(temperature=0.5, decay=0.9, rho=0.0), losses)
    first = softmax(0.25 / 0.5, 1.5 / 0.5)
    expected = [0.9 * f + 0.1 * r for f, r in zip(first, recent, strict=True)]
    assert weights[3] == pytest.approx(expected, rel=1e-14)


def test_relobralo_draws_depend_on_epoch_only():
    losses = [(4.0, 2.0), (2.0, 2.0), (1.0, 3.0), (0.5, 3.0)]
    assert feed(ReLoBRaLo(rho=0.5, seed=3), losses) == feed(ReLoBRaLo(rho=0.5, seed=3), losses)


def test_uncertainty_by_hand():
    # v <- l + (v - l) exp(-rate / 2) from v = 1
    rate = 2.0 * math.log(2.0)  # halves the distance
    weights = feed(Uncertainty(rate, normalize=False), [(0.0, 3.0), (0.0, 3.0)])
    assert weights[0] == (0.5, 0.5)
    assert weights[1] == pytest.approx((0.5 / 0.5, 0.5 / 2.0), rel=1e-14)
    assert weights[2] == pytest.approx((0.5 / 0.25, 0.5 / 2.5), rel=1e-14)


def test_uncertainty_is_the_limit_of_gradient_descent():
    # Kendall's objective (l exp(-s) + s) / 2, by many small steps in s, for one epoch
    loss, rate, s, n = 3.0, 0.7, 0.0, 20000
    for _ in range(n):
        s -= rate / n * 0.5 * (1.0 - loss * math.exp(-s))
    rule = Uncertainty(rate, normalize=False)
    rule.begin(["energy"])
    weight = rule.update(0, {"energy": loss})["energy"]
    assert weight == pytest.approx(0.5 * math.exp(-s), rel=1e-4)  # first order in 1/n


RULES = [
    SoftAdapt(n=2),
    Fixed(),
    LinearRamp({"energy": 0.1, "forces": 1.0}, {"energy": 1.0, "forces": 1.0}),
    TwoStage({"energy": 0.1, "forces": 1.0}, {"energy": 1.0, "forces": 1.0}, 2),
    ReLoBRaLo(rho=0.5),
    Uncertainty(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("losses", ["equal", "zero", "constant", "growing"])
def test_all_rules_survive_odd_losses(rule, losses):
    sequence = {
        "equal": [(1.0 / k, 1.0 / k) for k in range(1, 9)],
        "zero": [(0.0, 1.0)] * 8,
        "constant": [(2.0, 0.1)] * 8,
        "growing": [(10.0**k, 1.0) for k in range(0, 160, 20)],
    }[losses]
    for weights in feed(rule, sequence, lr=[0.1 / (k + 1) for k in range(9)]):
        assert all(math.isfinite(w) and w >= 0 for w in weights)
        assert sum(weights) > 0


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_state_goes_through_a_file_to_the_bit(rule, stop):
    sequence = [(4.0, 5.0), (3.0, 2.0), (3.5, 1.0), (1.0, 1.3), (0.7, 0.3), (0.2, 0.1)]
    lr = [0.1 * 0.7**k for k in range(7)]
    whole = feed(rule, sequence, lr)

    def update(epochs):
        for epoch in epochs:
            losses = dict(zip(NAMES, sequence[epoch], strict=False))
            rule.update(epoch, losses, lr[epoch + 1])

    rule.begin(NAMES[:2], lr[0])
    update(range(stop))
    state = json.loads(json.dumps(rule.state_dict()))
    rule.begin(NAMES[:2], lr[stop])  # a new process
    rule.load_state_dict(state)
    update(range(stop, 6))
    assert tuple(rule.weights.values()) == whole[-1]  # equal, not approximately


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_non_finite_losses_name_component_and_epoch(loss):
    rule = SoftAdapt()
    rule.begin(NAMES)
    with pytest.raises(ValueError, match=r"forces loss of epoch 7"):
        rule.update(7, {"energy": 1.0, "forces": loss, "stress": 1.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftAdapt(normalization="max"), "normalization"),
        (lambda: SoftAdapt(n=0), "at least 1"),
        (lambda: SoftAdapt(beta=math.inf), "beta"),
        (lambda: Fixed({"energy": -1.0}), "energy"),
        (lambda: Fixed({"energy": 0.0}), "are zero"),
        (lambda: Fixed({"energy": 1.0}).begin(["energy", "forces"]), "forces"),
        (lambda: Fixed({"energy": 1.0, "stress": 0.0}).begin(["stress"]), "are zero"),
        (lambda: ReLoBRaLo(temperature=0.0), "temperature"),
        (lambda: Uncertainty(rate=-1.0), "rate"),
        (lambda: Fixed().begin([]), "component"),
        (lambda: Fixed().update(0, {"energy": 1.0}), "begin"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_absent_components_are_dropped():
    rule = Fixed({"energy": 0.9, "forces": 0.05, "stress": 0.05})
    assert rule.begin(["energy", "forces"]) == {"energy": 0.9, "forces": 0.05}


def test_rules_need_no_framework():
    code = (
        "import sys, schnetpack_softadapt.training.rules; "
        "print([m for m in ('torch', 'schnetpack', 'pytorch_lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- priors, for every rule

LABELS = {"energy": 1.0, "forces": 27.0, "stress": 6.0}
RULES = {
    "fixed": lambda **kwargs: Fixed("labels") if kwargs else Fixed(),
    "softadapt": SoftAdapt,
    "likelihood": lambda **kwargs: Likelihood(**(kwargs or {"prior": None})),
    "linear_ramp": lambda **kwargs: LinearRamp(
        {"energy": 0.1, "forces": 1.0, "stress": 0.1}, dict.fromkeys(NAMES, 1.0), 1.0, **kwargs
    ),
    "two_stage": lambda **kwargs: TwoStage(
        {"energy": 0.1, "forces": 0.8, "stress": 0.1}, dict.fromkeys(NAMES, 1.0), 1, **kwargs
    ),
    "relobralo": ReLoBRaLo,
    "uncertainty": Uncertainty,
}


@pytest.mark.parametrize("name", RULES)
def test_a_prior_multiplies_the_weights_and_leaves_their_sum(name):
    plain, weighted = RULES[name](), RULES[name](prior="labels")
    plain.begin(NAMES, lr=1.0, labels=LABELS)
    weighted.begin(NAMES, lr=1.0, labels=LABELS)
    losses = [(1.0, 0.8, 0.9), (0.5, 0.3, 0.8), (0.2, 0.3, 0.6)]
    for epoch, values in enumerate([None, *losses]):
        if values is not None:
            told = dict(zip(NAMES, values, strict=True))
            for rule in (plain, weighted):
                rule.update(epoch - 1, told, lr=1.0, progress=0.0)
        a, b = plain.weights, weighted.weights
        assert sum(b.values()) == pytest.approx(sum(a.values()), rel=1e-12)
        for k in ("forces", "stress"):
            assert b[k] / b["energy"] == pytest.approx(LABELS[k] * a[k] / a["energy"], rel=1e-12)


def test_which_prior():
    weights = {"energy": 0.01, "forces": 0.99, "stress": 0.5}
    kinds = {"labels": LABELS, "loss_weight": weights, "auto": weights}
    for prior, expected in kinds.items():
        used = SoftAdapt(prior=prior).begin(NAMES, labels=LABELS, loss_weights=weights)
        assert used == pytest.approx({k: v / sum(expected.values()) for k, v in expected.items()})
    # weights that are all the same say nothing, and the task gives none
    assert Fixed("auto").begin(NAMES, labels=LABELS)["forces"] == 27 / 34
    assert Fixed("auto").begin(NAMES) == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    with pytest.raises(ValueError, match="wants the labels"):
        SoftAdapt(prior="labels").begin(NAMES)
    with pytest.raises(ValueError, match="label"):
        SoftAdapt(prior="label")


# --- likelihood


def test_likelihood_by_hand():
    rule = Likelihood(end=0.5, smooth=0.75)
    weights = rule.begin(NAMES, lr=2.0, labels=LABELS)
    assert weights == pytest.approx({k: v / 34 for k, v in LABELS.items()}, rel=1e-14)
    # at the full rate N_k / l_k; a loss above 1 counts as 1
    used = rule.update(0, {"energy": 50.0, "forces": 0.5, "stress": 0.25}, lr=2.0)
    expected = {"energy": 1.0, "forces": 54.0, "stress": 24.0}
    assert used == pytest.approx({k: v / 79 for k, v in expected.items()}, rel=1e-12)
    # at half the rate N_k^0.75; the logarithm of the loss averaged, 3/4 of it the old one
    used = rule.update(1, {"energy": 0.1, "forces": 0.1, "stress": 0.1}, lr=1.0)
    loss = {"energy": 1.0**0.75 * 0.1**0.25, "forces": 0.5**0.75 * 0.1**0.25,
            "stress": 0.25**0.75 * 0.1**0.25}  # fmt: skip
    expected = {k: LABELS[k] ** 0.75 / loss[k] for k in NAMES}
    total = sum(expected.values())
    assert used == pytest.approx({k: v / total for k, v in expected.items()}, rel=1e-12)


def exponent(rule):
    """Power of the number of labels in the weights of losses that are all the same."""
    weights = rule.weights
    return math.log(weights["forces"] / weights["energy"]) / math.log(27.0)


def anneal(steps, **kwargs):
    """Exponents after epochs given as (learning rate, progress)."""
    rule = Likelihood(**kwargs)
    rule.begin(NAMES, lr=1.0, labels=LABELS)
    out = []
    for epoch, (lr, progress) in enumerate(steps):
        rule.update(epoch, dict.fromkeys(NAMES, 0.1), lr, progress)
        out.append(exponent(rule))
    return out


def test_the_counts_follow_the_learning_rate_or_the_epochs():
    # a schedule to zero; a warm-up is no decay; a plateau scheduler in a run without an end
    assert anneal([(1.0, 0.1), (0.5, 0.2), (0.0, 0.3)]) == pytest.approx([0.95, 0.75, 0.5])
    assert anneal([(0.1, 0.0), (1.0, 0.0), (0.4, 0.0)]) == pytest.approx([1.0, 1.0, 0.7])
    assert anneal([(1.0, 1e-5), (0.5, 2e-5)]) == pytest.approx([1.0, 0.75], abs=1e-5)
    # a constant rate: the epochs; no rate at all
    assert anneal([(1.0, 0.5), (1.0, 1.0)]) == pytest.approx([0.75, 0.5])
    assert anneal([(None, 0.5), (None, 1.0)], end=0.0) == pytest.approx([0.5, 0.0])
    assert anneal([(0.0, 1.0)], end=1.0) == pytest.approx([1.0])


def test_likelihood_does_not_depend_on_units_below_its_ceiling():
    a, b = Likelihood(ceiling=1e9), Likelihood(ceiling=1e9)
    for rule in (a, b):
        rule.begin(NAMES, lr=1.0, labels=LABELS)
    losses = {"energy": 3.0, "forces": 0.4, "stress": 7.0}
    a.update(0, losses, lr=1.0)
    b.update(0, {k: 1e6 * v for k, v in losses.items()}, lr=1.0)
    assert a.weights == pytest.approx(b.weights, rel=1e-12)


def test_likelihood_of_a_loss_of_zero_is_finite():
    rule = Likelihood(smooth=0.0)
    rule.begin(NAMES, lr=1.0, labels=LABELS)
    weights = rule.update(0, {"energy": 0.0, "forces": 0.5, "stress": 0.5}, lr=1.0)
    assert weights["energy"] == pytest.approx(1.0, abs=1e-9)
    assert all(w > 0 for w in weights.values())


# --- options of SoftAdapt beside the paper's


def test_softadapt_rates_of_logarithms_know_no_size():
    losses = [(4.0, 5e-4), (2.0, 4e-4)]
    rule = SoftAdapt(log=True, normalization="none")
    feed(rule, losses)
    assert tuple(rule.rates.values()) == pytest.approx((math.log(0.5), math.log(0.8)), rel=1e-12)
    rates = rule.rates
    feed(rule, [(4e6, 5e-4), (2e6, 4e-4)])
    assert rule.rates == pytest.approx(rates, rel=1e-12)


def test_softadapt_smooths_over_epochs():
    rule = SoftAdapt(smooth=0.5, normalization="none")
    feed(rule, [(4.0, 1.0), (2.0, 1.0), (2.0, 3.0)])
    # averages 4, 3, 2.5 and 1, 1, 2
    assert tuple(rule.rates.values()) == pytest.approx((-0.5, 1.0), rel=1e-12)
    with pytest.raises(ValueError, match="smooth"):
        SoftAdapt(smooth=1.0)
