"""Wrong labels are found and named; sound data have none."""

import json

import numpy as np
import pytest
from fake_run import make_arrays, write_run

from schnetpack_softadapt.reports.outliers import find_outliers
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.reports.report import read_runs, write_report


def subset(name="train", **changes):
    arrays = make_arrays()
    arrays["index"] = 100 + np.arange(len(arrays["n_atoms"]))
    return Predictions.from_arrays(name, {**arrays, **changes})


def test_sound_data_have_none():
    assert find_outliers([subset()]) == []


def test_exchanged_shear_components_are_found():
    stress = make_arrays()["stress_ref"]
    k = int(np.argmax(np.abs(stress[:, 0, 2] - stress[:, 1, 2])))
    order = [1, 0, 2]
    stress[k] = stress[k][order][:, order]  # xx with yy, and xz with yz
    (found,) = find_outliers([subset(stress_ref=stress)])
    assert (found.index, found.quantity, found.subset) == (100 + k, "stress", "train")
    assert found.times > 8


def test_size_by_hand():
    n = 20
    energy = np.where(np.arange(n) % 2, 0.004, -0.004)  # median error 1 meV/atom of 4 atoms
    energy[3] = 0.4
    arrays = {"n_atoms": np.full(n, 4), "energy": energy, "energy_ref": np.zeros(n)}
    forces = np.full((4 * n, 3), 0.1)
    forces[-1] = [30.0, 0.0, 0.0]
    arrays |= {"forces": forces, "forces_ref": np.zeros_like(forces)}
    large, force = find_outliers([Predictions.from_arrays("val", arrays)])
    assert (force.quantity, force.index, force.group, force.n_atoms) == ("forces", None, "", 4)
    rms = 1e3 * np.sqrt((900.0 + 9 * 0.01) / 12)
    assert force.error == pytest.approx(rms)
    assert force.times == pytest.approx(rms / 100.0)
    # relative to the median of the errors, which is -1 or 1 meV/atom or in between
    assert large.error == pytest.approx(100.0, abs=1.0)


def test_masked_and_few_structures_do_not_count():
    mask = np.zeros(40)
    mask[:5] = 1.0
    stress = make_arrays()["stress_ref"]
    stress[0] += 10.0
    stress[7] += 10.0
    assert find_outliers([subset(stress_ref=stress, stress_mask=mask)]) == []
    mask[:15] = 1.0
    mask[7] = 0.0
    found = find_outliers([subset(stress_ref=stress, stress_mask=mask)])
    assert [o.index for o in found] == [100]


def test_report_names_them(tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "predictions" / "train.npz"
    arrays = dict(np.load(path))
    arrays["energy_ref"][4] += 5.0
    arrays["index"] = 1000 + np.arange(len(arrays["n_atoms"]))
    np.savez(path, **arrays)
    out = write_report(read_runs([tmp_path / "run"]))
    content = json.loads((out / "report.json").read_text())
    assert [o["index"] for o in content["outliers"]] == [1004]
    page = (out / "report.html").read_text()
    assert "Doubtful labels" in page
    assert ">1004<" in page
