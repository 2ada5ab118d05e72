"""Batches equal those of SchNetPack's own collation, and share no memory with the data."""

import numpy as np
import pytest
import torch
from schnetpack import properties
from schnetpack.data.loader import _atoms_collate_fn
from schnetpack.transform import CastTo32, CollectAtomTriples, MatScipyNeighborList

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.dataset import InMemoryAtomsData
from schnetpack_softadapt.data.ragged import RaggedSamples, joined_ranges


@pytest.fixture
def dataset(tmp_path, structures):
    write_database(tmp_path / "my.db", structures, "test")
    dataset = InMemoryAtomsData(str(tmp_path / "my.db"))
    dataset.transforms = [MatScipyNeighborList(cutoff=4.0), CollectAtomTriples(), CastTo32()]
    return dataset


@pytest.mark.parametrize("indices", [[0], [2, 0, 5], [3, 3], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("cached", [True, False])
def test_batches_equal_schnetpacks(dataset, indices, cached):
    reference = _atoms_collate_fn([dataset[k] for k in indices])
    dataset.cache_transforms = cached
    batch = dataset.batch(indices)
    assert batch.keys() == reference.keys()
    for key, value in reference.items():
        assert batch[key].dtype == value.dtype, key
        assert torch.equal(batch[key], value), key


@pytest.mark.parametrize("cached", [True, False])
def test_nothing_that_a_model_does_to_a_batch_reaches_the_data(dataset, cached):
    """The model sets requires_grad on positions, strains cells and overwrites energies in place."""
    dataset.cache_transforms = cached
    before = {key: value.clone() for key, value in dataset.batch([1]).items()}
    batch, sample = dataset.batch([1]), dataset[1]
    batch[properties.R].requires_grad_()
    for value in [*batch.values(), *sample.values()]:
        value.detach().zero_()
    after = dataset.batch([1])
    assert not after[properties.R].requires_grad
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_transforms_in_place_do_not_reach_the_raw_data(dataset):
    class Shift(torch.nn.Module):
        def forward(self, inputs):
            inputs[properties.energy] -= 1.0
            inputs[properties.R] += 1.0
            return inputs

    before = dataset[0]
    for _ in range(2):
        dataset.transforms = [MatScipyNeighborList(cutoff=4.0), Shift()]
        assert torch.allclose(dataset[0][properties.energy], before[properties.energy] - 1.0)
        assert torch.allclose(dataset[0][properties.R].float(), before[properties.R] + 1.0)


def test_samples_that_do_not_go_together_are_refused():
    n_atoms = {properties.n_atoms: torch.tensor([1])}
    with pytest.raises(ValueError, match=r"structure 1 differs from the others in \['a'\]"):
        RaggedSamples([n_atoms, {**n_atoms, "a": torch.zeros(1)}])
    with pytest.raises(ValueError, match="'a' differs in shape"):
        RaggedSamples([{**n_atoms, "a": torch.zeros(1, k)} for k in (2, 3)])


def test_joined_ranges():
    joined = joined_ranges(np.array([5, 0, 7]), np.array([2, 0, 3]))
    assert joined.tolist() == [5, 6, 7, 8, 9]
