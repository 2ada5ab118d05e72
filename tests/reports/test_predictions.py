"""Errors from prediction files, recomputed without the package's code."""

import numpy as np
import pytest
from fake_run import MPA, expected_rmse, make_arrays

from schnetpack_softadapt.quantities import ENERGY, QUANTITIES, STRESS, VOIGT
from schnetpack_softadapt.reports.errors import error_rows, fitted_line, measures
from schnetpack_softadapt.reports.predictions import Predictions, parity_values

# Only rounding separates two ways to sum the same float64 numbers.
ROUNDING = 1e-10


def _predictions(arrays, subset="train"):
    return Predictions.from_arrays(subset, arrays)


def test_rmse_equals_independent_sums():
    arrays = make_arrays(30, stress_labelled=0.6)
    errors = error_rows({"train": _predictions(arrays)}).query("selection == 'all'")
    expected = expected_rmse(arrays)
    assert errors["quantity"].tolist() == [q.name for q in QUANTITIES]
    for row in errors.itertuples():
        assert row.rmse == pytest.approx(expected[row.quantity], rel=ROUNDING)


def test_energy_is_divided_by_the_number_of_atoms():
    arrays = {
        "n_atoms": np.array([2, 10]),
        "energy_ref": np.array([-4.0, -20.0]),
        "energy": np.array([-4.0 + 2 * 0.005, -20.0 + 10 * 0.005]),
    }
    # 5 meV/atom in both structures, whatever their size; 1e-9: the last digits of -20.0
    error = _predictions(arrays).values["energy"]["error"].to_numpy()
    assert error == pytest.approx([0.005] * 2, rel=1e-9)


def test_stress_has_six_components():
    stress = np.zeros((1, 3, 3))
    stress[0, 0, 1] = stress[0, 1, 0] = 6.0 / MPA
    arrays = {"n_atoms": np.array([4]), "stress": stress, "stress_ref": np.zeros((1, 3, 3))}
    found = measures(_predictions(arrays).values["stress"]["error"], STRESS.shown_factor)
    assert found["n"] == 6
    # One of six components is off by 6 MPa; of nine, two would be: sqrt(2 * 36 / 9) = 2.83.
    assert found["rmse"] == pytest.approx(np.sqrt(6.0), rel=ROUNDING)
    assert found["mae"] == pytest.approx(1.0, rel=ROUNDING)
    assert found["largest"] == pytest.approx(6.0, rel=ROUNDING)


def test_voigt_order_and_voigt_input():
    full = np.arange(9.0).reshape(1, 3, 3)
    full = full + full.transpose(0, 2, 1)
    arrays = {"n_atoms": np.array([4]), "stress": full, "stress_ref": full}
    voigt = _predictions(arrays).values["stress"]["prediction"].tolist()
    assert voigt == [full[0]["xyz".index(a), "xyz".index(b)] for a, b in VOIGT]
    six = np.array([voigt])
    arrays = {"n_atoms": np.array([4]), "stress": six, "stress_ref": six}
    assert _predictions(arrays).values["stress"]["prediction"].tolist() == voigt


def test_masked_stress_is_left_out():
    arrays = make_arrays(12)
    arrays["stress_mask"] = np.array([1] * 5 + [0] * 7)
    arrays["stress"][5:] = 1e3
    values = _predictions(arrays).values["stress"]
    assert values["structure"].tolist() == np.repeat(np.arange(5), 6).tolist()
    assert values["error"].abs().max() < 1.0
    arrays["stress_mask"] = np.zeros(12)
    assert "stress" not in _predictions(arrays).values


def test_by_element_and_group():
    arrays = make_arrays(15, elements=(8, 14, 1))
    errors = error_rows({"train": _predictions(arrays)}).query("quantity == 'forces'")
    rows = errors.set_index(["selection", "name"])
    assert errors["name"].tolist() == ["", "H", "O", "Si", "bulk", "surface", "liquid <hot>"]
    error = (arrays["forces"].astype(float) - arrays["forces_ref"]) * 1e3
    idx_m = np.repeat(np.arange(15), arrays["n_atoms"])
    chosen = {("element", s): arrays["numbers"] == z for s, z in (("H", 1), ("O", 8), ("Si", 14))}
    names = enumerate(arrays["group_names"])
    chosen |= {("group", name): arrays["group"][idx_m] == g for g, name in names}
    for key, atoms in chosen.items():
        assert rows.loc[key, "n"] == 3 * atoms.sum()
        rmse, mae = np.sqrt((error[atoms] ** 2).mean()), np.abs(error[atoms]).mean()
        assert rows.loc[key, ["rmse", "mae"]].tolist() == pytest.approx([rmse, mae], rel=1e-9)


def test_fitted_line():
    x = np.linspace(-3.0, 5.0, 50)
    assert fitted_line(x, 0.9 * x + 0.2) == pytest.approx((0.9, 0.2), rel=1e-12)
    assert np.isnan(fitted_line(np.full(5, 2.0), x[:5])).all()
    assert np.isnan(fitted_line(x[:1], x[:1])).all()


def test_baseline_removes_composition_only():
    arrays = make_arrays(40, elements=(42, 52))
    predictions = _predictions(arrays)
    points = parity_values([predictions], ENERGY)["train"]
    raw = predictions.values["energy"]
    assert points["error"].tolist() == raw["error"].tolist()
    error = points["prediction"] - points["reference"]
    assert error.to_numpy() == pytest.approx(raw["error"].to_numpy(), abs=1e-12)
    # Energies are -3 - 0.1 Z per atom and a scatter below 0.5 eV; only the scatter is left.
    assert np.ptp(raw["reference"]) > 0.5
    assert points["reference"].abs().max() < 0.5


def test_baseline_of_one_fixed_composition_is_finite():
    arrays = {
        "n_atoms": np.array([3, 6]),
        "numbers": np.array([42, 52, 52, 42, 42, 52, 52, 52, 52]),
        "energy": np.array([-30.0, -60.0]),
        "energy_ref": np.array([-30.3, -60.0]),
    }
    predictions = _predictions(arrays)
    left = parity_values([predictions], ENERGY)["train"]["reference"]
    baseline = predictions.values["energy"]["reference"] - left
    # The two compositions are equal: the least-squares value is the mean of -10.1 and -10.0.
    assert baseline.to_numpy() == pytest.approx([-10.05, -10.05], rel=1e-12)


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
