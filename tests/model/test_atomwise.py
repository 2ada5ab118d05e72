"""Per-element networks: the sum over atoms, padding, elements, energies per atom."""

import numpy as np
import pytest
import torch
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.elements import UnknownElementError
from schnetpack_softadapt.model import ElementalAtomwise
from schnetpack_softadapt.model.atomwise import _tiles
from schnetpack_softadapt.model.hidden_widths import hidden_widths

MO, TE, H = 42, 52, 1


def batch(numbers, n_atoms, x):
    n_atoms = torch.tensor(n_atoms)
    return {
        properties.Z: torch.tensor(numbers),
        properties.n_atoms: n_atoms,
        properties.idx_m: torch.repeat_interleave(torch.arange(len(n_atoms)), n_atoms),
        keys.scalar_representation: x,
    }


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ElementalAtomwise(
        n_in={"Mo": 3, "Te": 5, "H": 4},
        elements=["Te", "Mo", "H"],
        n_hidden=[6, 4],
        per_atom_output_key="atomic",
        shifts={"Mo": -5.0, "Te": -2.5, "H": -0.5},
    ).double()


def loop_energies(model, numbers, x):
    """The same sum written as a loop over atoms, with numpy."""
    energies = []
    for z, row in zip(numbers, x.numpy(), strict=True):
        k = model.elements.index(z)
        y = row[: model.n_in[z]]
        for layer, (w, b) in enumerate(zip(model.weights, model.biases, strict=True)):
            w = w[k].detach().numpy()[: len(y)]
            y = y @ w + b[k, 0].detach().numpy()
            if layer < len(model.weights) - 1:
                y = np.tanh(y)
        energies.append(y[0] * model.scale.item() + {MO: -5.0, TE: -2.5, H: -0.5}[z])
    return np.array(energies)


def test_equals_a_loop_over_atoms(model):
    numbers = [TE, MO, H, H, TE, TE, MO]
    x = torch.randn(7, 5, dtype=torch.float64)
    for row, z in enumerate(numbers):
        x[row, model.n_in[z] :] = 0.0  # the representation pads with zeros
    model.scale.fill_(1.7)
    inputs = model(batch(numbers, [3, 4], x))
    expected = loop_energies(model, numbers, x)
    # one and the same sum in another order: rounding only
    np.testing.assert_allclose(inputs["atomic"][:, 0].detach(), expected, rtol=1e-13)
    np.testing.assert_allclose(
        inputs["energy"].detach(), [expected[:3].sum(), expected[3:].sum()], rtol=1e-13
    )
    assert inputs["energy"].shape == (2,)
    assert inputs["atomic"].shape == (7, 1)


def test_padded_weights_get_no_gradient(model):
    numbers = [MO, MO, TE]
    x = torch.randn(3, 5, dtype=torch.float64)
    x[:2, 3:] = 0.0
    model(batch(numbers, [3], x))["energy"].sum().backward()
    assert model.weights[0].grad[model.elements.index(MO), 3:].abs().max() == 0
    assert model.weights[0].grad[model.elements.index(TE)].abs().min() > 0
    assert model.weights[0].grad[model.elements.index(H)].abs().max() == 0


def test_batch_with_one_element_only(model):
    x = torch.randn(1, 5, dtype=torch.float64)
    inputs = model(batch([TE], [1], x))
    np.testing.assert_allclose(inputs["energy"].detach(), loop_energies(model, [TE], x), rtol=1e-13)


def test_second_derivatives(model):
    x = torch.randn(4, 5, dtype=torch.float64)
    numbers = torch.tensor([MO, TE, TE, H])
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: model.atomic_energies(v, numbers), x)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_tiles_of_a_gpu_equal_the_table_of_the_cpu(model, size):
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([2, 0, 0, 2, 2, 0, 2, 2])  # none of element 1
    x = torch.randn(len(rows), 5, dtype=torch.float64, generator=generator)

    def energies(size):
        slot, shape, element = _tiles(rows, 3, size)
        packed = x.new_zeros(shape[0] * shape[1], 5).index_copy(0, slot, x)
        return model._networks(packed.view(*shape, 5), element).flatten()[slot], shape

    (expected, _), (found, (n_tiles, _)) = energies(None), energies(size)
    assert n_tiles * size <= len(rows) + 3 * size
    # products of other shapes: float64 rounding of a few terms
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    of_table, of_tiles = (torch.autograd.grad(e.sum(), model.weights) for e in (expected, found))
    torch.testing.assert_close(of_tiles, of_table, rtol=1e-12, atol=1e-13)


