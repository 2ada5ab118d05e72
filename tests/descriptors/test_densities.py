"""Bispectrum and cluster expansion: both engines against each other, differences and symmetry."""

import json
from itertools import product

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import EngineCalls, tensors, values_of
from test_ace import BOX, CONTRACTED, EXPLICIT, POWER, TABLE
from test_snap import CHEM, PLAIN, QUADRATIC

from schnetpack_softadapt.descriptors import compiled_engine
from schnetpack_softadapt.descriptors.autograd import pair_descriptors
from schnetpack_softadapt.descriptors.elements import UnknownElementError
from schnetpack_softadapt.descriptors.protocol import descriptor_from_dict
from schnetpack_softadapt.quantities import VOIGT_COLUMNS, VOIGT_ROWS

DESCRIPTORS = {
    "snap, plain": PLAIN,
    "snap, chem": CHEM,
    "snap, quadratic": QUADRATIC,
    "ace, explicit": EXPLICIT,
    "ace, contracted": CONTRACTED,
    "ace, power": POWER,
    "ace, table": TABLE,
}
each_descriptor = pytest.mark.parametrize("descriptor", DESCRIPTORS.values(), ids=DESCRIPTORS)
each_family = pytest.mark.parametrize("descriptor", [PLAIN, EXPLICIT], ids=["snap", "ace"])


def atoms(descriptor):
    """Positions, cell and numbers of three atoms in a cell shorter than the cutoff."""
    positions, cell, numbers = bf.perturbed_crystal()
    return positions, cell, np.array(descriptor.elements)[(numbers == 8).astype(int)]


def crystal(descriptor, dtype=torch.float64):
    positions, cell, numbers = atoms(descriptor)
    return tensors(*bf.pairs_of(positions, cell, True, descriptor.cutoff), numbers, dtype=dtype)


@each_descriptor
def test_engines_agree(descriptor):
    slow, fast = (EngineCalls(descriptor.engine("cpu", x)) for x in ("reference", "kernels"))
    inputs = crystal(descriptor)
    generator = torch.manual_seed(0)
    grad_g = torch.randn(3, descriptor.n_columns, dtype=torch.float64, generator=generator)
    tangent = torch.randn(inputs[0].shape, dtype=torch.float64, generator=generator)
    for method, argument in (("values", ()), ("vjp", (grad_g,)), ("jvp", (tangent,))):
        found, expected = (getattr(x, method)(*inputs, *argument) for x in (fast, slow))
        size = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13 * size)


@each_descriptor
def test_jacobian_is_that_of_the_products(descriptor):
    """Images of an atom in its own environment included."""
    backend, inputs = EngineCalls(descriptor.engine("cpu", "kernels")), crystal(descriptor)
    r_ij, idx_i, idx_j, _ = inputs
    assert (idx_i == idx_j).any()
    by_pair = bf.pair_jacobian(backend, inputs).numpy()
    found = backend.jacobian(*inputs)
    positions = bf.by_positions(by_pair, idx_i, idx_j, 3)
    strain = bf.by_strain(by_pair, r_ij, idx_i, 3)
    np.testing.assert_allclose(found.values, backend.values(*inputs).numpy(), rtol=1e-12)
    close = {"rtol": 1e-11, "atol": 1e-13 * np.abs(positions).max()}
    for i in range(3):
        blocks = range(*found.block_first[i : i + 2])
        assert found.block_atom[blocks].tolist() == [0, 1, 2]
        for j, block in enumerate(blocks):
            if j != i or descriptor.kind == "ace":  # else of the images alone
                np.testing.assert_allclose(found.dg_dr[block], positions[i, j], **close)
    for v, (a, b) in enumerate(zip(VOIGT_ROWS, VOIGT_COLUMNS, strict=True)):
        symmetric = 0.5 * (strain[:, a, b] + strain[:, b, a])
        np.testing.assert_allclose(
            found.dg_dstrain[:, v], symmetric, rtol=1e-11, atol=1e-13 * np.abs(strain).max()
        )


@each_descriptor
def test_reference_against_differences_of_both_orders(descriptor):
    engine = descriptor.engine("cpu", "reference")
    r_ij, *rest = crystal(descriptor)
    chosen = torch.linalg.norm(r_ij, dim=1) < 2.9  # fewer
    r_ij, rest = r_ij[chosen].requires_grad_(), [rest[0][chosen], rest[1][chosen], rest[2]]

    def values(r_ij):
        return engine.values(engine.prepare(r_ij, *rest))

    assert torch.autograd.gradcheck(values, r_ij, fast_mode=True, rtol=1e-5)
    assert torch.autograd.gradgradcheck(values, r_ij, fast_mode=True, rtol=1e-5)


@pytest.mark.parametrize("descriptor", [PLAIN, POWER], ids=["snap", "ace"])
def test_training_path(make_backend, descriptor):
    backend = make_backend(descriptor)
    r_ij, *rest = crystal(descriptor)
    r_ij.requires_grad_()
    generator = torch.manual_seed(0)
    w = torch.randn(descriptor.n_columns, dtype=torch.float64, generator=generator) * 1e-3
    w.requires_grad_()

    def forces(w):
        energy = torch.tanh(pair_descriptors(r_ij, *rest, backend.engine) @ w).sum()
        return torch.autograd.grad(energy, r_ij, create_graph=True)[0]

    assert torch.autograd.gradcheck(forces, w, fast_mode=True)


