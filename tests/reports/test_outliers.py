"""Wrong labels are found and named; sound data have none."""

import json
from html import escape

import numpy as np
import pytest
from fake_run import make_arrays, write_run

from schnetpack_softadapt.data.importing.stress_labels import StressRepair
from schnetpack_softadapt.reports.outliers import find_outliers, find_stress_order
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.reports.report import read_runs, terminal_summary, write_report


def subset(name="train", arrays=None, **changes):
    arrays = arrays or make_arrays()
    arrays["index"] = 100 + np.arange(len(arrays["n_atoms"]))
    return Predictions.from_arrays(name, {**arrays, **changes})


def test_sound_data_have_none():
    assert find_outliers([subset()]).empty


def test_exchanged_shear_components_are_found():
    stress = make_arrays()["stress_ref"]
    k = int(np.argmax(np.abs(stress[:, 0, 2] - stress[:, 1, 2])))
    order = [1, 0, 2]
    stress[k] = stress[k][order][:, order]  # xx with yy, and xz with yz
    [found] = find_outliers([subset(stress_ref=stress)]).to_dict("records")
    assert (found["index"], found["quantity"], found["subset"]) == (100 + k, "stress", "train")
    assert found["times"] > 8


def test_size_by_hand():
    n = 20
    energy = np.where(np.arange(n) % 2, 0.004, -0.004)  # median error 1 meV/atom of 4 atoms
    energy[3] = 0.4
    arrays = {"n_atoms": np.full(n, 4), "energy": energy, "energy_ref": np.zeros(n)}
    forces = np.full((4 * n, 3), 0.1)
    forces[-1] = [30.0, 0.0, 0.0]
    arrays |= {"forces": forces, "forces_ref": np.zeros_like(forces)}
    large, force = find_outliers([Predictions.from_arrays("val", arrays)]).to_dict("records")
    rms = 1e3 * np.sqrt((900.0 + 9 * 0.01) / 12)
    assert force == {
        "subset": "val",
        "index": None,
        "group": "",
        "n_atoms": 4,
        "quantity": "forces",
        "error": pytest.approx(rms),
        "unit": "meV/Å",
        "times": pytest.approx(rms / 100.0),
    }
    # relative to the median of the errors, which is -1 or 1 meV/atom or in between
    assert large["error"] == pytest.approx(100.0, abs=1.0)


def test_masked_and_few_structures_do_not_count():
    mask = np.zeros(40)
    mask[:5] = 1.0
    stress = make_arrays()["stress_ref"]
    stress[0] += 10.0
    stress[7] += 10.0
    assert find_outliers([subset(stress_ref=stress, stress_mask=mask)]).empty
    mask[:15] = 1.0
    mask[7] = 0.0
    found = find_outliers([subset(stress_ref=stress, stress_mask=mask)])
    assert found["index"].tolist() == [100]


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


# --- stress labels in another order, sign or unit


def spoil(arrays, group, axes=(1, 0, 2), factor=1.0):
    """Labels of one group with the axes in another order, (1, 0, 2): yz is xz and xx is yy."""
    chosen = arrays["group"] == group
    stress = arrays["stress_ref"][chosen]
    arrays["stress_ref"][chosen] = factor * stress[:, axes][:, :, axes]
    return arrays


@pytest.mark.parametrize(
    ("axes", "factor", "said"),
    [
        ((1, 0, 2), 1.0, "surface=yy xx zz xz yz xy"),
        ((0, 1, 2), -1.0, "surface=-1"),
        ((0, 1, 2), 10.0, "surface=0.1"),  # kbar taken for GPa
    ],
)
def test_stress_of_a_group_in_another_order_sign_or_unit(axes, factor, said):
    """Subsets count together: the groups of val and test have 7 and 3 structures with a label."""
    parts = {"train": 40, "val": 20, "test": 12}
    arrays = {
        name: make_arrays(n, seed=k, stress_labelled=0.7)
        for k, (name, n) in enumerate(parts.items())
    }
    assert find_stress_order([subset(name, a) for name, a in arrays.items()]) == []
    for a in arrays.values():
        spoil(a, 1, axes, factor)
    [finding] = find_stress_order([subset(name, a) for name, a in arrays.items()])
    assert str(finding.repair) == said
    labelled = [(a["stress_mask"] > 0) & (a["group"] == 1) for a in arrays.values()]
    assert finding.n_structures == sum(map(np.count_nonzero, labelled))
    # 0.4 meV/Ang^3 and 1.5 % of labels of 30 meV/Ang^3
    assert finding.miss_repaired < 0.05


def test_stress_without_groups_or_finite_numbers():
    arrays = make_arrays()
    del arrays["group"], arrays["group_names"]
    arrays["stress_ref"] *= -1
    arrays["stress"][3] = np.nan
    [finding] = find_stress_order([subset("train", arrays)])
    assert finding.repair == StressRepair("*", factor=-1.0)
    assert finding.n_structures == len(arrays["n_atoms"]) - 1
    arrays["stress_mask"][:] = 0
    assert find_stress_order([subset("train", arrays)]) == []


def test_report_says_how_to_repair_stress(tmp_path):
    run = tmp_path / "run"
    write_run(run)
    out = write_report(read_runs([run]))
    assert json.loads((out / "report.json").read_text())["stress_labels"] == []
    for path in (run / "predictions").iterdir():
        np.savez(path, **spoil(dict(np.load(path)), 2, factor=-1.0))
    out = write_report(read_runs([run]))
    [found] = json.loads((out / "report.json").read_text())["stress_labels"]
    command = "--repair-stress 'liquid <hot>=-1 yy xx zz xz yz xy'"
    assert found["text"].endswith(command)
    page = (out / "report.html").read_text()
    after = page[page.index("Doubtful labels") :]
    assert escape(command) in after
    summary = terminal_summary(read_runs([run])).splitlines()
    assert summary[-1].startswith("run: stress of group liquid <hot>: ")
    assert summary[-1].endswith(command)
