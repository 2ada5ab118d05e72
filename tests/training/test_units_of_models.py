"""Models in the units and under the names of their data, trained and put into the calculator."""

import ase.db
import numpy as np
import pytest
import torch
from schnetpack import atomistic, representation, transform
from schnetpack.data import AtomsDataModule
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.task import AtomisticTask, ModelOutput
from schnetpack.units import convert_units
from test_drop_in import write_molecules
from toy_runs import toy_trainer

from schnetpack_softadapt import SoftAdaptCalculator
from schnetpack_softadapt.training.task import SoftAdaptTask


def schnet(unit):
    """Energy U and forces F: the mean energy per atom of the training set, and half an eV."""
    torch.manual_seed(0)
    model = NeuralNetworkPotential(
        representation.SchNet(8, 1, GaussianRBF(8, 4.0), cutoff_fn=CosineCutoff(4.0)),
        input_modules=[atomistic.PairwiseDistances()],
        output_modules=[
            atomistic.Atomwise(n_in=8, output_key="U"),
            atomistic.Forces(energy_key="U", force_key="F"),
        ],
        postprocessors=[transform.CastTo64(), transform.AddOffsets("U", add_mean=True)],
    )
    model.output_modules[0].outnet[-1].weight.data *= 0.5 / convert_units(unit, "eV")
    return model


def data_module(path, folder):
    transforms = [
        transform.RemoveOffsets("U", remove_mean=True),
        transform.MatScipyNeighborList(4.0),
        transform.CastTo32(),
    ]
    return AtomsDataModule(
        str(path), 4, num_train=16, num_val=4, num_test=4, num_workers=0,
        split_file=str(folder / "split.npz"), transforms=transforms,
    )  # fmt: skip


@pytest.mark.parametrize("unit", ["kcal/mol", "Hartree", "eV"])
@pytest.mark.parametrize("task_cls", [SoftAdaptTask, AtomisticTask])
def test_energies_of_trained_models(tmp_path, task_cls, unit):
    path = write_molecules(tmp_path / "molecules.db", "U", "F", unit)
    outputs = [
        ModelOutput("U", torch.nn.MSELoss(), 0.01, metrics={}),
        ModelOutput("F", torch.nn.MSELoss(), 0.99, metrics={}),
    ]
    task = task_cls(
        schnet(unit), outputs, optimizer_cls=torch.optim.Adam, optimizer_args={"lr": 1e-4}
    )
    toy_trainer(tmp_path, 1).fit(task, datamodule=data_module(path, tmp_path))
    model = task.model.eval()
    units = {}
    if task_cls is AtomisticTask:
        with pytest.raises(ValueError, match="does not tell the unit of its U: give energy_unit"):
            SoftAdaptCalculator(model)
        with pytest.raises(ValueError, match="unit of its length: give position_unit"):
            SoftAdaptCalculator(model, energy_unit=unit)
        units = {"energy_unit": unit, "position_unit": "Ang"}
    calculator = SoftAdaptCalculator(model, **units)
    assert calculator.energy_conversion == pytest.approx(convert_units(unit, "eV"), rel=1e-12)
    for row in ase.db.connect(path).select(limit=4):
        atoms = row.toatoms()
        atoms.calc = calculator
        label = row.data["U"][0] * convert_units(unit, "eV")
        # hardly trained: the mean of an atom times 3 or 6, within 3 eV of labels of 2 to 5 eV.
        # Read as eV, a label of 4.7 eV would be 0.2 (Hartree) or 109 (kcal/mol).
        assert atoms.get_potential_energy() == pytest.approx(label, abs=3.0)
    forces, energies = atoms.get_forces(), []
    i, k = np.unravel_index(np.abs(forces).argmax(), forces.shape)
    for shift in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions[i, k] += shift
        moved.calc = calculator
        energies.append(moved.get_potential_energy())
    # truncation h^2 = 1e-8 and rounding 1e-15 / h, eV/Ang
    assert forces[i, k] == pytest.approx((energies[1] - energies[0]) / 2e-4, rel=1e-5, abs=1e-8)
    assert abs(forces[i, k]) > 1e-4
