"""Weights of structures by name, and structures left out by number."""

import dataclasses

import numpy as np
import pytest
import torch
from emt_structures import labelled_structures

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.data.weights import energy_above_hull


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def datamodule(structures, **kwargs):
    write_database("my.db", structures, "test", overwrite=True)
    n = len(structures)
    split = {"train_idx": range(n - 3), "val_idx": [n - 3, n - 2], "test_idx": [n - 1]}
    np.savez("given.npz", **{key: list(value) for key, value in split.items()})
    data = SoftAdaptDataModule("my.db", split_file="given.npz", store=False, **kwargs)
    data.setup()
    return data


def test_distance_to_the_hull_of_two_elements():
    x = np.array([0.0, 0.5, 0.5, 1.0, 0.25, 0.75, 0.25])
    # A at -1, AB at -3, B at -2: the hull is -2 at 1/4 and -2.5 at 3/4; the last is another's
    energies = np.array([-1.0, -2.0, -3.0, -2.0, -1.5, -2.0, -4.0])
    found = energy_above_hull(np.column_stack([1 - x, x]), energies, np.arange(6))
    assert found == pytest.approx([0, 1, 0, 0, 0.5, 0.5, -2], abs=1e-9)


def test_distance_to_the_hull_of_one_composition_is_that_to_the_minimum():
    fractions = np.tile([1 / 3, 2 / 3], (4, 1))
    found = energy_above_hull(fractions, np.array([1.0, 3.0, 2.0, 0.5]), np.arange(3))
    assert found == pytest.approx([0, 2, 1, -0.5])


def test_distance_to_the_hull_of_five_elements_by_linear_programming():
    """Against the definition: the lowest mixture of other structures with the same composition."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    fractions = np.vstack([np.eye(5), rng.dirichlet(np.ones(5), 20)])
    energies = rng.normal(size=25) * 0.2
    found = energy_above_hull(fractions, energies, np.arange(25))
    for k in range(25):
        mixture = linprog(energies, A_eq=fractions.T, b_eq=fractions[k])
        assert found[k] == pytest.approx(energies[k] - mixture.fun, abs=1e-6)


def test_distance_to_the_lowest_energy_above_a_fit_of_many_elements():
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.ones(8), 60)
    above = rng.uniform(1, 2, 60)
    found = energy_above_hull(fractions, fractions @ np.arange(8.0) + above, np.arange(60))
    assert found.min() == 0
    assert found - (above - above.min()) == pytest.approx(0, abs=0.5)


def test_energy_weights():
    structures = labelled_structures(8)
    structures = [dataclasses.replace(s, group="", info={}) for s in structures]
    # one element is one composition: the lowest energy counts
    for s in structures:
        s.numbers[:] = 29
    lowest = min(s.energy / s.n_atoms for s in structures[:5])
    data = datamodule(structures, weights="energy")
    batch = data.train_dataset.batch(range(5))
    above = np.array([s.energy / s.n_atoms - lowest for s in structures])
    expected = 1 / (1 + above.clip(min=0)) ** 2
    expected /= expected[:5].mean()
    assert batch[keys.structure_weight].numpy() == pytest.approx(expected[:5])
    assert batch[keys.forces_weight].numpy() == pytest.approx(1)
    assert data.val_dataset[0][keys.structure_weight].item() == pytest.approx(expected[5])
    # what is fitted to the training set takes them
    targets = training_targets(data)
    assert targets.weight == pytest.approx(expected[:5])
    energies = np.array([s.energy / s.n_atoms for s in structures[:5]])
    mean = np.average(energies, weights=expected[:5])
    assert composition_fit(targets)[1] == pytest.approx([mean])


def test_uniform_weights_make_structures_count_alike_in_forces():
    data = datamodule(labelled_structures(8), weights="uniform")
    batch = data.train_dataset.batch(range(5))
    assert batch[keys.structure_weight].tolist() == [1.0] * 5
    sums = np.zeros(5)
    np.add.at(sums, batch["_idx_m"].numpy(), batch[keys.forces_weight].numpy()[:, 0])
    assert sums == pytest.approx([sums[0]] * 5)
    assert batch[keys.forces_weight].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize(("lifted_ev", "weighs"), [(1.9, False), (2.5, True)])
def test_auto_weighs_where_structures_are_far_from_the_hull(lifted_ev, weighs):
    structures = labelled_structures(8)
    for s in structures:
        s.numbers[:], s.energy = 29, 0.0
    structures[2].energy = lifted_ev * structures[2].n_atoms
    data = datamodule(structures, weights="auto")
    batch = data.train_dataset.batch(range(5))
    assert (keys.structure_weight in batch) == weighs
    if weighs:
        weight = batch[keys.structure_weight]
        assert (weight[2] / weight[0]).item() == pytest.approx(1 / 3.5**2)


def test_auto_leaves_data_with_weights_of_their_own_alone(monkeypatch):
    structures = labelled_structures(8)
    structures[2].energy += 100.0
    raw = InMemoryAtomsData._read
    own = {keys.structure_weight: torch.tensor([0.5])}
    monkeypatch.setattr(InMemoryAtomsData, "_read", lambda self: ({**s, **own} for s in raw(self)))
    data = datamodule(structures, weights="auto")
    assert data.train_dataset.batch([2])[keys.structure_weight].tolist() == [0.5]
    with pytest.raises(ValueError, match="weights of its own"):
        datamodule(structures, weights="energy")


def test_weights_by_group():
    structures = labelled_structures(8)
    structures = [dataclasses.replace(s, group="ABAAB"[k % 5]) for k, s in enumerate(structures)]
    data = datamodule(structures, weights={"B": 4.0})
    expected = np.array([1, 4, 1, 1, 4]) / 2.2
    batch = data.train_dataset.batch(range(5))
    assert batch[keys.structure_weight].numpy() == pytest.approx(expected)
    assert batch[keys.forces_weight].numpy() == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"C": 1.0}, "names C, but the data have A, B"),
        ({"A": -1.0}, "not negative"),
        ({"A": "much"}, "could not convert"),
        ({"A": 0.0, "B": 0.0}, "some training one is not 0"),
    ],
)
def test_wrong_weights(weights, message):
    structures = [
        dataclasses.replace(s, group="AB"[k % 2]) for k, s in enumerate(labelled_structures(8))
    ]
    with pytest.raises(ValueError, match=r"data\.weights") as error:
        datamodule(structures, weights=weights)
    assert message in str(error.value)


def test_unknown_scheme():
    with pytest.raises(ValueError, match=r"uniform, energy, auto, .*not 'hull'"):
        datamodule(labelled_structures(8), weights="hull")


def test_excluded_structures_neither_train_nor_validate(caplog, tmp_path):
    (tmp_path / "wrong.txt").write_text("1 6\n7\n")
    for exclude in ([1, 6, 7], "wrong.txt"):
        caplog.clear()
        with caplog.at_level("INFO"):
            data = datamodule(labelled_structures(8), exclude=exclude)
        assert data.train_idx == [0, 2, 3, 4]
        assert data.val_idx == [5]
        assert data.test_idx == [7]
        assert "1 structures left out of training, 1 of validation" in caplog.text


@pytest.mark.parametrize(
    ("exclude", "message"),
    [([8], "names structure 8;"), (["a"], "no number"), ("none.txt", "cannot be read")],
)
def test_wrong_exclusions(exclude, message):
    with pytest.raises(ValueError, match=r"data\.exclude") as error:
        datamodule(labelled_structures(8), exclude=exclude)
    assert message in str(error.value)
