"""Compiled networks against ElementalAtomwise with autograd."""

import numpy as np
import pytest
import torch

from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.model.atomwise import ACTIVATIONS, ElementalAtomwise
from schnetpack_softadapt.model.compiled_networks import ACTIVATION_CODES, CompiledNetworks

SIZES = {1: 9, 8: 11, 42: 7}  # descriptors of each element, none a multiple of four


def modules(sizes, n_hidden, activation, dtype=torch.float64, seed=0, **arguments):
    torch.manual_seed(seed)
    networks = ElementalAtomwise(sizes, list(sizes), n_hidden, activation, **arguments)
    for parameter in networks.parameters() if networks.quadratic else networks.biases:
        torch.nn.init.normal_(parameter)
    networks.scale.fill_(0.6)
    scaling = Scaling(sizes)
    with torch.no_grad():
        scaling.shift.normal_()
        scaling.factor.mul_(1.0 + torch.rand(scaling.factor.shape))
    return networks.to(dtype), scaling.to(dtype)


def by_autograd(networks, scaling, g, numbers):
    g = torch.from_numpy(g).requires_grad_()
    energies = networks.atomic_energies(scaling(g, numbers), numbers)
    (gradient,) = torch.autograd.grad(energies.sum(), g)
    return energies.detach().numpy(), gradient.numpy()


def compare(networks, scaling, numbers, spread=1.0, atol=1e-13):
    numbers = torch.as_tensor(numbers)
    g = spread * np.random.default_rng(1).normal(size=(len(numbers), scaling.shift.shape[1]))
    energies, gradient = CompiledNetworks(networks, scaling)(scaling.index(numbers).numpy(), g)
    expected = by_autograd(networks.double(), scaling.double(), g, numbers)
    np.testing.assert_allclose(energies, expected[0], rtol=0, atol=atol)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=atol)


# single atoms, one element, more than a block of 32 of an element, and an element that is absent
@pytest.mark.parametrize("numbers", [[8], [1, 42] * 50 + [8], [1] * 33 + [42], [8] * 64, []])
@pytest.mark.parametrize("n_hidden", [(), (5,), (16, 16), (7, 3, 4)])
def test_equals_autograd(n_hidden, numbers):
    numbers = torch.tensor(numbers, dtype=torch.int64)
    compare(*modules(SIZES, n_hidden, "tanh"), numbers)
    compare(*modules({8: 11}, n_hidden, "tanh"), numbers[numbers == 8])


def test_quadratic_models_equal_autograd():
    numbers = [1, 42] * 50 + [8]
    compare(*modules(SIZES, (), "tanh", quadratic=True), numbers, atol=1e-11)
    compare(*modules({8: 1}, (), "tanh", quadratic=True), [8] * 40)


@pytest.mark.parametrize("spread", [1e-8, 1.0, 100.0])
@pytest.mark.parametrize("activation", sorted(ACTIVATION_CODES))
def test_activations(activation, spread):
    # inputs of 100 reach the asymptotes, where values grow with them; softplus at 20 jumps by 2e-9
    numbers = [1, 8, 42] * 20
    # an odd number of layers: wrong signs of two slopes would cancel
    compare(*modules(SIZES, (6, 5, 4), activation), numbers, spread, 1e-13 * max(1.0, spread))


def test_layers_may_have_their_own_activation():
    networks, scaling = modules(SIZES, (6, 5, 4), "tanh")
    networks.activations = ("cos", "identity", "sigmoid")
    compare(networks, scaling, [1, 8, 42, 1])


def test_float32_parameters_are_computed_with_in_float64():
    networks, scaling = modules(SIZES, (16, 16), "tanh", torch.float32)
    compare(networks, scaling, [1, 8, 42] * 9)


def test_follows_the_parameters():
    networks, scaling = modules(SIZES, (6,), "tanh")
    compare(networks, scaling, [1, 8])
    networks.weights[0].data.mul_(1.5)  # in place, past torch's count of versions
    scaling.shift = scaling.shift + 0.1
    networks.scale.fill_(2.0)
    compare(networks, scaling, [1, 8])


def test_nan_stays_with_its_atom():
    networks, scaling = modules(SIZES, (6, 5), "tanh")
    numbers = np.array([8] * 40 + [1])
    g = np.ones((len(numbers), 11))
    g[3, 2] = np.nan
    energies, gradient = CompiledNetworks(networks, scaling)(
        scaling.index(torch.from_numpy(numbers)).numpy(), g
    )
    assert np.flatnonzero(np.isnan(energies)).tolist() == [3]
    assert np.flatnonzero(np.isnan(gradient).any(1)).tolist() == [3]


def test_all_activations_are_known():
    assert set(ACTIVATIONS) == set(ACTIVATION_CODES)
