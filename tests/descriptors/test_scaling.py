import copy

import numpy as np
import pytest
import torch
from n2p2_reference import NAMES, load

from schnetpack_softadapt.descriptors.scaling import SCALING_MODES, Scaling

H, O = 1, 8


@pytest.fixture
def training():
    """Descriptors (N, 3) and numbers (N,) of H (three descriptors) and O (two)."""
    rng = np.random.default_rng(0)
    numbers = rng.choice([H, O], size=50)
    g = rng.normal(2.0, [0.5, 3.0, 1e-3], size=(50, 3))
    g[numbers == O, 2] = 0.0
    return g, numbers


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_another_code(name):
    potential = load(name)
    mode = "scale_center" if "center_symmetry_functions" in potential.settings else "scale"
    layout = potential.layout
    scaling = Scaling(layout.n_functions, mode)
    statistics = np.zeros((4, len(layout.elements), layout.n_columns))
    for row, z in enumerate(layout.elements):
        statistics[:, row, : layout.n_functions[z]] = potential.scaling[z].T
    scaling.set_statistics(*statistics)
    g = torch.tensor(potential.padded("G_unscaled.txt"))
    scaled = scaling(g, torch.tensor(potential.numbers)).numpy()
    # G - mean cancels two or three digits of values that are good to 1e-16
    np.testing.assert_allclose(scaled, potential.padded("G_scaled.txt"), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("mode", SCALING_MODES)
def test_modes(training, mode, limits):
    g, numbers = training
    scaling = Scaling({O: 2, H: 3}, mode, limits)
    scaling.fit([(g, numbers)])
    assert scaling.is_fitted
    assert scaling.elements == (H, O)
    a, b = limits
    scaled = scaling(torch.tensor(g), torch.tensor(numbers)).numpy()
    for z, n in ((H, 3), (O, 2)):
        raw = g[numbers == z, :n]
        low, high, mean = raw.min(0), raw.max(0), raw.mean(0)
        expected = {
            "none": raw,
            "center": raw - mean,
            "scale": a + (b - a) * (raw - low) / (high - low),
            "scale_center": a + (b - a) * (raw - mean) / (high - low),
            "sigma": a + (b - a) * (raw - mean) / raw.std(0, ddof=1),
            "spread": (b - a) * raw / raw.std(0, ddof=1),
        }[mode]
        # values up to 1e3 times the spread of the third column, whose differences cancel
        np.testing.assert_allclose(scaled[numbers == z, :n], expected, rtol=1e-10, atol=1e-11)
        assert np.all(scaled[numbers == z, n:] == 0)


def test_does_nothing_before_it_is_fitted(training):
    g, numbers = (torch.tensor(x) for x in training)
    scaling = Scaling({H: 3, O: 2})
    assert not scaling.is_fitted
    assert torch.equal(scaling(g, numbers), g)


def test_batches_give_the_statistics_of_the_whole(training):
    g, numbers = training
    g = 1e3 * g + 1e7  # a large mean, where the sum of squares would lose most digits
    whole, parts = Scaling({H: 3, O: 2}, "center"), Scaling({H: 3, O: 2}, "center")
    whole.fit([(g, numbers)])
    parts.fit(
        (torch.tensor(g[s : s + 7]), torch.tensor(numbers[s : s + 7])) for s in range(0, 50, 7)
    )
    for name, buffer in whole.named_buffers(recurse=False):
        torch.testing.assert_close(getattr(parts, name), buffer, rtol=1e-9, atol=0)
    np.testing.assert_allclose(whole.sigma[0], g[numbers == H].std(0, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 2.0, 1e-30])
@pytest.mark.parametrize("mode", SCALING_MODES)
def test_constant_descriptors_are_switched_off(training, mode, value):
    g, numbers = training
    h = numbers == H
    g[h, 1] = np.float32(value) * (1 + 1e-7 * (np.arange(h.sum()) % 2))  # float32 rounding
    scaling = Scaling({H: 3, O: 2}, mode)
    if mode in ("none", "center"):
        scaling.fit([(g, numbers)])
        assert torch.all(scaling.factor[:, 1] == 1)
    else:
        with pytest.warns(UserWarning, match=r"descriptors \[1\] of H"):
            scaling.fit([(g, numbers)])
        assert scaling.factor[0, 1] == 0
        assert scaling.factor[1, 1] > 0
        assert torch.all(scaling.factor[0, [0, 2]] > 0)
    assert all(torch.all(torch.isfinite(buffer.double())) for buffer in scaling.buffers())


def outside(scaling, g, numbers):
    low, high = (bound[scaling.index(numbers)] for bound in scaling.bounds())
    return (g < low) | (g > high)


def test_outside_the_training_range(training):
    g, numbers = training
    scaling = Scaling({H: 3, O: 2})
    scaling.fit([(g, numbers)])
    for dtype in (torch.float64, torch.float32):
        assert not outside(scaling, torch.tensor(g, dtype=dtype), torch.tensor(numbers)).any()
    moved = torch.tensor(g)
    h = int(np.flatnonzero(numbers == H)[0])
    o = int(np.flatnonzero(numbers == O)[0])
    moved[h, 0] = g[numbers == H, 0].max() + 1e-3
    moved[o, 1] = g[numbers == O, 1].min() - 1e-3
    found = outside(scaling, moved, torch.tensor(numbers)).nonzero().tolist()
    assert sorted(found) == sorted([[h, 0], [o, 1]])


def test_errors_name_the_problem(training):
    g, numbers = training
    with pytest.raises(ValueError, match="unknown scaling 'zscore'"):
        Scaling({H: 3}, "zscore")
    with pytest.raises(ValueError, match="ascending"):
        Scaling({H: 3}, limits=(1.0, 0.0))
    with pytest.raises(ValueError, match="no training atom of Fe"):
        Scaling({H: 3, O: 2, 26: 3}).fit([(g, numbers)])
    with pytest.raises(ValueError, match="does not know O; it was made for H"):
        Scaling({H: 3}).fit([(g, numbers)])
    with pytest.raises(ValueError, match="does not know O; it was made for H"):
        Scaling({H: 3})(torch.tensor(g), torch.tensor(numbers))
    g[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"descriptors \[1\]"):
        Scaling({H: 3, O: 2}).fit([(g, numbers)])


def test_state_survives_saving_and_conversion(training):
    g, numbers = training
    scaling = Scaling({H: 3, O: 2}, "sigma")
    scaling.fit([(g, numbers)])
    other = Scaling({H: 3, O: 2}, "sigma")
    other.load_state_dict(copy.deepcopy(scaling.state_dict()))
    inputs = torch.tensor(g), torch.tensor(numbers)
    assert torch.equal(other(*inputs), scaling(*inputs))
    assert other(inputs[0].float(), inputs[1]).dtype == torch.float32
    other.float()
    single = inputs[0].float()
    found, exact = other(single, inputs[1]), scaling(single.double(), inputs[1])
    # (g - shift) * factor: each of the three numbers and of the two results is rounded once
    rows = scaling.index(inputs[1])
    factor, shift = scaling.factor[rows].abs(), scaling.shift[rows].abs()
    rounding = torch.finfo(torch.float32).eps * (factor * shift + 2 * exact.abs())
    assert ((found - exact).abs() <= rounding).all()


def test_empty_batch():
    scaling = Scaling({H: 3, O: 2})
    assert scaling(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)
