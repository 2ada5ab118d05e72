"""Errors from prediction files, recomputed without the package's code."""

import numpy as np
import pytest
from fake_run import MPA, expected_rmse, make_arrays

from schnetpack_softadapt.quantities import ENERGY, FORCES, QUANTITIES, STRESS
from schnetpack_softadapt.reports.predictions import (
    Comparison,
    Predictions,
    composition_baseline,
    parity_points,
)

# Only rounding separates two ways to sum the same float64 numbers.
ROUNDING = 1e-10


def _predictions(arrays, subset="train"):
    return Predictions.from_arrays(subset, arrays)


def test_rmse_equals_independent_sums():
    arrays = make_arrays(30, stress_labelled=0.6)
    predictions = _predictions(arrays)
    expected = expected_rmse(arrays)
    for quantity in QUANTITIES:
        found = predictions.compare(quantity).rmse() * quantity.shown_factor
        assert found == pytest.approx(expected[quantity.name], rel=ROUNDING)


def test_energy_is_divided_by_the_number_of_atoms():
    arrays = {
        "n_atoms": np.array([2, 10]),
        "energy_ref": np.array([-4.0, -20.0]),
        "energy": np.array([-4.0 + 2 * 0.005, -20.0 + 10 * 0.005]),
    }
    # 5 meV/atom in both structures, whatever their size; 1e-9: the last digits of -20.0
    assert _predictions(arrays).compare(ENERGY).error == pytest.approx([0.005] * 2, rel=1e-9)


def test_stress_has_six_components():
    stress = np.zeros((1, 3, 3))
    stress[0, 0, 1] = stress[0, 1, 0] = 6.0 / MPA
    arrays = {"n_atoms": np.array([4]), "stress": stress, "stress_ref": np.zeros((1, 3, 3))}
    comparison = _predictions(arrays).compare(STRESS)
    assert comparison.n == 6
    # One of six components is off by 6 MPa; of nine, two would be: sqrt(2 * 36 / 9) = 2.83.
    assert comparison.rmse() * STRESS.shown_factor == pytest.approx(np.sqrt(6.0), rel=ROUNDING)
    assert comparison.mae() * STRESS.shown_factor == pytest.approx(1.0, rel=ROUNDING)


def test_voigt_order_and_voigt_input():
    full = np.arange(9.0).reshape(1, 3, 3)
    full = full + full.transpose(0, 2, 1)
    arrays = {"n_atoms": np.array([4]), "stress": full, "stress_ref": full}
    voigt = _predictions(arrays).stress
    expected = [full[0, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    assert voigt[0].tolist() == expected
    arrays = {"n_atoms": np.array([4]), "stress": voigt, "stress_ref": voigt}
    assert _predictions(arrays).stress.tolist() == voigt.tolist()


def test_masked_stress_is_left_out():
    arrays = make_arrays(12)
    arrays["stress_mask"] = np.array([1] * 5 + [0] * 7)
    arrays["stress"][5:] = 1e3
    comparison = _predictions(arrays).compare(STRESS)
    assert comparison.n == 30
    assert np.abs(comparison.error).max() < 1.0
    arrays["stress_mask"] = np.zeros(12)
    assert not _predictions(arrays).has(STRESS)


def test_by_element_and_group():
    arrays = make_arrays(15, elements=(8, 14, 1))
    predictions = _predictions(arrays)
    assert predictions.elements() == [1, 8, 14]
    error = (arrays["forces"].astype(float) - arrays["forces_ref"]) ** 2
    idx_m = np.repeat(np.arange(15), arrays["n_atoms"])
    for z in (1, 8, 14):
        expected = np.sqrt(error[arrays["numbers"] == z].mean())
        assert predictions.compare(FORCES, element=z).rmse() == pytest.approx(expected, rel=1e-9)
    for group in range(3):
        chosen = arrays["group"][idx_m] == group
        expected = np.sqrt(error[chosen].mean())
        assert predictions.compare(FORCES, group=group).rmse() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="forces only"):
        predictions.compare(ENERGY, element=8)


def test_fitted_line():
    x = np.linspace(-3.0, 5.0, 50)
    slope, intercept = Comparison(x, 0.9 * x + 0.2).line()
    assert (slope, intercept) == pytest.approx((0.9, 0.2), rel=1e-12)
    assert np.isnan(Comparison(np.full(5, 2.0), x[:5]).line()).all()
    assert np.isnan(Comparison(x[:1], x[:1]).line()).all()


def test_baseline_removes_composition_only():
    arrays = make_arrays(40, elements=(42, 52))
    predictions = _predictions(arrays)
    points = parity_points([predictions], ENERGY)["train"]
    raw = predictions.compare(ENERGY)
    assert points.error == pytest.approx(raw.error, abs=1e-12)
    # Energies are -3 - 0.1 Z per atom and a scatter below 0.5 eV; only the scatter is left.
    assert np.ptp(raw.reference) > 0.5
    assert abs(points.reference).max() < 0.5


def test_baseline_of_one_fixed_composition_is_finite():
    arrays = {
        "n_atoms": np.array([3, 6]),
        "numbers": np.array([42, 52, 52, 42, 42, 52, 52, 52, 52]),
        "energy": np.array([-30.0, -60.0]),
        "energy_ref": np.array([-30.3, -60.0]),
    }
    baseline = composition_baseline([_predictions(arrays)])["train"]
    # The two compositions are equal: the least-squares value is the mean of -10.1 and -10.0.
    assert baseline == pytest.approx([-10.05, -10.05], rel=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("forces", np.zeros((3, 3)), r"forces has shape \(3, 3\)"),
        ("energy", np.zeros(3), "energy has shape"),
        ("stress", np.zeros((2, 4)), r"stress has shape \(2, 4\)"),
        ("group", np.array([0, 7]), "group index 7"),
    ],
)
def test_wrong_shapes_name_file_and_key(tmp_path, key, value, match):
    arrays = make_arrays(2, atoms=(4, 4))
    arrays[key] = value
    file = tmp_path / "val.npz"
    with file.open("wb") as stream:
        np.savez(stream, **arrays)
    if key == "stress":
        match = "val.npz.*" + match
    with pytest.raises(ValueError, match=match):
        Predictions.load(file)


def test_damaged_file_is_named(tmp_path):
    file = tmp_path / "train.npz"
    np.savez(file, **make_arrays(3))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"train\.npz is not a readable"):
        Predictions.load(file)
