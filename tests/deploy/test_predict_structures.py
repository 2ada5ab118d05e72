"""Predictions for structures of a file or from Python, beside their labels."""

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from deploy_models import make_model, mo, mote2

from schnetpack_softadapt import SoftAdaptCalculator
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.predict import predict
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.training.predictions import prediction_errors


def isolated():
    atoms = mo(seed=4)
    atoms.pbc = False
    atoms.cell[:] = 0
    return atoms


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def labelled():
    """Labels off by 3 meV/atom, 20 meV/Ang and one shear component; no stress for a cluster."""
    frames = [mo(), mote2(), isolated()]
    calculator = SoftAdaptCalculator(make_model())
    for atoms in frames:
        calculator.calculate(atoms)
        found = dict(calculator.results)
        labels = {
            "energy": found["energy"] - 0.003 * len(atoms),
            "forces": found["forces"] + 0.02,
        }
        if "stress" in found:
            labels["stress"] = found["stress"] + [0, 0, 0, 0.001, 0, 0]
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return frames


def check(arrays, model, frames):
    """Predictions against the calculator, of which they are made: no more than rounding."""
    calculator = SoftAdaptCalculator(model)
    stops = np.cumsum([len(atoms) for atoms in frames])[:-1]
    assert arrays["numbers"].tolist() == np.concatenate([a.numbers for a in frames]).tolist()
    forces = np.split(arrays["forces"], stops)
    for k, atoms in enumerate(frames):
        atoms = atoms.copy()
        atoms.calc = calculator
        assert arrays["energy"][k] == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
        assert forces[k] == pytest.approx(atoms.get_forces(), abs=1e-9)
        if atoms.cell.rank == 3:
            assert arrays["stress"][k] == pytest.approx(atoms.get_stress(voigt=False), abs=1e-10)
        else:
            assert np.isnan(arrays["stress"][k]).all()


def test_predictions_and_errors(model, labelled, tmp_path):
    """From a file of eight digits, with labels."""
    ase.io.write(tmp_path / "my.extxyz", labelled)
    arrays = predict(model, tmp_path / "my.extxyz", tmp_path / "test.npz")
    check(arrays, model, ase.io.read(tmp_path / "my.extxyz", ":"))
    assert arrays["stress_mask"].tolist() == [True, True, False]
    errors = prediction_errors(arrays)
    # 8 digits of positions: forces of some eV/Ang are good to 1e-6
    assert errors["energy_mae_meV_per_atom"] == pytest.approx(3.0, rel=1e-3)
    assert errors["forces_rmse_meV_per_Ang"] == pytest.approx(20.0, rel=1e-3)
    # one of six components is off by 1 meV/Ang^3, which are 160.2 MPa
    assert errors["stress_mae_MPa"] == pytest.approx(160.21766 / 6, rel=1e-3)
    again = Predictions.load(tmp_path / "test.npz").values
    energies = arrays["energy_ref"] / arrays["n_atoms"]
    assert np.array_equal(again["energy"]["reference"], energies)
    assert np.array_equal(again["forces"]["prediction"], arrays["forces"].ravel())


def test_extended_xyz_has_predictions_and_labels(model, labelled, tmp_path):
    arrays = predict(model, labelled, tmp_path / "out.extxyz")
    check(arrays, model, labelled)
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [path.name for path in tmp_path.iterdir()] == ["out.extxyz"]
    for k, (frame, atoms) in enumerate(zip(frames, labelled, strict=True)):
        # eight digits
        assert frame.get_potential_energy() == pytest.approx(arrays["energy"][k], rel=1e-7)
        assert frame.info["energy_ref"] == pytest.approx(arrays["energy_ref"][k], rel=1e-7)
        assert frame.arrays["forces_ref"] == pytest.approx(atoms.calc.results["forces"], abs=1e-7)
        if k < 2:
            stress = atoms.calc.get_stress(atoms)
            assert frame.get_stress() == pytest.approx(stress - [0, 0, 0, 0.001, 0, 0], abs=1e-7)
            full = frame.info["stress_ref"]
            assert [full[1, 2], full[2, 2]] == pytest.approx([stress[3], stress[2]], abs=1e-7)
        else:
            assert "stress" not in frame.calc.results
            assert "stress_ref" not in frame.info


def test_structures_without_labels(model, tmp_path, caplog):
    frames = [mo(), mote2()]
    ase.io.write(tmp_path / "my.xyz", frames, format="extxyz")
    arrays = predict(model, str(tmp_path / "my.xyz"))
    assert "read without labels" in caplog.text
    check(arrays, model, ase.io.read(tmp_path / "my.xyz", ":"))
    assert not [name for name in arrays if name.endswith("_ref")]
    assert prediction_errors(arrays) == {}


def test_database(model, labelled, tmp_path):
    structures = [
        Structure(a.numbers, a.positions, a.cell.array, a.pbc, **a.calc.results)
        for a in labelled[:2]
    ]
    structures[1].stress = None
    write_database(tmp_path / "my.db", structures, "test")
    arrays = predict(model, tmp_path / "my.db")
    assert arrays["stress_mask"].tolist() == [True, False]
    expected = predict(model, structures)
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(arrays[name], values)


def test_errors_name_file_and_structure(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.xyz"):
        predict(model, tmp_path / "missing.xyz")
    other = mo()
    other.numbers[0] = 79
    ase.io.write(tmp_path / "my.xyz", [mo(), other], format="extxyz")
    with pytest.raises(ValueError, match=r"my\.xyz, structure 1: .*Au"):
        predict(model, tmp_path / "my.xyz")
    with pytest.raises(ValueError, match="no structures to predict"):
        predict(model, [])
