"""Every backend against another code, brute force, finite differences and symmetry."""

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import KernelCalls, ReferenceCalls, tensors, values_of
from n2p2_reference import NAMES, load

from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.autograd import pair_descriptors

CELL = np.eye(3) * 30.0  # of clusters: wide enough for matscipy's neighbour list


@pytest.fixture(params=["reference", "kernels"])
def make_backend(request):
    """Builds the backend of a layout."""
    if request.param == "reference":
        return ReferenceCalls
    return KernelCalls


def cluster_input(layout, positions, numbers, dtype=torch.float64):
    pairs = bf.pairs_of(positions, CELL, False, layout.cutoff)
    return tensors(*pairs, numbers, dtype=dtype)


def crystal_input(layout, displacement=0.1, dtype=torch.float64):
    positions, cell, numbers = bf.perturbed_crystal(displacement)
    return tensors(*bf.pairs_of(positions, cell, True, layout.cutoff), numbers, dtype=dtype)


# --- values


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_another_code(make_backend, name):
    potential = load(name)
    backend = make_backend(potential.layout)
    g = values_of(backend, potential.positions, potential.cell, True, potential.numbers)
    # 17 digits in the file, sums of some thousand positive terms on both sides
    np.testing.assert_allclose(g, potential.padded("G_unscaled.txt"), rtol=1e-12, atol=0)


