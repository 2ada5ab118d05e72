"""Evaluation by compiled loops against the same model by SchNetPack's modules and autograd."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from schnetpack import properties
from schnetpack.atomistic import PairwiseDistances, Strain
from schnetpack.interfaces import AtomsConverter
from schnetpack.model import NeuralNetworkPotential
from schnetpack.transform import AddOffsets, CastTo64
from torch import nn

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.neighborlist import NeighborList
from schnetpack_softadapt.model import (
    ACSF,
    DescriptorPotential,
    ElementalAtomwise,
    ElementShift,
    ForcesAndStress,
)
from schnetpack_softadapt.model.direct import evaluate_directly

CUTOFF = 4.0
SYMBOLS = ("Cu", "Au")


def crystal(seed=0, symbols=SYMBOLS):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.symbols = rng.choice(symbols, len(atoms))
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def left_handed():
    atoms = crystal(5)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return atoms


def slab():
    atoms = crystal(6)
    atoms.pbc = (True, False, True)
    return atoms


def batch_of(*structures, dtype=torch.float64):
    return AtomsConverter(NeighborList(CUTOFF), dtype=dtype)(list(structures))


def potential(elements=SYMBOLS, representation=None, response=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    networks = ElementalAtomwise(
        n_hidden=(6, 5),
        activation=kwargs.pop("activation", "tanh"),
        per_atom_output_key=keys.atomic_energies,
        shifts={symbol: -1000.0 * k - 3.0 for k, symbol in enumerate(elements)},
    )
    model = DescriptorPotential(
        representation=representation or ACSF(CUTOFF, elements, grid={"n_radial": 3}),
        output_modules=[networks, response or ForcesAndStress(True, True)],
        **kwargs,
    ).double()
    networks.scale.fill_(0.7)
    for bias in networks.biases:
        nn.init.normal_(bias)
    scaling = model.representation.scaling
    scaling.shift.copy_(0.1 * torch.randn(scaling.shift.shape))
    scaling.factor.mul_(1.0 + torch.rand(scaling.factor.shape))
    return model.eval()


def goes_directly(model, *structures):
    return evaluate_directly(model, batch_of(*(structures or [crystal()])))


def compare(model, *structures, dtype=torch.float64, tolerance=1e-12):
    batch = batch_of(*structures, dtype=dtype)
    direct = model(dict(batch))
    modules = NeuralNetworkPotential.forward(model, dict(batch))
    assert set(direct) == set(modules) == set(model.model_outputs)
    for key, expected in modules.items():
        assert direct[key].shape == expected.shape
        assert direct[key].dtype == expected.dtype
        assert direct[key].is_contiguous()
        assert not direct[key].requires_grad
        expected = expected.detach()
        atol = tolerance * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(direct[key], expected, rtol=0.0, atol=atol, msg=key)


@pytest.mark.parametrize(
    "structures",
    [
        [crystal()],
        [crystal(1), left_handed(), slab(), crystal(2)],
        [crystal(3, ("Au",))],  # one of the two elements is absent
        [Atoms("Cu", cell=[20] * 3, pbc=True), crystal(4)],
        [Atoms("Au", cell=[20] * 3, pbc=True)],
    ],
    ids=["single", "batch", "absent element", "isolated atom in a batch", "isolated atom"],
)
def test_equals_the_modules(structures):
    model = potential()
    assert goes_directly(model, *structures)
    compare(model, *structures)


def test_single_element():
    model = potential(("Cu",))
    assert goes_directly(model, crystal(0, ("Cu",)))
    compare(model, crystal(0, ("Cu",)), crystal(1, ("Cu",)))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_other_activations(activation):
    model = potential(activation=activation)
    assert goes_directly(model)
    compare(model, crystal(), crystal(1))


def test_float32():
    model = potential().float()
    assert evaluate_directly(model, batch_of(crystal(), dtype=torch.float32))
    # the modules round positions and networks to float32
    compare(model, crystal(), crystal(1), dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize(("forces", "stress"), [(True, False), (False, True)])
def test_what_is_not_asked_for_is_not_written(forces, stress):
    model = potential(response=ForcesAndStress(forces, stress))
    assert goes_directly(model)
    compare(model, crystal(), crystal(1))


def test_molecule_without_stress():
    model = potential(response=ForcesAndStress(True, False), input_modules=[PairwiseDistances()])
    molecule = Atoms("Cu2Au", positions=[[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0.3]])
    assert goes_directly(model, molecule)
    compare(model, molecule)


def test_postprocessors():
    offsets = AddOffsets("energy", add_mean=True, add_atomrefs=True)
    offsets.mean = torch.tensor(0.3)
    offsets.atomref = torch.linspace(-1.0, 1.0, 100)
    model = potential(postprocessors=[CastTo64(), offsets, ElementShift(shifts={"Au": 2.0})])
    assert goes_directly(model)
    compare(model, crystal(), crystal(1))


def test_a_further_strain_changes_nothing():
    model = potential(input_modules=[Strain(), Strain(), PairwiseDistances()])
    assert goes_directly(model)
    compare(model, crystal())


def test_structures_without_stress_label():
    model = potential()
    molecule = Atoms("CuAu", positions=[[0, 0, 0], [2.4, 0, 0]])
    batch = batch_of(crystal(), molecule)
    with pytest.raises(ValueError, match="stress of structure 1 of the batch"):
        model(dict(batch))
    batch[keys.stress_mask] = torch.tensor([1.0, 0.0])
    assert evaluate_directly(model, dict(batch))
    direct, modules = model(dict(batch)), NeuralNetworkPotential.forward(model, dict(batch))
    torch.testing.assert_close(direct["stress"], modules["stress"], rtol=0.0, atol=1e-12)
    assert not direct["stress"][1].any()


def test_unknown_element_is_named():
    with pytest.raises(ValueError, match="Fe"):
        potential()(batch_of(Atoms("CuFe", positions=[[0, 0, 0], [2.4, 0, 0]])))


def test_the_input_stays_as_it_is():
    batch = batch_of(crystal())
    before = {key: value.clone() for key, value in batch.items()}
    potential()(dict(batch))
    assert all(torch.equal(before[key], batch[key]) for key in before)
    assert not batch[properties.R].requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_needs_no_graph(mode):
    model = potential()
    expected = model(batch_of(crystal()))
    with mode():
        found = model(batch_of(crystal()))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_follows_new_parameters():
    model = potential()
    first = model(batch_of(crystal()))["energy"]
    with torch.no_grad():
        model.output_modules[0].weights[0].mul_(1.1)
    assert model(batch_of(crystal()))["energy"] != first
    compare(model, crystal())


class Doubled(nn.Module):
    def forward(self, inputs):
        return {**inputs, "energy": 2.0 * inputs["energy"]}


class MyACSF(ACSF):
    def forward(self, inputs):
        return super().forward(inputs)


def of_one_element():
    """Networks that lack an element of the descriptor."""
    model = potential()
    model.output_modules[0].build(["Cu"], model.representation.n_atom_basis)
    return model.eval()


def with_hook(register):
    model = potential()
    getattr(model.output_modules[0], register)(lambda *args: None)
    return model


@pytest.mark.parametrize(
    "model",
    [
        of_one_element(),
        potential(representation=ACSF(CUTOFF, SYMBOLS, backend="reference")),
        potential(representation=MyACSF(CUTOFF, SYMBOLS)),
        potential(response=ForcesAndStress(False, False)),
        potential(response=ForcesAndStress(True, True, energy_key="other")),
        potential(input_modules=[PairwiseDistances()]),
        potential(input_modules=[]),
        potential(input_modules=[PairwiseDistances(), Strain()]),
        potential(postprocessors=[Doubled()]),
        with_hook("register_forward_hook"),
        with_hook("register_forward_pre_hook"),
        with_hook("register_full_backward_hook"),
        potential().train(),
    ],
)
def test_anything_unusual_goes_through_the_modules(model):
    batch = batch_of(crystal())
    entries = set(batch)
    assert not evaluate_directly(model, batch)
    assert set(batch) == entries
