"""What the reference backend promises beyond the other backends."""

import gc
import weakref
from typing import ClassVar

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import ReferenceCalls, descriptors
from n2p2_reference import load
from test_backends import cluster_input, crystal_input, tensors

from schnetpack_softadapt.descriptors import engines
from schnetpack_softadapt.descriptors.acsf import reference
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceEngine

HARMLESS = SymmetryFunction("G2", (1,), 4.0, 1.0)


def energy_of(backend, inputs):
    """A function of r_ij (P, 3) that is nonlinear in every descriptor."""
    generator = torch.manual_seed(0)
    w = torch.randn(backend.descriptor.n_columns, dtype=torch.float64, generator=generator)

    def energy(r_ij):
        return torch.tanh(0.1 * backend.values(r_ij, *inputs[1:]) * w).sum()

    return energy


@pytest.mark.parametrize("max_triples", [1000, 2])
def test_gradcheck_to_third_order(max_triples):
    layout = bf.mixed_layout()
    inputs = cluster_input(layout, *bf.random_cluster(3))
    r_ij = inputs[0].requires_grad_()
    energy = energy_of(ReferenceCalls(layout, max_triples), inputs)

    def gradient(r_ij):
        return torch.autograd.grad(energy(r_ij), r_ij, create_graph=True)[0]

    assert torch.autograd.gradcheck(energy, r_ij)
    assert torch.autograd.gradgradcheck(energy, r_ij, fast_mode=True)
    assert torch.autograd.gradgradcheck(gradient, r_ij, fast_mode=True)


def test_hessian_of_a_perfect_crystal():
    """Collinear atoms: 1 + lam cos(theta) vanishes, its second derivative does not."""
    for z, functions in bf.mixed_layout().functions.items():
        for f in functions:
            layout = Layout({n: [f] if n == z else [HARMLESS] for n in (1, 8)})
            inputs = crystal_input(layout, displacement=0.0)
            r_ij = inputs[0].requires_grad_()
            tangent = torch.randn(r_ij.shape, dtype=torch.float64, generator=torch.manual_seed(1))
            backend = ReferenceCalls(layout)

            def gradient(r_ij, backend=backend, inputs=inputs, z=z):
                energy = backend.values(r_ij, *inputs[1:])[inputs[3] == z].square().sum()
                return torch.autograd.grad(energy, r_ij, create_graph=True)[0]

            (product,) = torch.autograd.grad(gradient(r_ij), r_ij, tangent)
            step = 1e-4
            difference = [
                (gradient(r_ij + h * tangent) - gradient(r_ij - h * tangent)).detach() / (2 * h)
                for h in (step, 2 * step)
            ]
            expected = (4 * difference[0] - difference[1]) / 3
            # differences to the fourth order, rounded at 1e-16 / step
            assert (product - expected).abs().max() < 1e-10 * expected.abs().max(), f


def test_values_and_derivatives_do_not_depend_on_the_chunks():
    layout = bf.mixed_layout()
    inputs = crystal_input(layout)
    grad_g = torch.randn(3, layout.n_columns, dtype=torch.float64, generator=torch.manual_seed(0))
    whole = ReferenceCalls(layout, 10**6)
    chunked = ReferenceCalls(layout, 100)
    for name, args in (("values", ()), ("vjp", (grad_g,)), ("jvp", (torch.ones_like(inputs[0]),))):
        a = getattr(chunked, name)(*inputs, *args)
        b = getattr(whole, name)(*inputs, *args)
        # the same terms in another order
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    small = cluster_input(layout, *bf.random_cluster(4))
    one_by_one = ReferenceCalls(layout, 1).values(*small)
    torch.testing.assert_close(one_by_one, whole.values(*small), rtol=1e-13, atol=1e-15)


