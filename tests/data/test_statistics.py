import dataclasses

import numpy as np
import pytest
from ase.data import atomic_numbers
from emt_structures import labelled_structures
from schnetpack.data import AtomsDataModule
from schnetpack.transform import CastTo32, MatScipyNeighborList

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.data.structures import Structure


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Forbidden(MatScipyNeighborList):
    """A neighbour list that nobody should ask for."""

    def _build_neighbor_list(self, *_):
        raise AssertionError("statistics need no neighbours")


def test_targets_from_ours_and_from_schnetpacks_data_module(structures):
    structures[2] = dataclasses.replace(structures[2], stress=None)
    write_database("my.db", structures, "test")
    transforms = [Forbidden(cutoff=3.0), CastTo32()]
    split = {"train_idx": [0, 1, 2, 4], "val_idx": [3], "test_idx": [5]}
    np.savez("split.npz", **split)
    stock = AtomsDataModule(
        "my.db", batch_size=2, num_train=4, num_val=1, num_workers=0, transforms=transforms
    )
    ours = SoftAdaptDataModule("my.db", num_train=4, num_val=1, num_test=1, transforms=transforms)
    train = [structures[k] for k in split["train_idx"]]
    for datamodule, rtol in ((stock, 1e-6), (ours, 0.0)):
        datamodule.setup()
        targets = training_targets(datamodule)
        assert training_targets(datamodule) is targets
        assert targets.elements.tolist() == [29, 79]
        counts = [[np.sum(s.numbers == z) for z in (29, 79)] for s in train]
        assert targets.compositions.tolist() == counts
        assert targets.energy == pytest.approx([s.energy for s in train], rel=rtol, abs=0)
        # forces are cast to float32
        assert targets.forces == pytest.approx(np.concatenate([s.forces for s in train]), rel=1e-6)
        assert targets.forces.dtype == np.float64
        assert targets.volumes == pytest.approx([s.volume for s in train], rel=1e-6)
        assert targets.stress_mask.tolist() == [True, True, False, True]
        assert targets.stress[0] == pytest.approx(train[0].stress, rel=1e-6)


def fitted(formulas, energy_of):
    structures = []
    for symbols in formulas:
        numbers = [atomic_numbers[s] for s in symbols]
        positions = np.arange(3 * len(numbers)).reshape(-1, 3)
        structures.append(
            Structure(numbers, positions, np.zeros((3, 3)), False, energy_of(symbols))
        )
    write_database("my.db", structures, "test")
    n = len(structures) - 1
    np.savez("split.npz", train_idx=range(n), val_idx=[n], test_idx=[])
    datamodule = SoftAdaptDataModule("my.db", num_train=n, num_val=1, num_test=0)
    datamodule.setup()
    return composition_fit(training_targets(datamodule))


def test_independent_compositions_give_the_energies_of_the_elements():
    energy = {"H": -13.6, "O": -2041.8}
    formulas = [["H"] * k + ["O"] * n for k in (1, 2, 3) for n in (1, 2)]
    elements, shifts = fitted(formulas, lambda symbols: sum(energy[s] for s in symbols))
    assert elements.tolist() == [1, 8]
    assert shifts == pytest.approx([-13.6, -2041.8], rel=1e-12)


def test_a_fixed_composition_gives_the_solution_of_minimum_norm():
    """Normal equations are singular here: every structure is MoTe2."""
    formulas = [["Mo", "Te", "Te"] * k for k in (1, 1, 2, 2)]
    elements, shifts = fitted(formulas, lambda symbols: -6.0 * len(symbols))
    assert elements.tolist() == [42, 52]
    # of all (a, b) with a + 2 b = -18, the shortest is parallel to (1, 2)
    assert shifts == pytest.approx([-18 / 5, -36 / 5], rel=1e-12)


def test_one_element():
    _, shifts = fitted([["Cu"], ["Cu"] * 2, ["Cu"] * 3], lambda symbols: -3.5 * len(symbols))
    assert shifts == pytest.approx([-3.5], rel=1e-12)


def test_errors_count_per_atom():
    """A large structure must not outweigh a small one; the last structure only validates."""
    formulas = [["Cu"], ["Cu"] * 100, ["Cu"]]
    _, shifts = fitted(formulas, lambda s: -1.0 if len(s) == 1 else -200.0)
    assert shifts == pytest.approx([-1.5], rel=1e-12)


def test_energies_are_needed():
    targets = training_targets_without_energy()
    with pytest.raises(ValueError, match="no energies"):
        composition_fit(targets)


def training_targets_without_energy():
    write_database("my.db", labelled_structures(4), "test")
    datamodule = SoftAdaptDataModule(
        "my.db", num_train=2, num_val=1, num_test=1, load_properties=["forces"]
    )
    datamodule.setup()
    return training_targets(datamodule)