@each_descriptor
def test_rotation_reflection_permutation_and_supercell(make_backend, descriptor):
    backend = make_backend(descriptor)
    positions, cell, numbers = atoms(descriptor)
    g = values_of(backend, positions, cell, True, numbers)
    close = {"rtol": 1e-10, "atol": 1e-12 * np.abs(g).max()}
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    for matrix in (q, -q):
        turned = values_of(backend, positions @ matrix, cell @ matrix, True, numbers)
        np.testing.assert_allclose(turned, g, **close)
    order = np.array([2, 0, 1])
    permuted = values_of(backend, positions[order], cell, True, numbers[order])
    np.testing.assert_allclose(permuted, g[order], **close)
    # nine atoms: more than go through the loops at a time
    tripled = np.concatenate([positions, positions + cell[1], positions - cell[1]])
    big = cell * np.array([[1.0], [3.0], [1.0]])
    g_big = values_of(backend, tripled, big, True, np.tile(numbers, 3))
    np.testing.assert_allclose(g_big, np.tile(g, (3, 1)), **close)


@each_family
def test_threads_share_the_atoms(monkeypatch, descriptor):
    backend = EngineCalls(descriptor.engine("cpu", "kernels"))
    inputs = crystal(descriptor)
    grad = torch.ones(3, descriptor.n_columns, dtype=torch.float64)
    tangent = torch.ones_like(inputs[0])
    once = backend.values(*inputs), backend.vjp(*inputs, grad), backend.jvp(*inputs, tangent)
    n = 15
    r_ij, idx_i, idx_j = inputs[0].repeat(n, 1), *(x.repeat(n) for x in inputs[1:3])
    offsets = 3 * torch.arange(n).repeat_interleave(len(inputs[0]))
    many = r_ij, idx_i + offsets, idx_j + offsets, inputs[3].repeat(n)
    monkeypatch.setattr(compiled_engine, "n_threads", lambda: 2)
    monkeypatch.setattr(compiled_engine, "_ATOMS_PER_TASK", 8)
    found = (
        backend.values(*many),
        backend.vjp(*many, grad.repeat(n, 1)),
        backend.jvp(*many, tangent.repeat(n, 1)),
    )
    for x, y in zip(found, once, strict=True):
        torch.testing.assert_close(x, y.repeat(n, 1), rtol=1e-12, atol=1e-12 * y.abs().max().item())


@each_family
def test_atoms_without_neighbours_and_of_unknown_elements(make_backend, descriptor):
    backend, nothing = make_backend(descriptor), (np.zeros((0, 3)), *np.zeros((2, 0), int))
    inputs = tensors(*nothing, [*descriptor.elements])
    g = backend.values(*inputs).detach()
    torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-13)
    assert backend.vjp(*inputs, torch.ones_like(g)).shape == (0, 3)
    nobody = tensors(*nothing, np.zeros(0, int))
    assert backend.values(*nobody).shape == (0, descriptor.n_columns)
    with pytest.raises(UnknownElementError, match="Mo"):
        backend.values(*tensors(*nothing, [42]))


@each_family
def test_pairs_beyond_the_cutoff_float32_and_nan(make_backend, descriptor):
    backend = make_backend(descriptor)
    positions, cell, numbers = atoms(descriptor)
    g = values_of(backend, positions, cell, True, numbers)
    longer = tensors(*bf.pairs_of(positions, cell, True, descriptor.cutoff + 1.5), numbers)
    torch.testing.assert_close(
        backend.values(*longer).numpy(force=True), g, rtol=1e-12, atol=1e-12 * np.abs(g).max()
    )
    single = crystal(descriptor, torch.float32)
    double = (single[0].double(), *single[1:])
    g, exact = backend.values(*single), backend.values(*double)
    assert g.dtype == torch.float32
    torch.testing.assert_close(g.double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())
    double[0][0, 1] = torch.nan
    g = backend.values(*double)
    assert g[double[1][0]].isnan().any()
    others = torch.arange(3) != double[1][0]
    assert torch.equal(g[others], exact[others])


@each_descriptor
def test_columns_say_what_depends_on_a_neighbour(descriptor):
    positions, numbers = bf.random_cluster(7, size=2.6)  # in a crystal odd densities may vanish
    numbers = np.array(descriptor.elements)[(numbers == 8).astype(int)]
    inputs = tensors(*bf.pairs_of(positions, BOX, False, descriptor.cutoff), numbers)
    by_pair = bf.pair_jacobian(EngineCalls(descriptor.engine("cpu", "kernels")), inputs)
    z_of_i, z_of_j = (inputs[3][x] for x in inputs[1:3])
    for z_i, z_j in product(descriptor.elements, repeat=2):
        of = (z_of_i == z_i) & (z_of_j == z_j)
        found = (by_pair[of].abs().amax((0, 1)) > 0).nonzero()[:, 0]
        assert set(found.tolist()) == set(descriptor.columns(z_i, z_j))


@each_descriptor
def test_dictionary(descriptor):
    again = descriptor_from_dict(json.loads(json.dumps(descriptor.to_dict())))
    assert again == descriptor
    assert again.to_dict() == descriptor.to_dict()
    assert again != descriptor_from_dict({**descriptor.to_dict(), **other(descriptor)})


def other(descriptor):
    return {"rmin0": 0.1} if descriptor.kind == "snap" else {"decay": 3.3}