class Held:
    """A tensor that autograd keeps; `bytes_held` counts those that are still alive."""

    alive: ClassVar = weakref.WeakSet()

    def __init__(self, tensor):
        self.tensor = tensor
        self.alive.add(self)

    @classmethod
    def bytes_held(cls):
        gc.collect()
        storages = {x.tensor.untyped_storage() for x in cls.alive}
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def test_autograd_keeps_no_triples():
    """Memory held between the passes does not grow with the number of triples."""
    potential = load("acsf24_Mo54")
    pairs = bf.pairs_of(potential.positions, potential.cell, True, potential.layout.cutoff)
    inputs = tensors(*pairs, potential.numbers)
    r_ij = inputs[0].requires_grad_()
    n_neighbors = np.bincount(pairs[1])
    n_triples = int((n_neighbors * (n_neighbors - 1) // 2).sum())
    Held.alive.clear()
    held = []
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        g = ReferenceCalls(potential.layout, 3000).values(*inputs)
        held.append(Held.bytes_held())
        (grad,) = torch.autograd.grad(g.square().sum(), r_ij, create_graph=True)
        held.append(Held.bytes_held())
        (second,) = torch.autograd.grad(grad.square().sum(), r_ij, create_graph=True)
        held.append(Held.bytes_held())
    assert second.requires_grad
    # r_ij, and in each further pass a gradient per pair, 24 values per atom and copies of some of
    # them for every chunk: less than one number per triple. Keeping the terms would take some 16
    # numbers per triple already in the first pass.
    assert n_triples > 25_000
    assert held[0] < 2 * r_ij.nbytes
    assert held[1] < 8 * n_triples
    assert held[2] < 16 * n_triples


def test_descriptors_by_name():
    layout = bf.mixed_layout()
    r_ij, *rest = cluster_input(layout, *bf.random_cluster(4))
    r_ij.requires_grad_()
    g = descriptors(r_ij, *rest, layout, backend="reference")
    (grad,) = torch.autograd.grad(g.sum(), r_ij, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), r_ij)
    assert torch.all(torch.isfinite(second))
    torch.testing.assert_close(descriptors(r_ij, *rest, layout), g, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        descriptors(r_ij, *rest, layout, backend="fast")


def test_auto_falls_back_on_the_reference_with_a_warning(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    engines.warn_no_kernels.cache_clear()
    layout = Layout({"H": [SymmetryFunction("G2", (1,), 4.0, 0.123)]})  # no other test has it
    with pytest.warns(UserWarning, match="NUMBA_DISABLE_JIT is set"):
        engine = layout.engine("cpu", "auto")
    assert isinstance(engine, ReferenceEngine)
    assert not engine.is_exact
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT is set"):
        layout.engine("cpu", "kernels")
    with pytest.raises(ValueError, match="CPU"):
        layout.engine("meta", "kernels")


def test_room_for_triples_is_checked():
    with pytest.raises(ValueError, match="max_triples"):
        ReferenceCalls(bf.mixed_layout(), 0)


def test_not_a_number_stays_in_the_sum():
    layout = bf.mixed_layout()
    r_ij, *rest = crystal_input(layout)
    r_ij[0] = torch.nan
    g = ReferenceCalls(layout).values(r_ij, *rest)
    assert torch.isnan(g[rest[0][0]]).any()


def test_coinciding_atoms_give_finite_numbers():
    layout = bf.mixed_layout()
    inputs = crystal_input(layout)
    r_ij = inputs[0].clone()
    # two neighbours of one atom in the same place
    mine = (inputs[1] == inputs[1][0]).nonzero().squeeze(1)
    r_ij[mine[1]] = r_ij[mine[0]]
    energy = energy_of(ReferenceCalls(layout), inputs)
    near = r_ij.clone()
    near[mine[1]] += 1e-7
    torch.testing.assert_close(energy(r_ij), energy(near), rtol=0, atol=1e-6)
    r_ij.requires_grad_()
    (grad,) = torch.autograd.grad(energy(r_ij), r_ij, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), r_ij)
    assert torch.all(torch.isfinite(grad))
    assert torch.all(torch.isfinite(second))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpu_agrees_with_cpu(dtype):
    layout = bf.mixed_layout()
    inputs = crystal_input(layout, dtype=dtype)
    on_gpu = [x.cuda() for x in inputs]
    backend = ReferenceCalls(layout)
    grad_g = torch.randn(3, layout.n_columns, dtype=dtype, generator=torch.manual_seed(0))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for name, args in (("values", ()), ("vjp", (grad_g,)), ("jvp", (torch.ones_like(inputs[0]),))):
        a = getattr(backend, name)(*on_gpu, *(x.cuda() for x in args))
        b = getattr(backend, name)(*inputs, *args)
        torch.testing.assert_close(a.cpu(), b, **tolerance)
    with pytest.raises(ValueError, match="CPU"):
        descriptors(*on_gpu, layout, backend="kernels")


def test_equal_functions_of_two_elements_are_summed_together():
    shared = [SymmetryFunction("G2", (8,), 3.0, 0.1), SymmetryFunction("G4", (1, 8), 3.0, 0.1)]
    groups = reference._group(Layout({"H": shared, "O": shared}))
    assert [g.centers for g in groups] == [(1, 8), (1, 8)]
