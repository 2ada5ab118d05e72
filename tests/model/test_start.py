"""Models that start from smaller ones have their energies."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.descriptors.ace import ClusterExpansion
from schnetpack_softadapt.model import (
    ZBL,
    DescriptorPotential,
    DescriptorRepresentation,
    ElementalAtomwise,
    ForcesAndStress,
)
from schnetpack_softadapt.model.start import start_from


def potential(n_functions=12, elements=("Mo",), scaling="sigma", cutoff=4.0, seed=0, **network):
    """Random weights, constants, scale and statistics, which may be of any data."""
    torch.manual_seed(seed)
    descriptor = ClusterExpansion(elements, cutoff, n_functions=n_functions)
    networks = ElementalAtomwise(
        shifts=dict.fromkeys(elements, -3.0 - seed), dtype="float64", **network
    )
    model = DescriptorPotential(
        representation=DescriptorRepresentation(descriptor, scaling),
        output_modules=[networks, ForcesAndStress(True, True)],
    ).double()
    for parameter in networks.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    networks.scale.fill_(0.5 + seed)
    rng = np.random.default_rng(seed)
    size = (len(elements), n_functions)
    mean, sigma = rng.normal(size=size), rng.uniform(0.5, 2.0, size)
    model.representation.scaling.set_statistics(mean - 3 * sigma, mean + 3 * sigma, mean, sigma)
    model.metadata = {"units": {"energy": "eV", "length": "Ang"}}
    return model


def predictions(model):
    atoms = bulk("Mo", cubic=True).repeat(2)
    atoms.rattle(0.2, seed=0)
    atoms.calc = SoftAdaptCalculator(model)
    return np.concatenate([[atoms.get_potential_energy()], atoms.get_forces().ravel()])


NETWORK = {"n_hidden": [4, 3], "activation": "softplus"}
QUADRATIC = {"n_hidden": [], "quadratic": True, "n_functions": 5}
DENSITIES = {"n_hidden": [2], "activation": "finnis_sinclair"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NETWORK, NETWORK),
        (NETWORK, {**NETWORK, "n_functions": 30, "n_hidden": [6, 5]}),
        (NETWORK, {**NETWORK, "n_functions": 80, "elements": ["Te", "Mo"]}),
        ({"n_hidden": []}, {"n_hidden": [], "n_functions": 30, "scaling": "center"}),
        ({"n_hidden": []}, {**DENSITIES, "n_functions": 30}),
        (DENSITIES, {**DENSITIES, "n_functions": 30, "n_hidden": [5]}),
        (QUADRATIC, {**QUADRATIC, "n_functions": 7}),
    ],
    ids=["same", "larger", "element", "linear", "linear to densities", "densities", "quadratic"],
)
def test_has_the_energies_of_the_smaller_model(old, new):
    source, model = potential(**old), potential(seed=1, **new)
    expected = predictions(source)
    assert np.abs(predictions(model) - expected).max() > 0.1
    start_from(model, source)
    # energies of 16 atoms, sums of weights times values up to 100
    np.testing.assert_allclose(predictions(model), expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(predictions(source), expected)
    torch.testing.assert_close(
        [b for b in model.output_modules[0].biases if not b.requires_grad],
        [torch.zeros_like(b) for b in model.output_modules[0].biases if not b.requires_grad],
    )


def test_larger_models_can_leave_the_start():
    """No weight of a new function or neuron has a gradient of zero for good."""
    source, model = potential(**NETWORK), potential(30, seed=1, n_hidden=[6, 5])
    model.output_modules[0].activations = source.output_modules[0].activations
    start_from(model, source)
    networks = model.output_modules[0]
    x = torch.randn(9, 30, dtype=torch.float64)
    for _ in range(2):
        networks.atomic_energies(x, torch.full((9,), 42)).square().sum().backward()
        with torch.no_grad():
            for p in networks.parameters():
                p -= 1e-3 * p.grad
    assert all((p.grad != 0).all() for p in networks.parameters())


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({**NETWORK, "n_functions": 11}, "has the function"),
        ({**NETWORK, "cutoff": 4.1}, "cutoff 4 Ang, this one not"),
        ({**NETWORK, "elements": ["W"]}, "has Mo, this one not"),
        ({**NETWORK, "n_hidden": [4, 2]}, "has 4 softplus, 3 softplus, this one 4 softplus, 2"),
        ({**NETWORK, "activation": "tanh"}, "of the same kind"),
        ({"n_hidden": []}, "this one linear"),
    ],
)
def test_others_are_refused(new, words):
    with pytest.raises(ValueError, match=words):
        start_from(potential(**new), potential(**NETWORK))


def test_another_baseline_is_refused():
    source = potential(**NETWORK)
    source.postprocessors.append(ZBL.of_elements([42], inner=1.0, outer=2.0))
    with pytest.raises(ValueError, match="give both the same"):
        start_from(potential(**NETWORK), source)