def test_values_agree_with_brute_force(make_backend):
    layout = bf.mixed_layout()
    for inputs in (
        cluster_input(layout, *bf.random_cluster(9)),
        crystal_input(layout),
    ):
        expected = bf.brute_force(layout, *(x.numpy() for x in inputs))
        assert (expected != 0).sum() > 10
        g = make_backend(layout).values(*inputs)
        assert g.dtype == torch.float64
        assert g.shape == expected.shape
        # 1e-14 absolute: (cos(pi x) + 1) / 2 cancels near the cutoff
        np.testing.assert_allclose(g.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_modified_angular_function_of_a_right_angle(make_backend):
    """Smith 2017, eq. 4, by hand: 2^(1-zeta) exp(-eta (mean - r_s)^2) f_c(1.2) f_c(1.6)."""
    f = SymmetryFunction("ANI", (1, 8), 4.0, 2.0, 1.5, zeta=3)
    r_ij = np.array([[1.2, 0.0, 0.0], [0.0, 1.6, 0.0]])
    layout = Layout.from_dict(Layout({"H": [f], "O": [f]}).to_dict())
    g = make_backend(layout).values(*tensors(r_ij, [0, 0], [1, 2], np.array([1, 1, 8])))
    cut = np.prod(0.5 * (np.cos(np.pi * np.array([1.2, 1.6]) / 4.0) + 1.0))
    np.testing.assert_allclose(g[0, 0], 0.25 * np.exp(-2.0 * 0.1**2) * cut, rtol=1e-14)


def test_columns_beyond_the_functions_of_an_element_are_zero(make_backend):
    layout = bf.mixed_layout()
    inputs = crystal_input(layout)
    g = make_backend(layout).values(*inputs)
    assert torch.all(g[inputs[3] == 8, layout.n_functions[8] :] == 0)


def test_pairs_beyond_the_cutoff_do_not_count(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    positions, cell, numbers = bf.perturbed_crystal()
    g = values_of(backend, positions, cell, True, numbers)
    pairs = tensors(*bf.pairs_of(positions, cell, True, layout.cutoff + 2.0), numbers)
    # another order of the same terms
    np.testing.assert_allclose(backend.values(*pairs).numpy(), g, rtol=1e-13)
    grad_g = torch.ones(g.shape, dtype=torch.float64)
    beyond = torch.linalg.norm(pairs[0], dim=1) >= layout.cutoff
    assert torch.all(backend.vjp(*pairs, grad_g)[beyond] == 0)


def test_float32_agrees_with_float64(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    single = crystal_input(layout, dtype=torch.float32)
    double = (single[0].double(), *single[1:])
    numbers = single[3]
    for a, b, elements in (
        (backend.values(*single), backend.values(*double), numbers),
        (
            bf.pair_jacobian(backend, single),
            bf.pair_jacobian(backend, double),
            numbers[single[1]],
        ),
        # of an expansion, whose terms do not cancel
        (backend.jvp(*single, single[0]), backend.jvp(*double, double[0]), numbers),
    ):
        assert a.dtype == torch.float32
        # float32 rounds at 6e-8; large exponents and a few hundred terms of both signs add to that
        bf.assert_columns_close(a.double(), b, elements, 3e-6)


# --- symmetry


def test_rotation_and_reflection(make_backend):
    backend = make_backend(bf.mixed_layout())
    positions, cell, numbers = bf.perturbed_crystal()
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    g = values_of(backend, positions, cell, True, numbers)
    for matrix in (q, -q):  # one is a rotation, the other a rotation with a reflection
        np.testing.assert_allclose(
            values_of(backend, positions @ matrix, cell @ matrix, True, numbers), g, rtol=1e-11
        )


def test_translation_permutation_and_wrapping(make_backend):
    backend = make_backend(bf.mixed_layout())
    positions, cell, numbers = bf.perturbed_crystal()
    g = values_of(backend, positions, cell, True, numbers)
    moved = positions + np.array([0.3, -7.1, 2.2])
    # differences of positions near 10 Ang carry 1e-15 Ang
    np.testing.assert_allclose(values_of(backend, moved, cell, True, numbers), g, rtol=1e-11)
    wrapped = positions.copy()
    wrapped[1] += cell[0] - 2 * cell[2]
    np.testing.assert_allclose(values_of(backend, wrapped, cell, True, numbers), g, rtol=1e-11)
    order = np.array([2, 0, 1])
    permuted = values_of(backend, positions[order], cell, True, numbers[order])
    np.testing.assert_allclose(permuted, g[order], rtol=1e-11)


def test_supercell(make_backend):
    backend = make_backend(bf.mixed_layout())
    positions, cell, numbers = bf.perturbed_crystal()
    g = values_of(backend, positions, cell, True, numbers)
    doubled = np.concatenate([positions, positions + cell[1]])
    big = cell * np.array([[1.0], [2.0], [1.0]])
    big_g = values_of(backend, doubled, big, True, np.tile(numbers, 2))
    np.testing.assert_allclose(big_g, np.tile(g, (2, 1)), rtol=1e-11)


def test_isolated_atoms_and_an_empty_pair_list(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    positions, numbers = bf.random_cluster(5)
    positions = np.concatenate([positions, [[20.0, 20.0, 20.0]]])
    numbers = np.append(numbers, 8)
    inputs = cluster_input(layout, positions, numbers)
    g = backend.values(*inputs)
    assert torch.all(g[-1] == 0)
    # the others do not notice
    without = (*inputs[:3], inputs[3][:-1])
    torch.testing.assert_close(g[:-1], backend.values(*without), rtol=0, atol=0)
    grad_g = torch.ones_like(g)
    vjp, expected = backend.vjp(*inputs, grad_g), backend.vjp(*without, grad_g[:-1])
    torch.testing.assert_close(vjp, expected, rtol=0, atol=0)

    no_pairs = tensors(np.zeros((0, 3)), *np.zeros((2, 0), int), np.array([8, 1]))
    assert torch.equal(backend.values(*no_pairs), torch.zeros(2, layout.n_columns).double())
    grad_g = torch.ones(2, layout.n_columns, dtype=torch.float64)
    assert backend.vjp(*no_pairs, grad_g).shape == (0, 3)
    assert torch.all(backend.jvp(*no_pairs, no_pairs[0]) == 0)
    r_ij = no_pairs[0].requires_grad_()
    (grad,) = torch.autograd.grad(pair_descriptors(r_ij, *no_pairs[1:], backend.engine).sum(), r_ij)
    assert grad.shape == (0, 3)


# --- derivatives


def central_difference(backend, inputs, tangent, step=1e-4):
    """dG/dr . tangent to the fourth order in the step.

    With steps of 1e-4 Ang 3e-11 of a function's derivative are left, by rounding. Longer ones carry
    pairs across the cutoff, where second derivatives jump.
    """
    r_ij, *rest = inputs

    def difference(h):
        plus, minus = (backend.values(r_ij + s * h * tangent, *rest) for s in (1, -1))
        return (plus - minus) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


@pytest.mark.parametrize("displacement", [0.1, 0.0], ids=["perturbed", "perfect crystal"])
def test_jvp_and_vjp_against_central_differences(make_backend, displacement):
    # the perfect crystal has collinear atoms, where 1 + lam cos(theta) vanishes
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    inputs = crystal_input(layout, displacement)
    _, idx_i, _, numbers = inputs
    generator = torch.manual_seed(0)
    tangent = torch.randn(inputs[0].shape, dtype=torch.float64, generator=generator)
    jvp = backend.jvp(*inputs, tangent)
    bf.assert_columns_close(jvp, central_difference(backend, inputs, tangent), numbers, 1e-9)

    jacobian = bf.pair_jacobian(backend, inputs)
    zero = torch.zeros(len(numbers), layout.n_columns, dtype=torch.float64)
    product = zero.index_add(0, idx_i, (jacobian * tangent[:, :, None]).sum(1))
    terms = zero.index_add(0, idx_i, (jacobian * tangent[:, :, None]).abs().sum(1))
    assert torch.all((product - jvp).abs() <= 1e-13 * terms)
    # and of several columns at a time
    grad_g = torch.randn(zero.shape, dtype=torch.float64, generator=generator)
    weighted = jacobian * grad_g[idx_i][:, None]
    vjp, terms = backend.vjp(*inputs, grad_g), weighted.abs().sum(2)
    assert torch.all((weighted.sum(2) - vjp).abs() <= 1e-13 * terms + 1e-14)


def test_every_component_against_central_differences(make_backend):
    """Each component of each pair vector by itself: no other term can hide an error."""
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    inputs = cluster_input(layout, *bf.random_cluster(6))
    r_ij, idx_i, _, numbers = inputs
    expected = torch.zeros(*r_ij.shape, layout.n_columns, dtype=torch.float64)
    order = torch.tensor([(idx_i[:p] == idx_i[p]).sum() for p in range(len(idx_i))])
    for n in range(int(order.max()) + 1):
        pairs = (order == n).nonzero()[:, 0]  # one of each atom
        for x in range(3):
            tangent = torch.zeros_like(r_ij)
            tangent[pairs, x] = 1.0
            difference = central_difference(backend, inputs, tangent)
            expected[pairs, x] = difference[idx_i[pairs]]
    jacobian = bf.pair_jacobian(backend, inputs)
    bf.assert_columns_close(jacobian, expected, numbers[idx_i], 1e-9)


def test_derivatives_agree_with_another_code(make_backend):
    """By positions and strain, function by function, in a cell smaller than the cutoffs."""
    potential = load("HO")
    backend = make_backend(potential.layout)
    pairs = bf.pairs_of(potential.positions, potential.cell, True, potential.layout.cutoff)
    inputs = tensors(*pairs, potential.numbers)
    jacobian = bf.pair_jacobian(backend, inputs).numpy()
    n_atoms, dg_dr, dg_dstrain = len(potential.numbers), *potential.jacobian()
    r_ij, idx_i, idx_j = pairs
    found = bf.by_positions(jacobian, idx_i, idx_j, n_atoms)
    bf.assert_columns_close(found, dg_dr, potential.numbers, 1e-13)
    found = bf.by_strain(jacobian, r_ij, idx_i, n_atoms)
    bf.assert_columns_close(found, dg_dstrain, potential.numbers, 1e-13)


def test_gradcheck_and_the_training_path(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    r_ij, *rest = cluster_input(layout, *bf.random_cluster(3))
    r_ij.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: pair_descriptors(r, *rest, backend.engine), r_ij)

    # forces F(w) = -d/dr sum_i E(G_i, w), and the derivative of F by the parameters w
    w = torch.randn(layout.n_columns, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    w.requires_grad_()

    def forces(w):
        energy = torch.tanh(pair_descriptors(r_ij, *rest, backend.engine) @ w).sum()
        return torch.autograd.grad(energy, r_ij, create_graph=True)[0]

    assert torch.autograd.gradcheck(forces, w, fast_mode=True)
    # gradients of gradients: the vector-Jacobian product is linear in what comes from above
    grad_g = torch.randn(3, layout.n_columns, dtype=torch.float64, requires_grad=True)

    def linear(grad_g):
        g = pair_descriptors(r_ij, *rest, backend.engine)
        return torch.autograd.grad(g, r_ij, grad_g, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(linear, grad_g, fast_mode=True)


def test_second_derivative_by_positions_is_nan(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    r_ij, *rest = cluster_input(layout, *bf.random_cluster(4))
    r_ij.requires_grad_()
    energy = pair_descriptors(r_ij, *rest, backend.engine).sum()
    (grad,) = torch.autograd.grad(energy, r_ij, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), r_ij)
    assert torch.all(torch.isnan(second))


def test_training_under_detect_anomaly(make_backend):
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    r_ij, *rest = cluster_input(layout, *bf.random_cluster(4))
    leaf = r_ij.clone().requires_grad_()
    weights = torch.linspace(-1, 1, layout.n_columns, dtype=torch.float64).requires_grad_()

    def loss_of(r_ij):
        energy = torch.tanh(pair_descriptors(r_ij, *rest, backend.engine) * weights).sum()
        return torch.autograd.grad(energy, r_ij, create_graph=True)[0].square().sum()

    (expected,) = torch.autograd.grad(loss_of(leaf), weights)
    with torch.autograd.detect_anomaly():
        for r_ij in (leaf, leaf * 1.0):
            loss = loss_of(r_ij)
            (found,) = torch.autograd.grad(loss, weights, retain_graph=True)
            assert torch.equal(found, expected)
            with pytest.raises(RuntimeError, match=r"second derivative .* was asked for"):
                torch.autograd.grad(loss, r_ij, retain_graph=True)
            weights.grad = leaf.grad = None
            loss.backward()
            assert torch.equal(weights.grad, expected)
            assert leaf.grad.isnan().all()


def test_derivatives_by_the_tangent_path(make_backend):
    """What a second-order optimiser asks for: another derivative of the force loss."""
    layout = bf.mixed_layout()
    backend = make_backend(layout)
    r_ij, *rest = cluster_input(layout, *bf.random_cluster(4))
    r_ij.requires_grad_()
    w = torch.randn(layout.n_columns, dtype=torch.float64, generator=torch.manual_seed(0))
    w.requires_grad_()

    def force_loss(w):
        energy = torch.tanh(pair_descriptors(r_ij, *rest, backend.engine) @ w).sum()
        return torch.autograd.grad(energy, r_ij, create_graph=True)[0].square().sum()

    assert torch.autograd.gradgradcheck(force_loss, w, fast_mode=True)


@pytest.mark.parametrize("cutoff_fn", sorted(CUTOFFS))
def test_smooth_across_the_cutoff(make_backend, cutoff_fn):
    f = [
        SymmetryFunction("G2", (1,), 3.0, 0.01, cutoff_fn=cutoff_fn),
        SymmetryFunction("G4", (1, 1), 3.0, 0.01, cutoff_fn=cutoff_fn),
        SymmetryFunction("G5", (1, 1), 3.0, 0.01, cutoff_fn=cutoff_fn),
        SymmetryFunction("ANI", (1, 1), 3.0, 0.01, 0.5, cutoff_fn=cutoff_fn),
    ]
    backend = make_backend(Layout({"H": f}))
    numbers = np.array([1, 1, 1])
    steps = np.array([-1e-3, -1e-4, -1e-6, 0.0, 1e-6, 1e-3])
    g, slope = [], []
    for step in steps:
        # two atoms at 2 Ang, a third that leaves the sphere of the first
        r_ij = np.array([[2.0, 0, 0], [0, 3.0 + step, 0], [-2.0, 0, 0], [0, -3.0 - step, 0]])
        inputs = tensors(r_ij, [0, 0, 1, 2], [1, 2, 0, 0], numbers)
        tangent = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, -1, 0]]).double()
        g.append(backend.values(*inputs)[0].numpy())
        slope.append(backend.jvp(*inputs, tangent)[0].numpy())
    g, slope = np.array(g), np.array(slope)
    outside = steps >= 0
    assert np.all(g[outside] == g[-1])
    assert np.all(slope[outside] == 0)
    # every function has a continuous first derivative: the value falls with the square of the step
    # and the slope with the step, times at most f'' of 2.2 / Ang^2 (poly, tanh3 fall faster)
    for step, values, slopes in zip(steps[:3], g[:3], slope[:3], strict=True):
        assert np.all(np.abs(values - g[-1]) <= 2 * step**2 + 1e-15)
        assert np.all(np.abs(slopes) <= 4 * abs(step))