def test_energy_keeps_the_digits_of_float64_in_a_float32_model():
    model = ElementalAtomwise(2, ["Mo"], n_hidden=[2], shifts={"Mo": -110123.456789}).float()
    model.to(torch.float32)
    inputs = model(batch([MO] * 10, [10], torch.zeros(10, 2)))
    # the network's output is zero for zero input and zero biases
    assert inputs["energy"].dtype == torch.float64
    assert inputs["energy"].item() == pytest.approx(-1101234.56789, abs=1e-8)


def test_unknown_element_is_named(model):
    with pytest.raises(UnknownElementError, match="does not know Au"):
        model(batch([79, MO], [2], torch.zeros(2, 5, dtype=torch.float64)))


def test_without_networks_says_what_to_do():
    with pytest.raises(RuntimeError, match="initialize_transforms"):
        ElementalAtomwise()(batch([MO], [1], torch.zeros(1, 2)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"activation": "relu6"}, "unknown activation"),
        ({"n_hidden": [0]}, "at least one neuron"),
        ({"n_hidden": "A6"}, "neither a list of widths nor a network of type A or B"),
        ({"n_in": {"Mo": 3}, "elements": ["Mo", "Te"]}, "n_in lacks"),
        ({"n_in": 3, "elements": ["Mo", "Mo"]}, "twice"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ElementalAtomwise(**kwargs)


def test_element_index_is_ascending():
    index = ElementIndex(["Te", 1, "Mo"])
    assert index.elements == (1, 42, 52)
    assert index(torch.tensor([52, 1, 42])).tolist() == [2, 0, 1]


def test_widths_follow_the_largest_number_of_descriptors():
    """Type A starts below D and type B at 2 D; both go down to zero in as many steps as layers."""
    assert hidden_widths("A3", 16) == (12, 8, 4)
    assert hidden_widths("B3", 15) == (30, 20, 10)
    assert hidden_widths("A5", 5) == (4, 3, 2, 2, 1)
    networks = ElementalAtomwise({"Mo": 8, "Te": 14}, ["Mo", "Te"], "B2", "softplus")
    assert [tuple(w.shape) for w in networks.weights] == [(2, 14, 28), (2, 28, 14), (2, 14, 1)]
    assert networks.activations == ("softplus", "softplus")


def test_densities():
    """Against the general form for an exponent m, with x = 1 / m: |rho| is shifted by
    x^(x / (1 - x)) e^-|rho|, its power by x^(1 / (1 - x)) e^-|rho|, so that it starts from zero."""
    model = ElementalAtomwise(3, ["Mo"], n_hidden=[3], activation="finnis_sinclair").double()
    x = torch.tensor([[0.0, 0, 0], [1, -2, 0.5], [-40, 3, 60], [1e-9, 0, 0]]).double()
    x.requires_grad_()
    energies = model.atomic_energies(x, torch.full((4,), MO))
    rho = (x @ model.weights[0][0]).detach().numpy()
    m, size = 0.5, np.abs(rho[:, 1:])
    shift, lowered = (1 / m) ** (1 / m / (1 - 1 / m)), (1 / m) ** (1 / (1 - 1 / m))
    e = np.exp(-size)
    rho[:, 1:] = np.sign(rho[:, 1:]) * ((size + shift * e) ** m - lowered * e)
    expected = rho @ model.weights[1][0, :, 0].detach().numpy()
    np.testing.assert_allclose(energies.detach().numpy(), expected, rtol=0, atol=1e-13)
    assert expected[0] == 0.0
    # an atom alone has the slope 5/4 of all of its neighbourhood
    (slopes,) = torch.autograd.grad(energies.sum(), x)
    first = model.weights[0][0] * torch.tensor([1.0, 1.25, 1.25])
    torch.testing.assert_close(slopes[0], (first @ model.weights[1][0])[:, 0], rtol=1e-13, atol=0)
    assert [bias.requires_grad for bias in model.biases] == [False, True]
